"""What was seen, and what it amounts to: histograms, the exactly-once check and the report."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hdrh.histogram import HdrHistogram

_MAX_US = 3_600_000_000
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.5, 99.9)


class Histogram:
    """Durations in an HdrHistogram: 1 µs to 1 h, three significant digits.

    https://github.com/HdrHistogram/HdrHistogram
    """

    def __init__(self) -> None:
        self._hdr = HdrHistogram(1, _MAX_US, 3)

    def record(self, seconds: float) -> None:
        """Count a duration; what is below zero counts as zero, what is above an hour as an hour."""
        self._hdr.record_value(min(_MAX_US, max(0, round(seconds * 1e6))))

    def add(self, encoded: str) -> None:
        """Add another's `encoded` counts, as of another generator's report."""
        self._hdr.decode_and_add(encoded)

    @property
    def count(self) -> int:
        """Durations recorded."""
        return int(self._hdr.get_total_count())

    def percentile_ms(self, percentile: float) -> float:
        """Milliseconds below which `percentile` percent are; 0 if nothing was recorded."""
        return self._hdr.get_value_at_percentile(percentile) / 1000 if self.count else 0.0

    @property
    def encoded(self) -> str:
        """The counts in HdrHistogram's own compressed form, base64."""
        return str(self._hdr.encode().decode())

    def summary(self) -> dict[str, float]:
        """Count, mean, percentiles and greatest, milliseconds."""
        if not self.count:
            return {"count": 0}
        figures = {f"p{percentile:g}".replace(".", "_"): self.percentile_ms(percentile) for percentile in PERCENTILES}
        figures = {"mean": self._hdr.get_mean_value() / 1000} | figures | {"max": self._hdr.get_max_value() / 1000}
        return {"count": self.count} | {name: round(value, 3) for name, value in figures.items()}


class ExactlyOnce:
    """Checks that a session's events are seen once and in order, over all of its streams.

    Event ids rise strictly and may skip, so that ids alone can't tell of a loss:
    `compare` does, with a second reading of the turn from its start, and so does
    `delivered`, with the count that an interrupted turn ends with.
    """

    def __init__(self) -> None:
        self._last = 0
        self._turn: dict[int, bytes] = {}
        self._chars = 0

    def begin(self) -> None:
        """A new turn begins."""
        self._turn, self._chars = {}, 0

    def see(self, event_id: int, kind: str, text: str = "", frame: bytes = b"") -> str | None:
        """Take one event; what is wrong with it, or None."""
        if event_id in self._turn:
            return "DUPLICATE"
        if event_id <= self._last:
            return "OUT_OF_ORDER"
        self._last = event_id
        self._turn[event_id] = frame
        self._chars += len(text)
        return "GAP" if kind == "gap" else None

    def delivered(self, chars: int) -> str | None:
        """Compare with the characters that the server says were delivered."""
        return None if chars == self._chars else "DELIVERED_CHARS"

    def compare(self, events: Iterable[tuple[int, bytes]]) -> list[str]:
        """Compare the turn with another reading of it: lost, invented or changed events."""
        other = dict(events)
        wrong = ["LOST"] * len(other.keys() - self._turn.keys())
        wrong += ["INVENTED"] * len(self._turn.keys() - other.keys())
        wrong += ["CHANGED" for event_id in other.keys() & self._turn.keys() if other[event_id] != self._turn[event_id]]
        return wrong


@dataclass(slots=True)
class Outcome:
    """One turn as the client saw it; times are seconds on `time.perf_counter`.

    Attributes:
        due, sent: when it should have been and was sent.
        first_event, ended: arrivals of the first and the last event; 0.0 if there was none.
        texts: arrival, characters and lateness (None where the server stamps nothing) of each text.
        end: how it ended, such as "completed", "cancelled" or "refused"; "" is a failure.
        failure: code and reason, such as "RESOURCE_EXHAUSTED/TOO_MANY_TURNS".
        violations: of exactly-once.
        resumes: times that it was attached again, on purpose.
        reattached: times that it was because the server went away.
        cancel_s: from asking to cancel to the turn's last event.
        server: seconds that the server reports: queue, ttft, first_release.
    """

    due: float
    sent: float = 0.0
    first_event: float = 0.0
    ended: float = 0.0
    texts: list[tuple[float, int, float | None]] = field(default_factory=list)
    end: str = ""
    failure: str = ""
    violations: list[str] = field(default_factory=list)
    resumes: int = 0
    reattached: int = 0
    cancel_s: float | None = None
    messages: int = 0
    output_tokens: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    server: dict[str, float] = field(default_factory=dict)
    text: str = ""


HISTOGRAMS = (
    "admission",
    "admission_uncorrected",
    "first_text",
    "lateness",
    "gap",
    "duration",
    "cancel",
    "server_queue",
    "server_ttft",
    "server_first_release",
    "client_lag",
)


