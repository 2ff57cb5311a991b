"""A ledger of memories in a dict, for evaluations and tests of what is above it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from personae_runtime.memory.store import ChangeCursor, MemoryChange, MemoryRecord


class DictMemoryStore:
    """`MemoryStore` with the ledger's semantics: one change per memory, its latest, at its latest place."""

    def __init__(self) -> None:
        self._records: dict[UUID, MemoryRecord] = {}
        self._forgotten: set[UUID] = set()
        self._places: dict[UUID, ChangeCursor] = {}
        self._cursors: dict[str, ChangeCursor] = {}
        self._xid = 0

    def add(self, *records: MemoryRecord) -> None:
        """Write memories in one transaction."""
        self._xid += 1
        for seq, record in enumerate(records, start=1):
            self._records[record.memory_id] = record
            self._places[record.memory_id] = ChangeCursor(self._xid, seq)

    def forget(self, memory_id: UUID) -> None:
        """Leave a tombstone."""
        self._xid += 1
        self._forgotten.add(memory_id)
        self._places[memory_id] = ChangeCursor(self._xid, 1)

    def live(self) -> list[MemoryRecord]:
        """Every live memory in the order of threads."""
        now = datetime.now(UTC)
        return sorted(
            (
                record
                for record in self._records.values()
                if record.memory_id not in self._forgotten and (record.expires_at is None or record.expires_at > now)
            ),
            key=lambda record: (record.scope, record.thread, record.ordinal, record.memory_id),
        )

    async def changes(self, after: ChangeCursor, limit: int) -> list[MemoryChange]:
        later = sorted((place, memory_id) for memory_id, place in self._places.items() if place > after)
        return [
            MemoryChange(place, memory_id, self._records[memory_id].scope, memory_id in self._forgotten)
            for place, memory_id in later[:limit]
        ]

    async def read(self, memory_ids: Sequence[UUID]) -> dict[UUID, MemoryRecord]:
        now = datetime.now(UTC)
        return {
            memory_id: record
            for memory_id in memory_ids
            if (record := self._records.get(memory_id)) is not None
            and memory_id not in self._forgotten
            and (record.expires_at is None or record.expires_at > now)
        }

    async def neighbours(
        self, memory_ids: Sequence[UUID]
    ) -> dict[UUID, tuple[MemoryRecord | None, MemoryRecord | None]]:
        threads: dict[tuple[str, str], list[MemoryRecord]] = {}
        for record in self.live():
            threads.setdefault((record.scope, record.thread), []).append(record)
        found: dict[UUID, tuple[MemoryRecord | None, MemoryRecord | None]] = {}
        for memory_id in memory_ids:
            if (own := self._records.get(memory_id)) is None:
                continue
            place = (own.ordinal, own.memory_id)
            thread = threads.get((own.scope, own.thread), [])
            before = [record for record in thread if (record.ordinal, record.memory_id) < place]
            after = [record for record in thread if (record.ordinal, record.memory_id) > place]
            found[memory_id] = (before[-1] if before else None, after[0] if after else None)
        return found

    async def load_cursor(self, index: str) -> ChangeCursor:
        return self._cursors.get(index, ChangeCursor())

    async def save_cursor(self, index: str, cursor: ChangeCursor) -> None:
        self._cursors[index] = cursor

    async def pending(self, scope: str, index: str) -> int:
        cursor = await self.load_cursor(index)
        return sum(
            place > cursor for memory_id, place in self._places.items() if self._records[memory_id].scope == scope
        )

    async def pending_total(self, index: str) -> int:
        cursor = await self.load_cursor(index)
        return sum(place > cursor for place in self._places.values())

    async def total_changes(self) -> int:
        return len(self._places)
