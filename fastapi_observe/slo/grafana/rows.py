"""The rows of the dashboard and their panels, as data.

To add a panel, add a record to the tuple of its row. `<service>`, `<requests>` and `<slos>` in a query become the
matchers of this service, of the selected endpoints and of the selected objectives; `when` names the feature of the app
(a field of `Features`, `slos` or `sla`) that a row, panel, query or column depends on.
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
    Query,
    Row,
    Stat,
    Table,
)

RATE_WINDOW: Final = "$__rate_interval"
MAX_SERIES: Final = 10
"""Series of a query whose result grows with the app."""

SECONDS_PER_MONTH: Final = 30 * 86_400

ENDPOINT: Final = "method, endpoint"
STATEMENT: Final = "operation, table"
CALL: Final = "service, operation"


def rate(metric: str, matchers: str, by: str = "") -> str:
    """Write the rate per second of a counter, of all series together or by labels."""
    return f"sum{f' by ({by}) ' if by else ''}(rate({metric}{{{matchers}}}[{RATE_WINDOW}]))"


def quantile(share: float, metric: str, matchers: str, by: str = "") -> str:
    """Write a quantile of a histogram, of all series together or by labels."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share:g}, sum by ({labels}) (rate({metric}_bucket{{{matchers}}}[{RATE_WINDOW}])))"


def top(expr: str, count: int = MAX_SERIES) -> str:
    """Limit a query to its largest series."""
    return f"topk({count}, {expr})"


def or_zero(expr: str, label: str) -> str:
    """Add a line at 0, called `none`, while there is no series: series of failures appear with the first failure."""
    return f'({expr}) or on () label_replace(vector(0), "{label}", "none", "", "")'


def in_range(metric: str, matchers: str = "<requests>", by: str = ENDPOINT) -> str:
    """Write the rate per second over the time range of the dashboard, by labels."""
    return f"sum by ({by}) (rate({metric}{{{matchers}}}[$__range]))"


def burn_rate(window: str) -> str:
    """Write the burn rate of each selected objective over a window."""
    return f"slo:error_ratio:rate{window}{{<slos>}} / on (slo) (1 - slo:objective:ratio{{<slos>}})"


def per_hour(metric: str) -> str:
    """Write the number of events per hour, 0 before the first."""
    return f"(sum(rate({metric}{{<service>}}[{RATE_WINDOW}])) or vector(0)) * 3600"


def exported_per_month(signal: str) -> str:
    """Write the number of items exported per month at the current rate."""
    exported = f'fastapi_observe_exported_total{{<service>,signal="{signal}"}}'
    return f"(sum(rate({exported}[{RATE_WINDOW}])) or vector(0)) * {SECONDS_PER_MONTH}"


ALL_REQUESTS: Final = rate("http_requests_total", "<requests>")
FAILED_REQUESTS: Final = rate("http_requests_total", '<requests>,status_code=~"5.."')
DURATION: Final = "http_request_duration_seconds"
BUDGET_LEFT: Final = "slo:error_budget_remaining:ratio{<slos>}"
ALL_CALLS: Final = rate("external_requests_total", "<service>", "service")
FAILED_CALLS: Final = rate("external_requests_total", '<service>,outcome!="ok",outcome!="client_error"', "service")
SAMPLES: Final = "sum(scrape_samples_scraped{<service>})"

