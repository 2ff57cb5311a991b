"""The transparency report of a tenant: decisions and appeals over a time, counted where they lie.

Everything comes from the decision records, the reviews and the audit log, by
aggregation over their indexes on tenant and time; no text is read. The terms are those
of the Digital Services Act (Regulation (EU) 2022/2065), articles 15(1) and 24(1).

A number is suppressed if fewer people than a threshold are behind it (k-anonymity:
Sweeney 2002), and where rows add up to a number that is told, as many more as it
takes that no suppressed one follows by subtraction (complementary cell suppression).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import asyncpg

from personae_runtime.config import ReportSettings
from personae_runtime.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from personae_runtime.ledger import audit
from personae_runtime.ledger.audit import AuditLog, Checkpoint, Inclusion
from personae_runtime.ledger.database import Connection, Database
from personae_runtime.ledger.sessions import turn_place
from personae_runtime.ledger.vault import ScopeErased, Vault
from personae_runtime.statistics import wilson

CORRECT, FALSE_POSITIVE, UNDECIDED = "CORRECT", "FALSE_POSITIVE", "UNDECIDED"

# Everybody who was erased counts as one person: who they were is not known any more, and one too few hides only more.
_PERIOD: Final = (
    "WITH period AS (SELECT d.*, coalesce(s.scope, '') AS person FROM decisions d LEFT JOIN sessions s USING"
    " (session_pk) WHERE d.tenant = $1 AND d.created_at >= $2 AND d.created_at < $3)"
)
_RESTRICTED: Final = "action <> 'allow'"
# Rows of one dimension partition the restrictions; a rule is the one that decided, which stands first.
_DIMENSIONS: Final = {
    "action": "action",
    "stage": "stage",
    "reason": "category || '/' || reason_code",
    "rule": "category || '/' || reason_code || '/' || coalesce(rules[1], '')",
    "region": "region_code",
    "age_band": "age_band",
    "persona_type": "persona_type",
}
# Counting a busy tenant's year takes longer than any statement of a turn may.
_TIMEOUT_S: Final = 600.0
_SEED: Final = "personae-sample/1"
# The draw of the sample, in SQL and for whoever draws it again: see `seed`.
_DRAW: Final = "sha256(convert_to({seed} || chr(10) || decision_id::text, 'UTF8')), decision_id"


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and how many people are behind it; `suppressed` ones have the value 0."""

    value: int
    people: int
    suppressed: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """Restrictions drawn at random, smallest hash first, and what reviewers said of them.

    Attributes:
        inclusions: of the decisions that the audit log has, all in the report's checkpoint.
        judgments: how many of each verdict there are.
    """

    seed: str
    decisions: tuple[UUID, ...]
    inclusions: Mapping[UUID, Inclusion]
    judgments: Mapping[str, int]

    @property
    def rate(self) -> tuple[float, float, float] | None:
        """Share of false positives among those judged either way, and its interval; None if none is judged."""
        wrong = self.judgments.get(FALSE_POSITIVE, 0)
        judged = wrong + self.judgments.get(CORRECT, 0)
        return (wrong / judged, *wilson(wrong, judged)) if judged else None


@dataclass(frozen=True, slots=True)
class TransparencyReport:
    """What `AuditService.GetTransparencyReport` gives; its message says what each part is.

    Attributes:
        tables: by dimension, the rows in order.
        automated_share, median_hours, sample: None where they would tell a suppressed number.
    """

    tenant: str
    begin: datetime
    end: datetime
    created_at: datetime
    min_people: int
    allowed: Figure
    restricted: Figure
    reviewed: Figure
    complaints: Figure
    crisis_referrals: Figure
    automated_share: float | None
    median_hours: float | None
    checkpoint: Checkpoint
    tables: Mapping[str, tuple[tuple[str, Figure], ...]] = field(default_factory=dict)
    sample: Sample | None = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """The next decision to judge; None when all are, and `message` empty unless it may be shown."""

    decision_id: UUID | None
    remaining: int
    message: str = ""


@dataclass(frozen=True, slots=True)
class Judgment:
    """What a reviewer said of a drawn decision: CORRECT, FALSE_POSITIVE or UNDECIDED."""

    verdict: str
    reason_code: str
    created_at: datetime


def hidden(cells: Mapping[str, Figure], min_people: int) -> set[str]:
    """Which of the cells, none of them 0, that add up to a number that is told are to be suppressed.

    Those with few people, and then the smallest others, until two cells are, with as many counts in them as people
    are asked for.
    """
    found = {key for key, cell in cells.items() if cell.people < min_people}
    if found:
        others = sorted((key for key in cells if key not in found), key=lambda key: (cells[key].value, key))
        for key in others:
            if len(found) >= 2 and sum(cells[one].value for one in found) >= min_people:
                break
            found.add(key)
    return found


