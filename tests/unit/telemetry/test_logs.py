from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.config import TelemetrySettings
from personae_runtime.errors import EngineDead
from personae_runtime.telemetry.logs import CONTENT_KEYS, drop_content, setup_logging
from personae_runtime.telemetry.setup import Telemetry

SECRET = "my cat is called Ada"


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    setup_logging(TelemetrySettings(), stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object_with_level_logger_and_time(output: io.StringIO) -> None:
    structlog.get_logger("personae_runtime.x").info("turn_started", turn="t1")
    (line,) = lines(output)
    assert line["event"] == "turn_started"
    assert line["turn"] == "t1"
    assert line["level"] == "info"
    assert line["logger"] == "personae_runtime.x"
    assert line["timestamp"].endswith("Z")


def test_within_a_span_a_line_carries_its_ids(output: io.StringIO) -> None:
    with Telemetry.off().stage("s") as span:
        structlog.get_logger("personae_runtime.x").info("here")
    (line,) = lines(output)
    assert int(line["trace_id"], 16) == span.get_span_context().trace_id
    assert int(line["span_id"], 16) == span.get_span_context().span_id


def test_levels_are_ours_to_choose_and_libraries_speak_from_warning_on(output: io.StringIO) -> None:
    structlog.get_logger("personae_runtime.x").debug("hidden")
    logging.getLogger("somelibrary").info("hidden")
    logging.getLogger("somelibrary").warning("shown %s", "once")
    structlog.get_logger("personae_serve.x").info("shown %s", "twice")
    assert [line["event"] for line in lines(output)] == ["shown once", "shown twice"]


@pytest.mark.parametrize("key", sorted(CONTENT_KEYS))
def test_content_never_reaches_a_line(output: io.StringIO, key: str) -> None:
    log = structlog.get_logger("personae_runtime.x")
    log.info("e", **{key: SECRET})
    log.info("e", detail={"deep": [{key: SECRET}]})
    assert SECRET not in output.getvalue()
    assert [line["dropped"] for line in lines(output)] == [[key], [key]]


def test_a_foreign_error_leaves_its_kind_and_place_but_not_its_message(output: io.StringIO) -> None:
    try:
        raise ValueError(SECRET)
    except ValueError:
        structlog.get_logger("personae_runtime.x").exception("failed")
        logging.getLogger("library").exception("failed too")
    assert SECRET not in output.getvalue()
    for line in lines(output):
        assert line["error_type"] == "ValueError"
        assert "test_logs.py" in line["error_frames"][0]


def test_an_error_of_ours_leaves_reason_and_sentence(output: io.StringIO) -> None:
    structlog.get_logger("personae_runtime.x").error("failed", exc_info=EngineDead("the engine stopped"))
    (line,) = lines(output)
    assert line["error_reason"] == "ENGINE_UNAVAILABLE"
    assert line["error_detail"] == "the engine stopped"


def test_an_object_is_shown_by_type_only(output: io.StringIO) -> None:
    class Turn:
        def __repr__(self) -> str:
            return SECRET

    structlog.get_logger("personae_runtime.x").info("e", turn=Turn())
    assert SECRET not in output.getvalue()


keys = st.sampled_from(sorted(CONTENT_KEYS)) | st.text(max_size=5)
values = st.recursive(st.integers(), lambda v: st.lists(v) | st.dictionaries(keys, v), max_leaves=20)


@given(st.dictionaries(keys, values))
def test_no_content_key_survives_at_any_depth(event: dict[str, Any]) -> None:
    def all_keys(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from value
            for item in value.values():
                yield from all_keys(item)
        elif isinstance(value, list):
            for item in value:
                yield from all_keys(item)

    assert not CONTENT_KEYS & set(all_keys(drop_content(None, "", event)))
