from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personae.v1 import event_pb2, session_service_pb2
from personae.v1.session_service_pb2_grpc import add_SessionServiceServicer_to_server
from personae_client import (
    AlreadyExistsError,
    InternalError,
    PersonaeClient,
    RateLimitedError,
    TurnInProgressError,
    UnauthenticatedError,
    UnavailableError,
)
from tests.unit.client.server import SESSION, TURN, RecordedTurn, a_turn, event, fail, serving

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


async def ids(servicer: RecordedTurn, **options: Any) -> list[int]:
    async with (
        serving(sessions=servicer, **options) as client,
        client.sessions.converse(SESSION, "hello", turn_id=TURN) as stream,
    ):
        return [e.event_id async for e in stream]


ALL = [e.event_id for e in a_turn()]


async def test_a_turn_is_streamed_to_its_terminal_event() -> None:
    assert await ids(RecordedTurn([])) == ALL


@pytest.mark.parametrize("status", [UNAVAILABLE, grpc.StatusCode.CANCELLED, None], ids=str)
@pytest.mark.parametrize("count", range(len(ALL)))
async def test_a_stream_cut_after_any_event_yields_each_event_once_in_order(
    count: int, status: grpc.StatusCode | None
) -> None:
    servicer = RecordedTurn([(count, status)])
    assert await ids(servicer) == ALL
    first, second = servicer.calls
    assert isinstance(first, session_service_pb2.ConverseRequest)
    if count == 0:
        assert second == first  # whether the turn began is unknown: say the same again
    else:
        assert second == session_service_pb2.AttachRequest(session=SESSION, after_event_id=ALL[count - 1], turn_id=TURN)


async def test_a_view_dropped_for_being_slow_is_opened_again() -> None:
    assert await ids(RecordedTurn([(4, grpc.StatusCode.RESOURCE_EXHAUSTED)])) == ALL


@pytest.mark.parametrize("count", range(len(ALL)))
async def test_a_stream_whose_token_expires_goes_on_with_a_new_one(count: int) -> None:
    class Expiring(RecordedTurn):
        async def _send(self, events: list[event_pb2.SessionEvent], context: Any) -> None:
            self.tokens.append(dict(context.invocation_metadata())["authorization"])
            if len(self.calls) > 1:
                await super()._send(events, context)
                return
            for item in events[:count]:
                await context.write(item)
            await fail(context, grpc.StatusCode.UNAUTHENTICATED, reason="TOKEN_EXPIRED")

    servicer, given = Expiring([]), iter(("t1", "t2"))
    assert await ids(servicer, token=lambda: next(given)) == ALL
    assert servicer.tokens == ["Bearer t1", "Bearer t2"]


@pytest.mark.parametrize("reason", ["TURN_OWNED_ELSEWHERE", "TURN_OWNER_UNREACHABLE"])
async def test_a_turn_whose_gateway_is_out_of_reach_is_waited_for(reason: str) -> None:
    """Longer than a turn of which nothing is known: `max_attempts` does not count."""

    class OutOfReach(RecordedTurn):
        async def _send(self, events: list[event_pb2.SessionEvent], context: Any) -> None:
            if len(self.calls) < 6:
                await fail(context, UNAVAILABLE, reason=reason, retry_after_s=0.001)
            await super()._send(events, context)

    servicer = OutOfReach([])
    assert await ids(servicer, max_attempts=2) == ALL
    assert len(servicer.calls) == 6


async def test_a_stream_with_a_token_that_is_refused_for_good_is_raised_at_once() -> None:
    class Refusing(RecordedTurn):
        async def _send(self, events: list[event_pb2.SessionEvent], context: Any) -> None:
            await fail(context, grpc.StatusCode.UNAUTHENTICATED, reason="TOKEN_INVALID")

    servicer = Refusing([])
    with pytest.raises(UnauthenticatedError):
        await ids(servicer, token=lambda: "t")
    assert len(servicer.calls) == 1


