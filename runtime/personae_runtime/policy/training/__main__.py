"""Trains the hashed n-gram head and writes it with its model card.

    python -m personae_runtime.policy.training --data ../shared/data [--write]

Data: the rows of `openai_moderation_dev.jsonl` (openai/moderation-api-release,
MIT), the templates in `texts.py`, and everyday talk about groups that hateful
texts name (`requests.TALK`). XSTest (CC BY 4.0) is read for evaluation only,
never trained on. Everything is seeded: the same data give the same weights.

Needs scikit-learn and scipy, which the runtime does not. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from personae_runtime.policy.bundle import windows
from personae_runtime.policy.decision import AgeBand, PolicyContext, Stage
from personae_runtime.policy.heldout import HELD_OUT_FILE, row_hash
from personae_runtime.policy.policy import Policy
from personae_runtime.policy.scorers import CATEGORIES, HEAD_FILE, NgramScorer, distinct, hash_ngrams, text_codes
from personae_runtime.policy.training.requests import generate_talk
from personae_runtime.policy.training.texts import Sample, generate

SEED = 7
BITS = 16
FOLDS = 5
PER_TEMPLATE = 4
REGULARISATION = 10.0  # C of the logistic regression, chosen by the cross-validation below
CARD_FILE = "ngram_head.card.yaml"

# Their key -> our categories. H2 and V2 are the graver kinds of H and V, so 1 in one is 1 in the category.
MODERATION_KEYS = {
    "sexual": ("S",),
    "hate": ("H", "H2"),
    "violence": ("V", "V2"),
    "harassment": ("HR",),
    "self_harm": ("SH",),
}


def read_moderation(path: Path) -> list[Sample]:
    """The labelled rows; a key that is missing is unknown, and stays so. Rows of the same words are one group: some
    come twice, and one must not be trained on while the other is held out."""
    samples = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        labels = {}
        for category, keys in MODERATION_KEYS.items():
            known = [int(row[k]) for k in keys if k in row]
            if 1 in known or keys[0] in row:
                labels[category] = max(known)
        samples.append(Sample(row["prompt"], labels, f"moderation{row_hash(row['prompt'])}"))
    return samples


def features(texts: Sequence[str], idf: NDArray[np.float64] | None) -> tuple[Any, NDArray[np.float64]]:
    """Sparse rows as `NgramScorer` weighs them, shape (texts, 2**BITS), and the idf (fitted here if None)."""
    from scipy import sparse  # type: ignore[import-untyped,import-not-found,unused-ignore]

    rows, columns = [], []
    for i, text in enumerate(texts):
        buckets = distinct(hash_ngrams(text_codes(text), BITS))
        rows.append(np.full(len(buckets), i))
        columns.append(buckets)
    index = (np.concatenate(rows), np.concatenate(columns))
    matrix = sparse.csr_matrix((np.ones(len(index[0])), index), shape=(len(texts), 1 << BITS))
    if idf is None:
        seen = np.asarray(matrix.sum(axis=0)).ravel()
        idf = np.log((1 + len(texts)) / (1 + seen)) + 1
    norm = np.sqrt(np.maximum(matrix @ idf**2, 1e-12))
    return sparse.diags(1 / norm) @ matrix @ sparse.diags(idf), idf


def fit(samples: Sequence[Sample], categories: Sequence[str] = CATEGORIES) -> NgramScorer:
    """Fits one logistic regression per category on the samples whose label is known."""
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped,import-not-found,unused-ignore]

    x, idf = features([s.text for s in samples], None)
    table = np.zeros((len(categories) + 1, 1 << BITS), dtype=np.float16)
    bias = np.zeros(len(categories), dtype=np.float32)
    for column, category in enumerate(categories):
        known = [i for i, s in enumerate(samples) if category in s.labels]
        y = np.array([samples[i].labels[category] for i in known])
        model = LogisticRegression(
            C=REGULARISATION, class_weight="balanced", solver="liblinear", random_state=SEED, max_iter=200
        )
        model.fit(x[known], y)
        table[column] = (model.coef_[0] * idf).astype(np.float16)
        bias[column] = model.intercept_[0]
    table[-1] = (idf**2).astype(np.float16)
    return NgramScorer(table, bias, tuple(categories))


def scores(scorer: NgramScorer, texts: Sequence[str], *, as_deployed: bool) -> NDArray[np.float64]:
    """Scores, shape (texts, categories): of the whole text, or the highest of its units and windows."""
    rows = []
    for text in texts:
        found = scorer.score_sync(windows(text) or [""]) if as_deployed else scorer.score_sync([text])
        rows.append([max(row[c] for row in found) for c in scorer.categories])
    return np.array(rows)


def folds(samples: Sequence[Sample], count: int = FOLDS) -> NDArray[np.int64]:
    """A fold for each sample, equal within a group and fixed by the group's name."""
    return np.array([int(hashlib.sha256(s.group.encode()).hexdigest(), 16) % count for s in samples])


