"""A view that ends by itself."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from personae_runtime.errors import Unauthenticated
from personae_runtime.sessions.events import Event, TextDelta
from personae_runtime.sessions.views import Expiry, View

EXPIRED = Unauthenticated("the token has expired", reason="TOKEN_EXPIRED")


def event(number: int) -> Event:
    return Event(number, "t", datetime.now(UTC), TextDelta("word "))


def expiry() -> Expiry:
    return Expiry(asyncio.get_running_loop().time() - 1, EXPIRED)


async def timers_have_run() -> None:
    """Return when everything has that was due before."""
    done = asyncio.Event()
    asyncio.get_running_loop().call_later(0, done.set)
    await done.wait()


async def test_what_was_due_before_the_expiry_is_seen_and_nothing_after_it() -> None:
    view = View(8, expiry())
    assert view.offer(event(1))
    assert view.offer(event(2))
    await timers_have_run()
    view.offer(event(3))
    seen = [await view.next(), await view.next()]
    assert [one.event_id for one in seen if one is not None] == [1, 2]
    with pytest.raises(Unauthenticated) as caught:
        await view.next()
    assert caught.value is EXPIRED


async def test_a_view_that_waits_is_woken_by_its_expiry() -> None:
    view = View(8, expiry())
    with pytest.raises(Unauthenticated):
        await view.next()


async def test_a_view_that_is_closed_leaves_no_timer() -> None:
    view = View(8, expiry())
    view.close()
    await timers_have_run()
    view.end()
    assert await view.next() is None


async def test_a_view_without_an_expiry_ends_when_it_is_told() -> None:
    view = View(8)
    view.close()
    view.offer(event(1))
    view.end()
    assert await view.next() is not None
    assert await view.next() is None
