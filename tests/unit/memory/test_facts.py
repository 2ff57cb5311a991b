"""What a person's own words say about them, and what they do not."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.memory.facts import KINDS, MAX_STATEMENTS, extract, is_persons, sentence, slot_of
from personae_runtime.memory.timeline import ANY
from tests.unit.memory.conftest import record

SAID = datetime(2024, 5, 15, 13, 30, tzinfo=UTC)
"""A Wednesday."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I live in Porto.", ["lives_in Porto"]),
        ("I'm currently based in the Netherlands", ["lives_in the Netherlands"]),
        ("We moved from Porto to Lisbon in March.", ["not lives_in Porto", "lives_in Lisbon"]),
        ("My name is Marta Silva and I work as a nurse.", ["name Marta Silva", "works_as a nurse"]),
        ("Hi, I'm Marta!", ["name Marta"]),
        ("I'm a software engineer.", ["works_as a software engineer"]),
        ("I started at Google two months ago.", ["works_at Google"]),
        ("I quit my job last week", [f"not works_at {ANY}"]),
        ("I'm studying marine biology at Aberdeen.", ["studies marine biology"]),
        ("My sister's name is Ana.", ["relation Sister Ana"]),
        ("We have a small brown dog called Rex", ["pet dog Rex"]),
        ("My dog Rex died last week.", ["not pet dog Rex"]),
        ("I love hiking in the mountains", ["likes hiking"]),
        ("I don't like coffee any more", ["dislikes coffee"]),
        ("I love camping trips with my family", ["likes camping trips"]),
        ("I went to my daughter Sara's recital.", ["relation Daughter Sara"]),
        ("My favourite colour is green.", ["favourite colour: green"]),
        ("I'm allergic to peanuts and shellfish.", ["allergic_to peanuts", "allergic_to shellfish"]),
        ("I'm not vegetarian any more", ["not diet vegetarian"]),
        ("I'm 34 years old.", ["age 34"]),
        ("My birthday is on 8 May", ["birthday 8 May"]),
        ("I speak Portuguese and English", ["speaks English", "speaks Portuguese"]),
        ("I'm flying to Rome on Friday", ["plans flying to Rome (2024-05-17)"]),
        ("I bought a red bike.", ["owns a red bike"]),
        ("I grew up in Faro.", ["grew_up_in Faro"]),
    ],
)
def test_what_a_person_says_of_themselves_is_a_fact(text: str, expected: list[str]) -> None:
    found = extract(text, SAID)
    assert sorted(("not " if one.denied else "") + f"{one.predicate} {one.value}" for one in found) == sorted(expected)
    for one in found:
        assert (
            one.value in text or "(" in one.value or one.predicate in ("relation", "pet", "favourite") or not one.value
        )
        assert text[one.begin : one.end].strip()


@pytest.mark.parametrize(
    "text",
    [
        "Do I live in Porto?",
        "I wish I lived in Porto.",
        "If I moved to Porto, I would be happy.",
        "I would love to live in Porto.",
        "She said I live in Porto.",
        "You told me that I live in Porto.",
        'You wrote "I live in Porto" just now.',
        "In the game my character says: I live in Porto",
        "I almost moved to Porto",
        "I live in Porto. Just kidding!",
        "I moved to tears",
        "I like it, I love that.",
        "I love a very long walk.",
        "I'd like a coffee.",
        "I'm so tired today.",
        "My wifi password is correcthorse, can you keep it?",
        "You live in Porto. Nadia is a nurse.",
        "I'm 300 years old",
    ],
)
def test_what_is_asked_wished_quoted_or_joked_is_none(text: str) -> None:
    assert extract(text, SAID) == ()


@pytest.mark.parametrize(
    ("text", "valid_from", "valid_to", "known_at"),
    [
        ("I moved to Porto in April.", "2024-04-01", None, "2024-05-01"),
        ("Back in Lisbon since last week", "2024-05-06", None, None),
        ("I've lived in Porto since 2020, and I love it", "2020-01-01", None, None),
        ("I lived in Berlin from 2018 to 2020.", "2018-01-01", "2020-01-01", None),
        ("I used to live in Rome.", None, "2024-05-15T13:30", None),
        ("In 2019 I lived in Rome.", "2019-01-01", "2020-01-01", None),
        ("I live in Porto. My car broke down last week.", None, None, None),
        ("I live in Porto but I was in Rome last week.", None, None, None),
    ],
)
def test_times_beside_a_fact_are_read_as_its_form_asks(
    text: str, valid_from: str | None, valid_to: str | None, known_at: str | None
) -> None:
    def moment(value: str | None) -> datetime | None:
        return None if value is None else datetime.fromisoformat(value).replace(tzinfo=UTC)

    [found] = [one for one in extract(text, SAID) if one.predicate == "lives_in"]
    assert (found.valid_from, found.valid_to, found.known_at) == (
        moment(valid_from),
        moment(valid_to),
        moment(known_at) or SAID,
    )


def test_only_the_persons_own_words_are_theirs() -> None:
    assert is_persons(record("Hello", speaker="ann"), "Ann")
    assert is_persons(record("Hello", speaker="User"), "u-17")
    for speaker in ("Nadia", "assistant", "", "them"):
        assert not is_persons(record("Hello", speaker=speaker), "u-17")
    assert not is_persons(record("Hello", speaker=""), "")


def test_opinions_share_a_slot_and_what_one_has_several_of_does_not() -> None:
    assert slot_of("likes", "the Coffee") == slot_of("dislikes", "coffee")
    assert slot_of("lives_in", "Porto") == slot_of("lives_in", "Rome")
    assert slot_of("speaks", "English") != slot_of("speaks", "Welsh")


@given(st.sampled_from(sorted(KINDS)), st.text(max_size=20), st.booleans())
def test_every_fact_has_a_sentence(predicate: str, value: str, denied: bool) -> None:
    assert sentence(predicate, value, denied=denied)


_WORDS = """
    I I'm live in Porto Lisbon moved to my dog Rex called is a nurse since last week May 2020 don't like love
    any more have , . ? she said if and allergic name 34 years old back was born on 8 favourite colour sold
    car
"""


@given(st.lists(st.sampled_from(_WORDS.split()), max_size=25).map(" ".join) | st.text(max_size=100))
def test_any_text_gives_few_facts_that_stand_in_it(text: str) -> None:
    found = extract(text, SAID)
    assert len(found) <= MAX_STATEMENTS
    for one in found:
        assert 0 <= one.begin < one.end <= len(text)
        assert one.predicate in KINDS
        assert one.valid_from is None or one.valid_to is None or one.valid_from < one.valid_to
