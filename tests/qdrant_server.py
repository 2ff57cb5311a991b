"""A Qdrant server for tests: qdrant-client's servicer stubs over Qdrant Edge shards.

It speaks Qdrant's gRPC API as far as the server index uses it and refuses the rest:
a field that it does not translate is UNIMPLEMENTED, so that nothing passes by being
ignored. Collections, aliases and points are on disk when a call is answered.

It is one node: what is said of replicas is kept and told, and means nothing. Shards
that Qdrant chooses by itself are one Edge shard; every shard key has its own.

    python -m tests.qdrant_server --directory D [--port N] [--api-key K] [--tls FOLDER]
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import qdrant_edge as edge
from google.protobuf.message import Message
from qdrant_client import grpc as api

from tests.conftest import ROOT

MEMORY = {1: edge.Memory.Cold, 2: edge.Memory.Cached, 3: edge.Memory.Pinned}
HNSW_DEFAULTS = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000, "max_indexing_threads": 0}
OPTIMIZER_DEFAULTS = {
    "deleted_threshold": 0.2,
    "vacuum_min_vector_number": 1000,
    "default_segment_number": 0,
    "indexing_threshold": 10_000,
    "flush_interval_sec": 5,
}


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def invalid(message: str) -> Refused:
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, message)


def only(message: Message, *names: str) -> None:
    """Refuse a message with a field that is set, not one of these, and not a timeout."""
    for field, _ in message.ListFields():
        if field.name not in (*names, "timeout"):
            raise Refused(grpc.StatusCode.UNIMPLEMENTED, f"{message.DESCRIPTOR.name}.{field.name} is not translated")


def optional(message: Message, name: str) -> Any:
    """A field, or None if it is not set."""
    return getattr(message, name) if message.HasField(name) else None


class Collection:
    """One collection: its configuration, and an Edge shard of each shard key ("" without keys)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.config = api.CreateCollection.FromString((folder / "config").read_bytes())
        self.shards = {
            path.name.removeprefix("shard-"): edge.EdgeShard.load(str(path)) for path in folder.glob("shard-*")
        }

    @classmethod
    def create(cls, folder: Path, config: api.CreateCollection) -> Collection:
        made = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        (made / "config").write_bytes(config.SerializeToString())
        if config.sharding_method != api.ShardingMethod.Custom:
            make_shard(made / "shard-", config).close()
        made.rename(folder)
        return cls(folder)

    def add_key(self, key: str) -> None:
        if self.config.sharding_method != api.ShardingMethod.Custom:
            raise invalid("Shard Key cannot be created with Auto sharding method")
        if key in self.shards:
            raise invalid(f"Sharding key {key} already exists")
        folder = self._folder / f"shard-{key}"
        make_shard(folder.with_name(f"{key}.new"), self.config).close()
        folder.with_name(f"{key}.new").rename(folder)
        self.shards[key] = edge.EdgeShard.load(str(folder))
        for field, (kind, params) in self.indexes(except_key=key).items():
            create_index(self.shards[key], field, kind, params)

    def change(self, config: api.CreateCollection) -> None:
        translated = edge_config(config)
        write_durably(self._folder / "config", config.SerializeToString())
        self.config = config
        for key, shard in self.shards.items():
            shard.close()
            self.shards[key] = edge.EdgeShard.load(str(self._folder / f"shard-{key}"), translated)

    def delete(self) -> None:
        for shard in self.shards.values():
            shard.close()
        gone = self._folder.with_name(f"{self._folder.name}.gone")
        self._folder.rename(gone)
        shutil.rmtree(gone)

    def selected(self, selector: api.ShardKeySelector | None, *, writing: bool) -> list[edge.EdgeShard]:
        """The shards that a request is for: of its keys, else all, which a write must not leave open."""
        custom = self.config.sharding_method == api.ShardingMethod.Custom
        if selector is None:
            if custom and writing:
                raise invalid("Shard key not specified")
            return list(self.shards.values())
        only(selector, "shard_keys")
        if not custom:
            raise invalid("Shard key is given, but the collection has automatic sharding")
        keys = [key.keyword for key in selector.shard_keys]
        if unknown := [key for key in keys if key not in self.shards]:
            raise invalid(f"Shard key {unknown[0]} not found")
        return [self.shards[key] for key in keys]

    def indexes(self, *, except_key: str | None = None) -> dict[str, tuple[Any, Any]]:
        """Type and parameters of each payload index, as the engine has them."""
        shard = next((shard for key, shard in self.shards.items() if key != except_key), None)
        if shard is None:
            return {}
        return {field: (info.data_type, info.params) for field, info in shard.info().payload_schema.items()}

    def filter(self, message: api.Filter, *, updating: bool = False) -> edge.Filter:
        """A filter, within what strict mode lets through."""
        only(message, "must")
        strict = self.config.strict_mode_config
        if strict.enabled and len(message.must) > strict.filter_max_conditions:
            raise invalid("Filter condition limit reached")
        conditions: list[Any] = []
        indexed = self.indexes()
        for condition in message.must:
            if condition.HasField("has_id"):
                only(condition, "has_id")
                conditions.append(edge.HasIdCondition({UUID(one.uuid) for one in condition.has_id.has_id}))
                continue
            only(condition, "field")
            field = condition.field
            only(field, "key", "match", "range")
            allowed = strict.unindexed_filtering_update if updating else strict.unindexed_filtering_retrieve
            if strict.enabled and not allowed and field.key not in indexed:
                raise invalid(f"Index required but not found for {field.key}")
            if field.HasField("match"):
                if field.match.WhichOneof("match_value") != "keyword":
                    raise Refused(grpc.StatusCode.UNIMPLEMENTED, "only keywords are matched")
                conditions.append(edge.FieldCondition(field.key, match=edge.MatchValue(field.match.keyword)))
            if field.HasField("range"):
                bounds = {name: optional(field.range, name) for name in ("lt", "gt", "gte", "lte")}
                conditions.append(edge.FieldCondition(field.key, range=edge.RangeFloat(**bounds)))
        return edge.Filter(must=conditions)

    def query(self, request: api.QueryPoints) -> Iterator[api.ScoredPoint]:
        only(
            request,
            *("collection_name", "query", "using", "filter", "params", "limit", "shard_key_selector", "with_payload"),
        )
        if request.with_payload.enable:
            raise Refused(grpc.StatusCode.UNIMPLEMENTED, "with_payload is not translated")
        strict = self.config.strict_mode_config
        if strict.enabled and request.limit > strict.max_query_limit:
            raise invalid("Limit exceeded")
        only(request.query, "nearest")
        kind = request.query.nearest.WhichOneof("variant")
        vector: Any
        if kind == "dense":
            vector = list(request.query.nearest.dense.data)
            self._check_dense(request.using, vector)
        elif kind == "sparse":
            sparse = request.query.nearest.sparse
            vector = edge.SparseVector(list(sparse.indices), list(sparse.values))
        else:
            raise Refused(grpc.StatusCode.UNIMPLEMENTED, f"a query by {kind} is not translated")
        wanted = edge.QueryRequest(
            limit=request.limit,
            query=edge.Query.Nearest(vector, using=request.using),
            filter=self.filter(request.filter),
            params=self._params(request.params),
        )
        found = [
            point
            for shard in self.selected(optional(request, "shard_key_selector"), writing=False)
            for point in shard.query(wanted)
        ]
        found.sort(key=lambda point: -point.score)
        for point in found[: request.limit]:
            yield api.ScoredPoint(id=api.PointId(uuid=str(point.id)), score=point.score, version=point.version)

    def point(self, message: api.PointStruct) -> edge.Point:
        only(message, "id", "payload", "vectors")
        only(message.id, "uuid")
        only(message.vectors, "vectors")
        vectors: dict[str, Any] = {}
        for name, vector in message.vectors.vectors.vectors.items():
            only(vector, "dense", "sparse")
            if vector.HasField("sparse"):
                if name not in self.config.sparse_vectors_config.map:
                    raise invalid(f"Not existing vector name error: {name}")
                vectors[name] = edge.SparseVector(list(vector.sparse.indices), list(vector.sparse.values))
            else:
                vectors[name] = list(vector.dense.data)
                self._check_dense(name, vectors[name])
        payload = {}
        for name, value in message.payload.items():
            if value.WhichOneof("kind") not in ("string_value", "double_value"):
                raise Refused(grpc.StatusCode.UNIMPLEMENTED, f"payload {name} is neither text nor a number")
            payload[name] = getattr(value, value.WhichOneof("kind"))
        return edge.Point(message.id.uuid, vectors, payload)

    def info(self) -> api.CollectionInfo:
        config = self.config
        hnsw = api.HnswConfigDiff(**HNSW_DEFAULTS)
        hnsw.MergeFrom(config.hnsw_config)
        return api.CollectionInfo(
            status=api.CollectionStatus.Green,
            optimizer_status=api.OptimizerStatus(ok=True),
            segments_count=sum(shard.info().segments_count for shard in self.shards.values()),
            points_count=sum(shard.info().points_count for shard in self.shards.values()),
            config=api.CollectionConfig(
                params=api.CollectionParams(
                    shard_number=config.shard_number or 1,
                    vectors_config=config.vectors_config,
                    sparse_vectors_config=config.sparse_vectors_config,
                    replication_factor=config.replication_factor or 1,
                    write_consistency_factor=config.write_consistency_factor or 1,
                    sharding_method=optional(config, "sharding_method"),
                    payload=optional(config, "payload"),
                ),
                hnsw_config=hnsw,
                optimizer_config=api.OptimizersConfigDiff(**OPTIMIZER_DEFAULTS),
                wal_config=api.WalConfigDiff(wal_capacity_mb=32, wal_segments_ahead=0),
                quantization_config=optional(config, "quantization_config"),
                strict_mode_config=optional(config, "strict_mode_config"),
                metadata=config.metadata,
            ),
            payload_schema={field: schema(*index) for field, index in self.indexes().items()},
        )

    def _check_dense(self, name: str, vector: list[float]) -> None:
        params = self.config.vectors_config.params_map.map
        if name not in params:
            raise invalid(f"Not existing vector name error: {name}")
        if len(vector) != params[name].size:
            raise invalid(f"Vector dimension error: expected dim: {params[name].size}, got {len(vector)}")

    def _params(self, message: api.SearchParams) -> edge.SearchParams:
        # The client sends its defaults as well.
        only(message, "idf", "quantization", "exact", "indexed_only")
        if message.exact or message.indexed_only:
            raise Refused(grpc.StatusCode.UNIMPLEMENTED, "exact and indexed_only are not translated")
        quantization = idf = None
        if message.HasField("quantization"):
            only(message.quantization, "rescore", "ignore", "oversampling")
            quantization = edge.QuantizationSearchParams(
                ignore=message.quantization.ignore,
                rescore=optional(message.quantization, "rescore"),
                oversampling=optional(message.quantization, "oversampling"),
            )
        if message.HasField("idf"):
            idf = edge.IdfParams(corpus=self.filter(message.idf.corpus) if message.idf.HasField("corpus") else None)
        return edge.SearchParams(quantization=quantization, idf=idf)


