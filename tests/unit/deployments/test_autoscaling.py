"""Replicas follow the load: soon enough upwards, slowly downwards, and never on a guess."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.config import GatewayDeploymentSettings, ModelDeploymentSettings, ReplicaSettings
from personae_runtime.errors import InvalidArgument
from personae_serve.deployments import autoscaling
from personae_serve.deployments.autoscaling import (
    GatewayPolicy,
    Inputs,
    ModelPolicy,
    ReplicaPolicy,
    Rules,
    State,
    autoscaling_config,
    decide,
)

HERE = Path(__file__).parent
UP, DOWN, STEP = 5.0, 300.0, 15.0


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_traces", HERE / "make_traces.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Fleet:
    """Replicas that start some time after they are asked for and stop at once, scaled by `decide` over a trace."""

    trace: dict[str, Any]
    rules: Rules
    targets: list[int] = field(default_factory=list)
    served: list[float] = field(default_factory=list)

    def run(self) -> Fleet:
        state, target, period = State(), self.trace["initial"], self.trace["period_s"]
        ready_at = [-math.inf] * target
        for index, load in enumerate(self.trace["loads"]):
            now = index * period
            lost = self.trace["lose"].get(str(index), 0)
            # The runtime starts what died anew, as the target is what it was.
            ready_at = sorted(ready_at)[lost:] + [now + self.trace["start_s"]] * lost
            running = sum(at <= now for at in ready_at)
            # Without a replica requests wait in queues; with one the replicas report them.
            inputs = Inputs(target=target, running=running, demand=load, queued=load if running == 0 else 0.0)
            target = decide(state, inputs, now, self.rules)
            ready_at = (ready_at + [now + self.trace["start_s"]] * max(0, target - len(ready_at)))[:target]
            self.targets.append(target)
            self.served.append(running)
        return self

    @property
    def changes(self) -> list[int]:
        """+1 or -1 for every change of the target."""
        return [1 if after > before else -1 for before, after in pairwise(self.targets) if after != before]

    def at(self, seconds: float) -> int:
        return self.targets[int(seconds / self.trace["period_s"])]


def fleet(name: str, *, least: int = 1, most: int = 200) -> Fleet:
    trace = json.loads((HERE / "traces" / f"{name}.json").read_text(encoding="utf-8"))
    return Fleet(trace, Rules(least, most, UP, DOWN)).run()


def test_the_recorded_traces_are_what_the_script_writes() -> None:
    for one in generator().traces():
        assert json.loads((HERE / "traces" / f"{one['name']}.json").read_text(encoding="utf-8")) == one


def test_noise_changes_nothing() -> None:
    assert fleet("noise").changes == []


def test_a_day_is_followed_up_and_down_without_flapping() -> None:
    day = fleet("diurnal")
    turns = sum(a != b for a, b in pairwise(day.changes))
    assert turns == 1, "once up to the peak and once down from it"
    assert max(day.targets) in range(50, 62)
    for target, load in zip(day.targets[10:], day.trace["loads"][10:], strict=True):
        assert load <= 1.25 * target, "never far above the target load"
        assert target <= max(1.6 * load, load + 5), "never far more than needed"


def test_a_step_is_answered_at_once_and_kept_through_the_delay() -> None:
    step = fleet("step")
    assert step.at(120 * 2 - 2) == 5
    assert step.at(120 * 2 + UP + 2) > 5, "the first replicas come after the delay"
    assert step.at(120 * 2 + UP + STEP + 4) in range(13, 16), "all of them one step later"
    assert step.at(360 * 2 + DOWN - 2) in range(13, 16), "kept until the low load has lasted"
    assert step.targets[-1] in range(4, 7)
    assert step.changes == sorted(step.changes, reverse=True)


def test_a_flash_crowd_is_met_in_doublings() -> None:
    crowd = fleet("flash-crowd")
    steps = [crowd.at(60 * 2 + UP + 2 + k * (STEP + 1)) for k in range(5)]
    assert steps[0] == 14
    assert all(after <= max(2 * before, before + 4) for before, after in pairwise(steps))
    assert steps[4] in range(55, 68)
    assert crowd.changes == sorted(crowd.changes, reverse=True)
    assert crowd.targets[-1] < 20


def test_a_cold_model_is_loaded_by_one_request_and_unloaded_when_idle() -> None:
    cold = fleet("cold-start", least=0)
    assert cold.targets[29] == 0
    assert cold.targets[30] == 1, "in the very period of the request"
    assert set(cold.targets[30:90]) == {1}
    assert cold.at(90 * 2 + DOWN - 2) == 1
    assert cold.targets[-1] == 0
    assert cold.changes == [1, -1]


def test_a_lost_node_takes_no_replicas_away() -> None:
    loss = fleet("node-loss")
    assert min(loss.served) == 12
    assert set(loss.targets) == {18}


# -- invariants ---------------------------------------------------------------

rules = st.builds(
    lambda least, more, up, down: Rules(least, max(1, least + more), up, down),
    st.integers(0, 5),
    st.integers(0, 40),
    st.sampled_from([0.0, 5.0]),
    st.sampled_from([0.0, 30.0]),
)
moments = st.lists(
    st.tuples(
        st.floats(0, 60),  # seconds since the last
        st.floats(0, 100),  # demand
        st.integers(0, 3),  # missing
        st.sampled_from([0.0, 0.0, 1.0, 30.0]),  # queued
        st.integers(0, 10),  # replicas not running
    ),
    min_size=1,
    max_size=60,
)


@given(rules, moments, st.integers(0, 60))
def test_bounds_and_steps_hold_whatever_happens(
    rules: Rules, moments: list[tuple[float, float, int, float, int]], initial: int
) -> None:
    state, target, now = State(), initial, 0.0
    changed: dict[int, float] = {}
    for pause, demand, missing, queued, lost in moments:
        now += pause
        inputs = Inputs(target, max(0, target - lost), demand, min(missing, max(0, target - lost)), queued)
        before, target = min(max(target, rules.min_replicas), rules.max_replicas), decide(state, inputs, now, rules)
        assert rules.min_replicas <= target <= rules.max_replicas
        assert target <= max(2 * before, before + 4)
        assert target >= before - max(1, before // 5)
        if target > before:
            assert demand > before or queued > 0
            if before > 0:
                assert now - changed.get(1, -math.inf) >= STEP
            changed[1] = now
        if target < before:
            assert target >= min(math.ceil(demand + inputs.missing), before)
            assert missing == 0 or inputs.missing <= 0.05 * inputs.running
            assert queued == 0 or target > 0
            assert now - max(changed.values(), default=-math.inf) >= STEP
            changed[-1] = now


@given(st.floats(0, 500), st.integers(0, 300), rules)
def test_a_constant_load_settles_for_good(demand: float, initial: int, rules: Rules) -> None:
    state, target = State(), initial
    targets = []
    for second in range(0, 2500, 5):
        target = decide(state, Inputs(target, target, demand), second, rules)
        targets.append(target)
    settled = targets[-1]
    assert set(targets[-100:]) == {settled}
    assert settled == rules.max_replicas or demand <= settled * 1.1
    low = demand / 0.9 + 1
    assert settled <= max(rules.min_replicas, low, 1) or settled == min(initial, rules.max_replicas) <= low
    directions = [b > a for a, b in pairwise(targets) if a != b]
    assert len(set(directions)) <= 1, "it never turns"


@given(moments, st.integers(1, 40))
def test_without_reports_no_replica_goes(moments: list[tuple[float, float, int, float, int]], initial: int) -> None:
    state, target, now = State(), initial, 0.0
    rules = Rules(0, 100, 0, 0)
    for pause, demand, _, _, _ in moments:
        now += pause
        before, target = target, decide(state, Inputs(target, target, demand, missing=target), now, rules)
        assert target >= before


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(0, 9)), min_size=1, max_size=80), st.booleans())
def test_the_window_gives_the_extreme_of_what_held(samples: list[tuple[float, int]], least: bool) -> None:
    span = 30.0
    window = autoscaling.deque([(samples[0][1], math.inf)])
    now, history = 0.0, [(0.0, samples[0][1])]
    for pause, value in samples:
        now += pause
        history.append((now, value))
        held = autoscaling._hold(window, value, now, span, least=least)
        ends = [start for start, _ in history[1:]] + [math.inf]
        in_force = [v for (_, v), end in zip(history, ends, strict=True) if end > now - span]
        assert held == (min(in_force) if least else max(in_force))


def test_a_pause_of_the_controller_is_no_reason_to_shrink() -> None:
    state, rules = State(), Rules(1, 10, UP, DOWN)
    for second in range(10):
        assert decide(state, Inputs(8, 8, 8.0), second, rules) == 8
    assert decide(state, Inputs(8, 8, 1.0), 10_000, rules) == 8


def test_a_clock_that_goes_back_stands_still() -> None:
    state, rules = State(), Rules(1, 10, UP, DOWN)
    decide(state, Inputs(4, 4, 4.0), 1000, rules)
    assert decide(state, Inputs(4, 4, 9.0), 10, rules) == 4
    assert state.now == 1000


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_replicas": 3, "max_replicas": 2},
        {"max_replicas": 0, "min_replicas": 0},
        {"upscale_delay_s": -1},
        {"tolerance": 1.0},
        {"step_up": 1.0},
        {"step_down": 0.0},
        {"missing_share": 1.0},
        {"step_period_s": -1},
    ],
)
def test_rules_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        Rules(**{"min_replicas": 1, "max_replicas": 2, **wrong})


# -- policies -----------------------------------------------------------------


@dataclass
class Point:
    timestamp: float
    value: float


@dataclass
class Context:
    """Serve's AutoscalingContext, as far as it is read."""

    reports: dict[str, dict[str, float]]
    running: int = 2
    target: int = 2
    queued: float = 0.0
    requests: float = 0.0
    age_s: float = 1.0
    current_time: float = 1000.0
    policy_state: dict[str, Any] = field(default_factory=dict)
    capacity_adjusted_min_replicas: int = 1
    capacity_adjusted_max_replicas: int = 20

    @property
    def running_replicas(self) -> list[str]:
        return [f"r{number}" for number in range(self.running)]

    @property
    def current_num_replicas(self) -> int:
        return self.running

    @property
    def target_num_replicas(self) -> int:
        return self.target

    @property
    def total_num_requests(self) -> float:
        return self.requests

    @property
    def total_queued_requests(self) -> float:
        return self.queued

    @property
    def aggregated_metrics(self) -> dict[str, dict[str, float]]:
        return self.reports

    @property
    def raw_metrics(self) -> dict[str, dict[str, list[Point]]]:
        at = self.current_time - self.age_s
        return {name: {one: [Point(at, value)] for one, value in by.items()} for name, by in self.reports.items()}


