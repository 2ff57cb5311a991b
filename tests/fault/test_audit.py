"""A host that is killed before or while entries get their places in the audit log: the next one loses none."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg

from personae.v1 import persona_service_pb2 as per
from personae.v1 import policy_service_pb2 as pol
from personae_client import PersonaeClient, PersonaeError
from personae_runtime.ledger.audit import LOCK
from personae_serve.audit_verify import verify
from tests.fault.process import HostProcess

PARENT = "tenants/demo"
CRY = "I don't want to live anymore"
KILLS = 3


def client_of(host: HostProcess, **options: Any) -> PersonaeClient:
    return PersonaeClient(f"127.0.0.1:{host.port}", api_key=host.key, **options)


async def consent(client: PersonaeClient, user: str) -> None:
    await client.consents.record(user, pol.CONSENT_PURPOSE_MEMORY, pol.CONSENT_STATE_GRANTED)


async def entries_that_hold(client: PersonaeClient, pinned: list[str]) -> list[dict[str, Any]]:
    """Every entry of the log, once the log was found to hold."""
    lines = [f"{line}\n".encode() async for line in client.audit.export(PARENT)]
    report = verify(lines, pinned=pinned)
    assert report.problems == []
    return [json.loads(json.loads(line)["entry"]) for line in lines if json.loads(line)["type"] == "entry"]


async def test_what_was_written_and_not_sequenced_is_in_the_log_after_a_kill(folder: Path) -> None:
    host = HostProcess(folder / "data", folder / "log")
    try:
        await host.start()
        ledger = await asyncpg.connect(host.dsn)
        async with client_of(host) as client:
            persona = await client.personas.create(PARENT, "nadia", display_name="Nadia", type=1)
            pinned = (await client.audit.checkpoint(PARENT)).note
            # The host writes and can't sequence: it is between the two until it dies.
            await ledger.execute(f"SELECT pg_advisory_lock({LOCK})")
            await client.personas.publish_revision(persona.name, per.PersonaDefinition(card="You are Nadia."))
            await consent(client, f"{persona.name}/users/ann")
            session = await client.sessions.create(persona.name, user="ann")
            async with client.sessions.converse(session.name, CRY) as stream:
                await stream.collect()
            waiting = await ledger.fetch("SELECT entry_id, kind FROM audit_outbox")
            assert {"revision_published", "consent", "decision"} <= {row["kind"] for row in waiting}
            assert not await ledger.fetchval("SELECT EXISTS (SELECT FROM audit_entries)")
            await host.kill()
        await ledger.close()
        await host.start()
        async with client_of(host) as client:
            entries = await entries_that_hold(client, [pinned])
        assert sorted(entry["id"] for entry in entries) == sorted(str(row["entry_id"]) for row in waiting)
        await host.stop()
    finally:
        await host.clear()


async def test_kills_at_any_time_leave_each_entry_once(folder: Path) -> None:
    seed = secrets.randbelow(1_000_000)
    print(f"seed {seed}")
    chance = random.Random(seed)
    host = HostProcess(folder / "data", folder / "log")
    pinned: list[str] = []
    try:
        await host.start()
        async with client_of(host) as client:
            persona = await client.personas.create(PARENT, "nadia", display_name="Nadia", type=1)
            await client.personas.publish_revision(persona.name, per.PersonaDefinition(card="You are Nadia."))
        for _ in range(KILLS):
            acknowledged = asyncio.Event()
            enough = chance.randrange(5, 60)
            count = 0

            async def write(client: PersonaeClient, user: str) -> None:
                nonlocal count
                with suppress(PersonaeError):
                    while True:
                        await consent(client, user)
                        count += 1
                        if count >= enough:  # noqa: B023
                            acknowledged.set()  # noqa: B023

            async with client_of(host, max_attempts=1) as client:
                pinned.append((await client.audit.checkpoint(PARENT)).note)
                writers = [asyncio.create_task(write(client, f"{persona.name}/users/u{n}")) for n in range(4)]
                # A checkpoint sequences at once: some kills hit the writers, some the sequencer.
                signing = asyncio.create_task(client.audit.checkpoint(PARENT))
                await asyncio.wait_for(acknowledged.wait(), 60)
                await host.kill()
                await asyncio.gather(*writers, signing, return_exceptions=True)
            await host.start()
        async with client_of(host) as client:
            entries = await entries_that_hold(client, pinned)
        ledger = await asyncpg.connect(host.dsn)
        consents = {row["consent_id"] for row in await ledger.fetch("SELECT consent_id FROM consents")}
        await ledger.close()
        logged = Counter(entry["body"]["consent"] for entry in entries if entry["kind"] == "consent")
        assert set(logged) == consents
        assert set(logged.values()) == {1}
        await host.stop()
    finally:
        await host.clear()
