"""Facts from a person's own words, by rules and without a model.

The rules know what people say of themselves in the first person, and are
cautious: a question, a quotation, what somebody else said, and what is only
wished, supposed or joked is no fact. A denial ("I don't live in Porto any
more") is told as one. Nothing here may be given words of the assistant's.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Final

from personae_runtime.memory.store import Basis, MemoryRecord
from personae_runtime.memory.timeline import ANY, Claim
from personae_runtime.memory.times import TimeSpan, intervals, squeeze
from personae_runtime.policy.decision import PolicyContext

Draw = Callable[[MemoryRecord, PolicyContext], "tuple[Statement, ...]"]
"""What a memory in the person's own words states, as far as policy lets it be remembered."""

RULES: Final = "rules-1"
"""Names the rules, with their version, as the extractor of what they find."""

MAX_STATEMENTS: Final = 8
"""Of one text; somebody who lists more than this is not talking."""

MAX_PLACES: Final = 32
"""Of one text that state something, the same again included."""

MAX_TEXT_CHARS: Final = 2_000
"""Characters of a text that are looked at, so that a long one does not hold up everybody else."""

MAX_SENTENCE_CHARS: Final = 300
"""A longer sentence is passed over, runs of white space counted as one character."""

MAX_VALUE_CHARS: Final = 80

SURE: Final = 0.9
LIKELY: Final = 0.7


@dataclass(frozen=True, slots=True)
class Statement:
    """What one place of a text says about the person.

    Attributes:
        predicate, value: such as `lives_in`, `Porto`; a denial of everything has the value `timeline.ANY`.
        slot: what only one statement may say at a time; what a person has several of has the value in it.
        begin, end: characters of the text, the end excluded.
        known_at: when it is known to have held.
        valid_from, valid_to: aware, UTC, the end excluded, as far as the text says.
        denied: it holds no more.
    """

    predicate: str
    value: str
    slot: tuple[str, ...]
    begin: int
    end: int
    known_at: datetime
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    denied: bool = False
    confidence: float = SURE
    basis: Basis = Basis.STATED
    extractor: str = RULES


@dataclass(frozen=True, slots=True)
class Kind:
    """What there is to know of a predicate.

    Attributes:
        says, denies: the sentence of a value.
        words: what a question about it may ask for, and its sentence does not say.
        rank: place in a profile, lowest first; None keeps it out.
        half_life_days: after which what was said counts half as much; None is never.
        single: only one value at a time.
    """

    says: str
    denies: str
    words: str = ""
    rank: int | None = None
    half_life_days: float | None = None
    single: bool = False


KINDS: Final = {
    "name": Kind("Name: {}.", "Is not called {}.", "who am I called", 0, None, True),
    "called": Kind("Likes to be called {}.", "Does not want to be called {}.", "name nickname", 1, None, True),
    "lives_in": Kind("Lives in {}.", "Does not live in {} any more.", "where live home city town moved", 2, 1460, True),
    "works_as": Kind("Works as {}.", "Does not work as {} any more.", "job work profession living", 3, 1460, True),
    "works_at": Kind("Works at {}.", "Does not work at {} any more.", "job employer company where work", 4, 1460, True),
    "studies": Kind("Studies {}.", "Does not study {} any more.", "university college degree", 5, 1095, True),
    "age": Kind("Age: {}.", "Is not {} any more.", "how old years", 6, 365, True),
    "birthday": Kind("Birthday: {}.", "Birthday is not {}.", "when was I born", 7, None, True),
    "comes_from": Kind("Comes from {}.", "Does not come from {}.", "where from home country", 8, None, True),
    "born_in": Kind("Born in {}.", "Was not born in {}.", "where from birthplace", 9, None, True),
    "grew_up_in": Kind("Grew up in {}.", "Did not grow up in {}.", "where from childhood", 10, None, True),
    "relation": Kind("{}.", "No more: {}.", "family friend called name who", 11, 2920),
    "pet": Kind("Has a pet: {}.", "Has no more: {}.", "animal pet called name", 12, 2920),
    "allergic_to": Kind("Allergic to {}.", "Not allergic to {}.", "allergy allergies eat avoid food", 13),
    "diet": Kind("Diet: {}.", "Diet is not {} any more.", "eat food vegetarian vegan avoid", 14, 2190),
    "speaks": Kind("Speaks {}.", "Does not speak {}.", "language languages", 15),
    "learns": Kind("Learns {}.", "Does not learn {} any more.", "language learning study", 16, 365),
    "owns": Kind("Has {}.", "Does not have {} any more.", "own possession", 17, 1460),
    "favourite": Kind("Favourite {}.", "No more: favourite {}.", "favorite best like most", 18, 1095, True),
    "likes": Kind("Likes {}.", "Does not like {} any more.", "love enjoy hobby interests", 19, 730),
    "dislikes": Kind("Dislikes {}.", "Does not dislike {} any more.", "hate avoid not like", 20, 730),
    "plans": Kind("Plans: {}.", "Does not plan: {}.", "going to upcoming when trip", None, 60),
}
"""Every predicate that a fact may have."""


