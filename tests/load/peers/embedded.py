"""The embedded host from a configuration file: `python -m tests.load.peers.embedded CONFIG.toml`.

Prints `port` and `key`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import uvloop

from personae_runtime.config import load_settings
from personae_runtime.telemetry.logs import setup_logging
from personae_serve.embedded import EmbeddedHost
from tests.load.peers import ready, stdin_closed


async def main(config: Path) -> None:
    """Serve until stdin closes."""
    settings = load_settings(config)
    setup_logging(settings.telemetry)
    host = EmbeddedHost(settings)
    port = await host.start()
    ready(port=port, key=host.development_key, pid=os.getpid())
    await stdin_closed()
    await host.stop()


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1])))
