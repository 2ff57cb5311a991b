"""This project from a configuration file: `python -m tests.load.peers.personae CONFIG.toml [--embedded]`.

The Ray Serve application on a Ray of its own, as `personae up --cluster` deploys
it, or with `--embedded` the one process that `personae up` runs. The file should
give `auth.api_keys`; a development profile without any makes a key and this
prints it. Prints `port` and `key`.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import uvloop

from personae_runtime.config import Settings, load_settings
from personae_runtime.telemetry.logs import setup_logging
from tests.load.peers import ready, stdin_closed


async def embedded(settings: Settings) -> None:
    """Serve the embedded host until stdin closes."""
    from personae_serve.embedded import EmbeddedHost

    host = EmbeddedHost(settings)
    port = await host.start()
    ready(port=port, key=host.development_key)
    await stdin_closed()
    await host.stop()


async def cluster(settings: Settings, config: Path) -> None:
    """Serve the application until stdin closes."""
    from personae_serve.local_cluster import LocalCluster

    started = LocalCluster(settings, config)
    port = await started.start()
    ready(port=port, key=started.keys.development)
    await stdin_closed()
    await started.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--embedded", action="store_true", help="the embedded host, one process without Ray")
    asked = parser.parse_args()
    read = load_settings(asked.config)
    setup_logging(read.telemetry)
    if asked.embedded:
        uvloop.run(embedded(read))
    else:
        asyncio.run(cluster(read, asked.config))
