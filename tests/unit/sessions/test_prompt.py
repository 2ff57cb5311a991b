"""The prompt: what goes where, and what history is dropped."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.memory.recall import RecalledMemory
from personae_runtime.memory.store import Basis, FactDetail, MemoryRecord, MemorySource
from personae_runtime.sessions.prompt import PastTurn, compose, fit_history, quote

turns = st.lists(st.integers(1, 60), max_size=20).map(
    lambda sizes: [PastTurn(number, f"u{number}", f"r{number}", size) for number, size in enumerate(sizes, 1)]
)


@given(turns, st.integers(0, 200))
def test_history_keeps_the_newest_turns_within_the_budget(past: list[PastTurn], budget: int) -> None:
    kept = list(fit_history(past, budget))
    assert kept == past[len(past) - len(kept) :]
    assert sum(turn.tokens for turn in kept) <= budget
    if sum(turn.tokens for turn in past) <= budget:
        assert kept == past
    elif past and past[-1].tokens <= budget:
        assert kept, "the newest turn fits and was dropped"


@given(turns, st.integers(20, 200))
def test_a_cut_leaves_room_for_turns_to_come(past: list[PastTurn], budget: int) -> None:
    kept = list(fit_history(past, budget))
    if 1 < len(kept) < len(past):
        assert sum(turn.tokens for turn in kept) <= budget // 2


def recalled(text: str, speaker: str = "Ann") -> RecalledMemory:
    now = datetime(2025, 3, 1, tzinfo=UTC)
    return RecalledMemory(MemoryRecord(uuid4(), "s", text, speaker, now, "", 0, MemorySource.API, now, ""), 1.0)


def test_recall_stands_in_the_newest_turn_only_and_the_marker_ends_the_prefix() -> None:
    messages = compose(
        "PREFIX", "m4rk", [PastTurn(1, "hi", "hello", 5), PastTurn(2, "and", "", 5)], "new", [recalled("x")]
    )
    assert [message.role for message in messages] == ["system", "user", "assistant", "user", "user"]
    assert messages[0].content.startswith("PREFIX")
    assert "m4rk" in messages[0].content
    assert messages[-1].content.startswith("new\n")
    assert messages[-1].content.endswith('- 2025-03-01, Ann: "x"')
    assert all("2025" not in message.content for message in messages[:-1])


@given(st.text(), st.text())
def test_a_memory_cannot_break_out_of_its_quotes_or_its_line(text: str, speaker: str) -> None:
    line = quote(recalled(text, speaker))
    assert len(line.splitlines()) == 1
    assert line.count('"') == 2
    assert line.endswith('"')


@given(st.text())
def test_nothing_unseen_is_quoted(text: str) -> None:
    joiners = "\u200c\u200d"
    assert not [
        char
        for char in quote(recalled(text))
        if unicodedata.category(char).startswith(("C", "Zl", "Zp")) and char not in joiners
    ]


def test_without_memories_the_newest_turn_is_the_persons_words_alone() -> None:
    assert compose("P", "m", [], "just this", [])[-1].content == "just this"


def test_a_fact_is_quoted_with_its_time_and_the_card_follows_the_marker() -> None:
    def fact(**fields: Any) -> RecalledMemory:
        plain = recalled("Lives in Porto.")
        detail = FactDetail("user", "lives_in", "Porto", **fields)
        return RecalledMemory(replace(plain.record, fact=detail), 1.0)

    may, june = datetime(2024, 5, 1, tzinfo=UTC), datetime(2024, 6, 3, tzinfo=UTC)
    assert quote(fact()) == "- Lives in Porto."
    assert quote(fact(valid_from=may)) == "- Lives in Porto (since 1 May 2024)."
    assert quote(fact(valid_from=may, valid_to=june)) == "- Lives in Porto (from 1 May 2024 until 3 June 2024)."
    assert quote(fact(valid_to=june, basis=Basis.INFERRED)) == "- Lives in Porto (until 3 June 2024; inferred)."
    opening = compose("P", "m", [], "hello", [], card="- Name: Marta [INST].")[0].content
    assert opening.startswith("P\n\n[conversation m]\n\n[")
    assert opening.endswith("\n- Name: Marta (INST).")
