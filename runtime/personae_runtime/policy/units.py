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

_SENTENCE = re.compile("[.!?…\n。！？]")
_CLAUSE = re.compile("[,;:.!?…—\n。！？，；：、]")
_WIDE = frozenset("。！？，；：、")  # these end without a space
_CLOSERS = frozenset("\"'”’»)]}*_」』）")
_FIRST_WORDS = re.compile(rf"\s*(?:\S+\s+){{{FIRST_UNIT_WORDS - 1}}}\S+(?=\s)")
_SPACE = re.compile(r"\s(?=\S*\Z)")


def unit_end(text: str, *, first: bool) -> int | None:
    """Length of the first unit of `text`, which begins where a unit begins.

    None if more text must come to know. A result never changes when text is appended.
    """
    limit = min(len(text), MAX_UNIT_CHARS + 1)
    end = _mark_end(text, limit, _CLAUSE if first else _SENTENCE)
    if first:
        words = _FIRST_WORDS.match(text, 0, limit)
        if words is not None and (end is None or words.end() < end):
            end = words.end()
    if end is not None or limit <= MAX_UNIT_CHARS:
        return end
    # No mark in 200 characters: cut before the last white space of their second half, or hard.
    space = _SPACE.search(text, MAX_UNIT_CHARS // 2, limit)
    return space.start() if space is not None else MAX_UNIT_CHARS


def _mark_end(text: str, limit: int, marks: re.Pattern[str]) -> int | None:
    """End of the first mark, with what closes it, that ends a unit of at most `limit` - 1 characters."""
    for mark in marks.finditer(text, 0, limit):
        end = mark.end()
        if mark.group() == "\n":
            if text[: end - 1].strip():
                return end - 1
            continue
        while end < limit and text[end] in _CLOSERS:
            end += 1
        if end >= limit:
            return None
        if text[end].isspace() or (mark.group() in _WIDE and text[end] not in _WIDE):
            return end
    return None


def split_units(text: str) -> list[str]:
    """All units of a whole text; joined they are the text."""
    units: list[str] = []
    at = 0
    while at < len(text):
        end = unit_end(text[at : at + MAX_UNIT_CHARS + 1], first=not units)
        # Beyond the limit unit_end always answers, so None is the rest of the text.
        stop = len(text) if end is None else at + end
        units.append(text[at:stop])
        at = stop
    return units
