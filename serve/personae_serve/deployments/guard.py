"""The guard deployment: scorers, batched over every gateway's streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from personae_runtime.policy.scorers import Scorer, build_scorers
from personae_serve.interpreter import hand_over_quickly

_BATCH = 64
_BATCH_WAIT_S = 0.002


class GuardReplica:
    """Scores texts, those of calls that come together in one go."""

    def __init__(self, scorers: tuple[str, ...], timeout_ms: float) -> None:
        hand_over_quickly()
        self._scorers: dict[str, Scorer] = {scorer.name: scorer for scorer in build_scorers(scorers, timeout_ms)}

    @serve.batch(max_batch_size=_BATCH, batch_wait_timeout_s=_BATCH_WAIT_S)
    async def score(self, calls: list[tuple[str, tuple[str, ...]]]) -> list[list[dict[str, float]]]:
        """Each call is (scorer, texts); its result has one mapping per text."""
        results: list[list[dict[str, float]]] = [[] for _ in calls]
        for name in {name for name, _ in calls}:
            mine = [index for index, (asked, _) in enumerate(calls) if asked == name]
            texts = [text for index in mine for text in calls[index][1]]
            rows = iter(await self._scorers[name].score(texts))
            for index in mine:
                results[index] = [dict(next(rows)) for _ in calls[index][1]]
        return results


class RemoteScorer:
    """A scorer of the guard deployment, for the gates of a gateway.

    One that does not answer by the deadline has failed, and the gate blocks.

    Args:
        scorer: what the guard runs; only its name and categories are used here.
    """

    def __init__(self, scorer: Scorer, handle: DeploymentHandle[Any]) -> None:
        self.name = scorer.name
        self.categories = scorer.categories
        self.deadline_s = scorer.deadline_s
        self._handle = handle.options(
            method_name="score", request_serialization="pickle", response_serialization="pickle"
        )

    async def score(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        """See Scorer.score."""
        rows: list[Mapping[str, float]] = await self._handle.remote((self.name, tuple(texts)))
        return rows
