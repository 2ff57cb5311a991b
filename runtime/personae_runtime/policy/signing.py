"""Signatures of bundles: detached, Ed25519 (RFC 8032), over the file's bytes as they are.

So what is signed is what is read, no canonical form stands between, and other
tools can make and check a signature: `openssl pkeyutl -sign -rawin`. Beside
`bundle.yaml` it lies as `bundle.yaml.sig`, base64 of 64 bytes.
"""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from personae_runtime.config import Settings
from personae_runtime.errors import ConfigError

SUFFIX: Final = ".sig"
_SIGNATURE_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose bundles are loaded.

    Attributes:
        keys: Ed25519 public keys, 32 bytes each.
        allow_unsigned: whether a bundle may come without a signature. One with a signature that no trusted key
            made is refused all the same, as somebody changed it.
    """

    keys: tuple[bytes, ...] = ()
    allow_unsigned: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Trust:
        """What a host is told to trust."""
        keys = tuple(base64.b64decode(key, validate=True) for key in settings.policy.trusted_keys)
        return cls(keys, settings.unsigned_bundles)

    def check(self, data: bytes, signature: bytes | None, name: str) -> str:
        """Who signed a bundle: the id of a trusted key, "" for one that may be unsigned.

        Args:
            data: the file's bytes.
            signature: 64 bytes; None if there is none.
            name: for messages.

        Raises:
            ConfigError: it may not be loaded.
        """
        if signature is not None and (self.keys or not self.allow_unsigned):
            for key in self.keys:
                try:
                    Ed25519PublicKey.from_public_bytes(key).verify(signature, data)
                except (InvalidSignature, ValueError):
                    continue
                return key_id(key)
            raise ConfigError(
                f"policy bundle {name}: the signature is of none of the trusted keys (policy.trusted_keys), or the"
                " bundle was changed after it was signed"
            )
        if not self.allow_unsigned:
            raise ConfigError(
                f"policy bundle {name}: it is not signed; sign it by `personae policy sign` with the key of one of"
                " policy.trusted_keys"
            )
        return ""


def key_id(public_key: bytes) -> str:
    """What names a key in records: the first 16 hex digits of its SHA-256."""
    return sha256(public_key).hexdigest()[:16]


def read_signature(bundle: Path) -> bytes | None:
    """The signature that lies beside a bundle's file; None if none does.

    Raises:
        ConfigError: the file holds no signature.
    """
    path = bundle.with_name(bundle.name + SUFFIX)
    try:
        return decode(path.read_text(encoding="ascii"), str(path))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeError):
        raise ConfigError(f"{path} can't be read; expected base64 of a signature's 64 bytes") from None


def decode(text: str, name: str) -> bytes:
    """A signature from base64.

    Raises:
        ConfigError: it is none.
    """
    try:
        signature = base64.b64decode(text.strip(), validate=True)
    except binascii.Error:
        signature = b""
    if len(signature) != _SIGNATURE_BYTES:
        raise ConfigError(f"{name} holds no signature; expected base64 of 64 bytes")
    return signature


def make_key(path: Path) -> bytes:
    """Write a new private key, PEM (PKCS #8), readable by its owner only; its public key, 32 bytes.

    Raises:
        ConfigError: the file is there already, or can't be written.
    """
    key = Ed25519PrivateKey.generate()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigError(f"{path} can't be made: {error.strerror}; a key is never overwritten") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key.public_key().public_bytes_raw()


def read_key(path: Path) -> Ed25519PrivateKey:
    """A private key from PEM without a passphrase.

    Raises:
        ConfigError: there is none of Ed25519.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} holds no Ed25519 private key in PEM; `personae policy keygen` makes one")
    return key
