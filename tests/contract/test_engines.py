"""One suite for every engine: what the turn may rely on, whatever the model."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from personae_runtime.config import default_models_dir
from personae_runtime.engines.engine import Engine, EngineDelta, EngineFinish, GenerateRequest, Message
from personae_runtime.engines.llamacpp import LlamaCppEngine, gguf_file
from personae_runtime.engines.synthetic import SyntheticEngine
from personae_runtime.engines.vllm import VllmEngine
from personae_runtime.errors import EngineDead, EngineOverloaded, InvalidArgument, MissingModel
from tests.contract.conftest import CONTEXT, PARALLEL, VLLM, WAITING, build_vllm, started

MODEL = "smollm2-135m-instruct"
STORY = "Tell me a long story about a bicycle that crosses a mountain in winter."

pytestmark = pytest.mark.asyncio(loop_scope="session")


def synthetic() -> Engine:
    return SyntheticEngine(
        profile="development",
        ttft_ms=2,
        itl_ms=2,
        jitter=0.5,
        tokens=400,
        max_concurrent=PARALLEL,
        max_waiting=WAITING,
        context_tokens=CONTEXT,
    )


def llamacpp() -> Engine:
    models_dir = Path(os.environ.get("PERSONAE_MODELS_DIR") or default_models_dir())
    try:
        gguf_file(MODEL, models_dir)
    except MissingModel as missing:
        (pytest.fail if os.environ.get("PERSONAE_REQUIRE_MODELS") else pytest.skip)(str(missing))
    return LlamaCppEngine(
        file=partial(gguf_file, MODEL, models_dir),
        model=MODEL,
        parallel=PARALLEL,
        max_waiting=WAITING,
        context_tokens=CONTEXT,
    )


def vllm() -> Engine:
    return build_vllm(parallel=PARALLEL, max_waiting=WAITING, context_tokens=CONTEXT)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def synthetic_engine() -> AsyncIterator[Engine]:
    async with started(synthetic()) as engine:
        yield engine


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def llamacpp_engine() -> AsyncIterator[Engine]:
    async with started(llamacpp()) as engine:
        yield engine


MARKS = {"synthetic": (), "llamacpp": (pytest.mark.model,), "vllm": VLLM}


@pytest.fixture(
    scope="module", params=[pytest.param(f"{name}_engine", id=name, marks=marks) for name, marks in MARKS.items()]
)
def engine(request: pytest.FixtureRequest) -> Engine:
    started_engine: Engine = request.getfixturevalue(request.param)
    return started_engine


_numbers = iter(range(1_000_000))


def ask(
    text: str = "What is a derailleur?",
    *,
    request_id: str | None = None,
    max_tokens: int = 12,
    stop: tuple[str, ...] = (),
    priority: int = 0,
    system: str = "You work in a bike shop.",
) -> GenerateRequest:
    return GenerateRequest(
        request_id=request_id or f"r{next(_numbers)}",
        messages=(Message("system", system), Message("user", text)),
        max_tokens=max_tokens,
        temperature=0,
        stop=stop,
        priority=priority,
    )


async def collect(stream: AsyncIterator[EngineDelta]) -> list[EngineDelta]:
    return [delta async for delta in stream]


def text_of(deltas: list[EngineDelta]) -> str:
    return "".join(delta.text for delta in deltas)


class Occupied:
    """Requests that hold every running place, each having sent something already."""

    def __init__(self, requests: list[GenerateRequest], streams: list[AsyncIterator[EngineDelta]]) -> None:
        self.requests = requests
        self.streams = streams

    @classmethod
    async def all(cls, engine: Engine) -> Occupied:
        requests = [ask(STORY, max_tokens=400) for _ in range(engine.capacity().max_concurrent)]
        streams = [engine.generate(request) for request in requests]
        await asyncio.gather(*(anext(stream) for stream in streams))
        return cls(requests, streams)

    async def release(self, engine: Engine) -> None:
        for request in self.requests:
            await engine.abort(request.request_id)
        await asyncio.gather(*(collect(stream) for stream in self.streams))


async def until_waiting(engine: Engine, count: int) -> None:
    async with asyncio.timeout(30):
        while engine.capacity().waiting != count:  # noqa: ASYNC110 - the protocol has no event for it
            await asyncio.sleep(0)


async def test_a_reply_is_its_deltas_joined_and_ends_once(engine: Engine) -> None:
    deltas = await collect(engine.generate(ask(max_tokens=20)))
    assert [delta.finish for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish is not None
    assert text_of(deltas).strip()


async def test_token_counts_sum_to_the_limit_when_the_limit_ends_the_reply(engine: Engine) -> None:
    deltas = await collect(engine.generate(ask(STORY, max_tokens=15)))
    assert deltas[-1].finish is EngineFinish.LENGTH
    assert sum(delta.tokens for delta in deltas) == 15


async def test_the_last_delta_tells_the_prompt_length_and_what_was_cached(engine: Engine) -> None:
    request = ask("Which tyres fit a gravel bike? " * 8)
    first = (await collect(engine.generate(request)))[-1]
    again = (await collect(engine.generate(ask(request.messages[1].content))))[-1]
    assert first.input_tokens == again.input_tokens > 40
    assert 0 < again.cached_input_tokens < again.input_tokens


async def test_a_stop_string_ends_the_reply_before_it(engine: Engine) -> None:
    await collect(engine.generate(ask(STORY, max_tokens=24)))
    whole = text_of(await collect(engine.generate(ask(STORY, max_tokens=24))))
    stop = whole[10:14]
    deltas = await collect(engine.generate(ask(STORY, max_tokens=24, stop=("never said", stop))))
    assert deltas[-1].finish is EngineFinish.STOP
    assert text_of(deltas) == whole[: whole.index(stop)]


async def test_the_same_prompt_read_the_same_way_gets_the_same_greedy_reply(engine: Engine) -> None:
    replies = [text_of(await collect(engine.generate(ask("Name three kinds of brakes.")))) for _ in range(3)]
    # The first reading may be split into other batches than a cached one, and rounds differently.
    assert replies[1] == replies[2]


async def test_abort_ends_the_stream_with_abort(engine: Engine) -> None:
    request = ask(STORY, max_tokens=400)
    stream = engine.generate(request)
    first = await anext(stream)
    await engine.abort(request.request_id)
    rest = await collect(stream)
    assert first.finish is None
    assert rest[-1].finish is EngineFinish.ABORT
    assert [delta.finish for delta in rest[:-1]] == [None] * (len(rest) - 1)


async def test_aborting_an_unknown_request_does_nothing(engine: Engine) -> None:
    await engine.abort("nobody")


async def test_an_aborted_request_gives_its_place_to_one_that_waits(engine: Engine) -> None:
    occupied = await Occupied.all(engine)
    waiting = asyncio.create_task(collect(engine.generate(ask(max_tokens=3))))
    await until_waiting(engine, 1)
    await engine.abort(occupied.requests[0].request_id)
    assert (await waiting)[-1].finish is not None
    await occupied.release(engine)


async def test_closing_the_iterator_aborts(engine: Engine) -> None:
    occupied = await Occupied.all(engine)
    waiting = asyncio.create_task(collect(engine.generate(ask(max_tokens=3))))
    await until_waiting(engine, 1)
    await occupied.streams[0].aclose()  # type: ignore[attr-defined]
    assert (await waiting)[-1].finish is not None
    await occupied.release(engine)


async def test_a_cancelled_consumer_that_waits_leaves_the_queue(engine: Engine) -> None:
    occupied = await Occupied.all(engine)
    waiting = asyncio.create_task(collect(engine.generate(ask())))
    await until_waiting(engine, 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert engine.capacity().waiting == 0
    await occupied.release(engine)


async def test_aborting_one_that_waits_ends_it_without_a_word(engine: Engine) -> None:
    occupied = await Occupied.all(engine)
    waiting = asyncio.create_task(collect(engine.generate(ask(request_id="waits"))))
    await until_waiting(engine, 1)
    await engine.abort("waits")
    deltas = await waiting
    assert [(delta.text, delta.tokens, delta.finish) for delta in deltas] == [("", 0, EngineFinish.ABORT)]
    assert engine.capacity().waiting == 0
    await occupied.release(engine)


async def test_a_request_id_in_flight_is_refused_and_free_again_afterwards(engine: Engine) -> None:
    stream = engine.generate(ask(STORY, request_id="twice", max_tokens=400))
    await anext(stream)
    with pytest.raises(InvalidArgument, match="in flight"):
        await collect(engine.generate(ask(request_id="twice")))
    await engine.abort("twice")
    assert (await collect(stream))[-1].finish is EngineFinish.ABORT
    assert (await collect(engine.generate(ask(request_id="twice", max_tokens=2))))[-1].finish is not None


async def test_a_prompt_longer_than_the_context_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await collect(engine.generate(ask("wheel spoke " * CONTEXT)))
    assert caught.value.reason == "PROMPT_TOO_LONG"


async def test_beyond_the_queue_requests_are_refused_and_nothing_is_queued(engine: Engine) -> None:
    occupied = await Occupied.all(engine)
    waiting = [asyncio.create_task(collect(engine.generate(ask(max_tokens=2)))) for _ in range(WAITING)]
    await until_waiting(engine, WAITING)
    before = engine.capacity()
    with pytest.raises(EngineOverloaded) as caught:
        await collect(engine.generate(ask()))
    assert engine.capacity() == before
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s > 0
    await occupied.release(engine)
    for deltas in await asyncio.gather(*waiting):
        assert deltas[-1].finish is EngineFinish.LENGTH


async def test_of_those_that_wait_the_most_urgent_runs_first(engine: Engine) -> None:
    occupied = await Occupied.all(engine)
    order: list[str] = []

    async def run(name: str, priority: int) -> None:
        async for _ in engine.generate(ask(STORY, request_id=name, max_tokens=6, priority=priority)):
            if name not in order:
                order.append(name)

    patient = asyncio.create_task(run("patient", 5))
    await until_waiting(engine, 1)
    urgent = asyncio.create_task(run("urgent", -1))
    await until_waiting(engine, 2)
    # One place at a time becomes free, for the other stays occupied.
    await engine.abort(occupied.requests[0].request_id)
    await asyncio.gather(patient, urgent)
    assert order == ["urgent", "patient"]
    await occupied.release(engine)


async def test_log_probabilities_are_told_or_refused(engine: Engine) -> None:
    request = replace(ask(), logprobs=3)
    # What a test before this aborted may be ending still.
    before = engine.capacity().running
    if isinstance(engine, VllmEngine):
        deltas = await collect(engine.generate(request))
        assert all(len(delta.logprobs) == delta.tokens for delta in deltas)
    else:
        for refused in (request, replace(ask(), template_arguments={"think": False})):
            with pytest.raises(InvalidArgument, match="vllm") as caught:
                await collect(engine.generate(refused))
            assert caught.value.reason == "LOGPROBS_UNSUPPORTED"
        assert engine.capacity().running <= before


async def test_concurrent_streams_do_not_mix(engine: Engine) -> None:
    questions = ["What is a saddle?", "Why do brakes squeal?"]
    for question in questions:
        await collect(engine.generate(ask(question)))
    alone = [text_of(await collect(engine.generate(ask(question, max_tokens=8)))) for question in questions]
    together = await asyncio.gather(*(collect(engine.generate(ask(question, max_tokens=8))) for question in questions))
    assert alone[0] != alone[1]
    # Batched together a model may round differently after some tokens; the first word tells whose reply it is.
    assert [text_of(deltas).split()[0] for deltas in together] == [reply.split()[0] for reply in alone]


async def test_no_delta_ends_within_a_character(engine: Engine) -> None:
    deltas = await collect(engine.generate(ask("Repeat after me: 🙂🎉🚲 日本語 🙂🎉🚲 日本語", max_tokens=30)))
    for delta in deltas:
        delta.text.encode("utf-8")  # a lone surrogate would fail
        assert "\N{REPLACEMENT CHARACTER}" not in delta.text


async def test_count_tokens_grows_with_the_text(engine: Engine) -> None:
    assert engine.count_tokens("") == 0
    assert 0 < engine.count_tokens("bicycle") < engine.count_tokens("bicycle " * 50)


async def test_capacity_is_free_again_after_every_reply(engine: Engine) -> None:
    await asyncio.gather(*(collect(engine.generate(ask(max_tokens=4))) for _ in range(PARALLEL + WAITING)))
    capacity = engine.capacity()
    assert (capacity.running, capacity.waiting) == (0, 0)
    assert (capacity.max_concurrent, capacity.max_waiting, capacity.max_context_tokens) == (PARALLEL, WAITING, CONTEXT)


@pytest.mark.parametrize(
    "build", [pytest.param(build, marks=MARKS[build.__name__]) for build in (synthetic, llamacpp, vllm)]
)
async def test_an_engine_serves_from_start_to_close(build: Callable[[], Engine]) -> None:
    engine = build()
    with pytest.raises(EngineDead):
        await engine.health()
    await engine.start()
    await engine.health()
    occupied = await Occupied.all(engine)
    waiting = asyncio.create_task(collect(engine.generate(ask())))
    await until_waiting(engine, 1)

    async def last(stream: AsyncIterator[EngineDelta]) -> EngineDelta:
        return (await collect(stream))[-1]

    ends: list[Awaitable[EngineDelta]] = [last(stream) for stream in occupied.streams]
    *running, _ = await asyncio.gather(*ends, engine.close())
    assert [delta.finish for delta in running if delta] == [EngineFinish.ABORT] * PARALLEL
    assert (await waiting)[-1].finish is EngineFinish.ABORT
    await engine.close()
    with pytest.raises(EngineDead):
        await engine.health()
    with pytest.raises(EngineDead):
        await collect(engine.generate(ask()))


@pytest.mark.model
async def test_llama_cpp_keeps_to_a_json_schema(llamacpp_engine: Engine) -> None:
    schema = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
    request = replace(ask("Tell me a story.", max_tokens=60), json_schema=json.dumps(schema))
    told = json.loads(text_of(await collect(llamacpp_engine.generate(request))))
    assert told["colour"] in ("red", "blue")
