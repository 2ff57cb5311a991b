"""The affinity router, the scaling policy and the guard model's calls inside a real Serve."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import pytest

from personae_runtime.config import GuardModelSettings, ModelDeploymentSettings
from personae_runtime.engines.engine import EngineCapacity, EngineDelta, EngineFinish, GenerateRequest, Token
from personae_runtime.policy.gate import ScorerFailure, run_scorers
from personae_runtime.policy.guard_models import FAMILIES, GuardModelScorer

ray = pytest.importorskip("ray", reason="needs the extra `cluster`")

from ray import serve  # noqa: E402
from ray.serve.config import AutoscalingConfig, RequestRouterConfig  # noqa: E402

from personae_serve.deployments import autoscaling  # noqa: E402
from personae_serve.deployments.guard_model import GuardModelReplica, RemoteGuardModel  # noqa: E402
from personae_serve.deployments.router import affinity_key, request_router_config, running_replicas  # noqa: E402

PLACES = 4
ROUTER = RequestRouterConfig(**request_router_config(1.25, parallel=PLACES))
PATIENCE_S = 90
pytestmark = pytest.mark.timeout(400)


class Model:
    """Says which replica it is."""

    def __init__(self, gate: Any = None) -> None:
        self._gate = gate

    async def __call__(self) -> str:
        return str(serve.get_replica_context().replica_id.unique_id)

    async def hold(self) -> str:
        """Answer only once the gate is open."""
        await self._gate.opened.remote()
        return str(serve.get_replica_context().replica_id.unique_id)

    async def die(self) -> None:
        os._exit(1)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        return {autoscaling.ONGOING: 0, autoscaling.WAITING: 0, autoscaling.KV_USE: 0}


class Gate:
    """Lets requests wait for each other."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._aborted = 0

    async def opened(self) -> None:
        await self._open.wait()

    async def open(self) -> None:
        self._open.set()

    async def note_abort(self) -> None:
        self._aborted += 1

    async def aborted(self) -> int:
        return self._aborted


class Verdicts:
    """An engine in the place of one with a guard model: `safe`, but to "wait" never a word, and to "die" none ever."""

    model = "verdicts"

    def __init__(self, gate: Any) -> None:
        self._gate = gate

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[EngineDelta, None]:
        text = request.messages[-1].content
        if "die" in text:
            os._exit(1)
        try:
            if "wait" in text:
                await asyncio.Future()
        except asyncio.CancelledError:
            self._gate.note_abort.remote()
            raise
        token = Token("safe", (("safe", -0.2231435513), ("unsafe", -1.6094379124)))
        yield EngineDelta("safe", 1, EngineFinish.STOP, 10, logprobs=(token,))

    def capacity(self) -> EngineCapacity:
        return EngineCapacity(8, 0, 0, 8, 2048)

    async def health(self) -> None:
        pass

    async def close(self) -> None:
        pass


