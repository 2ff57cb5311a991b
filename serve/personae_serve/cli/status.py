"""`personae status`: what runs on the cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def register(root: typer.Typer) -> None:
    """Add `personae status`."""
    root.command("status")(status)


def status(
    config: Annotated[Path | None, typer.Option(help="TOML file.", envvar="PERSONAE_CONFIG", dir_okay=False)] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster; the default is cluster.address, or the one on this machine.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Show the application's deployments and replicas; exit with 1 unless it runs."""
    from rich.console import Console
    from rich.table import Table

    from personae_runtime.config import load_settings
    from personae_serve.ray_environment import address_file, use_local_cluster

    settings = load_settings(config)
    use_local_cluster(settings.data_dir)
    from personae_serve import cluster

    local = address_file(settings.data_dir)
    chosen = address or settings.cluster.address or (local.read_text() if local.exists() else "auto")
    section = settings.cluster.model_copy(update={"address": chosen})
    cluster.start_ray(settings.model_copy(update={"cluster": section}))
    found = cluster.status(settings.cluster.application)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        console = Console()
        console.print(f"{settings.cluster.application}: {found['status']} {found['message']}".rstrip())
        table = Table("deployment", "status", "replicas", "message", box=None, pad_edge=False)
        for name, deployment in found["deployments"].items():
            replicas = ", ".join(f"{count} {state}" for state, count in deployment["replicas"].items())
            table.add_row(name, deployment["status"], replicas or "none", deployment["message"])
        console.print(table)
    if found["status"] != "RUNNING":
        raise typer.Exit(1)
