"""The server index's layout as code: the collection, its shards, its payload indexes and its limits.

A collection is named after the alias with a number behind (`personae_memory_v2_1`);
the alias names the one in use. What can be changed in a collection is changed there;
for the rest a new one is filled beside it and the alias is moved, which Qdrant does
in one step (https://qdrant.tech/documentation/concepts/collections/#collection-aliases).

Scopes are small and every query stays in one: there is no graph over all points
(`m` 0), one graph per scope (`payload_m`) where a scope is too large to be scanned,
and the points of a scope lie together on disk (`is_tenant`). See
https://qdrant.tech/documentation/guides/multiple-partitions/.
"""

from __future__ import annotations

from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from personae_runtime.config import QdrantSettings
from personae_runtime.errors import ConfigError
from personae_runtime.memory.index import (
    DENSE,
    DENSE_DIM,
    EXPIRES_AT,
    KIND,
    LAYOUT,
    LEXICAL,
    SCOPE,
    VALID_FROM,
    VALID_TO,
    Difference,
)
from personae_runtime.memory.qdrant import (
    BATCH,
    MOST_HITS,
    Connection,
    IndexMissing,
    collections_of,
    shard_key_names,
)

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient, models

STRICT_MODE: Final[dict[str, Any]] = {
    "enabled": True,
    "max_query_limit": MOST_HITS,
    "max_timeout": 60,
    "unindexed_filtering_retrieve": False,
    "unindexed_filtering_update": False,
    "search_allow_exact": False,
    "search_max_oversampling": 4.0,
    "upsert_max_batchsize": BATCH,
    "search_max_batchsize": 2,
    "filter_max_conditions": 8,
    "max_payload_index_count": 5,
}
"""What the server refuses, whoever asks: above all a search that would read every scope's points."""

ADMINISTRATION_S: Final = 60.0
"""Seconds that a change of the layout may take: a cluster agrees on it."""

_IN_PLACE: Final = ("write_consistency_factor", "hnsw.", "quantization.", "dense.memory", "strict_mode.", "index.")
_QUANTILE: Final = 0.99


