"""Keeps the index at the ledger's heels.

Crash safety rests on one order: index, flush, then move the cursor. Whatever is
interrupted is done again, and doing it again changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Final, Protocol
from uuid import UUID

import numpy as np

from personae_runtime.errors import Unavailable
from personae_runtime.memory.embedder import Embedder, Vector
from personae_runtime.memory.index import MemoryIndex, MemoryPoint
from personae_runtime.memory.lexical import dense_text, document_vector, lexical_text
from personae_runtime.memory.store import ChangeCursor, MemoryChange, MemoryRecord, MemoryStore

DEFAULT_NAME: Final = "edge-v1"
"""Names index and text scheme: a new scheme takes a new name and so starts from the ledger's first change."""

NEIGHBOUR_SHARE: Final = 0.3
"""Weight of each neighbour's embedding in a memory's dense vector. Embedding the joined texts
costs three times as much and finds less; `docs/memory.md` has the figures."""

_CACHED_VECTORS: Final = 2_048

Neighbours = tuple[MemoryRecord | None, MemoryRecord | None]
Window = tuple[MemoryRecord, MemoryRecord | None, MemoryRecord | None]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class IndexErasure:
    """Points that were removed, and points that the index still held afterwards."""

    erased: int
    remaining: int


class Indexing(Protocol):
    """The indexer, as far as a gateway needs it: here, or in another process."""

    @property
    def name(self) -> str:
        """Of the index whose cursor tells what is indexed."""
        ...

    def notify(self) -> None:
        """Say that memories changed."""
        ...

    async def pending(self) -> int:
        """Changes that are not indexed yet."""
        ...

    async def erase(self, scope: str, memory_ids: Sequence[UUID] = ()) -> IndexErasure:
        """See `Indexer.erase`."""
        ...


