"""One object that carries the tracer and every instrument."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Self

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import Histogram, Meter, MeterProvider, NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from personae_runtime.config import TelemetrySettings
from personae_runtime.errors import PersonaeError
from personae_runtime.telemetry import names

SCOPE: Final = "personae"
"""Instrumentation scope of every span and metric."""

_EXPORT_TIMEOUT_S: Final = 3.0

# Seconds. The conventions' own advice for RPC durations, finer at the low end, where a turn's own work lies.
# The goals are among them: 0.04 s of own work, 0.15 s of lateness, 0.3 s to a first event.
_SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.1),
    *(0.15, 0.25, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
_ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Telemetry:
    """Tracer and instruments of one process.

    Attributes named after a histogram take seconds, unless they say otherwise;
    counters take counts. Without an endpoint, processor or reader, spans are
    not recorded (they still carry ids, for the logs) and metrics are dropped.

    Attributes:
        rpc_duration: histogram; a whole RPC.
        time_to_first_event: histogram; from the request to a stream's first
            event. Overload shows here first.
        own_work: histogram; from the call to the prompt reaching the engine.
        time_to_first_token: histogram; from the call to the engine's first delta.
        first_release: histogram; from the call to the first released text.
        delta_lateness: histogram; how much later than the delta before it, and
            than the engine's pace, a delta left.
        accept_wait: histogram; how long a call waited to be accepted, sampled.
        event_loop_lag: histogram; how late the event loop woke a sleeper.
        turns: counter of ended turns by outcome and reason.
        active_turns: up-down counter.
        views: counter of streams opened.
        active_views: up-down counter.
        stream_resumes: counter of Attach calls that continue a stream; over
            `views` it is the resume rate.
        dropped_views: counter of streams dropped because they lagged behind.
        forwarded: counter of calls forwarded to the gateway that runs their turn, by method.
        gate_actions: counter by stage, action and category.
        gate_failures: counter of scorers that failed or timed out, each of which blocked.
        shadow_decisions: counter of what candidate bundles would have decided, by stage and whether that differs.
        bundles_refused: gauge of tenants whose published bundle does not load here.
        kill_switches: gauge of those in force, by kind, as this process knows them.
        abuse_refusals: counter of turns refused by a limit or a breaker, by reason.
        abuse_breakers: gauge of circuit breakers that are not closed.
        reviews_open, reviews_overdue: gauges of the ledger's, the same from every gateway.
        recall_duration: histogram.
        recall_fallbacks: counter of recalls that went on without the dense arm.
        recall_failures: counter of recalls that found nothing because they failed.
        queue_depth: gauge of requests waiting for the engine.
        input_tokens, cached_input_tokens, output_tokens: counters; the second
            over the first is the prefix-cache hit rate.
        commit_batch: histogram of rows per group commit.
        commit_duration: histogram.
        index_pending: gauge of memory changes that the index has not taken up.
        audit_entries: counter of entries that were given their place in an audit log.
        audit_checkpoint_age: gauge of how old, in seconds, the oldest entry is that no checkpoint covers.
    """

    def __init__(self, tracer_provider: TracerProvider, meter_provider: MeterProvider) -> None:
        self._tracer_provider = tracer_provider
        self._meter_provider = meter_provider
        self._stopped = False
        self.tracer: trace.Tracer = tracer_provider.get_tracer(SCOPE)
        meter: Meter = meter_provider.get_meter(SCOPE)

        def seconds(name: str, description: str) -> Histogram:
            return meter.create_histogram(
                name, unit="s", description=description, explicit_bucket_boundaries_advisory=_SECONDS
            )

        self.rpc_duration = seconds(names.METRIC_RPC_DURATION, "Duration of an RPC.")
        self.time_to_first_event = seconds(names.METRIC_TIME_TO_FIRST_EVENT, "Request to first event.")
        self.own_work = seconds(names.METRIC_OWN_WORK, "Call to prompt at the engine.")
        self.time_to_first_token = seconds(names.METRIC_TIME_TO_FIRST_TOKEN, "Call to first engine delta.")
        self.first_release = seconds(names.METRIC_FIRST_RELEASE, "Call to first released text.")
        self.delta_lateness = seconds(names.METRIC_DELTA_LATENESS, "How late a delta left.")
        self.accept_wait = seconds(names.METRIC_ACCEPT_WAIT, "How long a call waited to be accepted.")
        self.event_loop_lag = seconds(names.METRIC_EVENT_LOOP_LAG, "How late the event loop woke a sleeper.")
        self.turns = meter.create_counter(names.METRIC_TURNS, "{turn}", "Turns that ended.")
        self.active_turns = meter.create_up_down_counter(names.METRIC_ACTIVE_TURNS, "{turn}", "Turns that run.")
        self.views = meter.create_counter(names.METRIC_VIEWS, "{view}", "Streams opened.")
        self.active_views = meter.create_up_down_counter(names.METRIC_ACTIVE_VIEWS, "{view}", "Streams open.")
        self.stream_resumes = meter.create_counter(names.METRIC_STREAM_RESUMES, "{view}", "Streams that continue one.")
        self.dropped_views = meter.create_counter(names.METRIC_DROPPED_VIEWS, "{view}", "Streams too slow to keep.")
        self.forwarded = meter.create_counter(names.METRIC_FORWARDED, "{call}", "Calls sent to another gateway.")
        self.gate_actions = meter.create_counter(names.METRIC_GATE_ACTIONS, "{decision}", "Policy decisions.")
        self.gate_failures = meter.create_counter(names.METRIC_GATE_FAILURES, "{failure}", "Scorers that failed.")
        self.shadow_decisions = meter.create_counter(
            names.METRIC_SHADOW_DECISIONS, "{decision}", "What candidate bundles would have decided."
        )
        self.bundles_refused = meter.create_gauge(
            names.METRIC_BUNDLES_REFUSED, "{tenant}", "Tenants whose published bundle does not load here."
        )
        self.kill_switches = meter.create_gauge(names.METRIC_KILL_SWITCHES, "{switch}", "Kill switches in force.")
        self.abuse_refusals = meter.create_counter(names.METRIC_ABUSE_REFUSALS, "{turn}", "Turns refused by limits.")
        self.abuse_breakers = meter.create_gauge(names.METRIC_ABUSE_BREAKERS, "{breaker}", "Breakers not closed.")
        self.reviews_open = meter.create_gauge(names.METRIC_REVIEWS_OPEN, "{review}", "Reviews that wait.")
        self.reviews_overdue = meter.create_gauge(names.METRIC_REVIEWS_OVERDUE, "{review}", "Reviews past their time.")
        self.recall_duration = seconds(names.METRIC_RECALL_DURATION, "Duration of a recall.")
        self.recall_fallbacks = meter.create_counter(names.METRIC_RECALL_FALLBACKS, "{recall}", "Lexical-only recalls.")
        self.recall_failures = meter.create_counter(names.METRIC_RECALL_FAILURES, "{recall}", "Recalls that failed.")
        self.queue_depth = meter.create_gauge(names.METRIC_QUEUE_DEPTH, "{request}", "Requests waiting for the engine.")
        self.input_tokens = meter.create_counter(names.METRIC_INPUT_TOKENS, "{token}", "Prompt tokens.")
        self.cached_input_tokens = meter.create_counter(
            names.METRIC_CACHED_INPUT_TOKENS, "{token}", "Prompt tokens served from the prefix cache."
        )
        self.output_tokens = meter.create_counter(names.METRIC_OUTPUT_TOKENS, "{token}", "Generated tokens.")
        self.commit_batch = meter.create_histogram(
            names.METRIC_COMMIT_BATCH, "{row}", "Rows per commit.", explicit_bucket_boundaries_advisory=_ROWS
        )
        self.commit_duration = seconds(names.METRIC_COMMIT_DURATION, "Duration of a group commit.")
        self.index_pending = meter.create_gauge(names.METRIC_INDEX_PENDING, "{change}", "Changes not yet indexed.")
        self.audit_entries = meter.create_counter(names.METRIC_AUDIT_ENTRIES, "{entry}", "Entries of the audit log.")
        self.audit_checkpoint_age = meter.create_gauge(
            names.METRIC_AUDIT_CHECKPOINT_AGE, "s", "Age of the oldest audit entry that no checkpoint covers."
        )

    @classmethod
    def off(cls) -> Telemetry:
        """Telemetry that keeps nothing."""
        return setup_telemetry(TelemetrySettings())

    @contextmanager
    def stage(self, name: str, context: Context | None = None) -> Iterator[trace.Span]:
        """A span around one stage, current within it.

        An exception sets the status and `error.type`, and nothing else: its
        message and traceback could hold a person's words.
        """
        with self.tracer.start_as_current_span(
            name, context=context, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except BaseException as error:
                fail_span(span, error)
                raise

    async def shutdown(self) -> None:
        """Export what is left, for at most a few seconds, and stop. Safe to call twice."""
        if self._stopped:
            return
        self._stopped = True
        # Both block while they flush.
        flushes = [asyncio.to_thread(self._tracer_provider.shutdown)]
        if isinstance(self._meter_provider, SdkMeterProvider):
            flushes.append(asyncio.to_thread(self._meter_provider.shutdown, _EXPORT_TIMEOUT_S * 1000))
        await asyncio.gather(*flushes)


def fail_span(span: trace.Span, error: BaseException) -> None:
    """Mark a span as failed by the kind of the error alone, without its message."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return  # a turn that was called off did not fail
    kind = error.reason if isinstance(error, PersonaeError) else type(error).__qualname__
    span.set_attribute(names.ATTR_ERROR_TYPE, kind)
    span.set_status(trace.StatusCode.ERROR)


