"""`personae.v1.AuditService`: the audit log of a tenant, its checkpoints and proofs."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from uuid import UUID

from personae.v1 import audit_service_pb2 as pb
from personae.v1 import audit_service_pb2_grpc
from personae_runtime.errors import PermissionDenied, ResourceExhausted
from personae_runtime.ledger.audit import AuditEntry, AuditLog, Checkpoint
from personae_runtime.ledger.merkle import leaf_hash
from personae_runtime.ledger.reports import CORRECT, FALSE_POSITIVE, UNDECIDED, Figure, ReportLedger, Sample
from personae_runtime.ledger.vault import Vault
from personae_serve.gateway import convert
from personae_serve.gateway.auth import CALLER
from personae_serve.gateway.servicers import Context, _Api, _own, _page_size

_READER_S = 60.0


class AuditServicer(audit_service_pb2_grpc.AuditServiceServicer):
    """`personae.v1.AuditService`."""

    def __init__(self, log: AuditLog, reports: ReportLedger, vault: Vault) -> None:
        self._log = log
        self._reports = reports
        self._api = _Api(vault)

    async def GetCheckpoint(self, request: pb.GetCheckpointRequest, context: Context) -> pb.Checkpoint:
        parent = _own("tenant", request.parent, "parent")
        return self._checkpoint(await self._log.checkpoint(parent.tenant))

    async def ListAuditEntries(
        self, request: pb.ListAuditEntriesRequest, context: Context
    ) -> pb.ListAuditEntriesResponse:
        parent = _own("tenant", request.parent, "parent")
        size = _page_size(request.page_size)
        place = self._api.page_place(request.page_token, "ListAuditEntries", request.parent)
        first = place[0] + 1 if place else request.first_index
        rows = await self._log.entries(parent.tenant, first=first, limit=size + 1)
        rows, token = self._api.page(rows, size, "ListAuditEntries", request.parent, lambda row: [row.position])
        return pb.ListAuditEntriesResponse(audit_entries=[_entry(row) for row in rows], next_page_token=token)

    async def GetInclusionProof(self, request: pb.GetInclusionProofRequest, context: Context) -> pb.InclusionProof:
        tenant = _own("tenant", request.parent, "parent").tenant
        signed = None if request.tree_size else await self._log.checkpoint(tenant)
        position = request.index
        if request.entry_id:
            position = await self._log.find(tenant, UUID(request.entry_id))
        size = request.tree_size if signed is None else signed.size
        proof = await self._log.inclusion(tenant, position, size)
        return pb.InclusionProof(
            entry=_entry(proof.entry),
            tree_size=proof.size,
            root_hash=proof.root,
            hashes=proof.hashes,
            checkpoint=None if signed is None else self._checkpoint(signed),
        )

    async def GetConsistencyProof(
        self, request: pb.GetConsistencyProofRequest, context: Context
    ) -> pb.ConsistencyProof:
        parent = _own("tenant", request.parent, "parent")
        proof = await self._log.consistency(parent.tenant, request.first_tree_size, request.second_tree_size)
        return pb.ConsistencyProof(
            first_tree_size=proof.first,
            second_tree_size=proof.second,
            first_root_hash=proof.first_root,
            second_root_hash=proof.second_root,
            hashes=proof.hashes,
        )

    async def ExportAuditLog(  # type: ignore[override]  # streams by context.write
        self, request: pb.ExportAuditLogRequest, context: Context
    ) -> None:
        parent = _own("tenant", request.parent, "parent")
        async with aclosing(self._log.export(parent.tenant)) as lines:
            async for line in lines:
                try:
                    async with asyncio.timeout(_READER_S):
                        await context.write(pb.ExportAuditLogResponse(json_line=line))
                except TimeoutError:
                    raise ResourceExhausted(
                        f"the export was not read for {_READER_S:g} s", reason="SLOW_CONSUMER"
                    ) from None

    async def GetTransparencyReport(
        self, request: pb.GetTransparencyReportRequest, context: Context
    ) -> pb.TransparencyReport:
        tenant = _own("tenant", request.parent, "parent").tenant
        if request.include_entries and not CALLER.get().may("audit.get"):
            # They are what GetInclusionProof gives.
            raise PermissionDenied("the key lacks permission audit.get", metadata={"permission": "audit.get"})
        begin = convert.from_timestamp(request.start_time, "start_time")
        end = convert.from_timestamp(request.end_time, "end_time") if request.HasField("end_time") else None
        made = await self._reports.transparency(tenant, begin, end)
        return pb.TransparencyReport(
            parent=request.parent,
            start_time=convert.timestamp(made.begin),
            end_time=convert.timestamp(made.end),
            create_time=convert.timestamp(made.created_at),
            min_people=made.min_people,
            allowed=_number(made.allowed),
            restricted=_number(made.restricted),
            reviewed=_number(made.reviewed),
            automated_share=made.automated_share,
            tables=[
                pb.ReportTable(
                    dimension=dimension, rows=[pb.ReportTable.Row(key=key, count=_number(row)) for key, row in rows]
                )
                for dimension, rows in made.tables.items()
            ],
            complaints=_number(made.complaints),
            median_hours_to_decision=made.median_hours,
            crisis_referrals=_number(made.crisis_referrals),
            sample=None if made.sample is None else _sample(tenant, made.sample, request.include_entries),
            checkpoint=self._checkpoint(made.checkpoint),
        )

    def _checkpoint(self, signed: Checkpoint) -> pb.Checkpoint:
        return pb.Checkpoint(
            origin=signed.origin,
            tree_size=signed.size,
            root_hash=signed.root,
            create_time=convert.timestamp(signed.created_at),
            note=signed.note,
            public_key=self._log.public_key,
        )


def _entry(row: AuditEntry) -> pb.AuditEntry:
    return pb.AuditEntry(
        index=row.position,
        entry_id=str(row.entry_id),
        kind=row.kind,
        record_time=convert.timestamp(row.created_at),
        entry_json=row.entry.decode(),
    )


def _number(figure: Figure) -> pb.ReportFigure:
    return pb.ReportFigure(value=figure.value, suppressed=figure.suppressed)


def _sample(tenant: str, sample: Sample, with_entries: bool) -> pb.ReportSample:
    items = []
    for decision in sample.decisions:
        item = pb.ReportSample.Item(decision=f"tenants/{tenant}/decisions/{decision}")
        proof = sample.inclusions.get(decision)
        if proof is not None:
            item.leaf_hash = leaf_hash(proof.entry.entry)
            item.index = proof.entry.position
            item.hashes.extend(proof.hashes)
            item.entry_json = proof.entry.entry.decode() if with_entries else ""
        items.append(item)
    rate, low, high = sample.rate or (None, None, None)
    return pb.ReportSample(
        seed=sample.seed,
        items=items,
        correct_count=sample.judgments.get(CORRECT, 0),
        false_positive_count=sample.judgments.get(FALSE_POSITIVE, 0),
        undecided_count=sample.judgments.get(UNDECIDED, 0),
        false_positive_rate=rate,
        false_positive_rate_low=low,
        false_positive_rate_high=high,
    )
