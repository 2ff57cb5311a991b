"""Every error the runtime raises on purpose.

An error carries what a caller needs to act: a canonical status
(https://google.aip.dev/193), a stable `reason` in upper snake case, a sentence
that says what to do, and string metadata. The gateway turns it into a
`google.rpc.Status` without knowing the class.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

DOMAIN = "personae.v1"
"""`ErrorInfo.domain` of every reason below."""


class Code(StrEnum):
    """The canonical status codes that the runtime uses, by their gRPC names."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    UNAVAILABLE = "UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    INTERNAL = "INTERNAL"


class PersonaeError(Exception):
    """Base of all errors with a meaning for the caller.

    Args:
        message: one sentence for a developer; never holds a user's text.
        reason: overrides the class's reason.
        metadata: goes to `ErrorInfo.metadata`.
        retry_after_s: seconds after which a retry may succeed; `RetryInfo`.
        violations: (field path, description) pairs; `BadRequest`, or for
            FAILED_PRECONDITION (subject, description); `PreconditionFailure`.
    """

    code: Code = Code.INTERNAL
    reason: str = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
        violations: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or type(self).reason
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s
        self.violations = violations


class InvalidArgument(PersonaeError):
    """The request can't be right, whatever the state of the system."""

    code = Code.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"


class NotFound(PersonaeError):
    """The named resource does not exist, or the caller may not know of it."""

    code = Code.NOT_FOUND
    reason = "RESOURCE_NOT_FOUND"


class AlreadyExists(PersonaeError):
    """The name, turn_id or request_id is taken by something else."""

    code = Code.ALREADY_EXISTS
    reason = "RESOURCE_ALREADY_EXISTS"


class PermissionDenied(PersonaeError):
    """The caller is known and may not do this."""

    code = Code.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class Unauthenticated(PersonaeError):
    """No credentials, or none that hold."""

    code = Code.UNAUTHENTICATED
    reason = "CREDENTIALS_INVALID"


class ResourceExhausted(PersonaeError):
    """A limit or a queue is full; nothing was changed."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "RATE_LIMITED"


class FailedPrecondition(PersonaeError):
    """The system must change before the request can succeed."""

    code = Code.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class Aborted(PersonaeError):
    """Another operation is in the way; read again and retry."""

    code = Code.ABORTED
    reason = "CONFLICT"


class Unavailable(PersonaeError):
    """A dependency is out of reach; a retry may succeed."""

    code = Code.UNAVAILABLE
    reason = "DEPENDENCY_UNAVAILABLE"


class DeadlineExceeded(PersonaeError):
    """The time that the caller gave is over; whether the call had an effect is unknown."""

    code = Code.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class OwnedElsewhere(Unavailable):
    """A running turn is another process's: the call belongs there, or must be tried again.

    Args:
        owner: the process, as the ledger names it.
        endpoint: host:port at which it takes calls for its turns; empty if it
            takes none, or has not been heard of for a lease's time.
    """

    reason = "TURN_OWNED_ELSEWHERE"

    def __init__(self, owner: str, endpoint: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(
            "the turn runs in another process; attach again, or try again when it has ended",
            retry_after_s=retry_after_s,
        )
        self.owner = owner
        self.endpoint = endpoint


class Draining(Unavailable):
    """This process stops and takes nothing new; another one, or its successor, does."""

    reason = "DRAINING"

    def __init__(self) -> None:
        super().__init__("this process is shutting down; try again", retry_after_s=1.0)


class GatewayOverloaded(ResourceExhausted):
    """This process is late with what it has; nothing was changed.

    Args:
        wait_s: seconds that calls wait for it.
    """

    reason = "GATEWAY_OVERLOADED"

    def __init__(self, wait_s: float) -> None:
        super().__init__("the gateway is overloaded; try again later", retry_after_s=max(1.0, wait_s))


class EngineOverloaded(ResourceExhausted):
    """The engine refuses new work; nothing was queued."""

    reason = "ENGINE_OVERLOADED"


class EngineDead(Unavailable):
    """The engine died or failed in the middle of a request."""

    reason = "ENGINE_UNAVAILABLE"


class LedgerUnavailable(Unavailable):
    """PostgreSQL is out of reach; nothing of this call was recorded, or its fate is unknown."""

    reason = "LEDGER_UNAVAILABLE"


class LeaseLost(Aborted):
    """Another owner holds the turn: a write of this one was fenced off."""

    reason = "LEASE_LOST"


class ConfigError(PersonaeError):
    """The configuration can't be used. The message says which key, what was expected and an example."""

    code = Code.FAILED_PRECONDITION
    reason = "CONFIG_INVALID"


class MissingModel(ConfigError):
    """A model file is not there. The message names it and the command that gets it."""

    reason = "MODEL_MISSING"
