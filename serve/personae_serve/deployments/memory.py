"""The memory deployment: the index, the embedder and the indexer of a cluster.

One replica has the index open: Qdrant Edge lets one process open a directory, and
into an index on a server too only one may follow the ledger. Gateways recall
through its handle. While it is away turns go on without memories, and what is
remembered meanwhile waits in the ledger.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import structlog
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from personae_runtime.config import load_settings
from personae_runtime.errors import ConfigError, PersonaeError, Unavailable
from personae_runtime.memory.factory import Part
from personae_runtime.memory.indexer import IndexErasure
from personae_runtime.memory.recall import RecallResult
from personae_runtime.telemetry.logs import setup_logging
from personae_runtime.telemetry.setup import setup_telemetry
from personae_serve.embedded import lock_data_dir
from personae_serve.gateway.gateway import stop_tasks
from personae_serve.interpreter import hand_over_quickly
from personae_serve.stores import keep_swept, open_memory, open_stores

_log = structlog.get_logger(__name__)

# The replica before this one may still be closing the index.
_LOCK_S: Final = 60.0
# What a recall may take beside its embedding: a turn does not wait for a replica that is being replaced.
_RECALL_S: Final = 1.0
_CALL_S: Final = 2.0
_ERASE_S: Final = 60.0


class MemoryReplica:
    """Has the index.

    Args:
        config: TOML file; None for none.
        overrides: settings above the file and the environment.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: str | None, overrides: dict[str, Any], version: str
    ) -> None:
        settings = load_settings(None if config is None else Path(config), **overrides)
        # Not sys.stderr: Serve puts a buffer of a thousand lines in its place, which dies with the process.
        setup_logging(settings.telemetry, sys.__stderr__)
        hand_over_quickly()
        self._stack = AsyncExitStack()
        self._stopping = asyncio.Event()
        try:
            telemetry = setup_telemetry(settings.telemetry)
            self._stack.push_async_callback(telemetry.shutdown)
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(ConfigError),
                stop=stop_after_delay(_LOCK_S),
                wait=wait_fixed(0.2),
                reraise=True,
            ):
                with attempt:
                    lock = lock_data_dir(settings.data_dir / "cluster-memory")
            self._stack.callback(lock.close)
            stores = await open_stores(settings, self._stack)
            memory = await open_memory(settings, stores, self._stack, telemetry)
            self._recall = {Part.MEMORIES: memory.recall, Part.PASSAGES: memory.passages}
            self._indexer = {Part.MEMORIES: memory.indexer, Part.PASSAGES: memory.passage_indexer}
            tasks = [
                asyncio.create_task(indexer.run(self._stopping), name=f"indexer of {part}")
                for part, indexer in self._indexer.items()
            ]
            sweeping = asyncio.create_task(
                keep_swept(settings, stores.memories, memory.indexer, self._stopping), name="sweep"
            )
            self._stack.push_async_callback(stop_tasks, [*tasks, sweeping], self._stopping)
        except BaseException:
            await self._stack.aclose()
            raise

    async def recall(
        self,
        part: Part,
        scope: str,
        query: str,
        limit: int,
        dense_deadline_s: float,
        exclude_threads: tuple[str, ...],
        fact_limit: int,
    ) -> RecallResult | tuple[str, str]:
        """See `Recall.recall`; a failure comes back as (reason, message)."""
        try:
            return await self._recall[part].recall(
                scope,
                query,
                limit=limit,
                dense_deadline_s=dense_deadline_s,
                exclude_threads=exclude_threads,
                fact_limit=fact_limit,
            )
        except PersonaeError as error:
            return (error.reason, error.message)

    async def notify(self, part: Part) -> None:
        """What the index is of has changed."""
        self._indexer[part].notify()

    async def pending(self, part: Part) -> int:
        """Changes that are not indexed yet."""
        return await self._indexer[part].pending()

    async def erase(self, part: Part, scope: str, memory_ids: tuple[UUID, ...]) -> IndexErasure | tuple[str, str]:
        """See `Indexer.erase`; a failure comes back as (reason, message)."""
        try:
            return await self._indexer[part].erase(scope, memory_ids)
        except PersonaeError as error:
            return (error.reason, error.message)

    async def __del__(self) -> None:
        stack = getattr(self, "_stack", None)
        if stack is not None:
            self._stopping.set()
            await stack.aclose()


class RemoteMemory:
    """The memory deployment as a gateway sees it: recall, and the indexer's news.

    Args:
        part: which index is asked.
        index: its name in the ledger, whose cursor tells what is indexed.
    """

    def __init__(self, handle: DeploymentHandle[Any], part: Part, index: str) -> None:
        self._handle = handle.options(request_serialization="pickle", response_serialization="pickle")
        self._part = part
        self._index = index
        self._telling: asyncio.Task[None] | None = None
        self._again = False

    @property
    def name(self) -> str:
        """See Indexing.name."""
        return self._index

    async def recall(
        self,
        scope: str,
        query: str,
        *,
        limit: int,
        dense_deadline_s: float,
        exclude_threads: Collection[str] = (),
        fact_limit: int = 0,
    ) -> RecallResult:
        """See `Recall.recall`.

        Raises:
            Unavailable: the memory deployment does not answer in time (reason MEMORY_UNAVAILABLE).
        """
        result = await self._call(
            _RECALL_S + dense_deadline_s,
            self._handle.recall,
            self._part,
            scope,
            query,
            limit,
            dense_deadline_s,
            tuple(exclude_threads),
            fact_limit,
        )
        if isinstance(result, tuple):
            reason, message = result
            raise Unavailable(message, reason=reason, retry_after_s=1.0)
        found: RecallResult = result
        return found

    def notify(self) -> None:
        """See Indexing.notify; what is told while a call is under way makes one more."""
        if self._telling is not None and not self._telling.done():
            self._again = True
            return
        self._telling = asyncio.create_task(self._tell(), name="memory-notify")

    async def _tell(self) -> None:
        while True:
            self._again = False
            try:
                await self._call(_CALL_S, self._handle.notify, self._part)
            except PersonaeError:
                # The indexer looks by itself now and then.
                return
            if not self._again:
                return

    async def pending(self) -> int:
        """See Indexing.pending."""
        return int(await self._call(_CALL_S, self._handle.pending, self._part))

    async def erase(self, scope: str, memory_ids: Sequence[UUID] = ()) -> IndexErasure:
        """See `Indexer.erase`.

        Raises:
            Unavailable: the memory deployment does not answer in time (reason MEMORY_UNAVAILABLE).
        """
        result = await self._call(_ERASE_S, self._handle.erase, self._part, scope, tuple(memory_ids))
        if isinstance(result, tuple):
            reason, message = result
            raise Unavailable(message, reason=reason, retry_after_s=1.0)
        done: IndexErasure = result
        return done

    async def _call(self, timeout_s: float, method: DeploymentHandle[Any], *args: Any) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                return await method.remote(*args)
        except (TimeoutError, RayError, RayServeException) as error:
            raise Unavailable(
                f"the memory deployment does not answer: {type(error).__name__}",
                reason="MEMORY_UNAVAILABLE",
                retry_after_s=1.0,
            ) from error
