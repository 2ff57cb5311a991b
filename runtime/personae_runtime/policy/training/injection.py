"""Trains the injection scorer and writes it with its model card.

    python -m personae_runtime.policy.training.injection --data ../shared/data [--write]

Data: the grammars of `injection_texts.py`, and, as more of what is no injection,
the harmless texts of `texts.py` and the rows of `openai_moderation_dev.jsonl`
(openai/moderation-api-release, MIT). XSTest (CC BY 4.0) is read for evaluation
only, never trained on. Everything is seeded: the same data give the same weights.

The bias is set so that a score of `OPERATING_SCORE` is passed by `OPERATING_FPR`
of the negatives, out of fold and as deployed. Needs scikit-learn and scipy, which
the runtime does not. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from personae_runtime.policy.bundle import windows
from personae_runtime.policy.injection import FEATURES, HEAD_FILE, InjectionScorer
from personae_runtime.policy.injection import features as named_features
from personae_runtime.policy.scorers import distinct, hash_ngrams, text_codes
from personae_runtime.policy.training.__main__ import read_moderation, read_xstest
from personae_runtime.policy.training.injection_texts import generate
from personae_runtime.policy.training.texts import Sample
from personae_runtime.policy.training.texts import generate as generate_others

SEED = 7
BITS = 14
FOLDS = 3
LEFT_OUT = 10
"""Families of attack that are each left out once, spread over all of them."""
PER_TEMPLATE = 12
REGULARISATION = 1.0
"""C of the logistic regression."""
NGRAM_SCALE = 2.0
"""How much n-grams weigh beside the named features."""
OPERATING_FPR = 0.01
OPERATING_SCORE = 0.8
"""What the default bundle compares the score with."""
CARD_FILE = "injection_head.card.yaml"


def design(texts: Sequence[str]) -> Any:
    """Sparse rows, shape (texts, len(FEATURES) + 2**BITS), weighed as `InjectionScorer` does."""
    from scipy import sparse  # type: ignore[import-untyped,import-not-found,unused-ignore]

    named = sparse.csr_matrix(np.stack([named_features(t) for t in texts]))
    rows, columns, values = [], [], []
    for i, text in enumerate(texts):
        buckets = distinct(hash_ngrams(text_codes(text), BITS))
        rows.append(np.full(len(buckets), i))
        columns.append(buckets)
        values.append(np.full(len(buckets), NGRAM_SCALE / math.sqrt(max(1, len(buckets)))))
    index = (np.concatenate(rows), np.concatenate(columns))
    grams = sparse.csr_matrix((np.concatenate(values), index), shape=(len(texts), 1 << BITS))
    return sparse.hstack([named, grams]).tocsr()


def fit(x: Any, labels: NDArray[np.int64]) -> InjectionScorer:
    """A logistic regression on rows of `design`."""
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped,import-not-found,unused-ignore]

    model = LogisticRegression(
        C=REGULARISATION, class_weight="balanced", solver="liblinear", random_state=SEED, max_iter=300
    )
    model.fit(x, labels)
    weights = model.coef_[0]
    table = (weights[len(FEATURES) :] * NGRAM_SCALE).astype(np.float16)
    return InjectionScorer(weights[: len(FEATURES)], table, float(model.intercept_[0]))


def logits(scorer: InjectionScorer, texts: Sequence[str]) -> NDArray[np.float64]:
    """Of each text as the gate sees it: the highest of its units and windows."""
    return np.array([max((scorer.logit(w) for w in windows(t)), default=scorer.bias) for t in texts])


def samples(data: Path) -> tuple[list[Sample], list[Sample]]:
    """(training samples, held-out attacks)."""
    own, held_out = generate(SEED, PER_TEMPLATE)
    others = [
        Sample(s.text, {"injection": 0}, f"other/{s.group}")
        for s in generate_others(SEED, ("injection",), 3)
        if s.group.startswith(("benign", "lookalike", "injection_like"))
    ]
    public = [Sample(s.text, {"injection": 0}, s.group) for s in read_moderation(data / "openai_moderation_dev.jsonl")]
    # An attack is one as a whole; of what is none, the gate's short units and windows must not look like one either.
    parts = [
        Sample(window, s.labels, s.group)
        for s in own + others + public
        if not s.labels["injection"]
        for window in windows(s.text)[:4]
        if window != s.text
    ]
    seen: set[str] = set()
    unique = []
    for sample in own + others + public + parts:
        if sample.text not in seen:
            seen.add(sample.text)
            unique.append(sample)
    return unique, held_out


def recall(found: NDArray[np.float64], threshold: float) -> float:
    """Share above a threshold."""
    return round(float((found > threshold).mean()), 3)


def evaluate(chosen: Sequence[Sample], held_out: Sequence[Sample]) -> tuple[InjectionScorer, dict[str, Any]]:
    """The scorer fitted on all, its bias set, and its figures.

    Thresholds of the figures are at 2 % of the negatives of folds left out.
    """
    x = design([s.text for s in chosen])
    labels = np.array([s.labels["injection"] for s in chosen])
    fold = np.array([int(hashlib.sha256(s.group.encode()).hexdigest(), 16) % FOLDS for s in chosen])
    out = np.zeros(len(chosen))
    for k in range(FOLDS):
        scorer = fit(x[fold != k], labels[fold != k])
        at = np.flatnonzero(fold == k)
        out[at] = logits(scorer, [chosen[i].text for i in at])
    negatives = out[labels == 0]
    threshold = float(np.quantile(negatives, 0.98))
    families = sorted({s.group.split("/")[1] for s in chosen if s.group.startswith("attack/")})
    family = np.array([s.group.split("/")[1] if s.group.startswith("attack/") else "" for s in chosen])
    left_out = {}
    for name in families[:: max(1, len(families) // LEFT_OUT)]:
        scorer = fit(x[family != name], labels[family != name])
        texts = [chosen[i].text for i in np.flatnonzero(family == name)]
        texts = texts[:: max(1, len(texts) // 40)]
        left_out[name] = recall(logits(scorer, texts), threshold)
    scorer = fit(x, labels)
    held: dict[str, list[float]] = {}
    for s, value in zip(held_out, logits(scorer, [s.text for s in held_out]), strict=True):
        held.setdefault(s.group.split("/")[1], []).append(float(value))
    scorer.bias += math.log(OPERATING_SCORE / (1 - OPERATING_SCORE)) - float(np.quantile(negatives, 1 - OPERATING_FPR))
    every = np.concatenate([np.array(v) for v in held.values()])
    report = {
        "negatives": int((labels == 0).sum()),
        "attacks": int((labels == 1).sum()),
        "recall_by_template_left_out": recall(out[labels == 1], threshold),
        "recall_by_family_left_out": left_out,
        "mean_recall_by_family_left_out": round(float(np.mean(list(left_out.values()))), 3),
        "recall_held_out_families": {name: recall(np.array(v), threshold) for name, v in held.items()},
        "recall_held_out": recall(every, threshold),
        "held_out_texts": len(every),
        "recall_held_out_at_operating_point": recall(every, float(np.quantile(negatives, 1 - OPERATING_FPR))),
    }
    return scorer, report


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m personae_runtime.policy.training.injection", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PERSONAE_EVAL_DATA", "../shared/data")))
    parser.add_argument("--write", action="store_true", help="write weights and card into the package")
    args = parser.parse_args()

    chosen, held_out = samples(args.data)
    scorer, figures = evaluate(chosen, held_out)
    card: dict[str, Any] = {
        "model": "logistic regression over named features and hashed character 2- to 5-grams",
        "categories": ["injection"],
        "named_features": len(FEATURES),
        "buckets": 1 << BITS,
        "regularisation_c": REGULARISATION,
        "seed": SEED,
        "data": {
            "own_grammars": {
                "texts_and_windows": sum(not s.group.startswith("moderation") for s in chosen), "licence": "Apache-2.0",
            },
            "openai_moderation": {
                "rows_and_windows": sum(s.group.startswith("moderation") for s in chosen),
                "source": "openai/moderation-api-release", "licence": "MIT", "use": "as negatives",
            },
            "xstest": {"source": "XSTest", "licence": "CC BY 4.0", "use": "evaluation only"},
        },
        "operating_point": {"score": OPERATING_SCORE, "false_positive_rate_out_of_fold": OPERATING_FPR},
        "at_2_percent_false_positives": figures,
    }  # fmt: skip
    xstest = args.data / "xstest_dev.jsonl"
    if xstest.exists():
        safe = [text for text, is_safe in read_xstest(xstest) if is_safe]
        limit = math.log(OPERATING_SCORE / (1 - OPERATING_SCORE))
        card["xstest_safe_above_operating_point"] = recall(logits(scorer, safe), limit)
    if args.write:
        folder = Path(__file__).parent.parent
        np.savez_compressed(
            folder / HEAD_FILE,
            named=scorer.named.astype(np.float32),
            table=scorer.table.astype(np.float16),
            bias=np.float32(scorer.bias),
            features=np.array(FEATURES),
        )
        text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=110)
        (folder / CARD_FILE).write_text(text, encoding="utf-8")
    print(json.dumps(card))


if __name__ == "__main__":
    main()
