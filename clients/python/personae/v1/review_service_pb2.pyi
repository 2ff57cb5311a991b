import datetime

from buf.validate import validate_pb2 as _validate_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SampleVerdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SAMPLE_VERDICT_UNSPECIFIED: _ClassVar[SampleVerdict]
    SAMPLE_VERDICT_CORRECT: _ClassVar[SampleVerdict]
    SAMPLE_VERDICT_FALSE_POSITIVE: _ClassVar[SampleVerdict]
    SAMPLE_VERDICT_UNDECIDED: _ClassVar[SampleVerdict]

class ReviewOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REVIEW_OUTCOME_UNSPECIFIED: _ClassVar[ReviewOutcome]
    REVIEW_OUTCOME_UPHOLD: _ClassVar[ReviewOutcome]
    REVIEW_OUTCOME_OVERTURN: _ClassVar[ReviewOutcome]
    REVIEW_OUTCOME_MODIFY: _ClassVar[ReviewOutcome]

class ReviewState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REVIEW_STATE_UNSPECIFIED: _ClassVar[ReviewState]
    REVIEW_STATE_OPEN: _ClassVar[ReviewState]
    REVIEW_STATE_RESOLVED: _ClassVar[ReviewState]
    REVIEW_STATE_WITHDRAWN: _ClassVar[ReviewState]
SAMPLE_VERDICT_UNSPECIFIED: SampleVerdict
SAMPLE_VERDICT_CORRECT: SampleVerdict
SAMPLE_VERDICT_FALSE_POSITIVE: SampleVerdict
SAMPLE_VERDICT_UNDECIDED: SampleVerdict
REVIEW_OUTCOME_UNSPECIFIED: ReviewOutcome
REVIEW_OUTCOME_UPHOLD: ReviewOutcome
REVIEW_OUTCOME_OVERTURN: ReviewOutcome
REVIEW_OUTCOME_MODIFY: ReviewOutcome
REVIEW_STATE_UNSPECIFIED: ReviewState
REVIEW_STATE_OPEN: ReviewState
REVIEW_STATE_RESOLVED: ReviewState
REVIEW_STATE_WITHDRAWN: ReviewState

