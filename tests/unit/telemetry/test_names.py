"""The names are a contract: dashboards, alert rules and other people's tools read them."""

from __future__ import annotations

import importlib
from pathlib import Path

import opentelemetry.semconv
import pytest

from personae_runtime.telemetry import names
from personae_runtime.telemetry.setup import Telemetry
from tests.instruments import every_metric

NAMES = {key: value for key, value in vars(names).items() if key.startswith(("SPAN_", "ATTR_", "METRIC_"))}


def conventional_names() -> set[str]:
    (root,) = map(Path, opentelemetry.semconv.__path__)
    found: set[str] = set()
    for path in root.rglob("*.py"):  # one of its folders is no package, so that pkgutil would miss it
        parts = path.relative_to(root).with_suffix("").parts
        module = importlib.import_module(".".join(("opentelemetry.semconv", *parts)).removesuffix(".__init__"))
        found.update(value for key, value in vars(module).items() if key.isupper() and isinstance(value, str))
    return found


def test_names_outside_our_namespace_are_those_of_the_semantic_conventions() -> None:
    borrowed = {value for value in NAMES.values() if not value.startswith("personae.")}
    assert borrowed
    assert borrowed - conventional_names() == set()


def test_no_name_is_used_twice() -> None:
    assert len(set(NAMES.values())) == len(NAMES)


@pytest.mark.parametrize("prefix", ["SPAN_", "ATTR_", "METRIC_"])
def test_names_are_lower_case_and_dotted(prefix: str) -> None:
    for key, value in NAMES.items():
        if key.startswith(prefix):
            assert value == value.lower(), key
            assert "." in value, key


def test_a_turn_has_at_most_ten_spans() -> None:
    assert len(names.STAGE_SPANS) + 1 <= 10
    assert set(names.STAGE_SPANS) == {value for key, value in NAMES.items() if key.startswith("SPAN_")}


async def test_every_metric_has_an_instrument_and_every_instrument_a_name() -> None:
    telemetry, metrics = every_metric()
    emitted = {metric.name for metric in metrics}
    assert emitted == {value for key, value in NAMES.items() if key.startswith("METRIC_")}
    await telemetry.shutdown()


async def test_every_instrument_is_documented() -> None:
    telemetry = Telemetry.off()
    documented = Telemetry.__doc__ or ""
    for name in vars(telemetry):
        if not name.startswith("_") and name != "tracer":
            assert f"{name}:" in documented or f"{name}," in documented, name
