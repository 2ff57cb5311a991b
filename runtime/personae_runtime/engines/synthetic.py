"""An engine without a model: a seeded clock that hands out a known text.

For load tests of everything around an engine. It refuses to start outside the
development profile, so that no person ever talks to it.
"""

from __future__ import annotations

import asyncio
import random
import re
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass
from zlib import crc32

from personae_runtime.engines.admission import Admission, Ticket
from personae_runtime.engines.engine import (
    EngineCapacity,
    EngineDelta,
    EngineFinish,
    GenerateRequest,
    Message,
    refuse_logprobs,
)
from personae_runtime.errors import ConfigError, EngineDead, InvalidArgument

CHARS_PER_TOKEN = 4
"""Rule of thumb for English; it makes the estimate of `input_tokens` and `count_tokens`."""
BLOCK_TOKENS = 16
"""Tokens of one block of the prefix cache, vLLM's default block size on GPUs."""
CACHE_BLOCKS = 1 << 15
"""Blocks that the prefix cache holds before the least recently used go."""
_DELTAS_IN_A_ROW = 8
"""Deltas that are handed out without a wait, as from a queue that has filled."""
_VARIANTS = 16
"""Different replies an engine knows; a prompt always gets the same one."""
_PIECE_CHARS = 6
"""Longest token: words are split as real tokenizers do, so that chunks end within words."""
_WORDS = tuple(
    re.findall(
        r"\w+",
        """
        the a of to and in is it that you for on with as was at be this have from or one by had not but what all
        were when we there can an your which their said if do will each about how up out them then she many some so
        these would other into has more her two like him see time could no make than first been its who now people
        my made over did down only way find use may water long little very after words called just where most know
        morning afternoon evening bicycle harbour kitchen lantern orchard mountain telescope umbrella violin window
        yesterday
        """,
    )
)


@dataclass(frozen=True, slots=True)
class _Script:
    """A reply and its clock: token i is `text[ends[i - 1]:ends[i]]`, due `due[i]` seconds after the start."""

    text: str
    ends: tuple[int, ...]
    due: tuple[float, ...]


