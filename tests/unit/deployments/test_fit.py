"""What a cluster's configuration needs, against what the cluster has."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.config import Settings
from personae_runtime.engines.shape import AdapterShape, ModelShape, read_model_shape
from personae_runtime.errors import ConfigError
from personae_runtime.ledger.embedded import EmbeddedPostgres
from personae_serve.deployments.fit import GIB, Hardware, Node, PostgresLimits, Report, check
from personae_serve.deployments.inventory import Declared, find_hardware, hardware_of_nodes, postgres_limits
from tests.unit.infra.models import write_models

KEY = base64.b64encode(bytes(32)).decode()
API_KEY = {"id": "a", "sha256": "0" * 64, "tenant": "acme"}
H100 = Node(cpus=32, memory_gib=512, gpus=8, gpu_memory_gib=79.6)
L40S = Node(cpus=32, memory_gib=128, gpus=1, gpu_memory_gib=45)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelShape]:
    folder = write_models(tmp_path_factory.mktemp("models"))
    return {path.name: read_model_shape(path) for path in folder.iterdir()}


def settings(model: dict[str, Any] | None = None, **sections: Any) -> Settings:
    models = [{"kind": "vllm", "num_gpus": 1, "model": "llama-3.1-8b-instruct", **(model or {})}]
    cluster = {"models": models, **sections.pop("cluster", {})}
    return Settings(cluster=cluster, **sections)


def problems(report: Report) -> str:
    return "\n".join(f"{finding.subject}: {finding.problem} ({finding.change})" for finding in report.errors)


def on(node: Node, count: int = 1) -> Hardware:
    return Hardware("as declared", (node,) * count)


def test_the_sums_of_a_model_on_one_gpu(shapes: dict[str, ModelShape]) -> None:
    chosen = settings({"parallel": 40, "context_tokens": 4096, "batch_tokens": 2048})
    report = check(chosen, on(L40S), shapes=shapes)
    (model,) = report.models
    assert not report.errors, problems(report)
    assert model.weight_bytes == 8_030_261_248 * 2
    assert model.kv_bytes_per_token == 2 * 8 * 128 * 32 * 2  # keys and values, heads, their width, layers, bytes
    assert model.kv_bytes == 40 * 4096 * model.kv_bytes_per_token
    assert model.needed_bytes <= model.budget_bytes == int(45 * 0.9 * GIB)
    assert model.sessions_that_fit is not None
    assert model.sessions_that_fit >= 40


def test_sessions_that_do_not_fit_are_counted(shapes: dict[str, ModelShape]) -> None:
    chosen = settings({"parallel": 200, "context_tokens": 4096})
    report = check(chosen, on(L40S), shapes=shapes)
    assert "200 sessions" in problems(report)
    fitting = report.models[0].sessions_that_fit
    assert f"set parallel to at most {fitting}" in problems(report)
    assert not check(settings({"parallel": fitting, "context_tokens": 4096}), on(L40S), shapes=shapes).errors


def test_weights_that_do_not_fit_are_told_apart_from_sessions(shapes: dict[str, ModelShape]) -> None:
    report = check(settings({"model": "llama-3.1-70b-instruct"}), on(H100), shapes=shapes)
    assert "before any session" in problems(report)
    assert "tensor_parallel_size" in problems(report)


def test_tensor_parallel_workers_share_weights_and_heads(shapes: dict[str, ModelShape]) -> None:
    one, four = (check(settings({"tensor_parallel_size": size}), on(H100), shapes=shapes).models[0] for size in (1, 4))
    assert four.weight_bytes == pytest.approx(one.weight_bytes / 4, abs=1)
    assert four.kv_bytes_per_token == one.kv_bytes_per_token // 4
    assert four.workers == four.gpus == 4


def test_heads_beyond_the_key_value_heads_are_copied(shapes: dict[str, ModelShape]) -> None:
    report = check(settings({"tensor_parallel_size": 16}), on(H100, 2), shapes=shapes)
    eight = check(settings({"tensor_parallel_size": 8}), on(H100, 2), shapes=shapes)
    assert report.models[0].kv_bytes_per_token == eight.models[0].kv_bytes_per_token
    assert any("are copied" in finding.problem for finding in report.findings)
    assert any("spans nodes" in finding.problem for finding in report.findings)


def test_pipeline_stages_share_layers_and_the_tables_lie_at_the_ends(shapes: dict[str, ModelShape]) -> None:
    shape = shapes["llama-3.1-8b-instruct"]
    fit = check(settings({"pipeline_parallel_size": 2}), on(H100), shapes=shapes).models[0]
    assert fit.weight_bytes == shape.layer_parameters + 2 * shape.embedding_parameters
    assert fit.kv_bytes_per_token == 2 * 8 * 128 * 16 * 2
    uneven = check(settings({"pipeline_parallel_size": 3}), on(H100), shapes=shapes).models[0]
    assert uneven.kv_bytes_per_token == 2 * 8 * 128 * 11 * 2, "of 32 layers a stage has 11"


def test_data_parallel_copies_share_the_sessions(shapes: dict[str, ModelShape]) -> None:
    fit = check(settings({"data_parallel_size": 4, "parallel": 160}), on(H100), shapes=shapes).models[0]
    assert (fit.workers, fit.sessions) == (4, 40)
    assert fit.weight_bytes == 8_030_261_248 * 2


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"tensor_parallel_size": 3}, "does not divide 32 attention heads (set one of 1, 2, 4, 8, 16, 32"),
        ({"pipeline_parallel_size": 33}, "33 of 32 layers"),
        ({"context_tokens": 131073}, "made for 131072"),
        ({"num_gpus": 0, "pipeline_parallel_size": 2}, "needs GPUs"),
        ({"num_gpus": 2}, "a worker takes one GPU"),
        ({"num_gpus": 0.5}, "gpu_memory_utilization 0.9 of a GPU of which it has 0.5"),
        ({"tensor_parallel_size": 8, "pipeline_parallel_size": 2, "executor": "mp"}, 'set executor = "ray"'),
        ({"kv_cache_gib": 1, "context_tokens": 8192}, "kv_cache_gib is 1: 1 fit (set kv_cache_gib to at least 16"),
        ({"kv_cache_gib": 70, "context_tokens": 8192}, "set kv_cache_gib to at most"),
        ({"max_replicas": 40}, "no room for"),
    ],
)
def test_what_can_not_be_is_refused_with_what_to_change(
    shapes: dict[str, ModelShape], model: dict[str, Any], said: str
) -> None:
    assert said in problems(check(settings(model), on(H100, 1), shapes=shapes))


def test_a_cpu_model_is_held_against_the_nodes_memory(shapes: dict[str, ModelShape]) -> None:
    model = {"num_gpus": 0, "parallel": 4, "context_tokens": 2048, "kv_cache_gib": 2}
    report = check(settings(model), on(Node(cpus=16, memory_gib=64)), shapes=shapes)
    assert not report.errors, problems(report)
    fit = report.models[0]
    assert fit.device == "CPU"
    assert fit.weight_bytes == 8_030_261_248 * 4, "float32"
    small = check(settings(model), on(Node(cpus=16, memory_gib=16)), shapes=shapes)
    assert "before any session" in problems(small)


def test_replicas_that_share_a_machine_share_its_memory(shapes: dict[str, ModelShape]) -> None:
    model = {"num_gpus": 0, "parallel": 4, "context_tokens": 2048, "kv_cache_gib": 2, "max_replicas": 2}
    assert "no room" in problems(check(settings(model), on(Node(cpus=16, memory_gib=64)), shapes=shapes))
    assert not check(settings(model), on(Node(cpus=16, memory_gib=96)), shapes=shapes).errors


def test_llama_cpp_keeps_what_its_file_holds(shapes: dict[str, ModelShape]) -> None:
    import dataclasses

    shape = dataclasses.replace(shapes["llama-3.1-8b-instruct"], quantized_bytes=5 * GIB)
    chosen = settings({"kind": "llamacpp", "num_gpus": 0, "parallel": 2})
    fit = check(chosen, on(Node(cpus=8, memory_gib=16)), shapes={"llama-3.1-8b-instruct": shape}).models[0]
    assert fit.weight_bytes == pytest.approx(5 * GIB, rel=0.01)
    assert fit.kv_bytes_per_token == 2 * 8 * 128 * 32 * 2


def test_a_guard_model_needs_what_any_model_needs(shapes: dict[str, ModelShape]) -> None:
    two = [{"kind": "vllm", "num_gpus": 1, "model": name, "parallel": 8} for name in ("llama-3.1-8b-instruct", "guard")]
    known = {**shapes, "guard": shapes["llama-3.1-8b-instruct"]}
    asked = {"scorers": ["guard_model"], "guard_model": {"family": "llama_guard", "model": "guard"}}
    report = check(settings(cluster={"models": two}, policy=asked), on(L40S), shapes=known)
    assert [model.model for model in report.models] == ["llama-3.1-8b-instruct", "guard"]
    assert report.gpus_needed == 2
    assert "guard: at max_replicas there is no room for 1 GPUs" in problems(report)
    # Nothing asks it: then it is not run.
    idle = {**asked, "scorers": ["ngram"]}
    assert check(settings(cluster={"models": two}, policy=idle), on(L40S), shapes=known).gpus_needed == 1


def test_unknown_gpus_are_asked_for(shapes: dict[str, ModelShape]) -> None:
    assert "--gpu-memory" in problems(check(settings(), on(Node(cpus=8)), shapes=shapes))


def test_adapters_are_for_their_model_and_take_room(shapes: dict[str, ModelShape], tmp_path: Path) -> None:
    chosen = settings({"adapters": [{"name": "nadia", "path": str(tmp_path)}]})
    plain = check(settings(), on(H100), shapes=shapes).models[0]
    report = check(chosen, on(H100), shapes=shapes, adapters={"nadia": AdapterShape(rank=12, hidden=4096)})
    assert not report.errors, problems(report)
    sides = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
    assert report.models[0].other_bytes - plain.other_bytes == 32 * sides * 16 * 2, "rank 12 takes the room of 16"
    foreign = check(chosen, on(H100), shapes=shapes, adapters={"nadia": AdapterShape(rank=8, hidden=8192)})
    assert "width 8192" in problems(foreign)
    large = check(chosen, on(H100), shapes=shapes, adapters={"nadia": AdapterShape(rank=1024, hidden=None)})
    assert "rank 1024" in problems(large)


def test_connections_are_held_against_postgresql(shapes: dict[str, ModelShape]) -> None:
    chosen = settings(cluster={"gateway": {"max_replicas": 20}})
    limits = PostgresLimits(max_connections=100, reserved=3)
    report = check(chosen, on(H100), shapes=shapes, postgres=limits)
    assert (report.connections_needed, report.connections_allowed) == (20 * (8 + 2) + 8, 97)
    assert "max_connections" in problems(report)
    assert "max_connections" not in problems(check(chosen, on(H100), shapes=shapes))


def test_a_scorer_that_the_guard_runs_must_be_one_that_is_asked(shapes: dict[str, ModelShape]) -> None:
    guard = {"guard_scorers": ["ngram", "cascade"]}
    found = problems(check(settings(cluster=guard), on(H100), shapes=shapes))
    assert "cluster.guard_scorers: policy.scorers does not name cascade" in found
    asked = settings(cluster=guard, policy={"scorers": ["ngram", "injection", "cascade"]})
    assert check(asked, on(H100), shapes=shapes).errors == ()


def test_several_machines_need_one_postgresql_one_master_key_and_callers_known_to_all(
    shapes: dict[str, ModelShape],
) -> None:
    on_two = check(settings(), on(H100, 2), shapes=shapes)
    assert {finding.subject for finding in on_two.errors} == {"ledger.dsn", "ledger.master_key", "auth.api_keys"}
    assert any(finding.subject == "gateway.host" for finding in on_two.findings)
    complete = settings(
        ledger={"dsn": "postgresql://db/personae", "master_key": KEY},
        auth={"api_keys": [API_KEY]},
        gateway={"host": "0.0.0.0", "tls": {"certificate": "/c", "private_key": "/k"}},
    )
    assert check(complete, on(H100, 2), shapes=shapes).findings == ()


def test_one_machine_may_promise_its_processors_twice(shapes: dict[str, ModelShape]) -> None:
    model = {"num_gpus": 0, "model": "m", "kind": "synthetic", "max_replicas": 8}
    report = check(settings(model), on(Node(cpus=2, memory_gib=8)), shapes={})
    assert not report.errors, problems(report)
    assert report.findings[0].severity == "warning"
    complete: dict[str, Any] = {
        "ledger": {"dsn": "postgresql://db/personae", "master_key": KEY},
        "auth": {"api_keys": [API_KEY]},
    }
    assert "no room" in problems(check(settings(model, **complete), on(Node(cpus=2, memory_gib=8), 2), shapes={}))


@given(
    tp=st.sampled_from([1, 2, 4, 8]),
    pp=st.integers(1, 4),
    dp=st.integers(1, 4),
    parallel=st.integers(1, 256),
    context=st.integers(256, 32768),
    memory=st.floats(8, 200),
)
def test_what_is_said_to_fit_fits(
    shapes: dict[str, ModelShape], tp: int, pp: int, dp: int, parallel: int, context: int, memory: float
) -> None:
    model = {
        **{"tensor_parallel_size": tp, "pipeline_parallel_size": pp, "data_parallel_size": dp},
        **{"parallel": parallel, "context_tokens": context, "executor": "ray"},
    }
    nodes = on(Node(cpus=64, memory_gib=512, gpus=8, gpu_memory_gib=memory), 16)
    complete: dict[str, Any] = {
        "ledger": {"dsn": "postgresql://db/personae", "master_key": KEY},
        "auth": {"api_keys": [API_KEY]},
    }
    report = check(settings(model, **complete), nodes, shapes=shapes)
    (fit,) = report.models
    assert fit.sessions_that_fit is not None
    if report.errors:
        assert fit.sessions_that_fit < fit.sessions
    else:
        assert fit.sessions_that_fit >= fit.sessions
        assert fit.budget_bytes is not None
        assert fit.needed_bytes <= fit.budget_bytes
    # Together the workers hold at least the model and what the sessions need.
    assert fit.weight_bytes * tp * pp >= shapes["llama-3.1-8b-instruct"].parameters * 2
    assert fit.kv_bytes * tp * pp * dp >= parallel * context * 2 * 8 * 128 * 32 * 2


# -- hardware ----------------------------------------------------------------


def test_declared_hardware_is_taken_before_a_cluster_that_would_have_to_be_asked() -> None:
    declared = Declared(nodes=2, cpus=8, memory_gib=64, gpus=4, gpu="H100")
    assert find_hardware(declared, "10.255.255.1:6379") == Hardware("as declared", (Node(8, 64, 4, 79.6),) * 2)
    here = find_hardware(Declared(), None)
    assert here.source == "this machine"
    assert here.nodes[0].cpus >= 1
    with pytest.raises(ConfigError, match="h200"):
        find_hardware(Declared(gpus=1, gpu="voodoo2"), None)


def test_an_address_where_nobody_listens_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"cluster.address: nothing listens at '127.0.0.1:1'"):
        find_hardware(Declared(), "127.0.0.1:1")


def test_ray_tells_kinds_of_gpus_and_not_their_memory() -> None:
    nodes: list[dict[str, object]] = [
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0, "accelerator_type:H100": 1.0, "memory": 64.0 * GIB}},
        {"Alive": True, "Resources": {"CPU": 4.0, "memory": 8.0 * GIB}},
        {"Alive": True, "Resources": {"GPU": 1.0, "accelerator_type:Unheard": 1.0}},
        {"Alive": False, "Resources": {"CPU": 64.0}},
    ]
    found = hardware_of_nodes("ray", nodes)
    assert found.nodes == (Node(8, 64, 2, 79.6), Node(4, 8), Node(0, None, 1, None))
    assert hardware_of_nodes("ray", nodes, 24.0).nodes[2].gpu_memory_gib == 24.0


def test_workers_that_are_processes_of_one_replica_need_one_node(shapes: dict[str, ModelShape]) -> None:
    small = Node(cpus=32, memory_gib=512, gpus=2, gpu_memory_gib=79.6)
    apart = settings({"data_parallel_size": 4})
    assert 'set executor = "ray"' in problems(check(apart, on(small, 2), shapes=shapes))
    report = check(settings({"data_parallel_size": 4, "executor": "ray"}), on(small, 2), shapes=shapes)
    assert not any(finding.subject == "llama-3.1-8b-instruct" for finding in report.errors), problems(report)


# -- PostgreSQL --------------------------------------------------------------


async def test_postgresql_is_asked_what_it_allows(tmp_path: Path) -> None:
    postgres = EmbeddedPostgres(tmp_path / "postgres")
    dsn = await postgres.start()
    try:
        limits = await postgres_limits(dsn)
    finally:
        await postgres.stop()
    assert limits.max_connections >= 20
    assert 0 < limits.reserved < limits.max_connections
    with pytest.raises(ConfigError, match="can't be reached"):
        await postgres_limits("postgresql://personae@127.0.0.1:1/personae")
