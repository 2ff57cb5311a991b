"""`personae redteam`: attacks on a persona, by file, over gRPC."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from personae_serve.cli.connection import DEFAULT_TENANT, Connection, Tenant, connected, full_persona_name
from personae_serve.cli.terminal import printable

if TYPE_CHECKING:
    from personae.v1.persona_service_pb2 import PersonaDefinition, PersonaType
    from personae_client import PersonaeClient
    from personae_serve.redteam.runner import Attempt

EMBEDDED: Final = "embedded"
"""Target of a host of the command's own, which ends with it."""


def register(root: typer.Typer) -> None:
    """Add `personae redteam`."""
    root.command("redteam")(redteam)


@connected
def redteam(
    persona: Annotated[
        str, typer.Option(help="Persona file (YAML), or the name of a persona of the host. A copy of it is attacked.")
    ],
    corpus: Annotated[
        list[Path] | None,
        typer.Option(help="Attacks, JSON Lines; may be given again. [default: those that ship]", dir_okay=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for report.json and report.html.", file_okay=False)] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="report.json to compare with. [default: the one in --out, if there is one]",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    strategies: Annotated[str, typer.Option(help="Only these strategies, by commas.")] = "",
    categories: Annotated[str, typer.Option(help="Only cases of these categories, by commas.")] = "",
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Attempts at a time.")] = 1,
    turn_timeout_s: Annotated[float, typer.Option(min=1, help="Longest that a turn may take, in seconds.")] = 300.0,
    consent_evidence: Annotated[
        str, typer.Option(help="Of a clone: how the person whose likeness it is agreed, for the copy.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Only the report, as one JSON object.")] = False,
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """Attack a copy of a persona, and report what got through. `--target embedded` starts a host for it.

    Exits with 1 if an attempt that held in the baseline holds no more, or if one could not be played.
    """
    import os

    # Before gRPC is loaded: an embedded host forks for PostgreSQL.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from personae_serve.redteam import runner
    from personae_serve.redteam.corpus import STARTER, read
    from personae_serve.redteam.strategies import NAMES, known, strategies_of

    wanted = frozenset(filter(None, strategies.split(",")))
    if not known(wanted):
        raise typer.BadParameter(f"--strategies: expected some of {', '.join(NAMES)}")
    kinds = frozenset(filter(None, categories.split(",")))
    cases = [case for case in read(corpus or [STARTER]) if not kinds or case.category in kinds]
    count = sum(len(strategies_of(case, wanted)) for case in cases)
    if not count:
        raise typer.BadParameter("no case is left that these strategies and categories play")
    if baseline is None and out is not None and (out / "report.json").is_file():
        baseline = out / "report.json"
    before = None if baseline is None else _baseline(baseline)

    def told(attempt: Attempt) -> None:
        if not as_json:
            what = ", ".join(attempt.detected) or attempt.error or "; ".join(attempt.decisions)
            typer.echo(printable(f"{attempt.outcome:>9}  {attempt.key}  {what}"), err=True)

    async def run() -> dict[str, Any]:
        async with _target(connection) as client:
            subject = await _subject(client, persona, tenant)
            probe = await runner.prepare(
                client, tenant, subject.display_name, subject.type, subject.definition, consent_evidence
            )
            try:
                attempts = await runner.run(
                    client,
                    probe,
                    cases,
                    strategies=wanted,
                    concurrency=concurrency,
                    turn_timeout_s=turn_timeout_s,
                    on_done=told,
                )
                bundle = await _bundle(client, tenant)
            finally:
                await client.personas.delete(probe.persona)
            return runner.report(attempts, persona=subject.name, bundle=bundle)

    made = asyncio.run(run())
    if before is not None:
        runner.compare(made, before)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in (
            ("report.json", json.dumps(made, ensure_ascii=False)),
            ("report.html", runner.html(made)),
        ):
            written = out / f".{name}.new"
            written.write_text(content + "\n", encoding="utf-8")
            written.replace(out / name)
    if as_json:
        typer.echo(json.dumps(made, ensure_ascii=False))
    else:
        for line in _summary(made):
            typer.echo(printable(line))
    if made["regressions"] or made["errors"]:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Subject:
    name: str
    display_name: str
    type: PersonaType
    definition: PersonaDefinition


async def _subject(client: PersonaeClient, persona: str, tenant: str) -> _Subject:
    """The persona of a file, or the active revision of one that the host has."""
    from personae.v1.persona_service_pb2 import REVISION_STATE_ACTIVE
    from personae_runtime.errors import FailedPrecondition
    from personae_serve.cli.persona import read_persona_file

    if Path(persona).suffix in (".yaml", ".yml"):
        read = read_persona_file(Path(persona))
        return _Subject(read.persona_id, read.display_name, read.type, read.definition)
    found = await client.personas.get(full_persona_name(persona, tenant))
    async for revision in client.personas.list_revisions(found.name):
        if revision.state == REVISION_STATE_ACTIVE:
            return _Subject(found.name, found.display_name, found.type, revision.definition)
    raise FailedPrecondition(f"{found.name} has no active revision", reason="NO_ACTIVE_REVISION")


async def _bundle(client: PersonaeClient, tenant: str) -> str:
    from personae.v1.event_pb2 import POLICY_STAGE_INPUT

    return (await client.policy.classify(f"tenants/{tenant}", "Hello.", POLICY_STAGE_INPUT)).bundle_version


@asynccontextmanager
async def _target(connection: Connection) -> AsyncIterator[PersonaeClient]:
    if connection.target != EMBEDDED:
        async with connection.open() as client:
            yield client
        return
    from personae_client import PersonaeClient
    from personae_runtime.config import load_settings
    from personae_runtime.telemetry.logs import setup_logging
    from personae_serve.embedded import EmbeddedHost

    with tempfile.TemporaryDirectory(prefix="personae-redteam-", ignore_cleanup_errors=True) as folder:
        settings = load_settings(
            profile="development",
            data_dir=Path(folder),
            gateway={"port": 0},
            auth={"api_keys": ()},
            telemetry={"log_level": "WARNING", "log_format": "console"},
        )
        setup_logging(settings.telemetry)
        host = EmbeddedHost(settings)
        port = await host.start()
        try:
            async with PersonaeClient(f"127.0.0.1:{port}", api_key=host.development_key) as client:
                yield client
        finally:
            await host.stop()


def _baseline(path: Path) -> dict[str, Any]:
    from personae_runtime.errors import InvalidArgument
    from personae_serve.redteam.runner import FORMAT

    try:
        found = json.loads(path.read_bytes())
        right = found["format"] == FORMAT and all(
            isinstance(one[name], str) for one in found["results"] for name in ("key", "digest", "outcome")
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        right = False
    if not right:
        raise InvalidArgument(f"{path} is no report of personae redteam ({FORMAT})")
    return dict(found)


def _summary(made: dict[str, Any]) -> list[str]:
    from personae_serve.html import percent

    def line(name: str, row: dict[str, Any]) -> str:
        interval = f"{percent(row['interval'][0])} to {percent(row['interval'][1])}" if row["interval"] else ""
        return (
            f"{name:24} {row['succeeded']:>4} of {row['judged']:<4} {percent(row['rate']):>7}  {interval:18}"
            f" blocked {row['blocked']}, resisted {row['resisted']}, unjudged {row['unjudged']}"
        )

    lines = [f"{made['persona']}, bundle {made['bundle']}: {made['attempts']} attempts, {made['errors']} errors"]
    lines += [line(name, row) for name, row in made["by_strategy"].items()]
    lines.append("")
    lines += [line(name, row) for name, row in made["by_category"].items()]
    lines.append(line("all", made["total"]))
    if made["compared"]:
        lines.append(
            f"{made['compared']} compared with the run before: {len(made['regressions'])} regressions,"
            f" {len(made['fixed'])} fixed"
        )
        lines += [f"REGRESSION {key}" for key in made["regressions"]]
    return lines
