"""The servers of the stream benchmark, each in a process of its own.

`gateway`: the embedded host with the synthetic engine. `bare`: a `grpc.aio`
server that does nothing but `context.write` the frames it is given.
Both print one JSON line with their port and serve until stdin closes.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import grpc
import uvloop

from personae.v1 import event_pb2, session_service_pb2, session_service_pb2_grpc


class Bare(session_service_pb2_grpc.SessionServiceServicer):
    """Writes recorded events; the request's turn_id says which recording."""

    def __init__(self, recordings: list[list[str]]) -> None:
        self._recordings = [
            [event_pb2.SessionEvent.FromString(bytes.fromhex(frame)) for frame in frames] for frames in recordings
        ]

    async def Converse(  # type: ignore[override]
        self, request: session_service_pb2.ConverseRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        for event in self._recordings[int(request.turn_id.rpartition("-")[2]) % len(self._recordings)]:
            await context.write(event)


async def bare(recordings: list[list[str]]) -> None:
    server = grpc.aio.server(options=[("grpc.max_concurrent_streams", 1000)])
    session_service_pb2_grpc.add_SessionServiceServicer_to_server(Bare(recordings), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"port": port}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(0)


async def gateway(options: dict[str, Any]) -> None:
    from personae_client import PersonaeClient
    from personae_runtime.config import load_settings
    from personae_runtime.telemetry.logs import setup_logging
    from personae_serve.embedded import EmbeddedHost

    settings = load_settings(
        profile="development",
        data_dir=Path(options["data_dir"]),
        gateway={"port": 0, "view_buffer_events": 4096, "max_accept_wait_s": 60},
        engine={
            "kind": "synthetic",
            "model": "synthetic",
            "parallel": 256,
            "context_tokens": 16384,
            "synthetic_ttft_ms": options["ttft_ms"],
            "synthetic_itl_ms": options["itl_ms"],
            "synthetic_tokens": options["tokens"],
            "max_output_tokens": 4096,
        },
        sessions={"turns_per_minute": 100_000, **options["sessions"]},
        policy={"scorers": options["scorers"]},
        telemetry={"log_level": "WARNING"},
    )
    setup_logging(settings.telemetry)
    host = EmbeddedHost(settings)
    port = await host.start()
    async with PersonaeClient(f"127.0.0.1:{port}", api_key=host.development_key) as client:
        sessions = await make_sessions(client, "stream", options["streams"], max_output_tokens=options["tokens"])
    print(json.dumps({"port": port, "key": host.development_key, "sessions": sessions}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await host.stop()


async def make_sessions(client: Any, persona_id: str, count: int, *, max_output_tokens: int) -> list[str]:
    """A persona with one revision, and `count` sessions of as many users."""
    from personae.v1 import persona_service_pb2 as pb

    await client.personas.create("tenants/demo", persona_id, display_name="Bench", type=pb.PERSONA_TYPE_ASSISTANT)
    persona = f"tenants/demo/personas/{persona_id}"
    await client.personas.publish_revision(persona, definition(max_output_tokens))
    made = [await client.sessions.create(persona, user=f"{persona}/users/u{index}") for index in range(count)]
    return [session.name for session in made]


def definition(max_output_tokens: int) -> Any:
    """A persona of ordinary size, greedy, so that every run says the same."""
    from personae.v1 import persona_service_pb2 as pb

    return pb.PersonaDefinition(
        card=(
            "You are Nadia, the assistant of a bicycle workshop by the river. You know frames, gears, brakes and"
            " wheels, you remember what each customer rides, and you explain one step at a time."
        ),
        style=pb.StyleSheet(tone="warm, dry, precise", formality=pb.FORMALITY_CASUAL, max_sentences=5),
        exemplars=[
            pb.Exemplar(prompt="My chain skips.", reply="Let's look at wear first. Do you have a chain gauge at home?"),
            pb.Exemplar(prompt="Is it dear?", reply="A chain is cheap; a chain and a cassette are not. Measure first."),
        ],
        generation=pb.GenerationConfig(max_output_tokens=max_output_tokens, temperature=0.0),
    )


if __name__ == "__main__":
    asked = json.loads(sys.stdin.readline())
    uvloop.run(bare(asked["recordings"]) if asked["kind"] == "bare" else gateway(asked))
