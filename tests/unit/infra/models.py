"""Folders with the config.json of open models, by their published sizes."""

from __future__ import annotations

import json
from pathlib import Path

_COMMON = {"vocab_size": 128256, "max_position_embeddings": 131072, "num_key_value_heads": 8}
CONFIGS = {
    "llama-3.1-8b-instruct": {
        **{"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336},
        **_COMMON,
    },
    "llama-3.1-70b-instruct": {
        **{"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "intermediate_size": 28672},
        **_COMMON,
    },
    "llama-3.1-405b-instruct": {
        **{"hidden_size": 16384, "num_hidden_layers": 126, "num_attention_heads": 128, "intermediate_size": 53248},
        **_COMMON,
    },
}


def write_models(models_dir: Path) -> Path:
    """Put every folder below `models_dir`."""
    for name, config in CONFIGS.items():
        (models_dir / name).mkdir(parents=True, exist_ok=True)
        (models_dir / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return models_dir
