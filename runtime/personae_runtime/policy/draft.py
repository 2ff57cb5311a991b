"""What overturned decisions ask of the next bundle, as a YAML fragment of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from personae_runtime.policy.decision import AgeBand, DecisionRecord


@dataclass(frozen=True, slots=True)
class Overturned:
    """A decision that was overturned.

    Attributes:
        text: what was judged, if its person allows a test of it; empty if not, or if they were erased.
        reason_code: the reviewer's.
    """

    record: DecisionRecord
    text: str
    reason_code: str


@dataclass(frozen=True, slots=True)
class Draft:
    """The fragment, and how many tests are in it with their text and without."""

    yaml: str
    tests: int
    withheld: int


def draft(overturned: Sequence[Overturned]) -> Draft:
    """A test for each: that the rule which decided does not hold for this text and person.

    The same test is there once. Where no rule decided, as when a scorer failed,
    there is nothing to test.
    """
    by_rule: dict[str, list[dict[str, Any]]] = {}
    withheld: list[dict[str, Any]] = []
    for one in overturned:
        decision = one.record.decision
        if not decision.rules or decision.rules[0].reason_code not in ("", decision.reason_code):
            continue
        rule_id = decision.rules[0].rule_id
        if one.text:
            test = {"text": one.text, "match": False, **_context(one.record)}
            tests = by_rule.setdefault(rule_id, [])
            if test not in tests:
                tests.append(test)
            continue
        withheld.append(
            {
                "rule": rule_id,
                "stage": decision.stage.value,
                "match": False,
                **_context(one.record),
                "decision": str(one.record.decision_id),
                "bundle_version": decision.bundle_version,
                "matches": sorted({hit.matcher_id for hit in decision.matches}),
                "scores": {category: round(score, 6) for category, score in sorted(decision.scores.items())},
                "overturned_because": one.reason_code,
            }
        )
    content = {"rules": [{"id": rule_id, "tests": tests} for rule_id, tests in by_rule.items()], "withheld": withheld}
    return Draft(
        yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100),
        sum(map(len, by_rule.values())),
        len(withheld),
    )


def _context(record: DecisionRecord) -> dict[str, str]:
    context = record.context
    known = {"persona_type": context.persona_type, "region": context.region_code}
    band = {} if context.age_band is AgeBand.UNKNOWN else {"age_band": context.age_band.value}
    return {key: value for key, value in known.items() if value} | band
