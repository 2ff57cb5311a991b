"""How well the watermark is found, by length: `python -m tests.bench.watermark [--json]`.

vLLM and SmolLM2 answer the same prompts with and without the watermark. The replies' text is read again by the
tokenizer and cut to 25, 50, 100 and 200 tokens; shorter ones don't count for that length. For each:

- `found`: share of the marked replies in which the watermark is found at a false-positive rate of 1 %, with its 95 %
  interval (Wilson);
- `false_positives`: share of the unmarked replies in which it is found with any of 50 keys that marked nothing; the
  replies are few and the keys many, so the pairs are not independent.

What the mark does to the text: mean log-probability of the tokens as the model gives it (temperature 1), and the share
of a reply's sequences of four tokens that are distinct. Progress goes to stderr; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personae_runtime.config import EngineSettings, load_settings
from personae_runtime.engines.engine import Engine, GenerateRequest, Message
from personae_runtime.engines.factory import build_engine
from personae_runtime.engines.models import hf_folder
from personae_runtime.engines.watermark import detect, read_key, tokens_of
from personae_runtime.statistics import wilson

MODEL = "smollm2-135m-instruct"
LENGTHS = (25, 50, 100, 200)
MAX_TOKENS = 220
OTHER_KEYS = 50
ASKED = ("Write a long story about {}.", "Tell me in detail what you know about {}.", "Describe a day with {}.")
THINGS = (
    *("a lighthouse keeper", "an old bicycle", "a lost letter", "the first snow", "a market in the morning"),
    *("a shy violinist", "two sisters", "the night train", "a garden after rain", "a broken clock", "the sea"),
    *("a village school", "a mountain path", "a baker", "the last day of summer", "a stray dog"),
)


@dataclass(frozen=True)
class Reply:
    """One reply.

    Attributes:
        tokens: of its text, read again.
        logprobs: of the tokens as they were drawn.
    """

    tokens: list[int]
    logprobs: list[float]


async def replies(engine: Engine, folder: Path, prompts: list[str], temperature: float, marked: bool) -> list[Reply]:
    async def reply(number: int, prompt: str) -> Reply:
        request = GenerateRequest(
            request_id=f"{temperature}-{marked}-{number}",
            messages=(Message("user", prompt),),
            max_tokens=MAX_TOKENS,
            temperature=temperature,
            logprobs=1,
            watermark=marked,
        )
        text, logprobs = "", []
        async for delta in engine.generate(request):
            text += delta.text
            logprobs += [token.likeliest[0][1] for token in delta.logprobs]
        return Reply(await asyncio.to_thread(tokens_of, text, folder), logprobs)

    begun = time.monotonic()
    got = await asyncio.gather(*(reply(*numbered) for numbered in enumerate(prompts)))
    drawn = sum(len(one.logprobs) for one in got)
    took = time.monotonic() - begun
    print(f"temperature {temperature}, marked {marked}: {drawn} tokens, {drawn / took:.0f} a second", file=sys.stderr)
    return list(got)


def rates(marked: list[Reply], plain: list[Reply], key: int, others: list[int]) -> list[dict[str, Any]]:
    """A row for each length."""
    rows = []
    for length in LENGTHS:
        long = [one.tokens[:length] for one in marked if len(one.tokens) >= length]
        found = sum(bool(detect(tokens, key).found) for tokens in long)
        unmarked = [one.tokens[:length] for one in plain if len(one.tokens) >= length]
        false = sum(detect(tokens, other).p_value <= 0.01 for tokens in unmarked for other in (key, *others))
        pairs = len(unmarked) * (1 + len(others))
        rows.append(
            {
                "tokens": length,
                "replies": len(long),
                "found": round(found / max(len(long), 1), 3),
                "found_95": [round(end, 3) for end in wilson(found, len(long))],
                "unmarked_replies": len(unmarked),
                "false_positives": round(false / max(pairs, 1), 4),
                "false_positives_of": pairs,
            }
        )
    return rows


def cost(got: list[Reply]) -> dict[str, float]:
    """What the text is like."""
    fours = [list(zip(*(one.tokens[at:] for at in range(4)), strict=False)) for one in got if len(one.tokens) > 50]
    return {
        "mean_logprob": round(statistics.mean(value for one in got for value in one.logprobs), 3),
        "distinct_fours": round(statistics.mean(len(set(one)) / len(one) for one in fours), 3),
    }


async def run(count: int, temperatures: list[float]) -> dict[str, Any]:
    settings = load_settings()
    folder = hf_folder(MODEL, settings.models_dir)
    chosen = random.Random(7)
    prompts = [ask.format(thing) for ask in ASKED for thing in THINGS][:count]
    key_bytes, others = chosen.randbytes(8), [chosen.getrandbits(64) for _ in range(OTHER_KEYS)]
    report: dict[str, Any] = {"model": MODEL, "prompts": len(prompts), "temperatures": {}}
    with tempfile.TemporaryDirectory() as made:
        file = Path(made) / "watermark.key"
        file.write_bytes(base64.b64encode(key_bytes))
        key = read_key(file)
        engine = build_engine(
            EngineSettings(kind="vllm", model=MODEL, parallel=len(prompts), context_tokens=512, watermark_key=file),
            profile=settings.profile,
            models_dir=settings.models_dir,
        )
        try:
            await engine.start()
            for temperature in temperatures:
                plain = await replies(engine, folder, prompts, temperature, False)
                marked = await replies(engine, folder, prompts, temperature, True)
                report["temperatures"][str(temperature)] = {
                    "lengths": rates(marked, plain, key, others),
                    "marked": cost(marked),
                    "plain": cost(plain),
                }
                print(json.dumps(report["temperatures"][str(temperature)]), file=sys.stderr)
        finally:
            await engine.close()
    return report


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.watermark", description=__doc__)
    parser.add_argument("--count", type=int, default=48, help="prompts, at most 48")
    parser.add_argument(
        "--temperatures", type=float, nargs="+", default=[0.6, 1.0], help="0.6 is the default of personas"
    )
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    args = parser.parse_args()
    report = asyncio.run(run(args.count, args.temperatures))
    if not args.json:
        for temperature, found in report["temperatures"].items():
            for row in found["lengths"]:
                print(f"temperature {temperature}: " + ", ".join(f"{name} {value}" for name, value in row.items()))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
