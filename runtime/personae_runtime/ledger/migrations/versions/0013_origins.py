"""What labels rest on: what wrote a turn's reply and let it out, and what documents are said to be."""

from alembic import op

revision = "0013"
down_revision = "0011"


def upgrade() -> None:
    # `Origin` of personae_runtime.provenance.label; of older turns it is not known. Rows are not rewritten.
    op.execute("ALTER TABLE turns ADD COLUMN origin jsonb NOT NULL DEFAULT '{}'")
    op.execute("ALTER TABLE documents ADD COLUMN digital_source_type text NOT NULL DEFAULT ''")
