"""The dict store: what a ledger would say, without looking at all that it holds."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.evals.store import DictMemoryStore
from personae_runtime.memory.store import ChangeCursor, MemoryRecord, MemorySource

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def record(number: int, scope: str, thread: str, ordinal: int, *, expired: bool = False) -> MemoryRecord:
    return MemoryRecord(
        memory_id=UUID(int=number),
        scope=scope,
        text="x",
        speaker="Ann",
        occurred_at=LONG_AGO,
        thread=thread,
        ordinal=ordinal,
        source=MemorySource.API,
        created_at=LONG_AGO,
        expires_at=LONG_AGO + timedelta(days=1) if expired else None,
    )


written = st.builds(
    record,
    st.integers(0, 9),
    st.sampled_from("ab"),
    st.sampled_from("tu"),
    st.integers(0, 4),
    expired=st.booleans(),
)


@given(st.lists(st.lists(written, min_size=1, max_size=4) | st.integers(0, 9), max_size=12), st.integers(0, 12))
def test_after_any_writes_feed_and_threads_are_those_of_a_ledger(
    steps: list[list[MemoryRecord] | int], xid: int
) -> None:
    store = DictMemoryStore()
    latest: dict[UUID, MemoryRecord] = {}
    forgotten: set[UUID] = set()
    order: dict[UUID, ChangeCursor] = {}
    for transaction, step in enumerate(steps, start=1):
        if isinstance(step, list):
            store.add(*step)
            for seq, item in enumerate(step, start=1):
                latest[item.memory_id] = item
                order[item.memory_id] = ChangeCursor(transaction, seq)
        else:
            memory_id = UUID(int=step)
            if memory_id not in latest:
                store.add(record(step, "a", "t", 0))
                latest[memory_id] = record(step, "a", "t", 0)
                order[memory_id] = ChangeCursor(transaction, 1)
                continue
            store.forget(memory_id)
            forgotten.add(memory_id)
            order[memory_id] = ChangeCursor(transaction, 1)

    live = sorted(
        (item for key, item in latest.items() if key not in forgotten and item.expires_at is None),
        key=lambda item: (item.scope, item.thread, item.ordinal, item.memory_id),
    )
    assert store.live() == live
    everything = [UUID(int=number) for number in range(10)]
    assert asyncio.run(store.read(everything)) == {item.memory_id: item for item in live}

    after = ChangeCursor(xid, 1)
    later = sorted((place, memory_id) for memory_id, place in order.items() if place > after)
    changes = asyncio.run(store.changes(after, 3))
    assert [(change.cursor, change.memory_id) for change in changes] == later[:3]
    assert all(change.deleted == (change.memory_id in forgotten) for change in changes)
    asyncio.run(store.save_cursor("i", after))
    assert asyncio.run(store.pending_total("i")) == len(later)
    assert asyncio.run(store.pending("a", "i")) == sum(latest[memory_id].scope == "a" for _, memory_id in later)
    assert asyncio.run(store.total_changes()) == len(order)

    found = asyncio.run(store.neighbours(everything))
    assert found.keys() == latest.keys()
    for memory_id, around in found.items():
        own = latest[memory_id]
        place = (own.ordinal, memory_id)
        thread = [item for item in live if (item.scope, item.thread) == (own.scope, own.thread)]
        before = [item for item in thread if (item.ordinal, item.memory_id) < place]
        behind = [item for item in thread if (item.ordinal, item.memory_id) > place]
        assert around == (before[-1] if before else None, behind[0] if behind else None)


def test_neighbours_and_changes_do_not_look_at_all_that_is_held() -> None:
    looked_at = 0

    class Counted(int):
        def __lt__(self, other: int) -> bool:
            nonlocal looked_at
            looked_at += 1
            return int(self) < int(other)

        __hash__ = int.__hash__

    store = DictMemoryStore()
    store.add(*(record(number, "a", f"t{number % 50}", Counted(number)) for number in range(2_000)))
    looked_at = 0
    asyncio.run(store.neighbours([UUID(int=1_000)]))
    assert 0 < looked_at < 50
