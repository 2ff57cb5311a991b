"""Erasing some never touches others: a thousand scopes, ledger and index."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
from alembic import command

from personae_runtime.errors import Unavailable
from personae_runtime.ledger.control import ConsentLedger
from personae_runtime.ledger.database import Database
from personae_runtime.ledger.erasure import Eraser, ErasureLedger, ErasureLog
from personae_runtime.ledger.personas import Mutation, PersonaLedger
from personae_runtime.ledger.sessions import SessionRow
from personae_runtime.ledger.vault import ErasureInProgress, Scope, ScopeErased
from personae_runtime.memory.edge import EdgeMemoryIndex
from personae_runtime.memory.facts import Statement
from personae_runtime.memory.index import PointKind
from personae_runtime.memory.indexer import Indexer
from personae_runtime.memory.store import MemoryRecord, MemorySource
from personae_runtime.names import Name
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
        subject = Scope(name.tenant, name.persona, person)
        # All of them, the first memory, or the second.
        which = draw.choice(([], [0], [1]))
        erasure = await ledger.start(subject, [held[person][at].memory_id for at in which], "", ONCE)
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


@pytest.mark.parametrize("request_id", ["", "7c9d1a52-3d0c-4f6e-9d8e-2f1b6a5c4e3d"], ids=["no request", "request"])
async def test_a_gateway_with_an_old_key_in_memory_can_not_write_under_it(
    new_owner: NewOwner, tmp_path: Path, request_id: str
) -> None:
    here, there = await new_owner("here"), await new_owner("there")
    name = await here.persona()
    scope = Scope(name.tenant, name.persona, "ann")
    key = here.vault.scope_key(scope)
    await there.memories.create(memory(key, "I row."), name.tenant, ONCE)
    assert there.vault.held(key) is not None
    eraser, ledger = eraser_of(here, None, tmp_path)
    assert await eraser.attempt(await ledger.start(scope, [], "", ONCE))
    await here.memories.create(memory(key, "I swim."), name.tenant, ONCE)
    dive, mutation = memory(key, "I dive."), Mutation("test", request_id, b"")
    with pytest.raises(ErasureInProgress):
        await there.memories.create(dive, name.tenant, mutation)
    # It has learned of it by that.
    assert await there.memories.create(dive, name.tenant, mutation) == dive
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


@dataclass
class Ann:
    """Somebody with a memory of their own, at one gateway."""

    owner: Owner
    name: Name
    eraser: Eraser
    ledger: ErasureLedger

    @property
    def scope(self) -> Scope:
        return Scope(self.name.tenant, self.name.persona, "ann")

    @property
    def key(self) -> str:
        return self.owner.vault.scope_key(self.scope)

    async def erase(self, *memory_ids: UUID) -> dict[str, int]:
        """Erase, and say how much that was by store."""
        erasure = await self.ledger.start(self.scope, memory_ids, "", ONCE)
        assert await self.eraser.attempt(erasure)
        return (await self.ledger.get(self.name.tenant, erasure.erasure_id)).erased

    async def session(self, name: Name, user: str, session: str, mutation: Mutation = ONCE) -> SessionRow:
        return await self.owner.sessions.create(
            name, session, user, age_band="adult", region_code="", disclosure="An AI speaks.", mutation=mutation
        )


@pytest_asyncio.fixture(loop_scope="session")
async def ann(new_owner: NewOwner, tmp_path: Path) -> Ann:
    owner = await new_owner()
    eraser, ledger = eraser_of(owner, None, tmp_path)
    return Ann(owner, await owner.persona(), eraser, ledger)


def asked(method: str) -> Mutation:
    return Mutation(method, str(uuid4()), b"mac")


async def test_a_start_that_has_heard_of_an_erasure_leaves_who_came_back_alone(ann: Ann) -> None:
    """Several gateways start together: one ends the erasure, another has it in a list that it fetched before."""
    await ann.owner.memories.create(memory(ann.key, "I row."), ann.name.tenant, ONCE)
    await ann.ledger.start(ann.scope, [], "", ONCE)
    [stale] = await ann.ledger.unfinished()
    assert await ann.eraser.attempt(stale)
    back = memory(ann.key, "I swim.")
    await ann.owner.memories.create(back, ann.name.tenant, ONCE)
    await ann.session(ann.name, "ann", "s-1")

    await ann.eraser.erase_rows(stale)
    # Nor by a step of its own.
    assert await ann.ledger.take_key(stale) == 0
    await ann.ledger.erase_rows(stale)

    assert set(await ann.owner.memories.read([back.memory_id])) == {back.memory_id}
    assert await ann.owner.database.fetchval("SELECT session FROM sessions") == "s-1"
    await ann.owner.memories.create(memory(ann.key, "I dive."), ann.name.tenant, ONCE)


async def test_a_start_leaves_to_another_gateway_what_that_one_has_made_unreadable(ann: Ann) -> None:
    await ann.owner.memories.create(memory(ann.key, "I row."), ann.name.tenant, ONCE)
    erasure = await ann.ledger.start(ann.scope, [], "", ONCE)
    async with ann.ledger.exclusive(erasure) as mine:
        assert mine
        starting = asyncio.create_task(ann.eraser.erase_rows(erasure))
        await asyncio.sleep(0.2)
        assert not starting.done()
        await ann.ledger.take_key(erasure)
        async with asyncio.timeout(5):
            await starting
    assert await ann.owner.database.fetchval("SELECT count(*) FROM memories WHERE forgotten_at IS NULL") == 1


async def test_a_start_outlives_an_erasure_that_fails_once_the_key_is_gone(
    ann: Ann, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ann.owner.memories.create(memory(ann.key, "I row."), ann.name.tenant, ONCE)
    erasure = await ann.ledger.start(ann.scope, [], "", ONCE)

    async def fails(erasure: object) -> int:
        raise RuntimeError("a row that nobody thought of")

    monkeypatch.setattr(ann.ledger, "erase_rows", fails)
    await ann.eraser.erase_rows(erasure)
    assert (await ann.ledger.reload(erasure)).problem == "RuntimeError"
    with pytest.raises(ScopeErased):
        await ann.owner.vault.cipher_by_key(ann.key)
    monkeypatch.undo()
    assert await ann.eraser.attempt(erasure)


async def test_two_erasures_from_a_log_hold_the_person_until_both_are_done(ann: Ann) -> None:
    first, second = uuid4(), uuid4()
    for erasure_id, days in ((first, 2), (second, 1)):
        assert await ann.ledger.take_up(erasure_id, ann.key, [], "", NOW - timedelta(days=days))
    one, other = await ann.ledger.unfinished()
    for erasure in (one, other):
        await ann.eraser.erase_rows(erasure)
    assert await ann.eraser.attempt(one)
    with pytest.raises(ErasureInProgress):
        await ann.owner.memories.create(memory(ann.key, "I swim."), ann.name.tenant, ONCE)
    assert await ann.eraser.attempt(other)
    await ann.owner.memories.create(memory(ann.key, "I swim."), ann.name.tenant, ONCE)


async def test_erasures_of_one_person_at_the_same_time_are_one(ann: Ann) -> None:
    erasures = await asyncio.gather(*(ann.ledger.start(ann.scope, [], "", ONCE) for _ in range(4)))
    assert len({erasure.erasure_id for erasure in erasures}) == 1


async def test_another_persons_session_of_the_same_id_keeps_its_request(ann: Ann) -> None:
    theirs = await ann.owner.persona()
    again = asked("CreateSession")
    await ann.session(ann.name, "ann", "s-1", asked("CreateSession"))
    await ann.session(theirs, "bob", "s-1", again)
    await ann.erase()
    assert await ann.owner.database.fetchval("SELECT count(*) FROM requests WHERE method = 'CreateSession'") == 1
    # A repeat is the same session.
    assert (await ann.session(theirs, "bob", "s-1", again)).session == "s-1"


async def test_requests_of_an_older_version_name_their_persona_or_go(
    open_database: Callable[[], Awaitable[Database]], monkeypatch: pytest.MonkeyPatch
) -> None:
    database, upgrade = await open_database(), command.upgrade
    monkeypatch.setattr(command, "upgrade", lambda config, _: upgrade(config, "0004"))
    await database.migrate()
    monkeypatch.undo()
    await database.execute("INSERT INTO scopes (scope, wrapped_key, marker) VALUES ('a scope', '', '')")
    for persona, sessions in (("p1", ("s-1", "s-2")), ("p2", ("s-1",))):
        await database.execute(
            "INSERT INTO personas (tenant, persona, display_name, type) VALUES ('acme', $1, '', '')", persona
        )
        await database.execute(
            "INSERT INTO revisions (tenant, persona, revision, state, definition) VALUES ('acme', $1, 1, 'ACTIVE', '')",
            persona,
        )
        for session in sessions:
            await database.execute(
                "INSERT INTO sessions (tenant, persona, session, user_id, scope, revision, age_band, region_code,"
                " disclosure) VALUES ('acme', $1, $2, 'ann', 'a scope', 1, '', '', '')",
                persona,
                session,
            )
            await database.execute(
                "INSERT INTO requests (tenant, method, request_id, body_mac, resource)"
                " VALUES ('acme', 'CreateSession', $1, '', $2)",
                uuid4(),
                session,
            )
    await database.migrate()
    # Of one id in two personas nobody knows whose it is.
    rows = await database.fetch("SELECT resource FROM requests")
    assert [row["resource"] for row in rows] == ["p1/s-2"]


@pytest.mark.parametrize("whole", [True, False])
async def test_no_request_of_what_was_erased_is_left_and_it_can_be_imported_again(ann: Ann, whole: bool) -> None:
    create, before = asked("CreateMemory"), asked("CreateMemory")
    made, forgotten, kept = (memory(ann.key, text) for text in ("I row.", "I sail.", "I swim."))
    await ann.owner.memories.create(forgotten, ann.name.tenant, before)
    await ann.owner.memories.forget(ann.key, forgotten.memory_id)
    await ann.owner.memories.create(made, ann.name.tenant, create)
    other = memory(ann.owner.vault.scope_key(Scope(ann.name.tenant, ann.name.persona, "bob")), "I row.")
    await ann.owner.memories.create(other, ann.name.tenant, asked("CreateMemory"))
    if not whole:
        await ann.owner.memories.create(kept, ann.name.tenant, asked("CreateMemory"))
    erased = await ann.erase(*([] if whole else [made.memory_id, forgotten.memory_id]))
    assert erased["ledger.requests"] == 2
    rows = await ann.owner.database.fetch("SELECT resource FROM requests")
    left = (other,) if whole else (other, kept)
    assert {row["resource"] for row in rows} == {str(one.memory_id) for one in left}
    again = await ann.owner.memories.create(memory(ann.key, "I row."), ann.name.tenant, create)
    assert again.text == "I row."


@pytest.mark.parametrize("whole", [True, False])
async def test_a_tombstone_tells_nothing_of_what_it_stands_for(ann: Ann, whole: bool) -> None:
    made = memory(ann.key, "I row.", thread="boats", external_id="mail 7", quarantine_reason="INJECTION_IN_MEMORY")
    past = replace(made, memory_id=uuid4(), occurred_at=NOW - timedelta(days=900), quarantine_reason="")
    for one in (made, past):
        await ann.owner.memories.create(one, ann.name.tenant, ONCE, likes("boats"))
    await ann.owner.database.execute(
        "UPDATE memories SET valid_to = now(), superseded_by = gen_random_uuid(), thread = 'boats',"
        " expires_at = now() + interval '1 day', own_expires_at = now() + interval '1 day' WHERE kind = 'fact'"
    )
    await ann.owner.database.execute(
        "INSERT INTO fact_refusals (scope, source, slot) VALUES ($1, $2, '')", ann.key, made.memory_id
    )
    # As an older version left one.
    await ann.owner.memories.create(memory(ann.key, "I sail.", thread="sails"), ann.name.tenant, ONCE, likes("sails"))
    await ann.owner.database.execute(
        "UPDATE memories SET text = NULL, detail = NULL, speaker = NULL, slot = NULL, source_ids = '{}',"
        " forgotten_at = now() WHERE kind = 'fact' AND thread <> 'boats'"
    )
    before = await ann.owner.database.fetchval("SELECT count(*) FROM memories WHERE forgotten_at IS NOT NULL")
    assert before == 1
    await ann.erase(*([] if whole else [made.memory_id, past.memory_id]))
    rows = await ann.owner.database.fetch("SELECT * FROM memories WHERE forgotten_at IS NOT NULL")
    assert len(rows) == (5 if whole else 4)
    for row in rows:
        told = (
            *("text", "speaker", "detail", "slot", "source_ids", "thread", "external_id", "valid_from", "valid_to"),
            *("superseded_by", "quarantine_reason", "basis", "extractor", "expires_at", "own_expires_at"),
        )
        assert not [name for name in told if row[name]]
        assert row["occurred_at"] == row["created_at"]
    assert await ann.owner.database.fetchval("SELECT count(*) FROM fact_refusals") == 0


async def test_words_about_consents_are_found_by_their_scope_also_those_of_before(ann: Ann) -> None:
    database, consents = ann.owner.database, ConsentLedger(ann.owner.database)
    user, bob = (Name(ann.name.tenant, ann.name.persona, user=user) for user in ("ann", "bob"))

    async def record(name: Name, evidence: str, scope: str | None = None) -> None:
        await consents.record(name, "MEMORY", "GRANTED", evidence, lambda _, act: act(), scope=scope)

    await record(user, "by mail", ann.key)
    # As an older version recorded them.
    for name in (user, bob, ann.name):
        await record(name, "by phone")
    await ann.ledger.fill_scopes()
    rows = await database.fetch("SELECT user_id, scope FROM consents ORDER BY consent_id")
    assert [(row["user_id"], row["scope"] == ann.key, row["scope"] is None) for row in rows] == [
        ("ann", True, False),
        ("ann", True, False),
        ("bob", False, False),
        ("", False, True),
    ]
    await record(user, "by fax")
    assert (await ann.erase())["ledger.consent_texts"] == 3
    rows = await database.fetch("SELECT evidence FROM consents ORDER BY consent_id")
    assert [row["evidence"] for row in rows] == ["", "", "by phone", "by phone", ""]


@pytest.mark.parametrize("known_by", ["consent", "memory", "persona"])
async def test_an_erasure_from_a_log_has_its_name_again(ann: Ann, known_by: str) -> None:
    """After a restore only the hash of the person is known, and there may be no session of theirs."""
    if known_by != "persona":
        await PersonaLedger(ann.owner.database, ann.owner.vault).create(Name("globex", "p"), "P", "assistant", ONCE)
    if known_by == "consent":
        user = Name(ann.name.tenant, ann.name.persona, user="ann")
        consents = ConsentLedger(ann.owner.database)
        await consents.record(user, "MEMORY", "GRANTED", "", lambda _, act: act(), scope=ann.key)
    if known_by == "memory":
        await ann.owner.memories.create(memory(ann.key, "I row."), ann.name.tenant, asked("CreateMemory"))
    erasure_id = uuid4()
    assert await ann.ledger.take_up(erasure_id, ann.key, [], "", NOW)
    erasure = await ann.ledger.get(ann.name.tenant, erasure_id)
    assert await ann.ledger.concerns(erasure, "ann")
    assert not await ann.ledger.concerns(erasure, "bob")


async def test_a_line_that_the_disk_takes_in_pieces_is_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, write = ErasureLog(tmp_path / "erasures.jsonl"), os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    log.append(b"the first")
    log.append(b"the second")
    assert log.lines() == [b"the first", b"the second"]
    # Full: it takes some of it and then nothing more.
    room = [3, 0]
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[: room.pop(0)]))
    with pytest.raises(Unavailable, match="No space left"):
        log.append(b"the third")
    monkeypatch.undo()
    log.append(b"the fourth")
    assert log.lines()[-1] == b"the fourth"
