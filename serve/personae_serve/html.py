"""Pages for people: reports as HTML without scripts, in one file each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_TEMPLATES = Path(__file__).parent / "templates"


def percent(share: float | None) -> str:
    """0.0153 → "1.5 %"; a dash for None."""
    return "–" if share is None else f"{share:.1%}".replace("%", " %")


def page(template: str, **values: Any) -> str:
    """A template of `templates/`, everything in it escaped."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["percent"] = percent
    return environment.get_template(template).render(**values)
