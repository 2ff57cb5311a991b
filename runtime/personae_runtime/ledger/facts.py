"""Facts in the ledger: written with the memory that says them, gone with the last that does.

A fact's row is what `memory.timeline.arrange` makes of all claims on its slot.
Every change of a slot's claims arranges it anew within the caller's transaction:
rows that stay are updated in place, new ones written, and those that rest on
nothing any more become tombstones. The row of the scope is locked for as long,
so that two writers of one person take turns; lock it before any memory.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID, uuid4

import asyncpg

from personae_runtime.ledger.database import Connection
from personae_runtime.ledger.vault import ScopeCipher, Vault
from personae_runtime.memory.facts import KINDS, Statement, claim, sentence
from personae_runtime.memory.index import PointKind
from personae_runtime.memory.store import Basis, MemoryRecord, MemorySource
from personae_runtime.memory.timeline import Claim, Segment, arrange

MAX_CLAIMS: Final = 32
"""Sources that a slot keeps for one thing said; of more, the first and the newest."""

MAX_SLOT_CLAIMS: Final = 64
"""Sources of all that is said about one slot; of more, the newest. Arranging as many takes 2 ms."""

EVICT_TO: Final = 0.9
"""Share of the cap that is left when it was reached, so that not every write evicts."""

DENIED: Final = "not "
"""Before the predicate of a fact that denies."""

TOMBSTONE: Final = (
    "UPDATE memories SET text = NULL, speaker = NULL, detail = NULL, slot = NULL, external_id = '', source_ids = '{}',"
    " valid_from = NULL, valid_to = NULL, superseded_by = NULL, occurred_at = created_at, quarantine_reason = '',"
    " expires_at = NULL, own_expires_at = NULL,"
    # An episode's neighbours are found by its thread until the index has heard of it.
    " basis = '', extractor = '', thread = CASE WHEN kind = 'fact' THEN '' ELSE thread END,"
    " forgotten_at = now(), change_xid = pg_current_xact_id(), change_seq = nextval('memory_changes')"
)
"""SQL: forget rows of `memories`; a WHERE follows."""

_COLUMNS = (
    "memory_id, slot, detail, speaker, valid_from, valid_to, superseded_by, occurred_at, pinned, confidence,"
    " source_ids, expires_at"
)
_FACTS = "kind = 'fact' AND forgotten_at IS NULL"


@dataclass(frozen=True, slots=True)
class FactRow:
    """A row of a slot, with the claims that it rests on."""

    memory_id: UUID
    slot: bytes
    claims: tuple[Claim, ...]
    speaker: str
    valid_from: datetime | None
    valid_to: datetime | None
    superseded_by: UUID | None
    occurred_at: datetime
    pinned: bool
    confidence: float
    expires_at: datetime | None

    @property
    def key(self) -> tuple[str, bool]:
        return self.claims[0].key, self.claims[0].denied


class FactLedger:
    """The facts of scopes; every method runs within the caller's transaction.

    Args:
        cap: most live facts of a scope; pinned ones count and are never evicted.
    """

    def __init__(self, vault: Vault, *, cap: int) -> None:
        self._vault = vault
        self._cap = cap

    async def lock(self, connection: Connection, scope: str) -> None:
        """Make other writers of the scope's facts wait until the transaction ends."""
        await connection.execute("SELECT FROM scopes WHERE scope = $1 FOR NO KEY UPDATE", scope)

    async def add(self, connection: Connection, record: MemoryRecord, statements: Sequence[Statement]) -> None:
        """Write what a memory says; repeating it changes nothing."""
        if not statements:
            return
        # Locks the scope as well; one round trip less for every turn that says something.
        refused = await connection.fetchval(
            "UPDATE scopes SET profile_stale = true WHERE scope = $1"
            " RETURNING ARRAY(SELECT slot FROM fact_refusals WHERE scope = $1 AND source = $2)",
            record.scope,
            record.memory_id,
        )
        cipher = await self._vault.cipher_by_key(record.scope, connection)
        added: dict[bytes, list[Claim]] = {}
        for statement in statements:
            slot = self._vault.slot(record.scope, *statement.slot)
            if slot not in (refused or ()):
                added.setdefault(slot, []).append(claim(record, statement))
        rows = await self._rows(connection, cipher, "slot = ANY($2)", list(added))
        changes = _Changes([], [], [])
        for slot, claims in added.items():
            held = [row for row in rows if row.slot == slot]
            _arrange(cipher, slot, held, _claims(held, claims), record.speaker, changes)
        await self._apply(connection, record.scope, changes)
        if changes.inserts:
            await self._evict(connection, cipher)

    async def unsupport(self, connection: Connection, scope: str, memory_ids: Collection[UUID]) -> int:
        """Take away what rests on these memories, which are gone or say something else now; how many facts go for it.

        Of a fact among them, all that supports it goes; its sources stay. What
        it had taken the place of holds again, if that is still supported.
        """
        await self.lock(connection, scope)
        cipher = await self._vault.cipher_by_key(scope, connection)
        gone = set(memory_ids)
        touched = await self._rows(connection, cipher, "(memory_id = ANY($2) OR source_ids && $2)", list(gone))
        if not touched:
            return 0
        slots = list({row.slot for row in touched})
        rows = await self._rows(connection, cipher, "slot = ANY($2)", slots)
        dropped = {one.place for row in rows if row.memory_id in gone for one in row.claims}
        changes = _Changes([], [], [])
        for slot in slots:
            held = [row for row in rows if row.slot == slot]
            kept = [one for one in _claims(held) if one.memory_id not in gone and one.place not in dropped]
            _arrange(cipher, slot, held, kept, held[0].speaker, changes)
        await self._apply(connection, scope, changes)
        await self.changed(connection, scope, ())
        return len(gone.symmetric_difference(changes.forgotten) - gone)

    async def refuse(self, connection: Connection, scope: str, fact_ids: Collection[UUID]) -> None:
        """See that what facts rest on does not state them again, however often it is read; other memories may."""
        cipher = await self._vault.cipher_by_key(scope, connection)
        rows = await self._rows(connection, cipher, "memory_id = ANY($2)", list(fact_ids))
        found = {(scope, one.memory_id, row.slot) for row in rows for one in row.claims}
        await connection.executemany(
            "INSERT INTO fact_refusals (scope, source, slot) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING", sorted(found)
        )

    async def allow(self, connection: Connection, scope: str, memory_ids: Collection[UUID]) -> None:
        """Let memories state anything again: their words are others."""
        await connection.execute(
            "DELETE FROM fact_refusals WHERE scope = $1 AND source = ANY($2)", scope, list(memory_ids)
        )

    async def changed(self, connection: Connection, scope: str, fact_ids: Collection[UUID]) -> None:
        """Facts are not to be used as they were, as one that was restricted: cards that hold them go."""
        await connection.execute("UPDATE scopes SET profile_stale = true WHERE scope = $1", scope)
        if fact_ids:
            await connection.execute("DELETE FROM profiles WHERE scope = $1 AND fact_ids && $2", scope, list(fact_ids))

    async def expire(self, connection: Connection, scope: str, fact_ids: Sequence[UUID]) -> int:
        """Forget facts for their age, and what of their slots is older: nothing that was closed holds again."""
        await self.lock(connection, scope)
        cipher = await self._vault.cipher_by_key(scope, connection)
        due = set(fact_ids)
        rows = await self._rows(connection, cipher, "memory_id = ANY($2)", list(due))
        slots = [row.slot for row in rows if _is_open(row)]
        mates = await self._rows(connection, cipher, "slot = ANY($2)", slots) if slots else []
        kept = {row.slot for row in mates if row.pinned}
        gone = [row.memory_id for row in rows if not row.pinned and row.slot not in kept]
        gone += [row.memory_id for row in mates if row.slot not in kept and row.memory_id not in due]
        # Without a slot, or claims, there is nothing that it could take along or give back.
        alone = await connection.fetch(
            f"SELECT memory_id FROM memories WHERE scope = $1 AND {_FACTS} AND NOT pinned AND memory_id = ANY($2)",
            scope,
            list(due.difference(row.memory_id for row in rows)),
        )
        gone += [row["memory_id"] for row in alone]
        await self._forget(connection, scope, gone)
        return len(gone)

    async def live(self, connection: Connection, scope: str) -> list[FactRow]:
        """Every fact of a scope that may be used, closed ones too, the newest first."""
        cipher = await self._vault.cipher_by_key(scope, connection)
        return await self._rows(
            connection,
            cipher,
            "$2::boolean AND (expires_at IS NULL OR expires_at > now()) AND restricted_at IS NULL"
            " AND quarantine_reason = ''",
            True,
        )

    # -- pieces --------------------------------------------------------------

    async def _rows(self, connection: Connection, cipher: ScopeCipher, where: str, argument: object) -> list[FactRow]:
        rows = await connection.fetch(
            f"SELECT {_COLUMNS} FROM memories WHERE scope = $1 AND {_FACTS} AND slot IS NOT NULL AND {where}"
            " ORDER BY occurred_at DESC, memory_id",
            cipher.scope,
            argument,
        )
        return [found for row in rows if (found := _row(cipher, row)).claims]

    async def _apply(self, connection: Connection, scope: str, changes: _Changes) -> None:
        if changes.forgotten:
            await self._forget(connection, scope, changes.forgotten)
        if changes.inserts:
            await connection.executemany(_INSERT, changes.inserts)
        if changes.updates:
            await connection.executemany(_UPDATE, changes.updates)

    async def _forget(self, connection: Connection, scope: str, fact_ids: Sequence[UUID]) -> None:
        await connection.execute(f"{TOMBSTONE} WHERE memory_id = ANY($1)", list(fact_ids))
        await self.changed(connection, scope, fact_ids)

    async def _evict(self, connection: Connection, cipher: ScopeCipher) -> None:
        count = await connection.fetchval(
            f"SELECT count(*) FROM memories WHERE scope = $1 AND {_FACTS} AND slot IS NOT NULL", cipher.scope
        )
        if count <= self._cap:
            return
        rows = await self._rows(connection, cipher, "$2::boolean", True)
        now = datetime.now(UTC)
        ordered = sorted((row for row in rows if not row.pinned), key=lambda row: worth(row, now))
        excess = count - int(self._cap * EVICT_TO)
        for row in ordered:
            if excess <= 0:
                break
            excess -= await self.expire(connection, cipher.scope, [row.memory_id])


