"""`personae memory`: upkeep of the memory index, and what a person may ask for."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from personae_serve.cli.connection import DEFAULT_TENANT, Connection, Tenant, connected, full_persona_name
from personae_serve.cli.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console

    from personae.v1.memory_service_pb2 import Fact, Memory, MemoryServiceExplainResponse
    from personae_client import PersonaeClient
    from personae_runtime.config import Settings
    from personae_runtime.memory.index import Difference

app = typer.Typer(help="Upkeep of the memory index; exports, erasures and their proofs.", no_args_is_help=True)
proof = typer.Typer(help="Proofs of erasures.", no_args_is_help=True)
app.add_typer(proof, name="proof")

Config = Annotated[Path | None, typer.Option(help="TOML file.", envvar="PERSONAE_CONFIG", dir_okay=False)]


def register(root: typer.Typer) -> None:
    """Add `personae memory`."""
    root.add_typer(app, name="memory")


@app.callback()
def _group() -> None:
    pass


@app.command()
def init(config: Config = None) -> None:
    """Make collection, payload indexes and alias on the Qdrant server, if they are not there."""
    from personae_serve.cli.up import run

    run(_init(_settings(config)))


@app.command()
def check(
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Compare the index's layout with what this version and its settings want; exit with 1 on a difference."""
    from personae_serve.cli.up import run

    run(_check(_settings(config), as_json))


@app.command()
def migrate(config: Config = None) -> None:
    """Bring the index to the layout wanted: in place where that can be, else by building it anew.

    A server's new collection is filled beside the one in use and then takes its
    place. The embedded index is emptied first, with the host stopped.
    """
    from personae_serve.cli.up import run

    run(_migrate(_settings(config)))


@app.command()
def reindex(config: Config = None) -> None:
    """Build the memory index anew from the ledger.

    With the embedded index the host must not be running. On a server a new
    collection takes the place of the one in use, which answers until then.
    """
    from personae_serve.cli.up import run

    run(_rebuild(_settings(config)))


def _settings(config: Path | None) -> Settings:
    from personae_runtime.config import load_settings
    from personae_runtime.telemetry.logs import setup_logging

    settings = load_settings(config)
    setup_logging(settings.telemetry)
    return settings


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


