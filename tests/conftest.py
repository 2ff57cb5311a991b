"""Fixtures and rules for every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EVAL_DATA = Path(os.environ.get("PERSONAE_EVAL_DATA") or ROOT.parent / "shared" / "data")


@pytest.fixture(scope="session")
def eval_data() -> Path:
    """The folder of evaluation data; a test that needs it skips where it is absent."""
    if not EVAL_DATA.is_dir():
        pytest.skip(f"no evaluation data in {EVAL_DATA}: set PERSONAE_EVAL_DATA")
    return EVAL_DATA


@pytest.fixture
def no_personae_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process environment without any PERSONAE_ variable."""
    for name in list(os.environ):
        if name.upper().startswith("PERSONAE_"):
            monkeypatch.delenv(name)
