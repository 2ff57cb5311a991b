"""What must be in the environment before Ray is imported, and how a cluster is found and reached.

Importing this imports nothing of Ray's.
"""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path
from typing import Any, Final

from personae_runtime.errors import ConfigError

_CONNECT_S: Final = 5.0

ENVIRONMENT: Final = {
    # User code shares its replica's loop: one loop to a process, as grpc.aio needs, and handles over gRPC.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Calls come in by gRPC only; nothing of Serve listens.
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Replicas are what a node is for: at Ray's 15 whatever else runs there goes before every turn.
    "RAY_worker_niceness": "0",
    "GRPC_ENABLE_FORK_SUPPORT": "0",
}
"""Must be set on every node before Ray starts there."""


def set_environment() -> None:
    """Set what is not set yet."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def address_file(data_dir: Path) -> Path:
    """Where the address of a cluster that runs on this machine stands, for commands here."""
    return data_dir / "ray-address"


def token_file(data_dir: Path) -> Path:
    """Where the token of such a cluster stands, readable by its owner only."""
    return data_dir / "ray-token"


def make_token(data_dir: Path) -> None:
    """Give the cluster that is about to start here a token of its own, so that no other process joins it."""
    file = token_file(data_dir)
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_text(secrets.token_hex(32))
    use_local_cluster(data_dir)


def use_local_cluster(data_dir: Path) -> None:
    """Speak as the cluster that runs here, if there is one: by loopback, with its token. Before Ray is imported."""
    file = token_file(data_dir)
    if file.exists():
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(file)
        # Ray's own switch for machines that form no cluster with others; it takes no loopback address by argument.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"


def attach(address: str, **options: Any) -> None:
    """Reach the Ray cluster at an address: `ray.init`, with `options` beside.

    Raises:
        ConfigError: none answers there.
    """
    _knock(address)
    import ray

    try:
        ray.init(address=address, log_to_driver=False, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"cluster.address: no Ray cluster answers at {address!r}: {error}") from error


def _knock(address: str) -> None:
    """Fail at once where nobody listens: Ray would try for minutes. Addresses that are no host and port pass."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.removeprefix("ray://").strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cluster.address: nothing listens at {address!r}: {error}") from error
