"""A revision as the shared prefix of its prompts: the same bytes for every user."""

from __future__ import annotations

from personae_runtime.personas.definition import PersonaDefinition


def compile_prefix(definition: PersonaDefinition, *, persona_type: str, display_name: str) -> str:
    """Platform rules, then who the persona is and how it writes."""
    return f"You are {display_name}, an AI persona. Never claim to be human.\n\n{definition.card}"
