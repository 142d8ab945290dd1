"""The Grafana dashboard of one service: `make_dashboard`."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.slo.grafana.parts import PROMETHEUS, assign_positions
from fastapi_observe.slo.grafana.resource_rows import business, cost, database, external, runtime
from fastapi_observe.slo.grafana.service_rows import golden_signals, make_context, objectives, overview_row
from fastapi_observe.slo.prometheus.promql import go_string, service_selector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi_observe.slo.grafana.features import Features
    from fastapi_observe.slo.grafana.service_rows import DashboardContext
    from fastapi_observe.slo.plan import SLOPlan

SCHEMA: Final = 39
"""Version of Grafana's classic dashboard model; newer Grafanas read it."""

PRICES: Final = (
    ("price_million_samples", "Price of a million samples"),
    ("price_million_lines", "Price of a million log lines"),
    ("price_million_spans", "Price of a million spans"),
)


def make_dashboard(plan: SLOPlan, features: Features) -> dict[str, Any]:
    """Return the dashboard as Grafana's JSON model; rows of what the app does not use are left out."""
    on = make_context(plan, features)
    rows = [overview_row(on), golden_signals(on)]
    if plan.slos:
        rows.append(objectives(on))
    if features.database:
        rows.append(database(on))
    if features.external:
        rows.append(external(on))
    rows.append(runtime(on))
    if features.business:
        rows.append(business(on))
    rows.append(cost(on))
    return {
        "uid": dashboard_uid(plan.service),
        "title": f"{plan.service}: service",
        "description": "Made by fastapi-observe; changes here are lost when it is made again.",
        "tags": ["fastapi-observe"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [*_variables(on)]},
        "annotations": {"list": [*_annotations(on)]},
        "links": [],
        "panels": assign_positions(rows),
    }


def dashboard_text(dashboard: dict[str, Any]) -> str:
    """Write a dashboard as a file, one that a review can read."""
    return json.dumps(dashboard, indent=1, ensure_ascii=False) + "\n"


def dashboard_uid(service: str) -> str:
    """Return what Grafana calls the dashboard of a service: the same each time, at most 40 characters."""
    return f"fastapi-observe-{hashlib.sha256(service.encode()).hexdigest()[:12]}"


def _variables(on: DashboardContext) -> Iterator[dict[str, Any]]:
    yield _source("datasource", "Prometheus", "prometheus")
    if on.features.traces:
        yield _source("tempo", "Traces", "tempo")
    if on.features.logs:
        yield _source("loki", "Logs", "loki")
    of = service_selector(on.plan)
    yield _labels("instance", "Instance", f"label_values(up{{{of}}}, instance)")
    yield _labels("endpoint", "Endpoint", f"label_values(http_requests_total{{{of}}}, endpoint)")
    if on.plan.slos:
        service = go_string(on.plan.service)
        yield _labels("slo", "Objective", f"label_values(slo:objective:ratio{{service={service}}}, slo)")
    for name, label in PRICES:
        yield {
            "type": "textbox",
            "name": name,
            "label": label,
            "description": "What your provider asks for it; 0 shows no costs.",
            "query": "0",
            "current": {"selected": True, "text": "0", "value": "0"},
            "options": [{"selected": True, "text": "0", "value": "0"}],
            "hide": 0,
        }


def _source(name: str, label: str, kind: str) -> dict[str, Any]:
    return {"type": "datasource", "name": name, "label": label, "query": kind, "refresh": 1, "hide": 0}


def _labels(name: str, label: str, query: str) -> dict[str, Any]:
    every = {"selected": True, "text": ["All"], "value": ["$__all"]}
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": PROMETHEUS,
        "definition": query,
        "query": {"query": query, "refId": f"variable-{name}"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": every,
        "hide": 0,
    }


def _annotations(on: DashboardContext) -> Iterator[dict[str, Any]]:
    """Mark on every graph when somebody was paged, and when processes started."""
    service = go_string(on.plan.service)
    if on.plan.slos:
        yield {
            "name": "Pages",
            "datasource": PROMETHEUS,
            "enable": True,
            "iconColor": "red",
            "expr": f'ALERTS{{service={service},severity="page",alertstate="firing"}}',
            "step": "60s",
            "titleFormat": "{{alertname}}",
            "textFormat": "{{slo}} {{window}}",
            "tagKeys": "severity",
        }
    yield {
        "name": "Starts",
        "datasource": PROMETHEUS,
        "enable": True,
        "iconColor": "blue",
        "expr": f"max by (instance) (process_start_time_seconds{{{on.selector}}}) * 1000",
        "step": "60s",
        "titleFormat": "started",
        "textFormat": "{{instance}}",
        "useValueForTime": True,
    }
