"""`personae memory`: upkeep of the memory index."""

from __future__ import annotations

import json
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from personae_runtime.config import Settings
    from personae_runtime.memory.index import Difference

app = typer.Typer(help="Upkeep of the memory index.", no_args_is_help=True)

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
