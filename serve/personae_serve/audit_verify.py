"""Checks an exported audit log, or the receipt of one entry, without a server and without the code that wrote it.

Needs the standard library and an Ed25519 implementation. The algorithms are the
verifier's of RFC 9162, sections 2.1.3.2 and 2.1.4.2; a checkpoint is a C2SP
signed note (https://c2sp.org/signed-note, https://c2sp.org/tlog-checkpoint).

A file is strict: one compact JSON object a line, keys in order, each line ended
by a line feed. So whatever byte is changed, something does not hold any more.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

LOG_FORMAT: Final = "personae-audit/1"
RECEIPT_FORMAT: Final = "personae-audit-receipt/1"
_KEYS: Final = {
    "log": ("type", "format", "origin", "public_key"),
    "entry": ("type", "index", "entry"),
    "consistency": ("type", "first", "second", "hashes"),
    "inclusion": ("type", "index", "size", "hashes"),
    "checkpoint": ("type", "note"),
}
_ENTRY_KEYS: Final = ("body", "id", "kind", "tenant", "time")
_MOST_PROBLEMS: Final = 20


class Invalid(Exception):
    """Something does not hold; the message says what."""


@dataclass(frozen=True, slots=True)
class Note:
    """What a checkpoint states; `time` is empty if it has none."""

    origin: str
    size: int
    root: bytes
    time: str


@dataclass(slots=True)
class Report:
    """What a file holds and what is wrong with it.

    Attributes:
        problems: what does not hold, at most 20 of it, with its line; empty if all does.
        public_key: that the signatures were checked by, 32 bytes; empty if the file names none.
        pinned: sizes of the checkpoints known from elsewhere that the log was found to contain.
    """

    receipt: bool = False
    origin: str = ""
    public_key: bytes = b""
    entries: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    checkpoints: int = 0
    last: Note | None = None
    pinned: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Nothing is wrong."""
        return not self.problems

    def add(self, problem: str) -> None:
        """Note what is wrong."""
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(problem)


# -- hashing ------------------------------------------------------------------


def leaf_hash(entry: bytes) -> bytes:
    """Hash of a leaf."""
    return sha256(b"\x00" + entry).digest()


def _pair(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


class RunningRoot:
    """The root of leaves as they are read, in memory for the logarithm of their number."""

    def __init__(self) -> None:
        self.size = 0
        self._stack: list[bytes] = []

    def add(self, entry: bytes) -> None:
        """Take the next leaf."""
        found = leaf_hash(entry)
        # As many full subtrees end here as the number of leaves before has trailing ones.
        carry = self.size
        while carry & 1:
            found = _pair(self._stack.pop(), found)
            carry >>= 1
        self._stack.append(found)
        self.size += 1

    def root(self) -> bytes:
        """Root of the leaves so far."""
        if not self._stack:
            return sha256().digest()
        found = self._stack[-1]
        for left in self._stack[-2::-1]:
            found = _pair(left, found)
        return found


def check_inclusion(leaf: bytes, index: int, size: int, root: bytes, hashes: Sequence[bytes]) -> None:
    """RFC 9162, section 2.1.3.2.

    Raises:
        Invalid: the proof does not show that the leaf, by its hash, is at `index` of a tree of `size`.
    """
    if not 0 <= index < size:
        raise Invalid("the tree ends before the entry")
    fn, sn, found = index, size - 1, leaf
    for step in hashes:
        if sn == 0:
            raise Invalid("the inclusion proof is too long")
        if fn & 1 or fn == sn:
            found = _pair(step, found)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            found = _pair(found, step)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0 or found != root:
        raise Invalid("the inclusion proof does not lead to the root")


def check_consistency(first: int, second: int, first_root: bytes, second_root: bytes, hashes: Sequence[bytes]) -> None:
    """RFC 9162, section 2.1.4.2.

    Raises:
        Invalid: the proof does not show that the second tree begins with the first.
    """
    if not 0 < first <= second:
        raise Invalid("a consistency proof leads from a smaller tree that is not empty to a larger one")
    if first == second:
        if hashes or first_root != second_root:
            raise Invalid("trees of one size differ")
        return
    steps = list(hashes)
    if not first & (first - 1):
        steps.insert(0, first_root)
    if not steps:
        raise Invalid("the consistency proof is empty")
    fn, sn = first - 1, second - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    old = new = steps[0]
    for step in steps[1:]:
        if sn == 0:
            raise Invalid("the consistency proof is too long")
        if fn & 1 or fn == sn:
            old, new = _pair(step, old), _pair(step, new)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            new = _pair(new, step)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0 or old != first_root or new != second_root:
        raise Invalid("the consistency proof does not lead to both roots")


# -- checkpoints --------------------------------------------------------------


def read_note(note: str, public_key: bytes) -> Note:
    """A checkpoint whose signature by `public_key` holds.

    Raises:
        Invalid: it is malformed, or not signed by that key in the log's own name.
    """
    text, blank, signatures = note.rpartition("\n\n")
    lines = text.split("\n")
    if not blank or not 3 <= len(lines) <= 4 or not signatures.endswith("\n"):
        raise Invalid("the checkpoint is not a signed note")
    name, size, root = lines[:3]
    extension = lines[3] if len(lines) == 4 else "time "
    if not size.isascii() or not size.isdigit() or str(int(size)) != size or not extension.startswith("time "):
        raise Invalid("the checkpoint is malformed")
    body = f"{text}\n".encode()
    key_id = sha256(name.encode() + b"\n\x01" + public_key).digest()[:4]
    signed = signatures.removesuffix("\n").split("\n")
    if len(signed) != 1 or not signed[0].startswith(f"\u2014 {name} "):
        raise Invalid("the checkpoint is not signed in the name of its log")
    signature = _decoded(signed[0].removeprefix(f"\u2014 {name} "))
    if signature[:4] != key_id:
        raise Invalid("the checkpoint is signed by another key")
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature[4:], body)
    except (InvalidSignature, ValueError):
        raise Invalid("the checkpoint's signature does not hold") from None
    return Note(name, int(size), _hash(root), extension.removeprefix("time "))


