"""`personae content`: what personas said, as files with signed manifests, and their verification without a server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from personae_serve.cli.connection import Connection, connected
from personae_serve.cli.terminal import printable

if TYPE_CHECKING:
    from personae.v1.content_service_pb2 import ExportContentResponse

app = typer.Typer(help="What personas said, as files with signed manifests (C2PA).", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add `personae content`."""
    root.add_typer(app, name="content")


@app.callback()
def _group() -> None:
    pass


def sidecar(file: Path) -> Path:
    """Where the manifest of a file lies."""
    return file.with_name(f"{file.name}.c2pa")


@app.command()
@connected
def export(
    name: Annotated[str, typer.Argument(help="Full name of a turn, or of a session.")],
    file: Annotated[Path, typer.Argument(help="To be written; its manifest lies beside it, .c2pa.", dir_okay=False)],
    *,
    connection: Connection,
) -> None:
    """Write the reply of a turn, or a session's transcript, and its manifest."""

    async def run() -> ExportContentResponse:
        async with connection.open() as client:
            return await client.content.export(name)

    found = asyncio.run(run())
    file.write_bytes(found.content)
    sidecar(file).write_bytes(found.manifest)
    typer.echo(
        f"{found.media_type}, {len(found.content)} bytes; check it with: personae content verify {file}", err=True
    )


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="An exported file.", exists=True, dir_okay=False)],
    manifest: Annotated[
        Path | None,
        typer.Option(help="Its manifest. [default: the file's name and .c2pa]", exists=True, dir_okay=False),
    ] = None,
    trust: Annotated[
        Path | None,
        typer.Option(help="PEM file of authorities (`personae content authority`).", exists=True, dir_okay=False),
    ] = None,
) -> None:
    """Check an exported file, without a server. Exits with 1 if anything does not hold."""
    from cryptography import x509

    from personae_runtime.provenance.verify import verify as check

    beside = sidecar(file) if manifest is None else manifest
    if not beside.is_file():
        raise typer.BadParameter(f"there is no {beside}; name the manifest with --manifest")
    authorities = ""
    if trust is not None:
        try:
            authorities = trust.read_text(encoding="ascii")
            x509.load_pem_x509_certificates(authorities.encode())
        except ValueError:
            raise typer.BadParameter(f"{trust} holds no certificates in PEM") from None
    found = check(file.read_bytes(), beside.read_bytes(), authorities)
    for problem in found.problems:
        typer.echo(printable(problem))
    if not found.holds:
        typer.echo(f"{file} does NOT hold.")
        raise typer.Exit(1)
    typer.echo(printable(f"{file}: holds; signed by {found.signer}, made by {found.generator}"))
    for key, value in sorted(found.label.items()):
        typer.echo(printable(f"  {key}: {value}"))
    if trust is None:
        typer.echo("Whoever signed it can have written it anew; give --trust to check who that is.", err=True)


@app.command()
def authority(
    config: Annotated[Path | None, typer.Option(help="TOML file.", envvar="PERSONAE_CONFIG", dir_okay=False)] = None,
) -> None:
    """Print the certificate that others must trust to trust this installation's manifests, PEM."""
    from personae_runtime.config import load_settings
    from personae_runtime.provenance.signing import ContentSigningUnavailable, identity_of

    identity = identity_of(load_settings(config))
    if identity is None:
        raise ContentSigningUnavailable("this host has no certificate to sign content with: set provenance.certificate")
    typer.echo(identity.authority.decode(), nl=False)