class ServerLayout:
    """The collections of one Qdrant server, used as a context manager.

    Calls raise what `Connection.call` does.
    """

    def __init__(self, settings: QdrantSettings) -> None:
        self._settings = settings
        self._alias = settings.collection
        self._connection = Connection(settings.model_copy(update={"timeout_s": ADMINISTRATION_S}))

    async def __aenter__(self) -> Self:
        await self._connection.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._connection.close()

    async def target(self) -> str | None:
        """The collection that the alias names; None without an alias.

        Raises:
            ConfigError: a collection has the alias's name.
        """
        found = await self._connection.call(lambda client: client.get_aliases())
        for alias in found.aliases:
            if alias.alias_name == self._alias:
                return alias.collection_name
        if self._alias in await self._collections():
            raise ConfigError(
                f"a collection is called {self._alias}, which has to be an alias: delete it, or set "
                "memory.qdrant.collection to another name",
                reason="INDEX_LAYOUT",
                metadata={"collection": self._alias},
            )
        return None

    async def init(self) -> str | None:
        """Make collection and alias if there is no alias yet; the collection's name if it was made now."""
        if await self.target() is not None:
            return None
        name = await self.create()
        await self.switch(name)
        return name

    async def differences(self) -> list[Difference]:
        """Where the collection in use differs from what this version and its settings want.

        Raises:
            IndexMissing: there is none.
        """
        name = await self.target()
        if name is None:
            raise IndexMissing(
                f"the Qdrant server at {self._settings.url} has no collection {self._alias}: "
                "run `personae memory init`",
                metadata={"collection": self._alias},
            )
        info = await self._connection.call(lambda client: client.get_collection(name))
        found, wanted = described(info), self.wanted()
        return [Difference(key, value, found.get(key)) for key, value in wanted.items() if found.get(key) != value]

    def wanted(self) -> dict[str, Any]:
        """The layout that this version and its settings want, in the words of `described`."""
        settings = self._settings
        return {
            "layout": LAYOUT,
            "shard_keys": settings.shard_keys,
            "sharding_method": "custom" if settings.shard_keys else "auto",
            "shard_number": settings.shard_number,
            "replication_factor": settings.replication_factor,
            "write_consistency_factor": settings.write_consistency_factor,
            "dense.size": DENSE_DIM,
            "dense.distance": "Cosine",
            "dense.memory": self._memory,
            "lexical.modifier": "idf",
            "lexical.memory": self._memory,
            "payload.memory": "cold",
            "hnsw.m": 0,
            "hnsw.payload_m": settings.payload_m,
            "quantization.type": None if settings.quantization == "none" else settings.quantization,
            "quantization.memory": None if settings.quantization == "none" else "pinned",
            **{f"strict_mode.{name}": value for name, value in STRICT_MODE.items()},
            f"index.{SCOPE}": "keyword, tenant, graph",
            f"index.{KIND}": "keyword",
            **{f"index.{field}": "float" for field in (EXPIRES_AT, VALID_FROM, VALID_TO)},
        }

    async def update(self) -> list[Difference]:
        """Change what can be changed in the collection in use; what is left, which takes a new collection.

        Raises:
            IndexMissing: there is none.
        """
        differences = await self.differences()
        left = [found for found in differences if not found.key.startswith(_IN_PLACE)]
        name = await self.target()
        if left or not differences or name is None:
            return left
        from qdrant_client import models

        params = models.CollectionParamsDiff(write_consistency_factor=self._settings.write_consistency_factor)
        await self._connection.call(
            lambda client: client.update_collection(
                name,
                collection_params=params,
                vectors_config={DENSE: models.VectorParamsDiff(memory=models.Memory(self._memory))},
                hnsw_config=self._hnsw(),
                quantization_config=self._quantization() or models.Disabled.DISABLED,
                strict_mode_config=models.StrictModeConfig(**STRICT_MODE),
            )
        )
        for field in {found.key.removeprefix("index.") for found in differences if found.key.startswith("index.")}:
            await self._connection.call(partial(_delete_index, name, field))
            await self._index(name, field)
        return []

    async def create(self) -> str:
        """A new, empty collection beside the one in use; its name.

        What an interrupted migration left behind is deleted, so that only one may run at a time.
        """
        from qdrant_client import models

        used = await self._connection.call(lambda client: client.get_aliases())
        named = {alias.collection_name for alias in used.aliases}
        ours = collections_of(self._alias)
        numbers = [0]
        for collection in await self._collections():
            match = ours.fullmatch(collection)
            if match is None:
                continue
            numbers.append(int(match[1]))
            if collection not in named:
                await self.drop(collection)
        name = f"{self._alias}_v{LAYOUT}_{max(numbers) + 1}"
        settings, memory = self._settings, models.Memory(self._memory)
        custom = models.ShardingMethod.CUSTOM if settings.shard_keys else models.ShardingMethod.AUTO
        await self._connection.call(
            lambda client: client.create_collection(
                name,
                vectors_config={
                    DENSE: models.VectorParams(size=DENSE_DIM, distance=models.Distance.COSINE, memory=memory)
                },
                sparse_vectors_config={
                    LEXICAL: models.SparseVectorParams(
                        modifier=models.Modifier.IDF, index=models.SparseIndexParams(memory=memory)
                    )
                },
                shard_number=settings.shard_number,
                sharding_method=custom,
                replication_factor=settings.replication_factor,
                write_consistency_factor=settings.write_consistency_factor,
                hnsw_config=self._hnsw(),
                quantization_config=self._quantization(),
                payload=models.PayloadStorageParams(memory=models.Memory.COLD),
                strict_mode_config=models.StrictModeConfig(**STRICT_MODE),
                metadata={"layout": LAYOUT, "shard_keys": settings.shard_keys},
            )
        )
        for key in shard_key_names(settings.shard_keys):
            await self._connection.call(partial(_create_shard_key, name, key))
        for field in (SCOPE, KIND, EXPIRES_AT, VALID_FROM, VALID_TO):
            await self._index(name, field)
        return name

    async def switch(self, name: str) -> None:
        """Let the alias name this collection from now on, in one step."""
        from qdrant_client import models

        changes: list[Any] = []
        if await self.target() is not None:
            changes.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=self._alias)))
        created = models.CreateAlias(collection_name=name, alias_name=self._alias)
        changes.append(models.CreateAliasOperation(create_alias=created))
        await self._connection.call(lambda client: client.update_collection_aliases(changes))

    async def drop(self, name: str) -> None:
        """Delete a collection."""
        await self._connection.call(lambda client: client.delete_collection(name))

    @property
    def _memory(self) -> str:
        return "cold" if self._settings.on_disk else "cached"

    def _hnsw(self) -> models.HnswConfigDiff:
        from qdrant_client import models

        return models.HnswConfigDiff(m=0, payload_m=self._settings.payload_m)

    def _quantization(self) -> models.ScalarQuantization | None:
        from qdrant_client import models

        if self._settings.quantization == "none":
            return None
        return models.ScalarQuantization(
            scalar=models.ScalarQuantizationConfig(
                type=models.ScalarType.INT8, quantile=_QUANTILE, memory=models.Memory.PINNED
            )
        )

    async def _collections(self) -> list[str]:
        found = await self._connection.call(lambda client: client.get_collections())
        return [collection.name for collection in found.collections]

    async def _index(self, name: str, field: str) -> None:
        from qdrant_client import models

        keyword, number = models.KeywordIndexType.KEYWORD, models.FloatIndexType.FLOAT
        schema: models.KeywordIndexParams | models.FloatIndexParams
        if field == SCOPE:
            schema = models.KeywordIndexParams(type=keyword, is_tenant=True)
        elif field == KIND:
            schema = models.KeywordIndexParams(type=keyword, enable_hnsw=False)
        else:
            schema = models.FloatIndexParams(type=number, enable_hnsw=False)
        await self._connection.call(lambda client: client.create_payload_index(name, field, schema, wait=True))


