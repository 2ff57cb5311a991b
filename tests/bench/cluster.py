"""The cluster against what a user would pick instead.

    python -m tests.bench.cluster [--json] [--only PART ...] [--pairs 5] [--host cluster|embedded]

Every server is a process of its own, started for its part and gone after it
(`tests/load/peers`); the load comes from another (`tests/load`), the same for
all. Ratios are medians of interleaved pairs, with the least and the greatest
beside them. Progress goes to stderr; the last line is one JSON object.
`docs/benchmarks.md` defines each figure.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import psutil
import tomli_w
import uvloop

from personae.v1 import event_pb2, session_service_pb2, session_service_pb2_grpc
from personae_client import PersonaeClient
from personae_runtime.config import load_settings
from personae_runtime.engines.engine import Message
from personae_runtime.engines.models import hf_folder
from personae_runtime.ledger.embedded import EmbeddedPostgres
from personae_runtime.ledger.personas import PersonaLedger
from personae_runtime.ledger.vault import Scope
from personae_runtime.memory.recall import RecalledMemory
from personae_runtime.memory.store import MemoryRecord, MemorySource
from personae_runtime.names import parse
from personae_runtime.sessions.prompt import PastTurn, compose
from personae_runtime.style.compile import compile_prefix
from personae_runtime.telemetry import names
from personae_serve.stores import open_stores
from tests.bench.figures import interval
from tests.load.otlp import MetricsReceiver, percentile_s
from tests.load.peers import Peer, free_port
from tests.load.peers.serve_proxy import APPLICATION
from tests.load.scenario import Conversation, burst, load_scenario

KEY = "key-of-the-benchmark"
PACED = {"synthetic_ttft_ms": 50.0, "synthetic_itl_ms": 100.0, "synthetic_tokens": 64}
"""The synthetic engine at a human pace: ten tokens a second."""
MODEL = "smollm2-135m-instruct"
PLAIN = {"resume_share": 0.0, "cancel_share": 0.0}


# -- what every part uses -----------------------------------------------------


@dataclass(slots=True)
class Host:
    """This project, serving."""

    peer: Peer
    config: Path
    embedded: bool

    @property
    def target(self) -> str:
        """Where it serves."""
        return f"127.0.0.1:{self.peer.port}"

    def gateways(self) -> list[psutil.Process]:
        """The processes that hold the streams of clients."""
        below = self.peer.processes()
        if self.embedded:
            return [below[0]]
        # Ray names a replica's process "ray::ServeReplica:<application>:<deployment>".
        found = [process for process in below if ":gateway" in " ".join(process.cmdline()[:1])]
        if not found:
            raise RuntimeError("no gateway replica was found among the processes of the cluster")
        return found


@dataclass(slots=True)
class Bench:
    """The options, and how servers and load are started."""

    args: argparse.Namespace
    root: Path
    _serial: int = field(default=0)

    def say(self, line: str) -> None:
        """Tell of progress."""
        print(f"{datetime.now():%H:%M:%S} {line}", file=sys.stderr, flush=True)

    def folder(self, name: str) -> Path:
        """One that is not there yet: several parts may have a host of the same name."""
        self._serial += 1
        return self.root / f"{self._serial}-{name}"

    @asynccontextmanager
    async def host(self, name: str, **sections: dict[str, Any]) -> AsyncIterator[Host]:
        """This project with default settings, but for `sections`, a synthetic engine and a free port."""
        folder = self.folder(name)
        folder.mkdir()
        key = {"id": "bench", "sha256": hashlib.sha256(KEY.encode()).hexdigest(), "tenant": "demo"}
        gateways = {"min_replicas": self.args.gateways, "max_replicas": self.args.gateways, "num_cpus": 0.1}
        settings: dict[str, dict[str, Any]] = {
            "gateway": {"port": free_port()},
            "engine": {"kind": "synthetic", "model": "synthetic", "parallel": 4096, "context_tokens": 16384},
            "sessions": {"turns_per_minute": 100_000},
            "auth": {"api_keys": [key]},
            "telemetry": {"log_level": "WARNING"},
            "cluster": {"gateway": gateways, "dashboard": False},
        }
        for section, values in sections.items():
            settings[section] = {**settings.get(section, {}), **values}
        config = folder / "personae.toml"
        top = {
            "profile": "development",
            "data_dir": str(folder / "data"),
            "models_dir": str(load_settings().models_dir),
        }
        config.write_text(tomli_w.dumps(top | settings), encoding="utf-8")
        options = ["--embedded"] if self.args.host == "embedded" else []
        async with self.peer("tests.load.peers.personae", str(config), *options) as peer:
            yield Host(peer, config, bool(options))

    @asynccontextmanager
    async def peer(self, module: str, *arguments: str) -> AsyncIterator[Peer]:
        """Another process of `tests.load.peers`; its log is shown if it does not start."""
        self._serial += 1
        log = self.root / f"{self._serial}-{module.rpartition('.')[2]}.log"
        begun = time.perf_counter()
        with log.open("wb") as written:
            peer = Peer(module, *arguments, log=written, ready_s=600)
            try:
                await peer.__aenter__()
            except (RuntimeError, TimeoutError):
                self.say(f"{module} did not start:\n{log.read_text(errors='replace')[-2000:]}")
                raise
            try:
                self.say(f"  {module} is up after {time.perf_counter() - begun:.0f} s")
                yield peer
            finally:
                await peer.stop()

    async def load(
        self, target: str, *arguments: str, scenario: Mapping[str, Any] = PLAIN, plot: str = ""
    ) -> dict[str, Any]:
        """Run the load generator in a process of its own; its report."""
        self._serial += 1
        report, given = self.root / f"{self._serial}-load.json", self.root / f"{self._serial}-scenario.json"
        given.write_text(json.dumps(scenario), encoding="utf-8")
        options = ["--target", target, "--key", KEY, "--scenario", str(given), "--json", str(report), *arguments]
        if plot and self.args.plots is not None:
            self.args.plots.mkdir(parents=True, exist_ok=True)
            options += ["--plot", str(self.args.plots / f"{plot}.png")]
        child = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.load", *options)
        if await child.wait() == 2 or not report.exists():
            raise RuntimeError("the load generator could not start; what it said is above")
        found: dict[str, Any] = json.loads(report.read_text())
        return found

    async def rate(self, target: str, *arguments: str, **scenario: Any) -> dict[str, Any]:
        """As `load` of a burst of turns that must all succeed."""
        report = await self.load(target, "--mode", "burst", *arguments, scenario=PLAIN | scenario)
        if report["failures"]:
            raise RuntimeError(f"turns failed: {report['failures_by_reason']} {report['violations']}")
        return report


def ordered(pair: int, *sides: str) -> list[str]:
    """The sides in an order that changes from pair to pair."""
    at = pair % len(sides)
    return [*sides[at:], *sides[:at]] if pair // len(sides) % 2 == 0 else [*sides[at:], *sides[:at]][::-1]


WORDS_ONLY = {"dense": False}
"""Memory by words alone: embedding what was said is other work than handing on tokens, and goes on after the turn."""


def gates(scorers: Sequence[str] = ()) -> list[str]:
    """Which gates run on the persona's words."""
    return ["matchers", "rules", *scorers]


