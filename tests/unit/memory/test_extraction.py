"""What an engine says of a person's words is believed only where it stands in them."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

import pytest

from personae_runtime.engines.engine import EngineDelta, EngineFinish, GenerateRequest
from personae_runtime.errors import EngineOverloaded, InvalidArgument
from personae_runtime.memory.extraction import (
    CONFIDENCE,
    CURSOR,
    MAX_FACTS,
    MAX_QUOTE_CHARS,
    SCHEMA,
    Extractor,
    Words,
    parse,
)
from personae_runtime.memory.facts import Statement, is_asserted
from personae_runtime.memory.store import Basis, ChangeCursor, MemoryChange, MemoryRecord, MemorySource
from personae_runtime.policy.decision import PolicyContext
from tests.unit.memory.conftest import record

TEXT = "These days home for me is Porto, by the sea. Would I move to Rome? I wish I had a boat."


def reply(**changes: Any) -> str:
    fact = {"message": 1, "predicate": "lives_in", "value": "Porto", "quote": "home for me is Porto", **changes}
    return json.dumps({"facts": [fact]})


def test_a_quoted_fact_is_inferred_and_says_where_it_stands() -> None:
    memory = record(TEXT)
    [[found]] = parse(reply(), [memory], "tiny")
    assert (found.predicate, found.value, found.slot) == ("lives_in", "Porto", ("lives_in",))
    assert TEXT[found.begin : found.end] == "home for me is Porto"
    assert (found.basis, found.confidence, found.extractor) == (Basis.INFERRED, CONFIDENCE, "engine-1/tiny")


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "no JSON",
        "[]",
        '{"facts": 3}',
        '{"facts": [3, {}]}',
        reply(quote="home for me is porto"),
        reply(quote="My home is Porto"),
        reply(quote=" "),
        reply(value="Lisbon"),
        reply(value="Rome", quote="I move to Rome"),
        reply(value="a boat", quote="I had a boat", predicate="owns"),
        reply(predicate="secret"),
        reply(message=2),
        reply(message=0),
        reply(message="1"),
        reply(value=7),
        reply(more="this"),
        reply(value=" "),
        reply(value="..."),
        reply(value="the", quote="home for me is Porto, by the sea"),
        reply(value="Port"),
        reply(value="ort", quote="ort"),
        reply(value="home", quote="home" + " " * MAX_QUOTE_CHARS),
        '{"facts": ' + "[" * 100_000,
    ],
)
def test_what_is_not_in_the_persons_words_is_not_believed(answer: str) -> None:
    assert parse(answer, [record(TEXT)], "tiny") == [[]]


@pytest.mark.parametrize(
    ("text", "quote", "value"),
    [
        ("I wish I lived in Porto.", "I wish I lived in Porto", "Porto"),
        ("Hi! Do I live in Porto?", "Hi! Do I live in Porto?", "Porto"),
        ("I don't live in Porto.", "I don't live in Porto.", "Porto"),
        ("I don't live in Porto.", "live in Porto", "Porto"),
        ("Porto is not my home.", "Porto", "Porto"),
        ("I threw a party.", "threw a party", "art"),
        ("I live in Newport.", "port", "port"),
        ("I live in Porto Alegre.", "I live in Porto A", "Porto A"),
        ("Is it likely? " * 20 + "I like it.", "Is it likely? " * 4, "it"),
    ],
)
def test_a_value_is_judged_where_it_stands_and_in_whole_words(text: str, quote: str, value: str) -> None:
    assert parse(reply(quote=quote, value=value), [record(text)], "tiny") == [[]]


def test_a_value_that_is_asked_for_and_then_stated_is_believed() -> None:
    text = "Do I live in Porto? I live in porto, yes."
    [[found]] = parse(reply(quote=text, value=" Porto "), [record(text)], "tiny")
    assert (found.value, found.begin, found.end) == ("Porto", 0, len(text))


def test_of_a_reply_and_of_a_value_only_so_many_places_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[int] = []

    def counted(text: str, at: int) -> bool:
        judged.append(at)
        return is_asserted(text, at)

    monkeypatch.setattr("personae_runtime.memory.extraction.is_asserted", counted)
    text = "If x " * 80
    facts = json.loads(reply(quote=text, value="x"))["facts"] * 3 * MAX_FACTS
    assert parse(json.dumps({"facts": facts}), [record(text)], "tiny") == [[]]
    assert 0 < len(judged) <= MAX_FACTS * 4


class Engine:
    """Tells Porto of every message; has no room for prompts of more than so many characters."""

    model = "tiny"

    def __init__(self, room: int, answer: str | None = None, *, places: int = 100) -> None:
        self.room, self.answer, self.places = room, answer, places
        self.asked: list[list[str]] = []

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[EngineDelta, None]:
        told = request.messages[-1].content
        if len(self.asked) >= self.places:
            raise EngineOverloaded("no place")
        self.asked.append([json.loads(line.partition(" ")[2]) for line in told.split("\n")])
        if len(told) > self.room:
            raise InvalidArgument("too long", reason="PROMPT_TOO_LONG")
        facts = [json.loads(reply(message=number))["facts"][0] for number in range(1, len(self.asked[-1]) + 1)]
        yield EngineDelta(self.answer or json.dumps({"facts": facts}), 1, EngineFinish.STOP)


class Ledger:
    """Words of turns as changes, and what is stated of them."""

    def __init__(self, *words: MemoryRecord) -> None:
        self.words = words
        self.cursors: dict[str, ChangeCursor] = {}
        self.stated: dict[str, Sequence[Statement]] = {}

    async def changes(self, after: ChangeCursor, limit: int) -> list[MemoryChange]:
        feed = [
            MemoryChange(ChangeCursor(1, place), one.memory_id, one.scope, False)
            for place, one in enumerate(self.words, start=1)
        ]
        return [change for change in feed if change.cursor.seq > after.seq][:limit]

    async def load_cursor(self, index: str) -> ChangeCursor:
        return self.cursors.get(index, ChangeCursor())

    async def save_cursor(self, index: str, cursor: ChangeCursor) -> None:
        self.cursors[index] = cursor

    async def said_in_turns(self, changes: Sequence[MemoryChange]) -> list[Words]:
        wanted = {change.memory_id for change in changes}
        return [Words(one, cast(PolicyContext, None)) for one in self.words if one.memory_id in wanted]

    async def state(self, record: MemoryRecord, statements: Sequence[Statement]) -> bool:
        self.stated[record.text] = statements
        return True


def extractor(engine: Engine, ledger: Ledger) -> Extractor:
    return Extractor(cast(Any, engine), ledger, lambda text, context: True)


HOME = "These days home for me is Porto."
LONG = "My home for me is Porto, too. " + "So it is. " * 500


def turns(*texts: str) -> Ledger:
    return Ledger(*(record(text, place, source=MemorySource.TURN) for place, text in enumerate(texts)))


async def test_words_that_are_too_long_together_are_asked_about_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    ledger, engine = turns(HOME, LONG, HOME + " Yes."), Engine(room=1_000)
    reads = extractor(engine, ledger)
    with caplog.at_level(logging.WARNING):
        assert await reads.step() == 3
    assert engine.asked == [[HOME, LONG, HOME + " Yes."], [HOME], [LONG], [HOME + " Yes."]]
    # The long one alone is lost, and that is told, but not its words.
    assert [(text, one[0].value) for text, one in ledger.stated.items()] == [(HOME, "Porto"), (HOME + " Yes.", "Porto")]
    assert reads.passed_over == 1
    assert str(ledger.words[1].memory_id) in caplog.text
    assert "Porto" not in caplog.text
    assert await reads.step() == 0


async def test_words_that_the_engine_has_no_place_for_are_not_passed_over() -> None:
    ledger, engine = turns(HOME, LONG), Engine(room=1_000, places=2)
    reads = extractor(engine, ledger)
    with pytest.raises(EngineOverloaded):
        await reads.step()
    assert (ledger.cursors, reads.passed_over) == ({}, 0)
    engine.places = 100
    assert await reads.step() == 2
    assert list(ledger.stated) == [HOME]
    assert ledger.cursors[CURSOR] == ChangeCursor(1, 2)


async def test_a_reply_of_brackets_without_end_is_no_reply() -> None:
    ledger = turns(HOME)
    assert await extractor(Engine(room=1_000, answer="[" * 100_000), ledger).step() == 1
    assert (ledger.stated, ledger.cursors[CURSOR]) == ({}, ChangeCursor(1, 1))


def test_the_schema_is_json() -> None:
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
