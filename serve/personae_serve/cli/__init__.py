"""The `personae` command.

Each module of this package that has a `register(app)` adds its commands, and those
named `policy_…` theirs to the group of `policy`. They import what they need inside
their functions, so that `personae --help` is fast.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def build_app() -> typer.Typer:
    """The whole command line. A PersonaeError, the runtime's or the SDK's, ends it with one line and exit code 1."""
    import typer

    from personae_serve.cli.errors import ErrorsInOneLine

    app = typer.Typer(
        name="personae",
        help="Run AI personas, and talk to them.",
        cls=ErrorsInOneLine,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
    )

    def show_version(wanted: bool) -> None:
        if wanted:
            from importlib.metadata import version

            typer.echo(version("personae"))
            raise typer.Exit

    @app.callback()
    def root(
        version: bool = typer.Option(
            False, "--version", help="Print the version and leave.", callback=show_version, is_eager=True
        ),
    ) -> None:
        pass

    for module in pkgutil.iter_modules(__path__):
        register = getattr(importlib.import_module(f"{__name__}.{module.name}"), "register", None)
        if register is not None:
            register(app)
    return app


def main() -> None:
    """Entry point of the console script."""
    try:
        app = build_app()
    except ModuleNotFoundError as error:
        sys.exit(f"personae: {error.name} is missing; the command line needs: pip install 'personae[embedded]'")
    app()
