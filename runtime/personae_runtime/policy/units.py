"""Units: the pieces of a reply that are judged and released together.

The first is short, as somebody waits for it: a clause or eight words. The rest
are sentences. None is longer than 200 characters. Where a unit ends depends on
the text alone, never on how it arrived, and on at most one character after it.
"""

from __future__ import annotations

import re

MAX_UNIT_CHARS = 200
FIRST_UNIT_WORDS = 8

WINDOW_CHARS = 240
"""Normalised characters before a unit that scorers see with it."""

_CLOSERS = "\"'”’»)\\]}*_」』）"
_WIDE = "。！？，；：、"  # these end without a space
_FIRST_WORDS = re.compile(rf"\s*(?:\S+\s+){{{FIRST_UNIT_WORDS - 1}}}\S+(?=\s)")
_SPACE = re.compile(r"\s(?=\S*\Z)")


def _ending(marks: str) -> re.Pattern[str]:
    """A line break, or a mark with what closes it, before white space (a wide one: before no other) or the end."""
    # One class first, which the engine looks for by itself.
    closed = f"[{_CLOSERS}]*+"
    return re.compile(rf"[\n{marks}](?:(?<=\n)|(?<=[{_WIDE}]){closed}(?![{_WIDE}])|{closed}(?=\s|\Z))")


_SENTENCE = _ending(".!?…。！？")
_CLAUSE = _ending(f",;:.!?…—{_WIDE}")


def unit_end(text: str, *, first: bool, start: int = 0) -> int | None:
    """Where the unit of `text` that begins at `start` ends.

    None if more text must come to know. A result never changes when text is appended.
    """
    limit = min(len(text), start + MAX_UNIT_CHARS + 1)
    end = _mark_end(text, start, limit, _CLAUSE if first else _SENTENCE)
    if first:
        words = _FIRST_WORDS.match(text, start, limit)
        if words is not None and (end is None or words.end() < end):
            end = words.end()
    if end is not None or limit <= start + MAX_UNIT_CHARS:
        return end
    # No mark in 200 characters: cut before the last white space of their second half, or hard.
    space = _SPACE.search(text, start + MAX_UNIT_CHARS // 2, limit)
    return space.start() if space is not None else start + MAX_UNIT_CHARS


def _mark_end(text: str, start: int, limit: int, endings: re.Pattern[str]) -> int | None:
    """End of the first mark that ends a unit of at most `limit - start - 1` characters."""
    while start < limit and text[start].isspace():  # a line break ends no blank unit
        start += 1
    found = endings.search(text, start, limit)
    if found is None:
        return None
    if text[found.start()] == "\n":
        return found.start()
    # At the very end the next character decides.
    return found.end() if found.end() < limit else None


def last_unit_end(text: str, start: int, limit: int) -> int:
    """Where the last unit ends that `unit_end` finds from one to the next up to `limit`; `start` if there is none.

    None of them may be the reply's first.
    """
    again = True
    while again:
        again = False
        for mark in _SENTENCE.finditer(text, start):
            end = mark.end()
            if text[end - 1] == "\n":
                end = mark.start()
                if not text[start:end].strip():
                    continue
            elif end == len(text):
                break
            if end > start + MAX_UNIT_CHARS:
                break
            if end > limit:
                return start
            start = end
        # Whatever the marks leave open: a cut at 200 characters.
        if len(text) > start + MAX_UNIT_CHARS and limit > start:
            cut = unit_end(text, first=False, start=start)
            if cut is not None and cut <= limit:
                start, again = cut, True
    return start


class UnitEnds:
    """Tells when a unit of a reply that arrives in pieces is complete."""

    __slots__ = ("_first", "_pieces", "_text")

    def __init__(self) -> None:
        self._first = True
        self._text = ""  # from the current unit's start
        self._pieces: list[str] = []

    def feed(self, text: str) -> None:
        """Take the next piece."""
        self._pieces.append(text)

    def passed(self) -> bool:
        """Whether a unit was completed since the last call."""
        self._text += "".join(self._pieces)
        self._pieces.clear()
        start = 0
        while (end := unit_end(self._text, first=self._first, start=start)) is not None:
            start, self._first = end, False
        self._text = self._text[start:]
        return start > 0


def split_units(text: str) -> list[str]:
    """All units of a whole text; joined they are the text."""
    units: list[str] = []
    at = 0
    while at < len(text):
        end = unit_end(text, first=not units, start=at)
        # Beyond the limit unit_end always answers, so None is the rest of the text.
        stop = len(text) if end is None else end
        units.append(text[at:stop])
        at = stop
    return units
