"""Between the runtime's records and the API's messages."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar, cast
from uuid import UUID

from google.protobuf import duration_pb2, timestamp_pb2

from personae.v1 import (
    corpus_service_pb2,
    event_pb2,
    memory_service_pb2,
    persona_service_pb2,
    policy_service_pb2,
    provenance_pb2,
    session_service_pb2,
)
from personae_runtime.errors import InvalidArgument
from personae_runtime.ledger.control import ConsentRow
from personae_runtime.ledger.documents import DocumentRow
from personae_runtime.ledger.personas import PersonaRow, RevisionRow
from personae_runtime.ledger.profiles import ProfileRow
from personae_runtime.ledger.sessions import SessionRow, TurnRow
from personae_runtime.ledger.switches import KillSwitch, SwitchKind
from personae_runtime.memory.index import Place
from personae_runtime.memory.passages import Passage
from personae_runtime.memory.store import FactDetail, MemoryRecord
from personae_runtime.names import Name
from personae_runtime.personas.definition import Exemplar, PersonaDefinition, StyleSheet, VerifiedClaim
from personae_runtime.policy import reasons
from personae_runtime.policy.decision import AgeBand, Decision, DecisionRecord
from personae_runtime.provenance import label
from personae_runtime.provenance.label import Label, Origin
from personae_runtime.sessions import events
from personae_runtime.sessions.service import Seen

E = TypeVar("E")


def timestamp(value: datetime | None) -> timestamp_pb2.Timestamp | None:
    """An aware datetime as a Timestamp; None stays None."""
    if value is None:
        return None
    moment = value.timestamp()
    seconds = int(moment // 1)
    return timestamp_pb2.Timestamp(seconds=seconds, nanos=value.microsecond * 1000)


def from_timestamp(message: timestamp_pb2.Timestamp, field: str = "") -> datetime:
    """A Timestamp as an aware UTC datetime.

    Args:
        field: path of the request's field that holds it.

    Raises:
        InvalidArgument: it is no time of the years 1 to 9999.
    """
    try:
        return message.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument(
            f"{field or 'a time'} is out of range", violations=((field, "a time of the years 1 to 9999"),)
        ) from None


def _enum(kind: type[E], name: str) -> E:
    """The enum value of that name; the generated wrapper calls it a plain int."""
    return cast(E, cast(Any, kind).Value(name))


def _duration(seconds: float) -> duration_pb2.Duration:
    return duration_pb2.Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


# -- personas ----------------------------------------------------------------

_TYPE_PREFIX = "PERSONA_TYPE_"
_CLAIM_PREFIX = "CLAIM_KIND_"


def persona_type_to_text(value: persona_service_pb2.PersonaType) -> str:
    """ASSISTANT → "assistant"; unspecified → ""."""
    name = persona_service_pb2.PersonaType.Name(value).removeprefix(_TYPE_PREFIX).lower()
    return "" if name == "unspecified" else name


def persona(row: PersonaRow) -> persona_service_pb2.Persona:
    name = Name(row.tenant, row.persona).persona_name()
    return persona_service_pb2.Persona(
        name=name,
        display_name=row.display_name,
        type=_enum(persona_service_pb2.PersonaType, _TYPE_PREFIX + row.type.upper()),
        active_revision="" if row.active_revision is None else f"{name}/revisions/{row.active_revision}",
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        delete_time=timestamp(row.deleted_at),
        etag=row.etag,
    )


def _enum_text(name: str, prefix: str) -> str:
    text = name.removeprefix(prefix).lower()
    return "" if text == "unspecified" else text


def definition_from_proto(message: persona_service_pb2.PersonaDefinition) -> PersonaDefinition:
    style, generation = message.style, message.generation
    return PersonaDefinition(
        card=message.card,
        style=StyleSheet(
            tone=style.tone,
            formality=_enum_text(persona_service_pb2.Formality.Name(style.formality), "FORMALITY_"),
            max_sentences=style.max_sentences,
            signature_phrases=tuple(style.signature_phrases),
            avoided_phrases=tuple(style.avoided_phrases),
            emoji=_enum_text(persona_service_pb2.EmojiUse.Name(style.emoji), "EMOJI_USE_"),
            language_code=style.language_code,
        ),
        exemplars=tuple(Exemplar(prompt=one.prompt, reply=one.reply) for one in message.exemplars),
        model=generation.model,
        adapter=generation.adapter,
        max_output_tokens=generation.max_output_tokens,
        temperature=generation.temperature if generation.HasField("temperature") else None,
        verified_claims=tuple(
            VerifiedClaim(
                claim_id=one.claim_id,
                kind=_enum_text(persona_service_pb2.ClaimKind.Name(one.kind), _CLAIM_PREFIX),
                statement=one.statement,
                subject=one.subject,
                evidence=one.evidence,
                expires_at=from_timestamp(one.expire_time, f"definition.verified_claims[{number}].expire_time")
                if one.HasField("expire_time")
                else None,
            )
            for number, one in enumerate(message.verified_claims)
        ),
    )


def definition(value: PersonaDefinition, *, evidence: bool = True) -> persona_service_pb2.PersonaDefinition:
    """A definition as the API has it.

    Args:
        evidence: whether the caller may know who verified claims, when and by what.
    """
    style = value.style
    return persona_service_pb2.PersonaDefinition(
        card=value.card,
        style=persona_service_pb2.StyleSheet(
            tone=style.tone,
            formality=_enum(persona_service_pb2.Formality, f"FORMALITY_{(style.formality or 'unspecified').upper()}"),
            max_sentences=style.max_sentences,
            signature_phrases=style.signature_phrases,
            avoided_phrases=style.avoided_phrases,
            emoji=_enum(persona_service_pb2.EmojiUse, f"EMOJI_USE_{(style.emoji or 'unspecified').upper()}"),
            language_code=style.language_code,
        ),
        exemplars=[persona_service_pb2.Exemplar(prompt=one.prompt, reply=one.reply) for one in value.exemplars],
        generation=persona_service_pb2.GenerationConfig(
            model=value.model,
            adapter=value.adapter,
            max_output_tokens=value.max_output_tokens,
            temperature=value.temperature,
        ),
        verified_claims=[
            persona_service_pb2.VerifiedClaim(
                claim_id=one.claim_id,
                kind=_enum(persona_service_pb2.ClaimKind, _CLAIM_PREFIX + one.kind.upper()),
                statement=one.statement,
                subject=one.subject,
                evidence=one.evidence if evidence else "",
                expire_time=timestamp(one.expires_at),
                verified_by=one.verified_by if evidence else "",
                verify_time=timestamp(one.verified_at) if evidence else None,
            )
            for one in value.verified_claims
        ],
    )


def revision(row: RevisionRow, *, evidence: bool = True) -> persona_service_pb2.Revision:
    """A revision as the API has it; for `evidence` see `definition`."""
    return persona_service_pb2.Revision(
        name=Name(row.tenant, row.persona, revision=row.revision).revision_name(),
        state=_enum(persona_service_pb2.RevisionState, f"REVISION_STATE_{row.state}"),
        definition=definition(row.definition, evidence=evidence),
        create_time=timestamp(row.created_at),
        withdraw_time=timestamp(row.withdrawn_at),
        withdraw_reason=row.withdraw_reason,
    )


# -- sessions ----------------------------------------------------------------


def age_band_to_text(value: policy_service_pb2.AgeBand) -> str:
    return {policy_service_pb2.AGE_BAND_TEEN: "teen", policy_service_pb2.AGE_BAND_ADULT: "adult"}.get(value, "unknown")


def session(row: SessionRow) -> session_service_pb2.Session:
    name = row.name.session_name()
    bands = {"teen": policy_service_pb2.AGE_BAND_TEEN, "adult": policy_service_pb2.AGE_BAND_ADULT}
    return session_service_pb2.Session(
        name=name,
        user=row.name.user_name(),
        revision=row.name.revision_name(),
        state=_enum(session_service_pb2.SessionState, f"SESSION_STATE_{row.state}"),
        age_band=bands.get(row.age_band, policy_service_pb2.AGE_BAND_UNSPECIFIED),
        region_code=row.region_code,
        disclosure=row.disclosure,
        create_time=timestamp(row.created_at),
        close_time=timestamp(row.closed_at),
        active_turn=f"{name}/turns/{row.active_turn}" if row.active_turn else "",
    )


def ai_label(made: Label | None) -> provenance_pb2.AiLabel | None:
    return None if made is None else _fill_label(provenance_pb2.AiLabel(), made)


def _fill_label(message: provenance_pb2.AiLabel, made: Label) -> provenance_pb2.AiLabel:
    message.generated_by_ai = True
    message.persona = made.persona
    message.revision = made.revision
    message.model = made.origin.model
    message.adapter = made.origin.adapter
    message.generate_time.seconds = int(made.generated_at.timestamp() // 1)
    message.generate_time.nanos = made.generated_at.microsecond * 1000
    message.policy_bundle = made.origin.policy_bundle
    message.digital_source_type = made.source.value
    return message


def reply_label(owner: SessionRow, row: TurnRow) -> Label | None:
    """The label of a turn's reply; None while there is none."""
    if not row.reply_text:
        return None
    return label.of_reply(
        owner.name.persona_name(),
        owner.name.revision_name(),
        row.origin,
        row.ended_at or row.created_at,
        finish_reason=row.finish_reason,
        in_history=row.in_history,
    )


