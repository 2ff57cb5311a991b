"""`personae memory`: upkeep of the memory index, and what a person may ask for."""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from personae_serve.cli.connection import DEFAULT_TENANT, Connection, Tenant, connected, full_persona_name

if TYPE_CHECKING:
    from personae_runtime.config import Settings

app = typer.Typer(help="Upkeep of the memory index; exports, erasures and their proofs.", no_args_is_help=True)
proof = typer.Typer(help="Proofs of erasures.", no_args_is_help=True)
app.add_typer(proof, name="proof")


def register(root: typer.Typer) -> None:
    """Add `personae memory`."""
    root.add_typer(app, name="memory")


@app.callback()
def _group() -> None:
    pass


@app.command()
def reindex(
    config: Annotated[Path | None, typer.Option(help="TOML file.", envvar="PERSONAE_CONFIG", dir_okay=False)] = None,
) -> None:
    """Build the memory index anew from the ledger. The host must not be running."""
    from personae_runtime.config import load_settings
    from personae_runtime.telemetry.logs import setup_logging
    from personae_serve.cli.up import run

    settings = load_settings(config)
    setup_logging(settings.telemetry)
    run(_reindex(settings))


@app.command()
@connected
def export(
    user: Annotated[str, typer.Argument(help="Whose, by id or full name.")],
    persona: Annotated[str, typer.Option(help="Of which persona, by id or full name.")] = "",
    output: Annotated[
        Path | None, typer.Option(help="Write to this file, for its owner only. [default: standard output]")
    ] = None,
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """Write all that is held of a user as JSON lines."""
    parent = _user_name(user, persona, tenant)

    async def run() -> None:
        async with connection.open() as client:
            lines = client.memories.export(parent)
            if output is None:
                async for line in lines:
                    sys.stdout.write(line + "\n")
            else:
                # Whole or not at all: what a failure cut off is not taken for an export.
                written = output.with_name(f".{output.name}.new")
                descriptor = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                try:
                    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                        async for line in lines:
                            file.write(line + "\n")
                    written.replace(output)
                finally:
                    written.unlink(missing_ok=True)
            assert lines.record is not None
            counted = ", ".join(f"{count} {kind}" for kind, count in sorted(lines.record.counts.items()))
            typer.echo(f"{counted}; SHA-256 {lines.record.sha256.hex()}", err=True)

    asyncio.run(run())


@app.command()
@connected
def erase(
    user: Annotated[str, typer.Argument(help="Whom, by id or full name.")],
    persona: Annotated[str, typer.Option(help="Of which persona, by id or full name.")] = "",
    reason: Annotated[str, typer.Option(help="For the record; must not name the person.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """Erase all that is held of a user, for good, and print the proof."""
    from personae_serve.proofs import to_json

    parent = _user_name(user, persona, tenant)
    if not yes:
        typer.confirm(f"Erase all that is held of {parent}, for good?", abort=True, err=True)

    async def run() -> str:
        async with connection.open() as client:
            operation = await client.memories.erase(parent, reason=reason)
            typer.echo(f"{operation.name} runs.", err=True)
            return to_json(await operation.wait())

    typer.echo(asyncio.run(run()))


def _user_name(user: str, persona: str, tenant: str) -> str:
    """`u-17` of a persona, or a full name → the full name."""
    if user.startswith("tenants/"):
        return user
    if not persona:
        raise typer.BadParameter("give --persona, or the user's full name (tenants/.../users/...)")
    return f"{full_persona_name(persona, tenant)}/users/{user}"


@proof.command()
def verify(
    file: Annotated[Path, typer.Argument(help="A proof, or an erasure log: one a line.", exists=True, dir_okay=False)],
    public_key: Annotated[
        str | None,
        typer.Option(
            help="Base64 of the platform's public key (`personae memory proof key`).", envvar="PERSONAE_PROOF_KEY"
        ),
    ] = None,
) -> None:
    """Check signed proofs, without a server. Exits with 1 if one does not hold."""
    from personae_serve.proofs import from_json, holds

    key = None
    if public_key is not None:
        try:
            key = base64.b64decode(public_key, validate=True)
        except binascii.Error:
            raise typer.BadParameter("--public-key is not base64") from None
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    bad = 0 if lines else 1
    for number, line in enumerate(lines, start=1):
        try:
            found = from_json(line)
        except ValueError as error:
            typer.echo(f"line {number}: {error}")
            bad += 1
            continue
        complete = not any(found.remaining.values())
        good = holds(found, key) and complete
        bad += not good
        what = f"{len(found.memory_ids)} memories" if found.memory_ids else "a whole user"
        state = "holds" if good else "does NOT hold"
        typer.echo(f"{found.erasure_id}: {state}; {what}, done {found.complete_time.ToJsonString()}")
    if key is None and not bad:
        typer.echo("Signed by the key that each names itself; give --public-key to check whose that is.", err=True)
    if bad:
        raise typer.Exit(1)


@proof.command()
def key(
    config: Annotated[Path | None, typer.Option(help="TOML file.", envvar="PERSONAE_CONFIG", dir_okay=False)] = None,
) -> None:
    """Print the public key that this installation's proofs are signed with, base64."""
    from personae_runtime.config import load_settings
    from personae_runtime.ledger.vault import load_master_key, signing_key

    settings = load_settings(config)
    configured = settings.ledger.master_key
    master = load_master_key(
        None if configured is None else configured.get_secret_value(),
        settings.data_dir,
        development=settings.profile == "development",
    )
    typer.echo(base64.b64encode(signing_key(master).public_key().public_bytes_raw()).decode())


async def _reindex(settings: Settings) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from personae_runtime.telemetry.setup import Telemetry
    from personae_serve.embedded import lock_data_dir
    from personae_serve.stores import open_memory, open_stores

    async with AsyncExitStack() as stack:
        stack.callback(lock_data_dir(settings.data_dir).close)
        stores = await open_stores(settings, stack)
        memory = await open_memory(settings, stores, stack, Telemetry.off(), fresh=True)
        begun = time.monotonic()
        with Progress(TextColumn("indexing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bars:
            task = bars.add_task("indexing", total=None)
            done = await memory.indexer.reindex(
                lambda finished, total: bars.update(task, completed=finished, total=max(total, 1))
            )
        elapsed = max(time.monotonic() - begun, 1e-9)
    typer.echo(f"{done} changes indexed in {elapsed:.1f} s ({done / elapsed:.0f} per second).")
