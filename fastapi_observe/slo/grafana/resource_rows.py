"""The lower rows of the dashboard and their panels, as data: from databases to the cost of observing.

See `service_rows` for the placeholders and for `when`.
"""

from __future__ import annotations

from typing import Final

from fastapi_observe.slo.grafana.panels import RED, Graph, PanelQuery, Row, Stat
from fastapi_observe.slo.grafana.queries import (
    RATE_WINDOW,
    exported_per_month,
    or_zero,
    per_hour,
    quantile,
    rate,
    top,
    top_rate,
)

STATEMENT: Final = "operation, table"
JOB: Final = "exported_job"
"""The label `job` of a metric. Prometheus sets a label of this name on each target, and renames that of the metric."""

CALL: Final = "service, operation"
ALL_CALLS: Final = rate("external_requests_total", "<service>", "service")
FAILED_CALLS: Final = rate("external_requests_total", '<service>,outcome!="ok",outcome!="client_error"', "service")
SAMPLES: Final = "sum(scrape_samples_scraped{<service>})"

DATABASE: Final = Row(
    "Database",
    (
        Graph(
            "Queries",
            "Queries per second of the busiest tables.",
            "ops",
            top_rate("db_queries_total", "<service>", STATEMENT),
            "{{operation}} {{table}}",
        ),
        Graph(
            "Slowest queries",
            "The duration of queries at the 95th percentile.",
            "s",
            top(quantile(0.95, "db_query_duration_seconds", "<service>", STATEMENT)),
            "{{operation}} {{table}}",
        ),
        Graph(
            "Time in the database",
            "Seconds per second spent in queries, all requests together.",
            "short",
            top_rate("db_query_duration_seconds_sum", "<service>", STATEMENT),
            "{{operation}} {{table}}",
            stacked=True,
        ),
        Graph(
            "Failed queries",
            "Queries per second that raised, by the class of the error.",
            "ops",
            or_zero(top_rate("db_query_errors_total", "<service>", f"{STATEMENT}, error_type"), "error_type"),
            "{{operation}} {{table}} {{error_type}}",
        ),
        Graph(
            "Repeated queries (N+1)",
            "Statements per second that one request sent repeatedly.",
            "ops",
            or_zero(top_rate("db_repeated_queries_total", "<routes>", "endpoint"), "endpoint"),
            "{{endpoint}}",
            links=True,
        ),
        Graph(
            "Connections",
            "Connections in use and idle, and their limit.",
            "short",
            "sum by (pool) (db_connections_active{<service>})",
            "{{pool}} active",
            more=(
                PanelQuery("sum by (pool) (db_connections_idle{<service>})", "{{pool}} idle"),
                PanelQuery("sum by (pool) (db_connections_max{<service>})", "{{pool}} max"),
            ),
            when="pools",
        ),
        Graph(
            "Waiting for a connection",
            "Callers that wait for a connection of the pool.",
            "short",
            "sum by (pool) (db_connections_waiting{<service>})",
            "{{pool}}",
            steps=((1, RED),),
            when="pools",
        ),
        Graph(
            "Connection wait",
            "The time until the pool handed out a connection, at the 95th percentile.",
            "s",
            quantile(0.95, "db_connection_wait_seconds", "<service>", "pool"),
            "{{pool}}",
            when="pools",
        ),
        Graph(
            "Transactions",
            "Begins, commits, rollbacks and other connection events per second.",
            "ops",
            top_rate("db_connection_events_total", "<service>", "pool, event"),
            "{{pool}} {{event}}",
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
            top_rate("external_requests_total", "<service>", CALL),
            "{{service}} {{operation}}",
        ),
        Graph(
            "Failed calls",
            "The share of calls that failed with 5xx, a timeout or a connection error; 4xx is not a failure.",
            "percentunit",
            top(f"({FAILED_CALLS} or 0 * {ALL_CALLS}) / ({ALL_CALLS} > 0) or 0 * {ALL_CALLS}"),
            "{{service}}",
            maximum=1,
        ),
        Graph(
            "Outcomes",
            "Calls per second, by outcome.",
            "ops",
            top_rate("external_requests_total", "<service>", "service, outcome"),
            "{{service}} {{outcome}}",
        ),
        Graph(
            "Slowest calls",
            "The duration of calls at the 95th percentile.",
            "s",
            top(quantile(0.95, "external_request_duration_seconds", "<service>", CALL)),
            "{{service}} {{operation}}",
            exemplar=True,
        ),
        Graph(
            "Time in other services",
            "Seconds per second spent in calls, all requests together.",
            "short",
            top_rate("external_request_duration_seconds_sum", "<service>", "service"),
            "{{service}}",
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
            quantile(0.99, "asyncio_event_loop_lag_seconds", "<service>", "instance"),
            "{{instance}}",
            steps=((0.25, RED),),
        ),
        Graph(
            "Tasks",
            "Unfinished tasks of the event loop; a number that only rises is a leak.",
            "short",
            "sum by (instance) (asyncio_tasks{<service>})",
            "{{instance}}",
        ),
        Graph(
            "Worker threads",
            "Threads that run sync endpoints, callers that wait for one, and their limit.",
            "short",
            "sum(threadpool_threads_busy{<service>})",
            "busy",
            more=(
                PanelQuery("sum(threadpool_waiting{<service>})", "waiting"),
                PanelQuery("sum(threadpool_threads_max{<service>})", "max"),
            ),
        ),
        Graph(
            "CPU",
            "CPU seconds per second, by instance.",
            "short",
            top_rate("process_cpu_seconds_total", "<service>", "instance"),
            "{{instance}}",
        ),
        Graph(
            "Memory",
            "Resident memory of the processes of an instance.",
            "bytes",
            top("sum by (instance) (process_resident_memory_bytes{<service>})"),
            "{{instance}}",
        ),
        Graph(
            "Memory of the machine",
            "Memory used by the container, or by the host if the container has no limit.",
            "bytes",
            top("max by (instance) (memory_usage_bytes{<service>})"),
            "{{instance}}",
        ),
        Graph(
            "Open files",
            "Open files and sockets.",
            "short",
            top("sum by (instance) (process_open_fds{<service>})"),
            "{{instance}}",
        ),
        Graph(
            "Disk",
            "Used bytes of each measured file system.",
            "bytes",
            top("max by (instance, path) (disk_usage_bytes{<service>})"),
            "{{instance}} {{path}}",
        ),
        Graph(
            "Garbage collection",
            "The share of time in which the garbage collector pauses all threads.",
            "percentunit",
            top_rate("python_gc_pause_seconds_sum", "<service>", "instance"),
            "{{instance}}",
        ),
        Graph(
            "Starts",
            "The age of each process; a sawtooth is a process that keeps restarting.",
            "s",
            top("time() - max by (instance) (process_start_time_seconds{<service>})"),
            "{{instance}}",
        ),
        Graph(
            "Background tasks",
            "Tasks run after responses, per second and by outcome.",
            "ops",
            top_rate("background_tasks_total", "<routes>", "endpoint, outcome"),
            "{{endpoint}} {{outcome}}",
            links=True,
            when="background",
        ),
    ),
)

