"""Certificate files: what is refused at start, what is only warned of, and what a rotation does."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from structlog.testing import capture_logs

from personae_runtime.config import TlsSettings
from personae_runtime.errors import ConfigError
from personae_serve.gateway import tls
from personae_serve.gateway.tls import ServerTls, bind, read_certificate_files, server_credentials
from tests.credentials import Certificate, make_certificate


@pytest.fixture(scope="module")
def own() -> Certificate:
    return make_certificate("own")


def given(folder: Path, pair: Certificate, **changed: Any) -> TlsSettings:
    crt, key = pair.write(folder, "tls")
    return TlsSettings(**{"certificate": crt, "private_key": key, **changed})


def refusal(settings: TlsSettings) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read_certificate_files(settings)
    return caught.value


def test_files_that_fit_are_read(tmp_path: Path, own: Certificate) -> None:
    ca, _ = make_certificate("ca", authority=True).write(tmp_path, "ca")
    files = read_certificate_files(given(tmp_path, own, client_ca=ca))
    assert (files.chain, files.private_key) == (own.pem, own.key_pem)
    assert files.client_ca == ca.read_bytes()
    assert files.expires_at == own.certificate.not_valid_after_utc


@pytest.mark.parametrize("key", ["certificate", "private_key", "client_ca"])
def test_a_missing_or_unreadable_file_is_named(tmp_path: Path, own: Certificate, key: str) -> None:
    settings = given(tmp_path, own, **{key: tmp_path / "absent"})
    refused = refusal(settings)
    assert refused.message == f"gateway.tls.{key}: {tmp_path / 'absent'} can't be read: No such file or directory"
    assert refused.metadata == {"keys": f"gateway.tls.{key}"}
    assert "Is a directory" in refusal(given(tmp_path, own, **{key: tmp_path})).message


@pytest.mark.parametrize(
    ("key", "words"),
    [("certificate", "no PEM certificate"), ("private_key", "no PEM private key"), ("client_ca", "no PEM certificate")],
)
@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"])
def test_a_file_of_anything_else_is_refused(
    tmp_path: Path, own: Certificate, key: str, words: str, content: bytes
) -> None:
    path = tmp_path / "wrong"
    path.write_bytes(content)
    assert words in refusal(given(tmp_path, own, **{key: path})).message


def test_a_key_of_another_certificate_is_refused(tmp_path: Path, own: Certificate) -> None:
    _, other = make_certificate("other").write(tmp_path, "other")
    assert "is not the key of the first certificate" in refusal(given(tmp_path, own, private_key=other)).message


def test_a_key_with_a_password_is_refused(tmp_path: Path, own: Certificate) -> None:
    settings = given(tmp_path, own)
    (tmp_path / "tls.key").write_bytes(
        own.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    assert "has a password" in refusal(settings).message


def test_a_certificate_that_is_not_valid_now_is_refused(tmp_path: Path) -> None:
    over = make_certificate("over", begins=timedelta(days=-9), ends=timedelta(days=-1))
    assert "expired at" in refusal(given(tmp_path, over)).message
    early = make_certificate("early", begins=timedelta(days=1))
    assert "is not valid before" in refusal(given(tmp_path, early)).message


def test_what_works_but_should_not_stay_is_warned_of(tmp_path: Path) -> None:
    settings = given(tmp_path, make_certificate("short", ends=timedelta(days=2)))
    (tmp_path / "tls.key").chmod(0o644)
    with capture_logs() as logs:
        ServerTls(settings)
    assert [log["event"] for log in logs] == ["certificate_expires_soon", "private_key_readable_by_all"]
    assert logs[1]["remedy"] == f"chmod o-r {tmp_path / 'tls.key'}"


def test_a_good_pair_warns_of_nothing(tmp_path: Path, own: Certificate) -> None:
    with capture_logs() as logs:
        assert server_credentials(given(tmp_path, own)) is not None
    assert logs == []


def test_no_certificate_is_no_tls_and_a_port_can_ask_for_clients_by_itself(tmp_path: Path, own: Certificate) -> None:
    assert server_credentials(TlsSettings()) is None
    with pytest.raises(ConfigError, match=r"gateway\.tls\.client_ca must be set"):
        server_credentials(given(tmp_path, own), require_client_certificate=True)


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Callable[[ServerTls], grpc.ServerCertificateConfiguration]:
    """What a new connection would get."""
    monkeypatch.setattr(tls, "_LOOK_S", 0.0)
    return lambda server: server._fetch()


def replace(path: Path, content: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(content)
    os.replace(new, path)


def test_a_new_pair_is_used_once_both_files_are_there(
    tmp_path: Path, own: Certificate, look: Callable[[ServerTls], grpc.ServerCertificateConfiguration]
) -> None:
    server = ServerTls(given(tmp_path, own))
    before = look(server)
    assert look(server) is before
    new = make_certificate("new")
    with capture_logs() as logs:
        replace(tmp_path / "tls.crt", new.pem)
        assert look(server) is before
        assert look(server) is before
        replace(tmp_path / "tls.key", new.key_pem)
        (tmp_path / "tls.key").chmod(0o600)
        after = look(server)
        assert after is not before
        assert look(server) is after
    assert [log["event"] for log in logs] == ["certificate_not_reloaded", "certificate_reloaded"]


def test_files_that_vanish_change_nothing(
    tmp_path: Path, own: Certificate, look: Callable[[ServerTls], grpc.ServerCertificateConfiguration]
) -> None:
    server = ServerTls(given(tmp_path, own))
    before = look(server)
    for path in tmp_path.iterdir():
        path.unlink()
    assert look(server) is before


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
async def test_a_port_beyond_loopback_is_not_opened_without_credentials(host: str) -> None:
    server = grpc.aio.server()
    with pytest.raises(ConfigError, match=r"gateway\.tls\.certificate"):
        bind(server, host, 0, None)
    assert bind(server, "127.0.0.1", 0, None) > 0
