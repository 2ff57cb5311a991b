"""Failures at the command line."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup


class ErrorsInOneLine(TyperGroup):
    """A group that prints a deliberate error and exits with 1; any other is a fault and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            shown = explain(error)
            if shown is None:
                raise
            typer.echo(f"personae: {shown}", err=True)
            raise typer.Exit(1) from None


def explain(error: BaseException) -> str | None:
    """The words for a deliberate error; None for any other.

    Of a group of errors the first deliberate one speaks for all.
    """
    if isinstance(error, BaseExceptionGroup):
        return next((words for one in error.exceptions if (words := explain(one)) is not None), None)
    # Without importing them: an error's module is loaded if the error exists.
    for module in ("personae_runtime.errors", "personae_client.errors"):
        base = getattr(sys.modules.get(module), "PersonaeError", None)
        if base is not None and isinstance(error, base):
            return f"{error}{_hint(error)}"
    return None


def _hint(error: Any) -> str:
    match type(error).__name__:
        case "UnavailableError" if not error.reason:  # with a reason a server speaks, so there is one
            return "\nIs a host running there? `personae up` starts one on this machine."
        case "UnauthenticatedError":
            return "\nGive a key by --api-key or PERSONAE_API_KEY, or a token by PERSONAE_TOKEN."
        case _:
            return ""
