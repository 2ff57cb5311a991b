"""`personae report`: what a tenant tells the public, and the sample behind it."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from personae_serve.cli.audit import PublicKey, decoded
from personae_serve.cli.connection import DEFAULT_TENANT, Connection, Tenant, connected
from personae_serve.cli.terminal import printable

if TYPE_CHECKING:
    from personae.v1.policy_service_pb2 import PolicyServiceExplainResponse
    from personae.v1.review_service_pb2 import NextSampledDecisionResponse, SampleVerdict

app = typer.Typer(help="Transparency reports: made, sampled, verified.", no_args_is_help=True)

From = Annotated[str, typer.Option("--from", help="A date or a time (ISO 8601); UTC unless it says otherwise.")]
To = Annotated[str, typer.Option("--to", help="The same, excluded.")]


# A busy tenant's year takes a while to count.
_TIMEOUT_S = 600.0


class Verdict(StrEnum):
    """What a reviewer can say of a drawn decision."""

    CORRECT = "correct"
    FALSE_POSITIVE = "false-positive"
    UNDECIDED = "undecided"


def register(root: typer.Typer) -> None:
    """Add `personae report`."""
    root.add_typer(app, name="report")


@app.command()
@connected
def transparency(
    start: From,
    end: Annotated[str, typer.Option("--to", help="The same, excluded. [default: now]")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="The document, for `personae report verify`.")] = False,
    as_html: Annotated[bool, typer.Option("--html", help="A page to publish.")] = False,
    entries: Annotated[
        bool, typer.Option("--entries", help="With the sample's log entries: for auditors, not for publishing.")
    ] = False,
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """Print the transparency report of a time."""
    from personae_serve.transparency import document, html

    if as_json and as_html:
        raise typer.BadParameter("give --json or --html, not both")
    begin, until = _time(start, "--from"), _time(end, "--to") if end else None

    async def run() -> dict[str, Any]:
        async with connection.open() as client:
            found = await client.with_options(timeout_s=_TIMEOUT_S).audit.transparency_report(
                f"tenants/{tenant}", begin, until, include_entries=entries
            )
            return document(found)

    made = asyncio.run(run())
    if as_json:
        typer.echo(json.dumps(made, ensure_ascii=False))
    elif as_html:
        typer.echo(html(made))
    else:
        for line in _lines(made):
            typer.echo(printable(line))


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="A report as --json wrote it.", exists=True, dir_okay=False)],
    log: Annotated[
        Path | None,
        typer.Option(help="The exported audit log: draws and counts again.", exists=True, dir_okay=False),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            help="A checkpoint known from before, which the log must contain; may be given again.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    public_key: PublicKey = None,
) -> None:
    """Check a transparency report, without a server. Exits with 1 if anything does not hold."""
    from personae_serve.transparency import verify as check

    if checkpoint and log is None:
        raise typer.BadParameter("--checkpoint is checked against the log: give --log too")
    key = decoded(public_key)
    try:
        made = json.loads(file.read_bytes())
        pinned = [path.read_bytes().decode() for path in checkpoint or []]
    except (ValueError, RecursionError):
        typer.echo(f"{file} does NOT hold: not JSON, or a checkpoint is no text.")
        raise typer.Exit(1) from None
    with ExitStack() as stack:
        lines = None if log is None else stack.enter_context(log.open("rb"))
        checked = check(made, public_key=key, pinned=pinned, log=lines)
    for problem in checked.problems:
        typer.echo(printable(problem))
    if checked.problems:
        typer.echo(f"{file} does NOT hold.")
        raise typer.Exit(1)
    typer.echo(f"{made['tenant']}: holds; {checked.proved} sampled decisions are in the log")
    if checked.unproved:
        typer.echo(f"{checked.unproved} sampled decisions are older than the log")
    if checked.counted:
        typer.echo(f"the sample is what the log gives; counted again: {', '.join(checked.counted)}")
    else:
        typer.echo("That the sample was drawn fairly and the counts are right is shown by --log only.", err=True)
    if key is None:
        typer.echo(
            "Signed by the key that the report itself names; give --public-key to check whose that is.", err=True
        )


@app.command("next")
@connected
def next_(
    start: From,
    end: To,
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """Show the next decision of a time's sample that nobody has judged."""
    from personae_serve.cli.decision import lines_of

    begin, until = _time(start, "--from"), _time(end, "--to")

    async def run() -> tuple[NextSampledDecisionResponse, PolicyServiceExplainResponse | None]:
        async with connection.open() as client:
            found = await client.with_options(timeout_s=_TIMEOUT_S).reviews.next_sampled(
                f"tenants/{tenant}", begin, until
            )
            return found, await client.policy.explain(found.decision) if found.decision else None

    drawn, explained = asyncio.run(run())
    if explained is None:
        typer.echo("Every decision of the sample is judged.")
        return
    shown = f"the message: {drawn.message}" if drawn.message else "the judged text is not shown"
    for line in (f"{drawn.remaining_count} to judge", shown, *lines_of(explained)):
        typer.echo(printable(line))


@app.command()
@connected
def judge(
    decision: Annotated[str, typer.Argument(help="Name of the decision, or its id.")],
    verdict: Annotated[Verdict, typer.Argument(help="What you say of it.")],
    reason_code: Annotated[str, typer.Option(help="Your reason in upper snake case, such as IDIOM.")],
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """Say whether a decision of the sample was right. It changes nothing for anybody."""
    from personae.v1.review_service_pb2 import SampleVerdict
    from personae_serve.cli.decision import full_decision_name

    name = f"SAMPLE_VERDICT_{verdict.value.replace('-', '_').upper()}"
    value: SampleVerdict = getattr(SampleVerdict, "Value")(name)  # noqa: B009 - typed as a plain int

    async def run() -> str:
        async with connection.open() as client:
            return (
                await client.reviews.judge_sampled(full_decision_name(decision, tenant), value, reason_code)
            ).decision

    typer.echo(f"{asyncio.run(run())}: {verdict.value}")


def _time(text: str, option: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{option} {text!r} is no date or time, such as 2026-10-01") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _lines(made: dict[str, Any]) -> list[str]:
    from personae_serve.html import percent
    from personae_serve.transparency import FIGURES

    def told(value: Any) -> str:
        if value is None:
            return "suppressed"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = [f"{made['tenant']}, {made['start']} to {made['end']}"]
    lines += [f"{told(made[name]):>12}  {words}" for name, words in FIGURES.items()]
    for dimension, rows in made["tables"].items():
        lines.append(f"by {dimension}")
        lines += [f"{told(row['count']):>12}  {row['key'] or 'not known'}" for row in rows]
    sample = made["sample"]
    if sample is not None:
        lines.append(
            f"sample of {len(sample['items'])}: {sample['correct']} correct, {sample['false_positive']} false"
            f" positives, {sample['undecided']} undecided"
        )
        if sample["false_positive_rate"] is not None:
            low, high = sample["interval"]
            rate = percent(sample["false_positive_rate"])
            lines.append(f"rate of false positives {rate}, 95 % interval {percent(low)} to {percent(high)}")
    return lines