# -- tokens a second, without a model's limits --------------------------------


def flood(bench: Bench) -> dict[str, Any]:
    """A synthetic engine that writes as fast as it is asked, a token to a delta."""
    return {
        "kind": "synthetic",
        "model": "synthetic",
        "synthetic_ttft_ms": 0.0,
        "synthetic_itl_ms": 0.0,
        "synthetic_tokens": bench.args.tokens,
        "synthetic_delta_tokens": 1,
        "max_output_tokens": 4096,
        "parallel": 256,
    }


async def vs_proxy(bench: Bench) -> dict[str, Any]:
    """Released tokens a second, matchers and rules on, over those of Serve's own gRPC proxy."""
    streams = ("--conversations", str(bench.args.streams))
    # The proxy's rate is steady from the first second on; it is read fewer tokens of the same streams.
    proxy_tokens = min(bench.args.tokens, bench.args.proxy_tokens)
    proxy_options = ("--driver", "grpc", "--metadata", f"application={APPLICATION}", *streams)
    sections: dict[str, dict[str, dict[str, Any]]] = {
        "uncoalesced": {"sessions": {"turns_per_minute": 100_000, "coalesce_max_ms": 0}},
        "coalesced": {},
    }
    results: dict[str, Any] = {}
    detail: dict[str, Any] = {"gates": gates()}
    proxy_engine = ("--tokens", str(bench.args.tokens), "--tokens-per-delta", "1")
    async with bench.peer("tests.load.peers.serve_proxy", *proxy_engine) as proxy:
        for variant, changed in sections.items():
            common = {"engine": flood(bench), "policy": {"scorers": []}, "gateway": wide(bench), "memory": WORDS_ONLY}
            if variant == "uncoalesced" and bench.args.host == "cluster":
                gateway = {"min_replicas": bench.args.gateways, "max_replicas": bench.args.gateways, "num_cpus": 0.1}
                changed = changed | {"cluster": {"gateway": gateway, "token_coalesce_ms": 0}}
            async with bench.host(f"proxy-{variant}", **common, **changed) as host:
                seen: dict[str, list[dict[str, Any]]] = defaultdict(list)

                async def ours(host: Host = host, seen: dict[str, list[dict[str, Any]]] = seen) -> None:
                    seen["ours"].append(await bench.rate(host.target, *streams, reply_tokens=bench.args.tokens))

                async def theirs(name: str, coalesce: int, seen: dict[str, list[dict[str, Any]]] = seen) -> None:
                    target = f"127.0.0.1:{proxy.port}"
                    options = (*proxy_options, "--coalesce", str(coalesce))
                    seen[name].append(await bench.rate(target, *options, reply_tokens=proxy_tokens))

                await ours()
                units = max(1, round(seen["ours"][0]["tokens_per_message"]))
                await theirs("proxy", 0)
                seen.clear()
                for pair in range(bench.args.pairs):
                    for side in ordered(pair, "ours", "proxy", "proxy_equal_units"):
                        if side == "ours":
                            await ours()
                        else:
                            await theirs(side, 0 if side == "proxy" else units)
                    bench.say(f"  {variant} {pair}: {newest(seen)}")
            results[variant], detail[variant] = compared(seen, "ours", "proxy")
            detail[variant]["ratio_at_equal_units"] = compared(seen, "ours", "proxy_equal_units")[1]["ratio"]
    return {"vs_proxy": results, "vs_proxy_detail": detail}


