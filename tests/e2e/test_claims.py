"""Verified claims, from whoever verifies one to what a persona may say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import grpc
import orjson
import pytest
import pytest_asyncio
from google.protobuf.timestamp_pb2 import Timestamp

from personae.v1 import audit_service_pb2, event_pb2
from personae.v1 import persona_service_pb2 as pb
from personae.v1 import policy_service_pb2 as policy_pb
from personae_runtime.ledger.bundles import BundleLedger
from personae_runtime.policy.decision import Action, Stage
from personae_runtime.sessions import turn as turn_module
from tests.e2e.support import Api, Hosted, failure, run_cli, text_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

EXPIRES = datetime(2099, 1, 1, tzinfo=UTC)
CLAIMED = "Good morning. I have a daughter called Mia. And you?"


def mia(**changed: Any) -> pb.VerifiedClaim:
    """The claim of a child, with other fields where they are named."""
    expire_time = Timestamp()
    expire_time.FromDatetime(EXPIRES)
    fields: dict[str, Any] = {
        "claim_id": "mia",
        "kind": pb.CLAIM_KIND_CHILD,
        "statement": "has a daughter called Mia",
        "evidence": "signed on 3 May, contract 17",
        "expire_time": expire_time,
    }
    return pb.VerifiedClaim(**(fields | changed))


async def publish(api: Api, persona: str, *claims: pb.VerifiedClaim, card: str = "You are Ana.") -> pb.Revision:
    definition = pb.PersonaDefinition(card=card, verified_claims=claims)
    made: pb.Revision = await api.personas.PublishRevision(
        pb.PublishRevisionRequest(parent=persona, definition=definition)
    )
    return made


async def revisions(api: Api, persona: str) -> list[pb.Revision]:
    return list((await api.personas.ListRevisions(pb.ListRevisionsRequest(parent=persona))).revisions)


async def clone(api: Api) -> str:
    """A clone whose person has agreed to it, without a revision."""
    name = await api.persona(type=pb.PERSONA_TYPE_CLONE, publish=False)
    await api.consents.RecordConsent(
        policy_pb.RecordConsentRequest(
            consent_event=policy_pb.ConsentEvent(
                subject=name,
                purpose=policy_pb.CONSENT_PURPOSE_LIKENESS,
                state=policy_pb.CONSENT_STATE_GRANTED,
                evidence="a form",
            )
        )
    )
    return name


@pytest_asyncio.fixture(loop_scope="session")
async def ana(api: Api) -> AsyncIterator[str]:
    yield await clone(api)


async def told(api: Api, hosted: Hosted, session: str, reply: str = CLAIMED) -> tuple[str, list[event_pb2.PolicyEvent]]:
    """What a person reads when the model writes `reply`, and the policy events."""
    hosted.engine.will_say(reply)
    events = await api.say(session, "Tell me about yourself.")
    return text_of(events), [event.policy_event for event in events if event.HasField("policy_event")]


async def decisions(api: Api, session: str) -> list[policy_pb.Decision]:
    parent = "/".join(session.split("/")[:2])
    listed = await api.policy.ListDecisions(policy_pb.ListDecisionsRequest(parent=parent, session=session))
    return list(listed.decisions)


async def test_without_a_claim_it_is_stopped_and_with_one_the_decision_names_it(
    hosted: Hosted, api: Api, ana: str
) -> None:
    await publish(api, ana)
    before = await api.session(ana)
    said, [stopped] = await told(api, hosted, before)
    assert said.startswith("Good morning.")
    assert "daughter" not in said
    assert stopped.reason_code == "IDENTITY_LIFE_CLAIMED"
    assert "Mia" not in hosted.engine.last_prompt

    revision = await publish(api, ana, mia())
    [shown] = revision.definition.verified_claims
    assert (shown.verified_by, shown.statement) == ("service", "has a daughter called Mia")
    assert shown.HasField("verify_time")
    session = await api.session(ana)
    assert await told(api, hosted, session) == (CLAIMED, [])
    assert '- "has a daughter called Mia"' in hosted.engine.last_prompt
    name = f"{revision.name}/claims/mia"
    [decision] = await decisions(api, session)
    assert decision.action == event_pb2.POLICY_ACTION_ALLOW
    assert list(decision.verified_claims) == [name]
    assert list(decision.rule_ids) == ["identity_verified"]
    explained = await api.policy.Explain(policy_pb.PolicyServiceExplainRequest(name=decision.name))
    assert name in explained.statement.facts
    [match] = explained.matches
    assert (match.matcher_id, CLAIMED[match.start : match.end]) == ("claims_child", "I have a daughter")

    # The session that began before has the revision that it began with, and so has what it may not say.
    assert "daughter" not in (await told(api, hosted, before))[0]
    for other in ("I have a daughter called Zoe.", "I have a daughter and a son.", "I'm a real person, and Mia's mum."):
        said, [stopped] = await told(api, hosted, await api.session(ana), other)
        assert stopped.action == event_pb2.POLICY_ACTION_BLOCK
        assert other not in said
    # What a dry run says is what a turn does.
    for persona, action in ((ana, event_pb2.POLICY_ACTION_ALLOW), ("", event_pb2.POLICY_ACTION_BLOCK)):
        found = await api.policy.Classify(
            policy_pb.ClassifyRequest(
                parent="tenants/demo",
                text=CLAIMED,
                stage=event_pb2.POLICY_STAGE_OUTPUT,
                persona_type=pb.PERSONA_TYPE_CLONE,
                persona=persona,
            )
        )
        assert found.action == action
        assert list(found.verified_claims) == ([name] if persona else [])


async def test_another_persona_is_not_helped_by_it(hosted: Hosted, api: Api, ana: str) -> None:
    await publish(api, ana, mia())
    other = await clone(api)
    await publish(api, other)
    said, [stopped] = await told(api, hosted, await api.session(other))
    assert (stopped.reason_code, "daughter" in said) == ("IDENTITY_LIFE_CLAIMED", False)


async def test_who_may_only_edit_a_persona_can_verify_nothing(hosted: Hosted, api: Api, ana: str) -> None:
    editor = hosted.caller("key-of-an-editor")
    first = await publish(api, ana, mia())
    before = await revisions(api, ana)
    for claims in (
        (mia(claim_id="zoe", statement="has a daughter called Zoe"),),
        (mia(), mia(claim_id="zoe")),
        (mia(statement="has a daughter called Zoe"),),
        (mia(kind=pb.CLAIM_KIND_POSSESSION),),
        (mia(evidence="trust me"),),
        (mia(expire_time=None),),
        (mia(claim_id="zoe", verified_by="service", verify_time=Timestamp(seconds=1)),),
    ):
        refused = await failure(publish(editor, ana, *claims))
        assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
        assert refused.metadata["permission"] == "claims.verify"
    assert await revisions(api, ana) == before
    # What is verified already goes on as it is, with who verified it, through an edit of everything else.
    edited = await publish(editor, ana, *first.definition.verified_claims, card="You are Ana, who paints.")
    assert edited.definition.verified_claims == first.definition.verified_claims
    assert (await publish(editor, ana)).definition.verified_claims == []
    assert (await failure(publish(editor, ana, mia()))).code is grpc.StatusCode.PERMISSION_DENIED


async def test_an_expired_claim_holds_no_more(
    hosted: Hosted, api: Api, ana: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(api, ana, mia())
    session = await api.session(ana)
    assert (await told(api, hosted, session))[0] == CLAIMED

    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) - datetime.now(tz) + EXPIRES + timedelta(seconds=1)

    with monkeypatch.context() as patched:
        patched.setattr(turn_module, "datetime", Later)
        said, [stopped] = await told(api, hosted, session)
        assert (stopped.reason_code, "daughter" in said) == ("IDENTITY_LIFE_CLAIMED", False)
        assert "Verified facts" not in hosted.engine.last_prompt


async def test_claims_that_cant_be_verified_are_refused_and_publish_nothing(api: Api, ana: str) -> None:
    past = Timestamp(seconds=1)
    for claim, field in (
        (mia(statement="has a daughter and a husband"), "statement"),
        (mia(kind=pb.CLAIM_KIND_BODY, statement="is human"), "statement"),
        (mia(kind=pb.CLAIM_KIND_UNSPECIFIED), "kind"),
        (mia(kind=99), "kind"),
        (mia(kind=pb.CLAIM_KIND_OFFER), "subject"),
        (mia(claim_id="Mia"), "claim_id"),
        (mia(evidence=""), "evidence"),
        (mia(statement=""), "statement"),
        (mia(expire_time=past), "expire_time"),
    ):
        refused = await failure(publish(api, ana, claim))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.fields == [f"definition.verified_claims[0].{field}"]
    companion = await api.persona(type=pb.PERSONA_TYPE_COMPANION, publish=False)
    assert (await failure(publish(api, companion, mia()))).fields == ["definition.verified_claims[0].kind"]
    assert await revisions(api, ana) == await revisions(api, companion) == []


async def test_who_verified_what_is_in_the_audit_log_without_its_words(hosted: Hosted, api: Api, ana: str) -> None:
    first = await publish(api, ana, mia())
    await publish(api, ana, *first.definition.verified_claims, mia(claim_id="tom", statement="has a son called Tom"))
    await told(api, hosted, session := await api.session(ana))
    await api.audit.GetCheckpoint(audit_service_pb2.GetCheckpointRequest(parent="tenants/demo"))
    call = api.audit.ExportAuditLog(audit_service_pb2.ExportAuditLogRequest(parent="tenants/demo"))
    lines = [orjson.loads(one.json_line) async for one in call]
    entries = [orjson.loads(one["entry"]) for one in lines if one["type"] == "entry"]
    text = str(entries)
    bodies = [
        one["body"]
        for one in entries
        if one.get("kind") == "claim_verified" and one["body"]["persona"] == ana.rsplit("/", 1)[1]
    ]
    assert [(one["claim"], one["kind"], one["revision"]) for one in bodies] == [
        ("mia", "child", 1),
        ("tom", "child", 2),
    ]
    assert {one["expires"] for one in bodies} == {int(EXPIRES.timestamp())}
    assert "called Mia" not in text
    assert "contract 17" not in text
    [decision] = await decisions(api, session)
    [recorded] = [one for one in entries if one.get("id") == decision.name.rsplit("/", 1)[1]]
    assert recorded["body"]["claims"] == [f"{ana}/revisions/2/claims/mia"]


async def test_a_replay_judges_a_reply_with_the_claims_of_its_time(hosted: Hosted, api: Api, ana: str) -> None:
    await publish(api, ana, mia())
    await told(api, hosted, session := await api.session(ana))
    stores = hosted.host.stores
    traffic = BundleLedger(stores.database, stores.vault).traffic("demo", since=None, limit=20)
    [reply] = [one async for one in traffic if one.name.startswith(session) and one.stage is Stage.OUTPUT]
    assert [claim.claim_id for claim in reply.context.claims] == ["mia"]
    policy = hosted.host.gateway.policies.own
    assert (await policy.decide(Stage.OUTPUT, reply.text or "", reply.context)).action is Action.ALLOW


async def test_a_user_sees_the_fact_and_not_its_evidence(hosted: Hosted, api: Api, ana: str) -> None:
    await publish(api, ana, mia())
    [revision] = await revisions(hosted.caller("key-of-ann"), ana)
    [claim] = revision.definition.verified_claims
    assert claim.statement == "has a daughter called Mia"
    assert (claim.evidence, claim.verified_by, claim.HasField("verify_time")) == ("", "", False)


async def test_the_cli_applies_claims_of_a_file_and_shows_them(
    hosted: Hosted, api: Api, ana: str, tmp_path: Any
) -> None:
    short = ana.rsplit("/", 1)[1]
    file = tmp_path / "ana.yaml"
    file.write_text(
        f"id: {short}\ndisplay_name: Ana\ntype: clone\ncard: You are Ana.\nverified_claims:\n"
        "  - {claim_id: mia, kind: child, statement: has a daughter called Mia, evidence: contract 17,\n"
        "     expire_time: 2099-01-01}\n"
    )
    for outcome in ("published", "active already"):
        code, output = await run_cli(hosted, "persona", "apply", str(file))
        assert (code, outcome in output) == (0, True), output
    code, output = await run_cli(hosted, "persona", "show", short)
    assert code == 0, output
    for shown in ("clone", "You are Ana.", "mia", "child", "has a daughter called Mia", "service", "2099-01-01", "17"):
        assert shown in output
