"""Recall: what is found, what is left out, and what happens when the embedding is late."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

import pytest

from personae_runtime.evals.store import DictMemoryStore
from personae_runtime.memory.edge import EdgeMemoryIndex
from personae_runtime.memory.embedder import Vector
from personae_runtime.memory.indexer import Indexer
from personae_runtime.memory.recall import Fallback, LeftOutReason, Recall, RecalledMemory
from personae_runtime.memory.store import MemoryRecord
from tests.unit.memory.conftest import HashEmbedder, record


class NeverReady(HashEmbedder):
    """An embedder that is busy for good."""

    async def embed(self, texts: Sequence[str], *, bulk: bool = False) -> list[Vector]:
        await asyncio.Event().wait()
        raise AssertionError


class Broken(HashEmbedder):
    async def embed(self, texts: Sequence[str], *, bulk: bool = False) -> list[Vector]:
        raise RuntimeError("out of memory")


@pytest.fixture
async def store(index: EdgeMemoryIndex) -> DictMemoryStore:
    filled = DictMemoryStore()
    filled.add(
        record("My bicycle has a flat tyre and it needs a new tube soon.", 0),
        record("The soup I made yesterday was far too salty for everyone.", 5, thread="v"),
        record("I visited the museum in Lisbon with my sister last week.", 9, thread="u"),
        record("My bicycle was stolen in front of the station yesterday.", 0, scope="b"),
    )
    await Indexer(index, filled, HashEmbedder()).catch_up()
    return filled


def texts(items: Sequence[RecalledMemory]) -> list[str]:
    return [item.record.text for item in items]


async def test_finds_what_bears_on_the_query_in_its_own_scope(index: EdgeMemoryIndex, store: DictMemoryStore) -> None:
    recall = Recall(index, store, HashEmbedder())
    result = await recall.recall("a", "What about the bicycle?", limit=3, dense_deadline_s=10)
    assert not result.lexical_only
    assert "flat tyre" in texts(result.items)[0]
    assert {item.record.scope for item in result.items} == {"a"}
    assert [item.score for item in result.items] == sorted((item.score for item in result.items), reverse=True)
    assert len((await recall.recall("a", "bicycle", limit=1, dense_deadline_s=10)).items) == 1
    assert (await recall.recall("c", "bicycle", limit=3, dense_deadline_s=10)).items == ()


async def test_a_late_embedding_leaves_the_words(index: EdgeMemoryIndex, store: DictMemoryStore) -> None:
    missed: list[Fallback] = []
    recall = Recall(index, store, NeverReady(), on_fallback=missed.append)
    result = await recall.recall("a", "bicycle", limit=3, dense_deadline_s=0.001)
    assert result.lexical_only
    assert len(result.items) == 1
    assert missed == [Fallback.DEADLINE]


async def test_a_failing_embedder_leaves_the_words(index: EdgeMemoryIndex, store: DictMemoryStore) -> None:
    missed: list[Fallback] = []
    recall = Recall(index, store, Broken(), on_fallback=missed.append)
    result = await recall.recall("a", "bicycle", limit=3, dense_deadline_s=10)
    assert (result.lexical_only, len(result.items), missed) == (True, 1, [Fallback.ERROR])


async def test_without_an_embedder_nothing_is_missed(index: EdgeMemoryIndex, store: DictMemoryStore) -> None:
    missed: list[Fallback] = []
    result = await Recall(index, store, None, on_fallback=missed.append).recall(
        "a", "bicycle", limit=3, dense_deadline_s=10
    )
    assert (result.lexical_only, len(result.items), missed) == (True, 1, [])


async def test_a_shared_embedding_is_used_and_not_cancelled_by_the_deadline(
    index: EdgeMemoryIndex, store: DictMemoryStore
) -> None:
    recall = Recall(index, store, None)
    loop = asyncio.get_running_loop()
    shared: asyncio.Future[Vector] = loop.create_future()
    late = await recall.recall("a", "bicycle", limit=3, dense_deadline_s=0.001, embedding=shared)
    assert late.lexical_only
    assert not shared.cancelled()
    [vector] = await HashEmbedder().embed(["soup"])
    shared.set_result(vector)
    hybrid = await recall.recall("a", "soup", limit=3, dense_deadline_s=10, embedding=shared)
    assert not hybrid.lexical_only
    assert "soup" in texts(hybrid.items)[0]


async def test_a_cancelled_recall_is_not_taken_for_a_fallback(index: EdgeMemoryIndex, store: DictMemoryStore) -> None:
    missed: list[Fallback] = []
    recall = Recall(index, store, NeverReady(), on_fallback=missed.append)
    task = asyncio.create_task(recall.recall("a", "bicycle", limit=3, dense_deadline_s=60))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert missed == []


async def test_a_query_without_words_finds_by_meaning_or_nothing(
    index: EdgeMemoryIndex, store: DictMemoryStore
) -> None:
    assert (await Recall(index, store, None).recall("a", "?!", limit=3, dense_deadline_s=0)).items == ()
    assert (await Recall(index, store, HashEmbedder()).recall("a", "?!", limit=3, dense_deadline_s=10)).items


async def test_the_ledger_decides_what_lives_before_the_index_knows(
    index: EdgeMemoryIndex, store: DictMemoryStore
) -> None:
    [bicycle] = [item for item in store.live() if "flat tyre" in item.text]
    store.forget(bicycle.memory_id)
    result = await Recall(index, store, None).recall("a", "bicycle", limit=3, dense_deadline_s=0)
    assert result.items == ()


async def test_the_ledgers_scope_wins_over_the_indexs(index: EdgeMemoryIndex, store: DictMemoryStore) -> None:
    class Moved(DictMemoryStore):
        async def read(self, memory_ids: Sequence[UUID]) -> dict[UUID, MemoryRecord]:
            found = await store.read(memory_ids)
            return {memory_id: replace(item, scope="elsewhere") for memory_id, item in found.items()}

    result = await Recall(index, Moved(), None).recall("a", "bicycle", limit=3, dense_deadline_s=0)
    assert result.items == ()


async def test_excluded_ids_and_threads_are_left_out(index: EdgeMemoryIndex, store: DictMemoryStore) -> None:
    recall = Recall(index, store, HashEmbedder())

    async def found(**exclude: set[str] | set[UUID]) -> list[str]:
        result = await recall.recall("a", "bicycle soup museum", limit=3, dense_deadline_s=10, **exclude)  # type: ignore[arg-type]
        return texts(result.items)

    everything = await found()
    assert len(everything) == 3
    assert len(await found(exclude_threads={"t", "u"})) == 1
    bicycle = {item.memory_id for item in store.live() if "flat tyre" in item.text}
    assert len(await found(exclude_ids=bicycle)) == 2


class Counting(DictMemoryStore):
    """Counts how often it is read, and knows speakers without that or not."""

    def __init__(self, records: Sequence[MemoryRecord], *, knows_speakers: bool) -> None:
        super().__init__()
        self.add(*records)
        self.reads = 0
        self._knows_speakers = knows_speakers

    async def read(self, memory_ids: Sequence[UUID]) -> dict[UUID, MemoryRecord]:
        self.reads += 1
        return await super().read(memory_ids)

    def speakers_known(self, scope: str, memory_ids: Sequence[UUID]) -> set[str] | None:
        return super().speakers_known(scope, memory_ids) if self._knows_speakers else None


async def test_two_round_trips_to_the_store_at_most(index: EdgeMemoryIndex, store: DictMemoryStore) -> None:
    counting = Counting(store.live(), knows_speakers=False)
    await Recall(index, counting, HashEmbedder()).recall("a", "bicycle", limit=3, dense_deadline_s=10, fact_limit=3)
    assert counting.reads == 2


@pytest.mark.parametrize("query", ["bicycle", "What about Ann's bicycle?"])
async def test_one_round_trip_where_the_speakers_are_known(
    index: EdgeMemoryIndex, store: DictMemoryStore, query: str
) -> None:
    knowing, asking = [Counting(store.live(), knows_speakers=knows) for knows in (True, False)]
    result, expected = [
        await Recall(index, one, HashEmbedder()).recall("a", query, limit=3, dense_deadline_s=10, fact_limit=3)
        for one in (knowing, asking)
    ]
    assert knowing.reads == 1
    assert result == expected


async def test_the_embedding_sees_no_name_of_a_speaker(index: EdgeMemoryIndex, store: DictMemoryStore) -> None:
    asked: list[str] = []

    class Listening(HashEmbedder):
        async def embed(self, texts: Sequence[str], *, bulk: bool = False) -> list[Vector]:
            asked.extend(texts)
            return await super().embed(texts, bulk=bulk)

    recall = Recall(index, store, Listening())
    await recall.recall("a", "What about Ann's bicycle?", limit=3, dense_deadline_s=10)
    await recall.recall("a", "What about Lisbon?", limit=3, dense_deadline_s=10)
    assert asked == ["What about bicycle?", "What about Lisbon?"]


async def test_nothing_found_is_no_ground_for_an_answer(index: EdgeMemoryIndex, store: DictMemoryStore) -> None:
    recall = Recall(index, store, None)
    nothing = await recall.recall("a", "?!", limit=3, dense_deadline_s=0)
    assert (nothing.confidence, nothing.low_confidence) == (0.0, True)
    stranger = await recall.recall("a", "What did Zelda make of the soup?", limit=3, dense_deadline_s=0)
    known = await recall.recall("a", "What did Ann make of the soup?", limit=3, dense_deadline_s=0)
    assert stranger.low_confidence
    assert not known.low_confidence
    assert 0 <= stranger.confidence < known.confidence <= 1


async def test_the_same_query_gives_the_same_result(index: EdgeMemoryIndex, store: DictMemoryStore) -> None:
    recall = Recall(index, store, HashEmbedder())
    first, again = [
        await recall.recall("a", "Which museum did Ann visit last week?", limit=3, dense_deadline_s=10)
        for _ in range(2)
    ]
    assert first == again


async def test_a_result_tells_its_places_and_parts_and_what_was_left_out(
    index: EdgeMemoryIndex, store: DictMemoryStore
) -> None:
    recall = Recall(index, store, HashEmbedder())
    before = await recall.recall("a", "What about the bicycle?", limit=3, dense_deadline_s=10)
    first = before.items[0]
    assert first.lexical is not None
    assert (first.lexical.rank, before.left_out) == (1, ())
    assert first.parts is not None
    assert first.score == pytest.approx(math.exp(sum(first.parts)))
    store.forget(first.record.memory_id)
    after = await recall.recall("a", "What about the bicycle?", limit=3, dense_deadline_s=10, exclude_threads=["v"])
    assert first.record.memory_id not in {item.record.memory_id for item in after.items}
    left_out = {one.memory_id: one for one in after.left_out}
    assert left_out[first.record.memory_id].reason is LeftOutReason.GONE
    assert left_out[first.record.memory_id].lexical == first.lexical
    assert LeftOutReason.EXCLUDED in {one.reason for one in after.left_out}
