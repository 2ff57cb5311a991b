"""Trains the injection scorer and its second stage and writes them with their model card.

    python -m personae_runtime.policy.training.injection --data ../shared/data --models DIR [--write]

Data: the grammars of `injection_texts.py` and `injection_kinds.py`, and, as more of what is no injection,
the texts of `texts.py` and `requests.py` (also the harmful ones) and the rows of `openai_moderation_dev.jsonl`
(openai/moderation-api-release, MIT). XSTest (CC BY 4.0) is read for evaluation
only, never trained on. Everything is seeded: the same data give the same weights.

Both stages are calibrated out of fold: slope and bias are such that `LIKELY` is passed by `EVERYDAY_FPR` of everyday
texts, and `CERTAIN` by `HARD_FPR` of all that is no injection. Folds keep a template's texts together. Needs
scikit-learn and scipy, which the runtime does not, and the embedding model. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
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

from personae_runtime.config import default_models_dir
from personae_runtime.policy.bundle import PIECE_CHARS, windows
from personae_runtime.policy.injection import CERTAIN, FEATURES, HEAD_FILE, LIKELY, InjectionJudge, InjectionScorer
from personae_runtime.policy.injection import features as named_features
from personae_runtime.policy.scorers import distinct, hash_ngrams, text_codes
from personae_runtime.policy.training.__main__ import read_moderation, read_xstest
from personae_runtime.policy.training.harm import embed
from personae_runtime.policy.training.injection_texts import generate
from personae_runtime.policy.training.requests import generate_requests
from personae_runtime.policy.training.texts import Sample
from personae_runtime.policy.training.texts import generate as generate_others

SEED = 7
BITS = 14
FOLDS = 3
PER_REQUEST = 3
LEFT_OUT = 8
"""Groups of families of attack, each group left out once."""
PER_TEMPLATE = 12
REGULARISATION, JUDGE_REGULARISATION = 0.3, 0.1
"""C of the logistic regressions."""
NGRAM_SCALE = 2.0
"""How much n-grams weigh beside the named features."""
VECTOR_SCALE = 2.0
"""How much an embedding, of unit length, weighs beside them."""
FIRST_WEIGHT = 0.5
"""Of the first stage's logit in the second's."""
EVERYDAY_FPR, HARD_FPR = 0.02, 0.01
BAND_QUANTILE = 0.01
"""Of the attacks' first logits, families left out: below is not embedded."""
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
    weights, bias = _regress(x, labels, REGULARISATION)
    return InjectionScorer(weights[: len(FEATURES)], (weights[len(FEATURES) :] * NGRAM_SCALE).astype(np.float16), bias)


def fit_judge(
    x: Any, vectors: NDArray[np.float32], labels: NDArray[np.int64], cheap: InjectionScorer
) -> InjectionJudge:
    """The second stage on rows of `design` and their embeddings. It embeds everything as yet."""
    from scipy import sparse

    width = x.shape[1]
    weights, bias = _regress(
        sparse.hstack([x, sparse.csr_matrix(vectors * VECTOR_SCALE)]).tocsr(), labels, JUDGE_REGULARISATION
    )
    return InjectionJudge(
        cheap,
        weights[: len(FEATURES)],
        (weights[len(FEATURES) : width] * NGRAM_SCALE).astype(np.float16),
        weights[width:] * VECTOR_SCALE,
        bias=bias, weight=FIRST_WEIGHT, band=-math.inf,
    )  # fmt: skip


def _regress(x: Any, labels: NDArray[np.int64], regularisation: float) -> tuple[NDArray[np.float64], float]:
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped,import-not-found,unused-ignore]

    model = LogisticRegression(
        C=regularisation, class_weight="balanced", solver="liblinear", random_state=SEED, max_iter=300
    )
    model.fit(x, labels)
    return model.coef_[0], float(model.intercept_[0])


def samples(data: Path) -> tuple[list[Sample], list[Sample], int]:
    """(training samples, held-out attacks, how many of the former are whole texts: they come first)."""
    own, held_out = generate(SEED, PER_TEMPLATE)
    others = [
        Sample(s.text, {"injection": 0}, f"other/{s.group}")
        for s in generate_others(SEED, ("injection",), 3)
        if s.group.startswith(("benign", "lookalike", "injection_like"))
    ]
    others += [Sample(s.text, {"injection": 0}, f"other/{s.group}") for s in generate_requests(SEED, PER_REQUEST)]
    public = [Sample(s.text, {"injection": 0}, s.group) for s in read_moderation(data / "openai_moderation_dev.jsonl")]
    # An attack is one as a whole; of what is none, the gate's short units and windows must not look like one either.
    parts = [
        Sample(window, s.labels, s.group)
        for s in own + others + public
        if not s.labels["injection"]
        for window in windows(s.text)[:4]
        if window != s.text
    ]
    unique = {s.text: s for s in reversed(own + others + public)}
    wholes = list(reversed(unique.values()))
    windowed = {s.text: s for s in parts if s.text not in unique}
    return [*wholes, *windowed.values()], held_out, len(wholes)


