"""Whatever a model wrote leaves with a label that says so, through any method that there is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf import json_format, message_factory
from google.protobuf.message import Message

from personae.v1 import corpus_service_pb2, memory_service_pb2, session_service_pb2
from personae.v1.provenance_pb2 import AiLabel
from personae_client import PersonaeClient
from personae_runtime.memory.extraction import CURSOR, Extractor
from personae_runtime.memory.store import ChangeCursor
from personae_runtime.provenance.label import DigitalSourceType
from tests.e2e.support import DEFAULT_REPLY, Api, Hosted, Pause, failure, kinds, read_until, rest
from tests.e2e.test_isolation import METHODS, Subject, requests, said, subject_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

FACT = "Lives in Porto."
"""As a model put it; the person said it in other words."""
WRITTEN = ("So your green bicycle", DEFAULT_REPLY[:24], FACT)
"""What only a model wrote."""


async def messages(api: Api, name: str, request: Message) -> list[Message]:
    """What comes back from a call; nothing of one that fails."""
    method = METHODS[name]
    path = f"/{method.containing_service.full_name}/{method.name}"
    response = message_factory.GetMessageClass(method.output_type)
    make: Any = api.channel.unary_stream if method.server_streaming else api.channel.unary_unary
    call = make(path, type(request).SerializeToString, response.FromString)(request, metadata=api.metadata, timeout=10)
    try:
        return [message async for message in call] if method.server_streaming else [await call]
    except grpc.aio.AioRpcError:
        return []


def texts(value: Any, labelled: bool = False) -> Iterator[tuple[str, bool]]:
    """Every text in a message, bytes and JSON lines read as such, and whether it, or what it is in, has a label."""
    if isinstance(value, Message):
        fields = value.ListFields()
        labelled = labelled or any(isinstance(found, AiLabel) and complete(found) for _, found in fields)
        for field, found in fields:
            if field.name == "json_line":
                yield from texts(json.loads(found), labelled)
            elif not isinstance(found, AiLabel):
                each = (found,) if not field.is_repeated else found.values() if hasattr(found, "values") else found
                for one in each:
                    yield from texts(one, labelled)
    elif isinstance(value, dict):
        label = value.get("ai_label")
        labelled = labelled or (label is not None and complete(json_format.ParseDict(label, AiLabel())))
        for key, one in value.items():
            if key != "ai_label":
                yield from texts(one, labelled)
    elif isinstance(value, list):
        for one in value:
            yield from texts(one, labelled)
    elif isinstance(value, bytes):
        yield value.decode(errors="replace"), labelled
    elif isinstance(value, str):
        yield value, labelled


def complete(label: AiLabel) -> bool:
    """Whether a label says all that it must of what a model wrote."""
    drawn = label.digital_source_type == DigitalSourceType.COMPOSITE and not label.revision
    return bool(
        label.generated_by_ai
        and label.persona.startswith("tenants/")
        and label.model == "scripted"
        and label.HasField("generate_time")
        and label.digital_source_type in (DigitalSourceType.TRAINED, DigitalSourceType.COMPOSITE)
        and (drawn or (label.revision.startswith(label.persona) and "+sha256:" in label.policy_bundle))
    )


def written(message: Message) -> list[tuple[str, bool]]:
    """The texts of a message that only a model can have written, and whether they are labelled."""
    return [(text, labelled) for text, labelled in texts(message) if any(one in text for one in WRITTEN)]


@dataclass(frozen=True)
class World:
    """A person of whom a model drew a fact, with names for every request; and the fact."""

    subject: Subject
    fact: str


@pytest_asyncio.fixture(loop_scope="session")
async def world(hosted: Hosted) -> World:
    api = hosted.api
    persona = await api.persona()
    subject = await subject_of(api, persona, "ann", "Kermit", hosted, await said(api, persona, "Kermit"))
    await api.say(await api.session(persona, subject.user), "These days home for me is Porto, by the sea.")
    await draw_fact(hosted, subject.user)
    listed = await api.memories.ListMemories(
        memory_service_pb2.ListMemoriesRequest(parent=subject.user, kind=memory_service_pb2.MEMORY_KIND_FACT)
    )
    [fact] = [memory.name for memory in listed.memories if memory.text == FACT]
    await hosted.indexed()
    hosted.engine.clear()
    return World(subject, fact)


async def draw_fact(hosted: Hosted, user: str) -> None:
    """Let the model read the person's newest words, and nothing that other tests left."""
    ledger = hosted.host.stores.memories
    changes = await ledger.changes(ChangeCursor(), 10**6)
    last = max(at for at, one in enumerate(changes) if one.scope == hosted.scope(user))
    await ledger.save_cursor(CURSOR, changes[last - 1].cursor)
    fact = {"message": 1, "predicate": "lives_in", "value": "Porto", "quote": "home for me is Porto"}
    hosted.engine.will_say(json.dumps({"facts": [fact]}))
    extractor = Extractor(hosted.engine, ledger, lambda text, context: True)
    while await extractor.step():
        pass


