"""Memories that are facts: what they say, since when and until when, and what they rest on."""

from alembic import op

revision = "0003"
down_revision = "0002"

_STATEMENTS = (
    # `detail` is sealed: subject, predicate, value and spans. `slot` is a keyed hash of what only one fact may say at a
    # time. A fact that another one superseded keeps its row and gets `valid_to`.
    """
    ALTER TABLE memories
        ADD COLUMN kind text NOT NULL DEFAULT 'episode' CHECK (kind IN ('episode', 'fact')),
        ADD COLUMN detail bytea,
        ADD COLUMN slot bytea,
        ADD COLUMN valid_from timestamptz,
        ADD COLUMN valid_to timestamptz,
        ADD COLUMN superseded_by uuid,
        ADD COLUMN confidence real NOT NULL DEFAULT 1 CHECK (confidence BETWEEN 0 AND 1),
        ADD COLUMN basis text NOT NULL DEFAULT '' CHECK (basis IN ('', 'stated', 'inferred')),
        ADD COLUMN extractor text NOT NULL DEFAULT '',
        ADD COLUMN source_ids uuid[] NOT NULL DEFAULT '{}',
        ADD COLUMN pinned boolean NOT NULL DEFAULT false,
        ADD COLUMN restricted_at timestamptz,
        ADD COLUMN quarantine_reason text NOT NULL DEFAULT '',
        ADD COLUMN version integer NOT NULL DEFAULT 1,
        ADD COLUMN updated_at timestamptz""",
    "ALTER TABLE memories DROP CONSTRAINT memories_source_check",
    "ALTER TABLE memories ADD CONSTRAINT memories_source_check CHECK (source IN ('turn', 'api', 'extraction'))",
    "CREATE INDEX memories_by_slot ON memories (scope, slot) WHERE kind = 'fact' AND forgotten_at IS NULL",
    "CREATE INDEX memories_by_support ON memories USING gin (source_ids) WHERE kind = 'fact' AND forgotten_at IS NULL",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
