"""The five services: names in, ledgers and runtime between, messages out."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

import grpc
import orjson
from google.longrunning import operations_pb2
from google.protobuf import empty_pb2

from personae.v1 import (
    corpus_service_pb2,
    corpus_service_pb2_grpc,
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
from personae_runtime.abuse.guard import Origin
from personae_runtime.engines.registry import Engines
from personae_runtime.errors import (
    FailedPrecondition,
    GatewayOverloaded,
    InvalidArgument,
    NotFound,
    OwnedElsewhere,
    PermissionDenied,
    ResourceExhausted,
)
from personae_runtime.ledger.control import ConsentLedger
from personae_runtime.ledger.decisions import DecisionFilter, DecisionLedger
from personae_runtime.ledger.documents import DocumentLedger, DocumentRow
from personae_runtime.ledger.erasure import Eraser, ErasureLedger
from personae_runtime.ledger.export import ExportLedger, to_line
from personae_runtime.ledger.memories import MemoryLedger
from personae_runtime.ledger.personas import Mutation, PersonaLedger, PersonaRow, once
from personae_runtime.ledger.profiles import EMPTY, ProfileLedger
from personae_runtime.ledger.protocols import ProtocolLedger
from personae_runtime.ledger.reviews import ReviewLedger
from personae_runtime.ledger.sessions import SessionLedger, SessionRow
from personae_runtime.ledger.switches import SwitchKind, SwitchLedger
from personae_runtime.ledger.vault import Scope, ScopeErased, Vault
from personae_runtime.memory.facts import Draw, Statement, is_persons
from personae_runtime.memory.index import PointKind
from personae_runtime.memory.indexer import Indexing
from personae_runtime.memory.passages import Corpus, split
from personae_runtime.memory.recall import RECALL_FILTERS, LeftOutReason, Recalls
from personae_runtime.memory.store import MemoryRecord, MemorySource
from personae_runtime.names import Name
from personae_runtime.policy import claims
from personae_runtime.policy.bundle import SIGNALS
from personae_runtime.policy.decision import Action, AgeBand, DecisionRecord, PolicyContext, Stage
from personae_runtime.policy.rollout import Policies
from personae_runtime.sessions.service import Seen, SessionService
from personae_runtime.sessions.views import SLOW_CONSUMER
from personae_runtime.telemetry.setup import Telemetry
from personae_serve import proofs
from personae_serve.gateway import convert
from personae_serve.gateway.auth import CALLER, VERIFY_CLAIMS
from personae_serve.gateway.load import StreamLoad
from personae_serve.gateway.peers import Peers, is_forwarded

DEFAULT_PAGE, MAX_PAGE = 50, 200
_SEARCH_DEADLINE_S = 1.0
_SEARCH_FACTS = 3
_EXPORT_READER_S = 60.0
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


def _hashed(vault: Vault, kind: str, tenant: str, value: str) -> str:
    """What stands for somebody's owner, device or network within a tenant; empty for nothing."""
    return vault.pseudonym(kind, tenant, value) if value else ""


def _network(value: str) -> str:
    """An address as what its holder can't change at will: of IPv6 the /64 (RFC 6177 gives a site at least one)."""
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return value
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.IPv6Network((address.packed, 64), strict=False))
    return str(address)


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


def rules_of(persona: PersonaRow) -> PolicyContext:
    """What rules may ask about where no session is: of a persona, and the revision that a session would have."""
    return PolicyContext(
        persona.type, tenant=persona.tenant, persona=persona.persona, revision=persona.active_revision or 0
    )


