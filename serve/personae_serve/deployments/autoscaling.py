"""How many replicas a deployment should have.

Serve calls a policy's instance some ten times a second with an AutoscalingContext.
The policy reads from it what the replicas published (`record_autoscaling_stats`
must return the metrics below by exactly these names), turns it into a *demand*,
and `decide` turns a history of demands into a number of replicas:

- A demand is how many replicas the load would fill to their targets: the greatest
  of several, each a total over a target, so that it does not depend on how many
  replicas share the load now.
- Within `tolerance` of the present number nothing happens.
- More replicas come when every demand of the last `upscale_delay_s` asked for
  them, fewer when none of the last `downscale_delay_s` needed them (the
  stabilisation windows of Kubernetes' HorizontalPodAutoscaler), in bounded steps.
- What is missing or stale may add replicas but never take any away: a replica
  that says nothing counts as idle upwards and as loaded to its target downwards.
- From zero, one queued request is enough, and nothing is waited for.

Nothing here imports Ray; `autoscaling_config` gives plain data for its
`AutoscalingConfig`. This module is pickled by value into Serve's controller.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from personae_runtime.config import GatewayDeploymentSettings, ModelDeploymentSettings, ReplicaSettings
from personae_runtime.errors import InvalidArgument

OPEN_STREAMS = "open_streams"
"""Gateway: streams open at the moment, Converse and Attach together."""

ADMISSION_P95_MS = "admission_p95_ms"
"""Gateway: 95th percentile, over its last 10 seconds, of the milliseconds from a call to its first event; 0 if none."""

ONGOING = "ongoing"
"""Model: requests that the replica holds, running and waiting."""

WAITING = "waiting"
"""Model: those of `ongoing` that the engine has not begun."""

KV_USE = "kv_use"
"""Model: share of the KV cache that running requests hold, 0 to 1; 0 for an engine without one."""

KV_TARGET = 0.8
"""KV use that scaling aims at. vLLM preempts requests, which computes them anew, once its cache is full."""

WAITING_TOLERATED = 0.05
"""Share of waiting requests that is no reason for replicas: a request waits for the engine's next step anyway."""

IDLE_STREAMS = 0.25
"""Below this share of the target streams, slow admission has a cause that more gateways do not remove."""

METRICS_INTERVAL_S = 2.0
"""Seconds between the reports of a replica or handle. Serve's default of 10 would be longer than the delays here."""

LOOK_BACK_S = 10.0
"""Seconds that Serve averages what was reported over."""