def turn(owner: SessionRow, row: TurnRow) -> session_service_pb2.Turn:
    return session_service_pb2.Turn(
        name=f"{owner.name.session_name()}/turns/{row.turn_id}",
        state=_enum(session_service_pb2.TurnState, f"TURN_STATE_{row.state}"),
        user_text=row.user_text,
        reply_text=row.reply_text,
        create_time=timestamp(row.created_at),
        end_time=timestamp(row.ended_at),
        finish_reason=_enum(event_pb2.FinishReason, f"FINISH_REASON_{row.finish_reason or 'UNSPECIFIED'}"),
        first_event_id=row.first_event_id,
        last_event_id=row.last_event_id,
        ai_label=ai_label(reply_label(owner, row)),
    )


def event(owner: SessionRow, seen: Seen) -> event_pb2.SessionEvent:
    """An event as a stream carries it."""
    source = seen.event
    body = source.body
    message = event_pb2.SessionEvent(event_id=source.event_id, turn_id=source.turn_id)
    # Set in place, which costs half of what making the parts costs: this is on every event's way out.
    message.time.seconds = int(source.time.timestamp() // 1)
    message.time.nanos = source.time.microsecond * 1000
    match body:
        case events.TextDelta():
            message.text_delta.text = body.text
            _label_spoken(message, owner, source, body.template)
        case events.TurnStarted():
            _label_spoken(message, owner, source, False)
            message.turn_started.disclosure = body.disclosure
            message.turn_started.revision = f"{owner.name.persona_name()}/revisions/{body.revision}"
        case events.Waiting():
            message.waiting.reason = _enum(event_pb2.Waiting.Reason, f"REASON_{body.reason}")
        case events.MemoryCitation():
            cited = message.memory_citation
            cited.memory = f"{owner.name.user_name()}/memories/{body.memory_id}"
            cited.score = body.score
            if isinstance(seen.cited, MemoryRecord):
                cited.quote = seen.cited.text
                cited.speaker = seen.cited.speaker
                cited.occur_time.FromDatetime(seen.cited.occurred_at)
                drawn = label.of_memory(owner.name.persona_name(), seen.cited)
                if drawn is not None:
                    _fill_label(cited.ai_label, drawn)
        case events.PassageCitation():
            said = message.passage_citation
            said.score = body.score
            if isinstance(seen.cited, Passage):
                said.document = f"{owner.name.persona_name()}/documents/{seen.cited.document_id}"
                said.title = seen.cited.title
                said.uri = seen.cited.uri
                said.quote = seen.cited.text
                said.publish_time.FromDatetime(seen.cited.published_at)
                made = _document_label(owner.name, seen.cited)
                if made is not None:
                    _fill_label(said.ai_label, made)
        case events.PolicyEvent():
            told = message.policy_event
            told.action = _enum(event_pb2.PolicyAction, f"POLICY_ACTION_{body.action.upper()}")
            told.category = body.category
            told.reason_code = body.reason_code
            told.stage = _enum(event_pb2.PolicyStage, f"POLICY_STAGE_{body.stage.upper()}")
            told.decision = f"tenants/{owner.tenant}/decisions/{body.decision}"
        case events.Notice():
            message.notice.code = body.code
            message.notice.text = body.text
        case events.Usage():
            message.usage.input_tokens = body.input_tokens
            message.usage.cached_input_tokens = body.cached_input_tokens
            message.usage.output_tokens = body.output_tokens
        case events.Latency():
            message.latency.queue.CopyFrom(_duration(body.queue_s))
            message.latency.ttft.CopyFrom(_duration(body.ttft_s))
            message.latency.first_release.CopyFrom(_duration(body.first_release_s))
        case events.TurnInterrupted():
            message.turn_interrupted.delivered_chars = body.delivered_chars
            message.turn_interrupted.reason = _enum(event_pb2.TurnInterrupted.Reason, f"REASON_{body.reason}")
        case events.TurnCompleted():
            message.turn_completed.finish_reason = _enum(event_pb2.FinishReason, f"FINISH_REASON_{body.finish_reason}")
        case events.GoAway():
            message.go_away.time_left.CopyFrom(_duration(body.time_left_s))
        case events.Gap():
            message.gap.first_event_id = body.first_event_id
            message.gap.last_event_id = body.last_event_id
    return message


def _label_spoken(message: event_pb2.SessionEvent, owner: SessionRow, source: events.Event, template: bool) -> None:
    spoken = _spoken_label(owner.tenant, owner.persona, owner.revision, source.origin, template)
    message.ai_label.CopyFrom(spoken)
    message.ai_label.generate_time.CopyFrom(message.time)


@lru_cache(maxsize=1024)
def _spoken_label(tenant: str, persona: str, revision: int, origin: Origin, template: bool) -> provenance_pb2.AiLabel:
    """The label of what one revision says, but for its time: made once, as every delta has one."""
    name = Name(tenant, persona, revision=revision)
    made = label.of_text(name.persona_name(), name.revision_name(), origin, datetime.now(UTC), template=template)
    return _fill_label(provenance_pb2.AiLabel(), made)


# -- memories, policy, consent -----------------------------------------------


def memory(parent: Name, row: MemoryRecord) -> memory_service_pb2.Memory:
    fact = row.fact
    return memory_service_pb2.Memory(
        name=memory_name(parent, row.memory_id),
        text=row.text,
        speaker=row.speaker,
        occur_time=timestamp(row.occurred_at),
        thread=row.thread,
        ordinal=row.ordinal,
        source=_enum(memory_service_pb2.MemorySource, f"MEMORY_SOURCE_{row.source.value.upper()}"),
        create_time=timestamp(row.created_at),
        expire_time=timestamp(row.expires_at),
        external_id=row.external_id,
        kind=_enum(memory_service_pb2.MemoryKind, f"MEMORY_KIND_{row.kind.value.upper()}"),
        fact=None if fact is None else _fact(parent, fact),
        source_memories=[memory_name(parent, source) for source in row.source_ids],
        pinned=row.pinned,
        restricted=row.restricted,
        update_time=timestamp(row.updated_at or row.created_at),
        etag=str(row.version),
        quarantine_reason=row.quarantine_reason,
        ai_label=ai_label(label.of_memory(parent.persona_name(), row)),
    )


def arm(place: Place | None) -> memory_service_pb2.MemoryServiceExplainResponse.Arm | None:
    if place is None:
        return None
    return memory_service_pb2.MemoryServiceExplainResponse.Arm(rank=place.rank, score=place.score)


def _document_label(owner: Name, source: DocumentRow | Passage) -> Label | None:
    return label.of_document(owner.persona_name(), source.digital_source_type, source.published_at)


def document(row: DocumentRow) -> corpus_service_pb2.Document:
    return corpus_service_pb2.Document(
        name=f"{row.name.persona_name()}/documents/{row.document_id}",
        title=row.title,
        text=row.text or "",
        uri=row.uri,
        publish_time=timestamp(row.published_at),
        external_id=row.external_id,
        language_code=row.language_code,
        passages=row.passages,
        duplicate_passages=row.duplicates,
        indexed_passages=row.indexed,
        create_time=timestamp(row.created_at),
        digital_source_type=row.digital_source_type,
        ai_label=ai_label(_document_label(row.name, row)),
    )


def passage(parent: Name, row: Passage) -> corpus_service_pb2.Passage:
    return corpus_service_pb2.Passage(
        document=f"{parent.persona_name()}/documents/{row.document_id}",
        title=row.title,
        uri=row.uri,
        text=row.text,
        begin=row.begin,
        end=row.end,
        publish_time=timestamp(row.published_at),
        ai_label=ai_label(_document_label(parent, row)),
    )


def memory_name(parent: Name, memory_id: UUID) -> str:
    """The resource name of a user's memory."""
    return f"{parent.user_name()}/memories/{memory_id}"


def _fact(parent: Name, fact: FactDetail) -> memory_service_pb2.Fact:
    return memory_service_pb2.Fact(
        subject=fact.subject,
        predicate=fact.predicate,
        value=fact.value,
        valid_from_time=timestamp(fact.valid_from),
        valid_to_time=timestamp(fact.valid_to),
        superseded_by="" if fact.superseded_by is None else memory_name(parent, fact.superseded_by),
        confidence=fact.confidence,
        basis=_enum(memory_service_pb2.FactBasis, f"FACT_BASIS_{fact.basis.value.upper()}"),
        extractor=fact.extractor,
        spans=[
            memory_service_pb2.FactSpan(memory=memory_name(parent, span.memory_id), begin=span.begin, end=span.end)
            for span in fact.spans
        ],
    )


def profile(owner: Name, row: ProfileRow, facts: Iterable[MemoryRecord]) -> memory_service_pb2.Profile:
    drawn = (label.of_memory(owner.persona_name(), fact) for fact in facts)
    return memory_service_pb2.Profile(
        name=f"{owner.user_name()}/profile",
        text=row.text,
        version=row.version,
        tokens=row.tokens,
        source_memories=[memory_name(owner, fact) for fact in row.fact_ids],
        update_time=timestamp(row.created_at),
        ai_label=ai_label(label.of_card(drawn, row.created_at)),
    )


def classification(decision: Decision) -> policy_service_pb2.ClassifyResponse:
    return policy_service_pb2.ClassifyResponse(
        action=_enum(event_pb2.PolicyAction, f"POLICY_ACTION_{decision.action.value.upper()}"),
        category=decision.category,
        reason_code=decision.reason_code,
        rules=_rules(decision),
        matches=_matches(decision),
        scores=dict(decision.scores),
        bundle_version=decision.bundle_version,
        template_text=decision.template,
        verified_claims=decision.claims,
    )


def _rules(decision: Decision) -> list[policy_service_pb2.RuleHit]:
    return [
        policy_service_pb2.RuleHit(
            rule_id=hit.rule_id,
            action=_enum(event_pb2.PolicyAction, f"POLICY_ACTION_{hit.action.value.upper()}"),
            category=hit.category,
            reason_code=hit.reason_code,
            expression=hit.expression,
            description=hit.description,
            legal_basis=hit.legal_basis,
        )
        for hit in decision.rules
    ]


def _matches(decision: Decision) -> list[policy_service_pb2.MatcherHit]:
    return [
        policy_service_pb2.MatcherHit(matcher_id=hit.matcher_id, start=hit.start, end=hit.end)
        for hit in decision.matches
    ]


def decision(record: DecisionRecord) -> policy_service_pb2.Decision:
    content, context = record.decision, record.context
    bands = {AgeBand.TEEN: policy_service_pb2.AGE_BAND_TEEN, AgeBand.ADULT: policy_service_pb2.AGE_BAND_ADULT}
    name = Name(record.tenant, record.persona, session=record.session)
    kind = (context.persona_type or "unspecified").upper()
    return policy_service_pb2.Decision(
        name=f"tenants/{record.tenant}/decisions/{record.decision_id}",
        persona=name.persona_name(),
        turn=f"{name.session_name()}/turns/{record.turn}" if record.session and record.turn else "",
        stage=_enum(event_pb2.PolicyStage, f"POLICY_STAGE_{content.stage.value.upper()}"),
        action=_enum(event_pb2.PolicyAction, f"POLICY_ACTION_{content.action.value.upper()}"),
        category=content.category,
        reason_code=content.reason_code,
        rule_ids=[hit.rule_id for hit in content.rules],
        bundle_version=content.bundle_version,
        legal_basis=content.legal_basis,
        persona_type=_enum(persona_service_pb2.PersonaType, _TYPE_PREFIX + kind),
        age_band=bands.get(context.age_band, policy_service_pb2.AGE_BAND_UNSPECIFIED),
        region_code=context.region_code,
        create_time=timestamp(record.created_at),
        verified_claims=content.claims,
    )


def explanation(
    record: DecisionRecord, redress: str, appealable_until: datetime | None
) -> policy_service_pb2.PolicyServiceExplainResponse:
    """Why a decision was taken.

    Args:
        redress: what the person can do about any decision.
        appealable_until: None for one that can't be appealed.
    """
    if appealable_until is not None:
        redress = (
            f"Until {appealable_until:%Y-%m-%d} you can appeal, free of charge and in one call"
            f" (ReviewService.AppealDecision); people decide on it. {redress}"
        )
    content, stated = record.decision, reasons.statement(record)
    return policy_service_pb2.PolicyServiceExplainResponse(
        decision=decision(record),
        rules=_rules(content),
        matches=_matches(content),
        scores=dict(content.scores),
        comparisons=[
            policy_service_pb2.PolicyServiceExplainResponse.ScoreComparison(
                rule_id=one.rule_id,
                category=one.category,
                score=one.score,
                operator=one.operator,
                threshold=one.threshold,
            )
            for one in reasons.comparisons(content)
        ],
        template_text=content.template,
        notice_code=content.notice_code,
        notice_text=content.notice_text,
        statement=policy_service_pb2.StatementOfReasons(
            reason=stated.reason,
            restriction=stated.restriction,
            facts=stated.facts,
            automated_means=stated.automated_means,
            legal_ground=stated.legal_ground,
            contractual_ground=stated.contractual_ground,
            redress=redress,
        ),
        appeal_expire_time=timestamp(appealable_until),
        signals=dict(content.signals),
    )


def kill_switch(row: KillSwitch) -> policy_service_pb2.KillSwitch:
    message = policy_service_pb2.KillSwitch(
        name=row.name,
        reason=row.reason,
        creator=row.created_by,
        create_time=timestamp(row.created_at),
        lift_reason=row.lift_reason,
        lifter=row.lifted_by,
        lift_time=timestamp(row.lifted_at),
    )
    match row.kind:
        case SwitchKind.TENANT:
            message.whole_tenant = True
        case SwitchKind.PERSONA:
            message.persona = Name(row.tenant, row.target).persona_name()
        case SwitchKind.RULE:
            message.rule_id = row.target
    return message


def consent(row: ConsentRow) -> policy_service_pb2.ConsentEvent:
    subject = Name(row.tenant, row.persona, row.user)
    return policy_service_pb2.ConsentEvent(
        subject=subject.user_name() if row.user else subject.persona_name(),
        purpose=_enum(policy_service_pb2.ConsentPurpose, f"CONSENT_PURPOSE_{row.purpose}"),
        state=_enum(policy_service_pb2.ConsentState, f"CONSENT_STATE_{row.state}"),
        evidence=row.evidence,
        event_time=timestamp(row.created_at),
    )
