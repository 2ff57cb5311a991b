"""Where owners of turns are reached, and that they live."""

from alembic import op

revision = "0002"
down_revision = "0001"

_STATEMENTS = (
    # `seen_at` is renewed by every owner, whether it runs turns or not; one that is draining takes no new calls.
    """
    ALTER TABLE owners
        ADD COLUMN endpoint text NOT NULL DEFAULT '',
        ADD COLUMN seen_at timestamptz NOT NULL DEFAULT now(),
        ADD COLUMN draining_at timestamptz""",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
