"""Memories in the ledger: the words, whether they live, and the feed of changes."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg

from personae_runtime.errors import Aborted, FailedPrecondition, NotFound
from personae_runtime.ledger.control import bump
from personae_runtime.ledger.database import Connection, Database
from personae_runtime.ledger.facts import TOMBSTONE, FactLedger
from personae_runtime.ledger.feed import ChangeFeed
from personae_runtime.ledger.personas import Mutation, once
from personae_runtime.ledger.vault import ScopeCipher, ScopeErased, Vault
from personae_runtime.memory.extraction import Words
from personae_runtime.memory.facts import Statement
from personae_runtime.memory.index import PointKind
from personae_runtime.memory.store import (
    Basis,
    FactDetail,
    MemoryChange,
    MemoryRecord,
    MemorySource,
    Span,
)
from personae_runtime.policy.decision import AgeBand, PolicyContext
from personae_runtime.sessions.events import Gap, encode

KEPT = "forgotten_at IS NULL AND (expires_at IS NULL OR expires_at > now())"
"""SQL: a row of `memories` whose words are held."""
LIVE = f"{KEPT} AND restricted_at IS NULL AND quarantine_reason = ''"
"""SQL: a row of `memories` that may be recalled."""
_CHANGED = (
    "version = version + 1, updated_at = now(),"
    " change_xid = pg_current_xact_id(), change_seq = nextval('memory_changes')"
)
"""SQL: assignments that put a row at the end of the feed."""
TURNS_OF = (
    "FROM memories m JOIN sessions s ON s.scope = m.scope AND m.thread = $3 || s.session"
    " JOIN turns t ON t.session_pk = s.session_pk AND t.turn_no = m.ordinal"
    " WHERE m.scope = $1 AND m.memory_id = ANY($2) AND m.source = 'turn'"
)
"""SQL: turns whose words memories hold. $1 scope, $2 memory ids, $3 what threads of sessions begin with."""
_COLUMNS = (
    "memory_id, scope, text, speaker, thread, ordinal, source, external_id, occurred_at, created_at, expires_at, kind,"
    " detail, valid_from, valid_to, superseded_by, confidence, basis, extractor, source_ids, pinned, restricted_at,"
    " quarantine_reason, version, updated_at"
)

_WRITTEN = (
    "memory_id, scope, text, speaker, thread, ordinal, source, external_id, occurred_at, created_at, expires_at, kind,"
    " detail, slot, valid_from, valid_to, superseded_by, confidence, basis, extractor, source_ids, pinned,"
    " restricted_at, quarantine_reason"
)
"""Columns of a new row of `memories`."""
_GIVEN = (
    "$1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22,"
    " CASE WHEN $23 THEN now() END, $24"
)
"""SQL: what `_row` gives for them."""

MOST_OPENED: Final = 20_000
"""Memories that a process keeps open; about 1 KB each."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long memories are kept that nobody pinned; None is without end.

    Attributes:
        episodes: words, since they were said.
        facts: a fact that holds, since it was last said.
        closed_facts: a fact that does not, since it ceased to.
    """

    episodes: timedelta | None = None
    facts: timedelta | None = None
    closed_facts: timedelta | None = None


@dataclass(frozen=True, slots=True)
class _Due:
    """A question of the sweep, answered in pages by one index.

    Attributes:
        query: of an age, the place (time, id) after which the page begins, and its size.
        are_facts: what it finds goes for its age, and not with what it says.
    """

    query: str
    are_facts: bool = False


def _due(at: str, where: str, stays: str = "false", *, are_facts: bool = False) -> _Due:
    # What stays is told apart only within the page: a page is never looked for among many that stay.
    return _Due(
        f"SELECT memory_id, scope, at, {stays} AS stays FROM (SELECT memory_id, scope, {at} AS at, slot, valid_to"
        f" FROM memories WHERE forgotten_at IS NULL AND {where} AND {at} <= now() - $1::interval"
        f" AND ({at}, memory_id) > ($2::timestamptz, $3::uuid) ORDER BY {at}, memory_id LIMIT $4) m"
        " ORDER BY at, memory_id",
        are_facts,
    )


_FIRST = (datetime.min.replace(tzinfo=UTC), UUID(int=0))
_EXPIRED = _due("expires_at", "expires_at IS NOT NULL")
_OLD_WORDS = _due(
    "greatest(occurred_at, created_at)",
    "kind = 'episode' AND NOT pinned",
    "EXISTS (SELECT FROM memories f WHERE f.scope = m.scope AND f.kind = 'fact' AND f.forgotten_at IS NULL"
    " AND (f.valid_to IS NULL OR f.pinned) AND f.source_ids @> ARRAY[m.memory_id])",
)
_OLD_FACTS = _due(
    "occurred_at",
    "kind = 'fact' AND NOT pinned",
    # A fact that holds takes what is older in its slot along, unless somebody pinned that.
    "m.valid_to IS NULL AND EXISTS (SELECT FROM memories p WHERE p.scope = m.scope AND p.slot = m.slot"
    " AND p.kind = 'fact' AND p.forgotten_at IS NULL AND p.pinned)",
    are_facts=True,
)
_CLOSED_FACTS = _due("valid_to", "kind = 'fact' AND NOT pinned AND valid_to IS NOT NULL", are_facts=True)


class _Opened:
    """Memories whose words lie open, as long as their scope's key is held: what is read in each turn of a session is
    then asked of the ledger by version only. Those of the scope that was read longest ago go first.

    Args:
        most: memories.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._records: dict[UUID, MemoryRecord] = {}
        self._scopes: OrderedDict[str, set[UUID]] = OrderedDict()

    def get(self, memory_id: UUID) -> MemoryRecord | None:
        record = self._records.get(memory_id)
        if record is not None:
            self._scopes.move_to_end(record.scope)
        return record

    def keep(self, record: MemoryRecord) -> None:
        self._records[record.memory_id] = record
        self._scopes.setdefault(record.scope, set()).add(record.memory_id)
        self._scopes.move_to_end(record.scope)
        while len(self._records) > self._most:
            self.drop(next(iter(self._scopes)))

    def drop(self, scope: str) -> None:
        for memory_id in self._scopes.pop(scope, ()):
            del self._records[memory_id]