async def test_every_method_labels_what_a_model_wrote(hosted: Hosted, world: World) -> None:
    api = hosted.api
    seen: dict[str, set[str]] = {}
    about_fact = replace(world.subject, memory=world.fact)
    session, user, query = world.subject.session, world.subject.user, "Where do I live?"
    calls: list[tuple[str, Message]] = [
        ("SessionService/Converse", session_service_pb2.ConverseRequest(session=session, turn_id="asked", text=query)),
        ("MemoryService/SearchMemories", memory_service_pb2.SearchMemoriesRequest(parent=user, query=query)),
        ("MemoryService/Explain", memory_service_pb2.MemoryServiceExplainRequest(parent=user, query=query)),
        *requests(world.subject).items(),
    ]
    calls += [(name, requests(about_fact)[name]) for name in ("MemoryService/GetMemory", "MemoryService/UpdateMemory")]
    # Those that take something away come last.
    calls.sort(key=lambda call: call[0].split("/")[1].startswith(("Delete", "Forget", "Erase", "Close")))
    for name, request in calls:
        for message in await messages(api, name, request):
            for text, labelled in written(message):
                assert labelled, f"{name}: {text!r} has no label"
                seen.setdefault(name, set()).add(FACT if FACT in text else "reply")
    # The walk met what it looks for wherever it should be.
    assert seen == {
        # A fact is cited in the stream.
        "SessionService/Converse": {"reply", FACT},
        "SessionService/Attach": {"reply"},
        "SessionService/ListTurns": {"reply"},
        "SessionService/CancelTurn": {"reply"},
        "MemoryService/ListMemories": {FACT},
        "MemoryService/SearchMemories": {FACT},
        "MemoryService/Explain": {FACT},
        "MemoryService/GetMemory": {FACT},
        "MemoryService/UpdateMemory": {FACT},
        "MemoryService/GetProfile": {FACT},
        "MemoryService/ExportMemories": {"reply", FACT},
        "ContentService/ExportContent": {"reply"},
    }
    assert {name for name, _ in calls} == set(METHODS)


async def test_the_walk_finds_text_without_its_label(hosted: Hosted, world: World) -> None:
    [listed] = await messages(
        hosted.api, "SessionService/ListTurns", session_service_pb2.ListTurnsRequest(parent=world.subject.session)
    )
    assert isinstance(listed, session_service_pb2.ListTurnsResponse)
    assert [labelled for _, labelled in written(listed)] == [True]
    for spoil in (
        lambda turn: turn.ClearField("ai_label"),
        lambda turn: turn.ai_label.ClearField("model"),
        lambda turn: turn.ai_label.ClearField("policy_bundle"),
        lambda turn: turn.ai_label.ClearField("digital_source_type"),
    ):
        spoiled = session_service_pb2.ListTurnsResponse()
        spoiled.CopyFrom(listed)
        spoil(spoiled.turns[0])
        assert [labelled for _, labelled in written(spoiled)] == [False]


