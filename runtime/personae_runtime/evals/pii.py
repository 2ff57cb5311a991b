"""How well the policy's matchers find personal data, beside Presidio's patterns on the same rows.

A file has one JSON object per line: `text`, and `spans` of `{entity_type,
start_position, end_position}` in code points of `text`, as presidio-research
writes them. Counted are the six types of `ENTITIES`; spans of other types in
the file say only what must not be taken for one of them.

A found span is right if its type is, and its start and end are those of a span
in the file (`f1`); `overlap_f1` asks that they share a character. Figures are
micro-averaged over all spans. Intervals: 95 %, percentile bootstrap over rows
(Efron and Tibshirani 1993, chapter 13), seeded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from personae_runtime.errors import ConfigError
from personae_runtime.evals.operating_point import operating_point
from personae_runtime.policy.bundle import find
from personae_runtime.policy.gate import raw_hits
from personae_runtime.policy.identifiers import labelled_number
from personae_runtime.policy.policy import Policy

ENTITIES: Mapping[str, tuple[str, ...]] = {
    "CREDIT_CARD": ("card_number",),
    "IBAN_CODE": ("iban",),
    "US_SSN": ("us_ssn", "national_id"),
    "IP_ADDRESS": ("ip_address",),
    "EMAIL_ADDRESS": ("email",),
    "PHONE_NUMBER": ("phone_labelled", "phone"),
}
"""Entity type -> the default bundle's matchers of it. Where spans overlap, one with check digits wins, then the
longest, then what stands first here."""

_CHECK_DIGITS = frozenset({"card_number", "iban"})

_LABELLED = frozenset({"phone_labelled", "national_id"})
ROUNDS = 1000
SEED = 7


class Found(NamedTuple):
    """A span of a type, [start, end) in code points of the raw text."""

    entity: str
    start: int
    end: int


class Row(NamedTuple):
    """A text and what is known to be in it."""

    text: str
    spans: frozenset[Found]


Detector = Callable[[str], Iterable[Found]]


def read(path: Path) -> list[Row]:
    """The rows of a file.

    Raises:
        ConfigError: a line is not such an object; says which and what was expected.
    """
    rows = []
    try:
        # Only line feeds end a line: U+2028 and the like may stand in a JSON string.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: {e}; expected JSON Lines of {{text, spans}}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text = row["text"]
            spans = frozenset(
                Found(s["entity_type"], int(s["start_position"]), int(s["end_position"]))
                for s in row["spans"]
                if s["entity_type"] in ENTITIES
            )
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{path}, line {number}: expected an object with text and spans of "
                "{entity_type, start_position, end_position}"
            ) from None
        if not isinstance(text, str) or any(not 0 <= s.start < s.end <= len(text) for s in spans):
            raise ConfigError(f"{path}, line {number}: a span lies outside of the text")
        rows.append(Row(text, spans))
    if not rows:
        raise ConfigError(f"{path} has no rows; expected JSON Lines of {{text, spans}}")
    return rows


def detector(policy: Policy) -> Detector:
    """Finds the spans that the bundle's matchers find, one type for each place.

    Raises:
        ConfigError: the bundle has none of these matchers.
    """
    bundle = policy.bundle
    ids = {m: entity for entity, matchers in ENTITIES.items() for m in matchers if bundle.has_matcher(m)}
    if not ids:
        raise ConfigError("the policy bundle has no matcher of personal data; expected one that extends: default")
    matchers = bundle.matcher_set(frozenset(ids))
    rank = {m: i for i, m in enumerate(ids)}

    def detect(text: str) -> list[Found]:
        normal, spans = find(matchers, text)
        hits = []
        for span, hit in zip(spans, raw_hits(normal, spans), strict=True):
            start, end = hit.start, hit.end
            if span.matcher_id in _LABELLED:
                # The match has the word beside the number; asked for is the number.
                at = labelled_number(normal.text[span.start : span.end])
                if at is not None:
                    start, end = normal.raw_start(span.start + at[0]), normal.raw_stop(span.start + at[1] - 1)
            found = Found(ids[span.matcher_id], start, end)
            hits.append((span.matcher_id not in _CHECK_DIGITS, start - end, rank[span.matcher_id], found))
        kept: list[Found] = []
        for *_, found in sorted(hits):
            if all(found.end <= k.start or k.end <= found.start for k in kept):
                kept.append(found)
        return kept

    return detect


def presidio() -> Detector:
    """Presidio's own recognizers of these types that need no language model, as its analyzer runs them.

    Raises:
        ConfigError: presidio-analyzer is not installed.
    """
    try:
        from presidio_analyzer import EntityRecognizer
        from presidio_analyzer.predefined_recognizers import (
            CreditCardRecognizer,
            EmailRecognizer,
            IbanRecognizer,
            IpRecognizer,
            PhoneRecognizer,
            UsSsnRecognizer,
        )
    except ImportError:
        raise ConfigError(
            "the comparison needs presidio-analyzer, which is not installed: pip install 'personae[dev]' "
            "or pip install presidio-analyzer"
        ) from None
    recognizers: list[Any] = [  # of differing annotations; without a language model there are no artifacts
        kind()
        for kind in (
            CreditCardRecognizer, IbanRecognizer, UsSsnRecognizer, IpRecognizer, EmailRecognizer, PhoneRecognizer,
        )
    ]  # fmt: skip

    def detect(text: str) -> list[Found]:
        results = [r for one in recognizers for r in one.analyze(text, one.supported_entities, None) or ()]
        kept = EntityRecognizer.remove_duplicates(results)
        return [Found(r.entity_type, r.start, r.end) for r in kept]

    return detect


def counts(rows: Sequence[Row], found: Sequence[Iterable[Found]], entity: str = "") -> np.ndarray[Any, Any]:
    """Per row: right spans, found spans, spans in the file, found that overlap, in the file that are overlapped.

    Args:
        found: of each row.
        entity: only this type; all of them if empty.

    Returns:
        int64, shape (rows, 5).
    """
    table = np.zeros((len(rows), 5), dtype=np.int64)
    for i, (row, spans) in enumerate(zip(rows, found, strict=True)):
        want = {s for s in row.spans if not entity or s.entity == entity}
        got = {s for s in spans if s.entity in ENTITIES and (not entity or s.entity == entity)}
        near = [(g, w) for g in got for w in want if g.entity == w.entity and g.start < w.end and w.start < g.end]
        table[i] = len(got & want), len(got), len(want), len({g for g, _ in near}), len({w for _, w in near})
    return table


def f1(right_found: int, found: int, right_wanted: int, wanted: int) -> float:
    """Harmonic mean of precision and recall; 1 where there is nothing to find and nothing was found."""
    if not found and not wanted:
        return 1.0
    if not right_found or not right_wanted:
        return 0.0
    precision, recall = right_found / found, right_wanted / wanted
    return 2 * precision * recall / (precision + recall)


def _exact(total: Any) -> float:
    return f1(int(total[0]), int(total[1]), int(total[0]), int(total[2]))


def _overlap(total: Any) -> float:
    return f1(int(total[3]), int(total[1]), int(total[4]), int(total[2]))


def evaluate(path: Path, policy: Policy) -> dict[str, Any]:
    """Span figures of the policy and of Presidio, as shares.

    Raises:
        ConfigError: the file or the bundle can't be used, or presidio-analyzer is not installed.
    """
    rows = read(path)
    ours, theirs = detector(policy), presidio()
    found = [list(ours(row.text)) for row in rows]
    theirs_found = [list(theirs(row.text)) for row in rows]
    table, reference = counts(rows, found), counts(rows, theirs_found)
    rng = np.random.default_rng(SEED)
    draws = []
    for _ in range(ROUNDS):
        chosen = rng.integers(0, len(rows), len(rows))
        draws.append((_exact(table[chosen].sum(axis=0)), _exact(reference[chosen].sum(axis=0))))
    drawn = np.array(draws)

    def interval(values: Any) -> list[float]:
        return [round(float(np.percentile(values, p)), 4) for p in (2.5, 97.5)]

    total, reference_total = table.sum(axis=0), reference.sum(axis=0)
    by_entity = {}
    for entity in ENTITIES:
        own = counts(rows, found, entity).sum(axis=0)
        by_entity[entity] = {
            "spans": int(own[2]),
            "f1": round(_exact(own), 4),
            "precision": round(float(own[0] / own[1]), 4) if own[1] else None,
            "recall": round(float(own[0] / own[2]), 4) if own[2] else None,
            "presidio_f1": round(_exact(counts(rows, theirs_found, entity).sum(axis=0)), 4),
        }
    return {
        "dataset": "pii",
        "rows": len(rows),
        "spans": int(total[2]),
        "matching": "type, start and end equal; overlap_f1: type equal and a character shared; micro-averaged",
        "f1": round(_exact(total), 4),
        "f1_ci": interval(drawn[:, 0]),
        "precision": round(float(total[0] / total[1]), 4) if total[1] else 0.0,
        "recall": round(float(total[0] / total[2]), 4) if total[2] else 0.0,
        "overlap_f1": round(_overlap(total), 4),
        "presidio_f1": round(_exact(reference_total), 4),
        "presidio_f1_ci": interval(drawn[:, 1]),
        "presidio_overlap_f1": round(_overlap(reference_total), 4),
        "gain": round(_exact(total) - _exact(reference_total), 4),
        "gain_ci": interval(drawn[:, 0] - drawn[:, 1]),
        "by_entity": by_entity,
        "operating_point": operating_point(policy),
    }