REQUESTS_IN_RANGE: Final = in_range("http_requests_total")
FAILED_IN_RANGE: Final = in_range("http_requests_total", '<requests>,status_code=~"5.."')
BUCKETS_IN_RANGE: Final = in_range(f"{DURATION}_bucket", by=f"{ENDPOINT}, le")

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
            f"max({burn_rate('1h')})",
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
            (
                Query(quantile(0.5, DURATION, "<requests>"), "p50", exemplar=True),
                Query(quantile(0.95, DURATION, "<requests>"), "p95", exemplar=True),
                Query(quantile(0.99, DURATION, "<requests>"), "p99", exemplar=True),
            ),
            width=12,
        ),
        Graph(
            "Traffic",
            "Requests per second of the busiest endpoints.",
            "reqps",
            (Query(top(rate("http_requests_total", "<requests>", ENDPOINT)), "{{method}} {{endpoint}}"),),
            width=12,
            links=True,
        ),
        Graph(
            "Errors",
            "Responses with 5xx per second, by endpoint and status.",
            "reqps",
            (
                Query(
                    or_zero(
                        top(rate("http_requests_total", '<requests>,status_code=~"5.."', f"{ENDPOINT}, status_code")),
                        "endpoint",
                    ),
                    "{{method}} {{endpoint}} {{status_code}}",
                ),
            ),
            links=True,
        ),
        Graph(
            "Causes of errors",
            "Failed requests per second, by the class of the exception or by how the response ended.",
            "reqps",
            (
                Query(
                    or_zero(top(rate("http_request_errors_total", "<requests>", "endpoint, error_type")), "error_type"),
                    "{{error_type}} {{endpoint}}",
                ),
            ),
            links=True,
        ),
        Graph(
            "Client errors",
            "Responses with 4xx per second, by endpoint and status.",
            "reqps",
            (
                Query(
                    or_zero(
                        top(rate("http_requests_total", '<requests>,status_code=~"4.."', "endpoint, status_code")),
                        "endpoint",
                    ),
                    "{{endpoint}} {{status_code}}",
                ),
            ),
            links=True,
        ),
        Graph(
            "Saturation",
            "The used share of each limited resource, on the instance that is closest to its limit.",
            "percentunit",
            (
                Query("max(cpu_usage_percent{<service>}) / 100", "CPU"),
                Query("max(process_open_fds{<service>} / process_max_fds{<service>})", "open files"),
                Query("max(threadpool_threads_busy{<service>} / threadpool_threads_max{<service>})", "threads"),
                Query(
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
            Query(f"sum by (le) (increase({DURATION}_bucket{{<requests>}}[{RATE_WINDOW}]))", "{{le}}"),
        ),
        Graph(
            "Slowest endpoints",
            "The duration of requests of each endpoint at the 95th percentile.",
            "s",
            (Query(top(quantile(0.95, DURATION, "<requests>", ENDPOINT)), "{{method}} {{endpoint}}", exemplar=True),),
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
                Column("Sent", in_range("http_response_size_bytes_sum"), "Bps", when="sizes"),
            ),
            by=("endpoint", "method"),
            links=True,
        ),
        Graph(
            "In progress",
            "Requests whose response is not complete.",
            "short",
            (Query("sum by (instance) (http_requests_in_progress{<service>})", "{{instance}}"),),
        ),
        Graph(
            "Validation errors",
            "Invalid fields of requests rejected with 422, per second.",
            "ops",
            (
                Query(
                    or_zero(
                        top(rate("request_validation_errors_total", "<requests>", "endpoint, field, error_type")),
                        "field",
                    ),
                    "{{endpoint}} {{field}} {{error_type}}",
                ),
            ),
            links=True,
        ),
        Graph(
            "First byte of streams",
            "The time until streams sent their first byte, at the 95th percentile.",
            "s",
            (Query(top(quantile(0.95, "http_time_to_first_byte_seconds", "<requests>", "endpoint")), "{{endpoint}}"),),
            when="streams",
        ),
        Graph(
            "WebSockets",
            "Open connections of each endpoint.",
            "short",
            (Query(top("sum by (endpoint) (websocket_connections_active{<requests>})"), "{{endpoint}}"),),
            when="websockets",
        ),
        Graph(
            "WebSocket messages",
            "Messages received and sent per second.",
            "ops",
            (
                Query(
                    top(rate("websocket_messages_total", "<requests>", "endpoint, direction")),
                    "{{endpoint}} {{direction}}",
                ),
            ),
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
            (Query(top(burn_rate("1h")), "{{slo}}"),),
            steps=((1, YELLOW), ("burn_rate_6h", ORANGE), ("burn_rate_1h", RED)),
        ),
        Graph(
            "Burn rate over 5 min and 6 h",
            "The short window shows that an incident is over, the long window that it continues slowly.",
            "x",
            (Query(top(burn_rate("5m"), 5), "{{slo}} 5m"), Query(top(burn_rate("6h"), 5), "{{slo}} 6h")),
            steps=((1, YELLOW),),
        ),
        Graph(
            "Budget left",
            "The share of failures of these <period> that is still allowed; below 0 the objective is missed.",
            "percentunit",
            (
                Query(top(BUDGET_LEFT), "{{slo}}"),
                Query(top("slo:sla_budget_remaining:ratio{<slos>}"), "{{slo}} (SLA)", when="sla"),
            ),
            minimum=None,
            maximum=1,
        ),
        Table(
            "Objectives",
            "Every objective now.",
            (
                Column("Objective", "max by (slo) (slo:objective:ratio{<slos>})", "percentunit"),
                Column("Budget left", f"max by (slo) ({BUDGET_LEFT})", "percentunit"),
                Column("Burn over 1h", f"max by (slo) ({burn_rate('1h')})", "x"),
                Column("Burn over 6h", f"max by (slo) ({burn_rate('6h')})", "x"),
                Column("Burn over 3d", f"max by (slo) ({burn_rate('3d')})", "x"),
            ),
            by=("slo",),
            width=12,
        ),
        Graph(
            "Budget spent by endpoint",
            "Bad events per second of each objective, by endpoint.",
            "reqps",
            (Query(or_zero("<bad_events>", "slo"), "{{slo}}: {{method}} {{endpoint}}"),),
            width=12,
            links=True,
        ),
    ),
    collapsed=False,
    when="slos",
)

