"""What a persona itself has said and written: documents and their passages."""

from alembic import op

revision = "0006"
down_revision = "0005"

_STATEMENTS = (
    """
    CREATE TABLE documents (
        document_id uuid PRIMARY KEY,
        tenant text NOT NULL,
        persona text NOT NULL,
        scope text NOT NULL REFERENCES scopes,
        title bytea,
        text bytea,
        uri bytea,
        external_id text NOT NULL DEFAULT '',
        language_code text NOT NULL DEFAULT '',
        published_at timestamptz NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        deleted_at timestamptz,
        FOREIGN KEY (tenant, persona) REFERENCES personas,
        CHECK ((text IS NULL) = (deleted_at IS NOT NULL))
    )""",
    "CREATE INDEX documents_by_persona ON documents (scope, created_at, document_id) WHERE deleted_at IS NULL",
    # `digest` is a keyed hash of the normalised words. Of passages with one digest in a scope the first is recalled and
    # the others are shadowed until it is deleted.
    """
    CREATE TABLE passages (
        passage_id uuid PRIMARY KEY,
        document_id uuid NOT NULL REFERENCES documents,
        scope text NOT NULL REFERENCES scopes,
        ordinal integer NOT NULL,
        first_char integer NOT NULL,
        end_char integer NOT NULL,
        text bytea,
        digest bytea,
        shadowed boolean NOT NULL DEFAULT false,
        created_at timestamptz NOT NULL DEFAULT now(),
        deleted_at timestamptz,
        change_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
        change_seq bigint NOT NULL DEFAULT nextval('memory_changes'),
        CHECK ((text IS NULL) = (deleted_at IS NOT NULL)),
        UNIQUE (document_id, ordinal)
    )""",
    "CREATE INDEX passages_changes ON passages (change_xid, change_seq)",
    "CREATE INDEX passages_live ON passages (scope) WHERE deleted_at IS NULL",
    "CREATE UNIQUE INDEX passages_by_digest ON passages (scope, digest) WHERE deleted_at IS NULL AND NOT shadowed",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
