"""The host under test: a real host in a process of its own, which dies where it is told to.

    python -m tests.fault.host DATA_DIR

Commands come in by stdin and reports go out by stdout, one JSON object a line;
logs go to stderr. `{"arm": {...}}` takes the fields of `Shot`; when it fires the
report is written before the signal is sent, so it arrives even if this process
is the victim. The end of stdin stops the host.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import uvloop
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from personae_runtime.config import load_settings
from personae_runtime.engines.synthetic import SyntheticEngine
from personae_runtime.telemetry.names import STAGE_SPANS
from personae_serve.embedded import EmbeddedHost

CREATE_MEMORY = "personae.v1.MemoryService/CreateMemory"
FORGET_MEMORY = "personae.v1.MemoryService/ForgetMemory"
PLACES = (*STAGE_SPANS, CREATE_MEMORY, FORGET_MEMORY)
"""Spans in which a shot may fall: the stages of a turn, and two calls."""


@dataclass(frozen=True, slots=True)
class Shot:
    """When and whom to kill.

    Attributes:
        place: span name; empty fires at once.
        nth: which start of that span counts, from 1.
        delay_us: microseconds after that start; the end of the span comes first if it is earlier.
        victim: "host", "postgres" (its postmaster) or "postgres_all" (with its backends).
    """

    place: str
    nth: int
    delay_us: int
    victim: str


class Killer(SpanProcessor):
    """Sees spans begin and end, and fires one shot at a time."""

    def __init__(self, report_fd: int) -> None:
        self._report_fd = report_fd
        # Spans end in the thread of the event loop, a delayed shot is fired by a thread of its own.
        self._lock = threading.RLock()
        self._open: dict[int, str] = {}
        self._shot: Shot | None = None
        self._left = 0
        self._target: int | None = None
        self._postgres: list[psutil.Process] = []

    def report(self, **fields: Any) -> None:
        """Write one line; a pipe keeps what a dead process wrote."""
        os.write(self._report_fd, json.dumps(fields).encode() + b"\n")

    def arm(self, shot: Shot, postmaster: int) -> None:
        """Fire once, as `shot` says."""
        with self._lock:
            process = psutil.Process(postmaster)
            # Looked up now: it takes longer than most stages.
            self._postgres = [process, *(process.children() if shot.victim == "postgres_all" else ())]
            self._shot, self._left, self._target = shot, shot.nth, None
            self.report(armed=shot.place)
            if not shot.place:
                self._fire()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if span.name not in PLACES or span.context is None:
            return
        with self._lock:
            self._open[span.context.span_id] = span.name
            if self._shot is None or self._shot.place != span.name or self._target is not None:
                return
            self._left -= 1
            if self._left:
                return
            self._target = span.context.span_id
            if self._shot.delay_us == 0:
                self._fire()
            else:
                timer = threading.Timer(self._shot.delay_us / 1e6, self._fire)
                timer.daemon = True
                timer.start()

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is None:
            return
        with self._lock:
            if span.context.span_id == self._target:
                self._fire()
            self._open.pop(span.context.span_id, None)

    def _fire(self) -> None:
        with self._lock:
            shot, self._shot, self._target = self._shot, None, None
            if shot is None:
                return
            self.report(killed=shot.victim, place=shot.place, open=Counter(self._open.values()))
            if shot.victim == "host":
                os.kill(os.getpid(), signal.SIGKILL)
            for process in self._postgres:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue


async def main(data_dir: Path, killer: Killer) -> None:
    """Serve until stdin ends."""
    settings = load_settings(
        data_dir=data_dir,
        gateway={"port": 0, "drain_grace_s": 5, "max_accept_wait_s": 60},
        # Short, so that a turn whose admission was cut off is closed soon.
        ledger={"lease_s": 2},
        memory={"dense": False},
        sessions={"turns_per_minute": 1_000_000},
    )
    engine = SyntheticEngine(profile="development", ttft_ms=15, itl_ms=4, jitter=0.2, tokens=40)
    host = EmbeddedHost(settings, span_processors=[killer], engine=engine)
    port = await host.start()
    try:
        postgres = host.stores.postgres
        assert postgres is not None
        killer.report(serving=port, key=host.development_key, dsn=host.stores.database.dsn, postgres=postgres.pid)
        commands = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(commands), os.fdopen(0, "rb", closefd=False)
        )
        while line := await commands.readline():
            await asyncio.to_thread(_arm, killer, Shot(**json.loads(line)["arm"]), data_dir)
    finally:
        await host.stop()


def _arm(killer: Killer, shot: Shot, data_dir: Path) -> None:
    killer.arm(shot, int((data_dir / "postgres" / "postmaster.pid").read_text().split("\n", 1)[0]))


if __name__ == "__main__":
    # Reports have the pipe to themselves: whatever else prints, prints to stderr.
    pipe = os.dup(1)
    os.dup2(2, 1)
    uvloop.run(main(Path(sys.argv[1]), Killer(pipe)))
