"""What two bundles decide of the same traffic, and where they differ.

Where words are there, both judge them anew, with the same scores. Of words
that are not kept there is a record: which matchers found something, the
scores, the signals. From it follows what the new bundle would have decided, if
it asks about nothing that the bundle which decided had not asked; otherwise it
is undetermined, and counted as such.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from personae_runtime import names
from personae_runtime.errors import ConfigError, InvalidArgument
from personae_runtime.policy.bundle import SIGNALS, PersonaTypeName, Plan, Region, whole_pieces, windows
from personae_runtime.policy.decision import AgeBand, Decision, PolicyContext, Stage
from personae_runtime.policy.gate import ScorerFailure, Seen, StreamGate, run_scorers
from personae_runtime.policy.policy import Policy
from personae_runtime.policy.reasons import RULE_FAILED, SCORER_FAILED
from personae_runtime.policy.rollout import differs, gravest

MAX_EXAMPLES: Final = 5


@dataclass(frozen=True, slots=True)
class Case:
    """Something that was judged, or is to be.

    Attributes:
        name: of the decision or turn, or a place in a file.
        text: None if it is not kept.
        signals: at stage SIGNAL.
        recorded: what was decided, if the text is not kept.
    """

    name: str
    stage: Stage
    context: PolicyContext
    text: str | None = None
    signals: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    recorded: Decision | None = None


@dataclass(slots=True)
class Change:
    """Decisions that changed in the same way; rules are the deciding ones, empty if none matched."""

    stage: Stage
    old_action: str
    old_rule: str
    new_action: str
    new_rule: str
    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Diff:
    """How two bundles differ on some traffic.

    Attributes:
        by_text, by_signals: how many were judged by their words, or by what was recorded of them.
        undetermined: why others could not be, and how many.
        rules: rule -> how often it matched in the old bundle and in the new one, where that differs.
    """

    old_version: str
    new_version: str
    by_text: int = 0
    by_signals: int = 0
    undetermined: Counter[str] = field(default_factory=Counter)
    changes: list[Change] = field(default_factory=list)
    rules: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def changed(self) -> int:
        """Decisions that are others."""
        return sum(change.count for change in self.changes)


class _Undetermined(Exception):
    """What the new bundle decides can't be told from the record."""


async def compare(old: Policy, new: Policy, cases: AsyncIterable[Case], known: Iterable[Policy] = ()) -> Diff:
    """What both decide of each case.

    Args:
        known: further policies that may have taken the recorded decisions.
    """
    deciders = {policy.version: policy for policy in (*known, old, new)}
    diff = Diff(old.version, new.version)
    changes: dict[tuple[Stage, str, str, str, str], Change] = {}
    counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    async for case in cases:
        try:
            before, after = await _both(old, new, deciders, case)
        except _Undetermined as why:
            diff.undetermined[str(why)] += 1
            continue
        except ScorerFailure:
            diff.undetermined["a scorer failed"] += 1
            continue
        if case.recorded is None:
            diff.by_text += 1
        else:
            diff.by_signals += 1
        for count, decision in zip(counts, (before, after), strict=True):
            count.update({hit.rule_id for hit in decision.rules})
        if differs(before, after):
            key = (case.stage, before.action.value, _first(before), after.action.value, _first(after))
            change = changes.setdefault(key, Change(*key))
            change.count += 1
            if len(change.examples) < MAX_EXAMPLES:
                change.examples.append(case.name)
        # Whoever else runs in this event loop comes between.
        await asyncio.sleep(0)
    diff.changes = sorted(changes.values(), key=lambda one: (-one.count, one.stage, one.old_rule, one.new_rule))
    for rule in sorted(counts[0].keys() | counts[1].keys()):
        if counts[0][rule] != counts[1][rule]:
            diff.rules[rule] = (counts[0][rule], counts[1][rule])
    return diff


async def _both(old: Policy, new: Policy, deciders: Mapping[str, Policy], case: Case) -> tuple[Decision, Decision]:
    if case.recorded is not None:
        return case.recorded, _from_record(new, deciders.get(case.recorded.bundle_version), case, case.recorded)
    if case.stage is Stage.SIGNAL:
        return old.judge_signals(case.signals, case.context), new.judge_signals(case.signals, case.context)
    text = case.text or ""
    if case.stage is Stage.OUTPUT:
        seen: Seen = {}
        return await _reply(old, text, case.context, seen), await _reply(new, text, case.context, seen)
    scores = await run_scorers(old.scorers, windows(text), whole_pieces(text)) if old.scorers else {}
    return old.judge(case.stage, text, case.context, scores), new.judge(case.stage, text, case.context, scores)


