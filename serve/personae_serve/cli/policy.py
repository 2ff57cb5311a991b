"""`personae policy`: bundles of rules, from the file to the rollout."""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from personae_serve.cli.connection import DEFAULT_TENANT, Connection, Tenant, connected
from personae_serve.cli.terminal import printable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from personae.v1.bundle_pb2 import Bundle, BundleDiff, BundleSource, Rollout, ShadowDecision
    from personae_runtime.policy.policy import Policy

app = typer.Typer(help="Bundles of policy rules: sign, check, compare, publish, roll out.", no_args_is_help=True)

SHIPPED, IN_FORCE, RECORDED = "shipped", "in-force", "recorded"
BundleFile = Annotated[Path, typer.Argument(help="The bundle, YAML.", dir_okay=False)]
BundleName = Annotated[str, typer.Argument(help="Name of a published bundle, or its id.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")]
Limit = Annotated[int, typer.Option(min=1, max=1000, help="Newest turns, and newest decisions, at most.")]
Hours = Annotated[float | None, typer.Option("--hours", min=0, help="Only of the last so many hours.")]


def register(root: typer.Typer) -> None:
    """Add `personae policy`."""
    root.add_typer(app, name="policy")


# -- the file -----------------------------------------------------------------


@app.command()
def keygen(key: Annotated[Path, typer.Argument(help="Where the private key goes; never overwritten.")]) -> None:
    """Make a key to sign bundles with, and print the public one for `policy.trusted_keys`."""
    from personae_runtime.policy.signing import make_key

    typer.echo(base64.b64encode(make_key(key)).decode())


@app.command()
def sign(
    file: BundleFile,
    key: Annotated[Path, typer.Option("--key", help="Private key, PEM.")],
) -> None:
    """Sign a bundle: writes FILE.sig beside it."""
    typer.echo(str(sign_file(file, key)))


def sign_file(file: Path, key: Path) -> Path:
    """Write the signature of a file's bytes beside it; where.

    Raises:
        ConfigError: the file or the key can't be read, or the signature not be written.
    """
    from personae_runtime.errors import ConfigError
    from personae_runtime.policy.signing import SUFFIX, read_key

    path = file.with_name(file.name + SUFFIX)
    signature = read_key(key).sign(_read(file))
    try:
        path.write_text(base64.b64encode(signature).decode() + "\n", encoding="ascii")
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error.strerror}") from None
    return path


@app.command()
def verify(
    file: BundleFile,
    public_key: Annotated[
        str | None, typer.Option("--public-key", help="Trust this key alone. [default: `policy.trusted_keys`]")
    ] = None,
) -> None:
    """Say whether a host of this configuration would take a bundle by its signature; exit with 1 if not."""
    from personae_runtime.config import load_settings
    from personae_runtime.policy.signing import Trust, read_signature

    if public_key is None:
        trust = Trust.of(load_settings())
    else:
        # As a host would read it, so that a malformed key is told as one.
        trust = Trust.of(load_settings(policy={"trusted_keys": [public_key], "allow_unsigned": False}))
    signature = read_signature(file)
    signer = trust.check(_read(file), signature, str(file))
    if signer:
        typer.echo(f"signed by {signer}")
    else:
        why = "not signed" if signature is None else "signature not checked, as policy.trusted_keys is empty"
        typer.echo(f"{why}; this configuration allows it")


