from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from personae_runtime.errors import ConfigError
from personae_runtime.policy.decision import Action, Decision, PolicyContext, Stage
from personae_runtime.policy.policy import Policy
from personae_runtime.policy.replay import Case, Diff, compare, read_traffic
from tests.unit.policy.bundles import BUNDLE, WordScorer, whole

CONTEXT = PolicyContext()
SCORER = WordScorer("violence")
OLD = Policy(whole(), [SCORER])
# Fruit is stopped, and violence by a higher score.
NEW = Policy(
    whole(
        BUNDLE.replace("action: allow", "action: block")
        .replace(">= 0.5'", ">= 0.6'")
        .replace("{violence: 0.5}", "{violence: 0.6}")
    ),
    [SCORER],
)


def diff(cases: Sequence[Case], new: Policy = NEW, old: Policy = OLD) -> Diff:
    async def each() -> AsyncIterator[Case]:
        for case in cases:
            yield case

    return asyncio.run(compare(old, new, each()))


def decided(text: str, stage: Stage = Stage.OUTPUT, policy: Policy = OLD) -> Case:
    """What is left of a text when only its decision was kept."""
    decision = asyncio.run(policy.decide(stage, text, CONTEXT))
    recorded = Decision.from_columns(
        {
            "stage": decision.stage.value,
            "action": decision.action.value,
            "category": decision.category,
            "reason_code": decision.reason_code,
            "bundle_version": decision.bundle_version,
        },
        dict(decision.scores),
        json.loads(json.dumps(decision.detail())),
    )
    return Case("recorded", stage, CONTEXT, recorded=recorded)


TEXTS = ("I like a banana.", "There is violence.", "I am a human", "Nothing at all.")


def test_words_are_judged_anew_by_both_with_the_same_scores() -> None:
    found = diff([Case(text, Stage.OUTPUT, CONTEXT, text) for text in TEXTS])
    assert (found.by_text, found.by_signals, found.changed) == (4, 0, 2)
    assert {(one.old_action, one.old_rule, one.new_action, one.new_rule, *one.examples) for one in found.changes} == {
        ("allow", "note", "block", "note", TEXTS[0]),
        ("block", "scored", "allow", "", TEXTS[1]),
    }
    assert found.rules == {"scored": (1, 0)}


def test_of_words_that_are_gone_the_record_tells_the_same() -> None:
    found = diff([decided(text) for text in TEXTS[:3]])
    assert (found.by_text, found.by_signals, found.undetermined) == (0, 3, {})
    assert {(one.old_rule, one.new_action) for one in found.changes} == {("note", "block"), ("scored", "allow")}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("literals: [banana]", "literals: [banana, cherry]"), "matchers that are new or other"),
        (
            ("    when: '\"noted\" in matches'", "    when: '\"noted\" in matches && chars < 1000'"),
            "length of the text",
        ),
    ],
)
def test_what_the_record_cannot_tell_is_undetermined_and_not_guessed(change: tuple[str, str], why: str) -> None:
    new = Policy(whole(BUNDLE.replace(*change)), [SCORER])
    found = diff([decided(TEXTS[0])], new)
    assert (found.by_signals, found.changed, list(found.undetermined.values())) == (0, 0, [1])
    assert why in next(iter(found.undetermined))
    # With the words it can be.
    assert diff([Case("t", Stage.OUTPUT, CONTEXT, TEXTS[0])], new).undetermined == {}


def test_a_decision_of_a_bundle_that_is_not_at_hand_is_undetermined() -> None:
    case = decided(TEXTS[0])
    assert case.recorded is not None
    foreign = replace(case, recorded=replace(case.recorded, bundle_version="0.1+sha256:0"))
    assert list(diff([foreign]).undetermined) == ["decided by a bundle that is not at hand"]


def test_a_decision_that_a_failure_made_says_nothing_of_the_rules() -> None:
    plan = OLD.bundle.plan(Stage.INPUT, CONTEXT)
    failed = Case("f", Stage.INPUT, CONTEXT, recorded=plan.scorer_failed())
    assert list(diff([failed]).undetermined) == ["a scorer or a rule had failed"]


def test_what_a_verified_claim_let_pass_is_not_judged_without_it() -> None:
    recorded = replace(OLD.bundle.plan(Stage.OUTPUT, CONTEXT).scorer_failed(), reason_code="", claims=("mia",))
    assert list(diff([Case("c", Stage.OUTPUT, CONTEXT, recorded=recorded)]).undetermined) == [
        "a verified claim let it pass"
    ]


def test_signals_are_judged_as_they_were() -> None:
    rule = """
  - id: fast
    stages: [signal]
    when: 'signals["turns_per_minute"] > {limit}'
    action: block
    category: abuse
    reason_code: FAST
    description: too fast
    tests: [{{signals: {{turns_per_minute: 99}}, match: true}}, {{signals: {{turns_per_minute: 0}}, match: false}}]
"""
    slow, fast = (Policy(whole(BUNDLE + rule.format(limit=limit)), [SCORER]) for limit in ("5.0", "9.0"))
    given = {"turns_per_minute": 7.0}
    recorded = slow.judge_signals(given, CONTEXT)
    assert recorded.action is Action.BLOCK
    cases = [Case("r", Stage.SIGNAL, CONTEXT, recorded=recorded), Case("f", Stage.SIGNAL, CONTEXT, signals=given)]
    [change] = diff(cases, fast, slow).changes
    assert (change.old_rule, change.new_action, change.count) == ("fast", "allow", 2)


def test_a_traffic_file_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl"
    path.write_text(
        '{"stage": "input", "text": "a\u2028b", "region": "PT", "age_band": "adult"}\n\n'
        '{"stage": "signal", "signals": {"turns_per_minute": 3}, "of": "tenants/acme/personas/nadia/revisions/2"}\n'
    )
    first, second = read_traffic(path)
    assert (first.name, first.text, first.context.region_code) == ("line 1", "a\u2028b", "PT")
    assert (second.name, second.context.revision_name) == ("line 3", "tenants/acme/personas/nadia/revisions/2")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "line 1"),
        ('{"text": "x"}', "line 1: stage"),
        ('{"stage": "input"}', "`text`"),
        ('{"stage": "signal", "text": "x"}', "`signals`"),
        ('{"stage": "signal", "signals": {"nosuch": 1}}', "nosuch"),
        ('{"stage": "input", "text": "x", "of": "acme"}', "of is not a tenant name"),
        ('{"stage": "input", "text": "x", "mood": "bad"}', "mood"),
        ("5", "line 1"),
    ],
)
def test_a_wrong_line_is_named(line: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl"
    path.write_text(line)
    with pytest.raises(ConfigError, match=why):
        list(read_traffic(path))
    with pytest.raises(ConfigError, match="can't be read"):
        list(read_traffic(tmp_path / "nosuch"))
