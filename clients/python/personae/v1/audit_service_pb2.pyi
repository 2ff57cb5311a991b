import datetime

from buf.validate import validate_pb2 as _validate_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AuditEntry(_message.Message):
    __slots__ = ("index", "entry_id", "kind", "record_time", "entry_json")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ENTRY_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    RECORD_TIME_FIELD_NUMBER: _ClassVar[int]
    ENTRY_JSON_FIELD_NUMBER: _ClassVar[int]
    index: int
    entry_id: str
    kind: str
    record_time: _timestamp_pb2.Timestamp
    entry_json: str
    def __init__(self, index: _Optional[int] = ..., entry_id: _Optional[str] = ..., kind: _Optional[str] = ..., record_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., entry_json: _Optional[str] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("origin", "tree_size", "root_hash", "create_time", "note", "public_key")
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    TREE_SIZE_FIELD_NUMBER: _ClassVar[int]
    ROOT_HASH_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    origin: str
    tree_size: int
    root_hash: bytes
    create_time: _timestamp_pb2.Timestamp
    note: str
    public_key: bytes
    def __init__(self, origin: _Optional[str] = ..., tree_size: _Optional[int] = ..., root_hash: _Optional[bytes] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., note: _Optional[str] = ..., public_key: _Optional[bytes] = ...) -> None: ...

class InclusionProof(_message.Message):
    __slots__ = ("entry", "tree_size", "root_hash", "hashes", "checkpoint")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    TREE_SIZE_FIELD_NUMBER: _ClassVar[int]
    ROOT_HASH_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    entry: AuditEntry
    tree_size: int
    root_hash: bytes
    hashes: _containers.RepeatedScalarFieldContainer[bytes]
    checkpoint: Checkpoint
    def __init__(self, entry: _Optional[_Union[AuditEntry, _Mapping]] = ..., tree_size: _Optional[int] = ..., root_hash: _Optional[bytes] = ..., hashes: _Optional[_Iterable[bytes]] = ..., checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ...) -> None: ...

class ConsistencyProof(_message.Message):
    __slots__ = ("first_tree_size", "second_tree_size", "first_root_hash", "second_root_hash", "hashes")
    FIRST_TREE_SIZE_FIELD_NUMBER: _ClassVar[int]
    SECOND_TREE_SIZE_FIELD_NUMBER: _ClassVar[int]
    FIRST_ROOT_HASH_FIELD_NUMBER: _ClassVar[int]
    SECOND_ROOT_HASH_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    first_tree_size: int
    second_tree_size: int
    first_root_hash: bytes
    second_root_hash: bytes
    hashes: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, first_tree_size: _Optional[int] = ..., second_tree_size: _Optional[int] = ..., first_root_hash: _Optional[bytes] = ..., second_root_hash: _Optional[bytes] = ..., hashes: _Optional[_Iterable[bytes]] = ...) -> None: ...

class GetCheckpointRequest(_message.Message):
    __slots__ = ("parent",)
    PARENT_FIELD_NUMBER: _ClassVar[int]
    parent: str
    def __init__(self, parent: _Optional[str] = ...) -> None: ...

class ListAuditEntriesRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token", "first_index")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    first_index: int
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., first_index: _Optional[int] = ...) -> None: ...

