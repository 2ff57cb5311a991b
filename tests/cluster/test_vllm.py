"""Real vLLM on the CPU through Ray Serve and gRPC, whole and sharded over three workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from personae.v1 import event_pb2, persona_service_pb2, session_service_pb2
from tests.cluster.support import Cluster, running
from tests.contract.conftest import VLLM
from tests.e2e.support import Api, new_user, text_of

pytestmark = [*VLLM, pytest.mark.timeout(900)]

TOKENS = 12
QUESTION = "My chain skips under load. What should I check first?"
# Nine attention heads: three workers have three each.
SECTIONS = """
[gateway]
port = PORT
max_accept_wait_s = 60
[memory]
enabled = false
[policy]
scorers = []
[sessions]
turn_timeout_s = 300
[cluster]
dashboard = false
[cluster.gateway]
num_cpus = 0.1
[[cluster.models]]
kind = "vllm"
model = "smollm2-135m-instruct"
parallel = 4
context_tokens = 1024
kv_cache_gib = 0.5
tensor_parallel_size = {workers}
cpu_threads_bind = "{bind}"
num_cpus = 0.5
"""


async def reply(cluster: Cluster, session: str) -> str:
    async with cluster.channel() as channel:
        api = Api(channel, cluster.key)
        events = [
            event
            async for event in api.sessions.Converse(
                session_service_pb2.ConverseRequest(session=session, turn_id="t1", text=QUESTION), timeout=300
            )
        ]
    assert events[-1].turn_completed.finish_reason in (event_pb2.FINISH_REASON_LENGTH, event_pb2.FINISH_REASON_STOP)
    [usage] = [event.usage for event in events if event.HasField("usage")]
    assert 0 < usage.output_tokens <= TOKENS
    return text_of(events)


async def test_three_workers_say_what_one_says(folder: Path) -> None:
    async with running(folder, SECTIONS.format(workers=1, bind="0-1")) as cluster:
        async with cluster.channel() as channel:
            api = Api(channel, cluster.key)
            persona = await api.persona(publish=False)
            await api.personas.PublishRevision(
                persona_service_pb2.PublishRevisionRequest(
                    parent=persona,
                    definition=persona_service_pb2.PersonaDefinition(
                        card="You are Nadia, who runs a bike shop.",
                        generation=persona_service_pb2.GenerationConfig(
                            model="smollm2-135m-instruct", max_output_tokens=TOKENS, temperature=0.0
                        ),
                    ),
                )
            )
            # One person: a prompt holds a marker of theirs. Two sessions: a prompt holds what was said before.
            user = new_user(persona)
            sessions = [await api.session(persona, user) for _ in range(2)]
        whole = await reply(cluster, sessions[0])
        cluster.configure(SECTIONS.format(workers=3, bind="0|0|1"))
        code, output = await cluster.run("up", "--cluster")
        assert code == 0, output
        assert len(cluster.processes("model-")) == 1
        sharded = await reply(cluster, sessions[1])
    assert len(whole.split()) > 3
    assert sharded == whole
