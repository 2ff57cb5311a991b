"""Where a model's replica goes, and with how many GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from personae_runtime.config import GuardModelSettings, ModelDeploymentSettings, load_settings
from tests.conftest import ROOT

pytest.importorskip("ray")

from personae_serve.cluster import application
from personae_serve.deployments.model import model_deployment, placement


def of(**settings: Any) -> dict[str, Any]:
    return placement(ModelDeploymentSettings(kind="vllm", num_cpus=4, **settings))


def test_workers_of_one_node_share_the_replicas_gpus() -> None:
    assert of(num_gpus=1) == {"ray_actor_options": {"num_cpus": 4, "num_gpus": 1}}
    assert of(num_gpus=1, tensor_parallel_size=4) == {"ray_actor_options": {"num_cpus": 4, "num_gpus": 4}}
    assert of(num_gpus=1, data_parallel_size=4) == {"ray_actor_options": {"num_cpus": 4, "num_gpus": 4}}
    assert of(num_gpus=0.5) == {"ray_actor_options": {"num_cpus": 4, "num_gpus": 0.5}}


def test_on_cpus_there_are_no_gpus_to_share() -> None:
    assert of(tensor_parallel_size=3, executor="mp") == {"ray_actor_options": {"num_cpus": 4, "num_gpus": 0}}


def test_workers_of_several_nodes_have_a_bundle_each() -> None:
    found = of(num_gpus=1, tensor_parallel_size=8, pipeline_parallel_size=2, executor="ray")
    assert found["ray_actor_options"] == {"num_cpus": 4, "num_gpus": 0}
    assert found["placement_group_bundles"] == [{"GPU": 1, "CPU": 4}] + [{"GPU": 1}] * 15
    assert found["placement_group_strategy"] == "PACK"


@pytest.mark.parametrize("config", sorted((ROOT / "infra" / "configs").glob("*.toml")), ids=lambda path: path.stem)
def test_serve_accepts_the_placement_of_every_example(
    config: Path, no_personae_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = '[{"id": "backend-1", "sha256": "' + "0" * 64 + '", "tenant": "acme"}]'
    monkeypatch.setenv("PERSONAE_AUTH__API_KEYS", keys)
    settings = load_settings(config)
    for model in settings.model_deployments:
        assert model_deployment(model, settings) is not None


def test_a_guard_model_is_a_deployment_of_its_own_that_gateways_ask(no_personae_environment: None) -> None:
    overrides = {
        "policy": {
            "scorers": ["ngram", "guard_model"],
            "guard_model": {"family": "qwen3guard", "model": "guard-4b", "deadline_ms": 1500},
        },
        "cluster": {"models": [{"kind": "synthetic", "model": "swift"}, {"kind": "vllm", "model": "guard-4b"}]},
    }
    gateway = application({"overrides": overrides})._bound_deployment
    *_, models, _memory, guard, guard_model = gateway.init_args
    assert list(models) == ["swift"]
    assert guard is None
    bound = guard_model._bound_deployment
    assert bound.name == "model-guard-4b"
    assert bound.func_or_class.__name__ == "GuardModelReplica"
    guard_settings = GuardModelSettings.model_validate(bound.init_args[-1])
    assert (guard_settings.family, guard_settings.deadline_ms) == ("qwen3guard", 1500)
    without = application({"overrides": {"cluster": overrides["cluster"]}})._bound_deployment
    assert without.init_args[-1] is None
