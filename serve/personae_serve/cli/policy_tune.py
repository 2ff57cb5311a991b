"""`personae policy tune`: thresholds for rules, from labelled texts of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from personae_serve.cli.models import ModelsDir
from personae_serve.cli.policy import app

if TYPE_CHECKING:
    from personae_runtime.policy.policy import Policy


@app.command()
def tune(
    path: Annotated[Path, typer.Option(help="Labelled texts, JSON Lines: prompt, labels, age_band.")],
    stage: Annotated[
        Literal["input", "output"], typer.Option(help="Where the rules shall stand: a person's words, or a persona's.")
    ] = "input",
    fpr: Annotated[float, typer.Option(help="Share of harmless texts to stop for teens and unknown age.")] = 0.02,
    adult_fpr: Annotated[float | None, typer.Option(help="The same for adults; as --fpr if not given.")] = None,
    scorers: Annotated[
        str, typer.Option(help="Scorers, by commas, as in `policy.scorers`; `configured` for those of the host.")
    ] = "configured",
    version: Annotated[str, typer.Option(help="Of the bundle that is printed.")] = "tuned",
    models_dir: ModelsDir = None,
    json: Annotated[bool, typer.Option("--json", help="Only one JSON object, as the last line.")] = False,
) -> None:
    """Calibrate the scorers and set thresholds at a fixed rate of false positives, with 95 % intervals.

    Prints the figures to standard error and a bundle with a rule for each category and age band to standard output.
    Needs no host.
    """
    import asyncio
    from json import dumps

    from personae_runtime.config import load_settings
    from personae_runtime.evals import tune as tuning
    from personae_runtime.evals.policy import RememberingEmbedder
    from personae_runtime.policy.decision import Stage
    from personae_runtime.policy.policy import Policy
    from personae_serve.stores import make_embedder, make_guard_model, started

    settings = load_settings()
    if models_dir is not None:
        settings = settings.model_copy(update={"models_dir": models_dir.expanduser()})
    names = settings.policy.scorers if scorers == "configured" else tuple(filter(None, scorers.split(",")))
    rates = {"teen": fpr, "adult": fpr if adult_fpr is None else adult_fpr}

    async def run() -> tuple[dict[str, Any], Policy]:
        embedder = make_embedder(settings.models_dir) if "cascade" in names else None
        remembering = RememberingEmbedder(embedder) if embedder is not None else None
        # No deadline as tight as a turn's: a slow machine makes no other figures.
        guard = make_guard_model(settings, 60_000) if "guard_model" in names else None
        policy = Policy.load(
            settings.policy.bundle, names, 60_000, remembering, languages=settings.policy.languages, guard_model=guard
        )
        async with started(embedder, guard):
            return await tuning.tune(path, policy, Stage(stage), rates), policy

    report, policy = asyncio.run(run())
    bundle = tuning.bundle_yaml(report, policy, version)
    if json:
        typer.echo(dumps({**report, "bundle": bundle}))
        return
    _show(report)
    typer.echo(bundle, nl=False)


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{report['rows']} rows, {report['out_of_fold']} out of fold, stage {report['stage']}")
    for name in ("category", "age", "threshold", "false positives", "recall", "chance of harm there", "+", "-"):
        table.add_column(name)
    for category, bands in report["categories"].items():
        for band, figures in bands.items():
            shown = (
                f"{figures[name]:.3f} [{figures[f'{name}_ci'][0]:.3f}, {figures[f'{name}_ci'][1]:.3f}]"
                for name in ("threshold", "false_positives", "recall")
            )
            chance = f"{figures['chance_at_threshold']:.2f}"
            table.add_row(category, band, *shown, chance, str(figures["positives"]), str(figures["negatives"]))
    console = Console(stderr=True)
    console.print(table)
    for one in report["left_out"]:
        console.print(f"left out: {one['category']}, {one['age_band']}: {one['why']}")
