"""Evidence recall on a file of conversations with questions, without a language model.

The format is LoCoMo's (Maharana et al., "Evaluating Very Long-Term Conversational
Memory of LLM Agents", 2024): conversations in sessions, and questions with the ids
of the turns that answer them. Categories 1 to 4 (multi-hop, temporal, open-domain,
single-hop) have an answer; category 5 asks one speaker for what the other said, so
that abstaining is right.

History reader, indexer, index, ranking and `Recall` are a host's; the ledger is not.
Memories lie in a dict: nothing is read from PostgreSQL or decrypted, no facts are drawn
or recalled beside words, and one question is asked at a time. So recall and abstention
are those of a host, while `read_ms` and `index_s` leave out what its ledger adds, and
what calls at the same time do to one another. Plain BM25 over single turns runs beside it.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from personae_runtime.evals.store import DictMemoryStore
from personae_runtime.memory.edge import EdgeMemoryIndex
from personae_runtime.memory.embedder import Embedder
from personae_runtime.memory.history import BadHistory, parse_locomo
from personae_runtime.memory.indexer import Indexer
from personae_runtime.memory.lexical import K1, B, spoken_date, terms
from personae_runtime.memory.rank import Query
from personae_runtime.memory.recall import Recall, RecallResult
from personae_runtime.memory.store import MemoryRecord, MemorySource

DEPTHS: Final = (5, 10, 20)
"""Cut-offs k of recall@k and hit@k."""

ANSWERABLE: Final = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop"}
ADVERSARIAL: Final = 5

MAX_FILE_BYTES: Final = 64 << 20
"""A file is held in memory as parsed JSON, ten times its size and more."""

_DENSE_DEADLINE_S: Final = 10.0
_TURN_ID: Final = re.compile(r"D:?(\d+):(\d+)")

Shares = dict[str, float]
"""Percent by cut-off."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question; `evidence` holds turn ids as `turn_ids` writes them, and may be empty."""

    category: int
    text: str
    evidence: frozenset[str]


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation of the file; its name is its scope."""

    name: str
    records: tuple[MemoryRecord, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What the evaluation found. Shares are percent, means over questions.

    Attributes:
        dense: the dense arm took part.
        questions: of categories 1 to 4 with evidence in the file.
        recall, bm25: share of a question's evidence turns among the first k.
        recall_by_category: category number to the same, None without such questions.
        hit_by_category: share of questions with any evidence turn among the first k.
        recall_by_conversation: conversation to recall.
        recall_spread: population standard deviation over conversations.
        abstain_adversarial: share of category 5 with low confidence; None without such questions.
        abstain_other: the same for every conversation's questions of categories 1 to 4 asked
            of the next conversation; None if there is only one.
        abstain_other_unnamed: the same without the names of either conversation's speakers in the
            questions: a name that nobody there bears gives a question away.
        false_abstain: the same for categories 1 to 4 asked where they belong.
        false_abstain_unnamed: the same without the speakers' names: what `abstain_other_unnamed` costs.
        read_ms_p50, read_ms_p95: wall milliseconds of a recall, query embedding included, one at a
            time; without ledger, decryption and facts, which a host's has too.
        index_s: seconds to index all turns, embeddings included, ledger not.
    """

    dataset: str
    dense: bool
    conversations: int
    turns: int
    questions: int
    recall: Shares
    bm25: Shares
    recall_by_category: dict[str, Shares | None]
    bm25_by_category: dict[str, Shares | None]
    hit_by_category: dict[str, Shares | None]
    recall_by_conversation: dict[str, Shares]
    recall_spread: Shares
    abstain_adversarial: float | None
    abstain_other: float | None
    abstain_other_unnamed: float | None
    false_abstain: float
    false_abstain_unnamed: float
    read_ms_p50: float
    read_ms_p95: float
    index_s: float


def load_locomo(path: Path) -> list[Conversation]:
    """Every conversation of a LoCoMo file; blocking.

    Raises:
        BadHistory: the file can't be read, breaks the format, or asks nothing that has evidence.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadHistory(f"{path} can't be read: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise BadHistory(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB; measure fewer conversations at a time")
    try:
        document = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadHistory(f"{path}: not JSON in UTF-8: {type(error).__name__}") from error
    samples = document if isinstance(document, list) else [document]
    found: dict[str, Conversation] = {}
    for place, sample in enumerate(samples, start=1):
        where = f"{path}, conversation {place}"
        if (
            not isinstance(sample, dict)
            or not isinstance(name := sample.get("sample_id"), str)
            or not isinstance(sample.get("conversation"), dict)
        ):
            raise BadHistory(f"{where}: expected an object with sample_id, conversation and qa")
        if name in found:
            raise BadHistory(f"{where}, field sample_id: already used in this file")
        found[name] = Conversation(name, _records(sample, path), tuple(_questions(sample.get("qa"), where)))
    if not any(answerable(question) for conversation in found.values() for question in conversation.questions):
        raise BadHistory(f"{path}: no question of categories 1 to 4 has evidence, so there is nothing to measure")
    return list(found.values())


def turn_ids(text: str) -> frozenset[str]:
    """The turn ids in a text that may hold several or be badly formed, each as D<session>:<turn>."""
    return frozenset(f"D{int(session)}:{int(turn)}" for session, turn in _TURN_ID.findall(text))


def unnamed(text: str, *conversations: Conversation) -> str:
    """A question without the names of the conversations' speakers; as it is if it asks nothing else."""
    return Query(text, {record.speaker for one in conversations for record in one.records}).without_names