def setup_telemetry(
    settings: TelemetrySettings,
    *,
    version: str = "",
    span_processors: Sequence[SpanProcessor] = (),
    metric_readers: Sequence[MetricReader] = (),
) -> Telemetry:
    """Build providers from settings; nothing global is set.

    Args:
        settings: with an `otlp_endpoint`, spans are exported in batches and
            metrics every `metric_interval_s` over OTLP/gRPC. A root span is
            kept with probability `trace_sample_ratio`; a child follows its
            parent, also a remote one.
        version: `service.version`.
        span_processors: more receivers of spans, such as a test's or a demo's.
        metric_readers: more readers of metrics.
    """
    resource = Resource.create(
        {
            names.ATTR_SERVICE_NAME: settings.service_name,
            names.ATTR_SERVICE_INSTANCE_ID: str(uuid.uuid4()),
            **({names.ATTR_SERVICE_VERSION: version} if version else {}),
        }
    )
    processors = list(span_processors)
    readers = list(metric_readers)
    if settings.otlp_endpoint is not None:
        # Here and not above: these import grpc.
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        insecure = not settings.otlp_endpoint.startswith("https://")
        processors.append(
            BatchSpanProcessor(
                OTLPSpanExporter(endpoint=settings.otlp_endpoint, insecure=insecure, timeout=_EXPORT_TIMEOUT_S)
            )
        )
        readers.append(
            PeriodicExportingMetricReader(
                OTLPMetricExporter(endpoint=settings.otlp_endpoint, insecure=insecure, timeout=_EXPORT_TIMEOUT_S),
                export_interval_millis=settings.metric_interval_s * 1000,
                export_timeout_millis=_EXPORT_TIMEOUT_S * 1000,
            )
        )
    sampler = ParentBased(TraceIdRatioBased(settings.trace_sample_ratio)) if processors else ALWAYS_OFF
    tracer_provider = TracerProvider(
        sampler=sampler,
        resource=resource,
        shutdown_on_exit=False,
        span_limits=SpanLimits(max_span_attribute_length=256),
    )
    for processor in processors:
        tracer_provider.add_span_processor(processor)
    meter_provider: MeterProvider = (
        SdkMeterProvider(readers, resource=resource, shutdown_on_exit=False) if readers else NoOpMeterProvider()
    )
    return Telemetry(tracer_provider, meter_provider)


