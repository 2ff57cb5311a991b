"""Nobody's words reach anybody else, through any method that there is.

Every method of the served API is called as the wrong user, as the wrong tenant,
with a user token, and with somebody's scope key in each of its string fields. A
method that is new fails here until it is covered.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.longrunning import operations_pb2 as ops
from google.protobuf import descriptor_pool, duration_pb2, field_mask_pb2, message_factory, timestamp_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from personae.v1 import audit_service_pb2 as aud
from personae.v1 import bundle_pb2 as bun
from personae.v1 import content_service_pb2 as con
from personae.v1 import corpus_service_pb2 as cor
from personae.v1 import memory_service_pb2 as mem
from personae.v1 import persona_service_pb2 as per
from personae.v1 import policy_service_pb2 as pol
from personae.v1 import review_service_pb2 as rev
from personae.v1 import session_service_pb2 as ses
from personae_serve.gateway.server import OPERATIONS, SERVICE_NAMES
from tests.e2e.support import Api, Hosted

pytestmark = pytest.mark.asyncio(loop_scope="session")

ANN, BOB, OTHER = "annquokkaann", "bobquokkabob", "othquokkaoth"
"""Words that only one person, or one tenant, has."""
ASKED = "What is my green bicycle called?"


@dataclass(frozen=True)
class Subject:
    """Whom a call is about, by names."""

    persona: str
    user: str
    session: str
    memory: str
    operation: str
    document: str
    decision: str
    appeal: str
    review: str
    turn: str = "t1"

    @property
    def tenant(self) -> str:
        return "/".join(self.persona.split("/")[:2])

    @property
    def bundle(self) -> str:
        """One that nobody published: whoever may change the rules would change those of every other test."""
        return f"{self.tenant}/bundles/{'0' * 32}"


def _ago(seconds: int) -> timestamp_pb2.Timestamp:
    return timestamp_pb2.Timestamp(seconds=int(time.time()) - seconds)


A_YEAR_AGO, A_MINUTE_AGO = _ago(365 * 86_400), _ago(60)


def requests(s: Subject) -> dict[str, Message]:
    """A request of every method, about one person."""
    turn = f"{s.session}/turns/{s.turn}"
    persona = per.Persona(name=s.persona, display_name="Nadia", type=per.PERSONA_TYPE_ASSISTANT)
    consent = pol.ConsentEvent(
        subject=s.user, purpose=pol.CONSENT_PURPOSE_MEMORY, state=pol.CONSENT_STATE_GRANTED, evidence="a form"
    )
    operation = {"name": s.operation}
    switch = f"{s.tenant}/killSwitches/{uuid.uuid4()}"
    return {
        "PersonaService/CreatePersona": per.CreatePersonaRequest(
            parent=s.tenant, persona_id=f"p-{uuid.uuid4().hex[:12]}", persona=persona
        ),
        "PersonaService/GetPersona": per.GetPersonaRequest(name=s.persona),
        "PersonaService/ListPersonas": per.ListPersonasRequest(parent=s.tenant),
        "PersonaService/UpdatePersona": per.UpdatePersonaRequest(persona=persona),
        "PersonaService/PublishRevision": per.PublishRevisionRequest(
            parent=s.persona, definition=per.PersonaDefinition(card="You are Nadia.")
        ),
        "PersonaService/ListRevisions": per.ListRevisionsRequest(parent=s.persona),
        "PersonaService/WithdrawRevision": per.WithdrawRevisionRequest(name=f"{s.persona}/revisions/9"),
        "PersonaService/UndeletePersona": per.UndeletePersonaRequest(name=s.persona),
        "SessionService/CreateSession": ses.CreateSessionRequest(parent=s.persona, session=ses.Session(user=s.user)),
        "SessionService/GetSession": ses.GetSessionRequest(name=s.session),
        "SessionService/ListSessions": ses.ListSessionsRequest(parent=s.persona, user=s.user),
        "SessionService/ListTurns": ses.ListTurnsRequest(parent=s.session),
        "SessionService/Converse": ses.ConverseRequest(
            session=s.session, turn_id=f"t-{uuid.uuid4().hex[:8]}", text=ASKED
        ),
        "SessionService/Attach": ses.AttachRequest(session=s.session, turn_id=s.turn),
        "SessionService/CancelTurn": ses.CancelTurnRequest(name=turn),
        "MemoryService/ListMemories": mem.ListMemoriesRequest(parent=s.user),
        "MemoryService/SearchMemories": mem.SearchMemoriesRequest(parent=s.user, query=ASKED),
        "MemoryService/CreateMemory": mem.CreateMemoryRequest(parent=s.user, memory=mem.Memory(text="I row.")),
        "MemoryService/GetMemory": mem.GetMemoryRequest(name=s.memory),
        "MemoryService/UpdateMemory": mem.UpdateMemoryRequest(
            memory=mem.Memory(name=s.memory, pinned=True), update_mask=field_mask_pb2.FieldMask(paths=["pinned"])
        ),
        "MemoryService/Explain": mem.MemoryServiceExplainRequest(parent=s.user, query=ASKED),
        "MemoryService/GetProfile": mem.GetProfileRequest(name=f"{s.user}/profile"),
        "MemoryService/ExportMemories": mem.ExportMemoriesRequest(parent=s.user),
        "CorpusService/CreateDocument": cor.CreateDocumentRequest(
            parent=s.persona, document=cor.Document(text="I true every wheel twice.")
        ),
        "CorpusService/GetDocument": cor.GetDocumentRequest(name=s.document),
        "CorpusService/ListDocuments": cor.ListDocumentsRequest(parent=s.persona),
        "CorpusService/SearchPassages": cor.SearchPassagesRequest(parent=s.persona, query=ASKED),
        "PolicyService/Classify": pol.ClassifyRequest(
            parent=s.tenant, text=ASKED, stage=1, persona_type=per.PERSONA_TYPE_ASSISTANT
        ),
        "PolicyService/GetDecision": pol.GetDecisionRequest(name=s.decision),
        "PolicyService/ListDecisions": pol.ListDecisionsRequest(parent=s.tenant, session=s.session),
        "PolicyService/Explain": pol.PolicyServiceExplainRequest(name=s.decision),
        "PolicyService/CountCrisisReferrals": pol.CountCrisisReferralsRequest(
            parent=s.tenant, start_date="2026-01-01", end_date="2030-01-01"
        ),
        "PolicyService/ListKillSwitches": pol.ListKillSwitchesRequest(parent=s.tenant, show_lifted=True),
        "PolicyService/GetKillSwitch": pol.GetKillSwitchRequest(name=switch),
        "PolicyService/LiftKillSwitch": pol.LiftKillSwitchRequest(name=switch, reason="over"),
        "PolicyService/PublishBundle": bun.PublishBundleRequest(parent=s.tenant, content=ASKED.encode()),
        "PolicyService/GetBundle": bun.GetBundleRequest(name=s.bundle),
        "PolicyService/ListBundles": bun.ListBundlesRequest(parent=s.tenant),
        "PolicyService/GetRollout": bun.GetRolloutRequest(name=f"{s.tenant}/rollout"),
        "PolicyService/SetRollout": bun.SetRolloutRequest(
            name=f"{s.tenant}/rollout", bundle=s.bundle, stage=bun.ROLLOUT_STAGE_SHADOW
        ),
        "PolicyService/RollbackRollout": bun.RollbackRolloutRequest(name=f"{s.tenant}/rollout"),
        "PolicyService/ListShadowDecisions": bun.ListShadowDecisionsRequest(parent=s.bundle),
        "PolicyService/ReplayBundle": bun.ReplayBundleRequest(
            parent=s.tenant, old=bun.BundleSource(in_force=True), new=bun.BundleSource(shipped=True), limit=20
        ),
        "ReviewService/AppealDecision": rev.AppealDecisionRequest(decision=s.decision, statement=ASKED),
        "ReviewService/GetAppeal": rev.GetAppealRequest(name=s.appeal),
        "ReviewService/LeaseReview": rev.LeaseReviewRequest(parent=s.tenant, review=s.review),
        "ReviewService/ResolveReview": rev.ResolveReviewRequest(
            name=s.review, outcome=rev.REVIEW_OUTCOME_UPHOLD, reason_code="RIGHT", note="It was right."
        ),
        "ReviewService/ListReviews": rev.ListReviewsRequest(parent=s.tenant, page_size=200),
        "ReviewService/GetBundleDraft": rev.GetBundleDraftRequest(parent=s.tenant),
        "ConsentService/RecordConsent": pol.RecordConsentRequest(consent_event=consent),
        "ConsentService/ListConsentEvents": pol.ListConsentEventsRequest(parent=s.user),
        "AuditService/GetCheckpoint": aud.GetCheckpointRequest(parent=s.tenant),
        "AuditService/ListAuditEntries": aud.ListAuditEntriesRequest(parent=s.tenant),
        "AuditService/GetInclusionProof": aud.GetInclusionProofRequest(parent=s.tenant),
        "AuditService/GetConsistencyProof": aud.GetConsistencyProofRequest(
            parent=s.tenant, first_tree_size=1, second_tree_size=1
        ),
        "AuditService/ExportAuditLog": aud.ExportAuditLogRequest(parent=s.tenant),
        "AuditService/GetTransparencyReport": aud.GetTransparencyReportRequest(
            parent=s.tenant, start_time=A_YEAR_AGO, include_entries=True
        ),
        "ReviewService/NextSampledDecision": rev.NextSampledDecisionRequest(
            parent=s.tenant, start_time=A_YEAR_AGO, end_time=A_MINUTE_AGO
        ),
        "ReviewService/JudgeSampledDecision": rev.JudgeSampledDecisionRequest(
            decision=s.decision, verdict=rev.SAMPLE_VERDICT_CORRECT, reason_code="RIGHT"
        ),
        "ContentService/ExportContent": con.ExportContentRequest(name=turn),
        "Operations/GetOperation": ops.GetOperationRequest(**operation),
        "Operations/WaitOperation": ops.WaitOperationRequest(timeout=duration_pb2.Duration(nanos=1), **operation),
        "Operations/ListOperations": ops.ListOperationsRequest(name=s.tenant),
        "Operations/CancelOperation": ops.CancelOperationRequest(**operation),
        # Those that take something away come last.
        "Operations/DeleteOperation": ops.DeleteOperationRequest(**operation),
        "CorpusService/DeleteDocument": cor.DeleteDocumentRequest(name=s.document),
        "MemoryService/ForgetMemory": mem.ForgetMemoryRequest(name=s.memory),
        "MemoryService/EraseMemories": mem.EraseMemoriesRequest(parent=s.user, memories=[s.memory]),
        "SessionService/CloseSession": ses.CloseSessionRequest(name=s.session),
        "PolicyService/CreateKillSwitch": pol.CreateKillSwitchRequest(
            parent=s.tenant, kill_switch=pol.KillSwitch(persona=s.persona, reason="a test")
        ),
        "PersonaService/DeletePersona": per.DeletePersonaRequest(name=s.persona),
    }


def methods() -> Iterator[Any]:
    """Every method of every service that is served, health and reflection apart."""
    pool = descriptor_pool.Default()
    for service in (*SERVICE_NAMES, OPERATIONS):
        yield from pool.FindServiceByName(service).methods


def short(method: Any) -> str:
    return f"{method.containing_service.name}/{method.name}"


METHODS = {short(method): method for method in methods()}


async def answer(api: Api, name: str, request: Message) -> tuple[bytes, grpc.StatusCode]:
    """All that comes back from a call, errors and their details too, as bytes."""
    method = METHODS[name]
    path = f"/{method.containing_service.full_name}/{method.name}"
    response = message_factory.GetMessageClass(method.output_type)
    make: Any = api.channel.unary_stream if method.server_streaming else api.channel.unary_unary
    call = make(path, type(request).SerializeToString, response.FromString)(request, metadata=api.metadata, timeout=10)
    came: list[bytes] = []
    try:
        if method.server_streaming:
            async for message in call:
                came.append(message.SerializeToString())
        else:
            came.append((await call).SerializeToString())
        code = grpc.StatusCode.OK
    except grpc.aio.AioRpcError as error:
        code = error.code()
        came += [str(error.details()).encode(), repr(error.trailing_metadata()).encode()]
    return b"\n".join(came), code


async def subject_of(api: Api, persona: str, person: str, canary: str, hosted: Hosted, document: str) -> Subject:
    """A person with their word in every kind of text."""
    user = f"{persona}/users/{person}"
    consent = pol.ConsentEvent(
        subject=user, purpose=pol.CONSENT_PURPOSE_MEMORY, state=pol.CONSENT_STATE_GRANTED, evidence=canary
    )
    await api.consents.RecordConsent(pol.RecordConsentRequest(consent_event=consent))
    memory = await api.remember(user, f"My green bicycle is called {canary}.", thread=canary, external_id=canary)
    await api.memories.CreateMemory(
        mem.CreateMemoryRequest(parent=user, memory=mem.Memory(text=f"I love {canary}.", speaker=person))
    )
    session = await api.session(persona, user)
    hosted.engine.will_say(f"So your green bicycle is called {canary}. ", "A fine name.")
    await api.say(session, f"My green bicycle is called {canary}.", "t1")
    erased = await api.remember(user, f"{canary} was a mistake.")
    begun = await api.memories.EraseMemories(mem.EraseMemoriesRequest(parent=user, memories=[erased.name]))
    await api.proof(begun.name)
    other = await api.session(persona, user)
    crisis = await api.say(other, f"I want to kill myself. {canary}")
    # Out of the protocol again, so that the model is asked for this person.
    await api.say(other, "I'm safe, my sister is with me.")
    [decision] = [event.policy_event.decision for event in crisis if event.HasField("policy_event")]
    appeal = await api.reviews.AppealDecision(
        rev.AppealDecisionRequest(decision=decision, statement=canary, share_message=True, allow_test=True)
    )
    listed = await api.reviews.ListReviews(
        rev.ListReviewsRequest(parent="/".join(persona.split("/")[:2]), state=rev.REVIEW_STATE_OPEN, page_size=200)
    )
    [review] = [one.name for one in listed.reviews if one.appeal == appeal.name]
    return Subject(persona, user, session, memory.name, begun.name, document, decision, appeal.name, review)


async def said(api: Api, persona: str, word: str) -> str:
    """A document of the persona's own."""
    text = f"My own green bicycle is called {word}."
    made = await api.corpus.CreateDocument(
        cor.CreateDocumentRequest(parent=persona, document=cor.Document(text=text, title=word, uri=f"https://x/{word}"))
    )
    return str(made.name)


