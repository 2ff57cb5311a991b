"""The whole path with the real model and embedder, through the SDK."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from personae.v1 import event_pb2, session_service_pb2
from personae_client import PersonaeClient
from personae_runtime.config import load_settings
from personae_serve.embedded import EmbeddedHost
from tests.e2e.conftest import KEY, KEYS
from tests.e2e.support import Hosted, kinds, new_user, text_of

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.model]


async def test_a_real_persona_recalls_answers_and_can_be_interrupted(hosted: Hosted, tmp_path: Path) -> None:
    # Beside the shared host's ledger: the same PostgreSQL and master key, another index and engine.
    settings = load_settings(
        data_dir=tmp_path,
        gateway={"port": 0},
        auth={"api_keys": KEYS},
        ledger={
            "dsn": hosted.host.stores.database.dsn,
            "master_key": (hosted.host.settings.data_dir / "master.key").read_text(),
        },
        memory={"dense_deadline_ms": 2000},
        # Greedy: what a small model says by chance now and then is stopped by policy, and its usage ends there.
        engine={"parallel": 2, "max_output_tokens": 48, "temperature": 0.0},
        telemetry={"log_level": "WARNING"},
    )
    async with AsyncExitStack() as stack:
        host = EmbeddedHost(settings)
        port = await host.start()
        stack.push_async_callback(host.stop)
        client = await stack.enter_async_context(PersonaeClient(f"127.0.0.1:{port}", api_key=KEY))
        persona = await hosted.api.persona(
            card="You are Nadia, who runs a bike shop in Porto. You answer in one sentence."
        )
        user = new_user(persona)
        await hosted.api.remember(user, "My bicycle is a green Brompton called Kermit.")
        assert host.indexer is not None
        await host.indexer.catch_up()
        session = await client.sessions.create(persona, user)

        async with client.sessions.converse(session.name, "Which colour is my folding bike?", turn_id="t1") as stream:
            events = [event async for event in stream]
        cited = [event.memory_citation for event in events if event.HasField("memory_citation")]
        assert [citation.quote for citation in cited] == ["My bicycle is a green Brompton called Kermit."]
        assert text_of(events).strip()
        assert kinds(events)[-3:] == ["usage", "latency", "turn_completed"]
        usage = next(event.usage for event in events if event.HasField("usage"))
        assert usage.input_tokens > 50
        assert 0 < usage.output_tokens <= 48
        latency = next(event.latency for event in events if event.HasField("latency"))
        assert latency.queue.ToTimedelta() <= latency.ttft.ToTimedelta() <= latency.first_release.ToTimedelta()
        async with client.sessions.converse(session.name, "Which colour is my folding bike?", turn_id="t1") as again:
            assert [event async for event in again] == events

        stream = client.sessions.converse(session.name, "Tell me a long story about a mountain pass.", turn_id="t2")
        async with stream:
            async for event in stream:
                if event.HasField("text_delta"):
                    break
            turn = await stream.cancel()
            rest = [event async for event in stream]
        # llama.cpp lets go of the slot with its next token.
        async with asyncio.timeout(30):
            while host.engine.capacity().running:  # noqa: ASYNC110 - the engine tells by being asked
                await asyncio.sleep(0.01)
        if turn.state == session_service_pb2.TURN_STATE_INTERRUPTED:
            assert rest[-1].turn_interrupted.reason == event_pb2.TurnInterrupted.REASON_CANCELLED
            assert rest[-1].turn_interrupted.delivered_chars == len(turn.reply_text)
