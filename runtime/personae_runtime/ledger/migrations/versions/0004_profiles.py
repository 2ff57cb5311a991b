"""Profile cards: what is known of a person, as it stands in the prompts of a session."""

from alembic import op

revision = "0004"
down_revision = "0003"

_STATEMENTS = (
    # `text` is sealed. A version goes, for open sessions too, as soon as one of the facts it was made of is forgotten;
    # it is not used from `expires_at` on, when one of them expires, ceases to hold or begins to.
    """
    CREATE TABLE profiles (
        scope text NOT NULL REFERENCES scopes,
        version integer NOT NULL,
        text bytea NOT NULL,
        fact_ids uuid[] NOT NULL,
        tokens integer NOT NULL,
        expires_at timestamptz,
        created_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (scope, version)
    )""",
    # The newest version, which rises also when rows go; stale when a fact has changed since.
    "ALTER TABLE scopes ADD COLUMN profile_version integer NOT NULL DEFAULT 0,"
    " ADD COLUMN profile_stale boolean NOT NULL DEFAULT false",
    # The version that stands in the session's prompts; 0 is an empty card, NULL none yet.
    "ALTER TABLE sessions ADD COLUMN profile_version integer",
    "CREATE INDEX sessions_by_scope ON sessions (scope) WHERE state = 'OPEN'",
    "CREATE INDEX memories_to_sweep ON memories (expires_at) WHERE forgotten_at IS NULL AND expires_at IS NOT NULL",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