DATABASE: Final = Row(
    "Database",
    (
        Graph(
            "Queries",
            "Queries per second of the busiest tables.",
            "ops",
            (Query(top(rate("db_queries_total", "<service>", STATEMENT)), "{{operation}} {{table}}"),),
        ),
        Graph(
            "Slowest queries",
            "The duration of queries at the 95th percentile.",
            "s",
            (
                Query(
                    top(quantile(0.95, "db_query_duration_seconds", "<service>", STATEMENT)),
                    "{{operation}} {{table}}",
                ),
            ),
        ),
        Graph(
            "Time in the database",
            "Seconds per second spent in queries, all requests together.",
            "short",
            (Query(top(rate("db_query_duration_seconds_sum", "<service>", STATEMENT)), "{{operation}} {{table}}"),),
            stacked=True,
        ),
        Graph(
            "Failed queries",
            "Queries per second that raised, by the class of the error.",
            "ops",
            (
                Query(
                    or_zero(top(rate("db_query_errors_total", "<service>", f"{STATEMENT}, error_type")), "error_type"),
                    "{{operation}} {{table}} {{error_type}}",
                ),
            ),
        ),
        Graph(
            "Repeated queries (N+1)",
            "Statements per second that one request sent repeatedly.",
            "ops",
            (
                Query(
                    or_zero(top(rate("db_repeated_queries_total", "<requests>", "endpoint")), "endpoint"),
                    "{{endpoint}}",
                ),
            ),
            links=True,
        ),
        Graph(
            "Connections",
            "Connections in use and idle, and their limit.",
            "short",
            (
                Query("sum by (pool) (db_connections_active{<service>})", "{{pool}} active"),
                Query("sum by (pool) (db_connections_idle{<service>})", "{{pool}} idle"),
                Query("sum by (pool) (db_connections_max{<service>})", "{{pool}} max"),
            ),
            when="pools",
        ),
        Graph(
            "Waiting for a connection",
            "Callers that wait for a connection of the pool.",
            "short",
            (Query("sum by (pool) (db_connections_waiting{<service>})", "{{pool}}"),),
            steps=((1, RED),),
            when="pools",
        ),
        Graph(
            "Connection wait",
            "The time until the pool handed out a connection, at the 95th percentile.",
            "s",
            (Query(quantile(0.95, "db_connection_wait_seconds", "<service>", "pool"), "{{pool}}"),),
            when="pools",
        ),
        Graph(
            "Transactions",
            "Begins, commits, rollbacks and other connection events per second.",
            "ops",
            (Query(top(rate("db_connection_events_total", "<service>", "pool, event")), "{{pool}} {{event}}"),),
            when="pools",
        ),
    ),
    when="database",
)