def seed(tenant: str, begin: datetime, end: datetime) -> str:
    """What a sample is drawn by."""
    return f"{_SEED} {tenant} {audit.timestamp(begin)} {audit.timestamp(end)}"


class ReportLedger:
    """Reports, and the sample that reviewers judge for them."""

    def __init__(self, database: Database, vault: Vault, log: AuditLog, settings: ReportSettings) -> None:
        self._database = database
        self._vault = vault
        self._log = log
        self._settings = settings

    async def transparency(self, tenant: str, begin: datetime, end: datetime | None) -> TransparencyReport:
        """The report of a time, `end` excluded; None is now.

        Raises:
            InvalidArgument: the time is empty or not over.
        """
        now = datetime.now(UTC)
        end = _checked(begin, end, now)
        # One snapshot: rows and what they add up to are of the same moment.
        async with self._database.transaction() as connection:
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            span = (tenant, begin, end)
            tables, totals = await self._decisions(connection, span)
            crisis = _figure(
                await connection.fetchrow(
                    f"{_PERIOD} SELECT count(*) AS value, count(DISTINCT person) AS people FROM period"
                    " WHERE category = 'self_harm' AND detail->>'notice_code' <> ''",
                    *span,
                    timeout=_TIMEOUT_S,
                )
            )
            seen = await connection.fetch(
                f"{_PERIOD}, seen AS (SELECT person, EXISTS (SELECT FROM reviews r"
                "  WHERE r.decision_id = period.decision_id AND r.state = 'RESOLVED') AS reviewed"
                f" FROM period WHERE {_RESTRICTED})"
                " SELECT reviewed, count(*) AS value, count(DISTINCT person) AS people FROM seen GROUP BY reviewed",
                *span,
                timeout=_TIMEOUT_S,
            )
            outcomes, complaints, decided, median = await self._complaints(connection, span)
            drawn = await self._draw(connection, span)
            judgments = await self._judgments(connection, drawn)
        # After the counting, so that it covers all that was counted.
        checkpoint = await self._log.checkpoint(tenant)
        least = self._settings.min_people
        restricted = totals["restricted"]
        few = restricted.people < least
        told = {name: _told(rows, set(rows) if few else hidden(rows, least)) for name, rows in tables.items()}
        told["rule"] = _told(tables["rule"], _hidden_rules(tables["rule"], told["reason"], least))
        told["complaint_outcome"] = _told(
            outcomes, set(outcomes) if complaints.people < least else hidden(outcomes, least)
        )
        # Which of them a person has looked at, and which not, add up to the restrictions as well.
        halves = {"reviewed" if row["reviewed"] else "rest": _figure(row) for row in seen}
        looked = set(halves) if few else hidden(halves, least)
        reviewed = halves.get("reviewed", Figure(0, 0))
        if "reviewed" in looked:
            reviewed = Figure(0, reviewed.people, suppressed=True)
        share = None if looked or not restricted.value else 1 - reviewed.value / restricted.value
        # It is what reasons of self-harm add up to.
        if any(row.suppressed and key.startswith("self_harm/") for key, row in told["reason"]):
            crisis = Figure(0, crisis.people, suppressed=True)
        sample = None
        if not few:
            proofs = await self._log.inclusions(tenant, drawn, checkpoint.size)
            sample = Sample(seed(*span), tuple(drawn), proofs, judgments)
        return TransparencyReport(
            tenant=tenant,
            begin=begin,
            end=end,
            created_at=now,
            min_people=least,
            allowed=_single(totals["allowed"], least),
            restricted=_single(restricted, least),
            reviewed=reviewed,
            complaints=_single(complaints, least),
            crisis_referrals=_single(crisis, least),
            automated_share=share,
            median_hours=median if decided.people >= least else None,
            checkpoint=checkpoint,
            tables=told,
            sample=sample,
        )

    async def _decisions(
        self, connection: Connection, span: tuple[str, datetime, datetime]
    ) -> tuple[dict[str, dict[str, Figure]], dict[str, Figure]]:
        """Restrictions by dimension, and the totals of what was allowed and what restricted."""
        columns = ", ".join(f"{expression} AS {name}" for name, expression in _DIMENSIONS.items())
        names = ", ".join(_DIMENSIONS)
        sets = ", ".join(f"(restricted, {name})" for name in _DIMENSIONS)
        rows = await connection.fetch(
            # People's decisions of one kind are put together first: every set then sorts fewer rows.
            f"{_PERIOD}, kinds AS (SELECT person, {_RESTRICTED} AS restricted, {columns} FROM period),"
            f" alike AS (SELECT person, restricted, {names}, count(*) AS decisions FROM kinds"
            f"  GROUP BY person, restricted, {names})"
            f" SELECT restricted, {names}, grouping({names}) AS which,"
            " sum(decisions)::bigint AS value, count(DISTINCT person) AS people"
            f" FROM alike GROUP BY GROUPING SETS ((restricted), {sets})",
            *span,
            timeout=_TIMEOUT_S,
        )
        tables: dict[str, dict[str, Figure]] = {name: {} for name in _DIMENSIONS}
        totals = {"allowed": Figure(0, 0), "restricted": Figure(0, 0)}
        # grouping() sets a bit for each column that is not grouped by, the last column's the lowest.
        every = 2 ** len(_DIMENSIONS) - 1
        masks = {every - 2 ** (len(_DIMENSIONS) - 1 - at): name for at, name in enumerate(_DIMENSIONS)}
        for row in rows:
            if row["which"] == every:
                totals["restricted" if row["restricted"] else "allowed"] = _figure(row)
            elif row["restricted"]:
                name = masks[row["which"]]
                tables[name][row[name]] = _figure(row)
        return tables, totals

    async def _complaints(
        self, connection: Connection, span: tuple[str, datetime, datetime]
    ) -> tuple[dict[str, Figure], Figure, Figure, float | None]:
        """Appeals that came in the time: by outcome, all, the decided ones, and the median hours that those took."""
        rows = await connection.fetch(
            "WITH came AS (SELECT r.*, coalesce(s.scope, '') AS person,"
            " CASE WHEN r.state = 'RESOLVED' THEN r.outcome WHEN r.appeal_id IS NULL THEN 'WITHDRAWN' ELSE 'OPEN' END"
            "  AS kind"
            " FROM reviews r JOIN decisions d USING (decision_id) LEFT JOIN sessions s USING (session_pk)"
            " WHERE r.tenant = $1 AND r.created_at >= $2 AND r.created_at < $3"
            # What escalated was put before a reviewer without anybody's complaint.
            " AND (r.origin = 'APPEAL' OR r.appeal_id IS NOT NULL))"
            " SELECT kind, state = 'RESOLVED' AS decided, grouping(kind) AS which, count(*) AS value,"
            " count(DISTINCT person) AS people,"
            " (percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM resolved_at - created_at)) / 3600)"
            "  ::double precision AS hours"
            " FROM came GROUP BY GROUPING SETS ((kind, state = 'RESOLVED'), (state = 'RESOLVED'), ())",
            *span,
            timeout=_TIMEOUT_S,
        )
        outcomes: dict[str, Figure] = {}
        everything = decided = Figure(0, 0)
        median: float | None = None
        for row in rows:
            if row["which"] == 0:
                outcomes[row["kind"]] = _figure(row)
            elif row["decided"] is None:
                everything = _figure(row)
            elif row["decided"]:
                decided, median = _figure(row), row["hours"]
        return outcomes, everything, decided, median

    # -- the sample ----------------------------------------------------------

    async def _draw(self, connection: Connection, span: tuple[str, datetime, datetime]) -> list[UUID]:
        rows = await connection.fetch(
            f"SELECT decision_id FROM decisions WHERE tenant = $1 AND created_at >= $2 AND created_at < $3"
            f" AND {_RESTRICTED} ORDER BY {_DRAW.format(seed='$4::text')} LIMIT $5",
            *span,
            seed(*span),
            self._settings.sample_size,
            timeout=_TIMEOUT_S,
        )
        return [row["decision_id"] for row in rows]

    async def _judgments(self, source: Connection, drawn: Sequence[UUID]) -> dict[str, int]:
        rows = await source.fetch(
            "SELECT judgment, count(*) AS value FROM sample_judgments WHERE decision_id = ANY($1) GROUP BY judgment",
            list(drawn),
        )
        return {row["judgment"]: row["value"] for row in rows}

    async def next_sampled(self, tenant: str, begin: datetime, end: datetime, reviewer: str) -> Drawn:
        """The first decision of a time's sample that nobody has judged.

        Raises:
            InvalidArgument: the time is empty or not over.
        """
        _checked(begin, end, datetime.now(UTC))
        async with self._database.connection() as connection:
            drawn = await self._draw(connection, (tenant, begin, end))
        rows = await self._database.fetch("SELECT decision_id FROM sample_judgments WHERE decision_id = ANY($1)", drawn)
        judged = {row["decision_id"] for row in rows}
        left = [one for one in drawn if one not in judged]
        if not left:
            return Drawn(None, 0)
        message = await self._message(tenant, left[0], reviewer) if self._settings.show_messages else ""
        return Drawn(left[0], len(left), message)

    async def _message(self, tenant: str, decision_id: UUID, reviewer: str) -> str:
        """What the person wrote, if the decision was about that and it is still there; the look is logged."""
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(
                "SELECT s.scope, t.user_text, t.session_pk, t.turn_no FROM decisions d"
                " JOIN sessions s USING (session_pk) JOIN turns t USING (session_pk, turn_no)"
                " WHERE d.decision_id = $1 AND d.stage = 'input'",
                decision_id,
            )
            if row is None or row["user_text"] is None:
                return ""
            text = ""
            with suppress(ScopeErased):
                cipher = await self._vault.cipher_by_key(row["scope"], connection)
                text = cipher.open(row["user_text"], turn_place(row["session_pk"], row["turn_no"], "user")).decode()
            if text:
                body = {
                    "decision": str(decision_id),
                    "person": row["scope"],
                    "reviewer": self._vault.pseudonym("reviewer", tenant, reviewer),
                }
                await audit.append(connection, tenant, "sample_shown", body)
        return text

    async def judge(self, tenant: str, decision_id: UUID, reviewer: str, verdict: str, reason_code: str) -> Judgment:
        """Record what a reviewer says of a decision; the same again changes nothing.

        Raises:
            NotFound: there is no such decision.
            FailedPrecondition: it restricted nothing (reason DECISION_NOT_SAMPLED).
            AlreadyExists: it is judged otherwise, or by somebody else (reason DECISION_JUDGED).
        """
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(
                "SELECT action FROM decisions WHERE tenant = $1 AND decision_id = $2", tenant, decision_id
            )
            if row is None:
                raise NotFound(f"tenants/{tenant}/decisions/{decision_id} does not exist")
            if row["action"] == "allow":
                raise FailedPrecondition(
                    "the decision restricted nothing, so no report draws it", reason="DECISION_NOT_SAMPLED"
                )
            made = await connection.fetchval(
                "INSERT INTO sample_judgments (decision_id, tenant, reviewer, judgment, reason_code)"
                " VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING RETURNING true",
                decision_id,
                tenant,
                reviewer,
                verdict,
                reason_code,
            )
            found = await connection.fetchrow("SELECT * FROM sample_judgments WHERE decision_id = $1", decision_id)
            assert found is not None
            if made is None and (found["reviewer"], found["judgment"], found["reason_code"]) != (
                reviewer,
                verdict,
                reason_code,
            ):
                raise AlreadyExists("the decision is judged", reason="DECISION_JUDGED")
            if made:
                body = {
                    "decision": str(decision_id),
                    "reason_code": reason_code,
                    "reviewer": self._vault.pseudonym("reviewer", tenant, reviewer),
                    "verdict": verdict,
                }
                await audit.append(connection, tenant, "sample_judged", body)
        return Judgment(found["judgment"], found["reason_code"], found["created_at"])


