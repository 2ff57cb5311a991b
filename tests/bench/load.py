"""The load side of the benchmarks, in a process of its own.

Reads one JSON command per line on stdin, runs it, answers with one JSON line.
Frames are kept as bytes with their arrival times while the clock runs and are
parsed afterwards, the same for every server, so that it is the server that is
measured.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import grpc
import uvloop

from personae.v1 import event_pb2, session_service_pb2

CONVERSE = "/personae.v1.SessionService/Converse"


class Load:
    """Streams against one target.

    Every stream has a channel of its own arguments, and so a connection of its
    own per group of `per_channel`, as different clients would.
    """

    def __init__(self, target: str, key: str, channels: int = 4) -> None:
        self._metadata = (("authorization", f"Bearer {key}"),)
        self._channels = [
            grpc.aio.insecure_channel(target, options=[("personae.bench.channel", index)]) for index in range(channels)
        ]
        self._calls = [
            channel.unary_stream(CONVERSE, request_serializer=session_service_pb2.ConverseRequest.SerializeToString)
            for channel in self._channels
        ]

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def turn(self, index: int, request: session_service_pb2.ConverseRequest) -> list[tuple[float, bytes]]:
        """One turn's frames with their arrival times."""
        frames: list[tuple[float, bytes]] = []
        call = self._calls[index % len(self._calls)](request, metadata=self._metadata)
        read = call.read
        while (frame := await read()) is not grpc.aio.EOF:
            frames.append((time.perf_counter(), frame))
        return frames


async def turns(command: dict[str, Any]) -> dict[str, Any]:
    """Run the given turns, all at once, and say what came when.

    `turns` is a list of [session, turn_id, text].
    """
    load = Load(command["target"], command["key"])
    requests = [
        session_service_pb2.ConverseRequest(session=session, turn_id=turn_id, text=text)
        for session, turn_id, text in command["turns"]
    ]
    begun = time.perf_counter()
    streams = await asyncio.gather(*(load.turn(index, request) for index, request in enumerate(requests)))
    ended = time.perf_counter()
    await load.close()
    results, arrivals = [], []
    for frames in streams:
        events = [(at - begun, event_pb2.SessionEvent.FromString(frame)) for at, frame in frames]
        texts = [(at, event.text_delta.text) for at, event in events if event.HasField("text_delta")]
        arrivals += [(at, len(text)) for at, text in texts]
        latency = next((event.latency for _, event in events if event.HasField("latency")), event_pb2.Latency())
        usage = next((event.usage for _, event in events if event.HasField("usage")), event_pb2.Usage())
        results.append(
            {
                "first_text_s": texts[0][0] if texts else None,
                "last_text_s": texts[-1][0] if texts else None,
                "units": len(texts),
                "chars": sum(len(text) for _, text in texts),
                "text": "".join(text for _, text in texts) if command.get("texts") else "",
                "frames": [frame.hex() for _, frame in frames] if command.get("frames") else [],
                "own_ms": latency.queue.ToNanoseconds() / 1e6,
                "ttft_ms": latency.ttft.ToNanoseconds() / 1e6,
                "output_tokens": usage.output_tokens,
                "input_tokens": usage.input_tokens,
                "cached_input_tokens": usage.cached_input_tokens,
                "end": events[-1][1].WhichOneof("event") if events else "",
                "reason": str(events[-1][1]).replace("\n", " ") if events else "",
            }
        )
    return {
        "wall_s": ended - begun,
        "middle_half": [begun + at for at in middle_half(arrivals)],
        "turns": results,
    }


def middle_half(arrivals: list[tuple[float, int]]) -> list[float]:
    """When the first quarter of all characters was over and the last began; each arrival is (time, characters)."""
    arrivals.sort()
    total, seen = sum(chars for _, chars in arrivals), 0
    marks: list[float] = []
    for at, chars in arrivals:
        seen += chars
        while len(marks) < 2 and seen >= total * (0.25, 0.75)[len(marks)]:
            marks.append(at)
    return marks


async def main() -> None:
    loop = asyncio.get_running_loop()
    print(json.dumps({"ready": True}), flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(await turns(json.loads(line))), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
