"""What personas said, as files with signed manifests."""

from __future__ import annotations

from personae.v1 import content_service_pb2 as pb
from personae.v1.content_service_pb2_grpc import ContentServiceStub
from personae_client.transport import Transport


class Content:
    """ContentService. Every method raises PersonaeError."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = ContentServiceStub(transport.channel)

    async def export(self, name: str) -> pb.ExportContentResponse:
        """The reply of a turn as text, or a session as a JSON transcript, with its C2PA manifest.

        Args:
            name: full name of a turn that has ended, or of a session.
        """
        return await self._transport.unary(self._stub.ExportContent, pb.ExportContentRequest(name=name))