def _decoded(text: Any) -> bytes:
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise Invalid("not base64") from None
    # Spare bits of the last character could differ and mean the same.
    if base64.b64encode(found).decode() != text:
        raise Invalid("not canonical base64")
    return found


def _hash(text: Any) -> bytes:
    found = _decoded(text)
    if len(found) != 32:
        raise Invalid("not a SHA-256 hash")
    return found


# -- files --------------------------------------------------------------------


def verify(lines: Iterable[bytes], *, public_key: bytes | None = None, pinned: Sequence[str] = ()) -> Report:
    """Check an exported log or a receipt.

    Args:
        lines: of the file, with their line feeds.
        public_key: of the installation, 32 bytes, known from elsewhere. Without
            it the key is the one that the file names, which anybody can replace
            together with every signature.
        pinned: checkpoints (notes) known from elsewhere. A log that was cut off at an
            earlier checkpoint, or written anew, is told by nothing else.
    """
    report = Report()
    reader = _Reader(report, public_key, pinned)
    number = 0
    for number, line in enumerate(lines, start=1):
        try:
            reader.take(line, number == 1)
        except Invalid as error:
            report.add(f"line {number}: {error}")
            if number == 1:
                return report
    try:
        reader.end(number)
    except Invalid as error:
        report.add(f"at the end: {error}")
    return report


