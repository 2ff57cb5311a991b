"""Who calls, and what they may do: API key or token → principal, method → permission.

Deny by default: a method that is not in PERMISSIONS can't be called.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from personae_runtime.config import ApiKey, Settings
from personae_runtime.errors import ConfigError, PermissionDenied, Unauthenticated
from personae_runtime.names import Name
from personae_runtime.sessions.views import Expiry

PUBLIC = "public"
"""Permission of methods that need no key."""

VERIFY_CLAIMS = "claims.verify"
"""Permission to put claims into a definition, beside that to publish it: no `personas.*` has it."""

PERMISSIONS: Mapping[str, str] = {
    "/personae.v1.PersonaService/CreatePersona": "personas.create",
    "/personae.v1.PersonaService/GetPersona": "personas.get",
    "/personae.v1.PersonaService/ListPersonas": "personas.list",
    "/personae.v1.PersonaService/UpdatePersona": "personas.update",
    "/personae.v1.PersonaService/DeletePersona": "personas.delete",
    "/personae.v1.PersonaService/UndeletePersona": "personas.delete",
    "/personae.v1.PersonaService/PublishRevision": "personas.publish",
    "/personae.v1.PersonaService/ListRevisions": "personas.get",
    "/personae.v1.PersonaService/WithdrawRevision": "personas.withdraw",
    "/personae.v1.SessionService/CreateSession": "sessions.create",
    "/personae.v1.SessionService/GetSession": "sessions.get",
    "/personae.v1.SessionService/ListSessions": "sessions.list",
    "/personae.v1.SessionService/CloseSession": "sessions.close",
    "/personae.v1.SessionService/ListTurns": "sessions.get",
    "/personae.v1.SessionService/Converse": "sessions.converse",
    "/personae.v1.SessionService/Attach": "sessions.converse",
    "/personae.v1.SessionService/CancelTurn": "sessions.converse",
    "/personae.v1.MemoryService/ListMemories": "memories.list",
    "/personae.v1.MemoryService/SearchMemories": "memories.list",
    "/personae.v1.MemoryService/Explain": "memories.list",
    "/personae.v1.MemoryService/CreateMemory": "memories.create",
    "/personae.v1.MemoryService/GetMemory": "memories.list",
    "/personae.v1.MemoryService/UpdateMemory": "memories.update",
    "/personae.v1.MemoryService/ForgetMemory": "memories.forget",
    "/personae.v1.MemoryService/ExportMemories": "memories.export",
    "/personae.v1.MemoryService/EraseMemories": "memories.erase",
    "/personae.v1.MemoryService/GetProfile": "memories.list",
    "/personae.v1.CorpusService/CreateDocument": "documents.create",
    "/personae.v1.CorpusService/GetDocument": "documents.list",
    "/personae.v1.CorpusService/ListDocuments": "documents.list",
    "/personae.v1.CorpusService/DeleteDocument": "documents.delete",
    "/personae.v1.CorpusService/SearchPassages": "documents.list",
    "/personae.v1.PolicyService/Classify": "policy.classify",
    "/personae.v1.PolicyService/GetDecision": "decisions.get",
    "/personae.v1.PolicyService/ListDecisions": "decisions.list",
    "/personae.v1.PolicyService/Explain": "decisions.get",
    "/personae.v1.PolicyService/PublishBundle": "bundles.publish",
    "/personae.v1.PolicyService/GetBundle": "bundles.get",
    "/personae.v1.PolicyService/ListBundles": "bundles.list",
    "/personae.v1.PolicyService/GetRollout": "bundles.get",
    "/personae.v1.PolicyService/SetRollout": "bundles.rollout",
    "/personae.v1.PolicyService/RollbackRollout": "bundles.rollout",
    "/personae.v1.PolicyService/ListShadowDecisions": "bundles.list",
    "/personae.v1.PolicyService/ReplayBundle": "bundles.replay",
    "/personae.v1.PolicyService/CountCrisisReferrals": "decisions.count",
    "/personae.v1.PolicyService/CreateKillSwitch": "switches.throw",
    "/personae.v1.PolicyService/GetKillSwitch": "switches.list",
    "/personae.v1.PolicyService/ListKillSwitches": "switches.list",
    "/personae.v1.PolicyService/LiftKillSwitch": "switches.lift",
    "/personae.v1.ReviewService/AppealDecision": "appeals.create",
    "/personae.v1.ReviewService/GetAppeal": "appeals.get",
    "/personae.v1.ReviewService/LeaseReview": "reviews.resolve",
    "/personae.v1.ReviewService/ResolveReview": "reviews.resolve",
    "/personae.v1.ReviewService/ListReviews": "reviews.list",
    "/personae.v1.ReviewService/GetBundleDraft": "reviews.draft",
    "/personae.v1.ReviewService/NextSampledDecision": "reviews.resolve",
    "/personae.v1.ReviewService/JudgeSampledDecision": "reviews.resolve",
    "/personae.v1.ConsentService/RecordConsent": "consents.record",
    "/personae.v1.ConsentService/ListConsentEvents": "consents.list",
    "/personae.v1.AuditService/GetCheckpoint": "audit.get",
    "/personae.v1.AuditService/ListAuditEntries": "audit.list",
    "/personae.v1.AuditService/GetInclusionProof": "audit.get",
    "/personae.v1.AuditService/GetConsistencyProof": "audit.get",
    "/personae.v1.AuditService/ExportAuditLog": "audit.export",
    "/personae.v1.AuditService/GetTransparencyReport": "reports.get",
    "/personae.v1.ContentService/ExportContent": "content.export",
    "/google.longrunning.Operations/GetOperation": "operations.get",
    "/google.longrunning.Operations/WaitOperation": "operations.get",
    "/google.longrunning.Operations/ListOperations": "operations.list",
    "/google.longrunning.Operations/CancelOperation": "operations.cancel",
    "/google.longrunning.Operations/DeleteOperation": "operations.delete",
    "/grpc.health.v1.Health/Check": PUBLIC,
    "/grpc.health.v1.Health/List": PUBLIC,
    "/grpc.health.v1.Health/Watch": PUBLIC,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": PUBLIC,
}

_USER_PERMISSIONS = frozenset(
    {
        "personas.get",
        "sessions.create",
        "sessions.get",
        "sessions.list",
        "sessions.close",
        "sessions.converse",
        "memories.list",
        "memories.create",
        "memories.update",
        "memories.forget",
        "memories.export",
        "memories.erase",
        "operations.get",
        "decisions.get",
        "decisions.list",
        "appeals.create",
        "appeals.get",
        "consents.record",
        "consents.list",
        "content.export",
    }
)
"""The most a user token may do, whatever its key says: what is the person's own."""


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated caller.

    Attributes:
        key_id: name of the key, for logs and traces; of a token `jwt`, and a service's `jwt:{sub}`.
        tenant: the only tenant it may name.
        user: for a user token the only user it may name; None for a service token.
        permissions: "sessions.converse", "sessions.*" or "*".
        expires_at: when it ends to be the caller, Unix time in seconds; None is never.
    """

    key_id: str
    tenant: str
    user: str | None
    permissions: tuple[str, ...]
    expires_at: float | None = None

    def may(self, permission: str) -> bool:
        """True if the principal has the permission."""
        if self.user is not None and permission not in _USER_PERMISSIONS:
            return False
        service = permission.partition(".")[0]
        return any(held in ("*", permission, f"{service}.*") for held in self.permissions)

    def expiry(self) -> Expiry | None:
        """When streams of this caller end, on the running event loop's clock, and with what; None is never."""
        if self.expires_at is None:
            return None
        error = Unauthenticated(
            "the token has expired; the turn goes on: attach again with a new one", reason="TOKEN_EXPIRED"
        )
        return Expiry(asyncio.get_running_loop().time() + self.expires_at - time.time(), error)

    def require_tenant(self, name: Name) -> None:
        """Raise PermissionDenied unless the name is of the principal's tenant."""
        if name.tenant != self.tenant:
            raise PermissionDenied(
                f"the key speaks for tenant {self.tenant!r}, not {name.tenant!r}", reason="TENANT_MISMATCH"
            )

    def require_user(self, user: str) -> None:
        """Raise PermissionDenied if the principal is another user."""
        if self.user is not None and user != self.user:
            raise PermissionDenied("a user token may name its own user only", reason="USER_MISMATCH")


