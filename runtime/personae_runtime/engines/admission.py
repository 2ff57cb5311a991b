"""Who runs, who waits and who is turned away: shared by the engines that do their own admission."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from time import monotonic

from personae_runtime.errors import EngineOverloaded, InvalidArgument

_MIN_RETRY_S = 0.1
_MAX_RETRY_S = 30.0
_SMOOTHING = 0.2
"""Weight of the newest request in the mean service time."""


class Ticket:
    """One request's place: waiting, then running, until it leaves."""

    __slots__ = ("aborted", "admitted_at", "left", "on_abort", "order", "request_id", "running", "turn")

    def __init__(self, request_id: str, order: tuple[int, int]) -> None:
        self.request_id = request_id
        self.order = order
        self.running = False
        self.aborted = False
        self.left = False
        self.admitted_at = 0.0
        self.turn: asyncio.Future[None] | None = None
        self.on_abort: Callable[[], None] | None = None
        """Called once when a running request is aborted."""

    def __lt__(self, other: Ticket) -> bool:
        return self.order < other.order


class Admission:
    """A bounded number of running requests and a bounded priority queue before them.

    Lower priority values run first; equal ones in order of arrival. Not
    thread-safe: all calls come from one event loop.

    Args:
        max_concurrent: requests running at once.
        max_waiting: requests queued beyond those.
    """

    def __init__(self, max_concurrent: int, max_waiting: int) -> None:
        self.max_concurrent = max_concurrent
        self.max_waiting = max_waiting
        self.running = 0
        self._tickets: dict[str, Ticket] = {}
        self._queue: list[Ticket] = []
        self._arrivals = 0
        self._mean_service_s = 1.0

    @property
    def waiting(self) -> int:
        """Requests admitted and not yet running."""
        return len(self._queue)

    def enter(self, request_id: str, priority: int) -> Ticket:
        """Take a place, running if one is free, else in the queue.

        Raises:
            InvalidArgument: the id is in flight (reason REQUEST_IN_FLIGHT).
            EngineOverloaded: neither place is free; `retry_after_s` says when one may be.
        """
        if request_id in self._tickets:
            raise InvalidArgument(f"request {request_id!r} is in flight", reason="REQUEST_IN_FLIGHT")
        ticket = Ticket(request_id, (priority, self._arrivals))
        if self.running < self.max_concurrent:
            self._run(ticket)
        elif self.waiting < self.max_waiting:
            heapq.heappush(self._queue, ticket)
        else:
            raise EngineOverloaded(
                f"the engine runs {self.running} requests and {self.waiting} wait; no place is free",
                retry_after_s=self._retry_after_s(),
            )
        self._arrivals += 1
        self._tickets[request_id] = ticket
        return ticket

    async def turn(self, ticket: Ticket) -> None:
        """Return when the ticket runs or is aborted."""
        if ticket.running or ticket.aborted:
            return
        ticket.turn = asyncio.get_running_loop().create_future()
        try:
            await ticket.turn
        finally:
            ticket.turn = None

    def abort(self, request_id: str) -> Ticket | None:
        """Abort one request, waiting or running, and return its ticket; None if there is none such."""
        ticket = self._tickets.get(request_id)
        if ticket is None or ticket.aborted:
            return None
        ticket.aborted = True
        if ticket.turn is not None and not ticket.turn.done():
            ticket.turn.set_result(None)
        if ticket.on_abort is not None:
            ticket.on_abort()
        return ticket

    def abort_all(self) -> list[str]:
        """Abort every request in flight, and return the ids of those that ran."""
        tickets = [self.abort(request_id) for request_id in tuple(self._tickets)]
        return [ticket.request_id for ticket in tickets if ticket is not None and ticket.running]

    def forget(self, ticket: Ticket) -> None:
        """Free the request's id, while its place may still be taken. Safe to call twice."""
        if self._tickets.get(ticket.request_id) is ticket:
            del self._tickets[ticket.request_id]

    def leave(self, ticket: Ticket) -> None:
        """Give up the id and the place, running or waiting. Safe to call twice."""
        self.forget(ticket)
        if ticket.left:
            return
        ticket.left = True
        if not ticket.running:
            self._queue.remove(ticket)
            heapq.heapify(self._queue)
            return
        self.running -= 1
        self._mean_service_s += _SMOOTHING * (monotonic() - ticket.admitted_at - self._mean_service_s)
        # An aborted one may be next; it leaves at once and passes the place on.
        while self._queue and self.running < self.max_concurrent:
            candidate = heapq.heappop(self._queue)
            self._run(candidate)
            if candidate.turn is not None and not candidate.turn.done():
                candidate.turn.set_result(None)

    def _run(self, ticket: Ticket) -> None:
        ticket.running = True
        ticket.admitted_at = monotonic()
        self.running += 1

    def _retry_after_s(self) -> float:
        """When the queue's next place should be free: places come free at `max_concurrent` per mean service time."""
        return min(_MAX_RETRY_S, max(_MIN_RETRY_S, self._mean_service_s / self.max_concurrent))
