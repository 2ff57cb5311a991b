"""The protocols that stand above every bundle: self-harm, minors, identity, disclosure.

Their rules and words are in `protocols.yaml` and are part of every bundle that loads (`bundle.protocol_rules`). What
a rule can't say is here: what outlasts a message. Pure functions of what the ledger holds of a person, which
`ledger.protocols` reads and writes:

    attend    each turn, before anything is said: are reminders due?
    sustain   each judged message: which tier does the person stand at, and what are they answered?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import IntEnum
from types import MappingProxyType
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from personae_runtime.errors import ConfigError
from personae_runtime.policy import laws
from personae_runtime.policy.bundle import CRISIS_NOTICE, PROTOCOLS, Bundle, find, protocol_file
from personae_runtime.policy.claims import Verification
from personae_runtime.policy.decision import Action, AgeBand, Decision, PolicyContext, RuleHit, Stage

SELF_HARM: Final = "self_harm"


class Tier(IntEnum):
    """How grave the signs of self-harm are; NONE outside the protocol."""

    NONE = 0
    PASSIVE = 1
    ACTIVE = 2
    PLAN = 3
    IMMINENT = 4


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Hold(_Part):
    """How a tier is left: after `turns` without a new sign, or `hours` after the last one."""

    turns: Annotated[int, Field(ge=1)]
    hours: Annotated[float, Field(gt=0)]


class _Signs(_Part):
    safe: str
    means: str
    time: str


class _Held(_Part):
    id: str
    reason_code: str
    template: str
    safe_template: str


class _SelfHarm(_Part):
    tiers: Mapping[str, Tier]
    hold: Mapping[Tier, Hold]
    signs: _Signs
    low_score: Annotated[float, Field(gt=0, le=1)]
    held: _Held
    laws: tuple[str, ...]
    templates: Mapping[Tier, str]
    reason_codes: Mapping[Tier, str]


class Use(_Part):
    """What counts as using the persona: up to `idle_s` after each turn; a pause of `rest_s` ends it. Seconds."""

    idle_s: Annotated[float, Field(gt=0)]
    rest_s: Annotated[float, Field(gt=0)]


class Reminder(_Part):
    """What is told every `every_s` seconds of use; an empty list of regions or age bands is all of them."""

    code: str
    template: str
    every_s: Annotated[float, Field(gt=0)]
    regions: tuple[str, ...] = ()
    age_bands: tuple[AgeBand, ...] = ()
    laws: tuple[str, ...]

    def applies(self, context: PolicyContext) -> bool:
        """Whether it is owed to this person; unknown age is a teen's."""
        age = AgeBand.TEEN if context.age_band is AgeBand.UNKNOWN else context.age_band
        return (not self.regions or context.region_code in self.regions) and (
            not self.age_bands or age in self.age_bands
        )


class _File(_Part):
    version: str
    self_harm: _SelfHarm
    use: Use
    reminders: tuple[Reminder, ...]
    disclosure_laws: tuple[str, ...]
    verification: Verification


@dataclass(frozen=True, slots=True)
class Risk:
    """Where a person stands in the self-harm protocol.

    Attributes:
        quiet: turns since the last sign; saying that one is safe counts as two.
        at: when the last sign was; None outside the protocol.
    """

    tier: Tier = Tier.NONE
    quiet: int = 0
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Clocks:
    """How long a person has used personas since each reminder.

    Attributes:
        seen_at: the last turn, on the ledger's clock; None before the first.
        used_s: seconds of use by reminder code.
    """

    seen_at: datetime | None = None
    used_s: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Told:
    """A reminder that is due."""

    code: str
    text: str


def advance(used_s: float, since_s: float | None, every_s: float, use: Use) -> tuple[float, bool]:
    """One reminder's clock at a turn: seconds of use since the reminder, and whether it is due now.

    Between two turns at most `use.idle_s` counts as use, so that below `every_s - idle_s` the next turn comes before
    `every_s` seconds of use: the interval is never passed, whatever the pattern of turns. A pause of `rest_s` is a
    break taken; the clock begins anew.

    Args:
        used_s: at the last turn.
        since_s: seconds since the last turn; None if there was none. A clock that went back counts as no time.
        every_s: the interval.
    """
    if since_s is None or since_s >= use.rest_s:
        used_s = 0.0
    else:
        used_s += min(max(0.0, since_s), use.idle_s)
    if used_s >= every_s - use.idle_s:
        return 0.0, True
    return used_s, False


