"""A plot of a report, for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.load.measure import Histogram

_CURVES = ("admission", "first_text", "lateness", "gap", "duration")
_SHARES = (0, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.95, 99.99)


def plot(report: dict[str, Any], path: Path) -> None:
    """Percentiles on the left, the run's seconds on the right; PNG, SVG or PDF by the name."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5), layout="constrained")
    places = range(len(_SHARES))
    for name in _CURVES:
        encoded = report["histograms"].get(name)
        if encoded is not None:
            histogram = Histogram()
            histogram.add(encoded)
            left.plot(places, [max(0.01, histogram.percentile_ms(share)) for share in _SHARES], marker=".", label=name)
    left.set_yscale("log")
    left.set_xticks(list(places), [f"{share:g}" for share in _SHARES])
    left.set_xlabel("percentile")
    left.set_ylabel("milliseconds, from when it was due")
    left.grid(alpha=0.3)
    left.legend()
    seconds = [line["second"] for line in report["timeline"]]
    for name in ("admission_p50_ms", "admission_p99_ms", "lateness_p99_ms"):
        values = [line[name] for line in report["timeline"]]
        if any(value is not None for value in values):
            right.plot(seconds, [float("nan") if value is None else value for value in values], label=name)
    right.set_yscale("log")
    right.set_xlabel("second of the run")
    right.set_ylabel("milliseconds")
    right.grid(alpha=0.3)
    right.legend(loc="upper left")
    counts = right.twinx()
    counts.bar(seconds, [line["due"] for line in report["timeline"]], color="tab:gray", alpha=0.2, width=1.0)
    counts.bar(seconds, [line["failed"] for line in report["timeline"]], color="tab:red", alpha=0.6, width=1.0)
    counts.set_ylabel("turns due (grey) and failed (red) per second")
    figure.suptitle(
        f"{report['driver']}, {report['mode']}: {report['conversations']} conversations, {report['measured']} turns"
        f" measured, {report['failures']} failures, {report['tokens_per_s']:g} tokens/s"
    )
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
