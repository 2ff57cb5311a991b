import datetime

from buf.validate import validate_pb2 as _validate_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from personae.v1 import bundle_pb2 as _bundle_pb2
from personae.v1 import event_pb2 as _event_pb2
from personae.v1 import persona_service_pb2 as _persona_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AgeBand(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AGE_BAND_UNSPECIFIED: _ClassVar[AgeBand]
    AGE_BAND_TEEN: _ClassVar[AgeBand]
    AGE_BAND_ADULT: _ClassVar[AgeBand]

class ConsentPurpose(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONSENT_PURPOSE_UNSPECIFIED: _ClassVar[ConsentPurpose]
    CONSENT_PURPOSE_LIKENESS: _ClassVar[ConsentPurpose]
    CONSENT_PURPOSE_MEMORY: _ClassVar[ConsentPurpose]

class ConsentState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONSENT_STATE_UNSPECIFIED: _ClassVar[ConsentState]
    CONSENT_STATE_GRANTED: _ClassVar[ConsentState]
    CONSENT_STATE_WITHDRAWN: _ClassVar[ConsentState]
AGE_BAND_UNSPECIFIED: AgeBand
AGE_BAND_TEEN: AgeBand
AGE_BAND_ADULT: AgeBand
CONSENT_PURPOSE_UNSPECIFIED: ConsentPurpose
CONSENT_PURPOSE_LIKENESS: ConsentPurpose
CONSENT_PURPOSE_MEMORY: ConsentPurpose
CONSENT_STATE_UNSPECIFIED: ConsentState
CONSENT_STATE_GRANTED: ConsentState
CONSENT_STATE_WITHDRAWN: ConsentState

class ClassifyRequest(_message.Message):
    __slots__ = ("parent", "text", "stage", "persona_type", "age_band", "region_code", "signals", "persona")
    class SignalsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    PARENT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    PERSONA_TYPE_FIELD_NUMBER: _ClassVar[int]
    AGE_BAND_FIELD_NUMBER: _ClassVar[int]
    REGION_CODE_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    PERSONA_FIELD_NUMBER: _ClassVar[int]
    parent: str
    text: str
    stage: _event_pb2.PolicyStage
    persona_type: _persona_service_pb2.PersonaType
    age_band: AgeBand
    region_code: str
    signals: _containers.ScalarMap[str, float]
    persona: str
    def __init__(self, parent: _Optional[str] = ..., text: _Optional[str] = ..., stage: _Optional[_Union[_event_pb2.PolicyStage, str]] = ..., persona_type: _Optional[_Union[_persona_service_pb2.PersonaType, str]] = ..., age_band: _Optional[_Union[AgeBand, str]] = ..., region_code: _Optional[str] = ..., signals: _Optional[_Mapping[str, float]] = ..., persona: _Optional[str] = ...) -> None: ...

class ClassifyResponse(_message.Message):
    __slots__ = ("action", "category", "reason_code", "rules", "matches", "scores", "bundle_version", "template_text", "verified_claims")
    class ScoresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ACTION_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    REASON_CODE_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    MATCHES_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_TEXT_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_CLAIMS_FIELD_NUMBER: _ClassVar[int]
    action: _event_pb2.PolicyAction
    category: str
    reason_code: str
    rules: _containers.RepeatedCompositeFieldContainer[RuleHit]
    matches: _containers.RepeatedCompositeFieldContainer[MatcherHit]
    scores: _containers.ScalarMap[str, float]
    bundle_version: str
    template_text: str
    verified_claims: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, action: _Optional[_Union[_event_pb2.PolicyAction, str]] = ..., category: _Optional[str] = ..., reason_code: _Optional[str] = ..., rules: _Optional[_Iterable[_Union[RuleHit, _Mapping]]] = ..., matches: _Optional[_Iterable[_Union[MatcherHit, _Mapping]]] = ..., scores: _Optional[_Mapping[str, float]] = ..., bundle_version: _Optional[str] = ..., template_text: _Optional[str] = ..., verified_claims: _Optional[_Iterable[str]] = ...) -> None: ...

class RuleHit(_message.Message):
    __slots__ = ("rule_id", "action", "category", "reason_code", "expression", "description", "legal_basis")
    RULE_ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    REASON_CODE_FIELD_NUMBER: _ClassVar[int]
    EXPRESSION_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    LEGAL_BASIS_FIELD_NUMBER: _ClassVar[int]
    rule_id: str
    action: _event_pb2.PolicyAction
    category: str
    reason_code: str
    expression: str
    description: str
    legal_basis: str
    def __init__(self, rule_id: _Optional[str] = ..., action: _Optional[_Union[_event_pb2.PolicyAction, str]] = ..., category: _Optional[str] = ..., reason_code: _Optional[str] = ..., expression: _Optional[str] = ..., description: _Optional[str] = ..., legal_basis: _Optional[str] = ...) -> None: ...

class MatcherHit(_message.Message):
    __slots__ = ("matcher_id", "start", "end")
    MATCHER_ID_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    matcher_id: str
    start: int
    end: int
    def __init__(self, matcher_id: _Optional[str] = ..., start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("name", "persona", "turn", "stage", "action", "category", "reason_code", "rule_ids", "bundle_version", "legal_basis", "persona_type", "age_band", "region_code", "create_time", "verified_claims")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PERSONA_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    REASON_CODE_FIELD_NUMBER: _ClassVar[int]
    RULE_IDS_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    LEGAL_BASIS_FIELD_NUMBER: _ClassVar[int]
    PERSONA_TYPE_FIELD_NUMBER: _ClassVar[int]
    AGE_BAND_FIELD_NUMBER: _ClassVar[int]
    REGION_CODE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_CLAIMS_FIELD_NUMBER: _ClassVar[int]
    name: str
    persona: str
    turn: str
    stage: _event_pb2.PolicyStage
    action: _event_pb2.PolicyAction
    category: str
    reason_code: str
    rule_ids: _containers.RepeatedScalarFieldContainer[str]
    bundle_version: str
    legal_basis: str
    persona_type: _persona_service_pb2.PersonaType
    age_band: AgeBand
    region_code: str
    create_time: _timestamp_pb2.Timestamp
    verified_claims: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., persona: _Optional[str] = ..., turn: _Optional[str] = ..., stage: _Optional[_Union[_event_pb2.PolicyStage, str]] = ..., action: _Optional[_Union[_event_pb2.PolicyAction, str]] = ..., category: _Optional[str] = ..., reason_code: _Optional[str] = ..., rule_ids: _Optional[_Iterable[str]] = ..., bundle_version: _Optional[str] = ..., legal_basis: _Optional[str] = ..., persona_type: _Optional[_Union[_persona_service_pb2.PersonaType, str]] = ..., age_band: _Optional[_Union[AgeBand, str]] = ..., region_code: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., verified_claims: _Optional[_Iterable[str]] = ...) -> None: ...

class GetDecisionRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListDecisionsRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token", "persona", "session", "stage", "action", "category", "start_time", "end_time")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PERSONA_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    persona: str
    session: str
    stage: _event_pb2.PolicyStage
    action: _event_pb2.PolicyAction
    category: str
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., persona: _Optional[str] = ..., session: _Optional[str] = ..., stage: _Optional[_Union[_event_pb2.PolicyStage, str]] = ..., action: _Optional[_Union[_event_pb2.PolicyAction, str]] = ..., category: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ListDecisionsResponse(_message.Message):
    __slots__ = ("decisions", "next_page_token")
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    decisions: _containers.RepeatedCompositeFieldContainer[Decision]
    next_page_token: str
    def __init__(self, decisions: _Optional[_Iterable[_Union[Decision, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class PolicyServiceExplainRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class PolicyServiceExplainResponse(_message.Message):
    __slots__ = ("decision", "rules", "matches", "scores", "comparisons", "template_text", "notice_code", "notice_text", "statement", "appeal_expire_time", "signals")
    class ScoreComparison(_message.Message):
        __slots__ = ("rule_id", "category", "score", "operator", "threshold")
        RULE_ID_FIELD_NUMBER: _ClassVar[int]
        CATEGORY_FIELD_NUMBER: _ClassVar[int]
        SCORE_FIELD_NUMBER: _ClassVar[int]
        OPERATOR_FIELD_NUMBER: _ClassVar[int]
        THRESHOLD_FIELD_NUMBER: _ClassVar[int]
        rule_id: str
        category: str
        score: float
        operator: str
        threshold: float
        def __init__(self, rule_id: _Optional[str] = ..., category: _Optional[str] = ..., score: _Optional[float] = ..., operator: _Optional[str] = ..., threshold: _Optional[float] = ...) -> None: ...
    class ScoresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class SignalsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    DECISION_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    MATCHES_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    COMPARISONS_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_TEXT_FIELD_NUMBER: _ClassVar[int]
    NOTICE_CODE_FIELD_NUMBER: _ClassVar[int]
    NOTICE_TEXT_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    APPEAL_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    decision: Decision
    rules: _containers.RepeatedCompositeFieldContainer[RuleHit]
    matches: _containers.RepeatedCompositeFieldContainer[MatcherHit]
    scores: _containers.ScalarMap[str, float]
    comparisons: _containers.RepeatedCompositeFieldContainer[PolicyServiceExplainResponse.ScoreComparison]
    template_text: str
    notice_code: str
    notice_text: str
    statement: StatementOfReasons
    appeal_expire_time: _timestamp_pb2.Timestamp
    signals: _containers.ScalarMap[str, float]
    def __init__(self, decision: _Optional[_Union[Decision, _Mapping]] = ..., rules: _Optional[_Iterable[_Union[RuleHit, _Mapping]]] = ..., matches: _Optional[_Iterable[_Union[MatcherHit, _Mapping]]] = ..., scores: _Optional[_Mapping[str, float]] = ..., comparisons: _Optional[_Iterable[_Union[PolicyServiceExplainResponse.ScoreComparison, _Mapping]]] = ..., template_text: _Optional[str] = ..., notice_code: _Optional[str] = ..., notice_text: _Optional[str] = ..., statement: _Optional[_Union[StatementOfReasons, _Mapping]] = ..., appeal_expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., signals: _Optional[_Mapping[str, float]] = ...) -> None: ...

class StatementOfReasons(_message.Message):
    __slots__ = ("reason", "restriction", "facts", "automated_means", "legal_ground", "contractual_ground", "redress")
    REASON_FIELD_NUMBER: _ClassVar[int]
    RESTRICTION_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    AUTOMATED_MEANS_FIELD_NUMBER: _ClassVar[int]
    LEGAL_GROUND_FIELD_NUMBER: _ClassVar[int]
    CONTRACTUAL_GROUND_FIELD_NUMBER: _ClassVar[int]
    REDRESS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    restriction: str
    facts: str
    automated_means: str
    legal_ground: str
    contractual_ground: str
    redress: str
    def __init__(self, reason: _Optional[str] = ..., restriction: _Optional[str] = ..., facts: _Optional[str] = ..., automated_means: _Optional[str] = ..., legal_ground: _Optional[str] = ..., contractual_ground: _Optional[str] = ..., redress: _Optional[str] = ...) -> None: ...

class KillSwitch(_message.Message):
    __slots__ = ("name", "whole_tenant", "persona", "rule_id", "reason", "creator", "create_time", "lift_time", "lift_reason", "lifter")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WHOLE_TENANT_FIELD_NUMBER: _ClassVar[int]
    PERSONA_FIELD_NUMBER: _ClassVar[int]
    RULE_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CREATOR_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    LIFT_TIME_FIELD_NUMBER: _ClassVar[int]
    LIFT_REASON_FIELD_NUMBER: _ClassVar[int]
    LIFTER_FIELD_NUMBER: _ClassVar[int]
    name: str
    whole_tenant: bool
    persona: str
    rule_id: str
    reason: str
    creator: str
    create_time: _timestamp_pb2.Timestamp
    lift_time: _timestamp_pb2.Timestamp
    lift_reason: str
    lifter: str
    def __init__(self, name: _Optional[str] = ..., whole_tenant: _Optional[bool] = ..., persona: _Optional[str] = ..., rule_id: _Optional[str] = ..., reason: _Optional[str] = ..., creator: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., lift_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., lift_reason: _Optional[str] = ..., lifter: _Optional[str] = ...) -> None: ...

class CreateKillSwitchRequest(_message.Message):
    __slots__ = ("parent", "kill_switch", "request_id")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    KILL_SWITCH_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    parent: str
    kill_switch: KillSwitch
    request_id: str
    def __init__(self, parent: _Optional[str] = ..., kill_switch: _Optional[_Union[KillSwitch, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class GetKillSwitchRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListKillSwitchesRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token", "show_lifted")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SHOW_LIFTED_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    show_lifted: bool
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., show_lifted: _Optional[bool] = ...) -> None: ...

class ListKillSwitchesResponse(_message.Message):
    __slots__ = ("kill_switches", "next_page_token")
    KILL_SWITCHES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    kill_switches: _containers.RepeatedCompositeFieldContainer[KillSwitch]
    next_page_token: str
    def __init__(self, kill_switches: _Optional[_Iterable[_Union[KillSwitch, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class LiftKillSwitchRequest(_message.Message):
    __slots__ = ("name", "reason", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    reason: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., reason: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class ConsentEvent(_message.Message):
    __slots__ = ("subject", "purpose", "state", "evidence", "event_time")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    subject: str
    purpose: ConsentPurpose
    state: ConsentState
    evidence: str
    event_time: _timestamp_pb2.Timestamp
    def __init__(self, subject: _Optional[str] = ..., purpose: _Optional[_Union[ConsentPurpose, str]] = ..., state: _Optional[_Union[ConsentState, str]] = ..., evidence: _Optional[str] = ..., event_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class RecordConsentRequest(_message.Message):
    __slots__ = ("consent_event", "request_id")
    CONSENT_EVENT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    consent_event: ConsentEvent
    request_id: str
    def __init__(self, consent_event: _Optional[_Union[ConsentEvent, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class ListConsentEventsRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListConsentEventsResponse(_message.Message):
    __slots__ = ("consent_events", "next_page_token")
    CONSENT_EVENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    consent_events: _containers.RepeatedCompositeFieldContainer[ConsentEvent]
    next_page_token: str
    def __init__(self, consent_events: _Optional[_Iterable[_Union[ConsentEvent, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CountCrisisReferralsRequest(_message.Message):
    __slots__ = ("parent", "start_date", "end_date")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    START_DATE_FIELD_NUMBER: _ClassVar[int]
    END_DATE_FIELD_NUMBER: _ClassVar[int]
    parent: str
    start_date: str
    end_date: str
    def __init__(self, parent: _Optional[str] = ..., start_date: _Optional[str] = ..., end_date: _Optional[str] = ...) -> None: ...

class CountCrisisReferralsResponse(_message.Message):
    __slots__ = ("counts", "referrals")
    class Count(_message.Message):
        __slots__ = ("date", "region_code", "tier", "referrals", "people")
        DATE_FIELD_NUMBER: _ClassVar[int]
        REGION_CODE_FIELD_NUMBER: _ClassVar[int]
        TIER_FIELD_NUMBER: _ClassVar[int]
        REFERRALS_FIELD_NUMBER: _ClassVar[int]
        PEOPLE_FIELD_NUMBER: _ClassVar[int]
        date: str
        region_code: str
        tier: str
        referrals: int
        people: int
        def __init__(self, date: _Optional[str] = ..., region_code: _Optional[str] = ..., tier: _Optional[str] = ..., referrals: _Optional[int] = ..., people: _Optional[int] = ...) -> None: ...
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    REFERRALS_FIELD_NUMBER: _ClassVar[int]
    counts: _containers.RepeatedCompositeFieldContainer[CountCrisisReferralsResponse.Count]
    referrals: int
    def __init__(self, counts: _Optional[_Iterable[_Union[CountCrisisReferralsResponse.Count, _Mapping]]] = ..., referrals: _Optional[int] = ...) -> None: ...
