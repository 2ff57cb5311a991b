"""Resource names (https://google.aip.dev/122): parsing and formatting, in one place."""

from __future__ import annotations

import re
from dataclasses import dataclass

from personae_runtime.errors import InvalidArgument

_TENANT = r"tenants/(?P<tenant>[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)"
_PERSONA = _TENANT + r"/personas/(?P<persona>[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?)"
_SESSION = _PERSONA + r"/sessions/(?P<session>[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)"
# A user id is the product's own; anything without a slash or white space that fits a name.
_USER = _PERSONA + r"/users/(?P<user>[A-Za-z0-9._~@+:-]{1,128})"

_PATTERNS = {
    "tenant": re.compile(_TENANT),
    "persona": re.compile(_PERSONA),
    "revision": re.compile(_PERSONA + r"/revisions/(?P<revision>[1-9][0-9]{0,8})"),
    "session": re.compile(_SESSION),
    "turn": re.compile(_SESSION + r"/turns/(?P<turn>[A-Za-z0-9][A-Za-z0-9_-]{0,63})"),
    "user": re.compile(_USER),
    "document": re.compile(_PERSONA + r"/documents/(?P<document>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"),
    "operation": re.compile(_TENANT + r"/operations/(?P<operation>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"),
    "decision": re.compile(_TENANT + r"/decisions/(?P<decision>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"),
    "rollout": re.compile(_TENANT + r"/rollout"),
    "bundle": re.compile(_TENANT + r"/bundles/(?P<bundle>[0-9a-f]{32})"),
    "kill_switch": re.compile(_TENANT + r"/killSwitches/(?P<kill_switch>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"),
    "appeal": re.compile(_TENANT + r"/appeals/(?P<appeal>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"),
    "review": re.compile(_TENANT + r"/reviews/(?P<review>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"),
    "profile": re.compile(_USER + r"/profile"),
    "memory": re.compile(_USER + r"/memories/(?P<memory>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"),
}
_EXAMPLES = {
    "tenant": "tenants/acme",
    "persona": "tenants/acme/personas/nadia",
    "revision": "tenants/acme/personas/nadia/revisions/3",
    "session": "tenants/acme/personas/nadia/sessions/s-1",
    "turn": "tenants/acme/personas/nadia/sessions/s-1/turns/t1",
    "user": "tenants/acme/personas/nadia/users/u-17",
    "document": "tenants/acme/personas/nadia/documents/018f2c1e-6f2a-7cc1-9d7e-0f5f6d2f9b11",
    "operation": "tenants/acme/operations/018f2c1e-6f2a-7cc1-9d7e-0f5f6d2f9b11",
    "decision": "tenants/acme/decisions/018f2c1e-6f2a-7cc1-9d7e-0f5f6d2f9b11",
    "rollout": "tenants/acme/rollout",
    "bundle": "tenants/acme/bundles/6f2a7cc19d7e0f5f6d2f9b11018f2c1e",
    "kill_switch": "tenants/acme/killSwitches/018f2c1e-6f2a-7cc1-9d7e-0f5f6d2f9b11",
    "appeal": "tenants/acme/appeals/018f2c1e-6f2a-7cc1-9d7e-0f5f6d2f9b11",
    "review": "tenants/acme/reviews/018f2c1e-6f2a-7cc1-9d7e-0f5f6d2f9b11",
    "profile": "tenants/acme/personas/nadia/users/u-17/profile",
    "memory": "tenants/acme/personas/nadia/users/u-17/memories/018f2c1e-6f2a-7cc1-9d7e-0f5f6d2f9b11",
}


@dataclass(frozen=True, slots=True)
class Name:
    """A parsed resource name; segments that the kind does not have are empty."""

    tenant: str
    persona: str = ""
    user: str = ""
    revision: int = 0
    session: str = ""
    turn: str = ""
    memory: str = ""
    document: str = ""
    operation: str = ""
    decision: str = ""
    appeal: str = ""
    review: str = ""
    bundle: str = ""
    kill_switch: str = ""

    def persona_name(self) -> str:
        return f"tenants/{self.tenant}/personas/{self.persona}"

    def revision_name(self) -> str:
        return f"{self.persona_name()}/revisions/{self.revision}"

    def user_name(self) -> str:
        return f"{self.persona_name()}/users/{self.user}"

    def session_name(self) -> str:
        return f"{self.persona_name()}/sessions/{self.session}"


def parse(kind: str, value: str, *, field: str = "name") -> Name:
    """Parse `value` as a name of `kind` (a key of _PATTERNS).

    Raises:
        InvalidArgument: it is not one; the violation names `field` and shows an example.
    """
    match = _PATTERNS[kind].fullmatch(value)
    if match is None:
        shown = value if len(value) <= 80 else value[:77] + "..."
        raise InvalidArgument(
            f"{field} is not a {kind} name: {shown!r}; expected something like {_EXAMPLES[kind]!r}",
            reason="NAME_INVALID",
            violations=((field, f"expected a {kind} name such as {_EXAMPLES[kind]!r}"),),
        )
    groups = match.groupdict()
    return Name(
        tenant=groups["tenant"],
        persona=groups.get("persona") or "",
        user=groups.get("user") or "",
        revision=int(groups.get("revision") or 0),
        session=groups.get("session") or "",
        turn=groups.get("turn") or "",
        memory=groups.get("memory") or "",
        document=groups.get("document") or "",
        operation=groups.get("operation") or "",
        decision=groups.get("decision") or "",
        appeal=groups.get("appeal") or "",
        review=groups.get("review") or "",
        bundle=groups.get("bundle") or "",
        kill_switch=groups.get("kill_switch") or "",
    )
