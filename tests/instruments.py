"""Every metric that the project has, as its instruments emit it."""

from __future__ import annotations

from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Metric

from personae_runtime.config import TelemetrySettings
from personae_runtime.telemetry.setup import Telemetry, setup_telemetry


def every_metric() -> tuple[Telemetry, list[Metric]]:
    """Telemetry each of whose instruments was used once, and what came of it."""
    reader = InMemoryMetricReader()
    telemetry = setup_telemetry(TelemetrySettings(), metric_readers=[reader])
    for instrument in vars(telemetry).values():
        for call in ("record", "add", "set"):
            if hasattr(instrument, call) and hasattr(instrument, "name"):
                getattr(instrument, call)(1)
    data = reader.get_metrics_data()
    assert data is not None
    return telemetry, [
        metric for resource in data.resource_metrics for scope in resource.scope_metrics for metric in scope.metrics
    ]
