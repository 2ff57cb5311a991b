"""Parts that several memory tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4
from zlib import crc32

import numpy as np
import pytest

from personae_runtime.memory.edge import EdgeMemoryIndex
from personae_runtime.memory.embedder import Vector
from personae_runtime.memory.index import DENSE_DIM
from personae_runtime.memory.lexical import terms
from personae_runtime.memory.store import MemoryRecord, MemorySource

START = datetime(2024, 5, 8, 12, tzinfo=UTC)


def record(text: str, ordinal: int = 0, **changes: Any) -> MemoryRecord:
    """A memory of Ann's in scope "a", thread "t"."""
    fields: dict[str, Any] = {
        "memory_id": uuid4(),
        "scope": "a",
        "text": text,
        "speaker": "Ann",
        "occurred_at": START + timedelta(minutes=ordinal),
        "thread": "t",
        "ordinal": ordinal,
        "source": MemorySource.API,
        "created_at": START,
    }
    return MemoryRecord(**{**fields, **changes})


def ids(records: Sequence[MemoryRecord]) -> list[UUID]:
    return [item.memory_id for item in records]


class HashEmbedder:
    """Words hashed onto the axes: texts that share words lie close. Counts what it was asked."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    async def embed(self, texts: Sequence[str], *, bulk: bool = False) -> list[Vector]:
        self.texts += texts
        return [self._embed(text) for text in texts]

    def _embed(self, text: str) -> Vector:
        vector = np.full(DENSE_DIM, 1e-3, dtype=np.float32)
        for term in terms(text):
            vector[crc32(term.encode()) % DENSE_DIM] += 1
        unit: Vector = vector / np.float32(np.linalg.norm(vector))
        return unit


@pytest.fixture
async def index(tmp_path: Path) -> AsyncIterator[EdgeMemoryIndex]:
    made = EdgeMemoryIndex(tmp_path / "index")
    await made.open()
    yield made
    await made.close()
