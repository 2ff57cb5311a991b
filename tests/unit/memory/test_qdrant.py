"""What the server backend does beyond the contract: its layout, and a server that is away, late or refuses."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from pydantic import ValidationError
from qdrant_client import AsyncQdrantClient, models

from personae_runtime.config import QdrantSettings, load_settings
from personae_runtime.errors import ConfigError, FailedPrecondition, Unavailable
from personae_runtime.evals.store import DictMemoryStore
from personae_runtime.memory import qdrant, qdrant_layout
from personae_runtime.memory.factory import Part, build_index, cursor_name
from personae_runtime.memory.index import DENSE_DIM, SCOPE, MemoryPoint, SparseVector
from personae_runtime.memory.indexer import Indexer
from personae_runtime.memory.qdrant import BATCH, IndexLayoutWrong, IndexMissing, QdrantMemoryIndex, shard_key
from personae_runtime.memory.qdrant_layout import ServerLayout
from personae_serve.stores import Stores, rebuild_memory
from tests.credentials import make_certificate
from tests.qdrant_server import Server, running
from tests.unit.memory.conftest import record

WORD = SparseVector((1,), (1.0,))
NOW = 1_700_000_000.0


def point(scope: str = "a", memory_id: UUID | None = None) -> MemoryPoint:
    return MemoryPoint(memory_id or uuid4(), scope, WORD, [1.0, *[0.0] * (DENSE_DIM - 1)])


def settings_of(server: Server, **changed: Any) -> QdrantSettings:
    """Patient settings, as the machine may be busy, with a collection of the test's own unless it names one."""
    given = {"url": server.url, "collection": f"m{uuid4().hex}", "timeout_s": 30, "search_timeout_s": 30, **changed}
    return QdrantSettings.model_validate(given)


@asynccontextmanager
async def opened(settings: QdrantSettings) -> AsyncIterator[QdrantMemoryIndex]:
    async with ServerLayout(settings) as layout:
        await layout.init()
    index = QdrantMemoryIndex(settings)
    await index.open()
    try:
        yield index
    finally:
        await index.close()


