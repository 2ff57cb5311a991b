"""Recall does not fall behind what `docs/memory.md` states."""

from __future__ import annotations

from pathlib import Path

import pytest

from personae_runtime.evals.memory import load_locomo, measure


@pytest.mark.eval
async def test_lexical_recall_on_one_locomo_conversation(eval_data: Path, tmp_path: Path) -> None:
    report = await measure(load_locomo(eval_data / "locomo_dev.json")[:1], tmp_path, None)
    # Nothing in it is random.
    assert report.questions > 100
    assert report.recall["10"] >= 76
    assert report.recall["10"] > report.bm25["10"] + 10
