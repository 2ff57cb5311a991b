"""The simulated day: nothing gets lost in it, and it shows what affinity is for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from personae_runtime.errors import InvalidArgument
from personae_serve.simulate import Progress, Report, Scenario, _Cache, simulate

SMALL = Scenario(sessions=1500, day_s=600, max_replicas=20, personas=100, downscale_delay_s=30, lost_share=0.25)


@pytest.fixture(scope="module")
def day() -> Report:
    return simulate(SMALL)


def check(report: Report, scenario: Scenario) -> None:
    """What holds whatever happens."""
    assert report.turns == report.served + report.rejected + report.interrupted + report.unfinished
    assert report.sessions_seen == scenario.sessions
    assert report.turns >= report.sessions_seen
    assert report.cached_tokens <= report.reusable_tokens <= report.prompt_tokens
    assert 0 <= report.replicas_min <= report.replicas_mean + 1e-9
    assert report.replicas_mean - 1e-9 <= report.replicas_max <= scenario.max_replicas
    assert 0 <= report.utilisation <= 1
    assert 0 <= report.wait_ms_p50 <= report.wait_ms_p95 <= report.wait_ms_p99 <= report.wait_ms_max
    assert 0 <= report.moved_share <= 1


def test_a_day_keeps_its_books(day: Report) -> None:
    check(day, SMALL)
    assert day.served > 0.95 * day.turns
    assert day.lost > 0


def test_the_same_seed_gives_the_same_day(day: Report) -> None:
    again = simulate(SMALL)
    again.elapsed_s = day.elapsed_s
    assert again == day
    other = simulate(replace(SMALL, seed=2))
    assert other.prompt_tokens != day.prompt_tokens


def test_affinity_serves_more_from_the_cache_than_chance(day: Report) -> None:
    chance = simulate(replace(SMALL, affinity=False))
    check(chance, replace(SMALL, affinity=False))
    assert day.hit_reusable > chance.hit_reusable + 0.1
    assert day.moved_share < chance.moved_share / 2


def test_replicas_follow_the_load_and_do_not_flap(day: Report) -> None:
    assert day.replicas_max > 1.5 * day.replicas_min
    assert day.turnarounds <= 2


def test_a_day_without_losses_moves_less() -> None:
    calm = simulate(replace(SMALL, lost_share=0.0))
    check(calm, SMALL)
    assert calm.lost == calm.interrupted == 0


def test_too_few_replicas_refuse_and_still_keep_their_books() -> None:
    scenario = replace(SMALL, max_replicas=2, max_waiting=2, lost_share=0.5)
    full = simulate(scenario)
    check(full, scenario)
    assert full.rejected > 0
    assert full.retries >= full.rejected


def test_a_model_of_no_replicas_starts_with_the_first_turn() -> None:
    scenario = replace(SMALL, sessions=5, min_replicas=0, swing=1.0, lost_share=0.0)
    cold = simulate(scenario)
    check(cold, scenario)
    assert cold.served > 0


def test_progress_is_told() -> None:
    seen: list[Progress] = []
    simulate(replace(SMALL, sessions=200), seen.append)
    assert len(seen) >= 15
    assert [one.turns for one in seen] == sorted(one.turns for one in seen)


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.builds(
        Scenario,
        sessions=st.integers(1, 120),
        turns=st.floats(1, 5),
        think_s=st.floats(0, 20),
        day_s=st.floats(10, 200),
        swing=st.floats(0, 1),
        personas=st.integers(1, 20),
        min_replicas=st.integers(0, 2),
        max_replicas=st.integers(2, 8),
        parallel=st.integers(1, 6),
        max_waiting=st.integers(0, 3),
        target_ongoing=st.floats(0.5, 6),
        upscale_delay_s=st.floats(0, 10),
        downscale_delay_s=st.floats(0, 30),
        start_s=st.floats(0, 30),
        cache_tokens=st.integers(1, 20_000),
        retries=st.integers(0, 2),
        lost_share=st.floats(0, 0.99),
        affinity=st.booleans(),
        seed=st.integers(0, 1000),
    )
)
def test_no_turn_is_lost_in_any_scenario(scenario: Scenario) -> None:
    check(simulate(scenario), scenario)


def test_the_cache_forgets_the_least_recently_used() -> None:
    cache = _Cache(10)
    cache.put(1, 4)
    cache.put(2, 4)
    assert cache.get(1) == 4
    cache.put(3, 4)
    assert [cache.get(key) for key in (1, 2, 3)] == [4, 0, 4]
    cache.put(1, 6)
    assert [cache.get(key) for key in (1, 3)] == [6, 4]
    cache.put(4, 11)
    assert [cache.get(key) for key in (1, 3, 4)] == [0, 0, 0]


@pytest.mark.parametrize(
    "wrong",
    [{"sessions": 0}, {"swing": 1.5}, {"lost_share": 1.0}, {"min_replicas": 5, "max_replicas": 4}, {"turns": 0}],
)
def test_a_scenario_that_can_not_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(wrong))):
        Scenario(**wrong)  # type: ignore[arg-type]