def edge_config(config: api.CreateCollection) -> edge.EdgeConfig:
    """What an Edge shard is told of a collection's configuration."""
    only(
        config,
        *("collection_name", "vectors_config", "sparse_vectors_config", "hnsw_config", "quantization_config"),
        *("payload", "metadata", "strict_mode_config"),
        # One node has one of each: kept and told.
        *("shard_number", "sharding_method", "replication_factor", "write_consistency_factor"),
    )
    only(config.vectors_config, "params_map")
    vectors = {}
    for name, params in config.vectors_config.params_map.map.items():
        only(params, "size", "distance", "memory")
        if params.distance != api.Distance.Cosine:
            raise Refused(grpc.StatusCode.UNIMPLEMENTED, "only cosine is translated")
        vectors[name] = edge.EdgeVectorParams(params.size, edge.Distance.Cosine, memory=MEMORY.get(params.memory))
    sparse = {}
    for name, sparse_params in config.sparse_vectors_config.map.items():
        only(sparse_params, "modifier", "index")
        only(sparse_params.index, "memory")
        idf = edge.Modifier.Idf if sparse_params.modifier == api.Modifier.Idf else None
        sparse[name] = edge.EdgeSparseVectorParams(modifier=idf, memory=MEMORY.get(sparse_params.index.memory))
    only(config.hnsw_config, "m", "payload_m")
    hnsw = {**HNSW_DEFAULTS, **{field.name: value for field, value in config.hnsw_config.ListFields()}}
    if config.hnsw_config.HasField("m"):
        hnsw["m"] = config.hnsw_config.m
    quantization = None
    if config.HasField("quantization_config"):
        only(config.quantization_config, "scalar")
        scalar = config.quantization_config.scalar
        only(scalar, "type", "quantile", "memory")
        quantization = edge.ScalarQuantizationConfig(
            edge.ScalarType.Int8, quantile=scalar.quantile, memory=MEMORY.get(scalar.memory)
        )
    return edge.EdgeConfig(
        vectors=vectors,
        sparse_vectors=sparse,
        hnsw_config=edge.HnswIndexConfig(**hnsw),
        quantization_config=quantization,
        payload_memory=MEMORY.get(config.payload.memory),
    )


