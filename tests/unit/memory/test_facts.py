"""What a person's own words say about them, and what they do not."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.memory.facts import (
    KINDS,
    MAX_SENTENCE_CHARS,
    MAX_STATEMENTS,
    extract,
    is_asserted,
    is_persons,
    sentence,
    slot_of,
)
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
        ("I do  not really like tea.", ["dislikes tea"]),
        ("I no longer like tea.", ["not likes tea"]),
        ("I don't enjoy concerts.", ["not likes concerts"]),
        ("I can’t stand coffee.", ["dislikes coffee"]),
        ("I hate coffee.", ["dislikes coffee"]),
        ("I don't hate tea.", ["not dislikes tea"]),
        ("I no longer dislike tea.", ["not dislikes tea"]),
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
        ("I'm a police officer.", ["works_as a police officer"]),
        ("I'm lactose intolerant.", ["diet lactose intolerant"]),
        ("I got a drum kit.", ["owns a drum kit"]),
        ("My guinea pig is called Nibbles.", ["pet guinea pig Nibbles"]),
        ("My best friend Ana and our neighbor Bob came.", ["relation Best friend Ana", "relation Neighbor Bob"]),
        ("My fiancée's name is Eva.", ["relation Fiancée Eva"]),
        ("I'm  now \t still  living\u00a0 in Porto.", ["lives_in Porto"]),
        ("Well, I'm back in Lisbon for good.", ["lives_in Lisbon"]),
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
        "I stand corrected.",
        "I bear arms.",
        "I can't love tea.",
        "I don't absolutely love tea.",
        "I like tea no longer.",
        "I'm told I live in Porto.",
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


@pytest.mark.parametrize(
    ("text", "asserted"),
    [
        ("I live in Porto.", True),
        ("No. I live in Porto.", True),
        ("I live in Porto, not in Rome.", True),
        ("I live in Porto and don't drive.", True),
        ("I wish I lived in Porto.", False),
        ("Hi! Do I live in Porto?", False),
        ("I don't live in Porto.", False),
        ("I never, ever, lived in Porto.", False),
        ("I used to live in Porto.", False),
        ("Porto isn't my home.", False),
        ("I live in Porto no more.", False),
        ("She said I live in Porto.", False),
        ("I live in Porto. Just kidding!", False),
        ("I live" + " and live" * MAX_SENTENCE_CHARS + " in Porto.", False),
        ("“" * 100 + "I live in Porto.", True),
        ("“I live in Porto”", False),
    ],
)
def test_what_is_stated_is_neither_asked_nor_wished_nor_denied(text: str, asserted: bool) -> None:
    assert is_asserted(text, text.index("Porto")) is asserted


def test_a_statement_stands_where_it_does_in_the_text_however_wide() -> None:
    text = "Hello  \n\n there.   I   moved to\t\tPorto  in  May .  My   name is  Marta."
    found = [text[one.begin : one.end] for one in extract(text, SAID)]
    assert found == ["I   moved to\t\tPorto  in  May", "My   name is  Marta"]


def test_a_sentence_beyond_a_length_is_passed_over_and_a_text_no_further_read_than_there_may_be_statements() -> None:
    long = "I live in Porto, where" + " it" * MAX_SENTENCE_CHARS
    assert [one.predicate for one in extract(f"{long}. My name is Marta.", SAID)] == ["name"]
    # White space does not make a sentence long.
    assert [one.value for one in extract("I live" + " " * MAX_SENTENCE_CHARS + "in Porto.", SAID)] == ["Porto"]
    letters = [chr(ord("A") + number) for number in range(MAX_STATEMENTS + 2)]
    found = extract(" ".join(f"I speak Welsh. I love word{letter}." for letter in letters), SAID)
    assert len(found) == MAX_STATEMENTS
    assert found[-1].value == f"word{letters[MAX_STATEMENTS - 2]}"


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "text",
    [
        "I am" + " " * 1_990,
        "I am " + "now " * 490,
        ("I am " + "now " * 70 + ".\n") * 7,
        "I like tea, " * 166,
        ("I like tea, " * 24 + ".\n") * 7,
        "I'll go if " * 180,
        "“I " * 600,
        "I" + "'a" * 900,
    ],
)
def test_a_long_text_is_read_at_once(text: str) -> None:
    # Of each a hundred, so that what grows with the square of the length is felt on any machine.
    for _ in range(100):
        extract(text, SAID)
        is_asserted(text, len(text) - 1)


def test_an_age_is_told_at_the_end_of_the_calendar_too() -> None:
    [found] = extract("I am 30.", datetime(9999, 6, 1, tzinfo=UTC))
    assert (found.value, found.valid_to) == ("30", None)
    [found] = extract("I am 30.", SAID)
    assert found.valid_to == datetime(2025, 5, 15, 13, 30, tzinfo=UTC)


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


@given(
    st.lists(st.sampled_from(_WORDS.split()), max_size=25).map(" ".join) | st.text(max_size=100),
    st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59), timezones=st.just(UTC)),
)
def test_any_text_gives_few_facts_that_stand_in_it(text: str, said_at: datetime) -> None:
    found = extract(text, said_at)
    assert len(found) <= MAX_STATEMENTS
    for one in found:
        assert 0 <= one.begin < one.end <= len(text)
        assert one.predicate in KINDS
        assert one.valid_from is None or one.valid_to is None or one.valid_from < one.valid_to
