"""How calls are made: metadata, deadlines, retries."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import grpc
import grpc.aio
import tenacity

from personae_client.errors import PersonaeError, RateLimitedError, UnavailableError, error_from_rpc

Request = TypeVar("Request")
Response = TypeVar("Response")

MetadataProvider = Callable[[], Mapping[str, str]]
"""Called for each call: headers to add, such as W3C trace context."""


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


def worth_retrying(error: BaseException) -> bool:
    """Whether the same call may succeed soon. Overload says when; a limit that says nothing stays."""
    if isinstance(error, RateLimitedError):
        return error.retry_after_s is not None
    return isinstance(error, UnavailableError)


class Transport:
    """A channel with credentials and call options."""

    def __init__(
        self, channel: grpc.aio.Channel, api_key: str | None, metadata: MetadataProvider | None, options: CallOptions
    ) -> None:
        self.channel = channel
        self.options = options
        self._api_key = api_key
        self._metadata = metadata

    def with_options(self, options: CallOptions) -> Transport:
        """The same channel and credentials with other options."""
        return Transport(self.channel, self._api_key, self._metadata, options)

    def metadata(self) -> grpc.aio.Metadata:
        """Metadata of one call."""
        pairs = [(key.lower(), value) for key, value in (self._metadata() if self._metadata else {}).items()]
        if self._api_key is not None:
            pairs.append(("authorization", f"Bearer {self._api_key}"))
        return grpc.aio.Metadata(*pairs)

    async def unary(self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request) -> Response:
        """Make a call and retry it while that may help.

        Every call of this API may be repeated: reads change nothing, mutations
        carry a request_id or are idempotent by nature.

        Raises:
            PersonaeError: as of the last attempt.
        """
        options = self.options
        give_up_at = time.monotonic() + options.timeout_s

        async def attempt() -> Response:
            try:
                remaining = max(0.001, give_up_at - time.monotonic())
                return await method(request, timeout=remaining, metadata=self.metadata())
            except grpc.aio.AioRpcError as error:
                raise error_from_rpc(error) from None

        def pause(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            return options.pause_s(state.attempt_number, error if isinstance(error, PersonaeError) else None)

        retrying = tenacity.AsyncRetrying(
            sleep=asyncio.sleep,
            stop=tenacity.stop_after_attempt(options.max_attempts) | tenacity.stop_before_delay(options.timeout_s),
            wait=pause,
            retry=tenacity.retry_if_exception(worth_retrying),
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