def extract(text: str, said_at: datetime) -> tuple[Statement, ...]:
    """What a person's own words say about them, at most MAX_STATEMENTS, in the order of the text.

    Args:
        said_at: aware; what "since last week" counts from.
    """
    said_at, squeezed = said_at.astimezone(UTC), squeeze(text[:MAX_TEXT_CHARS])
    text = squeezed.text
    if _JOKE.search(text):
        return ()
    found: dict[tuple[object, ...], Statement] = {}
    places = 0
    for begin, end in _sentences(text):
        if end - begin > MAX_SENTENCE_CHARS:
            continue
        for one in _stated(_Sentence(text[begin:end]), said_at):
            first, last = squeezed.origin(begin + one.begin), squeezed.origin(begin + one.end - 1) + 1
            key = (one.slot, one.predicate, normalise(one.value), one.denied)
            found.setdefault(key, replace(one, begin=first, end=last))
            places += 1
        if len(found) >= MAX_STATEMENTS or places >= MAX_PLACES:
            break
    return tuple(sorted(found.values(), key=_place)[:MAX_STATEMENTS])


def _stated(sentence: _Sentence, said_at: datetime) -> list[Statement]:
    """What a sentence states, in its order."""
    said = sentence.text
    if sentence.asked or not _PERSONAL.search(said):
        return []
    words = set(_LETTERS.findall(said.lower()))
    if _DIGIT.search(said):
        words.add("0")
    times: list[TimeSpan] | None = None
    found: list[Statement] = []
    for rule in sorted({rule for word in words & _RULES_OF.keys() for rule in _RULES_OF[word]}):
        _, pattern, make = _RULES[rule]
        for match in pattern.finditer(said):
            if not sentence.asserts(match.start()):
                continue
            if times is None:
                times = intervals(said, said_at)
            found += [
                one
                for one in make(_Said(match, sentence, said_at, times))
                if one.value == ANY or (normalise(one.value) and len(one.value) <= MAX_VALUE_CHARS)
            ]
    return sorted(found, key=_place)


def _place(statement: Statement) -> tuple[int, int, str]:
    return statement.begin, statement.end, statement.predicate


def is_asserted(text: str, at: int) -> bool:
    """Whether the person states what begins at a place of their words: not asked, quoted, wished, denied or joked."""
    if _JOKE.search(text):
        return False
    for begin, end in _sentences(text):
        if begin <= at < end:
            if end - begin > MAX_SENTENCE_CHARS:
                return False
            sentence = _Sentence(text[begin:end])
            return not sentence.asked and sentence.asserts(at - begin) and not sentence.denies(at - begin)
    return False


def drawing(allows: Callable[[str, PolicyContext], bool], *, enabled: bool = True) -> Draw:
    """Draws from a memory in the person's own words what `allows` lets be remembered; nothing if not enabled."""

    def draw(record: MemoryRecord, context: PolicyContext) -> tuple[Statement, ...]:
        found = extract(record.text, record.occurred_at) if enabled else ()
        return tuple(one for one in found if allows(sentence(one.predicate, one.value, denied=one.denied), context))

    return draw


def sentence(predicate: str, value: str, *, denied: bool = False) -> str:
    """A fact in words, on one line."""
    kind = KINDS[predicate]
    return (kind.denies if denied else kind.says).format(" ".join(value.split()) or "anything")


def question_words(predicate: str) -> str:
    """Words that a question about a fact may use where its sentence has others; empty for an unknown predicate."""
    kind = KINDS.get(predicate.removeprefix("not "))
    return "" if kind is None else kind.words


def slot_of(predicate: str, value: str) -> tuple[str, ...]:
    """What only one statement may say at a time: whether somebody likes something, where they live."""
    if predicate in ("likes", "dislikes"):
        return ("opinion", normalise(value))
    if predicate == "favourite":
        return ("favourite", normalise(value.partition(":")[0]))
    return (predicate,) if KINDS[predicate].single else (predicate, normalise(value))


def normalise(value: str) -> str:
    """A value as it is compared: case, articles and punctuation do not count."""
    words = re.findall(r"\w+", value.casefold())
    return " ".join(word for word in words if word not in ("a", "an", "the", "my", "our", "some"))


def is_persons(record: MemoryRecord, user: str) -> bool:
    """Whether a memory is in the person's own words: its speaker is the user's id, or says so in general."""
    own = _plain(user)
    return _plain(record.speaker) in ({own} if own else set()) | {"user", "me", "human", "customer"}


def claim(record: MemoryRecord, statement: Statement) -> Claim:
    """A statement as a claim on its slot, by the memory that says it."""
    return Claim(
        memory_id=record.memory_id,
        begin=statement.begin,
        end=statement.end,
        predicate=statement.predicate,
        value=statement.value,
        key=f"{statement.predicate} {normalise(statement.value)}",
        denied=statement.denied,
        said_at=record.occurred_at,
        known_at=statement.known_at,
        valid_from=statement.valid_from,
        valid_to=statement.valid_to,
        confidence=statement.confidence,
        basis=statement.basis,
        extractor=statement.extractor,
        expires_at=record.expires_at,
        thread=record.thread,
    )


def _plain(name: str) -> str:
    return re.sub(r"\W", "", name.casefold())


# -- what is no fact -----------------------------------------------------------

