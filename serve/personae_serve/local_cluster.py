"""A cluster on one machine: Ray, PostgreSQL and the application, for as long as this process lives."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import AsyncExitStack
from pathlib import Path

from personae_runtime.config import ENV_PREFIX, Settings
from personae_runtime.ledger.embedded import EmbeddedPostgres
from personae_serve.embedded import lock_data_dir
from personae_serve.gateway.auth import AcceptedKeys, accepted_keys
from personae_serve.ray_environment import address_file, make_token, token_file


class LocalCluster:
    """Starts what `personae up --cluster` needs on this machine.

    Args:
        config: TOML file that the settings came from; the replicas read it too.
    """

    def __init__(self, settings: Settings, config: Path | None) -> None:
        self._settings = settings
        self._config = config
        self._stack = AsyncExitStack()
        self.keys = AcceptedKeys(())

    async def start(self) -> int:
        """Bring everything up; the port that is served.

        Raises:
            PersonaeError: something can't start; what had is stopped again.
        """
        settings, stack = self._settings, self._stack
        try:
            lock = lock_data_dir(settings.data_dir)
            stack.callback(lock.close)
            self.keys = accepted_keys(settings)
            make_token(settings.data_dir)
            stack.callback(token_file(settings.data_dir).unlink, missing_ok=True)
            # Only now, as Ray reads its environment when it is imported.
            from personae_serve.cluster import deploy, shut_down, start_ray

            if settings.ledger.dsn is None:
                postgres = EmbeddedPostgres(settings.data_dir / "postgres")
                stack.push_async_callback(postgres.stop)
                # By the environment, which every replica inherits: a DSN may hold a password.
                self._set("LEDGER__DSN", await postgres.start())
            port = settings.gateway.port or free_port(settings.gateway.host)
            overrides = {"data_dir": str(settings.data_dir), "gateway": {"port": port}}
            stack.push_async_callback(asyncio.to_thread, shut_down, settings.cluster.application)
            address = await asyncio.to_thread(start_ray, settings)
            file = address_file(settings.data_dir)
            file.write_text(address)
            stack.callback(file.unlink, missing_ok=True)
            await asyncio.to_thread(deploy, settings, self._config, overrides)
        except BaseException:
            await stack.aclose()
            raise
        return port

    async def stop(self) -> None:
        """Drain every gateway and stop everything. Safe to call twice."""
        await self._stack.aclose()

    def _set(self, name: str, value: str) -> None:
        os.environ[ENV_PREFIX + name] = value
        self._stack.callback(os.environ.pop, ENV_PREFIX + name, None)


def free_port(host: str) -> int:
    """A TCP port of `host` that nobody listens on now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
