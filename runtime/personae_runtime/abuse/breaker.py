"""The velocity circuit breaker: closed, open for a cool-down, then half open until probes show that all is well.

The states are those of M. Nygard, *Release It!* (2007), the condition to open is
about blocks among turns rather than failures among calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

_LONGEST: Final = 8
"""A cool-down grows to so many times its length while probes fail."""


class State(StrEnum):
    """What a breaker lets through: everything, nothing, or a few probes."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class BreakerRule:
    """When a breaker opens and how it closes again.

    Attributes:
        blocks: at least so many blocks in the window; 0 never opens.
        share: and at least so large a part of the turns in it.
        window_s: of the counts.
        cooldown_s: that it stays open; doubled each time that a probe fails, up to eight times as long.
        probes: turns that must end without a block, of those let through half open.
    """

    blocks: int
    share: float
    window_s: float
    cooldown_s: float
    probes: int


class Breaker:
    """One breaker. Times are seconds on any clock that does not go back."""

    __slots__ = ("_again", "_passed", "_probing", "_rule", "_until", "generation", "since", "state")

    def __init__(self, rule: BreakerRule) -> None:
        self._rule = rule
        self.state = State.CLOSED
        self.since = float("-inf")
        """Blocks before this have been answered for."""
        self.generation = 0
        """Rises with every change of state: what a probe of an earlier one shows counts no more."""
        self._until = 0.0
        self._again = 1
        self._probing = self._passed = 0

    def let(self, now: float, turns: int, blocks: int) -> float:
        """Seconds to wait before another try; 0 lets the turn through, half open as a probe.

        Args:
            turns, blocks: in the window, since `since`.
        """
        rule = self._rule
        if self.state is State.CLOSED:
            if not rule.blocks or blocks < rule.blocks or blocks < rule.share * turns:
                return 0.0
            self._open(now)
        elif now >= self._until:
            # Also of half open: probes that never ended are given up for new ones.
            self._change(State.HALF_OPEN)
            self._until = now + rule.cooldown_s
        if self.state is State.HALF_OPEN and self._probing < rule.probes:
            self._probing += 1
            return 0.0
        return max(self._until - now, 0.001)

    def take_back(self, generation: int) -> None:
        """A turn that was let through did not run."""
        if generation == self.generation and self.state is State.HALF_OPEN:
            self._probing -= 1

    def ended(self, now: float, generation: int, *, blocked: bool) -> None:
        """A turn that was let through at a generation has ended."""
        if generation != self.generation or self.state is not State.HALF_OPEN:
            return
        if blocked:
            self._again = min(self._again * 2, _LONGEST)
            self._open(now)
            return
        self._passed += 1
        if self._passed >= self._rule.probes:
            self._change(State.CLOSED)
            self._again = 1
            self.since = now

    def _open(self, now: float) -> None:
        self._change(State.OPEN)
        self._until = now + self._rule.cooldown_s * self._again

    def _change(self, state: State) -> None:
        self.state = state
        self.generation += 1
        self._probing = self._passed = 0
