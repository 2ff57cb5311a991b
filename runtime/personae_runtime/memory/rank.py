"""Order of the candidates, and whether the answer seems to be among them.

A candidate's score is a sum of named weights times cheap features of its words,
its places in the two arms and the candidates around it (`features`): a log-linear
model, fitted by listwise softmax (Cao et al., "Learning to Rank: From Pairwise
Approach to Listwise Approach", 2007) on LoCoMo. `docs/memory.md` has what it and
each weight bring on conversations held out.

The cues in words (first person, times, question words) are English. In other
languages they are silent, and arms, speakers, length and order still count.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from operator import mul
from typing import Final, NamedTuple

from personae_runtime.memory.index import Place
from personae_runtime.memory.lexical import terms
from personae_runtime.memory.store import MemoryRecord

NEARBY_TURNS: Final = 3
"""How far away in a thread another candidate still lends weight."""


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
        length: ln(words / 20), words held to 3 to 100: a longer memory says more.
        answers: another speaker's question comes just before it.
        opening: one of the first two of its thread, where news is told.
        nearby: fused scores of other candidates of the thread up to NEARBY_TURNS away, each divided by its distance.
        nearby_list: the same where the query asks for all of something, whose parts lie apart.
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
    nearby_list: float
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
    nearby_list=-0.95,
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
    """

    another_says: float
    another_uses: float
    unknown_name: float


DOUBT_WEIGHTS: Final = Doubts(another_says=2.0, another_uses=2.3, unknown_name=3.3)
DOUBT_BIAS: Final = -0.3
"""Logistic regression on LoCoMo, its questions of category 5 and those of other conversations
against those with an answer: confidence is 1 / (1 + exp(DOUBT_BIAS + weights times doubts))."""

DOUBT_BOUND: Final = 5.0

LOW_CONFIDENCE: Final = 0.42
"""Below it a result is better not used. Chosen so that 8 % of the questions that have an answer fall below."""


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


def rank(text: str, candidates: Sequence[Candidate]) -> Ranking:
    """Order candidates by what a query asks. The same input gives the same ranking, in whatever order it comes."""
    if not candidates:
        return Ranking((), 0.0)
    query = Query(text, {candidate.record.speaker for candidate in candidates})
    ordered = sorted(candidates, key=lambda candidate: candidate.record.memory_id.int)
    found = features(query, ordered)
    scores = [_weigh(WEIGHTS, row) for row in found]
    best = sorted(range(len(ordered)), key=lambda place: -scores[place])
    doubt = DOUBT_BIAS + _weigh(DOUBT_WEIGHTS, doubts(query, ordered, found, scores))
    return Ranking(
        tuple(
            Ranked(
                ordered[place],
                math.exp(min(max(scores[place], -50.0), 50.0)),
                Features(*(weight * value for weight, value in zip(WEIGHTS, found[place], strict=True))),
            )
            for place in best
        ),
        1 / (1 + math.exp(doubt)),
    )


def _weigh(weights: Sequence[float], values: Sequence[float]) -> float:
    total: float = sum(map(mul, weights, values))
    return total


