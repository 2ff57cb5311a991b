"""Text from elsewhere, made fit for a terminal."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """Text without control characters, line breaks and tabs apart, so that no reply can steer the terminal.

    Bidirectional overrides go too; they make text look like what it is not.
    """
    return "".join(
        char
        for char in text
        if char in "\n\t"
        or (
            unicodedata.category(char) != "Cc"
            and not 0x202A <= ord(char) <= 0x202E
            and not 0x2066 <= ord(char) <= 0x2069
        )
    )


class WordWrapper:
    """Wraps a stream of text pieces at word ends.

    A word is held back until it is complete; `flush` gives the last one.

    Args:
        width: columns of a line, at least 1; a longer word stands alone.
    """

    def __init__(self, width: int) -> None:
        self._width = max(1, width)
        self._column = 0
        self._word = ""
        self._spaces = ""

    def feed(self, piece: str) -> str:
        """What can be shown now that this piece came."""
        shown: list[str] = []
        for char in piece:
            if char == "\n":
                shown.append(self.flush() + "\n")
                self._column = 0
            elif char in " \t":
                shown.append(self.flush())
                self._spaces += " "
            else:
                self._word += char
        return "".join(shown)

    def flush(self) -> str:
        """The word that is held back, with the space before it; trailing spaces are dropped."""
        if not self._word:
            return ""
        word, spaces = self._word, self._spaces if self._column else ""
        self._word = self._spaces = ""
        width = cells(word)
        if self._column and self._column + len(spaces) + width > self._width:
            self._column = width
            return "\n" + word
        self._column += len(spaces) + width
        return spaces + word


def cells(text: str) -> int:
    """Columns that a terminal needs for a text."""
    from wcwidth import wcswidth

    return max(0, wcswidth(text))
