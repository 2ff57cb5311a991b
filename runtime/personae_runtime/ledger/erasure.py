"""Erasure: what is held of a person leaves every store, is counted, and is proved.

An erasure (GDPR, article 17) is an operation in the ledger. Its steps are
idempotent, and each counts what it erased in the transaction that erases it, so
that whoever takes it up after a crash goes on where it stood:

    key → ledger → index → caches → proof

Of a whole person the scope's key is destroyed first, which makes every sealed
text unreadable at once and refuses new ones until the erasure is done. Of single
memories the scope's marker is rotated. The proof is appended to a log outside of
the ledger before the erasure is done: after a restore from an older backup,
what the log has and the ledger does not is erased again.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

import asyncpg
import orjson
import structlog

from personae_runtime.errors import FailedPrecondition, LedgerUnavailable, NotFound, PersonaeError, Unavailable
from personae_runtime.ledger import audit
from personae_runtime.ledger.control import bump
from personae_runtime.ledger.database import UNREACHABLE, Connection, Database
from personae_runtime.ledger.facts import TOMBSTONE
from personae_runtime.ledger.memories import TURNS_OF, MemoryLedger, erase_turn
from personae_runtime.ledger.personas import Mutation, once
from personae_runtime.ledger.sessions import thread_of
from personae_runtime.ledger.vault import Scope, ScopeErased, Vault
from personae_runtime.memory.indexer import IndexErasure
from personae_runtime.sessions.events import Gap

_log = structlog.get_logger(__name__)

STEPS: Final = ("key", "ledger", "index", "caches", "proof")
_CHUNK: Final = 2_000
_CACHES_S: Final = 10.0
_POLL_S: Final = 0.05
_LOOK_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
_OWN_TABLES: Final = frozenset({"scopes", "sessions", "memories", "operations", "erasures", "consents"})

# What a tombstone may not keep, and how it is taken away from those that were made before they kept as little. An
# episode's thread is needed until its erasure is done.
_STRIP: Final = (
    "external_id = '', source_ids = '{}', valid_from = NULL, valid_to = NULL, superseded_by = NULL,"
    " occurred_at = created_at, quarantine_reason = '', basis = '', extractor = '',"
    " expires_at = NULL, own_expires_at = NULL"
)
_TELLS: Final = (
    "(external_id <> '' OR source_ids <> '{}' OR valid_from IS NOT NULL OR valid_to IS NOT NULL"
    " OR superseded_by IS NOT NULL OR occurred_at <> created_at OR quarantine_reason <> '' OR basis <> ''"
    " OR extractor <> '' OR expires_at IS NOT NULL OR own_expires_at IS NOT NULL"
)
_ALL_TELL: Final = f"scope = $1 AND forgotten_at IS NOT NULL AND {_TELLS} OR thread <> '')"
# $2: single memories. The facts that rested on them alone can't be told from others that were forgotten.
_SINGLE: Final = "scope = $1 AND forgotten_at IS NOT NULL AND (memory_id = ANY($2) OR kind = 'fact')"
_SINGLE_TELL: Final = f"{_SINGLE} AND {_TELLS} OR (thread <> '' AND kind = 'fact'))"


@dataclass(frozen=True, slots=True)
class Erasure:
    """One erasure, as far as it has come.

    Attributes:
        persona: of `tenant`; both empty if only the scope is known, as after a restore.
        memory_ids: what is to be erased; empty is all that is held.
        step, steps_done: of STEPS.
        erased: how much was, by store.
        epoch: the control epoch at which the key or the marker was taken away; 0 before.
        problem: reason of the last failure, after which it is tried again.
        proof: the signed message, serialized; None before it is done.
    """

    erasure_id: UUID
    tenant: str
    persona: str
    scope: str
    memory_ids: tuple[UUID, ...]
    reason: str
    created_at: datetime
    step: str = ""
    steps_done: int = 0
    erased: dict[str, int] = field(default_factory=dict)
    epoch: int = 0
    problem: str = ""
    done_at: datetime | None = None
    proof: bytes | None = None


Prove = Callable[[Erasure, dict[str, int], datetime], bytes]
"""Makes the signed proof of an erasure, of what remains by store, and of its end."""

_SELECT = "SELECT o.*, e.proof FROM operations o LEFT JOIN erasures e ON e.erasure = o.operation"


class ErasureLedger:
    """Erasures in the ledger, and what they do to its other tables."""

    def __init__(self, database: Database, vault: Vault, memories: MemoryLedger) -> None:
        self._database = database
        self._vault = vault
        self._memories = memories

    # -- operations ----------------------------------------------------------

    async def start(self, subject: Scope, memory_ids: Sequence[UUID], reason: str, mutation: Mutation) -> Erasure:
        """Record that an erasure is to be done; a repeated mutation returns the first.

        Raises:
            NotFound: there is no such persona, or the scope never had one of the memories.
        """
        scope = self._vault.scope_key(subject)
        async with self._database.transaction() as connection:

            async def act() -> str:
                known = await connection.fetchval(
                    "SELECT true FROM personas WHERE tenant = $1 AND persona = $2", subject.tenant, subject.persona
                )
                if not known:
                    raise NotFound("there is no such persona")
                found = await connection.fetchval(
                    "SELECT count(*) FROM memories WHERE scope = $1 AND memory_id = ANY($2)", scope, list(memory_ids)
                )
                if found != len(set(memory_ids)):
                    raise NotFound("there is no such memory")
                if not memory_ids:
                    # One after the other: who waited here sees what the other began.
                    await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 6))", scope)
                    # All that is held is being erased already: that is the same operation.
                    running = await connection.fetchval(
                        "SELECT operation FROM operations WHERE scope = $1 AND memory_ids = '{}' AND done_at IS NULL",
                        scope,
                    )
                    if running is not None:
                        return str(running)
                erasure_id = uuid4()
                await self._insert(connection, erasure_id, subject, scope, memory_ids, reason, datetime.now(UTC))
                return str(erasure_id)

            erasure_id = UUID(await once(connection, subject.tenant, mutation, act))
        return await self.get(subject.tenant, erasure_id)

    async def take_up(
        self, erasure_id: UUID, scope: str, memory_ids: Sequence[UUID], reason: str, created_at: datetime
    ) -> bool:
        """Record an erasure that was done before a restore; False if the ledger knows of its end."""
        async with self._database.transaction() as connection:
            if await connection.fetchval("SELECT true FROM erasures WHERE erasure = $1", erasure_id):
                return False
            subject = await self._owner(connection, scope)
            await self._insert(connection, erasure_id, subject, scope, memory_ids, reason, created_at)
        return True

    async def _owner(self, connection: Connection, scope: str) -> Scope:
        """Tenant and persona of a scope as far as the ledger tells: its operation is named by the tenant."""
        for query, arguments in (
            ("SELECT tenant, persona FROM sessions WHERE scope = $1 LIMIT 1", [scope]),
            ("SELECT tenant, persona FROM consents WHERE scope = $1 LIMIT 1", [scope]),
            (
                "SELECT r.tenant, '' AS persona FROM memories m JOIN requests r ON r.resource = m.memory_id::text"
                " WHERE m.scope = $1 LIMIT 1",
                [scope],
            ),
            ("SELECT min(tenant) AS tenant, '' AS persona FROM personas HAVING min(tenant) = max(tenant)", []),
        ):
            row = await connection.fetchrow(query, *arguments)
            if row is not None:
                return Scope(row["tenant"], row["persona"])
        return Scope("", "")

    async def concerns(self, erasure: Erasure, user: str) -> bool:
        """Whether it is an erasure of this user of its tenant."""
        personas = [erasure.persona]
        if not erasure.persona:
            rows = await self._database.fetch("SELECT persona FROM personas WHERE tenant = $1", erasure.tenant)
            personas = [row["persona"] for row in rows]
        return any(self._vault.scope_key(Scope(erasure.tenant, persona, user)) == erasure.scope for persona in personas)

    def _scope_keys(self, people: list[Scope]) -> list[str]:
        return [self._vault.scope_key(person) for person in people]

    async def fill_scopes(self) -> None:
        """Write down whose consents those are that were recorded before that was."""
        after = 0
        while True:
            rows = await self._database.fetch(
                "SELECT consent_id, tenant, persona, user_id FROM consents WHERE scope IS NULL AND user_id <> ''"
                " AND consent_id > $1 ORDER BY consent_id LIMIT $2",
                after,
                _CHUNK,
            )
            if not rows:
                return
            people = [Scope(row["tenant"], row["persona"], row["user_id"]) for row in rows]
            scopes = await asyncio.to_thread(self._scope_keys, people)
            await self._database.execute(
                "UPDATE consents c SET scope = f.scope FROM unnest($1::bigint[], $2::text[]) AS f (consent_id, scope)"
                " WHERE c.consent_id = f.consent_id",
                [row["consent_id"] for row in rows],
                scopes,
            )
            after = rows[-1]["consent_id"]

    async def _insert(
        self,
        connection: Connection,
        erasure_id: UUID,
        subject: Scope,
        scope: str,
        memory_ids: Sequence[UUID],
        reason: str,
        created_at: datetime,
    ) -> None:
        await connection.execute(
            "INSERT INTO operations (operation, tenant, persona, scope, memory_ids, reason, created_at)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
            erasure_id,
            subject.tenant,
            subject.persona,
            scope,
            list(dict.fromkeys(memory_ids)),
            reason,
            created_at,
        )

    async def get(self, tenant: str, erasure_id: UUID) -> Erasure:
        """One erasure of a tenant.

        Raises:
            NotFound: it has none of that id.
        """
        row = await self._database.fetchrow(f"{_SELECT} WHERE o.tenant = $1 AND o.operation = $2", tenant, erasure_id)
        if row is None:
            raise NotFound(f"tenants/{tenant}/operations/{erasure_id} does not exist")
        return _erasure(row)

    async def list_erasures(self, tenant: str, *, before: tuple[datetime, UUID] | None, limit: int) -> list[Erasure]:
        """Erasures of a tenant, newest first, after the place `before` in that order."""
        at, erasure_id = before or (datetime.max.replace(tzinfo=UTC), UUID(int=2**128 - 1))
        rows = await self._database.fetch(
            f"{_SELECT} WHERE o.tenant = $1 AND (o.created_at, o.operation) < ($2, $3)"
            " ORDER BY o.created_at DESC, o.operation DESC LIMIT $4",
            tenant,
            at,
            erasure_id,
            limit,
        )
        return [_erasure(row) for row in rows]

    async def delete(self, tenant: str, erasure_id: UUID) -> None:
        """Remove the operation of an erasure that is done; its proof stays.

        Raises:
            NotFound: there is none of that id.
            FailedPrecondition: it is not done (reason OPERATION_NOT_DONE).
        """
        if (await self.get(tenant, erasure_id)).done_at is None:
            raise FailedPrecondition("an operation that is not done can't be deleted", reason="OPERATION_NOT_DONE")
        await self._database.execute(
            "DELETE FROM operations WHERE tenant = $1 AND operation = $2 AND done_at IS NOT NULL", tenant, erasure_id
        )

    async def due(self) -> list[Erasure]:
        """Erasures that are not done and are to be tried now, oldest first."""
        rows = await self._database.fetch(
            f"{_SELECT} WHERE o.done_at IS NULL AND o.next_try_at <= now() ORDER BY o.created_at, o.operation LIMIT 100"
        )
        return [_erasure(row) for row in rows]

    async def unfinished(self) -> list[Erasure]:
        """Every erasure that is not done, oldest first."""
        rows = await self._database.fetch(f"{_SELECT} WHERE o.done_at IS NULL ORDER BY o.created_at, o.operation")
        return [_erasure(row) for row in rows]

    async def reload(self, erasure: Erasure) -> Erasure:
        """The erasure as it is now."""
        row = await self._database.fetchrow(f"{_SELECT} WHERE o.operation = $1", erasure.erasure_id)
        if row is None:
            raise NotFound("the operation was deleted")
        return _erasure(row)

    async def begin(self, erasure: Erasure, step: str) -> None:
        """Tell which step runs."""
        await self._database.execute(
            "UPDATE operations SET step = $2, steps_done = $3 WHERE operation = $1 AND done_at IS NULL",
            erasure.erasure_id,
            step,
            STEPS.index(step),
        )

    async def failed(self, erasure: Erasure, problem: str) -> None:
        """Tell that a step failed; the pause before the next attempt doubles up to a minute."""
        await self._database.execute(
            "UPDATE operations SET attempts = attempts + 1, problem = $2, next_try_at = now()"
            " + least(power(2, least(attempts, 16)) * 0.25, $3) * interval '1 second' WHERE operation = $1",
            erasure.erasure_id,
            problem,
            _LONGEST_PAUSE_S,
        )

    async def note(self, connection: Connection, erasure: Erasure, store: str, count: int) -> None:
        """Add to what was erased, within the transaction that erased it."""
        if count:
            await connection.execute(
                "UPDATE operations SET erased = erased || jsonb_build_object($2::text,"
                " coalesce((erased ->> $2)::bigint, 0) + $3) WHERE operation = $1",
                erasure.erasure_id,
                store,
                count,
            )

    async def note_index(self, erasure: Erasure, count: int) -> None:
        """As `note`, for the index, which can count twice what a crash cut off but never too little."""
        async with self._database.transaction() as connection:
            await self.note(connection, erasure, "index.points", count)

    # -- key -----------------------------------------------------------------

    async def take_key(self, erasure: Erasure) -> int:
        """Destroy the scope's key; on return nothing can be written that was sealed with it.

        Of single memories the key stays: 0, and `erase_rows` rotates the marker. Nor is there anything to do, 0, once
        the erasure is done: the key is then that of somebody who came back.
        """
        if erasure.memory_ids:
            return 0
        async with self._database.transaction() as connection:
            # A scope that never wrote anything is held as well: what comes meanwhile must wait.
            await connection.execute(
                "INSERT INTO scopes (scope, marker, destroyed_at) VALUES ($1, '', now()) ON CONFLICT DO NOTHING",
                erasure.scope,
            )
            # Waits for every transaction that has written under this key: writers hold the row (FOR KEY SHARE).
            row = await connection.fetchrow(
                "SELECT erasing, changed_epoch FROM scopes WHERE scope = $1 FOR UPDATE", erasure.scope
            )
            if not await self._is_open(connection, erasure):
                return 0
            if row["erasing"] == erasure.erasure_id and erasure.epoch:
                return erasure.epoch
            epoch = await bump(connection)
            await connection.execute(
                "UPDATE scopes SET wrapped_key = NULL, marker = '', destroyed_at = coalesce(destroyed_at, now()),"
                " erasing = $2, changed_epoch = $3 WHERE scope = $1",
                erasure.scope,
                erasure.erasure_id,
                epoch,
            )
            await self._spread(connection, erasure, epoch)
        self._vault.drop((erasure.scope,))
        return epoch

    async def _is_open(self, connection: Connection, erasure: Erasure) -> bool:
        return bool(
            await connection.fetchval(
                "SELECT true FROM operations WHERE operation = $1 AND done_at IS NULL", erasure.erasure_id
            )
        )

    async def _spread(self, connection: Connection, erasure: Erasure, epoch: int) -> None:
        await connection.execute("UPDATE operations SET epoch = $2 WHERE operation = $1", erasure.erasure_id, epoch)

    # -- rows ----------------------------------------------------------------

    async def erase_rows(self, erasure: Erasure) -> int:
        """Remove the words from every table; the control epoch that tells every gateway to keep nothing of them."""
        if erasure.memory_ids:
            return await self._erase_single(erasure)
        epoch = await self.take_key(erasure)
        if not epoch:
            return erasure.epoch
        sessions = await self._database.fetch(
            "SELECT session_pk, tenant, persona || '/' || session AS resource FROM sessions WHERE scope = $1"
            " ORDER BY session_pk",
            erasure.scope,
        )
        for row in sessions:
            await self._erase_session(erasure, row["session_pk"], row["tenant"], row["resource"])
        await self._in_chunks(
            erasure,
            "ledger.memories",
            f"{TOMBSTONE} WHERE memory_id IN (SELECT memory_id FROM memories"
            " WHERE scope = $1 AND forgotten_at IS NULL ORDER BY memory_id LIMIT $2) RETURNING 1",
            erasure.scope,
        )
        # The conversation that they came from, and what those keep that were forgotten before.
        await self._in_chunks(
            erasure,
            "",
            f"UPDATE memories SET {_STRIP}, thread = '' WHERE memory_id IN"
            f" (SELECT memory_id FROM memories WHERE {_ALL_TELL} LIMIT $2) RETURNING 1",
            erasure.scope,
        )
        # A client may have made the id of a request out of the words.
        await self._in_chunks(
            erasure,
            "ledger.requests",
            "DELETE FROM requests WHERE ctid IN (SELECT r.ctid FROM memories m JOIN requests r"
            " ON r.resource = m.memory_id::text WHERE m.scope = $1 LIMIT $2) RETURNING 1",
            erasure.scope,
        )
        await self._in_chunks(
            erasure,
            "ledger.requests",
            "DELETE FROM requests WHERE ctid IN (SELECT r.ctid FROM appeals a JOIN requests r"
            " ON r.resource = a.appeal_id::text WHERE a.scope = $1 LIMIT $2) RETURNING 1",
            erasure.scope,
        )
        for table in await self._further_tables():
            await self._in_chunks(
                erasure,
                f"ledger.{table}",
                f"DELETE FROM {table} WHERE ctid IN (SELECT ctid FROM {table} WHERE scope = $1 LIMIT $2) RETURNING 1",
                erasure.scope,
            )
        # That consent was given and withdrawn stays (article 7, paragraph 1); what was written about it does not.
        # An older version beside this one may have recorded some since this one started.
        await self.fill_scopes()
        await self._in_chunks(
            erasure,
            "ledger.consent_texts",
            "UPDATE consents SET evidence = '' WHERE consent_id IN"
            " (SELECT consent_id FROM consents WHERE scope = $1 AND evidence <> '' LIMIT $2) RETURNING 1",
            erasure.scope,
        )
        return epoch

    async def _erase_session(self, erasure: Erasure, session_pk: int, tenant: str, resource: str) -> None:
        async with self._database.transaction() as connection:
            # Session, turn, owner, as everywhere. What its owner has in flight is committed before this or not at all.
            await connection.fetch(
                "SELECT 1 FROM sessions WHERE session_pk = $1 FOR UPDATE",
                session_pk,
            )
            running = await connection.fetch(
                "SELECT t.owner FROM turns t WHERE session_pk = $1 AND state = 'RUNNING' FOR UPDATE", session_pk
            )
            for row in running:
                await connection.fetchrow("SELECT 1 FROM owners WHERE owner = $1 FOR UPDATE", row["owner"])
            await connection.execute(
                "UPDATE turns SET state = 'INTERRUPTED', ended_at = now() WHERE session_pk = $1 AND state = 'RUNNING'",
                session_pk,
            )
            await connection.execute(
                "UPDATE sessions SET state = 'CLOSED', active_turn = NULL, closed_at = coalesce(closed_at, now())"
                " WHERE session_pk = $1",
                session_pk,
            )
        for table, key in (("events", "event_id"), ("turns", "turn_no")):
            await self._in_chunks(
                erasure,
                f"ledger.{table}",
                f"DELETE FROM {table} WHERE session_pk = $1 AND {key} IN"
                f" (SELECT {key} FROM {table} WHERE session_pk = $1 ORDER BY {key} LIMIT $2) RETURNING 1",
                session_pk,
            )
        async with self._database.transaction() as connection:
            # A session's id is the caller's, and may say something.
            await connection.execute(
                "DELETE FROM requests WHERE tenant = $1 AND method = 'CreateSession' AND resource = $2",
                tenant,
                resource,
            )
            rows = await connection.fetch("DELETE FROM sessions WHERE session_pk = $1 RETURNING 1", session_pk)
            await self.note(connection, erasure, "ledger.sessions", len(rows))

    async def _in_chunks(self, erasure: Erasure, store: str, statement: str, key: object) -> None:
        """Run a statement that erases up to $2 rows of $1, in a transaction of its own, until it finds none.

        Without a `store` they are not counted as erased.
        """
        while True:
            async with self._database.transaction() as connection:
                rows = await connection.fetch(statement, key, _CHUNK)
                if store:
                    await self.note(connection, erasure, store, len(rows))
            if len(rows) < _CHUNK:
                return

    async def _further_tables(self) -> list[str]:
        """Tables that hold something by scope and nothing else: derived from what is erased here."""
        rows = await self._database.fetch(
            "SELECT c.table_name FROM information_schema.columns c JOIN information_schema.tables t"
            " USING (table_schema, table_name) WHERE c.table_schema = current_schema() AND c.column_name = 'scope'"
            " AND t.table_type = 'BASE TABLE' ORDER BY c.table_name"
        )
        return [row["table_name"] for row in rows if row["table_name"] not in _OWN_TABLES]

    async def _erase_single(self, erasure: Erasure) -> int:
        scope, memory_ids = erasure.scope, list(erasure.memory_ids)
        async with self._database.transaction() as connection:
            turns = await connection.fetch(
                f"SELECT t.session_pk, t.turn_no, t.first_event_id, t.last_event_id {TURNS_OF}"
                " AND t.erased_at IS NULL AND t.state <> 'RUNNING' ORDER BY t.session_pk, t.turn_no FOR UPDATE OF s, t",
                scope,
                memory_ids,
                thread_of(""),
            )
            cipher = None
            if turns:
                with suppress(ScopeErased):
                    cipher = await self._vault.cipher_by_key(scope, connection)
            for turn in turns:
                events = await erase_turn(connection, cipher, *turn)
                await self.note(connection, erasure, "ledger.events", events)
            await self.note(connection, erasure, "ledger.turns", len(turns))
            erased = await self._memories.erase_words(connection, scope, memory_ids)
            await self.note(connection, erasure, "ledger.memories", erased)
            await connection.execute(
                f"UPDATE memories SET {_STRIP}, thread = CASE WHEN kind = 'fact' THEN '' ELSE thread"
                f" END WHERE {_SINGLE_TELL}",
                scope,
                memory_ids,
            )
            # That they must not state a fact again is of no use without them.
            await connection.execute(
                "DELETE FROM fact_refusals WHERE scope = $1 AND source = ANY($2)", scope, memory_ids
            )
            asked = await connection.fetch(
                f"DELETE FROM requests WHERE resource IN (SELECT memory_id::text FROM memories WHERE {_SINGLE})"
                " RETURNING 1",
                scope,
                memory_ids,
            )
            await self.note(connection, erasure, "ledger.requests", len(asked))
            # In the same transaction: what is read anew when this is heard of must not be the old words.
            epoch = erasure.epoch or await bump(connection)
            await connection.execute(
                "UPDATE scopes SET marker = CASE WHEN destroyed_at IS NULL THEN $2 ELSE '' END, changed_epoch = $3"
                " WHERE scope = $1 AND coalesce(changed_epoch, 0) < $3",
                scope,
                uuid4().hex[:16],
                epoch,
            )
            await self._spread(connection, erasure, epoch)
        self._vault.drop((scope,))
        return epoch

    # -- verification --------------------------------------------------------

    async def remaining(self, erasure: Erasure) -> dict[str, int]:
        """How much of what was to be erased each table holds."""
        if erasure.memory_ids:
            memory_ids = list(erasure.memory_ids)
            return {
                "ledger.memories": await self._count(
                    "memories WHERE scope = $1 AND memory_id = ANY($2) AND (text IS NOT NULL OR detail IS NOT NULL)",
                    erasure.scope,
                    memory_ids,
                ),
                "ledger.facts": await self._count(
                    "memories WHERE scope = $1 AND forgotten_at IS NULL AND source_ids && $2::uuid[]",
                    erasure.scope,
                    memory_ids,
                ),
                "ledger.tombstones": await self._count(f"memories WHERE {_SINGLE_TELL}", erasure.scope, memory_ids),
                "ledger.fact_refusals": await self._count(
                    "fact_refusals WHERE scope = $1 AND source = ANY($2)", erasure.scope, memory_ids
                ),
                "ledger.requests": await self._count(
                    f"requests WHERE resource IN (SELECT memory_id::text FROM memories WHERE {_SINGLE})",
                    erasure.scope,
                    memory_ids,
                ),
                "ledger.turns": int(
                    await self._database.fetchval(
                        f"SELECT count(*) {TURNS_OF} AND (t.user_text IS NOT NULL OR t.reply_text IS NOT NULL)",
                        erasure.scope,
                        memory_ids,
                        thread_of(""),
                    )
                ),
                "ledger.events": int(
                    await self._database.fetchval(
                        f"SELECT count(*) FROM events e WHERE e.kind <> '{Gap.kind}' AND (e.session_pk, e.turn_no) IN"
                        f" (SELECT t.session_pk, t.turn_no {TURNS_OF})",
                        erasure.scope,
                        memory_ids,
                        thread_of(""),
                    )
                ),
            }
        scope = erasure.scope
        found = {
            "ledger.keys": await self._count("scopes WHERE scope = $1 AND wrapped_key IS NOT NULL", scope),
            "ledger.sessions": await self._count("sessions WHERE scope = $1", scope),
            "ledger.turns": await self._count("turns JOIN sessions USING (session_pk) WHERE scope = $1", scope),
            "ledger.events": await self._count("events JOIN sessions USING (session_pk) WHERE scope = $1", scope),
            "ledger.memories": await self._count(
                "memories WHERE scope = $1 AND (forgotten_at IS NULL OR text IS NOT NULL OR detail IS NOT NULL)", scope
            ),
            "ledger.tombstones": await self._count(f"memories WHERE {_ALL_TELL}", scope),
            "ledger.requests": await self._count(
                "memories m JOIN requests r ON r.resource = m.memory_id::text WHERE m.scope = $1", scope
            ),
            "ledger.consent_texts": await self._count("consents WHERE scope = $1 AND evidence <> ''", scope),
        }
        for table in await self._further_tables():
            found[f"ledger.{table}"] = await self._count(f"{table} WHERE scope = $1", scope)
        return found

    async def _count(self, what: str, *args: object) -> int:
        return int(await self._database.fetchval(f"SELECT count(*) FROM {what}", *args))

    async def finish(self, erasure: Erasure, proof: bytes, at: datetime) -> None:
        """Record the proof and let the person come back, in one transaction."""
        async with self._database.transaction() as connection:
            new = await connection.fetchval(
                "INSERT INTO erasures (erasure, scope, memory_ids, proof, completed_at) VALUES ($1, $2, $3, $4, $5)"
                " ON CONFLICT DO NOTHING RETURNING true",
                erasure.erasure_id,
                erasure.scope,
                list(erasure.memory_ids),
                proof,
                at,
            )
            if new:
                body = {
                    "erasure": str(erasure.erasure_id),
                    "memories": len(erasure.memory_ids),
                    "person": erasure.scope,
                    "proof_sha256": sha256(proof).hexdigest(),
                    "whole_person": not erasure.memory_ids,
                }
                await audit.append(connection, erasure.tenant, "erasure", body, erasure.erasure_id)
            await connection.execute(
                "UPDATE operations SET done_at = $2, step = '', steps_done = $3, problem = ''"
                " WHERE operation = $1 AND done_at IS NULL",
                erasure.erasure_id,
                at,
                len(STEPS),
            )
            await connection.execute(
                # After a restore another of the same person may be left: they come back when that is done.
                "UPDATE scopes SET erasing = (SELECT operation FROM operations WHERE scope = $1 AND memory_ids = '{}'"
                " AND done_at IS NULL ORDER BY created_at, operation LIMIT 1) WHERE scope = $1 AND erasing = $2",
                erasure.scope,
                erasure.erasure_id,
            )
            # Needed until now to find the turn, and to make the neighbours' windows anew.
            await connection.execute(
                "UPDATE memories SET thread = '' WHERE scope = $1 AND memory_id = ANY($2) AND forgotten_at IS NOT NULL",
                erasure.scope,
                list(erasure.memory_ids),
            )

    # -- one at a time -------------------------------------------------------

    @asynccontextmanager
    async def exclusive(self, erasure: Erasure) -> AsyncIterator[bool]:
        """Whether nobody else erases in its scope; then nobody will until the block is left, or this process dies."""
        # A connection of its own: if this process dies, the lock goes with it.
        connection = await self._database.connect()
        lock = "(hashtextextended($1, 5))"
        try:
            mine = bool(await connection.fetchval(f"SELECT pg_try_advisory_lock{lock}", erasure.scope))
            try:
                yield mine
            finally:
                if mine:
                    # Now, as the server notices only later that a connection is gone.
                    with suppress(*UNREACHABLE):
                        await connection.fetchval(f"SELECT pg_advisory_unlock{lock}", erasure.scope)
        finally:
            connection.terminate()


def _erasure(row: asyncpg.Record) -> Erasure:
    return Erasure(
        erasure_id=row["operation"],
        tenant=row["tenant"],
        persona=row["persona"],
        scope=row["scope"],
        memory_ids=tuple(row["memory_ids"]),
        reason=row["reason"],
        created_at=row["created_at"],
        step=row["step"],
        steps_done=row["steps_done"],
        erased={store: int(count) for store, count in orjson.loads(row["erased"]).items()},
        epoch=row["epoch"],
        problem=row["problem"],
        done_at=row["done_at"],
        proof=row["proof"],
    )


class ErasureLog:
    """Proofs outside of the ledger, one line each, so that a restored ledger learns what it must not have.

    Args:
        path: appended to; made, for its owner only, when there is something to write.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def lines(self) -> list[bytes]:
        """Every whole line; what a crash cut off is none. Blocking."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        return [line for line in data.split(b"\n")[:-1] if line.strip()]

    def append(self, line: bytes) -> None:
        """Write a line; on return it survives a power cut. Blocking.

        Raises:
            Unavailable: the disk is full or the file can't be written.
        """
        try:
            made = not self._path.exists()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                size = os.fstat(descriptor).st_size
                cut_off = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
                left = (b"\n" if cut_off else b"") + line + b"\n"
                while left:
                    written = os.write(descriptor, left)
                    if not written:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    left = left[written:]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if made:
                folder = os.open(self._path.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
        except OSError as error:
            raise Unavailable(
                f"the erasure log can't be written: {error.strerror}", reason="ERASURE_LOG_UNWRITABLE"
            ) from error


class Eraser:
    """Carries erasures out.

    Args:
        erase_index: removes a scope's points, or those of some memories, and counts; None without an index.
        unheard: how many gateways may still keep something of before a control epoch.
        prove, to_line: the signed proof, and its line in the log.
    """

    def __init__(
        self,
        ledger: ErasureLedger,
        log: ErasureLog,
        *,
        erase_index: Callable[[str, Sequence[UUID]], Awaitable[IndexErasure]] | None,
        unheard: Callable[[int], Awaitable[int]],
        prove: Prove,
        to_line: Callable[[bytes], bytes],
    ) -> None:
        self._ledger = ledger
        self._log = log
        self._erase_index = erase_index
        self._unheard = unheard
        self._prove = prove
        self._to_line = to_line
        self._wake = asyncio.Event()
        self._ended = asyncio.Event()

    def notify(self) -> None:
        """Say that there is something to do."""
        self._wake.set()

    async def ended(self, timeout_s: float) -> None:
        """Return when an erasure ended here, or after `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()

    async def run(self, stop: asyncio.Event) -> None:
        """Carry out what is due until `stop` is set; what is under way then is taken up by the next process."""
        stopped = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                self._wake.clear()
                working = asyncio.create_task(self._work())
                await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not working.done():
                    working.cancel()
                    await asyncio.wait({working})
                    return
                woken = asyncio.create_task(self._wake.wait())
                await asyncio.wait({stopped, woken}, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                woken.cancel()
        finally:
            stopped.cancel()

    async def _work(self) -> None:
        try:
            for erasure in await self._ledger.due():
                await self.attempt(erasure)
        except (PersonaeError, *UNREACHABLE) as error:
            _log.warning("erasures_wait", reason=getattr(error, "reason", type(error).__name__))
        except Exception:
            _log.exception("erasures_failed")

    async def attempt(self, erasure: Erasure) -> bool:
        """Carry one erasure to its end if nobody else does; False if it is to be tried again."""
        try:
            async with self._ledger.exclusive(erasure) as mine:
                if not mine:
                    return False
                await self._carry_out(erasure)
        except Exception as error:
            # Whatever it is: it is told, and tried again.
            reason = error.reason if isinstance(error, PersonaeError) else type(error).__name__
            _log.warning("erasure_failed", erasure=str(erasure.erasure_id), reason=reason)
            await self._ledger.failed(erasure, reason)
            return False
        self._ended.set()
        self._ended = asyncio.Event()
        return True

    async def erase_rows(self, erasure: Erasure) -> None:
        """The steps that make the words unreadable, before anything is served; `run` does the rest.

        What another gateway has made unreadable or done is left to it. A failure once a person's key is gone, or with
        single memories, is told and left to `run`.

        Raises:
            LedgerUnavailable: the ledger is out of reach; it can be called again.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _CACHES_S
        while True:
            async with self._ledger.exclusive(erasure) as mine:
                try:
                    erasure = await self._ledger.reload(erasure)
                except NotFound:
                    return
                if erasure.done_at is not None or (erasure.epoch and not mine):
                    return
                if mine:
                    await self._erase_rows(erasure)
                    return
            if loop.time() > deadline:
                _log.error("erasure_held_elsewhere", erasure=str(erasure.erasure_id))
                return
            await asyncio.sleep(_POLL_S)

    async def _erase_rows(self, erasure: Erasure) -> None:
        await self._ledger.take_key(erasure)
        try:
            await self._ledger.erase_rows(await self._ledger.reload(erasure))
        except LedgerUnavailable:
            raise
        except Exception as error:
            reason = error.reason if isinstance(error, PersonaeError) else type(error).__name__
            _log.error("erasure_failed", erasure=str(erasure.erasure_id), reason=reason, exc_info=True)
            await self._ledger.failed(erasure, reason)

    async def _carry_out(self, erasure: Erasure) -> None:
        ledger = self._ledger
        erasure = await ledger.reload(erasure)
        if erasure.done_at is not None:
            return
        await ledger.begin(erasure, "key")
        await ledger.take_key(erasure)
        await ledger.begin(erasure, "ledger")
        epoch = await ledger.erase_rows(await ledger.reload(erasure))
        remaining: dict[str, int] = {}
        if self._erase_index is not None:
            await ledger.begin(erasure, "index")
            points = await self._erase_index(erasure.scope, erasure.memory_ids)
            await ledger.note_index(erasure, points.erased)
            remaining["index.points"] = points.remaining
        await ledger.begin(erasure, "caches")
        remaining["caches"] = await self._caches(epoch)
        await ledger.begin(erasure, "proof")
        remaining |= await ledger.remaining(erasure)
        left = sorted(store for store, count in remaining.items() if count)
        if left:
            raise Unavailable(f"an erasure is not complete in {', '.join(left)}", reason="ERASURE_INCOMPLETE")
        erasure, at = await ledger.reload(erasure), datetime.now(UTC)
        proof = self._prove(erasure, remaining, at)
        await asyncio.to_thread(self._log.append, self._to_line(proof))
        await ledger.finish(erasure, proof, at)

    async def _caches(self, epoch: int) -> int:
        """Gateways that may still keep something in memory, once that is none or after a while."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _CACHES_S
        while (count := await self._unheard(epoch)) and loop.time() < deadline:  # noqa: ASYNC110  (others' state)
            await asyncio.sleep(_POLL_S)
        return count
