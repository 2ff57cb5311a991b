"""Which bundle judges whom: the host's own, or those that a tenant published, by stages.

    publish ──► shadow ──► percentage ──► full          rollback: back at any point
                judged beside,  for a share of   for all
                never acted on  sessions

`Policies` answers in memory, at every turn; `personae_runtime.ledger.bundles`
keeps it as the ledger says. A turn asks once, and ends with the bundle that it
began with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from personae_runtime.errors import Unavailable
from personae_runtime.policy.decision import Action, Decision, PolicyContext, Stage
from personae_runtime.policy.gate import Seen
from personae_runtime.policy.policy import Policy
from personae_runtime.policy.reasons import SCORER_FAILED

_GRAVITY = {action: at for at, action in enumerate((Action.ALLOW, Action.TRANSFORM, Action.BLOCK, Action.ESCALATE))}


def share(bundle: str, session: str) -> float:
    """Where a session stands in the rollout of a bundle, 0 to 1: it has the bundle from that share on.

    A hash of both, so that a session that has it keeps it while the percentage grows, and that it is not always the
    same sessions which come first.
    """
    drawn = sha256(f"{bundle}\0{session}".encode()).digest()[:8]
    # 53 bits, which a float holds: 64 would round up to 1, a share that no percentage reaches.
    return (int.from_bytes(drawn, "big") >> 11) / 2**53


@dataclass(frozen=True, slots=True)
class InForce:
    """What judges a tenant's sessions.

    Attributes:
        stable: all that the candidate does not.
        candidate: its id and policy; None while nothing is rolled out.
        percent: of sessions that the candidate judges; 0 is shadow.
    """

    stable: Policy
    candidate: tuple[str, Policy] | None = None
    percent: int = 0


class Policies:
    """The policies of a host.

    Attributes:
        own: the host's own, of tenants that published none.
    """

    def __init__(self, own: Policy) -> None:
        self.own = own
        self._tenants: dict[str, InForce] = {}
        self._missing: dict[str, str] = {}

    def of(self, tenant: str, session: str = "") -> Policy:
        """What judges, from now on.

        Args:
            session: full name; without it the answer is what most sessions have.

        Raises:
            Unavailable: the tenant's bundle can't be loaded here. No other judges in its place (reason
                POLICY_UNAVAILABLE).
        """
        if tenant in self._missing:
            raise Unavailable(
                f"the policy bundle of tenants/{tenant} can't be loaded: {self._missing[tenant]}",
                reason="POLICY_UNAVAILABLE",
                retry_after_s=5.0,
            )
        found = self._tenants.get(tenant)
        if found is None:
            return self.own
        if session and found.candidate is not None and share(found.candidate[0], session) < found.percent / 100:
            return found.candidate[1]
        return found.stable

    def shadow(self, tenant: str) -> tuple[str, Policy] | None:
        """The candidate that only watches, with its id; None if there is none."""
        found = self._tenants.get(tenant)
        return None if found is None or found.percent else found.candidate

    def remembers(self, text: str, context: PolicyContext) -> bool:
        """Whether words may be kept, as far as matchers tell; not while it isn't known which rules hold."""
        try:
            return not self.of(context.tenant).check_memory(text, context).action.stops
        except Unavailable:
            return False

    def get(self, tenant: str) -> InForce | None:
        """What is in force for a tenant; None if that is the host's own."""
        return self._tenants.get(tenant)

    def put(self, tenant: str, found: InForce) -> None:
        """Let this judge a tenant's sessions from now on."""
        self._tenants[tenant] = found
        self._missing.pop(tenant, None)

    def miss(self, tenant: str, why: str) -> None:
        """Nothing may judge a tenant's sessions, so that none go on."""
        self._missing[tenant] = why

    def problem(self, tenant: str) -> str:
        """Why nothing judges a tenant's sessions; empty if something does."""
        return self._missing.get(tenant, "")


def gravest(decisions: Sequence[Decision], stage: Stage, version: str) -> Decision:
    """The decision that counts of a text's; plain allow if there are none."""
    if not decisions:
        return Decision(Action.ALLOW, stage, version)
    return max(decisions, key=lambda one: _GRAVITY[one.action])


def differs(one: Decision, other: Decision) -> bool:
    """Whether somebody would notice: another action, or another reason for it."""
    return (one.action, one.reason_code, one.template) != (other.action, other.reason_code, other.template)


@dataclass(frozen=True, slots=True)
class ShadowDecision:
    """What was decided, and what a candidate would have."""

    live: Decision
    candidate: Decision

    @property
    def differs(self) -> bool:
        """See `differs`."""
        return differs(self.live, self.candidate)


@dataclass(slots=True)
class Shadow:
    """What a candidate would have decided in one turn.

    The turn notes what it judged and how; `judge` runs when the turn is over, so that nothing of it can be delayed by
    the candidate, or acted upon.

    Attributes:
        seen: the scores of the reply, which are asked for once.
        reply: every delta that was judged.
    """

    bundle: str
    candidate: Policy
    context: PolicyContext
    seen: Seen = field(default_factory=dict)
    reply: list[str] = field(default_factory=list)
    _noted: list[tuple[str, Decision]] = field(default_factory=list)
    _replied: Decision | None = None

    def saw(self, text: str, live: Decision) -> None:
        """Note a whole text, and what was decided of it; or signals, and no text."""
        # With a failed scorer there are no scores to judge by; the candidate would have blocked as well.
        if live.reason_code != SCORER_FAILED:
            self._noted.append((text, live))

    def replied(self, decisions: Sequence[Decision], version: str) -> None:
        """Note that the reply is over, and what was decided of it."""
        live = gravest(decisions, Stage.OUTPUT, version)
        if live.reason_code != SCORER_FAILED:
            self._replied = live

    async def judge(self) -> list[ShadowDecision]:
        """Every decision that a rule had a part in, on either side."""
        found = []
        for text, live in self._noted:
            if live.stage is Stage.SIGNAL:
                decision = self.candidate.judge_signals(live.signals, self.context)
            else:
                decision = self.candidate.judge(live.stage, text, self.context, live.scores)
            found.append(ShadowDecision(live, decision))
        if self._replied is not None:
            gate = self.candidate.open_stream(self.context, self.seen)
            gate.feed("".join(self.reply))
            await gate.clear(final=True)
            decision = gravest(gate.decisions, Stage.OUTPUT, self.candidate.version)
            found.append(ShadowDecision(self._replied, decision))
        return [one for one in found if one.live.rules or one.candidate.rules or one.differs]


def rule_ids(decision: Decision) -> list[str]:
    """Ids of the rules that matched, the deciding one first."""
    return [rule.rule_id for rule in decision.rules]


def scores_of(decision: Decision) -> Mapping[str, float]:
    """Scores, or signals, that it rests on."""
    return decision.scores or decision.signals
