"""How many replicas of a deployment run, as this process was last told.

Filled by the routers of the process's deployment handles. It is a module of its
own because Serve copies a router's module into each process by value, and a
registry in there would be copied along.
"""

from __future__ import annotations

from typing import Protocol


class DeploymentName(Protocol):
    """Serve's DeploymentID: `handle.deployment_id`."""

    @property
    def name(self) -> str:
        """Of the deployment."""

    @property
    def app_name(self) -> str:
        """Of its application."""


_running: dict[tuple[str, str], int] = {}


def record(deployment: DeploymentName, replicas: int) -> None:
    """Replace the number of a deployment's running replicas."""
    _running[deployment.app_name, deployment.name] = replicas


def running_replicas(deployment: DeploymentName) -> int:
    """Replicas of a deployment that can take requests; 0 too before the process knows any.

    A handle learns of replicas once it has been used (or `handle._init()` was called).
    """
    return _running.get((deployment.app_name, deployment.name), 0)
