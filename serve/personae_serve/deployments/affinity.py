"""Which model replica a session's turns go to.

A turn is cheap where its prompt's prefix is already in the KV cache. The long
part of it is shared by all users of a persona, the rest by the turns of one
session. So a persona has a few *slots* on a consistent-hash ring (its
preference set), and a session belongs to one of them:

    session --jump hash--> slot of the persona --ring--> replica

A slot is a point on the ring of its own, so a replica that goes moves only the
slots it held, and one that comes takes only those between it and its neighbour.
The number of slots does not depend on the other personas or on the replicas
until a persona has more load than one replica's share; then it grows with its
load, and jump hashing moves 1/(k+1) of its sessions per new slot.

Sources: consistent hashing, Karger et al., STOC 1997; with bounded loads,
Mirrokni, Thorup and Zadimoghaddam, arXiv:1608.01350; jump hash, Lamping and
Veach, arXiv:1406.2294.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b

from personae_runtime.errors import InvalidArgument

# Part of every hash: another key is another ring, and moves every session.
_KEY = b"personae-affinity-1"
_MASK = (1 << 64) - 1

SLOTS_PER_REPLICA = 8
"""Slots per replica's share of the load, for a persona that needs more than one replica.

Slots fall on the ring at random, so that k of them on one replica vary by about
sqrt(k): eight keep a hot persona's spread near the load factor, and still leave
each of its replicas an eighth of its time for it, which keeps the prefix warm.
"""

SHARE_HALF_LIFE = 8192
"""Lookups after which one counts half in a persona's share of the load."""

SHARE_PRIOR = 256.0
"""Lookups by nobody that a share is taken of, so that the first few say little."""

MAX_PERSONAS = 65_536
"""Personas whose share is remembered; beyond, the least busy are forgotten, and have the smallest set."""


class ReplicaLoads(Mapping[str, int]):
    """Requests held per replica, with their total kept, so that a lookup need not add them up."""

    __slots__ = ("_loads", "total")

    def __init__(self, loads: Mapping[str, int] | None = None) -> None:
        self._loads = dict(loads or {})
        self.total = sum(self._loads.values())
        """Sum over all replicas."""

    def __getitem__(self, replica: str) -> int:
        return self._loads[replica]

    def __iter__(self) -> Iterator[str]:
        return iter(self._loads)

    def __len__(self) -> int:
        return len(self._loads)

    def get(self, replica: str, default: int = 0) -> int:  # type: ignore[override]
        """A replica's load; 0 if none is known."""
        return self._loads.get(replica, default)

    def set(self, replica: str, load: int) -> None:
        """Replace a replica's load by one of at least 0."""
        self.total += load - self._loads.get(replica, 0)
        self._loads[replica] = load

    def add(self, replica: str, change: int) -> None:
        """Change a replica's load; it stays at least 0."""
        self.set(replica, max(0, self._loads.get(replica, 0) + change))

    def drop(self, replica: str) -> None:
        """Forget a replica."""
        self.total -= self._loads.pop(replica, 0)


