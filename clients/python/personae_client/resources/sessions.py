"""Sessions, their turns and their streams."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

from personae.v1 import policy_service_pb2
from personae.v1 import session_service_pb2 as pb
from personae.v1.session_service_pb2_grpc import SessionServiceStub
from personae_client.names import user_name
from personae_client.streams import EventStream, TurnStream
from personae_client.transport import Transport, new_request_id, pages


class Sessions:
    """SessionService. Every method, and every stream, raises PersonaeError."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = SessionServiceStub(transport.channel)

    async def create(
        self,
        parent: str,
        user: str,
        *,
        session_id: str = "",
        age_band: policy_service_pb2.AgeBand = policy_service_pb2.AGE_BAND_UNSPECIFIED,
        region_code: str = "",
        request_id: str | None = None,
    ) -> pb.Session:
        """Open a session of a user with a persona, which pins the persona's ACTIVE revision.

        Args:
            parent: name of the persona.
            user: id of the user, or the full name `{persona}/users/{user}`.
            session_id: chosen by the server if empty.
            age_band: unknown is treated as a teenager.
            region_code: CLDR code of the person's region, such as "PT".
        """
        request = pb.CreateSessionRequest(
            parent=parent,
            session=pb.Session(user=user_name(parent, user), age_band=age_band, region_code=region_code),
            session_id=session_id,
            request_id=request_id or new_request_id(),
        )
        return await self._transport.unary(self._stub.CreateSession, request)

    async def get(self, name: str) -> pb.Session:
        """Get a session by name."""
        return await self._transport.unary(self._stub.GetSession, pb.GetSessionRequest(name=name))

    async def list(self, parent: str, *, user: str = "", page_size: int = 0) -> AsyncIterator[pb.Session]:
        """The sessions of a persona, newest first; with `user`, of that user only."""

        async def fetch(token: str) -> pb.ListSessionsResponse:
            request = pb.ListSessionsRequest(
                parent=parent,
                page_size=page_size,
                page_token=token,
                user=user_name(parent, user) if user else "",
            )
            return await self._transport.unary(self._stub.ListSessions, request)

        async for page in pages(fetch):
            for session in page.sessions:
                yield session

    async def close(self, name: str) -> pb.Session:
        """Close a session: no new turns, and a running one is cancelled."""
        return await self._transport.unary(self._stub.CloseSession, pb.CloseSessionRequest(name=name))

    async def list_turns(self, parent: str, *, page_size: int = 0) -> AsyncIterator[pb.Turn]:
        """The turns of a session, oldest first, with the words that were delivered."""

        async def fetch(token: str) -> pb.ListTurnsResponse:
            request = pb.ListTurnsRequest(parent=parent, page_size=page_size, page_token=token)
            return await self._transport.unary(self._stub.ListTurns, request)

        async for page in pages(fetch):
            for turn in page.turns:
                yield turn

    def converse(
        self, session: str, text: str, *, turn_id: str | None = None, device: str = "", network: str = ""
    ) -> TurnStream:
        """Say something and stream the reply. The call begins when the stream is first read.

        Args:
            session: name of the session.
            text: what the person says.
            turn_id: names the turn for good; the same id and text replay the turn
                or join it. None makes one up.
            device, network: where the words come from: an id of the person's
                device, and their address. Limits count by hashes of them.
        """
        return TurnStream(self._transport, session, text, turn_id or uuid.uuid4().hex, device=device, network=network)

    def attach(self, session: str, *, after_event_id: int = 0, turn_id: str = "") -> EventStream:
        """Stream a session's events after one: those recorded, then those to come.

        Args:
            session: name of the session.
            after_event_id: 0 replays from the start.
            turn_id: only this turn's events, to its end; empty follows the session
                until it closes.
        """
        return EventStream(self._transport, session, after_event_id=after_event_id, turn_id=turn_id)

    async def cancel_turn(self, name: str) -> pb.Turn:
        """Stop a running turn by name. What was delivered stays; an ended turn is left alone."""
        return await self._transport.unary(self._stub.CancelTurn, pb.CancelTurnRequest(name=name))
