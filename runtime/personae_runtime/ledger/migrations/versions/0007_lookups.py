"""Indexes for what the sweep looks for; facts that were forgotten by themselves; a fact's own expiry."""

from alembic import op

revision = "0007"
down_revision = "0006"

_STATEMENTS = (
    # One for each of the sweep's questions, in the order in which it pages.
    "DROP INDEX memories_to_sweep",
    "CREATE INDEX memories_expiring ON memories (expires_at, memory_id)"
    " WHERE forgotten_at IS NULL AND expires_at IS NOT NULL",
    "CREATE INDEX memories_old_words ON memories (greatest(occurred_at, created_at), memory_id)"
    " WHERE forgotten_at IS NULL AND kind = 'episode' AND NOT pinned",
    "CREATE INDEX memories_old_facts ON memories (occurred_at, memory_id)"
    " WHERE forgotten_at IS NULL AND kind = 'fact' AND NOT pinned",
    "CREATE INDEX memories_closed_facts ON memories (valid_to, memory_id)"
    " WHERE forgotten_at IS NULL AND kind = 'fact' AND NOT pinned AND valid_to IS NOT NULL",
    # What a person set for a fact, beside what its sources say.
    "ALTER TABLE memories ADD COLUMN own_expires_at timestamptz",
    # A fact that was forgotten by its id: this source states nothing about this slot any more. Rows go with the scope.
    """
    CREATE TABLE fact_refusals (
        scope text NOT NULL,
        source uuid NOT NULL,
        slot bytea NOT NULL,
        PRIMARY KEY (scope, source, slot)
    )""",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
