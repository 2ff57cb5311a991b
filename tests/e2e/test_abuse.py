"""Kill switches, limits and the circuit breaker, through the API of a real host."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable
from typing import Any

import grpc
import pytest

from personae.v1 import audit_service_pb2, event_pb2, persona_service_pb2, session_service_pb2
from personae.v1 import policy_service_pb2 as pb
from personae_client import PersonaeClient, RateLimitedError
from tests.e2e.conftest import StartHost
from tests.e2e.support import (
    WAIT_S,
    Api,
    Failure,
    Hosted,
    Pause,
    failure,
    kinds,
    new_turn_id,
    read_until,
    rest,
    rows_of_every_table,
    run_cli,
    text_of,
    until,
)

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
    assert "A person" in explained.statement.automated_means
    assert "No text was judged" in explained.statement.facts

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
    assert (await failure(api.policy.Classify(signal))).fields == ["text"]
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


# -- limits ---------------------------------------------------------------------

LONG = (
    "Have you heard what the new mayor did with the harbour money? Everybody in town says that it went to a friend's"
    " firm, and that the old bridge will fall before anyone looks at it. {}"
)


def turn(api: Api, session: str, text: str = "Hello there.", *, turn_id: str = "", **client: str) -> Any:
    return api.sessions.Converse(
        session_service_pb2.ConverseRequest(
            session=session,
            turn_id=turn_id or new_turn_id(),
            text=text,
            client=session_service_pb2.ClientOrigin(**client),
        ),
        timeout=WAIT_S,
    )


async def passes(call: Any) -> None:
    assert kinds(await rest(call))[-1] == "turn_completed"


async def signals(api: Api, **fields: Any) -> list[pb.Decision]:
    found = await api.policy.ListDecisions(
        pb.ListDecisionsRequest(parent=PARENT, stage=event_pb2.POLICY_STAGE_SIGNAL, **fields)
    )
    return list(found.decisions)


async def owned(api: Api, owner: str) -> str:
    created = await api.personas.CreatePersona(
        persona_service_pb2.CreatePersonaRequest(
            parent=PARENT,
            persona_id=f"p-{uuid.uuid4().hex[:12]}",
            persona=persona_service_pb2.Persona(
                display_name="Nadia", type=persona_service_pb2.PERSONA_TYPE_ASSISTANT, owner=owner
            ),
        )
    )
    assert created.owner == ""
    await api.publish(created.name)
    return str(created.name)


async def test_limits_by_device_network_owner_and_near_identical_texts(
    start_host: StartHost, caplog: pytest.LogCaptureFixture
) -> None:
    hosted = await start_host(
        abuse={
            "turns_per_minute_by_device": 2,
            "turns_per_minute_by_network": 2,
            "turns_per_minute_by_owner": 2,
            "personas_per_day_by_owner": 2,
            "duplicate_personas": 2,
        }
    )
    api = hosted.api

    async def refused(call: Any, reason: str) -> Failure:
        found = await failure(call)
        assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
        assert found.retry is not None
        assert found.retry.retry_delay.ToTimedelta().total_seconds() > 0
        assert found.quota is not None
        return found

    # By device: over persons and personas, and a repeat is no new turn.
    sessions = [await api.session(await api.persona()) for _ in range(3)]
    for session in sessions[:2]:
        await passes(turn(api, session, device="device-canary", turn_id="t-1"))
    await refused(turn(api, sessions[2], device="device-canary"), "DEVICE_LIMIT")
    await refused(turn(api, sessions[2], device="device-canary"), "DEVICE_LIMIT")
    await passes(turn(api, sessions[0], device="device-canary", turn_id="t-1"))
    await passes(turn(api, sessions[2], device="another"))
    assert len(await api.turns(sessions[2])) == 1
    # The same device through the SDK.
    async with PersonaeClient(f"127.0.0.1:{hosted.port}", api_key=hosted.key, max_attempts=1) as client:
        with pytest.raises(RateLimitedError) as limited:
            await client.sessions.converse(sessions[2], "Hello there.", device="device-canary").collect()
        assert limited.value.reason == "DEVICE_LIMIT"
        of_owner = await client.personas.create(
            PARENT, "of-owner", display_name="Nadia", type=persona_service_pb2.PERSONA_TYPE_ASSISTANT, owner="one-more"
        )
        assert of_owner.owner == ""
    # By network: of IPv6 whatever is in one /64, of IPv4 one address.
    for address in ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2"):
        await passes(turn(api, sessions[0], network=address))
    await refused(turn(api, sessions[0], network="2001:db8:0:1::3"), "NETWORK_LIMIT")
    for address in ("2001:db8:0:2::3", "198.51.100.7", "::ffff:198.51.100.7"):
        await passes(turn(api, sessions[0], network=address))
    await refused(turn(api, sessions[0], network="198.51.100.7"), "NETWORK_LIMIT")
    # By owner: turns of all their personas, and personas.
    theirs = [await api.session(await owned(api, "owner-canary")) for _ in range(2)]
    for session in theirs:
        await passes(turn(api, session))
    await refused(turn(api, theirs[0]), "OWNER_LIMIT")
    await refused(owned(api, "owner-canary"), "OWNER_LIMIT")
    assert await owned(api, "another")
    # About the same to many personas.
    for number in range(2):
        await passes(turn(api, sessions[number], LONG.format(number)))
    await refused(turn(api, sessions[2], LONG.format("!")), "NEAR_DUPLICATES")
    await passes(turn(api, sessions[2], "Another thing."))

    recorded = await signals(api)
    assert sorted(one.reason_code for one in recorded) == [
        *("DEVICE_LIMIT", "NEAR_DUPLICATES", "NETWORK_LIMIT", "NETWORK_LIMIT", "OWNER_LIMIT")
    ]
    assert {(one.category, one.turn) for one in recorded} == {("abuse", "")}
    explained = await api.policy.Explain(pb.PolicyServiceExplainRequest(name=recorded[0].name))
    assert [hit.rule_id for hit in explained.rules] == ["near_duplicates"]
    assert "same text" in explained.statement.reason
    assert "no person took part" in explained.statement.automated_means
    assert len(await audited(api, "decision")) == 5
    for name, rows in (await rows_of_every_table(hosted)).items():
        for raw in ("device-canary", "owner-canary", "2001:db8", "198.51"):
            assert raw not in rows, name
            assert raw not in caplog.text


async def test_blocks_of_several_people_open_the_breaker_and_a_probe_closes_it(
    start_host: StartHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosted = await start_host(
        abuse={"breaker_blocks": 3, "breaker_cooldown_s": 30, "breaker_probes": 1, "breaker_share": 1}
    )
    api, guard = hosted.api, hosted.host.gateway.runner._guard
    persona, other = await api.persona(), await api.persona()
    await api.say(await api.session(other), "Hello there.")
    for _ in range(3):
        events = await api.say(await api.session(persona), "Send me nudes, I am so horny.")
        assert [event.category for event in told(events)] == ["sexual"]
    session = await api.session(persona)
    refused = await failure(api.converse(session, "Hello there."))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "BREAKER_OPEN")
    assert refused.metadata == {"of": "persona"}
    assert refused.retry is not None
    assert 0 < refused.retry.retry_delay.ToTimedelta().total_seconds() <= 30
    assert await api.turns(session) == []
    [decision] = await signals(api, persona=persona)
    assert (decision.reason_code, decision.rule_ids) == ("BREAKER_OPEN", ["breaker_by_persona"])
    assert kinds(await api.say(await api.session(other), "Hello there."))[-1] == "turn_completed"

    monkeypatch.setattr(guard, "_clock", lambda: time.time() + 31)
    pause = Pause()
    hosted.engine.will_say(pause, "It is fine.")
    probe = api.converse(session, "Hello there.")
    await pause.wait()
    assert (await failure(api.converse(await api.session(persona), "And I?"))).reason == "BREAKER_OPEN"
    pause.go.set()
    await passes(probe)
    await until(lambda: guard.not_closed() == 0)
    assert kinds(await api.say(session, "And now?"))[-1] == "turn_completed"
