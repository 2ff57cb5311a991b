"""Policy bundles of tenants: what was published, what is in force for whom, what a candidate would have decided."""

from alembic import op

revision = "0010"
down_revision = "0009"

_STATEMENTS = (
    # By the SHA-256 of their content: a bundle never changes.
    """
    CREATE TABLE bundles (
        tenant text NOT NULL,
        bundle text NOT NULL,
        version text NOT NULL,
        content bytea NOT NULL,
        signature bytea,
        key_id text NOT NULL,
        published_by text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (tenant, bundle)
    )""",
    # Every state that a tenant's rules were in, the newest in force. NULL is the host's own bundle.
    """
    CREATE TABLE rollouts (
        rollout bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        tenant text NOT NULL,
        stable text,
        candidate text,
        percent integer NOT NULL DEFAULT 0 CHECK (percent BETWEEN 0 AND 99),
        -- To which a rollback leads: the last one with another stable bundle.
        previous bigint REFERENCES rollouts,
        changed_by text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        FOREIGN KEY (tenant, stable) REFERENCES bundles,
        FOREIGN KEY (tenant, candidate) REFERENCES bundles,
        CHECK (candidate IS NOT NULL OR percent = 0)
    )""",
    "CREATE INDEX rollouts_newest ON rollouts (tenant, rollout DESC)",
    # Nothing leads to the person or the words: no erasure has anything to do here.
    """
    CREATE TABLE shadow_decisions (
        shadow bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        tenant text NOT NULL,
        bundle text NOT NULL,
        persona text NOT NULL,
        persona_type text NOT NULL,
        age_band text NOT NULL,
        region_code text NOT NULL,
        stage text NOT NULL,
        live_version text NOT NULL,
        live_action text NOT NULL,
        live_reason_code text NOT NULL,
        live_rules text[] NOT NULL,
        action text NOT NULL,
        reason_code text NOT NULL,
        rules text[] NOT NULL,
        scores jsonb NOT NULL,
        differs boolean NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        FOREIGN KEY (tenant, bundle) REFERENCES bundles
    )""",
    "CREATE INDEX shadow_decisions_by_bundle ON shadow_decisions (tenant, bundle, shadow DESC)",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
