"""Intervals and tests against scipy and known values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from personae_runtime.statistics import holm, paired_difference, wilson


@given(st.integers(0, 200).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
def test_wilson_is_that_of_scipy(counts: tuple[int, int]) -> None:
    hits, of = counts
    if of == 0:
        assert wilson(hits, of) == (0.0, 1.0)
        return
    expected = stats.binomtest(hits, of).proportion_ci(0.95, "wilson")
    assert wilson(hits, of) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("counts", [(-1, 3), (4, 3)])
def test_what_is_no_share_has_no_interval(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="no share"):
        wilson(*counts)


def test_a_paired_bootstrap_is_as_scipys() -> None:
    values = np.random.default_rng(3).normal(0.3, 1.0, 80)
    found = paired_difference(values)
    expected = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=9999, rng=5).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.02)


def test_the_sign_flip_p_is_as_scipys() -> None:
    # So few that scipy counts all 1,024 flips.
    values = np.random.default_rng(4).normal(0.6, 1.0, 10)
    expected = stats.permutation_test(
        (values, np.zeros_like(values)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
    ).pvalue
    assert paired_difference(values).p == pytest.approx(expected, abs=0.015)


def test_pairs_that_do_not_differ_have_p_1_and_an_interval_of_nothing() -> None:
    found = paired_difference([0.0] * 10)
    assert (found.mean, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_no_pairs_are_no_difference() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        paired_difference([])


def test_holm_by_hand() -> None:
    # 3 x .01, 2 x .02 and 1 x .04, none below the one before.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_keeps_the_order_and_lies_between_the_raw_and_bonferronis(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for raw, found in zip(p_values, adjusted, strict=True):
        assert raw <= found + 1e-12
        assert found <= min(1.0, raw * len(p_values)) + 1e-12 or found == max(adjusted)
    ranked = [adjusted[at] for at in sorted(range(len(p_values)), key=p_values.__getitem__)]
    assert ranked == sorted(ranked)