@dataclass(frozen=True, slots=True)
class _Changes:
    """Rows to insert and to update, as arguments of the statements below, and ids to forget."""

    inserts: list[tuple[object, ...]]
    updates: list[tuple[object, ...]]
    forgotten: list[UUID]


_INSERT: Final = (
    "INSERT INTO memories (memory_id, scope, text, speaker, thread, ordinal, source, occurred_at, expires_at, kind,"
    " detail, slot, valid_from, valid_to, superseded_by, confidence, basis, extractor, source_ids)"
    f" VALUES ($1, $2, $3, $4, $5, 0, '{MemorySource.EXTRACTION}', $6, $7, '{PointKind.FACT}', $8, $9, $10, $11, $12,"
    " $13, $14, $15, $16)"
)
_UPDATE: Final = (
    "UPDATE memories SET text = $3, speaker = $4, thread = $5, occurred_at = $6,"
    " expires_at = least($7, own_expires_at), detail = $8,"
    " slot = $9, valid_from = $10, valid_to = $11, superseded_by = $12, confidence = $13, basis = $14, extractor = $15,"
    " source_ids = $16, version = version + 1, updated_at = now(), change_xid = pg_current_xact_id(),"
    " change_seq = nextval('memory_changes') WHERE memory_id = $1 AND scope = $2"
)


