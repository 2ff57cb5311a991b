"""What the commands do to a server, seen from the server."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from personae.v1 import (
    memory_service_pb2,
    memory_service_pb2_grpc,
    persona_service_pb2,
    persona_service_pb2_grpc,
    policy_service_pb2,
    policy_service_pb2_grpc,
    session_service_pb2,
)
from personae_client import FailedPreconditionError, UnavailableError
from personae_runtime.errors import ConfigError
from personae_runtime.memory.history import HistoryItem
from personae_serve.cli import imports
from personae_serve.cli.chat import Chat
from personae_serve.cli.persona import Applied, apply_persona, read_persona_file
from tests.unit.client.server import SESSION, RecordedTurn, fail, serving

PERSONA = "tenants/demo/personas/nadia"
USER = f"{PERSONA}/users/ada"


def item(number: int, text: str = "hello", external_id: str = "") -> HistoryItem:
    return HistoryItem("t", number, "Ada", text, datetime(2024, 5, 8, tzinfo=UTC), external_id)


class MemoryBook(memory_service_pb2_grpc.MemoryServiceServicer):
    """Keeps memories by request_id, as a real server does."""

    def __init__(self, refuse_after: int | None = None, pending: list[int] | None = None) -> None:
        self.memories: dict[str, memory_service_pb2.Memory] = {}
        self.refuse_after = refuse_after
        self.pending = pending or [0]
        self.at_once = self.most_at_once = 0

    async def CreateMemory(self, request: Any, context: Any) -> memory_service_pb2.Memory:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if self.refuse_after is not None and len(self.memories) >= self.refuse_after:
            await fail(context, grpc.StatusCode.FAILED_PRECONDITION, reason="CONSENT_WITHDRAWN")
        return self.memories.setdefault(request.request_id, request.memory)

    async def ListMemories(self, request: Any, context: Any) -> memory_service_pb2.ListMemoriesResponse:
        pending = self.pending.pop(0) if len(self.pending) > 1 else self.pending[0]
        return memory_service_pb2.ListMemoriesResponse(pending_index_count=pending)


async def test_an_import_stores_every_message_once_even_when_repeated() -> None:
    book = MemoryBook()
    items = [item(n) for n in range(100)]
    stored = []
    async with serving(memories=book) as client:
        for _ in range(2):
            await imports.store(client, USER, items, lambda: stored.append(1))
    assert len(book.memories) == 100
    assert len(stored) == 200
    assert book.most_at_once <= imports.CONCURRENCY
    assert {m.ordinal for m in book.memories.values()} == set(range(100))
    assert all(m.occur_time.ToDatetime(tzinfo=UTC) == items[0].occurred_at for m in book.memories.values())


async def test_an_import_that_is_refused_stops_with_the_servers_error() -> None:
    async with serving(memories=MemoryBook(refuse_after=3)) as client:
        with pytest.raises(FailedPreconditionError, match="CONSENT_WITHDRAWN"):
            await imports.store(client, USER, [item(n) for n in range(100)], lambda: None)


def test_a_message_is_the_same_only_for_the_same_user_place_and_words() -> None:
    ids = {
        imports.request_id(USER, item(0)),
        imports.request_id(USER + "x", item(0)),
        imports.request_id(USER, item(1)),
        imports.request_id(USER, item(0, text="other")),
        imports.request_id(USER, item(0, external_id="D1:1")),
    }
    assert len(ids) == 5
    assert imports.request_id(USER, item(0)) in ids


async def test_an_import_waits_until_all_is_indexed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "_POLL_S", 0)
    seen: list[tuple[int, int]] = []
    async with serving(memories=MemoryBook(pending=[5, 3, 3, 1, 0])) as client:
        await imports.wait_until_indexed(client, USER, lambda pending, most: seen.append((pending, most)))
    assert seen == [(5, 5), (3, 5), (3, 5), (1, 5)]


async def test_an_index_that_stands_still_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "_POLL_S", 0)
    monkeypatch.setattr(imports, "_STALLED_S", 0)
    async with serving(memories=MemoryBook(pending=[5])) as client:
        with pytest.raises(UnavailableError, match="5 are not indexed"):
            await imports.wait_until_indexed(client, USER)


PERSONA_FILE = """
id: nadia
display_name: Nadia
type: clone
card: |
  You are Nadia, who runs a bike shop.
