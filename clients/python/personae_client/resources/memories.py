"""What a persona remembers of one person."""

from __future__ import annotations

from collections.abc import AsyncIterator

from personae.v1 import memory_service_pb2 as pb
from personae.v1.memory_service_pb2_grpc import MemoryServiceStub
from personae_client.transport import Transport, new_request_id, pages


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

    async def create(self, parent: str, memory: pb.Memory, *, request_id: str | None = None) -> pb.Memory:
        """Store one memory; it is durable on return and searchable soon after."""
        request = pb.CreateMemoryRequest(parent=parent, memory=memory, request_id=request_id or new_request_id())
        return await self._transport.unary(self._stub.CreateMemory, request)

    async def forget(self, name: str) -> None:
        """Forget one memory at once and for good. Forgetting twice is the same as once."""
        await self._transport.unary(self._stub.ForgetMemory, pb.ForgetMemoryRequest(name=name))
