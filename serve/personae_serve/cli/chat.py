"""`personae chat`: talk to a persona in the terminal."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from personae_serve.cli.connection import (
    DEFAULT_TENANT,
    Connection,
    Tenant,
    User,
    connected,
    full_persona_name,
    user_or_login,
)
from personae_serve.cli.terminal import WordWrapper, printable

if TYPE_CHECKING:
    from rich.console import Console

    from personae.v1.event_pb2 import SessionEvent
    from personae.v1.session_service_pb2 import Session
    from personae_client import PersonaeClient, TurnResult, TurnStream

HELP = """\
/memories [WORDS]  what the persona remembers of you, or what it would recall for some words
/forget NUMBER     forget a memory of that list for good
/why               what stood behind the last reply: memories, policy, tokens, times
/help              this
/quit              leave; the session stays and can be resumed
Ctrl-C stops a reply, a second one leaves."""


def register(root: typer.Typer) -> None:
    """Add `personae chat`."""
    root.command()(chat)


@connected
def chat(
    persona: Annotated[str, typer.Argument(help="Persona, by id or full name.")],
    *,
    connection: Connection,
    tenant: Tenant = DEFAULT_TENANT,
    user: User = None,
    session: Annotated[str | None, typer.Option(help="Resume this session, by id or full name.")] = None,
    adult: Annotated[
        bool, typer.Option("--adult", help="Say that you are an adult; unsaid, rules for teens hold.")
    ] = False,
    region: Annotated[str, typer.Option(help="Your region, such as PT; chooses crisis lines.")] = "",
) -> None:
    """Talk to a persona, on any server."""

    async def run() -> None:
        async with connection.open() as client:
            name = full_persona_name(persona, tenant)
            if session is None:
                from personae.v1.policy_service_pb2 import AGE_BAND_ADULT, AGE_BAND_UNSPECIFIED

                age_band = AGE_BAND_ADULT if adult else AGE_BAND_UNSPECIFIED
                opened = await client.sessions.create(
                    name, user_or_login(user), age_band=age_band, region_code=region.upper()
                )
            else:
                opened = await client.sessions.get(session if "/" in session else f"{name}/sessions/{session}")
            display_name = (await client.personas.get(name)).display_name
            await Chat(client, opened, display_name, resumed=session is not None).run()

    asyncio.run(run())


class Chat:
    """One conversation at a terminal, or over a pipe."""

    def __init__(self, client: PersonaeClient, session: Session, display_name: str, *, resumed: bool) -> None:
        from rich.console import Console

        self._client = client
        self._session = session
        self._name = printable(display_name)
        self._resumed = resumed
        self._console: Console = Console(highlight=False, soft_wrap=True)
        self._said: list[str] = []
        self._memories: list[str] = []
        self._last: TurnResult | None = None

    async def run(self) -> None:
        """Greet, then take lines until the person leaves."""
        from rich.panel import Panel
        from rich.text import Text

        panel = Panel(Text(printable(self._session.disclosure)), title=Text(self._name), title_align="left")
        self._console.print(panel, soft_wrap=False)
        if self._resumed:
            await self._show_past()
        elif sys.stdin.isatty():
            self._dim("/help lists commands.")
        async for line in self._lines():
            text = line.strip()
            if text in ("/quit", "/exit", "/q"):
                break
            if text.startswith("/"):
                await self._command(text)
            elif text and not await self._say(text):
                break
        short = self._session.name.rsplit("/", 1)[-1]
        self._dim(f"Come back with: personae chat {self._session.name.split('/')[3]} --session {short}")

    async def _show_past(self) -> None:
        turns = [turn async for turn in self._client.sessions.list_turns(self._session.name)]
        self._said = [turn.user_text for turn in turns]
        for turn in turns[-5:]:
            self._dim(f"> {printable(turn.user_text)}")
            if turn.reply_text:
                self._dim(f"{self._name}: {printable(turn.reply_text)}\n")
        if self._session.active_turn:
            turn_id = self._session.active_turn.rsplit("/", 1)[-1]
            async with self._client.sessions.attach(self._session.name, turn_id=turn_id) as stream:
                await self._show(stream)

    async def _lines(self) -> AsyncIterator[str]:
        if not sys.stdin.isatty():
            while line := await asyncio.to_thread(sys.stdin.readline):
                yield line
            return
        from prompt_toolkit import PromptSession
        from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
        from prompt_toolkit.history import InMemoryHistory

        # In memory only: what people say is kept by the ledger, encrypted, and nowhere else.
        prompt: PromptSession[str] = PromptSession(
            history=InMemoryHistory(self._said), auto_suggest=AutoSuggestFromHistory()
        )
        interrupted = False
        while True:
            try:
                yield await prompt.prompt_async("\n> ")
                interrupted = False
            except KeyboardInterrupt:
                if interrupted:
                    return
                interrupted = True
                self._dim("Ctrl-C again, or /quit, leaves.")
            except EOFError:
                return

    async def _say(self, text: str) -> bool:
        """Run one turn; False if the person wants to leave."""
        from personae_client import PersonaeError

        leave = asyncio.Event()
        cancelling: list[asyncio.Task[object]] = []
        async with self._client.sessions.converse(self._session.name, text) as stream:
            showing = asyncio.create_task(self._show_turn(stream))

            def on_interrupt() -> None:
                if cancelling:
                    leave.set()
                    showing.cancel()
                else:
                    cancelling.append(asyncio.create_task(stream.cancel()))

            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGINT, on_interrupt)
            try:
                await showing
            except asyncio.CancelledError:
                if not leave.is_set():
                    raise
            except PersonaeError as error:
                # One turn failed; the conversation need not end.
                self._console.print(f"[red]{type(error).__name__}[/red]", str(error), markup=True)
            finally:
                loop.remove_signal_handler(signal.SIGINT)
                # A cancel that lost the race with the turn's end has nothing left to say.
                await asyncio.gather(*cancelling, return_exceptions=True)
        return not leave.is_set()

    async def _show_turn(self, stream: TurnStream) -> None:
        await self._show(stream)
        self._last = await stream.collect()

    async def _show(self, events: AsyncIterator[SessionEvent]) -> None:
        wrapper = WordWrapper(self._console.width)
        speaking = False
        async for event in events:
            kind = event.WhichOneof("event")
            if kind == "text_delta":
                text = printable(event.text_delta.text)
                if not speaking and (text := text.lstrip()):
                    self._write(wrapper.feed(f"{self._name}: "))
                    speaking = True
                self._write(wrapper.feed(text))
                continue
            for line in describe(event):
                if speaking:
                    self._write(wrapper.flush() + "\n")
                    speaking, wrapper = False, WordWrapper(self._console.width)
                self._dim(line)
        if speaking:
            self._write(wrapper.flush() + "\n")

    async def _command(self, text: str) -> None:
        from personae_client import PersonaeError

        command, _, rest = text.partition(" ")
        try:
            match command:
                case "/help":
                    self._dim(HELP)
                case "/memories":
                    await self._list_memories(rest.strip())
                case "/forget":
                    await self._forget(rest.strip())
                case "/why":
                    self._why()
                case _:
                    self._dim(f"{command} is no command; /help lists them.")
        except PersonaeError as error:
            self._console.print(f"[red]{type(error).__name__}[/red]", str(error), markup=True)

    async def _list_memories(self, query: str) -> None:
        if query:
            found = await self._client.memories.search(self._session.user, query)
            memories = [result.memory for result in found.results]
        else:
            memories = []
            async for memory in self._client.memories.list(self._session.user, page_size=20):
                memories.append(memory)
                if len(memories) == 20:
                    break
        self._memories = [memory.name for memory in memories]
        for number, memory in enumerate(memories, start=1):
            self._dim(f"{number:3}  {memory.occur_time.ToDatetime():%Y-%m-%d}  {said(memory.speaker, memory.text)}")
        if not memories:
            self._dim("Nothing.")

    async def _forget(self, number: str) -> None:
        if not number.isascii() or not number.isdigit() or not 0 < int(number) <= len(self._memories):
            self._dim("/memories numbers what can be forgotten; then: /forget NUMBER")
            return
        await self._client.memories.forget(self._memories[int(number) - 1])
        self._dim("Forgotten.")

    def _why(self) -> None:
        turn = self._last
        if turn is None:
            self._dim("There was no reply yet.")
            return
        for citation in turn.citations:
            self._dim(f"recalled ({citation.score:.3f})  {said(citation.speaker, citation.quote)}")
        for decision in turn.policy_events:
            self._dim(f"policy  {policy_words(decision)}  {decision.decision}")
        self._dim(f"revision  {turn.revision}")
        if turn.usage is not None:
            usage = turn.usage
            self._dim(
                f"tokens  {usage.input_tokens} in ({usage.cached_input_tokens} cached), {usage.output_tokens} out"
            )
        if turn.latency is not None:
            times = {
                "to the engine": turn.latency.queue,
                "first token": turn.latency.ttft,
                "first words": turn.latency.first_release,
            }
            self._dim("times  " + ", ".join(f"{name} {time.ToMilliseconds()} ms" for name, time in times.items()))

    def _dim(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(text, style="dim"))

    def _write(self, text: str) -> None:
        self._console.out(text, end="", highlight=False)
        with suppress(BrokenPipeError):
            self._console.file.flush()


def said(speaker: str, text: str) -> str:
    """`speaker: text`, on one line, fit for a terminal."""
    words = " ".join(printable(text).split())
    return f"{printable(speaker)}: {words}" if speaker else words


def policy_words(decision: object) -> str:
    """`BLOCK identity (IDENTITY_HUMAN_CLAIM)`"""
    from personae.v1.event_pb2 import PolicyAction, PolicyEvent

    assert isinstance(decision, PolicyEvent)
    action = PolicyAction.Name(decision.action).removeprefix("POLICY_ACTION_")
    return f"{action} {decision.category} ({decision.reason_code})"


def describe(event: SessionEvent) -> list[str]:
    """The lines beside a reply that tell of an event; none for most."""
    from personae.v1.event_pb2 import FINISH_REASON_LENGTH, TurnInterrupted, Waiting

    match event.WhichOneof("event"):
        case "memory_citation":
            return [f"  remembers  {said(event.memory_citation.speaker, event.memory_citation.quote)}"]
        case "policy_event":
            return [f"  policy  {policy_words(event.policy_event)}"]
        case "notice":
            return [f"  notice  {printable(event.notice.text)}"]
        case "waiting":
            reason = Waiting.Reason.Name(event.waiting.reason).removeprefix("REASON_")
            return [f"  waiting ({reason.lower().replace('_', ' ')})"]
        case "turn_interrupted":
            reason = TurnInterrupted.Reason.Name(event.turn_interrupted.reason).removeprefix("REASON_")
            return [f"  interrupted ({reason.lower().replace('_', ' ')})"]
        case "turn_completed" if event.turn_completed.finish_reason == FINISH_REASON_LENGTH:
            return ["  (cut at the length limit)"]
        case _:
            return []
