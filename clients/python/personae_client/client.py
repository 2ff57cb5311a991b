"""The client: one channel, and the API's resources on it."""

from __future__ import annotations

import dataclasses
import ipaddress
from types import TracebackType
from typing import Any, Final, Self

import grpc
import grpc.aio

from personae_client.resources.audit import Audit
from personae_client.resources.consents import Consents
from personae_client.resources.content import Content
from personae_client.resources.corpus import Corpus
from personae_client.resources.memories import Memories
from personae_client.resources.personas import Personas
from personae_client.resources.policy import Policy
from personae_client.resources.reviews import Reviews
from personae_client.resources.sessions import Sessions
from personae_client.transport import CallOptions, MetadataProvider, Tls, TokenProvider, Transport

DEFAULT_TARGET: Final = "127.0.0.1:7400"
"""Where `personae up` listens."""

_CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # Notice a dead peer while a stream is silent.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A page of 200 memories of 8,000 characters fits.
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 1 << 20),
    # Each client has a connection of its own, and so may reach another gateway than the next.
    ("grpc.use_local_subchannel_pool", 1),
    # A stream that resumes should not wait long for its connection.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


class PersonaeClient:
    """Async client of the Personae API, `personae.v1`.

    Use it as an async context manager, or call `close`. One client per process
    serves any number of concurrent calls and streams, over one connection.

    Args:
        target: host and port, or any gRPC target.
        api_key: sent as `authorization: Bearer`.
        token: in place of `api_key`, a function that returns the token to send, or
            a coroutine of it. It is called for every call, attempt and resumption,
            so that a stream outlives its token. What it raises is raised.
        tls: files and names for TLS; `Tls()` trusts public authorities. None speaks
            plain HTTP/2, which is refused beyond this machine.
        credentials: in place of `tls`, gRPC's own.
        allow_plaintext: speak plain HTTP/2 to any target. Keys, tokens and words
            travel in the clear; for a network that encrypts by itself.
        timeout_s: seconds for one unary call with all its attempts.
        max_attempts: attempts of one unary call. UNAVAILABLE is retried, and
            RESOURCE_EXHAUSTED where the server says when; nothing runs twice,
            since mutations carry a request_id.
        resume_timeout_s: seconds that a broken stream is attached again without
            any event arriving, before its error is raised.
        backoff_s, max_backoff_s: shortest and longest pause between attempts.
        metadata: called for each call; returns headers to add, such as `traceparent`.

    Attributes:
        personas, sessions, memories, corpus, policy, reviews, consents, audit, content: the API, resource by resource.

    Raises:
        ValueError: words would travel in the clear, or arguments contradict each other.
        OSError: a file of `tls` can't be read.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        api_key: str | None = None,
        token: TokenProvider | None = None,
        tls: Tls | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        allow_plaintext: bool = False,
        timeout_s: float = 30.0,
        max_attempts: int = 5,
        resume_timeout_s: float = 60.0,
        backoff_s: float = 0.1,
        max_backoff_s: float = 5.0,
        metadata: MetadataProvider | None = None,
    ) -> None:
        if api_key is not None and token is not None:
            raise ValueError("give an API key or a token provider, not both")
        if tls is not None:
            if credentials is not None:
                raise ValueError("give `tls` or `credentials`, not both")
            credentials = tls.credentials()
        if credentials is None:
            if not allow_plaintext and not _on_this_machine(target):
                raise ValueError(
                    f"everything would travel to {target} in the clear: give `tls`, or allow it with allow_plaintext"
                )
            channel = grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS)
        else:
            named = (("grpc.ssl_target_name_override", tls.server_name),) if tls and tls.server_name else ()
            channel = grpc.aio.secure_channel(target, credentials, options=(*_CHANNEL_OPTIONS, *named))
        options = CallOptions(timeout_s, max_attempts, resume_timeout_s, backoff_s, max_backoff_s)
        self._bind(Transport(channel, api_key if token is None else token, metadata, options))

    def _bind(self, transport: Transport) -> None:
        self._transport = transport
        self.personas = Personas(transport)
        self.sessions = Sessions(transport)
        self.memories = Memories(transport)
        self.corpus = Corpus(transport)
        self.policy = Policy(transport)
        self.reviews = Reviews(transport)
        self.consents = Consents(transport)
        self.audit = Audit(transport)
        self.content = Content(transport)

    def with_options(self, **changes: Any) -> PersonaeClient:
        """This client with other call options, on the same connection.

        Args:
            changes: fields of `CallOptions`: timeout_s, max_attempts,
                resume_timeout_s, backoff_s, max_backoff_s.
        """
        other = object.__new__(PersonaeClient)
        other._bind(self._transport.with_options(dataclasses.replace(self._transport.options, **changes)))
        return other

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls and streams still open fail. Turns go on."""
        await self._transport.channel.close()


def _on_this_machine(target: str) -> bool:
    scheme, _, rest = target.partition(":///")
    address = rest or scheme
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address.removeprefix("ipv4:").removeprefix("ipv6:").removeprefix("dns:").rsplit(":", 1)[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
