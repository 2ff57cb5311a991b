"""The index behind recall: vectors and filters, never text.

An index can be rebuilt from the ledger at any time, so it holds ids only; the
words of a memory are read back from the ledger, which also decides whether the
memory still lives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable
from uuid import UUID

DENSE_DIM = 384
"""Dimensions of the dense vector (all-MiniLM-L6-v2)."""


@dataclass(frozen=True, slots=True)
class SparseVector:
    """A bag of hashed terms: parallel arrays, indices unique and in 0 to 2^32 - 1."""

    indices: Sequence[int]
    values: Sequence[float]


class PointKind(StrEnum):
    """What a point stands for."""

    EPISODE = "episode"
    """Words as they were said or written."""
    FACT = "fact"
    """A statement drawn from them."""


@dataclass(frozen=True, slots=True)
class MemoryPoint:
    """One memory as the index holds it.

    Attributes:
        memory_id: the ledger's id.
        scope: scope key; every query filters on exactly one.
        sparse: BM25 term weights without IDF, which the index applies per scope.
        dense: DENSE_DIM floats of unit length, or None while there is no embedding.
        expires_at: Unix seconds after which it is never returned; None is never.
        kind: what it stands for.
        valid_from, valid_to: Unix seconds between which it holds, the end excluded; None is without bound.
    """

    memory_id: UUID
    scope: str
    sparse: SparseVector
    dense: Sequence[float] | None
    expires_at: float | None = None
    kind: PointKind = PointKind.EPISODE
    valid_from: float | None = None
    valid_to: float | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """A point's place in one arm: rank from 1, and the arm's own score (BM25, or cosine), higher is better."""

    rank: int
    score: float


@dataclass(frozen=True, slots=True)
class IndexHit:
    """One result: its place in each arm that found it; at least one did."""

    memory_id: UUID
    lexical: Place | None
    dense: Place | None


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

    async def delete_scope(self, scope: str) -> None:
        """As `delete`, for every point of a scope."""
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
        kind: PointKind | None = None,
        during: tuple[float, float] | None = None,
    ) -> list[IndexHit]:
        """Both arms in one scope: what either finds among its first `limit`, each point once.

        How the arms are weighed is not the index's to say (`recall.fuse`). An
        arm whose vector is None takes no part. IDF counts the points of the
        scope alone. Equal scores are ordered by id.

        Args:
            now: Unix seconds; points with `expires_at <= now` are never returned.
            kind: only points of that kind.
            during: only points that hold at some moment from the first to the
                second, both included, Unix seconds.
        """
        ...

    async def count(self, scope: str | None = None, memory_ids: Sequence[UUID] | None = None) -> int:
        """Points in a scope, or in all; only those among `memory_ids`, if given."""
        ...

    async def clear(self) -> None:
        """Remove every point."""
        ...

    async def close(self) -> None:
        """Flush and release. Safe to call twice."""
        ...
