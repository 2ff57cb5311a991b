"""The Python SDK of Personae: async, typed, and able to resume a broken stream.

    async with PersonaeClient(api_key=key) as client:
        session = await client.sessions.create("tenants/acme/personas/nadia", user="u-17")
        async with client.sessions.converse(session.name, "Is my bike ready?") as stream:
            async for words in stream.text():
                print(words, end="", flush=True)

Messages are the generated ones of `personae.v1`; this package adds the client,
its errors and its streams.
"""

from __future__ import annotations

from personae_client.client import PersonaeClient
from personae_client.errors import (
    AlreadyExistsError,
    CancelledError,
    ConflictError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    PersonaeError,
    RateLimitedError,
    TurnInProgressError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
    Violation,
)
from personae_client.resources.memories import ErasureOperation, MemoryExport
from personae_client.streams import EventStream, TurnResult, TurnStream
from personae_client.transport import Tls, TokenProvider

__all__ = [
    "AlreadyExistsError",
    "CancelledError",
    "ConflictError",
    "DeadlineExceededError",
    "ErasureOperation",
    "EventStream",
    "FailedPreconditionError",
    "InternalError",
    "InvalidArgumentError",
    "MemoryExport",
    "NotFoundError",
    "PermissionDeniedError",
    "PersonaeClient",
    "PersonaeError",
    "RateLimitedError",
    "Tls",
    "TokenProvider",
    "TurnInProgressError",
    "TurnResult",
    "TurnStream",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "Violation",
]