class MemoryLedger(ChangeFeed):
    """Implements `personae_runtime.memory.store.MemoryStore`, and the writes."""

    def __init__(self, database: Database, vault: Vault, *, max_facts: int = 300) -> None:
        super().__init__(database, table="memories", key="memory_id", erased="forgotten_at")
        self._vault = vault
        self.facts = FactLedger(vault, cap=max_facts)
        self._swept: dict[Retention, dict[_Due, tuple[datetime, UUID]]] = {}
        self._opened = _Opened(MOST_OPENED)
        vault.on_drop(self._opened.drop)

    async def create(
        self, record: MemoryRecord, tenant: str, mutation: Mutation, statements: Sequence[Statement] = ()
    ) -> MemoryRecord:
        """Store one memory and what it says; durable on return. A repeated mutation returns what the first stored.

        Raises:
            NotFound: the first call's memory was forgotten since.
            ErasureInProgress: what is held of the person is being erased.
        """
        # The scope's key is made for good before anything is sealed with it.
        cipher = await self._vault.renew(record.scope)
        if mutation.request_id and not statements and await self._create_at_once(record, cipher, tenant, mutation):
            return record
        async with self._database.transaction() as connection:

            async def act() -> str:
                await self.insert(connection, record, statements=statements)
                return str(record.memory_id)

            memory_id = UUID(await once(connection, tenant, mutation, act, str(record.memory_id)))
        if memory_id == record.memory_id:
            return record
        found = await self.read([memory_id])
        if memory_id not in found:
            raise NotFound("the memory this request_id stored was forgotten", reason="MEMORY_FORGOTTEN")
        return found[memory_id]

    async def _create_at_once(self, record: MemoryRecord, cipher: ScopeCipher, tenant: str, mutation: Mutation) -> bool:
        """As `create`, of what states nothing, in one statement and so one transaction; False if nothing was written,
        because it was before or because the scope is another by now."""
        row = _row(record, cipher, None)
        # Each part writes only what the one before lets it: `Vault.hold`, `once`, `insert`.
        first = len(row) + 1
        return bool(
            await self._database.fetchval(
                "WITH held AS (SELECT true FROM scopes WHERE scope = $2 AND destroyed_at IS NULL"
                f"  AND generation = ${first} FOR KEY SHARE),"
                " claimed AS (INSERT INTO requests (tenant, method, request_id, body_mac, resource)"
                f"  SELECT ${first + 1}, ${first + 2}, ${first + 3}, ${first + 4}, $1::uuid::text FROM held"
                "  ON CONFLICT DO NOTHING RETURNING true)"
                f" INSERT INTO memories ({_WRITTEN}) SELECT {_GIVEN} FROM claimed RETURNING true",
                *row,
                cipher.generation,
                tenant,
                mutation.method,
                UUID(mutation.request_id),
                mutation.body_mac,
            )
        )

    async def insert(
        self,
        connection: Connection,
        record: MemoryRecord,
        *,
        slot: bytes | None = None,
        statements: Sequence[Statement] = (),
    ) -> None:
        """Write one memory, and the facts that it states, within the caller's transaction.

        `slot` hashes what only one fact may say at a time.
        """
        cipher = await self._vault.cipher_by_key(record.scope, connection)
        await self._vault.hold(connection, cipher)
        # Its id makes a retry after a lost connection harmless.
        await connection.execute(
            f"INSERT INTO memories ({_WRITTEN}) VALUES ({_GIVEN}) ON CONFLICT DO NOTHING", *_row(record, cipher, slot)
        )
        await self.facts.add(connection, record, statements)

    async def get(self, scope: str, memory_id: UUID) -> MemoryRecord:
        """One memory whose words are held; those kept from recall, too.

        Raises:
            NotFound: the scope has none of that id.
        """
        row = await self._database.fetchrow(
            f"SELECT {_COLUMNS} FROM memories WHERE memory_id = $1 AND scope = $2 AND {KEPT}", memory_id, scope
        )
        record = None if row is None else await self.record(row)
        if record is None:
            raise NotFound("there is no such memory")
        return record

    async def update(
        self,
        scope: str,
        memory_id: UUID,
        changes: Mapping[str, Any],
        *,
        version: str,
        tenant: str,
        mutation: Mutation,
        states: Callable[[MemoryRecord], Sequence[Statement]] = lambda record: (),
    ) -> MemoryRecord:
        """Change a memory; durable on return. A repeated mutation changes nothing more.

        New words replace the old for good: facts lose the support of the old
        ones, and a quarantine is lifted, as the caller has judged the new. What
        is restricted supports no fact while it is.

        Args:
            changes: any of text, speaker, occurred_at, expires_at, pinned and restricted.
            states: what a memory's words state, as `create` is told.
            version: of the state that may be changed; empty for any.

        Raises:
            NotFound: the scope has none of that id.
            Aborted: it is of another version (reason ETAG_MISMATCH).
            FailedPrecondition: the words of a fact were to change (reason MEMORY_IS_FACT).
        """
        async with self._database.transaction() as connection:

            async def act() -> str:
                # Sessions and turns before scopes, as everywhere.
                turns = await self._turns(connection, scope, memory_id) if {"text", "restricted"} & set(changes) else ()
                await self.facts.lock(connection, scope)
                row = await connection.fetchrow(
                    f"SELECT {_COLUMNS} FROM memories WHERE memory_id = $1 AND scope = $2 AND {KEPT} FOR UPDATE",
                    memory_id,
                    scope,
                )
                old = None if row is None else await self.record(row)
                if old is None:
                    raise NotFound("there is no such memory")
                if version and version != str(old.version):
                    raise Aborted("the memory changed since it was read; get it again", reason="ETAG_MISMATCH")
                new = replace(old, **changes)
                if old.fact is not None and (new.text, new.speaker) != (old.text, old.speaker):
                    raise FailedPrecondition(
                        "a fact says what its sources say: rectify those, or forget it", reason="MEMORY_IS_FACT"
                    )
                if new.text != old.text:
                    new = replace(new, quarantine_reason="")
                cipher = await self._vault.cipher_by_key(scope, connection)
                await self._vault.hold(connection, cipher)
                await connection.execute(
                    "UPDATE memories SET text = $2, speaker = $3, occurred_at = $4, expires_at = $5, pinned = $6,"
                    " restricted_at = CASE WHEN $7 THEN coalesce(restricted_at, now()) END, quarantine_reason = $8,"
                    f" own_expires_at = CASE WHEN $9 THEN $5 ELSE own_expires_at END, {_CHANGED} WHERE memory_id = $1",
                    memory_id,
                    cipher.seal(new.text.encode(), f"memory/{memory_id}/text"),
                    cipher.seal(new.speaker.encode(), f"memory/{memory_id}/speaker"),
                    new.occurred_at,
                    new.expires_at,
                    new.pinned,
                    new.restricted,
                    new.quarantine_reason,
                    old.fact is not None and "expires_at" in changes,
                )
                if turns:
                    await self._retire(connection, cipher, turns, old, new)
                if old.fact is not None:
                    await self.facts.changed(connection, scope, [memory_id])
                elif _supports(new) != _supports(old):
                    await self.drop_support(connection, scope, [memory_id])
                    if new.text != old.text:
                        await self.facts.allow(connection, scope, [memory_id])
                    if not new.restricted and not new.quarantine_reason:
                        await self.facts.add(connection, new, states(new))
                return str(memory_id)

            await once(connection, tenant, mutation, act)
        if {"text", "restricted"} & set(changes):
            # The marker may be another.
            self._vault.drop((scope,))
        return await self.get(scope, memory_id)

    async def _turns(self, connection: Connection, scope: str, memory_id: UUID) -> list[asyncpg.Record]:
        """The turn that left a memory, locked, unless its words are gone already."""
        # It imports this module.
        from personae_runtime.ledger.sessions import thread_of

        rows: list[asyncpg.Record] = await connection.fetch(
            f"SELECT t.session_pk, t.turn_no, t.first_event_id, t.last_event_id {TURNS_OF}"
            " AND t.erased_at IS NULL AND t.state <> 'RUNNING' ORDER BY t.session_pk, t.turn_no FOR UPDATE OF s, t",
            scope,
            [memory_id],
            thread_of(""),
        )
        return rows

    async def _retire(
        self,
        connection: Connection,
        cipher: ScopeCipher,
        turns: Sequence[asyncpg.Record],
        old: MemoryRecord,
        new: MemoryRecord,
    ) -> None:
        """See that the turn which left a memory says no more than the memory does.

        Words that were replaced leave it, with the reply to them and its events,
        as if they had been erased. Words that are restricted stay in it, but out
        of the history; they are in it again when the restriction is lifted.
        """
        if new.text == old.text and new.restricted == old.restricted:
            return
        for turn in turns:
            key = (turn["session_pk"], turn["turn_no"])
            if new.text != old.text:
                await erase_turn(connection, cipher, *key, turn["first_event_id"], turn["last_event_id"])
            else:
                await connection.execute(
                    "UPDATE turns SET in_history = $3 WHERE session_pk = $1 AND turn_no = $2", *key, not new.restricted
                )
        if new.text != old.text or new.restricted:
            # In the same transaction: what is read anew when this is heard of must not be the old words.
            await connection.execute(
                "UPDATE scopes SET marker = $2, changed_epoch = $3 WHERE scope = $1 AND destroyed_at IS NULL",
                old.scope,
                uuid4().hex[:16],
                await bump(connection),
            )

    async def quarantine(self, memory_id: UUID, reason: str) -> None:
        """Keep a memory from every prompt until its words are others; the first reason code stays."""
        async with self._database.transaction() as connection:
            scope = await connection.fetchval("SELECT scope FROM memories WHERE memory_id = $1", memory_id)
            if scope is None:
                return
            await self.facts.lock(connection, scope)
            kind = await connection.fetchval(
                f"UPDATE memories SET quarantine_reason = $2, {_CHANGED}"
                " WHERE memory_id = $1 AND quarantine_reason = '' AND forgotten_at IS NULL RETURNING kind",
                memory_id,
                reason,
            )
            if kind == PointKind.FACT:
                await self.facts.changed(connection, scope, [memory_id])
            elif kind is not None:
                # What may not stand in a prompt states nothing either.
                await self.drop_support(connection, scope, [memory_id])

    async def forget(self, scope: str, memory_id: UUID) -> bool:
        """Erase the words and what rests on them alone, and leave tombstones in the feed; False if it was done before.

        Raises:
            NotFound: the scope never had it.
        """
        async with self._database.transaction() as connection:
            await self.facts.lock(connection, scope)
            row = await connection.fetchrow(
                "SELECT forgotten_at FROM memories WHERE memory_id = $1 AND scope = $2 FOR UPDATE", memory_id, scope
            )
            if row is None:
                raise NotFound("there is no such memory")
            if row["forgotten_at"] is not None:
                return False
            await self.erase_words(connection, scope, [memory_id])
            return True

    async def erase_words(self, connection: Connection, scope: str, memory_ids: Sequence[UUID]) -> int:
        """Leave tombstones in place of memories and of what rests on them alone; how many there were.

        Within the caller's transaction, which has locked the scope (`facts.lock`).
        """
        with suppress(ScopeErased):
            await self.facts.refuse(connection, scope, memory_ids)
            # Of what is gone itself nothing is read again.
            await self.facts.allow(connection, scope, memory_ids)
        dropped = await self.drop_support(connection, scope, memory_ids)
        rows = await connection.fetch(
            f"{TOMBSTONE} WHERE memory_id = ANY($1) AND forgotten_at IS NULL RETURNING 1", list(memory_ids)
        )
        self._opened.drop(scope)
        return len(rows) + dropped

    async def drop_support(self, connection: Connection, scope: str, gone: Collection[UUID]) -> int:
        """Take memories away from the facts that rest on them; how many of those are forgotten for it."""
        # Once its key is gone nothing can be read, and so nothing arranged, any more.
        with suppress(ScopeErased):
            return await self.facts.unsupport(connection, scope, gone)
        return 0

    async def sweep(self, retention: Retention, *, limit: int = 500) -> int:
        """Forget what is due, until it is at least `limit` memories or there is no more; how many. Call until it is 0.

        Due is what has expired, and what is older than `retention` says. Pinned
        memories stay, and so do words that a fact which still holds, or is
        pinned, rests on. A call goes on where the one before stopped, so that
        what stays is not looked at again before all the rest was.
        """
        places = self._swept.setdefault(retention, {})
        done = 0
        for due, age in (
            (_EXPIRED, timedelta(0)),
            (_OLD_FACTS, retention.facts),
            (_CLOSED_FACTS, retention.closed_facts),
            # Last, as facts that go may have kept them.
            (_OLD_WORDS, retention.episodes),
        ):
            more = age is not None
            while more:
                if done >= limit:
                    return done
                rows = await self._database.fetch(due.query, age, *places.get(due, _FIRST), limit)
                more = len(rows) == limit
                if rows:
                    places[due] = (rows[-1]["at"], rows[-1]["memory_id"])
                done += await self._sweep([row for row in rows if not row["stays"]], are_facts=due.are_facts)
        # The next call begins anew.
        self._swept.clear()
        return done

    async def _sweep(self, rows: Sequence[asyncpg.Record], *, are_facts: bool) -> int:
        by_scope: dict[str, list[UUID]] = {}
        for row in rows:
            by_scope.setdefault(row["scope"], []).append(row["memory_id"])
        done = 0
        for scope, memory_ids in by_scope.items():
            async with self._database.transaction() as connection:
                await self.facts.lock(connection, scope)
                if are_facts:
                    with suppress(ScopeErased):
                        done += await self.facts.expire(connection, scope, memory_ids)
                else:
                    done += await self.erase_words(connection, scope, memory_ids)
        return done

    async def list_memories(
        self, scope: str, *, before: tuple[datetime, UUID] | None, limit: int, kind: PointKind | None = None
    ) -> list[MemoryRecord]:
        """Memories of a scope, newest first, after the place `before` in that order; those kept from recall, too."""
        at, memory_id = before or (datetime.max.replace(tzinfo=UTC), UUID(int=2**128 - 1))
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM memories WHERE scope = $1 AND (created_at, memory_id) < ($2, $3) AND {KEPT}"
            " AND ($5::text IS NULL OR kind = $5) ORDER BY created_at DESC, memory_id DESC LIMIT $4",
            scope,
            at,
            memory_id,
            limit,
            kind,
        )
        return [record for row in rows if (record := await self.record(row)) is not None]

    # -- ExtractionLedger ----------------------------------------------------

    async def said_in_turns(self, changes: Sequence[MemoryChange]) -> list[Words]:
        rows = await self._database.fetch(
            "SELECT m.memory_id, p.type, s.age_band, s.region_code, s.tenant, s.persona, s.revision FROM memories m"
            " JOIN sessions s ON s.scope = m.scope AND m.thread = 'session/' || s.session"
            " JOIN personas p ON p.tenant = s.tenant AND p.persona = s.persona"
            " WHERE m.memory_id = ANY($1) AND m.source = 'turn' AND m.kind = 'episode' AND coalesce("
            "  (SELECT c.state FROM consents c WHERE c.tenant = s.tenant AND c.persona = s.persona"
            "   AND c.user_id = s.user_id AND c.purpose = 'MEMORY' ORDER BY c.consent_id DESC LIMIT 1), '')"
            "  <> 'WITHDRAWN'",
            [change.memory_id for change in changes],
        )
        records = await self.read([row["memory_id"] for row in rows])
        return [
            Words(
                record,
                PolicyContext(
                    row["type"],
                    AgeBand(row["age_band"]),
                    row["region_code"],
                    tenant=row["tenant"],
                    persona=row["persona"],
                    revision=row["revision"],
                ),
            )
            for row in rows
            if (record := records.get(row["memory_id"])) is not None
        ]

    async def state(self, record: MemoryRecord, statements: Sequence[Statement]) -> bool:
        async with self._database.transaction() as connection:
            await self.facts.lock(connection, record.scope)
            lives = await connection.fetchval(
                f"SELECT true FROM memories WHERE memory_id = $1 AND {LIVE} AND version = $2",
                record.memory_id,
                record.version,
            )
            if lives:
                await self.facts.add(connection, record, statements)
            return bool(lives)

    # -- MemoryStore ---------------------------------------------------------

    async def read(self, memory_ids: Sequence[UUID]) -> dict[UUID, MemoryRecord]:
        known = {memory_id: found for memory_id in memory_ids if (found := self._opened.get(memory_id)) is not None}
        opened, sealed = await asyncio.gather(
            self._unchanged(known), self._open([memory_id for memory_id in memory_ids if memory_id not in known])
        )
        changed = [memory_id for memory_id, record in opened.items() if record is None]
        read = opened | sealed | (await self._open(changed) if changed else {})
        return {memory_id: record for memory_id, record in read.items() if record is not None}

    def speakers_known(self, scope: str, memory_ids: Sequence[UUID]) -> set[str] | None:
        found = [self._opened.get(memory_id) for memory_id in memory_ids]
        known = [record for record in found if record is not None and record.scope == scope]
        return {record.speaker for record in known} if len(known) == len(found) else None

    async def _unchanged(self, known: Mapping[UUID, MemoryRecord]) -> dict[UUID, MemoryRecord | None]:
        """Those of the memories that may still be recalled; None for one that is another by now."""
        if not known:
            return {}
        rows = await self._database.fetch(
            f"SELECT memory_id, version FROM memories WHERE memory_id = ANY($1) AND {LIVE}", list(known)
        )
        return {
            row["memory_id"]: record if (record := known[row["memory_id"]]).version == row["version"] else None
            for row in rows
        }

    async def _open(self, memory_ids: Sequence[UUID]) -> dict[UUID, MemoryRecord]:
        """Those of the memories that may be recalled, and from now on are kept open."""
        if not memory_ids:
            return {}
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM memories WHERE memory_id = ANY($1) AND {LIVE}", list(memory_ids)
        )
        found = {}
        for row in rows:
            with suppress(ScopeErased):
                cipher = await self._vault.cipher_by_key(row["scope"])
                record = await self.record(row, cipher)
                assert record is not None
                found[record.memory_id] = record
                # A key that was dropped since takes what it opened with it.
                if self._vault.held(record.scope) is cipher:
                    self._opened.keep(record)
        return found

    async def neighbours(
        self, memory_ids: Sequence[UUID]
    ) -> dict[UUID, tuple[MemoryRecord | None, MemoryRecord | None]]:
        side = (
            "SELECT n.memory_id FROM memories n WHERE n.scope = m.scope AND n.thread = m.thread"
            " AND (n.ordinal, n.memory_id) {op} (m.ordinal, m.memory_id) AND n.kind = 'episode'"
            f" AND {LIVE}"
            " ORDER BY n.ordinal {order}, n.memory_id {order} LIMIT 1"
        )
        rows = await self._database.fetch(
            f"SELECT m.memory_id, ({side.format(op='<', order='DESC')}) AS before,"
            f" ({side.format(op='>', order='ASC')}) AS after FROM memories m"
            " WHERE m.memory_id = ANY($1) AND m.kind = 'episode'",
            list(memory_ids),
        )
        wanted = {row[side] for row in rows for side in ("before", "after") if row[side] is not None}
        found = await self.read(list(wanted)) if wanted else {}
        return {row["memory_id"]: (found.get(row["before"]), found.get(row["after"])) for row in rows}

    async def record(self, row: asyncpg.Record, cipher: ScopeCipher | None = None) -> MemoryRecord | None:
        """The memory that a whole row holds; None if its scope was erased. A cipher that is held reads it still."""
        if cipher is None:
            try:
                cipher = await self._vault.cipher_by_key(row["scope"])
            except ScopeErased:
                return None
        memory_id = row["memory_id"]
        detail = row["detail"]
        return MemoryRecord(
            memory_id=memory_id,
            scope=row["scope"],
            text=cipher.open(row["text"], f"memory/{memory_id}/text").decode(),
            speaker=cipher.open(row["speaker"], f"memory/{memory_id}/speaker").decode(),
            occurred_at=row["occurred_at"],
            thread=row["thread"],
            ordinal=row["ordinal"],
            source=MemorySource(row["source"]),
            created_at=row["created_at"],
            expires_at=row["expires_at"],
            external_id=row["external_id"],
            fact=None if detail is None else _fact(row, cipher.open(detail, f"memory/{memory_id}/detail")),
            source_ids=tuple(row["source_ids"]),
            pinned=row["pinned"],
            restricted=row["restricted_at"] is not None,
            quarantine_reason=row["quarantine_reason"],
            version=row["version"],
            updated_at=row["updated_at"],
        )


