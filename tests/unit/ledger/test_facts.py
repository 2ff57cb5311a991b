"""Facts in the ledger: with their memories, in the order of time, within bounds."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations
from uuid import UUID

import pytest
import pytest_asyncio

from personae_runtime.ledger.database import Database
from personae_runtime.ledger.memories import MemoryLedger, Retention
from personae_runtime.ledger.vault import Scope, Vault
from personae_runtime.memory.facts import extract
from personae_runtime.memory.index import PointKind
from personae_runtime.memory.store import MemoryRecord, MemorySource

pytestmark = pytest.mark.asyncio(loop_scope="session")

NOW = datetime.now(UTC).replace(microsecond=0)


def ago(days: float) -> datetime:
    return NOW - timedelta(days=days)


class Notes:
    """One person's memories in a ledger of its own."""

    def __init__(self, database: Database, vault: Vault, cap: int = 300) -> None:
        self.database = database
        self.ledger = MemoryLedger(database, vault, max_facts=cap)
        self.scope = vault.scope_key(Scope("acme", f"p-{uuid.uuid4().hex}", "ann"))

    def memory(self, text: str, said: datetime, **changes: object) -> MemoryRecord:
        made = MemoryRecord(uuid.uuid4(), self.scope, text, "ann", said, "t", 1, MemorySource.API, said)
        return replace(made, **changes)  # type: ignore[arg-type]

    async def say(self, text: str, said: datetime, **changes: object) -> MemoryRecord:
        memory = self.memory(text, said, **changes)
        await self.write(memory)
        return memory

    async def write(self, memory: MemoryRecord) -> None:
        async with self.database.transaction() as connection:
            await self.ledger.insert(connection, memory, statements=extract(memory.text, memory.occurred_at))

    async def facts(self) -> list[MemoryRecord]:
        found = await self.ledger.list_memories(self.scope, before=None, limit=1000, kind=PointKind.FACT)
        return sorted(found, key=lambda one: (one.fact.valid_from or ago(10**5) if one.fact else NOW, one.text))

    async def told(self) -> list[tuple[str, datetime | None, datetime | None]]:
        return [(one.text, one.fact.valid_from, one.fact.valid_to) for one in await self.facts() if one.fact]

    async def texts(self) -> list[str]:
        return [one.text for one in await self.facts()]


@pytest_asyncio.fixture(loop_scope="session")
async def notes(database: Database) -> Notes:
    return Notes(database, Vault(bytes(32), database))


async def test_a_fact_is_written_with_its_memory_and_says_where_it_stands(notes: Notes) -> None:
    memory = await notes.say("Well. I live in Porto now.", ago(10))
    [fact] = await notes.facts()
    assert fact.fact is not None
    assert (fact.text, fact.fact.subject, fact.fact.predicate, fact.fact.value) == (
        "Lives in Porto.",
        "user",
        "lives_in",
        "Porto",
    )
    assert (fact.source, fact.source_ids, fact.fact.extractor) == (
        MemorySource.EXTRACTION,
        (memory.memory_id,),
        "rules-1",
    )
    [span] = fact.fact.spans
    assert (span.memory_id, memory.text[span.begin : span.end]) == (memory.memory_id, "I live in Porto")


async def test_what_is_said_in_any_order_comes_to_the_same_time_line(database: Database) -> None:
    vault = Vault(bytes(32), database)
    told: list[object] = []
    for order in permutations(
        [("I live in Porto.", 300), ("I moved to Lisbon 20 days ago.", 100), ("I don't live in Lisbon any more.", 50)]
    ):
        notes = Notes(database, vault)
        for text, days in order:
            await notes.say(text, ago(days))
        told.append(await notes.told())
    assert told[1:] == told[:-1]
    moved = ago(120).replace(hour=0, minute=0, second=0)
    assert told[0] == [
        ("Lives in Porto.", None, moved),
        ("Lives in Lisbon.", moved, ago(50)),
        ("Does not live in Lisbon any more.", ago(50), None),
    ]


async def test_the_one_that_took_a_facts_place_is_named_and_forgetting_it_gives_it_back(notes: Notes) -> None:
    porto = await notes.say("I live in Porto.", ago(100))
    lisbon = await notes.say("I live in Lisbon.", ago(50))
    first, second = await notes.facts()
    assert first.fact is not None
    assert (first.fact.valid_to, first.fact.superseded_by) == (ago(50), second.memory_id)
    assert (first.source_ids, second.source_ids) == ((porto.memory_id,), (lisbon.memory_id,))
    await notes.ledger.forget(notes.scope, lisbon.memory_id)
    [only] = await notes.facts()
    assert only.fact is not None
    assert (only.memory_id, only.fact.valid_to, only.fact.superseded_by) == (first.memory_id, None, None)
    await notes.ledger.forget(notes.scope, porto.memory_id)
    assert await notes.facts() == []


