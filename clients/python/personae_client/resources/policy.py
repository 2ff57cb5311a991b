"""What policy says of a text, what it decided, and why."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import date, datetime

from personae.v1 import bundle_pb2, event_pb2, persona_service_pb2
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
        signals: Mapping[str, float] | None = None,
        persona: str = "",
    ) -> pb.ClassifyResponse:
        """Decide as a turn of a tenant would, explain, and record nothing.

        Args:
            text: "" at stage SIGNAL.
            signals: how somebody behaves, by name, at stage SIGNAL.
            persona: name of a persona or revision, for rules that are scoped by them.
        """
        request = pb.ClassifyRequest(
            parent=parent,
            text=text,
            stage=stage,
            persona_type=persona_type,
            age_band=age_band,
            region_code=region_code,
            signals=signals,
            persona=persona,
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

    async def count_crisis_referrals(self, parent: str, start: date, end: date) -> pb.CountCrisisReferralsResponse:
        """How often people of a tenant were referred to crisis services, by day (UTC), region and tier.

        Args:
            end: the day after the last one.
        """
        request = pb.CountCrisisReferralsRequest(parent=parent, start_date=start.isoformat(), end_date=end.isoformat())
        return await self._transport.unary(self._stub.CountCrisisReferrals, request)

    # -- bundles -------------------------------------------------------------

    async def publish_bundle(
        self, parent: str, content: bytes, signature: bytes = b"", *, request_id: str | None = None
    ) -> bundle_pb2.Bundle:
        """Publish a bundle of rules for a tenant; it judges nobody before it is rolled out.

        Args:
            content: the YAML file as it was signed.
            signature: detached, Ed25519, 64 bytes.
        """
        request = bundle_pb2.PublishBundleRequest(
            parent=parent, content=content, signature=signature, request_id=request_id or new_request_id()
        )
        return await self._transport.unary(self._stub.PublishBundle, request)

    async def bundle(self, name: str) -> bundle_pb2.Bundle:
        """A bundle, with its content."""
        return await self._transport.unary(self._stub.GetBundle, bundle_pb2.GetBundleRequest(name=name))

    async def list_bundles(self, parent: str, *, page_size: int = 0) -> AsyncIterator[bundle_pb2.Bundle]:
        """A tenant's bundles, newest first, without their content; pages are fetched as needed."""

        async def fetch(token: str) -> bundle_pb2.ListBundlesResponse:
            request = bundle_pb2.ListBundlesRequest(parent=parent, page_size=page_size, page_token=token)
            return await self._transport.unary(self._stub.ListBundles, request)

        async for page in pages(fetch):
            for bundle in page.bundles:
                yield bundle

    async def rollout(self, parent: str) -> bundle_pb2.Rollout:
        """Which bundles judge a tenant's sessions."""
        request = bundle_pb2.GetRolloutRequest(name=f"{parent}/rollout")
        return await self._transport.unary(self._stub.GetRollout, request)

    async def set_rollout(
        self,
        parent: str,
        bundle: str,
        stage: bundle_pb2.RolloutStage,
        *,
        percent: int = 0,
        etag: str = "",
        request_id: str | None = None,
    ) -> bundle_pb2.Rollout:
        """Roll a bundle of a tenant out.

        Args:
            bundle: its name; "" is the host's own, for FULL only.
            percent: 1 to 99, for PERCENTAGE only.
            etag: of the rollout as it was read.
        """
        request = bundle_pb2.SetRolloutRequest(
            name=f"{parent}/rollout",
            bundle=bundle,
            stage=stage,
            percent=percent,
            etag=etag,
            request_id=request_id or new_request_id(),
        )
        return await self._transport.unary(self._stub.SetRollout, request)

    async def rollback(self, parent: str, *, etag: str = "", request_id: str | None = None) -> bundle_pb2.Rollout:
        """Drop a tenant's candidate; where there is none, go back to the bundle before."""
        request = bundle_pb2.RollbackRolloutRequest(
            name=f"{parent}/rollout", etag=etag, request_id=request_id or new_request_id()
        )
        return await self._transport.unary(self._stub.RollbackRollout, request)

    async def list_shadow_decisions(
        self, bundle: str, *, differing: bool = False, page_size: int = 0
    ) -> AsyncIterator[bundle_pb2.ShadowDecision]:
        """What a bundle in shadow would have decided, newest first; pages are fetched as needed."""

        async def fetch(token: str) -> bundle_pb2.ListShadowDecisionsResponse:
            request = bundle_pb2.ListShadowDecisionsRequest(
                parent=bundle, differing=differing, page_size=page_size, page_token=token
            )
            return await self._transport.unary(self._stub.ListShadowDecisions, request)

        async for page in pages(fetch):
            for decision in page.shadow_decisions:
                yield decision

    async def replay(
        self,
        parent: str,
        old: bundle_pb2.BundleSource,
        new: bundle_pb2.BundleSource,
        *,
        limit: int = 0,
        start: datetime | None = None,
    ) -> bundle_pb2.BundleDiff:
        """What two bundles decide of a tenant's recorded traffic.

        Args:
            limit: turns at most, and decisions at most; 0 means 200.
            start: aware; only from then on.
        """
        request = bundle_pb2.ReplayBundleRequest(parent=parent, old=old, new=new, limit=limit, start_time=start)
        return await self._transport.unary(self._stub.ReplayBundle, request)
