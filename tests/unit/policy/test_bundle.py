# ruff: noqa: E501 (a table of cases)
from __future__ import annotations

from pathlib import Path

import pytest

from personae_runtime.errors import ConfigError
from personae_runtime.policy.bundle import Bundle, Plan, load_bundle
from personae_runtime.policy.decision import Action, AgeBand, PolicyContext, Stage
from personae_runtime.policy.scorers import NgramScorer
from personae_runtime.policy.signing import Trust
from tests.unit.policy.bundles import BUNDLE, CONTEXT, WordScorer, load

UNSIGNED = Trust(allow_unsigned=True)

RULE = """
  - id: {id}
    stages: [{stage}]
    when: '{when}'
    action: {action}
    category: test
    reason_code: {reason}
    priority: {priority}
    description: added
    tests:
      - {{text: I am human, match: true, scores: {{sexual: 0.7}}}}
      - {{text: nothing, match: false, scores: {{sexual: 0.0}}}}
"""


def rule(
    id: str = "added",
    when: str = '"human" in matches',
    action: str = "block",
    reason: str = "ADDED",
    priority: int = 0,
    stage: str = "input",
) -> str:
    return RULE.format(id=id, when=when, action=action, reason=reason, priority=priority, stage=stage)


def plan(text: str, stage: Stage = Stage.INPUT, context: PolicyContext = CONTEXT) -> Plan:
    return load(text).plan(stage, context)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("version: 1.0.0", "version: 1.0.0\nsurprise: 1"), "surprise: Extra inputs are not permitted"),
        (("kind: literal, max_chars: 30", "kind: literal, max_chars: 3"), "matcher 'word': .* can match"),
        (("patterns: ['[0-9]{3,6}-", "patterns: ['[0-9]+-"), "matcher 'digits': .* has no bound"),
        (("validator: luhn", "validator: lunh"), "matcher 'card': validator 'lunh', expected one of"),
        (("    when: '\"noted\" in matches'", "    when: '\"notde\" in matches'"), "rule 'note': 'notde' is not a matcher"),
        (("    when: '\"noted\" in matches'", "    when: 'noted in matches ||'"), "rule 'note': when: "),
        (("    when: '\"noted\" in matches'", "    when: 'nosuch == 1'"), "rule 'note': when: unknown \\['nosuch'\\]"),
        (("    when: '\"noted\" in matches'", "    when: 'scores[\"evil\"] > 0.5'"), "rule 'note': when: no scorer gives 'evil'"),
        (("    when: '\"noted\" in matches'", "    when: 'chars'"), "rule 'note': tests\\[1\\] .* gave int, expected a boolean"),
        (("    action: allow", "    action: permit"), "rule 'note': action: Input should be"),
        (("    reason_code: NOTED", "    reason_code: noted"), "rule 'note': reason_code: "),
        (("    reason_code: NOTED\n", ""), "rule 'note': reason_code: Field required"),
        (("tests: [{text: a banana, match: true}, {text: an apple, match: false}]", "tests: [{text: a banana, match: true}]"), "rule 'note': tests: at least one"),
        (("{text: an apple, match: false}", "{text: bananas, match: true}, {text: an apple, match: false}"), "rule 'note': tests\\[2\\] at stage output: 'bananas' gave False, expected True"),
        (("    template: mail_removed", "    template: mial"), "rule 'redact': template: 'mial' is not among"),
        (("    redact: [mail]\n", ""), "rule 'redact': action: transform needs"),
        (("    stages: [output]\n    when: '\"mail\"", "    stages: [input]\n    when: '\"mail\""), "transform is possible at stage output only"),
        (("    notice: HELP", "    notice: HLEP"), "rule 'stop': notice: 'HLEP'"),
        (('  refusal: "No."\n', ""), "templates: 'refusal' is missing"),
        (("id: noted, kind", "id: word, kind"), "matcher 'word' is there twice"),
        (("  - id: note\n", "  - id: stop\n"), "rule 'stop' is there twice"),
        (("    action: allow", "    action: allow\n    action: block"), "key 'action' is there twice"),
        (("version: 1.0.0", "version: [}"), "not YAML"),
        (("    when: '\"noted\" in matches'", "    when: 'signals[\"turns_per_minute\"] > 1.0'"), "rule 'note': when: \\['signals'\\] is not known at stage output"),
        (("stages: [output]\n    when: '\"noted", "stages: [signal]\n    when: '\"noted"), "tests\\[1\\]: at stage signal a test has `signals`"),
        (("stages: [output]\n    when: '\"noted", "stages: [signal, input]\n    when: '\"noted"), "signal stands alone"),
        (("stages: [output]\n    when: '\"noted", "scope: {personas: [nadia]}\n    stages: [output]\n    when: '\"noted"), "rule 'note': scope: persona.*not a persona name"),
        (("stages: [output]\n    when: '\"noted", "scope: {tenants: [Acme]}\n    stages: [output]\n    when: '\"noted"), "rule 'note': scope: tenant"),
    ],
)  # fmt: skip
def test_a_wrong_bundle_does_not_load_and_the_error_names_the_place(change: tuple[str, str], message: str) -> None:
    assert change[0] in BUNDLE
    with pytest.raises(ConfigError, match=message):
        load(BUNDLE.replace(*change))


