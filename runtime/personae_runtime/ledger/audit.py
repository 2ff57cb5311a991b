"""The audit log: an append-only Merkle tree (RFC 9162) per tenant over what was decided, with signed checkpoints.

An entry is written to an outbox in the transaction of what it tells of, so that
neither is there without the other, and no writer waits for another. A sequencer,
at any host, moves entries from the outbox to the tree: place, leaf and inner
nodes in one transaction under an advisory lock, so that whatever dies between
write and sequencing leaves the entry where the next sequencer finds it.

The leaf is canonical JSON: RFC 8785 restricted to integers, with keys of which
the order by code points and by UTF-16 units is the same. A person is in it by a
keyed hash only, and no text that a person wrote is, so that an erasure has
nothing to change here.
"""

from __future__ import annotations

import asyncio
import base64
import math
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Final, Protocol
from uuid import UUID, uuid4

import asyncpg
import orjson
import structlog

from personae_runtime.errors import InvalidArgument, LedgerUnavailable, NotFound
from personae_runtime.ledger import merkle
from personae_runtime.ledger.database import Connection, Database

_log = structlog.get_logger(__name__)

EXPORT_FORMAT: Final = "personae-audit/1"
LOCK: Final = "hashtextextended('personae audit', 8)"
"""SQL of the advisory lock that whoever sequences holds."""
_BATCH: Final = 1_000
_PAGE: Final = 500
_POLL_S: Final = 0.5
_LOOK_S: Final = 5.0
_MAX_INTEGER: Final = 2**53 - 1
# C2SP signed-note: the algorithm byte of a plain Ed25519 signature.
_ED25519: Final = b"\x01"


class Signer(Protocol):
    """What signs checkpoints: a key of the vault."""

    @property
    def public_key(self) -> bytes:
        """Ed25519, 32 bytes."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Ed25519, 64 bytes."""
        ...


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """An entry in its place.

    Attributes:
        position: in the tenant's log, from 0.
        entry: the leaf's bytes, canonical JSON.
    """

    position: int
    entry_id: UUID
    kind: str
    entry: bytes
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A signed statement of a tree's size and root.

    Attributes:
        note: the C2SP signed note, whose first three lines are origin, size and root.
    """

    origin: str
    size: int
    root: bytes
    note: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Inclusion:
    """Proof that an entry is in a tree of `size`; hashes from the leaf up."""

    entry: AuditEntry
    size: int
    root: bytes
    hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Consistency:
    """Proof that the tree of `second` leaves begins with that of `first`."""

    first: int
    second: int
    first_root: bytes
    second_root: bytes
    hashes: tuple[bytes, ...]


def origin(tenant: str) -> str:
    """What names a tenant's log in its checkpoints."""
    return f"personae/{tenant}"


def canonical(body: Mapping[str, Any]) -> bytes:
    """The body of an entry as canonical JSON.

    Raises:
        ValueError: it holds something whose JSON is not the same everywhere: a
            float, an integer beyond ±(2^53 - 1), a key that is no text or is
            beyond the basic multilingual plane.
    """
    _check(body)
    return orjson.dumps(body, option=orjson.OPT_SORT_KEYS)


def millionths(score: float) -> int | None:
    """A score as an entry holds it, as canonical JSON has no fractions here; None of one that is no number."""
    return round(score * 1_000_000) if math.isfinite(score) else None


async def append(
    connection: Connection, tenant: str, kind: str, body: Mapping[str, Any], entry_id: UUID | None = None
) -> UUID:
    """Write an entry in the caller's transaction; it gets its place in the tenant's log soon after the commit.

    Args:
        kind: what it tells of, such as "consent".
        body: see `canonical`; persons by keyed hash, and no text of theirs.
        entry_id: by which it is found; a new one unless given.

    Raises:
        ValueError: the body has no canonical JSON.
    """
    entry_id = entry_id or uuid4()
    await connection.execute(
        "INSERT INTO audit_outbox (entry_id, tenant, kind, body) VALUES ($1, $2, $3, $4)",
        entry_id,
        tenant,
        kind,
        canonical(body),
    )
    return entry_id


