"""How much of everything a number of users needs: the capacity model.

From a workload (users, turns, tokens), a model and a GPU it follows, at the
day's peak and without a measurement of the target machines:

1. turns a second, and by Little's law (L = λW, Operations Research 9(3), 1961)
   the turns that run and the conversations that are open at once;
2. the largest batch of a model replica that fits its memory and still writes
   fast enough for a reader, from a roofline of weights, KV cache and FLOPs;
3. the utilisation at which turns wait no longer than allowed, by Sakasegawa's
   approximation for G/G/c (Annals of the Institute of Statistical Mathematics
   29, 1977), which is near Erlang's formula for M/M/c at high utilisation and
   above it at low;
4. replicas, gateways, Qdrant nodes and PostgreSQL partitions, with as many more
   as it takes to go on after losing zones; bandwidth; monthly cost.

Every figure that is not derived is in `FIGURES`, `GPUS` or `MODELS` with its
source; `FIGURES` can be overridden, some of them from a benchmark's JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from personae_runtime.errors import InvalidArgument

_T = TypeVar("_T")

DAY_S = 86_400
MONTH_H = 730
"""Hours of a month: 8,760 / 12."""
GIB = float(1 << 30)


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that the model takes as given.

    Attributes:
        value: the number.
        unit: of the number.
        source: where it comes from: a measurement of ours, a document, or an assumption, which says so.
    """

    value: float
    unit: str
    source: str


_BENCH = "measured, two cores (AVX2): docs/capacity.md"

