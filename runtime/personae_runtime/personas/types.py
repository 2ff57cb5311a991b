"""The five persona types and what follows from each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PersonaType:
    """Defaults of a type.

    Attributes:
        name: as in policy scopes and the ledger.
        priority: of its generations; lower runs first.
    """

    name: str
    priority: int


TYPES = {
    one.name: one
    for one in (
        PersonaType("assistant", 0),
        PersonaType("companion", 0),
        PersonaType("clone", 0),
        PersonaType("brand_advocate", 1),
        PersonaType("curator", 2),
    )
}


def persona_type(name: str) -> PersonaType:
    """The type of that name; a KeyError is a fault of ours, as names are checked at the API."""
    return TYPES[name]
