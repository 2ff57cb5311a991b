"""Chat histories from files. `docs/import.md` states the formats.

A file is read whole and checked whole before anything is returned: a bad one
imports nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from personae_runtime.errors import InvalidArgument

MAX_FILE_BYTES: Final = 256 << 20
MAX_ITEMS: Final = 1_000_000
MAX_LINE_BYTES: Final = 64 << 10
MAX_TEXT_CHARS: Final = 8_000
MAX_THREAD_CHARS: Final = 120
MAX_SPEAKER_CHARS: Final = 120
MAX_ID_CHARS: Final = 200
"""The last four are the API's limits on a Memory."""
MAX_DOCUMENT_CHARS: Final = 500_000
MAX_TITLE_CHARS: Final = 300
MAX_URI_CHARS: Final = 2_000
"""The API's limits on a Document."""

HistoryFormat = Literal["jsonl", "locomo"]


class BadHistory(InvalidArgument):
    """A history file breaks a rule. The error says where and what was expected, and quotes no message."""

    reason = "HISTORY_INVALID"


@dataclass(frozen=True, slots=True)
class HistoryItem:
    """One message.

    Attributes:
        thread: the conversation; `ordinal` counts from 0 within it.
        speaker: may be empty.
        text: 1 to MAX_TEXT_CHARS characters, not only white space.
        occurred_at: aware, UTC; None if the file does not say.
        external_id: the file's own id; may be empty.
    """

    thread: str
    ordinal: int
    speaker: str
    text: str
    occurred_at: datetime | None
    external_id: str


@dataclass(frozen=True, slots=True)
class History:
    """A whole file, or the one conversation selected from it.

    Attributes:
        items: in file order.
        conversations: names of all conversations in the file, selected or not;
            for JSON Lines its threads.
        speakers: distinct names in `items`, in order of appearance.
    """

    format: HistoryFormat
    items: tuple[HistoryItem, ...]
    conversations: tuple[str, ...]

    @property
    def speakers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(item.speaker for item in self.items if item.speaker))


def read_history(path: Path, *, select: str | None = None) -> History:
    """Read a chat history; blocking.

    Args:
        path: JSON Lines, or LoCoMo JSON (a name that ends in `.json`).
        select: LoCoMo: the conversation's `sample_id`, needed if there are
            several. JSON Lines: a thread; None is all.

    Raises:
        BadHistory: the file can't be read, breaks a rule or a limit, or has no
            conversation of that name.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise BadHistory(f"{path} has {size} bytes, at most {MAX_FILE_BYTES} are allowed: split it")
        data = path.read_bytes()
    except OSError as error:
        raise BadHistory(f"{path} can't be read: {error.strerror}") from error
    name = str(path)
    if path.suffix.lower() == ".json":
        return parse_locomo(data, name=name, select=select)
    return parse_jsonl(data, name=name, select=select)


@dataclass(frozen=True, slots=True)
class OwnWords:
    """A document or post of a persona; `published_at` is aware, UTC, or None if the file does not say."""

    text: str
    title: str
    uri: str
    published_at: datetime | None
    external_id: str


def read_documents(path: Path) -> tuple[OwnWords, ...]:
    """Read what a persona has said and written; blocking.

    Args:
        path: JSON Lines (a name that ends in `.jsonl`) with a post per line; any other file is one document of UTF-8
            text, entitled with its name.

    Raises:
        BadHistory: the file can't be read, or breaks a rule or a limit.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise BadHistory(f"{path} has {size} bytes, at most {MAX_FILE_BYTES} are allowed: split it")
        data = path.read_bytes()
    except OSError as error:
        raise BadHistory(f"{path} can't be read: {error.strerror}") from error
    name = str(path)
    if path.suffix.lower() != ".jsonl":
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadHistory(f"{name}: byte {error.start + 1} is not UTF-8") from error
        row = {"text": text}
        return (_own_words({**row, "title": path.stem, "id": path.name}, name),)
    found = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        row = _json(line, where)
        if not isinstance(row, dict):
            raise BadHistory(f"{where}: expected an object with text, got {_kind(row)}")
        if unknown := sorted(row.keys() - {"text", "title", "uri", "time", "id"}):
            raise BadHistory(f"{where}: {len(unknown)} unknown field(s); expected only text, title, uri, time and id")
        found.append(_own_words(row, where))
    if not found:
        raise BadHistory(f"{name}: no posts; expected one object with text per line")
    return tuple(found)


