"""What a model's files say of its size."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.engines.shape import read_adapter_shape, read_model_shape, read_safetensors_header
from personae_runtime.errors import ConfigError, MissingModel, PersonaeError
from tests.conftest import missing_models

SMALL: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def folder(path: Path, config: dict[str, Any], tensors: dict[str, tuple[str, list[int]]] | None = None) -> Path:
    """A Hugging Face folder, with the headers of its weights only."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if tensors is not None:
        safetensors(path / "model.safetensors", tensors)
    return path


def safetensors(file: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    header = json.dumps({name: {"dtype": dtype, "shape": shape} for name, (dtype, shape) in tensors.items()}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)


@pytest.mark.parametrize(
    ("billion", "config"),
    [
        # Published counts of open models by their published sizes.
        (8.030, {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
                 "intermediate_size": 14336, "vocab_size": 128256}),
        (70.554, {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
                  "intermediate_size": 28672, "vocab_size": 128256}),
        (405.853, {"hidden_size": 16384, "num_hidden_layers": 126, "num_attention_heads": 128,
                   "num_key_value_heads": 8, "intermediate_size": 53248, "vocab_size": 128256}),
        (46.703, {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
                  "intermediate_size": 14336, "vocab_size": 32000, "num_local_experts": 8}),
    ],
)  # fmt: skip
def test_parameters_follow_from_the_sizes(tmp_path: Path, billion: float, config: dict[str, Any]) -> None:
    shape = read_model_shape(folder(tmp_path, config))
    assert shape.parameters / 1e9 == pytest.approx(billion, rel=0.001)
    assert not shape.counted


def test_weights_are_counted_where_they_lie(tmp_path: Path) -> None:
    tensors = {
        "model.embed_tokens.weight": ("BF16", [32, 8]),
        "lm_head.weight": ("BF16", [32, 8]),
        "model.layers.0.mlp.up_proj.weight": ("BF16", [16, 8]),
        "model.layers.1.mlp.up_proj.weight": ("BF16", [16, 8]),
    }
    shape = read_model_shape(folder(tmp_path, {**SMALL, "tie_word_embeddings": False}, tensors))
    assert (shape.embedding_parameters, shape.head_parameters, shape.layer_parameters) == (256, 256, 256)
    assert shape.counted
    assert shape.quantized_bytes is None
    assert read_model_shape(folder(tmp_path, SMALL, tensors)).head_parameters == 0, "a tied matrix is there once"


def test_quantized_weights_keep_their_size(tmp_path: Path) -> None:
    config = {**SMALL, "quantization_config": {"quant_method": "fp8"}}
    shape = read_model_shape(folder(tmp_path, config, {"model.layers.0.w": ("F8_E4M3", [100]), "s": ("F32", [5])}))
    assert shape.quantized_bytes == 120
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="without the weights"):
        read_model_shape(tmp_path)


def test_latent_attention_leaves_one_vector_for_all_heads(tmp_path: Path) -> None:
    config = {**SMALL, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    shape = read_model_shape(folder(tmp_path, config))
    assert (shape.kv_values, shape.kv_is_shared) == (576, True)
    plain = read_model_shape(folder(tmp_path, SMALL))
    assert (plain.kv_values, plain.kv_is_shared) == (2 * 2 * 2, False)


def test_sizes_of_a_language_model_within_another_are_found(tmp_path: Path) -> None:
    shape = read_model_shape(folder(tmp_path, {"text_config": SMALL, "vision_config": {"hidden_size": 99}}))
    assert (shape.hidden, shape.layers, shape.context_tokens) == (8, 2, 64)


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_missing_size_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        read_model_shape(folder(tmp_path, {key: value for key, value in SMALL.items() if key != name}))


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(MissingModel, match=str(tmp_path)):
        read_model_shape(tmp_path)
    (tmp_path / "config.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(ConfigError):
        read_model_shape(tmp_path)


@pytest.mark.model
@pytest.mark.skipif(bool(missing_models()), reason="needs the model file")
def test_a_gguf_file_tells_its_shape() -> None:
    from personae_runtime.config import load_settings

    shape = read_model_shape(load_settings().models_dir / "smollm2-135m-instruct")
    assert shape.parameters == 134_515_008
    assert (shape.layers, shape.heads, shape.kv_heads, shape.head_dim) == (30, 9, 3, 64)
    assert shape.kv_values == 384
    assert shape.quantized_bytes == 98_362_432


def test_an_adapter_tells_its_rank_and_whose_it_is(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 16}', encoding="utf-8")
    safetensors(
        tmp_path / "adapter_model.safetensors",
        {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": ("F32", [16, 576])},
    )
    shape = read_adapter_shape(tmp_path)
    assert (shape.rank, shape.hidden) == (16, 576)
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="rank"):
        read_adapter_shape(tmp_path)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_a_clear_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.safetensors"
    file.write_bytes(data)
    with suppress(PersonaeError):
        read_safetensors_header(file)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.fixed_dictionaries({}, optional={name: st.just(value) | _JSON for name, value in SMALL.items()}))
def test_any_configuration_is_a_shape_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, config: dict[str, Any]
) -> None:
    path = folder(tmp_path_factory.getbasetemp() / "any", config)
    with suppress(PersonaeError):
        assert read_model_shape(path).parameters > 0


@given(_JSON)
def test_any_tensor_header_is_a_header_or_a_clear_error(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    file = tmp_path_factory.getbasetemp() / "any.safetensors"
    data = json.dumps({"t": value}).encode()
    file.write_bytes(struct.pack("<Q", len(data)) + data)
    with suppress(PersonaeError):
        read_safetensors_header(file)
