"""Counts of what happened lately, by key, in this process and in others that report theirs."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Final

BUCKET_S: Final = 2.0
"""Times are kept to so many seconds: what is counted over a window can be missed for as long at its far end."""
_KEYS: Final = 100_000

Report = tuple[str, int, int]
"""A key, a bucket (seconds since the epoch over BUCKET_S), and how often it happened in it."""


class Counters:
    """Sliding windows over keys. The least recently used keys go first when there are very many.

    Args:
        keep_s: the longest window that is asked for.
    """

    def __init__(self, keep_s: float) -> None:
        self._keep = int(keep_s // BUCKET_S) + 1
        self._counts: OrderedDict[str, deque[list[int]]] = OrderedDict()
        self._unreported: dict[tuple[str, int], int] = {}

    def add(self, key: str, at: float, number: int = 1) -> None:
        """Count one, or take one back that was counted, at a Unix time in seconds."""
        bucket = int(at // BUCKET_S)
        self._put(key, bucket, number)
        self._unreported[key, bucket] = self._unreported.get((key, bucket), 0) + number

    def total(self, key: str, now: float, window_s: float) -> int:
        """How many there were in the last `window_s`."""
        first = self._first(now, window_s)
        return sum(count for bucket, count in self._counts.get(key, ()) if bucket > first)

    def wait_s(self, key: str, now: float, window_s: float, limit: int) -> float:
        """Seconds until fewer than `limit` are left in the window; 0 if there are fewer now."""
        held = [one for one in self._counts.get(key, ()) if one[0] > self._first(now, window_s)]
        surplus = sum(count for _, count in held) - limit + 1
        wait = 0.0
        for bucket, count in held:
            if surplus <= 0:
                break
            surplus -= count
            wait = bucket * BUCKET_S + window_s - now
        return max(0.0, wait)

    def forget(self, key: str) -> None:
        """Keep nothing of a key."""
        self._counts.pop(key, None)

    def take_unreported(self) -> list[Report]:
        """What was counted here since the last call."""
        taken = [(key, bucket, count) for (key, bucket), count in self._unreported.items() if count]
        self._unreported.clear()
        return taken

    def hear(self, reports: Iterable[Report]) -> None:
        """Count what another process did."""
        for key, bucket, count in reports:
            self._put(key, bucket, count)

    @staticmethod
    def _first(now: float, window_s: float) -> int:
        return int((now - window_s) // BUCKET_S)

    def _put(self, key: str, bucket: int, count: int) -> None:
        held = self._counts.setdefault(key, deque())
        self._counts.move_to_end(key)
        # In order, as what is heard may be older than what happened here.
        at = len(held)
        while at and held[at - 1][0] > bucket:
            at -= 1
        if at and held[at - 1][0] == bucket:
            held[at - 1][1] += count
        else:
            held.insert(at, [bucket, count])
        while held[0][0] < held[-1][0] - self._keep:
            held.popleft()
        if len(self._counts) > _KEYS:
            self._counts.popitem(last=False)
