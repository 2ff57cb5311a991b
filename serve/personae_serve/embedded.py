"""The embedded host: the whole of Personae in one process, wired here and nowhere else."""

from __future__ import annotations

import asyncio
import fcntl
import os
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import structlog
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.trace import SpanProcessor
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from personae_runtime.config import Settings
from personae_runtime.engines.engine import Engine
from personae_runtime.engines.factory import build_engine
from personae_runtime.engines.models import path as model_path
from personae_runtime.errors import ConfigError, LedgerUnavailable, PersonaeError
from personae_runtime.ledger.control import ConsentLedger, ControlWatcher
from personae_runtime.ledger.database import Database
from personae_runtime.ledger.embedded import EmbeddedPostgres
from personae_runtime.ledger.memories import MemoryLedger
from personae_runtime.ledger.personas import PersonaLedger
from personae_runtime.ledger.sessions import SessionLedger
from personae_runtime.ledger.vault import Vault, load_master_key
from personae_runtime.ledger.writer import EventWriter
from personae_runtime.memory.edge import EdgeMemoryIndex
from personae_runtime.memory.embedder import OnnxEmbedder
from personae_runtime.memory.indexer import Indexer
from personae_runtime.memory.recall import Recall
from personae_runtime.policy.policy import Policy
from personae_runtime.sessions.service import SessionService
from personae_runtime.sessions.turn import TurnRunner
from personae_runtime.telemetry import names
from personae_runtime.telemetry.setup import LoopLagMonitor, Telemetry, setup_telemetry
from personae_serve.gateway.auth import Authenticator, development_key
from personae_serve.gateway.interceptor import GatewayInterceptor
from personae_serve.gateway.server import GatewayServer
from personae_serve.gateway.servicers import (
    ConsentServicer,
    MemoryServicer,
    PersonaServicer,
    PolicyServicer,
    SessionServicer,
)

_log = structlog.get_logger(__name__)
_HEALTH_PERIOD_S = 1.0
OUTAGE_S = 30.0
"""Seconds that a start waits for a ledger that was there and went away."""
T = TypeVar("T")
EMBEDDING_MODEL = "all-minilm-l6-v2-int8"


@dataclass(slots=True)
class Stores:
    """The ledger and the index, open: what offline commands need too."""

    database: Database
    vault: Vault
    memories: MemoryLedger
    postgres: EmbeddedPostgres | None


@dataclass(slots=True)
class MemoryParts:
    """Recall and the indexer over one index."""

    recall: Recall
    indexer: Indexer


def lock_data_dir(data_dir: Path) -> IO[str]:
    """Take the data directory for this process; released when the file is closed.

    Raises:
        ConfigError: another process has it.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    file = (data_dir / "host.lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ConfigError(
            f"{data_dir} is in use by another host; stop it, or choose another data_dir (PERSONAE_DATA_DIR)"
        ) from None
    return file


def host_id(data_dir: Path) -> str:
    """A random name of this data directory's host; made once."""
    path = data_dir / "host-id"
    if not path.exists():
        temporary = path.with_suffix(".new")
        temporary.write_text(uuid.uuid4().hex)
        os.replace(temporary, path)
    return path.read_text().strip()


async def through_outage(call: Callable[[], Awaitable[T]]) -> T:
    """The result of an idempotent call, tried again while the ledger is out of reach.

    Raises:
        LedgerUnavailable: it was for OUTAGE_S.
    """
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(LedgerUnavailable),
        stop=stop_after_delay(OUTAGE_S),
        wait=wait_exponential_jitter(multiplier=0.1, max=1.0, jitter=0.1),
        reraise=True,
    ):
        with attempt:
            return await call()
    raise AssertionError("unreachable")


