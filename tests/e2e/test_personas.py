"""PersonaService over gRPC."""

from __future__ import annotations

import uuid

import grpc
import pytest
from google.protobuf import field_mask_pb2

from personae.v1 import persona_service_pb2 as pb
from tests.e2e.support import Api, Hosted, failure

pytestmark = pytest.mark.asyncio(loop_scope="session")


def create(persona_id: str = "", *, name: str = "Nadia", request_id: str = "") -> pb.CreatePersonaRequest:
    return pb.CreatePersonaRequest(
        parent="tenants/demo",
        persona_id=persona_id or f"p-{uuid.uuid4().hex[:12]}",
        persona=pb.Persona(display_name=name, type=pb.PERSONA_TYPE_COMPANION),
        request_id=request_id,
    )


async def test_a_persona_is_created_and_got(api: Api) -> None:
    request = create()
    made = await api.personas.CreatePersona(request)
    assert made.name == f"tenants/demo/personas/{request.persona_id}"
    assert made.type == pb.PERSONA_TYPE_COMPANION
    assert not made.active_revision
    assert made.etag
    assert await api.personas.GetPersona(pb.GetPersonaRequest(name=made.name)) == made


async def test_a_taken_id_and_a_missing_type_are_refused(api: Api) -> None:
    request = create()
    await api.personas.CreatePersona(request)
    taken = await failure(api.personas.CreatePersona(request))
    assert taken.code is grpc.StatusCode.ALREADY_EXISTS
    untyped = create()
    untyped.persona.type = pb.PERSONA_TYPE_UNSPECIFIED
    refused = await failure(api.personas.CreatePersona(untyped))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["persona.type"])


