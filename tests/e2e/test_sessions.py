"""SessionService over gRPC: sessions, turns, and what a turn leaves."""

from __future__ import annotations

import asyncio
import uuid

import grpc
import pytest

from personae.v1 import event_pb2, policy_service_pb2
from personae.v1 import session_service_pb2 as pb
from personae_runtime.engines.engine import EngineFinish
from personae_runtime.errors import EngineDead
from tests.e2e.conftest import StartHost
from tests.e2e.support import (
    DEFAULT_REPLY,
    Api,
    Hosted,
    Pause,
    failure,
    kinds,
    new_turn_id,
    new_user,
    read_until,
    rest,
    text_of,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_session_pins_the_active_revision_and_tells_that_an_ai_speaks(api: Api) -> None:
    persona = await api.persona()
    user = new_user(persona)
    made = await api.sessions.CreateSession(
        pb.CreateSessionRequest(
            parent=persona,
            session=pb.Session(user=user, age_band=policy_service_pb2.AGE_BAND_ADULT, region_code="PT"),
        )
    )
    assert made.name.startswith(f"{persona}/sessions/")
    assert (made.user, made.revision, made.state) == (user, f"{persona}/revisions/1", pb.SESSION_STATE_OPEN)
    assert (made.age_band, made.region_code) == (policy_service_pb2.AGE_BAND_ADULT, "PT")
    assert "AI" in made.disclosure
    assert await api.sessions.GetSession(pb.GetSessionRequest(name=made.name)) == made


async def test_a_session_needs_a_published_revision_its_own_user_and_a_free_id(api: Api) -> None:
    unpublished, persona = await api.persona(publish=False), await api.persona()
    bare = await failure(api.sessions.CreateSession(create(unpublished)))
    assert (bare.code, bare.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_ACTIVE_REVISION")
    foreign = await failure(api.sessions.CreateSession(create(persona, user=new_user(unpublished))))
    assert (foreign.code, foreign.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["session.user"])
    await api.sessions.CreateSession(create(persona, session_id="mine"))
    taken = await failure(api.sessions.CreateSession(create(persona, session_id="mine")))
    assert taken.code is grpc.StatusCode.ALREADY_EXISTS
    nobody = await failure(api.sessions.CreateSession(create("tenants/demo/personas/nobody")))
    assert nobody.code is grpc.StatusCode.NOT_FOUND


def create(persona: str, *, user: str = "", session_id: str = "", request_id: str = "") -> pb.CreateSessionRequest:
    return pb.CreateSessionRequest(
        parent=persona,
        session=pb.Session(user=user or new_user(persona)),
        session_id=session_id,
        request_id=request_id,
    )


async def test_a_repeated_create_opens_one_session(api: Api) -> None:
    request = create(await api.persona(), request_id=str(uuid.uuid4()))
    first, second = await asyncio.gather(api.sessions.CreateSession(request), api.sessions.CreateSession(request))
    assert first == second
    request.session.region_code = "PT"
    assert (await failure(api.sessions.CreateSession(request))).reason == "REQUEST_ID_REUSED"


async def test_sessions_are_listed_newest_first_by_user_and_in_pages(api: Api) -> None:
    persona = await api.persona()
    user = new_user(persona)
    mine = [await api.session(persona, user) for _ in range(3)]
    theirs = await api.session(persona)
    listed = await api.sessions.ListSessions(pb.ListSessionsRequest(parent=persona))
    assert [session.name for session in listed.sessions] == [theirs, *reversed(mine)]
    first = await api.sessions.ListSessions(pb.ListSessionsRequest(parent=persona, user=user, page_size=2))
    second = await api.sessions.ListSessions(
        pb.ListSessionsRequest(parent=persona, user=user, page_size=2, page_token=first.next_page_token)
    )
    assert [session.name for page in (first, second) for session in page.sessions] == list(reversed(mine))
    unbound = await failure(
        api.sessions.ListSessions(pb.ListSessionsRequest(parent=persona, page_token=first.next_page_token))
    )
    assert unbound.reason == "PAGE_TOKEN_INVALID"
    foreign = await failure(
        api.sessions.ListSessions(pb.ListSessionsRequest(parent=persona, user=new_user("tenants/demo/personas/x")))
    )
    assert foreign.fields == ["user"]


async def test_a_turn_runs_from_turn_started_to_turn_completed(hosted: Hosted) -> None:
    api = hosted.api
    session = await api.session(await api.persona())
    hosted.engine.will_say("First sentence here. ", "Second one follows. ", "Third ends it.")
    turn_id = new_turn_id()
    events = await api.say(session, "Hello there.", turn_id)
    assert kinds(events)[0] == "turn_started"
    assert kinds(events)[-3:] == ["usage", "latency", "turn_completed"]
    assert set(kinds(events)[1:-3]) == {"text_delta"}
    assert text_of(events) == "First sentence here. Second one follows. Third ends it."
    assert {event.turn_id for event in events} == {turn_id}
    ids = [event.event_id for event in events]
    assert ids == sorted(set(ids))
    assert events[-1].turn_completed.finish_reason == event_pb2.FINISH_REASON_STOP
    assert "AI" in events[0].turn_started.disclosure
    [turn] = await api.turns(session)
    assert (turn.name, turn.state) == (f"{session}/turns/{turn_id}", pb.TURN_STATE_COMPLETED)
    assert (turn.user_text, turn.reply_text) == ("Hello there.", text_of(events))
    assert (turn.first_event_id, turn.last_event_id) == (ids[0], ids[-1])
    assert turn.finish_reason == event_pb2.FINISH_REASON_STOP


async def test_the_length_limit_is_told(hosted: Hosted) -> None:
    hosted.engine.will_say("It was cut here", EngineFinish.LENGTH)
    events = await hosted.api.say(await hosted.api.session(await hosted.api.persona()), "Hello there.")
    assert events[-1].turn_completed.finish_reason == event_pb2.FINISH_REASON_LENGTH
    assert text_of(events) == "It was cut here"


async def test_the_next_prompt_has_what_was_said_before_and_event_ids_go_on_rising(hosted: Hosted) -> None:
    api = hosted.api
    session = await api.session(await api.persona())
    hosted.engine.will_say("The first answer.")
    first = await api.say(session, "The first question.")
    second = await api.say(session, "The second question.")
    assert second[0].event_id > first[-1].event_id
    assert [(message.role, message.content) for message in hosted.engine.requests[-1].messages[1:]] == [
        ("user", "The first question."),
        ("assistant", "The first answer."),
        ("user", "The second question."),
    ]


async def test_an_ended_turn_is_replayed_byte_for_byte(hosted: Hosted) -> None:
    api = hosted.api
    persona = await api.persona()
    user = new_user(persona)
    await api.remember(user, "My bicycle is a green Brompton called Kermit.")
    await hosted.indexed()
    session = await api.session(persona, user)
    turn_id = new_turn_id()
    events = await api.say(session, "What bicycle do I ride?", turn_id)
    assert "memory_citation" in kinds(events)
    made = len(hosted.engine.requests)
    replayed = await api.say(session, "What bicycle do I ride?", turn_id)
    assert [event.SerializeToString(deterministic=True) for event in replayed] == [
        event.SerializeToString(deterministic=True) for event in events
    ]
    assert len(hosted.engine.requests) == made


async def test_a_turn_id_with_other_text_is_refused(api: Api) -> None:
    session = await api.session(await api.persona())
    turn_id = new_turn_id()
    await api.say(session, "Hello there.", turn_id)
    refused = await failure(api.converse(session, "Something else.", turn_id))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "TURN_ID_REUSED")


async def test_the_same_turn_again_joins_it_while_it_runs(hosted: Hosted) -> None:
    api, pause = hosted.api, Pause()
    session = await api.session(await api.persona())
    hosted.engine.will_say("First sentence here. And ", pause, "then the second one.")
    turn_id = new_turn_id()
    first = api.converse(session, "Hello there.", turn_id)
    began = await read_until(first, "text_delta")
    second = api.converse(session, "Hello there.", turn_id)
    joined = await read_until(second, "text_delta")
    assert joined == began
    pause.go.set()
    assert began + await rest(first) == joined + await rest(second)
    assert len(hosted.engine.requests) == 1


async def test_a_second_turn_while_one_runs_is_aborted(hosted: Hosted) -> None:
    api, pause = hosted.api, Pause()
    session = await api.session(await api.persona())
    hosted.engine.will_say(pause, "The reply.")
    turn_id = new_turn_id()
    first = api.converse(session, "Hello there.", turn_id)
    await read_until(first, "turn_started")
    refused = await failure(api.converse(session, "And another."))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "TURN_IN_PROGRESS")
    assert refused.metadata["turn_id"] == turn_id
    reused = await failure(api.converse(session, "And another.", turn_id))
    assert reused.reason == "TURN_ID_REUSED"
    running = await api.sessions.GetSession(pb.GetSessionRequest(name=session))
    assert running.active_turn == f"{session}/turns/{turn_id}"
    pause.go.set()
    assert kinds(await rest(first))[-1] == "turn_completed"
    assert not (await api.sessions.GetSession(pb.GetSessionRequest(name=session))).active_turn


