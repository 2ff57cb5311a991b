"""JSON Web Tokens (RFC 7519) of an identity provider → principal, after the advice of RFC 8725.

The algorithm is the configured one, never the header's. Keys come from a JSON
Web Key Set (RFC 7517) that is read off the event loop: at start, every
`jwks_ttl_s`, and when a token names a key that is not there, but never more
often than every `jwks_retry_s`.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import jwt
import structlog
from jwt.algorithms import get_default_algorithms

from personae_runtime.config import JwtSettings
from personae_runtime.errors import ConfigError, InvalidArgument, Unauthenticated, Unavailable
from personae_runtime.names import parse
from personae_serve.gateway.auth import Principal

_log = structlog.get_logger(__name__)

_KEY_TYPES: Final = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
# A service's name in logs: printable and short.
_SERVICE = re.compile(r"[!-~]{1,255}")
_REQUIRED: Final = ("iss", "aud", "sub", "exp", "iat")
# Year 4147; larger numbers are no times.
_LAST_TIME: Final = 2**36


def usable_keys(document: Any, algorithm: str) -> dict[str, Any]:
    """The public keys of a JSON Web Key Set that fit an algorithm, by `kid`.

    Left out are keys without a `kid`, of another type, curve, use or algorithm,
    RSA keys of less than 2048 bits, and whatever holds a secret.

    Raises:
        ValueError: it is no key set, or no key is left.
    """
    listed = document.get("keys") if isinstance(document, Mapping) else None
    if not isinstance(listed, list):
        raise ValueError("not a JSON Web Key Set: an object with a list `keys` is expected")
    verifier = get_default_algorithms()[algorithm]
    found: dict[str, Any] = {}
    for item in listed:
        if not isinstance(item, Mapping):
            continue
        kid, operations = item.get("kid"), item.get("key_ops")
        if not isinstance(kid, str) or not kid or kid in found or item.get("kty") != _KEY_TYPES[algorithm[:2]]:
            continue
        if item.get("use", "sig") != "sig" or item.get("alg", algorithm) != algorithm:
            continue
        if isinstance(operations, list) and "verify" not in operations:
            continue
        if "d" in item:
            _log.error("private_key_published", kid=kid, remedy="whoever can read the key set can sign tokens")
            continue
        try:
            key = verifier.from_jwk(dict(item))
            verifier.prepare_key(key)
        except (jwt.PyJWTError, ValueError, TypeError):
            continue
        if verifier.check_key_length(key) is None:
            found[kid] = key
    if not found:
        raise ValueError(f"no key in it has a `kid` and fits {algorithm}")
    return found


def read_key_set(source: str, timeout_s: float) -> Any:
    """The JSON of a key set, from a URL or a file; blocks.

    Redirects are not followed. Certificates are checked against the system's
    authorities, or those of SSL_CERT_FILE.

    Raises:
        OSError, ValueError, jwt.PyJWTError: it can't be read.
    """
    if "://" in source:
        # Only for its transport: what it caches, and when, is decided here.
        return jwt.PyJWKClient(source, cache_jwk_set=False, timeout=timeout_s).fetch_data()
    return json.loads(Path(source).expanduser().read_bytes())


class SigningKeys:
    """The issuer's public keys, kept up to date.

    Args:
        clock: monotonic seconds.
        read: blocks, in a thread of its own, for the JSON of a source and a time-out in seconds.
    """

    def __init__(
        self,
        settings: JwtSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        read: Callable[[str, float], Any] = read_key_set,
    ) -> None:
        assert settings.jwks is not None
        self._settings = settings
        self._source = settings.jwks
        self._clock = clock
        self._read_source = read
        self._keys: dict[str, Any] = {}
        self._read_at = 0.0
        self._next_read_at = 0.0
        self._problem: str | None = None
        self._reading: asyncio.Task[None] | None = None
        self._upkeep: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the keys, and keep reading them until `close`.

        Raises:
            ConfigError: they can't be read.
        """
        await self.refresh()
        if not self._keys:
            raise ConfigError(
                f"auth.jwt.jwks: no signing keys from {self._source}: {self._problem}",
                metadata={"keys": "auth.jwt.jwks"},
            )
        self._upkeep = asyncio.create_task(self._keep(), name="signing-keys")

    async def close(self) -> None:
        """Stop reading."""
        tasks = [task for task in (self._upkeep, self._reading) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def find(self, kid: str) -> Any | None:
        """The key of an id, or None if the issuer has none.

        Raises:
            Unavailable: the keys are too old to be trusted and can't be read again.
        """
        if self._is_too_old():
            await self.refresh()
            if self._is_too_old():
                raise Unavailable(
                    "the keys that tokens are signed with can't be read",
                    reason="SIGNING_KEYS_UNAVAILABLE",
                    retry_after_s=self._settings.jwks_retry_s,
                )
        if kid not in self._keys:
            await self.refresh()
        return self._keys.get(kid)

    async def refresh(self) -> None:
        """Read the keys again, unless that was done or tried less than `jwks_retry_s` ago; keeps the old on failure."""
        if self._reading is None or self._reading.done():
            if self._clock() < self._next_read_at:
                return
            self._next_read_at = self._clock() + self._settings.jwks_retry_s
            self._reading = asyncio.create_task(self._read(), name="read-signing-keys")
        # All who wait share the read; one who leaves does not end it.
        await asyncio.shield(self._reading)

    def _is_too_old(self) -> bool:
        return not self._keys or self._clock() - self._read_at > self._settings.jwks_max_age_s

    async def _read(self) -> None:
        timeout_s = self._settings.jwks_timeout_s
        try:
            # The socket's time-out starts anew with every byte.
            async with asyncio.timeout(2 * timeout_s):
                document = await asyncio.to_thread(self._read_source, self._source, timeout_s)
            keys = usable_keys(document, self._settings.algorithm)
        except Exception as error:  # a URL can fail in many ways, none of which may end the upkeep
            self._problem = f"{type(error).__name__}: {error}"
            _log.error("signing_keys_unreadable", source=self._source, problem=self._problem)
            return
        if keys.keys() != self._keys.keys():
            _log.info("signing_keys_read", source=self._source, count=len(keys))
        self._keys, self._read_at, self._problem = keys, self._clock(), None

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._settings.jwks_ttl_s if self._problem is None else self._settings.jwks_retry_s)
            await self.refresh()


