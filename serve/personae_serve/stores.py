"""The ledger and the memory index, opened for a host or for an offline command."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from personae_runtime.config import Settings
from personae_runtime.engines.models import path as model_path
from personae_runtime.errors import LedgerUnavailable
from personae_runtime.ledger.database import Database
from personae_runtime.ledger.embedded import EmbeddedPostgres
from personae_runtime.ledger.memories import MemoryLedger
from personae_runtime.ledger.vault import Vault, load_master_key
from personae_runtime.memory.edge import EdgeMemoryIndex
from personae_runtime.memory.embedder import OnnxEmbedder
from personae_runtime.memory.indexer import Indexer
from personae_runtime.memory.recall import Recall
from personae_runtime.telemetry import names
from personae_runtime.telemetry.setup import Telemetry

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
    indexer = Indexer(index, stores.memories, embedder, on_erase=lambda scope: stores.vault.drop((scope,)))
    return MemoryParts(recall, indexer)