async def test_of_many_turns_at_once_one_runs(hosted: Hosted) -> None:
    api, pause = hosted.api, Pause()
    session = await api.session(await api.persona())
    hosted.engine.will_say(pause, "The reply.")
    calls = [api.converse(session, f"Text number {number}.") for number in range(8)]
    firsts = await asyncio.gather(*(call.read() for call in calls), return_exceptions=True)
    winners = [call for call, first in zip(calls, firsts, strict=True) if not isinstance(first, BaseException)]
    assert len(winners) == 1
    losers = [first for first in firsts if isinstance(first, grpc.aio.AioRpcError)]
    assert {error.code() for error in losers} == {grpc.StatusCode.ABORTED}
    assert len(losers) == 7
    pause.go.set()
    assert kinds(await rest(winners[0]))[-1] == "turn_completed"
    assert len(await api.turns(session)) == 1


async def test_many_calls_of_one_turn_see_one_turn(hosted: Hosted) -> None:
    api = hosted.api
    session = await api.session(await api.persona())
    turn_id = new_turn_id()
    seen = await asyncio.gather(*(api.say(session, "Hello there.", turn_id) for _ in range(8)))
    assert all(events == seen[0] for events in seen)
    assert len(hosted.engine.requests) == 1


async def test_a_refused_turn_does_not_disturb_one_that_waits_for_it(hosted: Hosted) -> None:
    api = hosted.api
    session = await api.session(await api.persona())
    used, turn_id = new_turn_id(), new_turn_id()
    await api.say(session, "Hello there.", used)
    # All wait for one lock; the first to get it fails while others already wait.
    calls = [api.converse(session, "Other text.", used), *(api.converse(session, "New.", turn_id) for _ in range(3))]
    results = await asyncio.gather(*(rest(call) for call in calls), return_exceptions=True)
    assert isinstance(results[0], grpc.aio.AioRpcError)
    assert results[1] == results[2] == results[3]
    assert kinds(results[1])[-1] == "turn_completed"  # type: ignore[arg-type]