class AffinityRing:
    """Ranks replicas for (persona, session) pairs; the same in every process that knows the same replicas.

    Only the width of a busy persona's set depends on what this process saw, so
    processes that saw different loads agree on all but some of its sessions.

    A lookup takes O(log n) time for n replicas, and O(n) if it has to add up
    `loads` that are no ReplicaLoads. Not thread-safe.

    Args:
        replicas: names of the replicas, see `update`.
        load_factor: a replica takes at most this many times the mean load; above 1.
        virtual_nodes: points of a replica on the ring. The sizes of the replicas'
            parts of the ring vary by about 1/sqrt(virtual_nodes).
        width: slots of a persona with less than one replica's share of the load.
        floor: a replica below this load is never avoided, however small the mean.

    Raises:
        InvalidArgument: an argument is out of its range.
    """

    def __init__(
        self,
        replicas: Iterable[str] = (),
        *,
        load_factor: float = 1.25,
        virtual_nodes: int = 128,
        width: int = 2,
        floor: int = 1,
    ) -> None:
        if not (math.isfinite(load_factor) and load_factor > 1):
            raise InvalidArgument(f"load_factor is {load_factor}: give a finite number above 1, such as 1.25")
        for name, value in (("virtual_nodes", virtual_nodes), ("width", width), ("floor", floor)):
            if value < 1:
                raise InvalidArgument(f"{name} is {value}: give at least 1")
        self.load_factor = load_factor
        self.floor = floor
        self._virtual_nodes = virtual_nodes
        self._width = width
        self._replicas: frozenset[str] = frozenset()
        self._points: list[int] = []
        self._owners: dict[int, str] = {}
        self._shares = _Shares()
        self._widths: dict[str, int] = {}
        self.update(replicas)

    @property
    def replicas(self) -> frozenset[str]:
        """The replicas on the ring."""
        return self._replicas

    def update(self, replicas: Iterable[str]) -> None:
        """Replace the set of replicas; those in both sets keep their places.

        Takes O(n) time: tens of milliseconds among 1,000 replicas.
        """
        wanted = frozenset(replicas)
        gone, new = self._replicas - wanted, wanted - self._replicas
        for replica in gone:
            for point in _points_of(replica, self._virtual_nodes):
                if self._owners.get(point) == replica:
                    del self._owners[point]
        if gone:
            self._points = [point for point in self._points if point in self._owners]
        added: list[int] = []
        for replica in sorted(new):
            for point in _points_of(replica, self._virtual_nodes):
                # Two replicas at one of 2^64 points: the first by name has it.
                if point not in self._owners:
                    added.append(point)
                elif self._owners[point] < replica:
                    continue
                self._owners[point] = replica
        added.sort()
        self._points += added
        self._points.sort()  # two sorted runs, which Python's sort merges in linear time
        self._replicas = wanted

    def width(self, persona: str) -> int:
        """Slots of a persona now. Its replicas are as many or fewer, as slots may share one."""
        return self._widths.get(persona, self._width)

    def preference(self, persona: str) -> list[str]:
        """The replicas of a persona's slots, in the order of the slots and without repetition."""
        slots = (self._owner(_slot_point(persona, slot)) for slot in range(self.width(persona)))
        return list(dict.fromkeys(slots)) if self._points else []

    def owner(self, persona: str, session: str) -> str | None:
        """The replica that a session belongs to, whatever the loads; None without replicas."""
        if not self._points:
            return None
        return self._owner(_slot_point(persona, self._slot(persona, session, self.width(persona))))

    def bound(self, total: int) -> int:
        """Most requests that a replica may hold once one more than `total` are shared among all; at least `floor`."""
        return max(self.floor, math.ceil(self.load_factor * (total + 1) / len(self._replicas)))

    def route(
        self, persona: str, session: str, loads: Mapping[str, int], *, limit: int = 4, count: bool = True
    ) -> list[str]:
        """Rank replicas for a turn.

        First those below the bound on the load: the session's own, the others of
        its persona's slots (which have the shared prefix), then the next ones on
        the ring. After them those that were passed over because they were at the
        bound, in the same order. The first has less than `bound(total)`, so if
        every turn goes to its first, no replica exceeds the bound.

        Args:
            persona: name of what shares a prefix.
            session: name of the session.
            loads: requests that each replica holds; a missing one holds 0.
            limit: replicas below the bound to give, at most; at least one is given.
            count: False if this turn was counted for the persona's share before.

        Returns:
            At least one replica; empty only without replicas.
        """
        if count:
            self._count(persona)
        if not self._points:
            return []
        total = loads.total if isinstance(loads, ReplicaLoads) else sum(loads.values())
        bound = self.bound(total)
        below: list[str] = []
        at_bound: list[str] = []
        seen: set[str] = set()
        for replica in self._walk(persona, session, limit):
            if replica in seen:
                continue
            seen.add(replica)
            if loads.get(replica, 0) < bound:
                below.append(replica)
                if len(below) >= limit:
                    break
            else:
                at_bound.append(replica)
            if len(seen) == len(self._replicas):
                break
        return below + at_bound

    def _walk(self, persona: str, session: str, slots: int) -> Iterator[str]:
        width = self.width(persona)
        own = self._slot(persona, session, width)
        start = _slot_point(persona, own)
        yield self._owner(start)
        for step in range(1, min(width, slots)):
            yield self._owner(_slot_point(persona, (own + step) % width))
        at = bisect_right(self._points, start)
        for step in range(len(self._points)):
            yield self._owners[self._points[(at + step) % len(self._points)]]

    def _owner(self, point: int) -> str:
        at = bisect_right(self._points, point)
        return self._owners[self._points[at if at < len(self._points) else 0]]

    def _slot(self, persona: str, session: str, width: int) -> int:
        return _jump(_hash(b"session", persona, session), width)

    def _count(self, persona: str) -> None:
        share = self._shares.count(persona)
        if share is None:
            # It forgot the least busy: let go of their widths as well.
            self._widths = {name: width for name, width in self._widths.items() if name in self._shares}
            return
        replicas_needed = share * len(self._replicas)
        width = self._widths.get(persona, self._width)
        if replicas_needed > 1:
            # In powers of two, and narrower only well below: each change moves sessions.
            wanted = max(self._width, 1 << math.ceil(math.log2(SLOTS_PER_REPLICA * replicas_needed)))
            if wanted > width or wanted * 4 <= width:
                self._widths[persona] = wanted
        elif width > self._width and replicas_needed < 0.5:
            del self._widths[persona]


