"""Indexer and recall on the real ledger; and the dict store of the other tests agrees with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from personae_runtime.evals.store import DictMemoryStore
from personae_runtime.ledger.database import Database
from personae_runtime.ledger.embedded import EmbeddedPostgres
from personae_runtime.ledger.memories import MemoryLedger
from personae_runtime.ledger.vault import Scope, Vault
from personae_runtime.memory.edge import EdgeMemoryIndex
from personae_runtime.memory.indexer import Indexer
from personae_runtime.memory.recall import Recall
from personae_runtime.memory.store import ChangeCursor, MemoryRecord
from tests.unit.memory.conftest import HashEmbedder, ids, record


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    postgres = EmbeddedPostgres(tmp_path / "postgres")
    opened = Database(await postgres.start(), pool_size=4, command_timeout_s=30)
    await opened.open()
    await opened.migrate()
    yield opened
    await opened.close()
    await postgres.stop()


async def write(ledger: MemoryLedger, database: Database, *records: MemoryRecord) -> None:
    async with database.transaction() as connection:
        for item in records:
            await ledger.insert(connection, item)


async def test_remembers_recalls_and_forgets_through_postgresql(database: Database, index: EdgeMemoryIndex) -> None:
    vault = Vault(bytes(32), database)
    ledger, dict_store = MemoryLedger(database, vault), DictMemoryStore()
    mine, theirs = vault.scope_key(Scope("acme", "p", "ann")), vault.scope_key(Scope("acme", "p", "bo"))
    talk = [
        record(text, place, scope=mine)
        for place, text in enumerate(["Where did you go?", "To Lisbon, by train.", "Lovely!", "Indeed."])
    ]
    other = record("I went to Lisbon too.", 1, scope=theirs)
    expired = record("Lisbon, long ago.", 2, scope=mine, thread="old", expires_at=datetime.now(UTC) - timedelta(1))
    written = [*talk, other, expired]
    await write(ledger, database, *written)
    dict_store.add(*written)

    indexer = Indexer(index, ledger, HashEmbedder(), batch=2)
    assert await ledger.pending(mine, indexer.name) == 5
    assert await indexer.catch_up() == 6
    assert await indexer.catch_up() == 0
    assert await ledger.pending(mine, indexer.name) == 0
    recall = Recall(index, ledger, HashEmbedder())
    [best, *_] = (await recall.recall(mine, "Who went to Lisbon?", limit=3, dense_deadline_s=10)).items
    assert best.record == talk[1]

    await ledger.forget(mine, talk[1].memory_id)
    dict_store.forget(talk[1].memory_id)
    found = await recall.recall(mine, "Lisbon", limit=10, dense_deadline_s=10)
    assert talk[1].memory_id not in ids([item.record for item in found.items])
    assert await indexer.catch_up() == 1
    assert (await Recall(index, ledger, None).recall(mine, "Lisbon", limit=10, dense_deadline_s=0)).items == ()
    assert await index.count(mine) == 3

    assert await indexer.reindex() == 6
    assert await index.count() == 4

    everything = ids(written)
    assert await dict_store.read(everything) == await ledger.read(everything)
    assert await dict_store.neighbours(everything) == await ledger.neighbours(everything)
    for store in (ledger, dict_store):
        changes = await store.changes(ChangeCursor(), 100)
        assert [(change.memory_id, change.deleted) for change in changes] == [
            *((item.memory_id, False) for item in written if item is not talk[1]),
            (talk[1].memory_id, True),
        ]
        assert await store.total_changes() == 6
