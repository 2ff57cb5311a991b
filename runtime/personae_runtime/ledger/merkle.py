"""Merkle trees as in RFC 9162, section 2.1 (SHA-256): hashes, and which subtrees a root or a proof is made of.

A tree only grows at its right edge, so a subtree whose leaves are all there
never changes. Such complete subtrees are what is stored, by (level, position):
level 0 are leaves, and (l, p) covers the leaves from p·2^l to (p + 1)·2^l.
Everything else is folded from them as it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import TypeAlias

Node: TypeAlias = tuple[int, int]
"""(level, position) of a complete subtree."""
Range: TypeAlias = tuple[int, int]
"""Leaves [begin, end) of a subtree, complete or at the right edge."""

EMPTY_ROOT = sha256().digest()
"""Root of a tree without leaves."""


def leaf_hash(entry: bytes) -> bytes:
    """SHA-256(0x00 || entry), 32 bytes."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right), 32 bytes."""
    return sha256(b"\x01" + left + right).digest()


def complete(leaves: Range) -> list[Node]:
    """The largest complete subtrees that a subtree consists of, left to right."""
    begin, end = leaves
    found: list[Node] = []
    while begin < end:
        level = (end - begin).bit_length() - 1
        found.append((level, begin >> level))
        begin += 1 << level
    return found


def fold(hashes: Sequence[bytes]) -> bytes:
    """Root of a subtree by the hashes of its complete parts, as `complete` orders them."""
    if not hashes:
        return EMPTY_ROOT
    root = hashes[-1]
    for left in reversed(hashes[:-1]):
        root = node_hash(left, root)
    return root


def inclusion(index: int, size: int) -> list[Range]:
    """Subtrees whose roots prove that a leaf is in a tree, from the leaf up (section 2.1.3.1).

    Args:
        index: 0 <= index < size.
    """
    found: list[Range] = []
    begin, end = 0, size
    while end - begin > 1:
        split = begin + _largest_power_below(end - begin)
        if index < split:
            found.append((split, end))
            end = split
        else:
            found.append((begin, split))
            begin = split
    return found[::-1]


def consistency(first: int, second: int) -> list[Range]:
    """Subtrees whose roots prove that a tree begins with a smaller one (section 2.1.4.1).

    Args:
        first, second: sizes, 0 < first <= second; of equal ones the proof is empty.
    """
    found: list[Range] = []
    begin, end = 0, second
    known = True
    while first != end:
        split = begin + _largest_power_below(end - begin)
        if first <= split:
            found.append((split, end))
            end = split
        else:
            found.append((begin, split))
            begin, known = split, False
    if not known:
        found.append((begin, end))
    return found[::-1]


class Frontier:
    """The right edge of a growing tree.

    Args:
        size: leaves so far.
        hashes: of `complete((0, size))`.
        keep: called with each complete subtree that an append makes, and its hash.
    """

    def __init__(self, size: int, hashes: Iterable[bytes], keep: Callable[[Node, bytes], None]) -> None:
        self.size = size
        self._edge = [(level, found) for (level, _), found in zip(complete((0, size)), hashes, strict=True)]
        self._keep = keep

    def append(self, leaf: bytes) -> None:
        """Add a leaf by its hash."""
        level, position, found = 0, self.size, leaf
        self._keep((level, position), found)
        while self._edge and self._edge[-1][0] == level:
            found = node_hash(self._edge.pop()[1], found)
            level, position = level + 1, position >> 1
            self._keep((level, position), found)
        self._edge.append((level, found))
        self.size += 1

    @property
    def root(self) -> bytes:
        """Root of the whole tree, 32 bytes."""
        return fold([found for _, found in self._edge])


def _largest_power_below(size: int) -> int:
    # The largest power of two smaller than `size`, which is at least 2.
    return 1 << ((size - 1).bit_length() - 1)
