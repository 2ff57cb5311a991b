from buf.validate import validate_pb2 as _validate_pb2
from personae.v1 import provenance_pb2 as _provenance_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExportContentRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ExportContentResponse(_message.Message):
    __slots__ = ("content", "media_type", "manifest", "ai_label")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    AI_LABEL_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    media_type: str
    manifest: bytes
    ai_label: _provenance_pb2.AiLabel
    def __init__(self, content: _Optional[bytes] = ..., media_type: _Optional[str] = ..., manifest: _Optional[bytes] = ..., ai_label: _Optional[_Union[_provenance_pb2.AiLabel, _Mapping]] = ...) -> None: ...
