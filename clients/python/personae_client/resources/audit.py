"""The audit log of a tenant."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime

import grpc.aio

from personae.v1 import audit_service_pb2 as pb
from personae.v1.audit_service_pb2_grpc import AuditServiceStub
from personae_client.errors import error_from_rpc
from personae_client.transport import Transport, pages


class Audit:
    """AuditService. Every method raises PersonaeError; `parent` is `tenants/{tenant}`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = AuditServiceStub(transport.channel)

    async def checkpoint(self, parent: str) -> pb.Checkpoint:
        """A signed checkpoint that covers every entry written before the call. Keep its note."""
        return await self._transport.unary(self._stub.GetCheckpoint, pb.GetCheckpointRequest(parent=parent))

    async def list(self, parent: str, *, first_index: int = 0, page_size: int = 0) -> AsyncIterator[pb.AuditEntry]:
        """The entries from an index on, oldest first; pages are fetched as needed."""

        async def fetch(token: str) -> pb.ListAuditEntriesResponse:
            request = pb.ListAuditEntriesRequest(
                parent=parent, page_size=page_size, page_token=token, first_index=first_index
            )
            return await self._transport.unary(self._stub.ListAuditEntries, request)

        async for page in pages(fetch):
            for entry in page.audit_entries:
                yield entry

    async def inclusion_proof(
        self, parent: str, *, index: int = 0, entry_id: str = "", tree_size: int = 0
    ) -> pb.InclusionProof:
        """Proof that an entry is in the log.

        Args:
            index: of the entry, unless `entry_id` names it.
            entry_id: of a policy decision its id, of an erasure its operation's.
            tree_size: that the proof leads to; 0 is a checkpoint of now, which comes with it.
        """
        request = pb.GetInclusionProofRequest(parent=parent, index=index, entry_id=entry_id, tree_size=tree_size)
        return await self._transport.unary(self._stub.GetInclusionProof, request)

    async def consistency_proof(self, parent: str, first_tree_size: int, second_tree_size: int) -> pb.ConsistencyProof:
        """Proof that the log only grew between two sizes."""
        request = pb.GetConsistencyProofRequest(
            parent=parent, first_tree_size=first_tree_size, second_tree_size=second_tree_size
        )
        return await self._transport.unary(self._stub.GetConsistencyProof, request)

    async def export(self, parent: str) -> AsyncIterator[str]:
        """The whole log as JSON lines, without line breaks, as `personae audit verify` reads them.

        An export that broke off fails there: what stands last must be a checkpoint.
        """
        call = self._stub.ExportAuditLog(
            pb.ExportAuditLogRequest(parent=parent), metadata=await self._transport.metadata()
        )
        try:
            async for message in call:
                yield message.json_line
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from None
        finally:
            call.cancel()

    async def transparency_report(
        self, parent: str, start: datetime, end: datetime | None = None, *, include_entries: bool = False
    ) -> pb.TransparencyReport:
        """Counts of a tenant's decisions and appeals over a time, with a random sample and its proofs.

        Args:
            start, end: aware times; the end is excluded, and now if it is None.
            include_entries: adds the sample's log entries, for auditors.
        """
        request = pb.GetTransparencyReportRequest(
            parent=parent, start_time=start, end_time=end, include_entries=include_entries
        )
        return await self._transport.unary(self._stub.GetTransparencyReport, request)
