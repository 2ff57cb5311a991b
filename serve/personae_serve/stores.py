"""The ledger and the memory index, opened for a host or for an offline command."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from personae_runtime.config import Settings
from personae_runtime.engines.factory import build_engine
from personae_runtime.engines.models import path as model_path
from personae_runtime.errors import ConfigError, FailedPrecondition, LedgerUnavailable
from personae_runtime.ledger.database import Database
from personae_runtime.ledger.documents import DocumentLedger
from personae_runtime.ledger.embedded import EmbeddedPostgres
from personae_runtime.ledger.memories import MemoryLedger, Retention
from personae_runtime.ledger.vault import Vault, master_key_of
from personae_runtime.memory.edge import EdgeMemoryIndex
from personae_runtime.memory.embedder import OnnxEmbedder, Vector
from personae_runtime.memory.factory import Part, build_index, cursor_name, index_directory, server_settings
from personae_runtime.memory.indexer import Indexer
from personae_runtime.memory.qdrant import QdrantMemoryIndex
from personae_runtime.memory.qdrant_layout import ServerLayout
from personae_runtime.memory.recall import Fallback, Recall
from personae_runtime.memory.store import ChangeCursor, MemoryStore
from personae_runtime.policy.guard_models import GuardModelScorer, family_of
from personae_runtime.policy.policy import Policy
from personae_runtime.policy.scorers import Scorer
from personae_runtime.policy.signing import Trust
from personae_runtime.telemetry import names
from personae_runtime.telemetry.setup import Telemetry

_log = structlog.get_logger(__name__)

OUTAGE_S = 30.0
"""Seconds that a start waits for a ledger that was there and went away."""
T = TypeVar("T")
EMBEDDING_MODEL = "all-minilm-l6-v2-int8"
REBUILD_BATCH = 128
"""Changes of a rebuild between two flushes: nobody waits for the first of them."""


@dataclass(slots=True)
class Stores:
    """The ledger and the index, open: what offline commands need too."""

    database: Database
    vault: Vault
    memories: MemoryLedger
    documents: DocumentLedger
    postgres: EmbeddedPostgres | None

    def of(self, part: Part) -> MemoryStore:
        """What an index is filled from."""
        return self.memories if part is Part.MEMORIES else self.documents


@dataclass(slots=True)
class MemoryParts:
    """Recall and the indexer over an index, of people's memories and of the personas' own words."""

    recall: Recall
    indexer: Indexer
    passages: Recall
    passage_indexer: Indexer


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
    master = master_key_of(settings)
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
    memories = MemoryLedger(database, vault, max_facts=settings.memory.retention.max_facts)
    documents = DocumentLedger(database, vault, cursor_name(settings.memory, Part.PASSAGES))
    for feed in (memories, documents):
        await through_outage(feed.adopt)
    return Stores(database, vault, memories, documents, postgres)


def retention(settings: Settings) -> Retention:
    """How long memories are kept, as the settings say."""

    def days(number: float | None) -> timedelta | None:
        return None if number is None else timedelta(days=number)

    told = settings.memory.retention
    return Retention(days(told.episode_days), days(told.fact_days), days(told.closed_fact_days))


async def keep_swept(settings: Settings, memories: MemoryLedger, indexer: Indexer | None, stop: asyncio.Event) -> None:
    """Forget what is due, now and then, until `stop` is set; a failure is logged and tried again."""
    kept = retention(settings)
    while not stop.is_set():
        try:
            while not stop.is_set() and (swept := await memories.sweep(kept)):
                _log.info("memories_swept", count=swept)
                if indexer is not None:
                    indexer.notify()
        except Exception:
            # What is due stays due.
            _log.warning("sweep_failed", exc_info=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(settings.memory.retention.sweep_interval_s):
                await stop.wait()


async def open_memory(settings: Settings, stores: Stores, stack: AsyncExitStack, telemetry: Telemetry) -> MemoryParts:
    """Open the indexes and the embedder; closed by `stack`.

    Raises:
        MissingModel: the dense arm is on and its model is not there.
    """
    embedder = await _open_embedder(settings, stack)

    def on_fallback(reason: Fallback) -> None:
        telemetry.recall_fallbacks.add(1, {names.ATTR_REASON: reason.value.upper()})

    async def opened(part: Part) -> tuple[Recall, Indexer]:
        index, store = build_index(settings.memory, settings.data_dir, part), stores.of(part)
        stack.push_async_callback(index.close)
        await index.open()
        name = cursor_name(settings.memory, part)
        indexer = Indexer(index, store, embedder, name, on_erase=lambda scope: stores.vault.drop((scope,)))
        return Recall(index, store, embedder, on_fallback=on_fallback), indexer

    return MemoryParts(*await opened(Part.MEMORIES), *await opened(Part.PASSAGES))


async def leave_memory(settings: Settings, stores: Stores) -> None:
    """Remove embedded indexes of a time when memory was on: no erasure would reach them. With memory on again they are
    built anew from the ledger."""
    for part in Part:
        directory = index_directory(settings.data_dir, part)
        if directory.exists():
            await stores.of(part).save_cursor(cursor_name(settings.memory, part), ChangeCursor())
            await asyncio.to_thread(shutil.rmtree, directory)
            _log.warning("index_removed", directory=str(directory), reason="memory is off")


async def rebuild_memory(
    settings: Settings, stores: Stores, stack: AsyncExitStack, on_progress: Callable[[int, int], None]
) -> int:
    """Build the indexes anew from the ledger; the number of changes taken up.

    An embedded index is emptied first, readable or not. On a server a new
    collection is filled beside the one in use and takes its place when it is
    level with the ledger: searches go on meanwhile.

    Args:
        on_progress: told (changes done, changes in all) now and then.

    Raises:
        MissingModel: the dense arm is on and its model is not there.
    """
    embedder = await _open_embedder(settings, stack)
    done = 0
    total = sum([await stores.of(part).total_changes() for part in Part])
    for part in Part:

        def show(finished: int, _: int, before: int = done) -> None:
            on_progress(before + finished, max(total, before + finished))

        done += await _rebuild(settings, stores.of(part), stack, part, embedder, show)
    return done


async def _rebuild(
    settings: Settings,
    store: MemoryStore,
    stack: AsyncExitStack,
    part: Part,
    embedder: OnnxEmbedder | None,
    on_progress: Callable[[int, int], None],
) -> int:
    name = cursor_name(settings.memory, part)
    if settings.memory.qdrant.url is None:
        embedded = EdgeMemoryIndex(index_directory(settings.data_dir, part))
        stack.push_async_callback(embedded.close)
        await embedded.recreate()
        return await Indexer(embedded, store, embedder, name, batch=REBUILD_BATCH).reindex(on_progress)
    qdrant = server_settings(settings.memory, part)
    layout = await stack.enter_async_context(ServerLayout(qdrant))
    old = await layout.target()
    collection = await layout.create()
    index = QdrantMemoryIndex(qdrant, collection=collection)
    stack.push_async_callback(index.close)
    await index.open()
    # A cursor of its own: the indexer of a running host goes on with the other one.
    rebuild = f"{name}:rebuild"
    indexer = Indexer(index, store, embedder, rebuild, batch=REBUILD_BATCH)
    done = await indexer.reindex(on_progress)
    await layout.switch(collection)
    # What that indexer put into the old collection since.
    done += await indexer.catch_up()
    if await store.load_cursor(name) == ChangeCursor():
        await store.save_cursor(name, await store.load_cursor(rebuild))
    if old is not None:
        await layout.drop(old)
    return done


async def _open_embedder(settings: Settings, stack: AsyncExitStack) -> OnnxEmbedder | None:
    if not settings.memory.dense:
        return None
    embedder = make_embedder(settings.models_dir)
    stack.push_async_callback(embedder.close)
    await embedder.start()
    return embedder


def make_embedder(models: Path) -> OnnxEmbedder:
    """The embedding model of a models folder, to be started."""
    return OnnxEmbedder(
        model_path(EMBEDDING_MODEL, "model.onnx", models), model_path(EMBEDDING_MODEL, "tokenizer.json", models)
    )


def make_guard_model(settings: Settings, deadline_ms: float | None = None) -> GuardModelScorer:
    """The scorer `guard_model` with an engine of this process, to be started.

    Args:
        deadline_ms: instead of the configured one.

    Raises:
        ConfigError: the settings don't say which model, or how it is run.
    """
    chosen, entry = settings.policy.guard_model, settings.guard_model_deployment
    if chosen.family is None or entry is None or entry.kind != "vllm":
        raise ConfigError(
            "the scorer guard_model needs policy.guard_model.family, policy.guard_model.model, and an entry of"
            " cluster.models of that model and of kind vllm; see docs/policy.md"
        )
    engine = build_engine(entry, profile=settings.profile, models_dir=settings.models_dir)
    return GuardModelScorer(family_of(chosen), engine, (deadline_ms or chosen.deadline_ms) / 1000)


@asynccontextmanager
async def started(*parts: OnnxEmbedder | GuardModelScorer | None) -> AsyncIterator[None]:
    """What scorers need, started in order, as long as the block lasts; None is nothing."""
    async with AsyncExitStack() as stack:
        for part in parts:
            if part is not None:
                stack.push_async_callback(part.close)
                await part.start()
        yield


async def open_policy(
    settings: Settings, stack: AsyncExitStack, guard_model: Scorer | None = None, away: Collection[str] = ()
) -> Policy:
    """The policy, with the embedding model where a scorer needs it. That is a session of its own: a turn's recall
    and its gate embed at the same time.

    Args:
        guard_model: the scorer of that name; None runs the model in this process if it is configured.
        away: names of scorers that run elsewhere: for these no model is opened here.

    Raises:
        ConfigError: the bundle or a scorer can't be used.
        MissingModel: the embedding model, or the guard model, isn't there.
    """
    chosen = settings.policy
    embedder = make_embedder(settings.models_dir) if "cascade" in chosen.scorers and "cascade" not in away else None
    own = make_guard_model(settings) if guard_model is None and "guard_model" in chosen.scorers else None
    policy = Policy.load(
        chosen.bundle,
        chosen.scorers,
        chosen.scorer_timeout_ms,
        embedder or _Elsewhere(),
        Trust.of(settings),
        chosen.languages,
        guard_model or own,
    )
    await stack.enter_async_context(started(embedder, own))
    return policy


class _Elsewhere:
    """`Embedder` of a scorer that another process runs, and that only says here what it gives."""

    async def embed(self, texts: Sequence[str], *, bulk: bool = False) -> list[Vector]:
        raise FailedPrecondition("the embedding model is open in the guard deployment", reason="EMBEDDER_CLOSED")
