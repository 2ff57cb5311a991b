"""Alert rules, dashboard and collector speak of metrics that exist."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.unit.infra.metrics import LABELS, names_in, prometheus_names

INFRA = ROOT / "infra"
RULES = INFRA / "prometheus" / "rules.yml"


def rules() -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
        yield from group["rules"]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((INFRA / "grafana" / "personae.json").read_text(encoding="utf-8"))[
        "panels"
    ]
    return found


def queries() -> Iterator[tuple[str, str]]:
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def test_names_are_spelt_as_the_collector_spells_them() -> None:
    assert {
        "personae_turns_total",
        "personae_turns_active",
        "personae_turn_time_to_first_event_seconds_bucket",
        "rpc_server_call_duration_seconds_count",
        "personae_ledger_commit_batch_size_sum",
        "personae_engine_queue_depth",
    } <= prometheus_names()


def test_the_names_of_a_query_are_found() -> None:
    query = 'sum by (le, a) (rate(x_bucket{b="c d",e!~"f"}[5m])) / (y_total unless y_total offset 5m) > 0.5'
    assert names_in(query) == ({"x_bucket", "y_total"}, {"le", "a", "b", "e"})


def test_every_query_uses_metrics_and_labels_that_exist() -> None:
    known = prometheus_names()
    for where, query in queries():
        metrics, labels = names_in(query)
        assert metrics, where
        assert metrics <= known, f"{where}: {metrics - known}"
        assert labels <= LABELS, f"{where}: {labels - LABELS}"


def test_every_alert_says_what_happened_and_what_to_do() -> None:
    seen = set()
    for rule in rules():
        assert rule["alert"] not in seen
        seen.add(rule["alert"])
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "action"}


def test_what_operations_calls_an_alarm_pages() -> None:
    known = prometheus_names()
    paged: set[str] = set()
    for rule in rules():
        if rule["labels"]["severity"] == "page":
            paged |= names_in(rule["expr"])[0]
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    alarms = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `") and "**alarm**" in line]
    assert alarms
    for metric in alarms:
        spelt = metric.replace(".", "_")
        assert any(name in known and name.startswith(spelt) for name in paged), metric


def test_the_dashboard_is_what_its_script_writes() -> None:
    path = INFRA / "grafana" / "dashboard.py"
    spec = importlib.util.spec_from_file_location("personae_dashboard", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    committed = (INFRA / "grafana" / "personae.json").read_text(encoding="utf-8")
    assert committed == module.text(), "run: python infra/grafana/dashboard.py > infra/grafana/personae.json"


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_the_collectors_pipelines_use_what_it_defines() -> None:
    collector = yaml.safe_load((INFRA / "otel" / "collector.yaml").read_text(encoding="utf-8"))
    for name, pipeline in collector["service"]["pipelines"].items():
        for kind in ("receivers", "processors", "exporters"):
            assert pipeline[kind], name
            assert set(pipeline[kind]) <= set(collector[kind]), f"{name}: {kind}"
        assert pipeline["processors"][0] == "memory_limiter"
    assert set(collector["service"]["extensions"]) <= set(collector["extensions"])


def _promtool(*arguments: str, cwd: Path) -> None:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    done = subprocess.run([tool, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_the_configuration_and_the_rules() -> None:
    _promtool("check", "config", "prometheus.yml", cwd=INFRA / "prometheus")


def test_alerts_fire_when_they_should_and_only_then() -> None:
    _promtool("test", "rules", "rules.test.yml", cwd=INFRA / "prometheus")
