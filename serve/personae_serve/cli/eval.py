"""`personae eval`: measure what a host does, on data of your own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from personae_serve.cli.connection import DEFAULT_TENANT, Connection, Tenant, connected
from personae_serve.cli.models import ModelsDir

if TYPE_CHECKING:
    from collections.abc import Sequence

    from personae_runtime.config import Settings
    from personae_runtime.evals.bias import Pairs
    from personae_runtime.evals.memory import Conversation, Report

app = typer.Typer(help="Measure what a host does, on data of your own.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add `personae eval`."""
    root.add_typer(app, name="eval")


@app.callback()
def _group() -> None:
    pass


@app.command()
def memory(
    path: Annotated[Path, typer.Option(help="The conversations with their questions.")],
    dataset: Annotated[Literal["locomo"], typer.Option(help="Format of the file.")] = "locomo",
    json: Annotated[bool, typer.Option("--json", help="Only one JSON object, as the last line.")] = False,
    lexical: Annotated[bool, typer.Option("--lexical", help="Without the dense arm.")] = False,
    models_dir: ModelsDir = None,
) -> None:
    """How well recall finds the turns that answer a question, beside plain BM25. No language model takes part.

    Shares are percent. Needs no host, and leaves nothing behind.
    """
    import asyncio
    import dataclasses
    from json import dumps

    from personae_runtime.config import load_settings
    from personae_runtime.evals.memory import load_locomo

    conversations = load_locomo(path)
    folder = models_dir.expanduser() if models_dir is not None else load_settings().models_dir
    report = asyncio.run(_measure(conversations, None if lexical else folder))
    if json:
        typer.echo(dumps(dataclasses.asdict(report)))
    else:
        _show(report)


@app.command()
def policy(
    dataset: Annotated[
        Literal["openai-moderation", "xstest", "pii", "injection"], typer.Option(help="Format of the file.")
    ],
    path: Annotated[Path, typer.Option(help="The labelled texts, JSON Lines.")],
    scorers: Annotated[
        str, typer.Option(help="Scorers, by commas, as in `policy.scorers`; `configured` for those of the host.")
    ] = "ngram,injection,cascade",
    models_dir: ModelsDir = None,
    json: Annotated[bool, typer.Option("--json", help="Only one JSON object, as the last line.")] = False,
) -> None:
    """How well the policy tells harm from harmless, finds personal data, or tells injections, with 95 % intervals.

    Shares are fractions. Judges by the configured bundle as a host does at input, for a person of unknown age. Rows
    that the shipped heads were trained on are judged by heads that were not. Needs no host.
    """
    import asyncio
    from json import dumps

    from personae_runtime.config import load_settings
    from personae_runtime.evals import injection, pii
    from personae_runtime.evals import policy as evals
    from personae_runtime.policy.policy import Policy
    from personae_runtime.policy.signing import Trust
    from personae_serve.stores import make_embedder, make_guard_model, started

    settings = load_settings()
    if models_dir is not None:
        settings = settings.model_copy(update={"models_dir": models_dir.expanduser()})
    names = settings.policy.scorers if scorers == "configured" else tuple(filter(None, scorers.split(",")))

    async def run() -> dict[str, Any]:
        embedder = make_embedder(settings.models_dir) if "cascade" in names else None
        remembering = evals.RememberingEmbedder(embedder) if embedder is not None else None
        # No deadline as tight as a turn's: a slow machine makes no other figures.
        guard = make_guard_model(settings, 60_000) if "guard_model" in names else None
        loaded = Policy.load(
            settings.policy.bundle, names, 60_000, remembering, Trust.of(settings), settings.policy.languages, guard
        )
        async with started(embedder, guard):
            if dataset == "pii":
                return pii.evaluate(path, loaded)
            if dataset == "injection":
                return await injection.evaluate(path, loaded)
            return await evals.evaluate(dataset, path, loaded)

    report = asyncio.run(run())
    if json:
        typer.echo(dumps(report))
    else:
        _show_figures(report)


