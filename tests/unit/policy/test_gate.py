from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings

from personae_runtime.policy.decision import Action, Stage
from personae_runtime.policy.gate import StreamGate
from personae_runtime.policy.identifiers import luhn
from personae_runtime.policy.normalize import FLOOD, Normalizer
from personae_runtime.policy.scorers import CATEGORIES
from tests.unit.policy.bundles import CONTEXT, WordScorer, load, run_gate
from tests.unit.policy.strategies import chunked

BUNDLE = load()

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
MAIL = r"\b[a-z0-9.]{1,20}@(?:[a-z]{1,8}\.){1,3}[a-z]{2,7}\b"


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


def first_stop(text: str) -> int | None:
    """Raw offset where the first stopping match of the whole text starts; None if there is none."""
    normal = Normalizer()
    normal.push(text, final=True)
    found = [
        p for p in range(len(normal.text)) for s in STOPPING if re.compile(s, re.ASCII).match(normal.text, p)
    ] + card_starts(normal.text)
    return normal.raw_start(min(found)) if found else None


@given(chunked())
@settings(max_examples=300, deadline=None)
def test_no_released_prefix_holds_any_part_of_a_stopping_match(case: tuple[str, list[str]]) -> None:
    text, chunks = case
    stop = first_stop(text)
    released, decisions, cleared = run_gate(BUNDLE, chunks)
    stopped = bool(decisions) and decisions[-1].action.stops
    assert stopped is (stop is not None)
    if stop is not None:
        assert cleared <= stop
    else:
        assert cleared == len(text)
    if "@" not in text:  # nothing to redact
        assert released == text[:cleared]


@given(chunked())
@settings(max_examples=250, deadline=None)
def test_text_and_decisions_are_the_same_for_every_chunking(case: tuple[str, list[str]]) -> None:
    text, chunks = case
    scorer = WordScorer("human", "banana", "999", needed=2)
    expected = run_gate(BUNDLE, [text], [scorer])
    assert run_gate(BUNDLE, chunks, [scorer]) == expected
    assert run_gate(BUNDLE, chunks, [scorer], obey_hint=False) == expected


@given(chunked())
@settings(max_examples=150, deadline=None)
def test_what_leaves_at_any_moment_is_a_prefix_of_what_leaves_in_all(case: tuple[str, list[str]]) -> None:
    text, chunks = case
    whole, _, _ = run_gate(BUNDLE, [text])

    async def drive() -> None:
        gate = StreamGate(BUNDLE.plan(Stage.OUTPUT, CONTEXT))
        seen = ""
        for chunk in chunks:
            gate.feed(chunk)
            seen += (await gate.clear()).text
            assert whole.startswith(seen)

    asyncio.run(drive())


@given(chunked())
@settings(max_examples=120, deadline=None)
def test_nothing_leaves_unscored(case: tuple[str, list[str]]) -> None:
    """Everything that left had been shown to the scorer before."""
    _, chunks = case
    scorer = WordScorer("nosuchword")

    async def drive() -> None:
        gate = StreamGate(BUNDLE.plan(Stage.OUTPUT, CONTEXT), [scorer])
        for i, chunk in enumerate(chunks):
            gate.feed(chunk)
            await gate.clear(final=i == len(chunks) - 1)
            normal = Normalizer()
            normal.push("".join(chunks)[: gate.released_chars], final=True)
            assert "".join(scorer.units).startswith(normal.text[: max(0, len(normal.text) - 1)])

    asyncio.run(drive())


def test_a_match_over_many_deltas_never_leaves() -> None:
    text, decisions, _ = run_gate(BUNDLE, [*list("Well, to be honest I a\u200bm a réal hum"), "an", " being."])
    assert text == "Well, to be honest "
    assert decisions[-1].reason_code == "STOPPED"
    assert decisions[-1].template == "No."
    assert (decisions[-1].notice_code, decisions[-1].notice_text) == ("HELP", "call somebody")
    (hit,) = decisions[-1].matches
    assert (hit.matcher_id, hit.start) == ("human", 19)


def test_what_only_began_like_a_match_is_released_as_soon_as_that_is_known() -> None:
    async def drive() -> None:
        gate = StreamGate(BUNDLE.plan(Stage.OUTPUT, CONTEXT))
        gate.feed("Hello there, I am")
        assert (await gate.clear()).text == "Hello there,"
        gate.feed(" glad. ")
        assert (await gate.clear()).text == " I am glad."
        gate.feed("\none two three four five six seven eight I am\n")
        assert (await gate.clear()).text == " \none two three four five six seven eight "
        gate.feed("here")
        assert (await gate.clear()).text == "I am"

    asyncio.run(drive())


@pytest.mark.parametrize(
    ("before", "match"),
    [
        ("one two three four five six seven ", "I am human"),  # the first unit ends after "I"
        ("one two three four five six ", "I am human"),
        ("Hello. Now ", "I am\na human"),  # a new line ends a unit
        ("Hello. " + "-" * 195, "<|x|>"),  # 200 characters end a unit
        ("Hello. " + "=" * 190, "4111-1111-1111-1111"),
    ],
)
def test_a_match_across_the_end_of_a_unit_never_leaves(before: str, match: str) -> None:
    for chunks in ([before + match + " ok"], list(before + match + " ok"), [before, match, " ok"]):
        text, decisions, cleared = run_gate(BUNDLE, chunks)
        assert (text, cleared) == (before, len(before))
        assert decisions[-1].reason_code == "STOPPED"


