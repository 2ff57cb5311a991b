"""Moments that are too short to be hit by chance, each brought about on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from personae_runtime.errors import LeaseLost
from personae_runtime.ledger.database import Database
from personae_runtime.ledger.embedded import EmbeddedPostgres
from personae_runtime.ledger.memories import MemoryLedger
from personae_runtime.ledger.personas import Mutation, PersonaLedger
from personae_runtime.ledger.sessions import Admission, SessionLedger, SessionRow
from personae_runtime.ledger.vault import ScopeCipher, Vault
from personae_runtime.ledger.writer import EventRow, EventWriter
from personae_runtime.names import Name
from personae_runtime.personas.definition import PersonaDefinition
from personae_runtime.sessions.events import Body, Event, TextDelta, TurnCompleted, TurnInterrupted, TurnStarted
from personae_runtime.sessions.recorder import Recorder


async def test_a_recorder_that_is_stopped_as_it_asks_for_leave_stops() -> None:
    asked = asyncio.Event()

    async def never() -> None:
        asked.set()
        await asyncio.Event().wait()

    def append(rows: list[EventRow]) -> asyncio.Future[None]:
        pytest.fail("nothing may be recorded without leave")

    for first_step_taken in (False, True):
        recorder = Recorder(
            "t1",
            1,
            seal=lambda event: EventRow(1, event.event_id, 1, event.body.kind, b"", event.time),
            append=append,
            may_release=never,
            deliver=lambda event: pytest.fail("nothing may be delivered without leave"),
            pause_s=lambda: 0.0,
            on_lateness=lambda seconds: None,
        )
        recorder.start()
        recorder.emit(TextDelta("Hello."))
        if first_step_taken:
            await asked.wait()
        await asyncio.wait_for(recorder.stop(), 5)
        assert recorder.text == []


@dataclass(frozen=True, slots=True)
class Open:
    """A ledger, and one open session in it."""

    database: Database
    writer: EventWriter
    sessions: SessionLedger
    session: SessionRow
    cipher: ScopeCipher

    async def admit(self, turn_id: str) -> Admission:
        return await self.sessions.admit(self.session, self.cipher, turn_id, f"Hello, {turn_id}.", TurnStarted("AI", 1))

    def row(self, turn: Admission, offset: int, text: str) -> EventRow:
        event = Event(turn.first_event_id + offset, "", datetime.now(UTC), TextDelta(text))
        return self.sessions.row(self.session.session_pk, turn.turn_no, self.cipher, event)

    async def finish(self, turn: Admission, offset: int, reply: str) -> None:
        end = Event(turn.first_event_id + offset, "", datetime.now(UTC), TurnCompleted("STOP"))
        await self.sessions.finish(
            self.session,
            turn.turn_no,
            self.cipher,
            state="COMPLETED",
            finish_reason="STOP",
            reply=reply,
            in_history=True,
            events=[end],
            memory=None,
            history_from=1,
        )

    async def events(self) -> list[Body]:
        return [event.body for event in await self.sessions.events(self.session, after=0, limit=100)]

    async def remembered(self) -> list[int]:
        return [row["ordinal"] for row in await self.database.fetch("SELECT ordinal FROM memories ORDER BY ordinal")]


@pytest.fixture
async def ledger(folder: Path) -> AsyncIterator[Open]:
    postgres = EmbeddedPostgres(folder / "postgres")
    database = Database(await postgres.start(), pool_size=4, command_timeout_s=10)
    try:
        await database.open()
        await database.migrate()
        vault = Vault(bytes(32), database)
        name = Name("demo", "nadia")
        personas = PersonaLedger(database, vault)
        await personas.create(name, "Nadia", "assistant", Mutation("CreatePersona", "", b""))
        await personas.publish(name, PersonaDefinition("You are Nadia."), Mutation("PublishRevision", "", b""))
        sessions = SessionLedger(
            database,
            vault,
            MemoryLedger(database, vault),
            host="here",
            lease_s=10,
            may_store=lambda text, context: "t3" not in text,
        )
        await sessions.register()
        session = await sessions.create(
            name, "s-1", "u-1", age_band="adult", region_code="", disclosure="AI", mutation=Mutation("", "", b"")
        )
        writer = EventWriter(database, timeout_s=5)
        writer.start()
        yield Open(database, writer, sessions, session, await vault.cipher_by_key(session.scope))
        await writer.close()
    finally:
        await database.close()
        await postgres.stop()


async def test_what_arrives_after_a_turn_was_closed_is_not_recorded(ledger: Open) -> None:
    owner = ledger.sessions.owner
    turn = await ledger.admit("t1")
    await ledger.writer.append([ledger.row(turn, 1, "Good ")], owner)
    assert await ledger.sessions.close_orphan(ledger.session.session_pk, turn.turn_no)
    before = await ledger.events()
    assert before[-1] == TurnInterrupted(5, "OWNER_LOST")

    following = await ledger.admit("t2")
    late = ledger.writer.append([ledger.row(turn, 2, "morning.")], owner)
    in_time = ledger.writer.append([ledger.row(following, 1, "Hello.")], owner)
    with pytest.raises(LeaseLost):
        await late
    await in_time
    with pytest.raises(LeaseLost):
        await ledger.finish(turn, 3, "Good morning.")
    assert await ledger.events() == [*before, TurnStarted("AI", 1), TextDelta("Hello.")]
    assert not await ledger.sessions.close_orphan(ledger.session.session_pk, turn.turn_no)


async def test_closing_a_turn_waits_for_what_is_being_committed(ledger: Open) -> None:
    turn = await ledger.admit("t1")
    row = ledger.row(turn, 1, "Good morning.")
    async with ledger.database.transaction() as connection:
        await connection.fetchval(
            "SELECT append_events($1, $2, $3, $4, $5, $6, $7)",
            ledger.sessions.owner,
            [row.session_pk],
            [row.event_id],
            [row.turn_no],
            [row.kind],
            [row.body],
            [row.created_at],
        )
        closing = asyncio.create_task(ledger.sessions.close_orphan(ledger.session.session_pk, turn.turn_no))
        # It is seen to wait for a lock, unless it does not wait at all.
        while True:
            waits = await ledger.database.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")
            if waits or closing.done():
                break
    assert await closing
    assert (await ledger.events())[1:] == [TextDelta("Good morning."), TurnInterrupted(13, "OWNER_LOST")]
    assert (await ledger.sessions.turn(ledger.session, "t1")).reply_text == "Good morning."


async def test_an_end_recorded_twice_is_one_end(ledger: Open) -> None:
    turn = await ledger.admit("t1")
    for _ in range(2):
        await ledger.finish(turn, 1, "")
    assert await ledger.events() == [TurnStarted("AI", 1), TurnCompleted("STOP")]


async def test_words_of_a_lost_turn_are_kept_only_if_the_gate_let_them_pass_and_policy_lets_them_be_stored(
    ledger: Open,
) -> None:
    for turn_id, text in (("t1", ""), ("t2", "Hello."), ("t3", "Hello.")):
        turn = await ledger.admit(turn_id)
        if text:
            await ledger.writer.append([ledger.row(turn, 1, text)], ledger.sessions.owner)
        await ledger.sessions.close_orphan(ledger.session.session_pk, turn.turn_no)
    turns = await ledger.sessions.turns(ledger.session, after=0, limit=10)
    assert [(turn.user_text, turn.in_history) for turn in turns] == [
        ("Hello, t1.", False),
        ("Hello, t2.", True),
        ("Hello, t3.", True),
    ]
    assert await ledger.remembered() == [2]
