"""The model deployment, and the engine that a gateway sees of it.

`ModelReplica` runs in a Serve replica over any engine; `RemoteEngine` is the
engine protocol over its handle. Between them deltas travel as small tuples,
several tokens to a tuple under load, never an object of Ray's for each token.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

import structlog
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from personae_runtime.config import ModelDeploymentSettings, Settings, TelemetrySettings
from personae_runtime.engines.engine import (
    Engine,
    EngineCapacity,
    EngineDelta,
    EngineFinish,
    GenerateRequest,
    refuse_logprobs,
)
from personae_runtime.engines.factory import build_engine
from personae_runtime.errors import EngineDead, EngineOverloaded, InvalidArgument, PersonaeError
from personae_runtime.policy.units import UnitEnds
from personae_runtime.telemetry.logs import setup_logging
from personae_serve.deployments.autoscaling import KV_USE, ONGOING, WAITING, autoscaling_config
from personae_serve.deployments.router import affinity_key, request_router_config, running_replicas
from personae_serve.deployments.tokens import TokenCounter
from personae_serve.interpreter import hand_over_quickly

_log = structlog.get_logger(__name__)

# Requests up to which a replica hands every delta on at once, and at which it gathers for the whole pause.
_COALESCE_FROM: Final = 4
_COALESCE_FULL: Final = 64
# Text that completes no unit of the gate's goes on its way after so long: eight to ten tokens, as people read.
_UNIT_WAIT_S: Final = 1.0
_ATTEMPTS: Final = 3
_FULL_S: Final = 1.0
# For an engine to close, after its last request.
_SHUTDOWN_S: Final = 30.0

Frame = tuple[Any, ...]
"""What crosses the replica boundary: `(text, tokens)`, the last
`(text, tokens, finish, input_tokens, cached_input_tokens)`, or instead of it a
failure `(None, kind, message, reason, retry_after_s)`."""


async def coalesce(
    deltas: AsyncGenerator[EngineDelta, None], pause_s: Callable[[], float], *, unit_wait_s: float
) -> AsyncGenerator[EngineDelta, None]:
    """The same text in fewer deltas: the first at once, then what completes a unit of the stream gate.

    What is gathered here could not have been released any earlier: the gate judges whole
    units, and where they end depends on the text alone. A match of the gate's that waits for
    more text to be decided waits for at most `unit_wait_s` more.

    Args:
        deltas: of one reply; closed when this is.
        pause_s: asked before each delta but the first for the least seconds since the one before it.
        unit_wait_s: seconds after which text goes on its way without a unit's end; 0 waits for none.
    """
    text: list[str] = []
    tokens = 0
    units = UnitEnds()
    last: EngineDelta | None = None
    failure: BaseException | None = None
    ended = False
    news = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def pump() -> None:
        nonlocal tokens, last, failure, ended
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    text.append(delta.text)
                    tokens += delta.tokens
                    units.feed(delta.text)
                    if delta.finish is not None:
                        last = delta
                        news.set()
                    elif not news.is_set() and (not unit_wait_s or sent_at < 0 or units.passed()):
                        news.set()
        except Exception as error:
            failure = error
        finally:
            ended = True
            news.set()

    sent_at = -math.inf
    pumping = asyncio.create_task(pump(), name="model-deltas")
    try:
        while True:
            overdue = loop.call_later(unit_wait_s, news.set) if unit_wait_s and sent_at >= 0 else None
            await news.wait()
            if overdue is not None:
                overdue.cancel()
            if not ended and (wait := sent_at + pause_s() - time.monotonic()) > 0:
                # The end of the reply is not kept waiting.
                await asyncio.wait({pumping}, timeout=wait)
            news.clear()
            # As of the text that is taken now: more may come, and the end, while the caller has it.
            complete = ended
            joined, count = "".join(text), tokens
            text.clear()
            tokens = 0
            if last is not None:
                yield EngineDelta(joined, count, last.finish, last.input_tokens, last.cached_input_tokens)
                return
            if count or joined:
                yield EngineDelta(joined, count)
                sent_at = time.monotonic()
            if complete:
                if failure is not None:
                    raise failure
                return
    finally:
        pumping.cancel()
        # Its generator is closed, which aborts the request, before this one is.
        await asyncio.wait({pumping})


class ModelReplica:
    """One replica of a model.

    Args:
        model: a `ModelDeploymentSettings`, dumped.
        profile, models_dir: as in Settings.
        coalesce_ms: most milliseconds that deltas are gathered for.
        telemetry: `TelemetrySettings`, dumped.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, model: dict[str, Any], profile: str, models_dir: str, coalesce_ms: float, telemetry: dict[str, Any]
    ) -> None:
        # Not sys.stderr: Serve puts a buffer of a thousand lines in its place, which dies with the process.
        setup_logging(TelemetrySettings.model_validate(telemetry), sys.__stderr__)
        hand_over_quickly()
        settings = ModelDeploymentSettings.model_validate(model)
        self._coalesce_s = coalesce_ms / 1000
        self._engine: Engine = build_engine(settings, profile=profile, models_dir=Path(models_dir))
        await self._engine.start()

    def _pause_s(self) -> float:
        running = self._engine.capacity().running
        share = (running - _COALESCE_FROM) / (_COALESCE_FULL - _COALESCE_FROM)
        return min(1.0, max(0.0, share)) * self._coalesce_s

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Frame, None]:
        """Stream one reply. Closing the stream aborts the request in the engine."""
        try:
            deltas_of = coalesce(
                self._engine.generate(request), self._pause_s, unit_wait_s=_UNIT_WAIT_S if self._coalesce_s else 0.0
            )
            async with aclosing(deltas_of) as deltas:
                async for delta in deltas:
                    if delta.finish is None:
                        yield (delta.text, delta.tokens)
                    else:
                        yield (
                            delta.text,
                            delta.tokens,
                            delta.finish.value,
                            delta.input_tokens,
                            delta.cached_input_tokens,
                        )
        except PersonaeError as error:
            kind = type(error).__name__
            yield (None, kind, error.message, error.reason, error.retry_after_s or 0.0)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What the scaling policy goes by; Serve asks."""
        capacity = self._engine.capacity()
        return {
            ONGOING: float(capacity.running + capacity.waiting),
            WAITING: float(capacity.waiting),
            KV_USE: capacity.kv_use,
        }

    async def check_health(self) -> None:
        """Serve replaces a replica whose engine is dead."""
        await self._engine.health()

    async def __del__(self) -> None:
        # Serve awaits this once the replica's requests have ended.
        engine = getattr(self, "_engine", None)
        if engine is not None:
            await engine.close()


class RemoteEngine:
    """A model deployment as an `Engine`.

    Args:
        settings: of the deployment.
        handle: of the deployment.
        counter: counts tokens as the model does, or above.
    """

    def __init__(self, settings: ModelDeploymentSettings, handle: DeploymentHandle[Any], counter: TokenCounter) -> None:
        self._settings = settings
        # This makes the router, too, so that the replicas are known before the first request.
        self._handle = handle.options(
            method_name="generate", stream=True, request_serialization="pickle", response_serialization="pickle"
        )
        self._counter = counter
        self._deployment = handle.deployment_id
        self._streams: dict[str, Any] = {}
        self._aborted: set[str] = set()
        self._full_until = 0.0

    @property
    def model(self) -> str:
        """See Engine.model."""
        return self._settings.model

    @property
    def adapters(self) -> Collection[str]:
        """See Engine.adapters."""
        return [adapter.name for adapter in self._settings.adapters]

    async def start(self) -> None:
        """The replicas start by themselves."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[EngineDelta, None]:
        """See Engine.generate."""
        refuse_logprobs(request, self.model)  # frames have no place for them
        if request.request_id in self._streams:
            raise InvalidArgument(f"request {request.request_id!r} is in flight", reason="REQUEST_IN_FLIGHT")
        persona, session = request.affinity
        handle = self._handle.options(session_id=affinity_key(persona, session) if session else "")
        self._streams[request.request_id] = None
        try:
            for attempt in range(_ATTEMPTS):
                begun = False
                try:
                    frames: Any = handle.remote(request)
                    self._streams[request.request_id] = frames
                    try:
                        async for frame in frames:
                            begun = True
                            try:
                                delta = _delta(frame)
                            except EngineOverloaded as error:
                                # Other gateways fill the model too: for a while turns are refused before they begin.
                                self._full_until = time.monotonic() + (error.retry_after_s or _FULL_S)
                                raise
                            yield delta
                            if delta.finish is not None:
                                return
                    finally:
                        # Reaches the replica's generator, and through it the engine's abort.
                        frames.cancel()
                    if request.request_id in self._aborted:
                        yield EngineDelta("", 0, EngineFinish.ABORT)
                        return
                    raise EngineDead("the model replica ended the stream early")
                except BackPressureError as error:
                    self._full_until = time.monotonic() + _FULL_S
                    raise EngineOverloaded("every replica of the model is full", retry_after_s=1.0) from error
                except (asyncio.CancelledError, RayTaskError) as error:
                    if request.request_id in self._aborted:
                        yield EngineDelta("", 0, EngineFinish.ABORT)
                        return
                    if isinstance(error, RayTaskError):
                        _log.warning("model_replica_failed", model=self.model, error=type(error.cause).__name__)
                        raise EngineDead("the model replica failed") from error
                    raise
                except (RayServeException, RayError) as error:
                    # A replica that died before its first token is as if it had never been asked.
                    if begun or attempt + 1 == _ATTEMPTS:
                        raise EngineDead(f"the model replica is gone: {type(error).__name__}") from error
        finally:
            self._streams.pop(request.request_id, None)
            self._aborted.discard(request.request_id)

    async def abort(self, request_id: str) -> None:
        """See Engine.abort."""
        frames = self._streams.get(request_id)
        if frames is not None:
            self._aborted.add(request_id)
            frames.cancel()

    def count_tokens(self, text: str) -> int:
        """See Engine.count_tokens."""
        return self._counter(text)

    def capacity(self) -> EngineCapacity:
        """The deployment's places, and of those what this gateway takes; all of them while replicas refuse."""
        replicas = running_replicas(self._deployment)
        settings = self._settings
        places = replicas * settings.parallel
        taken = len(self._streams)
        # A model that is not loaded yet may have as many wait for it as a replica would take.
        queue = replicas * settings.max_waiting if replicas else settings.parallel
        if time.monotonic() < self._full_until:
            taken = max(taken, places + queue)
        return EngineCapacity(
            max_concurrent=places,
            running=min(taken, places),
            waiting=max(0, taken - places),
            max_waiting=queue,
            max_context_tokens=settings.context_tokens,
        )

    async def health(self) -> None:
        """See Engine.health. A model that scales to zero is healthy without a replica."""
        if self._settings.min_replicas and not running_replicas(self._deployment):
            raise EngineDead(f"no replica of {self.model} runs")

    async def close(self) -> None:
        """Abort what runs here; the replicas go on."""
        for request_id in tuple(self._streams):
            await self.abort(request_id)


