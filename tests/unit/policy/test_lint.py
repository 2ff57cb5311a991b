from __future__ import annotations

import pytest

from personae_runtime.policy.bundle import shipped_bundle
from personae_runtime.policy.lint import Finding, Level, lint
from personae_runtime.policy.scorers import NgramScorer

SCORER = NgramScorer.load()
GIVEN = ("sexual", "hate", "violence", "harassment", "self_harm", "injection")

BASE = """
version: 1.0.0
matchers:
  - {id: wheels, kind: literal, max_chars: 20, literals: [unicycle]}
  - {id: feet, kind: literal, max_chars: 20, literals: [barefoot]}
templates: {no_wheels: "We talk of feet only.", disclosure: "{persona} is an AI.", refusal: "No."}
rules:
"""
RULE = """
  - id: {id}
    stages: [{stages}]
    scope: {{{scope}}}
    when: '{when}'
    action: {action}
    category: {category}
    reason_code: {reason}
    template: no_wheels
    description: {description}
    legal_basis: The Wheels Act, article 1.
    priority: {priority}
    tests:
      - {{text: {hit}, match: true, scores: {{violence: 0.9}}}}
      - {{text: my shoes, match: false, scores: {{violence: 0.0}}}}
"""


def rule(id: str = "one", **changed: object) -> str:
    given = {
        "stages": "input",
        "scope": "",
        "when": '"wheels" in matches',
        "action": "block",
        "category": "brand",
        "reason": "NO_WHEELS",
        "description": "No talk of wheels is wanted here.",
        "priority": 0,
        "hit": "my unicycle",
    }
    return RULE.format(id=id, **{**given, **changed})


def found(*rules: str, base: str = BASE) -> list[Finding]:
    """What is said, but for what so small a bundle leaves out."""
    said = lint((base + "".join(rules)).encode(), "own.yaml", SCORER, GIVEN)
    return [one for one in said if one.code != "UNUSED_MATCHER"]


def test_a_sound_rule_has_no_findings() -> None:
    assert found(rule()) == []


@pytest.mark.parametrize(
    ("other", "shadowed"),
    [
        ({"priority": -1}, True),
        ({"priority": 1}, False),  # it comes first, and the other is the one that never decides
        ({"when": '"wheels" in matches && scores["violence"] > 0.5'}, True),
        ({"when": 'scores["violence"] > 0.5 ? "wheels" in matches : false', "priority": -1}, True),
        ({"when": '"wheels" in matches || scores["violence"] > 0.5'}, False),
        ({"when": '"wheels" in matches && age_band == "teen"'}, True),
        ({"action": "escalate"}, False),
        ({"action": "allow"}, False),  # it records, whatever decides
        ({"stages": "input, content"}, False),
        ({"scope": "regions: [PT]"}, True),
    ],
)
def test_a_rule_that_never_decides_is_an_error(other: dict[str, object], shadowed: bool) -> None:
    said = found(rule("one"), rule("two", **other))
    mine = [one for one in said if one.where == "rule two"]
    assert [(one.level, one.code) for one in mine] == ([(Level.ERROR, "SHADOWED")] if shadowed else [])


def test_a_rule_that_only_a_narrower_scope_precedes_decides_elsewhere() -> None:
    assert found(rule("one", scope="regions: [PT]", priority=9), rule("two")) == []
    assert [one.where for one in found(rule("one", scope="regions: [PT]"), rule("two", priority=9))] == ["rule one"]


@pytest.mark.parametrize(
    "when",
    [
        '"wheels" in matches && !("wheels" in matches)',
        'scores["violence"] > 0.8 && scores["violence"] < 0.3',
        'age_band == "unknown" && "wheels" in matches',
        "chars > 100 && chars < 50",
    ],
)
def test_a_condition_that_cannot_hold_is_an_error(when: str) -> None:
    said = found(rule(when=when))
    assert {"UNREACHABLE", "TEST_FAILS"} <= {one.code for one in said if one.level is Level.ERROR}


def test_of_a_condition_that_cannot_be_tried_out_nothing_is_said() -> None:
    assert found(rule("one"), rule("two", when='matches.exists(m, m == "wheels")')) == []
    many = " || ".join(f'scores["{category}"] > 0.{at}' for category in GIVEN for at in range(1, 9))
    assert found(rule("one"), rule("two", when=f'"wheels" in matches && ({many})')) == []


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"when": '"wheels" in matches || scores["harm"] > 0.5'}, "UNKNOWN_SCORE"),
        ({"when": '"wheels" in matches || "feet" in matches'}, "UNTESTED_MATCHER"),
        ({"description": "Wheels."}, "REASON_WITHOUT_STATEMENT"),
    ],
)
def test_what_is_probably_not_meant_is_a_warning(changed: dict[str, object], code: str) -> None:
    assert [(one.level, one.code, one.where) for one in found(rule(**changed))] == [(Level.WARNING, code, "rule one")]


def test_gaps_in_the_reasons_that_a_person_gets_are_warnings() -> None:
    bare = rule().replace("    template: no_wheels\n", "").replace("    legal_basis: The Wheels Act, article 1.\n", "")
    assert [one.code for one in found(bare)] == ["NO_LEGAL_BASIS", "NO_TEMPLATE"]
    two = rule("two", when='"feet" in matches', hit="go barefoot", category="shoes")
    assert [one.code for one in found(rule(), two)] == ["AMBIGUOUS_REASON"]


def test_matchers_that_nobody_asks_about_or_that_hold_much_back_are_warnings() -> None:
    long = BASE.replace("max_chars: 20, literals: [unicycle]", f"max_chars: 300, literals: [unicycle, {'x' * 290}]")
    said = lint((long + rule()).encode(), "own.yaml", SCORER, GIVEN)
    assert {(one.code, one.where) for one in said} == {
        ("LONG_MATCHER", "matcher wheels"),
        ("UNUSED_MATCHER", "matcher feet"),
    }


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"rules: [", "not YAML"),
        (
            (BASE + rule())
            .replace("literals: [unicycle]", "patterns: ['x+']")
            .replace("literal,", "regex,", 1)
            .encode(),
            "no bound",
        ),
        ((BASE + rule(when='"nosuch" in matches')).encode(), "'nosuch' is not a matcher"),
        ((BASE + rule(when='signals["nosuch"] > 1.0', stages="signal")).encode(), "tests"),
        ((BASE + rule().split("    tests:")[0]).encode(), "tests: Field required"),
    ],
)
def test_what_does_not_load_is_the_only_finding(data: bytes, why: str) -> None:
    [one] = lint(data, "own.yaml", SCORER, GIVEN)
    assert (one.level, one.code) == (Level.ERROR, "DOES_NOT_LOAD")
    assert why in one.message


def test_the_shipped_bundle_has_no_errors_and_one_that_extends_it_answers_for_its_own_rules_only() -> None:
    said = lint(shipped_bundle(), "shipped", SCORER, GIVEN)
    assert [one for one in said if one.level is Level.ERROR] == []
    assert {one.code for one in said} >= {"NO_LEGAL_BASIS"}
    own = BASE.replace("version: 1.0.0", "version: 1.0.0\nextends: default") + rule(reason="IDENTITY_QUESTION")
    assert {one.where for one in lint(own.encode(), "own.yaml", SCORER, GIVEN)} <= {"", "rule one", "matcher feet"}
