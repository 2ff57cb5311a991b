"""One gateway process: the turn pipeline and its server, over stores and engines that it is given.

Every host wires this same class: the embedded one beside its own stores, a
replica of a cluster over handles to the others.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta

import structlog

from personae_runtime.abuse.guard import AbuseGuard
from personae_runtime.config import ApiKey, Settings
from personae_runtime.engines.registry import Engines
from personae_runtime.errors import LedgerUnavailable
from personae_runtime.ledger.audit import AuditLog
from personae_runtime.ledger.bundles import BundleKeeper, BundleLedger
from personae_runtime.ledger.control import ConsentLedger, ControlWatcher
from personae_runtime.ledger.database import UNREACHABLE
from personae_runtime.ledger.decisions import DecisionLedger
from personae_runtime.ledger.erasure import Eraser, ErasureLedger
from personae_runtime.ledger.export import ExportLedger
from personae_runtime.ledger.personas import PersonaLedger
from personae_runtime.ledger.profiles import ProfileLedger
from personae_runtime.ledger.protocols import ProtocolLedger
from personae_runtime.ledger.reports import ReportLedger
from personae_runtime.ledger.reviews import ReviewLedger
from personae_runtime.ledger.sessions import SessionLedger
from personae_runtime.ledger.switches import SwitchLedger
from personae_runtime.ledger.usage import UsageExchange
from personae_runtime.ledger.writer import EventWriter
from personae_runtime.memory.extraction import Extractor
from personae_runtime.memory.facts import drawing
from personae_runtime.memory.indexer import Indexing
from personae_runtime.memory.passages import Corpus
from personae_runtime.memory.recall import Recalls
from personae_runtime.policy.policy import Policy
from personae_runtime.policy.rollout import Policies, Shadow, ShadowDecision
from personae_runtime.policy.signing import Trust
from personae_runtime.provenance.signing import ContentSigner
from personae_runtime.sessions.service import SessionService
from personae_runtime.sessions.turn import TurnRunner
from personae_runtime.telemetry import names
from personae_runtime.telemetry.setup import LoopLagMonitor, Telemetry
from personae_serve import proofs
from personae_serve.gateway import operations
from personae_serve.gateway.audit import AuditServicer
from personae_serve.gateway.auth import Authenticator
from personae_serve.gateway.bundles import PolicyBundleServicer
from personae_serve.gateway.content import ContentServicer
from personae_serve.gateway.interceptor import GatewayInterceptor
from personae_serve.gateway.load import AcceptProbe, StreamLoad
from personae_serve.gateway.peers import Peers
from personae_serve.gateway.reviews import ReviewServicer
from personae_serve.gateway.server import GatewayServer
from personae_serve.gateway.servicers import (
    ConsentServicer,
    CorpusServicer,
    MemoryServicer,
    PersonaServicer,
    SessionServicer,
)
from personae_serve.gateway.tls import peer_credentials, server_credentials
from personae_serve.gateway.tokens import open_tokens
from personae_serve.interpreter import hand_over_quickly, spare_collector
from personae_serve.stores import Stores, through_outage

_log = structlog.get_logger(__name__)
_HEALTH_PERIOD_S = 1.0
_REVIEWS_PERIOD_S = 30.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Recall and indexing, of people's memories and of the persona's own words: here, or in another process."""

    recall: Recalls
    indexing: Indexing
    passages: Recalls
    passage_indexing: Indexing


