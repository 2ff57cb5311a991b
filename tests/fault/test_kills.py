"""Nothing acknowledged is lost, whoever dies and whenever.

PERSONAE_KILLS   how many kills, 10
PERSONAE_SEED    of the plan and the load; drawn, and printed, if unset
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from personae_runtime.telemetry import names
from tests.fault import verify
from tests.fault.host import Shot
from tests.fault.load import Api, Journal, User, make_persona
from tests.fault.process import HostProcess

KILLS = int(os.environ.get("PERSONAE_KILLS", "10"))
SEED = int(os.environ.get("PERSONAE_SEED") or secrets.randbelow(1_000_000))
USERS = 6
_KILL_S = 60.0
_RECOVER_S = 60.0

LONGEST_DELAY_US = {
    names.SPAN_ADMIT: 8_000,
    names.SPAN_GATE_INPUT: 3_000,
    names.SPAN_RECALL: 6_000,
    names.SPAN_GATE_MEMORY: 300,
    names.SPAN_COMPOSE: 1_000,
    names.SPAN_GENERATE: 200_000,
    names.SPAN_GATE_STREAM: 180_000,
    names.SPAN_RECORD: 180_000,
    names.SPAN_REMEMBER: 10_000,
}
"""Of each stage, about how long it lasts under this load; a stage that ends sooner is hit at its end."""


def plan(kills: int, rng: random.Random) -> list[Shot]:
    """Every stage once before any twice; each next meets the other victim."""
    shots: list[Shot] = []
    while len(shots) < kills:
        stages = list(names.STAGE_SPANS)
        rng.shuffle(stages)
        # An odd number of stages: going on alternating swaps the victims.
        for stage in stages:
            postgres = rng.choice(("postgres", "postgres_all"))
            shots.append(
                Shot(
                    stage=stage,
                    nth=rng.randint(1, 12),
                    delay_us=rng.choice((0, 1, 1, 1, 1, 1)) * rng.randint(1, LONGEST_DELAY_US[stage]),
                    victim="host" if len(shots) % 2 == 0 else postgres,
                )
            )
    return shots[:kills]


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[HostProcess]:
    """A data directory with no host running yet; nothing of it runs afterwards."""
    found = HostProcess(tmp_path / "data", tmp_path / "host.log")
    try:
        yield found
    finally:
        await found.clear()


def fail_if_wrong(journal: Journal, host: HostProcess, when: str) -> None:
    if journal.wrong:
        listed = "\n".join(journal.wrong[:20])
        pytest.fail(f"seed {SEED}, {when}:\n{listed}\n\n{host.last_words()}", pytrace=False)


@pytest.mark.soak
@pytest.mark.timeout(120 + 30 * KILLS)
async def test_nothing_acknowledged_is_lost_when_host_or_postgres_is_killed(host: HostProcess) -> None:
    rng = random.Random(SEED)
    journal = Journal()
    words: set[str] = set()
    users = [User(f"u{n}", journal, random.Random(rng.getrandbits(64)), words) for n in range(USERS)]
    stages: Counter[str] = Counter()
    victims: Counter[str] = Counter()
    searched = 0
    begun = time.monotonic()

    await host.start()
    async with host.channel() as channel:
        await make_persona(Api(channel, host.key))
    for number, shot in enumerate(plan(KILLS, rng), 1):
        await one_round(host, users, shot, stages)
        victims[shot.victim] += 1
        fail_if_wrong(journal, host, f"under load around kill {number}, {shot}")

        async with host.channel() as channel:
            api = Api(channel, host.key)
            sessions = {turn.session: None for turn in journal.touched}
            ids = await verify.ledger(host.dsn, host.data_dir, journal, sessions)
            await verify.replays(api, journal, list(journal.touched), ids)
            await verify.memories(api, journal, journal.memories[searched:])
        fail_if_wrong(journal, host, f"after kill {number}, {shot}")
        journal.touched.clear()
        searched = max(0, len(journal.memories) - 40)
        for user in users:
            if rng.random() < 0.5:
                user.renew()

    # What was unanswered at the last kill is answered, and then all of it is read once more.
    async with host.channel() as channel:
        api = Api(channel, host.key)
        stop = asyncio.Event()
        stop.set()
        await asyncio.gather(*(user.run(api, stop) for user in users))
        ids = await verify.ledger(host.dsn, host.data_dir, journal, journal.sessions)
        await verify.memories(api, journal, journal.memories)
        await verify.closed(api, journal, journal.sessions, ids)
    fail_if_wrong(journal, host, "at the end")
    turns = sum(len(session.turns) for session in journal.sessions)
    assert len(ids) == turns
    await host.stop()
    assert not host.postgres()

    histogram = " ".join(f"{stage.rpartition('.')[2]}={stages[stage]}" for stage in names.STAGE_SPANS)
    print(
        f"\nkills: seed={SEED} kills={sum(victims.values())} {histogram} | "
        + " ".join(f"{victim}={count}" for victim, count in sorted(victims.items()))
        + f" | {turns} turns, {sum(map(len, ids.values()))} events, {len(journal.memories)} memories, none lost,"
        f" {time.monotonic() - begun:.0f} s",
        file=sys.stderr,
    )
    if len(names.STAGE_SPANS) <= KILLS:
        assert all(stages[stage] for stage in names.STAGE_SPANS), f"seed {SEED}: a stage without a kill: {stages}"
        assert victims["host"]
        assert victims["postgres"] + victims["postgres_all"]


async def one_round(host: HostProcess, users: list[User], shot: Shot, stages: Counter[str]) -> None:
    """Load until the shot has fired; afterwards a host serves, and PostgreSQL has answered everybody again."""
    stop = asyncio.Event()
    async with host.channel() as channel:
        api = Api(channel, host.key)
        load = [asyncio.create_task(user.run(api, stop)) for user in users]
        try:
            await host.arm(shot)
            report = await host.report("killed", _KILL_S)
            assert report["open"].get(shot.stage), report
            stages[shot.stage] += 1
            if shot.victim == "host":
                stop.set()
                await host.died()
            else:
                # Two each: the first may have been answered before the kill.
                goals = [user.done + 2 for user in users]
                async with asyncio.timeout(_RECOVER_S):
                    while any(user.done < goal for user, goal in zip(users, goals, strict=True)):
                        if any(task.done() for task in load):
                            break
                        await asyncio.sleep(0.05)
                stop.set()
            async with asyncio.timeout(_RECOVER_S):
                await asyncio.gather(*load)
        finally:
            for task in load:
                task.cancel()
            await asyncio.gather(*load, return_exceptions=True)
    if shot.victim == "host":
        await host.start()
