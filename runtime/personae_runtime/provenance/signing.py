"""Signed manifests (C2PA) of content that leaves as a file. Text has no place for one inside, so it lies beside it.

Signed with the operator's certificate, or in development with one of an
authority of the installation's own. The library is large (`personae[provenance]`)
and is loaded with the first manifest, or at the start if a certificate is configured.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from personae_runtime.config import Settings
from personae_runtime.errors import ConfigError, FailedPrecondition
from personae_runtime.ledger.vault import content_keys, master_key_of
from personae_runtime.provenance.label import DigitalSourceType, Label, Origin

LABEL_ASSERTION: Final = "internal.personae.ai_label"
"""Assertion that holds the AI label. C2PA asks for a domain of one's own; `internal` is set aside for private use."""

_ALGORITHMS: Final = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
# Extended key usages of certificates that may sign (C2PA, Certificate Profiles): email protection, document signing,
# and C2PA's own. The library takes the first alone unless told.
_USAGES: Final = ("1.3.6.1.5.5.7.3.4", "1.3.6.1.5.5.7.3.36", "1.3.6.1.4.1.62558.2.1")
# Fixed, so that every gateway of an installation makes the same certificates.
_DEVELOPMENT_FROM: Final = datetime(2026, 1, 1, tzinfo=UTC)
_DEVELOPMENT_TO: Final = datetime(2036, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class SigningIdentity:
    """What signs.

    Attributes:
        chain: PEM, the signing certificate first.
        private_key: PEM, PKCS #8.
        algorithm: as C2PA names it: es256, es384, es512, ps256, ed25519.
        authority: PEM of what others must trust to trust the signature: the chain's last certificate.
    """

    chain: bytes
    private_key: bytes
    algorithm: str

    @property
    def authority(self) -> bytes:
        """See the class."""
        return x509.load_pem_x509_certificates(self.chain)[-1].public_bytes(serialization.Encoding.PEM)


def identity_of(settings: Settings) -> SigningIdentity | None:
    """The configured certificate; without one, development has its own and production none.

    Raises:
        ConfigError: the files can't be used.
    """
    told = settings.provenance
    if told.certificate is not None and told.private_key is not None:
        return _configured(told.certificate, told.private_key)
    if settings.profile != "development":
        return None
    return development_identity(master_key_of(settings))


def development_identity(master: bytes) -> SigningIdentity:
    """A certificate for signing content and the authority that issued it, with keys derived from the master key."""
    authority_key, key = content_keys(master)
    authority = _certificate(authority_key, "Content authority", authority_key, None)
    issued = _certificate(key, "Content", authority_key, authority)
    return SigningIdentity(
        chain=issued.public_bytes(serialization.Encoding.PEM) + authority.public_bytes(serialization.Encoding.PEM),
        private_key=_pem(key),
        algorithm="ed25519",
    )


def _certificate(
    key: Ed25519PrivateKey, name: str, issuer_key: Ed25519PrivateKey, issuer: x509.Certificate | None
) -> x509.Certificate:
    """A certificate as C2PA asks for (C2PA, Certificate Profiles), or without an issuer, an authority's."""
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Personae (development)"),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
    is_authority = issuer is None
    public = key.public_key()
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(public)
        # Of the key alone, as everything here.
        .serial_number(int.from_bytes(identifier.digest[:16]) | 1)
        .not_valid_before(_DEVELOPMENT_FROM)
        .not_valid_after(_DEVELOPMENT_TO)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not is_authority,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=is_authority,
                crl_sign=is_authority,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not is_authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(issuer_key, None)


def _configured(certificate: Path, private_key: Path) -> SigningIdentity:
    try:
        chain = certificate.read_bytes()
        x509.load_pem_x509_certificates(chain)
    except (OSError, ValueError) as error:
        raise ConfigError(f"provenance.certificate: {certificate} can't be used: {error}") from None
    try:
        key = serialization.load_pem_private_key(private_key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"provenance.private_key: {private_key} can't be used: {error}") from None
    match key:
        case Ed25519PrivateKey():
            algorithm = "ed25519"
        case rsa.RSAPrivateKey():
            algorithm = "ps256"
        case ec.EllipticCurvePrivateKey() if key.curve.name in _ALGORITHMS:
            algorithm = _ALGORITHMS[key.curve.name]
        case _:
            raise ConfigError(
                f"provenance.private_key: {private_key} holds a key that C2PA does not take;"
                " an Ed25519, RSA, P-256, P-384 or P-521 key is"
            )
    return SigningIdentity(chain, _pem(key), algorithm)


def _pem(key: Any) -> bytes:
    found: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return found


class ContentSigningUnavailable(FailedPrecondition):
    """This host signs no content."""

    reason = "CONTENT_SIGNING_UNAVAILABLE"


class ContentSigner:
    """Makes manifests. Its methods take milliseconds of computing and may run in any thread.

    Args:
        identity: None signs nothing.
    """

    def __init__(self, identity: SigningIdentity | None) -> None:
        self._identity = identity

    @classmethod
    def of(cls, settings: Settings) -> ContentSigner:
        """By the settings of a host. A configured certificate is tried out.

        Raises:
            ConfigError: it can't sign.
        """
        signer = cls(identity_of(settings))
        if settings.provenance.certificate is not None:
            try:
                trial = Label("", "", Origin(), datetime.now(UTC), DigitalSourceType.ALGORITHMIC)
                signer.sign(b"a trial", "text/plain", "a trial", "", trial)
            except ContentSigningUnavailable as error:
                raise ConfigError(f"provenance.certificate: {error.message}") from None
        return signer

    def sign(self, content: bytes, media_type: str, title: str, persona: str, label: Label) -> bytes:
        """The manifest of a content that is not empty, about 3 KB.

        Args:
            title: what the content is called.
            persona: display name of the persona.

        Raises:
            ContentSigningUnavailable: no certificate, or the library is missing, or the certificate does not serve.
        """
        definition = {
            "title": title,
            "format": media_type,
            "assertions": [
                _created(label),
                {"label": LABEL_ASSERTION, "data": {"persona_display_name": persona, **label.to_dict()}},
            ],
        }
        return _sign(self._require(), content, definition, media_type)

    def _require(self) -> SigningIdentity:
        if self._identity is None:
            raise ContentSigningUnavailable(
                "this host has no certificate to sign content with: set provenance.certificate and"
                " provenance.private_key"
            )
        return self._identity


def _created(label: Label) -> dict[str, Any]:
    """The assertion that the content was created: by a model, or where none wrote, by rules of Personae."""
    action = {
        "action": "c2pa.created",
        "softwareAgent": {"name": label.origin.model or "Personae"},
        "digitalSourceType": label.source.value,
        "when": label.generated_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return {"label": "c2pa.actions.v2", "data": {"actions": [action]}}


def _sign(identity: SigningIdentity, content: bytes, definition: dict[str, Any], media_type: str) -> bytes:
    c2pa = library()
    generator = {"claim_generator_info": [{"name": "Personae", "version": version("personae")}]}
    try:
        with (
            c2pa.Signer.from_info(
                c2pa.C2paSignerInfo(identity.algorithm, identity.chain, identity.private_key, None)
            ) as signer,
            c2pa.Context(c2pa.Settings.from_dict(library_settings())) as context,
            c2pa.Builder({**generator, **definition}, context) as builder,
        ):
            builder.set_no_embed()
            return bytes(builder.sign(signer, media_type, io.BytesIO(content)))
    except c2pa.C2paError as error:
        # What goes wrong here is the certificate: the definition is ours, and the content is any bytes.
        raise ContentSigningUnavailable(f"the certificate for signing content does not serve: {error}") from None


def library_settings(authorities: str = "") -> dict[str, Any]:
    """Settings of the library: it asks nothing of other machines, and checks what it signs before it gives it out.

    Args:
        authorities: PEM of the certificates that are trusted to vouch for signers.
    """
    trust = {"trust_config": "".join(f"{usage}\n" for usage in _USAGES)}
    if authorities:
        trust["trust_anchors"] = authorities
    return {
        "verify": {
            "remote_manifest_fetch": False,
            "ocsp_fetch": False,
            "verify_after_sign": True,
            "verify_trust": True,
        },
        "trust": trust,
    }


def library() -> ModuleType:
    """The C2PA library.

    Raises:
        ContentSigningUnavailable: it, or what verifying needs beside it, is not installed.
    """
    try:
        import c2pa
        import cbor2  # noqa: F401
    except ImportError as error:
        raise ContentSigningUnavailable(
            f"manifests need the C2PA library ({error.name}): pip install 'personae[provenance]'"
        ) from None
    module: ModuleType = c2pa
    return module
