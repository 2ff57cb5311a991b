"""Erasing some never touches others: a thousand scopes, ledger and index."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from personae_runtime.ledger.erasure import Eraser, ErasureLedger, ErasureLog
from personae_runtime.ledger.vault import ErasureInProgress, Scope
from personae_runtime.memory.edge import EdgeMemoryIndex
from personae_runtime.memory.facts import Statement
from personae_runtime.memory.index import PointKind
from personae_runtime.memory.indexer import Indexer
from personae_runtime.memory.store import MemoryRecord, MemorySource
from tests.unit.ledger.conftest import ONCE, NewOwner, Owner

pytestmark = pytest.mark.asyncio(loop_scope="session")

NOW = datetime.now(UTC)


async def nobody(epoch: int) -> int:
    """Every gateway has let go."""
    return 0


def eraser_of(owner: Owner, indexer: Indexer | None, folder: Path) -> tuple[Eraser, ErasureLedger]:
    ledger = ErasureLedger(owner.database, owner.vault, owner.memories)
    eraser = Eraser(
        ledger,
        ErasureLog(folder / "erasures.jsonl"),
        erase_index=None if indexer is None else indexer.erase,
        unheard=nobody,
        prove=lambda erasure, remaining, at: repr((str(erasure.erasure_id), remaining)).encode(),
        to_line=lambda proof: proof,
    )
    return eraser, ledger


def memory(scope: str, text: str, **changed: object) -> MemoryRecord:
    fields: dict[str, object] = {"thread": "t", "ordinal": 1, "source": MemorySource.API, "created_at": NOW, **changed}
    return MemoryRecord(uuid4(), scope, text, "Ann", NOW, **fields)  # type: ignore[arg-type]


def likes(*things: str) -> list[Statement]:
    """A fact each, which rests on every memory that states it."""
    return [Statement("likes", thing, ("likes", thing), 0, 1, NOW) for thing in things]


async def facts_of(owner: Owner, *scopes: str) -> dict[tuple[str, int], MemoryRecord]:
    """Facts by scope and number of sources."""
    rows = await owner.database.fetch(
        "SELECT memory_id FROM memories WHERE scope = ANY($1) AND kind = 'fact' AND forgotten_at IS NULL", list(scopes)
    )
    found = await owner.memories.read([row["memory_id"] for row in rows])
    return {(record.scope, len(record.source_ids)): record for record in found.values()}


async def test_a_thousand_scopes_random_deletions_exact_survivors(new_owner: NewOwner, tmp_path: Path) -> None:
    owner = await new_owner()
    name = await owner.persona()
    index = EdgeMemoryIndex(tmp_path / "index")
    await index.open()
    indexer = Indexer(index, owner.memories, None, on_erase=lambda scope: owner.vault.drop((scope,)))
    eraser, ledger = eraser_of(owner, indexer, tmp_path)
    draw = random.Random(20261122)
    people = [f"u{number}" for number in range(1000)]
    kept: dict[UUID, tuple[str, str]] = {}
    held: dict[str, list[MemoryRecord]] = {}
    async with owner.database.transaction() as connection:
        for person in people:
            scope = owner.vault.scope_key(Scope(name.tenant, name.persona, person))
            one = memory(scope, f"{person} rows.")
            other = memory(scope, f"{person} sails.", ordinal=2)
            held[person] = [one, other]
            await owner.memories.insert(connection, one, statements=likes("boats", "rowing"))
            await owner.memories.insert(connection, other, statements=likes("boats"))
    scopes = {owner.vault.scope_key(Scope(name.tenant, name.persona, person)): person for person in people}
    facts = await facts_of(owner, *scopes)
    for scope, person in scopes.items():
        # Of both memories, and of the first alone.
        held[person] += [facts[scope, 2], facts[scope, 1]]
        kept.update({record.memory_id: (scope, record.text) for record in held[person]})
    await indexer.catch_up()
    assert await index.count() == 4000

    for person in draw.sample(people, 60):
        scope = Scope(name.tenant, name.persona, person)
        # All of them, the first memory, or the second.
        which = draw.choice(([], [0], [1]))
        erasure = await ledger.start(scope, [held[person][at].memory_id for at in which], "", ONCE)
        assert await eraser.attempt(erasure)
        # What rests on a memory alone goes with it.
        for at in {(): (0, 1, 2, 3), (0,): (0, 3), (1,): (1,)}[tuple(which)]:
            del kept[held[person][at].memory_id]

    rows = await owner.database.fetch("SELECT memory_id FROM memories WHERE forgotten_at IS NULL")
    assert {row["memory_id"] for row in rows} == set(kept)
    found = await owner.memories.read(list(kept))
    assert {memory_id: (one.scope, one.text) for memory_id, one in found.items()} == kept
    await indexer.catch_up()
    assert await index.count() == len(kept)
    assert await index.count(None, list(kept)) == len(kept)
    assert all(
        not (set(record.source_ids) | {span.memory_id for span in record.fact.spans}) - set(kept)
        for record in found.values()
        if record.fact is not None
    )
    await index.close()


async def test_facts_lose_the_support_of_words_that_were_replaced_and_rest_on_the_new(new_owner: NewOwner) -> None:
    owner = await new_owner()
    scope = (await owner.vault.cipher(Scope("acme", "nadia", "ann"))).scope
    one, other = memory(scope, "I row."), memory(scope, "I sail.", ordinal=2)
    await owner.memories.create(one, "acme", ONCE, likes("boats", "rowing"))
    await owner.memories.create(other, "acme", ONCE, likes("boats"))
    before = await facts_of(owner, scope)

    async def update(**changes: object) -> set[tuple[str, frozenset[UUID]]]:
        await owner.memories.update(
            scope,
            one.memory_id,
            changes,
            version="",
            tenant="acme",
            mutation=ONCE,
            states=lambda record: likes("swimming") if "swim" in record.text else likes("boats", "rowing"),
        )
        rows = await owner.memories.list_memories(scope, before=None, limit=10, kind=PointKind.FACT)
        return {(row.fact.value, frozenset(row.source_ids)) for row in rows if row.fact is not None}

    boats, alone = ("boats", frozenset({other.memory_id})), frozenset({one.memory_id})
    assert await update(text="I swim.") == {boats, ("swimming", alone)}
    left = (await owner.memories.read([before[scope, 2].memory_id]))[before[scope, 2].memory_id]
    assert left.fact is not None
    assert [span.memory_id for span in left.fact.spans] == [other.memory_id]
    # What may not be used supports nothing, until it may be again.
    assert await update(restricted=True) == {boats}
    assert await update(restricted=False) == {boats, ("swimming", alone)}


async def test_an_erasure_that_leaves_something_is_not_proved_and_is_tried_again(
    new_owner: NewOwner, tmp_path: Path
) -> None:
    owner = await new_owner()
    name = await owner.persona()
    scope = Scope(name.tenant, name.persona, "ann")
    await owner.memories.create(memory(owner.vault.scope_key(scope), "I row."), name.tenant, ONCE)
    eraser, ledger = eraser_of(owner, None, tmp_path)
    unheard = [1]

    async def one_gateway(epoch: int) -> int:
        return unheard[0]

    eraser._unheard = one_gateway
    erasure = await ledger.start(scope, [], "", ONCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("personae_runtime.ledger.erasure._CACHES_S", 0.0)
        assert not await eraser.attempt(erasure)
    told = await ledger.get(name.tenant, erasure.erasure_id)
    assert (told.done_at, told.problem, told.step) == (None, "ERASURE_INCOMPLETE", "proof")
    # Nothing new is taken meanwhile.
    with pytest.raises(ErasureInProgress):
        await owner.memories.create(memory(owner.vault.scope_key(scope), "I swim."), name.tenant, ONCE)
    unheard[0] = 0
    assert await eraser.attempt(erasure)
    assert (await ledger.get(name.tenant, erasure.erasure_id)).done_at is not None
    await owner.memories.create(memory(owner.vault.scope_key(scope), "I swim."), name.tenant, ONCE)


async def test_a_gateway_with_an_old_key_in_memory_can_not_write_under_it(new_owner: NewOwner, tmp_path: Path) -> None:
    here, there = await new_owner("here"), await new_owner("there")
    name = await here.persona()
    scope = Scope(name.tenant, name.persona, "ann")
    key = here.vault.scope_key(scope)
    await there.memories.create(memory(key, "I row."), name.tenant, ONCE)
    assert there.vault.holds(key)
    eraser, ledger = eraser_of(here, None, tmp_path)
    assert await eraser.attempt(await ledger.start(scope, [], "", ONCE))
    await here.memories.create(memory(key, "I swim."), name.tenant, ONCE)
    with pytest.raises(ErasureInProgress):
        await there.memories.create(memory(key, "I dive."), name.tenant, ONCE)
    # It has learned of it by that.
    await there.memories.create(memory(key, "I dive."), name.tenant, ONCE)
    listed = await there.memories.list_memories(key, before=None, limit=10)
    assert sorted(one.text for one in listed) == ["I dive.", "I swim."]


async def test_what_an_expired_restricted_or_quarantined_memory_says_is_not_read(new_owner: NewOwner) -> None:
    owner = await new_owner()
    scope = (await owner.vault.cipher(Scope("acme", "nadia", "ann"))).scope
    live = memory(scope, "I row.")
    others = [
        memory(scope, "expired", expires_at=NOW - timedelta(seconds=1)),
        memory(scope, "restricted", restricted=True),
        memory(scope, "quarantined", quarantine_reason="INJECTION_IN_MEMORY"),
    ]
    for record in (live, *others):
        await owner.memories.create(record, "acme", ONCE)
    assert set(await owner.memories.read([one.memory_id for one in (live, *others)])) == {live.memory_id}