@dataclass(frozen=True, slots=True)
class Rules:
    """When a number of replicas may change.

    Attributes:
        min_replicas, max_replicas: bounds, kept whatever else is asked.
        upscale_delay_s: seconds that more must have been asked for without a break.
        downscale_delay_s: seconds that fewer must have sufficed without a break.
        tolerance: share of the present number by which demand may differ from it
            without a change. Kubernetes' default is the same 0.1.
        step_period_s: seconds between two changes in one direction.
        step_up: greatest growth in one step, as a factor; at least `step_up_least` replicas are allowed.
        step_up_least: see `step_up`. Kubernetes' defaults: doubling or 4 replicas in 15 seconds.
        step_down: greatest share of the replicas taken away in one step; at least one may go.
        missing_share: share of the replicas whose reports may be missing without keeping all the others.

    Raises:
        InvalidArgument: a value is out of its range.
    """

    min_replicas: int
    max_replicas: int
    upscale_delay_s: float = 5.0
    downscale_delay_s: float = 300.0
    tolerance: float = 0.1
    step_period_s: float = 15.0
    step_up: float = 2.0
    step_up_least: int = 4
    step_down: float = 0.2
    missing_share: float = 0.05

    def __post_init__(self) -> None:
        checks = (
            (
                0 <= self.min_replicas <= self.max_replicas and self.max_replicas >= 1,
                "0 <= min_replicas <= max_replicas",
            ),
            (self.upscale_delay_s >= 0 and self.downscale_delay_s >= 0, "delays of at least 0 seconds"),
            (0 <= self.tolerance < 1, "a tolerance from 0 to 1"),
            (self.step_period_s >= 0, "a step_period_s of at least 0 seconds"),
            (self.step_up > 1 and self.step_up_least >= 1, "a step_up above 1 and a step_up_least of at least 1"),
            (0 < self.step_down <= 1, "a step_down above 0 and at most 1"),
            (0 <= self.missing_share < 1, "a missing_share from 0 to 1"),
        )
        for holds, expected in checks:
            if not holds:
                raise InvalidArgument(f"autoscaling rules need {expected}")


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is known at one moment.

    Attributes:
        target: replicas asked for at present, running or not.
        running: replicas that run.
        demand: replicas that the reported load would fill to their targets; what is
            not reported counts as no load. Not an integer.
        missing: running replicas without a recent report.
        queued: requests that no replica has taken yet.
    """

    target: int
    running: int
    demand: float
    missing: int = 0
    queued: float = 0.0


@dataclass(slots=True)
class State:
    """What `decide` remembers between calls. A new one waits a full delay before any change.

    Attributes:
        now: time of the last call.
        ups: (replicas asked for, time when that ended), the last ones in which a
            later one does not ask for fewer; the first is the least in the window.
        downs: (replicas needed, time when that ended), likewise; the first is the greatest.
        changed_up_at, changed_down_at: times of the last change in each direction.
    """

    now: float = -math.inf
    ups: deque[tuple[int, float]] = field(default_factory=deque)
    downs: deque[tuple[int, float]] = field(default_factory=deque)
    changed_up_at: float = -math.inf
    changed_down_at: float = -math.inf


def decide(state: State, inputs: Inputs, now: float, rules: Rules) -> int:
    """The number of replicas to have, from `min_replicas` to `max_replicas`.

    Args:
        state: kept by the caller from call to call; changed in place.
        inputs: what is known now.
        now: seconds on any clock; one that goes back is taken to stand still.
        rules: bounds and delays.
    """
    now = state.now = max(now, state.now)
    target = min(max(inputs.target, rules.min_replicas), rules.max_replicas)
    if not state.ups:  # the present number was asked for and needed until now
        state.ups.append((target, math.inf))
        state.downs.append((target, math.inf))
    up = _hold(state.ups, _asked(inputs, target, rules), now, rules.upscale_delay_s, least=True)
    down = _hold(state.downs, _needed(inputs, target, rules), now, rules.downscale_delay_s, least=False)
    if target == 0 and inputs.queued > 0:
        # A person waits for a model that is not loaded: every second counts.
        state.changed_up_at = now
        return min(max(1, math.ceil(inputs.demand)), rules.step_up_least, rules.max_replicas)
    if up > target and now - state.changed_up_at >= rules.step_period_s:
        state.changed_up_at = now
        return min(up, max(math.floor(target * rules.step_up), target + rules.step_up_least))
    if down < target and now - max(state.changed_up_at, state.changed_down_at) >= rules.step_period_s:
        state.changed_down_at = now
        return max(down, target - max(1, math.floor(target * rules.step_down)))
    return target


def _asked(inputs: Inputs, target: int, rules: Rules) -> int:
    """Replicas to grow to; 0 if there is no reason to."""
    if inputs.demand <= target * (1 + rules.tolerance):
        return 0
    return min(math.ceil(min(inputs.demand, rules.max_replicas)), rules.max_replicas)


def _needed(inputs: Inputs, target: int, rules: Rules) -> int:
    """Replicas below which the number must not fall."""
    unknown = inputs.missing > rules.missing_share * inputs.running or (inputs.running == 0 and target > 0)
    if unknown:
        return rules.max_replicas
    # After shrinking to it, demand is below 1 - tolerance of the number: far from growing again.
    most = min((inputs.demand + inputs.missing) / (1 - rules.tolerance), rules.max_replicas)
    return max(math.ceil(most), rules.min_replicas, 1 if inputs.queued > 0 else 0)


def _hold(window: deque[tuple[int, float]], value: int, now: float, span: float, *, least: bool) -> int:
    """Put a value into force until the next call; the least or greatest one in force in the last `span` seconds."""
    window[-1] = (window[-1][0], now)
    # What is not below (above) a later value can never again be the least (greatest).
    while window and (window[-1][0] >= value if least else window[-1][0] <= value):
        window.pop()
    window.append((value, math.inf))
    while window[0][1] <= now - span:
        window.popleft()
    return window[0][0]


class _Point(Protocol):
    """Serve's TimeStampedValue."""

    timestamp: float
    value: float


