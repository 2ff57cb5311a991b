"""`personae plan`: how much of everything a number of users needs, and a simulation of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from personae_serve.plan import Plan
    from personae_serve.simulate import Report

app = typer.Typer(help="Replicas, GPUs, stores and cost for a number of users.")


def register(root: typer.Typer) -> None:
    """Add `personae plan`."""
    root.add_typer(app, name="plan")


@app.callback(invoke_without_command=True)
def plan(
    ctx: typer.Context,
    users: Annotated[float, typer.Option(help="People who talk on a day; 1e6 is a million.")] = 1e6,
    turns: Annotated[float, typer.Option(help="Turns of each of them a day.")] = 10,
    tokens_in: Annotated[float, typer.Option(help="Prompt of a turn, tokens.")] = 1100,
    tokens_out: Annotated[float, typer.Option(help="Reply of a turn, tokens.")] = 80,
    prefix_hit: Annotated[
        float | None, typer.Option(help="Share of prompt tokens from the prefix cache.", show_default="0.8")
    ] = None,
    peak: Annotated[float, typer.Option(help="Turns a second at the day's peak over the mean.")] = 3.0,
    think: Annotated[float, typer.Option(help="Seconds between a reply and the next message.")] = 30.0,
    speed: Annotated[float, typer.Option(help="Least tokens a second of every reply.")] = 15.0,
    wait: Annotated[float, typer.Option(help="Mean seconds a turn may wait for its replica.")] = 0.25,
    zones: Annotated[int, typer.Option(help="Zones that everything is spread over.")] = 3,
    lost_zones: Annotated[int, typer.Option(help="Zones that may fail at the peak.")] = 1,
    model: Annotated[str, typer.Option(help="Model, see --known.")] = "llama-3.1-8b",
    model_path: Annotated[Path | None, typer.Option(help="A model's folder or GGUF file instead.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Data type of the weights.", show_default="bfloat16")] = None,
    gpu: Annotated[str, typer.Option(help="GPU, see --known.")] = "l40s",
    gpu_price: Annotated[float | None, typer.Option(help="US dollars an hour for one GPU.")] = None,
    gpus_per_replica: Annotated[
        int | None, typer.Option(help="Tensor-parallel size.", show_default="the cheapest of 1, 2, 4, 8")
    ] = None,
    measured: Annotated[Path | None, typer.Option(help="JSON of a cluster benchmark; its figures are used.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Replace a figure: NAME=VALUE, see --known.")] = None,
    known: Annotated[bool, typer.Option("--known", help="Show models, GPUs and figures with their sources.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What a number of users needs: replicas, GPUs, gateways, stores, bandwidth and monthly cost."""
    if ctx.invoked_subcommand is not None:
        return
    import dataclasses
    import json

    from rich.console import Console

    from personae_runtime.errors import InvalidArgument
    from personae_serve import plan as capacity

    console = Console()
    if known:
        for table in _known():
            console.print(table)
        return
    figures = capacity.measured_figures(measured) if measured is not None else {}
    for item in set_ or []:
        name, _, value = item.partition("=")
        try:
            figures[name] = float(value)
        except ValueError:
            raise InvalidArgument(f"--set {item}: give NAME=VALUE with a number, such as step_overhead_ms=2") from None
    measured_hit = figures.pop("prefix_hit", None)
    if prefix_hit is None:
        prefix_hit = 0.8 if measured_hit is None else measured_hit
    workload = capacity.Workload(
        daily_users=users,
        turns_per_user=turns,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        prefix_hit=prefix_hit,
        peak_factor=peak,
        think_s=think,
        stream_tokens_per_s=speed,
        wait_s=wait,
        zones=zones,
        lost_zones=lost_zones,
    )
    sizes: Any = model if model_path is None else capacity.model_from(model_path)
    if dtype is not None:
        sizes = dataclasses.replace(capacity.known("model", sizes, capacity.MODELS), dtype=dtype)
    sheet: Any = gpu
    if gpu_price is not None:
        sheet = dataclasses.replace(capacity.known("GPU", gpu, capacity.GPUS), usd_per_h=gpu_price)
    made = capacity.plan(workload, model=sizes, gpu=sheet, gpus_per_replica=gpus_per_replica, figures=figures)
    made = dataclasses.replace(made, model_name=str(model_path or model), gpu_name=gpu)
    if json_:
        typer.echo(json.dumps(made.as_dict()))
        return
    console.print(_table(made))


