"""`personae.v1.ReviewService`: appeals, the queue of reviews, and their outcome."""

from __future__ import annotations

import asyncio
from uuid import UUID

from personae.v1 import review_service_pb2 as pb
from personae.v1 import review_service_pb2_grpc
from personae_runtime.errors import InvalidArgument
from personae_runtime.ledger.reports import ReportLedger
from personae_runtime.ledger.reviews import Appeal, Review, ReviewLedger, review_place
from personae_runtime.ledger.vault import Vault
from personae_runtime.policy.draft import draft
from personae_serve.gateway.auth import CALLER
from personae_serve.gateway.convert import from_timestamp, timestamp
from personae_serve.gateway.servicers import Context, _Api, _own, _page_size


class ReviewServicer(review_service_pb2_grpc.ReviewServiceServicer):
    """`personae.v1.ReviewService`. A reviewer is the caller's key, or the subject of its token."""

    def __init__(self, reviews: ReviewLedger, reports: ReportLedger, vault: Vault) -> None:
        self._reviews = reviews
        self._reports = reports
        self._api = _Api(vault)

    async def AppealDecision(self, request: pb.AppealDecisionRequest, context: Context) -> pb.Appeal:
        name = _own("decision", request.decision, "decision")
        caller = CALLER.get()
        return _appeal(
            await self._reviews.appeal(
                name.tenant,
                UUID(name.decision),
                user=caller.user or "",
                # A user's key can't review: only what a service filed may meet its own key again.
                filed_by=caller.key_id,
                statement=request.statement,
                judged_text=request.judged_text,
                share_message=request.share_message,
                allow_test=request.allow_test,
                mutation=self._api.mutation("AppealDecision", request),
            )
        )

    async def GetAppeal(self, request: pb.GetAppealRequest, context: Context) -> pb.Appeal:
        name = _own("appeal", request.name)
        user = CALLER.get().user or ""
        return _appeal(await self._reviews.get_appeal(name.tenant, UUID(name.appeal), user=user))

    async def LeaseReview(self, request: pb.LeaseReviewRequest, context: Context) -> pb.LeaseReviewResponse:
        tenant = _own("tenant", request.parent, "parent").tenant
        wanted = None
        if request.review:
            named = _own("review", request.review, "review")
            wanted = UUID(named.review)
        found = await self._reviews.lease(tenant, CALLER.get().key_id, wanted)
        return pb.LeaseReviewResponse(review=None if found is None else _review(found))

    async def ResolveReview(self, request: pb.ResolveReviewRequest, context: Context) -> pb.Review:
        name = _own("review", request.name)
        if not request.note.strip():
            raise InvalidArgument("note is blank", violations=(("note", "words for the person"),))
        mutation = self._api.mutation("ResolveReview", request)
        return _review(
            await self._reviews.resolve(
                name.tenant,
                UUID(name.review),
                reviewer=CALLER.get().key_id,
                outcome=pb.ReviewOutcome.Name(request.outcome).removeprefix("REVIEW_OUTCOME_"),
                reason_code=request.reason_code,
                note=request.note,
                mutation=mutation,
            )
        )

    async def ListReviews(self, request: pb.ListReviewsRequest, context: Context) -> pb.ListReviewsResponse:
        tenant = _own("tenant", request.parent, "parent").tenant
        size = _page_size(request.page_size)
        state = pb.ReviewState.Name(request.state).removeprefix("REVIEW_STATE_") if request.state else ""
        bound = f"{request.parent}?state={state}&overdue={request.overdue}&order=escalated"
        place = self._api.page_place(request.page_token, "ListReviews", bound)
        rows = await self._reviews.list_reviews(
            tenant,
            state=state,
            overdue=request.overdue,
            after=(place[0], place[1], place[2], UUID(place[3])) if place else None,
            limit=size + 1,
        )

        def place_of(row: Review) -> list[object]:
            *order, review_id = review_place(row)
            return [*order, str(review_id)]

        rows, token = self._api.page(rows, size, "ListReviews", bound, place_of)
        open_count, overdue_count = await self._reviews.counts(tenant)
        return pb.ListReviewsResponse(
            reviews=[_review(row) for row in rows],
            next_page_token=token,
            open_count=open_count,
            overdue_count=overdue_count,
        )

    async def GetBundleDraft(self, request: pb.GetBundleDraftRequest, context: Context) -> pb.BundleDraft:
        tenant = _own("tenant", request.parent, "parent").tenant
        # Composing YAML of a thousand texts takes its time.
        made = await asyncio.to_thread(draft, await self._reviews.overturned(tenant))
        return pb.BundleDraft(yaml=made.yaml, test_count=made.tests, withheld_count=made.withheld)

    async def NextSampledDecision(
        self, request: pb.NextSampledDecisionRequest, context: Context
    ) -> pb.NextSampledDecisionResponse:
        tenant = _own("tenant", request.parent, "parent").tenant
        drawn = await self._reports.next_sampled(
            tenant,
            from_timestamp(request.start_time, "start_time"),
            from_timestamp(request.end_time, "end_time"),
            CALLER.get().key_id,
        )
        return pb.NextSampledDecisionResponse(
            decision="" if drawn.decision_id is None else f"tenants/{tenant}/decisions/{drawn.decision_id}",
            remaining_count=drawn.remaining,
            message=drawn.message,
        )

    async def JudgeSampledDecision(
        self, request: pb.JudgeSampledDecisionRequest, context: Context
    ) -> pb.SampleJudgment:
        name = _own("decision", request.decision, "decision")
        made = await self._reports.judge(
            name.tenant,
            UUID(name.decision),
            CALLER.get().key_id,
            pb.SampleVerdict.Name(request.verdict).removeprefix("SAMPLE_VERDICT_"),
            request.reason_code,
        )
        return pb.SampleJudgment(
            decision=request.decision,
            verdict=f"SAMPLE_VERDICT_{made.verdict}",
            reason_code=made.reason_code,
            create_time=timestamp(made.created_at),
        )


