"""Recall: the memories that help with a query, best first."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, Protocol
from uuid import UUID

from personae_runtime.memory.embedder import Embedder, Vector
from personae_runtime.memory.index import IndexHit, MemoryIndex, Place, PointKind
from personae_runtime.memory.lexical import query_vector
from personae_runtime.memory.rank import Candidate, Features, Query, fused, may_name, rank
from personae_runtime.memory.store import MemoryRecord, MemoryStore
from personae_runtime.memory.times import asked_about

ARM_DEPTH: Final = 100
"""Hits asked of each arm, at least; ten times those wanted if that is more."""

CANDIDATES: Final = 60
"""Best fused hits that are read back from the store and ranked, at least; five times those wanted if that is more."""

WORDS_DEPTH: Final = 40
"""Hits asked of the lexical arm, at least, where there is no other to lift what it places low."""

NAMES_FROM: Final = 40
"""Best lexical hits whose speakers are looked for in the query before it is embedded."""

RECALL_FILTERS: Final = (
    "scope is the person's, in the index and in the ledger",
    "expires_at is in the future, in the index and in the ledger",
    "not forgotten, not restricted, not quarantined, in the ledger",
)
"""What every arm of every recall carries, and what the ledger decides after it, in words."""

FACT_DEPTH: Final = 12
"""Facts asked of each arm beyond those wanted: room for what is excluded, forgotten or over."""

FACT_COSINE: Final = 0.35
"""Likeness from which a fact has to do with a query that shares no word with it."""

_log = logging.getLogger(__name__)


class Fallback(StrEnum):
    """Why a recall went on without the dense arm it should have had."""

    DEADLINE = "deadline"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class RecalledMemory:
    """One result.

    Attributes:
        score: higher for better ones; comparable within one recall only.
        lexical, dense: its places in the arms.
        parts: what each feature added to the logarithm of the score.
    """

    record: MemoryRecord
    score: float
    lexical: Place | None = None
    dense: Place | None = None
    parts: Features | None = None

    @property
    def text(self) -> str:
        return self.record.text


class LeftOutReason(StrEnum):
    """Why a hit of the index is no result."""

    GONE = "gone"
    """It is forgotten, expired, restricted or quarantined: the ledger's word, which the index has not taken up yet."""
    OTHER_SCOPE = "other_scope"
    EXCLUDED = "excluded"
    """It is not wanted, such as what the prompt's history holds."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A hit of the index that is no result."""

    memory_id: UUID
    reason: LeftOutReason
    lexical: Place | None
    dense: Place | None


@dataclass(frozen=True, slots=True)
class RecallResult:
    """What a query brought back.

    Attributes:
        items: words, best first.
        lexical_only: the dense arm did not take part.
        confidence: how likely it is that the items hold what was asked for, 0 to 1; see `rank`.
        low_confidence: it is below `rank.LOW_CONFIDENCE`: better to say that it is not remembered.
        left_out: what the arms found among the best and is no result.
        facts: that held at the time that the query asks about, best first.
    """

    items: tuple[RecalledMemory, ...]
    lexical_only: bool
    confidence: float
    low_confidence: bool
    left_out: tuple[LeftOut, ...] = ()
    facts: tuple[RecalledMemory, ...] = ()


class Recalls(Protocol):
    """Recall, as far as a turn needs it: here, or in another process."""

    async def recall(
        self,
        scope: str,
        query: str,
        *,
        limit: int,
        dense_deadline_s: float,
        exclude_threads: Collection[str] = (),
        fact_limit: int = 0,
    ) -> RecallResult:
        """See `Recall.recall`."""
        ...