@dataclass(frozen=True)
class World:
    """Two people of one tenant, one of another, and who calls."""

    ann: Subject
    bob: Subject
    other: Subject
    as_ann: Api
    as_service: Api
    as_other: Api


@pytest_asyncio.fixture(loop_scope="session")
async def world(hosted: Hosted) -> World:
    service, other = hosted.api, hosted.caller("key-of-another-tenant")
    persona = await service.persona()
    foreign = await other.persona(tenant="other", card=f"You are Nadia. {OTHER}")
    document = await said(service, persona, "Kermit")
    made = World(
        await subject_of(service, persona, "ann", ANN, hosted, document),
        await subject_of(service, persona, "bob", BOB, hosted, document),
        await subject_of(other, foreign, "bob", OTHER, hosted, await said(other, foreign, OTHER)),
        hosted.caller("key-of-ann"),
        service,
        other,
    )
    await hosted.indexed()
    assert hosted.host.passage_indexer is not None
    await hosted.host.passage_indexer.catch_up()
    hosted.engine.clear()
    return made


async def test_every_method_that_is_served_is_covered(world: World) -> None:
    assert set(requests(world.ann)) == set(METHODS)


async def test_everybody_sees_their_own(world: World) -> None:
    """What the other tests look for is there to be found."""
    for api, subject, canary in (
        (world.as_ann, world.ann, ANN),
        (world.as_service, world.bob, BOB),
        (world.as_other, world.other, OTHER),
    ):
        seen = {
            name
            for name, request in requests(subject).items()
            if name.split("/")[1].startswith(("Get", "List", "Search", "Explain", "Export", "Attach"))
            and canary.encode() in (await answer(api, name, request))[0]
        }
        assert seen >= {
            "SessionService/ListTurns",
            "SessionService/Attach",
            "MemoryService/ListMemories",
            "MemoryService/SearchMemories",
            "MemoryService/GetMemory",
            "MemoryService/Explain",
            "MemoryService/GetProfile",
            "MemoryService/ExportMemories",
            "ConsentService/ListConsentEvents",
            "ReviewService/GetAppeal",
        }
        if api is world.as_other:
            assert seen >= {f"CorpusService/{name}" for name in ("GetDocument", "ListDocuments", "SearchPassages")}


