"""Percentiles, coordinated omission and exactly-once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.load.drivers import Talk
from tests.load.measure import ExactlyOnce, Histogram, Measures, Outcome
from tests.load.runner import run
from tests.load.scenario import Conversation, PlannedTurn, Scenario, burst


def test_percentiles_are_those_of_the_values_to_three_digits() -> None:
    histogram = Histogram()
    for milliseconds in range(1, 10_001):
        histogram.record(milliseconds / 1000)

    summary = histogram.summary()

    assert summary["count"] == 10_000
    assert summary["p50"] == pytest.approx(5_000, rel=1e-3)
    assert summary["p99"] == pytest.approx(9_900, rel=1e-3)
    assert summary["p99_9"] == pytest.approx(9_990, rel=1e-3)
    assert summary["max"] == pytest.approx(10_000, rel=1e-3)
    assert summary["mean"] == pytest.approx(5_000, rel=1e-2)


def test_values_out_of_range_count_at_its_ends() -> None:
    histogram = Histogram()
    histogram.record(-1.0)
    histogram.record(86_400.0)

    assert histogram.count == 2
    assert histogram.percentile_ms(100) == pytest.approx(3_600_000, rel=1e-3)


def test_histograms_of_several_generators_add_up() -> None:
    one, other = Histogram(), Histogram()
    one.record(0.010)
    other.record(0.030)
    one.add(other.encoded)

    assert one.count == 2
    assert one.percentile_ms(100) == pytest.approx(30, rel=1e-3)


def test_an_empty_histogram_has_no_percentiles() -> None:
    assert Histogram().summary() == {"count": 0}


def test_turns_of_the_warm_up_are_not_measured_but_their_failures_count() -> None:
    measures = Measures(begun=100.0, warmup_s=10.0)
    measures.add(Outcome(105.0, 105.0, 105.1, 105.5, end="completed"))
    measures.add(Outcome(106.0, 106.0, failure="UNAVAILABLE/DRAINING"))
    measures.add(Outcome(111.0, 111.0, 111.2, 111.5, end="completed"))

    report = measures.report(20.0)

    assert report["admission_ms"]["count"] == 1
    assert report["failures"] == 1
    assert report["failures_by_reason"] == {"UNAVAILABLE/DRAINING": 1}
    assert report["turns"] == {"completed": 2, "failed": 1}


def test_violations_count_as_failures() -> None:
    measures = Measures(begun=0.0)
    measures.add(Outcome(0.0, 0.0, 0.1, 0.5, end="completed", violations=["DUPLICATE", "LOST"]))

    assert measures.report(1.0)["failures"] == 2


class Stall:
    """A server that answers at once, but for its first turn."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self.later: list[Callable[[], None]] | None = None

    async def prepare(self, conversations: Sequence[Conversation]) -> list[Talk]:
        return [Talk(plan) for plan in conversations]

    async def turn(self, talk: Talk, turn: PlannedTurn, outcome: Outcome) -> None:
        clock = asyncio.get_running_loop().time
        outcome.sent = clock()
        if turn.number == 1:
            await asyncio.sleep(self._stall_s)
        outcome.first_event = outcome.ended = clock()
        outcome.end = "completed"

    async def rest(self, talk: Talk) -> None: ...

    async def wake(self, talk: Talk) -> str:
        return ""

    async def close(self) -> None: ...


async def test_turns_that_a_stall_held_up_count_from_when_they_were_due() -> None:
    # One conversation with a turn about every 30 ms, and a first one that takes 600 ms.
    scenario = Scenario(think_median_s=0.02, think_sigma=0.0, reply_tokens=1, tokens_per_s=100)
    (once,) = burst(scenario, 1)
    planned = Conversation(scenario, 0, once.tenant, once.persona, once.user, 0.0, 21, 0.02)

    report = await run(Stall(0.6), [planned], duration_s=10.0)

    # Those due within the stall wait for its end: their times spread evenly up to it.
    assert report["admission_ms"]["count"] == 21
    assert report["admission_ms"]["p50"] > 200
    # Counted from when they were sent at last, all but one were served at once.
    assert report["admission_uncorrected_ms"]["p50"] < report["admission_ms"]["p50"] / 2
    assert report["failures"] == 0


async def test_turns_that_are_not_over_in_time_have_failed() -> None:
    report = await run(Stall(60.0), burst(Scenario(), 3), duration_s=0.0 + 0.1, drain_s=0.1)

    assert report["failures_by_reason"] == {"TIMED_OUT": 3}


async def test_a_turn_that_waits_for_a_place_counts_even_if_the_clock_that_wakes_it_is_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: sleep(max(0.0, seconds - 0.05)))

    report = await run(Stall(0.0), burst(Scenario(), 3), duration_s=1.0, at_once=3)

    assert report["measured"] == 3


ids = st.lists(st.integers(1, 10_000), unique=True, min_size=1).map(sorted)


@given(ids)
def test_rising_ids_are_fine_whatever_they_skip(event_ids: list[int]) -> None:
    check = ExactlyOnce()
    check.begin()

    assert [check.see(event_id, "text_delta", "x") for event_id in event_ids] == [None] * len(event_ids)
    assert check.delivered(len(event_ids)) is None
    assert check.compare((event_id, b"") for event_id in event_ids) == []


@given(ids, st.data())
def test_an_event_seen_twice_is_a_duplicate(event_ids: list[int], data: st.DataObject) -> None:
    check = ExactlyOnce()
    check.begin()
    for event_id in event_ids:
        check.see(event_id, "text_delta")

    assert check.see(data.draw(st.sampled_from(event_ids)), "text_delta") == "DUPLICATE"


@given(ids, st.data())
def test_an_event_that_was_lost_is_found_by_reading_again(event_ids: list[int], data: st.DataObject) -> None:
    lost = data.draw(st.sampled_from(event_ids))
    check = ExactlyOnce()
    check.begin()
    for event_id in event_ids:
        if event_id != lost:
            check.see(event_id, "text_delta", "x")

    assert check.compare((event_id, b"") for event_id in event_ids) == ["LOST"]
    assert check.delivered(len(event_ids)) == "DELIVERED_CHARS"


def test_what_else_goes_wrong_is_told_apart() -> None:
    check = ExactlyOnce()
    check.begin()
    check.see(5, "text_delta", frame=b"five")
    assert check.see(4, "text_delta", frame=b"four") == "OUT_OF_ORDER"
    assert check.see(7, "gap") == "GAP"
    assert sorted(check.compare([(5, b"other"), (6, b"")])) == ["CHANGED", "INVENTED", "LOST"]


def test_ids_go_on_rising_from_turn_to_turn() -> None:
    check = ExactlyOnce()
    check.begin()
    check.see(5, "text_delta")
    check.begin()

    assert check.see(5, "text_delta") == "OUT_OF_ORDER"
    assert check.see(6, "text_delta") is None
