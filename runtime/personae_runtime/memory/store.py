"""What memory needs of the ledger: the words, whether they live, and the order of changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, Protocol
from uuid import UUID

from personae_runtime.memory.index import PointKind


class MemorySource(StrEnum):
    """How a memory came to be."""

    TURN = "turn"
    API = "api"
    EXTRACTION = "extraction"


class Basis(StrEnum):
    """How a fact is known."""

    STATED = "stated"
    INFERRED = "inferred"


ENGINE_EXTRACTOR: Final = "engine-1/"
"""Begins `FactDetail.extractor` of what a model drew; the model's name follows."""


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `begin` to `end` (excluded) of a memory's text."""

    memory_id: UUID
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class FactDetail:
    """What a fact says, and when it held.

    Attributes:
        subject: whom or what it is about; `user` is the person.
        predicate: such as `lives_in`.
        valid_from, valid_to: aware, UTC, the end excluded; None is unknown, and "it holds".
        superseded_by: the fact that took its place.
        confidence: 0 to 1.
        extractor: what drew it, with its version.
        spans: where it stands in its sources.
    """

    subject: str
    predicate: str
    value: str
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    superseded_by: UUID | None = None
    confidence: float = 1.0
    basis: Basis = Basis.STATED
    extractor: str = ""
    spans: tuple[Span, ...] = ()

    def holds(self, begin: datetime, end: datetime) -> bool:
        """Whether it holds at some moment from `begin` to `end`, both included."""
        if self.valid_from is not None and self.valid_to is not None and self.valid_from >= self.valid_to:
            return False
        return (self.valid_from is None or self.valid_from <= end) and (self.valid_to is None or self.valid_to > begin)


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """One live memory with its words.

    Attributes:
        memory_id: the ledger's id; the last segment of the resource name.
        scope: scope key, HMAC of (tenant, persona, user).
        text: the words, verbatim.
        speaker: who said it, by the name used in the conversation; may be empty.
        occurred_at: when it was said (aware, UTC).
        thread: conversation it belongs to; with `ordinal` it gives the neighbours.
        expires_at: never recalled from then on; None is never.
        external_id: the caller's own id, such as a line of an imported history.
        fact: of a memory that is one; its `text` is the fact as a sentence.
        source_ids: the memories that it was drawn from.
        pinned: kept whatever its age.
        restricted: kept, but not recalled and not used in any other way.
        quarantine_reason: why it is kept from every prompt, as a reason code; empty if it is not.
        version: counts updates, from 1.
    """

    memory_id: UUID
    scope: str
    text: str
    speaker: str
    occurred_at: datetime
    thread: str
    ordinal: int
    source: MemorySource
    created_at: datetime
    expires_at: datetime | None = None
    external_id: str = ""
    fact: FactDetail | None = None
    source_ids: tuple[UUID, ...] = ()
    pinned: bool = False
    restricted: bool = False
    quarantine_reason: str = ""
    version: int = 1
    updated_at: datetime | None = None

    @property
    def kind(self) -> PointKind:
        return PointKind.EPISODE if self.fact is None else PointKind.FACT


@dataclass(frozen=True, slots=True, order=True)
class ChangeCursor:
    """A place in the order of memory changes: transaction, then sequence within it."""

    xid: int = 0
    seq: int = 0


@dataclass(frozen=True, slots=True)
class MemoryChange:
    """A memory was written or forgotten; `cursor` rises along the feed."""

    cursor: ChangeCursor
    memory_id: UUID
    scope: str
    deleted: bool


class MemoryStore(Protocol):
    """The ledger as memory sees it. Implemented by `personae_runtime.ledger`."""

    async def changes(self, after: ChangeCursor, limit: int) -> list[MemoryChange]:
        """Changes after a cursor, in order, none skipped: a change that commits
        late is never before one that was already returned."""
        ...

    async def read(self, memory_ids: Sequence[UUID]) -> dict[UUID, MemoryRecord]:
        """Live (not forgotten, not expired) memories by id; others are absent."""
        ...

    def speakers_known(self, scope: str, memory_ids: Sequence[UUID]) -> set[str] | None:
        """Who said these memories of a scope, if that is known of all of them without asking the ledger, else None.
        Whether they live is not looked at: it is for reading a query, and no result."""
        ...

    async def neighbours(
        self, memory_ids: Sequence[UUID]
    ) -> dict[UUID, tuple[MemoryRecord | None, MemoryRecord | None]]:
        """The live memories just before and just after each in its thread (same scope)."""
        ...

    async def load_cursor(self, index: str) -> ChangeCursor:
        """Where the named index stands; ChangeCursor() if it never ran."""
        ...

    async def save_cursor(self, index: str, cursor: ChangeCursor) -> None:
        """Record that the named index has durably taken up everything to `cursor`."""
        ...

    async def pending(self, scope: str, index: str) -> int:
        """Changes of a scope that the named index has not taken up."""
        ...

    async def pending_total(self, index: str) -> int:
        """Changes of all scopes that the named index has not taken up."""
        ...

    async def total_changes(self) -> int:
        """Changes in the whole feed; the length of a reindex."""
        ...
