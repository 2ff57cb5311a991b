"""Consent, standing, and the control epoch that running turns watch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from personae_runtime.errors import FailedPrecondition, LedgerUnavailable
from personae_runtime.ledger import control
from personae_runtime.ledger.control import STANDING, ConsentLedger, ControlWatcher, Watch, require_speech, standing
from personae_runtime.ledger.personas import PersonaLedger, once
from personae_runtime.names import Name
from tests.unit.ledger.conftest import ONCE, NewOwner, Owner

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(loop_scope="session")
async def owner(new_owner: NewOwner) -> Owner:
    return await new_owner()


@pytest_asyncio.fixture(loop_scope="session")
async def watcher(owner: Owner) -> AsyncIterator[ControlWatcher]:
    made = ControlWatcher(owner.database)
    await made.start()
    yield made
    await made.close()


async def read(owner: Owner, name: Name, user: str = "ann") -> tuple[Any, int]:
    row = await owner.database.fetchrow(STANDING, name.tenant, name.persona, 1, user)
    return standing(row), 0 if row is None else row["epoch"]


async def consent(owner: Owner, name: Name, purpose: str, state: str) -> None:
    await ConsentLedger(owner.database).record(
        name, purpose, state, "a test", lambda connection, act: once(connection, name.tenant, ONCE, act)
    )


def watch_of(name: Name, found: Any, withdrawn: asyncio.Event) -> Watch:
    return Watch(name.tenant, name.persona, 1, "ann", found, withdrawn.set)


async def test_standing_says_what_is_in_force(owner: Owner) -> None:
    name, clone = await owner.persona(), await owner.persona("clone")
    person = Name(name.tenant, name.persona, "ann")
    assert (await read(owner, name))[0] == control.Standing(True, True)
    await consent(owner, person, "MEMORY", "WITHDRAWN")
    assert (await read(owner, name))[0] == control.Standing(True, False)
    assert (await read(owner, name, "bob"))[0] == control.Standing(True, True)
    assert not await ConsentLedger(owner.database).may_remember(person)
    await consent(owner, person, "MEMORY", "GRANTED")
    assert await ConsentLedger(owner.database).may_remember(person)
    assert (await read(owner, clone))[0].reason == "LIKENESS_CONSENT_MISSING"
    await consent(owner, clone, "LIKENESS", "GRANTED")
    assert (await read(owner, clone))[0].may_speak
    personas = PersonaLedger(owner.database, owner.vault)
    await personas.withdraw(Name(name.tenant, name.persona, revision=1), "a mistake", ONCE)
    found, _ = await read(owner, name)
    assert found.reason == "REVISION_WITHDRAWN"
    with pytest.raises(FailedPrecondition) as refused:
        require_speech(found)
    assert refused.value.reason == "REVISION_WITHDRAWN"
    await personas.delete(clone, "", ONCE)
    assert (await read(owner, clone))[0].reason == "PERSONA_DELETED"


async def test_a_withdrawal_reaches_the_turns_it_concerns_and_no_other(owner: Owner, watcher: ControlWatcher) -> None:
    name, other = await owner.persona(), await owner.persona()
    hit, missed = asyncio.Event(), asyncio.Event()
    watches = []
    for which, event in ((name, hit), (other, missed)):
        found, epoch = await read(owner, which)
        watches.append(watch_of(which, found, event))
        watcher.add(watches[-1], epoch)
    await PersonaLedger(owner.database, owner.vault).withdraw(Name(name.tenant, name.persona, revision=1), "x", ONCE)
    async with asyncio.timeout(10):
        await hit.wait()
    assert not watches[0].standing.may_speak
    assert watches[1].standing.may_speak
    assert not missed.is_set()


async def test_a_memory_withdrawal_changes_the_standing_without_stopping(owner: Owner, watcher: ControlWatcher) -> None:
    name = await owner.persona()
    stopped = asyncio.Event()
    found, epoch = await read(owner, name)
    watch = watch_of(name, found, stopped)
    watcher.add(watch, epoch)
    person = Name(name.tenant, name.persona, "ann")
    await consent(owner, person, "MEMORY", "WITHDRAWN")
    # Once the epoch is fresh after the change was acknowledged, the change has been seen.
    watcher._fresh_at = 0.0
    await watcher.fresh(10)
    assert not watch.standing.may_remember
    assert not stopped.is_set()


async def test_a_turn_that_was_read_before_a_withdrawal_and_added_after_is_stopped(
    owner: Owner, watcher: ControlWatcher
) -> None:
    name = await owner.persona()
    found, epoch = await read(owner, name)
    assert found.may_speak
    await PersonaLedger(owner.database, owner.vault).withdraw(Name(name.tenant, name.persona, revision=1), "x", ONCE)
    watcher._fresh_at = 0.0
    await watcher.fresh(10)
    stopped = asyncio.Event()
    watcher.add(watch_of(name, found, stopped), epoch)
    assert not watcher.is_fresh
    await watcher.fresh(10)
    assert stopped.is_set()


async def test_a_turn_that_is_added_while_others_are_read_again_is_not_missed(
    owner: Owner, watcher: ControlWatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read before the withdrawal, added in the middle of the round that the withdrawal causes."""
    late, early = await owner.persona(), await owner.persona()
    before, epoch = await read(owner, late)
    stopped, added = asyncio.Event(), asyncio.Event()
    refresh = watcher._refresh

    async def add_in_between(connection: Any, watches: Any) -> None:
        await refresh(connection, watches)
        if not added.is_set():
            added.set()
            watcher.add(watch_of(late, before, stopped), epoch)

    monkeypatch.setattr(watcher, "_refresh", add_in_between)
    found, at = await read(owner, early)
    watcher.add(watch_of(early, found, asyncio.Event()), at)
    await PersonaLedger(owner.database, owner.vault).withdraw(Name(late.tenant, late.persona, revision=1), "x", ONCE)
    async with asyncio.timeout(10):
        await added.wait()
        await stopped.wait()


async def test_without_the_ledger_nothing_is_fresh(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = ControlWatcher(owner.database)
    await watcher.start()
    await watcher.close()
    await watcher.fresh(0)
    real = time.monotonic
    monkeypatch.setattr(control.time, "monotonic", lambda: real() + control.STALE_AFTER_S + 1)
    assert not watcher.is_fresh
    with pytest.raises(LedgerUnavailable):
        await watcher.fresh(0.01)


async def test_the_watcher_outlives_its_connection(owner: Owner, watcher: ControlWatcher) -> None:
    name = await owner.persona()
    stopped = asyncio.Event()
    found, epoch = await read(owner, name)
    watcher.add(watch_of(name, found, stopped), epoch)
    await owner.database.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        " AND datname = current_database()"
    )
    await PersonaLedger(owner.database, owner.vault).withdraw(Name(name.tenant, name.persona, revision=1), "x", ONCE)
    async with asyncio.timeout(10):
        await stopped.wait()
