"""Facts, time and the profile card over gRPC, with an engine that says what the test writes."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import grpc
import pytest
from google.protobuf import timestamp_pb2

from personae.v1 import memory_service_pb2 as pb
from personae.v1 import policy_service_pb2
from personae_runtime.memory.extraction import CURSOR, PRIORITY, SCHEMA, Extractor
from personae_runtime.memory.lexical import spoken_date
from personae_runtime.memory.profile import MAX_TOKENS
from personae_runtime.memory.store import ChangeCursor
from personae_serve.stores import keep_swept
from tests.e2e.conftest import StartHost
from tests.e2e.support import Api, Hosted, failure, new_user

pytestmark = pytest.mark.asyncio(loop_scope="session")

NOW = datetime.now(UTC)
TURNS = 2_000


def ago(days: float) -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(NOW - timedelta(days=days))
    return stamp


async def said(api: Api, user: str, text: str, days: float = 0, **fields: Any) -> pb.Memory:
    """A memory in the person's own words."""
    memory = pb.Memory(text=text, speaker=user.rsplit("/", 1)[1], occur_time=ago(days), **fields)
    made: pb.Memory = await api.memories.CreateMemory(pb.CreateMemoryRequest(parent=user, memory=memory))
    return made


async def facts_of(api: Api, user: str) -> dict[str, pb.Memory]:
    """Facts by their sentence; none twice."""
    listed = await api.memories.ListMemories(
        pb.ListMemoriesRequest(parent=user, page_size=200, kind=pb.MEMORY_KIND_FACT)
    )
    texts = [memory.text for memory in listed.memories]
    assert len(set(texts)) == len(texts)
    return {memory.text: memory for memory in listed.memories}


async def profile_of(api: Api, user: str) -> pb.Profile:
    made: pb.Profile = await api.memories.GetProfile(pb.GetProfileRequest(name=f"{user}/profile"))
    return made


def notes(hosted: Hosted) -> str:
    """What stands after the newest turn's words."""
    return hosted.engine.requests[-1].messages[-1].content.partition("\n")[2]


def opening(hosted: Hosted) -> str:
    """The system message."""
    return hosted.engine.requests[-1].messages[0].content


