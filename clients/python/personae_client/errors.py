"""One typed error tree for everything a call can fail with.

PersonaeError
├── InvalidArgumentError      fix the request
├── UnauthenticatedError      give a key that holds
├── PermissionDeniedError     the key may not do this
├── NotFoundError
├── AlreadyExistsError        the name, turn_id or request_id is taken
├── FailedPreconditionError   change the state first; `reason` says which
├── ConflictError             something else is in the way; read again and retry
│   └── TurnInProgressError   the session runs another turn
├── RateLimitedError          retry after `retry_after_s`
├── UnavailableError          the server or a store of it is out of reach
├── DeadlineExceededError     the time given for the call is over
├── CancelledError            the call was cancelled on the way
├── UnimplementedError        the server does not know the method
└── InternalError
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong with one field of a request, or one precondition.

    Attributes:
        subject: path of the field ("session.user"), or what the precondition is about.
        description: what is expected.
    """

    subject: str
    description: str


class PersonaeError(Exception):
    """A call failed.

    Attributes:
        code: canonical status code by name, such as "NOT_FOUND".
        reason: stable and machine-readable, such as "REVISION_WITHDRAWN"; empty
            if the failure did not come from the server itself.
        message: for developers.
        metadata: details of the reason.
        retry_after_s: seconds after which a retry may succeed; None if unsaid.
        field_violations: fields of the request that were refused.
        precondition_violations: what must change first.
        request_id: names the call in the server's logs; empty if unsaid.
        trace_id: of the server's trace, hex; empty if unsaid.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
        field_violations: tuple[Violation, ...] = (),
        precondition_violations: tuple[Violation, ...] = (),
        request_id: str = "",
        trace_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s
        self.field_violations = field_violations
        self.precondition_violations = precondition_violations
        self.request_id = request_id
        self.trace_id = trace_id

    def __str__(self) -> str:
        """One line: code, reason, message, and each violation."""
        head = f"{self.code} ({self.reason})" if self.reason else self.code
        violations = "; ".join(f"{v.subject}: {v.description}" for v in self.violations)
        return f"{head}: {self.message}" + (f" [{violations}]" if violations else "")

    @property
    def violations(self) -> tuple[Violation, ...]:
        """Violations of both kinds."""
        return self.field_violations + self.precondition_violations


class InvalidArgumentError(PersonaeError):
    """The request can't be right, whatever the state of the system; see `field_violations`."""


class UnauthenticatedError(PersonaeError):
    """No key, or none that holds."""


class PermissionDeniedError(PersonaeError):
    """The key is known and may not do this."""


class NotFoundError(PersonaeError):
    """The named resource does not exist, or the caller may not know of it."""


class AlreadyExistsError(PersonaeError):
    """The name, turn_id or request_id is taken by something else."""


class FailedPreconditionError(PersonaeError):
    """The system must change before the call can succeed; `reason` says how."""


class ConflictError(PersonaeError):
    """Another operation is in the way; read again and retry."""


class TurnInProgressError(ConflictError):
    """The session runs another turn: wait for it, attach to it, or cancel it."""


class RateLimitedError(PersonaeError):
    """A limit or a queue is full; nothing was changed. See `retry_after_s`."""


class UnavailableError(PersonaeError):
    """The server, or a store that it needs, is out of reach; a retry may succeed."""


class DeadlineExceededError(PersonaeError):
    """The time given for the call is over; whether it had an effect is unknown."""


class CancelledError(PersonaeError):
    """The call was cancelled on the way, not by this process (that is `asyncio.CancelledError`)."""


class UnimplementedError(PersonaeError):
    """The server does not know the method; it may be older than this client."""


class InternalError(PersonaeError):
    """A fault of the server."""


_BY_CODE: Final[dict[grpc.StatusCode, type[PersonaeError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgumentError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.ABORTED: ConflictError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: RateLimitedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: CancelledError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
}


def error_from_rpc(error: grpc.aio.AioRpcError) -> PersonaeError:
    """The typed error of a failed RPC, with the details of its `google.rpc.Status`."""
    info = error_details_pb2.ErrorInfo()
    retry_after_s: float | None = None
    fields: list[Violation] = []
    preconditions: list[Violation] = []
    metadata = _text_metadata((*(error.initial_metadata() or ()), *(error.trailing_metadata() or ())))
    request_id = metadata.get("x-request-id", "")
    for detail in _status(error).details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            fields += [Violation(v.field, v.description) for v in bad.field_violations]
        elif detail.Is(error_details_pb2.PreconditionFailure.DESCRIPTOR):
            failure = error_details_pb2.PreconditionFailure()
            detail.Unpack(failure)
            preconditions += [Violation(v.subject, v.description) for v in failure.violations]
        elif detail.Is(error_details_pb2.RequestInfo.DESCRIPTOR):
            request = error_details_pb2.RequestInfo()
            detail.Unpack(request)
            request_id = request.request_id
    kind = _BY_CODE.get(error.code(), InternalError)
    if kind is ConflictError and info.reason == "TURN_IN_PROGRESS":
        kind = TurnInProgressError
    return kind(
        error.details() or "no details",
        code=error.code().name,
        reason=info.reason,
        metadata=info.metadata,
        retry_after_s=retry_after_s,
        field_violations=tuple(fields),
        precondition_violations=tuple(preconditions),
        request_id=request_id,
        trace_id=_trace_id(metadata),
    )


def _status(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    try:
        # It asks for code(), details() and trailing_metadata() only, which this error has.
        return rpc_status.from_call(error) or status_pb2.Status()  # type: ignore[arg-type]
    except ValueError:  # the details contradict the call's status: a proxy's doing
        return status_pb2.Status()


def _text_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    return {key: value for key, value in metadata if isinstance(value, str)}


def _trace_id(metadata: Mapping[str, str]) -> str:
    # W3C trace context: version-traceid-parentid-flags.
    parts = metadata.get("traceparent", "").split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else ""
