"""TLS, mTLS and tokens, over real connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import pytest_asyncio

from personae_client import PersonaeClient, Tls, UnauthenticatedError, UnavailableError
from personae_runtime.config import load_settings
from personae_runtime.errors import ConfigError
from personae_serve.embedded import EmbeddedHost
from personae_serve.gateway import auth, tls
from tests.credentials import Certificate, Issuer, make_certificate
from tests.e2e.conftest import KEY, StartHost
from tests.e2e.support import Api, Hosted, Pause, failure, kinds, new_user, rest, text_of

pytestmark = pytest.mark.asyncio(loop_scope="session")


@dataclass
class Files:
    """An authority, a server's pair and a client's, in a folder."""

    folder: Path
    authority: Certificate

    @property
    def ca(self) -> Path:
        return self.folder / "ca.crt"

    def pair(self, name: str) -> tuple[Path, Path]:
        return make_certificate(name, by=self.authority).write(self.folder, name)

    def tls(self, **changed: Any) -> dict[str, Any]:
        """`gateway.tls` of a host."""
        certificate, key = self.pair("server")
        return {"certificate": certificate, "private_key": key, **changed}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    authority = make_certificate("authority", authority=True)
    authority.write(tmp_path / "tls", "ca")
    return Files(tmp_path / "tls", authority)


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


@asynccontextmanager
async def calling(hosted: Hosted, files: Files, **options: Any) -> AsyncIterator[PersonaeClient]:
    options = {"api_key": KEY, "tls": Tls(ca_file=files.ca), "max_attempts": 1, **options}
    async with PersonaeClient(f"localhost:{hosted.port}", **options) as client:
        yield client


async def personas(client: PersonaeClient) -> list[Any]:
    return [persona async for persona in client.personas.list("tenants/demo")]


# -- TLS ----------------------------------------------------------------------


async def test_a_host_serves_other_machines_by_tls_only(start_host: StartHost, files: Files) -> None:
    hosted = await start_host(gateway={"host": "0.0.0.0", "tls": files.tls()})
    async with calling(hosted, files) as client:
        assert await personas(client) == []
    another = make_certificate("stranger", authority=True).write(files.folder, "stranger")[0]
    for options in ({"tls": Tls(ca_file=another)}, {"tls": None}):
        async with calling(hosted, files, **options) as client:
            with pytest.raises(UnavailableError):
                await personas(client)


async def test_a_host_with_unusable_files_does_not_start_and_leaves_nothing_behind(
    tmp_path: Path, files: Files
) -> None:
    given = files.tls(private_key=files.pair("other")[1])
    host = EmbeddedHost(load_settings(data_dir=tmp_path / "data", gateway={"port": 0, "tls": given}))
    with pytest.raises(ConfigError, match="is not the key of the first certificate"):
        await host.start()
    assert not (tmp_path / "data" / "postgres").exists()


async def test_with_mtls_a_client_must_show_a_certificate_of_the_authority(start_host: StartHost, files: Files) -> None:
    hosted = await start_host(gateway={"tls": files.tls(client_ca=files.ca)})
    certificate, key = files.pair("client")
    async with calling(hosted, files, tls=Tls(files.ca, certificate, key)) as client:
        assert await personas(client) == []
    # The certificate protects the connection and names nobody: a key is still needed.
    async with calling(hosted, files, tls=Tls(files.ca, certificate, key), api_key=None) as client:
        with pytest.raises(UnauthenticatedError) as missing:
            await personas(client)
        assert missing.value.reason == "CREDENTIALS_MISSING"
    foreign, foreign_key = make_certificate("foreign").write(files.folder, "foreign")
    for shown in (Tls(files.ca), Tls(files.ca, foreign, foreign_key)):
        async with calling(hosted, files, tls=shown) as client:
            with pytest.raises(UnavailableError):
                await personas(client)


async def test_a_rotated_certificate_serves_new_connections_without_a_restart(
    start_host: StartHost, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "_LOOK_S", 0.0)
    hosted = await start_host(gateway={"tls": files.tls()})
    new = make_certificate("authority-2", authority=True)
    ca, _ = new.write(files.folder, "ca-2")
    async with calling(hosted, files) as before:
        assert await personas(before) == []
        make_certificate("server", by=new).write(files.folder, "server")
        async with calling(hosted, files, tls=Tls(ca_file=ca)) as after:
            assert await personas(after) == []
        assert await personas(before) == []  # its connection goes on


# -- tokens -------------------------------------------------------------------


@pytest_asyncio.fixture(loop_scope="session")
async def with_tokens(start_host: StartHost, issuer: Issuer, tmp_path: Path) -> Hosted:
    """A host that takes keys and tokens, without leeway."""
    jwks = issuer.write(tmp_path / "jwks.json")
    return await start_host(auth={"jwt": issuer.settings(jwks, leeway_s=0)})


async def test_tokens_have_the_rights_of_their_claims(with_tokens: Hosted, issuer: Issuer) -> None:
    hosted = with_tokens
    persona = await hosted.api.persona()
    mine, theirs = f"{persona}/users/ann", f"{persona}/users/bob"
    ann = hosted.caller(issuer.token())
    assert text_of(await ann.say(await ann.session(persona, mine), "Hello there."))
    assert (await failure(ann.session(persona, theirs))).reason == "USER_MISMATCH"
    assert (await failure(ann.publish(persona))).reason == "PERMISSION_DENIED"
    service = hosted.caller(issuer.token(sub="backend", personae_role="service"))
    assert await service.session(persona, theirs)
    for claims, reason in (
        ({"tenant": "other"}, "TENANT_MISMATCH"),
        ({"permissions": ["sessions.get"]}, "PERMISSION_DENIED"),
        ({"permissions": None}, "PERMISSION_DENIED"),
    ):
        assert (await failure(hosted.caller(issuer.token(**claims)).session(persona, mine))).reason == reason
    for token, reason in (
        (issuer.token(lives_s=-1), "TOKEN_EXPIRED"),
        (issuer.token(nbf=time.time() + 600), "TOKEN_NOT_YET_VALID"),
        (issuer.token(aud="another"), "TOKEN_INVALID"),
        (Issuer().token(), "TOKEN_INVALID"),
    ):
        refused = await failure(hosted.caller(token).session(persona, mine))
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason)


async def test_a_host_whose_signing_keys_cannot_be_read_does_not_start(
    start_host: StartHost, issuer: Issuer, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"auth\.jwt\.jwks: no signing keys"):
        await start_host(auth={"jwt": issuer.settings(tmp_path / "absent.json")})


async def test_a_host_with_tokens_needs_no_keys_and_makes_none(
    start_host: StartHost, issuer: Issuer, tmp_path: Path
) -> None:
    jwks = issuer.write(tmp_path / "jwks.json")
    hosted = await start_host(auth={"api_keys": (), "jwt": issuer.settings(jwks)})
    assert hosted.host.development_key == ""
    refused = await failure(hosted.api.persona())
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID")


async def test_a_stream_ends_with_its_token_and_the_turn_goes_on(
    with_tokens: Hosted, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosted = with_tokens
    persona = await hosted.api.persona()
    token = issuer.token()
    ann = hosted.caller(token)
    session = await ann.session(persona, f"{persona}/users/ann")
    first, second = Pause(), Pause()
    hosted.engine.will_say("One fine day. ", first, "Another one. ", second, "The last.")
    # Streams that begin now end at once; the token itself still holds.
    with monkeypatch.context() as patch:
        patch.setattr(auth, "time", SimpleNamespace(time=lambda: time.time() + 600))
        seen = await read_to_expiry(ann.converse(session, "Hello there.", "t1"))
        first.go.set()
        last = seen[-1].event_id if seen else 0
        more = await read_to_expiry(ann.attach(session, last, "t1"))
    second.go.set()
    last = more[-1].event_id if more else last
    final = await rest(ann.attach(session, last, "t1"))
    assert "turn_interrupted" not in kinds(final)
    assert text_of([*seen, *more, *final]) == "One fine day. Another one. The last."
    assert len(hosted.engine.requests) == 1


async def read_to_expiry(call: Any) -> list[Any]:
    """Events up to the end of the token."""
    events: list[Any] = []

    async def read() -> None:
        async for event in call:
            events.append(event)

    told = await failure(read())
    assert (told.code, told.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED")
    return events


async def test_a_session_that_is_followed_ends_with_the_token_too(
    with_tokens: Hosted, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    persona = await with_tokens.api.persona()
    ann = with_tokens.caller(issuer.token())
    session = await ann.session(persona, f"{persona}/users/ann")
    said = await ann.say(session, "Hello there.")
    monkeypatch.setattr(auth, "time", SimpleNamespace(time=lambda: time.time() + 600))
    assert [event.event_id for event in await read_to_expiry(ann.attach(session))] == [event.event_id for event in said]


async def test_the_sdk_goes_on_with_a_new_token_by_itself(with_tokens: Hosted, issuer: Issuer) -> None:
    hosted = with_tokens
    persona = await hosted.api.persona()
    pause, renewed = Pause(), asyncio.Event()

    def short_lived() -> str:
        if pause.reached.is_set():
            renewed.set()
        return issuer.token(lives_s=0.7)

    async with PersonaeClient(f"127.0.0.1:{hosted.port}", token=short_lived) as client:
        session = await client.sessions.create(persona, user="ann")
        hosted.engine.will_say("One fine day. ", pause, "The last.")
        async with client.sessions.converse(session.name, "Hello there.") as stream:
            reading = asyncio.create_task(stream.collect())
            async with asyncio.timeout(20):
                await renewed.wait()
            pause.go.set()
            turn = await reading
    assert turn.text == "One fine day. The last."
    assert not turn.interrupted
    assert len(hosted.engine.requests) == 1


async def test_keys_never_expire_on_a_stream(with_tokens: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "time", SimpleNamespace(time=lambda: time.time() + 1e9))
    api: Api = with_tokens.api
    persona = await api.persona()
    session = await api.session(persona, new_user(persona))
    assert kinds(await api.say(session, "Hello there."))[-1] == "turn_completed"