async def test_only_what_a_model_drew_is_labelled_among_memories(hosted: Hosted, world: World) -> None:
    labels = {memory.text: memory.HasField("ai_label") for memory in await hosted.api.memories_of(world.subject.user)}
    assert labels[FACT]
    assert not labels["These days home for me is Porto, by the sea."]
    assert not labels["My green bicycle is called Kermit."]


# -- what a label says ---------------------------------------------------------


async def test_a_replay_says_what_was_in_force_when_the_words_were_made(
    hosted: Hosted, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    persona = await api.persona()
    session = await api.session(persona)
    before = await api.say(session, "Hello.", "t1")
    await api.publish(persona, "You are Nadia, who repairs bikes.")
    monkeypatch.setattr(hosted.host.gateway.runner._policy.own, "version", "2099.1+sha256:0123456789ab")
    monkeypatch.setattr(hosted.engine, "model", "another")
    after = await api.say(session, "And now?", "t2")
    assert await api.attached(session, turn_id="t1") == before
    assert await api.attached(session, turn_id="t2") == after
    # From the middle of it, too: a stream that resumes has missed turn_started.
    assert await api.attached(session, before[1].event_id, "t1") == before[2:]
    first, second = await api.turns(session)
    assert first.ai_label.model == "scripted"
    assert first.ai_label.policy_bundle != second.ai_label.policy_bundle == "2099.1+sha256:0123456789ab"
    # A session pins its revision.
    assert {turn.ai_label.revision for turn in (first, second)} == {f"{persona}/revisions/1"}
    deltas = [event for event in before if event.HasField("text_delta")]
    assert all(event.ai_label.generate_time == event.time for event in deltas)
    assert deltas[0].ai_label.model == "scripted"


async def test_words_of_policy_are_no_models(api: Api) -> None:
    session = await api.session(await api.persona())
    events = await api.say(session, "Are you a real person?")
    [told] = [event for event in events if event.HasField("text_delta")]
    [turn] = await api.turns(session)
    for label in (told.ai_label, turn.ai_label):
        assert label.generated_by_ai
        assert (label.model, label.digital_source_type) == ("", DigitalSourceType.ALGORITHMIC)


async def test_a_reply_that_policy_ends_is_labelled_in_parts_and_as_a_whole(hosted: Hosted, api: Api) -> None:
    session = await api.session(await api.persona())
    pause = Pause()
    hosted.engine.will_say("That sounds like a fine plan. ", pause, "I am a real human being, trust me. ")
    call = api.converse(session, "Hello there.", "t1")
    events = await read_until(call, "text_delta")
    pause.go.set()
    events += await rest(call)
    assert "policy_event" in kinds(events)
    sources = [event.ai_label.digital_source_type for event in events if event.HasField("text_delta")]
    assert list(dict.fromkeys(sources)) == [DigitalSourceType.TRAINED, DigitalSourceType.ALGORITHMIC]
    [turn] = await api.turns(session)
    assert turn.ai_label.digital_source_type == DigitalSourceType.COMPOSITE
    assert turn.ai_label.model == "scripted"
    assert await api.attached(session, turn_id="t1") == events


async def test_a_turn_without_words_has_no_label(hosted: Hosted, api: Api) -> None:
    session = await api.session(await api.persona())
    pause = Pause()
    hosted.engine.will_say(pause)
    call = api.converse(session, "Hello there.", "t1")
    await pause.wait()
    assert not (await api.cancel(session, "t1")).HasField("ai_label")
    call.cancel()


async def test_turns_from_before_labels_were_recorded_are_still_marked(hosted: Hosted, api: Api) -> None:
    session = await api.session(await api.persona())
    await api.say(session, "Hello there.", "t1")
    await hosted.host.stores.database.execute(
        "UPDATE turns SET origin = '{}' FROM sessions s WHERE turns.session_pk = s.session_pk AND s.session = $1",
        session.rsplit("/", 1)[1],
    )
    [turn] = await api.turns(session)
    assert (turn.ai_label.generated_by_ai, turn.ai_label.model) == (True, "")
    assert turn.ai_label.digital_source_type == DigitalSourceType.TRAINED


async def test_an_export_holds_the_labels_that_the_api_shows(api: Api) -> None:
    persona = await api.persona()
    user = f"{persona}/users/ann"
    session = await api.session(persona, user)
    await api.say(session, "Hello there.")
    [turn] = await api.turns(session)
    call = api.memories.ExportMemories(memory_service_pb2.ExportMemoriesRequest(parent=user))
    lines = [json.loads(message.json_line) async for message in call if message.json_line]
    [label] = [line["ai_label"] for line in lines if line["type"] == "turn"]
    assert json_format.ParseDict(label, AiLabel()) == turn.ai_label


async def test_the_sdk_gives_a_turns_labels(hosted: Hosted, api: Api) -> None:
    session = await api.session(await api.persona())
    async with PersonaeClient(f"127.0.0.1:{hosted.port}", api_key=hosted.key) as client:
        plain = await client.sessions.converse(session, "Hello there.").collect()
        refused = await client.sessions.converse(session, "Are you a real person?").collect()
    assert [label.model for label in plain.ai_labels] == ["scripted"]
    assert [label.digital_source_type for label in refused.ai_labels] == [DigitalSourceType.ALGORITHMIC]


async def test_documents_are_labelled_as_whoever_stores_them_says(hosted: Hosted, api: Api) -> None:
    persona = await api.persona()
    terms = {
        "I true every wheel twice before it leaves the shop.": DigitalSourceType.TRAINED.value,
        "I bake rye bread on Sundays.": "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCreation",
        "I keep three cats in the attic.": "",
    }
    for text, term in terms.items():
        document = corpus_service_pb2.Document(text=text, digital_source_type=term)
        await api.corpus.CreateDocument(corpus_service_pb2.CreateDocumentRequest(parent=persona, document=document))
    listed = await api.corpus.ListDocuments(corpus_service_pb2.ListDocumentsRequest(parent=persona))
    assert {one.digital_source_type for one in listed.documents} == set(terms.values())
    [generated] = [one for one in listed.documents if one.HasField("ai_label")]
    assert generated.ai_label.generated_by_ai
    assert (generated.ai_label.persona, generated.ai_label.model) == (persona, "")
    assert generated.ai_label.digital_source_type == generated.digital_source_type == DigitalSourceType.TRAINED
    shown = await api.corpus.GetDocument(corpus_service_pb2.GetDocumentRequest(name=generated.name))
    assert shown.ai_label == generated.ai_label
    assert hosted.host.passage_indexer is not None
    await hosted.host.passage_indexer.catch_up()
    question = "How often do you true a wheel before it leaves the shop?"
    found = await api.corpus.SearchPassages(corpus_service_pb2.SearchPassagesRequest(parent=persona, query=question))
    assert found.results[0].passage.ai_label == generated.ai_label
    events = await api.say(await api.session(persona), question)
    cited = {one.passage_citation.document: one.passage_citation for one in events if one.HasField("passage_citation")}
    assert cited[generated.name].ai_label == generated.ai_label
    assert not any(one.HasField("ai_label") for name, one in cited.items() if name != generated.name)
    refused = await failure(
        api.corpus.CreateDocument(
            corpus_service_pb2.CreateDocumentRequest(
                parent=persona, document=corpus_service_pb2.Document(text="Words.", digital_source_type="by hand")
            )
        )
    )
    assert refused.fields == ["document.digital_source_type"]
