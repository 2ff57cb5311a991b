"""Metrics that servers send, received and read."""

from __future__ import annotations

import random

import pytest

from personae_runtime.config import TelemetrySettings
from personae_runtime.telemetry import names
from personae_runtime.telemetry.setup import setup_telemetry
from tests.load.otlp import MetricsReceiver, percentile_s


async def test_histograms_of_several_processes_add_up() -> None:
    async with MetricsReceiver() as receiver:
        settings = TelemetrySettings(otlp_endpoint=receiver.endpoint, metric_interval_s=0.1)
        servers = [setup_telemetry(settings) for _ in range(2)]
        for server in servers:
            for _ in range(99):
                server.delta_lateness.record(0.004)
            server.delta_lateness.record(0.2)
        for server in servers:
            await server.shutdown()  # which exports what is left
        bounds, counts = receiver.histogram(names.METRIC_DELTA_LATENESS)

    assert sum(counts) == 200
    assert 0.0025 < percentile_s(bounds, counts, 99) <= 0.005
    assert 0.15 < percentile_s(bounds, counts, 99.5) <= 0.25


def test_percentiles_interpolate_within_their_bucket() -> None:
    draw = random.Random(1)
    bounds = [0.1, 0.2, 0.3, 0.4, 0.5]
    counts = [0] * 6
    for _ in range(10_000):
        counts[min(5, int(draw.random() * 10))] += 1

    assert percentile_s(bounds, counts, 25) == pytest.approx(0.25, abs=0.01)
    assert percentile_s(bounds, counts, 99) == 0.5  # beyond the last bound nothing is known
    assert percentile_s([0.1], [0, 0], 99) == 0.0
