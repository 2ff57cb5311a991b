"""Engines that several test files share: vLLM takes most of a minute to start."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_asyncio

from personae_runtime.config import AdapterSettings, EngineSettings, default_models_dir
from personae_runtime.engines.engine import Engine
from personae_runtime.engines.factory import build_engine
from personae_runtime.engines.vllm import VllmEngine

PARALLEL = 2
WAITING = 2
CONTEXT = 512
ADAPTER = "other-voice"
WATERMARK_KEY = 0x0123456789ABCDEF

VLLM = (pytest.mark.vllm, pytest.mark.timeout(600))
"""Marks of a test that uses vLLM; its first one starts it."""

_Engine = TypeVar("_Engine", bound=Engine)


@asynccontextmanager
async def started(engine: _Engine) -> AsyncIterator[_Engine]:
    try:
        await engine.start()
        yield engine
    finally:
        await engine.close()


def build_vllm(**settings: Any) -> VllmEngine:
    engine = build_engine(
        EngineSettings(kind="vllm", **settings),
        profile="development",
        models_dir=Path(os.environ.get("PERSONAE_MODELS_DIR") or default_models_dir()),
    )
    assert isinstance(engine, VllmEngine)
    return engine


def write_adapter(folder: Path) -> None:
    """A LoRA adapter of SmolLM2-135M in PEFT's layout, its weights by seed and large enough to change the words."""
    import torch
    from safetensors.torch import save_file

    draw = torch.Generator().manual_seed(7)
    layers, hidden, rank = 30, 576, 8
    weights = {}
    for layer in range(layers):
        for module, out in (("q_proj", hidden), ("v_proj", 192)):
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            weights[f"{name}.lora_A.weight"] = torch.randn(rank, hidden, generator=draw) * 0.2
            weights[f"{name}.lora_B.weight"] = torch.randn(out, rank, generator=draw) * 0.2
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def vllm_engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VllmEngine]:
    """vLLM with an adapter and a watermark's key, for all tests of this folder."""
    adapter = tmp_path_factory.mktemp("adapters") / ADAPTER
    write_adapter(adapter)
    key = tmp_path_factory.mktemp("watermark") / "watermark.key"
    key.write_bytes(base64.b64encode(WATERMARK_KEY.to_bytes(8)))
    engine = build_vllm(
        parallel=PARALLEL,
        max_waiting=WAITING,
        context_tokens=CONTEXT,
        adapters=(AdapterSettings(name=ADAPTER, path=adapter),),
        watermark_key=key,
    )
    async with started(engine):
        yield engine
