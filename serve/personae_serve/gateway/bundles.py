"""The part of `personae.v1.PolicyService` that is about bundles: publishing, rollout, dry runs."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

from personae.v1 import bundle_pb2 as pb
from personae_runtime.ledger.bundles import (
    BundleKeeper,
    BundleLedger,
    BundleRow,
    RolloutRow,
    ShadowRow,
    trial,
)
from personae_runtime.ledger.decisions import DecisionLedger
from personae_runtime.ledger.personas import PersonaLedger
from personae_runtime.ledger.protocols import ProtocolLedger
from personae_runtime.ledger.reviews import ReviewLedger
from personae_runtime.ledger.switches import SwitchLedger
from personae_runtime.ledger.vault import Vault
from personae_runtime.policy.bundle import shipped_bundle
from personae_runtime.policy.policy import Policy
from personae_runtime.policy.replay import Diff, compare
from personae_runtime.policy.rollout import Policies
from personae_serve.gateway import convert
from personae_serve.gateway.auth import CALLER
from personae_serve.gateway.servicers import Context, PolicyServicer, _own, _page_size

_REPLAYED = 200


class PolicyBundleServicer(PolicyServicer):
    """`personae.v1.PolicyService`, whole."""

    def __init__(
        self,
        policy: Policies,
        decisions: DecisionLedger,
        reviews: ReviewLedger,
        protocols: ProtocolLedger,
        switches: SwitchLedger,
        personas: PersonaLedger,
        vault: Vault,
        redress: str,
        bundles: BundleLedger,
        keeper: BundleKeeper,
    ) -> None:
        super().__init__(policy, decisions, reviews, protocols, switches, personas, vault, redress)
        self._bundles = bundles
        self._keeper = keeper
        # A dry run takes a while; one at a time leaves the rest to turns.
        self._replaying = asyncio.Lock()

    async def PublishBundle(self, request: pb.PublishBundleRequest, context: Context) -> pb.Bundle:
        tenant = _own("tenant", request.parent, "parent").tenant
        policy, key_id = await asyncio.to_thread(self._keeper.check, request.content, request.signature or None)
        row = await self._bundles.publish(
            tenant,
            request.content,
            request.signature or None,
            version=policy.version,
            key_id=key_id,
            by=CALLER.get().key_id,
            mutation=self._api.mutation("PublishBundle", request),
        )
        return _bundle(row)

    async def GetBundle(self, request: pb.GetBundleRequest, context: Context) -> pb.Bundle:
        name = _own("bundle", request.name)
        row = await self._bundles.get(name.tenant, name.bundle)
        found = _bundle(row)
        found.content = row.content
        return found

    async def ListBundles(self, request: pb.ListBundlesRequest, context: Context) -> pb.ListBundlesResponse:
        tenant = _own("tenant", request.parent, "parent").tenant
        size = _page_size(request.page_size)
        place = self._api.page_place(request.page_token, "ListBundles", request.parent)
        before = (datetime.fromisoformat(place[0]), str(place[1])) if place else None
        rows = await self._bundles.list_bundles(tenant, before=before, limit=size + 1)
        rows, token = self._api.page(
            rows, size, "ListBundles", request.parent, lambda row: [row.created_at.isoformat(), row.bundle]
        )
        return pb.ListBundlesResponse(bundles=[_bundle(row) for row in rows], next_page_token=token)

    async def GetRollout(self, request: pb.GetRolloutRequest, context: Context) -> pb.Rollout:
        tenant = _own("rollout", request.name).tenant
        return await self._rollout(await self._bundles.rollout(tenant))

    async def SetRollout(self, request: pb.SetRolloutRequest, context: Context) -> pb.Rollout:
        tenant = _own("rollout", request.name).tenant
        bundle = _own("bundle", request.bundle, "bundle").bundle if request.bundle else ""
        # What does not load is never in force, here or anywhere.
        await self._keeper.open(tenant, bundle)
        row = await self._bundles.set_rollout(
            tenant,
            bundle,
            pb.RolloutStage.Name(request.stage).removeprefix("ROLLOUT_STAGE_"),
            request.percent,
            etag=request.etag,
            by=CALLER.get().key_id,
            mutation=self._api.mutation("SetRollout", request),
        )
        return await self._followed(row)

    async def RollbackRollout(self, request: pb.RollbackRolloutRequest, context: Context) -> pb.Rollout:
        tenant = _own("rollout", request.name).tenant
        row = await self._bundles.rollback(
            tenant,
            etag=request.etag,
            by=CALLER.get().key_id,
            mutation=self._api.mutation("RollbackRollout", request),
        )
        return await self._followed(row)

    async def ListShadowDecisions(
        self, request: pb.ListShadowDecisionsRequest, context: Context
    ) -> pb.ListShadowDecisionsResponse:
        name = _own("bundle", request.parent, "parent")
        size = _page_size(request.page_size)
        bound = f"{request.parent}?differing={request.differing}"
        place = self._api.page_place(request.page_token, "ListShadowDecisions", bound)
        rows = await self._bundles.shadows(
            name.tenant,
            name.bundle,
            differing=request.differing,
            before=place[0] if place else 2**63 - 1,
            limit=size + 1,
        )
        rows, token = self._api.page(rows, size, "ListShadowDecisions", bound, lambda row: [row.shadow])
        return pb.ListShadowDecisionsResponse(
            shadow_decisions=[_shadow(name.tenant, row) for row in rows], next_page_token=token
        )

    async def ReplayBundle(self, request: pb.ReplayBundleRequest, context: Context) -> pb.BundleDiff:
        tenant = _own("tenant", request.parent, "parent").tenant
        since = convert.from_timestamp(request.start_time, "start_time") if request.HasField("start_time") else None
        async with self._replaying:
            old = await self._source(tenant, request.old, "old")
            new = await self._source(tenant, request.new, "new")
            known = [self._policy.own]
            if (now := self._policy.get(tenant)) is not None:
                known += [now.stable, *(() if now.candidate is None else (now.candidate[1],))]
            traffic = self._bundles.traffic(tenant, since=since, limit=request.limit or _REPLAYED)
            return bundle_diff(await compare(old, new, traffic, known))

    async def _source(self, tenant: str, source: pb.BundleSource, field: str) -> Policy:
        match source.WhichOneof("source"):
            case "name":
                return await self._keeper.open(tenant, _own("bundle", source.name, f"{field}.name").bundle)
            case "content":
                return await asyncio.to_thread(trial, source.content, self._policy.own)
            case "shipped":
                return await asyncio.to_thread(trial, shipped_bundle(), self._policy.own)
            case _:
                return self._policy.of(tenant)

    async def _followed(self, row: RolloutRow) -> pb.Rollout:
        # Whoever is answered finds it so on this host.
        await self._keeper.refresh()
        return await self._rollout(row)

    async def _rollout(self, row: RolloutRow) -> pb.Rollout:
        found = self._policy.get(row.tenant)
        stable = self._policy.own if found is None else found.stable
        candidate = None if found is None else found.candidate
        stage = "UNSPECIFIED" if not row.candidate else "PERCENTAGE" if row.percent else "SHADOW"
        total, differing = await self._bundles.shadow_counts(row.tenant, row.candidate) if row.candidate else (0, 0)
        missing = self._policy.problem(row.tenant)
        return pb.Rollout(
            name=f"tenants/{row.tenant}/rollout",
            stable=_name(row.tenant, row.stable),
            candidate=_name(row.tenant, row.candidate),
            stage=f"ROLLOUT_STAGE_{stage}",
            percent=row.percent,
            reversible=row.reversible,
            change_time=convert.timestamp(row.changed_at),
            etag=str(row.rollout),
            stable_version="" if missing else stable.version,
            candidate_version="" if candidate is None else candidate[1].version,
            problem=missing or self._keeper.problem(row.tenant),
            shadow_decisions=total,
            shadow_differing=differing,
        )


def _name(tenant: str, bundle: str) -> str:
    return f"tenants/{tenant}/bundles/{bundle}" if bundle else ""


def _bundle(row: BundleRow) -> pb.Bundle:
    return pb.Bundle(
        name=_name(row.tenant, row.bundle),
        version=row.version,
        key_id=row.key_id,
        create_time=convert.timestamp(row.created_at),
    )


def _stage(value: str) -> Any:
    return f"POLICY_STAGE_{value.upper()}"


def _action(value: str) -> Any:
    return f"POLICY_ACTION_{value.upper()}"


def _shadow(tenant: str, row: ShadowRow) -> pb.ShadowDecision:
    return pb.ShadowDecision(
        persona=f"tenants/{tenant}/personas/{row.persona}",
        stage=_stage(row.stage),
        live_version=row.live_version,
        live_action=_action(row.live_action),
        live_reason_code=row.live_reason_code,
        live_rule_ids=row.live_rules,
        action=_action(row.action),
        reason_code=row.reason_code,
        rule_ids=row.rules,
        differs=row.differs,
        create_time=convert.timestamp(row.created_at),
    )


def bundle_diff(diff: Diff) -> pb.BundleDiff:
    """How two bundles differ on some traffic."""
    return pb.BundleDiff(
        old_version=diff.old_version,
        new_version=diff.new_version,
        by_text=diff.by_text,
        by_signals=diff.by_signals,
        undetermined=dict(diff.undetermined),
        changed=diff.changed,
        changes=[
            pb.BundleDiff.Change(
                stage=_stage(one.stage.value),
                old_action=_action(one.old_action),
                old_rule_id=one.old_rule,
                new_action=_action(one.new_action),
                new_rule_id=one.new_rule,
                count=one.count,
                examples=one.examples,
            )
            for one in diff.changes
        ],
        rules=[
            pb.BundleDiff.RuleCount(rule_id=rule, old_count=old, new_count=new)
            for rule, (old, new) in diff.rules.items()
        ],
    )
