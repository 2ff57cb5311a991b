"""Matchers: literals and bounded regular expressions over normalised text.

A pattern is parsed once, by the standard library's parser, into a tree from
which everything else is derived, so that all of it speaks of one language L(R):

- the longest string in L(R), which must be within the declared `max_chars`;
- R itself in RE2 syntax (linear time, https://github.com/google/re2/wiki/Syntax);
- P(R), the nonempty prefixes of strings in L(R), in RE2 syntax. `(?:P(R))\\z`
  finds where in a text that is still growing a match may have begun.

Matching is by *substring*, not by search order: matcher R matches at [p, e)
exactly if the text there is in L(R) (with `\\b` judged by the characters around
it) and passes the validator. Greedy and lazy repeats are therefore the same.
`\\d`, `\\s`, `\\w` and `\\b` are ASCII: normalisation has already folded most
look-alikes to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from re import _constants as sre  # type: ignore[attr-defined]  # not public; tests pin what we use of it
from re import _parser as sre_parser  # type: ignore[attr-defined]
from types import MappingProxyType
from typing import Any

import re2

from personae_runtime.errors import ConfigError
from personae_runtime.policy import identifiers
from personae_runtime.policy.normalize import FLOOD, normalize

MAX_CHARS = 512
"""Longest match that any matcher may declare, normalised characters."""

FLOOD_MATCHER = "ignorable_flood"
"""Built in: more ignorable characters in a row than `MAX_IGNORABLE_RUN`."""

_CLASSES = {
    sre.CATEGORY_DIGIT: "0-9", sre.CATEGORY_NOT_DIGIT: "[:^digit:]",
    sre.CATEGORY_SPACE: "\\t\\n\\v\\f\\r ", sre.CATEGORY_NOT_SPACE: "[:^space:]",
    sre.CATEGORY_WORD: "0-9A-Za-z_", sre.CATEGORY_NOT_WORD: "[:^word:]",
}  # fmt: skip

_REFUSED = {
    sre.ASSERT: "a lookahead or lookbehind", sre.ASSERT_NOT: "a negative lookahead or lookbehind",
    sre.GROUPREF: "a back-reference", sre.GROUPREF_EXISTS: "a conditional group",
    sre.ATOMIC_GROUP: "an atomic group", sre.POSSESSIVE_REPEAT: "a possessive repeat",
}  # fmt: skip


VALIDATORS: Mapping[str, Callable[[str], bool]] = MappingProxyType(
    {
        "luhn": identifiers.luhn,
        "card": identifiers.card_number,
        "iban": identifiers.iban,
        "us_ssn": identifiers.us_ssn,
        "ip": identifiers.ip_address,
        "phone": identifiers.phone,
        "labelled_phone": identifiers.labelled_phone,
    }
)
"""Checks of a match's normalised text, by the name used in bundles. Pure functions of that text alone."""