@app.command()
def lint(
    file: BundleFile,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong with a bundle: rules that never decide, gaps in tests and reasons; exit with 1 for errors."""
    from personae_runtime.config import load_settings
    from personae_runtime.policy.lint import Level
    from personae_runtime.policy.lint import lint as find
    from personae_runtime.policy.scorers import NgramScorer

    tester = NgramScorer.load()
    running = load_settings().policy.scorers
    of_others = {"cascade": "harm", "language": "other_language"}
    categories = {*tester.categories, *(category for name, category in of_others.items() if name in running)}
    found = find(_read(file), str(file), tester, sorted(categories))
    if as_json:
        shown = [{"level": f.level, "code": f.code, "where": f.where, "message": f.message} for f in found]
        typer.echo(json.dumps({"findings": shown}))
    else:
        for one in found:
            typer.echo(printable(f"{one.level} {one.code} {one.where + ': ' if one.where else ''}{one.message}"))
    if (strict and found) or any(one.level is Level.ERROR for one in found):
        raise typer.Exit(1)


@app.command("test")
def run_tests(file: BundleFile, as_json: AsJson = False) -> None:
    """Run all tests of a bundle, that of the bundle it extends included; exit with 1 if any fails."""
    from personae_runtime.policy.bundle import parse_bundle, shipped_bundle
    from personae_runtime.policy.scorers import NgramScorer

    bundle = parse_bundle(_read(file), str(file), None, base=shipped_bundle())
    failures = list(bundle.failures(NgramScorer.load()))
    tests = sum(len(rule.spec.tests) * len(rule.spec.stages) for rule in bundle.rules)
    if as_json:
        counts = {"version": bundle.version, "rules": len(bundle.rules), "tests": tests}
        typer.echo(json.dumps({**counts, "failures": failures}))
    else:
        for failure in failures:
            typer.echo(printable(failure))
        typer.echo(f"{bundle.version}: {len(bundle.rules)} rules, {tests} tests, {len(failures)} failed")
    if failures:
        raise typer.Exit(1)


# -- comparing ----------------------------------------------------------------


@app.command()
@connected
def diff(
    old: Annotated[str, typer.Argument(help=f"A file, `{SHIPPED}`, or on a server `{IN_FORCE}` or a bundle's name.")],
    new: Annotated[str, typer.Argument(help="The same.")],
    traffic: Annotated[str, typer.Option(help=f"JSON Lines of what to judge, or `{RECORDED}`: what a server keeps.")],
    limit: Limit = 200,
    hours: Hours = None,
    as_json: AsJson = False,
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """Show what two bundles decide otherwise of the same traffic. A file is judged here, without a server."""
    if traffic == RECORDED:
        found = _replay(old, new, limit, hours, connection, tenant)
    else:
        found = asyncio.run(_compare_here(old, new, Path(traffic)))
    _show_diff(found, as_json)


@app.command()
@connected
def replay(
    new: Annotated[str, typer.Argument(help=f"A file, `{SHIPPED}`, or the name of a published bundle.")],
    limit: Limit = 200,
    hours: Hours = None,
    as_json: AsJson = False,
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """Show what a bundle would decide otherwise than the one in force of what a server keeps."""
    _show_diff(_replay(IN_FORCE, new, limit, hours, connection, tenant), as_json)


def _replay(old: str, new: str, limit: int, hours: float | None, connection: Connection, tenant: str) -> BundleDiff:
    start = None if hours is None else datetime.now(UTC) - timedelta(hours=hours)

    async def run() -> BundleDiff:
        async with connection.open() as client:
            return await client.policy.replay(
                f"tenants/{tenant}", _source(old, tenant), _source(new, tenant), limit=limit, start=start
            )

    return asyncio.run(run())


def _source(value: str, tenant: str) -> BundleSource:
    from personae.v1.bundle_pb2 import BundleSource

    if value == SHIPPED:
        return BundleSource(shipped=True)
    if value == IN_FORCE:
        return BundleSource(in_force=True)
    if value.startswith("tenants/"):
        return BundleSource(name=value)
    return BundleSource(content=_read(Path(value)))


async def _compare_here(old: str, new: str, traffic: Path) -> BundleDiff:
    from contextlib import AsyncExitStack

    from personae_runtime.config import load_settings
    from personae_runtime.ledger.bundles import trial
    from personae_runtime.policy.bundle import shipped_bundle
    from personae_runtime.policy.replay import Case, compare, read_traffic
    from personae_serve.gateway.bundles import bundle_diff
    from personae_serve.stores import open_policy

    async def cases() -> AsyncIterator[Case]:
        for case in read_traffic(traffic):
            yield case

    async with AsyncExitStack() as stack:
        own = await open_policy(load_settings(), stack)

        def load(value: str) -> Policy:
            if value == IN_FORCE or value.startswith("tenants/"):
                raise typer.BadParameter(f"{value} is a server's; with a traffic file give files or `{SHIPPED}`")
            return trial(shipped_bundle() if value == SHIPPED else _read(Path(value)), own)

        return bundle_diff(await compare(load(old), load(new), cases()))


def _show_diff(found: BundleDiff, as_json: bool) -> None:
    from google.protobuf import json_format

    if as_json:
        shown = json_format.MessageToDict(
            found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        typer.echo(json.dumps(shown))
        return
    from rich.console import Console
    from rich.table import Table

    from personae.v1.event_pb2 import PolicyAction, PolicyStage

    def action(value: Any, rule: str) -> str:
        word = PolicyAction.Name(value).removeprefix("POLICY_ACTION_").lower()
        return f"{word} ({rule})" if rule else word

    console = Console()
    console.print(f"old {found.old_version}\nnew {found.new_version}", markup=False, highlight=False)
    if found.changes:
        table = Table("stage", "old", "new", "decisions", "for example", box=None, pad_edge=False)
        for change in found.changes:
            table.add_row(
                PolicyStage.Name(change.stage).removeprefix("POLICY_STAGE_").lower(),
                action(change.old_action, change.old_rule_id),
                action(change.new_action, change.new_rule_id),
                str(change.count),
                change.examples[0],
            )
        console.print(table)
    if found.rules:
        table = Table("rule that matched", "old", "new", box=None, pad_edge=False)
        for rule in found.rules:
            table.add_row(rule.rule_id, str(rule.old_count), str(rule.new_count))
        console.print(table)
    typer.echo(
        f"{found.changed} changed of {found.by_text + found.by_signals}:"
        f" {found.by_text} judged by words, {found.by_signals} by recorded signals"
    )
    for why, count in sorted(found.undetermined.items()):
        typer.echo(f"{count} undetermined: {why}")


# -- publishing ---------------------------------------------------------------


@app.command()
@connected
def publish(file: BundleFile, *, connection: Connection, tenant: Tenant = DEFAULT_TENANT) -> None:
    """Publish a bundle with its signature, FILE.sig. It judges nobody before it is rolled out."""
    from personae_runtime.policy.signing import read_signature

    content, signature = _read(file), read_signature(file)

    async def run() -> Bundle:
        async with connection.open() as client:
            return await client.policy.publish_bundle(f"tenants/{tenant}", content, signature or b"")

    typer.echo(printable(_bundle_line(asyncio.run(run()))))


@app.command()
@connected
def rollout(
    name: Annotated[str, typer.Argument(help="Name of a published bundle or its id; `own` is the host's, for --full.")],
    shadow: Annotated[bool, typer.Option("--shadow", help="Judge beside, and record only.")] = False,
    percent: Annotated[int, typer.Option(min=0, max=99, help="Judge this share of sessions.")] = 0,
    full: Annotated[bool, typer.Option("--full", help="Judge all sessions.")] = False,
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """Roll a published bundle out: --shadow, then --percent, then --full."""
    from personae.v1.bundle_pb2 import ROLLOUT_STAGE_FULL, ROLLOUT_STAGE_PERCENTAGE, ROLLOUT_STAGE_SHADOW

    if [shadow, bool(percent), full].count(True) != 1:
        raise typer.BadParameter("give one of --shadow, --percent and --full")
    stage = ROLLOUT_STAGE_SHADOW if shadow else ROLLOUT_STAGE_FULL if full else ROLLOUT_STAGE_PERCENTAGE

    async def run() -> Rollout:
        async with connection.open() as client:
            bundle = "" if name == "own" else _full(name, tenant)
            return await client.policy.set_rollout(f"tenants/{tenant}", bundle, stage, percent=percent)

    _show_rollout(asyncio.run(run()))


@app.command()
@connected
def rollback(*, connection: Connection, tenant: Tenant = DEFAULT_TENANT) -> None:
    """Drop the candidate; where there is none, go back to the bundle before. At once, on every host."""

    async def run() -> Rollout:
        async with connection.open() as client:
            return await client.policy.rollback(f"tenants/{tenant}")

    _show_rollout(asyncio.run(run()))


@app.command()
@connected
def status(*, connection: Connection, tenant: Tenant = DEFAULT_TENANT) -> None:
    """Show which bundles judge a tenant's sessions, and what is published."""

    async def run() -> tuple[Rollout, list[Bundle]]:
        async with connection.open() as client:
            found = await client.policy.rollout(f"tenants/{tenant}")
            return found, [one async for one in client.policy.list_bundles(f"tenants/{tenant}")]

    found, bundles = asyncio.run(run())
    _show_rollout(found)
    for bundle in bundles:
        typer.echo(printable(f"published {bundle.create_time.ToJsonString()}  {_bundle_line(bundle)}"))


@app.command()
@connected
def shadow(
    name: BundleName,
    everything: Annotated[bool, typer.Option("--all", help="Those too that do not differ.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """List what a bundle in shadow would have decided otherwise, newest first."""
    from personae.v1.event_pb2 import PolicyAction, PolicyStage

    async def run() -> list[ShadowDecision]:
        found: list[ShadowDecision] = []
        async with connection.open() as client:
            async for one in client.policy.list_shadow_decisions(_full(name, tenant), differing=not everything):
                found.append(one)
                if len(found) == limit:
                    break
        return found

    def words(action: Any, reason: str) -> str:
        return f"{PolicyAction.Name(action).removeprefix('POLICY_ACTION_').lower()}{f' ({reason})' if reason else ''}"

    for one in asyncio.run(run()):
        stage = PolicyStage.Name(one.stage).removeprefix("POLICY_STAGE_").lower()
        decided = words(one.live_action, one.live_reason_code)
        would = words(one.action, one.reason_code)
        line = f"{one.create_time.ToJsonString()}  {stage}  {decided}, would be {would}  {','.join(one.rule_ids)}"
        typer.echo(printable(f"{line}  {one.persona}"))


def _show_rollout(found: Rollout) -> None:
    from personae.v1.bundle_pb2 import RolloutStage

    lines = [f"stable    {found.stable or 'own'}  {found.stable_version}"]
    if found.candidate:
        stage = RolloutStage.Name(found.stage).removeprefix("ROLLOUT_STAGE_").lower()
        share = f" {found.percent} %" if found.percent else ""
        lines.append(f"candidate {found.candidate}  {found.candidate_version}  {stage}{share}")
        if found.shadow_decisions:
            lines.append(f"in shadow {found.shadow_decisions} decisions, {found.shadow_differing} of them differ")
    if found.problem:
        lines.append(f"PROBLEM   {found.problem}")
    for line in lines:
        typer.echo(printable(line))


def _bundle_line(bundle: Bundle) -> str:
    return f"{bundle.name}  {bundle.version}  {f'signed by {bundle.key_id}' if bundle.key_id else 'not signed'}"


def _full(name: str, tenant: str) -> str:
    return name if name.startswith("tenants/") else f"tenants/{tenant}/bundles/{name}"


def _read(path: Path) -> bytes:
    from personae_runtime.errors import ConfigError

    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from None