def _delta(frame: Frame) -> EngineDelta:
    text = frame[0]
    if text is None:
        _, kind, message, reason, retry_after_s = frame
        if kind == "EngineOverloaded":
            raise EngineOverloaded(message, retry_after_s=retry_after_s)
        if kind == "InvalidArgument":
            raise InvalidArgument(message, reason=reason)
        raise EngineDead(message)
    if len(frame) == 2:
        return EngineDelta(text, frame[1])
    return EngineDelta(text, frame[1], EngineFinish(frame[2]), frame[3], frame[4])


def model_deployment(
    model: ModelDeploymentSettings, settings: Settings, replica: type[ModelReplica] = ModelReplica, *more: Any
) -> serve.Application:
    """The deployment of one of the settings' models, bound.

    Args:
        replica: made with the arguments of ModelReplica, and `more` after them.
    """
    return serve.deployment(
        name=deployment_name(model.model),
        **placement(model),
        # The engine refuses what it can't queue; the replica's own bound lies above, so that this is heard.
        max_ongoing_requests=model.parallel + model.max_waiting + 8,
        max_queued_requests=model.parallel + model.max_waiting,
        request_router_config=request_router_config(settings.cluster.affinity_load_factor, parallel=model.parallel),
        # What it generates gets to end.
        graceful_shutdown_timeout_s=settings.sessions.turn_timeout_s + _SHUTDOWN_S,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=5,
        health_check_timeout_s=30,
        autoscaling_config=autoscaling_config(model),
    )(replica).bind(
        model.model_dump(mode="json"),
        settings.profile,
        str(settings.models_dir),
        settings.cluster.token_coalesce_ms,
        settings.telemetry.model_dump(mode="json"),
        *more,
    )


def deployment_name(model: str) -> str:
    """Of a model's deployment, in `serve status`."""
    return f"model-{model.replace('/', '-')}"


def placement(settings: ModelDeploymentSettings) -> dict[str, Any]:
    """Options of a deployment that say where a replica goes, with the GPUs of all its engine's workers.

    Workers of one node are processes of the replica, which has their GPUs. With
    `executor = "ray"` they are Ray actors on any node, each with a bundle of the
    replica's placement group; the first bundle holds the replica too.
    """
    vllm = settings.kind == "vllm"
    workers = (
        settings.tensor_parallel_size * settings.pipeline_parallel_size * settings.data_parallel_size if vllm else 1
    )
    if vllm and settings.executor == "ray" and settings.num_gpus:
        worker = {"GPU": settings.num_gpus}
        first = {**worker, **({"CPU": settings.num_cpus} if settings.num_cpus else {})}
        return {
            "ray_actor_options": {"num_cpus": settings.num_cpus, "num_gpus": 0},
            "placement_group_bundles": [first, *([worker] * (workers - 1))],
            # As few nodes as there can be.
            "placement_group_strategy": "PACK",
        }
    return {"ray_actor_options": {"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus * workers}}
