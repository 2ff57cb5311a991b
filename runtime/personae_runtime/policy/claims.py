"""Verified claims: the one exception to the rules that keep a persona from claiming a life that it does not have.

A persona's definition can hold facts of whoever is behind it, which somebody with the permission to has verified. At
output a match that a protocol would stop passes if, and only if, one claim of the match's kind *covers* the whole
sentence that it stands in:

- every word of the sentence, but for those that say nothing (`passing`), is a word of the claim;
- no word of it is one that nobody can verify (`never`);
- the claim's subject, if it has one, is named in the sentence.

What is a kind, for which types of persona, and which words pass or never do, is `verification` of `protocols.yaml`.
English only. docs/protocols.md has the limits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from personae_runtime.errors import ConfigError, InvalidArgument
from personae_runtime.personas.definition import VerifiedClaim
from personae_runtime.policy.bundle import PROTOCOLS, PersonaTypeName, protocol_file
from personae_runtime.policy.decision import Action, PolicyContext, RuleHit
from personae_runtime.policy.matchers import Span
from personae_runtime.policy.normalize import normalize
from personae_runtime.policy.units import WINDOW_CHARS

# Of normalised text. Whatever is neither white space nor an ASCII sign is a part of a word: an emoji says something.
_SIGN: Final = r"\s!-/:-@\[-`{-~"
_WORD: Final = re.compile(rf"[^{_SIGN}]+(?:'[^{_SIGN}]+)*")
_CLITIC: Final = re.compile(r"'(?:s|m|re|ve|ll|d)\Z")
_SENTENCE_END: Final = re.compile(r"[.!?]+[\"')\]}*_]*(?=\s)")

Words = Annotated[frozenset[str], BeforeValidator(lambda text: frozenset(str(text).split()))]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Kind(_Part):
    """What can be verified: the matchers that find it, whose it can be, and whether a claim must name a subject."""

    matchers: tuple[str, ...] = Field(min_length=1)
    persona_types: tuple[PersonaTypeName, ...] = Field(min_length=1)
    subject: bool = False


class Hit(_Part):
    """How a record names what let a match pass."""

    id: str
    reason_code: str
    description: str


class Verification(_Part):
    """`verification` of `protocols.yaml`; words are normalised."""

    hit: Hit
    kinds: Mapping[str, Kind]
    passing: Words
    never: Words


@lru_cache(maxsize=1)
def verification() -> Verification:
    """What the protocols say of verified claims.

    Raises:
        ConfigError: the file is wrong.
    """
    try:
        return Verification.model_validate(protocol_file()[0]["verification"])
    except ValidationError as error:
        raise ConfigError(f"{PROTOCOLS}: verification: {error}") from None


def content_words(text: str) -> frozenset[str]:
    """The words of a normalised text that say something."""
    words = (_CLITIC.sub("", word) for word in _WORD.findall(text))
    return frozenset(words) - verification().passing


def _unverifiable(words: frozenset[str]) -> frozenset[str]:
    """Those that nobody can verify, in the plural too."""
    never = verification().never
    return frozenset(word for word in words if word in never or word.removesuffix("s") in never)


def _forms(word: str) -> frozenset[str]:
    """As what a claim in the third person may have a word that a sentence has in the first: sells for sell, selling."""
    stems = [word]
    if word.endswith("ing") and len(word) > 5:
        stems += [word[:-3], word[:-3] + "e"]
    forms = {form for stem in stems for form in (stem, stem + "s", stem + "es")}
    return frozenset(forms | ({word[:-1] + "ies"} if word.endswith("y") else set()))


def check(claims: Sequence[VerifiedClaim], persona_type: str, field: str) -> None:
    """See that claims are such as can be verified for a type of persona.

    Args:
        field: path of the request's field that holds them.

    Raises:
        InvalidArgument: one is not; says which and why.
    """
    rules = verification()
    for number, claim in enumerate(claims):
        where = f"{field}[{number}]"
        kind = rules.kinds.get(claim.kind)
        words = content_words(normalize(f"{claim.statement} {claim.subject}"))
        unverifiable = sorted(_unverifiable(words))
        problem = ""
        if kind is None:
            problem = f"kind: one of {sorted(rules.kinds)}"
        elif persona_type not in kind.persona_types:
            problem = f"kind: {claim.kind} is for personas of type {' or '.join(kind.persona_types)}"
        elif unverifiable:
            problem = f"statement: nobody can verify {unverifiable[0]!r} for a persona"
        elif not content_words(normalize(claim.statement)):
            problem = "statement: words that say something"
        elif kind.subject and not content_words(normalize(claim.subject)):
            problem = f"subject: what the {claim.kind} is of, as it is named"
        elif any(other.claim_id == claim.claim_id for other in claims[:number]):
            problem = "claim_id: another one; a claim before this has it"
        if problem:
            path, _, wanted = problem.partition(": ")
            raise InvalidArgument(
                f"the claim {claim.claim_id!r} can't be verified: {problem}", violations=((f"{where}.{path}", wanted),)
            )


def holding(claims: Iterable[VerifiedClaim], persona_type: str, now: datetime) -> tuple[VerifiedClaim, ...]:
    """Those of a definition's claims that a persona of this type may state at this time."""
    rules = verification()
    return tuple(
        claim
        for claim in claims
        if (kind := rules.kinds.get(claim.kind)) is not None
        and persona_type in kind.persona_types
        and claim.holds_at(now)
    )