_JOKE = re.compile(r"\b(?:just kidding|only kidding|joking|jk|role ?-?play|hypothetical\w*)\b", re.IGNORECASE)
_PERSONAL = re.compile(r"\b(?:i|my|we|our|me)\b|^\W*(?:(?:and|but|well),?\s+)?back\b", re.IGNORECASE)
_LETTERS = re.compile(r"[^\W\d_]+")
_DIGIT = re.compile(r"\d")
_QUOTED = re.compile(r"\"[^\"]*\"|“[^“”]*”|«[^«»]*»|\*[^*]+\*|(?<!\w)'[^']{3,}'(?!\w)")
_SPEECH = (
    r"(?:said|says|say|told|tells|thinks?|thought|claims?|claimed|asks?|asked|wrote|writes|believes?|heard|assumed?)"
)
_OTHERS = re.compile(
    rf"(?<![\w'’])(?!['’]*i(?![\w'’]))[\w'’]+\s+(?:(?:always|once|just|also|still|keeps?|kept)\s+)?{_SPEECH}\b(?!\s+goodbye)"
    r"|\baccording to\b|\b(?:quote|lyrics?|the song|in the (?:game|book|film|movie|story|novel)|my character)\b",
    re.IGNORECASE,
)
_SUPPOSED = re.compile(
    r"\b(?:if|unless|wish(?:es|ed)?|would|could|should|might|maybe|perhaps|imagin\w*|suppos\w*|pretend\w*|dream\w*"
    r"|hop(?:e|es|ed|ing)|want(?:s|ed)?|considering|thinking (?:of|about)|almost|nearly|as though|whether|probably"
    r"|not sure|what|when|until|before|how|never|doubt|guess|nobody|like i)\b",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"\b(?:not|no|never|none|nothing|nobody|neither|nor|without|cannot|hardly|used to|any ?more|dont|doesnt|didnt|isnt"
    r"|cant)\b|n['’]t\b",
    re.IGNORECASE,
)
_CLAUSE_END = re.compile(r"[,;]|\b(?:and|but|because|so|although|though|while)\b", re.IGNORECASE)


class _Sentence:
    """A sentence, and what in it takes back what it says; each looked for once."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.asked = text.rstrip().endswith(("?", "？"))

    @cached_property
    def _quoted(self) -> list[tuple[int, int]]:
        return [match.span() for match in _QUOTED.finditer(self.text)]

    @cached_property
    def _others_from(self) -> int:
        """Where what somebody else said begins."""
        match = _OTHERS.search(self.text)
        return len(self.text) if match is None else match.end()

    @cached_property
    def _supposed(self) -> list[int]:
        """Ends of the words that suppose what follows, up to a comma."""
        return [match.end() for match in _SUPPOSED.finditer(self.text)]

    def asserts(self, at: int) -> bool:
        """Whether what begins at a place is the person's own words, and neither wished nor supposed."""
        if at >= self._others_from or any(begin <= at < end for begin, end in self._quoted):
            return False
        if self.text[:at].rstrip().endswith(("'d", "’d", "'D", "’D")):
            return False
        cues = bisect_right(self._supposed, at)
        between = self.text[self._supposed[cues - 1] : at] if cues else ","
        return "," in between or ";" in between

    def denies(self, at: int) -> bool:
        """Whether a word before a place, or behind it in its clause, says that it is not so."""
        end = _CLAUSE_END.search(self.text, at)
        return _DENIED.search(self.text, 0, len(self.text) if end is None else end.start()) is not None


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    for match in re.finditer(r"(?:[^.!?\n;]+|\.(?=\w)|(?<=\b[A-Z])\.(?=\s[A-Z])|(?<=\bSt)\.)+[.!?？]*", text):
        if match[0].strip():
            yield match.span()


# -- how a rule makes statements -----------------------------------------------


@dataclass(frozen=True, slots=True)
class _Said:
    """A rule's match in its sentence, and the times that the sentence names."""

    match: re.Match[str]
    sentence: _Sentence
    said_at: datetime
    times: list[TimeSpan]

    def statement(
        self,
        predicate: str,
        value: str,
        *,
        event: bool = False,
        past: bool = False,
        denied: bool = False,
        confidence: float = SURE,
        slot: tuple[str, ...] | None = None,
    ) -> Statement:
        """A statement at the match; the time beside it is read as the match's form asks.

        Args:
            event: it happened then, and holds since.
            past: it is over.
        """
        value = _tidy(value)
        valid_from: datetime | None = None
        valid_to: datetime | None = None
        known_at, end = self.said_at, self.match.end()
        time = self._time()
        word = "" if time is None else self.sentence.text[time.start_char : time.end_char].split()[0].lower()
        if time is not None and time.begin <= self.said_at:
            end = max(end, time.end_char)
            if past and word in ("until", "till"):
                valid_to = time.begin
            elif past and word not in ("for", "over"):
                valid_from, valid_to = time.begin, min(time.end, self.said_at)
            elif denied or event:
                valid_from, known_at = time.begin, min(time.end, self.said_at)
            elif word in ("since", "for", "over", "from"):
                valid_from = time.begin
        if past and valid_to is None:
            valid_to = self.said_at
        if valid_from is not None and valid_to is not None and valid_from >= valid_to:
            valid_from = None
        return Statement(
            predicate,
            value,
            slot or slot_of(predicate, value),
            self.match.start(),
            end,
            known_at,
            valid_from,
            valid_to,
            denied,
            confidence,
        )

    def _time(self) -> TimeSpan | None:
        """The time nearest to the match, if no other first person's verb stands between."""
        (begin, end), said = self.match.span(), self.sentence.text
        before = bisect_right(self.times, begin, key=lambda one: one.end_char)
        if before < len(self.times):
            one = self.times[before]
            if not _NEW_CLAUSE.search(said, end, max(end, one.start_char)):
                return one
        if before and not _NEW_CLAUSE.search(said, self.times[before - 1].end_char, begin):
            return self.times[before - 1]
        return None


