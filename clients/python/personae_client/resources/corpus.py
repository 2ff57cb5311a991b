"""What a persona itself has said and written."""

from __future__ import annotations

from collections.abc import AsyncIterator

from personae.v1 import corpus_service_pb2 as pb
from personae.v1.corpus_service_pb2_grpc import CorpusServiceStub
from personae_client.transport import Transport, new_request_id, pages


class Corpus:
    """CorpusService. Every method raises PersonaeError; `parent` is a persona's full name."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = CorpusServiceStub(transport.channel)

    async def create(self, parent: str, document: pb.Document, *, request_id: str | None = None) -> pb.Document:
        """Store a document; it is durable on return and can be cited soon after."""
        request = pb.CreateDocumentRequest(parent=parent, document=document, request_id=request_id or new_request_id())
        return await self._transport.unary(self._stub.CreateDocument, request)

    async def get(self, name: str) -> pb.Document:
        """One document with its text."""
        return await self._transport.unary(self._stub.GetDocument, pb.GetDocumentRequest(name=name))

    async def list(self, parent: str, *, page_size: int = 0) -> AsyncIterator[pb.Document]:
        """A persona's documents without their texts, newest first; pages are fetched as needed."""

        async def fetch(token: str) -> pb.ListDocumentsResponse:
            request = pb.ListDocumentsRequest(parent=parent, page_size=page_size, page_token=token)
            return await self._transport.unary(self._stub.ListDocuments, request)

        async for page in pages(fetch):
            for document in page.documents:
                yield document

    async def delete(self, name: str) -> None:
        """Delete a document for good. Deleting twice is the same as once."""
        await self._transport.unary(self._stub.DeleteDocument, pb.DeleteDocumentRequest(name=name))

    async def search(self, parent: str, query: str, *, page_size: int = 0) -> pb.SearchPassagesResponse:
        """Passages that bear on a query, as a turn would cite them."""
        request = pb.SearchPassagesRequest(parent=parent, query=query, page_size=page_size)
        return await self._transport.unary(self._stub.SearchPassages, request)
