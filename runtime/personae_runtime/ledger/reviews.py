"""Appeals and reviews in the ledger.

    appeal ──► review OPEN ──lease──► verdict ─┬─ enough, and of one mind ──► RESOLVED
                  ▲                            └─ another reviewer is wanted ─┐
                  └───────────────────────────────────────────────────────────┘

A decision that escalates opens a review without an appeal, which comes first of all; `ledger.protocols` writes it.
A review wants one reviewer, or two by a deterministic sample; two who differ
want a third, who decides. Nobody reviews a decision twice, nor an appeal that
they filed. What the person wrote and is told lies sealed under their scope's key
in the appeal, which an erasure removes; of the review stays what is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

import asyncpg

from personae_runtime.config import ReviewSettings
from personae_runtime.errors import AlreadyExists, FailedPrecondition, NotFound
from personae_runtime.ledger import audit
from personae_runtime.ledger.database import Connection, Database
from personae_runtime.ledger.decisions import SELECT_DECISION, decision_record
from personae_runtime.ledger.personas import Mutation, once
from personae_runtime.ledger.protocols import people_met
from personae_runtime.ledger.sessions import turn_place
from personae_runtime.ledger.vault import ScopeErased, Vault
from personae_runtime.policy.decision import Action, DecisionRecord, Stage
from personae_runtime.policy.draft import Overturned
from personae_runtime.policy.priority import HIGH, MEDIUM, Priority, priority

UPHOLD, OVERTURN, MODIFY = "UPHOLD", "OVERTURN", "MODIFY"
# An appeal that was erased, or an escalated decision whose person was: nobody is left to decide for.
_STATE: Final = (
    "(CASE WHEN r.state = 'OPEN' AND r.appeal_id IS NULL AND (r.origin = 'APPEAL' OR NOT EXISTS (SELECT FROM"
    " decisions d JOIN sessions s USING (session_pk) WHERE d.decision_id = r.decision_id))"
    " THEN 'WITHDRAWN' ELSE r.state END)"
)
_REVIEW: Final = (
    f'SELECT r.*, {_STATE} AS "is",'
    " r.state = 'OPEN' AND r.due_at < now() AS overdue, r.lease_expires_at > now() AS held FROM reviews r"
)


@dataclass(frozen=True, slots=True)
class Appeal:
    """What a person asked for and was told; `state` is OPEN or RESOLVED, times are aware UTC."""

    appeal_id: UUID
    tenant: str
    decision_id: UUID
    statement: str
    state: str
    outcome: str
    reason_code: str
    reasons: str
    created_at: datetime
    due_at: datetime
    resolved_at: datetime | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One reviewer's decision."""

    reviewer: str
    outcome: str
    reason_code: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Review:
    """A review.

    Attributes:
        state: OPEN, RESOLVED, or WITHDRAWN when the appeal, or who it was about, was erased before.
        escalated: the decision itself called for a review; there is no appeal.
        reviewer, lease_expires_at: who holds it; empty and None if nobody does.
        statement, judged_text: for whoever holds it.
        verdicts: once it is resolved, in order.
    """

    review_id: UUID
    tenant: str
    decision_id: UUID
    appeal_id: UUID | None
    state: str
    priority: Priority
    created_at: datetime
    due_at: datetime
    overdue: bool
    reviewer: str
    lease_expires_at: datetime | None
    outcome: str
    reason_code: str
    resolved_at: datetime | None
    escalated: bool = False
    statement: str = ""
    judged_text: str = ""
    verdicts: tuple[Verdict, ...] = ()


def settled(wanted: int, outcomes: Sequence[str]) -> str | None:
    """The outcome that verdicts lead to; None while another is wanted.

    Args:
        wanted: 1, or 2 for a double review.
        outcomes: in order; a third decides where two differ.
    """
    if len(outcomes) < wanted:
        return None
    if wanted >= 2 and len(outcomes) == 2 and outcomes[0] != outcomes[1]:
        return None
    return outcomes[-1]


