"""Streams are views: dropped, resumed, attached, slow; the turn goes on."""

from __future__ import annotations

import asyncio
import gc
import weakref

import grpc
import pytest

from personae.v1 import event_pb2
from personae.v1 import session_service_pb2 as pb
from tests.e2e.conftest import StartHost
from tests.e2e.support import (
    WAIT_S,
    Api,
    Hosted,
    Pause,
    failure,
    kinds,
    new_turn_id,
    read_failure,
    read_until,
    rest,
    say_in_steps,
    text_of,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

REPLY = ("The first unit. ", "The second unit. ", "The third unit. ", "The fourth unit ends it.")


async def ended(hosted: Hosted, session: str, turn_id: str) -> list[event_pb2.SessionEvent]:
    """Every event of a turn, when it has ended, however it was watched."""
    return await hosted.api.attached(session, turn_id=turn_id)


async def test_losing_the_stream_does_not_end_the_turn(hosted: Hosted) -> None:
    api, pause = hosted.api, Pause()
    session = await api.session(await api.persona())
    hosted.engine.will_say("The first unit. And ", pause, "the rest of it.")
    turn_id = new_turn_id()
    call = api.converse(session, "Hello there.", turn_id)
    seen = await read_until(call, "text_delta")
    call.cancel()
    await pause.wait()
    pause.go.set()
    events = await ended(hosted, session, turn_id)
    assert events[: len(seen)] == seen
    assert text_of(events) == "The first unit. And the rest of it."
    assert kinds(events)[-1] == "turn_completed"


async def test_a_client_that_leaves_during_admission_leaves_a_turn_that_runs_or_none(hosted: Hosted) -> None:
    api = hosted.api
    session = await api.session(await api.persona())
    for delay in (0.0, 0.002, 0.004, 0.006, 0.008, 0.012):
        turn_id = new_turn_id()
        call = api.converse(session, "Hello there.", turn_id)
        reading = asyncio.ensure_future(call.read())
        await asyncio.wait([reading], timeout=delay)
        call.cancel()
        await asyncio.wait([reading])
        # The same call again runs it or joins it: it always ends, and never as lost.
        events = await api.say(session, "Hello there.", turn_id)
        assert kinds(events)[0] == "turn_started"
        assert kinds(events)[-1] == "turn_completed"
        assert kinds(events).count("turn_started") == 1


async def test_attach_after_any_event_gives_exactly_the_rest(hosted: Hosted) -> None:
    api = hosted.api
    session = await api.session(await api.persona())
    turn_id = new_turn_id()
    events = await say_in_steps(hosted, session, REPLY, turn_id)
    assert len(events) == 1 + len(REPLY) + 3
    for position, event in enumerate(events):
        assert await api.attached(session, event.event_id, turn_id) == events[position + 1 :]
    assert await api.attached(session, 0, turn_id) == events


async def test_attach_to_a_running_turn_replays_and_goes_on_live(hosted: Hosted) -> None:
    api = hosted.api
    session = await api.session(await api.persona())
    pauses = [Pause() for _ in REPLY]
    hosted.engine.will_say(*(part for pair in zip(REPLY, pauses, strict=True) for part in pair))
    turn_id = new_turn_id()
    first = api.converse(session, "Hello there.", turn_id)
    seen: list[event_pb2.SessionEvent] = []
    attached = []
    for pause in pauses:
        await pause.wait()
        after = seen[-1].event_id if seen else 0
        attached.append((after, api.attach(session, after, turn_id)))
        pause.go.set()
        seen += await read_until(first, "text_delta")
    seen += await rest(first)
    assert text_of(seen) == "".join(REPLY)
    for after, call in attached:
        assert await rest(call) == [event for event in seen if event.event_id > after]


async def test_attach_to_a_session_follows_later_turns_and_ends_when_it_closes(hosted: Hosted) -> None:
    api = hosted.api
    session = await api.session(await api.persona())
    first = await api.say(session, "The first question.")
    call = api.attach(session)
    following = [await call.read() for _ in first]
    assert following == first
    second = await api.say(session, "The second question.")
    third = await api.say(session, "The third question.")
    await api.sessions.CloseSession(pb.CloseSessionRequest(name=session))
    assert await rest(call) == second + third
    # Of a closed session everything is replayed, and that is all.
    assert await api.attached(session) == first + second + third
    assert await api.attached(session, second[-1].event_id) == third


async def test_attach_to_an_unknown_turn_or_session_is_not_found(api: Api) -> None:
    session = await api.session(await api.persona())
    for call in (api.attach(session, turn_id="none"), api.attach(session + "x")):
        assert (await failure(call)).code is grpc.StatusCode.NOT_FOUND


async def test_a_turn_without_any_view_is_cancelled_after_a_while(start_host: StartHost) -> None:
    hosted = await start_host(sessions={"orphan_timeout_s": 0.3}, ledger={"lease_s": 1})
    api, pause = hosted.api, Pause()
    session = await api.session(await api.persona())
    hosted.engine.will_say("The first unit. And ", pause, "more.")
    turn_id = new_turn_id()
    call = api.converse(session, "Hello there.", turn_id)
    await read_until(call, "text_delta")
    call.cancel()
    await pause.wait()
    await hosted.engine.idle()
    events = await ended(hosted, session, turn_id)
    assert events[-1].turn_interrupted.reason == event_pb2.TurnInterrupted.REASON_ABANDONED
    assert text_of(events) == "The first unit."


async def test_any_attach_keeps_a_turn_alive(start_host: StartHost) -> None:
    hosted = await start_host(sessions={"orphan_timeout_s": 0.3}, ledger={"lease_s": 1})
    api, pause = hosted.api, Pause()
    session = await api.session(await api.persona())
    hosted.engine.will_say("The first unit. And ", pause, "the rest of it.")
    turn_id = new_turn_id()
    call = api.converse(session, "Hello there.", turn_id)
    await read_until(call, "text_delta")
    watching = api.attach(session)
    await read_until(watching, "text_delta")
    call.cancel()
    await pause.wait()
    # Upkeep looks for abandoned turns while another turn is abandoned and cancelled.
    other = await api.session(await api.persona())
    hosted.engine.will_say(Pause(), "Never said.")
    lost_id = new_turn_id()
    lost = api.converse(other, "Hello there.", lost_id)
    await read_until(lost, "turn_started")
    lost.cancel()
    await hosted.host.gateway.runner.hubs.running()[-1].ended.wait()
    assert (await api.turns(other))[0].state == pb.TURN_STATE_INTERRUPTED
    assert (await api.turns(session))[0].state == pb.TURN_STATE_RUNNING
    pause.go.set()
    events = await read_until(watching, "turn_completed")
    assert text_of(events).endswith("the rest of it.")
    watching.cancel()


async def test_a_view_that_lags_is_dropped_and_the_turn_completes(start_host: StartHost) -> None:
    hosted = await start_host(gateway={"view_buffer_events": 8})
    # A window of a few kilobytes, so that what isn't read is felt by the server.
    options = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{hosted.port}", options=options) as channel:
        slow = Api(channel, hosted.key)
        session = await hosted.api.session(await hosted.api.persona())
        pause = Pause()
        sentence = "This sentence is long enough to count, as it says one thing in several ways, one after another. "
        hosted.engine.will_say(*(sentence for _ in range(400)), pause, "That was all.")
        turn_id = new_turn_id()
        call = slow.converse(session, "Hello there.", turn_id)
        await call.read()
        await pause.wait()
        # A dropped view watches no more, even before its client notices.
        [(_, hub)] = hosted.host.gateway.runner.hubs.all()
        assert not hub.views
        pause.go.set()
        events = await ended(hosted, session, turn_id)
        assert kinds(events)[-1] == "turn_completed"
        with pytest.raises(grpc.aio.AioRpcError) as dropped:
            await rest(call)
        told = read_failure(dropped.value)
        assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SLOW_CONSUMER")
        assert told.retry is not None


async def test_stopping_tells_streams_to_go_away_and_ends_what_runs(start_host: StartHost) -> None:
    hosted = await start_host(gateway={"drain_grace_s": 0.2})
    api = hosted.api
    session = await api.session(await api.persona())
    hosted.engine.will_say("The first unit. And ", Pause(), "more.")
    call = api.converse(session, "Hello there.")
    await read_until(call, "text_delta")
    stopping = asyncio.ensure_future(hosted.host.stop())
    events = await rest(call)
    assert kinds(events)[0] == "go_away"
    assert events[-1].turn_interrupted.reason == event_pb2.TurnInterrupted.REASON_OWNER_LOST
    await stopping


async def test_a_turn_that_ended_is_gone_without_the_collector(hosted: Hosted) -> None:
    api, pause = hosted.api, Pause()
    session = await api.session(await api.persona())
    hosted.engine.will_say("The first unit. And ", pause, "more.")
    gone = asyncio.Event()
    gc.disable()
    try:
        call = api.converse(session, "Hello there.")
        await pause.wait()
        (turn,) = hosted.host.gateway.runner.hubs.running()
        weakref.finalize(turn.recorder, gone.set)
        del turn
        pause.go.set()
        assert kinds(await rest(call))[-1] == "turn_completed"
        async with asyncio.timeout(WAIT_S):
            await gone.wait()
    finally:
        gc.enable()