def make_shard(folder: Path, config: api.CreateCollection) -> edge.EdgeShard:
    translated = edge_config(config)
    folder.mkdir()
    return edge.EdgeShard.create(str(folder), translated)


def create_index(shard: edge.EdgeShard, field: str, kind: Any, params: Any) -> None:
    shard.update(edge.UpdateOperation.create_field_index(field, kind if params is None else params))


def schema(kind: Any, params: Any) -> api.PayloadSchemaInfo:
    """A payload index as the API tells it."""
    if isinstance(params, edge.KeywordIndexParams):
        keyword = api.KeywordIndexParams(is_tenant=params.is_tenant, enable_hnsw=params.enable_hnsw)
        told = api.PayloadIndexParams(keyword_index_params=keyword)
        return api.PayloadSchemaInfo(data_type=api.PayloadSchemaType.Keyword, params=told)
    number = api.FloatIndexParams(enable_hnsw=None if params is None else params.enable_hnsw)
    told = api.PayloadIndexParams(float_index_params=number)
    return api.PayloadSchemaInfo(data_type=api.PayloadSchemaType.Float, params=told)


def write_durably(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_bytes(content)
    os.replace(temporary, path)


class Storage:
    """All collections and aliases of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "collections"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._aliases = folder / "aliases"
        self.aliases: dict[str, str] = json.loads(self._aliases.read_text()) if self._aliases.exists() else {}
        self.collections = {
            path.name: Collection(path) for path in self._folder.iterdir() if path.suffix not in (".new", ".gone")
        }

    def named(self, name: str) -> Collection:
        """A collection by its name or an alias."""
        found = self.collections.get(self.aliases.get(name, name))
        if found is None:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"Not found: Collection `{name}` doesn't exist!")
        return found

    def create(self, config: api.CreateCollection) -> None:
        name = config.collection_name
        if name in self.collections or name in self.aliases:
            raise invalid(f"Collection `{name}` already exists!")
        self.collections[name] = Collection.create(self._folder / name, config)

    def delete(self, name: str) -> bool:
        gone = self.collections.pop(name, None)
        if gone is not None:
            gone.delete()
            self.save_aliases({alias: target for alias, target in self.aliases.items() if target != name})
        return gone is not None

    def save_aliases(self, aliases: dict[str, str]) -> None:
        write_durably(self._aliases, json.dumps(aliases).encode())
        self.aliases = aliases


Method = Callable[[Any, Any, grpc.aio.ServicerContext], Awaitable[Any]]


def answers(method: Callable[[Any, Any], Any]) -> Method:
    """A servicer's method from one that raises Refused."""

    @functools.wraps(method)
    async def call(self: Any, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return method(self, request)
        except Refused as refused:
            await context.abort(refused.code, str(refused))

    return call


class Collections(api.CollectionsServicer):
    """Qdrant's service of collections."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    @answers
    def Get(self, request: api.GetCollectionInfoRequest) -> api.GetCollectionInfoResponse:
        return api.GetCollectionInfoResponse(result=self._storage.named(request.collection_name).info())

    @answers
    def List(self, request: api.ListCollectionsRequest) -> api.ListCollectionsResponse:
        names = [api.CollectionDescription(name=name) for name in self._storage.collections]
        return api.ListCollectionsResponse(collections=names)

    @answers
    def Create(self, request: api.CreateCollection) -> api.CollectionOperationResponse:
        self._storage.create(request)
        return api.CollectionOperationResponse(result=True)

    @answers
    def Update(self, request: api.UpdateCollection) -> api.CollectionOperationResponse:
        only(
            request,
            *("collection_name", "params", "hnsw_config", "vectors_config", "quantization_config"),
            "strict_mode_config",
        )
        collection = self._storage.named(request.collection_name)
        config = api.CreateCollection()
        config.CopyFrom(collection.config)
        only(request.params, "write_consistency_factor")
        if request.params.HasField("write_consistency_factor"):
            config.write_consistency_factor = request.params.write_consistency_factor
        config.hnsw_config.MergeFrom(request.hnsw_config)
        config.strict_mode_config.MergeFrom(request.strict_mode_config)
        if request.HasField("vectors_config"):
            only(request.vectors_config, "params_map")
            for name, params in request.vectors_config.params_map.map.items():
                only(params, "memory")
                config.vectors_config.params_map.map[name].memory = params.memory
        if request.HasField("quantization_config"):
            only(request.quantization_config, "scalar", "disabled")
            config.ClearField("quantization_config")
            if request.quantization_config.HasField("scalar"):
                config.quantization_config.scalar.CopyFrom(request.quantization_config.scalar)
        collection.change(config)
        return api.CollectionOperationResponse(result=True)

    @answers
    def Delete(self, request: api.DeleteCollection) -> api.CollectionOperationResponse:
        return api.CollectionOperationResponse(result=self._storage.delete(request.collection_name))

    @answers
    def UpdateAliases(self, request: api.ChangeAliases) -> api.CollectionOperationResponse:
        aliases = dict(self._storage.aliases)
        for action in request.actions:
            only(action, "create_alias", "delete_alias")
            if action.HasField("create_alias"):
                if action.create_alias.collection_name not in self._storage.collections:
                    raise Refused(grpc.StatusCode.NOT_FOUND, "Not found: Collection doesn't exist!")
                if action.create_alias.alias_name in self._storage.collections:
                    raise invalid("a collection has this name")
                aliases[action.create_alias.alias_name] = action.create_alias.collection_name
            elif aliases.pop(action.delete_alias.alias_name, None) is None:
                raise Refused(grpc.StatusCode.NOT_FOUND, "Not found: Alias doesn't exist!")
        self._storage.save_aliases(aliases)
        return api.CollectionOperationResponse(result=True)

    @answers
    def ListAliases(self, request: api.ListAliasesRequest) -> api.ListAliasesResponse:
        return api.ListAliasesResponse(
            aliases=[
                api.AliasDescription(alias_name=alias, collection_name=target)
                for alias, target in self._storage.aliases.items()
            ]
        )

    @answers
    def CreateShardKey(self, request: api.CreateShardKeyRequest) -> api.CreateShardKeyResponse:
        only(request.request, "shard_key")
        self._storage.named(request.collection_name).add_key(request.request.shard_key.keyword)
        return api.CreateShardKeyResponse(result=True)


class Points(api.PointsServicer):
    """Qdrant's service of points."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    @answers
    def Upsert(self, request: api.UpsertPoints) -> api.PointsOperationResponse:
        only(request, "collection_name", "wait", "points", "ordering", "shard_key_selector")
        collection = self._storage.named(request.collection_name)
        strict = collection.config.strict_mode_config
        if strict.enabled and len(request.points) > strict.upsert_max_batchsize:
            raise invalid("Upsert limit exceeded")
        points = [collection.point(point) for point in request.points]
        return self._update(collection, request, edge.UpdateOperation.upsert_points(points))

    @answers
    def Delete(self, request: api.DeletePoints) -> api.PointsOperationResponse:
        only(request, "collection_name", "wait", "points", "ordering", "shard_key_selector")
        collection = self._storage.named(request.collection_name)
        if request.points.HasField("filter"):
            where = collection.filter(request.points.filter, updating=True)
            operation = edge.UpdateOperation.delete_points_by_filter(where)
        else:
            operation = edge.UpdateOperation.delete_points([point.uuid for point in request.points.points.ids])
        return self._update(collection, request, operation)

    @answers
    def QueryBatch(self, request: api.QueryBatchPoints) -> api.QueryBatchResponse:
        only(request, "collection_name", "query_points")
        collection = self._storage.named(request.collection_name)
        strict = collection.config.strict_mode_config
        if strict.enabled and len(request.query_points) > strict.search_max_batchsize:
            raise invalid("Search batch size limit exceeded")
        return api.QueryBatchResponse(
            result=[api.BatchResult(result=collection.query(query)) for query in request.query_points]
        )

    @answers
    def Count(self, request: api.CountPoints) -> api.CountResponse:
        only(request, "collection_name", "filter", "exact", "shard_key_selector")
        collection = self._storage.named(request.collection_name)
        where = collection.filter(request.filter) if request.HasField("filter") else None
        counted = edge.CountRequest(exact=request.exact, filter=where)
        shards = collection.selected(optional(request, "shard_key_selector"), writing=False)
        return api.CountResponse(result=api.CountResult(count=sum(shard.count(counted) for shard in shards)))

    @answers
    def CreateFieldIndex(self, request: api.CreateFieldIndexCollection) -> api.PointsOperationResponse:
        only(request, "collection_name", "wait", "field_name", "field_type", "field_index_params")
        params: Any
        if request.field_type == api.FieldType.FieldTypeKeyword:
            given = request.field_index_params.keyword_index_params
            only(given, "is_tenant", "enable_hnsw")
            params = edge.KeywordIndexParams(
                is_tenant=optional(given, "is_tenant"), enable_hnsw=optional(given, "enable_hnsw")
            )
        elif request.field_type == api.FieldType.FieldTypeFloat:
            number = request.field_index_params.float_index_params
            only(number, "enable_hnsw")
            params = edge.FloatIndexParams(enable_hnsw=optional(number, "enable_hnsw"))
        else:
            raise Refused(grpc.StatusCode.UNIMPLEMENTED, "only keywords and floats are indexed")
        collection = self._storage.named(request.collection_name)
        for shard in collection.shards.values():
            create_index(shard, request.field_name, None, params)
        return completed()

    @answers
    def DeleteFieldIndex(self, request: api.DeleteFieldIndexCollection) -> api.PointsOperationResponse:
        only(request, "collection_name", "wait", "field_name")
        for shard in self._storage.named(request.collection_name).shards.values():
            shard.update(edge.UpdateOperation.delete_field_index(request.field_name))
        return completed()

    def _update(self, collection: Collection, request: Any, operation: Any) -> api.PointsOperationResponse:
        if not request.wait:
            raise Refused(grpc.StatusCode.UNIMPLEMENTED, "every write waits")
        for shard in collection.selected(optional(request, "shard_key_selector"), writing=True):
            shard.update(operation)
        return completed()


def completed() -> api.PointsOperationResponse:
    return api.PointsOperationResponse(result=api.UpdateResult(status=api.UpdateStatus.Completed))


class Key(grpc.aio.ServerInterceptor):
    """Refuses calls without the API key, in Qdrant's words."""

    def __init__(self, key: str) -> None:
        self._key = key

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        if ("api-key", self._key) in details.invocation_metadata:
            return await continuation(details)

        async def refuse(request: Any, context: grpc.aio.ServicerContext) -> None:
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED, "Must provide an API key or an Authorization bearer token"
            )

        return grpc.unary_unary_rpc_method_handler(refuse)


async def serve(directory: Path, port: int, key: str | None, tls: Path | None) -> None:
    server = grpc.aio.server(interceptors=[] if key is None else [Key(key)])
    storage = Storage(directory)
    api.add_CollectionsServicer_to_server(Collections(storage), server)
    api.add_PointsServicer_to_server(Points(storage), server)
    if tls is None:
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
    else:
        pair = ((tls / "server.key").read_bytes(), (tls / "server.crt").read_bytes())
        bound = server.add_secure_port(f"127.0.0.1:{port}", grpc.ssl_server_credentials([pair]))
    await server.start()
    print(bound, flush=True)
    await server.wait_for_termination()


class Server:
    """A server in a process of its own.

    Args:
        directory: keeps what it holds, from one start to the next.
        key: that callers must have.
        tls: folder with `server.crt` and `server.key`; None is plaintext.
    """

    def __init__(self, directory: Path, *, key: str | None = None, tls: Path | None = None) -> None:
        self._directory = directory
        self._key = key
        self._tls = tls
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, at the port of last time, and wait until it listens."""
        arguments = ["--directory", str(self._directory), "--port", str(self._port)]
        arguments += [] if self._key is None else ["--api-key", self._key]
        arguments += [] if self._tls is None else ["--tls", str(self._tls)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.qdrant_server", *arguments], env=environment, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            self._port = int(lines.readline())

    def send(self, what: signal.Signals) -> None:
        """Send it a signal; SIGKILL ends it without warning, SIGSTOP makes it late."""
        assert self._process is not None
        self._process.send_signal(what)

    def kill(self) -> None:
        """End it without warning. Safe to call twice."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def running(directory: Path, *, key: str | None = None, tls: Path | None = None) -> Iterator[Server]:
    """A server that runs inside the block."""
    server = Server(directory, key=key, tls=tls)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--api-key")
    parser.add_argument("--tls", type=Path)
    given = parser.parse_args(None if arguments is None else list(arguments))
    asyncio.run(serve(given.directory, given.port, given.api_key, given.tls))


if __name__ == "__main__":
    main()