FIGURES: dict[str, Figure] = {
    # The gateway
    "gateway_streams_per_core": Figure(400, "running turns", "cluster.gateway.target_streams; measured limit 500"),
    "gateway_conversations_per_core": Figure(
        500, "open conversations", "goal of the cluster benchmark: 1,000 on two cores with all gates, client included"
    ),
    "gateway_cpu_ms_per_turn": Figure(27, "ms", f"{_BENCH}; all gates, ten events, client and engine included"),
    "gateway_kb_per_conversation": Figure(40, "kB", "goal of the cluster benchmark; 15 to 26 kB measured for a stream"),
    "gateway_base_mb": Figure(400, "MB", "assumption: process with scorer, embedder and caches; measure yours"),
    "gateway_utilisation": Figure(0.6, "share", "assumption: gateways slow down as queues, and must absorb reconnects"),
    # The model
    "gpu_memory_use": Figure(0.92, "share", "vLLM's default gpu_memory_utilization"),
    "gpu_activation_share": Figure(0.05, "share of memory", "assumption: activations and CUDA graphs"),
    "bandwidth_efficiency": Figure(0.7, "share of peak", "assumption: 0.6 to 0.85 are usual for decoding"),
    "flops_efficiency": Figure(0.5, "share of peak", "assumption: 0.4 to 0.6 are usual for reading prompts"),
    "tensor_parallel_efficiency": Figure(0.9, "per doubling", "assumption: all-reduces between GPUs of one node"),
    "step_overhead_ms": Figure(1.5, "ms", "assumption: scheduler, sampling and launch per decoding step"),
    "max_batch": Figure(256, "turns", "settings: engine.parallel is at most 256"),
    "affinity_imbalance": Figure(1.25, "times the mean", "cluster.affinity_load_factor: a replica's share at most"),
    # Memory of the personas: Qdrant
    "points_per_turn": Figure(1, "points", "measured: one memory a turn is stored; facts are extra"),
    "vector_dimensions": Figure(384, "values", "all-MiniLM-L6-v2"),
    "qdrant_overhead": Figure(1.5, "times", "Qdrant's documentation, capacity planning"),
    "qdrant_quantised_bytes": Figure(
        1, "bytes a value", "Qdrant's documentation: scalar quantization to int8 in memory"
    ),
    "qdrant_disk_bytes_per_point": Figure(
        2400, "bytes", "vector as float32 1,536, quantised 384, and a payload of some 500"
    ),
    "qdrant_node_gib": Figure(64, "GiB", "assumption: a usual node"),
    "qdrant_node_cores": Figure(16, "cores", "assumption: a usual node"),
    "qdrant_query_ms": Figure(0.7, "ms of a core", "measured: tenant-filtered hybrid query, 20,000 to 100,000 points"),
    "qdrant_replication": Figure(2, "copies", "Qdrant's documentation: replication factor for availability"),
    "store_utilisation": Figure(0.6, "share", "assumption: room for compaction, vacuum and rebalancing"),
    # The ledger: PostgreSQL
    "ledger_rows_per_turn": Figure(12.2, "rows", f"{_BENCH}; a turn, ten events, a memory"),
    "ledger_bytes_per_turn": Figure(4600, "bytes", f"{_BENCH}; tables and indexes, reply of 450 characters"),
    "ledger_wal_bytes_per_turn": Figure(7500, "bytes", f"{_BENCH}"),
    "ledger_transactions_per_turn": Figure(18.4, "transactions", f"{_BENCH}; reads included, nothing to group with"),
    "ledger_transactions_per_s": Figure(20_000, "1/s", "assumption: a primary with 16 cores and NVMe; pgbench yours"),
    "ledger_partition_tb": Figure(4, "TB", "assumption: still restored and vacuumed within hours"),
    "ledger_standbys": Figure(2, "standbys", "one per further zone, synchronous to any one"),
    "ledger_node_cores": Figure(16, "cores", "as ledger_transactions_per_s"),
    "ledger_node_gib": Figure(64, "GiB", "assumption: the newest days in memory"),
    # Bandwidth
    "wire_bytes_per_turn": Figure(300, "bytes", "assumption: request, HTTP/2 frames and trailers beside the events"),
    "event_bytes_per_token": Figure(14.6, "bytes", f"{_BENCH}; 1,642 bytes of events for 112 tokens"),
    # Prices; GPUs have theirs in GPUS
    "core_usd_per_h": Figure(0.041, "USD", "AWS m7g.large, us-east-1, on demand, June 2026: 0.0816 for two"),
    "gib_usd_per_h": Figure(0.0067, "USD", "AWS r7g.large, us-east-1, on demand: 0.1071 for 16 GiB with two cores"),
    "disk_usd_per_gb_month": Figure(0.08, "USD", "AWS EBS gp3, us-east-1"),
    "egress_usd_per_gb": Figure(0.05, "USD", "AWS, from us-east-1 to the internet, above 150 TB a month"),
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU by its data sheet.

    Attributes:
        memory_gb: 10^9 bytes.
        bandwidth_gb_s: of its memory, 10^9 bytes a second.
        tflops: dense bfloat16 on tensor cores, 10^12 a second.
        usd_per_h: rent of one, without commitment. Prices move: give your own.
        source: of the figures.
    """

    memory_gb: float
    bandwidth_gb_s: float
    tflops: float
    usd_per_h: float
    source: str


GPUS: dict[str, Gpu] = {
    "l4": Gpu(24, 300, 121, 0.80, "NVIDIA L4 data sheet; AWS g6.xlarge"),
    "l40s": Gpu(48, 864, 362, 1.86, "NVIDIA L40S data sheet; AWS g6e.xlarge"),
    "a100-80gb": Gpu(80, 2039, 312, 3.43, "NVIDIA A100 data sheet (SXM); AWS p4de.24xlarge / 8"),
    "h100": Gpu(80, 3350, 989, 6.88, "NVIDIA H100 data sheet (SXM); AWS p5.48xlarge / 8"),
    "h200": Gpu(141, 4800, 989, 7.91, "NVIDIA H200 data sheet (SXM); AWS p5en.48xlarge / 8"),
}

DTYPE_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "fp8": 1.0, "int4": 0.5}
"""Bytes of a weight."""


@dataclass(frozen=True, slots=True)
class Model:
    """What a model needs, by its published configuration.

    Attributes:
        parameters: of the whole model.
        active_parameters: that a token passes through; fewer for a mixture of experts.
        layers, kv_heads, head_dim: of the attention with a KV cache.
        kv_per_head: 2, a key and a value; 1 if `kv_heads` counts both.
        quantized_bytes: of the weights as they are stored, whatever `dtype` says; None if they are not quantized.
        dtype: of the weights, a key of DTYPE_BYTES.
        kv_dtype: of the cache.
    """

    parameters: float
    active_parameters: float
    layers: int
    kv_heads: int
    head_dim: int
    dtype: str = "bfloat16"
    kv_dtype: str = "bfloat16"
    kv_per_head: int = 2
    quantized_bytes: float | None = None

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights."""
        return self.quantized_bytes or self.parameters * DTYPE_BYTES[self.dtype]

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of one token's keys and values in all layers."""
        return self.kv_per_head * self.layers * self.kv_heads * self.head_dim * DTYPE_BYTES[self.kv_dtype]


MODELS: dict[str, Model] = {
    "smollm2-135m": Model(134.5e6, 134.5e6, 30, 3, 64),
    "qwen2.5-7b": Model(7.62e9, 7.62e9, 28, 4, 128),
    "llama-3.1-8b": Model(8.03e9, 8.03e9, 32, 8, 128),
    "qwen2.5-32b": Model(32.8e9, 32.8e9, 64, 8, 128),
    "llama-3.3-70b": Model(70.6e9, 70.6e9, 80, 8, 128),
    "mixtral-8x7b": Model(46.7e9, 12.9e9, 32, 8, 128),
}
"""Sizes from the `config.json` that each was published with."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What users do and what they are promised.

    Attributes:
        daily_users: people who talk on a day.
        turns_per_user: turns of each of them a day.
        tokens_in: prompt of a turn: platform, persona, history, recall and the newest message.
        tokens_out: reply of a turn.
        prefix_hit: share of `tokens_in` that the prefix cache serves.
        peak_factor: turns a second at the day's peak over the day's mean.
        think_s: seconds between the end of a reply and the next message.
        stream_tokens_per_s: least speed of every reply; people read 5 to 10 tokens a second.
        wait_s: mean seconds that a turn may wait for its replica at the peak.
        variation: (Ca² + Cs²) / 2, squared coefficients of variation of the times
            between turns and of their lengths; 1 for Poisson arrivals and exponential lengths.
        zones: zones that everything is spread over.
        lost_zones: of them, that may fail at the peak.
        memory_days: days that memories are kept.
        ledger_days: days that turns are kept.
        known_users: people with memories, over daily users.
    """

    daily_users: float = 1e6
    turns_per_user: float = 10
    tokens_in: float = 1100
    tokens_out: float = 80
    prefix_hit: float = 0.8
    peak_factor: float = 3.0
    think_s: float = 30.0
    stream_tokens_per_s: float = 15.0
    wait_s: float = 0.25
    variation: float = 1.0
    zones: int = 3
    lost_zones: int = 1
    memory_days: float = 90
    ledger_days: float = 90
    known_users: float = 3.0


@dataclass(frozen=True, slots=True)
class Demand:
    """The load at the peak.

    Attributes:
        turns_per_s_mean, turns_per_s: of the day, and at its peak.
        turn_s: seconds that a turn runs at its replica.
        running_turns: at once.
        open_conversations: at once: those whose user has not gone yet.
    """

    turns_per_s_mean: float
    turns_per_s: float
    turn_s: float
    running_turns: float
    open_conversations: float


@dataclass(frozen=True, slots=True)
class ModelTier:
    """The model replicas.

    Attributes:
        gpus_per_replica: tensor-parallel size.
        weight_gb, kv_gb: of a replica, 10^9 bytes; what is left for the cache.
        kv_tokens: that the cache holds.
        batch: turns at once of a replica.
        bound_by: what keeps the batch from being larger: memory, speed or max_batch.
        warm_sessions: idle sessions per replica whose own tokens stay cached beside a full batch.
        tokens_per_s: of a replica that is full.
        step_ms: time between two tokens of a reply, when full.
        utilisation: share of a replica's places in use at the peak, all zones up.
        allowed_utilisation: mean over the replicas at which turns of the fullest wait `wait_s`.
        wait_ms: mean wait at the peak, at the fullest replica, with the lost zones lost.
        replicas, gpus: in all zones.
    """

    gpus_per_replica: int
    weight_gb: float
    kv_gb: float
    kv_tokens: int
    batch: int
    bound_by: str
    warm_sessions: int
    tokens_per_s: float
    step_ms: float
    utilisation: float
    allowed_utilisation: float
    wait_ms: float
    replicas: int
    gpus: int


@dataclass(frozen=True, slots=True)
class GatewayTier:
    """The gateways, of one core each.

    Attributes:
        replicas: in all zones.
        bound_by: streams, conversations or processor.
        memory_gib: of each.
    """

    replicas: int
    bound_by: str
    memory_gib: float


@dataclass(frozen=True, slots=True)
class MemoryTier:
    """Qdrant.

    Attributes:
        points: all of them.
        memory_gib: of quantised vectors and index of the users of a day, one copy.
        disk_tb: of all points, one copy.
        queries_per_s: at the peak.
        nodes: with replication, and room for the lost zones.
        shards: of the collection; two per node and copy, so that nodes can be added without resharding.
        bound_by: memory or queries.
    """

    points: float
    memory_gib: float
    disk_tb: float
    queries_per_s: float
    nodes: int
    shards: int
    bound_by: str


@dataclass(frozen=True, slots=True)
class LedgerTier:
    """PostgreSQL.

    Attributes:
        rows_per_s, transactions_per_s, wal_mb_per_s: at the peak.
        storage_tb: of the turns kept, one copy.
        partitions: clusters of one primary, by tenant and user.
        nodes: primaries and standbys.
        bound_by: writes or storage.
    """

    rows_per_s: float
    transactions_per_s: float
    wal_mb_per_s: float
    storage_tb: float
    partitions: int
    nodes: int
    bound_by: str


@dataclass(frozen=True, slots=True)
class Cost:
    """US dollars a month, and of it per thousand turns.

    Attributes:
        gpus: rented all the time for the peak.
        gpus_following_load: if replicas follow the day's load: the mean instead of the peak.
        gateways, memory, ledger, egress: all the time.
        total: with `gpus`.
        total_following_load: with `gpus_following_load`.
        per_1000_turns: of the total following the load.
    """

    gpus: float
    gpus_following_load: float
    gateways: float
    memory: float
    ledger: float
    egress: float
    total: float
    total_following_load: float
    per_1000_turns: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer, with the question."""

    workload: Workload
    model_name: str
    model: Model
    gpu_name: str
    gpu: Gpu
    demand: Demand
    models: ModelTier
    gateways: GatewayTier
    memory: MemoryTier
    ledger: LedgerTier
    egress_gbit_s: float
    cost: Cost
    figures: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)


def plan(
    workload: Workload,
    *,
    model: str | Model = "llama-3.1-8b",
    gpu: str | Gpu = "l40s",
    gpus_per_replica: int | None = None,
    figures: Mapping[str, float] | None = None,
) -> Plan:
    """What a workload needs.

    Args:
        workload: what users do.
        model: a key of MODELS, or sizes.
        gpu: a key of GPUS, or a data sheet.
        gpus_per_replica: tensor-parallel size; None chooses the one with the most turns per GPU.
        figures: overrides of FIGURES.

    Raises:
        InvalidArgument: a value is out of its range, unknown, or the model does not fit.
    """
    given = _figures(figures)
    _check(workload)
    model_name, model_sizes = _with_name("model", model, MODELS)
    gpu_name, gpu_sheet = _with_name("GPU", gpu, GPUS)
    _check_model(model_sizes, gpu_sheet)
    mean = workload.daily_users * workload.turns_per_user / DAY_S
    peak = mean * workload.peak_factor

    sizes = (1, 2, 4, 8) if gpus_per_replica is None else (gpus_per_replica,)
    if gpus_per_replica is not None and gpus_per_replica < 1:
        raise InvalidArgument(f"gpus_per_replica is {gpus_per_replica}: give at least 1")
    fitting = [made for size in sizes if (made := _replica(workload, model_sizes, gpu_sheet, size, given)) is not None]
    if not fitting:
        raise InvalidArgument(
            f"{model_name} with prompts of {workload.tokens_in:g} tokens at {workload.stream_tokens_per_s:g} tokens/s "
            f"does not fit {' or '.join(map(str, sizes))} {gpu_name}: take a larger GPU, a smaller dtype, "
            "or a lower stream_tokens_per_s"
        )
    replica = max(fitting, key=lambda one: one.turns_per_s / one.gpus)
    demand = Demand(
        turns_per_s_mean=mean,
        turns_per_s=peak,
        turn_s=replica.turn_s,
        running_turns=peak * replica.turn_s,
        open_conversations=peak * (replica.turn_s + workload.think_s),
    )
    models = _model_tier(workload, demand, replica, given)
    gateways = _gateway_tier(workload, demand, given)
    memory = _memory_tier(workload, demand, given)
    ledger = _ledger_tier(workload, demand, given)
    bytes_per_turn = workload.tokens_out * given["event_bytes_per_token"] + given["wire_bytes_per_turn"]
    cost = _cost(workload, models, gateways, memory, ledger, gpu_sheet, mean * bytes_per_turn, given)
    return Plan(
        workload=workload,
        model_name=model_name,
        model=model_sizes,
        gpu_name=gpu_name,
        gpu=gpu_sheet,
        demand=demand,
        models=models,
        gateways=gateways,
        memory=memory,
        ledger=ledger,
        egress_gbit_s=peak * bytes_per_turn * 8 / 1e9,
        cost=cost,
        figures=given,
    )


def waiting_s(servers: int, utilisation: float, service_s: float, variation: float = 1.0) -> float:
    """Mean wait in a queue with several servers, G/G/c, by Sakasegawa's approximation.

    Args:
        servers: at least 1.
        utilisation: share of them that is busy, from 0; infinite wait from 1.
        service_s: mean seconds of a service.
        variation: (Ca² + Cs²) / 2.
    """
    if utilisation >= 1:
        return math.inf
    if utilisation <= 0:
        return 0.0
    queue: float = utilisation ** (math.sqrt(2 * (servers + 1)) - 1) / (servers * (1 - utilisation))
    return variation * queue * service_s


def allowed_utilisation(servers: int, service_s: float, wait_s: float, variation: float = 1.0) -> float:
    """The utilisation at which the mean wait is `wait_s`; at most 0.95. See `waiting_s`."""
    low, high = 0.0, 0.95
    if waiting_s(servers, high, service_s, variation) <= wait_s:
        return high
    for _ in range(60):
        middle = (low + high) / 2
        if waiting_s(servers, middle, service_s, variation) <= wait_s:
            low = middle
        else:
            high = middle
    return low


def known(kind: str, value: str | _T, among: Mapping[str, _T]) -> _T:
    """What a name stands for, or the thing itself.

    Raises:
        InvalidArgument: the name is unknown; the message lists the known ones.
    """
    if not isinstance(value, str):
        return value
    if value not in among:
        raise InvalidArgument(f"there is no {kind} {value!r}; known are: {', '.join(among)}")
    return among[value]


def model_from(path: Path) -> Model:
    """The sizes of a model from its folder or GGUF file; all its experts count as active.

    Raises:
        MissingModel: there is no model.
        ConfigError: its files say too little.
    """
    from personae_runtime.engines.shape import read_model_shape

    shape = read_model_shape(path)
    # Whatever one token leaves in a layer, as heads of one value: the product is all that counts.
    return Model(
        parameters=float(shape.parameters),
        active_parameters=float(shape.parameters),
        layers=shape.layers,
        kv_heads=shape.kv_values,
        head_dim=1,
        kv_per_head=1,
        quantized_bytes=shape.quantized_bytes,
    )


def measured_figures(file: Path) -> dict[str, float]:
    """The figures that the JSON of a cluster benchmark replaces.

    Taken are `kb_per_idle`; `prefix_hit_raw` (as `prefix_hit`, which belongs to
    the workload); the largest of `open_1000_all_gates` (1,000 conversations) or
    else `open_5000` that ran without failures, on two cores; and any key of
    FIGURES in an object `figures`.

    Raises:
        InvalidArgument: the file can't be read, is no such JSON, or holds none of these.
    """
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        # The benchmark's output as it is, or only its last line, or that line made readable.
        try:
            found = json.loads(lines[-1] if lines else "")
        except ValueError:
            found = json.loads("\n".join(lines))
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{file} can't be read as a benchmark's JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidArgument(f"{file} holds no JSON object: give the last line of the cluster benchmark")
    taken: dict[str, float] = {}
    extra = found.get("figures", {})
    if not isinstance(extra, dict):
        raise InvalidArgument(f"{file}: `figures` is no object")
    for key, name in (("kb_per_idle", "gateway_kb_per_conversation"), ("prefix_hit_raw", "prefix_hit")):
        if key in found:
            taken[name] = _number(f"{file}: {key}", found[key])
    for key, conversations in (("open_1000_all_gates", 1000), ("open_5000", 5000)):
        row = found.get(key)
        if isinstance(row, dict) and row.get("failures") == 0:
            taken["gateway_conversations_per_core"] = conversations / 2
            break
    for name, value in extra.items():
        taken[name] = _number(f"{file}: figures.{name}", value)
    if not taken:
        raise InvalidArgument(f"{file} holds no figure of the capacity model")
    return taken


# -- the parts ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Replica:
    gpus: int
    weight_bytes: float
    kv_bytes: float
    kv_tokens: int
    batch: int
    bound_by: str
    warm_sessions: int
    step_s: float
    turn_s: float
    turns_per_s: float


def _replica(workload: Workload, model: Model, gpu: Gpu, gpus: int, given: Mapping[str, float]) -> _Replica | None:
    """A replica of so many GPUs; None if the model, or one turn at the promised speed, does not fit."""
    together: float = gpus * given["tensor_parallel_efficiency"] ** math.log2(gpus)
    bandwidth = together * gpu.bandwidth_gb_s * 1e9 * given["bandwidth_efficiency"]
    flops = together * gpu.tflops * 1e12 * given["flops_efficiency"]
    memory = gpus * gpu.memory_gb * 1e9 * (given["gpu_memory_use"] - given["gpu_activation_share"])
    kv_bytes = memory - model.weight_bytes
    context = workload.tokens_in + workload.tokens_out
    kv_tokens = int(kv_bytes / model.kv_bytes_per_token)
    if kv_tokens < context:
        return None
    # Two FLOPs a parameter and token (Kaplan et al., arXiv:2001.08361, 2.1); attention adds little at such lengths.
    per_token = 2 * model.active_parameters
    prefill_s = workload.tokens_in * (1 - workload.prefix_hit) * per_token / flops

    def step_s(batch: int) -> float:
        # All weights are read once for the whole batch, each turn's cache for itself; a mixture of experts
        # reads all its experts as soon as the batch is not tiny.
        reading = (model.weight_bytes + batch * context * model.kv_bytes_per_token) / bandwidth
        computing = batch * per_token / flops
        # As many turns begin as end: in a step batch / tokens_out prompts are read.
        prompts = batch / workload.tokens_out * prefill_s
        return float(max(reading, computing) + prompts + given["step_overhead_ms"] / 1000)

    by_memory = int(kv_tokens // context)
    most = min(by_memory, int(given["max_batch"]))
    promised = 1 / workload.stream_tokens_per_s
    if step_s(1) > promised:
        return None
    batch = 1
    for bit in reversed(range(most.bit_length())):
        if batch + (1 << bit) <= most and step_s(batch + (1 << bit)) <= promised:
            batch += 1 << bit
    bound_by = "speed" if batch < most else "memory" if by_memory <= given["max_batch"] else "max_batch"
    turn_s = prefill_s + workload.tokens_out * step_s(batch)
    own = max(1.0, workload.tokens_in * 0.3)  # of a session, beside what all users of a persona share
    return _Replica(
        gpus=gpus,
        weight_bytes=model.weight_bytes,
        kv_bytes=kv_bytes,
        kv_tokens=kv_tokens,
        batch=batch,
        bound_by=bound_by,
        warm_sessions=int((kv_tokens - batch * context) / own),
        step_s=step_s(batch),
        turn_s=turn_s,
        turns_per_s=batch / turn_s,
    )


def _model_tier(workload: Workload, demand: Demand, replica: _Replica, given: Mapping[str, float]) -> ModelTier:
    allowed = allowed_utilisation(replica.batch, replica.turn_s, workload.wait_s, workload.variation)
    # Sessions stay at their replicas, so the fullest one decides, and each is a queue of its own.
    allowed /= given["affinity_imbalance"]
    needed = max(1, math.ceil(demand.running_turns / (replica.batch * allowed)))
    replicas = _spread(needed, workload)
    left = replicas * (workload.zones - workload.lost_zones) // workload.zones
    fullest = demand.running_turns / (left * replica.batch) * given["affinity_imbalance"]
    return ModelTier(
        gpus_per_replica=replica.gpus,
        weight_gb=replica.weight_bytes / 1e9,
        kv_gb=replica.kv_bytes / 1e9,
        kv_tokens=replica.kv_tokens,
        batch=replica.batch,
        bound_by=replica.bound_by,
        warm_sessions=replica.warm_sessions,
        tokens_per_s=replica.turns_per_s * workload.tokens_out,
        step_ms=replica.step_s * 1000,
        utilisation=demand.running_turns / (replicas * replica.batch),
        allowed_utilisation=allowed,
        wait_ms=1000 * waiting_s(replica.batch, fullest, replica.turn_s, workload.variation),
        replicas=replicas,
        gpus=replicas * replica.gpus,
    )


def _gateway_tier(workload: Workload, demand: Demand, given: Mapping[str, float]) -> GatewayTier:
    loads = {
        "streams": demand.running_turns / given["gateway_streams_per_core"],
        "conversations": demand.open_conversations / given["gateway_conversations_per_core"],
        "processor": demand.turns_per_s * given["gateway_cpu_ms_per_turn"] / 1000,
    }
    bound_by = max(loads, key=lambda name: loads[name])
    replicas = _spread(max(1, math.ceil(loads[bound_by] / given["gateway_utilisation"])), workload)
    each = demand.open_conversations / replicas * given["gateway_kb_per_conversation"] * 1000
    return GatewayTier(replicas, bound_by, (given["gateway_base_mb"] * 1e6 + each) / GIB)


def _memory_tier(workload: Workload, demand: Demand, given: Mapping[str, float]) -> MemoryTier:
    per_user = workload.turns_per_user * given["points_per_turn"] * workload.memory_days
    vector = given["vector_dimensions"] * given["qdrant_quantised_bytes"] * given["qdrant_overhead"]
    points = per_user * workload.daily_users * workload.known_users
    memory_gib = per_user * workload.daily_users * vector / GIB
    copies = given["qdrant_replication"]
    nodes = {
        "memory": memory_gib * copies / (given["qdrant_node_gib"] * given["store_utilisation"]),
        "queries": demand.turns_per_s
        * given["qdrant_query_ms"]
        / 1000
        / (given["qdrant_node_cores"] * given["store_utilisation"]),
    }
    bound_by = max(nodes, key=lambda name: nodes[name])
    count = _spread(max(int(copies), math.ceil(nodes[bound_by])), workload)
    return MemoryTier(
        points=points,
        memory_gib=memory_gib,
        disk_tb=points * given["qdrant_disk_bytes_per_point"] / 1e12,
        queries_per_s=demand.turns_per_s,
        nodes=count,
        shards=max(1, math.ceil(2 * count / copies)),
        bound_by=bound_by,
    )


def _ledger_tier(workload: Workload, demand: Demand, given: Mapping[str, float]) -> LedgerTier:
    transactions = demand.turns_per_s * given["ledger_transactions_per_turn"]
    kept = workload.daily_users * workload.turns_per_user * workload.ledger_days
    storage_tb = kept * given["ledger_bytes_per_turn"] / 1e12
    loads = {
        "writes": transactions / (given["ledger_transactions_per_s"] * given["store_utilisation"]),
        "storage": storage_tb / given["ledger_partition_tb"],
    }
    bound_by = max(loads, key=lambda name: loads[name])
    partitions = max(1, math.ceil(loads[bound_by]))
    return LedgerTier(
        rows_per_s=demand.turns_per_s * given["ledger_rows_per_turn"],
        transactions_per_s=transactions,
        wal_mb_per_s=demand.turns_per_s * given["ledger_wal_bytes_per_turn"] / 1e6,
        storage_tb=storage_tb,
        partitions=partitions,
        nodes=partitions * (1 + int(given["ledger_standbys"])),
        bound_by=bound_by,
    )


def _cost(
    workload: Workload,
    models: ModelTier,
    gateways: GatewayTier,
    memory: MemoryTier,
    ledger: LedgerTier,
    gpu: Gpu,
    egress_bytes_per_s: float,
    given: Mapping[str, float],
) -> Cost:
    core, gib, disk = given["core_usd_per_h"], given["gib_usd_per_h"], given["disk_usd_per_gb_month"]
    gpus = models.gpus * gpu.usd_per_h * MONTH_H
    # No fewer than one replica in each zone.
    following = max(gpus / workload.peak_factor, workload.zones * models.gpus_per_replica * gpu.usd_per_h * MONTH_H)
    parts = {
        "gateways": gateways.replicas * (core + gateways.memory_gib * gib) * MONTH_H,
        "memory": memory.nodes * given["qdrant_node_gib"] * gib * MONTH_H
        + memory.disk_tb * 1000 * given["qdrant_replication"] * disk,
        "ledger": ledger.nodes * (given["ledger_node_cores"] * core + given["ledger_node_gib"] * gib) * MONTH_H
        + ledger.storage_tb * 1000 * (1 + given["ledger_standbys"]) * disk,
        "egress": egress_bytes_per_s * MONTH_H * 3600 / 1e9 * given["egress_usd_per_gb"],
    }
    rest = sum(parts.values())
    turns = workload.daily_users * workload.turns_per_user * MONTH_H / 24
    return Cost(
        gpus=gpus,
        gpus_following_load=min(gpus, following),
        **parts,
        total=gpus + rest,
        total_following_load=min(gpus, following) + rest,
        per_1000_turns=(min(gpus, following) + rest) / turns * 1000,
    )


def _spread(needed: int, workload: Workload) -> int:
    """As many in each zone that the zones left after a failure hold `needed`."""
    return math.ceil(needed / (workload.zones - workload.lost_zones)) * workload.zones


# -- checks -------------------------------------------------------------------

_MAXIMA = {"daily_users": 1e10, "turns_per_user": 1e4, "tokens_in": 1e6, "tokens_out": 1e5, "peak_factor": 100.0}


def _check(workload: Workload) -> None:
    wrong: list[tuple[str, str]] = []
    for name in (field.name for field in fields(Workload)):
        value = getattr(workload, name)
        if not math.isfinite(value):
            wrong.append((name, "a finite number"))
        elif name in ("prefix_hit", "lost_zones", "think_s") and value < 0:
            wrong.append((name, "at least 0"))
        elif name not in ("prefix_hit", "lost_zones", "think_s") and value <= 0:
            wrong.append((name, "above 0"))
        elif value > _MAXIMA.get(name, math.inf):
            wrong.append((name, f"at most {_MAXIMA[name]:g}"))
    if not wrong:
        if workload.prefix_hit >= 1:
            wrong.append(("prefix_hit", "below 1: some of each prompt is new"))
        if workload.peak_factor < 1:
            wrong.append(("peak_factor", "at least 1: the peak is not below the mean"))
        if workload.known_users < 1:
            wrong.append(("known_users", "at least 1: daily users are known"))
        if workload.lost_zones >= workload.zones:
            wrong.append(("lost_zones", f"below zones, which is {workload.zones}"))
    if wrong:
        words = "; ".join(f"{name} must be {expected}" for name, expected in wrong)
        raise InvalidArgument(f"no plan for this workload: {words}", violations=tuple(wrong))


def _check_model(model: Model, gpu: Gpu) -> None:
    for name, dtype in (("dtype", model.dtype), ("kv_dtype", model.kv_dtype)):
        if dtype not in DTYPE_BYTES:
            raise InvalidArgument(f"{name} is {dtype!r}: give one of {', '.join(DTYPE_BYTES)}")
    numbers = {
        **{
            name: getattr(model, name) for name in ("parameters", "active_parameters", "layers", "kv_heads", "head_dim")
        },
        **{f"gpu {name}": getattr(gpu, name) for name in ("memory_gb", "bandwidth_gb_s", "tflops")},
    }
    for name, value in numbers.items():
        if not (math.isfinite(value) and value > 0):
            raise InvalidArgument(f"{name} is {value}: give a finite number above 0")
    if not (math.isfinite(gpu.usd_per_h) and gpu.usd_per_h >= 0):
        raise InvalidArgument(f"gpu usd_per_h is {gpu.usd_per_h}: give a finite number of at least 0")


_SHARES = ("gpu_memory_use", "bandwidth_efficiency", "flops_efficiency", "gateway_utilisation", "store_utilisation")


def _figures(overrides: Mapping[str, float] | None) -> dict[str, float]:
    given = {name: figure.value for name, figure in FIGURES.items()}
    for name, value in (overrides or {}).items():
        if name not in FIGURES:
            raise InvalidArgument(f"there is no figure {name!r}; they are: {', '.join(FIGURES)}")
        if not math.isfinite(value) or value < 0 or (value == 0 and FIGURES[name].unit != "USD"):
            raise InvalidArgument(f"{name} is {value}: give a finite number above 0")
        if name in _SHARES and value > 1:
            raise InvalidArgument(f"{name} is {value}: give a share from 0 to 1")
        given[name] = float(value)
    return given


def _with_name(kind: str, value: str | _T, among: Mapping[str, _T]) -> tuple[str, _T]:
    return (value if isinstance(value, str) else "custom", known(kind, value, among))


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidArgument(f"{name} is {value!r}: a number is expected")
    return float(value)
