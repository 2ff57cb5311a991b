"""What a cluster's configuration needs, against what the cluster has: before anything starts.

Arithmetic only; whatever has to be read or asked is handed in. The sums for vLLM
follow its own placement: layers are split over pipeline stages, heads and
matrices over tensor-parallel workers, and each data-parallel rank is a copy.
Activations and the memory of the CUDA runtime are estimates, and said to be:
vLLM measures them when it starts and fails there if they are larger.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from personae_runtime.config import ModelDeploymentSettings, Settings, is_loopback
from personae_runtime.engines.shape import AdapterShape, ModelShape
from personae_runtime.engines.vllm import CPU_BATCH_TOKENS, CPU_BLOCK_SIZE, CPU_KV_CACHE_GIB, LORA_RANKS

GIB: Final = 1 << 30

GPU_MEMORY_GIB: Final[Mapping[str, float]] = {
    "t4": 15.0,
    "l4": 22.5,
    "a10g": 22.5,
    "l40s": 45.0,
    "a100-40g": 40.0,
    "a100-80g": 80.0,
    "h100": 79.6,
    "h200": 140.4,
    "b200": 179.0,
}
"""Memory of GPUs by name, GiB: what the driver reports as total, which is less than what the name promises."""

CUDA_RUNTIME_GIB: Final = 1.0
"""Estimate of what a GPU worker takes beside weights, KV and activations: CUDA context, libraries, NCCL's buffers."""
GRAPHS_GIB: Final = 1.0
"""Estimate of captured CUDA graphs, unless `enforce_eager`."""
GPU_BATCH_TOKENS: Final = 8192
"""Tokens of one step, assumed where `batch_tokens` leaves it to vLLM: its default on large GPUs; others have less."""
CPU_PROCESS_GIB: Final = 1.5
"""Estimate of a CPU engine's process and its libraries beside weights, KV and activations."""
GPU_BLOCK_SIZE: Final = 16
"""Tokens of a KV block on GPUs: vLLM's default."""
OTHER_CONNECTIONS: Final = 2
"""PostgreSQL connections of a gateway outside its pool: the writer's, and the one that listens for revocations."""
SPARE_CONNECTIONS: Final = 5
"""Left for migrations and for people."""


@dataclass(frozen=True, slots=True)
class Node:
    """One machine of the cluster.

    Attributes:
        cpus: processors that Ray may give away.
        memory_gib: of the machine; None if unknown.
        gpus: GPUs.
        gpu_memory_gib: of each GPU; 0 if there are none, None if unknown.
    """

    cpus: float
    memory_gib: float | None = None
    gpus: int = 0
    gpu_memory_gib: float | None = 0.0


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the cluster has, and who says so."""

    source: str
    nodes: tuple[Node, ...]

    @property
    def gpus(self) -> int:
        """All GPUs."""
        return sum(node.gpus for node in self.nodes)

    @property
    def cpus(self) -> float:
        """All processors."""
        return sum(node.cpus for node in self.nodes)


@dataclass(frozen=True, slots=True)
class PostgresLimits:
    """What PostgreSQL allows: `max_connections`, and how many of them are kept for superusers."""

    max_connections: int
    reserved: int


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not fit, and what to change.

    Attributes:
        subject: a model's name, or a setting.
        severity: an `error` keeps the cluster from running as configured; a
            `warning` does not.
    """

    subject: str
    problem: str
    change: str
    severity: Literal["error", "warning"] = "error"


