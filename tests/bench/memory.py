"""Memory on the embedded host: `python -m tests.bench.memory [--json]`.

1. Reads and writes through gRPC, open loop (Poisson), from a process of its own: 30 SearchMemories and 5
   CreateMemory a second, with 100,000 points in the tenant's collection and 1,000 in the user's scope; with the
   dense arm, and by words alone. A write is timed to its acknowledgement and until the index has it. Beside them, at
   the rate of the reads, a call that does nothing (`grpc.health.v1.Health/Check`): what of them is the way there and
   back, and the machine's waking up.
2. Rebuilding the index from the ledger: changes a second, with embeddings and without.

The memories of the other scopes have random vectors, as only their number matters; those of the user are embedded.
Latencies are wall milliseconds at the client, from when a call was due. Progress goes to stderr; the last line is
one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc

from personae.v1 import memory_service_pb2 as pb
from personae.v1.persona_service_pb2 import PERSONA_TYPE_ASSISTANT
from personae_client import PersonaeClient
from personae_runtime.config import Settings, load_settings
from personae_runtime.ledger.vault import Scope
from personae_runtime.memory.index import DENSE_DIM, MemoryPoint
from personae_runtime.memory.lexical import document_vector
from personae_runtime.memory.store import MemoryRecord, MemorySource
from personae_runtime.telemetry.logs import setup_logging
from personae_runtime.telemetry.setup import Telemetry
from personae_serve.embedded import EmbeddedHost, lock_data_dir
from personae_serve.stores import Stores, open_memory, open_stores

PERSONA = "bench"
USER = "u0"
BATCH = 500
POLL_S = 0.025

_SUBJECTS = "I|My sister|My neighbour|My boss|The baker|Our dog|Grandma|The plumber|A friend from school|My partner"
_VERBS = "bought|lost|repaired|painted|found|sold|forgot|borrowed|cleaned|dreamt of"
_THINGS = "a red bicycle|the old piano|two tickets to Porto|a jar of honey|the garden shed|a blue raincoat|an oak table"
_WHENS = "yesterday|last week|on Sunday|before breakfast|in the rain|after the holidays|near the station|at noon"


def sentence(draw: random.Random) -> str:
    """About what a person says in a chat: 20 to 40 words."""
    parts = (_SUBJECTS, _VERBS, _THINGS, _WHENS)
    made = [" ".join(draw.choice(part.split("|")) for part in parts) for _ in range(draw.randint(2, 4))]
    return ". ".join(made) + f", and that made {draw.randrange(10_000)} of them."


def settings_of(folder: Path, *, dense: bool) -> Settings:
    return load_settings(
        profile="development",
        data_dir=folder,
        gateway={"port": 0},
        engine={"kind": "synthetic", "model": "synthetic"},
        memory={"dense": dense},
        telemetry={"log_level": "WARNING"},
    )


# -- 1. reads and writes ------------------------------------------------------


async def fill(settings: Settings, points: int, own: int, say: Callable[[str], None]) -> None:
    """A ledger and an index with so many memories; those of USER by way of the indexer, the others directly."""
    draw, numbers = random.Random(7), np.random.default_rng(7)
    async with AsyncExitStack() as stack:
        stack.callback(lock_data_dir(settings.data_dir).close)
        stores = await open_stores(settings, stack)
        memory = await open_memory(settings, stores, stack, Telemetry.off())
        index, indexer = memory.indexer.index, memory.indexer
        others = [f"o{number}" for number in range((points - own) // own)]
        for number, user in enumerate(others):
            records = [record(stores, user, draw) for _ in range(own)]
            await store(stores, records)
            vectors = numbers.standard_normal((own, DENSE_DIM))
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            await index.upsert(
                [
                    MemoryPoint(one.memory_id, one.scope, document_vector(one.text), vector.tolist())
                    for one, vector in zip(records, vectors, strict=True)
                ]
            )
            if number % 20 == 19:
                say(f"  {(number + 1) * own} memories of others")
        await index.flush()
        # The indexer need not look at what is in the index already.
        while last := await stores.memories.changes(await stores.memories.load_cursor(indexer.name), 10_000):
            await stores.memories.save_cursor(indexer.name, last[-1].cursor)
        await store(stores, [record(stores, USER, draw) for _ in range(own)])
        await indexer.catch_up()
        say(f"  {await index.count()} points")


def record(stores: Stores, user: str, draw: random.Random) -> MemoryRecord:
    now = datetime.now(UTC)
    return MemoryRecord(
        memory_id=uuid.uuid4(),
        scope=stores.vault.scope_key(Scope("demo", PERSONA, user)),
        text=sentence(draw),
        speaker=user,
        occurred_at=now - timedelta(days=draw.randrange(700)),
        thread=f"t{draw.randrange(50)}",
        ordinal=draw.randrange(1000),
        source=MemorySource.API,
        created_at=now,
    )


async def store(stores: Stores, records: list[MemoryRecord]) -> None:
    await stores.vault.cipher_by_key(records[0].scope)
    for first in range(0, len(records), BATCH):
        async with stores.database.transaction() as connection:
            for one in records[first : first + BATCH]:
                await stores.memories.insert(connection, one)


async def serve(options: dict[str, Any]) -> None:
    """The host, in a process of its own, until stdin closes."""
    settings = settings_of(Path(options["folder"]), dense=options["dense"])
    setup_logging(settings.telemetry)
    host = EmbeddedHost(settings)
    port = await host.start()
    print(json.dumps({"port": port, "key": host.development_key}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await host.stop()


@asynccontextmanager
async def hosted(folder: Path, *, dense: bool) -> AsyncIterator[tuple[PersonaeClient, str]]:
    """A client of a host of its own, and the host's address."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        __spec__.name if __spec__ is not None else "tests.bench.memory",
        "--serve",
        json.dumps({"folder": str(folder), "dense": dense}),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stdin is not None
    try:
        line = await child.stdout.readline()
        if not line:
            raise RuntimeError(f"the host ended with {await child.wait()}")
        told = json.loads(line)
        target = f"127.0.0.1:{told['port']}"
        async with PersonaeClient(target, api_key=told["key"]) as client:
            yield client, target
    finally:
        child.stdin.close()
        await child.wait()


