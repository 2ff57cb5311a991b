"""A persona's documents in the ledger: the words, their passages, and the passages' feed of changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from personae_runtime.errors import NotFound
from personae_runtime.ledger.database import Database
from personae_runtime.ledger.feed import ChangeFeed
from personae_runtime.ledger.personas import Mutation, once
from personae_runtime.ledger.vault import Scope, ScopeCipher, ScopeErased, Vault
from personae_runtime.memory.passages import Passage, Piece, normalised
from personae_runtime.memory.store import MemoryRecord, MemorySource
from personae_runtime.names import Name

_DOCUMENT = (
    "document_id, tenant, persona, scope, title, uri, external_id, language_code, published_at, created_at,"
    " digital_source_type,"
    " (SELECT count(*) FROM passages p WHERE p.document_id = d.document_id) AS passages,"
    " (SELECT count(*) FROM passages p WHERE p.document_id = d.document_id AND shadowed) AS shadowed,"
    " (SELECT count(*) FROM passages p WHERE p.document_id = d.document_id AND NOT shadowed"
    "  AND (p.change_xid, p.change_seq) <= ($1::text::xid8, $2)) AS indexed"
)


@dataclass(frozen=True, slots=True)
class DocumentRow:
    """A document; times are aware UTC.

    Attributes:
        text: None where it was not asked for.
        digital_source_type: IPTC term, as whoever stored it says; may be empty.
        passages: in all; of these `duplicates` are word for word in another document, `indexed` can be recalled.
    """

    document_id: UUID
    name: Name
    title: str
    text: str | None
    uri: str
    external_id: str
    language_code: str
    published_at: datetime
    created_at: datetime
    passages: int = 0
    duplicates: int = 0
    indexed: int = 0
    digital_source_type: str = ""


class DocumentLedger(ChangeFeed):
    """Documents of personas, and their passages as a `personae_runtime.memory.store.MemoryStore`.

    A passage is a memory of the persona's own scope: its thread is its document.

    Args:
        index: the name under which the ledger keeps how far the passages' index is.
    """

    def __init__(self, database: Database, vault: Vault, index: str) -> None:
        super().__init__(database, table="passages", key="passage_id", erased="deleted_at")
        self._vault = vault
        self._index = index

    async def create(
        self, document: DocumentRow, pieces: Sequence[Piece], scope: str, mutation: Mutation
    ) -> DocumentRow:
        """Store a document and its pieces as passages; durable on return.

        A repeated mutation returns what the first stored.

        Raises:
            NotFound: the first call's document was deleted since.
        """
        assert document.text is not None
        # The scope's key is made for good before anything is sealed with it.
        cipher = await self._vault.cipher_by_key(scope)
        key, tenant = document.document_id, document.name.tenant
        async with self._database.transaction() as connection:

            async def act() -> str:
                # Two documents with the same words: one of them must see the other.
                await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"corpus/{scope}")
                await connection.execute(
                    "INSERT INTO documents (document_id, tenant, persona, scope, title, text, uri, external_id,"
                    " language_code, published_at, created_at, digital_source_type)"
                    " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
                    key,
                    tenant,
                    document.name.persona,
                    scope,
                    _seal(cipher, key, "title", document.title),
                    _seal(cipher, key, "text", document.text or ""),
                    _seal(cipher, key, "uri", document.uri),
                    document.external_id,
                    document.language_code,
                    document.published_at,
                    document.created_at,
                    document.digital_source_type,
                )
                digests = [self._digest(scope, piece.text) for piece in pieces]
                rows = await connection.fetch(
                    "SELECT digest FROM passages WHERE scope = $1 AND digest = ANY($2) AND deleted_at IS NULL",
                    scope,
                    digests,
                )
                held = {row["digest"] for row in rows}
                new: list[tuple[Any, ...]] = []
                for ordinal, (piece, digest) in enumerate(zip(pieces, digests, strict=True)):
                    passage_id = uuid4()
                    text = _seal(cipher, passage_id, "passage", piece.text)
                    shadowed = digest in held
                    new.append((passage_id, key, scope, ordinal, piece.begin, piece.end, text, digest, shadowed))
                    held.add(digest)
                await connection.executemany(
                    "INSERT INTO passages (passage_id, document_id, scope, ordinal, first_char, end_char, text, digest,"
                    " shadowed) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                    new,
                )
                return str(key)

            stored = UUID(await once(connection, tenant, mutation, act))
        try:
            return await self.get(document.name, stored, with_text=True)
        except NotFound:
            raise NotFound("the document this request_id stored was deleted") from None

    async def get(self, persona: Name, document_id: UUID, *, with_text: bool = False) -> DocumentRow:
        """One document.

        Raises:
            NotFound: the persona has none of that id.
        """
        cursor = await self.load_cursor(self._index)
        columns = f"{_DOCUMENT}, text" if with_text else _DOCUMENT
        row = await self._database.fetchrow(
            f"SELECT {columns} FROM documents d"
            " WHERE tenant = $3 AND persona = $4 AND document_id = $5 AND deleted_at IS NULL",
            str(cursor.xid),
            cursor.seq,
            persona.tenant,
            persona.persona,
            document_id,
        )
        if row is None:
            raise NotFound("there is no such document")
        return await self._document(row)

    async def list_documents(
        self, persona: Name, *, before: tuple[datetime, UUID] | None, limit: int
    ) -> list[DocumentRow]:
        """Documents of a persona without their texts, newest first, after the place `before` in that order."""
        at, document_id = before or (datetime.max.replace(tzinfo=UTC), UUID(int=2**128 - 1))
        cursor = await self.load_cursor(self._index)
        rows = await self._database.fetch(
            f"SELECT {_DOCUMENT} FROM documents d WHERE scope = $3 AND deleted_at IS NULL"
            " AND (created_at, document_id) < ($4, $5) ORDER BY created_at DESC, document_id DESC LIMIT $6",
            str(cursor.xid),
            cursor.seq,
            self._vault.scope_key(Scope(persona.tenant, persona.persona)),
            at,
            document_id,
            limit,
        )
        return [await self._document(row) for row in rows]

    async def delete(self, persona: Name, document_id: UUID) -> bool:
        """Erase a document and its passages; False if it was deleted before.

        A passage that another document holds, too, is recalled as that one's from then on.

        Raises:
            NotFound: the persona never had it.
        """
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(
                "SELECT scope, deleted_at FROM documents WHERE tenant = $1 AND persona = $2 AND document_id = $3",
                persona.tenant,
                persona.persona,
                document_id,
            )
            if row is None:
                raise NotFound("there is no such document")
            await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"corpus/{row['scope']}")
            erased = await connection.fetchval(
                "UPDATE documents SET title = NULL, text = NULL, uri = NULL, external_id = '', deleted_at = now()"
                " WHERE document_id = $1 AND deleted_at IS NULL RETURNING true",
                document_id,
            )
            if not erased:
                return False
            gone = await connection.fetch(
                "UPDATE passages p SET text = NULL, digest = NULL, shadowed = false, deleted_at = now(),"
                " change_xid = pg_current_xact_id(), change_seq = nextval('memory_changes')"
                " FROM (SELECT passage_id, digest, shadowed FROM passages"
                "  WHERE document_id = $1 AND deleted_at IS NULL)"
                " AS was WHERE p.passage_id = was.passage_id RETURNING was.digest, was.shadowed",
                document_id,
            )
            await connection.execute(
                "UPDATE passages SET shadowed = false, change_xid = pg_current_xact_id(),"
                " change_seq = nextval('memory_changes') WHERE passage_id IN ("
                "  SELECT DISTINCT ON (digest) passage_id FROM passages"
                "  WHERE scope = $1 AND digest = ANY($2) AND deleted_at IS NULL"
                "  ORDER BY digest, created_at, passage_id)",
                row["scope"],
                [found["digest"] for found in gone if not found["shadowed"]],
            )
            return True

    async def passages(self, passage_ids: Sequence[UUID]) -> dict[UUID, Passage]:
        """Passages that are held, by id, with what is cited of their documents."""
        rows = await self._database.fetch(
            "SELECT p.passage_id, p.document_id, p.scope, p.text, p.first_char, p.end_char, d.title, d.uri,"
            " d.published_at, d.digital_source_type FROM passages p JOIN documents d USING (document_id)"
            " WHERE p.passage_id = ANY($1) AND p.deleted_at IS NULL",
            list(passage_ids),
        )
        found = {}
        for row in rows:
            cipher = await self._vault.cipher_by_key(row["scope"])
            found[row["passage_id"]] = Passage(
                passage_id=row["passage_id"],
                document_id=row["document_id"],
                title=_open(cipher, row["document_id"], "title", row["title"]),
                uri=_open(cipher, row["document_id"], "uri", row["uri"]),
                text=_open(cipher, row["passage_id"], "passage", row["text"]),
                begin=row["first_char"],
                end=row["end_char"],
                published_at=row["published_at"],
                digital_source_type=row["digital_source_type"],
            )
        return found

    # -- MemoryStore ---------------------------------------------------------

    async def read(self, memory_ids: Sequence[UUID]) -> dict[UUID, MemoryRecord]:
        rows = await self._database.fetch(
            "SELECT p.*, d.published_at FROM passages p JOIN documents d USING (document_id)"
            " WHERE passage_id = ANY($1) AND p.deleted_at IS NULL AND NOT shadowed",
            list(memory_ids),
        )
        records = [await self._record(row) for row in rows]
        return {record.memory_id: record for record in records if record is not None}

    def speakers_known(self, scope: str, memory_ids: Sequence[UUID]) -> set[str]:
        """Nobody is named as a passage's speaker."""
        return set()

    async def neighbours(
        self, memory_ids: Sequence[UUID]
    ) -> dict[UUID, tuple[MemoryRecord | None, MemoryRecord | None]]:
        rows = await self._database.fetch(
            "SELECT m.passage_id, b.passage_id AS before, a.passage_id AS after FROM passages m"
            " LEFT JOIN passages b ON b.document_id = m.document_id AND b.ordinal = m.ordinal - 1 AND NOT b.shadowed"
            " LEFT JOIN passages a ON a.document_id = m.document_id AND a.ordinal = m.ordinal + 1 AND NOT a.shadowed"
            " WHERE m.passage_id = ANY($1)",
            list(memory_ids),
        )
        wanted = {row[side] for row in rows for side in ("before", "after") if row[side] is not None}
        found = await self.read(list(wanted)) if wanted else {}
        return {row["passage_id"]: (found.get(row["before"]), found.get(row["after"])) for row in rows}

    async def _record(self, row: asyncpg.Record) -> MemoryRecord | None:
        try:
            cipher = await self._vault.cipher_by_key(row["scope"])
        except ScopeErased:
            return None
        return MemoryRecord(
            memory_id=row["passage_id"],
            scope=row["scope"],
            text=_open(cipher, row["passage_id"], "passage", row["text"]),
            speaker="",
            occurred_at=row["published_at"],
            thread=str(row["document_id"]),
            ordinal=row["ordinal"],
            source=MemorySource.API,
            created_at=row["created_at"],
        )

    async def _document(self, row: asyncpg.Record) -> DocumentRow:
        cipher = await self._vault.cipher_by_key(row["scope"])
        key = row["document_id"]
        return DocumentRow(
            document_id=key,
            name=Name(row["tenant"], row["persona"], document=str(key)),
            title=_open(cipher, key, "title", row["title"]),
            text=_open(cipher, key, "text", row["text"]) if "text" in row else None,
            uri=_open(cipher, key, "uri", row["uri"]),
            external_id=row["external_id"],
            language_code=row["language_code"],
            published_at=row["published_at"],
            created_at=row["created_at"],
            passages=row["passages"],
            duplicates=row["shadowed"],
            indexed=row["indexed"],
            digital_source_type=row["digital_source_type"],
        )

    def _digest(self, scope: str, text: str) -> bytes:
        return self._vault.body_mac("passage", scope, normalised(text))


def _seal(cipher: ScopeCipher, row: UUID, column: str, text: str) -> bytes:
    return cipher.seal(text.encode(), f"document/{row}/{column}")


def _open(cipher: ScopeCipher, row: UUID, column: str, sealed: bytes) -> str:
    return cipher.open(sealed, f"document/{row}/{column}").decode()
