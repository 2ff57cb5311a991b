"""The gRPC servers: limits, services, health, and reflection in development.

The public listener serves clients. A gateway among others has a second one for
its peers, which forward calls about turns that it runs: the same sessions
service behind the same interceptor. Draining closes the first at once and the
second when the turns have ended.
"""

from __future__ import annotations

import asyncio
import tempfile
from typing import Any

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from personae.v1 import (
    audit_service_pb2,
    audit_service_pb2_grpc,
    content_service_pb2,
    content_service_pb2_grpc,
    corpus_service_pb2,
    corpus_service_pb2_grpc,
    memory_service_pb2,
    memory_service_pb2_grpc,
    persona_service_pb2,
    persona_service_pb2_grpc,
    policy_service_pb2,
    policy_service_pb2_grpc,
    review_service_pb2,
    review_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
)
from personae_runtime.config import GatewaySettings
from personae_runtime.errors import ConfigError
from personae_serve.gateway.audit import AuditServicer
from personae_serve.gateway.content import ContentServicer
from personae_serve.gateway.interceptor import GatewayInterceptor
from personae_serve.gateway.operations import OperationsServicer
from personae_serve.gateway.reviews import ReviewServicer
from personae_serve.gateway.servicers import (
    ConsentServicer,
    CorpusServicer,
    MemoryServicer,
    PersonaServicer,
    PolicyServicer,
    SessionServicer,
)
from personae_serve.gateway.tls import bind

SERVICE_NAMES = tuple(
    service.full_name
    for module in (
        persona_service_pb2,
        session_service_pb2,
        memory_service_pb2,
        corpus_service_pb2,
        policy_service_pb2,
        review_service_pb2,
        audit_service_pb2,
        content_service_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
)
"""Full names of the API's services."""
OPERATIONS = operations_pb2.DESCRIPTOR.services_by_name["Operations"].full_name
"""Full name of the service of long-running operations, which is not the API's own."""


def server_options(settings: GatewaySettings) -> list[tuple[str, Any]]:
    """gRPC channel arguments of the limits."""
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_metadata_size", settings.max_metadata_bytes),
        ("grpc.max_concurrent_streams", settings.max_concurrent_streams),
        # Of calls that come in faster than they are accepted, as when many clients connect anew, gRPC cancels some
        # from 1,000 on. They wait, up to the limit that refuses with a reason.
        ("grpc.server.max_pending_requests", settings.max_concurrent_rpcs),
        ("grpc.server.max_pending_requests_hard_limit", settings.max_concurrent_rpcs),
        ("grpc.keepalive_time_ms", int(settings.keepalive_time_s * 1000)),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.max_connection_age_ms", int(settings.max_connection_age_s * 1000)),
        ("grpc.max_connection_age_grace_ms", int(settings.drain_grace_s * 1000)),
        # Off unless asked for: two hosts on one port would split the traffic between two ledgers' worth of sessions.
        ("grpc.so_reuseport", int(settings.reuse_port)),
    ]


def peer_options(settings: GatewaySettings) -> list[tuple[str, Any]]:
    """gRPC channel arguments of the listener for peers: a few connections, each with many calls, of any age."""
    replaced = {
        # The mark of a forwarded call, and the trace context if its client sent none.
        "grpc.max_metadata_size": settings.max_metadata_bytes + 1024,
        "grpc.max_concurrent_streams": settings.max_concurrent_rpcs,
        "grpc.http2.min_ping_interval_without_data_ms": 5_000,
        "grpc.so_reuseport": 0,
    }
    dropped = ("grpc.max_connection_age_ms", "grpc.max_connection_age_grace_ms")
    kept = [(name, value) for name, value in server_options(settings) if name not in replaced and name not in dropped]
    return [*kept, *replaced.items()]


