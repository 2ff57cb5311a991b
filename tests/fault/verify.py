"""What must hold once a host is back, by the ledger decrypted and by the API."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from personae.v1 import memory_service_pb2, session_service_pb2
from personae_runtime.ledger.database import Database
from personae_runtime.ledger.vault import Vault, load_master_key
from personae_runtime.sessions.events import Event, TextDelta, TurnCompleted, TurnInterrupted, TurnStarted, decode
from tests.fault.load import PERSONA, RPC_S, Api, Journal, MemoryRecord, SessionRecord, TurnRecord

_POLL_S = 0.05
_RUNNING = "SELECT count(*) FROM turns WHERE state = 'RUNNING'"


async def ledger(dsn: str, data_dir: Path, journal: Journal, sessions: Iterable[SessionRecord]) -> dict[str, list[int]]:
    """Check the sessions in the ledger; event ids by turn, as "session/turn".

    Waits until no turn runs: the load has stopped, so each must end by itself.
    """
    database = Database(dsn, pool_size=2, command_timeout_s=10)
    await database.open()
    try:
        vault = Vault(load_master_key(None, data_dir, development=True), database)
        await vault.verify()
        async with asyncio.timeout(RPC_S):
            while True:
                if not await database.fetchval(_RUNNING):
                    break
                await asyncio.sleep(_POLL_S)
        found: dict[str, list[int]] = {}
        for session in sessions:
            found.update(await _session(database, vault, journal, session))
        return found
    finally:
        await database.close()


async def _session(database: Database, vault: Vault, journal: Journal, session: SessionRecord) -> dict[str, list[int]]:
    def wrong(text: str) -> None:
        journal.wrong.append(f"ledger, {session.session_id}: {text}")

    row = await database.fetchrow("SELECT * FROM sessions WHERE session = $1", session.session_id)
    if row is None:
        if session.opened or session.turns:
            wrong("the session is lost")
        return {}
    if row["active_turn"] is not None:
        wrong(f"turn {row['active_turn']} is active, and none runs")
    key = row["session_pk"]
    cipher = await vault.cipher_by_key(row["scope"])
    turns = await database.fetch("SELECT * FROM turns WHERE session_pk = $1 ORDER BY turn_no", key)
    by_turn: dict[int, list[Event]] = defaultdict(list)
    for event in await database.fetch("SELECT * FROM events WHERE session_pk = $1 ORDER BY event_id", key):
        body = decode(event["kind"], cipher.open(event["body"], f"event/{key}/{event['event_id']}"))
        by_turn[event["turn_no"]].append(Event(event["event_id"], "", event["created_at"], body))
    remembered = Counter(
        memory["ordinal"]
        for memory in await database.fetch(
            "SELECT ordinal FROM memories WHERE scope = $1 AND thread = $2",
            row["scope"],
            f"session/{session.session_id}",
        )
    )
    if [turn["turn_no"] for turn in turns] != list(range(1, len(turns) + 1)) or row["next_turn"] != len(turns) + 1:
        wrong(f"turns are numbered {[turn['turn_no'] for turn in turns]}, next is {row['next_turn']}")
    for number in set(by_turn) - {turn["turn_no"] for turn in turns}:
        wrong(f"events of turn number {number}, which is not there")
    for turn_id, record in session.turns.items():
        if record.acknowledged and turn_id not in {turn["turn_id"] for turn in turns}:
            wrong(f"acknowledged turn {turn_id} is lost")
    before = 0
    for turn in turns:
        turn_id, number, events = turn["turn_id"], turn["turn_no"], by_turn[turn["turn_no"]]
        known = session.turns.get(turn_id)
        if known is None or cipher.open(turn["user_text"], f"turn/{key}/{number}/user").decode() != known.text:
            wrong(f"{turn_id} was never sent, or with another text")
            continue
        ids = [event.event_id for event in events]
        if not events or ids[0] != turn["first_event_id"] or ids[0] <= before:
            wrong(f"{turn_id} begins with event {ids[:1]}, not {turn['first_event_id']} above {before}")
            continue
        before = ids[-1]
        started = [event for event in events if isinstance(event.body, TurnStarted)]
        ends = [event for event in events if event.terminal]
        if started != events[:1] or ends != events[-1:] or ids[-1] != turn["last_event_id"]:
            wrong(f"{turn_id} holds {[(event.event_id, event.body.kind) for event in events]}")
            continue
        reply = "".join(event.body.text for event in events if isinstance(event.body, TextDelta))
        if (
            turn["reply_text"] is None
            or cipher.open(turn["reply_text"], f"turn/{key}/{number}/reply") != reply.encode()
        ):
            wrong(f"{turn_id}: the reply is not what was delivered")
        end = ends[0].body
        if isinstance(end, TurnInterrupted):
            if turn["state"] != "INTERRUPTED" or end.delivered_chars != len(reply):
                wrong(f"{turn_id}: {turn['state']}, {end}, {len(reply)} characters delivered")
        elif not isinstance(end, TurnCompleted) or (turn["state"], turn["finish_reason"]) != (
            "COMPLETED",
            end.finish_reason,
        ):
            wrong(f"{turn_id}: {turn['state']} {turn['finish_reason']}, {end}")
        wanted = int(isinstance(end, TurnCompleted) and end.finish_reason != "POLICY")
        if not wanted <= remembered[number] <= 1:
            wrong(f"{turn_id}: remembered {remembered[number]} times, {end}")
    if turns and row["next_event_id"] <= before:
        wrong(f"the next event is {row['next_event_id']}, {before} is taken")
    return {
        f"{session.session_id}/{turn['turn_id']}": [event.event_id for event in by_turn[turn["turn_no"]]]
        for turn in turns
    }


async def replays(api: Api, journal: Journal, turns: Iterable[TurnRecord], ids: dict[str, list[int]]) -> None:
    """Attach to each turn from its start: every event once, those that were received among them, as they were."""
    by_session: dict[SessionRecord, list[TurnRecord]] = defaultdict(list)
    for turn in turns:
        place = f"{turn.session.session_id}/{turn.turn_id}"
        if place not in ids:
            continue  # never admitted, and never acknowledged: the ledger's check sees to that
        complete = turn.ended
        seen = set(turn.events)
        if complete and sorted(seen) != ids[place]:
            journal.wrong.append(f"{place}: the stream ended with {sorted(seen)}, the ledger has {ids[place]}")
        if not seen <= set(ids[place]):
            journal.wrong.append(f"{place}: received {sorted(seen - set(ids[place]))}, which the ledger lacks")
        await api.read(journal, turn, api.attach(turn, 0))
        if sorted(turn.events) != ids[place]:
            journal.wrong.append(f"{place}: replayed {sorted(turn.events)}, the ledger has {ids[place]}")
        by_session[turn.session].append(turn)
    for session, expected in by_session.items():
        listed = {turn.name.rpartition("/")[2]: turn for turn in await _turns(api, session)}
        for turn in expected:
            row = listed.get(turn.turn_id)
            if row is None or row.state == session_service_pb2.TURN_STATE_RUNNING or row.user_text != turn.text:
                journal.wrong.append(f"{session.session_id}/{turn.turn_id}: listed as {row}")


async def _turns(api: Api, session: SessionRecord) -> list[session_service_pb2.Turn]:
    found: list[session_service_pb2.Turn] = []
    request = session_service_pb2.ListTurnsRequest(parent=session.name, page_size=200)
    while True:
        page = await api.call(api.sessions.ListTurns, request)
        found += page.turns
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


async def memories(api: Api, journal: Journal, searched: Iterable[MemoryRecord]) -> None:
    """List every person's memories once the index has caught up, and look for those given."""
    for user in sorted({memory.user for memory in journal.memories}):
        listed = await _memories(api, user)
        for name, count in Counter(memory.name for memory in listed).items():
            if count > 1:
                journal.wrong.append(f"memory {name} is listed {count} times")
        names = {memory.name: memory.text for memory in listed}
        made = Counter(memory.text for memory in listed if memory.source == memory_service_pb2.MEMORY_SOURCE_API)
        for memory in (memory for memory in journal.memories if memory.user == user):
            if made[memory.text] > 1:
                journal.wrong.append(f"memory {memory.word!r} was stored {made[memory.text]} times")
            if memory.name and not memory.forgetting and names.get(memory.name) != memory.text:
                journal.wrong.append(f"memory {memory.word!r} is lost")
            if memory.forgotten and (memory.name in names or made[memory.text]):
                journal.wrong.append(f"memory {memory.word!r} is back")
    for memory in searched:
        if not memory.name or memory.forgetting != memory.forgotten:
            continue
        request = memory_service_pb2.SearchMemoriesRequest(
            parent=f"{PERSONA}/users/{memory.user}", query=memory.text, page_size=50
        )
        found = [result.memory.name for result in (await api.call(api.memories.SearchMemories, request)).results]
        if found.count(memory.name) != int(not memory.forgotten):
            journal.wrong.append(
                f"memory {memory.word!r} is found {found.count(memory.name)} times, forgotten: {memory.forgotten}"
            )


