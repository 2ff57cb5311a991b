"""Trains the cascade's head and writes it with its card.

    python -m personae_runtime.policy.training.harm --data ../shared/data --models DIR [--write]

Data: the rows of `openai_moderation_dev.jsonl` (MIT), and our own: `requests.py` and `texts.py`. XSTest is never
trained on. Seeded. Needs scikit-learn and scipy, and the embedding model. Prints the card as one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from personae_runtime.config import default_models_dir
from personae_runtime.evals.policy import auroc, average_precision, with_interval
from personae_runtime.memory.embedder import OnnxEmbedder
from personae_runtime.policy.cascade import CHARS, HARM, HARM_FILE, UNEMBEDDED, HarmHead, point
from personae_runtime.policy.heldout import HARM_HELD_OUT_FILE, row_hash
from personae_runtime.policy.scorers import CATEGORIES
from personae_runtime.policy.training.__main__ import SEED, features, folds, read_moderation
from personae_runtime.policy.training.requests import generate_requests
from personae_runtime.policy.training.texts import Sample, generate

CARD_FILE = "harm_head.card.yaml"
FOLDS = 10
PER_REQUEST = 6
PER_TEMPLATE = 2
OWN_WEIGHT = 0.2  # of a text of our own beside a public row
SVM_C, GAMMA, CHARS_C = 3.0, 1.0, 10.0
REQUEST_MARGIN = 0.5  # subtracted from that machine's value: our own texts are easier to tell than others'
# All numbers above and the scales in `cascade` were chosen by cross-validation on these very rows; the margin and
# the scales with an eye on XSTest's development rows, too.
BAND_QUANTILE = 0.01  # of the harmful rows' n-gram logits, out of fold: those below are not embedded
RATES = (0.01, 0.03, 0.05, 0.08)


def own_samples() -> list[Sample]:
    """The texts of our own, labelled for harm as a whole; those about injection are left out."""
    everyday = [
        Sample(s.text, {HARM: max(value for key, value in s.labels.items() if key != "injection")}, s.group)
        for s in generate(SEED, CATEGORIES, PER_TEMPLATE)
        if not s.group.startswith("injection")
    ]
    return [
        Sample(s.text, {**s.labels, REQUEST: 1} if s.labels[HARM] else s.labels, s.group)
        for s in generate_requests(SEED, PER_REQUEST) + everyday
    ]


def public_samples(path: Path) -> list[Sample]:
    """The moderation rows: of each kind whose key is 1 (a key that is missing counts as 0), and harmful if of any."""
    rows = []
    for line, sample in zip(path.read_text(encoding="utf-8").splitlines(), read_moderation(path), strict=True):
        row = json.loads(line)
        labels = {kind: int(row.get(kind, 0)) for kind in KINDS_OF_HARM}
        rows.append(Sample(sample.text, {HARM: max(labels.values()), **labels}, sample.group))
    return rows


KINDS_OF_HARM = ("S", "H", "V", "HR", "SH", "H2", "V2")
"""The moderation set's keys: sexual, hate, violence, harassment, self-harm, threatening hate, graphic violence."""
REQUEST = "request"
"""The kind of our own harmful texts, most of which ask for something."""


async def embed(texts: Sequence[str], models: Path) -> NDArray[np.float32]:
    """Embeddings, shape (texts, dimensions)."""
    folder = models / "all-minilm-l6-v2-int8"
    embedder = OnnxEmbedder(folder / "model.onnx", folder / "tokenizer.json")
    await embedder.start()
    try:
        return np.array(await embedder.embed(texts))
    finally:
        await embedder.close()