def features(query: Query, candidates: Sequence[Candidate]) -> list[Features]:
    """The features of each candidate, in order. All are finite, whatever the words."""
    reciprocal = [fused(candidate.lexical, candidate.dense) for candidate in candidates]
    said = [_said(candidate.record.text) for candidate in candidates]
    asking = [text.endswith(_QUESTION_MARKS) for text in said]
    threads: dict[str, dict[int, int]] = {}
    for place, candidate in enumerate(candidates):
        threads.setdefault(candidate.record.thread, {})[candidate.record.ordinal] = place
    thread_best = {thread: max(reciprocal[place] for place in places.values()) for thread, places in threads.items()}
    best_words = max((candidate.lexical.score for candidate in candidates if candidate.lexical), default=0.0)
    found = []
    for place, (record, lexical, dense) in enumerate((item.record, item.lexical, item.dense) for item in candidates):
        words = _words(said[place])
        around = threads[record.thread] if record.thread else {}
        nearby = 0.0
        for step in _NEARBY_STEPS:
            other = around.get(record.ordinal + step)
            if other is not None:
                nearby += reciprocal[other] / abs(step)
        before = around.get(record.ordinal - 1)
        named = record.speaker in query.named
        speaks_of_time = not _TIME_WORDS.isdisjoint(words) or _YEAR.search(said[place]) is not None
        month, day = _date_match(query, record, said[place]) if query.months or query.years else (0.0, 0.0)
        found.append(
            Features(
                fused=math.log(max(reciprocal[place], 1e-6)),
                lexical=max(lexical.score, 0.0) / best_words if lexical is not None and best_words > 0 else 0.0,
                cosine=0.0 if dense is None else dense.score,
                named=float(named),
                own_account=float(named and not _FIRST_PERSON.isdisjoint(words)),
                asks=float(asking[place]),
                length=math.log(min(max(len(record.text.split()), 3), 100) / 20),
                answers=float(
                    before is not None and asking[before] and candidates[before].record.speaker != record.speaker
                ),
                opening=float(bool(record.thread) and record.ordinal <= 1),
                nearby=nearby,
                nearby_list=nearby if query.asks_list else 0.0,
                thread_best=thread_best[record.thread] if record.thread else reciprocal[place],
                time=float(speaks_of_time),
                time_asked=float(speaks_of_time and query.asks_time),
                name_asked=float(query.asks_name and _CAPITALISED.search(said[place]) is not None),
                month=month,
                day=day,
            )
        )
    return found


def doubts(query: Query, candidates: Sequence[Candidate], found: Sequence[Features], scores: Sequence[float]) -> Doubts:
    """The signs of a query without an answer.

    Args:
        candidates: at least one.
        found, scores: of the candidates, in their order.
    """
    of_speaker = [Features._fields.index(name) for name in OF_SPEAKER]
    content = [
        score - sum(WEIGHTS[place] * row[place] for place in of_speaker)
        for score, row in zip(scores, found, strict=True)
    ]
    by_content = sorted(range(len(candidates)), key=lambda place: -content[place])
    named = [place for place in by_content if candidates[place].record.speaker in query.named]
    others = [place for place in by_content if candidates[place].record.speaker not in query.named]
    another_says = another_uses = 0.0
    if named and others:
        top = content[by_content[0]]
        says = [math.log(sum(math.exp(content[place] - top) for place in side) + 1e-9) for side in (others, named)]
        another_says = min(max(says[0] - says[1], -DOUBT_BOUND), DOUBT_BOUND)
        uses = [
            statistics.fmean(sorted((_covers(query, candidates[place]) for place in side[:5]), reverse=True)[:3])
            for side in (others, named)
        ]
        another_uses = uses[0] - uses[1]
    return Doubts(
        another_says=another_says,
        another_uses=another_uses,
        unknown_name=float(_names_unknown(query, candidates)),
    )


def _covers(query: Query, candidate: Candidate) -> float:
    held = set(terms(candidate.record.text))
    return len(held.intersection(query.content)) / max(len(query.content), 1)


def _names_unknown(query: Query, candidates: Sequence[Candidate]) -> bool:
    names = {word.removesuffix("'s") for name in _NAME.findall(query.text) for word in _words(name)}
    for candidate in candidates:
        if not names:
            break
        record = candidate.record
        text = f"{record.speaker} {record.text}".casefold()
        # Most texts hold none of them: the cheap look comes first.
        if any(name in text for name in names):
            names.difference_update(word.removesuffix("'s") for word in _words(text))
    return not names <= _TIME_WORDS | set(_MONTHS)


def _words(text: str) -> list[str]:
    return [word.strip(_PUNCTUATION) for word in text.casefold().replace("\u2019", "'").split()]


