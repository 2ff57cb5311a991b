"""Decisions at stage SIGNAL: about who does how much and what was switched off, and about no text."""

from __future__ import annotations

from typing import Final

from personae_runtime.policy.decision import Action, Decision, RuleHit, Stage
from personae_runtime.policy.reasons import KILL_SWITCH

_KILLED: Final = {
    "TENANT_KILLED": "The operator has switched off everything of this service's customer for now.",
    "PERSONA_KILLED": "The operator has switched off this persona for now.",
}


def signal(
    version: str, *, rule_id: str, category: str, reason_code: str, expression: str, description: str
) -> Decision:
    """The record of a turn that was not taken, or was ended, whatever its words.

    Args:
        version: of the bundle in force.
        rule_id, expression: what was compared with what, as a rule of a bundle would say it.
        description: one sentence for the person.
    """
    hit = RuleHit(rule_id, Action.BLOCK, category, reason_code, expression, description)
    return Decision(Action.BLOCK, Stage.SIGNAL, version, category, reason_code, (hit,))


def killed_by(reason: str, version: str) -> Decision:
    """The decision on a turn that a kill switch ended.

    Args:
        reason: of the standing, TENANT_KILLED or PERSONA_KILLED.
    """
    what = "tenant" if reason == "TENANT_KILLED" else "persona"
    return signal(
        version,
        rule_id=KILL_SWITCH,
        category=KILL_SWITCH,
        reason_code=reason,
        expression=f"kill switch of the {what} is in force",
        description=_KILLED[reason],
    )