class SyntheticEngine:
    """Streams a known text by the clock.

    A delta holds every token that is due when the consumer asks, as vLLM's
    DELTA output does; with `itl_ms=0` and `ttft_ms` over, all are due and a
    delta holds `max_tokens_per_delta`. The prefix cache is a model: blocks of
    16 estimated tokens, chained, per `cache_salt`, least recently used out
    first; it only fills `cached_input_tokens` and makes nothing faster.

    Args:
        profile: must be "development" to start.
        ttft_ms: milliseconds from the moment a request runs to its first token.
        itl_ms: mean milliseconds between tokens.
        jitter: each gap is drawn, by seed, from `itl_ms * (1 ± jitter)`; 0 to 1.
        tokens: tokens of a whole reply.
        text: what to repeat; None draws words by seed.
        seed: of text and clock.
        max_concurrent, max_waiting: see EngineCapacity.
        context_tokens: prompt and reply of one request together.
        max_tokens_per_delta: bound on a delta when `itl_ms` is 0.
        model: name the engine goes by.
    """

    def __init__(
        self,
        *,
        profile: str,
        ttft_ms: float = 20.0,
        itl_ms: float = 10.0,
        jitter: float = 0.0,
        tokens: int = 64,
        text: str | None = None,
        seed: int = 0,
        max_concurrent: int = 1024,
        max_waiting: int = 1024,
        context_tokens: int = 8192,
        max_tokens_per_delta: int = 8,
        model: str = "synthetic",
    ) -> None:
        if not 0 <= jitter <= 1:
            raise ConfigError(f"jitter must be from 0 to 1, not {jitter}; for example 0.2")
        if text is not None and not text.strip():
            raise ConfigError('engine.synthetic_text must hold a word; for example "It is a fine day."')
        self._profile = profile
        self._ttft_s = ttft_ms / 1000
        self._itl_s = itl_ms / 1000
        self._jitter = jitter
        self._tokens = tokens
        self._source = text
        self._seed = seed
        self._context_tokens = context_tokens
        self._max_tokens_per_delta = max_tokens_per_delta
        self._model = model
        self._admission = Admission(max_concurrent, max_waiting)
        self._cache = _PrefixCache(CACHE_BLOCKS)
        self._scripts: dict[int, _Script] = {}
        self._serving = False

    @property
    def model(self) -> str:
        """Name the engine goes by."""
        return self._model

    @property
    def adapters(self) -> Collection[str]:
        """None; a request's is ignored."""
        return ()

    async def start(self) -> None:
        """Write the replies.

        Raises:
            ConfigError: the profile is not "development".
        """
        if self._profile != "development":
            raise ConfigError(
                f'engine.kind "synthetic" runs in the development profile only, and this is {self._profile!r}; '
                'use engine.kind = "llamacpp"'
            )
        for variant in range(_VARIANTS):
            self._scripts[variant] = self._write(variant)
        self._serving = True

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[EngineDelta, None]:
        """See Engine.generate."""
        if not self._serving:
            raise EngineDead("the synthetic engine is not running")
        refuse_logprobs(request, self.model)
        input_tokens = estimate_prompt_tokens(request.messages)
        if input_tokens >= self._context_tokens:
            raise InvalidArgument(
                f"the prompt has about {input_tokens} tokens and the context holds {self._context_tokens}",
                reason="PROMPT_TOO_LONG",
                metadata={"input_tokens": str(input_tokens), "max_context_tokens": str(self._context_tokens)},
            )
        ticket = self._admission.enter(request.request_id, request.priority)
        try:
            await self._admission.turn(ticket)
            cached = 0 if ticket.aborted else self._cache.read(request.cache_salt, request.messages)
            script = self._scripts[self._variant(request)]
            limit = min(request.max_tokens, self._context_tokens - input_tokens)
            tokens, end, finish = _cut(script, request.stop, limit)
            text, ends, due = script.text, script.ends, script.due
            most = tokens if self._itl_s else self._max_tokens_per_delta
            loop = asyncio.get_running_loop()
            start = loop.time() + self._ttft_s
            sent = chars = row = there = 0
            while not ticket.aborted:
                if there < sent + most:
                    there = min(bisect_right(due, loop.time() - start), tokens)
                if there <= sent:
                    await _sleep_until(loop, start + due[sent], ticket)
                    continue
                ready = min(there, sent + most)
                if ready == tokens:
                    yield EngineDelta(text[chars:end], tokens - sent, finish, input_tokens, cached)
                    return
                # A stop string may begin before the last token does.
                upto = min(ends[ready - 1], end)
                row += 1
                more = there > ready and row % _DELTAS_IN_A_ROW != 0
                yield EngineDelta(text[chars:upto], ready - sent, more=more)
                sent, chars = ready, upto
                if not more:
                    # A consumer that never waits must not starve the loop.
                    await asyncio.sleep(0)
            yield EngineDelta("", 0, EngineFinish.ABORT, input_tokens, cached)
        finally:
            self._admission.leave(ticket)

    async def abort(self, request_id: str) -> None:
        """See Engine.abort."""
        ticket = self._admission.abort(request_id)
        if ticket is not None:
            # No model holds the place, so it is free even if the consumer never asks again.
            self._admission.leave(ticket)

    def count_tokens(self, text: str) -> int:
        """An estimate: four characters a token, rounded up."""
        return estimate_tokens(text)

    def capacity(self) -> EngineCapacity:
        """See Engine.capacity."""
        return EngineCapacity(
            max_concurrent=self._admission.max_concurrent,
            running=self._admission.running,
            waiting=self._admission.waiting,
            max_waiting=self._admission.max_waiting,
            max_context_tokens=self._context_tokens,
        )

    async def health(self) -> None:
        """See Engine.health."""
        if not self._serving:
            raise EngineDead("the synthetic engine is not running")

    async def close(self) -> None:
        """See Engine.close."""
        self._serving = False
        self._admission.abort_all()

    def _variant(self, request: GenerateRequest) -> int:
        """The reply to this prompt: the same for the same last message and, when sampling, the same seed."""
        seed = request.seed if request.seed is not None and request.temperature > 0 else 0
        return crc32(request.messages[-1].content.encode(), seed & 0xFFFFFFFF) % _VARIANTS

    def _write(self, variant: int) -> _Script:
        draw = random.Random(f"{self._seed}/{variant}")
        pieces: list[str] = []
        while len(pieces) < self._tokens:
            passage = self._source if self._source is not None else _sentence(draw)
            pieces.extend(_pieces(passage if not pieces else " " + passage))
        del pieces[self._tokens :]
        ends, due, at, length = [], [], 0.0, 0
        for piece in pieces:
            length += len(piece)
            ends.append(length)
            due.append(at)
            at += self._itl_s * draw.uniform(1 - self._jitter, 1 + self._jitter)
        return _Script("".join(pieces), tuple(ends), tuple(due))


