"""The five services: names in, ledgers and runtime between, messages out."""

from __future__ import annotations

import base64
import binascii
import hmac
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID, uuid4

import grpc
import orjson
from google.protobuf import empty_pb2

from personae.v1 import (
    event_pb2,
    memory_service_pb2,
    memory_service_pb2_grpc,
    persona_service_pb2,
    persona_service_pb2_grpc,
    policy_service_pb2,
    policy_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
)
from personae_runtime import names
from personae_runtime.engines.registry import Engines
from personae_runtime.errors import (
    FailedPrecondition,
    GatewayOverloaded,
    InvalidArgument,
    OwnedElsewhere,
    PermissionDenied,
    ResourceExhausted,
)
from personae_runtime.ledger.control import ConsentLedger
from personae_runtime.ledger.memories import MemoryLedger
from personae_runtime.ledger.personas import Mutation, PersonaLedger, once
from personae_runtime.ledger.sessions import SessionLedger, SessionRow
from personae_runtime.ledger.vault import Scope, Vault
from personae_runtime.memory.indexer import Indexing
from personae_runtime.memory.recall import Recalls
from personae_runtime.memory.store import MemoryRecord, MemorySource
from personae_runtime.names import Name
from personae_runtime.policy.decision import AgeBand, PolicyContext, Stage
from personae_runtime.policy.policy import Policy
from personae_runtime.sessions.service import Seen, SessionService
from personae_runtime.sessions.views import SLOW_CONSUMER
from personae_runtime.telemetry.setup import Telemetry
from personae_serve.gateway import convert
from personae_serve.gateway.auth import CALLER
from personae_serve.gateway.load import StreamLoad
from personae_serve.gateway.peers import Peers, is_forwarded

DEFAULT_PAGE, MAX_PAGE = 50, 200
_SEARCH_DEADLINE_S = 1.0
_METHOD = f"/{session_service_pb2.DESCRIPTOR.services_by_name['SessionService'].full_name}/"

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")


def _own(kind: str, value: str, field: str = "name") -> Name:
    """Parse a name and check that it is the caller's to use."""
    name = names.parse(kind, value, field=field)
    caller = CALLER.get()
    caller.require_tenant(name)
    if name.user:
        caller.require_user(name.user)
    return name


def _page_size(asked: int) -> int:
    return min(asked or DEFAULT_PAGE, MAX_PAGE)


