"""TLS of the gateway's ports: credentials from files, checked at start and read again when they change."""

from __future__ import annotations

import stat
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from personae_runtime.config import TlsSettings, is_loopback
from personae_runtime.errors import ConfigError

_log = structlog.get_logger(__name__)

EXPIRES_SOON = timedelta(days=14)
"""A certificate with less time left is warned of when it is read."""

_LOOK_S = 1.0
"""Least seconds between two looks at whether the files changed."""


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """What the files of `gateway.tls` hold, checked.

    Attributes:
        chain: PEM of the certificate and its intermediates.
        private_key: PEM of its key.
        client_ca: PEM of the authorities of clients; None without mTLS.
        expires_at: when the certificate ends.
    """

    chain: bytes
    private_key: bytes
    client_ca: bytes | None
    expires_at: datetime


def read_certificate_files(settings: TlsSettings) -> CertificateFiles:
    """Read and check the files.

    Raises:
        ConfigError: a file is missing, unreadable or not PEM; the key is not the
            certificate's; the certificate is not valid now.
    """
    if settings.certificate is None or settings.private_key is None:
        raise ConfigError("gateway.tls: certificate and private_key must both be set")
    chain = _read(settings.certificate, "certificate")
    private_key = _read(settings.private_key, "private_key")
    client_ca = None if settings.client_ca is None else _read(settings.client_ca, "client_ca")
    try:
        certificate = x509.load_pem_x509_certificates(chain)[0]
    except ValueError as error:
        raise _unusable(settings.certificate, "certificate", "has no PEM certificate") from error
    try:
        key = serialization.load_pem_private_key(private_key, password=None)
    except TypeError as error:
        raise _unusable(settings.private_key, "private_key", "has a password; give the key without one") from error
    except Exception as error:  # ValueError, UnsupportedAlgorithm
        raise _unusable(settings.private_key, "private_key", "has no PEM private key") from error
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        raise _unusable(
            settings.private_key,
            "private_key",
            f"is not the key of the first certificate in {settings.certificate}; the server's own goes first",
        )
    if client_ca is not None:
        try:
            x509.load_pem_x509_certificates(client_ca)
        except ValueError as error:
            raise _unusable(settings.client_ca, "client_ca", "has no PEM certificate") from error
    now, begins_at, expires_at = datetime.now(UTC), certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if expires_at <= now:
        raise _unusable(settings.certificate, "certificate", f"expired at {expires_at}: no client would accept it")
    if begins_at > now:
        raise _unusable(settings.certificate, "certificate", f"is not valid before {begins_at}; is the clock right?")
    return CertificateFiles(chain, private_key, client_ca, expires_at)


def _read(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unusable(path, key, f"can't be read: {error.strerror}") from error


def _unusable(path: Path | None, key: str, what: str) -> ConfigError:
    return ConfigError(f"gateway.tls.{key}: {path} {what}", metadata={"keys": f"gateway.tls.{key}"})


class ServerTls:
    """The credentials of a server's ports. One object serves any number of ports.

    Every new connection gets what the files hold then; those that are open keep
    what they began with. Files that can't be used (a certificate whose key is
    not there yet, say) are logged and change nothing.

    Raises:
        ConfigError: see `read_certificate_files`.
    """

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        # gRPC asks from threads of its own, several at a time.
        self._lock = threading.Lock()
        self._looked_at = time.monotonic()
        self._signature = self._sign()
        self._current = self._load()

    def credentials(self, *, require_client_certificate: bool | None = None) -> grpc.ServerCredentials:
        """Credentials of a port; None asks for client certificates as the settings say.

        Raises:
            ConfigError: client certificates are required, and no `client_ca` says whose.
        """
        asks = self._settings.asks_clients if require_client_certificate is None else require_client_certificate
        if asks and self._settings.client_ca is None:
            raise ConfigError("gateway.tls.client_ca must be set: this port takes clients with a certificate only")
        return grpc.dynamic_ssl_server_credentials(self._current, self._fetch, asks)

    def _fetch(self) -> grpc.ServerCertificateConfiguration:
        """What a new connection gets; must not raise."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked_at >= _LOOK_S:
                self._looked_at = now
                # Taken before the files are read: a change in between is seen the next time.
                signature = self._sign()
                if signature != self._signature:
                    try:
                        self._current = self._load()
                    except Exception as error:
                        # Whatever it is, what was there before still serves.
                        _log.error("certificate_not_reloaded", problem=str(error))
                    else:
                        _log.info("certificate_reloaded")
                    self._signature = signature
            return self._current

    def _sign(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Something that differs when a file does: inode, size and time of change, of content or mode."""
        found: list[tuple[int, int, int] | None] = []
        for path in (self._settings.certificate, self._settings.private_key, self._settings.client_ca):
            try:
                status = None if path is None else path.stat()
            except OSError:
                status = None
            found.append(None if status is None else (status.st_ino, status.st_size, status.st_ctime_ns))
        return tuple(found)

    def _load(self) -> grpc.ServerCertificateConfiguration:
        files = read_certificate_files(self._settings)
        if files.expires_at - datetime.now(UTC) < EXPIRES_SOON:
            _log.warning("certificate_expires_soon", expires_at=files.expires_at.isoformat())
        path = self._settings.private_key
        assert path is not None
        if path.stat().st_mode & stat.S_IROTH:
            _log.warning("private_key_readable_by_all", path=str(path), remedy=f"chmod o-r {path}")
        return grpc.ssl_server_certificate_configuration([(files.private_key, files.chain)], files.client_ca)


def server_credentials(
    settings: TlsSettings, *, require_client_certificate: bool | None = None
) -> grpc.ServerCredentials | None:
    """Credentials of one port; None if TLS is not configured. See `ServerTls`."""
    if settings.certificate is None:
        return None
    return ServerTls(settings).credentials(require_client_certificate=require_client_certificate)


def peer_credentials(settings: TlsSettings) -> tuple[grpc.ChannelCredentials, str] | None:
    """What to call another gateway with, and the name its certificate must have ("" for its address); None is no TLS.

    Read anew each time. Where clients must show a certificate, a gateway shows its own.

    Raises:
        ConfigError: see `read_certificate_files`; also if no name is set and the certificate has none.
    """
    if settings.certificate is None:
        return None
    files = read_certificate_files(settings)
    if settings.peer_ca is None:
        authorities, name = files.chain, settings.peer_name or _first_name(settings.certificate, files.chain)
    else:
        authorities, name = _read(settings.peer_ca, "peer_ca"), settings.peer_name or ""
    pair = (files.private_key, files.chain) if settings.asks_clients else (None, None)
    return grpc.ssl_channel_credentials(authorities, *pair), name


def _first_name(path: Path, chain: bytes) -> str:
    certificate = x509.load_pem_x509_certificates(chain)[0]
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    found = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    if not found:
        raise _unusable(path, "certificate", "has no name; set gateway.tls.peer_name")
    return found[0].replace("*", "any", 1)


def bind(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
    """Add a port, 0 for a free one, to a server; the port.

    Raises:
        ConfigError: the address is not loopback and there are no credentials.
        RuntimeError: the address can't be bound.
    """
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if credentials is not None:
        return server.add_secure_port(address, credentials)
    if not is_loopback(host):
        raise ConfigError(f"{host} is not a loopback address: it needs gateway.tls.certificate and private_key")
    return server.add_insecure_port(address)
