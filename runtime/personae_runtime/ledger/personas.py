"""Personas and revisions in the ledger, and the request ids of mutations."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from personae_runtime.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from personae_runtime.ledger import audit
from personae_runtime.ledger.control import bump
from personae_runtime.ledger.database import Connection, Database
from personae_runtime.ledger.vault import Scope, Vault
from personae_runtime.names import Name
from personae_runtime.personas.definition import PersonaDefinition, VerifiedClaim


@dataclass(frozen=True, slots=True)
class PersonaRow:
    """A persona; times are aware UTC."""

    tenant: str
    persona: str
    display_name: str
    type: str
    active_revision: int | None
    etag: str
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None


@dataclass(frozen=True, slots=True)
class RevisionRow:
    """A published revision; `state` is ACTIVE, SUPERSEDED or WITHDRAWN."""

    tenant: str
    persona: str
    revision: int
    state: str
    definition: PersonaDefinition
    created_at: datetime
    withdrawn_at: datetime | None
    withdraw_reason: str


@dataclass(frozen=True, slots=True)
class Mutation:
    """Identity of a mutating call: repeating it with the same body repeats nothing.

    Attributes:
        method: RPC name, such as "CreatePersona".
        request_id: the client's, or empty for a call that can't be repeated safely.
        body_mac: keyed hash of the request.
    """

    method: str
    request_id: str
    body_mac: bytes


async def once(
    connection: Connection,
    tenant: str,
    mutation: Mutation,
    act: Callable[[], Awaitable[str]],
    resource: str = "",
) -> str:
    """Run `act` unless this mutation ran before; the resource id it returned, then or now.

    Must run inside the transaction of the mutation itself.

    Args:
        resource: what `act` will return, where that is known: it spares a statement.

    Raises:
        AlreadyExists: the request_id was used with another body (reason REQUEST_ID_REUSED).
    """
    if not mutation.request_id:
        return await act()
    request_id = UUID(mutation.request_id)
    # The row is claimed first: a concurrent repeat waits here for the first to commit.
    claimed = await connection.fetchval(
        "INSERT INTO requests (tenant, method, request_id, body_mac, resource) VALUES ($1, $2, $3, $4, $5)"
        " ON CONFLICT DO NOTHING RETURNING true",
        tenant,
        mutation.method,
        request_id,
        mutation.body_mac,
        resource,
    )
    where = "WHERE tenant = $1 AND method = $2 AND request_id = $3"
    if not claimed:
        row = await connection.fetchrow(
            f"SELECT body_mac, resource FROM requests {where}", tenant, mutation.method, request_id
        )
        assert row is not None
        if row["body_mac"] != mutation.body_mac:
            raise AlreadyExists("request_id was used before with another body", reason="REQUEST_ID_REUSED")
        return str(row["resource"])
    made = await act()
    if made != resource:
        await connection.execute(
            f"UPDATE requests SET resource = $4 {where}", tenant, mutation.method, request_id, made
        )
    return made


class PersonaLedger:
    """Personas and their revisions."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    async def create(
        self,
        name: Name,
        display_name: str,
        type_: str,
        mutation: Mutation,
        *,
        owner: str = "",
        most_a_day: int = 0,
    ) -> PersonaRow:
        """Create a persona without a revision.

        Args:
            owner: keyed hash of whose it is; empty if nobody was named.
            most_a_day: how many an owner may create; 0 is any number.

        Raises:
            AlreadyExists: the id is taken, also by a deleted persona.
            ResourceExhausted: the owner has created as many (reason OWNER_LIMIT).
        """

        async with self._database.transaction() as connection:

            async def act() -> str:
                if owner and most_a_day:
                    await _require_room(connection, name.tenant, owner, most_a_day)
                try:
                    await connection.execute(
                        "INSERT INTO personas (tenant, persona, display_name, type, owner) VALUES ($1, $2, $3, $4, $5)",
                        name.tenant,
                        name.persona,
                        display_name,
                        type_,
                        owner,
                    )
                except asyncpg.UniqueViolationError:
                    raise AlreadyExists(
                        f"{name.persona_name()} exists; choose another persona_id, or undelete it if it was deleted"
                    ) from None
                return name.persona

            await once(connection, name.tenant, mutation, act)
        return await self.get(name)

    async def get(self, name: Name) -> PersonaRow:
        """One persona, deleted ones included.

        Raises:
            NotFound: there is none.
        """
        row = await self._database.fetchrow(
            "SELECT * FROM personas WHERE tenant = $1 AND persona = $2", name.tenant, name.persona
        )
        if row is None:
            raise NotFound(f"{name.persona_name()} does not exist")
        return _persona(row)

    async def list_personas(self, tenant: str, *, after: str, limit: int, show_deleted: bool) -> list[PersonaRow]:
        """Personas of a tenant with an id after `after`, by id."""
        rows = await self._database.fetch(
            "SELECT * FROM personas WHERE tenant = $1 AND persona > $2 AND ($4 OR deleted_at IS NULL)"
            " ORDER BY persona LIMIT $3",
            tenant,
            after,
            limit,
            show_deleted,
        )
        return [_persona(row) for row in rows]

    async def rename(self, name: Name, display_name: str, etag: str, mutation: Mutation) -> PersonaRow:
        """Change the display name.

        Raises:
            NotFound: there is no such persona.
            FailedPrecondition: it is deleted.
            Aborted: etag is not the current one (reason ETAG_MISMATCH).
        """
        return await self._change(name, etag, mutation, "display_name = $3", (display_name,), deleted=False)

    async def delete(self, name: Name, etag: str, mutation: Mutation) -> PersonaRow:
        """Soft-delete; running turns feel it as they feel a withdrawal."""
        return await self._change(name, etag, mutation, "deleted_at = now()", (), deleted=False, spread=True)

    async def undelete(self, name: Name, etag: str, mutation: Mutation) -> PersonaRow:
        """Take a deletion back."""
        return await self._change(name, etag, mutation, "deleted_at = NULL", (), deleted=True)

    async def _change(
        self,
        name: Name,
        etag: str,
        mutation: Mutation,
        assignment: str,
        values: tuple[Any, ...],
        *,
        deleted: bool,
        spread: bool = False,
    ) -> PersonaRow:
        async with self._database.transaction() as connection:

            async def act() -> str:
                row = await connection.fetchrow(
                    "SELECT etag, deleted_at FROM personas WHERE tenant = $1 AND persona = $2 FOR UPDATE",
                    name.tenant,
                    name.persona,
                )
                if row is None:
                    raise NotFound(f"{name.persona_name()} does not exist")
                if etag and etag != str(row["etag"]):
                    raise Aborted("the persona changed since it was read; get it again", reason="ETAG_MISMATCH")
                if (row["deleted_at"] is not None) != deleted:
                    if deleted:
                        raise FailedPrecondition(f"{name.persona_name()} is not deleted", reason="PERSONA_NOT_DELETED")
                    raise FailedPrecondition(f"{name.persona_name()} is deleted", reason="PERSONA_DELETED")
                await connection.execute(
                    f"UPDATE personas SET {assignment}, etag = '{uuid4()}', updated_at = now()"
                    " WHERE tenant = $1 AND persona = $2",
                    name.tenant,
                    name.persona,
                    *values,
                )
                if spread:
                    await bump(connection)
                return name.persona

            await once(connection, name.tenant, mutation, act)
        return await self.get(name)

    async def publish(
        self, name: Name, definition: PersonaDefinition, mutation: Mutation, *, verifier: str | None = None
    ) -> RevisionRow:
        """Publish a definition as the ACTIVE revision; the one before becomes SUPERSEDED.

        Args:
            definition: its claims are verified by this call, but for those that the ACTIVE revision has too.
            verifier: name of the caller's key; None if it may verify nothing.

        Raises:
            NotFound: there is no such persona.
            FailedPrecondition: it is deleted.
            PermissionDenied: a claim is new, and the caller may not verify it.
            InvalidArgument: a new claim has expired.
        """
        cipher = await self._vault.cipher(Scope(name.tenant, name.persona))
        async with self._database.transaction() as connection:

            async def act() -> str:
                row = await connection.fetchrow(
                    "SELECT last_revision, active_revision, deleted_at, now() AS now FROM personas"
                    " WHERE tenant = $1 AND persona = $2 FOR UPDATE",
                    name.tenant,
                    name.persona,
                )
                if row is None:
                    raise NotFound(f"{name.persona_name()} does not exist")
                if row["deleted_at"] is not None:
                    raise FailedPrecondition(f"{name.persona_name()} is deleted", reason="PERSONA_DELETED")
                number = row["last_revision"] + 1
                published = definition
                new: tuple[VerifiedClaim, ...] = ()
                if definition.verified_claims:
                    known: tuple[VerifiedClaim, ...] = ()
                    if row["active_revision"] is not None:
                        sealed = await connection.fetchval(
                            "SELECT definition FROM revisions WHERE tenant = $1 AND persona = $2 AND revision = $3",
                            name.tenant,
                            name.persona,
                            row["active_revision"],
                        )
                        opened = cipher.open(sealed, f"revision/{row['active_revision']}")
                        known = PersonaDefinition.from_json(opened).verified_claims
                    all_claims = _verified(definition.verified_claims, known, verifier, row["now"])
                    published = replace(definition, verified_claims=all_claims)
                    new = tuple(one for one in all_claims if one not in known)
                await connection.execute(
                    "UPDATE revisions SET state = 'SUPERSEDED' WHERE tenant = $1 AND persona = $2 AND state = 'ACTIVE'",
                    name.tenant,
                    name.persona,
                )
                await connection.execute(
                    "INSERT INTO revisions (tenant, persona, revision, state, definition)"
                    " VALUES ($1, $2, $3, 'ACTIVE', $4)",
                    name.tenant,
                    name.persona,
                    number,
                    cipher.seal(published.to_json(), f"revision/{number}"),
                )
                await connection.execute(
                    "UPDATE personas SET active_revision = $3, last_revision = $3, etag = gen_random_uuid(),"
                    " updated_at = now() WHERE tenant = $1 AND persona = $2",
                    name.tenant,
                    name.persona,
                    number,
                )
                await audit.append(
                    connection,
                    name.tenant,
                    "revision_published",
                    {
                        "definition": self._vault.pseudonym("definition", published.to_json().decode()),
                        "persona": name.persona,
                        "revision": number,
                        "superseded": row["active_revision"],
                    },
                )
                for claim in new:
                    await audit.append(
                        connection,
                        name.tenant,
                        "claim_verified",
                        {
                            "claim": claim.claim_id,
                            "expires": None if claim.expires_at is None else int(claim.expires_at.timestamp()),
                            "kind": claim.kind,
                            "operator": self._vault.pseudonym("operator", name.tenant, claim.verified_by),
                            "persona": name.persona,
                            "revision": number,
                            "words": self._vault.pseudonym("claim", claim.statement, claim.subject, claim.evidence),
                        },
                    )
                return str(number)

            revision = await once(connection, name.tenant, mutation, act)
        return await self.revision(name, int(revision))

    async def revision(self, name: Name, number: int) -> RevisionRow:
        """One revision.

        Raises:
            NotFound: there is none of that number.
        """
        row = await self._database.fetchrow(
            "SELECT * FROM revisions WHERE tenant = $1 AND persona = $2 AND revision = $3",
            name.tenant,
            name.persona,
            number,
        )
        if row is None:
            raise NotFound(f"{name.persona_name()}/revisions/{number} does not exist")
        return await self._revision(row)

    async def revisions(self, name: Name, *, before: int, limit: int) -> list[RevisionRow]:
        """Revisions with a number below `before`, newest first."""
        rows = await self._database.fetch(
            "SELECT * FROM revisions WHERE tenant = $1 AND persona = $2 AND revision < $3"
            " ORDER BY revision DESC LIMIT $4",
            name.tenant,
            name.persona,
            before,
            limit,
        )
        return [await self._revision(row) for row in rows]

    async def withdraw(self, name: Name, reason: str, mutation: Mutation) -> RevisionRow:
        """Withdraw a revision for good; withdrawing twice is the same as once.

        Raises:
            NotFound: there is no such revision.
        """
        async with self._database.transaction() as connection:

            async def act() -> str:
                row = await connection.fetchrow(
                    "SELECT state FROM revisions WHERE tenant = $1 AND persona = $2 AND revision = $3 FOR UPDATE",
                    name.tenant,
                    name.persona,
                    name.revision,
                )
                if row is None:
                    raise NotFound(f"{name.persona_name()}/revisions/{name.revision} does not exist")
                if row["state"] != "WITHDRAWN":
                    await connection.execute(
                        "UPDATE revisions SET state = 'WITHDRAWN', withdrawn_at = now(), withdraw_reason = $4"
                        " WHERE tenant = $1 AND persona = $2 AND revision = $3",
                        name.tenant,
                        name.persona,
                        name.revision,
                        reason,
                    )
                    await connection.execute(
                        "UPDATE personas SET active_revision = NULL, etag = gen_random_uuid(), updated_at = now()"
                        " WHERE tenant = $1 AND persona = $2 AND active_revision = $3",
                        name.tenant,
                        name.persona,
                        name.revision,
                    )
                    body = {"persona": name.persona, "revision": name.revision}
                    await audit.append(connection, name.tenant, "revision_withdrawn", body)
                    await bump(connection)
                return str(name.revision)

            await once(connection, name.tenant, mutation, act)
        return await self.revision(name, name.revision)

    async def _revision(self, row: asyncpg.Record) -> RevisionRow:
        cipher = await self._vault.cipher(Scope(row["tenant"], row["persona"]))
        definition = cipher.open(row["definition"], f"revision/{row['revision']}")
        return RevisionRow(
            tenant=row["tenant"],
            persona=row["persona"],
            revision=row["revision"],
            state=row["state"],
            definition=PersonaDefinition.from_json(definition),
            created_at=row["created_at"],
            withdrawn_at=row["withdrawn_at"],
            withdraw_reason=row["withdraw_reason"],
        )


