"""Calls that belong to another gateway: those about a turn that it runs.

They are forwarded to its peer listener and relayed as they are, bytes for
bytes, with the caller's own credentials, which are checked there again. A
forwarded call carries a mark and is never forwarded again. A deadline and a
cancellation go there with the call; an error comes back as it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import grpc
import structlog
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from personae.v1 import event_pb2
from personae_runtime.errors import Code, ConfigError, DeadlineExceeded, PersonaeError, Unavailable
from personae_runtime.telemetry import names
from personae_runtime.telemetry.setup import Telemetry, inject_context

_log = structlog.get_logger(__name__)

FORWARDED: Final = "x-personae-forwarded"
"""Metadata key of a call that another gateway forwarded."""

Context = grpc.aio.ServicerContext[Any, Any]

_CHANNEL_OPTIONS: Final = (
    # A peer that vanished with its machine is noticed within seconds, also by silent streams.
    ("grpc.keepalive_time_ms", 12_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # The first of these is also the longest that a connection may take to come about.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A channel made anew must not inherit the pauses of the one before.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)


class RelayedError(PersonaeError):
    """What another gateway answered.

    Args:
        status: passed on as it is.
        reason: of its ErrorInfo.
    """

    def __init__(self, status: status_pb2.Status, reason: str) -> None:
        super().__init__(status.message, reason=reason)
        self.code = Code(code_pb2.Code.Name(status.code))
        self.status = status


def is_forwarded(context: Context) -> bool:
    """Whether another gateway forwarded this call."""
    return any(key == FORWARDED for key, _ in context.invocation_metadata() or ())


@dataclass(slots=True)
class _Peer:
    channel: grpc.aio.Channel
    calls: int = 0


@dataclass(slots=True, eq=False)
class _Relay:
    call: grpc.aio.UnaryStreamCall[bytes, bytes]
    left: bool = False


class Peers:
    """Channels to other gateways, one for each, kept while they are of use.

    Args:
        telemetry: counts what is forwarded.
        known: endpoints of gateways that live; channels to others are closed once they are silent.
        credentials: called for each new channel: TLS and the name that the
            peer's certificate must have ("" for its address); None speaks plain HTTP/2.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        *,
        known: Callable[[], Collection[str]] = frozenset,
        credentials: Callable[[], tuple[grpc.ChannelCredentials, str] | None] = lambda: None,
    ) -> None:
        self._telemetry = telemetry
        self._known = known
        self._credentials = credentials
        self._peers: dict[str, _Peer] = {}
        self._relays: set[_Relay] = set()
        # The event loop's time that a client has to come back through another gateway, once this one leaves.
        self._leave_at: float | None = None

    @property
    def endpoints(self) -> frozenset[str]:
        """Gateways to which there is a channel."""
        return frozenset(self._peers)

    async def unary(self, endpoint: str, method: str, request: bytes, context: Context) -> bytes:
        """Forward a call; the response's bytes.

        Raises:
            RelayedError: the peer's answer is an error.
            Unavailable: the peer is out of reach (reason TURN_OWNER_UNREACHABLE).
            DeadlineExceeded: the caller's time was over.
        """
        async with self._channel(endpoint, method) as channel:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
            return await call(request, timeout=context.time_remaining(), metadata=_metadata(context))

    async def stream(self, endpoint: str, method: str, request: bytes, context: Context) -> AsyncGenerator[bytes, None]:
        """Forward a call; the bytes of each message, ending with a go_away event if this gateway leaves meanwhile.

        Raises:
            RelayedError, Unavailable, DeadlineExceeded: see `unary`.
        """
        if self._leave_at is not None:
            yield self._go_away()
            return
        async with self._channel(endpoint, method) as channel:
            call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(method)
            relay = _Relay(call(request, timeout=context.time_remaining(), metadata=_metadata(context)))
            self._relays.add(relay)
            try:
                async for message in relay.call:
                    yield message
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not relay.left or (task is not None and task.cancelling()):
                    raise
            finally:
                self._relays.discard(relay)
                relay.call.cancel()
        if relay.left:
            yield self._go_away()

    def leave(self, time_left_s: float) -> None:
        """End every stream that is relayed, now or later, with a go_away event."""
        self._leave_at = asyncio.get_running_loop().time() + time_left_s
        for relay in self._relays:
            relay.left = True
            relay.call.cancel()

    async def close(self) -> None:
        """Close every channel; what is relayed fails."""
        peers, self._peers = self._peers, {}
        for peer in peers.values():
            await peer.channel.close()

    @asynccontextmanager
    async def _channel(self, endpoint: str, method: str) -> AsyncIterator[grpc.aio.Channel]:
        """The peer's channel, for one call; its failures become errors of ours."""
        await self._forget_gone(endpoint)
        peer = self._peers.get(endpoint)
        if peer is None:
            peer = self._peers[endpoint] = _Peer(self._open(endpoint))
        self._telemetry.forwarded.add(1, {names.ATTR_RPC_METHOD: method.lstrip("/")})
        peer.calls += 1
        failed = False
        try:
            yield peer.channel
        except grpc.aio.AioRpcError as error:
            answered = _answer(error)
            if answered is not None:
                raise answered from None
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise DeadlineExceeded("the call's deadline passed at the gateway that runs the turn") from None
            failed = True
            _log.warning("peer_unreachable", endpoint=endpoint, code=error.code().name)
            raise _unreachable() from None
        finally:
            peer.calls -= 1
            if failed and self._peers.get(endpoint) is peer:
                del self._peers[endpoint]
            if not peer.calls and self._peers.get(endpoint) is not peer:
                await peer.channel.close()

    def _open(self, endpoint: str) -> grpc.aio.Channel:
        try:
            found = self._credentials()
        except ConfigError as error:
            _log.error("peer_credentials_unusable", problem=error.message)
            raise _unreachable() from error
        if found is None:
            return grpc.aio.insecure_channel(endpoint, options=_CHANNEL_OPTIONS)
        credentials, name = found
        named = (("grpc.ssl_target_name_override", name),) if name else ()
        return grpc.aio.secure_channel(endpoint, credentials, options=(*_CHANNEL_OPTIONS, *named))

    async def _forget_gone(self, wanted: str) -> None:
        known = self._known()
        for endpoint in [e for e, peer in self._peers.items() if e != wanted and e not in known and not peer.calls]:
            await self._peers.pop(endpoint).channel.close()

    def _go_away(self) -> bytes:
        event = event_pb2.SessionEvent()
        event.time.FromDatetime(datetime.now(UTC))
        left = (self._leave_at or 0.0) - asyncio.get_running_loop().time()
        event.go_away.time_left.FromMilliseconds(max(0, int(left * 1000)))
        return event.SerializeToString()


def _unreachable() -> Unavailable:
    return Unavailable(
        "the gateway that runs the turn is out of reach; try again: if it is dead, the turn is closed when its lease"
        " runs out",
        reason="TURN_OWNER_UNREACHABLE",
        retry_after_s=1.0,
    )


def _metadata(context: Context) -> grpc.aio.Metadata:
    """The caller's credentials, our trace context, and the mark."""
    passed = [(key, value) for key, value in context.invocation_metadata() or () if key in ("authorization", "baggage")]
    return grpc.aio.Metadata(*passed, *inject_context().items(), (FORWARDED, "1"))


def _answer(error: grpc.aio.AioRpcError) -> RelayedError | None:
    """The peer's own error; None if gRPC made it up because there was no answer."""
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it asks for what this error has
    except ValueError:
        return None
    for detail in () if status is None else status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            try:
                return RelayedError(status, info.reason)
            except ValueError:  # a code that no error of ours has
                return None
    return None