async def _memories(api: Api, user: str) -> list[memory_service_pb2.Memory]:
    found: list[memory_service_pb2.Memory] = []
    request = memory_service_pb2.ListMemoriesRequest(parent=f"{PERSONA}/users/{user}", page_size=200)
    async with asyncio.timeout(RPC_S):
        while True:
            page = await api.call(api.memories.ListMemories, request)
            if page.pending_index_count:
                await asyncio.sleep(_POLL_S)
                continue
            found += page.memories
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


async def closed(api: Api, journal: Journal, sessions: Iterable[SessionRecord], ids: dict[str, list[int]]) -> None:
    """Close each session and read the whole of it in one stream, which then ends by itself."""
    for session in sessions:
        if not session.opened:
            continue
        await api.call(api.sessions.CloseSession, session_service_pb2.CloseSessionRequest(name=session.name))
        last = 0
        seen: list[int] = []
        stream = api.call(api.sessions.Attach, session_service_pb2.AttachRequest(session=session.name))
        async for event in stream:
            last = journal.note(session.turns[event.turn_id], event, last)
            seen.append(last)
        expected = sorted(
            event_id for turn_id in session.turns for event_id in ids.get(f"{session.session_id}/{turn_id}", ())
        )
        if seen != expected:
            journal.wrong.append(f"{session.session_id}: read {seen}, the ledger has {expected}")
