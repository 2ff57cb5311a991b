"""What an engine says of a person's words is believed only where it stands in them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from personae_runtime.memory.extraction import CONFIDENCE, SCHEMA, parse
from personae_runtime.memory.store import Basis
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
    ],
)
def test_what_is_not_in_the_persons_words_is_not_believed(answer: str) -> None:
    assert parse(answer, [record(TEXT)], "tiny") == [[]]


def test_the_schema_is_json() -> None:
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