def answerable(question: Question) -> bool:
    """Whether a question counts for recall."""
    return question.category in ANSWERABLE and bool(question.evidence)


def shares_at(evidence: frozenset[str], ranked: Sequence[str]) -> list[float]:
    """Recall@k for each of DEPTHS, 0 to 1.

    Args:
        evidence: not empty.
        ranked: turn ids, best first.
    """
    return [len(evidence.intersection(ranked[:depth])) / len(evidence) for depth in DEPTHS]


class PlainBm25:
    """BM25 (`lexical`, with the same constants) over single turns: date, speaker and text, no neighbours."""

    def __init__(self, records: Sequence[MemoryRecord]) -> None:
        self._ids = [record.external_id for record in records]
        bags = [
            Counter(terms(f"{spoken_date(record.occurred_at)}\n{record.speaker}: {record.text}")) for record in records
        ]
        average = statistics.fmean(bag.total() for bag in bags)
        document_frequency = Counter(term for bag in bags for term in bag)
        self._postings: dict[str, list[tuple[int, float]]] = {}
        for place, bag in enumerate(bags):
            norm = K1 * (1 - B + B * bag.total() / average)
            for term, count in bag.items():
                n = document_frequency[term]
                idf = math.log(1 + (len(bags) - n + 0.5) / (n + 0.5))
                self._postings.setdefault(term, []).append((place, idf * count * (K1 + 1) / (count + norm)))

    def search(self, query: str) -> list[str]:
        """Turn ids, best first; equal scores in the conversation's order."""
        scores: Counter[int] = Counter()
        for term in set(terms(query)):
            for place, score in self._postings.get(term, ()):
                scores[place] += score  # type: ignore[assignment]  # typeshed: counts are int
        return [self._ids[place] for place, _ in sorted(scores.items(), key=lambda item: (-item[1], item[0]))]