class Indexer:
    """Follows the ledger's feed of memory changes into an index.

    One indexer per index; its methods may be called concurrently and take turns.

    Args:
        index: opened.
        store: the ledger.
        embedder: None writes points without a dense vector; recall then finds
            them by words alone until `reindex` runs with one.
        name: the cursor's in the ledger.
        batch: changes per flush.
        poll_s: seconds after which the feed is looked at without a `notify`.
        on_erase: told of scopes of which nothing may be kept in this process.
    """

    def __init__(
        self,
        index: MemoryIndex,
        store: MemoryStore,
        embedder: Embedder | None,
        name: str = DEFAULT_NAME,
        *,
        batch: int = 32,
        poll_s: float = 1.0,
        on_erase: Callable[[str], None] = lambda scope: None,
    ) -> None:
        self._index = index
        self._store = store
        self._embedder = embedder
        self._name = name
        self._batch = batch
        self._poll_s = poll_s
        self._on_erase = on_erase
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._checked = False
        # Embeddings of single memories, so that a neighbour's is not made again for each window.
        self._vectors: OrderedDict[UUID, tuple[bytes, Vector]] = OrderedDict()

    @property
    def name(self) -> str:
        """The cursor's name in the ledger."""
        return self._name

    @property
    def index(self) -> MemoryIndex:
        """What it fills."""
        return self._index

    async def pending(self) -> int:
        """Changes of all scopes that the index has not taken up."""
        return await self._store.pending_total(self._name)

    def notify(self) -> None:
        """Say that something was written; `run` looks at once. Call from the loop's thread."""
        self._wake.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Follow the feed until `stop` is set; a batch that has begun is finished first.

        A failure (the ledger away, a full disk) is logged and tried again at the next poll.
        """
        stopped = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                self._wake.clear()
                try:
                    while not stop.is_set() and await self._step():
                        pass
                except Exception:  # the feed must go on being followed, whatever went wrong once
                    _log.warning("memory indexing failed; trying again in %.1f s", self._poll_s, exc_info=True)
                woken = asyncio.create_task(self._wake.wait())
                await asyncio.wait({stopped, woken}, timeout=self._poll_s, return_when=asyncio.FIRST_COMPLETED)
                woken.cancel()
        finally:
            stopped.cancel()

    async def catch_up(self) -> int:
        """Take up everything the feed shows now; the number of changes taken up."""
        total = 0
        while taken := await self._step():
            total += taken
        return total

    async def erase(self, scope: str, memory_ids: Sequence[UUID] = ()) -> IndexErasure:
        """Remove a scope's points, or some of them with what their neighbours have of them.

        The ledger has forgotten them before, so that none comes back.

        Raises:
            Unavailable: the neighbours can't be made anew yet, as a transaction
                of the ledger is open, or the index is being rebuilt (reason INDEX_BEHIND).
        """
        which = (scope, list(memory_ids) if memory_ids else None)
        self._on_erase(scope)
        async with self._turn:
            before = await self._index.count(*which)
            if memory_ids:
                await self._index.delete(memory_ids)
            else:
                await self._index.delete_scope(scope)
            await self._index.flush()
            # Of a scope it is not known here whose vectors these are.
            self._vectors.clear()
        if memory_ids:
            await self.catch_up()
            if await self._store.pending(scope, self._name):
                raise Unavailable("the index has not taken up every change yet", reason="INDEX_BEHIND")
        if await self._index.being_rebuilt():
            # The copy is filled from what the ledger held, and perhaps before it forgot.
            raise Unavailable(
                "a copy of the index is being filled, or was left half filled: let `personae memory reindex` or"
                " `personae memory migrate` end, or run it again",
                reason="INDEX_BEHIND",
            )
        return IndexErasure(before, await self._index.count(*which))

    async def reindex(self, on_progress: Callable[[int, int], None] = lambda done, total: None) -> int:
        """Empty the index and fill it again from the ledger; the number of changes taken up.

        Args:
            on_progress: told (changes done, changes in all) after each batch.
        """
        async with self._turn:
            # The cursor first: a crash between the two then repeats work instead of losing it.
            await self._store.save_cursor(self._name, ChangeCursor())
            await self._index.clear()
            await self._index.flush()
            self._checked = True
        total = await self._store.total_changes()
        done = 0
        on_progress(done, total)
        while taken := await self._step():
            done += taken
            on_progress(done, max(done, total))
        return done

    async def _step(self) -> int:
        async with self._turn:
            cursor = await self._store.load_cursor(self._name)
            if not self._checked:
                if cursor != ChangeCursor() and await self._index.count() == 0:
                    # The index was lost, or all of it forgotten: either way the feed tells.
                    cursor = ChangeCursor()
                self._checked = True
            changes = await self._store.changes(cursor, self._batch)
            if not changes:
                return 0
            await self._apply(changes)
            await self._index.flush()
            await self._store.save_cursor(self._name, changes[-1].cursor)
            return len(changes)

    async def _apply(self, changes: list[MemoryChange]) -> None:
        changed = list(dict.fromkeys(change.memory_id for change in changes))
        live = await self._store.read(changed)
        around = await self._store.neighbours(changed)
        # A memory's text is part of its neighbours' windows: they change with it, and with its end.
        touched = dict(live)
        for pair in around.values():
            touched.update((other.memory_id, other) for other in pair if other is not None and other.thread)
        missing = [memory_id for memory_id in touched if memory_id not in around]
        if missing:
            around = {**around, **await self._store.neighbours(missing)}
        for memory_id in changed:
            if memory_id not in live:
                self._vectors.pop(memory_id, None)
        # Gone first: what was forgotten leaves the index even if an embedding fails.
        await self._index.delete([memory_id for memory_id in changed if memory_id not in live])
        if touched:
            await self._index.upsert(await self._points(touched, around))

    async def _points(
        self, records: Mapping[UUID, MemoryRecord], around: Mapping[UUID, Neighbours]
    ) -> list[MemoryPoint]:
        # Without a thread there is no order, and so no neighbour.
        windows: list[Window] = [
            (record, *(around.get(record.memory_id, (None, None)) if record.thread else (None, None)))
            for record in records.values()
        ]
        dense = await self._dense(windows)
        return [
            MemoryPoint(
                memory_id=record.memory_id,
                scope=record.scope,
                sparse=document_vector(lexical_text(record, before, after)),
                dense=vector,
                expires_at=_seconds(record.expires_at),
                kind=record.kind,
                valid_from=None if record.fact is None else _seconds(record.fact.valid_from),
                valid_to=None if record.fact is None else _seconds(record.fact.valid_to),
            )
            for (record, before, after), vector in zip(windows, dense, strict=True)
        ]

    async def _dense(self, windows: list[Window]) -> list[list[float] | None]:
        if self._embedder is None:
            return [None] * len(windows)
        records = {record.memory_id: record for window in windows for record in window if record is not None}
        texts = {memory_id: dense_text(record) for memory_id, record in records.items()}
        digests = {memory_id: blake2b(text.encode()).digest() for memory_id, text in texts.items()}
        vectors = {
            memory_id: cached[1]
            for memory_id, digest in digests.items()
            if (cached := self._vectors.get(memory_id)) is not None and cached[0] == digest
        }
        missing = [memory_id for memory_id in texts if memory_id not in vectors]
        made = await self._embedder.embed([texts[memory_id] for memory_id in missing], bulk=True)
        vectors.update(zip(missing, made, strict=True))
        for memory_id, vector in vectors.items():
            self._vectors[memory_id] = (digests[memory_id], vector)
            self._vectors.move_to_end(memory_id)
        while len(self._vectors) > _CACHED_VECTORS:
            self._vectors.popitem(last=False)
        return [
            _blend(*(None if record is None else vectors[record.memory_id] for record in window)) for window in windows
        ]


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _blend(own: Vector | None, *around: Vector | None) -> list[float]:
    assert own is not None
    mixed = own + NEIGHBOUR_SHARE * sum((vector for vector in around if vector is not None), np.zeros_like(own))
    blended: list[float] = (mixed / max(float(np.linalg.norm(mixed)), 1e-12)).tolist()
    return blended
