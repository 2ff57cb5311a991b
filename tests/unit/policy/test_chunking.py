"""The guarantee of the stream gate over arbitrary text and arbitrary cuts of it, against a brute-force reading.

A thousand cases as a rule; ten thousand with `PERSONAE_HYPOTHESIS_PROFILE=soak`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from unittest.mock import patch

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from personae_runtime.policy import bundle, gate
from personae_runtime.policy.bundle import whole_pieces
from personae_runtime.policy.decision import Decision, Stage
from personae_runtime.policy.gate import StreamGate
from personae_runtime.policy.identifiers import luhn
from personae_runtime.policy.normalize import FLOOD, Normalizer
from personae_runtime.policy.reasons import SCORER_FAILED
from personae_runtime.policy.units import WINDOW_CHARS, split_units
from tests.unit.policy.bundles import CONTEXT, WholeWordScorer, WordScorer, load, run_gate
from tests.unit.policy.strategies import chunked, disguised

BUNDLE = load()
CASES = max(1_000, settings().max_examples)

# The same language as the bundle's stopping matchers, for Python's own engine, searched at every start.
STOPPING = [
    r"\bi\sam\s(?:a\s)?(?:real\s){0,2}human\b",
    r"\bforbidden\s{1,4}fruit\b",
    r"\bunsaglich\b",
    r"<\|x\|>",
    r"[0-9]{3,6}-[0-9]{2,4}",
    FLOOD,
]
CARD = r"\b(?:[0-9][ -]?){12,18}[0-9]\b"
HARM = ("knife", "neck", "999")
"""Two of them in a unit, or in a unit and its window, are harm to `WordScorer(*HARM, needed=2)`."""


def boundary(text: str, at: int) -> bool:
    def word(i: int) -> bool:
        return 0 <= i < len(text) and re.match(r"\w", text[i], re.ASCII) is not None

    return word(at - 1) != word(at)


def card_starts(text: str) -> list[int]:
    """Brute force: every substring."""
    body = re.compile(CARD.replace(r"\b", ""), re.ASCII)
    return [
        p
        for p in range(len(text))
        if boundary(text, p)
        and any(
            body.fullmatch(text, p, e) and boundary(text, e) and luhn(text[p:e])
            for e in range(p + 13, min(len(text), p + 37) + 1)
        )
    ]


class Reading:
    """What a whole text holds, without any gate.

    Attributes:
        match: raw offset at which the first stopping match starts; None if there is none.
        harm: raw offset of the first unit that harm stops, alone or with its window; None if there is none.
        units: raw offsets at which units start.
        last: of the last unit with anything to see in it, which ends the reply; 0 if there is none.
        pieces: what `whole_pieces` makes of the reply.
        ends: raw offset of the unit that each of these ends with.
    """

    def __init__(self, text: str) -> None:
        normal = Normalizer()
        normal.push(text, final=True)
        found = [
            p for p in range(len(normal.text)) for s in STOPPING if re.compile(s, re.ASCII).match(normal.text, p)
        ] + card_starts(normal.text)
        self.match = normal.raw_start(min(found)) if found else None
        self.harm: int | None = None
        self.units: list[int] = []
        at = begin = 0
        for unit in split_units(text):
            self.units.append(at)
            end = normal.index_at(at + len(unit))
            seen = (normal.text[begin:end], normal.text[max(0, begin - WINDOW_CHARS) : end])
            if self.harm is None and any(sum(word in one for word in HARM) >= 2 for one in seen):
                self.harm = at
            at, begin = at + len(unit), end
        begins = [normal.index_at(at) for at in self.units]
        last = max((number for number, begin in enumerate(begins) if normal.text[begin:].strip()), default=0)
        self.last = self.units[last] if self.units else 0
        end = begins[last + 1] if last + 1 < len(begins) else len(normal.text)
        said = normal.text[:end]
        self.pieces = whole_pieces(said) if said else []
        # All but the last piece are of full length.
        stops = [at * bundle.PIECE_STEP + bundle.PIECE_CHARS for at in range(len(self.pieces))]
        self.ends = [
            max(unit for unit, begin in zip(self.units, begins, strict=True) if begin < min(stop, end))
            for stop in stops
        ]

    def check(self, text: str, cleared: int, *stops: int | None) -> int:
        """See that a gate stopped where it must, the first of what is here and of `stops`, and give that place.

        To the character; if the same unit has an address to redact or a word to note before that, then from there on,
        as a unit has one verdict.
        """
        stop = min([place for place in (self.match, self.harm, *stops) if place is not None], default=len(text))
        unit = max((at for at in self.units if at <= stop), default=0)
        assert unit <= cleared <= stop
        if "@" not in text and "banana" not in text:
            assert cleared == stop
        return stop


class Failing(WordScorer):
    """Raises at its nth call, which is that of the nth unit."""

    def __init__(self, at: int | None) -> None:
        super().__init__(*HARM, needed=2)
        self._at = at

    def score_sync(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        if len(self.units) == self._at:
            raise TimeoutError
        return super().score_sync(texts)


def stream(chunks: Sequence[str], scorer: WordScorer, *, obey_hint: bool) -> tuple[str, tuple[Decision, ...], int]:
    """As `run_gate`; at every moment nothing has left that the scorer was not shown before."""

    async def drive() -> tuple[str, tuple[Decision, ...], int]:
        gate = StreamGate(BUNDLE.plan(Stage.OUTPUT, CONTEXT), [scorer])
        out = ""
        for at, chunk in enumerate((*chunks, None)):
            if chunk is not None and not gate.feed(chunk) and obey_hint:
                continue
            cleared = await gate.clear(final=chunk is None)
            out += cleared.text
            normal = Normalizer()
            normal.push("".join(chunks[: at + 1])[: gate.released_chars], final=True)
            # The last character of a prefix may be a part of one that is folded with what follows.
            assert "".join(scorer.units).startswith(normal.text[: max(0, len(normal.text) - 1)])
            if cleared.decision is not None and cleared.decision.action.stops:
                break
        return out, gate.decisions, gate.released_chars

    return asyncio.run(drive())


@pytest.mark.soak
@given(chunked(), st.one_of(st.none(), st.integers(0, 6)), st.booleans())
@settings(max_examples=CASES)
def test_what_leaves_and_what_is_decided_depend_on_the_whole_text_alone(
    case: tuple[str, list[str]], fails_at: int | None, obey_hint: bool
) -> None:
    """No released prefix holds any part of a match of the whole text, nor of a unit that harm stops or that was not
    scored; all else is released; and however the text was cut, it is the same."""
    text, chunks = case
    reading = Reading(text)
    failure = reading.units[fails_at] if fails_at is not None and fails_at < len(reading.units) else None
    released, decisions, cleared = stream(chunks, Failing(fails_at), obey_hint=obey_hint)
    stop = reading.check(text, cleared, failure)
    if "@" not in text:  # nothing to redact
        assert released == text[:cleared]
    stopped = bool(decisions) and decisions[-1].action.stops
    assert stopped is (stop < len(text) or failure is not None)
    if stopped:
        if (decisions[-1].reason_code == SCORER_FAILED) is not (failure == stop):
            # A match that starts where the failed unit does was never asked about.
            assert reading.match is not None
        event(decisions[-1].reason_code)
    assert run_gate(BUNDLE, [text], [Failing(fails_at)]) == (released, decisions, cleared)


class FailingWhole(WholeWordScorer):
    """Raises at its nth piece."""

    def __init__(self, at: int | None) -> None:
        super().__init__(*HARM, needed=2)
        self._at = at

    async def score_whole(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        if self._at is not None and len(self.pieces) + len(texts) > self._at:
            raise TimeoutError
        return await super().score_whole(texts)


@pytest.mark.soak
@given(chunked(), st.one_of(st.none(), st.integers(0, 4)), st.booleans(), st.sampled_from([(1000, 800), (60, 40)]))
@settings(max_examples=CASES)
def test_no_unit_leaves_before_the_whole_that_it_ends_was_judged_however_the_reply_is_cut(
    case: tuple[str, list[str]], fails_at: int | None, obey_hint: bool, size: tuple[int, int]
) -> None:
    """The last unit waits for the end, and stops if the reply as one is harm or can't be judged; all before it is as
    it was. Pieces of a long reply are those of the input gate, each once."""
    text, chunks = case
    sizes = {"PIECE_CHARS": size[0], "PIECE_STEP": size[1]}
    with patch.multiple(gate, **sizes), patch.multiple(bundle, **sizes):
        reading = Reading(text)
        ended = zip(reading.pieces, reading.ends, strict=True)
        stops = [at for piece, at in ended if sum(word in piece for word in HARM) >= 2]
        failed = fails_at is not None and fails_at < len(reading.ends)
        if failed:
            stops.append(reading.ends[fails_at or 0])

        async def drive() -> tuple[str, tuple[Decision, ...], int]:
            stream = StreamGate(BUNDLE.plan(Stage.OUTPUT, CONTEXT), scorers)
            out = ""
            for chunk in chunks:
                if not stream.feed(chunk) and obey_hint:
                    continue
                out += (await stream.clear()).text
                assert stream.released_chars <= reading.last
            out += (await stream.clear(final=True)).text
            return out, stream.decisions, stream.released_chars

        scorers = [WordScorer(*HARM, needed=2), whole := FailingWhole(fails_at)]
        released, decisions, cleared = asyncio.run(drive())
        stop = reading.check(text, cleared, *stops)
        assert whole.pieces == reading.pieces[: len(whole.pieces)]
        stopped = bool(decisions) and decisions[-1].action.stops
        assert stopped is (stop < len(text) or failed)
        if not stopped:
            assert whole.pieces == reading.pieces
        elif decisions[-1].reason_code == SCORER_FAILED:
            assert failed
        again = [WordScorer(*HARM, needed=2), FailingWhole(fails_at)]
        assert run_gate(BUNDLE, [text], again) == (released, decisions, cleared)
        event("long" if len(reading.pieces) > 1 else "short")
        event(decisions[-1].reason_code if stopped else "released")


@pytest.mark.soak
@given(chunked())
@settings(max_examples=CASES // 10)
def test_without_scorers_what_leaves_at_any_moment_is_a_prefix_of_what_leaves_in_all(
    case: tuple[str, list[str]],
) -> None:
    text, chunks = case
    whole, decisions, _ = run_gate(BUNDLE, [text])

    async def drive() -> None:
        gate = StreamGate(BUNDLE.plan(Stage.OUTPUT, CONTEXT))
        seen = ""
        for chunk in chunks:
            gate.feed(chunk)
            seen += (await gate.clear()).text
            assert whole.startswith(seen)
        assert seen + (await gate.clear(final=True)).text == whole
        assert gate.decisions == decisions

    asyncio.run(drive())


@pytest.mark.parametrize(
    "text",
    [
        "A 123-45 b",
        "o <|x|> no",
        "Ok. I am hu",
        "a\u200b12\u0301345-67",
        "👩\u200d👩\u200d👧 999-",
        "x\u00ad<\ufe0f|x|>.",
        "각\u1100\u1161\u11a8 12-34",
        "a@b.example",
    ],
)
def test_every_way_there_is_to_cut_a_text_gives_the_same(text: str) -> None:
    expected = run_gate(BUNDLE, [text])
    places = range(1, len(text))
    for count in range(len(text)):
        for cuts in combinations(places, count):
            chunks = [text[a:b] for a, b in zip((0, *cuts), (*cuts, len(text)), strict=True)]
            assert run_gate(BUNDLE, chunks, obey_hint=False) == expected


@given(disguised(), st.integers(0, 40))
@settings(max_examples=200)
def test_a_match_with_invisible_characters_in_it_never_leaves(match: str, before: int) -> None:
    text = "~" * before + " " + match + " ~"
    released, decisions, cleared = run_gate(BUNDLE, list(text))
    assert decisions[-1].action.stops
    # Up to the match, or to the first invisible character too many before its end.
    assert cleared == Reading(text).match
    assert released == text[:cleared]
