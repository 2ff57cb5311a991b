"""Readers of chat histories."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.memory.history import BadHistory, HistoryItem, parse_jsonl, parse_locomo, read_history

GOOD = {"thread": "t", "time": "2024-05-08T13:56:00+02:00", "speaker": "Ann", "text": "Hello!", "id": "x1"}


def lines(*rows: Any) -> bytes:
    return b"\n".join(json.dumps(row).encode() for row in rows)


def test_reads_a_line_as_one_message() -> None:
    history = parse_jsonl(lines(GOOD, {"thread": "t", "speaker": "Bo", "text": "Hi.", "time": None}))
    assert history.items == (
        HistoryItem("t", 0, "Ann", "Hello!", datetime(2024, 5, 8, 11, 56, tzinfo=UTC), "x1"),
        HistoryItem("t", 1, "Bo", "Hi.", None, ""),
    )
    assert history.format == "jsonl"
    assert history.speakers == ("Ann", "Bo")


def test_ordinals_count_within_each_thread_whatever_the_order_of_lines() -> None:
    rows = [{"thread": name, "speaker": "A", "text": "x"} for name in "abab"]
    history = parse_jsonl(lines(*rows))
    assert [(item.thread, item.ordinal) for item in history.items] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert history.conversations == ("a", "b")
    assert [item.thread for item in parse_jsonl(lines(*rows), select="b").items] == ["b", "b"]


def test_blank_lines_a_byte_order_mark_and_crlf_are_fine() -> None:
    assert len(parse_jsonl(b"\xef\xbb\xbf" + lines(GOOD) + b"\r\n\r\n  \n").items) == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "line 2: not JSON"),
        (b"[1]", "line 2: expected an object .* got a list"),
        (b"\xff", "line 2: byte 1 is not UTF-8"),
        (b"[" * 60_000, "line 2: not JSON"),
        (b'"' + b"x" * 70_000 + b'"', "line 2: longer than 65536 bytes"),
        (b'{"a": NaN}', "line 2: not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "line 2"),
        (lines({**GOOD, "id": "x2", "mood": 1}), "line 2: 1 unknown field"),
        (lines({"speaker": "A", "text": "x"}), "line 2, field thread: expected a string, got nothing"),
        (lines({**GOOD, "id": "x2", "text": 5}), "line 2, field text: expected a string, got a number"),
        (lines({**GOOD, "id": "x2", "text": " "}), "line 2, field text: expected some text"),
        (lines({**GOOD, "id": "x2", "text": "x" * 8001}), "line 2, field text: 8001 characters, at most 8000"),
        (lines({**GOOD, "id": "x2", "text": "\0"}), "line 2, field text: holds a NUL"),
        (lines({**GOOD, "id": "x2", "text": "\ud800"}), "line 2, field text: holds a NUL or half a surrogate"),
        (lines({**GOOD, "id": "x2", "time": "yesterday"}), "line 2, field time: expected RFC 3339"),
        (lines({**GOOD, "id": "x2", "time": "2024-05-08T13:56:00"}), "line 2, field time: expected RFC 3339"),
        (lines({**GOOD, "id": "x2", "time": "0001-01-01T00:00:00+14:00"}), "line 2, field time: expected RFC 3339"),
        (lines({**GOOD, "id": "x2", "time": 1}), "line 2, field time: expected RFC 3339"),
        (lines(GOOD), "line 2, field id: already used in line 1"),
    ],
)
def test_a_bad_line_fails_the_whole_file_and_says_where_and_why(line: bytes, says: str) -> None:
    with pytest.raises(BadHistory, match=says) as caught:
        parse_jsonl(lines(GOOD) + b"\n" + line)
    assert caught.value.reason == "HISTORY_INVALID"


def test_an_empty_file_is_no_history() -> None:
    with pytest.raises(BadHistory, match="no messages"):
        parse_jsonl(b"\n\n")


def test_an_error_does_not_quote_the_message() -> None:
    with pytest.raises(BadHistory) as caught:
        parse_jsonl(lines({**GOOD, "text": "my secret", "time": "my other secret"}))
    assert "secret" not in caught.value.message


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=80).filter(
    str.strip
)
TIMES = st.datetimes(
    min_value=datetime(1970, 1, 2),
    max_value=datetime(2100, 1, 1),
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=-7))]),
)


@given(st.lists(st.tuples(TEXT, TEXT, TEXT, st.none() | TIMES), min_size=1, max_size=10), st.booleans())
def test_what_was_written_is_what_is_read(rows: list[tuple[str, str, str, datetime | None]], ascii_only: bool) -> None:
    written = [
        {
            "thread": thread,
            "speaker": speaker,
            "text": text,
            "time": None if time is None else time.isoformat(),
            "id": f"{i}",
        }
        for i, (thread, speaker, text, time) in enumerate(rows)
    ]
    data = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in written).encode()
    read = parse_jsonl(data).items
    assert [(item.thread, item.speaker, item.text, item.occurred_at) for item in read] == rows
    assert [item.external_id for item in read] == [str(i) for i in range(len(rows))]
    for thread in {item.thread for item in read}:
        of_thread = [item.ordinal for item in read if item.thread == thread]
        assert of_thread == list(range(len(of_thread)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*GOOD, "x"]), inner, max_size=6),
    max_leaves=8,
)


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_give_a_history_or_the_one_error(data: bytes) -> None:
    try:
        history = parse_jsonl(data)
    except BadHistory:
        return
    assert history.items


LOCOMO: dict[str, Any] = {
    "sample_id": "conv-1",
    "conversation": {
        "speaker_a": "Ann",
        "session_10": [{"speaker": "Ann", "dia_id": "D10:1", "text": "Later."}],
        "session_2_date_time": "1:56 pm on 8 May, 2023",
        "session_2": [
            {"speaker": "Ann", "dia_id": "D2:1", "text": "Look!", "blip_caption": "a dog"},
            {"speaker": "Bo", "dia_id": "D2:2", "text": "", "blip_caption": "a cat"},
        ],
        "session_1_date_time": "12:05 am on 1 January, 2023",
        "session_1": [{"speaker": "Bo", "dia_id": "D1:1", "text": "Hi."}],
        "session_3_date_time": "9:00 am on 9 May, 2023",
    },
}


def test_reads_locomo_sessions_in_the_order_of_their_numbers() -> None:
    history = parse_locomo(json.dumps([LOCOMO]).encode())
    assert history.items == (
        HistoryItem("conv-1/session_1", 0, "Bo", "Hi.", datetime(2023, 1, 1, 0, 5, tzinfo=UTC), "D1:1"),
        HistoryItem(
            "conv-1/session_2",
            0,
            "Ann",
            "Look! [shares a photo: a dog]",
            datetime(2023, 5, 8, 13, 56, tzinfo=UTC),
            "D2:1",
        ),
        HistoryItem(
            "conv-1/session_2", 1, "Bo", "[shares a photo: a cat]", datetime(2023, 5, 8, 13, 56, tzinfo=UTC), "D2:2"
        ),
        HistoryItem("conv-1/session_10", 0, "Ann", "Later.", None, "D10:1"),
    )


def test_several_conversations_need_a_choice() -> None:
    data = json.dumps([LOCOMO, {**LOCOMO, "sample_id": "conv-2"}]).encode()
    with pytest.raises(BadHistory, match=re.escape("conv-1, conv-2")):
        parse_locomo(data)
    with pytest.raises(BadHistory, match=re.escape("conv-1, conv-2")):
        parse_locomo(data, select="conv-3")
    chosen = parse_locomo(data, select="conv-2")
    assert chosen.items[0].thread == "conv-2/session_1"
    assert chosen.conversations == ("conv-1", "conv-2")


@pytest.mark.parametrize(
    "change",
    [
        {"session_1": {}},
        {"session_1": [1]},
        {"session_1": [{"speaker": "A", "text": ""}]},
        {"session_1": [{"text": "x"}]},
        {"session_1_date_time": "yesterday"},
        {"session_1_date_time": "13:00 pm on 8 May, 2023"},
        {"session_1_date_time": "1:00 pm on 31 June, 2023"},
        {"session_1_date_time": 5},
    ],
)
def test_a_bad_locomo_conversation_gives_the_typed_error(change: dict[str, Any]) -> None:
    sample = {**LOCOMO, "conversation": {**LOCOMO["conversation"], **change}}
    with pytest.raises(BadHistory, match="session_1"):
        parse_locomo(json.dumps(sample).encode())


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"5", b"[1]", b"{}", lines(GOOD), b'{"sample_id": "x", "conversation": {}}']
)
def test_other_json_gives_the_typed_error(data: bytes) -> None:
    with pytest.raises(BadHistory):
        parse_locomo(data)


def test_the_format_goes_by_the_file_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(LOCOMO))
    (tmp_path / "a.jsonl").write_bytes(lines(GOOD))
    assert read_history(tmp_path / "a.json").format == "locomo"
    assert read_history(tmp_path / "a.jsonl").format == "jsonl"
    with pytest.raises(BadHistory, match="can't be read"):
        read_history(tmp_path / "absent.jsonl")
    with pytest.raises(BadHistory, match="can't be read"):
        read_history(tmp_path)


@pytest.mark.eval
def test_reads_the_locomo_development_file(eval_data: Path) -> None:
    history = read_history(eval_data / "locomo_dev.json", select="conv-26")
    assert len(history.items) == 419
    assert history.speakers == ("Caroline", "Melanie")
    assert history.items[2].external_id == "D1:3"
    assert history.items[0].occurred_at == datetime(2023, 5, 8, 13, 56, tzinfo=UTC)
    assert len(history.conversations) == 5
