"""What a persona has said and written, to be cited: documents as passages, and their recall."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol
from uuid import UUID

from personae_runtime.memory.lexical import terms
from personae_runtime.memory.recall import RecallResult, Recalls

INDEX_NAME: Final = "corpus-v1"
"""Of the passages' index and text scheme; see `indexer.DEFAULT_NAME`."""

PASSAGE_CHARS: Final = (300, 800)
"""Characters of a passage, if the text lets: 800 are about 180 tokens, which the embedding model reads whole (256)."""


RELATED_COSINE: Final = 0.36
RELATED_COVERAGE: Final = 0.55
LEXICAL_COVERAGE: Final = 0.4
"""From which a passage bears on a query; the last by words alone. On the talks of LoCoMo as documents, names taken
out of the questions: 9 % of the questions about them are taken for unanswered, and 56 % of those about other talks,
which have the same kind of topics (by words alone 12 % and 36 %)."""
_LOOKED_AT: Final = 5


@dataclass(frozen=True, slots=True)
class Piece:
    """Characters `begin` to `end` (excluded) of a document's text."""

    begin: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece with what is cited of its document; `published_at` is aware, UTC, `digital_source_type` an IPTC term."""

    passage_id: UUID
    document_id: UUID
    title: str
    uri: str
    text: str
    begin: int
    end: int
    published_at: datetime
    digital_source_type: str = ""


@dataclass(frozen=True, slots=True)
class CitedPassage:
    """One result; `score` is higher for better ones and comparable within one search only."""

    passage: Passage
    score: float

    @property
    def text(self) -> str:
        return self.passage.text


@dataclass(frozen=True, slots=True)
class CorpusResult:
    """What a query found.

    Attributes:
        items: best first; none if `unanswered`.
        unanswered: nothing that was found bears on the query.
        lexical_only: the dense arm did not take part.
    """

    items: tuple[CitedPassage, ...]
    unanswered: bool
    lexical_only: bool


class PassageStore(Protocol):
    """The ledger as the corpus sees it."""

    async def passages(self, passage_ids: Sequence[UUID]) -> dict[UUID, Passage]:
        """Passages that are held, by id; others are absent."""
        ...


class Corpus:
    """Recall of passages, each as it can be cited.

    Args:
        recall: over the passages' index.
    """

    def __init__(self, recall: Recalls, store: PassageStore) -> None:
        self._recall = recall
        self._store = store

    async def search(self, scope: str, query: str, *, limit: int, dense_deadline_s: float) -> CorpusResult:
        """Passages of a persona's scope that bear on `query`.

        Raises:
            LedgerUnavailable: the words can't be read.
        """
        found = await self._recall.recall(scope, query, limit=max(limit, _LOOKED_AT), dense_deadline_s=dense_deadline_s)
        if not bears(query, found):
            return CorpusResult((), unanswered=True, lexical_only=found.lexical_only)
        best = found.items[:limit]
        passages = await self._store.passages([item.record.memory_id for item in best])
        items = tuple(
            CitedPassage(passage, item.score)
            for item in best
            if (passage := passages.get(item.record.memory_id)) is not None
        )
        return CorpusResult(items, unanswered=not items, lexical_only=found.lexical_only)


def bears(query: str, found: RecallResult) -> bool:
    """Whether passages bear on a query: by the best one's cosine, or the share of the query's stems that one holds."""
    asked = set(terms(query))
    best = found.items[:_LOOKED_AT]
    covered = max((len(asked.intersection(terms(item.text))) / max(len(asked), 1) for item in best), default=0.0)
    if found.lexical_only:
        return covered >= LEXICAL_COVERAGE
    cosine = max((item.dense.score for item in best if item.dense is not None), default=0.0)
    return cosine >= RELATED_COSINE or covered >= RELATED_COVERAGE


def split(text: str) -> list[Piece]:
    """Pieces in order, without overlap: cut at paragraphs where it can be, then at sentences, words, characters.

    Takes seconds for long texts of an odd kind, and lets other threads run.
    """
    # Imported here: a host without a corpus does not need it.
    from semantic_text_splitter import TextSplitter

    found = TextSplitter(PASSAGE_CHARS).chunk_indices(text)
    return [Piece(begin, begin + len(piece), piece) for begin, piece in found if piece.strip()]


def normalised(text: str) -> str:
    """What two passages share that are the same word for word: NFKC, case folded, white space as one blank."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
