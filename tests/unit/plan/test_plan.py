"""The capacity model: formulas against known values, and answers that move the right way."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from personae_runtime.errors import InvalidArgument
from personae_serve.cli import build_app
from personae_serve.plan import (
    DAY_S,
    FIGURES,
    GPUS,
    MODELS,
    Model,
    Workload,
    allowed_utilisation,
    measured_figures,
    plan,
    waiting_s,
)


def erlang_c_wait(servers: int, utilisation: float, service_s: float) -> float:
    """Mean wait in M/M/c, exactly: A. K. Erlang's second formula."""
    load = servers * utilisation
    blocked = 1.0
    for count in range(1, servers + 1):  # Erlang B, by its recursion
        blocked = load * blocked / (count + load * blocked)
    waits = blocked / (1 - utilisation * (1 - blocked))
    return waits * service_s / (servers * (1 - utilisation))


@pytest.mark.parametrize("servers", [1, 4, 16, 64, 256])
@pytest.mark.parametrize("utilisation", [0.7, 0.8, 0.9, 0.95])
def test_the_approximation_is_near_the_exact_wait(servers: int, utilisation: float) -> None:
    exact = erlang_c_wait(servers, utilisation, 5.0)
    # Where hardly anyone waits, both are small, and the approximation is larger: on the safe side.
    assert exact * 0.97 <= waiting_s(servers, utilisation, 5.0) <= exact * 1.15 + 0.06


@given(st.integers(1, 512), st.floats(0.1, 60), st.floats(0.001, 5), st.floats(0.2, 4))
def test_the_allowed_utilisation_keeps_the_wait(servers: int, service_s: float, wait_s: float, spread: float) -> None:
    allowed = allowed_utilisation(servers, service_s, wait_s, spread)
    assert 0 <= allowed <= 0.95
    assert waiting_s(servers, allowed, service_s, spread) <= wait_s * 1.001
    assert allowed == 0.95 or waiting_s(servers, allowed + 0.001, service_s, spread) > wait_s * 0.99


def test_an_overloaded_queue_waits_for_ever() -> None:
    assert waiting_s(4, 1.0, 1.0) == math.inf
    assert waiting_s(4, 0.0, 1.0) == 0.0


def test_littles_law_gives_what_is_open_at_once() -> None:
    made = plan(Workload(daily_users=DAY_S * 10, turns_per_user=2, peak_factor=2.5, think_s=20))
    assert made.demand.turns_per_s_mean == pytest.approx(20)
    assert made.demand.turns_per_s == pytest.approx(50)
    assert made.demand.running_turns == pytest.approx(50 * made.demand.turn_s)
    assert made.demand.open_conversations == pytest.approx(50 * (made.demand.turn_s + 20))


def test_sizes_of_a_model_are_those_published() -> None:
    llama = MODELS["llama-3.1-8b"]
    assert llama.weight_bytes == pytest.approx(16.06e9)
    assert llama.kv_bytes_per_token == 131_072  # 128 KiB
    assert MODELS["llama-3.3-70b"].kv_bytes_per_token == 327_680


def test_a_replica_fits_its_gpus_and_keeps_its_promises() -> None:
    for name in MODELS:
        for gpu in GPUS:
            if (name, gpu) in (("llama-3.3-70b", "l4"), ("mixtral-8x7b", "l4")):
                with pytest.raises(InvalidArgument, match="does not fit"):
                    plan(Workload(), model=name, gpu=gpu)
                continue
            made = plan(Workload(), model=name, gpu=gpu)
            tier, workload = made.models, made.workload
            memory = tier.gpus_per_replica * GPUS[gpu].memory_gb
            assert tier.weight_gb + tier.kv_gb <= memory
            assert tier.batch * (workload.tokens_in + workload.tokens_out) <= tier.kv_tokens
            assert tier.step_ms <= 1000 / workload.stream_tokens_per_s
            assert tier.gpus == tier.replicas * tier.gpus_per_replica
            left = tier.replicas * 2 // 3
            busy = made.demand.running_turns / (left * tier.batch)
            assert busy <= tier.allowed_utilisation + 1e-9, "also with a zone lost"
            assert tier.wait_ms <= workload.wait_s * 1000
            # No faster than reading the weights once a step at the full bandwidth.
            fastest = tier.weight_gb / (tier.gpus_per_replica * GPUS[gpu].bandwidth_gb_s)
            assert tier.step_ms / 1000 > fastest