def _own_words(row: dict[str, Any], where: str) -> OwnWords:
    return OwnWords(
        text=_string(row, "text", where, MAX_DOCUMENT_CHARS),
        title=_string(row, "title", where, MAX_TITLE_CHARS, required=False),
        uri=_string(row, "uri", where, MAX_URI_CHARS, required=False),
        published_at=_time(row, where),
        external_id=_string(row, "id", where, MAX_ID_CHARS, required=False),
    )


def parse_jsonl(data: bytes, *, name: str = "history", select: str | None = None) -> History:
    """Parse JSON Lines; see `read_history`. `name` stands for the file in errors."""
    items: list[HistoryItem] = []
    ordinals: dict[str, int] = {}
    ids: dict[str, int] = {}
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        if len(line) > MAX_LINE_BYTES:
            raise BadHistory(f"{where}: longer than {MAX_LINE_BYTES} bytes")
        if len(items) == MAX_ITEMS:
            raise BadHistory(f"{where}: more than {MAX_ITEMS} messages; split the file")
        row = _json(line, where)
        if not isinstance(row, dict):
            raise BadHistory(f"{where}: expected an object such as {_EXAMPLE}, got {_kind(row)}")
        if unknown := sorted(row.keys() - {"thread", "time", "speaker", "text", "id"}):
            raise BadHistory(
                f"{where}: {len(unknown)} unknown field(s); expected only thread, time, speaker, text and id"
            )
        thread = _string(row, "thread", where, MAX_THREAD_CHARS)
        external_id = _string(row, "id", where, MAX_ID_CHARS, required=False)
        if external_id:
            if external_id in ids:
                raise BadHistory(f"{where}, field id: already used in line {ids[external_id]}; ids are unique")
            ids[external_id] = number
        ordinal = ordinals.get(thread, 0)
        ordinals[thread] = ordinal + 1
        items.append(
            HistoryItem(
                thread=thread,
                ordinal=ordinal,
                speaker=_string(row, "speaker", where, MAX_SPEAKER_CHARS),
                text=_string(row, "text", where, MAX_TEXT_CHARS),
                occurred_at=_time(row, where),
                external_id=external_id,
            )
        )
    if not items:
        raise BadHistory(f"{name}: no messages; expected one object per line such as {_EXAMPLE}")
    if select is not None:
        items = [item for item in items if item.thread == select]
        if not items:
            raise BadHistory(f"{name}: no thread of the selected name; there are {_names(ordinals)}")
    return History("jsonl", tuple(items), tuple(ordinals))


def parse_locomo(data: bytes, *, name: str = "history", select: str | None = None) -> History:
    """Parse LoCoMo JSON; see `read_history`."""
    document = _json(data, name)
    samples = document if isinstance(document, list) else [document]
    by_id: dict[str, dict[str, Any]] = {}
    for place, sample in enumerate(samples):
        where = f"{name}, conversation {place + 1}"
        if not isinstance(sample, dict) or not isinstance(sample.get("conversation"), dict):
            raise BadHistory(
                f"{where}: expected an object with sample_id and conversation; JSON Lines files end in .jsonl"
            )
        sample_id = _string(sample, "sample_id", where, 60)
        if sample_id in by_id:
            raise BadHistory(f"{where}, field sample_id: already used in this file")
        by_id[sample_id] = sample["conversation"]
    if select is None:
        if len(by_id) != 1:
            raise BadHistory(f"{name}: holds {len(by_id)} conversations ({_names(by_id)}); select one")
        select = next(iter(by_id))
    elif select not in by_id:
        raise BadHistory(f"{name}: no conversation of the selected name; there are {_names(by_id)}")
    items = tuple(_locomo_items(by_id[select], select, f"{name}, {select}"))
    if not items:
        raise BadHistory(f"{name}, {select}: no messages; expected lists session_1, session_2, …")
    if len(items) > MAX_ITEMS:
        raise BadHistory(f"{name}, {select}: more than {MAX_ITEMS} messages")
    return History("locomo", items, tuple(by_id))


