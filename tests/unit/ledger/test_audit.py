"""Sequencing: every committed entry gets one place, whoever writes, sequences or dies meanwhile."""

from __future__ import annotations

import asyncio
import json
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.ledger import audit
from personae_runtime.ledger.audit import AuditLog
from personae_runtime.ledger.database import Database
from personae_runtime.ledger.vault import AuditSigner, audit_key
from personae_runtime.policy.decision import Action, Decision, Stage
from personae_serve.audit_verify import read_note, verify
from tests.unit.ledger.conftest import NewOwner

pytestmark = pytest.mark.asyncio(loop_scope="session")

SIGNER = AuditSigner(audit_key(bytes(32)))


def log(database: Database, **options: float) -> AuditLog:
    return AuditLog(database, SIGNER, **options)  # type: ignore[arg-type]


async def write(database: Database, number: int, tenant: str = "acme") -> UUID:
    async with database.transaction() as connection:
        return await audit.append(connection, tenant, "test", {"number": number})


async def exported(found: AuditLog, tenant: str = "acme") -> list[bytes]:
    return [f"{line}\n".encode() async for line in found.export(tenant)]


async def test_what_is_rolled_back_leaves_no_entry(database: Database) -> None:
    async def fail() -> None:
        async with database.transaction() as connection:
            await audit.append(connection, "acme", "test", {})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert (await log(database).checkpoint("acme")).size == 0


async def test_a_transaction_that_commits_late_is_not_passed(database: Database) -> None:
    found = log(database)
    async with database.transaction() as late:
        held = await audit.append(late, "acme", "test", {"number": 1})
        after = [await write(database, number) for number in (2, 3)]
        assert (await found.checkpoint("acme")).size == 2
    assert (await found.checkpoint("acme")).size == 3
    ids = [entry.entry_id for entry in await found.entries("acme", first=0, limit=10)]
    assert ids == [*after, held]
    assert verify(await exported(found)).holds


async def test_many_writers_and_sequencers_give_each_entry_one_place(database: Database) -> None:
    sequencers = [log(database), log(database)]

    async def sequence(own: AuditLog) -> None:
        for _ in range(10):
            await own.sequence(wait=False)

    async def writing(first: int) -> list[UUID]:
        return [await write(database, number, f"t{number % 3}") for number in range(first, first + 25)]

    *written, _, _ = await asyncio.gather(*(writing(first) for first in range(0, 100, 25)), *map(sequence, sequencers))
    ids = set()
    for tenant in ("t0", "t1", "t2"):
        report = verify(await exported(sequencers[0], tenant), public_key=SIGNER.public_key)
        assert report.problems == []
        entries = await sequencers[0].entries(tenant, first=0, limit=200)
        assert len(entries) == report.entries
        ids |= {entry.entry_id for entry in entries}
        assert {json.loads(entry.entry)["tenant"] for entry in entries} == {tenant}
    assert ids == {entry_id for each in written if each is not None for entry_id in each}
    assert len(ids) == 100


async def test_a_sequencer_that_dies_in_the_middle_leaves_all_to_the_next(database: Database) -> None:
    for number in range(5):
        await write(database, number)

    class Dies(AuditLog):
        async def _extend(self, *args: object) -> None:
            await super()._extend(*args)  # type: ignore[arg-type]
            raise ConnectionResetError("the process is gone")

    with pytest.raises(Exception, match="ConnectionResetError"):
        await Dies(database, SIGNER).sequence()
    found = log(database)
    assert (await found.checkpoint("acme")).size == 5
    assert verify(await exported(found)).holds


async def test_a_batch_larger_than_one_transaction_takes_is_sequenced_whole(database: Database) -> None:
    async with database.transaction() as connection:
        for number in range(2_100):
            await audit.append(connection, "acme", "test", {"number": number})
    found = log(database)
    assert (await found.checkpoint("acme")).size == 2_100
    lines = await exported(found)
    assert verify(lines, public_key=SIGNER.public_key).entries == 2_100
    numbers = [json.loads(json.loads(line)["entry"])["body"]["number"] for line in lines[1:-1]]
    assert numbers == list(range(2_100))


async def test_checkpoints_are_signed_when_due_and_once(database: Database) -> None:
    found = log(database, interval_s=0.000001)
    await write(database, 1)
    assert await found.unsigned_age_s() > 0
    await found.sequence()
    assert await found.unsigned_age_s() > 0
    await found.sign_due()
    assert await found.unsigned_age_s() == 0
    first = await found.checkpoint("acme")
    assert await found.checkpoint("acme") == first
    note = read_note(first.note, SIGNER.public_key)
    assert (note.origin, note.size, note.root) == ("personae/acme", 1, first.root)
    # Within the interval nothing is due.
    await write(database, 2)
    patient = log(database, interval_s=3600)
    await patient.sequence()
    await patient.sign_due()
    assert await patient.unsigned_age_s() > 0


async def test_the_runner_sequences_and_signs_by_itself(database: Database) -> None:
    told: list[int] = []
    signed, stop = asyncio.Event(), asyncio.Event()

    def on_age(seconds: float) -> None:
        if told:
            signed.set()

    await write(database, 1)
    found = AuditLog(database, SIGNER, interval_s=0.001, on_sequenced=told.append, on_age=on_age)
    task = asyncio.create_task(found.run(stop))
    async with asyncio.timeout(20):
        await signed.wait()
    stop.set()
    await task
    assert told == [1]
    assert await found.unsigned_age_s() == 0


async def test_a_decision_and_its_entry_are_written_together_and_once(database: Database, new_owner: NewOwner) -> None:
    owner = await new_owner()
    session = await owner.session()
    admission = await owner.admit(session)
    decision = Decision(
        Action.BLOCK,
        Stage.INPUT,
        "v1",
        category="hate",
        reason_code="BAD",
        scores={"hate": 0.25, "größe": float("nan")},
    )
    decision_id = await owner.sessions.decide(session, admission.turn_no, decision)
    found = log(database)
    await found.checkpoint("acme")
    position = await found.find("acme", decision_id)
    [entry] = await found.entries("acme", first=position, limit=1)
    body = json.loads(entry.entry)["body"]
    assert (body["action"], body["reason_code"], body["person"]) == ("block", "BAD", session.scope)
    assert body["scores"] == [{"category": "größe", "millionths": None}, {"category": "hate", "millionths": 250_000}]
    assert session.session not in entry.entry.decode()


# -- canonical JSON -----------------------------------------------------------

_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
_KEYS = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]))
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(_KEYS, _VALUES, max_size=5))
async def test_canonical_json_is_what_rfc_8785_says(body: dict[str, object]) -> None:
    # Sorted keys, no spaces, no escapes but those needed: with integers only, Python's own writer does the same.
    expected = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert audit.canonical(body) == expected


@pytest.mark.parametrize(
    "value", [0.5, 2**53, -(2**53), {"\U0001f600": 1}, {1: 2}, b"x", {"deep": [{"x": 1.0}]}, uuid4()]
)
async def test_what_has_no_one_form_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"canonical JSON|a key must be"):
        audit.canonical({"value": value})
