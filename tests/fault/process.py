"""The parent's side of the host under test."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import grpc.aio
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.fault.host import Shot

ROOT = Path(__file__).parents[2]
START_S = 60.0


class HostProcess:
    """One data directory and the host processes that serve it, one after the other.

    Attributes:
        port, key, dsn: as the running host reported them.
    """

    def __init__(self, data_dir: Path, log: Path) -> None:
        self.data_dir = data_dir
        self._log_path = log
        self._log: IO[bytes] = log.open("ab")
        self._process: asyncio.subprocess.Process | None = None
        self.port = 0
        self.key = ""
        self.dsn = ""

    @property
    def pid(self) -> int:
        """Of the host process."""
        assert self._process is not None
        return self._process.pid

    async def spawn(self) -> None:
        """Begin to start a host; `serving` waits for it."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.fault.host",
            str(self.data_dir),
            cwd=ROOT,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("PERSONAE_")},
                "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
                "GRPC_ENABLE_FORK_SUPPORT": "0",
            },
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._log,
        )

    async def serving(self) -> None:
        """Wait until the host says that it serves and its health service agrees."""
        up = await self.report("serving", START_S)
        self.port, self.key, self.dsn = up["serving"], up["key"], up["dsn"]
        async with self.channel() as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=START_S)
            async for answer in watch:
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return

    async def start(self) -> None:
        """Start a host and wait until it serves."""
        await self.spawn()
        await self.serving()

    async def report(self, kind: str, timeout_s: float) -> dict[str, Any]:
        """The next report, which must be of this kind."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), timeout_s)
        assert line, f"the host died: {self.last_words()}"
        found: dict[str, Any] = json.loads(line)
        assert kind in found, f"expected a report of {kind}, not {found}"
        return found

    async def arm(self, shot: Shot) -> None:
        """Have the host fire a shot; `report("killed", ...)` follows when it does."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"arm": asdict(shot)}).encode() + b"\n")
        await self._process.stdin.drain()
        await self.report("armed", 10)

    async def kill(self) -> None:
        """SIGKILL the host and wait until it is gone; its PostgreSQL stays."""
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()

    async def died(self) -> None:
        """Wait until the host is gone, killed by itself."""
        assert self._process is not None
        assert await asyncio.wait_for(self._process.wait(), 10) == -signal.SIGKILL, self.last_words()

    async def stop(self) -> None:
        """Stop the host as an operator would."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert await asyncio.wait_for(self._process.wait(), 30) == 0, self.last_words()

    def postgres(self) -> list[psutil.Process]:
        """Every live process that works in the database's directory."""
        directory = (self.data_dir / "postgres").resolve()
        found = []
        for process in psutil.process_iter(["name"]):
            try:
                if process.info["name"] == "postgres" and Path(process.cwd()) == directory:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    async def clear(self) -> None:
        """Leave no process behind, whatever happened."""
        await self.kill()
        for process in self.postgres():
            process.kill()
        self._log.close()

    def last_words(self) -> str:
        """The end of the host's log."""
        return self._log_path.read_text(errors="replace")[-6000:]

    def channel(self) -> grpc.aio.Channel:
        """A new connection to the running host."""
        return grpc.aio.insecure_channel(
            f"127.0.0.1:{self.port}", options=[("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        )
