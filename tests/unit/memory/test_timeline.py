"""Facts that follow one another, whatever the order in which claims arrive."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.memory.store import Basis
from personae_runtime.memory.timeline import ANY, Claim, Segment, arrange

START = datetime(2024, 1, 1, tzinfo=UTC)


def day(number: int) -> datetime:
    return START + timedelta(days=number)


def claim(
    value: str,
    said: int,
    begin: int | None = None,
    end: int | None = None,
    *,
    denied: bool = False,
    known: int | None = None,
    source: int = 0,
) -> Claim:
    return Claim(
        memory_id=UUID(int=source or said + 1000),
        begin=0,
        end=9,
        predicate="lives_in",
        value=value,
        key=value.casefold(),
        denied=denied,
        said_at=day(said),
        known_at=day(said if known is None else known),
        valid_from=None if begin is None else day(begin),
        valid_to=None if end is None else day(end),
        confidence=0.9,
        basis=Basis.STATED,
        extractor="test",
    )


def told(segments: list[Segment]) -> list[tuple[str, int | None, int | None]]:
    def number(moment: datetime | None) -> int | None:
        return None if moment is None else (moment - START).days

    return [
        (("not " if one.claims[0].denied else "") + one.claims[0].value, number(one.valid_from), number(one.valid_to))
        for one in segments
    ]


def test_what_is_said_later_closes_what_was_said_before() -> None:
    segments = arrange([claim("Porto", 10), claim("Lisbon", 30, 20)])
    assert told(segments) == [("Porto", None, 20), ("Lisbon", 20, None)]
    assert [segment.next for segment in segments] == [1, None]


def test_one_that_returns_is_three_facts_and_two_that_agree_are_one() -> None:
    assert told(arrange([claim("Porto", 10), claim("Lisbon", 20), claim("Porto", 30)])) == [
        ("Porto", None, 20),
        ("Lisbon", 20, 30),
        ("Porto", 30, None),
    ]
    [one] = arrange([claim("Porto", 10), claim("porto", 30)])
    assert [each.said_at for each in one.claims] == [day(10), day(30)]


def test_an_event_counts_from_when_it_happened_and_a_state_from_when_it_was_said() -> None:
    moved_long_ago = claim("Porto", 100, 5, known=6)
    assert told(arrange([claim("Lisbon", 50), moved_long_ago]))[-1] == ("Lisbon", 50, None)
    always = claim("Porto", 100, 5)
    assert told(arrange([claim("Lisbon", 50), always])) == [("Lisbon", None, 5), ("Porto", 5, None)]


def test_a_stretch_in_the_past_interrupts_and_no_more() -> None:
    segments = arrange([claim("Lisbon", 50, 1), claim("Porto", 60, 20, 30)])
    assert told(segments) == [("Lisbon", 1, 20), ("Porto", 20, 30), ("Lisbon", 30, None)]
    # Without a begin it takes no time from what has one.
    assert told(arrange([claim("Lisbon", 50, 10), claim("Porto", 60, None, 60)])) == [
        ("Porto", None, 10),
        ("Lisbon", 10, None),
    ]


def test_a_denial_closes_and_opens_nothing_that_was_closed_before() -> None:
    assert told(arrange([claim("Porto", 10), claim("Lisbon", 20), claim("Lisbon", 30, denied=True)])) == [
        ("Porto", None, 20),
        ("Lisbon", 20, 30),
        ("not Lisbon", 30, None),
    ]
    # Of another value it closes nothing.
    assert told(arrange([claim("Porto", 10), claim("Lisbon", 30, denied=True)]))[0] == ("Porto", None, None)
    assert told(arrange([claim("Porto", 10), claim(ANY, 30, denied=True)]))[0] == ("Porto", None, 30)
    # What is true again closes the denial.
    again = arrange([claim("Porto", 10), claim("Porto", 20, denied=True), claim("Porto", 30)])
    assert told(again) == [("Porto", None, 20), ("Porto", 30, None), ("not Porto", 20, 30)]


def test_a_claim_that_was_corrected_is_kept_without_a_time() -> None:
    segments = arrange([claim("Porto", 50, 10), claim("Lisbon", 60, 10)])
    assert told(segments) == [("Porto", 10, 10), ("Lisbon", 10, None)]
    assert segments[0].next == 1
    assert not segments[0].holds
    assert told(arrange([claim("Porto", 50, 10)])) == [("Porto", 10, None)]


@st.composite
def _claims(draw: st.DrawFn) -> list[Claim]:
    made = []
    for number in range(draw(st.integers(0, 7))):
        said = draw(st.integers(0, 40))
        begin = draw(st.none() | st.integers(0, 45))
        end = draw(st.none() | st.integers(0, 50))
        if begin is not None and end is not None and end <= begin:
            end = begin + 1
        made.append(
            claim(
                draw(st.sampled_from(["Porto", "Lisbon", "Rome"])),
                said,
                begin,
                end,
                denied=draw(st.booleans()) and draw(st.booleans()),
                known=draw(st.sampled_from([said, min(said, begin or said)])),
                source=number + 1,
            )
        )
    return made


@given(_claims(), st.randoms(use_true_random=False))
def test_facts_of_a_slot_never_overlap_lose_no_claim_and_do_not_depend_on_the_order(
    claims: list[Claim], order: random.Random
) -> None:
    segments = arrange(claims)
    holding = [one for one in segments if not one.claims[0].denied and one.holds]
    for first, second in pairwise(holding):
        assert first.valid_to is not None
        assert second.valid_from is not None
        assert first.valid_to <= second.valid_from
    assert sum(one.valid_to is None for one in holding) <= 1
    assert {one.place for segment in segments for one in segment.claims} == {one.place for one in claims}
    for place, one in enumerate(segments):
        assert one.valid_from is None or one.valid_to is None or one.valid_from <= one.valid_to
        assert one.next != place
    shuffled = list(claims)
    order.shuffle(shuffled)
    assert arrange(shuffled) == segments
