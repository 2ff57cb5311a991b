"""`personae up`: serve until told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from personae_runtime.config import Settings


def register(root: typer.Typer) -> None:
    """Add `personae up`."""
    root.command("up")(up)


def up(
    config: Annotated[Path | None, typer.Option(help="TOML file.", envvar="PERSONAE_CONFIG", dir_okay=False)] = None,
) -> None:
    """Serve the API on this machine until Ctrl-C."""
    from personae_runtime.config import load_settings
    from personae_runtime.telemetry.logs import setup_logging

    settings = load_settings(config)
    setup_logging(settings.telemetry)
    run(serve(settings))


async def serve(settings: Settings) -> None:
    """Start a host, say where it is, and stop it at SIGINT or SIGTERM."""
    from personae_serve.embedded import EmbeddedHost

    host = EmbeddedHost(settings)
    typer.echo(f"Starting in {settings.data_dir} ...")
    port = await host.start()
    if host.development_key_is_new:
        typer.echo(f"Development key, shown this once: {host.development_key}")
        typer.echo(f"(kept for commands on this machine in {settings.data_dir / 'development-key'})")
    typer.echo(f"Serving on {settings.gateway.host}:{port}. Ctrl-C stops.")
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _stop, stopped)
    await stopped.wait()
    typer.echo("Stopping: running turns get to end. Ctrl-C again leaves at once.")
    await host.stop()
    typer.echo("Stopped.")


def _stop(stopped: asyncio.Event) -> None:
    if stopped.is_set():
        # A second request: the next start recovers what was open.
        os._exit(130)
    stopped.set()


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on uvloop, with gRPC told that the fork of PostgreSQL's start is none of its business."""
    import uvloop

    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    uvloop.run(main)
