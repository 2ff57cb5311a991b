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
def detect(
    file: Annotated[Path, typer.Argument(help="A text: the words of one reply, UTF-8.", exists=True, dir_okay=False)],
    model: Annotated[str | None, typer.Option(help="Which model's. [default: the only one that marks]")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file.", envvar="PERSONAE_CONFIG", dir_okay=False)] = None,
) -> None:
    """Look for a model's watermark in a text, without a server. Exits with 1 if it is not found."""
    from personae_runtime.config import load_settings
    from personae_runtime.engines import watermark
    from personae_runtime.engines.models import hf_folder
    from personae_runtime.errors import ConfigError

    settings = load_settings(config)
    marking = {one.model: one.watermark_key for one in (settings.engine, *settings.cluster.models) if one.watermark_key}
    if not marking:
        raise ConfigError("no model has a watermark: set watermark_key of engine, or of an entry of cluster.models")
    if model is None and len(marking) == 1:
        [model] = marking
    if model is None or model not in marking:
        raise typer.BadParameter(f"give --model, one of those that have a watermark: {', '.join(marking)}")
    key = watermark.read_key(marking[model])
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise typer.BadParameter(f"{file} is not text in UTF-8") from None
    found = watermark.detect(watermark.tokens_of(text, hf_folder(model, settings.models_dir)), key)
    if found.found is None:
        typer.echo(f"{file}: nothing can be said of {found.tokens} tokens; it takes {watermark.MIN_TOKENS}")
        raise typer.Exit(1)
    typer.echo(f"{file}: the watermark of {model} {'is there' if found.found else 'was NOT found'}")
    typer.echo(f"  tokens counted: {found.tokens}")
    typer.echo(f"  mean score: {found.mean:.2f} (without the watermark 1.00)")
    typer.echo(f"  p-value: {found.p_value:.2g} (found at {watermark.FALSE_POSITIVES:g} and less)")
    if not found.found:
        typer.echo("A text that was edited, or in which the model had little choice, may have lost it.", err=True)
        raise typer.Exit(1)


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
