import datetime

from buf.validate import validate_pb2 as _validate_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.longrunning import operations_pb2 as _operations_pb2
from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf import field_mask_pb2 as _field_mask_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from personae.v1 import provenance_pb2 as _provenance_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MemoryKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MEMORY_KIND_UNSPECIFIED: _ClassVar[MemoryKind]
    MEMORY_KIND_EPISODE: _ClassVar[MemoryKind]
    MEMORY_KIND_FACT: _ClassVar[MemoryKind]

class FactBasis(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FACT_BASIS_UNSPECIFIED: _ClassVar[FactBasis]
    FACT_BASIS_STATED: _ClassVar[FactBasis]
    FACT_BASIS_INFERRED: _ClassVar[FactBasis]

class MemorySource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MEMORY_SOURCE_UNSPECIFIED: _ClassVar[MemorySource]
    MEMORY_SOURCE_TURN: _ClassVar[MemorySource]
    MEMORY_SOURCE_API: _ClassVar[MemorySource]
    MEMORY_SOURCE_EXTRACTION: _ClassVar[MemorySource]
MEMORY_KIND_UNSPECIFIED: MemoryKind
MEMORY_KIND_EPISODE: MemoryKind
MEMORY_KIND_FACT: MemoryKind
FACT_BASIS_UNSPECIFIED: FactBasis
FACT_BASIS_STATED: FactBasis
FACT_BASIS_INFERRED: FactBasis
MEMORY_SOURCE_UNSPECIFIED: MemorySource
MEMORY_SOURCE_TURN: MemorySource
MEMORY_SOURCE_API: MemorySource
MEMORY_SOURCE_EXTRACTION: MemorySource

class Memory(_message.Message):
    __slots__ = ("name", "text", "speaker", "occur_time", "thread", "ordinal", "source", "create_time", "expire_time", "external_id", "kind", "fact", "source_memories", "pinned", "restricted", "update_time", "etag", "quarantine_reason", "ai_label")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SPEAKER_FIELD_NUMBER: _ClassVar[int]
    OCCUR_TIME_FIELD_NUMBER: _ClassVar[int]
    THREAD_FIELD_NUMBER: _ClassVar[int]
    ORDINAL_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXTERNAL_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    FACT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_MEMORIES_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    RESTRICTED_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    QUARANTINE_REASON_FIELD_NUMBER: _ClassVar[int]
    AI_LABEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    text: str
    speaker: str
    occur_time: _timestamp_pb2.Timestamp
    thread: str
    ordinal: int
    source: MemorySource
    create_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    external_id: str
    kind: MemoryKind
    fact: Fact
    source_memories: _containers.RepeatedScalarFieldContainer[str]
    pinned: bool
    restricted: bool
    update_time: _timestamp_pb2.Timestamp
    etag: str
    quarantine_reason: str
    ai_label: _provenance_pb2.AiLabel
    def __init__(self, name: _Optional[str] = ..., text: _Optional[str] = ..., speaker: _Optional[str] = ..., occur_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., thread: _Optional[str] = ..., ordinal: _Optional[int] = ..., source: _Optional[_Union[MemorySource, str]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., external_id: _Optional[str] = ..., kind: _Optional[_Union[MemoryKind, str]] = ..., fact: _Optional[_Union[Fact, _Mapping]] = ..., source_memories: _Optional[_Iterable[str]] = ..., pinned: _Optional[bool] = ..., restricted: _Optional[bool] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., etag: _Optional[str] = ..., quarantine_reason: _Optional[str] = ..., ai_label: _Optional[_Union[_provenance_pb2.AiLabel, _Mapping]] = ...) -> None: ...

class Fact(_message.Message):
    __slots__ = ("subject", "predicate", "value", "valid_from_time", "valid_to_time", "superseded_by", "confidence", "basis", "extractor", "spans")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    PREDICATE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    VALID_FROM_TIME_FIELD_NUMBER: _ClassVar[int]
    VALID_TO_TIME_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDED_BY_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    BASIS_FIELD_NUMBER: _ClassVar[int]
    EXTRACTOR_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    subject: str
    predicate: str
    value: str
    valid_from_time: _timestamp_pb2.Timestamp
    valid_to_time: _timestamp_pb2.Timestamp
    superseded_by: str
    confidence: float
    basis: FactBasis
    extractor: str
    spans: _containers.RepeatedCompositeFieldContainer[FactSpan]
    def __init__(self, subject: _Optional[str] = ..., predicate: _Optional[str] = ..., value: _Optional[str] = ..., valid_from_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., valid_to_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., superseded_by: _Optional[str] = ..., confidence: _Optional[float] = ..., basis: _Optional[_Union[FactBasis, str]] = ..., extractor: _Optional[str] = ..., spans: _Optional[_Iterable[_Union[FactSpan, _Mapping]]] = ...) -> None: ...

class FactSpan(_message.Message):
    __slots__ = ("memory", "begin", "end")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    memory: str
    begin: int
    end: int
    def __init__(self, memory: _Optional[str] = ..., begin: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class ListMemoriesRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token", "kind")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    kind: MemoryKind
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., kind: _Optional[_Union[MemoryKind, str]] = ...) -> None: ...

class ListMemoriesResponse(_message.Message):
    __slots__ = ("memories", "next_page_token", "pending_index_count")
    MEMORIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PENDING_INDEX_COUNT_FIELD_NUMBER: _ClassVar[int]
    memories: _containers.RepeatedCompositeFieldContainer[Memory]
    next_page_token: str
    pending_index_count: int
    def __init__(self, memories: _Optional[_Iterable[_Union[Memory, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., pending_index_count: _Optional[int] = ...) -> None: ...

class SearchMemoriesRequest(_message.Message):
    __slots__ = ("parent", "query", "page_size")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    parent: str
    query: str
    page_size: int
    def __init__(self, parent: _Optional[str] = ..., query: _Optional[str] = ..., page_size: _Optional[int] = ...) -> None: ...

class SearchMemoriesResponse(_message.Message):
    __slots__ = ("results", "lexical_only", "confidence", "low_confidence")
    class Result(_message.Message):
        __slots__ = ("memory", "score")
        MEMORY_FIELD_NUMBER: _ClassVar[int]
        SCORE_FIELD_NUMBER: _ClassVar[int]
        memory: Memory
        score: float
        def __init__(self, memory: _Optional[_Union[Memory, _Mapping]] = ..., score: _Optional[float] = ...) -> None: ...
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    LEXICAL_ONLY_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    LOW_CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[SearchMemoriesResponse.Result]
    lexical_only: bool
    confidence: float
    low_confidence: bool
    def __init__(self, results: _Optional[_Iterable[_Union[SearchMemoriesResponse.Result, _Mapping]]] = ..., lexical_only: _Optional[bool] = ..., confidence: _Optional[float] = ..., low_confidence: _Optional[bool] = ...) -> None: ...

class CreateMemoryRequest(_message.Message):
    __slots__ = ("parent", "memory", "request_id")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    parent: str
    memory: Memory
    request_id: str
    def __init__(self, parent: _Optional[str] = ..., memory: _Optional[_Union[Memory, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class GetMemoryRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UpdateMemoryRequest(_message.Message):
    __slots__ = ("memory", "update_mask", "request_id")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    UPDATE_MASK_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    memory: Memory
    update_mask: _field_mask_pb2.FieldMask
    request_id: str
    def __init__(self, memory: _Optional[_Union[Memory, _Mapping]] = ..., update_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class MemoryServiceExplainRequest(_message.Message):
    __slots__ = ("parent", "query", "page_size")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    parent: str
    query: str
    page_size: int
    def __init__(self, parent: _Optional[str] = ..., query: _Optional[str] = ..., page_size: _Optional[int] = ...) -> None: ...

class MemoryServiceExplainResponse(_message.Message):
    __slots__ = ("candidates", "filters", "lexical_only", "during_from_time", "during_to_time")
    class Candidate(_message.Message):
        __slots__ = ("memory", "lexical", "dense", "features", "score", "final_rank", "filtered_reason")
        class FeaturesEntry(_message.Message):
            __slots__ = ("key", "value")
            KEY_FIELD_NUMBER: _ClassVar[int]
            VALUE_FIELD_NUMBER: _ClassVar[int]
            key: str
            value: float
            def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
        MEMORY_FIELD_NUMBER: _ClassVar[int]
        LEXICAL_FIELD_NUMBER: _ClassVar[int]
        DENSE_FIELD_NUMBER: _ClassVar[int]
        FEATURES_FIELD_NUMBER: _ClassVar[int]
        SCORE_FIELD_NUMBER: _ClassVar[int]
        FINAL_RANK_FIELD_NUMBER: _ClassVar[int]
        FILTERED_REASON_FIELD_NUMBER: _ClassVar[int]
        memory: Memory
        lexical: MemoryServiceExplainResponse.Arm
        dense: MemoryServiceExplainResponse.Arm
        features: _containers.ScalarMap[str, float]
        score: float
        final_rank: int
        filtered_reason: str
        def __init__(self, memory: _Optional[_Union[Memory, _Mapping]] = ..., lexical: _Optional[_Union[MemoryServiceExplainResponse.Arm, _Mapping]] = ..., dense: _Optional[_Union[MemoryServiceExplainResponse.Arm, _Mapping]] = ..., features: _Optional[_Mapping[str, float]] = ..., score: _Optional[float] = ..., final_rank: _Optional[int] = ..., filtered_reason: _Optional[str] = ...) -> None: ...
    class Arm(_message.Message):
        __slots__ = ("rank", "score")
        RANK_FIELD_NUMBER: _ClassVar[int]
        SCORE_FIELD_NUMBER: _ClassVar[int]
        rank: int
        score: float
        def __init__(self, rank: _Optional[int] = ..., score: _Optional[float] = ...) -> None: ...
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    LEXICAL_ONLY_FIELD_NUMBER: _ClassVar[int]
    DURING_FROM_TIME_FIELD_NUMBER: _ClassVar[int]
    DURING_TO_TIME_FIELD_NUMBER: _ClassVar[int]
    candidates: _containers.RepeatedCompositeFieldContainer[MemoryServiceExplainResponse.Candidate]
    filters: _containers.RepeatedScalarFieldContainer[str]
    lexical_only: bool
    during_from_time: _timestamp_pb2.Timestamp
    during_to_time: _timestamp_pb2.Timestamp
    def __init__(self, candidates: _Optional[_Iterable[_Union[MemoryServiceExplainResponse.Candidate, _Mapping]]] = ..., filters: _Optional[_Iterable[str]] = ..., lexical_only: _Optional[bool] = ..., during_from_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., during_to_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class GetProfileRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class Profile(_message.Message):
    __slots__ = ("name", "text", "version", "tokens", "source_memories", "update_time", "ai_label")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_MEMORIES_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    AI_LABEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    text: str
    version: int
    tokens: int
    source_memories: _containers.RepeatedScalarFieldContainer[str]
    update_time: _timestamp_pb2.Timestamp
    ai_label: _provenance_pb2.AiLabel
    def __init__(self, name: _Optional[str] = ..., text: _Optional[str] = ..., version: _Optional[int] = ..., tokens: _Optional[int] = ..., source_memories: _Optional[_Iterable[str]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ai_label: _Optional[_Union[_provenance_pb2.AiLabel, _Mapping]] = ...) -> None: ...

class ExportMemoriesRequest(_message.Message):
    __slots__ = ("parent",)
    PARENT_FIELD_NUMBER: _ClassVar[int]
    parent: str
    def __init__(self, parent: _Optional[str] = ...) -> None: ...

class ExportMemoriesResponse(_message.Message):
    __slots__ = ("json_line", "record")
    JSON_LINE_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    json_line: str
    record: ExportRecord
    def __init__(self, json_line: _Optional[str] = ..., record: _Optional[_Union[ExportRecord, _Mapping]] = ...) -> None: ...

class ExportRecord(_message.Message):
    __slots__ = ("counts", "sha256", "create_time", "signature", "public_key")
    class CountsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    counts: _containers.ScalarMap[str, int]
    sha256: bytes
    create_time: _timestamp_pb2.Timestamp
    signature: bytes
    public_key: bytes
    def __init__(self, counts: _Optional[_Mapping[str, int]] = ..., sha256: _Optional[bytes] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., signature: _Optional[bytes] = ..., public_key: _Optional[bytes] = ...) -> None: ...

class EraseMemoriesRequest(_message.Message):
    __slots__ = ("parent", "memories", "reason", "request_id")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    MEMORIES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    parent: str
    memories: _containers.RepeatedScalarFieldContainer[str]
    reason: str
    request_id: str
    def __init__(self, parent: _Optional[str] = ..., memories: _Optional[_Iterable[str]] = ..., reason: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class EraseMemoriesMetadata(_message.Message):
    __slots__ = ("step", "steps_done", "steps_total", "create_time")
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_DONE_FIELD_NUMBER: _ClassVar[int]
    STEPS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    step: str
    steps_done: int
    steps_total: int
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, step: _Optional[str] = ..., steps_done: _Optional[int] = ..., steps_total: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class EraseMemoriesResponse(_message.Message):
    __slots__ = ("proof",)
    PROOF_FIELD_NUMBER: _ClassVar[int]
    proof: ErasureProof
    def __init__(self, proof: _Optional[_Union[ErasureProof, _Mapping]] = ...) -> None: ...

class ErasureProof(_message.Message):
    __slots__ = ("erasure_id", "scope", "memory_ids", "erased", "remaining", "reason", "request_time", "complete_time", "signature", "public_key")
    class ErasedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class RemainingEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    ERASURE_ID_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_IDS_FIELD_NUMBER: _ClassVar[int]
    ERASED_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REQUEST_TIME_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_TIME_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    erasure_id: str
    scope: str
    memory_ids: _containers.RepeatedScalarFieldContainer[str]
    erased: _containers.ScalarMap[str, int]
    remaining: _containers.ScalarMap[str, int]
    reason: str
    request_time: _timestamp_pb2.Timestamp
    complete_time: _timestamp_pb2.Timestamp
    signature: bytes
    public_key: bytes
    def __init__(self, erasure_id: _Optional[str] = ..., scope: _Optional[str] = ..., memory_ids: _Optional[_Iterable[str]] = ..., erased: _Optional[_Mapping[str, int]] = ..., remaining: _Optional[_Mapping[str, int]] = ..., reason: _Optional[str] = ..., request_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., complete_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., signature: _Optional[bytes] = ..., public_key: _Optional[bytes] = ...) -> None: ...

class ForgetMemoryRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...