def _arrange(
    cipher: ScopeCipher,
    slot: bytes,
    held: Sequence[FactRow],
    claims: Sequence[Claim],
    speaker: str,
    changes: _Changes,
) -> None:
    """Add to `changes` what makes the rows of a slot those of its claims."""
    segments = arrange(claims)
    owners = _owners(segments, held)
    before = {row.memory_id: row for row in held}
    for segment, memory_id in zip(segments, owners, strict=True):
        follower = None if segment.next is None else owners[segment.next]
        old = before.pop(memory_id, None)
        if old is None:
            changes.inserts.append(_values(cipher, slot, memory_id, segment, follower, speaker))
        elif (old.claims, old.valid_from, old.valid_to, old.superseded_by) != (
            segment.claims,
            segment.valid_from,
            segment.valid_to,
            follower,
        ):
            changes.updates.append(_values(cipher, slot, memory_id, segment, follower, speaker))
    changes.forgotten.extend(before)


def _values(
    cipher: ScopeCipher, slot: bytes, memory_id: UUID, segment: Segment, follower: UUID | None, speaker: str
) -> tuple[object, ...]:
    first = segment.claims[0]
    best = max(segment.claims, key=lambda one: (one.confidence, one.said_at))
    text = sentence(first.predicate, first.value, denied=first.denied)
    threads = {one.thread for one in segment.claims}
    expiries = [one.expires_at for one in segment.claims]
    return (
        memory_id,
        cipher.scope,
        cipher.seal(text.encode(), f"memory/{memory_id}/text"),
        cipher.seal(speaker.encode(), f"memory/{memory_id}/speaker"),
        # Of one conversation only, it need not be recalled where that is the history.
        first.thread if len(threads) == 1 else "",
        max(one.said_at for one in segment.claims),
        # As long as any of its sources.
        None if None in expiries else max(one for one in expiries if one is not None),
        cipher.seal(_detail(segment.claims), f"memory/{memory_id}/detail"),
        slot,
        segment.valid_from,
        segment.valid_to,
        follower,
        best.confidence,
        (Basis.STATED if any(one.basis is Basis.STATED for one in segment.claims) else Basis.INFERRED).value,
        best.extractor,
        list(dict.fromkeys(one.memory_id for one in segment.claims)),
    )