EXTERNAL_SERVICES: Final = Row(
    "External services",
    (
        Graph(
            "Calls",
            "Calls to other services per second.",
            "ops",
            (Query(top(rate("external_requests_total", "<service>", CALL)), "{{service}} {{operation}}"),),
        ),
        Graph(
            "Failed calls",
            "The share of calls that failed with 5xx, a timeout or a connection error; 4xx is not a failure.",
            "percentunit",
            (Query(top(f"({FAILED_CALLS} or 0 * {ALL_CALLS}) / ({ALL_CALLS} > 0) or 0 * {ALL_CALLS}"), "{{service}}"),),
            maximum=1,
        ),
        Graph(
            "Outcomes",
            "Calls per second, by outcome.",
            "ops",
            (Query(top(rate("external_requests_total", "<service>", "service, outcome")), "{{service}} {{outcome}}"),),
        ),
        Graph(
            "Slowest calls",
            "The duration of calls at the 95th percentile.",
            "s",
            (
                Query(
                    top(quantile(0.95, "external_request_duration_seconds", "<service>", CALL)),
                    "{{service}} {{operation}}",
                    exemplar=True,
                ),
            ),
        ),
        Graph(
            "Time in other services",
            "Seconds per second spent in calls, all requests together.",
            "short",
            (Query(top(rate("external_request_duration_seconds_sum", "<service>", "service")), "{{service}}"),),
            stacked=True,
        ),
    ),
    when="external",
)

RUNTIME: Final = Row(
    "Runtime and saturation",
    (
        Graph(
            "Event loop lag",
            "How late the event loop runs its callbacks, at the 99th percentile; blocking code shows here.",
            "s",
            (Query(quantile(0.99, "asyncio_event_loop_lag_seconds", "<service>", "instance"), "{{instance}}"),),
            steps=((0.25, RED),),
        ),
        Graph(
            "Tasks",
            "Unfinished tasks of the event loop; a number that only rises is a leak.",
            "short",
            (Query("sum by (instance) (asyncio_tasks{<service>})", "{{instance}}"),),
        ),
        Graph(
            "Worker threads",
            "Threads that run sync endpoints, callers that wait for one, and their limit.",
            "short",
            (
                Query("sum(threadpool_threads_busy{<service>})", "busy"),
                Query("sum(threadpool_waiting{<service>})", "waiting"),
                Query("sum(threadpool_threads_max{<service>})", "max"),
            ),
        ),
        Graph(
            "CPU",
            "CPU seconds per second, by instance.",
            "short",
            (Query(top(rate("process_cpu_seconds_total", "<service>", "instance")), "{{instance}}"),),
        ),
        Graph(
            "Memory",
            "Resident memory of the processes of an instance.",
            "bytes",
            (Query(top("sum by (instance) (process_resident_memory_bytes{<service>})"), "{{instance}}"),),
        ),
        Graph(
            "Memory of the machine",
            "Memory used by the container, or by the host if the container has no limit.",
            "bytes",
            (Query(top("max by (instance) (memory_usage_bytes{<service>})"), "{{instance}}"),),
        ),
        Graph(
            "Open files",
            "Open files and sockets.",
            "short",
            (Query(top("sum by (instance) (process_open_fds{<service>})"), "{{instance}}"),),
        ),
        Graph(
            "Disk",
            "Used bytes of each measured file system.",
            "bytes",
            (Query(top("max by (instance, path) (disk_usage_bytes{<service>})"), "{{instance}} {{path}}"),),
        ),
        Graph(
            "Garbage collection",
            "The share of time in which the garbage collector pauses all threads.",
            "percentunit",
            (Query(top(rate("python_gc_pause_seconds_sum", "<service>", "instance")), "{{instance}}"),),
        ),
        Graph(
            "Starts",
            "The age of each process; a sawtooth is a process that keeps restarting.",
            "s",
            (Query(top("time() - max by (instance) (process_start_time_seconds{<service>})"), "{{instance}}"),),
        ),
        Graph(
            "Background tasks",
            "Tasks run after responses, per second and by outcome.",
            "ops",
            (
                Query(
                    top(rate("background_tasks_total", "<requests>", "endpoint, outcome")), "{{endpoint}} {{outcome}}"
                ),
            ),
            links=True,
            when="background",
        ),
    ),
)

