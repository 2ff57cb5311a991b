"""Order of the candidates, and whether the answer seems to be among them.

A candidate's score is a sum of named weights times cheap features of its words,
its places in the two arms and the candidates around it (`features`): a log-linear
model, fitted by listwise softmax (Cao et al., "Learning to Rank: From Pairwise
Approach to Listwise Approach", 2007) on LoCoMo. `docs/memory.md` has what it and
each weight bring on conversations held out. It runs in the event loop, so each text
is folded and cut into words once, and no further than LOOKED_AT.

The cues in words (first person, times, question words) are English. In other
languages they are silent, and arms, speakers, length and order still count.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import repeat
from operator import mul
from typing import Final, NamedTuple

from personae_runtime.memory.index import Place
from personae_runtime.memory.lexical import held, terms
from personae_runtime.memory.store import MemoryRecord

NEARBY_TURNS: Final = 3
"""How far away in a thread another candidate still lends weight."""

LOOKED_AT: Final = 1_000
"""Characters of a memory in which cues are looked for: about as many as the embedding reads."""

MOST_WORDS: Final = 100
"""From which on a longer memory counts no more."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A memory with its places in the arms; None where an arm did not find it or took no part."""

    record: MemoryRecord
    lexical: Place | None
    dense: Place | None


def fused(lexical: Place | None, dense: Place | None) -> float:
    """Reciprocal rank fusion (Cormack et al., 2009) with k = 1: rank r counts 1 / (r + 1); 0 to 1."""
    return (0.0 if lexical is None else 1 / (lexical.rank + 1)) + (0.0 if dense is None else 1 / (dense.rank + 1))


class Features(NamedTuple):
    """What is weighed of a candidate, and the weights' names.

    Attributes:
        fused: natural logarithm of the fused reciprocal ranks.
        lexical: BM25 of the window, divided by the best candidate's.
        cosine: of query and memory.
        named: the query names its speaker.
        own_account: the query names its speaker, who says "I" or "we".
        asks: it ends in a question mark; the answer is worth more.
        length: ln(words / 20), words held to 3 to MOST_WORDS: a longer memory says more.
        answers: another speaker's question comes just before it.
        opening: one of the first two of its thread, where news is told.
        nearby: fused scores of other candidates of the thread up to NEARBY_TURNS away, each divided by its distance;
            0 where the query asks for all of something, whose parts lie apart.
        thread_best: the fused score of the thread's best candidate.
        time: it speaks of a time.
        time_asked: the same where the query asks for one.
        name_asked: it has a capitalised word inside a sentence, where the query asks who, where or which.
        month: it was said in, or speaks of, the month or year that the query names.
        day: exp(-days / 4) from the day that the query names, half of it for a day before.
    """

    fused: float
    lexical: float
    cosine: float
    named: float
    own_account: float
    asks: float
    length: float
    answers: float
    opening: float
    nearby: float
    thread_best: float
    time: float
    time_asked: float
    name_asked: float
    month: float
    day: float


WEIGHTS: Final = Features(
    fused=0.7,
    lexical=0.9,
    cosine=2.4,
    named=2.1,
    own_account=0.5,
    asks=-0.6,
    length=0.3,
    answers=0.35,
    opening=0.5,
    nearby=1.1,
    thread_best=1.7,
    time=0.2,
    time_asked=2.1,
    name_asked=1.3,
    month=2.7,
    day=2.6,
)
"""What a unit of each feature adds to a score: the optimum on LoCoMo, rounded."""

OF_SPEAKER: Final = ("named", "own_account")
"""Features that say who speaks; the others say what is said."""


class Doubts(NamedTuple):
    """Signs that the candidates don't hold the answer, and the weights' names.

    Attributes:
        another_says: ln of the sum of exp(score without OF_SPEAKER) over the candidates of speakers whom the
            query does not name, less the same over those whom it names, held to -DOUBT_BOUND to DOUBT_BOUND;
            0 if it names nobody or everybody. Who is asked for what another said is asked in vain.
        another_uses: of the query's other stems the share in a candidate of another speaker, less the same for
            the named ones, each the mean of the best three of the best five.
        unknown_name: the query has a name that no candidate holds.
        unsaid: how far the candidates fall short of what the query is about, as a share of RELATED: the best
            cosine and COVERED times the share of the query's stems in the best BEST_LOOKED_AT; 0 from RELATED on.
    """

    another_says: float
    another_uses: float
    unknown_name: float
    unsaid: float


