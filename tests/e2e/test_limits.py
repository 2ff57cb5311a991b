"""Limits and errors: what is too much, what is not valid, and how that is told."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import grpc
import pytest

from personae.v1 import persona_service_pb2, persona_service_pb2_grpc, session_service_pb2
from personae_runtime.engines.registry import Engines
from tests.e2e.conftest import StartHost
from tests.e2e.support import Hosted, Pause, ScriptedEngine, failure, kinds, new_turn_id, read_until, rest, until

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_request_above_a_mebibyte_is_refused(hosted: Hosted) -> None:
    persona = await hosted.api.persona()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await hosted.api.publish(persona, "x" * (1 << 20))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_metadata_above_its_limit_is_refused(hosted: Hosted) -> None:
    fat = hosted.caller(hosted.key, ("x-fat", "y" * (64 << 10)))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await fat.personas.ListPersonas(persona_service_pb2.ListPersonasRequest(parent="tenants/demo"))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_text_that_is_too_long_for_the_api_or_the_model_is_refused(
    hosted: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = hosted.api
    session = await api.session(await api.persona())
    api_limit = await failure(api.converse(session, "x" * 8001))
    assert (api_limit.code, api_limit.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["text"])

    class SmallEngine(ScriptedEngine):
        def count_tokens(self, text: str) -> int:
            return 4 * len(text)

    # Four tokens a character: what the API allows is more than the model's context holds.
    small = SmallEngine()
    monkeypatch.setattr(hosted.host.gateway.runner, "_engines", Engines([small]))
    session = await api.session(await api.persona(card="Nadia."))
    model_limit = await failure(api.converse(session, "x" * 4000))
    assert (model_limit.code, model_limit.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TEXT_TOO_LONG")
    assert model_limit.fields == ["text"]
    assert small.requests == []
    assert await api.turns(session) == []


async def test_turns_per_minute_are_limited_by_user_and_repeats_are_free(start_host: StartHost) -> None:
    hosted = await start_host(sessions={"turns_per_minute": 2})
    api = hosted.api
    persona = await api.persona()
    user = f"{persona}/users/ann"
    session, turn_id = await api.session(persona, user), new_turn_id()
    first = await api.say(session, "One is here.", turn_id)
    await api.say(await api.session(persona, user), "Two is here.")
    refused = await failure(api.converse(session, "Three is here."))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
    assert refused.retry is not None
    assert 0 < refused.retry.retry_delay.ToTimedelta().total_seconds() <= 60
    assert refused.quota is not None
    assert refused.quota.violations[0].subject == user
    assert len(await api.turns(session)) == 1
    assert await api.say(session, "One is here.", turn_id) == first
    # Another person is not held up.
    assert kinds(await api.say(await api.session(persona), "Hello there."))[-1] == "turn_completed"


async def test_an_engine_with_a_full_queue_refuses_before_anything_is_recorded(start_host: StartHost) -> None:
    hosted = await start_host(engine=ScriptedEngine(max_concurrent=1, max_waiting=1))
    api, pause = hosted.api, Pause()
    persona = await api.persona()
    hosted.engine.will_say(pause, "The first.")
    running = api.converse(await api.session(persona), "Hello there.")
    await read_until(running, "turn_started")
    await pause.wait()
    waiting = api.converse(await api.session(persona), "Hello there.")
    events = await read_until(waiting, "waiting")
    assert events[-1].waiting.reason == 1
    session = await api.session(persona)
    await hosted.engine.queued()
    refused = await failure(api.converse(session, "Hello there."))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "ENGINE_OVERLOADED")
    assert refused.retry is not None
    assert await api.turns(session) == []
    pause.go.set()
    for call in (running, waiting):
        assert kinds(await rest(call))[-1] == "turn_completed"
    assert kinds(await api.say(session, "Hello there."))[-1] == "turn_completed"


async def test_running_turns_are_limited_by_process(start_host: StartHost) -> None:
    hosted = await start_host(sessions={"max_running_turns": 2})
    api = hosted.api
    persona = await api.persona()
    pauses = [Pause(), Pause()]
    running = []
    for pause in pauses:
        hosted.engine.will_say(pause, "The reply.")
        running.append(api.converse(await api.session(persona), "Hello there."))
        await pause.wait()
    refused = await failure(api.converse(await api.session(persona), "Hello there."))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_TURNS")
    assert refused.retry is not None
    for pause in pauses:
        pause.go.set()
    for call in running:
        assert kinds(await rest(call))[-1] == "turn_completed"


async def test_a_gateway_that_calls_wait_for_refuses_new_turns_and_keeps_those_it_has(start_host: StartHost) -> None:
    hosted = await start_host(gateway={"max_accept_wait_s": 0.02})
    api, pause, load = hosted.api, Pause(), hosted.host.gateway.load
    persona = await api.persona()
    session, other = await api.session(persona), await api.session(persona)
    hosted.engine.will_say(pause, "It goes on.")
    running = api.converse(session, "Hello there.", turn_id := new_turn_id())
    await read_until(running, "turn_started")
    await pause.wait()

    async def hog() -> None:
        while True:
            time.sleep(0.05)  # noqa: ASYNC251  # that it blocks is the point
            await asyncio.sleep(0)

    hogging = asyncio.create_task(hog())
    try:
        await until(load.overloaded)
        refused = await failure(api.converse(other, "Hello there."))
        for new in (api.attach(other), api.session(persona)):
            assert (await failure(new)).reason == "GATEWAY_OVERLOADED"
        attached = api.attach(session, turn_id=turn_id)
        await read_until(attached, "turn_started")
    finally:
        hogging.cancel()
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "GATEWAY_OVERLOADED")
    assert refused.retry is not None
    assert refused.retry.retry_delay.ToTimedelta().total_seconds() >= 1
    assert await api.turns(other) == []
    pause.go.set()
    for call in (running, attached):
        assert kinds(await rest(call))[-1] == "turn_completed"
    await until(lambda: not load.overloaded())
    assert kinds(await api.say(other, "Hello there."))[-1] == "turn_completed"


async def test_violations_are_told_with_the_paths_of_their_fields(hosted: Hosted) -> None:
    api = hosted.api
    bad = persona_service_pb2.CreatePersonaRequest(
        parent="tenants/Demo!",
        persona_id="UPPER",
        persona=persona_service_pb2.Persona(),
        request_id="not a uuid",
    )
    refused = await failure(api.personas.CreatePersona(bad))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(refused.fields) == {"parent", "persona_id", "persona.display_name", "request_id"}
    missing = await failure(api.personas.CreatePersona(persona_service_pb2.CreatePersonaRequest()))
    assert "persona" in missing.fields
    definition = persona_service_pb2.PersonaDefinition(
        card="You are Nadia.",
        style=persona_service_pb2.StyleSheet(language_code="???", max_sentences=99),
        exemplars=[persona_service_pb2.Exemplar(reply="Fine."), persona_service_pb2.Exemplar()],
    )
    deep = await failure(
        api.personas.PublishRevision(
            persona_service_pb2.PublishRevisionRequest(parent="tenants/demo/personas/x", definition=definition)
        )
    )
    assert set(deep.fields) == {
        "definition.style.language_code",
        "definition.style.max_sentences",
        "definition.exemplars[1].reply",
    }


async def test_a_request_with_very_many_violations_is_still_told_as_invalid(hosted: Hosted) -> None:
    definition = persona_service_pb2.PersonaDefinition(
        card="You are Nadia.",
        style=persona_service_pb2.StyleSheet(signature_phrases=[""] * 32, avoided_phrases=[""] * 32),
        exemplars=[persona_service_pb2.Exemplar() for _ in range(64)],
    )
    refused = await failure(
        hosted.api.personas.PublishRevision(
            persona_service_pb2.PublishRevisionRequest(parent="tenants/demo/personas/x", definition=definition)
        )
    )
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.fields


async def test_names_that_are_none_are_told_with_an_example(hosted: Hosted) -> None:
    for name in ("nonsense", "tenants/demo/personas/Nadia", "tenants/demo/personas/n/extra", "x" * 400):
        refused = await failure(hosted.api.personas.GetPersona(persona_service_pb2.GetPersonaRequest(name=name)))
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "NAME_INVALID")
        assert refused.fields == ["name"]
        assert "tenants/acme/personas/nadia" in refused.message


async def test_turn_and_session_ids_have_a_form(hosted: Hosted) -> None:
    api = hosted.api
    persona = await api.persona()
    session = await api.session(persona)
    for turn_id in ("-starts-with-a-dash", "has space", "x" * 65):
        refused = await failure(api.converse(session, "Hello there.", turn_id))
        assert refused.fields == ["turn_id"]
    bad = session_service_pb2.CreateSessionRequest(
        parent=persona, session=session_service_pb2.Session(user=f"{persona}/users/u"), session_id="Not_OK"
    )
    assert (await failure(api.sessions.CreateSession(bad))).fields == ["session_id"]


async def test_a_fault_of_the_server_is_told_without_its_details(
    hosted: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr(type(hosted.host.gateway.runner._personas), "get", fail)
    refused = await failure(
        hosted.api.personas.GetPersona(persona_service_pb2.GetPersonaRequest(name="tenants/demo/personas/x"))
    )
    assert (refused.code, refused.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in refused.message + str(refused.metadata)


async def test_clients_that_all_come_at_once_are_all_served(hosted: Hosted) -> None:
    persona = await hosted.api.persona()
    request = persona_service_pb2.GetPersonaRequest(name=persona)
    # More than gRPC would let wait to be accepted; on several connections, as each has a limit of its own.
    async with AsyncExitStack() as stack:
        stubs = [
            persona_service_pb2_grpc.PersonaServiceStub(
                await stack.enter_async_context(
                    grpc.aio.insecure_channel(f"127.0.0.1:{hosted.port}", options=[("personae.test.channel", number)])
                )
            )
            for number in range(4)
        ]
        metadata = (("authorization", f"Bearer {hosted.key}"),)
        calls = [stub.GetPersona(request, metadata=metadata, timeout=60) for stub in stubs for _ in range(800)]
        assert {found.name for found in await asyncio.gather(*calls)} == {persona}