def cross_validate(
    samples: Sequence[Sample],
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.int64], list[NgramScorer]]:
    """Out-of-fold scores of every sample, as deployed and of whole texts; the folds; and each fold's head."""
    fold = folds(samples)
    heads = []
    out = {mode: np.zeros((len(samples), len(CATEGORIES))) for mode in ("as_deployed", "whole_text")}
    for k in range(FOLDS):
        scorer = fit([s for s, f in zip(samples, fold, strict=True) if f != k])
        heads.append(scorer)
        held = np.flatnonzero(fold == k).tolist()
        texts = [samples[i].text for i in held]
        for mode, rows in out.items():
            rows[held] = scores(scorer, texts, as_deployed=mode == "as_deployed")
    return out, fold, heads


def quality(
    samples: Sequence[Sample], found: NDArray[np.float64], prefix: str | tuple[str, ...], categories: Sequence[str]
) -> dict[str, Any]:
    """AUROC and AUPRC per category over the samples of some groups, and of any harm."""
    from sklearn.metrics import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
        average_precision_score,
        roc_auc_score,
    )

    report: dict[str, Any] = {}
    chosen = [i for i, s in enumerate(samples) if s.group.startswith(prefix)]
    for category in categories:
        column = CATEGORIES.index(category)
        known = [i for i in chosen if category in samples[i].labels]
        y, p = [samples[i].labels[category] for i in known], found[known, column]
        report[category] = {
            "positives": sum(y), "negatives": len(y) - sum(y),
            "auroc": round(float(roc_auc_score(y, p)), 3), "auprc": round(float(average_precision_score(y, p)), 3),
        }  # fmt: skip
    if len(categories) > 1:
        columns = [CATEGORIES.index(c) for c in categories]
        y = [max(samples[i].labels.values()) for i in chosen]
        p = found[chosen][:, columns].max(axis=1)
        report["any"] = {
            "positives": sum(y), "negatives": len(y) - sum(y),
            "auroc": round(float(roc_auc_score(y, p)), 3), "auprc": round(float(average_precision_score(y, p)), 3),
        }  # fmt: skip
    return report


def operating_points(
    samples: Sequence[Sample], found: NDArray[np.float64], rates: Sequence[float]
) -> dict[str, dict[str, dict[str, float]]]:
    """For each category and false-positive rate: the threshold that keeps it on the out-of-fold negatives, and what
    it catches."""
    report: dict[str, dict[str, dict[str, float]]] = {}
    for column, category in enumerate(CATEGORIES):
        known = [i for i, s in enumerate(samples) if category in s.labels]
        y = np.array([samples[i].labels[category] for i in known])
        p = found[known, column]
        report[category] = {}
        for rate in rates:
            threshold = float(np.quantile(p[y == 0], 1 - rate))
            report[category][f"fpr_{rate:g}"] = {
                "threshold": round(threshold, 3), "recall": round(float((p[y == 1] > threshold).mean()), 3),
            }  # fmt: skip
    return report


def over_refusal(scorer: NgramScorer, path: Path, thresholds: dict[str, float]) -> dict[str, Any]:
    """Share of XSTest's safe prompts that any category would refuse, and of its unsafe ones."""
    rows = read_xstest(path)
    limits = np.array([thresholds[c] for c in CATEGORIES])
    refused = (scores(scorer, [text for text, _ in rows], as_deployed=True) > limits).max(axis=1)
    return refusals([safe for _, safe in rows], refused.tolist())


def read_xstest(path: Path) -> list[tuple[str, bool]]:
    """Prompts, and whether each is safe."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(row["prompt"], row["label"] == "safe") for row in rows]


def refusals(safe: Sequence[bool], refused: Sequence[bool]) -> dict[str, Any]:
    """Shares refused of the safe and of the unsafe prompts."""
    of_safe = [r for s, r in zip(safe, refused, strict=True) if s]
    of_unsafe = [r for s, r in zip(safe, refused, strict=True) if not s]
    return {
        "safe_prompts": len(of_safe), "safe_refused": round(sum(of_safe) / len(of_safe), 3),
        "unsafe_prompts": len(of_unsafe), "unsafe_refused": round(sum(of_unsafe) / len(of_unsafe), 3),
    }  # fmt: skip


def bundle_points(policy: Policy, samples: Sequence[Sample], found: NDArray[np.float64]) -> dict[str, Any]:
    """Out-of-fold false-positive rate and recall at the lowest threshold that the bundle has at output."""
    report: dict[str, Any] = {}
    for age in (AgeBand.TEEN, AgeBand.ADULT):
        report[age.value] = {}
        for category, limits in policy.bundle.plan(Stage.OUTPUT, PolicyContext("assistant", age)).thresholds or ():
            if category not in CATEGORIES:  # another scorer's
                continue
            known = [i for i, s in enumerate(samples) if category in s.labels]
            y = np.array([samples[i].labels[category] for i in known])
            hit = found[known, CATEGORIES.index(category)] >= limits[0]
            report[age.value][category] = {
                "threshold": limits[0],
                "false_positive_rate": round(float(hit[y == 0].mean()), 4),
                "recall": round(float(hit[y == 1].mean()), 3),
            }
    return report


def bundle_refusals(policy: Policy, path: Path) -> dict[str, Any]:
    """What the bundle, matchers included, refuses of XSTest as input."""
    rows = read_xstest(path)
    report: dict[str, Any] = {}
    for age in (AgeBand.TEEN, AgeBand.ADULT):
        context = PolicyContext("assistant", age)

        async def judge(context: PolicyContext = context) -> list[bool]:
            return [(await policy.decide(Stage.INPUT, text, context)).action.stops for text, _ in rows]

        report[age.value] = refusals([safe for _, safe in rows], asyncio.run(judge()))
    return report


def write_held_out(
    samples: Sequence[Sample], fold: NDArray[np.int64], heads: Sequence[NgramScorer], folder: Path
) -> dict[str, Any]:
    """Writes each fold's head, and which public row is in which fold (`HeldOut.unpack` reads it)."""
    path = folder / HELD_OUT_FILE
    public = [i for i, s in enumerate(samples) if s.group.startswith("moderation")]
    np.savez_compressed(
        path,
        hashes=np.array([row_hash(samples[i].text) for i in public], dtype=np.uint64),
        folds=fold[public].astype(np.uint8),
        ngram_tables=np.array([head.table for head in heads], dtype=np.float16),
        ngram_biases=np.array([head.bias for head in heads], dtype=np.float32),
        categories=np.array(CATEGORIES),
    )
    return {"file": HELD_OUT_FILE, "bytes": path.stat().st_size, "folds": len(heads), "rows": len(public)}


