"""The embedded index: Qdrant Edge, the real engine in this process.

One shard in one directory, owned by one process. Every call into it is blocking
and goes through one thread; searches overtake writes that are queued.

The engine holds the interpreter's lock through every call, so a slow call stops
the whole process, streams included. Two of its calls are slow, and are kept from
a serving process: `EdgeShard.flush`, which waits for the disk (20 to 150 ms), and
`EdgeShard.optimize`, which rewrites what was written since the last time into
segments that are searched in half the time (3 s for 100,000 points). It runs when
the index is opened, before anything is served. No graphs are built: a query stays
in one scope, which is scanned faster than the turn's budget asks for.

Durability therefore rests on the engine's write-ahead log: what it has accepted
is in the page cache, and survives the process. It would not survive the machine:
while open, the directory holds the boot it was opened in, and an index found open
from another boot is discarded, to be filled again from the ledger.

Layout of the directory: `lock` (held with flock while open), `boot`, `layout` (of
the points), `shard/` (the engine's files). A shard is made and removed under another name, so that a
crash in between leaves either the whole shard or none.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, cast
from uuid import UUID

import qdrant_edge as edge

from personae_runtime.errors import ConfigError, FailedPrecondition, PersonaeError, Unavailable
from personae_runtime.memory.index import (
    DENSE,
    DENSE_DIM,
    EXPIRES_AT,
    KIND,
    LAYOUT,
    LEXICAL,
    SCOPE,
    VALID_FROM,
    VALID_TO,
    Difference,
    IndexHit,
    MemoryPoint,
    Place,
    PointKind,
    SparseVector,
    checked_dense,
    checked_sparse,
    hits,
    payload_of,
    places,
)
from personae_runtime.memory.worker import Lane, LaneWorker

T = TypeVar("T")

SYNC_EVERY: Final = 2_000
"""Written points after which `flush` waits for the disk all the same, so that the log stays short."""

COMPACT_FROM_KB: Final = 10_000
"""Vectors in a segment from which `open` makes it compact: about 6,500 points. The engine's own default."""

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
"""Changes with every start of the machine; where it is absent every `flush` waits for the disk."""

_log = logging.getLogger(__name__)


class CorruptIndex(ConfigError):
    """The index directory can't be read; it is to be rebuilt from the ledger."""

    reason = "INDEX_CORRUPT"