_NEW_CLAUSE = re.compile(r"\b(?:i|we|he|she|they|you|but|because|although|while|my)\b|;", re.IGNORECASE)
_Make = Callable[[_Said], list[Statement]]


def _tidy(value: str) -> str:
    return " ".join(value.split()).strip(" ,.!;:-–\"'’")


def _as(
    predicate: str, *, event: bool = False, past: bool = False, denied: bool = False, confidence: float = SURE
) -> _Make:
    return lambda said: [
        said.statement(predicate, value, event=event, past=past, denied=denied, confidence=confidence)
        for value in _listed(said.match["value"], predicate)
    ]


def _listed(value: str, predicate: str) -> list[str]:
    if predicate not in ("allergic_to", "speaks", "learns"):
        return [value]
    return [part for part in re.split(r"\s*,\s*(?:and\s+)?|\s+(?:and|or)\s+", value) if part]


def _nothing_at(predicate: str) -> _Make:
    return lambda said: [said.statement(predicate, ANY, denied=True, slot=(predicate,))]


def _moved(said: _Said) -> list[Statement]:
    made = [said.statement("lives_in", said.match["value"], event=True)]
    left = said.match["left"]
    if left and normalise(left) != normalise(made[0].value):
        made.append(said.statement("lives_in", left, denied=True))
    return made


def _opinion(said: _Said) -> list[Statement]:
    thing = _tidy(said.match["value"])
    if not thing or thing.split()[0].lower() in _NO_THING or thing.lower() in _NO_THING:
        return []
    if re.search(r"\bno (?:longer|more)\b", thing, re.IGNORECASE):
        return []
    verb, how = said.match["verb"].lower(), (said.match["how"] or "").lower()
    negated = " ".join((said.match["not"] or "").lower().replace("’", "'").split())
    predicate, denied = ("dislikes" if verb in _AVERSIONS else "likes"), bool(negated)
    if verb in ("stand", "bear"):
        if negated not in ("can't", "cannot"):
            return []
        denied = False
    elif negated in ("can't", "cannot") or (negated and how in ("absolutely", "quite")):
        # "I can't love" and "I don't absolutely love" deny less than they seem to.
        return []
    elif negated in ("don't", "do not") and verb == "like":
        predicate, denied = "dislikes", False
    # At the fourth word what is liked may not be over: it is cut where it can end.
    value, changed = _ANY_MORE_AT_END.subn("", re.split(r"\s+[-–]|'s a\b", thing)[0])
    value = _DANGLING.sub("", value)
    return [said.statement(predicate, value, event=changed > 0, denied=denied, confidence=LIKELY)]


_ANY_MORE_AT_END = re.compile(r"\s+any ?more$", re.IGNORECASE)
_DANGLING = re.compile(
    r"(?:\s+(?:with|my|an?|the|on|this|that|about|in|at|of|to|and|or|by|from|into|its|our|your|their|his|her|some|more"
    r"|even|as|than))+$",
    re.IGNORECASE,
)


def _favourite(said: _Said) -> list[Statement]:
    value = f"{_tidy(said.match['what'])}: {_tidy(said.match['value'])}"
    return [said.statement("favourite", value)]


def _relation(said: _Said) -> list[Statement]:
    who = said.match["who"].lower()
    name = re.sub(r"['’]s$", "", _tidy(said.match["value"]))
    if name.split()[0].lower() in _NO_NAME:
        return []
    # Of some there is one at a time; of a sister there may be several.
    slot = ("relation", who) if who in _ONE_OF else ("relation", who, normalise(name))
    return [said.statement("relation", f"{who[0].upper()}{who[1:]} {name}", slot=slot)]


def _pet(said: _Said) -> list[Statement]:
    animal, name = said.match["animal"].lower(), _tidy(said.match["value"])
    if name.split()[0].lower() in _NO_NAME:
        return []
    slot = ("pet", animal, normalise(name))
    gone = "gone" in said.match.re.groupindex and said.match["gone"] is not None
    return [said.statement("pet", f"{animal} {name}", slot=slot, denied=gone)]


def _diet(said: _Said) -> list[Statement]:
    diet = said.match["value"].lower()
    slot = ("diet",) if diet in ("vegetarian", "vegan", "pescatarian") else ("diet", normalise(diet))
    denied = bool(said.match["not"])
    changed = (said.match["verb"] or "").lower() in ("became", "went", "turned")
    return [said.statement("diet", diet, slot=slot, denied=denied, event=changed and not denied)]


_YEAR: Final = timedelta(days=365)
_LATEST: Final = datetime.max.replace(tzinfo=UTC)


def _age(said: _Said) -> list[Statement]:
    years = int(said.match["value"])
    if not 4 < years < 115:
        return []
    made = said.statement("age", str(years))
    # Nobody is of an age for longer than a year.
    over = None if said.said_at > _LATEST - _YEAR else said.said_at + _YEAR
    return [
        Statement("age", made.value, made.slot, made.begin, said.match.end(), said.said_at, None, over, confidence=0.8)
    ]


def _birthday(said: _Said) -> list[Statement]:
    value = _tidy(said.match["value"])
    return [said.statement("birthday", value)] if re.search(r"\d", value) else []