async def erase_turn(
    connection: Connection, cipher: ScopeCipher | None, session_pk: int, turn_no: int, first: int, last: int
) -> int:
    """Take the words of a turn that has ended, its reply and its events; how many events.

    One that tells a stream that there were some stands in their place, if there is a cipher to seal it with.
    """
    # It imports this module.
    from personae_runtime.ledger.sessions import event_place

    await connection.execute(
        "UPDATE turns SET user_text = NULL, reply_text = NULL, in_history = false, body_mac = '', erased_at = now()"
        " WHERE session_pk = $1 AND turn_no = $2",
        session_pk,
        turn_no,
    )
    gone = await connection.fetch(
        "DELETE FROM events WHERE session_pk = $1 AND turn_no = $2 RETURNING 1", session_pk, turn_no
    )
    if cipher is not None:
        body = Gap(first, last)
        await connection.execute(
            "INSERT INTO events (session_pk, event_id, turn_no, kind, body, created_at)"
            " VALUES ($1, $2, $3, $4, $5, now())",
            session_pk,
            last,
            turn_no,
            body.kind,
            cipher.seal(encode(body), event_place(session_pk, last)),
        )
    return len(gone)


def _row(record: MemoryRecord, cipher: ScopeCipher, slot: bytes | None) -> tuple[Any, ...]:
    """A memory's values for `_GIVEN`, its words sealed."""
    fact = record.fact
    return (
        record.memory_id,
        record.scope,
        cipher.seal(record.text.encode(), f"memory/{record.memory_id}/text"),
        cipher.seal(record.speaker.encode(), f"memory/{record.memory_id}/speaker"),
        record.thread,
        record.ordinal,
        record.source.value,
        record.external_id,
        record.occurred_at,
        record.created_at,
        record.expires_at,
        record.kind.value,
        None if fact is None else cipher.seal(_detail(fact), f"memory/{record.memory_id}/detail"),
        slot,
        None if fact is None else fact.valid_from,
        None if fact is None else fact.valid_to,
        None if fact is None else fact.superseded_by,
        1.0 if fact is None else fact.confidence,
        "" if fact is None else fact.basis.value,
        "" if fact is None else fact.extractor,
        list(record.source_ids),
        record.pinned,
        record.restricted,
        record.quarantine_reason,
    )


def _supports(record: MemoryRecord) -> tuple[object, ...]:
    """What the facts that a memory states depend on."""
    return (
        *(record.text, record.speaker, record.occurred_at, record.expires_at),
        *(record.restricted, record.quarantine_reason),
    )


def _detail(fact: FactDetail) -> bytes:
    spans = [[str(span.memory_id), span.begin, span.end] for span in fact.spans]
    return json.dumps([fact.subject, fact.predicate, fact.value, spans]).encode()


def _fact(row: asyncpg.Record, detail: bytes) -> FactDetail:
    subject, predicate, value, spans, *_ = json.loads(detail)
    return FactDetail(
        subject=subject,
        predicate=predicate,
        value=value,
        valid_from=row["valid_from"],
        valid_to=row["valid_to"],
        superseded_by=row["superseded_by"],
        confidence=row["confidence"],
        basis=Basis(row["basis"]),
        extractor=row["extractor"],
        spans=tuple(Span(UUID(memory_id), begin, end) for memory_id, begin, end in spans),
    )
