"""Time expressions of English, against the moment they were said: "last Saturday", "since 2020", "two months ago".

Rules, no model: an expression that no rule knows is no interval. Days, weeks
(from Monday), months and years are those of the calendar in UTC, so that "last
week" is the whole week before. A date without a year, or a weekday, is the last
one before the moment, or the next one where the words before it speak of what is
to come ("I'm flying on Friday").
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final

MAX_TEXT_CHARS: Final = 8_000
"""Characters that are looked at; a memory has at most as many."""

MAX_ASKED_CHARS: Final = 500
"""Characters of a question that are looked at: the event loop waits for it."""

MAX_EXPRESSIONS: Final = 100
"""Of one text, those that turn out to be none included; a text with more is no talk."""

MAX_YEARS: Final = 200
"""Years from the moment beyond which an expression is no time of a person's life."""


@dataclass(frozen=True, slots=True)
class TimeSpan:
    """An interval that a text speaks of.

    Attributes:
        begin, end: aware, UTC, the end excluded; `begin` is before `end`.
        start_char, end_char: where the expression stands, with the word that
            rules it ("since", "in", "on"), the end excluded.
    """

    begin: datetime
    end: datetime
    start_char: int
    end_char: int


Interval = tuple[datetime, datetime]

_MONTHS: Final = {
    name: number
    for number, names in enumerate(
        (
            "january jan",
            "february feb",
            "march mar",
            "april apr",
            "may",
            "june jun",
            "july jul",
            "august aug",
            "september sept sep",
            "october oct",
            "november nov",
            "december dec",
        ),
        start=1,
    )
    for name in names.split()
}
_WEEKDAYS: Final = {
    name: number
    for number, names in enumerate(("monday mon", "tuesday tue", "wednesday wed", "thursday thu", "friday fri"))
    for name in names.split()
} | {"saturday": 5, "sat": 5, "sunday": 6, "sun": 6}
_SEASONS: Final = {"spring": 3, "summer": 6, "autumn": 9, "fall": 9, "winter": 12}
"""First month, north of the equator."""
_NUMBERS: Final = {
    **{"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8},
    **{"nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "fifteen": 15, "twenty": 20, "thirty": 30},
    **{"a couple of": 2, "a couple": 2, "couple of": 2, "a few": 3, "few": 3, "several": 4},
}

_MONTH = "(?P<month>" + "|".join(sorted(_MONTHS, key=len, reverse=True)) + r")\b\.?"
_DAY = r"(?P<day>[0-3]?\d)(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>(?:19|20)\d\d)"
_COUNT = "(?P<count>" + "|".join(sorted(_NUMBERS, key=len, reverse=True)) + r"|\d{1,3})"
_UNIT = "(?P<unit>minute|hour|day|week|month|year)s?"
_WEEKDAY = "(?P<weekday>" + "|".join(sorted(_WEEKDAYS, key=len, reverse=True)) + r")\b\.?"
_RULED = r"(?:(?P<rule>since|until|till|from|in|on|by|during|before|after|around|of|to|between|and|early|late|mid)\s+)"

_COMING = re.compile(
    r"\b(?:will|shall|going to|gonna|plan(?:s|ning|ned)? (?:to|on)|about to|next|coming|upcoming|looking forward"
    r"|(?:i|we)(?:['’]m| am|['’]re| are) \w+ing|(?:i|we|it)['’]ll|tomorrow|due)\b[^.!?]*$",
    re.IGNORECASE,
)


def intervals(text: str, said_at: datetime) -> list[TimeSpan]:
    """The intervals that a text speaks of, in its order; they do not overlap in the text.

    "since" reaches from the begin of what it names to the moment; "for three
    years" likewise. Never raises for any text.

    Args:
        said_at: aware.
    """
    return list(_intervals(text[:MAX_TEXT_CHARS], said_at.astimezone(UTC)))


def _intervals(text: str, said_at: datetime) -> Iterator[TimeSpan]:
    squeezed = squeeze(text)
    text = squeezed.text
    taken = 0
    for match in islice(_EXPRESSION.finditer(_lower(text)), MAX_EXPRESSIONS):
        if match.start() < taken:
            continue
        kind = match.lastgroup
        assert kind is not None
        part = _PATTERNS[kind][0].match(text, match.start())
        if part is None:
            continue
        coming = _COMING.search(text, max(0, match.start() - 80), match.start()) is not None
        try:
            interval = _PATTERNS[kind][1](part, said_at, coming)
            if interval is None:
                continue
            begin, end = interval
            groups = part.groupdict()
            if groups.get("rule", "") and groups["rule"].lower() == "since" and begin < said_at:
                end = said_at
        except (ValueError, OverflowError):
            # No such day, or beyond the calendar.
            continue
        if begin < end and abs(begin.year - said_at.year) <= MAX_YEARS:
            yield TimeSpan(begin, end, squeezed.origin(part.start()), squeezed.origin(part.end() - 1) + 1)
            taken = part.end()


def asked_about(query: str, now: datetime) -> tuple[datetime, datetime]:
    """The time that a question is about, both ends included: `now` alone, unless it speaks of another.

    "in June" is that month; "used to", "before" or "did I" is all time until now. What is said after the first
    MAX_ASKED_CHARS is not looked at.
    """
    query, now = query[:MAX_ASKED_CHARS], now.astimezone(UTC)
    for span in _intervals(query, now):
        if span.begin < now:
            return span.begin, max(span.begin, span.end - timedelta(seconds=1))
    return (datetime.min.replace(tzinfo=UTC) if _PAST.search(query) else now), now


_PAST: Final = re.compile(
    r"\b(?:used\s+to|before|previous(?:ly)?|former(?:ly)?|back\s+then|in\s+the\s+past|earlier|ever|once|formerly"
    r"|(?:did|was|were|had)\s+(?:i|we|my|our))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Squeezed:
    """A text in which every run of white space is one character, so that no two parts of a pattern can share it out.

    Attributes:
        text: a run with a newline is a newline, any other a space.
        ends, lost: places in `text` behind what was a run, and how many characters went up to each of them.
    """

    text: str
    ends: tuple[int, ...]
    lost: tuple[int, ...]

    def origin(self, place: int) -> int:
        """Where the character at a place of `text` stood."""
        runs = bisect_right(self.ends, place)
        return place + (self.lost[runs - 1] if runs else 0)


def squeeze(text: str) -> Squeezed:
    """Squeeze the white space of a text."""
    parts: list[str] = []
    ends: list[int] = []
    lost: list[int] = []
    copied = gone = 0
    for run in _RUN.finditer(text):
        begin, end = run.span()
        parts += (text[copied:begin], "\n" if "\n" in run[0] else " ")
        copied, gone = end, gone + end - begin - 1
        ends.append(end - gone)
        lost.append(gone)
    return Squeezed("".join((*parts, text[copied:])) if parts else text, tuple(ends), tuple(lost))


_RUN: Final = re.compile(r"\s{2,}")


def _lower(text: str) -> str:
    """In lower case, every character in its place."""
    lower = text.lower()
    return lower if len(lower) == len(text) else "".join(one if len(one) == 1 else "?" for one in map(str.lower, text))


# -- the calendar --------------------------------------------------------------


def _midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def _days(moment: datetime, offset: int, count: int = 1) -> Interval:
    begin = _midnight(moment) + timedelta(days=offset)
    return begin, begin + timedelta(days=count)


def _week(moment: datetime, offset: int) -> Interval:
    return _days(moment, 7 * offset - moment.weekday(), 7)


def _month_of(year: int, month: int, count: int = 1) -> Interval:
    def first(index: int) -> datetime:
        return datetime(index // 12, index % 12 + 1, 1, tzinfo=UTC)

    index = year * 12 + month - 1
    return first(index), first(index + count)


def _year_of(year: int) -> Interval:
    return _month_of(year, 1, 12)


def _unit(moment: datetime, unit: str, offset: int) -> Interval:
    """The calendar's unit that lies `offset` units from the one of `moment`; of hours and minutes, the hour."""
    match unit:
        case "day":
            return _days(moment, offset)
        case "week":
            return _week(moment, offset)
        case "month":
            return _month_of(moment.year, moment.month + offset)
        case "year":
            return _year_of(moment.year + offset)
    step = timedelta(hours=offset) if unit == "hour" else timedelta(minutes=offset)
    begin = (moment + step).replace(minute=0, second=0, microsecond=0)
    return begin, begin + timedelta(hours=1)


def _back(moment: datetime, unit: str, count: int) -> datetime:
    """The moment `count` units earlier; of months and years, the same day or the month's last."""
    if unit in ("month", "year"):
        index = moment.year * 12 + moment.month - 1 - count * (12 if unit == "year" else 1)
        begin, end = _month_of(index // 12, index % 12 + 1)
        return min(begin + timedelta(days=moment.day - 1), end - timedelta(days=1))
    return _midnight(moment) - count * {"week": timedelta(days=7), "day": timedelta(days=1)}.get(unit, timedelta())


def _nearest(make: Callable[[int], Interval], said_at: datetime, coming: bool) -> Interval:
    """Of a yearly interval, the last that has begun, or the next that has not ended."""
    # 29 February is not in every year, and what began in the year before may not have ended.
    for offset in range(-1, 9):
        try:
            begin, end = make(said_at.year + (offset if coming else -offset))
        except (ValueError, OverflowError):
            continue
        if end > said_at if coming else begin <= said_at:
            return begin, end
    raise ValueError("there is no such day")


def _count(words: str) -> int:
    return _NUMBERS.get(words.lower()) or int(words)


# -- what each expression means ------------------------------------------------


def _iso(match: re.Match[str], said_at: datetime, coming: bool) -> Interval | None:
    return _days(datetime(int(match["year"]), int(match["number"]), int(match["day"]), tzinfo=UTC), 0)


def _date(match: re.Match[str], said_at: datetime, coming: bool) -> Interval | None:
    month, day = _MONTHS[match["month"].lower()], int(match["day"])
    if match["year"]:
        return _days(datetime(int(match["year"]), month, day, tzinfo=UTC), 0)
    return _nearest(lambda year: _days(datetime(year, month, day, tzinfo=UTC), 0), said_at, coming)


def _month(match: re.Match[str], said_at: datetime, coming: bool) -> Interval | None:
    name, rule = match["month"], match["rule"] or match["which"]
    # "may" and "march" are verbs too, and a month's short name may be one of a person.
    if not rule and not match["year"] and (not name[0].isupper() or len(name) < 4):
        return None
    month = _MONTHS[name.lower()]
    if match["year"]:
        return _month_of(int(match["year"]), month)
    which = (match["which"] or "").lower()
    if which == "this":
        return _month_of(said_at.year, month)
    begin, end = _nearest(lambda year: _month_of(year, month), said_at, coming or which == "next")
    # Last May, said in May, is the one a year ago; next May likewise.
    if which in ("last", "next") and begin <= said_at < end:
        return _month_of(said_at.year + (1 if which == "next" else -1), month)
    return begin, end


def _years(match: re.Match[str], said_at: datetime, coming: bool) -> Interval | None:
    return _year_of(int(match["year"]))


def _year_range(match: re.Match[str], said_at: datetime, coming: bool) -> Interval | None:
    first, last = int(match["year"]), int(match["last"])
    return (_year_of(first)[0], _year_of(last)[0]) if first < last else None


def _season(match: re.Match[str], said_at: datetime, coming: bool) -> Interval | None:
    first = _SEASONS[match["season"].lower()]
    if match["year"]:
        return _month_of(int(match["year"]), first, 3)
    which = (match["which"] or "").lower()
    begin, end = _nearest(lambda year: _month_of(year, first, 3), said_at, coming or which == "next")
    if which == "last" and begin <= said_at < end:
        return _month_of(begin.year - 1, first, 3)
    if which == "next" and begin <= said_at:
        return _month_of(begin.year + 1, first, 3)
    if which == "this" and end <= said_at and begin.year < said_at.year:
        return _month_of(said_at.year, first, 3)
    return begin, end


def _ago(match: re.Match[str], said_at: datetime, coming: bool) -> Interval | None:
    return _unit(said_at, match["unit"].lower(), -_count(match["count"]))


def _ahead(match: re.Match[str], said_at: datetime, coming: bool) -> Interval | None:
    return _unit(said_at, match["unit"].lower(), _count(match["count"]))


def _lasting(match: re.Match[str], said_at: datetime, coming: bool) -> Interval | None:
    begin = _back(said_at, match["unit"].lower(), _count(match["count"] or "one"))
    return None if coming else (begin, said_at)


def _which_unit(match: re.Match[str], said_at: datetime, coming: bool) -> Interval | None:
    step = {"last": -1, "past": -1, "this": 0, "next": 1, "coming": 1}[match["which"].lower()]
    unit = match["unit"].lower()
    if unit == "weekend":
        begin, end = _week(said_at, step)
        return begin + timedelta(days=5), end
    if unit in ("night", "evening", "morning", "afternoon"):
        return _days(said_at, step)
    return _unit(said_at, unit, step)


def _weekday(match: re.Match[str], said_at: datetime, coming: bool) -> Interval | None:
    which = (match["which"] or "").lower()
    if not which and not match["rule"]:
        return None
    number = _WEEKDAYS[match["weekday"].lower()]
    if which in ("next", "coming", "this") or (coming and not which):
        return _days(said_at, (number - said_at.weekday()) % 7 or (0 if which == "this" else 7))
    return _days(said_at, -((said_at.weekday() - number) % 7 or 7))


_NAMED_DAYS: Final = {
    **{"today": 0, "tonight": 0, "yesterday": -1, "tomorrow": 1},
    **{"the day before yesterday": -2, "the day after tomorrow": 2},
}


def _named(match: re.Match[str], said_at: datetime, coming: bool) -> Interval | None:
    return _days(said_at, _NAMED_DAYS[" ".join(match["name"].lower().split())])


_WHICH = r"(?:(?:the\s+)?(?P<which>last|past|this|next|coming)\s+)"
_Rule = Callable[[re.Match[str], datetime, bool], Interval | None]
# Of several that fit at one place the first counts.
_PATTERNS: Final[dict[str, tuple[re.Pattern[str], _Rule]]] = {
    name: (re.compile(pattern, re.IGNORECASE), rule)
    for name, pattern, rule in (
        ("iso", rf"\b{_RULED}?{_YEAR}-(?P<number>[01]\d)-(?P<day>[0-3]\d)\b", _iso),
        ("day_month", rf"\b{_RULED}?(?:the\s+)?{_DAY}\s+(?:of\s+)?{_MONTH},?(?:\s+{_YEAR}\b)?", _date),
        ("month_day", rf"\b{_RULED}?{_MONTH}\s+(?:the\s+)?{_DAY}\b(?!\s*%)(?:,?\s+{_YEAR}\b)?", _date),
        ("month", rf"\b{_RULED}?{_WHICH}?{_MONTH}(?:\s+(?:of\s+)?{_YEAR}\b)?", _month),
        (
            "range",
            rf"\b(?:from|between)\s+{_YEAR}\s+(?:to|until|till|and|-|–)\s+(?P<last>(?:19|20)\d\d)\b",
            _year_range,
        ),
        (
            "season",
            rf"\b{_RULED}?(?:{_WHICH}|the\s+)?(?P<season>spring|summer|autumn|fall|winter)\b(?:\s+(?:of\s+)?{_YEAR}\b)?",
            lambda match, said_at, coming: (
                _season(match, said_at, coming) if match["which"] or match["year"] or match["rule"] else None
            ),
        ),
        ("ago", rf"\b{_RULED}?(?:about\s+|around\s+|some\s+)?{_COUNT}\s+{_UNIT}\s+(?:ago|back|earlier)\b", _ago),
        ("ahead", rf"\b(?:in|within)\s+{_COUNT}\s+{_UNIT}\b(?:['’]s?\s+time)?", _ahead),
        (
            "lasting",
            rf"\b(?:for|over|during)\s+(?:the\s+)?(?:(?:past|last|about|almost|nearly|over|around)\s+){{0,3}}"
            rf"{_COUNT}\s+{_UNIT}\b(?:\s+now\b)?",
            _lasting,
        ),
        (
            "unit",
            rf"\b{_RULED}?(?:the\s+)?(?P<which>last|past|this|next|coming)\s+"
            r"(?P<unit>week|month|year|weekend|night|evening|morning|afternoon)\b",
            _which_unit,
        ),
        ("weekday", rf"\b{_RULED}?{_WHICH}?{_WEEKDAY}", _weekday),
        (
            "named",
            rf"\b{_RULED}?(?P<name>the\s+day\s+before\s+yesterday|the\s+day\s+after\s+tomorrow|yesterday|today|tonight"
            r"|tomorrow)\b",
            _named,
        ),
        (
            "year",
            rf"\b(?P<rule>since|until|till|from|in|by|during|before|after|around|of)\s+(?:about\s+)?{_YEAR}\b",
            _years,
        ),
    )
}


def _anonymous(pattern: str) -> str:
    return re.sub(r"\(\?P<\w+>", "(?:", pattern)


# Tried only at words that an expression can begin with, and on lower case: matching without regard to case is slow.
_BEGIN: Final = "|".join(
    (
        r"\d|since|until|till|from|in|on|by|during|before|after|around|of|to|between|and|early|late|mid",
        "within|for|over|about|some|the|last|past|this|next|coming|yesterday|today|tonight|tomorrow",
        *(*_MONTHS, *_WEEKDAYS, *_SEASONS, *_NUMBERS),
    )
)
_ONE_OF: Final = {name: f"(?P<{name}>{_anonymous(pattern.pattern)})" for name, (pattern, _) in _PATTERNS.items()}
# A number's word begins none but "ago".
_EXPRESSION: Final = re.compile(
    rf"\b(?={_BEGIN})(?:{_ONE_OF.pop('ago')}|(?!(?:{'|'.join(_NUMBERS)})\b)(?:{'|'.join(_ONE_OF.values())}))"
)
