"""Export: all that is held of a person, with where it comes from (GDPR, articles 15 and 20).

Every line is a JSON object with a `type`. They are read in one snapshot, so that
no line knows of a change that another does not, and only as fast as they are
taken. Nothing of an export is kept. What is erased meanwhile ends the export:
half of one must not look like a whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg
import orjson

from personae_runtime.errors import Aborted, NotFound, ResourceExhausted
from personae_runtime.ledger.database import Database
from personae_runtime.ledger.memories import MemoryLedger
from personae_runtime.ledger.profiles import place as profile_place
from personae_runtime.ledger.sessions import turn_place
from personae_runtime.ledger.vault import Scope, ScopeCipher, ScopeErased, Vault
from personae_runtime.memory.store import MemoryRecord
from personae_runtime.names import Name
from personae_runtime.provenance import label
from personae_runtime.provenance.label import Label, Origin

SCHEMA: Final = "personae.export/1"
_AT_ONCE: Final = 4
_WAIT_S: Final = 5.0
_RETRY_S: Final = 5.0
_PREFETCH: Final = 100


class ExportLedger:
    """Reads exports: one of a scope, and a few at a time, as each has a connection for as long as its reader takes."""

    def __init__(self, database: Database, vault: Vault, memories: MemoryLedger) -> None:
        self._database = database
        self._vault = vault
        self._memories = memories
        self._places = asyncio.Semaphore(_AT_ONCE)
        # Those that run; False once what they read was taken away.
        self._whole: dict[str, bool] = {}

    def let_go(self, scopes: Iterable[str]) -> None:
        """Something of these scopes was taken away: an export of theirs that runs ends without a record."""
        for scope in scopes:
            if scope in self._whole:
                self._whole[scope] = False

    async def read(self, subject: Name) -> AsyncGenerator[dict[str, Any], None]:
        """Everything held of a user: `header`, `memory`, `profile`, `session`, `turn`, `decision`, `protocol`,
        `crisis_referral`, `consent`.

        Raises:
            NotFound: there is no such persona.
            ResourceExhausted: the user is being exported already, or too many others are.
            Aborted: something of it was erased, replaced or restricted meanwhile.
        """
        scope = self._vault.scope_key(Scope(subject.tenant, subject.persona, subject.user))
        if scope in self._whole:
            raise ResourceExhausted("this user is being exported", reason="EXPORT_RUNNING", retry_after_s=_RETRY_S)
        self._whole[scope] = True
        try:
            try:
                await asyncio.wait_for(self._places.acquire(), _WAIT_S)
            except TimeoutError:
                raise ResourceExhausted(
                    f"{_AT_ONCE} exports run", reason="TOO_MANY_EXPORTS", retry_after_s=_RETRY_S
                ) from None
            try:
                connection = await self._database.connect()
                try:
                    async with connection.transaction(isolation="repeatable_read", readonly=True):
                        async for item in self._read(connection, subject, scope):
                            self._require_whole(scope)
                            yield item
                        self._require_whole(scope)
                finally:
                    connection.terminate()
            finally:
                self._places.release()
        finally:
            del self._whole[scope]

    def _require_whole(self, scope: str) -> None:
        if not self._whole[scope]:
            raise _overtaken()

    async def _cipher(self, connection: asyncpg.Connection, scope: str) -> ScopeCipher | None:
        """The key of what the snapshot holds; None if it holds nothing that a key opens."""
        generation = await connection.fetchval(
            "SELECT generation FROM scopes WHERE scope = $1 AND destroyed_at IS NULL", scope
        )
        if generation is None:
            return None
        try:
            cipher = await self._vault.cipher_by_key(scope)
            if cipher.generation != generation:
                self._vault.drop((scope,))
                cipher = await self._vault.cipher_by_key(scope)
        except ScopeErased:
            raise _overtaken() from None
        if cipher.generation != generation:
            raise _overtaken()
        return cipher

    async def _read(
        self, connection: asyncpg.Connection, subject: Name, scope: str
    ) -> AsyncGenerator[dict[str, Any], None]:
        at = await connection.fetchval(
            "SELECT now() FROM personas WHERE tenant = $1 AND persona = $2", subject.tenant, subject.persona
        )
        if at is None:
            raise NotFound(f"{subject.persona_name()} does not exist")
        yield {"type": "header", "schema": SCHEMA, "subject": subject.user_name(), "time": _time(at)}
        cipher = await self._cipher(connection, scope)
        if cipher is not None:
            # What has expired is held until it is swept.
            query = "SELECT * FROM memories WHERE scope = $1 AND forgotten_at IS NULL ORDER BY created_at, memory_id"
            drawn: dict[UUID, Label | None] = {}
            async for row in connection.cursor(query, scope, prefetch=_PREFETCH):
                record = await self._memories.record(row, cipher)
                if record is not None:
                    made = label.of_memory(subject.persona_name(), record)
                    if made is not None:
                        drawn[record.memory_id] = made
                    yield _memory(subject, record, made)
            async for card in connection.cursor(
                "SELECT * FROM profiles WHERE scope = $1 ORDER BY version", scope, prefetch=_PREFETCH
            ):
                yield {
                    "type": "profile",
                    "version": card["version"],
                    "text": cipher.open(card["text"], profile_place(scope, card["version"])).decode(),
                    "source_memories": [f"{subject.user_name()}/memories/{fact}" for fact in card["fact_ids"]],
                    "create_time": _time(card["created_at"]),
                    "ai_label": _label(label.of_card(map(drawn.get, card["fact_ids"]), card["created_at"])),
                }
            async for session in connection.cursor(
                "SELECT * FROM sessions WHERE scope = $1 ORDER BY session_pk", scope, prefetch=_PREFETCH
            ):
                name = f"{subject.persona_name()}/sessions/{session['session']}"
                yield {
                    "type": "session",
                    "name": name,
                    "revision": session["revision"],
                    "state": session["state"],
                    "age_band": session["age_band"],
                    "region_code": session["region_code"],
                    "create_time": _time(session["created_at"]),
                    "close_time": _time(session["closed_at"]),
                }
                async for turn in connection.cursor(
                    "SELECT * FROM turns WHERE session_pk = $1 ORDER BY turn_no",
                    session["session_pk"],
                    prefetch=_PREFETCH,
                ):
                    yield _turn(name, session, turn, cipher)
                async for decision in connection.cursor(
                    "SELECT d.*, t.turn_id FROM decisions d LEFT JOIN turns t USING (session_pk, turn_no)"
                    " WHERE d.session_pk = $1 ORDER BY d.created_at, d.decision_id",
                    session["session_pk"],
                    prefetch=_PREFETCH,
                ):
                    yield {
                        "type": "decision",
                        "name": f"tenants/{subject.tenant}/decisions/{decision['decision_id']}",
                        "turn": f"{name}/turns/{decision['turn_id']}",
                        "stage": decision["stage"],
                        "action": decision["action"],
                        "category": decision["category"],
                        "reason_code": decision["reason_code"],
                        "rules": decision["rules"],
                        "scores": orjson.loads(decision["scores"]),
                        "legal_basis": decision["legal_basis"],
                        "bundle_version": decision["bundle_version"],
                        "time": _time(decision["created_at"]),
                    }
        state = await connection.fetchrow("SELECT * FROM protocol_states WHERE scope = $1", scope)
        if state is not None:
            yield {
                "type": "protocol",
                "tier": state["tier"],
                "quiet_turns": state["quiet"],
                "sign_time": _time(state["signed_at"]),
                "seen_time": _time(state["seen_at"]),
                "used_s": orjson.loads(state["used_s"]),
            }
        async for referral in connection.cursor(
            "SELECT * FROM crisis_referrals WHERE scope = $1 ORDER BY day, region_code, tier", scope, prefetch=_PREFETCH
        ):
            yield {
                "type": "crisis_referral",
                "day": referral["day"].isoformat(),
                "region_code": referral["region_code"],
                "tier": referral["tier"],
                "times": referral["times"],
            }
        async for consent in connection.cursor(
            "SELECT * FROM consents WHERE tenant = $1 AND persona = $2 AND user_id = $3 ORDER BY consent_id",
            subject.tenant,
            subject.persona,
            subject.user,
            prefetch=_PREFETCH,
        ):
            yield {
                "type": "consent",
                "purpose": consent["purpose"],
                "state": consent["state"],
                "evidence": consent["evidence"],
                "time": _time(consent["created_at"]),
            }


def _overtaken() -> Aborted:
    return Aborted(
        "something of this user was erased, replaced or restricted meanwhile; begin again", reason="EXPORT_OVERTAKEN"
    )


def to_line(item: dict[str, Any]) -> str:
    """The item as JSON without a line break."""
    return orjson.dumps(item).decode()


def _memory(subject: Name, record: MemoryRecord, made: Label | None) -> dict[str, Any]:
    fact = record.fact
    return {
        "type": "memory",
        "name": f"{subject.user_name()}/memories/{record.memory_id}",
        "kind": record.kind.value,
        "text": record.text,
        "speaker": record.speaker,
        "source": record.source.value,
        "thread": record.thread,
        "ordinal": record.ordinal,
        "external_id": record.external_id,
        "occur_time": _time(record.occurred_at),
        "create_time": _time(record.created_at),
        "update_time": _time(record.updated_at),
        "expire_time": _time(record.expires_at),
        "pinned": record.pinned,
        "restricted": record.restricted,
        "quarantine_reason": record.quarantine_reason,
        "source_memories": [f"{subject.user_name()}/memories/{source}" for source in record.source_ids],
        "fact": None
        if fact is None
        else {
            "subject": fact.subject,
            "predicate": fact.predicate,
            "value": fact.value,
            "valid_from_time": _time(fact.valid_from),
            "valid_to_time": _time(fact.valid_to),
            "superseded_by": None if fact.superseded_by is None else str(fact.superseded_by),
            "confidence": fact.confidence,
            "basis": fact.basis.value,
            "extractor": fact.extractor,
            "spans": [{"memory": str(span.memory_id), "begin": span.begin, "end": span.end} for span in fact.spans],
        },
        "ai_label": _label(made),
    }


def _turn(session: str, owner: asyncpg.Record, row: asyncpg.Record, cipher: ScopeCipher) -> dict[str, Any]:
    def text(column: str, place: str) -> str | None:
        sealed = row[column]
        return None if sealed is None else cipher.open(sealed, turn_place(*key, place)).decode()

    key: tuple[int, int] = (row["session_pk"], row["turn_no"])
    persona = session.partition("/sessions/")[0]
    reply = text("reply_text", "reply")
    made = label.of_reply(
        persona,
        f"{persona}/revisions/{owner['revision']}",
        Origin.from_json(row["origin"]),
        row["ended_at"] or row["created_at"],
        finish_reason=row["finish_reason"],
        in_history=row["in_history"],
    )
    return {
        "type": "turn",
        "name": f"{session}/turns/{row['turn_id']}",
        "revision": owner["revision"],
        "state": row["state"],
        "user_text": text("user_text", "user"),
        "reply_text": reply,
        "ai_label": _label(made if reply else None),
        "create_time": _time(row["created_at"]),
        "end_time": _time(row["ended_at"]),
        "erase_time": _time(row["erased_at"]),
    }


def _label(made: Label | None) -> dict[str, Any] | None:
    return None if made is None else made.to_dict()


def _time(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat().replace("+00:00", "Z")
