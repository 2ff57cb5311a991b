"""What policy says of a text, what it decided, and why."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import date, datetime

from personae.v1 import event_pb2, persona_service_pb2
from personae.v1 import policy_service_pb2 as pb
from personae.v1.policy_service_pb2_grpc import PolicyServiceStub
from personae_client.transport import Transport, pages


class Policy:
    """PolicyService. Every method raises PersonaeError."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = PolicyServiceStub(transport.channel)

    async def classify(
        self,
        parent: str,
        text: str,
        stage: event_pb2.PolicyStage,
        *,
        persona_type: persona_service_pb2.PersonaType = persona_service_pb2.PERSONA_TYPE_UNSPECIFIED,
        age_band: pb.AgeBand = pb.AGE_BAND_UNSPECIFIED,
        region_code: str = "",
    ) -> pb.ClassifyResponse:
        """Decide as a turn of a tenant would, explain, and record nothing."""
        request = pb.ClassifyRequest(
            parent=parent,
            text=text,
            stage=stage,
            persona_type=persona_type,
            age_band=age_band,
            region_code=region_code,
        )
        return await self._transport.unary(self._stub.Classify, request)

    async def decision(self, name: str) -> pb.Decision:
        """A recorded decision, by the name that a stream's policy event gives."""
        return await self._transport.unary(self._stub.GetDecision, pb.GetDecisionRequest(name=name))

    async def explain(self, name: str) -> pb.PolicyServiceExplainResponse:
        """Why a decision was taken, and its statement of reasons."""
        return await self._transport.unary(self._stub.Explain, pb.PolicyServiceExplainRequest(name=name))

    async def list_decisions(
        self,
        parent: str,
        *,
        persona: str = "",
        session: str = "",
        stage: event_pb2.PolicyStage = event_pb2.POLICY_STAGE_UNSPECIFIED,
        action: event_pb2.PolicyAction = event_pb2.POLICY_ACTION_UNSPECIFIED,
        category: str = "",
        start: datetime | None = None,
        end: datetime | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[pb.Decision]:
        """A tenant's decisions, newest first; pages are fetched as needed.

        Args:
            persona, session: full names.
            start, end: aware times; the end is excluded.
        """
        request = pb.ListDecisionsRequest(
            parent=parent,
            persona=persona,
            session=session,
            stage=stage,
            action=action,
            category=category,
            start_time=start,
            end_time=end,
            page_size=page_size,
        )

        async def fetch(token: str) -> pb.ListDecisionsResponse:
            request.page_token = token
            return await self._transport.unary(self._stub.ListDecisions, request)

        async for page in pages(fetch):
            for decision in page.decisions:
                yield decision

    async def count_crisis_referrals(self, parent: str, start: date, end: date) -> pb.CountCrisisReferralsResponse:
        """How often people of a tenant were referred to crisis services, by day (UTC), region and tier.

        Args:
            end: the day after the last one.
        """
        request = pb.CountCrisisReferralsRequest(parent=parent, start_date=start.isoformat(), end_date=end.isoformat())
        return await self._transport.unary(self._stub.CountCrisisReferrals, request)
