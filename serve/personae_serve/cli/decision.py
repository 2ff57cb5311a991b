"""`personae decision`: what policy decided, and why."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from personae_serve.cli.connection import DEFAULT_TENANT, Connection, Tenant, connected, full_persona_name
from personae_serve.cli.terminal import printable

if TYPE_CHECKING:
    from personae.v1.policy_service_pb2 import CountCrisisReferralsResponse, Decision, PolicyServiceExplainResponse

app = typer.Typer(help="What policy decided, and why.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add `personae decision`."""
    root.add_typer(app, name="decision")


@app.command()
@connected
def show(
    name: Annotated[str, typer.Argument(help="Name of the decision, or its id.")],
    as_json: Annotated[bool, typer.Option("--json", help="The API's message as JSON.")] = False,
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """Explain a decision: rules, places, scores, and its statement of reasons."""

    async def run() -> PolicyServiceExplainResponse:
        async with connection.open() as client:
            return await client.policy.explain(full_decision_name(name, tenant))

    explained = asyncio.run(run())
    if as_json:
        from google.protobuf import json_format

        typer.echo(json_format.MessageToJson(explained, preserving_proto_field_name=True))
        return
    for line in lines_of(explained):
        typer.echo(printable(line))


@app.command("list")
@connected
def list_(
    persona: Annotated[str, typer.Option(help="Only of this persona.")] = "",
    category: Annotated[str, typer.Option(help="Only of this category.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """List decisions, newest first."""

    async def run() -> list[Decision]:
        found: list[Decision] = []
        async with connection.open() as client:
            async for decision in client.policy.list_decisions(
                f"tenants/{tenant}",
                persona=full_persona_name(persona, tenant) if persona else "",
                category=category,
                page_size=min(limit, 200),
            ):
                found.append(decision)
                if len(found) == limit:
                    break
        return found

    for decision in asyncio.run(run()):
        typer.echo(printable(f"{decision.create_time.ToJsonString()}  {_words(decision)}  {decision.name}"))


@app.command()
@connected
def referrals(
    year: Annotated[int, typer.Option(min=2000, max=9998, help="The calendar year (UTC).")],
    days: Annotated[bool, typer.Option("--days", help="Each day, not the year alone.")] = False,
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """Count referrals to crisis services in a year, as yearly reports ask for them; no text, nobody's name."""
    from datetime import date

    async def run() -> CountCrisisReferralsResponse:
        async with connection.open() as client:
            return await client.policy.count_crisis_referrals(
                f"tenants/{tenant}", date(year, 1, 1), date(year + 1, 1, 1)
            )

    counted = asyncio.run(run())
    if days:
        for one in counted.counts:
            region = one.region_code or "--"
            typer.echo(printable(f"{one.date}  {region}  {one.tier:8}  {one.referrals:6}  people {one.people}"))
    else:
        totals: dict[tuple[str, str], int] = {}
        for one in counted.counts:
            place = (one.region_code or "--", one.tier)
            totals[place] = totals.get(place, 0) + one.referrals
        for (region, tier), number in sorted(totals.items()):
            typer.echo(printable(f"{year}  {region}  {tier:8}  {number:6}"))
    typer.echo(f"{counted.referrals} referrals in {year}")


def full_decision_name(name: str, tenant: str) -> str:
    """An id or a full name → the full name."""
    return name if name.startswith("tenants/") else f"tenants/{tenant}/decisions/{name}"


def _words(decision: Decision) -> str:
    from personae.v1.event_pb2 import PolicyAction, PolicyStage

    action = PolicyAction.Name(decision.action).removeprefix("POLICY_ACTION_").lower()
    stage = PolicyStage.Name(decision.stage).removeprefix("POLICY_STAGE_").lower()
    reason = f" {decision.category} ({decision.reason_code})" if decision.reason_code else ""
    return f"{action} at {stage}{reason}"


def lines_of(explained: PolicyServiceExplainResponse) -> list[str]:
    """An explanation for a terminal."""
    decision, stated = explained.decision, explained.statement
    lines = [
        decision.name,
        f"  {_words(decision)}, {decision.create_time.ToJsonString()}, bundle {decision.bundle_version}",
        f"  in {decision.turn or decision.persona}",
    ]
    for rule in explained.rules:
        lines += [f"rule {rule.rule_id}: {rule.description}", f"  when {' '.join(rule.expression.split())}"]
        if rule.legal_basis:
            lines.append(f"  by {rule.legal_basis}")
    lines += [f"found {hit.matcher_id} at characters {hit.start} to {hit.end}" for hit in explained.matches]
    lines += [
        f"score {one.category} {one.score:.3f}, asked for {one.operator} {one.threshold:g} by {one.rule_id}"
        for one in explained.comparisons
    ]
    if explained.template_text:
        lines.append(f"said instead: {explained.template_text}")
    if explained.notice_code:
        lines.append(f"told: {explained.notice_text} ({explained.notice_code})")
    for title, text in (
        ("reason", stated.reason),
        ("restriction", stated.restriction),
        ("facts", stated.facts),
        ("automated means", stated.automated_means),
        ("legal ground", stated.legal_ground or "none"),
        ("contractual ground", stated.contractual_ground),
        ("redress", stated.redress),
    ):
        lines.append(f"{title}: {text}")
    return lines
