"""One thread for a blocking library, with a fast lane.

Native code that must be called serially (a vector shard, a model session) gets a
thread of its own. What a turn waits for goes into the urgent lane and overtakes
queued background work; it never interrupts a call that runs, so background calls
should be small.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from enum import IntEnum
from typing import Any, Final, TypeVar

T = TypeVar("T")


class Lane(IntEnum):
    """Order of service; within a lane first come, first served."""

    URGENT = 0
    NORMAL = 1
    _CLOSE = 2


_Job = tuple[int, int, "Callable[[], Any] | None", "Future[Any]"]


class LaneWorker:
    """Runs callables one at a time in one daemon thread.

    Args:
        name: of the thread.
        nice: added to the thread's niceness (Linux only), so that background
            work yields the processor to a turn.
    """

    def __init__(self, name: str, *, nice: int = 0) -> None:
        self._jobs: queue.PriorityQueue[_Job] = queue.PriorityQueue()
        self._order = itertools.count()
        self._nice: Final = nice
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    async def run(self, call: Callable[[], T], lane: Lane = Lane.NORMAL) -> T:
        """Run `call` in the thread and return its result, or raise what it raised.

        Cancelling the awaiting task drops a call that has not begun; one that has
        begun runs to its end unseen.

        Raises:
            RuntimeError: the worker is closed.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the worker is closed")
            self._jobs.put((lane, next(self._order), call, future))
        return await asyncio.wrap_future(future)

    async def close(self) -> None:
        """Finish what is queued and end the thread. Safe to call twice."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._jobs.put((Lane._CLOSE, next(self._order), None, Future()))
        await asyncio.to_thread(self._thread.join)

    def _serve(self) -> None:
        if self._nice and sys.platform == "linux":
            # On Linux a thread id names the thread alone, not its process.
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
        while True:
            _, _, call, future = self._jobs.get()
            if call is None:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            # Nothing of the last job may live on while the queue is empty.
            del call, future
