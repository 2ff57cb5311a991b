"""What a whole turn tells an OTLP receiver: the tree of its spans, its metrics, and no words."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from personae_runtime.telemetry import names
from tests.e2e.conftest import StartHost
from tests.e2e.support import Pause, kinds, new_user, read_until

pytestmark = pytest.mark.asyncio(loop_scope="session")

CONVERSE = "personae.v1.SessionService/Converse"


class Receiver(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """An OTLP/gRPC collector that keeps what it gets."""

    def __init__(self) -> None:
        self.traces: list[trace_service_pb2.ExportTraceServiceRequest] = []
        self.exports: list[metrics_service_pb2.ExportMetricsServiceRequest] = []

    async def Export(self, request: Any, context: Any) -> Any:
        if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
            self.traces.append(request)
            return trace_service_pb2.ExportTraceServiceResponse()
        self.exports.append(request)
        return metrics_service_pb2.ExportMetricsServiceResponse()

    def spans(self) -> Iterator[Span]:
        """Every span."""
        for request in self.traces:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    yield from scope.spans

    def turns(self) -> list[tuple[Span, list[Span]]]:
        """Every Converse span with its trace's other spans, in the order in which they began."""
        spans = sorted(self.spans(), key=lambda span: (span.start_time_unix_nano, span.end_time_unix_nano))
        return [
            (root, [span for span in spans if span.trace_id == root.trace_id and span is not root])
            for root in spans
            if root.name == CONVERSE
        ]

    def metrics(self) -> dict[str, Metric]:
        """The newest export of each metric."""
        return {
            metric.name: metric
            for request in self.exports
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def everything(self) -> str:
        """All that was received, as text."""
        return "\n".join(json_format.MessageToJson(request) for request in [*self.traces, *self.exports])


@pytest_asyncio.fixture(loop_scope="session")
async def receiver() -> AsyncIterator[tuple[Receiver, str]]:
    kept, server = Receiver(), grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(kept, server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(kept, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield kept, f"http://127.0.0.1:{port}"
    await server.stop(None)


def attributes(span: Span) -> dict[str, Any]:
    return {entry.key: getattr(entry.value, str(entry.value.WhichOneof("value"))) for entry in span.attributes}


def points(metric: Metric) -> Any:
    return getattr(metric, str(metric.WhichOneof("data"))).data_points


def total(metric: Metric) -> float:
    """Sum of a counter, or number of a histogram's records."""
    return sum(point.count if metric.HasField("histogram") else point.as_int for point in points(metric))


TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRETS = ("quiet canary", "Kermit", "green Brompton", "loud canary", "You are Nadia")


async def test_a_whole_turn_is_a_tree_of_at_most_ten_spans_without_a_word_in_it(
    start_host: StartHost, receiver: tuple[Receiver, str]
) -> None:
    kept, endpoint = receiver
    hosted = await start_host(telemetry={"otlp_endpoint": endpoint, "metric_interval_s": 3600})
    api = hosted.api
    persona = await api.persona()
    user = new_user(persona)
    await api.remember(user, "My green Brompton is called Kermit.")
    await hosted.indexed()
    session = await api.session(persona, user)
    traced = hosted.caller(hosted.key, ("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"))
    hosted.engine.will_say("It sings like a loud canary. It is green. And it is yours.")
    events = await traced.say(session, "What sings like a quiet canary on my green Brompton?")
    assert "memory_citation" in kinds(events)
    await hosted.host.stop()

    [(root, children)] = kept.turns()
    assert root.trace_id.hex() == TRACE_ID
    assert root.parent_span_id.hex() == PARENT_ID
    assert root.kind == Span.SPAN_KIND_SERVER
    assert Counter(child.name for child in children) == Counter(names.STAGE_SPANS)
    assert 1 + len(children) <= 10
    assert all(child.parent_span_id == root.span_id for child in children)
    began = [child.name for child in children]
    for earlier, later in (
        (names.SPAN_ADMIT, names.SPAN_GATE_INPUT),
        (names.SPAN_RECALL, names.SPAN_GATE_MEMORY),
        (names.SPAN_GATE_INPUT, names.SPAN_GATE_MEMORY),
        (names.SPAN_GATE_MEMORY, names.SPAN_COMPOSE),
        (names.SPAN_COMPOSE, names.SPAN_GENERATE),
        (names.SPAN_GENERATE, names.SPAN_GATE_STREAM),
        (names.SPAN_GATE_STREAM, names.SPAN_RECORD),
        (names.SPAN_RECORD, names.SPAN_REMEMBER),
    ):
        assert began.index(earlier) < began.index(later)
    for span in (root, *children):
        assert span.end_time_unix_nano >= span.start_time_unix_nano
        assert not span.events
        assert span.status.code == 0

    told = attributes(root)
    assert told[names.ATTR_TENANT] == "demo"
    assert told[names.ATTR_CALLER] == "service"
    assert told[names.ATTR_RPC_RESPONSE_STATUS_CODE] == "OK"
    by_name = {child.name: attributes(child) for child in children}
    assert by_name[names.SPAN_RECALL][names.ATTR_RECALL_HITS] == 1
    assert by_name[names.SPAN_GATE_MEMORY][names.ATTR_RECALL_DROPPED] == 0
    assert by_name[names.SPAN_GENERATE][names.ATTR_GEN_AI_REQUEST_MODEL] == "scripted"
    assert by_name[names.SPAN_GENERATE][names.ATTR_GEN_AI_USAGE_OUTPUT_TOKENS] > 0
    assert by_name[names.SPAN_RECORD][names.ATTR_RELEASED_CHARS] > 0
    known = {value for key, value in vars(names).items() if key.startswith("ATTR_")}
    for span in (root, *children):
        assert attributes(span).keys() <= known
    everything = kept.everything()
    for secret in (*SECRETS, hosted.key, user.rsplit("/", 1)[1]):
        assert secret not in everything


async def test_a_turn_moves_the_metrics_that_it_should(start_host: StartHost, receiver: tuple[Receiver, str]) -> None:
    kept, endpoint = receiver
    hosted = await start_host(telemetry={"otlp_endpoint": endpoint, "metric_interval_s": 3600})
    api = hosted.api
    persona = await api.persona()
    user = new_user(persona)
    await api.remember(user, "My green Brompton is called Kermit.")
    await hosted.indexed()
    session = await api.session(persona, user)
    await api.say(session, "What is my green Brompton called?", "t1")
    hosted.engine.will_say("It is fine. Of course I'm a real person, and more.")
    events = await api.say(session, "Tell me about the shop.", "t2")
    await api.attached(session, events[0].event_id, "t2")
    pause = Pause()
    hosted.engine.will_say("Something was said. And ", pause, "more.")
    call = api.converse(session, "Tell me more.", "t3")
    await read_until(call, "text_delta")
    await api.cancel(session, "t3")
    await hosted.host.stop()

    metrics = kept.metrics()
    assert metrics.keys() <= {value for key, value in vars(names).items() if key.startswith("METRIC_")}
    assert total(metrics[names.METRIC_TURNS]) == 3
    outcomes = {
        entry.value.string_value
        for point in points(metrics[names.METRIC_TURNS])
        for entry in point.attributes
        if entry.key in (names.ATTR_TURN_OUTCOME, names.ATTR_REASON)
    }
    assert outcomes >= {"turn_completed", "turn_interrupted", "CANCELLED"}
    for name in (names.METRIC_ACTIVE_TURNS, names.METRIC_ACTIVE_VIEWS):
        assert total(metrics[name]) == 0
    assert total(metrics[names.METRIC_VIEWS]) == 4
    assert total(metrics[names.METRIC_STREAM_RESUMES]) == 1
    for name in (
        names.METRIC_OWN_WORK,
        names.METRIC_TIME_TO_FIRST_TOKEN,
        names.METRIC_FIRST_RELEASE,
        names.METRIC_RECALL_DURATION,
    ):
        assert total(metrics[name]) == 3, name
    assert total(metrics[names.METRIC_TIME_TO_FIRST_EVENT]) == 4
    assert total(metrics[names.METRIC_GATE_ACTIONS]) >= 4
    for name in (
        names.METRIC_RPC_DURATION,
        names.METRIC_DELTA_LATENESS,
        names.METRIC_ACCEPT_WAIT,
        names.METRIC_EVENT_LOOP_LAG,
        names.METRIC_COMMIT_BATCH,
        names.METRIC_COMMIT_DURATION,
        names.METRIC_INPUT_TOKENS,
        names.METRIC_OUTPUT_TOKENS,
    ):
        assert total(metrics[name]) > 0, name
    assert names.METRIC_QUEUE_DEPTH in metrics


async def test_without_a_parent_the_turn_is_a_trace_of_its_own_and_errors_are_marked_by_reason(
    start_host: StartHost, receiver: tuple[Receiver, str]
) -> None:
    kept, endpoint = receiver
    hosted = await start_host(telemetry={"otlp_endpoint": endpoint, "metric_interval_s": 3600})
    api = hosted.api
    session = await api.session(await api.persona())
    await api.say(session, "A quiet canary.", "t1")
    await asyncio.gather(api.say(session, "A loud canary.", "t1"), return_exceptions=True)
    await hosted.host.stop()
    (first, _), (second, admitted) = kept.turns()
    assert not first.parent_span_id
    assert first.trace_id != second.trace_id
    assert attributes(second)[names.ATTR_ERROR_TYPE] == "TURN_ID_REUSED"
    assert attributes(second)[names.ATTR_RPC_RESPONSE_STATUS_CODE] == "ALREADY_EXISTS"
    assert [child.name for child in admitted] == [names.SPAN_ADMIT]
    for secret in SECRETS:
        assert secret not in kept.everything()
