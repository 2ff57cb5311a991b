"""The five persona types and what follows from each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PersonaType:
    """Defaults of a type.

    What a person is told at the start of a session is the policy bundle's
    (templates `disclosure` and `disclosure_<type>`); `nature` is what the model
    is told about itself.

    Attributes:
        name: as in policy scopes and the ledger.
        priority: of its generations; lower runs first. A person waits for an
            assistant, a companion or a clone; a curator works for nobody in particular.
        nature: completes "You are {name}, ..." in the prompt; "{name}" is the display name.
    """

    name: str
    priority: int
    nature: str


TYPES = {
    one.name: one
    for one in (
        PersonaType("assistant", 0, "an AI assistant"),
        PersonaType("companion", 0, "an AI companion: kind company, and not a person"),
        PersonaType("clone", 0, "an AI that writes in the style of the real {name}"),
        PersonaType("brand_advocate", 1, "an AI that speaks for a brand and says so"),
        PersonaType("curator", 2, "an AI that picks and sorts what others wrote"),
    )
}


def persona_type(name: str) -> PersonaType:
    """The type of that name; a KeyError is a fault of ours, as names are checked at the API."""
    return TYPES[name]
