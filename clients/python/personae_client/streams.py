"""Streams of session events that outlive their connection.

A session lives on the server and a stream is a view of it, so a broken stream
costs nothing: it is attached again after the last event that was seen. Each
event is yielded once and in order.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc.aio

from personae.v1 import event_pb2, provenance_pb2, session_service_pb2, session_service_pb2_grpc
from personae_client.errors import (
    InternalError,
    PersonaeError,
    RateLimitedError,
    error_from_rpc,
)
from personae_client.names import turn_name
from personae_client.transport import Transport, token_expired

SessionEvent = event_pb2.SessionEvent
_Call = grpc.aio.UnaryStreamCall[Any, SessionEvent]

_RUNS_ELSEWHERE = frozenset({"TURN_OWNED_ELSEWHERE", "TURN_OWNER_UNREACHABLE"})
_TERMINAL = frozenset({"turn_completed", "turn_interrupted"})


class EventStream:
    """The events of a session, as an async iterator.

    The connection is opened by the first `__anext__` and closed by `aclose`, at
    the end, or on leaving `async with`. Closing a stream ends no turn.

    A stream that breaks is attached again after the last seen event, with
    growing pauses, until nothing has arrived for `resume_timeout_s`; then the
    last error is raised. A token that expires meanwhile is replaced by a new one,
    if the client was given a provider of tokens. One that never began is tried `max_attempts` times.
    `go_away` events are acted upon, not yielded.

    Attributes:
        session: name of the session.
        last_event_id: of the last event yielded; 0 before the first.
        resumes: how often the stream was attached again.
    """

    def __init__(
        self,
        transport: Transport,
        session: str,
        *,
        after_event_id: int = 0,
        turn_id: str = "",
    ) -> None:
        self.session = session
        self.last_event_id = after_event_id
        self.resumes = 0
        self._turn_id = turn_id
        self._transport = transport
        self._stub = session_service_pb2_grpc.SessionServiceStub(transport.channel)
        self._events = self._follow()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionEvent:
        return await self._events.__anext__()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection. The turn goes on; the server cancels it if nobody comes back."""
        await self._events.aclose()  # type: ignore[attr-defined]

    # What differs between following a session and one turn of it.

    async def _open(self) -> _Call:
        """Open a connection that continues after `last_event_id`."""
        return await self._attach()

    def _ended(self, event: SessionEvent | None) -> bool:
        """Whether the stream is over: after an event, or (None) at an orderly end of the connection."""
        return event is None

    def _observe(self, event: SessionEvent) -> None:
        """Called with each event before it is yielded."""

    async def _attach(self) -> _Call:
        request = session_service_pb2.AttachRequest(
            session=self.session, after_event_id=self.last_event_id, turn_id=self._turn_id
        )
        return self._stub.Attach(request, metadata=await self._transport.metadata())

    async def _follow(self) -> AsyncIterator[SessionEvent]:
        options = self._transport.options
        began = self.last_event_id > 0
        failures = 0
        broken_since = time.monotonic()
        while True:
            error: PersonaeError | None = None
            seen_here = False
            going_away = False
            leave_at: float | None = None
            opened_at = time.monotonic()
            call = await self._open()
            try:
                while True:
                    # A server that goes away still sends what it can until then.
                    async with asyncio.timeout_at(leave_at):
                        event = await call.read()
                    if not isinstance(event, SessionEvent):  # grpc.aio.EOF
                        break
                    if event.HasField("go_away"):
                        going_away = True
                        leave_at = (
                            asyncio.get_running_loop().time() + event.go_away.time_left.ToTimedelta().total_seconds()
                        )
                        continue
                    if event.event_id:
                        if event.event_id <= self.last_event_id:
                            continue
                        self.last_event_id = event.event_id
                    began = seen_here = True
                    self._observe(event)
                    yield event
                    if self._ended(event):
                        return
                if not going_away and self._ended(None):
                    return
            except grpc.aio.AioRpcError as rpc_error:
                error = error_from_rpc(rpc_error)
                # Another gateway runs the turn and can't be reached now: there is a turn to come back to.
                began = began or error.reason in _RUNS_ELSEWHERE
                if not (self._transport.worth_retrying(error) or _resumable(error, began)):
                    raise error from None
            except TimeoutError:
                pass  # the time that go_away left is over
            finally:
                call.cancel()
            lasted = time.monotonic() - opened_at
            expired = token_expired(error)
            # It worked, if only in silence. A token that is refused is refused at once.
            if seen_here or lasted > (options.max_backoff_s if expired else options.resume_timeout_s):
                failures = 0
                broken_since = time.monotonic()
            failures += 1
            pause_s = 0.0 if seen_here and (going_away or expired) else options.pause_s(failures, error)
            give_up = (
                time.monotonic() + pause_s - broken_since > options.resume_timeout_s
                if began
                else failures >= options.max_attempts
            )
            if give_up:
                raise error or InternalError("The server ends the stream before its last event.", code="INTERNAL")
            await asyncio.sleep(pause_s)
            self.resumes += 1


def _resumable(error: PersonaeError, began: bool) -> bool:
    if isinstance(error, RateLimitedError):
        return began  # the server dropped a view that lagged behind
    # A proxy or a dying server reset the HTTP/2 stream; gRPC calls it INTERNAL or UNKNOWN.
    return isinstance(error, InternalError) and not error.reason and "RST_STREAM" in error.message