class _Shares:
    """Shares of the last lookups by persona, of which older ones count less.

    Instead of every count decaying, each new lookup weighs more than the one before.
    """

    _GROWTH = 2 ** (1 / SHARE_HALF_LIFE)
    _TOO_HEAVY = 1e100

    def __init__(self) -> None:
        self._weights: dict[str, float] = {}
        self._total = 0.0
        self._weight = 1.0

    def __contains__(self, persona: str) -> bool:
        return persona in self._weights

    def count(self, persona: str) -> float | None:
        """Count a lookup; the persona's share, from 0 to 1. None if personas were forgotten to make room."""
        self._weight *= self._GROWTH
        weight = self._weights.get(persona, 0.0) + self._weight
        self._weights[persona] = weight
        self._total += self._weight
        if self._weight > self._TOO_HEAVY:
            scale = 1 / self._weight
            self._weights = {name: weight * scale for name, weight in self._weights.items()}
            self._total *= scale
            weight *= scale
            self._weight = 1.0
        if len(self._weights) > MAX_PERSONAS:
            busiest = sorted(self._weights.items(), key=lambda item: item[1], reverse=True)[: MAX_PERSONAS // 2]
            self._weights = dict(busiest)
            return None
        return weight / (self._total + SHARE_PRIOR * self._weight)


def _hash(kind: bytes, *parts: str) -> int:
    """64 bits of what kind of thing it is and its parts, the same in every process."""
    digest = blake2b(kind, digest_size=8, key=_KEY)
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        # With its length, so that ("ab", "c") is not ("a", "bc").
        digest.update(b"%d:%b" % (len(raw), raw))
    return int.from_bytes(digest.digest(), "little")


def _slot_point(persona: str, slot: int) -> int:
    return _hash(b"slot", persona, str(slot))


def _points_of(replica: str, count: int) -> Iterator[int]:
    for block in range(math.ceil(count / 8)):
        digest = blake2b(f"replica {block} {replica}".encode("utf-8", "surrogatepass"), key=_KEY).digest()
        for number in range(min(8, count - 8 * block)):
            yield int.from_bytes(digest[8 * number : 8 * number + 8], "little")


def _jump(key: int, buckets: int) -> int:
    """Jump consistent hash: with one bucket more, 1/(buckets + 1) of all keys move, all to the new one."""
    bucket, following = -1, 0
    while following < buckets:
        bucket = following
        key = (key * 2862933555777941757 + 1) & _MASK
        following = int((bucket + 1) * ((1 << 31) / ((key >> 33) + 1)))
    return bucket
