"""What a turn costs beside the bare engine, and a stream beside bare gRPC.

    python -m tests.bench.turn [--json] [--pairs 5] [--only llamacpp|synthetic]

1. llama.cpp, on the embedded host in this process: conversations through gRPC
   (load from another process) with every gate, memory and the ledger on,
   against `engine.generate` of the very same requests in the same process.
   Prompts are rendered once beforehand, checked to be the same in every run, and
   read by the engine once, so that both sides find the same prefix cache.
   Greedy, so both sides write the same tokens; the engine's own count is used.
2. synthetic engine: one gateway process against a `grpc.aio` server that writes
   the same recorded events by `context.write`. The engine's tokens over the time
   from the first text of any stream to the last; the same over the time of the
   middle half of the text (`steady`); and CPU time per unit there (`cpu`).

Ratios are medians of interleaved pairs with the interval (least, greatest).
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import uvloop

from personae.v1 import memory_service_pb2
from personae_client import PersonaeClient
from personae_runtime.config import load_settings
from personae_runtime.engines.engine import EngineDelta, EngineFinish, GenerateRequest
from personae_runtime.telemetry.logs import setup_logging
from personae_serve.embedded import EmbeddedHost
from tests.bench.figures import interval
from tests.bench.servers import definition

CONCURRENCY = (1, 4, 16)
REPLY_TOKENS = 64
OWN_WORK_TURNS = 100
WARM_UP_TURNS = 5
# The longest unit of the gate. By default, more text waits together when the engine outruns the ledger.
SENTENCE_CHARS = 200
# At most 32 tokens each, as the budget says.
QUESTIONS = (
    "My rear brake squeals when it rains. What should I check first?",
    "Which tyres did I put on for the winter, and were they any good?",
    "How do I true a wheel at home without a stand?",
    "The shifter feels loose since my last ride. Is that serious?",
)
FACTS = (
    "I ride a green steel tourer from 1986 that belonged to my aunt.",
    "Last winter I put 32 mm studded tyres on and they were worth every cent.",
    "My rear brake is a cantilever and it squeals in the rain.",
    "I commute eleven kilometres along the river, mostly on gravel.",
    "The left shifter was replaced in March after the crash at the market.",
    "My knee hurts if the saddle is lower than seventy-four centimetres.",
    "I promised my brother to ride to the coast with him in September.",
    "I keep my tools in the blue box under the stairs.",
)


class Recording:
    """An engine that notes every request; while `mute`, it answers at once instead of generating."""

    def __init__(self, engine: Any) -> None:
        self.inner = engine
        self.requests: list[GenerateRequest] = []
        self.mute = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[EngineDelta, None]:
        self.requests.append(request)
        if self.mute:
            yield EngineDelta("Noted.", 1, EngineFinish.STOP, 1, 0)
            return
        async for delta in self.inner.generate(request):
            yield delta


class Process:
    """A child that talks JSON lines."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child

    @classmethod
    async def start(cls, module: str) -> Process:
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=1 << 30,
                env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"},
            )
        )

    @property
    def pid(self) -> int:
        return self._child.pid

    async def read(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = await self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"the child ended with {await self._child.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def ask(self, command: dict[str, Any], *, answer: bool = True) -> dict[str, Any]:
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(command).encode() + b"\n")
        await self._child.stdin.drain()
        return await self.read() if answer else {}

    async def stop(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        await self._child.wait()


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


# -- 1. llama.cpp ------------------------------------------------------------


async def forget_turns(client: PersonaeClient, users: Sequence[str]) -> None:
    """Forget what turns left, so that the next run recalls the same."""
    for user in users:
        async for memory in client.memories.list(user):
            if memory.source == memory_service_pb2.MEMORY_SOURCE_TURN:
                await client.memories.forget(memory.name)
    await indexed(client, users)


async def indexed(client: PersonaeClient, users: Sequence[str]) -> None:
    """Return when the index has taken up every memory of the users."""
    for user in users:
        while await client.memories.pending_index_count(user):  # noqa: ASYNC110 - only asking tells
            await asyncio.sleep(0.05)


async def publish(client: PersonaeClient, persona_id: str, max_output_tokens: int, user_count: int) -> list[str]:
    """A persona whose users have memories; the users' names."""
    await client.personas.create("tenants/demo", persona_id, display_name="Nadia", type=1)
    persona = f"tenants/demo/personas/{persona_id}"
    await client.personas.publish_revision(persona, definition(max_output_tokens))
    users = [f"{persona}/users/u{index}" for index in range(user_count)]
    for user in users:
        for ordinal, fact in enumerate(FACTS):
            await client.memories.create(
                user, memory_service_pb2.Memory(text=fact, speaker="Kim", thread="before", ordinal=ordinal)
            )
    await indexed(client, users)
    return users


async def own_work(folder: Path, say: Any) -> dict[str, Any]:
    """What a turn does before the prompt reaches the engine: one conversation, warm prefix, default settings."""
    own, first = [], []
    async with embedded(folder) as bench:
        (user,) = await publish(bench.client, "brief", 4, 1)
        for index in range(OWN_WORK_TURNS + WARM_UP_TURNS):
            if index % 10 == 0:
                session = await bench.client.sessions.create(user.partition("/users/")[0], user=user)
            turn = (await bench.turns([(session.name, QUESTIONS[index % len(QUESTIONS)])]))["turns"][0]
            if index >= WARM_UP_TURNS and turn["first_text_s"] is not None:
                own.append(turn["own_ms"])
                first.append(turn["first_text_s"] * 1000)
    results = {
        "own_ms_p50": round(percentile(own, 0.5), 2),
        "own_ms_p95": round(percentile(own, 0.95), 2),
        "own_ms_turns": len(own),
        "first_release_ms_p50": round(percentile(first, 0.5), 1),
    }
    say(f"own work: {results}")
    return results


async def throughput(folder: Path, pairs: int, say: Any) -> dict[str, Any]:
    """Tokens per second through the gateway over those of the bare engine, at each concurrency."""
    detail: dict[str, Any] = {}
    # The embedding is given time, so that recall, and with it the prompt, is the same in every run.
    async with embedded(folder, memory={"dense_deadline_ms": 5000}) as bench:
        users = await publish(bench.client, "nadia", REPLY_TOKENS, max(CONCURRENCY))
        for count in CONCURRENCY:
            # Render the prompts without the engine, then let it read each once.
            bench.engine.mute = True
            await bench.converse(users[:count])
            bench.engine.mute = False
            requests = [*bench.engine.requests]
            await forget_turns(bench.client, users[:count])
            await bench.bare(requests)
            prompts = {request.messages[0].content: list(request.messages) for request in requests}
            values, same = [], True
            for pair in range(pairs):
                rates = {}
                for side in ("gateway", "engine") if pair % 2 else ("engine", "gateway"):
                    if side == "engine":
                        wall, tokens, cached = await bench.bare(requests)
                    else:
                        wall, tokens, cached = await bench.converse(users[:count])
                        # The system message holds the user's own marker: it tells whose prompt it is.
                        same = same and all(
                            prompts.get(request.messages[0].content) == list(request.messages)
                            for request in bench.engine.requests
                        )
                        await forget_turns(bench.client, users[:count])
                    rates[side] = tokens / wall
                    say(f"  {side:7} x{count}: {tokens} tokens in {wall:.2f} s, {cached} prompt tokens cached")
                values.append(rates["gateway"] / rates["engine"])
            detail[str(count)] = interval(values) | {"prompts_identical": same}
            say(f"throughput_ratio x{count}: {detail[str(count)]}")
    return {
        "throughput_ratio": {key: value["median"] for key, value in detail.items()},
        "throughput_ratio_detail": detail,
    }


class Embedded:
    """An embedded host with llama.cpp, a client, and the load process."""

    def __init__(self, engine: Recording, client: PersonaeClient, load: Process, target: str, key: str) -> None:
        self.engine = engine
        self.client = client
        self._load = load
        self._target = target
        self._key = key
        self._serial = 0

    async def turns(self, asked: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Run one turn in each (session, text), all at once, from the load process."""
        self._serial += 1
        turns = [[session, f"t{self._serial}", text] for session, text in asked]
        self.engine.requests.clear()
        return await self._load.ask({"target": self._target, "key": self._key, "turns": turns})

    async def converse(self, users: Sequence[str]) -> tuple[float, int, int]:
        """A first turn of each user in a new session: wall seconds, output tokens, cached prompt tokens."""
        asked = []
        for index, user in enumerate(users):
            session = await self.client.sessions.create(user.partition("/users/")[0], user=user)
            asked.append((session.name, QUESTIONS[index % len(QUESTIONS)]))
        answer = await self.turns(asked)
        for turn in answer["turns"]:
            if turn["end"] != "turn_completed":
                raise RuntimeError(f"a turn ended with {turn['reason']}")
        tokens = sum(turn["output_tokens"] for turn in answer["turns"])
        return answer["wall_s"], tokens, sum(turn["cached_input_tokens"] for turn in answer["turns"])

    async def bare(self, requests: Sequence[GenerateRequest]) -> tuple[float, int, int]:
        """The same requests straight into the engine: wall seconds, output tokens, cached prompt tokens."""

        async def one(request: GenerateRequest) -> tuple[int, int]:
            tokens = cached = 0
            async for delta in self.engine.inner.generate(request):
                tokens += delta.tokens
                cached = delta.cached_input_tokens or cached
            return tokens, cached

        begun = time.perf_counter()
        counts = await asyncio.gather(*(one(request) for request in requests))
        wall = time.perf_counter() - begun
        return wall, sum(tokens for tokens, _ in counts), sum(cached for _, cached in counts)


@asynccontextmanager
async def embedded(folder: Path, **overrides: Any) -> AsyncIterator[Embedded]:
    """A host of its own in `folder`, with every gate, memory and the ledger on."""
    from personae_runtime.engines.factory import build_engine

    settings = load_settings(
        profile="development",
        data_dir=folder,
        gateway={"port": 0},
        sessions={"turns_per_minute": 100_000},
        telemetry={"log_level": "WARNING"},
        **overrides,
    )
    setup_logging(settings.telemetry)
    engine = Recording(build_engine(settings.engine, profile=settings.profile, models_dir=settings.models_dir))
    host = EmbeddedHost(settings, engine=engine)
    port = await host.start()
    load = await Process.start("tests.bench.load")
    await load.read()
    try:
        async with PersonaeClient(f"127.0.0.1:{port}", api_key=host.development_key) as client:
            yield Embedded(engine, client, load, f"127.0.0.1:{port}", host.development_key)
    finally:
        await load.stop()
        await host.stop()


# -- 2. synthetic ------------------------------------------------------------


def rate(answer: dict[str, Any]) -> float:
    """Tokens per second from the first text of any stream to the last."""
    turns = answer["turns"]
    begun = min(turn["first_text_s"] for turn in turns)
    ended = max(turn["last_text_s"] for turn in turns)
    return float(sum(turn["output_tokens"] for turn in turns)) / (ended - begun)


class CpuMeter:
    """CPU seconds of processes over time, by sampling: what a unit costs however many share the machine."""

    def __init__(self, *groups: list[psutil.Process]) -> None:
        self._groups = groups
        self._samples: list[tuple[float, list[float]]] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> CpuMeter:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._task is not None
        self._task.cancel()
        self._sample()

    async def _run(self) -> None:
        while True:
            self._sample()
            await asyncio.sleep(0.02)

    def _sample(self) -> None:
        seconds = []
        for group in self._groups:
            total = 0.0
            for process in group:
                with suppress(psutil.NoSuchProcess):
                    times = process.cpu_times()
                    total += times.user + times.system
            seconds.append(total)
        self._samples.append((time.perf_counter(), seconds))

    def between(self, begun: float, ended: float) -> list[float]:
        """CPU seconds of each group; the times are of `time.perf_counter`, which processes share on Linux."""
        times = [at for at, _ in self._samples]
        first, last = max(0, bisect_right(times, begun) - 1), min(len(times) - 1, bisect_left(times, ended))
        spent = [b - a for a, b in zip(self._samples[first][1], self._samples[last][1], strict=True)]
        share = (ended - begun) / max(times[last] - times[first], 1e-9)
        return [seconds * min(1.0, share) for seconds in spent]


def postgres_of(folder: Path) -> list[psutil.Process]:
    """The PostgreSQL server whose data lie in `folder`, and its children."""
    for process in psutil.process_iter(["name", "cmdline"]):
        if "postgres" in (process.info["name"] or "") and str(folder) in " ".join(process.info["cmdline"] or ()):
            return [process, *process.children(recursive=True)]
    return []


async def synthetic(
    folder: Path, scorers: list[str], sessions: dict[str, Any], args: argparse.Namespace, say: Any
) -> dict[str, Any]:
    gateway = await Process.start("tests.bench.servers")
    ready = await gateway.ask(
        {
            "kind": "gateway",
            "data_dir": str(folder),
            "streams": args.streams,
            "tokens": args.tokens,
            "ttft_ms": args.ttft_ms,
            "itl_ms": args.itl_ms,
            "scorers": scorers,
            "sessions": sessions,
        }
    )
    load = await Process.start("tests.bench.load")
    await load.read()
    serial = 0

    async def ask(port: int, key: str, **more: Any) -> dict[str, Any]:
        nonlocal serial
        serial += 1
        turns = [
            [session, f"r{serial}-{index}", "Tell me about the harbour."]
            for index, session in enumerate(ready["sessions"])
        ]
        answer = await load.ask({"target": f"127.0.0.1:{port}", "key": key, "turns": turns, **more})
        for turn in answer["turns"]:
            if turn["end"] != "turn_completed":
                raise RuntimeError(f"a turn ended with {turn['reason']}")
        return answer

    async def measured(port: int, key: str, groups: list[list[psutil.Process]], **more: Any) -> Stream:
        async with CpuMeter(*groups) as meter:
            answer = await ask(port, key, **more)
        begun, ended = answer["middle_half"]
        units = sum(turn["units"] for turn in answer["turns"])
        tokens = sum(turn["output_tokens"] for turn in answer["turns"])
        cpu = [seconds / (units / 2) * 1e6 for seconds in meter.between(begun, ended)]
        return Stream(answer, rate(answer), tokens / 2 / (ended - begun), tokens / units, cpu)

    values: dict[str, list[float]] = {"whole": [], "steady": [], "cpu": []}
    units, costs, rates = [], [], []
    try:
        await ask(ready["port"], ready["key"])
        groups = [[psutil.Process(gateway.pid)], postgres_of(folder)]
        for pair in range(args.pairs):
            # The bare server sends what the gateway has just sent: the same units, coalesced alike.
            ours = await measured(ready["port"], ready["key"], groups, frames=True)
            bare = await Process.start("tests.bench.servers")
            recordings = [turn["frames"] for turn in ours.answer["turns"]]
            listening = await bare.ask({"kind": "bare", "recordings": recordings})
            await ask(listening["port"], "none")
            theirs = await measured(listening["port"], "none", [[psutil.Process(bare.pid)]])
            await bare.stop()
            units.append(ours.tokens_per_unit)
            rates.append(ours.steady)
            costs.append((*ours.cpu_us, *theirs.cpu_us))
            values["whole"].append(ours.rate / theirs.rate)
            values["steady"].append(ours.steady / theirs.steady)
            values["cpu"].append(theirs.cpu_us[0] / ours.cpu_us[0])
            say(
                f"  pair {pair}: gateway {ours.rate:.0f} tokens/s ({ours.steady:.0f} steady), bare {theirs.rate:.0f}"
                f" ({theirs.steady:.0f}), {ours.tokens_per_unit:.1f} tokens a unit; CPU a unit: gateway"
                f" {ours.cpu_us[0]:.0f} us, PostgreSQL {ours.cpu_us[1]:.0f} us, bare {theirs.cpu_us[0]:.0f} us"
            )
    finally:
        await load.stop()
        await gateway.stop()
    return interval(values["whole"]) | {
        "tokens_per_s": interval(rates),
        "tokens_per_unit": round(statistics.median(units), 1),
        "steady": interval(values["steady"]),
        "cpu": interval(values["cpu"]),
        "cpu_us_per_unit": {
            name: round(statistics.median(column), 1)
            for name, column in zip(("gateway", "postgres", "bare"), zip(*costs, strict=True), strict=True)
        },
    }


@dataclass(frozen=True, slots=True)
class Stream:
    """One run: tokens per second over all and in the middle half of the text, CPU microseconds per unit there."""

    answer: dict[str, Any]
    rate: float
    steady: float
    tokens_per_unit: float
    cpu_us: list[float]


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="only the last line")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", choices=("llamacpp", "synthetic"))
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--itl-ms", type=float, default=0.0)
    parser.add_argument("--ttft-ms", type=float, default=1500.0)
    args = parser.parse_args()

    def say(line: str) -> None:
        print(line, file=sys.stderr if args.json else sys.stdout, flush=True)

    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="personae-bench-") as folder:
        root = Path(folder)
        if args.only != "synthetic":
            results["gates"] = ["matchers", "rules", "ngram"]
            results |= await own_work(root / "own", say)
            results |= await throughput(root / "throughput", args.pairs, say)
        if args.only != "llamacpp":
            sentences = {"coalesce_max_chars": SENTENCE_CHARS}
            runs: list[tuple[str, list[str], dict[str, Any]]] = [
                ("stream_ratio", [], sentences),
                ("stream_ratio_large_units", [], {}),
                ("stream_ratio_all_gates", ["ngram"], sentences),
            ]
            for key, scorers, sessions in runs:
                detail = await synthetic(root / key, scorers, sessions, args, say)
                results[key] = detail["median"]
                results[f"{key}_detail"] = detail | {"gates": ["matchers", "rules", *scorers]}
                say(f"{key}: {detail}")
    print(json.dumps(results))


if __name__ == "__main__":
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    uvloop.run(main())
