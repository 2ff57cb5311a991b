"""Whether a turn may begin, by who asks for how much: limits, near-identical texts, circuit breakers.

Every process decides by itself and at once, from counts that it keeps in memory.
Processes that share a ledger report theirs to each other about twice a second
(`ledger.usage`), so that all of them together let through little more than one
would.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from personae_runtime.abuse.breaker import Breaker, BreakerRule, State
from personae_runtime.abuse.counters import Counters, Report
from personae_runtime.abuse.duplicates import Duplicates, Fingerprints, Sighting, Signature
from personae_runtime.config import AbuseSettings
from personae_runtime.errors import ResourceExhausted
from personae_runtime.policy.bundle import PROTECTED
from personae_runtime.policy.decision import Decision, Stage
from personae_runtime.policy.reasons import KILL_SWITCH
from personae_runtime.policy.signals import signal

CATEGORY: Final = "abuse"
"""Category of the decisions."""
_MINUTE_S: Final = 60.0
_TOLD_S: Final = 60.0
"""A refusal is recorded once in so long for whom it concerns: a flood of turns makes no flood of decisions."""
_KEPT: Final = 20_000
# Blocks of these tell nothing of abuse: who is in a crisis, or asks what they talk to, is not turned away for it.
_NO_ABUSE: Final = PROTECTED | {"policy", CATEGORY, KILL_SWITCH}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a turn comes from, as its caller says: keyed hashes, empty where it said nothing."""

    device: str = ""
    network: str = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A turn that somebody wants.

    Attributes:
        persona, owner: the persona's id, and the keyed hash of its owner; empty if it has none.
        person: scope key of the person.
        user_name: the person as errors name them.
    """

    tenant: str
    persona: str
    owner: str
    person: str
    user_name: str
    origin: Origin
    text: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a turn may not begin.

    Attributes:
        decision: to be recorded; None if the same was a moment ago.
    """

    error: ResourceExhausted
    decision: Decision | None


@dataclass(slots=True)
class Ticket:
    """Leave for one turn, counted at `at`, to be given back by `ended` or `dropped`."""

    attempt: Attempt
    at: float
    passed: list[tuple[Breaker, int]] = field(default_factory=list)
    blocked: bool = False


@dataclass(frozen=True, slots=True)
class _Limit:
    kind: str
    subject: str
    limit: int
    reason: str
    whom: str
    setting: str


