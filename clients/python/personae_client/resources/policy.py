"""What policy says of a text, what it decided, and why."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime

from personae.v1 import event_pb2, persona_service_pb2
from personae.v1 import policy_service_pb2 as pb
from personae.v1.policy_service_pb2_grpc import PolicyServiceStub
from personae_client.transport import Transport, new_request_id, pages


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

    async def kill(
        self,
        parent: str,
        reason: str,
        *,
        persona: str = "",
        rule_id: str = "",
        whole_tenant: bool = False,
        request_id: str | None = None,
    ) -> pb.KillSwitch:
        """Switch off one of a persona, a rule and the whole tenant, until it is lifted.

        Args:
            persona: full name.

        Raises:
            ValueError: none of them is named, or several are.
        """
        if [bool(persona), bool(rule_id), whole_tenant].count(True) != 1:
            raise ValueError("one of persona, rule_id and whole_tenant")
        switch = pb.KillSwitch(reason=reason)
        if persona:
            switch.persona = persona
        elif rule_id:
            switch.rule_id = rule_id
        else:
            switch.whole_tenant = True
        request = pb.CreateKillSwitchRequest(
            parent=parent, kill_switch=switch, request_id=request_id or new_request_id()
        )
        return await self._transport.unary(self._stub.CreateKillSwitch, request)

    async def lift(self, name: str, reason: str, *, request_id: str | None = None) -> pb.KillSwitch:
        """Lift a kill switch."""
        request = pb.LiftKillSwitchRequest(name=name, reason=reason, request_id=request_id or new_request_id())
        return await self._transport.unary(self._stub.LiftKillSwitch, request)

    async def kill_switch(self, name: str) -> pb.KillSwitch:
        """One kill switch."""
        return await self._transport.unary(self._stub.GetKillSwitch, pb.GetKillSwitchRequest(name=name))

    async def kill_switches(
        self, parent: str, *, show_lifted: bool = False, page_size: int = 0
    ) -> AsyncIterator[pb.KillSwitch]:
        """A tenant's kill switches, newest first; pages are fetched as needed."""
        request = pb.ListKillSwitchesRequest(parent=parent, show_lifted=show_lifted, page_size=page_size)

        async def fetch(token: str) -> pb.ListKillSwitchesResponse:
            request.page_token = token
            return await self._transport.unary(self._stub.ListKillSwitches, request)

        async for page in pages(fetch):
            for switch in page.kill_switches:
                yield switch

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
