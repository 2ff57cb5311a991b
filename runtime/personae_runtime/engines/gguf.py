"""The metadata of a GGUF file, and the tokenizer that it describes.

llama.cpp keeps its tokenizer to itself, so counting tokens through it means a
round trip. The vocabulary lies in the model file: from it the `tokenizers`
library counts in microseconds.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from personae_runtime.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING = 8
_ARRAY = 9
_CONTROL_TOKEN = 3
"""`tokenizer.ggml.token_type` of tokens that steer the model, such as `<|im_end|>`."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What the engine needs of a model's tokenizer.

    Attributes:
        count: tokens of a text, without special tokens.
        exact: False if `count` is an upper estimate.
        control: matches the text of any control token; None if there are none.
    """

    count: Callable[[str], int]
    exact: bool
    control: re.Pattern[str] | None

    def neutralise(self, text: str) -> str:
        """The text with every control token's spelling broken by a space.

        The chat template joins messages before they are tokenized, so a person
        who writes `<|im_end|>` would otherwise end their own message.
        """
        if self.control is None:
            return text
        return self.control.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)


def read_metadata(file: Path) -> dict[str, Any]:
    """Key-value metadata of a GGUF file; arrays of numbers come as tuples.

    Raises:
        ConfigError: the file is no GGUF file of version 2 or 3.
    """
    with file.open("rb") as stream:
        try:
            magic, version, _tensors, count = struct.unpack("<4sIQQ", stream.read(24))
            if magic != b"GGUF" or version not in (2, 3):
                raise ConfigError(f"{file} is not a GGUF file of version 2 or 3")
            return {_string(stream): _value(stream, _number(stream, "I")) for _ in range(count)}
        except (struct.error, UnicodeDecodeError, KeyError) as error:
            raise ConfigError(f"the metadata of {file} can't be read: {error!r}") from error


def read_vocabulary(file: Path) -> Vocabulary:
    """The tokenizer of a GGUF file.

    Exact for the pre-tokenizers known here; for others `count` is an upper
    estimate, one token for two bytes of UTF-8 (English has about four).
    """
    meta = read_metadata(file)
    types = meta.get("tokenizer.ggml.token_type", ())
    tokens = meta.get("tokenizer.ggml.tokens", [])
    control = [token for token, kind in zip(tokens, types, strict=False) if kind == _CONTROL_TOKEN and len(token) > 1]
    pattern = control_pattern(control)
    if meta.get("tokenizer.ggml.model") == "gpt2" and meta.get("tokenizer.ggml.pre") == "smollm":
        tokenizer = _smollm(tokens, meta["tokenizer.ggml.merges"])
        return Vocabulary(lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids), True, pattern)
    return Vocabulary(upper_estimate, False, pattern)


def control_pattern(spellings: Sequence[str]) -> re.Pattern[str] | None:
    """Matches any of these tokens in a text; None if there are none."""
    # Longest first, so that no token hides behind a shorter one it begins with.
    longest_first = sorted(spellings, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def upper_estimate(text: str) -> int:
    """Tokens of a text without a tokenizer: one for two bytes of UTF-8, rounded up."""
    return -(-len(text.encode("utf-8", "replace")) // 2)


def _smollm(tokens: list[str], merges: list[str]) -> Tokenizer:
    """Byte-level BPE with digits apart."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {token: number for number, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    return tokenizer


def _number(stream: BinaryIO, code: str) -> Any:
    return struct.unpack("<" + code, stream.read(struct.calcsize("<" + code)))[0]


def _string(stream: BinaryIO) -> str:
    return stream.read(_number(stream, "Q")).decode("utf-8")


def _value(stream: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(stream)
    if kind != _ARRAY:
        return _number(stream, _SCALARS[kind])
    element, count = _number(stream, "I"), _number(stream, "Q")
    if element in _SCALARS:
        layout = f"<{count}{_SCALARS[element]}"
        return struct.unpack(layout, stream.read(struct.calcsize(layout)))
    return [_value(stream, element) for _ in range(count)]
