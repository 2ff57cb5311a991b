"""Which review comes first: severity x reach x uncertainty.

The product is of the kind risk = impact x exposure x likelihood. Severity is
this project's own order of harms; uncertainty is that of uncertainty sampling
(Lewis and Gale, "A Sequential Algorithm for Training Text Classifiers", SIGIR
1994): a classifier is most likely to be wrong where its score is nearest to 1/2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from personae_runtime.policy.decision import Action, Decision
from personae_runtime.policy.reasons import RULE_FAILED, SCORER_FAILED, comparisons

SEVERITIES: Final = {
    "self_harm": 1.0,
    "violence": 0.8,
    "hate": 0.7,
    "sexual": 0.7,
    "romance": 0.7,
    "harassment": 0.6,
    "pii": 0.5,
    "identity": 0.4,
    "disclosure": 0.4,
    "injection": 0.3,
}
"""How much a wrong decision of a category may cost a person, 0 to 1."""
OTHER_SEVERITY: Final = 0.4
HIGH, MEDIUM = 0.7, 0.4
"""Severities from which a review is due in `due_hours_high` and `due_hours_medium`."""
PATTERN_UNCERTAINTY: Final = 0.3
"""Of a decision by patterns alone, which give no probability: an assumption."""
LEAST_UNCERTAINTY: Final = 0.05
"""So that no product is 0: a classifier can be sure and wrong."""

_WEIGHTS: Final = {Action.ESCALATE: 1.0, Action.BLOCK: 1.0, Action.TRANSFORM: 0.5, Action.ALLOW: 0.0}


@dataclass(frozen=True, slots=True)
class Priority:
    """Of one review.

    Attributes:
        severity: 0 to 1: of the category, and half of it where only a part was replaced.
        reach: 1 + log10(n), where n people met the same reason in the last week; at least 1.
        uncertainty: LEAST_UNCERTAINTY to 1.
    """

    severity: float
    reach: float
    uncertainty: float

    @property
    def value(self) -> float:
        """What the queue is ordered by."""
        return self.severity * self.reach * self.uncertainty


def priority(decision: Decision, people: int) -> Priority:
    """The priority of a decision's review.

    Args:
        people: who met a decision of the same reason in the last week, this one's person included.
    """
    severity = SEVERITIES.get(decision.category, OTHER_SEVERITY) * _WEIGHTS[decision.action]
    return Priority(severity, 1.0 + math.log10(max(1, people)), uncertainty(decision))


def uncertainty(decision: Decision) -> float:
    """How likely the deciding rule was wrong, as far as its record tells: 1 - |2p - 1| of its least certain score p.

    1 where nothing was known of the text: a scorer or a rule had failed.
    """
    if decision.reason_code in (SCORER_FAILED, RULE_FAILED):
        return 1.0
    deciding = decision.rules[0].rule_id if decision.rules else ""
    scores = [one.score for one in comparisons(decision) if one.rule_id == deciding]
    if not scores or decision.matches:
        # What a pattern found decided, or did its part: scores far from 1/2 are no sign of certainty then.
        scores_say = max((1.0 - abs(2.0 * score - 1.0) for score in scores), default=0.0)
        return max(PATTERN_UNCERTAINTY, scores_say)
    return max(LEAST_UNCERTAINTY, *(1.0 - abs(2.0 * score - 1.0) for score in scores))
