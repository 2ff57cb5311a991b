"""How long after the call of a kill switch the streams of two gateways have ended; a part of `tests.bench.policy`."""

from __future__ import annotations

import asyncio
import base64
import tempfile
import time
from contextlib import AsyncExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from personae.v1.persona_service_pb2 import PERSONA_TYPE_ASSISTANT
from personae_client import PersonaeClient, PersonaeError
from personae_runtime.config import ApiKey, load_settings
from personae_serve.embedded import EmbeddedHost
from tests.bench.servers import definition

_KEY = "key-of-the-benchmark"
_TENANT = "tenants/demo"


async def _gateway(stack: AsyncExitStack, folder: Path, dsn: str | None) -> tuple[EmbeddedHost, PersonaeClient]:
    settings = load_settings(
        profile="development",
        data_dir=folder,
        gateway={"port": 0, "peer_port": 0, "max_accept_wait_s": 60},
        ledger={"master_key": base64.b64encode(bytes(32)).decode(), **({"dsn": dsn} if dsn else {})},
        engine={
            "kind": "synthetic",
            "model": "synthetic",
            "parallel": 256,
            "context_tokens": 16384,
            "synthetic_ttft_ms": 20,
            "synthetic_itl_ms": 50,
            "synthetic_tokens": 4096,
            "max_output_tokens": 4096,
        },
        memory={"enabled": False},
        sessions={"turns_per_minute": 100_000},
        auth={"api_keys": [ApiKey(id="bench", sha256=sha256(_KEY.encode()).hexdigest(), tenant="demo")]},
        telemetry={"log_level": "WARNING"},
    )
    host = EmbeddedHost(settings)
    port = await host.start()
    stack.push_async_callback(host.stop)
    return host, await stack.enter_async_context(PersonaeClient(f"127.0.0.1:{port}", api_key=_KEY))


async def kill_switch(rounds: int, streams: int) -> dict[str, Any]:
    """Milliseconds from the call to the terminal event that a client sees, to its last words before, and to the first
    refusal of a new turn.

    Args:
        rounds: how often the switch is thrown and lifted, through one gateway and the other in turn.
        streams: that run at each gateway, of the persona.
    """
    ended: list[float] = []
    silent: list[float] = []
    refused: list[float] = []
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        first, client = await _gateway(stack, folder / "one", None)
        _, other = await _gateway(stack, folder / "two", first.stores.database.dsn)
        clients = (client, other)
        persona = f"{_TENANT}/personas/bench"
        await client.personas.create(_TENANT, "bench", display_name="Bench", type=PERSONA_TYPE_ASSISTANT)
        await client.personas.publish_revision(persona, definition(4096))
        sessions = [
            [(await one.sessions.create(persona, user=f"u{at}-{number}")).name for number in range(streams)]
            for at, one in enumerate(clients)
        ]
        for number in range(rounds):
            begun: list[asyncio.Event] = []

            async def watch(one: PersonaeClient, session: str, speaks: asyncio.Event) -> tuple[float, float]:
                last = 0.0
                async with one.sessions.converse(session, "Tell me of bicycles, at length.") as stream:
                    async for event in stream:
                        if event.HasField("text_delta"):
                            speaks.set()
                            last = time.perf_counter()
                    assert event.HasField("turn_interrupted"), event
                return last, time.perf_counter()

            async def refuse(one: PersonaeClient, session: str) -> float:
                while True:
                    try:
                        async with one.sessions.converse(session, "And now?") as stream:
                            await anext(stream)
                    except PersonaeError as error:
                        if error.reason == "PERSONA_KILLED":
                            return time.perf_counter()
                        if error.reason != "TURN_IN_PROGRESS":  # its last turn has not ended yet
                            raise

            watching = []
            for one, names in zip(clients, sessions, strict=True):
                for name in names:
                    begun.append(asyncio.Event())
                    watching.append(asyncio.create_task(watch(one, name, begun[-1])))
            await asyncio.gather(*(event.wait() for event in begun))
            called = time.perf_counter()
            switch = await clients[number % 2].policy.kill(_TENANT, "a benchmark", persona=persona)
            for last, at in await asyncio.gather(*watching):
                silent.append(max(0.0, last - called) * 1000)
                ended.append((at - called) * 1000)
            turned = await asyncio.gather(
                *(refuse(one, names[0]) for one, names in zip(clients, sessions, strict=True))
            )
            refused += [(at - called) * 1000 for at in turned]
            await client.policy.lift(switch.name, "the benchmark goes on")
    return {
        "p50": round(float(np.percentile(ended, 50)), 1),
        "p95": round(float(np.percentile(ended, 95)), 1),
        "max": round(max(ended), 1),
        "last_words_p95": round(float(np.percentile(silent, 95)), 1),
        "refused_p95": round(float(np.percentile(refused, 95)), 1),
        "gateways": 2,
        "streams": 2 * streams,
        "samples": len(ended),
    }
