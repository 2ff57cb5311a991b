"""What every `MemoryIndex` does. A backend joins by one entry in `BACKENDS`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol
from uuid import UUID, uuid4

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from personae_runtime.config import QdrantSettings
from personae_runtime.errors import InvalidArgument
from personae_runtime.memory.edge import EdgeMemoryIndex
from personae_runtime.memory.index import DENSE_DIM, IndexHit, MemoryIndex, MemoryPoint, PointKind, SparseVector
from personae_runtime.memory.qdrant import QdrantMemoryIndex
from personae_runtime.memory.qdrant_layout import ServerLayout
from tests.qdrant_server import Server

NOW = 1_700_000_000.0


class Backend(Protocol):
    """Makes indexes of one kind; a directory names what is stored."""

    def __call__(self, directory: Path) -> MemoryIndex: ...

    async def prepare(self, directory: Path) -> None:
        """What has to be there before an index is opened for the first time."""

    def code(self, directory: Path) -> str:
        """Python that makes the same index in another process, as `index`."""


class Edge:
    def __call__(self, directory: Path) -> MemoryIndex:
        return EdgeMemoryIndex(directory)

    async def prepare(self, directory: Path) -> None:
        pass

    def code(self, directory: Path) -> str:
        return f"""
from pathlib import Path
from personae_runtime.memory.edge import EdgeMemoryIndex
index = EdgeMemoryIndex(Path({str(directory)!r}))
"""


class Compacting(EdgeMemoryIndex):
    """Makes what is written compact at once: opened anew after each write, as after a restart."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, compact_from_kb=1)

    async def upsert(self, points: Sequence[MemoryPoint]) -> None:
        await super().upsert(points)
        await self._reopen()

    async def delete(self, memory_ids: Sequence[UUID]) -> None:
        await super().delete(memory_ids)
        await self._reopen()

    async def _reopen(self) -> None:
        await self.close()
        await self.open()


class EdgeCompacted(Edge):
    def __call__(self, directory: Path) -> MemoryIndex:
        return Compacting(directory)


class Qdrant:
    """A server, asked over gRPC; a collection of its own for each directory."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def _given(self, directory: Path) -> dict[str, object]:
        collection = f"m{blake2b(str(directory).encode(), digest_size=8).hexdigest()}"
        return {"url": self._server.url, "collection": collection, "timeout_s": 30, "search_timeout_s": 30}

    def __call__(self, directory: Path) -> MemoryIndex:
        return QdrantMemoryIndex(QdrantSettings.model_validate(self._given(directory)))

    async def prepare(self, directory: Path) -> None:
        async with ServerLayout(QdrantSettings.model_validate(self._given(directory))) as layout:
            await layout.init()

    def code(self, directory: Path) -> str:
        return f"""
