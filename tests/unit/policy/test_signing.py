from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from personae_runtime.config import load_settings
from personae_runtime.errors import ConfigError
from personae_runtime.policy import signing
from personae_runtime.policy.bundle import load_bundle
from personae_runtime.policy.scorers import NgramScorer
from personae_runtime.policy.signing import Trust

KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([at]) * 32) for at in (1, 2))
DATA = b"version: 1.0.0\nextends: default\n"


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


TRUST = Trust((public(OTHER), public(KEY)))


def test_a_signature_of_any_trusted_key_holds_and_names_the_key() -> None:
    assert TRUST.check(DATA, KEY.sign(DATA), "b") == signing.key_id(public(KEY))
    assert TRUST.check(DATA, OTHER.sign(DATA), "b") == signing.key_id(public(OTHER))


@pytest.mark.parametrize(
    ("data", "signature"),
    [
        (DATA, Ed25519PrivateKey.generate().sign(DATA)),
        (DATA + b" ", KEY.sign(DATA)),
        (DATA[:-1], KEY.sign(DATA)),
        (DATA, KEY.sign(DATA)[:-1]),
        (DATA, b""),
        (DATA, bytes(64)),
    ],
    # Keys are drawn anew in each process, and ids are to be the same in all.
    ids=["of another key", "longer", "shorter", "cut signature", "no signature", "zeros"],
)
def test_anything_else_is_refused_also_where_unsigned_bundles_are_taken(data: bytes, signature: bytes) -> None:
    for allow_unsigned in (False, True):
        with pytest.raises(ConfigError, match="none of the trusted keys"):
            Trust(TRUST.keys, allow_unsigned).check(data, signature, "b")


def test_every_changed_byte_of_bundle_or_signature_is_noticed() -> None:
    signature = KEY.sign(DATA)
    for at in range(len(DATA)):
        with pytest.raises(ConfigError):
            TRUST.check(DATA[:at] + bytes([DATA[at] ^ 1]) + DATA[at + 1 :], signature, "b")
    for at in range(len(signature)):
        with pytest.raises(ConfigError):
            TRUST.check(DATA, signature[:at] + bytes([signature[at] ^ 1]) + signature[at + 1 :], "b")


def test_without_a_signature_only_what_the_settings_allow_is_loaded() -> None:
    with pytest.raises(ConfigError, match="it is not signed"):
        TRUST.check(DATA, None, "b")
    assert Trust(TRUST.keys, allow_unsigned=True).check(DATA, None, "b") == ""
    with pytest.raises(ConfigError, match="none of the trusted keys"):
        Trust().check(DATA, KEY.sign(DATA), "b")


@pytest.mark.parametrize(
    ("changed", "allowed"),
    [
        ({}, True),
        ({"policy": {"allow_unsigned": False}}, False),
        ({"profile": "production", "ledger": {"master_key": base64.b64encode(bytes(32)).decode()}}, False),
        (
            {
                "gateway": {"host": "0.0.0.0", "tls": {"certificate": "c.pem", "private_key": "k.pem"}},
                "auth": {"api_keys": [{"id": "k", "sha256": "0" * 64, "tenant": "acme"}]},
            },
            False,
        ),
    ],
)
def test_unsigned_bundles_are_for_development_on_loopback(changed: dict[str, object], allowed: bool) -> None:
    assert Trust.of(load_settings(**changed)).allow_unsigned is allowed


def test_production_refuses_a_configuration_that_takes_unsigned_bundles() -> None:
    with pytest.raises(ConfigError, match=r"policy\.allow_unsigned"):
        load_settings(profile="production", policy={"allow_unsigned": True})


@pytest.mark.parametrize("key", ["", "abc", base64.b64encode(bytes(31)).decode(), "not base64!"])
def test_a_trusted_key_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="base64 of 32 bytes"):
        load_settings(policy={"trusted_keys": [key]})


def test_a_made_key_is_its_owners_alone_and_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    made = signing.make_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    Ed25519PublicKey.from_public_bytes(made).verify(signing.read_key(path).sign(DATA), DATA)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        signing.make_key(path)
    assert path.read_bytes() == before


def test_what_is_no_private_key_is_told_as_such(tmp_path: Path) -> None:
    other = tmp_path / "ec.pem"
    other.write_bytes(
        generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    (tmp_path / "text.pem").write_text("hello")
    for name in ("ec.pem", "text.pem"):
        with pytest.raises(ConfigError, match="no Ed25519 private key"):
            signing.read_key(tmp_path / name)
    with pytest.raises(ConfigError, match="can't be read"):
        signing.read_key(tmp_path / "nosuch.pem")


def test_a_configured_bundle_needs_its_signature_beside_it(tmp_path: Path) -> None:
    scorer = NgramScorer.load()
    path = tmp_path / "own.yaml"
    path.write_bytes(DATA)
    with pytest.raises(ConfigError, match=r"own\.yaml: it is not signed"):
        load_bundle(path, scorer, TRUST)
    beside = tmp_path / "own.yaml.sig"
    beside.write_text(base64.b64encode(KEY.sign(DATA)).decode() + "\n")
    assert load_bundle(path, scorer, TRUST).version.startswith("1.0.0+sha256:")
    path.write_bytes(DATA + b"# changed\n")
    with pytest.raises(ConfigError, match="none of the trusted keys"):
        load_bundle(path, scorer, TRUST)
    beside.write_text("bm8=")
    with pytest.raises(ConfigError, match=r"own\.yaml\.sig holds no signature"):
        load_bundle(path, scorer, TRUST)
