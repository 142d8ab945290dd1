"""The upper rows of the dashboard: is it well, the golden signals, the objectives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi_observe.settings.objectives import Availability
from fastapi_observe.slo.burn_rates import WINDOWS, burn_rate
from fastapi_observe.slo.grafana.parts import (
    Panel,
    Query,
    Row,
    explore,
    graph,
    heatmap,
    number,
    or_zero,
    table,
    top_series,
)
from fastapi_observe.slo.prometheus.promql import bad, events, go_string, good, selector, service_selector

if TYPE_CHECKING:
    from decimal import Decimal

    from fastapi_observe.slo.grafana.features import Features
    from fastapi_observe.slo.plan import SLOPlan

RATE: Final = "$__rate_interval"
RED, ORANGE, YELLOW = "red", "orange", "yellow"


class DashboardContext(NamedTuple):
    """What all rows are made from: `of` selects this service's series, `requests` those of the chosen endpoints."""

    plan: SLOPlan
    features: Features
    selector: str
    requests: str
    objectives: str
    links: tuple[dict[str, Any], ...]


def make_context(plan: SLOPlan, features: Features) -> DashboardContext:
    """Put together what the rows share."""
    of = f'{service_selector(plan)},instance=~"$instance"'
    service = (("service", plan.service),)
    return DashboardContext(
        plan,
        features,
        of,
        f'{of},endpoint=~"$endpoint"',
        f'{selector(service)},slo=~"$slo"',
        tuple(_links(plan.service, features)),
    )


def _links(service: str, features: Features) -> list[dict[str, Any]]:
    """Lead from an endpoint to its traces and log lines."""
    endpoint = "${__field.labels.endpoint}"
    name = go_string(service)
    links = []
    if features.traces:
        query = f'{{resource.service.name={name} && span.http.route="{endpoint}"}}'
        links.append(explore("Traces of this endpoint", "tempo", "tempo", {"queryType": "traceql", "query": query}))
    if features.logs:
        query = f'{{service_name={name}}} | json | fields_endpoint="{endpoint}"'
        links.append(explore("Log lines of this endpoint", "loki", "loki", {"expr": query}))
    return links


