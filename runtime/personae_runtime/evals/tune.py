"""Thresholds for rules, from labelled texts of one's own: `personae policy tune`.

A file has one JSON object per line: `prompt`; `labels`, category -> 0 or 1, where one that is missing is unknown; and
`age_band`, `teen` or `adult`, where a row without one counts for both. For each category and age band:

- the threshold is the least score, in steps of `STEP`, that at most the wanted share of the negatives reach;
- Platt's scaling (Platt 1999, with his smoothed targets) says what chance of harm a score stands for. It is fitted on
  the same rows, as is the threshold: both are optimistic by what the intervals tell;
- intervals: 95 %, percentile bootstrap that keeps the number of rows of either label, seeded. That of the threshold
  comes from tuning anew on each resample, those of recall and false positives keep the threshold.

Rows that a shipped head was trained on are scored by heads that have not seen them (`policy.heldout`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from numpy.typing import NDArray

from personae_runtime.errors import InvalidArgument
from personae_runtime.evals.operating_point import operating_point
from personae_runtime.policy.bundle import whole_pieces, windows
from personae_runtime.policy.decision import Stage
from personae_runtime.policy.gate import run_scorers, score_reply
from personae_runtime.policy.heldout import HeldOut
from personae_runtime.policy.policy import Policy
from personae_runtime.policy.scorers import RULE_CATEGORIES

BANDS: Final = ("teen", "adult")
STEP: Final = 0.001
RESAMPLES: Final = 1000
SEED: Final = 7
LEAST_POSITIVES: Final = 10
BINS: Final = 10
"""Of the calibration error: equal parts of 0 to 1."""

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Row:
    """A labelled text."""

    text: str
    labels: Mapping[str, int]
    bands: tuple[str, ...]


def read(path: Path) -> list[Row]:
    """The rows of a file.

    Raises:
        InvalidArgument: says which line and key is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise InvalidArgument(f"{path}: can't be read as UTF-8 text: {e}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            row = json.loads(line)
        except ValueError as e:
            raise InvalidArgument(f"{where}: not JSON: {e}; expected one object a line") from None
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise InvalidArgument(f"{where}: expected an object with 'prompt', a string")
        labels, band = row.get("labels"), row.get("age_band")
        if not isinstance(labels, dict) or not labels:
            raise InvalidArgument(f"{where}: 'labels' is missing; expected category: 0 or 1")
        for category, label in labels.items():
            if category not in RULE_CATEGORIES:
                raise InvalidArgument(
                    f"{where}: no category {category!r}; expected one of {', '.join(RULE_CATEGORIES)}"
                )
            if type(label) is not int or label not in (0, 1):
                raise InvalidArgument(f"{where}: label {category} is {label!r}; expected 0 or 1")
        if band is not None and band not in BANDS:
            raise InvalidArgument(f"{where}: age_band is {band!r}; expected 'teen' or 'adult', or none for both")
        rows.append(Row(row["prompt"], labels, BANDS if band is None else (band,)))
    if not rows:
        raise InvalidArgument(f"{path}: has no rows")
    return rows


def threshold_at(negatives: Scores, rate: float) -> float:
    """The least multiple of `STEP` that at most `rate` of the negatives reach; more than 1 if none does."""
    ordered = np.sort(negatives)[::-1]
    return round((math.floor(float(ordered[int(rate * len(ordered))]) / STEP) + 1) * STEP, 6)


def share(scores: Scores, threshold: float) -> float:
    """How many reach a threshold."""
    return float((scores >= threshold).mean())


def platt(scores: Scores, labels: NDArray[np.int64]) -> tuple[float, float]:
    """(slope, shift) such that sigmoid(slope * logit(score) + shift) is the chance of a 1: Newton's method on the
    log-loss with Platt's targets, (n1 + 1) / (n1 + 2) and 1 / (n0 + 2)."""
    x = _logits(scores)
    positives = int(labels.sum())
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2))
    design = np.stack([x, np.ones_like(x)], axis=1)
    found = np.array([1.0, 0.0])

    def loss(at: NDArray[np.float64]) -> float:
        z = design @ at
        return float((np.logaddexp(0, z) - targets * z).sum())

    for _ in range(50):
        chance = 1 / (1 + np.exp(-design @ found))
        gradient = design.T @ (chance - targets)
        hessian = (design * (chance * (1 - chance))[:, None]).T @ design + 1e-9 * np.eye(2)
        step, size = np.linalg.solve(hessian, gradient), 1.0
        while loss(found - size * step) > loss(found) and size > 1e-6:
            size /= 2
        found = found - size * step
        if float(np.abs(size * step).max()) < 1e-8:
            break
    return float(found[0]), float(found[1])


