"""The feed of changes that an index follows, and its place in it."""

from __future__ import annotations

from typing import Final

from personae_runtime.ledger.database import Database
from personae_runtime.memory.extraction import CURSOR as EXTRACTION
from personae_runtime.memory.store import ChangeCursor, MemoryChange

_COUNTED: Final = 10_000
_ADOPTED: Final = 2_000
_NOT_INDEXES: Final = (EXTRACTION,)


class ChangeFeed:
    """The part of `personae_runtime.memory.store.MemoryStore` that is the same for every table with a feed.

    The table has `scope`, `change_xid` and `change_seq`; each row is one change, its latest.

    Args:
        table, key: of the rows, and their id.
        erased: the column that is set when a row's words are gone.
    """

    def __init__(self, database: Database, *, table: str, key: str, erased: str) -> None:
        self._database = database
        self._table = table
        self._key = key
        self._erased = erased

    async def changes(self, after: ChangeCursor, limit: int) -> list[MemoryChange]:
        """See MemoryStore."""
        # Only transactions below every one still running: none can commit behind the cursor.
        rows = await self._database.fetch(
            f"SELECT change_xid::text::bigint AS xid, change_seq, {self._key} AS id, scope,"
            f" {self._erased} IS NOT NULL AS deleted FROM {self._table}"
            " WHERE (change_xid, change_seq) > ($1::text::xid8, $2)"
            " AND change_xid < pg_snapshot_xmin(pg_current_snapshot())"
            " ORDER BY change_xid, change_seq LIMIT $3",
            str(after.xid),
            after.seq,
            limit,
        )
        return [
            MemoryChange(ChangeCursor(row["xid"], row["change_seq"]), row["id"], row["scope"], row["deleted"])
            for row in rows
        ]

    async def load_cursor(self, index: str) -> ChangeCursor:
        """See MemoryStore."""
        row = await self._database.fetchrow("SELECT xid, seq FROM index_cursors WHERE index = $1", index)
        return ChangeCursor() if row is None else ChangeCursor(row["xid"], row["seq"])

    async def save_cursor(self, index: str, cursor: ChangeCursor) -> None:
        """See MemoryStore."""
        await self._database.execute(
            "INSERT INTO index_cursors (index, xid, seq) VALUES ($1, $2, $3)"
            " ON CONFLICT (index) DO UPDATE SET xid = $2, seq = $3, updated_at = now()",
            index,
            cursor.xid,
            cursor.seq,
        )

    async def pending(self, scope: str, index: str) -> int:
        """See MemoryStore."""
        return await self._pending(index, scope)

    async def pending_total(self, index: str) -> int:
        """See MemoryStore."""
        return await self._pending(index, None)

    async def total_changes(self) -> int:
        """See MemoryStore."""
        counted = int(
            await self._database.fetchval(f"SELECT count(*) FROM (SELECT FROM {self._table} LIMIT {_COUNTED}) AS found")
        )
        if counted < _COUNTED:
            return counted
        # Of many an estimate does, as they are counted for a progress bar.
        return max(
            counted,
            int(await self._database.fetchval("SELECT reltuples FROM pg_class WHERE oid = $1::regclass", self._table)),
        )

    async def adopt(self) -> None:
        """Bring change ids that another server gave, as after a restore, into this server's order.

        Without it the feed would hold such rows back until this server had
        counted as many transactions. Every index starts over; who reads the feed
        for something else, and has left what it made in the ledger, goes on at
        the end. May be cut off anywhere, and called again.
        """
        foreign = (
            f"SELECT EXISTS (SELECT 1 FROM {self._table} WHERE change_xid > pg_current_xact_id())"
            " OR EXISTS (SELECT 1 FROM index_cursors WHERE xid > pg_current_xact_id()::text::bigint)"
        )
        async with self._database.transaction() as connection:
            if not await connection.fetchval(foreign):
                return
            # First, as an index that began before all rows are in order would miss some.
            await connection.execute("DELETE FROM index_cursors WHERE NOT (index = ANY($1))", _NOT_INDEXES)
        # What lies below is in order as it is, before all that this server gives.
        while await self._adopt_some():
            pass
        async with self._database.transaction() as connection:
            await connection.execute(
                "UPDATE index_cursors SET xid = pg_current_xact_id()::text::bigint, seq = nextval('memory_changes')"
                " WHERE index = ANY($1)",
                _NOT_INDEXES,
            )

    async def _adopt_some(self) -> bool:
        async with self._database.transaction() as connection:
            await connection.execute(
                f"UPDATE {self._table} SET change_xid = pg_current_xact_id(), change_seq = nextval('memory_changes')"
                f" WHERE {self._key} IN (SELECT {self._key} FROM {self._table}"
                "  WHERE change_xid > pg_current_xact_id() ORDER BY change_xid, change_seq LIMIT $1 FOR UPDATE)",
                _ADOPTED,
            )
            return bool(
                await connection.fetchval(
                    f"SELECT EXISTS (SELECT 1 FROM {self._table} WHERE change_xid > pg_current_xact_id())"
                )
            )

    async def _pending(self, index: str, scope: str | None) -> int:
        cursor = await self.load_cursor(index)
        # Two texts: one for both would be planned for neither, and read the whole table.
        where, more = ("", ()) if scope is None else (" AND scope = $3", (scope,))
        return int(
            await self._database.fetchval(
                f"SELECT count(*) FROM {self._table} WHERE (change_xid, change_seq) > ($1::text::xid8, $2){where}",
                str(cursor.xid),
                cursor.seq,
                *more,
            )
        )