def write_weights(scorer: NgramScorer, folder: Path) -> dict[str, Any]:
    """Writes the weights (float16) and says what was written."""
    path = folder / HEAD_FILE
    np.savez_compressed(
        path,
        weights=scorer.table[:-1].astype(np.float16),
        idf2=scorer.table[-1].astype(np.float16),
        bias=scorer.bias.astype(np.float32),
        categories=np.array(CATEGORIES),
    )
    return {"file": HEAD_FILE, "bytes": path.stat().st_size, "dtype": "float16"}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m personae_runtime.policy.training", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PERSONAE_EVAL_DATA", "../shared/data")))
    parser.add_argument("--write", action="store_true", help="write weights and card into the package")
    args = parser.parse_args()

    own = generate(SEED, CATEGORIES, PER_TEMPLATE) + generate_talk(SEED, PER_TEMPLATE, CATEGORIES)
    # No moderation row was labelled for injection; they are ordinary posts, so they count as none.
    public = [
        Sample(s.text, {**s.labels, "injection": 0}, s.group)
        for s in read_moderation(args.data / "openai_moderation_dev.jsonl")
    ]
    samples = public + own
    found, fold, heads = cross_validate(samples)
    harms = tuple(c for c in CATEGORIES if c != "injection")
    deployed = found["as_deployed"]
    points = operating_points(samples, deployed, (0.005, 0.01, 0.02, 0.05))
    scorer = fit(samples)
    card: dict[str, Any] = {
        "model": "hashed character 2- to 5-gram logistic regression, one per category",
        "categories": list(CATEGORIES),
        "buckets": 1 << BITS,
        "regularisation_c": REGULARISATION,
        "seed": SEED,
        "data": {
            "openai_moderation": {"rows": len(public), "source": "openai/moderation-api-release", "licence": "MIT"},
            "own_templates": {"texts": len(own), "groups": len({s.group for s in own}), "licence": "Apache-2.0"},
        },
        "cross_validation": {
            "folds": FOLDS,
            "moderation_whole_text": quality(samples, found["whole_text"], "moderation", harms),
            "moderation_as_deployed": quality(samples, deployed, "moderation", harms),
            "own_templates_by_group": quality(
                samples,
                deployed,
                ("benign", "lookalike", "injection", "violence", "harassment", "hate", "self", "sex"),
                ("injection",),
            ),
            "operating_points": points,
        },
        "xstest": {"source": "XSTest", "licence": "CC BY 4.0", "use": "evaluation only"},
    }  # fmt: skip
    xstest = args.data / "xstest_dev.jsonl"
    if xstest.exists():
        for rate in ("fpr_0.005", "fpr_0.01", "fpr_0.02", "fpr_0.05"):
            limits = {c: points[c][rate]["threshold"] for c in CATEGORIES}
            card["xstest"][rate] = over_refusal(scorer, xstest, limits)
        card["xstest"]["at_0.5"] = over_refusal(scorer, xstest, dict.fromkeys(CATEGORIES, 0.5))
    if args.write:
        folder = Path(__file__).parent.parent
        card["weights"] = write_weights(scorer, folder)
        card["held_out"] = write_held_out(samples, fold, heads, folder)
        # The bundle's own tests run on the new weights, too.
        policy = Policy.load(None, ["ngram"], 1000.0)
        card["default_bundle"] = {
            "version": policy.version,
            "output_thresholds_out_of_fold": bundle_points(policy, samples, deployed),
        }
        if xstest.exists():
            card["default_bundle"]["xstest_input"] = bundle_refusals(policy, xstest)
        text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=110)
        (folder / CARD_FILE).write_text(text, encoding="utf-8")
    print(json.dumps(card))


if __name__ == "__main__":
    main()
