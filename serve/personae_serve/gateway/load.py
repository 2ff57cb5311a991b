"""How loaded a gateway is: what its scaling goes by, and when it turns work away."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.metrics import Histogram

from personae_runtime.telemetry.setup import Sampler

WINDOW_S = 10.0
"""Seconds that admission times count for."""
STANDING_S = 1.0
"""Seconds for which calls must have waited too long before they are too many: a burst is not an overload."""
PROBE_PERIOD_S = 0.25
FEWEST_ADMISSIONS = 3
"""Admissions in STANDING_S from which they say something of the process: one may have a reason of its own."""
_MOST = 4096
_log = structlog.get_logger(__name__)


class StreamLoad:
    """Open streams, how long the newest of them waited for their first event, and how long calls wait to be accepted.

    Calls that a busy process has not accepted yet wait where nothing of it
    sees them, so the wait is sampled (`AcceptProbe`). It counts as overload
    when it has stood above `max_wait_s` for STANDING_S, and until a sample is
    below: the rule of CoDel (RFC 8289), which lets bursts pass and ends
    queues that stand. So does the wait of those that were accepted, for the
    ledger above all, if even the shortest of the last STANDING_S was above.

    Args:
        max_wait_s: seconds that calls may wait to be accepted, and then for their first event.
        clock: seconds, monotonic.
    """

    def __init__(self, max_wait_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._admissions: deque[tuple[float, float]] = deque(maxlen=_MOST)
        self._probed: float | None = None
        self._last_wait_s = 0.0
        self._above_since: float | None = None
        self.open_streams = 0

    def admitted(self, seconds: float) -> None:
        """A stream's first event was sent `seconds` after its call was accepted."""
        self._admissions.append((self._clock(), seconds))

    def admission_p95_ms(self) -> float:
        """Milliseconds from a call to its first event: the 95th percentile of those accepted in the last WINDOW_S, and
        the wait to be accepted; the latter alone if no stream was opened."""
        since = self._clock() - WINDOW_S
        while self._admissions and self._admissions[0][0] < since:
            self._admissions.popleft()
        waits = sorted(seconds for _, seconds in self._admissions)
        return ((waits[int(0.95 * (len(waits) - 1))] if waits else 0.0) + self.accept_wait_s()) * 1000

    def probe_sent(self) -> None:
        """A sample begins."""
        self._probed = self._clock()

    def probe_accepted(self) -> float:
        """The sample ends; the seconds it took."""
        begun = self._clock() if self._probed is None else self._probed
        self._last_wait_s, self._probed = self._clock() - begun, None
        if self._last_wait_s <= self._max_wait_s:
            self._above_since = None
        elif self._above_since is None:
            self._above_since = begun + self._max_wait_s
        return self._last_wait_s

    def accept_wait_s(self) -> float:
        """Seconds that a call waits to be accepted: the last sample's, or what the present one has waited if longer."""
        waiting = 0.0 if self._probed is None else self._clock() - self._probed
        return max(self._last_wait_s, waiting)

    def overloaded(self) -> bool:
        """Calls wait too long, and have for STANDING_S."""
        now, since = self._clock(), self._above_since
        if since is None and self._probed is not None:
            since = self._probed + self._max_wait_s
        if since is not None and now - since >= STANDING_S:
            return True
        count = 0
        for at, seconds in reversed(self._admissions):
            if at < now - STANDING_S:
                break
            if seconds <= self._max_wait_s:
                return False
            count += 1
        return count >= FEWEST_ADMISSIONS


class AcceptProbe(Sampler):
    """Samples how long calls wait to be accepted, by a call of its own to the same server.

    Args:
        address: a gRPC target of a local listener (Unix domain socket) of the server.
        histogram: takes the seconds of each sample.
    """

    def __init__(self, address: str, load: StreamLoad, histogram: Histogram) -> None:
        super().__init__("accept-probe")
        self._address = address
        self._load = load
        self._histogram = histogram

    async def sample(self) -> None:
        """See Sampler."""
        credentials = grpc.local_channel_credentials(grpc.LocalConnectionType.UDS)
        async with grpc.aio.secure_channel(self._address, credentials) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            while True:
                self._load.probe_sent()
                try:
                    await stub.Check(health_pb2.HealthCheckRequest())
                except grpc.aio.AioRpcError as error:
                    # Refused for there being too many calls, or cut off: an answer, of a server that accepts.
                    _log.debug("accept_probe_failed", code=error.code().name)
                finally:
                    # Whatever ends a sample: one left open would count as overload for good.
                    waited_s = self._load.probe_accepted()
                self._histogram.record(waited_s)
                await asyncio.sleep(PROBE_PERIOD_S)
