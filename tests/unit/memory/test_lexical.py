"""Words to sparse vectors."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.memory.lexical import (
    K1,
    dense_text,
    document_vector,
    lexical_text,
    query_vector,
    spoken_date,
    term_id,
    terms,
)
from personae_runtime.memory.store import MemoryRecord, MemorySource

RECORD = MemoryRecord(
    memory_id=uuid4(),
    scope="s",
    text="I repaired the bike.",
    speaker="Ann",
    occurred_at=datetime(2023, 5, 8, 13, 56, tzinfo=UTC),
    thread="t",
    ordinal=1,
    source=MemorySource.API,
    created_at=datetime(2024, 1, 1, tzinfo=UTC),
)
BEFORE = replace(RECORD, speaker="Bo", text="What happened?")
AFTER = replace(RECORD, speaker="Bo", text="Splendid!")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("repairing bikes", "repaired bike"),
        ("CAFÉ", "cafe"),
        ("cafe\u0301", "café"),
        ("Ann's", "ann"),
        ("don\u2019t", "don't"),
        ("\uff42\uff49\uff4b\uff45", "bike"),
        ("STRASSE", "straße"),
    ],
    ids=["inflection", "accent", "combining", "possessive", "apostrophe", "full width", "case folding"],
)
def test_words_that_people_take_for_the_same_meet(one: str, other: str) -> None:
    assert terms(one) == terms(other)


def test_stop_words_are_dropped_and_question_words_stay() -> None:
    assert terms("the bike is in a shop") == ["bike", "shop"]
    assert terms("who did not go when") == ["who", "not", "go", "when"]


def test_term_ids_are_stable() -> None:
    # Stored vectors rely on it: a change needs a new index name.
    assert term_id("bike") == 1287403392
    assert document_vector("bike").indices == (term_id("bike"),)


def test_term_frequency_saturates_and_length_counts_against() -> None:
    def weight(text: str) -> float:
        vector = document_vector(text)
        return vector.values[list(vector.indices).index(term_id("bike"))]

    assert weight("bike") < weight("bike bike") < weight("bike " * 5) < K1 + 1
    assert weight("bike bike") - weight("bike") > weight("bike bike bike") - weight("bike bike")
    assert weight("bike wheel chain saddle") < weight("bike")


def test_a_query_of_stop_words_has_no_vector() -> None:
    assert query_vector("is it the") is None
    assert query_vector("?!") is None
    assert query_vector("") is None


def test_the_window_holds_date_speaker_own_words_twice_and_neighbours_once() -> None:
    text = lexical_text(RECORD, BEFORE, AFTER)
    assert text.count("I repaired the bike.") == 2
    assert text.count("What happened?") == text.count("Splendid!") == 1
    assert text.count("Ann") == 2
    assert "8 May 2023" in text
    assert lexical_text(RECORD, None, None).count("Bo") == 0


def test_the_embedded_text_is_speaker_and_words() -> None:
    assert dense_text(RECORD) == "Ann: I repaired the bike."


def test_dates_are_english_whatever_the_locale() -> None:
    assert spoken_date(datetime(2024, 12, 1, tzinfo=UTC)) == "1 December 2024"


@given(st.text(max_size=300))
def test_any_text_gives_a_valid_vector(text: str) -> None:
    vector = document_vector(text)
    assert len(vector.indices) == len(vector.values) == len(set(vector.indices))
    assert all(0 <= index < 2**32 for index in vector.indices)
    assert all(0 < value < K1 + 1 for value in vector.values)


@given(st.text(max_size=300))
def test_a_text_is_found_by_its_own_words(text: str) -> None:
    query = query_vector(text)
    assert set(query.indices if query else ()) == set(document_vector(text).indices)
