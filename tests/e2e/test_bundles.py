"""Bundles over gRPC: published, watched in shadow, rolled out by percentage and in full, rolled back under a stream."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import uuid
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from personae.v1 import audit_service_pb2, corpus_service_pb2, event_pb2, policy_service_pb2
from personae.v1 import bundle_pb2 as pb
from personae_runtime.policy.rollout import share
from tests.e2e.conftest import KEY, make_database, start_hosted
from tests.e2e.support import (
    Api,
    Hosted,
    Pause,
    api_key,
    failure,
    read_failure,
    read_until,
    rest,
    text_of,
    until,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

SIGNER = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
MASTER_KEY = base64.b64encode(b"m" * 32).decode()
SHADOW, PERCENTAGE, FULL = pb.ROLLOUT_STAGE_SHADOW, pb.ROLLOUT_STAGE_PERCENTAGE, pb.ROLLOUT_STAGE_FULL
BLOCK, ALLOW = event_pb2.POLICY_ACTION_BLOCK, event_pb2.POLICY_ACTION_ALLOW
TENANTS = ("demo", *(f"t{at}" for at in range(12)))
BICYCLE, UNICYCLE = "I ride a bicycle to work.", "I ride a unicycle to work."


def bundle(word: str, *, version: str = "1.0.0", more: str = "") -> bytes:
    """Rules that stop a word at input, output and content."""
    return f"""
