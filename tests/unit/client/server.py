"""A real gRPC server whose servicers do what a test tells them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from google.longrunning import operations_pb2_grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from personae.v1 import (
    audit_service_pb2_grpc,
    event_pb2,
    memory_service_pb2_grpc,
    persona_service_pb2_grpc,
    policy_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
)
from personae_client import PersonaeClient

SESSION = "tenants/acme/personas/nadia/sessions/s1"
TURN = "t1"


@asynccontextmanager
async def serving(
    *,
    sessions: session_service_pb2_grpc.SessionServiceServicer | None = None,
    personas: persona_service_pb2_grpc.PersonaServiceServicer | None = None,
    memories: memory_service_pb2_grpc.MemoryServiceServicer | None = None,
    policy: policy_service_pb2_grpc.PolicyServiceServicer | None = None,
    consents: policy_service_pb2_grpc.ConsentServiceServicer | None = None,
    audit: audit_service_pb2_grpc.AuditServiceServicer | None = None,
    operations: operations_pb2_grpc.OperationsServicer | None = None,
    **client_options: Any,
) -> AsyncIterator[PersonaeClient]:
    """A server on a free loopback port and a client of it, with short pauses."""
    server = grpc.aio.server()
    if sessions:
        session_service_pb2_grpc.add_SessionServiceServicer_to_server(sessions, server)
    if personas:
        persona_service_pb2_grpc.add_PersonaServiceServicer_to_server(personas, server)
    if memories:
        memory_service_pb2_grpc.add_MemoryServiceServicer_to_server(memories, server)
    if policy:
        policy_service_pb2_grpc.add_PolicyServiceServicer_to_server(policy, server)
    if consents:
        policy_service_pb2_grpc.add_ConsentServiceServicer_to_server(consents, server)
    if audit:
        audit_service_pb2_grpc.add_AuditServiceServicer_to_server(audit, server)
    if operations:
        operations_pb2_grpc.add_OperationsServicer_to_server(operations, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    options = {"backoff_s": 0.001, "max_backoff_s": 0.002, **client_options}
    try:
        async with PersonaeClient(f"127.0.0.1:{port}", **options) as client:
            yield client
    finally:
        await server.stop(grace=None)


async def fail(
    context: Any,
    code: grpc.StatusCode,
    message: str = "as told",
    *,
    reason: str = "",
    retry_after_s: float | None = None,
    metadata: dict[str, str] | None = None,
    fields: dict[str, str] | None = None,
    preconditions: dict[str, str] | None = None,
) -> None:
    """End an RPC with a `google.rpc.Status`."""
    details: list[Any] = []
    if reason:
        details.append(error_details_pb2.ErrorInfo(reason=reason, domain="personae.v1", metadata=metadata or {}))
    if retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(retry_after_s * 1e9))
        details.append(retry)
    if fields:
        bad = error_details_pb2.BadRequest()
        for name, description in fields.items():
            bad.field_violations.add(field=name, description=description)
        details.append(bad)
    if preconditions:
        failure = error_details_pb2.PreconditionFailure()
        for name, description in preconditions.items():
            failure.violations.add(subject=name, description=description)
        details.append(failure)
    packed = []
    for detail in details:
        wrapper = any_pb2.Any()
        wrapper.Pack(detail)
        packed.append(wrapper)
    status = status_pb2.Status(code=getattr(code_pb2, code.name), message=message, details=packed)
    await context.abort_with_status(rpc_status.to_status(status))


def event(event_id: int, **body: Any) -> event_pb2.SessionEvent:
    return event_pb2.SessionEvent(event_id=event_id, turn_id=TURN, **body)


def a_turn() -> list[event_pb2.SessionEvent]:
    """The events of one turn, with gaps between their ids."""
    return [
        event(3, turn_started=event_pb2.TurnStarted(disclosure="I am an AI.", revision="r1")),
        event(5, memory_citation=event_pb2.MemoryCitation(memory="m1", quote="a red bike")),
        event(6, policy_event=event_pb2.PolicyEvent(reason_code="R", action=event_pb2.POLICY_ACTION_TRANSFORM)),
        event(9, text_delta=event_pb2.TextDelta(text="Your red ")),
        event(10, text_delta=event_pb2.TextDelta(text="bike is ")),
        event(11, notice=event_pb2.Notice(code="N", text="note")),
        event(14, text_delta=event_pb2.TextDelta(text="ready.")),
        event(15, usage=event_pb2.Usage(input_tokens=7, output_tokens=5)),
        event(16, latency=event_pb2.Latency()),
        event(17, turn_completed=event_pb2.TurnCompleted(finish_reason=event_pb2.FINISH_REASON_STOP)),
    ]


class RecordedTurn(session_service_pb2_grpc.SessionServiceServicer):
    """Replays a turn, and ends the n-th connection as `cuts[n]` says: (events to send, status)."""

    def __init__(self, cuts: list[tuple[int, grpc.StatusCode | None]], repeat: int = 0) -> None:
        self.cuts = cuts
        self.repeat = repeat  # send this many events again that the client has seen
        self.calls: list[session_service_pb2.ConverseRequest | session_service_pb2.AttachRequest] = []
        self.tokens: list[str] = []
        self.events = a_turn()

    async def Converse(self, request: session_service_pb2.ConverseRequest, context: Any) -> Any:
        self.calls.append(request)
        await self._send(self.events, context)

    async def Attach(self, request: session_service_pb2.AttachRequest, context: Any) -> Any:
        self.calls.append(request)
        seen = sum(e.event_id <= request.after_event_id for e in self.events)
        await self._send(self.events[max(0, seen - self.repeat) :], context)

    async def _send(self, events: list[event_pb2.SessionEvent], context: Any) -> None:
        count, status = self.cuts[len(self.calls) - 1] if len(self.calls) <= len(self.cuts) else (len(events), None)
        for item in events[:count]:
            await context.write(item)
        if status is not None:
            await fail(context, status)

    async def CancelTurn(
        self, request: session_service_pb2.CancelTurnRequest, context: Any
    ) -> session_service_pb2.Turn:
        return session_service_pb2.Turn(name=request.name, state=session_service_pb2.TURN_STATE_INTERRUPTED)
