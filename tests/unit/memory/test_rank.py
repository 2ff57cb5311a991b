"""Order of candidates: what each feature sees, and what must hold for any words."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.memory import rank as ranking_module
from personae_runtime.memory.index import Place
from personae_runtime.memory.lexical import held, terms
from personae_runtime.memory.rank import (
    DOUBT_WEIGHTS,
    LOOKED_AT,
    LOW_CONFIDENCE,
    WEIGHTS,
    Candidate,
    Features,
    Query,
    features,
    fused,
    rank,
)
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


def test_a_month_in_letters_of_another_alphabet_is_none() -> None:
    # A dotless i matches an i without case, but does not fold to one.
    assert Query("What of Apr\u0131l?", ()).months == frozenset()
    assert Query("What of 3 Apr\u0131l?", ()).day is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("That was 99 years ago.", datetime(50, 1, 1, tzinfo=UTC)),
        ("See you tomorrow!", datetime(9999, 12, 31, tzinfo=UTC)),
        ("Next year, then.", datetime(9999, 12, 31, tzinfo=UTC)),
    ],
)
def test_a_time_beyond_the_calendar_is_no_match(text: str, told: datetime) -> None:
    assert seen("What happened in May?", candidate(text, occurred_at=told)).month == 0


@pytest.mark.parametrize(
    ("text", "month"),
    [
        ("Yesterday", 4),
        ("TOMORROW, he said", 5),
        ("last  week", 5),
        ("It was last month", 4),
        ("the blast month", 5),
        ("past year; the past month", 4),
        ("a couple of months ago", 3),
        ("sixty-two months ago", 3),
        ("Ten\u00a0months ago, 10 months ago.", 7),
        ("a months agony", 5),
        ("Six days agost; ago", 5),
    ],
)
def test_what_is_said_of_another_time_is_found_in_that_month(text: str, month: int) -> None:
    told = datetime(2024, 5, 1, tzinfo=UTC)
    names = ("March", "April", "May", "June", "July")
    found = {name for name in names if seen(f"In {name}?", candidate(text, occurred_at=told)).month}
    assert found == {"May", names[month - 3]}


def test_no_time_is_looked_for_in_what_was_said_in_the_month(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[str] = []

    def shifts(folded: str) -> list[int]:
        looked_at.append(folded)
        return []

    monkeypatch.setattr(ranking_module, "_shifts", shifts)
    assert seen("What happened in May?", candidate("Last week.")).month == 1
    assert looked_at == []
    assert seen("What happened in April?", candidate("Last week.")).month == 0
    assert looked_at == ["last week."]


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
    assert seen("What does Ann like?", candidate(ordinal=10), candidate(ordinal=11)).nearby == 0


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


@pytest.mark.parametrize(
    "said", ["what I'm", "what I\u2019ve been", "what I'd be", "what I'll be", "all that I'd've been"]
)
def test_i_with_a_verb_is_nobodys_name(said: str) -> None:
    known = [Candidate(record("No strawberries for me, I am allergic to them."), Place(1, 9.0), Place(1, 0.5))]
    assert not rank(f"do you remember {said} allergic to?", known).low_confidence
    assert rank(f"do you remember {said} allergic to at Zelda's?", known).low_confidence


def test_an_unknown_name_is_one_that_stands_nowhere_in_a_memory() -> None:
    def ask(text: str) -> float:
        return rank("Did I visit Zelda?", [Candidate(record(text), Place(1, 9.0), Place(1, 0.5))]).confidence

    unknown = ask("I went on a visit.")
    assert ask("I went on a visit to zelda's.") > unknown
    assert ask("I went on a visit. [shares a photo: Zelda, waving]") > unknown
    assert ask("I went on a visit." + " And on." * LOOKED_AT + " To Zelda.") > unknown
    assert ask("I went on a visit to Zeldas.") == unknown


def test_with_one_speaker_what_bears_on_nothing_lowers_the_confidence() -> None:
    asked = "what is my blood type?"
    tea = record("I like tea")
    far = rank(asked, [Candidate(tea, None, Place(1, 0.01))])
    # By words alone: it was found by a neighbour's, and has none of those asked for.
    wordless = rank(asked, [Candidate(tea, Place(1, 3.0), None)])
    near = rank("what do I drink?", [Candidate(tea, None, Place(1, 0.45))])
    worded = rank(asked, [Candidate(tea, Place(2, 3.0), None), Candidate(record("My blood is A"), Place(1, 9.0), None)])
    assert far.low_confidence
    assert wordless.low_confidence
    assert not near.low_confidence
    assert not worded.low_confidence
    assert far.confidence < wordless.confidence < near.confidence


def test_what_asks_for_nothing_is_not_taken_for_unanswered() -> None:
    assert not rank(
        "Do you remember what I say?", [Candidate(record("I like tea"), None, Place(1, 0.25))]
    ).low_confidence


def test_confidence_falls_with_the_cosine_and_rises_with_shared_words() -> None:
    def ask(cosine: float, text: str) -> float:
        return rank("Where is my old violin?", [Candidate(record(text), None, Place(1, cosine))]).confidence

    assert ask(0.1, "It is here.") < ask(0.2, "It is here.") < ask(0.3, "It is here.")
    assert ask(0.2, "It is here.") < ask(0.2, "The violin is here.")
    assert ask(0.2, "It is here.") < ask(0.2, "It is here. " * LOOKED_AT + "The violin.")


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


@given(words, st.lists(st.tuples(records, place, place), max_size=12), st.integers(0, 12))
def test_a_limit_shortens_the_ranking_and_changes_nothing_else(
    query: str, found: list[tuple[MemoryRecord, Place | None, Place | None]], limit: int
) -> None:
    candidates = candidates_of(found)
    whole, short = rank(query, candidates), rank(query, candidates, limit=limit)
    assert short.ranked == whole.ranked[:limit]
    assert short.confidence == whole.confidence


def test_of_a_long_memory_the_beginning_is_looked_at_and_how_it_ends() -> None:
    long = "word " * (LOOKED_AT // 5)
    assert seen("When was it?", candidate(f"Yesterday {long}")).time_asked == 1
    assert seen("When was it?", candidate(f"{long} yesterday")).time_asked == 0
    assert seen("x", candidate(f"{long}?")).asks == 1
    assert seen("x", candidate(long * 8)).length == seen("x", candidate("word " * 100)).length
    assert seen("x", candidate("word " * 99)).length < seen("x", candidate("word " * 100)).length


def test_few_texts_are_stemmed_and_none_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []

    def counting(stems: tuple[str, ...], text: str) -> set[str]:
        texts.append(text)
        return held(stems, text)

    monkeypatch.setattr(ranking_module, "held", counting)
    many = [
        candidate(f"{number} words of a kind " * 400, number, rank=number, speaker=("Ann", "Bo")[number % 2])
        for number in range(1, 101)
    ]
    rank("Which kind of words did Ann say?", many, limit=20)
    assert 0 < len(texts) <= 15
    assert max(map(len, texts)) <= LOOKED_AT


@given(st.text(max_size=80), st.text(max_size=80))
def test_held_stems_are_those_among_the_terms(query: str, text: str) -> None:
    stems = terms(query + " dying skies Ann's")
    for held_by in (text, query, f"{text} {query}", "They lie dying under the sky of ANN"):
        assert held(stems, held_by) == set(stems) & set(terms(held_by))


def test_at_most_twenty_weights() -> None:
    assert len(WEIGHTS) + len(DOUBT_WEIGHTS) <= 20
