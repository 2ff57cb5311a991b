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
from datetime import UTC, datetime

import structlog

from personae_runtime.errors import LedgerUnavailable, PersonaeError
from personae_runtime.ledger.writer import EventRow
from personae_runtime.provenance.label import NO_ORIGIN, Origin
from personae_runtime.sessions.events import Body, Event, TextDelta

_log = structlog.get_logger(__name__)


class Recorder:
    """One turn's events, in order.

    Args:
        turn_id, origin: stamped on every event.
        next_event_id: id of the first event.
        seal: turns an event into the row to write.
        append: the ledger's group commit.
        may_release: awaited before text is recorded; raises to stop the turn.
        releasable: asked first; True says that `may_release` would return at once.
        deliver: called with each event once it is durable.
        pause_s: called for the seconds that text may wait for company.
        on_lateness: called with the seconds from clearing a piece of text to its delivery.
        max_pending_chars: cleared text that may wait for the ledger before its writer should wait too.
    """

    def __init__(
        self,
        turn_id: str,
        next_event_id: int,
        *,
        seal: Callable[[Event], EventRow],
        append: Callable[[list[EventRow]], asyncio.Future[None]],
        may_release: Callable[[], Awaitable[None]],
        deliver: Callable[[Event], None],
        pause_s: Callable[[], float],
        on_lateness: Callable[[float], None],
        releasable: Callable[[], bool] = lambda: False,
        max_pending_chars: int = 200,
        origin: Origin = NO_ORIGIN,
    ) -> None:
        self._origin = origin
        self._turn_id = turn_id
        self._next_event_id = next_event_id
        self._seal = seal
        self._append = append
        self._may_release = may_release
        self._deliver = deliver
        self._pause_s = pause_s
        self._on_lateness = on_lateness
        self._releasable = releasable
        self._max_pending_chars = max_pending_chars
        self._text_since = 0.0
        self._pending: list[Body] = []
        self._pending_chars = 0
        # Something is being committed, or waits for company or for leave.
        self._busy = False
        self._waiting: asyncio.Future[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._room = asyncio.Event()
        self._room.set()
        self._started = False
        self._closing = False
        self.failure: PersonaeError | None = None
        self.text: list[str] = []
        self.first_text_at: float | None = None
        self.on_failure: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Begin to record."""
        self._started = True
        if self._pending and not self._busy:
            self._begin()

    def emit(self, body: Body) -> None:
        """Queue an event. Text that follows queued text joins it."""
        if self._closing or self.failure is not None:
            return
        if isinstance(body, TextDelta):
            self._pending_chars += len(body.text)
            if self._pending_chars >= self._max_pending_chars:
                self._room.clear()
            last = self._pending[-1] if self._pending else None
            # What a model wrote and what policy says in its place are labelled apart.
            if isinstance(last, TextDelta) and last.template == body.template:
                self._pending[-1] = TextDelta(last.text + body.text, body.template)
                return
            self._text_since = time.monotonic()
        self._pending.append(body)
        self._idle.clear()
        if self._started and not self._busy:
            self._begin()

    @property
    def full(self) -> bool:
        """So much text waits that its writer should, too; see `room`."""
        return not self._room.is_set()

    async def room(self) -> None:
        """Return when more text can be taken."""
        await self._room.wait()

    async def flush(self) -> None:
        """Return when everything emitted is durable and delivered.

        Raises:
            PersonaeError: it can't be; `failure` holds the same.
        """
        await self._idle.wait()
        if self.failure is not None:
            raise self.failure

    async def stop(self) -> None:
        """Drop what is not being committed yet, wait for what is, and record nothing more."""
        self._closing = True
        self._drop()
        if self._waiting is not None:
            self._waiting.cancel()
        await self._idle.wait()

    def take_id(self) -> int:
        """The next event id, for an event that is recorded elsewhere; call after `stop` or `flush`."""
        event_id = self._next_event_id
        self._next_event_id += 1
        return event_id

    # A chain of callbacks rather than a task: a unit passes here for every few words of every stream.

    def _begin(self) -> None:
        self._busy = True
        if self.first_text_at is not None and isinstance(self._pending[0], TextDelta):
            pause = self._pause_s()
            if pause > 0:
                asyncio.get_running_loop().call_later(pause, self._proceed)
                return
        self._proceed()

    def _proceed(self) -> None:
        if not self._pending:
            self._settle()
        elif self._pending_chars and not self._releasable():
            # Not awaited in a task of ours: one that is cancelled before its first step never takes one.
            self._waiting = asyncio.ensure_future(self._may_release())
            self._waiting.add_done_callback(self._asked)
        else:
            self._commit()

    def _asked(self, answer: asyncio.Future[None]) -> None:
        self._waiting = None
        error = None if answer.cancelled() else answer.exception()
        if error is not None:
            self._fail(error)
        elif self._pending:
            self._commit()
        else:
            self._settle()

    def _commit(self) -> None:
        bodies = self._pending
        self._drop()
        now = datetime.now(UTC)
        events = [Event(self.take_id(), self._turn_id, now, body, self._origin) for body in bodies]
        since = self._text_since
        try:
            done = self._append([self._seal(event) for event in events])
        except Exception as error:
            self._fail(error)
            return
        done.add_done_callback(lambda future: self._committed(future, events, since))

    def _committed(self, future: asyncio.Future[None], events: list[Event], since: float) -> None:
        error = LedgerUnavailable("the append was cancelled") if future.cancelled() else future.exception()
        if error is not None:
            self._fail(error)
            return
        for event in events:
            if isinstance(event.body, TextDelta):
                now = time.monotonic()
                self.text.append(event.body.text)
                self._on_lateness(now - since)
                if self.first_text_at is None:
                    self.first_text_at = now
            self._deliver(event)
        if self._pending:
            self._begin()
        else:
            self._settle()

    def _drop(self) -> None:
        self._pending = []
        self._pending_chars = 0
        self._room.set()

    def _settle(self) -> None:
        self._busy = False
        if not self._pending:
            self._idle.set()

    def _fail(self, error: BaseException) -> None:
        # Whatever went wrong, the turn must hear of it: it waits for `flush`.
        if not isinstance(error, PersonaeError):
            _log.error("events_not_recorded", error=type(error).__name__)
            error = LedgerUnavailable("the turn's events could not be recorded")
        self.failure = error
        self._drop()
        self._busy = False
        self._idle.set()
        self.on_failure()