class GatewayServer:
    """The server of one process, with the listeners of `settings`.

    Args:
        credentials: TLS; None speaks plain HTTP/2, on loopback only.
        reflection: lists the API to anyone; development only.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        interceptor: GatewayInterceptor,
        *,
        personas: PersonaServicer,
        sessions: SessionServicer,
        memories: MemoryServicer,
        corpus: CorpusServicer,
        policy: PolicyServicer,
        consents: ConsentServicer,
        reviews: ReviewServicer,
        audit: AuditServicer,
        content: ContentServicer,
        operations: OperationsServicer,
        credentials: grpc.ServerCredentials | None,
        reflection: bool,
    ) -> None:
        self._settings = settings
        self._credentials = credentials
        self._server = grpc.aio.server(
            interceptors=[interceptor],
            options=server_options(settings),
            maximum_concurrent_rpcs=settings.max_concurrent_rpcs,
        )
        persona_service_pb2_grpc.add_PersonaServiceServicer_to_server(personas, self._server)
        session_service_pb2_grpc.add_SessionServiceServicer_to_server(sessions, self._server)
        memory_service_pb2_grpc.add_MemoryServiceServicer_to_server(memories, self._server)
        corpus_service_pb2_grpc.add_CorpusServiceServicer_to_server(corpus, self._server)
        policy_service_pb2_grpc.add_PolicyServiceServicer_to_server(policy, self._server)
        policy_service_pb2_grpc.add_ConsentServiceServicer_to_server(consents, self._server)
        review_service_pb2_grpc.add_ReviewServiceServicer_to_server(reviews, self._server)
        audit_service_pb2_grpc.add_AuditServiceServicer_to_server(audit, self._server)
        content_service_pb2_grpc.add_ContentServiceServicer_to_server(content, self._server)
        operations_pb2_grpc.add_OperationsServicer_to_server(operations, self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if reflection:
            from grpc_reflection.v1alpha import reflection as grpc_reflection

            grpc_reflection.enable_server_reflection(
                (*SERVICE_NAMES, OPERATIONS, health.SERVICE_NAME, grpc_reflection.SERVICE_NAME), self._server
            )
        self._peer_server: grpc.aio.Server | None = None
        if settings.peer_port is not None:
            self._peer_server = grpc.aio.server(
                interceptors=[interceptor],
                options=peer_options(settings),
                maximum_concurrent_rpcs=settings.max_concurrent_rpcs,
            )
            # What is forwarded is all of this service.
            session_service_pb2_grpc.add_SessionServiceServicer_to_server(sessions, self._peer_server)
        self._closing: asyncio.Task[None] | None = None
        self._local: tempfile.TemporaryDirectory[str] | None = None
        self.port = 0
        self.endpoint = ""
        self.probe_address = ""

    def bind_peers(self) -> str:
        """Take the peer listener's port; its host:port, to be registered before it is used, or "" if there is none.

        Raises:
            ConfigError: the address can't be bound, or is not loopback and there is no TLS.
        """
        if self._peer_server is not None and not self.endpoint:
            host, port = self._settings.peer_host, self._settings.peer_port or 0
            bound = self._bind(self._peer_server, host, port, "peer_port")
            self.endpoint = f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"
        return self.endpoint

    async def start(self) -> int:
        """Listen; the public port.

        Raises:
            ConfigError: an address can't be bound.
        """
        self.bind_peers()
        self.port = self._bind(self._server, self._settings.host, self._settings.port, "port")
        # For AcceptProbe; a folder that only this user can enter.
        self._local = tempfile.TemporaryDirectory(prefix="personae-")
        self.probe_address = f"unix:{self._local.name}/probe"
        self._server.add_secure_port(self.probe_address, grpc.local_server_credentials(grpc.LocalConnectionType.UDS))
        if self._peer_server is not None:
            await self._peer_server.start()
        await self._server.start()
        return self.port

    def _bind(self, server: grpc.aio.Server, host: str, port: int, setting: str) -> int:
        try:
            return bind(server, host, port, self._credentials)
        except RuntimeError as error:
            raise ConfigError(
                f"gateway: {host}:{port} can't be bound, is another host running? Choose another gateway.{setting}"
                f" (PERSONAE_GATEWAY__{setting.upper()}), or 0 for a free one"
            ) from error

    async def set_health(self, serving: bool) -> None:
        """Tell health checks, for the whole server and each service."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *SERVICE_NAMES, OPERATIONS):
            await self._health.set(name, status)

    async def close_public(self, grace_s: float) -> None:
        """Accept no more from clients and ask them to connect anew; their calls have `grace_s` seconds to end.

        Returns at once: `stop` waits for them.
        """
        if self._closing is None:
            self._closing = asyncio.create_task(self._server.stop(grace_s), name="close-public")
            # Its first step closes the listener.
            await asyncio.sleep(0)

    async def stop(self, grace_s: float) -> None:
        """Accept nothing new, let RPCs end, and cut what has not after `grace_s`."""
        await self.close_public(grace_s)
        if self._peer_server is not None:
            await self._peer_server.stop(grace_s)
        if self._closing is not None:
            await self._closing
        if self._local is not None:
            self._local.cleanup()
