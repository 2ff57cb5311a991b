"""ConsentService, and withdrawals felt by turns that run."""

from __future__ import annotations

import asyncio
import uuid

import grpc
import pytest

from personae.v1 import event_pb2, persona_service_pb2
from personae.v1 import policy_service_pb2 as pb
from tests.e2e.support import Api, Hosted, Pause, failure, kinds, new_user, read_until, rest, text_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

CLONE = persona_service_pb2.PERSONA_TYPE_CLONE
LIKENESS, MEMORY = pb.CONSENT_PURPOSE_LIKENESS, pb.CONSENT_PURPOSE_MEMORY
GRANTED, WITHDRAWN = pb.CONSENT_STATE_GRANTED, pb.CONSENT_STATE_WITHDRAWN


async def record(
    api: Api, subject: str, purpose: pb.ConsentPurpose, state: pb.ConsentState, request_id: str = ""
) -> pb.ConsentEvent:
    event: pb.ConsentEvent = await api.consents.RecordConsent(
        pb.RecordConsentRequest(
            consent_event=pb.ConsentEvent(subject=subject, purpose=purpose, state=state, evidence="a form"),
            request_id=request_id,
        )
    )
    return event


async def test_a_clone_needs_a_granted_likeness_consent(api: Api) -> None:
    persona = await api.persona(type=CLONE)
    refused = await failure(api.session(persona))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "LIKENESS_CONSENT_MISSING")
    await record(api, persona, LIKENESS, GRANTED)
    session = await api.session(persona)
    assert kinds(await api.say(session, "Hello there."))[-1] == "turn_completed"
    await record(api, persona, LIKENESS, WITHDRAWN)
    for call in (api.session(persona), api.converse(session, "Hello again.")):
        assert (await failure(call)).reason == "LIKENESS_CONSENT_MISSING"


async def test_consent_events_are_kept_and_listed_newest_first(api: Api) -> None:
    persona = await api.persona(type=CLONE)
    made = [await record(api, persona, LIKENESS, state) for state in (GRANTED, WITHDRAWN, GRANTED)]
    user = new_user(persona)
    await record(api, user, MEMORY, WITHDRAWN)
    first = await api.consents.ListConsentEvents(pb.ListConsentEventsRequest(parent=persona, page_size=2))
    second = await api.consents.ListConsentEvents(
        pb.ListConsentEventsRequest(parent=persona, page_size=2, page_token=first.next_page_token)
    )
    assert [*first.consent_events, *second.consent_events] == list(reversed(made))
    assert not second.next_page_token
    [of_user] = (await api.consents.ListConsentEvents(pb.ListConsentEventsRequest(parent=user))).consent_events
    assert (of_user.subject, of_user.state, of_user.evidence) == (user, WITHDRAWN, "a form")
    assert of_user.HasField("event_time")


async def test_a_repeated_consent_is_recorded_once(api: Api) -> None:
    persona, request_id = await api.persona(type=CLONE), str(uuid.uuid4())
    first = await record(api, persona, LIKENESS, GRANTED, request_id)
    assert await record(api, persona, LIKENESS, GRANTED, request_id) == first
    assert (await failure(record(api, persona, LIKENESS, WITHDRAWN, request_id))).reason == "REQUEST_ID_REUSED"
    listed = await api.consents.ListConsentEvents(pb.ListConsentEventsRequest(parent=persona))
    assert len(listed.consent_events) == 1


async def test_a_consent_needs_the_right_kind_of_subject(api: Api) -> None:
    persona = await api.persona(type=CLONE)
    for subject, purpose in ((persona, MEMORY), (new_user(persona), LIKENESS), ("nobody", LIKENESS)):
        refused = await failure(record(api, subject, purpose, GRANTED))
        assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["consent_event.subject"])
    missing = await failure(record(api, "tenants/demo/personas/nobody", LIKENESS, GRANTED))
    assert missing.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("what", ["consent", "revision", "persona"])
async def test_a_withdrawal_interrupts_a_running_turn(hosted: Hosted, what: str) -> None:
    api, pause = hosted.api, Pause()
    persona = await api.persona(type=CLONE)
    await record(api, persona, LIKENESS, GRANTED)
    session, untouched = await api.session(persona), await api.session(await api.persona())
    hosted.engine.will_say("The first unit. The second is held b", pause, "ack. And so is the third.")
    call = api.converse(session, "Hello there.")
    seen = await read_until(call, "text_delta")
    await pause.wait()
    others = Pause()
    hosted.engine.will_say("Something else. And ", others, "more.")
    other = api.converse(untouched, "Hello there.")
    await read_until(other, "text_delta")

    if what == "consent":
        await record(api, persona, LIKENESS, WITHDRAWN)
    elif what == "revision":
        await api.personas.WithdrawRevision(
            persona_service_pb2.WithdrawRevisionRequest(name=f"{persona}/revisions/1", reason="a mistake")
        )
    else:
        await api.personas.DeletePersona(persona_service_pb2.DeletePersonaRequest(name=persona))

    # The engine still waits: it is the withdrawal that ends the turn.
    events = await rest(call)
    assert events[-1].turn_interrupted.reason == event_pb2.TurnInterrupted.REASON_WITHDRAWN
    assert text_of(seen + events) == "The first unit."
    refused = await failure(api.converse(session, "Hello again."))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (
        refused.reason
        == {
            "consent": "LIKENESS_CONSENT_MISSING",
            "revision": "REVISION_WITHDRAWN",
            "persona": "PERSONA_DELETED",
        }[what]
    )
    others.go.set()
    assert kinds(await rest(other))[-1] == "turn_completed"


async def test_nothing_is_released_after_a_withdrawal_is_acknowledged_and_spread(hosted: Hosted) -> None:
    api = hosted.api
    persona = await api.persona()
    revision = f"{persona}/revisions/1"
    pauses = [Pause() for _ in range(4)]
    calls = []
    for pause in pauses:
        hosted.engine.will_say("The first unit. And ", pause, "the rest. " * 20)
        calls.append(api.converse(await api.session(persona), "Hello there."))
    for pause in pauses:
        await pause.wait()
    withdrawing = asyncio.ensure_future(
        api.personas.WithdrawRevision(persona_service_pb2.WithdrawRevisionRequest(name=revision, reason="a mistake"))
    )
    for pause in pauses:
        pause.go.set()
    await withdrawing
    for call in calls:
        events = await rest(call)
        # Some may have been done before it; none goes on after it without an end of either kind.
        assert kinds(events)[-1] in ("turn_completed", "turn_interrupted")
        assert sum(kind in ("turn_completed", "turn_interrupted") for kind in kinds(events)) == 1
