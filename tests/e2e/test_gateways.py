"""Several gateways on one ledger: a call may land on any of them, and any of them may leave."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from personae.v1 import persona_service_pb2, policy_service_pb2
from personae.v1 import session_service_pb2 as pb
from personae.v1.persona_service_pb2 import PERSONA_TYPE_ASSISTANT
from personae_client import EventStream, PersonaeClient, Tls, UnavailableError
from personae_serve.gateway.peers import FORWARDED
from tests.conftest import ROOT
from tests.credentials import make_certificate
from tests.e2e.conftest import KEY, KEYS, start_hosted
from tests.e2e.support import (
    Api,
    Hosted,
    Pause,
    cut_short,
    failure,
    kinds,
    new_turn_id,
    new_user,
    read_until,
    rest,
    text_of,
    until,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

MASTER_KEY = base64.b64encode(b"m" * 32).decode()
LEASE_S = 6


class Gateways:
    """Hosts on one ledger, each with its own engine and its own view of the others."""

    def __init__(self, stack: AsyncExitStack, folder: Path, dsn: str) -> None:
        self._stack = stack
        self._folder = folder
        self.dsn = dsn
        self.hosts: list[Hosted] = []
        self._stopped: list[Hosted] = []

    async def add(self, *, port: int = 0, peer_port: int | None = 0, **changed: Any) -> Hosted:
        """One more; every host knows of every other when this returns."""
        gateway = {"port": port, "peer_port": peer_port, "reuse_port": True, **changed.pop("gateway", {})}
        hosted = await start_hosted(
            self._stack,
            self._folder / f"gateway-{len(self.hosts)}",
            ledger={"dsn": self.dsn, "master_key": MASTER_KEY, "lease_s": LEASE_S},
            memory={"enabled": False},
            gateway=gateway,
            **changed,
        )
        self.hosts.append(hosted)
        for host in self.hosts:
            if host not in self._stopped:
                await host.host.gateway.runner._sessions.find_peers()
        return hosted

    async def stop(self, hosted: Hosted) -> None:
        """Drain one."""
        self._stopped.append(hosted)
        await hosted.host.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def gateways(tmp_path: Path, new_dsn: Callable[[], Awaitable[str]]) -> AsyncIterator[Gateways]:
    async with AsyncExitStack() as stack:
        yield Gateways(stack, tmp_path, await new_dsn())


@pytest_asyncio.fixture(loop_scope="session")
async def two(gateways: Gateways) -> tuple[Hosted, Hosted]:
    return await gateways.add(), await gateways.add()


def views(hosted: Hosted) -> int:
    """Streams that watch something there."""
    return sum(len(hub.views) for _, hub in hosted.host.gateway.runner.hubs.all())


async def _rest_of(stream: EventStream) -> list[Any]:
    """What a stream of the SDK still has."""
    return [event async for event in stream]


async def begin(hosted: Hosted, session: str, turn_id: str) -> tuple[Any, list[Any], Pause]:
    """Start a turn that says something and waits: its call, what came, and where it waits."""
    pause = Pause()
    hosted.engine.will_say("The first unit. And ", pause, "the rest of it.")
    call = hosted.api.converse(session, "Hello there.", turn_id)
    return call, await read_until(call, "text_delta"), pause


# -- a call that lands elsewhere ----------------------------------------------


async def test_attach_through_another_gateway_shows_every_event_once(two: tuple[Hosted, Hosted]) -> None:
    owner, other = two
    session, turn_id = await owner.api.session(await owner.api.persona()), new_turn_id()
    call, seen, pause = await begin(owner, session, turn_id)
    by_turn = other.api.attach(session, turn_id=turn_id)
    whole = other.api.attach(session)
    later = other.api.attach(session, after=seen[0].event_id, turn_id=turn_id)
    assert await read_until(by_turn, "text_delta") == seen
    assert await read_until(whole, "text_delta") == seen
    assert await read_until(later, "text_delta") == seen[1:]
    pause.go.set()
    seen += await rest(call)
    assert kinds(seen)[-1] == "turn_completed"
    assert seen[2:] == await rest(by_turn) == await rest(later)
    assert await read_until(whole, "turn_completed") == seen[2:]
    # Forwarded streams are whole views: the turn was watched by all four.
    await until(lambda: views(owner) == 1)
    whole.cancel()
    await until(lambda: views(owner) == 0)
    assert await other.api.attached(session, turn_id=turn_id) == seen


async def test_the_same_turn_sent_to_another_gateway_joins_it_there(two: tuple[Hosted, Hosted]) -> None:
    owner, other = two
    session, turn_id = await owner.api.session(await owner.api.persona()), new_turn_id()
    call, seen, pause = await begin(owner, session, turn_id)
    joined = other.api.converse(session, "Hello there.", turn_id)
    assert await read_until(joined, "text_delta") == seen
    pause.go.set()
    assert await rest(joined) == await rest(call)
    assert not other.engine.requests
    reused = await failure(other.api.converse(session, "Something else.", turn_id))
    assert (reused.code, reused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "TURN_ID_REUSED")


async def test_another_turn_of_a_busy_session_is_refused_everywhere(two: tuple[Hosted, Hosted]) -> None:
    owner, other = two
    session, turn_id = await owner.api.session(await owner.api.persona()), new_turn_id()
    call, _, pause = await begin(owner, session, turn_id)
    refused = await failure(other.api.converse(session, "And another thing."))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "TURN_IN_PROGRESS")
    assert refused.metadata["turn_id"] == turn_id
    pause.go.set()
    await rest(call)
    assert kinds(await other.api.say(session, "And another thing."))[-1] == "turn_completed"


async def test_cancel_through_another_gateway_stops_the_turn(two: tuple[Hosted, Hosted]) -> None:
    owner, other = two
    session, turn_id = await owner.api.session(await owner.api.persona()), new_turn_id()
    call, _, _ = await begin(owner, session, turn_id)
    turn = await other.api.cancel(session, turn_id)
    assert (turn.state, turn.reply_text) == (pb.TURN_STATE_INTERRUPTED, "The first unit.")
    assert kinds(await rest(call))[-1] == "turn_interrupted"
    await owner.engine.idle()
    assert await other.api.cancel(session, turn_id) == turn
    missing = await failure(other.api.cancel(session, "none"))
    assert missing.code is grpc.StatusCode.NOT_FOUND


async def test_close_through_another_gateway_ends_turn_and_streams(two: tuple[Hosted, Hosted]) -> None:
    owner, other = two
    session, turn_id = await owner.api.session(await owner.api.persona()), new_turn_id()
    call, _, _ = await begin(owner, session, turn_id)
    watching = other.api.attach(session)
    await read_until(watching, "text_delta")
    closed = await other.api.sessions.CloseSession(pb.CloseSessionRequest(name=session))
    assert closed.state == pb.SESSION_STATE_CLOSED
    assert kinds(await rest(call))[-1] == "turn_interrupted"
    assert kinds(await rest(watching))[-1] == "turn_interrupted"
    assert (await owner.api.turns(session))[0].state == pb.TURN_STATE_INTERRUPTED


async def test_a_forwarded_call_is_not_forwarded_again(gateways: Gateways) -> None:
    owner, other = await gateways.add(), await gateways.add()
    session, turn_id = await owner.api.session(await owner.api.persona()), new_turn_id()
    call, _, pause = await begin(owner, session, turn_id)
    forwarded = other.caller(KEY, (FORWARDED, "1"))
    for refused in (
        await failure(forwarded.attach(session, turn_id=turn_id)),
        await failure(forwarded.attach(session)),
        await failure(forwarded.converse(session, "Hello there.", turn_id)),
        await failure(forwarded.cancel(session, turn_id)),
    ):
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "TURN_OWNED_ELSEWHERE")
        assert refused.retry is not None
    assert not other.host.gateway.peers.endpoints
    pause.go.set()
    assert kinds(await rest(call))[-1] == "turn_completed"


async def test_a_turn_of_a_gateway_without_a_peer_listener_is_told_to_be_elsewhere(gateways: Gateways) -> None:
    owner, other = await gateways.add(peer_port=None), await gateways.add()
    session, turn_id = await owner.api.session(await owner.api.persona()), new_turn_id()
    call, _, pause = await begin(owner, session, turn_id)
    refused = await failure(other.api.attach(session, turn_id=turn_id))
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "TURN_OWNED_ELSEWHERE")
    pause.go.set()
    await rest(call)


async def test_the_owner_checks_the_caller_again(two: tuple[Hosted, Hosted]) -> None:
    owner, _ = two
    session, turn_id = await owner.api.session(await owner.api.persona()), new_turn_id()
    call, _, pause = await begin(owner, session, turn_id)
    async with grpc.aio.insecure_channel(owner.host.gateway.server.endpoint) as channel:
        for key, code in (
            (None, grpc.StatusCode.UNAUTHENTICATED),
            ("unknown", grpc.StatusCode.UNAUTHENTICATED),
            ("key-that-may-read-personas", grpc.StatusCode.PERMISSION_DENIED),
            ("key-of-another-tenant", grpc.StatusCode.PERMISSION_DENIED),
            ("key-of-ann", grpc.StatusCode.PERMISSION_DENIED),
        ):
            caller = Api(channel, key, (FORWARDED, "1"))
            assert (await failure(caller.attach(session, turn_id=turn_id))).code is code
            assert (await failure(caller.cancel(session, turn_id))).code is code
    pause.go.set()
    assert kinds(await rest(call))[-1] == "turn_completed"


async def test_a_kill_switch_takes_effect_on_every_gateway(two: tuple[Hosted, Hosted]) -> None:
    owner, other = two
    persona = await owner.api.persona()
    session, turn_id = await owner.api.session(persona), new_turn_id()
    call, _, _ = await begin(owner, session, turn_id)
    attached = other.api.attach(session, turn_id=turn_id)
    await read_until(attached, "text_delta")
    thrown = await other.api.policy.CreateKillSwitch(
        policy_service_pb2.CreateKillSwitchRequest(
            parent="tenants/demo", kill_switch=policy_service_pb2.KillSwitch(persona=persona, reason="a test")
        )
    )
    for stream in (call, attached):
        seen = await rest(stream)
        assert [event.policy_event.reason_code for event in seen if event.HasField("policy_event")] == [
            "PERSONA_KILLED"
        ]
        assert kinds(seen)[-1] == "turn_interrupted"
    for gateway in two:
        assert (await failure(gateway.api.converse(session, "And now?"))).reason == "PERSONA_KILLED"
    await owner.api.policy.LiftKillSwitch(
        policy_service_pb2.LiftKillSwitchRequest(name=thrown.name, reason="it is over")
    )
    for gateway in two:
        assert kinds(await gateway.api.say(session, "And now?"))[-1] == "turn_completed"


async def test_gateways_count_turns_together(gateways: Gateways) -> None:
    limits = {"turns_per_minute_by_device": 3}
    here, there = await gateways.add(abuse=limits), await gateways.add(abuse=limits)
    persona = await here.api.persona()

    def turn(hosted: Hosted, session: str) -> Any:
        return hosted.api.sessions.Converse(
            pb.ConverseRequest(
                session=session, turn_id=new_turn_id(), text="Hello there.", client=pb.ClientOrigin(device="a-phone")
            )
        )

    for hosted in (here, there, here):
        assert kinds(await rest(turn(hosted, await hosted.api.session(persona))))[-1] == "turn_completed"

    def counted(hosted: Hosted) -> int:
        held = hosted.host.gateway.runner._guard._counters._counts
        return sum(count for key, buckets in held.items() if key.startswith("device/") for _, count in buckets)

    for hosted in (here, there):
        await until(lambda hosted=hosted: counted(hosted) == 3)  # type: ignore[misc]
        assert (await failure(turn(hosted, await hosted.api.session(persona)))).reason == "DEVICE_LIMIT"


async def test_an_error_of_the_owner_comes_back_as_it_is(gateways: Gateways) -> None:
    """A caller that only the first gateway knows."""
    owner, other = await gateways.add(auth={"api_keys": KEYS[1:]}), await gateways.add()
    third = await gateways.add()
    ann = owner.caller("key-of-ann")
    persona = await other.api.persona()
    session, turn_id = await ann.session(persona, f"{persona}/users/ann"), new_turn_id()
    pause = Pause()
    owner.engine.will_say("The first unit. And ", pause, "the rest of it.")
    call = ann.converse(session, "Hello there.", turn_id)
    await read_until(call, "text_delta")
    for refused in (
        await failure(third.api.attach(session, turn_id=turn_id)),
        await failure(third.api.cancel(session, turn_id)),
    ):
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID")
    assert kinds(await read_until(third.caller("key-of-ann").attach(session, turn_id=turn_id), "text_delta"))
    pause.go.set()
    assert kinds(await rest(call))[-1] == "turn_completed"


async def test_a_deadline_and_a_cancellation_reach_the_owner(two: tuple[Hosted, Hosted]) -> None:
    owner, other = two
    session, turn_id = await owner.api.session(await owner.api.persona()), new_turn_id()
    call, _, pause = await begin(owner, session, turn_id)
    request = pb.AttachRequest(session=session, turn_id=turn_id)
    late = other.api.sessions.Attach(request, timeout=2)
    left = other.api.attach(session, turn_id=turn_id)
    await read_until(left, "text_delta")
    await read_until(late, "text_delta")
    await until(lambda: views(owner) == 3)
    left.cancel()
    await until(lambda: views(owner) == 2)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await rest(late)
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: views(owner) == 1)
    pause.go.set()
    assert kinds(await rest(call))[-1] == "turn_completed"


# -- TLS between gateways -----------------------------------------------------


def secured(pair: tuple[Path, Path], **changed: Any) -> dict[str, Any]:
    return {"tls": {"certificate": pair[0], "private_key": pair[1], **changed}}


@pytest.mark.parametrize("way", ["one certificate", "one certificate, mTLS", "one authority", "strangers"])
async def test_gateways_with_tls_know_each_other(gateways: Gateways, tmp_path: Path, way: str) -> None:
    folder = tmp_path / "tls"
    authority = make_certificate("authority", authority=True)
    ca, _ = authority.write(folder, "ca")
    first = make_certificate("first", by=authority).write(folder, "first")
    second = make_certificate("second", by=authority).write(folder, "second")
    match way:
        case "one certificate":
            settings = (secured(first), secured(first))
        case "one certificate, mTLS":
            settings = (secured(first, client_ca=ca), secured(first, client_ca=ca))
        case "one authority":
            settings = (secured(first, peer_ca=ca), secured(second, peer_ca=ca))
        case _:
            settings = (secured(first), secured(second))
    owner, other = [await gateways.add(gateway=gateway) for gateway in settings]
    tls = Tls(ca_file=ca, certificate_file=first[0], private_key_file=first[1])
    async with (
        PersonaeClient(f"localhost:{owner.port}", api_key=KEY, tls=tls) as there,
        PersonaeClient(f"localhost:{other.port}", api_key=KEY, tls=tls, max_attempts=1) as here,
    ):
        persona = await there.personas.create(
            "tenants/demo", "nadia", display_name="Nadia", type=PERSONA_TYPE_ASSISTANT
        )
        await there.personas.publish_revision(persona.name, persona_service_pb2.PersonaDefinition(card="Nadia."))
        session = await there.sessions.create(persona.name, "ann")
        pause = Pause()
        owner.engine.will_say("The first unit. And ", pause, "the rest of it.")
        turn = there.sessions.converse(session.name, "Hello there.")
        await anext(turn)
        if way == "strangers":
            with pytest.raises(UnavailableError) as refused:
                await here.sessions.cancel_turn(f"{session.name}/turns/{turn.turn_id}")
            assert refused.value.reason == "TURN_OWNER_UNREACHABLE"
            pause.go.set()
        else:
            cancelled = await here.sessions.cancel_turn(f"{session.name}/turns/{turn.turn_id}")
            assert cancelled.state == pb.TURN_STATE_INTERRUPTED
        assert (await turn.collect()).interrupted == (way != "strangers")


# -- sessions that go on elsewhere --------------------------------------------


async def test_an_idle_view_notices_a_turn_elsewhere_and_is_continued_there(two: tuple[Hosted, Hosted]) -> None:
    here, there = two
    session = await here.api.session(await here.api.persona())
    await here.api.say(session, "First of all.")
    watching = here.api.attach(session)
    before = await read_until(watching, "turn_completed")
    call, seen, pause = await begin(there, session, new_turn_id())
    assert await read_until(watching, "text_delta") == seen
    pause.go.set()
    seen += await rest(call)
    assert await read_until(watching, "turn_completed") == seen[2:]
    watching.cancel()
    await here.api.sessions.CloseSession(pb.CloseSessionRequest(name=session))
    assert await here.api.attached(session) == before + seen


async def test_a_view_is_told_to_attach_again_when_a_turn_ran_elsewhere_meanwhile(two: tuple[Hosted, Hosted]) -> None:
    here, there = two
    session = await here.api.session(await here.api.persona())
    async with PersonaeClient(f"127.0.0.1:{here.port}", api_key=KEY) as client:
        stream = client.sessions.attach(session)
        reading = asyncio.ensure_future(anext(stream))
        await until(lambda: views(here) == 1)
        said = [*await there.api.say(session, "One."), *await there.api.say(session, "Two.")]
        seen = [await reading]
        while len(seen) < len(said):
            seen.append(await anext(stream))
        assert seen == said
        # And a session that is closed elsewhere is over here.
        await there.api.sessions.CloseSession(pb.CloseSessionRequest(name=session))
        assert [event async for event in stream] == []


async def test_turns_that_alternate_between_gateways_see_the_whole_history(two: tuple[Hosted, Hosted]) -> None:
    session = await two[0].api.session(await two[0].api.persona())
    for number in range(6):
        hosted = two[number % 2]
        hosted.engine.will_say(f"Reply number {number}.")
        await hosted.api.say(session, f"Question number {number}.")
        prompt = hosted.engine.last_prompt
        for past in range(number):
            assert prompt.index(f"Question number {past}.") < prompt.index(f"Reply number {past}.")


async def test_a_new_name_of_a_persona_shows_in_the_next_turn_on_every_gateway(two: tuple[Hosted, Hosted]) -> None:
    persona = await two[0].api.persona()
    session = await two[0].api.session(persona)
    for hosted in two:
        await hosted.api.say(session, "Hello there.")
        assert "Nadia" in hosted.engine.last_prompt
    renamed = persona_service_pb2.Persona(name=persona, display_name="Amalia")
    await two[0].api.personas.UpdatePersona(
        persona_service_pb2.UpdatePersonaRequest(persona=renamed, update_mask={"paths": ["display_name"]})
    )
    for hosted in two:
        await hosted.api.say(session, "And now?")
        assert "Amalia" in hosted.engine.last_prompt


# -- leaving ------------------------------------------------------------------


async def test_a_gateway_drains_in_mid_turn_and_its_clients_follow_the_turn_through_another(
    gateways: Gateways,
) -> None:
    owner = await gateways.add()
    session = await owner.api.session(await owner.api.persona())
    units = [f"Sentence number {number} of this reply. " for number in range(8)]
    pauses = [Pause() for _ in units]
    owner.engine.will_say(*(part for pair in zip(units, pauses, strict=True) for part in pair), "The end.")
    async with PersonaeClient(f"127.0.0.1:{owner.port}", api_key=KEY) as client:
        turn = client.sessions.converse(session, "Tell me much.")
        watch = client.sessions.attach(session)
        seen = [await anext(turn), await anext(turn)]
        # The same port, from now on.
        other = await gateways.add(port=owner.port)
        for pause in pauses[:3]:
            pause.go.set()
        await pauses[3].wait()
        draining = asyncio.ensure_future(owner.host.stop())
        reading = asyncio.ensure_future(_rest_of(turn))
        await until(lambda: bool(other.host.gateway.peers.endpoints))
        for pause in pauses[3:]:
            pause.go.set()
        seen += await reading
        await draining
        assert turn.resumes >= 1
        ids = [event.event_id for event in seen]
        assert ids == sorted(set(ids))
        assert text_of(seen) == "".join(units) + "The end."
        assert [kind for kind in kinds(seen) if kind.startswith("turn_")] == ["turn_started", "turn_completed"]
        assert await other.api.attached(session, turn_id=turn.turn_id) == seen
        assert [await anext(watch) for _ in seen] == seen
        # The session goes on, over the same client.
        result = await client.sessions.converse(session, "And now?").collect()
        assert not result.interrupted
        assert len(owner.engine.requests) == len(other.engine.requests) == 1
        assert (await anext(watch)).turn_id == result.turn_id
        await watch.aclose()


async def test_a_stream_through_a_gateway_that_drains_is_continued_through_a_third(gateways: Gateways) -> None:
    owner, relaying = await gateways.add(), await gateways.add()
    third = await gateways.add(port=relaying.port)
    session, turn_id = await owner.api.session(await owner.api.persona()), new_turn_id()
    call, seen, pause = await begin(owner, session, turn_id)
    async with AsyncExitStack() as stack:
        # Connections to the shared port land where the kernel likes: until one is at the gateway that will drain.
        while True:
            client = PersonaeClient(f"127.0.0.1:{relaying.port}", api_key=KEY)
            stream = client.sessions.attach(session, turn_id=turn_id)
            assert [await anext(stream) for _ in seen] == seen
            await until(lambda: views(owner) == 2)
            if relaying.host.gateway.peers.endpoints:
                await stack.enter_async_context(client)
                break
            await client.close()
            await until(lambda: views(owner) == 1)
        reading = asyncio.ensure_future(_rest_of(stream))
        await relaying.host.stop()
        await until(lambda: third.host.gateway.peers.endpoints == {owner.host.gateway.server.endpoint})
        pause.go.set()
        assert await reading == await rest(call)
        # Once, or more often if it was quicker than the news that its connection is to be left.
        assert stream.resumes >= 1


async def test_no_call_of_the_sdk_fails_while_gateways_drain_and_come(gateways: Gateways) -> None:
    first = await gateways.add()
    session = await first.api.session(await first.api.persona())
    done = False
    calls = 0

    async def call(client: PersonaeClient) -> None:
        nonlocal calls
        while not done:
            assert (await client.sessions.get(session)).name == session
            calls += 1

    async def called(times: int) -> None:
        enough = calls + times
        await until(lambda: calls >= enough)

    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(PersonaeClient(f"127.0.0.1:{first.port}", api_key=KEY)) for _ in range(6)
        ]
        async with asyncio.TaskGroup() as callers:
            for client in clients:
                callers.create_task(call(client))
            for leaving in range(3):
                await gateways.add(port=first.port)
                await called(20)
                await gateways.stop(gateways.hosts[leaving])
            await called(20)
            done = True


async def test_a_draining_gateway_refuses_turns_and_without_others_keeps_its_streams(gateways: Gateways) -> None:
    alone = await gateways.add()
    session, turn_id = await alone.api.session(await alone.api.persona()), new_turn_id()
    free = await alone.api.session(await alone.api.persona())
    call, _, pause = await begin(alone, session, turn_id)
    draining = asyncio.ensure_future(alone.host.stop())
    await read_until(call, "go_away")
    refused = await failure(alone.api.converse(free, "Hello there."))
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert refused.retry is not None
    pause.go.set()
    assert kinds(await rest(call))[-1] == "turn_completed"
    await draining


async def test_a_drain_interrupts_what_outlasts_the_grace_and_it_is_seen_through_another(gateways: Gateways) -> None:
    owner = await gateways.add(gateway={"drain_grace_s": 0.5})
    session, turn_id = await owner.api.session(await owner.api.persona()), new_turn_id()
    other = await gateways.add()
    call, seen, _ = await begin(owner, session, turn_id)
    watching = other.api.attach(session, turn_id=turn_id)
    assert await read_until(watching, "text_delta") == seen
    await owner.host.stop()
    assert kinds(await rest(call)) == ["go_away"]
    assert kinds(await rest(watching))[-1] == "turn_interrupted"
    [turn] = await other.api.turns(session)
    assert (turn.state, turn.reply_text) == (pb.TURN_STATE_INTERRUPTED, "The first unit.")


async def test_a_killed_owner_is_out_of_reach_until_its_turn_is_closed_once(gateways: Gateways, tmp_path: Path) -> None:
    other = await gateways.add()
    endings = {
        "DATA_DIR": str(tmp_path / "killed"),
        "LEDGER__DSN": gateways.dsn,
        "LEDGER__MASTER_KEY": MASTER_KEY,
        "LEDGER__LEASE_S": str(LEASE_S),
        "MEMORY__ENABLED": "false",
        "GATEWAY__PORT": "0",
        "GATEWAY__PEER_PORT": "0",
        "AUTH__API_KEYS": json.dumps([key.model_dump() for key in KEYS]),
        "ENGINE__KIND": "synthetic",
        "ENGINE__SYNTHETIC_TOKENS": "4000",
        "ENGINE__SYNTHETIC_ITL_MS": "50",
        "ENGINE__MAX_OUTPUT_TOKENS": "4000",
        "ENGINE__CONTEXT_TOKENS": "8192",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from personae_serve.cli import main; main()",
        "up",
        cwd=ROOT,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("PERSONAE_")},
            **{f"PERSONAE_{name}": value for name, value in endings.items()},
            "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        },
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        port = 0
        async with asyncio.timeout(60):
            while not port:
                line = await process.stderr.readline()
                assert line, "the gateway did not start"
                port = json.loads(line).get("port", 0) if line.startswith(b"{") else 0
        session, turn_id = await other.api.session(await other.api.persona()), new_turn_id()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = Api(channel, KEY).converse(session, "Hello there.", turn_id)
            await read_until(call, "text_delta")
        async with PersonaeClient(f"127.0.0.1:{other.port}", api_key=KEY) as client:
            stream = client.sessions.attach(session, turn_id=turn_id)
            events = [await anext(stream) for _ in range(3)]
            process.kill()
            await process.wait()
            joined = client.with_options(max_attempts=1).sessions.converse(session, "Hello there.", turn_id=turn_id)
            async with asyncio.timeout(60):
                rest_of, result = await asyncio.gather(_rest_of(stream), joined.collect())
            events += rest_of
        assert kinds(events)[-1] == "turn_interrupted"
        assert kinds(events).count("turn_interrupted") == 1
        assert [event.event_id for event in events] == sorted({event.event_id for event in events})
        assert result.interrupted
        assert result.text == text_of(events)
        assert events == await other.api.attached(session, turn_id=turn_id)
        assert not other.host.gateway.peers.endpoints
        assert not other.engine.requests
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_new_user_of_a_busy_pair_is_served_by_either(two: tuple[Hosted, Hosted]) -> None:
    """What is no turn's needs no forwarding."""
    persona = await two[0].api.persona()
    user = new_user(persona)
    session = await two[0].api.session(persona, user)
    call, _, pause = await begin(two[0], session, new_turn_id())
    assert (await two[1].api.turns(session))[0].state == pb.TURN_STATE_RUNNING
    assert await two[1].api.session(persona, user)
    assert not two[1].host.gateway.peers.endpoints
    pause.go.set()
    await rest(call)