JOBS: Final = Row(
    "Jobs",
    (
        Graph(
            "Jobs ended",
            "Jobs (`observe.job`) per second, by outcome.",
            "ops",
            or_zero(top_rate("jobs_total", "<service>", f"{JOB}, outcome"), JOB),
            f"{{{{{JOB}}}}} {{{{outcome}}}}",
        ),
        Graph(
            "Slowest jobs",
            "The duration of jobs at the 95th percentile.",
            "s",
            or_zero(top(quantile(0.95, "job_duration_seconds", "<service>", JOB)), JOB),
            f"{{{{{JOB}}}}}",
            exemplar=True,
        ),
        Graph(
            "Time in jobs",
            "Seconds per second spent in jobs, all processes together.",
            "short",
            or_zero(top_rate("job_duration_seconds_sum", "<service>", JOB), JOB),
            f"{{{{{JOB}}}}}",
            stacked=True,
        ),
    ),
    when="jobs",
)

OPERATIONS: Final = Row(
    "Operations",
    (
        Graph(
            "Operations ended",
            "Operations of your own code (`observe.operation`) per second, by outcome.",
            "ops",
            or_zero(top_rate("operations_total", "<service>", "operation, outcome"), "operation"),
            "{{operation}} {{outcome}}",
        ),
        Graph(
            "Slowest operations",
            "The duration of operations at the 95th percentile.",
            "s",
            or_zero(top(quantile(0.95, "operation_duration_seconds", "<service>", "operation")), "operation"),
            "{{operation}}",
        ),
        Graph(
            "Time in operations",
            "Seconds per second spent in operations, all requests together.",
            "short",
            or_zero(top_rate("operation_duration_seconds_sum", "<service>", "operation"), "operation"),
            "{{operation}}",
            stacked=True,
        ),
    ),
    when="operations",
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
            or_zero(
                top(f"sum by (currency) (rate(revenue_generated_total{{<service>}}[{RATE_WINDOW}])) * 3600"), "currency"
            ),
            "{{currency}}",
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
            top("count by (__name__) ({<service>})"),
            "{{__name__}}",
        ),
        Graph(
            "Exported",
            "Log lines, spans and metric pushes exported per second.",
            "ops",
            rate("fastapi_observe_exported_total", "<service>", "signal"),
            "{{signal}}",
        ),
        Graph(
            "Dropped",
            "Log lines and spans dropped per second, by reason.",
            "ops",
            rate("fastapi_observe_dropped_total", "<service>", "signal, reason"),
            "{{signal}} {{reason}}",
        ),
        Graph(
            "Queued",
            "Log lines and spans queued for export.",
            "short",
            "sum by (signal) (fastapi_observe_queue_items{<service>})",
            "{{signal}}",
        ),
        Graph(
            "Overflow",
            "Label sets per second that were added to an overflow series because a label has too many values.",
            "ops",
            or_zero(top_rate("fastapi_observe_series_overflow_total", "<service>", "metric"), "metric"),
            "{{metric}}",
        ),
        Graph(
            "Internal errors",
            "Exceptions inside fastapi-observe per second, which never reach requests.",
            "ops",
            or_zero(rate("fastapi_observe_internal_errors_total", "<service>", "site"), "site"),
            "{{site}}",
        ),
    ),
)