class GuardModel(GuardModelReplica):
    """The guard model's replica over that engine."""

    async def __init__(self, gate: Any) -> None:
        self._engine = Verdicts(gate)  # type: ignore[assignment]  # what a replica asks of it, and no more
        self._scorer = GuardModelScorer(FAMILIES["llama_guard"], self._engine, 60.0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        # Ray's workers have the environment of this process, not its import path.
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        serve.start(proxy_location="Disabled")
        try:
            yield
        finally:
            serve.shutdown()
            ray.shutdown()


@pytest.fixture(scope="module")
def gate(cluster: None) -> Any:
    return ray.remote(num_cpus=0)(Gate).remote()


@pytest.fixture(scope="module")
def model(gate: Any) -> Any:
    app = serve.deployment(
        name="model",
        num_replicas=3,
        max_ongoing_requests=8,
        health_check_period_s=1,
        ray_actor_options={"num_cpus": 0.1},
        request_router_config=ROUTER,
    )(Model)
    return serve.run(app.bind(gate), name="affinity", route_prefix=None)


def key(session: str) -> str:
    """Sessions of many personas, as one that has all the load would get more replicas in the middle of a test."""
    return affinity_key(f"persona of {session}", session)


def ask(model: Any, session: str, method: str = "__call__") -> str:
    handle = model.options(session_id=key(session), method_name=method)
    return str(handle.remote().result(timeout_s=90))


def eventually(what: Callable[[], bool]) -> None:
    """Ask again and again until it holds."""
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_sessions_stay_at_their_replica(model: Any) -> None:
    homes = {f"s{n}": ask(model, f"s{n}") for n in range(12)}
    assert all(ask(model, session) == home for session, home in homes.items() for _ in range(3))
    assert running_replicas(model.deployment_id) == 3


def test_requests_without_a_session_are_served(model: Any) -> None:
    assert model.remote().result(timeout_s=90)


def test_a_session_goes_on_elsewhere_while_its_replica_is_at_the_bound(model: Any, gate: Any) -> None:
    home = ask(model, "busy")
    hold = model.options(session_id=key("busy"), method_name="hold")
    held: list[Any] = []

    def full() -> bool:
        held.append(hold.remote())  # one more each time: the end of an earlier request may not be known yet
        return ask(model, "busy") != home

    eventually(full)
    ray.get(gate.open.remote())
    assert held[0].result(timeout_s=90) == home
    assert len(held) <= 2 * PLACES, "only requests that hold a place fill a replica"
    eventually(lambda: ask(model, "busy") == home)


def test_a_killed_replica_moves_only_its_own_sessions(model: Any) -> None:
    before = {f"s{n}": ask(model, f"s{n}") for n in range(24)}
    dead = before["s0"]
    with pytest.raises(ray.exceptions.RayError):
        ask(model, "s0", "die")

    def replaced() -> bool:
        seen = {ask(model, f"s{n}") for n in range(24)}
        return dead not in seen and running_replicas(model.deployment_id) == 3

    eventually(replaced)
    old = set(before.values())
    for session, home in before.items():
        now = ask(model, session)
        assert now == home or home == dead or now not in old, "moved between replicas that were there all the time"
        assert now != dead


def test_a_model_without_replicas_is_started_by_a_request_and_stopped_when_idle(cluster: None) -> None:
    settings = ModelDeploymentSettings(kind="synthetic", min_replicas=0, max_replicas=2, downscale_delay_s=1)
    app = serve.deployment(
        name="cold",
        max_ongoing_requests=8,
        ray_actor_options={"num_cpus": 0.1},
        request_router_config=ROUTER,
        autoscaling_config=AutoscalingConfig(**autoscaling.autoscaling_config(settings)),
    )(Model)
    handle = serve.run(app.bind(), name="cold", route_prefix=None)
    assert running_replicas(handle.deployment_id) == 0
    response = handle.options(session_id=key("first")).remote()
    assert response.result(timeout_s=90)
    assert running_replicas(handle.deployment_id) == 1
    eventually(lambda: not serve.status().applications["cold"].deployments["cold"].replica_states.get("RUNNING"))


def test_the_guard_model_is_asked_by_its_handle_and_late_calls_reach_its_engine_as_aborts(gate: Any) -> None:
    app = serve.deployment(
        name="guard",
        max_ongoing_requests=8,
        health_check_period_s=1,
        ray_actor_options={"num_cpus": 0.1},
        request_router_config=ROUTER,
    )(GuardModel)
    handle = serve.run(app.bind(gate), name="guard", route_prefix=None)

    def scores(text: str, deadline_ms: float) -> dict[str, float]:
        async def ask_once() -> dict[str, float]:
            guard = RemoteGuardModel(GuardModelSettings(family="llama_guard", deadline_ms=deadline_ms), handle)
            return await run_scorers([guard], [text], [text])

        return asyncio.run(ask_once())

    known = scores("A walk by the river.", 60_000)
    assert known.keys() == set(FAMILIES["llama_guard"].categories)
    assert known["harm"] == pytest.approx(0.2)
    before = ray.get(gate.aborted.remote())
    with pytest.raises(ScorerFailure, match="TimeoutError"):
        scores("wait", 2000)
    eventually(lambda: ray.get(gate.aborted.remote()) == before + 1)
    with pytest.raises(ScorerFailure, match="ActorDied"):
        scores("die", 60_000)

    def back() -> bool:
        try:
            return scores("A walk by the river.", 5000)["harm"] > 0
        except ScorerFailure:
            return False

    eventually(back)