DOUBT_WEIGHTS: Final = Doubts(another_says=2.0, another_uses=2.3, unknown_name=3.3, unsaid=6.3)
DOUBT_BIAS: Final = -0.3
"""Confidence is 1 / (1 + exp(DOUBT_BIAS + weights times doubts)). The first three weights and the bias: logistic
regression on LoCoMo, its questions of category 5 and those of other conversations against those with an answer.
`unsaid` and its constants: the same on `tests/unit/evals/everyday.json`, talk that was written for it."""

DOUBT_BOUND: Final = 5.0

RELATED: Final = 0.42
COVERED: Final = 0.2
COSINE_UNKNOWN: Final = 0.33
"""Of `unsaid`; the last stands for the best cosine where the dense arm took no part."""

BEST_LOOKED_AT: Final = 5
"""Best candidates whose words are compared with the query's, for the doubts."""

LOW_CONFIDENCE: Final = 0.42
"""Below it a result is better not used. Chosen on LoCoMo so that 8 % of the questions that have an answer fall below,
before `unsaid` joined the doubts."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate with its score (above 0), and what each feature added to the score's logarithm."""

    candidate: Candidate
    score: float
    parts: Features


@dataclass(frozen=True, slots=True)
class Ranking:
    """Candidates, best first, equal ones by id; and the confidence in them, 0 to 1."""

    ranked: tuple[Ranked, ...]
    confidence: float

    @property
    def low_confidence(self) -> bool:
        return self.confidence < LOW_CONFIDENCE


class Query:
    """A query's cues, worked out once.

    Args:
        text: as asked.
        speakers: of the memories that it is asked of; those whose name shares a word with it are `named`.
    """

    def __init__(self, text: str, speakers: Collection[str]) -> None:
        self.text = text
        stems = terms(text)
        asked = set(stems)
        by_speaker = {speaker: set(terms(speaker)) for speaker in speakers}
        self.named = frozenset(speaker for speaker, name in by_speaker.items() if not asked.isdisjoint(name))
        self._name_stems = frozenset[str]().union(*(by_speaker[speaker] for speaker in self.named))
        self.content = tuple(dict.fromkeys(stem for stem in stems if stem not in self._name_stems))
        """Distinct stems without the named speakers' names."""
        self.topics = frozenset(self.content) - _ASKING
        """What it is about: `content` without the words of asking."""
        lowered = text.casefold()
        self.asks_time = _ASKS_TIME.match(lowered) is not None
        self.asks_name = _ASKS_NAME.match(lowered) is not None
        self.asks_list = _ASKS_LIST.match(lowered) is not None
        self.day, self.months, self.years = _dates_asked(text)

    @property
    def without_names(self) -> str:
        """The text without the named speakers' names; the text itself if nothing else is asked.

        The embedding takes a name for a topic: with it in the query, whoever is
        called by that name is found, and not what is asked of them.
        """
        if not self.named:
            return self.text
        plain = _NAME_LIKE.sub(lambda word: "" if self._names(word[0]) else word[0], self.text)
        return " ".join(plain.split()) if self.content else self.text

    def _names(self, word: str) -> bool:
        stems = terms(word)
        return bool(stems) and self._name_stems.issuperset(stems)


def may_name(text: str) -> bool:
    """Whether a query may name somebody: a word inside a sentence is capitalised, and is none of the common ones."""
    return any(
        word not in _FIRST_PERSON and word not in _TIME_WORDS and word not in _MONTH_NUMBERS and bool(terms(word))
        for word in map(_folded, _NAME.findall(text))
    )


