"""Every span, metric and attribute name that Personae emits.

Where OpenTelemetry's semantic conventions have a name (`rpc.*`, `gen_ai.*`,
`error.*`, `service.*`), it is theirs: https://opentelemetry.io/docs/specs/semconv/.
The rest begins with `personae.`. Dashboards and alert rules depend on these
strings: a name is added or retired, never changed.
"""

from __future__ import annotations

from typing import Final

# ── spans ────────────────────────────────────────────────────────────────────
# The root of a turn is the RPC server span, named by its method as the RPC
# conventions ask: "personae.v1.SessionService/Converse". Its children, at most
# nine, are the stages:

SPAN_ADMIT: Final = "personae.turn.admit"
SPAN_GATE_INPUT: Final = "personae.turn.gate_input"
SPAN_RECALL: Final = "personae.turn.recall"
SPAN_GATE_MEMORY: Final = "personae.turn.gate_memory"
SPAN_COMPOSE: Final = "personae.turn.compose"
SPAN_GENERATE: Final = "personae.turn.generate"
SPAN_GATE_STREAM: Final = "personae.turn.gate_stream"
SPAN_RECORD: Final = "personae.turn.record"
SPAN_REMEMBER: Final = "personae.turn.remember"

STAGE_SPANS: Final = (
    SPAN_ADMIT,
    SPAN_GATE_INPUT,
    SPAN_RECALL,
    SPAN_GATE_MEMORY,
    SPAN_COMPOSE,
    SPAN_GENERATE,
    SPAN_GATE_STREAM,
    SPAN_RECORD,
    SPAN_REMEMBER,
)
"""The stages of a turn, in the order in which they begin."""

# ── attributes ───────────────────────────────────────────────────────────────

ATTR_SERVICE_NAME: Final = "service.name"
ATTR_SERVICE_VERSION: Final = "service.version"
ATTR_SERVICE_INSTANCE_ID: Final = "service.instance.id"
ATTR_ERROR_TYPE: Final = "error.type"

ATTR_RPC_SYSTEM_NAME: Final = "rpc.system.name"
ATTR_RPC_METHOD: Final = "rpc.method"
ATTR_RPC_RESPONSE_STATUS_CODE: Final = "rpc.response.status_code"

ATTR_GEN_AI_OPERATION_NAME: Final = "gen_ai.operation.name"
ATTR_GEN_AI_PROVIDER_NAME: Final = "gen_ai.provider.name"
ATTR_GEN_AI_CONVERSATION_ID: Final = "gen_ai.conversation.id"
ATTR_GEN_AI_AGENT_ID: Final = "gen_ai.agent.id"
ATTR_GEN_AI_AGENT_VERSION: Final = "gen_ai.agent.version"
ATTR_GEN_AI_REQUEST_MODEL: Final = "gen_ai.request.model"
ATTR_GEN_AI_REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
ATTR_GEN_AI_REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
ATTR_GEN_AI_RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
ATTR_GEN_AI_USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
ATTR_GEN_AI_USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
ATTR_GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"

ATTR_TENANT: Final = "personae.tenant"
ATTR_CALLER: Final = "personae.caller"
"""Id of the API key that called, never the key."""
ATTR_TURN_ID: Final = "personae.turn.id"
ATTR_TURN_OUTCOME: Final = "personae.turn.outcome"
ATTR_REASON: Final = "personae.reason"
"""A stable reason in upper snake case: of an error, an interruption or a fallback."""
ATTR_POLICY_STAGE: Final = "personae.policy.stage"
ATTR_POLICY_ACTION: Final = "personae.policy.action"
ATTR_POLICY_CATEGORY: Final = "personae.policy.category"
ATTR_POLICY_REASON_CODE: Final = "personae.policy.reason_code"
ATTR_POLICY_DIFFERS: Final = "personae.policy.differs"
"""Whether a candidate bundle would have decided otherwise."""
ATTR_SWITCH_KIND: Final = "personae.kill_switch.kind"
ATTR_RECALL_HITS: Final = "personae.recall.hits"
ATTR_RECALL_DROPPED: Final = "personae.recall.dropped"
"""Memories that the memory gate kept out of the prompt."""
ATTR_RECALL_LEXICAL_ONLY: Final = "personae.recall.lexical_only"
ATTR_RELEASED_UNITS: Final = "personae.released_units"
ATTR_RELEASED_CHARS: Final = "personae.released_chars"

# ── metrics ──────────────────────────────────────────────────────────────────

METRIC_RPC_DURATION: Final = "rpc.server.call.duration"
METRIC_TIME_TO_FIRST_TOKEN: Final = "gen_ai.server.time_to_first_token"

METRIC_TIME_TO_FIRST_EVENT: Final = "personae.turn.time_to_first_event"
METRIC_OWN_WORK: Final = "personae.turn.own_work"
METRIC_FIRST_RELEASE: Final = "personae.turn.first_release"
METRIC_DELTA_LATENESS: Final = "personae.stream.delta_lateness"
METRIC_ACCEPT_WAIT: Final = "personae.gateway.accept_wait"
METRIC_EVENT_LOOP_LAG: Final = "personae.event_loop.lag"
METRIC_TURNS: Final = "personae.turns"
METRIC_ACTIVE_TURNS: Final = "personae.turns.active"
METRIC_VIEWS: Final = "personae.stream.views"
METRIC_ACTIVE_VIEWS: Final = "personae.stream.views.active"
METRIC_STREAM_RESUMES: Final = "personae.stream.resumes"
METRIC_DROPPED_VIEWS: Final = "personae.stream.views.dropped"
METRIC_FORWARDED: Final = "personae.gateway.forwarded"
METRIC_GATE_ACTIONS: Final = "personae.gate.actions"
METRIC_GATE_FAILURES: Final = "personae.gate.failures"
METRIC_SHADOW_DECISIONS: Final = "personae.policy.shadow_decisions"
METRIC_BUNDLES_REFUSED: Final = "personae.policy.bundles_refused"
METRIC_KILL_SWITCHES: Final = "personae.kill_switches"
METRIC_ABUSE_REFUSALS: Final = "personae.abuse.refusals"
METRIC_ABUSE_BREAKERS: Final = "personae.abuse.breakers"
METRIC_REVIEWS_OPEN: Final = "personae.reviews.open"
METRIC_REVIEWS_OVERDUE: Final = "personae.reviews.overdue"
METRIC_RECALL_DURATION: Final = "personae.recall.duration"
METRIC_RECALL_FALLBACKS: Final = "personae.recall.fallbacks"
METRIC_RECALL_FAILURES: Final = "personae.recall.failures"
METRIC_QUEUE_DEPTH: Final = "personae.engine.queue_depth"
METRIC_INPUT_TOKENS: Final = "personae.engine.input_tokens"
METRIC_CACHED_INPUT_TOKENS: Final = "personae.engine.cached_input_tokens"
METRIC_OUTPUT_TOKENS: Final = "personae.engine.output_tokens"
METRIC_COMMIT_BATCH: Final = "personae.ledger.commit.batch_size"
METRIC_COMMIT_DURATION: Final = "personae.ledger.commit.duration"
METRIC_INDEX_PENDING: Final = "personae.memory.index_pending"
METRIC_AUDIT_ENTRIES: Final = "personae.audit.entries"
METRIC_AUDIT_CHECKPOINT_AGE: Final = "personae.audit.checkpoint_age"
