"""Memories in the ledger: the words, whether they live, and the feed of changes."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg

from personae_runtime.errors import Aborted, FailedPrecondition, NotFound
from personae_runtime.ledger.database import Connection, Database
from personae_runtime.ledger.personas import Mutation, once
from personae_runtime.ledger.vault import ScopeErased, Vault
from personae_runtime.memory.index import PointKind
from personae_runtime.memory.store import (
    Basis,
    ChangeCursor,
    FactDetail,
    MemoryChange,
    MemoryRecord,
    MemorySource,
    Span,
)

KEPT = "forgotten_at IS NULL AND (expires_at IS NULL OR expires_at > now())"
"""SQL: a row of `memories` whose words are held."""
LIVE = f"{KEPT} AND restricted_at IS NULL AND quarantine_reason = ''"
"""SQL: a row of `memories` that may be recalled."""
_CHANGED = (
    "version = version + 1, updated_at = now(),"
    " change_xid = pg_current_xact_id(), change_seq = nextval('memory_changes')"
)
"""SQL: assignments that put a row at the end of the feed."""
_COLUMNS = (
    "memory_id, scope, text, speaker, thread, ordinal, source, external_id, occurred_at, created_at, expires_at, kind,"
    " detail, valid_from, valid_to, superseded_by, confidence, basis, extractor, source_ids, pinned, restricted_at,"
    " quarantine_reason, version, updated_at"
)


class MemoryLedger:
    """Implements `personae_runtime.memory.store.MemoryStore`, and the writes."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    async def create(self, record: MemoryRecord, tenant: str, mutation: Mutation) -> MemoryRecord:
        """Store one memory; durable on return. A repeated mutation returns what the first stored.

        Raises:
            NotFound: the first call's memory was forgotten since.
            ErasureInProgress: what is held of the person is being erased.
        """
        # The scope's key is made for good before anything is sealed with it.
        await self._vault.renew(record.scope)
        async with self._database.transaction() as connection:

            async def act() -> str:
                await self.insert(connection, record)
                return str(record.memory_id)

            memory_id = UUID(await once(connection, tenant, mutation, act))
        if memory_id == record.memory_id:
            return record
        found = await self.read([memory_id])
        if memory_id not in found:
            raise NotFound("the memory this request_id stored was forgotten")
        return found[memory_id]

    async def insert(self, connection: Connection, record: MemoryRecord, *, slot: bytes | None = None) -> None:
        """Write one memory within the caller's transaction; `slot` hashes what only one fact may say at a time."""
        fact = record.fact
        cipher = await self._vault.cipher_by_key(record.scope, connection)
        await self._vault.hold(connection, cipher)
        await connection.execute(
            "INSERT INTO memories (memory_id, scope, text, speaker, thread, ordinal, source, external_id,"
            " occurred_at, created_at, expires_at, kind, detail, slot, valid_from, valid_to, superseded_by, confidence,"
            " basis, extractor, source_ids, pinned, restricted_at, quarantine_reason)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21,"
            " $22, CASE WHEN $23 THEN now() END, $24)"
            # Its id makes a retry after a lost connection harmless.
            " ON CONFLICT DO NOTHING",
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
        self, scope: str, memory_id: UUID, changes: Mapping[str, Any], *, version: str, tenant: str, mutation: Mutation
    ) -> MemoryRecord:
        """Change a memory; durable on return. A repeated mutation changes nothing more.

        New words replace the old for good: facts lose the support of the old
        ones, and a quarantine is lifted, as the caller has judged the new.

        Args:
            changes: any of text, speaker, occurred_at, expires_at, pinned and restricted.
            version: of the state that may be changed; empty for any.

        Raises:
            NotFound: the scope has none of that id.
            Aborted: it is of another version (reason ETAG_MISMATCH).
            FailedPrecondition: the words of a fact were to change (reason MEMORY_IS_FACT).
        """
        async with self._database.transaction() as connection:

            async def act() -> str:
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
                    await self.drop_support(connection, scope, [memory_id])
                    new = replace(new, quarantine_reason="")
                cipher = await self._vault.cipher_by_key(scope, connection)
                await self._vault.hold(connection, cipher)
                await connection.execute(
                    "UPDATE memories SET text = $2, speaker = $3, occurred_at = $4, expires_at = $5, pinned = $6,"
                    " restricted_at = CASE WHEN $7 THEN coalesce(restricted_at, now()) END, quarantine_reason = $8,"
                    f" {_CHANGED} WHERE memory_id = $1",
                    memory_id,
                    cipher.seal(new.text.encode(), f"memory/{memory_id}/text"),
                    cipher.seal(new.speaker.encode(), f"memory/{memory_id}/speaker"),
                    new.occurred_at,
                    new.expires_at,
                    new.pinned,
                    new.restricted,
                    new.quarantine_reason,
                )
                return str(memory_id)

            await once(connection, tenant, mutation, act)
        return await self.get(scope, memory_id)

    async def quarantine(self, memory_id: UUID, reason: str) -> None:
        """Keep a memory from every prompt until its words are others; the first reason code stays."""
        await self._database.execute(
            f"UPDATE memories SET quarantine_reason = $2, {_CHANGED}"
            " WHERE memory_id = $1 AND quarantine_reason = '' AND forgotten_at IS NULL",
            memory_id,
            reason,
        )

    async def forget(self, scope: str, memory_id: UUID) -> bool:
        """Erase the words, and facts that rest on them alone; False if it was forgotten before.

        Raises:
            NotFound: the scope never had it.
        """
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(
                "SELECT forgotten_at FROM memories WHERE memory_id = $1 AND scope = $2 FOR UPDATE", memory_id, scope
            )
            if row is None:
                raise NotFound("there is no such memory")
            if row["forgotten_at"] is not None:
                return False
            await self.erase_words(connection, [memory_id])
            await self.drop_support(connection, scope, [memory_id])
            return True

    async def erase_words(self, connection: Connection, memory_ids: Sequence[UUID]) -> int:
        """Leave tombstones in the feed in place of memories, within the caller's transaction; how many there were."""
        rows = await connection.fetch(
            "UPDATE memories SET text = NULL, speaker = NULL, detail = NULL, slot = NULL, external_id = '',"
            " source_ids = '{}', forgotten_at = now(),"
            " change_xid = pg_current_xact_id(), change_seq = nextval('memory_changes')"
            " WHERE memory_id = ANY($1) AND forgotten_at IS NULL RETURNING 1",
            list(memory_ids),
        )
        return len(rows)

    async def drop_support(self, connection: Connection, scope: str, gone: Collection[UUID]) -> list[UUID]:
        """Take memories away from the facts that rest on them, within the caller's transaction.

        A fact that is left without support is forgotten, and so is what rests on
        it alone. Returns the ids of those.
        """
        forgotten: list[UUID] = []
        while gone:
            rows = await connection.fetch(
                f"SELECT {_COLUMNS} FROM memories WHERE scope = $1 AND kind = 'fact' AND forgotten_at IS NULL"
                " AND source_ids && $2::uuid[] ORDER BY memory_id FOR UPDATE",
                scope,
                list(gone),
            )
            lost = [row["memory_id"] for row in rows if set(row["source_ids"]) <= set(gone)]
            for row in rows:
                memory_id = row["memory_id"]
                if memory_id in lost:
                    continue
                cipher = await self._vault.cipher_by_key(scope, connection)
                fact = _fact(row, cipher.open(row["detail"], f"memory/{memory_id}/detail"))
                fact = replace(fact, spans=tuple(span for span in fact.spans if span.memory_id not in gone))
                await connection.execute(
                    f"UPDATE memories SET source_ids = $2, detail = $3, {_CHANGED} WHERE memory_id = $1",
                    memory_id,
                    [source for source in row["source_ids"] if source not in gone],
                    cipher.seal(_detail(fact), f"memory/{memory_id}/detail"),
                )
            await self.erase_words(connection, lost)
            forgotten += lost
            gone = lost
        return forgotten

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

    # -- MemoryStore ---------------------------------------------------------

    async def changes(self, after: ChangeCursor, limit: int) -> list[MemoryChange]:
        # Only transactions below every one still running: none can commit behind the cursor.
        rows = await self._database.fetch(
            "SELECT change_xid::text::bigint AS xid, change_seq, memory_id, scope, forgotten_at IS NOT NULL AS deleted"
            " FROM memories WHERE (change_xid, change_seq) > ($1::text::xid8, $2)"
            " AND change_xid < pg_snapshot_xmin(pg_current_snapshot())"
            " ORDER BY change_xid, change_seq LIMIT $3",
            str(after.xid),
            after.seq,
            limit,
        )
        return [
            MemoryChange(ChangeCursor(row["xid"], row["change_seq"]), row["memory_id"], row["scope"], row["deleted"])
            for row in rows
        ]

    async def read(self, memory_ids: Sequence[UUID]) -> dict[UUID, MemoryRecord]:
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM memories WHERE memory_id = ANY($1) AND {LIVE}", list(memory_ids)
        )
        records = [await self.record(row) for row in rows]
        return {record.memory_id: record for record in records if record is not None}

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
            f" ({side.format(op='>', order='ASC')}) AS after FROM memories m WHERE m.memory_id = ANY($1)",
            list(memory_ids),
        )
        wanted = {row[side] for row in rows for side in ("before", "after") if row[side] is not None}
        found = await self.read(list(wanted)) if wanted else {}
        return {row["memory_id"]: (found.get(row["before"]), found.get(row["after"])) for row in rows}

    async def adopt(self) -> None:
        """Bring change ids that another server gave, as after a restore, into this server's order.

        Without it the feed would hold such memories back until this server had
        counted as many transactions; every index starts over.
        """
        async with self._database.transaction() as connection:
            foreign = await connection.fetchval(
                "SELECT EXISTS (SELECT 1 FROM memories WHERE change_xid > pg_current_xact_id())"
                " OR EXISTS (SELECT 1 FROM index_cursors WHERE xid > pg_current_xact_id()::text::bigint)"
            )
            if foreign:
                await connection.execute(
                    "UPDATE memories SET change_xid = pg_current_xact_id(), change_seq = nextval('memory_changes')"
                )
                await connection.execute("DELETE FROM index_cursors")

    async def load_cursor(self, index: str) -> ChangeCursor:
        row = await self._database.fetchrow("SELECT xid, seq FROM index_cursors WHERE index = $1", index)
        return ChangeCursor() if row is None else ChangeCursor(row["xid"], row["seq"])

    async def save_cursor(self, index: str, cursor: ChangeCursor) -> None:
        await self._database.execute(
            "INSERT INTO index_cursors (index, xid, seq) VALUES ($1, $2, $3)"
            " ON CONFLICT (index) DO UPDATE SET xid = $2, seq = $3, updated_at = now()",
            index,
            cursor.xid,
            cursor.seq,
        )

    async def pending(self, scope: str, index: str) -> int:
        cursor = await self.load_cursor(index)
        return int(
            await self._database.fetchval(
                "SELECT count(*) FROM memories WHERE scope = $1 AND (change_xid, change_seq) > ($2::text::xid8, $3)",
                scope,
                str(cursor.xid),
                cursor.seq,
            )
        )

    async def pending_total(self, index: str) -> int:
        """Changes of all scopes that the named index has not taken up."""
        cursor = await self.load_cursor(index)
        return int(
            await self._database.fetchval(
                "SELECT count(*) FROM memories WHERE (change_xid, change_seq) > ($1::text::xid8, $2)",
                str(cursor.xid),
                cursor.seq,
            )
        )

    async def total_changes(self) -> int:
        return int(await self._database.fetchval("SELECT count(*) FROM memories"))

    async def record(self, row: asyncpg.Record) -> MemoryRecord | None:
        """The memory that a whole row holds; None if its scope was erased."""
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


def _detail(fact: FactDetail) -> bytes:
    spans = [[str(span.memory_id), span.begin, span.end] for span in fact.spans]
    return json.dumps([fact.subject, fact.predicate, fact.value, spans]).encode()


def _fact(row: asyncpg.Record, detail: bytes) -> FactDetail:
    subject, predicate, value, spans = json.loads(detail)
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
