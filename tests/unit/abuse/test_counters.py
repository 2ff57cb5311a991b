from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from personae_runtime.abuse.counters import BUCKET_S, Counters

TIMES = st.lists(st.floats(1_000, 1_300), max_size=40)


@given(TIMES, st.floats(1_000, 1_400), st.sampled_from([10.0, 60.0]))
@settings(max_examples=50)
def test_a_total_is_that_of_the_window_but_for_one_bucket(times: list[float], now: float, window_s: float) -> None:
    counters = Counters(60)
    for at in sorted(times):
        counters.add("k", at)
    asked = max([now, *times])
    total = counters.total("k", asked, window_s)
    assert sum(at > asked - window_s + BUCKET_S for at in times) <= total
    assert total <= sum(at > asked - window_s - BUCKET_S for at in times)
    assert counters.total("other", asked, window_s) == 0


@given(TIMES.filter(bool), st.integers(1, 10))
@settings(max_examples=50)
def test_after_the_wait_there_is_room_and_before_it_there_is_none(times: list[float], limit: int) -> None:
    counters = Counters(60)
    for at in sorted(times):
        counters.add("k", at)
    now = max(times)
    wait = counters.wait_s("k", now, 60, limit)
    assert (wait > 0) is (counters.total("k", now, 60) >= limit)
    assert wait <= 60
    if wait:
        assert counters.total("k", now + wait + 0.01, 60) < limit
        assert counters.total("k", now + wait - 0.01, 60) >= limit


@given(TIMES, st.integers(0, 2**32), st.integers(1, 4))
@settings(max_examples=30)
def test_processes_that_hear_of_each_other_count_the_same_whatever_the_order(
    times: list[float], seed: int, count: int
) -> None:
    draw = random.Random(seed)
    alone, processes = Counters(60), [Counters(60) for _ in range(count)]
    for at in sorted(times):
        alone.add("k", at)
        draw.choice(processes).add("k", at)
    reports = [(process, process.take_unreported()) for process in processes]
    for process in processes:
        for other, report in draw.sample(reports, len(reports)):
            if other is not process:
                process.hear(draw.sample(report, len(report)))
        assert process.total("k", 1_300, 60) == alone.total("k", 1_300, 60)
        assert process.take_unreported() == []


def test_what_is_forgotten_is_not_counted() -> None:
    counters = Counters(60)
    counters.add("k", 1_000)
    counters.forget("k")
    assert counters.total("k", 1_000, 60) == 0
