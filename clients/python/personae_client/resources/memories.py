"""What a persona remembers of one person."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

import grpc.aio
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import duration_pb2, field_mask_pb2

from personae.v1 import memory_service_pb2 as pb
from personae.v1.memory_service_pb2_grpc import MemoryServiceStub
from personae_client.errors import DeadlineExceededError, InternalError, error_from_rpc
from personae_client.transport import Transport, new_request_id, pages

_WAIT_S: Final = 20.0


class Memories:
    """MemoryService. Every method raises PersonaeError; `parent` is `{persona}/users/{user}`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = MemoryServiceStub(transport.channel)

    async def list(self, parent: str, *, page_size: int = 0) -> AsyncIterator[pb.Memory]:
        """A user's memories, newest first; pages are fetched as needed."""

        async def fetch(token: str) -> pb.ListMemoriesResponse:
            return await self._page(parent, page_size, token)

        async for page in pages(fetch):
            for memory in page.memories:
                yield memory

    async def pending_index_count(self, parent: str) -> int:
        """Memories of this user that are stored but can't be recalled yet."""
        return (await self._page(parent, 1, "")).pending_index_count

    async def _page(self, parent: str, page_size: int, token: str) -> pb.ListMemoriesResponse:
        request = pb.ListMemoriesRequest(parent=parent, page_size=page_size, page_token=token)
        return await self._transport.unary(self._stub.ListMemories, request)

    async def search(self, parent: str, query: str, *, page_size: int = 0) -> pb.SearchMemoriesResponse:
        """Rank a user's memories for a query, as a turn's recall would."""
        request = pb.SearchMemoriesRequest(parent=parent, query=query, page_size=page_size)
        return await self._transport.unary(self._stub.SearchMemories, request)

    async def explain(self, parent: str, query: str, *, page_size: int = 0) -> pb.MemoryServiceExplainResponse:
        """Why a search brings what it brings: places in the arms, the ranker's parts, and what was left out."""
        request = pb.MemoryServiceExplainRequest(parent=parent, query=query, page_size=page_size)
        return await self._transport.unary(self._stub.Explain, request)

    async def profile(self, user: str) -> pb.Profile:
        """The card of what is known of a user, as it stands in a new session's prompts; `user` is a full name."""
        return await self._transport.unary(self._stub.GetProfile, pb.GetProfileRequest(name=f"{user}/profile"))

    async def create(self, parent: str, memory: pb.Memory, *, request_id: str | None = None) -> pb.Memory:
        """Store one memory; it is durable on return and searchable soon after."""
        request = pb.CreateMemoryRequest(parent=parent, memory=memory, request_id=request_id or new_request_id())
        return await self._transport.unary(self._stub.CreateMemory, request)

    async def get(self, name: str) -> pb.Memory:
        """One memory."""
        return await self._transport.unary(self._stub.GetMemory, pb.GetMemoryRequest(name=name))

    async def update(
        self, memory: pb.Memory, *, update_mask: Sequence[str] = (), request_id: str | None = None
    ) -> pb.Memory:
        """Rectify, pin or restrict a memory, or change when it expires.

        Args:
            memory: its name and the new values; with an etag, only that state is changed.
            update_mask: fields to change, such as `text`; none are those that are set.
        """
        request = pb.UpdateMemoryRequest(
            memory=memory,
            update_mask=field_mask_pb2.FieldMask(paths=update_mask),
            request_id=request_id or new_request_id(),
        )
        return await self._transport.unary(self._stub.UpdateMemory, request)

    def export(self, parent: str) -> MemoryExport:
        """All that is held of a user: iterate over it for JSON lines, then read its `record`."""
        return MemoryExport(self._transport, parent)

    async def erase(
        self, parent: str, *, memories: Sequence[str] = (), reason: str = "", request_id: str | None = None
    ) -> ErasureOperation:
        """Begin to erase a user, or only the named memories and what rests on them.

        It goes on whether or not anybody waits; `await operation.wait()` for its proof.

        Args:
            reason: for the record; must not name the person.
        """
        request = pb.EraseMemoriesRequest(
            parent=parent, memories=memories, reason=reason, request_id=request_id or new_request_id()
        )
        return ErasureOperation(self._transport, await self._transport.unary(self._stub.EraseMemories, request))

    def erasure(self, name: str) -> ErasureOperation:
        """The handle of an erasure by its operation's name, `tenants/{tenant}/operations/{operation}`."""
        return ErasureOperation(self._transport, operations_pb2.Operation(name=name))

    async def forget(self, name: str) -> None:
        """Forget one memory at once and for good. Forgetting twice is the same as once."""
        await self._transport.unary(self._stub.ForgetMemory, pb.ForgetMemoryRequest(name=name))


class MemoryExport:
    """The JSON lines of an export, once, in order.

    Attributes:
        record: what it held, signed; set once the last line was read.
    """

    def __init__(self, transport: Transport, parent: str) -> None:
        self._transport = transport
        self._stub = MemoryServiceStub(transport.channel)
        self._parent = parent
        self.record: pb.ExportRecord | None = None

    async def __aiter__(self) -> AsyncIterator[str]:
        """Each line, without its line break.

        Raises:
            PersonaeError: as the server says; what was read is then not all. Begin again.
        """
        digest = hashlib.sha256()
        call = self._stub.ExportMemories(
            pb.ExportMemoriesRequest(parent=self._parent), metadata=await self._transport.metadata()
        )
        try:
            async for message in call:
                if message.HasField("record"):
                    self.record = message.record
                else:
                    digest.update(message.json_line.encode() + b"\n")
                    yield message.json_line
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from None
        finally:
            call.cancel()
        if self.record is None or self.record.sha256 != digest.digest():
            raise InternalError("the export ended before its record, or is not what the record says", code="INTERNAL")


class ErasureOperation:
    """An erasure that was begun.

    Attributes:
        name: `tenants/{tenant}/operations/{operation}`; `Memories.erasure` finds it again.
        done: it has ended, as far as this handle knows.
    """

    def __init__(self, transport: Transport, operation: operations_pb2.Operation) -> None:
        self._transport = transport
        self._stub = operations_pb2_grpc.OperationsStub(transport.channel)
        self._operation = operation

    @property
    def name(self) -> str:
        """See the class."""
        return str(self._operation.name)

    @property
    def done(self) -> bool:
        """See the class."""
        return bool(self._operation.done)

    @property
    def metadata(self) -> pb.EraseMemoriesMetadata:
        """Which step ran when this was last heard of."""
        found = pb.EraseMemoriesMetadata()
        self._operation.metadata.Unpack(found)
        return found

    async def wait(self, *, timeout_s: float | None = None) -> pb.ErasureProof:
        """The proof, once all is erased; a step that fails is tried again by the server.

        Raises:
            DeadlineExceededError: it was not done after `timeout_s`; it goes on.
            PersonaeError: the operation can't be read.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        # Less than the deadline of one call.
        longest = min(_WAIT_S, self._transport.options.timeout_s / 2)
        while not self.done:
            left = longest if until is None else min(longest, until - time.monotonic())
            if left <= 0:
                raise DeadlineExceededError("the erasure is not done yet; it goes on", code="DEADLINE_EXCEEDED")
            timeout = duration_pb2.Duration()
            timeout.FromMilliseconds(max(1, int(left * 1000)))
            request = operations_pb2.WaitOperationRequest(name=self.name, timeout=timeout)
            self._operation = await self._transport.unary(self._stub.WaitOperation, request)
            await asyncio.sleep(0)
        response = pb.EraseMemoriesResponse()
        self._operation.response.Unpack(response)
        return response.proof
