"""Exports over gRPC that something comes in the way of: an erasure, another export, a reader that does not read."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from personae.v1 import memory_service_pb2 as pb
from personae_runtime.errors import Aborted, ResourceExhausted
from personae_runtime.ledger import export
from personae_runtime.ledger.export import ExportLedger
from personae_runtime.names import Name
from personae_serve.gateway import servicers
from personae_serve.gateway.auth import CALLER, Principal
from tests.e2e.support import WAIT_S, Hosted, failure, new_user
from tests.e2e.test_memories import BIKE
from tests.e2e.test_rights import exported, get, update

pytestmark = pytest.mark.asyncio(loop_scope="session")


def named(user: str) -> Name:
    _, tenant, _, persona, _, person = user.split("/")
    return Name(tenant, persona, person)


def ledger_of(hosted: Hosted) -> ExportLedger:
    stores = hosted.host.stores
    return ExportLedger(stores.database, stores.vault, stores.memories)


async def texts(items: AsyncIterator[dict[str, Any]]) -> list[str]:
    return [item["text"] async for item in items if item["type"] == "memory"]


async def test_an_export_that_an_erasure_overtakes_ends_without_a_record(hosted: Hosted) -> None:
    api = hosted.api
    user = new_user(await api.persona())
    # More than flow control takes before the reader does.
    for number in range(300):
        await api.remember(user, f"{number}: " + "row " * 1_900)
    messages = aiter(api.memories.ExportMemories(pb.ExportMemoriesRequest(parent=user)))
    await anext(messages)
    await api.erase(user)

    async def rest() -> list[pb.ExportMemoriesResponse]:
        return [message async for message in messages]

    ended = await failure(asyncio.wait_for(rest(), WAIT_S))
    assert (ended.code, ended.reason) == (grpc.StatusCode.ABORTED, "EXPORT_OVERTAKEN")
    # And another can follow.
    _, record, _ = await exported(api, user)
    assert dict(record.counts) == {"header": 1}


async def test_what_was_taken_away_ends_an_export_that_runs_and_no_other(hosted: Hosted) -> None:
    api = hosted.api
    persona = await api.persona()
    user, other = new_user(persona), new_user(persona)
    for one in (user, other):
        await api.remember(one, BIKE)
        await api.remember(one, "I row on Sundays.")
    exports = ledger_of(hosted)
    items, others = exports.read(named(user)), exports.read(named(other))
    await anext(items)
    await anext(others)
    # Without a key in memory what the snapshot holds is still read whole.
    hosted.host.stores.vault.drop([hosted.scope(other)])
    exports.let_go([hosted.scope(user), "nobody"])
    with pytest.raises(Aborted) as ended:
        await texts(items)
    assert ended.value.reason == "EXPORT_OVERTAKEN"
    assert await texts(others) == [BIKE, "I row on Sundays."]


async def test_exports_are_one_of_a_user_and_a_few_at_a_time(hosted: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_WAIT_S", 0.05)
    persona = await hosted.api.persona()
    exports = ledger_of(hosted)
    running = [exports.read(named(new_user(persona))) for _ in range(4)]
    user = new_user(persona)
    one = exports.read(named(user))
    await anext(one)
    with pytest.raises(ResourceExhausted) as second:
        await anext(exports.read(named(user)))
    assert (second.value.reason, second.value.retry_after_s) == ("EXPORT_RUNNING", 5.0)
    for each in running[:3]:
        await anext(each)
    with pytest.raises(ResourceExhausted) as full:
        await anext(running[3])
    assert (full.value.reason, full.value.retry_after_s) == ("TOO_MANY_EXPORTS", 5.0)
    await one.aclose()
    assert await texts(exports.read(named(user))) == []
    for each in running:
        await each.aclose()
    assert await texts(exports.read(named(user))) == []


async def test_a_reader_that_does_not_read_is_cut_off(hosted: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servicers, "_EXPORT_READER_S", 0.1)
    user = new_user(await hosted.api.persona())
    exports = ledger_of(hosted)
    servicer: Any = object.__new__(servicers.MemoryServicer)
    servicer._exports, servicer._vault = exports, hosted.host.stores.vault

    async def never(message: object) -> None:
        await asyncio.Event().wait()

    CALLER.set(Principal("test", "demo", None, ("*",)))
    with pytest.raises(ResourceExhausted) as cut:
        await servicer.ExportMemories(pb.ExportMemoriesRequest(parent=user), SimpleNamespace(write=never))
    assert cut.value.reason == "SLOW_CONSUMER"
    # Its place is free.
    assert await texts(exports.read(named(user))) == []


async def test_what_has_expired_and_is_not_swept_is_held_and_so_exported(hosted: Hosted) -> None:
    api = hosted.api
    user = new_user(await api.persona())
    made = await api.remember(user, BIKE)
    await hosted.host.stores.database.execute(
        "UPDATE memories SET expires_at = now() - interval '1 second' WHERE memory_id = $1", hosted.memory_id(made)
    )
    assert (await failure(get(api, made.name))).code is grpc.StatusCode.NOT_FOUND
    items, _, _ = await exported(api, user)
    assert [item["text"] for item in items if item["type"] == "memory"] == [BIKE]


async def test_an_export_has_a_rectified_turn_without_its_words(hosted: Hosted) -> None:
    api = hosted.api
    persona = await api.persona()
    user = new_user(persona)
    session = await api.session(persona, user)
    await api.say(session, "I live in Porto.", "t1")
    [said] = [memory for memory in await api.memories_of(user) if memory.text == "I live in Porto."]
    await update(api, said.name, ["text"], text="I live in Lisbon.", request_id=str(uuid.uuid4()))
    items, _, lines = await exported(api, user)
    assert b"Porto" not in lines
    [turn] = [item for item in items if item["type"] == "turn"]
    assert (turn["user_text"], turn["reply_text"]) == (None, None)
    assert turn["erase_time"]
