"""How big a model is, read from its files without loading it.

A Hugging Face folder tells by `config.json` and, where the weights lie in it,
by the headers of its safetensors files
(https://huggingface.co/docs/safetensors: eight bytes of length, little-endian,
then JSON); a GGUF file by its metadata.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from personae_runtime.engines.gguf import read_metadata
from personae_runtime.errors import ConfigError, MissingModel

_MAX_HEADER: Final = 100 << 20
"""Bytes; the safetensors format's own limit."""
_DTYPE_BYTES: Final = {
    **{"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2},
    **{"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1},
}
_PLAIN: Final = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers that decide what a model needs.

    Attributes:
        layers, hidden, heads, kv_heads, head_dim, intermediate, vocab: of the
            transformer; sizes in values, not bytes. `intermediate` is the width
            of one expert where there are several.
        context_tokens: longest context the model was made for; None if unknown.
        layer_parameters: parameters of all layers together.
        embedding_parameters: of the input table.
        head_parameters: of the output matrix; 0 if it is the input table.
        kv_values: values that one token leaves in one layer's KV cache.
        kv_is_shared: each tensor-parallel worker holds all of them (latent
            attention) and not its heads' only.
        quantized_bytes: bytes of the weights if they are quantized and keep
            their size whatever the engine computes in; else None.
        counted: parameters are counted from the weights; else they follow from
            the sizes, for a dense or mixture-of-experts model with gated MLPs.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context_tokens: int | None
    layer_parameters: int
    embedding_parameters: int
    head_parameters: int
    kv_values: int
    kv_is_shared: bool = False
    quantized_bytes: int | None = None
    counted: bool = False

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.layer_parameters + self.embedding_parameters + self.head_parameters


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """A LoRA adapter in PEFT's layout.

    Attributes:
        rank: `r`.
        hidden: width of the model that it was trained on, from the adapter's
            weights; None if they don't show it.
    """

    rank: int
    hidden: int | None


def read_model_shape(path: Path) -> ModelShape:
    """The shape of a model.

    Args:
        path: a GGUF file, or a folder with `config.json` and perhaps weights
            (`*.safetensors`); a folder with one GGUF file and no `config.json`
            means that file.

    Raises:
        MissingModel: there is no such file, or nothing of the kind in the folder.
        ConfigError: it can't be read, or says too little.
    """
    if path.is_file():
        return _from_gguf(path)
    if (path / "config.json").is_file():
        return _from_folder(path)
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return _from_gguf(files[0])
    raise MissingModel(f"there is no model in {path}: neither config.json nor one GGUF file")


def read_adapter_shape(folder: Path) -> AdapterShape:
    """The shape of a LoRA adapter.

    Raises:
        MissingModel: `adapter_config.json` or `adapter_model.safetensors` is not there.
        ConfigError: one of them can't be read, or the rank is missing.
    """
    config = _read_json(folder / "adapter_config.json")
    rank = config.get("r")
    if not isinstance(rank, int) or rank < 1:
        raise ConfigError(f"{folder / 'adapter_config.json'} has no rank `r`")
    hidden: int | None = None
    for name, tensor in read_safetensors_header(folder / "adapter_model.safetensors").items():
        if name.endswith("q_proj.lora_A.weight"):
            hidden = tensor[1][1]
            break
    return AdapterShape(rank, hidden)


def read_safetensors_header(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Data type and shape of each tensor of a safetensors file, by name.

    Raises:
        MissingModel: there is no such file.
        ConfigError: it is no safetensors file.
    """
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _MAX_HEADER:
                raise ConfigError(f"{file} is no safetensors file: a header of {length} bytes")
            header = json.loads(stream.read(length))
        return {
            name: (str(tensor["dtype"]), tuple(int(size) for size in tensor["shape"]))
            for name, tensor in header.items()
            if name != "__metadata__"
        }
    except FileNotFoundError:
        raise MissingModel(f"there is no file {file}") from None
    except (OSError, OverflowError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} is no safetensors file that can be read: {error!r}") from error


# ── a Hugging Face folder ────────────────────────────────────────────────────


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingModel(f"there is no file {file}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} can't be read: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file} holds no JSON object")
    return found


class _Sizes:
    """Reads whole numbers out of a configuration, and says what is missing by its name."""

    def __init__(self, source: Path, values: Mapping[str, Any]) -> None:
        self._source = source
        self._values = values

    def get(self, *names: str) -> int | None:
        for name in names:
            value = self._values.get(name)
            if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
                value = max(value)  # one number for each layer: the largest is the safe one
            if isinstance(value, bool) or not isinstance(value, int):
                continue
            if value < 1:
                raise ConfigError(f"{self._source}: {name} is {value}, not a size")
            return value
        return None

    def need(self, *names: str) -> int:
        value = self.get(*names)
        if value is None:
            raise ConfigError(f"{self._source} doesn't say {names[0]}, so what the model needs can't be told")
        return value


def _from_folder(folder: Path) -> ModelShape:
    config = _read_json(folder / "config.json")
    # Models that also see or hear keep the language model's sizes apart.
    text = config.get("text_config")
    values: dict[str, Any] = {**config, **text} if isinstance(text, dict) else config
    sizes = _Sizes(folder / "config.json", values)
    hidden, heads = sizes.need("hidden_size"), sizes.need("num_attention_heads")
    kv_heads = sizes.get("num_key_value_heads") or heads
    head_dim = sizes.get("head_dim") or hidden // heads
    latent = sizes.get("kv_lora_rank")
    shape = _estimate(
        layers=sizes.need("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=sizes.get("moe_intermediate_size") or sizes.need("intermediate_size"),
        vocab=sizes.need("vocab_size"),
        context_tokens=sizes.get("max_position_embeddings"),
        experts=sizes.get("num_local_experts", "num_experts", "n_routed_experts") or 1,
        tied=bool(values.get("tie_word_embeddings", False)),
        # Latent attention keeps one compressed vector and the rotated part of the key, for all heads.
        kv_values=latent + (sizes.get("qk_rope_head_dim") or 0) if latent else 2 * kv_heads * head_dim,
        kv_is_shared=latent is not None,
    )
    weights: dict[str, tuple[str, tuple[int, ...]]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        if not file.name.startswith("adapter"):
            weights |= read_safetensors_header(file)
    quantization = values.get("quantization_config") or config.get("quantization_config")
    if weights:
        return _counted(shape, weights, quantized=bool(quantization), source=folder)
    if quantization:
        raise ConfigError(f"{folder} holds quantized weights' config.json without the weights: their size is unknown")
    return shape


def _counted(
    shape: ModelShape, weights: Mapping[str, tuple[str, tuple[int, ...]]], *, quantized: bool, source: Path
) -> ModelShape:
    layers = embedding = head = stored = 0
    for name, (dtype, dimensions) in weights.items():
        if dtype not in _DTYPE_BYTES:
            raise ConfigError(f"{source}: the tensor {name} has the unknown data type {dtype}")
        quantized = quantized or dtype not in _PLAIN
        count = math.prod(dimensions)
        stored += count * _DTYPE_BYTES[dtype]
        if "embed_tokens" in name or name.endswith(("wte.weight", "embed_in.weight")):
            embedding += count
        elif "lm_head" in name or name.endswith("embed_out.weight"):
            head += count
        else:
            layers += count
    if quantized:
        # Parameters stay as estimated: several may share a stored number.
        return dataclasses.replace(shape, quantized_bytes=stored)
    return dataclasses.replace(
        shape,
        layer_parameters=layers,
        embedding_parameters=embedding,
        # Some writers store a tied matrix twice.
        head_parameters=0 if shape.head_parameters == 0 else head,
        counted=True,
    )


def _estimate(
    *,
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    intermediate: int,
    vocab: int,
    context_tokens: int | None,
    experts: int,
    tied: bool,
    kv_values: int,
    kv_is_shared: bool,
) -> ModelShape:
    """Parameters by arithmetic: four attention matrices, three matrices per expert's gated MLP, two norms."""
    attention = 2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim
    mlp = experts * 3 * hidden * intermediate + (hidden * experts if experts > 1 else 0)
    return ModelShape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=intermediate,
        vocab=vocab,
        context_tokens=context_tokens,
        layer_parameters=layers * (attention + mlp + 2 * hidden) + hidden,
        embedding_parameters=vocab * hidden,
        head_parameters=0 if tied else vocab * hidden,
        kv_values=kv_values,
        kv_is_shared=kv_is_shared,
    )


# ── a GGUF file ──────────────────────────────────────────────────────────────


def _from_gguf(file: Path) -> ModelShape:
    meta = read_metadata(file)
    family = meta.get("general.architecture")
    prefix = f"{family}."
    sizes = _Sizes(file, {key.removeprefix(prefix): value for key, value in meta.items() if key.startswith(prefix)})
    hidden, heads = sizes.need("embedding_length"), sizes.need("attention.head_count")
    kv_heads = sizes.get("attention.head_count_kv") or heads
    head_dim = sizes.get("attention.key_length") or hidden // heads
    value_dim = sizes.get("attention.value_length") or head_dim
    vocab = sizes.get("vocab_size") or len(meta.get("tokenizer.ggml.tokens", ()))
    if vocab == 0:
        raise ConfigError(f"{file} doesn't say vocab_size, so what the model needs can't be told")
    shape = _estimate(
        layers=sizes.need("block_count"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=sizes.get("expert_feed_forward_length") or sizes.need("feed_forward_length"),
        vocab=vocab,
        context_tokens=sizes.get("context_length"),
        experts=sizes.get("expert_count") or 1,
        tied=True,
        kv_values=kv_heads * (head_dim + value_dim),
        kv_is_shared=False,
    )
    # llama.cpp maps the file as it is.
    return dataclasses.replace(shape, quantized_bytes=file.stat().st_size)
