"""Takes the metrics that servers send over OTLP/gRPC, and reads percentiles from their histograms."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc


class MetricsReceiver(metrics_service_pb2_grpc.MetricsServiceServicer):
    """An OTLP/gRPC endpoint on loopback; an asynchronous context manager.

    Attributes:
        endpoint: what `telemetry.otlp_endpoint` is to be, once inside.
    """

    def __init__(self) -> None:
        self._server = grpc.aio.server()
        add: Any = metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server
        add(self, self._server)
        self._latest: dict[tuple[str, str], Any] = {}
        self._heard: dict[str, int] = {}
        self._news = asyncio.Condition()
        self.endpoint = ""

    async def __aenter__(self) -> MetricsReceiver:
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.stop(0)

    async def Export(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Keep the newest of every histogram; they are cumulative."""
        async with self._news:
            for resource in request.resource_metrics:
                names = {item.key: item.value.string_value for item in resource.resource.attributes}
                instance = names.get("service.instance.id", "")
                self._heard[instance] = self._heard.get(instance, 0) + 1
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        if metric.WhichOneof("data") == "histogram":
                            self._latest[instance, metric.name] = metric.histogram
            self._news.notify_all()
        return metrics_service_pb2.ExportMetricsServiceResponse()

    async def settle(self, timeout_s: float = 30.0) -> None:
        """Return when every process heard of so far has reported twice more: what it knew by now is here."""
        async with self._news, asyncio.timeout(timeout_s):
            goal = {instance: times + 2 for instance, times in self._heard.items()}
            await self._news.wait_for(lambda: all(self._heard[one] >= times for one, times in goal.items()))

    def histogram(self, name: str) -> tuple[list[float], list[int]]:
        """Upper bounds (seconds) and counts of a metric, over all processes; there is one count more."""
        bounds: list[float] = []
        counts: list[int] = []
        for (_, metric), histogram in self._latest.items():
            if metric != name:
                continue
            for point in histogram.data_points:
                if not counts:
                    bounds, counts = list(point.explicit_bounds), [0] * len(point.bucket_counts)
                counts = [one + other for one, other in zip(counts, point.bucket_counts, strict=True)]
        return bounds, counts


def percentile_s(bounds: Sequence[float], counts: Sequence[int], percentile: float) -> float:
    """A percentile of a bucketed histogram, seconds, interpolated within its bucket as Prometheus does.

    0 if it is empty; in the last bucket, which has no bound, its lower one.
    """
    rank, below = sum(counts) * percentile / 100, 0
    for index, count in enumerate(counts):
        if count and below + count >= rank:
            lower = bounds[index - 1] if index else 0.0
            if index == len(bounds):
                return lower
            return lower + (bounds[index] - lower) * (rank - below) / count
        below += count
    return 0.0