def _outcome(value: str) -> str:
    return f"REVIEW_OUTCOME_{value or 'UNSPECIFIED'}"


def _appeal(row: Appeal) -> pb.Appeal:
    return pb.Appeal(
        name=f"tenants/{row.tenant}/appeals/{row.appeal_id}",
        decision=f"tenants/{row.tenant}/decisions/{row.decision_id}",
        statement=row.statement,
        state=f"REVIEW_STATE_{row.state}",
        outcome=_outcome(row.outcome),
        reason_code=row.reason_code,
        reasons=row.reasons,
        create_time=timestamp(row.created_at),
        due_time=timestamp(row.due_at),
        resolve_time=timestamp(row.resolved_at),
    )


def _review(row: Review) -> pb.Review:
    return pb.Review(
        name=f"tenants/{row.tenant}/reviews/{row.review_id}",
        decision=f"tenants/{row.tenant}/decisions/{row.decision_id}",
        appeal="" if row.appeal_id is None else f"tenants/{row.tenant}/appeals/{row.appeal_id}",
        state=f"REVIEW_STATE_{row.state}",
        priority=row.priority.value,
        severity=row.priority.severity,
        reach=row.priority.reach,
        uncertainty=row.priority.uncertainty,
        create_time=timestamp(row.created_at),
        due_time=timestamp(row.due_at),
        overdue=row.overdue,
        reviewer=row.reviewer,
        lease_expire_time=timestamp(row.lease_expires_at),
        outcome=_outcome(row.outcome),
        reason_code=row.reason_code,
        resolve_time=timestamp(row.resolved_at),
        escalated=row.escalated,
        statement=row.statement,
        judged_text=row.judged_text,
        verdicts=[
            pb.Verdict(
                reviewer=one.reviewer,
                outcome=_outcome(one.outcome),
                reason_code=one.reason_code,
                create_time=timestamp(one.created_at),
            )
            for one in row.verdicts
        ],
    )
