"""Whatever happens, places are neither lost nor given twice."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from personae_runtime.engines.admission import Admission, Ticket
from personae_runtime.errors import EngineOverloaded, InvalidArgument


class Places(RuleBasedStateMachine):
    """Random arrivals, departures and aborts against a plain model of the queue."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(2, 3)
        self.tickets: list[Ticket] = []
        self.number = 0

    @rule(priority=st.integers(-2, 2))
    def arrive(self, priority: int) -> None:
        self.number += 1
        if len(self.tickets) < 5:
            self.tickets.append(self.admission.enter(str(self.number), priority))
        else:
            with pytest.raises(EngineOverloaded) as caught:
                self.admission.enter(str(self.number), priority)
            assert caught.value.retry_after_s

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.tickets))
        waiting = [other for other in self.tickets if not other.running and other is not ticket]
        was_running = ticket.running
        self.tickets.remove(ticket)
        self.admission.leave(ticket)
        self.admission.leave(ticket)
        if was_running and waiting:
            assert min(waiting).running

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.tickets))
        assert self.admission.abort(ticket.request_id) in (ticket, None)
        assert ticket.aborted

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def same_id(self, data: st.DataObject) -> None:
        with pytest.raises(InvalidArgument):
            self.admission.enter(data.draw(st.sampled_from(self.tickets)).request_id, 0)

    @invariant()
    def counts_hold(self) -> None:
        running = sum(ticket.running for ticket in self.tickets)
        assert self.admission.running == running <= 2
        assert self.admission.waiting == len(self.tickets) - running <= 3
        assert running == min(2, len(self.tickets))


TestPlaces = Places.TestCase


async def test_a_forgotten_id_is_free_while_its_place_is_not() -> None:
    admission = Admission(1, 1)
    ticket = admission.enter("a", 0)
    admission.forget(ticket)
    again = admission.enter("a", 0)
    assert (admission.running, again.running) == (1, False)
    admission.leave(ticket)
    assert again.running


async def test_a_waiter_wakes_when_its_turn_comes() -> None:
    admission = Admission(1, 1)
    first, second = admission.enter("a", 0), admission.enter("b", 0)
    task = asyncio.create_task(admission.turn(second))
    await asyncio.sleep(0)
    assert not task.done()
    admission.leave(first)
    await task
    assert second.running