style: {tone: dry, formality: casual, max_sentences: 3, emoji: none, signature_phrases: [well then]}
exemplars:
  - {prompt: "Is it ready?", reply: It is.}
  - {reply: Rain today.}
generation: {max_output_tokens: 80, temperature: 0.5}
"""


def persona_file(tmp_path: Path, text: str = PERSONA_FILE) -> Path:
    path = tmp_path / "nadia.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_persona_file_becomes_a_definition(tmp_path: Path) -> None:
    persona = read_persona_file(persona_file(tmp_path))
    assert (persona.persona_id, persona.display_name) == ("nadia", "Nadia")
    assert persona.type == persona_service_pb2.PERSONA_TYPE_CLONE
    definition = persona.definition
    assert definition.style.formality == persona_service_pb2.FORMALITY_CASUAL
    assert definition.style.emoji == persona_service_pb2.EMOJI_USE_NONE
    assert [e.reply for e in definition.exemplars] == ["It is.", "Rain today."]
    assert definition.generation.temperature == 0.5


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("id: nadia", "", "`id`"),
        ("type: clone", "type: wizard", "expected one of assistant, companion"),
        ("formality: casual", "formality: rude", "style.formality"),
        ("tone: dry", "tune: dry", "tune"),
        ("id: nadia", "id: [", "can't be read"),
    ],
)
def test_a_wrong_persona_file_says_what_is_wrong(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_persona_file(persona_file(tmp_path, PERSONA_FILE.replace(old, new, 1)))


class PersonaBook(persona_service_pb2_grpc.PersonaServiceServicer):
    def __init__(self) -> None:
        self.persona: persona_service_pb2.Persona | None = None
        self.revisions: list[persona_service_pb2.Revision] = []

    async def GetPersona(self, request: Any, context: Any) -> persona_service_pb2.Persona:
        if self.persona is None:
            await fail(context, grpc.StatusCode.NOT_FOUND)
        assert self.persona is not None
        return self.persona

    async def CreatePersona(self, request: Any, context: Any) -> persona_service_pb2.Persona:
        self.persona = request.persona
        return request.persona

    async def UpdatePersona(self, request: Any, context: Any) -> persona_service_pb2.Persona:
        assert self.persona is not None
        self.persona.display_name = request.persona.display_name
        return self.persona

    async def ListRevisions(self, request: Any, context: Any) -> persona_service_pb2.ListRevisionsResponse:
        return persona_service_pb2.ListRevisionsResponse(revisions=self.revisions[:1])

    async def PublishRevision(self, request: Any, context: Any) -> persona_service_pb2.Revision:
        name = f"{request.parent}/revisions/{len(self.revisions) + 1}"
        state = persona_service_pb2.REVISION_STATE_ACTIVE
        self.revisions.insert(0, persona_service_pb2.Revision(name=name, state=state, definition=request.definition))
        return self.revisions[0]


class ConsentBook(policy_service_pb2_grpc.ConsentServiceServicer):
    def __init__(self) -> None:
        self.events: list[policy_service_pb2.ConsentEvent] = []

    async def RecordConsent(self, request: Any, context: Any) -> policy_service_pb2.ConsentEvent:
        self.events.append(request.consent_event)
        return request.consent_event


async def test_apply_sends_claims_and_leaves_alone_what_is_verified_already(tmp_path: Path) -> None:
    claims = (
        "verified_claims:\n"
        "  - {claim_id: mia, kind: child, statement: has a daughter, evidence: e, expire_time: 2099-01-01}\n"
        "  - {claim_id: tom, kind: child, statement: has a son, evidence: e, expire_time: 2099-01-01T01:00:00+01:00}\n"
    )
    persona = read_persona_file(persona_file(tmp_path, PERSONA_FILE + claims))
    assert [one.kind for one in persona.definition.verified_claims] == [persona_service_pb2.CLAIM_KIND_CHILD] * 2
    assert {one.expire_time.ToDatetime(UTC) for one in persona.definition.verified_claims} == {
        datetime(2099, 1, 1, tzinfo=UTC)
    }
    book = PersonaBook()
    async with serving(personas=book) as client:
        assert (await apply_persona(client, "demo", persona)).published
        for one in book.revisions[0].definition.verified_claims:
            one.verified_by = "ops"
            one.verify_time.GetCurrentTime()
        assert not (await apply_persona(client, "demo", persona)).published
        persona.definition.verified_claims[1].statement = "has a dog"
        assert (await apply_persona(client, "demo", persona)).published


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ("[{claim_id: mia, kind: sibling}]", r"`verified_claims\[0\].kind: sibling` is unknown; expected one of child"),
        ("[{claim_id: mia, kind: child, words: x}]", "breaks the format"),
        ("[mia]", "breaks the format"),
        ("mia", "breaks the format"),
    ],
)
def test_claims_of_a_file_that_are_none_are_refused(tmp_path: Path, claims: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_persona_file(persona_file(tmp_path, f"{PERSONA_FILE}verified_claims: {claims}\n"))


async def test_apply_creates_publishes_and_then_leaves_alone_what_is_right(tmp_path: Path) -> None:
    book, consents = PersonaBook(), ConsentBook()
    persona = read_persona_file(persona_file(tmp_path, PERSONA_FILE.partition("generation:")[0]))
    renamed = dataclasses.replace(persona, display_name="N")
    changed = read_persona_file(persona_file(tmp_path, PERSONA_FILE.replace("a bike shop", "a boat")))
    async with serving(personas=book, consents=consents) as client:
        assert await apply_persona(client, "demo", persona, consent_evidence="a contract") == Applied(
            f"{PERSONA}/revisions/1", published=True
        )
        assert await apply_persona(client, "demo", persona) == Applied(f"{PERSONA}/revisions/1", published=False)
        assert not (await apply_persona(client, "demo", renamed)).published
        assert (await apply_persona(client, "demo", changed)).revision == f"{PERSONA}/revisions/2"
    assert book.persona is not None
    assert book.persona.display_name == "Nadia"  # the file that was applied last
    (consent,) = consents.events
    assert (consent.subject, consent.evidence) == (PERSONA, "a contract")
    assert consent.purpose == policy_service_pb2.CONSENT_PURPOSE_LIKENESS


async def test_a_chat_shows_disclosure_reply_citations_and_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "stdin", io.StringIO("/why\nhello\n\n/why\n/memories\n/nonsense\n/forget 9\n/quit\nunsaid\n")
    )
    monkeypatch.setenv("COLUMNS", "60")
    turn = RecordedTurn([])
    turn.events[3].text_delta.text = "Your \x1b[2Jred "
    memories = MemoryBook()
    session = session_service_pb2.Session(name=SESSION, user=USER, disclosure="An AI answers. " + "word " * 40 + "end.")
    async with serving(sessions=turn, memories=memories) as client:
        await Chat(client, session, "Nadia", resumed=False).run()
    shown = capsys.readouterr().out
    assert "An AI answers." in shown
    assert "end." in shown
    assert "Nadia: Your [2Jred bike is" in " ".join(shown.split())
    assert "\x1b[2J" not in shown
    assert "remembers  a red bike" in shown
    assert "recalled" in shown
    assert "tokens  7 in" in shown
    assert "There was no reply yet." in shown
    assert "/nonsense is no command" in shown
    assert "--session s1" in shown
    assert len(turn.calls) == 1


async def test_a_refused_turn_does_not_end_the_chat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Refusing(RecordedTurn):
        async def Converse(self, request: Any, context: Any) -> Any:
            self.calls.append(request)
            await fail(context, grpc.StatusCode.ABORTED, "another turn runs", reason="TURN_IN_PROGRESS")

    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    turn = Refusing([])
    async with serving(sessions=turn) as client:
        await Chat(client, session_service_pb2.Session(name=SESSION, user=USER), "Nadia", resumed=False).run()
    assert len(turn.calls) == 2
    assert "TurnInProgressError" in capsys.readouterr().out
