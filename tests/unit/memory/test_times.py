"""Time expressions against the moment they were said."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.memory.times import (
    MAX_ASKED_CHARS,
    MAX_EXPRESSIONS,
    MAX_YEARS,
    asked_about,
    intervals,
    squeeze,
)

SAID = datetime(2024, 5, 15, 13, 30, tzinfo=UTC)
"""A Wednesday."""


@pytest.mark.parametrize(
    ("text", "begin", "end"),
    [
        ("yesterday", "2024-05-14", "2024-05-15"),
        ("the day before yesterday", "2024-05-13", "2024-05-14"),
        ("I'll see you tomorrow", "2024-05-16", "2024-05-17"),
        ("last week", "2024-05-06", "2024-05-13"),
        ("last weekend", "2024-05-11", "2024-05-13"),
        ("next month", "2024-06-01", "2024-07-01"),
        ("last year", "2023-01-01", "2024-01-01"),
        ("last Saturday", "2024-05-11", "2024-05-12"),
        ("on Wednesday", "2024-05-08", "2024-05-09"),
        ("I'm flying on Friday", "2024-05-17", "2024-05-18"),
        ("two months ago", "2024-03-01", "2024-04-01"),
        ("a couple of weeks ago", "2024-04-29", "2024-05-06"),
        ("3 days ago", "2024-05-12", "2024-05-13"),
        ("in three weeks", "2024-06-03", "2024-06-10"),
        ("in May", "2024-05-01", "2024-06-01"),
        ("in June", "2023-06-01", "2023-07-01"),
        ("I'm moving in June", "2024-06-01", "2024-07-01"),
        ("last May", "2023-05-01", "2023-06-01"),
        ("in May 2023", "2023-05-01", "2023-06-01"),
        ("on 8 May 2023", "2023-05-08", "2023-05-09"),
        ("on May 8th, 2023", "2023-05-08", "2023-05-09"),
        ("on the 20th of May", "2023-05-20", "2023-05-21"),
        ("2023-05-08", "2023-05-08", "2023-05-09"),
        ("since 2020", "2020-01-01", "2024-05-15T13:30"),
        ("since last week", "2024-05-06", "2024-05-15T13:30"),
        ("since March", "2024-03-01", "2024-05-15T13:30"),
        ("for three years", "2021-05-15", "2024-05-15T13:30"),
        ("for the past two months", "2024-03-15", "2024-05-15T13:30"),
        ("from 2018 to 2020", "2018-01-01", "2020-01-01"),
        ("in 2019", "2019-01-01", "2020-01-01"),
        ("this summer", "2024-06-01", "2024-09-01"),
        ("last summer", "2023-06-01", "2023-09-01"),
        ("in the winter of 2022", "2022-12-01", "2023-03-01"),
        ("for  the  last\t\ttwo \n months", "2024-03-15", "2024-05-15T13:30"),
        ("for over the past two months", "2024-03-15", "2024-05-15T13:30"),
    ],
)
def test_an_expression_is_the_interval_that_it_means(text: str, begin: str, end: str) -> None:
    [found] = intervals(text, SAID)
    assert (found.begin, found.end) == tuple(datetime.fromisoformat(one).replace(tzinfo=UTC) for one in (begin, end))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "You may march in, that may be fine.",
        "I have 2020 reasons and 3 cats.",
        "on 31 February 2023",
        "Jan said hello",
        "Sunflowers fall",
        "900 years ago",
    ],
)
def test_what_is_no_time_is_no_interval(text: str) -> None:
    assert intervals(text, SAID) == []


def test_expressions_stand_where_they_are_said_and_in_order() -> None:
    text = "I moved in May, and I'm back since last week."
    assert [text[span.start_char : span.end_char] for span in intervals(text, SAID)] == ["in May", "since last week"]
    wide = "İ  I moved \n\n in  May ,  and I'm back since\t\tlast   week  ."
    expected = ["in  May", "since\t\tlast   week"]
    assert [wide[span.start_char : span.end_char] for span in intervals(wide, SAID)] == expected


@given(st.text(st.sampled_from("ab. \t\n\u00a0"), max_size=40))
def test_squeezed_characters_know_where_they_stood(text: str) -> None:
    squeezed = squeeze(text)
    assert squeezed.text.split() == text.split()
    places = [squeezed.origin(place) for place in range(len(squeezed.text))]
    assert places == sorted(set(places))
    assert all(squeezed.text[at] == text[place] for at, place in enumerate(places) if not text[place].isspace())
    assert squeezed.text.count("\n") <= text.count("\n")
    assert not any(first.isspace() and second.isspace() for first, second in pairwise(squeezed.text))


_WORDS = """
    since in on last next this for the past two 3 31 2020 0 months weeks years ago May june sat saturday of ,
    2023 february 29 yesterday summer spring from to 1999 2099 a few day minute hour weekend I'm going 999 and
    until
"""


@given(
    st.lists(st.sampled_from(_WORDS.split()), max_size=12).map(" ".join) | st.text(max_size=60),
    st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)),
)
def test_any_text_has_intervals_that_are_in_order_and_sensible(text: str, said_at: datetime) -> None:
    found = intervals(text, said_at)
    for span in found:
        assert span.begin < span.end
        assert abs(span.begin.year - said_at.year) <= MAX_YEARS
        assert 0 <= span.start_char < span.end_char <= len(text)
    assert all(first.end_char <= second.start_char for first, second in pairwise(found))


@pytest.mark.parametrize(
    ("query", "begin", "end"),
    [
        ("Where do I live?", "2024-05-15T13:30", "2024-05-15T13:30"),
        ("Where did I live in June?", "2023-06-01", "2023-06-30T23:59:59"),
        ("Where did I use to live?", "0001-01-01", "2024-05-15T13:30"),
        ("Where was I before?", "0001-01-01", "2024-05-15T13:30"),
        ("What am I doing tomorrow?", "2024-05-15T13:30", "2024-05-15T13:30"),
    ],
)
def test_a_question_is_about_now_unless_it_speaks_of_another_time(query: str, begin: str, end: str) -> None:
    expected = tuple(datetime.fromisoformat(one).replace(tzinfo=UTC) for one in (begin, end))
    assert asked_about(query, SAID) == expected


def test_the_last_day_of_the_calendar_is_passed_over() -> None:
    said = datetime(9999, 12, 31, 23, 59, tzinfo=UTC)
    [found] = intervals("on 31 December", said)
    assert (found.begin, found.end) == (datetime(9998, 12, 31, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC))
    assert intervals("tomorrow, next year, in three weeks and next Friday", said) == []


def test_a_question_is_looked_at_up_to_a_length_and_a_text_up_to_a_number_of_times() -> None:
    filler = "I wonder " * MAX_ASKED_CHARS
    asked = "Where did I live in June?"
    assert asked_about(f"{asked} {filler}", SAID) == asked_about(asked, SAID)
    assert asked_about(filler[:MAX_ASKED_CHARS] + asked, SAID) == (SAID, SAID)
    assert len(intervals("May 1, " * 1_100, SAID)) == MAX_EXPRESSIONS


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "text", ["for " + "over " * 1_590, "may 1, " * 1_100, "for" + " " * 7_990 + "two", "a-" * 4_000]
)
def test_a_long_text_of_times_is_read_at_once(text: str) -> None:
    # A hundred of them, so that what grows with the square of the length is felt on any machine.
    for _ in range(100):
        intervals(text, SAID)
        asked_about(text, SAID)
