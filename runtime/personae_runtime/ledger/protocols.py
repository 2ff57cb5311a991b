"""The protocols' memory in the ledger: clocks, tiers, referrals counted without text, and escalated reviews."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from types import MappingProxyType
from typing import Final
from uuid import UUID, uuid4

import asyncpg
import orjson

from personae_runtime.ledger import audit
from personae_runtime.ledger.database import Connection, Database
from personae_runtime.policy.decision import Action, Decision
from personae_runtime.policy.priority import priority
from personae_runtime.policy.protocols import Clocks, Risk, Tier, Told

REACH_DAYS: Final = 7
# Who met it: no more are looked at, which is 5 in the logarithm.
REACH_LIMIT: Final = 10_000

Attend = Callable[[Clocks, datetime, bool], tuple[Clocks, Sequence[Told]]]
"""Clocks, the time, and whether the turn opens its session -> the clocks after it, and what is due."""

Sustain = Callable[[Risk, datetime], tuple[Decision, Risk]]
"""Where the person stood, and the time -> what is decided, and where they stand."""


@dataclass(frozen=True, slots=True)
class Referrals:
    """How often people were referred to crisis services on a day.

    Attributes:
        tier: "passive", "active", "plan" or "imminent", of what was said; "output" where a reply was stopped.
        times: cards shown.
        people: who were shown one, by persona: one who talks to two personas counts twice.
    """

    day: date
    region_code: str
    tier: str
    times: int
    people: int


async def attend(
    connection: Connection, scope: str, person: str, now: datetime, first: bool, ask: Attend
) -> tuple[Risk, Sequence[Told]]:
    """Count a turn on the person's clocks, in the caller's transaction.

    Args:
        person: keyed hash of tenant and user; their clocks go on from whichever persona they used last.
        first: the turn opens its session.

    Returns:
        Where they stood in the self-harm protocol, and the reminders to be told with the turn.
    """
    rows = await connection.fetch(
        "SELECT * FROM protocol_states WHERE scope = $1 UNION ALL"
        " (SELECT * FROM protocol_states WHERE person = $2 ORDER BY seen_at DESC LIMIT 1)",
        scope,
        person,
    )
    latest = max((row for row in rows if row["person"] == person), key=lambda row: row["seen_at"], default=None)
    clocks = Clocks()
    if latest is not None:
        clocks = Clocks(latest["seen_at"], MappingProxyType(orjson.loads(latest["used_s"])))
    after, told = ask(clocks, now, first)
    await connection.execute(
        "INSERT INTO protocol_states (scope, person, seen_at, used_s) VALUES ($1, $2, $3, $4)"
        " ON CONFLICT (scope) DO UPDATE SET person = $2, seen_at = $3, used_s = $4",
        scope,
        person,
        after.seen_at,
        orjson.dumps(dict(after.used_s)).decode(),
    )
    return next((_risk(row) for row in rows if row["scope"] == scope), Risk()), told


async def sustain(database: Database, scope: str, ask: Sustain) -> Decision:
    """Decide with what was said before, and keep where the person stands; sessions at once wait for each other."""
    async with database.transaction() as connection:
        row = await connection.fetchrow("SELECT *, now() AS at FROM protocol_states WHERE scope = $1 FOR UPDATE", scope)
        # Without a row the person is being erased: the message is answered, and nothing is kept of it.
        now = await connection.fetchval("SELECT now()") if row is None else row["at"]
        decision, after = ask(Risk() if row is None else _risk(row), now)
        if row is not None:
            await connection.execute(
                "UPDATE protocol_states SET tier = $2, quiet = $3, signed_at = $4 WHERE scope = $1",
                scope,
                int(after.tier),
                after.quiet,
                after.at,
            )
    return decision


async def count_referral(
    connection: Connection, session_pk: int, tenant: str, persona: str, region_code: str, tier: str
) -> None:
    """Count a crisis card: for the person on this day (UTC), and for the day alone."""
    await connection.execute(
        # The session's row is held, so that nothing is counted for a person who is being erased, after their rows went.
        "WITH held AS (SELECT scope FROM sessions WHERE session_pk = $1 FOR KEY SHARE),"
        " person AS (INSERT INTO crisis_referrals (scope, day, region_code, tier, times)"
        "  SELECT scope, (now() AT TIME ZONE 'UTC')::date, $4, $5, 1 FROM held"
        "  ON CONFLICT (scope, day, region_code, tier) DO UPDATE SET times = crisis_referrals.times + 1"
        "  RETURNING times)"
        " INSERT INTO crisis_referral_days (tenant, day, persona, region_code, tier, times, people)"
        "  VALUES ($2, (now() AT TIME ZONE 'UTC')::date, $3, $4, $5, 1,"
        "   coalesce((SELECT CASE WHEN times = 1 THEN 1 ELSE 0 END FROM person), 0))"
        "  ON CONFLICT (tenant, day, persona, region_code, tier) DO UPDATE"
        "  SET times = crisis_referral_days.times + 1, people = crisis_referral_days.people + excluded.people",
        session_pk,
        tenant,
        persona,
        region_code,
        tier,
    )


async def people_met(connection: Connection, tenant: str, reason_code: str) -> int:
    """How many people met a decision of a reason in the last REACH_DAYS days, among REACH_LIMIT decisions."""
    return int(
        await connection.fetchval(
            "SELECT count(DISTINCT scope) FROM (SELECT s.scope FROM decisions d JOIN sessions s USING (session_pk)"
            " WHERE d.tenant = $1 AND d.reason_code = $2 AND d.created_at > now() - $3::interval LIMIT $4) AS met",
            tenant,
            reason_code,
            timedelta(days=REACH_DAYS),
            REACH_LIMIT,
        )
    )


async def escalate(
    connection: Connection, tenant: str, scope: str, decision_id: UUID, decision: Decision, due: timedelta
) -> None:
    """Put a decision before a reviewer: a review without an appeal, first in the queue, due in `due`."""
    assert decision.action is Action.ESCALATE
    rank = priority(decision, await people_met(connection, tenant, decision.reason_code))
    review_id = uuid4()
    await connection.execute(
        "INSERT INTO reviews (review_id, tenant, decision_id, severity, reach, uncertainty, priority, wanted, due_at,"
        " origin) VALUES ($1, $2, $3, $4, $5, $6, $7, 1, now() + $8::interval, 'ESCALATION')",
        review_id,
        tenant,
        decision_id,
        rank.severity,
        rank.reach,
        rank.uncertainty,
        rank.value,
        due,
    )
    body = {
        "decision": str(decision_id),
        "person": scope,
        "priority_millionths": audit.millionths(rank.value),
        "review": str(review_id),
    }
    # Not by the review's id: that is its resolution's, which may come before this has its place in the log.
    await audit.append(connection, tenant, "escalation", body)


class ProtocolLedger:
    """Reads what the protocols counted."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def referrals(self, tenant: str, begin: date, end: date) -> list[Referrals]:
        """Referrals of a tenant from `begin` to before `end` (UTC), by day, region and tier."""
        rows = await self._database.fetch(
            "SELECT day, region_code, tier, sum(times) AS times, sum(people) AS people FROM crisis_referral_days"
            " WHERE tenant = $1 AND day >= $2 AND day < $3 GROUP BY day, region_code, tier"
            " ORDER BY day, region_code, tier",
            tenant,
            begin,
            end,
        )
        return [Referrals(row["day"], row["region_code"], row["tier"], row["times"], row["people"]) for row in rows]


def _risk(row: asyncpg.Record) -> Risk:
    return Risk(Tier(row["tier"]), row["quiet"], row["signed_at"])