@given(
    cuts=st.lists(st.tuples(st.integers(0, 4), st.sampled_from([UNAVAILABLE, grpc.StatusCode.CANCELLED, None]))),
    repeat=st.integers(0, 4),
)
@settings(max_examples=40, deadline=None)
def test_any_pattern_of_cuts_and_repeats_yields_each_event_once(
    cuts: list[tuple[int, grpc.StatusCode | None]], repeat: int
) -> None:
    assert asyncio.run(ids(RecordedTurn(cuts, repeat), max_attempts=1000)) == ALL


async def test_a_stream_that_never_begins_is_given_up_after_max_attempts() -> None:
    servicer = RecordedTurn([(0, UNAVAILABLE)] * 9)
    with pytest.raises(UnavailableError):
        await ids(servicer, max_attempts=3)
    assert len(servicer.calls) == 3


async def test_a_stream_that_makes_no_progress_is_given_up_in_time() -> None:
    servicer = RecordedTurn([(2, UNAVAILABLE)] + [(0, UNAVAILABLE)] * 1000)
    with pytest.raises(UnavailableError):
        await ids(servicer, resume_timeout_s=0.02)


async def test_a_server_that_ends_the_stream_early_for_good_is_an_error() -> None:
    with pytest.raises(InternalError, match="before its last event"):
        await ids(RecordedTurn([(2, None)] + [(0, None)] * 1000), resume_timeout_s=0.02)


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        (grpc.StatusCode.ALREADY_EXISTS, "TURN_BODY_DIFFERS", AlreadyExistsError),
        (grpc.StatusCode.ABORTED, "TURN_IN_PROGRESS", TurnInProgressError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", RateLimitedError),
    ],
)
async def test_a_refused_turn_is_raised_at_once(
    status: grpc.StatusCode, reason: str, expected: type[Exception]
) -> None:
    class Refusing(RecordedTurn):
        async def Converse(self, request: Any, context: Any) -> Any:
            self.calls.append(request)
            await fail(context, status, reason=reason)

    servicer = Refusing([])
    with pytest.raises(expected):
        await ids(servicer)
    assert len(servicer.calls) == 1


async def test_overload_with_a_retry_time_is_tried_again_with_the_same_turn() -> None:
    class Busy(RecordedTurn):
        async def Converse(self, request: Any, context: Any) -> Any:
            if not self.calls:
                self.calls.append(request)
                await fail(context, grpc.StatusCode.RESOURCE_EXHAUSTED, reason="ENGINE_OVERLOADED", retry_after_s=0.001)
            await super().Converse(request, context)

    servicer = Busy([])
    assert await ids(servicer) == ALL
    assert servicer.calls[0] == servicer.calls[1]


def go_away(seconds: float) -> event_pb2.SessionEvent:
    item = event_pb2.SessionEvent()
    item.go_away.time_left.FromNanoseconds(int(seconds * 1e9))
    return item


async def test_a_stream_told_to_go_away_reads_on_until_the_server_closes_it() -> None:
    class Draining(RecordedTurn):
        async def Converse(self, request: Any, context: Any) -> Any:
            self.calls.append(request)
            for item in (*self.events[:2], go_away(60), *self.events[2:5]):
                await context.write(item)

    servicer = Draining([])
    assert await ids(servicer) == ALL
    assert servicer.calls[1] == session_service_pb2.AttachRequest(session=SESSION, after_event_id=ALL[4], turn_id=TURN)


async def test_a_stream_that_ends_after_go_away_goes_on_with_the_next_event() -> None:
    class HandedOver(RecordedTurn):
        async def _send(self, events: list[event_pb2.SessionEvent], context: Any) -> None:
            if len(self.calls) > 1:
                await super()._send(events, context)
                return
            for item in (*events[:2], go_away(60)):
                await context.write(item)

    servicer = HandedOver([])
    assert await ids(servicer) == ALL
    assert servicer.calls[1] == session_service_pb2.AttachRequest(session=SESSION, after_event_id=ALL[1], turn_id=TURN)


async def test_a_stream_told_to_go_away_leaves_when_the_time_is_over() -> None:
    left = asyncio.Event()

    class Stuck(RecordedTurn):
        async def Converse(self, request: Any, context: Any) -> Any:
            self.calls.append(request)
            await context.write(self.events[0])
            await context.write(go_away(0.001))
            try:
                await asyncio.Event().wait()
            finally:
                left.set()

    assert await ids(Stuck([])) == ALL
    await left.wait()