async def _reply(policy: Policy, text: str, context: PolicyContext, seen: Seen) -> Decision:
    gate: StreamGate = policy.open_stream(context, seen)
    gate.feed(text)
    await gate.clear(final=True)
    return gravest(gate.decisions, Stage.OUTPUT, policy.version)


def _from_record(new: Policy, decider: Policy | None, case: Case, recorded: Decision) -> Decision:
    """What the new bundle decides of what was recorded.

    Raises:
        _Undetermined: it asks about what the record can't tell.
    """
    if recorded.reason_code in (SCORER_FAILED, RULE_FAILED):
        raise _Undetermined("a scorer or a rule had failed")
    if recorded.claims:
        raise _Undetermined("a verified claim let it pass")
    if case.stage is Stage.SIGNAL:
        return new.judge_signals(recorded.signals, case.context)
    plan = new.bundle.plan(case.stage, case.context)
    if decider is None:
        raise _Undetermined("decided by a bundle that is not at hand")
    if unknown := _asks_more(plan, decider.bundle.plan(case.stage, case.context)):
        raise _Undetermined(unknown)
    given = set().union(*(scorer.categories for scorer in new.scorers))
    asked = given if plan.thresholds is None else given & {category for category, _ in plan.thresholds}
    if asked - recorded.scores.keys():
        raise _Undetermined("asks about scores that were not recorded")
    matches = tuple(sorted({hit.matcher_id for hit in recorded.matches} & {m.id for m in plan.matchers.matchers}))
    return plan.decision(plan.evaluate(matches, recorded.scores, 0), recorded.matches, recorded.scores)


def _asks_more(new: Plan, old: Plan) -> str:
    """Why what the old rules asked about does not answer the new ones; empty if it does."""
    if new.uses_chars:
        return "asks about the length of the text"
    asked = {matcher.id for matcher in new.matchers.matchers} - {matcher.id for matcher in old.matchers.matchers}
    specs = [{spec.id: spec for spec in plan.bundle.spec.matchers} for plan in (new, old)]
    other = {matcher.id for matcher in new.matchers.matchers if specs[0].get(matcher.id) != specs[1].get(matcher.id)}
    return "asks about matchers that are new or other ones" if asked or other else ""


def _first(decision: Decision) -> str:
    return decision.rules[0].rule_id if decision.rules else ""


# -- traffic in a file ---------------------------------------------------------


class TrafficLine(BaseModel):
    """One line of a traffic file: a text, or at stage signal `signals`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: Literal["input", "memory", "output", "content", "signal"]
    text: str | None = None
    signals: Mapping[str, Annotated[float, Field(allow_inf_nan=False)]] | None = None
    persona_type: PersonaTypeName = "assistant"
    age_band: Literal["unknown", "teen", "adult"] = "unknown"
    region: Region | Literal[""] = ""
    of: str = ""

    @model_validator(mode="after")
    def _fits_its_stage(self) -> TrafficLine:
        if (self.signals is None) == (self.stage == "signal") or (self.text is None) != (self.stage == "signal"):
            raise ValueError("`text`, or at stage signal `signals`, and not both")
        if unknown := (self.signals or {}).keys() - SIGNALS.keys():
            raise ValueError(f"no signal {sorted(unknown)}; expected some of {sorted(SIGNALS)}")
        return self

    def case(self, name: str) -> Case:
        """As a case.

        Raises:
            InvalidArgument: `of` is no name.
        """
        kind = "revision" if "/revisions/" in self.of else "persona" if "/personas/" in self.of else "tenant"
        place = names.parse(kind, self.of, field="of") if self.of else names.Name("")
        context = PolicyContext(
            self.persona_type, AgeBand(self.age_band), self.region, place.tenant, place.persona, place.revision
        )
        return Case(name, Stage(self.stage), context, self.text, self.signals or {})


def read_traffic(path: Path) -> Iterator[Case]:
    """The cases of a file, JSON Lines; blank lines are none.

    Raises:
        ConfigError: the file can't be read, or a line is wrong; says which and why.
    """
    try:
        # At line feeds alone, as JSON strings may hold other separators.
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield TrafficLine.model_validate(orjson.loads(line)).case(f"line {number}")
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "line"
            raise ConfigError(f"{path}: line {number}: {where}: {first['msg']}") from None
        except (orjson.JSONDecodeError, InvalidArgument) as error:
            raise ConfigError(f"{path}: line {number}: {error}") from None
