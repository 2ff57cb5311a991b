"""Sends the load when it is due and adds up what comes back."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from tests.load.drivers import Driver, Talk
from tests.load.measure import Measures, Outcome
from tests.load.scenario import Conversation

_LEAD_S = 0.2
"""From the last preparation to the first turn, so that none is due before the clock starts."""


async def run(
    driver: Driver,
    conversations: Sequence[Conversation],
    *,
    duration_s: float,
    warmup_s: float = 0.0,
    drain_s: float = 60.0,
    hold: bool = False,
    at_once: int = 0,
    parse_last: bool = False,
    on_start: Callable[[], Awaitable[None]] | None = None,
) -> dict[str, Any]:
    """Hold the conversations; the report.

    A turn counts from when it was due: a conversation whose reply came so late
    that the next turn was overdue sends that one at once, and the wait is part
    of its time, as it would have been for somebody who arrived by the schedule
    (coordinated omission: Tene, "How NOT to Measure Latency").

    Args:
        duration_s: no turn that is due later is sent.
        warmup_s: turns due before this are not measured; their failures count.
        drain_s: what is not over so long after `duration_s` has failed.
        hold: keep a stream open between the turns of a conversation.
        at_once: turns in flight at most, 0 for no limit; a turn that waits for a
            place is due when it gets it. This closes the loop: for comparisons at
            a given concurrency, not for load.
        parse_last: parse nothing before every turn is over, for rates: the work of
            parsing one stream would else be in the others' time.
        on_start: awaited once everything is prepared.
    """
    talks = await driver.prepare(conversations)
    if on_start is not None:
        await on_start()
    gc.collect()
    gc.freeze()  # what the run itself makes is short-lived: no long collections in between
    cpu = time.process_time()
    begun = time.perf_counter() + _LEAD_S
    measures = Measures(begun, warmup_s)
    running: dict[Talk, Outcome] = {}
    places = asyncio.Semaphore(at_once) if at_once else None
    finished: list[Outcome] = []
    driver.later = [] if parse_last else None
    tasks = [
        asyncio.create_task(_hold(driver, talk, measures, running, begun, duration_s, hold, places, finished))
        for talk in talks
    ]
    remaining = begun + duration_s + drain_s - time.perf_counter()
    done, late = await asyncio.wait(tasks, timeout=remaining) if tasks else (set(), set())
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    wall = time.perf_counter() - begun
    for parse in driver.later or ():
        parse()
    for outcome in finished:
        measures.add(outcome)
    for outcome in running.values():
        outcome.failure, outcome.end = "TIMED_OUT", ""
        measures.add(outcome)
    for task in done:
        task.result()  # a fault of the generator itself
    gc.unfreeze()
    return {
        "conversations": len(talks),
        "duration_s": duration_s,
        "warmup_s": warmup_s,
        "wall_s": round(wall, 3),
        "client_cpu_share": round((time.process_time() - cpu) / wall, 3),
        **measures.report(duration_s),
    }


async def _hold(
    driver: Driver,
    talk: Talk,
    measures: Measures,
    running: dict[Talk, Outcome],
    begun: float,
    duration_s: float,
    hold: bool,
    places: asyncio.Semaphore | None,
    finished: list[Outcome],
) -> None:
    if hold:
        await driver.rest(talk)
    for turn in talk.plan.plan():
        if turn.due_s >= duration_s:
            break
        due = begun + turn.due_s
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
            measures.lag(time.perf_counter() - due)
        if places is not None:
            await places.acquire()
            due = max(due, time.perf_counter())  # a sleep may end a little early, and a turn be due before the run
        outcome = running[talk] = Outcome(due)
        if hold and (failure := await driver.wake(talk)):
            measures.fail(failure)
        await driver.turn(talk, turn, outcome)
        del running[talk]
        if places is not None:
            places.release()
        if driver.later is None:
            measures.add(outcome)
        else:
            finished.append(outcome)
        if hold:
            await driver.rest(talk)
    if hold:
        await asyncio.sleep(max(0.0, begun + duration_s - time.perf_counter()))
        if failure := await driver.wake(talk):
            measures.fail(failure)
