"""Documents as passages, and whether they bear on a question."""

from __future__ import annotations

from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.memory.index import Place
from personae_runtime.memory.passages import (
    PASSAGE_CHARS,
    CitedPassage,
    Corpus,
    Passage,
    bears,
    normalised,
    split,
)
from personae_runtime.memory.recall import RecalledMemory, RecallResult
from tests.unit.memory.conftest import record

QUERY = "How many coats of paint do you spray?"
ON_IT = "I spray three coats of paint, and many would say it is two too many."


def result(text: str = ON_IT, *, cosine: float | None = None, lexical_only: bool = False) -> RecallResult:
    dense = None if cosine is None else Place(1, cosine)
    items = (RecalledMemory(record(text, 0), 1.0, Place(1, 3.0), dense),) if text else ()
    return RecallResult(items, lexical_only, 0.5, False)


@given(st.text(max_size=3000) | st.lists(st.sampled_from(["Word.", "word", "\n\n", "é", "長い"])).map(" ".join))
def test_pieces_are_parts_of_the_text_in_order_without_overlap_and_nothing_is_lost(text: str) -> None:
    pieces = split(text)
    end = 0
    for piece in pieces:
        assert piece.begin >= end
        assert not text[end : piece.begin].strip()
        assert text[piece.begin : piece.end] == piece.text
        assert 0 < len(piece.text) <= PASSAGE_CHARS[1]
        end = piece.end
    assert not text[end:].strip()


def test_the_same_words_are_the_same_whatever_their_case_form_and_spaces() -> None:
    assert normalised(" Caf\u00e9\n\nau  LAIT") == normalised("cafe\u0301 au lait")
    assert normalised("cafe") != normalised("caf\u00e9")


@pytest.mark.parametrize(
    ("found", "related"),
    [
        (result(cosine=0.1), True),
        (result("Wheels are trued twice.", cosine=0.5), True),
        (result("Wheels are trued twice.", cosine=0.2), False),
        (result(lexical_only=True), True),
        (result("Wheels are trued twice.", lexical_only=True), False),
        (result(""), False),
        (result("", lexical_only=True), False),
    ],
)
def test_passages_bear_on_a_question_by_meaning_or_by_words(found: RecallResult, related: bool) -> None:
    assert bears(QUERY, found) is related


def test_a_question_without_content_is_borne_on_by_meaning_alone() -> None:
    assert not bears("And you?", result(lexical_only=True))
    assert bears("And you?", result(cosine=0.9))


async def test_a_passage_whose_document_is_gone_by_now_is_not_cited() -> None:
    kept, gone = record(ON_IT, 0), record(ON_IT, 1)

    class Found:
        async def recall(self, scope: str, query: str, **_: object) -> RecallResult:
            items = tuple(RecalledMemory(one, 1.0, Place(1, 3.0), Place(1, 0.9)) for one in (gone, kept))
            return RecallResult(items, False, 0.5, False)

    class Held:
        async def passages(self, passage_ids: object) -> dict[object, Passage]:
            return {kept.memory_id: Passage(kept.memory_id, uuid4(), "", "", ON_IT, 0, 9, kept.occurred_at)}

    corpus = Corpus(Found(), Held())  # type: ignore[arg-type]
    found = await corpus.search("a", QUERY, limit=2, dense_deadline_s=1)
    assert [item.passage.passage_id for item in found.items] == [kept.memory_id]
    assert isinstance(found.items[0], CitedPassage)