class ReviewLedger:
    """Appeals, the queue, and what reviewers decide."""

    def __init__(self, database: Database, vault: Vault, settings: ReviewSettings) -> None:
        self._database = database
        self._vault = vault
        self._settings = settings

    def appealable_until(self, record: DecisionRecord) -> datetime | None:
        """When the time for an appeal ends; None for what can't be appealed."""
        if record.decision.action is Action.ALLOW or not record.session:
            return None
        return record.created_at + timedelta(days=self._settings.appeal_days)

    def is_double(self, decision_id: UUID) -> bool:
        """Whether two people review this decision: a keyed hash of its id, so that no reviewer can tell."""
        drawn = int.from_bytes(self._vault.body_mac("double_review", str(decision_id))[:8], "big")
        return drawn < self._settings.double_share * 2**64

    async def appeal(
        self,
        tenant: str,
        decision_id: UUID,
        *,
        user: str,
        filed_by: str,
        statement: str,
        judged_text: str,
        share_message: bool,
        allow_test: bool,
        mutation: Mutation,
    ) -> Appeal:
        """Open an appeal and its review; a repeated mutation returns the first.

        Args:
            user: only a decision of this user's sessions; empty for a service.

        Raises:
            NotFound: there is no such decision, or it is not that user's.
            FailedPrecondition: nothing was restricted, or the time is over, or the person was erased.
            AlreadyExists: an appeal is open (reason APPEAL_OPEN).
        """
        async with self._database.transaction() as connection:

            async def act() -> str:
                row = await connection.fetchrow(
                    f"{SELECT_DECISION} WHERE d.tenant = $1 AND d.decision_id = $2 AND ($3 = '' OR s.user_id = $3)"
                    " FOR UPDATE OF d",
                    tenant,
                    decision_id,
                    user,
                )
                if row is None:
                    raise NotFound(f"tenants/{tenant}/decisions/{decision_id} does not exist")
                record = decision_record(row)
                self._require_appealable(record)
                found = await connection.fetchval(
                    "SELECT appeal_id FROM appeals WHERE decision_id = $1 AND state = 'OPEN'", decision_id
                )
                if found is not None:
                    raise AlreadyExists(
                        "an appeal of this decision is open",
                        reason="APPEAL_OPEN",
                        metadata={"appeal": f"tenants/{tenant}/appeals/{found}"},
                    )
                text = judged_text
                if not text and share_message and record.decision.stage is Stage.INPUT:
                    text = await self._message(connection, row)
                return await self._open(connection, row, record, filed_by, statement, text, allow_test)

            appeal_id = UUID(await once(connection, tenant, mutation, act))
        return await self.get_appeal(tenant, appeal_id)

    def _require_appealable(self, record: DecisionRecord) -> None:
        until = self.appealable_until(record)
        if until is None:
            raise FailedPrecondition(
                "the decision restricted nothing, or its person was erased", reason="DECISION_NOT_APPEALABLE"
            )
        if until <= datetime.now(UTC):
            raise FailedPrecondition(
                f"a decision can be appealed for {self._settings.appeal_days} days",
                reason="APPEAL_TOO_LATE",
                violations=(("decision", f"until {until.isoformat(timespec='seconds')}"),),
            )

    async def _message(self, connection: Connection, row: asyncpg.Record) -> str:
        """The person's own message of the turn; empty if it is gone."""
        sealed = await connection.fetchval(
            "SELECT user_text FROM turns WHERE session_pk = $1 AND turn_no = $2", row["session_pk"], row["turn_no"]
        )
        if sealed is None:
            return ""
        cipher = await self._vault.cipher_by_key(row["scope"], connection)
        return cipher.open(sealed, turn_place(row["session_pk"], row["turn_no"], "user")).decode()

    async def _open(
        self,
        connection: Connection,
        row: asyncpg.Record,
        record: DecisionRecord,
        filed_by: str,
        statement: str,
        text: str,
        allow_test: bool,
    ) -> str:
        rank = priority(record.decision, await people_met(connection, record.tenant, record.decision.reason_code))
        due_at = datetime.now(UTC) + timedelta(hours=self._due_hours(rank.severity))
        appeal_id, review_id = uuid4(), uuid4()
        cipher = await self._vault.cipher_by_key(row["scope"], connection)
        await self._vault.hold(connection, cipher)
        await connection.execute(
            "INSERT INTO appeals (appeal_id, tenant, decision_id, scope, filed_by, statement, judged_text, due_at,"
            " allow_test) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            appeal_id,
            record.tenant,
            record.decision_id,
            row["scope"],
            filed_by,
            cipher.seal(statement.encode(), _place(appeal_id, "statement")),
            cipher.seal(text.encode(), _place(appeal_id, "judged_text")),
            due_at,
            allow_test,
        )
        await connection.execute(
            "INSERT INTO reviews (review_id, tenant, decision_id, appeal_id, severity, reach, uncertainty, priority,"
            " wanted, due_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
            review_id,
            record.tenant,
            record.decision_id,
            appeal_id,
            rank.severity,
            rank.reach,
            rank.uncertainty,
            rank.value,
            2 if self.is_double(record.decision_id) else 1,
            due_at,
        )
        body = {
            "appeal": str(appeal_id),
            "decision": str(record.decision_id),
            "person": row["scope"],
            "priority_millionths": audit.millionths(rank.value),
            "review": str(review_id),
        }
        await audit.append(connection, record.tenant, "appeal", body, appeal_id)
        return str(appeal_id)

    def _due_hours(self, severity: float) -> float:
        settings = self._settings
        if severity >= HIGH:
            return settings.due_hours_high
        return settings.due_hours_medium if severity >= MEDIUM else settings.due_hours_low

    async def get_appeal(self, tenant: str, appeal_id: UUID, *, user: str = "") -> Appeal:
        """An appeal.

        Args:
            user: only of a decision about this user.

        Raises:
            NotFound: there is none, it is another user's, or it was erased.
        """
        row = await self._database.fetchrow(
            "SELECT a.*, s.user_id FROM appeals a JOIN decisions d USING (decision_id)"
            " JOIN sessions s USING (session_pk) WHERE a.tenant = $1 AND a.appeal_id = $2"
            " AND ($3 = '' OR s.user_id = $3)",
            tenant,
            appeal_id,
            user,
        )
        if row is None:
            raise NotFound(f"tenants/{tenant}/appeals/{appeal_id} does not exist")
        try:
            cipher = await self._vault.cipher_by_key(row["scope"])
            statement = cipher.open(row["statement"], _place(appeal_id, "statement")).decode()
            reasons = (
                "" if row["reasons"] is None else cipher.open(row["reasons"], _place(appeal_id, "reasons")).decode()
            )
        except ScopeErased:
            raise NotFound(f"tenants/{tenant}/appeals/{appeal_id} does not exist") from None
        return Appeal(
            appeal_id=appeal_id,
            tenant=tenant,
            decision_id=row["decision_id"],
            statement=statement,
            state=row["state"],
            outcome=row["outcome"],
            reason_code=row["reason_code"],
            reasons=reasons,
            created_at=row["created_at"],
            due_at=row["due_at"],
            resolved_at=row["resolved_at"],
        )

    # -- the queue -----------------------------------------------------------

    async def lease(self, tenant: str, reviewer: str, review_id: UUID | None = None) -> Review | None:
        """Take the review that comes first for a reviewer, or a named one; None if there is none for them.

        What they hold already comes first of all, with its time renewed; then what
        was escalated. Overdue ones come before the others.

        Raises:
            NotFound: there is no review of that name.
            FailedPrecondition: the named one is not theirs to take now (reason REVIEW_NOT_AVAILABLE).
        """
        async with self._database.transaction() as connection:
            row = await self._lease(connection, tenant, reviewer, review_id)
            if row is not None and not row["renewed"]:
                body = {
                    "decision": str(row["decision_id"]),
                    "review": str(row["review_id"]),
                    "reviewer": self._vault.pseudonym("reviewer", tenant, reviewer),
                }
                await audit.append(connection, tenant, "review_leased", body)
        if row is None:
            if review_id is None:
                return None
            await self.get(tenant, review_id)
            raise FailedPrecondition(
                "the review is resolved, withdrawn or with somebody else, or you filed the appeal or have reviewed"
                " the decision before",
                reason="REVIEW_NOT_AVAILABLE",
            )
        review = await self.get(tenant, row["review_id"], reader=reviewer)
        return review if review.reviewer == reviewer else None

    async def _lease(
        self, connection: Connection, tenant: str, reviewer: str, review_id: UUID | None
    ) -> asyncpg.Record | None:
        return await connection.fetchrow(
            "WITH next AS ("
            " SELECT r.review_id, (r.leased_by = $2 AND r.lease_expires_at > now()) IS TRUE AS renewed"
            f" FROM reviews r LEFT JOIN appeals a USING (appeal_id) WHERE r.tenant = $1 AND {_STATE} = 'OPEN'"
            " AND ($4::uuid IS NULL OR r.review_id = $4)"
            " AND (r.lease_expires_at IS NULL OR r.lease_expires_at <= now() OR r.leased_by = $2)"
            " AND a.filed_by IS DISTINCT FROM $2 AND NOT EXISTS (SELECT FROM review_verdicts v"
            "  WHERE v.decision_id = r.decision_id AND v.reviewer = $2)"
            " ORDER BY renewed DESC, r.origin = 'ESCALATION' DESC, r.due_at < now() DESC,"
            "  r.priority DESC, r.created_at, r.review_id LIMIT 1 FOR UPDATE OF r SKIP LOCKED)"
            " UPDATE reviews r SET leased_by = $2, lease_expires_at = now() + $3::interval FROM next"
            " WHERE r.review_id = next.review_id RETURNING r.review_id, r.decision_id, next.renewed",
            tenant,
            reviewer,
            timedelta(seconds=self._settings.lease_s),
            review_id,
        )

    async def get(self, tenant: str, review_id: UUID, *, reader: str = "") -> Review:
        """A review.

        Args:
            reader: gets what the person wrote if they hold it.

        Raises:
            NotFound: there is none.
        """
        row = await self._database.fetchrow(f"{_REVIEW} WHERE r.tenant = $1 AND r.review_id = $2", tenant, review_id)
        if row is None:
            raise NotFound(f"tenants/{tenant}/reviews/{review_id} does not exist")
        verdicts: list[asyncpg.Record] = []
        if row["state"] == "RESOLVED":
            verdicts = await self._verdicts(self._database, [review_id])
        statement = text = ""
        if reader and row["state"] == "OPEN" and row["held"] and row["leased_by"] == reader:
            with suppress(ScopeErased):
                statement, text = await self._words(row["appeal_id"])
        return _review(row, verdicts, statement, text)

    async def _words(self, appeal_id: UUID | None) -> tuple[str, str]:
        row = await self._database.fetchrow(
            "SELECT scope, statement, judged_text FROM appeals WHERE appeal_id = $1", appeal_id
        )
        if row is None or appeal_id is None:
            return "", ""
        cipher = await self._vault.cipher_by_key(row["scope"])
        return (
            cipher.open(row["statement"], _place(appeal_id, "statement")).decode(),
            cipher.open(row["judged_text"], _place(appeal_id, "judged_text")).decode(),
        )

    async def _verdicts(self, source: Connection | Database, review_ids: list[UUID]) -> list[asyncpg.Record]:
        return await source.fetch(
            "SELECT * FROM review_verdicts WHERE review_id = ANY($1) ORDER BY review_id, created_at, reviewer",
            review_ids,
        )

    async def resolve(
        self,
        tenant: str,
        review_id: UUID,
        *,
        reviewer: str,
        outcome: str,
        reason_code: str,
        note: str,
        mutation: Mutation,
    ) -> Review:
        """Record the verdict of whoever holds a review, which may resolve it; a repeated mutation changes nothing.

        Args:
            outcome: UPHOLD, OVERTURN or MODIFY.
            note: what the person is told if this verdict resolves the review.

        Raises:
            NotFound: there is no such review.
            FailedPrecondition: the reviewer does not hold it (any more) (reason REVIEW_NOT_LEASED).
            ErasureInProgress: the person is being erased.
        """
        async with self._database.transaction() as connection:

            async def act() -> str:
                row = await connection.fetchrow(
                    f"{_REVIEW} WHERE r.tenant = $1 AND r.review_id = $2 FOR UPDATE OF r", tenant, review_id
                )
                if row is None:
                    raise NotFound(f"tenants/{tenant}/reviews/{review_id} does not exist")
                mine = row["leased_by"] == reviewer and row["held"]
                if row["is"] != "OPEN" or not mine:
                    raise FailedPrecondition(
                        "the review is not yours, or not any more: lease it first", reason="REVIEW_NOT_LEASED"
                    )
                await connection.execute(
                    "INSERT INTO review_verdicts (review_id, decision_id, reviewer, outcome, reason_code, created_at)"
                    " VALUES ($1, $2, $3, $4, $5, clock_timestamp())",
                    review_id,
                    row["decision_id"],
                    reviewer,
                    outcome,
                    reason_code,
                )
                body = {
                    "decision": str(row["decision_id"]),
                    "outcome": outcome,
                    "reason_code": reason_code,
                    "review": str(review_id),
                    "reviewer": self._vault.pseudonym("reviewer", tenant, reviewer),
                }
                await audit.append(connection, tenant, "review_verdict", body)
                given = await self._verdicts(connection, [review_id])
                final = settled(row["wanted"], [one["outcome"] for one in given])
                await connection.execute(
                    "UPDATE reviews SET leased_by = '', lease_expires_at = NULL, wanted = greatest(wanted, $2)"
                    " WHERE review_id = $1",
                    review_id,
                    len(given) if final is not None else len(given) + 1,
                )
                if final is not None:
                    await self._finish(connection, row, final, reason_code, note)
                return str(review_id)

            await once(connection, tenant, mutation, act)
        return await self.get(tenant, review_id)

    async def _finish(
        self, connection: Connection, row: asyncpg.Record, outcome: str, reason_code: str, note: str
    ) -> None:
        appeal_id = row["appeal_id"]
        scope = await connection.fetchval(
            "SELECT coalesce((SELECT scope FROM appeals WHERE appeal_id = $1), (SELECT s.scope FROM decisions d"
            " JOIN sessions s USING (session_pk) WHERE d.decision_id = $2))",
            appeal_id,
            row["decision_id"],
        )
        try:
            cipher = await self._vault.cipher_by_key(scope, connection)
        except ScopeErased:
            raise FailedPrecondition("the appeal was erased", reason="REVIEW_NOT_LEASED") from None
        await self._vault.hold(connection, cipher)
        await connection.execute(
            "UPDATE reviews SET state = 'RESOLVED', outcome = $2, reason_code = $3, resolved_at = now()"
            " WHERE review_id = $1",
            row["review_id"],
            outcome,
            reason_code,
        )
        if appeal_id is not None:
            await connection.execute(
                "UPDATE appeals SET state = 'RESOLVED', outcome = $2, reason_code = $3, reasons = $4,"
                " resolved_at = now() WHERE appeal_id = $1",
                appeal_id,
                outcome,
                reason_code,
                cipher.seal(note.encode(), _place(appeal_id, "reasons")),
            )
        body = {
            **({} if appeal_id is None else {"appeal": str(appeal_id)}),
            "decision": str(row["decision_id"]),
            "outcome": outcome,
            "person": scope,
            "reason_code": reason_code,
            "review": str(row["review_id"]),
        }
        await audit.append(connection, row["tenant"], "review_resolved", body, row["review_id"])

    # -- lists ---------------------------------------------------------------

    async def list_reviews(
        self,
        tenant: str,
        *,
        state: str = "",
        overdue: bool = False,
        after: tuple[bool, bool, float, UUID] | None,
        limit: int,
    ) -> list[Review]:
        """Reviews of a tenant: open ones first, those escalated before the others, by priority; then the rest.

        Args:
            state: OPEN, RESOLVED or WITHDRAWN; empty is all.
            after: the place of the last one seen, as `review_place` gives it.
        """
        place = after or (False, False, float("-inf"), UUID(int=0))
        rows = await self._database.fetch(
            f"{_REVIEW} WHERE r.tenant = $1 AND ($2 = '' OR {_STATE} = $2)"
            f" AND (NOT $3 OR ({_STATE} = 'OPEN' AND r.due_at < now()))"
            f" AND ({_STATE} <> 'OPEN', r.origin <> 'ESCALATION', -r.priority, r.review_id) > ($4, $5, $6, $7)"
            f" ORDER BY {_STATE} <> 'OPEN', r.origin <> 'ESCALATION', -r.priority, r.review_id LIMIT $8",
            tenant,
            state,
            overdue,
            *place,
            limit,
        )
        resolved = [row["review_id"] for row in rows if row["state"] == "RESOLVED"]
        verdicts = await self._verdicts(self._database, resolved) if resolved else []
        return [_review(row, [one for one in verdicts if one["review_id"] == row["review_id"]]) for row in rows]

    async def overturned(self, tenant: str, *, limit: int = 1_000) -> list[Overturned]:
        """Decisions that were overturned, the newest outcome first, with their text where a test of it is allowed."""
        rows = await self._database.fetch(
            "SELECT d.*, s.session, t.turn_id, r.reason_code AS given, a.appeal_id, a.scope AS sealed_by,"
            " CASE WHEN a.allow_test THEN a.judged_text END AS sealed"
            " FROM reviews r JOIN decisions d USING (decision_id) LEFT JOIN sessions s USING (session_pk)"
            " LEFT JOIN turns t USING (session_pk, turn_no) LEFT JOIN appeals a ON a.appeal_id = r.appeal_id"
            " WHERE r.tenant = $1 AND r.outcome = 'OVERTURN' ORDER BY r.resolved_at DESC, r.review_id LIMIT $2",
            tenant,
            limit,
        )
        found: list[Overturned] = []
        for row in rows:
            text = ""
            if row["sealed"] is not None:
                with suppress(ScopeErased):
                    cipher = await self._vault.cipher_by_key(row["sealed_by"])
                    text = cipher.open(row["sealed"], _place(row["appeal_id"], "judged_text")).decode()
            found.append(Overturned(decision_record(row), text, row["given"]))
        return found

    async def counts(self, tenant: str = "") -> tuple[int, int]:
        """Open reviews, and those of them that are overdue; of every tenant if none is named."""
        row = await self._database.fetchrow(
            "SELECT count(*) AS open, count(*) FILTER (WHERE r.due_at < now()) AS overdue FROM reviews r"
            f" WHERE {_STATE} = 'OPEN' AND ($1 = '' OR r.tenant = $1)",
            tenant,
        )
        assert row is not None
        return row["open"], row["overdue"]