def _owned(said: _Said) -> list[Statement]:
    thing = said.match["thing"].lower()
    event = said.match["verb"].lower() in ("bought", "got")
    value = _tidy(said.match["value"])
    return [said.statement("owns", value, event=event, slot=("owns", thing), confidence=LIKELY)]


def _sold(said: _Said) -> list[Statement]:
    return [said.statement("owns", ANY, denied=True, slot=("owns", said.match["thing"].lower()))]


def _plan(said: _Said) -> list[Statement]:
    time = next((one for one in said.times if one.end > said.said_at and one.begin > said.said_at), None)
    if time is None or time.start_char < said.match.start():
        return []
    what = _tidy(said.sentence.text[said.match.start("value") : time.start_char])
    what = re.sub(r"\s+(?:on|in|at|the|for|this|until|by)$", "", what)
    if not 3 <= len(what) <= MAX_VALUE_CHARS - 20:
        return []
    when = f"{time.begin:%Y-%m-%d}" if time.end - time.begin <= timedelta(days=1) else f"{time.begin:%Y-%m}"
    value = f"{what} ({when})"
    return [
        Statement(
            "plans",
            value,
            ("plans", normalise(what)),
            said.match.start(),
            time.end_char,
            said.said_at,
            said.said_at,
            time.end,
            confidence=LIKELY,
        )
    ]


# -- the words of the rules ----------------------------------------------------

_I = r"\b(?:I|i)"
_AM = rf"{_I}(?:['’]m|\s+am)"
_HAVE = rf"{_I}(?:['’]ve|\s+have)"
_ADVERBS = r"(?:now|currently|still|actually|finally|just|recently|really|also|already|mostly|again|permanently)"
_ADVERB = rf"(?:\s+{_ADVERBS}){{0,3}}"
# The only parts that tell upper from lower case: a name is written with a capital.
_WORD = r"(?-i:[A-ZÀ-ÖØ-Þ][\w'’&.-]*\w|[A-ZÀ-ÖØ-Þ])(?!\w)"
_NAME = rf"(?:{_WORD}(?:\s+(?:(?-i:de|da|do|dos|del|la|le|van|von|der|of|the|upon|and the)\s+)?{_WORD}){{0,3}})"
_PLACE = rf"(?:the\s+)?{_NAME}(?:,\s+{_NAME})?"
_ANY_MORE = r"(?:\s+any\s?more)?"

_ANIMALS = (
    r"dog|puppy|cat|kitten|rabbit|bunny|hamster|guinea pig|parrot|budgie|horse|pony|tortoise|turtle|snake"
    r"|lizard|gecko|goldfish|fish|hen|chicken|goat|ferret"
)
_ANIMAL = rf"(?P<animal>{_ANIMALS})"
_PEOPLE = (
    r"wife|husband|partner|girlfriend|boyfriend|fiancée|fiancé|fiancee|fiance|sister|brother|mother|mum|mom|father|dad|son"
    r"|daughter|grandmother|grandma|grandfather|grandpa|aunt|uncle|niece|nephew|cousin|best friend|boss|roommate"
    r"|flatmate|housemate|neighbour|neighbor|colleague|twin|stepmother|stepfather"
)
_WHO = rf"(?P<who>{_PEOPLE})"
_SINGLES: Final = "wife husband partner girlfriend boyfriend fiancé fiancée mother mum mom father dad boss"
_ONE_OF: Final = frozenset(_SINGLES.split())
_THINGS = (
    r"car|bike|bicycle|motorbike|motorcycle|scooter|van|campervan|caravan|boat|sailboat|kayak|canoe"
    r"|surfboard|house|flat|apartment|cottage|farm|guitar|piano|violin|cello|saxophone|drum kit|camera|telescope"
    r"|record player|sewing machine|3d printer|greenhouse|allotment"
)
_THING = rf"(?P<thing>{_THINGS})"
_ROLES = (
    r"teacher|professor|lecturer|nurse|doctor|surgeon|dentist|vet|veterinarian|pharmacist|paramedic|midwife|therapist"
    r"|psychologist|physiotherapist|engineer|developer|programmer|designer|architect|scientist|researcher|biologist"
    r"|chemist|physicist|mathematician|analyst|accountant|economist|lawyer|solicitor|barrister|judge|journalist"
    r"|writer|author|editor|translator|librarian|photographer|painter|sculptor|musician|pianist|violinist|singer|actor"
    r"|actress|dancer|chef|cook|baker|waiter|waitress|barista|bartender|butcher|farmer|gardener|florist|carpenter"
    r"|plumber|electrician|mechanic|welder|builder|driver|pilot|sailor|firefighter|police officer|soldier|postman"
    r"|cleaner|hairdresser|barber|tailor|cashier|consultant|manager|director|secretary|receptionist|salesperson"
    r"|estate agent|social worker|student|pensioner|potter|beekeeper|luthier|animator|illustrator|electrotechnician"
)
_ROLE = rf"(?P<value>(?:an?\s+)?(?:[\w-]+\s+){{0,3}}?(?:{_ROLES}))\b"
_LANGUAGE = (
    r"(?:English|Portuguese|Spanish|French|German|Italian|Dutch|Polish|Czech|Slovak|Danish|Swedish|Norwegian|Finnish"
    r"|Icelandic|Hungarian|Romanian|Bulgarian|Greek|Turkish|Russian|Ukrainian|Serbian|Croatian|Slovene|Lithuanian"
    r"|Latvian|Estonian|Irish|Welsh|Basque|Catalan|Galician|Arabic|Hebrew|Persian|Farsi|Hindi|Urdu|Bengali|Punjabi"
    r"|Tamil|Telugu|Mandarin|Cantonese|Chinese|Japanese|Korean|Vietnamese|Thai|Indonesian|Malay|Tagalog|Swahili"
    r"|Amharic|Yoruba|Zulu|Afrikaans|Esperanto|Latin)"
)
_ENDS = (
    r"(?!(?:because|but|and|when|so|since|if|that|too|very|a lot|who|which|though|although|is|are|in the|at the|for"
    r"|how|like|by far)\b)"
)
"""Words that what somebody likes does not go on over."""
_THING_LIKED = rf"(?P<value>[\w'’-]+(?:\s+{_ENDS}[\w'’-]+){{0,3}})"
_AVERSIONS = ("hate", "dislike", "detest", "loathe", "stand", "bear")


