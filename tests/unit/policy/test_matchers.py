from __future__ import annotations

import re

import pytest
import re2
from hypothesis import given, settings
from hypothesis import strategies as st

from personae_runtime.errors import ConfigError
from personae_runtime.policy.identifiers import iban, luhn
from personae_runtime.policy.matchers import (
    Matcher,
    MatcherSet,
    PatternError,
    parse,
    parse_literal,
)

PATTERNS = [
    r"abc",
    r"\bi\sam\s(?:a\s)?(?:real\s){0,2}human\b",
    r"[0-9]{3,6}-[0-9]{2,4}",
    r"(?:ab|c|def)(?:x|yz)?",
    r"\b(?:[0-9][ -]?){3,5}[0-9]\b",
    r"\b[a-z0-9.]{1,6}@(?:[a-z]{1,4}\.){1,3}[a-z]{2,3}\b",
    r"(?:a{0,2}b){1,3}",
    r"a.{0,3}b",
    r"[^a]b?\B",
    r"(?:(?:ab?){1,2}c){2}",
    r"x{0,0}y",
    r"\w\W\d\D\s\S",
    r"<\|im_start\|>",
    r"(?P<name>ab)c??",
]


@given(st.data(), st.sampled_from(PATTERNS))
@settings(max_examples=300, deadline=None)
def test_no_match_is_longer_than_the_computed_bound_and_every_prefix_is_foreseen(
    data: st.DataObject, source: str
) -> None:
    pattern = parse(source)
    text = data.draw(st.from_regex(re.compile(source, re.ASCII), fullmatch=True))
    if "\x1c" <= max(text) <= "\x1f" or any(c in "\x1c\x1d\x1e\x1f" for c in text):
        return  # white space to Python's re, not to RE2; normalised text has none of them
    assert pattern.min_chars <= len(text) <= pattern.max_chars
    assert re2.fullmatch(pattern.regex, text)
    for end in range(1, len(text) + 1):
        assert re2.fullmatch(pattern.prefixes, text[:end]) or "\\b" in source or "\\B" in source
        # In a longer text, boundaries are judged by what is really there: the match is foreseen at its start.
        assert MatcherSet([Matcher.build("m", [pattern], pattern.max_chars)]).pending(text[:end], 0) == 0


@given(st.sampled_from(PATTERNS), st.text(alphabet="abcdefxyz i amhunrel019-@. <|_>", max_size=14), st.integers(0, 14))
@settings(max_examples=500, deadline=None)
def test_what_is_not_pending_is_decided(source: str, text: str, cut: int) -> None:
    """No match of the whole text starts before `pending` of a prefix and is not seen in the prefix as it is."""
    matchers = MatcherSet([Matcher.build("m", [parse(source)], 512)])
    prefix = text[:cut]
    pending = matchers.pending(prefix, 0)
    assert {(s.start, s.end) for s in matchers.spans(prefix, 0, pending)} == {
        (s.start, s.end) for s in matchers.spans(text, 0, pending)
    }
    expected = {p for p in range(pending) if re.compile(source, re.ASCII).match(text, p)}
    assert {p for p in range(pending) if matchers.matches_at(prefix, p)} == expected
    assert matchers.quiet_until(prefix, 0) == min(pending, matchers.candidate(prefix, 0))


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("ab*", "no bound"),
        ("ab+", "no bound"),
        ("a{2,}", "no bound"),
        (r"(a)\1", "back-reference"),
        ("a(?=b)", "lookahead"),
        ("a(?!b)", "lookahead"),
        ("(?<=a)b", "lookbehind"),
        ("^a", "anchor"),
        ("a$", "anchor"),
        (r"\Aa", "anchor"),
        ("(?i)a", "flags"),
        ("(?s:a.)", "flags"),
        ("(?>ab)", "atomic"),
        ("a{1,3}+", "possessive"),
        ("a?", "matches the empty text"),
        (r"\b", "matches the empty text"),
        ("Abc", "never holds"),
        ("é", "never holds"),
        ("[A-Z]", "never holds"),
        ("(", "not a regular expression"),
        ("(?:a{0,0}){0,1001}b", "RE2"),
    ],
)
def test_patterns_that_cannot_be_bounded_or_never_match_are_refused(source: str, problem: str) -> None:
    with pytest.raises(PatternError, match=problem):
        Matcher.build("m", [parse(source)], 512)


def test_a_declared_bound_below_the_computed_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="can match 5 characters"):
        Matcher.build("m", [parse("a{1,5}")], 4)
    with pytest.raises(ConfigError, match="expected 1 to 512"):
        Matcher.build("m", [parse("a")], 513)
    with pytest.raises(ConfigError, match="expected one of"):
        Matcher.build("m", [parse("a")], 5, "nosuch")


def test_literals_are_normalised_and_match_whole_words() -> None:
    found = MatcherSet([Matcher.build("m", [parse_literal("Ünsäglich Böse", whole_word=True)], 30)])
    assert [(s.start, s.end) for s in found.spans("so unsaglich  bose!", 0, 19)] == [(3, 18)]
    assert not found.spans("unsaglich boses", 0, 15)
    with pytest.raises(PatternError, match="empty once normalised"):
        parse_literal("\u200b", whole_word=True)


def test_only_what_may_begin_a_match_is_held() -> None:
    matchers = MatcherSet([Matcher.build("m", [parse(r"\bi\sam\shuman\b")], 20)])
    for text, held in [("hi", 0), ("hello i", 1), ("oh i am", 4), ("i am a", 0), ("so i am human", 10), ("x ", 0)]:
        assert len(text) - matchers.pending(text, 0) == held, text


@pytest.mark.parametrize("number", ["4111 1111 1111 1111", "5500-0000-0000-0004", "340000000000009"])
def test_luhn_accepts_valid_card_numbers(number: str) -> None:
    assert luhn(number)
    assert not luhn(number[:-1] + str((int(number[-1]) + 1) % 10))


def test_luhn_refuses_what_is_no_card_number() -> None:
    assert not luhn("0000 0000 0000 0000")
    assert not luhn("42")


@pytest.mark.parametrize(
    "number", ["gb82 west 1234 5698 7654 32", "de89370400440532013000", "pt50000201231234567890154"]
)
def test_iban_checks_its_digits(number: str) -> None:
    assert iban(number)
    assert not iban(number[:-1] + str((int(number[-1]) + 1) % 10))
    assert not iban(number[:10])


def test_a_validator_finds_the_valid_part_of_a_longer_run() -> None:
    matchers = MatcherSet([Matcher.build("card", [parse(r"\b(?:[0-9][ -]?){12,18}[0-9]\b")], 37, "luhn")])
    text = "no 17 4111 1111 1111 1111 9"
    assert [(s.start, s.end) for s in matchers.spans(text, 0, len(text))] == [(6, 25)]
    assert not matchers.spans("4111 1111 1111 1112", 0, 19)
