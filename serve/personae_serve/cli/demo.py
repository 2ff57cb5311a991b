"""`personae demo`: the whole of it in a minute, on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from rich.console import Console

    from personae_client import PersonaeClient, TurnStream
    from personae_runtime.config import Settings

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
USER = "marta"
QUESTIONS = (
    "What did I say I am allergic to?",
    "Are you a real person?",
)


def register(root: typer.Typer) -> None:
    """Add `personae demo`."""
    root.command("demo")(demo)


def demo(
    data_dir: Annotated[
        Path, typer.Option(help="Where the demo keeps its state, so that the second run starts in seconds.")
    ] = Path(".personae/demo"),
) -> None:
    """Start a host, publish personas, import a chat history and hold a conversation over gRPC."""
    from personae_runtime.config import load_settings
    from personae_runtime.telemetry.logs import setup_logging
    from personae_serve.cli.up import run

    settings = load_settings(
        profile="development",
        data_dir=data_dir.resolve(),
        gateway={"port": 0},
        telemetry={"log_level": "WARNING", "log_format": "console"},
    )
    setup_logging(settings.telemetry)
    run(_demo(settings))


async def _demo(settings: Settings) -> None:
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from rich.console import Console

    from personae_client import PersonaeClient
    from personae_serve.embedded import EmbeddedHost

    console = Console(highlight=False)
    begun = time.monotonic()
    spans = InMemorySpanExporter()
    host = EmbeddedHost(settings, span_processors=(SimpleSpanProcessor(spans),))
    console.print("[bold]1. Start[/] gateway, llama.cpp, PostgreSQL, index and policy in one process")
    port = await host.start()
    console.print(f"   serving on 127.0.0.1:{port} after {time.monotonic() - begun:.1f} s\n")
    try:
        async with PersonaeClient(f"127.0.0.1:{port}", api_key=host.development_key) as client:
            await _publish(console, client)
            persona = "tenants/demo/personas/nadia"
            await _import(console, client, f"{persona}/users/{USER}")
            await _converse(console, client, persona)
            _trace(console, spans.get_finished_spans())
    finally:
        stopping = time.monotonic()
        await host.stop()
        console.print(f"[bold]6. Stopped[/] cleanly in {time.monotonic() - stopping:.1f} s")


async def _publish(console: Console, client: PersonaeClient) -> None:
    from personae_serve.cli.persona import apply_persona, read_persona_file

    console.print("[bold]2. Publish[/] three personas")
    for file in sorted((SAMPLES / "personas").glob("*.yaml")):
        persona = read_persona_file(file)
        applied = await apply_persona(
            client,
            "demo",
            persona,
            # The samples are ours, so the likeness is too.
            consent_evidence="sample persona of this project",
        )
        console.print(f"   {applied.revision}  {persona.display_name}")
    console.print()


async def _import(console: Console, client: PersonaeClient, parent: str) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from personae_runtime.memory.history import read_history
    from personae_serve.cli.imports import store, wait_until_indexed

    history = read_history(SAMPLES / "history" / "marta.jsonl")
    console.print(f"[bold]3. Import[/] a chat history: {len(history.items)} messages of {', '.join(history.speakers)}")
    columns = (TextColumn("   {task.description:9}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console) as bars:
        storing = bars.add_task("storing", total=len(history.items))
        await store(client, parent, history.items, lambda: bars.advance(storing))
        indexing = bars.add_task("indexing", total=len(history.items))

        def on_pending(pending: int, most: int) -> None:
            bars.update(indexing, completed=most - pending, total=max(most, 1))

        await wait_until_indexed(client, parent, on_pending)
        bars.update(indexing, completed=1, total=1)
    console.print()


async def _converse(console: Console, client: PersonaeClient, persona: str) -> None:
    session = await client.sessions.create(persona, user=f"{persona}/users/{USER}")
    console.print("[bold]4. Converse[/] over gRPC")
    console.print(f"   [yellow]disclosure[/]  {session.disclosure}\n")
    for question in QUESTIONS:
        console.print(f"   [bold cyan]{USER}[/]  {question}")
        await _show(console, client.sessions.converse(session.name, question))
    await client.sessions.close(session.name)


async def _show(console: Console, stream: TurnStream) -> None:
    from rich.markup import escape

    from personae.v1.event_pb2 import PolicyAction
    from personae_serve.cli.terminal import printable

    notes: list[str] = []
    console.print("   [bold green]nadia[/]  ", end="")
    async for event in stream:
        kind = event.WhichOneof("event")
        if kind == "text_delta":
            console.print(escape(printable(event.text_delta.text)), end="", soft_wrap=True)
        elif kind == "memory_citation":
            cited = event.memory_citation
            day = cited.occur_time.ToDatetime().date()
            notes.append(f'remembers  {day} {cited.speaker}: "{cited.quote}"')
        elif kind == "policy_event":
            told = event.policy_event
            action = PolicyAction.Name(told.action).removeprefix("POLICY_ACTION_").lower()
            notes.append(f"policy     {action} {told.category} {told.reason_code}  ({told.decision})")
        elif kind == "notice":
            notes.append(f"notice     {event.notice.text}")
        elif kind == "usage":
            used = event.usage
            notes.append(
                f"tokens     {used.input_tokens} in, {used.cached_input_tokens} of them cached,"
                f" {used.output_tokens} out"
            )
        elif kind == "latency":
            took = event.latency
            notes.append(
                f"latency    own work {_ms(took.queue)}, first token {_ms(took.ttft)},"
                f" first release {_ms(took.first_release)}"
            )
    console.print()
    for note in notes:
        console.print(f"     [dim]{escape(printable(note))}[/]", soft_wrap=True)
    console.print()


def _ms(duration: Any) -> str:
    return f"{duration.ToMilliseconds()} ms"


def _trace(console: Console, spans: Sequence[ReadableSpan]) -> None:
    """The spans of the first turn, as a trace viewer would show them."""
    from rich.table import Table

    roots = [span for span in spans if span.name.endswith("/Converse")]
    console.print("[bold]5. Trace[/] of the first turn, by stage")
    if not roots:
        return
    root = min(roots, key=lambda span: span.start_time or 0)
    table = Table("stage", "starts at", "takes", box=None, pad_edge=False)
    members = [span for span in spans if _trace_id(span) == _trace_id(root)]
    for span in sorted(members, key=lambda one: one.start_time or 0):
        start, end = span.start_time or 0, span.end_time or 0
        table.add_row(
            f"   {span.name}", f"{(start - (root.start_time or 0)) / 1e6:.1f} ms", f"{(end - start) / 1e6:.1f} ms"
        )
    console.print(table)
    console.print()


def _trace_id(span: ReadableSpan) -> int:
    context = span.get_span_context()
    return 0 if context is None else context.trace_id
