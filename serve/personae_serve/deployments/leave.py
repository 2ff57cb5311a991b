"""Leave a Ray cluster in peace: `python -m personae_serve.deployments.leave SECONDS`, before a node is stopped.

Ray ends what runs on a node when the node is told to stop. This asks Ray first
to drain the node, upon which Serve starts replacements elsewhere and stops the
replicas here as in any scale-down: gateways send `go_away` and end their turns.
It returns when no replica runs here any more, or when the time is up.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

_POLL_S: Final = 1.0


def replicas_on(node_id: str, actors: list[Any]) -> list[str]:
    """Names of Serve's replicas that are alive on a node, of what `list_actors` returns."""
    return sorted(
        str(actor.name)
        for actor in actors
        if actor.node_id == node_id and actor.state == "ALIVE" and str(actor.class_name).startswith("ServeReplica")
    )


def drain(address: str, node_id: str, seconds: int) -> None:
    """Ask Ray to move what runs on a node; it is told when the node will be gone.

    Raises:
        subprocess.CalledProcessError: Ray refused; it says why on standard error.
    """
    # The command, and not the client that it uses: neither is public, and the command changes less.
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address, "--node-id", node_id]
    # Preemption is the reason that can't be refused for a node that is busy.
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the node is to be stopped"]
    subprocess.run([*command, "--deadline-remaining-seconds", str(seconds)], check=True, stdout=subprocess.DEVNULL)


def leave(address: str, seconds: int, *, log: Callable[[str], None] = print) -> bool:
    """Drain this node and wait until it is empty.

    Args:
        address: of the Ray cluster, such as `auto`.
        seconds: at most.

    Returns:
        Whether no replica is left.
    """
    import ray
    from ray.util.state import list_actors

    deadline = time.monotonic() + seconds
    ray.init(address=address, log_to_driver=False, configure_logging=False)
    try:
        context = ray.get_runtime_context()
        node_id = context.get_node_id()
        drain(context.gcs_address, node_id, seconds)
        while True:
            left = replicas_on(node_id, list_actors(filters=[("state", "=", "ALIVE")], limit=10_000))
            if not left:
                log("no replica is left on this node")
                return True
            if time.monotonic() > deadline:
                log(f"time is up with {len(left)} replicas left: {', '.join(left)}")
                return False
            time.sleep(_POLL_S)
    finally:
        ray.shutdown()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Drain this node of its Ray cluster, before it is stopped.")
    parser.add_argument("seconds", type=int, help="to wait at most")
    parser.add_argument("--address", default=os.environ.get("RAY_ADDRESS", "auto"), help="of the Ray cluster")
    arguments = parser.parse_args()
    # Whatever happens the node will be stopped: a failure is said and not made worse.
    leave(arguments.address, arguments.seconds)


if __name__ == "__main__":
    main()