@given(st.floats(1e2, 1e9), st.floats(1.0, 4.0))
def test_more_users_need_no_less_of_anything(users: float, factor: float) -> None:
    few, many = (plan(Workload(daily_users=count)) for count in (users, users * factor))
    assert few.models.replicas <= many.models.replicas
    assert few.gateways.replicas <= many.gateways.replicas
    assert few.memory.nodes <= many.memory.nodes
    assert few.ledger.partitions <= many.ledger.partitions
    assert few.cost.total <= many.cost.total * 1.0001
    assert all(count % 3 == 0 for count in (few.models.replicas, few.gateways.replicas, few.memory.nodes))


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"prefix_hit": 0.95}, {"prefix_hit": 0.0}),
        ({"peak_factor": 2.0}, {"peak_factor": 6.0}),
        ({"tokens_out": 40}, {"tokens_out": 400}),
        ({"stream_tokens_per_s": 8}, {"stream_tokens_per_s": 40}),
        ({"lost_zones": 0}, {"lost_zones": 2}),
        ({"wait_s": 2.0}, {"wait_s": 0.01}),
        ({"variation": 0.5}, {"variation": 6.0}),
    ],
)
def test_a_harder_workload_needs_more_gpus(better: dict[str, Any], worse: dict[str, Any]) -> None:
    base = Workload(daily_users=1e7)
    assert plan(replace(base, **better)).models.gpus < plan(replace(base, **worse)).models.gpus


def test_a_billion_users_are_planned_for() -> None:
    made = plan(Workload(daily_users=1e9))
    assert made.demand.turns_per_s == pytest.approx(1e10 / DAY_S * 3)
    assert made.cost.per_1000_turns < plan(Workload(daily_users=1e4)).cost.per_1000_turns
    assert made.cost.total == pytest.approx(
        made.cost.gpus + made.cost.gateways + made.cost.memory + made.cost.ledger + made.cost.egress
    )


def test_a_replica_is_as_large_as_told() -> None:
    assert plan(Workload(), gpus_per_replica=4).models.gpus_per_replica == 4
    with pytest.raises(InvalidArgument, match="does not fit 1 l4"):
        plan(Workload(), model="llama-3.3-70b", gpu="l4", gpus_per_replica=1)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"daily_users": 0}, "daily_users must be above 0"),
        ({"daily_users": math.nan}, "daily_users must be a finite number"),
        ({"daily_users": 1e12}, "daily_users must be at most 1e\\+10"),
        ({"prefix_hit": 1.0}, "prefix_hit must be below 1"),
        ({"prefix_hit": -0.1}, "prefix_hit must be at least 0"),
        ({"peak_factor": 0.5}, "peak_factor must be at least 1"),
        ({"lost_zones": 3}, "lost_zones must be below zones"),
        ({"known_users": 0.5}, "known_users must be at least 1"),
    ],
)
def test_a_workload_that_can_not_be_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words) as caught:
        plan(Workload(**wrong))
    assert caught.value.violations[0][0] == next(iter(wrong))


def test_unknown_names_and_bad_figures_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="no model 'gpt'; known are: smollm2"):
        plan(Workload(), model="gpt")
    with pytest.raises(InvalidArgument, match="no GPU 'tpu'"):
        plan(Workload(), gpu="tpu")
    with pytest.raises(InvalidArgument, match="no figure 'speed'"):
        plan(Workload(), figures={"speed": 1})
    with pytest.raises(InvalidArgument, match="max_batch is 0"):
        plan(Workload(), figures={"max_batch": 0})
    with pytest.raises(InvalidArgument, match="flops_efficiency is 2"):
        plan(Workload(), figures={"flops_efficiency": 2})
    with pytest.raises(InvalidArgument, match="dtype is 'int3'"):
        plan(Workload(), model=replace(MODELS["qwen2.5-7b"], dtype="int3"))
    with pytest.raises(InvalidArgument, match="layers is 0"):
        plan(Workload(), model=Model(1e9, 1e9, 0, 8, 64))


def test_every_figure_has_a_source() -> None:
    assert all(figure.source and figure.unit for figure in FIGURES.values())
    assert all(gpu.source for gpu in GPUS.values())


def test_figures_change_the_answer() -> None:
    base = plan(Workload())
    assert plan(Workload(), figures={"gateway_conversations_per_core": 50}).gateways.replicas > base.gateways.replicas
    assert plan(Workload(), figures={"max_batch": 8}).models.bound_by == "max_batch"


# -- measured -----------------------------------------------------------------


