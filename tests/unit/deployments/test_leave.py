"""Leaving a cluster in peace."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from personae_serve.deployments.leave import replicas_on


def actor(
    name: str, node: str, *, state: str = "ALIVE", kind: str = "ServeReplica:personae:gateway"
) -> SimpleNamespace:
    return SimpleNamespace(name=name, node_id=node, state=state, class_name=kind)


def test_only_living_replicas_of_this_node_are_waited_for() -> None:
    actors = [
        actor("b", "here"),
        actor("a", "here"),
        actor("c", "there"),
        actor("d", "here", state="DEAD"),
        actor("e", "here", kind="ServeController"),
    ]
    assert replicas_on("here", actors) == ["a", "b"]


def test_ray_has_the_command_that_drains() -> None:
    scripts = pytest.importorskip("ray.scripts.scripts")
    options = {option for parameter in scripts.drain_node.params for option in parameter.opts}
    assert {"--address", "--node-id", "--reason", "--reason-message", "--deadline-remaining-seconds"} <= options
    reasons = next(one for one in scripts.drain_node.params if one.name == "reason").type.choices
    assert "DRAIN_NODE_REASON_PREEMPTION" in reasons
