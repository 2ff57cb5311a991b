from __future__ import annotations

import hashlib
import inspect
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import empty_pb2
from google.protobuf.descriptor import MethodDescriptor

from personae.v1 import (
    audit_service_pb2,
    audit_service_pb2_grpc,
    content_service_pb2,
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
from personae_client import DeadlineExceededError, InternalError, PersonaeClient, UnimplementedError
from personae_client.resources.audit import Audit
from personae_client.resources.consents import Consents
from personae_client.resources.content import Content
from personae_client.resources.memories import Memories
from personae_client.resources.personas import Personas
from personae_client.resources.policy import Policy
from personae_client.resources.sessions import Sessions
from tests.unit.client.server import SESSION, serving

PERSONA = "tenants/acme/personas/nadia"
USER = f"{PERSONA}/users/ada"

FILES = (
    persona_service_pb2.DESCRIPTOR,
    session_service_pb2.DESCRIPTOR,
    memory_service_pb2.DESCRIPTOR,
    policy_service_pb2.DESCRIPTOR,
    audit_service_pb2.DESCRIPTOR,
    content_service_pb2.DESCRIPTOR,
)
METHODS = [method for file in FILES for service in file.services_by_name.values() for method in service.methods]
RESOURCES = {
    "PersonaService": Personas,
    "SessionService": Sessions,
    "MemoryService": Memories,
    "PolicyService": Policy,
    "ConsentService": Consents,
    "AuditService": Audit,
    "ContentService": Content,
}


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.full_name)
def test_every_rpc_is_offered(method: MethodDescriptor) -> None:
    source = inspect.getsource(inspect.getmodule(RESOURCES[method.containing_service.name]) or Sessions)
    streamed = {"Converse": "converse", "Attach": "attach"}
    offered = (f"_stub.{method.name},", f"_stub.{method.name}(")
    assert any(call in source for call in offered) or hasattr(Sessions, streamed.get(method.name, "?"))


