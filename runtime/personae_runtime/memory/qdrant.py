"""The server index: a Qdrant cluster that all hosts of one ledger share.

Points, vectors and payload are those of the embedded index. The collection is laid
out beforehand (`qdrant_layout`) and found under an alias, so that another one can
take its place between two calls.

Every write waits until it is applied. Qdrant logs it before, on each replica that
takes part, so an acknowledged write survives the death of the client and of the
server's processes. Writes have medium ordering: one replica puts them in order for
all, so that a point which one writer deletes and another replaces ends the same
everywhere (https://qdrant.tech/documentation/scaling/consistency-guarantees/).

qdrant-client loads grpc and takes seconds to import: it is imported when an index is
opened.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from hashlib import blake2b
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID

from personae_runtime.config import QdrantSettings
from personae_runtime.errors import ConfigError, FailedPrecondition, PersonaeError, Unavailable
from personae_runtime.memory.index import (
    DENSE,
    EXPIRES_AT,
    KIND,
    LAYOUT,
    LEXICAL,
    SCOPE,
    VALID_FROM,
    VALID_TO,
    IndexHit,
    MemoryPoint,
    Place,
    PointKind,
    SparseVector,
    checked_dense,
    checked_sparse,
    hits,
    payload_of,
    places,
)

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient, models

T = TypeVar("T")

BATCH: Final = 500
"""Points of one write at most; the collection's strict mode refuses more."""

MOST_HITS: Final = 1000
"""Hits of one arm at most, in the same way."""


class IndexMissing(ConfigError):
    """The server has no such collection."""

    reason = "INDEX_MISSING"


class IndexLayoutWrong(ConfigError):
    """The collection is laid out in another way than this version or its settings want."""

    reason = "INDEX_LAYOUT"


class Connection:
    """A client of the server that these settings name; what it raises are the runtime's errors.

    Raises:
        FailedPrecondition: used while it is not open.
    """

    def __init__(self, settings: QdrantSettings) -> None:
        self.settings: Final = settings
        self._client: AsyncQdrantClient | None = None

    async def open(self) -> None:
        """Make the client; nothing is sent yet.

        Raises:
            ConfigError: qdrant-client is not installed, or the file of authorities can't be read.
        """
        if self._client is not None:
            return
        try:
            # In a thread: a loop that serves would stand still for the import.
            module = await asyncio.to_thread(import_module, "qdrant_client")
        except ImportError as error:
            raise ConfigError(
                f'memory.qdrant.url needs qdrant-client: pip install "personae[qdrant]" ({error})'
            ) from error
        settings = self.settings
        scheme, host, port = settings.address
        # A server that comes back is to be found again at once.
        options: dict[str, Any] = {"grpc.initial_reconnect_backoff_ms": 100, "grpc.max_reconnect_backoff_ms": 1000}
        if settings.ca is not None:
            try:
                options["root_certificates"] = await asyncio.to_thread(settings.ca.read_bytes)
            except OSError as error:
                raise ConfigError(f"memory.qdrant.ca can't be read: {error}") from error
        self._client = module.AsyncQdrantClient(
            url=f"{scheme}://[{host}]" if ":" in host else f"{scheme}://{host}",
            grpc_port=port,
            prefer_grpc=True,
            # As a header: the client warns of a key without TLS, which the settings have judged already.
            headers={} if settings.api_key is None else {"api-key": settings.api_key.get_secret_value()},
            timeout=math.ceil(settings.timeout_s),
            grpc_options=options,
            pool_size=1,
            # It would ask the REST port, which is not used.
            check_compatibility=False,
        )

    async def call(self, call: Callable[[AsyncQdrantClient], Awaitable[T]], *, timeout_s: float | None = None) -> T:
        """The result of one call, within `timeout_s` or else `settings.timeout_s` seconds.

        Raises:
            IndexMissing: no such collection.
            ConfigError: the server refuses the key (INDEX_UNAUTHORIZED) or the request (INDEX_REFUSED).
            Unavailable: it is away, late or failing (INDEX_UNAVAILABLE).
        """
        if self._client is None:
            raise FailedPrecondition("the memory index is not open: await open() first", reason="INDEX_CLOSED")
        try:
            async with asyncio.timeout(timeout_s or self.settings.timeout_s):
                return await call(self._client)
        except PersonaeError:
            raise
        except Exception as error:
            raise self._explained(error) from error

    async def close(self) -> None:
        """Close the client. Safe to call twice."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _explained(self, error: Exception) -> PersonaeError:
        # The client lets grpc's errors through; this module knows them by the names of their codes.
        code = getattr(error, "code", None)
        name = code().name if callable(code) else type(error).__name__
        where = f"the Qdrant server at {self.settings.url}"
        said = str(getattr(error, "details", lambda: "")() or "")
        metadata = {"url": str(self.settings.url), "collection": self.settings.collection}
        match name:
            case "NOT_FOUND":
                return IndexMissing(
                    f"{where} has no collection {self.settings.collection}: run `personae memory init`",
                    metadata=metadata,
                )
            case "UNAUTHENTICATED" | "PERMISSION_DENIED":
                return ConfigError(
                    f"{where} refuses memory.qdrant.api_key", reason="INDEX_UNAUTHORIZED", metadata=metadata
                )
            case "INVALID_ARGUMENT" | "FAILED_PRECONDITION" | "UNIMPLEMENTED":
                return ConfigError(
                    f"{where} refuses a request, see `personae memory check`: {said}",
                    reason="INDEX_REFUSED",
                    metadata=metadata,
                )
        wait = getattr(error, "retry_after_s", None)
        return Unavailable(
            f"{where} does not answer: {name}",
            reason="INDEX_UNAVAILABLE",
            metadata=metadata,
            retry_after_s=float(wait) if wait else 1.0,
        )


def collections_of(alias: str) -> re.Pattern[str]:
    """Matches the names of an alias's collections; the first group is the number."""
    return re.compile(rf"{re.escape(alias)}_v\d+_(\d+)")


