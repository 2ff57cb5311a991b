"""The audit log: what waits for its place, and per tenant the entries, the tree over them and its checkpoints."""

from alembic import op

revision = "0008"
down_revision = "0007"

_STATEMENTS = (
    "CREATE SEQUENCE audit_order",
    # Written with what an entry tells of, in its transaction. A queue: a row that was given its place is deleted.
    """
    CREATE TABLE audit_outbox (
        entry_id uuid PRIMARY KEY,
        tenant text NOT NULL,
        kind text NOT NULL,
        body bytea NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
        seq bigint NOT NULL DEFAULT nextval('audit_order')
    )""",
    "CREATE INDEX audit_outbox_in_order ON audit_outbox (xid, seq)",
    # `entry` is the leaf, byte for byte. Persons are in it by keyed hash only: nothing here is ever erased.
    """
    CREATE TABLE audit_entries (
        tenant text NOT NULL,
        position bigint NOT NULL,
        entry_id uuid NOT NULL,
        kind text NOT NULL,
        entry bytea NOT NULL,
        created_at timestamptz NOT NULL,
        PRIMARY KEY (tenant, position)
    )""",
    "CREATE INDEX audit_entries_by_id ON audit_entries (tenant, entry_id)",
    # Complete subtrees: they never change.
    """
    CREATE TABLE audit_nodes (
        tenant text NOT NULL,
        level smallint NOT NULL,
        position bigint NOT NULL,
        hash bytea NOT NULL,
        PRIMARY KEY (tenant, level, position)
    )""",
    """
    CREATE TABLE audit_trees (
        tenant text PRIMARY KEY,
        size bigint NOT NULL,
        checkpoint_size bigint NOT NULL DEFAULT 0,
        checkpoint_at timestamptz NOT NULL DEFAULT '-infinity'
    )""",
    """
    CREATE TABLE audit_checkpoints (
        tenant text NOT NULL,
        size bigint NOT NULL,
        root bytea NOT NULL,
        note text NOT NULL,
        created_at timestamptz NOT NULL,
        PRIMARY KEY (tenant, size)
    )""",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
