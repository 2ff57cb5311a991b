"""Any interleaving of recording, committing, watching, leaving and ending: every view sees the recorded truth.

The real recorder, views, hub and service; the ledger is a list, and what is
asynchronous in it happens when the machine says so.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from personae_runtime.errors import LedgerUnavailable, OwnedElsewhere, ResourceExhausted
from personae_runtime.ledger.sessions import RESERVED_EVENTS
from personae_runtime.ledger.writer import EventRow
from personae_runtime.sessions.events import Event, Notice, TextDelta, TurnCompleted, TurnInterrupted, TurnStarted
from personae_runtime.sessions.recorder import Recorder
from personae_runtime.sessions.service import Seen, SessionService
from personae_runtime.sessions.views import Hub, Hubs

PK, TURN_NO, TURN_ID = 7, 1, "t1"
STARTED = TurnStarted("An AI speaks.", 1)


class Ledger:
    """A list of events, read as SessionLedger reads them: a page at a time, each after a pause."""

    owner = "this process"

    def __init__(self) -> None:
        self.rows: list[Event] = []
        self.state = "RUNNING"
        self.closed = False

    async def events(self, session: object, *, after: int, limit: int, turn_no: int | None = None) -> list[Event]:
        await asyncio.sleep(0)
        found = [event for event in self.rows if event.event_id > after][:limit]
        await asyncio.sleep(0)
        return found

    async def turn(self, session: object, turn_id: str) -> SimpleNamespace:
        state = self.state
        await asyncio.sleep(0)
        return SimpleNamespace(turn_no=TURN_NO, state=state)

    async def get(self, name: object) -> SimpleNamespace:
        running, last = self.state == "RUNNING", self.rows[-1].event_id
        await asyncio.sleep(0)
        return SimpleNamespace(
            state="CLOSED" if self.closed else "OPEN",
            active_turn=TURN_ID if running else "",
            next_event_id=RESERVED_EVENTS if running else last + 1,
        )

    async def whereabouts(self, session_pk: int) -> OwnedElsewhere | None:
        running = self.state == "RUNNING"
        await asyncio.sleep(0)
        return OwnedElsewhere(self.owner, "") if running else None


@dataclass
class Watcher:
    """A client: where it began, what it saw, and how it ended."""

    after: int
    stream: AsyncGenerator[Seen, None]
    seen: list[Event] = field(default_factory=list)
    reading: asyncio.Task[Seen] | None = None
    over: bool = False
    dropped: bool = False


class Streams(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.ledger = Ledger()
        self.hubs = Hubs()
        self.hub = self.hubs.get(PK)
        self.session = cast(Any, SimpleNamespace(session_pk=PK, name=None, scope=""))
        self.appends: deque[tuple[list[Event], asyncio.Future[None]]] = deque()
        self.leaves: list[asyncio.Future[None]] = []
        self.gate_open = True
        self.sealed: dict[int, Event] = {}
        self.emitted = ""
        self.watchers: list[Watcher] = []
        self.ending: asyncio.Task[None] | None = None
        self.released = False
        self.service = SessionService(
            cast(Any, SimpleNamespace(hubs=self.hubs, admit=self.admit, add_view=Hub.add)),
            cast(Any, self.ledger),
            cast(Any, None),
            cast(Any, None),
            view_limit=8,
        )
        first = Event(1, TURN_ID, datetime.now(UTC), STARTED)
        self.ledger.rows.append(first)
        self.recorder = Recorder(
            TURN_ID,
            2,
            seal=self.seal,
            append=self.append,
            may_release=self.may_release,
            releasable=lambda: self.gate_open,
            deliver=self.deliver,
            pause_s=lambda: 0.0,
            on_lateness=lambda seconds: None,
        )
        self.turn = cast(
            Any,
            SimpleNamespace(
                turn_id=TURN_ID, session=self.session, hub=self.hub, events=[first], citations={}, failure=None
            ),
        )
        self.hub.turn = self.turn
        self.run(self.start())

    async def start(self) -> None:
        self.recorder.start()

    # What the recorder is given.

    def seal(self, event: Event) -> EventRow:
        self.sealed[event.event_id] = event
        return EventRow(PK, event.event_id, TURN_NO, event.body.kind, b"", event.time)

    def append(self, rows: list[EventRow]) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self.loop.create_future()
        self.appends.append(([self.sealed[row.event_id] for row in rows], future))
        return future

    async def may_release(self) -> None:
        if not self.gate_open:
            leave: asyncio.Future[None] = self.loop.create_future()
            self.leaves.append(leave)
            await leave

    def deliver(self, event: Event) -> None:
        assert event in self.ledger.rows, "delivered before it was recorded"
        self.turn.events.append(event)
        self.hub.publish(event)

    async def admit(self, *_: object, **__: object) -> Any:
        return self.turn if self.hub.turn is self.turn else None

    # Time.

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()
        for watcher in self.watchers:
            self.take(watcher)

    def take(self, watcher: Watcher) -> None:
        """What a client's read brought."""
        if watcher.reading is None or not watcher.reading.done():
            return
        reading, watcher.reading = watcher.reading, None
        try:
            watcher.seen.append(reading.result().event)
        except StopAsyncIteration:
            watcher.over = True
        except ResourceExhausted:
            watcher.over = watcher.dropped = True
        except LedgerUnavailable:
            watcher.over = watcher.dropped = True

    # What can happen.

    @precondition(lambda self: self.ending is None)
    @rule(text=st.text("abc .", min_size=1, max_size=9))
    def say(self, text: str) -> None:
        if self.recorder.failure is None:
            self.emitted += text
        self.loop.call_soon(self.recorder.emit, TextDelta(text))
        self.step()

    @precondition(lambda self: self.ending is None)
    @rule()
    def tell(self) -> None:
        self.loop.call_soon(self.recorder.emit, Notice("CODE", "text"))
        self.step()

    @precondition(lambda self: self.appends)
    @rule()
    def commit(self) -> None:
        events, future = self.appends.popleft()
        self.ledger.rows.extend(events)
        future.set_result(None)
        self.step()

    @precondition(lambda self: self.appends)
    @rule()
    def fail_to_commit(self) -> None:
        _, future = self.appends.popleft()
        future.set_exception(LedgerUnavailable("away"))
        self.step()

    @rule(opened=st.booleans())
    def hold_or_let_release(self, opened: bool) -> None:
        self.gate_open = opened
        if opened:
            for leave in self.leaves:
                if not leave.done():
                    leave.set_result(None)
            self.leaves.clear()
        self.step()

    @rule(steps=st.integers(1, 4))
    def wait(self, steps: int) -> None:
        self.step(steps)

    @precondition(lambda self: len(self.watchers) < 6)
    @rule()
    def converse(self) -> None:
        self.watchers.append(Watcher(0, self.service.converse(self.session, TURN_ID, "text")))

    @precondition(lambda self: len(self.watchers) < 6)
    @rule(data=st.data(), whole=st.booleans())
    def attach(self, data: st.DataObject, whole: bool) -> None:
        after = data.draw(st.sampled_from([0, *(event.event_id for event in self.ledger.rows)]))
        self.watchers.append(Watcher(after, self.service.attach(self.session, after, "" if whole else TURN_ID)))

    @precondition(lambda self: self.watchers)
    @rule(data=st.data(), steps=st.integers(0, 3))
    def read(self, data: st.DataObject, steps: int) -> None:
        watcher = data.draw(st.sampled_from(self.watchers))
        if not watcher.over and watcher.reading is None:
            watcher.reading = self.loop.create_task(cast(Any, anext(watcher.stream)))
        self.step(steps)

    @precondition(lambda self: self.watchers)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.close(self.watchers.pop(data.draw(st.integers(0, len(self.watchers) - 1))))

    def close(self, watcher: Watcher) -> None:
        if watcher.reading is not None:
            watcher.reading.cancel()
            self.run(asyncio.wait([watcher.reading]))
        self.run(watcher.stream.aclose())

    @precondition(lambda self: self.ending is None)
    @rule(cancelled=st.booleans())
    def end(self, cancelled: bool) -> None:
        self.ending = self.loop.create_task(self.finish(cancelled))
        self.step()

    async def finish(self, cancelled: bool) -> None:
        """As a turn ends: flush or drop, record the last event, then show it."""
        if not cancelled:
            try:
                await self.recorder.flush()
            except LedgerUnavailable:
                cancelled = True
        await self.recorder.stop()
        reply = "".join(self.recorder.text)
        body = TurnInterrupted(len(reply), "CANCELLED") if cancelled else TurnCompleted("STOP")
        terminal = Event(self.recorder.take_id(), TURN_ID, datetime.now(UTC), body)
        await asyncio.sleep(0)
        self.ledger.rows.append(terminal)
        self.ledger.state = "COMPLETED"
        await asyncio.sleep(0)
        self.hub.turn = None
        self.hub.rest_at(terminal.event_id + 1)
        self.deliver(terminal)
        self.hubs.release(PK)

    # What always holds.

    @invariant()
    def recorded_in_order_with_one_end(self) -> None:
        ids = [event.event_id for event in self.ledger.rows]
        assert ids == sorted(set(ids))
        ends = [event for event in self.ledger.rows if event.terminal]
        assert len(ends) <= 1
        assert not ends or self.ledger.rows[-1] is ends[0]
        said = "".join(event.body.text for event in self.ledger.rows if isinstance(event.body, TextDelta))
        assert self.emitted.startswith(said)

    @invariant()
    def every_view_saw_a_prefix_of_what_is_recorded(self) -> None:
        for watcher in self.watchers:
            truth = [event for event in self.ledger.rows if event.event_id > watcher.after]
            assert watcher.seen == truth[: len(watcher.seen)]

    def teardown(self) -> None:
        self.gate_open = True
        for leave in self.leaves:
            if not leave.done():
                leave.set_result(None)
        if self.ending is None:
            self.ending = self.loop.create_task(self.finish(False))
        for _ in range(200):
            self.step()
            if self.appends:
                self.commit()
            if self.ending.done() and not self.ledger.closed:
                # Streams of the whole session end when it closes.
                self.ledger.closed = True
                if (hub := self.hubs.find(PK)) is not None:
                    hub.end()
            for watcher in self.watchers:
                if not watcher.over and watcher.reading is None:
                    watcher.reading = self.loop.create_task(cast(Any, anext(watcher.stream)))
            if self.ending.done() and all(watcher.over for watcher in self.watchers):
                break
        assert self.ending.done(), "the turn does not end"
        self.ending.result()
        for watcher in self.watchers:
            assert watcher.over, "a stream does not end"
            if not watcher.dropped:
                assert watcher.seen == [event for event in self.ledger.rows if event.event_id > watcher.after]
            self.close(watcher)
        assert not self.hub.views
        assert self.hubs.find(PK) is None
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


TestStreams = Streams.TestCase
TestStreams.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
