"""The upper rows of the dashboard and their panels, as data: overview, golden signals and objectives.

To add a panel, add a record to the tuple of its row. `<service>`, `<requests>` and `<slos>` in a query become the
matchers of this service, of the selected endpoints and of the selected objectives, `<routes>` those of the selected
endpoints in metrics that `metric_names` does not rename; names that it changes are placeholders too. `when` names the
feature of the app (a field of `Features`, `slos` or `sla`) that a row, panel, query or column depends on.
"""

from __future__ import annotations

from typing import Final

from fastapi_observe.slo.grafana.panels import (
    GREEN,
    ORANGE,
    RED,
    YELLOW,
    Column,
    Graph,
    Heatmap,
    PanelQuery,
    Row,
    Stat,
    Table,
)
from fastapi_observe.slo.grafana.queries import (
    RATE_WINDOW,
    burn_rate_over,
    in_range,
    or_zero,
    quantile,
    rate,
    top,
    top_rate,
)

ENDPOINT: Final = "<method>, <endpoint>"
SERVER_ERRORS: Final = '<requests>,<status_code>=~"5.."'
CLIENT_ERRORS: Final = '<requests>,<status_code>=~"4.."'

ALL_REQUESTS: Final = rate("<http_requests>", "<requests>")
FAILED_REQUESTS: Final = rate("<http_requests>", SERVER_ERRORS)
DURATION: Final = "<http_duration>"
BUDGET_LEFT: Final = "slo:error_budget_remaining:ratio{<slos>}"

REQUESTS_IN_RANGE: Final = in_range("<http_requests>", "<requests>", ENDPOINT)
FAILED_IN_RANGE: Final = in_range("<http_requests>", SERVER_ERRORS, ENDPOINT)
BUCKETS_IN_RANGE: Final = in_range(f"{DURATION}_bucket", "<requests>", f"{ENDPOINT}, le")

OVERVIEW: Final = Row(
    "At a glance",
    (
        Stat(
            "Error budget left",
            "The smallest error budget that any objective has left of its <period>.",
            "percentunit",
            f"min({BUDGET_LEFT})",
            base_color=RED,
            steps=((0.1, ORANGE), (0.5, GREEN)),
            decimals=1,
            when="slos",
        ),
        Stat(
            "Burn rate",
            "The highest burn rate of any objective over an hour; at 1 the budget lasts exactly its period.",
            "x",
            f"max({burn_rate_over('1h')})",
            steps=((1, ORANGE), ("burn_rate_1h", RED)),
            decimals=2,
            when="slos",
        ),
        Stat("Requests", "Requests per second.", "reqps", ALL_REQUESTS),
        Stat(
            "Failed",
            "The share of requests answered with 5xx.",
            "percentunit",
            f"({FAILED_REQUESTS} or vector(0)) / ({ALL_REQUESTS} > 0) or vector(0)",
            steps=((0.001, ORANGE), (0.01, RED)),
            decimals=2,
        ),
        Stat(
            "Latency p95",
            "The duration of requests at the 95th percentile.",
            "s",
            quantile(0.95, DURATION, "<requests>"),
        ),
        Stat(
            "Instances",
            "Instances that Prometheus reaches.",
            "short",
            "sum(up{<service>})",
            base_color=RED,
            steps=((1, GREEN),),
        ),
    ),
    collapsed=False,
)

