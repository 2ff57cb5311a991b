"""Record, then deliver: the one way an event leaves a turn.

Events are given their ids here, sealed, committed with everybody else's, and
only then shown to the session's views. The first text goes at once; later text
that is cleared while a commit is under way, or within a pause that grows with
the load, is one event.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime

import structlog

from personae_runtime.errors import LedgerUnavailable, PersonaeError
from personae_runtime.ledger.writer import EventRow
from personae_runtime.sessions.events import Body, Event, TextDelta

_log = structlog.get_logger(__name__)


class Recorder:
    """One turn's events, in order.

    Args:
        turn_id: stamped on every event.
        next_event_id: id of the first event.
        seal: turns an event into the row to write.
        append: the ledger's group commit.
        may_release: awaited before text is recorded; raises to stop the turn.
        deliver: called with each event once it is durable.
        pause_s: called for the seconds that text may wait for company.
        on_lateness: called with the seconds from clearing a piece of text to its delivery.
    """

    def __init__(
        self,
        turn_id: str,
        next_event_id: int,
        *,
        seal: Callable[[Event], EventRow],
        append: Callable[[list[EventRow]], Awaitable[None]],
        may_release: Callable[[], Awaitable[None]],
        deliver: Callable[[Event], None],
        pause_s: Callable[[], float],
        on_lateness: Callable[[float], None],
    ) -> None:
        self._turn_id = turn_id
        self._next_event_id = next_event_id
        self._seal = seal
        self._append = append
        self._may_release = may_release
        self._deliver = deliver
        self._pause_s = pause_s
        self._on_lateness = on_lateness
        self._text_since = 0.0
        self._pending: list[Body] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self.failure: PersonaeError | None = None
        self.text: list[str] = []
        self.first_text_at: float | None = None
        self.on_failure: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Begin to record."""
        self._task = asyncio.create_task(self._run(), name="turn-recorder")

    def emit(self, body: Body) -> None:
        """Queue an event. Text that follows queued text joins it."""
        if self._closing or self.failure is not None:
            return
        if isinstance(body, TextDelta) and self._pending and isinstance(self._pending[-1], TextDelta):
            self._pending[-1] = TextDelta(self._pending[-1].text + body.text)
        else:
            if isinstance(body, TextDelta):
                self._text_since = time.monotonic()
            self._pending.append(body)
        self._idle.clear()
        self._wake.set()

    async def flush(self) -> None:
        """Return when everything emitted is durable and delivered.

        Raises:
            PersonaeError: it can't be; `failure` holds the same.
        """
        self._wake.set()
        await self._idle.wait()
        if self.failure is not None:
            raise self.failure

    async def stop(self) -> None:
        """Drop what is not being committed yet, wait for what is, and record nothing more."""
        self._closing = True
        self._pending.clear()
        self._wake.set()
        await self._idle.wait()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def take_id(self) -> int:
        """The next event id, for an event that is recorded elsewhere; call after `stop` or `flush`."""
        event_id = self._next_event_id
        self._next_event_id += 1
        return event_id

    async def _run(self) -> None:
        while True:
            if not self._pending:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
                if not self._pending:
                    continue
            if self.first_text_at is not None and isinstance(self._pending[0], TextDelta):
                pause = self._pause_s()
                if pause > 0:
                    await asyncio.sleep(pause)
            try:
                await self._commit()
            except Exception as error:
                # Whatever went wrong, the turn must hear of it: it waits for `flush`.
                if not isinstance(error, PersonaeError):
                    _log.error("events_not_recorded", error=type(error).__name__)
                    error = LedgerUnavailable("the turn's events could not be recorded")
                self.failure = error
                self._pending.clear()
                self._idle.set()
                self.on_failure()
                return

    async def _commit(self) -> None:
        if any(isinstance(body, TextDelta) for body in self._pending):
            await self._may_release()
        bodies, self._pending = self._pending, []
        since = self._text_since
        if not bodies:
            return
        now = datetime.now(UTC)
        events = [Event(self.take_id(), self._turn_id, now, body) for body in bodies]
        await self._append([self._seal(event) for event in events])
        for event in events:
            if isinstance(event.body, TextDelta):
                self.text.append(event.body.text)
                self._on_lateness(time.monotonic() - since)
                if self.first_text_at is None:
                    self.first_text_at = time.monotonic()
            self._deliver(event)
