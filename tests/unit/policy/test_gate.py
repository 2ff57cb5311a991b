from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from personae_runtime.policy.bundle import PIECE_CHARS, whole_pieces
from personae_runtime.policy.decision import Action, Stage
from personae_runtime.policy.gate import StreamGate
from personae_runtime.policy.scorers import CATEGORIES
from tests.unit.policy.bundles import BUNDLE as BUNDLE_TEXT
from tests.unit.policy.bundles import CONTEXT, WholeWordScorer, WordScorer, load, run_gate

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


FAR_APART = "Take the knife. " + "It is a fine day, and we walk along the river. " * 8 + "Now hold it to the neck."
"""Harm to who reads all of it; no unit has both words, nor any unit with its window."""


@pytest.mark.parametrize("tail", ["", " ", "\n\n", " \u200b\n"])
def test_harm_that_only_the_whole_reply_shows_stops_its_last_unit(tail: str) -> None:
    expected = FAR_APART[: FAR_APART.index(" Now hold")]
    for chunks in ([FAR_APART + tail], list(FAR_APART + tail), [FAR_APART[:-3], FAR_APART[-3:], *tail]):
        for obey_hint in (True, False):
            scorer = WholeWordScorer("the knife", "the neck", needed=2)
            text, decisions, cleared = run_gate(BUNDLE, chunks, [scorer], obey_hint=obey_hint)
            assert (text, cleared) == (expected, len(expected))
            [decision] = decisions
            assert (decision.action, decision.reason_code, decision.template) == (Action.BLOCK, "SCORED", "No.")
            assert decision.scores["violence"] == 0.5
            assert scorer.pieces == [FAR_APART.lower()]


def test_what_comes_before_the_last_unit_does_not_wait_for_it() -> None:
    async def drive() -> None:
        gate = StreamGate(BUNDLE.plan(Stage.OUTPUT, CONTEXT), [WholeWordScorer("harm")])
        released = []
        for chunk in ("Hello there,", " I", " am glad.", " ", "\n", "And", " so on."):
            released.append((await gate.clear()).text if gate.feed(chunk) else "")
        assert released == ["", "Hello there,", "", "", "", " I am glad.", ""]
        assert (await gate.clear(final=True)).text == " \nAnd so on."

    asyncio.run(drive())


def test_a_reply_is_judged_whole_once_and_all_of_it_leaves_if_it_is_harmless() -> None:
    text = FAR_APART + " \n\n"
    for chunks in ([text], list(text)):
        scorer = WholeWordScorer("harm")
        assert run_gate(BUNDLE, chunks, [scorer]) == (text, (), len(text))
        assert scorer.pieces == [FAR_APART.lower()]
    assert run_gate(BUNDLE, [""], [scorer := WholeWordScorer("harm")])[0] == ""
    assert scorer.pieces == []


def test_a_rule_that_allows_by_the_score_of_the_whole_is_recorded_once() -> None:
    noting = load(
        BUNDLE_TEXT.replace(
            "action: block\n    category: violence", "action: allow\n    category: violence"
        )
    )  # fmt: skip
    text, [decision], _ = run_gate(noting, list(FAR_APART), [WholeWordScorer("the knife", "the neck", needed=2)])
    assert text == FAR_APART
    assert [rule.rule_id for rule in decision.rules] == ["scored"]


def test_a_long_reply_is_judged_in_the_pieces_of_the_input_gate_as_they_are_complete() -> None:
    text = "".join(f"This is sentence number {at} of them. " for at in range(120)).strip()
    scorer = WholeWordScorer("harm")
    assert run_gate(BUNDLE, list(text), [scorer])[0] == text
    assert scorer.pieces == whole_pieces(text.lower())
    # What stops is the unit with which a piece ends, not one a thousand characters later.
    near = WholeWordScorer("number 3 ", "number 20 ", needed=2)
    released = run_gate(BUNDLE, list(text), [near])[0]
    assert PIECE_CHARS - 40 < len(released) < PIECE_CHARS
    assert near.pieces == whole_pieces(text.lower())[:1]


class BrokenWhole(WholeWordScorer):
    def __init__(self, answer: object) -> None:
        super().__init__()
        self._broken = Broken(answer)
        self.deadline_s = Broken.deadline_s

    async def score_whole(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        return await self._broken.score(texts)


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


@pytest.mark.parametrize("answer", [RuntimeError("no"), "never", [], [dict.fromkeys(CATEGORIES, float("nan"))]])
def test_a_scorer_that_fails_on_the_whole_reply_blocks_its_last_unit_and_says_so(answer: object) -> None:
    text, [decision], _ = run_gate(BUNDLE, ["Hello there, friend. ", "Good day."], [BrokenWhole(answer)])
    assert text == "Hello there, friend."
    assert (decision.action, decision.reason_code, decision.template) == (Action.BLOCK, "SCORER_FAILED", "No.")


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


async def test_a_judgement_of_the_whole_that_was_cancelled_is_made_by_the_next_call() -> None:
    class Gated(WholeWordScorer):
        def __init__(self) -> None:
            super().__init__("two", needed=1)
            self.asking, self.go = asyncio.Event(), asyncio.Event()

        async def score_whole(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
            self.asking.set()
            await self.go.wait()
            return await super().score_whole(texts)

    scorer = Gated()
    gate = StreamGate(BUNDLE.plan(Stage.OUTPUT, CONTEXT), [scorer])
    gate.feed("one. two.")
    task = asyncio.create_task(gate.clear(final=True))
    await scorer.asking.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    scorer.go.set()
    cleared = await gate.clear(final=True)
    assert cleared.text == "one."
    assert cleared.decision is not None
    assert scorer.pieces == ["one. two."]


async def test_after_a_stop_nothing_leaves_any_more() -> None:
    gate = StreamGate(BUNDLE.plan(Stage.OUTPUT, CONTEXT))
    gate.feed("I am human. ")
    stopped = await gate.clear()
    assert not gate.feed("And harmless.")
    again = await gate.clear(final=True)
    assert (stopped.text, again.text) == ("", "")
    assert again.decision == stopped.decision is not None


async def test_memory_of_a_long_stream_stays_bounded() -> None:
    gate = StreamGate(BUNDLE.plan(Stage.OUTPUT, CONTEXT), [WholeWordScorer("harm")])
    for _ in range(500):
        if gate.feed("A sentence of some length that goes its way – é. "):
            await gate.clear()
    assert len(gate._normal.text) < 1500
    assert len(gate._raw) < 300
    assert len(gate._piece) < PIECE_CHARS
