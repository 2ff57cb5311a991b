"""Policy decisions in the ledger: written with the turn, read by whoever may see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg
import orjson

from personae_runtime.errors import NotFound
from personae_runtime.ledger.database import Connection, Database
from personae_runtime.policy.decision import Action, AgeBand, Decision, DecisionRecord, PolicyContext, Stage

SELECT_DECISION: Final = (
    "SELECT d.*, s.session, t.turn_id, s.scope, s.user_id FROM decisions d"
    " LEFT JOIN sessions s USING (session_pk) LEFT JOIN turns t USING (session_pk, turn_no)"
)


@dataclass(frozen=True, slots=True)
class DecisionFilter:
    """Which decisions are asked for; what is empty or None asks for all.

    Attributes:
        persona, session: ids within the tenant and the persona.
        user: of whose sessions.
        begin, end: of the time, the end excluded.
    """

    persona: str = ""
    session: str = ""
    user: str = ""
    stage: Stage | None = None
    action: Action | None = None
    category: str = ""
    begin: datetime | None = None
    end: datetime | None = None


async def insert_decision(
    connection: Connection | Database,
    decision_id: UUID,
    tenant: str,
    persona: str,
    session_pk: int,
    turn_no: int,
    context: PolicyContext,
    decision: Decision,
    audit_body: bytes,
) -> bool:
    """Write a decision, without the text it judged, and its audit entry; False for a repeat of the same id, which
    changes nothing.

    Args:
        audit_body: canonical JSON.
    """
    # One statement for both: no further round trip, and a repeat after a lost connection writes neither twice.
    written = await connection.execute(
        "WITH decision AS (INSERT INTO decisions (decision_id, tenant, persona, session_pk, turn_no, stage, action,"
        "  category, reason_code, rules, scores, bundle_version, persona_type, age_band, region_code, legal_basis,"
        "  detail)"
        "  VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)"
        "  ON CONFLICT DO NOTHING RETURNING decision_id)"
        " INSERT INTO audit_outbox (entry_id, tenant, kind, body) SELECT decision_id, $2, 'decision', $18"
        " FROM decision",
        decision_id,
        tenant,
        persona,
        session_pk,
        turn_no,
        decision.stage.value,
        decision.action.value,
        decision.category,
        decision.reason_code,
        [rule.rule_id for rule in decision.rules],
        orjson.dumps(dict(decision.scores)).decode(),
        decision.bundle_version,
        context.persona_type,
        context.age_band.value,
        context.region_code,
        decision.legal_basis,
        orjson.dumps(decision.detail()).decode(),
        audit_body,
    )
    return bool(written == "INSERT 0 1")


class DecisionLedger:
    """Reads decisions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, tenant: str, decision_id: UUID, *, user: str = "") -> DecisionRecord:
        """One decision of a tenant.

        Args:
            user: only if it is of a session of this user.

        Raises:
            NotFound: there is none of that id, or it is not that user's.
        """
        row = await self._database.fetchrow(
            f"{SELECT_DECISION} WHERE d.tenant = $1 AND d.decision_id = $2 AND ($3 = '' OR s.user_id = $3)",
            tenant,
            decision_id,
            user,
        )
        if row is None:
            raise NotFound(f"tenants/{tenant}/decisions/{decision_id} does not exist")
        return decision_record(row)

    async def list_decisions(
        self, tenant: str, wanted: DecisionFilter, *, before: tuple[datetime, UUID] | None, limit: int
    ) -> list[DecisionRecord]:
        """Decisions of a tenant, newest first, after the place `before` in that order."""
        arguments: list[object] = [tenant]
        conditions = ["d.tenant = $1"]

        def where(condition: str, *values: object) -> None:
            places = [f"${len(arguments) + at}" for at in range(1, len(values) + 1)]
            arguments.extend(values)
            conditions.append(condition.format(*places))

        for column, value in (
            ("d.persona", wanted.persona),
            ("s.session", wanted.session),
            ("s.user_id", wanted.user),
            ("d.stage", wanted.stage),
            ("d.action", wanted.action),
            ("d.category", wanted.category),
        ):
            if value:
                where(f"{column} = {{}}", str(value))
        if wanted.begin is not None:
            where("d.created_at >= {}", wanted.begin)
        if wanted.end is not None:
            where("d.created_at < {}", wanted.end)
        if before is not None:
            where("(d.created_at, d.decision_id) < ({}, {})", *before)
        arguments.append(limit)
        rows = await self._database.fetch(
            f"{SELECT_DECISION} WHERE {' AND '.join(conditions)}"
            f" ORDER BY d.created_at DESC, d.decision_id DESC LIMIT ${len(arguments)}",
            *arguments,
        )
        return [decision_record(row) for row in rows]


def decision_record(row: asyncpg.Record | Mapping[str, Any]) -> DecisionRecord:
    """A row of `decisions` with the session's id and the turn's, NULL once they were erased."""
    return DecisionRecord(
        decision_id=row["decision_id"],
        tenant=row["tenant"],
        persona=row["persona"],
        session=row["session"] or "",
        turn=row["turn_id"] or "",
        decision=Decision.from_columns(row, orjson.loads(row["scores"]), orjson.loads(row["detail"])),
        context=PolicyContext(row["persona_type"], AgeBand(row["age_band"] or "unknown"), row["region_code"]),
        created_at=row["created_at"],
    )
