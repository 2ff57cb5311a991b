"""A simulated day of the model tier: the cluster's own routing and scaling, with everything else a model.

Discrete events in one heap. Real are `AffinityRing` (with exact loads) and
`ModelPolicy` with its rules, called as Serve calls them. Simulated are:

- conversations: Poisson arrivals with a sine-shaped day, personas by Zipf's law,
  a geometric number of turns, exponential think times and reply lengths;
- replicas: `parallel` places and a queue, a time to start, a KV cache in which
  persona prefixes and session histories stay until least recently used;
- a turn: its uncached tokens are read, its reply written, at given speeds;
- gateways: they try the ranked replicas, then again after a pause, then refuse;
- the loss of a node: its replicas die at once, waiting turns are routed anew,
  running ones count as interrupted, and replacements start.

Not simulated: the speed of a replica does not depend on its batch, and reports
arrive without delay.
"""

from __future__ import annotations

import heapq
import math
import random
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from personae_runtime.errors import InvalidArgument
from personae_serve.deployments.affinity import AffinityRing, ReplicaLoads
from personae_serve.deployments.autoscaling import KV_USE, ONGOING, WAITING, ModelPolicy


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated. Times are seconds of the simulated day, sizes tokens.

    Attributes:
        sessions: conversations in the day.
        turns: mean turns of a conversation.
        think_s: mean time between a reply and the next message.
        day_s: length of the day; with the same sessions, a shorter one is busier.
        swing: of the load about its mean, 0 to 1; 0.6 makes the peak 4 times the trough.
        personas, zipf: how many, and the exponent of their popularity.
        min_replicas, max_replicas: bounds of the scaling.
        parallel: turns at once of a replica.
        max_waiting: turns queued there beyond that.
        target_ongoing: turns that scaling aims at.
        upscale_delay_s, downscale_delay_s: of the scaling rules.
        start_s: time until a new replica serves.
        decision_s: time between two decisions.
        cache_tokens: of a replica's KV cache.
        prefix_tokens: shared by a persona's users.
        own_tokens: of a session at its first turn: card and marker.
        user_tokens, recall_tokens: of a message, and of what is recalled for it, which is never cached.
        reply_tokens: mean length of a reply.
        history_tokens: most history in a prompt; then the older half goes, and what follows is read anew.
        read_tokens_per_s, write_tokens_per_s: of a turn.
        retries, retry_s: how often a turn that finds no place tries again, and after how long.
        lost_share: of the running replicas that die at once at `lost_at` of the day; 0 for none.
        affinity: False routes to the less loaded of two random replicas.
        load_factor: of the ring.
        seed: of all random numbers.
    """

    sessions: int = 20_000
    turns: float = 4.0
    think_s: float = 20.0
    day_s: float = 3600.0
    swing: float = 0.6
    personas: int = 500
    zipf: float = 0.8
    min_replicas: int = 1
    max_replicas: int = 100
    parallel: int = 16
    max_waiting: int = 16
    target_ongoing: float = 12.0
    upscale_delay_s: float = 5.0
    downscale_delay_s: float = 120.0
    start_s: float = 40.0
    decision_s: float = 2.0
    cache_tokens: int = 250_000
    prefix_tokens: int = 800
    own_tokens: int = 150
    user_tokens: int = 30
    recall_tokens: int = 80
    reply_tokens: float = 80.0
    history_tokens: int = 900
    read_tokens_per_s: float = 4000.0
    write_tokens_per_s: float = 15.0
    retries: int = 3
    retry_s: float = 1.0
    lost_share: float = 0.1
    lost_at: float = 0.55
    affinity: bool = True
    load_factor: float = 1.25
    seed: int = 1

    def __post_init__(self) -> None:
        whole = ("sessions", "personas", "max_replicas", "parallel", "prefix_tokens", "cache_tokens", "user_tokens")
        positive = ("day_s", "decision_s", "reply_tokens", "read_tokens_per_s", "write_tokens_per_s", "retry_s")
        least_zero = ("min_replicas", "max_waiting", "think_s", "start_s", "own_tokens", "recall_tokens")
        checks = [(name, getattr(self, name) >= 1, "at least 1") for name in whole]
        checks += [(name, 0 < getattr(self, name) < math.inf, "a finite number above 0") for name in positive]
        checks += [
            (name, 0 <= getattr(self, name) < math.inf, "at least 0")
            for name in (*least_zero, "history_tokens", "retries", "zipf")
        ]
        checks += [
            ("turns", self.turns >= 1, "at least 1"),
            ("swing", 0 <= self.swing <= 1, "from 0 to 1"),
            ("lost_share", 0 <= self.lost_share < 1, "from 0 to below 1"),
            ("lost_at", 0 <= self.lost_at <= 1, "from 0 to 1"),
            ("min_replicas", self.min_replicas <= self.max_replicas, "at most max_replicas"),
        ]
        for name, holds, expected in checks:
            if not holds:
                raise InvalidArgument(
                    f"{name} is {getattr(self, name)}: give {expected}", violations=((name, expected),)
                )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a simulation is: share of the day, turns that arrived, running replicas, seconds that it took."""

    share: float
    turns: int
    running: int
    elapsed_s: float