async def quiet(hosted: Hosted, api: Api, subject: Subject, *others: str) -> None:
    """No method gives anything of anybody else, nor lets a model see it."""
    for name, request in requests(subject).items():
        came, _ = await answer(api, name, request)
        assert not [word for word in others if word.encode() in came], name
    prompts = "".join(message.content for made in hosted.engine.requests for message in made.messages)
    assert not [word for word in others if word in prompts]


async def test_a_user_token_gets_nothing_of_another_user(hosted: Hosted, world: World) -> None:
    await quiet(hosted, world.as_ann, world.bob, BOB, OTHER)


async def test_another_tenant_gets_nothing(hosted: Hosted, world: World) -> None:
    await quiet(hosted, world.as_other, world.bob, ANN, BOB)
    moved = Subject(
        *(
            name.replace("tenants/demo", "tenants/other")
            for name in (
                *(world.bob.persona, world.bob.user, world.bob.session, world.bob.memory, world.bob.operation),
                *(world.bob.document, world.bob.decision, world.bob.appeal, world.bob.review),
            )
        )
    )
    await quiet(hosted, world.as_other, moved, ANN, BOB)


async def test_anothers_ids_under_ones_own_name_open_nothing(hosted: Hosted, world: World) -> None:
    disguised = replace(
        world.ann,
        memory=world.bob.memory.replace("/users/bob/", "/users/ann/"),
        operation=world.bob.operation,
    )
    await quiet(hosted, world.as_ann, disguised, BOB, OTHER)


