"""How each kind of server is talked to. All keep what arrives as bytes with its time and parse at a turn's end."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from personae.v1 import event_pb2, persona_service_pb2, session_service_pb2
from personae_client import AlreadyExistsError, PersonaeClient
from tests.load.measure import ExactlyOnce, Outcome
from tests.load.scenario import Conversation, PlannedTurn, Scenario

_PREPARING = 32
"""Calls in flight while sessions are made."""
_STREAMS_PER_CHANNEL = 100
"""A connection each for so many conversations, as different backends would have."""
_BACKOFF_S = 0.1
TERMINAL = ("turn_completed", "turn_interrupted")
CARD = (
    "You are Nadia, the assistant of a bicycle workshop by the river. You know frames, gears, brakes and"
    " wheels, you remember what each customer rides, and you explain one step at a time."
)
_CLOCK = time.time() - time.perf_counter()
"""From the clock of arrivals to the wall clock that servers stamp events with."""


@dataclass(slots=True, eq=False)
class Talk:
    """A conversation as a driver keeps it between turns."""

    plan: Conversation
    session: str = ""
    last_event_id: int = 0
    check: ExactlyOnce = field(default_factory=ExactlyOnce)
    history: list[dict[str, str]] = field(default_factory=list)
    idle: asyncio.Task[None] | None = None
    idle_call: Any = None
    idle_failure: str = ""


class Driver(Protocol):
    """A kind of server.

    Attributes:
        later: what arrived is parsed at a turn's end; or, if this is a list, when
            what it holds is called, so that no parsing keeps another stream from
            being read.
    """

    later: list[Callable[[], None]] | None

    async def prepare(self, conversations: Sequence[Conversation]) -> list[Talk]:
        """Make what the conversations need; in their order."""
        ...

    async def turn(self, talk: Talk, turn: PlannedTurn, outcome: Outcome) -> None:
        """Send a turn, read it to its end and fill in `outcome`. Failures are told there, not raised."""
        ...

    async def rest(self, talk: Talk) -> None:
        """Hold the conversation open without a turn, if the server has a way to."""
        ...

    async def wake(self, talk: Talk) -> str:
        """End `rest`; what went wrong meanwhile, or ''."""
        ...

    async def close(self) -> None:
        """Hang up."""
        ...


class GatewayDriver:
    """Our gateway: Converse, Attach and CancelTurn.

    Args:
        target: host and port.
        key: of tenants that have none of their own.
        conversations: how many there will be; it decides on the connections.
        reattach_s: seconds for which a stream that the server ended is attached again, as the SDK would.
        prefix: of session ids; different for each run against one server.
        metadata: further metadata of each call.
        verify: read turns whose stream was cut once more from their start, and compare.
    """

    def __init__(
        self,
        target: str,
        scenario: Scenario,
        *,
        key: str,
        conversations: int,
        reattach_s: float = 0.0,
        prefix: str = "load",
        metadata: Sequence[tuple[str, str]] = (),
        verify: bool = True,
    ) -> None:
        self._target = target
        self._scenario = scenario
        self._key = key
        self._reattach_s = reattach_s
        self._prefix = prefix
        self._extra = tuple(metadata)
        self._verify = verify
        self.later: list[Callable[[], None]] | None = None
        count = max(4, -(-conversations // _STREAMS_PER_CHANNEL))
        # Channels with the same arguments would share one connection.
        self._channels = [
            grpc.aio.insecure_channel(target, options=[("personae.load.channel", index)]) for index in range(count)
        ]
        pb, service = session_service_pb2, "/personae.v1.SessionService"
        self._converse: list[Any] = [
            channel.unary_stream(f"{service}/Converse", pb.ConverseRequest.SerializeToString)
            for channel in self._channels
        ]
        self._attach: list[Any] = [
            channel.unary_stream(f"{service}/Attach", pb.AttachRequest.SerializeToString) for channel in self._channels
        ]
        self._cancel: list[Any] = [
            channel.unary_unary(f"{service}/CancelTurn", pb.CancelTurnRequest.SerializeToString)
            for channel in self._channels
        ]

    async def prepare(self, conversations: Sequence[Conversation]) -> list[Talk]:
        """Personas with one revision each, and a session for each conversation."""
        talks = [Talk(plan) for plan in conversations]
        tenants = {plan.tenant.name: plan.tenant for plan in conversations}
        for name, tenant in tenants.items():
            mine = [talk for talk in talks if talk.plan.tenant.name == name]
            async with PersonaeClient(self._target, api_key=tenant.key or self._key) as client:
                for persona in sorted({talk.plan.persona for talk in mine}):
                    await self._persona(client, name, persona)
                pending = iter(mine)

                async def make(client: PersonaeClient = client, name: str = name, pending: Any = pending) -> None:
                    for talk in pending:
                        persona = f"tenants/{name}/personas/{talk.plan.persona}"
                        made = await client.sessions.create(
                            persona,
                            user=f"{persona}/users/{talk.plan.user}",
                            session_id=f"{self._prefix}-{talk.plan.index}",
                        )
                        talk.session = made.name

                async with asyncio.TaskGroup() as making:
                    for _ in range(min(_PREPARING, len(mine))):
                        making.create_task(make())
        return talks

    async def _persona(self, client: PersonaeClient, tenant: str, persona: str) -> None:
        kind = persona_service_pb2.PERSONA_TYPE_ASSISTANT
        try:
            await client.personas.create(f"tenants/{tenant}", persona, display_name="Nadia", type=kind)
        except AlreadyExistsError:
            return  # by a run before this: a new revision would begin with a cold prefix
        definition = persona_service_pb2.PersonaDefinition(
            card=CARD,
            generation=persona_service_pb2.GenerationConfig(
                max_output_tokens=self._scenario.reply_tokens, temperature=self._scenario.temperature
            ),
        )
        await client.personas.publish_revision(f"tenants/{tenant}/personas/{persona}", definition)

    def _metadata(self, talk: Talk) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {talk.plan.tenant.key or self._key}"), *self._extra)

    async def turn(self, talk: Talk, turn: PlannedTurn, outcome: Outcome) -> None:
        """See Driver.turn."""
        channel = talk.plan.index % len(self._channels)
        turn_id = f"t{turn.number}"
        request = session_service_pb2.ConverseRequest(session=talk.session, turn_id=turn_id, text=turn.text)
        frames: list[tuple[float, bytes]] = []
        cancelling: asyncio.Task[float] | None = None
        cut, cancel = turn.cut_after, turn.cancel_after
        give_up = 0.0
        metadata = self._metadata(talk)
        outcome.sent = time.perf_counter()
        call = self._converse[channel](request, metadata=metadata)
        while True:
            try:
                while (frame := await call.read()) is not grpc.aio.EOF:
                    frames.append((time.perf_counter(), frame))
                    if cut is not None and len(frames) > cut:
                        break
                    if cancel is not None and len(frames) > cancel:
                        cancel = None
                        cancelling = asyncio.create_task(self._cancel_turn(talk, turn_id, channel, outcome))
            except grpc.aio.AioRpcError as error:
                failure, wait_s = read_failure(error)
                now = time.perf_counter()
                give_up = give_up or now + self._reattach_s
                if error.code() is not grpc.StatusCode.UNAVAILABLE or now + wait_s >= give_up:
                    outcome.failure = failure
                    break
                await asyncio.sleep(wait_s)  # as the server asks of any client
                outcome.reattached += 1
            else:
                if frame is grpc.aio.EOF:
                    if frames and _kind(frames[-1][1]) in TERMINAL:
                        break
                    now = time.perf_counter()
                    give_up = give_up or now + self._reattach_s
                    if now >= give_up:
                        outcome.failure = "ENDED_EARLY"
                        break
                    outcome.reattached += 1
                elif _kind(frames[-1][1]) in TERMINAL:
                    break  # there was nothing left to cut
                else:
                    call.cancel()
                    cut = None
                    outcome.resumes += 1
            seen = max((event_pb2.SessionEvent.FromString(frame).event_id for _, frame in frames), default=0)
            if seen:
                call = self._attach[channel](
                    session_service_pb2.AttachRequest(session=talk.session, after_event_id=seen, turn_id=turn_id),
                    metadata=metadata,
                )
            else:
                call = self._converse[channel](request, metadata=metadata)
        asked = await cancelling if cancelling is not None else 0.0
        if self.later is not None and cancelling is None and not outcome.resumes and not outcome.reattached:
            self.later.append(lambda: self._read(talk, turn, frames, outcome))
            return
        self._read(talk, turn, frames, outcome)
        if outcome.end == "cancelled":
            outcome.cancel_s = max(0.0, outcome.ended - asked)
        if self._verify and not outcome.failure and (outcome.resumes or outcome.reattached):
            await self._compare(talk, turn_id, channel, outcome)

    def _read(self, talk: Talk, turn: PlannedTurn, frames: list[tuple[float, bytes]], outcome: Outcome) -> None:
        if not frames:
            return
        outcome.first_event, outcome.ended = frames[0][0], frames[-1][0]
        outcome.messages = len(frames)
        talk.check.begin()
        texts: list[str] = []
        end = ""
        for at, frame in frames:
            event = event_pb2.SessionEvent.FromString(frame)
            kind = str(event.WhichOneof("event"))
            if event.event_id:
                wrong = talk.check.see(event.event_id, kind, event.text_delta.text, _essence(event))
                if wrong is not None:
                    outcome.violations.append(wrong)
                talk.last_event_id = max(talk.last_event_id, event.event_id)
            if kind == "text_delta":
                stamped = event.time.seconds + event.time.nanos / 1e9
                lateness = at + _CLOCK - stamped if stamped else None
                outcome.texts.append((at, len(event.text_delta.text), lateness))
                texts.append(event.text_delta.text)
            elif kind == "usage":
                outcome.output_tokens = event.usage.output_tokens
                outcome.input_tokens = event.usage.input_tokens
                outcome.cached_input_tokens = event.usage.cached_input_tokens
            elif kind == "latency":
                outcome.server = {
                    name: seconds
                    for name in ("queue", "ttft", "first_release")
                    if (seconds := getattr(event.latency, name).ToNanoseconds() / 1e9) > 0
                }
            elif kind == "turn_completed":
                reason = event.turn_completed.finish_reason
                end = "refused" if reason == event_pb2.FINISH_REASON_POLICY else "completed"
            elif kind == "turn_interrupted":
                reason_name = event_pb2.TurnInterrupted.Reason.Name(event.turn_interrupted.reason)
                end = "cancelled" if reason_name == "REASON_CANCELLED" and turn.cancel_after is not None else ""
                if not end:
                    outcome.failure = outcome.failure or f"INTERRUPTED/{reason_name.removeprefix('REASON_')}"
                wrong = talk.check.delivered(event.turn_interrupted.delivered_chars)
                if wrong is not None and not outcome.failure:
                    outcome.violations.append(wrong)
        outcome.text = "".join(texts)
        if not outcome.failure:
            outcome.end = end

    async def _cancel_turn(self, talk: Talk, turn_id: str, channel: int, outcome: Outcome) -> float:
        request = session_service_pb2.CancelTurnRequest(name=f"{talk.session}/turns/{turn_id}")
        asked = time.perf_counter()
        try:
            await self._cancel[channel](request, metadata=self._metadata(talk))
        except grpc.aio.AioRpcError as error:
            outcome.failure = f"CancelTurn/{read_failure(error)[0]}"
        return asked

    async def _compare(self, talk: Talk, turn_id: str, channel: int, outcome: Outcome) -> None:
        request = session_service_pb2.AttachRequest(session=talk.session, turn_id=turn_id)
        again: list[tuple[int, bytes]] = []
        call = self._attach[channel](request, metadata=self._metadata(talk))
        try:
            while (frame := await call.read()) is not grpc.aio.EOF:
                event = event_pb2.SessionEvent.FromString(frame)
                if event.event_id:
                    again.append((event.event_id, _essence(event)))
        except grpc.aio.AioRpcError as error:
            outcome.failure = f"Attach/{read_failure(error)[0]}"
            return
        outcome.violations += talk.check.compare(again)

    async def rest(self, talk: Talk) -> None:
        """Attach to the session: between turns a conversation is one idle stream."""
        channel = talk.plan.index % len(self._channels)
        request = session_service_pb2.AttachRequest(session=talk.session, after_event_id=talk.last_event_id)
        call = talk.idle_call = self._attach[channel](request, metadata=self._metadata(talk))

        async def watch() -> None:
            try:
                while (frame := await call.read()) is not grpc.aio.EOF:
                    if event_pb2.SessionEvent.FromString(frame).event_id:
                        talk.idle_failure = "IDLE/UNEXPECTED_EVENT"
                talk.idle_failure = talk.idle_failure or "IDLE/ENDED_EARLY"
            except grpc.aio.AioRpcError as error:
                talk.idle_failure = f"IDLE/{read_failure(error)[0]}"
            except asyncio.CancelledError:
                if not call.cancelled():
                    raise

        talk.idle_failure = ""
        talk.idle = asyncio.create_task(watch())

    async def wake(self, talk: Talk) -> str:
        """See Driver.wake."""
        if talk.idle is None:
            return ""
        task, talk.idle = talk.idle, None
        failure = talk.idle_failure
        talk.idle_call.cancel()
        await task
        # What the hanging up itself caused is no failure.
        return failure

    async def close(self) -> None:
        """See Driver.close."""
        for channel in self._channels:
            await channel.close()


class GrpcDriver(GatewayDriver):
    """A bare gRPC service with the gateway's Converse and nothing else, such as one behind Serve's own proxy.

    Nothing is resumed; to cancel is to hang up. The limit of a reply and the
    tokens that make a message ride in the turn's id, `t1-<coalesce>-<limit>`:
    the request has no fields for them.
    """

    coalesce = 0
    """Tokens that the service is asked to put in a message; 0 is every delta as it is."""

    async def prepare(self, conversations: Sequence[Conversation]) -> list[Talk]:
        """Names alone."""
        return [
            Talk(plan, f"tenants/{plan.tenant.name}/personas/{plan.persona}/sessions/{self._prefix}-{plan.index}")
            for plan in conversations
        ]

    async def turn(self, talk: Talk, turn: PlannedTurn, outcome: Outcome) -> None:
        """See Driver.turn."""
        channel = talk.plan.index % len(self._channels)
        turn_id = f"t{turn.number}-{self.coalesce}-{self._scenario.reply_tokens}"
        request = session_service_pb2.ConverseRequest(session=talk.session, turn_id=turn_id, text=turn.text)
        frames: list[tuple[float, bytes]] = []
        outcome.sent = time.perf_counter()
        call = self._converse[channel](request, metadata=self._metadata(talk))
        hung_up = False
        talk.check = ExactlyOnce()  # each call numbers its events anew
        try:
            while (frame := await call.read()) is not grpc.aio.EOF:
                frames.append((time.perf_counter(), frame))
                if turn.cancel_after is not None and len(frames) > turn.cancel_after:
                    call.cancel()
                    hung_up = True
                    break
        except grpc.aio.AioRpcError as error:
            outcome.failure = read_failure(error)[0]

        def read() -> None:
            self._read(talk, turn, frames, outcome)
            if hung_up:
                outcome.end = "cancelled"
            elif not outcome.failure and not outcome.end:
                outcome.failure = "ENDED_EARLY"

        if self.later is None:
            read()
        else:
            self.later.append(read)

    async def rest(self, talk: Talk) -> None:
        """A bare service has nothing to hold open."""

    async def wake(self, talk: Talk) -> str:
        """See Driver.wake."""
        return ""


class OpenAIDriver:
    """Chat completions by server-sent events, as `ray.serve.llm` and vLLM's own server speak them.

    The client keeps the history and sends all of it, as that API wants.

    Args:
        target: host and port.
        model: name of the model.
        key: sent as a bearer token if not empty.
    """

    def __init__(self, target: str, scenario: Scenario, *, model: str, key: str = "") -> None:
        import aiohttp

        self._errors = aiohttp.ClientError
        self._url = f"http://{target}/v1/chat/completions"
        self._scenario = scenario
        self._model = model
        self.later: list[Callable[[], None]] | None = None
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            headers={"authorization": f"Bearer {key}"} if key else {},
        )

    async def prepare(self, conversations: Sequence[Conversation]) -> list[Talk]:
        """Chats that hold their first message."""
        given = self._scenario.messages
        talks = [Talk(plan) for plan in conversations]
        for talk in talks:
            if given:
                talk.history = [message.model_dump() for message in given[talk.plan.index % len(given)]]
            else:
                talk.history = [{"role": "system", "content": self._scenario.system}]
        return talks

    async def turn(self, talk: Talk, turn: PlannedTurn, outcome: Outcome) -> None:
        """See Driver.turn."""
        if not self._scenario.messages:
            talk.history.append({"role": "user", "content": turn.text})
        body = {
            "model": self._model,
            "messages": talk.history,
            "max_tokens": self._scenario.reply_tokens,
            "temperature": self._scenario.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        chunks: list[tuple[float, bytes]] = []
        events, hung_up = 0, False
        outcome.sent = time.perf_counter()
        try:
            async with self._session.post(self._url, json=body) as response:
                if response.status != 200:
                    answer = await response.text()
                    outcome.failure = f"HTTP_{response.status}/{_openai_reason(answer)}"
                    return
                while chunk := await response.content.readany():
                    chunks.append((time.perf_counter(), chunk))
                    if turn.cancel_after is not None:
                        events += chunk.count(b"\n\n")
                        if events > turn.cancel_after:
                            hung_up = True
                            break
                if hung_up:
                    response.close()
        except (self._errors, TimeoutError) as error:
            outcome.failure = f"HTTP/{type(error).__name__}"

        def read() -> None:
            self._read(chunks, outcome)
            if hung_up:
                outcome.end = "cancelled"
            talk.history.append({"role": "assistant", "content": outcome.text})

        if self.later is None:
            read()
        else:
            self.later.append(read)

    def _read(self, chunks: list[tuple[float, bytes]], outcome: Outcome) -> None:
        texts: list[str] = []
        finished, rest = False, b""
        for at, chunk in chunks:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    finished = True
                    continue
                outcome.messages += 1
                event = json.loads(data)
                if "error" in event:
                    outcome.failure = outcome.failure or f"SSE/{_openai_reason(data.decode())}"
                    continue
                outcome.first_event = outcome.first_event or at
                outcome.ended = at
                if usage := event.get("usage"):
                    outcome.output_tokens = usage.get("completion_tokens") or 0
                    outcome.input_tokens = usage.get("prompt_tokens") or 0
                    cached = usage.get("prompt_tokens_details") or {}
                    outcome.cached_input_tokens = cached.get("cached_tokens") or 0
                for choice in event.get("choices", ()):
                    if text := (choice.get("delta") or {}).get("content"):
                        outcome.texts.append((at, len(text), None))
                        texts.append(text)
        outcome.text = "".join(texts)
        if finished and not outcome.failure:
            outcome.end = "completed"
        elif not outcome.failure:
            outcome.failure = "ENDED_EARLY"

    async def rest(self, talk: Talk) -> None:
        """There is nothing to hold open: the server knows of no conversation."""

    async def wake(self, talk: Talk) -> str:
        """See Driver.wake."""
        return ""

    async def close(self) -> None:
        """See Driver.close."""
        await self._session.close()


def read_failure(error: grpc.aio.AioRpcError) -> tuple[str, float]:
    """Code and reason of a failed call, and the seconds that the server asks to wait."""
    code, wait_s, reason = error.code().name, _BACKOFF_S, ""
    try:
        status = rpc_status.from_call(cast(Any, error))
    except ValueError:  # details that don't belong to this status
        status = None
    for packed in status.details if status is not None else ():
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if packed.Is(info.DESCRIPTOR):
            packed.Unpack(info)
            reason = info.reason
        elif packed.Is(retry.DESCRIPTOR):
            packed.Unpack(retry)
            wait_s = retry.retry_delay.ToNanoseconds() / 1e9
    return f"{code}/{reason or (error.details() or '')[:60]}", wait_s


def _kind(frame: bytes) -> str:
    return str(event_pb2.SessionEvent.FromString(frame).WhichOneof("event"))


def _essence(event: event_pb2.SessionEvent) -> bytes:
    """What must be the same in every reading of an event."""
    return f"{event.turn_id} {event.WhichOneof('event')} {event.text_delta.text}".encode()


def _openai_reason(text: str) -> str:
    try:
        error = json.loads(text).get("error")
    except (ValueError, AttributeError):
        return text[:60]
    return str((error.get("type") or error.get("message") or error) if isinstance(error, dict) else error)[:60]
