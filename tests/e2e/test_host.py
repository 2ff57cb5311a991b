"""The embedded host: what it keeps on disk, what it refuses to start with, and what it takes over."""

from __future__ import annotations

import asyncio
import base64
import stat
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import uuid4

import grpc
import pytest

from personae.v1 import memory_service_pb2, persona_service_pb2
from personae.v1 import session_service_pb2 as pb
from personae_runtime.config import load_settings
from personae_runtime.errors import ConfigError
from personae_runtime.ledger.embedded import EmbeddedPostgres
from personae_serve.embedded import EmbeddedHost, lock_data_dir
from tests.e2e.conftest import StartHost, start_hosted
from tests.e2e.support import Hosted, Pause, ScriptedEngine, failure, kinds, new_user, read_until, rest

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_no_words_lie_on_disk_in_the_clear(hosted: Hosted) -> None:
    api, database = hosted.api, hosted.host.stores.database
    canary = f"canary-{uuid4().hex}"
    persona = await api.persona(card=f"You are Nadia. Your word is {canary}-card.")
    user = new_user(persona)
    await api.remember(user, f"My word is {canary}-memory.")
    session = await api.session(persona, user)
    hosted.engine.will_say(f"I hear you. The word is {canary}-reply. Good.")
    await api.say(session, f"The word is {canary}-input.")
    await hosted.indexed()
    assert canary in str(await api.turns(session))
    await database.execute("CHECKPOINT")
    needle = canary.encode()
    for file in hosted.host.settings.data_dir.rglob("*"):
        if file.is_file() and not file.is_symlink():
            assert needle not in file.read_bytes(), f"{file} holds words in the clear"
    tables = await database.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    for table in tables:
        found = await database.fetchval(
            f"SELECT count(*) FROM {table['tablename']} t WHERE t::text LIKE '%' || $1 || '%'", canary
        )
        assert found == 0, table["tablename"]


async def test_another_master_key_is_refused_and_the_right_one_is_not(hosted: Hosted, tmp_path: Path) -> None:
    dsn = hosted.host.stores.database.dsn
    wrong = base64.b64encode(b"w" * 32).decode()
    async with AsyncExitStack() as stack:
        with pytest.raises(ConfigError, match="not the key this ledger was made with"):
            await start_hosted(stack, tmp_path / "wrong", ledger={"dsn": dsn, "master_key": wrong})
        right = (hosted.host.settings.data_dir / "master.key").read_text()
        again = await start_hosted(stack, tmp_path / "right", ledger={"dsn": dsn, "master_key": right})
        persona = await hosted.api.persona()
        assert await again.api.session(persona)


async def test_memory_turned_off_leaves_no_index_and_turned_on_again_builds_it(
    start_host: StartHost, tmp_path: Path
) -> None:
    first = await start_host("memory")
    persona = await first.api.persona()
    user = new_user(persona)
    await first.api.remember(user, "My green Brompton is called Kermit.")
    await first.indexed()
    ledger = {"dsn": first.host.stores.database.dsn}
    await first.host.stop()
    index = tmp_path / "memory" / "memory-index"
    assert index.is_dir()
    without = await start_host("memory", ledger, memory={"enabled": False})
    assert not index.exists()
    await without.host.stop()
    again = await start_host("memory", ledger)
    await again.indexed()
    found = await again.api.memories.SearchMemories(
        memory_service_pb2.SearchMemoriesRequest(parent=user, query="green Brompton")
    )
    assert [result.memory.text for result in found.results] == ["My green Brompton is called Kermit."]


async def test_a_key_file_that_others_can_read_is_refused(start_host: StartHost, tmp_path: Path) -> None:
    first = await start_host("keyed")
    await first.host.stop()
    key = tmp_path / "keyed" / "master.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="readable by others"):
        await start_host("keyed")
    key.chmod(0o600)
    key.write_text("not base64")
    with pytest.raises(ConfigError, match="does not hold base64 of 32 bytes"):
        await start_host("keyed")


async def test_production_without_keys_does_not_start(tmp_path: Path) -> None:
    key = base64.b64encode(bytes(32)).decode()
    settings = load_settings(
        data_dir=tmp_path, profile="production", ledger={"master_key": key}, memory={"dense": False}
    )
    with pytest.raises(ConfigError, match=r"auth\.api_keys"):
        await EmbeddedHost(settings, engine=ScriptedEngine()).start()


async def test_a_development_host_makes_a_key_once(start_host: StartHost) -> None:
    first = await start_host("made", auth={"api_keys": ()})
    key = first.host.development_key
    assert first.host.development_key_is_new
    assert (await first.caller(key).persona()).startswith("tenants/demo/")
    await first.host.stop()
    second = await start_host("made", auth={"api_keys": ()})
    assert (second.host.development_key, second.host.development_key_is_new) == (key, False)


async def test_two_hosts_cannot_share_a_data_directory(hosted: Hosted) -> None:
    directory = hosted.host.settings.data_dir
    with pytest.raises(ConfigError, match="in use by another host"):
        lock_data_dir(directory)
    other = EmbeddedHost(hosted.host.settings, engine=ScriptedEngine())
    with pytest.raises(ConfigError, match="in use by another host"):
        await other.start()
    # A host that did not start can be stopped all the same.
    await other.stop()
    assert await hosted.api.persona()


