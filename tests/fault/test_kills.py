"""Nothing acknowledged is lost, whoever dies and whenever.

PERSONAE_KILLS   how many kills, 10
PERSONAE_SEED    of the plan and the load; drawn, and printed, if unset
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from personae_runtime.telemetry import names
from tests.fault import verify
from tests.fault.host import CREATE_MEMORY, FORGET_MEMORY, PLACES, Shot
from tests.fault.load import Api, Journal, User, make_persona
from tests.fault.process import HostProcess

KILLS = int(os.environ.get("PERSONAE_KILLS", "10"))
SEED = int(os.environ.get("PERSONAE_SEED") or secrets.randbelow(1_000_000))
USERS = 6
STARTS = min(20, max(3, KILLS // 5))
"""Hosts and servers killed as they start."""
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
    CREATE_MEMORY: 10_000,
    FORGET_MEMORY: 10_000,
}
"""Of each place, about how long it lasts under this load; one that ends sooner is hit at its end,
which for a call is after it has taken effect and before it is answered."""


def plan(kills: int, rng: random.Random) -> list[Shot]:
    """Every stage once before any twice; each next meets the other victim."""
    shots: list[Shot] = []
    turn = itertools.cycle(("host", "postgres"))
    while len(shots) < kills:
        # An odd number of stages: going on alternating swaps the victims.
        stages = list(names.STAGE_SPANS)
        rng.shuffle(stages)
        aims = [(stage, next(turn)) for stage in stages]
        # PostgreSQL's death is no danger to an answer that is on its way.
        aims += [(CREATE_MEMORY, "host"), (FORGET_MEMORY, "host")]
        for place, victim in aims:
            shots.append(
                Shot(
                    place=place,
                    nth=rng.randint(1, 12),
                    delay_us=rng.choice((0, 1, 1, 1, 1, 1)) * rng.randint(1, LONGEST_DELAY_US[place]),
                    victim=victim if victim == "host" else rng.choice(("postgres", "postgres_all")),
                )
            )
    return shots[:kills]


@pytest.fixture
async def host(folder: Path) -> AsyncIterator[HostProcess]:
    """A data directory with no host running yet; nothing of it runs afterwards."""
    found = HostProcess(folder / "data", folder / "host.log")
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
async def test_nothing_acknowledged_is_lost_when_host_or_postgres_is_killed(
    host: HostProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(SEED)
    journal = Journal()
    words: set[str] = set()
    users = [
        # The last one hardly talks: writes of memories are short, and many are needed for one to be hit.
        User(f"u{n}", journal, random.Random(rng.getrandbits(64)), words, notes=0.9 if n == USERS - 1 else 0.2)
        for n in range(USERS)
    ]
    places: Counter[str] = Counter()
    victims: Counter[str] = Counter()
    ids: dict[str, list[int]] = {}
    searched = 0
    begun = time.monotonic()
    try:
        await host.start()
        async with host.channel() as channel:
            await make_persona(Api(channel, host.key))
        for number, shot in enumerate(plan(KILLS, rng), 1):
            at = time.monotonic()
            await one_round(host, users, shot, places)
            back = time.monotonic()
            victims[shot.victim] += 1
            fail_if_wrong(journal, host, f"under load around kill {number}, {shot}")

            async with host.channel() as channel:
                api = Api(channel, host.key)
                sessions = {turn.session: None for turn in journal.touched}
                ids = await verify.ledger(host.dsn, host.data_dir, journal, sessions)
                await verify.replays(api, journal, list(journal.touched), ids)
                await verify.memories(api, journal, journal.memories[searched:])
            fail_if_wrong(journal, host, f"after kill {number}, {shot}")
            print(
                f"kill {number}/{KILLS}: {shot.victim} in {short(shot.place)},"
                f" back after {back - at:.1f} s, verified in {time.monotonic() - back:.1f} s"
            )
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
        assert len(ids) == sum(len(session.turns) for session in journal.sessions)
        await host.stop()
        assert not host.postgres()
    finally:
        # Whatever went wrong: with the seed it can be tried again.
        histogram = " ".join(f"{short(place)}={places[place]}" for place in PLACES)
        with capsys.disabled():
            print(
                f"\nkills: seed={SEED} kills={sum(victims.values())} {histogram} | "
                + " ".join(f"{victim}={count}" for victim, count in sorted(victims.items()))
                + f" | {len(ids)} turns, {sum(map(len, ids.values()))} events, {len(journal.memories)} memories,"
                f" {len(journal.wrong)} wrong, {time.monotonic() - begun:.0f} s"
            )
    if len(names.STAGE_SPANS) <= KILLS:
        assert all(places[stage] for stage in names.STAGE_SPANS), f"seed {SEED}: a stage without a kill: {places}"
        assert victims["host"]
        assert victims["postgres"] + victims["postgres_all"]


def short(place: str) -> str:
    """The last word of a span's name."""
    return re.split(r"[./]", place)[-1]


