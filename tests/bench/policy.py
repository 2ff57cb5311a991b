"""The policy gate alone: `python -m tests.bench.policy [--json]`.

1. Input gate: wall milliseconds of one `Policy.decide` at stage input, texts of about 32 tokens that were not judged
   before, one at a time; with matchers, rules and the n-gram head, and with the cascade, which embeds.
2. Stream gate: milliseconds of processor time, of all threads of the process, for each 100 tokens of a reply that is
   fed in deltas of one token (four characters); and wall milliseconds from the last of them until the last unit leaves,
   which waits for what judges the whole reply.

3. Kill switch: milliseconds from the call until clients of two gateways on one ledger see the terminal events of the
   streams that it ends.

All texts are benign and made by a seed; what of them the cascade embeds is reported beside. Progress goes to stderr;
the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from personae_runtime.config import load_settings
from personae_runtime.memory.embedder import OnnxEmbedder, Vector
from personae_runtime.policy.decision import PolicyContext, Stage
from personae_runtime.policy.policy import Policy
from personae_serve.stores import make_embedder
from tests.bench.memory import sentence
from tests.bench.switches import kill_switch

CONTEXT = PolicyContext("assistant")
CHARS_PER_TOKEN = 4
INPUT_TOKENS = 32
REPLY_TOKENS = 200


class CountingEmbedder:
    """Counts what it hands on."""

    def __init__(self, embedder: OnnxEmbedder) -> None:
        self.texts = 0
        self._embedder = embedder

    async def embed(self, texts: Sequence[str], *, bulk: bool = False) -> list[Vector]:
        self.texts += len(texts)
        return await self._embedder.embed(texts, bulk=bulk)


def text_of(draw: random.Random, tokens: int) -> str:
    text = ""
    while len(text) < tokens * CHARS_PER_TOKEN:
        text += sentence(draw) + " "
    return text[: tokens * CHARS_PER_TOKEN]


async def input_gate(policy: Policy, count: int) -> dict[str, float]:
    draw, took = random.Random(7), []
    for number in range(count + 5):
        text = text_of(draw, INPUT_TOKENS)
        begun = time.perf_counter()
        await policy.decide(Stage.INPUT, text, CONTEXT)
        if number >= 5:  # the first ones warm up
            took.append((time.perf_counter() - begun) * 1000)
    return {"p50_ms": round(statistics.median(took), 2), "p95_ms": round(float(np.percentile(took, 95)), 2)}


async def stream_gate(policy: Policy, count: int) -> dict[str, float]:
    draw, took, ends, stopped = random.Random(8), [], [], 0
    for number in range(count + 2):
        text = text_of(draw, REPLY_TOKENS)
        gate = policy.open_stream(CONTEXT)
        begun = time.process_time()
        for at in range(0, len(text), CHARS_PER_TOKEN):
            if gate.feed(text[at : at + CHARS_PER_TOKEN]):
                await gate.clear()
        said = time.perf_counter()
        end = await gate.clear(final=True)
        ended = time.perf_counter()
        if end.decision is not None and end.decision.action.stops:
            stopped += 1
        elif number >= 2:
            took.append((time.process_time() - begun) * 1000 * 100 / REPLY_TOKENS)
            ends.append((ended - said) * 1000)
    return {
        "cpu_ms_per_100_tokens": round(statistics.median(took), 2),
        "cpu_ms_per_100_tokens_p95": round(float(np.percentile(took, 95)), 2),
        "last_unit_p50_ms": round(statistics.median(ends), 2),
        "last_unit_p95_ms": round(float(np.percentile(ends, 95)), 2),
        "replies": len(took),
        "replies_stopped": stopped,
    }


async def run(count: int) -> dict[str, Any]:
    settings = load_settings()
    report: dict[str, Any] = {}
    model = make_embedder(settings.models_dir)
    await model.start()
    try:
        for name, scorers in (("ngram", ("ngram",)), ("cascade", ("ngram", "cascade"))):
            embedder = CountingEmbedder(model)
            policy = Policy.load(None, scorers, 60_000, embedder)
            print(f"{name}: input gate", file=sys.stderr)
            result: dict[str, Any] = {"input": await input_gate(policy, count)}
            result["input"]["embedded_per_text"] = round(embedder.texts / (count + 5), 2)
            embedder.texts = 0
            print(f"{name}: stream gate", file=sys.stderr)
            replies = max(3, count // 10)
            result["stream"] = await stream_gate(policy, replies)
            result["stream"]["embedded_per_100_tokens"] = round(embedder.texts / (replies + 2) * 100 / REPLY_TOKENS, 2)
            report[name] = result
    finally:
        await model.close()
    print("kill switch", file=sys.stderr)
    report["kill_switch_ms"] = await kill_switch(rounds=max(2, count // 10), streams=8)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.policy", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="texts at input; a tenth as many replies")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    args = parser.parse_args()
    report = asyncio.run(run(args.count))
    if not args.json:
        for name, parts in report.items():
            for part, figures in (parts if name in ("ngram", "cascade") else {"": parts}).items():
                print(f"{name:8} {part:7} " + ", ".join(f"{key} {value}" for key, value in figures.items()))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
