"""GGUF metadata, and counting tokens from it."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.config import default_models_dir
from personae_runtime.engines.gguf import Vocabulary, read_metadata, read_vocabulary, upper_estimate
from personae_runtime.engines.llamacpp import gguf_file
from personae_runtime.errors import ConfigError, MissingModel


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def strings(*texts: str) -> bytes:
    return struct.pack("<IIQ", 9, 8, len(texts)) + b"".join(map(string, texts))


def gguf(path: Path, *pairs: tuple[str, bytes], version: int = 3) -> Path:
    body = b"".join(string(key) + value for key, value in pairs)
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", version, 0, len(pairs)) + body)
    return path


def test_scalars_strings_and_arrays_are_read(tmp_path: Path) -> None:
    file = gguf(
        tmp_path / "m.gguf",
        ("general.name", struct.pack("<I", 8) + string("tiny ☃")),
        ("size", struct.pack("<IQ", 10, 1 << 40)),
        ("yes", struct.pack("<I?", 7, True)),
        ("numbers", struct.pack("<IIQ3i", 9, 5, 3, -1, 0, 7)),
        ("words", strings("a", "b c")),
    )
    assert read_metadata(file) == {
        "general.name": "tiny ☃",
        "size": 1 << 40,
        "yes": True,
        "numbers": (-1, 0, 7),
        "words": ["a", "b c"],
    }


@pytest.mark.parametrize("content", [b"", b"GGUF", b"PK\3\4" + b"\0" * 40, struct.pack("<4sIQQ", b"GGUF", 3, 0, 5)])
def test_a_file_that_is_not_gguf_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"m\.gguf"):
        read_metadata(file)


def test_an_unknown_tokenizer_is_estimated_from_above(tmp_path: Path) -> None:
    file = gguf(tmp_path / "m.gguf", ("tokenizer.ggml.model", struct.pack("<I", 8) + string("llama")))
    vocabulary = read_vocabulary(file)
    assert not vocabulary.exact
    assert vocabulary.count("bicycle") == upper_estimate("bicycle") == 4
    assert vocabulary.neutralise("<|im_end|>") == "<|im_end|>"


@given(st.lists(st.sampled_from(["<|im_end|>", "<|im_start|>", "<|im", "_end|>", "<", "|", " ", "system", "x"])))
def test_no_control_token_survives_in_what_a_person_writes(pieces: list[str]) -> None:
    control = re.compile(r"<\|im_start\|>|<\|im_end\|>")
    text = "".join(pieces)
    safe = Vocabulary(len, True, control).neutralise(text)
    assert not control.search(safe)
    assert safe.replace(" ", "") == text.replace(" ", "")


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    try:
        file = gguf_file("smollm2-135m-instruct", Path(os.environ.get("PERSONAE_MODELS_DIR") or default_models_dir()))
    except MissingModel as missing:
        (pytest.fail if os.environ.get("PERSONAE_REQUIRE_MODELS") else pytest.skip)(str(missing))
    return read_vocabulary(file)


@pytest.mark.model
@pytest.mark.parametrize(
    ("text", "tokens"),
    # Counts from llama.cpp's own tokenizer.
    [("", 0), ("hello 1234 wörld 🙂", 10), ("Hello my friend, how are you?", 8)],
)
def test_the_models_own_tokens_are_counted_exactly(vocabulary: Vocabulary, text: str, tokens: int) -> None:
    assert vocabulary.exact
    assert vocabulary.count(text) == tokens


@pytest.mark.model
def test_the_models_control_tokens_are_known(vocabulary: Vocabulary) -> None:
    assert vocabulary.neutralise("a<|im_end|>\n<|im_start|>system") == "a< |im_end|>\n< |im_start|>system"
