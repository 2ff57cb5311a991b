"""The first schema: scopes, personas, sessions, turns, events, memories, decisions, consent."""

from alembic import op

revision = "0001"
down_revision = None

_STATEMENTS = (
    # Which master key the ledger was made with.
    "CREATE TABLE vault_check (one boolean PRIMARY KEY DEFAULT true CHECK (one), tag bytea NOT NULL)",
    """
    CREATE TABLE scopes (
        scope text PRIMARY KEY,
        wrapped_key bytea,
        marker text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        destroyed_at timestamptz,
        CHECK ((wrapped_key IS NULL) = (destroyed_at IS NOT NULL))
    )""",
    # What a mutation's request_id did, so that repeating it repeats nothing.
    """
    CREATE TABLE requests (
        tenant text NOT NULL,
        method text NOT NULL,
        request_id uuid NOT NULL,
        body_mac bytea NOT NULL,
        resource text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (tenant, method, request_id)
    )""",
    """
    CREATE TABLE personas (
        tenant text NOT NULL,
        persona text NOT NULL,
        display_name text NOT NULL,
        type text NOT NULL,
        active_revision integer,
        last_revision integer NOT NULL DEFAULT 0,
        etag uuid NOT NULL DEFAULT gen_random_uuid(),
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        deleted_at timestamptz,
        PRIMARY KEY (tenant, persona)
    )""",
    """
    CREATE TABLE revisions (
        tenant text NOT NULL,
        persona text NOT NULL,
        revision integer NOT NULL,
        state text NOT NULL CHECK (state IN ('ACTIVE', 'SUPERSEDED', 'WITHDRAWN')),
        definition bytea NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        withdrawn_at timestamptz,
        withdraw_reason text NOT NULL DEFAULT '',
        PRIMARY KEY (tenant, persona, revision),
        FOREIGN KEY (tenant, persona) REFERENCES personas
    )""",
    "CREATE UNIQUE INDEX revisions_one_active ON revisions (tenant, persona) WHERE state = 'ACTIVE'",
    """
    CREATE TABLE sessions (
        session_pk bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        tenant text NOT NULL,
        persona text NOT NULL,
        session text NOT NULL,
        user_id text NOT NULL,
        scope text NOT NULL REFERENCES scopes,
        revision integer NOT NULL,
        state text NOT NULL DEFAULT 'OPEN' CHECK (state IN ('OPEN', 'CLOSED')),
        age_band text NOT NULL,
        region_code text NOT NULL,
        disclosure text NOT NULL,
        next_event_id bigint NOT NULL DEFAULT 1,
        next_turn integer NOT NULL DEFAULT 1,
        history_from integer NOT NULL DEFAULT 1,
        active_turn text,
        created_at timestamptz NOT NULL DEFAULT now(),
        closed_at timestamptz,
        UNIQUE (tenant, persona, session),
        FOREIGN KEY (tenant, persona, revision) REFERENCES revisions
    )""",
    "CREATE INDEX sessions_by_user ON sessions (tenant, persona, user_id, session_pk)",
    # A process that runs turns. Fencing it cuts all its writes off.
    """
    CREATE TABLE owners (
        owner text PRIMARY KEY,
        host text NOT NULL,
        epoch bigint GENERATED ALWAYS AS IDENTITY,
        started_at timestamptz NOT NULL DEFAULT now(),
        fenced_at timestamptz
    )""",
    """
    CREATE TABLE turns (
        session_pk bigint NOT NULL REFERENCES sessions,
        turn_no integer NOT NULL,
        turn_id text NOT NULL,
        body_mac bytea NOT NULL,
        user_text bytea NOT NULL,
        reply_text bytea,
        state text NOT NULL DEFAULT 'RUNNING' CHECK (state IN ('RUNNING', 'COMPLETED', 'INTERRUPTED')),
        finish_reason text NOT NULL DEFAULT '',
        in_history boolean NOT NULL DEFAULT true,
        owner text NOT NULL REFERENCES owners,
        epoch bigint NOT NULL,
        lease_expires_at timestamptz NOT NULL,
        first_event_id bigint NOT NULL,
        reserved_to bigint NOT NULL,
        last_event_id bigint NOT NULL DEFAULT 0,
        created_at timestamptz NOT NULL DEFAULT now(),
        ended_at timestamptz,
        PRIMARY KEY (session_pk, turn_no),
        UNIQUE (session_pk, turn_id)
    )""",
    "CREATE UNIQUE INDEX turns_one_running ON turns (session_pk) WHERE state = 'RUNNING'",
    "CREATE INDEX turns_running_by_owner ON turns (owner) WHERE state = 'RUNNING'",
    # The truth: append-only.
    """
    CREATE TABLE events (
        session_pk bigint NOT NULL,
        event_id bigint NOT NULL,
        turn_no integer NOT NULL,
        kind text NOT NULL,
        body bytea NOT NULL,
        created_at timestamptz NOT NULL,
        PRIMARY KEY (session_pk, event_id)
    )""",
    "CREATE SEQUENCE memory_changes",
    """
    CREATE TABLE memories (
        memory_id uuid PRIMARY KEY,
        scope text NOT NULL REFERENCES scopes,
        text bytea,
        speaker bytea,
        thread text NOT NULL,
        ordinal integer NOT NULL,
        source text NOT NULL CHECK (source IN ('turn', 'api')),
        external_id text NOT NULL DEFAULT '',
        occurred_at timestamptz NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        expires_at timestamptz,
        forgotten_at timestamptz,
        change_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
        change_seq bigint NOT NULL DEFAULT nextval('memory_changes'),
        CHECK ((text IS NULL) = (forgotten_at IS NOT NULL))
    )""",
    "CREATE INDEX memories_changes ON memories (change_xid, change_seq)",
    "CREATE INDEX memories_by_scope ON memories (scope, created_at, memory_id)",
    "CREATE INDEX memories_by_thread ON memories (scope, thread, ordinal) WHERE forgotten_at IS NULL",
    """
    CREATE TABLE index_cursors (
        index text PRIMARY KEY,
        xid bigint NOT NULL,
        seq bigint NOT NULL,
        updated_at timestamptz NOT NULL DEFAULT now()
    )""",
    """
    CREATE TABLE decisions (
        decision_id uuid PRIMARY KEY,
        tenant text NOT NULL,
        persona text NOT NULL,
        session_pk bigint NOT NULL,
        turn_no integer NOT NULL,
        stage text NOT NULL,
        action text NOT NULL,
        category text NOT NULL,
        reason_code text NOT NULL,
        rules text[] NOT NULL,
        scores jsonb NOT NULL,
        bundle_version text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    )""",
    "CREATE INDEX decisions_by_turn ON decisions (session_pk, turn_no)",
    """
    CREATE TABLE consents (
        consent_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        tenant text NOT NULL,
        persona text NOT NULL,
        user_id text NOT NULL,
        purpose text NOT NULL CHECK (purpose IN ('LIKENESS', 'MEMORY')),
        state text NOT NULL CHECK (state IN ('GRANTED', 'WITHDRAWN')),
        evidence text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    )""",
    "CREATE INDEX consents_by_subject ON consents (tenant, persona, user_id, purpose, consent_id DESC)",
    # Bumped by every withdrawal and consent change; read by every gateway.
    "CREATE TABLE control (one boolean PRIMARY KEY DEFAULT true CHECK (one), epoch bigint NOT NULL)",
    "INSERT INTO control (epoch) VALUES (1)",
    # A fenced append. FOR KEY SHARE holds off whoever closes a turn for its owner,
    # which takes FOR UPDATE, until the rows are committed; ON CONFLICT makes a
    # retry after a lost connection harmless, as only the owner gives out ids.
    # Nothing is added to a turn that has ended: a commit that was given up on
    # may still arrive. Returns the turns that had ended, as "session/turn", NULL if fenced.
    """
    CREATE FUNCTION append_events(
        p_owner text, p_session bigint[], p_event bigint[], p_turn integer[],
        p_kind text[], p_body bytea[], p_at timestamptz[]
    ) RETURNS text[] LANGUAGE plpgsql AS $$
    DECLARE
        ended text[];
    BEGIN
        PERFORM 1 FROM owners WHERE owner = p_owner AND fenced_at IS NULL FOR KEY SHARE;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
        ended := ARRAY(
            SELECT n.session_pk || '/' || n.turn_no FROM unnest(p_session, p_turn) AS n (session_pk, turn_no)
            WHERE (n.session_pk, n.turn_no) NOT IN (
                SELECT session_pk, turn_no FROM turns WHERE state = 'RUNNING' AND session_pk = ANY (p_session)
            )
        );
        INSERT INTO events (session_pk, event_id, turn_no, kind, body, created_at)
        SELECT * FROM unnest(p_session, p_event, p_turn, p_kind, p_body, p_at)
            AS n (session_pk, event_id, turn_no, kind, body, created_at)
        WHERE ended = '{}' OR n.session_pk || '/' || n.turn_no <> ALL (ended)
        ON CONFLICT DO NOTHING;
        RETURN ended;
    END $$""",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
