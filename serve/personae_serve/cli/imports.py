"""`personae import`: bring in what was said before."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from personae_serve.cli.connection import (
    DEFAULT_TENANT,
    Connection,
    Tenant,
    connected,
    full_persona_name,
)

if TYPE_CHECKING:
    from personae.v1.corpus_service_pb2 import Document
    from personae.v1.memory_service_pb2 import Memory
    from personae_client import PersonaeClient
    from personae_runtime.memory.history import HistoryItem, OwnWords

CONCURRENCY: Final = 32
"""Memories on their way at once: enough for the ledger to commit them in groups."""

_NAMESPACE: Final = uuid.UUID("9b6a4a0e-4f0b-5b52-9a55-6a1f0a3c7d11")
_POLL_S: Final = 0.2
_STALLED_S: Final = 60.0

app = typer.Typer(help="Bring in what was said before.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add `personae import`."""
    root.add_typer(app, name="import")


@app.callback()
def _group() -> None:
    pass


@app.command()
@connected
def chat(
    file: Annotated[Path, typer.Argument(help="JSON Lines, or LoCoMo JSON.", exists=True, dir_okay=False)],
    persona: Annotated[str, typer.Option(help="Whose memories they become, by id or full name.")],
    user: Annotated[str, typer.Option(help="Who it was said with or by.")],
    conversation: Annotated[str | None, typer.Option(help="Only this conversation of the file.")] = None,
    wait: Annotated[bool, typer.Option(help="Wait until all of it can be recalled.")] = True,
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """Import a chat history as a user's memories. Importing it again adds nothing twice."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from personae_runtime.memory.history import read_history

    history = read_history(file, select=conversation)
    parent = f"{full_persona_name(persona, tenant)}/users/{user}"
    forgotten = 0

    async def run() -> None:
        columns = (TextColumn("{task.description:9}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        nonlocal forgotten
        async with connection.open() as client:
            with Progress(*columns) as bars:
                stored = bars.add_task("storing", total=len(history.items))
                try:
                    forgotten = await store(client, parent, history.items, lambda: bars.advance(stored))
                except BaseException:
                    bars.stop()
                    done = int(bars.tasks[stored].completed)
                    typer.echo(f"{done} of {len(history.items)} are stored; the same command again goes on.", err=True)
                    raise
                if wait:
                    indexed = bars.add_task("indexing", total=None)

                    def on_pending(pending: int, most: int) -> None:
                        bars.update(indexed, completed=most - pending, total=max(most, 1))

                    await wait_until_indexed(client, parent, on_pending)
                    bars.update(indexed, completed=bars.tasks[indexed].total or 1)

    asyncio.run(run())
    speakers = ", ".join(history.speakers)
    kept = len(history.items) - forgotten
    typer.echo(f"{kept} messages of {speakers or 'nobody named'} are memories of {parent}.")
    if forgotten:
        typer.echo(f"{forgotten} were stored before and forgotten since; they stay so.")


@app.command()
@connected
def documents(
    files: Annotated[
        list[Path],
        typer.Argument(help="Text or Markdown, or JSON Lines of posts: text, and title, uri, time, id.", exists=True),
    ],
    persona: Annotated[str, typer.Option(help="Who said and wrote it, by id or full name.")],
    wait: Annotated[bool, typer.Option(help="Wait until all of it can be cited.")] = True,
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
) -> None:
    """Import what a persona itself has said and written. Importing it again adds nothing twice."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from personae_runtime.memory.history import read_documents

    found = [one for file in files for one in read_documents(file)]
    parent = full_persona_name(persona, tenant)
    stored: list[Document] = []

    async def run() -> None:
        columns = (TextColumn("{task.description:9}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        async with connection.open() as client:
            with Progress(*columns) as bars:
                task = bars.add_task("storing", total=len(found))
                for one in found:
                    key = str(uuid.uuid5(_NAMESPACE, "\x1f".join((parent, one.external_id, one.text))))
                    stored.append(await client.corpus.create(parent, to_document(one), request_id=key))
                    bars.advance(task)
                if not wait:
                    return
                most = sum(document.passages - document.duplicate_passages for document in stored)
                task = bars.add_task("indexing", total=max(most, 1))
                for document in stored:
                    now = document
                    while now.indexed_passages < now.passages - now.duplicate_passages:
                        await asyncio.sleep(_POLL_S)
                        now = await client.corpus.get(document.name)
                    bars.advance(task, now.indexed_passages)

    asyncio.run(run())
    passages = sum(document.passages for document in stored)
    twice = sum(document.duplicate_passages for document in stored)
    typer.echo(f"{len(stored)} documents with {passages} passages ({twice} said before) are {parent}'s own words.")


def to_document(item: OwnWords) -> Document:
    """A document of a file as the API takes it."""
    from personae.v1.corpus_service_pb2 import Document

    document = Document(text=item.text, title=item.title, uri=item.uri, external_id=item.external_id)
    if item.published_at is not None:
        document.publish_time.FromDatetime(item.published_at)
    return document


def request_id(parent: str, item: HistoryItem) -> str:
    """The same for the same message of the same user, however often it is imported."""
    own_id = item.external_id or str(item.ordinal)
    return str(uuid.uuid5(_NAMESPACE, "\x1f".join((parent, item.thread, own_id, item.text))))


def to_memory(item: HistoryItem) -> Memory:
    """A message of a history as the API takes it."""
    from personae.v1.memory_service_pb2 import Memory

    memory = Memory(
        text=item.text,
        speaker=item.speaker,
        thread=item.thread,
        ordinal=item.ordinal,
        external_id=item.external_id,
    )
    if item.occurred_at is not None:
        memory.occur_time.FromDatetime(item.occurred_at)
    return memory


async def store(
    client: PersonaeClient, parent: str, items: Sequence[HistoryItem], on_stored: Callable[[], object]
) -> int:
    """Create a memory of each item, CONCURRENCY at a time; the first failure ends it.

    Returns:
        How many were stored before and forgotten since, which they stay.

    Raises:
        PersonaeError: of the first memory that could not be stored.
    """
    from personae_client import NotFoundError

    left: Iterable[HistoryItem] = iter(items)
    forgotten = 0

    async def work() -> None:
        nonlocal forgotten
        for item in left:  # shared: each worker takes the next one
            try:
                await client.memories.create(parent, to_memory(item), request_id=request_id(parent, item))
            except NotFoundError as error:
                if error.reason != "MEMORY_FORGOTTEN":
                    raise
                forgotten += 1
            on_stored()

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(CONCURRENCY, len(items))):
                workers.create_task(work())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    return forgotten


async def wait_until_indexed(
    client: PersonaeClient, parent: str, on_pending: Callable[[int, int], object] = lambda pending, most: None
) -> None:
    """Return when every stored memory of the user can be recalled.

    Args:
        on_pending: called with the count not yet indexed and the largest such count.

    Raises:
        PersonaeError: the server can't say.
        UnavailableError: nothing was indexed for a minute.
    """
    from personae_client import UnavailableError

    most = least = -1
    progress_at = time.monotonic()
    while pending := await client.memories.pending_index_count(parent):
        most = max(most, pending)
        if least < 0 or pending < least:
            least, progress_at = pending, time.monotonic()
        on_pending(pending, most)
        if time.monotonic() - progress_at > _STALLED_S:
            raise UnavailableError(
                f"the memories are stored, but {pending} are not indexed and nothing moves: see the server's log",
                code="UNAVAILABLE",
                reason="INDEX_STALLED",
            )
        await asyncio.sleep(_POLL_S)