def review_place(review: Review) -> tuple[bool, bool, float, UUID]:
    """Where a review stands in `ReviewLedger.list_reviews`: not open, not escalated, its priority negated, its id."""
    return review.state != "OPEN", not review.escalated, -review.priority.value, review.review_id


def _place(appeal_id: UUID, column: str) -> str:
    return f"appeal/{appeal_id}/{column}"


def _review(row: asyncpg.Record, verdicts: Sequence[asyncpg.Record], statement: str = "", text: str = "") -> Review:
    withdrawn = row["is"] == "WITHDRAWN"
    held = bool(row["held"]) and row["state"] == "OPEN" and not withdrawn
    return Review(
        review_id=row["review_id"],
        tenant=row["tenant"],
        decision_id=row["decision_id"],
        appeal_id=row["appeal_id"],
        state=row["is"],
        priority=Priority(row["severity"], row["reach"], row["uncertainty"]),
        created_at=row["created_at"],
        due_at=row["due_at"],
        overdue=row["overdue"] and not withdrawn,
        reviewer=row["leased_by"] if held else "",
        lease_expires_at=row["lease_expires_at"] if held else None,
        outcome=row["outcome"],
        reason_code=row["reason_code"],
        resolved_at=row["resolved_at"],
        escalated=row["origin"] == "ESCALATION",
        statement=statement,
        judged_text=text,
        verdicts=tuple(Verdict(v["reviewer"], v["outcome"], v["reason_code"], v["created_at"]) for v in verdicts),
    )
