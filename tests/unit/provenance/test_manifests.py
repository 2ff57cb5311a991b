"""Manifests: who can sign them, and that no change of a byte goes unseen."""

from __future__ import annotations

import os
import random
import stat
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from personae_runtime.config import Settings, load_settings
from personae_runtime.errors import ConfigError
from personae_runtime.provenance.label import DigitalSourceType, Label, Origin
from personae_runtime.provenance.signing import (
    ContentSigner,
    ContentSigningUnavailable,
    SigningIdentity,
    development_identity,
    identity_of,
)
from personae_runtime.provenance.verify import verify

IDENTITY = development_identity(b"\x07" * 32)
CONTENT = "Thank you for telling me. Até já, Ørjan."
LABEL = Label(
    "tenants/acme/personas/nadia",
    "tenants/acme/personas/nadia/revisions/3",
    Origin("smollm2-135m-instruct", "", "2026.11.2+sha256:98f084ee2702"),
    datetime(2026, 11, 22, 17, 1, 49, 683757, UTC),
    DigitalSourceType.TRAINED,
)


def sign(identity: SigningIdentity = IDENTITY, content: str = CONTENT) -> bytes:
    return ContentSigner(identity).sign(content.encode(), "text/plain", "Reply of Nadia", "Nadia", LABEL)


def holds(content: bytes, manifest: bytes, identity: SigningIdentity = IDENTITY) -> bool:
    """The verdict of somebody who trusts an identity's authority."""
    return verify(content, manifest, identity.authority.decode()).holds


# -- tampering -------------------------------------------------------------------


def flips(data: bytes, places: Iterable[int], chosen: random.Random) -> Iterable[tuple[int, bytes]]:
    """The data with one bit changed at each place."""
    for at in places:
        yield at, data[:at] + bytes([data[at] ^ (1 << chosen.randrange(8))]) + data[at + 1 :]


@pytest.mark.soak
def test_every_changed_byte_is_detected() -> None:
    chosen = random.Random(5)
    content, manifest = CONTENT.encode(), sign()
    assert holds(content, manifest)
    for at, changed in flips(content, range(len(content)), chosen):
        assert not holds(changed, manifest), at
    # Every byte in `make soak`; the other places are others in every run.
    step = 1 if "PERSONAE_KILLS" in os.environ else 29
    for at, changed in flips(manifest, range(random.randrange(step), len(manifest), step), chosen):
        assert not holds(content, changed), (at, manifest[at : at + 1])


def test_nothing_can_be_added_or_cut_off() -> None:
    content, manifest = CONTENT.encode(), sign()
    other = sign(content="Something else.")
    for changed in (
        manifest + b"\0",
        manifest + other,
        manifest[:-1],
        manifest[: len(manifest) // 2],
        b"",
        b"\0\0\0\x08jumb",
        b"x" * 4_000,
        b"\0" * (2 << 20),
    ):
        assert not holds(content, changed)
    for changed in (content + b"\n", content[:-1], content.replace(b"Thank", b"Blame"), b""):
        assert not holds(changed, manifest)


def test_padding_that_no_signature_covers_holds_zeros_only() -> None:
    manifest = sign()
    at = manifest.rindex(b"\0" * 64)
    hidden = manifest[:at] + b"a message" + manifest[at + 9 :]
    assert "unsigned" in verify(CONTENT.encode(), hidden).problems[0]


def test_what_another_signed_is_told_by_the_authority_alone() -> None:
    other = development_identity(b"\x08" * 32)
    forged = sign(other, "I never said that.")
    found = verify(b"I never said that.", forged)
    assert (found.holds, found.trusted) == (True, False)
    assert not holds(b"I never said that.", forged)
    assert holds(b"I never said that.", forged, other)


# -- who signs -------------------------------------------------------------------


def test_every_gateway_of_an_installation_has_the_same_development_certificates() -> None:
    again, other = development_identity(b"\x07" * 32), development_identity(b"\x08" * 32)
    assert again == IDENTITY
    assert (other.chain, other.private_key) != (IDENTITY.chain, IDENTITY.private_key)
    assert verify(CONTENT.encode(), sign(), again.authority.decode()).trusted


def test_production_signs_with_a_configured_certificate_only(tmp_path: Path) -> None:
    settings = Settings(profile="production", data_dir=tmp_path, ledger={"master_key": "A" * 43 + "="})
    assert identity_of(settings) is None
    with pytest.raises(ContentSigningUnavailable, match=r"provenance\.certificate"):
        ContentSigner.of(settings).sign(b"words", "text/plain", "Reply", "Nadia", LABEL)


def test_one_of_certificate_and_key_alone_is_refused(tmp_path: Path) -> None:
    for name in ("certificate", "private_key"):
        with pytest.raises(ConfigError, match="provenance"):
            load_settings(data_dir=tmp_path, provenance={name: tmp_path / "file.pem"})


def test_without_the_library_exporting_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(ContentSigningUnavailable, match=r"personae\[provenance\]"):
        sign()


Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | Ed25519PrivateKey
NOW = datetime.now(UTC)
DAY = timedelta(days=1)


def certificate(
    key: Key,
    issuer_key: Key,
    issuer: x509.Certificate | None = None,
    *,
    authority: bool = False,
    begin: datetime = NOW - DAY,
    end: datetime = NOW + DAY,
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.EMAIL_PROTECTION,
) -> x509.Certificate:
    """A certificate as an operator's authority issues it."""
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Acme"),
            x509.NameAttribute(NameOID.COMMON_NAME, "Acme authority" if authority else "Acme content"),
        ]
    )
    usages = {"content_commitment", "key_encipherment", "data_encipherment", "key_agreement"}
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not authority,
                key_cert_sign=authority,
                crl_sign=authority,
                encipher_only=False,
                decipher_only=False,
                **dict.fromkeys(usages, False),
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    return builder.sign(issuer_key, None if isinstance(issuer_key, Ed25519PrivateKey) else hashes.SHA256())


