"""Which server a command talks to, and as whom."""

from __future__ import annotations

import functools
import getpass
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from personae_client import PersonaeClient

Tenant = Annotated[str, typer.Option(help="Tenant of the persona.", envvar="PERSONAE_TENANT")]
User = Annotated[str | None, typer.Option(help="Who talks. [default: your login name]")]

DEFAULT_TENANT = "demo"
"""The tenant of the development key."""


@dataclass(frozen=True, slots=True)
class Connection:
    """Options of every command that talks to a server; `connected` gives them to one."""

    target: Annotated[
        str | None,
        typer.Option(
            help="Server, as HOST:PORT. [default: the host configured on this machine]", envvar="PERSONAE_TARGET"
        ),
    ] = None
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            help="API key. [default: the development key of the host on this machine]",
            envvar="PERSONAE_API_KEY",
            show_envvar=True,
        ),
    ] = None
    token: Annotated[
        str | None,
        typer.Option(
            help="Token of an identity provider, in place of an API key. Better in the environment than here.",
            envvar="PERSONAE_TOKEN",
            show_envvar=True,
        ),
    ] = None
    tls: Annotated[
        bool,
        typer.Option("--tls", help="Connect by TLS and trust public authorities. Any of the three below implies it."),
    ] = False
    ca: Annotated[
        Path | None,
        typer.Option("--ca", help="PEM file of the authorities to trust.", envvar="PERSONAE_CA", show_envvar=True),
    ] = None
    cert: Annotated[
        Path | None,
        typer.Option("--cert", help="PEM file of this client's certificate.", envvar="PERSONAE_CERT", show_envvar=True),
    ] = None
    key: Annotated[
        Path | None,
        typer.Option("--key", help="PEM file of the certificate's key.", envvar="PERSONAE_CERT_KEY", show_envvar=True),
    ] = None

    def open(self) -> PersonaeClient:
        """See `connect`."""
        return connect(**{field.name: getattr(self, field.name) for field in fields(self)})


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Connection` in place of its parameter `connection`."""
    options = inspect.signature(Connection, eval_str=True).parameters.values()
    own = inspect.signature(command, eval_str=True)
    at = list(own.parameters).index("connection")
    parameters = [p for p in own.parameters.values() if p.name != "connection"]
    parameters[at:at] = options

    @functools.wraps(command)
    def run(**given: Any) -> None:
        chosen = {option.name: given.pop(option.name) for option in options}
        command(connection=Connection(**chosen), **given)

    # Keyword only, so that an argument may follow an option that has a default.
    keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    run.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in keywords}
    return run


def connect(
    target: str | None,
    api_key: str | None,
    *,
    token: str | None = None,
    tls: bool = False,
    ca: Path | None = None,
    cert: Path | None = None,
    key: Path | None = None,
) -> PersonaeClient:
    """A client of the chosen server; call it within a running event loop.

    Raises:
        ConfigError: the configuration, needed for what was not given, is wrong.
        typer.BadParameter: the options contradict each other, a file can't be
            read, or everything would travel in the clear.
    """
    from personae_client import PersonaeClient, Tls
    from personae_runtime.config import load_settings

    if token is not None and api_key is not None:
        raise typer.BadParameter("give an API key or a token, not both (PERSONAE_API_KEY, PERSONAE_TOKEN)")
    if target is None or (api_key is None and token is None):
        settings = load_settings()
        if target is None:
            target = _own_target(settings.gateway.host, settings.gateway.port)
            tls = tls or settings.gateway.tls.certificate is not None
        key_file = settings.data_dir / "development-key"
        if api_key is None and token is None and key_file.is_file():
            api_key = key_file.read_text(encoding="ascii").strip()
    try:
        return PersonaeClient(
            target,
            api_key=api_key,
            token=None if token is None else (lambda: token),
            tls=Tls(ca, cert, key) if tls or ca or cert or key else None,
        )
    except ValueError as error:
        hint = " (--tls or --ca)" if "in the clear" in str(error) else ""
        raise typer.BadParameter(f"{error}{hint}") from None
    except OSError as error:
        raise typer.BadParameter(f"{error.filename} can't be read: {error.strerror}") from None


def _own_target(host: str, port: int) -> str:
    """Where this machine's host is reached that listens on an address."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def full_persona_name(persona: str, tenant: str) -> str:
    """`nadia` or a full name → the full name."""
    return persona if persona.startswith("tenants/") else f"tenants/{tenant}/personas/{persona}"


def user_or_login(user: str | None) -> str:
    """The given user id, or the login name in the characters that an id may have."""
    return user or re.sub(r"[^A-Za-z0-9._~@+:-]", "-", getpass.getuser())
