"""llama.cpp in this process, through xllamacpp.

llama.cpp batches up to `parallel` requests on its own threads. A call into it
blocks its thread and hands every chunk to a callback, so each running request
has a thread here whose callback does next to nothing: it appends the chunk and
wakes the event loop if nobody has. Parsing happens on the loop.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

import orjson

from personae_runtime.engines import models
from personae_runtime.engines.admission import Admission, Ticket
from personae_runtime.engines.engine import (
    EngineCapacity,
    EngineDelta,
    EngineFinish,
    GenerateRequest,
    refuse_logprobs,
)
from personae_runtime.engines.gguf import Vocabulary, read_vocabulary, upper_estimate
from personae_runtime.errors import ConfigError, EngineDead, InvalidArgument, PersonaeError

BATCH_TOKENS = 64
"""Tokens that one step reads, prompts and replies together.

While a step runs, nobody gets a token. On two AVX2 cores a prompt is read at
about 130 tokens a second whatever the batch, so llama.cpp's own 2048 stopped
every stream for over 4 s when two 230-token prompts arrived; with 64 it is half
a second, at the same throughput.
"""
IDLE_THREADS = "passive"
"""How llama.cpp's threads wait for each other, some hundred times a token: asleep.

By default they spin, and then any other work on the machine, such as the gateway
in the same process, takes a core from a thread that the others burn theirs
waiting for. One busy process beside it on two cores: 1 to 5 tokens a second
spinning, 18 to 38 asleep. The price is paid on an idle machine, by a single
stream: 37 to 39 tokens a second instead of 57. Reading prompts is as fast. Set
OMP_WAIT_POLICY=active where the engine has its cores to itself.
"""
PROMPT_CACHE_MIB = 1024
"""RAM for prompts whose slot went to another one; SmolLM2-135M needs 23 KB a token."""
STALL_S = 120.0
"""A running engine from which nothing came for so long has failed."""


class LlamaCppEngine:
    """A GGUF model on the CPU.

    Every request in flight owns one of `parallel` slots, each with a context of
    its own, so `parallel * context_tokens` tokens of KV cache are allocated at
    start (23 KB each for SmolLM2-135M in f16: 16 slots of 2048 tokens take
    740 MiB). A new prompt goes to the slot that shares its longest beginning and
    only the rest is read. The cache is shared by everyone who talks to this
    process: `cache_salt` has no effect, only exactly equal beginnings are
    reused, and they show in nothing but the time to the first token.

    An abort reaches llama.cpp with the next token; during the reading of a long
    prompt that takes until it is read, and the slot is busy until then.

    Args:
        file: GGUF file.
        model: name the engine goes by.
        threads: CPU threads; 0 means all cores.
        parallel: requests generated at once.
        max_waiting: requests queued beyond that.
        context_tokens: prompt and reply of one request together.
    """

    def __init__(
        self,
        *,
        file: Callable[[], Path],
        model: str,
        threads: int = 0,
        parallel: int = 16,
        max_waiting: int = 64,
        context_tokens: int = 2048,
    ) -> None:
        self._file = file
        self._model = model
        self._threads = threads
        self._parallel = parallel
        self._context_tokens = context_tokens
        self._admission = Admission(parallel, max_waiting)
        self._executor: ThreadPoolExecutor | None = None
        self._server: Any = None
        self._vocabulary: Vocabulary | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inbox: deque[tuple[_Run, str | None]] = deque()
        self._woken = False
        self._last_sign = 0.0
        self._closed = False

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._model

    @property
    def adapters(self) -> Collection[str]:
        """None."""
        return ()

    async def start(self) -> None:
        """Load the model and read one short prompt, which touches all buffers (about 3 s in all).

        Raises:
            MissingModel: the file is not there.
            ConfigError: xllamacpp is not installed, or can't load the file.
        """
        if self._closed:
            raise EngineDead("the engine was closed")
        if self._server is not None:
            return
        self._loop = asyncio.get_running_loop()
        self._server, self._vocabulary = await asyncio.to_thread(self._load)
        self._executor = ThreadPoolExecutor(self._parallel, thread_name_prefix="llamacpp")
        self._last_sign = monotonic()

    def _load(self) -> tuple[Any, Vocabulary]:
        file = self._file()
        # Read by the OpenMP library when it loads; what the host's environment says goes first.
        os.environ.setdefault("OMP_WAIT_POLICY", IDLE_THREADS)
        try:
            import xllamacpp
        except ImportError as error:
            raise ConfigError('engine.kind "llamacpp" needs xllamacpp: pip install "personae[embedded]"') from error
        vocabulary = read_vocabulary(file)
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_parallel = self._parallel
        params.n_ctx = self._parallel * self._context_tokens
        params.n_batch = params.n_ubatch = max(BATCH_TOKENS, self._parallel)
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self._threads or _cores()
        params.cache_ram_mib = PROMPT_CACHE_MIB
        params.verbosity = -1
        # The library serves HTTP on a free loopback port whether asked to or not: nobody gets the key.
        params.api_keys = [secrets.token_urlsafe(32)]
        params.endpoint_slots = False
        params.ui = False
        params.n_threads_http = 1
        try:
            server = xllamacpp.Server(params)
            # The first prompt is read three times as slowly as those after it.
            warm_up = {"messages": [{"role": "user", "content": "warm up " * 16}], "max_tokens": 1}
            server.handle_chat_completions(orjson.dumps(warm_up).decode(), lambda chunk: False)
        except RuntimeError as error:
            raise ConfigError(f"llama.cpp can't load {file}: {error}") from error
        return server, vocabulary

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[EngineDelta, None]:
        """See Engine.generate."""
        await self.health()
        refuse_logprobs(request, self.model)
        if request.adapter is not None:
            raise InvalidArgument(
                f"llama.cpp has no adapter {request.adapter!r}; adapters need engine.kind vllm",
                reason="UNKNOWN_ADAPTER",
            )
        body = self._body(request)
        ticket = self._admission.enter(request.request_id, request.priority)
        run: _Run | None = None
        try:
            await self._admission.turn(ticket)
            if ticket.aborted:
                yield EngineDelta("", 0, EngineFinish.ABORT)
                return
            run = self._begin(ticket, body)
            while True:
                delta = await run.next()
                yield delta
                if delta.finish is not None:
                    return
        finally:
            if run is None:
                self._admission.leave(ticket)
            else:
                # The place is free only when llama.cpp has let go of the slot; see `_begin`.
                run.stop = True
                self._admission.forget(ticket)

    def _body(self, request: GenerateRequest) -> str:
        assert self._vocabulary is not None
        neutralise = self._vocabulary.neutralise
        body: dict[str, Any] = {
            "messages": [{"role": item.role, "content": neutralise(item.content)} for item in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.stop:
            body["stop"] = list(request.stop)
        if request.json_schema is not None:
            schema = {"schema": orjson.loads(request.json_schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if request.seed is not None:
            body["seed"] = request.seed & 0xFFFFFFFF
        return orjson.dumps(body).decode()

    def _begin(self, ticket: Ticket, body: str) -> _Run:
        assert self._executor is not None
        assert self._loop is not None
        run = _Run()
        run.settle = lambda: self._admission.leave(ticket)
        ticket.on_abort = run.abort
        if self._admission.running == 1:
            self._last_sign = monotonic()
        self._executor.submit(self._call, run, body).add_done_callback(
            # Runs on the engine's thread; the loop may be gone when the host has died already.
            lambda _: self._post(run, None)
        )
        return run

    # The next two run on the engine's threads: a microsecond of Python for a token, for it needs the GIL.

    def _call(self, run: _Run, body: str) -> None:
        def on_chunk(chunk: str) -> bool:
            return run.stop or self._post(run, chunk)

        try:
            self._server.handle_chat_completions(body, on_chunk)
        except Exception as error:
            run.failure = error

    def _post(self, run: _Run, chunk: str | None) -> bool:
        """Hand a chunk, or None for the end, to the loop; True if there is no loop any more."""
        self._inbox.append((run, chunk))
        if not self._woken:
            self._woken = True
            try:
                assert self._loop is not None
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                return True
        return False

    def _deliver(self) -> None:
        # Cleared before the inbox is emptied, so that what comes meanwhile wakes the loop again.
        self._woken = False
        self._last_sign = monotonic()
        inbox = self._inbox
        while inbox:
            run, chunk = inbox.popleft()
            run.put(chunk)

    async def abort(self, request_id: str) -> None:
        """See Engine.abort."""
        self._admission.abort(request_id)

    def count_tokens(self, text: str) -> int:
        """Exact once started, from the vocabulary in the model file (see `gguf`); before that an upper estimate."""
        return self._vocabulary.count(text) if self._vocabulary is not None else upper_estimate(text)

    def capacity(self) -> EngineCapacity:
        """See Engine.capacity."""
        return EngineCapacity(
            max_concurrent=self._parallel,
            running=self._admission.running,
            waiting=self._admission.waiting,
            max_waiting=self._admission.max_waiting,
            max_context_tokens=self._context_tokens,
        )

    async def health(self) -> None:
        """See Engine.health."""
        if self._closed or self._server is None:
            raise EngineDead("the llama.cpp engine is not running")
        silence = monotonic() - self._last_sign
        if self._admission.running and silence > STALL_S:
            raise EngineDead(f"llama.cpp has not answered for {silence:.0f} s")

    async def close(self) -> None:
        """See Engine.close."""
        if self._closed:
            return
        self._closed = True
        self._admission.abort_all()
        executor, server, self._executor, self._server = self._executor, self._server, None, None
        if executor is not None:
            await asyncio.to_thread(executor.shutdown)
        # The last reference: frees the model.
        del server


class _Run:
    """One call into llama.cpp, seen from the loop."""

    __slots__ = ("_chunks", "_ended", "_sent", "_waiter", "aborted", "failure", "settle", "stop")

    def __init__(self) -> None:
        self.stop = False
        """Read by the engine's thread at every token."""
        self.aborted = False
        self.failure: Exception | None = None
        self.settle: Callable[[], None] = lambda: None
        self._chunks: deque[str] = deque()
        self._ended = False
        self._sent = 0
        self._waiter: asyncio.Future[None] | None = None

    def put(self, chunk: str | None) -> None:
        """Take a chunk, or None at the end of the call."""
        if chunk is None:
            self._ended = True
            self.settle()
        else:
            self._chunks.append(chunk)
        self._wake()

    def abort(self) -> None:
        """End the stream now, and the call with its next token."""
        self.stop = self.aborted = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> EngineDelta:
        """Everything that came since, as one delta."""
        text: list[str] = []
        tokens = 0
        finish: EngineFinish | None = None
        usage: dict[str, Any] | None = None
        while True:
            if self.aborted:
                return EngineDelta("", 0, EngineFinish.ABORT)
            while self._chunks:
                chunk = orjson.loads(self._chunks.popleft())
                if "error" in chunk:
                    raise _error(chunk["error"])
                choices = chunk.get("choices")
                if choices:
                    piece = choices[0]["delta"].get("content")
                    if piece:
                        text.append(piece)
                        tokens += 1
                    reason = choices[0].get("finish_reason")
                    if reason is not None:
                        finish = EngineFinish.LENGTH if reason == "length" else EngineFinish.STOP
                usage = chunk.get("usage") or usage
            # The call ends right after the usage: then the slot is free before anyone hears of the end.
            if usage is not None and self._ended:
                return EngineDelta(
                    "".join(text),
                    # With tokens that had no text of their own: parts of characters, the end token.
                    max(0, usage["completion_tokens"] - self._sent),
                    finish or EngineFinish.STOP,
                    usage["prompt_tokens"],
                    (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
                )
            # What came with the finish goes out with the usage, which is on its way.
            if text and finish is None and usage is None:
                self._sent += tokens
                return EngineDelta("".join(text), tokens)
            if self._ended:
                raise EngineDead(f"llama.cpp ended a request early: {self.failure or 'no usage came'}")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None


def _error(error: dict[str, Any]) -> PersonaeError:
    """llama.cpp's error object as ours."""
    if error.get("type") == "exceed_context_size_error":
        sizes = {"input_tokens": error.get("n_prompt_tokens"), "max_context_tokens": error.get("n_ctx")}
        return InvalidArgument(
            f"the prompt has {sizes['input_tokens']} tokens and the context holds {sizes['max_context_tokens']}",
            reason="PROMPT_TOO_LONG",
            metadata={key: str(value) for key, value in sizes.items()},
        )
    # The message may quote the prompt, so only its kind leaves.
    kind = re.sub(r"[^a-z_]", "", str(error.get("type", "unknown")))
    if error.get("code") == 400:
        return InvalidArgument(f"llama.cpp refused the request: {kind}", reason="ENGINE_REJECTED")
    return EngineDead(f"llama.cpp failed: {kind}")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gguf_file(model: str, models_dir: Path) -> Path:
    """The GGUF file of a model in the models folder.

    Raises:
        NotFound: no such model.
        ConfigError: the model is not one that llama.cpp runs.
        MissingModel: the file is not there.
    """
    return models.path(model, models.gguf(models.spec(model)).name, models_dir)
