"""Bare vLLM in one process, with nothing in front of it: `python -m tests.load.peers.vllm_engine FOLDER`.

Prints `port` 0 when it is loaded, then answers JSON lines. A command has
`requests`, a list of {messages, max_tokens, salt?, exact?}, all sent at once
(or `concurrency` at a time), greedy; `exact` goes on past the end of the text. The answer
has `wall_s`, and for each request the seconds to the first and last token from
the start of the run, the tokens, the prompt's ids and how many of them came
from the prefix cache, and the text.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from itertools import count
from typing import Any

from tests.load.peers import ready

DEFAULTS = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 2048,
    "max_num_seqs": 64,
    "block_size": 32,
    "max_num_batched_tokens": 256,
    "enable_prefix_caching": True,
    "kv_cache_memory_bytes": 1 << 30,
}
"""Engine arguments that every vLLM here is started with, unless told otherwise: equal on all sides."""


def environment() -> None:
    """What vLLM wants set before it is imported."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


class Bare:
    """An AsyncLLM and its chat template."""

    def __init__(self, folder: str, engine: dict[str, Any]) -> None:
        from transformers import AutoTokenizer
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(model=folder, disable_log_stats=True, **engine))
        self._serial = count()

    async def run(self, command: dict[str, Any]) -> dict[str, Any]:
        """Answer one command."""
        places = asyncio.Semaphore(command.get("concurrency") or len(command["requests"]))
        # Rendered beforehand: this is the engine alone.
        prompts = [self._render(request["messages"]) for request in command["requests"]]
        begun = time.perf_counter()

        async def one(request: dict[str, Any], prompt: list[int]) -> dict[str, Any]:
            async with places:
                return await self._one(request, prompt, begun)

        asked = zip(command["requests"], prompts, strict=True)
        results = await asyncio.gather(*(one(request, prompt) for request, prompt in asked))
        return {"wall_s": time.perf_counter() - begun, "results": results}

    def _render(self, messages: list[dict[str, str]]) -> list[int]:
        found: list[int] = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return found

    async def _one(self, request: dict[str, Any], prompt: list[int], begun: float) -> dict[str, Any]:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        given = TokensPrompt(prompt_token_ids=prompt)
        if request.get("salt"):
            given["cache_salt"] = request["salt"]
        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=request["max_tokens"],
            ignore_eos=bool(request.get("exact")),
            output_kind=RequestOutputKind.DELTA,
        )
        first = last = 0.0
        tokens: list[int] = []
        texts: list[str] = []
        cached = 0
        sent = time.perf_counter()
        async for output in self._llm.generate(given, sampling, str(next(self._serial))):
            last = time.perf_counter()
            first = first or last
            tokens += output.outputs[0].token_ids
            texts.append(output.outputs[0].text)
            cached = output.num_cached_tokens or 0
        return {
            "ttft_s": first - sent,
            "first_s": first - begun,
            "last_s": last - begun,
            "tokens": len(tokens),
            "token_ids": tokens,
            "prompt": prompt,
            "cached": cached,
            "text": "".join(texts),
        }

    def close(self) -> None:
        """Let go of the model."""
        self._llm.shutdown()


async def main(folder: str, engine: dict[str, Any]) -> None:
    """Answer until stdin closes."""
    bare = Bare(folder, engine)
    try:
        ready(port=0)
        loop = asyncio.get_running_loop()
        read = asyncio.ensure_future(loop.run_in_executor(None, sys.stdin.readline))
        while line := await read:
            read = asyncio.ensure_future(loop.run_in_executor(None, sys.stdin.readline))
            answer = asyncio.create_task(bare.run(json.loads(line)))
            # Nobody sends a command before the last was answered: what can be read before is the end.
            await asyncio.wait({answer, read}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                answer.cancel()
                break
            print(json.dumps(answer.result()), flush=True)
    finally:
        bare.close()  # else the process of its engine core stays


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--engine", type=json.loads, default={}, help="engine arguments, JSON, above DEFAULTS")
    asked = parser.parse_args()
    environment()
    asyncio.run(main(asked.folder, DEFAULTS | asked.engine))