NOBODY = Principal("", "", None, ())
CALLER: ContextVar[Principal] = ContextVar("personae_caller", default=NOBODY)
"""The principal of the RPC that runs in this context."""


class TokenVerifier(Protocol):
    """Finds the principal of a signed token."""

    async def principal(self, token: str) -> Principal:
        """The caller.

        Raises:
            Unauthenticated: the token does not hold.
            Unavailable: whether it does can't be found out now.
        """
        ...


class Authenticator:
    """Finds the principal of a key by its SHA-256, or of a token; keys themselves are not kept."""

    def __init__(self, keys: Iterable[ApiKey], tokens: TokenVerifier | None = None) -> None:
        self._tokens = tokens
        self._principals = {
            bytes.fromhex(key.sha256): Principal(key.id, key.tenant, key.user, key.permissions) for key in keys
        }

    async def authenticate(self, metadata: Mapping[str, str]) -> Principal:
        """The caller.

        Raises:
            Unauthenticated: no credentials, or none that hold.
            Unavailable: the keys that tokens are signed with can't be had.
        """
        scheme, _, credential = metadata.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not credential:
            raise Unauthenticated(
                "send an API key or a token as metadata 'authorization: Bearer ...'", reason="CREDENTIALS_MISSING"
            )
        principal = self._principals.get(sha256(credential.encode()).digest())
        if principal is not None:
            return principal
        # RFC 7515, section 7.1: three parts with dots between.
        if self._tokens is not None and credential.count(".") == 2:
            return await self._tokens.principal(credential)
        raise Unauthenticated("the API key is not known here")