@dataclass(slots=True)
class Report:
    """What happened.

    Attributes:
        turns: that arrived, those of interrupted or refused conversations included.
        served, rejected, interrupted: of them; an interrupted one had begun when its replica died.
        unfinished: of them, at the end of the day: running, queued, or waiting to try again.
        sessions_seen: conversations that began.
        prompt_tokens: of all turns that began.
        cached_tokens: of them, found in the cache.
        reusable_tokens: of them, sent before: by the session, or, for its persona's prefix, by anyone.
        hit_reusable: cached over reusable tokens.
        hit_raw: cached over prompt tokens.
        moved_by_load, moved_by_resize: turns of a session that began elsewhere than its turn before, because its
            replica was at the bound or full (or had room again), or because the ring changed. Without affinity all
            but those from replicas that are gone count as moved by load.
        moved_share: of all turns that began, but for the first of each session.
        wait_ms_p50, wait_ms_p95, wait_ms_p99, wait_ms_max: from arrival to beginning, of turns that began.
        waited_share: of them, that waited at all.
        retries: tries again because every replica tried was full.
        replicas_min, replicas_mean, replicas_max: running, over the day.
        utilisation: mean share of running and draining replicas' places that was in use.
        upscales, downscales: changes of the target.
        turnarounds: changes of the target in the other direction than the one before.
        lost: replicas that died.
        elapsed_s: that the simulation took.
    """

    turns: int = 0
    served: int = 0
    rejected: int = 0
    interrupted: int = 0
    unfinished: int = 0
    sessions_seen: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    reusable_tokens: int = 0
    hit_reusable: float = 0.0
    hit_raw: float = 0.0
    moved_by_load: int = 0
    moved_by_resize: int = 0
    moved_share: float = 0.0
    wait_ms_p50: float = 0.0
    wait_ms_p95: float = 0.0
    wait_ms_p99: float = 0.0
    wait_ms_max: float = 0.0
    waited_share: float = 0.0
    retries: int = 0
    replicas_min: int = 0
    replicas_mean: float = 0.0
    replicas_max: int = 0
    utilisation: float = 0.0
    upscales: int = 0
    downscales: int = 0
    turnarounds: int = 0
    lost: int = 0
    elapsed_s: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)


def simulate(scenario: Scenario, on_progress: Callable[[Progress], None] | None = None) -> Report:
    """Simulate a day. The same scenario gives the same report, but for `elapsed_s`.

    Args:
        scenario: what to simulate.
        on_progress: called some twenty times.
    """
    return _Day(scenario).run(on_progress)


class _Cache:
    """Tokens by key, least recently used first to go. A key of more tokens than fit is not kept."""

    __slots__ = ("_free", "_items")

    def __init__(self, tokens: int) -> None:
        self._free = tokens
        self._items: OrderedDict[int, int] = OrderedDict()

    def get(self, key: int) -> int:
        """Tokens kept under a key, which becomes the newest; 0 if there are none."""
        tokens = self._items.get(key, 0)
        if tokens:
            self._items.move_to_end(key)
        return tokens

    def put(self, key: int, tokens: int) -> None:
        """Keep so many tokens under a key."""
        self._free += self._items.pop(key, 0) - tokens
        self._items[key] = tokens
        while self._free < 0:
            _, gone = self._items.popitem(last=False)
            self._free += gone


