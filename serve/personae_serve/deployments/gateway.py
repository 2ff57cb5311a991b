"""The gateway deployment: each replica owns a gRPC server and drains itself.

Serve places, scales and checks the replicas; the calls come in by gRPC, on one
port that the replicas of a node share, and never pass through Serve.
"""

from __future__ import annotations

import sys
import uuid
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import ray
import structlog
from ray.serve.handle import DeploymentHandle

from personae_runtime.config import load_settings
from personae_runtime.engines.registry import Engines
from personae_runtime.memory.factory import Part, cursor_name
from personae_runtime.policy.policy import Policy
from personae_runtime.telemetry.logs import setup_logging
from personae_runtime.telemetry.setup import setup_telemetry
from personae_serve.deployments.autoscaling import ADMISSION_P95_MS, OPEN_STREAMS
from personae_serve.deployments.guard import remote_scorer
from personae_serve.deployments.guard_model import RemoteGuardModel
from personae_serve.deployments.memory import RemoteMemory
from personae_serve.deployments.model import RemoteEngine
from personae_serve.deployments.tokens import token_counter
from personae_serve.gateway.auth import accepted_keys
from personae_serve.gateway.gateway import Gateway, Memory
from personae_serve.stores import open_policy, open_stores

_log = structlog.get_logger(__name__)


def _node_address() -> str:
    """Where the cluster's other nodes reach this one: loopback, if there are none on a machine of its own."""
    own = ray.get_runtime_context().get_node_id()
    found: str = next(node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == own)  # type: ignore[no-untyped-call]
    return found


class GatewayReplica:
    """One gateway of a cluster.

    Args:
        config: TOML file; None for none.
        overrides: settings above the file and the environment.
        version: changes with the code and the configuration, so that Serve replaces the replicas.
        models: handles by model name, the default first.
        memory: None if memory is off.
        guard: None if every scorer runs in the gateway.
        guard_model: None if no scorer asks one.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        config: str | None,
        overrides: dict[str, Any],
        version: str,
        models: dict[str, DeploymentHandle[Any]],
        memory: DeploymentHandle[Any] | None,
        guard: DeploymentHandle[Any] | None,
        guard_model: DeploymentHandle[Any] | None,
    ) -> None:
        settings = load_settings(None if config is None else Path(config), **overrides)
        # Not sys.stderr: Serve puts a buffer of a thousand lines in its place, which dies with the process.
        setup_logging(settings.telemetry, sys.__stderr__)
        self._stack = stack = AsyncExitStack()
        self._gateway: Gateway | None = None
        try:
            telemetry = setup_telemetry(settings.telemetry)
            stack.push_async_callback(telemetry.shutdown)
            away = settings.cluster.guard_scorers
            asked = None if guard_model is None else RemoteGuardModel(settings.policy.guard_model, guard_model)
            policy = await open_policy(settings, stack, asked, away)
            if guard is not None:
                policy = Policy(
                    policy.bundle,
                    [remote_scorer(one, guard) if one.name in away else one for one in policy.scorers],
                )
            stores = await open_stores(settings, stack)
            by_name = {model.model: model for model in settings.model_deployments}
            engines = [
                RemoteEngine(by_name[name], handle, token_counter(by_name[name], settings.models_dir))
                for name, handle in models.items()
            ]
            for engine in engines:
                await engine.start()
            parts = None
            if memory is not None:
                people, own = (RemoteMemory(memory, part, cursor_name(settings.memory, part)) for part in Part)
                parts = Memory(people, people, own, own)
            gateway = settings.gateway.model_copy(
                update={
                    "reuse_port": True,
                    "peer_host": _node_address(),
                    "peer_port": 0,
                }
            )
            self._gateway = Gateway(
                settings.model_copy(update={"gateway": gateway}),
                stores=stores,
                engines=Engines(engines),
                policy=policy,
                memory=parts,
                telemetry=telemetry,
                keys=accepted_keys(settings).keys,
                # A replica is never the same process twice: what a dead one left is found by its lease.
                host_id=uuid.uuid4().hex,
            )
            port = await self._gateway.start()
        except BaseException:
            await stack.aclose()
            raise
        _log.info("serving", host=settings.gateway.host, port=port, policy=policy.version, version=version)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What the scaling policy goes by; Serve asks."""
        assert self._gateway is not None
        load = self._gateway.load
        return {OPEN_STREAMS: float(load.open_streams), ADMISSION_P95_MS: load.admission_p95_ms()}

    async def check_health(self) -> None:
        """Answering is health enough: a gateway that is replaced because the ledger is away helps nobody."""

    async def __del__(self) -> None:
        gateway = getattr(self, "_gateway", None)
        if gateway is not None:
            await gateway.stop()
            await self._stack.aclose()