class PersonaServicer(persona_service_pb2_grpc.PersonaServiceServicer):
    """`personae.v1.PersonaService`.

    Args:
        most_a_day: personas that one owner may create; 0 is any number.
    """

    def __init__(self, personas: PersonaLedger, engines: Engines, vault: Vault, most_a_day: int) -> None:
        self._personas = personas
        self._vault = vault
        self._most_a_day = most_a_day
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
            owner=_hashed(self._vault, "owner", tenant, request.persona.owner),
            most_a_day=self._most_a_day,
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
        if definition.verified_claims:
            claims.check(
                definition.verified_claims, (await self._personas.get(name)).type, "definition.verified_claims"
            )
        caller = CALLER.get()
        row = await self._personas.publish(
            name,
            definition,
            self._api.mutation("PublishRevision", request),
            verifier=caller.key_id if caller.may(VERIFY_CLAIMS) else None,
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
            revisions=[convert.revision(row, evidence=CALLER.get().user is None) for row in rows],
            next_page_token=token,
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
        policy: Policies,
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
        self._vault = vault
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
        disclosure = self._policy.of(parent.tenant).disclosure(
            PolicyContext(persona.type, AgeBand(age_band), request.session.region_code, parent.tenant),
            persona.display_name,
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
            origin=Origin(
                device=_hashed(self._vault, "device", name.tenant, request.client.device),
                network=_hashed(self._vault, "network", name.tenant, _network(request.client.network)),
            ),
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


_MEMORY_KINDS = {
    memory_service_pb2.MEMORY_KIND_EPISODE: PointKind.EPISODE,
    memory_service_pb2.MEMORY_KIND_FACT: PointKind.FACT,
}


_MUTABLE = {
    "text": "text",
    "speaker": "speaker",
    "occur_time": "occurred_at",
    "expire_time": "expires_at",
    "pinned": "pinned",
    "restricted": "restricted",
}
"""Fields of a Memory that UpdateMemory may change, and what the ledger calls them."""


def _changes(source: memory_service_pb2.Memory, paths: list[str]) -> dict[str, Any]:
    """What an update changes (https://google.aip.dev/134): without a mask, the mutable fields that are set."""
    unknown = [path for path in paths if path not in _MUTABLE and path != "*"]
    if unknown:
        raise InvalidArgument(
            f"not a field that can be updated: {', '.join(unknown)}",
            violations=tuple((f"update_mask: {path}", f"one of {', '.join(_MUTABLE)}") for path in unknown),
        )
    if "*" in paths:
        paths = list(_MUTABLE)
    elif not paths:
        paths = [field.name for field, _ in source.ListFields() if field.name in _MUTABLE]
    changes: dict[str, Any] = {}
    for path in dict.fromkeys(paths):
        value = getattr(source, path)
        if path == "occur_time":
            if not source.HasField(path):
                raise InvalidArgument("memory.occur_time can't be unset", violations=(("memory.occur_time", "a time"),))
            value = _occurred(source)
        elif path == "expire_time":
            value = _expiry(source)
        changes[_MUTABLE[path]] = value
    return changes


_EARLIEST = datetime(1900, 1, 1, tzinfo=UTC)
_FAST_CLOCK = timedelta(days=1)


def _occurred(source: memory_service_pb2.Memory) -> datetime:
    """When a memory was said: in somebody's life, and by a clock that is a day fast at most."""
    occurred_at = convert.from_timestamp(source.occur_time, "memory.occur_time")
    if not _EARLIEST <= occurred_at <= datetime.now(UTC) + _FAST_CLOCK:
        raise InvalidArgument(
            "memory.occur_time is before 1900 or in the future",
            violations=(("memory.occur_time", "a time from 1900 on that is not to come"),),
        )
    return occurred_at


def _expiry(source: memory_service_pb2.Memory) -> datetime | None:
    """When a memory expires: never, or at a time to come."""
    if not source.HasField("expire_time"):
        return None
    expires_at = convert.from_timestamp(source.expire_time, "memory.expire_time")
    if expires_at <= datetime.now(UTC):
        raise InvalidArgument(
            "memory.expire_time is in the past", violations=(("memory.expire_time", "a time to come"),)
        )
    return expires_at


class MemoryServicer(memory_service_pb2_grpc.MemoryServiceServicer):
    """`personae.v1.MemoryService`."""

    def __init__(
        self,
        memories: MemoryLedger,
        personas: PersonaLedger,
        consents: ConsentLedger,
        recall: Recalls | None,
        indexer: Indexing | None,
        policy: Policies,
        vault: Vault,
        draw: Draw,
        profiles: ProfileLedger,
        engines: Engines,
        erasures: ErasureLedger,
        eraser: Eraser,
        exports: ExportLedger,
    ) -> None:
        self._draw = draw
        self._profiles = profiles
        self._engines = engines
        self._exports = exports
        self._erasures = erasures
        self._eraser = eraser
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
        kind = _MEMORY_KINDS.get(request.kind)
        rows = await self._memories.list_memories(scope, before=before, limit=size + 1, kind=kind)
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
            raise _memory_disabled()
        size = request.page_size or 10
        # What is found without consent is let go unseen.
        may_remember, result = await asyncio.gather(
            self._consents.may_remember(parent),
            self._recall.recall(
                self._scope(parent),
                request.query,
                limit=size,
                dense_deadline_s=_SEARCH_DEADLINE_S,
                fact_limit=min(size, _SEARCH_FACTS),
            ),
        )
        if not may_remember:
            # As a turn's recall would.
            return memory_service_pb2.SearchMemoriesResponse(lexical_only=True, low_confidence=True)
        # As before the model, facts come before words.
        above = max((item.score for item in result.items), default=0.0)
        found = [(item.record, above + item.score) for item in result.facts]
        found += [(item.record, item.score) for item in result.items]
        return memory_service_pb2.SearchMemoriesResponse(
            results=[
                memory_service_pb2.SearchMemoriesResponse.Result(memory=convert.memory(parent, record), score=score)
                for record, score in found[:size]
            ],
            lexical_only=result.lexical_only,
            confidence=result.confidence,
            low_confidence=result.low_confidence,
        )

    async def Explain(
        self, request: memory_service_pb2.MemoryServiceExplainRequest, context: Context
    ) -> memory_service_pb2.MemoryServiceExplainResponse:
        parent = _own("user", request.parent, "parent")
        if self._recall is None:
            raise _memory_disabled()
        persona = await self._personas.get(Name(parent.tenant, parent.persona))
        if not await self._consents.may_remember(parent):
            return memory_service_pb2.MemoryServiceExplainResponse(filters=["consent to be remembered: withdrawn"])
        result = await self._recall.recall(
            self._scope(parent),
            request.query,
            limit=request.page_size or 10,
            dense_deadline_s=_SEARCH_DEADLINE_S,
            fact_limit=_SEARCH_FACTS,
        )
        rules = rules_of(persona)
        candidates, rank = [], 0
        for item in (*result.facts, *result.items):
            # As a turn's gate would.
            decision = self._policy.of(parent.tenant).check_memory(item.text, rules)
            rank += not decision.action.stops
            candidates.append(
                memory_service_pb2.MemoryServiceExplainResponse.Candidate(
                    memory=convert.memory(parent, item.record),
                    lexical=convert.arm(item.lexical),
                    dense=convert.arm(item.dense),
                    features={} if item.parts is None else item.parts._asdict(),
                    score=item.score,
                    final_rank=0 if decision.action.stops else rank,
                    filtered_reason=decision.reason_code if decision.action.stops else "",
                )
            )
        # An id of another scope is nobody's to see here.
        for left_out in (one for one in result.left_out if one.reason is not LeftOutReason.OTHER_SCOPE):
            candidates.append(
                memory_service_pb2.MemoryServiceExplainResponse.Candidate(
                    memory=memory_service_pb2.Memory(name=convert.memory_name(parent, left_out.memory_id)),
                    lexical=convert.arm(left_out.lexical),
                    dense=convert.arm(left_out.dense),
                    filtered_reason=left_out.reason.value.upper(),
                )
            )
        return memory_service_pb2.MemoryServiceExplainResponse(
            candidates=candidates, filters=RECALL_FILTERS, lexical_only=result.lexical_only
        )

    async def GetProfile(
        self, request: memory_service_pb2.GetProfileRequest, context: Context
    ) -> memory_service_pb2.Profile:
        name = _own("profile", request.name)
        if not await self._consents.may_remember(name):
            # No prompt holds it now.
            return memory_service_pb2.Profile(name=request.name)
        count = self._engines.default.count_tokens
        try:
            card = await self._profiles.current(self._scope(name), count)
        except ScopeErased:
            # Nothing is known of them, as of somebody who never came.
            card = EMPTY
        facts = await self._memories.read(card.fact_ids) if card.fact_ids else {}
        return convert.profile(name, card, facts.values())

    async def CreateMemory(
        self, request: memory_service_pb2.CreateMemoryRequest, context: Context
    ) -> memory_service_pb2.Memory:
        parent = _own("user", request.parent, "parent")
        if self._indexer is None:
            raise _memory_disabled()
        persona, may_remember = await asyncio.gather(
            self._personas.get(Name(parent.tenant, parent.persona)), self._consents.may_remember(parent)
        )
        if not may_remember:
            raise FailedPrecondition(
                "the person withdrew their consent to be remembered; see ConsentService",
                reason="MEMORY_CONSENT_WITHDRAWN",
                violations=((parent.user_name(), "consent to be remembered was withdrawn"),),
            )
        source = request.memory
        context_of_persona = rules_of(persona)
        await self._require_memorable(source.text, context_of_persona)
        now = datetime.now(UTC)
        expires_at = _expiry(source)
        record = MemoryRecord(
            memory_id=uuid4(),
            scope=self._scope(parent),
            text=source.text,
            speaker=source.speaker,
            occurred_at=_occurred(source) if source.HasField("occur_time") else now,
            thread=source.thread,
            ordinal=source.ordinal,
            source=MemorySource.API,
            created_at=now,
            expires_at=expires_at,
            external_id=source.external_id,
        )
        # Of a conversation with the persona, its own lines are memories too, but state nothing of the person.
        statements = self._draw(record, context_of_persona) if is_persons(record, parent.user) else ()
        stored = await self._memories.create(
            record, parent.tenant, self._api.mutation("CreateMemory", request), statements
        )
        self._indexer.notify()
        return convert.memory(parent, stored)

    async def _require_memorable(self, text: str, context: PolicyContext) -> None:
        """Raise unless words may be kept."""
        if not text:
            raise InvalidArgument("memory.text is required", violations=(("memory.text", "1 to 8000 characters"),))
        # With scores: at recall there is time for matchers only.
        decision = await self._policy.of(context.tenant).decide(Stage.MEMORY, text, context)
        if decision.action.stops:
            raise FailedPrecondition(
                f"policy does not let this be remembered: {decision.reason_code}",
                reason="MEMORY_REFUSED_BY_POLICY",
                metadata={"reason_code": decision.reason_code, "category": decision.category},
            )

    async def GetMemory(
        self, request: memory_service_pb2.GetMemoryRequest, context: Context
    ) -> memory_service_pb2.Memory:
        name = _own("memory", request.name)
        return convert.memory(name, await self._memories.get(self._scope(name), UUID(name.memory)))

    async def UpdateMemory(
        self, request: memory_service_pb2.UpdateMemoryRequest, context: Context
    ) -> memory_service_pb2.Memory:
        source = request.memory
        name = _own("memory", source.name, "memory.name")
        changes = _changes(source, list(request.update_mask.paths))
        persona = await self._personas.get(Name(name.tenant, name.persona))
        context_of_persona = rules_of(persona)
        if "text" in changes:
            await self._require_memorable(source.text, context_of_persona)
        may_remember = await self._consents.may_remember(name)

        def states(record: MemoryRecord) -> Sequence[Statement]:
            return self._draw(record, context_of_persona) if may_remember and is_persons(record, name.user) else ()

        row = await self._memories.update(
            self._scope(name),
            UUID(name.memory),
            changes,
            version=source.etag,
            tenant=name.tenant,
            mutation=self._api.mutation("UpdateMemory", request),
            states=states,
        )
        if self._indexer is not None:
            self._indexer.notify()
        return convert.memory(name, row)

    async def ExportMemories(  # type: ignore[override]  # streams by context.write
        self, request: memory_service_pb2.ExportMemoriesRequest, context: Context
    ) -> None:
        parent = _own("user", request.parent, "parent")
        counts: Counter[str] = Counter()
        digest = hashlib.sha256()
        async with aclosing(self._exports.read(parent)) as items:
            async for item in items:
                line = to_line(item)
                counts[item["type"]] += 1
                digest.update(line.encode() + b"\n")
                # Waits for the reader: what is not taken is not read from the ledger either.
                try:
                    async with asyncio.timeout(_EXPORT_READER_S):
                        await context.write(memory_service_pb2.ExportMemoriesResponse(json_line=line))
                except TimeoutError:
                    raise ResourceExhausted(
                        f"the export was not read for {_EXPORT_READER_S:g} s", reason="SLOW_CONSUMER"
                    ) from None
        record = memory_service_pb2.ExportRecord(counts=counts, sha256=digest.digest())
        record.create_time.FromDatetime(datetime.now(UTC))
        proofs.sign(record, self._vault)
        await context.write(memory_service_pb2.ExportMemoriesResponse(record=record))

    async def EraseMemories(
        self, request: memory_service_pb2.EraseMemoriesRequest, context: Context
    ) -> operations_pb2.Operation:
        # Imported here: operations are built from the classes of this module.
        from personae_serve.gateway.operations import operation

        parent = _own("user", request.parent, "parent")
        memory_ids = []
        for at, value in enumerate(request.memories):
            name = _own("memory", value, f"memories[{at}]")
            if name.user_name() != parent.user_name():
                raise InvalidArgument(
                    "a memory is another user's",
                    violations=((f"memories[{at}]", f"expected {parent.user_name()}/memories/..."),),
                )
            memory_ids.append(UUID(name.memory))
        erasure = await self._erasures.start(
            Scope(parent.tenant, parent.persona, parent.user),
            memory_ids,
            request.reason,
            self._api.mutation("EraseMemories", request),
        )
        self._eraser.notify()
        return operation(erasure)

    async def ForgetMemory(self, request: memory_service_pb2.ForgetMemoryRequest, context: Context) -> empty_pb2.Empty:
        name = _own("memory", request.name)
        if await self._memories.forget(self._scope(name), UUID(name.memory)) and self._indexer is not None:
            self._indexer.notify()
        return empty_pb2.Empty()


class CorpusServicer(corpus_service_pb2_grpc.CorpusServiceServicer):
    """`personae.v1.CorpusService`."""

    def __init__(
        self,
        documents: DocumentLedger,
        personas: PersonaLedger,
        corpus: Corpus | None,
        indexing: Indexing | None,
        policy: Policies,
        vault: Vault,
    ) -> None:
        self._documents = documents
        self._personas = personas
        self._corpus = corpus
        self._indexing = indexing
        self._policy = policy
        self._vault = vault
        self._api = _Api(vault)

    async def CreateDocument(
        self, request: corpus_service_pb2.CreateDocumentRequest, context: Context
    ) -> corpus_service_pb2.Document:
        parent = _own("persona", request.parent, "parent")
        if self._indexing is None:
            raise _memory_disabled()
        persona = await self._personas.get(parent)
        source, now = request.document, datetime.now(UTC)
        if not source.text.strip():
            raise InvalidArgument("document.text is blank", violations=(("document.text", "some words"),))
        # Piece by piece, as it would be put before a model.
        # Long texts take their time, and the library lets other threads run.
        pieces = await asyncio.to_thread(split, source.text)
        policy, context_of_persona = self._policy.of(parent.tenant), rules_of(persona)
        for piece in pieces:
            decision = await policy.decide(Stage.MEMORY, piece.text, context_of_persona)
            if not decision.action.stops:
                decision = policy.judge(Stage.CONTENT, piece.text, context_of_persona, decision.scores)
            if decision.action.stops:
                place = f"characters {piece.begin} to {piece.end}"
                raise FailedPrecondition(
                    f"policy does not let this be cited: {decision.reason_code}, {place}",
                    reason="DOCUMENT_REFUSED_BY_POLICY",
                    metadata={"reason_code": decision.reason_code, "category": decision.category},
                    violations=(("document.text", f"{place}: {decision.reason_code}"),),
                )
        row = DocumentRow(
            document_id=uuid4(),
            name=parent,
            title=source.title,
            text=source.text,
            uri=source.uri,
            external_id=source.external_id,
            language_code=source.language_code,
            digital_source_type=source.digital_source_type,
            published_at=convert.from_timestamp(source.publish_time, "document.publish_time")
            if source.HasField("publish_time")
            else now,
            created_at=now,
        )
        mutation = self._api.mutation("CreateDocument", request)
        stored = await self._documents.create(row, pieces, self._scope(parent), mutation)
        self._indexing.notify()
        return convert.document(stored)

    async def GetDocument(
        self, request: corpus_service_pb2.GetDocumentRequest, context: Context
    ) -> corpus_service_pb2.Document:
        name = _own("document", request.name)
        return convert.document(await self._documents.get(name, UUID(name.document), with_text=True))

    async def ListDocuments(
        self, request: corpus_service_pb2.ListDocumentsRequest, context: Context
    ) -> corpus_service_pb2.ListDocumentsResponse:
        parent = _own("persona", request.parent, "parent")
        await self._personas.get(parent)
        size = _page_size(request.page_size)
        place = self._api.page_place(request.page_token, "ListDocuments", request.parent)
        before = (datetime.fromisoformat(place[0]), UUID(place[1])) if place else None
        rows = await self._documents.list_documents(parent, before=before, limit=size + 1)
        rows, token = self._api.page(
            rows, size, "ListDocuments", request.parent, lambda row: [row.created_at.isoformat(), str(row.document_id)]
        )
        return corpus_service_pb2.ListDocumentsResponse(
            documents=[convert.document(row) for row in rows], next_page_token=token
        )

    async def DeleteDocument(
        self, request: corpus_service_pb2.DeleteDocumentRequest, context: Context
    ) -> empty_pb2.Empty:
        name = _own("document", request.name)
        if await self._documents.delete(name, UUID(name.document)) and self._indexing is not None:
            self._indexing.notify()
        return empty_pb2.Empty()

    async def SearchPassages(
        self, request: corpus_service_pb2.SearchPassagesRequest, context: Context
    ) -> corpus_service_pb2.SearchPassagesResponse:
        parent = _own("persona", request.parent, "parent")
        if self._corpus is None:
            raise _memory_disabled()
        await self._personas.get(parent)
        found = await self._corpus.search(
            self._scope(parent), request.query, limit=request.page_size or 10, dense_deadline_s=_SEARCH_DEADLINE_S
        )
        return corpus_service_pb2.SearchPassagesResponse(
            results=[
                corpus_service_pb2.SearchPassagesResponse.Result(
                    passage=convert.passage(parent, item.passage), score=item.score
                )
                for item in found.items
            ],
            unanswered=found.unanswered,
            lexical_only=found.lexical_only,
        )

    def _scope(self, persona: Name) -> str:
        return self._vault.scope_key(Scope(persona.tenant, persona.persona))


def _memory_disabled() -> FailedPrecondition:
    return FailedPrecondition("memory is turned off on this host (memory.enabled)", reason="MEMORY_DISABLED")


class PolicyServicer(policy_service_pb2_grpc.PolicyServiceServicer):
    """`personae.v1.PolicyService`.

    Args:
        switches: kill switches.
        redress: what statements of reasons say a person can do about a decision.
    """

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
    ) -> None:
        self._policy = policy
        self._personas = personas
        self._switches = switches
        self._decisions = decisions
        self._protocols = protocols
        self._reviews = reviews
        self._redress = redress
        self._api = _Api(vault)

    async def Classify(
        self, request: policy_service_pb2.ClassifyRequest, context: Context
    ) -> policy_service_pb2.ClassifyResponse:
        tenant = _own("tenant", request.parent, "parent").tenant
        stage = Stage(event_pb2.PolicyStage.Name(request.stage).removeprefix("POLICY_STAGE_").lower())
        place = Name(tenant)
        if request.persona:
            place = _own("revision" if "/revisions/" in request.persona else "persona", request.persona, "persona")
        rules = PolicyContext(
            convert.persona_type_to_text(request.persona_type) or "assistant",
            AgeBand(convert.age_band_to_text(request.age_band)),
            request.region_code,
            tenant=tenant,
            persona=place.persona,
            revision=place.revision,
        )
        policy = self._policy.of(tenant)
        if stage is not Stage.SIGNAL:
            if request.signals or not request.text:
                field = "signals" if request.signals else "text"
                raise InvalidArgument(
                    f"stage {stage.value} judges a text", violations=((field, "1 to 20000 characters of text"),)
                )
            if stage is Stage.OUTPUT and place.persona:
                rules = await self._as_spoken_by(place, rules)
            return convert.classification(await policy.decide(stage, request.text, rules))
        if request.text:
            raise InvalidArgument("stage signal judges numbers, no text", violations=(("text", "empty"),))
        if unknown := set(request.signals) - SIGNALS.keys():
            raise InvalidArgument(
                f"no rule knows the signals {sorted(unknown)}", violations=(("signals", f"some of {sorted(SIGNALS)}"),)
            )
        return convert.classification(policy.judge_signals(dict(request.signals), rules))

    async def _as_spoken_by(self, place: Name, rules: PolicyContext) -> PolicyContext:
        """With what is verified now of a revision, or of the active one; as it is if that does not exist."""
        try:
            number = place.revision or (await self._personas.get(place)).active_revision or 0
            revision = await self._personas.revision(place, number)
        except NotFound:
            return rules
        held = claims.holding(revision.definition.verified_claims, rules.persona_type, datetime.now(UTC))
        return replace(rules, revision=number, claims=held)

    async def GetDecision(
        self, request: policy_service_pb2.GetDecisionRequest, context: Context
    ) -> policy_service_pb2.Decision:
        return convert.decision(await self._decision(request.name))

    async def Explain(
        self, request: policy_service_pb2.PolicyServiceExplainRequest, context: Context
    ) -> policy_service_pb2.PolicyServiceExplainResponse:
        record = await self._decision(request.name)
        return convert.explanation(record, self._redress, self._reviews.appealable_until(record))

    async def CountCrisisReferrals(
        self, request: policy_service_pb2.CountCrisisReferralsRequest, context: Context
    ) -> policy_service_pb2.CountCrisisReferralsResponse:
        tenant = _own("tenant", request.parent, "parent").tenant
        begin, end = _day(request.start_date, "start_date"), _day(request.end_date, "end_date")
        if not timedelta(0) < end - begin <= _COUNTED_DAYS:
            raise InvalidArgument(
                "end_date is not after start_date, or too far",
                violations=(("end_date", f"1 to {_COUNTED_DAYS.days} days after start_date"),),
            )
        found = await self._protocols.referrals(tenant, begin, end)
        return policy_service_pb2.CountCrisisReferralsResponse(
            counts=[
                policy_service_pb2.CountCrisisReferralsResponse.Count(
                    date=one.day.isoformat(),
                    region_code=one.region_code,
                    tier=one.tier,
                    referrals=one.times,
                    people=one.people,
                )
                for one in found
            ],
            referrals=sum(one.times for one in found),
        )

    async def _decision(self, value: str) -> DecisionRecord:
        name = _own("decision", value)
        return await self._decisions.get(name.tenant, UUID(name.decision), user=CALLER.get().user or "")

    async def ListDecisions(
        self, request: policy_service_pb2.ListDecisionsRequest, context: Context
    ) -> policy_service_pb2.ListDecisionsResponse:
        parent = _own("tenant", request.parent, "parent")
        wanted = _decision_filter(request)
        size = _page_size(request.page_size)
        filters = policy_service_pb2.ListDecisionsRequest()
        filters.CopyFrom(request)
        filters.ClearField("page_size")
        filters.ClearField("page_token")
        bound = f"{filters.SerializeToString(deterministic=True).hex()}?user={wanted.user}"
        place = self._api.page_place(request.page_token, "ListDecisions", bound)
        before = (datetime.fromisoformat(place[0]), UUID(place[1])) if place else None
        rows = await self._decisions.list_decisions(parent.tenant, wanted, before=before, limit=size + 1)
        rows, token = self._api.page(
            rows, size, "ListDecisions", bound, lambda row: [row.created_at.isoformat(), str(row.decision_id)]
        )
        return policy_service_pb2.ListDecisionsResponse(
            decisions=[convert.decision(row) for row in rows], next_page_token=token
        )

    async def CreateKillSwitch(
        self, request: policy_service_pb2.CreateKillSwitchRequest, context: Context
    ) -> policy_service_pb2.KillSwitch:
        tenant = _own("tenant", request.parent, "parent").tenant
        given = request.kill_switch
        kind, target = SwitchKind.TENANT, ""
        if given.HasField("persona"):
            persona = _own("persona", given.persona, "kill_switch.persona")
            kind, target = SwitchKind.PERSONA, persona.persona
        elif given.HasField("rule_id"):
            kind, target = SwitchKind.RULE, given.rule_id
            self._require_switchable(tenant, target)
        return convert.kill_switch(
            await self._switches.throw(
                tenant,
                kind,
                target,
                reason=given.reason,
                by=CALLER.get().key_id,
                mutation=self._api.mutation("CreateKillSwitch", request),
            )
        )

    def _require_switchable(self, tenant: str, rule_id: str) -> None:
        bundle = self._policy.of(tenant).bundle
        if rule_id in bundle.switchable:
            return
        if rule_id not in {rule.spec.id for rule in bundle.rules}:
            raise NotFound(f"bundle {bundle.version} has no rule {rule_id!r}")
        raise FailedPrecondition(
            f"rule {rule_id!r} is part of a protocol, rests on a law, shields minors or escalates, and can't be"
            " switched off",
            reason="RULE_PROTECTED",
            violations=(("kill_switch.rule_id", "a rule that is not protected"),),
        )

    async def GetKillSwitch(
        self, request: policy_service_pb2.GetKillSwitchRequest, context: Context
    ) -> policy_service_pb2.KillSwitch:
        name = _own("kill_switch", request.name)
        return convert.kill_switch(await self._switches.get(name.tenant, UUID(name.kill_switch)))

    async def ListKillSwitches(
        self, request: policy_service_pb2.ListKillSwitchesRequest, context: Context
    ) -> policy_service_pb2.ListKillSwitchesResponse:
        parent = _own("tenant", request.parent, "parent")
        size = _page_size(request.page_size)
        bound = f"{request.parent}?lifted={request.show_lifted}"
        place = self._api.page_place(request.page_token, "ListKillSwitches", bound)
        rows = await self._switches.list_switches(
            parent.tenant,
            lifted=request.show_lifted,
            before=(datetime.fromisoformat(place[0]), UUID(place[1])) if place else None,
            limit=size + 1,
        )
        rows, token = self._api.page(
            rows, size, "ListKillSwitches", bound, lambda row: [row.created_at.isoformat(), str(row.switch_id)]
        )
        return policy_service_pb2.ListKillSwitchesResponse(
            kill_switches=[convert.kill_switch(row) for row in rows], next_page_token=token
        )

    async def LiftKillSwitch(
        self, request: policy_service_pb2.LiftKillSwitchRequest, context: Context
    ) -> policy_service_pb2.KillSwitch:
        name = _own("kill_switch", request.name)
        return convert.kill_switch(
            await self._switches.lift(
                name.tenant,
                UUID(name.kill_switch),
                reason=request.reason,
                by=CALLER.get().key_id,
                mutation=self._api.mutation("LiftKillSwitch", request),
            )
        )


_COUNTED_DAYS = timedelta(days=3660)


def _day(value: str, field: str) -> date:
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise InvalidArgument(f"{field} is not a day", violations=((field, "such as 2026-01-31"),)) from None


def _decision_filter(request: policy_service_pb2.ListDecisionsRequest) -> DecisionFilter:
    """What a listing asks for, of the caller's own sessions if it is a user."""
    persona = _own("persona", request.persona, "persona").persona if request.persona else ""
    session = ""
    if request.session:
        named = _own("session", request.session, "session")
        if persona and persona != named.persona:
            raise InvalidArgument(
                "session is a session of another persona",
                violations=(("session", f"expected {request.persona}/sessions/..."),),
            )
        persona, session = named.persona, named.session
    stage = event_pb2.PolicyStage.Name(request.stage).removeprefix("POLICY_STAGE_").lower()
    action = event_pb2.PolicyAction.Name(request.action).removeprefix("POLICY_ACTION_").lower()
    return DecisionFilter(
        persona=persona,
        session=session,
        user=CALLER.get().user or "",
        stage=Stage(stage) if request.stage else None,
        action=Action(action) if request.action else None,
        category=request.category,
        begin=convert.from_timestamp(request.start_time, "start_time") if request.HasField("start_time") else None,
        end=convert.from_timestamp(request.end_time, "end_time") if request.HasField("end_time") else None,
    )


class ConsentServicer(policy_service_pb2_grpc.ConsentServiceServicer):
    """`personae.v1.ConsentService`."""

    def __init__(self, consents: ConsentLedger, vault: Vault) -> None:
        self._consents = consents
        self._vault = vault
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
            scope=self._vault.scope_key(Scope(subject.tenant, subject.persona, subject.user)) if subject.user else None,
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
