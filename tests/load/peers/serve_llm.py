"""`ray.serve.llm`'s OpenAI application: `python -m tests.load.peers.serve_llm --model synthetic|FOLDER`.

`synthetic` streams the project's synthetic engine through an `LLMServer`
subclass; a folder in Hugging Face format is served by vLLM on the CPU.
`--batching-ms` is `stream_batching_interval_ms`, by default what Serve LLM sets.
Serve's throughput flags are on unless `--no-throughput`. Prints `port` and `model`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.load.peers import free_port, ready, stdin_closed
from tests.load.peers.vllm_engine import DEFAULTS, environment

SYNTHETIC = "synthetic"


def synthetic_server() -> Any:
    """The `LLMServer` whose engine is ours; loaded late, as the library is large."""
    from ray.serve.llm.deployment import LLMServer

    class SyntheticLLMServer(LLMServer):
        """`LLMServer` over the synthetic engine."""

        _default_engine_cls: Any = SyntheticLLMEngine

    return SyntheticLLMServer


class SyntheticLLMEngine:
    """Serve LLM's engine protocol, as far as chat completions need it, over our synthetic engine.

    Its arguments come in the environment of the replica, PERSONAE_LOAD_SYNTHETIC, as JSON.
    """

    def __init__(self, llm_config: Any) -> None:
        from personae_runtime.engines.synthetic import SyntheticEngine

        self._model = llm_config.model_id
        self._engine = SyntheticEngine(
            profile="development",
            max_concurrent=4096,
            context_tokens=1 << 20,
            **json.loads(os.environ["PERSONAE_LOAD_SYNTHETIC"]),
        )
        self._serial = 0

    async def start(self) -> None:
        """Write the replies."""
        await self._engine.start()

    def routing_stats(self) -> dict[str, Any]:
        """None: there is one replica."""
        return {}

    async def resolve_lora(self, lora_model: Any) -> None:
        """It has no adapters."""

    async def check_health(self) -> None:
        """Raises if the engine can't serve."""
        await self._engine.health()

    async def shutdown(self) -> None:
        """Stop."""
        await self._engine.close()

    async def chat(self, request: Any, raw_request_info: Any = None) -> AsyncIterator[str]:
        """Server-sent events of one reply, a chunk per engine delta."""
        from personae_runtime.engines.engine import GenerateRequest, Message

        self._serial += 1
        asked = GenerateRequest(
            request_id=str(self._serial),
            messages=[Message(_field(one, "role"), str(_field(one, "content"))) for one in request.messages],
            max_tokens=request.max_completion_tokens or request.max_tokens or 1 << 20,
            temperature=0.0,
        )
        head = {
            "id": f"chatcmpl-{self._serial}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": self._model,
        }

        def chunk(delta: dict[str, str], finish: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"

        yield chunk({"role": "assistant", "content": ""})
        tokens = prompt = 0
        async for part in self._engine.generate(asked):
            tokens += part.tokens
            prompt = part.input_tokens
            yield chunk({"content": part.text}, None if part.finish is None else part.finish.value)
        usage = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
        yield f"data: {json.dumps({**head, 'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"


def _field(message: Any, name: str) -> Any:
    return message[name] if isinstance(message, dict) else getattr(message, name)


async def main(args: argparse.Namespace) -> None:
    """Serve until stdin closes."""
    import ray
    from ray import serve
    from ray.serve.llm import LLMConfig, build_openai_app

    port = args.port or free_port()
    ray.init(address="local", include_dashboard=False, num_cpus=args.num_cpus, log_to_driver=False)
    await asyncio.to_thread(serve.start, http_options={"host": "127.0.0.1", "port": port})
    experimental = {} if args.batching_ms is None else {"stream_batching_interval_ms": args.batching_ms}
    common = {"accelerator_config": {"kind": "cpu"}, "experimental_configs": experimental, "log_engine_metrics": False}
    if args.model == SYNTHETIC:
        name = SYNTHETIC
        config = LLMConfig(
            # The folder is never read: the engine is ours.
            model_loading_config={"model_id": name, "model_source": name},
            server_cls=synthetic_server(),
            deployment_config={"num_replicas": 1, "ray_actor_options": {"num_cpus": 0.1}},
            **common,
        )
    else:
        name = Path(args.model).name
        config = LLMConfig(
            model_loading_config={"model_id": name, "model_source": args.model},
            engine_kwargs=DEFAULTS | args.engine,
            deployment_config={"num_replicas": 1},
            **common,
        )
    ingress = {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0.1}, "max_ongoing_requests": 4096}
    app = build_openai_app({"llm_configs": [config], "ingress_deployment_config": ingress})
    await asyncio.to_thread(serve.run, app, name="llm", route_prefix="/")
    ready(port=port, model=name)
    await stdin_closed()
    await asyncio.to_thread(serve.shutdown)
    ray.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=SYNTHETIC)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--batching-ms", type=int)
    parser.add_argument("--no-throughput", action="store_true")
    parser.add_argument("--num-cpus", type=float, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--ttft-ms", type=float, default=0.0)
    parser.add_argument("--itl-ms", type=float, default=0.0)
    parser.add_argument("--tokens-per-delta", type=int, default=1)
    parser.add_argument("--engine", type=json.loads, default={}, help="vLLM's arguments, JSON, above DEFAULTS")
    asked = parser.parse_args()
    synthetic = {
        "ttft_ms": asked.ttft_ms,
        "itl_ms": asked.itl_ms,
        "tokens": asked.tokens,
        "max_tokens_per_delta": asked.tokens_per_delta,
    }
    # Inherited by every process that Ray starts on this machine.
    os.environ["PERSONAE_LOAD_SYNTHETIC"] = json.dumps(synthetic)
    os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "0" if asked.no_throughput else "1")
    environment()
    asyncio.run(main(asked))