class Recorder:
    """Answers every call with an empty response, or one page of two, and records the request."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def answering(self, servicer: type, **responses: Any) -> Any:
        recorder = self

        def handler(response: Any) -> Any:
            async def handle(self: Any, request: Any, context: Any) -> Any:
                recorder.requests.append(request)
                return response(request) if callable(response) else response

            return handle

        return type("Recording", (servicer,), {name: handler(response) for name, response in responses.items()})()


async def test_lists_fetch_every_page() -> None:
    def page(request: Any) -> persona_service_pb2.ListPersonasResponse:
        if not request.page_token:
            personas = [persona_service_pb2.Persona(name="a"), persona_service_pb2.Persona(name="b")]
            return persona_service_pb2.ListPersonasResponse(personas=personas, next_page_token="more")
        return persona_service_pb2.ListPersonasResponse(personas=[persona_service_pb2.Persona(name="c")])

    recorder = Recorder()
    servicer = recorder.answering(persona_service_pb2_grpc.PersonaServiceServicer, ListPersonas=page)
    async with serving(personas=servicer) as client:
        found = [p.name async for p in client.personas.list("tenants/acme", page_size=2, show_deleted=True)]
    assert found == ["a", "b", "c"]
    assert [r.page_token for r in recorder.requests] == ["", "more"]
    assert all(r.page_size == 2 and r.show_deleted for r in recorder.requests)


async def calls_of_personas(client: PersonaeClient) -> None:
    await client.personas.update(PERSONA, display_name="N", etag="e")
    await client.personas.delete(PERSONA, etag="e")
    await client.personas.undelete(PERSONA)
    await client.personas.publish_revision(PERSONA, persona_service_pb2.PersonaDefinition(card="You are N."))
    await client.personas.withdraw_revision(f"{PERSONA}/revisions/r1", "broken")
    assert [r.name async for r in client.personas.list_revisions(PERSONA)] == ["r1"]


async def test_persona_calls_send_what_they_are_given() -> None:
    recorder = Recorder()
    persona, revision = persona_service_pb2.Persona(), persona_service_pb2.Revision(name="r1")
    servicer = recorder.answering(
        persona_service_pb2_grpc.PersonaServiceServicer,
        UpdatePersona=persona,
        DeletePersona=persona,
        UndeletePersona=persona,
        PublishRevision=revision,
        WithdrawRevision=revision,
        ListRevisions=persona_service_pb2.ListRevisionsResponse(revisions=[revision]),
    )
    async with serving(personas=servicer) as client:
        await calls_of_personas(client)
    update, delete, undelete, publish, withdraw, revisions = recorder.requests
    assert update.persona == persona_service_pb2.Persona(name=PERSONA, display_name="N", etag="e")
    assert list(update.update_mask.paths) == ["display_name"]
    assert (delete.name, delete.etag) == (PERSONA, "e")
    assert undelete.name == PERSONA
    assert publish.definition.card == "You are N."
    assert withdraw.reason == "broken"
    assert revisions.parent == PERSONA
    assert all(r.request_id for r in (update, delete, undelete, publish, withdraw))


async def test_session_calls_send_what_they_are_given() -> None:
    recorder = Recorder()
    session = session_service_pb2.Session(name=SESSION)
    servicer = recorder.answering(
        session_service_pb2_grpc.SessionServiceServicer,
        CreateSession=session,
        GetSession=session,
        CloseSession=session,
        ListSessions=session_service_pb2.ListSessionsResponse(sessions=[session]),
        ListTurns=session_service_pb2.ListTurnsResponse(turns=[session_service_pb2.Turn(name="t")]),
        CancelTurn=session_service_pb2.Turn(name="t"),
    )
    async with serving(sessions=servicer) as client:
        adult = policy_service_pb2.AGE_BAND_ADULT
        await client.sessions.create(PERSONA, "ada", age_band=adult, region_code="PT", session_id="s1")
        await client.sessions.get(SESSION)
        await client.sessions.close(SESSION)
        assert [s.name async for s in client.sessions.list(PERSONA, user="ada")] == [SESSION]
        assert [t.name async for t in client.sessions.list_turns(SESSION)] == ["t"]
        await client.sessions.cancel_turn(f"{SESSION}/turns/t")
    create, get, close, sessions, turns, cancel = recorder.requests
    assert create.session == session_service_pb2.Session(user=USER, age_band=adult, region_code="PT")
    assert create.session_id == "s1"
    assert create.request_id
    assert get.name == close.name == turns.parent == SESSION
    assert (sessions.parent, sessions.user) == (PERSONA, USER)
    assert cancel.name == f"{SESSION}/turns/t"


async def test_memory_calls_send_what_they_are_given() -> None:
    recorder = Recorder()
    memory = memory_service_pb2.Memory(name="m", text="a red bike")
    servicer = recorder.answering(
        memory_service_pb2_grpc.MemoryServiceServicer,
        ListMemories=memory_service_pb2.ListMemoriesResponse(memories=[memory], pending_index_count=4),
        SearchMemories=memory_service_pb2.SearchMemoriesResponse(lexical_only=True),
        CreateMemory=memory,
        ForgetMemory=empty_pb2.Empty(),
    )
    async with serving(memories=servicer) as client:
        assert [m.name async for m in client.memories.list(USER)] == ["m"]
        assert await client.memories.pending_index_count(USER) == 4
        assert (await client.memories.search(USER, "bike", page_size=3)).lexical_only
        assert await client.memories.create(USER, memory, request_id="r") == memory
        await client.memories.forget("m")
    listed, _, search, create, forget = recorder.requests
    assert listed.parent == USER
    assert (search.parent, search.query, search.page_size) == (USER, "bike", 3)
    assert (create.parent, create.memory, create.request_id) == (USER, memory, "r")
    assert forget.name == "m"


async def test_a_memory_is_read_and_updated() -> None:
    recorder = Recorder()
    memory = memory_service_pb2.Memory(name="m", text="a blue bike", etag="1")
    servicer = recorder.answering(memory_service_pb2_grpc.MemoryServiceServicer, GetMemory=memory, UpdateMemory=memory)
    async with serving(memories=servicer) as client:
        assert await client.memories.get("m") == memory
        assert await client.memories.update(memory, update_mask=["text"], request_id="r") == memory
        await client.memories.update(memory)
    get, update, again = recorder.requests
    assert get.name == "m"
    assert (update.memory, list(update.update_mask.paths), update.request_id) == (memory, ["text"], "r")
    assert not again.update_mask.paths
    assert again.request_id


class Exporting(memory_service_pb2_grpc.MemoryServiceServicer):
    """Streams two lines and a record."""

    def __init__(self, sha256: bytes) -> None:
        self.sha256 = sha256

    async def ExportMemories(self, request: Any, context: Any) -> Any:
        for line in ('{"type":"header"}', '{"type":"memory"}'):
            await context.write(memory_service_pb2.ExportMemoriesResponse(json_line=line))
        record = memory_service_pb2.ExportRecord(sha256=self.sha256)
        await context.write(memory_service_pb2.ExportMemoriesResponse(record=record))


async def test_an_export_is_read_line_by_line_and_checked() -> None:
    digest = hashlib.sha256(b'{"type":"header"}\n{"type":"memory"}\n').digest()
    async with serving(memories=Exporting(digest)) as client:
        export = client.memories.export(USER)
        assert [line async for line in export] == ['{"type":"header"}', '{"type":"memory"}']
        assert export.record is not None
    async with serving(memories=Exporting(b"other")) as client:
        with pytest.raises(InternalError):
            [line async for line in client.memories.export(USER)]
    async with serving(memories=memory_service_pb2_grpc.MemoryServiceServicer()) as client:
        with pytest.raises(UnimplementedError):
            [line async for line in client.memories.export(USER)]


async def test_an_erasure_is_waited_for_until_it_is_proved() -> None:
    recorder = Recorder()
    begun = operations_pb2.Operation(name="tenants/acme/operations/o")
    done = operations_pb2.Operation(name=begun.name, done=True)
    proof = memory_service_pb2.ErasureProof(erasure_id="o")
    done.response.Pack(memory_service_pb2.EraseMemoriesResponse(proof=proof))
    begun.metadata.Pack(memory_service_pb2.EraseMemoriesMetadata(steps_total=5))
    answers = [begun, begun, done, begun]
    memories = recorder.answering(memory_service_pb2_grpc.MemoryServiceServicer, EraseMemories=begun)
    operations = recorder.answering(
        operations_pb2_grpc.OperationsServicer, WaitOperation=lambda request: answers.pop(0)
    )
    async with serving(memories=memories, operations=operations) as client:
        operation = await client.memories.erase(USER, memories=["m"], reason="asked", request_id="r")
        assert (operation.name, operation.done, operation.metadata.steps_total) == (begun.name, False, 5)
        assert await operation.wait() == proof
        assert operation.done
        with pytest.raises(DeadlineExceededError):
            await client.memories.erasure(begun.name).wait(timeout_s=0)
    erase, *waits = recorder.requests
    assert (erase.parent, list(erase.memories), erase.reason, erase.request_id) == (USER, ["m"], "asked", "r")
    assert {wait.name for wait in waits} == {begun.name}
    assert len(waits) == 3


async def test_policy_and_consent_calls_send_what_they_are_given() -> None:
    recorder = Recorder()
    consent = policy_service_pb2.ConsentEvent(
        subject=PERSONA,
        purpose=policy_service_pb2.CONSENT_PURPOSE_LIKENESS,
        state=policy_service_pb2.CONSENT_STATE_GRANTED,
        evidence="a contract",
    )
    policy = recorder.answering(
        policy_service_pb2_grpc.PolicyServiceServicer, Classify=policy_service_pb2.ClassifyResponse()
    )
    consents = recorder.answering(
        policy_service_pb2_grpc.ConsentServiceServicer,
        RecordConsent=consent,
        ListConsentEvents=policy_service_pb2.ListConsentEventsResponse(consent_events=[consent]),
    )
    async with serving(policy=policy, consents=consents) as client:
        await client.policy.classify("tenants/acme", "hello", event_pb2.POLICY_STAGE_INPUT, region_code="PT")
        await client.consents.record(PERSONA, consent.purpose, consent.state, evidence="a contract")
        assert [c async for c in client.consents.list(PERSONA)] == [consent]
    classify, record, listed = recorder.requests
    assert (classify.parent, classify.text, classify.region_code) == ("tenants/acme", "hello", "PT")
    assert classify.stage == event_pb2.POLICY_STAGE_INPUT
    assert record.consent_event == consent
    assert record.request_id
    assert listed.parent == PERSONA


async def test_audit_calls_send_what_they_are_given() -> None:
    recorder = Recorder()
    entry = audit_service_pb2.AuditEntry(index=3, entry_json="{}")
    checkpoint = audit_service_pb2.Checkpoint(tree_size=9, note="note")
    audit = recorder.answering(
        audit_service_pb2_grpc.AuditServiceServicer,
        GetCheckpoint=checkpoint,
        ListAuditEntries=audit_service_pb2.ListAuditEntriesResponse(audit_entries=[entry]),
        GetInclusionProof=audit_service_pb2.InclusionProof(entry=entry),
        GetConsistencyProof=audit_service_pb2.ConsistencyProof(),
    )
    async with serving(audit=audit) as client:
        assert await client.audit.checkpoint("tenants/acme") == checkpoint
        assert [e async for e in client.audit.list("tenants/acme", first_index=3)] == [entry]
        assert (await client.audit.inclusion_proof("tenants/acme", entry_id="e", tree_size=8)).entry == entry
        await client.audit.consistency_proof("tenants/acme", 2, 9)
    signed, listed, included, grown = recorder.requests
    assert {request.parent for request in recorder.requests} == {"tenants/acme"}
    assert signed == audit_service_pb2.GetCheckpointRequest(parent="tenants/acme")
    assert listed.first_index == 3
    assert (included.entry_id, included.tree_size) == ("e", 8)
    assert (grown.first_tree_size, grown.second_tree_size) == (2, 9)


async def test_an_audit_export_yields_its_lines_and_says_why_it_broke_off() -> None:
    class Exporter(audit_service_pb2_grpc.AuditServiceServicer):
        async def ExportAuditLog(self, request: Any, context: Any) -> Any:
            for line in ("{}", "[]"):
                yield audit_service_pb2.ExportAuditLogResponse(json_line=line)
            if request.parent == "tenants/broken":
                await context.abort(grpc.StatusCode.INTERNAL, "no more")

    async with serving(audit=Exporter()) as client:
        assert [line async for line in client.audit.export("tenants/acme")] == ["{}", "[]"]
        with pytest.raises(InternalError):
            [line async for line in client.audit.export("tenants/broken")]
