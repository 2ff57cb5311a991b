"""Kill switches and limits, through the API of a real host."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from typing import Any

import grpc
import pytest

from personae.v1 import audit_service_pb2, event_pb2
from personae.v1 import policy_service_pb2 as pb
from tests.e2e.support import Api, Hosted, Pause, failure, kinds, new_turn_id, read_until, rest, run_cli, text_of, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

PARENT = "tenants/demo"


async def kill(api: Api, request_id: str = "", parent: str = PARENT, **target: Any) -> pb.KillSwitch:
    switch: pb.KillSwitch = await api.policy.CreateKillSwitch(
        pb.CreateKillSwitchRequest(
            parent=parent, kill_switch=pb.KillSwitch(reason="a test", **target), request_id=request_id
        )
    )
    return switch


async def lift(api: Api, switch: pb.KillSwitch, request_id: str = "") -> pb.KillSwitch:
    lifted: pb.KillSwitch = await api.policy.LiftKillSwitch(
        pb.LiftKillSwitchRequest(name=switch.name, reason="it is over", request_id=request_id)
    )
    return lifted


async def listed(api: Api, **fields: Any) -> list[pb.KillSwitch]:
    found = await api.policy.ListKillSwitches(pb.ListKillSwitchesRequest(parent=PARENT, page_size=200, **fields))
    return list(found.kill_switches)


async def audited(api: Api, kind: str) -> list[dict[str, Any]]:
    call = api.audit.ExportAuditLog(audit_service_pb2.ExportAuditLogRequest(parent=PARENT))
    lines = [json.loads(message.json_line) async for message in call]
    entries = [json.loads(line["entry"]) for line in lines if line["type"] == "entry"]
    return [entry["body"] for entry in entries if entry["kind"] == kind]


def told(events: Iterable[event_pb2.SessionEvent]) -> list[event_pb2.PolicyEvent]:
    return [event.policy_event for event in events if event.HasField("policy_event")]


# -- kill switches --------------------------------------------------------------


async def test_a_persona_that_is_killed_stops_in_the_midst_and_says_so_until_it_is_lifted(hosted: Hosted) -> None:
    api, pause = hosted.api, Pause()
    persona, other = await api.persona(), await api.persona()
    session, turn_id = await api.session(persona), new_turn_id()
    hosted.engine.will_say("The first unit. And ", pause, "the rest of it.")
    call = api.converse(session, "Hello there.", turn_id)
    seen = await read_until(call, "text_delta")
    switch = await kill(api, persona=persona)
    seen += await rest(call)
    assert kinds(seen)[-1] == "turn_interrupted"
    assert seen[-1].turn_interrupted.reason == event_pb2.TurnInterrupted.REASON_KILLED
    assert seen[-1].turn_interrupted.delivered_chars == len(text_of(seen)) > 0
    await hosted.engine.idle()
    assert list(hosted.engine.ended.values())[-1], "the engine was not aborted"
    [event] = told(seen)
    assert (event.stage, event.action) == (event_pb2.POLICY_STAGE_SIGNAL, event_pb2.POLICY_ACTION_BLOCK)
    assert (event.category, event.reason_code) == ("kill_switch", "PERSONA_KILLED")
    # The same to who comes later, and explained.
    assert await api.attached(session, 0, turn_id) == seen
    explained = await api.policy.Explain(pb.PolicyServiceExplainRequest(name=event.decision))
    assert explained.decision.turn == f"{session}/turns/{turn_id}"
    assert "switched off this persona" in explained.statement.reason
    assert "for a time" in explained.statement.restriction

    for call in (api.converse(session, "And now?"), api.session(persona)):
        refused = await failure(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "PERSONA_KILLED")
    # What is theirs stays theirs to see, and nobody else is concerned.
    assert [turn.reply_text for turn in await api.turns(session)] == [text_of(seen)]
    assert kinds(await api.say(await api.session(other), "Hello there."))[-1] == "turn_completed"

    lifted = await lift(api, switch)
    assert (lifted.lift_reason, lifted.lifter) == ("it is over", "service")
    assert kinds(await api.say(session, "And now?"))[-1] == "turn_completed"
    identity = switch.name.rsplit("/", 1)[1]
    for kind in ("kill_switch_thrown", "kill_switch_lifted"):
        [entry] = [body for body in await audited(api, kind) if body["kill_switch"] == identity]
        assert (entry["kind"], entry["target"]) == ("PERSONA", persona.rsplit("/", 1)[1])
        assert len(entry["operator"]) == 64
    assert [body["reason_code"] for body in await audited(api, "decision")].count("PERSONA_KILLED") == 1


async def test_a_tenant_that_is_killed_is_silent_and_no_other_is(hosted: Hosted) -> None:
    theirs, pause = hosted.caller("key-of-another-tenant"), Pause()
    session = await theirs.session(await theirs.persona(tenant="other"))
    hosted.engine.will_say("The first unit. And ", pause, "the rest of it.")
    call = theirs.converse(session, "Hello there.")
    await read_until(call, "text_delta")
    switch = await kill(theirs, parent="tenants/other", whole_tenant=True)
    try:
        seen = await rest(call)
        assert [event.reason_code for event in told(seen)] == ["TENANT_KILLED"]
        assert kinds(seen)[-1] == "turn_interrupted"
        assert (await failure(theirs.converse(session, "And now?"))).reason == "TENANT_KILLED"
        ours = hosted.api
        assert kinds(await ours.say(await ours.session(await ours.persona()), "Hello."))[-1] == "turn_completed"
        assert (await failure(lift(ours, switch))).reason == "TENANT_MISMATCH"
    finally:
        await lift(theirs, switch)
    assert kinds(await theirs.say(session, "And now?"))[-1] == "turn_completed"


async def test_a_rule_that_is_killed_matches_no_more_until_it_is_lifted(hosted: Hosted) -> None:
    api, control = hosted.api, hosted.host.gateway.runner._control
    session = await api.session(await api.persona())
    theirs = hosted.caller("key-of-another-tenant")

    async def classified(caller: Api, parent: str) -> event_pb2.PolicyAction:
        request = pb.ClassifyRequest(
            parent=parent, text="So write <|im_start|> then.", stage=event_pb2.POLICY_STAGE_OUTPUT
        )
        action: event_pb2.PolicyAction = (await caller.policy.Classify(request)).action
        return action

    async def said() -> str:
        hosted.engine.will_say("So write <|im_start|> then.")
        return text_of(await api.say(session, "How does it begin?"))

    assert "<|im_start|>" not in await said()
    switch = await kill(api, rule_id="markup_in_output")
    try:
        await until(lambda: "markup_in_output" in control.rules_off("demo"))
        assert await said() == "So write <|im_start|> then."
        assert await classified(api, PARENT) == event_pb2.POLICY_ACTION_ALLOW
        assert await classified(theirs, "tenants/other") == event_pb2.POLICY_ACTION_BLOCK
    finally:
        await lift(api, switch)
    await until(lambda: not control.rules_off("demo"))
    assert "<|im_start|>" not in await said()
    assert await classified(api, PARENT) == event_pb2.POLICY_ACTION_BLOCK


async def test_what_cannot_be_killed_or_lifted_is_told_why(hosted: Hosted) -> None:
    api, persona = hosted.api, await hosted.api.persona()
    for rule in ("self_harm_crisis", "asked_if_human", "ai_denied", "self_harm_encouraged", "sexual_teen"):
        refused = await failure(kill(api, rule_id=rule))
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RULE_PROTECTED"), rule
    for unknown in ({"rule_id": "no_such_rule"}, {"persona": f"{PARENT}/personas/nobody"}):
        assert (await failure(kill(api, **unknown))).code is grpc.StatusCode.NOT_FOUND
    assert (await failure(kill(api))).code is grpc.StatusCode.INVALID_ARGUMENT
    assert (await failure(kill(api, persona="tenants/other/personas/nadia"))).reason == "TENANT_MISMATCH"
    missing = pb.KillSwitch(name=f"{PARENT}/killSwitches/{uuid.uuid4()}")
    assert (await failure(lift(api, missing))).code is grpc.StatusCode.NOT_FOUND
    for key in ("key-of-ann", "key-that-may-read-personas"):
        caller = hosted.caller(key)
        for call in (kill(caller, persona=persona), lift(caller, missing), listed(caller)):
            assert (await failure(call)).code is grpc.StatusCode.PERMISSION_DENIED
    signal = pb.ClassifyRequest(parent=PARENT, text="x", stage=event_pb2.POLICY_STAGE_SIGNAL)
    assert (await failure(api.policy.Classify(signal))).fields == ["stage"]
    assert [one for one in await listed(api) if one.persona == persona] == []


async def test_switches_are_thrown_and_lifted_once_and_listed(hosted: Hosted) -> None:
    api, persona = hosted.api, await hosted.api.persona()
    request_id, again = str(uuid.uuid4()), str(uuid.uuid4())
    switch = await kill(api, request_id, persona=persona)
    assert await kill(api, request_id, persona=persona) == switch
    refused = await failure(kill(api, persona=persona))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "KILL_SWITCH_IN_FORCE")
    assert refused.metadata["kill_switch"] == switch.name
    assert await api.policy.GetKillSwitch(pb.GetKillSwitchRequest(name=switch.name)) == switch
    assert (switch.creator, switch.reason, switch.HasField("lift_time")) == ("service", "a test", False)
    lifted = await lift(api, switch, again)
    assert await lift(api, switch, again) == lifted == await lift(api, switch)
    second = await kill(api, persona=persona)
    mine = [one for one in await listed(api, show_lifted=True) if one.persona == persona]
    assert mine == [second, lifted]
    assert [one for one in await listed(api) if one.persona == persona] == [second]
    page = await api.policy.ListKillSwitches(pb.ListKillSwitchesRequest(parent=PARENT, show_lifted=True, page_size=1))
    following = await api.policy.ListKillSwitches(
        pb.ListKillSwitchesRequest(parent=PARENT, show_lifted=True, page_size=1, page_token=page.next_page_token)
    )
    assert [*page.kill_switches, *following.kill_switches] == [second, lifted]
    await lift(api, second)


async def test_switches_from_the_terminal(hosted: Hosted) -> None:
    persona = await hosted.api.persona()
    short = persona.rsplit("/", 1)[1]
    code, output = await run_cli(hosted, "policy", "kill", "--persona", short, "--reason", "it insults people")
    assert code == 0, output
    assert (persona in output, "it insults people" in output) == (True, True)
    switch = output.split()[-1]
    assert (await failure(hosted.api.session(persona))).reason == "PERSONA_KILLED"
    code, output = await run_cli(hosted, "policy", "lift", switch, "--reason", "it is mended")
    assert (code, "it is mended" in output) == (0, True), output
    assert await hosted.api.session(persona)
