"""The GPU configurations pass `personae config check --cluster` on the hardware that they name, and on no less."""

from __future__ import annotations

import base64
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from personae_serve.cli import build_app
from tests.conftest import ROOT
from tests.unit.infra.models import write_models

CONFIGS = sorted((ROOT / "infra" / "configs").glob("*.toml"))


@pytest.fixture
def prepared(tmp_path: Path, no_personae_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model folders, and the secrets that never stand in a file."""
    monkeypatch.setenv("PERSONAE_MODELS_DIR", str(write_models(tmp_path / "models")))
    monkeypatch.setenv("PERSONAE_LEDGER__DSN", "postgresql://personae@127.0.0.1:1/personae")
    monkeypatch.setenv("PERSONAE_LEDGER__MASTER_KEY", base64.b64encode(bytes(32)).decode())
    keys = [{"id": "backend-1", "sha256": "0" * 64, "tenant": "acme"}]
    monkeypatch.setenv("PERSONAE_AUTH__API_KEYS", json.dumps(keys))


def words_of(config: Path) -> list[str]:
    """The command in the comment at the file's head, without `personae`."""
    text = re.sub(r"\\\n#", " ", config.read_text(encoding="utf-8"))
    found = re.search(r"^#\s+personae (config check .+)$", text, re.MULTILINE)
    assert found, f"{config.name} names no hardware"
    return [str(ROOT / word) if word.startswith("infra/") else word for word in shlex.split(found[1])]


def run(words: list[str]) -> Result:
    return CliRunner().invoke(build_app(), words)


def changed(config: Path, target: Path, changes: dict[str, str]) -> Path:
    """A copy with other values for some keys of the model."""
    head, table, model = config.read_text(encoding="utf-8").partition("[[cluster.models]]\n")
    for key, value in changes.items():
        line = f"{key} = {value}\n"
        model, found = re.subn(rf"^{key} = .*\n", line, model, flags=re.MULTILINE)
        if not found:
            model += line
    copy = target / config.name
    copy.write_text(head + table + model, encoding="utf-8")
    return copy


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_fits_the_hardware_that_it_names(config: Path, prepared: None) -> None:
    words = words_of(config)
    assert words[words.index("--config") + 1] == str(config)
    result = run(words)
    assert result.exit_code == 0, result.output
    assert "It fits." in result.output


INVALID = [
    ("one-gpu", {"parallel": "120"}, [], "sessions"),
    ("one-gpu", {}, ["--gpu", "l4"], "L4"),
    ("one-gpu", {"context_tokens": "200000", "parallel": "1"}, [], "made for 131072"),
    ("tensor-parallel-4", {"tensor_parallel_size": "3"}, [], "does not divide 64 attention heads"),
    ("tensor-parallel-4", {"tensor_parallel_size": "2"}, [], "raise tensor_parallel_size"),
    ("tensor-parallel-4", {"max_replicas": "2"}, [], "no room for 4 GPUs"),
    ("tensor-8-pipeline-2", {"pipeline_parallel_size": "1"}, [], "before any session"),
    ("tensor-8-pipeline-2", {"executor": '"mp"'}, [], 'executor = "ray"'),
    ("tensor-8-pipeline-2", {}, ["--nodes", "1"], "no room for 8 GPUs"),
    ("tensor-8-pipeline-2", {"pipeline_parallel_size": "127"}, [], "127 of 126 layers"),
    ("data-parallel-4", {"data_parallel_size": "5"}, [], "no room for 1 GPUs"),
    ("data-parallel-4", {"num_gpus": "0.5"}, [], "a worker takes one GPU"),
]


@pytest.mark.parametrize(
    ("name", "changes", "options", "said"), INVALID, ids=[f"{case[0]}:{case[1] or case[2]}" for case in INVALID]
)
def test_what_does_not_fit_is_refused(
    name: str, changes: dict[str, str], options: list[str], said: str, tmp_path: Path, prepared: None
) -> None:
    config = ROOT / "infra" / "configs" / f"{name}.toml"
    words = words_of(config)
    words[words.index("--config") + 1] = str(changed(config, tmp_path, changes))
    result = run([*words, *options])
    assert result.exit_code == 1, result.output
    assert "It fits." not in result.output
    assert "does not fit" in result.output
    assert "change:" in result.output
    if said != "L4":
        assert said in " ".join(result.output.split())


def test_the_answer_for_programs_has_the_numbers(prepared: None) -> None:
    config = ROOT / "infra" / "configs" / "tensor-8-pipeline-2.toml"
    result = run([*words_of(config), "--json"])
    found: dict[str, Any] = json.loads(result.output)
    assert found["fits"] is True
    (model,) = found["models"]
    assert (model["workers"], model["gpus"]) == (16, 16)
    assert model["weight_bytes"] == pytest.approx(405.85e9 * 2 / 16, rel=0.03)
    assert found["hardware"]["source"] == "as declared"
    assert {finding["severity"] for finding in found["findings"]} == {"warning"}
    assert {finding["subject"] for finding in found["findings"]} == {"ledger.dsn", "gateway.tls"}, "neither is here"


def test_a_model_that_is_not_there_is_named_with_its_folder(prepared: None, tmp_path: Path) -> None:
    config = changed(ROOT / "infra" / "configs" / "one-gpu.toml", tmp_path, {"model": '"nobodys-model"'})
    result = run(["config", "check", "--cluster", "--config", str(config)])
    assert result.exit_code == 1
    assert "nobodys-model" in result.output
    assert "config.json" in result.output


def test_without_cluster_the_check_stays_what_it_was(prepared: None) -> None:
    result = run(["config", "check"])
    assert result.exit_code == 0
    assert result.output == "The configuration can be used (profile development).\n"