@dataclass(frozen=True, slots=True)
class AcceptedKeys:
    """The keys of a host; `development` is the generated one, "" if keys are configured."""

    keys: tuple[ApiKey, ...]
    development: str = ""
    new: bool = False


def accepted_keys(settings: Settings) -> AcceptedKeys:
    """The configured keys, or in a development profile without any, and without tokens, the generated one.

    Raises:
        ConfigError: nobody could call, and the profile is not development.
    """
    if settings.auth.api_keys or settings.auth.jwt.enabled:
        return AcceptedKeys(settings.auth.api_keys)
    if settings.profile != "development":
        raise ConfigError("auth.api_keys or auth.jwt is required outside a development profile")
    entry, key, new = development_key(settings.data_dir)
    return AcceptedKeys((entry,), key, new)


def development_key(data_dir: Path, tenant: str = "demo") -> tuple[ApiKey, str, bool]:
    """The development key: its entry, the key itself, and whether it was made just now.

    Kept in `<data_dir>/development-key`, readable by its owner only, so that the
    command line on this machine finds it.
    """
    path = data_dir / "development-key"
    made = not path.exists()
    if made:
        data_dir.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: a start that dies here leaves no empty key behind.
        descriptor, temporary = tempfile.mkstemp(prefix=".development-key.", dir=data_dir)
        with os.fdopen(descriptor, "w") as file:
            file.write("pk-dev-" + secrets.token_urlsafe(24))
        os.replace(temporary, path)
    key = path.read_text().strip()
    entry = ApiKey(id="development", sha256=sha256(key.encode()).hexdigest(), tenant=tenant, permissions=("*",))
    return entry, key, made
