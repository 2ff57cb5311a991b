"""When a gateway counts as overloaded, by a clock that the test sets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae_serve.gateway.load import FEWEST_ADMISSIONS, PROBE_PERIOD_S, STANDING_S, WINDOW_S, StreamLoad

MAX_WAIT_S = 0.5


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def load(clock: Clock) -> StreamLoad:
    return StreamLoad(MAX_WAIT_S, clock)


def probe(load: StreamLoad, clock: Clock, seconds: float) -> None:
    load.probe_sent()
    clock.now += seconds
    load.probe_accepted()
    clock.now += PROBE_PERIOD_S


def test_a_burst_is_not_an_overload(load: StreamLoad, clock: Clock) -> None:
    probe(load, clock, 0.01)
    load.probe_sent()
    clock.now += MAX_WAIT_S + STANDING_S - 0.01
    assert not load.overloaded()
    load.probe_accepted()
    probe(load, clock, MAX_WAIT_S)
    clock.now += 10 * STANDING_S
    assert not load.overloaded()


def test_waits_that_stand_are_until_one_is_short(load: StreamLoad, clock: Clock) -> None:
    for _ in range(2):
        probe(load, clock, MAX_WAIT_S + 0.1)
    assert load.overloaded()
    probe(load, clock, MAX_WAIT_S + 0.1)
    assert load.overloaded()
    probe(load, clock, 0.01)
    assert not load.overloaded()


def test_a_probe_that_is_not_accepted_tells_before_it_is(load: StreamLoad, clock: Clock) -> None:
    load.probe_sent()
    clock.now += MAX_WAIT_S + STANDING_S
    assert load.overloaded()
    assert load.accept_wait_s() == pytest.approx(MAX_WAIT_S + STANDING_S)


@given(st.lists(st.floats(0.0, 5.0), min_size=1, max_size=40))
def test_overload_is_exactly_a_run_of_long_waits(waits: list[float]) -> None:
    """Against the rule told again: since when has every wait been too long?"""
    clock = Clock()
    load = StreamLoad(MAX_WAIT_S, clock)
    since: float | None = None
    for wait in waits:
        begun = clock.now
        probe(load, clock, wait)
        if clock.now - PROBE_PERIOD_S - begun <= MAX_WAIT_S:
            since = None
        elif since is None:
            since = begun + MAX_WAIT_S
        assert load.overloaded() == (since is not None and clock.now - since >= STANDING_S)


def test_a_ledger_that_all_wait_for_is_an_overload_until_one_need_not_or_nobody_comes(
    load: StreamLoad, clock: Clock
) -> None:
    for _ in range(FEWEST_ADMISSIONS - 1):
        load.admitted(MAX_WAIT_S + 1)
    assert not load.overloaded()
    load.admitted(MAX_WAIT_S + 1)
    assert load.overloaded()
    clock.now += STANDING_S + 0.01
    assert not load.overloaded()
    for _ in range(FEWEST_ADMISSIONS):
        load.admitted(MAX_WAIT_S + 1)
    load.admitted(MAX_WAIT_S)
    assert not load.overloaded()


def test_admission_is_the_wait_to_be_accepted_and_that_for_the_first_event(load: StreamLoad, clock: Clock) -> None:
    assert load.admission_p95_ms() == 0
    for seconds in (0.1, 0.2, 0.3):
        load.admitted(seconds)
    probe(load, clock, 0.05)
    assert load.admission_p95_ms() == pytest.approx(250)
    clock.now += WINDOW_S + 0.1
    assert load.admission_p95_ms() == pytest.approx(50)