class Gateway:
    """Serves the API.

    One of several on a ledger has a peer listener (`gateway.peer_port`), through
    which the others forward calls about turns that run here.

    Args:
        engines: started.
        policy: the host's own, which judges unless a tenant has published bundles.
        memory: None turns memory off, of people and of the persona's own words.
        host_id: what outlives a restart of this process and is no other's.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        stores: Stores,
        engines: Engines,
        policy: Policy,
        memory: Memory | None,
        telemetry: Telemetry,
        keys: Sequence[ApiKey],
        host_id: str,
    ) -> None:
        self._settings = settings
        self._stores = stores
        self._engines = engines
        self.policies = Policies(policy)
        self._memory = memory
        self._telemetry = telemetry
        self._keys = keys
        self._host_id = host_id
        self._stack = AsyncExitStack()
        self._stopping = asyncio.Event()
        self._healthy = True
        self._serving = False
        self.load = StreamLoad(settings.gateway.max_accept_wait_s)
        self.runner: TurnRunner
        self.keeper: BundleKeeper
        self.eraser: Eraser
        self.peers: Peers
        self.server: GatewayServer

    async def start(self) -> int:
        """Recover what this host left open, and serve; the port.

        Raises:
            PersonaeError: it can't; everything that had started is stopped again.
        """
        hand_over_quickly()
        try:
            return await self._start()
        except BaseException:
            self._stopping.set()
            await self._stack.aclose()
            raise

    async def _start(self) -> int:
        settings, stores, policies, telemetry, stack = (
            self._settings,
            self._stores,
            self.policies,
            self._telemetry,
            self._stack,
        )
        credentials = server_credentials(settings.gateway.tls)
        if settings.gateway.peer_port is not None:
            # What can't be used is told now, not with the first call that must be forwarded.
            peer_credentials(settings.gateway.tls)
        content_signer = ContentSigner.of(settings)
        tokens = await open_tokens(settings.auth.jwt, stack)
        draw = drawing(
            policies.remembers,
            enabled=settings.memory.enabled and settings.memory.facts,
        )
        sessions = SessionLedger(
            stores.database,
            stores.vault,
            stores.memories,
            host=self._host_id,
            lease_s=settings.ledger.lease_s,
            may_store=lambda text, context: settings.memory.enabled and policies.remembers(text, context),
            draw=draw,
            escalation_due=timedelta(hours=settings.reviews.due_hours_escalated),
        )
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
        bundles = BundleLedger(stores.database, stores.vault)
        self.keeper = keeper = BundleKeeper(bundles, policies, Trust.of(settings), telemetry.bundles_refused.set)
        # Before anything is judged: nothing may be by the wrong rules.
        await through_outage(keeper.refresh)

        async def record_shadow(shadow: Shadow, found: list[ShadowDecision]) -> None:
            for one in found:
                telemetry.shadow_decisions.add(
                    1, {names.ATTR_POLICY_STAGE: one.live.stage.value, names.ATTR_POLICY_DIFFERS: one.differs}
                )
            await bundles.record_shadow(shadow.context, shadow.bundle, found)

        control = ControlWatcher(stores.database)

        def tell_switches(counts: Mapping[str, int]) -> None:
            for kind, count in counts.items():
                telemetry.kill_switches.set(count, {names.ATTR_SWITCH_KIND: kind})

        control.on_switches = tell_switches
        await through_outage(control.start)
        stack.push_async_callback(control.close)
        memory = self._memory
        corpus = None if memory is None else Corpus(memory.passages, stores.documents)
        profiles = ProfileLedger(stores.database, stores.vault, stores.memories.facts)
        guard = AbuseGuard(
            settings.abuse,
            settings.sessions.turns_per_minute,
            bytes.fromhex(stores.vault.pseudonym("near-duplicates")),
            lambda: policies.own.version,
        )
        self.runner = runner = TurnRunner(
            settings,
            engines=self._engines,
            policy=policies,
            recall=None if memory is None else memory.recall,
            corpus=corpus,
            indexer=None if memory is None else memory.indexing,
            personas=personas,
            sessions=sessions,
            vault=stores.vault,
            writer=writer,
            control=control,
            telemetry=telemetry,
            guard=guard,
            usage=UsageExchange(
                stores.database, guard, gateway=self._host_id, keep_s=settings.abuse.duplicate_window_s
            ),
            draw=draw,
            profiles=profiles if settings.memory.enabled else None,
            record_shadow=record_shadow,
        )

        exports = ExportLedger(stores.database, stores.vault, stores.memories)

        def let_go(scopes: list[str]) -> None:
            stores.vault.drop(scopes)
            exports.let_go(scopes)
            runner.let_go(scopes)

        control.on_scopes = let_go

        async def heard(epoch: int) -> None:
            keeper.notify()
            await sessions.acknowledge(epoch)

        control.on_epoch = heard
        policies.own.rules_off = control.rules_off
        erasures = ErasureLedger(stores.database, stores.vault, stores.memories)
        log = operations.erasure_log(settings.ledger.erasure_log, settings.data_dir)
        self.eraser = eraser = Eraser(
            erasures,
            log,
            erase_index=None if memory is None else memory.indexing.erase,
            unheard=sessions.unheard,
            prove=proofs.prover(stores.vault),
            to_line=proofs.to_line,
        )
        service = SessionService(
            runner, sessions, stores.memories, stores.documents, view_limit=settings.gateway.view_buffer_events
        )
        consents = ConsentLedger(stores.database)
        reviews = ReviewLedger(stores.database, stores.vault, settings.reviews)
        audit_log = AuditLog(
            stores.database,
            stores.vault.audit_signer,
            interval_s=settings.ledger.checkpoint_interval_s,
            on_sequenced=telemetry.audit_entries.add,
            on_age=telemetry.audit_checkpoint_age.set,
        )
        reports = ReportLedger(stores.database, stores.vault, audit_log, settings.reports)
        self.peers = Peers(
            telemetry, known=lambda: sessions.peers, credentials=lambda: peer_credentials(settings.gateway.tls)
        )
        stack.push_async_callback(self.peers.close)
        self.server = GatewayServer(
            settings.gateway,
            GatewayInterceptor(Authenticator(self._keys, tokens), telemetry),
            personas=PersonaServicer(personas, self._engines, stores.vault, settings.abuse.personas_per_day_by_owner),
            sessions=SessionServicer(
                service, sessions, personas, policies, stores.vault, telemetry, self.load, self.peers
            ),
            memories=MemoryServicer(
                stores.memories,
                personas,
                consents,
                None if memory is None else memory.recall,
                None if memory is None else memory.indexing,
                policies,
                stores.vault,
                draw,
                profiles,
                self._engines,
                erasures,
                eraser,
                exports,
            ),
            corpus=CorpusServicer(
                stores.documents,
                personas,
                corpus,
                None if memory is None else memory.passage_indexing,
                policies,
                stores.vault,
            ),
            policy=PolicyBundleServicer(
                policies,
                DecisionLedger(stores.database),
                reviews,
                ProtocolLedger(stores.database),
                SwitchLedger(stores.database, stores.vault),
                personas,
                stores.vault,
                settings.policy.redress,
                bundles,
                keeper,
            ),
            consents=ConsentServicer(consents, stores.vault),
            reviews=ReviewServicer(reviews, reports, stores.vault),
            audit=AuditServicer(audit_log, reports, stores.vault),
            content=ContentServicer(sessions, content_signer),
            operations=operations.OperationsServicer(erasures, eraser, stores.vault),
            credentials=credentials,
            reflection=settings.profile == "development",
        )
        endpoint = self.server.bind_peers()
        await through_outage(lambda: sessions.register(endpoint))
        await through_outage(lambda: sessions.acknowledge(control.epoch))
        replayed = await operations.replay(log, erasures, eraser, stores.vault)
        if replayed:
            _log.warning("erasures_replayed", count=replayed)
        recovered = await through_outage(sessions.recover)
        if recovered:
            _log.warning("turns_recovered", count=len(recovered))
        tasks = [
            asyncio.create_task(runner.keep(self._stopping), name="turn-upkeep"),
            asyncio.create_task(eraser.run(self._stopping), name="erasures"),
            asyncio.create_task(audit_log.run(self._stopping), name="audit"),
            asyncio.create_task(keeper.run(self._stopping), name="bundles"),
            asyncio.create_task(self._watch_health(), name="health"),
            asyncio.create_task(self._watch_reviews(reviews), name="reviews"),
        ]
        if memory is not None and settings.memory.extraction.enabled:
            extractor = Extractor(
                self._engines.default,
                stores.memories,
                policies.remembers,
                on_written=lambda: memory.indexing.notify(),
                batch=settings.memory.extraction.batch,
                poll_s=settings.memory.extraction.poll_s,
            )
            tasks.append(asyncio.create_task(self._extract(extractor), name="extraction"))
        stack.push_async_callback(stop_tasks, tasks, self._stopping)
        await stack.enter_async_context(LoopLagMonitor(telemetry.event_loop_lag))
        port = await self.server.start()
        stack.callback(gc.unfreeze)
        spare_collector()
        await self.server.set_health(True)
        await stack.enter_async_context(AcceptProbe(self.server.probe_address, self.load, telemetry.accept_wait))
        self._serving = True
        return port

    async def stop(self) -> None:
        """Drain and stop everything. Safe to call twice."""
        if self._stopping.is_set() or not self._serving:
            return
        self._serving = False
        await self.drain(self._settings.gateway.drain_grace_s)
        self._stopping.set()
        await self._stack.aclose()

    async def drain(self, grace_s: float) -> None:
        """Admit no more, let turns end within `grace_s` seconds, and serve nothing any more.

        If other gateways live, clients are sent there at once: the public
        listener closes and each of their streams ends with go_away. They come
        back through another gateway, which forwards them here until their turn
        has ended. A gateway without others, or without a peer listener, keeps
        its streams until their turns have ended.
        """
        await self.server.set_health(False)
        try:
            others = await self.runner.leave()
        except LedgerUnavailable:
            others = False
        hand_over = others and bool(self.server.endpoint)
        _log.info("draining", hand_over=hand_over, running=len(self.runner.hubs.running()))
        if hand_over:
            await self.server.close_public(grace_s)
            self.peers.leave(grace_s)
        await self.runner.drain(grace_s, hand_over=hand_over)
        await self.server.stop(min(grace_s, 1.0))

    async def _extract(self, extractor: Extractor) -> None:
        """Run the extractor while no other gateway of the ledger does."""
        while not self._stopping.is_set():
            with suppress(LedgerUnavailable, *UNREACHABLE):
                connection = await self._stores.database.connect()
                try:
                    # Held by the connection: it goes with the process.
                    if await connection.fetchval("SELECT pg_try_advisory_lock(hashtext('personae extraction'))"):
                        await extractor.run(self._stopping)
                finally:
                    connection.terminate()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.memory.extraction.poll_s):
                    await self._stopping.wait()

    async def _watch_reviews(self, reviews: ReviewLedger) -> None:
        """Tell how many reviews wait, and how many are overdue."""
        while not self._stopping.is_set():
            with suppress(LedgerUnavailable, *UNREACHABLE):
                waiting, overdue = await reviews.counts()
                self._telemetry.reviews_open.set(waiting)
                self._telemetry.reviews_overdue.set(overdue)
            with suppress(TimeoutError):
                async with asyncio.timeout(_REVIEWS_PERIOD_S):
                    await self._stopping.wait()

    async def _watch_health(self) -> None:
        """Serving is: the default engine answers and the ledger does."""
        while not self._stopping.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_HEALTH_PERIOD_S):
                    await self._stopping.wait()
                return
            try:
                await self._engines.default.health()
                await self._stores.database.fetchval("SELECT 1")
                healthy = True
            except Exception:
                # Whatever it is, a host that can't answer this can't serve.
                healthy = False
            if healthy != self._healthy:
                self._healthy = healthy
                _log.warning("health_changed", serving=healthy)
                if self._serving:
                    await self.server.set_health(healthy)


async def stop_tasks(tasks: Sequence[asyncio.Task[None]], stopping: asyncio.Event) -> None:
    """Ask tasks to end, and see that they do."""
    stopping.set()
    done, pending = await asyncio.wait(tasks, timeout=10)
    for task in pending:
        task.cancel()
    for task in done:
        if not task.cancelled() and task.exception() is not None:
            _log.error("task_failed", task=task.get_name(), error=repr(task.exception()))