class Recall:
    """Hybrid recall over one index and one store.

    Args:
        index: opened.
        store: has the words, and the last word on what lives.
        embedder: None recalls by words alone.
        on_fallback: told each time the dense arm was missed; for a metric.
        clock: Unix seconds.
    """

    def __init__(
        self,
        index: MemoryIndex,
        store: MemoryStore,
        embedder: Embedder | None,
        *,
        on_fallback: Callable[[Fallback], None] = lambda reason: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._index = index
        self._store = store
        self._embedder = embedder
        self._on_fallback = on_fallback
        self._clock = clock

    async def recall(
        self,
        scope: str,
        query: str,
        *,
        limit: int,
        dense_deadline_s: float,
        embedding: Awaitable[Vector] | None = None,
        exclude_ids: Collection[UUID] = (),
        exclude_threads: Collection[str] = (),
        fact_limit: int = 0,
    ) -> RecallResult:
        """Memories of one scope that bear on `query`.

        Never fails for want of the embedder: the lexical arm is ready at once,
        and the dense one joins if its vector is there in time.

        Args:
            scope: scope key, from the authenticated call.
            query: the person's words.
            limit: most items.
            dense_deadline_s: seconds to wait for the query's embedding.
            embedding: the query's vector if someone computes it already, so that
                a turn embeds once; it is awaited under the same deadline and not
                cancelled by it.
            exclude_ids, exclude_threads: not wanted, such as the turns that the
                prompt's history holds. They are left out of the candidates, so
                that a long excluded thread may leave fewer than `limit`.
            fact_limit: most facts.

        Raises:
            LedgerUnavailable: the words can't be read.
        """
        both_arms = embedding is not None or self._embedder is not None
        depth = max(ARM_DEPTH, 10 * limit) if both_arms else max(WORDS_DEPTH, 5 * limit)
        now = self._clock()
        asked = asked_about(query, datetime.fromtimestamp(now, UTC)) if fact_limit else None
        early: asyncio.Future[list[Vector]] | None = None
        if embedding is None and self._embedder is not None and not may_name(query):
            # It takes longest, so it begins first.
            early = asyncio.ensure_future(self._embedder.embed([query]))
            early.add_done_callback(lambda done: done.cancelled() or done.exception())  # told where it is awaited
        try:
            words = self._index.search(scope, query_vector(query), None, limit=depth, now=now, kind=PointKind.EPISODE)
            about: list[IndexHit]
            if both_arms:
                found, about = await words, []
            else:
                # Asked in one go: each answer that is waited for by itself costs a change of threads.
                found, about = await asyncio.gather(
                    words, self._facts_about(scope, query, None, now, asked, fact_limit)
                )
            hits = {hit.memory_id: hit for hit in found if hit.memory_id not in exclude_ids}
            left_out: dict[UUID, LeftOutReason] = {}
            records: dict[UUID, MemoryRecord] = {}
            dense = None
            if both_arms:
                # Words first: whom the query names is known by the speakers of what they find.
                best = _best(hits.values(), NAMES_FROM)
                speakers = self._store.speakers_known(scope, best)
                if speakers is None:
                    records = await self._read(scope, best, exclude_threads, left_out)
                    speakers = {record.speaker for record in records.values()}
                plain = Query(query, speakers).without_names
                dense = await self._dense(plain, dense_deadline_s, embedding, early if plain == query else None)
        finally:
            if early is not None:
                early.cancel()
        if both_arms:
            meant, about = await asyncio.gather(
                self._meant(scope, dense, depth, now), self._facts_about(scope, query, dense, now, asked, fact_limit)
            )
            for hit in meant:
                if hit.memory_id not in exclude_ids:
                    known = hits.get(hit.memory_id)
                    hits[hit.memory_id] = IndexHit(hit.memory_id, None if known is None else known.lexical, hit.dense)
        wanted = _best(hits.values(), max(CANDIDATES, 5 * limit))
        missing = [memory_id for memory_id in wanted if memory_id not in records]
        live = await self._store.read([*missing, *(hit.memory_id for hit in about)]) if missing or about else {}
        records |= self._kept(scope, missing, live, exclude_threads, left_out)
        candidates = [
            Candidate(records[memory_id], hits[memory_id].lexical, hits[memory_id].dense)
            for memory_id in wanted
            if memory_id in records
        ]
        ranking = rank(query, candidates, limit=limit)
        return RecallResult(
            tuple(
                RecalledMemory(one.candidate.record, one.score, one.candidate.lexical, one.candidate.dense, one.parts)
                for one in ranking.ranked[:limit]
            ),
            lexical_only=dense is None,
            confidence=ranking.confidence,
            low_confidence=ranking.low_confidence,
            left_out=tuple(
                LeftOut(memory_id, reason, hits[memory_id].lexical, hits[memory_id].dense)
                for memory_id, reason in left_out.items()
            ),
            facts=() if asked is None else self._facts(scope, about, live, asked, exclude_threads)[:fact_limit],
        )

    async def _read(
        self,
        scope: str,
        memory_ids: list[UUID],
        exclude_threads: Collection[str],
        left_out: dict[UUID, LeftOutReason],
    ) -> dict[UUID, MemoryRecord]:
        found = await self._store.read(memory_ids) if memory_ids else {}
        return self._kept(scope, memory_ids, found, exclude_threads, left_out)

    @staticmethod
    def _kept(
        scope: str,
        memory_ids: list[UUID],
        found: Mapping[UUID, MemoryRecord],
        exclude_threads: Collection[str],
        left_out: dict[UUID, LeftOutReason],
    ) -> dict[UUID, MemoryRecord]:
        """Those of the memories that may be a result; why the others may not goes to `left_out`."""
        kept = {}
        for memory_id in memory_ids:
            record = found.get(memory_id)
            if record is None:
                left_out[memory_id] = LeftOutReason.GONE
            elif record.scope != scope:
                # The index is a cache: a scope it has wrong must not get past the ledger's.
                left_out[memory_id] = LeftOutReason.OTHER_SCOPE
            elif record.thread in exclude_threads:
                left_out[memory_id] = LeftOutReason.EXCLUDED
            else:
                kept[memory_id] = record
        return kept

    async def _meant(self, scope: str, dense: Vector | None, depth: int, now: float) -> list[IndexHit]:
        """What the dense arm finds; nothing where it takes no part."""
        if dense is None:
            return []
        return await self._index.search(scope, None, dense.tolist(), limit=depth, now=now, kind=PointKind.EPISODE)

    async def _facts_about(
        self,
        scope: str,
        query: str,
        dense: Vector | None,
        now: float,
        asked: tuple[datetime, datetime] | None,
        limit: int,
    ) -> list[IndexHit]:
        """Facts that have to do with a query and, by the index, held at the time that it asks about; without one none
        is looked for."""
        if asked is None:
            return []
        begin, end = asked
        found = await self._index.search(
            scope,
            query_vector(query),
            None if dense is None else dense.tolist(),
            limit=FACT_DEPTH + limit,
            now=now,
            kind=PointKind.FACT,
            during=(begin.timestamp(), end.timestamp()),
        )
        return [hit for hit in found if hit.lexical or (hit.dense is not None and hit.dense.score >= FACT_COSINE)]

    @staticmethod
    def _facts(
        scope: str,
        about: list[IndexHit],
        records: Mapping[UUID, MemoryRecord],
        asked: tuple[datetime, datetime],
        exclude_threads: Collection[str],
    ) -> tuple[RecalledMemory, ...]:
        """Those of the facts that may be a result, best first."""
        begin, end = asked
        return tuple(
            RecalledMemory(record, fused(hit.lexical, hit.dense), hit.lexical, hit.dense)
            for hit in sorted(about, key=lambda hit: (-fused(hit.lexical, hit.dense), hit.memory_id))
            if (record := records.get(hit.memory_id)) is not None
            and record.scope == scope
            and record.thread not in exclude_threads
            # The ledger may have closed it since it was indexed.
            and record.fact is not None
            and record.fact.holds(begin, end)
        )

    async def _dense(
        self,
        query: str,
        deadline_s: float,
        embedding: Awaitable[Vector] | None,
        early: asyncio.Future[list[Vector]] | None,
    ) -> Vector | None:
        """The query's vector if it is there in time: the caller's, the one begun early, or one of its own."""
        try:
            async with asyncio.timeout(deadline_s):
                if embedding is not None:
                    return await asyncio.shield(embedding)
                if early is not None:
                    return (await early)[0]
                if self._embedder is not None:
                    return (await self._embedder.embed([query]))[0]
        except TimeoutError:
            self._on_fallback(Fallback.DEADLINE)
        except Exception:  # recall is worth having without it, whatever went wrong
            _log.warning("the query could not be embedded; recalling by words alone", exc_info=True)
            self._on_fallback(Fallback.ERROR)
        return None


def _best(hits: Iterable[IndexHit], count: int) -> list[UUID]:
    """Ids of the hits with the best fused places, best first; equal ones by id."""
    scored = sorted((-fused(hit.lexical, hit.dense), hit.memory_id) for hit in hits)
    return [memory_id for _, memory_id in scored[:count]]