def rank(text: str, candidates: Sequence[Candidate], *, limit: int | None = None) -> Ranking:
    """Order candidates by what a query asks. The same input gives the same ranking, in whatever order it comes.

    Args:
        limit: most candidates in the ranking; all weigh in it. None is all.
    """
    if not candidates:
        return Ranking((), 0.0)
    query = Query(text, {candidate.record.speaker for candidate in candidates})
    ordered = sorted(candidates, key=lambda candidate: candidate.record.memory_id.int)
    said = [_Said(candidate.record.text) for candidate in ordered]
    found = _features(query, ordered, said)
    scores = [_weigh(WEIGHTS, row) for row in found]
    best = sorted(range(len(ordered)), key=scores.__getitem__, reverse=True)  # equal ones stay by id
    doubt = DOUBT_BIAS + _weigh(DOUBT_WEIGHTS, _doubts(query, ordered, said, found, best))
    return Ranking(
        tuple(
            Ranked(
                ordered[place],
                math.exp(min(max(scores[place], -50.0), 50.0)),
                Features(*map(mul, WEIGHTS, found[place])),
            )
            for place in best[:limit]
        ),
        1 / (1 + math.exp(doubt)),
    )


def features(query: Query, candidates: Sequence[Candidate]) -> list[Features]:
    """The features of each candidate, in order. All are finite, whatever the words."""
    return _features(query, candidates, [_Said(candidate.record.text) for candidate in candidates])


class _Said:
    """What a candidate's text says, folded and cut into words once for a ranking.

    Attributes:
        asks: it ends in a question mark.
        text: its first LOOKED_AT characters, as they were said; `folded` without case.
        words: of `folded`, with what punctuation is around them.
        whole: `text` is all of it.
    """

    __slots__ = ("asks", "folded", "text", "whole", "words")

    def __init__(self, text: str) -> None:
        head = text[:LOOKED_AT]
        # An imported photo's caption follows what was said.
        self.text, caption, _ = head.partition("[shares a photo:")
        self.asks = (self.text if caption else text).rstrip().endswith(_QUESTION_MARKS)
        self.folded = _folded(self.text)
        self.words = self.folded.split()
        self.whole = not caption and len(head) == len(text)

    def has(self, words: frozenset[str]) -> bool:
        """Whether it has one of the words, punctuation around it aside."""
        # Most that are there stand bare, which is the quicker look.
        return not (words.isdisjoint(self.words) and words.isdisjoint(map(str.strip, self.words, repeat(_PUNCTUATION))))


def _weigh(weights: Sequence[float], values: Sequence[float]) -> float:
    total: float = sum(map(mul, weights, values))
    return total


def _features(query: Query, candidates: Sequence[Candidate], said: Sequence[_Said]) -> list[Features]:
    reciprocal = [fused(candidate.lexical, candidate.dense) for candidate in candidates]
    threads: dict[str, dict[int, int]] = {}
    for place, candidate in enumerate(candidates):
        threads.setdefault(candidate.record.thread, {})[candidate.record.ordinal] = place
    thread_best = {thread: max(reciprocal[place] for place in places.values()) for thread, places in threads.items()}
    best_words = max((candidate.lexical.score for candidate in candidates if candidate.lexical), default=0.0)
    dated = bool(query.months or query.years)
    found = []
    for place, candidate in enumerate(candidates):
        record, lexical, dense = candidate.record, candidate.lexical, candidate.dense
        own = said[place]
        around = threads[record.thread] if record.thread else {}
        nearby = 0.0
        for step in _NEARBY_STEPS if len(around) > 1 and not query.asks_list else ():
            other = around.get(record.ordinal + step)
            if other is not None:
                nearby += reciprocal[other] / abs(step)
        before = around.get(record.ordinal - 1)
        named = record.speaker in query.named
        speaks_of_time = own.has(_TIME_WORDS) or _YEAR.search(own.text) is not None
        month, day = _date_match(query, record, own) if dated else (0.0, 0.0)
        found.append(
            Features(
                fused=math.log(max(reciprocal[place], 1e-6)),
                lexical=max(lexical.score, 0.0) / best_words if lexical is not None and best_words > 0 else 0.0,
                cosine=0.0 if dense is None else dense.score,
                named=float(named),
                own_account=float(named and own.has(_FIRST_PERSON)),
                asks=float(own.asks),
                length=_length(own, record.text),
                answers=float(
                    before is not None and said[before].asks and candidates[before].record.speaker != record.speaker
                ),
                opening=float(bool(record.thread) and record.ordinal <= 1),
                nearby=nearby,
                thread_best=thread_best[record.thread] if record.thread else reciprocal[place],
                time=float(speaks_of_time),
                time_asked=float(speaks_of_time and query.asks_time),
                name_asked=float(query.asks_name and _CAPITALISED.search(own.text) is not None),
                month=month,
                day=day,
            )
        )
    return found