version: {version}
extends: default
matchers: [{{id: wheels, kind: literal, max_chars: 20, literals: [{word}]}}]
templates: {{no_wheels: "We talk of feet only."}}
rules:
  - id: no_wheels
    stages: [input, output, content]
    when: '"wheels" in matches'
    action: block
    category: brand
    reason_code: NO_WHEELS
    template: no_wheels
    description: No talk of {word}s.
    tests: [{{text: my {word}, match: true}}, {{text: my feet, match: false}}]
{more}""".encode()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def two(shared_host: Hosted, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Hosted, Hosted]]:
    """Two hosts on one ledger, which take what SIGNER signed."""
    trusted = base64.b64encode(SIGNER.public_key().public_bytes_raw()).decode()
    dsn = await make_database(shared_host)
    keys = tuple(api_key(f"{KEY}-{tenant}", id=f"key-{tenant}", tenant=tenant) for tenant in TENANTS)
    async with AsyncExitStack() as stack:
        yield tuple(
            [
                await start_hosted(
                    stack,
                    tmp_path_factory.mktemp(f"bundles-{at}"),
                    ledger={"dsn": dsn, "master_key": MASTER_KEY},
                    policy={"trusted_keys": [trusted], "allow_unsigned": False},
                    auth={"api_keys": keys},
                )
                for at in range(2)
            ]
        )


class Tenant:
    """A tenant of its own for each test, through either host."""

    def __init__(self, number: int, hosts: tuple[Hosted, Hosted]) -> None:
        self.id = TENANTS[number]
        self.name = f"tenants/{self.id}"
        self.key = f"{KEY}-{self.id}"
        self.hosts = hosts
        self.apis = [hosted.caller(self.key) for hosted in hosts]
        self.api: Api = self.apis[0]
        self.made: list[str] = []

    async def publish(self, content: bytes, signature: bytes | None = None, **fields: Any) -> pb.Bundle:
        made: pb.Bundle = await self.api.policy.PublishBundle(
            pb.PublishBundleRequest(
                parent=self.name,
                content=content,
                signature=SIGNER.sign(content) if signature is None else signature,
                **fields,
            )
        )
        return made

    async def set(self, bundle: str, stage: Any, percent: int = 0, **fields: Any) -> pb.Rollout:
        state: pb.Rollout = await self.api.policy.SetRollout(
            pb.SetRolloutRequest(name=f"{self.name}/rollout", bundle=bundle, stage=stage, percent=percent, **fields)
        )
        return state

    async def back(self, **fields: Any) -> pb.Rollout:
        state: pb.Rollout = await self.api.policy.RollbackRollout(
            pb.RollbackRolloutRequest(name=f"{self.name}/rollout", **fields)
        )
        return state

    async def state(self, host: int = 0) -> pb.Rollout:
        found: pb.Rollout = await self.apis[host].policy.GetRollout(pb.GetRolloutRequest(name=f"{self.name}/rollout"))
        return found

    async def classify(self, text: str, *, host: int = 0, **fields: Any) -> policy_service_pb2.ClassifyResponse:
        request = policy_service_pb2.ClassifyRequest(
            parent=self.name, text=text, **{"stage": event_pb2.POLICY_STAGE_INPUT, **fields}
        )
        found: policy_service_pb2.ClassifyResponse = await self.apis[host].policy.Classify(request)
        return found

    async def follows(self, version: str, host: int = 1) -> None:
        """Return when the other host judges by a version, of which only the ledger tells it."""
        policies = self.hosts[host].host.gateway.policies
        await until(lambda: policies.of(self.id).version == version)

    async def shadows(self, name: str, **fields: Any) -> list[pb.ShadowDecision]:
        for hosted in self.hosts:
            await hosted.host.gateway.runner.settle_shadows()
        listed = await self.api.policy.ListShadowDecisions(pb.ListShadowDecisionsRequest(parent=name, **fields))
        return list(listed.shadow_decisions)


@pytest.fixture
def tenant(two: tuple[Hosted, Hosted], request: pytest.FixtureRequest) -> Tenant:
    """One that no other test has."""
    taken = request.session.stash.setdefault(_TAKEN, [])
    taken.append(None)
    for hosted in two:
        hosted.engine.clear()
    return Tenant(len(taken), two)


_TAKEN = pytest.StashKey[list[None]]()


def told(events: list[event_pb2.SessionEvent]) -> list[str]:
    return [event.policy_event.reason_code for event in events if event.HasField("policy_event")]


async def test_a_bundle_is_watched_rolled_out_and_rolled_back_on_every_host(tenant: Tenant) -> None:
    api, other = tenant.apis
    own = (await tenant.classify(UNICYCLE)).bundle_version
    made = await tenant.publish(bundle("unicycle"))
    assert made.key_id
    assert made.version.startswith("1.0.0+sha256:")
    assert (await tenant.classify(UNICYCLE)).bundle_version == own, "publishing alone changes nothing"
    session = await api.session(await api.persona(tenant=tenant.id))

    # Shadow: recorded, never acted on.
    state = await tenant.set(made.name, SHADOW)
    assert (state.candidate, state.stage, state.candidate_version) == (made.name, SHADOW, made.version)
    assert told(await api.say(session, UNICYCLE)) == []
    tenant.hosts[0].engine.will_say("You could try. A unicycle is fun! ", "And it is light.")
    said = await api.say(session, "What should I ride?")
    assert "unicycle is fun! And it is light." in text_of(said)
    watched = await tenant.shadows(made.name)
    assert [(one.stage, one.live_action, one.action, list(one.rule_ids)) for one in watched] == [
        (event_pb2.POLICY_STAGE_OUTPUT, ALLOW, BLOCK, ["no_wheels"]),
        (event_pb2.POLICY_STAGE_INPUT, ALLOW, BLOCK, ["no_wheels"]),
    ]
    assert all(one.differs and one.live_version == own for one in watched)
    state = await tenant.state()
    assert (state.shadow_decisions, state.shadow_differing) == (2, 2)

    # A share of sessions, the same ones on every host.
    bundle_id = made.name.rsplit("/", 1)[1]
    await tenant.set(made.name, PERCENTAGE, 50)
    await until(lambda: tenant.hosts[1].host.gateway.policies.get(tenant.id) is not None)
    inforce = tenant.hosts[1].host.gateway.policies
    await until(lambda: inforce.get(tenant.id).percent == 50)  # type: ignore[union-attr]
    persona = await api.persona(tenant=tenant.id)
    sessions = [await api.session(persona) for _ in range(6)]
    while len({share(bundle_id, one) < 0.5 for one in sessions}) < 2:
        sessions.append(await api.session(persona))
    for one in sessions:
        expected = ["NO_WHEELS"] if share(bundle_id, one) < 0.5 else []
        assert told(await api.say(one, UNICYCLE)) == expected
        assert told(await other.say(one, UNICYCLE)) == expected

    # All of them, while a stream is open: it ends with what it began with.
    pause = Pause()
    tenant.hosts[0].engine.will_say("It rolls well. ", pause, "My unicycle is red. And fast.")
    untouched = next(one for one in sessions if share(bundle_id, one) >= 0.5)
    call = api.converse(untouched, "How does it roll?")
    await read_until(call, "text_delta")
    state = await tenant.set(made.name, FULL)
    assert (state.stable, state.candidate, state.stable_version) == (made.name, "", made.version)
    assert (await tenant.classify(UNICYCLE)).action == BLOCK
    await tenant.follows(made.version)
    assert (await tenant.classify(UNICYCLE, host=1)).action == BLOCK
    pause.go.set()
    events = await rest(call)
    assert "My unicycle is red. And fast." in text_of(events)
    assert told(events) == []
    assert told(await api.say(untouched, UNICYCLE)) == ["NO_WHEELS"]

    # Back, while a stream is open that the bundle judges: it still does.
    pause = Pause()
    tenant.hosts[0].engine.will_say("It rolls well. ", pause, "My unicycle is red.")
    call = api.converse(untouched, "How does it roll?")
    await read_until(call, "text_delta")
    state = await tenant.back()
    assert (state.stable, state.stable_version) == ("", own)
    pause.go.set()
    assert told(await rest(call)) == ["NO_WHEELS"]
    assert told(await api.say(untouched, UNICYCLE)) == []
    await tenant.follows(own)
    assert told(await other.say(untouched, UNICYCLE)) == []
    assert (await failure(tenant.back())).reason == "NOTHING_TO_ROLL_BACK"

    # Each of it is in the audit log, without the names of keys.
    listed = await api.audit.ListAuditEntries(
        audit_service_pb2.ListAuditEntriesRequest(parent=tenant.name, page_size=200)
    )
    await api.audit.GetCheckpoint(audit_service_pb2.GetCheckpointRequest(parent=tenant.name))
    listed = await api.audit.ListAuditEntries(
        audit_service_pb2.ListAuditEntriesRequest(parent=tenant.name, page_size=200)
    )
    bodies = [json.loads(one.entry_json) for one in listed.audit_entries]
    found = [one for one in bodies if one["kind"].startswith("bundle_")]
    assert [one["kind"] for one in found] == ["bundle_published", *["bundle_rollout"] * 3, "bundle_rollback"]
    assert [one["body"].get("stage") for one in found[1:4]] == ["SHADOW", "PERCENTAGE", "FULL"]
    assert {one["body"]["bundle"] for one in found} == {bundle_id, ""}
    assert f"key-{tenant.id}" not in str(found)


async def test_what_is_not_signed_does_not_load_or_fails_its_tests_changes_nothing(tenant: Tenant) -> None:
    good = bundle("unicycle")
    changed = good + b"# changed\n"
    for signature in (SIGNER.sign(good), b"", Ed25519PrivateKey.generate().sign(changed), b"short"):
        found = await failure(tenant.publish(changed, signature))
        assert (found.code, found.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BUNDLE_NOT_TRUSTED")
    failing = good.replace(b"my feet, match: false", b"my feet, match: true}, {text: x, match: false")
    found = await failure(tenant.publish(failing))
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BUNDLE_INVALID")
    assert "rule 'no_wheels': tests[2] at stage input: 'my feet' gave False, expected True" in found.message
    for broken, why in (
        (b"version: [}", "not YAML"),
        (good.replace(b"extends: default\n", b""), "refusal"),
        (good.replace(b"no_wheels", b"asked_if_human"), "belongs to a protocol"),
    ):
        found = await failure(tenant.publish(broken))
        assert (found.reason, why in found.message) == ("BUNDLE_INVALID", True), found
    listed = await tenant.api.policy.ListBundles(pb.ListBundlesRequest(parent=tenant.name))
    assert list(listed.bundles) == []
    made = await tenant.publish(good)
    assert (await tenant.publish(good)).name == made.name, "the same content is the same bundle"
    read = await tenant.api.policy.GetBundle(pb.GetBundleRequest(name=made.name))
    assert (read.content, read.version) == (good, made.version)
    listed = await tenant.api.policy.ListBundles(pb.ListBundlesRequest(parent=tenant.name))
    assert [(one.name, one.content) for one in listed.bundles] == [(made.name, b"")]


async def test_a_rollout_that_makes_no_sense_is_refused_and_a_stale_etag_too(tenant: Tenant) -> None:
    made = await tenant.publish(bundle("unicycle"))
    unknown = f"{tenant.name}/bundles/{'0' * 32}"
    for call, reason in (
        (tenant.set(unknown, FULL), "RESOURCE_NOT_FOUND"),
        (tenant.set("tenants/demo/bundles/" + "0" * 32, FULL), "TENANT_MISMATCH"),
        (tenant.set(made.name, PERCENTAGE, 0), "INVALID_ARGUMENT"),
        (tenant.set(made.name, FULL, 5), "INVALID_ARGUMENT"),
        (tenant.set("", SHADOW), "INVALID_ARGUMENT"),
        (tenant.set("", FULL), "BUNDLE_IN_FORCE"),
        (tenant.set(made.name, FULL, etag="17000"), "ETAG_MISMATCH"),
        (tenant.back(), "NOTHING_TO_ROLL_BACK"),
    ):
        assert (await failure(call)).reason == reason
    assert (await tenant.state()).etag == "0"
    first = await tenant.set(made.name, SHADOW, etag="0")
    assert (await failure(tenant.set(made.name, FULL, etag="0"))).reason == "ETAG_MISMATCH"
    request_id = str(uuid.uuid4())
    second = await tenant.set(made.name, FULL, etag=first.etag, request_id=request_id)
    assert await tenant.set(made.name, FULL, etag=first.etag, request_id=request_id) == second
    assert (await failure(tenant.set(made.name, PERCENTAGE, 5))).reason == "BUNDLE_IN_FORCE"
    # A candidate is dropped first, then what is in force goes.
    newer = await tenant.publish(bundle("bicycle", version="2.0.0"))
    await tenant.set(newer.name, PERCENTAGE, 20)
    assert (await tenant.back()).stable == made.name
    await tenant.set(newer.name, FULL)
    assert [(await tenant.back()).stable for _ in range(2)] == [made.name, ""]
    assert (await failure(tenant.back())).reason == "NOTHING_TO_ROLL_BACK"
    nobody = tenant.hosts[0].caller("nobody")
    found = await failure(nobody.policy.GetRollout(pb.GetRolloutRequest(name=f"{tenant.name}/rollout")))
    assert found.reason == "CREDENTIALS_INVALID"


async def test_rules_at_content_and_signal_are_reached_and_scopes_limit_them(tenant: Tenant) -> None:
    api = tenant.api
    persona = await api.persona(tenant=tenant.id)
    more = f"""
  - id: too_fast
    stages: [signal]
    scope: {{tenants: [{tenant.id}], revisions: [{persona}/revisions/1]}}
    when: 'signals["turns_per_minute"] > 2.0'
    action: block
    category: abuse
    reason_code: TOO_FAST
    template: no_wheels
    description: Nobody types that fast.
    tests: [{{signals: {{turns_per_minute: 3}}, match: true}}, {{signals: {{turns_per_minute: 2}}, match: false}}]
