"""The breaker, against what its states promise, over any course of turns and time."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from personae_runtime.abuse.breaker import Breaker, BreakerRule, State

RULE = BreakerRule(blocks=4, share=0.5, window_s=60, cooldown_s=10, probes=2)


class BreakerMachine(RuleBasedStateMachine):
    """Turns ask, run and end; the model keeps no state but when it opened and what ran since."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(RULE)
        self.now = 0.0
        self.running: list[tuple[int, State]] = []
        self.opened_at: float | None = None
        self.cooldown = RULE.cooldown_s
        self.passed = 0

    @rule(turns=st.integers(0, 20), blocks=st.integers(0, 20))
    def ask(self, turns: int, blocks: int) -> None:
        before, generation = self.breaker.state, self.breaker.generation
        wait = self.breaker.let(self.now, turns, blocks)
        state = self.breaker.state
        if before is State.CLOSED:
            opens = blocks >= RULE.blocks and blocks >= RULE.share * turns
            assert (wait > 0) is opens
            assert state is (State.OPEN if opens else State.CLOSED)
            if opens:
                self.opened_at = self.now
        elif before is State.OPEN:
            assert self.opened_at is not None
            cooled = self.now >= self.opened_at + self.cooldown
            assert (wait == 0) is cooled
            assert state is (State.HALF_OPEN if cooled else State.OPEN)
            if cooled:
                self.passed = 0
            else:
                # Who waits as told is heard.
                assert abs(wait - (self.opened_at + self.cooldown - self.now)) < 0.01
        else:
            assert state is State.HALF_OPEN
            if generation != self.breaker.generation:
                self.passed = 0
            assert len(self.probes()) <= RULE.probes
        if wait == 0:
            self.running.append((self.breaker.generation, state))

    def probes(self) -> list[tuple[int, State]]:
        return [one for one in self.running if one == (self.breaker.generation, State.HALF_OPEN)]

    @precondition(lambda self: self.running)
    @rule(data=st.data(), blocked=st.booleans())
    def end(self, data: Any, blocked: bool) -> None:
        turn = data.draw(st.sampled_from(self.running))
        self.running.remove(turn)
        before, generation = self.breaker.state, self.breaker.generation
        self.breaker.ended(self.now, turn[0], blocked=blocked)
        if turn != (generation, State.HALF_OPEN):
            # What began before, or was a probe that was given up, shows nothing.
            assert self.breaker.state is before
        elif blocked:
            assert self.breaker.state is State.OPEN
            self.opened_at = self.now
            self.cooldown = min(self.cooldown * 2, 8 * RULE.cooldown_s)
        else:
            self.passed = self.passed + 1 if self.breaker.state is State.HALF_OPEN else 0
            assert self.breaker.state in (State.HALF_OPEN, State.CLOSED)
            if self.breaker.state is State.CLOSED:
                self.cooldown = RULE.cooldown_s
                assert self.breaker.since == self.now

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def drop(self, data: Any) -> None:
        turn = data.draw(st.sampled_from(self.running))
        self.running.remove(turn)
        self.breaker.take_back(turn[0])

    @rule(seconds=st.floats(0.1, 40))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def lets_no_more_probes_run_than_it_has(self) -> None:
        if self.breaker.state is State.HALF_OPEN:
            assert len(self.probes()) + self.passed <= RULE.probes


TestBreaker = BreakerMachine.TestCase
TestBreaker.settings = settings(max_examples=30, stateful_step_count=25)


def test_probes_that_end_well_close_it_and_a_blocked_one_doubles_the_cooldown() -> None:
    breaker = Breaker(RULE)
    assert breaker.let(0, 8, 3) == 0
    assert breaker.let(0, 8, 4) == 10
    assert breaker.let(9, 0, 0) == 1
    assert breaker.let(10, 0, 0) == 0
    breaker.ended(11, breaker.generation, blocked=True)
    assert breaker.let(12, 0, 0) == 19
    for now in (31, 32):
        assert breaker.let(now, 0, 0) == 0
    assert breaker.let(32, 0, 0) > 0, "a third probe"
    for now in (33, 34):
        breaker.ended(now, breaker.generation, blocked=False)
    assert breaker.state is State.CLOSED
    assert breaker.since == 34


def test_probes_that_never_end_are_given_up_for_others() -> None:
    breaker = Breaker(RULE)
    breaker.let(0, 4, 4)
    old = breaker.generation + 1
    assert [breaker.let(10, 0, 0), breaker.let(10, 0, 0)] == [0, 0]
    assert breaker.let(19, 0, 0) == 1
    assert breaker.let(20, 0, 0) == 0
    breaker.ended(21, old, blocked=True)
    assert breaker.state is State.HALF_OPEN


def test_a_rule_without_blocks_never_opens() -> None:
    assert Breaker(BreakerRule(0, 0.5, 60, 10, 1)).let(0, 1, 1_000) == 0
