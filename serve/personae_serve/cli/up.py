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
    cluster: Annotated[
        bool,
        typer.Option(
            "--cluster",
            help="Deploy the Ray Serve application: to the Ray cluster that cluster.address names, which it outlives"
            " this command on, or to one on this machine until Ctrl-C.",
        ),
    ] = False,
) -> None:
    """Serve the API on this machine until Ctrl-C, or deploy it to a cluster."""
    from personae_runtime.config import load_settings
    from personae_runtime.telemetry.logs import setup_logging

    settings = load_settings(config)
    setup_logging(settings.telemetry)
    if cluster and settings.cluster.address is not None:
        roll_out(settings, config)
    else:
        run(serve_cluster(settings, config) if cluster else serve(settings))


async def serve(settings: Settings) -> None:
    """Start a host, say where it is, and stop it at SIGINT or SIGTERM."""
    from personae_serve.embedded import EmbeddedHost

    host = EmbeddedHost(settings)
    typer.echo(f"Starting in {settings.data_dir} ...")
    port = await host.start()
    if host.development_key_is_new:
        _show_key(host.development_key, settings)
    typer.echo(f"Serving on {settings.gateway.host}:{port}. Ctrl-C stops.")
    await _until_told()
    await host.stop()
    typer.echo("Stopped.")


async def serve_cluster(settings: Settings, config: Path | None) -> None:
    """Start Ray and the application on this machine, say where it is, and stop it at SIGINT or SIGTERM."""
    from personae_serve.local_cluster import LocalCluster

    typer.echo(f"Starting a cluster on this machine, with its state in {settings.data_dir} ...")
    cluster = LocalCluster(settings, config)
    port = await cluster.start()
    if cluster.keys.new:
        _show_key(cluster.keys.development, settings)
    typer.echo(f"Serving on {settings.gateway.host}:{port}; `personae status` shows the deployments. Ctrl-C stops.")
    await _until_told()
    await cluster.stop()
    typer.echo("Stopped.")


def roll_out(settings: Settings, config: Path | None) -> None:
    """Deploy to the Ray cluster that the settings name, or roll what runs there over to this configuration."""
    from personae_serve.ray_environment import use_local_cluster

    use_local_cluster(settings.data_dir)
    from personae_serve.cluster import deploy, start_ray, status

    start_ray(settings)
    typer.echo(f"Deploying {settings.cluster.application!r} to {settings.cluster.address} ...")
    deploy(settings, config, {})
    typer.echo(f"{settings.cluster.application}: {status(settings.cluster.application)['status']}")


def _show_key(key: str, settings: Settings) -> None:
    typer.echo(f"Development key, shown this once: {key}")
    typer.echo(f"(kept for commands on this machine in {settings.data_dir / 'development-key'})")


async def _until_told() -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _stop, stopped)
    await stopped.wait()
    typer.echo("Stopping: running turns get to end. Ctrl-C again leaves at once.")


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
