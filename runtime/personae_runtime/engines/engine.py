"""The engine protocol: what the turn needs of a model, and no more.

An engine turns chat messages into a stream of text deltas. It owns the chat
template, the tokenizer and batching. vLLM's `AsyncLLM`, llama.cpp and the
synthetic clock all fit behind it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from personae_runtime.errors import InvalidArgument

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message; the engine renders it with its model's template."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One generation.

    Attributes:
        request_id: unique among the requests in flight; names it for `abort`.
        messages: at least one; the last is the person's.
        max_tokens: output tokens, at least 1.
        temperature: 0 is greedy.
        seed: of the sampler; None leaves it to the engine.
        stop: strings that end the reply; they are not part of it.
        priority: lower runs first, as in vLLM's `priority` scheduling.
        cache_salt: separates prefix caches of different trust domains; engines
            without a shared cache ignore it.
        adapter: LoRA adapter by name; None is the base model.
        affinity: names of revision and session; an engine of several replicas sends what
            shares them to the same one, whose prefix cache knows the prompt.
        trace_headers: W3C trace context for engines that trace.
        json_schema: JSON Schema that the reply keeps to, as JSON; an engine that
            can't constrain its sampling ignores it, so replies are checked all the same.
        logprobs: of how many tokens, the likeliest, each place of the reply tells the
            log-probability; an engine that can't tell refuses more than 0.
        template_arguments: further variables of the model's chat template; only
            engines that tell log-probabilities take them.
        watermark: these words go to a person: an engine that is set to mark text marks
            them, others ignore it.
    """

    request_id: str
    messages: Sequence[Message]
    max_tokens: int
    temperature: float = 0.7
    seed: int | None = None
    stop: tuple[str, ...] = ()
    priority: int = 0
    cache_salt: str | None = None
    adapter: str | None = None
    affinity: tuple[str, str] = ("", "")
    trace_headers: dict[str, str] = field(default_factory=dict)
    json_schema: str | None = None
    logprobs: int = 0
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    watermark: bool = False


def refuse_logprobs(request: GenerateRequest, model: str) -> None:
    """For engines that can't tell log-probabilities.

    Raises:
        InvalidArgument: the request asks for them, or for what goes with them (reason LOGPROBS_UNSUPPORTED).
    """
    if request.logprobs or request.template_arguments:
        raise InvalidArgument(
            f"{model} is served by an engine that tells no log-probabilities; they need engine.kind vllm",
            reason="LOGPROBS_UNSUPPORTED",
            metadata={"model": model},
        )


class EngineFinish(StrEnum):
    """Why a stream ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


class Token(NamedTuple):
    """A token of a reply, and what could have stood there.

    Attributes:
        text: of the token that was drawn.
        likeliest: text and log-probability of the likeliest tokens, and of the drawn
            one; two tokens may have the same text.
    """

    text: str
    likeliest: tuple[tuple[str, float], ...]


class EngineDelta(NamedTuple):  # made for every few tokens: at a third of a frozen dataclass's cost
    """The next piece of a reply.

    Attributes:
        text: may be empty (a token that completes no character yet), and may
            hold several tokens.
        tokens: output tokens in this delta.
        finish: set on the last delta, and only there.
        input_tokens: prompt length; set on the last delta.
        cached_input_tokens: prompt tokens served from the prefix cache; last delta.
        more: the next delta is there already and will come without a wait, so
            that both can be judged together.
        logprobs: one for each token of this delta, if the request asked for them.
    """

    text: str
    tokens: int
    finish: EngineFinish | None = None
    input_tokens: int = 0
    cached_input_tokens: int = 0
    more: bool = False
    logprobs: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineCapacity:
    """What the engine can take.

    Attributes:
        max_concurrent: requests generated at once; 0 while the model is not loaded anywhere.
        running: of those, in use.
        waiting: admitted and not yet running.
        max_waiting: bound on `waiting`; beyond it `generate` raises EngineOverloaded.
        max_context_tokens: prompt and reply of one request together.
        kv_use: share of the KV cache in use, 0 to 1; 0 where the engine can't tell.
    """

    max_concurrent: int
    running: int
    waiting: int
    max_waiting: int
    max_context_tokens: int
    kv_use: float = 0.0


@runtime_checkable
class Engine(Protocol):
    """A model that streams.

    Every engine passes `tests/contract/test_engines.py`.
    """

    @property
    def model(self) -> str:
        """Name of the model, as personas name it."""
        ...

    @property
    def adapters(self) -> Collection[str]:
        """Names of the LoRA adapters that a request may ask for."""
        ...

    async def start(self) -> None:
        """Load the model. Returns when requests can be served.

        Raises:
            MissingModel: a file is not there.
            ConfigError: the engine can't run in this profile or with these options.
        """
        ...

    def generate(self, request: GenerateRequest) -> AsyncGenerator[EngineDelta, None]:
        """Stream one reply; the last delta, and only it, has `finish`.

        Closing the iterator (`aclose`) aborts the request.

        Raises (at the first `__anext__`, or later):
            EngineOverloaded: no place; nothing was queued.
            InvalidArgument: the prompt is longer than the context (reason
                PROMPT_TOO_LONG), the request_id is in flight, or the engine tells no
                log-probabilities and is asked for them (reason LOGPROBS_UNSUPPORTED).
            EngineDead: the engine failed.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """Stop a request: its stream ends with `finish=ABORT`. Unknown ids are ignored."""
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens of `text`, exact or an upper estimate, without special tokens."""
        ...

    def capacity(self) -> EngineCapacity:
        """Current figures; cheap enough to call for every turn."""
        ...

    async def health(self) -> None:
        """Return if the engine can serve.

        Raises:
            EngineDead: it can't.
        """
        ...

    async def close(self) -> None:
        """Abort what runs and free the model. Safe to call twice."""
        ...
