"""The connection is cut, at every event and within frames: the SDK yields each delta once and in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from personae.v1 import event_pb2
from personae_client import PersonaeClient
from tests.e2e.support import Hosted, Pause, kinds, new_turn_id, text_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

UNITS = ("The first unit. ", "The second unit. ", "The third unit. ", "The fourth unit ends it.")


class Proxy:
    """A TCP proxy that can be cut.

    Attributes:
        port: to connect to.
        cuts: how often connections were cut.
        received: bytes from the server since the last cut.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._connections: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.cuts = 0
        self.received = 0
        self.cut_after: int | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset every connection."""
        self.cuts += bool(self._connections)
        for writer in self._connections:
            writer.transport.abort()
        self._connections.clear()
        self.received = 0

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self._target)
        self._connections |= {writer, upstream}
        for source, sink, counted in ((reader, upstream, False), (upstream_reader, writer, True)):
            task = asyncio.create_task(self._pump(source, sink, counted))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counted: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if counted and self.cut_after is not None and self.received + len(data) > self.cut_after:
                    # The first part of a frame arrives, and then nothing more.
                    writer.write(data[: self.cut_after - self.received])
                    await writer.drain()
                    self.cut_after = None
                    writer.close()
                    self.cut()
                    return
                self.received += len(data) if counted else 0
                writer.write(data)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def behind_a_proxy(hosted: Hosted) -> AsyncIterator[tuple[Proxy, PersonaeClient]]:
    proxy = Proxy(hosted.port)
    await proxy.start()
    # Many short attempts: the channel's own pause before it connects again is longer than a few of them.
    client = PersonaeClient(
        f"127.0.0.1:{proxy.port}", api_key=hosted.key, max_attempts=500, backoff_s=0.01, max_backoff_s=0.05
    )
    try:
        async with client:
            yield proxy, client
    finally:
        await proxy.stop()


async def talk(
    hosted: Hosted, client: PersonaeClient, session: str, seen: Callable[[int], None]
) -> list[event_pb2.SessionEvent]:
    """One turn through the SDK, unit by unit; `seen` is told the number of events there are after each."""
    pauses = [Pause() for _ in UNITS[1:]]
    first, *others = UNITS
    hosted.engine.will_say(first, *(part for pair in zip(pauses, others, strict=True) for part in pair))
    events: list[event_pb2.SessionEvent] = []
    waiting = iter(pauses)
    async with client.sessions.converse(session, "Hello there.", turn_id=new_turn_id()) as stream:
        async for event in stream:
            events.append(event)
            seen(len(events))
            if event.HasField("text_delta") and (pause := next(waiting, None)) is not None:
                pause.go.set()
        resumes = stream.resumes
    assert resumes == 0 or kinds(events)[0] == "turn_started"
    return events


async def check(hosted: Hosted, session: str, events: list[event_pb2.SessionEvent]) -> None:
    """What was yielded is what the ledger has: each event once and in order."""
    [turn] = await hosted.api.turns(session)
    assert text_of(events) == turn.reply_text == "".join(UNITS)
    assert events == await hosted.api.attached(session, turn_id=turn.name.rsplit("/", 1)[1])
    assert kinds(events)[-1] == "turn_completed"


async def test_a_cut_after_each_event_in_turn_loses_and_repeats_nothing(hosted: Hosted) -> None:
    async with behind_a_proxy(hosted) as (proxy, client):
        persona = await hosted.api.persona()
        session = await hosted.api.session(persona)
        whole = await talk(hosted, client, session, lambda count: None)
        await check(hosted, session, whole)
        assert len(whole) == 1 + len(UNITS) + 3
        for position in range(1, len(whole) + 1):
            session = await hosted.api.session(persona)
            before = proxy.cuts

            def cut_here(count: int, position: int = position) -> None:
                if count == position:
                    proxy.cut()

            events = await talk(hosted, client, session, cut_here)
            assert proxy.cuts == before + 1, f"not cut after event {position}"
            await check(hosted, session, events)


async def test_cuts_after_every_event_of_one_turn_lose_and_repeat_nothing(hosted: Hosted) -> None:
    async with behind_a_proxy(hosted) as (proxy, client):
        session = await hosted.api.session(await hosted.api.persona())
        events = await talk(hosted, client, session, lambda count: proxy.cut())
        assert proxy.cuts >= 4
        await check(hosted, session, events)


async def test_a_cut_in_the_middle_of_frames_loses_and_repeats_nothing(hosted: Hosted) -> None:
    async with behind_a_proxy(hosted) as (proxy, client):
        persona = await hosted.api.persona()
        session = await hosted.api.session(persona)
        await check(hosted, session, await talk(hosted, client, session, lambda count: None))
        size = proxy.received
        cut_in_frames = 0
        # From before the first answer to the last bytes of the stream, in uneven steps.
        for position in range(3, size, max(1, size // 23)):
            session = await hosted.api.session(persona)
            proxy.cut()
            before, proxy.cut_after = proxy.cuts, position
            events = await talk(hosted, client, session, lambda count: None)
            cut_in_frames += proxy.cuts - before
            proxy.cut_after = None
            await check(hosted, session, events)
        assert cut_in_frames >= 20
