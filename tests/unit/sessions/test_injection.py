"""Whatever a memory says, it stands in the prompt as one quoted line, and changes nothing else of it."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personae_runtime.memory.passages import CitedPassage, Passage
from personae_runtime.memory.recall import RecalledMemory
from personae_runtime.memory.store import FactDetail, MemoryRecord, MemorySource
from personae_runtime.sessions.prompt import PastTurn, compose, quote
from tests.unit.sessions.planted import PLANTED

AT = datetime(2025, 3, 1, tzinfo=UTC)
LINE = re.compile(r'- 2025-03-01, [^"\n]+: "[^"\n]*"')
PASSAGE = re.compile(r"- 2025-03-01( in '[^\"\n]*')?: \"[^\"\n]*\"")
HISTORY = [PastTurn(1, "Hello.", "Good day.", 4)]


def recalled(text: str, speaker: str = "Ann") -> RecalledMemory:
    return RecalledMemory(MemoryRecord(UUID(int=1), "s", text, speaker, AT, "t", 1, MemorySource.API, AT), 1.0)


def check(memories: list[RecalledMemory]) -> None:
    plain = compose("You are Nadia.", "m1", HISTORY, "How are you?", ())
    messages = compose("You are Nadia.", "m1", HISTORY, "How are you?", memories)
    # Byte for byte: the system part, the history, and how many messages there are.
    assert messages[:-1] == plain[:-1]
    last = messages[-1]
    assert last.role == "user"
    question, blank, heading, *lines = last.content.splitlines()
    assert (question, blank) == ("How are you?", "")
    assert heading.startswith("[Notes from earlier conversations")
    assert len(lines) == len(memories)
    for line in lines:
        assert LINE.fullmatch(line), line
        assert line.count('"') == 2
        assert not set("<>[]|`#\uff1c\uff1e\uff5c\u201c\u201d\u00ab\u00bb") & set(line)
        assert not [char for char in line if unicodedata.category(char)[0] == "C" and char not in "\u200c\u200d"]


def test_the_corpus_is_large() -> None:
    assert len(set(PLANTED)) >= 60


@pytest.mark.parametrize("text", PLANTED)
def test_no_planted_instruction_leaves_its_quote(text: str) -> None:
    check([recalled("I row."), recalled(text), recalled("I live in Lisbon.")])
    check([recalled("I row.", speaker=text)])


def test_all_of_them_together_stay_apart() -> None:
    check([recalled(text, speaker=text) for text in PLANTED])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=5))
def test_no_text_at_all_leaves_its_quote(texts: list[tuple[str, str]]) -> None:
    check([recalled(text, speaker) for text, speaker in texts])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PLANTED) | st.text(), min_size=1, max_size=4))
def test_no_text_leaves_the_quote_of_a_passage_the_line_of_a_fact_or_the_card(texts: list[str]) -> None:
    facts = [
        RecalledMemory(replace(recalled(text).record, fact=FactDetail("user", "likes", text)), 1.0) for text in texts
    ]
    said = [CitedPassage(Passage(UUID(int=1), UUID(int=2), text, "", text, 0, 1, AT), 1.0) for text in texts]
    plain = compose("You are Nadia.", "m1", HISTORY, "How are you?", ())
    messages = compose("You are Nadia.", "m1", HISTORY, "How are you?", facts, said, "\n".join(texts))
    system, _, card = messages[0].content.partition("\n\n[What is known")
    # The card follows what is the same for everybody, and changes nothing of it.
    assert system == plain[0].content
    assert messages[1:-1] == plain[1:-1]
    question, blank, notes, *lines = messages[-1].content.split("\n")
    assert (question, blank, notes[:6]) == ("How are you?", "", "[Notes")
    facts_told, (gap, own, *quoted) = lines[: len(texts)], lines[len(texts) :]
    assert (gap, own[:14], len(quoted)) == ("", "[What you have", len(texts))
    assert all(line.startswith("- ") for line in facts_told)
    assert all(PASSAGE.fullmatch(line) for line in quoted)
    for line in (*facts_told, *quoted, *card.split("\n")[1:]):
        assert not set("<>[]|`#\uff1c\uff1e\uff5c\u201c\u201d\u00ab\u00bb") & set(line)
        assert not [char for char in line if unicodedata.category(char)[0] == "C" and char not in "\u200c\u200d"]


def test_words_of_every_script_stay_as_they_are() -> None:
    for words in (
        "Ich fahre Fahrrad.",
        "我住在里斯本。",
        "أعيش في لشبونة",
        "Я живу в Лиссабоне",
        "می\u200cخواهم",
        "\U0001f6b2!",
    ):
        assert quote(recalled(words)).endswith(f'"{words}"')
