"""Whatever happens, and in whatever order: nothing that expired, was revoked, restricted or erased is recalled.

A state machine over the real ledger and the real index: writes, facts, expiry,
rectification, restriction, quarantine, consent, forgetting, erasure, crashes and
reindexing, with a model that says what may be recalled.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
import uuid
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
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

from personae_runtime.ledger.control import ConsentLedger
from personae_runtime.ledger.database import Database
from personae_runtime.ledger.erasure import Eraser, ErasureLedger, ErasureLog
from personae_runtime.ledger.memories import MemoryLedger
from personae_runtime.ledger.personas import PersonaLedger
from personae_runtime.ledger.vault import ErasureInProgress, Scope, Vault
from personae_runtime.memory.edge import EdgeMemoryIndex
from personae_runtime.memory.indexer import Indexer
from personae_runtime.memory.recall import Recall
from personae_runtime.memory.store import FactDetail, MemoryRecord, MemorySource
from personae_runtime.names import Name
from tests.unit.ledger.conftest import ONCE

T = TypeVar("T")
USERS = ("ann", "bob")
PERSONA = Name("acme", "nadia")


@dataclass
class Kept:
    """What the model knows of a memory."""

    user: str
    word: str
    sources: set[UUID] = field(default_factory=set)
    expired: bool = False
    restricted: bool = False
    quarantined: bool = False

    @property
    def live(self) -> bool:
        return not (self.expired or self.restricted or self.quarantined)


class Crash(Exception):
    """The process dies here."""


class Memories(RuleBasedStateMachine):
    """See the module."""

    dsn = ""

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
        self.index = EdgeMemoryIndex(self.folder / "index")
        await self.index.open()
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
        for table in ("memories", "operations", "erasures", "consents", "index_cursors", "scopes"):
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

    def some(self, data: st.DataObject, *, episodes: bool = False) -> UUID:
        ids = [one for one, kept in self.kept.items() if not (episodes and kept.sources)]
        return data.draw(st.sampled_from(ids or list(self.kept)))

    def new_word(self) -> str:
        self.words.append(f"word{next(self.numbers)}")
        return self.words[-1]

    # -- writes --------------------------------------------------------------

    def _store(self, user: str, word: str, sources: set[UUID]) -> None:
        now = datetime.now(UTC)
        record = MemoryRecord(
            uuid4(),
            self.scope(user),
            f"{word} it is.",
            "Ann",
            now,
            "" if sources else "t",
            next(self.numbers),
            MemorySource.EXTRACTION if sources else MemorySource.API,
            now,
            fact=FactDetail("user", "says", word) if sources else None,
            source_ids=tuple(sources),
        )
        try:
            self.do(self.memories.create(record, PERSONA.tenant, ONCE))
        except ErasureInProgress:
            assert user in self.held
        else:
            assert user not in self.held
            self.kept[record.memory_id] = Kept(user, word, sources)

    @rule(user=st.sampled_from(USERS))
    def write(self, user: str) -> None:
        self._store(user, self.new_word(), set())

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def write_fact(self, data: st.DataObject) -> None:
        first = self.some(data)
        user = self.kept[first].user
        mine = [one for one, kept in self.kept.items() if kept.user == user]
        others = data.draw(st.sets(st.sampled_from(mine), max_size=1))
        self._store(user, self.new_word(), {first, *others})

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def rectify(self, data: st.DataObject) -> None:
        memory_id = self.some(data, episodes=True)
        kept = self.kept[memory_id]
        if kept.sources or kept.expired:
            return
        kept.word, kept.quarantined = self.new_word(), False
        self._update(memory_id, text=f"{kept.word} it is.")
        self._drop({memory_id}, gone=False)

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), restricted=st.booleans())
    def restrict(self, data: st.DataObject, restricted: bool) -> None:
        memory_id = self.some(data)
        if not self.kept[memory_id].expired:
            self.kept[memory_id].restricted = restricted
            self._update(memory_id, restricted=restricted)

    def _update(self, memory_id: UUID, **changes: Any) -> None:
        scope = self.scope(self.kept[memory_id].user)
        self.do(self.memories.update(scope, memory_id, changes, version="", tenant=PERSONA.tenant, mutation=ONCE))

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def quarantine(self, data: st.DataObject) -> None:
        memory_id = self.some(data)
        self.kept[memory_id].quarantined = True
        self.do(self.memories.quarantine(memory_id, "INJECTION_IN_MEMORY"))

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        """Its time passes; the index learns of it late, or never."""
        memory_id = self.some(data)
        self.kept[memory_id].expired = True
        query = "UPDATE memories SET expires_at = now() - interval '1 second' WHERE memory_id = $1"
        self.do(self.database.execute(query, memory_id))

    @rule(user=st.sampled_from(USERS), granted=st.booleans())
    def change_consent(self, user: str, granted: bool) -> None:
        self.consent[user] = granted
        subject = Name(PERSONA.tenant, PERSONA.persona, user)
        state = "GRANTED" if granted else "WITHDRAWN"
        self.do(self.consents.record(subject, "MEMORY", state, "a test", lambda connection, act: act()))

    # -- ends ----------------------------------------------------------------

    def _drop(self, gone_ids: set[UUID], *, gone: bool = True) -> None:
        """In the model: these memories are gone, or their words, with what rested on them alone."""
        while gone_ids:
            lost = set()
            for memory_id, kept in self.kept.items():
                if kept.sources & gone_ids:
                    kept.sources -= gone_ids
                    if not kept.sources:
                        lost.add(memory_id)
            if gone:
                for memory_id in gone_ids:
                    self.kept.pop(memory_id, None)
            gone, gone_ids = True, lost

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        memory_id = self.some(data)
        self.do(self.memories.forget(self.scope(self.kept[memory_id].user), memory_id))
        self._drop({memory_id})

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), crash=st.sampled_from(["", "erase_rows", "remaining", "finish"]))
    def erase_some(self, data: st.DataObject, crash: str) -> None:
        memory_id = self.some(data)
        user = self.kept[memory_id].user
        self._erase(user, [memory_id], crash)
        self._drop({memory_id})

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

    def _recalled(self, user: str) -> dict[UUID, str]:
        async def recall() -> dict[UUID, str]:
            # As a turn does it.
            if not await self.consents.may_remember(Name(PERSONA.tenant, PERSONA.persona, user)):
                return {}
            found = await self.recall.recall(
                self.scope(user), " ".join(self.words) or "nothing", limit=100, dense_deadline_s=0
            )
            return {item.record.memory_id: item.record.text for item in found.items}

        return self.do(recall())

    def _allowed(self, user: str) -> dict[UUID, str]:
        if not self.consent[user]:
            return {}
        return {
            memory_id: f"{kept.word} it is." for memory_id, kept in self.kept.items() if kept.user == user and kept.live
        }

    @invariant()
    def nothing_is_recalled_that_may_not_be(self) -> None:
        if hasattr(self, "index"):
            for user in USERS:
                assert self._recalled(user).items() <= self._allowed(user).items()

    @rule()
    def all_that_may_be_is_recalled_once_it_is_indexed(self) -> None:
        self.do(self.indexer.catch_up())
        for user in USERS:
            assert self._recalled(user) == self._allowed(user)


def test_nothing_expired_revoked_or_erased_is_ever_recalled(server_dsn: str) -> None:
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
    run_state_machine_as_test(
        Memories,
        settings=settings(
            max_examples=12,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            # Each step commits: making a failure shorter would take minutes.
            phases=(Phase.explicit, Phase.reuse, Phase.generate),
        ),
    )
