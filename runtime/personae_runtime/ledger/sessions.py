"""Sessions, turns and events in the ledger; leases, fencing and recovery."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType
from uuid import UUID, uuid4

import asyncpg

from personae_runtime.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    LeaseLost,
    LedgerUnavailable,
    NotFound,
    OwnedElsewhere,
)
from personae_runtime.ledger import audit, protocols
from personae_runtime.ledger.control import STANDING, Standing, require_speech, standing
from personae_runtime.ledger.database import Connection, Database
from personae_runtime.ledger.decisions import insert_decision
from personae_runtime.ledger.memories import LIVE, MemoryLedger
from personae_runtime.ledger.personas import Mutation, once
from personae_runtime.ledger.vault import ErasureInProgress, Scope, ScopeCipher, ScopeErased, Vault
from personae_runtime.ledger.writer import EventRow, append_events
from personae_runtime.memory.facts import Draw, Statement
from personae_runtime.memory.store import MemoryRecord, MemorySource
from personae_runtime.names import Name
from personae_runtime.policy.bundle import CRISIS_NOTICE
from personae_runtime.policy.decision import Action, AgeBand, Decision, PolicyContext
from personae_runtime.policy.protocols import Risk, Tier
from personae_runtime.provenance.label import NO_ORIGIN, Origin
from personae_runtime.sessions.events import (
    Body,
    Event,
    Notice,
    TextDelta,
    TurnInterrupted,
    TurnStarted,
    decode,
    encode,
)

_SESSIONS = (
    "SELECT s.*, p.type AS persona_type, p.display_name, p.owner"
    " FROM sessions s JOIN personas p ON p.tenant = s.tenant AND p.persona = s.persona"
)

# Where owner o takes calls: $1 is the owner that asks, $2 a lease's time.
_ENDPOINT = (
    "CASE WHEN o.owner <> $1 AND o.fenced_at IS NULL AND o.seen_at > now() - $2::interval"
    " THEN o.endpoint ELSE '' END AS endpoint"
)

RESERVED_EVENTS = 100_000
"""Event ids set aside for one turn; recovery writes above them, so a fenced
owner's late ids can't collide. More events than a turn can have."""


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session, and what its persona is called now; times are aware UTC.

    `next_event_id` is one above the last recorded event unless a turn runs,
    `owner` the keyed hash of whose persona it is, empty if nobody was named.
    """

    session_pk: int
    tenant: str
    persona: str
    session: str
    user: str
    scope: str
    revision: int
    state: str
    age_band: str
    region_code: str
    disclosure: str
    history_from: int
    active_turn: str
    next_event_id: int
    persona_type: str
    display_name: str
    created_at: datetime
    closed_at: datetime | None
    owner: str = ""

    @property
    def name(self) -> Name:
        return Name(self.tenant, self.persona, self.user, self.revision, self.session)

    @property
    def thread(self) -> str:
        """Thread of the memories that its turns leave."""
        return thread_of(self.session)


@dataclass(frozen=True, slots=True)
class TurnRow:
    """A turn. `state` is RUNNING, COMPLETED or INTERRUPTED; texts are plain, and empty once they were erased."""

    turn_no: int
    turn_id: str
    state: str
    finish_reason: str
    user_text: str
    reply_text: str
    in_history: bool
    first_event_id: int
    last_event_id: int
    created_at: datetime
    ended_at: datetime | None
    origin: Origin = NO_ORIGIN


@dataclass(frozen=True, slots=True)
class Admission:
    """What admitting a turn came to.

    Attributes:
        new: False if this turn_id ran or runs already with the same body.
        turn_no: its number in the session, from 1.
        first_event_id: id of its turn_started event.
        owner: who runs it.
        running: it has not ended.
        standing, epoch: what was in force, and the control epoch it was read at.
        history_from: first turn that still stands in the prompt.
        admitted_at: the ledger's clock.
        has_memories: there are live ones that the history does not hold anyway.
        has_passages: the persona has said or written something that can be cited.
        profile_version: of the card that the session holds to; None if it has not chosen one.
        card: that card's text, sealed; None if it is gone or was empty from the first.
        has_card: something is known of the person that a card could hold.
        risk: where the person stood in the self-harm protocol.
        notices: reminders that were due, recorded behind the first event.
    """

    new: bool
    turn_no: int
    first_event_id: int
    owner: str
    running: bool
    standing: Standing
    epoch: int
    history_from: int
    admitted_at: datetime
    has_memories: bool
    has_passages: bool
    profile_version: int | None = None
    card: bytes | None = None
    has_card: bool = False
    risk: Risk = field(default_factory=Risk)
    notices: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class SessionChange:
    """What a session has come to.

    Attributes:
        next_event_id: see `SessionRow`.
        closed: no more turns.
        running: where a turn runs; None if none does.
    """

    next_event_id: int
    closed: bool
    running: OwnedElsewhere | None