def _doubts(
    query: Query,
    candidates: Sequence[Candidate],
    said: Sequence[_Said],
    found: Sequence[Features],
    best: Sequence[int],
) -> Doubts:
    """The signs of a query without an answer.

    Args:
        candidates: at least one.
        said, found: of the candidates, in their order.
        best: their places, best first.
    """
    known: dict[int, set[str]] = {}

    def uses(place: int) -> set[str]:
        if place not in known:
            known[place] = _stems_held(query, candidates[place].record.text)
        return known[place]

    another_says, another_uses = _another(query, candidates, found, uses)
    return Doubts(
        another_says=another_says,
        another_uses=another_uses,
        unknown_name=float(_names_unknown(query, candidates, said)),
        unsaid=_unsaid(query, candidates, best, uses),
    )


def _another(
    query: Query, candidates: Sequence[Candidate], found: Sequence[Features], uses: Callable[[int], set[str]]
) -> tuple[float, float]:
    """The doubts `another_says` and `another_uses`."""
    is_named = [candidate.record.speaker in query.named for candidate in candidates]
    if all(is_named) or not any(is_named):
        return 0.0, 0.0
    content = [_weigh(_CONTENT_WEIGHTS, row) for row in found]
    by_content = sorted(range(len(candidates)), key=content.__getitem__, reverse=True)
    named = [place for place in by_content if is_named[place]]
    others = [place for place in by_content if not is_named[place]]
    top = content[by_content[0]]
    says = [math.log(sum(math.exp(content[place] - top) for place in side) + 1e-9) for side in (others, named)]
    shares = [
        statistics.fmean(sorted((len(uses(place)) for place in side[:BEST_LOOKED_AT]), reverse=True)[:3])
        for side in (others, named)
    ]
    return min(max(says[0] - says[1], -DOUBT_BOUND), DOUBT_BOUND), (shares[0] - shares[1]) / max(len(query.content), 1)


def _unsaid(
    query: Query, candidates: Sequence[Candidate], best: Sequence[int], uses: Callable[[int], set[str]]
) -> float:
    cosine = max((item.dense.score for item in candidates if item.dense is not None), default=COSINE_UNKNOWN)
    covered = 1.0
    if query.topics:
        together = set[str]().union(*(uses(place) for place in best[:BEST_LOOKED_AT]))
        covered = len(together & query.topics) / len(query.topics)
    return min(max(1 - (cosine + COVERED * covered) / RELATED, 0.0), 1.0)


def _stems_held(query: Query, text: str) -> set[str]:
    """The query's stems that a text has; beyond LOOKED_AT, those that stand in its letters."""
    stems = held(query.content, text[:LOOKED_AT])
    if len(text) > LOOKED_AT and len(stems) < len(query.content):
        rest = text[LOOKED_AT:]
        stems.update(stem for stem in query.content if stem in rest)
    return stems


