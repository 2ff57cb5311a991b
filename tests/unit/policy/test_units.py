from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from personae_runtime.policy.units import MAX_UNIT_CHARS, UnitEnds, last_unit_end, split_units, unit_end
from tests.unit.policy.strategies import texts


@given(texts, st.booleans(), st.integers(0, 300))
@settings(max_examples=300)
def test_where_a_unit_ends_never_changes_when_text_is_appended(text: str, first: bool, cut: int) -> None:
    early = unit_end(text[:cut], first=first)
    if early is not None:
        assert unit_end(text, first=first) == early
        assert 0 < early <= MAX_UNIT_CHARS
        assert early < len(text[:cut])


@given(texts, texts, st.booleans())
def test_where_a_unit_ends_does_not_depend_on_what_stands_before_it(before: str, text: str, first: bool) -> None:
    end = unit_end(text, first=first)
    assert unit_end(before + text, first=first, start=len(before)) == (None if end is None else len(before) + end)


@given(texts, st.integers(0, 3), st.integers(0, 300))
@settings(max_examples=300)
def test_the_last_unit_end_is_that_of_one_unit_after_the_other(text: str, times: int, limit: int) -> None:
    text = text * (times + 1)
    start = 0
    while (end := unit_end(text, first=False, start=start)) is not None and end <= limit:
        start = end
    assert last_unit_end(text, 0, limit) == start


@given(texts)
def test_units_join_to_the_text_and_none_is_too_long(text: str) -> None:
    units = split_units(text)
    assert "".join(units) == text
    assert all(0 < len(u) <= MAX_UNIT_CHARS for u in units)


def test_the_first_unit_is_a_clause_or_eight_words_and_then_come_sentences() -> None:
    assert split_units("Well, that is nice. I like it, too! Really?") == [
        "Well,", " that is nice.", " I like it, too!", " Really?",
    ]  # fmt: skip
    assert (
        split_units("one two three four five six seven eight nine ten")[0] == "one two three four five six seven eight"
    )


def test_numbers_and_closing_quotes_do_not_end_a_sentence_too_early() -> None:
    assert split_units("Hm. It costs 3.50 at a.b.example now. \"Yes.\" Done")[1:] == [
        " It costs 3.50 at a.b.example now.", ' "Yes."', " Done",
    ]  # fmt: skip


def test_wide_punctuation_and_new_lines_end_units_without_a_space() -> None:
    assert split_units("你好。我是AI。好") == ["你好。", "我是AI。", "好"]
    assert split_units("- a\n- b\n\n- c") == ["- a", "\n- b", "\n\n- c"]


def test_text_without_any_mark_is_cut_at_a_space() -> None:
    units = split_units("Hi, " + "word " * 100)
    assert all(u.strip().split()[-1] == "word" for u in units[1:] if u.strip())
    assert len(split_units("x" * 1000)) == 5


@given(st.lists(st.text(alphabet="ab .,!\n。", max_size=30), max_size=20))
def test_ends_are_seen_when_they_are_known_however_the_text_arrives(pieces: list[str]) -> None:
    ends, seen, start, first = UnitEnds(), "", 0, True
    for piece in pieces:
        seen += piece
        ends.feed(piece)
        before = start
        while (end := unit_end(seen, first=first, start=start)) is not None:
            start, first = end, False
        assert ends.passed() is (start > before)
