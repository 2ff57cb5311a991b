"""The indexer follows the feed, survives crashes anywhere, and lets nothing of a forgotten memory stay."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from personae_runtime.errors import LedgerUnavailable
from personae_runtime.evals.store import DictMemoryStore
from personae_runtime.memory.edge import EdgeMemoryIndex
from personae_runtime.memory.embedder import Vector
from personae_runtime.memory.index import MemoryIndex
from personae_runtime.memory.indexer import Indexer
from personae_runtime.memory.lexical import query_vector
from personae_runtime.memory.store import ChangeCursor, MemoryChange
from tests.unit.memory.conftest import HashEmbedder, ids, record


async def by_words(index: MemoryIndex, words: str, scope: str = "a") -> set[UUID]:
    return {hit.memory_id for hit in await index.search(scope, query_vector(words), None, limit=50, now=0)}


async def by_meaning(index: MemoryIndex, words: str) -> list[UUID]:
    [vector] = await HashEmbedder().embed([words])
    return [hit.memory_id for hit in await index.search("a", None, vector.tolist(), limit=50, now=0)]


async def test_a_memory_is_found_by_its_words_its_neighbours_words_and_its_date(index: EdgeMemoryIndex) -> None:
    store = DictMemoryStore()
    talk = [record(text, place) for place, text in enumerate(["Where to?", "Lisbon.", "Lovely!", "Indeed."])]
    store.add(*talk)
    assert await Indexer(index, store, HashEmbedder()).catch_up() == 4
    assert await by_words(index, "Lisbon") == set(ids(talk[:3]))
    assert await by_words(index, "8 May 2024") == set(ids(talk))
    assert (await by_meaning(index, "Lisbon"))[0] == talk[1].memory_id


async def test_a_new_memory_refreshes_the_windows_around_it(index: EdgeMemoryIndex) -> None:
    store = DictMemoryStore()
    first, second = record("Where to?", 0), record("Lisbon.", 1)
    indexer = Indexer(index, store, HashEmbedder())
    store.add(first)
    await indexer.catch_up()
    assert await by_words(index, "Lisbon") == set()
    store.add(second)
    await indexer.catch_up()
    assert await by_words(index, "Lisbon") == {first.memory_id, second.memory_id}
    assert await index.count() == 2


async def test_nothing_of_a_forgotten_memory_stays_in_its_neighbours(index: EdgeMemoryIndex) -> None:
    store = DictMemoryStore()
    talk = [record(text, place) for place, text in enumerate(["Where to?", "Lisbon.", "Lovely!"])]
    store.add(*talk)
    embedder = HashEmbedder()
    indexer = Indexer(index, store, embedder)
    await indexer.catch_up()
    store.forget(talk[1].memory_id)
    assert await indexer.catch_up() == 1
    assert await by_words(index, "Lisbon") == set()
    assert set(await by_meaning(index, "Lisbon")) == {talk[0].memory_id, talk[2].memory_id}
    # The two are neighbours now.
    assert await by_words(index, "Lovely") == {talk[0].memory_id, talk[2].memory_id}


async def test_memories_without_a_thread_have_no_neighbours(index: EdgeMemoryIndex) -> None:
    store = DictMemoryStore()
    loose = [record("I like tea.", thread=""), record("I own a boat.", thread="")]
    store.add(*loose)
    await Indexer(index, store, None).catch_up()
    assert await by_words(index, "boat") == {loose[1].memory_id}


async def test_threads_of_the_same_name_in_two_scopes_stay_apart(index: EdgeMemoryIndex) -> None:
    store = DictMemoryStore()
    mine, theirs = record("I like tea.", 0), record("I own a boat.", 1, scope="b")
    store.add(mine, theirs)
    await Indexer(index, store, None).catch_up()
    assert await by_words(index, "boat") == set()
    assert await by_words(index, "boat", "b") == {theirs.memory_id}


async def test_each_memory_is_embedded_once(index: EdgeMemoryIndex) -> None:
    store, embedder = DictMemoryStore(), HashEmbedder()
    indexer = Indexer(index, store, embedder, batch=3)
    talk = [record(f"message {place}", place) for place in range(10)]
    store.add(*talk)
    await indexer.catch_up()
    store.add(record("one more", 10))
    await indexer.catch_up()
    assert len(embedder.texts) == len(set(embedder.texts)) == 11


async def test_a_changed_text_is_embedded_again(index: EdgeMemoryIndex) -> None:
    store, embedder = DictMemoryStore(), HashEmbedder()
    indexer = Indexer(index, store, embedder)
    old = record("Lisbon")
    store.add(old)
    await indexer.catch_up()
    store.add(replace(old, text="Porto"))
    await indexer.catch_up()
    assert embedder.texts == ["Ann: Lisbon", "Ann: Porto"]
    assert await by_words(index, "Lisbon") == set()


async def test_without_an_embedder_words_alone_are_indexed(index: EdgeMemoryIndex) -> None:
    store = DictMemoryStore()
    store.add(record("Lisbon"))
    assert await Indexer(index, store, None).catch_up() == 1
    assert len(await by_words(index, "Lisbon")) == 1
    assert await by_meaning(index, "Lisbon") == []


async def test_the_expiry_goes_into_the_index(index: EdgeMemoryIndex) -> None:
    store = DictMemoryStore()
    until = datetime.now(UTC) + timedelta(hours=1)
    store.add(record("Lisbon", expires_at=until), record("Lisbon", expires_at=until - timedelta(hours=2)))
    await Indexer(index, store, None).catch_up()
    assert await index.count() == 1
    query = query_vector("Lisbon")
    assert len(await index.search("a", query, None, limit=5, now=until.timestamp() - 1)) == 1
    assert await index.search("a", query, None, limit=5, now=until.timestamp()) == []


class Crash(Exception):
    """Stands for the end of the process."""


class CrashingIndex:
    """Passes calls on to an index and crashes before or after the n-th write."""

    def __init__(self, index: MemoryIndex, at: int) -> None:
        self._index = index
        self._left = at

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._index, name)
        if name not in {"upsert", "delete", "flush", "clear"}:
            return method

        async def call(*arguments: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                raise Crash
            result = await method(*arguments)
            self._left -= 1
            if self._left == 0:
                raise Crash
            return result

        return call


@pytest.mark.parametrize("at", range(1, 13))
async def test_a_crash_anywhere_only_repeats_work(index: EdgeMemoryIndex, at: int) -> None:
    store = DictMemoryStore()
    talk = [record(f"message {place}", place) for place in range(5)]
    store.add(*talk)
    store.forget(talk[2].memory_id)
    with pytest.raises(Crash):
        await Indexer(CrashingIndex(index, at), store, None, batch=2).reindex()
    # A new process takes over.
    await Indexer(index, store, None, batch=2).catch_up()
    assert await by_words(index, "message") == {item.memory_id for item in talk if item is not talk[2]}
    assert await store.pending("a", "edge-v1") == 0


async def test_the_cursor_never_moves_before_the_flush(index: EdgeMemoryIndex) -> None:
    order: list[str] = []

    class Store(DictMemoryStore):
        async def save_cursor(self, index: str, cursor: ChangeCursor) -> None:
            order.append("cursor")
            await super().save_cursor(index, cursor)

    class Index(CrashingIndex):
        def __getattr__(self, name: str) -> Any:
            if name in {"upsert", "flush"}:
                order.append(name)
            return super().__getattr__(name)

    store = Store()
    store.add(record("one"))
    await Indexer(Index(index, 0), store, None).catch_up()
    assert order == ["upsert", "flush", "cursor"]


async def test_a_lost_index_is_filled_again(tmp_path: Path) -> None:
    store = DictMemoryStore()
    store.add(record("one"), record("two", 1))
    for name, taken in (("first", 2), ("second", 2), ("second", 0)):
        index = EdgeMemoryIndex(tmp_path / name)
        await index.open()
        assert await Indexer(index, store, None).catch_up() == taken
        assert await index.count() == 2
        await index.close()


async def test_reindex_starts_from_nothing_and_reports_progress(index: EdgeMemoryIndex) -> None:
    store = DictMemoryStore()
    store.add(*(record(f"message {place}", place) for place in range(7)))
    indexer = Indexer(index, store, None, batch=3)
    await indexer.catch_up()
    [stale] = await by_words(index, "8 May 2024") - set(ids(store.live())) or [uuid4()]
    steps: list[tuple[int, int]] = []
    assert await indexer.reindex(lambda done, total: steps.append((done, total))) == 7
    assert steps == [(0, 7), (3, 7), (6, 7), (7, 7)]
    assert await index.count() == 7
    assert stale not in await by_words(index, "message")


async def test_run_follows_what_is_notified_and_stops(index: EdgeMemoryIndex) -> None:
    taken = asyncio.Event()

    class Store(DictMemoryStore):
        async def save_cursor(self, index: str, cursor: ChangeCursor) -> None:
            await super().save_cursor(index, cursor)
            taken.set()

    store = Store()
    stop = asyncio.Event()
    indexer = Indexer(index, store, None, poll_s=3600)
    running = asyncio.create_task(indexer.run(stop))
    for text in ("Lisbon", "Porto"):
        store.add(record(text))
        indexer.notify()
        await asyncio.wait_for(taken.wait(), 10)
        taken.clear()
        assert len(await by_words(index, text)) >= 1
    stop.set()
    await asyncio.wait_for(running, 10)


async def test_run_outlives_a_ledger_that_is_away(index: EdgeMemoryIndex) -> None:
    failures = 2
    done = asyncio.Event()

    class Store(DictMemoryStore):
        async def changes(self, after: ChangeCursor, limit: int) -> list[MemoryChange]:
            nonlocal failures
            if failures:
                failures -= 1
                raise LedgerUnavailable("away")
            return await super().changes(after, limit)

        async def save_cursor(self, index: str, cursor: ChangeCursor) -> None:
            await super().save_cursor(index, cursor)
            done.set()

    store = Store()
    store.add(record("Lisbon"))
    stop = asyncio.Event()
    running = asyncio.create_task(Indexer(index, store, None, poll_s=0.001).run(stop))
    await asyncio.wait_for(done.wait(), 10)
    stop.set()
    await asyncio.wait_for(running, 10)
    assert len(await by_words(index, "Lisbon")) == 1


async def test_what_was_forgotten_leaves_even_if_embedding_fails(index: EdgeMemoryIndex) -> None:
    class Broken(HashEmbedder):
        async def embed(self, texts: Sequence[str], *, bulk: bool = False) -> list[Vector]:
            raise OSError("no memory")

    store = DictMemoryStore()
    gone, stays = record("Lisbon", 0), record("Lovely!", 1)
    store.add(gone, stays)
    await Indexer(index, store, HashEmbedder()).catch_up()
    store.forget(gone.memory_id)
    with pytest.raises(OSError, match="no memory"):
        await Indexer(index, store, Broken()).catch_up()
    assert gone.memory_id not in await by_words(index, "Lisbon Lovely")
    assert await store.pending("a", "edge-v1") == 1
