"""Fixtures and rules for every test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EVAL_DATA = Path(os.environ.get("PERSONAE_EVAL_DATA") or ROOT.parent / "shared" / "data")


def run_python(script: str) -> str:
    """Run a script in a Python process of its own, with this one's import path; its standard output.

    Raises:
        AssertionError: it failed; the message is its standard error.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


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