def _names_unknown(query: Query, candidates: Sequence[Candidate], said: Sequence[_Said]) -> bool:
    names = {
        name: word
        for word in _NAME.findall(query.text)
        for name in (_bare(word) for word in _words(_folded(word)))
        # "I'm", "I'd've" and the like.
        if not name.startswith("i'") and name not in _TIME_WORDS and name not in _MONTH_NUMBERS
    }
    for speaker in {candidate.record.speaker for candidate in candidates} if names else ():
        for word in _words(_folded(speaker)):
            names.pop(_bare(word), None)
    for candidate, own in zip(candidates, said, strict=True):
        if not names:
            break
        text = candidate.record.text
        if len(text) > LOOKED_AT:
            rest = text[LOOKED_AT:]
            names = {name: word for name, word in names.items() if word not in rest}
        # A caption may hold one too.
        folded = own.folded if own.whole else _folded(text[:LOOKED_AT])
        # Most texts hold none of them: the cheap look comes first.
        if any(name in folded for name in names):
            for word in _words(folded):
                names.pop(_bare(word), None)
    return bool(names)


def _length(own: _Said, text: str) -> float:
    count = len(own.words)
    if count < MOST_WORDS and not own.whole:
        count = len(text.split(None, MOST_WORDS))
    return math.log(min(max(count, 3), MOST_WORDS) / 20)


def _folded(text: str) -> str:
    return text.casefold().replace("\u2019", "'")


def _words(folded: str) -> set[str]:
    return {word.strip(_PUNCTUATION) for word in folded.split()}


def _bare(word: str) -> str:
    return word.removesuffix("'s")


_NEARBY_STEPS: Final = tuple(step for step in range(-NEARBY_TURNS, NEARBY_TURNS + 1) if step)
_QUESTION_MARKS: Final = ("?", "\uff1f", "\u061f")
_PUNCTUATION: Final = '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\u2026\u201c\u201d'
_NAME_LIKE: Final = re.compile(r"\w+(?:['\u2019]\w*)?")
_CAPITALISED: Final = re.compile(r"(?<=[\w,;:] )[A-Z][a-z]{2,}|[\"\u201c][A-Z]")
_NAME: Final = re.compile(r"(?<=[\w,'\u2019] )[A-Z][\w'\u2019]+")
_YEAR: Final = re.compile(r"\b(?:19|20)\d\d\b")
_MONTH_NAMES: Final = "january february march april may june july august september october november december"
_MONTHS: Final = tuple(_MONTH_NAMES.split())
_MONTH_NUMBERS: Final = {name: number for number, name in enumerate(_MONTHS, start=1)}
_MONTH_NAMED: Final = re.compile(rf"\b(?:{'|'.join(_MONTHS)})\b", re.IGNORECASE)
_DAY_NAMED: Final = re.compile(
    rf"\b(\d{{1,2}})(?:st|nd|rd|th)? (?:of )?({'|'.join(_MONTHS)})\b"
    rf"|\b({'|'.join(_MONTHS)}) (\d{{1,2}})(?:st|nd|rd|th)?\b",
    re.IGNORECASE,
)
_ASKS_TIME: Final = re.compile(
    r"when\b|how long\b|(?:in |on |since )?(?:what|which) (?:date|day|week|month|year|time)\b"
)
_ASKS_NAME: Final = re.compile(
    r"wh(?:o|om|ose|ere|ich)\b|(?:in |to |from )?(?:what|which) (?:country|city|state|place|book|movie|film|band|game|"
    r"company|brand)s?\b|what(?:'s| is| are| was| were)? (?:the )?(?:name|title)s?\b"
)
_ASKS_LIST: Final = re.compile(r"(?:in |on |at )?(?:what|which|where|who)\b.*\b(?:has|have|does|do)\b")
_FIRST_PERSON_WORDS: Final = "i i'm i've i'd i'll me my mine myself we we're we've we'd we'll us our ours"
_FIRST_PERSON: Final = frozenset(_FIRST_PERSON_WORDS.split())
# Without "may", which is a verb more often.
_TIMES: Final = """
    yesterday today tonight tomorrow ago last next recently lately just soon since day days week weeks weekend month
    months year years monday tuesday wednesday thursday friday saturday sunday january february march april june july
    august september october november december
"""
_TIME_WORDS: Final = frozenset(_TIMES.split())
_ASKING_WORDS: Final = """
    what what's which who who's whom whose where where's when when's why how how's many much often long old if or
    remember recall know tell say any some anything something about can could would should
    i'm i've i'd i'll you're you've don't didn't doesn't isn't aren't wasn't weren't can't couldn't won't wouldn't
"""
_ASKING: Final = frozenset(terms(_ASKING_WORDS))
_CONTENT_WEIGHTS: Final = WEIGHTS._replace(**dict.fromkeys(OF_SPEAKER, 0.0))
_COUNTS: Final = {
    word: count
    for count, words in enumerate(
        ("a an one", "two couple", "three few", "four", "five", "six", "seven", "eight", "nine", "ten"), start=1
    )
    for word in words.split()
}
_UNIT_DAYS: Final = {"day": 1, "week": 7, "weekend": 7, "month": 30, "year": 365}
_SHIFTS: Final = {
    **{day: re.compile(rf"{day}(?<!\w{day})\b()") for day in ("yesterday", "tomorrow")},
    **{side: re.compile(rf"{side} (?<!\w{side} )(weekend|week|month|year)\b") for side in ("last", "past", "next")},
}
"""Distances in time of a folded text, by a word that each has to have."""
_AGO: Final = re.compile(r" ago\b")
_COUNTED: Final = re.compile(rf"\b(\d{{1,2}}|{'|'.join(_COUNTS)})(?: of)? (day|week|weekend|month|year)s?\Z")
"""What stands before "ago", at most _COUNTED_CHARS characters of it."""
_COUNTED_CHARS: Final = 24