class _Api:
    """What the servicers share: mutations and pages."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def mutation(self, method: str, request: Any) -> Mutation:
        body = type(request)()
        body.CopyFrom(request)
        body.ClearField("request_id")
        digest = body.SerializeToString(deterministic=True).hex()
        # A user's request ids are the user's own.
        caller = CALLER.get()
        return Mutation(method, request.request_id, self._vault.body_mac(method, caller.user or "", digest))

    def page_token(self, place: list[Any], method: str, parent: str) -> str:
        """An opaque place in a listing, bound to the listing."""
        data = orjson.dumps(place)
        mac = self._vault.body_mac("page", method, parent, data.decode())[:12]
        return base64.urlsafe_b64encode(mac + data).decode()

    def page_place(self, token: str, method: str, parent: str) -> list[Any] | None:
        """The place a token stands for; None for the first page."""
        if not token:
            return None
        try:
            raw = base64.urlsafe_b64decode(token.encode())
            data = raw[12:]
            expected = self._vault.body_mac("page", method, parent, data.decode())[:12]
        except (binascii.Error, UnicodeError, ValueError):
            raw, expected = b"", b"-"
        if not hmac.compare_digest(raw[:12], expected):
            raise InvalidArgument(
                "page_token is not one that this listing gave",
                reason="PAGE_TOKEN_INVALID",
                violations=(("page_token", "pass next_page_token of the page before, with the same parent"),),
            )
        place: list[Any] = orjson.loads(data)
        return place

    def page(
        self, rows: list[T], size: int, method: str, parent: str, place: Callable[[T], list[Any]]
    ) -> tuple[list[T], str]:
        """The page and the token of the next, from one row more than a page."""
        if len(rows) <= size:
            return rows, ""
        return rows[:size], self.page_token(place(rows[size - 1]), method, parent)


class PersonaServicer(persona_service_pb2_grpc.PersonaServiceServicer):
    """`personae.v1.PersonaService`."""

    def __init__(self, personas: PersonaLedger, engines: Engines, vault: Vault) -> None:
        self._personas = personas
        self._engines = engines
        self._api = _Api(vault)

    async def CreatePersona(
        self, request: persona_service_pb2.CreatePersonaRequest, context: Context
    ) -> persona_service_pb2.Persona:
        tenant = _own("tenant", request.parent, "parent").tenant
        kind = convert.persona_type_to_text(request.persona.type)
        if not kind:
            raise InvalidArgument(
                "persona.type is required", violations=(("persona.type", "one of the PersonaType values"),)
            )
        row = await self._personas.create(
            Name(tenant, request.persona_id),
            request.persona.display_name,
            kind,
            self._api.mutation("CreatePersona", request),
        )
        return convert.persona(row)

    async def GetPersona(
        self, request: persona_service_pb2.GetPersonaRequest, context: Context
    ) -> persona_service_pb2.Persona:
        return convert.persona(await self._personas.get(_own("persona", request.name)))

    async def ListPersonas(
        self, request: persona_service_pb2.ListPersonasRequest, context: Context
    ) -> persona_service_pb2.ListPersonasResponse:
        tenant = _own("tenant", request.parent, "parent").tenant
        size = _page_size(request.page_size)
        place = self._api.page_place(request.page_token, "ListPersonas", request.parent)
        rows = await self._personas.list_personas(
            tenant, after=place[0] if place else "", limit=size + 1, show_deleted=request.show_deleted
        )
        rows, token = self._api.page(rows, size, "ListPersonas", request.parent, lambda row: [row.persona])
        return persona_service_pb2.ListPersonasResponse(
            personas=[convert.persona(row) for row in rows], next_page_token=token
        )

    async def UpdatePersona(
        self, request: persona_service_pb2.UpdatePersonaRequest, context: Context
    ) -> persona_service_pb2.Persona:
        name = _own("persona", request.persona.name, "persona.name")
        unknown = [path for path in request.update_mask.paths if path not in ("display_name", "*")]
        if unknown:
            raise InvalidArgument(
                f"only display_name can be updated, not {', '.join(unknown)}; who a persona is changes by"
                " PublishRevision",
                violations=(("update_mask", "only 'display_name'"),),
            )
        row = await self._personas.rename(
            name, request.persona.display_name, request.persona.etag, self._api.mutation("UpdatePersona", request)
        )
        return convert.persona(row)

    async def DeletePersona(
        self, request: persona_service_pb2.DeletePersonaRequest, context: Context
    ) -> persona_service_pb2.Persona:
        name = _own("persona", request.name)
        return convert.persona(
            await self._personas.delete(name, request.etag, self._api.mutation("DeletePersona", request))
        )

    async def UndeletePersona(
        self, request: persona_service_pb2.UndeletePersonaRequest, context: Context
    ) -> persona_service_pb2.Persona:
        name = _own("persona", request.name)
        return convert.persona(
            await self._personas.undelete(name, request.etag, self._api.mutation("UndeletePersona", request))
        )

    async def PublishRevision(
        self, request: persona_service_pb2.PublishRevisionRequest, context: Context
    ) -> persona_service_pb2.Revision:
        name = _own("persona", request.parent, "parent")
        definition = convert.definition_from_proto(request.definition)
        # A revision that no turn could run is not published.
        self._engines.get(definition.model, definition.adapter)
        row = await self._personas.publish(
            name,
            definition,
            self._api.mutation("PublishRevision", request),
        )
        return convert.revision(row)

    async def ListRevisions(
        self, request: persona_service_pb2.ListRevisionsRequest, context: Context
    ) -> persona_service_pb2.ListRevisionsResponse:
        name = _own("persona", request.parent, "parent")
        await self._personas.get(name)
        size = _page_size(request.page_size)
        place = self._api.page_place(request.page_token, "ListRevisions", request.parent)
        rows = await self._personas.revisions(name, before=place[0] if place else 2**31 - 1, limit=size + 1)
        rows, token = self._api.page(rows, size, "ListRevisions", request.parent, lambda row: [row.revision])
        return persona_service_pb2.ListRevisionsResponse(
            revisions=[convert.revision(row) for row in rows], next_page_token=token
        )

    async def WithdrawRevision(
        self, request: persona_service_pb2.WithdrawRevisionRequest, context: Context
    ) -> persona_service_pb2.Revision:
        name = _own("revision", request.name)
        row = await self._personas.withdraw(name, request.reason, self._api.mutation("WithdrawRevision", request))
        return convert.revision(row)


class SessionServicer(session_service_pb2_grpc.SessionServiceServicer):
    """`personae.v1.SessionService`.

    Args:
        peers: where calls go whose turn another gateway runs.
    """

    def __init__(
        self,
        service: SessionService,
        sessions: SessionLedger,
        personas: PersonaLedger,
        policy: Policy,
        vault: Vault,
        telemetry: Telemetry,
        load: StreamLoad,
        peers: Peers,
    ) -> None:
        self._service = service
        self._load = load
        self._peers = peers
        self._telemetry = telemetry
        self._sessions = sessions
        self._personas = personas
        self._policy = policy
        self._api = _Api(vault)

    async def _session(self, name: Name) -> SessionRow:
        row = await self._sessions.get(name)
        CALLER.get().require_user(row.user)
        return row

    async def CreateSession(
        self, request: session_service_pb2.CreateSessionRequest, context: Context
    ) -> session_service_pb2.Session:
        self._require_room(context)
        parent = _own("persona", request.parent, "parent")
        user = _own("user", request.session.user, "session.user")
        if user.persona_name() != parent.persona_name():
            raise InvalidArgument(
                "session.user is a user of another persona",
                violations=(("session.user", f"expected {parent.persona_name()}/users/..."),),
            )
        persona = await self._personas.get(parent)
        age_band = convert.age_band_to_text(request.session.age_band)
        disclosure = self._policy.disclosure(
            PolicyContext(persona.type, AgeBand(age_band), request.session.region_code), persona.display_name
        )
        row = await self._sessions.create(
            parent,
            request.session_id or uuid4().hex,
            user.user,
            age_band=age_band,
            region_code=request.session.region_code,
            disclosure=disclosure,
            mutation=self._api.mutation("CreateSession", request),
        )
        return convert.session(row)

    async def GetSession(
        self, request: session_service_pb2.GetSessionRequest, context: Context
    ) -> session_service_pb2.Session:
        return convert.session(await self._session(_own("session", request.name)))

    async def ListSessions(
        self, request: session_service_pb2.ListSessionsRequest, context: Context
    ) -> session_service_pb2.ListSessionsResponse:
        parent = _own("persona", request.parent, "parent")
        user = CALLER.get().user or ""
        if request.user:
            named = _own("user", request.user, "user")
            if named.persona_name() != parent.persona_name():
                raise InvalidArgument(
                    "user is a user of another persona",
                    violations=(("user", f"expected {parent.persona_name()}/users/..."),),
                )
            user = named.user
        size = _page_size(request.page_size)
        bound = f"{request.parent}?user={user}"
        place = self._api.page_place(request.page_token, "ListSessions", bound)
        rows = await self._sessions.list_sessions(
            parent, user=user, before=place[0] if place else 2**62, limit=size + 1
        )
        rows, token = self._api.page(rows, size, "ListSessions", bound, lambda row: [row.session_pk])
        return session_service_pb2.ListSessionsResponse(
            sessions=[convert.session(row) for row in rows], next_page_token=token
        )

    async def CloseSession(
        self, request: session_service_pb2.CloseSessionRequest, context: Context
    ) -> session_service_pb2.Session:
        row = await self._session(_own("session", request.name))
        try:
            return convert.session(await self._service.close(row))
        except OwnedElsewhere as elsewhere:
            return await self._forward("CloseSession", request, context, elsewhere)  # type: ignore[return-value]

    async def ListTurns(
        self, request: session_service_pb2.ListTurnsRequest, context: Context
    ) -> session_service_pb2.ListTurnsResponse:
        session = await self._session(_own("session", request.parent, "parent"))
        size = _page_size(request.page_size)
        place = self._api.page_place(request.page_token, "ListTurns", request.parent)
        rows = await self._sessions.turns(session, after=place[0] if place else 0, limit=size + 1)
        rows, token = self._api.page(rows, size, "ListTurns", request.parent, lambda row: [row.turn_no])
        return session_service_pb2.ListTurnsResponse(
            turns=[convert.turn(session, row) for row in rows], next_page_token=token
        )

    async def Converse(  # type: ignore[override]  # streams by context.write, which is faster than yield
        self, request: session_service_pb2.ConverseRequest, context: Context
    ) -> None:
        begun = time.monotonic()
        name = _own("session", request.session, "session")
        self._require_room(context)
        session = await self._session(name)
        seens = self._service.converse(
            session,
            request.turn_id,
            request.text,
            received=begun,
            expiry=CALLER.get().expiry(),
            forwarded=is_forwarded(context),
        )
        await self._stream(context, begun, session, seens, "Converse", request)

    async def Attach(  # type: ignore[override]
        self, request: session_service_pb2.AttachRequest, context: Context
    ) -> None:
        begun = time.monotonic()
        if not request.turn_id and not request.after_event_id:
            # One that continues a stream is let in: without a view a turn would be given up.
            self._require_room(context)
        session = await self._session(_own("session", request.session, "session"))
        if request.after_event_id:
            self._telemetry.stream_resumes.add(1)
        seens = self._service.attach(
            session,
            request.after_event_id,
            request.turn_id,
            expiry=CALLER.get().expiry(),
            forwarded=is_forwarded(context),
        )
        await self._stream(context, begun, session, seens, "Attach", request)

    def _require_room(self, context: Context) -> None:
        """Refuse new work while the gateway is overloaded, before anything that costs."""
        # A forwarded call was accepted elsewhere, and its turn runs here already.
        if self._load.overloaded() and not is_forwarded(context):
            raise GatewayOverloaded(self._load.accept_wait_s())

    async def _stream(
        self,
        context: Context,
        begun: float,
        session: SessionRow,
        seens: AsyncGenerator[Seen, None],
        method: str,
        request: session_service_pb2.ConverseRequest | session_service_pb2.AttachRequest,
    ) -> None:
        """Write what is seen; what another gateway shows of it, from there."""
        telemetry, first, last = self._telemetry, True, 0
        telemetry.views.add(1)
        telemetry.active_views.add(1)
        self._load.open_streams += 1
        try:
            async with aclosing(seens):
                async for seen in seens:
                    if first:
                        first = False
                        self._admitted(begun)
                    last = seen.event.event_id or last
                    await context.write(convert.event(session, seen))
        except OwnedElsewhere as elsewhere:
            peers = self._may_forward(context, elsewhere)
            if last:
                # Shown in part already, from the ledger.
                method = "Attach"
                request = session_service_pb2.AttachRequest(
                    session=request.session, turn_id=request.turn_id, after_event_id=last
                )
            relayed = peers.stream(elsewhere.endpoint, _METHOD + method, request.SerializeToString(), context)
            async with aclosing(relayed):
                async for message in relayed:
                    if first:
                        first = False
                        self._admitted(begun)
                    await context.write(message)
        except ResourceExhausted as error:
            if error.reason == SLOW_CONSUMER:
                telemetry.dropped_views.add(1)
            raise
        finally:
            telemetry.active_views.add(-1)
            self._load.open_streams -= 1

    def _admitted(self, begun: float) -> None:
        waited = time.monotonic() - begun
        self._telemetry.time_to_first_event.record(waited)
        self._load.admitted(waited)

    async def CancelTurn(
        self, request: session_service_pb2.CancelTurnRequest, context: Context
    ) -> session_service_pb2.Turn:
        name = _own("turn", request.name)
        session = await self._session(name)
        try:
            return convert.turn(session, await self._service.cancel(session, name.turn))
        except OwnedElsewhere as elsewhere:
            return await self._forward("CancelTurn", request, context, elsewhere)  # type: ignore[return-value]

    async def _forward(self, method: str, request: Any, context: Context, elsewhere: OwnedElsewhere) -> bytes:
        """Another gateway's response, serialized."""
        peers = self._may_forward(context, elsewhere)
        return await peers.unary(elsewhere.endpoint, _METHOD + method, request.SerializeToString(), context)

    def _may_forward(self, context: Context, elsewhere: OwnedElsewhere) -> Peers:
        if not elsewhere.endpoint or is_forwarded(context):
            raise elsewhere
        return self._peers


