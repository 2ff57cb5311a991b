"""Leases, fencing and recovery: one owner writes a turn, and a turn ends once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from personae_runtime.errors import Aborted, AlreadyExists, FailedPrecondition, LeaseLost
from personae_runtime.ledger.personas import Mutation
from personae_runtime.ledger.sessions import SessionChange, SessionRow, turn_memory
from personae_runtime.memory.index import PointKind
from personae_runtime.memory.store import MemoryRecord
from personae_runtime.policy.decision import Action, Decision, Stage
from personae_runtime.sessions.events import Event, Latency, TextDelta, TurnCompleted, TurnInterrupted
from tests.unit.ledger.conftest import NewOwner, Owner

pytestmark = pytest.mark.asyncio(loop_scope="session")


def text(event_id: int, words: str) -> Event:
    return Event(event_id, "t1", datetime.now(UTC), TextDelta(words))


async def finish(
    owner: Owner, session: SessionRow, first: int, reply: str, turn_no: int = 1, history_from: int = 1
) -> None:
    """End a turn as completed, with two events."""
    now = datetime.now(UTC)
    await owner.sessions.finish(
        session,
        turn_no,
        await owner.cipher(session),
        state="COMPLETED",
        finish_reason="STOP",
        reply=reply,
        in_history=True,
        events=[Event(first, "t1", now, Latency(0.0, 0.0, 0.0)), Event(first + 1, "t1", now, TurnCompleted("STOP"))],
        memory=None,
        history_from=history_from,
    )


async def recorded(owner: Owner, session: SessionRow) -> list[Event]:
    return await owner.sessions.events(session, after=0, limit=1000)


async def test_a_turn_is_recorded_by_its_owner_from_start_to_end(new_owner: NewOwner) -> None:
    owner = await new_owner()
    session = await owner.session()
    admission = await owner.admit(session)
    assert (admission.new, admission.turn_no, admission.running) == (True, 1, True)
    await owner.append(session, admission, text(2, "Hello "), text(3, "Ann."))
    await finish(owner, session, 4, "Hello Ann.")
    events = await recorded(owner, session)
    assert [event.event_id for event in events] == [1, 2, 3, 4, 5]
    assert events[-1].body == TurnCompleted("STOP")
    turn = await owner.sessions.turn(session, "t1")
    assert (turn.state, turn.reply_text, turn.user_text) == ("COMPLETED", "Hello Ann.", "Hello there.")
    assert (await owner.sessions.get(session.name)).active_turn == ""
    second = await owner.admit(session, "t2")
    assert (second.turn_no, second.first_event_id) == (2, 6)


async def test_admission_tells_a_repeat_from_another_body_and_from_a_turn_in_progress(new_owner: NewOwner) -> None:
    owner = await new_owner()
    session = await owner.session()
    await owner.admit(session)
    assert not (await owner.admit(session)).new
    with pytest.raises(AlreadyExists) as reused:
        await owner.admit(session, text="Other words.")
    assert reused.value.reason == "TURN_ID_REUSED"
    with pytest.raises(Aborted) as busy:
        await owner.admit(session, "t2")
    assert busy.value.reason == "TURN_IN_PROGRESS"
    await finish(owner, session, 2, "")
    await owner.sessions.close(session.name)
    with pytest.raises(FailedPrecondition) as closed:
        await owner.admit(session, "t2")
    assert closed.value.reason == "SESSION_CLOSED"
    assert not (await owner.admit(session)).running


async def test_of_many_admissions_at_once_one_wins(new_owner: NewOwner) -> None:
    owner = await new_owner()
    session = await owner.session()
    results = await asyncio.gather(*(owner.admit(session, f"t{number}") for number in range(6)), return_exceptions=True)
    assert sum(not isinstance(result, BaseException) for result in results) == 1
    assert {type(result) for result in results if isinstance(result, BaseException)} == {Aborted}


async def test_a_new_process_of_the_same_host_closes_what_the_old_one_left(new_owner: NewOwner) -> None:
    old = await new_owner()
    session = await old.session()
    admission = await old.admit(session)
    await old.append(session, admission, text(2, "It was delivered."))
    new = await new_owner()
    assert await new.sessions.recover() == [session.session_pk]
    assert await new.sessions.recover() == []
    events = await recorded(new, session)
    assert events[-1].body == TurnInterrupted(len("It was delivered."), "OWNER_LOST")
    assert events[-1].event_id > 100_000
    turn = await new.sessions.turn(session, "t1")
    assert (turn.state, turn.reply_text, turn.last_event_id) == (
        "INTERRUPTED",
        "It was delivered.",
        events[-1].event_id,
    )
    assert (await new.admit(session, "t2")).first_event_id > events[-1].event_id


async def test_a_fenced_owner_changes_nothing(new_owner: NewOwner) -> None:
    old = await new_owner()
    session, other = await old.session(), await old.session()
    admission = await old.admit(session)
    await old.append(session, admission, text(2, "It was delivered."))
    new = await new_owner()
    await new.sessions.recover()
    before = await recorded(new, session)
    turn = await new.sessions.turn(session, "t1")
    for late in (
        old.append(session, admission, text(3, "Too late.")),
        finish(old, session, 3, "It was delivered. Too late."),
        old.admit(other),
        old.sessions.renew(),
    ):
        with pytest.raises(LeaseLost):
            await late
    assert await recorded(new, session) == before
    assert await new.sessions.turn(session, "t1") == turn
    assert sum(event.terminal for event in before) == 1

    # A new name lets the process go on; it still can't write for turns of the old one.
    await old.sessions.register()
    for late in (old.append(session, admission, text(3, "Too late.")), finish(old, session, 3, "Too late.")):
        with pytest.raises(LeaseLost):
            await late
    assert await recorded(new, session) == before
    assert (await old.admit(other)).new


async def test_another_hosts_turn_is_closed_only_when_its_lease_has_run_out(new_owner: NewOwner) -> None:
    there, here = await new_owner("there", lease_s=60), await new_owner("here")
    session = await there.session()
    admission = await there.admit(session)
    assert await here.sessions.recover() == []
    await there.append(session, admission, text(2, "Still alive."))
    await here.database.execute("UPDATE turns SET lease_expires_at = now() - interval '1 second'")
    await there.sessions.renew()
    assert await here.sessions.recover() == []
    await here.database.execute("UPDATE turns SET lease_expires_at = now() - interval '1 second'")
    assert await here.sessions.recover() == [session.session_pk]
    with pytest.raises(LeaseLost):
        await there.sessions.renew()


async def test_a_turn_ends_once_whoever_ends_it(new_owner: NewOwner) -> None:
    owner, other = await new_owner(), await new_owner("other")
    for _ in range(8):
        session = await owner.session()
        await owner.admit(session)
        await asyncio.gather(
            finish(owner, session, 2, ""),
            owner.sessions.close_orphan(session.session_pk, 1),
            other.sessions.close_orphan(session.session_pk, 1, "CANCELLED"),
            return_exceptions=True,
        )
        events = await recorded(owner, session)
        assert sum(event.terminal for event in events) == 1
        turn = await owner.sessions.turn(session, "t1")
        assert turn.state in ("COMPLETED", "INTERRUPTED")
        assert turn.last_event_id == events[-1].event_id
        assert (await owner.sessions.get(session.name)).active_turn == ""


async def test_an_end_that_is_recorded_again_after_a_lost_connection_changes_nothing(new_owner: NewOwner) -> None:
    owner = await new_owner()
    session = await owner.session()
    await owner.admit(session)
    await finish(owner, session, 2, "The reply.")
    before = await recorded(owner, session)
    await finish(owner, session, 2, "The reply.")
    assert await recorded(owner, session) == before
    with pytest.raises(LeaseLost):
        await finish(owner, session, 10, "Another reply.")
    assert await recorded(owner, session) == before


async def test_nothing_is_added_to_a_turn_that_has_ended(new_owner: NewOwner) -> None:
    owner = await new_owner()
    session, running = await owner.session(), await owner.session()
    ended, going = await owner.admit(session), await owner.admit(running)
    await owner.sessions.close_orphan(session.session_pk, 1)
    late = owner.append(session, ended, text(2, "Too late."))
    alive = owner.append(running, going, text(2, "In time."))
    results = await asyncio.gather(late, alive, return_exceptions=True)
    assert isinstance(results[0], LeaseLost)
    assert results[1] is None
    assert not any(isinstance(event.body, TextDelta) for event in await recorded(owner, session))
    assert any(isinstance(event.body, TextDelta) for event in await recorded(owner, running))


async def test_an_append_that_is_repeated_writes_once(new_owner: NewOwner) -> None:
    owner = await new_owner()
    session = await owner.session()
    admission = await owner.admit(session)
    await owner.append(session, admission, text(2, "Once."))
    await owner.append(session, admission, text(2, "Once."))
    assert [event.event_id for event in await recorded(owner, session)] == [1, 2]


async def test_appends_of_many_turns_are_committed_together(new_owner: NewOwner) -> None:
    owner = await new_owner()
    batches: list[int] = []
    owner.writer._observe = lambda rows, seconds: batches.append(rows)
    sessions = [await owner.session() for _ in range(10)]
    admitted = [(session, await owner.admit(session)) for session in sessions]
    await asyncio.gather(*(owner.append(session, admission, text(2, "A unit.")) for session, admission in admitted))
    assert batches == [10], "what is ready to be written waits for no other commit"


async def test_recovery_remembers_what_passed_the_gate_and_nothing_else(new_owner: NewOwner) -> None:
    old = await new_owner()
    told = {}
    for name, words in (
        ("passed", "My bike is green."),
        ("kept", "My secret word."),
        ("refused", "Bad words."),
        ("unseen", "Unseen."),
    ):
        session = told[name] = await old.session()
        admission = await old.admit(session, text=words)
        if name == "refused":
            await old.sessions.decide(session, 1, Decision(Action.BLOCK, Stage.INPUT, "v1", reason_code="BAD"))
        if name != "unseen":
            await old.append(session, admission, text(2, "A reply."))
    new = await new_owner()
    assert len(await new.sessions.recover()) == 4
    remembered = {
        name: [record.text for record in await new.memories.list_memories(session.scope, before=None, limit=10)]
        for name, session in told.items()
    }
    assert remembered == {"passed": ["My bike is green."], "kept": [], "refused": [], "unseen": []}
    history = {name: (await new.sessions.turn(session, "t1")).in_history for name, session in told.items()}
    assert history == {"passed": True, "kept": True, "refused": False, "unseen": False}


async def test_recovery_draws_facts_from_the_persons_words_and_not_from_the_reply(new_owner: NewOwner) -> None:
    old = await new_owner()
    session = await old.session()
    admission = await old.admit(session, text="I live in Porto.")
    await old.append(session, admission, text(2, "I live in Atlantis, and so do you."))
    new = await new_owner()
    assert await new.sessions.recover() == [session.session_pk]
    facts = await new.memories.list_memories(session.scope, before=None, limit=10, kind=PointKind.FACT)
    assert [fact.text for fact in facts] == ["Lives in Porto."]


# -- several owners -----------------------------------------------------------


async def reachable(owner: Owner, endpoint: str) -> Owner:
    """The owner, once it can be reached at an endpoint."""
    await owner.sessions.register(endpoint)
    return owner


async def test_owners_know_who_else_lives_and_where(new_owner: NewOwner) -> None:
    alone = await reachable(await new_owner("a"), "a:1")
    await alone.sessions.renew()
    assert (alone.sessions.alone, alone.sessions.peers) == (True, frozenset())
    other = await reachable(await new_owner("b"), "b:1")
    silent = await new_owner("c")
    await alone.sessions.renew()
    assert (alone.sessions.alone, alone.sessions.peers) == (False, {"b:1"})
    assert await other.sessions.find_peers() == {"a:1"}
    assert await silent.sessions.find_peers() == {"a:1", "b:1"}

    # Who admits no more is alive, but nobody to go to.
    await other.sessions.leave()
    assert await alone.sessions.find_peers() == set()
    assert not alone.sessions.alone
    await other.sessions.register()
    assert await alone.sessions.find_peers() == set()


async def test_an_owner_that_is_not_heard_of_or_is_fenced_off_lives_no_more(new_owner: NewOwner) -> None:
    here = await reachable(await new_owner("here"), "here:1")
    there = await reachable(await new_owner("there"), "there:1")
    session = await there.session()
    await there.admit(session)
    found = await here.sessions.whereabouts(session.session_pk)
    assert found is not None
    assert (found.owner, found.endpoint) == (there.sessions.owner, "there:1")
    await here.database.execute("UPDATE owners SET seen_at = now() - interval '1 hour' WHERE host = 'there'")
    assert await here.sessions.find_peers() == set()
    assert here.sessions.alone
    found = await here.sessions.whereabouts(session.session_pk)
    assert found is not None
    assert found.endpoint == ""
    # It was only slow.
    await there.sessions.renew()
    assert await here.sessions.find_peers() == {"there:1"}
    await here.database.execute("UPDATE turns SET lease_expires_at = now() - interval '1 second'")
    assert await here.sessions.recover() == [session.session_pk]
    assert await here.sessions.find_peers() == set()
    assert await here.sessions.whereabouts(session.session_pk) is None


async def test_a_turn_of_ones_own_is_nowhere_to_be_called(new_owner: NewOwner) -> None:
    owner = await reachable(await new_owner(), "host:1")
    session = await owner.session()
    assert await owner.sessions.whereabouts(session.session_pk) is None
    await owner.admit(session)
    found = await owner.sessions.whereabouts(session.session_pk)
    assert found is not None
    assert (found.owner, found.endpoint) == (owner.sessions.owner, "")


async def test_sessions_that_went_on_elsewhere_are_found_in_one_look(new_owner: NewOwner) -> None:
    here = await reachable(await new_owner("here"), "here:1")
    there = await reachable(await new_owner("there"), "there:1")
    idle, running, ended, closed = [await here.session() for _ in range(4)]
    known = [(session.session_pk, session.next_event_id) for session in (idle, running, ended, closed)]
    assert await here.sessions.changed([]) == {}
    assert await here.sessions.changed(known) == {}
    await there.admit(running)
    await finish(there, ended, (await there.admit(ended)).first_event_id + 1, "")
    await there.sessions.close(closed.name)
    found = await here.sessions.changed(known)
    assert set(found) == {running.session_pk, ended.session_pk, closed.session_pk}
    where = found[running.session_pk].running
    assert where is not None
    assert where.endpoint == "there:1"
    assert found[ended.session_pk] == SessionChange(next_event_id=4, closed=False, running=None)
    assert found[closed.session_pk] == SessionChange(next_event_id=1, closed=True, running=None)
    assert (await here.sessions.get(ended.name)).next_event_id == 4


async def test_an_admission_tells_whether_there_is_anything_to_recall_beside_the_history(new_owner: NewOwner) -> None:
    owner = await new_owner()
    session = await owner.session()
    turn_no = 0

    async def admitted(history_from: int = 1) -> bool:
        """Of one more turn, after which the history begins at `history_from`."""
        nonlocal turn_no
        turn_no += 1
        admission = await owner.admit(session, f"t{turn_no}")
        await finish(owner, session, admission.first_event_id + 1, "Yes.", turn_no=turn_no, history_from=history_from)
        return admission.has_memories

    async def remember(**fields: Any) -> MemoryRecord:
        record = turn_memory(session.scope, session.session, 1, "ann", "I ride a bicycle.", datetime.now(UTC))
        return await owner.memories.create(replace(record, **fields), session.tenant, Mutation("Test", "", b"x"))

    assert not await admitted()
    await remember()  # in the history, too
    assert not await admitted()
    elsewhere = await remember(thread="session/another")
    assert await admitted()
    await owner.memories.forget(session.scope, elsewhere.memory_id)
    assert not await admitted()
    await remember(thread="", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    assert not await admitted(history_from=2)
    assert await admitted(), "the history no longer holds this session's first turn"
    assert not (await owner.admit(await owner.session())).has_memories, "other people's are none"
