"""The one-thread worker and its lanes."""

from __future__ import annotations

import asyncio
import threading

import pytest

from personae_runtime.memory.worker import Lane, LaneWorker


async def test_calls_run_one_at_a_time_in_one_thread() -> None:
    worker = LaneWorker("w")
    threads: list[int] = []
    running = threading.Lock()

    def call(value: int) -> int:
        assert running.acquire(blocking=False)
        threads.append(threading.get_ident())
        running.release()
        return value

    results = await asyncio.gather(*(worker.run(lambda value=value: call(value)) for value in range(50)))
    await worker.close()
    assert results == list(range(50))
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


async def test_urgent_calls_overtake_queued_ones() -> None:
    worker = LaneWorker("w")
    gate, order = threading.Event(), list[str]()
    blocker = asyncio.create_task(worker.run(gate.wait))
    rest = [
        asyncio.create_task(worker.run(lambda: order.append("normal"))),
        asyncio.create_task(worker.run(lambda: order.append("urgent"), Lane.URGENT)),
    ]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(blocker, *rest)
    await worker.close()
    assert order == ["urgent", "normal"]


async def test_an_error_reaches_its_caller_and_the_worker_goes_on() -> None:
    worker = LaneWorker("w")

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await worker.run(fail)
    assert await worker.run(lambda: 1) == 1
    await worker.close()


async def test_a_cancelled_call_that_has_not_begun_never_runs() -> None:
    worker = LaneWorker("w")
    gate, ran = threading.Event(), list[int]()
    blocker = asyncio.create_task(worker.run(gate.wait))
    dropped = asyncio.create_task(worker.run(lambda: ran.append(1)))
    await asyncio.sleep(0)
    dropped.cancel()
    await asyncio.wait([dropped])
    gate.set()
    await blocker
    await worker.close()
    assert ran == []


async def test_closing_finishes_what_is_queued_and_refuses_more() -> None:
    worker = LaneWorker("w")
    queued = [asyncio.create_task(worker.run(lambda: 1)) for _ in range(5)]
    await asyncio.sleep(0)
    await worker.close()
    await worker.close()
    assert await asyncio.gather(*queued) == [1] * 5
    with pytest.raises(RuntimeError, match="closed"):
        await worker.run(lambda: 1)