"""
    await tenant.set((await tenant.publish(bundle("unicycle", more=more))).name, FULL)
    # Content: by Classify, and where documents are stored.
    assert (await tenant.classify(UNICYCLE, stage=event_pb2.POLICY_STAGE_CONTENT)).rules[0].rule_id == "no_wheels"
    document = corpus_service_pb2.Document(title="On wheels", text=UNICYCLE)
    found = await failure(
        api.corpus.CreateDocument(corpus_service_pb2.CreateDocumentRequest(parent=persona, document=document))
    )
    assert (found.reason, found.metadata["reason_code"]) == ("DOCUMENT_REFUSED_BY_POLICY", "NO_WHEELS")
    # Signal: by Classify, and by turns that come too fast, of the revision in scope only.
    signal = {"stage": event_pb2.POLICY_STAGE_SIGNAL, "signals": {"turns_per_minute": 9.0}}
    assert (await tenant.classify("", persona=f"{persona}/revisions/1", **signal)).reason_code == "TOO_FAST"
    assert not (await tenant.classify("", persona=f"{persona}/revisions/2", **signal)).rules
    for wrong in ({"text": "", "stage": event_pb2.POLICY_STAGE_INPUT}, {"text": "x", **signal}):
        assert (await failure(tenant.classify(**wrong))).reason == "INVALID_ARGUMENT"
    session = await api.session(persona)
    assert [told(await api.say(session, f"Hello {at}.")) for at in range(3)] == [[], [], ["TOO_FAST"]]
    turns = await api.turns(session)
    assert [one.reply_text for one in turns][2] == "We talk of feet only."
    [decision] = (await api.policy.ListDecisions(policy_service_pb2.ListDecisionsRequest(parent=tenant.name))).decisions
    explained = await api.policy.Explain(policy_service_pb2.PolicyServiceExplainRequest(name=decision.name))
    assert (dict(explained.signals), decision.stage) == ({"turns_per_minute": 3.0}, event_pb2.POLICY_STAGE_SIGNAL)
    assert "turns_per_minute was 3" in explained.statement.facts
    await api.publish(persona)
    fresh = await api.session(persona)
    assert [told(await api.say(fresh, f"Hello {at}.")) for at in range(3)] == [[], [], []]


async def test_a_host_that_cannot_load_what_is_in_force_lets_nobody_through(tenant: Tenant, tmp_path: Path) -> None:
    made = await tenant.publish(bundle("unicycle"))
    await tenant.set(made.name, FULL)
    async with AsyncExitStack() as stack:
        # It trusts nobody.
        strict = await start_hosted(
            stack,
            tmp_path,
            ledger={"dsn": tenant.hosts[0].host.stores.database.dsn, "master_key": MASTER_KEY},
            policy={"allow_unsigned": False},
            auth={"api_keys": (api_key(tenant.key, id="k", tenant=tenant.id),)},
            memory={"enabled": False},
        )
        api = strict.caller(tenant.key)
        persona = await api.persona(tenant=tenant.id)
        found = await failure(api.session(persona))
        assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "POLICY_UNAVAILABLE")
        session = await tenant.api.session(persona)
        assert (await failure(api.say(session, "Hello."))).reason == "POLICY_UNAVAILABLE"
        state = await api.policy.GetRollout(pb.GetRolloutRequest(name=f"{tenant.name}/rollout"))
        assert "trusted" in state.problem
        # What ran before goes on when a bundle comes that can't be loaded.
        await tenant.back()
        policies = strict.host.gateway.policies
        await until(lambda: not policies.problem(tenant.id))
        own = policies.of(tenant.id).version
        await tenant.set(made.name, FULL)
        await until(lambda: bool(strict.host.gateway.keeper.problem(tenant.id)))
        assert policies.of(tenant.id).version == own
        assert told(await api.say(session, "Hello again.")) == []
        assert "trusted" in (await api.policy.GetRollout(pb.GetRolloutRequest(name=f"{tenant.name}/rollout"))).problem


async def test_changes_at_once_through_two_hosts_leave_both_as_the_ledger_says(two: tuple[Hosted, Hosted]) -> None:
    tenants, refusals = [Tenant(number, two) for number in (10, 11)], set[str]()
    for one in tenants:
        one.made = [(await one.publish(bundle(word))).name for word in ("unicycle", "bicycle")]

    async def change(one: Tenant, host: int, made: str) -> None:
        request = pb.SetRolloutRequest(name=f"{one.name}/rollout", bundle=made, stage=FULL)
        try:
            await one.apis[host].policy.SetRollout(request)
        except grpc.aio.AioRpcError as error:
            refusals.add(read_failure(error).reason)

    await asyncio.gather(
        *(change(one, host, made) for _ in range(3) for one in tenants for host in (0, 1) for made in one.made)
    )
    assert refusals <= {"BUNDLE_IN_FORCE"}
    for one in tenants:
        state = await one.state()
        assert state.stable in one.made
        for host in (0, 1):
            await one.follows(state.stable_version, host)


async def test_recorded_traffic_is_judged_again_by_words_and_by_signals(tenant: Tenant) -> None:
    api = tenant.api
    persona = await api.persona(tenant=tenant.id)
    session = await api.session(persona)
    await api.say(session, UNICYCLE)
    tenant.hosts[0].engine.will_say("Of course I'm a real person. I have a bicycle.")
    assert told(await api.say(session, "Who are you?")) == ["IDENTITY_HUMAN_CLAIMED"]
    without = bundle("unicycle", more="")

    async def replay(new: pb.BundleSource, **fields: Any) -> pb.BundleDiff:
        diff: pb.BundleDiff = await api.policy.ReplayBundle(
            pb.ReplayBundleRequest(parent=tenant.name, old=pb.BundleSource(in_force=True), new=new, **fields)
        )
        return diff

    same = await replay(pb.BundleSource(shipped=True))
    assert (same.changed, same.by_text, same.by_signals) == (0, 3, 1)
    diff = await replay(pb.BundleSource(content=without))
    [change] = diff.changes
    assert (change.stage, change.old_action, change.new_action) == (event_pb2.POLICY_STAGE_INPUT, ALLOW, BLOCK)
    assert (change.new_rule_id, change.count, list(change.examples)) == ("no_wheels", 1, [change.examples[0]])
    assert change.examples[0].startswith(f"{session}/turns/")
    assert [(one.rule_id, one.old_count, one.new_count) for one in diff.rules] == [("no_wheels", 0, 1)]
    # Of the reply that was stopped only signals are left, and a new matcher might have been in it.
    assert dict(diff.undetermined) == {"asks about matchers that are new or other ones": 1}
    assert "unicycle" not in str(diff).replace("no_wheels", "")
    found = await failure(replay(pb.BundleSource(content=b"rules: 5")))
    assert found.reason == "BUNDLE_INVALID"


_COMMANDS = """
import json, sys
from typer.testing import CliRunner
from personae_serve.cli import build_app

