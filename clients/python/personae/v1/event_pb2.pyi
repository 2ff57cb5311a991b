import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from personae.v1 import provenance_pb2 as _provenance_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PolicyAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POLICY_ACTION_UNSPECIFIED: _ClassVar[PolicyAction]
    POLICY_ACTION_ALLOW: _ClassVar[PolicyAction]
    POLICY_ACTION_TRANSFORM: _ClassVar[PolicyAction]
    POLICY_ACTION_BLOCK: _ClassVar[PolicyAction]
    POLICY_ACTION_ESCALATE: _ClassVar[PolicyAction]

class PolicyStage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POLICY_STAGE_UNSPECIFIED: _ClassVar[PolicyStage]
    POLICY_STAGE_INPUT: _ClassVar[PolicyStage]
    POLICY_STAGE_MEMORY: _ClassVar[PolicyStage]
    POLICY_STAGE_OUTPUT: _ClassVar[PolicyStage]
    POLICY_STAGE_CONTENT: _ClassVar[PolicyStage]
    POLICY_STAGE_SIGNAL: _ClassVar[PolicyStage]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_POLICY: _ClassVar[FinishReason]
POLICY_ACTION_UNSPECIFIED: PolicyAction
POLICY_ACTION_ALLOW: PolicyAction
POLICY_ACTION_TRANSFORM: PolicyAction
POLICY_ACTION_BLOCK: PolicyAction
POLICY_ACTION_ESCALATE: PolicyAction
POLICY_STAGE_UNSPECIFIED: PolicyStage
POLICY_STAGE_INPUT: PolicyStage
POLICY_STAGE_MEMORY: PolicyStage
POLICY_STAGE_OUTPUT: PolicyStage
POLICY_STAGE_CONTENT: PolicyStage
POLICY_STAGE_SIGNAL: PolicyStage
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_POLICY: FinishReason

