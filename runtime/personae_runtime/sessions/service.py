"""What can be done with sessions: converse, attach, cancel, close.

Streams are async iterators of `Seen`; leaving one early is losing a view, no more.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from personae_runtime.abuse.guard import Origin
from personae_runtime.errors import Unavailable
from personae_runtime.ledger.memories import MemoryLedger
from personae_runtime.ledger.sessions import SessionLedger, SessionRow, TurnRow
from personae_runtime.ledger.vault import ScopeErased
from personae_runtime.memory.passages import Passage, PassageStore
from personae_runtime.memory.store import MemoryRecord
from personae_runtime.sessions.events import Event, Gap, GoAway, MemoryCitation, PassageCitation
from personae_runtime.sessions.turn import LiveTurn, TurnRunner
from personae_runtime.sessions.views import Expiry, Hub, View

_PAGE = 500


@dataclass(frozen=True, slots=True)
class Seen:
    """An event as a view shows it; `cited` is what a citation cites, None if it was forgotten."""

    event: Event
    cited: MemoryRecord | Passage | None = None


class SessionService:
    """Operations on sessions.

    Args:
        view_limit: events a view may lag behind before it is dropped.
    """

    def __init__(
        self,
        runner: TurnRunner,
        sessions: SessionLedger,
        memories: MemoryLedger,
        passages: PassageStore,
        *,
        view_limit: int,
    ) -> None:
        self._runner = runner
        self._sessions = sessions
        self._memories = memories
        self._passages = passages
        self._view_limit = view_limit

    async def converse(
        self,
        session: SessionRow,
        turn_id: str,
        text: str,
        *,
        received: float | None = None,
        origin: Origin = Origin(),  # noqa: B008 - immutable
        expiry: Expiry | None = None,
        forwarded: bool = False,
    ) -> AsyncGenerator[Seen, None]:
        """One turn's events, from turn_started to the terminal one, or to go_away.

        Args:
            origin: what the caller says of where the person's words come from.
            expiry: ends the stream, not the turn, with its error.
            forwarded: the call comes from another process, on behalf of its client.

        Raises:
            OwnedElsewhere: another process runs this turn.
            PersonaeError: see `TurnRunner.admit`; before the first event nothing was changed.
            ResourceExhausted: this view lagged too far (reason SLOW_CONSUMER).
            LedgerUnavailable: the turn's end could not be recorded.
        """
        turn = await self._runner.admit(session, turn_id, text, received=received, origin=origin)
        if turn is None:
            turn_no = (await self._sessions.turn(session, turn_id)).turn_no
            async for seen in self._replay(session, 0, turn_no):
                yield seen
            return
        # Closed at once when the stream is lost, so that the turn knows it lost a view.
        view = View(self._view_limit, expiry, forwarded=forwarded)
        async with aclosing(self._watch(turn, view)) as events:
            async for seen in events:
                yield seen

    async def _watch(self, turn: LiveTurn, view: View) -> AsyncGenerator[Seen, None]:
        self._runner.add_view(turn.hub, view)
        try:
            last = 0
            for event in list(turn.events):
                last = event.event_id
                yield Seen(event, _cited(turn, event))
                if event.terminal:
                    return
            if turn.failure is not None:
                raise turn.failure
            while (next_event := await view.next()) is not None:
                if isinstance(next_event.body, GoAway):
                    yield Seen(next_event)
                elif next_event.event_id > last:
                    yield Seen(next_event, _cited(turn, next_event))
                    if next_event.terminal:
                        return
        finally:
            self._drop(turn.session, turn.hub, view)

    async def attach(
        self,
        session: SessionRow,
        after: int,
        turn_id: str,
        *,
        expiry: Expiry | None = None,
        forwarded: bool = False,
    ) -> AsyncGenerator[Seen, None]:
        """Events after an id: those recorded, then those to come.

        With a `turn_id` only that turn's, ending with its terminal event;
        without, the session's, until it closes. Either may end with go_away, or
        with the error of `expiry`.

        Raises:
            NotFound: the session has no such turn.
            OwnedElsewhere: what is to come, comes in another process; to be continued there after the last event.
            ResourceExhausted: this view lagged too far (reason SLOW_CONSUMER).
        """
        hub = self._runner.hubs.get(session.session_pk)
        hub.scope = session.scope
        view = View(self._view_limit, expiry, forwarded=forwarded)
        # Before anything is read, so that nothing falls between replay and live.
        self._runner.add_view(hub, view)
        try:
            turn_no = (await self._sessions.turn(session, turn_id)).turn_no if turn_id else None
            last = after
            async for seen in self._replay(session, after, turn_no):
                last = seen.event.event_id
                yield seen
                if turn_no is not None and seen.event.terminal:
                    return
            if turn_id and (hub.turn is None or hub.turn.turn_id != turn_id):
                # It ended while it was replayed, or it never ran here.
                if (await self._sessions.turn(session, turn_id)).state == "RUNNING":
                    elsewhere = await self._sessions.whereabouts(session.session_pk)
                    if elsewhere is not None:
                        raise elsewhere
                async for seen in self._replay(session, last, turn_no):
                    yield seen
                return
            while not turn_id and hub.turn is None:
                now = await self._sessions.get(session.name)
                if hub.turn is not None:
                    break
                if now.active_turn:
                    elsewhere = await self._sessions.whereabouts(session.session_pk)
                    if elsewhere is not None and elsewhere.owner == self._sessions.owner:
                        # Recorded, and about to begin here.
                        break
                    if elsewhere is not None:
                        raise elsewhere
                elif now.next_event_id <= last + 1:
                    if view.next_event_id is None:
                        view.next_event_id = now.next_event_id
                    if now.state == "CLOSED":
                        # What was published since the replay is still in the view.
                        view.end()
                    break
                # A turn ran elsewhere since the replay.
                async for seen in self._replay(session, last, None):
                    last = seen.event.event_id
                    yield seen
            while (event := await view.next()) is not None:
                if isinstance(event.body, GoAway):
                    yield Seen(event)
                    continue
                if event.event_id <= last or (turn_id and event.turn_id != turn_id):
                    continue
                yield Seen(event, await self._cited_by_id(event))
                if turn_id and event.terminal:
                    return
        finally:
            self._drop(session, hub, view)

    async def _replay(self, session: SessionRow, after: int, turn_no: int | None) -> AsyncGenerator[Seen, None]:
        while True:
            try:
                events = await self._sessions.events(session, after=after, limit=_PAGE, turn_no=turn_no)
            except ScopeErased:
                last = await self._sessions.last_event_id(session)
                if last > after:
                    yield Seen(Event(last, "", datetime.now(UTC), Gap(after + 1, last)))
                return
            for event in events:
                after = event.event_id
                yield Seen(event, await self._cited_by_id(event))
            if len(events) < _PAGE:
                return

    async def _cited_by_id(self, event: Event) -> MemoryRecord | Passage | None:
        match event.body:
            case MemoryCitation(memory_id=cited):
                return (await self._memories.read([UUID(cited)])).get(UUID(cited))
            case PassageCitation(passage_id=cited):
                return (await self._passages.passages([UUID(cited)])).get(UUID(cited))
        return None

    def _drop(self, session: SessionRow, hub: Hub, view: View) -> None:
        view.close()
        hub.remove(view)
        self._runner.hubs.release(session.session_pk)

    async def cancel(self, session: SessionRow, turn_id: str) -> TurnRow:
        """Stop a turn and return it as it ended; an ended turn is left as it is.

        Raises:
            NotFound: the session has no such turn.
            OwnedElsewhere: it runs in another process.
            Unavailable: its end could not be recorded.
        """
        # With the lock: a turn that is being admitted is found here when it has been.
        async with self._runner.hubs.locked(session.session_pk) as hub:
            turn = hub.turn
        if turn is not None and turn.turn_id == turn_id:
            await self._stop(turn, "CANCELLED")
        row = await self._sessions.turn(session, turn_id)
        if row.state == "RUNNING":
            elsewhere = await self._sessions.whereabouts(session.session_pk)
            if elsewhere is not None:
                raise elsewhere
            row = await self._sessions.turn(session, turn_id)
        return row

    async def close(self, session: SessionRow) -> SessionRow:
        """Close a session: its running turn is cancelled, its streams end.

        Raises:
            OwnedElsewhere: it is closed, but its turn still runs, in another process.
            Unavailable: it is closed, but the end of its turn could not be recorded.
        """
        closed = await self._sessions.close(session.name)
        async with self._runner.hubs.locked(session.session_pk) as hub:
            if hub.turn is not None:
                await self._stop(hub.turn, "CANCELLED")
            hub.end()
        if not closed.active_turn:
            return closed
        elsewhere = await self._sessions.whereabouts(session.session_pk)
        if elsewhere is not None:
            raise elsewhere
        return await self._sessions.get(session.name)

    async def _stop(self, turn: LiveTurn, reason: str) -> None:
        turn.stop(reason)
        await turn.ended.wait()
        if turn.failure is not None:
            raise Unavailable(turn.failure.message, reason=turn.failure.reason, retry_after_s=1.0)


def _cited(turn: LiveTurn, event: Event) -> MemoryRecord | Passage | None:
    match event.body:
        case MemoryCitation(memory_id=cited) | PassageCitation(passage_id=cited):
            return turn.citations.get(cited)
    return None
