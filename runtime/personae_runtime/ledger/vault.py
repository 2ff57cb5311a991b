"""Encryption per scope, and the keyed hashes that stand for people.

A scope is (tenant, persona, user); with an empty user it is the persona's own.
Each scope has a random 256-bit key, kept in the ledger wrapped (RFC 3394) by a
key derived (HKDF-SHA256) from the master key. Text is sealed with AES-256-GCM
under its scope's key, bound by associated data to the row it stands in, so
destroying the key erases the text and a sealed value can't be moved.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import secrets
import stat
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from personae_runtime.config import Settings
from personae_runtime.errors import Code, ConfigError, PersonaeError, Unavailable
from personae_runtime.ledger.database import Connection, Database

_NONCE_BYTES = 12
_CACHED_SCOPES = 20_000


class ScopeErased(PersonaeError):
    """The scope's key was destroyed; its text can't be read by anybody."""

    code = Code.NOT_FOUND
    reason = "SCOPE_ERASED"


class ErasureInProgress(Unavailable):
    """What is held of this person is being erased; until that is done nothing new is taken."""

    reason = "ERASURE_IN_PROGRESS"

    def __init__(self) -> None:
        super().__init__("what is held of this person is being erased; try again", retry_after_s=0.5)


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose words these are. An empty `user` is the persona's (owner's) own scope."""

    tenant: str
    persona: str
    user: str = ""


@dataclass(frozen=True, slots=True)
class ScopeCipher:
    """Seals and opens text of one scope.

    Attributes:
        scope: the scope key.
        marker: random text that opens the scope's part of a prompt, so that
            rotating it makes cached KV blocks of the scope unreachable.
        generation: of the key; a scope that was erased begins again with the next.
    """

    scope: str
    marker: str
    aead: AESGCM
    generation: int = 1

    def seal(self, plaintext: bytes, place: str) -> bytes:
        """Nonce and ciphertext; `place` names the row and column it is bound to."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self.aead.encrypt(nonce, plaintext, place.encode())

    def open(self, sealed: bytes, place: str) -> bytes:
        """The plaintext.

        Raises:
            ScopeErased: another key sealed it, or it stands in another place.
        """
        try:
            return self.aead.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], place.encode())
        except InvalidTag:
            raise ScopeErased("a sealed text does not open with its scope's key") from None


def load_master_key(configured: str | None, data_dir: Path, *, development: bool) -> bytes:
    """The 32-byte master key: from configuration, or in development from an owner-readable file.

    Raises:
        ConfigError: it is missing in production, malformed, or its file is readable by others.
    """
    example = "PERSONAE_LEDGER__MASTER_KEY=$(openssl rand -base64 32)"
    if configured is not None:
        try:
            key = base64.b64decode(configured, validate=True)
        except binascii.Error:
            key = b""
        if len(key) != 32:
            raise ConfigError(f"ledger.master_key must be base64 of 32 bytes, for example {example}")
        return key
    if not development:
        raise ConfigError(f"ledger.master_key is required outside a development profile, for example {example}")
    path = data_dir / "master.key"
    if not path.exists():
        _write_once(path, base64.b64encode(secrets.token_bytes(32)))
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise ConfigError(f"{path} is readable by others (mode {mode:o}); run: chmod 600 {path}")
    try:
        key = base64.b64decode(path.read_bytes(), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != 32:
        raise ConfigError(f"{path} does not hold base64 of 32 bytes; restore it from a backup")
    return key


def master_key_of(settings: Settings) -> bytes:
    """As `load_master_key`, by the settings of a host."""
    configured = settings.ledger.master_key
    return load_master_key(
        None if configured is None else configured.get_secret_value(),
        settings.data_dir,
        development=settings.profile == "development",
    )


def _write_once(path: Path, content: bytes) -> None:
    """Make an owner-readable file that is there whole or not at all, also after a power cut; keep one that is there."""
    descriptor, written = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(written, path)
    finally:
        os.unlink(written)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class AuditSigner:
    """Signs checkpoints of the audit log; see `personae_runtime.ledger.audit.Signer`."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature (RFC 8032), 64 bytes."""
        return self._key.sign(message)

    @property
    def public_key(self) -> bytes:
        """Ed25519, 32 bytes."""
        return self._key.public_key().public_bytes_raw()


