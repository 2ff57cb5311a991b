"""Consent, withdrawals, kill switches and the control epoch that carries them to running turns.

Every withdrawal, consent change and switch bumps one epoch in its own transaction and
notifies. A watcher keeps the epoch in memory, so that asking at every released
unit costs nothing; when the watcher has not heard from the ledger for
STALE_AFTER_S, nothing may be released until it has.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg
import structlog

from personae_runtime.errors import FailedPrecondition, LedgerUnavailable, NotFound
from personae_runtime.ledger import audit
from personae_runtime.ledger.database import UNREACHABLE, Connection, Database
from personae_runtime.names import Name

_log = structlog.get_logger(__name__)

CHANNEL = "personae_control"
STALE_AFTER_S = 1.0
_POLL_S = 0.25


async def bump(connection: Connection) -> int:
    """Raise the control epoch within the caller's transaction, and return it; every watcher hears of it at commit."""
    epoch: int = await connection.fetchval("UPDATE control SET epoch = epoch + 1 RETURNING epoch")
    await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, str(epoch))
    return epoch


@dataclass(frozen=True, slots=True)
class ConsentRow:
    """One consent event. `purpose` is LIKENESS or MEMORY, `state` GRANTED or WITHDRAWN."""

    consent_id: int
    tenant: str
    persona: str
    user: str
    purpose: str
    state: str
    evidence: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Standing:
    """What is in force for one running turn.

    Attributes:
        may_speak: neither tenant nor persona is switched off, the revision is not
            withdrawn, the persona not deleted, and a clone's likeness consent is granted.
        may_remember: the person has not withdrawn consent to be remembered.
        reason: why it may not speak, as an error reason; empty if it may.
    """

    may_speak: bool
    may_remember: bool
    reason: str = ""

    @property
    def killed(self) -> bool:
        """A kill switch is why it may not speak."""
        return self.reason in ("TENANT_KILLED", "PERSONA_KILLED")


class ConsentLedger:
    """Append-only consent events."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(
        self, subject: Name, purpose: str, state: str, evidence: str, once: Any, *, scope: str | None = None
    ) -> ConsentRow:
        """Append an event and spread it. `once(connection, act)` guards against repeats.

        `scope` is the scope key of a user, by which an erasure finds what was written here.

        Raises:
            NotFound: there is no such persona.
        """
        async with self._database.transaction() as connection:

            async def act() -> str:
                known = await connection.fetchval(
                    "SELECT true FROM personas WHERE tenant = $1 AND persona = $2", subject.tenant, subject.persona
                )
                if not known:
                    raise NotFound(f"{subject.persona_name()} does not exist")
                consent_id = await connection.fetchval(
                    "INSERT INTO consents (tenant, persona, user_id, purpose, state, evidence, scope)"
                    " VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING consent_id",
                    subject.tenant,
                    subject.persona,
                    subject.user,
                    purpose,
                    state,
                    evidence,
                    scope,
                )
                # What was said in evidence stays outside: it can be erased there.
                body = {"consent": consent_id, "persona": subject.persona, "purpose": purpose, "state": state}
                await audit.append(
                    connection, subject.tenant, "consent", body if scope is None else {**body, "person": scope}
                )
                await bump(connection)
                return str(consent_id)

            consent_id = int(await once(connection, act))
            row = await connection.fetchrow("SELECT * FROM consents WHERE consent_id = $1", consent_id)
        assert row is not None
        return _consent(row)

    async def may_remember(self, user: Name) -> bool:
        """False if the person withdrew consent to be remembered."""
        state = await self._database.fetchval(
            "SELECT state FROM consents WHERE tenant = $1 AND persona = $2 AND user_id = $3 AND purpose = 'MEMORY'"
            " ORDER BY consent_id DESC LIMIT 1",
            user.tenant,
            user.persona,
            user.user,
        )
        return bool(state != "WITHDRAWN")

    async def list(self, subject: Name, *, before: int, limit: int) -> list[ConsentRow]:
        """Events of exactly this subject with an id below `before`, newest first."""
        rows = await self._database.fetch(
            "SELECT * FROM consents WHERE tenant = $1 AND persona = $2 AND user_id = $3 AND consent_id < $4"
            " ORDER BY consent_id DESC LIMIT $5",
            subject.tenant,
            subject.persona,
            subject.user,
            before,
            limit,
        )
        return [_consent(row) for row in rows]


STANDING = """
    SELECT p.type, p.deleted_at, r.state AS revision_state, (SELECT epoch FROM control) AS epoch,
        (SELECT c.state FROM consents c WHERE c.tenant = $1 AND c.persona = $2 AND c.user_id = ''
            AND c.purpose = 'LIKENESS' ORDER BY c.consent_id DESC LIMIT 1) AS likeness,
        (SELECT c.state FROM consents c WHERE c.tenant = $1 AND c.persona = $2 AND c.user_id = $4
            AND c.purpose = 'MEMORY' ORDER BY c.consent_id DESC LIMIT 1) AS memory,
        (SELECT max(k.kind) FROM kill_switches k WHERE k.tenant = $1 AND k.lifted_at IS NULL
            AND (k.kind, k.target) IN (('TENANT', ''), ('PERSONA', $2))) AS killed
    FROM personas p JOIN revisions r USING (tenant, persona)
    WHERE p.tenant = $1 AND p.persona = $2 AND r.revision = $3