@app.command()
@connected
def bias(
    pairs: Annotated[Path | None, typer.Option(help="Pairs, YAML. [default: those that ship]", dir_okay=False)] = None,
    stage: Annotated[Literal["input", "output"], typer.Option(help="Where the gate stands.")] = "input",
    age_band: Annotated[Literal["unknown", "teen", "adult"], typer.Option(help="Of the person spoken to.")] = "unknown",
    scorers: Annotated[
        str, typer.Option(help="Scorers, by commas, as in `policy.scorers`; without --target.")
    ] = "configured",
    models_dir: ModelsDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Only one JSON object, as the last line.")] = False,
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """Whether the gate refuses or scores people differently for who they are or how they speak.

    Differences from a reference group, with 95 % intervals over pairs, and p-values adjusted for being many. Judges
    here, by the configured bundle; with --target by that host, over gRPC.
    """
    import asyncio
    from json import dumps

    from personae_runtime.config import load_settings
    from personae_runtime.evals import bias as evals

    chosen = evals.read(pairs or evals.SHIPPED)
    if connection.target is not None:
        report = asyncio.run(_bias_over_grpc(chosen, stage, age_band, connection, tenant))
    else:
        settings = load_settings()
        if models_dir is not None:
            settings = settings.model_copy(update={"models_dir": models_dir.expanduser()})
        names = settings.policy.scorers if scorers == "configured" else tuple(filter(None, scorers.split(",")))
        report = asyncio.run(_bias_here(chosen, stage, age_band, settings, names))
    report |= {"stage": stage, "age_band": age_band}
    if not as_json:
        _show_bias(report)
    typer.echo(dumps(report, ensure_ascii=False))


async def _bias_here(
    pairs: Pairs, stage: str, age_band: str, settings: Settings, names: Sequence[str]
) -> dict[str, Any]:
    from personae_runtime.evals.bias import Judged, evaluate, gravest
    from personae_runtime.evals.operating_point import operating_point
    from personae_runtime.policy.decision import AgeBand, PolicyContext, Stage
    from personae_runtime.policy.policy import Policy
    from personae_serve.stores import make_embedder, make_guard_model, started

    embedder = make_embedder(settings.models_dir) if "cascade" in names else None
    guard = make_guard_model(settings, 60_000) if "guard_model" in names else None
    loaded = Policy.load(
        settings.policy.bundle, names, 60_000, embedder, languages=settings.policy.languages, guard_model=guard
    )
    context = PolicyContext("assistant", AgeBand(age_band))

    async def judge(text: str) -> Judged:
        decision = await loaded.decide(Stage(stage), text, context)
        return Judged(decision.action.stops, gravest(decision.scores))

    async with started(embedder, guard):
        report = await evaluate(pairs, judge)
    return report | {"scorers": list(names), "operating_point": operating_point(loaded)}


async def _bias_over_grpc(
    pairs: Pairs, stage: str, age_band: str, connection: Connection, tenant: str
) -> dict[str, Any]:
    from personae.v1.event_pb2 import POLICY_ACTION_BLOCK, POLICY_ACTION_ESCALATE, PolicyStage
    from personae.v1.persona_service_pb2 import PERSONA_TYPE_ASSISTANT
    from personae.v1.policy_service_pb2 import AgeBand
    from personae_runtime.evals.bias import Judged, evaluate, gravest

    where: PolicyStage = getattr(PolicyStage, "Value")(f"POLICY_STAGE_{stage.upper()}")  # noqa: B009 - plain int
    told = "UNSPECIFIED" if age_band == "unknown" else age_band.upper()
    age: AgeBand = getattr(AgeBand, "Value")(f"AGE_BAND_{told}")  # noqa: B009 - typed as a plain int
    versions: set[str] = set()
    async with connection.open() as client:

        async def judge(text: str) -> Judged:
            answer = await client.policy.classify(
                f"tenants/{tenant}", text, where, persona_type=PERSONA_TYPE_ASSISTANT, age_band=age
            )
            versions.add(answer.bundle_version)
            stopped = answer.action in (POLICY_ACTION_BLOCK, POLICY_ACTION_ESCALATE)
            return Judged(stopped, gravest(answer.scores))

        report = await evaluate(pairs, judge)
    return report | {"bundle_versions": sorted(versions)}


async def _measure(conversations: list[Conversation], models: Path | None) -> Report:
    import tempfile
    from contextlib import AsyncExitStack

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from personae_runtime.evals.memory import measure
    from personae_serve.stores import make_embedder

    tasks: dict[str, TaskID] = {}
    async with AsyncExitStack() as stack:
        embedder = None
        if models is not None:
            embedder = make_embedder(models)
            await embedder.start()
            stack.push_async_callback(embedder.close)
        index = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="personae-eval-")))
        columns = (TextColumn("{task.description:9}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        bars = stack.enter_context(Progress(*columns, console=Console(stderr=True)))

        def on_progress(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total)
            bars.update(tasks[step], completed=done, total=total)

        return await measure(conversations, index, embedder, on_progress=on_progress)


def _show(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    from personae_runtime.evals.memory import ANSWERABLE, DEPTHS

    table = Table(title=f"Evidence recall, percent: {report.questions} questions, {report.turns} turns")
    table.add_column("")
    for depth in DEPTHS:
        table.add_column(f"@{depth}", justify="right")
    rows = {
        "recall": report.recall,
        "  spread over conversations": report.recall_spread,
        "plain BM25": report.bm25,
        **{
            f"category {number} {ANSWERABLE[int(number)]}": shares
            for number, shares in report.recall_by_category.items()
        },
        **{f"hit, category {number}": shares for number, shares in report.hit_by_category.items()},
    }
    for name, shares in rows.items():
        if shares is not None:
            table.add_row(name, *(f"{shares[str(depth)]:.1f}" for depth in DEPTHS))
    console = Console()
    console.print(table)
    for name, share in (
        ("abstains where one speaker is asked for another's words (category 5)", report.abstain_adversarial),
        ("abstains on another conversation's questions", report.abstain_other),
        ("  without the speakers' names in them", report.abstain_other_unnamed),
        ("abstains wrongly (categories 1 to 4)", report.false_abstain),
        ("  without the speakers' names in them", report.false_abstain_unnamed),
    ):
        console.print(f"{name}: {'no such question' if share is None else f'{share:.1f} %'}")
    console.print(
        f"a recall takes {report.read_ms_p50:.1f} ms (median), {report.read_ms_p95:.1f} ms (95th percentile),"
        " one at a time, without what a host's ledger, decryption and facts add"
    )


def _show_figures(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{report['dataset']}: {report['rows']} rows, {report.get('out_of_fold', 0)} out of fold")
    for name in ("", "figure", "95 % interval"):
        table.add_column(name, justify="right" if name else "left")
    for name, (low, high) in ((n.removesuffix("_ci"), v) for n, v in report.items() if n.endswith("_ci")):
        table.add_row(name, f"{report[name]:.3f}", f"{low:.3f} to {high:.3f}")
    console = Console()
    console.print(table)
    if kinds := report.get("by_kind"):
        failures = Table(title="Judged wrongly at the operating point, for an unknown age")
        for name in ("kind", "harmful", "wrong", "of rows"):
            failures.add_column(name, justify="left" if name in ("kind", "harmful") else "right")
        for row in kinds:
            failures.add_row(row["kind"], "yes" if row["harmful"] else "no", str(row["wrong"]), str(row["rows"]))
        console.print(failures)
    console.print(f"bundle {report['operating_point']['bundle_digest']}")


def _show_bias(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{report['texts']} texts, {report['refused']:.2%} refused; differences from the reference")
    for name in ("axis", "group", "pairs", "refused", "difference", "p (Holm)", "score", "difference", "p (Holm)"):
        table.add_column(name, justify="left" if name in ("axis", "group") else "right")
    for row in report["comparisons"]:
        cells = [row["axis"], f"{row['group']} vs {row['reference']}", str(row["pairs"])]
        for figure in ("refused", "score"):
            low, high = row[f"{figure}_ci"]
            cells += [
                f"{row[figure]:.3f}",
                f"{row[f'{figure}_difference']:+.3f} [{low:+.3f}, {high:+.3f}]",
                f"{row[f'{figure}_p_holm']:.3f}{' *' if row[f'{figure}_differs'] else ''}",
            ]
        table.add_row(*cells)
    console = Console()
    console.print(table)
    console.print(
        f"of {report['tests']} comparisons {report['refused_differ']} differ in refusals and"
        f" {report['scores_differ']} in scores, at a family-wise error rate of 5 %",
        markup=False,
    )
