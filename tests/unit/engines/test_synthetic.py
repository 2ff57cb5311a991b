"""The synthetic engine's clock, text and accounting."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.engines.engine import EngineDelta, EngineFinish, GenerateRequest, Message
from personae_runtime.engines.synthetic import BLOCK_TOKENS, SyntheticEngine
from personae_runtime.errors import ConfigError

WORDS = "It is a remarkably fine day for bicycles, umbrellas and harbours."


def ask(text: str = "hello", **changes: object) -> GenerateRequest:
    values: dict[str, object] = {"request_id": "r", "messages": (Message("user", text),), "max_tokens": 1000}
    return GenerateRequest(**{**values, **changes})  # type: ignore[arg-type]


async def reply(engine: SyntheticEngine, request: GenerateRequest) -> list[EngineDelta]:
    return [delta async for delta in engine.generate(request)]


async def started(**options: object) -> SyntheticEngine:
    engine = SyntheticEngine(**{"profile": "development", "ttft_ms": 0, "itl_ms": 0, **options})  # type: ignore[arg-type]
    await engine.start()
    return engine


async def test_it_refuses_to_start_outside_development() -> None:
    with pytest.raises(ConfigError, match="development"):
        await SyntheticEngine(profile="production").start()


@pytest.mark.parametrize("options", [{"jitter": 1.5}, {"text": "  "}])
def test_options_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        SyntheticEngine(profile="development", **options)  # type: ignore[arg-type]


async def test_the_given_text_is_repeated_to_the_number_of_tokens() -> None:
    deltas = await reply(await started(text=WORDS, tokens=100), ask())
    text = "".join(delta.text for delta in deltas)
    assert sum(delta.tokens for delta in deltas) == 100
    assert deltas[-1].finish is EngineFinish.STOP
    assert " ".join([WORDS] * 20).startswith(text)
    assert len(text) > len(WORDS) * 2


async def test_without_pauses_a_delta_holds_at_most_the_given_tokens() -> None:
    deltas = await reply(await started(tokens=21, max_tokens_per_delta=8), ask())
    assert [delta.tokens for delta in deltas] == [8, 8, 5]


async def test_a_late_consumer_gets_all_tokens_that_are_due_in_one_delta() -> None:
    engine = await started(itl_ms=1, tokens=50)
    stream = engine.generate(ask())
    first = await anext(stream)
    loop = asyncio.get_running_loop()
    late = loop.create_future()
    loop.call_later(0.2, late.set_result, None)
    await late
    second = await anext(stream)
    assert first.tokens + second.tokens == 50
    assert second.finish is EngineFinish.STOP


async def test_other_tasks_run_between_the_deltas_of_a_greedy_consumer() -> None:
    engine = await started(tokens=400)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    deltas = await reply(engine, ask())
    task.cancel()
    assert turns >= sum(not delta.more for delta in deltas) - 1


async def test_the_delta_after_one_that_announces_more_comes_without_a_wait() -> None:
    stream = (await started(tokens=400)).generate(ask())
    deltas: list[EngineDelta] = []
    waited: list[bool] = []
    while not deltas or deltas[-1].finish is None:
        step, waits = anext(stream).__await__(), 0
        try:
            while True:
                step.send(None)
                waits += 1
        except StopIteration as done:
            deltas.append(done.value)
            waited.append(waits > 0)
    assert [delta.more for delta in deltas[:-1]] == [not wait for wait in waited[1:]]
    assert 0 < sum(waited) < len(deltas)


async def test_text_depends_on_prompt_and_seed_alone() -> None:
    async def text(engine_seed: int, prompt: str) -> str:
        return "".join(delta.text for delta in await reply(await started(seed=engine_seed, tokens=40), ask(prompt)))

    assert await text(1, "hello") == await text(1, "hello")
    assert await text(1, "hello") != await text(2, "hello")
    assert len({await text(1, f"prompt {number}") for number in range(20)}) > 4


async def test_a_sampling_seed_changes_the_reply_only_when_sampling() -> None:
    engine = await started(tokens=40)

    async def texts(temperature: float) -> set[str]:
        return {
            "".join(delta.text for delta in await reply(engine, ask(seed=seed, temperature=temperature)))
            for seed in range(12)
        }

    assert len(await texts(0)) == 1
    assert len(await texts(0.7)) > 1


async def test_prefix_blocks_are_shared_within_a_salt_only() -> None:
    engine = await started(tokens=1)
    long = "a fine day for a ride along the river " * 20

    async def cached(text: str, salt: str) -> tuple[int, int]:
        last = (await reply(engine, ask(text, cache_salt=salt)))[-1]
        return last.cached_input_tokens, last.input_tokens

    assert (await cached(long, "acme"))[0] == 0
    hit, length = await cached(f"{long} and home", "acme")
    assert length - 3 * BLOCK_TOKENS < hit < length
    assert hit % BLOCK_TOKENS == 0
    assert (await cached(long, "other"))[0] == 0
    assert (await cached(f"now {long}", "acme"))[0] == 0


@given(stop=st.text(alphabet="abcd e", min_size=1, max_size=4), limit=st.integers(1, 60), size=st.integers(1, 9))
async def test_a_stop_string_never_shows_and_nothing_before_it_is_lost(stop: str, limit: int, size: int) -> None:
    text = "a bad cab ate dead bees, a decade abed; ecad dab"
    engine = await started(text=text, tokens=40, max_tokens_per_delta=size)
    whole = "".join(delta.text for delta in await reply(engine, ask(max_tokens=limit)))
    deltas = await reply(engine, ask(max_tokens=limit, stop=(stop,)))
    assert "".join(delta.text for delta in deltas) == whole.split(stop)[0]
    assert sum(delta.tokens for delta in deltas) <= limit
    assert (deltas[-1].finish is EngineFinish.STOP) == (stop in whole or limit >= 40)


async def test_the_stop_string_that_is_complete_first_wins() -> None:
    engine = await started(text="one two three four", tokens=4)
    deltas = await reply(engine, ask(stop=("two three four", "three")))
    assert "".join(delta.text for delta in deltas) == "one two "


@given(jitter=st.floats(0, 1), seed=st.integers())
def test_jitter_keeps_the_clock_in_order_and_near_its_mean(jitter: float, seed: int) -> None:
    engine = SyntheticEngine(profile="development", itl_ms=10, jitter=jitter, tokens=200, seed=seed)
    due = engine._write(0).due
    assert due[0] == 0
    assert all(after >= before for before, after in pairwise(due))
    assert all(after - before <= 0.0200001 for before, after in pairwise(due))