class PatternError(ConfigError):
    """A pattern can't be used. The message says why."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """What was derived from one regular expression.

    Attributes:
        source: as written.
        min_chars, max_chars: lengths of the shortest and longest string it matches, normalised characters.
        regex: RE2 source of R, without groups.
        prefixes: RE2 source of P(R): what a match may have begun with.
    """

    source: str
    min_chars: int
    max_chars: int
    regex: str
    prefixes: str


def parse(source: str) -> Pattern:
    """Parses and bounds a regular expression.

    Raises:
        PatternError: it does not parse, is not bounded, can match nothing at all,
            has lookarounds, back-references, anchors or flags, or has a
            character that normalised text never holds.
    """
    try:
        tree = sre_parser.parse(source)
    except (re.error, RecursionError, OverflowError) as e:
        raise PatternError(f"{source!r} is not a regular expression: {e}") from None
    if tree.state.flags & ~sre.SRE_FLAG_UNICODE:
        raise PatternError(f"{source!r} sets flags; text is normalised and lower case already, so leave them out")
    items = list(tree)
    shortest, longest = _width(items, source)
    if shortest == 0:
        raise PatternError(f"{source!r} matches the empty text")
    return Pattern(source, shortest, longest, _render(items), _prefixes(items))


def parse_literal(text: str, *, whole_word: bool) -> Pattern:
    """The pattern of a literal, which is normalised first; `whole_word` puts `\\b` where it begins or ends in a word
    character. A space stands for one to four white-space characters.

    Raises:
        PatternError: nothing is left of it after normalisation.
    """
    words = normalize(text).split()
    if not words:
        raise PatternError(f"literal {text!r} is empty once normalised")
    source = r"\s{1,4}".join(re.escape(w) for w in words)
    if whole_word and re.match(r"\w", words[0], re.ASCII):
        source = r"\b" + source
    if whole_word and re.search(r"\w\Z", words[-1], re.ASCII):
        source += r"\b"
    return parse(source)


def _width(items: Sequence[Any], source: str) -> tuple[int, int]:
    """Shortest and longest match of a sequence; refuses what has no bound."""
    low = high = 0
    for op, arg in items:
        a, b = _item_width(op, arg, source)
        low, high = low + a, high + b
    return low, high


def _item_width(op: Any, arg: Any, source: str) -> tuple[int, int]:
    if op is sre.LITERAL:
        _check_char(arg, source)
        return 1, 1
    if op is sre.IN:
        for kind, value in arg:
            if kind is sre.LITERAL:
                _check_char(value, source)
            elif kind is sre.RANGE:
                _check_char(value[0], source)
                _check_char(value[1], source)
        return 1, 1
    if op in (sre.ANY, sre.NOT_LITERAL):
        return 1, 1
    if op is sre.SUBPATTERN:
        _, add_flags, del_flags, inner = arg
        if add_flags or del_flags:
            raise PatternError(f"{source!r} sets flags inside; leave them out")
        return _width(list(inner), source)
    if op is sre.BRANCH:
        widths = [_width(list(branch), source) for branch in arg[1]]
        return min(a for a, _ in widths), max(b for _, b in widths)
    if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        least, most, inner = arg
        if most is sre.MAXREPEAT:
            raise PatternError(f"{source!r} has no bound: write {{m,n}} in place of *, + and {{m,}}")
        a, b = _width(list(inner), source)
        return int(least) * a, int(most) * b
    if op is sre.AT and arg in (sre.AT_BOUNDARY, sre.AT_NON_BOUNDARY):
        return 0, 0
    what = "an anchor (only \\b and \\B are possible)" if op is sre.AT else _REFUSED.get(op, str(op))
    raise PatternError(f"{source!r} uses {what}, which can't be bounded in a stream")


def _check_char(code: int, source: str) -> None:
    char = chr(code)
    if char != FLOOD and normalize(char) != char:
        raise PatternError(
            f"{source!r} has {char!r}, which normalised text never holds; it becomes {normalize(char)!r} there"
        )


def _class_char(code: int) -> str:
    return chr(code) if chr(code).isalnum() and code < 128 else f"\\x{{{code:x}}}"


def _render_item(op: Any, arg: Any) -> str:
    if op is sre.LITERAL:
        return _class_char(arg)
    if op is sre.NOT_LITERAL:
        return f"[^{_class_char(arg)}]"
    if op is sre.ANY:
        return "[^\\n]"
    if op is sre.IN:
        parts = []
        for kind, value in arg:
            if kind is sre.NEGATE:
                parts.append("^")
            elif kind is sre.LITERAL:
                parts.append(_class_char(value))
            elif kind is sre.RANGE:
                parts.append(f"{_class_char(value[0])}-{_class_char(value[1])}")
            else:
                parts.append(_CLASSES[value])
        return f"[{''.join(parts)}]"
    if op is sre.SUBPATTERN:
        return f"(?:{_render(list(arg[3]))})"
    if op is sre.BRANCH:
        return "(?:" + "|".join(_render(list(branch)) for branch in arg[1]) + ")"
    if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        least, most, inner = arg
        return f"(?:{_render(list(inner))}){{{least},{most}}}"
    return "\\b" if arg is sre.AT_BOUNDARY else "\\B"


def _render(items: Sequence[Any]) -> str:
    return "".join(_render_item(op, arg) for op, arg in items)


def _prefixes(items: Sequence[Any]) -> str:
    """P of a sequence, by P(A B) = P(A) | A P(B); empty text for the empty set.

    The part before the last character keeps its `\\b`, whose neighbours are then
    known; one at the very end is dropped, as its right neighbour is not.
    """
    tail = ""
    for op, arg in reversed(items):
        own = _item_prefixes(op, arg)
        if not tail:
            tail = own
        elif not own:  # a zero-width assertion has no nonempty prefix
            tail = f"{_render_item(op, arg)}(?:{tail})"
        elif op in (sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN):
            tail = f"{own}(?:{tail})?"
        else:
            tail = f"(?:{own}|{_render_item(op, arg)}(?:{tail}))"
    return tail


def _item_prefixes(op: Any, arg: Any) -> str:
    if op is sre.AT:
        return ""
    if op is sre.SUBPATTERN:
        inner = _prefixes(list(arg[3]))
        return f"(?:{inner})" if inner else ""
    if op is sre.BRANCH:
        branches = [p for p in (_prefixes(list(branch)) for branch in arg[1]) if p]
        return f"(?:{'|'.join(branches)})" if branches else ""
    if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        _, most, inner = arg
        last = _prefixes(list(inner)) if most else ""
        if not last or most == 1:
            return f"(?:{last})" if last else ""
        # Some whole copies, then the beginning of another.
        return f"(?:{_render(list(inner))}){{0,{most - 1}}}(?:{last})"
    return _render_item(op, arg)


@dataclass(frozen=True, slots=True)
class Matcher:
    """One matcher of a bundle: any of its patterns, where the validator agrees.

    Raises (from `build`): ConfigError.
    """

    id: str
    patterns: tuple[Pattern, ...]
    max_chars: int
    validator: str = ""

    @classmethod
    def build(cls, id: str, patterns: Iterable[Pattern], max_chars: int, validator: str = "") -> Matcher:
        """Checks the declared bound against the computed one."""
        patterns = tuple(patterns)
        if not 1 <= max_chars <= MAX_CHARS:
            raise ConfigError(f"matcher {id!r}: max_chars is {max_chars}, expected 1 to {MAX_CHARS}")
        for p in patterns:
            if p.max_chars > max_chars:
                raise ConfigError(
                    f"matcher {id!r}: {p.source!r} can match {p.max_chars} characters, "
                    f"more than the declared max_chars {max_chars}"
                )
            if p.min_chars == 0:
                raise ConfigError(f"matcher {id!r}: {p.source!r} matches the empty text")
        if validator and validator not in VALIDATORS:
            raise ConfigError(f"matcher {id!r}: validator {validator!r}, expected one of {sorted(VALIDATORS)}")
        for p in patterns:
            _compile(p.regex)
            _compile(p.prefixes)
        return cls(id, patterns, max_chars, validator)

    @property
    def regex(self) -> str:
        """RE2 source of all patterns together."""
        return "|".join(p.regex for p in self.patterns)


def flood_matcher() -> Matcher:
    """The built-in matcher `ignorable_flood`."""
    return Matcher.build(FLOOD_MATCHER, [parse(re.escape(FLOOD))], 1)


@lru_cache(maxsize=512)
def _compile(source: str, *, longest: bool = False) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.longest_match = longest
    options.max_mem = 64 << 20  # room for the lazily built automaton of all matchers together
    try:
        return re2.compile(source, options)
    except re2.error as e:
        detail = e.args[0].decode() if e.args and isinstance(e.args[0], bytes) else str(e)
        raise PatternError(f"RE2 can't compile a pattern: {detail}") from None


@dataclass(frozen=True, slots=True)
class Span:
    """A match: offsets [start, end) into the normalised text that was searched."""

    matcher_id: str
    start: int
    end: int


class MatcherSet:
    """Several matchers searched as one.

    All offsets are into the `text` given. Text before `pos` serves as context of `\\b`.
    """

    __slots__ = ("_any", "_either", "_one", "_pending", "matchers")

    def __init__(self, matchers: Iterable[Matcher]) -> None:
        self.matchers = tuple(sorted(matchers, key=lambda m: m.id))
        self._any: Any = None
        self._pending: Any = None
        self._either: Any = None
        self._one = [(m, _compile(m.regex, longest=True)) for m in self.matchers]
        if self.matchers:
            whole = "|".join(m.regex for m in self.matchers)
            prefixes = "|".join(p.prefixes for m in self.matchers for p in m.patterns)
            self._any = _compile(whole)
            self._pending = _compile(f"(?:{prefixes})\\z")
            self._either = _compile(f"{whole}|(?:{prefixes})\\z")

    def __bool__(self) -> bool:
        return bool(self.matchers)

    def pending(self, text: str, pos: int) -> int:
        """Where the earliest match that may still come (or go on) can start; `len(text)` if nowhere.

        A match at p < this is decided by `text`: it ends before the end of
        `text`, and the character after it is known.
        """
        return _search(self._pending, text, pos) if self._pending is not None else len(text)

    def candidate(self, text: str, pos: int) -> int:
        """The first start at or after `pos` of a match that a validator may yet refuse; `len(text)` if none."""
        return _search(self._any, text, pos) if self._any is not None else len(text)

    def quiet_until(self, text: str, pos: int) -> int:
        """The lesser of `pending` and `candidate`, in one search: no match starts between `pos` and this."""
        return _search(self._either, text, pos) if self._either is not None else len(text)

    def matches_at(self, text: str, pos: int) -> bool:
        """Whether any matcher matches at `pos`, its validator included."""
        return any(_longest_at(m, r, text, pos) is not None for m, r in self._one)

    def spans(self, text: str, pos: int, limit: int) -> list[Span]:
        """Every matcher's matches that start in [pos, limit), by start then id.

        One per start, the longest; of a matcher's overlapping ones only those
        that reach further than the ones before.
        """
        found: list[Span] = []
        for matcher, regex in self._one:
            at, reached = pos, pos
            while at < limit:
                hit = regex.search(text, at)
                if hit is None or hit.start() >= limit:
                    break
                at = hit.start()
                end = _longest_at(matcher, regex, text, at) if matcher.validator else hit.end()
                if end is not None and end > reached:
                    found.append(Span(matcher.id, at, end))
                    reached = end
                at += 1
        return sorted(found, key=lambda s: (s.start, s.matcher_id))


def _search(regex: Any, text: str, pos: int) -> int:
    # Bytes spare the binding its conversion of offsets, which are the same in ASCII.
    hit = regex.search(text.encode() if text.isascii() else text, pos)
    return hit.start() if hit is not None else len(text)


def _longest_at(matcher: Matcher, regex: Any, text: str, pos: int) -> int | None:
    """End of the longest valid match at `pos`; None if there is none."""
    hit = regex.match(text, pos)
    if hit is None:
        return None
    longest = int(hit.end())
    if not matcher.validator:
        return longest
    valid = VALIDATORS[matcher.validator]
    shortest = min(p.min_chars for p in matcher.patterns)
    for end in range(longest, pos + shortest - 1, -1):
        if valid(text[pos:end]) and regex.fullmatch(text, pos, end) is not None:
            return end
    return None