class MemoryServicer(memory_service_pb2_grpc.MemoryServiceServicer):
    """`personae.v1.MemoryService`."""

    def __init__(
        self,
        memories: MemoryLedger,
        personas: PersonaLedger,
        consents: ConsentLedger,
        recall: Recalls | None,
        indexer: Indexing | None,
        policy: Policy,
        vault: Vault,
    ) -> None:
        self._memories = memories
        self._personas = personas
        self._consents = consents
        self._recall = recall
        self._indexer = indexer
        self._policy = policy
        self._vault = vault
        self._api = _Api(vault)

    def _scope(self, name: Name) -> str:
        return self._vault.scope_key(Scope(name.tenant, name.persona, name.user))

    async def ListMemories(
        self, request: memory_service_pb2.ListMemoriesRequest, context: Context
    ) -> memory_service_pb2.ListMemoriesResponse:
        parent = _own("user", request.parent, "parent")
        scope = self._scope(parent)
        size = _page_size(request.page_size)
        place = self._api.page_place(request.page_token, "ListMemories", request.parent)
        before = (datetime.fromisoformat(place[0]), UUID(place[1])) if place else None
        rows = await self._memories.list_memories(scope, before=before, limit=size + 1)
        rows, token = self._api.page(
            rows,
            size,
            "ListMemories",
            request.parent,
            lambda row: [row.created_at.isoformat(), str(row.memory_id)],
        )
        pending = await self._memories.pending(scope, self._indexer.name) if self._indexer is not None else 0
        return memory_service_pb2.ListMemoriesResponse(
            memories=[convert.memory(parent, row) for row in rows],
            next_page_token=token,
            pending_index_count=pending,
        )

    async def SearchMemories(
        self, request: memory_service_pb2.SearchMemoriesRequest, context: Context
    ) -> memory_service_pb2.SearchMemoriesResponse:
        parent = _own("user", request.parent, "parent")
        if self._recall is None:
            raise FailedPrecondition("memory is turned off on this host (memory.enabled)", reason="MEMORY_DISABLED")
        if not await self._consents.may_remember(parent):
            # As a turn's recall would.
            return memory_service_pb2.SearchMemoriesResponse(lexical_only=True)
        result = await self._recall.recall(
            self._scope(parent),
            request.query,
            limit=request.page_size or 10,
            dense_deadline_s=_SEARCH_DEADLINE_S,
        )
        return memory_service_pb2.SearchMemoriesResponse(
            results=[
                memory_service_pb2.SearchMemoriesResponse.Result(
                    memory=convert.memory(parent, item.record), score=item.score
                )
                for item in result.items
            ],
            lexical_only=result.lexical_only,
        )

    async def CreateMemory(
        self, request: memory_service_pb2.CreateMemoryRequest, context: Context
    ) -> memory_service_pb2.Memory:
        parent = _own("user", request.parent, "parent")
        if self._indexer is None:
            raise FailedPrecondition("memory is turned off on this host (memory.enabled)", reason="MEMORY_DISABLED")
        persona = await self._personas.get(Name(parent.tenant, parent.persona))
        if not await self._consents.may_remember(parent):
            raise FailedPrecondition(
                "the person withdrew their consent to be remembered; see ConsentService",
                reason="MEMORY_CONSENT_WITHDRAWN",
                violations=((parent.user_name(), "consent to be remembered was withdrawn"),),
            )
        source = request.memory
        # With scores: at recall there is time for matchers only.
        decision = await self._policy.decide(Stage.MEMORY, source.text, PolicyContext(persona.type))
        if decision.action.stops:
            raise FailedPrecondition(
                f"policy does not let this be remembered: {decision.reason_code}",
                reason="MEMORY_REFUSED_BY_POLICY",
                metadata={"reason_code": decision.reason_code, "category": decision.category},
            )
        now = datetime.now(UTC)
        expires_at = convert.from_timestamp(source.expire_time) if source.HasField("expire_time") else None
        if expires_at is not None and expires_at <= now:
            raise InvalidArgument(
                "memory.expire_time is in the past", violations=(("memory.expire_time", "a time to come"),)
            )
        record = MemoryRecord(
            memory_id=uuid4(),
            scope=self._scope(parent),
            text=source.text,
            speaker=source.speaker,
            occurred_at=convert.from_timestamp(source.occur_time) if source.HasField("occur_time") else now,
            thread=source.thread,
            ordinal=source.ordinal,
            source=MemorySource.API,
            created_at=now,
            expires_at=expires_at,
            external_id=source.external_id,
        )
        stored = await self._memories.create(record, parent.tenant, self._api.mutation("CreateMemory", request))
        self._indexer.notify()
        return convert.memory(parent, stored)

    async def ForgetMemory(self, request: memory_service_pb2.ForgetMemoryRequest, context: Context) -> empty_pb2.Empty:
        name = _own("memory", request.name)
        if await self._memories.forget(self._scope(name), UUID(name.memory)) and self._indexer is not None:
            self._indexer.notify()
        return empty_pb2.Empty()


