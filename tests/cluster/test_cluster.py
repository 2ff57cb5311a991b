"""A cluster by the command line, through gRPC: what users and operators can do with it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from personae.v1 import event_pb2, memory_service_pb2, persona_service_pb2, policy_service_pb2
from tests.cluster.support import Cluster, running
from tests.e2e.support import Api, Failure, failure, kinds, new_user, read_until, rest, text_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400), pytest.mark.model]

SECTIONS = """
[gateway]
port = PORT
max_accept_wait_s = 60
drain_grace_s = 5
[memory]
dense = false
[policy]
scorers = ["ngram", "injection", "cascade"]
scorer_timeout_ms = 20000
[sessions]
turns_per_minute = 1000000
[cluster]
dashboard = false
guard_scorers = ["ngram", "cascade"]
[cluster.gateway]
min_replicas = 2
max_replicas = 2
num_cpus = 0.1
[[cluster.models]]
kind = "synthetic"
model = "swift"
parallel = 4
max_waiting = 2
synthetic_ttft_ms = 10
synthetic_itl_ms = 5
synthetic_tokens = 40
min_replicas = 1
max_replicas = 1
num_cpus = 0.1
[[cluster.models]]
kind = "synthetic"
model = "slow"
parallel = 2
max_waiting = 0
synthetic_ttft_ms = 10
synthetic_itl_ms = 1000
synthetic_tokens = 600
min_replicas = 0
max_replicas = 1
num_cpus = 0.1
downscale_delay_s = 600
[cluster.memory]
num_cpus = 0.1
[cluster.guard]
num_cpus = 0.1
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="personae-cluster-", ignore_cleanup_errors=True) as folder:
        async with running(Path(folder), SECTIONS) as found:
            yield found


@pytest_asyncio.fixture(loop_scope="module")
async def api(cluster: Cluster) -> AsyncIterator[Api]:
    async with cluster.channel() as channel:
        yield Api(channel, cluster.key)


async def persona_of(api: Api, model: str) -> str:
    name = await api.persona(publish=False)
    await api.personas.PublishRevision(
        persona_service_pb2.PublishRevisionRequest(
            parent=name,
            definition=persona_service_pb2.PersonaDefinition(
                card="You are Nadia.", generation=persona_service_pb2.GenerationConfig(model=model)
            ),
        )
    )
    return name


async def test_a_turn_runs_through_gateway_model_memory_and_guard(api: Api) -> None:
    persona = await api.persona()
    user = new_user(persona)
    await api.remember(user, "My green Brompton is called Kermit.")
    while True:
        listed = await api.memories.ListMemories(memory_service_pb2.ListMemoriesRequest(parent=user))
        if not listed.pending_index_count:
            break
    session = await api.session(persona, user)
    events = await api.say(session, "What is my green Brompton called?")
    assert kinds(events)[0] == "turn_started"
    [cited] = [event.memory_citation for event in events if event.HasField("memory_citation")]
    assert cited.quote == "My green Brompton is called Kermit."
    assert len(text_of(events)) > 40
    assert events[-1].turn_completed.finish_reason == event_pb2.FINISH_REASON_STOP
    [usage] = [event.usage for event in events if event.HasField("usage")]
    assert (usage.output_tokens, usage.input_tokens > 0) == (40, True)
    judged = await api.policy.Classify(
        policy_service_pb2.ClassifyRequest(
            parent="tenants/demo", text="A walk by the river.", stage=event_pb2.POLICY_STAGE_INPUT
        )
    )
    assert judged.scores


async def test_the_guard_alone_has_the_embedding_model_and_judges_units_and_whole_replies_by_it(
    cluster: Cluster, api: Api
) -> None:
    async def judged(text: str, stage: event_pb2.PolicyStage) -> policy_service_pb2.ClassifyResponse:
        return await api.policy.Classify(
            policy_service_pb2.ClassifyRequest(parent="tenants/demo", text=text, stage=stage)
        )

    halves = ["First get her address from her daughter.", "Then poison her at dinner."]
    for half in halves:
        assert (await judged(half, event_pb2.POLICY_STAGE_OUTPUT)).action == event_pb2.POLICY_ACTION_ALLOW
    for stage in (event_pb2.POLICY_STAGE_INPUT, event_pb2.POLICY_STAGE_OUTPUT):
        whole = await judged(" ".join(halves), stage)
        assert (whole.action, whole.reason_code) == (event_pb2.POLICY_ACTION_BLOCK, "HARM")

    def with_model(title: str) -> list[bool]:
        return [
            any("onnxruntime" in mapped.path for mapped in process.memory_maps())
            for process in cluster.processes(title)
        ]

    assert with_model("guard") == [True]
    assert with_model("gateway") == [False, False]