def calibration_error(chances: Scores, labels: NDArray[np.int64]) -> float:
    """Expected calibration error: the mean distance of chance and frequency over `BINS` bins, weighted by rows."""
    bins = np.minimum((chances * BINS).astype(int), BINS - 1)
    gaps = [abs(float(chances[bins == b].sum()) - float(labels[bins == b].sum())) for b in range(BINS)]
    return sum(gaps) / len(labels)


def _logits(scores: Scores) -> Scores:
    held = np.clip(scores, 1e-6, 1 - 1e-6)
    found: Scores = np.log(held / (1 - held))
    return found


def _interval(figure: Callable[[Scores, Scores], float], positives: Scores, negatives: Scores) -> list[float]:
    rng = np.random.default_rng(SEED)
    drawn = [
        figure(rng.choice(positives, len(positives)), rng.choice(negatives, len(negatives))) for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return [round(float(low), 4), round(float(high), 4)]


def tuned(scores: Scores, labels: NDArray[np.int64], rate: float) -> dict[str, Any]:
    """The figures of one category and age band."""
    positives, negatives = scores[labels == 1], scores[labels == 0]
    limit = threshold_at(negatives, rate)
    slope, shift = platt(scores, labels)
    chances = 1 / (1 + np.exp(-(slope * _logits(scores) + shift)))
    at = float(_logits(np.array([limit]))[0])
    return {
        "positives": len(positives),
        "negatives": len(negatives),
        "threshold": limit,
        "threshold_ci": _interval(lambda _, n: threshold_at(n, rate), positives, negatives),
        "false_positives": round(share(negatives, limit), 4),
        "false_positives_ci": _interval(lambda _, n: share(n, limit), positives, negatives),
        "recall": round(share(positives, limit), 4),
        "recall_ci": _interval(lambda p, _: share(p, limit), positives, negatives),
        "chance_at_threshold": round(1 / (1 + math.exp(-(slope * at + shift))), 4),
        "calibration": {
            "slope": round(slope, 4),
            "shift": round(shift, 4),
            "error_before": round(calibration_error(scores, labels), 4),
            "error_after": round(calibration_error(chances, labels), 4),
        },
    }


async def tune(path: Path, policy: Policy, stage: Stage, rates: Mapping[str, float]) -> dict[str, Any]:
    """Figures by category and age band, and what was left out, with why.

    Args:
        stage: INPUT scores whole texts as the input gate does, OUTPUT replies as the stream gate does.
        rates: age band -> share of negatives that may reach the threshold.

    Raises:
        InvalidArgument: the file can't be used, or no category has enough rows.
        ScorerFailure: a scorer failed.
    """
    for band, rate in rates.items():
        if not 0 < rate < 0.5:
            raise InvalidArgument(f"false positives for {band}: {rate} is not between 0 and 0.5")
    rows = read(path)
    held_out = HeldOut.load()
    scored: list[Mapping[str, float]] = []
    unseen = 0
    for row in rows:
        judge = held_out.policy_for(row.text, policy)
        unseen += judge is not policy
        texts, pieces = windows(row.text) or [""], whole_pieces(row.text)
        score = run_scorers if stage is Stage.INPUT else score_reply
        scored.append(await score(judge.scorers, texts, pieces))
    given = {category for scorer in policy.scorers for category in scorer.categories}
    found: dict[str, dict[str, Any]] = {}
    left_out = []
    for category in RULE_CATEGORIES:
        for band in BANDS:
            chosen = [i for i, r in enumerate(rows) if category in r.labels and band in r.bands]
            if not chosen:
                continue
            labels = np.array([rows[i].labels[category] for i in chosen])
            least = math.ceil(1 / rates[band])
            positives, negatives = int(labels.sum()), int((labels == 0).sum())
            if category not in given:
                left_out.append({"category": category, "age_band": band, "why": "no scorer gives it"})
            elif positives < LEAST_POSITIVES or negatives < least:
                why = f"{positives} positives and {negatives} negatives; needs {LEAST_POSITIVES} and {least}"
                left_out.append({"category": category, "age_band": band, "why": why})
            else:
                scores = np.array([scored[i].get(category, 0.0) for i in chosen])
                found.setdefault(category, {})[band] = tuned(scores, labels, rates[band])
    if not found:
        why = "; ".join(f"{one['category']}, {one['age_band']}: {one['why']}" for one in left_out)
        raise InvalidArgument(f"{path}: no category can be tuned: {why}")
    return {
        "rows": len(rows),
        "out_of_fold": unseen,
        "stage": stage.value,
        "scorers": [scorer.name for scorer in policy.scorers],
        "false_positive_rate": dict(rates),
        "categories": found,
        "left_out": left_out,
        "operating_point": operating_point(policy),
    }


def bundle_yaml(report: Mapping[str, Any], policy: Policy, version: str) -> str:
    """A bundle with a rule for each tuned category and age band, beside the default rules.

    What extends the default bundle can only be stricter, so that a comment says where a default rule acts earlier.
    """
    rules, notes = [], []
    for category, bands in report["categories"].items():
        for band, figures in bands.items():
            limit = figures["threshold"]
            if limit > 1:
                notes.append(f"{category}, {band}: no threshold keeps to the rate; negatives score 1")
                continue
            earlier = _earlier(policy, category, band, report["stage"], limit)
            if earlier:
                notes.append(f"{category}, {band}: {' and '.join(earlier)} acts from a lower score, and goes on to")
            score = f'scores["{category}"]'
            rules.append({
                "id": f"tuned_{category}_{report['stage']}_{band}",
                "stages": [report["stage"]],
                "scope": {"age_bands": [band]},
                "when": f"{score} >= {limit:g}",
                "action": "block",
                "category": category,
                "reason_code": f"TUNED_{category.upper()}",
                "template": "refusal",
                "description": f"{category} by score, set at {figures['false_positives']:.1%} false positives"
                f" ({figures['negatives']} texts) and {figures['recall']:.1%} recall ({figures['positives']}).",
                "tests": [
                    {"text": "score at the threshold", "scores": {category: limit}, "match": True},
                    {"text": "score below it", "scores": {category: round(limit - STEP, 6)}, "match": False},
                ],
            })  # fmt: skip
    if not rules:
        raise InvalidArgument("no threshold keeps to the rate: negatives score 1 in every category")
    body = yaml.safe_dump({"version": version, "extends": "default", "rules": rules}, sort_keys=False, width=110)
    return "".join(f"# {note}\n" for note in notes) + body


def _earlier(policy: Policy, category: str, band: str, stage: str, limit: float) -> list[str]:
    """Rules in force that compare the category with less than `limit` for the band at the stage, and stop."""
    return [
        rule.spec.id
        for rule in policy.bundle.rules
        if rule.spec.action.stops
        and stage in rule.spec.stages
        and band in (rule.spec.scope.age_bands or BANDS)
        and any(number < limit for number in dict(rule.thresholds).get(category, ()))
    ]
