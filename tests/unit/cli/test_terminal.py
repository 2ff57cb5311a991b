from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from personae_serve.cli.terminal import WordWrapper, cells, printable

words = st.text(alphabet="abcé漢🙂", min_size=1, max_size=8)


@given(st.text())
def test_no_text_can_steer_the_terminal(text: str) -> None:
    shown = printable(text)
    assert all(char in "\n\t" or char.isprintable() or char not in "\x1b\x9b\x07\r\u202e" for char in shown)
    assert printable(shown) == shown


def test_escape_sequences_lose_their_power() -> None:
    assert printable("a\x1b[2Jb\x9bc\rd\u202ee\n\tf") == "a[2Jbcde\n\tf"


@given(st.lists(words), st.integers(1, 20), st.data())
def test_wrapping_keeps_every_word_in_order_whatever_the_pieces(
    said: list[str], width: int, data: st.DataObject
) -> None:
    text = " ".join(said)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    wrapper = WordWrapper(width)
    shown = ""
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        shown += wrapper.feed(text[start:end])
    shown += wrapper.flush()
    assert shown.split() == said
    for line in shown.split("\n"):
        assert cells(line) <= width or " " not in line


def test_line_breaks_of_the_text_stay() -> None:
    wrapper = WordWrapper(80)
    assert wrapper.feed("one\n\ntwo  three ") + wrapper.flush() == "one\n\ntwo  three"
