"""Kill switches, and what gateways tell each other of who does how much."""

from alembic import op

revision = "0012"
down_revision = "0014"

_STATEMENTS = (
    # `target` is a persona's or a rule's id; empty of a whole tenant. Rows stay when they are lifted.
    """
    CREATE TABLE kill_switches (
        switch_id uuid PRIMARY KEY,
        tenant text NOT NULL,
        kind text NOT NULL CHECK (kind IN ('TENANT', 'PERSONA', 'RULE')),
        target text NOT NULL CHECK ((target = '') = (kind = 'TENANT')),
        reason text NOT NULL,
        created_by text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        lift_reason text NOT NULL DEFAULT '',
        lifted_by text NOT NULL DEFAULT '',
        lifted_at timestamptz
    )""",
    "CREATE UNIQUE INDEX kill_switches_in_force ON kill_switches (tenant, kind, target) WHERE lifted_at IS NULL",
    "CREATE INDEX kill_switches_by_time ON kill_switches (tenant, created_at DESC, switch_id DESC)",
    # A keyed hash; nothing is known of whose persona it is that was made before.
    "ALTER TABLE personas ADD COLUMN owner text NOT NULL DEFAULT ''",
    "CREATE INDEX personas_by_owner ON personas (tenant, owner, created_at) WHERE owner <> ''",
    # Of minutes only, and worth nothing after a crash.
    """
    CREATE UNLOGGED TABLE usage_reports (
        report_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        gateway text NOT NULL,
        reported_at timestamptz NOT NULL DEFAULT now(),
        report jsonb NOT NULL
    )""",
    "CREATE INDEX usage_reports_by_time ON usage_reports (reported_at)",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