async def _sleep_until(loop: asyncio.AbstractEventLoop, when: float, ticket: Ticket) -> None:
    """Sleep until `when` on the loop's clock, or until the ticket is aborted."""
    wake: asyncio.Future[None] = loop.create_future()

    def done() -> None:
        if not wake.done():
            wake.set_result(None)

    ticket.on_abort = done
    timer = loop.call_at(when, done)
    try:
        await wake
    finally:
        ticket.on_abort = None
        timer.cancel()


def _cut(script: _Script, stop: Sequence[str], limit: int) -> tuple[int, int, EngineFinish]:
    """Tokens, characters and finish of a reply that a stop string or the limit ends."""
    tokens = min(limit, len(script.ends))
    finish = EngineFinish.STOP if tokens == len(script.ends) else EngineFinish.LENGTH
    end = script.ends[tokens - 1]
    found = [(at + len(string), at) for string in stop if string and (at := script.text.find(string, 0, end)) >= 0]
    if found:
        # The string that is complete first ends the reply; its own tokens were generated too.
        complete, end = min(found)
        tokens, finish = bisect_left(script.ends, complete) + 1, EngineFinish.STOP
    return tokens, end, finish


def _sentence(draw: random.Random) -> str:
    words = draw.choices(_WORDS, k=draw.randint(5, 14))
    return f"{' '.join(words).capitalize()}."


def _pieces(passage: str) -> tuple[str, ...]:
    """Token texts of a passage: words with the space before them, long ones in pieces."""
    return tuple(
        word[at : at + _PIECE_CHARS]
        for word in re.findall(r"\s*\S+|\s+$", passage)
        for at in range(0, len(word), _PIECE_CHARS)
    )


def estimate_tokens(text: str) -> int:
    """Four characters a token, rounded up."""
    return -(-len(text) // CHARS_PER_TOKEN)


def estimate_prompt_tokens(messages: Sequence[Message]) -> int:
    """The messages' estimate, and four tokens of template for each."""
    return sum(estimate_tokens(message.content) + 4 for message in messages)


class _PrefixCache:
    """Chained blocks of prompts, the least recently used out first."""

    def __init__(self, blocks: int) -> None:
        self._limit = blocks
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def read(self, salt: str | None, messages: Sequence[Message]) -> int:
        """Tokens of whole blocks that were there already; the prompt's blocks are there afterwards.

        At least one token is always computed, as in a real engine.
        """
        prompt = "".join(f"<{message.role}>{message.content}" for message in messages)
        width = BLOCK_TOKENS * CHARS_PER_TOKEN
        found, chain, blocks = 0, hash(salt), self._blocks
        for at in range(0, len(prompt) - width, width):
            chain = hash((chain, prompt[at : at + width]))
            if chain in blocks:
                blocks.move_to_end(chain)
                found += 1
            else:
                blocks[chain] = None
        while len(blocks) > self._limit:
            blocks.popitem(last=False)
        return found * BLOCK_TOKENS
