"""Sessions stay where their prefix is, as far as the loads allow."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae_runtime.errors import InvalidArgument
from personae_serve.deployments import affinity
from personae_serve.deployments.affinity import AffinityRing, ReplicaLoads
from tests.conftest import run_python

names = st.text(max_size=12)
replica_sets = st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=24)


PLACES = ["replica-6", "replica-6", "replica-7", "replica-5", "replica-6", "replica-4"]
"""Owners of "session-0" of six personas among nine replicas."""


def replicas(count: int) -> list[str]:
    return [f"replica-{number}" for number in range(count)]


def keys(personas: int, sessions: int) -> list[tuple[str, str]]:
    return [(f"persona-{p}", f"session-{s}") for p in range(personas) for s in range(sessions)]


def owners(ring: AffinityRing, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], str | None]:
    return {pair: ring.owner(*pair) for pair in pairs}


@given(replica_sets, names, names, st.dictionaries(st.text(max_size=8), st.integers(0, 50)), st.integers(1, 30))
def test_every_key_maps_to_distinct_replicas_of_the_ring(
    names: set[str], persona: str, session: str, loads: dict[str, int], limit: int
) -> None:
    ranked = AffinityRing(names).route(persona, session, loads, limit=limit)
    assert ranked
    assert len(set(ranked)) == len(ranked)
    assert set(ranked) <= names


@given(replica_sets, st.data())
def test_a_replica_that_goes_moves_only_its_keys(names: set[str], data: st.DataObject) -> None:
    ring = AffinityRing(names)
    pairs = keys(10, 20)
    before = owners(ring, pairs)
    gone = data.draw(st.sampled_from(sorted(names)))
    ring.update(names - {gone})
    for pair, owner in owners(ring, pairs).items():
        if before[pair] != gone:
            assert owner == before[pair]
        else:
            assert owner != gone
            assert (owner is None) == (len(names) == 1)


@given(replica_sets, st.text(min_size=1, max_size=8))
def test_a_replica_that_comes_takes_keys_only_to_itself(names: set[str], new: str) -> None:
    ring = AffinityRing(names)
    pairs = keys(10, 20)
    before = owners(ring, pairs)
    ring.update(names | {new})
    assert all(owner in (before[pair], new) for pair, owner in owners(ring, pairs).items())


@given(st.lists(replica_sets, max_size=4), replica_sets)
def test_the_way_to_a_set_of_replicas_does_not_matter(way: list[set[str]], end: set[str]) -> None:
    ring = AffinityRing()
    for step in way:
        ring.update(step)
    ring.update(end)
    pairs = keys(5, 10)
    assert owners(ring, pairs) == owners(AffinityRing(end), pairs)


@pytest.mark.parametrize("count", [2, 10, 100])
def test_a_new_replica_takes_about_its_share(count: int) -> None:
    ring = AffinityRing(replicas(count))
    pairs = keys(2000, 2)
    before = owners(ring, pairs)
    ring.update(replicas(count + 1))
    moved = sum(owner != before[pair] for pair, owner in owners(ring, pairs).items()) / len(pairs)
    assert moved == pytest.approx(1 / (count + 1), rel=0.35)


@given(
    st.integers(1, 12),
    st.floats(1.01, 3),
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40), st.booleans()), max_size=200),
)
def test_no_replica_exceeds_the_bound(
    count: int, load_factor: float, floor: int, turns: list[tuple[int, int, bool]]
) -> None:
    ring = AffinityRing(replicas(count), load_factor=load_factor, floor=floor)
    loads = ReplicaLoads()
    running: list[str] = []
    for persona, session, ends in turns:
        bound = max(floor, math.ceil(load_factor * (sum(loads.values()) + 1) / count))
        first = ring.route(f"p{persona}", f"s{session}", loads)[0]
        loads.add(first, 1)
        running.append(first)
        assert loads[first] <= bound
        if ends:  # a turn somewhere ends; others keep their places
            loads.add(running.pop(0), -1)
        assert loads.total == sum(loads.values()) == len(running)


def test_a_session_returns_when_its_replica_has_room_again() -> None:
    ring = AffinityRing(replicas(8))
    home = ring.owner("p", "s")
    assert home is not None
    idle = ring.route("p", "s", {})
    busy = ring.route("p", "s", {home: 10})
    assert idle[0] == home
    assert busy[0] == idle[1]
    assert home in busy[1:]
    assert ring.route("p", "s", {})[0] == home


def test_below_the_floor_a_replica_is_never_avoided() -> None:
    ring = AffinityRing(replicas(8), floor=4)
    home = ring.owner("p", "s")
    assert home is not None
    assert ring.route("p", "s", {home: 3})[0] == home
    assert ring.route("p", "s", {home: 4})[0] != home


def test_a_quiet_persona_lives_on_few_replicas_and_overflows_to_them_first() -> None:
    ring = AffinityRing(replicas(100))
    homes = {ring.owner("p", f"s{number}") for number in range(200)}
    assert homes == set(ring.preference("p"))
    assert len(homes) == 2
    home, other = ring.preference("p")
    session = next(f"s{n}" for n in range(200) if ring.owner("p", f"s{n}") == home)
    assert ring.route("p", session, {home: 100})[0] == other


def test_a_busy_persona_gets_a_wider_set_and_a_quiet_one_gives_it_back() -> None:
    ring = AffinityRing(replicas(50))
    for number in range(4000):
        ring.route("hot", f"s{number % 500}", {})
        ring.route("warm", "s", {}) if number % 50 == 0 else None
    assert len(ring.preference("hot")) > 40
    assert len(ring.preference("warm")) <= 16
    assert ring.width("cold") == 2
    for number in range(40_000):
        ring.route(f"p{number % 200}", "s", {})
    for _ in range(50):
        ring.route("hot", "s", {})
    assert ring.width("hot") <= 16


def test_all_replicas_share_the_load_of_one_persona_and_of_many() -> None:
    for personas in (1, 1000):
        ring = AffinityRing(replicas(20))
        for number in range(4000):
            ring.route(f"p{number % personas}", "s", {})
        held = Counter(ring.owner(f"p{number % personas}", f"s{number}") for number in range(20_000))
        assert len(held) == 20
        assert max(held.values()) < 2.2 * 1000


def test_a_wider_set_moves_only_the_sessions_of_its_new_slots() -> None:
    moved = sum(affinity._jump(key * 7919, 8) != affinity._jump(key * 7919, 9) for key in range(20_000))
    assert moved / 20_000 == pytest.approx(1 / 9, rel=0.1)
    assert all(affinity._jump(key * 7919, 9) in (affinity._jump(key * 7919, 8), 8) for key in range(20_000))


def test_other_processes_agree() -> None:
    script = (
        "from personae_serve.deployments.affinity import AffinityRing\n"
        "ring = AffinityRing(f'replica-{n}' for n in range(9))\n"
        "print([ring.owner(f'persona-{p}', f'session-{s}') for p in range(5) for s in range(5)])"
    )
    ring = AffinityRing(replicas(9))
    assert run_python(script).strip() == str([ring.owner(*pair) for pair in keys(5, 5)])


def test_places_do_not_change_with_the_code() -> None:
    """Gateways of two versions serve at once during an update, and must agree."""
    ring = AffinityRing(replicas(9))
    assert [ring.owner(f"persona-{p}", "session-0") for p in range(6)] == PLACES


def test_personas_beyond_the_limit_are_forgotten_and_the_busy_ones_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity, "MAX_PERSONAS", 100)
    ring = AffinityRing(replicas(10))
    for number in range(2000):
        ring.route("hot", str(number), {})
    width = ring.width("hot")
    assert width > 2
    for number in range(500):
        ring.route(f"passing-{number}", "s", {})
    assert ring.width("hot") == width
    assert len(ring._shares._weights) <= 101


def test_without_replicas_nothing_is_ranked() -> None:
    ring = AffinityRing()
    assert ring.route("p", "s", {}) == ring.preference("p") == []
    assert ring.owner("p", "s") is None


@pytest.mark.parametrize(
    "arguments", [{"load_factor": 1.0}, {"load_factor": math.inf}, {"virtual_nodes": 0}, {"width": 0}, {"floor": 0}]
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(arguments))):
        AffinityRing(replicas(2), **arguments)  # type: ignore[arg-type]