class Vault:
    """Scope keys: made, wrapped, cached and destroyed.

    Args:
        master: 32 bytes.
        database: where wrapped keys lie.
    """

    def __init__(self, master: bytes, database: Database) -> None:
        self._wrap_key = _derive(master, b"wrap")
        self._scope_key = _derive(master, b"scope")
        self._body_key = _derive(master, b"body")
        self._salt_key = _derive(master, b"salt")
        self._slot_key = _derive(master, b"slot")
        self._check = _derive(master, b"check")
        self._signing_key = signing_key(master)
        self._pseudonym_key = _derive(master, b"pseudonym")
        self.audit_signer = AuditSigner(audit_key(master))
        self._database = database
        self._cache: OrderedDict[str, ScopeCipher] = OrderedDict()
        self._drops = 0
        self._told: list[Callable[[str], None]] = []

    async def verify(self) -> None:
        """Check that this is the key the ledger was made with.

        Raises:
            ConfigError: it is not; nothing could be read.
        """
        tag = await self._database.fetchval(
            "INSERT INTO vault_check (tag) VALUES ($1) ON CONFLICT (one) DO UPDATE SET one = true RETURNING tag",
            self._check,
        )
        if not hmac.compare_digest(tag, self._check):
            raise ConfigError(
                "ledger.master_key is not the key this ledger was made with; "
                "configure the original key (in development: master.key in data_dir)"
            )

    def scope_key(self, scope: Scope) -> str:
        """HMAC-SHA256 of the scope, hex: the only form in which a person's id enters an index."""
        return hmac.new(self._scope_key, _joined(scope.tenant, scope.persona, scope.user), sha256).hexdigest()

    def body_mac(self, *parts: str) -> bytes:
        """Keyed hash of a request body, to tell a repeat from another request without keeping it."""
        return hmac.new(self._body_key, _joined(*parts), sha256).digest()

    def slot(self, scope: str, *parts: str) -> bytes:
        """Keyed hash of what only one fact of a scope may say at a time."""
        return hmac.new(self._slot_key, _joined(scope, *parts), sha256).digest()

    def pseudonym(self, *parts: str) -> str:
        """Keyed hash of a name that the audit log may tell apart but not tell, such as a session's; 64 hex digits."""
        return hmac.new(self._pseudonym_key, _joined(*parts), sha256).hexdigest()

    def cache_salt(self, tenant: str, persona: str, revision: int) -> str:
        """HMAC of (tenant, persona, revision), hex: keeps prefix caches of trust domains apart."""
        return hmac.new(self._salt_key, _joined(tenant, persona, str(revision)), sha256).hexdigest()

    async def cipher(self, scope: Scope) -> ScopeCipher:
        """The scope's cipher; its key is made at first use.

        Raises:
            ScopeErased: the key was destroyed.
        """
        key = self.scope_key(scope)
        return await self.cipher_by_key(key)

    async def cipher_by_key(self, key: str, connection: Connection | None = None) -> ScopeCipher:
        """As `cipher`, for a scope key read from the ledger.

        Within a caller's transaction pass its connection: a key that it makes is
        not kept in memory, as the transaction may yet be rolled back.
        """
        found = self._cache.get(key)
        if found is not None:
            self._cache.move_to_end(key)
            return found
        source = connection or self._database
        drops = self._drops
        query = "SELECT wrapped_key, marker, generation, destroyed_at FROM scopes WHERE scope = $1"
        row = await source.fetchrow(query, key)
        made = row is None
        if row is None:
            wrapped = aes_key_wrap(self._wrap_key, secrets.token_bytes(32))
            await source.execute(
                "INSERT INTO scopes (scope, wrapped_key, marker) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
                key,
                wrapped,
                secrets.token_hex(8),
            )
            row = await source.fetchrow(query, key)
            assert row is not None
        if row["destroyed_at"] is not None:
            raise ScopeErased("the scope's key was destroyed")
        try:
            unwrapped = aes_key_unwrap(self._wrap_key, row["wrapped_key"])
        except InvalidUnwrap:
            raise ConfigError("a scope key does not unwrap: ledger.master_key is not the original one") from None
        cipher = ScopeCipher(scope=key, marker=row["marker"], aead=AESGCM(unwrapped), generation=row["generation"])
        # Nor is one kept that was read before something was dropped: it may be what was.
        if (made and connection is not None) or drops != self._drops:
            return cipher
        self._cache[key] = cipher
        if len(self._cache) > _CACHED_SCOPES:
            self._let_go(next(iter(self._cache)))
        return cipher

    async def renew(self, key: str) -> ScopeCipher:
        """As `cipher_by_key`, for something new: a scope that was erased begins again, with another key and marker.

        Raises:
            ErasureInProgress: its erasure is not done.
        """
        try:
            return await self.cipher_by_key(key)
        except ScopeErased:
            await self._database.execute(
                "UPDATE scopes SET wrapped_key = $2, marker = $3, destroyed_at = NULL, generation = generation + 1"
                " WHERE scope = $1 AND destroyed_at IS NOT NULL AND erasing IS NULL",
                key,
                aes_key_wrap(self._wrap_key, secrets.token_bytes(32)),
                secrets.token_hex(8),
            )
        try:
            return await self.cipher_by_key(key)
        except ScopeErased:
            raise ErasureInProgress from None

    async def hold(self, connection: Connection, cipher: ScopeCipher) -> None:
        """See that a key is its scope's still, and keep it so until the caller's transaction ends.

        Raises:
            ErasureInProgress: it was destroyed; what was to be sealed with it could never be opened.
        """
        held = await connection.fetchval(
            "SELECT true FROM scopes WHERE scope = $1 AND generation = $2 AND destroyed_at IS NULL FOR KEY SHARE",
            cipher.scope,
            cipher.generation,
        )
        if not held:
            self.drop((cipher.scope,))
            raise ErasureInProgress

    def drop(self, scopes: Iterable[str]) -> None:
        """Keep these scopes' keys and markers in memory no longer."""
        self._drops += 1
        for key in scopes:
            self._let_go(key)

    def on_drop(self, told: Callable[[str], None]) -> None:
        """Have `told` called with each scope whose key is no longer held: nothing that it opened may be kept."""
        self._told.append(told)

    def held(self, scope: str) -> ScopeCipher | None:
        """The scope's cipher if its key is in this process's memory."""
        return self._cache.get(scope)

    def _let_go(self, scope: str) -> None:
        self._cache.pop(scope, None)
        for told in self._told:
            told(scope)

    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature (RFC 8032), 64 bytes."""
        return self._signing_key.sign(message)

    @property
    def public_key(self) -> bytes:
        """Ed25519 public key of `sign`, 32 bytes."""
        return self._signing_key.public_key().public_bytes_raw()


def signing_key(master: bytes) -> Ed25519PrivateKey:
    """The key that proofs are signed with, derived from the master key."""
    return Ed25519PrivateKey.from_private_bytes(_derive(master, b"proof"))


def audit_key(master: bytes) -> Ed25519PrivateKey:
    """The key that checkpoints of the audit log are signed with, derived from the master key.

    Not that of proofs: a checkpoint is signed as its text stands, a proof as a
    serialized message, and neither must ever be taken for the other.
    """
    return Ed25519PrivateKey.from_private_bytes(_derive(master, b"audit"))


def content_keys(master: bytes) -> tuple[Ed25519PrivateKey, Ed25519PrivateKey]:
    """In development, the key of the authority that vouches for exported content, and the key that signs it."""
    authority, content = (_derive(master, purpose) for purpose in (b"content-authority", b"content"))
    return Ed25519PrivateKey.from_private_bytes(authority), Ed25519PrivateKey.from_private_bytes(content)


def _derive(master: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=b"personae.v1/" + purpose).derive(master)


def _joined(*parts: str) -> bytes:
    # Length-prefixed, so that no two different tuples join to the same bytes.
    encoded = [part.encode() for part in parts]
    return b"".join(len(part).to_bytes(4, "big") + part for part in encoded)
