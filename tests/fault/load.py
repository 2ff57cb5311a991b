"""Load that remembers everything it was told, and repeats what it got no answer to."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from personae.v1 import (
    event_pb2,
    memory_service_pb2,
    memory_service_pb2_grpc,
    persona_service_pb2,
    persona_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
)

PERSONA = "tenants/demo/personas/nadia"
TERMINAL = ("turn_completed", "turn_interrupted")
RPC_S = 60.0
_BACKOFF_S = 0.05
_OPENERS = ("Tell me about my {word}.", "What did I say of my {word}?", "I thought about my {word} all day.")
_THINGS = ("bicycle", "cat", "boat", "lamp", "garden", "piano", "kite", "teapot")


@dataclass(slots=True, eq=False)
class TurnRecord:
    """A turn as its client saw it.

    Attributes:
        acknowledged: an event of it was received.
        events: what was received, by id, in one fixed form.
        ended: its terminal event was received.
    """

    session: SessionRecord
    turn_id: str
    text: str
    acknowledged: bool = False
    events: dict[int, bytes] = field(default_factory=dict)
    ended: bool = False


@dataclass(slots=True, eq=False)
class SessionRecord:
    """A session; `opened` once CreateSession was answered."""

    session_id: str
    user: str
    opened: bool = False
    turns: dict[str, TurnRecord] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Resource name."""
        return f"{PERSONA}/sessions/{self.session_id}"


@dataclass(slots=True, eq=False)
class MemoryRecord:
    """A memory; `name` once CreateMemory was answered, `forgotten` once ForgetMemory was."""

    user: str
    word: str
    text: str
    request_id: str
    name: str = ""
    forgetting: bool = False
    forgotten: bool = False


@dataclass(slots=True)
class Journal:
    """All that was sent and received, and what was wrong with it."""

    sessions: list[SessionRecord] = field(default_factory=list)
    memories: list[MemoryRecord] = field(default_factory=list)
    touched: set[TurnRecord] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)

    def note(self, turn: TurnRecord, event: event_pb2.SessionEvent, last: int) -> int:
        """Keep a received event and check it against what came before; its id."""
        where = f"{turn.session.session_id}/{turn.turn_id} event {event.event_id}"
        kept, seen = fixed(event), turn.events.get(event.event_id)
        if event.turn_id != turn.turn_id:
            self.wrong.append(f"{where}: is of turn {event.turn_id!r}")
        if event.event_id <= last:
            self.wrong.append(f"{where}: came after event {last}")
        if seen is not None and seen != kept:
            self.wrong.append(f"{where}: was {seen!r}, now {kept!r}")
        if turn.ended and seen is None:
            self.wrong.append(f"{where}: is new, after the turn had ended")
        turn.acknowledged = True
        turn.events[event.event_id] = kept
        self.touched.add(turn)
        return event.event_id


def fixed(event: event_pb2.SessionEvent) -> bytes:
    """An event in a form that must never change. A citation's words go when they are forgotten."""
    kept = event_pb2.SessionEvent()
    kept.CopyFrom(event)
    if kept.HasField("memory_citation"):
        for name in ("quote", "speaker", "occur_time"):
            kept.memory_citation.ClearField(name)
    return kept.SerializeToString(deterministic=True)


class GoneAway(Exception):
    """The server said that it goes away and ended the stream: the turn is to be watched elsewhere."""


