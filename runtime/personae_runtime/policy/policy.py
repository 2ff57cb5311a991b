"""The policy of one deployment: a bundle and scorers, behind what the turn needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from personae_runtime.memory.embedder import Embedder
from personae_runtime.policy.bundle import Bundle, Plan, find, load_bundle, whole_pieces, windows
from personae_runtime.policy.decision import Decision, PolicyContext, Stage
from personae_runtime.policy.gate import ScorerFailure, StreamGate, raw_hits, run_scorers
from personae_runtime.policy.scorers import NgramScorer, Scorer, build_scorers


class Policy:
    """Decides at each stage of a turn. Holds no state of a turn; share one per process.

    Attributes:
        version: of the bundle, with the hash of its content.
        bundle: the rules.
        scorers: what runs before every released unit; may be empty in development.
        rules_off: ids of the rules that are switched off for a tenant.
    """

    def __init__(self, bundle: Bundle, scorers: Sequence[Scorer]) -> None:
        self.bundle = bundle
        self.scorers = tuple(scorers)
        self.version = bundle.version
        self.rules_off: Callable[[str], frozenset[str]] = lambda tenant: frozenset()

    @classmethod
    def load(
        cls,
        bundle_path: Path | None,
        scorers: Sequence[str],
        scorer_timeout_ms: float,
        embedder: Embedder | None = None,
    ) -> Policy:
        """Loads and tests a bundle (None: the one that ships) and the scorers by name.

        Args:
            embedder: for the cascade; the caller starts it before the first text and closes it.

        Raises:
            ConfigError: either can't be used; the message says which rule and key.
        """
        built = build_scorers(scorers, scorer_timeout_ms, embedder)
        # Rules are tested with the n-gram scores whether or not it runs in this deployment.
        tester = next((s for s in built if isinstance(s, NgramScorer)), None) or NgramScorer.load()
        return cls(load_bundle(bundle_path, tester), built)

    def _plan(self, stage: Stage, context: PolicyContext) -> Plan:
        return self.bundle.plan(stage, context, self.rules_off(context.tenant))

    async def decide(self, stage: Stage, text: str, context: PolicyContext) -> Decision:
        """Judges a whole text: matchers, scorers and rules.

        At OUTPUT it decides as the stream gate does, unit by unit, and returns
        the gravest decision. A scorer that fails or is late blocks.
        """
        plan = self._plan(stage, context)
        if stage is Stage.OUTPUT:
            gate = StreamGate(plan, self.scorers)
            gate.feed(text)
            decision = (await gate.clear(final=True)).decision
            if decision is not None:
                return decision
        try:
            scores = await run_scorers(self.scorers, windows(text), whole_pieces(text)) if self.scorers else {}
        except ScorerFailure:
            return plan.scorer_failed()
        if stage is Stage.OUTPUT:  # every unit was allowed, and no rule matched
            normal, spans = find(plan.matchers, text)
            return plan.decision(plan.allowed, raw_hits(normal, spans), scores)
        return _judge(plan, text, scores)

    def check_memory(self, text: str, context: PolicyContext, *, scored: Mapping[str, float] | None = None) -> Decision:
        """Judges a recalled memory by matchers and rules only, without awaiting.

        Args:
            scored: the scores it got when it was written, if they are known;
                absent ones count as 0. `decide(Stage.MEMORY, …)` gives them.
        """
        return _judge(self._plan(Stage.MEMORY, context), text, scored or {})

    def open_stream(self, context: PolicyContext) -> StreamGate:
        """A gate for one reply."""
        return StreamGate(self._plan(Stage.OUTPUT, context), self.scorers)

    def disclosure(self, context: PolicyContext, persona_name: str) -> str:
        """What tells the person that they talk to an AI: template `disclosure_<persona type>`, else `disclosure`."""
        templates = self.bundle.templates
        text = templates.get(f"disclosure_{context.persona_type}", templates["disclosure"])
        return text.replace("{persona}", persona_name)


def _judge(plan: Plan, text: str, scores: Mapping[str, float]) -> Decision:
    normal, spans = find(plan.matchers, text)
    verdict = plan.evaluate(tuple(sorted({s.matcher_id for s in spans})), scores, len(text))
    return plan.decision(verdict, raw_hits(normal, spans), scores)