async def _create_shard_key(collection: str, key: str, client: AsyncQdrantClient) -> bool:
    return await client.create_shard_key(collection, key)


async def _delete_index(collection: str, field: str, client: AsyncQdrantClient) -> models.UpdateResult:
    return await client.delete_payload_index(collection, field)


def described(info: models.CollectionInfo) -> dict[str, Any]:
    """What a server says of a collection, flat: the names on the left are those of `personae memory check`."""
    config, params = info.config, info.config.params
    metadata = config.metadata or {}
    vectors: Any = params.vectors if isinstance(params.vectors, dict) else {}
    dense, lexical = vectors.get(DENSE), (params.sparse_vectors or {}).get(LEXICAL)
    scalar = getattr(config.quantization_config, "scalar", None)
    strict = {} if config.strict_mode_config is None else config.strict_mode_config.model_dump(exclude_none=True)
    return {
        "layout": metadata.get("layout"),
        "shard_keys": metadata.get("shard_keys"),
        "sharding_method": "auto" if params.sharding_method is None else str(params.sharding_method.value),
        "shard_number": params.shard_number,
        "replication_factor": params.replication_factor,
        "write_consistency_factor": params.write_consistency_factor,
        "dense.size": None if dense is None else dense.size,
        "dense.distance": None if dense is None else str(dense.distance.value),
        "dense.memory": None if dense is None else _word(dense.memory),
        "lexical.modifier": None if lexical is None else _word(lexical.modifier),
        "lexical.memory": None if lexical is None or lexical.index is None else _word(lexical.index.memory),
        "payload.memory": None if params.payload is None else _word(params.payload.memory),
        "hnsw.m": config.hnsw_config.m,
        "hnsw.payload_m": config.hnsw_config.payload_m,
        # Any quantization but a scalar one is told by the name of its kind.
        "quantization.type": _word(scalar.type) if scalar else _kind(config.quantization_config),
        "quantization.memory": _word(scalar.memory) if scalar else None,
        **{f"strict_mode.{name}": value for name, value in strict.items()},
        **{f"index.{field}": _index_words(index) for field, index in info.payload_schema.items()},
    }


def _word(value: Any) -> str | None:
    return None if value is None else str(value.value)


def _kind(quantization: Any) -> str | None:
    return None if quantization is None else type(quantization).__name__


def _index_words(index: models.PayloadIndexInfo) -> str:
    """As in "keyword, tenant, graph": the type, and whether the points of a value lie together and have a graph."""
    words, params = [str(index.data_type.value)], index.params
    if getattr(params, "is_tenant", None):
        words.append("tenant")
    if getattr(params, "enable_hnsw", None) is not False:
        words.append("graph")
    return ", ".join(words)