ROOT_KEY = ec.generate_private_key(ec.SECP256R1())
ROOT = certificate(ROOT_KEY, ROOT_KEY, authority=True)


def configured(folder: Path, key: Key, *chain: x509.Certificate) -> Settings:
    """Settings that name a key and a chain."""
    certificates, private = folder / "chain.crt", folder / "content.key"
    certificates.write_bytes(b"".join(one.public_bytes(serialization.Encoding.PEM) for one in chain))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    private.chmod(stat.S_IRUSR)
    return load_settings(data_dir=folder, provenance={"certificate": certificates, "private_key": private})


@pytest.mark.parametrize(
    "make",
    [
        Ed25519PrivateKey.generate,
        lambda: ec.generate_private_key(ec.SECP256R1()),
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: rsa.generate_private_key(65537, 2048),
    ],
    ids=["ed25519", "p256", "p384", "rsa"],
)
def test_an_operators_own_certificate_signs(tmp_path: Path, make: type) -> None:
    key = make()
    settings = configured(tmp_path, key, certificate(key, ROOT_KEY, ROOT), ROOT)
    manifest = ContentSigner.of(settings).sign(CONTENT.encode(), "text/plain", "Reply of Nadia", "Nadia", LABEL)
    root = ROOT.public_bytes(serialization.Encoding.PEM).decode()
    found = verify(CONTENT.encode(), manifest, root)
    assert (found.problems, found.trusted, found.signer) == ((), True, "Acme, Acme content")
    identity = identity_of(settings)
    assert identity is not None
    assert identity.authority.decode() == root


@pytest.mark.parametrize("usage", ["1.3.6.1.5.5.7.3.36", "1.3.6.1.4.1.62558.2.1"], ids=["documents", "c2pa"])
def test_certificates_for_documents_and_for_c2pa_sign_too(tmp_path: Path, usage: str) -> None:
    issued = certificate(KEY, ROOT_KEY, ROOT, usage=x509.ObjectIdentifier(usage))
    manifest = ContentSigner.of(configured(tmp_path, KEY, issued, ROOT)).sign(
        CONTENT.encode(), "text/plain", "Reply of Nadia", "Nadia", LABEL
    )
    assert verify(CONTENT.encode(), manifest, ROOT.public_bytes(serialization.Encoding.PEM).decode()).trusted


KEY = ec.generate_private_key(ec.SECP256R1())
UNFIT = {
    "expired": (KEY, (certificate(KEY, ROOT_KEY, ROOT, begin=NOW - 9 * DAY, end=NOW - DAY), ROOT)),
    "for servers": (KEY, (certificate(KEY, ROOT_KEY, ROOT, usage=ExtendedKeyUsageOID.SERVER_AUTH), ROOT)),
    "of another key": (ec.generate_private_key(ec.SECP256R1()), (certificate(KEY, ROOT_KEY, ROOT), ROOT)),
    "an authority's": (ROOT_KEY, (ROOT,)),
    "of a curve that C2PA does not know": (
        (odd := ec.generate_private_key(ec.SECP256K1())),
        (certificate(odd, ROOT_KEY, ROOT), ROOT),
    ),
}


@pytest.mark.parametrize("what", UNFIT)
def test_a_certificate_that_does_not_serve_stops_the_start(tmp_path: Path, what: str) -> None:
    key, chain = UNFIT[what]
    settings = configured(tmp_path, key, *chain)
    with pytest.raises(ConfigError, match=r"provenance\."):
        ContentSigner.of(settings)


def test_files_that_are_no_certificates_stop_the_start(tmp_path: Path) -> None:
    settings = configured(tmp_path, KEY, certificate(KEY, ROOT_KEY, ROOT))
    certificates = tmp_path / "chain.crt"
    certificates.write_text("nothing")
    with pytest.raises(ConfigError, match=r"provenance\.certificate"):
        ContentSigner.of(settings)
    certificates.unlink()
    with pytest.raises(ConfigError, match=r"provenance\.certificate"):
        ContentSigner.of(settings)
