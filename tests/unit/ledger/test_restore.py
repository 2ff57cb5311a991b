"""A ledger that was restored into another server, whose transaction ids begin anew."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from personae_runtime.ledger.vault import Scope
from personae_runtime.memory.store import ChangeCursor, MemoryRecord, MemorySource
from tests.unit.ledger.conftest import ONCE, NewOwner

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_memories_of_another_server_enter_the_feed_and_the_index_begins_anew(new_owner: NewOwner) -> None:
    owner = await new_owner()
    scope = (await owner.vault.cipher(Scope("acme", "nadia", "ann"))).scope
    now = datetime.now(UTC)
    record = MemoryRecord(uuid4(), scope, "I row.", "Ann", now, "t", 1, MemorySource.API, now)
    await owner.memories.create(record, "acme", ONCE)
    await owner.memories.save_cursor("index", ChangeCursor(2**40, 7))
    await owner.database.execute("UPDATE memories SET change_xid = (2::bigint ^ 40)::bigint::text::xid8")
    assert await owner.memories.changes(ChangeCursor(), 10) == []

    await owner.memories.adopt()

    assert [change.memory_id for change in await owner.memories.changes(ChangeCursor(), 10)] == [record.memory_id]
    assert await owner.memories.load_cursor("index") == ChangeCursor()
    assert await owner.memories.pending_total("index") == 1


async def test_a_ledger_of_this_server_is_left_as_it_is(new_owner: NewOwner) -> None:
    owner = await new_owner()
    cursor = ChangeCursor(1, 1)
    await owner.memories.save_cursor("index", cursor)

    await owner.memories.adopt()

    assert await owner.memories.load_cursor("index") == cursor
