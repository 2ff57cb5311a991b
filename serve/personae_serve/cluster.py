"""The cluster: the Ray Serve application, and a Ray of one's own to run it on.

`application` is what `serve deploy` and a RayService import; `personae up
--cluster` deploys the same. Nothing secret is part of an application's
arguments, which Ray keeps in its control store: each replica reads the
configuration file and the environment of its own node.
"""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, Final

from personae_serve.ray_environment import attach, set_environment

# Before anything of Ray's is imported: it reads its environment as it is.
set_environment()

import ray  # noqa: E402
from ray import serve  # noqa: E402

from personae_runtime.config import Settings, load_settings  # noqa: E402
from personae_runtime.errors import ConfigError, Unavailable  # noqa: E402
from personae_serve.deployments.autoscaling import autoscaling_config  # noqa: E402
from personae_serve.deployments.gateway import GatewayReplica  # noqa: E402
from personae_serve.deployments.guard import GuardReplica  # noqa: E402
from personae_serve.deployments.guard_model import guard_model_deployment  # noqa: E402
from personae_serve.deployments.memory import MemoryReplica  # noqa: E402
from personae_serve.deployments.model import model_deployment  # noqa: E402

GATEWAY: Final = "gateway"
MEMORY: Final = "memory"
GUARD: Final = "guard"
"""Names of the deployments; those of models are `model-<name>`."""

_GUARD_CALLS: Final = 200.0
"""Scorer calls under way per guard replica that scaling aims at: some three batches."""
_CASCADE_CALLS: Final = 8.0
"""The same where it embeds, one text after the other: the last one must still come before its deadline."""


def application(args: dict[str, Any]) -> serve.Application:
    """Build the Serve application.

    Args:
        args: `config`, a TOML file that every node has (optional); `overrides`, settings
            above it (optional); `version`, changed to have every gateway replaced (optional).

    Raises:
        ConfigError: the configuration can't be used.
    """
    unknown = args.keys() - {"config", "overrides", "version"}
    if unknown:
        raise ConfigError(f"unknown arguments {sorted(unknown)}; the application takes config, overrides and version")
    config, overrides = args.get("config"), dict(args.get("overrides") or {})
    settings = load_settings(None if config is None else Path(config), **overrides)
    cluster = settings.cluster
    version = _version(config, overrides, str(args.get("version", "")))
    models = {model.model: model_deployment(model, settings) for model in settings.model_deployments}
    memory = None
    if settings.memory.enabled:
        memory = serve.deployment(
            name=MEMORY,
            # One process follows the ledger into the index.
            num_replicas=1,
            max_ongoing_requests=1000,
            ray_actor_options={"num_cpus": cluster.memory.num_cpus},
            graceful_shutdown_timeout_s=30,
            health_check_period_s=5,
        )(MemoryReplica).bind(config, overrides, version)
    guard = None
    if cluster.guard_scorers:
        guard = serve.deployment(
            name=GUARD,
            max_ongoing_requests=1000,
            ray_actor_options={"num_cpus": cluster.guard.num_cpus},
            autoscaling_config=autoscaling_config(
                cluster.guard, target_ongoing=_CASCADE_CALLS if "cascade" in cluster.guard_scorers else _GUARD_CALLS
            ),
            health_check_period_s=5,
        )(GuardReplica).bind(
            cluster.guard_scorers,
            settings.policy.scorers,
            settings.policy.scorer_timeout_ms,
            str(settings.models_dir),
        )
    guard_model = guard_model_deployment(settings) if "guard_model" in settings.policy.scorers else None
    return serve.deployment(
        name=GATEWAY,
        # Serve's own requests only: the streams of clients never pass through it.
        max_ongoing_requests=100,
        ray_actor_options={"num_cpus": cluster.gateway.num_cpus},
        graceful_shutdown_timeout_s=settings.gateway.drain_grace_s + 60,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=5,
        autoscaling_config=autoscaling_config(cluster.gateway),
    )(GatewayReplica).bind(config, overrides, version, models, memory, guard, guard_model)


def _version(config: str | None, overrides: dict[str, Any], given: str) -> str:
    """Changes with the code, the configuration, and what the caller says."""
    digest = hashlib.sha256(json.dumps([given, overrides, package_version("personae")], sort_keys=True).encode())
    if config is not None:
        digest.update(Path(config).expanduser().read_bytes())
    return digest.hexdigest()[:12]


def start_ray(settings: Settings) -> str:
    """Reach the Ray cluster that the settings name, or start one on this machine for as long as this process lives;
    the address of the cluster.

    Raises:
        ConfigError: nothing answers at the address.
    """
    if settings.cluster.address is not None:
        attach(settings.cluster.address, namespace="serve")
    else:
        attach(
            "local",
            # Replicas are processes that share this machine: what they set aside is a promise, not a limit.
            num_cpus=max(os.cpu_count() or 1, _most_cpus(settings)),
            include_dashboard=settings.cluster.dashboard,
            namespace="serve",
        )
    serve.start(proxy_location="Disabled")
    reached: str = ray.get_runtime_context().gcs_address
    return reached


def deploy(settings: Settings, config: Path | None, overrides: dict[str, Any]) -> None:
    """Deploy the application, or roll it over to this configuration; returns when it runs.

    Raises:
        ConfigError: the configuration can't be used.
        Unavailable: a deployment does not start; the message has what its replicas say.
    """
    args = {"config": None if config is None else str(config.expanduser().resolve()), "overrides": overrides}
    name = settings.cluster.application
    try:
        serve.run(application(args), name=name, route_prefix=None)
    except RuntimeError as error:
        failed = [
            f"  {deployment}: {found['message']}"
            for deployment, found in status(name)["deployments"].items()
            if found["status"] != "HEALTHY"
        ]
        raise Unavailable("\n".join([f"{name} can't be deployed: {error}", *failed])) from error


def shut_down(application_name: str) -> None:
    """Take the application off, its gateways drained first, and leave Ray. Safe to call when nothing was started."""
    if not ray.is_initialized():
        return
    try:
        serve.delete(application_name)
    finally:
        ray.shutdown()


def status(application_name: str) -> dict[str, Any]:
    """What Serve says of the application: its status and that of each deployment.

    Returns:
        `{"status", "message", "deployments": {name: {"status", "message", "replicas": {state: count}}}}`.
    """
    found = serve.status().applications.get(application_name)
    if found is None:
        return {"status": "NOT_DEPLOYED", "message": "", "deployments": {}}
    return {
        "status": str(found.status.value),
        "message": found.message,
        "deployments": {
            name: {
                "status": str(deployment.status.value),
                "message": deployment.message,
                "replicas": {str(state): count for state, count in deployment.replica_states.items()},
            }
            for name, deployment in sorted(found.deployments.items())
        },
    }


def _most_cpus(settings: Settings) -> int:
    cluster = settings.cluster
    deployments = [cluster.gateway, *settings.every_deployment]
    total = sum(one.num_cpus * one.max_replicas for one in deployments)
    # Twice: a rolling update runs old and new side by side.
    return int(2 * total + cluster.memory.num_cpus + cluster.guard.num_cpus * cluster.guard.max_replicas) + 1