class ListAuditEntriesResponse(_message.Message):
    __slots__ = ("audit_entries", "next_page_token")
    AUDIT_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    audit_entries: _containers.RepeatedCompositeFieldContainer[AuditEntry]
    next_page_token: str
    def __init__(self, audit_entries: _Optional[_Iterable[_Union[AuditEntry, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetInclusionProofRequest(_message.Message):
    __slots__ = ("parent", "index", "entry_id", "tree_size")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ENTRY_ID_FIELD_NUMBER: _ClassVar[int]
    TREE_SIZE_FIELD_NUMBER: _ClassVar[int]
    parent: str
    index: int
    entry_id: str
    tree_size: int
    def __init__(self, parent: _Optional[str] = ..., index: _Optional[int] = ..., entry_id: _Optional[str] = ..., tree_size: _Optional[int] = ...) -> None: ...

class GetConsistencyProofRequest(_message.Message):
    __slots__ = ("parent", "first_tree_size", "second_tree_size")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    FIRST_TREE_SIZE_FIELD_NUMBER: _ClassVar[int]
    SECOND_TREE_SIZE_FIELD_NUMBER: _ClassVar[int]
    parent: str
    first_tree_size: int
    second_tree_size: int
    def __init__(self, parent: _Optional[str] = ..., first_tree_size: _Optional[int] = ..., second_tree_size: _Optional[int] = ...) -> None: ...

class ExportAuditLogRequest(_message.Message):
    __slots__ = ("parent",)
    PARENT_FIELD_NUMBER: _ClassVar[int]
    parent: str
    def __init__(self, parent: _Optional[str] = ...) -> None: ...

class ExportAuditLogResponse(_message.Message):
    __slots__ = ("json_line",)
    JSON_LINE_FIELD_NUMBER: _ClassVar[int]
    json_line: str
    def __init__(self, json_line: _Optional[str] = ...) -> None: ...

class GetTransparencyReportRequest(_message.Message):
    __slots__ = ("parent", "start_time", "end_time", "include_entries")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    parent: str
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    include_entries: bool
    def __init__(self, parent: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., include_entries: _Optional[bool] = ...) -> None: ...

class ReportFigure(_message.Message):
    __slots__ = ("value", "suppressed")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    SUPPRESSED_FIELD_NUMBER: _ClassVar[int]
    value: int
    suppressed: bool
    def __init__(self, value: _Optional[int] = ..., suppressed: _Optional[bool] = ...) -> None: ...

class ReportTable(_message.Message):
    __slots__ = ("dimension", "rows")
    class Row(_message.Message):
        __slots__ = ("key", "count")
        KEY_FIELD_NUMBER: _ClassVar[int]
        COUNT_FIELD_NUMBER: _ClassVar[int]
        key: str
        count: ReportFigure
        def __init__(self, key: _Optional[str] = ..., count: _Optional[_Union[ReportFigure, _Mapping]] = ...) -> None: ...
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    dimension: str
    rows: _containers.RepeatedCompositeFieldContainer[ReportTable.Row]
    def __init__(self, dimension: _Optional[str] = ..., rows: _Optional[_Iterable[_Union[ReportTable.Row, _Mapping]]] = ...) -> None: ...

class ReportSample(_message.Message):
    __slots__ = ("seed", "items", "correct_count", "false_positive_count", "undecided_count", "false_positive_rate", "false_positive_rate_low", "false_positive_rate_high")
    class Item(_message.Message):
        __slots__ = ("decision", "leaf_hash", "index", "hashes", "entry_json")
        DECISION_FIELD_NUMBER: _ClassVar[int]
        LEAF_HASH_FIELD_NUMBER: _ClassVar[int]
        INDEX_FIELD_NUMBER: _ClassVar[int]
        HASHES_FIELD_NUMBER: _ClassVar[int]
        ENTRY_JSON_FIELD_NUMBER: _ClassVar[int]
        decision: str
        leaf_hash: bytes
        index: int
        hashes: _containers.RepeatedScalarFieldContainer[bytes]
        entry_json: str
        def __init__(self, decision: _Optional[str] = ..., leaf_hash: _Optional[bytes] = ..., index: _Optional[int] = ..., hashes: _Optional[_Iterable[bytes]] = ..., entry_json: _Optional[str] = ...) -> None: ...
    SEED_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    CORRECT_COUNT_FIELD_NUMBER: _ClassVar[int]
    FALSE_POSITIVE_COUNT_FIELD_NUMBER: _ClassVar[int]
    UNDECIDED_COUNT_FIELD_NUMBER: _ClassVar[int]
    FALSE_POSITIVE_RATE_FIELD_NUMBER: _ClassVar[int]
    FALSE_POSITIVE_RATE_LOW_FIELD_NUMBER: _ClassVar[int]
    FALSE_POSITIVE_RATE_HIGH_FIELD_NUMBER: _ClassVar[int]
    seed: str
    items: _containers.RepeatedCompositeFieldContainer[ReportSample.Item]
    correct_count: int
    false_positive_count: int
    undecided_count: int
    false_positive_rate: float
    false_positive_rate_low: float
    false_positive_rate_high: float
    def __init__(self, seed: _Optional[str] = ..., items: _Optional[_Iterable[_Union[ReportSample.Item, _Mapping]]] = ..., correct_count: _Optional[int] = ..., false_positive_count: _Optional[int] = ..., undecided_count: _Optional[int] = ..., false_positive_rate: _Optional[float] = ..., false_positive_rate_low: _Optional[float] = ..., false_positive_rate_high: _Optional[float] = ...) -> None: ...

class TransparencyReport(_message.Message):
    __slots__ = ("parent", "start_time", "end_time", "create_time", "min_people", "allowed", "restricted", "reviewed", "automated_share", "tables", "complaints", "median_hours_to_decision", "crisis_referrals", "sample", "checkpoint")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    MIN_PEOPLE_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    RESTRICTED_FIELD_NUMBER: _ClassVar[int]
    REVIEWED_FIELD_NUMBER: _ClassVar[int]
    AUTOMATED_SHARE_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    COMPLAINTS_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_HOURS_TO_DECISION_FIELD_NUMBER: _ClassVar[int]
    CRISIS_REFERRALS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    parent: str
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    create_time: _timestamp_pb2.Timestamp
    min_people: int
    allowed: ReportFigure
    restricted: ReportFigure
    reviewed: ReportFigure
    automated_share: float
    tables: _containers.RepeatedCompositeFieldContainer[ReportTable]
    complaints: ReportFigure
    median_hours_to_decision: float
    crisis_referrals: ReportFigure
    sample: ReportSample
    checkpoint: Checkpoint
    def __init__(self, parent: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., min_people: _Optional[int] = ..., allowed: _Optional[_Union[ReportFigure, _Mapping]] = ..., restricted: _Optional[_Union[ReportFigure, _Mapping]] = ..., reviewed: _Optional[_Union[ReportFigure, _Mapping]] = ..., automated_share: _Optional[float] = ..., tables: _Optional[_Iterable[_Union[ReportTable, _Mapping]]] = ..., complaints: _Optional[_Union[ReportFigure, _Mapping]] = ..., median_hours_to_decision: _Optional[float] = ..., crisis_referrals: _Optional[_Union[ReportFigure, _Mapping]] = ..., sample: _Optional[_Union[ReportSample, _Mapping]] = ..., checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ...) -> None: ...