def shard_key(scope: str, shard_keys: int) -> str | None:
    """The shard key that a scope's points lie under; None without shard keys."""
    if not shard_keys:
        return None
    return shard_key_names(shard_keys)[int.from_bytes(blake2b(scope.encode(), digest_size=8).digest()) % shard_keys]


def shard_key_names(shard_keys: int) -> list[str]:
    """All shard keys, in order."""
    return [f"scopes-{number:04d}" for number in range(shard_keys)]


class QdrantMemoryIndex:
    """`MemoryIndex` on a Qdrant server.

    With shard keys a point must keep its scope, as a ledger's memories do: one that
    came back in another scope would stay under the old key as well.

    Besides the errors named, every call raises FailedPrecondition when the index is
    not open, ConfigError when the server refuses key or request, IndexMissing when the
    collection has gone, and Unavailable (INDEX_UNAVAILABLE, with `retry_after_s`) when
    the server is away, late or failing; whether a write then took effect is unknown.

    Args:
        settings: with `url`.
        collection: instead of the one under the alias; for one that is being built.
    """

    def __init__(self, settings: QdrantSettings, *, collection: str | None = None) -> None:
        self._settings = settings
        self._collection = collection or settings.collection
        self._connection = Connection(settings)

    async def open(self) -> None:
        """Connect, and see that the collection is there and laid out as this version wants it.

        Raises:
            IndexMissing: it is not there; `personae memory init` makes it.
            IndexLayoutWrong: points would be stored or found in another way; `personae memory migrate` helps.
        """
        await self._connection.open()
        try:
            info = await self._connection.call(lambda client: client.get_collection(self._collection))
            metadata = info.config.metadata or {}
            found = (metadata.get("layout"), metadata.get("shard_keys"))
            wanted = (LAYOUT, self._settings.shard_keys)
            if found != wanted:
                raise IndexLayoutWrong(
                    f"the collection {self._collection} has layout and shard keys {found}, wanted are {wanted}: "
                    "run `personae memory migrate`",
                    metadata={"collection": self._collection},
                )
        except BaseException:
            await self.close()
            raise

    async def upsert(self, points: Sequence[MemoryPoint]) -> None:
        """Insert or replace points by id, some hundred at a time.

        Raises:
            InvalidArgument: a vector is not finite, has the wrong length, or
                repeats a sparse index; nothing was written.
        """
        by_key: defaultdict[str | None, list[models.PointStruct]] = defaultdict(list)
        for point in {point.memory_id: point for point in points}.values():
            by_key[shard_key(point.scope, self._settings.shard_keys)].append(_to_point(point))
        for key, made in by_key.items():
            for first in range(0, len(made), BATCH):
                await self._write(
                    partial(_upsert, self._collection, made[first : first + BATCH], key, timeout=self._server_timeout)
                )

    async def delete(self, memory_ids: Sequence[UUID]) -> None:
        """Remove points; unknown ids are ignored."""
        from qdrant_client import models

        for first in range(0, len(memory_ids), BATCH):
            batch = models.PointIdsList(points=[str(memory_id) for memory_id in memory_ids[first : first + BATCH]])
            await self._delete(batch)

    async def delete_scope(self, scope: str) -> None:
        """Remove every point of a scope."""
        from qdrant_client import models

        where = models.Filter(must=[_equals(SCOPE, scope)])
        await self._delete(models.FilterSelector(filter=where))

    async def flush(self) -> None:
        """Nothing is left to do: every write waited for its acknowledgement."""
        await self._connection.call(_nothing)

    async def search(
        self,
        scope: str,
        sparse: SparseVector | None,
        dense: Sequence[float] | None,
        *,
        limit: int,
        now: float,
        kind: PointKind | None = None,
        during: tuple[float, float] | None = None,
    ) -> list[IndexHit]:
        """See `MemoryIndex.search`; MOST_HITS bounds `limit`.

        Raises:
            InvalidArgument: a vector is not finite or has the wrong length.
        """
        from qdrant_client import models

        if limit < 1 or (sparse is None and dense is None):
            return []
        in_scope = _equals(SCOPE, scope)
        must: list[models.Condition] = [in_scope, models.FieldCondition(key=EXPIRES_AT, range=models.Range(gt=now))]
        if kind is not None:
            must.append(_equals(KIND, kind.value))
        if during is not None:
            must.append(models.FieldCondition(key=VALID_FROM, range=models.Range(lte=during[1])))
            must.append(models.FieldCondition(key=VALID_TO, range=models.Range(gt=during[0])))
        key = shard_key(scope, self._settings.shard_keys)

        def request(query: list[float] | models.SparseVector, using: str, params: models.SearchParams) -> Any:
            return models.QueryRequest(
                query=models.NearestQuery(nearest=query),
                using=using,
                filter=models.Filter(must=must),
                params=params,
                limit=min(limit, MOST_HITS),
                shard_key=key,
                with_payload=False,
            )

        requests: list[models.QueryRequest] = []
        if sparse is not None:
            indices, values = checked_sparse(sparse)
            # Other people's words neither shift a ranking nor show through it.
            per_scope = models.SearchParams(idf=models.IdfCorpusParams(corpus=models.Filter(must=[in_scope])))
            requests.append(request(models.SparseVector(indices=indices, values=values), LEXICAL, per_scope))
        if dense is not None:
            # Found by the quantised vectors, ranked by the vectors themselves.
            exact_scores = models.SearchParams(quantization=models.QuantizationSearchParams(rescore=True))
            requests.append(request(checked_dense(dense), DENSE, exact_scores))
        timeout_s = self._settings.search_timeout_s
        answers = await self._connection.call(
            lambda client: client.query_batch_points(self._collection, requests, timeout=math.ceil(timeout_s)),
            timeout_s=timeout_s,
        )
        found = [_places(answer.points) for answer in answers]
        return hits(found.pop(0) if sparse is not None else {}, found.pop(0) if dense is not None else {})

    async def count(self, scope: str | None = None, memory_ids: Sequence[UUID] | None = None) -> int:
        """Points in a scope, or in all; expired ones count until they are deleted."""
        from qdrant_client import models

        must: list[models.Condition] = []
        if scope is not None:
            must.append(_equals(SCOPE, scope))
        if memory_ids is not None:
            must.append(models.HasIdCondition(has_id=[str(memory_id) for memory_id in memory_ids]))
        where = models.Filter(must=must) if must else None
        key = None if scope is None else shard_key(scope, self._settings.shard_keys)
        answer = await self._connection.call(
            lambda client: client.count(
                self._collection, where, exact=True, shard_key_selector=key, timeout=self._server_timeout
            )
        )
        return answer.count

    async def being_rebuilt(self) -> bool:
        """Whether a collection of ours stands beside the one under the alias: a rebuild, or what an ended one left."""
        answer = await self._connection.call(lambda client: client.get_collections())
        ours = collections_of(self._settings.collection)
        beside = {one.name for one in answer.collections if ours.fullmatch(one.name)}
        if not beside:
            return False
        used = await self._connection.call(lambda client: client.get_aliases())
        return bool(beside - {alias.collection_name for alias in used.aliases})

    async def clear(self) -> None:
        """Remove every point, for a small index; a large one is quicker built anew (`personae memory reindex`)."""
        from qdrant_client import models

        await self._delete(models.FilterSelector(filter=models.Filter(must=[])))

    async def close(self) -> None:
        """Release the connection. Safe to call twice."""
        await self._connection.close()

    @property
    def _server_timeout(self) -> int:
        return math.ceil(self._settings.timeout_s)

    async def _delete(self, selector: models.PointsSelector) -> None:
        from qdrant_client import models

        # An id does not tell its scope: all keys are asked.
        keys: Any = shard_key_names(self._settings.shard_keys) or None
        await self._write(
            lambda client: client.delete(
                self._collection,
                selector,
                wait=True,
                ordering=models.WriteOrdering.MEDIUM,
                shard_key_selector=keys,
                timeout=self._server_timeout,
            )
        )

    async def _write(self, write: Callable[[AsyncQdrantClient], Awaitable[models.UpdateResult]]) -> None:
        result = await self._connection.call(write)
        if result.status != "completed":
            # Taken up, but not visible yet: to be done again.
            raise Unavailable(
                f"the Qdrant server at {self._settings.url} is late with a write: {result.status}",
                reason="INDEX_UNAVAILABLE",
                retry_after_s=1.0,
            )


async def _nothing(_: AsyncQdrantClient) -> None:
    """What a flush sends."""


async def _upsert(
    collection: str, points: list[models.PointStruct], key: str | None, client: AsyncQdrantClient, *, timeout: int
) -> models.UpdateResult:
    from qdrant_client import models

    return await client.upsert(
        collection,
        points,
        wait=True,
        ordering=models.WriteOrdering.MEDIUM,
        shard_key_selector=key,
        timeout=timeout,
    )


def _equals(field: str, value: str) -> models.FieldCondition:
    from qdrant_client import models

    return models.FieldCondition(key=field, match=models.MatchValue(value=value))


def _to_point(point: MemoryPoint) -> models.PointStruct:
    from qdrant_client import models

    indices, values = checked_sparse(point.sparse)
    vectors: dict[str, Any] = {LEXICAL: models.SparseVector(indices=indices, values=values)}
    if point.dense is not None:
        vectors[DENSE] = checked_dense(point.dense)
    return models.PointStruct(id=str(point.memory_id), vector=vectors, payload=payload_of(point))


def _places(found: Sequence[models.ScoredPoint]) -> dict[UUID, Place]:
    return places((UUID(str(point.id)), point.score) for point in found)
