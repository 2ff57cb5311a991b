"""Appeals against decisions, and the people who decide on them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime

from personae.v1 import review_service_pb2 as pb
from personae.v1.review_service_pb2_grpc import ReviewServiceStub
from personae_client.transport import Transport, new_request_id, pages


class Reviews:
    """ReviewService. Every method raises PersonaeError."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = ReviewServiceStub(transport.channel)

    async def appeal(
        self,
        decision: str,
        statement: str = "",
        *,
        judged_text: str = "",
        share_message: bool = False,
        allow_test: bool = False,
        request_id: str | None = None,
    ) -> pb.Appeal:
        """Ask for a person to look at a decision again.

        Args:
            statement: why it is wrong.
            judged_text: the text that was judged, if reviewers are to read it.
            share_message: lets reviewers read the person's own message, if the decision was about that.
            allow_test: lets that text become a test of the rules, if the decision is overturned.
        """
        request = pb.AppealDecisionRequest(
            decision=decision,
            statement=statement,
            judged_text=judged_text,
            share_message=share_message,
            allow_test=allow_test,
            request_id=request_id or new_request_id(),
        )
        return await self._transport.unary(self._stub.AppealDecision, request)

    async def get_appeal(self, name: str) -> pb.Appeal:
        """An appeal, and its outcome once there is one."""
        return await self._transport.unary(self._stub.GetAppeal, pb.GetAppealRequest(name=name))

    async def lease(self, parent: str, *, review: str = "") -> pb.Review | None:
        """Take the next review of a tenant, or a named one; None when there is none for this caller."""
        request = pb.LeaseReviewRequest(parent=parent, review=review)
        response = await self._transport.unary(self._stub.LeaseReview, request)
        return response.review if response.HasField("review") else None

    async def resolve(
        self, name: str, outcome: pb.ReviewOutcome, *, reason_code: str, note: str, request_id: str | None = None
    ) -> pb.Review:
        """Decide a review that this caller holds.

        Args:
            reason_code: such as QUOTED_SPEECH.
            note: for the person who appealed.
        """
        request = pb.ResolveReviewRequest(
            name=name, outcome=outcome, reason_code=reason_code, note=note, request_id=request_id or new_request_id()
        )
        return await self._transport.unary(self._stub.ResolveReview, request)

    async def bundle_draft(self, parent: str) -> pb.BundleDraft:
        """What a tenant's overturned decisions ask of the next bundle."""
        return await self._transport.unary(self._stub.GetBundleDraft, pb.GetBundleDraftRequest(parent=parent))

    async def next_sampled(self, parent: str, start: datetime, end: datetime) -> pb.NextSampledDecisionResponse:
        """The next decision of a transparency report's sample that nobody has judged.

        Args:
            start, end: aware times, as of the report.
        """
        request = pb.NextSampledDecisionRequest(parent=parent, start_time=start, end_time=end)
        return await self._transport.unary(self._stub.NextSampledDecision, request)

    async def judge_sampled(self, decision: str, verdict: pb.SampleVerdict, reason_code: str) -> pb.SampleJudgment:
        """Say whether a drawn decision was right."""
        request = pb.JudgeSampledDecisionRequest(decision=decision, verdict=verdict, reason_code=reason_code)
        return await self._transport.unary(self._stub.JudgeSampledDecision, request)

    async def list(
        self,
        parent: str,
        *,
        state: pb.ReviewState = pb.REVIEW_STATE_UNSPECIFIED,
        overdue: bool = False,
        page_size: int = 0,
    ) -> AsyncIterator[pb.Review]:
        """A tenant's reviews in the order of the queue, resolved ones last; pages are fetched as needed."""

        async def fetch(token: str) -> pb.ListReviewsResponse:
            request = pb.ListReviewsRequest(
                parent=parent, state=state, overdue=overdue, page_size=page_size, page_token=token
            )
            return await self._transport.unary(self._stub.ListReviews, request)

        async for page in pages(fetch):
            for review in page.reviews:
                yield review
