"""Servers to drive, each a module that is a process of its own.

A peer prints one JSON line with its `port` when it can serve, and stops when
its stdin closes. `Peer` starts one from another process.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import IO, Any

import psutil


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def ready(**facts: Any) -> None:
    """Tell whoever started this process that it can serve."""
    print(json.dumps(facts), flush=True)


async def stdin_closed() -> None:
    """Return when whoever started this process hangs up."""
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


class Peer:
    """A child process that answers in JSON lines; what it prints else goes to `log`.

    An asynchronous context manager: it is ready inside, and gone after.

    Args:
        module: what `python -m` runs.
        ready_s: seconds until its first JSON line must be there.
        facts: what that line said.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        log: IO[bytes] | int | None = None,
        ready_s: float = 300.0,
    ) -> None:
        self._command = (sys.executable, "-m", module, *arguments)
        # All sides get the same share of the machine: ours runs its replicas at the niceness of other processes.
        same = {"GRPC_ENABLE_FORK_SUPPORT": "0", "RAY_worker_niceness": "0"}
        self._env = {**os.environ, **same, **(env or {})}
        self._log = log
        self._ready_s = ready_s
        self._child: asyncio.subprocess.Process
        self.facts: dict[str, Any] = {}

    @property
    def port(self) -> int:
        """The port it serves."""
        return int(self.facts["port"])

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    async def __aenter__(self) -> Peer:
        self._child = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._log,
            limit=1 << 30,
            env=self._env,
        )
        try:
            async with asyncio.timeout(self._ready_s):
                self.facts = await self.read()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def read(self) -> dict[str, Any]:
        """Its next JSON line.

        Raises:
            RuntimeError: it ended instead.
        """
        assert self._child.stdout is not None
        while line := await self._child.stdout.readline():
            # Libraries print, too; an answer is a whole object.
            with suppress(ValueError):
                answer = json.loads(line)
                if isinstance(answer, dict):
                    return answer
        raise RuntimeError(f"{' '.join(self._command[1:])} ended with {await self._child.wait()}")

    async def ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Send a JSON line; the answer."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(command).encode() + b"\n")
        await self._child.stdin.drain()
        return await self.read()

    def processes(self) -> Sequence[psutil.Process]:
        """The process and everything below it."""
        root = psutil.Process(self.pid)
        return [root, *root.children(recursive=True)]

    async def stop(self, grace_s: float = 60.0) -> None:
        """Hang up, wait, and end what has not ended by itself."""
        if self._child.returncode is not None:
            return
        below = self.processes()
        assert self._child.stdin is not None
        self._child.stdin.close()
        try:
            async with asyncio.timeout(grace_s):
                await self._child.wait()
        except TimeoutError:
            self._child.kill()
            await self._child.wait()
        # Only what this process started itself, by id.
        for process in below[1:]:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        _, stubborn = await asyncio.to_thread(psutil.wait_procs, below[1:], 10)
        for process in stubborn:
            with suppress(psutil.NoSuchProcess):
                process.kill()
