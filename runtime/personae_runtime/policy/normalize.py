"""Normalised text: what matchers and scorers read, with an exact map back to the raw text.

The normalised form undoes the usual ways of writing a word so that people read
it and filters don't: compatibility forms (NFKC), case (casefold), accents and
overlays, zero-width characters, look-alike letters of other scripts, digits of
other scripts, typographic quotes and dashes.

It is defined over *segments* that are found with one character of lookahead, so
a stream can be normalised as it comes and the result is that of the joined text
whatever the chunks (`Normalizer.push`). A segment is a character with the
characters that can compose with it; ignorable characters make no segment and
yield nothing, until more than `MAX_IGNORABLE_RUN` follow each other: each
further one yields `FLOOD`, so that the raw text behind a normalised character
stays bounded.

Property data: Unicode 14, https://www.unicode.org/Public/14.0.0/ucd/ (the
default-ignorable ranges from DerivedCoreProperties.txt; the rest from
`unicodedata`). The look-alike table is our own.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from functools import lru_cache

MAX_IGNORABLE_RUN = 8
"""Ignorable characters in a row that yield nothing (an emoji flag of tags has six)."""

MAX_SEGMENT = 16
"""Raw characters of a segment; a longer run of marks starts another."""

FLOOD = "\ufdd0"
"""Stands for each ignorable character beyond the run limit: a noncharacter, which real text never yields."""

_IGNORABLE_RANGES = (
    (0x00, 0x08), (0x0E, 0x1F), (0x7F, 0x84), (0x86, 0x9F),  # controls that show nothing
    (0xAD, 0xAD), (0x300, 0x36F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5),
    (0x180B, 0x180F), (0x1AB0, 0x1AFF), (0x1DC0, 0x1DFF), (0x200B, 0x200F), (0x202A, 0x202E),
    (0x2060, 0x206F), (0x20D0, 0x20FF), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFE20, 0xFE2F),
    (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFFB), (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip
"""Default-ignorable characters, and the combining marks that only decorate a letter (accents, overlays)."""

_COMPOSES_BACK = frozenset(
    "\u09be\u09d7\u0b3e\u0b56\u0b57\u0bbe\u0bd7\u0cc2\u0cd5\u0cd6\u0d3e\u0d57\u0dcf\u0ddf\u0fb5\u0fb7\u102e\u1b35"
    "\U00011127\U0001133e\U00011357\U000114b0\U000114ba\U000114bd\U000115af\U00011930"
)
"""Characters of combining class 0 that are the second part of a canonical composition."""

# Latin letter or sign -> what looks like it, after NFKC and casefold.
_LOOKALIKES = {
    "a": "аɑαⱥᴀ", "b": "ьƅʙɓƀ", "c": "сϲᴄƈ", "d": "ԁɗđᴅɖ", "e": "еєɛҽəεᴇ", "f": "ƒꞙẝꜰ", "g": "ɡɢǥɠ",
    "h": "һհħнʜ", "i": "іıɩιӏɪ", "j": "јϳɉᴊ", "k": "кκƙᴋ", "l": "ɭƚłʟ", "m": "мᴍɱ", "n": "пոηɴɲ",
    "o": "оοσօøɵᴏ", "p": "рρþᴘƥ", "q": "ԛզɋ", "r": "гᴦʀɍɾ", "s": "ѕꜱʂ", "t": "тτᴛŧƭ", "u": "υսᴜʋų",
    "v": "ѵνᴠ", "w": "ԝωɯᴡшѡ", "x": "хχ×", "y": "уүγʏƴ", "z": "ᴢʐƶ",
    "'": "‘’‚‛ʼʻʹ′", '"': "“”„‟″«»", "-": "‐‑‒–—―−⁃﹘", " ": "\u2800\u1680\x85", ".": "․。", ",": "‚،，",
    "!": "ǃ", ":": "։׃∶", "/": "⁄∕", "*": "∗⁎•", "@": "﹫",
}  # fmt: skip


def _translation() -> dict[int, str]:
    table = {ord(c): latin for latin, alike in _LOOKALIKES.items() for c in alike}
    for base in (0x1F150, 0x1F170):  # white-on-black circled and squared letters have no NFKC form
        table.update({base + i: chr(ord("a") + i) for i in range(26)})
    table.update(dict.fromkeys(range(0xD800, 0xE000), "\ufffd"))  # a lone surrogate has no UTF-8
    table[ord(FLOOD)] = "\ufffd"  # only we may write it
    return table


_TRANSLATION = _translation()
_DROPPED = re.compile("[" + "".join(f"{chr(a)}-{chr(b)}" for a, b in _IGNORABLE_RANGES) + "]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
_RUN = re.compile("[\x00-\x7f]+|[^\x00-\x7f]+")


@lru_cache(maxsize=8192)
def _is_ignorable(c: str) -> bool:
    return _DROPPED.match(c) is not None


@lru_cache(maxsize=8192)
def _attaches(c: str) -> bool:
    """Whether c can compose with, or be reordered behind, a non-ASCII character before it.

    ASCII letters compose only with marks that are ignorable here, so an ASCII
    character is always a segment of its own and never waits for the next.
    """
    return unicodedata.combining(c) != 0 or "\u1161" <= c <= "\u11ff" or c in _COMPOSES_BACK


@lru_cache(maxsize=8192)
def _fold(segment: str) -> str:
    """The normalised form of one segment; empty if nothing visible is left."""
    text = unicodedata.normalize("NFKC", segment).casefold()
    # Decompose, drop what only decorates, compose again: é, e + U+0301 and ｅ́ all end as e.
    text = _DROPPED.sub("", unicodedata.normalize("NFKD", text))
    text = unicodedata.normalize("NFC", text).translate(_TRANSLATION)
    return "".join(str(unicodedata.decimal(c)) if not c.isascii() and c.isdecimal() else c for c in text)


class Normalizer:
    """Normalises a stream; holds a window of the result that the owner trims.

    Attributes:
        text: the window's normalised characters. Everything here is final.
        raw_end: raw offset (code points from the start of the stream) up to which
            the raw text is accounted for: by `text`, by what was trimmed, or as
            ignorable. The rest waits for the next character.
    """

    __slots__ = ("_delta", "_ends", "_run", "_starts", "_tail", "raw_end", "text")

    def __init__(self) -> None:
        self.text = ""
        self.raw_end = 0
        # While `_starts` is None the window is one to one: character i is raw i + _delta.
        self._starts: list[int] | None = None
        self._ends: list[int] = []
        self._delta = 0
        self._run = 0
        self._tail = ""  # raw text of a segment that may go on

    def push(self, raw: str, *, final: bool = False) -> None:
        """Takes the next raw text. With `final` nothing waits any longer.

        Cost: O(len(raw)), plus O(len(text)) when the first non-ASCII character arrives.
        """
        if not self._tail and raw.isascii() and not _CONTROL.search(raw):
            if raw:
                if self._starts is not None:
                    start = self.raw_end
                    self._starts.extend(range(start, start + len(raw)))
                    self._ends.extend(range(start + 1, start + len(raw) + 1))
                elif not self.text:
                    self._delta = self.raw_end
                self.text += raw.lower()
                self.raw_end += len(raw)
                self._run = 0
            return
        self._push_any(self._tail + raw, final)

    def _push_any(self, raw: str, final: bool) -> None:
        self._tail = ""
        if self._starts is None:
            self._starts = [i + self._delta for i in range(len(self.text))]
            self._ends = [i + 1 for i in self._starts]
        parts: list[str] = []
        segment = ""
        for run in _RUN.findall(raw):
            if run[0] < "\x80" and not _CONTROL.search(run):
                if segment:
                    self._emit(parts, segment)
                    segment = ""
                at = self.raw_end
                self._starts.extend(range(at, at + len(run)))
                self._ends.extend(range(at + 1, at + len(run) + 1))
                parts.append(run.lower())
                self.raw_end = at + len(run)
                self._run = 0
                continue
            for c in run:
                if segment and _attaches(c) and not _is_ignorable(c) and len(segment) < MAX_SEGMENT:
                    segment += c
                    continue
                if segment:
                    self._emit(parts, segment)
                    segment = ""
                if c < "\x80" or _is_ignorable(c):
                    self._emit(parts, c)
                else:
                    segment = c
        if segment:
            if final:
                self._emit(parts, segment)
            else:
                self._tail = segment
        self.text += "".join(parts)

    def _emit(self, parts: list[str], segment: str) -> None:
        assert self._starts is not None
        folded = "" if len(segment) == 1 and _is_ignorable(segment) else _fold(segment)
        if folded:
            self._run = 0
        else:
            self._run += 1
            if self._run > MAX_IGNORABLE_RUN:
                folded = FLOOD
        end = self.raw_end + len(segment)
        self._starts.extend([self.raw_end] * len(folded))
        self._ends.extend([end] * len(folded))
        parts.append(folded)
        self.raw_end = end

    def raw_start(self, index: int) -> int:
        """Raw offset of the first raw character behind normalised character `index` of the window;
        `raw_end` when it is the window's length."""
        if index >= len(self.text):
            return self.raw_end
        return index + self._delta if self._starts is None else self._starts[index]

    def raw_stop(self, index: int) -> int:
        """Raw offset just after the last raw character behind normalised character `index`."""
        return index + self._delta + 1 if self._starts is None else self._ends[index]

    def index_at(self, raw: int) -> int:
        """The first character of the window that starts at or after raw offset `raw`."""
        if self._starts is None:
            return min(max(raw - self._delta, 0), len(self.text))
        return bisect_left(self._starts, raw)

    def trim(self, count: int) -> None:
        """Drops the window's first `count` characters."""
        if count <= 0:
            return
        self.text = self.text[count:]
        if self._starts is None:
            self._delta += count
            return
        del self._starts[:count], self._ends[:count]
        n = len(self._starts)
        first = self._starts[0] if n else self.raw_end
        one_to_one = first + n == self.raw_end and self._starts == list(range(first, first + n))
        if one_to_one and self._ends == list(range(first + 1, first + n + 1)):
            self._starts, self._ends, self._delta = None, [], first


def normalize(text: str) -> str:
    """The normalised form of a whole text."""
    normalizer = Normalizer()
    normalizer.push(text, final=True)
    return normalizer.text
