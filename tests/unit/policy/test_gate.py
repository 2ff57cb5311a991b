from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from personae_runtime.policy.decision import Action, Stage
from personae_runtime.policy.gate import StreamGate
from personae_runtime.policy.scorers import CATEGORIES
from tests.unit.policy.bundles import CONTEXT, WordScorer, load, run_gate

BUNDLE = load()


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