class SessionLedger:
    """Sessions and what happened in them, written under one owner's lease.

    Args:
        host: what outlives a restart; a new owner of the same host knows that
            the old ones are dead.
        lease_s: seconds a running turn stays this owner's without a renewal.
        may_store: whether a person's words may be remembered, as far as they go;
            asked when a turn is closed that nobody runs any more.
        draw: the facts that such words state.
        escalation_due: by when somebody must have looked at a decision that escalates.
    """

    def __init__(
        self,
        database: Database,
        vault: Vault,
        memories: MemoryLedger,
        *,
        host: str,
        lease_s: float,
        may_store: Callable[[str, PolicyContext], bool],
        draw: Draw = lambda record, context: (),
        escalation_due: timedelta = timedelta(hours=1),
    ) -> None:
        self._database = database
        self._vault = vault
        self._memories = memories
        self._escalation_due = escalation_due
        self._may_store = may_store
        self._draw = draw
        self.owner = ""
        self._host = host
        self._lease = timedelta(seconds=lease_s)
        self._epoch = 0
        self._endpoint = ""
        self._draining = False
        self.alone = True
        """No other owner lived at the last `renew`."""
        self.peers: frozenset[str] = frozenset()
        """Endpoints of other owners that lived and admitted turns then."""

    # -- ownership -----------------------------------------------------------

    async def register(self, endpoint: str | None = None) -> None:
        """Take up a new owner name with a higher epoch; turns can be admitted from now on.

        Args:
            endpoint: host:port at which other owners reach this one; empty for
                nowhere, None for the same as before.
        """
        owner = f"{self._host}/{uuid4().hex}"
        self._endpoint = self._endpoint if endpoint is None else endpoint
        self._epoch = await self._database.fetchval(
            "INSERT INTO owners (owner, host, endpoint, draining_at)"
            " VALUES ($1, $2, $3, CASE WHEN $4 THEN now() END)"
            # A repeat after a lost connection finds its own row.
            " ON CONFLICT (owner) DO UPDATE SET host = $2 RETURNING epoch",
            owner,
            self._host,
            self._endpoint,
            self._draining,
        )
        self.owner = owner

    async def renew(self) -> None:
        """Tell that this owner lives, extend the leases of every turn that it runs, and see who else lives.

        Raises:
            LeaseLost: the owner was fenced off.
        """
        held = await self._database.fetchval(
            "UPDATE owners SET seen_at = now() WHERE owner = $1 AND fenced_at IS NULL RETURNING true", self.owner
        )
        if not held:
            raise LeaseLost("this process was fenced off; its turns belong to another")
        await self._database.execute(
            "UPDATE turns SET lease_expires_at = now() + $2 WHERE owner = $1 AND state = 'RUNNING'",
            self.owner,
            self._lease,
        )
        await self.find_peers()

    async def find_peers(self) -> frozenset[str]:
        """Endpoints of other owners that live and admit turns; `peers` and `alone` are brought up to date."""
        rows = await self._database.fetch(
            "SELECT endpoint, draining_at IS NULL AS admits FROM owners"
            " WHERE owner <> $1 AND host <> $2 AND fenced_at IS NULL AND seen_at > now() - $3::interval",
            self.owner,
            self._host,
            self._lease,
        )
        self.alone = not rows
        self.peers = frozenset(row["endpoint"] for row in rows if row["admits"] and row["endpoint"])
        return self.peers

    async def acknowledge(self, epoch: int) -> None:
        """Tell that this owner keeps nothing in memory that was taken away up to a control epoch."""
        await self._database.execute(
            "UPDATE owners SET control_epoch = greatest(control_epoch, $2) WHERE owner = $1", self.owner, epoch
        )

    async def unheard(self, epoch: int) -> int:
        """How many live owners, this one included, have not acknowledged a control epoch."""
        return int(
            await self._database.fetchval(
                "SELECT count(*) FROM owners WHERE fenced_at IS NULL AND control_epoch < $3"
                " AND (owner = $1 OR (host <> $2 AND seen_at > now() - $4::interval))",
                self.owner,
                self._host,
                epoch,
                self._lease,
            )
        )

    async def leave(self) -> None:
        """Tell other owners that this one admits no more turns; those it runs stay its own."""
        self._draining = True
        await self._database.execute(
            "UPDATE owners SET draining_at = coalesce(draining_at, now()) WHERE owner = $1", self.owner
        )

    async def whereabouts(self, session_pk: int) -> OwnedElsewhere | None:
        """Who runs the session's turn, as the error to raise where it is not this owner; None if none runs."""
        row = await self._database.fetchrow(
            f"SELECT o.owner, {_ENDPOINT} FROM turns t JOIN owners o USING (owner)"
            " WHERE t.session_pk = $3 AND t.state = 'RUNNING'",
            self.owner,
            self._lease,
            session_pk,
        )
        return None if row is None else OwnedElsewhere(row["owner"], row["endpoint"])

    async def changed(self, sessions: Sequence[tuple[int, int]]) -> dict[int, SessionChange]:
        """Of sessions by key and `next_event_id`: those that run a turn, have more events, or are closed."""
        if not sessions:
            return {}
        rows = await self._database.fetch(
            f"SELECT s.session_pk, s.next_event_id, s.state, o.owner, {_ENDPOINT}"
            " FROM unnest($3::bigint[], $4::bigint[]) AS known (session_pk, next_event_id)"
            " JOIN sessions s USING (session_pk)"
            " LEFT JOIN turns t ON t.session_pk = s.session_pk AND t.state = 'RUNNING'"
            " LEFT JOIN owners o USING (owner)"
            " WHERE s.next_event_id <> known.next_event_id OR s.state = 'CLOSED'",
            self.owner,
            self._lease,
            [session_pk for session_pk, _ in sessions],
            [next_event_id for _, next_event_id in sessions],
        )
        return {
            row["session_pk"]: SessionChange(
                row["next_event_id"],
                row["state"] == "CLOSED",
                None if row["owner"] is None else OwnedElsewhere(row["owner"], row["endpoint"], retry_after_s=0.1),
            )
            for row in rows
        }

    async def recover(self) -> list[int]:
        """Close the turns of dead owners as interrupted; the keys of their sessions.

        An owner is dead when a lease of its ran out, or when it is an earlier
        owner of this host, which runs one process at a time.
        """
        dead = await self._database.fetch(
            "SELECT DISTINCT o.owner FROM owners o JOIN turns t USING (owner) WHERE t.state = 'RUNNING'"
            " AND o.owner <> $1 AND (o.host = $2 OR t.lease_expires_at < now())",
            self.owner,
            self._host,
        )
        closed: list[int] = []
        for row in dead:
            # Fence first: whatever the old owner has in flight commits before this or not at all.
            async with self._database.transaction() as connection:
                await connection.fetchrow("SELECT 1 FROM owners WHERE owner = $1 FOR UPDATE", row["owner"])
                await connection.execute(
                    "UPDATE owners SET fenced_at = coalesce(fenced_at, now()) WHERE owner = $1", row["owner"]
                )
            turns = await self._database.fetch(
                "SELECT session_pk, turn_no FROM turns WHERE owner = $1 AND state = 'RUNNING'", row["owner"]
            )
            for turn in turns:
                if await self.close_orphan(turn["session_pk"], turn["turn_no"]):
                    closed.append(turn["session_pk"])
        return closed

    async def running(self) -> set[tuple[int, int]]:
        """(session_pk, turn_no) of every turn that the ledger says this owner runs."""
        rows = await self._database.fetch(
            "SELECT session_pk, turn_no FROM turns WHERE owner = $1 AND state = 'RUNNING'", self.owner
        )
        return {(row["session_pk"], row["turn_no"]) for row in rows}

    async def close_orphan(self, session_pk: int, turn_no: int, reason: str = "OWNER_LOST") -> bool:
        """Close a running turn that nobody runs as interrupted; False if it had ended.

        Its reply is what the recorded events say.
        """
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(
                "SELECT t.*, s.scope, s.session, s.tenant, s.persona, s.user_id, s.revision, s.age_band,"
                " s.region_code, EXISTS ("
                "  SELECT 1 FROM decisions d WHERE d.session_pk = t.session_pk AND d.turn_no = t.turn_no"
                "  AND d.stage IN ('input', 'signal') AND d.action IN ('block', 'escalate')) AS refused"
                " FROM turns t JOIN sessions s USING (session_pk)"
                " WHERE session_pk = $1 AND turn_no = $2 AND t.state = 'RUNNING' FOR UPDATE OF s, t",
                session_pk,
                turn_no,
            )
            if row is None:
                return False
            try:
                cipher = await self._vault.cipher_by_key(row["scope"], connection)
            except ScopeErased:
                return False
            # Waits for what its owner is committing; what still arrives finds the turn ended.
            await connection.fetchrow("SELECT 1 FROM owners WHERE owner = $1 FOR UPDATE", row["owner"])
            events = await self._decode(
                await connection.fetch(
                    "SELECT * FROM events WHERE session_pk = $1 AND turn_no = $2 ORDER BY event_id",
                    session_pk,
                    turn_no,
                ),
                cipher,
                {},
            )
            reply = "".join(event.body.text for event in events if isinstance(event.body, TextDelta))
            # Without an event beyond those of the admission it is not known that the input gate let the words pass.
            begun = any(not isinstance(event.body, (TurnStarted, Notice)) for event in events)
            passed = begun and not row["refused"]
            event_id = row["reserved_to"] + 1
            body = TurnInterrupted(delivered_chars=len(reply), reason=reason)
            at = await connection.fetchval("SELECT now()")
            await connection.execute(
                "INSERT INTO events (session_pk, event_id, turn_no, kind, body, created_at)"
                " VALUES ($1, $2, $3, $4, $5, $6)",
                session_pk,
                event_id,
                turn_no,
                body.kind,
                cipher.seal(encode(body), event_place(session_pk, event_id)),
                at,
            )
            await self._end_turn(
                connection, session_pk, turn_no, cipher, "INTERRUPTED", "", reply, passed, event_id, at
            )
            facts = await connection.fetchrow(STANDING, row["tenant"], row["persona"], row["revision"], row["user_id"])
            if facts is None or not passed or not standing(facts).may_remember:
                return True
            text = cipher.open(row["user_text"], turn_place(session_pk, turn_no, "user")).decode()
            context = PolicyContext(
                facts["type"],
                AgeBand(row["age_band"]),
                row["region_code"],
                tenant=row["tenant"],
                persona=row["persona"],
                revision=row["revision"],
            )
            if self._may_store(text, context):
                memory = turn_memory(row["scope"], row["session"], turn_no, row["user_id"], text, row["created_at"])
                await self._memories.insert(connection, memory, statements=self._draw(memory, context))
        return True

    # -- sessions ------------------------------------------------------------

    async def create(
        self,
        parent: Name,
        session_id: str,
        user: str,
        *,
        age_band: str,
        region_code: str,
        disclosure: str,
        mutation: Mutation,
    ) -> SessionRow:
        """Open a session on the persona's ACTIVE revision.

        Raises:
            NotFound: there is no such persona.
            FailedPrecondition: it is deleted, has no ACTIVE revision, or lacks a consent.
            AlreadyExists: the session id is taken.
            ErasureInProgress: what is held of the person is being erased.
        """
        cipher = await self._vault.renew(self._vault.scope_key(Scope(parent.tenant, parent.persona, user)))
        async with self._database.transaction() as connection:

            async def act() -> str:
                await self._vault.hold(connection, cipher)
                persona = await connection.fetchrow(
                    "SELECT active_revision, deleted_at FROM personas WHERE tenant = $1 AND persona = $2",
                    parent.tenant,
                    parent.persona,
                )
                if persona is None:
                    raise NotFound(f"{parent.persona_name()} does not exist")
                revision = persona["active_revision"]
                if revision is None and persona["deleted_at"] is None:
                    raise FailedPrecondition(
                        "the persona has no ACTIVE revision; publish one first",
                        reason="NO_ACTIVE_REVISION",
                        violations=(("persona", "publish a revision first"),),
                    )
                require_speech(
                    standing(await connection.fetchrow(STANDING, parent.tenant, parent.persona, revision or 0, user))
                )
                try:
                    await connection.execute(
                        "INSERT INTO sessions (tenant, persona, session, user_id, scope, revision, age_band,"
                        " region_code, disclosure) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                        parent.tenant,
                        parent.persona,
                        session_id,
                        user,
                        cipher.scope,
                        revision,
                        age_band,
                        region_code,
                        disclosure,
                    )
                except asyncpg.UniqueViolationError:
                    raise AlreadyExists(
                        f"session {session_id!r} exists; choose another session_id or leave it empty"
                    ) from None
                # A session's id is its own within its persona only.
                return f"{parent.persona}/{session_id}"

            created = await once(connection, parent.tenant, mutation, act)
        return await self.get(Name(parent.tenant, parent.persona, session=created.rpartition("/")[2]))

    async def get(self, name: Name) -> SessionRow:
        """One session.

        Raises:
            NotFound: there is none.
        """
        row = await self._database.fetchrow(
            f"{_SESSIONS} WHERE s.tenant = $1 AND s.persona = $2 AND s.session = $3",
            name.tenant,
            name.persona,
            name.session,
        )
        if row is None:
            raise NotFound(f"{name.session_name()} does not exist")
        return _session(row)

    async def list_sessions(self, parent: Name, *, user: str, before: int, limit: int) -> list[SessionRow]:
        """Sessions with a key below `before`, newest first; an empty `user` is everybody."""
        rows = await self._database.fetch(
            f"{_SESSIONS} WHERE s.tenant = $1 AND s.persona = $2 AND ($3 = '' OR s.user_id = $3)"
            " AND s.session_pk < $4 ORDER BY s.session_pk DESC LIMIT $5",
            parent.tenant,
            parent.persona,
            user,
            before,
            limit,
        )
        return [_session(row) for row in rows]

    async def close(self, name: Name) -> SessionRow:
        """Close a session; closing twice is the same as once."""
        await self._database.execute(
            "UPDATE sessions SET state = 'CLOSED', closed_at = coalesce(closed_at, now())"
            " WHERE tenant = $1 AND persona = $2 AND session = $3",
            name.tenant,
            name.persona,
            name.session,
        )
        return await self.get(name)

    # -- turns ---------------------------------------------------------------

    async def admit(
        self,
        session: SessionRow,
        cipher: ScopeCipher,
        turn_id: str,
        text: str,
        started: Body,
        attend: protocols.Attend | None = None,
        origin: Origin = NO_ORIGIN,
    ) -> Admission:
        """Persist the person's turn and take its lease, in one transaction.

        Args:
            attend: counts the turn on the person's clocks; the reminders that it says are due are recorded with it.
            origin: what will write the reply; of a turn that ran or runs already the first one stays.

        Raises:
            AlreadyExists: the turn_id ran with another body (reason TURN_ID_REUSED).
            Aborted: another turn of the session runs (reason TURN_IN_PROGRESS).
            FailedPrecondition: the session is closed, or the persona may not speak.
            LeaseLost: this owner is fenced off.
        """
        mac = self._vault.body_mac("turn", text)
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(
                "SELECT s.state, s.next_event_id, s.next_turn, s.active_turn, s.history_from, s.profile_version,"
                " now() AS at,"
                " (SELECT generation FROM scopes WHERE scope = s.scope AND destroyed_at IS NULL) AS generation"
                " FROM sessions s, owners o WHERE s.session_pk = $1 AND o.owner = $2 AND o.fenced_at IS NULL"
                " FOR UPDATE OF s FOR KEY SHARE OF o",
                session.session_pk,
                self.owner,
            )
            if row is None:
                raise LeaseLost("this process was fenced off; try again", retry_after_s=1.0)
            if row["generation"] != cipher.generation:
                self._vault.drop((session.scope,))
                raise ErasureInProgress
            facts = await connection.fetchrow(STANDING, session.tenant, session.persona, session.revision, session.user)
            found = standing(facts)
            epoch = 0 if facts is None else facts["epoch"]
            turn = await connection.fetchrow(
                "SELECT t.turn_no, t.body_mac, t.state, t.owner, t.first_event_id, EXISTS (SELECT FROM memories"
                f"  WHERE scope = $3 AND ($4 OR thread <> $5) AND {LIVE}) AS has_memories,"
                " EXISTS (SELECT FROM passages WHERE scope = $6 AND deleted_at IS NULL) AS has_passages,"
                " (SELECT p.text FROM profiles p WHERE p.scope = $3 AND p.version = $7"
                "  AND (p.expires_at IS NULL OR p.expires_at > now())) AS card,"
                " (SELECT profile_stale OR profile_version > 0 FROM scopes WHERE scope = $3) AS has_card"
                " FROM (VALUES (1)) AS one LEFT JOIN turns t ON t.session_pk = $1 AND t.turn_id = $2",
                session.session_pk,
                turn_id,
                session.scope,
                row["history_from"] > 1,
                session.thread,
                self._vault.scope_key(Scope(session.tenant, session.persona)),
                row["profile_version"],
            )
            if turn["turn_no"] is not None:
                if turn["body_mac"] != mac:
                    raise AlreadyExists(
                        "turn_id names another turn of this session; choose a new one for new text",
                        reason="TURN_ID_REUSED",
                    )
                return Admission(
                    new=False,
                    turn_no=turn["turn_no"],
                    first_event_id=turn["first_event_id"],
                    owner=turn["owner"],
                    running=turn["state"] == "RUNNING",
                    standing=found,
                    epoch=epoch,
                    history_from=row["history_from"],
                    admitted_at=row["at"],
                    has_memories=turn["has_memories"],
                    has_passages=turn["has_passages"],
                )
            if row["state"] != "OPEN":
                raise FailedPrecondition(
                    "the session is closed; open a new one",
                    reason="SESSION_CLOSED",
                    violations=(("session", "closed"),),
                )
            require_speech(found)
            if row["active_turn"] is not None:
                raise Aborted(
                    "another turn of this session runs; wait for it or cancel it",
                    reason="TURN_IN_PROGRESS",
                    metadata={"turn_id": row["active_turn"]},
                )
            turn_no, first = row["next_turn"], row["next_event_id"]
            await connection.execute(
                "WITH turn AS (INSERT INTO turns (session_pk, turn_no, turn_id, body_mac, user_text, owner, epoch,"
                "  lease_expires_at, first_event_id, reserved_to, created_at, origin)"
                "  VALUES ($1, $2, $3, $4, $5, $6, $7, now() + $8, $9, $10, now(), $13)),"
                " event AS (INSERT INTO events (session_pk, event_id, turn_no, kind, body, created_at)"
                "  VALUES ($1, $9, $2, $11, $12, now()))"
                " UPDATE sessions SET active_turn = $3, next_turn = $2 + 1, next_event_id = $10 + 1"
                " WHERE session_pk = $1",
                session.session_pk,
                turn_no,
                turn_id,
                mac,
                cipher.seal(text.encode(), turn_place(session.session_pk, turn_no, "user")),
                self.owner,
                self._epoch,
                self._lease,
                first,
                first + RESERVED_EVENTS,
                started.kind,
                cipher.seal(encode(started), event_place(session.session_pk, first)),
                origin.to_json(),
            )
            risk, notices = Risk(), tuple[Event, ...]()
            if attend is not None:
                person = self._vault.pseudonym("person", session.tenant, session.user)
                risk, told = await protocols.attend(connection, session.scope, person, row["at"], turn_no == 1, attend)
                notices = tuple(
                    Event(first + at, turn_id, row["at"], Notice(one.code, one.text)) for at, one in enumerate(told, 1)
                )
                if notices:
                    rows = [self.row(session.session_pk, turn_no, cipher, event) for event in notices]
                    await append_events(connection, self.owner, rows)
        return Admission(
            new=True,
            turn_no=turn_no,
            first_event_id=first,
            owner=self.owner,
            running=True,
            standing=found,
            epoch=epoch,
            history_from=row["history_from"],
            admitted_at=row["at"],
            has_memories=turn["has_memories"],
            has_passages=turn["has_passages"],
            profile_version=row["profile_version"],
            card=turn["card"],
            has_card=turn["has_card"],
            risk=risk,
            notices=notices,
        )

    def row(self, session_pk: int, turn_no: int, cipher: ScopeCipher, event: Event) -> EventRow:
        """An event, sealed, for the writer."""
        return EventRow(
            session_pk=session_pk,
            event_id=event.event_id,
            turn_no=turn_no,
            kind=event.body.kind,
            body=cipher.seal(encode(event.body), event_place(session_pk, event.event_id)),
            created_at=event.time,
        )

    async def decide(
        self,
        session: SessionRow,
        turn_no: int,
        decision: Decision,
        decision_id: UUID | None = None,
        *,
        tier: Tier = Tier.NONE,
    ) -> UUID:
        """Record a policy decision, without the text it judged, and its audit entry; durable on return.

        With it, a crisis card is counted, and what escalates is put before a reviewer.

        Args:
            turn_no: 0 of a turn that was not taken.
            decision_id: with which a repeat changes nothing; a new one unless given.
            tier: of the self-harm protocol, if it is that one's decision on a message.
        """
        decision_id = decision_id or uuid4()

        async def insert(connection: Connection | Database) -> bool:
            return await insert_decision(
                connection,
                decision_id,
                session.tenant,
                session.persona,
                session.session_pk,
                turn_no,
                PolicyContext(session.persona_type, AgeBand(session.age_band), session.region_code),
                decision,
                self._audit_body(session, turn_no, decision),
            )

        async def insert_all() -> None:
            async with self._database.transaction() as connection:
                if not await insert(connection):
                    return
                if decision.notice_code == CRISIS_NOTICE:
                    label = tier.name.lower() if tier else "output"
                    await protocols.count_referral(
                        connection, session.session_pk, session.tenant, session.persona, session.region_code, label
                    )
                if decision.action is Action.ESCALATE:
                    await protocols.escalate(
                        connection, session.tenant, session.scope, decision_id, decision, self._escalation_due
                    )

        if decision.notice_code != CRISIS_NOTICE and decision.action is not Action.ESCALATE:
            await insert(self._database)
            return decision_id
        try:
            await insert_all()
        except LedgerUnavailable:
            # A pooled connection may have died with its server; a repeat of the same id counts nothing twice.
            await insert_all()
        return decision_id

    async def sustain(self, session: SessionRow, ask: protocols.Sustain) -> Decision:
        """See `protocols.sustain`."""
        return await protocols.sustain(self._database, session.scope, ask)

    def _audit_body(self, session: SessionRow, turn_no: int, decision: Decision) -> bytes:
        return audit.canonical(
            {
                "action": decision.action.value,
                "bundle_version": decision.bundle_version,
                "category": decision.category,
                "person": session.scope,
                "persona": session.persona,
                "reason_code": decision.reason_code,
                "rules": [rule.rule_id for rule in decision.rules],
                "scores": [
                    {"category": category, "millionths": audit.millionths(score)}
                    for category, score in sorted(decision.scores.items())
                ],
                "session": self._vault.pseudonym("session", session.tenant, session.persona, session.session),
                "stage": decision.stage.value,
                "turn": turn_no,
                **({"claims": list(decision.claims)} if decision.claims else {}),
            }
        )

    async def quarantine(self, memory_id: UUID, reason: str) -> None:
        """See `MemoryLedger.quarantine`."""
        await self._memories.quarantine(memory_id, reason)

    async def finish(
        self,
        session: SessionRow,
        turn_no: int,
        cipher: ScopeCipher,
        *,
        state: str,
        finish_reason: str,
        reply: str,
        in_history: bool,
        events: Sequence[Event],
        memory: MemoryRecord | None,
        history_from: int,
        statements: Sequence[Statement] = (),
    ) -> None:
        """End a turn: its last events, its projection, what it leaves to remember and what that states, in one
        transaction.

        Raises:
            LeaseLost: another owner closed it.
        """
        async with self._database.transaction() as connection:
            # Session, turn, owner: whoever locks several of them does so in this order.
            held = await connection.fetchrow(
                "SELECT t.state, t.last_event_id FROM sessions s JOIN turns t USING (session_pk)"
                " JOIN owners o USING (owner) WHERE s.session_pk = $1 AND t.turn_no = $2"
                " AND t.owner = $3 AND o.fenced_at IS NULL FOR UPDATE OF s, t FOR KEY SHARE OF o",
                session.session_pk,
                turn_no,
                self.owner,
            )
            if held is not None and held["last_event_id"] == events[-1].event_id:
                # A repeat, after a connection that was lost at the commit.
                return
            if held is None or held["state"] != "RUNNING":
                raise LeaseLost("this turn was closed by somebody else")
            rows = [self.row(session.session_pk, turn_no, cipher, event) for event in events]
            await append_events(connection, self.owner, rows)
            await self._end_turn(
                connection,
                session.session_pk,
                turn_no,
                cipher,
                state,
                finish_reason,
                reply,
                in_history,
                events[-1].event_id,
                events[-1].time,
                history_from,
            )
            if memory is not None:
                await self._memories.insert(connection, memory, statements=statements)

    async def _end_turn(
        self,
        connection: Connection,
        session_pk: int,
        turn_no: int,
        cipher: ScopeCipher,
        state: str,
        finish_reason: str,
        reply: str,
        in_history: bool,
        last_event_id: int,
        at: datetime,
        history_from: int = 0,
    ) -> None:
        await connection.execute(
            "WITH ended AS (UPDATE turns SET state = $3, finish_reason = $4, reply_text = $5, in_history = $6,"
            "  last_event_id = $7, ended_at = $8 WHERE session_pk = $1 AND turn_no = $2 AND state = 'RUNNING'"
            "  RETURNING turn_id)"
            " UPDATE sessions SET active_turn = NULL, next_event_id = $7 + 1,"
            "  history_from = greatest(history_from, $9)"
            " WHERE session_pk = $1 AND active_turn IN (SELECT turn_id FROM ended)",
            session_pk,
            turn_no,
            state,
            finish_reason,
            cipher.seal(reply.encode(), turn_place(session_pk, turn_no, "reply")),
            in_history,
            last_event_id,
            at,
            history_from,
        )

    async def turn(self, session: SessionRow, turn_id: str) -> TurnRow:
        """One turn.

        Raises:
            NotFound: the session has none of that id.
        """
        row = await self._database.fetchrow(
            "SELECT * FROM turns WHERE session_pk = $1 AND turn_id = $2", session.session_pk, turn_id
        )
        if row is None:
            raise NotFound(f"{session.name.session_name()}/turns/{turn_id} does not exist")
        return await self._turn(row, await self._vault.cipher_by_key(session.scope))

    async def turns(self, session: SessionRow, *, after: int, limit: int, live: bool = True) -> list[TurnRow]:
        """Turns with a number above `after`, oldest first; `live` reads a running turn's reply from its events."""
        rows = await self._database.fetch(
            "SELECT * FROM turns WHERE session_pk = $1 AND turn_no > $2 ORDER BY turn_no LIMIT $3",
            session.session_pk,
            after,
            limit,
        )
        cipher = await self._vault.cipher_by_key(session.scope)
        return [await self._turn(row, cipher, live=live) for row in rows]

    async def _turn(self, row: asyncpg.Record, cipher: ScopeCipher, *, live: bool = True) -> TurnRow:
        session_pk, turn_no = row["session_pk"], row["turn_no"]
        if row["reply_text"] is not None:
            reply = cipher.open(row["reply_text"], turn_place(session_pk, turn_no, "reply")).decode()
        elif live and row["erased_at"] is None:
            events = await self._database.fetch(
                "SELECT * FROM events WHERE session_pk = $1 AND turn_no = $2 AND kind = 'text_delta' ORDER BY event_id",
                session_pk,
                turn_no,
            )
            bodies = [event.body for event in await self._decode(events, cipher, {})]
            reply = "".join(body.text for body in bodies if isinstance(body, TextDelta))
        else:
            reply = ""
        return TurnRow(
            turn_no=turn_no,
            turn_id=row["turn_id"],
            state=row["state"],
            finish_reason=row["finish_reason"],
            user_text=""
            if row["user_text"] is None
            else cipher.open(row["user_text"], turn_place(session_pk, turn_no, "user")).decode(),
            reply_text=reply,
            in_history=row["in_history"],
            first_event_id=row["first_event_id"],
            last_event_id=row["last_event_id"],
            created_at=row["created_at"],
            ended_at=row["ended_at"],
            origin=Origin.from_json(row["origin"]),
        )

    # -- events --------------------------------------------------------------

    async def events(self, session: SessionRow, *, after: int, limit: int, turn_no: int | None = None) -> list[Event]:
        """Recorded events with an id above `after`, in order.

        Raises:
            ScopeErased: their text was erased.
        """
        rows = await self._database.fetch(
            "SELECT e.*, t.turn_id, t.origin FROM events e JOIN turns t USING (session_pk, turn_no)"
            " WHERE session_pk = $1 AND event_id > $2 AND ($4::integer IS NULL OR turn_no = $4)"
            " ORDER BY event_id LIMIT $3",
            session.session_pk,
            after,
            limit,
            turn_no,
        )
        cipher = await self._vault.cipher_by_key(session.scope)
        turns = {row["turn_no"]: row for row in rows}
        origins = {turn_no: Origin.from_json(row["origin"]) for turn_no, row in turns.items()}
        return await self._decode(rows, cipher, {turn_no: row["turn_id"] for turn_no, row in turns.items()}, origins)

    async def last_event_id(self, session: SessionRow) -> int:
        """Id of the newest recorded event, 0 if there is none."""
        found = await self._database.fetchval(
            "SELECT max(event_id) FROM events WHERE session_pk = $1", session.session_pk
        )
        return int(found or 0)

    async def _decode(
        self,
        rows: Sequence[asyncpg.Record],
        cipher: ScopeCipher,
        turn_ids: Mapping[int, str],
        origins: Mapping[int, Origin] = MappingProxyType({}),
    ) -> list[Event]:
        return [
            Event(
                event_id=row["event_id"],
                turn_id=turn_ids.get(row["turn_no"], ""),
                time=row["created_at"],
                body=decode(row["kind"], cipher.open(row["body"], event_place(row["session_pk"], row["event_id"]))),
                origin=origins.get(row["turn_no"], NO_ORIGIN),
            )
            for row in rows
        ]


