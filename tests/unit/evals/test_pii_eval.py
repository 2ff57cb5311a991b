from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from personae_runtime.errors import ConfigError
from personae_runtime.evals import pii
from personae_runtime.policy.policy import Policy


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy.load(None, ["ngram"], 1000.0)


def _file(path: Path, *rows: tuple[str, list[tuple[str, str]]]) -> Path:
    lines = []
    for text, values in rows:
        spans = [
            {"entity_type": kind, "start_position": text.index(v), "end_position": text.index(v) + len(v)}
            for kind, v in values
        ]
        lines.append(json.dumps({"text": text, "spans": spans}))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_span_that_overlaps_counts_for_overlap_only() -> None:
    rows = [pii.Row("x" * 30, frozenset({pii.Found("PHONE_NUMBER", 0, 10), pii.Found("US_SSN", 12, 20)}))]
    found = [[pii.Found("PHONE_NUMBER", 0, 9), pii.Found("US_SSN", 12, 20), pii.Found("IP_ADDRESS", 25, 28)]]
    assert pii.counts(rows, found).tolist() == [[1, 3, 2, 2, 2]]
    assert pii.counts(rows, found, "PHONE_NUMBER").tolist() == [[0, 1, 1, 1, 1]]
    assert pii.f1(1, 3, 1, 2) == pytest.approx(0.4)
    assert pii.f1(0, 0, 0, 0) == 1.0


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "{",
        '{"text": "a"}',
        '{"text": "a", "spans": [{"entity_type": "US_SSN", "start_position": 0, "end_position": 9}]}',
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "pii.jsonl"
    path.write_text('{"text": "ok", "spans": []}\n' + line, encoding="utf-8")
    with pytest.raises(ConfigError, match="line 2"):
        pii.read(path)


def test_a_line_separator_within_a_text_ends_no_line(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text('{"text": "a\u2028b", "spans": []}\n', encoding="utf-8")
    assert [row.text for row in pii.read(path)] == ["a\u2028b"]


def test_spans_of_other_types_are_only_what_must_not_be_found(tmp_path: Path) -> None:
    rows = pii.read(_file(tmp_path / "f", ("Ana of 64677 Leeds", [("PERSON", "Ana"), ("ZIP_CODE", "64677")])))
    assert rows[0].spans == frozenset()


def test_without_presidio_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "presidio_analyzer", None)
    with pytest.raises(ConfigError, match="pip install"):
        pii.presidio()


def test_both_are_measured_on_the_same_rows_at_one_operating_point(tmp_path: Path, policy: Policy) -> None:
    pytest.importorskip("presidio_analyzer")
    path = _file(
        tmp_path / "f",
        ("Card 4111 1111 1111 1111", [("CREDIT_CARD", "4111 1111 1111 1111")]),
        ("Mail ana@example.com", [("EMAIL_ADDRESS", "ana@example.com")]),
        ("Nothing at all", []),
    )
    report: Mapping[str, Any] = pii.evaluate(path, policy)
    assert report["f1"] == 1.0
    assert report["presidio_f1"] == 1.0
    assert report["operating_point"]["bundle_digest"].startswith("sha256:")
    assert report["operating_point"]["thresholds"]["hate_teen"]
    assert report == pii.evaluate(path, policy)


def test_patterns_beat_presidios_on_its_own_kind_of_rows(policy: Policy) -> None:
    pytest.importorskip("presidio_analyzer")
    path = Path(os.environ.get("PERSONAE_EVAL_DATA", "../shared/data")) / "pii_presidio_dev.jsonl"
    if not path.exists():
        pytest.skip(f"no evaluation data at {path}: set PERSONAE_EVAL_DATA")
    report = pii.evaluate(path, policy)
    assert report["f1"] >= report["presidio_f1"] + 0.03
