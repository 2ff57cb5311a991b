"""What the end-to-end tests share: an engine that waits for the test, a caller with a key, and failures read whole."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from asyncio.subprocess import PIPE, STDOUT
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import duration_pb2
from google.protobuf.message import Message as ProtoMessage
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2_grpc
from grpc_status import rpc_status

from personae.v1 import (
    audit_service_pb2_grpc,
    content_service_pb2_grpc,
    corpus_service_pb2_grpc,
    event_pb2,
    memory_service_pb2,
    memory_service_pb2_grpc,
    persona_service_pb2,
    persona_service_pb2_grpc,
    policy_service_pb2_grpc,
    review_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
)
from personae_runtime.config import ApiKey
from personae_runtime.engines.engine import EngineCapacity, EngineDelta, EngineFinish, GenerateRequest
from personae_runtime.errors import EngineDead, EngineOverloaded
from personae_runtime.ledger.vault import Scope
from personae_serve.embedded import EmbeddedHost

WAIT_S = 20.0
"""Longest that anything may take; only a failing test gets there."""


# -- the engine ---------------------------------------------------------------


@dataclass(eq=False)
class Pause:
    """A place in a reply where the engine waits until the test says `go`."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> None:
        """Return when the engine is there."""
        async with asyncio.timeout(WAIT_S):
            await self.reached.wait()


Part = str | Pause | Exception | EngineFinish
DEFAULT_REPLY = "Thank you for telling me. That sounds like a fine plan for the week."


