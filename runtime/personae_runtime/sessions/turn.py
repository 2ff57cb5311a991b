"""The turn: one pipeline, read top to bottom.

    admit → gate input ∥ recall → gate memories → compose
          → generate → gate stream → record and deliver → remember

`TurnRunner.admit` persists the person's words and takes the turn's lease;
`TurnRunner._run` does the rest in a task of its own, so that losing a stream
does not end the turn.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeVar
from uuid import UUID, uuid4

import structlog
from opentelemetry import context as otel_context
from opentelemetry import trace
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from personae_runtime.abuse.guard import AbuseGuard, Attempt, Origin, Ticket
from personae_runtime.config import Settings
from personae_runtime.engines.engine import Engine, EngineFinish, GenerateRequest, Message
from personae_runtime.engines.registry import Engines
from personae_runtime.errors import (
    Aborted,
    Draining,
    EngineDead,
    EngineOverloaded,
    InvalidArgument,
    LeaseLost,
    LedgerUnavailable,
    PersonaeError,
    ResourceExhausted,
    Unavailable,
)
from personae_runtime.ledger.control import ControlWatcher, Standing, Watch, require_speech
from personae_runtime.ledger.personas import PersonaLedger
from personae_runtime.ledger.profiles import ProfileLedger, place
from personae_runtime.ledger.sessions import Admission, SessionLedger, SessionRow, turn_memory
from personae_runtime.ledger.usage import UsageExchange
from personae_runtime.ledger.vault import Scope, ScopeCipher, Vault
from personae_runtime.ledger.writer import EventWriter
from personae_runtime.memory.facts import Draw, Statement
from personae_runtime.memory.indexer import Indexing
from personae_runtime.memory.passages import CitedPassage, Corpus, CorpusResult, Passage
from personae_runtime.memory.profile import fit
from personae_runtime.memory.recall import RecalledMemory, RecallResult, Recalls
from personae_runtime.memory.store import MemoryRecord
from personae_runtime.personas.definition import PersonaDefinition, VerifiedClaim
from personae_runtime.personas.types import persona_type
from personae_runtime.policy.claims import holding
from personae_runtime.policy.decision import Action, AgeBand, Decision, PolicyContext, Stage
from personae_runtime.policy.gate import StreamGate
from personae_runtime.policy.policy import Policy
from personae_runtime.policy.protocols import Tier
from personae_runtime.policy.reasons import SCORER_FAILED
from personae_runtime.policy.rollout import Policies, Shadow, ShadowDecision
from personae_runtime.policy.signals import killed_by
from personae_runtime.provenance.label import NO_ORIGIN
from personae_runtime.provenance.label import Origin as Writer
from personae_runtime.sessions.events import (
    Body,
    Event,
    GoAway,
    Latency,
    MemoryCitation,
    Notice,
    PassageCitation,
    PolicyEvent,
    TextDelta,
    TurnCompleted,
    TurnInterrupted,
    TurnStarted,
    Usage,
    Waiting,
)
from personae_runtime.sessions.prompt import PastTurn, compose, fit_history
from personae_runtime.sessions.recorder import Recorder
from personae_runtime.sessions.views import Hub, Hubs, View
from personae_runtime.style.compile import compile_prefix
from personae_runtime.telemetry import names
from personae_runtime.telemetry.setup import Telemetry, fail_span, inject_context

_log = structlog.get_logger(__name__)

_CACHED_PERSONAS = 1_000
_CACHED_HISTORIES = 2_000
_FRESH_TIMEOUT_S = 5.0
_FINISH_RETRY_S = 30.0
_SHADOW_S = 2.0
_ELSEWHERE_PERIOD_S = 0.5
# Turns up to which text is never held back, and at which it is held longest:
# one process keeps 250 streams of 20 deltas/s on time, and 500 at 100 ms.
_COALESCE_FROM_TURNS = 32
_COALESCE_FULL_TURNS = 500
_PROMPT_MARGIN_TOKENS = 64


@dataclass(frozen=True, slots=True)
class CompiledPersona:
    """A revision, ready for prompts, and the engine of its model."""

    definition: PersonaDefinition
    engine: Engine
    type: str
    display_name: str
    prefix: str
    prefix_tokens: int
    claims: tuple[VerifiedClaim, ...]
    until: datetime | None  # when one of them expires


R = TypeVar("R")
C = TypeVar("C", RecalledMemory, CitedPassage)


async def _none() -> None:
    """What is not asked for."""


def _nothing() -> None:
    """Nobody is left to be told."""


@dataclass(slots=True, eq=False)
class LiveTurn:
    """A turn that runs in this process."""

    session: SessionRow
    cipher: ScopeCipher
    turn_id: str
    text: str
    persona: CompiledPersona
    admission: Admission
    admitted: float
    hub: Hub
    watch: Watch
    context: otel_context.Context
    events: list[Event] = field(default_factory=list)
    recorder: Recorder = field(init=False)
    task: asyncio.Task[None] = field(init=False)
    stop_reason: str = ""
    prompt_at: float | None = None
    first_delta_at: float | None = None
    record_span: trace.Span | None = None
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    # Until the input gate lets the words pass, no prompt may hold them.
    in_history: bool = False
    input_scores: Mapping[str, float] = field(default_factory=dict)
    memory: MemoryRecord | None = None
    statements: tuple[Statement, ...] = ()
    citations: dict[str, MemoryRecord | Passage] = field(default_factory=dict)
    failure: PersonaeError | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    stoppable: bool = False
    history_from: int = 0
    policy: PolicyContext = field(default_factory=PolicyContext)
    # What judges this turn to its end, and what only watches.
    rules: Policy = field(kw_only=True)
    shadow: Shadow | None = None
    origin: Writer = NO_ORIGIN
    ticket: Ticket | None = None

    killed_by: str = ""

    @property
    def request_id(self) -> str:
        """The engine's name for the generation."""
        return f"{self.session.session_pk}/{self.admission.turn_no}"

    def lose(self, standing: Standing) -> None:
        """End the turn because its persona may not speak any more, for a reason that may be gone when it has ended."""
        if standing.killed and not self.stop_reason:
            self.killed_by = standing.reason
        self.stop("KILLED" if standing.killed else "WITHDRAWN")

    def stop(self, reason: str) -> None:
        """End the turn early; the first reason counts. Safe to call from anywhere in the loop."""
        if not self.stop_reason:
            self.stop_reason = reason
            # A task that is cancelled before its first step never takes one; this one must, to end the turn.
            if self.stoppable:
                self.task.cancel()