class Api:
    """The stubs of one connection, with the key in place."""

    def __init__(self, channel: grpc.aio.Channel, key: str) -> None:
        self._metadata = (("authorization", f"Bearer {key}"),)
        self.personas = persona_service_pb2_grpc.PersonaServiceStub(channel)
        self.sessions = session_service_pb2_grpc.SessionServiceStub(channel)
        self.memories = memory_service_pb2_grpc.MemoryServiceStub(channel)

    def call(self, method: Any, request: Any) -> Any:
        """A call with credentials and a deadline that only a hang exceeds."""
        return method(request, metadata=self._metadata, timeout=RPC_S)

    async def read(
        self, journal: Journal, turn: TurnRecord, stream: Any, last: int = 0, limit: int | None = None
    ) -> int:
        """Read a stream of one turn to its end, or `limit` events of it; the last id."""
        going_away = False
        async for event in stream:
            if event.HasField("go_away"):
                going_away = True
                continue
            last = journal.note(turn, event, last)
            if event.WhichOneof("event") in TERMINAL:
                turn.ended = True
            if limit is not None:
                limit -= 1
                if limit == 0:
                    return last
        if not turn.ended and going_away:
            raise GoneAway
        if not turn.ended:
            journal.wrong.append(f"{turn.session.session_id}/{turn.turn_id}: a stream ended after {last}, the turn not")
        return last

    def converse(self, turn: TurnRecord) -> Any:
        """Begin, join or replay a turn."""
        return self.call(
            self.sessions.Converse,
            session_service_pb2.ConverseRequest(session=turn.session.name, turn_id=turn.turn_id, text=turn.text),
        )

    def attach(self, turn: TurnRecord, after: int) -> Any:
        """Watch a turn from an event on."""
        return self.call(
            self.sessions.Attach,
            session_service_pb2.AttachRequest(session=turn.session.name, after_event_id=after, turn_id=turn.turn_id),
        )


@asynccontextmanager
async def closing(stream: Any) -> AsyncIterator[Any]:
    """Cancel a stream on the way out, which is what losing it looks like to the server."""
    try:
        yield stream
    finally:
        stream.cancel()


