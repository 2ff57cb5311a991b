"""What a policy decision is: the one record that the stream, Classify and the ledger share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType


class Stage(StrEnum):
    """Where in the turn a decision is taken."""

    INPUT = "input"
    MEMORY = "memory"
    OUTPUT = "output"


class Action(StrEnum):
    """What a decision does; combined by `escalate > block > transform > allow`."""

    ALLOW = "allow"
    TRANSFORM = "transform"
    BLOCK = "block"
    ESCALATE = "escalate"

    @property
    def stops(self) -> bool:
        """True for actions after which nothing more of the text may leave."""
        return self in (Action.BLOCK, Action.ESCALATE)


class AgeBand(StrEnum):
    """Age band of the person; UNKNOWN is treated as TEEN by every rule."""

    UNKNOWN = "unknown"
    TEEN = "teen"
    ADULT = "adult"


@dataclass(frozen=True, slots=True)
class PolicyContext:
    """What rules may ask about beside the text.

    Attributes:
        persona_type: "assistant", "companion", "curator", "brand_advocate" or "clone".
        age_band: see AgeBand.
        region_code: CLDR code, such as "PT"; empty if unknown.
    """

    persona_type: str = "assistant"
    age_band: AgeBand = AgeBand.UNKNOWN
    region_code: str = ""


@dataclass(frozen=True, slots=True)
class RuleHit:
    """One rule that matched."""

    rule_id: str
    action: Action
    category: str
    reason_code: str
    expression: str
    description: str


@dataclass(frozen=True, slots=True)
class MatcherHit:
    """One matcher's find: character offsets (code points) in the raw text."""

    matcher_id: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome at one stage. Never holds the text it judged.

    Attributes:
        action: the rules' combined action.
        category, reason_code: of the deciding rule; empty when allowed.
        rules: every rule that matched, the deciding one first.
        matches: what the matchers found.
        scores: scorer outputs in 0 to 1 by category.
        bundle_version: of the bundle that decided.
        template: what is said instead of (block) or in place of (transform) the text.
        notice_code, notice_text: something to tell the person out of character,
            such as a crisis line; empty if nothing.
    """

    action: Action
    stage: Stage
    bundle_version: str
    category: str = ""
    reason_code: str = ""
    rules: tuple[RuleHit, ...] = ()
    matches: tuple[MatcherHit, ...] = ()
    scores: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    template: str = ""
    notice_code: str = ""
    notice_text: str = ""
