"""What `fit` is told: the hardware, the models' files and PostgreSQL's limits, read or asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from personae_runtime.config import EngineSettings, Settings
from personae_runtime.engines.models import hf_folder
from personae_runtime.engines.shape import AdapterShape, ModelShape, read_adapter_shape, read_model_shape
from personae_runtime.errors import ConfigError, PersonaeError
from personae_serve.deployments.fit import GIB, GPU_MEMORY_GIB, Finding, Hardware, Node, PostgresLimits
from personae_serve.ray_environment import attach

_CONNECT_S = 5.0


@dataclass(frozen=True, slots=True)
class Declared:
    """Hardware as somebody says it is; None leaves it open.

    Attributes:
        nodes: machines, all alike.
        cpus, memory_gib, gpus: of each machine.
        gpu: a name of `GPU_MEMORY_GIB`.
        gpu_memory_gib: of each GPU, instead of a name.
    """

    nodes: int | None = None
    cpus: float | None = None
    memory_gib: float | None = None
    gpus: int | None = None
    gpu: str | None = None
    gpu_memory_gib: float | None = None

    @property
    def anything(self) -> bool:
        """Whether anything is said beside the kind of GPU."""
        return any(value is not None for value in (self.nodes, self.cpus, self.memory_gib, self.gpus))


def gpu_memory(declared: Declared) -> float | None:
    """Memory of a GPU, GiB; None if nothing is said.

    Raises:
        ConfigError: no GPU of that name is known.
    """
    if declared.gpu_memory_gib is not None:
        return declared.gpu_memory_gib
    if declared.gpu is None:
        return None
    try:
        return GPU_MEMORY_GIB[declared.gpu.lower()]
    except KeyError:
        raise ConfigError(
            f"no GPU is known as {declared.gpu!r}; give --gpu-memory, or one of {', '.join(GPU_MEMORY_GIB)}"
        ) from None


def find_hardware(declared: Declared, address: str | None) -> Hardware:
    """The cluster's hardware: as declared, else of the Ray cluster at `address`, else this machine.

    What a declaration leaves open is taken from this machine; its GPUs are not looked for.

    Raises:
        ConfigError: no GPU of that name is known, or no Ray cluster answers at the address.
    """
    if address is not None and not declared.anything:
        return _of_ray(address, gpu_memory(declared))
    import psutil

    cpus = float(psutil.cpu_count() or 1)
    memory = psutil.virtual_memory().total / GIB
    node = Node(
        cpus=cpus if declared.cpus is None else declared.cpus,
        memory_gib=memory if declared.memory_gib is None else declared.memory_gib,
        gpus=declared.gpus or 0,
        gpu_memory_gib=gpu_memory(declared) if declared.gpus else 0.0,
    )
    source = "as declared" if declared.anything else "this machine"
    return Hardware(source, (node,) * (declared.nodes or 1))


def _of_ray(address: str, memory_of_gpu: float | None) -> Hardware:
    import ray

    attached = ray.is_initialized()
    try:
        if not attached:
            attach(address, configure_logging=False)
        found = ray.nodes()  # type: ignore[no-untyped-call]
    finally:
        if not attached:
            ray.shutdown()
    return hardware_of_nodes(f"the Ray cluster at {address}", found, memory_of_gpu)


def hardware_of_nodes(source: str, nodes: list[dict[str, object]], memory_of_gpu: float | None = None) -> Hardware:
    """Hardware from what `ray.nodes()` returns.

    Ray knows how many GPUs a node has and of what kind, not their memory: it is
    taken from the kind where that is in `GPU_MEMORY_GIB`.
    """
    found = []
    for node in nodes:
        resources = node.get("Resources")
        if not node.get("Alive") or not isinstance(resources, dict):
            continue
        gpus = int(resources.get("GPU", 0))
        kinds = [
            GPU_MEMORY_GIB.get(name.removeprefix("accelerator_type:").lower())
            for name in resources
            if name.startswith("accelerator_type:")
        ]
        known = memory_of_gpu if memory_of_gpu is not None else next((kind for kind in kinds if kind), None)
        memory = resources.get("memory")
        found.append(
            Node(
                cpus=float(resources.get("CPU", 0)),
                memory_gib=None if memory is None else float(memory) / GIB,
                gpus=gpus,
                gpu_memory_gib=known if gpus else 0.0,
            )
        )
    return Hardware(source, tuple(found))


def model_path(engine: EngineSettings, models_dir: Path) -> Path:
    """Where a model's files lie: for vLLM a Hugging Face folder, for llama.cpp a GGUF file.

    Raises:
        PersonaeError: they are not there; the message says how to get them.
    """
    if engine.kind == "vllm":
        return hf_folder(engine.model, models_dir)
    from personae_runtime.engines.llamacpp import gguf_file

    return gguf_file(engine.model, models_dir)


def read_models(settings: Settings) -> tuple[dict[str, ModelShape], dict[str, AdapterShape], list[Finding]]:
    """Shapes of the models and of their adapters, by name, and what could not be read."""
    shapes: dict[str, ModelShape] = {}
    adapters: dict[str, AdapterShape] = {}
    findings: list[Finding] = []
    for model in settings.every_deployment:
        if model.kind == "synthetic":
            continue
        try:
            shapes[model.model] = read_model_shape(model_path(model, settings.models_dir))
        except PersonaeError as error:
            change = f"or put its config.json alone, for this check, into {settings.models_dir / model.model}"
            findings.append(Finding(model.model, error.message, change))
        for adapter in model.adapters:
            try:
                adapters[adapter.name] = read_adapter_shape(adapter.path)
            except PersonaeError as error:
                findings.append(
                    Finding(model.model, f"adapter {adapter.name}: {error.message}", "name its folder in PEFT's layout")
                )
    return shapes, adapters, findings


def read_certificate(settings: Settings) -> list[Finding]:
    """A warning if TLS is configured and its files can't be used here, which need not be where gateways run."""
    if settings.gateway.tls.certificate is None:
        return []
    from personae_serve.gateway.tls import read_certificate_files

    try:
        read_certificate_files(settings.gateway.tls)
    except PersonaeError as error:
        return [Finding("gateway.tls", error.message, "have the files on every node that runs a gateway", "warning")]
    return []


async def postgres_limits(dsn: str) -> PostgresLimits:
    """What the PostgreSQL at a DSN allows.

    Raises:
        ConfigError: it can't be reached.
    """
    import asyncpg

    try:
        connection = await asyncpg.connect(dsn, timeout=_CONNECT_S)
        try:
            rows = dict(
                await connection.fetch(
                    "SELECT name, setting::int FROM pg_settings WHERE name IN "
                    "('max_connections', 'superuser_reserved_connections', 'reserved_connections')"
                )
            )
        finally:
            await connection.close()
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        raise ConfigError(f"PostgreSQL can't be reached: {type(error).__name__}") from error
    reserved = rows.get("superuser_reserved_connections", 0) + rows.get("reserved_connections", 0)
    return PostgresLimits(rows["max_connections"], reserved)


async def read_postgres(settings: Settings) -> tuple[PostgresLimits | None, list[Finding]]:
    """PostgreSQL's limits if a DSN is set and it answers, and else a warning that says why not."""
    if settings.ledger.dsn is None:
        return None, []
    try:
        return await postgres_limits(settings.ledger.dsn.get_secret_value()), []
    except ConfigError as error:
        change = "run the check where PostgreSQL can be reached"
        return None, [Finding("ledger.dsn", f"{error.message}; its limits were not checked", change, "warning")]