BUSINESS: Final = Row(
    "Business",
    (
        Stat("Registrations", "New users per hour.", "short", per_hour("user_registrations_total"), decimals=1),
        Stat("Logins", "Logins per hour.", "short", per_hour("user_logins_total"), decimals=1),
        Stat("Orders", "Orders per hour.", "short", per_hour("orders_created_total"), decimals=1),
        Graph(
            "Revenue",
            "Revenue per hour, by currency.",
            "short",
            (
                Query(
                    or_zero(
                        top(f"sum by (currency) (rate(revenue_generated_total{{<service>}}[{RATE_WINDOW}])) * 3600"),
                        "currency",
                    ),
                    "{{currency}}",
                ),
            ),
            width=12,
        ),
        Graph(
            "Operations",
            "Operations of your own code (`observe.operation`) per second, by outcome.",
            "ops",
            (
                Query(
                    or_zero(top(rate("operations_total", "<service>", "operation, outcome")), "operation"),
                    "{{operation}} {{outcome}}",
                ),
            ),
            width=12,
        ),
        Graph(
            "Slowest operations",
            "The duration of operations at the 95th percentile.",
            "s",
            (
                Query(
                    or_zero(top(quantile(0.95, "operation_duration_seconds", "<service>", "operation")), "operation"),
                    "{{operation}}",
                ),
            ),
            width=12,
        ),
    ),
    when="business",
)

COST: Final = Row(
    "Cost of observing",
    (
        Stat("Samples per day", "Samples that Prometheus stores per day.", "short", f"{SAMPLES} * <scrapes_per_day>"),
        Stat("Label sets", "Label sets of all metrics together.", "short", "sum(fastapi_observe_series{<service>})"),
        Stat("Scrape", "The duration of the slowest scrape.", "s", "max(scrape_duration_seconds{<service>})"),
        Stat(
            "Metrics per month",
            "Samples per month at the price of a million.",
            "short",
            f"{SAMPLES} * <scrapes_per_month> / 1e6 * $price_million_samples",
            decimals=2,
        ),
        Stat(
            "Logs per month",
            "Log lines per month at the price of a million.",
            "short",
            f"{exported_per_month('logs')} / 1e6 * $price_million_lines",
            decimals=2,
        ),
        Stat(
            "Traces per month",
            "Spans per month at the price of a million.",
            "short",
            f"{exported_per_month('traces')} / 1e6 * $price_million_spans",
            decimals=2,
        ),
        Graph(
            "Largest metrics",
            "The metrics with the most series.",
            "short",
            (Query(top("count by (__name__) ({<service>})"), "{{__name__}}"),),
        ),
        Graph(
            "Exported",
            "Log lines, spans and metric pushes exported per second.",
            "ops",
            (Query(rate("fastapi_observe_exported_total", "<service>", "signal"), "{{signal}}"),),
        ),
        Graph(
            "Dropped",
            "Log lines and spans dropped per second, by reason.",
            "ops",
            (Query(rate("fastapi_observe_dropped_total", "<service>", "signal, reason"), "{{signal}} {{reason}}"),),
        ),
        Graph(
            "Queued",
            "Log lines and spans queued for export.",
            "short",
            (Query("sum by (signal) (fastapi_observe_queue_items{<service>})", "{{signal}}"),),
        ),
        Graph(
            "Overflow",
            "Label sets per second that were added to an overflow series because a label has too many values.",
            "ops",
            (
                Query(
                    or_zero(top(rate("fastapi_observe_series_overflow_total", "<service>", "metric")), "metric"),
                    "{{metric}}",
                ),
            ),
        ),
        Graph(
            "Internal errors",
            "Exceptions inside fastapi-observe per second, which never reach requests.",
            "ops",
            (Query(or_zero(rate("fastapi_observe_internal_errors_total", "<service>", "site"), "site"), "{{site}}"),),
        ),
    ),
)

ROWS: Final = (
    OVERVIEW,
    GOLDEN_SIGNALS,
    OBJECTIVES,
    DATABASE,
    EXTERNAL_SERVICES,
    RUNTIME,
    BUSINESS,
    COST,
)
"""All rows, in the order of the questions: is it healthy, what do users see, why, and what does it cost."""