@app.command()
@connected
def show(
    user: Annotated[str, typer.Argument(help="Whose, by id or full name.")],
    persona: Annotated[str, typer.Option(help="Of which persona, by id or full name.")] = "",
    query: Annotated[str, typer.Option(help="Show instead what this brings back, and why.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=100, help="Rows of each table.")] = 10,
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """Show what is known of a user: the card, facts with their times and sources, and the newest words."""
    from rich.console import Console

    parent = _user_name(user, persona, tenant)

    async def run() -> None:
        console = Console()
        async with connection.open() as client:
            if query:
                _show_recall(console, await client.memories.explain(parent, query, page_size=limit))
                return
            card = await client.memories.profile(parent)
            if card.text:
                console.print(f"[bold]Card, version {card.version}[/bold] ({card.tokens} tokens)")
                console.print(card.text, markup=False, highlight=False)
            await _show_memories(console, client, parent, limit)

    asyncio.run(run())


async def _show_memories(console: Console, client: PersonaeClient, parent: str, limit: int) -> None:
    from rich.table import Table

    from personae.v1 import memory_service_pb2 as pb

    words = {memory.name: memory async for memory in client.memories.list(parent)}
    facts = [memory for memory in words.values() if memory.kind == pb.MEMORY_KIND_FACT]
    table = Table("fact", "holds", "known by", "from", box=None, title="Facts", title_justify="left")
    for memory in facts[:limit]:
        fact = memory.fact
        basis = pb.FactBasis.Name(fact.basis).removeprefix("FACT_BASIS_").lower()
        sources = [words[name].text for name in memory.source_memories if name in words]
        table.add_row(
            _safe(memory.text), _holds(fact), f"{basis}, {fact.confidence:.2f}", _safe(" / ".join(sources)) or "?"
        )
    console.print(table if facts else "No facts.")
    said = [memory for memory in words.values() if memory.kind != pb.MEMORY_KIND_FACT]
    table = Table("when", "who", "words", "", box=None, title="Words, newest first", title_justify="left")
    for memory in said[:limit]:
        table.add_row(
            f"{memory.occur_time.ToDatetime():%Y-%m-%d}", _safe(memory.speaker), _safe(memory.text), _state(memory)
        )
    console.print(table if said else "No words.")
    if len(facts) > limit or len(said) > limit:
        console.print(f"{len(facts)} facts and {len(said)} messages in all; --limit shows more.")


def _show_recall(console: Console, found: MemoryServiceExplainResponse) -> None:
    from rich.table import Table

    for one in found.filters:
        console.print(f"filter: {one}", markup=False, highlight=False)
    if found.lexical_only:
        console.print("The embedding was not there in time: by words alone.")
    table = Table("rank", "words", "meaning", "score", "what weighed most", "memory", box=None)
    for candidate in found.candidates:
        parts = sorted(candidate.features.items(), key=lambda item: -abs(item[1]))[:3]
        arms = [
            f"{arm.rank} ({arm.score:.2f})" if present else "-"
            for arm, present in (
                (candidate.lexical, candidate.HasField("lexical")),
                (candidate.dense, candidate.HasField("dense")),
            )
        ]
        table.add_row(
            str(candidate.final_rank) if candidate.final_rank else candidate.filtered_reason,
            *arms,
            f"{candidate.score:.3g}" if candidate.final_rank else "-",
            ", ".join(f"{name} {value:+.1f}" for name, value in parts),
            _safe(candidate.memory.text) or candidate.memory.name,
        )
    console.print(table)


def _holds(fact: Fact) -> str:
    begin = f"from {fact.valid_from_time.ToDatetime():%Y-%m-%d}" if fact.HasField("valid_from_time") else ""
    end = f"until {fact.valid_to_time.ToDatetime():%Y-%m-%d}" if fact.HasField("valid_to_time") else "now"
    return f"{begin} {end}".strip()


def _state(memory: Memory) -> str:
    states = [
        "pinned" if memory.pinned else "",
        "restricted" if memory.restricted else "",
        memory.quarantine_reason,
    ]
    return ", ".join(state for state in states if state)


def _safe(text: str) -> str:
    from rich.markup import escape

    return escape(printable(text))


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
    from personae_runtime.ledger.vault import master_key_of, signing_key

    master = master_key_of(load_settings(config))
    typer.echo(base64.b64encode(signing_key(master).public_key().public_bytes_raw()).decode())


async def _init(settings: Settings) -> None:
    from personae_runtime.memory.factory import Part, server_settings
    from personae_runtime.memory.qdrant_layout import ServerLayout

    if settings.memory.qdrant.url is None:
        typer.echo("The embedded index needs no preparation: a host makes it when it first starts.")
        return
    for part in Part:
        qdrant = server_settings(settings.memory, part)
        async with ServerLayout(qdrant) as layout:
            made = await layout.init()
            differences = await layout.differences()
        if made is None:
            typer.echo(f"{qdrant.collection} is there already.")
        else:
            typer.echo(f"Made {made} on {qdrant.url}; {qdrant.collection} names it.")
        if differences:
            typer.echo("It is not laid out as wanted: see `personae memory check`.")


async def _check(settings: Settings, as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    by_index = await _differences(settings)
    if as_json:
        found = [
            {
                "index": where,
                "differences": [{"key": one.key, "wanted": one.wanted, "found": one.found} for one in differences],
            }
            for where, differences in by_index.items()
        ]
        typer.echo(json.dumps({"indexes": found}, indent=2))
    for where, differences in {} if as_json else by_index.items():
        if not differences:
            typer.echo(f"{where} is laid out as wanted.")
            continue
        table = Table("layout", "wanted", "found", box=None, pad_edge=False)
        for one in differences:
            table.add_row(one.key, _word(one.wanted), _word(one.found))
        Console().print(f"{where} is not laid out as wanted; `personae memory migrate` brings it there.", table)
    if any(by_index.values()):
        raise typer.Exit(1)


async def _differences(settings: Settings) -> dict[str, list[Difference]]:
    """By index, in words."""
    from personae_runtime.memory import edge
    from personae_runtime.memory.factory import Part, index_directory, server_settings
    from personae_runtime.memory.qdrant_layout import ServerLayout

    found: dict[str, list[Difference]] = {}
    for part in Part:
        if settings.memory.qdrant.url is None:
            directory = index_directory(settings.data_dir, part)
            found[str(directory)] = edge.differences(directory)
            continue
        qdrant = server_settings(settings.memory, part)
        async with ServerLayout(qdrant) as layout:
            found[f"{qdrant.collection} on {qdrant.url}"] = await layout.differences()
    return found


async def _migrate(settings: Settings) -> None:
    from personae_runtime.memory.factory import Part, server_settings
    from personae_runtime.memory.qdrant_layout import ServerLayout

    by_index = await _differences(settings)
    if not any(by_index.values()):
        for where in by_index:
            typer.echo(f"{where} is laid out as wanted.")
        return
    if settings.memory.qdrant.url is not None:
        left = False
        for part in Part:
            async with ServerLayout(server_settings(settings.memory, part)) as layout:
                left |= bool(await layout.update())
        if not left:
            changed = sorted({one.key for differences in by_index.values() for one in differences})
            typer.echo(f"Changed in place: {', '.join(changed)}.")
            return
    await _rebuild(settings)


async def _rebuild(settings: Settings) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from personae_serve.embedded import lock_data_dir
    from personae_serve.stores import open_stores, rebuild_memory

    async with AsyncExitStack() as stack:
        if settings.memory.qdrant.url is None or settings.ledger.dsn is None:
            # Something of this directory is opened that a running host has open.
            stack.callback(lock_data_dir(settings.data_dir).close)
        stores = await open_stores(settings, stack)
        begun = time.monotonic()
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}/s"), TimeRemainingColumn())
        with Progress(TextColumn("indexing"), *columns) as bars:
            task = bars.add_task("indexing", total=None, rate="0")

            def show(finished: int, total: int) -> None:
                rate = finished / max(time.monotonic() - begun, 1e-9)
                bars.update(task, completed=finished, total=max(total, 1), rate=f"{rate:.0f}")

            done = await rebuild_memory(settings, stores, stack, show)
        elapsed = max(time.monotonic() - begun, 1e-9)
    typer.echo(f"{done} changes indexed in {elapsed:.1f} s ({done / elapsed:.0f} changes per second).")


def _word(value: Any) -> str:
    return "none" if value is None else str(value)