class Measures:
    """Adds outcomes up.

    Args:
        begun: start of the run, on `time.perf_counter`.
        warmup_s: turns due before this are not counted, but for their failures.
    """

    def __init__(self, begun: float, warmup_s: float = 0.0) -> None:
        self._begun = begun
        self._warmup_s = warmup_s
        self.histograms = {name: Histogram() for name in HISTOGRAMS}
        self.ends: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.violations: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self._seconds: dict[int, dict[str, Any]] = {}
        self._first_text = self._last_text = 0.0
        self._busy_s = 0.0
        self._first_due = self._last_end = 0.0
        self._rates: list[float] = []

    def lag(self, seconds: float) -> None:
        """How late the generator itself woke to send."""
        self.histograms["client_lag"].record(seconds)

    def fail(self, what: str) -> None:
        """A failure outside of a turn, such as of an idle stream."""
        self.failures[what] += 1

    def add(self, outcome: Outcome) -> None:
        """Count a turn."""
        self.counts["turns"] += 1
        second = self._second(outcome.due)
        second["due"] += 1
        if outcome.failure:
            self.failures[outcome.failure] += 1
            second["failed"] += 1
        self.violations.update(outcome.violations)
        for name in ("resumes", "reattached"):
            self.counts[name] += getattr(outcome, name)
        self.ends[outcome.end or "failed"] += 1
        if outcome.due - self._begun < self._warmup_s:
            return
        record = self.histograms
        self.counts["measured"] += 1
        if outcome.first_event:
            record["admission"].record(outcome.first_event - outcome.due)
            record["admission_uncorrected"].record(outcome.first_event - outcome.sent)
            second["admission"].append(outcome.first_event - outcome.due)
        if outcome.cancel_s is not None:
            record["cancel"].record(outcome.cancel_s)
        for name, seconds in outcome.server.items():
            record[f"server_{name}"].record(seconds)
        self._first_due = min(self._first_due or outcome.due, outcome.due)
        self._last_end = max(self._last_end, outcome.ended)
        self.counts["messages"] += outcome.messages
        self.counts["output_tokens"] += outcome.output_tokens
        self.counts["input_tokens"] += outcome.input_tokens
        self.counts["cached_input_tokens"] += outcome.cached_input_tokens
        if not outcome.texts:
            return
        self.counts["text_messages"] += len(outcome.texts)
        self.counts["chars"] += sum(chars for _, chars, _ in outcome.texts)
        first, last = outcome.texts[0][0], outcome.texts[-1][0]
        record["first_text"].record(first - outcome.due)
        for (before, _, _), (after, _, _) in zip(outcome.texts, outcome.texts[1:], strict=False):
            record["gap"].record(after - before)
        for _, _, lateness in outcome.texts:
            if lateness is not None:
                record["lateness"].record(lateness)
                second["lateness"].append(lateness)
        record["duration"].record(outcome.ended - outcome.due)
        self._busy_s += outcome.ended - outcome.sent
        if last > first:
            self._rates.append(outcome.output_tokens / (last - first))
        self._first_text = min(self._first_text or first, first)
        self._last_text = max(self._last_text, last)

    @property
    def failed(self) -> int:
        """Failures and violations."""
        return self.failures.total() + self.violations.total()

    def report(self, duration_s: float) -> dict[str, Any]:
        """The figures of a run that sent for `duration_s` seconds; see docs/benchmarks.md."""
        window = self._last_text - self._first_text
        tokens, texts = self.counts["output_tokens"], self.counts["text_messages"]
        return {
            "failures": self.failed,
            "failures_by_reason": dict(self.failures),
            "violations": dict(self.violations),
            "turns": dict(self.ends),
            **{name: self.counts[name] for name in ("measured", "resumes", "reattached")},
            **{f"{name}_ms": histogram.summary() for name, histogram in self.histograms.items()},
            **{name: self.counts[name] for name in ("messages", "text_messages", "chars")},
            **{name: self.counts[name] for name in ("output_tokens", "input_tokens", "cached_input_tokens")},
            # From the first turn's due time to the last one's end, and from the first text to the last.
            "span_s": round(self._last_end - self._first_due, 3),
            "window_s": round(window, 3),
            "tokens_per_s": round(tokens / window, 1) if window else 0.0,
            "messages_per_s": round(texts / window, 1) if window else 0.0,
            "tokens_per_message": round(tokens / texts, 2) if texts else 0.0,
            "stream_tokens_per_s": round(statistics.median(self._rates), 2) if self._rates else 0.0,
            "mean_streaming": round(self._busy_s / max(1e-9, duration_s - self._warmup_s), 1),
            "timeline": [self._line(second) for second in sorted(self._seconds)],
            "histograms": {name: histogram.encoded for name, histogram in self.histograms.items() if histogram.count},
        }

    def _second(self, at: float) -> dict[str, Any]:
        key = max(0, int(at - self._begun))
        found = self._seconds.get(key)
        if found is None:
            found = self._seconds[key] = {"due": 0, "failed": 0, "admission": [], "lateness": []}
        return found

    def _line(self, second: int) -> dict[str, Any]:
        seen = self._seconds[second]
        return {
            "second": second,
            "due": seen["due"],
            "failed": seen["failed"],
            "admission_p50_ms": _quantile_ms(seen["admission"], 0.5),
            "admission_p99_ms": _quantile_ms(seen["admission"], 0.99),
            "lateness_p99_ms": _quantile_ms(seen["lateness"], 0.99),
        }


def _quantile_ms(values: Sequence[float], share: float) -> float | None:
    if not values:
        return None
    return round(sorted(values)[min(len(values) - 1, int(share * len(values)))] * 1000, 3)