def test_the_version_names_the_content() -> None:
    one, other = load(), load(BUNDLE + "\n# a comment")
    assert one.version.startswith("1.0.0+sha256:")
    assert one.version != other.version
    assert one.version == load().version


def test_escalate_beats_block_beats_allow_then_priority_then_id() -> None:
    text = BUNDLE + rule("a_allow", action="allow", priority=99) + rule("b_block") + rule("a_block", priority=5)
    verdict = plan(text).evaluate(("human",), {}, 9)
    assert [h.rule_id for h in verdict.hits] == ["a_block", "b_block", "stop", "a_allow"]
    assert (verdict.action, verdict.reason_code) == (Action.BLOCK, "ADDED")
    verdict = plan(text + rule("z_escalate", action="escalate", reason="GRAVE")).evaluate(("human",), {}, 9)
    assert (verdict.action, verdict.reason_code) == (Action.ESCALATE, "GRAVE")
    assert verdict.notice_code == "HELP"  # a notice is not lost to the deciding rule


def test_a_rule_that_fails_at_run_time_blocks() -> None:
    text = BUNDLE + rule(when='"human" in matches ? true : (1 / (chars - 13) > 100)')
    assert plan(text).evaluate((), {}, 12).plain
    verdict = plan(text).evaluate((), {}, 13)
    assert (verdict.action, verdict.reason_code) == (Action.BLOCK, "RULE_FAILED")
    assert verdict.hits[0].rule_id == "added"
    assert verdict.template == "No."


def test_unknown_age_is_teen_before_any_rule_sees_it() -> None:
    text = BUNDLE + rule(when='age_band == "teen" && "human" in matches')
    for age, expected in [(AgeBand.UNKNOWN, 2), (AgeBand.TEEN, 2), (AgeBand.ADULT, 1)]:
        assert len(plan(text, context=PolicyContext(age_band=age)).evaluate(("human",), {}, 9).hits) == expected
    scoped = BUNDLE + rule().replace("    when:", "    scope: {age_bands: [teen]}\n    when:")
    for age, expected in [(AgeBand.UNKNOWN, 2), (AgeBand.ADULT, 1)]:
        assert len(plan(scoped, context=PolicyContext(age_band=age)).evaluate(("human",), {}, 9).hits) == expected


def test_scope_limits_a_rule_to_persona_type_and_region() -> None:
    text = BUNDLE + rule().replace("    when:", "    scope: {persona_types: [clone], regions: [PT]}\n    when:")
    for context, expected in [
        (PolicyContext("clone", region_code="PT"), 2),
        (PolicyContext("clone"), 1),
        (PolicyContext("curator", region_code="PT"), 1),
    ]:
        verdict = plan(text, context=context).evaluate(("human",), {}, 9)
        assert len(verdict.hits) == expected
        assert verdict.notice_text == ("ligue" if context.region_code == "PT" else "call somebody")