def client_of(settings: QdrantSettings) -> AsyncQdrantClient:
    """A client that says what the index never would."""
    port = settings.address[2]
    return AsyncQdrantClient(url="http://127.0.0.1", grpc_port=port, prefer_grpc=True, check_compatibility=False)


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One with a key, to be killed and stopped."""
    with running(tmp_path_factory.mktemp("own-qdrant"), key="right") as server:
        yield server


async def search(index: QdrantMemoryIndex, scope: str = "a") -> set[UUID]:
    found = await index.search(scope, WORD, None, limit=100, now=NOW)
    return {hit.memory_id for hit in found}


# -- the layout ---------------------------------------------------------------


async def test_init_makes_what_check_wants_once(qdrant_server: Server) -> None:
    settings = settings_of(qdrant_server)
    async with ServerLayout(settings) as layout:
        with pytest.raises(IndexMissing, match="personae memory init"):
            await layout.differences()
        assert await layout.init() == f"{settings.collection}_v2_1"
        assert await layout.init() is None
        assert await layout.differences() == []
        assert await layout.update() == []


IN_PLACE: list[tuple[dict[str, Any], set[str]]] = [
    ({"payload_m": 32}, {"hnsw.payload_m"}),
    ({"quantization": "none"}, {"quantization.type", "quantization.memory"}),
]
ANEW: list[tuple[dict[str, Any], set[str]]] = [
    ({"replication_factor": 2}, {"replication_factor"}),
    ({"on_disk": False}, {"lexical.memory"}),
    ({"shard_keys": 2, "payload_m": 32}, {"shard_keys", "sharding_method"}),
]


def named(keys: Iterable[str]) -> str:
    """An id that is the same in every process: that of a set as it prints depends on the hash seed."""
    return "+".join(sorted(keys))


@pytest.mark.parametrize(("changed", "keys"), IN_PLACE, ids=named)
async def test_what_can_be_changed_in_place_is(qdrant_server: Server, changed: dict[str, Any], keys: set[str]) -> None:
    settings = settings_of(qdrant_server)
    async with opened(settings) as index:
        await index.upsert([point()])
        async with ServerLayout(settings.model_copy(update=changed)) as layout:
            assert {one.key for one in await layout.differences()} == keys
            assert await layout.update() == []
            assert await layout.differences() == []
        assert len(await search(index)) == 1


@pytest.mark.parametrize(("changed", "keys"), ANEW, ids=named)
async def test_what_takes_a_new_collection_is_told_and_nothing_changed(
    qdrant_server: Server, changed: dict[str, Any], keys: set[str]
) -> None:
    settings = settings_of(qdrant_server)
    async with ServerLayout(settings) as layout:
        await layout.init()
    async with ServerLayout(settings.model_copy(update=changed)) as layout:
        before = await layout.differences()
        assert {one.key for one in await layout.update()} == keys
        assert keys <= {one.key for one in before}
        assert await layout.differences() == before


async def test_a_payload_index_that_is_gone_is_told_and_made_again(qdrant_server: Server) -> None:
    settings = settings_of(qdrant_server)
    async with ServerLayout(settings) as layout:
        await layout.init()
        client = client_of(settings)
        await client.delete_payload_index(settings.collection, SCOPE)
        assert [(one.key, one.found) for one in await layout.differences()] == [("index.scope", None)]
        assert await layout.update() == []
        assert await layout.differences() == []
        await client.close()


async def test_strict_mode_refuses_what_would_read_everything(qdrant_server: Server) -> None:
    settings = settings_of(qdrant_server)
    async with opened(settings):
        client = client_of(settings)
        unindexed = models.Filter(must=[models.FieldCondition(key="text", match=models.MatchValue(value="x"))])
        with pytest.raises(Exception, match="Index required"):
            await client.count(settings.collection, unindexed)
        with pytest.raises(Exception, match="Limit"):
            await client.query_batch_points(
                settings.collection,
                [models.QueryRequest(query=[1.0] * DENSE_DIM, using="dense", limit=qdrant.MOST_HITS + 1)],
            )
        await client.close()


async def test_an_index_does_not_open_what_is_not_there_or_laid_out_otherwise(
    qdrant_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(qdrant_server)
    index = QdrantMemoryIndex(settings)
    with pytest.raises(IndexMissing, match="personae memory init"):
        await index.open()
    with pytest.raises(FailedPrecondition):
        await index.count()
    async with ServerLayout(settings) as layout:
        await layout.init()
    with pytest.raises(IndexLayoutWrong, match="personae memory migrate"):
        await QdrantMemoryIndex(settings.model_copy(update={"shard_keys": 3})).open()
    monkeypatch.setattr(qdrant, "LAYOUT", "3")
    with pytest.raises(IndexLayoutWrong, match="personae memory migrate"):
        await index.open()


async def test_a_collection_in_the_place_of_the_alias_is_left_alone(qdrant_server: Server) -> None:
    settings = settings_of(qdrant_server)
    async with ServerLayout(settings) as layout:
        name = await layout.create()
    async with ServerLayout(settings.model_copy(update={"collection": name})) as layout:
        with pytest.raises(ConfigError, match="has to be an alias"):
            await layout.init()


async def test_a_rebuild_fills_a_new_collection_while_the_old_one_answers(
    qdrant_server: Server, tmp_path: Path, no_personae_environment: None
) -> None:
    given = settings_of(qdrant_server).model_dump()
    store = DictMemoryStore()
    memories = [record(f"Memory {number} of Lisbon", number) for number in range(5)]
    store.add(*memories)
    passages = DictMemoryStore()
    stores = cast(Stores, SimpleNamespace(of=lambda part: store if part is Part.MEMORIES else passages))
    steps: list[tuple[int, int]] = []

    async def rebuild(**changed: Any) -> int:
        memory = {"dense": False, "qdrant": {**given, **changed}}
        async with AsyncExitStack() as stack:
            settings = load_settings(data_dir=tmp_path, memory=memory)
            return await rebuild_memory(settings, stores, stack, lambda *step: steps.append(step))

    assert await rebuild() == 5
    assert steps[0] == (0, 5)
    assert steps[-1] == (5, 5)
    settings = QdrantSettings.model_validate(given)
    assert await store.pending_total(cursor_name(load_settings(memory={"qdrant": given}).memory, Part.MEMORIES)) == 0
    async with opened(settings) as index, ServerLayout(settings) as layout:
        assert await layout.target() == f"{settings.collection}_v2_1"
        assert await index.count() == 5
        assert not await index.being_rebuilt()
        leftover = await layout.create()
        store.forget(memories[0].memory_id)
        # The copy may have been filled before that was forgotten.
        with pytest.raises(Unavailable) as late:
            await Indexer(index, store, None, "another").erase(memories[0].scope, [memories[0].memory_id])
        assert late.value.reason == "INDEX_BEHIND"
        assert await rebuild(shard_number=2) == 5
        assert not await index.being_rebuilt()
        # The index that was open all the time asks the new one.
        assert await index.count() == 4
        assert await layout.target() == f"{settings.collection}_v2_3"
        with pytest.raises(IndexMissing):
            await QdrantMemoryIndex(settings, collection=leftover).open()
        with pytest.raises(IndexMissing):
            await QdrantMemoryIndex(settings, collection=f"{settings.collection}_v2_1").open()
    async with ServerLayout(settings.model_copy(update={"shard_number": 2})) as layout:
        assert await layout.differences() == []


# -- shard keys ---------------------------------------------------------------


async def test_with_shard_keys_a_scope_lies_under_one_of_them(qdrant_server: Server) -> None:
    settings = settings_of(qdrant_server, shard_keys=3)
    scopes = [f"scope-{number}" for number in range(12)]
    keys = {scope: shard_key(scope, 3) for scope in scopes}
    assert len(set(keys.values())) == 3
    made = [point(scope) for scope in scopes]
    async with opened(settings) as index:
        await index.upsert(made)
        for item in made:
            assert await search(index, item.scope) == {item.memory_id}
            assert await index.count(item.scope) == 1
        assert await index.count() == 12
        client = client_of(settings)
        for key in set(keys.values()):
            counted = await client.count(settings.collection, shard_key_selector=key)
            assert counted.count == list(keys.values()).count(key)
        await client.close()
        await index.delete([made[0].memory_id, made[1].memory_id])
        assert await index.count() == 10
        await index.clear()
        assert await index.count() == 0


# -- the server ---------------------------------------------------------------


async def test_more_points_than_one_write_may_have(qdrant_server: Server) -> None:
    async with opened(settings_of(qdrant_server)) as index:
        made = [point() for _ in range(BATCH + 1)]
        await index.upsert(made)
        assert await index.count() == BATCH + 1
        await index.delete([item.memory_id for item in made])
        assert await index.count() == 0


async def test_what_was_acknowledged_survives_the_death_of_the_server(own_server: Server) -> None:
    kept, gone = point(), point()
    async with opened(settings_of(own_server, api_key="right")) as index:
        await index.upsert([kept, gone])
        await index.delete([gone.memory_id])
        own_server.kill()
        with pytest.raises(Unavailable) as away:
            await index.count()
        assert (away.value.reason, away.value.retry_after_s) == ("INDEX_UNAVAILABLE", 1.0)
        with pytest.raises(Unavailable):
            await QdrantMemoryIndex(settings_of(own_server, api_key="right")).open()
        own_server.start()
        # The same index goes on, as soon as its channel has tried again.
        async with asyncio.timeout(30):
            while True:
                with suppress(Unavailable):
                    assert await search(index) == {kept.memory_id}
                    break
        assert await index.count() == 1


async def test_a_late_server_is_unavailable_and_then_itself_again(own_server: Server) -> None:
    settings = settings_of(own_server, api_key="right")
    async with opened(settings) as index, opened(settings.model_copy(update={"search_timeout_s": 0.1})) as hasty:
        made = point()
        await index.upsert([made])
        own_server.send(signal.SIGSTOP)
        with pytest.raises(Unavailable, match="does not answer: TimeoutError"):
            await search(hasty)
        own_server.send(signal.SIGCONT)
        assert await search(index) == {made.memory_id}


@pytest.mark.parametrize("key", [None, "wrong"])
async def test_a_wrong_key_is_refused_by_name(own_server: Server, key: str | None) -> None:
    with pytest.raises(ConfigError, match=r"memory\.qdrant\.api_key") as refused:
        await QdrantMemoryIndex(settings_of(own_server, api_key=key)).open()
    assert refused.value.reason == "INDEX_UNAUTHORIZED"
    assert "wrong" not in refused.value.message


async def test_tls_by_an_authority_of_ones_own(tmp_path: Path) -> None:
    authority = make_certificate("authority", authority=True)
    ca, _ = authority.write(tmp_path, "ca")
    make_certificate("qdrant", by=authority).write(tmp_path, "server")
    with running(tmp_path / "server", key="right", tls=tmp_path) as server:
        async with opened(settings_of(server, api_key="right", ca=ca)) as index:
            assert await index.count() == 0
        with pytest.raises(Unavailable):
            await QdrantMemoryIndex(settings_of(server, api_key="right")).open()
        with pytest.raises(ConfigError, match=r"memory\.qdrant\.ca"):
            await QdrantMemoryIndex(settings_of(server, ca=tmp_path / "absent")).open()


async def test_a_write_that_is_not_applied_in_time_is_not_taken_for_done(
    qdrant_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = models.UpdateResult(operation_id=1, status=models.UpdateStatus.WAIT_TIMEOUT)

    async def upsert(*_: Any, **__: Any) -> models.UpdateResult:
        return late

    async with opened(settings_of(qdrant_server)) as index:
        monkeypatch.setattr(AsyncQdrantClient, "upsert", upsert)
        with pytest.raises(Unavailable, match="late with a write"):
            await index.upsert([point()])


async def test_the_test_server_refuses_what_it_does_not_translate(qdrant_server: Server) -> None:
    settings = settings_of(qdrant_server)
    async with opened(settings):
        client = client_of(settings)
        request = models.QueryRequest(query=[1.0] * DENSE_DIM, using="dense", limit=1, offset=3)
        with pytest.raises(Exception, match=r"QueryPoints\.offset is not translated"):
            await client.query_batch_points(settings.collection, [request])
        await client.close()


# -- settings -----------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"url": "http://qdrant:6334"},
        {"url": "qdrant:6334"},
        {"url": "https://qdrant:6334/prefix"},
        {"url": "https://user@qdrant"},
        {"url": "https://qdrant:x"},
        {"replication_factor": 1, "write_consistency_factor": 2},
    ],
)
def test_settings_that_can_not_be_meant_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        QdrantSettings.model_validate(given)


def test_addresses() -> None:
    address = {url: QdrantSettings(url=url, allow_plaintext=True).address for url in ("https://q", "http://[::1]:1")}
    assert address == {"https://q": ("https", "q", 6334), "http://[::1]:1": ("http", "::1", 1)}


def test_the_settings_choose_the_backend_and_the_cursor(tmp_path: Path, no_personae_environment: None) -> None:
    embedded = load_settings(data_dir=tmp_path).memory
    server = load_settings(data_dir=tmp_path, memory={"qdrant": {"url": "https://qdrant"}}).memory
    assert type(build_index(embedded, tmp_path, Part.MEMORIES)).__name__ == "EdgeMemoryIndex"
    assert isinstance(build_index(server, tmp_path, Part.PASSAGES), QdrantMemoryIndex)
    names = [cursor_name(settings, part) for settings in (embedded, server) for part in Part]
    assert names == ["edge-v1", "corpus-v1", "qdrant-v1:personae_memory", "qdrant-v1:personae_memory_corpus"]
    assert qdrant_layout.STRICT_MODE["upsert_max_batchsize"] == BATCH