def _checked(begin: datetime, end: datetime | None, now: datetime) -> datetime:
    end = now if end is None else end
    if end > now:
        raise InvalidArgument("end_time is in the future", violations=(("end_time", "a time that is over"),))
    if begin >= end:
        raise InvalidArgument("start_time is not before end_time", violations=(("start_time", "before end_time"),))
    return end


def _figure(row: asyncpg.Record | None) -> Figure:
    assert row is not None
    return Figure(row["value"], row["people"])


def _single(figure: Figure, min_people: int) -> Figure:
    # That nothing happened tells of nobody.
    return Figure(0, figure.people, suppressed=True) if figure.value and figure.people < min_people else figure


def _hidden_rules(rules: Mapping[str, Figure], reasons: Sequence[tuple[str, Figure]], min_people: int) -> set[str]:
    """Rules add up to their reasons, and those to the restrictions."""
    found: set[str] = set()
    for reason, figure in reasons:
        own = {key: cell for key, cell in rules.items() if key.rpartition("/")[0] == reason}
        found |= set(own) if figure.suppressed else hidden(own, min_people)
    return found


def _told(cells: Mapping[str, Figure], gone: set[str]) -> tuple[tuple[str, Figure], ...]:
    told = [(key, Figure(0, cell.people, suppressed=True) if key in gone else cell) for key, cell in cells.items()]
    return tuple(sorted(told, key=lambda row: (row[1].suppressed, -row[1].value, row[0])))