def turn_memory(scope: str, session: str, turn_no: int, user: str, text: str, at: datetime) -> MemoryRecord:
    """The memory that a person's turn leaves: their own words."""
    return MemoryRecord(
        memory_id=uuid4(),
        scope=scope,
        text=text,
        speaker=user,
        occurred_at=at,
        thread=thread_of(session),
        ordinal=turn_no,
        source=MemorySource.TURN,
        created_at=at,
        external_id="",
    )


def thread_of(session: str) -> str:
    return f"session/{session}"


def event_place(session_pk: int, event_id: int) -> str:
    return f"event/{session_pk}/{event_id}"


def turn_place(session_pk: int, turn_no: int, column: str) -> str:
    return f"turn/{session_pk}/{turn_no}/{column}"


def _session(row: asyncpg.Record) -> SessionRow:
    return SessionRow(
        session_pk=row["session_pk"],
        tenant=row["tenant"],
        persona=row["persona"],
        session=row["session"],
        user=row["user_id"],
        scope=row["scope"],
        revision=row["revision"],
        state=row["state"],
        age_band=row["age_band"],
        region_code=row["region_code"],
        disclosure=row["disclosure"],
        history_from=row["history_from"],
        active_turn=row["active_turn"] or "",
        next_event_id=row["next_event_id"],
        persona_type=row["persona_type"],
        display_name=row["display_name"],
        created_at=row["created_at"],
        closed_at=row["closed_at"],
        owner=row["owner"],
    )