class Protocols:
    """The protocols over one bundle, which gives their words. Holds no state of anybody."""

    def __init__(self, bundle: Bundle) -> None:
        raw = protocol_file()[0]
        rest = {key: value for key, value in raw.items() if key not in ("matchers", "templates", "rules")}
        try:
            file = _File.model_validate(rest)
        except ValidationError as error:
            raise ConfigError(f"{PROTOCOLS}: {error}") from None
        self._bundle = bundle
        self._self_harm = own = file.self_harm
        self._use = file.use
        self._reminders = file.reminders
        self.disclosure_laws = file.disclosure_laws
        self._answers = {rule["id"] for rule in raw["rules"] if rule["category"] == "identity"}
        if missing := own.tiers.keys() - {rule["id"] for rule in raw["rules"]}:
            raise ConfigError(f"{PROTOCOLS}: self_harm: tiers: no such rules: {sorted(missing)}")
        if set(own.hold) != set(Tier) - {Tier.NONE} or any(one.every_s <= file.use.idle_s for one in file.reminders):
            raise ConfigError(f"{PROTOCOLS}: a tier without `hold`, or a reminder within `idle_s`")
        for reminder in self._reminders:
            laws.cite(reminder.laws)
        named = {matcher for kind in file.verification.kinds.values() for matcher in kind.matchers}
        if missing := named - {matcher["id"] for matcher in raw["matchers"]}:
            raise ConfigError(f"{PROTOCOLS}: verification: no such matchers: {sorted(missing)}")
        self._signs = bundle.matcher_set(frozenset((own.signs.safe, own.signs.means, own.signs.time)))
        self._basis = laws.cite(own.laws)

    @property
    def reminders(self) -> Sequence[Reminder]:
        """Every reminder, for the documentation."""
        return self._reminders

    @property
    def holds(self) -> Mapping[Tier, Hold]:
        """How each tier is left, for the documentation."""
        return self._self_harm.hold

    # -- disclosure and reminders ---------------------------------------------

    def disclosure(self, persona_type: str, persona_name: str) -> str:
        """What tells a person that they talk to an AI: words of this file's, then the bundle's own, if it has any.

        Templates `ai_disclosure_<persona type>` or `ai_disclosure`; then `disclosure_<persona type>` or `disclosure`.
        """
        templates = self._bundle.templates
        fixed = templates.get(f"ai_disclosure_{persona_type}", templates["ai_disclosure"])
        own = templates.get(f"disclosure_{persona_type}", templates.get("disclosure", ""))
        return " ".join(filter(None, (fixed, own))).replace("{persona}", persona_name)

    def attend(
        self, clocks: Clocks, now: datetime, context: PolicyContext, *, first: bool
    ) -> tuple[Clocks, tuple[Told, ...]]:
        """A person's clocks after a turn at `now`, and the reminders to be told with it.

        Args:
            first: the turn opens a session, and its disclosure says what the AI reminder does.
        """
        since_s = None if clocks.seen_at is None else (now - clocks.seen_at).total_seconds()
        owed: dict[str, Reminder] = {}
        for reminder in self._reminders:
            if reminder.applies(context) and (
                reminder.code not in owed or reminder.every_s < owed[reminder.code].every_s
            ):
                owed[reminder.code] = reminder
        used: dict[str, float] = {}
        told: list[Told] = []
        for reminder in self._reminders:
            code = reminder.code
            if code in used:
                continue
            strictest = owed.get(code, reminder)
            used[code], due = advance(clocks.used_s.get(code, 0.0), since_s, strictest.every_s, self._use)
            if first and code == "AI_REMINDER":
                used[code] = 0.0
            elif due and code in owed:
                told.append(Told(code, self._bundle.templates[strictest.template]))
            elif due:
                # Owed to nobody as they are now: it stays due for when they are, as in a session of a minor's.
                used[code] = strictest.every_s
        seen_at = now if clocks.seen_at is None else max(now, clocks.seen_at)
        return Clocks(seen_at, MappingProxyType(used)), tuple(told)

    # -- self-harm --------------------------------------------------------------

    def tier(self, decision: Decision) -> Tier:
        """The tier of a message by the rules that matched it, without what was said before."""
        return max((self._self_harm.tiers.get(hit.rule_id, Tier.NONE) for hit in decision.rules), default=Tier.NONE)

    def sustain(
        self, decision: Decision, text: str, context: PolicyContext, risk: Risk, now: datetime
    ) -> tuple[Decision, Risk]:
        """What is decided of a message once what was said before counts, and where the person stands after it.

        While a person is in the protocol every message is answered by it, out of character, until the tier is left
        by rule. The question whether they talk to a human keeps its own answer, with the crisis card beside it.

        Args:
            decision: of the bundle, at input.
            text: the message; read for signs, not kept.
            now: on the ledger's clock.
        """
        own = self._self_harm
        said = self.tier(decision)
        held = risk.tier
        if held and (risk.at is None or now - risk.at >= timedelta(hours=own.hold[held].hours)):
            held = Tier.NONE
        if not said and not held:
            return decision, Risk()
        signs = {span.matcher_id for span in find(self._signs, text)[1]}
        safe = own.signs.safe in signs
        tier = max(said, held)
        if not safe or said:
            if said is Tier.PASSIVE and held is Tier.PASSIVE:
                tier = Tier.ACTIVE
            if tier >= Tier.ACTIVE and own.signs.means in signs:
                tier = max(tier, Tier.PLAN)
            if tier >= Tier.PLAN and own.signs.time in signs:
                tier = max(tier, Tier.IMMINENT)
        low = not safe and decision.scores.get(SELF_HARM, 0.0) >= own.low_score
        if said or tier > held or low:
            after = Risk(tier, 0, now)
        else:
            quiet = risk.quiet + (2 if safe else 1)
            after = Risk() if quiet >= own.hold[held].turns else Risk(held, quiet, risk.at)
        return self._answer(decision, context, said, held, tier, safe), after

    def _answer(
        self, decision: Decision, context: PolicyContext, said: Tier, held: Tier, tier: Tier, safe: bool
    ) -> Decision:
        own, templates = self._self_harm, self._bundle.templates
        if said and tier == said:
            return decision
        card = self._bundle.notice(CRISIS_NOTICE, context.region_code)
        raised = tier > held or bool(said)
        action = Action.ESCALATE if raised and tier is Tier.IMMINENT else Action.BLOCK
        hit = RuleHit(
            self._held_id(tier),
            action,
            SELF_HARM,
            own.reason_codes[tier] if raised else own.held.reason_code,
            f"tier held {held.name}, of this message {said.name}, together {tier.name}",
            "What was said before counts: the person stays in the self-harm protocol until its rules let them go.",
            self._basis,
        )
        if not raised and decision.rules and decision.rules[0].rule_id in self._answers:
            rules = (*decision.rules, hit)
            return replace(decision, rules=rules, notice_code=CRISIS_NOTICE, notice_text=card)
        template = own.templates[tier] if raised else own.held.safe_template if safe else own.held.template
        return replace(
            decision,
            stage=Stage.INPUT,
            action=max(action, decision.action, key=_GRAVITY.index),
            category=SELF_HARM,
            reason_code=hit.reason_code,
            rules=(hit, *decision.rules),
            template=templates[template],
            notice_code=CRISIS_NOTICE,
            notice_text=card,
        )

    def held_tier(self, decision: Decision) -> Tier:
        """The tier that a decision was taken at, with what was said before; NONE if it is not of the protocol's."""
        ids = {hit.rule_id for hit in decision.rules}
        return next((tier for tier in Tier if self._held_id(tier) in ids), self.tier(decision))

    def _held_id(self, tier: Tier) -> str:
        return f"{self._self_harm.held.id}_{tier.name.lower()}"


_GRAVITY: Final = (Action.ALLOW, Action.TRANSFORM, Action.BLOCK, Action.ESCALATE)
