"""PolicyService.GetDecision, ListDecisions and Explain: one record, for whoever may see it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import grpc
import pytest
from google.protobuf import json_format

from personae.v1 import event_pb2, persona_service_pb2
from personae.v1 import policy_service_pb2 as pb
from personae_client import PersonaeClient
from tests.e2e.support import Api, Hosted, failure, run_cli

pytestmark = pytest.mark.asyncio(loop_scope="session")

COMPANION = persona_service_pb2.PERSONA_TYPE_COMPANION
CLAIM = "The shop opens at nine. Of course I'm a real person, with a body."


async def blocked(hosted: Hosted, session: str) -> str:
    """The decision that stopped a reply."""
    hosted.engine.will_say(CLAIM)
    events = await hosted.api.say(session, "When does the shop open?")
    [told] = [event.policy_event.decision for event in events if event.HasField("policy_event")]
    return told


async def listed(api: Api, **filters: object) -> list[pb.Decision]:
    found = await api.policy.ListDecisions(pb.ListDecisionsRequest(parent="tenants/demo", **filters))
    return list(found.decisions)


async def test_a_decision_is_read_by_the_name_that_the_stream_told(hosted: Hosted) -> None:
    persona = await hosted.api.persona(type=COMPANION)
    session = await hosted.api.session(persona, region_code="PT", age_band=pb.AGE_BAND_ADULT)
    name = await blocked(hosted, session)
    decision = await hosted.api.policy.GetDecision(pb.GetDecisionRequest(name=name))
    [turn] = await hosted.api.turns(session)
    assert (decision.name, decision.persona, decision.turn) == (name, persona, turn.name)
    assert (decision.action, decision.stage) == (event_pb2.POLICY_ACTION_BLOCK, event_pb2.POLICY_STAGE_OUTPUT)
    assert (decision.category, decision.reason_code) == ("identity", "IDENTITY_HUMAN_CLAIMED")
    assert decision.legal_basis.startswith("EU AI Act (Regulation (EU) 2024/1689), Article 50(1)")
    assert (decision.persona_type, decision.age_band) == (COMPANION, pb.AGE_BAND_ADULT)
    assert decision.region_code == "PT"
    assert decision.rule_ids
    assert "+sha256:" in decision.bundle_version
    assert turn.create_time.ToNanoseconds() <= decision.create_time.ToNanoseconds()


async def test_explain_says_what_matched_where_and_what_was_said_but_never_the_text(hosted: Hosted) -> None:
    session = await hosted.api.session(await hosted.api.persona())
    name = await blocked(hosted, session)
    explained = await hosted.api.policy.Explain(pb.PolicyServiceExplainRequest(name=name))
    rule = explained.rules[0]
    assert rule.rule_id == explained.decision.rule_ids[0]
    assert rule.expression
    assert rule.description
    assert rule.legal_basis == explained.statement.legal_ground == explained.decision.legal_basis
    assert rule.description == explained.statement.reason
    hit = explained.matches[0]
    assert CLAIM.index("I'm") <= hit.start < hit.end <= len(CLAIM)
    assert explained.template_text.startswith("I have to correct myself")
    assert "automated means" in explained.statement.automated_means
    assert "rules for teens" in explained.statement.facts
    assert rule.rule_id in explained.statement.contractual_ground
    assert explained.statement.redress
    assert "real person" not in json_format.MessageToJson(explained)


async def test_explain_sets_scores_beside_the_thresholds_of_the_rules_that_matched(hosted: Hosted) -> None:
    session = await hosted.api.session(await hosted.api.persona())
    events = await hosted.api.say(session, "I hate all of them, those people are vermin and should die")
    told = [event.policy_event for event in events if event.HasField("policy_event")]
    assert [one.category for one in told] == ["hate"], told
    explained = await hosted.api.policy.Explain(pb.PolicyServiceExplainRequest(name=told[0].decision))
    compared = [one for one in explained.comparisons if one.category == "hate"]
    assert compared
    for one in compared:
        assert one.score == explained.scores["hate"]
        assert (one.operator, one.score >= one.threshold) == (">=", True)
    assert "classifiers" in explained.statement.automated_means


async def test_a_crisis_is_explained_with_the_notice_that_the_person_got(hosted: Hosted) -> None:
    session = await hosted.api.session(await hosted.api.persona(), region_code="PT")
    events = await hosted.api.say(session, "I want to kill myself")
    [name] = [event.policy_event.decision for event in events if event.HasField("policy_event")]
    explained = await hosted.api.policy.Explain(pb.PolicyServiceExplainRequest(name=name))
    assert explained.notice_code == "CRISIS_RESOURCES"
    assert "808 24 24 24" in explained.notice_text
    assert explained.statement.restriction.startswith("The message did not go to the persona")


async def test_decisions_are_listed_newest_first_by_page_and_by_filter(hosted: Hosted) -> None:
    api = hosted.api
    persona = await api.persona()
    session, other = await api.session(persona), await api.session(persona)
    before = datetime.now(UTC)
    names = [await blocked(hosted, session) for _ in range(3)]
    await api.say(other, "I want to kill myself")
    everything = [one.name for one in await listed(api, persona=persona)]
    assert everything[1:] == names[::-1]
    assert [one.name for one in await listed(api, session=session)] == names[::-1]
    assert [one.category for one in await listed(api, persona=persona, category="self_harm")] == ["self_harm"]
    assert len(await listed(api, persona=persona, stage=event_pb2.POLICY_STAGE_OUTPUT)) == 3
    assert len(await listed(api, persona=persona, action=event_pb2.POLICY_ACTION_TRANSFORM)) == 0
    assert len(await listed(api, persona=persona, start_time=before)) == 4
    assert await listed(api, persona=persona, end_time=before) == []
    assert await listed(api, persona=persona, start_time=before + timedelta(days=1)) == []

    paged, token = [], ""
    while True:
        page = await api.policy.ListDecisions(
            pb.ListDecisionsRequest(parent="tenants/demo", persona=persona, page_size=3, page_token=token)
        )
        paged += [one.name for one in page.decisions]
        token = page.next_page_token
        if not token:
            break
        stolen = pb.ListDecisionsRequest(parent="tenants/demo", page_token=token)
        assert (await failure(api.policy.ListDecisions(stolen))).reason == "PAGE_TOKEN_INVALID"
    assert paged == everything


async def test_a_user_sees_the_decisions_of_its_own_sessions_only(hosted: Hosted) -> None:
    api, ann = hosted.api, hosted.caller("key-of-ann")
    persona = await api.persona()
    mine = await blocked(hosted, await api.session(persona, f"{persona}/users/ann"))
    theirs = await blocked(hosted, await api.session(persona, f"{persona}/users/bob"))
    assert (await ann.policy.GetDecision(pb.GetDecisionRequest(name=mine))).name == mine
    assert (await ann.policy.Explain(pb.PolicyServiceExplainRequest(name=mine))).statement.reason
    assert [one.name for one in await listed(ann, persona=persona)] == [mine]
    for call in (
        ann.policy.GetDecision(pb.GetDecisionRequest(name=theirs)),
        ann.policy.Explain(pb.PolicyServiceExplainRequest(name=theirs)),
    ):
        refused = await failure(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")


async def test_decisions_outlive_their_person_without_naming_them(hosted: Hosted) -> None:
    api = hosted.api
    persona = await api.persona()
    user = f"{persona}/users/ann"
    name = await blocked(hosted, await api.session(persona, user))
    await api.erase(user)
    kept = await api.policy.Explain(pb.PolicyServiceExplainRequest(name=name))
    assert (kept.decision.name, kept.decision.turn) == (name, "")
    assert kept.decision.reason_code == "IDENTITY_HUMAN_CLAIMED"
    gone = hosted.caller("key-of-ann").policy.GetDecision(pb.GetDecisionRequest(name=name))
    assert (await failure(gone)).reason == "RESOURCE_NOT_FOUND"


async def test_calls_with_wrong_names_are_refused(hosted: Hosted) -> None:
    api, other = hosted.api, hosted.caller("key-of-another-tenant")
    name = f"tenants/demo/decisions/{uuid4()}"
    persona = await api.persona()
    for call, reason in (
        (api.policy.GetDecision(pb.GetDecisionRequest(name=name)), "RESOURCE_NOT_FOUND"),
        (api.policy.Explain(pb.PolicyServiceExplainRequest(name=name)), "RESOURCE_NOT_FOUND"),
        (api.policy.GetDecision(pb.GetDecisionRequest(name=f"{persona}/decisions/1")), "NAME_INVALID"),
        (other.policy.GetDecision(pb.GetDecisionRequest(name=name)), "TENANT_MISMATCH"),
        (other.policy.Explain(pb.PolicyServiceExplainRequest(name=name)), "TENANT_MISMATCH"),
        (other.policy.ListDecisions(pb.ListDecisionsRequest(parent="tenants/demo")), "TENANT_MISMATCH"),
        (
            other.policy.ListDecisions(pb.ListDecisionsRequest(parent="tenants/other", persona=persona)),
            "TENANT_MISMATCH",
        ),
        (
            api.policy.ListDecisions(
                pb.ListDecisionsRequest(parent="tenants/demo", persona=persona, session=f"{persona}x/sessions/s")
            ),
            "INVALID_ARGUMENT",
        ),
    ):
        assert (await failure(call)).reason == reason


async def test_the_sdk_and_the_terminal_tell_the_same(hosted: Hosted) -> None:
    persona = await hosted.api.persona()
    name = await blocked(hosted, await hosted.api.session(persona))
    async with PersonaeClient(f"127.0.0.1:{hosted.port}", api_key=hosted.key) as client:
        explained = await client.policy.explain(name)
        assert (await client.policy.decision(name)) == explained.decision
        start = explained.decision.create_time.ToDatetime(tzinfo=UTC)
        found = [one.name async for one in client.policy.list_decisions("tenants/demo", persona=persona, start=start)]
        assert found == [name]
    code, shown = await run_cli(hosted, "decision", "show", name)
    assert code == 0, shown
    assert explained.statement.facts in shown.replace("\n", " ")
    assert "block at output identity (IDENTITY_HUMAN_CLAIMED)" in shown
    code, shown = await run_cli(hosted, "decision", "show", name.rsplit("/", 1)[1], "--json")
    assert json.loads(shown)["decision"]["name"] == name
    code, shown = await run_cli(hosted, "decision", "list", "--persona", persona)
    assert (code, name in shown) == (0, True)