NADIA = "tenants/acme/personas/nadia"


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("tenants: [acme]", (True, True, True, False)),
        (f"personas: [{NADIA}]", (True, True, False, False)),
        (f"revisions: [{NADIA}/revisions/2, {NADIA}/revisions/3]", (False, True, False, False)),
        (f"tenants: [acme, other], personas: [{NADIA}], revisions: [{NADIA}/revisions/1]", (True, False, False, False)),
    ],
)
def test_scope_limits_a_rule_to_tenant_persona_and_revision(scope: str, expected: tuple[bool, ...]) -> None:
    text = BUNDLE + rule().replace("    when:", f"    scope: {{{scope}}}\n    when:")
    contexts = [
        PolicyContext(tenant="acme", persona="nadia", revision=1),
        PolicyContext(tenant="acme", persona="nadia", revision=2),
        PolicyContext(tenant="acme", persona="other", revision=1),
        PolicyContext(tenant="nobody", persona="nadia", revision=1),
    ]
    bundle = load(text)
    # One bundle for all, so that no plan is taken for another's.
    for context, applies in zip(contexts, expected, strict=True):
        verdict = bundle.plan(Stage.INPUT, context).evaluate(("human",), {}, 9)
        assert ("added" in {hit.rule_id for hit in verdict.hits}) is applies
    assert len(bundle.plan(Stage.INPUT, PolicyContext()).evaluate(("human",), {}, 9).hits) == 1


def test_contexts_that_no_rule_tells_apart_share_a_plan() -> None:
    bundle = load()
    assert bundle.plan(Stage.INPUT, PolicyContext(tenant="acme", persona="nadia", revision=1)) is bundle.plan(
        Stage.INPUT, PolicyContext(tenant="other", persona="tom", revision=7)
    )


FAST = """
  - id: fast
    stages: [signal]
    scope: {regions: [PT]}
    when: 'signals["turns_per_minute"] > 5.0 && region == "PT"'
    action: block
    category: abuse
    reason_code: FAST
    description: too fast
    tests: [{signals: {turns_per_minute: 6}, match: true}, {signals: {}, match: false}]
"""


def test_a_rule_at_signal_judges_numbers_and_its_tests_give_them() -> None:
    fast = load(BUNDLE + FAST).plan(Stage.SIGNAL, PolicyContext(region_code="PT"))
    assert fast.evaluate_signals({"turns_per_minute": 6.0}).reason_code == "FAST"
    assert fast.evaluate_signals({}).plain
    assert load().plan(Stage.SIGNAL, CONTEXT).evaluate_signals({"turns_per_minute": 99.0}).plain
    with pytest.raises(ConfigError, match=r"tests\[1\] at stage signal: signals .* gave False, expected True"):
        load(BUNDLE + FAST.replace("> 5.0", "> 7.0"))
    with pytest.raises(ConfigError, match="nothing gives signal 'mood'"):
        load(BUNDLE + FAST.replace('signals["turns_per_minute"]', "signals.mood"))
    with pytest.raises(ConfigError, match=r"\['scores'\] is not known at stage signal"):
        load(BUNDLE + FAST.replace('signals["turns_per_minute"]', 'scores["hate"]'))


@pytest.mark.parametrize(
    "when",
    [
        'scores["sexual"] >= 0.7 || scores.sexual > 0.9',
        'scores["sexual"] * 2.0 >= 1.4',
        'scores["sexual"] >= 0.5 + 0.2 - 0.001',
    ],
)
def test_memoised_verdicts_are_those_of_the_exact_scores(when: str) -> None:
    memo = plan(BUNDLE + rule(when=when))
    for score in (0.0, 0.69, 0.7, 0.71, 0.9, 0.95, 0.7, 0.0, 0.69):
        assert bool(memo.evaluate((), {"sexual": score}, 9).hits) is (score >= 0.7), score


