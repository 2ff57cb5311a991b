"""`personae config`: what is configured, and whether it can be used."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from personae_serve.deployments.fit import ModelFit, Report

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
def check(
    config: ConfigFile = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Also hold `[cluster]` against hardware and say what does not fit.")
    ] = False,
    nodes: Annotated[int | None, typer.Option(min=1, help="Machines of the cluster, all alike.")] = None,
    cpus: Annotated[float | None, typer.Option(min=0, help="Processors of each machine.")] = None,
    memory: Annotated[float | None, typer.Option(min=0, help="Memory of each machine, GiB.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs of each machine.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Kind of GPU, such as h100.")] = None,
    gpu_memory: Annotated[float | None, typer.Option(min=0, help="Memory of each GPU, GiB, instead.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Say whether the configuration can be used; exit with 1 and every problem if not.

    With --cluster, nothing is started: the models' files are read for their sizes and held against hardware, which is
    as declared by the options, else that of the Ray cluster at `cluster.address`, else this machine.
    """
    from personae_runtime.config import load_settings

    settings = load_settings(config)
    if not cluster:
        if settings.gateway.tls.certificate is not None:
            from personae_serve.gateway.tls import read_certificate_files

            files = read_certificate_files(settings.gateway.tls)
            typer.echo(f"The certificate holds until {files.expires_at:%Y-%m-%d %H:%M} UTC.")
        typer.echo(f"The configuration can be used (profile {settings.profile}).")
        return
    import asyncio

    from personae_serve.deployments import fit, inventory

    hardware = inventory.find_hardware(
        inventory.Declared(nodes, cpus, memory, gpus, gpu, gpu_memory), settings.cluster.address
    )
    shapes, adapters, unreadable = inventory.read_models(settings)
    postgres, unreachable = asyncio.run(inventory.read_postgres(settings))
    report = fit.check(
        settings,
        hardware,
        shapes=shapes,
        adapters=adapters,
        postgres=postgres,
        unreadable=[*unreadable, *unreachable, *inventory.read_certificate(settings)],
    )
    if as_json:
        import json

        typer.echo(json.dumps(fit.as_json(report), indent=2))
    else:
        _print_report(report)
    if report.errors:
        raise typer.Exit(1)


def _print_report(report: Report) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    hardware = report.hardware
    kinds = ", ".join(
        f"{count} × {node.cpus:g} processors"
        + ("" if node.memory_gib is None else f", {node.memory_gib:.0f} GiB")
        + (f", {node.gpus} GPUs of {node.gpu_memory_gib or '?'} GiB" if node.gpus else "")
        for node, count in Counter(hardware.nodes).items()
    )
    console.print(f"Hardware ({escape(hardware.source)}): {kinds or 'none'}")
    for model in report.models:
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for name, value in _figures(model):
            table.add_row(f"  {name}", value)
        console.print(f"\n[bold]{escape(model.model)}[/] ({model.engine})")
        console.print(table)
    console.print(
        f"\nAt max_replicas: {report.cpus_needed:g} of {hardware.cpus:g} processors, {report.gpus_needed:g} of "
        f"{hardware.gpus} GPUs, {report.connections_needed} PostgreSQL connections"
        + ("." if report.connections_allowed is None else f" of {report.connections_allowed}.")
    )
    for finding in report.findings:
        word = "[red]does not fit[/]" if finding.severity == "error" else "[yellow]warning[/]"
        console.print(f"\n{word}  [bold]{escape(finding.subject)}[/]: {escape(finding.problem)}", soft_wrap=True)
        console.print(f"  change: {escape(finding.change)}", soft_wrap=True)
    if not report.errors:
        console.print("\nIt fits.")


def _figures(model: ModelFit) -> list[tuple[str, str]]:
    gib = 1 << 30
    budget = "" if model.budget_bytes is None else f" of {model.budget_bytes / gib:.2f} GiB"
    fitting = "unknown" if model.sessions_that_fit is None else f"{model.sessions_that_fit:,}"
    return [
        ("parameters", f"{model.parameters / 1e9:.2f} billion ({'counted' if model.counted else 'estimated'})"),
        ("workers", f"{model.workers} × {model.device} in a replica, at most {model.replicas} replicas"),
        ("of each worker:", ""),
        ("  weights", f"{model.weight_bytes / gib:.2f} GiB"),
        ("  KV", f"{model.kv_bytes / gib:.2f} GiB, {model.kv_bytes_per_token / 1024:.1f} KiB a token"),
        ("  activations", f"{model.activation_bytes / gib:.2f} GiB (estimated)"),
        ("  runtime, adapters", f"{model.other_bytes / gib:.2f} GiB (estimated)"),
        ("  together", f"{model.needed_bytes / gib:.2f} GiB{budget}"),
        ("sessions", f"{model.sessions:,} of {model.context_tokens:,} tokens in a rank; {fitting} fit"),
    ]


@app.command(hidden=True)
def docs() -> None:
    """Print docs/configuration.md."""
    from personae_runtime.config import configuration_markdown

    typer.echo(configuration_markdown(), nl=False)
