"""What memory needs of the ledger: the words, whether they live, and the order of changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol
from uuid import UUID


class MemorySource(StrEnum):
    """How a memory came to be."""

    TURN = "turn"
    API = "api"


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