async def test_cancelling_stops_the_engine_and_keeps_what_was_delivered(hosted: Hosted) -> None:
    api, pause = hosted.api, Pause()
    session = await api.session(await api.persona())
    hosted.engine.will_say("This was delivered. This unit is never f", pause, "inished.")
    turn_id = new_turn_id()
    call = api.converse(session, "Hello there.", turn_id)
    began = await read_until(call, "text_delta")
    await pause.wait()
    turn = await api.cancel(session, turn_id)
    await hosted.engine.idle()
    assert hosted.engine.capacity().running == 0
    assert list(hosted.engine.ended.values())[-1]
    assert (turn.state, turn.reply_text) == (pb.TURN_STATE_INTERRUPTED, "This was delivered.")
    end = (await rest(call))[-1].turn_interrupted
    assert end.reason == event_pb2.TurnInterrupted.REASON_CANCELLED
    assert end.delivered_chars == len("This was delivered.") == len(text_of(began))

    again = await api.cancel(session, turn_id)
    assert again == turn
    await api.say(session, "And now?")
    assert [message.content for message in hosted.engine.requests[-1].messages[1:]] == [
        "Hello there.",
        "This was delivered.",
        "And now?",
    ]


async def test_cancelling_an_ended_or_unknown_turn_changes_nothing(api: Api) -> None:
    session = await api.session(await api.persona())
    turn_id = new_turn_id()
    await api.say(session, "Hello there.", turn_id)
    assert (await api.cancel(session, turn_id)).state == pb.TURN_STATE_COMPLETED
    missing = await failure(api.sessions.CancelTurn(pb.CancelTurnRequest(name=f"{session}/turns/none")))
    assert missing.code is grpc.StatusCode.NOT_FOUND