class AuditLog:
    """The audit logs of all tenants: sequencing, checkpoints and proofs.

    Args:
        interval_s: seconds after which entries that no checkpoint covers get one.
        on_sequenced: told how many entries got their place.
        on_age: told now and then how old, in seconds, the oldest entry is that no checkpoint covers; 0 for none.
    """

    def __init__(
        self,
        database: Database,
        signer: Signer,
        *,
        interval_s: float = 60.0,
        on_sequenced: Callable[[int], None] = lambda count: None,
        on_age: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._database = database
        self._signer = signer
        self._interval = timedelta(seconds=interval_s)
        self._on_sequenced = on_sequenced
        self._on_age = on_age

    @property
    def public_key(self) -> bytes:
        """Of the checkpoints' signatures: Ed25519, 32 bytes."""
        return self._signer.public_key

    # -- sequencing ----------------------------------------------------------

    async def sequence(self, *, wait: bool = True) -> int:
        """Give entries of the outbox their places, at most a batch; how many.

        Args:
            wait: for another sequencer to end; without it 0 is returned if there is one.
        """
        async with self._database.transaction() as connection:
            if wait:
                await connection.execute(f"SELECT pg_advisory_xact_lock({LOCK})")
            elif not await connection.fetchval(f"SELECT pg_try_advisory_xact_lock({LOCK})"):
                return 0
            # By transaction: one that began when another had committed stands behind it. A late commit is taken with
            # the next batch: rows leave by deletion, not behind a cursor, so none is passed.
            rows = await connection.fetch("SELECT * FROM audit_outbox ORDER BY xid, seq LIMIT $1", _BATCH)
            by_tenant: dict[str, list[asyncpg.Record]] = defaultdict(list)
            for row in rows:
                by_tenant[row["tenant"]].append(row)
            for tenant, waiting in by_tenant.items():
                await self._extend(connection, tenant, waiting)
            if rows:
                await connection.execute(
                    "DELETE FROM audit_outbox WHERE entry_id = ANY($1)", [row["entry_id"] for row in rows]
                )
        if rows:
            self._on_sequenced(len(rows))
        return len(rows)

    async def _extend(self, connection: Connection, tenant: str, rows: Sequence[asyncpg.Record]) -> None:
        size = await self._size(tenant, connection)
        edge = await self._hashes(tenant, [(0, size)], connection)
        nodes: list[tuple[str, int, int, bytes]] = []
        frontier = merkle.Frontier(size, edge[0], lambda node, found: nodes.append((tenant, *node, found)))
        entries = []
        for row in rows:
            entry = _leaf(row)
            entries.append((tenant, frontier.size, row["entry_id"], row["kind"], entry, row["created_at"]))
            frontier.append(merkle.leaf_hash(entry))
        await connection.executemany(
            "INSERT INTO audit_entries (tenant, position, entry_id, kind, entry, created_at)"
            " VALUES ($1, $2, $3, $4, $5, $6)",
            entries,
        )
        await connection.executemany(
            "INSERT INTO audit_nodes (tenant, level, position, hash) VALUES ($1, $2, $3, $4)", nodes
        )
        await connection.execute(
            "INSERT INTO audit_trees (tenant, size) VALUES ($1, $2) ON CONFLICT (tenant) DO UPDATE SET size = $2",
            tenant,
            frontier.size,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Sequence and sign until `stop` is set; a failure is logged once and tried again."""
        look_at, failing = 0.0, False
        while not stop.is_set():
            try:
                if await self._database.fetchval("SELECT EXISTS (SELECT FROM audit_outbox)"):
                    while not stop.is_set() and await self.sequence(wait=False) == _BATCH:
                        pass
                if time.monotonic() >= look_at:
                    look_at = time.monotonic() + min(_LOOK_S, self._interval.total_seconds())
                    await self.sign_due()
                    self._on_age(await self.unsigned_age_s())
                failing = False
            except LedgerUnavailable:
                # The health check tells of it; what waits stays in the outbox.
                pass
            except Exception:
                if not failing:
                    _log.exception("audit_sequencing_failed")
                failing = True
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await stop.wait()

    # -- checkpoints ---------------------------------------------------------

    async def checkpoint(self, tenant: str) -> Checkpoint:
        """A checkpoint that covers every entry committed before the call; signed now if there is none."""
        # A batch that is not full has seen all that was committed.
        while await self.sequence() == _BATCH:
            pass
        return await self._sign(tenant)

    async def sign_due(self) -> None:
        """Sign a checkpoint of every log that grew, where the last one is older than the interval."""
        rows = await self._database.fetch(
            "SELECT tenant FROM audit_trees WHERE size > checkpoint_size AND checkpoint_at < now() - $1::interval",
            self._interval,
        )
        for row in rows:
            await self._sign(row["tenant"])

    async def unsigned_age_s(self) -> float:
        """Seconds since the oldest entry was written that no checkpoint covers; 0 if there is none."""
        return float(
            await self._database.fetchval(
                "SELECT coalesce(extract(epoch FROM now() - min(at)), 0) FROM ("
                " SELECT min(created_at) AS at FROM audit_outbox UNION ALL"
                " SELECT e.created_at FROM audit_trees t"
                "  JOIN audit_entries e ON e.tenant = t.tenant AND e.position = t.checkpoint_size) AS uncovered"
            )
        )

    async def _sign(self, tenant: str) -> Checkpoint:
        async with self._database.transaction() as connection:
            # Held off from growing, and from being signed twice.
            await connection.execute(f"SELECT pg_advisory_xact_lock({LOCK})")
            size = await self._size(tenant, connection)
            row = await connection.fetchrow(
                "SELECT * FROM audit_checkpoints WHERE tenant = $1 AND size = $2", tenant, size
            )
            if row is not None:
                return _checkpoint(row)
            root = (await self._roots(tenant, [(0, size)], connection))[0]
            at = datetime.now(UTC)
            signed = Checkpoint(origin(tenant), size, root, self._note(origin(tenant), size, root, at), at)
            # A log that nothing was written to has no row to keep.
            if size:
                await connection.execute(
                    "INSERT INTO audit_checkpoints (tenant, size, root, note, created_at) VALUES ($1, $2, $3, $4, $5)",
                    tenant,
                    size,
                    root,
                    signed.note,
                    at,
                )
                await connection.execute(
                    "UPDATE audit_trees SET checkpoint_size = $2, checkpoint_at = $3 WHERE tenant = $1",
                    tenant,
                    size,
                    at,
                )
        return signed

    def _note(self, name: str, size: int, root: bytes, at: datetime) -> str:
        """A C2SP tlog-checkpoint with one extension line, the time, as a signed note whose key is named as the log."""
        text = f"{name}\n{size}\n{base64.b64encode(root).decode()}\ntime {timestamp(at)}\n"
        key_id = sha256(name.encode() + b"\n" + _ED25519 + self._signer.public_key).digest()[:4]
        signature = base64.b64encode(key_id + self._signer.sign(text.encode())).decode()
        return f"{text}\n\u2014 {name} {signature}\n"

    # -- reading -------------------------------------------------------------

    async def entries(self, tenant: str, *, first: int, limit: int) -> list[AuditEntry]:
        """Entries from position `first` on, in order."""
        rows = await self._database.fetch(
            "SELECT * FROM audit_entries WHERE tenant = $1 AND position >= $2 ORDER BY position LIMIT $3",
            tenant,
            first,
            limit,
        )
        return [_entry(row) for row in rows]

    async def find(self, tenant: str, entry_id: UUID) -> int:
        """Position of an entry by its id.

        Raises:
            NotFound: there is none, or it has no place yet.
        """
        found = await self._database.fetchval(
            "SELECT position FROM audit_entries WHERE tenant = $1 AND entry_id = $2", tenant, entry_id
        )
        if found is None:
            raise NotFound("the audit log has no such entry")
        return int(found)

    async def inclusion(self, tenant: str, position: int, size: int) -> Inclusion:
        """Proof that an entry is in the tree of the first `size` entries.

        Raises:
            NotFound: the log has no such entry.
            InvalidArgument: it never had that size, or the tree ends before the entry (reason TREE_SIZE_INVALID).
        """
        rows = await self.entries(tenant, first=position, limit=1)
        if not rows or rows[0].position != position:
            raise NotFound("the audit log has no such entry")
        await self._require_size(tenant, size, "tree_size")
        if position >= size:
            raise _size_invalid("tree_size", f"more than the entry's index, {position}")
        root, *hashes = await self._roots(tenant, [(0, size), *merkle.inclusion(position, size)])
        return Inclusion(rows[0], size, root, tuple(hashes))

    async def inclusions(self, tenant: str, entry_ids: Sequence[UUID], size: int) -> dict[UUID, Inclusion]:
        """Proofs that entries, by their ids, are in the tree of the first `size`; without those that are not there.

        Raises:
            InvalidArgument: the log never had that size (reason TREE_SIZE_INVALID).
        """
        rows = await self._database.fetch(
            "SELECT * FROM audit_entries WHERE tenant = $1 AND entry_id = ANY($2) AND position < $3",
            tenant,
            list(entry_ids),
            size,
        )
        if not rows:
            return {}
        await self._require_size(tenant, size, "tree_size")
        paths = [merkle.inclusion(row["position"], size) for row in rows]
        root, *hashes = await self._roots(tenant, [(0, size), *(part for path in paths for part in path)])
        found, at = {}, 0
        for row, path in zip(rows, paths, strict=True):
            found[row["entry_id"]] = Inclusion(_entry(row), size, root, tuple(hashes[at : at + len(path)]))
            at += len(path)
        return found

    async def consistency(self, tenant: str, first: int, second: int) -> Consistency:
        """Proof that a log of `second` entries begins with the same log's first `first` ones.

        Raises:
            InvalidArgument: not 0 < first <= second <= the log's size (reason TREE_SIZE_INVALID).
        """
        await self._require_size(tenant, second, "second_tree_size")
        if not 0 < first <= second:
            raise _size_invalid("first_tree_size", f"from 1 to second_tree_size, {second}")
        ranges = [(0, first), (0, second), *merkle.consistency(first, second)]
        first_root, second_root, *hashes = await self._roots(tenant, ranges)
        return Consistency(first, second, first_root, second_root, tuple(hashes))

    async def export(self, tenant: str) -> AsyncGenerator[str, None]:
        """The whole log up to now as JSON lines, for `personae audit verify`: each entry, each checkpoint behind the
        last entry that it covers, with a proof that it grew out of the one before, and one over all of it at the
        end."""
        last = await self.checkpoint(tenant)
        yield _line(
            type="log",
            format=EXPORT_FORMAT,
            origin=last.origin,
            public_key=base64.b64encode(self.public_key).decode(),
        )
        rows = await self._database.fetch(
            "SELECT * FROM audit_checkpoints WHERE tenant = $1 AND size < $2 ORDER BY size", tenant, last.size
        )
        position, before = 0, 0
        for signed in (*map(_checkpoint, rows), last):
            while position < signed.size:
                page = await self.entries(tenant, first=position, limit=min(_PAGE, signed.size - position))
                for entry in page:
                    yield _line(type="entry", index=entry.position, entry=entry.entry.decode())
                position = page[-1].position + 1
            if before:
                proof = await self.consistency(tenant, before, signed.size)
                hashes = [base64.b64encode(found).decode() for found in proof.hashes]
                yield _line(type="consistency", first=before, second=signed.size, hashes=hashes)
            yield _line(type="checkpoint", note=signed.note)
            before = signed.size

    # -- the tree ------------------------------------------------------------

    async def _require_size(self, tenant: str, size: int, field: str) -> None:
        known = await self._size(tenant)
        if not 0 < size <= known:
            raise _size_invalid(field, f"from 1 to the log's size, {known}")

    async def _size(self, tenant: str, connection: Connection | None = None) -> int:
        source = connection or self._database
        return int(await source.fetchval("SELECT size FROM audit_trees WHERE tenant = $1", tenant) or 0)

    async def _roots(
        self, tenant: str, ranges: Sequence[merkle.Range], connection: Connection | None = None
    ) -> list[bytes]:
        return [merkle.fold(hashes) for hashes in await self._hashes(tenant, ranges, connection)]

    async def _hashes(
        self, tenant: str, ranges: Sequence[merkle.Range], connection: Connection | None = None
    ) -> list[list[bytes]]:
        """Of each range the hashes of its complete subtrees, by one statement."""
        wanted = [merkle.complete(leaves) for leaves in ranges]
        nodes = list({node for parts in wanted for node in parts})
        source = connection or self._database
        rows = await source.fetch(
            "SELECT n.level, n.position, n.hash FROM unnest($2::smallint[], $3::bigint[]) AS asked (level, position)"
            " JOIN audit_nodes n ON n.tenant = $1 AND n.level = asked.level AND n.position = asked.position",
            tenant,
            [level for level, _ in nodes],
            [position for _, position in nodes],
        )
        found = {(row["level"], row["position"]): row["hash"] for row in rows}
        return [[found[node] for node in parts] for parts in wanted]


def _check(value: Any) -> None:
    match value:
        case None | bool() | str():
            return
        case int():
            if abs(value) > _MAX_INTEGER:
                raise ValueError("an integer beyond 2^53 - 1 has no canonical JSON")
        case list() | tuple():
            for item in value:
                _check(item)
        case dict():
            for key, item in value.items():
                if not isinstance(key, str) or any(ord(character) > 0xFFFF for character in key):
                    raise ValueError(f"a key must be a text of the basic multilingual plane, not {key!r}")
                _check(item)
        case _:
            raise ValueError(f"{type(value).__name__} has no canonical JSON here")


def _leaf(row: asyncpg.Record) -> bytes:
    # The body is canonical already, and the names here are in order.
    entry = {
        "body": orjson.Fragment(row["body"]),
        "id": str(row["entry_id"]),
        "kind": row["kind"],
        "tenant": row["tenant"],
        "time": timestamp(row["created_at"]),
    }
    return orjson.dumps(entry)


def _line(**fields: Any) -> str:
    return orjson.dumps(fields).decode()


def timestamp(at: datetime) -> str:
    """RFC 3339 in UTC, with microseconds."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _size_invalid(field: str, expected: str) -> InvalidArgument:
    return InvalidArgument(f"{field}: expected {expected}", reason="TREE_SIZE_INVALID", violations=((field, expected),))


def _entry(row: asyncpg.Record) -> AuditEntry:
    return AuditEntry(
        position=row["position"],
        entry_id=row["entry_id"],
        kind=row["kind"],
        entry=row["entry"],
        created_at=row["created_at"],
    )


def _checkpoint(row: asyncpg.Record) -> Checkpoint:
    return Checkpoint(origin(row["tenant"]), row["size"], row["root"], row["note"], row["created_at"])