def _said(text: str) -> str:
    # An imported photo's caption follows what was said.
    return text.partition("[shares a photo:")[0].rstrip()


_NEARBY_STEPS: Final = tuple(step for step in range(-NEARBY_TURNS, NEARBY_TURNS + 1) if step)
_QUESTION_MARKS: Final = ("?", "\uff1f", "\u061f")
_PUNCTUATION: Final = '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\u2026\u201c\u201d'
_NAME_LIKE: Final = re.compile(r"\w+(?:['\u2019]\w*)?")
_CAPITALISED: Final = re.compile(r"(?<=[\w,;:] )[A-Z][a-z]{2,}|[\"\u201c][A-Z]")
_NAME: Final = re.compile(r"(?<=[\w,'\u2019] )[A-Z][\w'\u2019]+")
_YEAR: Final = re.compile(r"\b(?:19|20)\d\d\b")
_MONTH_NAMES: Final = "january february march april may june july august september october november december"
_MONTHS: Final = tuple(_MONTH_NAMES.split())
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
_COUNTS: Final = {
    word: count
    for count, words in enumerate(
        ("a an one", "two couple", "three few", "four", "five", "six", "seven", "eight", "nine", "ten"), start=1
    )
    for word in words.split()
}
_UNIT_DAYS: Final = {"day": 1, "week": 7, "weekend": 7, "month": 30, "year": 365}
_SHIFT: Final = re.compile(
    r"\b(?:(yesterday)|(tomorrow)|(last|past|next) (weekend|week|month|year)"
    r"|(\d{1,2}|[a-z]+)(?: of)? (day|week|weekend|month|year)s? ago)\b",
    re.IGNORECASE,
)


def _dates_asked(text: str) -> tuple[tuple[int | None, int, int] | None, frozenset[int], frozenset[int]]:
    """A day as (year if given, month, day), the months and the years that a query names."""
    years = frozenset(map(int, _YEAR.findall(text)))
    # In lower case "may" and "march" are verbs.
    months = frozenset(
        _MONTHS.index(match[0].casefold()) + 1 for match in _MONTH_NAMED.finditer(text) if match[0][0].isupper()
    )
    match = _DAY_NAMED.search(text)
    if match is None:
        return None, months, years
    month = _MONTHS.index((match[2] or match[3]).casefold()) + 1
    return (min(years, default=None), month, int(match[1] or match[4])), months, years


def _date_match(query: Query, record: MemoryRecord, said: str) -> tuple[float, float]:
    """The features `month` and `day`, of a query that names a month or a year."""
    told = record.occurred_at.date()
    if query.day is not None:
        year, month, day = query.day
        try:
            days = (told - date(told.year if year is None else year, month, day)).days
        except ValueError:
            return 0.0, 0.0
        return 0.0, math.exp(-abs(days) / 4) * (1.0 if days >= 0 else 0.5)
    meant = (told, *(told + shift for shift in _shifts(said)))
    hit = any(
        (not query.months or moment.month in query.months) and (not query.years or moment.year in query.years)
        for moment in meant
    )
    return float(hit), 0.0


def _shifts(said: str) -> list[timedelta]:
    """Distances to the days that a text speaks of relative to its own: "last month" is 30 days back."""
    found = []
    for match in _SHIFT.finditer(said):
        yesterday, tomorrow, side, side_unit, count, unit = match.groups()
        if yesterday or tomorrow:
            found.append(timedelta(days=-1 if yesterday else 1))
        elif side:
            days = _UNIT_DAYS[side_unit.casefold()]
            found.append(timedelta(days=days if side.casefold() == "next" else -days))
        else:
            times = int(count) if count.isdigit() else _COUNTS.get(count.casefold(), 0)
            found.append(timedelta(days=-times * _UNIT_DAYS[unit.casefold()]))
    return found
