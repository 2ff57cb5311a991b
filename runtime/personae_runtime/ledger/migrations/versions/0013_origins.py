"""What writes a turn's reply and what lets it out, for its label."""

from alembic import op

revision = "0013"
down_revision = "0009"


def upgrade() -> None:
    # `Origin` of personae_runtime.provenance.label; of older turns it is not known. Rows are not rewritten.
    op.execute("ALTER TABLE turns ADD COLUMN origin jsonb NOT NULL DEFAULT '{}'")
