"""`personae review`: people decide on appealed decisions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from personae_serve.cli.connection import DEFAULT_TENANT, Connection, Tenant, connected
from personae_serve.cli.terminal import printable

if TYPE_CHECKING:
    from personae.v1.policy_service_pb2 import PolicyServiceExplainResponse
    from personae.v1.review_service_pb2 import BundleDraft, Review, ReviewOutcome

app = typer.Typer(help="Decide on appealed decisions.", no_args_is_help=True)

ReviewName = Annotated[str, typer.Argument(help="Name of the review, or its id.")]
ReasonCode = Annotated[str, typer.Option(help="Your reason in upper snake case, such as QUOTED_SPEECH.")]
Note = Annotated[str, typer.Option(help="What the person is told: what was decided and why.")]


def register(root: typer.Typer) -> None:
    """Add `personae review`."""
    root.add_typer(app, name="review")


@app.command("list")
@connected
def list_(
    overdue: Annotated[bool, typer.Option("--overdue", help="Only those past their time.")] = False,
    closed: Annotated[bool, typer.Option("--all", help="Resolved and withdrawn ones too.")] = False,
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """List reviews in the order of the queue."""
    from personae.v1.review_service_pb2 import REVIEW_STATE_OPEN, REVIEW_STATE_UNSPECIFIED

    state = REVIEW_STATE_UNSPECIFIED if closed else REVIEW_STATE_OPEN

    async def run() -> list[Review]:
        async with connection.open() as client:
            return [one async for one in client.reviews.list(f"tenants/{tenant}", state=state, overdue=overdue)]

    for review in asyncio.run(run()):
        typer.echo(printable(_line(review)))


@app.command("next")
@connected
def next_(
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """Take the next review, and show what it is about."""
    _take("", connection, tenant)


@app.command()
@connected
def show(
    name: ReviewName,
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """Take this review, or renew your time with it, and show what it is about."""
    _take(_full(name, tenant), connection, tenant)


@app.command()
@connected
def uphold(
    name: ReviewName,
    reason_code: ReasonCode,
    note: Note,
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """Say that the decision was right."""
    _resolve(name, "REVIEW_OUTCOME_UPHOLD", reason_code, note, connection, tenant)


@app.command()
@connected
def overturn(
    name: ReviewName,
    reason_code: ReasonCode,
    note: Note,
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """Say that the decision was wrong."""
    _resolve(name, "REVIEW_OUTCOME_OVERTURN", reason_code, note, connection, tenant)


@app.command()
@connected
def modify(
    name: ReviewName,
    reason_code: ReasonCode,
    note: Note,
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """Say that something had to be done, but not this."""
    _resolve(name, "REVIEW_OUTCOME_MODIFY", reason_code, note, connection, tenant)


@app.command()
@connected
def draft(
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """Print what overturned decisions ask of the next bundle, as YAML."""

    async def run() -> BundleDraft:
        async with connection.open() as client:
            return await client.reviews.bundle_draft(f"tenants/{tenant}")

    typer.echo(printable(asyncio.run(run()).yaml), nl=False)


def _take(name: str, connection: Connection, tenant: str) -> None:
    from personae_serve.cli.decision import lines_of

    async def run() -> tuple[Review, PolicyServiceExplainResponse] | None:
        async with connection.open() as client:
            review = await client.reviews.lease(f"tenants/{tenant}", review=name)
            return None if review is None else (review, await client.policy.explain(review.decision))

    taken = asyncio.run(run())
    if taken is None:
        typer.echo("Nothing in the queue is for you.")
        return
    review, explained = taken
    lines = [_line(review), f"yours until {review.lease_expire_time.ToJsonString()}"]
    if review.escalated:
        lines.append("escalated by the decision itself: nobody appealed")
    else:
        lines.append(f"the person says: {review.statement}" if review.statement else "the person gave no reason")
        lines.append(f"judged text: {review.judged_text}" if review.judged_text else "the judged text is not shared")
    for line in [*lines, *lines_of(explained)]:
        typer.echo(printable(line))


def _resolve(name: str, outcome: str, reason_code: str, note: str, connection: Connection, tenant: str) -> None:
    from personae.v1.review_service_pb2 import REVIEW_STATE_OPEN, ReviewOutcome

    value: ReviewOutcome = getattr(ReviewOutcome, "Value")(outcome)  # noqa: B009 - typed as a plain int

    async def run() -> Review:
        async with connection.open() as client:
            return await client.reviews.resolve(_full(name, tenant), value, reason_code=reason_code, note=note)

    review = asyncio.run(run())
    typer.echo(
        f"{review.name} waits for another reviewer." if review.state == REVIEW_STATE_OPEN else printable(_line(review))
    )


def _full(name: str, tenant: str) -> str:
    return name if name.startswith("tenants/") else f"tenants/{tenant}/reviews/{name}"


def _line(review: Review) -> str:
    from personae.v1.review_service_pb2 import REVIEW_STATE_RESOLVED, ReviewOutcome, ReviewState

    state = ReviewState.Name(review.state).removeprefix("REVIEW_STATE_").lower()
    if review.state == REVIEW_STATE_RESOLVED:
        outcome = ReviewOutcome.Name(review.outcome).removeprefix("REVIEW_OUTCOME_").lower()
        return f"{state}: {outcome} ({review.reason_code})  {review.name}"
    due = f"{'OVERDUE' if review.overdue else 'due'} {review.due_time.ToJsonString()}"
    held = f"  with {review.reviewer}" if review.reviewer else ""
    urgent = "  ESCALATED" if review.escalated else ""
    return f"{state}  priority {review.priority:.3f}{urgent}  {due}{held}  {review.name}"
