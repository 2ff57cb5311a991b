"""Retries, deadlines, metadata and errors of unary calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

import personae_client
from personae.v1 import persona_service_pb2 as pb
from personae.v1 import persona_service_pb2_grpc
from personae_client import (
    FailedPreconditionError,
    InvalidArgumentError,
    PersonaeClient,
    PersonaeError,
    RateLimitedError,
    Tls,
    UnauthenticatedError,
    UnavailableError,
    Violation,
)
from personae_client.transport import CallOptions
from tests.unit.client.server import fail, serving


class Flaky(persona_service_pb2_grpc.PersonaServiceServicer):
    """Fails the first calls as told."""

    def __init__(self, *failures: dict[str, Any]) -> None:
        self.failures = list(failures)
        self.requests: list[Any] = []
        self.metadata: list[dict[str, Any]] = []

    async def _answer(self, request: Any, context: Any) -> pb.Persona:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        if self.failures:
            await fail(context, **self.failures.pop(0))
        return pb.Persona(name="tenants/acme/personas/nadia")

    async def GetPersona(self, request: Any, context: Any) -> pb.Persona:
        return await self._answer(request, context)

    async def CreatePersona(self, request: Any, context: Any) -> pb.Persona:
        return await self._answer(request, context)


UNAVAILABLE = {"code": grpc.StatusCode.UNAVAILABLE}


async def test_an_unavailable_server_is_tried_again() -> None:
    servicer = Flaky(UNAVAILABLE, UNAVAILABLE)
    async with serving(personas=servicer) as client:
        assert (await client.personas.get("x")).name == "tenants/acme/personas/nadia"
    assert len(servicer.requests) == 3


async def test_a_call_that_a_closing_server_cancels_is_tried_again() -> None:
    servicer = Flaky({"code": grpc.StatusCode.CANCELLED}, {**UNAVAILABLE, "reason": "DRAINING", "retry_after_s": 0.001})
    async with serving(personas=servicer) as client:
        await client.personas.get("x")
    assert len(servicer.requests) == 3


async def test_a_mutation_keeps_its_request_id_over_all_attempts() -> None:
    servicer = Flaky(UNAVAILABLE, UNAVAILABLE)
    async with serving(personas=servicer) as client:
        for _ in range(2):
            await client.personas.create("tenants/acme", "nadia", display_name="Nadia", type=pb.PERSONA_TYPE_ASSISTANT)
    first, again, and_again, other = (request.request_id for request in servicer.requests)
    assert first == again == and_again
    assert first
    assert other != first


async def test_attempts_are_bounded() -> None:
    servicer = Flaky(*[UNAVAILABLE] * 9)
    async with serving(personas=servicer, max_attempts=4) as client:
        with pytest.raises(UnavailableError):
            await client.personas.get("x")
    assert len(servicer.requests) == 4


async def test_overload_is_tried_again_when_the_server_says_when() -> None:
    busy = {"code": grpc.StatusCode.RESOURCE_EXHAUSTED, "reason": "ENGINE_OVERLOADED", "retry_after_s": 0.001}
    servicer = Flaky(busy)
    async with serving(personas=servicer) as client:
        await client.personas.get("x")
    assert len(servicer.requests) == 2


async def test_a_retry_time_beyond_the_deadline_is_not_waited_for() -> None:
    busy = {"code": grpc.StatusCode.RESOURCE_EXHAUSTED, "reason": "RATE_LIMITED", "retry_after_s": 3600.0}
    servicer = Flaky(busy)
    async with serving(personas=servicer, timeout_s=30) as client:
        with pytest.raises(RateLimitedError) as caught:
            await client.personas.get("x")
    assert caught.value.retry_after_s == 3600.0
    assert len(servicer.requests) == 1


def test_pauses_grow_are_drawn_at_random_and_honour_the_server() -> None:
    options = CallOptions(backoff_s=1.0, max_backoff_s=8.0)
    for failures, ceiling in ((1, 1.0), (2, 2.0), (4, 8.0), (1000, 8.0)):
        assert ceiling / 2 <= options.pause_s(failures, None) <= ceiling
    told = RateLimitedError("m", code="RESOURCE_EXHAUSTED", retry_after_s=60.0)
    assert options.pause_s(1, told) == 60.0


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARGUMENT", "InvalidArgumentError"),
        ("UNAUTHENTICATED", "UnauthenticatedError"),
        ("PERMISSION_DENIED", "PermissionDeniedError"),
        ("NOT_FOUND", "NotFoundError"),
        ("ALREADY_EXISTS", "AlreadyExistsError"),
        ("FAILED_PRECONDITION", "FailedPreconditionError"),
        ("ABORTED", "ConflictError"),
        ("RESOURCE_EXHAUSTED", "RateLimitedError"),
        ("UNAVAILABLE", "UnavailableError"),
        ("DEADLINE_EXCEEDED", "DeadlineExceededError"),
        ("CANCELLED", "CancelledError"),
        ("UNIMPLEMENTED", "UnimplementedError"),
        ("INTERNAL", "InternalError"),
        ("UNKNOWN", "InternalError"),
        ("DATA_LOSS", "InternalError"),
    ],
)
async def test_every_status_has_its_error(code: str, kind: str) -> None:
    async with serving(personas=Flaky({"code": grpc.StatusCode[code]}), max_attempts=1) as client:
        with pytest.raises(PersonaeError) as caught:
            await client.personas.get("x")
    assert type(caught.value) is getattr(personae_client, kind)
    assert caught.value.code == code


async def test_an_error_carries_the_details_of_its_status() -> None:
    refused = {
        "code": grpc.StatusCode.INVALID_ARGUMENT,
        "message": "the request is wrong",
        "reason": "INVALID_ARGUMENT",
        "metadata": {"key": "value"},
        "fields": {"persona.display_name": "is required"},
    }
    async with serving(personas=Flaky(refused)) as client:
        with pytest.raises(InvalidArgumentError) as caught:
            await client.personas.get("x")
    error = caught.value
    assert (error.reason, error.message, error.metadata) == (
        "INVALID_ARGUMENT",
        "the request is wrong",
        {"key": "value"},
    )
    assert error.field_violations == (Violation("persona.display_name", "is required"),)
    assert str(error) == (
        "INVALID_ARGUMENT (INVALID_ARGUMENT): the request is wrong [persona.display_name: is required]"
    )


async def test_preconditions_that_failed_are_named() -> None:
    refused = {
        "code": grpc.StatusCode.FAILED_PRECONDITION,
        "reason": "REVISION_WITHDRAWN",
        "preconditions": {"revisions/r1": "was withdrawn"},
    }
    async with serving(personas=Flaky(refused)) as client:
        with pytest.raises(FailedPreconditionError) as caught:
            await client.personas.get("x")
    assert caught.value.precondition_violations == (Violation("revisions/r1", "was withdrawn"),)


async def test_the_key_and_extra_headers_travel_as_metadata() -> None:
    servicer = Flaky()
    async with serving(personas=servicer, api_key="k", metadata=lambda: {"Traceparent": "00-a-b-01"}) as client:
        await client.personas.get("x")
    (sent,) = servicer.metadata
    assert sent["authorization"] == "Bearer k"
    assert sent["traceparent"] == "00-a-b-01"


@pytest.mark.parametrize(
    "target", ["127.0.0.1:7400", "localhost:1", "[::1]:7400", "unix:/run/p.sock", "dns:///localhost:7400"]
)
async def test_a_key_may_travel_in_the_clear_on_this_machine(target: str) -> None:
    await PersonaeClient(target, api_key="k").close()


@pytest.mark.parametrize("target", ["10.0.0.7:7400", "example.com:443", "dns:///example.com:7400"])
async def test_nothing_travels_in_the_clear_beyond_it_unless_allowed(target: str) -> None:
    for credential in ({}, {"api_key": "k"}, {"token": lambda: "t"}):
        with pytest.raises(ValueError, match="in the clear"):
            PersonaeClient(target, **credential)
    await PersonaeClient(target, api_key="k", allow_plaintext=True).close()
    await PersonaeClient(target, api_key="k", tls=Tls()).close()


async def test_arguments_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not both"):
        PersonaeClient(api_key="k", token=lambda: "t")
    with pytest.raises(ValueError, match="not both"):
        PersonaeClient(tls=Tls(), credentials=grpc.ssl_channel_credentials())
    with pytest.raises(ValueError, match="both or none"):
        Tls(certificate_file="client.crt")
    with pytest.raises(FileNotFoundError):
        PersonaeClient(tls=Tls(ca_file=tmp_path / "none.crt"))


EXPIRED = {"code": grpc.StatusCode.UNAUTHENTICATED, "reason": "TOKEN_EXPIRED"}


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_every_attempt_asks_for_a_token_and_an_expired_one_is_replaced(asynchronous: bool) -> None:
    given = iter(("t1", "t2", "t3"))

    async def later() -> str:
        return next(given)

    servicer = Flaky(EXPIRED, UNAVAILABLE)
    async with serving(personas=servicer, token=later if asynchronous else lambda: next(given)) as client:
        await client.personas.get("x")
    assert [sent["authorization"] for sent in servicer.metadata] == ["Bearer t1", "Bearer t2", "Bearer t3"]


async def test_a_provider_that_has_only_expired_tokens_is_given_up() -> None:
    servicer = Flaky(*[EXPIRED] * 9)
    async with serving(personas=servicer, token=lambda: "old", max_attempts=3) as client:
        with pytest.raises(UnauthenticatedError):
            await client.personas.get("x")
    assert len(servicer.metadata) == 3


@pytest.mark.parametrize(
    ("refused", "options"),
    [
        ({"code": grpc.StatusCode.UNAUTHENTICATED, "reason": "TOKEN_INVALID"}, {"token": lambda: "t"}),
        (EXPIRED, {"api_key": "a token that nobody replaces"}),
    ],
)
async def test_a_refusal_that_a_new_token_does_not_help_is_raised_at_once(
    refused: dict[str, Any], options: dict[str, Any]
) -> None:
    servicer = Flaky(refused)
    async with serving(personas=servicer, **options) as client:
        with pytest.raises(UnauthenticatedError):
            await client.personas.get("x")
    assert len(servicer.metadata) == 1


async def test_what_a_token_provider_raises_is_raised() -> None:
    def fail() -> str:
        raise LookupError("no identity here")

    async with serving(personas=Flaky(), token=fail) as client:
        with pytest.raises(LookupError, match="no identity here"):
            await client.personas.get("x")
        with pytest.raises(LookupError, match="no identity here"):
            await client.sessions.converse("s", "hello").collect()


async def test_with_options_changes_options_and_keeps_the_connection() -> None:
    servicer = Flaky(*[UNAVAILABLE] * 9)
    async with serving(personas=servicer) as client:
        with pytest.raises(UnavailableError):
            await client.with_options(max_attempts=2).personas.get("x")
    assert len(servicer.requests) == 2