async def any_of(*futures: asyncio.Future[Any]) -> None:
    """Wait for the first of them; there is one in time."""
    done, _ = await asyncio.wait(futures, timeout=_RECOVER_S, return_when=asyncio.FIRST_COMPLETED)
    assert done, f"seed {SEED}: not within {_RECOVER_S:.0f} s"


async def one_round(host: HostProcess, users: list[User], shot: Shot, places: Counter[str]) -> None:
    """Load until the shot has fired; afterwards a host serves, and PostgreSQL has answered everybody again."""
    stop = asyncio.Event()
    async with host.channel() as channel:
        api = Api(channel, host.key)
        load = [asyncio.create_task(user.run(api, stop)) for user in users]
        try:
            await host.arm(shot)
            report = await host.report("killed", _KILL_S)
            assert report["open"].get(shot.place), report
            places[shot.place] += 1
            if shot.victim == "host":
                stop.set()
                await host.died()
            else:
                # Two each: the first may have been answered before the kill.
                await any_of(asyncio.gather(*(user.did(2) for user in users)), *load)
                stop.set()
            async with asyncio.timeout(_RECOVER_S):
                await asyncio.gather(*load)
        finally:
            for task in load:
                task.cancel()
            await asyncio.gather(*load, return_exceptions=True)
    if shot.victim == "host":
        await host.start()


async def talk(host: HostProcess, journal: Journal, user: User, times: int = 4) -> None:
    """Let one person do a few things with the running host, all of which must succeed in the end."""
    stop = asyncio.Event()
    async with host.channel() as channel:
        load = asyncio.create_task(user.run(Api(channel, host.key), stop))
        await any_of(asyncio.ensure_future(user.did(times)), load)
        stop.set()
        await asyncio.wait_for(load, _RECOVER_S)
    fail_if_wrong(journal, host, "while talking")


async def verify_all(host: HostProcess, journal: Journal) -> None:
    """Everything, by the ledger and by the API."""
    async with host.channel() as channel:
        api = Api(channel, host.key)
        ids = await verify.ledger(host.dsn, host.data_dir, journal, journal.sessions)
        turns = [turn for session in journal.sessions for turn in session.turns.values()]
        await verify.replays(api, journal, turns, ids)
        await verify.memories(api, journal, journal.memories)
    fail_if_wrong(journal, host, "at the end")


@pytest.mark.soak
async def test_a_host_goes_on_when_postgres_dies_while_nobody_talks(host: HostProcess) -> None:
    journal = Journal()
    user = User("u0", journal, random.Random(SEED), set())
    await host.start()
    async with host.channel() as channel:
        await make_persona(Api(channel, host.key))
    for victim in ("postgres", "postgres_all"):
        await talk(host, journal, user)
        await host.arm(Shot("", 1, 0, victim))
        await host.report("killed", 10)
    await talk(host, journal, user)
    await verify_all(host, journal)
    await host.stop()
    assert not host.postgres()


@pytest.mark.soak
@pytest.mark.timeout(60 + 30 * STARTS)
async def test_a_host_comes_up_although_postgres_dies_while_it_starts(host: HostProcess) -> None:
    rng = random.Random(SEED)
    journal = Journal()
    user = User("u0", journal, random.Random(SEED), set())
    await host.start()
    async with host.channel() as channel:
        await make_persona(Api(channel, host.key))
    for _ in range(STARTS):
        orphaned = rng.random() < 0.5
        await talk(host, journal, user)
        if orphaned:
            await host.kill()
        else:
            await host.stop()
        moment = rng.uniform(0, 2.5)
        begun = time.monotonic()
        await host.spawn()
        await asyncio.sleep(moment)
        # Where it is not running yet, it dies as it begins to.
        async with asyncio.timeout(_RECOVER_S):
            while True:
                found = host.postgres()
                if found:
                    break
                await asyncio.sleep(0.01)
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        await host.serving()
        print(f"PostgreSQL died {moment:.2f} s after the host began, which was up at {time.monotonic() - begun:.1f} s")
    await talk(host, journal, user)
    await verify_all(host, journal)
    await host.stop()


@pytest.mark.soak
@pytest.mark.timeout(60 + 30 * STARTS)
async def test_a_host_comes_up_after_it_died_while_it_started(host: HostProcess) -> None:
    rng = random.Random(SEED)
    journal = Journal()
    user = User("u0", journal, random.Random(SEED), set())
    # Time and again in the same directory, which is empty at first.
    for moment in sorted(rng.uniform(0.3, 5) for _ in range(STARTS)):
        await host.spawn()
        await asyncio.sleep(moment)
        await host.kill()
    await host.start()
    async with host.channel() as channel:
        await make_persona(Api(channel, host.key))
    await talk(host, journal, user)
    await verify_all(host, journal)
    await host.stop()
    assert not host.postgres()