@dataclass(frozen=True, slots=True)
class TurnResult:
    """A whole turn.

    Attributes:
        turn_id: of the turn.
        text: the reply, as far as it was released.
        disclosure: what the person must be told: that an AI is speaking.
        revision: name of the persona revision that answered.
        citations: memories that stood in the prompt.
        passages: what the persona said or wrote that stood in the prompt.
        policy_events: decisions the person can see.
        notices: what the person should read that the persona did not say.
        usage: engine tokens; None if the turn never reached an engine.
        latency: where the time before the first words went; None if unsaid.
        finish_reason: FINISH_REASON_UNSPECIFIED if the turn was interrupted.
        interruption: set if the turn ended before its reply was complete.
        ai_labels: what marks the text as an AI's: a second one if policy ended it in words of its own, none if
            nothing was said.
    """

    turn_id: str
    text: str
    disclosure: str
    revision: str
    citations: tuple[event_pb2.MemoryCitation, ...]
    passages: tuple[event_pb2.PassageCitation, ...]
    policy_events: tuple[event_pb2.PolicyEvent, ...]
    notices: tuple[event_pb2.Notice, ...]
    usage: event_pb2.Usage | None
    latency: event_pb2.Latency | None
    finish_reason: event_pb2.FinishReason
    interruption: event_pb2.TurnInterrupted | None
    ai_labels: tuple[provenance_pb2.AiLabel, ...]

    @property
    def interrupted(self) -> bool:
        """Whether the reply is incomplete."""
        return self.interruption is not None


@dataclass(slots=True)
class _Gathered:
    text: list[str] = field(default_factory=list)
    started: event_pb2.TurnStarted = field(default_factory=event_pb2.TurnStarted)
    citations: list[event_pb2.MemoryCitation] = field(default_factory=list)
    passages: list[event_pb2.PassageCitation] = field(default_factory=list)
    policy_events: list[event_pb2.PolicyEvent] = field(default_factory=list)
    notices: list[event_pb2.Notice] = field(default_factory=list)
    usage: event_pb2.Usage | None = None
    latency: event_pb2.Latency | None = None
    completed: event_pb2.TurnCompleted = field(default_factory=event_pb2.TurnCompleted)
    interruption: event_pb2.TurnInterrupted | None = None
    ai_labels: dict[str, provenance_pb2.AiLabel] = field(default_factory=dict)


class TurnStream(EventStream):
    """One turn: its events, its words, or its whole result.

    Iterate over it for events, over `text()` for words, or `await collect()`.

    Attributes:
        turn_id: of the turn.
    """

    def __init__(
        self, transport: Transport, session: str, text: str, turn_id: str, *, device: str = "", network: str = ""
    ) -> None:
        super().__init__(transport, session, turn_id=turn_id)
        self.turn_id = turn_id
        self._request = session_service_pb2.ConverseRequest(session=session, turn_id=turn_id, text=text)
        if device or network:
            self._request.client.device = device
            self._request.client.network = network
        self._gathered = _Gathered()

    async def _open(self) -> _Call:
        if self.last_event_id:
            return await self._attach()
        # Nothing seen yet: whether the turn began is unknown. The same turn_id and
        # text start it or join it.
        return self._stub.Converse(self._request, metadata=await self._transport.metadata())

    def _ended(self, event: SessionEvent | None) -> bool:
        return event is not None and event.WhichOneof("event") in _TERMINAL

    def _observe(self, event: SessionEvent) -> None:
        gathered = self._gathered
        match event.WhichOneof("event"):
            case "text_delta":
                gathered.text.append(event.text_delta.text)
                gathered.ai_labels.setdefault(event.ai_label.digital_source_type, event.ai_label)
            case "turn_started":
                gathered.started = event.turn_started
            case "memory_citation":
                gathered.citations.append(event.memory_citation)
            case "passage_citation":
                gathered.passages.append(event.passage_citation)
            case "policy_event":
                gathered.policy_events.append(event.policy_event)
            case "notice":
                gathered.notices.append(event.notice)
            case "usage":
                gathered.usage = event.usage
            case "latency":
                gathered.latency = event.latency
            case "turn_completed":
                gathered.completed = event.turn_completed
            case "turn_interrupted":
                gathered.interruption = event.turn_interrupted
            case _:
                pass

    async def text(self) -> AsyncIterator[str]:
        """The words of the reply as they are released. Afterwards `collect()` has the rest at once."""
        async for event in self:
            if event.HasField("text_delta"):
                yield event.text_delta.text

    async def collect(self) -> TurnResult:
        """Read to the end and return everything, including what was read before.

        An interrupted turn is a result too: see `TurnResult.interrupted`.

        Raises:
            PersonaeError: the turn was refused, or the stream could not be resumed.
        """
        async for _ in self:
            pass
        gathered = self._gathered
        return TurnResult(
            turn_id=self.turn_id,
            text="".join(gathered.text),
            disclosure=gathered.started.disclosure,
            revision=gathered.started.revision,
            citations=tuple(gathered.citations),
            passages=tuple(gathered.passages),
            policy_events=tuple(gathered.policy_events),
            notices=tuple(gathered.notices),
            usage=gathered.usage,
            latency=gathered.latency,
            finish_reason=gathered.completed.finish_reason,
            interruption=gathered.interruption,
            ai_labels=tuple(gathered.ai_labels.values()),
        )

    async def cancel(self) -> session_service_pb2.Turn:
        """Stop the turn on the server. What was delivered stays, and the stream ends with `turn_interrupted`."""
        request = session_service_pb2.CancelTurnRequest(name=turn_name(self.session, self.turn_id))
        return await self._transport.unary(self._stub.CancelTurn, request)
