"""Profile cards in the ledger: versions of a scope's card, and the one that a session holds to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from personae_runtime.ledger.database import Connection, Database
from personae_runtime.ledger.facts import FactLedger, FactRow
from personae_runtime.ledger.vault import ScopeCipher, Vault
from personae_runtime.memory.profile import KnownFact, render


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """A version of a card; version 0 is that of a scope that never had one, and empty."""

    version: int
    text: str
    fact_ids: tuple[UUID, ...]
    tokens: int
    created_at: datetime | None


EMPTY = ProfileRow(0, "", (), 0, None)


class ProfileLedger:
    """Cards, made anew from live facts when a fact has changed and somebody asks."""

    def __init__(self, database: Database, vault: Vault, facts: FactLedger) -> None:
        self._database = database
        self._vault = vault
        self._facts = facts

    async def current(self, scope: str, count: Callable[[str], int]) -> ProfileRow:
        """The newest card.

        Args:
            count: tokens of a text; a new card has at most `profile.MAX_TOKENS` of them.

        Raises:
            ScopeErased: the scope's key was destroyed.
        """
        row = await self._database.fetchrow(_CURRENT, scope)
        if row is None:
            return EMPTY
        if row["fresh"]:
            return await self._row(row, await self._vault.cipher_by_key(scope))
        async with self._database.transaction() as connection:
            await self._facts.lock(connection, scope)
            return await self._renew(connection, scope, count)

    async def pin(self, session_pk: int, scope: str, count: Callable[[str], int]) -> ProfileRow:
        """The newest card, which stands in the session's prompts from now on."""
        found = await self.current(scope, count)
        await self._database.execute(
            "UPDATE sessions SET profile_version = $2 WHERE session_pk = $1", session_pk, found.version
        )
        return found

    async def _renew(self, connection: Connection, scope: str, count: Callable[[str], int]) -> ProfileRow:
        cipher = await self._vault.cipher_by_key(scope, connection)
        row = await connection.fetchrow(_CURRENT, scope)
        assert row is not None
        if row["fresh"]:
            return await self._row(row, cipher)
        now = row["now"]
        facts = [fact for fact in await self._facts.live(connection, scope) if not fact.claims[0].denied]
        card = render([_known(fact) for fact in facts], now, count)
        version = row["profile_version"] + 1
        # The next moment at which time alone changes the card.
        turns = [
            moment
            for fact in facts
            for moment in (fact.valid_from, fact.valid_to, fact.expires_at)
            if moment is not None and moment > now
        ]
        if row["text"] is not None and tuple(row["fact_ids"]) == card.fact_ids:
            held = await self._row(row, cipher)
            if held.text == card.text:
                version = held.version
        await connection.execute(
            "INSERT INTO profiles (scope, version, text, fact_ids, tokens, expires_at) VALUES ($1, $2, $3, $4, $5, $6)"
            " ON CONFLICT (scope, version) DO UPDATE SET expires_at = $6",
            scope,
            version,
            cipher.seal(card.text.encode(), place(scope, version)),
            list(card.fact_ids),
            card.tokens,
            min(turns, default=None),
        )
        await connection.execute(
            "UPDATE scopes SET profile_version = $2, profile_stale = false WHERE scope = $1", scope, version
        )
        # An open session keeps the version that it began with.
        await connection.execute(
            "DELETE FROM profiles WHERE scope = $1 AND version < $2 AND version NOT IN"
            " (SELECT profile_version FROM sessions WHERE scope = $1 AND state = 'OPEN'"
            "  AND profile_version IS NOT NULL)",
            scope,
            version,
        )
        return ProfileRow(version, card.text, card.fact_ids, card.tokens, now)

    async def _row(self, row: asyncpg.Record, cipher: ScopeCipher) -> ProfileRow:
        if row["text"] is None:
            return ProfileRow(row["profile_version"], "", (), 0, None)
        version = row["profile_version"]
        return ProfileRow(
            version,
            cipher.open(row["text"], place(cipher.scope, version)).decode(),
            tuple(row["fact_ids"]),
            row["tokens"],
            row["created_at"],
        )


# Without a card there is nothing that time could change.
_CURRENT = (
    "SELECT s.profile_version, p.text, p.fact_ids, p.tokens, p.created_at, now() AS now, NOT s.profile_stale"
    " AND (s.profile_version = 0 OR (p.text IS NOT NULL AND (p.expires_at IS NULL OR p.expires_at > now()))) AS fresh"
    " FROM scopes s LEFT JOIN profiles p ON p.scope = s.scope AND p.version = s.profile_version WHERE s.scope = $1"
)


def place(scope: str, version: int) -> str:
    """What the sealed text of a card is bound to."""
    return f"profile/{scope}/{version}"


def _known(row: FactRow) -> KnownFact:
    first = row.claims[0]
    return KnownFact(
        row.memory_id, first.predicate, first.value, row.valid_from, row.valid_to, row.confidence, row.occurred_at
    )
