"""The index behind recall: vectors and filters, never text.

An index can be rebuilt from the ledger at any time, so it holds ids only; the
words of a memory are read back from the ledger, which also decides whether the
memory still lives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable
from uuid import UUID

DENSE_DIM = 384
"""Dimensions of the dense vector (all-MiniLM-L6-v2)."""


@dataclass(frozen=True, slots=True)
class SparseVector:
    """A bag of hashed terms: parallel arrays, indices unique and in 0 to 2^32 - 1."""

    indices: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class MemoryPoint:
    """One memory as the index holds it.

    Attributes:
        memory_id: the ledger's id.
        scope: scope key; every query filters on exactly one.
        sparse: BM25 term weights without IDF, which the index applies per scope.
        dense: DENSE_DIM floats of unit length, or None while there is no embedding.
        expires_at: Unix seconds after which it is never returned; None is never.
    """

    memory_id: UUID
    scope: str
    sparse: SparseVector
    dense: Sequence[float] | None
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class IndexHit:
    """One result; `score` is the fused rank score, higher is better."""

    memory_id: UUID
    score: float


@runtime_checkable
class MemoryIndex(Protocol):
    """A vector index with a hard scope filter.

    Every backend passes `tests/contract/test_memory_index.py`.
    """

    async def open(self) -> None:
        """Open or create the collection. Raises ConfigError if another process has it."""
        ...

    async def upsert(self, points: Sequence[MemoryPoint]) -> None:
        """Insert or replace points by id. Visible to searches on return, durable after `flush`."""
        ...

    async def delete(self, memory_ids: Sequence[UUID]) -> None:
        """Remove points; unknown ids are ignored. Not returned by searches that start later."""
        ...

    async def flush(self) -> None:
        """Return when everything before this call survives a SIGKILL of the process."""
        ...

    async def search(
        self,
        scope: str,
        sparse: SparseVector | None,
        dense: Sequence[float] | None,
        *,
        limit: int,
        now: float,
    ) -> list[IndexHit]:
        """Hybrid search in one scope, best first, at most `limit` hits.

        Both arms are fused by weighted reciprocal ranks; with one of them None
        the other ranks alone, with both None nothing is found. Points with
        `expires_at <= now` (Unix seconds) are never returned.
        """
        ...

    async def count(self, scope: str | None = None) -> int:
        """Points in a scope, or in all."""
        ...

    async def clear(self) -> None:
        """Remove every point."""
        ...

    async def close(self) -> None:
        """Flush and release. Safe to call twice."""
        ...
