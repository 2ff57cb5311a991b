"""Bundles: versioned YAML rules that turn signals into decisions.

`load_bundle` reads, checks and tests one; a bundle that fails any of its tests
does not load. `Bundle.plan` gives the rules of a stage and context, ready to
evaluate. docs/policy.md describes the format.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import cel
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from personae_runtime import names
from personae_runtime.errors import ConfigError, InvalidArgument
from personae_runtime.policy import laws
from personae_runtime.policy.decision import Action, AgeBand, Decision, MatcherHit, PolicyContext, RuleHit, Stage
from personae_runtime.policy.matchers import Matcher, MatcherSet, flood_matcher, parse, parse_literal
from personae_runtime.policy.normalize import Normalizer
from personae_runtime.policy.reasons import RULE_FAILED, SCORER_FAILED
from personae_runtime.policy.scorers import RULE_CATEGORIES, SyncScorer
from personae_runtime.policy.signing import Trust, read_signature
from personae_runtime.policy.units import WINDOW_CHARS, split_units

DEFAULT_BUNDLE = "default_bundle.yaml"
PROTOCOLS = "protocols.yaml"
"""Rules, words and timers that no bundle can leave out, redefine or overrule; see `policy.protocols`."""
CRISIS_LINES = "crisis_lines.yaml"
CRISIS_NOTICE = "CRISIS_RESOURCES"
"""Code of the notice that CRISIS_LINES gives."""
PERSONA_TYPES = ("assistant", "companion", "curator", "brand_advocate", "clone")
PROTECTED = frozenset({"self_harm", "identity", "disclosure", "minors"})
"""Categories whose rules no kill switch turns off, at any stage."""

SIGNALS: Mapping[str, str] = MappingProxyType(
    {"turns_per_minute": "turns of the person in the last minute, this one too"}
)
"""What rules at stage `signal` may ask about, and what each number is."""

_OF_TEXT = frozenset({"matches", "scores", "chars"})
_VARIABLES = frozenset({*_OF_TEXT, "signals", "persona_type", "age_band", "region"})
_RANK = {Action.ALLOW: 0, Action.TRANSFORM: 1, Action.BLOCK: 2, Action.ESCALATE: 3}
_IN_MATCHES = re.compile(r"""(["'])([^"']*)\1\s+in\s+matches\b""")
_SCORE_KEY = re.compile(r"""\bscores\s*(?:\[\s*(["'])([^"']*)\1\s*\]|\.\s*(\w+))""")
_SIGNAL_KEY = re.compile(r"""\bsignals\s*(?:\[\s*(["'])([^"']*)\1\s*\]|\.\s*(\w+))""")
_SCORE_COMPARED = re.compile(
    r"""(?:^|(?<=[(&|!?:\s]))scores\s*(?:\[\s*["'](\w+)["']\s*\]|\.\s*(\w+))\s*(?:>=|<=|==|!=|>|<)\s*"""
    r"""([0-9]+\.[0-9]+)\s*(?=$|[)&|?:])"""
)
_COMPREHENSION = re.compile(r"\.\s*(?:all|exists|exists_one|map|filter)\s*\(\s*(\w+)\s*,")

Id = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
Region = Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")]
PersonaTypeName = Literal["assistant", "companion", "curator", "brand_advocate", "clone"]
TenantName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")]
PersonaName = Annotated[str, AfterValidator(lambda name: _resource("persona", name))]
RevisionName = Annotated[str, AfterValidator(lambda name: _resource("revision", name))]


def _resource(kind: str, name: str) -> str:
    try:
        names.parse(kind, name)
    except InvalidArgument as error:
        raise ValueError(error.message.removeprefix("name is ")) from None
    return name


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MatcherSpec(_Spec):
    """`kind: literal` has `literals` (and `whole_word`), `kind: regex` has `patterns`; any of them is a match."""

    id: Id
    kind: Literal["literal", "regex"]
    literals: tuple[Text, ...] = ()
    patterns: tuple[Text, ...] = ()
    max_chars: int
    whole_word: bool = True
    validator: str = ""

    @model_validator(mode="after")
    def _one_kind(self) -> MatcherSpec:
        mine, other = (self.literals, self.patterns) if self.kind == "literal" else (self.patterns, self.literals)
        if not mine or other:
            key = "literals" if self.kind == "literal" else "patterns"
            raise ValueError(f"a {self.kind} matcher has `{key}`, at least one, and nothing of the other kind")
        return self

    def build(self) -> Matcher:
        """Raises: ConfigError."""
        try:
            if self.kind == "literal":
                patterns = [parse_literal(text, whole_word=self.whole_word) for text in self.literals]
            else:
                patterns = [parse(text) for text in self.patterns]
        except ConfigError as e:
            raise ConfigError(f"matcher {self.id!r}: {e.message}") from None
        return Matcher.build(self.id, patterns, self.max_chars, self.validator)


class ScopeSpec(_Spec):
    """Where a rule applies; an empty list is everywhere. Personas and revisions by their full names."""

    tenants: tuple[TenantName, ...] = ()
    personas: tuple[PersonaName, ...] = ()
    revisions: tuple[RevisionName, ...] = ()
    persona_types: tuple[PersonaTypeName, ...] = ()
    regions: tuple[Region, ...] = ()
    age_bands: tuple[Literal["teen", "adult"], ...] = ()

    def covers(self, context: PolicyContext) -> bool:
        """Whether it applies; the age band must be resolved."""
        return (
            (not self.persona_types or context.persona_type in self.persona_types)
            and (not self.regions or context.region_code in self.regions)
            and (not self.age_bands or context.age_band.value in self.age_bands)
            and (not self.tenants or context.tenant in self.tenants)
            and (not self.personas or context.persona_name in self.personas)
            and (not self.revisions or context.revision_name in self.revisions)
        )

    def within(self, other: ScopeSpec) -> bool:
        """Whether the other applies wherever this does, as far as their lists tell."""
        return all(
            not theirs or (mine and set(mine) <= set(theirs))
            for mine, theirs in ((getattr(self, key), getattr(other, key)) for key in type(self).model_fields)
        )


class TestSpec(_Spec):
    """A text, or at stage signal `signals`, and whether the rule's condition holds for it. What is not given is the
    first of the rule's scope (or the strictest), and `scores` are the n-gram scorer's.

    `of` names the tenant, persona or revision that it is about, in full.
    """

    __test__ = False  # not a pytest class

    match: bool
    text: str | None = None
    signals: Mapping[str, float] | None = None
    of: str | None = None
    scores: Mapping[str, Annotated[float, Field(ge=0, le=1)]] | None = None
    persona_type: PersonaTypeName | None = None
    age_band: Literal["unknown", "teen", "adult"] | None = None
    region: Region | None = None

    @model_validator(mode="after")
    def _text_or_signals(self) -> TestSpec:
        if (self.text is None) == (self.signals is None):
            raise ValueError("either `text` or, at stage signal, `signals`")
        return self

    def context(self, scope: ScopeSpec) -> PolicyContext:
        """Whom it is about.

        Raises:
            ConfigError: `of` is no name.
        """
        of = self.of
        if of is None:
            of = next(iter((*scope.revisions, *scope.personas, *(f"tenants/{t}" for t in scope.tenants))), None)
        place = names.Name("")
        if of is not None:
            kind = "revision" if "/revisions/" in of else "persona" if "/personas/" in of else "tenant"
            try:
                place = names.parse(kind, of, field="of")
            except InvalidArgument as error:
                raise ConfigError(error.message) from None
        return PolicyContext(
            persona_type=self.persona_type or (scope.persona_types or PERSONA_TYPES)[0],
            age_band=AgeBand(self.age_band or (scope.age_bands or ("unknown",))[0]),
            region_code=self.region or (scope.regions or ("",))[0],
            tenant=place.tenant,
            persona=place.persona,
            revision=place.revision,
        )


class NoticeSpec(_Spec):
    """A notice's text by region; `default` for all others."""

    default: Text
    regions: Mapping[Region, Text] = Field(default_factory=dict)


class RuleSpec(_Spec):
    """One rule. See docs/policy.md for each key."""

    id: Id
    stages: tuple[Stage, ...] = Field(min_length=1)
    scope: ScopeSpec = ScopeSpec()
    when: Text
    action: Action
    category: Id
    reason_code: Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]{0,62}$")]
    template: str = ""
    notice: str = ""
    redact: tuple[Id, ...] = ()
    description: Text
    legal_basis: str = ""
    laws: tuple[str, ...] = ()
    priority: int = 0
    tests: tuple[TestSpec, ...]

    @model_validator(mode="after")
    def _consistent(self) -> RuleSpec:
        if {t.match for t in self.tests} != {True, False}:
            raise ValueError("tests: at least one with match: true and one with match: false")
        if self.action is Action.TRANSFORM:
            if set(self.stages) != {Stage.OUTPUT}:
                raise ValueError("action: transform is possible at stage output only")
            if not self.redact or not self.template:
                raise ValueError("action: transform needs `redact` (matcher ids) and `template` (what stands there)")
        elif self.redact:
            raise ValueError("redact: only with action transform")
        if Stage.SIGNAL in self.stages and len(self.stages) > 1:
            raise ValueError("stages: signal stands alone, as there is no text to judge")
        for number, test in enumerate(self.tests, 1):
            if (test.text is None) != (Stage.SIGNAL in self.stages):
                wanted = "`signals`" if test.signals is None else "`text`"
                raise ValueError(f"tests[{number}]: at stage {self.stages[0].value} a test has {wanted}")
            if unknown := (test.signals or {}).keys() - SIGNALS.keys():
                raise ValueError(f"tests[{number}]: no signal {sorted(unknown)}; expected some of {sorted(SIGNALS)}")
        if self.laws and self.legal_basis:
            raise ValueError("either `laws` (ids) or `legal_basis` (words)")
        return self


class BundleSpec(_Spec):
    """A bundle file."""

    version: Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z][0-9A-Za-z.-]{0,31}$")]
    extends: Literal["default"] | None = None
    matchers: tuple[MatcherSpec, ...] = ()
    templates: Mapping[Id, Text] = Field(default_factory=dict)
    notices: Mapping[Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]{0,62}$")], NoticeSpec] = Field(
        default_factory=dict
    )
    rules: tuple[RuleSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, compiled."""

    spec: RuleSpec
    program: Any
    hit: RuleHit
    matcher_ids: frozenset[str]
    protocol: bool = False

    @property
    def thresholds(self) -> tuple[tuple[str, tuple[float, ...]], ...]:
        """The numbers that each category's score is compared with; empty if scores are used in any other way."""
        return _thresholds([self.spec.when]) or ()

    @property
    def protected(self) -> bool:
        """Whether no kill switch turns it off: protocols, what a law asks for, what shields minors or escalates."""
        spec = self.spec
        return (
            self.protocol
            or spec.category in PROTECTED
            or spec.action is Action.ESCALATE
            or bool(spec.legal_basis or spec.laws)
            or "teen" in spec.scope.age_bands
        )

    def applies(self, stage: Stage, context: PolicyContext) -> bool:
        """Whether stage and scope fit; the age band must be resolved."""
        return stage in self.spec.stages and self.spec.scope.covers(context)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the rules say of some signals.

    Attributes:
        action: combined; ALLOW also when no rule matched.
        hits: the rules that matched, the deciding one first.
        redact: matcher id -> what stands in its place (TRANSFORM).
    """

    action: Action = Action.ALLOW
    hits: tuple[RuleHit, ...] = ()
    category: str = ""
    reason_code: str = ""
    template: str = ""
    notice_code: str = ""
    notice_text: str = ""
    redact: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def plain(self) -> bool:
        """Nothing to do and nothing to record."""
        return not self.hits and self.action is Action.ALLOW


_PLAIN = Verdict()


class Plan:
    """The rules of one stage and context, and the matchers they ask about.

    `evaluate` is memoised exactly: where every use of `scores` is a comparison
    with a number, a verdict depends only on which side of those numbers the
    scores are.

    Attributes:
        matchers: those that the rules ask about.
        thresholds: the numbers that each category is compared with, ascending;
            None if scores are used in any other way.
        uses_chars: a rule asks how long the text is.
        silent: text of any length without a match and without scores is plainly allowed.
    """

    MEMO_LIMIT = 4096
    allowed = _PLAIN

    def __init__(self, bundle: Bundle, stage: Stage, context: PolicyContext, rules: Sequence[Rule]) -> None:
        self.bundle = bundle
        self.stage = stage
        self.context = context
        self.rules = tuple(rules)
        self.matchers = bundle.matcher_set(frozenset().union(*(r.matcher_ids for r in rules)))
        self.uses_chars = any("chars" in r.program.variables() for r in rules)
        self.thresholds = _thresholds(r.spec.when for r in rules)
        self._memo: dict[Hashable, Verdict] = {}
        self.silent = not self.uses_chars and self.evaluate((), {}, 0).plain

    def evaluate(
        self,
        matches: tuple[str, ...],
        scores: Mapping[str, float],
        chars: int,
        verified: frozenset[str] = frozenset(),
    ) -> Verdict:
        """The combined verdict; a rule that can't be evaluated blocks.

        Args:
            matches: ids of the matchers that matched, sorted.
            scores: by category, empty without scorers; absent ones count as 0.
            chars: characters judged.
            verified: those of the matches that say what is verified of the persona. The protocols' rules don't see
                them; the bundle's own do.
        """
        if not scores and not self.uses_chars and not verified:
            key: Hashable = matches
        else:
            sides: Hashable = ()
            if scores:
                sides = (
                    tuple(scores.items())
                    if self.thresholds is None
                    else tuple(
                        (bisect_left(t, s := scores.get(c, 0.0)), bisect_right(t, s)) for c, t in self.thresholds
                    )
                )
            key = (matches, sides, chars if self.uses_chars else 0, verified)
        verdict = self._memo.get(key)
        if verdict is None:
            verdict = self._evaluate(matches, scores, chars, verified=verified)
            if len(self._memo) >= self.MEMO_LIMIT:
                self._memo.clear()
            self._memo[key] = verdict
        return verdict

    def evaluate_signals(self, signals: Mapping[str, float]) -> Verdict:
        """The combined verdict at stage SIGNAL; what is not given counts as 0."""
        return self._evaluate((), {}, 0, signals) if self.rules else _PLAIN

    def decision(
        self,
        verdict: Verdict,
        matches: tuple[MatcherHit, ...],
        scores: Mapping[str, float],
        signals: Mapping[str, float] = MappingProxyType({}),
    ) -> Decision:
        """The record of a verdict."""
        return Decision(
            action=verdict.action,
            stage=self.stage,
            bundle_version=self.bundle.version,
            category=verdict.category,
            reason_code=verdict.reason_code,
            rules=verdict.hits,
            matches=matches,
            scores=MappingProxyType(dict(scores)),
            template=verdict.template,
            notice_code=verdict.notice_code,
            notice_text=verdict.notice_text,
            signals=MappingProxyType(dict(signals)),
        )

    def scorer_failed(self) -> Decision:
        """The block when the scores aren't known."""
        return self.decision(
            Verdict(Action.BLOCK, (), "policy", SCORER_FAILED, self.bundle.templates["refusal"]), (), {}
        )

    def holds(
        self,
        rule: Rule,
        matches: tuple[str, ...],
        scores: Mapping[str, float],
        chars: int,
        signals: Mapping[str, float] = MappingProxyType({}),
    ) -> bool:
        """Whether one rule's condition is true.

        Raises:
            ValueError: it can't be evaluated, or is not a boolean.
        """
        return _holds(rule, variables(self.context, matches, scores, chars, signals))

    def _evaluate(
        self,
        matches: tuple[str, ...],
        scores: Mapping[str, float],
        chars: int,
        signals: Mapping[str, float] = MappingProxyType({}),
        verified: frozenset[str] = frozenset(),
    ) -> Verdict:
        given = variables(self.context, matches, scores, chars, signals)
        others = tuple(one for one in matches if one not in verified)
        given_protocols = variables(self.context, others, scores, chars, signals) if verified else given
        hit: list[tuple[Action, Rule]] = []
        failed: list[Rule] = []
        for rule in self.rules:
            try:
                if _holds(rule, given_protocols if rule.protocol else given):
                    hit.append((rule.spec.action, rule))
            except ValueError:
                failed.append(rule)
        if not hit and not failed:
            return _PLAIN
        if failed and not any(rule.protocol and action.stops for action, rule in hit):
            # Fail closed, and say which rule it was; what else matched is still reported.
            hits = tuple(r.hit for r in failed) + tuple(r.hit for _, r in hit)
            return Verdict(
                action=max((Action.BLOCK, *(a for a, _ in hit)), key=_RANK.__getitem__),
                hits=hits, category="policy", reason_code=RULE_FAILED, template=self.bundle.templates["refusal"],
            )  # fmt: skip
        # A protocol's answer stands before whatever a bundle adds, and before its rules that can't be evaluated.
        hit.sort(key=lambda h: (not h[1].protocol, -_RANK[h[0]], -h[1].spec.priority, h[1].spec.id))
        first = hit[0][1]
        action = max((a for a, _ in hit), key=_RANK.__getitem__)
        notice = next((r.spec.notice for _, r in hit if r.spec.notice), "")
        template = self.bundle.templates[first.spec.template or "refusal"] if action is not Action.ALLOW else ""
        redact: dict[str, str] = {}
        if action is Action.TRANSFORM:
            for act, rule in hit:
                if act is Action.TRANSFORM:
                    for matcher_id in rule.spec.redact:
                        redact.setdefault(matcher_id, self.bundle.templates[rule.spec.template])
        return Verdict(
            action=action,
            hits=tuple(r.hit for _, r in hit),
            category=first.spec.category if action is not Action.ALLOW else "",
            reason_code=first.spec.reason_code if action is not Action.ALLOW else "",
            template=template,
            notice_code=notice,
            notice_text=self.bundle.notice(notice, self.context.region_code) if notice else "",
            redact=MappingProxyType(redact),
        )


def variables(
    context: PolicyContext,
    matches: Sequence[str],
    scores: Mapping[str, float],
    chars: int,
    signals: Mapping[str, float] = MappingProxyType({}),
) -> Any:
    """What conditions see; scores and signals that are not given are 0."""
    return cel.Context(
        {
            "matches": list(matches),
            "scores": dict.fromkeys(RULE_CATEGORIES, 0.0) | dict(scores),
            "signals": dict.fromkeys(SIGNALS, 0.0) | dict(signals),
            "persona_type": context.persona_type,
            "age_band": context.age_band.value,
            "region": context.region_code,
            "chars": chars,
        }
    )


def _holds(rule: Rule, given: Any) -> bool:
    try:
        result = rule.program.execute(given)
    except Exception as e:  # the CEL binding raises builtin errors of several kinds
        raise ValueError(str(e)) from e
    if not isinstance(result, bool):
        raise ValueError(f"gave {type(result).__name__}, expected a boolean")
    return result


def _thresholds(expressions: Any) -> tuple[tuple[str, tuple[float, ...]], ...] | None:
    """The numbers that each category is compared with; None if scores are used in any other way."""
    found: dict[str, set[float]] = {}
    for expression in expressions:
        for match in _SCORE_COMPARED.finditer(expression):
            found.setdefault(match.group(1) or match.group(2), set()).add(float(match.group(3)))
        if re.search(r"\bscores\b", _SCORE_COMPARED.sub("", expression)):
            return None
    return tuple((c, tuple(sorted(t))) for c, t in sorted(found.items()))


class Bundle:
    """A bundle that loaded: checked, compiled and tested.

    Attributes:
        version: the file's version and the hash of its content, "2026.11.1+sha256:0123456789ab".
        templates: by key.
        switchable: ids of the rules that a kill switch can turn off.
    """

    MAX_PLANS = 512

    def __init__(self, spec: BundleSpec, digest: str, protocols: frozenset[str] = frozenset()) -> None:
        self._protocols = protocols
        self.version = f"{spec.version}+sha256:{digest[:12]}"
        self.spec = spec
        self.templates: Mapping[str, str] = MappingProxyType(dict(spec.templates))
        self._notices = spec.notices
        self._matchers = {m.id: m for m in (*(s.build() for s in spec.matchers), flood_matcher())}
        self._sets: dict[frozenset[str], MatcherSet] = {}
        self._plans: OrderedDict[Hashable, Plan] = OrderedDict()
        _refuse_duplicates("matcher", [m.id for m in spec.matchers] + list({flood_matcher().id}))
        _refuse_duplicates("rule", [r.id for r in spec.rules])
        if "refusal" not in self.templates:
            raise ConfigError("templates: 'refusal' is missing")
        self.rules = tuple(self._compile(rule) for rule in spec.rules)
        # Only what a rule is scoped by tells two contexts apart.
        scopes = [rule.scope for rule in spec.rules]
        self._places = (
            frozenset(tenant for scope in scopes for tenant in scope.tenants),
            frozenset(persona for scope in scopes for persona in scope.personas),
            frozenset(revision for scope in scopes for revision in scope.revisions),
        )
        self.switchable = frozenset(rule.spec.id for rule in self.rules if not rule.protected)

    def _compile(self, spec: RuleSpec) -> Rule:
        where = f"rule {spec.id!r}"
        for key, known in (("template", self.templates), ("notice", self._notices)):
            name = getattr(spec, key)
            if name and name not in known:
                raise ConfigError(f"{where}: {key}: {name!r} is not among {sorted(known)}")
        try:
            program = cel.compile(spec.when)
        except ValueError as e:
            raise ConfigError(f"{where}: when: {e}") from None
        asked = set(program.variables()) - set(_COMPREHENSION.findall(spec.when))
        if unknown := asked - _VARIABLES:
            raise ConfigError(f"{where}: when: unknown {sorted(unknown)}; expected {sorted(_VARIABLES)}")
        if elsewhere := asked & (_OF_TEXT if Stage.SIGNAL in spec.stages else {"signals"}):
            raise ConfigError(f"{where}: when: {sorted(elsewhere)} is not known at stage {spec.stages[0].value}")
        for match in _SIGNAL_KEY.finditer(spec.when):
            if (signal := match.group(2) or match.group(3)) not in SIGNALS:
                raise ConfigError(f"{where}: when: nothing gives signal {signal!r}; expected one of {sorted(SIGNALS)}")
        for match in _SCORE_KEY.finditer(spec.when):
            if (category := match.group(2) or match.group(3)) not in RULE_CATEGORIES:
                raise ConfigError(
                    f"{where}: when: no scorer gives {category!r}; expected one of {list(RULE_CATEGORIES)}"
                )
        ids = {m.group(2) for m in _IN_MATCHES.finditer(spec.when)} | set(spec.redact)
        for matcher_id in sorted(ids - self._matchers.keys()):
            raise ConfigError(f"{where}: {matcher_id!r} is not a matcher; expected one of {sorted(self._matchers)}")
        if re.search(r"\bmatches\b", _IN_MATCHES.sub("", spec.when)):
            ids = set(self._matchers)  # asked about as a whole
        try:
            basis = spec.legal_basis or laws.cite(spec.laws)
        except ConfigError as e:
            raise ConfigError(f"{where}: {e.message}") from None
        hit = RuleHit(spec.id, spec.action, spec.category, spec.reason_code, spec.when, spec.description, basis)
        return Rule(spec, program, hit, frozenset(ids), spec.id in self._protocols)

    def matcher_set(self, ids: frozenset[str]) -> MatcherSet:
        """The matchers of these ids as one set, compiled once."""
        found = self._sets.get(ids)
        if found is None:
            found = self._sets[ids] = MatcherSet(self._matchers[i] for i in ids)
        return found

    def has_matcher(self, id: str) -> bool:
        """Whether a matcher has this id."""
        return id in self._matchers

    def notice(self, code: str, region: str) -> str:
        """A notice's text for a region."""
        spec = self._notices[code]
        return spec.regions.get(region, spec.default)

    def refuse_words(self, texts: Mapping[str, str]) -> None:
        """See that nothing a bundle has said in a persona's place is what a protocol keeps personas from saying.

        Args:
            texts: by what they are called in the message.

        Raises:
            ConfigError: a text is; says which, and the rule.
        """
        for persona_type in PERSONA_TYPES:
            plan = self.plan(Stage.OUTPUT, PolicyContext(persona_type))
            for what, text in texts.items():
                matches = tuple(sorted({span.matcher_id for span in find(plan.matchers, text)[1]}))
                for rule in plan.rules:
                    if rule.protocol and plan.holds(rule, matches, {}, len(text)):
                        raise ConfigError(f"{what}: says what rule {rule.spec.id!r} keeps personas from saying")

    def plan(self, stage: Stage, context: PolicyContext, off: frozenset[str] = frozenset()) -> Plan:
        """The rules that apply. Unknown age becomes teen here, before any rule sees it.

        Args:
            off: ids of rules that are switched off; protected ones apply all the same.
        """
        age = AgeBand.TEEN if context.age_band is AgeBand.UNKNOWN else context.age_band
        named = (context.tenant, context.persona_name, context.revision_name)
        place = tuple(name if name in known else "" for name, known in zip(named, self._places, strict=True))
        off &= self.switchable
        key = (stage, context.persona_type, age, context.region_code, place, off)
        plan = self._plans.get(key)
        if plan is None:
            resolved = replace(context, age_band=age, claims=())  # a plan is many personas'
            plan = Plan(
                self, stage, resolved, [r for r in self.rules if r.applies(stage, resolved) and r.spec.id not in off]
            )
            self._plans[key] = plan
            if len(self._plans) > self.MAX_PLANS:
                self._plans.popitem(last=False)
        return plan

    def test(self, scorer: SyncScorer) -> None:
        """Runs every rule's tests.

        Raises:
            ConfigError: one fails; says which rule, test and stage.
        """
        for failure in self.failures(scorer):
            raise ConfigError(failure)

    def failures(self, scorer: SyncScorer) -> Iterator[str]:
        """Runs every rule's tests at each of its stages; what was wrong with those that fail."""
        for rule in self.rules:
            for number, test in enumerate(rule.spec.tests, 1):
                for stage in rule.spec.stages:
                    if problem := self._problem(rule, test, stage, scorer):
                        yield f"rule {rule.spec.id!r}: tests[{number}] at stage {stage.value}: {problem}"

    def _problem(self, rule: Rule, test: TestSpec, stage: Stage, scorer: SyncScorer) -> str:
        """How a test fails; "" if it passes."""
        try:
            plan = self.plan(stage, test.context(rule.spec.scope))
        except ConfigError as e:
            return e.message
        if rule in plan.rules:
            matches, scores, text = (), test.scores or {}, test.text or ""
            if test.text is not None:
                if test.scores is None:
                    scores = highest(scorer.score_sync(windows(text)), scorer.categories)
                matches = tuple(sorted({s.matcher_id for s in find(plan.matchers, text)[1]}))
            try:
                got = plan.holds(rule, matches, scores, len(text), test.signals or {})
            except ValueError as e:
                return f"when: {e}"
            detail = f"matches {list(matches)}"
            if "scores" in rule.program.variables():
                detail += ", scores " + ", ".join(f"{c}={s:.3f}" for c, s in scores.items())
        else:
            got, detail = False, "out of the rule's scope"
        if got is test.match:
            return ""
        judged = repr(test.text) if test.text is not None else f"signals {dict(test.signals or {})}"
        return f"{judged} gave {got}, expected {test.match} ({detail})"


def find(matchers: MatcherSet, text: str) -> tuple[Normalizer, list[Any]]:
    """A whole text normalised, and the spans of all matches in it."""
    normalizer = Normalizer()
    normalizer.push(text, final=True)
    length = len(normalizer.text)
    if not matchers or matchers.candidate(normalizer.text, 0) >= length:
        return normalizer, []
    return normalizer, matchers.spans(normalizer.text, 0, length)


def windows(text: str) -> list[str]:
    """What scorers see of a whole text: each unit alone, and with what came before it."""
    seen: list[str] = []
    at = 0
    for unit in split_units(text):
        seen.append(unit)
        if at:
            seen.append(text[max(0, at - WINDOW_CHARS) : at] + unit)
        at += len(unit)
    return seen


PIECE_CHARS, PIECE_STEP = 1000, 800
"""About what an embedder reads of a text (256 tokens), and how far one piece starts after the other."""


def whole_pieces(text: str) -> list[str]:
    """A whole text for scorers that judge it as one: itself, or overlapping pieces where it is longer."""
    return [text[at : at + PIECE_CHARS] for at in range(0, max(1, len(text) - PIECE_CHARS + PIECE_STEP), PIECE_STEP)]


def highest(scores: Sequence[Mapping[str, float]], categories: Sequence[str]) -> dict[str, float]:
    """The highest score of each category; 0 where there is none."""
    return {c: max([s[c] for s in scores], default=0.0) for c in categories}


def _refuse_duplicates(what: str, ids: Sequence[str]) -> None:
    for name in ids:
        if ids.count(name) > 1:
            raise ConfigError(f"{what} {name!r} is there twice")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe YAML that refuses a key given twice, which YAML itself would let win silently."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """Raises: yaml.constructor.ConstructorError."""
        keys = [self.construct_object(k, deep=deep) for k, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is there twice", node.start_mark)
        return dict(super().construct_mapping(node, deep=deep))


def _read(data: bytes, name: str) -> dict[str, Any]:
    try:
        raw = yaml.load(data, Loader=_Loader)  # a safe loader
    except yaml.YAMLError as e:
        raise ConfigError(f"policy bundle {name}: not YAML: {e}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"policy bundle {name}: expected a mapping with `version` and `rules`")
    return raw


def shipped_bundle() -> bytes:
    """The content of the bundle that ships."""
    return resources.files(__package__).joinpath(DEFAULT_BUNDLE).read_bytes()


def load_bundle(path: Path | None, scorer: SyncScorer, trust: Trust = Trust()) -> Bundle:  # noqa: B008 - immutable
    """Reads, checks and tests a bundle.

    Args:
        path: of the file, with its signature beside it; None is the one that ships.
        scorer: gives the scores of the rules' tests.
        trust: who may have signed it.

    Raises:
        ConfigError: names the file, the rule and the key, or the test that failed.
    """
    if path is None:
        return open_bundle(shipped_bundle(), DEFAULT_BUNDLE, scorer)
    try:
        data = path.read_bytes()
    except OSError as e:
        raise ConfigError(f"policy.bundle: can't read {path}: {e.strerror}; expected a YAML file") from None
    trust.check(data, read_signature(path), str(path))
    return open_bundle(data, str(path), scorer)


def open_bundle(data: bytes, name: str, scorer: SyncScorer) -> Bundle:
    """As `load_bundle`, from content that is known to be trusted, or is not going to be acted upon.

    Args:
        name: for messages.
    """
    return parse_bundle(data, name, scorer, base=shipped_bundle())


def parse_bundle(
    data: bytes, name: str, scorer: SyncScorer | None, *, base: bytes | None = None, protocols: bool = True
) -> Bundle:
    """As `open_bundle`, with another base than the bundle that ships.

    Args:
        scorer: None runs no tests, for those who want to know of all that fail.
        base: content of the bundle that `extends: default` stands for.
        protocols: False leaves the protocols out: for tests of the machinery alone.
    """
    raw = _read(data, name)
    hashed = hashlib.sha256(data)
    fixed: dict[str, Any] = {}
    try:
        own = BundleSpec.model_validate(raw)
        if own.extends and base is not None:
            hashed.update(base)
            raw = _merge(_read(base, DEFAULT_BUNDLE), raw)
        if protocols:
            fixed, content = protocol_rules()
            hashed.update(content)
            _refuse_redefinition(own, fixed)
            raw = _merge(raw, fixed)
        spec = BundleSpec.model_validate(raw)
        bundle = Bundle(spec, hashed.hexdigest(), frozenset(rule["id"] for rule in fixed.get("rules", ())))
        if scorer is not None:
            bundle.test(scorer)
        mine = {f"templates: {key}": text for key, text in own.templates.items()}
        for code, notice in own.notices.items():
            texts = {"default": notice.default, **notice.regions}
            mine |= {f"notices: {code}: {region}": text for region, text in texts.items()}
        bundle.refuse_words(mine)
    except ValidationError as e:
        raise ConfigError(f"policy bundle {name}: {_explain(e, raw)}") from None
    except ConfigError as e:
        raise ConfigError(f"policy bundle {name}: {e.message}") from None
    return bundle


@lru_cache(maxsize=1)
def protocol_file() -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """PROTOCOLS and CRISIS_LINES as they are written, and the content of both."""
    files = resources.files(__package__)
    content = [files.joinpath(name).read_bytes() for name in (PROTOCOLS, CRISIS_LINES)]
    return _read(content[0], PROTOCOLS), _read(content[1], CRISIS_LINES), b"".join(content)


def protocol_rules() -> tuple[dict[str, Any], bytes]:
    """What every bundle is given beside its own, in a bundle's keys, and the content that it was read from."""
    raw, lines, content = protocol_file()
    regions = {region: line["text"] for region, line in lines["regions"].items()}
    notices = {CRISIS_NOTICE: {"default": lines["default"]["text"], "regions": regions}}
    return {**{key: raw[key] for key in ("matchers", "templates", "rules")}, "notices": notices}, content


def _refuse_redefinition(own: BundleSpec, fixed: Mapping[str, Any]) -> None:
    ids = {
        "matcher": ({one.id for one in own.matchers}, {one["id"] for one in fixed["matchers"]}),
        "rule": ({one.id for one in own.rules}, {one["id"] for one in fixed["rules"]}),
        "template": (set(own.templates), set(fixed["templates"])),
        "notice": (set(own.notices), set(fixed["notices"])),
    }
    for what, (mine, taken) in ids.items():
        for redefined in sorted(mine & taken):
            raise ConfigError(
                f"{what} {redefined!r} belongs to a protocol that no bundle can change; choose another id"
            )


def _merge(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The base with one's own added. Rules and matchers of the base can't be redefined (their ids would come twice),
    words can."""
    merged = {**base, **own}
    for key in ("matchers", "rules"):
        merged[key] = [*base.get(key, ()), *(own.get(key) or ())]
    for key in ("templates", "notices"):
        merged[key] = {**base.get(key, {}), **(own.get(key) or {})}
    return merged


def _explain(error: ValidationError, raw: Mapping[str, Any]) -> str:
    """The first complaint, with ids in place of list positions."""
    first = error.errors(include_url=False)[0]
    where: list[str] = []
    node: Any = raw
    for part in first["loc"]:
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            node = None
        if isinstance(part, int):
            name = node.get("id") if isinstance(node, dict) else None
            where[-1:] = [f"{where[-1].removesuffix('s')} {name!r}" if name else f"{where[-1]}[{part + 1}]"]
        else:
            where.append(str(part))
    problem = first["msg"].removeprefix("Value error, ")
    return f"{': '.join(where) or 'the file'}: {problem}"
