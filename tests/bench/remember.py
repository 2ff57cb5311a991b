"""How long remembering takes: CreateMemory over gRPC, to its acknowledgement and to the index, facts included.

python -m tests.bench.remember
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np

from personae.v1 import memory_service_pb2 as pb
from tests.e2e.conftest import start_hosted
from tests.e2e.support import new_user

MEMORIES = 400
SAID = (
    "I live in {word}shire now, since last week.",
    "It rained all day and we stayed at home with a book.",
    "My sister Ana{word} is coming, and I love {word} soup.",
    "What do you think of that?",
)


async def main() -> None:
    acknowledged: list[float] = []
    indexed: list[float] = []
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        hosted = await start_hosted(stack, directory, memory={"facts": "--no-facts" not in sys.argv})
        user = new_user(await hosted.api.persona())
        speaker = user.rsplit("/", 1)[1]
        for number in range(MEMORIES):
            text = SAID[number % len(SAID)].format(word=f"W{number % 12}")
            begun = time.perf_counter()
            await hosted.api.memories.CreateMemory(
                pb.CreateMemoryRequest(parent=user, memory=pb.Memory(text=text, speaker=speaker))
            )
            acknowledged.append(time.perf_counter() - begun)
            await hosted.indexed()
            indexed.append(time.perf_counter() - begun)
    for name, seconds in (("acknowledged", acknowledged), ("indexed", indexed)):
        p50, p95 = np.percentile(np.array(seconds) * 1000, (50, 95))
        print(f"{name:13} p50 {p50:6.1f} ms   p95 {p95:6.1f} ms   of {MEMORIES}")


if __name__ == "__main__":
    asyncio.run(main())
