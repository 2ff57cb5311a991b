"""What the benchmarks say of their pairs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def interval(values: Sequence[float]) -> dict[str, float]:
    """Median of pairs, least and greatest."""
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
        "pairs": len(values),
    }
