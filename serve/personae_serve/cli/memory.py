"""`personae memory`: upkeep of the memory index."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from personae_runtime.config import Settings

app = typer.Typer(help="Upkeep of the memory index.", no_args_is_help=True)


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


async def _reindex(settings: Settings) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from personae_runtime.telemetry.setup import Telemetry
    from personae_serve.embedded import lock_data_dir
    from personae_serve.stores import open_memory, open_stores

    async with AsyncExitStack() as stack:
        stack.callback(lock_data_dir(settings.data_dir).close)
        stores = await open_stores(settings, stack)
        memory = await open_memory(settings, stores, stack, Telemetry.off(), fresh=True)
        begun = time.monotonic()
        with Progress(TextColumn("indexing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bars:
            done = 0
            for indexer in (memory.indexer, memory.passage_indexer):
                task = bars.add_task("indexing", total=None)

                def show(finished: int, total: int, task: TaskID = task) -> None:
                    bars.update(task, completed=finished, total=max(total, 1))

                done += await indexer.reindex(show)
        elapsed = max(time.monotonic() - begun, 1e-9)
    typer.echo(f"{done} changes indexed in {elapsed:.1f} s ({done / elapsed:.0f} per second).")