async def vs_serve_llm(bench: Bench) -> dict[str, Any]:
    """The same against `ray.serve.llm`'s OpenAI application, with its own batching and without."""
    streams = ("--conversations", str(bench.args.streams))
    engine = ("--tokens", str(bench.args.tokens), "--tokens-per-delta", "1")
    detail: dict[str, Any] = {"gates": gates()}
    quick = min(bench.args.tokens, bench.args.proxy_tokens)
    settings = {"engine": flood(bench), "policy": {"scorers": []}, "gateway": wide(bench), "memory": WORDS_ONLY}
    async with bench.host("serve-llm", **settings) as host:
        for variant, batching, tokens in (
            ("default_batching", (), bench.args.tokens),
            # As slow as the proxy, and as steady.
            ("no_batching", ("--batching-ms", "0"), quick),
        ):
            async with bench.peer("tests.load.peers.serve_llm", *engine, *batching) as llm:
                seen: dict[str, list[dict[str, Any]]] = defaultdict(list)
                for pair in range(-1, bench.args.pairs):
                    for side in ordered(max(0, pair), "ours", "serve_llm"):
                        if side == "ours":
                            report = await bench.rate(host.target, *streams, reply_tokens=bench.args.tokens)
                        else:
                            options = ("--driver", "openai", "--model", llm.facts["model"])
                            report = await bench.rate(f"127.0.0.1:{llm.port}", *options, *streams, reply_tokens=tokens)
                        if pair >= 0:  # the first warms up
                            seen[side].append(report)
                    if pair >= 0:
                        bench.say(f"  {variant} {pair}: {newest(seen)}")
            detail[variant] = compared(seen, "ours", "serve_llm")[1]
    return {"vs_serve_llm": detail["default_batching"]["ratio"]["median"], "vs_serve_llm_detail": detail}


def newest(seen: dict[str, list[dict[str, Any]]]) -> str:
    """The last rate of each side."""
    return ", ".join(f"{side} {reports[-1]['tokens_per_s']:g} tokens/s" for side, reports in seen.items())


def compared(seen: dict[str, list[dict[str, Any]]], one: str, other: str) -> tuple[float, dict[str, Any]]:
    """Ratio of tokens a second, its interval, and both sides' rates and units."""
    pairs = zip(seen[one], seen[other], strict=True)
    ratio = interval([ours["tokens_per_s"] / theirs["tokens_per_s"] for ours, theirs in pairs])
    detail: dict[str, Any] = {"ratio": ratio}
    for side in (one, other):
        for figure in ("tokens_per_s", "messages_per_s", "tokens_per_message"):
            detail[f"{side}_{figure}"] = round(statistics.median(report[figure] for report in seen[side]), 2)
    return ratio["median"], detail


def wide(bench: Bench, **more: Any) -> dict[str, Any]:
    """Gateway settings under which a client that reads late loses no view, and no turn is refused: it is the rate that
    is measured."""
    return {"port": free_port(), "view_buffer_events": 4096, "max_accept_wait_s": 60, **more}


# -- open conversations -------------------------------------------------------


async def open_conversations(bench: Bench) -> dict[str, Any]:
    """Conversations held open with human pauses: matchers and rules, and then every gate.

    With every gate memory has its dense arm, too; without, it recalls by words.
    """
    cases = (
        ("open_5000", bench.args.open, ()),
        ("open_1000_all_gates", bench.args.open_all_gates, ("ngram",)),
    )
    results: dict[str, Any] = {}
    for key, count, scorers in cases:
        async with MetricsReceiver() as receiver:
            telemetry = {
                "log_level": "WARNING",
                "otlp_endpoint": receiver.endpoint,
                "metric_interval_s": 1.0,
                "trace_sample_ratio": 0.0,
            }
            engine = {"kind": "synthetic", "model": "synthetic", "parallel": 4096, "max_waiting": 4096, **PACED}
            async with bench.host(
                key,
                engine=engine,
                policy={"scorers": list(scorers)},
                memory={"dense": bool(scorers)},
                telemetry=telemetry,
                sessions={"turns_per_minute": 100_000, "max_running_turns": 4000},
                gateway={"port": free_port(), "max_concurrent_rpcs": 20_000},
            ) as host:
                options = ["--mode", "open", "--conversations", str(count), "--hold"]
                options += ["--duration", str(bench.args.open_s), "--warmup", str(bench.args.open_s / 5)]
                # Some are cut and some cancelled, as the scenario's defaults say.
                people = {"tenants": [{"name": "demo", "users": count, "personas": 20}]}
                report = await bench.load(host.target, *options, scenario=people, plot=key)
                await receiver.settle()
                bounds, counts = receiver.histogram(names.METRIC_DELTA_LATENESS)
        server_p99_5 = percentile_s(bounds, counts, 99.5) * 1000
        lateness = report["lateness_ms"]
        results[key] = {
            "failures": report["failures"],
            "admission_p99_ms": report["admission_ms"].get("p99"),
            # A bound: see docs/benchmarks.md.
            "lateness_p99_ms": round(server_p99_5 + lateness.get("p99_5", 0.0), 3),
        }
        results[f"{key}_detail"] = {
            "gates": gates(scorers),
            "conversations": count,
            "commit_to_arrival_ms": lateness,
            "clearance_to_delivery_p99_ms": round(percentile_s(bounds, counts, 99) * 1000, 3),
            "clearance_to_delivery_p99_5_ms": round(server_p99_5, 3),
            **{
                name: report[name]
                for name in (
                    *("failures_by_reason", "violations", "turns", "resumes", "mean_streaming"),
                    *("admission_ms", "first_text_ms", "client_lag_ms", "client_cpu_share", "tokens_per_s"),
                )
            },
        }
        bench.say(f"  {key}: {results[key]}")
    return results


