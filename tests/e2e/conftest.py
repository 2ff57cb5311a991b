"""One host for all end-to-end tests, and a way to start others on its PostgreSQL."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
import pytest_asyncio
from sqlalchemy.engine import make_url

from personae_runtime.config import load_settings
from personae_serve.embedded import EmbeddedHost
from tests.e2e.support import Api, Hosted, ScriptedEngine, api_key

KEY = "service-key-of-the-tests"
KEYS = (
    api_key(KEY, id="service"),
    api_key("key-of-another-tenant", id="other-tenant", tenant="other"),
    api_key("key-of-ann", id="ann", user="ann"),
    *(
        api_key(f"key-of-reviewer-{at}", id=f"reviewer-{at}", permissions=("reviews.*", "decisions.*"))
        for at in (1, 2, 3)
    ),
    api_key("key-that-may-report", id="reporter", permissions=("reports.get",)),
    api_key("key-that-may-read-personas", id="reader", permissions=("personas.get", "personas.list")),
    api_key("key-of-an-editor", id="editor", permissions=("personas.*",)),
)

StartHost = Callable[..., Awaitable[Hosted]]


async def start_hosted(
    stack: AsyncExitStack,
    data_dir: Path,
    engine: Any = None,
    host_options: dict[str, Any] | None = None,
    **changed: Any,
) -> Hosted:
    """Start a host that `stack` stops."""
    settings = {
        # A busy machine is not what most tests are about; and while tests of another event loop run, that of a host
        # that tests share stands still, for minutes.
        "gateway": {"port": 0, "max_accept_wait_s": 3600},
        "memory": {"dense": False},
        "auth": {"api_keys": KEYS},
        "telemetry": {"log_level": "WARNING"},
    }
    for section, values in changed.items():
        settings[section] = {**settings.get(section, {}), **values} if isinstance(values, dict) else values
    engine = ScriptedEngine() if engine is None else engine
    host = EmbeddedHost(load_settings(data_dir=data_dir, **settings), engine=engine, **(host_options or {}))
    port = await host.start()
    stack.push_async_callback(host.stop)
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
    return Hosted(host, engine, Api(channel, KEY), port, KEY)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_host() -> AsyncIterator[Hosted]:
    """The host that most tests use. Not in pytest's folder: see `folder`."""
    with tempfile.TemporaryDirectory(prefix="personae-host-", ignore_cleanup_errors=True) as folder:
        async with AsyncExitStack() as stack:
            yield await start_hosted(stack, Path(folder))


@pytest_asyncio.fixture(loop_scope="session")
async def hosted(shared_host: Hosted) -> AsyncIterator[Hosted]:
    """The shared host with nothing scripted, and nothing left running afterwards."""
    shared_host.engine.clear()
    yield shared_host
    for turn in shared_host.host.gateway.runner.hubs.running():
        turn.stop("CANCELLED")
        await turn.ended.wait()
    shared_host.engine.clear()


@pytest.fixture
def api(hosted: Hosted) -> Api:
    """The shared host's caller with every permission."""
    return hosted.api


async def make_database(shared_host: Hosted) -> str:
    """The DSN of an empty database in the shared host's PostgreSQL."""
    shared = shared_host.host.stores.database.dsn
    name = f"test_{uuid.uuid4().hex}"
    connection = await asyncpg.connect(shared)
    try:
        await connection.execute(f"CREATE DATABASE {name}")
    finally:
        await connection.close()
    return make_url(shared).set(database=name).render_as_string(hide_password=False)


@pytest_asyncio.fixture(loop_scope="session")
async def new_dsn(shared_host: Hosted) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """Makes empty databases in the shared host's PostgreSQL."""

    async def make() -> str:
        return await make_database(shared_host)

    yield make


@pytest_asyncio.fixture(loop_scope="session")
async def start_host(tmp_path: Path, new_dsn: Callable[[], Awaitable[str]]) -> AsyncIterator[StartHost]:
    """Starts hosts of a test's own: `await start_host(engine=..., sessions={...})`, each on its own database."""
    async with AsyncExitStack() as stack:

        async def start(name: str = "own", ledger: dict[str, Any] | None = None, **changed: Any) -> Hosted:
            ledger = {"dsn": await new_dsn(), **(ledger or {})}
            return await start_hosted(stack, tmp_path / name, ledger=ledger, **changed)

        yield start
