"""Structured logs to stderr: one JSON object per line, with trace ids, without content."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, TextIO

import orjson
import structlog
from opentelemetry import trace

from personae_runtime.config import TelemetrySettings
from personae_runtime.errors import PersonaeError

CONTENT_KEYS: Final = frozenset(
    {
        # What people and personas say.
        "body", "card", "content", "definition", "delta", "exemplars", "history", "input", "memory_text", "message",
        "messages", "output", "prompt", "query", "quote", "reply", "reply_text", "said", "snippet", "speaker",
        "template", "text", "user_text", "utterance", "words",
        # What lets someone in.
        "api_key", "authorization", "dsn", "key", "master_key", "password", "secret", "token",
    }
)  # fmt: skip
"""Keys whose values never reach a log, at any depth."""


def setup_logging(settings: TelemetrySettings, stream: TextIO | None = None) -> None:
    """Send this process's logs, structlog's and the standard library's, to stderr.

    Lines carry `event`, `level`, `logger`, `timestamp` (ISO 8601, UTC), and within a
    span `trace_id` and `span_id` (hex). Libraries are heard from WARNING on.

    Args:
        settings: level, and JSON or the console format.
        stream: instead of stderr.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_trace_ids,
        add_error,
        drop_content,
    ]
    renderer: list[structlog.typing.Processor] = (
        [structlog.processors.JSONRenderer(serializer=_json)]
        if settings.log_format == "json"
        else [structlog.dev.ConsoleRenderer(colors=(stream or sys.stderr).isatty())]
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("personae_runtime", "personae_serve"):
        logging.getLogger(name).setLevel(settings.log_level)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def add_trace_ids(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the current span's ids, so that a log line leads to its trace."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
        event["span_id"] = trace.format_span_id(context.span_id)
    return event


def add_error(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace `exc_info` by the kind of the error and where it came from.

    The messages of our own errors never hold a person's words, so they are
    kept; those of others may (a failed statement quotes its row), so they are not.
    """
    info = event.pop("exc_info", None)
    if not info:
        return event
    if not isinstance(info, BaseException):  # True, or a triple
        info = (sys.exc_info() if info is True else info)[1]
    error: BaseException | None = info
    if error is None:
        return event
    event["error_type"] = type(error).__qualname__
    if isinstance(error, PersonaeError):
        event["error_reason"] = error.reason
        event["error_detail"] = error.message
    frames = []
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        frames.append(f"{code.co_filename}:{step.tb_lineno} {code.co_qualname}")
        step = step.tb_next
    event["error_frames"] = frames[-12:]
    return event


def drop_content(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Drop CONTENT_KEYS wherever they stand; `dropped` then names them, so that the mistake shows."""
    dropped: set[str] = set()
    for key in list(event):
        if key in CONTENT_KEYS:
            del event[key]
            dropped.add(key)
        elif isinstance(event[key], Mapping | list | tuple):
            event[key] = _without_content(event[key], dropped)
    if dropped:
        event["dropped"] = sorted(dropped)
    return event


def _without_content(value: Any, dropped: set[str]) -> Any:
    if isinstance(value, Mapping):
        dropped.update(key for key in value if key in CONTENT_KEYS)
        return {key: _without_content(item, dropped) for key, item in value.items() if key not in CONTENT_KEYS}
    if isinstance(value, list | tuple):
        return [_without_content(item, dropped) for item in value]
    return value


def _json(event: Any, **_: Any) -> str:
    # An object of ours could print the words it holds: only its type is shown.
    return orjson.dumps(
        event, default=lambda value: f"<{type(value).__qualname__}>", option=orjson.OPT_NON_STR_KEYS
    ).decode()
