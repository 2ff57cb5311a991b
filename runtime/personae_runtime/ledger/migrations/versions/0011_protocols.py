"""Where people stand in the protocols, how often they were referred to crisis services, and escalated reviews."""

from alembic import op

revision = "0011"
down_revision = "0010"

_STATEMENTS = (
    # Per person and persona; goes with the scope. `person` is a keyed hash of tenant and user: the clocks of the
    # reminders are those of whichever persona the person used last.
    """
    CREATE TABLE protocol_states (
        scope text PRIMARY KEY REFERENCES scopes,
        person text NOT NULL,
        seen_at timestamptz NOT NULL,
        used_s jsonb NOT NULL,
        tier smallint NOT NULL DEFAULT 0 CHECK (tier BETWEEN 0 AND 4),
        quiet smallint NOT NULL DEFAULT 0,
        signed_at timestamptz
    )""",
    # Not by time too: then each turn would write the index.
    "CREATE INDEX protocol_states_by_person ON protocol_states (person)",
    # Referrals to crisis services, per person and day: goes with the scope.
    """
    CREATE TABLE crisis_referrals (
        scope text NOT NULL REFERENCES scopes,
        day date NOT NULL,
        region_code text NOT NULL,
        tier text NOT NULL,
        times integer NOT NULL,
        PRIMARY KEY (scope, day, region_code, tier)
    )""",
    # The same without anybody in it, so that it stays when they are erased.
    """
    CREATE TABLE crisis_referral_days (
        tenant text NOT NULL,
        day date NOT NULL,
        persona text NOT NULL,
        region_code text NOT NULL,
        tier text NOT NULL,
        times integer NOT NULL,
        people integer NOT NULL,
        PRIMARY KEY (tenant, day, persona, region_code, tier)
    )""",
    # A decision that escalates opens a review without an appeal.
    """
    ALTER TABLE reviews ADD COLUMN origin text NOT NULL DEFAULT 'APPEAL' CHECK (origin IN ('APPEAL', 'ESCALATION'))
    """,
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
