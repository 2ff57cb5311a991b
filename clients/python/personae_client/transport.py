"""How calls are made: metadata, deadlines, retries."""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import grpc
import grpc.aio
import tenacity

from personae_client.errors import (
    CancelledError,
    PersonaeError,
    RateLimitedError,
    UnauthenticatedError,
    UnavailableError,
    error_from_rpc,
)

Request = TypeVar("Request")
Response = TypeVar("Response")

MetadataProvider = Callable[[], Mapping[str, str]]
"""Called for each call: headers to add, such as W3C trace context."""

TokenProvider = Callable[[], str | Awaitable[str]]
"""Called for each call and each attempt of it: the token to send. Let it keep a token until it is about to expire."""


@dataclass(frozen=True, slots=True)
class Tls:
    """How to connect by TLS. `Tls()` trusts the authorities that gRPC ships.

    Attributes:
        ca_file: PEM file of the authorities to trust instead.
        certificate_file, private_key_file: PEM files that a server with mTLS asks for; both or none.
        server_name: name in the server's certificate, where it is not the target's.

    Raises:
        ValueError: only one of certificate and key is given.
    """

    ca_file: str | os.PathLike[str] | None = None
    certificate_file: str | os.PathLike[str] | None = None
    private_key_file: str | os.PathLike[str] | None = None
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.certificate_file is None) != (self.private_key_file is None):
            raise ValueError("a client certificate needs its key, and a key its certificate: give both or none")

    def credentials(self) -> grpc.ChannelCredentials:
        """The credentials of a channel.

        Raises:
            OSError: a file can't be read.
        """
        ca, key, certificate = (
            None if path is None else Path(path).read_bytes()
            for path in (self.ca_file, self.private_key_file, self.certificate_file)
        )
        return grpc.ssl_channel_credentials(ca, key, certificate)


@dataclass(frozen=True, slots=True)
class CallOptions:
    """How long and how often to try.

    Attributes:
        timeout_s: seconds for one unary call with all its attempts.
        max_attempts: attempts of one unary call.
        resume_timeout_s: seconds a stream may go without any event arriving
            while it is broken, before it gives up.
        backoff_s: first pause between attempts, seconds; it doubles, and is drawn
            at random between half of it and all of it.
        max_backoff_s: longest pause, unless the server asks for a longer one.
    """

    timeout_s: float = 30.0
    max_attempts: int = 5
    resume_timeout_s: float = 60.0
    backoff_s: float = 0.1
    max_backoff_s: float = 5.0

    def pause_s(self, failures: int, error: PersonaeError | None) -> float:
        """Seconds to wait after the given number of failures in a row (at least 1)."""
        ceiling = min(self.max_backoff_s, self.backoff_s * 2 ** min(failures - 1, 30))
        pause = random.uniform(ceiling / 2, ceiling)
        return max(pause, error.retry_after_s or 0.0) if error is not None else pause


def token_expired(error: BaseException | None) -> bool:
    """Whether the server wants a newer token."""
    return isinstance(error, UnauthenticatedError) and error.reason == "TOKEN_EXPIRED"


class Transport:
    """A channel with credentials and call options; `credential` is an API key, or gives tokens."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        credential: str | TokenProvider | None,
        metadata: MetadataProvider | None,
        options: CallOptions,
    ) -> None:
        self.channel = channel
        self.options = options
        self._credential = credential
        self._metadata = metadata

    def with_options(self, options: CallOptions) -> Transport:
        """The same channel and credentials with other options."""
        return Transport(self.channel, self._credential, self._metadata, options)

    async def metadata(self) -> grpc.aio.Metadata:
        """Metadata of one call, with a token asked for anew."""
        pairs = [(key.lower(), value) for key, value in (self._metadata() if self._metadata else {}).items()]
        given = self._credential() if callable(self._credential) else self._credential
        bearer = await given if inspect.isawaitable(given) else given
        if bearer is not None:
            pairs.append(("authorization", f"Bearer {bearer}"))
        return grpc.aio.Metadata(*pairs)

    def worth_retrying(self, error: BaseException) -> bool:
        """Whether the same call may succeed soon.

        Overload says when; a limit that says nothing stays. For a token that has
        expired there may be a new one. A server that closes cancels the calls
        that reach it while it tells of that.
        """
        if isinstance(error, RateLimitedError):
            return error.retry_after_s is not None
        return isinstance(error, UnavailableError | CancelledError) or (
            callable(self._credential) and token_expired(error)
        )

    async def unary(self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request) -> Response:
        """Make a call and retry it while that may help.

        Every call of this API may be repeated: reads change nothing, mutations
        carry a request_id or are idempotent by nature.

        Raises:
            PersonaeError: as of the last attempt.
            Exception: whatever the token provider raises.
        """
        options = self.options
        give_up_at = time.monotonic() + options.timeout_s

        async def attempt() -> Response:
            try:
                metadata = await self.metadata()
                remaining = max(0.001, give_up_at - time.monotonic())
                return await method(request, timeout=remaining, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                raise error_from_rpc(error) from None

        def pause(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            return options.pause_s(state.attempt_number, error if isinstance(error, PersonaeError) else None)

        retrying = tenacity.AsyncRetrying(
            sleep=asyncio.sleep,
            stop=tenacity.stop_after_attempt(options.max_attempts) | tenacity.stop_before_delay(options.timeout_s),
            wait=pause,
            retry=tenacity.retry_if_exception(self.worth_retrying),
            reraise=True,
        )
        return await retrying(attempt)


def new_request_id() -> str:
    """A request_id for one mutation, the same for all its attempts."""
    return str(uuid.uuid4())


class _Page(Protocol):
    @property
    def next_page_token(self) -> str: ...


PageT = TypeVar("PageT", bound=_Page)


async def pages(fetch: Callable[[str], Awaitable[PageT]]) -> AsyncIterator[PageT]:
    """Every page, fetched as the one before it is used up. `fetch` takes a page token."""
    token = ""
    while True:
        page = await fetch(token)
        yield page
        token = page.next_page_token
        if not token:
            return
