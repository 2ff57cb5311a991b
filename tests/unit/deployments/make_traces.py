"""Write the load traces of the autoscaling tests anew: `python tests/unit/deployments/make_traces.py`.

A trace is a load over time, in units of what one replica takes at its target, with
the events around it. The same numbers come out every time.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

TRACES = Path(__file__).parent / "traces"


def trace(
    name: str, loads: list[float], *, period_s: float, start_s: float, initial: int, lose: dict[int, int] | None = None
) -> dict[str, Any]:
    """A trace.

    Args:
        name: of the file.
        loads: replicas' worth of load at every period.
        period_s: seconds between two decisions.
        start_s: seconds until a new replica serves.
        initial: replicas at the beginning.
        lose: replicas that die at once at a period.
    """
    return {
        "name": name,
        "period_s": period_s,
        "start_s": start_s,
        "initial": initial,
        "loads": [round(load, 3) for load in loads],
        "lose": {str(at): count for at, count in (lose or {}).items()},
    }


def noisy(loads: list[float], share: float, seed: int) -> list[float]:
    """Each load times 1 plus a normal deviate of the given width, cut at three of them."""
    rng = random.Random(seed)
    return [load * (1 + max(-3 * share, min(3 * share, rng.gauss(0, share)))) for load in loads]


def traces() -> list[dict[str, Any]]:
    """All of them."""
    day = [30 + 25 * math.sin(2 * math.pi * (at / 1440 - 0.25)) for at in range(1440)]
    return [
        trace("diurnal", noisy(day, 0.02, 1), period_s=60, start_s=60, initial=5),
        trace("step", noisy([4.0] * 120 + [13.0] * 240 + [4.0] * 360, 0.02, 2), period_s=2, start_s=30, initial=5),
        trace(
            "flash-crowd",
            noisy([6.0] * 60 + [60.0] * 180 + [6.0] * 480, 0.02, 3),
            period_s=2,
            start_s=30,
            initial=7,
        ),
        trace("cold-start", [0.0] * 30 + [0.2] * 60 + [0.0] * 240, period_s=2, start_s=90, initial=0),
        trace("node-loss", noisy([16.0] * 360, 0.02, 4), period_s=2, start_s=40, initial=18, lose={120: 6}),
        trace("noise", noisy([9.4] * 900, 0.03, 5), period_s=2, start_s=30, initial=10),
    ]


if __name__ == "__main__":
    TRACES.mkdir(exist_ok=True)
    for one in traces():
        (TRACES / f"{one['name']}.json").write_text(json.dumps(one) + "\n", encoding="utf-8")
