"""Which server a command talks to, and as whom."""

from __future__ import annotations

import getpass
import re
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from personae_client import PersonaeClient

Target = Annotated[
    str | None,
    typer.Option(help="Server, as HOST:PORT. [default: the host configured on this machine]", envvar="PERSONAE_TARGET"),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        help="API key. [default: the development key of the host on this machine]",
        envvar="PERSONAE_API_KEY",
        show_envvar=True,
    ),
]
Tenant = Annotated[str, typer.Option(help="Tenant of the persona.", envvar="PERSONAE_TENANT")]
User = Annotated[str | None, typer.Option(help="Who talks. [default: your login name]")]

DEFAULT_TENANT = "demo"
"""The tenant of the development key."""


def connect(target: str | None, api_key: str | None) -> PersonaeClient:
    """A client of the chosen server; call it within a running event loop.

    Raises:
        ConfigError: the configuration, needed for what was not given, is wrong.
        typer.BadParameter: the key would travel in the clear.
    """
    from personae_client import PersonaeClient
    from personae_runtime.config import load_settings

    if target is None or api_key is None:
        settings = load_settings()
        host = f"[{settings.gateway.host}]" if ":" in settings.gateway.host else settings.gateway.host
        target = target or f"{host}:{settings.gateway.port}"
        key_file = settings.data_dir / "development-key"
        if api_key is None and key_file.is_file():
            api_key = key_file.read_text(encoding="ascii").strip()
    try:
        return PersonaeClient(target, api_key=api_key)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def full_persona_name(persona: str, tenant: str) -> str:
    """`nadia` or a full name → the full name."""
    return persona if persona.startswith("tenants/") else f"tenants/{tenant}/personas/{persona}"


def user_or_login(user: str | None) -> str:
    """The given user id, or the login name in the characters that an id may have."""
    return user or re.sub(r"[^A-Za-z0-9._~@+:-]", "-", getpass.getuser())