@dataclass(frozen=True, slots=True)
class ModelFit:
    """What one model needs. Bytes are per worker: a GPU, or a CPU engine's process.

    Attributes:
        workers: of one replica: tensor × pipeline × data parallel.
        kv_bytes_per_token: in this worker's share of heads and layers.
        kv_bytes: for the sessions of one rank at full context.
        sessions: generations at once, of one rank.
        budget_bytes: what a worker may use; None if unknown.
        sessions_that_fit: beside everything else in the budget, or in
            `kv_cache_gib`; None if unknown.
        replicas: at most.
    """

    model: str
    engine: str
    device: Literal["GPU", "CPU"]
    parameters: int
    counted: bool
    workers: int
    weight_bytes: int
    kv_bytes_per_token: int
    kv_bytes: int
    activation_bytes: int
    other_bytes: int
    sessions: int
    context_tokens: int
    budget_bytes: int | None
    sessions_that_fit: int | None
    replicas: int

    @property
    def needed_bytes(self) -> int:
        """Everything together."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes + self.other_bytes

    @property
    def gpus(self) -> int:
        """Of all replicas."""
        return self.workers * self.replicas if self.device == "GPU" else 0


@dataclass(frozen=True, slots=True)
class Report:
    """The whole answer."""

    hardware: Hardware
    models: tuple[ModelFit, ...]
    cpus_needed: float
    gpus_needed: float
    connections_needed: int
    connections_allowed: int | None
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What keeps the cluster from running as configured."""
        return tuple(finding for finding in self.findings if finding.severity == "error")


@dataclass(slots=True)
class _Demand:
    """What one placement takes of one node."""

    subject: str
    cpus: float = 0.0
    memory_gib: float = 0.0
    gpus: float = 0.0


@dataclass(slots=True)
class _Findings:
    items: list[Finding] = field(default_factory=list)

    def error(self, subject: str, problem: str, change: str) -> None:
        self.items.append(Finding(subject, problem, change))

    def warning(self, subject: str, problem: str, change: str) -> None:
        self.items.append(Finding(subject, problem, change, "warning"))