GOLDEN_SIGNALS: Final = Row(
    "Golden signals",
    (
        Graph(
            "Latency",
            "The duration of requests at the 50th, 95th and 99th percentile; the dots are traces.",
            "s",
            quantile(0.5, DURATION, "<requests>"),
            "p50",
            more=(
                PanelQuery(quantile(0.95, DURATION, "<requests>"), "p95", exemplar=True),
                PanelQuery(quantile(0.99, DURATION, "<requests>"), "p99", exemplar=True),
            ),
            exemplar=True,
            width=12,
        ),
        Graph(
            "Traffic",
            "Requests per second of the busiest endpoints.",
            "reqps",
            top_rate("<http_requests>", "<requests>", ENDPOINT),
            "{{<method>}} {{<endpoint>}}",
            width=12,
            links=True,
        ),
        Graph(
            "Errors",
            "Responses with 5xx per second, by endpoint and status.",
            "reqps",
            or_zero(top_rate("<http_requests>", SERVER_ERRORS, f"{ENDPOINT}, <status_code>"), "<endpoint>"),
            "{{<method>}} {{<endpoint>}} {{<status_code>}}",
            links=True,
        ),
        Graph(
            "Causes of errors",
            "Failed requests per second, by the class of the exception or by how the response ended.",
            "reqps",
            or_zero(top_rate("<http_errors>", "<requests><only_errors>", "<endpoint>, error_type"), "error_type"),
            "{{error_type}} {{<endpoint>}}",
            links=True,
        ),
        Graph(
            "Client errors",
            "Responses with 4xx per second, by endpoint and status.",
            "reqps",
            or_zero(top_rate("<http_requests>", CLIENT_ERRORS, "<endpoint>, <status_code>"), "<endpoint>"),
            "{{<endpoint>}} {{<status_code>}}",
            links=True,
        ),
        Graph(
            "Saturation",
            "The used share of each limited resource, on the instance that is closest to its limit.",
            "percentunit",
            "max(cpu_usage_percent{<service>}) / 100",
            "CPU",
            more=(
                PanelQuery("max(process_open_fds{<service>} / process_max_fds{<service>})", "open files"),
                PanelQuery("max(threadpool_threads_busy{<service>} / threadpool_threads_max{<service>})", "threads"),
                PanelQuery(
                    "max(db_connections_active{<service>} / (db_connections_max{<service>} > 0))",
                    "connections",
                    when="pools",
                ),
            ),
            maximum=1,
            steps=((0.9, RED),),
        ),
        Heatmap(
            "Durations",
            "The number of requests by duration; two bands are two kinds of requests.",
            "s",
            PanelQuery(f"sum by (le) (increase({DURATION}_bucket{{<requests>}}[{RATE_WINDOW}]))", "{{le}}"),
        ),
        Graph(
            "Slowest endpoints",
            "The duration of requests of each endpoint at the 95th percentile.",
            "s",
            top(quantile(0.95, DURATION, "<requests>", ENDPOINT)),
            "{{<method>}} {{<endpoint>}}",
            exemplar=True,
            links=True,
        ),
        Table(
            "Endpoints",
            "Every endpoint over the selected time range.",
            (
                Column("Requests", REQUESTS_IN_RANGE, "reqps"),
                Column(
                    "Failed",
                    f"({FAILED_IN_RANGE} or 0 * {REQUESTS_IN_RANGE}) / ({REQUESTS_IN_RANGE} > 0)",
                    "percentunit",
                ),
                Column("p50", f"histogram_quantile(0.5, {BUCKETS_IN_RANGE})", "s"),
                Column("p95", f"histogram_quantile(0.95, {BUCKETS_IN_RANGE})", "s"),
                Column("Sent", in_range("<http_response_size>_sum", "<requests>", ENDPOINT), "Bps", when="sizes"),
            ),
            by=("<endpoint>", "<method>"),
            links=True,
        ),
        Graph(
            "In progress",
            "Requests whose response is not complete.",
            "short",
            "sum by (instance) (<http_in_progress>{<service>})",
            "{{instance}}",
        ),
        Graph(
            "Validation errors",
            "Invalid fields of requests rejected with 422, per second.",
            "ops",
            or_zero(top_rate("request_validation_errors_total", "<routes>", "endpoint, field, error_type"), "field"),
            "{{endpoint}} {{field}} {{error_type}}",
            links=True,
        ),
        Graph(
            "First byte of streams",
            "The time until streams sent their first byte, at the 95th percentile.",
            "s",
            top(quantile(0.95, "http_time_to_first_byte_seconds", "<routes>", "endpoint")),
            "{{endpoint}}",
            when="streams",
        ),
        Graph(
            "WebSockets",
            "Open connections of each endpoint.",
            "short",
            top("sum by (endpoint) (websocket_connections_active{<routes>})"),
            "{{endpoint}}",
            when="websockets",
        ),
        Graph(
            "WebSocket messages",
            "Messages received and sent per second.",
            "ops",
            top_rate("websocket_messages_total", "<routes>", "endpoint, direction"),
            "{{endpoint}} {{direction}}",
            when="websockets",
        ),
    ),
    collapsed=False,
)

OBJECTIVES: Final = Row(
    "SLO and error budget",
    (
        Graph(
            "Burn rate over 1 h",
            "At 1 the budget lasts exactly its period; the lines are the burn rates at which alerts page.",
            "x",
            top(burn_rate_over("1h")),
            "{{slo}}",
            steps=((1, YELLOW), ("burn_rate_6h", ORANGE), ("burn_rate_1h", RED)),
        ),
        Graph(
            "Burn rate over 5 min and 6 h",
            "The short window shows that an incident is over, the long window that it continues slowly.",
            "x",
            top(burn_rate_over("5m"), 5),
            "{{slo}} 5m",
            more=(PanelQuery(top(burn_rate_over("6h"), 5), "{{slo}} 6h"),),
            steps=((1, YELLOW),),
        ),
        Graph(
            "Budget left",
            "The share of failures of these <period> that is still allowed; below 0 the objective is missed.",
            "percentunit",
            top(BUDGET_LEFT),
            "{{slo}}",
            more=(PanelQuery(top("slo:sla_budget_remaining:ratio{<slos>}"), "{{slo}} (SLA)", when="sla"),),
            minimum=None,
            maximum=1,
        ),
        Table(
            "Objectives",
            "Every objective now.",
            (
                Column("Objective", "max by (slo) (slo:objective:ratio{<slos>})", "percentunit"),
                Column("Budget left", f"max by (slo) ({BUDGET_LEFT})", "percentunit"),
                Column("Burn over 1h", f"max by (slo) ({burn_rate_over('1h')})", "x"),
                Column("Burn over 6h", f"max by (slo) ({burn_rate_over('6h')})", "x"),
                Column("Burn over 3d", f"max by (slo) ({burn_rate_over('3d')})", "x"),
            ),
            by=("slo",),
            width=12,
        ),
        Graph(
            "Budget spent by endpoint",
            "Bad events per second of each objective, by endpoint.",
            "reqps",
            or_zero("<bad_events>", "slo"),
            "{{slo}}: {{<method>}} {{<endpoint>}}",
            width=12,
            links=True,
        ),
    ),
    collapsed=False,
    when="slos",
)
