from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personae_runtime.policy.normalize import FLOOD, MAX_IGNORABLE_RUN, MAX_SEGMENT, Normalizer, normalize
from tests.unit.policy.strategies import chunked


def window(normalizer: Normalizer) -> list[tuple[str, int, int]]:
    return [(c, normalizer.raw_start(i), normalizer.raw_stop(i)) for i, c in enumerate(normalizer.text)]


@given(chunked())
@settings(max_examples=400, deadline=None)
def test_a_streamed_text_normalises_as_the_joined_one_whatever_the_chunks(case: tuple[str, list[str]]) -> None:
    text, chunks = case
    whole = Normalizer()
    whole.push(text, final=True)
    streamed = Normalizer()
    for chunk in chunks:
        before = window(streamed)
        streamed.push(chunk)
        assert window(streamed)[: len(before)] == before  # what is there is final
    streamed.push("", final=True)
    assert window(streamed) == window(whole)
    assert streamed.raw_end == whole.raw_end == len(text)


@given(chunked(), st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_trimming_the_window_changes_nothing_of_the_rest(case: tuple[str, list[str]], keep: int) -> None:
    text, chunks = case
    whole = Normalizer()
    whole.push(text, final=True)
    streamed = Normalizer()
    for i, chunk in enumerate(chunks):
        streamed.push(chunk, final=i == len(chunks) - 1)
        streamed.trim(len(streamed.text) - keep)
    if chunks:
        assert window(streamed) == window(whole)[len(whole.text) - len(streamed.text) :]


@given(chunked())
@settings(max_examples=200, deadline=None)
def test_the_map_is_ordered_and_bounded(case: tuple[str, list[str]]) -> None:
    normalizer = Normalizer()
    normalizer.push(case[0], final=True)
    spans = [(normalizer.raw_start(i), normalizer.raw_stop(i)) for i in range(len(normalizer.text))]
    for (start, stop), (following, _) in zip(spans, [*spans[1:], (len(case[0]), 0)], strict=False):
        assert start < stop <= len(case[0])
        assert start <= following
        # No normalised character stands for an unbounded stretch of raw text.
        assert following - start <= MAX_SEGMENT + MAX_IGNORABLE_RUN * MAX_SEGMENT


@given(st.text(max_size=40))
def test_normalising_twice_is_normalising_once_up_to_composition(text: str) -> None:
    once = normalize(text).replace(FLOOD, "")
    assert unicodedata.normalize("NFC", normalize(once)) == unicodedata.normalize("NFC", once)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("I ÁM Human", "i am human"),
        ("ｆｕｌｌ ｗｉｄｔｈ", "full width"),
        ("hu\u200bm\u00adan", "human"),
        ("е\u0301\u0302а", "ea"),
        ("Α Ε Ο Ρ аеор", "a e o p aeop"),
        ("𝓱𝓾𝓶𝓪𝓷 🅷🅸 ⓗ", "human hi h"),
        ("h\u0337u\u0337m\u0337", "hum"),
        ("ß ﬁ İ", "ss fi i"),
        ("’x’ “y” — …", "'x' \"y\" - ..."),
        ("٣１३", "313"),
        ("👩‍👩‍👧", "👩👩👧"),
        ("\u1100\u1161\u11a8", "각"),
        ("a\x00b\x1bc", "abc"),
        ("\ud800", "\ufffd"),
        ("", ""),
    ],
)
def test_disguises_are_undone(raw: str, expected: str) -> None:
    assert normalize(raw) == expected


def test_a_flood_of_invisible_characters_shows_from_the_ninth_on() -> None:
    assert normalize("a" + "\u200b" * MAX_IGNORABLE_RUN + "b") == "ab"
    assert normalize("a" + "\u200b" * (MAX_IGNORABLE_RUN + 2) + "b") == f"a{FLOOD}{FLOOD}b"


def test_the_flood_character_cannot_be_forged() -> None:
    assert FLOOD not in normalize(f"a{FLOOD}b")


def test_ascii_never_waits_for_the_next_character() -> None:
    normalizer = Normalizer()
    normalizer.push("Hello")
    assert normalizer.text == "hello"
    normalizer.push("\u0301 there")
    assert normalizer.text == "hello there"


def test_every_letter_of_ours_that_looks_latin_is_stable_once_normalised() -> None:
    for code in range(0x2FFF):
        once = normalize(chr(code))
        assert normalize(once) == once
