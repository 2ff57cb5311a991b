"""Memories in the ledger: what the sweep takes and finds, facts that a person changed, and the feed."""

from __future__ import annotations

import asyncio
import gc
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from personae_runtime.errors import AlreadyExists
from personae_runtime.ledger import feed, memories
from personae_runtime.ledger.memories import Retention
from personae_runtime.ledger.personas import Mutation
from personae_runtime.ledger.vault import Scope
from personae_runtime.memory.extraction import CURSOR as EXTRACTION
from personae_runtime.memory.facts import extract
from personae_runtime.memory.index import PointKind
from personae_runtime.memory.store import Basis, ChangeCursor, FactDetail, MemoryRecord, MemorySource
from tests.unit.ledger.conftest import ONCE, NewOwner, Owner

pytestmark = pytest.mark.asyncio(loop_scope="session")

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)


async def a_scope(owner: Owner) -> str:
    return (await owner.vault.cipher(Scope("acme", f"p-{uuid.uuid4().hex}", "ann"))).scope


def memory(scope: str, text: str, age: timedelta, **changed: object) -> MemoryRecord:
    at = NOW - age
    made = MemoryRecord(uuid.uuid4(), scope, text, "ann", at, "t", 1, MemorySource.API, at)
    return replace(made, **changed)  # type: ignore[arg-type]


async def store(owner: Owner, record: MemoryRecord) -> MemoryRecord:
    async with owner.database.transaction() as connection:
        await owner.memories.insert(
            connection, record, statements=() if record.fact else extract(record.text, record.occurred_at)
        )
    return record


async def facts_of(owner: Owner, scope: str) -> dict[str, MemoryRecord]:
    found = await owner.memories.list_memories(scope, before=None, limit=1000, kind=PointKind.FACT)
    return {one.text: one for one in found}


# -- the sweep ----------------------------------------------------------------


async def test_what_stays_does_not_keep_the_sweep_from_the_rest(new_owner: NewOwner) -> None:
    owner = await new_owner()
    scope = await a_scope(owner)
    # Older than all the rest: a fact with a pinned one in its slot, and words that a fact rests on.
    await store(owner, memory(scope, "I live in Porto.", 900 * DAY))
    await store(owner, memory(scope, "I live in Lisbon.", 890 * DAY))
    facts = await facts_of(owner, scope)
    pinned = facts["Lives in Porto."].memory_id
    await owner.database.execute("UPDATE memories SET pinned = true WHERE memory_id = $1", pinned)
    detail = FactDetail("user", "row", "often", basis=Basis.STATED, extractor="test")
    without_slot = await store(owner, memory(scope, "Rows often.", 880 * DAY, fact=detail))
    liked = await store(owner, memory(scope, "I love rowing.", 500 * DAY))
    said = [await store(owner, memory(scope, f"It rained on day {day}.", 600 * DAY)) for day in range(3)]
    retention = Retention(400 * DAY, 450 * DAY, 2000 * DAY)
    swept = 0
    for _ in range(20):
        one = await owner.memories.sweep(retention, limit=1)
        swept += one
        if not one:
            break
    else:
        pytest.fail("the sweep finds no end")
    assert set(await facts_of(owner, scope)) == {"Lives in Porto.", "Lives in Lisbon."}
    kept = await owner.memories.list_memories(scope, before=None, limit=99, kind=PointKind.EPISODE)
    # Of rowing there is no fact any more; of Porto a pinned one, though it is over.
    assert {one.text for one in kept} == {"I live in Lisbon.", "I live in Porto."}
    gone = [without_slot.memory_id, liked.memory_id, *(one.memory_id for one in said)]
    assert await owner.memories.read(gone) == {}
    # And an expired one goes although all that is retained stands before it.
    expired = await store(owner, memory(scope, "Gone soon.", DAY, expires_at=NOW + DAY))
    await owner.database.execute("UPDATE memories SET expires_at = now() WHERE memory_id = $1", expired.memory_id)
    assert await owner.memories.sweep(retention, limit=1) == 1


