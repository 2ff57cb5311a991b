import datetime

from buf.validate import validate_pb2 as _validate_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf import field_mask_pb2 as _field_mask_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PersonaType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PERSONA_TYPE_UNSPECIFIED: _ClassVar[PersonaType]
    PERSONA_TYPE_ASSISTANT: _ClassVar[PersonaType]
    PERSONA_TYPE_COMPANION: _ClassVar[PersonaType]
    PERSONA_TYPE_CURATOR: _ClassVar[PersonaType]
    PERSONA_TYPE_BRAND_ADVOCATE: _ClassVar[PersonaType]
    PERSONA_TYPE_CLONE: _ClassVar[PersonaType]

class ClaimKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLAIM_KIND_UNSPECIFIED: _ClassVar[ClaimKind]
    CLAIM_KIND_CHILD: _ClassVar[ClaimKind]
    CLAIM_KIND_BODY: _ClassVar[ClaimKind]
    CLAIM_KIND_POSSESSION: _ClassVar[ClaimKind]
    CLAIM_KIND_OFFER: _ClassVar[ClaimKind]
    CLAIM_KIND_ENDORSEMENT: _ClassVar[ClaimKind]

class Formality(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FORMALITY_UNSPECIFIED: _ClassVar[Formality]
    FORMALITY_CASUAL: _ClassVar[Formality]
    FORMALITY_NEUTRAL: _ClassVar[Formality]
    FORMALITY_FORMAL: _ClassVar[Formality]

class EmojiUse(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EMOJI_USE_UNSPECIFIED: _ClassVar[EmojiUse]
    EMOJI_USE_NONE: _ClassVar[EmojiUse]
    EMOJI_USE_SPARING: _ClassVar[EmojiUse]
    EMOJI_USE_FREE: _ClassVar[EmojiUse]

class RevisionState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REVISION_STATE_UNSPECIFIED: _ClassVar[RevisionState]
    REVISION_STATE_ACTIVE: _ClassVar[RevisionState]
    REVISION_STATE_SUPERSEDED: _ClassVar[RevisionState]
    REVISION_STATE_WITHDRAWN: _ClassVar[RevisionState]
PERSONA_TYPE_UNSPECIFIED: PersonaType
PERSONA_TYPE_ASSISTANT: PersonaType
PERSONA_TYPE_COMPANION: PersonaType
PERSONA_TYPE_CURATOR: PersonaType
PERSONA_TYPE_BRAND_ADVOCATE: PersonaType
PERSONA_TYPE_CLONE: PersonaType
CLAIM_KIND_UNSPECIFIED: ClaimKind
CLAIM_KIND_CHILD: ClaimKind
CLAIM_KIND_BODY: ClaimKind
CLAIM_KIND_POSSESSION: ClaimKind
CLAIM_KIND_OFFER: ClaimKind
CLAIM_KIND_ENDORSEMENT: ClaimKind
FORMALITY_UNSPECIFIED: Formality
FORMALITY_CASUAL: Formality
FORMALITY_NEUTRAL: Formality
FORMALITY_FORMAL: Formality
EMOJI_USE_UNSPECIFIED: EmojiUse
EMOJI_USE_NONE: EmojiUse
EMOJI_USE_SPARING: EmojiUse
EMOJI_USE_FREE: EmojiUse
REVISION_STATE_UNSPECIFIED: RevisionState
REVISION_STATE_ACTIVE: RevisionState
REVISION_STATE_SUPERSEDED: RevisionState
REVISION_STATE_WITHDRAWN: RevisionState

class Persona(_message.Message):
    __slots__ = ("name", "display_name", "type", "active_revision", "create_time", "update_time", "delete_time", "etag", "owner")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_REVISION_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    DELETE_TIME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    name: str
    display_name: str
    type: PersonaType
    active_revision: str
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    delete_time: _timestamp_pb2.Timestamp
    etag: str
    owner: str
    def __init__(self, name: _Optional[str] = ..., display_name: _Optional[str] = ..., type: _Optional[_Union[PersonaType, str]] = ..., active_revision: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., delete_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., etag: _Optional[str] = ..., owner: _Optional[str] = ...) -> None: ...

class PersonaDefinition(_message.Message):
    __slots__ = ("card", "style", "exemplars", "generation", "verified_claims")
    CARD_FIELD_NUMBER: _ClassVar[int]
    STYLE_FIELD_NUMBER: _ClassVar[int]
    EXEMPLARS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_CLAIMS_FIELD_NUMBER: _ClassVar[int]
    card: str
    style: StyleSheet
    exemplars: _containers.RepeatedCompositeFieldContainer[Exemplar]
    generation: GenerationConfig
    verified_claims: _containers.RepeatedCompositeFieldContainer[VerifiedClaim]
    def __init__(self, card: _Optional[str] = ..., style: _Optional[_Union[StyleSheet, _Mapping]] = ..., exemplars: _Optional[_Iterable[_Union[Exemplar, _Mapping]]] = ..., generation: _Optional[_Union[GenerationConfig, _Mapping]] = ..., verified_claims: _Optional[_Iterable[_Union[VerifiedClaim, _Mapping]]] = ...) -> None: ...

class VerifiedClaim(_message.Message):
    __slots__ = ("claim_id", "kind", "statement", "subject", "evidence", "expire_time", "verified_by", "verify_time")
    CLAIM_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_BY_FIELD_NUMBER: _ClassVar[int]
    VERIFY_TIME_FIELD_NUMBER: _ClassVar[int]
    claim_id: str
    kind: ClaimKind
    statement: str
    subject: str
    evidence: str
    expire_time: _timestamp_pb2.Timestamp
    verified_by: str
    verify_time: _timestamp_pb2.Timestamp
    def __init__(self, claim_id: _Optional[str] = ..., kind: _Optional[_Union[ClaimKind, str]] = ..., statement: _Optional[str] = ..., subject: _Optional[str] = ..., evidence: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., verified_by: _Optional[str] = ..., verify_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class StyleSheet(_message.Message):
    __slots__ = ("tone", "formality", "max_sentences", "signature_phrases", "avoided_phrases", "emoji", "language_code")
    TONE_FIELD_NUMBER: _ClassVar[int]
    FORMALITY_FIELD_NUMBER: _ClassVar[int]
    MAX_SENTENCES_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_PHRASES_FIELD_NUMBER: _ClassVar[int]
    AVOIDED_PHRASES_FIELD_NUMBER: _ClassVar[int]
    EMOJI_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_CODE_FIELD_NUMBER: _ClassVar[int]
    tone: str
    formality: Formality
    max_sentences: int
    signature_phrases: _containers.RepeatedScalarFieldContainer[str]
    avoided_phrases: _containers.RepeatedScalarFieldContainer[str]
    emoji: EmojiUse
    language_code: str
    def __init__(self, tone: _Optional[str] = ..., formality: _Optional[_Union[Formality, str]] = ..., max_sentences: _Optional[int] = ..., signature_phrases: _Optional[_Iterable[str]] = ..., avoided_phrases: _Optional[_Iterable[str]] = ..., emoji: _Optional[_Union[EmojiUse, str]] = ..., language_code: _Optional[str] = ...) -> None: ...

class Exemplar(_message.Message):
    __slots__ = ("prompt", "reply")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    reply: str
    def __init__(self, prompt: _Optional[str] = ..., reply: _Optional[str] = ...) -> None: ...

class GenerationConfig(_message.Message):
    __slots__ = ("model", "max_output_tokens", "temperature", "adapter")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    model: str
    max_output_tokens: int
    temperature: float
    adapter: str
    def __init__(self, model: _Optional[str] = ..., max_output_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., adapter: _Optional[str] = ...) -> None: ...

class Revision(_message.Message):
    __slots__ = ("name", "state", "definition", "create_time", "withdraw_time", "withdraw_reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DEFINITION_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    WITHDRAW_TIME_FIELD_NUMBER: _ClassVar[int]
    WITHDRAW_REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: RevisionState
    definition: PersonaDefinition
    create_time: _timestamp_pb2.Timestamp
    withdraw_time: _timestamp_pb2.Timestamp
    withdraw_reason: str
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[RevisionState, str]] = ..., definition: _Optional[_Union[PersonaDefinition, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., withdraw_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., withdraw_reason: _Optional[str] = ...) -> None: ...

class CreatePersonaRequest(_message.Message):
    __slots__ = ("parent", "persona_id", "persona", "request_id")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PERSONA_ID_FIELD_NUMBER: _ClassVar[int]
    PERSONA_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    parent: str
    persona_id: str
    persona: Persona
    request_id: str
    def __init__(self, parent: _Optional[str] = ..., persona_id: _Optional[str] = ..., persona: _Optional[_Union[Persona, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class GetPersonaRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListPersonasRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token", "show_deleted")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SHOW_DELETED_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    show_deleted: bool
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., show_deleted: _Optional[bool] = ...) -> None: ...

class ListPersonasResponse(_message.Message):
    __slots__ = ("personas", "next_page_token")
    PERSONAS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    personas: _containers.RepeatedCompositeFieldContainer[Persona]
    next_page_token: str
    def __init__(self, personas: _Optional[_Iterable[_Union[Persona, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class UpdatePersonaRequest(_message.Message):
    __slots__ = ("persona", "update_mask", "request_id")
    PERSONA_FIELD_NUMBER: _ClassVar[int]
    UPDATE_MASK_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    persona: Persona
    update_mask: _field_mask_pb2.FieldMask
    request_id: str
    def __init__(self, persona: _Optional[_Union[Persona, _Mapping]] = ..., update_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class DeletePersonaRequest(_message.Message):
    __slots__ = ("name", "etag", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    etag: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., etag: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class UndeletePersonaRequest(_message.Message):
    __slots__ = ("name", "etag", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    etag: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., etag: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class PublishRevisionRequest(_message.Message):
    __slots__ = ("parent", "definition", "request_id")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    DEFINITION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    parent: str
    definition: PersonaDefinition
    request_id: str
    def __init__(self, parent: _Optional[str] = ..., definition: _Optional[_Union[PersonaDefinition, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class ListRevisionsRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListRevisionsResponse(_message.Message):
    __slots__ = ("revisions", "next_page_token")
    REVISIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    revisions: _containers.RepeatedCompositeFieldContainer[Revision]
    next_page_token: str
    def __init__(self, revisions: _Optional[_Iterable[_Union[Revision, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WithdrawRevisionRequest(_message.Message):
    __slots__ = ("name", "reason", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    reason: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., reason: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...
