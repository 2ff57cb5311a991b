"""Published bundles and their rollout, in the ledger; and what keeps a host's policies as it says.

A rollout is a row for each state, the newest in force. Rows get their numbers
under one lock, in the order of their commits, so that whoever has seen one has
seen all before. Each change bumps the control epoch, by which every host hears
of it; each host then checks signature and tests for itself, and goes on with
what it had if one fails.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Final

import asyncpg
import orjson
import structlog

from personae_runtime.errors import (
    Aborted,
    ConfigError,
    FailedPrecondition,
    InvalidArgument,
    LedgerUnavailable,
    NotFound,
)
from personae_runtime.ledger import audit
from personae_runtime.ledger.control import bump
from personae_runtime.ledger.database import Connection, Database
from personae_runtime.ledger.decisions import decision_record
from personae_runtime.ledger.personas import Mutation, PersonaLedger, once
from personae_runtime.ledger.sessions import turn_place
from personae_runtime.ledger.vault import ScopeErased, Vault
from personae_runtime.names import Name
from personae_runtime.personas.definition import VerifiedClaim
from personae_runtime.policy.bundle import open_bundle
from personae_runtime.policy.claims import holding
from personae_runtime.policy.decision import AgeBand, PolicyContext, Stage
from personae_runtime.policy.policy import Policy, rule_tester
from personae_runtime.policy.replay import Case
from personae_runtime.policy.rollout import InForce, Policies, ShadowDecision, rule_ids, scores_of
from personae_runtime.policy.signing import Trust

_log = structlog.get_logger(__name__)

SHADOW, PERCENTAGE, FULL = "SHADOW", "PERCENTAGE", "FULL"
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('personae rollouts', 0))"
_POLL_S: Final = 5.0
_FORGET_EVERY_S: Final = 3600.0
SHADOW_DAYS: Final = 30
"""How long it is kept what candidates would have decided."""
_LOADED: Final = 32
_MESSAGE_CHARS: Final = 1000


@dataclass(frozen=True, slots=True)
class BundleRow:
    """A published bundle.

    Attributes:
        bundle: SHA-256 of the content, its first 32 hex digits.
        version: as decisions record it, by the host that published it.
        key_id: whose signature; "" if there is none.
    """

    tenant: str
    bundle: str
    version: str
    content: bytes
    signature: bytes | None
    key_id: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class RolloutRow:
    """A state of a tenant's rules.

    Attributes:
        rollout: its number; 0 before the first change.
        stable: the bundle of all sessions that the candidate does not judge; "" is the host's own.
        candidate: "" if there is none.
        percent: of sessions that the candidate judges; 0 is shadow.
        reversible: whether a rollback leads anywhere.
    """

    tenant: str
    rollout: int = 0
    stable: str = ""
    candidate: str = ""
    percent: int = 0
    reversible: bool = False
    changed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ShadowRow:
    """What a candidate would have decided, beside what was decided."""

    shadow: int
    bundle: str
    persona: str
    stage: str
    live_version: str
    live_action: str
    live_reason_code: str
    live_rules: tuple[str, ...]
    action: str
    reason_code: str
    rules: tuple[str, ...]
    differs: bool
    created_at: datetime


class BundleLedger:
    """Bundles, rollouts, and what candidates would have decided."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    # -- bundles -------------------------------------------------------------

    async def publish(
        self,
        tenant: str,
        content: bytes,
        signature: bytes | None,
        *,
        version: str,
        key_id: str,
        by: str,
        mutation: Mutation,
    ) -> BundleRow:
        """Keep a bundle, which must be known to load; the same content is the same bundle.

        Args:
            by: the caller's key, for the audit log by keyed hash.
        """
        bundle = bundle_id(content)
        async with self._database.transaction() as connection:

            async def act() -> str:
                made = await connection.fetchval(
                    "INSERT INTO bundles (tenant, bundle, version, content, signature, key_id, published_by)"
                    " VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING RETURNING true",
                    tenant,
                    bundle,
                    version,
                    content,
                    signature,
                    key_id,
                    by,
                )
                if made:
                    body = {"bundle": bundle, "by": self._who(tenant, by), "key": key_id, "version": version}
                    await audit.append(connection, tenant, "bundle_published", body)
                elif signature is not None:
                    # Published before without a signature, or with another key's: by this one it loads, too.
                    await connection.execute(
                        "UPDATE bundles SET signature = $3, key_id = $4 WHERE tenant = $1 AND bundle = $2",
                        tenant,
                        bundle,
                        signature,
                        key_id,
                    )
                return bundle

            await once(connection, tenant, mutation, act)
        return await self.get(tenant, bundle)

    async def get(self, tenant: str, bundle: str) -> BundleRow:
        """One bundle.

        Raises:
            NotFound: the tenant has none of that id.
        """
        row = await self._database.fetchrow("SELECT * FROM bundles WHERE tenant = $1 AND bundle = $2", tenant, bundle)
        if row is None:
            raise NotFound(f"tenants/{tenant}/bundles/{bundle} does not exist")
        return _bundle(row)

    async def list_bundles(self, tenant: str, *, before: tuple[datetime, str] | None, limit: int) -> list[BundleRow]:
        """Bundles of a tenant, newest first, after the place `before` in that order."""
        at, bundle = before or (None, "")
        rows = await self._database.fetch(
            "SELECT * FROM bundles WHERE tenant = $1 AND ($2::timestamptz IS NULL OR (created_at, bundle) < ($2, $3))"
            " ORDER BY created_at DESC, bundle DESC LIMIT $4",
            tenant,
            at,
            bundle,
            limit,
        )
        return [_bundle(row) for row in rows]

    # -- rollouts ------------------------------------------------------------

    async def rollout(self, tenant: str) -> RolloutRow:
        """What is in force."""
        row = await self._database.fetchrow(
            "SELECT * FROM rollouts WHERE tenant = $1 ORDER BY rollout DESC LIMIT 1", tenant
        )
        return RolloutRow(tenant) if row is None else _rollout(row)

    async def changed(self, after: int) -> list[RolloutRow]:
        """The newest state of each tenant that changed after a state."""
        rows = await self._database.fetch(
            "SELECT DISTINCT ON (tenant) * FROM rollouts WHERE rollout > $1 ORDER BY tenant, rollout DESC", after
        )
        return [_rollout(row) for row in rows]

    async def set_rollout(
        self, tenant: str, bundle: str, stage: str, percent: int, *, etag: str, by: str, mutation: Mutation
    ) -> RolloutRow:
        """Let a bundle watch (SHADOW), judge a share of sessions (PERCENTAGE) or all of them (FULL).

        Args:
            bundle: "" is the host's own, for FULL only.
            percent: 1 to 99, at PERCENTAGE.
            etag: of the state that was read; empty asks for none.

        Raises:
            NotFound: the tenant has no such bundle.
            InvalidArgument: stage, bundle and percent don't go together.
            FailedPrecondition: it is in force for all sessions already (reason BUNDLE_IN_FORCE).
            Aborted: the state changed since it was read (reason ETAG_MISMATCH).
        """
        if stage == PERCENTAGE and not 1 <= percent <= 99:
            raise InvalidArgument("a percentage is 1 to 99", violations=(("percent", "1 to 99; FULL is all of them"),))
        if stage != PERCENTAGE and percent:
            raise InvalidArgument("only PERCENTAGE has a percent", violations=(("percent", "0"),))
        if not bundle and stage != FULL:
            raise InvalidArgument(
                "the host's own bundle judges all sessions or none", violations=(("stage", "ROLLOUT_STAGE_FULL"),)
            )
        if bundle:
            await self.get(tenant, bundle)
        async with self._database.transaction() as connection:

            async def act() -> str:
                now = await self._current(connection, tenant, etag)
                if bundle == now.stable and (stage != FULL or not now.candidate):
                    raise FailedPrecondition("the bundle judges all sessions already", reason="BUNDLE_IN_FORCE")
                if stage == FULL:
                    # What runs stays its own way back, where only a candidate is dropped.
                    if bundle == now.stable:
                        previous = await self._previous(connection, now)
                    else:
                        previous = now.rollout or await self._insert(connection, tenant, "", "", 0, None, by)
                    made = await self._insert(connection, tenant, bundle, "", 0, previous, by)
                else:
                    previous = await self._previous(connection, now)
                    made = await self._insert(connection, tenant, now.stable, bundle, percent, previous, by)
                body = {
                    "bundle": bundle,
                    "by": self._who(tenant, by),
                    "percent": percent,
                    "replaced": now.candidate or now.stable,
                    "stage": stage,
                }
                await audit.append(connection, tenant, "bundle_rollout", body)
                await bump(connection)
                return str(made)

            await once(connection, tenant, mutation, act)
        return await self.rollout(tenant)

    async def rollback(self, tenant: str, *, etag: str, by: str, mutation: Mutation) -> RolloutRow:
        """Drop the candidate; where there is none, go back to the bundle before.

        Raises:
            FailedPrecondition: there is nothing to go back to (reason NOTHING_TO_ROLL_BACK).
            Aborted: the state changed since it was read (reason ETAG_MISMATCH).
        """
        async with self._database.transaction() as connection:

            async def act() -> str:
                now = await self._current(connection, tenant, etag)
                previous = await self._previous(connection, now)
                stable = now.stable
                if not now.candidate:
                    if previous is None:
                        raise FailedPrecondition(
                            "the host's own bundle judges all sessions, as it did before anything was rolled out",
                            reason="NOTHING_TO_ROLL_BACK",
                        )
                    row = await connection.fetchrow("SELECT * FROM rollouts WHERE rollout = $1", previous)
                    assert row is not None
                    stable, previous = row["stable"] or "", row["previous"]
                made = await self._insert(connection, tenant, stable, "", 0, previous, by)
                body = {
                    "bundle": stable,
                    "by": self._who(tenant, by),
                    "replaced": now.candidate or now.stable,
                }
                await audit.append(connection, tenant, "bundle_rollback", body)
                await bump(connection)
                return str(made)

            await once(connection, tenant, mutation, act)
        return await self.rollout(tenant)

    async def _current(self, connection: Connection, tenant: str, etag: str) -> RolloutRow:
        await connection.execute(_LOCK)
        row = await connection.fetchrow(
            "SELECT * FROM rollouts WHERE tenant = $1 ORDER BY rollout DESC LIMIT 1", tenant
        )
        now = RolloutRow(tenant) if row is None else _rollout(row)
        if etag and etag != str(now.rollout):
            raise Aborted("the rollout changed since it was read; get it again", reason="ETAG_MISMATCH")
        return now

    async def _previous(self, connection: Connection, now: RolloutRow) -> int | None:
        found: int | None = await connection.fetchval("SELECT previous FROM rollouts WHERE rollout = $1", now.rollout)
        return found

    async def _insert(
        self,
        connection: Connection,
        tenant: str,
        stable: str,
        candidate: str,
        percent: int,
        previous: int | None,
        by: str,
    ) -> int:
        made: int = await connection.fetchval(
            "INSERT INTO rollouts (tenant, stable, candidate, percent, previous, changed_by)"
            " VALUES ($1, $2, $3, $4, $5, $6) RETURNING rollout",
            tenant,
            stable or None,
            candidate or None,
            percent,
            previous,
            by,
        )
        return made

    def _who(self, tenant: str, by: str) -> str:
        return self._vault.pseudonym("operator", tenant, by)

    # -- shadow --------------------------------------------------------------

    async def record_shadow(self, context: PolicyContext, bundle: str, found: Sequence[ShadowDecision]) -> None:
        """Record what a candidate would have decided in a turn; nothing that leads to the person or their words."""
        async with self._database.connection() as connection:
            await connection.executemany(
                "INSERT INTO shadow_decisions (tenant, bundle, persona, persona_type, age_band, region_code, stage,"
                " live_version, live_action, live_reason_code, live_rules, action, reason_code, rules, scores, differs)"
                " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)",
                [
                    (
                        context.tenant,
                        bundle,
                        context.persona,
                        context.persona_type,
                        context.age_band.value,
                        context.region_code,
                        one.live.stage.value,
                        one.live.bundle_version,
                        one.live.action.value,
                        one.live.reason_code,
                        rule_ids(one.live),
                        one.candidate.action.value,
                        one.candidate.reason_code,
                        rule_ids(one.candidate),
                        orjson.dumps(dict(scores_of(one.candidate))).decode(),
                        one.differs,
                    )
                    for one in found
                ],
            )

    async def shadows(self, tenant: str, bundle: str, *, differing: bool, before: int, limit: int) -> list[ShadowRow]:
        """What a candidate would have decided, newest first, with a number below `before`."""
        rows = await self._database.fetch(
            "SELECT * FROM shadow_decisions WHERE tenant = $1 AND bundle = $2 AND shadow < $3 AND (differs OR NOT $4)"
            " ORDER BY shadow DESC LIMIT $5",
            tenant,
            bundle,
            before,
            differing,
            limit,
        )
        return [
            ShadowRow(
                shadow=row["shadow"],
                bundle=row["bundle"],
                persona=row["persona"],
                stage=row["stage"],
                live_version=row["live_version"],
                live_action=row["live_action"],
                live_reason_code=row["live_reason_code"],
                live_rules=tuple(row["live_rules"]),
                action=row["action"],
                reason_code=row["reason_code"],
                rules=tuple(row["rules"]),
                differs=row["differs"],
                created_at=row["created_at"],
            )
            for row in rows
        ]

    async def forget_shadows(self) -> None:
        """Delete what is older than SHADOW_DAYS."""
        await self._database.execute(
            "DELETE FROM shadow_decisions WHERE created_at < now() - $1::interval", timedelta(days=SHADOW_DAYS)
        )

    async def shadow_counts(self, tenant: str, bundle: str) -> tuple[int, int]:
        """How many decisions a candidate would have taken, and how many of them otherwise."""
        row = await self._database.fetchrow(
            "SELECT count(*) AS total, count(*) FILTER (WHERE differs) AS other FROM shadow_decisions"
            " WHERE tenant = $1 AND bundle = $2",
            tenant,
            bundle,
        )
        assert row is not None
        return row["total"], row["other"]

    # -- traffic -------------------------------------------------------------

    async def traffic(self, tenant: str, *, since: datetime | None, limit: int) -> AsyncIterator[Case]:
        """What the ledger holds of a tenant's newest turns, and of decisions about words that it does not hold.

        Of a turn the person's words, and the reply if it is as the persona said it; of anything else that a rule had
        a part in the record of the decision, which has no words: memories, replies that were cut or changed, signals,
        and messages of people who were erased.

        Args:
            limit: turns at most, and decisions at most.
        """
        turns = await self._database.fetch(
            "SELECT t.*, s.scope, s.persona, s.session, s.revision, s.age_band, s.region_code, p.type, EXISTS ("
            "  SELECT 1 FROM decisions d WHERE d.session_pk = t.session_pk AND d.turn_no = t.turn_no"
            "  AND d.stage = 'output' AND d.action <> 'allow') AS changed"
            " FROM turns t JOIN sessions s USING (session_pk)"
            " JOIN personas p ON p.tenant = s.tenant AND p.persona = s.persona"
            " WHERE s.tenant = $1 AND t.state = 'COMPLETED' AND t.user_text IS NOT NULL"
            " AND ($2::timestamptz IS NULL OR t.created_at >= $2)"
            " ORDER BY t.created_at DESC LIMIT $3",
            tenant,
            since,
            limit,
        )
        personas, claims = PersonaLedger(self._database, self._vault), dict[Name, tuple[VerifiedClaim, ...]]()
        for row in turns:
            revision = Name(tenant, row["persona"], revision=row["revision"])
            if revision not in claims:
                claims[revision] = (await personas.revision(revision, row["revision"])).definition.verified_claims
            context = PolicyContext(
                row["type"], AgeBand(row["age_band"]), row["region_code"], tenant, row["persona"], row["revision"],
                holding(claims[revision], row["type"], row["created_at"]),
            )  # fmt: skip
            try:
                cipher = await self._vault.cipher_by_key(row["scope"])
            except ScopeErased:
                continue
            session = Name(tenant, row["persona"], session=row["session"]).session_name()
            for stage, column, place in ((Stage.INPUT, "user_text", "user"), (Stage.OUTPUT, "reply_text", "reply")):
                if row[column] is None or (stage is Stage.OUTPUT and (row["changed"] or not row["in_history"])):
                    continue
                text = cipher.open(row[column], turn_place(row["session_pk"], row["turn_no"], place)).decode()
                if text:
                    yield Case(f"{session}/turns/{row['turn_id']}", stage, context, text)
        decisions = await self._database.fetch(
            "SELECT d.*, s.session, s.revision, t.turn_id FROM decisions d LEFT JOIN sessions s USING (session_pk)"
            " LEFT JOIN turns t USING (session_pk, turn_no)"
            " WHERE d.tenant = $1 AND ($2::timestamptz IS NULL OR d.created_at >= $2)"
            " AND NOT (d.stage = 'input' AND t.user_text IS NOT NULL)"
            # What only recorded something of a reply that is kept.
            " AND NOT (d.stage = 'output' AND d.action = 'allow' AND t.reply_text IS NOT NULL)"
            " ORDER BY d.created_at DESC, d.decision_id DESC LIMIT $3",
            tenant,
            since,
            limit,
        )
        for row in decisions:
            record = decision_record(row)
            context = replace(record.context, tenant=tenant, persona=record.persona, revision=row["revision"] or 0)
            name = f"tenants/{tenant}/decisions/{record.decision_id}"
            yield Case(name, record.decision.stage, context, recorded=record.decision)


