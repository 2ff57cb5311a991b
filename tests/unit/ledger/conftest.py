"""One PostgreSQL for the ledger's tests, an empty schema for each."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy.engine import make_url

from personae_runtime.ledger.database import Database
from personae_runtime.ledger.embedded import EmbeddedPostgres
from personae_runtime.ledger.memories import MemoryLedger
from personae_runtime.ledger.personas import Mutation, PersonaLedger
from personae_runtime.ledger.sessions import Admission, SessionLedger, SessionRow
from personae_runtime.ledger.vault import Scope, ScopeCipher, Vault
from personae_runtime.ledger.writer import EventWriter
from personae_runtime.memory.facts import drawing
from personae_runtime.names import Name
from personae_runtime.personas.definition import PersonaDefinition
from personae_runtime.sessions.events import Event, TurnStarted

ONCE = Mutation("test", "", b"")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server_dsn(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    postgres = EmbeddedPostgres(tmp_path_factory.mktemp("ledger") / "postgres")
    yield await postgres.start()
    await postgres.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def open_database(server_dsn: str) -> AsyncIterator[Callable[[], Awaitable[Database]]]:
    """Opens the test's database, once more with each call."""
    name = f"test_{uuid.uuid4().hex}"
    connection = await asyncpg.connect(server_dsn)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    dsn = make_url(server_dsn).set(database=name).render_as_string(hide_password=False)
    opened: list[Database] = []

    async def open_one() -> Database:
        database = Database(dsn, pool_size=4, command_timeout_s=10)
        await database.open()
        opened.append(database)
        return database

    yield open_one
    for database in opened:
        await database.close()


@pytest_asyncio.fixture(loop_scope="session")
async def database(open_database: Callable[[], Awaitable[Database]]) -> Database:
    database = await open_database()
    await database.migrate()
    return database


@dataclass
class Owner:
    """One process's view of the ledger."""

    database: Database
    vault: Vault
    sessions: SessionLedger
    memories: MemoryLedger
    writer: EventWriter

    async def persona(self, type_: str = "assistant") -> Name:
        """A new persona with a revision."""
        personas = PersonaLedger(self.database, self.vault)
        name = Name("acme", f"p-{uuid.uuid4().hex[:8]}")
        await personas.create(name, "Nadia", type_, ONCE)
        await personas.publish(name, PersonaDefinition(card="You are Nadia."), ONCE)
        return name

    async def session(self) -> SessionRow:
        """A new session of a new persona."""
        return await self.sessions.create(
            await self.persona(),
            uuid.uuid4().hex,
            "ann",
            age_band="adult",
            region_code="",
            disclosure="An AI speaks.",
            mutation=ONCE,
        )

    async def cipher(self, session: SessionRow) -> ScopeCipher:
        return await self.vault.cipher(Scope(session.tenant, session.persona, session.user))

    async def admit(self, session: SessionRow, turn_id: str = "t1", text: str = "Hello there.") -> Admission:
        return await self.sessions.admit(
            session, await self.cipher(session), turn_id, text, TurnStarted(session.disclosure, session.revision)
        )

    async def append(self, session: SessionRow, admission: Admission, *events: Event) -> None:
        cipher = await self.cipher(session)
        rows = [self.sessions.row(session.session_pk, admission.turn_no, cipher, event) for event in events]
        await self.writer.append(rows, admission.owner)


NewOwner = Callable[..., Awaitable[Owner]]


@pytest_asyncio.fixture(loop_scope="session")
async def new_owner(database: Database, open_database: Callable[[], Awaitable[Database]]) -> AsyncIterator[NewOwner]:
    """Registers owners: processes of one host unless another is named."""
    writers: list[EventWriter] = []

    async def make(host: str = "host", lease_s: float = 10) -> Owner:
        own = await open_database()
        vault = Vault(bytes(32), own)
        memories = MemoryLedger(own, vault)
        sessions = SessionLedger(
            own,
            vault,
            memories,
            host=host,
            lease_s=lease_s,
            may_store=lambda text, context: "secret" not in text,
            draw=drawing(lambda text, context: True),
        )
        await sessions.register()
        writer = EventWriter(own, timeout_s=1)
        writer.start()
        writers.append(writer)
        return Owner(own, vault, sessions, memories, writer)

    yield make
    for writer in writers:
        await writer.close()