def recall(found: NDArray[np.float64], threshold: float = 0.0) -> float:
    """Share above a threshold; calibrated logits have `LIKELY` at 0."""
    return round(float((found > threshold).mean()), 3)


def is_everyday(sample: Sample) -> bool:
    """Whether a sample is of the everyday talk and requests by which `LIKELY` is set."""
    kinds = (
        "benign/replies",
        "benign/chat",
        "benign/tasks",
        "benign/starters",
        "other/benign",
        "other/harmless_request",
    )
    return sample.group.startswith(kinds)


def calibration(samples: Sequence[Sample], found: NDArray[np.float64]) -> tuple[float, float]:
    """(slope, centre): slope * (logit - centre) has `LIKELY` at 0 and `CERTAIN` where it belongs.

    Args:
        found: out-of-fold logits.

    Raises:
        ValueError: everyday texts score above those that look like an injection.
    """
    centre = float(np.quantile([f for s, f in zip(samples, found, strict=True) if is_everyday(s)], 1 - EVERYDAY_FPR))
    hard = float(
        np.quantile([f for s, f in zip(samples, found, strict=True) if not s.labels["injection"]], 1 - HARD_FPR)
    )
    if hard <= centre:
        raise ValueError(
            f"everyday texts score {centre:.2f} where look-alikes score {hard:.2f}: nothing to calibrate by"
        )
    return _logit(CERTAIN) / (hard - centre), centre


def _logit(chance: float) -> float:
    return math.log(chance / (1 - chance))


class Trainer:
    """Fits both stages on some of the samples, and gives logits of others.

    Args:
        samples: whole texts first, `wholes` of them, then windows of negatives, on which the first stage is trained.
        vectors: of the whole texts, shape (wholes, embedding).
    """

    def __init__(self, samples: Sequence[Sample], wholes: int, vectors: NDArray[np.float32]) -> None:
        self.samples, self.wholes, self.vectors = samples, wholes, vectors
        self.x = design([s.text for s in samples])
        self.labels = np.array([s.labels["injection"] for s in samples])

    def fit(self, chosen: NDArray[np.bool_]) -> InjectionJudge:
        """Both stages, of the samples `chosen`, shape (samples,)."""
        cheap = fit(self.x[chosen], self.labels[chosen])
        whole = np.flatnonzero(chosen[: self.wholes])
        return fit_judge(self.x[whole], self.vectors[whole], self.labels[whole], cheap)

    def logits(self, judge: InjectionJudge, rows: Sequence[int]) -> NDArray[np.float64]:
        """Of whole texts, shape (rows, 2): first stage, second stage."""
        return both(judge, [self.samples[i].text for i in rows], self.vectors[list(rows)])


