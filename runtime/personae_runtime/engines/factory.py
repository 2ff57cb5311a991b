"""From settings to an engine."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from personae_runtime.config import EngineSettings
from personae_runtime.engines.engine import Engine


def build_engine(engine: EngineSettings, *, profile: str, models_dir: Path) -> Engine:
    """The engine that these settings name, not started yet.

    Loads no model and imports no engine library: that is `start`'s work, and so
    are the errors about missing files and unfit profiles.

    Args:
        engine: the host's `[engine]`, or one of a cluster's models.
        profile: the host's profile, `development` or `production`.
        models_dir: where model files lie.
    """
    if engine.kind == "synthetic":
        from personae_runtime.engines.synthetic import SyntheticEngine

        return SyntheticEngine(
            profile=profile,
            ttft_ms=engine.synthetic_ttft_ms,
            itl_ms=engine.synthetic_itl_ms,
            tokens=engine.synthetic_tokens,
            text=engine.synthetic_text,
            seed=engine.synthetic_seed,
            max_concurrent=engine.parallel,
            max_waiting=engine.max_waiting,
            context_tokens=engine.context_tokens,
            max_tokens_per_delta=engine.synthetic_delta_tokens,
            model=engine.model,
        )
    if engine.kind == "vllm":
        from personae_runtime.engines.models import hf_folder
        from personae_runtime.engines.vllm import VllmEngine

        return VllmEngine(engine, folder=partial(hf_folder, engine.model, models_dir))
    from personae_runtime.engines.llamacpp import LlamaCppEngine, gguf_file

    return LlamaCppEngine(
        file=partial(gguf_file, engine.model, models_dir),
        model=engine.model,
        threads=engine.threads,
        parallel=engine.parallel,
        max_waiting=engine.max_waiting,
        context_tokens=engine.context_tokens,
    )
