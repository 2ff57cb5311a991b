"""Views of a session: who watches, and what they are sent.

A session lives on the server; a stream is only a view of it. A view has a
bounded buffer: one that lags too far is dropped, the turn never waits for it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from personae_runtime.errors import PersonaeError, ResourceExhausted
from personae_runtime.sessions.events import Event

if TYPE_CHECKING:
    from personae_runtime.sessions.turn import LiveTurn

SLOW_CONSUMER = "SLOW_CONSUMER"
"""Reason of the error that ends a view which lagged too far."""


@dataclass(frozen=True, slots=True)
class Expiry:
    """When a view ends by itself: the event loop's time, seconds, and the error that its watcher gets."""

    at: float
    error: PersonaeError


class View:
    """One watcher's buffer of events, oldest first.

    Args:
        limit: events that may wait; one more drops the view.
        expiry: what is buffered by then is still sent. Needs a running event loop.
        forwarded: another process watches on behalf of its client.

    Attributes:
        next_event_id: the session's, as this view knows it while no turn runs
            here; None if it does not know or need not.
    """

    def __init__(self, limit: int, expiry: Expiry | None = None, *, forwarded: bool = False) -> None:
        self._events: deque[Event] = deque()
        self._limit = limit
        # One watcher at a time waits for the next event.
        self._waiter: asyncio.Future[None] | None = None
        self._end: PersonaeError | None = None
        self._ended = False
        self.forwarded = forwarded
        self.next_event_id: int | None = None
        self._timer = None if expiry is None else asyncio.get_running_loop().call_at(expiry.at, self.end, expiry.error)

    def close(self) -> None:
        """Nobody watches any more."""
        if self._timer is not None:
            self._timer.cancel()

    def offer(self, event: Event) -> bool:
        """Add an event; False if the buffer is full, which drops the view."""
        if self._ended:
            return True
        if len(self._events) >= self._limit:
            self.end(
                ResourceExhausted(
                    "the stream fell too far behind and was dropped; the turn goes on: attach again",
                    reason=SLOW_CONSUMER,
                    retry_after_s=0.1,
                )
            )
            return False
        self._events.append(event)
        self._wake()
        return True

    def end(self, error: PersonaeError | None = None) -> None:
        """No more events will come. What is buffered is still sent, then `error` is raised if given."""
        if not self._ended:
            self._ended = True
            self._end = error
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> Event | None:
        """The next event, or None at the end.

        Raises:
            PersonaeError: what `end` was given.
        """
        while not self._events:
            if self._ended:
                if self._end is not None:
                    raise self._end
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._events.popleft()


class Hub:
    """The views of one session and the turn that runs in it."""

    __slots__ = ("lock", "scope", "turn", "unwatched_since", "users", "views")

    def __init__(self) -> None:
        self.views: set[View] = set()
        self.turn: LiveTurn | None = None
        # Whose session it is, once somebody came who knows.
        self.scope = ""
        # Admission and joining are one step each for a session.
        self.lock = asyncio.Lock()
        # Who holds or waits for the lock: all of them must find this same hub.
        self.users = 0
        self.unwatched_since: float | None = time.monotonic()

    def add(self, view: View) -> None:
        """Show the view everything published from now on."""
        self.views.add(view)
        self.unwatched_since = None

    def remove(self, view: View) -> None:
        """Stop showing it."""
        self.views.discard(view)
        if not self.views:
            self.unwatched_since = time.monotonic()

    def publish(self, event: Event) -> None:
        """Show an event to every view."""
        # A view that was dropped watches no more, even if its stream still drains.
        for view in [view for view in self.views if not view.offer(event)]:
            self.remove(view)

    def rest_at(self, next_event_id: int) -> None:
        """Nothing runs; every view knows of all events below this one."""
        for view in self.views:
            view.next_event_id = next_event_id

    def resting_at(self) -> int | None:
        """The least `next_event_id` of views that wait for a turn to begin; None if there are none or a turn runs."""
        if self.turn is not None or self.users:
            return None
        return min((view.next_event_id for view in self.views if view.next_event_id is not None), default=None)

    def end(self, error: PersonaeError | None = None) -> None:
        """End every view."""
        for view in self.views:
            view.end(error)

    @property
    def idle(self) -> bool:
        """Nothing runs and nobody watches."""
        return self.turn is None and not self.views and not self.users


class Hubs:
    """Hubs by session key, made when needed and dropped when idle."""

    def __init__(self) -> None:
        self._hubs: dict[int, Hub] = {}

    def get(self, session_pk: int) -> Hub:
        """The session's hub."""
        return self._hubs.setdefault(session_pk, Hub())

    @asynccontextmanager
    async def locked(self, session_pk: int) -> AsyncIterator[Hub]:
        """The session's hub, with its lock held."""
        hub = self.get(session_pk)
        hub.users += 1
        try:
            async with hub.lock:
                yield hub
        finally:
            hub.users -= 1
            self.release(session_pk)

    def release(self, session_pk: int) -> None:
        """Drop the hub if it is idle."""
        hub = self._hubs.get(session_pk)
        if hub is not None and hub.idle:
            del self._hubs[session_pk]

    def find(self, session_pk: int) -> Hub | None:
        """The session's hub, if it has one."""
        return self._hubs.get(session_pk)

    def all(self) -> list[tuple[int, Hub]]:
        """Every session key and its hub."""
        return list(self._hubs.items())

    def running(self) -> list[LiveTurn]:
        """Every turn that runs."""
        return [hub.turn for hub in self._hubs.values() if hub.turn is not None]

    def __len__(self) -> int:
        """Sessions in which something runs or that somebody watches."""
        return len(self._hubs)