class SessionEvent(_message.Message):
    __slots__ = ("event_id", "turn_id", "time", "ai_label", "turn_started", "waiting", "text_delta", "memory_citation", "policy_event", "notice", "usage", "latency", "turn_interrupted", "turn_completed", "go_away", "gap", "passage_citation")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    TURN_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    AI_LABEL_FIELD_NUMBER: _ClassVar[int]
    TURN_STARTED_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    TEXT_DELTA_FIELD_NUMBER: _ClassVar[int]
    MEMORY_CITATION_FIELD_NUMBER: _ClassVar[int]
    POLICY_EVENT_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    TURN_INTERRUPTED_FIELD_NUMBER: _ClassVar[int]
    TURN_COMPLETED_FIELD_NUMBER: _ClassVar[int]
    GO_AWAY_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    PASSAGE_CITATION_FIELD_NUMBER: _ClassVar[int]
    event_id: int
    turn_id: str
    time: _timestamp_pb2.Timestamp
    ai_label: _provenance_pb2.AiLabel
    turn_started: TurnStarted
    waiting: Waiting
    text_delta: TextDelta
    memory_citation: MemoryCitation
    policy_event: PolicyEvent
    notice: Notice
    usage: Usage
    latency: Latency
    turn_interrupted: TurnInterrupted
    turn_completed: TurnCompleted
    go_away: GoAway
    gap: Gap
    passage_citation: PassageCitation
    def __init__(self, event_id: _Optional[int] = ..., turn_id: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ai_label: _Optional[_Union[_provenance_pb2.AiLabel, _Mapping]] = ..., turn_started: _Optional[_Union[TurnStarted, _Mapping]] = ..., waiting: _Optional[_Union[Waiting, _Mapping]] = ..., text_delta: _Optional[_Union[TextDelta, _Mapping]] = ..., memory_citation: _Optional[_Union[MemoryCitation, _Mapping]] = ..., policy_event: _Optional[_Union[PolicyEvent, _Mapping]] = ..., notice: _Optional[_Union[Notice, _Mapping]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., latency: _Optional[_Union[Latency, _Mapping]] = ..., turn_interrupted: _Optional[_Union[TurnInterrupted, _Mapping]] = ..., turn_completed: _Optional[_Union[TurnCompleted, _Mapping]] = ..., go_away: _Optional[_Union[GoAway, _Mapping]] = ..., gap: _Optional[_Union[Gap, _Mapping]] = ..., passage_citation: _Optional[_Union[PassageCitation, _Mapping]] = ...) -> None: ...

class TurnStarted(_message.Message):
    __slots__ = ("disclosure", "revision")
    DISCLOSURE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    disclosure: str
    revision: str
    def __init__(self, disclosure: _Optional[str] = ..., revision: _Optional[str] = ...) -> None: ...

class Waiting(_message.Message):
    __slots__ = ("reason",)
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[Waiting.Reason]
        REASON_ENGINE_QUEUE: _ClassVar[Waiting.Reason]
        REASON_MODEL_LOADING: _ClassVar[Waiting.Reason]
    REASON_UNSPECIFIED: Waiting.Reason
    REASON_ENGINE_QUEUE: Waiting.Reason
    REASON_MODEL_LOADING: Waiting.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: Waiting.Reason
    def __init__(self, reason: _Optional[_Union[Waiting.Reason, str]] = ...) -> None: ...

class TextDelta(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class MemoryCitation(_message.Message):
    __slots__ = ("memory", "quote", "speaker", "occur_time", "score", "ai_label")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    QUOTE_FIELD_NUMBER: _ClassVar[int]
    SPEAKER_FIELD_NUMBER: _ClassVar[int]
    OCCUR_TIME_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    AI_LABEL_FIELD_NUMBER: _ClassVar[int]
    memory: str
    quote: str
    speaker: str
    occur_time: _timestamp_pb2.Timestamp
    score: float
    ai_label: _provenance_pb2.AiLabel
    def __init__(self, memory: _Optional[str] = ..., quote: _Optional[str] = ..., speaker: _Optional[str] = ..., occur_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., score: _Optional[float] = ..., ai_label: _Optional[_Union[_provenance_pb2.AiLabel, _Mapping]] = ...) -> None: ...

class PassageCitation(_message.Message):
    __slots__ = ("document", "title", "uri", "quote", "publish_time", "score", "ai_label")
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    QUOTE_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_TIME_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    AI_LABEL_FIELD_NUMBER: _ClassVar[int]
    document: str
    title: str
    uri: str
    quote: str
    publish_time: _timestamp_pb2.Timestamp
    score: float
    ai_label: _provenance_pb2.AiLabel
    def __init__(self, document: _Optional[str] = ..., title: _Optional[str] = ..., uri: _Optional[str] = ..., quote: _Optional[str] = ..., publish_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., score: _Optional[float] = ..., ai_label: _Optional[_Union[_provenance_pb2.AiLabel, _Mapping]] = ...) -> None: ...

class PolicyEvent(_message.Message):
    __slots__ = ("action", "category", "reason_code", "stage", "decision")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    REASON_CODE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    action: PolicyAction
    category: str
    reason_code: str
    stage: PolicyStage
    decision: str
    def __init__(self, action: _Optional[_Union[PolicyAction, str]] = ..., category: _Optional[str] = ..., reason_code: _Optional[str] = ..., stage: _Optional[_Union[PolicyStage, str]] = ..., decision: _Optional[str] = ...) -> None: ...

class Notice(_message.Message):
    __slots__ = ("code", "text")
    CODE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    code: str
    text: str
    def __init__(self, code: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("input_tokens", "cached_input_tokens", "output_tokens")
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    def __init__(self, input_tokens: _Optional[int] = ..., cached_input_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ...) -> None: ...

class Latency(_message.Message):
    __slots__ = ("queue", "ttft", "first_release")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    TTFT_FIELD_NUMBER: _ClassVar[int]
    FIRST_RELEASE_FIELD_NUMBER: _ClassVar[int]
    queue: _duration_pb2.Duration
    ttft: _duration_pb2.Duration
    first_release: _duration_pb2.Duration
    def __init__(self, queue: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., ttft: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., first_release: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class TurnInterrupted(_message.Message):
    __slots__ = ("delivered_chars", "reason")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[TurnInterrupted.Reason]
        REASON_OWNER_LOST: _ClassVar[TurnInterrupted.Reason]
        REASON_CANCELLED: _ClassVar[TurnInterrupted.Reason]
        REASON_ABANDONED: _ClassVar[TurnInterrupted.Reason]
        REASON_ENGINE_FAILED: _ClassVar[TurnInterrupted.Reason]
        REASON_WITHDRAWN: _ClassVar[TurnInterrupted.Reason]
        REASON_LEDGER_UNAVAILABLE: _ClassVar[TurnInterrupted.Reason]
        REASON_TIMED_OUT: _ClassVar[TurnInterrupted.Reason]
        REASON_KILLED: _ClassVar[TurnInterrupted.Reason]
    REASON_UNSPECIFIED: TurnInterrupted.Reason
    REASON_OWNER_LOST: TurnInterrupted.Reason
    REASON_CANCELLED: TurnInterrupted.Reason
    REASON_ABANDONED: TurnInterrupted.Reason
    REASON_ENGINE_FAILED: TurnInterrupted.Reason
    REASON_WITHDRAWN: TurnInterrupted.Reason
    REASON_LEDGER_UNAVAILABLE: TurnInterrupted.Reason
    REASON_TIMED_OUT: TurnInterrupted.Reason
    REASON_KILLED: TurnInterrupted.Reason
    DELIVERED_CHARS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    delivered_chars: int
    reason: TurnInterrupted.Reason
    def __init__(self, delivered_chars: _Optional[int] = ..., reason: _Optional[_Union[TurnInterrupted.Reason, str]] = ...) -> None: ...

class TurnCompleted(_message.Message):
    __slots__ = ("finish_reason",)
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    finish_reason: FinishReason
    def __init__(self, finish_reason: _Optional[_Union[FinishReason, str]] = ...) -> None: ...

class GoAway(_message.Message):
    __slots__ = ("time_left",)
    TIME_LEFT_FIELD_NUMBER: _ClassVar[int]
    time_left: _duration_pb2.Duration
    def __init__(self, time_left: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Gap(_message.Message):
    __slots__ = ("first_event_id", "last_event_id")
    FIRST_EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    LAST_EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    first_event_id: int
    last_event_id: int
    def __init__(self, first_event_id: _Optional[int] = ..., last_event_id: _Optional[int] = ...) -> None: ...