def both(judge: InjectionJudge, texts: Sequence[str], vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logits of the first stage and of the second, shape (texts, 2)."""
    firsts = [judge.first(text) for text in texts]
    return np.array([(f, judge.logit(t, v, f)) for t, v, f in zip(texts, vectors, firsts, strict=True)])


def calibrate(judge: InjectionJudge, first: tuple[float, float], second: tuple[float, float]) -> None:
    """Puts slope and centre of either stage into its weights."""
    (slope, centre), cheap = first, judge.cheap
    cheap.named, cheap.table, cheap.bias = cheap.named * slope, cheap.table * slope, slope * (cheap.bias - centre)
    judge.bias += judge.weight * centre
    judge.weight /= slope
    slope, centre = second
    judge.named, judge.table, judge.vector = judge.named * slope, judge.table * slope, judge.vector * slope
    judge.bias, judge.weight = slope * (judge.bias - centre), slope * judge.weight


def evaluate(trainer: Trainer) -> tuple[InjectionJudge, dict[str, Any]]:
    """Both stages fitted on all and calibrated, and their figures."""
    samples = trainer.samples[: trainer.wholes]
    fold = np.array([int(hashlib.sha256(s.group.encode()).hexdigest(), 16) % FOLDS for s in trainer.samples])
    family = np.array([s.group.split("/")[1] if s.group.startswith("attack/") else "" for s in trainer.samples])
    out, left_out = np.zeros((len(samples), 2)), np.zeros((len(samples), 2))
    for k in range(FOLDS):
        rows = np.flatnonzero(fold[: len(samples)] == k).tolist()
        out[rows] = trainer.logits(trainer.fit(fold != k), rows)
    families = sorted(set(family.tolist()) - {""})
    for k in range(LEFT_OUT):
        gone = np.isin(family, families[k::LEFT_OUT])
        rows = np.flatnonzero(gone[: len(samples)]).tolist()
        left_out[rows] = trainer.logits(trainer.fit(~gone), rows)
    judge = trainer.fit(np.ones(len(trainer.samples), dtype=np.bool_))
    scales = [calibration(samples, out[:, stage]) for stage in (0, 1)]
    calibrate(judge, scales[0], scales[1])
    for found in (out, left_out):
        for stage, (slope, centre) in enumerate(scales):
            found[:, stage] = slope * (found[:, stage] - centre)
    attack = np.array([s.labels["injection"] == 1 for s in samples])
    everyday = np.array([is_everyday(s) for s in samples])
    judge.band = min(0.0, float(np.quantile(left_out[attack, 0], BAND_QUANTILE)))
    report: dict[str, Any] = {
        "attacks": int(attack.sum()), "negatives": int((~attack).sum()), "everyday": int(everyday.sum()),
        "embedded_share_everyday": recall(out[everyday, 0], judge.band),
    }  # fmt: skip
    whole_family = family[: len(samples)]
    for stage, name in enumerate(("first_stage", "second_stage")):
        by_family = {f: recall(left_out[whole_family == f, stage]) for f in families}
        report[name] = {
            "recall_by_template_left_out": recall(out[attack, stage]),
            "mean_recall_by_family_left_out": round(float(np.mean(list(by_family.values()))), 3),
            "at_certain": {
                "mean_recall_by_family_left_out": round(float(np.mean(
                    [recall(left_out[whole_family == f, stage], _logit(CERTAIN)) for f in families]
                )), 3),
                "false_positives_everyday": recall(out[everyday, stage], _logit(CERTAIN)),
            },
            "false_positives_all_negatives": recall(out[~attack, stage]),
            "lowest_families_left_out": dict(sorted(by_family.items(), key=lambda item: item[1])[:8]),
        }  # fmt: skip
    return judge, report


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m personae_runtime.policy.training.injection", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PERSONAE_EVAL_DATA", "../shared/data")))
    parser.add_argument("--models", type=Path, default=default_models_dir())
    parser.add_argument("--write", action="store_true", help="write weights and card into the package")
    args = parser.parse_args()

    chosen, held_out, wholes = samples(args.data)
    xstest = args.data / "xstest_dev.jsonl"
    safe = [text for text, is_safe in read_xstest(xstest) if is_safe] if xstest.exists() else []
    texts = [s.text for s in (*chosen[:wholes], *held_out)] + safe
    vectors = asyncio.run(embed([text[:PIECE_CHARS] for text in texts], args.models))
    judge, figures = evaluate(Trainer(chosen, wholes, vectors[:wholes]))
    by_family: dict[str, list[NDArray[np.float64]]] = {}
    after = wholes + len(held_out)
    for s, row in zip(held_out, both(judge, texts[wholes:after], vectors[wholes:after]), strict=True):
        by_family.setdefault(s.group.split("/")[1], []).append(row)
    for stage, name in enumerate(("first_stage", "second_stage")):
        figures[name]["families_never_trained_on"] = {
            "texts": len(held_out),
            "recall": recall(np.concatenate([np.array(rows)[:, stage] for rows in by_family.values()])),
            "recall_by_family": {f: recall(np.array(rows)[:, stage]) for f, rows in by_family.items()},
        }
    if safe:
        found = both(judge, safe, vectors[after:])
        for stage, name in enumerate(("first_stage", "second_stage")):
            figures[name]["xstest_safe_above_likely"] = recall(found[:, stage])
    card: dict[str, Any] = {
        "model": "logistic regressions over named features and hashed character 2- to 5-grams; in the second stage over"
        " a MiniLM embedding too",
        "categories": ["injection"],
        "named_features": len(FEATURES),
        "buckets": 1 << BITS,
        "regularisation_c": [REGULARISATION, JUDGE_REGULARISATION],
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
        "operating_points": {
            f"score_{LIKELY}": {"false_positive_rate_everyday_out_of_fold": EVERYDAY_FPR},
            f"score_{CERTAIN}": {"false_positive_rate_all_negatives_out_of_fold": HARD_FPR},
        },
        "figures": figures,
    }  # fmt: skip
    if args.write:
        folder = Path(__file__).parent.parent
        np.savez_compressed(
            folder / HEAD_FILE,
            allow_pickle=False,
            named=judge.cheap.named,
            table=judge.cheap.table.astype(np.float16),
            bias=np.float32(judge.cheap.bias),
            judge_named=judge.named,
            judge_table=judge.table.astype(np.float16),
            judge_vector=judge.vector,
            judge_scalars=np.array([judge.bias, judge.weight, judge.band]),
            features=np.array(FEATURES),
        )
        text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=110)
        (folder / CARD_FILE).write_text(text, encoding="utf-8")
    print(json.dumps(card))


if __name__ == "__main__":
    main()