def worth(row: FactRow, now: datetime) -> tuple[bool, float]:
    """What a fact is worth keeping, least first: those that are over by when they ended, so that a slot loses its
    oldest first; then those that hold, by confidence, halved with each half-life since they were last said."""
    if row.valid_to is not None:
        return False, row.valid_to.timestamp()
    age_days = max(0.0, (now - row.occurred_at).total_seconds() / 86_400)
    kind = KINDS.get(row.claims[0].predicate)
    half_life = None if kind is None else kind.half_life_days
    return True, row.confidence * (1.0 if half_life is None else 0.5 ** (age_days / half_life))


def _is_open(row: FactRow) -> bool:
    return row.valid_to is None


def _claims(rows: Iterable[FactRow], added: Sequence[Claim] = ()) -> list[Claim]:
    """All claims on a slot, each once, of each key the first and the newest."""
    by_key: dict[tuple[str, bool], dict[tuple[UUID, int, int, str], Claim]] = {}
    for one in (*(one for row in rows for one in row.claims), *added):
        by_key.setdefault((one.key, one.denied), {})[one.place] = one
    kept: list[Claim] = []
    for claims in by_key.values():
        ordered = sorted(claims.values(), key=lambda one: (one.said_at, one.place))
        kept += ordered if len(ordered) <= MAX_CLAIMS else [ordered[0], *ordered[1 - MAX_CLAIMS :]]
    kept.sort(key=lambda one: (one.said_at, one.place))
    return kept[-MAX_SLOT_CLAIMS:]


def _owners(segments: Sequence[Segment], held: Sequence[FactRow]) -> list[UUID]:
    """The row that each segment keeps, or a new one's id: of the same value, with the most claims in common."""
    free = list(held)
    owners: list[UUID] = []
    for segment in segments:
        key = (segment.claims[0].key, segment.claims[0].denied)
        places = {one.place for one in segment.claims}
        fitting = [row for row in free if row.key == key]
        if fitting:
            best = max(
                fitting,
                key=lambda row: (
                    sum(one.place in places for one in row.claims),
                    row.valid_from == segment.valid_from,
                    row.memory_id,
                ),
            )
            free.remove(best)
            owners.append(best.memory_id)
        else:
            owners.append(uuid4())
    return owners


# -- what is sealed ------------------------------------------------------------


def _detail(claims: Sequence[Claim]) -> bytes:
    first = claims[0]
    spans = [[str(one.memory_id), one.begin, one.end] for one in claims]
    return json.dumps(
        [
            "user",
            (DENIED if first.denied else "") + first.predicate,
            first.value,
            spans,
            [
                [
                    one.value,
                    one.key,
                    _text(one.said_at),
                    _text(one.known_at),
                    _text(one.valid_from),
                    _text(one.valid_to),
                    one.confidence,
                    one.basis.value,
                    one.extractor,
                    _text(one.expires_at),
                    one.thread,
                ]
                for one in claims
            ],
        ]
    ).encode()


def _row(cipher: ScopeCipher, row: asyncpg.Record) -> FactRow:
    memory_id = row["memory_id"]
    _, predicate, _, spans, *rest = json.loads(cipher.open(row["detail"], f"memory/{memory_id}/detail"))
    denied = predicate.startswith(DENIED)
    claims = tuple(
        Claim(
            memory_id=UUID(source),
            begin=begin,
            end=end,
            predicate=predicate.removeprefix(DENIED),
            value=value,
            key=key,
            denied=denied,
            said_at=datetime.fromisoformat(said_at),
            known_at=datetime.fromisoformat(known_at),
            valid_from=_moment(valid_from),
            valid_to=_moment(valid_to),
            confidence=confidence,
            basis=Basis(basis),
            extractor=extractor,
            expires_at=_moment(expires_at),
            thread=thread,
        )
        for (source, begin, end), (
            value,
            key,
            said_at,
            known_at,
            valid_from,
            valid_to,
            confidence,
            basis,
            extractor,
            expires_at,
            thread,
        ) in zip(spans, rest[0] if rest else [], strict=False)
    )
    return FactRow(
        memory_id=memory_id,
        slot=row["slot"],
        claims=claims,
        speaker=cipher.open(row["speaker"], f"memory/{memory_id}/speaker").decode(),
        valid_from=row["valid_from"],
        valid_to=row["valid_to"],
        superseded_by=row["superseded_by"],
        occurred_at=row["occurred_at"],
        pinned=row["pinned"],
        confidence=row["confidence"],
        expires_at=row["expires_at"],
    )


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