# ── W3C trace context ────────────────────────────────────────────────────────

_propagator: Final = TraceContextTextMapPropagator()


def extract_context(metadata: Iterable[tuple[str, str | bytes]]) -> Context:
    """The caller's trace context from gRPC metadata; an empty one if there is none or it is malformed."""
    carrier = {
        key.lower(): value for key, value in metadata if isinstance(value, str) and key.lower() in _propagator.fields
    }
    return _propagator.extract(carrier, context=Context())


def inject_context(context: Context | None = None) -> dict[str, str]:
    """W3C headers of a context, by default the current one; empty outside of a trace."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, context=context)
    return carrier


# ── event loop ───────────────────────────────────────────────────────────────


class Sampler:
    """Runs `sample` in a task of its own for as long as it is entered: an async context manager.

    Args:
        name: of the task.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.sample(), name=self._name)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def sample(self) -> None:
        """Take samples until cancelled."""
        raise NotImplementedError


class LoopLagMonitor(Sampler):
    """Measures, `interval_s` apart, how late the event loop wakes a sleeper.

    A single-threaded server is late with everything by that much.
    """

    def __init__(self, histogram: Histogram, interval_s: float = 0.25) -> None:
        super().__init__("event-loop-lag")
        self._histogram = histogram
        self._interval_s = interval_s

    async def sample(self) -> None:
        """See Sampler."""
        # The first at once, so that even a host that lives briefly has one.
        wait = 0.0
        while True:
            due = time.monotonic() + wait
            await asyncio.sleep(wait)
            self._histogram.record(max(0.0, time.monotonic() - due))
            wait = self._interval_s