# -- memory of an idle conversation -------------------------------------------


async def idle_memory(bench: Bench) -> dict[str, Any]:
    """Memory that a gateway needs for one more idle open conversation: the slope over more and more of them."""
    many = bench.args.idle
    engine = {"kind": "synthetic", "model": "synthetic", "parallel": 4096, **PACED, "synthetic_itl_ms": 0.0}
    gateway = {"port": free_port(), "max_concurrent_rpcs": 20_000}
    async with bench.host("idle", engine=engine, gateway=gateway) as host, AsyncExitStack() as stack:
        # Each has had a turn: an idle conversation is one that paused, and what it keeps cached counts.
        options = ("--conversations", str(many), "--at-once", "32", "--prefix", "idle")
        await bench.rate(host.target, *options, tenants=[{"name": "demo", "users": many, "personas": 1}])
        channels = [
            await stack.enter_async_context(
                grpc.aio.insecure_channel(host.target, options=[("personae.load.channel", index)])
            )
            for index in range(-(-many // 100))
        ]
        watching: list[Any] = []

        async def watch(index: int) -> None:
            stub = session_service_pb2_grpc.SessionServiceStub(channels[index % len(channels)])
            session = f"tenants/demo/personas/load-64-0-0/sessions/idle-{index}"
            call = stub.Attach(
                session_service_pb2.AttachRequest(session=session), metadata=(("authorization", f"Bearer {KEY}"),)
            )
            watching.append(call)
            # What was is replayed; after that the stream is idle.
            await until(call, "turn_completed")

        steps, sizes = [many * share // 5 for share in range(1, 6)], []
        for count in steps:
            for begin in range(len(watching), count, 50):
                await asyncio.gather(*(watch(index) for index in range(begin, min(count, begin + 50))))
            sizes.append(sum(process.memory_full_info().uss for process in host.gateways()))
        found = statistics.linear_regression(steps, sizes).slope / 1024
        mib = {str(count): round(size / 2**20, 1) for count, size in zip(steps, sizes, strict=True)}
        detail = {"processes": len(host.gateways()), "mib": mib}
        for call in watching:
            call.cancel()
    bench.say(f"  {found:.1f} KB, {detail}")
    return {"kb_per_idle": round(found, 1), "kb_per_idle_detail": detail}


# -- beside a real model -------------------------------------------------------


def vllm_engine(bench: Bench, **more: Any) -> dict[str, Any]:
    """Our engine's settings, those of the peers' `DEFAULTS`."""
    return {"kind": "vllm", "model": MODEL, "parallel": 64, "context_tokens": 2048, **more}


async def prompts(host: Host, conversations: Sequence[Conversation]) -> list[dict[str, Any]]:
    """What the turns of these people will send to the engine, composed as the turn does it, from the same ledger.

    They have no memories and no history, so the prompt is the persona's prefix, the
    scope's marker and their words. The prompt's tokens are compared after the run.
    """
    settings = load_settings(host.config)
    found = []
    async with AsyncExitStack() as stack:
        stores = await open_stores(settings, stack)
        personas = PersonaLedger(stores.database, stores.vault)
        for conversation in conversations:
            name = parse("persona", f"tenants/demo/personas/{conversation.persona}")
            persona = await personas.get(name)
            assert persona.active_revision is not None
            revision = await personas.revision(name, persona.active_revision)
            prefix = compile_prefix(revision.definition, persona_type=persona.type, display_name=persona.display_name)
            cipher = await stores.vault.cipher(Scope("demo", conversation.persona, conversation.user))
            text = next(conversation.plan()).text
            messages = compose(prefix, cipher.marker, [], text, [])
            found.append({"messages": as_json(messages), "salt": conversation.persona})
    return found


def as_json(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages for a peer."""
    return [{"role": str(message.role), "content": message.content} for message in messages]


@asynccontextmanager
async def vllm_sides(bench: Bench, *, llm: bool) -> AsyncIterator[tuple[Host, Peer, Peer | None]]:
    """This project, bare vLLM and Serve LLM over the same folder, all up."""
    folder = str(hf_folder(MODEL, load_settings().models_dir))
    async with AsyncExitStack() as stack:
        postgres = EmbeddedPostgres(bench.folder("vllm-postgres"))
        stack.push_async_callback(postgres.stop)
        dsn = await postgres.start()
        ledger = {"dsn": dsn, "master_key": base64.b64encode(os.urandom(32)).decode()}
        # One after the other: loading is work for every core.
        bare = await stack.enter_async_context(bench.peer("tests.load.peers.vllm_engine", folder))
        host = await stack.enter_async_context(
            bench.host("vllm", engine=vllm_engine(bench), ledger=ledger, memory={"dense_deadline_ms": 1000.0})
        )
        serve_llm = None
        if llm:
            serve_llm = await stack.enter_async_context(bench.peer("tests.load.peers.serve_llm", "--model", folder))
        yield host, bare, serve_llm


class Sides:
    """Runs the very same first turns of people who never talked before on each side."""

    def __init__(self, bench: Bench, host: Host, bare: Peer, llm: Peer | None) -> None:
        self._bench = bench
        self._host = host
        self._bare = bare
        self._llm = llm
        self._first_user = 0
        self._published: set[str] = set()
        self.tokens_differ = 0

    async def run(self, turns: int, at_once: int, tokens: int, sides: Sequence[str]) -> dict[str, dict[str, Any]]:
        """TTFT (median, ms), tokens a second and tokens of each side."""
        tenant = {"name": "demo", "users": turns, "personas": 1, "first_user": self._first_user}
        self._first_user += turns
        people: dict[str, Any] = {"tenants": [tenant], "reply_tokens": tokens}
        planned = burst(load_scenario(**people), turns)
        options = ("--conversations", str(turns), "--at-once", str(at_once))
        if planned[0].persona not in self._published:
            await self._publish(planned[0].persona, tokens)
            # What all its users share is read once on every side before anything is compared.
            await self.run(1, 1, tokens, sides)
        asked = await prompts(self._host, planned)
        results: dict[str, dict[str, Any]] = {}
        counts: dict[str, int] = {}
        for side in sides:
            if side == "bare":
                requests = [{**one, "max_tokens": tokens} for one in asked]
                answer = await self._bare.ask({"requests": requests, "concurrency": at_once})
                made = answer["results"]
                counts[side] = sum(len(one["prompt"]) for one in made)
                written = sum(one["tokens"] for one in made)
                results[side] = {
                    "ttft_ms": statistics.median(one["ttft_s"] for one in made) * 1000,
                    "tokens_per_s": written / answer["wall_s"],
                    "tokens": written,
                }
                continue
            if side == "ours":
                report = await self._bench.rate(self._host.target, *options, **people)
                ttft = report["server_ttft_ms"]["p50"]
            else:
                assert self._llm is not None
                messages = [one["messages"] for one in asked]
                openai = ("--driver", "openai", "--model", self._llm.facts["model"])
                target = f"127.0.0.1:{self._llm.port}"
                report = await self._bench.rate(target, *openai, *options, **people, messages=messages)
                ttft = report["first_text_ms"]["p50"]
            counts[side] = report["input_tokens"]
            results[side] = {
                "ttft_ms": ttft,
                "first_text_ms": report["first_text_ms"]["p50"],
                "tokens_per_s": report["output_tokens"] / report["span_s"],
                "tokens": report["output_tokens"],
            }
        self.tokens_differ += len(set(counts.values())) > 1
        shown = {side: {name: round(value, 1) for name, value in one.items()} for side, one in results.items()}
        self._bench.say(f"  {turns} turns, {at_once} at once: {shown}")
        return results

    async def _publish(self, persona: str, tokens: int) -> None:
        """Have the persona there before its prompts are composed: by a turn of somebody else."""
        self._published.add(persona)
        tenant = {"name": "demo", "users": 1, "personas": 1, "first_user": 1_000_000 + self._first_user}
        await self._bench.rate(self._host.target, "--conversations", "1", tenants=[tenant], reply_tokens=tokens)


async def added_ttft(bench: Bench) -> dict[str, Any]:
    """Milliseconds to the engine's first delta beyond bare vLLM's, at 1 and 16 conversations, ours and Serve LLM's."""
    added: dict[str, dict[str, list[float]]] = {"ours": defaultdict(list), "serve_llm": defaultdict(list)}
    async with vllm_sides(bench, llm=True) as (host, bare, llm):
        sides = Sides(bench, host, bare, llm)
        await sides.run(4, 4, 16, ("bare", "ours", "serve_llm"))
        for pair in range(bench.args.pairs):
            for at_once in (1, 16):
                order = ordered(pair, "bare", "ours", "serve_llm")
                # Alone, nothing after the first token matters: short replies keep the sides of a pair close in time.
                turns, tokens = (bench.args.ttft_turns, 2) if at_once == 1 else (16, 16)
                found = await sides.run(turns, at_once, tokens, order)
                for side, values in added.items():
                    values[str(at_once)].append(found[side]["ttft_ms"] - found["bare"]["ttft_ms"])
    detail = {side: {key: interval(found) for key, found in values.items()} for side, values in added.items()}
    return {
        "added_ttft_ms": {key: found["median"] for key, found in detail["ours"].items()},
        "serve_llm_added_ttft_ms": {key: found["median"] for key, found in detail["serve_llm"].items()},
        "added_ttft_detail": {
            **detail,
            "gates": gates(("ngram",)),
            "runs_with_different_prompt_tokens": sides.tokens_differ,
        },
    }


async def tokens_ratio(bench: Bench) -> dict[str, Any]:
    """Tokens a second through everything over those of bare vLLM, at 16 and 64 conversations."""
    ratios: dict[str, list[float]] = defaultdict(list)
    async with vllm_sides(bench, llm=False) as (host, bare, _):
        sides = Sides(bench, host, bare, None)
        await sides.run(4, 4, 16, ("bare", "ours"))
        for pair in range(bench.args.pairs):
            for count in bench.args.ratio_counts:
                found = await sides.run(count, count, bench.args.ratio_tokens, ordered(pair, "bare", "ours"))
                ratios[str(count)].append(found["ours"]["tokens_per_s"] / found["bare"]["tokens_per_s"])
    detail = {key: interval(values) for key, values in ratios.items()}
    return {
        "tokens_ratio": {key: value["median"] for key, value in detail.items()},
        "tokens_ratio_detail": {
            **detail,
            "gates": gates(("ngram",)),
            "runs_with_different_prompt_tokens": sides.tokens_differ,
        },
    }


# -- what a cancel frees -------------------------------------------------------


LONG_QUESTION = "Please tell me everything about rivers, bicycles and lighthouses, as long and as detailed as you can."


async def abort(bench: Bench) -> dict[str, Any]:
    """From CancelTurn to the engine's next token for somebody else, with an engine of one place.

    The second turn, of one token, can only run once vLLM has let go of the first. What such a
    turn takes from the engine on is measured alone and printed beside it; the difference is
    what cancelling and the abort took.
    """
    engine = (
        vllm_engine(bench, parallel=1, max_waiting=8)
        if bench.args.abort_engine == "vllm"
        else {"kind": "synthetic", "model": "synthetic", "parallel": 1, "max_waiting": 8}
        | {"synthetic_ttft_ms": 20.0, "synthetic_itl_ms": 20.0, "synthetic_tokens": 400}
    )
    async with bench.host("abort", engine=engine, policy={"scorers": []}, memory={"enabled": False}) as host:
        for tokens in (400, 1):
            people = [{"name": "demo", "personas": 1, "users": 1}]
            await bench.rate(host.target, "--conversations", "1", tenants=people, reply_tokens=tokens)
        metadata = (("authorization", f"Bearer {KEY}"),)
        async with (
            PersonaeClient(host.target, api_key=KEY) as client,
            grpc.aio.insecure_channel(host.target) as channel,
        ):
            stub = session_service_pb2_grpc.SessionServiceStub(channel)

            async def session(tokens: int, user: str) -> str:
                persona = f"tenants/demo/personas/load-{tokens}-0-0"
                return (await client.sessions.create(persona, user=f"{persona}/users/{user}")).name

            def say(session: str) -> Any:
                request = session_service_pb2.ConverseRequest(session=session, turn_id="t1", text=LONG_QUESTION)
                return stub.Converse(request, metadata=metadata)

            idle: list[float] = []
            after: list[float] = []
            for attempt in range(3 * bench.args.aborts):
                if len(after) == bench.args.aborts:
                    break
                # Alone: from the prompt's arrival at the engine to the turn's end here.
                alone = await session(1, f"alone{attempt}")
                begun = time.perf_counter()
                events = await until(say(alone), "turn_completed")
                whole = (time.perf_counter() - begun) * 1000
                queue = next(event.latency.queue for event in events if event.HasField("latency"))
                idle.append(whole - queue.ToNanoseconds() / 1e6)
                # Behind another: A runs, B waits for its place, A is cancelled.
                first = await session(400, f"a{attempt}")
                second = await session(1, f"b{attempt}")
                running = say(first)
                await until(running, "text_delta")
                waiting = say(second)
                await until(waiting, "turn_started")
                if (await one_of(running, "text_delta", "turn_completed")) == "turn_completed":
                    await until(waiting, "turn_completed")
                    continue  # A had said all before B was in the engine's queue, where the next text finds it
                begun = time.perf_counter()
                cancelled = asyncio.ensure_future(
                    stub.CancelTurn(session_service_pb2.CancelTurnRequest(name=f"{first}/turns/t1"), metadata=metadata)
                )
                await until(waiting, "turn_completed")
                seconds = time.perf_counter() - begun
                await cancelled
                if (await one_of(running, "turn_interrupted", "turn_completed")) == "turn_interrupted":
                    after.append(seconds * 1000)
    if not after:
        raise RuntimeError("every reply ended before it could be cancelled")
    difference = [one - statistics.median(idle) for one in after]
    found = {
        "engine": bench.args.abort_engine,
        "cancel_to_next_token_ms": interval(after),
        "idle_turn_ms": interval(idle),
        "difference_ms": interval(difference),
    }
    bench.say(f"  {found}")
    return {"abort_ms": round(statistics.median(difference), 1), "abort_detail": found}


async def one_of(call: Any, *kinds: str) -> str:
    """Which of these kinds of events comes first; the stream is read up to it.

    Raises:
        RuntimeError: it ended without any.
    """
    while (event := await call.read()) is not grpc.aio.EOF:
        if (kind := str(event.WhichOneof("event"))) in kinds:
            return kind
    raise RuntimeError(f"a stream ended without {' or '.join(kinds)}")


async def until(call: Any, kind: str) -> list[event_pb2.SessionEvent]:
    """The events of a stream up to and with the first of a kind.

    Raises:
        RuntimeError: it ended without.
    """
    events: list[event_pb2.SessionEvent] = []
    while (event := await call.read()) is not grpc.aio.EOF:
        events.append(event)
        if event.WhichOneof("event") == kind:
            return events
    raise RuntimeError(f"a stream ended without {kind}: {[event.WhichOneof('event') for event in events]}")


# -- prefix cache ---------------------------------------------------------------


PERSONAS = 4
SIZES = {"prefix": 800, "card": 150, "user": 30, "recall": 80}
"""Tokens of each part of a prompt."""
WORDS = ("river", "bicycle", "orchard", "lamp", "winter", "harbour", "letter", "garden", "quiet", "market", "stone")


async def prefix_hits(bench: Bench) -> dict[str, Any]:
    """Prompt tokens that vLLM finds in its cache, over ten-turn sessions, in our order and in the naive one."""
    from tokenizers import Tokenizer

    folder = str(hf_folder(MODEL, load_settings().models_dir))
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    # Room for every session's blocks: what is measured is the order, not eviction.
    engine = json.dumps({"max_model_len": 4096, "kv_cache_memory_bytes": 4 << 30, "block_size": 32})
    # The naive order finds nothing in the cache, so its turns cost their whole prompts; the first show as much.
    turns = {"layered": bench.args.prefix_turns, "naive": min(bench.args.prefix_turns, bench.args.naive_turns)}
    results: dict[str, dict[str, int]] = {}
    reusable_by_turn: list[int] = []
    for order in turns:
        async with bench.peer("tests.load.peers.vllm_engine", folder, "--engine", engine) as peer:
            dialogues = [
                Dialogue(tokenizer, persona, user, naive=order == "naive")
                for persona in range(PERSONAS)
                for user in range(bench.args.prefix_users)
            ]
            draw = random.Random(7)
            totals = dict.fromkeys(("prompt", "cached", "reusable"), 0)
            seen: dict[int, list[list[int]]] = defaultdict(list)
            for turn in range(turns[order]):
                draw.shuffle(dialogues)
                requests = [
                    {
                        "messages": as_json(dialogue.prompt(turn)),
                        "max_tokens": bench.args.prefix_reply,
                        "exact": True,
                        "salt": f"persona-{dialogue.persona}",
                    }
                    for dialogue in dialogues
                ]
                # People don't all begin at once: what a persona's users share is there for all but the first.
                answer = await peer.ask({"requests": requests, "concurrency": 4 if turn == 0 else 16})
                for dialogue, found in zip(dialogues, answer["results"], strict=True):
                    dialogue.replied(found["text"])
                    totals["prompt"] += len(found["prompt"])
                    totals["cached"] += found["cached"]
                    totals["reusable"] += reusable(found["prompt"], seen[dialogue.persona])
                    seen[dialogue.persona].append(found["prompt"] + found["token_ids"])
                bench.say(f"  {order}, turn {turn + 1}: {totals}")
                if order == "layered":
                    reusable_by_turn.append(totals["reusable"])
            results[order] = totals
    ours, naive = results["layered"], results["naive"]
    return {
        "prefix_hit_reusable": round(ours["cached"] / ours["reusable"], 4),
        "prefix_hit_raw": round(ours["cached"] / ours["prompt"], 4),
        # Of the tokens that our order makes reusable in as many turns: the conversation is the same.
        "prefix_hit_naive": round(naive["cached"] / reusable_by_turn[turns["naive"] - 1], 4),
        "prefix_hit_naive_raw": round(naive["cached"] / naive["prompt"], 4),
        "prefix_hit_detail": {**results, "turns": turns, "block_size": 32, **SIZES, "reply": bench.args.prefix_reply},
    }


class Dialogue:
    """One user's session with one persona, with parts of given length."""

    def __init__(self, tokenizer: Any, persona: int, user: int, *, naive: bool) -> None:
        self.persona = persona
        self._tokenizer = tokenizer
        self._naive = naive
        self._user = f"{persona}/{user}"
        self._prefix = self._words(f"persona {persona}", SIZES["prefix"])
        self._card = self._words(f"card {self._user}", SIZES["card"])
        self._marker = hashlib.sha256(self._user.encode()).hexdigest()[:12]
        self._said: list[tuple[str, str]] = []

    def prompt(self, turn: int) -> list[Message]:
        """The messages of a turn, in our order or in the naive one: time and recall before everything else."""
        text = self._words(f"user {self._user} {turn}", SIZES["user"])
        memory = self._words(f"recall {self._user} {turn}", SIZES["recall"])
        history = [PastTurn(number, said, reply, 1) for number, (said, reply) in enumerate(self._said, 1)]
        self._said.append((text, ""))
        # The profile card is frozen for the session, so it stands where the session's part begins.
        marker = f"{self._marker}]\n\n[{self._card}"
        if not self._naive:
            return compose(self._prefix, marker, history, text, [recalled(memory)])
        now = f"It is 2026-11-21 10:{turn:02d}:17.\n{memory}\n\n{self._prefix}"
        return compose(now, marker, history, text, [])

    def replied(self, text: str) -> None:
        """What the model said to the last prompt."""
        self._said[-1] = (self._said[-1][0], text)

    def _words(self, seed: str, tokens: int) -> str:
        draw = random.Random(seed)
        text = draw.choice(WORDS).capitalize()
        while len(self._tokenizer.encode(text, add_special_tokens=False).ids) < tokens:
            text += draw.choice((" ", ", ", " and ")) + draw.choice(WORDS)
        return text


def recalled(text: str) -> RecalledMemory:
    """A memory with these words."""
    when = datetime(2026, 11, 1, tzinfo=UTC)
    record = MemoryRecord(UUID(int=1), "", text, "Kim", when, "", 0, MemorySource.TURN, when)
    return RecalledMemory(record, 1.0)


def reusable(prompt: Sequence[int], before: Sequence[Sequence[int]]) -> int:
    """Tokens that an endless cache of single tokens would have: the longest beginning that was read before.

    One token is always computed, as the engine needs its output.
    """
    longest = max((common(prompt, one) for one in before), default=0)
    return min(longest, len(prompt) - 1)


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))


# -- the whole -------------------------------------------------------------------


PARTS: dict[str, Callable[[Bench], Awaitable[dict[str, Any]]]] = {
    "vs_proxy": vs_proxy,
    "vs_serve_llm": vs_serve_llm,
    "open": open_conversations,
    "idle_memory": idle_memory,
    "added_ttft": added_ttft,
    "tokens_ratio": tokens_ratio,
    "prefix_hits": prefix_hits,
    "abort": abort,
}


def options() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="accepted for uniformity: stdout is one JSON line anyway")
    parser.add_argument("--only", choices=tuple(PARTS), action="append", help="this part; may be given again")
    parser.add_argument("--host", choices=("cluster", "embedded"), default="cluster", help="what serves our side")
    parser.add_argument("--gateways", type=int, default=1, help="gateway replicas")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--streams", type=int, default=32, help="vs_*: streams at once")
    parser.add_argument("--tokens", type=int, default=4000, help="vs_*: tokens of a stream")
    parser.add_argument("--proxy-tokens", type=int, default=250, help="vs_*: of those, read from a slow peer")
    parser.add_argument("--open", type=int, default=5000, help="open: conversations, matchers and rules")
    parser.add_argument("--open-all-gates", type=int, default=1000, help="open: conversations, all gates")
    parser.add_argument("--open-s", type=float, default=150.0, help="open: seconds, a fifth of them to warm up")
    parser.add_argument("--idle", type=int, default=2500, help="idle_memory: streams")
    parser.add_argument("--ttft-turns", type=int, default=8, help="added_ttft: turns of one conversation at a time")
    parser.add_argument("--ratio-counts", type=int, nargs="+", default=[16, 64], help="tokens_ratio: conversations")
    parser.add_argument("--ratio-tokens", type=int, default=64, help="tokens_ratio: tokens of a reply")
    parser.add_argument("--aborts", type=int, default=20)
    parser.add_argument("--abort-engine", choices=("vllm", "synthetic"), default="vllm")
    parser.add_argument("--prefix-turns", type=int, default=10, help="prefix_hits: turns of a session")
    parser.add_argument("--naive-turns", type=int, default=3, help="prefix_hits: of the naive order, which costs most")
    parser.add_argument("--prefix-users", type=int, default=5, help="prefix_hits: users of each persona")
    parser.add_argument("--prefix-reply", type=int, default=80, help="prefix_hits: tokens of a reply")
    parser.add_argument("--plots", type=Path, help="folder for the plots of `open`")
    return parser


def parts(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[Bench], Awaitable[dict[str, Any]]]]]:
    """The parts that were asked for."""
    for name, part in PARTS.items():
        if not args.only or name in args.only:
            yield name, part


async def main(args: argparse.Namespace) -> int:
    """Run the parts; 0 if all could be measured, which says nothing of the goals."""
    # A benchmark that is ended takes its servers with it.
    running = asyncio.current_task()
    assert running is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    results: dict[str, Any] = {"host": args.host}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="personae-bench-", ignore_cleanup_errors=True) as folder:
        bench = Bench(args, Path(folder))
        for name, part in parts(args):
            bench.say(f"{name} ...")
            begun = time.perf_counter()
            try:
                found = await part(bench)
            except Exception as error:
                # One part that can't be measured must not cost the others.
                failed[name] = f"{type(error).__name__}: {error}"
                bench.say(f"{name} failed: {failed[name]}")
                continue
            results |= found
            bench.say(f"{name} took {time.perf_counter() - begun:.0f} s: {json.dumps(found)}")
    if failed:
        results["failed"] = failed
    print(json.dumps(results), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(uvloop.run(main(options().parse_args())))