def check(
    settings: Settings,
    hardware: Hardware,
    *,
    shapes: Mapping[str, ModelShape],
    adapters: Mapping[str, AdapterShape] | None = None,
    postgres: PostgresLimits | None = None,
    unreadable: Sequence[Finding] = (),
) -> Report:
    """Hold a configuration against hardware.

    Args:
        shapes: by model name; a model without one is left out of the sums.
        adapters: by adapter name.
        postgres: None if it was not asked.
        unreadable: findings from gathering the above.
    """
    found = _Findings(list(unreadable))
    _check_settings(settings, hardware, found)
    fits: list[ModelFit] = []
    demands: list[_Demand] = []
    for model in settings.every_deployment:
        shape = shapes.get(model.model)
        if model.kind == "synthetic":
            demands += [_Demand(model.model, cpus=model.num_cpus, gpus=model.num_gpus)] * model.max_replicas
            continue
        if shape is None:
            continue
        if model.kind == "vllm":
            _check_sharding(model, shape, hardware, found)
            _check_adapters(model, shape, adapters or {}, found)
        ranks = [adapter.rank for setting in model.adapters if (adapter := (adapters or {}).get(setting.name))]
        fit = _fit(model, shape, hardware, rank=max(ranks, default=0))
        fits.append(fit)
        _check_memory(model, fit, found)
        demands += _demands(model, fit)
    cluster = settings.cluster
    demands += [_Demand("cluster.gateway", cpus=cluster.gateway.num_cpus)] * cluster.gateway.max_replicas
    if cluster.guard_scorers:
        demands += [_Demand("cluster.guard", cpus=cluster.guard.num_cpus)] * cluster.guard.max_replicas
    if settings.memory.enabled:
        demands.append(_Demand("cluster.memory", cpus=cluster.memory.num_cpus))
    _check_placement(demands, hardware, found, oversubscribed=_on_one_machine(settings, hardware))
    connections = _connections(settings)
    allowed = None if postgres is None else postgres.max_connections - postgres.reserved
    if allowed is not None and connections + SPARE_CONNECTIONS > allowed:
        found.error(
            "ledger.pool_size",
            f"{connections} connections, and {SPARE_CONNECTIONS} to spare, of PostgreSQL's {allowed}",
            "raise max_connections there, lower ledger.pool_size or cluster.gateway.max_replicas, "
            "or put a session pooler between",
        )
    return Report(
        hardware=hardware,
        models=tuple(fits),
        cpus_needed=sum(demand.cpus for demand in demands),
        gpus_needed=sum(demand.gpus for demand in demands),
        connections_needed=connections,
        connections_allowed=allowed,
        findings=tuple(found.items),
    )


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain values, with the sums of each model and `fits`."""
    found = dataclasses.asdict(report)
    for values, model in zip(found["models"], report.models, strict=True):
        values |= {"needed_bytes": model.needed_bytes, "gpus": model.gpus}
    return {"fits": not report.errors, **found}


# ── settings ─────────────────────────────────────────────────────────────────


def _on_one_machine(settings: Settings, hardware: Hardware) -> bool:
    """Whether `personae up --cluster` starts the cluster itself, with a PostgreSQL and keys of its own if need be."""
    return settings.cluster.address is None and len(hardware.nodes) == 1


def _check_settings(settings: Settings, hardware: Hardware, found: _Findings) -> None:
    one = _on_one_machine(settings, hardware)
    if not one and settings.ledger.dsn is None:
        found.error(
            "ledger.dsn",
            "unset, and a PostgreSQL of one machine's own is out of the others' reach",
            "name a PostgreSQL: PERSONAE_LEDGER__DSN in the environment of every node",
        )
    if not one and settings.ledger.master_key is None:
        found.error(
            "ledger.master_key",
            "unset, and a generated key lies on one machine",
            "make one with `openssl rand -base64 32`: PERSONAE_LEDGER__MASTER_KEY in the environment of every node",
        )
    if not settings.auth.api_keys and not settings.auth.jwt.enabled and (not one or settings.profile == "production"):
        found.error(
            "auth.api_keys",
            "neither API keys nor JWT, and only a development host on one machine makes a key of its own",
            "set auth.api_keys or auth.jwt",
        )
    if settings.gateway.port == 0 and not one:
        found.error("gateway.port", "0, so that each gateway takes another port", "name one port, such as 7400")
    if not one and is_loopback(settings.gateway.host):
        found.warning(
            "gateway.host",
            f"{settings.gateway.host} is reached from the same node only",
            'set "0.0.0.0" with gateway.tls',
        )
    if idle := [name for name in settings.cluster.guard_scorers if name not in settings.policy.scorers]:
        found.error(
            "cluster.guard_scorers",
            f"policy.scorers does not name {', '.join(idle)}, and nothing else is asked",
            "name it there, too",
        )
    if settings.cluster.gateway.min_replicas == 0:
        found.error("cluster.gateway.min_replicas", "0: nothing would listen", "set at least 1")


def _connections(settings: Settings) -> int:
    """PostgreSQL connections at most: gateways, and the memory deployment."""
    gateways = settings.cluster.gateway.max_replicas * (settings.ledger.pool_size + OTHER_CONNECTIONS)
    return gateways + (settings.ledger.pool_size if settings.memory.enabled else 0)


# ── one model ────────────────────────────────────────────────────────────────


def _on_gpus(model: ModelDeploymentSettings) -> bool:
    return model.kind == "vllm" and model.num_gpus > 0


def _check_sharding(model: ModelDeploymentSettings, shape: ModelShape, hardware: Hardware, found: _Findings) -> None:
    tp, pp, dp = model.tensor_parallel_size, model.pipeline_parallel_size, model.data_parallel_size
    name = model.model
    good = [size for size in range(1, 65) if _divides(shape, size)]
    if shape.heads % tp:
        found.error(
            name,
            f"tensor_parallel_size {tp} does not divide {shape.heads} attention heads",
            f"set one of {_list(good)}",
        )
    elif shape.kv_heads % tp and tp % shape.kv_heads:
        found.error(
            name,
            f"{shape.kv_heads} key-value heads can be neither split nor copied over tensor_parallel_size {tp}",
            f"set one of {_list(good)}",
        )
    elif shape.intermediate % tp:
        found.error(
            name,
            f"tensor_parallel_size {tp} does not divide the MLP's width {shape.intermediate}",
            f"set one of {_list(good)}",
        )
    elif tp > shape.kv_heads and not shape.kv_is_shared:
        found.warning(
            name,
            f"{shape.kv_heads} key-value heads are copied over tensor_parallel_size {tp}: KV does not shrink below "
            f"1/{shape.kv_heads}",
            "more data_parallel_size or replicas use the memory better",
        )
    if pp > shape.layers:
        found.error(name, f"pipeline_parallel_size {pp} of {shape.layers} layers", f"set at most {shape.layers}")
    if shape.context_tokens is not None and model.context_tokens > shape.context_tokens:
        found.error(
            name,
            f"context_tokens {model.context_tokens} of a model made for {shape.context_tokens}",
            f"set at most {shape.context_tokens}",
        )
    if not _on_gpus(model):
        if pp > 1:
            found.error(name, "pipeline_parallel_size needs GPUs", "set it to 1, or num_gpus = 1")
        return
    if model.num_gpus != 1 and (tp * pp * dp > 1 or model.num_gpus > 1):
        found.error(name, f"num_gpus {model.num_gpus:g} of an engine worker", "a worker takes one GPU: num_gpus = 1")
    if model.num_gpus < model.gpu_memory_utilization and model.num_gpus < 1:
        found.error(
            name,
            f"gpu_memory_utilization {model.gpu_memory_utilization:g} of a GPU of which it has {model.num_gpus:g}",
            f"set gpu_memory_utilization to at most {model.num_gpus:g}",
        )
    most = max((node.gpus for node in hardware.nodes), default=0)
    if most and tp > most:
        found.warning(
            name,
            f"tensor_parallel_size {tp} spans nodes of {most} GPUs: every layer waits for the network",
            f"set tensor_parallel_size to at most {most} and pipeline_parallel_size to what remains",
        )
    if most and tp * pp * dp > most and model.executor != "ray":
        found.error(
            name,
            f'{tp * pp * dp} workers on nodes of {most} GPUs without executor = "ray": they stay on one node',
            'set executor = "ray"',
        )


def _divides(shape: ModelShape, size: int) -> bool:
    kv = shape.kv_heads % size == 0 or size % shape.kv_heads == 0
    return shape.heads % size == 0 and kv and shape.intermediate % size == 0


def _check_adapters(
    model: ModelDeploymentSettings, shape: ModelShape, adapters: Mapping[str, AdapterShape], found: _Findings
) -> None:
    for setting in model.adapters:
        adapter = adapters.get(setting.name)
        if adapter is None:
            continue
        if adapter.rank > LORA_RANKS[-1]:
            found.error(
                model.model, f"adapter {setting.name} has rank {adapter.rank}", f"vLLM takes at most {LORA_RANKS[-1]}"
            )
        if adapter.hidden is not None and adapter.hidden != shape.hidden:
            found.error(
                model.model,
                f"adapter {setting.name} is for a model of width {adapter.hidden}, this one has {shape.hidden}",
                "name the adapter under the model that it was trained on",
            )


def _fit(model: ModelDeploymentSettings, shape: ModelShape, hardware: Hardware, *, rank: int) -> ModelFit:
    gpu = _on_gpus(model)
    vllm = model.kind == "vllm"
    tp, pp, dp = (
        (model.tensor_parallel_size, model.pipeline_parallel_size, model.data_parallel_size) if vllm else (1, 1, 1)
    )
    # llama.cpp keeps KV in 16 bits; vLLM in what it computes in.
    width = _compute_bytes(model, gpu=gpu) if vllm else 2
    layers = math.ceil(shape.layers / pp)
    weights = _weight_bytes(shape, width=width, tp=tp, pp=pp, layers=layers)
    share = 1.0 if shape.kv_is_shared else max(1, shape.kv_heads // tp) / shape.kv_heads
    kv_per_token = math.ceil(shape.kv_values * share * layers * width)
    sessions = math.ceil(model.parallel / dp)
    block = (model.block_size or (GPU_BLOCK_SIZE if gpu else CPU_BLOCK_SIZE)) if vllm else 1
    tokens = sessions * math.ceil(model.context_tokens / block) * block
    kv = tokens * kv_per_token
    steps = model.batch_tokens or (GPU_BATCH_TOKENS if gpu else max(CPU_BATCH_TOKENS, model.parallel))
    activations = _activation_bytes(shape, width=width, tp=tp, tokens=steps if vllm else 512, sessions=sessions)
    other = _lora_bytes(model, shape, rank=rank, width=width, tp=tp, layers=layers) if vllm else 0
    if gpu:
        other += int((CUDA_RUNTIME_GIB + (0.0 if model.enforce_eager else GRAPHS_GIB)) * GIB)
        smallest = min((node.gpu_memory_gib for node in hardware.nodes if node.gpus and node.gpu_memory_gib), default=0)
        budget = int(smallest * model.gpu_memory_utilization * GIB) if smallest else None
    else:
        other += int(CPU_PROCESS_GIB * GIB)
        known = [node.memory_gib for node in hardware.nodes if node.memory_gib is not None]
        budget = int(max(known) * GIB) // (tp * dp) if known else None
    room: int | None = None
    if vllm and (model.kv_cache_gib is not None or not gpu):
        room = int((model.kv_cache_gib or CPU_KV_CACHE_GIB) * GIB)
    elif budget is not None:
        room = max(0, budget - weights - activations - other)
    per_session = max(1, kv // max(1, sessions))
    return ModelFit(
        model=model.model,
        engine=model.kind,
        device="GPU" if gpu else "CPU",
        parameters=shape.parameters,
        counted=shape.counted,
        workers=tp * pp * dp,
        weight_bytes=weights,
        kv_bytes_per_token=kv_per_token,
        kv_bytes=kv,
        activation_bytes=activations,
        other_bytes=other,
        sessions=sessions,
        context_tokens=model.context_tokens,
        budget_bytes=budget,
        sessions_that_fit=None if room is None else room // per_session,
        replicas=model.max_replicas,
    )


def _compute_bytes(model: ModelDeploymentSettings, *, gpu: bool) -> int:
    """Bytes of a value: `auto` is 32 bits on CPUs, 16 on GPUs, also for models stored in 32."""
    return 4 if model.dtype == "float32" or (model.dtype == "auto" and not gpu) else 2


def _weight_bytes(shape: ModelShape, *, width: int, tp: int, pp: int, layers: int) -> int:
    """Of the fullest worker: the first stage holds the input table, the last the output matrix."""
    tables = (
        shape.embedding_parameters + shape.head_parameters
        if pp == 1
        else max(shape.embedding_parameters, shape.head_parameters)
    )
    parameters = shape.layer_parameters * layers / shape.layers + tables
    per_parameter = width if shape.quantized_bytes is None else shape.quantized_bytes / shape.parameters
    return math.ceil(parameters * per_parameter / tp)


def _activation_bytes(shape: ModelShape, *, width: int, tp: int, tokens: int, sessions: int) -> int:
    """An estimate of a step's peak.

    The residual stream and its normalised copy, whole on each worker; the wider of
    the attention's and the MLP's projections (gate, up and their product), split;
    and at the end float32 logits of every session with the copy that sampling sorts
    and its 64-bit indices.
    """
    attention = (shape.heads + 2 * shape.kv_heads) * shape.head_dim + shape.heads * shape.head_dim
    wide = max(attention, 3 * shape.intermediate) / tp
    return math.ceil(tokens * (4 * shape.hidden + wide) * width + sessions * shape.vocab * (4 + 4 + 8))


def _lora_bytes(
    model: ModelDeploymentSettings, shape: ModelShape, *, rank: int, width: int, tp: int, layers: int
) -> int:
    """Room that vLLM sets aside on every matrix of every layer, for each adapter that a batch may mix."""
    if not rank:
        return 0
    slots = min(model.active_adapters, len(model.adapters))
    padded = next((size for size in LORA_RANKS if size >= rank), rank)
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sides = (
        2 * (shape.hidden + q)  # query and output
        + 2 * (shape.hidden + kv)  # key and value
        + 3 * (shape.hidden + shape.intermediate)  # gate, up and down
    )
    return math.ceil(slots * layers * sides * padded * width / tp)


def _check_memory(model: ModelDeploymentSettings, fit: ModelFit, found: _Findings) -> None:
    gib = _gib
    if fit.device == "GPU" and fit.budget_bytes is None:
        found.error(
            model.model,
            "the memory of the cluster's GPUs is unknown, or there are none",
            "say what they are: --gpus with --gpu or --gpu-memory; or set num_gpus = 0 for the CPU",
        )
        return
    if fit.budget_bytes is not None:
        fixed = fit.needed_bytes - fit.kv_bytes
        setting = model.kv_cache_gib if fit.engine == "vllm" else None
        if setting is None and fit.engine == "vllm" and fit.device == "CPU":
            setting = CPU_KV_CACHE_GIB
        kv = fit.kv_bytes if setting is None else int(setting * GIB)
        what = f"{fit.budget_bytes / GIB:.1f} GiB of a {fit.device}'s memory" + (
            f" (gpu_memory_utilization {model.gpu_memory_utilization:g})" if fit.device == "GPU" else ""
        )
        if fit.device == "CPU":
            what = f"{fit.budget_bytes / GIB:.1f} GiB of the node's memory for each worker"
        if fixed > fit.budget_bytes:
            found.error(
                model.model,
                f"weights {gib(fit.weight_bytes)}, activations {gib(fit.activation_bytes)} and runtime "
                f"{gib(fit.other_bytes)} are over {what} before any session",
                _split_further(fit),
            )
        elif setting is None and fixed + kv > fit.budget_bytes:
            found.error(
                model.model,
                f"{fit.sessions} sessions of {fit.context_tokens} tokens take {gib(fit.kv_bytes)} of KV; beside the "
                f"rest {fit.sessions_that_fit} fit into {what}",
                f"set parallel to at most {_parallel_that_fits(model, fit)}, lower context_tokens, or "
                + _split_further(fit),
            )
        elif fixed + kv > fit.budget_bytes:
            found.error(
                model.model,
                f"weights, activations, runtime and kv_cache_gib {setting:g} are over {what}",
                f"set kv_cache_gib to at most {max(0.0, (fit.budget_bytes - fixed) / GIB):.1f}",
            )
        if setting is not None and fit.kv_bytes > kv:
            found.error(
                model.model,
                f"{fit.sessions} sessions of {fit.context_tokens} tokens take {gib(fit.kv_bytes)} of KV and "
                f"kv_cache_gib is {setting:g}: {fit.sessions_that_fit} fit",
                f"set kv_cache_gib to at least {math.ceil(fit.kv_bytes / GIB * 10) / 10:g}, or parallel to at most "
                f"{_parallel_that_fits(model, fit)}",
            )


def _parallel_that_fits(model: ModelDeploymentSettings, fit: ModelFit) -> int:
    dp = model.data_parallel_size if model.kind == "vllm" else 1
    return (fit.sessions_that_fit or 0) * dp


def _split_further(fit: ModelFit) -> str:
    if fit.device == "CPU":
        return "use a machine with more memory or a smaller model"
    return "raise tensor_parallel_size or pipeline_parallel_size, or use a GPU with more memory"


# ── placement ────────────────────────────────────────────────────────────────


def _demands(model: ModelDeploymentSettings, fit: ModelFit) -> list[_Demand]:
    """What each replica takes, in pieces that belong on one node."""
    if fit.device == "CPU":
        memory = fit.needed_bytes - fit.kv_bytes
        if model.kind == "vllm":
            memory += int((model.kv_cache_gib or CPU_KV_CACHE_GIB) * GIB)
        else:
            memory += fit.kv_bytes
        one = _Demand(model.model, cpus=model.num_cpus, memory_gib=memory * fit.workers / GIB)
        return [one] * model.max_replicas
    # Without Ray's executor all workers are processes of the replica; with it each is placed by itself, and those that
    # share layers are wanted on one node.
    together = model.tensor_parallel_size if model.executor == "ray" else fit.workers
    first = _Demand(model.model, cpus=model.num_cpus, gpus=together * model.num_gpus)
    rest = _Demand(model.model, gpus=together * model.num_gpus)
    return ([first] + [rest] * (fit.workers // together - 1)) * model.max_replicas


def _check_placement(demands: Iterable[_Demand], hardware: Hardware, found: _Findings, *, oversubscribed: bool) -> None:
    """Place everything at its most, largest first, each on the first node with room; say what found none.

    `oversubscribed`: processors may be promised twice, as `personae up --cluster` does on one machine.
    """
    demands = list(demands)
    wanted_cpus = sum(demand.cpus for demand in demands)
    if oversubscribed and wanted_cpus > hardware.cpus:
        found.warning(
            "cluster",
            f"at max_replicas {wanted_cpus:g} processors are promised on a machine of {hardware.cpus:g}",
            "nothing, if sharing them will do; else lower max_replicas",
        )
    free = [
        _Demand(
            "",
            math.inf if oversubscribed else node.cpus,
            math.inf if node.memory_gib is None else node.memory_gib,
            float(node.gpus),
        )
        for node in hardware.nodes
    ]
    most_gpus = max((node.gpus for node in hardware.nodes), default=0)
    pieces: list[_Demand] = []
    for demand in demands:
        # A tensor-parallel group larger than any node is spread over whole nodes; its slowness is warned of elsewhere.
        while most_gpus and demand.gpus > most_gpus:
            pieces.append(_Demand(demand.subject, gpus=most_gpus))
            demand = _Demand(demand.subject, demand.cpus, demand.memory_gib, demand.gpus - most_gpus)
        pieces.append(demand)
    missing: dict[str, list[_Demand]] = {}
    for piece in sorted(pieces, key=lambda one: (one.gpus, one.memory_gib, one.cpus), reverse=True):
        for node in free:
            if node.cpus >= piece.cpus and node.memory_gib >= piece.memory_gib and node.gpus >= piece.gpus - 1e-9:
                node.cpus -= piece.cpus
                node.memory_gib -= piece.memory_gib
                node.gpus -= piece.gpus
                break
        else:
            missing.setdefault(piece.subject, []).append(piece)
    for subject, pieces in missing.items():
        wanted = _join(
            (sum(piece.gpus for piece in pieces), "GPUs"),
            (sum(piece.cpus for piece in pieces), "processors"),
            (sum(piece.memory_gib for piece in pieces), "GiB of memory"),
        )
        found.error(
            subject,
            f"at max_replicas there is no room for {wanted}: the cluster has {hardware.cpus:g} processors and "
            f"{hardware.gpus} GPUs on {len(hardware.nodes)} node{'' if len(hardware.nodes) == 1 else 's'}",
            "add nodes, or lower max_replicas" + ("" if subject.startswith("cluster.") else " or the sharding"),
        )


# ── words ────────────────────────────────────────────────────────────────────


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"


def _join(*parts: tuple[float, str]) -> str:
    return " and ".join(f"{math.ceil(amount * 10) / 10:g} {noun}" for amount, noun in parts if amount)


def _list(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes[:8]))