class BundleKeeper:
    """Keeps a host's policies as the ledger says.

    Args:
        policies: what is kept.
        trust: whose bundles are loaded.
        on_refused: told of how many tenants a bundle does not load here.
    """

    def __init__(
        self,
        ledger: BundleLedger,
        policies: Policies,
        trust: Trust,
        on_refused: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._on_refused = on_refused
        self._ledger = ledger
        self._policies = policies
        self._trust = trust
        self._loaded: OrderedDict[tuple[str, str], Policy] = OrderedDict()
        self._problems: dict[str, str] = {}
        self._seen = 0
        self._lock = asyncio.Lock()
        self._loading = asyncio.Lock()
        self._wake = asyncio.Event()

    def check(self, content: bytes, signature: bytes | None) -> tuple[Policy, str]:
        """A bundle's policy and the id of the key that signed it. Takes a while: not for the event loop.

        Raises:
            FailedPrecondition: nobody who is trusted signed it (reason BUNDLE_NOT_TRUSTED).
            InvalidArgument: it does not load, or a test of it fails (reason BUNDLE_INVALID).
        """
        try:
            signer = self._trust.check(content, signature, bundle_id(content))
        except ConfigError as error:
            raise FailedPrecondition(error.message, reason="BUNDLE_NOT_TRUSTED") from None
        return trial(content, self._policies.own), signer

    async def open(self, tenant: str, bundle: str) -> Policy:
        """A published bundle, loaded.

        Raises:
            NotFound: there is none of that id.
            FailedPrecondition, InvalidArgument: see `check`.
        """
        if not bundle:
            return self._policies.own
        key = (tenant, bundle)
        if key in self._loaded:
            self._loaded.move_to_end(key)
            return self._loaded[key]
        # One at a time, so that none is loaded twice.
        async with self._loading:
            if key not in self._loaded:
                row = await self._ledger.get(tenant, bundle)
                self._loaded[key], _ = await asyncio.to_thread(self.check, row.content, row.signature)
                if len(self._loaded) > _LOADED:
                    self._loaded.popitem(last=False)
            return self._loaded[key]

    def problem(self, tenant: str) -> str:
        """Why this host does not do as the ledger says for a tenant; empty if it does."""
        return self._problems.get(tenant, "")

    def notify(self) -> None:
        """Something may have changed."""
        self._wake.set()

    async def run(self, stopping: asyncio.Event) -> None:
        """Follow the ledger until `stopping` is set."""
        ended = asyncio.create_task(stopping.wait())
        forgotten = -math.inf
        # Between the first look and this one something may have come.
        self._wake.set()
        try:
            while not stopping.is_set():
                woken = asyncio.create_task(self._wake.wait())
                # Now and then without being told, as a notice can be lost with its connection.
                await asyncio.wait((woken, ended), timeout=_POLL_S, return_when=asyncio.FIRST_COMPLETED)
                woken.cancel()
                self._wake.clear()
                try:
                    await self.refresh()
                    if time.monotonic() - forgotten > _FORGET_EVERY_S:
                        await self._ledger.forget_shadows()
                        forgotten = time.monotonic()
                except LedgerUnavailable:
                    self._wake.set()
                    await asyncio.wait((ended,), timeout=1.0)
                except Exception:
                    # Whatever it is, what ran before goes on, and the next change is heard of.
                    _log.exception("rollout_not_followed")
        finally:
            ended.cancel()

    async def refresh(self) -> None:
        """Do as the ledger says now.

        Raises:
            LedgerUnavailable: what it says is not known; what ran before goes on.
        """
        async with self._lock:
            rows = await self._ledger.changed(self._seen)
            for row in rows:
                await self._follow(row)
            # After all of them: what was cut off by an outage is done again.
            self._seen = max([self._seen, *(row.rollout for row in rows)])
            self._on_refused(len(self._problems))

    async def _follow(self, row: RolloutRow) -> None:
        tenant, before = row.tenant, self._policies.get(row.tenant)
        problems = []
        stable = candidate = None
        try:
            stable = await self.open(tenant, row.stable)
        except (FailedPrecondition, InvalidArgument, NotFound) as error:
            problems.append(error.message)
            if before is not None:
                stable = before.stable
            elif self._seen and not self._policies.problem(tenant):
                # It came after this host had started, which judged by its own until now.
                stable = self._policies.own
        try:
            candidate = (row.candidate, await self.open(tenant, row.candidate)) if row.candidate else None
        except (FailedPrecondition, InvalidArgument, NotFound) as error:
            problems.append(error.message)
        if stable is None:
            self._policies.miss(tenant, problems[0])
        else:
            self._policies.put(tenant, InForce(stable, candidate, row.percent if candidate else 0))
        if problems:
            self._problems[tenant] = problems[0]
            _log.error("bundle_refused", tenant=tenant, stable=row.stable, candidate=row.candidate, why=problems[0])
        else:
            self._problems.pop(tenant, None)
            _log.info(
                "rollout", tenant=tenant, stable=row.stable, candidate=row.candidate, percent=row.percent,
                version=None if stable is None else stable.version,
            )  # fmt: skip


def trial(content: bytes, own: Policy) -> Policy:
    """The policy of a bundle, whoever signed it, with the scorers and the switched off rules of another. Takes a while.

    Raises:
        InvalidArgument: it does not load, or a test of it fails (reason BUNDLE_INVALID).
    """
    try:
        made = Policy(open_bundle(content, bundle_id(content), rule_tester()), own.scorers)
    except ConfigError as error:
        # It travels in a header.
        message = error.message[:_MESSAGE_CHARS]
        raise InvalidArgument(message, reason="BUNDLE_INVALID", violations=(("content", message),)) from None
    # A rule that was switched off stays so, whichever bundle has it.
    made.rules_off = lambda tenant: own.rules_off(tenant)
    return made


def bundle_id(content: bytes) -> str:
    """What names a bundle: the first 32 hex digits of its content's SHA-256."""
    return sha256(content).hexdigest()[:32]


def _bundle(row: asyncpg.Record) -> BundleRow:
    return BundleRow(
        tenant=row["tenant"],
        bundle=row["bundle"],
        version=row["version"],
        content=row["content"],
        signature=row["signature"],
        key_id=row["key_id"],
        created_at=row["created_at"],
    )


def _rollout(row: asyncpg.Record) -> RolloutRow:
    return RolloutRow(
        tenant=row["tenant"],
        rollout=row["rollout"],
        stable=row["stable"] or "",
        candidate=row["candidate"] or "",
        percent=row["percent"],
        reversible=row["candidate"] is not None or row["previous"] is not None,
        changed_at=row["created_at"],
    )
