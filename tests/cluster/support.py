"""A cluster on this machine, by the command line, and what can be done to it from outside."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc.aio
import psutil

from personae_runtime.ledger.embedded import EmbeddedPostgres

START_S = 480.0
STOP_S = 120.0
_COMMAND = (sys.executable, "-c", "from personae_serve.cli import main; main()")
CONTROLLER = "ServeController"


class Cluster:
    """`personae up --cluster` in a process of its own, on a PostgreSQL of the test's.

    Args:
        folder: of configuration, state and log.
        sections: TOML of everything but the data directory and the gateway's port.
    """

    def __init__(self, folder: Path, sections: str) -> None:
        self.data_dir = folder / "data"
        self.config = folder / "personae.toml"
        self._log = folder / "cluster.log"
        self._sections = sections
        self.postgres = EmbeddedPostgres(folder / "postgres")
        self.dsn = ""
        self.port = 0
        self._process: asyncio.subprocess.Process | None = None
        self._seen: dict[int, psutil.Process] = {}

    async def start(self) -> None:
        """Bring it up."""
        self.dsn = await self.postgres.start()
        self.configure(self._sections)
        self._process = await asyncio.create_subprocess_exec(
            *_COMMAND,
            "up",
            "--cluster",
            stdout=asyncio.subprocess.PIPE,
            stderr=self._log.open("a"),
            env=self._environment(),
        )
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(START_S):
                while b"Serving on " not in (line := await self._process.stdout.readline()):
                    assert line, f"the cluster does not start:\n{self.last_words()}"
        except TimeoutError:
            raise AssertionError(f"the cluster does not start in {START_S} s:\n{self.last_words()}") from None
        self.port = int(line.partition(b"; ")[0].rpartition(b":")[2])

    def configure(self, sections: str) -> None:
        """Write the configuration file, for the next start or roll-over."""
        self.config.write_text(f"{sections.replace('PORT', str(self.port))}\n")

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PERSONAE_CONFIG": str(self.config),
            "PERSONAE_DATA_DIR": str(self.data_dir),
            "PERSONAE_LEDGER__DSN": self.dsn,
            "PYTHONUNBUFFERED": "1",
        }

    async def run(self, *arguments: str) -> tuple[int, str]:
        """Another `personae` command against this cluster: its exit code and output."""
        process = await asyncio.create_subprocess_exec(
            *_COMMAND,
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={
                **self._environment(),
                "PERSONAE_CLUSTER__ADDRESS": (self.data_dir / "ray-address").read_text(),
                "PERSONAE_GATEWAY__PORT": str(self.port),
            },
        )
        async with asyncio.timeout(START_S):
            output, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode()

    async def status(self) -> dict[str, dict[str, int]]:
        """Replicas by state, by deployment."""
        _, output = await self.run("status", "--json")
        found = json.loads(output[output.index("{") :])
        return {name: deployment["replicas"] for name, deployment in found["deployments"].items()}

    @property
    def key(self) -> str:
        """The development key."""
        return (self.data_dir / "development-key").read_text()

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        """A connection of its own: channels of equal arguments would share one."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 500)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=options) as channel:
            yield channel

    def processes(self, title: str) -> list[psutil.Process]:
        """Ray's worker processes with `title` in their names: a deployment, or CONTROLLER."""
        assert self._process is not None
        found: list[psutil.Process] = []
        try:
            children = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return found
        for process in children:
            with suppress(psutil.NoSuchProcess):
                command = " ".join(process.cmdline())
                self._seen[process.pid] = process
                if command.startswith("ray::") and title in command:
                    found.append(process)
        return found

    def last_words(self) -> str:
        """The end of the log."""
        return self._log.read_text(errors="replace")[-3000:] if self._log.exists() else ""

    async def stop(self) -> None:
        """Stop it as a person would; then see that nothing of it is left."""
        process = self._process
        if process is not None and process.returncode is None:
            self.processes("")
            process.send_signal(signal.SIGINT)
            try:
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        for left in self._seen.values():
            with suppress(psutil.NoSuchProcess):
                left.kill()
        await self.postgres.stop()


@asynccontextmanager
async def running(folder: Path, sections: str) -> AsyncIterator[Cluster]:
    """A cluster that is up; nothing of it is afterwards."""
    cluster = Cluster(folder, sections)
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.stop()