class EdgeMemoryIndex:
    """`MemoryIndex` on a Qdrant Edge shard.

    Besides the errors named, every call raises FailedPrecondition when the index
    is not open and Unavailable (INDEX_UNAVAILABLE) when the engine fails.

    Args:
        directory: the index's own; made if absent, readable by its owner only.
        compact_from_kb: see COMPACT_FROM_KB.
    """

    def __init__(self, directory: Path, *, compact_from_kb: int = COMPACT_FROM_KB) -> None:
        self._directory = directory
        self._compact_from_kb = compact_from_kb
        self._worker: LaneWorker | None = None
        self._shard: edge.EdgeShard | None = None
        self._lock: int | None = None
        self._written = 0
        self._boot: str | None = None

    async def open(self) -> None:
        """Open the shard, or create it; an empty one if the machine went down while it was open.

        Raises:
            ConfigError: another process (or another index of this one) has the directory open.
            CorruptIndex: what is there is no readable shard; `recreate` discards it.
        """
        await self._start(self._open_shard)

    async def recreate(self) -> None:
        """Open with an empty shard, whatever was there before, readable or not.

        Raises:
            ConfigError: as `open`.
        """
        await self._start(self._replace_shard)

    async def upsert(self, points: Sequence[MemoryPoint]) -> None:
        """Insert or replace points by id.

        Raises:
            InvalidArgument: a vector is not finite, has the wrong length, or
                repeats a sparse index; nothing was written.
        """

        def call(shard: edge.EdgeShard) -> None:
            # The engine logs an operation before it looks at it: check first.
            batch = [_to_point(point) for point in points]
            shard.update(edge.UpdateOperation.upsert_points(batch))
            self._written += len(batch)

        if points:
            await self._run(call)

    async def delete(self, memory_ids: Sequence[UUID]) -> None:
        """Remove points; unknown ids are ignored."""

        def call(shard: edge.EdgeShard) -> None:
            shard.update(edge.UpdateOperation.delete_points(list(memory_ids)))
            self._written += len(memory_ids)

        if memory_ids:
            await self._run(call)

    async def delete_scope(self, scope: str) -> None:
        """Remove every point of a scope."""
        where = edge.Filter(must=[edge.FieldCondition(SCOPE, match=edge.MatchValue(scope))])
        await self._run(lambda shard: shard.update(edge.UpdateOperation.delete_points_by_filter(where)))

    async def flush(self) -> None:
        """Return when everything before this call survives a SIGKILL of the process."""

        def call(shard: edge.EdgeShard) -> None:
            # The writes before this call are in the log: they ran before it in this thread.
            if self._boot is None or self._written >= SYNC_EVERY:
                self._written = 0
                shard.flush()

        await self._run(call)

    async def search(
        self,
        scope: str,
        sparse: SparseVector | None,
        dense: Sequence[float] | None,
        *,
        limit: int,
        now: float,
        kind: PointKind | None = None,
        during: tuple[float, float] | None = None,
    ) -> list[IndexHit]:
        """See `MemoryIndex.search`.

        Raises:
            InvalidArgument: a vector is not finite or has the wrong length.
        """
        if limit < 1 or (sparse is None and dense is None):
            return []
        in_scope = edge.FieldCondition(SCOPE, match=edge.MatchValue(scope))
        must: list[Any] = [in_scope, edge.FieldCondition(EXPIRES_AT, range=edge.RangeFloat(gt=now))]
        if kind is not None:
            must.append(edge.FieldCondition(KIND, match=edge.MatchValue(kind.value)))
        if during is not None:
            must.append(edge.FieldCondition(VALID_FROM, range=edge.RangeFloat(lte=during[1])))
            must.append(edge.FieldCondition(VALID_TO, range=edge.RangeFloat(gt=during[0])))
        alive = edge.Filter(must=must)
        # Other people's words neither shift a ranking nor show through it.
        per_scope = edge.SearchParams(idf=edge.IdfParams(corpus=edge.Filter(must=[in_scope])))
        requests = []
        if sparse is not None:
            query = edge.Query.Nearest(edge.SparseVector(*checked_sparse(sparse)), using=LEXICAL)
            requests.append(edge.QueryRequest(limit=limit, query=query, filter=alive, params=per_scope))
        if dense is not None:
            query = edge.Query.Nearest(checked_dense(dense), using=DENSE)
            requests.append(edge.QueryRequest(limit=limit, query=query, filter=alive))
        # One turn in the thread for both: a write between them would show in one arm only.
        found = await self._run(lambda shard: [_places(shard.query(request)) for request in requests], Lane.URGENT)
        lexical = found.pop(0) if sparse is not None else {}
        meant = found.pop(0) if dense is not None else {}
        return hits(lexical, meant)

    async def count(self, scope: str | None = None, memory_ids: Sequence[UUID] | None = None) -> int:
        """Points in a scope, or in all; expired ones count until they are deleted."""
        must: list[Any] = []
        if scope is not None:
            must.append(edge.FieldCondition(SCOPE, match=edge.MatchValue(scope)))
        if memory_ids is not None:
            must.append(edge.HasIdCondition(set(memory_ids)))
        where = edge.Filter(must=must) if must else None
        return await self._run(lambda shard: shard.count(edge.CountRequest(exact=True, filter=where)))

    async def being_rebuilt(self) -> bool:
        """False: an embedded index is rebuilt in its own place, by the process that has it."""
        return False

    async def clear(self) -> None:
        """Remove every point: an empty shard takes the place of the old one."""
        await self._run(lambda _: self._replace_shard())

    async def close(self) -> None:
        """Flush and release. Safe to call twice."""
        worker, self._worker = self._worker, None
        try:
            if worker is not None:
                try:
                    await worker.run(self._close_shard)
                finally:
                    await worker.close()
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    async def _start(self, opener: Callable[[], None]) -> None:
        if self._worker is not None:
            return
        self._lock = await asyncio.to_thread(_take_lock, self._directory)
        self._worker = LaneWorker("memory-index")
        try:
            await self._worker.run(opener)
        except BaseException:
            await self.close()
            raise

    async def _run(self, call: Callable[[edge.EdgeShard], T], lane: Lane = Lane.NORMAL) -> T:
        if self._worker is None:
            raise FailedPrecondition("the memory index is not open: await open() first", reason="INDEX_CLOSED")
        try:
            return await self._worker.run(lambda: call(self._opened()), lane)
        except (PersonaeError, asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # The engine raises bare Exceptions, and its panics are BaseExceptions.
            raise Unavailable(
                f"the memory index in {self._directory} failed: {type(error).__name__}",
                reason="INDEX_UNAVAILABLE",
            ) from error

    # Below here: in the worker's thread only.

    def _opened(self) -> edge.EdgeShard:
        if self._shard is None:
            raise FailedPrecondition("the memory index is closed", reason="INDEX_CLOSED")
        return self._shard

    def _open_shard(self) -> None:
        self._boot = _boot_id()
        layout, stamp = self._directory / "layout", self._directory / "boot"
        if not layout.exists() or layout.read_text() != LAYOUT:
            self._set_aside()
            _write_durably(layout, LAYOUT)
        if stamp.exists() and stamp.read_text() != self._boot:
            _log.warning("the machine went down while the memory index was open; it is filled again from the ledger")
            self._set_aside()
        if self._boot is not None:
            _write_durably(stamp, self._boot)
        self._load_shard()

    def _replace_shard(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shard = None
        self._set_aside()
        self._open_shard()

    def _set_aside(self) -> None:
        home, old = self._directory / "shard", self._directory / "shard.old"
        if home.exists():
            shutil.rmtree(old, ignore_errors=True)
            home.rename(old)
        self._written = 0

    def _load_shard(self) -> None:
        home = self._directory / "shard"
        for leftover in ("shard.new", "shard.old"):
            shutil.rmtree(self._directory / leftover, ignore_errors=True)
        if not home.exists():
            _create_shard(self._directory / "shard.new", self._compact_from_kb)
            (self._directory / "shard.new").rename(home)
        try:
            if not (home / "edge_config.json").is_file():
                # Given a configuration, the engine would make an empty shard of it.
                raise FileNotFoundError("the shard's configuration is gone")
            self._shard = edge.EdgeShard.load(str(home), _config(self._compact_from_kb))
            self._shard.count(edge.CountRequest(exact=False))
            if self._shard.optimize():
                # The old segments go when the new ones are safe.
                self._shard.flush()
        except BaseException as error:
            # A panic of the engine is a BaseException that is no Exception.
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            self._shard = None
            raise CorruptIndex(
                f"the memory index in {home} can't be read; "
                "run `personae memory reindex` to rebuild it from the ledger",
                metadata={"directory": str(home)},
            ) from error

    def _close_shard(self) -> None:
        shard, self._shard = self._shard, None
        if shard is not None:
            shard.flush()
            shard.close()
            (self._directory / "boot").unlink(missing_ok=True)


def differences(directory: Path) -> list[Difference]:
    """Where the index in a directory differs from what this version wants; read without opening it."""
    layout = directory / "layout"
    found = layout.read_text() if layout.exists() else None
    return [] if found == LAYOUT else [Difference("layout", LAYOUT, found)]


def _places(found: Sequence[edge.ScoredPoint]) -> dict[UUID, Place]:
    # Every point was written with a UUID, and comes back with one.
    return places((cast(UUID, point.id), point.score) for point in found)


def _boot_id() -> str | None:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return None


def _write_durably(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _take_lock(directory: Path) -> int:
    """Open and lock `directory`/lock; the lock goes when the process does."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(
            f"the memory index in {directory} is open in another process; stop that process, "
            "or set `data_dir` to a directory of its own (such as PERSONAE_DATA_DIR=/var/lib/personae-2)",
            reason="INDEX_IN_USE",
            metadata={"directory": str(directory)},
        ) from None
    return descriptor


def _config(compact_from_kb: int) -> edge.EdgeConfig:
    return edge.EdgeConfig(
        vectors={DENSE: edge.EdgeVectorParams(size=DENSE_DIM, distance=edge.Distance.Cosine)},
        sparse_vectors={LEXICAL: edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf)},
        # No edges, no graph.
        hnsw_config=edge.HnswIndexConfig(m=0, payload_m=0, ef_construct=4, full_scan_threshold=compact_from_kb),
        optimizers=edge.EdgeOptimizersConfig(indexing_threshold=compact_from_kb),
        # A query reads two segments or three for half a millisecond: to hand them to more threads takes longer.
        max_search_threads=1,
    )


def _create_shard(path: Path, compact_from_kb: int) -> None:
    path.mkdir(mode=0o700)
    shard = edge.EdgeShard.create(str(path), _config(compact_from_kb))
    shard.update(edge.UpdateOperation.create_field_index(SCOPE, edge.KeywordIndexParams(is_tenant=True)))
    shard.update(edge.UpdateOperation.create_field_index(KIND, edge.PayloadSchemaType.Keyword))
    for field in (EXPIRES_AT, VALID_FROM, VALID_TO):
        shard.update(edge.UpdateOperation.create_field_index(field, edge.PayloadSchemaType.Float))
    shard.flush()
    shard.close()


def _to_point(point: MemoryPoint) -> edge.Point:
    vectors: dict[str, edge.NamedVector] = {LEXICAL: edge.SparseVector(*checked_sparse(point.sparse))}
    if point.dense is not None:
        vectors[DENSE] = checked_dense(point.dense)
    return edge.Point(point.memory_id, vectors, payload_of(point))