async def arrivals(draw: random.Random, seconds: float, rate: float, call: Callable[[float], Awaitable[None]]) -> None:
    """Make calls that come as a Poisson process, each told when it was due; return when all are done."""
    due = time.perf_counter()
    running: list[asyncio.Task[None]] = []
    until = due + seconds
    while (due := due + draw.expovariate(rate)) < until:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        running.append(asyncio.create_task(call(due)))  # type: ignore[arg-type]
    await asyncio.gather(*running)


async def floor(target: str, seconds: float, rate: float) -> dict[str, float]:
    """Milliseconds of a call that does nothing."""
    taken_ms: list[float] = []
    async with grpc.aio.insecure_channel(target) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        async def check(due: float) -> None:
            await health.Check(health_pb2.HealthCheckRequest())
            taken_ms.append((time.perf_counter() - due) * 1e3)

        await arrivals(random.Random(5), seconds, rate, check)
    return percentiles(taken_ms)


async def load(client: PersonaeClient, parent: str, seconds: float, reads_s: float, writes_s: float) -> dict[str, Any]:
    """Calls that come when they come, whether the ones before have been answered or not."""
    draw = random.Random(11)
    read_ms: list[float] = []
    ack_ms: list[float] = []
    indexed_ms: list[float] = []
    unindexed: deque[float] = deque()
    written, taken_up = asyncio.Event(), asyncio.Event()
    lexical = 0

    async def read(due: float) -> None:
        nonlocal lexical
        asked = re.split("[.,]", sentence(draw))[0]
        found = await client.memories.search(parent, f"When was it that {asked}?", page_size=5)
        read_ms.append((time.perf_counter() - due) * 1e3)
        lexical += found.lexical_only

    async def write(due: float) -> None:
        await client.memories.create(parent, pb.Memory(text=sentence(draw), speaker=USER))
        acknowledged = time.perf_counter()
        ack_ms.append((acknowledged - due) * 1e3)
        unindexed.append(acknowledged)
        taken_up.clear()
        written.set()

    async def watch() -> None:
        # One asks for all: the index takes changes up in their order, so those pending are the last ones. It asks
        # only while some are, as its calls are load like any other.
        while True:
            if not unindexed:
                taken_up.set()
                written.clear()
                await written.wait()
            known = len(unindexed)
            pending = await client.memories.pending_index_count(parent)
            now = time.perf_counter()
            for _ in range(known - pending):
                indexed_ms.append((now - unindexed.popleft()) * 1e3)
            await asyncio.sleep(POLL_S)

    watching = asyncio.create_task(watch())
    await asyncio.gather(arrivals(draw, seconds, reads_s, read), arrivals(draw, seconds, writes_s, write))
    await taken_up.wait()
    watching.cancel()
    return {
        "read_ms": percentiles(read_ms),
        "write_ack_ms": percentiles(ack_ms),
        "write_indexed_ms": percentiles(indexed_ms),
        "reads": len(read_ms),
        "writes": len(ack_ms),
        "lexical_only": lexical,
    }


def percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{share}": round(float(np.percentile(values, share)), 2) for share in (50, 95, 99)}


# -- 2. rebuild ---------------------------------------------------------------


async def rebuild(folder: Path, changes: int, *, dense: bool) -> float:
    """Changes a second, from the ledger to an index that was empty."""
    settings = settings_of(folder, dense=dense)
    draw = random.Random(3)
    async with AsyncExitStack() as stack:
        stack.callback(lock_data_dir(settings.data_dir).close)
        stores = await open_stores(settings, stack)
        await store(stores, [record(stores, USER, draw) for _ in range(changes)])
        memory = await open_memory(settings, stores, stack, Telemetry.off())
        begun = time.perf_counter()
        done = await memory.indexer.reindex()
        return done / (time.perf_counter() - begun)


async def run(args: argparse.Namespace) -> dict[str, Any]:
    def say(text: str) -> None:
        print(f"{datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)

    result: dict[str, Any] = {"points": args.points, "own": args.own, "reads_s": args.reads, "writes_s": args.writes}
    with tempfile.TemporaryDirectory(prefix="personae-bench-") as folder:
        home = Path(folder)
        say("filling")
        await fill(settings_of(home / "load", dense=True), args.points, args.own, say)
        for name, dense in (("dense", True), ("lexical", False)):
            say(name)
            async with hosted(home / "load", dense=dense) as (client, target):
                parent = f"tenants/demo/personas/{PERSONA}/users/{USER}"
                if dense:
                    await client.personas.create(
                        "tenants/demo", PERSONA, display_name="Bench", type=PERSONA_TYPE_ASSISTANT
                    )
                await load(client, parent, args.warmup, args.reads, args.writes)
                result[name] = await load(client, parent, args.seconds, args.reads, args.writes)
                result[name]["floor_ms"] = await floor(target, args.seconds / 4, args.reads)
            say(f"  {result[name]}")
        for name, dense, changes in (("dense", True, args.rebuild), ("lexical", False, 20 * args.rebuild)):
            say(f"rebuild, {name}")
            result[f"rebuild_per_s_{name}"] = round(await rebuild(home / f"rebuild-{name}", changes, dense=dense), 1)
    return {
        "read_ms_p95_dense": result["dense"]["read_ms"]["p95"],
        "read_ms_p95_lexical": result["lexical"]["read_ms"]["p95"],
        "write_ack_ms_p95": result["dense"]["write_ack_ms"]["p95"],
        "write_indexed_ms_p95": result["dense"]["write_indexed_ms"]["p95"],
        **result,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Latency of memory on the embedded host.")
    parser.add_argument("--json", action="store_true", help="only the last line")
    parser.add_argument("--points", type=int, default=100_000, help="in the collection")
    parser.add_argument("--own", type=int, default=1_000, help="of these in the user's scope, and in each other one")
    parser.add_argument("--seconds", type=float, default=60, help="of each measurement")
    parser.add_argument("--warmup", type=float, default=10, help="seconds before each that are not measured")
    parser.add_argument("--reads", type=float, default=30, help="per second")
    parser.add_argument("--writes", type=float, default=5, help="per second")
    parser.add_argument("--rebuild", type=int, default=1_000, help="changes, with embeddings; 20 times as many without")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        uvloop.run(serve(json.loads(args.serve)))
        return
    result = uvloop.run(run(args))
    if not args.json:
        for name, value in result.items():
            print(f"{name:24} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
