"""The models of a host by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from personae_runtime.engines.engine import Engine
from personae_runtime.errors import FailedPrecondition


class Engines:
    """Engines by the name of their model; the first is the default.

    Args:
        engines: at least one, of different models.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.default = engines[0]
        self._by_model = {engine.model: engine for engine in engines}

    def __iter__(self) -> Iterator[Engine]:
        return iter(self._by_model.values())

    def get(self, model: str, adapter: str = "") -> Engine:
        """The engine that runs a revision.

        Args:
            model: "" is the default.
            adapter: that must be there, too; "" is none.

        Raises:
            FailedPrecondition: the host has no such model (reason MODEL_NOT_SERVED), or the
                model no such adapter (reason ADAPTER_NOT_SERVED).
        """
        engine = self._by_model.get(model) if model else self.default
        if engine is None:
            known = ", ".join(self._by_model)
            raise FailedPrecondition(
                f"this host has no model {model!r}; it has: {known}",
                reason="MODEL_NOT_SERVED",
                violations=(("definition.generation.model", f"one of: {known}"),),
            )
        if adapter and adapter not in engine.adapters:
            known = ", ".join(engine.adapters) or "none"
            raise FailedPrecondition(
                f"{engine.model} has no adapter {adapter!r} on this host; it has: {known}",
                reason="ADAPTER_NOT_SERVED",
                violations=(("definition.generation.adapter", f"one of: {known}"),),
            )
        return engine