class TurnRunner:
    """Runs turns.

    Everything it is given is started; it owns only the turns.

    Args:
        guard: asked before each turn; `usage` tells it of other processes.
        draw: the facts that the person's words state; none unless given.
        profiles: None puts no card before the model.
        record_shadow: what a candidate bundle would have decided in a turn goes there.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        engines: Engines,
        policy: Policies,
        recall: Recalls | None,
        corpus: Corpus | None,
        indexer: Indexing | None,
        personas: PersonaLedger,
        sessions: SessionLedger,
        vault: Vault,
        writer: EventWriter,
        control: ControlWatcher,
        telemetry: Telemetry,
        guard: AbuseGuard,
        usage: UsageExchange,
        draw: Draw = lambda record, context: (),
        profiles: ProfileLedger | None = None,
        record_shadow: Callable[[Shadow, list[ShadowDecision]], Awaitable[None]] | None = None,
    ) -> None:
        self._settings = settings
        self._profiles = profiles
        self._draw = draw
        self._engines = engines
        self._policy = policy
        self._record_shadow = record_shadow
        self._shadows: set[asyncio.Task[None]] = set()
        self._recall = recall
        self._corpus = corpus
        self._indexer = indexer
        self._personas = personas
        self._sessions = sessions
        self._vault = vault
        self._writer = writer
        self._control = control
        self._telemetry = telemetry
        self._guard = guard
        self._usage = usage
        self._compiled: OrderedDict[tuple[str, str, int, str, str], CompiledPersona] = OrderedDict()
        self._histories: OrderedDict[tuple[str, int], list[PastTurn]] = OrderedDict()
        self._admitting = 0
        self._running = 0
        self._admissions: set[asyncio.Future[LiveTurn | None]] = set()
        self._draining = False
        # The event loop's time until which turns go on here whose watchers are sent elsewhere.
        self._away_until: float | None = None
        self.hubs = Hubs()

    # -- admit ---------------------------------------------------------------

    async def admit(
        self,
        session: SessionRow,
        turn_id: str,
        text: str,
        *,
        received: float | None = None,
        origin: Origin = Origin(),  # noqa: B008 - immutable
    ) -> LiveTurn | None:
        """Admit and start a turn, or join it if it runs here already; None if it has ended.

        `received` is when the call came in, on the monotonic clock; a turn's latencies count from it.
        Nothing is changed unless the turn is admitted; on return it is durable.

        Raises:
            AlreadyExists, Aborted, FailedPrecondition: see `SessionLedger.admit`.
            ResourceExhausted: too many turns, here or by this user, or see `AbuseGuard`.
            InvalidArgument: the text alone does not fit the model's context.
            OwnedElsewhere: another process runs this turn.
            Draining: no more turns are admitted here.
        """
        # A client that leaves must not cut an admission in two: what is recorded must also run.
        admitting = asyncio.ensure_future(
            self._admit_once(session, turn_id, text, received or time.monotonic(), origin)
        )
        self._admissions.add(admitting)
        admitting.add_done_callback(self._admissions.discard)
        admitting.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(admitting)

    async def _admit_once(
        self, session: SessionRow, turn_id: str, text: str, received: float, origin: Origin
    ) -> LiveTurn | None:
        async with self.hubs.locked(session.session_pk) as hub:
            hub.scope = session.scope
            if hub.turn is not None and hub.turn.turn_id == turn_id and hub.turn.text == text:
                return hub.turn
            if hub.turn is not None:
                # In the ledger it may have ended, with the news of it still on its way.
                running = Aborted(
                    "another turn of this session runs; wait for it or cancel it",
                    reason="TURN_IN_PROGRESS",
                    metadata={"turn_id": hub.turn.turn_id},
                )
                await self._raise_unless_known(session, turn_id, running)
            self._admitting += 1
            try:
                return await self._admit(hub, session, turn_id, text, received, origin)
            finally:
                self._admitting -= 1

    async def _admit(
        self, hub: Hub, session: SessionRow, turn_id: str, text: str, received: float, origin: Origin
    ) -> LiveTurn | None:
        context = otel_context.get_current()
        with self._telemetry.stage(names.SPAN_ADMIT, context):
            persona = await self._persona(session)
            self._check_length(persona, text)
            cipher = await self._vault.cipher(Scope(session.tenant, session.persona, session.user))
            full = self._refusal(session, persona.engine)
            if full is not None:
                # A repeat is not new load: only a turn that would be new is turned away.
                await self._raise_unless_known(session, turn_id, full)
            ticket = None if full is not None else await self._leave_for(session, turn_id, text, origin)
            started = TurnStarted(disclosure=session.disclosure, revision=session.revision)
            policy = PolicyContext(
                persona.type,
                AgeBand(session.age_band),
                session.region_code,
                tenant=session.tenant,
                persona=session.persona,
                revision=session.revision,
                claims=persona.claims,
            )
            rules = self._policy.of(session.tenant, session.name.session_name())
            writer = Writer(persona.engine.model, persona.definition.adapter, rules.version)
            try:
                admission = await self._sessions.admit(
                    session,
                    cipher,
                    turn_id,
                    text,
                    started,
                    lambda clocks, now, first: rules.protocols.attend(clocks, now, policy, first=first),
                    writer,
                )
            except BaseException:
                if ticket is not None:
                    self._guard.dropped(ticket)
                raise
        if ticket is not None and not admission.new:
            self._guard.dropped(ticket)
        if not admission.new:
            if not admission.running:
                return None
            if admission.owner != self._sessions.owner:
                elsewhere = await self._sessions.whereabouts(session.session_pk)
                if elsewhere is None:
                    return None
                raise elsewhere
            # Ours, yet nothing runs it: its admission's acknowledgement was lost.
            await self._close_orphan(session.session_pk, admission.turn_no)
            return None
        turn = LiveTurn(
            rules=rules,
            shadow=self._shadow(policy),
            session=session,
            cipher=cipher,
            turn_id=turn_id,
            text=text,
            persona=persona,
            admission=admission,
            admitted=received,
            hub=hub,
            watch=Watch(
                session.tenant,
                session.persona,
                session.revision,
                session.user,
                admission.standing,
                on_withdrawn=lambda: turn.lose(turn.watch.standing),
            ),
            context=context,
            history_from=admission.history_from,
            ticket=ticket,
            policy=policy,
            origin=writer,
        )
        turn.events.append(Event(admission.first_event_id, turn_id, admission.admitted_at, started, writer))
        turn.events += admission.notices
        turn.recorder = Recorder(
            turn_id,
            admission.first_event_id + 1 + len(admission.notices),
            seal=lambda event: self._sessions.row(session.session_pk, admission.turn_no, cipher, event),
            append=lambda rows: self._writer.append(rows, admission.owner),
            may_release=lambda: self._may_release(turn),
            releasable=lambda: self._control.is_fresh and turn.watch.standing.may_speak,
            deliver=lambda event: self._deliver(turn, event),
            pause_s=self._pause_s,
            on_lateness=self._telemetry.delta_lateness.record,
            max_pending_chars=self._settings.sessions.coalesce_max_chars,
            origin=writer,
        )
        turn.recorder.on_failure = lambda: turn.stop("LEDGER_UNAVAILABLE")
        self._control.add(turn.watch, admission.epoch)
        hub.turn = turn
        self._running += 1
        if not hub.views:
            hub.unwatched_since = time.monotonic()
        for event in turn.events:
            hub.publish(event)
        self._telemetry.active_turns.add(1)
        turn.task = asyncio.create_task(self._run(turn), name=f"turn {turn.request_id}")
        return turn

    def _refusal(self, session: SessionRow, engine: Engine) -> PersonaeError | None:
        limits = self._settings.sessions
        if self._draining:
            return Draining()
        # The one being admitted counts itself among those being admitted.
        if self._running + self._admitting > limits.max_running_turns:
            return ResourceExhausted("too many turns run here", reason="TOO_MANY_TURNS", retry_after_s=1.0)
        try:
            self._policy.of(session.tenant)
        except Unavailable as missing:
            return missing
        capacity = engine.capacity()
        if capacity.running >= capacity.max_concurrent and capacity.waiting >= capacity.max_waiting:
            return EngineOverloaded("the engine's queue is full", retry_after_s=1.0)
        return None

    async def _leave_for(self, session: SessionRow, turn_id: str, text: str, origin: Origin) -> Ticket | None:
        """Leave to begin a turn by what its people and places do; None for a turn that is known."""
        asked = self._guard.ask(
            Attempt(
                tenant=session.tenant,
                persona=session.persona,
                owner=session.owner,
                person=session.scope,
                user_name=session.name.user_name(),
                origin=origin,
                text=text,
            )
        )
        if isinstance(asked, Ticket):
            return asked
        try:
            await self._raise_unless_known(session, turn_id, asked.error)
        except ResourceExhausted:
            self._telemetry.abuse_refusals.add(1, {names.ATTR_REASON: asked.error.reason})
            if asked.decision is not None:
                try:
                    await self._sessions.decide(session, 0, asked.decision)
                except PersonaeError as error:
                    # Refused all the same.
                    _log.warning("refusal_not_recorded", reason=error.reason)
            raise
        return None

    async def _raise_unless_known(self, session: SessionRow, turn_id: str, refusal: PersonaeError) -> None:
        try:
            await self._sessions.turn(session, turn_id)
        except PersonaeError:
            raise refusal from None

    def _check_length(self, persona: CompiledPersona, text: str) -> None:
        room = self._prompt_room(persona) - persona.prefix_tokens
        if persona.engine.count_tokens(text) > room:
            raise InvalidArgument(
                f"the text does not fit the model's context: at most about {room} tokens are left for it",
                reason="TEXT_TOO_LONG",
                violations=(("text", f"at most about {room} tokens"),),
            )

    def _prompt_room(self, persona: CompiledPersona) -> int:
        return persona.engine.capacity().max_context_tokens - self._max_tokens(persona) - _PROMPT_MARGIN_TOKENS

    def _max_tokens(self, persona: CompiledPersona) -> int:
        return persona.definition.max_output_tokens or self._settings.engine.max_output_tokens

    async def _persona(self, session: SessionRow) -> CompiledPersona:
        # A revision never changes; what its persona is called may, and claims expire.
        now = datetime.now(UTC)
        key = (session.tenant, session.persona, session.revision, session.persona_type, session.display_name)
        found = self._compiled.get(key)
        if found is not None and (found.until is None or now < found.until):
            self._compiled.move_to_end(key)
            return found
        revision = await self._personas.revision(session.name, session.revision)
        claims = holding(revision.definition.verified_claims, session.persona_type, now)
        prefix = compile_prefix(
            revision.definition, persona_type=session.persona_type, display_name=session.display_name, claims=claims
        )
        engine = self._engines.get(revision.definition.model)
        found = CompiledPersona(
            revision.definition,
            engine,
            session.persona_type,
            session.display_name,
            prefix,
            engine.count_tokens(prefix),
            claims,
            min((one.expires_at for one in claims if one.expires_at is not None), default=None),
        )
        self._compiled[key] = found
        if len(self._compiled) > _CACHED_PERSONAS:
            self._compiled.popitem(last=False)
        return found

    # -- the pipeline --------------------------------------------------------

    async def _run(self, turn: LiveTurn) -> None:
        outcome: Body = TurnInterrupted(0, "ENGINE_FAILED")
        turn.recorder.start()
        try:
            turn.stoppable = True
            if turn.stop_reason:
                raise asyncio.CancelledError
            async with asyncio.timeout(self._settings.sessions.turn_timeout_s):
                input_decision, (recalled, said), card = await asyncio.gather(
                    self._gate_input(turn), self._recall_for(turn), self._card_for(turn)
                )
                if input_decision.action.stops:
                    outcome = await self._refuse(turn, input_decision)
                else:
                    memories, passages = await self._gate_memories(turn, recalled, said)
                    messages = await self._compose(turn, memories, passages, card)
                    outcome = await self._generate(turn, messages)
                self._remember(turn, input_decision)
                await turn.recorder.flush()
        except asyncio.CancelledError:
            if not turn.stop_reason:
                turn.stop_reason = "OWNER_LOST"
        except TimeoutError:
            turn.stop_reason = turn.stop_reason or "TIMED_OUT"
        except LedgerUnavailable:
            turn.stop_reason = turn.stop_reason or "LEDGER_UNAVAILABLE"
        except (EngineDead, EngineOverloaded) as error:
            turn.stop_reason = turn.stop_reason or "ENGINE_FAILED"
            _log.warning("engine_failed", turn=turn.request_id, reason=error.reason)
        except Exception:
            turn.stop_reason = turn.stop_reason or "ENGINE_FAILED"
            _log.exception("turn_failed", turn=turn.request_id)
        # From here on a cancellation must not lose the end of the turn.
        turn.stoppable = False
        await asyncio.shield(asyncio.ensure_future(self._finish(turn, outcome)))

    async def _gate_input(self, turn: LiveTurn) -> Decision:
        with self._telemetry.stage(names.SPAN_GATE_INPUT, turn.context) as span:
            signals = {"turns_per_minute": float(self._guard.turns_of(turn.session.scope))}
            behaviour = turn.rules.judge_signals(signals, turn.policy)
            self._saw(turn, "", behaviour)
            if behaviour.rules:
                await self._note(turn, behaviour, span)
            decision = await turn.rules.decide(Stage.INPUT, turn.text, turn.policy)
            protocols, judged = turn.rules.protocols, decision
            if turn.admission.risk.tier or protocols.tier(judged):
                decision = await self._sessions.sustain(
                    turn.session, lambda risk, now: protocols.sustain(judged, turn.text, turn.policy, risk, now)
                )
            if behaviour.action.stops and not protocols.held_tier(decision):
                # Somebody at risk is answered, however often they write.
                decision = behaviour
            else:
                self._saw(turn, turn.text, decision)
                await self._note(turn, decision, span)
        turn.in_history = not decision.action.stops
        turn.input_scores = decision.scores
        return decision

    async def _recall_for(self, turn: LiveTurn) -> tuple[tuple[RecalledMemory, ...], tuple[CitedPassage, ...] | None]:
        """Memories of the person, and what the persona said itself: None if it said nothing, or it can't be found."""
        person = self._recall is not None and turn.watch.standing.may_remember and turn.admission.has_memories
        own = self._corpus is not None and turn.admission.has_passages
        if not person and not own:
            return (), None
        begun = time.monotonic()
        with self._telemetry.stage(names.SPAN_RECALL, turn.context) as span:
            remembered, said = await asyncio.gather(
                self._or_none(self._memories_for(turn), span) if person else _none(),
                self._or_none(self._passages_for(turn), span) if own else _none(),
            )
            found = [one for one in (remembered, said) if one is not None]
            memories = () if remembered is None else (*remembered.facts, *remembered.items)
            span.set_attribute(names.ATTR_RECALL_HITS, len(memories) + (0 if said is None else len(said.items)))
            span.set_attribute(names.ATTR_RECALL_LEXICAL_ONLY, any(one.lexical_only for one in found))
        if found:
            self._telemetry.recall_duration.record(time.monotonic() - begun)
        return memories, None if said is None else said.items

    async def _memories_for(self, turn: LiveTurn) -> RecallResult:
        assert self._recall is not None
        memory = self._settings.memory
        return await self._recall.recall(
            turn.session.scope,
            turn.text,
            limit=memory.recall_limit,
            dense_deadline_s=memory.dense_deadline_ms / 1000,
            # What the prompt's history holds need not be recalled.
            exclude_threads=(turn.session.thread,) if turn.history_from == 1 else (),
            fact_limit=memory.fact_limit,
        )

    async def _passages_for(self, turn: LiveTurn) -> CorpusResult:
        assert self._corpus is not None
        memory = self._settings.memory
        scope = self._vault.scope_key(Scope(turn.session.tenant, turn.session.persona))
        return await self._corpus.search(
            scope, turn.text, limit=memory.passage_limit, dense_deadline_s=memory.dense_deadline_ms / 1000
        )

    async def _or_none(self, call: Awaitable[R], span: trace.Span) -> R | None:
        """The result of a recall, None if it fails: a reply without memories is worth more than none."""
        try:
            return await call
        except LedgerUnavailable:
            raise
        except Exception as error:
            reason = error.reason if isinstance(error, PersonaeError) else type(error).__name__
            if not isinstance(error, PersonaeError):
                _log.exception("recall_failed")
            fail_span(span, error)
            self._telemetry.recall_failures.add(1, {names.ATTR_REASON: reason})
            return None

    async def _refuse(self, turn: LiveTurn, decision: Decision) -> Body:
        self._say(turn, decision.template)
        return TurnCompleted("POLICY")

    async def _gate_memories(
        self, turn: LiveTurn, recalled: Sequence[RecalledMemory], said: Sequence[CitedPassage] | None
    ) -> tuple[list[RecalledMemory], list[CitedPassage] | None]:
        with self._telemetry.stage(names.SPAN_GATE_MEMORY, turn.context) as span:

            async def passing(items: Sequence[C]) -> list[C]:
                kept = []
                for item in items:
                    decision = turn.rules.check_memory(item.text, turn.policy)
                    self._saw(turn, item.text, decision)
                    if decision.rules:
                        await self._note(turn, decision, span)
                    if not decision.action.stops:
                        kept.append(item)
                    elif isinstance(item, RecalledMemory) and self._stops_everywhere(item.text, turn.policy):
                        # Kept from every prompt from now on, for its person to see and put right.
                        await self._sessions.quarantine(item.record.memory_id, decision.reason_code)
                        if self._indexer is not None:
                            self._indexer.notify()
                return kept

            memories, passages = await passing(recalled), None if said is None else await passing(said)
            dropped = len(recalled) - len(memories) + len(said or ()) - len(passages or ())
            span.set_attribute(names.ATTR_RECALL_DROPPED, dropped)
        return memories, passages

    def _stops_everywhere(self, text: str, context: PolicyContext) -> bool:
        """Whether it is stopped for an adult in no region in particular and of any revision, too, by the bundle that
        is no candidate: what is stopped only here is left out of this turn, and is still theirs."""
        anybody = replace(context, age_band=AgeBand.ADULT, region_code="", revision=0)
        return self._policy.of(context.tenant).check_memory(text, anybody).action.stops

    async def _card_for(self, turn: LiveTurn) -> str:
        """The profile card that the session began with; a newer one if something of that was forgotten."""
        if self._profiles is None or not turn.watch.standing.may_remember:
            return ""
        version, sealed = turn.admission.profile_version, turn.admission.card
        if version == 0 or (version is None and (turn.admission.turn_no > 1 or not turn.admission.has_card)):
            # There was nothing to hold to when the session began, and it holds to that.
            return ""
        count = turn.persona.engine.count_tokens
        if version is None or sealed is None:
            text = (await self._profiles.pin(turn.session.session_pk, turn.session.scope, count)).text
        else:
            text = turn.cipher.open(sealed, place(turn.session.scope, version)).decode()
        return fit(text, count, lambda line: not turn.rules.check_memory(line, turn.policy).action.stops)

    async def _compose(
        self, turn: LiveTurn, memories: Sequence[RecalledMemory], said: Sequence[CitedPassage] | None, card: str
    ) -> list[Message]:
        with self._telemetry.stage(names.SPAN_COMPOSE, turn.context):
            room = self._prompt_room(turn.persona) - turn.persona.prefix_tokens
            count = turn.persona.engine.count_tokens
            room -= count(turn.text)
            if card and (cost := count(card) + 24) <= room:
                room -= cost
            else:
                card = ""

            def fitting(items: Sequence[C]) -> list[C]:
                nonlocal room
                kept = []
                for item in items:
                    cost = count(item.text) + 16
                    if cost <= room // 2:
                        kept.append(item)
                        room -= cost
                return kept

            passages = None if said is None else fitting(said)
            kept = fitting(memories)
            history = await self._history(turn)
            fitted = fit_history(history, min(self._settings.sessions.history_tokens, room))
            if fitted and len(fitted) < len(history):
                turn.history_from = fitted[0].turn_no
                self._histories[_history_key(turn)] = list(fitted)
            for memory in kept:
                memory_id = str(memory.record.memory_id)
                turn.citations[memory_id] = memory.record
                turn.recorder.emit(MemoryCitation(memory_id, round(memory.score, 6)))
            for cited in passages or ():
                passage_id = str(cited.passage.passage_id)
                turn.citations[passage_id] = cited.passage
                turn.recorder.emit(PassageCitation(passage_id, round(cited.score, 6)))
            return compose(turn.persona.prefix, turn.cipher.marker, fitted, turn.text, kept, passages, card)

    async def _history(self, turn: LiveTurn) -> list[PastTurn]:
        key, before = _history_key(turn), turn.admission.turn_no - 1
        cached = self._histories.get(key)
        if cached is not None and (cached[-1].turn_no if cached else 0) == before:
            self._histories.move_to_end(key)
            return [past for past in cached if past.tokens > 0]
        past = [
            _past_turn(turn.persona.engine, row.turn_no, row.user_text, row.reply_text, row.in_history)
            for row in await self._sessions.turns(turn.session, after=turn.history_from - 1, limit=before, live=False)
            if row.turn_no <= before
        ]
        self._keep_history(key, past)
        return [one for one in past if one.tokens > 0]

    def _keep_history(self, key: tuple[str, int], past: list[PastTurn]) -> None:
        self._histories[key] = past
        self._histories.move_to_end(key)
        if len(self._histories) > _CACHED_HISTORIES:
            self._histories.popitem(last=False)

    async def _generate(self, turn: LiveTurn, messages: list[Message]) -> Body:
        definition = turn.persona.definition
        temperature = definition.temperature
        request = GenerateRequest(
            request_id=turn.request_id,
            messages=messages,
            max_tokens=self._max_tokens(turn.persona),
            temperature=self._settings.engine.temperature if temperature is None else temperature,
            priority=persona_type(turn.persona.type).priority,
            cache_salt=self._vault.cache_salt(turn.session.tenant, turn.session.persona, turn.session.revision),
            adapter=definition.adapter or None,
            affinity=(turn.session.name.revision_name(), turn.session.name.session_name()),
            trace_headers=inject_context(turn.context),
            watermark=True,
        )
        engine = turn.persona.engine
        capacity = engine.capacity()
        if not capacity.max_concurrent:
            # No replica yet: the model is started for this turn.
            turn.recorder.emit(Waiting("MODEL_LOADING"))
        elif capacity.running >= capacity.max_concurrent:
            turn.recorder.emit(Waiting("ENGINE_QUEUE"))
        gate = turn.rules.open_stream(turn.policy, None if turn.shadow is None else turn.shadow.seen)
        gate_span = None
        finish: EngineFinish | None = None
        due = False
        ready: list[str] = []
        with self._telemetry.stage(names.SPAN_GENERATE, turn.context) as span:
            self._describe_request(span, turn, request)
            turn.prompt_at = time.monotonic()
            try:
                async with aclosing(engine.generate(request)) as deltas:
                    async for delta in deltas:
                        if turn.first_delta_at is None:
                            turn.first_delta_at = time.monotonic()
                            gate_span = self._telemetry.tracer.start_span(names.SPAN_GATE_STREAM, turn.context)
                        turn.output_tokens += delta.tokens
                        ready.append(delta.text)
                        if delta.more:
                            continue
                        if delta.finish is not None:
                            finish = delta.finish
                            turn.input_tokens = delta.input_tokens
                            turn.cached_input_tokens = delta.cached_input_tokens
                        text = "".join(ready)
                        due |= gate.feed(text)
                        ready.clear()
                        if turn.shadow is not None:
                            turn.shadow.reply.append(text)
                        if due or delta.finish is not None:
                            due = False
                            clearance = await gate.clear(final=delta.finish is not None)
                            if clearance.text:
                                self._release(turn, clearance.text)
                                if turn.recorder.full:
                                    await turn.recorder.room()
                            for verified in clearance.verified:
                                await self._note(turn, verified, gate_span)
                            if clearance.decision is not None:
                                await self._note(turn, clearance.decision, gate_span)
                                if clearance.decision.action.stops:
                                    self._replied(turn, gate)
                                    # Leaving the loop closes the generator, which aborts the request.
                                    self._say(turn, clearance.decision.template)
                                    return TurnCompleted("POLICY")
            finally:
                if gate_span is not None:
                    gate_span.end()
                span.set_attribute(names.ATTR_GEN_AI_USAGE_INPUT_TOKENS, turn.input_tokens)
                span.set_attribute(names.ATTR_GEN_AI_USAGE_OUTPUT_TOKENS, turn.output_tokens)
                span.set_attribute(names.ATTR_GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS, turn.cached_input_tokens)
                if finish is not None:
                    span.set_attribute(names.ATTR_GEN_AI_RESPONSE_FINISH_REASONS, (finish.value,))
        if finish is None or finish is EngineFinish.ABORT:
            raise EngineDead("the engine ended the request early")
        self._replied(turn, gate)
        return TurnCompleted("LENGTH" if finish is EngineFinish.LENGTH else "STOP")

    def _remember(self, turn: LiveTurn, decision: Decision) -> None:
        """What the turn leaves: the person's own words, unless policy or they say no."""
        if self._recall is None or not turn.watch.standing.may_remember or decision.action.stops:
            return
        # What is remembered is judged with scores now, as recall has time for matchers only.
        if turn.rules.check_memory(turn.text, turn.policy, scored=turn.input_scores).action.stops:
            return
        turn.memory = turn_memory(
            turn.session.scope,
            turn.session.session,
            turn.admission.turn_no,
            turn.session.user,
            turn.text,
            turn.admission.admitted_at,
        )
        turn.statements = self._draw(turn.memory, turn.policy)

    async def _finish(self, turn: LiveTurn, outcome: Body) -> None:
        """Record the end, show it, and let go of everything the turn held."""
        recorder = turn.recorder
        await recorder.stop()
        if turn.stop_reason:
            outcome = TurnInterrupted(0, turn.stop_reason)
        reply = "".join(recorder.text)
        if turn.record_span is not None:
            turn.record_span.set_attribute(names.ATTR_RELEASED_UNITS, len(recorder.text))
            turn.record_span.set_attribute(names.ATTR_RELEASED_CHARS, len(reply))
            turn.record_span.end()
        if isinstance(outcome, TurnInterrupted):
            outcome = TurnInterrupted(len(reply), outcome.reason)
            self._remember_interrupted(turn)
        now = datetime.now(UTC)
        tail: list[Body] = []
        killed: tuple[UUID, Decision] | None = None
        if turn.killed_by:
            killed = uuid4(), killed_by(turn.killed_by, turn.rules.version)
            tail.append(_told(*killed))
        if turn.prompt_at is not None:
            tail.append(Usage(turn.input_tokens, turn.cached_input_tokens, turn.output_tokens))
        tail += [self._latency(turn), outcome]
        events = [Event(recorder.take_id(), turn.turn_id, now, body, turn.origin) for body in tail]
        error: PersonaeError | None = None
        try:
            with self._telemetry.stage(names.SPAN_REMEMBER, turn.context):
                async for attempt in AsyncRetrying(
                    retry=retry_if_exception_type(LedgerUnavailable),
                    stop=stop_after_delay(_FINISH_RETRY_S),
                    wait=wait_exponential_jitter(multiplier=0.1, max=2.0, jitter=0.1),
                    reraise=True,
                ):
                    with attempt:
                        if isinstance(recorder.failure, LedgerUnavailable):
                            # How much of its last commit was recorded is not known here; the ledger's events tell.
                            await self._sessions.close_orphan(
                                turn.session.session_pk, turn.admission.turn_no, turn.stop_reason
                            )
                            error = Unavailable("the turn ended unseen; attach again", retry_after_s=0.1)
                            break
                        if killed is not None:
                            await self._sessions.decide(
                                turn.session, turn.admission.turn_no, killed[1], decision_id=killed[0]
                            )
                        await self._sessions.finish(
                            turn.session,
                            turn.admission.turn_no,
                            turn.cipher,
                            state="COMPLETED" if isinstance(outcome, TurnCompleted) else "INTERRUPTED",
                            finish_reason=outcome.finish_reason if isinstance(outcome, TurnCompleted) else "",
                            reply=reply,
                            in_history=turn.in_history,
                            events=events,
                            memory=turn.memory,
                            statements=turn.statements,
                            history_from=turn.history_from,
                        )
        except LeaseLost as lost:
            # For the streams this is no error of theirs: attached again, they see how the turn ended.
            error = Unavailable(lost.message, reason=lost.reason, retry_after_s=0.1)
        except Exception as failed:
            # The sweep closes it once the ledger is back; the streams are told to try again.
            error = LedgerUnavailable("the turn's end could not be recorded; attach again", retry_after_s=1.0)
            _log.error("turn_end_not_recorded", turn=turn.request_id, error=type(failed).__name__)
        self._control.remove(turn.watch)
        if turn.shadow is not None and self._record_shadow is not None:
            task = asyncio.create_task(self._judge_shadow(turn.shadow), name=f"shadow {turn.request_id}")
            self._shadows.add(task)
            task.add_done_callback(self._shadows.discard)
        if turn.hub.turn is turn:
            turn.hub.turn = None
            self._running -= 1
        if turn.ticket is not None:
            self._guard.ended(turn.ticket)
        if error is None:
            cached = self._histories.get(_history_key(turn))
            if cached is not None and (cached[-1].turn_no if cached else 0) == turn.admission.turn_no - 1:
                cached.append(
                    _past_turn(turn.persona.engine, turn.admission.turn_no, turn.text, reply, turn.in_history)
                )
            turn.hub.rest_at(events[-1].event_id + 1)
            for event in events:
                self._deliver(turn, event)
        else:
            turn.failure = error
            turn.hub.end(error)
        if turn.memory is not None and self._indexer is not None:
            self._indexer.notify()
        self.hubs.release(turn.session.session_pk)
        turn.ended.set()
        self._measure(turn, outcome)
        # What knows its turn, and is known by it, would wait for the collector, which stops the loop for as long as
        # it searches a thousand turns' worth of such rings: 0.45 s a minute with 1,000 open conversations.
        del turn.recorder
        turn.watch.on_withdrawn = _nothing

    def _remember_interrupted(self, turn: LiveTurn) -> None:
        if turn.memory is None and turn.in_history and turn.prompt_at is not None:
            self._remember(turn, Decision(Action.ALLOW, Stage.INPUT, turn.rules.version))

    # -- a candidate bundle, which only watches --------------------------------

    def _shadow(self, policy: PolicyContext) -> Shadow | None:
        found = self._policy.shadow(policy.tenant)
        return None if found is None else Shadow(found[0], found[1], policy)

    def _saw(self, turn: LiveTurn, text: str, decision: Decision) -> None:
        if turn.shadow is not None:
            turn.shadow.saw(text, decision)

    def _replied(self, turn: LiveTurn, gate: StreamGate) -> None:
        if turn.shadow is not None:
            turn.shadow.replied(gate.decisions, turn.rules.version)

    async def _judge_shadow(self, shadow: Shadow) -> None:
        assert self._record_shadow is not None
        try:
            await self._record_shadow(shadow, await shadow.judge())
        except Exception as error:
            # The turn is over, and nobody waits for this.
            _log.warning("shadow_not_recorded", bundle=shadow.bundle, error=type(error).__name__)

    async def settle_shadows(self) -> None:
        """Return when what the candidates of ended turns would have decided is recorded."""
        if self._shadows:
            await asyncio.wait(set(self._shadows))

    # -- pieces --------------------------------------------------------------

    async def _note(self, turn: LiveTurn, decision: Decision, span: trace.Span | None) -> None:
        """Record a decision that any rule had a part in, and tell the person of what it changed."""
        self._telemetry.gate_actions.add(
            1,
            {
                names.ATTR_POLICY_STAGE: decision.stage.value,
                names.ATTR_POLICY_ACTION: decision.action.value,
                names.ATTR_POLICY_CATEGORY: decision.category,
            },
        )
        if decision.reason_code == SCORER_FAILED:
            self._telemetry.gate_failures.add(1, {names.ATTR_POLICY_STAGE: decision.stage.value})
        if turn.ticket is not None:
            self._guard.decided(turn.ticket, decision)
        if not decision.rules and decision.action is Action.ALLOW:
            return
        tier = turn.rules.protocols.held_tier(decision) if decision.stage is Stage.INPUT else Tier.NONE
        decision_id = await self._sessions.decide(turn.session, turn.admission.turn_no, decision, tier=tier)
        if span is not None:
            span.set_attribute(names.ATTR_POLICY_ACTION, decision.action.value)
            span.set_attribute(names.ATTR_POLICY_REASON_CODE, decision.reason_code)
        if decision.action is not Action.ALLOW:
            turn.recorder.emit(_told(decision_id, decision))
        if decision.notice_text:
            turn.recorder.emit(Notice(decision.notice_code, decision.notice_text))

    def _say(self, turn: LiveTurn, template: str) -> None:
        if template:
            said = turn.record_span is not None
            self._release(turn, f"\n\n{template}" if said else template, template=True)

    async def _may_release(self, turn: LiveTurn) -> None:
        """Raise unless text of the turn may be recorded and delivered now."""
        await self._control.fresh(_FRESH_TIMEOUT_S)
        require_speech(turn.watch.standing)

    def _describe_request(self, span: trace.Span, turn: LiveTurn, request: GenerateRequest) -> None:
        if span.is_recording():
            session = turn.session
            span.set_attributes(
                {
                    names.ATTR_GEN_AI_OPERATION_NAME: "chat",
                    names.ATTR_GEN_AI_PROVIDER_NAME: self._settings.engine.kind,
                    names.ATTR_GEN_AI_REQUEST_MODEL: turn.persona.engine.model,
                    names.ATTR_GEN_AI_REQUEST_MAX_TOKENS: request.max_tokens,
                    names.ATTR_GEN_AI_REQUEST_TEMPERATURE: request.temperature,
                    names.ATTR_GEN_AI_CONVERSATION_ID: session.name.session_name(),
                    names.ATTR_GEN_AI_AGENT_ID: session.name.persona_name(),
                    names.ATTR_GEN_AI_AGENT_VERSION: str(session.revision),
                    names.ATTR_TURN_ID: turn.turn_id,
                }
            )

    def _release(self, turn: LiveTurn, text: str, *, template: bool = False) -> None:
        """Hand cleared text over to be recorded and delivered."""
        if turn.record_span is None:
            turn.record_span = self._telemetry.tracer.start_span(names.SPAN_RECORD, turn.context)
        turn.recorder.emit(TextDelta(text, template))

    def _deliver(self, turn: LiveTurn, event: Event) -> None:
        turn.events.append(event)
        turn.hub.publish(event)

    def _pause_s(self) -> float:
        """Seconds that text may wait for company: none at low load, more with each turn that runs."""
        share = (self._running - _COALESCE_FROM_TURNS) / (_COALESCE_FULL_TURNS - _COALESCE_FROM_TURNS)
        return min(1.0, max(0.0, share)) * self._settings.sessions.coalesce_max_ms / 1000

    def _latency(self, turn: LiveTurn) -> Latency:
        def since(moment: float | None) -> float:
            return 0.0 if moment is None else round(moment - turn.admitted, 6)

        return Latency(since(turn.prompt_at), since(turn.first_delta_at), since(turn.recorder.first_text_at))

    def _measure(self, turn: LiveTurn, outcome: Body) -> None:
        telemetry = self._telemetry
        telemetry.active_turns.add(-1)
        latency = self._latency(turn)
        attributes = {names.ATTR_GEN_AI_REQUEST_MODEL: turn.persona.engine.model}
        if turn.prompt_at is not None:
            telemetry.own_work.record(latency.queue_s, attributes)
        if turn.first_delta_at is not None:
            telemetry.time_to_first_token.record(latency.ttft_s, attributes)
        if turn.recorder.first_text_at is not None:
            telemetry.first_release.record(latency.first_release_s, attributes)
        telemetry.input_tokens.add(turn.input_tokens, attributes)
        telemetry.cached_input_tokens.add(turn.cached_input_tokens, attributes)
        telemetry.output_tokens.add(turn.output_tokens, attributes)
        reason = outcome.reason if isinstance(outcome, TurnInterrupted) else ""
        telemetry.turns.add(1, {names.ATTR_TURN_OUTCOME: outcome.kind, names.ATTR_REASON: reason})

    # -- upkeep --------------------------------------------------------------

    async def keep(self, stop: asyncio.Event) -> None:
        """Renew leases, cancel turns that nobody watches, close what was lost, look elsewhere; until `stop` is set."""
        looking = asyncio.create_task(self._keep_looking(stop), name="look-elsewhere")
        try:
            await self._keep(stop)
        finally:
            looking.cancel()
            await asyncio.wait([looking])

    async def _keep(self, stop: asyncio.Event) -> None:
        period = min(1.0, self._settings.ledger.lease_s / 3)
        renew_every = self._settings.ledger.lease_s / 3
        renewed = 0.0
        suspects: set[tuple[int, int]] = set()
        while not stop.is_set():
            now = time.monotonic()
            self._cancel_abandoned(now)
            self._telemetry.abuse_breakers.set(self._guard.not_closed())
            self._telemetry.queue_depth.set(sum(engine.capacity().waiting for engine in self._engines))
            if now - renewed >= renew_every:
                renewed = now
                try:
                    await self._sessions.renew()
                    for session_pk in await self._sessions.recover():
                        self._attach_again(session_pk)
                    suspects = await self._close_lost(suspects)
                    # Last: a lease must not wait for a count.
                    if self._indexer is not None:
                        self._telemetry.index_pending.set(await self._indexer.pending())
                except LeaseLost:
                    _log.error("fenced_off")
                    for turn in self.hubs.running():
                        turn.stop("OWNER_LOST")
                    renewed = await self._register_again()
                except PersonaeError as error:
                    _log.warning("lease_upkeep_failed", reason=error.reason)
                except Exception:
                    # Without upkeep every lease would run out.
                    _log.exception("lease_upkeep_failed")
            try:
                async with asyncio.timeout(period):
                    await stop.wait()
            except TimeoutError:
                continue

    async def _keep_looking(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                await self._usage.exchange(alone=self._sessions.alone)
                if not self._sessions.alone:
                    await self.look_elsewhere()
            except PersonaeError as error:
                _log.warning("look_elsewhere_failed", reason=error.reason)
            except Exception:
                _log.exception("look_elsewhere_failed")
            await asyncio.sleep(_ELSEWHERE_PERIOD_S)

    async def look_elsewhere(self) -> None:
        """End the views of sessions that wait here for a turn while other owners ran one, or closed them.

        One query for all of them; a view is told where the turn runs.

        Raises:
            LedgerUnavailable: the ledger is out of reach.
        """
        resting = [(key, hub, mark) for key, hub in self.hubs.all() if (mark := hub.resting_at()) is not None]
        changed = await self._sessions.changed([(key, mark) for key, _, mark in resting])
        for key, hub, mark in resting:
            change = changed.get(key)
            # What has begun here meanwhile, or has begun and ended, is no news.
            if change is None or hub.resting_at() != mark:
                continue
            if change.running is not None and change.running.owner == self._sessions.owner:
                continue
            for view in hub.views:
                if view.next_event_id is None:
                    continue
                if change.running is not None:
                    view.end(change.running)
                elif view.next_event_id != change.next_event_id:
                    view.end(_changed_elsewhere())
                else:
                    view.end()

    def _cancel_abandoned(self, now: float) -> None:
        for turn in self.hubs.running():
            since = turn.hub.unwatched_since
            if since is not None and now - since >= self._settings.sessions.orphan_timeout_s:
                turn.stop("ABANDONED")

    async def _close_lost(self, suspects: set[tuple[int, int]]) -> set[tuple[int, int]]:
        """Close turns that the ledger has as ours and that have not run here for two rounds."""
        here = {(turn.session.session_pk, turn.admission.turn_no) for turn in self.hubs.running()}
        lost = await self._sessions.running() - here
        for session_pk, turn_no in lost & suspects:
            await self._close_orphan(session_pk, turn_no)
        return lost

    async def _register_again(self) -> float:
        """Take up a new owner name; when the next renewal is due to be counted from."""
        try:
            await self._sessions.register()
            await self._sessions.acknowledge(self._control.epoch)
        except PersonaeError as error:
            _log.warning("lease_upkeep_failed", reason=error.reason)
            return 0.0
        return time.monotonic()

    async def _close_orphan(self, session_pk: int, turn_no: int) -> None:
        if await self._sessions.close_orphan(session_pk, turn_no):
            self._attach_again(session_pk)

    def _attach_again(self, session_pk: int) -> None:
        """End the views of a session: something was recorded that they were not shown."""
        hub = self.hubs.find(session_pk)
        if hub is not None and hub.turn is None:
            hub.end(_changed_elsewhere())

    def let_go(self, scopes: Collection[str]) -> None:
        """Keep nothing of these scopes that was read before now: their turns stop, their histories are read anew."""
        for turn in self.hubs.running():
            if turn.session.scope in scopes:
                turn.stop("WITHDRAWN")
        for key in [key for key in self._histories if key[0] in scopes]:
            del self._histories[key]
        for _, hub in self.hubs.all():
            if hub.scope in scopes and hub.turn is None:
                hub.end(_changed_elsewhere())
        for scope in scopes:
            self._guard.forget(scope)

    # -- drain ---------------------------------------------------------------

    async def leave(self) -> bool:
        """Admit no more, and tell other owners so; whether any of them admits turns.

        Raises:
            LedgerUnavailable: whether any does is not known. No more are admitted all the same.
        """
        self._draining = True
        await self._sessions.leave()
        return bool(await self._sessions.find_peers())

    async def drain(self, grace_s: float, *, hand_over: bool = False) -> None:
        """Admit no more, let what runs end, and interrupt what has not after `grace_s`.

        Args:
            grace_s: seconds.
            hand_over: every stream ends at once, with go_away, to be continued
                through another process; only those that other processes
                forward are served until their turn has ended.
        """
        loop = asyncio.get_running_loop()
        end_at = loop.time() + grace_s
        self._draining = True
        if hand_over:
            self._away_until = end_at
        for _, hub in self.hubs.all():
            if not hand_over:
                hub.publish(_go_away(grace_s))
                continue
            for view in hub.views:
                if not view.forwarded:
                    self._send_away(view, end_at)
                elif hub.turn is None and not hub.users:
                    view.end(_changed_elsewhere())
        # What is being admitted will run; what is not yet, will be refused.
        if self._admissions:
            await asyncio.wait(set(self._admissions), timeout=grace_s)
        tasks = [turn.task for turn in self.hubs.running()]
        if tasks:
            await asyncio.wait(tasks, timeout=max(0.0, end_at - loop.time()))
        for turn in self.hubs.running():
            turn.stop("OWNER_LOST")
        remaining = [task for task in tasks if not task.done()]
        if remaining:
            await asyncio.wait(remaining, timeout=_FINISH_RETRY_S)
        if self._shadows:
            await asyncio.wait(set(self._shadows), timeout=_SHADOW_S)
        for task in list(self._shadows):
            task.cancel()
        if hand_over:
            for _, hub in self.hubs.all():
                hub.end(_changed_elsewhere())

    def add_view(self, hub: Hub, view: View) -> None:
        """Show a view what is published in a hub from now on; one that came too late is sent away."""
        hub.add(view)
        if self._away_until is not None and not view.forwarded:
            self._send_away(view, self._away_until)

    def _send_away(self, view: View, end_at: float) -> None:
        view.offer(_go_away(max(0.0, end_at - asyncio.get_running_loop().time())))
        view.end()


def _history_key(turn: LiveTurn) -> tuple[str, int]:
    return turn.session.scope, turn.session.session_pk


def _told(decision_id: UUID, decision: Decision) -> PolicyEvent:
    return PolicyEvent(
        action=decision.action.value,
        category=decision.category,
        reason_code=decision.reason_code,
        stage=decision.stage.value,
        decision=str(decision_id),
    )


def _go_away(time_left_s: float) -> Event:
    return Event(0, "", datetime.now(UTC), GoAway(time_left_s))


def _changed_elsewhere() -> Unavailable:
    return Unavailable("the session changed elsewhere; attach again", retry_after_s=0.1)


def _past_turn(engine: Engine, turn_no: int, user_text: str, reply_text: str, in_history: bool) -> PastTurn:
    # A turn that is not history keeps its number, so that the cache is known to be current.
    if not in_history:
        return PastTurn(turn_no, "", "", 0)
    count = engine.count_tokens
    return PastTurn(turn_no, user_text, reply_text, count(user_text) + count(reply_text) + 8)