@pytest.mark.parametrize(
    ("due", "index"),
    [
        (memories._EXPIRED, "memories_expiring"),
        (memories._OLD_WORDS, "memories_old_words"),
        (memories._OLD_FACTS, "memories_old_facts"),
        (memories._CLOSED_FACTS, "memories_closed_facts"),
    ],
    ids=["expired", "words", "facts", "closed facts"],
)
async def test_each_question_of_the_sweep_has_an_index(new_owner: NewOwner, due: memories._Due, index: str) -> None:
    owner = await new_owner()
    async with owner.database.transaction() as connection:
        await connection.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")
        await connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        plan = await connection.fetch(f"EXPLAIN {due.query}", DAY, *memories._FIRST, 500)
    told = "\n".join(row[0] for row in plan)
    assert f"using {index} on memories" in told


# -- facts that a person changed --------------------------------------------------


async def test_a_fact_that_was_forgotten_is_not_drawn_again_from_the_same_words(new_owner: NewOwner) -> None:
    owner = await new_owner()
    scope = await a_scope(owner)
    said = await store(owner, memory(scope, "I live in Porto. I love tea.", DAY))
    assert set(await facts_of(owner, scope)) == {"Likes tea.", "Lives in Porto."}
    fact = (await facts_of(owner, scope))["Lives in Porto."]
    await owner.memories.forget(scope, fact.memory_id)

    async def change(**changes: object) -> None:
        await owner.memories.update(
            scope,
            said.memory_id,
            changes,
            version="",
            tenant="acme",
            mutation=ONCE,
            states=lambda record: extract(record.text, record.occurred_at),
        )

    await change(occurred_at=NOW - 2 * DAY)
    assert set(await facts_of(owner, scope)) == {"Likes tea."}
    await change(restricted=True)
    await change(restricted=False)
    current = await owner.memories.get(scope, said.memory_id)
    assert await owner.memories.state(current, extract(current.text, current.occurred_at))
    assert set(await facts_of(owner, scope)) == {"Likes tea."}
    # Who says it again says it, and so do new words.
    again = await store(owner, memory(scope, "I live in Porto.", DAY))
    assert set(await facts_of(owner, scope)) == {"Likes tea.", "Lives in Porto."}
    await owner.memories.forget(scope, again.memory_id)
    await change(text="I live in Lisbon.")
    assert set(await facts_of(owner, scope)) == {"Lives in Lisbon."}
    # Nothing is kept about words that are gone.
    for one in (said, again):
        await owner.memories.forget(scope, one.memory_id)
    assert await owner.database.fetchval("SELECT count(*) FROM fact_refusals WHERE scope = $1", scope) == 0


async def test_a_persons_own_expiry_of_a_fact_outlives_what_is_said_again(new_owner: NewOwner) -> None:
    owner = await new_owner()
    scope = await a_scope(owner)
    await store(owner, memory(scope, "I live in Porto.", 3 * DAY))
    [fact] = (await facts_of(owner, scope)).values()

    async def set_to(at: datetime | None) -> None:
        await owner.memories.update(scope, fact.memory_id, {"expires_at": at}, version="", tenant="acme", mutation=ONCE)

    await set_to(NOW + 5 * DAY)
    await store(owner, memory(scope, "I live in Porto.", 2 * DAY))
    assert [one.expires_at for one in (await facts_of(owner, scope)).values()] == [NOW + 5 * DAY]
    await set_to(None)
    await store(owner, memory(scope, "I live in Porto.", DAY))
    assert [one.expires_at for one in (await facts_of(owner, scope)).values()] == [None]


# -- the feed -------------------------------------------------------------------


async def test_a_large_ledger_is_adopted_in_pieces_and_read_by_indexes_only(
    new_owner: NewOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "_ADOPTED", 3)
    owner = await new_owner()
    scope = await a_scope(owner)
    stored = [await store(owner, memory(scope, f"Line {number}.", DAY)) for number in range(10)]
    await owner.database.execute("UPDATE memories SET change_xid = (2::bigint ^ 40)::bigint::text::xid8")
    for name in ("index", EXTRACTION):
        await owner.memories.save_cursor(name, ChangeCursor(2**40, 7))

    await owner.memories.adopt()

    changes = await owner.memories.changes(ChangeCursor(), 100)
    assert {change.memory_id for change in changes} == {one.memory_id for one in stored}
    assert len({change.cursor.xid for change in changes}) == 4
    assert await owner.memories.load_cursor("index") == ChangeCursor()
    # What was extracted is in the ledger: only what comes from now on is read.
    cursor = await owner.memories.load_cursor(EXTRACTION)
    assert await owner.memories.changes(cursor, 100) == []
    new = await store(owner, memory(scope, "A new line.", DAY))
    assert [change.memory_id for change in await owner.memories.changes(cursor, 100)] == [new.memory_id]
    await owner.memories.adopt()
    assert await owner.memories.load_cursor(EXTRACTION) == cursor