def fit(samples: Sequence[Sample], points: NDArray[np.float32], rows: NDArray[np.int64]) -> dict[str, Any]:
    """The arrays of a head trained on `rows`; not yet a probability."""
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped,import-not-found,unused-ignore]
    from sklearn.svm import SVC  # type: ignore[import-untyped,import-not-found,unused-ignore]

    def balanced(rows: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
        weight = np.array([1.0 if samples[i].group.startswith("moderation") else OWN_WEIGHT for i in rows])
        scaled: NDArray[np.float64] = weight * len(labels) / 2 / np.where(labels == 1, labels.sum(), (1 - labels).sum())
        return scaled

    machines = (HARM, *KINDS_OF_HARM, REQUEST)
    coefficients = np.zeros((len(machines), len(samples)), dtype=np.float32)
    offsets = np.zeros(len(coefficients), dtype=np.float32)
    for number, label in enumerate(machines):
        # Of what kinds our own harmful texts are, and which of the moderation rows ask, is not known.
        known = np.array([i for i in rows if label in samples[i].labels or not samples[i].labels[HARM]])
        held = np.array([samples[i].labels.get(label, 0) for i in known])
        machine = SVC(C=SVM_C, gamma=GAMMA, random_state=SEED)
        machine.fit(points[known], held, sample_weight=balanced(known, held))
        coefficients[number, known[machine.support_]] = machine.dual_coef_[0]
        offsets[number] = machine.intercept_[0] - (REQUEST_MARGIN if label == REQUEST else 0.0)
    labels = np.array([samples[i].labels[HARM] for i in rows])
    weight = balanced(rows, labels)
    x, idf = features([samples[i].text for i in rows], None)
    chars = LogisticRegression(C=CHARS_C, solver="liblinear", random_state=SEED, max_iter=300)
    chars.fit(x, labels, sample_weight=weight)
    return {
        "weights": (chars.coef_[0] * idf).astype(np.float16)[None],
        "idf2": (idf**2).astype(np.float16)[None],
        "bias": np.asarray(chars.intercept_, dtype=np.float32),
        "coefficients": coefficients,
        "offsets": offsets,
        "scalars": np.array([GAMMA, 1.0, 0.0, -100.0]),
    }


def parts(
    head: HarmHead, samples: Sequence[Sample], points: NDArray[np.float32], rows: Sequence[int]
) -> NDArray[np.float64]:
    """Both parts of the logit, shape (rows, 2): n-grams, machines."""
    return np.array([(head.cheap(samples[i].text), head.machine(points[i])) for i in rows])


def main() -> None:
    """Command line."""
    from sklearn.linear_model import LogisticRegression

    parser = argparse.ArgumentParser(prog="python -m personae_runtime.policy.training.harm", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PERSONAE_EVAL_DATA", "../shared/data")))
    parser.add_argument("--models", type=Path, default=default_models_dir())
    parser.add_argument("--write", action="store_true", help="write weights and card into the package")
    args = parser.parse_args()

    public = public_samples(args.data / "openai_moderation_dev.jsonl")
    own = own_samples()
    samples = public + own
    fold = folds(samples, FOLDS)
    vectors = asyncio.run(embed([s.text for s in samples], args.models))
    # Trained on what is kept: half precision.
    kept = np.array([point(v, s.text) for v, s in zip(vectors, samples, strict=True)]).astype(np.float16)
    points: NDArray[np.float32] = kept.astype(np.float32)
    heads = [fit(samples, points, np.flatnonzero(fold != k)) for k in range(FOLDS)]
    found = np.zeros((len(samples), 2))
    for k, arrays in enumerate(heads):
        held = np.flatnonzero(fold == k).tolist()
        found[held] = parts(HarmHead.unpack(arrays, points), samples, points, held)
    harmful = np.array([s.labels[HARM] == 1 for s in samples])
    is_public = np.arange(len(samples)) < len(public)
    band = float(np.quantile(found[harmful, 0], BAND_QUANTILE))
    machine = np.where(found[:, 0] >= band, found[:, 1], UNEMBEDDED)
    combined = machine + CHARS * found[:, 0]
    platt = LogisticRegression(C=1e6).fit(combined[is_public, None], harmful[is_public])
    slope, shift = float(platt.coef_[0, 0]), float(platt.intercept_[0])
    shipped = fit(samples, points, np.arange(len(samples)))
    for arrays in (*heads, shipped):
        arrays["scalars"][1:] = slope, shift, band
    chance = 1 / (1 + np.exp(-(slope * combined + shift)))

    def quality(chosen: NDArray[np.bool_]) -> dict[str, Any]:
        y, p = harmful[chosen], chance[chosen]
        report: dict[str, Any] = {"positives": int(y.sum()), "negatives": int((~y).sum())}
        for name, figure in (("auprc", average_precision), ("auroc", auroc)):
            report[name], report[f"{name}_ci"] = with_interval(figure, y, p)
        return report

    card: dict[str, Any] = {
        "model": "radial support vector machines, for any harm and for each of eight kinds, on MiniLM embedding and"
        " intent features, plus hashed n-gram logits",
        "categories": [HARM],
        "intended_use": "scores any harm in English text before it enters a turn or leaves one; not a judge of people",
        "not_for": "other languages; long documents as a whole; decisions without review",
        "seed": SEED,
        "data": {
            "openai_moderation": {"rows": len(public), "source": "openai/moderation-api-release", "licence": "MIT"},
            "own": {"texts": len(own), "groups": len({s.group for s in own}), "licence": "Apache-2.0"},
        },
        "chosen_on": "scales, C, gamma and weights by cross-validation on the moderation rows; scales and the margin of"
        " requests also by XSTest's development rows, the grammars of requests by reading these; none of them is"
        " trained on. Figures on both are optimistic",
        "cross_validation": {
            "folds": FOLDS,
            "moderation": quality(is_public),
            "own": quality(~is_public),
            "embedded_share": {
                "moderation": round(float((found[is_public, 0] >= band).mean()), 3),
                "own_harmless": round(float((found[~is_public & ~harmful, 0] >= band).mean()), 3),
            },
            "operating_points": {
                f"fpr_{rate:g}": {
                    "threshold": round(limit := float(np.quantile(chance[is_public & ~harmful], 1 - rate)), 3),
                    "recall": round(float((chance[is_public & harmful] > limit).mean()), 3),
                }
                for rate in RATES
            },
        },
    }  # fmt: skip
    if args.write:
        folder = Path(__file__).parent.parent
        np.savez_compressed(folder / HARM_FILE, allow_pickle=False, vectors=kept, **shipped)
        np.savez_compressed(
            folder / HARM_HELD_OUT_FILE,
            allow_pickle=False,
            hashes=np.array([row_hash(s.text) for s in public], dtype=np.uint64),
            folds=fold[is_public].astype(np.uint8),
            **{name: np.array([arrays[name] for arrays in heads]) for name in shipped},
        )
        text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=110)
        (folder / CARD_FILE).write_text(text, encoding="utf-8")
    print(json.dumps(card))


if __name__ == "__main__":
    main()
