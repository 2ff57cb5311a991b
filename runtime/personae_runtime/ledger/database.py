"""The connection pool, transactions, errors and migrations."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, TypeVar

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from personae_runtime.errors import InvalidArgument, LedgerUnavailable

Connection: TypeAlias = asyncpg.Connection | PoolConnectionProxy
T = TypeVar("T")

UNREACHABLE = (
    OSError,
    EOFError,
    TimeoutError,
    asyncpg.InterfaceError,
    # A connection that died under a statement is left in a state of its own.
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
)
"""What asyncpg raises when the server is away, as opposed to a fault of ours."""


class Database:
    """A pool of connections to one PostgreSQL.

    Args:
        dsn: libpq URI.
        pool_size: connections at most.
        command_timeout_s: seconds after which a statement counts as failed.
    """

    def __init__(self, dsn: str, *, pool_size: int, command_timeout_s: float) -> None:
        self.dsn = dsn
        self._pool_size = pool_size
        self._command_timeout_s = command_timeout_s
        self._pool: asyncpg.Pool | None = None

    async def open(self) -> None:
        """Connect.

        Raises:
            LedgerUnavailable: nobody answers at the DSN.
        """
        # It logs every try to reconnect, with a traceback; the health check says it once.
        logging.getLogger("asyncpg.pool").setLevel(logging.CRITICAL)
        try:
            self._pool = await asyncpg.create_pool(
                self.dsn,
                min_size=2,
                max_size=self._pool_size,
                command_timeout=self._command_timeout_s,
                timeout=self._command_timeout_s,
                # Nothing here leaves a session setting, a listener or a lock behind: no round trip to reset them.
                reset=_keep,
                server_settings={"application_name": "personae", "jit": "off", "timezone": "UTC"},
            )
        except UNREACHABLE as error:
            raise LedgerUnavailable(f"PostgreSQL does not answer: {error}") from error

    async def close(self) -> None:
        """Close every connection. Safe to call twice."""
        pool, self._pool = self._pool, None
        if pool is not None:
            try:
                await asyncio.wait_for(pool.close(), timeout=5)
            except (TimeoutError, *UNREACHABLE):
                pool.terminate()

    async def connect(self) -> asyncpg.Connection:
        """A connection of one's own, for LISTEN. The caller closes it."""
        try:
            return await asyncpg.connect(
                self.dsn, timeout=self._command_timeout_s, command_timeout=self._command_timeout_s
            )
        except UNREACHABLE as error:
            raise LedgerUnavailable(f"PostgreSQL does not answer: {error}") from error

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A pooled connection; failures to reach the server become LedgerUnavailable."""
        if self._pool is None:
            raise LedgerUnavailable("the ledger is closed")
        try:
            async with self._pool.acquire(timeout=self._command_timeout_s) as connection:
                yield connection
        except UNREACHABLE as error:
            raise LedgerUnavailable(f"PostgreSQL is out of reach: {type(error).__name__}", retry_after_s=1.0) from error
        except asyncpg.CharacterNotInRepertoireError:
            raise InvalidArgument("a text holds the character U+0000, which can't be stored") from None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A transaction: committed, and so durable, when the block is left without an error."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def _read(self, run: Callable[[Connection], Awaitable[T]]) -> T:
        # A pooled connection may have died with its server; one fresh try tells.
        try:
            async with self.connection() as connection:
                return await run(connection)
        except LedgerUnavailable:
            async with self.connection() as connection:
                return await run(connection)

    async def fetch(self, query: str, *args: Any) -> list[asyncpg.Record]:
        """All rows of one idempotent statement."""
        return await self._read(lambda c: c.fetch(query, *args))

    async def fetchrow(self, query: str, *args: Any) -> asyncpg.Record | None:
        """First row of one idempotent statement, or None."""
        return await self._read(lambda c: c.fetchrow(query, *args))

    async def fetchval(self, query: str, *args: Any) -> Any:
        """First column of the first row of one idempotent statement."""
        return await self._read(lambda c: c.fetchval(query, *args))

    async def execute(self, query: str, *args: Any) -> str:
        """Run one idempotent statement; PostgreSQL's command tag."""
        return await self._read(lambda c: c.execute(query, *args))

    async def migrate(self) -> None:
        """Bring the schema to the newest version. Concurrent callers wait for each other.

        Raises:
            LedgerUnavailable: the server went away; nothing was changed, or all of it.
        """
        # Alembic and SQLAlchemy take half a second to import: only a host pays.
        from sqlalchemy.exc import DBAPIError

        from personae_runtime.ledger.migrations import upgrade

        try:
            await upgrade(self.dsn)
        except UNREACHABLE as error:
            raise LedgerUnavailable(f"PostgreSQL is out of reach: {type(error).__name__}") from error
        except DBAPIError as error:
            # SQLAlchemy wraps the driver's error twice.
            cause = None if error.orig is None else error.orig.__cause__
            if error.connection_invalidated or isinstance(cause, UNREACHABLE):
                raise LedgerUnavailable(f"PostgreSQL is out of reach: {type(cause).__name__}") from error
            raise


async def _keep(connection: Connection) -> None:
    """What a pooled connection needs on its way back: nothing."""
