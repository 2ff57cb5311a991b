"""Who may call what: keys, tenants, users, permissions, health and reflection."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, empty_pb2
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from personae.v1 import (
    audit_service_pb2,
    content_service_pb2,
    corpus_service_pb2,
    memory_service_pb2,
    persona_service_pb2,
    policy_service_pb2,
    review_service_pb2,
    session_service_pb2,
)
from personae_runtime.config import ApiKey
from personae_runtime.errors import EngineDead
from personae_runtime.telemetry.setup import Telemetry
from personae_serve.gateway.auth import PERMISSIONS, PUBLIC, Authenticator, Principal
from personae_serve.gateway.interceptor import GatewayInterceptor
from personae_serve.gateway.server import SERVICE_NAMES
from tests.e2e.conftest import KEYS, StartHost
from tests.e2e.support import Api, Hosted, failure, read_failure

in_session = pytest.mark.asyncio(loop_scope="session")

MODULES = (
    persona_service_pb2,
    session_service_pb2,
    memory_service_pb2,
    corpus_service_pb2,
    policy_service_pb2,
    review_service_pb2,
    audit_service_pb2,
    content_service_pb2,
)


def methods() -> Iterator[MethodDescriptor]:
    for module in MODULES:
        for service in module.DESCRIPTOR.services_by_name.values():
            yield from service.methods


def path_of(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


async def call(channel: grpc.aio.Channel, method: MethodDescriptor, metadata: Any = None) -> Any:
    """Any method with an empty request."""
    request, response = method.input_type._concrete_class, method.output_type._concrete_class
    make = channel.unary_stream if method.server_streaming else channel.unary_unary
    made = make(path_of(method), request.SerializeToString, response.FromString)(request(), metadata=metadata)
    if method.server_streaming:
        return [event async for event in made]
    return await made


def test_every_rpc_of_the_api_has_a_permission() -> None:
    assert {path_of(method) for method in methods()} <= PERMISSIONS.keys()
    assert {PERMISSIONS[path_of(method)] for method in methods()}.isdisjoint({PUBLIC, ""})
    assert {module.DESCRIPTOR.package for module in MODULES} == {"personae.v1"}
    assert set(SERVICE_NAMES) == {method.containing_service.full_name for method in methods()}


@in_session
async def test_every_rpc_of_the_running_server_has_a_permission(hosted: Hosted) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(hosted.api.channel)

    async def reflect(**request: str) -> reflection_pb2.ServerReflectionResponse:
        stream = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**request)]))
        return await stream.read()

    listed = await reflect(list_services="")
    served = {service.name for service in listed.list_services_response.service}
    assert served >= set(SERVICE_NAMES)
    pool = descriptor_pool.Default()
    paths = {f"/{name}/{method.name}" for name in served for method in pool.FindServiceByName(name).methods}
    assert paths == PERMISSIONS.keys()


@in_session
async def test_a_method_that_no_permission_names_is_denied() -> None:
    handler = grpc.unary_unary_rpc_method_handler(
        lambda request, context: pytest.fail("it ran"),
        request_deserializer=empty_pb2.Empty.FromString,
        response_serializer=empty_pb2.Empty.SerializeToString,
    )
    server = grpc.aio.server(interceptors=[GatewayInterceptor(Authenticator(KEYS), Telemetry.off())])
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("personae.v1.NewService", {"NewMethod": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            unlisted = channel.unary_unary(
                "/personae.v1.NewService/NewMethod",
                empty_pb2.Empty.SerializeToString,
                empty_pb2.Empty.FromString,
            )
            metadata = (("authorization", "Bearer service-key-of-the-tests"),)
            refused = await failure(unlisted(empty_pb2.Empty(), metadata=metadata))
    finally:
        await server.stop(None)
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")


@in_session
@pytest.mark.parametrize("method", list(methods()), ids=path_of)
async def test_no_rpc_can_be_called_without_a_known_key(hosted: Hosted, method: MethodDescriptor) -> None:
    for metadata, reason in (
        (None, "CREDENTIALS_MISSING"),
        ((("authorization", "Basic abc"),), "CREDENTIALS_MISSING"),
        ((("authorization", "Bearer "),), "CREDENTIALS_MISSING"),
        ((("authorization", "Bearer no-such-key"),), "CREDENTIALS_INVALID"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(hosted.api.channel, method, metadata)
        told = read_failure(caught.value)
        assert (told.code, told.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason)


@in_session
@pytest.mark.parametrize("method", list(methods()), ids=path_of)
async def test_every_rpc_needs_its_permission(hosted: Hosted, method: MethodDescriptor) -> None:
    reader = (("authorization", "Bearer key-that-may-read-personas"),)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(hosted.api.channel, method, reader)
    told = read_failure(caught.value)
    if PERMISSIONS[path_of(method)] in ("personas.get", "personas.list"):
        assert told.code is grpc.StatusCode.INVALID_ARGUMENT
    else:
        assert (told.code, told.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
        assert told.metadata["permission"] == PERMISSIONS[path_of(method)]


@in_session
async def test_another_tenants_names_are_refused(hosted: Hosted) -> None:
    api, other = hosted.api, hosted.caller("key-of-another-tenant")
    persona = await api.persona()
    session = await api.session(persona)
    user = f"{persona}/users/u1"
    calls = [
        other.personas.GetPersona(persona_service_pb2.GetPersonaRequest(name=persona)),
        other.personas.ListPersonas(persona_service_pb2.ListPersonasRequest(parent="tenants/demo")),
        other.publish(persona),
        other.session(persona),
        other.sessions.GetSession(session_service_pb2.GetSessionRequest(name=session)),
        other.converse(session, "Hello there."),
        other.attach(session),
        other.cancel(session, "t1"),
        other.remember(user, "Something."),
        other.memories.SearchMemories(memory_service_pb2.SearchMemoriesRequest(parent=user, query="x")),
        other.policy.Classify(
            policy_service_pb2.ClassifyRequest(parent="tenants/demo", text="x", stage=1)  # type: ignore[arg-type]
        ),
        other.consents.ListConsentEvents(policy_service_pb2.ListConsentEventsRequest(parent=persona)),
    ]
    for made in calls:
        refused = await failure(made)
        assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "TENANT_MISMATCH")


@in_session
async def test_a_user_token_reaches_its_own_user_only(hosted: Hosted) -> None:
    api, ann = hosted.api, hosted.caller("key-of-ann")
    persona = await api.persona()
    mine, theirs = f"{persona}/users/ann", f"{persona}/users/bob"
    session = await ann.session(persona, mine)
    bobs = await api.session(persona, theirs)
    await ann.say(session, "My bicycle is green.")
    assert len(await ann.turns(session)) == 1
    made = await ann.remember(mine, "My bicycle is called Kermit.")
    await api.remember(theirs, "A secret of Bob's.")
    assert made in await ann.memories_of(mine)
    listed = await ann.sessions.ListSessions(session_service_pb2.ListSessionsRequest(parent=persona))
    assert [one.name for one in listed.sessions] == [session]

    consent = policy_service_pb2.ConsentEvent(
        subject=theirs,
        purpose=policy_service_pb2.CONSENT_PURPOSE_MEMORY,
        state=policy_service_pb2.CONSENT_STATE_WITHDRAWN,
    )
    likeness = policy_service_pb2.ConsentEvent(
        subject=persona,
        purpose=policy_service_pb2.CONSENT_PURPOSE_LIKENESS,
        state=policy_service_pb2.CONSENT_STATE_WITHDRAWN,
    )
    for refused_call in [
        ann.session(persona, theirs),
        ann.sessions.GetSession(session_service_pb2.GetSessionRequest(name=bobs)),
        ann.sessions.CloseSession(session_service_pb2.CloseSessionRequest(name=bobs)),
        ann.sessions.ListSessions(session_service_pb2.ListSessionsRequest(parent=persona, user=theirs)),
        ann.turns(bobs),
        ann.converse(bobs, "Hello there."),
        ann.attach(bobs),
        ann.cancel(bobs, "t1"),
        ann.remember(theirs, "Something."),
        ann.memories_of(theirs),
        ann.memories.SearchMemories(memory_service_pb2.SearchMemoriesRequest(parent=theirs, query="secret")),
        ann.memories.ForgetMemory(
            memory_service_pb2.ForgetMemoryRequest(name=made.name.replace("users/ann", "users/bob"))
        ),
        ann.consents.RecordConsent(policy_service_pb2.RecordConsentRequest(consent_event=consent)),
        ann.consents.RecordConsent(policy_service_pb2.RecordConsentRequest(consent_event=likeness)),
        ann.consents.ListConsentEvents(policy_service_pb2.ListConsentEventsRequest(parent=theirs)),
        ann.consents.ListConsentEvents(policy_service_pb2.ListConsentEventsRequest(parent=persona)),
    ]:
        refused = await failure(refused_call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "USER_MISMATCH")
    for beyond in (
        ann.publish(persona),
        ann.personas.ListPersonas(persona_service_pb2.ListPersonasRequest(parent="tenants/demo")),
        ann.personas.DeletePersona(persona_service_pb2.DeletePersonaRequest(name=persona)),
    ):
        assert (await failure(beyond)).reason == "PERMISSION_DENIED"


@pytest.mark.parametrize(
    ("held", "asked", "user", "allowed"),
    [
        (("*",), "personas.delete", None, True),
        (("sessions.*",), "sessions.converse", None, True),
        (("sessions.*",), "memories.list", None, False),
        (("sessions.get",), "sessions.converse", None, False),
        ((), "personas.get", None, False),
        (("*",), "personas.delete", "ann", False),
        (("*",), "sessions.converse", "ann", True),
        (("sessions.get",), "sessions.converse", "ann", False),
    ],
)
def test_permissions_are_what_is_held_and_never_more(
    held: tuple[str, ...], asked: str, user: str | None, allowed: bool
) -> None:
    assert Principal("key", "demo", user, held).may(asked) is allowed


@in_session
async def test_health_is_open_to_all_and_names_every_service(hosted: Hosted) -> None:
    nobody = Api(hosted.api.channel, None)
    for name in ("", *SERVICE_NAMES):
        answer = await nobody.health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as missing:
        await nobody.health.Check(health_pb2.HealthCheckRequest(service="no.such.Service"))
    assert missing.value.code() is grpc.StatusCode.NOT_FOUND


@in_session
async def test_health_follows_the_engine_and_the_end_of_the_host(start_host: StartHost) -> None:
    hosted = await start_host()
    watching = hosted.api.health.Watch(health_pb2.HealthCheckRequest(service="personae.v1.SessionService"))
    assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
    hosted.engine.die(EngineDead("gone"))
    assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    hosted.engine.die(None)
    assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
    await hosted.host.stop()
    assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING


@in_session
async def test_production_has_no_reflection_and_needs_keys(start_host: StartHost) -> None:
    hosted = await start_host(profile="production", ledger={"master_key": base64.b64encode(bytes(32)).decode()})
    stub = reflection_pb2_grpc.ServerReflectionStub(hosted.api.channel)
    stream = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    assert await stream.code() is grpc.StatusCode.UNIMPLEMENTED
    session = await hosted.api.session(await hosted.api.persona())
    assert (await hosted.api.say(session, "Hello there."))[-1].HasField("turn_completed")


async def test_keys_are_known_by_their_hash_only() -> None:
    keys: tuple[ApiKey, ...] = KEYS
    authenticator = Authenticator(keys)
    caller = await authenticator.authenticate({"authorization": "bearer service-key-of-the-tests"})
    assert caller.key_id == "service"
    assert "service-key-of-the-tests" not in repr(vars(authenticator))