class PolicyServicer(policy_service_pb2_grpc.PolicyServiceServicer):
    """`personae.v1.PolicyService`."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    async def Classify(
        self, request: policy_service_pb2.ClassifyRequest, context: Context
    ) -> policy_service_pb2.ClassifyResponse:
        _own("tenant", request.parent, "parent")
        stage = Stage(event_pb2.PolicyStage.Name(request.stage).removeprefix("POLICY_STAGE_").lower())
        rules = PolicyContext(
            convert.persona_type_to_text(request.persona_type) or "assistant",
            AgeBand(convert.age_band_to_text(request.age_band)),
            request.region_code,
        )
        return convert.classification(await self._policy.decide(stage, request.text, rules))


class ConsentServicer(policy_service_pb2_grpc.ConsentServiceServicer):
    """`personae.v1.ConsentService`."""

    def __init__(self, consents: ConsentLedger, vault: Vault) -> None:
        self._consents = consents
        self._api = _Api(vault)

    async def RecordConsent(
        self, request: policy_service_pb2.RecordConsentRequest, context: Context
    ) -> policy_service_pb2.ConsentEvent:
        given = request.consent_event
        if given.purpose == policy_service_pb2.CONSENT_PURPOSE_LIKENESS:
            subject = _own("persona", given.subject, "consent_event.subject")
            if CALLER.get().user is not None:
                raise PermissionDenied("a likeness consent is recorded by a service token", reason="USER_MISMATCH")
        else:
            subject = _own("user", given.subject, "consent_event.subject")
        mutation = self._api.mutation("RecordConsent", request)
        row = await self._consents.record(
            subject,
            policy_service_pb2.ConsentPurpose.Name(given.purpose).removeprefix("CONSENT_PURPOSE_"),
            policy_service_pb2.ConsentState.Name(given.state).removeprefix("CONSENT_STATE_"),
            given.evidence,
            lambda connection, act: once(connection, subject.tenant, mutation, act),
        )
        return convert.consent(row)

    async def ListConsentEvents(
        self, request: policy_service_pb2.ListConsentEventsRequest, context: Context
    ) -> policy_service_pb2.ListConsentEventsResponse:
        kind = "user" if "/users/" in request.parent else "persona"
        subject = _own(kind, request.parent, "parent")
        if kind == "persona" and CALLER.get().user is not None:
            raise PermissionDenied("a user token may name its own user only", reason="USER_MISMATCH")
        size = _page_size(request.page_size)
        place = self._api.page_place(request.page_token, "ListConsentEvents", request.parent)
        rows = await self._consents.list(subject, before=place[0] if place else 2**62, limit=size + 1)
        rows, token = self._api.page(rows, size, "ListConsentEvents", request.parent, lambda row: [row.consent_id])
        return policy_service_pb2.ListConsentEventsResponse(
            consent_events=[convert.consent(row) for row in rows], next_page_token=token
        )
