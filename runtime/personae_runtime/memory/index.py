"""The index behind recall: vectors and filters, never text.

An index can be rebuilt from the ledger at any time, so it holds ids only; the
words of a memory are read back from the ledger, which also decides whether the
memory still lives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable
from uuid import UUID

from personae_runtime.errors import InvalidArgument

DENSE_DIM: Final = 384
"""Dimensions of the dense vector (all-MiniLM-L6-v2)."""

LAYOUT: Final = "2"
"""Of a point as a backend stores it: `LEXICAL`, `DENSE` and the payload. An index of another layout is built anew."""

LEXICAL: Final = "lexical"
DENSE: Final = "dense"
"""Names of the two vectors."""

SCOPE: Final = "scope"
KIND: Final = "kind"
EXPIRES_AT: Final = "expires_at"
VALID_FROM: Final = "valid_from"
VALID_TO: Final = "valid_to"
"""Names of the payload's fields, all of them indexed."""

NEVER: Final = float(2**53)
"""A time without bound, Unix seconds: beyond any clock, so that one range condition serves every point."""


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


class Place(NamedTuple):
    """A point's place in one arm: rank from 1, and the arm's own score (BM25, or cosine), higher is better."""

    rank: int
    score: float


class IndexHit(NamedTuple):
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

    async def being_rebuilt(self) -> bool:
        """Whether a copy is being filled beside it, or was left half filled: what is deleted here may be in it."""
        ...

    async def clear(self) -> None:
        """Remove every point."""
        ...

    async def close(self) -> None:
        """Flush and release. Safe to call twice."""
        ...


@dataclass(frozen=True, slots=True)
class Difference:
    """Where an index differs from what this version and its settings want; None is absent."""

    key: str
    wanted: Any
    found: Any


def checked_sparse(vector: SparseVector) -> tuple[list[int], list[float]]:
    """A sparse vector's indices and values.

    Raises:
        InvalidArgument: it is not what `SparseVector` says.
    """
    indices, values = list(vector.indices), [float(value) for value in vector.values]
    if len(indices) != len(values) or len(set(indices)) != len(indices) or not all(map(math.isfinite, values)):
        raise InvalidArgument("a sparse vector needs unique indices and as many finite values")
    if any(not 0 <= index < 2**32 for index in indices):
        raise InvalidArgument("a sparse index is outside 0 to 2^32 - 1")
    return indices, values


def checked_dense(vector: Sequence[float]) -> list[float]:
    """A dense vector's values.

    Raises:
        InvalidArgument: it has another length than DENSE_DIM, or is not finite.
    """
    values = [float(value) for value in vector]
    if len(values) != DENSE_DIM or not all(map(math.isfinite, values)):
        raise InvalidArgument(f"a dense vector needs {DENSE_DIM} finite numbers, got {len(values)}")
    return values


def payload_of(point: MemoryPoint) -> dict[str, str | float]:
    """What is stored beside a point's vectors: its scope, its kind and its times, absent ones as NEVER.

    Raises:
        InvalidArgument: a time is not finite.
    """
    times = {
        EXPIRES_AT: NEVER if point.expires_at is None else point.expires_at,
        VALID_FROM: -NEVER if point.valid_from is None else point.valid_from,
        VALID_TO: NEVER if point.valid_to is None else point.valid_to,
    }
    for name, moment in times.items():
        if not math.isfinite(moment):
            raise InvalidArgument(f"{name} of {point.memory_id} is {moment}, expected finite Unix seconds")
    return {SCOPE: point.scope, KIND: point.kind.value, **{name: float(moment) for name, moment in times.items()}}


def places(scored: Iterable[tuple[UUID, float]]) -> dict[UUID, Place]:
    """An arm's results (id and score) by rank; equal scores by id."""
    ordered = sorted(scored, key=lambda item: (-item[1], item[0]))
    return {memory_id: Place(rank, score) for rank, (memory_id, score) in enumerate(ordered, start=1)}


def hits(lexical: Mapping[UUID, Place], dense: Mapping[UUID, Place]) -> list[IndexHit]:
    """The results of both arms, each point once."""
    return [IndexHit(memory_id, lexical.get(memory_id), dense.get(memory_id)) for memory_id in {**lexical, **dense}]