class Appeal(_message.Message):
    __slots__ = ("name", "decision", "statement", "state", "outcome", "reason_code", "reasons", "create_time", "due_time", "resolve_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_CODE_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    DUE_TIME_FIELD_NUMBER: _ClassVar[int]
    RESOLVE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    decision: str
    statement: str
    state: ReviewState
    outcome: ReviewOutcome
    reason_code: str
    reasons: str
    create_time: _timestamp_pb2.Timestamp
    due_time: _timestamp_pb2.Timestamp
    resolve_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., decision: _Optional[str] = ..., statement: _Optional[str] = ..., state: _Optional[_Union[ReviewState, str]] = ..., outcome: _Optional[_Union[ReviewOutcome, str]] = ..., reason_code: _Optional[str] = ..., reasons: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., due_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., resolve_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class AppealDecisionRequest(_message.Message):
    __slots__ = ("decision", "statement", "judged_text", "share_message", "allow_test", "request_id")
    DECISION_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    JUDGED_TEXT_FIELD_NUMBER: _ClassVar[int]
    SHARE_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ALLOW_TEST_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    decision: str
    statement: str
    judged_text: str
    share_message: bool
    allow_test: bool
    request_id: str
    def __init__(self, decision: _Optional[str] = ..., statement: _Optional[str] = ..., judged_text: _Optional[str] = ..., share_message: _Optional[bool] = ..., allow_test: _Optional[bool] = ..., request_id: _Optional[str] = ...) -> None: ...

class GetAppealRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class Review(_message.Message):
    __slots__ = ("name", "decision", "appeal", "state", "priority", "severity", "reach", "uncertainty", "create_time", "due_time", "overdue", "reviewer", "lease_expire_time", "outcome", "reason_code", "resolve_time", "statement", "judged_text", "verdicts", "escalated")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    APPEAL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    REACH_FIELD_NUMBER: _ClassVar[int]
    UNCERTAINTY_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    DUE_TIME_FIELD_NUMBER: _ClassVar[int]
    OVERDUE_FIELD_NUMBER: _ClassVar[int]
    REVIEWER_FIELD_NUMBER: _ClassVar[int]
    LEASE_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_CODE_FIELD_NUMBER: _ClassVar[int]
    RESOLVE_TIME_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    JUDGED_TEXT_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    ESCALATED_FIELD_NUMBER: _ClassVar[int]
    name: str
    decision: str
    appeal: str
    state: ReviewState
    priority: float
    severity: float
    reach: float
    uncertainty: float
    create_time: _timestamp_pb2.Timestamp
    due_time: _timestamp_pb2.Timestamp
    overdue: bool
    reviewer: str
    lease_expire_time: _timestamp_pb2.Timestamp
    outcome: ReviewOutcome
    reason_code: str
    resolve_time: _timestamp_pb2.Timestamp
    statement: str
    judged_text: str
    verdicts: _containers.RepeatedCompositeFieldContainer[Verdict]
    escalated: bool
    def __init__(self, name: _Optional[str] = ..., decision: _Optional[str] = ..., appeal: _Optional[str] = ..., state: _Optional[_Union[ReviewState, str]] = ..., priority: _Optional[float] = ..., severity: _Optional[float] = ..., reach: _Optional[float] = ..., uncertainty: _Optional[float] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., due_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., overdue: _Optional[bool] = ..., reviewer: _Optional[str] = ..., lease_expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., outcome: _Optional[_Union[ReviewOutcome, str]] = ..., reason_code: _Optional[str] = ..., resolve_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., statement: _Optional[str] = ..., judged_text: _Optional[str] = ..., verdicts: _Optional[_Iterable[_Union[Verdict, _Mapping]]] = ..., escalated: _Optional[bool] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("reviewer", "outcome", "reason_code", "create_time")
    REVIEWER_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_CODE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    reviewer: str
    outcome: ReviewOutcome
    reason_code: str
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, reviewer: _Optional[str] = ..., outcome: _Optional[_Union[ReviewOutcome, str]] = ..., reason_code: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class LeaseReviewRequest(_message.Message):
    __slots__ = ("parent", "review")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    REVIEW_FIELD_NUMBER: _ClassVar[int]
    parent: str
    review: str
    def __init__(self, parent: _Optional[str] = ..., review: _Optional[str] = ...) -> None: ...

class LeaseReviewResponse(_message.Message):
    __slots__ = ("review",)
    REVIEW_FIELD_NUMBER: _ClassVar[int]
    review: Review
    def __init__(self, review: _Optional[_Union[Review, _Mapping]] = ...) -> None: ...

class ResolveReviewRequest(_message.Message):
    __slots__ = ("name", "outcome", "reason_code", "note", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_CODE_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    outcome: ReviewOutcome
    reason_code: str
    note: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., outcome: _Optional[_Union[ReviewOutcome, str]] = ..., reason_code: _Optional[str] = ..., note: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class ListReviewsRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token", "state", "overdue")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    OVERDUE_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    state: ReviewState
    overdue: bool
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., state: _Optional[_Union[ReviewState, str]] = ..., overdue: _Optional[bool] = ...) -> None: ...

class ListReviewsResponse(_message.Message):
    __slots__ = ("reviews", "next_page_token", "open_count", "overdue_count")
    REVIEWS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    OPEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    OVERDUE_COUNT_FIELD_NUMBER: _ClassVar[int]
    reviews: _containers.RepeatedCompositeFieldContainer[Review]
    next_page_token: str
    open_count: int
    overdue_count: int
    def __init__(self, reviews: _Optional[_Iterable[_Union[Review, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., open_count: _Optional[int] = ..., overdue_count: _Optional[int] = ...) -> None: ...

class GetBundleDraftRequest(_message.Message):
    __slots__ = ("parent",)
    PARENT_FIELD_NUMBER: _ClassVar[int]
    parent: str
    def __init__(self, parent: _Optional[str] = ...) -> None: ...

class BundleDraft(_message.Message):
    __slots__ = ("yaml", "test_count", "withheld_count")
    YAML_FIELD_NUMBER: _ClassVar[int]
    TEST_COUNT_FIELD_NUMBER: _ClassVar[int]
    WITHHELD_COUNT_FIELD_NUMBER: _ClassVar[int]
    yaml: str
    test_count: int
    withheld_count: int
    def __init__(self, yaml: _Optional[str] = ..., test_count: _Optional[int] = ..., withheld_count: _Optional[int] = ...) -> None: ...

class NextSampledDecisionRequest(_message.Message):
    __slots__ = ("parent", "start_time", "end_time")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    parent: str
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    def __init__(self, parent: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class NextSampledDecisionResponse(_message.Message):
    __slots__ = ("decision", "remaining_count", "message")
    DECISION_FIELD_NUMBER: _ClassVar[int]
    REMAINING_COUNT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    decision: str
    remaining_count: int
    message: str
    def __init__(self, decision: _Optional[str] = ..., remaining_count: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class JudgeSampledDecisionRequest(_message.Message):
    __slots__ = ("decision", "verdict", "reason_code")
    DECISION_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REASON_CODE_FIELD_NUMBER: _ClassVar[int]
    decision: str
    verdict: SampleVerdict
    reason_code: str
    def __init__(self, decision: _Optional[str] = ..., verdict: _Optional[_Union[SampleVerdict, str]] = ..., reason_code: _Optional[str] = ...) -> None: ...

class SampleJudgment(_message.Message):
    __slots__ = ("decision", "verdict", "reason_code", "create_time")
    DECISION_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REASON_CODE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    decision: str
    verdict: SampleVerdict
    reason_code: str
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, decision: _Optional[str] = ..., verdict: _Optional[_Union[SampleVerdict, str]] = ..., reason_code: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