@dataclass(frozen=True, slots=True)
class _Cover:
    """A claim, ready to be asked."""

    name: str
    words: frozenset[str]
    subject: frozenset[str]

    def covers(self, words: frozenset[str]) -> bool:
        return (
            bool(words)
            and self.subject <= words
            and not _unverifiable(words)
            and all(not self.words.isdisjoint(_forms(word)) for word in words)
        )


@dataclass(frozen=True, slots=True)
class Covered:
    """What claims let pass of a unit.

    Attributes:
        matcher_ids: those of which every match is covered.
        claims: by name, in the order of the text.
        hit: what a decision has beside its rules for them.
    """

    matcher_ids: frozenset[str]
    claims: tuple[str, ...]
    hit: RuleHit


class Claims:
    """The claims that hold of a persona during a turn. Pure: what they cover depends on the text alone."""

    __slots__ = ("_by_matcher",)

    def __init__(self, context: PolicyContext) -> None:
        self._by_matcher: dict[str, list[_Cover]] = {}
        place, kinds = context.revision_name, verification().kinds if context.claims else {}
        for claim in context.claims:
            subject = content_words(normalize(claim.subject))
            cover = _Cover(
                f"{place}/claims/{claim.claim_id}" if place else claim.claim_id,
                content_words(normalize(claim.statement)) | subject,
                subject,
            )
            kind = kinds.get(claim.kind)
            for matcher_id in kind.matchers if kind is not None and context.persona_type in kind.persona_types else ():
                self._by_matcher.setdefault(matcher_id, []).append(cover)

    def may_cover(self, matcher_ids: Iterable[str]) -> frozenset[str]:
        """The matchers of whose kind there is a claim."""
        return frozenset(one for one in matcher_ids if one in self._by_matcher)

    def cover(self, text: str, spans: Sequence[Span], unit: int, unit_stop: int, *, final: bool) -> Covered | None:
        """Which matches of a unit are covered; None while a sentence of theirs may go on.

        A sentence that does not begin within WINDOW_CHARS before the unit, or end within as many after it, is covered
        by nothing, so that what is decided depends on that much text alone.

        Args:
            text: normalised, with at least WINDOW_CHARS before the unit, or all that there is.
            spans: the matches that start in the unit.
            unit, unit_stop: where it starts and ends in `text`.
            final: no more text will come.
        """
        low, high = max(0, unit - WINDOW_CHARS), unit_stop + WINDOW_CHARS
        used: dict[str, list[str]] = {}
        bare: set[str] = set()
        for span in spans:
            covers = self._by_matcher.get(span.matcher_id)
            if covers is None:
                continue
            before = [mark.end() for mark in _SENTENCE_END.finditer(text, low, span.start)]
            begin = before[-1] if before else low
            begun = bool(before) or low == 0
            mark = _SENTENCE_END.search(text, span.end, min(len(text), high))
            if mark is not None:
                end = mark.end()
            elif len(text) >= high:
                begun = False
                end = high
            elif final:
                end = len(text)
            else:
                return None
            words = content_words(text[begin:end]) if begun else frozenset()
            name = next((one.name for one in covers if one.covers(words)), "")
            if name:
                used.setdefault(span.matcher_id, []).append(name)
            else:
                bare.add(span.matcher_id)
        passed = used.keys() - bare
        names = dict.fromkeys(name for span in spans if span.matcher_id in passed for name in used[span.matcher_id])
        named = verification().hit
        hit = RuleHit(
            named.id, Action.ALLOW, "identity", named.reason_code, "a verified claim covers the sentence",
            named.description,
        )  # fmt: skip
        return Covered(frozenset(passed), tuple(names), hit)


NO_CLAIMS: Final = Claims(PolicyContext())