async def open_stores(settings: Settings, stack: AsyncExitStack) -> Stores:
    """Start or reach PostgreSQL, migrate, and check the master key; closed by `stack`."""
    development = settings.profile == "development"
    configured = settings.ledger.master_key
    master = load_master_key(
        None if configured is None else configured.get_secret_value(), settings.data_dir, development=development
    )
    postgres: EmbeddedPostgres | None = None
    if settings.ledger.dsn is None:
        postgres = EmbeddedPostgres(settings.data_dir / "postgres")
        stack.push_async_callback(postgres.stop)
        dsn = await postgres.start()
    else:
        dsn = settings.ledger.dsn.get_secret_value()
    database = Database(dsn, pool_size=settings.ledger.pool_size, command_timeout_s=settings.ledger.commit_timeout_s)
    stack.push_async_callback(database.close)
    # A server of ours that dies now is started again; one that is somebody else's should be there.
    await (database.open() if postgres is None else through_outage(database.open))
    await through_outage(database.migrate)
    vault = Vault(master, database)
    await through_outage(vault.verify)
    memories = MemoryLedger(database, vault)
    await through_outage(memories.adopt)
    return Stores(database, vault, memories, postgres)


async def open_memory(
    settings: Settings, stores: Stores, stack: AsyncExitStack, telemetry: Telemetry, *, fresh: bool = False
) -> MemoryParts:
    """Open the index and the embedder; closed by `stack`. `fresh` begins with an empty index.

    Raises:
        MissingModel: the dense arm is on and its model is not there.
    """
    embedder = None
    if settings.memory.dense:
        embedder = OnnxEmbedder(
            model_path(EMBEDDING_MODEL, "model.onnx", settings.models_dir),
            model_path(EMBEDDING_MODEL, "tokenizer.json", settings.models_dir),
        )
        stack.push_async_callback(embedder.close)
        await embedder.start()
    index = EdgeMemoryIndex(settings.data_dir / "memory-index")
    stack.push_async_callback(index.close)
    if fresh:
        await index.recreate()
    else:
        await index.open()
    recall = Recall(
        index,
        stores.memories,
        embedder,
        on_fallback=lambda reason: telemetry.recall_fallbacks.add(1, {names.ATTR_REASON: reason.value.upper()}),
    )
    return MemoryParts(recall, Indexer(index, stores.memories, embedder))


