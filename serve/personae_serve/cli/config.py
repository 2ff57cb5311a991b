"""`personae config`: what is configured, and whether it can be used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML file.", envvar="PERSONAE_CONFIG", show_envvar=True)
]

app = typer.Typer(help="Show and check the configuration.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add `personae config`."""
    root.add_typer(app, name="config")


@app.command()
def show(
    config: ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Print every setting in force and where it comes from. Secrets are masked."""
    import json

    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    from personae_runtime.config import effective_settings

    settings = effective_settings(config)
    if as_json:
        shown = {s.row.key: {"value": s.value, "source": s.source, "env": s.row.env} for s in settings}
        typer.echo(json.dumps(shown, indent=2))
        return
    table = Table("setting", Column("value", overflow="fold"), "from", box=None, pad_edge=False)
    for setting in settings:
        chosen = setting.source != "default"
        table.add_row(
            Text(setting.row.key, style="bold" if chosen else ""),
            Text(setting.value, style="bold" if chosen else "dim"),
            Text(setting.source, style="" if chosen else "dim"),
        )
    Console().print(table)


@app.command()
def check(config: ConfigFile = None) -> None:
    """Say whether the configuration can be used; exit with 1 and every problem if not."""
    from personae_runtime.config import load_settings

    settings = load_settings(config)
    if settings.gateway.tls.certificate is not None:
        from personae_serve.gateway.tls import read_certificate_files

        files = read_certificate_files(settings.gateway.tls)
        typer.echo(f"The certificate holds until {files.expires_at:%Y-%m-%d %H:%M} UTC.")
    typer.echo(f"The configuration can be used (profile {settings.profile}).")


@app.command(hidden=True)
def docs() -> None:
    """Print docs/configuration.md."""
    from personae_runtime.config import configuration_markdown

    typer.echo(configuration_markdown(), nl=False)
