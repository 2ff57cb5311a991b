"""Whatever happens, and in whatever order: nothing that expired, was revoked, restricted or erased is recalled.

A state machine over the real ledger and the real index, embedded and on a server:
writes, facts, expiry, rectification, restriction, quarantine, consent, forgetting,
sweeps, erasure, crashes and reindexing, with a model that says what may be recalled.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy.engine import make_url

from personae_runtime.config import QdrantSettings
from personae_runtime.errors import NotFound
from personae_runtime.ledger.control import ConsentLedger
from personae_runtime.ledger.database import Database
from personae_runtime.ledger.erasure import Eraser, ErasureLedger, ErasureLog
from personae_runtime.ledger.memories import MemoryLedger, Retention
from personae_runtime.ledger.personas import PersonaLedger
from personae_runtime.ledger.vault import ErasureInProgress, Scope, Vault
from personae_runtime.memory.edge import EdgeMemoryIndex
from personae_runtime.memory.facts import Statement
from personae_runtime.memory.index import MemoryIndex, PointKind
from personae_runtime.memory.indexer import Indexer
from personae_runtime.memory.qdrant import QdrantMemoryIndex
from personae_runtime.memory.qdrant_layout import ServerLayout
from personae_runtime.memory.recall import Recall
from personae_runtime.memory.store import MemoryRecord, MemorySource
from personae_runtime.names import Name
from tests.unit.ledger.conftest import ONCE

T = TypeVar("T")
USERS = ("ann", "bob")
PERSONA = Name("acme", "nadia")
TOPICS = ("", "boats", "trains")

MakeIndex = Callable[[Path], Awaitable[MemoryIndex]]


@dataclass
class Kept:
    """What the model knows of a memory."""

    user: str
    word: str
    topic: str
    """What it states a liking of, "" for nothing."""
    stated: bool = True
    """False once that was taken away: the fact was forgotten, or the words may not be used."""
    expired: bool = False
    restricted: bool = False
    quarantined: bool = False

    @property
    def live(self) -> bool:
        return not (self.expired or self.restricted or self.quarantined)

    @property
    def text(self) -> str:
        return f"{self.word} it is, of {self.topic or 'nothing'}."


def states(record: MemoryRecord) -> list[Statement]:
    """What a text says, by its last word."""
    topic = record.text.rstrip(".").rsplit(" ", 1)[1]
    if topic == "nothing":
        return []
    return [Statement("likes", topic, ("likes", topic), 0, 1, record.occurred_at)]


class Crash(Exception):
    """The process dies here."""


class Memories(RuleBasedStateMachine):
    """See the module."""

    dsn = ""
    make_index: MakeIndex

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="personae-machine-"))
        self.numbers = itertools.count()
        self.kept: dict[UUID, Kept] = {}
        self.consent = dict.fromkeys(USERS, True)
        self.held: set[str] = set()
        self.words: list[str] = []

    def do(self, step: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(step)

    @initialize()
    def begin(self) -> None:
        self.do(self._open())
        self.do(self._empty())

    async def _open(self) -> None:
        self.database = Database(self.dsn, pool_size=3, command_timeout_s=10)
        await self.database.open()
        self.vault = Vault(bytes(32), self.database)
        self.memories = MemoryLedger(self.database, self.vault)
        self.consents = ConsentLedger(self.database)
        self.index = await type(self).make_index(self.folder / "index")
        self.indexer = Indexer(
            self.index, self.memories, None, batch=3, on_erase=lambda scope: self.vault.drop((scope,))
        )
        self.recall = Recall(self.index, self.memories, None)
        self.erasures = ErasureLedger(self.database, self.vault, self.memories)
        self.eraser = Eraser(
            self.erasures,
            ErasureLog(self.folder / "log"),
            erase_index=self.indexer.erase,
            unheard=self._nobody,
            prove=lambda erasure, remaining, at: b"proof",
            to_line=lambda proof: proof,
        )

    async def _nobody(self, epoch: int) -> int:
        return 0

    async def _empty(self) -> None:
        for table in ("memories", "profiles", "operations", "erasures", "consents", "index_cursors", "scopes"):
            await self.database.execute(f"DELETE FROM {table}")

    async def _close(self) -> None:
        await self.index.close()
        await self.database.close()

    def teardown(self) -> None:
        if hasattr(self, "index"):
            self.do(self._close())
        self.loop.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def scope(self, user: str) -> str:
        return self.vault.scope_key(Scope(PERSONA.tenant, PERSONA.persona, user))

    def some(self, data: st.DataObject) -> UUID:
        return data.draw(st.sampled_from(list(self.kept)))

    def new_word(self) -> str:
        self.words.append(f"word{next(self.numbers)}")
        return self.words[-1]

    # -- writes --------------------------------------------------------------

    @rule(user=st.sampled_from(USERS), topic=st.sampled_from(TOPICS))
    def write(self, user: str, topic: str) -> None:
        now = datetime.now(UTC)
        kept = Kept(user, self.new_word(), topic)
        record = MemoryRecord(
            uuid4(), self.scope(user), kept.text, "Ann", now, "t", next(self.numbers), MemorySource.API, now
        )
        try:
            self.do(self.memories.create(record, PERSONA.tenant, ONCE, states(record)))
        except ErasureInProgress:
            assert user in self.held
        else:
            assert user not in self.held
            self.kept[record.memory_id] = kept

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), topic=st.sampled_from(TOPICS))
    def rectify(self, data: st.DataObject, topic: str) -> None:
        memory_id = self.some(data)
        kept = self.kept[memory_id]
        if not kept.expired:
            kept.word, kept.topic, kept.quarantined, kept.stated = self.new_word(), topic, False, not kept.restricted
            self._update(memory_id, text=kept.text)

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), restricted=st.booleans())
    def restrict(self, data: st.DataObject, restricted: bool) -> None:
        memory_id = self.some(data)
        kept = self.kept[memory_id]
        if not kept.expired:
            if kept.restricted is not restricted:
                kept.stated = not restricted and not kept.quarantined
            kept.restricted = restricted
            self._update(memory_id, restricted=restricted)

    def _update(self, memory_id: UUID, **changes: Any) -> None:
        scope = self.scope(self.kept[memory_id].user)
        told = {"version": "", "tenant": PERSONA.tenant, "mutation": ONCE}
        self.do(self.memories.update(scope, memory_id, changes, **told, states=states))

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def quarantine(self, data: st.DataObject) -> None:
        memory_id = self.some(data)
        self.kept[memory_id].quarantined, self.kept[memory_id].stated = True, False
        self.do(self.memories.quarantine(memory_id, "INJECTION_IN_MEMORY"))

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        """Its time passes; the index learns of it late, or never."""
        memory_id = self.some(data)
        if not self.kept[memory_id].expired:
            self.kept[memory_id].expired = True
            # What is written is not there to be returned.
            with suppress(NotFound):
                self._update(memory_id, expires_at=datetime.now(UTC) - timedelta(seconds=1))

    @rule()
    def sweep(self) -> None:
        """What has expired is forgotten, and nothing else."""
        self.do(self.memories.sweep(Retention()))
        self.kept = {memory_id: kept for memory_id, kept in self.kept.items() if not kept.expired}

    @rule(user=st.sampled_from(USERS), granted=st.booleans())
    def change_consent(self, user: str, granted: bool) -> None:
        self.consent[user] = granted
        subject = Name(PERSONA.tenant, PERSONA.persona, user)
        state = "GRANTED" if granted else "WITHDRAWN"
        self.do(self.consents.record(subject, "MEMORY", state, "a test", lambda connection, act: act()))

    # -- ends ----------------------------------------------------------------

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        memory_id = self.some(data)
        self.do(self.memories.forget(self.scope(self.kept[memory_id].user), memory_id))
        del self.kept[memory_id]

    @rule(user=st.sampled_from(USERS), topic=st.sampled_from(TOPICS[1:]))
    def forget_fact(self, user: str, topic: str) -> None:
        """It goes with all that supports it; the words stay."""
        scope = self.scope(user)
        for record in self.do(self.memories.list_memories(scope, before=None, limit=100, kind=PointKind.FACT)):
            if record.fact is not None and record.fact.value == topic:
                self.do(self.memories.forget(scope, record.memory_id))
                for kept in self.kept.values():
                    if kept.user == user and kept.topic == topic:
                        kept.stated = False

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), crash=st.sampled_from(["", "erase_rows", "remaining", "finish"]))
    def erase_some(self, data: st.DataObject, crash: str) -> None:
        memory_id = self.some(data)
        user = self.kept[memory_id].user
        self._erase(user, [memory_id], crash)
        del self.kept[memory_id]

    @rule(user=st.sampled_from(USERS), crash=st.sampled_from(["", "erase_rows", "remaining", "finish"]))
    def erase_all(self, user: str, crash: str) -> None:
        self._erase(user, [], crash)
        for memory_id in [one for one, kept in self.kept.items() if kept.user == user]:
            del self.kept[memory_id]

    def _erase(self, user: str, memory_ids: list[UUID], crash: str) -> None:
        begun = self.do(self.erasures.start(Scope(PERSONA.tenant, PERSONA.persona, user), memory_ids, "", ONCE))
        if not crash:
            assert self.do(self.eraser.attempt(begun))
            if not memory_ids:
                self.held.discard(user)
            return
        whole = getattr(ErasureLedger, crash)

        async def dies(ledger: ErasureLedger, *args: Any) -> None:
            if crash != "finish":
                await whole(ledger, *args)
            raise Crash

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ErasureLedger, crash, dies)
            patch.setattr("personae_runtime.ledger.erasure._log.warning", lambda *args, **kwargs: None)
            assert not self.do(self.eraser.attempt(begun))
        if not memory_ids:
            self.held.add(user)
        self.restart()

    @rule()
    def resume(self) -> None:
        """What a crash cut off is taken up."""
        self.do(self.database.execute("UPDATE operations SET next_try_at = now()"))
        for erasure in self.do(self.erasures.due()):
            assert self.do(self.eraser.attempt(erasure))
        self.held.clear()

    # -- the index -----------------------------------------------------------

    @rule()
    def index_some(self) -> None:
        self.do(self.indexer._step())

    @rule()
    def index_all(self) -> None:
        self.do(self.indexer.catch_up())

    @rule()
    def reindex(self) -> None:
        self.do(self.indexer.reindex())

    @rule()
    def crash_while_indexing(self) -> None:
        """The points are written, the cursor is not moved."""

        async def dies(*args: Any) -> None:
            raise Crash

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.memories, "save_cursor", dies)
            with suppress(Crash):
                self.do(self.indexer._step())
        self.restart()

    @rule()
    def restart(self) -> None:
        self.do(self._close())
        self.do(self._open())

    # -- what must hold ------------------------------------------------------

    def _recalled(self, user: str) -> set[tuple[UUID | None, str]]:
        async def recall() -> set[tuple[UUID | None, str]]:
            # As a turn does it.
            if not await self.consents.may_remember(Name(PERSONA.tenant, PERSONA.persona, user)):
                return set()
            query = " ".join([*self.words, *TOPICS[1:], "nothing"])
            found = await self.recall.recall(self.scope(user), query, limit=100, dense_deadline_s=0, fact_limit=100)
            assert all(item.record.fact is None for item in found.items)
            return {
                *((item.record.memory_id, item.record.text) for item in found.items),
                *((None, item.record.text) for item in found.facts),
            }

        return self.do(recall())

    def _allowed(self, user: str) -> set[tuple[UUID | None, str]]:
        if not self.consent[user]:
            return set()
        live = {memory_id: kept for memory_id, kept in self.kept.items() if kept.user == user and kept.live}
        return {
            *((memory_id, kept.text) for memory_id, kept in live.items()),
            *((None, f"Likes {kept.topic}.") for kept in live.values() if kept.topic and kept.stated),
        }

    @invariant()
    def nothing_is_recalled_that_may_not_be(self) -> None:
        if hasattr(self, "index"):
            for user in USERS:
                assert self._recalled(user) <= self._allowed(user)

    @rule()
    def all_that_may_be_is_recalled_once_it_is_indexed(self) -> None:
        self.do(self.indexer.catch_up())
        for user in USERS:
            assert self._recalled(user) == self._allowed(user)


def edge(_: pytest.FixtureRequest) -> MakeIndex:
    async def opened(directory: Path) -> MemoryIndex:
        index = EdgeMemoryIndex(directory, compact_from_kb=1)  # at each start
        await index.open()
        return index

    return opened


def qdrant(request: pytest.FixtureRequest) -> MakeIndex:
    server = request.getfixturevalue("qdrant_server")

    async def opened(directory: Path) -> MemoryIndex:
        collection = f"m{blake2b(str(directory).encode(), digest_size=8).hexdigest()}"
        given = QdrantSettings(url=server.url, collection=collection, timeout_s=30, search_timeout_s=30)
        async with ServerLayout(given) as layout:
            await layout.init()
        index = QdrantMemoryIndex(given)
        await index.open()
        return index

    return opened


@pytest.mark.parametrize(("backend", "examples"), [(edge, 12), (qdrant, 4)], ids=["edge", "qdrant"])
def test_nothing_expired_revoked_or_erased_is_ever_recalled(
    request: pytest.FixtureRequest,
    server_dsn: str,
    backend: Callable[[pytest.FixtureRequest], MakeIndex],
    examples: int,
) -> None:
    name = f"machine_{uuid.uuid4().hex}"

    async def prepare() -> str:
        connection = await asyncpg.connect(server_dsn)
        await connection.execute(f"CREATE DATABASE {name}")
        # What a power cut does is not tested here, and every step commits.
        await connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
        await connection.close()
        dsn = make_url(server_dsn).set(database=name).render_as_string(hide_password=False)
        database = Database(dsn, pool_size=2, command_timeout_s=10)
        await database.open()
        await database.migrate()
        await PersonaLedger(database, Vault(bytes(32), database)).create(PERSONA, "Nadia", "assistant", ONCE)
        await database.close()
        return dsn

    Memories.dsn = asyncio.run(prepare())
    Memories.make_index = staticmethod(backend(request))
    run_state_machine_as_test(
        Memories,
        settings=settings(
            max_examples=examples,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            # Each step commits: making a failure shorter would take minutes.
            phases=(Phase.explicit, Phase.reuse, Phase.generate),
        ),
    )
