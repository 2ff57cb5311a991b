"""Recall: the memories that help with a query, best first."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, Protocol
from uuid import UUID

from personae_runtime.memory.embedder import Embedder, Vector
from personae_runtime.memory.index import IndexHit, MemoryIndex, PointKind
from personae_runtime.memory.lexical import query_vector, terms
from personae_runtime.memory.store import MemoryRecord, MemoryStore
from personae_runtime.memory.times import asked_about

CANDIDATES: Final = 60
"""Hits read back from the store at least: room for what is excluded, forgotten or reranked away."""

RRF_K: Final = 2
"""Constant of reciprocal rank fusion (Cormack et al., 2009). `docs/memory.md` has the figures."""

RRF_WEIGHTS: Final = (2.0, 1.0)
"""Lexical, dense: rank r in an arm of weight w counts 1 / (r / w + RRF_K - 1), and the arms add up."""

ARM_DEPTH: Final = 120
"""Hits asked of each arm at least, so that a short list still fuses well."""

SPEAKER_NAMED: Final = 1.2
"""For a memory whose speaker the query names."""

QUESTION: Final = -0.5
"""For a memory that asks: the answer is worth more."""

LENGTH: Final = 0.6
"""Times ln(words / 20), words held to 3 to 100: a longer memory says more."""

NEARBY: Final = 0.8
"""Times the index scores of other candidates of the thread up to NEARBY_TURNS away, each divided by its distance."""

NEARBY_TURNS: Final = 3

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
    """One result; `score` is higher for better ones and comparable within one recall only."""

    record: MemoryRecord
    score: float


@dataclass(frozen=True, slots=True)
class RecallResult:
    """What a query brought back.

    Attributes:
        items: words, best first.
        lexical_only: the dense arm did not take part.
        facts: that held at the time that the query asks about, best first.
    """

    items: tuple[RecalledMemory, ...]
    lexical_only: bool
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
        dense = await self._dense(query, dense_deadline_s, embedding)
        now = self._clock()
        hits = await self._index.search(
            scope,
            query_vector(query),
            None if dense is None else dense.tolist(),
            limit=max(ARM_DEPTH, 4 * limit),
            now=now,
            kind=PointKind.EPISODE,
        )
        fused = [(memory_id, score) for memory_id, score in fuse(hits) if memory_id not in exclude_ids]
        wanted = fused[: max(CANDIDATES, 2 * limit)]
        records = await self._store.read([memory_id for memory_id, _ in wanted]) if wanted else {}
        found = [
            RecalledMemory(record, score)
            for memory_id, score in wanted
            # The index is a cache: a scope it has wrong must not get past the ledger's.
            if (record := records.get(memory_id)) is not None
            and record.scope == scope
            and record.thread not in exclude_threads
        ]
        facts = await self._facts(scope, query, dense, now, exclude_threads, fact_limit) if fact_limit else ()
        return RecallResult(tuple(rerank(query, found)[:limit]), lexical_only=dense is None, facts=facts)

    async def _facts(
        self, scope: str, query: str, dense: Vector | None, now: float, exclude_threads: Collection[str], limit: int
    ) -> tuple[RecalledMemory, ...]:
        """Facts that held when the query asks about, and have to do with it."""
        begin, end = asked_about(query, datetime.fromtimestamp(now, UTC))
        hits = await self._index.search(
            scope,
            query_vector(query),
            None if dense is None else dense.tolist(),
            limit=FACT_DEPTH + limit,
            now=now,
            kind=PointKind.FACT,
            during=(begin.timestamp(), end.timestamp()),
        )
        near = [hit for hit in hits if hit.lexical or (hit.dense is not None and hit.dense.score >= FACT_COSINE)]
        wanted = fuse(near)
        records = await self._store.read([memory_id for memory_id, _ in wanted]) if wanted else {}
        found = [
            RecalledMemory(record, score)
            for memory_id, score in wanted
            if (record := records.get(memory_id)) is not None
            and record.scope == scope
            and record.thread not in exclude_threads
            # The ledger may have closed it since it was indexed.
            and record.fact is not None
            and record.fact.holds(begin, end)
        ]
        return tuple(found[:limit])

    async def _dense(self, query: str, deadline_s: float, embedding: Awaitable[Vector] | None) -> Vector | None:
        try:
            if embedding is not None:
                async with asyncio.timeout(deadline_s):
                    return await asyncio.shield(embedding)
            if self._embedder is not None:
                async with asyncio.timeout(deadline_s):
                    return (await self._embedder.embed([query]))[0]
        except TimeoutError:
            self._on_fallback(Fallback.DEADLINE)
        except Exception:  # recall is worth having without it, whatever went wrong
            _log.warning("the query could not be embedded; recalling by words alone", exc_info=True)
            self._on_fallback(Fallback.ERROR)
        return None


def fuse(hits: Sequence[IndexHit]) -> list[tuple[UUID, float]]:
    """Ids and their fused scores by weighted reciprocal ranks, best first; equal scores by id."""
    scored = [
        (
            hit.memory_id,
            sum(
                1 / (place.rank / weight + RRF_K - 1)
                for place, weight in zip((hit.lexical, hit.dense), RRF_WEIGHTS, strict=True)
                if place is not None
            ),
        )
        for hit in hits
    ]
    return sorted(scored, key=lambda item: (-item[1], item[0]))


def rerank(query: str, found: Sequence[RecalledMemory]) -> list[RecalledMemory]:
    """Order candidates by ln(index score) + the four named weights above.

    The weights are round numbers near the optimum of a coordinate search on
    LoCoMo; `docs/memory.md` has what they bring on conversations held out.
    """
    asked = set(terms(query))
    named = {speaker: not asked.isdisjoint(terms(speaker)) for speaker in {item.record.speaker for item in found}}
    places = {(item.record.thread, item.record.ordinal): item.score for item in found if item.record.thread}
    scored = []
    for item in found:
        record = item.record
        words = min(max(len(record.text.split()), 3), 100)
        nearby = sum(
            places.get((record.thread, record.ordinal + step), 0.0) / abs(step)
            for step in range(-NEARBY_TURNS, NEARBY_TURNS + 1)
            if step
        )
        score = (
            math.log(item.score)
            + SPEAKER_NAMED * named[record.speaker]
            + QUESTION * _asks(record.text)
            + LENGTH * math.log(words / 20)
            + NEARBY * nearby
        )
        scored.append(RecalledMemory(record, math.exp(score)))
    scored.sort(key=lambda item: (-item.score, item.record.memory_id))
    return scored


def _asks(text: str) -> bool:
    # An imported photo's caption follows what was said.
    return text.partition("[shares a photo:")[0].rstrip().endswith(("?", "\uff1f", "\u061f"))
