"""The Grafana dashboard of one service: its variables, its annotations and the rows that it has."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.settings.objectives import parse_duration
from fastapi_observe.slo.burn_rates import WINDOWS, burn_rate
from fastapi_observe.slo.datasources import SECONDS_PER_DAY
from fastapi_observe.slo.grafana.panels import DATASOURCE, DashboardContext, explore_link, lay_out
from fastapi_observe.slo.grafana.queries import RATE_WINDOW, top
from fastapi_observe.slo.grafana.resource_rows import (
    BUSINESS,
    COST,
    DATABASE,
    EXTERNAL_SERVICES,
    JOBS,
    OPERATIONS,
    RUNTIME,
)
from fastapi_observe.slo.grafana.service_rows import GOLDEN_SIGNALS, OBJECTIVES, OVERVIEW
from fastapi_observe.slo.grafana.users_row import describe_users_metrics, make_users_row
from fastapi_observe.slo.prometheus.promql import bad_by, go_string, selector, service_selector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi_observe.slo.features import Features
    from fastapi_observe.slo.plan import SLOPlan

SCHEMA_VERSION: Final = 39
"""Version of Grafana's classic dashboard model; later versions of Grafana read it."""

ROWS: Final = (
    OVERVIEW,
    GOLDEN_SIGNALS,
    OBJECTIVES,
    DATABASE,
    EXTERNAL_SERVICES,
    RUNTIME,
    JOBS,
    OPERATIONS,
    BUSINESS,
    COST,
)
"""The rows in the order of the questions: is it healthy, what do users see, why, and what does it cost.

That of the app's own metrics is above the last.
"""

PRICES: Final = (
    ("price_million_samples", "Price of a million samples"),
    ("price_million_lines", "Price of a million log lines"),
    ("price_million_spans", "Price of a million spans"),
)


def make_dashboard(plan: SLOPlan, features: Features) -> dict[str, Any]:
    """Return the dashboard as Grafana's JSON model, without the rows and panels of what the app does not use."""
    return {
        "uid": dashboard_uid(plan.service),
        "title": f"{plan.service}: service",
        "description": "Made by fastapi-observe; changes here are lost when it is made again.",
        "tags": ["fastapi-observe"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [*_variables(plan, features)]},
        "annotations": {"list": [*_annotations(plan)]},
        "links": [],
        "panels": lay_out((*ROWS[:-1], make_users_row(features.users_metrics), ROWS[-1]), make_context(plan, features)),
    }


def make_context(plan: SLOPlan, features: Features) -> DashboardContext:
    """Return the values of an app that the rows are filled with."""
    service = _instances(plan)
    scrapes_per_day = SECONDS_PER_DAY / float(parse_duration(plan.options.scrape_interval))
    text = {
        "service": service,
        **plan.names.placeholders,
        "requests": f'{service},{plan.names.endpoint}=~"$endpoint"',
        "routes": f'{service},endpoint=~"$endpoint"',
        "slos": _selected_objectives(plan),
        "period": plan.options.period,
        "scrapes_per_day": f"{scrapes_per_day:g}",
        "scrapes_per_month": f"{scrapes_per_day * 30:g}",
        "bad_events": _bad_events(plan),
        **describe_users_metrics(features.users_metrics),
    }
    numbers = {f"burn_rate_{window.long}": float(burn_rate(window, plan.period)) for window in WINDOWS}
    enabled = {name for name, value in features._asdict().items() if value}
    if plan.slos:
        enabled.add("slos")
    if any(slo.objective.sla is not None for slo in plan.slos):
        enabled.add("sla")
    return DashboardContext(text, numbers, frozenset(enabled), (*_endpoint_links(plan.service, features),))


def dashboard_text(dashboard: dict[str, Any]) -> str:
    """Write a dashboard as a file whose changes can be reviewed."""
    return json.dumps(dashboard, indent=1, ensure_ascii=False) + "\n"


