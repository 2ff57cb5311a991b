import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AiLabel(_message.Message):
    __slots__ = ("generated_by_ai", "persona", "revision", "model", "adapter", "generate_time", "policy_bundle", "digital_source_type")
    GENERATED_BY_AI_FIELD_NUMBER: _ClassVar[int]
    PERSONA_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    GENERATE_TIME_FIELD_NUMBER: _ClassVar[int]
    POLICY_BUNDLE_FIELD_NUMBER: _ClassVar[int]
    DIGITAL_SOURCE_TYPE_FIELD_NUMBER: _ClassVar[int]
    generated_by_ai: bool
    persona: str
    revision: str
    model: str
    adapter: str
    generate_time: _timestamp_pb2.Timestamp
    policy_bundle: str
    digital_source_type: str
    def __init__(self, generated_by_ai: _Optional[bool] = ..., persona: _Optional[str] = ..., revision: _Optional[str] = ..., model: _Optional[str] = ..., adapter: _Optional[str] = ..., generate_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., policy_bundle: _Optional[str] = ..., digital_source_type: _Optional[str] = ...) -> None: ...
