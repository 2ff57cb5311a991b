"""Serve's request router that keeps sessions where their prefix is cached.

A caller names the session by `handle.options(session_id=affinity_key(persona, session))`.
The class is pickled by value into every process with a handle, so it keeps
nothing in this module: see `running`.
"""

from __future__ import annotations

import random
from typing import Any

from ray.serve._private.common import ReplicaID
from ray.serve._private.request_router.common import PendingRequest
from ray.serve._private.request_router.replica_wrapper import RunningReplica
from ray.serve._private.request_router.request_router import RequestRouter

from personae_serve.deployments import running
from personae_serve.deployments.affinity import AffinityRing, ReplicaLoads
from personae_serve.deployments.running import running_replicas

__all__ = ["AffinityRouter", "affinity_key", "request_router_config", "running_replicas"]

_SEPARATOR = "|"


def affinity_key(persona: str, session: str) -> str:
    """The `session_id` that says whose prefix a request shares.

    Args:
        persona: what shares a prefix, by a name that is the same everywhere: a revision's full name.
        session: the session's full name.
    """
    return f"{persona}{_SEPARATOR}{session}"


def request_router_config(load_factor: float, *, parallel: int | None = None) -> dict[str, Any]:
    """The arguments of Serve's `RequestRouterConfig` for a model deployment: plain JSON data.

    Args:
        load_factor: a replica takes at most this many times the mean load; above 1.
        parallel: requests that a replica generates at once. While it has such a
            place free its sessions stay, whatever the mean: a session that moves
            is read anew, and gains nothing where nobody waits. None means a
            quarter of `max_ongoing_requests`.

    Raises:
        InvalidArgument: a value is out of its range.
    """
    kwargs: dict[str, Any] = {"load_factor": load_factor}
    if parallel is not None:
        kwargs["floor"] = parallel
    AffinityRing(**kwargs)
    return {"request_router_class": f"{__name__}:AffinityRouter", "request_router_kwargs": kwargs}


class AffinityRouter(RequestRouter):
    """Ranks replicas by the affinity ring, with loads from the cache of queue lengths.

    A replica that is full (`max_ongoing_requests`, which must be finite) refuses,
    and the next in the ranking is tried. A request without a session goes to the
    less loaded of two random replicas. Without replicas requests wait here, and
    Serve scales up from zero because they do.
    """

    LOADS_AGE_S = 1.0
    """Age at which all loads are read anew: in between, only what this process sends and hears of is kept."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ring = AffinityRing()
        self._floor: int | None = None
        self._by_name: dict[str, RunningReplica] = {}
        self._loads = ReplicaLoads()
        self._loads_read_at = float("-inf")
        self._sent: dict[ReplicaID, int] = {}

    def initialize_state(self, **kwargs: Any) -> None:
        """Take the arguments of the deployment's `RequestRouterConfig`: those of AffinityRing.

        Raises:
            InvalidArgument: one is out of its range.
        """
        self._ring = AffinityRing(**kwargs)
        self._floor = kwargs.get("floor")

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take the deployment's running replicas, as Serve tells them."""
        # Base first: it starts tasks that rank only once this method has returned.
        super().update_replicas(replicas)
        self._replicas_changed()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Leave out a replica that was seen to have died, before Serve tells."""
        super().on_replica_actor_died(replica_id)
        self._replicas_changed()

    def on_new_queue_len_info(self, replica_id: ReplicaID, num_ongoing_requests: int) -> None:
        """Take a replica's word for its load."""
        super().on_new_queue_len_info(replica_id, num_ongoing_requests)
        self._set_load(replica_id)

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Count a request that is on its way to a replica."""
        super().on_send_request(replica_id)
        self._sent[replica_id] = self._sent.get(replica_id, 0) + 1
        self._set_load(replica_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Forget a request that ended in any way."""
        super().on_request_completed(replica_id, internal_request_id)
        left = self._sent.get(replica_id, 0) - 1
        if left > 0:
            self._sent[replica_id] = left
        else:
            self._sent.pop(replica_id, None)
        self._set_load(replica_id)

    def decrement_queue_len_cache(self, replica_id: ReplicaID) -> None:
        """Count a request less at a replica."""
        super().decrement_queue_len_cache(replica_id)
        self._set_load(replica_id)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Replicas to try, one after the other.

        Args:
            candidate_replicas: the running ones.
            pending_request: what to route; its metadata hold the affinity key.
        """
        if not candidate_replicas:
            return []
        retried = False
        key = ""
        if pending_request is not None:
            retried = pending_request.routing_context.should_backoff
            pending_request.routing_context.should_backoff = True  # all full: wait before the next round
            key = pending_request.metadata.session_id
        if not key:
            return [random.sample(candidate_replicas, min(2, len(candidate_replicas))), candidate_replicas]
        persona, separator, session = key.rpartition(_SEPARATOR)
        self._read_loads()
        ranked = self._ring.route(persona if separator else key, session, self._loads, count=not retried)
        return [[self._by_name[name]] for name in ranked]

    def _replicas_changed(self) -> None:
        running.record(self._deployment_id, len(self._replicas))
        self._by_name = {replica.replica_id.unique_id: replica for replica in self._replicas_list}
        for replica_id in [one for one in self._sent if one not in self._replicas]:
            del self._sent[replica_id]
        if self._by_name and self._floor is None:
            self._ring.floor = max(1, min(r.max_ongoing_requests for r in self._replicas_list) // 4)
        self._ring.update(self._by_name)
        self._loads_read_at = float("-inf")

    def _read_loads(self) -> None:
        now = self._get_curr_time_s()
        # Also if the clock went back.
        if not 0 <= now - self._loads_read_at < self.LOADS_AGE_S:
            self._loads_read_at = now
            self._loads = ReplicaLoads({one.unique_id: self._load(one) for one in self._replicas})

    def _set_load(self, replica_id: ReplicaID) -> None:
        if replica_id in self._replicas:
            self._loads.set(replica_id.unique_id, self._load(replica_id))

    def _load(self, replica_id: ReplicaID) -> int:
        # What the replica said counts the requests of other processes, but is forgotten after some seconds.
        return max(self._replica_queue_len_cache.get(replica_id) or 0, self._sent.get(replica_id, 0))