async def test_closing_cancels_the_running_turn_and_admits_no_other(hosted: Hosted) -> None:
    api, pause = hosted.api, Pause()
    session = await api.session(await api.persona())
    hosted.engine.will_say("This was delivered. And ", pause, "more.")
    call = api.converse(session, "Hello there.")
    await read_until(call, "text_delta")
    closed = await api.sessions.CloseSession(pb.CloseSessionRequest(name=session))
    assert closed.state == pb.SESSION_STATE_CLOSED
    assert closed.HasField("close_time")
    assert not closed.active_turn
    assert (await rest(call))[-1].turn_interrupted.reason == event_pb2.TurnInterrupted.REASON_CANCELLED
    await hosted.engine.idle()
    assert await api.sessions.CloseSession(pb.CloseSessionRequest(name=session)) == closed
    refused = await failure(api.converse(session, "Hello again."))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SESSION_CLOSED")
    assert [turn.state for turn in await api.turns(session)] == [pb.TURN_STATE_INTERRUPTED]


async def test_a_turn_that_ended_is_replayed_even_when_the_session_is_closed(api: Api) -> None:
    session = await api.session(await api.persona())
    turn_id = new_turn_id()
    events = await api.say(session, "Hello there.", turn_id)
    await api.sessions.CloseSession(pb.CloseSessionRequest(name=session))
    assert await api.say(session, "Hello there.", turn_id) == events


async def test_turns_are_listed_oldest_first_in_pages_and_a_running_one_with_what_it_has_said(hosted: Hosted) -> None:
    api, pause = hosted.api, Pause()
    session = await api.session(await api.persona())
    for text in ("One is here.", "Two is here."):
        await api.say(session, text)
    hosted.engine.will_say("Said so far. And ", pause, "more.")
    call = api.converse(session, "Three is here.")
    await read_until(call, "text_delta")
    first = await api.sessions.ListTurns(pb.ListTurnsRequest(parent=session, page_size=2))
    second = await api.sessions.ListTurns(
        pb.ListTurnsRequest(parent=session, page_size=2, page_token=first.next_page_token)
    )
    assert [turn.user_text for turn in first.turns] == ["One is here.", "Two is here."]
    [running] = second.turns
    assert (running.state, running.reply_text, running.last_event_id) == (pb.TURN_STATE_RUNNING, "Said so far.", 0)
    assert not second.next_page_token
    pause.go.set()
    await rest(call)


async def test_a_failing_engine_ends_the_turn_as_interrupted(hosted: Hosted) -> None:
    api = hosted.api
    session = await api.session(await api.persona())
    hosted.engine.will_say("This was delivered. ", "And so was this. ", EngineDead("gone"))
    events = await api.say(session, "Hello there.")
    end = events[-1].turn_interrupted
    assert end.reason == event_pb2.TurnInterrupted.REASON_ENGINE_FAILED
    assert end.delivered_chars == len(text_of(events))
    hosted.engine.will_say("It began. ", EngineFinish.ABORT)
    events = await api.say(session, "Hello there.")
    assert events[-1].turn_interrupted.reason == event_pb2.TurnInterrupted.REASON_ENGINE_FAILED
    assert text_of(await api.say(session, "And now?")) == DEFAULT_REPLY


async def test_a_turn_that_takes_too_long_is_timed_out(start_host: StartHost) -> None:
    hosted = await start_host(sessions={"turn_timeout_s": 0.4})
    api = hosted.api
    session = await api.session(await api.persona())
    hosted.engine.will_say("This was delivered. And ", Pause(), "more.")
    events = await api.say(session, "Hello there.")
    assert events[-1].turn_interrupted.reason == event_pb2.TurnInterrupted.REASON_TIMED_OUT
    assert text_of(events) == "This was delivered."
    await hosted.engine.idle()


async def test_history_is_cut_in_big_steps_and_recall_then_reaches_the_cut_turns(start_host: StartHost) -> None:
    hosted = await start_host(sessions={"history_tokens": 100})
    api = hosted.api
    session = await api.session(await api.persona())
    await api.say(session, "My bicycle is a green Brompton called Kermit.")
    for number in range(8):
        await api.say(session, f"Number {number}: the weather is fine and the road is dry today.")
    # Old turns are not in the history any more, so recall brings them back.
    await hosted.indexed()
    events = await api.say(session, "What is my Brompton bicycle called?")
    assert "green Brompton called Kermit" in hosted.engine.requests[-1].messages[-1].content
    quotes = [event.memory_citation.quote for event in events if event.HasField("memory_citation")]
    assert any("Kermit" in quote for quote in quotes)
    assert len(hosted.engine.requests[-1].messages) < 2 * 9
