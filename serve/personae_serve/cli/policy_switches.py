"""`personae policy kill|lift|switches`: turn off a tenant, a persona or a rule, on every gateway at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from personae_serve.cli.connection import DEFAULT_TENANT, Connection, Tenant, connected, full_persona_name
from personae_serve.cli.policy import app
from personae_serve.cli.terminal import printable

if TYPE_CHECKING:
    from personae.v1.policy_service_pb2 import KillSwitch

Reason = Annotated[str, typer.Option(help="Why, for those who keep the service.")]


@app.command()
@connected
def kill(
    reason: Reason,
    persona: Annotated[str, typer.Option(help="This persona: nothing more of it leaves.")] = "",
    rule: Annotated[str, typer.Option(help="This rule of the bundle, by its id: it matches no more.")] = "",
    whole_tenant: Annotated[bool, typer.Option("--whole-tenant", help="Every persona of the tenant.")] = False,
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """Switch off a persona, a rule or the whole tenant, until it is lifted."""
    if [bool(persona), bool(rule), whole_tenant].count(True) != 1:
        raise typer.BadParameter("say what: one of --persona, --rule and --whole-tenant")

    async def run() -> KillSwitch:
        async with connection.open() as client:
            return await client.policy.kill(
                f"tenants/{tenant}",
                reason,
                persona=full_persona_name(persona, tenant) if persona else "",
                rule_id=rule,
                whole_tenant=whole_tenant,
            )

    typer.echo(printable(_line(asyncio.run(run()))))


@app.command()
@connected
def lift(
    name: Annotated[str, typer.Argument(help="Name of the kill switch, or its id.")],
    reason: Reason,
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """Let what was switched off go on."""
    full = name if name.startswith("tenants/") else f"tenants/{tenant}/killSwitches/{name}"

    async def run() -> KillSwitch:
        async with connection.open() as client:
            return await client.policy.lift(full, reason)

    typer.echo(printable(_line(asyncio.run(run()))))


@app.command()
@connected
def switches(
    lifted: Annotated[bool, typer.Option("--all", help="Those that were lifted, too.")] = False,
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """List what is switched off, newest first."""

    async def run() -> list[KillSwitch]:
        async with connection.open() as client:
            return [one async for one in client.policy.kill_switches(f"tenants/{tenant}", show_lifted=lifted)]

    found = asyncio.run(run())
    for switch in found:
        typer.echo(printable(_line(switch)))
    if not found:
        typer.echo("Nothing is switched off.")


def _line(switch: KillSwitch) -> str:
    match switch.WhichOneof("target"):
        case "persona":
            what = switch.persona
        case "rule_id":
            what = f"rule {switch.rule_id}"
        case _:
            what = "the whole tenant"
    since = f"off since {switch.create_time.ToJsonString()} by {switch.creator}: {switch.reason}"
    if switch.HasField("lift_time"):
        since += f"; lifted {switch.lift_time.ToJsonString()} by {switch.lifter}: {switch.lift_reason}"
    return f"{what}  {since}  {switch.name}"