class User:
    """One person's client: does one thing after the other, and the last one again until it is answered.

    Args:
        notes: share of what is done with memories rather than with turns.
    """

    def __init__(self, name: str, journal: Journal, rng: random.Random, words: set[str], notes: float = 0.2) -> None:
        self.name = name
        self._journal = journal
        self._rng = rng
        self._words = words
        self._notes = notes
        self._session: SessionRecord | None = None
        self._pending: Any = None
        self._fresh = True
        self._done = 0
        self._goals: list[tuple[int, asyncio.Event]] = []

    def renew(self) -> None:
        """Open a new session next, unless a turn of this one is still to be answered."""
        if self._pending is None:
            self._session = None

    async def did(self, more: int) -> None:
        """Wait until that many more things have been done."""
        reached = asyncio.Event()
        self._goals.append((self._done + more, reached))
        await reached.wait()

    async def run(self, api: Api, stop: asyncio.Event) -> None:
        """Go on until `stop` is set and nothing is pending, or a call fails after it is set."""
        while self._pending is not None or not stop.is_set():
            if self._pending is None:
                self._pending, self._fresh = self._next(), True
            try:
                await self._pending(api, self._fresh)
            except GoneAway:
                self._fresh = False
            except grpc.aio.AioRpcError as error:
                self._fresh = False
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    self._journal.wrong.append(f"{self.name}: {error.code().name} {error.details()}")
                    return
                if stop.is_set():
                    return
                # As any client: not at once, and again.
                await asyncio.sleep(_BACKOFF_S)
            else:
                self._pending = None
                self._done += 1
                for goal, reached in self._goals:
                    if goal <= self._done:
                        reached.set()

    def _next(self) -> Any:
        rng = self._rng
        if self._session is None:
            self._session = SessionRecord(f"s-{len(self._journal.sessions)}-{self.name}", self.name)
            self._journal.sessions.append(self._session)
            return self._opener(self._session)
        draw = rng.random()
        mine = [memory for memory in self._journal.memories if memory.user == self.name and not memory.forgetting]
        if draw < self._notes * 0.55 or not mine:
            thing, word = rng.choice(_THINGS), self._word()
            memory = MemoryRecord(
                self.name, word, f"My {thing} is called {word}.", str(uuid.UUID(int=rng.getrandbits(128), version=4))
            )
            self._journal.memories.append(memory)
            return self._creator(memory)
        if draw < self._notes:
            memory = rng.choice(mine)
            memory.forgetting = True
            return self._forgetter(memory)
        text = rng.choice(_OPENERS).format(word=rng.choice(mine).word)
        if rng.random() < 0.1:
            text = f"Are you human? {text}"
        session = self._session
        turn = TurnRecord(session, f"t{len(session.turns) + 1}", text)
        session.turns[turn.turn_id] = turn
        self._journal.touched.add(turn)
        return self._turner(turn, rng.choice(("plain", "plain", "cancel", "drop", "watch")), rng.randint(1, 6))

    def _word(self) -> str:
        while True:
            word = "".join(self._rng.choice("bdfgklmnprstvz") + self._rng.choice("aeiou") for _ in range(5))
            if word not in self._words:
                self._words.add(word)
                return word

    def _opener(self, session: SessionRecord) -> Any:
        request = session_service_pb2.CreateSessionRequest(
            parent=PERSONA,
            session=session_service_pb2.Session(user=f"{PERSONA}/users/{self.name}"),
            session_id=session.session_id,
            request_id=str(uuid.UUID(int=self._rng.getrandbits(128), version=4)),
        )

        async def act(api: Api, fresh: bool) -> None:
            await api.call(api.sessions.CreateSession, request)
            session.opened = True

        return act

    def _creator(self, memory: MemoryRecord) -> Any:
        request = memory_service_pb2.CreateMemoryRequest(
            parent=f"{PERSONA}/users/{self.name}",
            memory=memory_service_pb2.Memory(text=memory.text, speaker=self.name),
            request_id=memory.request_id,
        )

        async def act(api: Api, fresh: bool) -> None:
            memory.name = (await api.call(api.memories.CreateMemory, request)).name

        return act

    def _forgetter(self, memory: MemoryRecord) -> Any:
        async def act(api: Api, fresh: bool) -> None:
            request = memory_service_pb2.ForgetMemoryRequest(name=memory.name)
            await api.call(api.memories.ForgetMemory, request)
            memory.forgotten = True

        return act

    def _turner(self, turn: TurnRecord, style: str, events: int) -> Any:
        journal = self._journal

        async def act(api: Api, fresh: bool) -> None:
            if not fresh or style == "plain":
                await api.read(journal, turn, api.converse(turn))
                return
            async with closing(api.converse(turn)) as stream:
                last = await api.read(journal, turn, stream, limit=events)
                if turn.ended:
                    return
                if style == "cancel":
                    name = f"{turn.session.name}/turns/{turn.turn_id}"
                    ended = await api.call(api.sessions.CancelTurn, session_service_pb2.CancelTurnRequest(name=name))
                    if ended.state == session_service_pb2.TURN_STATE_RUNNING:
                        journal.wrong.append(f"{name}: runs after it was cancelled")
                if style == "watch":
                    views = (api.read(journal, turn, api.attach(turn, 0)), api.read(journal, turn, stream, last))
                    for failed in await asyncio.gather(*views, return_exceptions=True):
                        if isinstance(failed, BaseException):
                            raise failed
                    return
                if style == "cancel":
                    await api.read(journal, turn, stream, last)
                    return
            await api.read(journal, turn, api.attach(turn, last), last)

        return act


async def make_persona(api: Api) -> None:
    """The persona that the load talks to."""
    await api.call(
        api.personas.CreatePersona,
        persona_service_pb2.CreatePersonaRequest(
            parent="tenants/demo",
            persona_id="nadia",
            persona=persona_service_pb2.Persona(display_name="Nadia", type=persona_service_pb2.PERSONA_TYPE_ASSISTANT),
        ),
    )
    await api.call(
        api.personas.PublishRevision,
        persona_service_pb2.PublishRevisionRequest(
            parent=PERSONA, definition=persona_service_pb2.PersonaDefinition(card="You are Nadia.")
        ),
    )
