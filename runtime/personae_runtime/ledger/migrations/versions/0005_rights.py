"""Erasure: scopes that begin again, operations that outlive a crash, and the proofs they end in."""

from alembic import op

revision = "0005"
down_revision = "0004"

_STATEMENTS = (
    # A scope that was erased keeps its row. `generation` tells keys of the same scope apart, `erasing` is the erasure
    # that holds it, `changed_epoch` the control epoch at which its key or its marker was last taken away.
    """
    ALTER TABLE scopes
        ADD COLUMN generation integer NOT NULL DEFAULT 1,
        ADD COLUMN erasing uuid,
        ADD COLUMN changed_epoch bigint""",
    "CREATE INDEX scopes_changed ON scopes (changed_epoch) WHERE changed_epoch IS NOT NULL",
    # A turn whose words were erased keeps its number and its ids.
    "ALTER TABLE turns ALTER COLUMN user_text DROP NOT NULL",
    "ALTER TABLE turns ADD COLUMN erased_at timestamptz",
    # The control epoch up to which an owner has let go of what was taken away.
    "ALTER TABLE owners ADD COLUMN control_epoch bigint NOT NULL DEFAULT 0",
    # `erased` counts by store, written in the transactions that erase. Names nobody: the user is in `scope` only.
    """
    CREATE TABLE operations (
        operation uuid PRIMARY KEY,
        tenant text NOT NULL,
        persona text NOT NULL,
        scope text NOT NULL,
        memory_ids uuid[] NOT NULL,
        reason text NOT NULL,
        step text NOT NULL DEFAULT '',
        steps_done integer NOT NULL DEFAULT 0,
        erased jsonb NOT NULL DEFAULT '{}',
        epoch bigint NOT NULL DEFAULT 0,
        attempts integer NOT NULL DEFAULT 0,
        problem text NOT NULL DEFAULT '',
        next_try_at timestamptz NOT NULL DEFAULT now(),
        created_at timestamptz NOT NULL DEFAULT now(),
        done_at timestamptz
    )""",
    "CREATE INDEX operations_open ON operations (next_try_at) WHERE done_at IS NULL",
    "CREATE INDEX operations_by_tenant ON operations (tenant, created_at, operation)",
    # Kept for good: that something was erased, and when.
    """
    CREATE TABLE erasures (
        erasure uuid PRIMARY KEY,
        scope text NOT NULL,
        memory_ids uuid[] NOT NULL,
        proof bytea NOT NULL,
        completed_at timestamptz NOT NULL
    )""",
    "CREATE INDEX sessions_of_scope ON sessions (scope, session)",
    # Whose consent it is, by the same keyed hash; NULL of a persona's own, and until a process fills it in.
    "ALTER TABLE consents ADD COLUMN scope text",
    "CREATE INDEX consents_by_scope ON consents (scope) WHERE scope IS NOT NULL",
    "CREATE INDEX consents_without_scope ON consents (consent_id) WHERE scope IS NULL AND user_id <> ''",
    # What was created by a request goes with its resource. A session's id says nothing without its persona's.
    """
    UPDATE requests r SET resource = s.persona || '/' || s.session FROM sessions s
    WHERE r.method = 'CreateSession' AND s.tenant = r.tenant AND s.session = r.resource AND NOT EXISTS
        (SELECT FROM sessions o WHERE o.tenant = s.tenant AND o.session = s.session AND o.persona <> s.persona)""",
    "DELETE FROM requests WHERE method = 'CreateSession' AND position('/' IN resource) = 0",
    "CREATE INDEX requests_by_resource ON requests (resource, method, tenant)",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
