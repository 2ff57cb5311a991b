"""The protocols in the ledger: reminders with their turn, tiers of sessions at once, what an orphan was told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime

import pytest

from personae_runtime.ledger.sessions import Admission, SessionRow
from personae_runtime.policy.decision import Action, Decision, Stage
from personae_runtime.policy.protocols import Clocks, Risk, Tier, Told
from personae_runtime.sessions.events import Notice, TurnInterrupted, TurnStarted
from tests.unit.ledger.conftest import NewOwner, Owner

pytestmark = pytest.mark.asyncio(loop_scope="session")

DECISION = Decision(Action.BLOCK, Stage.INPUT, "test")


async def admit(
    owner: Owner, session: SessionRow, told: Sequence[Told] = (), seen: list[Clocks] | None = None
) -> Admission:
    def attend(clocks: Clocks, now: datetime, first: bool) -> tuple[Clocks, Sequence[Told]]:
        if seen is not None:
            seen.append(clocks)
        return Clocks(now, {"AI_REMINDER": clocks.used_s.get("AI_REMINDER", 0.0) + 1}), told

    started = TurnStarted(session.disclosure, session.revision)
    return await owner.sessions.admit(session, await owner.cipher(session), "t1", "Hello there.", started, attend)


async def test_reminders_are_recorded_with_the_turn_and_alone_make_no_history_of_an_orphan(new_owner: NewOwner) -> None:
    old = await new_owner()
    session = await old.session()
    admission = await admit(old, session, (Told("AI_REMINDER", "An AI."), Told("BREAK_REMINDER", "Rest.")))
    assert [event.event_id for event in admission.notices] == [2, 3]
    new = await new_owner()
    assert await new.sessions.recover() == [session.session_pk]
    events = await new.sessions.events(session, after=0, limit=10)
    assert [event.body for event in events[1:]] == [
        Notice("AI_REMINDER", "An AI."),
        Notice("BREAK_REMINDER", "Rest."),
        TurnInterrupted(0, "OWNER_LOST"),
    ]
    assert not (await new.sessions.turn(session, "t1")).in_history


async def test_a_persons_clocks_go_on_from_the_persona_they_used_last(new_owner: NewOwner) -> None:
    owner = await new_owner()
    seen: list[Clocks] = []
    # Another persona with each session, all of them Ann's.
    for _ in range(3):
        await admit(owner, await owner.session(), seen=seen)
    assert [clocks.used_s.get("AI_REMINDER") for clocks in seen] == [None, 1.0, 2.0]
    assert seen[0].seen_at is None
    assert seen[1].seen_at is not None


async def test_of_messages_at_once_none_takes_a_tier_away_that_another_raised(new_owner: NewOwner) -> None:
    owner = await new_owner()
    session = await owner.session()
    await admit(owner, session)

    def grave(risk: Risk, now: datetime) -> tuple[Decision, Risk]:
        return DECISION, Risk(Tier.PLAN, 0, now)

    def quiet(risk: Risk, now: datetime) -> tuple[Decision, Risk]:
        return DECISION, Risk(risk.tier, risk.quiet + 1, risk.at) if risk.tier else Risk()

    await asyncio.gather(*(owner.sessions.sustain(session, ask) for ask in (quiet, grave, quiet, quiet)))
    stood: list[Risk] = []

    def look(risk: Risk, now: datetime) -> tuple[Decision, Risk]:
        stood.append(risk)
        return DECISION, risk

    await owner.sessions.sustain(session, look)
    assert stood[0].tier is Tier.PLAN