async def test_collect_returns_the_whole_turn_even_after_some_of_it_was_read() -> None:
    async with serving(sessions=RecordedTurn([(4, UNAVAILABLE)])) as client:
        stream = client.sessions.converse(SESSION, "hello", turn_id=TURN)
        words = [word async for word in stream.text()]
        result = await stream.collect()
    assert words == ["Your red ", "bike is ", "ready."]
    assert result.text == "Your red bike is ready."
    assert (result.turn_id, result.disclosure, result.revision) == (TURN, "I am an AI.", "r1")
    assert [c.quote for c in result.citations] == ["a red bike"]
    assert [p.reason_code for p in result.policy_events] == ["R"]
    assert [n.code for n in result.notices] == ["N"]
    assert result.usage is not None
    assert result.usage.output_tokens == 5
    assert result.latency is not None
    assert result.finish_reason == event_pb2.FINISH_REASON_STOP
    assert not result.interrupted
    assert stream.resumes == 1


async def test_an_interrupted_turn_is_a_result() -> None:
    servicer = RecordedTurn([])
    servicer.events = [
        *a_turn()[:5],
        event(20, turn_interrupted=event_pb2.TurnInterrupted(delivered_chars=17)),
    ]
    async with serving(sessions=servicer) as client:
        result = await client.sessions.converse(SESSION, "hello", turn_id=TURN).collect()
    assert result.interrupted
    assert result.text == "Your red bike is "
    assert result.finish_reason == event_pb2.FINISH_REASON_UNSPECIFIED


async def test_cancel_names_the_turn() -> None:
    async with serving(sessions=RecordedTurn([])) as client:
        turn = await client.sessions.converse(SESSION, "hello", turn_id=TURN).cancel()
    assert turn.name == f"{SESSION}/turns/{TURN}"


async def test_turn_ids_made_up_by_the_client_differ_and_fit_the_api() -> None:
    servicer = RecordedTurn([])
    async with serving(sessions=servicer) as client:
        for _ in range(2):
            await client.sessions.converse(SESSION, "hello").collect()
    made_up = {call.turn_id for call in servicer.calls}
    assert len(made_up) == 2
    assert all(turn_id.isalnum() and len(turn_id) <= 64 for turn_id in made_up)


async def test_closing_a_stream_closes_its_call() -> None:
    ended = asyncio.Event()

    class Endless(RecordedTurn):
        async def Converse(self, request: Any, context: Any) -> Any:
            await context.write(self.events[0])
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    async with serving(sessions=Endless([])) as client:
        async with client.sessions.converse(SESSION, "hello") as stream:
            await anext(stream)
        await ended.wait()


async def test_following_a_session_resumes_until_the_server_ends_it() -> None:
    servicer = RecordedTurn([(3, UNAVAILABLE), (2, grpc.StatusCode.CANCELLED)])
    async with serving(sessions=servicer) as client, client.sessions.attach(SESSION, after_event_id=3) as stream:
        seen = [e.event_id async for e in stream]
    assert seen == ALL[1:]
    assert [call.after_event_id for call in servicer.calls] == [3, ALL[3], ALL[5]]  # type: ignore[union-attr]
    assert all(call.turn_id == "" for call in servicer.calls)


async def test_a_turn_survives_the_restart_of_its_server() -> None:
    class Stuck(RecordedTurn):
        async def Converse(self, request: Any, context: Any) -> Any:
            self.calls.append(request)
            for item in self.events[:4]:
                await context.write(item)
            await asyncio.Event().wait()

    def server_on(port: int) -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server()
        add_SessionServiceServicer_to_server(Stuck([]), server)
        return server, server.add_insecure_port(f"127.0.0.1:{port}")

    server, port = server_on(0)
    await server.start()
    seen = []
    async with PersonaeClient(f"127.0.0.1:{port}", backoff_s=0.01, max_backoff_s=0.05) as client:
        async for e in client.sessions.converse(SESSION, "hello", turn_id=TURN):
            seen.append(e.event_id)
            if len(seen) == 4:
                await server.stop(grace=None)
                server, _ = server_on(port)
                await server.start()
    await server.stop(grace=None)
    assert seen == ALL