def _words(alternatives: str) -> str:
    """The last word of each alternative."""
    return " ".join(words.split()[-1] for words in alternatives.split("|"))


_VAGUE: Final = """
    it that this these those you him her them us me he she they i how what when where who whom why the to your his
    their its so being having getting knowing seeing such all some any every each both one ones people everything
    nothing something anything everyone hearing talking chatting my our
"""
_NO_THING: Final = frozenset(_VAGUE.split())
_FUNCTION_WORDS: Final = """
    i the a an is was has had and or but so because it he she they we you my your this that if when will would who
    which says said always never really just also not in on at to
"""
_NO_NAME: Final = frozenset(_FUNCTION_WORDS.split())

# The words of which one must be in the sentence ("0" is any digit), what it must look like, and what it then states.
_RULES: Final[tuple[tuple[frozenset[str], re.Pattern[str], _Make], ...]] = tuple(
    (frozenset(words.split()), re.compile(pattern, re.IGNORECASE), make)
    for words, pattern, make in (
        # Who.
        ("name", rf"\bmy\s+(?:full\s+|first\s+|real\s+)?name(?:['’]s|\s+is)\s+(?P<value>{_NAME})", _as("name")),
        (
            "hi hello hey",
            rf"^\s*(?:hi|hello|hey)\b[^.!?]{{0,20}}?[,!]?\s+{_AM}\s+(?P<value>{_WORD})(?=\s*(?:[.,!]|$|\s+and\b|\s+from\b))",
            _as("name", confidence=LIKELY),
        ),
        (
            "call calls",
            rf"\b(?:please\s+|just\s+|you can\s+|everyone\s+)?calls?\s+me\s+(?P<value>{_WORD})",
            _as("called"),
        ),
        # Where.
        (
            "living based residing live reside",
            rf"(?:{_AM}{_ADVERB}\s+(?:living|based|residing)|{_I}{_ADVERB}\s+(?:live|reside))(?:\s+here)?{_ADVERB}\s+in"
            rf"\s+(?P<value>{_PLACE})",
            _as("lives_in"),
        ),
        (
            "living lived based been",
            rf"{_HAVE}{_ADVERB}\s+(?:been\s+living|lived|been\s+based|been)(?:\s+here)?\s+in\s+(?P<value>{_PLACE})"
            r"(?=\s*,?\s*(?:since|for)\b)",
            _as("lives_in"),
        ),
        (
            "back",
            rf"(?:{_AM}\s+|^\s*(?:and\s+|but\s+|well,?\s+)?(?:i\s*am\s+)?)(?:{_ADVERBS}\s+){{0,3}}back\s+(?:home\s+)?in"
            rf"\s+(?P<value>{_PLACE})(?=[^.!?]*\b(?:since|again|for good|permanently)\b)",
            _as("lives_in"),
        ),
        (
            "moved relocated",
            rf"\b(?:I|we)(?:['’]ve|\s+have)?{_ADVERB}\s+(?:moved|relocated)(?:\s+(?:back|over|home|down|up|house)){{0,3}}"
            rf"(?:\s+from\s+(?P<left>{_NAME}))?\s+(?:to|into)\s+(?P<value>{_PLACE})",
            _moved,
        ),
        ("used", rf"{_I}\s+used\s+to\s+live\s+in\s+(?P<value>{_PLACE})", _as("lives_in", past=True)),
        ("lived", rf"{_I}\s+lived\s+in\s+(?P<value>{_PLACE})", _as("lives_in", past=True)),
        (
            "live reside",
            rf"{_I}\s+(?:(?:don['’]t|do\s+not|no\s+longer)\s+(?:live|reside))\s+in\s+(?P<value>{_NAME}){_ANY_MORE}",
            _as("lives_in", denied=True),
        ),
        (
            "living based",
            rf"{_AM}\s+(?:no\s+longer|not)\s+(?:living\s+|based\s+)in\s+(?P<value>{_NAME}){_ANY_MORE}",
            _as("lives_in", denied=True),
        ),
        (
            "moved",
            rf"\b(?:I|we)(?:['’]ve|\s+have)?\s+moved\s+(?:away\s+from|out\s+of)\s+(?P<value>{_NAME})",
            _as("lives_in", denied=True),
        ),
        ("from", rf"(?:{_AM}\s+(?:originally\s+)?from|{_I}\s+come\s+from)\s+(?P<value>{_PLACE})", _as("comes_from")),
        (
            "born",
            rf"{_I}\s+was\s+born\s+(?:and\s+raised\s+)?in\s+(?P<value>(?!January|February|March|April|May|June|July|August"
            rf"|September|October|November|December|Spring|Summer|Autumn|Winter){_PLACE})",
            _as("born_in"),
        ),
        ("grew", rf"{_I}\s+grew\s+up\s+in\s+(?P<value>{_PLACE})", _as("grew_up_in")),
        # Work and study.
        (
            "work",
            rf"{_I}{_ADVERB}\s+work{_ADVERB}\s+as\s+(?P<value>(?:an?\s+|the\s+)?[\w-]+(?:\s+(?!at\b|in\b|for\b|and\b|but\b"
            r"|since\b|with\b|now\b|on\b|by\b|near\b)[\w-]+){0,2})",
            _as("works_as"),
        ),
        (_words(_ROLES), rf"{_AM}{_ADVERB}\s+(?:working\s+as\s+)?{_ROLE}(?!['’]s)", _as("works_as")),
        (
            "work working employed",
            rf"(?:{_I}{_ADVERB}\s+work|{_AM}{_ADVERB}\s+(?:working|employed)){_ADVERB}\s+(?:at|for)\s+"
            rf"(?P<value>{_PLACE})",
            _as("works_at"),
        ),
        (
            "joined started job",
            rf"{_I}(?:['’]ve|\s+have)?{_ADVERB}\s+(?:joined|started\s+(?:working\s+|a\s+(?:new\s+)?job\s+)?(?:at|with|for)"
            rf"|got\s+a\s+(?:new\s+)?job\s+(?:at|with))\s+(?P<value>{_PLACE})",
            _as("works_at", event=True),
        ),
        ("used", rf"{_I}\s+used\s+to\s+work\s+(?:at|for)\s+(?P<value>{_PLACE})", _as("works_at", past=True)),
        ("worked", rf"{_I}\s+worked\s+(?:at|for)\s+(?P<value>{_PLACE})", _as("works_at", past=True)),
        (
            "work",
            rf"{_I}\s+(?:don['’]t|do\s+not|no\s+longer)\s+work\s+(?:at|for)\s+(?P<value>{_NAME}){_ANY_MORE}",
            _as("works_at", denied=True),
        ),
        (
            "job laid fired retired",
            rf"{_I}(?:['’]ve|\s+have)?{_ADVERB}\s+(?:quit|left|lost)\s+my\s+job|{_I}\s+(?:was\s+laid\s+off|got\s+fired)"
            rf"|{_I}(?:['’]ve|\s+have)?{_ADVERB}\s+retired\b",
            _nothing_at("works_at"),
        ),
        (
            "study studying",
            rf"(?:{_I}{_ADVERB}\s+study|{_AM}{_ADVERB}\s+studying)\s+(?P<value>(?!for\b|at\b|in\b|hard\b|a lot\b|the\b"
            r"|my\b)[\w-]+(?:\s+(?!at\b|in\b|and\b|but\b|for\b|since\b|with\b|now\b|on\b)[\w-]+){0,2})",
            _as("studies"),
        ),
        # People and animals.
        (
            _words(_PEOPLE),
            rf"\b(?:my|our)\s+(?:(?:older|younger|little|big|elder|eldest|youngest|twin|old|new|late)\s+)?{_WHO}"
            rf"(?:['’]s\s+name\s+is|\s+is\s+(?:called|named)|,|['’]s\s+called)?\s+(?P<value>{_WORD})(?!['’]s\b)",
            _relation,
        ),
        (
            _words(_PEOPLE),
            rf"{_I}(?:['’]ve)?\s+(?:have|got)\s+an?\s+(?:[\w-]+\s+){{0,2}}?{_WHO},?\s+(?:called|named)\s+(?P<value>{_WORD})",
            _relation,
        ),
        (
            "married",
            rf"{_AM}\s+married\s+to\s+(?P<value>{_WORD})",
            lambda said: [said.statement("relation", f"Married to {said.match['value']}", slot=("relation", "spouse"))],
        ),
        (
            _words(_ANIMALS),
            rf"\b(?:my|our)\s+(?:[\w-]+\s+){{0,2}}?{_ANIMAL},?\s+(?P<value>{_WORD})\s*,?\s+(?:has\s+|just\s+|sadly\s+){{0,3}}"
            r"(?P<gone>died|passed\s+away)",
            _pet,
        ),
        (
            _words(_ANIMALS),
            rf"\b(?:my|our)\s+(?:[\w-]+\s+){{0,2}}?{_ANIMAL}(?:['’]s\s+name\s+is|\s+is\s+(?:called|named)|,|['’]s\s+called)?"
            rf"\s+(?P<value>{_WORD})(?!\s*,?\s+(?:has\s+|just\s+|sadly\s+){{0,3}}(?:died|passed))",
            _pet,
        ),
        (
            _words(_ANIMALS),
            rf"\b(?:I|we)(?:['’]ve)?\s+(?:have|got|adopted|bought)\s+an?\s+(?:[\w-]+\s+){{0,3}}?{_ANIMAL},?\s+(?:called"
            rf"|named)\s+(?P<value>{_WORD})",
            _pet,
        ),
        # Food, age, languages.
        (
            "allergic",
            rf"{_AM}{_ADVERB}\s+(?:(?:very|severely|badly|quite)\s+)?allergic\s+to\s+(?P<value>[\w'’-]+"
            r"(?:\s+(?!so\b|but\b|which\b|because\b|now\b)[\w'’-]+){0,3})",
            _as("allergic_to"),
        ),
        (
            "allergy",
            rf"{_HAVE}\s+an?\s+(?:(?:severe|bad|mild)\s+)?(?P<value>[\w-]+(?:\s+nut)?)\s+allergy",
            _as("allergic_to"),
        ),
        (
            "allergic",
            rf"{_AM}\s+not\s+allergic\s+to\s+(?P<value>[\w'’-]+(?:\s+(?!so\b|but\b|any\b)[\w'’-]+)?)",
            _as("allergic_to", denied=True),
        ),
        (
            "vegetarian vegan pescatarian coeliac celiac free intolerant teetotal diabetic",
            rf"{_I}(?:['’]m|\s+(?P<verb>am|became|went|turned))(?P<not>\s+not|\s+no\s+longer)?"
            rf"{_ADVERB}(?:\s+an?)?(?:\s+strict)?\s+(?P<value>vegetarian|vegan|pescatarian|coeliac|celiac"
            r"|gluten[- ]free|lactose[- ]intolerant|teetotal|diabetic)\b",
            _diet,
        ),
        ("0", rf"{_AM}{_ADVERB}\s+(?P<value>\d{{1,3}})(?:\s+years\s+old|(?=\s*(?:[.,!]|$|\s+and\b|\s+now\b)))", _age),
        ("turned", rf"{_I}(?:\s+just)?\s+turned\s+(?P<value>\d{{1,3}})\b", _age),
        (
            "birthday born",
            r"\b(?:my\s+birthday(?:['’]s|\s+is)(?:\s+on)?|I\s+was\s+born\s+on)\s+(?P<value>(?:the\s+)?(?:\d{1,2}(?:st|nd|rd|th)?"
            r"\s+(?:of\s+)?[A-Z][a-z]+|[A-Z][a-z]+\s+\d{1,2}(?:st|nd|rd|th)?)(?:,?\s+(?:19|20)\d\d)?)",
            _birthday,
        ),
        (
            "speak",
            rf"{_I}{_ADVERB}\s+(?:can\s+)?speak\s+(?:(?:fluent|some|a\s+little|a\s+bit\s+of|both)\s+)?"
            rf"(?P<value>{_LANGUAGE}(?:(?:\s*,\s*|\s*,?\s+and\s+){_LANGUAGE}){{0,9}})",
            _as("speaks"),
        ),
        (
            "learning",
            rf"(?:{_AM}{_ADVERB}\s+learning|{_HAVE}\s+(?:been\s+learning|started\s+learning)|{_I}\s+started\s+learning)\s+"
            rf"(?P<value>{_LANGUAGE})",
            _as("learns"),
        ),
        # Things.
        (
            _words(_THINGS),
            rf"{_I}(?:['’]ve)?{_ADVERB}\s+(?P<verb>have|own|got|bought)(?:\s+myself)?\s+(?P<value>an?\s+(?:[\w-]+\s+){{0,4}}?"
            rf"{_THING})\b(?!\s+(?:accident|crash|ride|trip|lesson|tour|key|shop|dealer|race))",
            _owned,
        ),
        ("sold", rf"{_I}(?:['’]ve|\s+have)?\s+sold\s+my\s+(?:[\w-]+\s+){{0,2}}?{_THING}\b", _sold),
        (
            "love like enjoy adore prefer hate dislike detest loathe stand bear",
            rf"{_I}{_ADVERB}(?P<not>\s+(?:don['’]t|do\s+not|no\s+longer|can['’]t|cannot))?(?:\s+(?P<how>really|absolutely|quite))?"
            rf"\s+(?P<verb>love|like|enjoy|adore|prefer|hate|dislike|detest|loathe|stand|bear)(?!\s+to\s+(?:know|see|hear|ask|say"
            rf"|think|thank|be|do|talk|get|have|go\s+to\s+bed))\s+(?:to\s+)?{_THING_LIKED}",
            _opinion,
        ),
        (
            "favourite favorite",
            r"\bmy\s+(?:all[- ]time\s+|absolute\s+)?favou?rite\s+(?P<what>[\w-]+(?:\s+[\w-]+){0,2}?)"
            r"\s+(?:is|are|has\s+(?:always\s+)?been|of\s+all\s+is)\s+(?:still\s+|definitely\s+)?"
            rf"(?P<value>[\w'’-]+(?:\s+{_ENDS}[\w'’-]+){{0,5}})",
            _favourite,
        ),
        # What is to come.
        (
            "going planning flying travelling traveling moving visiting seeing meeting running taking starting having"
            " getting hosting",
            rf"(?:{_AM}|\b(?i:we)(?:['’]re|\s+are)){_ADVERB}\s+(?P<value>(?:going\s+to|planning\s+to|flying\s+to|travell?ing\s+to"
            r"|moving\s+to|visiting|seeing|meeting|running|taking|starting|having|getting|hosting)\s+)",
            _plan,
        ),
        (
            "go fly travel move visit meet run take start have get see",
            rf"{_I}(?:['’]ll|\s+will|\s+plan\s+to)\s+(?P<value>(?:go|fly|travel|move|visit|meet|run|take|start|have|get|see)\s+)",
            _plan,
        ),
    )
)
_RULES_OF: Final = {
    word: tuple(place for place, rule in enumerate(_RULES) if word in rule[0])
    for words, _, _ in _RULES
    for word in words
}
"""Places of the rules that a word may have a part in: few sentences have any, and looking is cheaper than matching."""