def gateways(streams: list[float], admission_ms: list[float]) -> dict[str, dict[str, float]]:
    return {
        "open_streams": {f"r{n}": value for n, value in enumerate(streams)},
        "admission_p95_ms": {f"r{n}": value for n, value in enumerate(admission_ms)},
    }


def models(ongoing: list[float], waiting: list[float], kv_use: list[float]) -> dict[str, dict[str, float]]:
    columns = {"ongoing": ongoing, "waiting": waiting, "kv_use": kv_use}
    return {name: {f"r{n}": value for n, value in enumerate(values)} for name, values in columns.items()}


def at_once(policy: ReplicaPolicy, ctx: Context) -> int:
    """The decision of a policy without delays, once its first call is over."""
    _, state = policy(ctx)
    ctx.policy_state = state
    ctx.current_time += 100
    return policy(ctx)[0]


def gateway_policy(**more: Any) -> GatewayPolicy:
    return GatewayPolicy(
        target_streams=100, target_admission_ms=100, **{"upscale_delay_s": 0, "downscale_delay_s": 0, **more}
    )


def model_policy(**more: Any) -> ModelPolicy:
    return ModelPolicy(target_ongoing=10, **{"upscale_delay_s": 0, "downscale_delay_s": 0, **more})


@pytest.mark.parametrize(
    ("streams", "admission_ms", "expected"),
    [
        ([100, 100], [10, 10], 2),
        ([150, 150], [10, 10], 3),
        ([60, 60], [200, 160], 4),  # slow, and busy enough for that to be its own fault
        ([60, 60], [99999, 99999], 4),  # never more than twice the number on admission alone
        ([10, 10], [900, 900], 1),  # slow, but hardly a stream: somebody else's fault
        ([40, 40], [5, 5], 1),
    ],
)
def test_gateways_are_scaled_on_streams_and_admission(
    streams: list[float], admission_ms: list[float], expected: int
) -> None:
    assert at_once(gateway_policy(), Context(gateways(streams, admission_ms))) == expected


