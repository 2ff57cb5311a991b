"""Statements of reasons, from records alone."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import orjson
import pytest

from personae_runtime.policy.decision import (
    Action,
    AgeBand,
    Decision,
    DecisionRecord,
    MatcherHit,
    PolicyContext,
    RuleHit,
    Stage,
)
from personae_runtime.policy.policy import Policy
from personae_runtime.policy.reasons import SCORER_FAILED, comparisons, statement

RULE = RuleHit(
    "no_threats",
    Action.BLOCK,
    "violence",
    "VIOLENCE",
    '"threat" in matches || (scores["violence"] >= 0.5 && scores.hate < 0.25)',
    "No threats.",
    "Penal code, article 1.",
)
DECISION = Decision(
    Action.BLOCK,
    Stage.OUTPUT,
    "1+sha256:abc",
    "violence",
    "VIOLENCE",
    (RULE,),
    (MatcherHit("threat", 3, 9),),
    {"violence": 0.75},
    "Let's not.",
)


def record(decision: Decision, context: PolicyContext | None = None) -> DecisionRecord:
    at = datetime(2026, 11, 22, 12, 30, tzinfo=UTC)
    return DecisionRecord(UUID(int=1), "acme", "nadia", "s", "t", decision, context or PolicyContext(), at)


def test_a_decision_comes_back_from_its_record_as_it_was() -> None:
    columns = {
        "stage": "output", "action": "block", "category": "violence", "reason_code": "VIOLENCE",
        "bundle_version": "1+sha256:abc", "rules": ["no_threats"],
    }  # fmt: skip
    detail = orjson.loads(orjson.dumps(DECISION.detail()))
    assert Decision.from_columns(columns, {"violence": 0.75}, detail) == DECISION
    old = Decision.from_columns(columns, {}, {})
    assert [hit.rule_id for hit in old.rules] == ["no_threats"]
    assert old.legal_basis == ""


def test_scores_are_set_beside_every_number_they_are_compared_with() -> None:
    found = [(one.category, one.score, one.operator, one.threshold) for one in comparisons(DECISION)]
    assert found == [("violence", 0.75, ">=", 0.5), ("hate", 0.0, "<", 0.25)]


def test_every_comparison_of_the_bundle_that_ships_is_found() -> None:
    rules = Policy.load(None, ["ngram"], 1000).bundle.rules
    scored = [rule for rule in rules if "scores" in rule.spec.when]
    assert scored
    for rule in scored:
        hit = Decision(Action.BLOCK, Stage.OUTPUT, "1", rules=(rule.hit,))
        assert len(comparisons(hit)) == rule.spec.when.count("scores")


def test_a_statement_has_every_part_and_names_rule_law_and_age() -> None:
    stated = statement(record(DECISION))
    assert stated.reason == "No threats."
    assert stated.legal_ground == "Penal code, article 1."
    assert "no_threats" in stated.contractual_ground
    assert "threat at characters 3 to 9" in stated.facts
    assert "0.750" in stated.facts
    assert "2026-11-22 at 12:30:00 UTC" in stated.facts
    assert "rules for teens" in stated.facts
    assert "rules for teens" not in statement(record(DECISION, PolicyContext(age_band=AgeBand.ADULT))).facts
    assert "In the region PT, for" in statement(record(DECISION, PolicyContext(region_code="PT"))).restriction


def test_a_scorer_that_failed_is_said_to_have_failed_and_no_rule_is_blamed() -> None:
    failed = Decision(Action.BLOCK, Stage.INPUT, "1", "policy", SCORER_FAILED)
    stated = statement(record(failed))
    assert "could not run" in stated.reason
    assert stated.legal_ground == ""
    assert "nothing leaves unchecked" in stated.contractual_ground
    assert failed.legal_basis == ""


@pytest.mark.parametrize(
    ("stage", "action"),
    [(stage, action) for stage in Stage for action in Action if action is not Action.TRANSFORM]
    + [(Stage.OUTPUT, Action.TRANSFORM)],
)
def test_every_stage_and_action_has_words(stage: Stage, action: Action) -> None:
    stated = statement(record(Decision(action, stage, "1")))
    assert stated.restriction.startswith("None") is (action is Action.ALLOW)
