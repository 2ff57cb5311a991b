"""Order of candidates: what each feature sees, and what must hold for any words."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.memory.index import Place
from personae_runtime.memory.rank import LOW_CONFIDENCE, Candidate, Features, Query, features, fused, rank
from personae_runtime.memory.store import MemoryRecord
from tests.unit.memory.conftest import record

TEN_WORDS = "one two three four five six seven eight nine ten"


def candidate(text: str = TEN_WORDS, ordinal: int = 40, *, rank: int = 1, **changes: object) -> Candidate:
    return Candidate(record(text, ordinal, **changes), Place(rank, 5.0), Place(rank, 0.5))


def seen(query: str, *candidates: Candidate) -> Features:
    """The features of the first candidate."""
    return features(Query(query, {item.record.speaker for item in candidates}), candidates)[0]


def test_both_arms_add_up_and_the_first_place_counts_most() -> None:
    assert fused(Place(1, 9.0), Place(1, 0.9)) == 1
    assert fused(None, Place(1, 0.9)) == 0.5
    assert fused(None, None) == 0
    assert fused(Place(2, 1.0), None) > fused(Place(3, 100.0), None)


@pytest.mark.parametrize(
    ("feature", "query", "with_it", "without"),
    [
        ("named", "What did Bo's?", candidate(speaker="Bo"), candidate()),
        ("named", "What did bo do?", candidate(speaker="Bo Li"), candidate()),
        ("own_account", "What did Ann do?", candidate("I\u2019ve been away."), candidate("Away you were.")),
        ("asks", "x", candidate("Is it?"), candidate("It is.")),
        ("asks", "x", candidate("Is it? [shares a photo: a dog]"), candidate("It is. [shares a photo: why?]")),
        ("time", "x", candidate("Yesterday, at last!"), candidate("In a while")),
        ("time", "x", candidate("Back in 1998"), candidate("Room 1234567")),
        ("time_asked", "When was it?", candidate("Last week."), candidate("At home.")),
        ("time_asked", "In what month was it?", candidate("Last week."), candidate("At home.")),
        ("name_asked", "Where was it?", candidate("It was in Lisbon."), candidate("It was there. And then.")),
        ("opening", "x", candidate(ordinal=1), candidate(ordinal=2)),
        ("month", "What happened in May 2024?", candidate(), candidate(occurred_at=datetime(2024, 6, 8, tzinfo=UTC))),
        (
            "month",
            "What happened in April 2024?",
            candidate("It was last month."),
            candidate("It was last week."),
        ),
        ("month", "What happened in 2022?", candidate("Two years ago."), candidate("Two months ago.")),
    ],
)
def test_a_feature_sees_its_cue_and_nothing_else(
    feature: str, query: str, with_it: Candidate, without: Candidate
) -> None:
    other = candidate("Hm.", 90, speaker="Cy")
    assert getattr(seen(query, with_it, other), feature) == 1
    assert getattr(seen(query, without, other), feature) == 0


def test_may_and_march_are_months_only_with_a_capital() -> None:
    assert Query("What may he march for?", ()).months == frozenset()
    assert Query("What of May and March?", ()).months == {3, 5}


def test_a_day_counts_less_with_distance_and_half_before_it() -> None:
    asked = "What did Ann say on 8 May 2024?"
    same, later, earlier = (
        seen(asked, candidate(occurred_at=datetime(2024, 5, day, tzinfo=UTC))).day for day in (8, 12, 4)
    )
    assert same == 1
    assert later == pytest.approx(math.exp(-1))
    assert earlier == pytest.approx(later / 2)
    assert seen("What of 31 February?", candidate()).day == 0


def test_an_answer_follows_the_others_question() -> None:
    asked = candidate("Where did you stay?", 3, speaker="Bo")
    assert seen("x", candidate("With my aunt.", 4), asked).answers == 1
    assert seen("x", candidate("With my aunt.", 5), asked).answers == 0
    assert seen("x", candidate("With my aunt.", 4, thread="u"), asked).answers == 0
    assert seen("x", candidate("With my aunt.", 4, speaker="Bo"), asked).answers == 0


def test_candidates_close_by_lend_weight_by_distance() -> None:
    near, far = (seen("x", candidate(ordinal=10), candidate(ordinal=place)).nearby for place in (11, 13))
    assert near == pytest.approx(3 * far)
    assert far > 0
    assert seen("x", candidate(ordinal=10), candidate(ordinal=14)).nearby == 0
    # Without a thread there is no order.
    assert seen("x", candidate(ordinal=10, thread=""), candidate(ordinal=11, thread="")).nearby == 0
    assert seen("What does Ann like?", candidate(ordinal=10), candidate(ordinal=11)).nearby_list == near


def test_a_thread_is_as_good_as_its_best() -> None:
    assert seen("x", candidate(rank=9), candidate(ordinal=1, rank=1)).thread_best == 1
    assert seen("x", candidate(rank=9, thread=""), candidate(ordinal=1, rank=1, thread="")).thread_best == 0.2


def test_the_longer_of_equals_is_better() -> None:
    assert [item.candidate.record.text for item in rank("x", [candidate(), candidate(TEN_WORDS * 2)]).ranked] == [
        TEN_WORDS * 2,
        TEN_WORDS,
    ]


@pytest.mark.parametrize(
    ("query", "plain"),
    [
        ("What did Bo's sister say to Bo?", "What did sister say to ?"),
        ("What did Ann and BO do?", "What did and do?"),
        ("Bo?", "Bo?"),
        ("What of the boat?", "What of the boat?"),
        ("", ""),
    ],
)
def test_names_of_speakers_are_taken_out_of_what_is_embedded(query: str, plain: str) -> None:
    assert Query(query, {"Ann", "Bo", ""}).without_names == plain


def test_one_speaker_asked_for_what_the_other_said_lowers_the_confidence() -> None:
    def ask(name: str) -> float:
        return rank(
            f"Which instrument did {name} buy?",
            [
                Candidate(record("I went and bought a violin, my first instrument!", 1), Place(1, 9.0), Place(1, 0.7)),
                Candidate(record("How nice for you, enjoy.", 2, speaker="Bo"), Place(40, 1.0), Place(60, 0.1)),
            ],
        ).confidence

    assert ask("Ann") > LOW_CONFIDENCE > ask("Bo")
    assert ask("Zelda") < ask("Ann")


def test_no_candidates_no_confidence() -> None:
    assert rank("x", []).ranked == ()
    assert rank("x", []).low_confidence


words = st.text(max_size=60) | st.sampled_from(["I said so yesterday", "Why?", "2022", "May 5", "[shares a photo: x]"])
place = st.none() | st.builds(Place, st.integers(1, 500), st.floats(-1, 60))
records = st.builds(
    lambda number, text, ordinal, thread, speaker: record(
        text, ordinal, thread=thread, speaker=speaker, memory_id=UUID(int=number)
    ),
    st.integers(0, 10_000),
    words,
    st.integers(0, 6),
    st.sampled_from(["", "t", "u"]),
    st.sampled_from(["", "Ann", "Bo", "\u674e"]),
)


def candidates_of(found: list[tuple[MemoryRecord, Place | None, Place | None]]) -> list[Candidate]:
    return [Candidate(*each) for each in {item[0].memory_id: item for item in found}.values()]


@given(words, st.lists(st.tuples(records, place, place), max_size=12), st.randoms(use_true_random=False))
def test_any_words_give_every_candidate_once_in_one_order(
    query: str, found: list[tuple[MemoryRecord, Place | None, Place | None]], random: object
) -> None:
    given_order = candidates_of(found)
    ranking = rank(query, given_order)
    shuffled = list(given_order)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert rank(query, shuffled) == ranking
    assert {item.candidate.record.memory_id for item in ranking.ranked} == {
        item.record.memory_id for item in given_order
    }
    scores = [item.score for item in ranking.ranked]
    assert scores == sorted(scores, reverse=True)
    assert all(math.isfinite(score) and score > 0 for score in scores)
    assert 0 <= ranking.confidence <= 1
    for row in features(Query(query, {"Ann", "Bo"}), given_order):
        assert all(math.isfinite(value) for value in row)


def test_at_most_twenty_weights() -> None:
    assert len(Features._fields) <= 20