def dashboard_uid(service: str) -> str:
    """Return a stable id of the dashboard of a service, of at most 40 characters as Grafana requires."""
    return f"fastapi-observe-{hashlib.sha256(service.encode()).hexdigest()[:12]}"


def _instances(plan: SLOPlan) -> str:
    return f'{service_selector(plan)},instance=~"$instance"'


def _selected_objectives(plan: SLOPlan) -> str:
    return f'{selector((("service", plan.service),))},slo=~"$slo"'


def _bad_events(plan: SLOPlan) -> str:
    """Write the bad events of the selected objectives by endpoint; empty without objectives."""
    rates = [f'label_replace({bad_by(plan, slo, RATE_WINDOW)} > 0, "slo", "{slo.name}", "", "")' for slo in plan.slos]
    selected = f"slo:objective:ratio{{{_selected_objectives(plan)}}}"
    return top(f"({' or '.join(rates)}) and on (slo) {selected}")


def _endpoint_links(service: str, features: Features) -> Iterator[dict[str, Any]]:
    endpoint = "${__field.labels.endpoint}"
    name = go_string(service)
    if features.traces:
        query = f'{{resource.service.name={name} && span.http.route="{endpoint}"}}'
        yield explore_link("Traces of this endpoint", "tempo", "tempo", {"queryType": "traceql", "query": query})
    if features.logs:
        label = features.line_format.logql_label("endpoint")
        query = f'{{service_name={name}}} | json | {label}="{endpoint}"'
        yield explore_link("Log lines of this endpoint", "loki", "loki", {"expr": query})


def _variables(plan: SLOPlan, features: Features) -> Iterator[dict[str, Any]]:
    yield _datasource_variable("datasource", "Prometheus", "prometheus")
    if features.traces:
        yield _datasource_variable("tempo", "Traces", "tempo")
    if features.logs:
        yield _datasource_variable("loki", "Logs", "loki")
    service = service_selector(plan)
    yield _label_variable("instance", "Instance", f"label_values(up{{{service}}}, instance)")
    yield _label_variable(
        "endpoint", "Endpoint", f"label_values({plan.names.requests}{{{service}}}, {plan.names.endpoint})"
    )
    if plan.slos:
        recorded = f"slo:objective:ratio{{service={go_string(plan.service)}}}"
        yield _label_variable("slo", "Objective", f"label_values({recorded}, slo)")
    for name, label in PRICES:
        yield {
            "type": "textbox",
            "name": name,
            "label": label,
            "description": "The price of your provider; 0 shows no costs.",
            "query": "0",
            "current": {"selected": True, "text": "0", "value": "0"},
            "options": [{"selected": True, "text": "0", "value": "0"}],
            "hide": 0,
        }


def _datasource_variable(name: str, label: str, kind: str) -> dict[str, Any]:
    return {"type": "datasource", "name": name, "label": label, "query": kind, "refresh": 1, "hide": 0}


def _label_variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": f"variable-{name}"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "hide": 0,
    }


def _annotations(plan: SLOPlan) -> Iterator[dict[str, Any]]:
    """Yield marks on every graph: alerts that page, and starts of processes."""
    if plan.slos:
        yield {
            "name": "Pages",
            "datasource": DATASOURCE,
            "enable": True,
            "iconColor": "red",
            "expr": f'ALERTS{{service={go_string(plan.service)},severity="page",alertstate="firing"}}',
            "step": "60s",
            "titleFormat": "{{alertname}}",
            "textFormat": "{{slo}} {{window}}",
            "tagKeys": "severity",
        }
    yield {
        "name": "Starts",
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": "blue",
        "expr": f"max by (instance) (process_start_time_seconds{{{_instances(plan)}}}) * 1000",
        "step": "60s",
        "titleFormat": "started",
        "textFormat": "{{instance}}",
        "useValueForTime": True,
    }
