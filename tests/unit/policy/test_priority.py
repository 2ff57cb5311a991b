"""The order of the review queue, and when verdicts settle a review."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.ledger.reviews import MODIFY, OVERTURN, UPHOLD, settled
from personae_runtime.policy.decision import Action, Decision, MatcherHit, RuleHit, Stage
from personae_runtime.policy.priority import (
    LEAST_UNCERTAINTY,
    PATTERN_UNCERTAINTY,
    SEVERITIES,
    priority,
    uncertainty,
)
from personae_runtime.policy.reasons import SCORER_FAILED


def by_score(score: float, *, category: str = "hate", action: Action = Action.BLOCK) -> Decision:
    rule = RuleHit("r", action, category, "R", f'scores["{category}"] >= 0.4', "d")
    return Decision(action, Stage.INPUT, "1", category, "R", (rule,), scores={category: score})


def test_priority_is_the_product_of_its_factors() -> None:
    rank = priority(by_score(0.5), 100)
    assert (rank.severity, rank.reach, rank.uncertainty) == (SEVERITIES["hate"], 3.0, 1.0)
    assert rank.value == pytest.approx(SEVERITIES["hate"] * 3.0)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 10_000), st.integers(1, 10_000))
def test_scores_nearer_to_one_half_and_more_people_come_first(one: float, two: float, few: int, many: int) -> None:
    near, far = sorted((one, two), key=lambda score: abs(score - 0.5))
    few, many = sorted((few, many))
    assert priority(by_score(near), many).value >= priority(by_score(far), few).value
    assert LEAST_UNCERTAINTY <= uncertainty(by_score(one)) <= 1


def test_what_only_patterns_found_has_an_uncertainty_of_its_own() -> None:
    rule = RuleHit("r", Action.BLOCK, "pii", "R", '"card" in matches', "d")
    found = Decision(Action.BLOCK, Stage.OUTPUT, "1", "pii", "R", (rule,), (MatcherHit("card", 0, 5),))
    assert uncertainty(found) == PATTERN_UNCERTAINTY


def test_nothing_is_more_uncertain_than_a_check_that_could_not_run() -> None:
    assert uncertainty(Decision(Action.BLOCK, Stage.INPUT, "1", "policy", SCORER_FAILED)) == 1.0


def test_a_transform_weighs_half_and_nobody_counts_as_one() -> None:
    assert priority(by_score(0.5, action=Action.TRANSFORM), 1).severity == SEVERITIES["hate"] / 2
    assert priority(by_score(0.5), 0).reach == 1.0 + math.log10(1)


OUTCOMES = st.sampled_from([UPHOLD, OVERTURN, MODIFY])


@given(st.sampled_from([1, 2]), st.lists(OUTCOMES, min_size=3, max_size=3))
def test_a_single_review_takes_one_and_a_double_one_two_of_one_mind_or_three(drawn: int, given_: list[str]) -> None:
    outcomes: list[str] = []
    wanted = drawn
    while (final := settled(wanted, outcomes)) is None:
        outcomes.append(given_[len(outcomes)])
        wanted = max(wanted, len(outcomes) + (settled(wanted, outcomes) is None))
    if drawn == 1:
        assert outcomes == given_[:1]
    elif given_[0] == given_[1]:
        assert outcomes == given_[:2]
    else:
        assert outcomes == given_
    assert final == outcomes[-1]
    assert settled(drawn, []) is None