class AbuseGuard:
    """Of one process.

    Args:
        turns_per_minute: of one person with one persona.
        key: of the fingerprints of texts.
        version: of the bundle in force, for decisions.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        settings: AbuseSettings,
        turns_per_minute: int,
        key: bytes,
        version: Callable[[], str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._turns_per_minute = turns_per_minute
        self._version = version
        self._clock = clock
        self._counters = Counters(max(_MINUTE_S, settings.breaker_window_s))
        self._fingerprints = Fingerprints(key, settings.duplicate_min_chars)
        self._duplicates = Duplicates(settings.duplicate_window_s, settings.duplicate_similarity)
        self._new_sightings: list[Sighting] = []
        self._rule = BreakerRule(
            blocks=settings.breaker_blocks,
            share=settings.breaker_share,
            window_s=settings.breaker_window_s,
            cooldown_s=settings.breaker_cooldown_s,
            probes=settings.breaker_probes,
        )
        self._breakers: OrderedDict[str, Breaker] = OrderedDict()
        self._told: OrderedDict[str, float] = OrderedDict()

    # -- a turn ----------------------------------------------------------------

    def ask(self, attempt: Attempt) -> Ticket | Refusal:
        """Leave to begin a turn, or why there is none."""
        now = self._clock()
        refusal = self._over_limit(attempt, now)
        if refusal is not None:
            return refusal
        signature = self._fingerprints.of(attempt.text) if self._settings.duplicate_personas else None
        refusal = self._duplicate(attempt, signature, now)
        if refusal is not None:
            return refusal
        ticket = Ticket(attempt, now)
        for key in _breakers_of(attempt):
            breaker = self._breakers.get(key)
            blocks = self._since(breaker, f"blocks/{key}", now)
            if breaker is None:
                if not self._rule.blocks or blocks < self._rule.blocks:
                    # Most never need one.
                    continue
                breaker = self._breakers[key] = Breaker(self._rule)
                if len(self._breakers) > _KEPT:
                    self._breakers.popitem(last=False)
            wait = breaker.let(now, self._since(breaker, f"turns/{key}", now), blocks)
            if wait > 0:
                _take_back(ticket)
                return self._broken(key.partition("/")[0], key, wait)
            ticket.passed.append((breaker, breaker.generation))
        # At once, so that of very many that ask at the same time no more get leave.
        self._count(ticket, 1)
        if signature is not None:
            seen = Sighting(attempt.tenant, attempt.persona, now, signature)
            self._duplicates.add(seen)
            self._new_sightings.append(seen)
            del self._new_sightings[:-_KEPT]
        return ticket

    def dropped(self, ticket: Ticket) -> None:
        """The turn did not begin."""
        _take_back(ticket)
        self._count(ticket, -1)

    def _count(self, ticket: Ticket, number: int) -> None:
        for one in self._limits(ticket.attempt):
            self._counters.add(f"{one.kind}/{one.subject}", ticket.at, number)
        for key in _breakers_of(ticket.attempt):
            self._counters.add(f"turns/{key}", ticket.at, number)

    def decided(self, ticket: Ticket, decision: Decision) -> None:
        """Policy decided something about the turn; what stops it counts, once a turn."""
        if ticket.blocked or not decision.action.stops or decision.category in _NO_ABUSE:
            return
        if decision.stage is Stage.MEMORY:
            # A memory was left out; the turn goes on.
            return
        ticket.blocked = True
        now, attempt = self._clock(), ticket.attempt
        # One person can't close a persona to all others.
        by = f"blocks-by/{attempt.person}"
        if self._counters.total(by, now, self._rule.window_s) >= self._settings.breaker_blocks_by_person:
            return
        self._counters.add(by, now)
        for key in _breakers_of(attempt):
            self._counters.add(f"blocks/{key}", now)

    def ended(self, ticket: Ticket) -> None:
        """The turn is over."""
        now = self._clock()
        for breaker, generation in ticket.passed:
            breaker.ended(now, generation, blocked=ticket.blocked)
        ticket.passed.clear()

    def forget(self, person: str) -> None:
        """Keep nothing of a person."""
        for kind in ("person", "blocks-by"):
            self._counters.forget(f"{kind}/{person}")

    def turns_of(self, person: str) -> int:
        """Turns of a person in the last minute."""
        return self._counters.total(f"person/{person}", self._clock(), _MINUTE_S)

    def not_closed(self) -> int:
        """How many breakers are open or half open."""
        return sum(breaker.state is not State.CLOSED for breaker in self._breakers.values())

    # -- other processes -------------------------------------------------------

    def report(self) -> tuple[list[Report], list[list[Any]]]:
        """What happened here since the last call: counts, and texts as `Sighting.pack` gives them."""
        seen, self._new_sightings = self._new_sightings, []
        return self._counters.take_unreported(), [one.pack() for one in seen]

    def hear(self, counts: Sequence[Report], sightings: Sequence[list[Any]]) -> None:
        """What happened elsewhere."""
        self._counters.hear(counts)
        for packed in sightings:
            self._duplicates.add(Sighting.unpack(packed))

    # -- pieces ----------------------------------------------------------------

    def _limits(self, attempt: Attempt) -> list[_Limit]:
        most, origin = self._settings, attempt.origin
        wanted = (
            _Limit(
                kind="person",
                subject=attempt.person,
                limit=self._turns_per_minute,
                reason="QUOTA_EXCEEDED",
                whom="one user",
                setting="turns_per_minute",
            ),
            _Limit(
                kind="owner",
                subject=attempt.owner,
                limit=most.turns_per_minute_by_owner,
                reason="OWNER_LIMIT",
                whom="the personas of one owner",
                setting="turns_per_minute_by_owner",
            ),
            _Limit(
                kind="device",
                subject=origin.device,
                limit=most.turns_per_minute_by_device,
                reason="DEVICE_LIMIT",
                whom="one device",
                setting="turns_per_minute_by_device",
            ),
            _Limit(
                kind="network",
                subject=origin.network,
                limit=most.turns_per_minute_by_network,
                reason="NETWORK_LIMIT",
                whom="one network",
                setting="turns_per_minute_by_network",
            ),
        )
        return [one for one in wanted if one.subject and one.limit]

    def _over_limit(self, attempt: Attempt, now: float) -> Refusal | None:
        for one in self._limits(attempt):
            wait = self._counters.wait_s(f"{one.kind}/{one.subject}", now, _MINUTE_S, one.limit)
            if wait > 0:
                error = ResourceExhausted(
                    f"more than {one.limit} turns in a minute for {one.whom}",
                    reason=one.reason,
                    retry_after_s=max(0.1, wait),
                    violations=(
                        (attempt.user_name if one.kind == "person" else one.kind, f"{one.limit} turns per minute"),
                    ),
                )
                return self._refusal(
                    error,
                    f"{one.kind}/{one.subject}",
                    rule_id=one.setting,
                    expression=f"turns of {one.whom} in 60 s >= {one.limit}",
                    description=f"There were more turns of {one.whom} in a minute than this service takes.",
                )
        return None

    def _duplicate(self, attempt: Attempt, signature: Signature | None, now: float) -> Refusal | None:
        if signature is None:
            return None
        most = self._settings.duplicate_personas
        others = self._duplicates.personas(attempt.tenant, signature, now)
        others.pop(attempt.persona, None)
        if len(others) < most:
            return None
        # Until so many of them are out of the window that there is room for this one.
        left = sorted(others.values())[len(others) - most]
        error = ResourceExhausted(
            f"about the same text was sent to {len(others)} other personas lately",
            reason="NEAR_DUPLICATES",
            retry_after_s=max(1.0, left + self._settings.duplicate_window_s - now),
            violations=(("text", f"at most {most} personas"),),
        )
        return self._refusal(
            error,
            f"duplicates/{attempt.person}",
            rule_id="near_duplicates",
            expression=f"personas sent about this text in {self._settings.duplicate_window_s:g} s >= {most}",
            description="About the same text was sent to many personas in a short time.",
        )

    def _broken(self, what: str, key: str, wait: float) -> Refusal:
        error = ResourceExhausted(
            f"too many turns of this {what} were blocked lately; it takes none for a while",
            reason="BREAKER_OPEN",
            retry_after_s=wait,
            metadata={"of": what},
        )
        rule = self._rule
        return self._refusal(
            error,
            f"breaker/{key}",
            rule_id=f"breaker_by_{what}",
            expression=f"blocks in {rule.window_s:g} s >= {rule.blocks} && blocks >= {rule.share:g} * turns",
            description=f"Many turns of this {what} were blocked in a short time, so it takes no new ones for a while.",
        )

    def _refusal(
        self, error: ResourceExhausted, subject: str, *, rule_id: str, expression: str, description: str
    ) -> Refusal:
        now = self._clock()
        if self._told.get(subject, 0.0) > now:
            return Refusal(error, None)
        self._told[subject] = now + _TOLD_S
        self._told.move_to_end(subject)
        if len(self._told) > _KEPT:
            self._told.popitem(last=False)
        made = signal(
            self._version(),
            rule_id=rule_id,
            category=CATEGORY,
            reason_code=error.reason,
            expression=expression,
            description=description,
        )
        return Refusal(error, made)

    def _since(self, breaker: Breaker | None, key: str, now: float) -> int:
        """A count over the breaker's window, or the part of it that it has not answered for."""
        window = self._rule.window_s if breaker is None else min(self._rule.window_s, now - breaker.since)
        return self._counters.total(key, now, window)


def _take_back(ticket: Ticket) -> None:
    for breaker, generation in ticket.passed:
        breaker.take_back(generation)
    ticket.passed.clear()


def _breakers_of(attempt: Attempt) -> tuple[str, str]:
    return f"persona/{attempt.tenant}/{attempt.persona}", f"tenant/{attempt.tenant}"
