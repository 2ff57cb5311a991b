"""`google.longrunning.Operations` over erasures: `tenants/{tenant}/operations/{operation}`.

A user token sees its own user's operations only, as any other caller sees its own tenant's.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NoReturn
from uuid import UUID

import grpc
import structlog
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import empty_pb2

from personae.v1 import memory_service_pb2
from personae_runtime import names
from personae_runtime.errors import FailedPrecondition, NotFound, PermissionDenied
from personae_runtime.ledger.erasure import STEPS, Eraser, Erasure, ErasureLedger, ErasureLog
from personae_runtime.ledger.vault import Vault
from personae_serve import proofs
from personae_serve.gateway import convert
from personae_serve.gateway.auth import CALLER
from personae_serve.gateway.servicers import _Api, _page_size
from personae_serve.stores import through_outage

_log = structlog.get_logger(__name__)

_LONGEST_WAIT_S: Final = 300.0
_LOOK_S: Final = 0.25
_WORDS: Final = {
    "": "waiting",
    "key": "destroying the key",
    "ledger": "erasing from the ledger",
    "index": "erasing from the memory index",
    "caches": "waiting for every gateway to let go",
    "proof": "counting what is left",
}

Context = grpc.aio.ServicerContext[Any, Any]


def operation(erasure: Erasure) -> operations_pb2.Operation:
    """An erasure as an operation; one that fails is tried again, so none is done with an error."""
    words = "done" if erasure.done_at is not None else _WORDS[erasure.step]
    if erasure.problem and erasure.done_at is None:
        words = f"{words}; the last attempt failed with {erasure.problem}"
    metadata = memory_service_pb2.EraseMemoriesMetadata(
        step=words,
        steps_done=erasure.steps_done,
        steps_total=len(STEPS),
        create_time=convert.timestamp(erasure.created_at),
    )
    message = operations_pb2.Operation(
        name=f"tenants/{erasure.tenant}/operations/{erasure.erasure_id}", done=erasure.done_at is not None
    )
    message.metadata.Pack(metadata)
    if erasure.done_at is not None and erasure.proof is not None:
        proof = memory_service_pb2.ErasureProof.FromString(erasure.proof)
        message.response.Pack(memory_service_pb2.EraseMemoriesResponse(proof=proof))
    return message


async def replay(log: ErasureLog, ledger: ErasureLedger, eraser: Eraser, vault: Vault) -> int:
    """Before anything is served: make unreadable what was erased and came back with a restore; how many erasures."""
    await through_outage(ledger.fill_scopes)
    lines = await asyncio.to_thread(log.lines)
    count = 0
    for line in lines:
        try:
            proof = proofs.from_json(line.decode())
            known = proofs.holds(proof, vault.public_key)
            erasure_id, memory_ids = UUID(proof.erasure_id), [UUID(one) for one in proof.memory_ids]
        except ValueError:
            known = False
        if not known:
            # Nobody without the key may have something erased.
            _log.error("erasure_log_line_refused")
            continue
        created_at = convert.from_timestamp(proof.request_time)
        arguments = (erasure_id, proof.scope, memory_ids, proof.reason, created_at)
        count += await through_outage(lambda arguments=arguments: ledger.take_up(*arguments))  # type: ignore[misc]
    for erasure in await through_outage(ledger.unfinished):
        # Also what a crash cut off: it is unreadable before the first call comes in.
        await through_outage(lambda erasure=erasure: eraser.erase_rows(erasure))  # type: ignore[misc]
    return count


def erasure_log(configured: Path | None, data_dir: Path) -> ErasureLog:
    """The log that the settings name."""
    return ErasureLog(configured or data_dir / "erasures.jsonl")


class OperationsServicer(operations_pb2_grpc.OperationsServicer):  # type: ignore[misc]  # ships without types
    """`google.longrunning.Operations`."""

    def __init__(self, ledger: ErasureLedger, eraser: Eraser, vault: Vault) -> None:
        self._ledger = ledger
        self._eraser = eraser
        self._api = _Api(vault)

    async def _erasure(self, name: str) -> Erasure:
        parsed = names.parse("operation", name)
        caller = CALLER.get()
        caller.require_tenant(parsed)
        erasure = await self._ledger.get(parsed.tenant, UUID(parsed.operation))
        if caller.user is not None and not await self._ledger.concerns(erasure, caller.user):
            # As if it were not there: whether somebody else's exists is theirs to know.
            raise NotFound(f"{name} does not exist")
        return erasure

    async def GetOperation(
        self, request: operations_pb2.GetOperationRequest, context: Context
    ) -> operations_pb2.Operation:
        return operation(await self._erasure(request.name))

    async def WaitOperation(
        self, request: operations_pb2.WaitOperationRequest, context: Context
    ) -> operations_pb2.Operation:
        asked = request.timeout.seconds + request.timeout.nanos / 1e9 if request.HasField("timeout") else None
        left = context.time_remaining()
        bounds = [bound for bound in (asked, None if left is None else left - 0.1) if bound is not None]
        loop = asyncio.get_running_loop()
        until = loop.time() + min([_LONGEST_WAIT_S, *bounds])
        while True:
            erasure = await self._erasure(request.name)
            left_s = until - loop.time()
            if erasure.done_at is not None or left_s <= 0:
                return operation(erasure)
            # It may be another gateway that carries it out.
            await self._eraser.ended(min(_LOOK_S, left_s))

    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, context: Context
    ) -> operations_pb2.ListOperationsResponse:
        caller = CALLER.get()
        parent = names.parse("tenant", request.name)
        caller.require_tenant(parent)
        if caller.user is not None:
            raise PermissionDenied("operations are listed by a service", reason="USER_MISMATCH")
        size = _page_size(request.page_size)
        place = self._api.page_place(request.page_token, "ListOperations", request.name)
        before = (datetime.fromisoformat(place[0]), UUID(place[1])) if place else None
        rows = await self._ledger.list_erasures(parent.tenant, before=before, limit=size + 1)
        rows, token = self._api.page(
            rows,
            size,
            "ListOperations",
            request.name,
            lambda row: [row.created_at.isoformat(), str(row.erasure_id)],
        )
        return operations_pb2.ListOperationsResponse(operations=[operation(row) for row in rows], next_page_token=token)

    async def DeleteOperation(
        self, request: operations_pb2.DeleteOperationRequest, context: Context
    ) -> empty_pb2.Empty:
        erasure = await self._erasure(request.name)
        await self._ledger.delete(erasure.tenant, erasure.erasure_id)
        return empty_pb2.Empty()

    async def CancelOperation(self, request: operations_pb2.CancelOperationRequest, context: Context) -> NoReturn:
        await self._erasure(request.name)
        raise FailedPrecondition("an erasure can't be cancelled", reason="OPERATION_NOT_CANCELLABLE")
