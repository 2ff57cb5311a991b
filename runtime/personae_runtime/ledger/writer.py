"""Group commit of session events: many turns, one transaction, one flush to disk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import asyncpg

from personae_runtime.errors import LeaseLost, LedgerUnavailable
from personae_runtime.ledger.database import UNREACHABLE, Connection, Database

_MAX_BATCH = 2000
_RETRY_S = 0.1
_GATHER_S = 0.005


class EventRow(NamedTuple):  # one per unit of text: at a third of a frozen dataclass's cost
    """One event as it is stored: sealed, in its place."""

    session_pk: int
    event_id: int
    turn_no: int
    kind: str
    body: bytes
    created_at: datetime


async def append_events(connection: Connection, owner: str, rows: Sequence[EventRow]) -> list[str] | None:
    """Insert events of one owner's turns.

    Returns the turns ("session/turn") that had ended and were left out, or None if the owner is fenced off.
    """
    ended: list[str] | None = await connection.fetchval(
        "SELECT append_events($1, $2, $3, $4, $5, $6, $7)", owner, *zip(*rows, strict=True)
    )
    return ended


@dataclass(frozen=True, slots=True)
class _Append:
    rows: list[EventRow]
    # The owner that the turn was admitted under: a process that was fenced off
    # and took up a new name must not write for turns of the old one.
    owner: str
    done: asyncio.Future[None]


class EventWriter:
    """Appends events durably.

    One transaction is in flight at a time; what arrives meanwhile goes into the
    next, so the batch grows with the load. A batch that fails because the
    server is away is tried again for `timeout_s`: the ids are their owner's
    alone, so a repeat can't write twice.

    Args:
        observe: called with (rows, seconds) after each commit.
    """

    def __init__(
        self, database: Database, *, timeout_s: float, observe: Callable[[int, float], None] | None = None
    ) -> None:
        self._database = database
        self._timeout_s = timeout_s
        self._observe = observe
        self._pending: list[_Append] = []
        self._in_flight: list[_Append] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._connection: asyncpg.Connection | None = None

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run(), name="event-writer")

    async def close(self) -> None:
        """Write what is pending and stop. Safe to call twice."""
        task, self._task = self._task, None
        if task is not None:
            while left := self._in_flight + self._pending:
                await asyncio.gather(*(item.done for item in left), return_exceptions=True)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            self._disconnect()

    def append(self, rows: list[EventRow], owner: str) -> asyncio.Future[None]:
        """Queue rows of one owner's turn; the future ends when they are durable.

        The future raises:
            LeaseLost: the owner is fenced off, or the turn was closed.
            LedgerUnavailable: not committed in time, or the outcome is unknown.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append(_Append(rows, owner, future))
        self._wake.set()
        return future

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                await self._gather()
                batch: list[_Append] = []
                size, owner = 0, self._pending[0].owner
                for item in self._pending:
                    if size >= _MAX_BATCH or item.owner != owner:
                        break
                    batch.append(item)
                    size += len(item.rows)
                del self._pending[: len(batch)]
                self._in_flight = batch
                result = await self._commit([row for item in batch for row in item.rows], owner)
                for item in batch:
                    if item.done.done():
                        continue
                    if isinstance(result, Exception):
                        item.done.set_exception(result)
                    elif result and any(f"{row.session_pk}/{row.turn_no}" in result for row in item.rows):
                        item.done.set_exception(LeaseLost("the turn was closed by somebody else"))
                    else:
                        item.done.set_result(None)
                self._in_flight = []

    async def _gather(self) -> None:
        """Let everything that is ready to run add its rows: a commit costs as much as fifteen rows do."""
        loop = asyncio.get_running_loop()
        until, seen = loop.time() + _GATHER_S, 0
        while seen < len(self._pending) < _MAX_BATCH and loop.time() < until:
            seen = len(self._pending)
            await asyncio.sleep(0)

    async def _commit(self, rows: list[EventRow], owner: str) -> frozenset[str] | Exception:
        """The turns whose rows were left out because they had ended, or why nothing was written."""
        begun = time.monotonic()
        while True:
            try:
                # A connection of its own: this is the busiest statement of a host.
                if self._connection is None:
                    self._connection = await self._database.connect()
                try:
                    ended = await append_events(self._connection, owner, rows)
                except UNREACHABLE as error:
                    self._disconnect()
                    raise LedgerUnavailable(f"PostgreSQL is out of reach: {type(error).__name__}") from error
                if self._observe is not None:
                    self._observe(len(rows), time.monotonic() - begun)
                if ended is None:
                    return LeaseLost("this process was fenced off; its turns belong to another")
                return frozenset(ended)
            except LedgerUnavailable as error:
                if time.monotonic() - begun >= self._timeout_s:
                    return error
                await asyncio.sleep(_RETRY_S)
            except Exception as error:
                # A fault of the batch, not of the server: its turns must hear of it.
                return error