def test_a_plan_asks_only_for_the_matchers_of_its_rules() -> None:
    bundle = load()
    assert "mail" not in {m.id for m in bundle.plan(Stage.INPUT, CONTEXT).matchers.matchers}
    assert "mail" in {m.id for m in bundle.plan(Stage.OUTPUT, CONTEXT).matchers.matchers}
    every = load(BUNDLE + rule(when='matches.exists(m, m.startsWith("hum"))'))
    assert "mail" in {m.id for m in every.plan(Stage.INPUT, CONTEXT).matchers.matchers}


def test_a_bundle_can_extend_the_one_that_ships_but_not_redefine_its_rules(tmp_path: Path) -> None:
    scorer = NgramScorer.load()
    path = tmp_path / "bundle.yaml"
    own = "version: 2.0.0\nextends: default\nmatchers: [{id: bicycle, kind: literal, max_chars: 10, literals: [unicycle]}]\n"
    own += "rules:" + rule("no_unicycles", when='"bicycle" in matches').replace("I am human", "a unicycle")
    path.write_text(own)
    bundle = load_bundle(path, scorer, UNSIGNED)
    assert {"no_unicycles", "self_harm_crisis", "asked_if_human"} <= {r.spec.id for r in bundle.rules}
    path.write_text(own.replace("no_unicycles", "asked_if_human"))
    with pytest.raises(ConfigError, match="rule 'asked_if_human' belongs to a protocol"):
        load_bundle(path, scorer, UNSIGNED)
    path.write_text(own.replace("no_unicycles", "email_in_output"))
    with pytest.raises(ConfigError, match="'email_in_output' is there twice"):
        load_bundle(path, scorer, UNSIGNED)


def test_a_rule_that_is_switched_off_holds_no_more_and_a_protected_one_still_does() -> None:
    protected = rule("kept", reason="KEPT").replace("category: test", "category: disclosure")
    bundle = load(BUNDLE + rule("added", priority=9) + protected)
    off = frozenset({"added", "kept", "no_such_rule"})

    def hits(*, off: frozenset[str]) -> set[str]:
        verdict = bundle.plan(Stage.INPUT, CONTEXT, off).evaluate(("human",), {}, 10)
        return {hit.rule_id for hit in verdict.hits}

    assert hits(off=frozenset()) == {"stop", "added", "kept"}
    assert hits(off=off) == {"stop", "kept"}
    assert hits(off=frozenset()) == {"stop", "added", "kept"}


def test_what_protects_a_rule_from_a_kill_switch() -> None:
    plain = rule()
    assert "added" in load(BUNDLE + plain).switchable
    for before, after in (
        ("category: test", "category: self_harm"),
        ("category: test", "category: minors"),
        ("action: block", "action: escalate"),
        ("description: added", "description: added\n    legal_basis: A law."),
        ("when:", "scope: {age_bands: [teen, adult]}\n    when:"),
    ):
        assert "added" not in load(BUNDLE + plain.replace(before, after)).switchable, after


def test_of_the_shipped_bundle_no_protocol_can_be_switched_off() -> None:
    bundle = load_bundle(None, NgramScorer.load())
    switchable = [r.spec for r in bundle.rules if r.spec.id in bundle.switchable]
    assert {spec.category for spec in switchable}.isdisjoint({"self_harm", "identity", "disclosure"})
    assert "markup_in_output" in bundle.switchable


def test_a_missing_file_says_which_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy\.bundle: can't read .*nosuch"):
        load_bundle(tmp_path / "nosuch.yaml", WordScorer())


def test_the_shipped_bundle_loads_and_its_rules_have_reasons() -> None:
    bundle: Bundle = load_bundle(None, NgramScorer.load())
    assert len({r.spec.id for r in bundle.rules}) >= 20
    assert {r.spec.category for r in bundle.rules} >= {"self_harm", "identity", "disclosure", "pii", "injection"}


def test_the_example_in_the_documentation_loads(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "policy.md").read_text(encoding="utf-8")
    path = tmp_path / "bundle.yaml"
    path.write_text(text.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    assert "no_rival_prices" in {r.spec.id for r in load_bundle(path, NgramScorer.load(), UNSIGNED).rules}
