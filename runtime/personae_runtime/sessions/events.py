"""Session events: what a turn tells, as it is recorded and as every view sees it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, TypeAlias

import orjson

from personae_runtime.provenance.label import NO_ORIGIN, Origin


@dataclass(frozen=True, slots=True)
class TurnStarted:
    kind: ClassVar[str] = "turn_started"
    disclosure: str
    revision: int


@dataclass(frozen=True, slots=True)
class Waiting:
    kind: ClassVar[str] = "waiting"
    reason: str


@dataclass(frozen=True, slots=True)
class TextDelta:
    """`template` is of words that policy says in the persona's place."""

    kind: ClassVar[str] = "text_delta"
    text: str
    template: bool = False


@dataclass(frozen=True, slots=True)
class MemoryCitation:
    """Holds the id only: the words are read from the ledger by whoever shows it."""

    kind: ClassVar[str] = "memory_citation"
    memory_id: str
    score: float


@dataclass(frozen=True, slots=True)
class PassageCitation:
    """Holds ids only, as MemoryCitation."""

    kind: ClassVar[str] = "passage_citation"
    passage_id: str
    score: float


@dataclass(frozen=True, slots=True)
class PolicyEvent:
    kind: ClassVar[str] = "policy_event"
    action: str
    category: str
    reason_code: str
    stage: str
    decision: str


@dataclass(frozen=True, slots=True)
class Notice:
    kind: ClassVar[str] = "notice"
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Usage:
    kind: ClassVar[str] = "usage"
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds since admission."""

    kind: ClassVar[str] = "latency"
    queue_s: float
    ttft_s: float
    first_release_s: float


@dataclass(frozen=True, slots=True)
class TurnInterrupted:
    kind: ClassVar[str] = "turn_interrupted"
    delivered_chars: int
    reason: str


@dataclass(frozen=True, slots=True)
class TurnCompleted:
    kind: ClassVar[str] = "turn_completed"
    finish_reason: str


@dataclass(frozen=True, slots=True)
class GoAway:
    """Not recorded: it is about the stream, not the session."""

    kind: ClassVar[str] = "go_away"
    time_left_s: float


@dataclass(frozen=True, slots=True)
class Gap:
    """Stands for events whose text was erased."""

    kind: ClassVar[str] = "gap"
    first_event_id: int
    last_event_id: int


Body: TypeAlias = (
    TurnStarted
    | Waiting
    | TextDelta
    | MemoryCitation
    | PassageCitation
    | PolicyEvent
    | Notice
    | Usage
    | Latency
    | TurnInterrupted
    | TurnCompleted
    | GoAway
    | Gap
)

_BY_KIND: dict[str, type[Any]] = {
    body.kind: body
    for body in (
        TurnStarted,
        Waiting,
        TextDelta,
        MemoryCitation,
        PassageCitation,
        PolicyEvent,
        Notice,
        Usage,
        Latency,
        TurnInterrupted,
        TurnCompleted,
        Gap,
    )
}

TERMINAL = (TurnInterrupted, TurnCompleted)
"""A turn has exactly one of these, and it is its last event."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event in its envelope; `turn_id` is empty for events of the session itself, and so is its `origin`."""

    event_id: int
    turn_id: str
    time: datetime
    body: Body
    origin: Origin = NO_ORIGIN

    @property
    def terminal(self) -> bool:
        """True for the last event of a turn."""
        return isinstance(self.body, TERMINAL)


def encode(body: Body) -> bytes:
    """The recorded form, before it is sealed."""
    if isinstance(body, TextDelta) and not body.template:
        # As it was before templates were told apart: nearly every event is one of these.
        return orjson.dumps({"text": body.text})
    return orjson.dumps(body)


def decode(kind: str, data: bytes) -> Body:
    """The body that `encode` wrote."""
    found: Body = _BY_KIND[kind](**orjson.loads(data))
    return found