class Context(Protocol):
    """What is read of Serve's AutoscalingContext (ray.serve.config)."""

    current_num_replicas: int
    target_num_replicas: int
    running_replicas: Sequence[Any]
    capacity_adjusted_min_replicas: int
    capacity_adjusted_max_replicas: int
    policy_state: dict[str, Any]
    current_time: float | None

    @property
    def total_num_requests(self) -> float:
        """Requests at handles and replicas, averaged."""

    @property
    def total_queued_requests(self) -> float:
        """Requests at handles that no replica has taken, averaged."""

    @property
    def aggregated_metrics(self) -> Mapping[str, Mapping[Any, float]] | None:
        """By metric and replica, averaged over the look-back period."""

    @property
    def raw_metrics(self) -> Mapping[str, Mapping[Any, Sequence[_Point]]] | None:
        """By metric and replica, as reported."""


class ReplicaPolicy:
    """A deployment whose replicas publish nothing: scaled on Serve's own count of requests.

    Args:
        target_ongoing: requests per replica that scaling aims at, above 0.
        rules: fields of `Rules` other than the bounds, which Serve gives.

    Raises:
        InvalidArgument: a value is out of its range.
    """

    metrics: tuple[str, ...] = ()
    """Names that a replica must have reported lately to count as known."""

    DECISION_PERIOD_S = 1.0
    """Between decisions the last one stands: reading the reports of 1,000 replicas takes Serve some time."""

    STALE_AFTER_S = 5 * METRICS_INTERVAL_S
    """Age at which a report tells nothing. Clocks of nodes that differ by more keep replicas from going."""

    def __init__(self, *, target_ongoing: float = 1.0, **rules: Any) -> None:
        self._target_ongoing = _positive("target_ongoing", target_ongoing)
        self._rules = rules
        Rules(0, 1, **rules)  # refuse bad ones at once

    def demand(self, totals: Mapping[str, float], reporting: int, ctx: Context) -> float:
        """Replicas that the load fills.

        Args:
            totals: sums of the metrics over the replicas that reported.
            reporting: number of these replicas.
            ctx: Serve's context.
        """
        return max(0.0, ctx.total_num_requests) / self._target_ongoing

    def __call__(self, ctx: Context) -> tuple[int, dict[str, Any]]:
        """A decision, as Serve asks for it: replicas, and what is to be kept until the next call."""
        now = ctx.current_time if ctx.current_time is not None else 0.0
        state: State = ctx.policy_state.get("state") or State()
        if now - state.now < self.DECISION_PERIOD_S and ctx.current_num_replicas > 0:
            return ctx.target_num_replicas, {"state": state}
        least = max(0, ctx.capacity_adjusted_min_replicas)
        rules = Rules(least, max(1, least, ctx.capacity_adjusted_max_replicas), **self._rules)
        known = self._reporting(ctx, now)
        totals = {name: sum(_reports(ctx.aggregated_metrics, name)[one] for one in known) for name in self.metrics}
        inputs = Inputs(
            target=ctx.target_num_replicas,
            running=len(ctx.running_replicas),
            demand=self.demand(totals, len(known), ctx),
            missing=len(ctx.running_replicas) - len(known) if self.metrics else 0,
            queued=max(0.0, ctx.total_queued_requests or 0.0),
        )
        return decide(state, inputs, now, rules), {"state": state}

    def _reporting(self, ctx: Context, now: float) -> list[Any]:
        """The running replicas with a recent, usable value of every metric."""
        return [one for one in ctx.running_replicas if all(self._usable(ctx, name, one, now) for name in self.metrics)]

    def _usable(self, ctx: Context, name: str, replica: Any, now: float) -> bool:
        points = _reports(ctx.raw_metrics, name).get(replica)
        value = _reports(ctx.aggregated_metrics, name).get(replica, math.nan)
        if not points or now - points[-1].timestamp > self.STALE_AFTER_S:
            return False
        return math.isfinite(value) and value >= 0


