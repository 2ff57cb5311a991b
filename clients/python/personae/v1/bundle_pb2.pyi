import datetime

from buf.validate import validate_pb2 as _validate_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from personae.v1 import event_pb2 as _event_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RolloutStage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLLOUT_STAGE_UNSPECIFIED: _ClassVar[RolloutStage]
    ROLLOUT_STAGE_SHADOW: _ClassVar[RolloutStage]
    ROLLOUT_STAGE_PERCENTAGE: _ClassVar[RolloutStage]
    ROLLOUT_STAGE_FULL: _ClassVar[RolloutStage]
ROLLOUT_STAGE_UNSPECIFIED: RolloutStage
ROLLOUT_STAGE_SHADOW: RolloutStage
ROLLOUT_STAGE_PERCENTAGE: RolloutStage
ROLLOUT_STAGE_FULL: RolloutStage

class Bundle(_message.Message):
    __slots__ = ("name", "version", "key_id", "create_time", "content")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    key_id: str
    create_time: _timestamp_pb2.Timestamp
    content: bytes
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., key_id: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., content: _Optional[bytes] = ...) -> None: ...

class Rollout(_message.Message):
    __slots__ = ("name", "stable", "candidate", "stage", "percent", "reversible", "change_time", "etag", "stable_version", "candidate_version", "problem", "shadow_decisions", "shadow_differing")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STABLE_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    PERCENT_FIELD_NUMBER: _ClassVar[int]
    REVERSIBLE_FIELD_NUMBER: _ClassVar[int]
    CHANGE_TIME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    STABLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    SHADOW_DECISIONS_FIELD_NUMBER: _ClassVar[int]
    SHADOW_DIFFERING_FIELD_NUMBER: _ClassVar[int]
    name: str
    stable: str
    candidate: str
    stage: RolloutStage
    percent: int
    reversible: bool
    change_time: _timestamp_pb2.Timestamp
    etag: str
    stable_version: str
    candidate_version: str
    problem: str
    shadow_decisions: int
    shadow_differing: int
    def __init__(self, name: _Optional[str] = ..., stable: _Optional[str] = ..., candidate: _Optional[str] = ..., stage: _Optional[_Union[RolloutStage, str]] = ..., percent: _Optional[int] = ..., reversible: _Optional[bool] = ..., change_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., etag: _Optional[str] = ..., stable_version: _Optional[str] = ..., candidate_version: _Optional[str] = ..., problem: _Optional[str] = ..., shadow_decisions: _Optional[int] = ..., shadow_differing: _Optional[int] = ...) -> None: ...

class PublishBundleRequest(_message.Message):
    __slots__ = ("parent", "content", "signature", "request_id")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    parent: str
    content: bytes
    signature: bytes
    request_id: str
    def __init__(self, parent: _Optional[str] = ..., content: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., request_id: _Optional[str] = ...) -> None: ...

class GetBundleRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListBundlesRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListBundlesResponse(_message.Message):
    __slots__ = ("bundles", "next_page_token")
    BUNDLES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    bundles: _containers.RepeatedCompositeFieldContainer[Bundle]
    next_page_token: str
    def __init__(self, bundles: _Optional[_Iterable[_Union[Bundle, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetRolloutRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class SetRolloutRequest(_message.Message):
    __slots__ = ("name", "bundle", "stage", "percent", "etag", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    PERCENT_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    bundle: str
    stage: RolloutStage
    percent: int
    etag: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., bundle: _Optional[str] = ..., stage: _Optional[_Union[RolloutStage, str]] = ..., percent: _Optional[int] = ..., etag: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class RollbackRolloutRequest(_message.Message):
    __slots__ = ("name", "etag", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    etag: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., etag: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class ShadowDecision(_message.Message):
    __slots__ = ("persona", "stage", "live_version", "live_action", "live_reason_code", "live_rule_ids", "action", "reason_code", "rule_ids", "differs", "create_time")
    PERSONA_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    LIVE_VERSION_FIELD_NUMBER: _ClassVar[int]
    LIVE_ACTION_FIELD_NUMBER: _ClassVar[int]
    LIVE_REASON_CODE_FIELD_NUMBER: _ClassVar[int]
    LIVE_RULE_IDS_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    REASON_CODE_FIELD_NUMBER: _ClassVar[int]
    RULE_IDS_FIELD_NUMBER: _ClassVar[int]
    DIFFERS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    persona: str
    stage: _event_pb2.PolicyStage
    live_version: str
    live_action: _event_pb2.PolicyAction
    live_reason_code: str
    live_rule_ids: _containers.RepeatedScalarFieldContainer[str]
    action: _event_pb2.PolicyAction
    reason_code: str
    rule_ids: _containers.RepeatedScalarFieldContainer[str]
    differs: bool
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, persona: _Optional[str] = ..., stage: _Optional[_Union[_event_pb2.PolicyStage, str]] = ..., live_version: _Optional[str] = ..., live_action: _Optional[_Union[_event_pb2.PolicyAction, str]] = ..., live_reason_code: _Optional[str] = ..., live_rule_ids: _Optional[_Iterable[str]] = ..., action: _Optional[_Union[_event_pb2.PolicyAction, str]] = ..., reason_code: _Optional[str] = ..., rule_ids: _Optional[_Iterable[str]] = ..., differs: _Optional[bool] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ListShadowDecisionsRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token", "differing")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    DIFFERING_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    differing: bool
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., differing: _Optional[bool] = ...) -> None: ...

class ListShadowDecisionsResponse(_message.Message):
    __slots__ = ("shadow_decisions", "next_page_token")
    SHADOW_DECISIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    shadow_decisions: _containers.RepeatedCompositeFieldContainer[ShadowDecision]
    next_page_token: str
    def __init__(self, shadow_decisions: _Optional[_Iterable[_Union[ShadowDecision, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class BundleSource(_message.Message):
    __slots__ = ("name", "content", "in_force", "shipped")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    IN_FORCE_FIELD_NUMBER: _ClassVar[int]
    SHIPPED_FIELD_NUMBER: _ClassVar[int]
    name: str
    content: bytes
    in_force: bool
    shipped: bool
    def __init__(self, name: _Optional[str] = ..., content: _Optional[bytes] = ..., in_force: _Optional[bool] = ..., shipped: _Optional[bool] = ...) -> None: ...

class ReplayBundleRequest(_message.Message):
    __slots__ = ("parent", "old", "new", "limit", "start_time")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    OLD_FIELD_NUMBER: _ClassVar[int]
    NEW_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    parent: str
    old: BundleSource
    new: BundleSource
    limit: int
    start_time: _timestamp_pb2.Timestamp
    def __init__(self, parent: _Optional[str] = ..., old: _Optional[_Union[BundleSource, _Mapping]] = ..., new: _Optional[_Union[BundleSource, _Mapping]] = ..., limit: _Optional[int] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class BundleDiff(_message.Message):
    __slots__ = ("old_version", "new_version", "by_text", "by_signals", "undetermined", "changed", "changes", "rules")
    class Change(_message.Message):
        __slots__ = ("stage", "old_action", "old_rule_id", "new_action", "new_rule_id", "count", "examples")
        STAGE_FIELD_NUMBER: _ClassVar[int]
        OLD_ACTION_FIELD_NUMBER: _ClassVar[int]
        OLD_RULE_ID_FIELD_NUMBER: _ClassVar[int]
        NEW_ACTION_FIELD_NUMBER: _ClassVar[int]
        NEW_RULE_ID_FIELD_NUMBER: _ClassVar[int]
        COUNT_FIELD_NUMBER: _ClassVar[int]
        EXAMPLES_FIELD_NUMBER: _ClassVar[int]
        stage: _event_pb2.PolicyStage
        old_action: _event_pb2.PolicyAction
        old_rule_id: str
        new_action: _event_pb2.PolicyAction
        new_rule_id: str
        count: int
        examples: _containers.RepeatedScalarFieldContainer[str]
        def __init__(self, stage: _Optional[_Union[_event_pb2.PolicyStage, str]] = ..., old_action: _Optional[_Union[_event_pb2.PolicyAction, str]] = ..., old_rule_id: _Optional[str] = ..., new_action: _Optional[_Union[_event_pb2.PolicyAction, str]] = ..., new_rule_id: _Optional[str] = ..., count: _Optional[int] = ..., examples: _Optional[_Iterable[str]] = ...) -> None: ...
    class RuleCount(_message.Message):
        __slots__ = ("rule_id", "old_count", "new_count")
        RULE_ID_FIELD_NUMBER: _ClassVar[int]
        OLD_COUNT_FIELD_NUMBER: _ClassVar[int]
        NEW_COUNT_FIELD_NUMBER: _ClassVar[int]
        rule_id: str
        old_count: int
        new_count: int
        def __init__(self, rule_id: _Optional[str] = ..., old_count: _Optional[int] = ..., new_count: _Optional[int] = ...) -> None: ...
    class UndeterminedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    OLD_VERSION_FIELD_NUMBER: _ClassVar[int]
    NEW_VERSION_FIELD_NUMBER: _ClassVar[int]
    BY_TEXT_FIELD_NUMBER: _ClassVar[int]
    BY_SIGNALS_FIELD_NUMBER: _ClassVar[int]
    UNDETERMINED_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    old_version: str
    new_version: str
    by_text: int
    by_signals: int
    undetermined: _containers.ScalarMap[str, int]
    changed: int
    changes: _containers.RepeatedCompositeFieldContainer[BundleDiff.Change]
    rules: _containers.RepeatedCompositeFieldContainer[BundleDiff.RuleCount]
    def __init__(self, old_version: _Optional[str] = ..., new_version: _Optional[str] = ..., by_text: _Optional[int] = ..., by_signals: _Optional[int] = ..., undetermined: _Optional[_Mapping[str, int]] = ..., changed: _Optional[int] = ..., changes: _Optional[_Iterable[_Union[BundleDiff.Change, _Mapping]]] = ..., rules: _Optional[_Iterable[_Union[BundleDiff.RuleCount, _Mapping]]] = ...) -> None: ...
