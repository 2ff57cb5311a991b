"""A host that is killed in the middle of an erasure: the next one completes it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg

from personae.v1 import memory_service_pb2 as mem
from personae.v1 import persona_service_pb2 as per
from personae_client import PersonaeClient
from personae_serve import proofs
from tests.fault.process import HostProcess

CANARY = "zanzibarquokka"


async def test_an_erasure_is_completed_after_a_kill(folder: Path) -> None:
    host = HostProcess(folder / "data", folder / "log")
    try:
        await host.start()
        async with PersonaeClient(f"127.0.0.1:{host.port}", api_key=host.key) as client:
            persona = await client.personas.create("tenants/demo", "nadia", display_name="Nadia", type=1)
            await client.personas.publish_revision(persona.name, per.PersonaDefinition(card="You are Nadia."))
            user, other = f"{persona.name}/users/ann", f"{persona.name}/users/bob"
            kept = await client.memories.create(other, mem.Memory(text="I row."))
            for _ in range(3):
                session = await client.sessions.create(persona.name, user="ann")
                async with client.sessions.converse(session.name, f"My bicycle is called {CANARY}.") as stream:
                    await stream.collect()
            ledger = await asyncpg.connect(host.dsn)
            # It can't get past the last session.
            async with ledger.transaction():
                last = await ledger.fetchval(
                    "SELECT session_pk FROM sessions ORDER BY session_pk DESC LIMIT 1 FOR UPDATE"
                )
                operation = await client.memories.erase(user)
                async with asyncio.timeout(20):
                    while await ledger.fetchval("SELECT count(*) FROM sessions") > 1:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                await host.kill()
            assert await ledger.fetchval("SELECT session_pk FROM sessions") == last
            await ledger.close()
        await host.start()
        async with PersonaeClient(f"127.0.0.1:{host.port}", api_key=host.key) as client:
            proof = await client.memories.erasure(operation.name).wait(timeout_s=60)
            assert (proof.erased["ledger.sessions"], proof.erased["ledger.turns"]) == (3, 3)
            assert proof.erased["ledger.memories"] == 3
            assert not any(proof.remaining.values())
            assert proofs.holds(proof)
            assert [memory async for memory in client.memories.list(user)] == []
            assert [memory async for memory in client.memories.list(other)] == [kept]
            assert [session async for session in client.sessions.list(persona.name, user="ann")] == []
        await host.stop()
    finally:
        await host.clear()
