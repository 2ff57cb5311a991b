"""What reviewers say of decisions that were drawn at random for the transparency report."""

from alembic import op

revision = "0014"
down_revision = "0013"

_STATEMENTS = (
    # One judgment a decision, and nothing of its person: it stays as the decision does.
    """
    CREATE TABLE sample_judgments (
        decision_id uuid PRIMARY KEY REFERENCES decisions,
        tenant text NOT NULL,
        reviewer text NOT NULL,
        judgment text NOT NULL CHECK (judgment IN ('CORRECT', 'FALSE_POSITIVE', 'UNDECIDED')),
        reason_code text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    )""",
    # Appeals by the time they came, as the report counts them.
    "CREATE INDEX reviews_by_time ON reviews (tenant, created_at)",
    "CREATE INDEX reviews_by_decision ON reviews (decision_id)",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
