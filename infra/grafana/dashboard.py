"""The Grafana dashboard, written by code: `python infra/grafana/dashboard.py > infra/grafana/personae.json`."""

from __future__ import annotations

import json
import sys
from typing import Any

WIDTH, HEIGHT = 12, 8

Panel = tuple[str, str, list[tuple[str, str]]]
"""Title, unit as Grafana names it, and pairs of legend and query."""


def quantiles(histogram: str, *, by: str = "") -> list[tuple[str, str]]:
    """Queries for the median, p95 and p99 of a histogram."""
    labels = f"le, {by}" if by else "le"
    suffix = f" {{{{{by}}}}}" if by else ""
    return [
        (f"p{round(q * 100)}{suffix}", f"histogram_quantile({q}, sum by ({labels}) (rate({histogram}_bucket[5m])))")
        for q in (0.5, 0.95, 0.99)
    ]


ROWS: list[tuple[str, list[Panel]]] = [
    (
        "What people notice",
        [
            ("Time to first event", "s", quantiles("personae_turn_time_to_first_event_seconds")),
            ("Time to first token", "s", quantiles("gen_ai_server_time_to_first_token_seconds")),
            ("Time to first released text", "s", quantiles("personae_turn_first_release_seconds")),
            ("Lateness of cleared text", "s", quantiles("personae_stream_delta_lateness_seconds")),
            (
                "Turns by outcome",
                "ops",
                [
                    (
                        "{{personae_turn_outcome}} {{personae_reason}}",
                        "sum by (personae_turn_outcome, personae_reason) (rate(personae_turns_total[5m]))",
                    )
                ],
            ),
            (
                "Calls that fail",
                "ops",
                [
                    (
                        "{{rpc_method}} {{rpc_response_status_code}}",
                        "sum by (rpc_method, rpc_response_status_code) "
                        '(rate(rpc_server_call_duration_seconds_count{rpc_response_status_code!="OK"}[5m]))',
                    )
                ],
            ),
        ],
    ),
    (
        "Load",
        [
            (
                "Running turns and open streams",
                "short",
                [
                    ("turns", "sum(personae_turns_active)"),
                    ("streams", "sum(personae_stream_views_active)"),
                ],
            ),
            (
                "Streams opened, resumed and dropped",
                "ops",
                [
                    ("opened", "sum(rate(personae_stream_views_total[5m]))"),
                    ("resumed", "sum(rate(personae_stream_resumes_total[5m]))"),
                    ("dropped", "sum(rate(personae_stream_views_dropped_total[5m]))"),
                ],
            ),
            ("Wait to be accepted", "s", quantiles("personae_gateway_accept_wait_seconds", by="instance")[2:]),
            ("Event-loop lag by process", "s", quantiles("personae_event_loop_lag_seconds", by="instance")[2:]),
            ("Own work before the prompt", "s", quantiles("personae_turn_own_work_seconds")),
        ],
    ),
    (
        "Model",
        [
            ("Requests waiting", "short", [("{{instance}}", "max by (instance) (personae_engine_queue_depth)")]),
            (
                "Tokens",
                "ops",
                [
                    ("prompt", "sum(rate(personae_engine_input_tokens_total[5m]))"),
                    ("of these from the cache", "sum(rate(personae_engine_cached_input_tokens_total[5m]))"),
                    ("generated", "sum(rate(personae_engine_output_tokens_total[5m]))"),
                ],
            ),
            (
                "Share of prompt tokens from the prefix cache",
                "percentunit",
                [
                    (
                        "{{gen_ai_request_model}}",
                        "sum by (gen_ai_request_model) (rate(personae_engine_cached_input_tokens_total[15m]))"
                        " / sum by (gen_ai_request_model) (rate(personae_engine_input_tokens_total[15m]))",
                    )
                ],
            ),
        ],
    ),
    (
        "Policy and memory",
        [
            (
                "Policy decisions that changed something",
                "ops",
                [
                    (
                        "{{personae_policy_stage}} {{personae_policy_action}} {{personae_policy_category}}",
                        "sum by (personae_policy_stage, personae_policy_action, personae_policy_category) "
                        '(rate(personae_gate_actions_total{personae_policy_action!="allow"}[5m]))',
                    )
                ],
            ),
            (
                "Scorers and recalls that failed",
                "ops",
                [
                    ("scorers", "sum(rate(personae_gate_failures_total[5m]))"),
                    ("recalls", "sum(rate(personae_recall_failures_total[5m]))"),
                ],
            ),
            ("Recall", "s", quantiles("personae_recall_duration_seconds")),
            (
                "Recalls by words alone",
                "percentunit",
                [
                    (
                        "share",
                        "sum(rate(personae_recall_fallbacks_total[5m]))"
                        " / sum(rate(personae_recall_duration_seconds_count[5m]))",
                    )
                ],
            ),
        ],
    ),
    (
        "Ledger",
        [
            ("Commit", "s", quantiles("personae_ledger_commit_duration_seconds")),
            ("Rows per commit", "short", quantiles("personae_ledger_commit_batch_size")),
        ],
    ),
]


def dashboard() -> dict[str, Any]:
    """The dashboard's model, as Grafana imports it (schema version 39, Grafana 11)."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row, contents in ROWS:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": row,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": 2 * WIDTH, "h": 1},
                "panels": [],
            }
        )
        y += 1
        for number, (title, unit, queries) in enumerate(contents):
            panels.append(_panel(len(panels) + 1, title, unit, queries, x=number % 2 * WIDTH, y=y))
            if number % 2 or number == len(contents) - 1:
                y += HEIGHT
    return {
        "uid": "personae",
        "title": "Personae",
        "tags": ["personae"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [{"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}]
        },
        "panels": panels,
    }


def _panel(number: int, title: str, unit: str, queries: list[tuple[str, str]], *, x: int, y: int) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "datasource": source,
        "gridPos": {"x": x, "y": y, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": source, "expr": query, "legendFormat": legend}
            for i, (legend, query) in enumerate(queries)
        ],
    }


def text() -> str:
    """The file personae.json."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