def test_a_redaction_across_the_end_of_a_unit_is_whole() -> None:
    before, match, after = "Hello. " + "=" * 190, "joe.b@mail.example.org", " ok. And a@b.example"
    expected = f"{before}[mail] ok. And [mail]"
    for chunks in ([before + match + after], list(before + match + after), [before, match, after]):
        assert run_gate(BUNDLE, chunks)[0] == expected


def test_scorers_see_the_same_window_however_long_the_stream_has_run() -> None:
    text = (
        "A sentence without any meaning goes here. " * 40 + "First alpha. " + "And so on. " * 18 + "Then omega. End. "
    )
    scorer = WordScorer("alpha", "omega", needed=2)
    expected = run_gate(BUNDLE, [text], [scorer])
    assert expected[0].endswith("And so on.")
    assert run_gate(BUNDLE, list(text), [scorer]) == expected
    far = text.replace("And so on. " * 18, "And so on. " * 30)
    assert run_gate(BUNDLE, list(far), [scorer])[0] == far


def test_a_word_that_goes_on_is_no_match() -> None:
    assert run_gate(BUNDLE, ["I am human", "e to all."])[0] == "I am humane to all."


def test_redaction_replaces_the_whole_match_across_units_and_deltas() -> None:
    text, decisions, cleared = run_gate(BUNDLE, list("Hey, write to joe.b@mail.example. Or to x@y.org, please."))
    assert text == "Hey, write to [mail]. Or to [mail], please."
    assert [d.action for d in decisions] == [Action.TRANSFORM, Action.TRANSFORM]
    assert cleared == len("Hey, write to joe.b@mail.example. Or to x@y.org, please.")


def test_a_rule_that_allows_is_recorded_and_releases() -> None:
    text, decisions, _ = run_gate(BUNDLE, ["A banana."])
    assert text == "A banana."
    assert decisions[0].action is Action.ALLOW
    assert decisions[0].reason_code == ""
    assert decisions[0].rules[0].reason_code == "NOTED"


def test_a_flood_of_invisible_characters_escalates_and_does_not_stretch_the_hold() -> None:
    text, decisions, _ = run_gate(BUNDLE, ["Hi, I am", *["\u200b" * 50] * 40, " human"])
    assert text == "Hi, I am" + "\u200b" * 8  # up to the first one too many
    assert decisions[-1].action is Action.ESCALATE
    assert decisions[-1].reason_code == "FLOOD"


def test_harm_that_emerges_across_units_stops_the_rest() -> None:
    scorer = WordScorer("the knife", "the neck", needed=1)
    scorer.needed = 2  # two words for 0.5
    text, decisions, _ = run_gate(BUNDLE, ["Take the knife. ", "Now hold it to the neck. ", "Then go on. "], [scorer])
    assert text == "Take the knife."
    assert decisions[-1].reason_code == "SCORED"
    assert decisions[-1].scores["violence"] == 0.5


class Broken:
    name, categories, deadline_s = "broken", CATEGORIES, 0.01

    def __init__(self, answer: object) -> None:
        self.answer = answer

    async def score(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer == "never":
            await asyncio.get_running_loop().create_future()
        return self.answer  # type: ignore[return-value]


@pytest.mark.parametrize(
    "answer",
    [
        RuntimeError("no"),
        "never",
        [],
        [{"violence": 0.0}],
        [dict.fromkeys(CATEGORIES, float("nan"))],
        [dict.fromkeys(CATEGORIES, 2.0)],
    ],
)
def test_a_scorer_that_fails_is_late_or_talks_nonsense_blocks(answer: object) -> None:
    text, decisions, _ = run_gate(BUNDLE, ["Hello there, friend. "], [Broken(answer)])
    assert text == ""
    assert decisions[-1].action is Action.BLOCK
    assert decisions[-1].reason_code == "SCORER_FAILED"
    assert decisions[-1].template == "No."


async def test_a_cancelled_clear_loses_nothing() -> None:
    class Gated:
        name, categories, deadline_s = "gated", CATEGORIES, 60.0

        def __init__(self) -> None:
            self.asked, self.go = asyncio.Event(), asyncio.Event()

        async def score(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
            if any("two" in t for t in texts):
                self.asked.set()
                await self.go.wait()
            return [dict.fromkeys(CATEGORIES, 0.0) for _ in texts]

    scorer = Gated()
    gate = StreamGate(BUNDLE.plan(Stage.OUTPUT, CONTEXT), [scorer])
    gate.feed("one. two. ")
    task = asyncio.create_task(gate.clear())
    await scorer.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    scorer.go.set()
    assert (await gate.clear(final=True)).text == "one. two. "


async def test_after_a_stop_nothing_leaves_any_more() -> None:
    gate = StreamGate(BUNDLE.plan(Stage.OUTPUT, CONTEXT))
    gate.feed("I am human. ")
    stopped = await gate.clear()
    assert not gate.feed("And harmless.")
    again = await gate.clear(final=True)
    assert (stopped.text, again.text) == ("", "")
    assert again.decision == stopped.decision is not None


async def test_memory_of_a_long_stream_stays_bounded() -> None:
    gate = StreamGate(BUNDLE.plan(Stage.OUTPUT, CONTEXT))
    for _ in range(500):
        if gate.feed("A sentence of some length that goes its way – é. "):
            await gate.clear()
    assert len(gate._normal.text) < 1500
    assert len(gate._raw) < 300
