"""What is wrong with a bundle beyond what keeps it from loading, found without any traffic.

Whether a rule can hold, and whether another always comes first, is decided and
not guessed: a condition sees only which matchers found something, on which side
of some numbers the scores and signals are, and a few words about the person. So
every case that it can tell apart is tried, where those are at most MAX_CASES;
of a condition with more, or one that is not of this form, nothing is said.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from personae_runtime.errors import ConfigError
from personae_runtime.policy.bundle import (
    PERSONA_TYPES,
    Bundle,
    BundleSpec,
    MatcherSpec,
    Rule,
    find,
    parse_bundle,
    protocol_rules,
    shipped_bundle,
    variables,
)
from personae_runtime.policy.decision import Action, AgeBand, PolicyContext, Stage
from personae_runtime.policy.scorers import SyncScorer

MAX_CASES: Final = 4096
LONG_MATCH_CHARS: Final = 200
"""As long as a unit: a longer match can hold back more than the text that is being judged."""

_MEMBER = re.compile(r"""(["'])([^"']*)\1\s+in\s+matches\b""")
_KEY = r"""(?:\[\s*["'](\w+)["']\s*\]|\.\s*(\w+))"""
_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_COMPARED = {
    "scores": re.compile(rf"\bscores\s*{_KEY}\s*(?:>=|<=|==|!=|>|<)\s*{_NUMBER}"),
    "signals": re.compile(rf"\bsignals\s*{_KEY}\s*(?:>=|<=|==|!=|>|<)\s*{_NUMBER}"),
    "chars": re.compile(rf"\bchars()()\s*(?:>=|<=|==|!=|>|<)\s*{_NUMBER}"),
}
_WORDS = re.compile(r"""\b(persona_type|age_band|region)\s*(?:==|!=)\s*(["'])(\w*)\2""")
_NAMES = re.compile(r"\b(matches|scores|signals|chars|persona_type|age_band|region)\b")
_RANK = {Action.ALLOW: 0, Action.TRANSFORM: 1, Action.BLOCK: 2, Action.ESCALATE: 3}


class Level(StrEnum):
    """ERROR: the bundle does not load, or a rule does nothing. WARNING: probably not as it was meant."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One complaint.

    Attributes:
        code: stable, upper snake case.
        where: "rule no_rival_prices", "matcher iban"; empty for the whole.
    """

    level: Level
    code: str
    where: str
    message: str


def lint(data: bytes, name: str, scorer: SyncScorer, categories: Sequence[str]) -> list[Finding]:
    """Everything that is wrong with a bundle's file; of one that extends the shipped bundle, with what it adds.

    Args:
        name: for messages.
        scorer: gives the scores of the rules' tests.
        categories: those that the scorers of the deployment give.
    """
    try:
        bundle = parse_bundle(data, name, None, base=shipped_bundle())
    except ConfigError as error:
        return [Finding(Level.ERROR, "DOES_NOT_LOAD", "", error.message)]
    found = [Finding(Level.ERROR, "TEST_FAILS", "", failure) for failure in bundle.failures(scorer)]
    base = BundleSpec(version="0") if bundle.spec.extends is None else parse_bundle(shipped_bundle(), "", None).spec
    fixed, _ = protocol_rules()
    theirs = {one["id"] for one in fixed["matchers"]} | {matcher.id for matcher in base.matchers}
    own = [rule for rule in bundle.rules if not rule.protocol and rule.spec not in base.rules]
    for rule in own:
        found += _about_rule(bundle, rule, categories)
        found += _shadowed(bundle, rule)
    found += _about_matchers(bundle, [matcher for matcher in bundle.spec.matchers if matcher.id not in theirs])
    found += _about_reasons(bundle, {rule.spec.reason_code for rule in own})
    return found


def _about_rule(bundle: Bundle, rule: Rule, categories: Sequence[str]) -> Iterator[Finding]:
    spec, where = rule.spec, f"rule {rule.spec.id}"
    cases = _Cases.of([rule])
    if cases is not None and not any(cases.holds(rule, case) for case in cases):
        yield Finding(Level.ERROR, "UNREACHABLE", where, "its condition can't hold, whatever is judged")
    absent = {m[1] or m[2] for m in _COMPARED["scores"].finditer(spec.when)} - set(categories)
    if absent:
        message = f"no scorer of this deployment gives {sorted(absent)}, so it counts as 0"
        yield Finding(Level.WARNING, "UNKNOWN_SCORE", where, message)
    matchers = bundle.matcher_set(rule.matcher_ids)
    # All tests: one that only excepts ("&& !(...)") is tried by those that must not match.
    hit = {span.matcher_id for test in spec.tests if test.text for span in find(matchers, test.text)[1]}
    for matcher_id in sorted({m[2] for m in _MEMBER.finditer(spec.when)} - hit):
        yield Finding(Level.WARNING, "UNTESTED_MATCHER", where, f"no test has a match of {matcher_id!r}")
    if spec.action is not Action.ALLOW and len(re.findall(r"\w+", spec.description)) < 4:
        message = "the person is told the description as the reason; make it a sentence"
        yield Finding(Level.WARNING, "REASON_WITHOUT_STATEMENT", where, message)
    if spec.action is not Action.ALLOW and not spec.legal_basis:
        message = "it restricts and names no legal basis: the statement of reasons gives the terms of service alone"
        yield Finding(Level.WARNING, "NO_LEGAL_BASIS", where, message)
    if spec.action.stops and not spec.template and {Stage.INPUT, Stage.OUTPUT, Stage.SIGNAL} & set(spec.stages):
        message = "no template: the person reads the refusal of the whole bundle"
        yield Finding(Level.WARNING, "NO_TEMPLATE", where, message)


def _about_matchers(bundle: Bundle, own: Sequence[MatcherSpec]) -> Iterator[Finding]:
    used = frozenset().union(*(rule.matcher_ids for rule in bundle.rules))
    for spec in own:
        where = f"matcher {spec.id}"
        if spec.id not in used:
            yield Finding(Level.WARNING, "UNUSED_MATCHER", where, "no rule asks about it")
        if spec.max_chars > LONG_MATCH_CHARS:
            message = f"a match of up to {spec.max_chars} characters can hold back that much of a reply"
            yield Finding(Level.WARNING, "LONG_MATCHER", where, message)


def _about_reasons(bundle: Bundle, own: set[str]) -> Iterator[Finding]:
    by_code: dict[str, set[str]] = {}
    for rule in bundle.rules:
        by_code.setdefault(rule.spec.reason_code, set()).add(rule.spec.category)
    for code, categories in sorted(by_code.items()):
        if code in own and len(categories) > 1:
            message = f"reason code {code} stands for several categories: {sorted(categories)}"
            yield Finding(Level.WARNING, "AMBIGUOUS_REASON", "", message)


# -- which rules can hold, and which come first -------------------------------


def _shadowed(bundle: Bundle, rule: Rule) -> Iterator[Finding]:
    """Whether a rule never decides: whenever it holds, another does that comes before it and ends the matter."""
    if rule.spec.action is Action.ALLOW:
        return  # records, whatever else decides
    for other in bundle.rules:
        if other is not rule and _comes_first(other, rule) and _implies(rule, other):
            message = f"never decides: whenever it holds, {other.spec.id!r} holds too and comes first"
            yield Finding(Level.ERROR, "SHADOWED", f"rule {rule.spec.id}", message)
            return


def _comes_first(one: Rule, other: Rule) -> bool:
    """Whether `one` decides wherever both hold, and nothing of the other's effect is left."""
    a, b = one.spec, other.spec
    if not a.action.stops or not set(b.stages) <= set(a.stages) or not b.scope.within(a.scope):
        return False
    if b.notice and not a.notice:
        return False  # its notice is given all the same
    return (-_RANK[a.action], -a.priority, a.id) < (-_RANK[b.action], -b.priority, b.id)


def _implies(rule: Rule, other: Rule) -> bool:
    """Whether the other's condition holds whenever this one's does; False if that can't be decided."""
    if not other.matcher_ids and not _NAMES.search(other.spec.when):
        shared = True  # a constant
    else:
        shared = bool(set(_atoms(rule)) & set(_atoms(other)))
    if not shared:
        return False
    cases = _Cases.of([rule, other])
    if cases is None:
        return False
    met = False
    for case in cases:
        if cases.holds(rule, case):
            met = True
            if not cases.holds(other, case):
                return False
    return met


def _atoms(rule: Rule) -> Iterator[tuple[str, str]]:
    for match in _MEMBER.finditer(rule.spec.when):
        yield "matches", match[2]
    for kind, pattern in _COMPARED.items():
        for match in pattern.finditer(rule.spec.when):
            yield kind, match[1] or match[2]


@dataclass(frozen=True, slots=True)
class _Case:
    matches: tuple[str, ...]
    scores: Mapping[str, float]
    signals: Mapping[str, float]
    chars: int
    context: PolicyContext


@dataclass(frozen=True, slots=True)
class _Cases:
    """Every case that some conditions can tell apart."""

    matchers: tuple[str, ...]
    scores: Mapping[str, tuple[float, ...]]
    signals: Mapping[str, tuple[float, ...]]
    chars: tuple[int, ...]
    contexts: tuple[PolicyContext, ...]

    @classmethod
    def of(cls, rules: Sequence[Rule]) -> _Cases | None:
        """None if there are too many, or a condition asks in a way that is not of this form."""
        matchers: set[str] = set()
        numbers: dict[str, dict[str, set[float]]] = {kind: {} for kind in _COMPARED}
        words: dict[str, set[str]] = {"persona_type": set(), "age_band": set(), "region": set()}
        for rule in rules:
            left = rule.spec.when
            matchers |= {m[2] for m in _MEMBER.finditer(left)}
            left = _MEMBER.sub("", left)
            for kind, pattern in _COMPARED.items():
                for match in pattern.finditer(left):
                    numbers[kind].setdefault(match[1] or match[2] or "", set()).add(float(match[3]))
                left = pattern.sub("", left)
            for match in _WORDS.finditer(left):
                words[match[1]].add(match[3])
            if _NAMES.search(_WORDS.sub("", left)):
                return None
        first = rules[0].spec.scope
        # "ZZ" is no region's code: it stands for every other.
        regions = first.regions or tuple(sorted({"", "ZZ", *words["region"]} if words["region"] else {""}))
        types = first.persona_types or (PERSONA_TYPES if words["persona_type"] else PERSONA_TYPES[:1])
        ages = first.age_bands or (("teen", "adult") if words["age_band"] else ("teen",))
        contexts = tuple(
            PolicyContext(kind, AgeBand(age), region) for kind, age, region in itertools.product(types, ages, regions)
        )
        sides = {
            kind: {key: _sides(limits, 1.0 if kind == "scores" else None) for key, limits in found.items()}
            for kind, found in numbers.items()
        }
        chars = tuple(sorted({max(0, round(one)) for one in sides["chars"].get("", (1.0,))}))
        made = cls(tuple(sorted(matchers)), sides["scores"], sides["signals"], chars, contexts)
        return made if made.count <= MAX_CASES else None

    @property
    def count(self) -> int:
        """How many there are."""
        product = (1 << len(self.matchers)) * len(self.chars) * len(self.contexts)
        for sides in (*self.scores.values(), *self.signals.values()):
            product *= len(sides)
        return product

    def __iter__(self) -> Iterator[_Case]:
        found = itertools.product((False, True), repeat=len(self.matchers))
        for hits in found:
            matches = tuple(one for one, hit in zip(self.matchers, hits, strict=True) if hit)
            for scores in itertools.product(*self.scores.values()):
                for signals in itertools.product(*self.signals.values()):
                    for chars, context in itertools.product(self.chars, self.contexts):
                        yield _Case(
                            matches,
                            dict(zip(self.scores, scores, strict=True)),
                            dict(zip(self.signals, signals, strict=True)),
                            chars,
                            context,
                        )

    def holds(self, rule: Rule, case: _Case) -> bool:
        """Whether a rule's condition is true; one that fails blocks, so it has its effect."""
        given: Any = variables(case.context, case.matches, case.scores, case.chars, case.signals)
        try:
            return bool(rule.program.execute(given))
        except Exception:  # the CEL binding raises builtin errors of several kinds
            return True


def _sides(limits: set[float], most: float | None) -> tuple[float, ...]:
    """A number below, at, between and above some limits, as far as it can be."""
    ordered = sorted(limits)
    points = [0.0, *ordered, ordered[-1] + 1 if most is None else most]
    between = [(a + b) / 2 for a, b in itertools.pairwise(points)]
    return tuple(sorted(one for one in {*points, *between} if one >= 0 and (most is None or one <= most)))
