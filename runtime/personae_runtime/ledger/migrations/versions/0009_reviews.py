"""Decisions that explain themselves; appeals and their reviews."""

from alembic import op

revision = "0009"
down_revision = "0008"

_STATEMENTS = (
    # Whom rules were asked about, the law that the deciding rule names, and what `Decision.detail` gives.
    """
    ALTER TABLE decisions
        ADD COLUMN persona_type text NOT NULL DEFAULT '',
        ADD COLUMN age_band text NOT NULL DEFAULT '',
        ADD COLUMN region_code text NOT NULL DEFAULT '',
        ADD COLUMN legal_basis text NOT NULL DEFAULT '',
        ADD COLUMN detail jsonb NOT NULL DEFAULT '{}'
    """,
    # In the order of ListDecisions.
    "CREATE INDEX decisions_by_time ON decisions (tenant, created_at DESC, decision_id DESC)",
    # What a person wrote and was answered, sealed. Rows go with the scope.
    """
    CREATE TABLE appeals (
        appeal_id uuid PRIMARY KEY,
        tenant text NOT NULL,
        decision_id uuid NOT NULL REFERENCES decisions,
        scope text NOT NULL REFERENCES scopes,
        filed_by text NOT NULL,
        statement bytea NOT NULL,
        judged_text bytea NOT NULL,
        allow_test boolean NOT NULL,
        reasons bytea,
        state text NOT NULL DEFAULT 'OPEN' CHECK (state IN ('OPEN', 'RESOLVED')),
        outcome text NOT NULL DEFAULT '' CHECK (outcome IN ('', 'UPHOLD', 'OVERTURN', 'MODIFY')),
        reason_code text NOT NULL DEFAULT '',
        created_at timestamptz NOT NULL DEFAULT now(),
        due_at timestamptz NOT NULL,
        resolved_at timestamptz
    )""",
    "CREATE UNIQUE INDEX appeals_one_open ON appeals (decision_id) WHERE state = 'OPEN'",
    "CREATE INDEX appeals_by_scope ON appeals (scope)",
    # What is counted: nothing of the person, so it stays when the appeal goes.
    """
    CREATE TABLE reviews (
        review_id uuid PRIMARY KEY,
        tenant text NOT NULL,
        decision_id uuid NOT NULL REFERENCES decisions,
        appeal_id uuid UNIQUE REFERENCES appeals ON DELETE SET NULL,
        severity double precision NOT NULL,
        reach double precision NOT NULL,
        uncertainty double precision NOT NULL,
        priority double precision NOT NULL,
        wanted integer NOT NULL CHECK (wanted BETWEEN 1 AND 3),
        state text NOT NULL DEFAULT 'OPEN' CHECK (state IN ('OPEN', 'RESOLVED')),
        outcome text NOT NULL DEFAULT '' CHECK (outcome IN ('', 'UPHOLD', 'OVERTURN', 'MODIFY')),
        reason_code text NOT NULL DEFAULT '',
        leased_by text NOT NULL DEFAULT '',
        lease_expires_at timestamptz,
        created_at timestamptz NOT NULL DEFAULT now(),
        due_at timestamptz NOT NULL,
        resolved_at timestamptz
    )""",
    "CREATE INDEX reviews_queue ON reviews (tenant, priority DESC, review_id) WHERE state = 'OPEN'",
    """
    CREATE TABLE review_verdicts (
        review_id uuid NOT NULL REFERENCES reviews,
        decision_id uuid NOT NULL,
        reviewer text NOT NULL,
        outcome text NOT NULL CHECK (outcome IN ('UPHOLD', 'OVERTURN', 'MODIFY')),
        reason_code text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (review_id, reviewer)
    )""",
    "CREATE INDEX review_verdicts_by_decision ON review_verdicts (decision_id, reviewer)",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
