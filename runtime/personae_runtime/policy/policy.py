"""The policy of one deployment: a bundle and scorers, behind what the turn needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from personae_runtime.memory.embedder import Embedder
from personae_runtime.policy.bundle import Bundle, Plan, find, highest, load_bundle, whole_pieces, windows
from personae_runtime.policy.claims import Claims
from personae_runtime.policy.decision import Action, Decision, PolicyContext, Stage
from personae_runtime.policy.gate import ScorerFailure, Seen, StreamGate, raw_hits, run_scorers
from personae_runtime.policy.protocols import SELF_HARM, Protocols
from personae_runtime.policy.scorers import NgramScorer, Scorer, SelfHarmScorer, build_scorers
from personae_runtime.policy.signing import Trust

_GRAVITY: Final = tuple(Action)


class Policy:
    """Decides at each stage of a turn. Holds no state of a turn; share one per process.

    Attributes:
        version: of the bundle, with the hash of its content.
        bundle: the rules.
        scorers: what runs before every released unit.
        protocols: what the bundle can't change, and what outlasts a message.
        rules_off: ids of the rules that are switched off for a tenant.
    """

    def __init__(self, bundle: Bundle, scorers: Sequence[Scorer]) -> None:
        self.bundle = bundle
        self.scorers = tuple(scorers)
        self.version = bundle.version
        self.protocols = Protocols(bundle)
        self.rules_off: Callable[[str], frozenset[str]] = lambda tenant: frozenset()

    @classmethod
    def load(
        cls,
        bundle_path: Path | None,
        scorers: Sequence[str],
        scorer_timeout_ms: float,
        embedder: Embedder | None = None,
        trust: Trust = Trust(),  # noqa: B008 - immutable
        languages: Sequence[str] = ("en",),
        guard_model: Scorer | None = None,
    ) -> Policy:
        """Loads and tests a bundle (None: the one that ships) and the scorers by name.

        Args:
            trust: who may have signed the bundle.
            languages, guard_model: see `build_scorers`.
            embedder: for the cascade; the caller starts it before the first text and closes it.

        Raises:
            ConfigError: either can't be used; the message says which rule and key.
        """
        built: Sequence[Scorer] = build_scorers(scorers, scorer_timeout_ms, embedder, languages, guard_model)
        tester = rule_tester()
        if not any(SELF_HARM in scorer.categories for scorer in built):
            # Which scorers run is a setting; that self-harm is looked for is not.
            built = [*built, SelfHarmScorer(tester)]
        return cls(load_bundle(bundle_path, tester, trust), built)

    def _plan(self, stage: Stage, context: PolicyContext) -> Plan:
        return self.bundle.plan(stage, context, self.rules_off(context.tenant))

    async def decide(self, stage: Stage, text: str, context: PolicyContext) -> Decision:
        """Judges a whole text: matchers, scorers and rules.

        At OUTPUT it decides as the stream gate does, unit by unit, and returns
        the gravest decision. A scorer that fails or is late blocks.
        """
        plan = self._plan(stage, context)
        if stage is Stage.OUTPUT:
            seen: Seen = {}
            gate = StreamGate(plan, self.scorers, seen, Claims(context))
            gate.feed(text)
            cleared = await gate.clear(final=True)
            told = [*filter(None, (cleared.decision,)), *cleared.verified]
            if told:
                return max(told, key=lambda one: _GRAVITY.index(one.action))
            # Every unit was allowed, and no rule matched.
            normal, spans = find(plan.matchers, text)
            categories = [category for scorer in self.scorers for category in scorer.categories]
            return plan.decision(plan.allowed, raw_hits(normal, spans), highest(list(seen.values()), categories))
        try:
            scores = await run_scorers(self.scorers, windows(text), whole_pieces(text)) if self.scorers else {}
        except ScorerFailure:
            # What patterns alone tell a protocol is still answered by it: a crisis line before a refusal.
            known = _judge(plan, text, {})
            return known if stage is Stage.INPUT and _is_protocol(plan, known) else plan.scorer_failed()
        return _judge(plan, text, scores)

    def judge(self, stage: Stage, text: str, context: PolicyContext, scores: Mapping[str, float]) -> Decision:
        """Judges a whole text by matchers and rules, with scores that are known; not for OUTPUT."""
        return _judge(self._plan(stage, context), text, scores)

    def judge_signals(self, signals: Mapping[str, float], context: PolicyContext) -> Decision:
        """Judges how somebody behaves.

        Args:
            signals: by name, one of `bundle.SIGNALS`; what is not given counts as 0.
        """
        plan = self._plan(Stage.SIGNAL, context)
        return plan.decision(plan.evaluate_signals(signals), (), {}, signals)

    def check_memory(self, text: str, context: PolicyContext, *, scored: Mapping[str, float] | None = None) -> Decision:
        """Judges a recalled memory by matchers and rules only, without awaiting.

        Args:
            scored: the scores it got when it was written, if they are known;
                absent ones count as 0. `decide(Stage.MEMORY, …)` gives them.
        """
        return self.judge(Stage.MEMORY, text, context, scored or {})

    def open_stream(self, context: PolicyContext, seen: Seen | None = None) -> StreamGate:
        """A gate for one reply.

        Args:
            seen: scores of the same reply that are known; gets those that this gate finds.
        """
        return StreamGate(self._plan(Stage.OUTPUT, context), self.scorers, seen, Claims(context))

    def disclosure(self, context: PolicyContext, persona_name: str) -> str:
        """What tells the person that they talk to an AI; see `Protocols.disclosure`."""
        return self.protocols.disclosure(context.persona_type, persona_name)


def rule_tester() -> NgramScorer:
    """What rules are tested with: all of the n-gram scores, whether or not they are used in this deployment."""
    return NgramScorer.load()


def _judge(plan: Plan, text: str, scores: Mapping[str, float]) -> Decision:
    normal, spans = find(plan.matchers, text)
    verdict = plan.evaluate(tuple(sorted({s.matcher_id for s in spans})), scores, len(text))
    return plan.decision(verdict, raw_hits(normal, spans), scores)


def _is_protocol(plan: Plan, decision: Decision) -> bool:
    """Whether a protocol's rule decided."""
    first = decision.rules[0].rule_id if decision.rules else ""
    return any(rule.protocol and rule.spec.id == first for rule in plan.rules)
