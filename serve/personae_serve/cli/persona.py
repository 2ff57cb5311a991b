"""`personae persona`: publish personas from files."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from personae_serve.cli.connection import DEFAULT_TENANT, Connection, Tenant, connected

if TYPE_CHECKING:
    from personae.v1.persona_service_pb2 import PersonaDefinition, PersonaType, VerifiedClaim
    from personae_client import PersonaeClient

app = typer.Typer(help="Publish personas from files, and show them.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add `personae persona`."""
    root.add_typer(app, name="persona")


@app.command()
@connected
def apply(
    file: Annotated[Path, typer.Argument(help="Persona file, YAML.", exists=True, dir_okay=False)],
    consent_evidence: Annotated[
        str,
        typer.Option(help="How the person whose likeness it is agreed; records their consent. A clone needs it once."),
    ] = "",
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """Create a persona if it is missing, and publish a revision if the file differs from the active one."""
    persona = read_persona_file(file)

    async def run() -> Applied:
        async with connection.open() as client:
            return await apply_persona(client, tenant, persona, consent_evidence=consent_evidence)

    applied = asyncio.run(run())
    typer.echo(f"{applied.revision} is {'published' if applied.published else 'active already'}.")


@app.command("list")
@connected
def list_(
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """List the personas of a tenant."""
    from rich.console import Console
    from rich.table import Table

    from personae.v1.persona_service_pb2 import PersonaType
    from personae_serve.cli.terminal import printable

    table = Table("persona", "name", "type", "active revision", box=None, pad_edge=False)

    async def run() -> None:
        async with connection.open() as client:
            async for persona in client.personas.list(f"tenants/{tenant}"):
                table.add_row(
                    persona.name.rsplit("/", 1)[-1],
                    printable(persona.display_name),
                    PersonaType.Name(persona.type).removeprefix("PERSONA_TYPE_").lower(),
                    persona.active_revision.rsplit("/", 1)[-1],
                )

    asyncio.run(run())
    Console(soft_wrap=True).print(table)


@app.command()
@connected
def show(
    persona: Annotated[str, typer.Argument(help="Id of the persona.")],
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """Show a persona, and what is verified of it in its active revision."""
    from rich.console import Console
    from rich.table import Table

    from personae.v1.persona_service_pb2 import REVISION_STATE_ACTIVE, ClaimKind, PersonaType
    from personae_serve.cli.terminal import printable

    async def run() -> tuple[Any, Any]:
        async with connection.open() as client:
            name = f"tenants/{tenant}/personas/{persona}"
            found = await client.personas.get(name)
            async for revision in client.personas.list_revisions(name):
                if revision.state == REVISION_STATE_ACTIVE:
                    return found, revision.definition
            return found, None

    found, definition = asyncio.run(run())
    typer.echo(f"{printable(found.display_name)} ({found.name})")
    typer.echo(f"type      {PersonaType.Name(found.type).removeprefix('PERSONA_TYPE_').lower()}")
    typer.echo(f"revision  {found.active_revision.rsplit('/', 1)[-1] or 'none'}")
    if definition is None:
        return
    typer.echo(f"\n{printable(definition.card)}")
    if not definition.verified_claims:
        return
    table = Table("claim", "kind", "fact", "names", "verified by", "on", "until", "evidence", box=None, pad_edge=False)
    for claim in definition.verified_claims:
        table.add_row(
            claim.claim_id,
            ClaimKind.Name(claim.kind).removeprefix("CLAIM_KIND_").lower(),
            printable(claim.statement),
            printable(claim.subject),
            printable(claim.verified_by),
            _day(claim, "verify_time"),
            _day(claim, "expire_time"),
            printable(claim.evidence),
        )
    typer.echo()
    Console(soft_wrap=True).print(table)


def _day(claim: VerifiedClaim, field: str) -> str:
    """A time of a claim, to the minute; empty if it has none."""
    return f"{getattr(claim, field).ToDatetime():%Y-%m-%d %H:%M}" if claim.HasField(cast("Any", field)) else ""


@dataclass(frozen=True, slots=True)
class PersonaFile:
    """A persona as a file states it."""

    persona_id: str
    display_name: str
    type: PersonaType
    definition: PersonaDefinition


@dataclass(frozen=True, slots=True)
class Applied:
    """What `apply_persona` did: the revision in force, and whether it is new."""

    revision: str
    published: bool


def read_persona_file(path: Path) -> PersonaFile:
    """Read a persona file.

    YAML with `id`, `display_name`, `type`, and the fields of the API's
    PersonaDefinition (`card`, `style`, `exemplars`, `generation`, `verified_claims`);
    enum values are written short: `type: companion`, `formality: casual`.

    Raises:
        ConfigError: the file can't be read or breaks the format; says where.
    """
    import yaml
    from google.protobuf import json_format

    from personae.v1.persona_service_pb2 import ClaimKind, EmojiUse, Formality, PersonaDefinition, PersonaType
    from personae_runtime.errors import ConfigError

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The persona file {path} can't be read: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"The persona file {path} must be a mapping with id, display_name, type and card.")
    content: dict[str, Any] = dict(raw)
    head: dict[str, str] = {}
    for key, example in (("id", "nadia"), ("display_name", "Nadia"), ("type", "assistant"), ("card", "You are ...")):
        value = content.get(key)
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"The persona file {path} lacks `{key}`; expected text such as `{key}: {example}`.")
        head[key] = value
    for key in ("id", "display_name", "type"):
        del content[key]

    def enum_value(kind: Any, prefix: str, key: str, word: object) -> str:
        names = [name for name in kind.keys() if not name.endswith("_UNSPECIFIED")]  # noqa: SIM118 - no dict
        name = prefix + str(word).upper()
        if name not in names:
            words = ", ".join(one.removeprefix(prefix).lower() for one in names)
            raise ConfigError(f"The persona file {path}: `{key}: {word}` is unknown; expected one of {words}.")
        return name

    kind = enum_value(PersonaType, "PERSONA_TYPE_", "type", head["type"])
    style = content.get("style")
    if isinstance(style, dict):
        style = content["style"] = dict(style)
        for key, enum, prefix in (("formality", Formality, "FORMALITY_"), ("emoji", EmojiUse, "EMOJI_USE_")):
            if key in style:
                style[key] = enum_value(enum, prefix, f"style.{key}", style[key])
    claims = content.get("verified_claims")
    if isinstance(claims, list):
        claims = content["verified_claims"] = [dict(one) if isinstance(one, dict) else one for one in claims]
        for number, claim in enumerate(claims):
            if isinstance(claim, dict) and "kind" in claim:
                key = f"verified_claims[{number}].kind"
                claim["kind"] = enum_value(ClaimKind, "CLAIM_KIND_", key, claim["kind"])
            if isinstance(claim, dict) and isinstance(claim.get("expire_time"), date):
                claim["expire_time"] = _rfc3339(claim["expire_time"])
    try:
        definition = json_format.ParseDict(content, PersonaDefinition())
    except json_format.ParseError as error:
        raise ConfigError(f"The persona file {path} breaks the format: {error}") from None
    return PersonaFile(head["id"], head["display_name"], cast("PersonaType", PersonaType.Value(kind)), definition)


def _rfc3339(day: date) -> str:
    """A date or time of a YAML file as JSON has it; without a zone it is UTC."""
    time = day if isinstance(day, datetime) else datetime(day.year, day.month, day.day)
    return (time.replace(tzinfo=UTC) if time.tzinfo is None else time).isoformat()


async def apply_persona(
    client: PersonaeClient, tenant: str, persona: PersonaFile, *, consent_evidence: str = ""
) -> Applied:
    """Bring a persona of a tenant to the state of its file.

    Raises:
        PersonaeError: the server refuses; what was done before stays.
    """
    from personae.v1.persona_service_pb2 import REVISION_STATE_ACTIVE
    from personae.v1.policy_service_pb2 import CONSENT_PURPOSE_LIKENESS, CONSENT_STATE_GRANTED
    from personae_client import NotFoundError

    name = f"tenants/{tenant}/personas/{persona.persona_id}"
    try:
        existing = await client.personas.get(name)
    except NotFoundError:
        await client.personas.create(
            f"tenants/{tenant}", persona.persona_id, display_name=persona.display_name, type=persona.type
        )
    else:
        if existing.display_name != persona.display_name:
            await client.personas.update(name, display_name=persona.display_name, etag=existing.etag)
    if consent_evidence:
        await client.consents.record(name, CONSENT_PURPOSE_LIKENESS, CONSENT_STATE_GRANTED, evidence=consent_evidence)
    async for revision in client.personas.list_revisions(name, page_size=1):
        if revision.state == REVISION_STATE_ACTIVE and _same(revision.definition, persona.definition):
            return Applied(revision.name, published=False)
        break
    published = await client.personas.publish_revision(name, persona.definition)
    return Applied(published.name, published=True)


def _same(one: PersonaDefinition, other: PersonaDefinition) -> bool:
    """Whether two definitions say the same: an absent section is empty, and who verified a claim no part of it."""
    from personae.v1.persona_service_pb2 import PersonaDefinition

    filled = []
    for definition in (one, other):
        copy = PersonaDefinition()
        copy.CopyFrom(definition)
        copy.style.SetInParent()
        copy.generation.SetInParent()
        for claim in copy.verified_claims:
            claim.ClearField("verified_by")
            claim.ClearField("verify_time")
        filled.append(copy)
    return filled[0] == filled[1]
