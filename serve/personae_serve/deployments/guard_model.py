"""The guard model's deployment, and the scorer that a gateway sees of it.

A replica is one of a model with the scorer beside its engine: texts go there and scores come back, in one call for all
that a gate asks at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from personae_runtime.config import GuardModelSettings, Settings
from personae_runtime.policy.guard_models import FAMILIES, GuardModelScorer, Side, family_of
from personae_serve.deployments.model import ModelReplica, model_deployment


class GuardModelReplica(ModelReplica):
    """One replica of the guard model.

    Args:
        model, profile, models_dir, coalesce_ms, telemetry: as of ModelReplica.
        guard: a `GuardModelSettings`, dumped.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        model: dict[str, Any],
        profile: str,
        models_dir: str,
        coalesce_ms: float,
        telemetry: dict[str, Any],
        guard: dict[str, Any],
    ) -> None:
        chosen = GuardModelSettings.model_validate(guard)
        family = family_of(chosen)
        await super().__init__(model, profile, models_dir, coalesce_ms, telemetry)
        self._scorer = GuardModelScorer(family, self._engine, chosen.deadline_ms / 1000)
        await self._scorer.check()

    async def judge(self, texts: tuple[str, ...], side: Side) -> list[dict[str, float]]:
        """See GuardModelScorer.judge."""
        # The gate that waited has given up by then; one that is gone can't cancel.
        async with asyncio.timeout(self._scorer.deadline_s):
            return [dict(row) for row in await self._scorer.judge(texts, side)]


class RemoteGuardModel:
    """The guard model's deployment as the scorer `guard_model`.

    A replica that dies, refuses or does not answer by the deadline has failed, and the gate blocks.
    """

    name = GuardModelScorer.name

    def __init__(self, settings: GuardModelSettings, handle: DeploymentHandle[Any]) -> None:
        assert settings.family is not None
        self.categories = FAMILIES[settings.family].categories
        self.deadline_s = settings.deadline_ms / 1000
        self._handle = handle.options(
            method_name="judge", request_serialization="pickle", response_serialization="pickle"
        )

    async def score(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        """See GuardModelScorer.score."""
        return await self._judge(texts, "assistant")

    async def score_whole(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        """See GuardModelScorer.score_whole."""
        return await self._judge(texts, "user")

    async def score_whole_reply(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        """See GuardModelScorer.score_whole_reply."""
        return await self._judge(texts, "assistant")

    async def _judge(self, texts: Sequence[str], side: Side) -> list[Mapping[str, float]]:
        response = self._handle.remote(tuple(texts), side)
        try:
            rows: list[Mapping[str, float]] = await response
        except asyncio.CancelledError:
            # Reaches the replica's call, and through it the engine's requests.
            response.cancel()  # type: ignore[no-untyped-call]
            raise
        return rows


def guard_model_deployment(settings: Settings) -> serve.Application:
    """The deployment of the settings' guard model, bound; they have been checked."""
    chosen, model = settings.policy.guard_model, settings.guard_model_deployment
    assert model is not None
    return model_deployment(model, settings, GuardModelReplica, chosen.model_dump(mode="json"))
