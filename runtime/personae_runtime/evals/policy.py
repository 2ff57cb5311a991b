"""How well the policy tells harm from harmless: the `personae eval policy` report.

Two things are measured apart. *Ranking* (`auprc`, `auroc`) asks the scorers alone, of the text as one, and knows
no threshold;
`auprc_deployed` and `auroc_deployed` are of the highest score over the pieces that the input gate cuts a text into.
The *operating point* (`f1`, `refused_safe`, `caught_unsafe`) is what the loaded bundle decides at stage
`input`, matchers and rules included, for an assistant and a person of unknown age, whom rules treat as a teen;
`by_kind` says where it fails.

Rows that a shipped head was trained on are recognised and scored by a head of the same training that has not
seen them (`personae_runtime.policy.heldout`); the report counts them as `out_of_fold`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from personae_runtime.errors import InvalidArgument
from personae_runtime.evals.operating_point import operating_point
from personae_runtime.memory.embedder import Embedder, Vector
from personae_runtime.policy.decision import AgeBand, PolicyContext, Stage
from personae_runtime.policy.gate import run_scorers
from personae_runtime.policy.heldout import HeldOut
from personae_runtime.policy.policy import Policy
from personae_runtime.policy.scorers import CATEGORIES

RESAMPLES: Final = 1000
SEED: Final = 7
MAX_BYTES: Final = 64 * 1024 * 1024
CONTEXT: Final = PolicyContext("assistant", AgeBand.UNKNOWN)

MODERATION_KEYS: Final = ("S", "H", "V", "HR", "SH", "H2", "V2")
MINORS_KEY: Final = "S3"
"""Rows where this is 1 are about minors, and are left out of every figure."""

Numbers = NDArray[np.float64]
Labels = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Row:
    """A text and whether it is harmful.

    Attributes:
        kinds: what the set says of it: its categories, or its type.
    """

    text: str
    harmful: bool
    kinds: tuple[str, ...] = ()


def read_moderation(path: Path) -> list[Row]:
    """Rows of OpenAI's moderation set: `prompt` and 0 or 1 for each of `MODERATION_KEYS`.

    A key that is missing is unknown, not 0: a row without a 1 counts as harmless only if a category is known at all.

    Raises:
        InvalidArgument: says which line and key is wrong.
    """
    rows = []
    for number, row in _lines(path):
        known = [_bit(row, key, path, number) for key in (*MODERATION_KEYS, MINORS_KEY) if key in row]
        if row.get(MINORS_KEY) == 1 or not known:
            continue
        kinds = tuple(key for key in MODERATION_KEYS if row.get(key) == 1)
        rows.append(Row(_text(row, path, number), 1 in known, kinds))
    return _both(rows, path)


def read_xstest(path: Path) -> list[Row]:
    """Rows of XSTest: `prompt` and `label`, "safe" or "unsafe".

    Raises:
        InvalidArgument: says which line and key is wrong.
    """
    rows = []
    for number, row in _lines(path):
        label = row.get("label")
        if label not in ("safe", "unsafe"):
            raise InvalidArgument(f"{path}: line {number}: label is {label!r}; expected 'safe' or 'unsafe'")
        kind = row.get("type")
        rows.append(Row(_text(row, path, number), label == "unsafe", (kind,) if isinstance(kind, str) else ()))
    return _both(rows, path)


READERS: Final[dict[str, Callable[[Path], list[Row]]]] = {"openai-moderation": read_moderation, "xstest": read_xstest}
"""By the name of the data set."""


def _lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidArgument(f"{path}: larger than {MAX_BYTES >> 20} MiB")
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise InvalidArgument(f"{path}: can't be read as UTF-8 text: {e}") from None
    rows = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as e:
            raise InvalidArgument(f"{path}: line {number}: not JSON: {e}; expected one object a line") from None
        if not isinstance(row, dict):
            raise InvalidArgument(f"{path}: line {number}: expected an object with 'prompt'")
        rows.append((number, row))
    return rows


def _text(row: dict[str, Any], path: Path, number: int) -> str:
    text = row.get("prompt")
    if not isinstance(text, str):
        raise InvalidArgument(f"{path}: line {number}: 'prompt' is missing or not a string")
    return text


def _bit(row: dict[str, Any], key: str, path: Path, number: int) -> int:
    value = row[key]
    if value not in (0, 1):
        raise InvalidArgument(f"{path}: line {number}: {key} is {value!r}; expected 0 or 1")
    return int(value)


def _both(rows: list[Row], path: Path) -> list[Row]:
    if len({row.harmful for row in rows}) < 2:
        raise InvalidArgument(f"{path}: needs rows of both labels, has {len(rows)} of at most one")
    return rows


# -- figures --------------------------------------------------------------------------------------------------------


def auroc(harmful: Labels, scores: Numbers) -> float:
    """Probability that a harmful row scores above a harmless one, ties counting half (Mann-Whitney U)."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives = int(harmful.sum())
    negatives = len(harmful) - positives
    return float((ranks[harmful].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def average_precision(harmful: Labels, scores: Numbers) -> float:
    """Sum over thresholds of precision times the gain in recall, without interpolation; equal scores are one
    threshold."""
    order = np.argsort(-scores, kind="stable")
    hits, ordered = harmful[order], scores[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    caught = np.cumsum(hits)[last]
    precision = caught / (last + 1)
    return float(np.sum(np.diff(caught, prepend=0) * precision) / hits.sum())


def f1(harmful: Labels, stopped: Numbers) -> float:
    """Harmonic mean of precision and recall of what was stopped."""
    hits = float((stopped * harmful).sum())
    return 2 * hits / max(1.0, float(stopped.sum()) + float(harmful.sum()))


def share(where: Labels, stopped: Numbers) -> float:
    """Of the rows `where`, how many were stopped."""
    return float(stopped[where].mean())


def with_interval(
    figure: Callable[[Labels, Numbers], float], harmful: Labels, values: Numbers
) -> tuple[float, list[float]]:
    """A figure and its 95 % interval: percentiles of a bootstrap that keeps the number of rows of either label."""
    rng = np.random.default_rng(SEED)
    groups = [np.flatnonzero(harmful), np.flatnonzero(~harmful)]
    found = []
    for _ in range(RESAMPLES):
        picked = np.concatenate([rng.choice(group, len(group)) for group in groups])
        found.append(figure(harmful[picked], values[picked]))
    low, high = np.percentile(found, [2.5, 97.5])
    return round(figure(harmful, values), 4), [round(float(low), 4), round(float(high), 4)]


class RememberingEmbedder:
    """`Embedder` that asks another once for each text: an evaluation judges the same rows for several ages."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._known: dict[str, Vector] = {}

    async def embed(self, texts: Sequence[str], *, bulk: bool = False) -> list[Vector]:
        """See `Embedder.embed`."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        self._known.update(zip(new, await self._embedder.embed(new, bulk=bulk), strict=True))
        return [self._known[text] for text in texts]


# -- the evaluation -------------------------------------------------------------------------------------------------


async def evaluate(dataset: str, path: Path, policy: Policy) -> dict[str, Any]:
    """The report on one file.

    Args:
        dataset: a key of `READERS`.
        policy: as deployed; rows that its heads were trained on are judged by held-out ones.

    Raises:
        InvalidArgument: the file has not that format.
        ScorerFailure: a scorer failed, so there is no score to report.
    """
    rows = READERS[dataset](path)
    held_out = HeldOut.load()
    ranked: list[float] = []
    deployed: list[float] = []
    stopped, adult, unseen = [], [], 0
    for row in rows:
        judge = held_out.policy_for(row.text, policy)
        unseen += judge is not policy
        ranked.append(_harm(await run_scorers(judge.scorers, [row.text], [row.text])))
        decision = await judge.decide(Stage.INPUT, row.text, CONTEXT)
        deployed.append(_harm(decision.scores))
        stopped.append(float(decision.action.stops))
        grown = PolicyContext(CONTEXT.persona_type, AgeBand.ADULT)
        adult.append(float((await judge.decide(Stage.INPUT, row.text, grown)).action.stops))
    return _report(dataset, rows, np.array(ranked), np.array(deployed), np.array(stopped), np.array(adult), unseen) | {
        "scorers": [scorer.name for scorer in policy.scorers],
        "operating_point": operating_point(policy),
    }


def _harm(scores: Mapping[str, float]) -> float:
    """`harm`, any harm; without a scorer that gives it, the gravest category."""
    return scores.get("harm", max(scores.get(c, 0.0) for c in CATEGORIES if c != "injection"))


def _report(
    dataset: str, rows: Sequence[Row], ranked: Numbers, deployed: Numbers, stopped: Numbers, adult: Numbers, unseen: int
) -> dict[str, Any]:
    harmful = np.array([row.harmful for row in rows])
    safe = ~harmful

    def of_unsafe(labels: Labels, values: Numbers) -> float:
        return share(labels, values)

    def of_safe(labels: Labels, values: Numbers) -> float:
        return share(~labels, values)

    figures: dict[str, tuple[Callable[[Labels, Numbers], float], Numbers]] = {
        "auprc": (average_precision, ranked),
        "auroc": (auroc, ranked),
        "auprc_deployed": (average_precision, deployed),
        "auroc_deployed": (auroc, deployed),
        "f1": (f1, stopped),
        "refused_safe": (of_safe, stopped),
        "caught_unsafe": (of_unsafe, stopped),
        "refused_safe_adult": (of_safe, adult),
        "caught_unsafe_adult": (of_unsafe, adult),
    }
    report: dict[str, Any] = {
        "dataset": dataset,
        "rows": len(rows),
        "safe_rows": int(safe.sum()),
        "unsafe_rows": int(harmful.sum()),
        "out_of_fold": unseen,
    }
    for name, (figure, values) in figures.items():
        report[name], report[f"{name}_ci"] = with_interval(figure, harmful, values)
    return report | {"by_kind": _by_kind(rows, stopped)}


def _by_kind(rows: Sequence[Row], stopped: Numbers) -> list[dict[str, Any]]:
    """Of each kind, harmful and harmless rows apart, how many there are and how many were judged wrongly; those with
    the highest share of these first."""
    counts: Counter[tuple[str, bool]] = Counter()
    wrong: Counter[tuple[str, bool]] = Counter()
    for row, stop in zip(rows, stopped, strict=True):
        for kind in row.kinds:
            counts[kind, row.harmful] += 1
            wrong[kind, row.harmful] += bool(stop) is not row.harmful
    ordered = sorted(counts, key=lambda key: (-wrong[key] / counts[key], key))
    return [
        {"kind": kind, "harmful": harmful, "rows": counts[kind, harmful], "wrong": wrong[kind, harmful]}
        for kind, harmful in ordered
    ]