def quantile(share: float, metric: str, matchers: str, by: str = "") -> str:
    """Write a quantile of a histogram, of all series together or by labels."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share:g}, sum by ({labels}) (rate({metric}_bucket{{{matchers}}}[{RATE}])))"


def rate(metric: str, matchers: str, by: str = "") -> str:
    """Write how often something happens a second."""
    return f"sum{f' by ({by}) ' if by else ''}(rate({metric}{{{matchers}}}[{RATE}]))"


def overview_row(on: DashboardContext) -> Row:
    """Whether anything is wrong, in six numbers."""
    failed = rate("http_requests_total", f'{on.requests},status_code=~"5.."')
    every = rate("http_requests_total", on.requests)
    panels = [
        number("Requests", "Requests a second.", "reqps", Query(every)),
        number(
            "Failed",
            "Part of the requests that was answered with 5xx.",
            "percentunit",
            Query(f"({failed} or vector(0)) / ({every} > 0) or vector(0)"),
            steps=((0.001, ORANGE), (0.01, RED)),
            decimals=2,
        ),
        number(
            "95 % faster than",
            "Of the requests 95 percent took less than this.",
            "s",
            Query(quantile(0.95, "http_request_duration_seconds", on.requests)),
        ),
        number(
            "Instances",
            "Processes that Prometheus reaches.",
            "short",
            Query(f"sum(up{{{on.selector}}})"),
            base=RED,
            steps=((1, "green"),),
        ),
    ]
    if on.plan.slos:
        budget = f"slo:error_budget_remaining:ratio{{{on.objectives}}}"
        burn = _burn(on, "1h")
        panels[:0] = [
            number(
                "Error budget left",
                f"The least that any objective has left of its {on.plan.options.period}.",
                "percentunit",
                Query(f"min({budget})"),
                base=RED,
                steps=((0.1, ORANGE), (0.5, "green")),
                decimals=1,
            ),
            number(
                "Burn rate",
                "How many times faster than allowed the worst objective's budget burns, over an hour.",
                "x",
                Query(f"max({burn})"),
                steps=((1, ORANGE), (float(_factors(on.plan)[0][1]), RED)),
                decimals=2,
            ),
        ]
    return Row("At a glance", tuple(panels), closed=False)


def golden_signals(on: DashboardContext) -> Row:
    """Latency, traffic, errors and saturation."""
    duration = "http_request_duration_seconds"
    panels = [
        graph(
            "Latency",
            "How long half, 95 and 99 percent of the requests took at most; the dots are traces.",
            "s",
            *(
                Query(quantile(share, duration, on.requests), f"p{share * 100:g}", exemplar=on.features.exemplars)
                for share in (0.5, 0.95, 0.99)
            ),
            width=12,
        ),
        graph(
            "Traffic",
            "Requests a second of the busiest endpoints.",
            "reqps",
            Query(top_series(rate("http_requests_total", on.requests, "method, endpoint")), "{{method}} {{endpoint}}"),
            width=12,
            links=on.links,
        ),
        graph(
            "Errors",
            "Answers with 5xx a second, by endpoint and status.",
            "reqps",
            Query(
                or_zero(
                    top_series(
                        rate(
                            "http_requests_total", f'{on.requests},status_code=~"5.."', "method, endpoint, status_code"
                        )
                    ),
                    "endpoint",
                ),
                "{{method}} {{endpoint}} {{status_code}}",
            ),
            links=on.links,
        ),
        graph(
            "Causes of errors",
            "What failed: the class of the exception, or how the response ended.",
            "reqps",
            Query(
                or_zero(
                    top_series(rate("http_request_errors_total", on.requests, "endpoint, error_type")), "error_type"
                ),
                "{{error_type}} {{endpoint}}",
            ),
            links=on.links,
        ),
        graph(
            "Refused",
            "Answers with 4xx a second, by endpoint and status: mistakes of callers, or of a new version.",
            "reqps",
            Query(
                or_zero(
                    top_series(
                        rate("http_requests_total", f'{on.requests},status_code=~"4.."', "endpoint, status_code")
                    ),
                    "endpoint",
                ),
                "{{endpoint}} {{status_code}}",
            ),
            links=on.links,
        ),
        graph(
            "Saturation",
            "How full what can be full is: the instance that is closest to its limit.",
            "percentunit",
            *_saturation(on),
            most=1,
            steps=((0.9, RED),),
        ),
        heatmap(
            "Durations",
            "How many requests took how long: two bands are two kinds of work.",
            "s",
            Query(f"sum by (le) (increase({duration}_bucket{{{on.requests}}}[{RATE}]))", "{{le}}"),
        ),
        graph(
            "Slowest endpoints",
            "The time within which 95 percent of an endpoint's requests were answered.",
            "s",
            Query(
                top_series(quantile(0.95, duration, on.requests, "method, endpoint")),
                "{{method}} {{endpoint}}",
                exemplar=on.features.exemplars,
            ),
            links=on.links,
        ),
        _endpoints(on),
        *_seldom(on),
    ]
    return Row("Golden signals", tuple(panels), closed=False)


def _saturation(on: DashboardContext) -> list[Query]:
    shown = [
        Query(f"max(cpu_usage_percent{{{on.selector}}}) / 100", "CPU"),
        Query(f"max(process_open_fds{{{on.selector}}} / process_max_fds{{{on.selector}}})", "open files"),
        Query(f"max(threadpool_threads_busy{{{on.selector}}} / threadpool_threads_max{{{on.selector}}})", "threads"),
    ]
    if on.features.pools:
        of = on.selector
        shown.append(Query(f"max(db_connections_active{{{of}}} / (db_connections_max{{{of}}} > 0))", "connections"))
    return shown


def _endpoints(on: DashboardContext) -> Panel:
    """A row for each endpoint: the only panel that grows with the app, so it stands in a table that scrolls."""
    by = "method, endpoint"

    def over(metric: str, matchers: str, labels: str = by) -> str:
        return f"sum by ({labels}) (rate({metric}{{{matchers}}}[$__range]))"

    every = over("http_requests_total", on.requests)
    failed = over("http_requests_total", f'{on.requests},status_code=~"5.."')
    buckets = over("http_request_duration_seconds_bucket", on.requests, f"{by}, le")
    columns = [
        ("Requests", every, "reqps"),
        ("Failed", f"({failed} or 0 * {every}) / ({every} > 0)", "percentunit"),
        ("Half within", f"histogram_quantile(0.5, {buckets})", "s"),
        ("95 % within", f"histogram_quantile(0.95, {buckets})", "s"),
    ]
    if on.features.sizes:
        sent = over("http_response_size_bytes_sum", on.requests)
        columns.append(("Sent", sent, "Bps"))
    links = [
        {**each, "url": each["url"].replace("${__field.labels.endpoint}", "${__data.fields.endpoint}")}
        for each in on.links
    ]
    return table(
        "Endpoints", "Every endpoint over the time shown.", columns, by=("endpoint", "method"), width=24, links=links
    )


def _seldom(on: DashboardContext) -> list[Panel]:
    """What some apps have."""
    panels = [
        graph(
            "In progress",
            "Requests whose response is not complete.",
            "short",
            Query(f"sum by (instance) (http_requests_in_progress{{{on.selector}}})", "{{instance}}"),
        ),
        graph(
            "Validation errors",
            "Places of requests that were refused with 422, a second.",
            "ops",
            Query(
                or_zero(
                    top_series(rate("request_validation_errors_total", on.requests, "endpoint, field, error_type")),
                    "field",
                ),
                "{{endpoint}} {{field}} {{error_type}}",
            ),
            links=on.links,
        ),
    ]
    if on.features.streams:
        panels.append(
            graph(
                "First byte of streams",
                "The time within which 95 percent of the streams had sent their first byte.",
                "s",
                Query(
                    top_series(quantile(0.95, "http_time_to_first_byte_seconds", on.requests, "endpoint")),
                    "{{endpoint}}",
                ),
            )
        )
    if on.features.websockets:
        panels.append(
            graph(
                "WebSockets",
                "Open connections of each endpoint.",
                "short",
                Query(top_series(f"sum by (endpoint) (websocket_connections_active{{{on.requests}}})"), "{{endpoint}}"),
            )
        )
        panels.append(
            graph(
                "WebSocket messages",
                "Messages a second, received and sent.",
                "ops",
                Query(
                    top_series(rate("websocket_messages_total", on.requests, "endpoint, direction")),
                    "{{endpoint}} {{direction}}",
                ),
            )
        )
    return panels


def objectives(on: DashboardContext) -> Row:
    """Each objective: how fast its budget burns, what is left, and who spends it."""
    budget = f"slo:error_budget_remaining:ratio{{{on.objectives}}}"
    limits = tuple((float(value), color) for (_, value), color in zip(_factors(on.plan), (RED, ORANGE), strict=False))
    left = [Query(top_series(budget), "{{slo}}")]
    if any(slo.objective.sla is not None for slo in on.plan.slos):
        left.append(Query(top_series(f"slo:sla_budget_remaining:ratio{{{on.objectives}}}"), "{{slo}} (SLA)"))
    columns = [
        ("Objective", f"slo:objective:ratio{{{on.objectives}}}", "percentunit"),
        ("Budget left", budget, "percentunit"),
        *((f"Burn over {window}", _burn(on, window), "x") for window in ("1h", "6h", "3d")),
    ]
    columns = [(heading, f"max by (slo) ({expr})", unit) for heading, expr, unit in columns]  # rows meet in one label
    panels = (
        graph(
            "Burn rate over 1 h",
            "At 1 the budget lasts just its period; the lines are where alerts page.",
            "x",
            Query(top_series(_burn(on, "1h")), "{{slo}}"),
            steps=((1, YELLOW), *limits[::-1]),
        ),
        graph(
            "Burn rate over 5 min and 6 h",
            "The short window shows that it ended, the long one that it goes on slowly.",
            "x",
            *(Query(top_series(_burn(on, window), 5), f"{{{{slo}}}} {window}") for window in ("5m", "6h")),
            steps=((1, YELLOW),),
        ),
        graph(
            "Budget left",
            f"What may still fail in these {on.plan.options.period}; below 0 the promise is broken.",
            "percentunit",
            *left,
            least=None,
            most=1,
        ),
        table("Objectives", "Every objective as it stands.", columns, by=("slo",), width=12),
        graph(
            "Who spends the budget",
            "Requests a second that count against an objective, by endpoint.",
            "reqps",
            Query(_spenders(on), "{{slo}}: {{method}} {{endpoint}}"),
            width=12,
            links=on.links,
        ),
    )
    return Row("SLO and error budget", panels, closed=False)


def _factors(plan: SLOPlan) -> list[tuple[str, Decimal]]:
    """Return the burn rates at which somebody is paged, the fastest first."""
    return [(window.long, burn_rate(window, plan.period)) for window in WINDOWS if window.severity == "page"]


def _burn(on: DashboardContext, window: str) -> str:
    ratio = f"slo:error_ratio:rate{window}{{{on.objectives}}}"
    return f"{ratio} / on (slo) (1 - slo:objective:ratio{{{on.objectives}}})"


def _spenders(on: DashboardContext) -> str:
    """Write what every objective counts against itself, by endpoint, of those that are chosen."""
    by = "sum by (method, endpoint)"
    found = []
    for slo in on.plan.slos:
        if isinstance(slo.objective, Availability):
            spent = f"{by} ({bad(on.plan, slo, RATE)})"
        else:
            spent = f"({by} ({events(on.plan, slo, RATE)}) - {by} ({good(on.plan, slo, RATE)}))"
        found.append(f'label_replace({spent} > 0, "slo", "{slo.name}", "", "")')
    chosen = f"slo:objective:ratio{{{on.objectives}}}"
    return or_zero(top_series(f"({' or '.join(found)}) and on (slo) {chosen}"), "slo")
