"""A cluster under load: whoever dies, what was acknowledged is there, once.

PERSONAE_KILLS   how many rounds of kills; 1 as a rule, more in `make soak`
PERSONAE_SEED    of the load; drawn, and printed, if unset
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from personae.v1 import event_pb2
from tests.cluster.support import CONTROLLER, Cluster, running
from tests.fault import verify
from tests.fault.load import Api, Journal, User, make_persona

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROUNDS = max(1, int(os.environ.get("PERSONAE_KILLS", "1")) // 10)
SEED = int(os.environ.get("PERSONAE_SEED") or secrets.randbelow(1_000_000))
USERS = 6
VICTIMS = ("gateway", "model-synthetic", "memory", CONTROLLER, "postgres")
_RECOVER_S = 120.0
SECTIONS = """
[gateway]
port = PORT
max_accept_wait_s = 60
drain_grace_s = 10
[ledger]
lease_s = 4
[memory]
dense = false
[sessions]
turns_per_minute = 1000000
[cluster]
dashboard = false
[cluster.gateway]
min_replicas = 2
max_replicas = 2
num_cpus = 0.1
[[cluster.models]]
kind = "synthetic"
model = "synthetic"
parallel = 32
synthetic_ttft_ms = 15
synthetic_itl_ms = 10
synthetic_tokens = {tokens}
min_replicas = 2
max_replicas = 2
num_cpus = 0.1
[cluster.memory]
num_cpus = 0.1
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[Cluster]:
    """With a persona in it; rolled over by the first test, and killed piece by piece by the second."""
    with tempfile.TemporaryDirectory(prefix="personae-cluster-", ignore_cleanup_errors=True) as folder:
        async with running(Path(folder), SECTIONS.format(tokens=40)) as found:
            async with found.channel() as channel:
                await make_persona(Api(channel, found.key))
            yield found


def fail_if_wrong(journal: Journal, cluster: Cluster, when: str) -> None:
    if journal.wrong:
        listed = "\n".join(journal.wrong[:20])
        pytest.fail(f"seed {SEED}, {when}:\n{listed}\n\n{cluster.last_words()}", pytrace=False)


async def talk(
    cluster: Cluster, journal: Journal, users: list[User], things: int, meanwhile: Callable[[], Awaitable[None]]
) -> None:
    """Let everybody do things; `meanwhile` is awaited when each has done one, and each does as many again."""
    stop = asyncio.Event()
    try:
        # A connection each: they land on whichever gateway the kernel picks.
        async with asyncio.timeout(_RECOVER_S), asyncio.TaskGroup() as load:
            for user in users:
                load.create_task(_talk(cluster, user, stop))
            await asyncio.gather(*(user.did(1) for user in users))
            await meanwhile()
            await asyncio.gather(*(user.did(things) for user in users))
            stop.set()
    except (TimeoutError, ExceptionGroup):
        fail_if_wrong(journal, cluster, "under load")
        raise


async def _talk(cluster: Cluster, user: User, stop: asyncio.Event) -> None:
    async with cluster.channel() as channel:
        await user.run(Api(channel, cluster.key), stop)
    # Otherwise something that must not happen stands in the journal.
    assert stop.is_set(), f"{user.name} gave up"


async def check(cluster: Cluster, journal: Journal, when: str) -> None:
    """Everything that was touched, by the ledger and by the API."""
    async with cluster.channel() as channel:
        api = Api(channel, cluster.key)
        ids = await verify.ledger(cluster.dsn, cluster.data_dir, journal, {turn.session for turn in journal.touched})
        await verify.replays(api, journal, list(journal.touched), ids)
        await verify.memories(api, journal, journal.memories)
    fail_if_wrong(journal, cluster, when)
    journal.touched.clear()


async def kill(cluster: Cluster, title: str) -> None:
    """SIGKILL to the oldest process of a kind."""
    if title == "postgres":
        assert cluster.postgres.pid is not None
        psutil.Process(cluster.postgres.pid).kill()
        return
    victims = sorted(cluster.processes(title), key=psutil.Process.create_time)
    assert victims, f"no process of {title}"
    victims[0].kill()


@pytest.mark.timeout(600)
async def test_a_rolling_update_breaks_no_conversation(cluster: Cluster) -> None:
    journal, words = Journal(), set[str]()
    users = [User(f"rolled-{n}", journal, random.Random(SEED + n), words) for n in range(USERS)]
    before = {process.pid for title in ("gateway", "model-synthetic") for process in cluster.processes(title)}
    assert len(before) == 4

    async def roll_over() -> None:
        cluster.configure(SECTIONS.format(tokens=60))
        code, output = await cluster.run("up", "--cluster")
        assert code == 0, output

    await talk(cluster, journal, users, 3, roll_over)
    await check(cluster, journal, "after the roll-over")
    after = {process.pid for title in ("gateway", "model-synthetic") for process in cluster.processes(title)}
    assert not before & after
    interrupted = [
        turn
        for session in journal.sessions
        for turn in session.turns.values()
        for event in turn.events.values()
        if event_pb2.SessionEvent.FromString(event).turn_interrupted.reason
        == event_pb2.TurnInterrupted.REASON_OWNER_LOST
    ]
    assert interrupted == []


@pytest.mark.soak
@pytest.mark.timeout(600 + 600 * ROUNDS)
async def test_nothing_acknowledged_is_lost_when_a_part_of_the_cluster_dies(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, journal, words = random.Random(SEED), Journal(), set[str]()
    users = [User(f"u{n}", journal, random.Random(rng.getrandbits(64)), words) for n in range(USERS)]
    killed = []
    try:
        for _ in range(ROUNDS):
            for victim in VICTIMS:
                begun = time.monotonic()
                await talk(cluster, journal, users, 3, partial(kill, cluster, victim))
                killed.append(victim)
                fail_if_wrong(journal, cluster, f"after a kill of {victim}")
                await check(cluster, journal, f"after a kill of {victim}")
                print(f"{victim}: {time.monotonic() - begun:.1f} s")
                for user in users:
                    if rng.random() < 0.5:
                        user.renew()
    finally:
        turns = sum(len(session.turns) for session in journal.sessions)
        with capsys.disabled():
            print(
                f"\ncluster kills: seed={SEED} {' '.join(killed)} | {turns} turns, {len(journal.memories)} memories,"
                f" {len(journal.wrong)} wrong"
            )