def _cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What to tell of several failures: the first on purpose, else the first."""
    known, _ = group.split(PersonaeError)
    found: BaseException = known or group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


class EmbeddedHost:
    """Gateway, runtime, engine, PostgreSQL and index in one process.

    Args:
        span_processors, metric_readers: further receivers of telemetry.
        engine: used instead of the one that the settings name.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        span_processors: Sequence[SpanProcessor] = (),
        metric_readers: Sequence[MetricReader] = (),
        engine: Engine | None = None,
    ) -> None:
        self.settings = settings
        self._span_processors = span_processors
        self._metric_readers = metric_readers
        self._engine = engine
        self._stack = AsyncExitStack()
        self._stopping = asyncio.Event()
        self._healthy = True
        self._started = False
        self.stores: Stores
        self.engine: Engine
        self.runner: TurnRunner
        self.indexer: Indexer | None = None
        self.server: GatewayServer
        self.development_key = ""
        self.development_key_is_new = False

    async def start(self) -> int:
        """Bring everything up; the port that is served.

        Raises:
            PersonaeError: something can't start; everything that had is stopped again.
        """
        try:
            return await self._start()
        except BaseException:
            await self._stack.aclose()
            raise

    async def _start(self) -> int:
        settings, stack = self.settings, self._stack
        lock = lock_data_dir(settings.data_dir)
        stack.callback(lock.close)
        telemetry = setup_telemetry(
            settings.telemetry, span_processors=self._span_processors, metric_readers=self._metric_readers
        )
        stack.push_async_callback(telemetry.shutdown)
        # What can be wrong with the configuration is found before anything is started.
        policy = Policy.load(settings.policy.bundle, settings.policy.scorers, settings.policy.scorer_timeout_ms)
        keys = list(settings.auth.api_keys)
        if not keys:
            if settings.profile != "development":
                raise ConfigError("auth.api_keys is required outside a development profile")
            entry, self.development_key, self.development_key_is_new = development_key(settings.data_dir)
            keys.append(entry)
        self.engine = self._engine or build_engine(
            settings.engine, profile=settings.profile, models_dir=settings.models_dir
        )
        stack.push_async_callback(self.engine.close)

        try:
            async with asyncio.TaskGroup() as starting:
                starting.create_task(self.engine.start())
                opening = starting.create_task(open_stores(settings, stack))
        except BaseExceptionGroup as group:
            raise _cause(group) from group
        self.stores = stores = opening.result()
        memory = await open_memory(settings, stores, stack, telemetry) if settings.memory.enabled else None

        sessions = SessionLedger(
            stores.database,
            stores.vault,
            stores.memories,
            host=host_id(settings.data_dir),
            lease_s=settings.ledger.lease_s,
            may_store=lambda text, context: (
                settings.memory.enabled and not policy.check_memory(text, context).action.stops
            ),
        )
        await through_outage(sessions.register)
        recovered = await through_outage(sessions.recover)
        if recovered:
            _log.warning("turns_recovered", count=len(recovered))
        personas = PersonaLedger(stores.database, stores.vault)

        def observe_commit(rows: int, seconds: float) -> None:
            telemetry.commit_batch.record(rows)
            telemetry.commit_duration.record(seconds)

        writer = EventWriter(
            stores.database,
            timeout_s=settings.ledger.commit_timeout_s,
            observe=observe_commit,
        )
        writer.start()
        stack.push_async_callback(writer.close)
        control = ControlWatcher(stores.database)
        await through_outage(control.start)
        stack.push_async_callback(control.close)
        self.indexer = None if memory is None else memory.indexer
        self.runner = runner = TurnRunner(
            settings,
            engine=self.engine,
            policy=policy,
            recall=None if memory is None else memory.recall,
            indexer=self.indexer,
            personas=personas,
            sessions=sessions,
            vault=stores.vault,
            writer=writer,
            control=control,
            telemetry=telemetry,
        )
        service = SessionService(runner, sessions, stores.memories, view_limit=settings.gateway.view_buffer_events)
        consents = ConsentLedger(stores.database)
        self.server = GatewayServer(
            settings.gateway,
            GatewayInterceptor(Authenticator(keys), telemetry),
            personas=PersonaServicer(personas, stores.vault),
            sessions=SessionServicer(service, sessions, personas, policy, stores.vault, telemetry),
            memories=MemoryServicer(
                stores.memories,
                personas,
                consents,
                None if memory is None else memory.recall,
                self.indexer,
                policy,
                stores.vault,
            ),
            policy=PolicyServicer(policy),
            consents=ConsentServicer(consents, stores.vault),
            reflection=settings.profile == "development",
        )
        tasks = [
            asyncio.create_task(runner.keep(self._stopping), name="turn-upkeep"),
            asyncio.create_task(self._watch_health(), name="health"),
        ]
        if self.indexer is not None:
            tasks.append(asyncio.create_task(self.indexer.run(self._stopping), name="indexer"))
        stack.push_async_callback(self._stop_tasks, tasks)
        await stack.enter_async_context(LoopLagMonitor(telemetry.event_loop_lag))
        port = await self.server.start()
        await self.server.set_health(True)
        self._started = True
        _log.info("serving", host=settings.gateway.host, port=port, engine=self.engine.model, policy=policy.version)
        return port

    async def stop(self) -> None:
        """Drain and stop everything, last started first. Safe to call twice."""
        if self._stopping.is_set() or not self._started:
            return
        grace = self.settings.gateway.drain_grace_s
        await self.server.set_health(False)
        await self.runner.drain(grace)
        await self.server.stop(min(grace, 1.0))
        self._stopping.set()
        await self._stack.aclose()

    async def _stop_tasks(self, tasks: list[asyncio.Task[None]]) -> None:
        self._stopping.set()
        done, pending = await asyncio.wait(tasks, timeout=10)
        for task in pending:
            task.cancel()
        for task in done:
            if not task.cancelled() and task.exception() is not None:
                _log.error("task_failed", task=task.get_name(), error=repr(task.exception()))

    async def _watch_health(self) -> None:
        """Serving is: the engine answers and the ledger does."""
        while not self._stopping.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_HEALTH_PERIOD_S):
                    await self._stopping.wait()
                return
            try:
                await self.engine.health()
                await self.stores.database.fetchval("SELECT 1")
                healthy = True
            except Exception:
                # Whatever it is, a host that can't answer this can't serve.
                healthy = False
            if healthy != self._healthy:
                self._healthy = healthy
                _log.warning("health_changed", serving=healthy)
                await self.server.set_health(healthy)
