"""How the threads of one of our processes share the interpreter."""

from __future__ import annotations

import sys
from typing import Final

SWITCH_INTERVAL_S: Final = 0.0002


def hand_over_quickly() -> None:
    """Have a busy event loop let gRPC's poller in after 0.2 ms in place of Python's 5.

    The poller takes the interpreter's lock for each event that it hands to the
    loop, one after the other. Where the loop is busy every one of them waits for
    the switch interval, so that 200 a second get through and calls queue up
    before they are seen, with processor time to spare. With 1,000 open
    conversations on two cores it is the difference between 3.3 s and 0.24 s of
    admission p99.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
