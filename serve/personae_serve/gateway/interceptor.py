"""The one interceptor: trace, authenticate, authorise, validate, and turn errors into statuses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import grpc
import protovalidate
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from personae_runtime.errors import DOMAIN, Code, InvalidArgument, PermissionDenied, PersonaeError
from personae_runtime.telemetry import names
from personae_runtime.telemetry.setup import Telemetry, extract_context
from personae_serve.gateway.auth import CALLER, PERMISSIONS, PUBLIC, Authenticator
from personae_serve.gateway.peers import RelayedError

_log = structlog.get_logger(__name__)

# A status travels in trailing metadata, of which gRPC clients take 8 KiB.
_MAX_VIOLATIONS = 16
_MAX_LISTED = 4

Behaviour = Callable[[Any, Any], Awaitable[Any]]


def to_status(error: PersonaeError) -> status_pb2.Status:
    """`google.rpc.Status` of an error: ErrorInfo always, further details where they apply."""
    if isinstance(error, RelayedError):
        return error.status
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(error.retry_after_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if error.violations and error.code is Code.INVALID_ARGUMENT:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=path, description=text)
                    for path, text in error.violations
                ]
            )
        )
    elif error.violations and error.code is Code.FAILED_PRECONDITION:
        details.append(
            error_details_pb2.PreconditionFailure(
                violations=[
                    error_details_pb2.PreconditionFailure.Violation(
                        type=error.reason, subject=subject, description=text
                    )
                    for subject, text in error.violations
                ]
            )
        )
    elif error.violations and error.code is Code.RESOURCE_EXHAUSTED:
        details.append(
            error_details_pb2.QuotaFailure(
                violations=[
                    error_details_pb2.QuotaFailure.Violation(subject=subject, description=text)
                    for subject, text in error.violations
                ]
            )
        )
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code.value), message=error.message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def validate(request: Message) -> None:
    """Raise InvalidArgument with the violations of the request's protovalidate rules, the first of them if many."""
    found = protovalidate.collect_violations(request)
    if not found:
        return
    violations = [(_path(violation.proto.field), violation.proto.message) for violation in found[:_MAX_VIOLATIONS]]
    listed = "; ".join(f"{path or 'request'}: {text}" for path, text in violations[:_MAX_LISTED])
    more = f"; and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else ""
    raise InvalidArgument(f"the request is not valid: {listed}{more}", violations=tuple(violations))


def _path(path: Any) -> str:
    """A `buf.validate.FieldPath` as `BadRequest` wants it: `definition.exemplars[1].reply`."""
    if path is None:
        return ""
    return ".".join(
        element.field_name if element.subscript is None else f"{element.field_name}[{element.subscript.value}]"
        for element in path.elements
    )


class GatewayInterceptor(grpc.aio.ServerInterceptor):
    """Stands before every method of the server."""

    def __init__(self, authenticator: Authenticator, telemetry: Telemetry) -> None:
        self._authenticator = authenticator
        self._telemetry = telemetry

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or PERMISSIONS.get(method) == PUBLIC:
            return handler
        common = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": _relaying(handler.response_serializer),
        }
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(self._guard(method, handler.unary_unary), **common)
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                self._guard(method, cast(Behaviour, handler.unary_stream)), **common
            )
        raise AssertionError(f"{method}: request streams are not part of this API")

    def _guard(self, method: str, behaviour: Behaviour) -> Behaviour:
        async def guarded(request: Message, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            received = context.invocation_metadata() or ()
            metadata = {key: value for key, value in received if isinstance(value, str)}
            attributes = {names.ATTR_RPC_SYSTEM_NAME: "grpc", names.ATTR_RPC_METHOD: method.lstrip("/")}
            begun = time.monotonic()
            code = grpc.StatusCode.OK
            with self._telemetry.tracer.start_as_current_span(
                method.lstrip("/"),
                context=extract_context(received),
                kind=SpanKind.SERVER,
                attributes=attributes,
                record_exception=False,
                set_status_on_exception=False,
            ) as span:
                try:
                    principal = await self._authenticator.authenticate(metadata)
                    permission = PERMISSIONS.get(method)
                    if permission is None or not principal.may(permission):
                        raise PermissionDenied(
                            f"the key lacks permission {permission or method!r}",
                            metadata={"permission": permission or ""},
                        )
                    span.set_attribute(names.ATTR_TENANT, principal.tenant)
                    span.set_attribute(names.ATTR_CALLER, principal.key_id)
                    validate(request)
                    CALLER.set(principal)
                    return await behaviour(request, context)
                except PersonaeError as error:
                    code = grpc.StatusCode[error.code.value]
                    _mark(span, error.reason)
                    await context.abort_with_status(rpc_status.to_status(to_status(error)))
                except asyncio.CancelledError:
                    code = grpc.StatusCode.CANCELLED
                    raise
                except grpc.aio.AbortError:
                    raise
                except Exception as error:
                    code = grpc.StatusCode.INTERNAL
                    _mark(span, "INTERNAL")
                    _log.exception("rpc_failed", method=method)
                    hidden = PersonaeError(
                        "the server failed; its log has the details",
                        metadata={"error": type(error).__name__},
                    )
                    await context.abort_with_status(rpc_status.to_status(to_status(hidden)))
                finally:
                    span.set_attribute(names.ATTR_RPC_RESPONSE_STATUS_CODE, code.name)
                    self._telemetry.rpc_duration.record(
                        time.monotonic() - begun, {**attributes, names.ATTR_RPC_RESPONSE_STATUS_CODE: code.name}
                    )

        return guarded


def _relaying(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
    """The serializer, for messages that may be another gateway's, serialized already."""
    if serialize is None:
        return None
    return lambda message: message if type(message) is bytes else serialize(message)


def _mark(span: trace.Span, reason: str) -> None:
    span.set_status(StatusCode.ERROR, reason)
    span.set_attribute(names.ATTR_ERROR_TYPE, reason)