async def test_an_unknown_persona_is_not_found(api: Api) -> None:
    missing = await failure(api.personas.GetPersona(pb.GetPersonaRequest(name="tenants/demo/personas/nobody")))
    assert (missing.code, missing.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")


async def test_a_repeated_request_id_returns_the_first_result(api: Api) -> None:
    request = create(request_id=str(uuid.uuid4()))
    first = await api.personas.CreatePersona(request)
    assert await api.personas.CreatePersona(request) == first


async def test_a_request_id_with_another_body_is_refused(api: Api) -> None:
    request = create(request_id=str(uuid.uuid4()))
    await api.personas.CreatePersona(request)
    request.persona.display_name = "Somebody else"
    refused = await failure(api.personas.CreatePersona(request))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


async def test_a_failed_call_does_not_use_up_its_request_id(api: Api) -> None:
    taken = create()
    await api.personas.CreatePersona(taken)
    request_id = str(uuid.uuid4())
    await failure(api.personas.CreatePersona(create(taken.persona_id, request_id=request_id)))
    made = await api.personas.CreatePersona(create(request_id=request_id))
    assert made.name


async def test_pages_hold_every_persona_once_and_in_order(hosted: Hosted) -> None:
    api = hosted.caller("key-of-another-tenant")
    made = [await api.persona(publish=False, tenant="other") for _ in range(5)]
    listed, token, pages = [], "", 0
    while True:
        page = await api.personas.ListPersonas(
            pb.ListPersonasRequest(parent="tenants/other", page_size=2, page_token=token)
        )
        assert len(page.personas) <= 2
        listed += [persona.name for persona in page.personas]
        pages += 1
        token = page.next_page_token
        if not token:
            break
    assert pages >= 3
    assert listed == sorted(set(listed))
    assert set(made) <= set(listed)


async def test_a_page_token_of_another_listing_or_a_changed_one_is_refused(api: Api) -> None:
    for _ in range(2):
        await api.persona(publish=False)
    page = await api.personas.ListPersonas(pb.ListPersonasRequest(parent="tenants/demo", page_size=1))
    token = page.next_page_token
    assert token
    persona = page.personas[0].name
    changed = ("A" if token[0] != "A" else "B") + token[1:]
    calls = [
        api.personas.ListPersonas(pb.ListPersonasRequest(parent="tenants/demo", page_token=changed)),
        api.personas.ListPersonas(pb.ListPersonasRequest(parent="tenants/demo", page_token="no token")),
        api.personas.ListPersonas(pb.ListPersonasRequest(parent="tenants/demo", page_token="ü")),
        api.personas.ListRevisions(pb.ListRevisionsRequest(parent=persona, page_token=token)),
    ]
    for call in calls:
        refused = await failure(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")
        assert refused.fields == ["page_token"]


async def test_only_the_display_name_can_be_updated(api: Api) -> None:
    name = await api.persona()
    for paths in ([], ["display_name"], ["*"]):
        shown = f"Called {paths}"
        updated = await api.personas.UpdatePersona(
            pb.UpdatePersonaRequest(
                persona=pb.Persona(name=name, display_name=shown), update_mask=field_mask_pb2.FieldMask(paths=paths)
            )
        )
        assert updated.display_name == shown
        assert updated.type == pb.PERSONA_TYPE_ASSISTANT
    refused = await failure(
        api.personas.UpdatePersona(
            pb.UpdatePersonaRequest(
                persona=pb.Persona(name=name, display_name="N", type=pb.PERSONA_TYPE_CLONE),
                update_mask=field_mask_pb2.FieldMask(paths=["type"]),
            )
        )
    )
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["update_mask"])


async def test_an_old_etag_is_refused_and_the_current_one_is_not(api: Api) -> None:
    name = await api.persona()
    first = await api.personas.GetPersona(pb.GetPersonaRequest(name=name))
    update = pb.UpdatePersonaRequest(persona=pb.Persona(name=name, display_name="One", etag=first.etag))
    second = await api.personas.UpdatePersona(update)
    assert second.etag != first.etag
    stale = await failure(api.personas.UpdatePersona(update))
    assert (stale.code, stale.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    stale = await failure(api.personas.DeletePersona(pb.DeletePersonaRequest(name=name, etag=first.etag)))
    assert stale.reason == "ETAG_MISMATCH"


async def test_a_deleted_persona_is_hidden_holds_no_session_and_can_be_undeleted(api: Api) -> None:
    name = await api.persona()
    session = await api.session(name)
    deleted = await api.personas.DeletePersona(pb.DeletePersonaRequest(name=name))
    assert deleted.HasField("delete_time")
    twice = await failure(api.personas.DeletePersona(pb.DeletePersonaRequest(name=name)))
    assert (twice.code, twice.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "PERSONA_DELETED")

    async def listed(**options: bool) -> set[str]:
        token, found = "", set()
        while True:
            page = await api.personas.ListPersonas(
                pb.ListPersonasRequest(parent="tenants/demo", page_size=200, page_token=token, **options)
            )
            found |= {persona.name for persona in page.personas}
            token = page.next_page_token
            if not token:
                return found

    assert name not in await listed()
    assert name in await listed(show_deleted=True)
    for call in (api.session(name), api.converse(session, "Hello there."), api.publish(name)):
        refused = await failure(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "PERSONA_DELETED")

    back = await api.personas.UndeletePersona(pb.UndeletePersonaRequest(name=name))
    assert not back.HasField("delete_time")
    assert name in await listed()
    assert (await api.say(session, "Hello there."))[-1].HasField("turn_completed")
    again = await failure(api.personas.UndeletePersona(pb.UndeletePersonaRequest(name=name)))
    assert again.reason == "PERSONA_NOT_DELETED"


async def test_publishing_supersedes_and_old_sessions_keep_their_revision(hosted: Hosted) -> None:
    api = hosted.api
    name = await api.persona(card="You are Nadia, the first.")
    session = await api.session(name)
    second = await api.publish(name, "You are Nadia, the second.")
    assert second.state == pb.REVISION_STATE_ACTIVE
    assert (await api.personas.GetPersona(pb.GetPersonaRequest(name=name))).active_revision == second.name
    listed = (await api.personas.ListRevisions(pb.ListRevisionsRequest(parent=name))).revisions
    assert [(revision.name.rsplit("/", 1)[1], revision.state) for revision in listed] == [
        ("2", pb.REVISION_STATE_ACTIVE),
        ("1", pb.REVISION_STATE_SUPERSEDED),
    ]
    events = await api.say(session, "Hello there.")
    assert events[0].turn_started.revision == f"{name}/revisions/1"
    assert "the first" in hosted.engine.last_prompt
    await api.say(await api.session(name), "Hello there.")
    assert "the second" in hosted.engine.last_prompt


async def test_a_definition_comes_back_as_it_was_published(api: Api) -> None:
    definition = pb.PersonaDefinition(
        card="You are Ärne 🚲.",
        style=pb.StyleSheet(
            tone="dry",
            formality=pb.FORMALITY_CASUAL,
            max_sentences=3,
            signature_phrases=["right then"],
            avoided_phrases=["synergy"],
            emoji=pb.EMOJI_USE_NONE,
            language_code="pt-PT",
        ),
        exemplars=[pb.Exemplar(prompt="Hi", reply="Right then."), pb.Exemplar(reply="A post.")],
        generation=pb.GenerationConfig(max_output_tokens=64, temperature=0.0),
    )
    name = await api.persona(publish=False)
    made = await api.personas.PublishRevision(pb.PublishRevisionRequest(parent=name, definition=definition))
    assert made.definition == definition
    page = await api.personas.ListRevisions(pb.ListRevisionsRequest(parent=name))
    assert page.revisions[0] == made


@pytest.mark.parametrize(
    ("generation", "reason"),
    [
        (pb.GenerationConfig(model="nothing"), "MODEL_NOT_SERVED"),
        (pb.GenerationConfig(adapter="nadia-2026"), "ADAPTER_NOT_SERVED"),
    ],
)
async def test_a_revision_that_no_turn_could_run_is_refused(
    api: Api, generation: pb.GenerationConfig, reason: str
) -> None:
    name = await api.persona(publish=False)
    definition = pb.PersonaDefinition(card="You are Nadia.", generation=generation)
    refused = await failure(api.personas.PublishRevision(pb.PublishRevisionRequest(parent=name, definition=definition)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, reason)
    assert not (await api.personas.ListRevisions(pb.ListRevisionsRequest(parent=name))).revisions


async def test_revisions_are_listed_in_pages(api: Api) -> None:
    name = await api.persona()
    for _ in range(2):
        await api.publish(name)
    first = await api.personas.ListRevisions(pb.ListRevisionsRequest(parent=name, page_size=2))
    second = await api.personas.ListRevisions(
        pb.ListRevisionsRequest(parent=name, page_size=2, page_token=first.next_page_token)
    )
    numbers = [revision.name.rsplit("/", 1)[1] for page in (first, second) for revision in page.revisions]
    assert numbers == ["3", "2", "1"]
    assert not second.next_page_token


async def test_a_withdrawn_revision_opens_no_session_and_its_next_turn_fails(api: Api) -> None:
    name = await api.persona()
    session = await api.session(name)
    revision = f"{name}/revisions/1"
    gone = await api.personas.WithdrawRevision(pb.WithdrawRevisionRequest(name=revision, reason="a mistake"))
    assert (gone.state, gone.withdraw_reason) == (pb.REVISION_STATE_WITHDRAWN, "a mistake")
    assert gone.HasField("withdraw_time")
    again = await api.personas.WithdrawRevision(pb.WithdrawRevisionRequest(name=revision, reason="another"))
    assert again == gone
    refused = await failure(api.converse(session, "Hello there."))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REVISION_WITHDRAWN")
    assert refused.precondition is not None
    assert refused.precondition.violations[0].type == "REVISION_WITHDRAWN"
    none = await failure(api.session(name))
    assert none.reason == "NO_ACTIVE_REVISION"
    await api.publish(name)
    await api.session(name)


async def test_a_revision_that_is_not_there_is_not_found(api: Api) -> None:
    name = await api.persona(publish=False)
    for call in (
        api.personas.WithdrawRevision(pb.WithdrawRevisionRequest(name=f"{name}/revisions/9", reason="x")),
        api.personas.ListRevisions(pb.ListRevisionsRequest(parent="tenants/demo/personas/nobody")),
        api.publish("tenants/demo/personas/nobody"),
    ):
        assert (await failure(call)).code is grpc.StatusCode.NOT_FOUND


async def test_a_text_that_cannot_be_stored_is_the_callers_fault(api: Api) -> None:
    refused = await failure(api.personas.CreatePersona(create(name="Na\x00dia")))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
