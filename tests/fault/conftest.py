"""Where the fault tests keep their databases."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder of the test's own.

    Not pytest's: any other pytest that starts closes the parent of that one to
    all but its owner, and a PostgreSQL that was started by root is another user.
    """
    with tempfile.TemporaryDirectory(prefix="personae-fault-", ignore_cleanup_errors=True) as path:
        yield Path(path)