@pytest.mark.parametrize(
    ("ongoing", "waiting", "kv_use", "queued", "expected"),
    [
        ([10, 10], [0, 0], [0.3, 0.3], 0, 2),
        ([15, 15], [0, 0], [0.3, 0.3], 0, 3),
        ([5, 5], [0, 0], [1.0, 1.0], 0, 3),  # the cache is full
        ([8, 8], [4, 4], [0.5, 0.5], 0, 4),  # half of all wait
        ([3, 3], [0, 0], [0.2, 0.2], 0, 1),
        ([10, 10], [0, 0], [0.2, 0.2], 20, 4),  # queued in front of the replicas
    ],
)
def test_models_are_scaled_on_requests_cache_and_waiting(
    ongoing: list[float], waiting: list[float], kv_use: list[float], queued: float, expected: int
) -> None:
    assert at_once(model_policy(), Context(models(ongoing, waiting, kv_use), queued=queued)) == expected


def test_other_deployments_are_scaled_on_their_requests() -> None:
    policy = ReplicaPolicy(target_ongoing=4, upscale_delay_s=0, downscale_delay_s=0)
    assert at_once(policy, Context({}, requests=20)) == 5
    assert at_once(policy, Context({}, requests=2)) == 1


@pytest.mark.parametrize(
    "spoilt",
    [
        {"age_s": 60.0},
        {"reports": {}},
        {"reports": gateways([0], [0])},
        {"reports": gateways([0, math.nan], [0, 0])},
        {"reports": gateways([0, -5], [0, 0])},
        {"reports": {"open_streams": {"r0": 0.0, "r1": 0.0}}},
    ],
)
def test_missing_or_stale_reports_take_no_gateway_away(spoilt: dict[str, Any]) -> None:
    assert at_once(gateway_policy(), Context(gateways([0, 0], [0, 0]))) == 1
    assert at_once(gateway_policy(), Context(**{"reports": gateways([0, 0], [0, 0]), **spoilt})) == 2