async def test_porto_then_lisbon_now_and_then_are_both_answered_with_their_sources(hosted: Hosted) -> None:
    api = hosted.api
    persona = await api.persona()
    user = new_user(persona)
    moved = (NOW - timedelta(days=200)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    back = NOW - timedelta(days=7)
    back = (back - timedelta(days=back.weekday())).replace(hour=0, minute=0, second=0, microsecond=0)
    porto = await said(api, user, f"I moved to Porto in {moved:%B}", 120, thread="spring")
    session = await api.session(persona, user)
    await api.say(session, "I'm back in Lisbon since last week.")
    facts = await facts_of(api, user)
    lived, lives = facts["Lives in Porto."], facts["Lives in Lisbon."]
    assert lived.fact.valid_from_time.ToDatetime(tzinfo=UTC) == moved
    assert lived.fact.valid_to_time.ToDatetime(tzinfo=UTC) == back
    assert lived.fact.superseded_by == lives.name
    assert lives.fact.valid_from_time.ToDatetime(tzinfo=UTC) == back
    assert not lives.fact.HasField("valid_to_time")
    assert lived.source_memories == [porto.name]
    [words] = [one for one in await api.memories_of(user) if one.name == lives.source_memories[0]]
    [span] = lives.fact.spans
    assert span.memory == words.name
    assert words.text[span.begin : span.end] == "I'm back in Lisbon since last week"
    await hosted.indexed()

    asking = await api.session(persona, user)
    events = await api.say(asking, "Where do I live?")
    assert f"Lives in Lisbon (since {spoken_date(back)})." in notes(hosted)
    assert "Lives in Porto" not in notes(hosted)
    assert lives.name in [event.memory_citation.memory for event in events]

    between = moved + timedelta(days=40)
    events = await api.say(asking, f"Where did I live in {between:%B %Y}?")
    assert f"Lives in Porto (from {spoken_date(moved)} until {spoken_date(back)})." in notes(hosted)
    assert "Lives in Lisbon" not in notes(hosted)
    assert lived.name in [event.memory_citation.memory for event in events]
    await api.say(asking, "Where did I use to live before?")
    assert f"until {spoken_date(back)}" in notes(hosted)


async def test_nothing_is_drawn_from_what_the_persona_says(hosted: Hosted) -> None:
    api = hosted.api
    persona = await api.persona()
    user = new_user(persona)
    session = await api.session(persona, user)
    hosted.engine.will_say("I live in Atlantis, and you live in Atlantis too. My name is Poseidon.")
    await api.say(session, "Where do you live?")
    await api.say(session, 'You said "I live in Atlantis", how odd. She told me I live in Atlantis.')
    for speaker in ("Nadia", "assistant", ""):
        await api.memories.CreateMemory(
            pb.CreateMemoryRequest(parent=user, memory=pb.Memory(text="I live in Atlantis.", speaker=speaker))
        )
    assert await facts_of(api, user) == {}
    assert (await profile_of(api, user)).text == ""


async def test_small_talk_and_echoes_leave_few_facts_and_a_planted_one_never_multiplies(start_host: StartHost) -> None:
    hosted = await start_host(memory={"retention": {"max_facts": 40}})
    api = hosted.api
    user = new_user(await api.persona())
    planted = await said(api, user, "I live in Atlantis.", 30)
    person = [
        "How are you today?",
        "That is funny, thank you!",
        "I'm so tired, it rained all day.",
        "I love cake number {n}.",
        "You said I live in Atlantis, didn't you?",
        "I like it when you say that.",
        "What should I cook tonight?",
        "I have a car",
    ]
    persona = [
        "You live in Atlantis, as you told me.",
        "I live in Atlantis, like you: I live in Atlantis.",
        "My name is Atlantis and I love the sea.",
    ]
    turns = iter(range(TURNS))

    async def feed() -> None:
        for number in turns:
            if number % 2:
                text, speaker = person[number // 2 % len(person)].format(n=number), user.rsplit("/", 1)[1]
            else:
                text, speaker = persona[number // 2 % len(persona)], "Nadia"
            memory = pb.Memory(text=text, speaker=speaker, thread=f"t{number % 9}", ordinal=number)
            await api.memories.CreateMemory(pb.CreateMemoryRequest(parent=user, memory=memory))

    await asyncio.gather(*(feed() for _ in range(8)))
    facts = await facts_of(api, user)
    assert len(facts) <= 40
    assert [one.source_memories for text, one in facts.items() if "Atlantis" in text] == [[planted.name]]
    owned = facts["Has a car."]
    assert len(owned.source_memories) <= 32
    assert "Atlantis" in (await profile_of(api, user)).text
    await api.memories.ForgetMemory(pb.ForgetMemoryRequest(name=planted.name))
    assert not any("Atlantis" in text for text in await facts_of(api, user))
    assert "Atlantis" not in (await profile_of(api, user)).text


async def test_a_card_is_versioned_short_and_frozen_for_a_session(hosted: Hosted) -> None:
    api = hosted.api
    persona = await api.persona()
    user = new_user(persona)
    assert (await profile_of(api, user)).version == 0
    await said(api, user, "My name is Marta. I live in Porto and I work as a nurse.", 10)
    first = await profile_of(api, user)
    assert first.text == "- Name: Marta.\n- Lives in Porto.\n- Works as a nurse."
    assert first.tokens == hosted.engine.count_tokens(first.text)
    assert [one.text for one in (await facts_of(api, user)).values() if one.name in first.source_memories]
    assert len(first.source_memories) == 3
    assert (await profile_of(api, user)).version == first.version

    session = await api.session(persona, user)
    await api.say(session, "Good morning.")
    marker, _, card = opening(hosted).partition("[conversation ")[2].partition("]")
    assert marker
    assert first.text in card
    await said(api, user, "I moved to Lisbon yesterday.")
    for topic in ("sourdough", "kayaks", "opera", "chess"):
        await said(api, user, f"I love {topic}.")
    await api.say(session, "And now?")
    assert first.text in opening(hosted)
    assert "Lisbon" not in opening(hosted)
    second = await profile_of(api, user)
    assert second.version > first.version
    assert "- Lives in Lisbon." in second.text
    assert "Porto" not in second.text
    await api.say(await api.session(persona, user), "Hello.")
    assert second.text in opening(hosted)

    for number in range(120):
        await said(api, user, f"I love fine old pastime{number}.")
    longest = await profile_of(api, user)
    assert 100 < longest.tokens <= MAX_TOKENS
    assert hosted.engine.count_tokens(longest.text) == longest.tokens
    assert longest.text.startswith("- Name: Marta.\n- Lives in Lisbon.")


async def test_what_is_forgotten_leaves_the_card_of_an_open_session_with_its_next_turn(hosted: Hosted) -> None:
    api = hosted.api
    persona = await api.persona()
    user = new_user(persona)
    porto = await said(api, user, "I live in Porto.", 10)
    await said(api, user, "My name is Marta.", 10)
    session = await api.session(persona, user)
    await api.say(session, "Good morning.")
    assert "Lives in Porto." in opening(hosted)
    await said(api, user, "I live in Lisbon.", 5)
    await api.memories.ForgetMemory(pb.ForgetMemoryRequest(name=porto.name))
    await api.say(session, "Good morning again.")
    assert "Porto" not in opening(hosted)
    assert "Lives in Lisbon." in opening(hosted)
    # The fact itself can be forgotten as well.
    lisbon = (await facts_of(api, user))["Lives in Lisbon."]
    await api.memories.ForgetMemory(pb.ForgetMemoryRequest(name=lisbon.name))
    await api.say(session, "And again.")
    assert "Lisbon" not in opening(hosted)
    assert "Name: Marta." in opening(hosted)


async def test_a_fact_that_expires_is_in_no_answer_and_no_card_and_is_swept(start_host: StartHost) -> None:
    hosted = await start_host()
    api = hosted.api
    persona = await api.persona()
    user = new_user(persona)
    memory = await said(api, user, "I live in Porto.", 10, expire_time=ago(-1))
    [fact] = (await facts_of(api, user)).values()
    assert fact.expire_time == memory.expire_time
    session = await api.session(persona, user)
    await hosted.indexed()
    await api.say(session, "Where do I live?")
    assert "Lives in Porto." in opening(hosted)
    # A day passes in the ledger.
    ids = [UUID(one.name.rsplit("/", 1)[1]) for one in (memory, fact)]
    database = hosted.host.stores.database
    await database.execute("UPDATE memories SET expires_at = now() WHERE memory_id = ANY($1)", ids)
    await database.execute("UPDATE profiles SET expires_at = now()")
    await api.say(session, "Where do I live?")
    assert "Porto" not in hosted.engine.last_prompt.rpartition("Where do I live?")[2]
    assert "Porto" not in opening(hosted)
    assert (await profile_of(api, user)).text == ""
    stop, told = asyncio.Event(), asyncio.Event()
    indexer = SimpleNamespace(notify=told.set)
    sweeping = asyncio.create_task(
        keep_swept(hosted.host.settings, hosted.host.stores.memories, indexer, stop)  # type: ignore[arg-type]
    )
    async with asyncio.timeout(20):
        await told.wait()
        stop.set()
        await sweeping
    assert not await database.fetchval(
        "SELECT count(*) FROM memories WHERE memory_id = ANY($1) AND (text IS NOT NULL OR detail IS NOT NULL)", ids
    )


async def test_a_person_who_may_not_be_remembered_has_neither_facts_nor_a_card(hosted: Hosted) -> None:
    api = hosted.api
    persona = await api.persona()
    user = new_user(persona)
    await said(api, user, "I live in Porto.")
    await api.consents.RecordConsent(
        policy_service_pb2.RecordConsentRequest(
            consent_event=policy_service_pb2.ConsentEvent(
                subject=user,
                purpose=policy_service_pb2.CONSENT_PURPOSE_MEMORY,
                state=policy_service_pb2.CONSENT_STATE_WITHDRAWN,
                evidence="a test",
            )
        )
    )
    assert (await profile_of(api, user)).text == ""
    await api.say(await api.session(persona, user), "I work as a nurse. Where do I live?")
    assert "Porto" not in hosted.engine.last_prompt
    assert list(await facts_of(api, user)) == ["Lives in Porto."]
    # Nor are facts drawn from words that are rectified, and those of the old ones go.
    [source] = [memory for memory in await api.memories_of(user) if memory.text == "I live in Porto."]
    await api.memories.UpdateMemory(
        pb.UpdateMemoryRequest(memory=pb.Memory(name=source.name, text="I live in Lisbon."))
    )
    assert await facts_of(api, user) == {}


async def test_an_erased_person_has_an_empty_card_as_an_unknown_one_has(hosted: Hosted) -> None:
    api = hosted.api
    persona = await api.persona()
    user, unknown = new_user(persona), new_user(persona)
    await said(api, user, "I live in Porto.")
    assert (await profile_of(api, user)).text
    await api.erase(user)
    assert await profile_of(api, user) == pb.Profile(name=f"{user}/profile")
    assert await profile_of(api, unknown) == pb.Profile(name=f"{unknown}/profile")


async def test_facts_can_be_turned_off_and_a_profile_is_its_own_users(start_host: StartHost, hosted: Hosted) -> None:
    api = hosted.api
    user = new_user(await api.persona())
    await said(api, user, "I live in Porto.")
    ann = hosted.caller("key-of-ann")
    assert (await failure(profile_call(ann, user))).code is grpc.StatusCode.PERMISSION_DENIED
    off = await start_host(memory={"facts": False})
    user = new_user(await off.api.persona())
    await said(off.api, user, "I live in Porto.")
    assert await facts_of(off.api, user) == {}


def profile_call(api: Api, user: str) -> Any:
    return api.memories.GetProfile(pb.GetProfileRequest(name=f"{user}/profile"))


async def test_what_policy_keeps_from_memory_is_no_fact(hosted: Hosted) -> None:
    api = hosted.api
    persona = await api.persona()
    user = new_user(persona)
    session = await api.session(persona, user)
    await api.say(session, "My wifi password is correcthorse. I live in Porto.")
    assert await facts_of(api, user) == {}


async def test_an_engine_draws_facts_in_the_background_once_from_the_persons_turns_only(hosted: Hosted) -> None:
    api = hosted.api
    persona = await api.persona()
    user = new_user(persona)
    session = await api.session(persona, user)
    await api.say(session, "These days home for me is Porto, by the sea.")
    imported = await said(api, user, "Home for me is Rome.")
    assert await facts_of(api, user) == {}
    ledger = hosted.host.stores.memories
    # Behind all that other tests left.
    changes = await ledger.changes(ChangeCursor(), 10**6)
    mine = [one for one in changes if one.scope == hosted.scope(user)]
    before = changes[: changes.index(mine[0])]
    await ledger.save_cursor(CURSOR, before[-1].cursor if before else ChangeCursor())
    hosted.engine.clear()
    facts = [{"message": 1, "predicate": "lives_in", "value": "Porto", "quote": "home for me is Porto"}]
    hosted.engine.will_say(json.dumps({"facts": facts}))
    extractor = Extractor(hosted.engine, ledger, lambda text, context: True)
    # The facts it writes are changes as well, and nothing to ask about.
    while await extractor.step():
        pass
    [request] = hosted.engine.requests
    assert request.priority == PRIORITY
    assert json.loads(request.json_schema or "") == SCHEMA
    assert "Rome" not in request.messages[-1].content
    [fact] = (await facts_of(api, user)).values()
    assert (fact.text, fact.fact.basis) == ("Lives in Porto.", pb.FACT_BASIS_INFERRED)
    assert imported.name not in fact.source_memories
    await hosted.indexed()
    await api.say(await api.session(persona, user), "Where do I live?")
    assert "Lives in Porto (inferred)." in notes(hosted)


async def test_a_host_that_is_told_to_extracts_beside_its_turns(
    start_host: StartHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosted = await start_host(memory={"extraction": {"enabled": True, "poll_s": 0.05}})
    api = hosted.api
    persona = await api.persona()
    user = new_user(persona)
    told = asyncio.Event()
    assert hosted.host.indexer is not None
    notify = hosted.host.indexer.notify
    monkeypatch.setattr(hosted.host.indexer, "notify", lambda: (notify(), told.set()))
    hosted.engine.will_say("How lovely.")
    facts = [{"message": 1, "predicate": "lives_in", "value": "Porto", "quote": "home for me is Porto"}]
    hosted.engine.will_say(json.dumps({"facts": facts}))
    await api.say(await api.session(persona, user), "These days home for me is Porto, by the sea.")
    async with asyncio.timeout(20):
        while not await facts_of(api, user):
            await told.wait()
            told.clear()
    assert list(await facts_of(api, user)) == ["Lives in Porto."]
    assert [request.priority for request in hosted.engine.requests] == sorted(
        request.priority for request in hosted.engine.requests
    )
    # Only the reply is for a person's eyes.
    assert [one.watermark for one in hosted.engine.requests] == [not one.json_schema for one in hosted.engine.requests]
