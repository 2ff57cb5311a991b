"""`personae audit`: the audit log, exported, and checked without a server."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from pathlib import Path
from typing import Annotated

import typer

from personae_serve.cli.connection import DEFAULT_TENANT, Connection, Tenant, connected

app = typer.Typer(help="The audit log: export, receipts, verification.", no_args_is_help=True)

_Output = Annotated[Path, typer.Argument(help="Written whole or not at all.", dir_okay=False)]

PublicKey = Annotated[
    str | None,
    typer.Option(help="Base64 of the installation's key (`personae audit key`).", envvar="PERSONAE_AUDIT_KEY"),
]


def decoded(public_key: str | None) -> bytes | None:
    """What `--public-key` says.

    Raises:
        typer.BadParameter: it is not base64.
    """
    try:
        return None if public_key is None else base64.b64decode(public_key, validate=True)
    except binascii.Error:
        raise typer.BadParameter("--public-key is not base64") from None


def register(root: typer.Typer) -> None:
    """Add `personae audit`."""
    root.add_typer(app, name="audit")


@app.callback()
def _group() -> None:
    pass


@app.command()
@connected
def export(file: _Output, *, connection: Connection, tenant: Tenant = DEFAULT_TENANT) -> None:
    """Write a tenant's whole audit log as JSON lines."""

    async def run() -> int:
        count = 0
        written = file.with_name(f".{file.name}.new")
        try:
            async with connection.open() as client:
                with written.open("w", encoding="utf-8", newline="\n") as lines:
                    async for line in client.audit.export(f"tenants/{tenant}"):
                        lines.write(line + "\n")
                        count += 1
            written.replace(file)
        finally:
            written.unlink(missing_ok=True)
        return count

    typer.echo(f"{asyncio.run(run())} lines; check them with: personae audit verify {file}", err=True)


@app.command()
@connected
def checkpoint(*, connection: Connection, tenant: Tenant = DEFAULT_TENANT) -> None:
    """Print a signed checkpoint that covers every entry written so far. Keep it where the host can't reach."""

    async def run() -> str:
        async with connection.open() as client:
            return (await client.audit.checkpoint(f"tenants/{tenant}")).note

    typer.echo(asyncio.run(run()), nl=False)


@app.command()
@connected
def prove(
    entry: Annotated[str, typer.Argument(help="Index of an entry, or its id, such as a decision's.")],
    file: _Output,
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """Write the receipt of one entry: it, its inclusion proof and a checkpoint; `verify` needs nothing else."""

    async def run() -> list[dict[str, object]]:
        which = {"index": int(entry)} if entry.isdigit() else {"entry_id": entry}
        async with connection.open() as client:
            proof = await client.audit.inclusion_proof(f"tenants/{tenant}", **which)
        signed = proof.checkpoint
        return [
            {
                "type": "log",
                "format": "personae-audit-receipt/1",
                "origin": signed.origin,
                "public_key": base64.b64encode(signed.public_key).decode(),
            },
            {"type": "entry", "index": proof.entry.index, "entry": proof.entry.entry_json},
            {
                "type": "inclusion",
                "index": proof.entry.index,
                "size": proof.tree_size,
                "hashes": [base64.b64encode(found).decode() for found in proof.hashes],
            },
            {"type": "checkpoint", "note": signed.note},
        ]

    lines = [json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in asyncio.run(run())]
    file.write_text("".join(lines), encoding="utf-8", newline="\n")


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="An export or a receipt.", exists=True, dir_okay=False)],
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(help="A checkpoint known from before; may be given again.", exists=True, dir_okay=False),
    ] = None,
    public_key: PublicKey = None,
) -> None:
    """Check an audit log, without a server. Exits with 1 if anything does not hold."""
    from personae_serve import audit_verify

    key = decoded(public_key)
    pinned = []
    for path in checkpoint or []:
        try:
            pinned.append(path.read_bytes().decode())
        except UnicodeDecodeError:
            raise typer.BadParameter(f"{path} is not a checkpoint") from None
    with file.open("rb") as lines:
        found = audit_verify.verify(lines, public_key=key, pinned=pinned)
    for problem in found.problems:
        typer.echo(problem)
    if not found.holds:
        typer.echo(f"{file} does NOT hold.")
        raise typer.Exit(1)
    assert found.last is not None
    what = "the entry is in the log" if found.receipt else f"all {found.entries} entries"
    when = f" at {found.last.time}" if found.last.time else ""
    typer.echo(f"{found.origin}: holds; {what}, {found.checkpoints} checkpoints, the last of {found.last.size}{when}")
    typer.echo(f"root {base64.b64encode(found.last.root).decode()}")
    if found.kinds:
        typer.echo(", ".join(f"{count} {kind}" for kind, count in sorted(found.kinds.items())))
    if key is None:
        typer.echo("Signed by the key that the file itself names; give --public-key to check whose that is.", err=True)
    if not found.pinned:
        typer.echo("That nothing was cut off at the end is shown by a --checkpoint known from before only.", err=True)


@app.command()
def key(
    config: Annotated[Path | None, typer.Option(help="TOML file.", envvar="PERSONAE_CONFIG", dir_okay=False)] = None,
) -> None:
    """Print the public key that this installation's checkpoints are signed with, base64."""
    from personae_runtime.config import load_settings
    from personae_runtime.ledger.vault import audit_key, master_key_of

    master = master_key_of(load_settings(config))
    typer.echo(base64.b64encode(audit_key(master).public_key().public_bytes_raw()).decode())