class _Reader:
    def __init__(self, report: Report, public_key: bytes | None, pinned: Sequence[str]) -> None:
        self.report = report
        self._key = public_key
        self._pinned = pinned
        # Known checkpoints that the log has not come to yet.
        self._due: list[Note] = []
        self._running = RunningRoot()
        self._entry: tuple[int, bytes] | None = None
        self._proof: dict[str, Any] | None = None
        self._ended = False

    def take(self, line: bytes, first: bool) -> None:
        found = _parsed(line)
        kind = found["type"]
        if (kind == "log") != first:
            raise Invalid("the file begins with its header, and has one")
        if kind == "log":
            self._begin(found)
        elif kind == "entry":
            self._take_entry(found)
        elif kind == "checkpoint":
            self._take_checkpoint(found["note"])
        elif self._proof is not None or (kind == "inclusion") != self.report.receipt:
            raise Invalid(f"a {kind} proof does not belong here")
        else:
            self._proof = found

    def _begin(self, header: dict[str, Any]) -> None:
        if header["format"] not in (LOG_FORMAT, RECEIPT_FORMAT):
            raise Invalid(f"unknown format {header['format']!r}")
        named = _hash(header["public_key"])
        if self._key is not None and named != self._key:
            raise Invalid("the log names another public key than the one given")
        self.report.receipt = header["format"] == RECEIPT_FORMAT
        self.report.origin, self.report.public_key = header["origin"], named
        for text in self._pinned:
            try:
                note = read_note(text, named)
                if note.origin != header["origin"]:
                    raise Invalid("it is of another log")
                self._due.append(note)
            except Invalid as error:
                self.report.add(f"known checkpoint: {error}")
        if not self.report.receipt:
            self._meet_pinned(0, self._running.root())

    def _meet_pinned(self, size: int, root: bytes) -> None:
        for note in [due for due in self._due if due.size == size]:
            self._due.remove(note)
            if note.root == root:
                self.report.pinned.append(size)
            else:
                self.report.add(f"known checkpoint: the first {size} entries are not those that it was signed over")

    def _take_entry(self, found: dict[str, Any]) -> None:
        if self._proof is not None:
            raise Invalid("behind a proof stands its checkpoint, not an entry")
        report = self.report
        text, index = found["entry"], found["index"]
        if not isinstance(text, str) or not _is_size(index):
            raise Invalid("an entry is an index and a text")
        entry = text.encode()
        if report.receipt:
            if self._entry is not None:
                raise Invalid("a receipt is of one entry")
            self._entry = (index, entry)
        else:
            self._ended = False
            if index != self._running.size:
                report.add(f"entry {index} stands where entry {self._running.size} should")
            self._running.add(entry)
            if self._due and any(due.size == self._running.size for due in self._due):
                self._meet_pinned(self._running.size, self._running.root())
        report.entries += 1
        read = _json(text)
        if not isinstance(read, dict) or tuple(read) != _ENTRY_KEYS:
            raise Invalid(f"entry {index} is not of the form of an entry")
        if f"personae/{read['tenant']}" != report.origin:
            raise Invalid(f"entry {index} is of another log")
        report.kinds[str(read["kind"])] += 1

    def _take_checkpoint(self, text: Any) -> None:
        if not isinstance(text, str):
            raise Invalid("a checkpoint is a text")
        report, proof, self._proof = self.report, self._proof, None
        note = read_note(text, report.public_key)
        before, report.last = report.last, note
        report.checkpoints += 1
        if note.origin != report.origin:
            raise Invalid("the checkpoint is of another log")
        if report.receipt:
            if self._entry is None or proof is None:
                raise Invalid("a receipt has an entry and its proof before its checkpoint")
            index, entry = self._entry
            if proof["index"] != index or proof["size"] != note.size:
                raise Invalid("the inclusion proof is of another entry or tree")
            check_inclusion(leaf_hash(entry), index, note.size, note.root, [_hash(one) for one in proof["hashes"]])
            self._ended = True
            self._meet_pinned(note.size, note.root)
            return
        self._ended = note.size == self._running.size
        if not self._ended:
            raise Invalid(f"the checkpoint covers {note.size} entries, {self._running.size} stand before it")
        if note.root != self._running.root():
            raise Invalid(f"the {note.size} entries before the checkpoint are not those that were signed")
        if before is None:
            if proof is not None:
                raise Invalid("a consistency proof before the first checkpoint")
            return
        if proof is None or (proof["first"], proof["second"]) != (before.size, note.size):
            raise Invalid(f"no proof that the log grew from {before.size} to {note.size} entries")
        hashes = [_hash(one) for one in proof["hashes"]]
        check_consistency(before.size, note.size, before.root, note.root, hashes)

    def end(self, count: int) -> None:
        if not count:
            raise Invalid("the file is empty")
        if self._proof is not None or not self._ended:
            raise Invalid("what stands last is not covered by a checkpoint: something was cut off or added")
        for note in self._due:
            where = (
                "the receipt is of another tree" if self.report.receipt else "the log ends before it: it was cut off"
            )
            self.report.add(f"known checkpoint of {note.size} entries: {where}")


def _parsed(line: bytes) -> dict[str, Any]:
    """A line's object, if it is the only way to write it."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise Invalid("not UTF-8") from None
    found = _json(text.removesuffix("\n"))
    if not isinstance(found, dict) or tuple(found) != _KEYS.get(str(found.get("type"))):
        raise Invalid("not a line of an audit log")
    if text != json.dumps(found, ensure_ascii=False, separators=(",", ":")) + "\n":
        raise Invalid("not written as an export is")
    if "hashes" in found:
        numbers = [value for key, value in found.items() if key in ("first", "second", "index", "size")]
        if not isinstance(found["hashes"], list) or not all(map(_is_size, numbers)):
            raise Invalid("a proof is two numbers and hashes")
    if any(not isinstance(found[key], str) for key in ("type", "format", "origin", "public_key") if key in found):
        raise Invalid("the header is of texts")
    return found


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Invalid("not JSON") from None


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63
