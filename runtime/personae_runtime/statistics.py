"""Intervals and tests that reports state; 95 % unless said otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

Z95: Final = NormalDist().inv_cdf(0.975)
RESAMPLES: Final = 2000
FLIPS: Final = 10_000
SEED: Final = 7

Numbers = NDArray[np.float64]


def wilson(hits: int, of: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share; (0, 1) of nothing.

    E. B. Wilson, *Probable inference, the law of succession, and statistical inference*, JASA 22 (1927).

    Raises:
        ValueError: not 0 <= hits <= of.
    """
    if not 0 <= hits <= of:
        raise ValueError(f"{hits} of {of} is no share")
    if of == 0:
        return 0.0, 1.0
    share, spread = hits / of, z * z / of
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / of + spread / (4 * of))
    # At the ends the formula gives exactly 0 and 1, but for rounding.
    return (0.0 if hits == 0 else middle - half), (1.0 if hits == of else middle + half)


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean of paired differences.

    Attributes:
        pairs: how many.
        p: two-sided, by random sign flips: how often as large a mean would be seen if either side of a pair could
            as well be the other.
    """

    mean: float
    low: float
    high: float
    p: float
    pairs: int


def paired_difference(differences: Sequence[float] | Numbers) -> Difference:
    """The mean of differences within pairs, its percentile bootstrap interval over pairs and its sign-flip p.

    B. Efron and R. Tibshirani, *An Introduction to the Bootstrap* (1993), chapters 13 and 15. Seeded: the same pairs
    give the same figures. (k + 1) / (flips + 1) keeps the p-value valid (Phipson and Smyth 2010).

    Raises:
        ValueError: there is no pair.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError("no pairs")
    rng = np.random.default_rng(SEED)
    mean = float(values.mean())
    resampled = values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    signs = rng.choice((-1.0, 1.0), (FLIPS, len(values)))
    flipped = np.abs((signs * values).mean(axis=1))
    # A hair of tolerance: the same sum in another order may differ in its last bit.
    as_large = int((flipped >= abs(mean) - 1e-12).sum())
    return Difference(mean, float(low), float(high), (as_large + 1) / (FLIPS + 1), len(values))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for being several, in the order given.

    S. Holm, *A simple sequentially rejective multiple test procedure*, Scandinavian Journal of Statistics 6 (1979).
    """
    adjusted = [0.0] * len(p_values)
    so_far = 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = so_far
    return adjusted