_EXAMPLE: Final = '{"thread": "2024-05", "time": "2024-05-08T13:56:00Z", "speaker": "Ann", "text": "Hello!"}'
_SESSION: Final = re.compile(r"session_(\d{1,6})", re.ASCII)
_LOCOMO_TIME: Final = re.compile(r"\s*(\d{1,2}:\d{2}) ?([ap]m) on (\d{1,2}) ([a-z]+),? (\d{4})\s*", re.I | re.ASCII)
_MONTHS: Final = {
    month: number
    for number, month in enumerate(
        ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), start=1
    )
}


def _locomo_items(conversation: dict[str, Any], sample_id: str, name: str) -> Iterator[HistoryItem]:
    sessions = sorted((int(match[1]), key) for key in conversation if (match := _SESSION.fullmatch(key)) is not None)
    for _, key in sessions:
        turns = conversation[key]
        if not isinstance(turns, list):
            raise BadHistory(f"{name}, {key}: expected a list of messages, got {_kind(turns)}")
        occurred_at = _locomo_time(conversation.get(f"{key}_date_time"), f"{name}, field {key}_date_time")
        for ordinal, turn in enumerate(turns):
            where = f"{name}, {key}, message {ordinal + 1}"
            if not isinstance(turn, dict):
                raise BadHistory(f"{where}: expected an object, got {_kind(turn)}")
            text = _string(turn, "text", where, MAX_TEXT_CHARS, required=False)
            if caption := _string(turn, "blip_caption", where, MAX_TEXT_CHARS, required=False):
                text = f"{text} [shares a photo: {caption}]".strip()
            if not text.strip() or len(text) > MAX_TEXT_CHARS:
                raise BadHistory(f"{where}, field text: expected 1 to {MAX_TEXT_CHARS} characters with the caption")
            yield HistoryItem(
                thread=f"{sample_id}/{key}",
                ordinal=ordinal,
                speaker=_string(turn, "speaker", where, MAX_SPEAKER_CHARS),
                text=text,
                occurred_at=occurred_at,
                external_id=_string(turn, "dia_id", where, MAX_ID_CHARS, required=False),
            )


def _locomo_time(value: object, where: str) -> datetime | None:
    if value is None:
        return None
    if isinstance(value, str) and (match := _LOCOMO_TIME.fullmatch(value)):
        clock, half, day, month, year = match.groups()
        hour, minute = map(int, clock.split(":"))
        number = _MONTHS.get(month[:3].lower())
        if number is not None and 1 <= hour <= 12:
            try:
                # The set names no zone; UTC keeps the day that the text speaks of.
                return datetime(
                    int(year), number, int(day), hour % 12 + 12 * (half.lower() == "pm"), minute, tzinfo=UTC
                )
            except ValueError:
                pass
    raise BadHistory(f'{where}: expected a time such as "1:56 pm on 8 May, 2023"')


def _json(data: bytes, where: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise BadHistory(f"{where}: byte {error.start + 1} is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise BadHistory(f"{where}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise BadHistory(f"{where}: not JSON that can be read: {type(error).__name__}") from error


def _no_constant(text: str) -> None:
    raise ValueError(text)


def _string(row: dict[str, Any], field: str, where: str, longest: int, *, required: bool = True) -> str:
    value = row.get(field)
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        raise BadHistory(f"{where}, field {field}: expected a string, got {_kind(value)}")
    if required and not value.strip():
        raise BadHistory(f"{where}, field {field}: expected some text, got white space or nothing")
    if len(value) > longest:
        raise BadHistory(f"{where}, field {field}: {len(value)} characters, at most {longest} are allowed")
    if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise BadHistory(f"{where}, field {field}: holds a NUL or half a surrogate pair, which can't be stored")
    return value


def _time(row: dict[str, Any], where: str) -> datetime | None:
    value = row.get("time")
    if value is None:
        return None
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is not None:
                return moment.astimezone(UTC)
        except (ValueError, OverflowError):
            pass
    raise BadHistory(f'{where}, field time: expected RFC 3339 with an offset such as "2024-05-08T13:56:00Z"')


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number")


def _names(names: dict[str, Any]) -> str:
    shown = list(names)[:10]
    return ", ".join(shown) + (", …" if len(names) > len(shown) else "")