def _verified(
    asked: Sequence[VerifiedClaim], known: Sequence[VerifiedClaim], verifier: str | None, now: datetime
) -> tuple[VerifiedClaim, ...]:
    """The claims of a definition with who verified them and when: as known where they are the same, else now."""
    before = {replace(one, verified_by="", verified_at=None): one for one in known}
    found = []
    for number, claim in enumerate(asked):
        same = before.get(replace(claim, verified_by="", verified_at=None))
        if same is None:
            if verifier is None:
                raise PermissionDenied(
                    f"the key lacks permission 'claims.verify', and the claim {claim.claim_id!r} is not, as it is here,"
                    " in the active revision",
                    metadata={"permission": "claims.verify"},
                )
            if claim.expires_at is not None and claim.expires_at <= now:
                raise InvalidArgument(
                    f"the claim {claim.claim_id!r} has expired",
                    violations=((f"definition.verified_claims[{number}].expire_time", "a time to come"),),
                )
            same = replace(claim, verified_by=verifier, verified_at=now)
        found.append(same)
    return tuple(found)


async def _require_room(connection: Connection, tenant: str, owner: str, most: int) -> None:
    # One at a time for an owner, so that none slips past the count.
    await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 12))", f"{tenant}/{owner}")
    wait = await connection.fetchval(
        "SELECT extract(epoch FROM created_at + interval '1 day' - now())::float8 FROM personas"
        " WHERE tenant = $1 AND owner = $2 AND created_at > now() - interval '1 day'"
        " ORDER BY created_at DESC OFFSET $3 LIMIT 1",
        tenant,
        owner,
        most - 1,
    )
    if wait is not None:
        raise ResourceExhausted(
            f"the owner has created {most} personas in a day",
            reason="OWNER_LIMIT",
            retry_after_s=max(1.0, wait),
            violations=(("owner", f"{most} personas per day"),),
        )


def _persona(row: asyncpg.Record) -> PersonaRow:
    return PersonaRow(
        tenant=row["tenant"],
        persona=row["persona"],
        display_name=row["display_name"],
        type=row["type"],
        active_revision=row["active_revision"],
        etag=str(row["etag"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        deleted_at=row["deleted_at"],
    )