async def test_a_port_that_is_taken_is_told_and_everything_is_let_go(start_host: StartHost, hosted: Hosted) -> None:
    with pytest.raises(ConfigError, match=r"gateway\.port"):
        await start_host("second", gateway={"port": hosted.port})
    started = await start_host("second")
    assert await started.api.persona()


async def test_a_policy_that_does_not_load_stops_the_start_before_anything_runs(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.yaml"
    bundle.write_text("rules: nonsense")
    settings = load_settings(data_dir=tmp_path / "data", policy={"bundle": bundle}, memory={"dense": False})
    with pytest.raises(ConfigError):
        await EmbeddedHost(settings, engine=ScriptedEngine()).start()
    assert not (tmp_path / "data" / "postgres").exists()


async def test_an_engine_that_does_not_start_is_told_as_its_own_error(tmp_path: Path) -> None:
    class Unready(ScriptedEngine):
        async def start(self) -> None:
            raise ConfigError("no such model")

    settings = load_settings(data_dir=tmp_path, memory={"dense": False})
    with pytest.raises(ConfigError, match="no such model"):
        await EmbeddedHost(settings, engine=Unready()).start()
    assert EmbeddedPostgres(tmp_path / "postgres").pid is None


async def test_everything_survives_a_restart_and_a_postgresql_that_was_left_behind(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        first = await start_hosted(stack, tmp_path)
        persona = await first.api.persona()
        user = new_user(persona)
        session = await first.api.session(persona, user)
        await first.api.remember(user, "My bicycle is a green Brompton called Kermit.")
        first.engine.will_say("It was said before the restart.")
        before = await first.api.say(session, "Hello there.", "t1")
        await first.host.stop()
        assert EmbeddedPostgres(tmp_path / "postgres").pid is None

        # A PostgreSQL that runs without its host, as a killed host leaves it.
        orphan = EmbeddedPostgres(tmp_path / "postgres")
        await orphan.ensure_running()
        pid = orphan.pid
        assert pid is not None
        second = await start_hosted(stack, tmp_path)
        assert second.host.stores.postgres is not None
        assert second.host.stores.postgres.pid == pid
        assert await second.api.say(session, "Hello there.", "t1") == before
        await second.indexed()
        await second.api.say(session, "What is my green Brompton called?")
        assert "It was said before the restart." in second.engine.last_prompt
        assert "Kermit" in second.engine.last_prompt
        await second.host.stop()
        assert EmbeddedPostgres(tmp_path / "postgres").pid is None


async def test_an_external_postgresql_is_used_and_left_running(start_host: StartHost, hosted: Hosted) -> None:
    started = await start_host()
    assert started.host.stores.postgres is None
    assert await started.api.persona()
    assert not (started.host.settings.data_dir / "postgres").exists()
    await started.host.stop()
    assert await hosted.api.persona()


async def test_migrations_can_be_run_again_and_by_many_at_once(hosted: Hosted) -> None:
    persona = await hosted.api.persona()
    await asyncio.gather(*(hosted.host.stores.database.migrate() for _ in range(3)))
    found = await hosted.api.personas.GetPersona(persona_service_pb2.GetPersonaRequest(name=persona))
    assert found.name == persona


async def test_a_turn_that_a_dead_host_left_is_closed_at_the_next_start(start_host: StartHost, tmp_path: Path) -> None:
    """The same host id, as after a kill: the new process fences the old one off."""
    # A lease that is not renewed while the test runs: the old process must not hear of it too early.
    hosted = await start_host(ledger={"lease_s": 600})
    api = hosted.api
    persona = await api.persona()
    session = await api.session(persona)
    hosted.engine.will_say("It was delivered. And ", Pause(), "this was not.")
    call = api.converse(session, "Hello there.", "t1")
    seen = await read_until(call, "text_delta")
    directory = hosted.host.settings.data_dir
    (tmp_path / "second").mkdir()
    for name in ("host-id", "master.key"):
        copy = tmp_path / "second" / name
        copy.touch(0o600)
        copy.write_bytes((directory / name).read_bytes())
    async with AsyncExitStack() as stack:
        second = await start_hosted(stack, tmp_path / "second", ledger={"dsn": hosted.host.stores.database.dsn})
        [turn] = await second.api.turns(session)
        assert (turn.state, turn.reply_text) == (pb.TURN_STATE_INTERRUPTED, "It was delivered.")
        replayed = await second.api.attached(session, turn_id="t1")
        assert replayed[: len(seen)] == seen
        assert kinds(replayed)[-1] == "turn_interrupted"
        assert replayed[-1].turn_interrupted.reason == 1
        assert replayed[-1].event_id > seen[-1].event_id + 1000

        # The first process, fenced off, changes nothing; it takes up a new name and goes on.
        [lost] = hosted.host.gateway.runner.hubs.running()
        lost.stop("CANCELLED")
        await lost.ended.wait()
        broken = await failure(rest(call))
        assert (broken.code, broken.reason) == (grpc.StatusCode.UNAVAILABLE, "LEASE_LOST")
        assert broken.retry is not None
        assert await second.api.attached(session, turn_id="t1") == replayed
        second.engine.will_say("And on it goes.")
        assert kinds(await second.api.say(session, "Hello again."))[-1] == "turn_completed"
        refused = await failure(api.converse(await api.session(persona), "Hello there."))
        assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "LEASE_LOST")
    await hosted.host.gateway.runner._sessions.register()
    assert kinds(await api.say(session, "And again."))[-1] == "turn_completed"
