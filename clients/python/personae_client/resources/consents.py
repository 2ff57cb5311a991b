"""Consent of the people whose likeness or memories are held."""

from __future__ import annotations

from collections.abc import AsyncIterator

from personae.v1 import policy_service_pb2 as pb
from personae.v1.policy_service_pb2_grpc import ConsentServiceStub
from personae_client.transport import Transport, new_request_id, pages


class Consents:
    """ConsentService. Every method raises PersonaeError."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = ConsentServiceStub(transport.channel)

    async def record(
        self,
        subject: str,
        purpose: pb.ConsentPurpose,
        state: pb.ConsentState,
        *,
        evidence: str = "",
        request_id: str | None = None,
    ) -> pb.ConsentEvent:
        """Record that consent was granted or withdrawn; running turns feel a withdrawal.

        Args:
            subject: a persona for LIKENESS, `{persona}/users/{user}` for MEMORY.
            purpose: what the consent is for.
            state: granted or withdrawn.
            evidence: how the consent was given.
        """
        event = pb.ConsentEvent(subject=subject, purpose=purpose, state=state, evidence=evidence)
        request = pb.RecordConsentRequest(consent_event=event, request_id=request_id or new_request_id())
        return await self._transport.unary(self._stub.RecordConsent, request)

    async def list(self, subject: str, *, page_size: int = 0) -> AsyncIterator[pb.ConsentEvent]:
        """The consent events of a subject, newest first."""

        async def fetch(token: str) -> pb.ListConsentEventsResponse:
            request = pb.ListConsentEventsRequest(parent=subject, page_size=page_size, page_token=token)
            return await self._transport.unary(self._stub.ListConsentEvents, request)

        async for page in pages(fetch):
            for event in page.consent_events:
                yield event
