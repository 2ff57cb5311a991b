from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from personae_runtime.config import TelemetrySettings
from personae_runtime.errors import EngineDead
from personae_runtime.telemetry import names
from personae_runtime.telemetry.setup import (
    LoopLagMonitor,
    Telemetry,
    extract_context,
    inject_context,
    setup_telemetry,
)

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{}"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def recording(spans: InMemorySpanExporter, ratio: float = 1.0) -> Telemetry:
    settings = TelemetrySettings(trace_sample_ratio=ratio)
    return setup_telemetry(settings, version="1.2.3", span_processors=[SimpleSpanProcessor(spans)])


def test_without_a_receiver_spans_are_not_recorded_but_have_ids() -> None:
    with Telemetry.off().stage(names.SPAN_ADMIT) as span:
        assert not span.is_recording()
        assert span.get_span_context().is_valid


def test_stages_nest_under_the_callers_trace(spans: InMemorySpanExporter) -> None:
    telemetry = recording(spans, ratio=0.0)
    context = extract_context([("traceparent", PARENT.format("01"))])
    with telemetry.stage("root", context), telemetry.stage(names.SPAN_RECALL):
        pass
    child, root = spans.get_finished_spans()
    assert child.parent is not None
    assert root.parent is not None
    assert child.parent.span_id == root.context.span_id
    assert trace.format_trace_id(root.context.trace_id) == "0af7651916cd43dd8448eb211c80319c"
    assert root.resource.attributes[names.ATTR_SERVICE_VERSION] == "1.2.3"


def test_a_caller_that_does_not_sample_is_followed(spans: InMemorySpanExporter) -> None:
    telemetry = recording(spans)
    with telemetry.stage("root", extract_context([("traceparent", PARENT.format("00"))])):
        pass
    assert spans.get_finished_spans() == ()


@pytest.mark.parametrize(("ratio", "kept"), [(0.0, 0), (1.0, 1)])
def test_a_trace_that_begins_here_is_sampled_by_ratio(spans: InMemorySpanExporter, ratio: float, kept: int) -> None:
    with recording(spans, ratio).stage("root"):
        pass
    assert len(spans.get_finished_spans()) == kept


def test_a_failed_stage_names_the_kind_of_error_and_never_its_message(spans: InMemorySpanExporter) -> None:
    telemetry = recording(spans)

    def fail(error: BaseException) -> None:
        with telemetry.stage("s"):
            raise error

    for error in (ValueError("my secret"), EngineDead("my secret"), asyncio.CancelledError("my secret")):
        with pytest.raises(type(error)):
            fail(error)
    failed, dead, cancelled = spans.get_finished_spans()
    assert failed.attributes == {names.ATTR_ERROR_TYPE: "ValueError"}
    assert dead.attributes == {names.ATTR_ERROR_TYPE: "ENGINE_UNAVAILABLE"}
    assert cancelled.status.is_unset
    assert "secret" not in "".join(span.to_json() for span in spans.get_finished_spans())


def test_trace_context_survives_a_round_trip(spans: InMemorySpanExporter) -> None:
    telemetry = recording(spans)
    with telemetry.stage("here") as span:
        headers = inject_context()
    remote = trace.get_current_span(extract_context(headers.items())).get_span_context()
    assert remote.trace_id == span.get_span_context().trace_id
    assert remote.is_remote


@given(st.lists(st.tuples(st.sampled_from(["traceparent", "tracestate", "Traceparent", "x"]), st.text() | st.binary())))
def test_malformed_metadata_is_no_trace(metadata: list[tuple[str, str | bytes]]) -> None:
    extract_context(metadata)


async def test_shutdown_exports_what_is_left_and_may_be_called_twice() -> None:
    telemetry = setup_telemetry(TelemetrySettings(), metric_readers=[InMemoryMetricReader()])
    await telemetry.shutdown()
    await telemetry.shutdown()


async def test_the_lag_monitor_records_how_late_it_wakes() -> None:
    reader = InMemoryMetricReader()
    telemetry = setup_telemetry(TelemetrySettings(), metric_readers=[reader])
    recorded = asyncio.Event()

    class Watched:
        def record(self, amount: float) -> None:
            telemetry.event_loop_lag.record(amount)
            recorded.set()

    async with LoopLagMonitor(Watched(), interval_s=0.001):  # type: ignore[arg-type]
        await recorded.wait()
    data = reader.get_metrics_data()
    assert data is not None
    point = data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points[0]
    assert isinstance(point, HistogramDataPoint)
    assert point.count >= 1
    assert point.min >= 0
    await telemetry.shutdown()