def _dates_asked(text: str) -> tuple[tuple[int | None, int, int] | None, frozenset[int], frozenset[int]]:
    """A day as (year if given, month, day), the months and the years that a query names."""
    years = frozenset(map(int, _YEAR.findall(text)))
    # In lower case "may" and "march" are verbs.
    named = (match[0] for match in _MONTH_NAMED.finditer(text) if match[0][0].isupper())
    # Not every letter that matches without case folds to one of a month's: "Apr\u0131l".
    months = frozenset(month for name in named if (month := _MONTH_NUMBERS.get(name.casefold())) is not None)
    match = _DAY_NAMED.search(text)
    month = None if match is None else _MONTH_NUMBERS.get((match[2] or match[3]).casefold())
    if match is None or month is None:
        return None, months, years
    return (min(years, default=None), month, int(match[1] or match[4])), months, years


def _date_match(query: Query, record: MemoryRecord, own: _Said) -> tuple[float, float]:
    """The features `month` and `day`, of a query that names a month or a year."""
    told = record.occurred_at.date()
    if query.day is not None:
        year, month, day = query.day
        try:
            days = (told - date(told.year if year is None else year, month, day)).days
        except ValueError:
            return 0.0, 0.0
        return 0.0, math.exp(-abs(days) / 4) * (1.0 if days >= 0 else 0.5)
    return float(_of(query, told) or any(_of(query, moment) for moment in _spoken_of(told, own))), 0.0


def _of(query: Query, moment: date) -> bool:
    return (not query.months or moment.month in query.months) and (not query.years or moment.year in query.years)


def _spoken_of(told: date, own: _Said) -> Iterator[date]:
    """The days that a text speaks of relative to its own: "last month" is 30 days back."""
    for days in _shifts(own.folded):
        try:
            yield told + timedelta(days=days)
        except OverflowError:  # before year 1 or after 9999
            continue


def _shifts(folded: str) -> Iterator[int]:
    for cue, pattern in _SHIFTS.items():
        # Most texts have none of the words: the cheap look comes first.
        if cue in folded:
            sign = 1 if cue in ("next", "tomorrow") else -1
            for match in pattern.finditer(folded):
                yield sign * _UNIT_DAYS[match[1] or "day"]
    for ago in _AGO.finditer(folded) if " ago" in folded else ():
        # With its bounds `search` sees where a word begins before the first of them.
        before = _COUNTED.search(folded, max(ago.start() - _COUNTED_CHARS, 0), ago.start())
        if before is not None:
            yield -(int(before[1]) if before[1].isdigit() else _COUNTS[before[1]]) * _UNIT_DAYS[before[2]]