"""
"""Arguments: tenant, persona, revision, user."""


_SWITCHES = "SELECT tenant, kind, target FROM kill_switches WHERE lifted_at IS NULL"


def standing(row: asyncpg.Record | None) -> Standing:
    """What a STANDING row says."""
    if row is None or row["deleted_at"] is not None:
        return Standing(False, False, "PERSONA_DELETED")
    if row["killed"] is not None:
        return _killed(row["killed"])
    if row["revision_state"] == "WITHDRAWN":
        return Standing(False, False, "REVISION_WITHDRAWN")
    if row["type"] == "clone" and row["likeness"] != "GRANTED":
        return Standing(False, False, "LIKENESS_CONSENT_MISSING")
    return Standing(True, row["memory"] != "WITHDRAWN")


def _killed(kind: str) -> Standing:
    return Standing(False, False, "TENANT_KILLED") if kind == "TENANT" else Standing(False, False, "PERSONA_KILLED")


def require_speech(found: Standing) -> None:
    """Raise FailedPrecondition unless the persona may speak."""
    if found.may_speak:
        return
    advice = {
        "PERSONA_DELETED": "the persona is deleted; undelete it or use another",
        "TENANT_KILLED": "the operator has switched off everything of this tenant for now",
        "PERSONA_KILLED": "the operator has switched off this persona for now",
        "REVISION_WITHDRAWN": "the session's revision was withdrawn; open a new session",
        "LIKENESS_CONSENT_MISSING": "a clone needs a granted likeness consent; see ConsentService.RecordConsent",
    }[found.reason]
    raise FailedPrecondition(advice, reason=found.reason, violations=(("persona", advice),))


@dataclass(slots=True, eq=False)
class Watch:
    """A running turn's standing, kept current by the watcher."""

    tenant: str
    persona: str
    revision: int
    user: str
    standing: Standing
    on_withdrawn: Callable[[], None]


async def _nobody(epoch: int) -> None:
    """Nobody is to be told."""