async def measure(
    conversations: Sequence[Conversation],
    folder: Path,
    embedder: Embedder | None,
    *,
    on_progress: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> Report:
    """Index the conversations and ask their questions.

    Args:
        conversations: as `load_locomo` gives them.
        folder: empty, for the index.
        embedder: started; None measures recall by words alone.
        on_progress: told (what is being done, done, in all).
    """
    index = EdgeMemoryIndex(folder)
    await index.open()
    try:
        store = DictMemoryStore()
        for conversation in conversations:
            store.add(*conversation.records)
        turns = sum(len(conversation.records) for conversation in conversations)
        begun = time.perf_counter()
        await Indexer(index, store, embedder).reindex(lambda done, total: on_progress("indexing", done, total))
        index_s = time.perf_counter() - begun
        return await _ask(
            conversations, Recall(index, store, embedder), embedder is not None, turns, index_s, on_progress
        )
    finally:
        await index.close()


async def _ask(
    conversations: Sequence[Conversation],
    recall: Recall,
    dense: bool,
    turns: int,
    index_s: float,
    on_progress: Callable[[str, int, int], None],
) -> Report:
    found: list[_Asked] = []
    elsewhere: list[_Abstained] = []
    read_ms: list[float] = []
    total = sum(len(conversation.questions) for conversation in conversations)

    async def ask(scope: str, text: str) -> RecallResult:
        begun = time.perf_counter()
        result = await recall.recall(scope, text, limit=max(DEPTHS), dense_deadline_s=_DENSE_DEADLINE_S)
        read_ms.append((time.perf_counter() - begun) * 1e3)
        return result

    for place, conversation in enumerate(conversations):
        bm25 = await asyncio.to_thread(PlainBm25, conversation.records)
        other = conversations[(place + 1) % len(conversations)]
        for question in conversation.questions:
            result = await ask(conversation.name, question.text)
            ranked = [item.record.external_id for item in result.items]
            abstained = _Abstained(
                result.low_confidence,
                (await ask(conversation.name, unnamed(question.text, conversation))).low_confidence,
            )
            found.append(_Asked(conversation.name, question, ranked, bm25.search(question.text), abstained))
            if other is not conversation and question.category in ANSWERABLE:
                elsewhere.append(
                    _Abstained(
                        (await ask(other.name, question.text)).low_confidence,
                        (await ask(other.name, unnamed(question.text, conversation, other))).low_confidence,
                    )
                )
            on_progress("asking", len(found), total)
    return _report(conversations, found, elsewhere, read_ms, dense, turns, index_s)


@dataclass(frozen=True, slots=True)
class _Abstained:
    named: bool
    unnamed: bool


@dataclass(frozen=True, slots=True)
class _Asked:
    conversation: str
    question: Question
    ranked: Sequence[str]
    bm25: Sequence[str]
    abstained: _Abstained


def _report(
    conversations: Sequence[Conversation],
    found: Sequence[_Asked],
    elsewhere: Sequence[_Abstained],
    read_ms: Sequence[float],
    dense: bool,
    turns: int,
    index_s: float,
) -> Report:
    counted = [item for item in found if answerable(item.question)]

    def recall(items: Iterable[_Asked]) -> Shares | None:
        return _mean(shares_at(item.question.evidence, item.ranked) for item in items)

    def bm25(items: Iterable[_Asked]) -> Shares | None:
        return _mean(shares_at(item.question.evidence, item.bm25) for item in items)

    def hit(items: Iterable[_Asked]) -> Shares | None:
        return _mean([float(share > 0) for share in shares_at(item.question.evidence, item.ranked)] for item in items)

    def by_category(of: Callable[[Iterable[_Asked]], Shares | None]) -> dict[str, Shares | None]:
        return {
            str(category): of(item for item in counted if item.question.category == category) for category in ANSWERABLE
        }

    by_conversation = {
        conversation.name: shares
        for conversation in conversations
        if (shares := recall(item for item in counted if item.conversation == conversation.name)) is not None
    }
    return Report(
        dataset="LoCoMo format, categories 1 to 4 for recall",
        dense=dense,
        conversations=len(conversations),
        turns=turns,
        questions=len(counted),
        recall=recall(counted) or {},
        bm25=bm25(counted) or {},
        recall_by_category=by_category(recall),
        bm25_by_category=by_category(bm25),
        hit_by_category=by_category(hit),
        recall_by_conversation=by_conversation,
        recall_spread={
            str(depth): round(statistics.pstdev(shares[str(depth)] for shares in by_conversation.values()), 1)
            for depth in DEPTHS
        },
        abstain_adversarial=_percent([item.abstained.named for item in found if item.question.category == ADVERSARIAL]),
        abstain_other=_percent([item.named for item in elsewhere]),
        abstain_other_unnamed=_percent([item.unnamed for item in elsewhere]),
        false_abstain=_percent([item.abstained.named for item in counted]) or 0.0,
        false_abstain_unnamed=_percent([item.abstained.unnamed for item in counted]) or 0.0,
        read_ms_p50=round(float(np.percentile(read_ms, 50)), 2),
        read_ms_p95=round(float(np.percentile(read_ms, 95)), 2),
        index_s=round(index_s, 2),
    )


def _mean(rows: Iterable[Sequence[float]]) -> Shares | None:
    columns = list(zip(*rows, strict=True))
    if not columns:
        return None
    return {str(depth): round(100 * statistics.fmean(column), 1) for depth, column in zip(DEPTHS, columns, strict=True)}


def _percent(flags: Sequence[bool]) -> float | None:
    return round(100 * statistics.fmean(flags), 1) if flags else None


def _records(sample: dict[str, Any], path: Path) -> tuple[MemoryRecord, ...]:
    now = datetime.now(UTC)
    name = sample["sample_id"]
    # The reader takes bytes: those of this conversation, not the whole file once for each.
    alone = json.dumps({"sample_id": name, "conversation": sample["conversation"]}).encode()
    return tuple(
        MemoryRecord(
            memory_id=uuid.uuid5(uuid.NAMESPACE_OID, f"{item.thread}/{item.ordinal}"),
            scope=name,
            text=item.text,
            speaker=item.speaker,
            occurred_at=item.occurred_at or now,
            thread=item.thread,
            ordinal=item.ordinal,
            source=MemorySource.API,
            created_at=now,
            external_id=min(turn_ids(item.external_id), default=item.external_id),
        )
        for item in parse_locomo(alone, name=str(path), select=name).items
    )


def _questions(rows: Any, where: str) -> Iterable[Question]:
    if not isinstance(rows, list):
        raise BadHistory(f"{where}, field qa: expected a list of questions")
    for place, row in enumerate(rows, start=1):
        if (
            not isinstance(row, dict)
            or not isinstance(row.get("question"), str)
            or not isinstance(row.get("category"), int)
        ):
            raise BadHistory(f"{where}, question {place}: expected an object with question, category and evidence")
        yield Question(row["category"], row["question"], turn_ids(json.dumps(row.get("evidence"))))
