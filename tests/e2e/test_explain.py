"""People can see what is known of them and why it is recalled: Explain, and `personae memory show`."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from personae.v1 import memory_service_pb2 as pb
from tests.e2e.support import Hosted, new_user, run_cli
from tests.e2e.test_memories import BIKE, at

pytestmark = pytest.mark.asyncio(loop_scope="session")

MOVED = "I moved to Porto in May."


async def test_a_recall_is_explained_by_the_places_in_each_arm_and_the_weights(hosted: Hosted) -> None:
    api = hosted.api
    user = new_user(await api.persona())
    bike = await api.remember(user, BIKE, thread="t")
    other = await api.remember(user, "The soup was too salty.", thread="t", ordinal=1)
    await hosted.indexed()
    query = "Which colour is the Brompton?"
    found = await api.memories.Explain(pb.MemoryServiceExplainRequest(parent=user, query=query))
    searched = await api.memories.SearchMemories(pb.SearchMemoriesRequest(parent=user, query=query))
    assert [(one.memory.name, one.score) for one in found.candidates] == [
        (result.memory.name, result.score) for result in searched.results
    ]
    first = found.candidates[0]
    assert (first.memory.text, first.lexical.rank, first.final_rank) == (BIKE, 1, 1)
    assert first.lexical.score > 0
    assert not first.HasField("dense")
    assert "lexical" in first.features
    assert found.lexical_only
    assert len(found.filters) >= 3
    assert other.name not in {one.memory.name for one in found.candidates if one.final_rank == 1}
    assert bike.name == first.memory.name


async def test_what_policy_keeps_from_a_prompt_is_told_with_its_reason(hosted: Hosted) -> None:
    api = hosted.api
    user = new_user(await api.persona())
    made = await api.remember(user, "Kermit the Brompton is green.")
    await hosted.host.stores.memories.quarantine(hosted.memory_id(made), "INJECTION")
    [shown] = await api.memories_of(user)
    assert shown.quarantine_reason == "INJECTION"
    await hosted.indexed()
    found = await api.memories.Explain(pb.MemoryServiceExplainRequest(parent=user, query="Is the Brompton green?"))
    assert not [one for one in found.candidates if one.final_rank]


async def test_the_command_shows_the_card_facts_with_their_times_and_why_words_are_recalled(hosted: Hosted) -> None:
    api = hosted.api
    persona = await api.persona()
    user = f"{persona}/users/ann"
    said = at(datetime(2025, 6, 3, tzinfo=UTC))
    await api.memories.CreateMemory(
        pb.CreateMemoryRequest(parent=user, memory=pb.Memory(text=MOVED, speaker="ann", occur_time=said))
    )
    await api.remember(user, BIKE, thread="t")
    await hosted.indexed()
    code, output = await run_cli(hosted, "memory", "show", "ann", "--persona", persona)
    assert code == 0, output
    for shown in ("Card, version 1", "Lives in Porto.", "from 2025-05-01 now", "stated", MOVED, "Kermit"):
        assert shown in output, output
    code, output = await run_cli(hosted, "memory", "show", user, "--query", "Which colour is the Brompton?")
    assert code == 0, output
    for shown in ("filter: scope", "meaning", "1 (", "Kermit"):
        assert shown in output, output
    code, output = await run_cli(hosted, "memory", "show", "nobody", "--persona", persona)
    assert (code, "No facts." in output, "No words." in output) == (0, True, True)