class GatewayPolicy(ReplicaPolicy):
    """Gateways: open streams, and slow admission unless they hold so few streams that it can't be theirs.

    Overload of a gateway shows first as slow admission of new streams.

    Args:
        target_streams: open streams per replica that scaling aims at, above 0.
        target_admission_ms: milliseconds to the first event (p95) above which replicas are added, above 0.
        rules: see ReplicaPolicy.
    """

    metrics = (OPEN_STREAMS, ADMISSION_P95_MS)

    def __init__(self, *, target_streams: float, target_admission_ms: float, **rules: Any) -> None:
        super().__init__(**rules)
        self._target_streams = _positive("target_streams", target_streams)
        self._target_admission_ms = _positive("target_admission_ms", target_admission_ms)

    def demand(self, totals: Mapping[str, float], reporting: int, ctx: Context) -> float:
        """The greater of streams and mean admission time over their targets."""
        streams = totals[OPEN_STREAMS] / self._target_streams
        if streams < IDLE_STREAMS * reporting:
            return streams
        # A mean over the replicas: the sum over the target is the number of replicas times that mean's ratio.
        # More than twice the number says no more than "too few".
        return max(streams, min(totals[ADMISSION_P95_MS] / self._target_admission_ms, 2.0 * reporting))


class ModelPolicy(ReplicaPolicy):
    """Models: requests, KV cache in use, and requests that wait although others run.

    Args:
        target_ongoing: requests per replica that scaling aims at, above 0.
        rules: see ReplicaPolicy.
    """

    metrics = (ONGOING, WAITING, KV_USE)

    def demand(self, totals: Mapping[str, float], reporting: int, ctx: Context) -> float:
        """The greatest of the three; requests queued at handles count with those of the replicas."""
        ongoing, waiting = totals[ONGOING], totals[WAITING]
        requests = (ongoing + max(0.0, ctx.total_queued_requests or 0.0)) / self._target_ongoing
        cache = totals[KV_USE] / KV_TARGET
        share = min(waiting / ongoing, 0.9) if ongoing > 0 else 0.0
        # The others fill these replicas, so all of them fill this many.
        unserved = reporting / (1 - share) if share > WAITING_TOLERATED else 0.0
        return max(requests, cache, unserved)


def autoscaling_config(settings: ReplicaSettings, *, target_ongoing: float | None = None) -> dict[str, Any]:
    """The arguments of Serve's `AutoscalingConfig` for a deployment: plain JSON data.

    Args:
        settings: of the gateway, a model, or any other deployment.
        target_ongoing: of any other deployment: requests per replica to aim at. A
            model's own setting goes first; its default is three quarters of `parallel`.

    Raises:
        InvalidArgument: no target is known.
    """
    kwargs: dict[str, Any] = {
        "upscale_delay_s": settings.upscale_delay_s,
        "downscale_delay_s": settings.downscale_delay_s,
    }
    policy: type[ReplicaPolicy]
    if isinstance(settings, GatewayDeploymentSettings):
        policy = GatewayPolicy
        kwargs |= {
            "target_streams": settings.target_streams,
            "target_admission_ms": settings.target_admission_ms,
        }
        target = float(settings.target_streams)
    elif isinstance(settings, ModelDeploymentSettings):
        policy = ModelPolicy
        target = settings.target_ongoing or target_ongoing or 0.75 * settings.parallel
        kwargs["target_ongoing"] = target
    else:
        policy = ReplicaPolicy
        if target_ongoing is None:
            raise InvalidArgument("this deployment has no target of its own: give target_ongoing")
        target = target_ongoing
        kwargs["target_ongoing"] = target
    policy(**kwargs)  # refuse bad values before anything is deployed
    return {
        "min_replicas": settings.min_replicas,
        "max_replicas": settings.max_replicas,
        # Shown by Serve and used by its fast way up from zero; the policy has its own target.
        "target_ongoing_requests": target,
        "metrics_interval_s": METRICS_INTERVAL_S,
        "look_back_period_s": LOOK_BACK_S,
        # The policy waits itself, with windows instead of Serve's counters.
        "upscale_delay_s": 0.0,
        "downscale_delay_s": 0.0,
        "policy": {"policy_function": f"{__name__}:{policy.__name__}", "policy_kwargs": kwargs},
    }


def _reports(metrics: Mapping[str, Mapping[Any, Any]] | None, name: str) -> Mapping[Any, Any]:
    return (metrics or {}).get(name) or {}


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise InvalidArgument(f"{name} is {value}: give a finite number above 0")
    return value