def test_load_that_is_reported_adds_replicas_though_other_reports_are_missing() -> None:
    assert at_once(gateway_policy(), Context(gateways([400], [5]))) == 4


def test_of_many_replicas_a_few_may_be_silent() -> None:
    reports = gateways([10.0] * 38, [5.0] * 38)
    few = Context(reports, running=40, target=40, capacity_adjusted_max_replicas=50)
    assert at_once(gateway_policy(), few) == 32
    many = Context(gateways([10.0] * 30, [5.0] * 30), running=40, target=40, capacity_adjusted_max_replicas=50)
    assert at_once(gateway_policy(), many) == 40


def test_between_decisions_nothing_is_read() -> None:
    policy = gateway_policy()
    ctx = Context(gateways([100, 100], [5, 5]))
    _, ctx.policy_state = policy(ctx)
    ctx.reports = gateways([900, 900], [5, 5])
    ctx.current_time += 0.1
    assert policy(ctx)[0] == 2
    ctx.current_time += 1.0
    assert policy(ctx)[0] > 2


def test_a_replica_that_starts_is_waited_for() -> None:
    ctx = Context({}, running=0, target=1, capacity_adjusted_min_replicas=0)
    assert at_once(model_policy(), ctx) == 1


def test_the_first_request_for_a_cold_model_starts_it() -> None:
    ctx = Context({}, running=0, target=0, queued=1, capacity_adjusted_min_replicas=0)
    assert model_policy(upscale_delay_s=60)(ctx)[0] == 1


@pytest.mark.parametrize("wrong", [{"target_ongoing": 0}, {"target_ongoing": math.inf}, {"tolerance": 2}])
def test_policies_refuse_bad_arguments(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        ModelPolicy(**{"target_ongoing": 1, **wrong})


# -- what Serve is given ------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "policy", "kwargs"),
    [
        (
            GatewayDeploymentSettings(min_replicas=2, max_replicas=9, target_streams=250, upscale_delay_s=3),
            "GatewayPolicy",
            {"target_streams": 250, "target_admission_ms": 100.0, "upscale_delay_s": 3.0, "downscale_delay_s": 300.0},
        ),
        (
            ModelDeploymentSettings(min_replicas=0, max_replicas=3, parallel=16),
            "ModelPolicy",
            {"target_ongoing": 12.0, "upscale_delay_s": 5.0, "downscale_delay_s": 300.0},
        ),
        (
            ReplicaSettings(max_replicas=3),
            "ReplicaPolicy",
            {"target_ongoing": 7.0, "upscale_delay_s": 5.0, "downscale_delay_s": 300.0},
        ),
    ],
)
def test_the_configuration_names_a_policy_with_the_settings(
    settings: ReplicaSettings, policy: str, kwargs: dict[str, Any]
) -> None:
    target = 7.0 if type(settings) is ReplicaSettings else None
    config = json.loads(json.dumps(autoscaling_config(settings, target_ongoing=target)))
    assert (config["min_replicas"], config["max_replicas"]) == (settings.min_replicas, settings.max_replicas)
    assert config["policy"] == {
        "policy_function": f"personae_serve.deployments.autoscaling:{policy}",
        "policy_kwargs": kwargs,
    }
    assert config["upscale_delay_s"] == config["downscale_delay_s"] == 0


def test_serve_accepts_the_configuration_and_calls_the_policy() -> None:
    config = pytest.importorskip("ray.serve.config", reason="needs the extra `cluster`")
    made = config.AutoscalingConfig(**autoscaling_config(GatewayDeploymentSettings(max_replicas=3)))
    policy = made.policy.get_policy()(**made.policy.policy_kwargs)
    assert at_once(policy, Context(gateways([500, 500], [5, 5]))) == 3


def test_a_deployment_without_a_target_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="target_ongoing"):
        autoscaling_config(ReplicaSettings())