from personae_runtime.config import QdrantSettings
from personae_runtime.memory.qdrant import QdrantMemoryIndex
index = QdrantMemoryIndex(QdrantSettings.model_validate({self._given(directory)!r}))
"""


BACKENDS: dict[str, Callable[[pytest.FixtureRequest], Backend]] = {
    "edge": lambda _: Edge(),
    "edge-compacted": lambda _: EdgeCompacted(),
    "qdrant": lambda request: Qdrant(request.getfixturevalue("qdrant_server")),
}


@pytest.fixture(params=BACKENDS.values(), ids=BACKENDS.keys(), scope="module")
def backend(request: pytest.FixtureRequest) -> Backend:
    made: Backend = request.param(request)
    return made


@pytest.fixture
async def index(backend: Backend, tmp_path: Path) -> AsyncIterator[MemoryIndex]:
    async with opened(backend, tmp_path) as index:
        yield index


@asynccontextmanager
async def opened(backend: Backend, directory: Path) -> AsyncIterator[MemoryIndex]:
    await backend.prepare(directory)
    index = backend(directory)
    await index.open()
    try:
        yield index
    finally:
        await index.close()


def axis(*places: int) -> list[float]:
    """A unit vector between the given axes."""
    vector = np.zeros(DENSE_DIM)
    vector[list(places)] = 1
    return [float(value) for value in vector / np.linalg.norm(vector)]


def bag(*indices: int) -> SparseVector:
    return SparseVector(indices, (1.0,) * len(indices))


def point(
    sparse: SparseVector | None = None,
    dense: Sequence[float] | None = None,
    *,
    scope: str = "a",
    memory_id: UUID | None = None,
    expires_at: float | None = None,
    kind: PointKind = PointKind.EPISODE,
    valid: tuple[float | None, float | None] = (None, None),
) -> MemoryPoint:
    return MemoryPoint(memory_id or uuid4(), scope, sparse or bag(), dense, expires_at, kind, *valid)


async def ids(
    index: MemoryIndex,
    sparse: SparseVector | None,
    dense: Sequence[float] | None,
    *,
    scope: str = "a",
    limit: int = 10,
    now: float = NOW,
    kind: PointKind | None = None,
    during: tuple[float, float] | None = None,
) -> list[UUID]:
    """By rank: those of the lexical arm, then what only the dense one found."""
    hits = await index.search(scope, sparse, dense, limit=limit, now=now, kind=kind, during=during)
    return [hit.memory_id for hit in sorted(hits, key=_ranks)]


def _ranks(hit: IndexHit) -> tuple[float, ...]:
    return tuple(float("inf") if place is None else place.rank for place in (hit.lexical, hit.dense))


def test_is_a_memory_index(backend: Backend, tmp_path: Path) -> None:
    assert isinstance(backend(tmp_path), MemoryIndex)


async def test_a_new_index_is_empty(index: MemoryIndex) -> None:
    assert await index.count() == 0
    assert await ids(index, bag(1), axis(0)) == []


async def test_each_arm_finds_alone_what_it_knows(index: MemoryIndex) -> None:
    words, meaning = point(bag(1), axis(5)), point(bag(2), axis(0))
    await index.upsert([words, meaning])
    assert await ids(index, bag(1), None) == [words.memory_id]
    assert (await ids(index, None, axis(0)))[0] == meaning.memory_id


async def test_without_a_query_nothing_is_found(index: MemoryIndex) -> None:
    await index.upsert([point(bag(1), axis(0))])
    assert await ids(index, None, None) == []


async def test_a_query_of_unknown_words_finds_nothing_and_an_empty_one_neither(index: MemoryIndex) -> None:
    await index.upsert([point(bag(1), axis(0))])
    assert await ids(index, bag(99), None) == []
    assert await ids(index, bag(), None) == []


async def test_a_hit_has_its_place_in_each_arm_that_found_it(index: MemoryIndex) -> None:
    both, words, meaning = point(bag(1, 2), axis(0)), point(bag(1, 7, 8)), point(bag(9), axis(0, 1))
    await index.upsert([words, meaning, both])
    hits = {hit.memory_id: hit for hit in await index.search("a", bag(1, 2), axis(0), limit=10, now=NOW)}
    assert hits.keys() == {both.memory_id, words.memory_id, meaning.memory_id}
    ranks = {
        memory_id: [None if place is None else place.rank for place in (hit.lexical, hit.dense)]
        for memory_id, hit in hits.items()
    }
    assert ranks == {both.memory_id: [1, 1], words.memory_id: [2, None], meaning.memory_id: [None, 2]}
    found = hits[both.memory_id].dense
    assert found is not None
    assert found.score == pytest.approx(1.0, abs=1e-3)


async def test_a_point_without_a_dense_vector_is_found_by_words_in_a_hybrid_query(index: MemoryIndex) -> None:
    bare = point(bag(1), None)
    await index.upsert([bare, point(bag(2), axis(0))])
    assert bare.memory_id in await ids(index, bag(1), axis(0))
    assert bare.memory_id not in await ids(index, None, axis(0))


async def test_rare_words_count_more_than_common_ones(index: MemoryIndex) -> None:
    rare = point(bag(1))
    await index.upsert([*(point(bag(2)) for _ in range(9)), rare])
    assert (await ids(index, bag(1, 2), None))[0] == rare.memory_id


async def test_rarity_is_counted_within_the_scope(index: MemoryIndex) -> None:
    # Word 1 is rare in scope a, though everyone in scope b uses it.
    rare = point(bag(1))
    await index.upsert([rare, *(point(bag(2)) for _ in range(5))])
    await index.upsert([point(bag(1), scope="b") for _ in range(50)])
    assert (await ids(index, bag(1, 2), None))[0] == rare.memory_id


async def test_term_weights_order_the_lexical_arm(index: MemoryIndex) -> None:
    points = [point(SparseVector((1,), (weight,))) for weight in (0.5, 2.0, 1.0)]
    await index.upsert(points)
    assert await ids(index, bag(1), None) == [points[1].memory_id, points[2].memory_id, points[0].memory_id]


async def test_in_each_arm_scores_fall_and_the_limit_holds(index: MemoryIndex) -> None:
    await index.upsert([point(bag(1, 10 + i), axis(0, 10 + i)) for i in range(20)])
    for sparse, dense in ((bag(1), None), (None, axis(0)), (bag(1), axis(0))):
        hits = await index.search("a", sparse, dense, limit=7, now=NOW)
        assert len(hits) == len({hit.memory_id for hit in hits})
        for vector, places in ((sparse, [hit.lexical for hit in hits]), (dense, [hit.dense for hit in hits])):
            by_rank = sorted((place for place in places if place is not None), key=lambda place: place.rank)
            assert [place.rank for place in by_rank] == ([] if vector is None else list(range(1, 8)))
            scores = [place.score for place in by_rank]
            assert scores == sorted(scores, reverse=True)
    assert await ids(index, bag(1), axis(0), limit=0) == []


async def test_points_of_one_kind_can_be_asked_for(index: MemoryIndex) -> None:
    said, fact = point(bag(1), axis(0)), point(bag(1), axis(0), kind=PointKind.FACT)
    await index.upsert([said, fact])
    for sparse, dense in ((bag(1), None), (None, axis(0)), (bag(1), axis(0))):
        assert set(await ids(index, sparse, dense)) == {said.memory_id, fact.memory_id}
        assert await ids(index, sparse, dense, kind=PointKind.FACT) == [fact.memory_id]
        assert await ids(index, sparse, dense, kind=PointKind.EPISODE) == [said.memory_id]


@pytest.mark.parametrize(
    ("valid", "during", "holds"),
    [
        ((None, None), (NOW, NOW), True),
        ((NOW, None), (NOW, NOW), True),
        ((NOW + 1, None), (NOW, NOW), False),
        ((None, NOW), (NOW, NOW), False),
        ((None, NOW), (NOW - 1, NOW), True),
        ((NOW, NOW + 9), (NOW - 5, NOW - 1), False),
        ((NOW, NOW + 9), (NOW + 5, NOW + 50), True),
        ((NOW, NOW + 9), (NOW - 5, NOW + 50), True),
        ((NOW, NOW + 9), (NOW + 9, NOW + 50), False),
    ],
)
async def test_points_that_hold_at_a_time_can_be_asked_for(
    index: MemoryIndex, valid: tuple[float | None, float | None], during: tuple[float, float], holds: bool
) -> None:
    await index.upsert([point(bag(1), axis(0), valid=valid)])
    for sparse, dense in ((bag(1), None), (None, axis(0)), (bag(1), axis(0))):
        assert bool(await ids(index, sparse, dense, during=during)) is holds
        assert await ids(index, sparse, dense)


async def test_the_same_query_gives_the_same_order(index: MemoryIndex) -> None:
    await index.upsert([point(bag(1), axis(0)) for _ in range(10)])
    first = await ids(index, bag(1), axis(0))
    assert first == await ids(index, bag(1), axis(0))


async def test_an_upsert_replaces_everything_of_a_point(index: MemoryIndex) -> None:
    old = point(bag(1), axis(0), expires_at=NOW - 1, kind=PointKind.FACT)
    await index.upsert([old])
    await index.upsert([point(bag(2), None, memory_id=old.memory_id)])
    assert await index.count() == await index.count("a") == 1
    assert await ids(index, bag(1), axis(0)) == []
    assert await ids(index, bag(2), None, kind=PointKind.EPISODE) == [old.memory_id]
    assert await ids(index, None, axis(0)) == []


async def test_the_last_of_a_repeated_id_in_one_call_wins(index: MemoryIndex) -> None:
    first = point(bag(1))
    await index.upsert([first, point(bag(2), memory_id=first.memory_id)])
    assert await index.count() == 1
    assert await ids(index, bag(2), None) == [first.memory_id]


async def test_deleted_points_are_not_found_and_unknown_ids_do_no_harm(index: MemoryIndex) -> None:
    gone, stays = point(bag(1), axis(0)), point(bag(1), axis(0))
    await index.upsert([gone, stays])
    await index.delete([gone.memory_id, uuid4()])
    await index.delete([gone.memory_id])
    await index.delete([])
    for sparse, dense in ((bag(1), None), (None, axis(0)), (bag(1), axis(0))):
        assert await ids(index, sparse, dense) == [stays.memory_id]
    assert await index.count() == 1


async def test_a_scope_is_deleted_whole_and_no_other_with_it(index: MemoryIndex) -> None:
    gone = [point(bag(1), axis(0), scope="gone") for _ in range(3)]
    stays = point(bag(1), axis(0), scope="stays")
    await index.upsert([*gone, stays])
    await index.delete_scope("gone")
    await index.delete_scope("nobody")
    assert await index.count() == await index.count("stays") == 1
    assert await index.count("gone") == 0


async def test_counts_of_some_points(index: MemoryIndex) -> None:
    one, other = point(bag(1), axis(0), scope="a"), point(bag(1), axis(0), scope="b")
    await index.upsert([one, other])
    assert await index.count("a", [one.memory_id, other.memory_id, uuid4()]) == 1
    assert await index.count(None, [one.memory_id, other.memory_id]) == 2
    assert await index.count("a", [other.memory_id]) == 0
    assert await index.count("a", []) == 0


async def test_expired_points_are_found_by_no_arm(index: MemoryIndex) -> None:
    expired = [point(bag(1), axis(0), expires_at=NOW - 1), point(bag(1), axis(0), expires_at=NOW)]
    alive = [point(bag(1), axis(0), expires_at=NOW + 1), point(bag(1), axis(0))]
    await index.upsert([*expired, *alive])
    wanted = {item.memory_id for item in alive}
    for sparse, dense in ((bag(1), None), (None, axis(0)), (bag(1), axis(0))):
        assert set(await ids(index, sparse, dense)) == wanted
        assert set(await ids(index, sparse, dense, now=NOW + 1)) == {alive[1].memory_id}


async def test_expired_points_take_no_place_among_the_candidates(index: MemoryIndex) -> None:
    alive = point(SparseVector((1,), (0.01,)), axis(0, 1))
    await index.upsert([alive, *(point(bag(1), axis(0), expires_at=NOW - 1) for _ in range(300))])
    assert await ids(index, bag(1), axis(0), limit=1) == [alive.memory_id]


async def test_counts_by_scope_and_in_all(index: MemoryIndex) -> None:
    await index.upsert([point(bag(1)), point(bag(1)), point(bag(1), scope="b")])
    assert (await index.count("a"), await index.count("b"), await index.count("c"), await index.count()) == (2, 1, 0, 3)


async def test_clear_leaves_an_empty_index_that_works(index: MemoryIndex) -> None:
    await index.upsert([point(bag(1), axis(0))])
    await index.clear()
    assert await index.count() == 0
    await index.upsert([point(bag(1), axis(0))])
    assert len(await ids(index, bag(1), axis(0))) == 1


@pytest.mark.parametrize(
    "bad",
    [
        point(bag(1, 1)),
        point(SparseVector((1, 2), (1.0,))),
        point(SparseVector((1,), (float("nan"),))),
        point(SparseVector((2**32,), (1.0,))),
        point(bag(1), [1.0]),
        point(bag(1), [float("inf")] * DENSE_DIM),
        point(bag(1), expires_at=float("nan")),
        point(bag(1), valid=(None, float("inf"))),
    ],
    ids=["repeated", "ragged", "nan", "too large", "short", "infinite", "no time", "no end"],
)
async def test_a_malformed_point_is_refused_and_nothing_of_its_batch_written(
    index: MemoryIndex, bad: MemoryPoint
) -> None:
    with pytest.raises(InvalidArgument):
        await index.upsert([point(bag(1)), bad])
    assert await index.count() == 0


async def test_what_was_closed_is_there_again_when_opened(backend: Backend, tmp_path: Path) -> None:
    kept, gone = point(bag(1), axis(0), expires_at=NOW + 5), point(bag(1), axis(0))
    async with opened(backend, tmp_path) as index:
        await index.upsert([kept, gone])
        await index.delete([gone.memory_id])
        await index.close()
        await index.close()
    async with opened(backend, tmp_path) as index:
        for sparse, dense in ((bag(1), None), (None, axis(0)), (bag(1), axis(0))):
            assert await ids(index, sparse, dense) == [kept.memory_id]
            assert await ids(index, sparse, dense, now=NOW + 5) == []


async def test_what_was_cleared_stays_away_when_opened_again(backend: Backend, tmp_path: Path) -> None:
    async with opened(backend, tmp_path) as index:
        await index.upsert([point(bag(1))])
        await index.clear()
    async with opened(backend, tmp_path) as index:
        assert await index.count() == 0


@pytest.mark.parametrize("end", ["writing", "flushing"])
async def test_what_was_flushed_survives_a_sigkill(backend: Backend, tmp_path: Path, end: str) -> None:
    """The child flushes 200 points and a deletion, says so, and is killed while it goes on."""
    await backend.prepare(tmp_path)
    code = backend.code(tmp_path) + textwrap.dedent(
        """
        import asyncio, sys
        from uuid import UUID
        from personae_runtime.memory.index import DENSE_DIM, MemoryPoint, SparseVector

        def points(first, count):
            for i in range(first, first + count):
                dense = [0.0] * DENSE_DIM
                dense[i % DENSE_DIM] = 1.0
                yield MemoryPoint(UUID(int=i), "a", SparseVector((1, 1000 + i), (1.0, 1.0)), dense)

        async def main():
            await index.open()
            await index.upsert(list(points(1, 200)))
            await index.delete([UUID(int=200)])
            await index.flush()
            print("flushed", flush=True)
            first = 1001
            while True:
                await index.upsert(list(points(first, 20)))
                first += 20
                if sys.argv[1] == "flushing":
                    await index.flush()
                if first % 100 == 1:
                    print(first, flush=True)

        asyncio.run(main())
        """
    )
    child = _python(code, end)
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == b"flushed\n"
        child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    async with opened(backend, tmp_path) as index:
        for place in (1, 100, 199):
            assert await ids(index, bag(1000 + place), None, limit=1) == [UUID(int=place)]
            assert (await ids(index, None, axis(place), limit=1000)).count(UUID(int=place)) == 1
        assert await ids(index, bag(1200), None) == []
        assert await index.count() >= 199
        await index.upsert([point(bag(7))])
        await index.flush()


SCOPES = st.sampled_from(["a", "b", "ab", "", "a ", "A", "é", "e\u0301", "*", "a/b"])
POINTS = st.lists(
    st.tuples(
        SCOPES,
        st.sets(st.integers(0, 5), max_size=3),
        st.none() | st.integers(0, 3),
        st.none() | st.sampled_from([NOW - 1, NOW, NOW + 1]),
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(written=POINTS, scope=SCOPES, words=st.none() | st.sets(st.integers(0, 5)), near=st.none() | st.integers(0, 3))
async def test_a_query_returns_exactly_the_living_matches_of_its_own_scope(
    backend: Backend,
    written: list[tuple[str, set[int], int | None, float | None]],
    scope: str,
    words: set[int] | None,
    near: int | None,
) -> None:
    """Whatever points lie in whatever scopes: no other scope's, no expired one, and none missing."""
    made = [
        point(bag(*sparse), None if dense is None else axis(dense), scope=own, expires_at=expires_at)
        for own, sparse, dense, expires_at in written
    ]
    with TemporaryDirectory() as directory:
        async with opened(backend, Path(directory)) as index:
            await index.upsert(made)
            found = await ids(
                index,
                None if words is None else bag(*words),
                None if near is None else axis(near),
                scope=scope,
                limit=100,
            )
            assert await index.count(scope) == sum(item.scope == scope for item in made)
    alive = [item for item in made if item.scope == scope and (item.expires_at is None or item.expires_at > NOW)]
    expected = {
        item.memory_id
        for item in alive
        if (words is not None and words.intersection(item.sparse.indices)) or (near is not None and item.dense)
    }
    assert set(found) == expected
    assert len(found) == len(expected)


def _python(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, stdout=subprocess.PIPE)
