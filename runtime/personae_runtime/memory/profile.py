"""The profile card: what is known of a person now, short enough to stand in every prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from personae_runtime.memory.facts import KINDS, sentence

MAX_TOKENS: Final = 200
"""Of a card, by the engine that it is made for."""

MIN_CONFIDENCE: Final = 0.5

MAX_LINES: Final = 60
"""Looked at: a line has more than three tokens."""


@dataclass(frozen=True, slots=True)
class KnownFact:
    """A live fact as a card takes it; times as in `FactDetail`, `said_at` when it was last said."""

    memory_id: UUID
    predicate: str
    value: str
    valid_from: datetime | None
    valid_to: datetime | None
    confidence: float
    said_at: datetime


@dataclass(frozen=True, slots=True)
class Card:
    """A card, and the facts that it was made of, in its order; one line each."""

    text: str
    fact_ids: tuple[UUID, ...]
    tokens: int


def render(facts: Sequence[KnownFact], now: datetime, count: Callable[[str], int]) -> Card:
    """The card of facts that hold now, in the order of `KINDS`, of one kind the last said first.

    Args:
        count: tokens of a text; a line that would not fit is left out, and a shorter one after it may.
    """
    shown = [
        fact
        for fact in facts
        if (kind := KINDS.get(fact.predicate)) is not None
        and kind.rank is not None
        and fact.confidence >= MIN_CONFIDENCE
        and (fact.valid_from is None or fact.valid_from <= now)
        and (fact.valid_to is None or fact.valid_to > now)
    ]
    shown.sort(key=lambda fact: (KINDS[fact.predicate].rank, -fact.said_at.timestamp(), fact.memory_id))
    lines: list[str] = []
    fact_ids: list[UUID] = []
    for fact in shown[:MAX_LINES]:
        line = f"- {sentence(fact.predicate, fact.value)}"
        if count("\n".join([*lines, line])) <= MAX_TOKENS:
            lines.append(line)
            fact_ids.append(fact.memory_id)
    text = "\n".join(lines)
    return Card(text, tuple(fact_ids), count(text) if text else 0)


def fit(text: str, count: Callable[[str], int], allows: Callable[[str], bool]) -> str:
    """A stored card for another engine's tokens and for one turn's policy: lines that are not allowed go, then the last
    until it fits."""
    lines = [line for line in text.splitlines() if allows(line)]
    while lines and count("\n".join(lines)) > MAX_TOKENS:
        lines.pop()
    return "\n".join(lines)
