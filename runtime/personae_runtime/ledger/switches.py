"""Kill switches: a tenant or a persona that must not speak, a rule that must not match.

One is thrown and lifted with the control epoch in the same transaction, so that
every gateway hears of it at the commit (`ledger.control`), and with an entry in
the audit log.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID, uuid4

import asyncpg

from personae_runtime.errors import AlreadyExists, NotFound
from personae_runtime.ledger import audit
from personae_runtime.ledger.control import bump
from personae_runtime.ledger.database import Database
from personae_runtime.ledger.personas import Mutation, once
from personae_runtime.ledger.vault import Vault


class SwitchKind(StrEnum):
    """What a switch turns off."""

    TENANT = "TENANT"
    PERSONA = "PERSONA"
    RULE = "RULE"


@dataclass(frozen=True, slots=True)
class KillSwitch:
    """A switch, in force unless it is lifted; times are aware UTC.

    Attributes:
        target: the persona's or the rule's id; empty of a tenant.
        created_by, lifted_by: ids of the keys that did it.
    """

    switch_id: UUID
    tenant: str
    kind: SwitchKind
    target: str
    reason: str
    created_by: str
    created_at: datetime
    lift_reason: str = ""
    lifted_by: str = ""
    lifted_at: datetime | None = None

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/killSwitches/{self.switch_id}"


class SwitchLedger:
    """Throws, lifts and lists switches."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    async def throw(
        self, tenant: str, kind: SwitchKind, target: str, *, reason: str, by: str, mutation: Mutation
    ) -> KillSwitch:
        """Turn something off until the switch is lifted; every gateway hears of it at once.

        Raises:
            NotFound: there is no such persona.
            AlreadyExists: it is off already (reason KILL_SWITCH_IN_FORCE).
        """

        async def act(connection: asyncpg.Connection) -> str:
            if kind is SwitchKind.PERSONA and not await connection.fetchval(
                "SELECT true FROM personas WHERE tenant = $1 AND persona = $2", tenant, target
            ):
                raise NotFound(f"tenants/{tenant}/personas/{target} does not exist")
            switch_id = uuid4()
            made = await connection.fetchval(
                "INSERT INTO kill_switches (switch_id, tenant, kind, target, reason, created_by)"
                " VALUES ($1, $2, $3, $4, $5, $6)"
                " ON CONFLICT (tenant, kind, target) WHERE lifted_at IS NULL DO NOTHING RETURNING true",
                switch_id,
                tenant,
                kind.value,
                target,
                reason,
                by,
            )
            if not made:
                held = await connection.fetchval(
                    "SELECT switch_id FROM kill_switches"
                    " WHERE tenant = $1 AND kind = $2 AND target = $3 AND lifted_at IS NULL",
                    tenant,
                    kind.value,
                    target,
                )
                name = f"tenants/{tenant}/killSwitches/{held}"
                raise AlreadyExists(
                    f"it is switched off already, by {name}",
                    reason="KILL_SWITCH_IN_FORCE",
                    metadata={"kill_switch": name},
                )
            await self._tell(connection, "kill_switch_thrown", tenant, switch_id, kind.value, target, by)
            return str(switch_id)

        return await self._once(tenant, mutation, act)

    async def lift(self, tenant: str, switch_id: UUID, *, reason: str, by: str, mutation: Mutation) -> KillSwitch:
        """Let what was turned off go on; lifting twice is the same as once.

        Raises:
            NotFound: there is no such switch.
        """

        async def act(connection: asyncpg.Connection) -> str:
            row = await connection.fetchrow(
                "SELECT kind, target, lifted_at FROM kill_switches WHERE tenant = $1 AND switch_id = $2 FOR UPDATE",
                tenant,
                switch_id,
            )
            if row is None:
                raise _unknown(tenant, switch_id)
            if row["lifted_at"] is None:
                await connection.execute(
                    "UPDATE kill_switches SET lifted_at = now(), lifted_by = $2, lift_reason = $3 WHERE switch_id = $1",
                    switch_id,
                    by,
                    reason,
                )
                await self._tell(connection, "kill_switch_lifted", tenant, switch_id, row["kind"], row["target"], by)
            return str(switch_id)

        return await self._once(tenant, mutation, act)

    async def _once(
        self, tenant: str, mutation: Mutation, act: Callable[[asyncpg.Connection], Awaitable[str]]
    ) -> KillSwitch:
        async with self._database.transaction() as connection:
            made = await once(connection, tenant, mutation, lambda: act(connection))
        return await self.get(tenant, UUID(made))

    async def _tell(
        self, connection: asyncpg.Connection, what: str, tenant: str, switch_id: UUID, kind: str, target: str, by: str
    ) -> None:
        # The reason stays outside of the log, as do other words of people.
        body = {
            "kill_switch": str(switch_id),
            "kind": kind,
            "operator": self._vault.pseudonym("operator", tenant, by),
            "target": target,
        }
        await audit.append(connection, tenant, what, body)
        await bump(connection)

    async def get(self, tenant: str, switch_id: UUID) -> KillSwitch:
        """One switch.

        Raises:
            NotFound: the tenant has none of that id.
        """
        row = await self._database.fetchrow(
            "SELECT * FROM kill_switches WHERE tenant = $1 AND switch_id = $2", tenant, switch_id
        )
        if row is None:
            raise _unknown(tenant, switch_id)
        return _switch(row)

    async def list_switches(
        self, tenant: str, *, lifted: bool, before: tuple[datetime, UUID] | None, limit: int
    ) -> list[KillSwitch]:
        """Switches of a tenant, newest first, after the place `before` in that order.

        Args:
            lifted: those that were lifted, too.
        """
        rows = await self._database.fetch(
            "SELECT * FROM kill_switches WHERE tenant = $1 AND ($2 OR lifted_at IS NULL)"
            " AND ($3::timestamptz IS NULL OR (created_at, switch_id) < ($3, $4))"
            " ORDER BY created_at DESC, switch_id DESC LIMIT $5",
            tenant,
            lifted,
            *(before or (None, None)),
            limit,
        )
        return [_switch(row) for row in rows]


def _unknown(tenant: str, switch_id: UUID) -> NotFound:
    return NotFound(f"tenants/{tenant}/killSwitches/{switch_id} does not exist")


def _switch(row: asyncpg.Record) -> KillSwitch:
    return KillSwitch(**{**dict(row), "kind": SwitchKind(row["kind"])})