# -- erasure ------------------------------------------------------------------


async def test_an_erasure_through_one_gateway_empties_the_memory_of_the_other(two: tuple[Hosted, Hosted]) -> None:
    here, there = two
    persona = await here.api.persona()
    user = new_user(persona)
    session, idle = await there.api.session(persona, user), await there.api.session(persona, user)
    await there.api.say(session, "My bicycle is called Kermit.", "t1")
    call, _, pause = await begin(there, session, "t2")
    watching = there.api.attach(idle)
    await until(lambda: views(there) == 2)
    vault, runner = there.host.stores.vault, there.host.gateway.runner
    assert vault.held(there.scope(user)) is not None
    assert [key for key in runner._histories if key[0] == there.scope(user)]

    proof = await here.api.erase(user)

    assert proof.remaining["caches"] == 0
    assert vault.held(there.scope(user)) is None
    assert not [key for key in runner._histories if key[0] == there.scope(user)]
    assert await cut_short(call)
    assert (await failure(rest(watching))).code is grpc.StatusCode.UNAVAILABLE
    assert (await failure(there.api.attach(idle))).code is grpc.StatusCode.NOT_FOUND
    assert not pause.go.is_set()
    # The person comes back, through the gateway that kept the old key.
    again = await there.api.session(persona, user)
    await there.api.say(again, "Hello there.")
    assert "Kermit" not in there.engine.last_prompt
    assert [turn.user_text for turn in await here.api.turns(again)] == ["Hello there."]