async def test_the_same_words_again_are_one_fact_with_another_source(notes: Notes) -> None:
    said = [await notes.say(text, ago(9 - day)) for day, text in enumerate(["I live in Porto.", "I live in PORTO!"])]
    await notes.write(said[0])
    [fact] = await notes.facts()
    assert set(fact.source_ids) == {one.memory_id for one in said}
    await notes.ledger.forget(notes.scope, said[0].memory_id)
    [fact] = await notes.facts()
    assert fact.source_ids == (said[1].memory_id,)


async def test_forgetting_a_fact_leaves_its_words_and_gives_back_what_it_closed(notes: Notes) -> None:
    await notes.say("I live in Porto.", ago(100))
    await notes.say("I live in Lisbon.", ago(50))
    _, lisbon = await notes.facts()
    await notes.ledger.forget(notes.scope, lisbon.memory_id)
    assert await notes.told() == [("Lives in Porto.", None, None)]
    assert len(await notes.ledger.list_memories(notes.scope, before=None, limit=9, kind=PointKind.EPISODE)) == 2


async def test_a_fact_expires_with_the_last_of_its_sources(notes: Notes) -> None:
    soon, later = NOW + timedelta(days=1), NOW + timedelta(days=2)
    await notes.say("I live in Porto.", ago(3), expires_at=soon)
    [fact] = await notes.facts()
    assert fact.expires_at == soon
    await notes.say("I live in Porto.", ago(2), expires_at=later)
    assert [one.expires_at for one in await notes.facts()] == [later]
    await notes.say("I live in Porto.", ago(1))
    assert [one.expires_at for one in await notes.facts()] == [None]


async def _age(notes: Notes, memory_ids: Sequence[UUID], days: float) -> None:
    await notes.database.execute(
        "UPDATE memories SET expires_at = now() - $2::interval WHERE memory_id = ANY($1)",
        list(memory_ids),
        timedelta(days=days),
    )


async def test_the_sweep_forgets_what_expired_and_what_rested_on_it(notes: Notes) -> None:
    porto = await notes.say("I live in Porto.", ago(5))
    expiring = await notes.say("I live in Lisbon.", ago(4), expires_at=NOW + timedelta(days=1))
    await _age(notes, [expiring.memory_id], 0.001)
    while await notes.ledger.sweep(Retention()):
        pass
    assert await notes.told() == [("Lives in Porto.", None, None)]
    row = await notes.database.fetchrow("SELECT text FROM memories WHERE memory_id = $1", expiring.memory_id)
    assert row is not None
    assert row["text"] is None
    assert porto.memory_id in await notes.ledger.read([porto.memory_id])


async def test_the_sweep_keeps_to_the_times_of_each_kind_and_to_pins(notes: Notes) -> None:
    chat = await notes.say("What a lovely evening it was.", ago(400))
    pinned = await notes.say("Never forget this.", ago(400), pinned=True)
    source = await notes.say("I live in Lisbon.", ago(390))
    await notes.say("I used to live in Rome.", ago(395))
    retention = Retention(timedelta(days=365), None, timedelta(days=30))
    while await notes.ledger.sweep(retention):
        pass
    # Rome's sentence went once its fact, over for longer than a month, no longer rested on it.
    kept = await notes.ledger.list_memories(notes.scope, before=None, limit=9, kind=PointKind.EPISODE)
    assert {one.memory_id for one in kept} == {pinned.memory_id, source.memory_id}
    assert chat.memory_id not in await notes.ledger.read([chat.memory_id])
    assert await notes.texts() == ["Lives in Lisbon."]
    while await notes.ledger.sweep(Retention(facts=timedelta(days=365))):
        pass
    assert await notes.texts() == []


async def test_nothing_holds_again_because_a_fact_got_old(notes: Notes) -> None:
    await notes.say("I live in Porto.", ago(30))
    await notes.say("I live in Lisbon.", ago(20))
    _, lisbon = await notes.facts()
    async with notes.database.transaction() as connection:
        await notes.ledger.facts.expire(connection, notes.scope, [lisbon.memory_id])
    assert await notes.facts() == []


async def test_facts_of_a_scope_are_capped_and_pinned_ones_stay(database: Database) -> None:
    notes = Notes(database, Vault(bytes(32), database), cap=20)
    first = await notes.say("I speak Welsh.", ago(900))
    [pinned] = await notes.facts()
    await database.execute("UPDATE memories SET pinned = true WHERE memory_id = $1", pinned.memory_id)
    await notes.say("I lived in Rome from 2001 to 2002.", ago(800))
    await notes.say("I'm allergic to peanuts.", ago(800))
    for number in range(60):
        await notes.say(f"I love thing{number}.", ago(700 - number))
        assert len(await notes.facts()) <= 20
    texts = await notes.texts()
    assert "Speaks Welsh." in texts
    assert "Allergic to peanuts." in texts
    assert "Likes thing59." in texts
    # What is over goes first, and of what holds what fades.
    assert "Lives in Rome." not in texts
    assert "Likes thing0." not in texts
    assert first.memory_id in await notes.ledger.read([first.memory_id])
