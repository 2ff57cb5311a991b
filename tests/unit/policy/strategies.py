"""Texts that are hard on the gate, and ways to cut them."""

from __future__ import annotations

from hypothesis import strategies as st

INVISIBLE = ["\u200b", "\u200d", "\ufe0f", "\u00ad", "\u0301", "\u0336", "\x08", "\u2060"]

FRAGMENTS = [
    # Matches, near matches and beginnings of them.
    "I am human", "i am a real human", "I am a human", "i am", "I a", "am human", "human", "humane", "I am a real",
    "forbidden fruit", "forbidden  fruit", "forbidden", "forbidden fruits", "ünsäglich", "<|x|>", "<|x", "<|x|",
    "123-45", "1234567-12345", "12-34", "999-", "4111 1111 1111 1111", "4111-1111-1111-1112", "41111111 11111111 1",
    "a@b.example", "joe.b@mail.example.org", "joe@", "@b", "banana", "bananas",
    # Look-alikes, compositions, emoji.
    "Ι аm а humаn", "ｉ ａｍ ｈｕｍａｎ", "І\u200b a\u200bm hu\u0336man", "１２３-４５", "e\u0301", "ﬁ", "ß", "각",
    "\u1100\u1161\u11a8", "क\u093c", "👩‍👩‍👧‍👦", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "❤️", "👍🏽", "1️⃣",
    "\u200b" * 8, "\u200b" * 9, "\u0301" * 12, "\u05b0" * 20,
    # What ends units.
    ". ", "! ", "? ", ", ", "\n", "。", "、", "…", ".\" ", "one two three four five six seven eight nine ",
    "x" * 90, "word " * 30, " ", "  ",
    # Ends of units in the midst of matches: the eighth word, new lines, the hard limit.
    "I am\nhuman", "forbidden\n fruit", "one two three four five six seven ", "one two three four five six ",
    "-" * 190, "/" * 195, "=" * 199, "\n.",
]  # fmt: skip

# Harm only together with another of them.
TOGETHER = ["knife ", "the knife. ", "neck", "a néck? ", "k\u200bnife\n", "999-1", "NECK, "]


@st.composite
def disguised(draw: st.DrawFn) -> str:
    """A match with invisible characters in it, up to a few more than are ignored in a row."""
    word = draw(st.sampled_from(["I am human", "forbidden fruit", "<|x|>", "123-45", "4111 1111 1111 1111"]))
    runs = draw(st.dictionaries(st.integers(1, len(word) - 1), st.integers(1, 10), max_size=3))
    kind = draw(st.sampled_from(INVISIBLE))
    return "".join(kind * runs.get(at, 0) + character for at, character in enumerate(word))


texts = st.lists(
    st.one_of(
        st.sampled_from(FRAGMENTS),
        disguised(),
        st.sampled_from(TOGETHER),
        st.sampled_from(INVISIBLE),
        st.text(alphabet="iamhun re.,-@19 \n<|x>", max_size=8),
        st.text(max_size=4),
    ),
    max_size=14,
).map("".join)


@st.composite
def chunked(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A text and one way to cut it, empty pieces included."""
    text = draw(texts)
    style = draw(st.sampled_from(["cuts", "single", "small"]))
    if style == "single":
        return text, list(text)
    if style == "small":
        size = draw(st.integers(2, 7))
        return text, [text[i : i + size] for i in range(0, len(text), size)]
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return text, [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
