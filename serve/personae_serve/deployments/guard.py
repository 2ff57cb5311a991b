"""The guard deployment: scorers, batched over every gateway's streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from personae_runtime.policy.scorers import Scorer, SyncScorer, WholeScorer, build_scorers
from personae_serve.interpreter import hand_over_quickly
from personae_serve.stores import make_embedder

_BATCH = 64
_BATCH_WAIT_S = 0.002

Scores = list[dict[str, float]]


class GuardReplica:
    """Scores texts: by cheap scorers those of calls that come together in one go.

    Args:
        scorers: names of those that run here.
        configured: names of all, as what else runs tells what some of them give.
        timeout_ms: see `build_scorers`.
        models_dir: has the embedding model, which the cascade needs: a session of the replica's own.

    Raises:
        MissingModel: the embedding model is needed and isn't there.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, scorers: tuple[str, ...], configured: tuple[str, ...], timeout_ms: float, models_dir: str
    ) -> None:
        hand_over_quickly()
        # With `injection` the cascade gives a category more, and the n-gram head one less.
        names = [name for name in configured if name in scorers or name == "injection"]
        self._embedder = make_embedder(Path(models_dir)) if "cascade" in names else None
        built = build_scorers(names, timeout_ms, self._embedder)
        self._scorers: dict[str, Scorer] = {scorer.name: scorer for scorer in built if scorer.name in scorers}
        if self._embedder is not None:
            await self._embedder.start()

    @serve.batch(max_batch_size=_BATCH, batch_wait_timeout_s=_BATCH_WAIT_S)
    async def score(self, calls: list[tuple[str, tuple[str, ...]]]) -> list[Scores]:
        """Each call is (scorer, texts); its result has one mapping per text."""
        results: list[Scores] = [[] for _ in calls]
        for name in {name for name, _ in calls}:
            mine = [index for index, (asked, _) in enumerate(calls) if asked == name]
            texts = [text for index in mine for text in calls[index][1]]
            rows = iter(await self._scorers[name].score(texts))
            for index in mine:
                results[index] = [dict(next(rows)) for _ in calls[index][1]]
        return results

    async def score_alone(self, name: str, texts: tuple[str, ...], *, whole: bool) -> Scores:
        """One call by itself: one mapping per text.

        For scorers that embed. In a batch cheap ones would wait for them; and they compare the texts of a call, which
        must all be of one reply.

        Args:
            whole: the texts are whole ones, or pieces of one.
        """
        scorer = self._scorers[name]
        if not whole:
            return [dict(row) for row in await scorer.score(texts)]
        assert isinstance(scorer, WholeScorer)
        return [dict(row) for row in await scorer.score_whole(texts)]

    async def __del__(self) -> None:
        embedder = getattr(self, "_embedder", None)
        if embedder is not None:
            await embedder.close()


class RemoteScorer:
    """A scorer of the guard deployment, for the gates of a gateway; see `remote_scorer`.

    One that does not answer by the deadline has failed, and the gate blocks.

    Args:
        scorer: what the guard runs; its texts are not scored here.
    """

    def __init__(self, scorer: Scorer, handle: DeploymentHandle[Any]) -> None:
        self.name = scorer.name
        self.categories = scorer.categories
        self.deadline_s = scorer.deadline_s
        self._batched = isinstance(scorer, SyncScorer)
        self._handle = handle.options(request_serialization="pickle", response_serialization="pickle")

    async def score(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        """See Scorer.score."""
        rows: list[Mapping[str, float]]
        if self._batched:
            rows = await self._handle.score.remote((self.name, tuple(texts)))
        else:
            rows = await self._handle.score_alone.remote(self.name, tuple(texts), whole=False)
        return rows


class RemoteWholeScorer(RemoteScorer):
    """As RemoteScorer, where the guard's judges whole texts, too."""

    async def score_whole(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        """See WholeScorer.score_whole."""
        rows: list[Mapping[str, float]] = await self._handle.score_alone.remote(self.name, tuple(texts), whole=True)
        return rows


def remote_scorer(scorer: Scorer, handle: DeploymentHandle[Any]) -> RemoteScorer:
    """What stands in a gateway for a scorer that the guard runs."""
    return (RemoteWholeScorer if isinstance(scorer, WholeScorer) else RemoteScorer)(scorer, handle)
