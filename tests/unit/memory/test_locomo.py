"""Recall does not fall behind what `docs/memory.md` states."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.recall import measure


@pytest.mark.eval
async def test_lexical_recall_on_one_locomo_conversation(eval_data: Path) -> None:
    result = await measure(eval_data / "locomo_dev.json", None, conversations=1)
    # 75.0 as measured; nothing in it is random.
    assert result["questions"] > 100
    assert result["recall"]["10"] >= 74.5
