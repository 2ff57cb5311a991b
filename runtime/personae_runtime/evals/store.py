"""A ledger of memories in a dict, for evaluations and tests of what is above it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from uuid import UUID

from personae_runtime.memory.store import ChangeCursor, MemoryChange, MemoryRecord

_NO_ID = UUID(int=0)


class DictMemoryStore:
    """`MemoryStore` with the ledger's semantics: one change per memory, its latest, at its latest place.

    Threads and feed are kept in order as they are written, so that reading a batch
    does not take longer the more is held, as in the ledger.
    """

    def __init__(self) -> None:
        self._records: dict[UUID, MemoryRecord] = {}
        self._forgotten: set[UUID] = set()
        self._places: dict[UUID, ChangeCursor] = {}
        self._feed: list[tuple[ChangeCursor, UUID]] = []
        self._threads: dict[tuple[str, str], list[tuple[int, UUID]]] = {}
        self._cursors: dict[str, ChangeCursor] = {}
        self._xid = 0

    def add(self, *records: MemoryRecord) -> None:
        """Write memories in one transaction."""
        self._xid += 1
        for seq, record in enumerate(records, start=1):
            if record.memory_id not in self._forgotten:
                self._unlink(record.memory_id)
                insort(self._threads.setdefault((record.scope, record.thread), []), (record.ordinal, record.memory_id))
            self._records[record.memory_id] = record
            self._change(record.memory_id, ChangeCursor(self._xid, seq))

    def forget(self, memory_id: UUID) -> None:
        """Leave a tombstone."""
        self._xid += 1
        if memory_id not in self._forgotten:
            self._unlink(memory_id)
            self._forgotten.add(memory_id)
        self._change(memory_id, ChangeCursor(self._xid, 1))

    def live(self) -> list[MemoryRecord]:
        """Every live memory in the order of threads."""
        now = datetime.now(UTC)
        return [
            record
            for key in sorted(self._threads)
            for _, memory_id in self._threads[key]
            if (record := self._live(memory_id, now)) is not None
        ]

    def speakers_known(self, scope: str, memory_ids: Sequence[UUID]) -> set[str] | None:
        found = [self._records.get(memory_id) for memory_id in memory_ids]
        known = [record for record in found if record is not None and record.scope == scope]
        return {record.speaker for record in known} if len(known) == len(found) else None

    async def changes(self, after: ChangeCursor, limit: int) -> list[MemoryChange]:
        first = self._after(after)
        return [
            MemoryChange(place, memory_id, self._records[memory_id].scope, memory_id in self._forgotten)
            for place, memory_id in self._feed[first : first + limit]
        ]

    async def read(self, memory_ids: Sequence[UUID]) -> dict[UUID, MemoryRecord]:
        now = datetime.now(UTC)
        return {memory_id: record for memory_id in memory_ids if (record := self._live(memory_id, now)) is not None}

    async def neighbours(
        self, memory_ids: Sequence[UUID]
    ) -> dict[UUID, tuple[MemoryRecord | None, MemoryRecord | None]]:
        now = datetime.now(UTC)
        found: dict[UUID, tuple[MemoryRecord | None, MemoryRecord | None]] = {}
        for memory_id in memory_ids:
            if (own := self._records.get(memory_id)) is None:
                continue
            thread = self._threads.get((own.scope, own.thread), [])
            place = (own.ordinal, own.memory_id)
            before, after = bisect_left(thread, place), bisect_right(thread, place)
            found[memory_id] = (
                self._first_live((thread[each] for each in range(before - 1, -1, -1)), now),
                self._first_live((thread[each] for each in range(after, len(thread))), now),
            )
        return found

    async def load_cursor(self, index: str) -> ChangeCursor:
        return self._cursors.get(index, ChangeCursor())

    async def save_cursor(self, index: str, cursor: ChangeCursor) -> None:
        self._cursors[index] = cursor

    async def pending(self, scope: str, index: str) -> int:
        later = self._feed[self._after(await self.load_cursor(index)) :]
        return sum(self._records[memory_id].scope == scope for _, memory_id in later)

    async def pending_total(self, index: str) -> int:
        return len(self._feed) - self._after(await self.load_cursor(index))

    async def total_changes(self) -> int:
        return len(self._feed)

    def _live(self, memory_id: UUID, now: datetime) -> MemoryRecord | None:
        record = self._records.get(memory_id)
        if record is None or memory_id in self._forgotten:
            return None
        return record if record.expires_at is None or record.expires_at > now else None

    def _first_live(self, places: Iterable[tuple[int, UUID]], now: datetime) -> MemoryRecord | None:
        return next((record for _, memory_id in places if (record := self._live(memory_id, now)) is not None), None)

    def _after(self, cursor: ChangeCursor) -> int:
        """Where the feed goes on after a cursor: no two changes share a place, so the id does not matter."""
        return bisect_left(self._feed, (ChangeCursor(cursor.xid, cursor.seq + 1), _NO_ID))

    def _change(self, memory_id: UUID, place: ChangeCursor) -> None:
        if (earlier := self._places.get(memory_id)) is not None:
            del self._feed[bisect_left(self._feed, (earlier, memory_id))]
        self._places[memory_id] = place
        self._feed.append((place, memory_id))

    def _unlink(self, memory_id: UUID) -> None:
        if (record := self._records.get(memory_id)) is not None:
            thread = self._threads[record.scope, record.thread]
            del thread[bisect_left(thread, (record.ordinal, memory_id))]
