"""How loaded a gateway is, as its scaling goes by."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 10.0
"""Seconds that admission times count for."""
_MOST = 4096


class StreamLoad:
    """Open streams, and how long the newest of them waited for their first event.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._admissions: deque[tuple[float, float]] = deque(maxlen=_MOST)
        self.open_streams = 0

    def admitted(self, seconds: float) -> None:
        """A stream's first event was sent `seconds` after its call came in."""
        self._admissions.append((self._clock(), seconds))

    def admission_p95_ms(self) -> float:
        """The 95th percentile of the last WINDOW_S, milliseconds; 0 if no stream was opened."""
        since = self._clock() - WINDOW_S
        while self._admissions and self._admissions[0][0] < since:
            self._admissions.popleft()
        waits = sorted(seconds for _, seconds in self._admissions)
        return waits[int(0.95 * (len(waits) - 1))] * 1000 if waits else 0.0
