"""The embedded host: the whole of Personae in one process, wired here and nowhere else."""

from __future__ import annotations

import asyncio
import fcntl
import os
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import IO

import structlog
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.trace import SpanProcessor

from personae_runtime.config import Settings
from personae_runtime.engines.engine import Engine
from personae_runtime.engines.factory import build_engine
from personae_runtime.engines.registry import Engines
from personae_runtime.errors import ConfigError, PersonaeError
from personae_runtime.memory.indexer import Indexer
from personae_runtime.telemetry.setup import setup_telemetry
from personae_serve.gateway.auth import accepted_keys
from personae_serve.gateway.gateway import Gateway, Memory, stop_tasks
from personae_serve.gateway.tls import read_certificate_files
from personae_serve.stores import Stores, keep_swept, leave_memory, open_memory, open_policy, open_stores

_log = structlog.get_logger(__name__)


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
        self._started = False
        self.stores: Stores
        self.engine: Engine
        self.gateway: Gateway
        self.indexer: Indexer | None = None
        self.passage_indexer: Indexer | None = None
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
        policy = await open_policy(settings, stack)
        if settings.gateway.tls.certificate is not None:
            read_certificate_files(settings.gateway.tls)
        accepted = accepted_keys(settings)
        self.development_key, self.development_key_is_new = accepted.development, accepted.new
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

        self.indexer = None
        if memory is None:
            await leave_memory(settings, stores)
        else:
            self.indexer, self.passage_indexer = memory.indexer, memory.passage_indexer
        # What is kept is forgotten in time whether or not anything recalls it.
        working = [
            asyncio.create_task(keep_swept(settings, stores.memories, self.indexer, self._stopping), name="sweep")
        ]
        for indexer in () if memory is None else (memory.indexer, memory.passage_indexer):
            working.append(asyncio.create_task(indexer.run(self._stopping), name="indexer"))
        stack.push_async_callback(stop_tasks, working, self._stopping)
        self.gateway = Gateway(
            settings,
            stores=stores,
            engines=Engines([self.engine]),
            policy=policy,
            memory=None
            if memory is None
            else Memory(memory.recall, memory.indexer, memory.passages, memory.passage_indexer),
            telemetry=telemetry,
            keys=accepted.keys,
            host_id=host_id(settings.data_dir),
        )
        port = await self.gateway.start()
        self._started = True
        _log.info("serving", host=settings.gateway.host, port=port, engine=self.engine.model, policy=policy.version)
        return port

    async def stop(self) -> None:
        """Drain and stop everything, last started first. Safe to call twice."""
        if not self._started:
            return
        self._started = False
        await self.gateway.stop()
        await self._stack.aclose()
