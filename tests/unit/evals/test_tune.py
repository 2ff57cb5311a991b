"""`personae policy tune`: what it tunes, what it refuses, and that what it prints is a bundle."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from personae_runtime.errors import InvalidArgument
from personae_runtime.evals import tune
from personae_runtime.policy.bundle import DEFAULT_BUNDLE, Rule, parse_bundle
from personae_runtime.policy.decision import Stage
from personae_runtime.policy.policy import Policy
from personae_runtime.policy.scorers import NgramScorer
from personae_runtime.policy.training.texts import generate
from personae_serve.cli import build_app
from tests.unit.policy.bundles import WholeWordScorer

RATES = {"teen": 0.05, "adult": 0.02}


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy.load(None, ["ngram"], 1000.0)


def _rules(policy: Policy, text: str) -> dict[str, Rule]:
    base = resources.files("personae_runtime.policy").joinpath(DEFAULT_BUNDLE).read_bytes()
    bundle = parse_bundle(text.encode(), "printed", NgramScorer.load(), base=base)
    assert bundle.version != policy.version
    return {rule.spec.id: rule for rule in bundle.rules}


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """The project's own texts, which the head knows: they separate well, and that is all this needs."""
    known = [s for s in generate(7, ("hate",), 2) if "hate" in s.labels]
    own = [s for s in known if s.labels["hate"]] + [s for s in known if not s.labels["hate"]][::4]
    rows: list[dict[str, Any]] = [{"prompt": s.text, "labels": {"hate": s.labels["hate"]}} for s in own]
    return _write(tmp_path / "labelled.jsonl", rows)


def test_no_more_negatives_than_the_rate_reach_the_threshold() -> None:
    rng = np.random.default_rng(3)
    for rate in (0.01, 0.05, 0.2):
        negatives = rng.random(400)
        limit = tune.threshold_at(negatives, rate)
        assert tune.share(negatives, limit) <= rate < tune.share(negatives, limit - 2 * tune.STEP)
    assert tune.threshold_at(np.ones(10), 0.05) > 1


def test_calibration_finds_the_scaling_that_made_the_labels() -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 2, 20_000)
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-(0.5 * logits - 1)))).astype(np.int64)
    scores = 1 / (1 + np.exp(-logits))
    slope, shift = tune.platt(scores, labels)
    assert (slope, shift) == pytest.approx((0.5, -1), abs=0.05)
    after = 1 / (1 + np.exp(-(slope * logits + shift)))
    assert tune.calibration_error(after, labels) < 0.02 < tune.calibration_error(scores, labels)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: expected an object"),
        ('{"prompt": "a"}', "'labels' is missing"),
        ('{"prompt": "a", "labels": {"rudeness": 1}}', "no category 'rudeness'"),
        ('{"prompt": "a", "labels": {"hate": true}}', "label hate is True"),
        ('{"prompt": "a", "labels": {"hate": 2}}', "label hate is 2"),
        ('{"prompt": "a", "labels": {"hate": 1}, "age_band": "child"}', "age_band is 'child'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "f"
    path.write_text('{"prompt": "a", "labels": {"hate": 1}}\n' + line, encoding="utf-8")
    with pytest.raises(InvalidArgument, match=complaint):
        tune.read(path)


async def test_too_few_rows_tune_nothing_and_say_so(policy: Policy, tmp_path: Path) -> None:
    path = _write(tmp_path / "f", [{"prompt": "a", "labels": {"hate": n % 2}} for n in range(30)])
    with pytest.raises(InvalidArgument, match="hate, adult: 15 positives and 15 negatives; needs 10 and 50"):
        await tune.tune(path, policy, Stage.INPUT, RATES)


async def test_a_category_that_no_scorer_gives_is_left_out(policy: Policy, labelled: Path) -> None:
    own = _read(labelled)
    both = [{**row, "labels": {**row["labels"], "harm": row["labels"]["hate"]}} for row in own]
    report = await tune.tune(_write(labelled, both), policy, Stage.INPUT, RATES)
    assert [(one["category"], one["why"]) for one in report["left_out"]] == [("harm", "no scorer gives it")] * 2


@pytest.mark.parametrize("rate", [0.0, 0.5, 2.0, float("nan")])
async def test_a_rate_that_is_no_share_is_refused(policy: Policy, labelled: Path, rate: float) -> None:
    with pytest.raises(InvalidArgument, match="is not between 0 and"):
        await tune.tune(labelled, policy, Stage.INPUT, {**RATES, "adult": rate})


async def test_thresholds_keep_to_the_rate_of_each_age(policy: Policy, labelled: Path) -> None:
    report = await tune.tune(labelled, policy, Stage.OUTPUT, RATES)
    teen, adult = (report["categories"]["hate"][band] for band in ("teen", "adult"))
    assert teen["false_positives"] <= 0.05
    assert adult["false_positives"] <= 0.02
    assert teen["threshold"] <= adult["threshold"]
    for figures in (teen, adult):
        for name in ("threshold", "recall", "false_positives"):
            low, high = figures[f"{name}_ci"]
            assert low <= figures[name] <= high
    rules = _rules(policy, tune.bundle_yaml(report, policy, "1"))
    assert dict(rules["tuned_hate_output_teen"].thresholds) == {"hate": (teen["threshold"],)}
    assert rules["tuned_hate_output_adult"].spec.scope.age_bands == ("adult",)


async def test_a_reply_is_tuned_for_as_its_units_and_as_a_whole(policy: Policy, tmp_path: Path) -> None:
    far = "Take the knife. " + "It is a fine day by the river. " * 10 + "Now hold it to the {}."
    rows = [
        {"prompt": far.format(word), "labels": {"violence": int(word == "neck")}} for word in ("neck", "light") * 60
    ]
    path = _write(tmp_path / "f", rows)
    judged = Policy(policy.bundle, [WholeWordScorer("the knife", "the neck", needed=2)])
    report = await tune.tune(path, judged, Stage.OUTPUT, RATES)
    assert [report["categories"]["violence"][band]["recall"] for band in ("teen", "adult")] == [1, 1]


async def test_rows_of_one_age_count_for_that_age_alone(policy: Policy, labelled: Path) -> None:
    own = _read(labelled)
    path = _write(labelled, [{**row, "age_band": "adult"} for row in own])
    report = await tune.tune(path, policy, Stage.INPUT, RATES)
    assert list(report["categories"]["hate"]) == ["adult"]


async def test_a_default_rule_that_acts_earlier_is_told(policy: Policy, labelled: Path) -> None:
    own = _read(labelled)
    # Harmful texts called harmless: the threshold has to lie above the default's.
    wrong = [{**row, "labels": {"hate": 1 - row["labels"]["hate"]}} for row in own]
    report = await tune.tune(_write(labelled, wrong), policy, Stage.INPUT, {"teen": 0.1, "adult": 0.1})
    printed = tune.bundle_yaml(report, policy, "1")
    assert "# hate, teen: hate_teen acts from a lower score, and goes on to" in printed
    _rules(policy, printed)


def test_the_command_prints_figures_and_a_bundle(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: Policy
) -> None:
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(build_app(), ["policy", "tune", "--path", str(labelled), "--fpr", "0.05", "--json"])
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout.splitlines()[-1])
    assert report["false_positive_rate"] == {"teen": 0.05, "adult": 0.05}
    assert {"tuned_hate_input_teen", "tuned_hate_input_adult"} <= _rules(policy, report["bundle"]).keys()
