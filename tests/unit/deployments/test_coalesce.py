"""Deltas that cross the replica boundary: fewer of them, the same text, and an abort that reaches the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.engines.engine import EngineDelta, EngineFinish
from personae_runtime.errors import EngineDead
from personae_serve.deployments.model import coalesce

LAST = EngineDelta("", 0, EngineFinish.STOP, 7, 3)


class Source:
    """An engine's deltas, handed out when the test says so."""

    def __init__(self) -> None:
        self.deltas: asyncio.Queue[EngineDelta | Exception] = asyncio.Queue()
        self.taken = asyncio.Condition()
        self.closed = False

    async def stream(self) -> AsyncGenerator[EngineDelta, None]:
        try:
            while True:
                delta = await self.deltas.get()
                if isinstance(delta, Exception):
                    raise delta
                yield delta
                if delta.finish is not None:
                    return
        finally:
            self.closed = True

    async def put(self, *deltas: EngineDelta) -> None:
        """Hand out, and wait until all of it has been taken."""
        for delta in deltas:
            self.deltas.put_nowait(delta)
        while not self.deltas.empty():  # noqa: ASYNC110 - each pass lets the pump run
            await asyncio.sleep(0)
        await asyncio.sleep(0)


async def begun(
    text: str = "a", *, pause_s: float = 0.0, unit_wait_s: float = 0.0
) -> tuple[Source, AsyncGenerator[EngineDelta, None]]:
    """A source and what is made of it, whose first delta went at once."""
    source = Source()
    out = coalesce(source.stream(), lambda: pause_s, unit_wait_s=unit_wait_s)
    source.deltas.put_nowait(EngineDelta(text, 1))
    assert await anext(out) == EngineDelta(text, 1)
    return source, out


async def test_the_first_delta_goes_at_once_and_the_rest_gathers() -> None:
    source, out = await begun("One", pause_s=3600.0)
    second = asyncio.ensure_future(anext(out))
    await source.put(EngineDelta(" two", 1), EngineDelta(" three", 2))
    assert not second.done()
    # The end of the reply does not wait for the pause.
    await source.put(LAST)
    assert await second == EngineDelta(" two three", 3, EngineFinish.STOP, 7, 3)
    with pytest.raises(StopAsyncIteration):
        await anext(out)
    assert source.closed


async def test_what_completes_no_unit_gathers_until_one_is_complete_or_it_waited_long_enough() -> None:
    source, out = await begun("So", unit_wait_s=3600.0)
    second = asyncio.ensure_future(anext(out))
    await source.put(EngineDelta(",", 1))  # the next character tells whether the clause ends here
    assert not second.done()
    await source.put(EngineDelta(" I", 1))
    assert await second == EngineDelta(", I", 2)
    third = asyncio.ensure_future(anext(out))
    await source.put(EngineDelta(" think, and", 3))  # from the second on units are sentences
    assert not third.done()
    await source.put(EngineDelta(" so on. It", 4), EngineDelta(" is", 1))
    assert (await third).text.startswith(" think, and so on. It")
    await out.aclose()

    source, out = await begun("So", unit_wait_s=0.001)
    source.deltas.put_nowait(EngineDelta(" it", 1))
    assert await anext(out) == EngineDelta(" it", 1)
    await out.aclose()


async def test_without_a_pause_what_came_while_nobody_asked_is_one_delta() -> None:
    source, out = await begun()
    await source.put(EngineDelta("b", 1), EngineDelta("c", 1))
    assert await anext(out) == EngineDelta("bc", 2)
    await out.aclose()


async def test_the_end_that_comes_while_the_caller_is_busy_is_not_lost() -> None:
    source, out = await begun()
    # The engine ends while the caller still has the first delta.
    await source.put(EngineDelta("b", 1), LAST)
    assert await anext(out) == EngineDelta("b", 1, EngineFinish.STOP, 7, 3)


async def test_a_pause_that_is_over_ends_no_reply() -> None:
    source = Source()
    out = coalesce(source.stream(), lambda: 0.001, unit_wait_s=0.0)
    for piece in "abc":
        source.deltas.put_nowait(EngineDelta(piece, 1))
        assert await anext(out) == EngineDelta(piece, 1)
    source.deltas.put_nowait(LAST)
    assert await anext(out) == LAST


async def test_closing_the_stream_closes_the_engines() -> None:
    source, out = await begun()
    await out.aclose()
    assert source.closed


async def test_a_failure_comes_after_the_text_before_it() -> None:
    source = Source()
    out = coalesce(source.stream(), lambda: 0.0, unit_wait_s=0.0)
    source.deltas.put_nowait(EngineDelta("a", 1))
    source.deltas.put_nowait(EngineDead("gone"))
    assert await anext(out) == EngineDelta("a", 1)
    with pytest.raises(EngineDead):
        await anext(out)


@given(
    st.lists(st.tuples(st.text(max_size=6), st.integers(1, 4)), max_size=30),
    st.sampled_from((0.0, 0.0005)),
    st.sampled_from((0.0, 0.0005, 3600.0)),
    st.integers(0, 5),
)
def test_text_and_tokens_are_the_same_however_they_are_gathered(
    pieces: list[tuple[str, int]], pause_s: float, unit_wait_s: float, busy: int
) -> None:
    async def run() -> list[EngineDelta]:
        async def stream() -> AsyncGenerator[EngineDelta, None]:
            for index, (text, tokens) in enumerate(pieces):
                yield EngineDelta(text, tokens)
                if index % 3 == 0:
                    await asyncio.sleep(0)
            yield LAST

        seen = []
        async for delta in coalesce(stream(), lambda: pause_s, unit_wait_s=unit_wait_s):
            seen.append(delta)
            for _ in range(busy):
                await asyncio.sleep(0)
        return seen

    out = asyncio.run(run())
    assert "".join(delta.text for delta in out) == "".join(text for text, _ in pieces)
    assert sum(delta.tokens for delta in out) == sum(tokens for _, tokens in pieces)
    assert [delta.finish for delta in out if delta.finish] == [EngineFinish.STOP]
    assert (out[-1].input_tokens, out[-1].cached_input_tokens) == (7, 3)
