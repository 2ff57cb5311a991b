"""Decisions that explain themselves."""

from alembic import op

revision = "0009"
down_revision = "0007"

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
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