def measured(tmp_path: Path, text: str) -> dict[str, float]:
    file = tmp_path / "bench.json"
    file.write_text(text, encoding="utf-8")
    return measured_figures(file)


def test_a_benchmark_replaces_figures(tmp_path: Path) -> None:
    result = {
        "vs_proxy": {"uncoalesced": 3.3},
        "kb_per_idle": 31.5,
        "prefix_hit_raw": 0.83,
        "open_5000": {"failures": 0, "admission_p99_ms": 100},
        "open_1000_all_gates": {"failures": 0, "admission_p99_ms": 120},
        "figures": {"gateway_cpu_ms_per_turn": 12},
    }
    expected = {
        "gateway_kb_per_conversation": 31.5,
        "prefix_hit": 0.83,
        "gateway_conversations_per_core": 500,
        "gateway_cpu_ms_per_turn": 12,
    }
    assert measured(tmp_path, f"progress of the benchmark\n{json.dumps(result)}\n") == expected
    assert measured(tmp_path, json.dumps(result, indent=2)) == expected


def test_a_failed_run_is_no_capacity(tmp_path: Path) -> None:
    result = {"open_1000_all_gates": {"failures": 3}, "open_5000": {"failures": 0}}
    assert measured(tmp_path, json.dumps(result)) == {"gateway_conversations_per_core": 2500}


@pytest.mark.parametrize(
    "text", ["", "no json", "[]", "{}", '{"kb_per_idle": "40"}', '{"figures": 3}', '{"kb_per_idle": true}']
)
def test_what_is_no_benchmark_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidArgument):
        measured(tmp_path, text)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="can't be read"):
        measured_figures(tmp_path / "none.json")


# -- the command --------------------------------------------------------------


@pytest.fixture(scope="module")
def run() -> Callable[..., Result]:
    app = build_app()
    return lambda *arguments: CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": "160"})


def test_the_command_prints_the_plan(run: Callable[..., Result]) -> None:
    shown = run("--users", "1e6")
    assert shown.exit_code == 0, shown.output
    for words in ("1,000,000 daily users", "GPUs", "Qdrant nodes", "PostgreSQL partitions", "per 1,000 turns"):
        assert words in shown.output


def test_the_command_prints_json(run: Callable[..., Result]) -> None:
    done = run("--users", "1e9", "--json", "--gpu", "h100", "--gpu-price", "2", "--set", "max_batch=64")
    found = json.loads(done.stdout)
    assert found["workload"]["daily_users"] == 1e9
    assert found["gpu"]["usd_per_h"] == 2
    assert found["models"]["batch"] == 64
    assert found["figures"]["max_batch"] == 64
    expected = plan(Workload(daily_users=1e9), gpu=replace(GPUS["h100"], usd_per_h=2), figures={"max_batch": 64})
    assert found["cost"] == expected.as_dict()["cost"]


def test_the_command_reads_a_model_and_a_benchmark(run: Callable[..., Result], tmp_path: Path) -> None:
    sizes = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32}
    sizes |= {"intermediate_size": 14336, "vocab_size": 128256}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    (tmp_path / "bench.json").write_text('{"prefix_hit_raw": 0.5, "kb_per_idle": 30}')
    arguments = ("--model-path", str(tmp_path), "--measured", str(tmp_path / "bench.json"), "--json")
    found = json.loads(run(*arguments).stdout)
    assert found["models"]["weight_gb"] == pytest.approx(16.06, rel=0.01)
    assert found["workload"]["prefix_hit"] == 0.5
    assert found["figures"]["gateway_kb_per_conversation"] == 30
    assert found["model"]["layers"] * found["model"]["kv_heads"] == 65_536


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--users", "0"), "daily_users must be above 0"),
        (("--gpu", "abacus"), "no GPU 'abacus'"),
        (("--set", "max_batch"), "NAME=VALUE"),
        (("--measured", "/nowhere"), "can't be read"),
        (("--dtype", "int3"), "give one of"),
        (("simulate", "--sessions", "0"), "sessions is 0"),
    ],
)
def test_the_command_says_what_is_wrong(run: Callable[..., Result], arguments: tuple[str, ...], words: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 1
    assert words in done.stderr


def test_the_command_lists_what_it_knows(run: Callable[..., Result]) -> None:
    shown = run("--known").output
    assert all(name in shown for name in (*MODELS, *GPUS, *FIGURES))


def test_the_command_simulates(run: Callable[..., Result]) -> None:
    done = run("simulate", "--sessions", "300", "--replicas", "4", "--day", "300", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["sessions_seen"] == 300
    assert "of the day" in done.stderr