@dataclass(slots=True)
class _Turn:
    session: int
    arrived: float
    tries: int = 0
    tokens: int = 0  # of prompt and reply in the KV cache while it runs
    reply: int = 0


class _Replica:
    __slots__ = ("alive", "cache", "draining", "kv", "name", "running", "waiting")

    def __init__(self, name: str, cache_tokens: int) -> None:
        self.name = name
        self.cache = _Cache(cache_tokens)
        self.running: set[int] = set()
        self.waiting: deque[_Turn] = deque()
        self.kv = 0
        self.alive = True
        self.draining = False


@dataclass(slots=True)
class _Point:
    timestamp: float
    value: float


class _Column(Mapping[str, Any]):
    """One metric of all running replicas, read when asked for: as a number, or as a series of one point."""

    def __init__(self, replicas: Mapping[str, _Replica], read: Callable[[_Replica], Any]) -> None:
        self._replicas, self._read = replicas, read

    def __getitem__(self, name: str) -> Any:
        return self._read(self._replicas[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._replicas)

    def __len__(self) -> int:
        return len(self._replicas)


@dataclass(slots=True)
class _Context:
    """Serve's AutoscalingContext, over the simulated replicas."""

    current_num_replicas: int
    target_num_replicas: int
    running_replicas: Sequence[str]
    capacity_adjusted_min_replicas: int
    capacity_adjusted_max_replicas: int
    policy_state: dict[str, Any]
    current_time: float | None
    total_num_requests: float
    total_queued_requests: float
    aggregated_metrics: Mapping[str, Mapping[Any, float]] | None
    raw_metrics: Mapping[str, Mapping[Any, Sequence[_Point]]] | None = field(default=None)


# Kinds of events; the heap orders those of one time by their sequence number.
_ARRIVE, _RETRY, _END, _TICK, _READY, _LOSS = range(6)


class _Day:
    def __init__(self, scenario: Scenario) -> None:
        self.scenario = s = scenario
        self.report = Report()
        self.now = 0.0
        rng = np.random.default_rng(s.seed)
        self.random = random.Random(s.seed)
        self.arrivals = _arrivals(s, rng)
        popularity = 1 / np.arange(1, s.personas + 1) ** s.zipf
        # Lists: reading single items of an array takes longer.
        self.persona: list[int] = rng.choice(s.personas, size=s.sessions, p=popularity / popularity.sum()).tolist()
        self.left: list[int] = rng.geometric(1 / s.turns, size=s.sessions).tolist()
        self.history = [0] * s.sessions
        self.reusable = [0] * s.sessions
        self.persona_sent = [False] * s.personas
        self.place: dict[int, tuple[str, bool]] = {}  # session: where its last turn ran, and whether that was its home
        self.ring = AffinityRing(load_factor=s.load_factor, floor=s.parallel)
        self.loads = ReplicaLoads()
        self.policy = ModelPolicy(
            target_ongoing=s.target_ongoing,
            upscale_delay_s=s.upscale_delay_s,
            downscale_delay_s=s.downscale_delay_s,
        )
        self.policy_state: dict[str, Any] = {}
        self.replicas: dict[str, _Replica] = {}  # running, not draining
        self.names: list[str] = []
        self.starting: deque[str] = deque()
        self.cancelled: set[str] = set()
        self.target = 0
        self.created = 0
        self.later = 0  # turns that began and were not their session's first
        self.unrouted: deque[_Turn] = deque()  # while nothing runs
        self.events: list[tuple[float, int, int, Any]] = []
        self.sequence = 0
        self.direction = 0
        self.in_flight: dict[int, _Turn] = {}
        self.waits: list[float] = []
        self.draining: list[_Replica] = []
        self.busy_s = self.replica_s = self.draining_s = 0.0
        self.busy = 0

    # -- the loop

    def run(self, on_progress: Callable[[Progress], None] | None) -> Report:
        s, began = self.scenario, time.perf_counter()
        # As many as the load of the morning needs, as after a day like this one.
        first = s.sessions * s.turns / s.day_s * (1 - s.swing) * self._mean_turn_s() / s.target_ongoing
        self.target = min(max(math.ceil(first), s.min_replicas), s.max_replicas)
        for _ in range(self.target):
            self._add(self._new_name())
        self._resized()
        self.report.replicas_min = self.report.replicas_max = len(self.replicas)
        self._at(0.0, _TICK, None)
        if s.lost_share:
            self._at(s.lost_at * s.day_s, _LOSS, None)
        handlers: dict[int, Callable[[Any], None]] = {
            _ARRIVE: self._arrive,
            _RETRY: self._try,
            _END: self._ended,
            _TICK: self._tick,
            _READY: self._ready,
            _LOSS: self._lose,
        }
        next_arrival, shown = 0, 0.0
        while True:
            arrival = self.arrivals[next_arrival] if next_arrival < len(self.arrivals) else math.inf
            upcoming = self.events[0][0] if self.events else math.inf
            if min(arrival, upcoming) >= s.day_s:
                break
            if arrival <= upcoming:
                self._count_time(arrival)
                self.report.sessions_seen += 1
                self._arrive(next_arrival)
                next_arrival += 1
            else:
                at, _, kind, what = heapq.heappop(self.events)
                self._count_time(at)
                handlers[kind](what)
            if on_progress is not None and self.now >= shown + s.day_s / 20:
                shown = self.now
                elapsed = time.perf_counter() - began
                on_progress(Progress(self.now / s.day_s, self.report.turns, len(self.replicas), elapsed))
        self._count_time(s.day_s)
        self._summarise(time.perf_counter() - began)
        return self.report

    def _at(self, when: float, kind: int, what: Any) -> None:
        self.sequence += 1
        heapq.heappush(self.events, (when, self.sequence, kind, what))

    def _count_time(self, now: float) -> None:
        passed = now - self.now
        self.busy_s += passed * self.busy
        self.replica_s += passed * len(self.replicas)
        if self.draining:
            self.draining = [replica for replica in self.draining if replica.running or replica.waiting]
            self.draining_s += passed * len(self.draining)
        self.now = now

    # -- turns

    def _arrive(self, session: int) -> None:
        self.report.turns += 1
        self._try(_Turn(session, self.now))

    def _try(self, turn: _Turn) -> None:
        if not self.replicas:
            self.unrouted.append(turn)
            return
        s = self.scenario
        ranked = self._rank(turn)
        room = s.parallel + s.max_waiting
        for name in ranked:
            replica = self.replicas[name]
            if len(replica.running) + len(replica.waiting) < room:
                self.loads.add(name, 1)
                if len(replica.running) < s.parallel:
                    self._begin(replica, turn)
                else:
                    replica.waiting.append(turn)
                return
        if turn.tries < s.retries:
            turn.tries += 1
            self.report.retries += 1
            self._at(self.now + s.retry_s, _RETRY, turn)
        else:
            self.report.rejected += 1
            self.place.pop(turn.session, None)  # the person gives up

    def _rank(self, turn: _Turn) -> list[str]:
        if self.scenario.affinity:
            return self.ring.route(*self._key(turn.session), self.loads, limit=2, count=turn.tries == 0)
        pair = [self.random.choice(self.names) for _ in range(2)]
        return sorted(set(pair), key=self.loads.get)

    def _begin(self, replica: _Replica, turn: _Turn) -> None:
        s, session = self.scenario, turn.session
        persona = self.persona[session]
        self.waits.append(self.now - turn.arrived)
        self._count_move(replica, turn)

        history = self.history[session]
        own = s.own_tokens + history
        prompt = s.prefix_tokens + own + s.user_tokens + s.recall_tokens
        prefix_cached = replica.cache.get(-1 - persona)
        own_cached = min(replica.cache.get(session), own) if prefix_cached else 0
        cached = prefix_cached + own_cached
        self.report.prompt_tokens += prompt
        self.report.cached_tokens += cached
        shared = s.prefix_tokens if self.persona_sent[persona] else 0
        self.report.reusable_tokens += shared + min(self.reusable[session], own)
        self.persona_sent[persona] = True

        turn.reply = max(1, min(round(self.random.expovariate(1 / s.reply_tokens)), int(4 * s.reply_tokens)))
        turn.tokens = prompt + turn.reply
        replica.kv += turn.tokens
        replica.cache.put(-1 - persona, s.prefix_tokens)
        # The message stays in the cache; what is recalled comes after it and is not sent again.
        replica.cache.put(session, own + s.user_tokens)
        takes = (prompt - cached) / s.read_tokens_per_s + turn.reply / s.write_tokens_per_s
        self.sequence += 1
        key = self.sequence
        replica.running.add(key)
        self.in_flight[key] = turn
        self.busy += 1
        self._at(self.now + takes, _END, (replica, key))

    def _count_move(self, replica: _Replica, turn: _Turn) -> None:
        before = self.place.get(turn.session)
        if before is not None:
            self.later += 1
            if before[0] == replica.name:
                return
        at_home = self.scenario.affinity and replica.name == self.ring.owner(*self._key(turn.session))
        if before is not None:
            # From one home to another: the ring changed. Else it went to, or came back from, another replica.
            if before[0] not in self.replicas or (before[1] and at_home):
                self.report.moved_by_resize += 1
            else:
                self.report.moved_by_load += 1
        self.place[turn.session] = (replica.name, at_home)

    def _key(self, session: int) -> tuple[str, str]:
        return f"p{self.persona[session]}", f"s{session}"

    def _ended(self, what: tuple[_Replica, int]) -> None:
        replica, key = what
        if not replica.alive:
            return  # counted when it died
        s = self.scenario
        turn = self.in_flight.pop(key)
        replica.running.discard(key)
        replica.kv -= turn.tokens
        self.busy -= 1
        if not replica.draining:
            self.loads.add(replica.name, -1)
        self.report.served += 1
        session = turn.session
        sent = s.own_tokens + self.history[session] + s.user_tokens
        grown = self.history[session] + s.user_tokens + turn.reply
        if grown > s.history_tokens:
            # Truncated in one big step: only the card before it can be reused.
            grown //= 2
            sent = s.own_tokens
            replica.cache.put(session, sent)
        self.history[session] = grown
        self.reusable[session] = sent
        self._next_turn(session)
        if replica.waiting and replica.alive:
            self._begin(replica, replica.waiting.popleft())

    def _next_turn(self, session: int) -> None:
        self.left[session] -= 1
        if self.left[session] > 0:
            when = self.now + (self.random.expovariate(1 / self.scenario.think_s) if self.scenario.think_s else 0.0)
            self._at(when, _ARRIVE, session)
        else:
            self.place.pop(session, None)

    # -- replicas

    def _new_name(self) -> str:
        self.created += 1
        return f"model#{self.created}"

    def _add(self, name: str) -> None:
        self.replicas[name] = _Replica(name, self.scenario.cache_tokens)
        self.loads.set(name, 0)

    def _resized(self) -> None:
        self.names = list(self.replicas)
        self.ring.update(self.names)
        self.report.replicas_max = max(self.report.replicas_max, len(self.names))
        self.report.replicas_min = min(self.report.replicas_min, len(self.names))
        while self.unrouted and self.replicas:
            self._try(self.unrouted.popleft())

    def _tick(self, _: None) -> None:
        s = self.scenario
        at = [_Point(self.now, 0.0)]
        reads: dict[str, Callable[[_Replica], Any]] = {
            ONGOING: lambda replica: float(len(replica.running) + len(replica.waiting)),
            WAITING: lambda replica: float(len(replica.waiting)),
            KV_USE: lambda replica: min(1.0, replica.kv / s.cache_tokens),
        }
        context = _Context(
            current_num_replicas=len(self.replicas),
            target_num_replicas=self.target,
            running_replicas=self.names,
            capacity_adjusted_min_replicas=s.min_replicas,
            capacity_adjusted_max_replicas=s.max_replicas,
            policy_state=self.policy_state,
            current_time=self.now,
            total_num_requests=float(self.loads.total + len(self.unrouted)),
            total_queued_requests=float(len(self.unrouted)),
            aggregated_metrics={name: _Column(self.replicas, read) for name, read in reads.items()},
            raw_metrics={name: _Column(self.replicas, lambda replica: at) for name in reads},
        )
        wanted, self.policy_state = self.policy(context)
        if wanted != self.target:
            direction = 1 if wanted > self.target else -1
            self.report.turnarounds += self.direction not in (0, direction)
            self.direction = direction
            self.report.upscales += direction > 0
            self.report.downscales += direction < 0
            self.target = wanted
        self._reconcile()
        self._at(self.now + s.decision_s, _TICK, None)

    def _reconcile(self) -> None:
        """Start and stop replicas until there are as many as the target, as Serve does."""
        while len(self.replicas) + len(self.starting) < self.target:
            name = self._new_name()
            self.starting.append(name)
            self._at(self.now + self.scenario.start_s, _READY, name)
        while self.starting and len(self.replicas) + len(self.starting) > self.target:
            self.cancelled.add(self.starting.pop())
        surplus = len(self.replicas) - self.target
        if surplus > 0:
            for name in self.names[-surplus:]:  # the newest, whose caches are the coldest
                self._drain(name)
            self._resized()

    def _ready(self, name: str) -> None:
        if name in self.cancelled:
            self.cancelled.discard(name)
            return
        self.starting.remove(name)
        self._add(name)
        self._resized()

    def _drain(self, name: str) -> None:
        replica = self.replicas.pop(name)
        replica.draining = True  # it finishes what it has
        self.draining.append(replica)
        self.loads.drop(name)

    def _lose(self, _: None) -> None:
        count = math.floor(len(self.replicas) * self.scenario.lost_share)
        again: list[_Turn] = []
        for name in self.random.sample(self.names, count):
            replica = self.replicas.pop(name)
            replica.alive = False
            self.loads.drop(name)
            again += replica.waiting
            replica.waiting.clear()
            for key in sorted(replica.running):
                turn = self.in_flight.pop(key)
                self.busy -= 1
                self.report.interrupted += 1
                self._next_turn(turn.session)
        self.report.lost += count
        self._resized()
        for turn in again:
            self._try(turn)
        self._reconcile()

    # -- the end

    def _mean_turn_s(self) -> float:
        s = self.scenario
        return (s.own_tokens + s.user_tokens + s.recall_tokens) / s.read_tokens_per_s + (
            s.reply_tokens / s.write_tokens_per_s
        )

    def _summarise(self, elapsed_s: float) -> None:
        report = self.report
        # Turns in flight, in the queues of running and draining replicas, unrouted, or waiting to try again.
        queued = len(self.unrouted) + sum(isinstance(what, _Turn) for _, _, _, what in self.events)
        seen = {id(what[0]): what[0] for _, _, kind, what in self.events if kind == _END}
        seen |= {id(replica): replica for replica in self.replicas.values()}
        queued += sum(len(replica.waiting) for replica in seen.values())
        report.unfinished = len(self.in_flight) + queued
        report.hit_reusable = report.cached_tokens / max(1, report.reusable_tokens)
        report.hit_raw = report.cached_tokens / max(1, report.prompt_tokens)
        report.moved_share = (report.moved_by_load + report.moved_by_resize) / max(1, self.later)
        if self.waits:
            waits = np.asarray(self.waits) * 1000
            p50, p95, p99 = (float(value) for value in np.percentile(waits, (50, 95, 99)))
            report.wait_ms_p50, report.wait_ms_p95, report.wait_ms_p99 = p50, p95, p99
            report.wait_ms_max = float(waits.max())
            report.waited_share = float((waits > 0).mean())
        report.replicas_mean = self.replica_s / self.scenario.day_s
        report.utilisation = self.busy_s / max(1e-9, (self.replica_s + self.draining_s) * self.scenario.parallel)
        report.elapsed_s = elapsed_s


def _arrivals(scenario: Scenario, rng: np.random.Generator) -> list[float]:
    """Times of the first turns: a Poisson process, given its number, whose rate is least at both ends of the day."""
    share = np.linspace(0.0, 1.0, 4097)
    # The integral of 1 - swing * cos(2πx), which is 1 at the end.
    grown = share - scenario.swing * np.sin(2 * np.pi * share) / (2 * np.pi)
    times: list[float] = (np.sort(np.interp(rng.random(scenario.sessions), grown, share)) * scenario.day_s).tolist()
    return times