@app.command()
def simulate(
    sessions: Annotated[int, typer.Option(help="Conversations in the simulated day.")] = 20_000,
    replicas: Annotated[int, typer.Option(help="Most model replicas.")] = 100,
    day: Annotated[float, typer.Option(help="Simulated seconds of a day; shorter is busier.")] = 3600,
    personas: Annotated[int, typer.Option(help="Personas, of unequal popularity.")] = 500,
    lose: Annotated[float, typer.Option(help="Share of replicas lost at once, soon after the peak.")] = 0.1,
    random_routing: Annotated[bool, typer.Option("--random-routing", help="Without affinity, to compare.")] = False,
    seed: Annotated[int, typer.Option(help="Of all random numbers.")] = 1,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run the affinity ring and the scaling policy of the cluster through a simulated day."""
    import json
    import sys

    from rich.console import Console

    from personae_serve import simulate as simulation

    scenario = simulation.Scenario(
        sessions=sessions,
        max_replicas=replicas,
        day_s=day,
        personas=personas,
        lost_share=lose,
        affinity=not random_routing,
        seed=seed,
    )
    console = Console(stderr=True)
    with console.status("simulating") if sys.stderr.isatty() else _Nothing() as status:

        def progress(report: simulation.Progress) -> None:
            words = (
                f"{report.share:4.0%} of the day, {report.turns:,} turns, "
                f"{report.running} replicas, {report.elapsed_s:.0f} s"
            )
            if isinstance(status, _Nothing):
                typer.echo(words, err=True)
            else:
                status.update(words)

        report = simulation.simulate(scenario, on_progress=progress)
    if json_:
        typer.echo(json.dumps(report.as_dict()))
    else:
        Console().print(_report(report))


class _Nothing:
    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *error: object) -> None:
        return None


def _table(made: Plan) -> Table:
    from rich.table import Table

    demand, models, cost, workload = made.demand, made.models, made.cost, made.workload
    title = f"{workload.daily_users:,.0f} daily users, {made.model_name} on {made.gpu_name}"
    table = Table(title=title, box=None, pad_edge=False, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim", overflow="fold")

    def section(name: str) -> None:
        table.add_row("")
        table.add_row(f"[underline]{name}")

    section("At the peak")
    table.add_row("turns/s", f"{demand.turns_per_s:,.0f}", f"mean of the day {demand.turns_per_s_mean:,.0f}")
    table.add_row("turns running", f"{demand.running_turns:,.0f}", f"{demand.turn_s:.1f} s each")
    table.add_row("conversations open", f"{demand.open_conversations:,.0f}", f"think time {workload.think_s:g} s")
    table.add_row("bandwidth", f"{made.egress_gbit_s:,.3f} Gbit/s", "to the clients")
    section("Model")
    table.add_row("replicas", f"{models.replicas:,}", f"{models.gpus_per_replica} GPUs each, in {workload.zones} zones")
    table.add_row("GPUs", f"{models.gpus:,}", f"weights {models.weight_gb:.1f} GB, KV cache {models.kv_gb:.1f} GB each")
    table.add_row("batch", f"{models.batch:,} turns", f"bound by {models.bound_by}; {models.step_ms:.0f} ms a token")
    table.add_row("throughput", f"{models.tokens_per_s:,.0f} tokens/s", "of a full replica")
    table.add_row("utilisation", f"{models.utilisation:.0%}", f"allowed {models.allowed_utilisation:.0%}")
    table.add_row(
        "mean wait", f"{models.wait_ms:.1f} ms", f"at the fullest, {workload.lost_zones} of {workload.zones} zones lost"
    )
    section("Gateways, memory, ledger")
    gateways, memory, ledger = made.gateways, made.memory, made.ledger
    table.add_row(
        "gateways", f"{gateways.replicas:,} cores", f"bound by {gateways.bound_by}; {gateways.memory_gib:.2f} GiB each"
    )
    table.add_row(
        "Qdrant nodes",
        f"{memory.nodes:,}",
        f"{memory.shards:,} shards, bound by {memory.bound_by}; {memory.points:.2g} points, "
        f"{memory.memory_gib:,.0f} GiB hot, {memory.disk_tb:,.1f} TB, one copy",
    )
    table.add_row(
        "PostgreSQL partitions",
        f"{ledger.partitions:,}",
        f"bound by {ledger.bound_by}; {ledger.rows_per_s:,.0f} rows/s, {ledger.transactions_per_s:,.0f} "
        f"transactions/s, WAL {ledger.wal_mb_per_s:,.1f} MB/s, {ledger.storage_tb:,.1f} TB; {ledger.nodes:,} nodes",
    )
    section("USD a month")
    table.add_row("GPUs", f"{cost.gpus:,.0f}", f"{cost.gpus_following_load:,.0f} if replicas follow the load")
    rest = (("gateways", cost.gateways), ("memory", cost.memory), ("ledger", cost.ledger), ("egress", cost.egress))
    for name, amount in rest:
        table.add_row(name, f"{amount:,.0f}")
    table.add_row("total", f"{cost.total:,.0f}", f"{cost.total_following_load:,.0f} if replicas follow the load")
    table.add_row("per 1,000 turns", f"{cost.per_1000_turns:,.2f}", "following the load")
    return table


def _known() -> list[Table]:
    from rich.table import Table

    from personae_serve.plan import FIGURES, GPUS, MODELS

    def table(title: str, *columns: str) -> Table:
        return Table(*columns, title=title, box=None, pad_edge=False, title_justify="left")

    models = table("Models", "name", "parameters", "layers", "KV heads", "head size")
    for name, model in MODELS.items():
        sizes = (model.layers, model.kv_heads, model.head_dim)
        models.add_row(name, f"{model.parameters / 1e9:g} billion", *(str(size) for size in sizes))
    gpus = table("GPUs", "name", "GB", "GB/s", "TFLOPS", "USD/h", "source")
    for name, gpu in GPUS.items():
        numbers = (gpu.memory_gb, gpu.bandwidth_gb_s, gpu.tflops, gpu.usd_per_h)
        gpus.add_row(name, *(f"{number:g}" for number in numbers), gpu.source)
    figures = table("Figures, for --set", "name", "value", "unit", "source")
    for name, figure in FIGURES.items():
        figures.add_row(name, f"{figure.value:g}", figure.unit, figure.source)
    return [models, gpus, figures]


def _report(report: Report) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in report.as_dict().items():
        shown = f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        table.add_row(name.replace("_", " "), shown)
    return table