class ScriptedEngine:
    """An engine whose replies, and where they wait, the test writes.

    Attributes:
        requests: every request, in order.
        ended: request ids that ended, with True for those that were cut short.
    """

    model = "scripted"
    adapters = ()

    def __init__(self, *, max_concurrent: int = 64, max_waiting: int = 64, chunk: int = 5) -> None:
        self._limits = (max_concurrent, max_waiting)
        self._chunk = chunk
        self._scripts: deque[tuple[Part, ...]] = deque()
        self._free = asyncio.Semaphore(max_concurrent)
        self._running = self._waiting = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._queued = asyncio.Event()
        self._failure: EngineDead | None = None
        self.requests: list[GenerateRequest] = []
        self.ended: dict[str, bool] = {}

    def will_say(self, *parts: Part) -> None:
        """Queue the next reply: text, pauses, an exception to raise, or how it finishes (STOP)."""
        self._scripts.append(parts)

    def clear(self) -> None:
        """Forget replies that were queued and requests that were made."""
        self._scripts.clear()
        self.requests.clear()

    def die(self, failure: EngineDead | None) -> None:
        """Be unhealthy from now on; None heals."""
        self._failure = failure

    async def idle(self) -> None:
        """Return when no request is in the engine."""
        async with asyncio.timeout(WAIT_S):
            await self._idle.wait()

    async def queued(self) -> None:
        """Return when a request waits for a free place."""
        async with asyncio.timeout(WAIT_S):
            await self._queued.wait()

    @property
    def last_prompt(self) -> str:
        """Every message of the last request, joined."""
        return "\n".join(f"{message.role}: {message.content}" for message in self.requests[-1].messages)

    async def start(self) -> None:
        """See Engine.start."""

    async def generate(self, request: GenerateRequest) -> AsyncIterator[EngineDelta]:
        """See Engine.generate."""
        most, queue = self._limits
        if self._running >= most and self._waiting >= queue:
            raise EngineOverloaded("full", retry_after_s=1.0)
        self.requests.append(request)
        parts = self._scripts.popleft() if self._scripts else (DEFAULT_REPLY,)
        cut = True
        self._idle.clear()
        self._waiting += 1
        if self._running >= most:
            self._queued.set()
        try:
            async with self._free:
                self._waiting -= 1
                self._running += 1
                try:
                    finish = EngineFinish.STOP
                    for part in parts:
                        if isinstance(part, Pause):
                            part.reached.set()
                            await part.go.wait()
                        elif isinstance(part, Exception):
                            raise part
                        elif isinstance(part, EngineFinish):
                            finish = part
                        else:
                            for at in range(0, len(part), self._chunk):
                                yield EngineDelta(part[at : at + self._chunk], 1)
                                await asyncio.sleep(0)
                    cut = False
                    yield EngineDelta("", 0, finish, sum(map(self._cost, request.messages)), 0)
                finally:
                    self._running -= 1
                    self._waiting += 1
        finally:
            self._waiting -= 1
            self.ended[request.request_id] = cut
            if not self._running and not self._waiting:
                self._idle.set()

    def _cost(self, message: Any) -> int:
        return self.count_tokens(message.content)

    async def abort(self, request_id: str) -> None:
        """See Engine.abort. Closing the stream is how turns abort."""

    def count_tokens(self, text: str) -> int:
        """See Engine.count_tokens."""
        return -(-len(text) // 4)

    def capacity(self) -> EngineCapacity:
        """See Engine.capacity."""
        most, queue = self._limits
        return EngineCapacity(most, self._running, self._waiting, queue, 8192)

    async def health(self) -> None:
        """See Engine.health."""
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """See Engine.close."""


# -- callers ------------------------------------------------------------------


def api_key(
    key: str, *, id: str, tenant: str = "demo", user: str | None = None, permissions: Iterable[str] = ("*",)
) -> ApiKey:
    """An entry of `auth.api_keys` for a key."""
    return ApiKey(
        id=id, sha256=sha256(key.encode()).hexdigest(), tenant=tenant, user=user, permissions=tuple(permissions)
    )


class _WithKey:
    """A stub whose calls carry metadata."""

    def __init__(self, stub: Any, metadata: tuple[tuple[str, str], ...]) -> None:
        self._stub = stub
        self._metadata = metadata

    def __getattr__(self, name: str) -> Any:
        return partial(getattr(self._stub, name), metadata=self._metadata)


class Api:
    """The API through raw stubs, as one caller."""

    def __init__(self, channel: grpc.aio.Channel, key: str | None, *extra: tuple[str, str]) -> None:
        self.channel = channel
        metadata = (*(() if key is None else (("authorization", f"Bearer {key}"),)), *extra)
        self.metadata = metadata
        self.personas: Any = _WithKey(persona_service_pb2_grpc.PersonaServiceStub(channel), metadata)
        self.sessions: Any = _WithKey(session_service_pb2_grpc.SessionServiceStub(channel), metadata)
        self.memories: Any = _WithKey(memory_service_pb2_grpc.MemoryServiceStub(channel), metadata)
        self.corpus: Any = _WithKey(corpus_service_pb2_grpc.CorpusServiceStub(channel), metadata)
        self.policy: Any = _WithKey(policy_service_pb2_grpc.PolicyServiceStub(channel), metadata)
        self.reviews: Any = _WithKey(review_service_pb2_grpc.ReviewServiceStub(channel), metadata)
        self.consents: Any = _WithKey(policy_service_pb2_grpc.ConsentServiceStub(channel), metadata)
        self.audit: Any = _WithKey(audit_service_pb2_grpc.AuditServiceStub(channel), metadata)
        self.content: Any = _WithKey(content_service_pb2_grpc.ContentServiceStub(channel), metadata)
        self.operations: Any = _WithKey(operations_pb2_grpc.OperationsStub(channel), metadata)
        self.health: Any = health_pb2_grpc.HealthStub(channel)

    async def persona(
        self,
        *,
        type: persona_service_pb2.PersonaType = persona_service_pb2.PERSONA_TYPE_ASSISTANT,
        card: str = "You are Nadia, who runs a bike shop.",
        publish: bool = True,
        tenant: str = "demo",
    ) -> str:
        """A new persona's name, with a revision unless `publish` is False."""
        created = await self.personas.CreatePersona(
            persona_service_pb2.CreatePersonaRequest(
                parent=f"tenants/{tenant}",
                persona_id=f"p-{uuid.uuid4().hex[:12]}",
                persona=persona_service_pb2.Persona(display_name="Nadia", type=type),
            )
        )
        if publish:
            await self.publish(created.name, card)
        return str(created.name)

    async def publish(self, persona: str, card: str = "You are Nadia.") -> Any:
        """Publish a definition of nothing but a card."""
        return await self.personas.PublishRevision(
            persona_service_pb2.PublishRevisionRequest(
                parent=persona, definition=persona_service_pb2.PersonaDefinition(card=card)
            )
        )

    async def session(self, persona: str, user: str = "", **fields: Any) -> str:
        """A new session's name; of a new user unless one is named."""
        created = await self.sessions.CreateSession(
            session_service_pb2.CreateSessionRequest(
                parent=persona, session=session_service_pb2.Session(user=user or new_user(persona), **fields)
            )
        )
        return str(created.name)

    def converse(self, session: str, text: str, turn_id: str = "") -> Any:
        """The call of one turn; iterate over it for events."""
        return self.sessions.Converse(
            session_service_pb2.ConverseRequest(session=session, turn_id=turn_id or new_turn_id(), text=text),
            timeout=WAIT_S,
        )

    async def say(self, session: str, text: str, turn_id: str = "") -> list[event_pb2.SessionEvent]:
        """Every event of one turn."""
        return [event async for event in self.converse(session, text, turn_id)]

    def attach(self, session: str, after: int = 0, turn_id: str = "") -> Any:
        """The call of an Attach."""
        return self.sessions.Attach(
            session_service_pb2.AttachRequest(session=session, after_event_id=after, turn_id=turn_id), timeout=WAIT_S
        )

    async def attached(self, session: str, after: int = 0, turn_id: str = "") -> list[event_pb2.SessionEvent]:
        """Every event of an Attach that ends."""
        return [event async for event in self.attach(session, after, turn_id)]

    async def cancel(self, session: str, turn_id: str) -> session_service_pb2.Turn:
        """Cancel a turn."""
        turn: session_service_pb2.Turn = await self.sessions.CancelTurn(
            session_service_pb2.CancelTurnRequest(name=f"{session}/turns/{turn_id}")
        )
        return turn

    async def turns(self, session: str) -> list[session_service_pb2.Turn]:
        """Every turn of a session, oldest first."""
        listed = await self.sessions.ListTurns(session_service_pb2.ListTurnsRequest(parent=session, page_size=200))
        return list(listed.turns)

    async def remember(self, user: str, text: str, **fields: Any) -> memory_service_pb2.Memory:
        """Store a memory."""
        memory: memory_service_pb2.Memory = await self.memories.CreateMemory(
            memory_service_pb2.CreateMemoryRequest(
                parent=user, memory=memory_service_pb2.Memory(text=text, speaker="them", **fields)
            )
        )
        return memory

    async def memories_of(self, user: str) -> list[memory_service_pb2.Memory]:
        """Every memory of a user, newest first."""
        listed = await self.memories.ListMemories(memory_service_pb2.ListMemoriesRequest(parent=user, page_size=200))
        return list(listed.memories)

    async def erase(self, user: str, *memories: str, **fields: Any) -> memory_service_pb2.ErasureProof:
        """Erase a user, or some memories of theirs; the proof that it ended in."""
        begun = await self.memories.EraseMemories(
            memory_service_pb2.EraseMemoriesRequest(parent=user, memories=memories, **fields)
        )
        return await self.proof(begun.name)

    async def proof(self, operation: str) -> memory_service_pb2.ErasureProof:
        """What an erasure ends in."""
        done = await self.operations.WaitOperation(
            operations_pb2.WaitOperationRequest(name=operation, timeout=duration_pb2.Duration(seconds=int(WAIT_S)))
        )
        assert done.done, done
        response = memory_service_pb2.EraseMemoriesResponse()
        assert done.response.Unpack(response)
        return response.proof


def new_user(persona: str) -> str:
    """A user nobody has named yet."""
    return f"{persona}/users/u-{uuid.uuid4().hex[:12]}"


def new_turn_id() -> str:
    """A turn id nobody has used yet."""
    return f"t-{uuid.uuid4().hex[:12]}"


# -- the host -----------------------------------------------------------------


@dataclass
class Hosted:
    """A host that runs, its engine, and a caller with every permission in tenant `demo`."""

    host: EmbeddedHost
    engine: ScriptedEngine
    api: Api
    port: int
    key: str

    def caller(self, key: str | None, *extra: tuple[str, str]) -> Api:
        """The same host as another caller."""
        return Api(self.api.channel, key, *extra)

    async def indexed(self) -> None:
        """Return when the index holds every memory that is committed."""
        assert self.host.indexer is not None
        await self.host.indexer.catch_up()

    async def points(self, user: str) -> int:
        """How many points of a user the index holds."""
        assert self.host.indexer is not None
        return await self.host.indexer._index.count(self.scope(user))

    def memory_id(self, memory: memory_service_pb2.Memory) -> uuid.UUID:
        """The ledger's id of a memory."""
        return uuid.UUID(memory.name.rsplit("/", 1)[1])

    def scope(self, user: str) -> str:
        """The scope key of a user name."""
        _, tenant, _, persona, _, person = user.split("/")
        return self.host.stores.vault.scope_key(Scope(tenant, persona, person))


async def rows_of_every_table(hosted: Hosted) -> dict[str, str]:
    """All that the ledger holds, as text; bytes as hex."""
    database = hosted.host.stores.database
    tables = await database.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    query = "SELECT coalesce(string_agg(t::text, chr(10)), '') FROM \"{}\" t"
    return {name: await database.fetchval(query.format(name)) for (name,) in tables}


async def run_cli(hosted: Hosted, *arguments: str) -> tuple[int, str]:
    """A command in a process of its own, against this host; exit code and output."""
    code = "from personae_serve.cli import main; main()"
    target = ("--target", f"127.0.0.1:{hosted.port}", "--api-key", hosted.key)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "160"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, *arguments, *target, env=environment, stdout=PIPE, stderr=STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


# -- reading ------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """A failed call: its status and details."""

    code: grpc.StatusCode
    message: str
    reason: str
    metadata: dict[str, str]
    retry: error_details_pb2.RetryInfo | None
    bad_request: error_details_pb2.BadRequest | None
    quota: error_details_pb2.QuotaFailure | None
    precondition: error_details_pb2.PreconditionFailure | None

    @property
    def fields(self) -> list[str]:
        """Paths of a BadRequest."""
        return [violation.field for violation in self.bad_request.field_violations] if self.bad_request else []


async def failure(call: Awaitable[Any] | AsyncIterator[Any]) -> Failure:
    """How a call, or a stream read to its end, failed. Every failure must carry ErrorInfo of our domain."""
    try:
        if isinstance(call, Awaitable) and not isinstance(call, grpc.aio.UnaryStreamCall):
            await call
        else:
            async for _ in call:  # type: ignore[union-attr]
                pass
    except grpc.aio.AioRpcError as error:
        return read_failure(error)
    raise AssertionError("the call did not fail")


def read_failure(error: grpc.aio.AioRpcError) -> Failure:
    """The details of an error."""
    status = rpc_status.from_call(error)
    assert status is not None, f"no details: {error.code()} {error.details()}"
    info = _detail(status, error_details_pb2.ErrorInfo)
    assert info is not None, f"no ErrorInfo: {status}"
    assert info.domain == "personae.v1"
    assert info.reason
    return Failure(
        code=error.code(),
        message=error.details() or "",
        reason=info.reason,
        metadata=dict(info.metadata),
        retry=_detail(status, error_details_pb2.RetryInfo),
        bad_request=_detail(status, error_details_pb2.BadRequest),
        quota=_detail(status, error_details_pb2.QuotaFailure),
        precondition=_detail(status, error_details_pb2.PreconditionFailure),
    )


def _detail(status: Any, kind: type[ProtoMessage]) -> Any:
    for packed in status.details:
        if packed.Is(kind.DESCRIPTOR):
            found = kind()
            packed.Unpack(found)
            return found
    return None


def kinds(events: Iterable[event_pb2.SessionEvent]) -> list[str]:
    """Which events these are, in order."""
    return [str(event.WhichOneof("event")) for event in events]


def text_of(events: Iterable[event_pb2.SessionEvent]) -> str:
    """The words of a turn."""
    return "".join(event.text_delta.text for event in events if event.HasField("text_delta"))


async def until(happened: Callable[[], bool]) -> None:
    """Return when it has."""
    async with asyncio.timeout(WAIT_S):
        while not happened():  # noqa: ASYNC110  (a host's own state: nothing tells when it changes)
            await asyncio.sleep(0.01)


async def read_until(call: Any, kind: str) -> list[event_pb2.SessionEvent]:
    """Events of a call up to and with the first of a kind."""
    events: list[event_pb2.SessionEvent] = []
    while True:
        event = await call.read()
        assert event is not grpc.aio.EOF, f"the stream ended without {kind}: {kinds(events)}"
        events.append(event)
        if event.WhichOneof("event") == kind:
            return events


async def rest(call: Any) -> list[event_pb2.SessionEvent]:
    """What a call still has."""
    events: list[event_pb2.SessionEvent] = []
    while (event := await call.read()) is not grpc.aio.EOF:
        events.append(event)
    return events


async def cut_short(call: Any) -> bool:
    """Whether a stream ended early: with an interruption, or, if its turn was gone before that was told, without."""
    try:
        return kinds(await rest(call))[-1] == "turn_interrupted"
    except grpc.aio.AioRpcError as error:
        return read_failure(error).code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND)


async def say_in_steps(
    hosted: Hosted, session: str, units: Sequence[str], turn_id: str = ""
) -> list[event_pb2.SessionEvent]:
    """Every event of a turn whose reply is these units, each in an event of its own.

    A unit must end with white space, as only what follows tells that it has ended.
    """
    first, *others = units
    pauses = [Pause() for _ in others]
    hosted.engine.will_say(first, *(part for pair in zip(pauses, others, strict=True) for part in pair))
    call = hosted.api.converse(session, "Hello there.", turn_id)
    events: list[event_pb2.SessionEvent] = []
    for pause in pauses:
        events += await read_until(call, "text_delta")
        pause.go.set()
    return events + await rest(call)