async def test_a_service_that_acts_for_one_person_gets_nothing_of_another(hosted: Hosted, world: World) -> None:
    disguised = replace(world.ann, memory=world.bob.memory.replace("/users/bob/", "/users/ann/"))
    mine = {name: r for name, r in requests(disguised).items() if not name.startswith(("Persona", "Operations"))}
    for name, request in mine.items():
        came, _ = await answer(world.as_service, name, request)
        assert BOB.encode() not in came, name
        assert OTHER.encode() not in came, name
    assert all(BOB not in message.content for made in hosted.engine.requests for message in made.messages)


def with_each_string(request: Message, value: str) -> Iterator[Message]:
    """Copies of a request with the value in one string field each, nested ones too."""
    for path in paths(request.DESCRIPTOR):
        copy = type(request)()
        copy.CopyFrom(request)
        place: Any = copy
        for field in path[:-1]:
            place = getattr(place, field.name)
            if field.is_repeated:
                place = place.add()
        if path[-1].is_repeated:
            getattr(place, path[-1].name).append(value)
        else:
            setattr(place, path[-1].name, value)
        yield copy


def paths(descriptor: Any, depth: int = 3) -> Iterator[tuple[FieldDescriptor, ...]]:
    for field in descriptor.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            yield (field,)
        elif field.type == FieldDescriptor.TYPE_MESSAGE and depth and not field.message_type.GetOptions().map_entry:
            for rest in paths(field.message_type, depth - 1):
                yield (field, *rest)


async def test_a_scope_key_named_in_any_field_opens_nothing(hosted: Hosted, world: World) -> None:
    key = hosted.scope(world.bob.user)
    user = f"{world.ann.persona}/users/{key}"
    tried = 0
    for name, request in requests(world.ann).items():
        if name.startswith("PersonaService/"):
            continue  # a user token may only read them, and they hold nobody's words
        for value in (key, user):
            for changed in with_each_string(request, value):
                came, _ = await answer(world.as_ann, name, changed)
                assert BOB.encode() not in came, name
                tried += 1
    for method in ("ListMemories", "ExportMemories", "SearchMemories", "Converse"):
        name = next(one for one in METHODS if one.endswith(f"/{method}"))
        session = await world.as_service.session(world.ann.persona, user)
        made = requests(replace(world.ann, user=user, session=session))[name]
        assert BOB.encode() not in (await answer(world.as_service, name, made))[0], name
    assert tried > 100
    assert all(BOB not in message.content for made in hosted.engine.requests for message in made.messages)