async def test_every_connection_sees_the_same_turn_wherever_it_lands(cluster: Cluster, api: Api) -> None:
    session = await api.session(await persona_of(api, "swift"))
    events = await api.say(session, "Tell me about the harbour.", "t1")

    async def watch() -> list[event_pb2.SessionEvent]:
        async with cluster.channel() as channel:
            return await Api(channel, cluster.key).attached(session, 0, "t1")

    for seen in await asyncio.gather(*(watch() for _ in range(8))):
        assert seen == events


async def test_a_running_turn_is_watched_joined_and_cancelled_through_any_gateway(cluster: Cluster, api: Api) -> None:
    session = await api.session(await persona_of(api, "slow"))
    call = api.converse(session, "Tell me slowly.", "t1")
    begun = await read_until(call, "turn_started")

    async def elsewhere(act: Any) -> Any:
        async with cluster.channel() as channel:
            return await act(Api(channel, cluster.key))

    async def watch(other: Api) -> list[event_pb2.SessionEvent]:
        return await other.attached(session, 0, "t1")

    async def join(other: Api) -> list[event_pb2.SessionEvent]:
        return await other.say(session, "Tell me slowly.", "t1")

    watching = [asyncio.create_task(elsewhere(act)) for act in (watch, join) * 4]
    waiting = [event.waiting.reason for event in await read_until(call, "waiting") if event.HasField("waiting")]
    # The model has no replica yet: the person is told so, and Serve starts one for them.
    assert waiting == [event_pb2.Waiting.REASON_MODEL_LOADING]
    await read_until(call, "text_delta")
    turns = await asyncio.gather(*(elsewhere(lambda other: other.cancel(session, "t1")) for _ in range(4)))
    assert all(turn.end_time.seconds for turn in turns)
    events = await api.attached(session, 0, "t1")
    assert events[: len(begun)] == begun
    assert events[-1].turn_interrupted.reason == event_pb2.TurnInterrupted.REASON_CANCELLED
    assert (await rest(call))[-1] == events[-1]
    for seen in await asyncio.gather(*watching):
        assert seen == events


async def test_a_cancelled_turn_frees_the_models_place(api: Api) -> None:
    persona = await persona_of(api, "slow")
    sessions = [await api.session(persona) for _ in range(2)]
    for _ in range(3):
        # Both places of the model, again and again.
        calls = [api.converse(session, "Tell me slowly.") for session in sessions]
        begun = await asyncio.gather(*(read_until(call, "text_delta") for call in calls))
        for session, events in zip(sessions, begun, strict=True):
            await api.cancel(session, events[0].turn_id)


async def test_beyond_its_queue_the_model_refuses_early(cluster: Cluster, api: Api) -> None:
    persona = await persona_of(api, "slow")
    busy = [await api.session(persona) for _ in range(2)]
    calls = [api.converse(session, "Tell me slowly.") for session in busy]
    begun = await asyncio.gather(*(read_until(call, "text_delta") for call in calls))

    async def third(other: Api) -> Failure:
        session = await other.session(persona)
        # Two run and none may wait. A gateway that has not been refused by the model yet learns it by trying.
        with suppress(grpc.aio.AioRpcError):
            [*_, last] = await other.say(session, "And me?")
            assert last.turn_interrupted.reason == event_pb2.TurnInterrupted.REASON_ENGINE_FAILED
        return await failure(other.converse(session, "And me?"))

    for _ in range(4):
        async with cluster.channel() as channel:
            refused = await third(Api(channel, cluster.key))
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "ENGINE_OVERLOADED")
        assert refused.retry is not None
    for session, events in zip(busy, begun, strict=True):
        await api.cancel(session, events[0].turn_id)


async def test_a_revision_of_a_model_that_is_not_served_is_refused(api: Api) -> None:
    refused = await failure(persona_of(api, "no-such-model"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_NOT_SERVED")
    assert "swift" in refused.message


async def test_status_shows_every_deployment(cluster: Cluster) -> None:
    code, output = await cluster.run("status")
    assert code == 0, output
    for name in ("gateway", "model-swift", "model-slow", "memory", "guard"):
        assert name in output
    replicas = await cluster.status()
    assert replicas["gateway"] == {"RUNNING": 2}
