"""Personas and their revisions."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf.field_mask_pb2 import FieldMask

from personae.v1 import persona_service_pb2 as pb
from personae.v1.persona_service_pb2_grpc import PersonaServiceStub
from personae_client.transport import Transport, new_request_id, pages


class Personas:
    """PersonaService. Every method raises PersonaeError."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = PersonaServiceStub(transport.channel)

    async def create(
        self,
        parent: str,
        persona_id: str,
        *,
        display_name: str,
        type: pb.PersonaType,
        owner: str = "",
        request_id: str | None = None,
    ) -> pb.Persona:
        """Create a persona in `tenants/{tenant}`; it needs a revision before it can hold a session.

        Args:
            owner: whose it is, by an id of your own; limits count by it.
        """
        request = pb.CreatePersonaRequest(
            parent=parent,
            persona_id=persona_id,
            persona=pb.Persona(display_name=display_name, type=type, owner=owner),
            request_id=request_id or new_request_id(),
        )
        return await self._transport.unary(self._stub.CreatePersona, request)

    async def get(self, name: str) -> pb.Persona:
        """Get a persona by name."""
        return await self._transport.unary(self._stub.GetPersona, pb.GetPersonaRequest(name=name))

    async def list(self, parent: str, *, page_size: int = 0, show_deleted: bool = False) -> AsyncIterator[pb.Persona]:
        """The personas of a tenant, by name; pages are fetched as needed."""

        async def fetch(token: str) -> pb.ListPersonasResponse:
            request = pb.ListPersonasRequest(
                parent=parent, page_size=page_size, page_token=token, show_deleted=show_deleted
            )
            return await self._transport.unary(self._stub.ListPersonas, request)

        async for page in pages(fetch):
            for persona in page.personas:
                yield persona

    async def update(
        self,
        name: str,
        *,
        display_name: str,
        etag: str = "",
        request_id: str | None = None,
    ) -> pb.Persona:
        """Change the display name. With an etag, only if nobody else changed the persona since."""
        request = pb.UpdatePersonaRequest(
            persona=pb.Persona(name=name, display_name=display_name, etag=etag),
            update_mask=FieldMask(paths=["display_name"]),
            request_id=request_id or new_request_id(),
        )
        return await self._transport.unary(self._stub.UpdatePersona, request)

    async def delete(self, name: str, *, etag: str = "", request_id: str | None = None) -> pb.Persona:
        """Delete a persona softly: no new sessions or turns until `undelete`."""
        request = pb.DeletePersonaRequest(name=name, etag=etag, request_id=request_id or new_request_id())
        return await self._transport.unary(self._stub.DeletePersona, request)

    async def undelete(self, name: str, *, etag: str = "", request_id: str | None = None) -> pb.Persona:
        """Take a soft deletion back."""
        request = pb.UndeletePersonaRequest(name=name, etag=etag, request_id=request_id or new_request_id())
        return await self._transport.unary(self._stub.UndeletePersona, request)

    async def publish_revision(
        self, parent: str, definition: pb.PersonaDefinition, *, request_id: str | None = None
    ) -> pb.Revision:
        """Publish a definition as the persona's ACTIVE revision; open sessions keep theirs."""
        request = pb.PublishRevisionRequest(
            parent=parent, definition=definition, request_id=request_id or new_request_id()
        )
        return await self._transport.unary(self._stub.PublishRevision, request)

    async def list_revisions(self, parent: str, *, page_size: int = 0) -> AsyncIterator[pb.Revision]:
        """The revisions of a persona, newest first."""

        async def fetch(token: str) -> pb.ListRevisionsResponse:
            request = pb.ListRevisionsRequest(parent=parent, page_size=page_size, page_token=token)
            return await self._transport.unary(self._stub.ListRevisions, request)

        async for page in pages(fetch):
            for revision in page.revisions:
                yield revision

    async def withdraw_revision(self, name: str, reason: str, *, request_id: str | None = None) -> pb.Revision:
        """Withdraw a revision for good: its running turns stop and its next turn fails."""
        request = pb.WithdrawRevisionRequest(name=name, reason=reason, request_id=request_id or new_request_id())
        return await self._transport.unary(self._stub.WithdrawRevision, request)
