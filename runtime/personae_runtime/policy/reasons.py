"""Why a decision was taken, in words: from its record alone.

The statement of reasons has the parts that article 17(3) of the Digital Services
Act (Regulation (EU) 2022/2065) asks for, letters (a) to (f). In English.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from personae_runtime.policy.decision import Action, AgeBand, Decision, DecisionRecord, Stage

RULE_FAILED: Final = "RULE_FAILED"
"""Reason code of the block when a rule's condition can't be evaluated."""
SCORER_FAILED: Final = "SCORER_FAILED"
"""Reason code of the block when a scorer raised, was late or gave no valid scores."""

KILL_SWITCH: Final = "kill_switch"
"""Category, and rule id, of what a kill switch stopped."""

_COMPARED: Final = re.compile(
    r"""\bscores\s*(?:\[\s*["'](\w+)["']\s*\]|\.\s*(\w+))\s*(>=|<=|==|!=|>|<)\s*([0-9]+(?:\.[0-9]+)?)"""
)
_SPOKEN: Final = {
    Stage.INPUT: "a message to the persona",
    Stage.MEMORY: "a recalled memory",
    Stage.OUTPUT: "the persona's reply",
    Stage.CONTENT: "a submitted text",
    Stage.SIGNAL: "how the person used the service, not what they said,",
}
_RESTRICTIONS: Final = {
    (Stage.INPUT, Action.ALLOW): "None: the message went to the persona; the rules that matched were recorded.",
    (Stage.MEMORY, Action.ALLOW): "None: the memory was used; the rules that matched were recorded.",
    (Stage.OUTPUT, Action.ALLOW): "None: the reply was delivered; the rules that matched were recorded.",
    (Stage.INPUT, Action.BLOCK): "The message did not go to the persona; a fixed answer was given in its place.",
    (Stage.MEMORY, Action.BLOCK): "The memory was not used, and is not recalled any more.",
    (Stage.CONTENT, Action.ALLOW): "None: the text was accepted; the rules that matched were recorded.",
    (Stage.CONTENT, Action.BLOCK): "The text was not accepted.",
    (Stage.CONTENT, Action.ESCALATE): "The text was not accepted.",
    (Stage.OUTPUT, Action.BLOCK): "The rest of the reply was not delivered; a fixed text was said in its place.",
    (Stage.INPUT, Action.ESCALATE): "The message did not go to the persona; a fixed answer was given in its place.",
    (Stage.MEMORY, Action.ESCALATE): "The memory was not used, and is not recalled any more.",
    (Stage.OUTPUT, Action.ESCALATE): "The rest of the reply was not delivered; a fixed text was said in its place.",
    (Stage.SIGNAL, Action.ALLOW): "None: what held was recorded.",
    (Stage.SIGNAL, Action.BLOCK): "The turn was not taken, or was ended where it stood; what was delivered stays.",
    (Stage.SIGNAL, Action.ESCALATE): "The turn was not taken, or was ended where it stood; what was delivered stays.",
    (Stage.OUTPUT, Action.TRANSFORM): "A part of the reply was replaced by a placeholder; the rest was delivered.",
}


@dataclass(frozen=True, slots=True)
class ScoreComparison:
    """A score beside a number that a rule's condition compares it with."""

    rule_id: str
    category: str
    score: float
    operator: str
    threshold: float


@dataclass(frozen=True, slots=True)
class StatementOfReasons:
    """What the person affected is owed, with the letters of article 17(3).

    Attributes:
        reason: one sentence for the person.
        restriction: (a) what was done, where it applies and for how long.
        facts: (b) the facts and circumstances relied on.
        automated_means: (c) what machines did in detecting and deciding.
        legal_ground: (d) the law relied on; empty if none is.
        contractual_ground: (e) the rule of the service relied on.
    """

    reason: str
    restriction: str
    facts: str
    automated_means: str
    legal_ground: str
    contractual_ground: str


def comparisons(decision: Decision) -> tuple[ScoreComparison, ...]:
    """Every comparison of a score with a number in the conditions of the rules that matched, in their order.

    A category that no scorer gave counts as 0, as in the rule itself.
    """
    return tuple(
        ScoreComparison(hit.rule_id, category, decision.scores.get(category, 0.0), match[3], float(match[4]))
        for hit in decision.rules
        for match in _COMPARED.finditer(hit.expression)
        if (category := match[1] or match[2])
    )


def statement(record: DecisionRecord) -> StatementOfReasons:
    """The statement of reasons of a recorded decision."""
    decision = record.decision
    region = record.context.region_code
    where = f"In the region {region}" if region else "Wherever the service is used"
    lasts = f"{where}, for this text only and for good; the conversation itself is not restricted."
    if decision.stage is Stage.SIGNAL:
        lasts = f"{where}, and for a time: new turns are taken again when the cause is gone."
    what = _RESTRICTIONS[decision.stage, decision.action]
    return StatementOfReasons(
        reason=_reason(decision),
        restriction=what if decision.action is Action.ALLOW else f"{what} {lasts}",
        facts=_facts(record),
        automated_means=_automated_means(decision),
        legal_ground=decision.legal_basis,
        contractual_ground=_contractual_ground(decision),
    )


def _reason(decision: Decision) -> str:
    if decision.reason_code == SCORER_FAILED:
        return "A check that must run before anything is let through could not run, so the text was held back."
    if decision.reason_code == RULE_FAILED:
        return "A rule that must be asked before anything is let through could not be, so the text was held back."
    return decision.rules[0].description if decision.rules else ""


def _facts(record: DecisionRecord) -> str:
    decision, context = record.decision, record.context
    if decision.stage is Stage.SIGNAL and not decision.signals:
        # A limit or a kill switch, which is no rule of the bundle.
        held = "; ".join(hit.expression for hit in decision.rules)
        return f"On {record.created_at:%Y-%m-%d at %H:%M:%S} UTC this held: {held}. No text was judged."
    parts = [
        f"On {record.created_at:%Y-%m-%d at %H:%M:%S} UTC {_SPOKEN[decision.stage]} was judged"
        f" by version {decision.bundle_version} of the rules"
    ]
    if decision.rules:
        parts.append("These rules matched: " + ", ".join(hit.rule_id for hit in decision.rules))
    if decision.matches:
        spans = ", ".join(f"{hit.matcher_id} at characters {hit.start} to {hit.end}" for hit in decision.matches)
        parts.append(f"Patterns found: {spans}")
    for one in comparisons(decision):
        parts.append(
            f"The score for {one.category} was {one.score:.3f}; rule {one.rule_id} asks for"
            f" {one.operator} {one.threshold:g}"
        )
    if decision.claims:
        parts.append("These verified claims of the persona let it pass: " + ", ".join(decision.claims))
    for signal, value in sorted(decision.signals.items()):
        parts.append(f"The signal {signal} was {value:g}")
    # Of records that were made before they held the context, it is not known what was known.
    if context.age_band is AgeBand.UNKNOWN and context.persona_type:
        parts.append("The person's age was not known, so the rules for teens applied")
    parts.append("It was judged on the service's own initiative, as every text is, and not after a notice by anyone")
    return ". ".join(parts) + "."


def _automated_means(decision: Decision) -> str:
    if decision.category == KILL_SWITCH:
        return "A person who keeps the service decided; machines carried it out."
    if decision.stage is Stage.SIGNAL:
        return "Turns were counted or compared, and the decision was taken, by automated means; no person took part."
    means = ["patterns"] if decision.matches else []
    if decision.scores:
        means.append("classifiers that estimate how likely a text is of a category, and can be wrong")
    used = f" by {' and '.join(means)}" if means else ""
    return f"The text was examined{used}, and the decision was taken, by automated means; no person took part."


def _contractual_ground(decision: Decision) -> str:
    if not decision.rules:
        return f"The rules of the service, version {decision.bundle_version}: nothing leaves unchecked."
    first = decision.rules[0]
    return f"The rules of the service, version {decision.bundle_version}, rule {first.rule_id}: {first.description}"
