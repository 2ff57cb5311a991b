"""What Personae's metrics are called in Prometheus."""

from __future__ import annotations

import re

from opentelemetry.sdk.metrics.export import Histogram, Sum

from personae_runtime.telemetry import names
from tests.instruments import every_metric

_UNITS = {"s": "seconds", "By": "bytes", "ms": "milliseconds", "1": "ratio"}

LABELS = {value.replace(".", "_") for key, value in vars(names).items() if key.startswith("ATTR_")} | {
    *("le", "instance", "job")
}
"""Labels that a query may use."""


def prometheus_names() -> set[str]:
    """Every series name, as the collector's Prometheus exporter spells it.

    https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/: dots become underscores, the
    unit is appended unless it is an annotation in braces, and `_total` to monotonic sums.
    """
    found: set[str] = set()
    for metric in every_metric()[1]:
        name = re.sub(r"[^a-zA-Z0-9_:]", "_", metric.name)
        unit = re.sub(r"\{.*\}", "", metric.unit or "")
        if unit:
            name += f"_{_UNITS[unit]}"
        if isinstance(metric.data, Histogram):
            found |= {f"{name}_{part}" for part in ("bucket", "sum", "count")}
        elif isinstance(metric.data, Sum) and metric.data.is_monotonic:
            found.add(f"{name}_total")
        else:
            found.add(name)
    return found


_FUNCTIONS = {
    *("absent", "histogram_quantile", "increase", "max", "min_over_time", "rate", "sum"),
    *("by", "or", "unless", "offset", "and", "without"),
}


def names_in(query: str) -> tuple[set[str], set[str]]:
    """The metrics and the labels that a PromQL query uses."""
    labels = set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', query))
    for group in re.findall(r"\b(?:by|without)\s*\(([^)]*)\)", query):
        labels |= {word.strip() for word in group.split(",") if word.strip()}
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b(?:by|without)\s*\([^)]*\)|offset\s+\w+', " ", query)
    words = set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", bare))
    return words - _FUNCTIONS, labels