async def test_many_changes_are_estimated(new_owner: NewOwner, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = await new_owner()
    scope = await a_scope(owner)
    for number in range(8):
        await store(owner, memory(scope, f"Line {number}.", DAY))
    assert await owner.memories.total_changes() == 8
    monkeypatch.setattr(feed, "_COUNTED", 5)
    assert await owner.memories.total_changes() == 5
    await owner.database.execute("ANALYZE memories")
    assert await owner.memories.total_changes() == 8


# -- what is kept open --------------------------------------------------------


async def lie_open(*ids: uuid.UUID) -> int:
    """How many of these memories this process holds in the clear."""
    await asyncio.sleep(0)  # the loop lets go of what was awaited last
    gc.collect()
    return sum(isinstance(one, MemoryRecord) and one.memory_id in ids for one in gc.get_objects())


async def test_what_was_read_before_is_read_as_another_process_left_it(new_owner: NewOwner) -> None:
    here, there = await new_owner("here"), await new_owner("there")
    scope = await a_scope(here)
    kept, changed, kept_back = [
        (await store(here, memory(scope, text, DAY))).memory_id for text in ("I row.", "I swim.", "I dive.")
    ]
    ids = [kept, changed, kept_back]
    for _ in range(2):
        assert {one.text for one in (await here.memories.read(ids)).values()} == {"I row.", "I swim.", "I dive."}
    await there.memories.update(scope, changed, {"text": "I sail."}, version="", tenant="acme", mutation=ONCE)
    await there.memories.quarantine(kept_back, "test")
    found = await here.memories.read(ids)
    assert {one.memory_id: one.text for one in found.values()} == {kept: "I row.", changed: "I sail."}
    assert await there.memories.forget(scope, kept)
    assert set(await here.memories.read(ids)) == {changed}


async def test_nothing_that_was_forgotten_or_whose_key_is_dropped_lies_open(new_owner: NewOwner) -> None:
    owner = await new_owner()
    scope, other = await a_scope(owner), await a_scope(owner)
    forgotten, kept, elsewhere = [
        (await store(owner, memory(where, "I row.", DAY))).memory_id for where in (scope, scope, other)
    ]
    ids = [forgotten, kept, elsewhere]
    assert len(await owner.memories.read(ids)) == 3
    assert await lie_open(*ids) == 3
    await owner.memories.forget(scope, forgotten)
    assert not await lie_open(forgotten)
    assert len(await owner.memories.read(ids)) == 2
    owner.vault.drop((scope, other))
    assert not await lie_open(*ids)


async def test_no_more_is_kept_open_than_may_be(new_owner: NewOwner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memories, "MOST_OPENED", 3)
    owner = await new_owner()
    ids = []
    for _ in range(4):
        scope = await a_scope(owner)
        ids += [(await store(owner, memory(scope, "I row.", DAY))).memory_id for _ in range(2)]
        assert len(await owner.memories.read(ids)) == len(ids)
    assert 0 < await lie_open(*ids) <= 3


# -- one statement for what states nothing ------------------------------------


async def requests_of(owner: Owner, request_id: uuid.UUID) -> list[str]:
    rows = await owner.database.fetch("SELECT resource FROM requests WHERE request_id = $1", request_id)
    return [row["resource"] for row in rows]


async def test_of_calls_with_one_request_id_at_the_same_time_one_stores(new_owner: NewOwner) -> None:
    owner = await new_owner()
    scope, request_id = await a_scope(owner), uuid.uuid4()
    mutation = Mutation("CreateMemory", str(request_id), b"body")
    asked = [memory(scope, "It rained.", DAY) for _ in range(8)]
    stored = await asyncio.gather(*(owner.memories.create(one, "acme", mutation) for one in asked))
    [kept] = await owner.memories.list_memories(scope, before=None, limit=99)
    assert {one.memory_id for one in stored} == {kept.memory_id}
    assert await requests_of(owner, request_id) == [str(kept.memory_id)]
    with pytest.raises(AlreadyExists):
        await owner.memories.create(asked[0], "acme", Mutation("CreateMemory", str(request_id), b"another"))
    assert len(await owner.memories.list_memories(scope, before=None, limit=99)) == 1
