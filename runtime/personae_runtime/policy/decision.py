"""What a policy decision is: the one record that the stream, Classify and the ledger share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any
from uuid import UUID

from personae_runtime.personas.definition import VerifiedClaim


class Stage(StrEnum):
    """Where a decision is taken: of a turn, or of what comes in beside one."""

    INPUT = "input"
    MEMORY = "memory"
    OUTPUT = "output"
    CONTENT = "content"
    """Text that is submitted to be judged or stored outside of a turn: Classify, documents."""
    SIGNAL = "signal"
    """Who does how much, and what was switched off: about no text."""


class Action(StrEnum):
    """What a decision does, by gravity; combined by `escalate > block > transform > allow`."""

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
        tenant, persona, revision: whose rules and which persona's words; empty and 0 if unknown, where no rule
            applies that is scoped by them, and none is switched off.
        claims: verified claims that hold of this persona now; see `policy.claims`.
    """

    persona_type: str = "assistant"
    age_band: AgeBand = AgeBand.UNKNOWN
    region_code: str = ""
    tenant: str = ""
    persona: str = ""
    revision: int = 0
    claims: tuple[VerifiedClaim, ...] = ()

    @property
    def persona_name(self) -> str:
        """As rules' scopes name it; "" if it isn't known."""
        return f"tenants/{self.tenant}/personas/{self.persona}" if self.tenant and self.persona else ""

    @property
    def revision_name(self) -> str:
        """As rules' scopes name it; "" if it isn't known."""
        return f"{self.persona_name}/revisions/{self.revision}" if self.persona_name and self.revision else ""


@dataclass(frozen=True, slots=True)
class RuleHit:
    """One rule that matched."""

    rule_id: str
    action: Action
    category: str
    reason_code: str
    expression: str
    description: str
    legal_basis: str = ""


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
        signals: what the rules of stage SIGNAL were asked about, by name.
        claims: names of the verified claims that let something pass which rules would have stopped.
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
    signals: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    claims: tuple[str, ...] = ()

    @property
    def legal_basis(self) -> str:
        """The law that the deciding rule names; empty if none, or if no rule decided, as when a scorer failed."""
        if not self.rules or self.rules[0].reason_code != self.reason_code:
            return ""
        return self.rules[0].legal_basis

    def detail(self) -> dict[str, Any]:
        """What a record holds beside its columns, for JSON: the rules as they were, the places, what was told."""
        return {
            "rules": [
                {
                    "id": hit.rule_id,
                    "action": hit.action.value,
                    "category": hit.category,
                    "reason_code": hit.reason_code,
                    "expression": hit.expression,
                    "description": hit.description,
                    "legal_basis": hit.legal_basis,
                }
                for hit in self.rules
            ],
            "matches": [[hit.matcher_id, hit.start, hit.end] for hit in self.matches],
            "template": self.template,
            "notice_code": self.notice_code,
            "notice_text": self.notice_text,
            **({"signals": dict(self.signals)} if self.signals else {}),
            **({"claims": list(self.claims)} if self.claims else {}),
        }

    @classmethod
    def from_columns(
        cls,
        columns: Mapping[str, Any],
        scores: Mapping[str, float],
        detail: Mapping[str, Any],
    ) -> Decision:
        """The decision of a record.

        Args:
            columns: `stage`, `action`, `category`, `reason_code`, `bundle_version`, and `rules`, the rules' ids.
            detail: as `detail` gives it; empty of records that were made before there was any, whose rules are
                known by their ids only.
        """
        action = Action(columns["action"])
        if "rules" in detail:
            rules = tuple(
                RuleHit(
                    hit["id"],
                    Action(hit["action"]),
                    hit["category"],
                    hit["reason_code"],
                    hit["expression"],
                    hit["description"],
                    hit["legal_basis"],
                )
                for hit in detail["rules"]
            )
        else:
            rules = tuple(RuleHit(rule_id, action, "", "", "", "") for rule_id in columns["rules"])
        return cls(
            action=action,
            stage=Stage(columns["stage"]),
            bundle_version=columns["bundle_version"],
            category=columns["category"],
            reason_code=columns["reason_code"],
            rules=rules,
            matches=tuple(MatcherHit(*hit) for hit in detail.get("matches", ())),
            scores=MappingProxyType(dict(scores)),
            template=detail.get("template", ""),
            notice_code=detail.get("notice_code", ""),
            notice_text=detail.get("notice_text", ""),
            signals=MappingProxyType(detail.get("signals", {})),
            claims=tuple(detail.get("claims", ())),
        )


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """A decision as it is recorded: the one source of the person's reason, the statement of reasons and the reports.

    Attributes:
        context: of the session; the age band is as it was told, UNKNOWN included.
        session, turn: ids within the persona; empty once the person was erased.
        created_at: aware UTC.
    """

    decision_id: UUID
    tenant: str
    persona: str
    session: str
    turn: str
    decision: Decision
    context: PolicyContext
    created_at: datetime