app, said = build_app(), []
for words in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, ["policy", *words])
    said.append([result.exit_code, result.output])
print(json.dumps(said))
"""


async def test_the_command_signs_publishes_compares_rolls_out_and_back(tenant: Tenant, tmp_path: Path) -> None:
    file, key = tmp_path / "own.yaml", tmp_path / "key.pem"
    file.write_bytes(bundle("unicycle"))
    key.write_bytes(SIGNER.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    traffic = tmp_path / "traffic.jsonl"
    traffic.write_text(json.dumps({"stage": "input", "text": UNICYCLE}) + "\n")
    name = (await tenant.publish(bundle("unicycle"))).name
    await tenant.set(name, SHADOW)
    await tenant.api.say(await tenant.api.session(await tenant.api.persona(tenant=tenant.id)), UNICYCLE)
    await tenant.shadows(name)
    server = ["--tenant", tenant.id, "--target", f"127.0.0.1:{tenant.hosts[0].port}", "--api-key", tenant.key]
    commands = [
        ["sign", str(file), "--key", str(key)],
        ["test", str(file)],
        ["lint", str(file), "--json"],
        ["diff", "shipped", str(file), "--traffic", str(traffic), "--json"],
        ["publish", str(file), *server],
        ["status", *server],
        ["shadow", name, *server],
        ["replay", str(file), "--json", *server],
        ["rollout", name.rsplit("/", 1)[1], "--full", *server],
        ["rollout", name, "--full", "--shadow", *server],
        ["rollback", *server],
        ["rollback", *server],
    ]
    # One process for all of them: most of a command's time is imports.
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _COMMANDS, json.dumps(commands), stdout=PIPE, stderr=PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "160"},
    )  # fmt: skip
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    results = json.loads(output)
    assert [code for code, _ in results] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1], results
    shown = [text for _, text in results]
    assert (tmp_path / "own.yaml.sig").is_file()
    assert "0 failed" in shown[1]
    assert {one["code"] for one in json.loads(shown[2])["findings"]} == {"NO_LEGAL_BASIS"}
    for diff in (shown[3], shown[7]):
        assert [one["new_rule_id"] for one in json.loads(diff)["changes"]] == ["no_wheels"]
    assert shown[4].startswith(f"{name}  1.0.0+sha256:")
    assert "signed by" in shown[4]
    assert f"candidate {name}" in shown[5]
    assert "in shadow 1 decisions, 1 of them differ" in shown[5]
    assert "input  allow, would be block (NO_WHEELS)  no_wheels" in shown[6]
    assert f"stable    {name}" in shown[8]
    assert "stable    own" in shown[10]
    assert "as it did before anything was rolled out" in shown[11]
    assert (await tenant.classify(UNICYCLE)).action == ALLOW