class JwtVerifier:
    """Turns a token into a principal.

    The issuer, the audience and the signature must be right, `exp` and `iat` be
    there, and `exp`, `iat` and `nbf` agree with the clock. Then

    - `tenant_claim` is the tenant;
    - `role_claim` says whose token it is: with `service` it may name any user of
      the tenant and `sub` is its name in traces; with `user`, or without the
      claim, `sub` is the one user it may name. Any other value is refused;
    - `permissions_claim` holds the permissions; without it there are none.

    Args:
        keys: started by the caller.
        clock: Unix time in seconds.
    """

    def __init__(self, settings: JwtSettings, keys: SigningKeys, *, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._keys = keys
        self._clock = clock

    async def principal(self, token: str) -> Principal:
        """The caller.

        Raises:
            Unauthenticated: TOKEN_EXPIRED, TOKEN_NOT_YET_VALID, or TOKEN_INVALID,
                whose `metadata` names the `claim` or header that is wrong.
            Unavailable: the signing keys can't be had.
        """
        algorithm = self._settings.algorithm
        try:
            header = jwt.get_unverified_header(token)
        except Exception:  # what comes from outside may trip anything in the parser
            raise _invalid("the token is not a JSON Web Token") from None
        # Before the key is looked up: only a token that could hold may cause a read.
        if header.get("alg") != algorithm:
            raise _invalid(f"the token must be signed with {algorithm}", "alg")
        kid = header.get("kid")
        if not isinstance(kid, str) or not kid:
            raise _invalid("the token does not say which key it is signed with", "kid")
        key = await self._keys.find(kid)
        if key is None:
            raise _invalid("the issuer has no such key", "kid")
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                # Times are checked below, by our clock.
                options={
                    "require": list(_REQUIRED),
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "enforce_minimum_key_length": True,
                },
            )
        except jwt.MissingRequiredClaimError as error:
            raise _invalid(f"the token has no {error.claim}", error.claim) from None
        except jwt.InvalidAudienceError:
            raise _invalid("the token is for another audience", "aud") from None
        except jwt.InvalidIssuerError:
            raise _invalid("the token is of another issuer", "iss") from None
        except Exception:
            raise _invalid("the token's signature or form is wrong") from None
        return self._principal_of(claims)

    def _principal_of(self, claims: Mapping[str, Any]) -> Principal:
        settings, now = self._settings, self._clock()
        expires_at, issued_at = _time(claims, "exp"), _time(claims, "iat")
        if expires_at + settings.leeway_s <= now:
            raise Unauthenticated("the token has expired: send a new one", reason="TOKEN_EXPIRED")
        for claim in ("nbf", "iat"):
            if claim in claims and _time(claims, claim) - settings.leeway_s > now:
                raise Unauthenticated(
                    "the token does not hold yet, or a clock is wrong",
                    reason="TOKEN_NOT_YET_VALID",
                    metadata={"claim": claim},
                )
        if expires_at - issued_at > settings.max_lifetime_s:
            raise _invalid(f"the token lives longer than the {settings.max_lifetime_s:g} s allowed here", "exp")
        role, subject = claims.get(settings.role_claim, "user"), claims["sub"]
        if role not in ("user", "service"):
            raise _invalid(f"{settings.role_claim} must be `user` or `service`", settings.role_claim)
        if role == "service" and not _SERVICE.fullmatch(subject):
            raise _invalid("sub must be 1 to 255 printable ASCII characters", "sub")
        tenant = claims.get(settings.tenant_claim)
        try:
            # What can't stand in a name could never be asked for.
            parse("tenant", f"tenants/{tenant}" if isinstance(tenant, str) else "")
        except InvalidArgument:
            raise _invalid(f"{settings.tenant_claim} must name a tenant", settings.tenant_claim) from None
        if role == "user":
            try:
                parse("user", f"tenants/t/personas/p/users/{subject}")
            except InvalidArgument:
                raise _invalid("sub must be a user id, as in names", "sub") from None
        return Principal(
            key_id=f"jwt:{subject}" if role == "service" else "jwt",
            tenant=str(tenant),
            user=None if role == "service" else subject,
            permissions=_permissions(claims, settings.permissions_claim),
            expires_at=expires_at + settings.leeway_s,
        )


def _time(claims: Mapping[str, Any], claim: str) -> float:
    """A NumericDate (RFC 7519, section 2): Unix time in seconds, maybe with a fraction."""
    value = claims[claim]
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _LAST_TIME:
        return float(value)
    raise _invalid(f"{claim} must be a time", claim)


def _permissions(claims: Mapping[str, Any], claim: str) -> tuple[str, ...]:
    value = claims.get(claim, ())
    if isinstance(value, str):
        return tuple(value.split())
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise _invalid(f"{claim} must be a list of text, or text with spaces between", claim)


def _invalid(message: str, claim: str = "") -> Unauthenticated:
    return Unauthenticated(message, reason="TOKEN_INVALID", metadata={"claim": claim} if claim else None)


async def open_tokens(settings: JwtSettings, stack: AsyncExitStack) -> JwtVerifier | None:
    """What verifies tokens, with its keys read; None if JWT is not configured. Closed by `stack`.

    Raises:
        ConfigError: the keys can't be read.
    """
    if not settings.enabled:
        return None
    keys = SigningKeys(settings)
    stack.push_async_callback(keys.close)
    await keys.start()
    return JwtVerifier(settings, keys)