class ControlWatcher:
    """Keeps the standing of running turns in memory, and tells of scopes whose key or marker was taken away.

    Attributes:
        on_scopes: called with scope keys, of which nothing may be kept in memory.
        on_epoch: then awaited with the epoch that was acted upon.
        on_switches: called with how many kill switches of each kind are in force.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.on_scopes: Callable[[list[str]], None] = lambda scopes: None
        self.on_epoch: Callable[[int], Awaitable[None]] = _nobody
        self.on_switches: Callable[[Mapping[str, int]], None] = lambda counts: None
        self._rules_off: dict[str, frozenset[str]] = {}
        self._watches: set[Watch] = set()
        self._epoch = 0
        self._told = 0
        self._reread = False
        self._fresh_at = 0.0
        self._fresh = asyncio.Event()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the epoch and begin to watch."""
        begun = time.monotonic()
        self._epoch = await self._database.fetchval("SELECT epoch FROM control")
        self._take_switches(await self._database.fetch(_SWITCHES))
        self._mark_fresh(begun)
        self._task = asyncio.create_task(self._run(), name="control-watcher")

    async def close(self) -> None:
        """Stop. Safe to call twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def add(self, watch: Watch, epoch: int) -> None:
        """Keep a turn's standing current until `remove`; it was read at `epoch`."""
        self._watches.add(watch)
        if self._epoch > epoch:
            # It changed since it was read: nothing is fresh before it is read again.
            self._reread = True
            self._fresh_at = 0.0
            self._wake.set()

    def remove(self, watch: Watch) -> None:
        """Stop keeping it."""
        self._watches.discard(watch)

    @property
    def epoch(self) -> int:
        """The epoch that was last acted upon."""
        return self._epoch

    def rules_off(self, tenant: str) -> frozenset[str]:
        """Ids of the rules that are switched off for a tenant."""
        return self._rules_off.get(tenant, frozenset())

    @property
    def is_fresh(self) -> bool:
        """The epoch is younger than STALE_AFTER_S."""
        return time.monotonic() - self._fresh_at <= STALE_AFTER_S

    async def fresh(self, timeout_s: float) -> None:
        """Return once the epoch is younger than STALE_AFTER_S; at once as a rule.

        Raises:
            LedgerUnavailable: it did not get fresh in time.
        """
        if self.is_fresh:
            return
        self._fresh.clear()
        self._wake.set()
        try:
            async with asyncio.timeout(timeout_s):
                await self._fresh.wait()
        except TimeoutError:
            raise LedgerUnavailable("the control epoch is stale: withdrawals could be missed") from None

    def _mark_fresh(self, asked_at: float) -> None:
        # As of the question: the answer may have been long on its way.
        self._fresh_at = asked_at
        self._fresh.set()

    async def _run(self) -> None:
        while True:
            connection = None
            try:
                connection = await self._database.connect()
                await connection.add_listener(CHANNEL, lambda *_: self._wake.set())
                while True:
                    await self._poll(connection)
                    with suppress(TimeoutError):
                        # Not wait_for, which in Python 3.11 can lose a cancellation.
                        async with asyncio.timeout(_POLL_S):
                            await self._wake.wait()
                    self._wake.clear()
            except (LedgerUnavailable, *UNREACHABLE):
                await asyncio.sleep(_POLL_S)
            except Exception:
                # Without a watcher nothing could ever be released again.
                _log.exception("control_watch_failed")
                await asyncio.sleep(_POLL_S)
            finally:
                if connection is not None:
                    connection.terminate()

    async def _poll(self, connection: asyncpg.Connection) -> None:
        begun = time.monotonic()
        epoch = await connection.fetchval("SELECT epoch FROM control")
        if epoch != self._epoch:
            taken = await connection.fetch("SELECT scope FROM scopes WHERE changed_epoch > $1", self._epoch)
            if taken:
                self.on_scopes([row["scope"] for row in taken])
            # Set before the standings are read: a turn added meanwhile with an older one asks for another round.
            self._epoch = epoch
            self._reread = True
        while self._reread:
            self._reread = False
            try:
                self._take_switches(await connection.fetch(_SWITCHES))
                await self._refresh(connection, list(self._watches))
            except BaseException:
                self._reread = True
                raise
        self._mark_fresh(begun)
        if self._told != epoch:
            await self.on_epoch(epoch)
            self._told = epoch

    def _take_switches(self, rows: Iterable[asyncpg.Record]) -> None:
        """Know these switches and no others; turns that they stop, stop before anything else is read."""
        killed: dict[tuple[str, str], str] = {}
        rules: dict[str, frozenset[str]] = {}
        counts = Counter(dict.fromkeys(("TENANT", "PERSONA", "RULE"), 0))
        for row in rows:
            counts[row["kind"]] += 1
            if row["kind"] == "RULE":
                rules[row["tenant"]] = rules.get(row["tenant"], frozenset()) | {row["target"]}
            else:
                killed[row["tenant"], row["target"]] = row["kind"]
        self._rules_off = rules
        self.on_switches(counts)
        if killed:
            for watch in list(self._watches):
                kind = killed.get((watch.tenant, "")) or killed.get((watch.tenant, watch.persona))
                if kind is not None:
                    self._set(watch, _killed(kind))

    @staticmethod
    def _set(watch: Watch, found: Standing) -> None:
        lost = watch.standing.may_speak and not found.may_speak
        watch.standing = found
        if lost:
            watch.on_withdrawn()

    async def _refresh(self, connection: asyncpg.Connection, watches: Iterable[Watch]) -> None:
        for watch in watches:
            row = await connection.fetchrow(STANDING, watch.tenant, watch.persona, watch.revision, watch.user)
            self._set(watch, standing(row))


def _consent(row: asyncpg.Record) -> ConsentRow:
    return ConsentRow(
        consent_id=row["consent_id"],
        tenant=row["tenant"],
        persona=row["persona"],
        user=row["user_id"],
        purpose=row["purpose"],
        state=row["state"],
        evidence=row["evidence"],
        created_at=row["created_at"],
    )
