"""How many tokens a text has, where the model itself is elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from personae_runtime.config import ModelDeploymentSettings
from personae_runtime.engines.models import hf_folder
from personae_runtime.engines.synthetic import estimate_tokens
from personae_runtime.errors import PersonaeError

TokenCounter = Callable[[str], int]
"""Tokens of a text without special tokens, exact or an upper estimate."""


def bytes_as_tokens(text: str) -> int:
    """Half a token a byte: above the usual four characters a token of English and the one to one and a half
    tokens of a three-byte character. Only a string of rare characters needs more (a byte-level vocabulary's
    bound is a token a byte); the model then refuses the prompt."""
    return -(-len(text.encode()) // 2)


def token_counter(settings: ModelDeploymentSettings, models_dir: Path) -> TokenCounter:
    """The counter of a model: its own tokenizer if its folder is on this machine, else an estimate from above."""
    if settings.kind == "synthetic":
        return estimate_tokens
    try:
        file = hf_folder(settings.model, models_dir) / "tokenizer.json"
    except PersonaeError:
        return bytes_as_tokens
    if not file.is_file():
        return bytes_as_tokens
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    return count
