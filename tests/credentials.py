"""Certificates and tokens, made for a test and kept nowhere else."""

from __future__ import annotations

import base64
import ipaddress
import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from jwt.algorithms import get_default_algorithms

ISSUER = "https://id.tests.example/"
AUDIENCE = "personae-tests"


# -- certificates -------------------------------------------------------------


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """`NAME.crt` and `NAME.key` in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
        certificate.write_bytes(self.pem)
        key.touch(mode=0o600)
        key.write_bytes(self.key_pem)
        return certificate, key


def make_certificate(
    name: str,
    *,
    by: Certificate | None = None,
    authority: bool = False,
    begins: timedelta = timedelta(hours=-1),
    ends: timedelta = timedelta(days=90),
) -> Certificate:
    """A certificate of `localhost` and 127.0.0.1, signed by an authority or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    addresses = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
    )
    return Certificate(builder.sign(by.key if by else key, hashes.SHA256()), key)


# -- tokens -------------------------------------------------------------------


def make_key(algorithm: str) -> Any:
    """A new private key for an algorithm."""
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm.startswith("ES"):
        curves: dict[str, ec.EllipticCurve] = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1()}
        return ec.generate_private_key(curves[algorithm])
    return rsa.generate_private_key(65537, 2048)


@dataclass
class Issuer:
    """An identity provider with one or more keys."""

    algorithm: str = "ES256"
    keys: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.keys:
            self.rotate("k1")

    def rotate(self, kid: str) -> None:
        """Sign with a new key from now on; the old ones go."""
        self.keys = {kid: make_key(self.algorithm)}

    @property
    def key_set(self) -> dict[str, Any]:
        """What it publishes."""
        return {"keys": [public_jwk(kid, key, self.algorithm) for kid, key in self.keys.items()]}

    def write(self, path: Path) -> Path:
        """Publish in a file."""
        path.write_text(json.dumps(self.key_set), encoding="utf-8")
        return path

    def settings(self, jwks: str | Path, **changed: Any) -> dict[str, Any]:
        """`auth.jwt` of a host that trusts this issuer."""
        return {
            "issuer": ISSUER,
            "audience": AUDIENCE,
            "algorithm": self.algorithm,
            "jwks": str(jwks),
            **changed,
        }

    def token(self, *, now: float | None = None, lives_s: float = 600, kid: str | None = None, **claims: Any) -> str:
        """A token of user `ann` in tenant `demo` who may do all; `claims` change or, if None, remove that."""
        now = time.time() if now is None else now
        body = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "ann",
            "iat": now,
            "exp": now + lives_s,
            "tenant": "demo",
            "permissions": ["*"],
            **claims,
        }
        return self.sign({name: value for name, value in body.items() if value is not None}, kid=kid)

    def sign(self, claims: dict[str, Any], *, kid: str | None = None) -> str:
        """Sign whatever is given."""
        own = next(iter(self.keys))
        # Not by jwt.encode, which refuses some of what tests want to be refused later.
        payload = json.dumps(claims).encode()
        return jwt.PyJWS().encode(payload, self.keys[own], self.algorithm, headers={"kid": kid or own})


def public_jwk(kid: str, key: Any, algorithm: str, **changed: Any) -> dict[str, Any]:
    """The public half of a key as a JSON Web Key."""
    made: dict[str, Any] = get_default_algorithms()[algorithm].to_jwk(key.public_key(), as_dict=True)
    return {**made, "kid": kid, "alg": algorithm, "use": "sig", **changed}


def unsigned(header: Any, payload: Any, signature: bytes = b"") -> str:
    """A token of any header, payload and signature."""
    parts = (json.dumps(header).encode(), json.dumps(payload).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)
