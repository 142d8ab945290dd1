"""The lower rows of the dashboard: what requests wait for, the process itself, the business, what observing costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_observe.settings.objectives import parse_duration
from fastapi_observe.slo.grafana.parts import Query, Row, graph, number, or_zero, top_series
from fastapi_observe.slo.grafana.service_rows import RATE, RED, quantile, rate

if TYPE_CHECKING:
    from fastapi_observe.slo.grafana.parts import Panel
    from fastapi_observe.slo.grafana.service_rows import DashboardContext

DAY = 86_400
MONTH = 30 * DAY


def database(on: DashboardContext) -> Row:
    """Queries, and the pool that they come through."""
    by = "operation, table"
    panels = [
        graph(
            "Queries",
            "Queries a second of the busiest tables.",
            "ops",
            Query(top_series(rate("db_queries_total", on.selector, by)), "{{operation}} {{table}}"),
        ),
        graph(
            "Slowest queries",
            "The time within which 95 percent of the queries were answered.",
            "s",
            Query(top_series(quantile(0.95, "db_query_duration_seconds", on.selector, by)), "{{operation}} {{table}}"),
        ),
        graph(
            "Time in the database",
            "Seconds of each second that are spent in queries, all requests together.",
            "short",
            Query(top_series(rate("db_query_duration_seconds_sum", on.selector, by)), "{{operation}} {{table}}"),
            stacked=True,
        ),
        graph(
            "Failed queries",
            "Queries a second that raised, by the class of the error.",
            "ops",
            Query(
                or_zero(top_series(rate("db_query_errors_total", on.selector, f"{by}, error_type")), "error_type"),
                "{{operation}} {{table}} {{error_type}}",
            ),
        ),
        graph(
            "Repeated queries (N+1)",
            "Statements a second that one request sent again and again.",
            "ops",
            Query(
                or_zero(top_series(rate("db_repeated_queries_total", on.requests, "endpoint")), "endpoint"),
                "{{endpoint}}",
            ),
            links=on.links,
        ),
    ]
    if on.features.pools:
        panels += [
            graph(
                "Connections",
                "Connections in use, idle, and their limit.",
                "short",
                *(
                    Query(f"sum by (pool) (db_connections_{state}{{{on.selector}}})", f"{{{{pool}}}} {state}")
                    for state in ("active", "idle", "max")
                ),
            ),
            graph(
                "Waiting for a connection",
                "Callers that wait for the pool.",
                "short",
                Query(f"sum by (pool) (db_connections_waiting{{{on.selector}}})", "{{pool}}"),
                steps=((1, RED),),
            ),
            graph(
                "Wait for a connection",
                "The time within which 95 percent of the callers got a connection.",
                "s",
                Query(quantile(0.95, "db_connection_wait_seconds", on.selector, "pool"), "{{pool}}"),
            ),
            graph(
                "Transactions",
                "Begins, commits, rollbacks and what else happens besides statements, a second.",
                "ops",
                Query(top_series(rate("db_connection_events_total", on.selector, "pool, event")), "{{pool}} {{event}}"),
            ),
        ]
    return Row("Database", tuple(panels))


def external(on: DashboardContext) -> Row:
    """Calls to other services."""
    by = "service, operation"
    every = rate("external_requests_total", on.selector, "service")
    failed = rate("external_requests_total", f'{on.selector},outcome!="ok",outcome!="client_error"', "service")
    panels = (
        graph(
            "Calls",
            "Calls a second to other services.",
            "ops",
            Query(top_series(rate("external_requests_total", on.selector, by)), "{{service}} {{operation}}"),
        ),
        graph(
            "Failed calls",
            "Part of the calls that got no good answer: 5xx, time out, no connection. 4xx is no failure.",
            "percentunit",
            Query(top_series(f"({failed} or 0 * {every}) / ({every} > 0) or 0 * {every}"), "{{service}}"),
            most=1,
        ),
        graph(
            "Outcomes",
            "How calls ended, a second.",
            "ops",
            Query(
                top_series(rate("external_requests_total", on.selector, "service, outcome")), "{{service}} {{outcome}}"
            ),
        ),
        graph(
            "Slowest calls",
            "The time within which 95 percent of the calls were answered.",
            "s",
            Query(
                top_series(quantile(0.95, "external_request_duration_seconds", on.selector, by)),
                "{{service}} {{operation}}",
                exemplar=on.features.exemplars,
            ),
        ),
        graph(
            "Time in other services",
            "Seconds of each second that are spent waiting for them, all requests together.",
            "short",
            Query(top_series(rate("external_request_duration_seconds_sum", on.selector, "service")), "{{service}}"),
            stacked=True,
        ),
    )
    return Row("External services", panels)


def runtime(on: DashboardContext) -> Row:
    """The process: event loop, threads, memory."""
    panels: list[Panel] = [
        graph(
            "Event loop lag",
            "How late the event loop runs what is due, 99 percent at most: blocking code shows here.",
            "s",
            Query(quantile(0.99, "asyncio_event_loop_lag_seconds", on.selector, "instance"), "{{instance}}"),
            steps=((0.25, RED),),
        ),
        graph(
            "Tasks",
            "Tasks of the event loop that are not done; what only rises is a leak.",
            "short",
            Query(f"sum by (instance) (asyncio_tasks{{{on.selector}}})", "{{instance}}"),
        ),
        graph(
            "Worker threads",
            "Threads in use by sync endpoints, those that wait for one, and their limit.",
            "short",
            Query(f"sum(threadpool_threads_busy{{{on.selector}}})", "busy"),
            Query(f"sum(threadpool_waiting{{{on.selector}}})", "waiting"),
            Query(f"sum(threadpool_threads_max{{{on.selector}}})", "most"),
        ),
        graph(
            "CPU",
            "CPU seconds of each second, by instance.",
            "short",
            Query(
                top_series(f"sum by (instance) (rate(process_cpu_seconds_total{{{on.selector}}}[{RATE}]))"),
                "{{instance}}",
            ),
        ),
        graph(
            "Memory",
            "Resident memory of the processes of an instance.",
            "bytes",
            Query(top_series(f"sum by (instance) (process_resident_memory_bytes{{{on.selector}}})"), "{{instance}}"),
        ),
        graph(
            "Memory of the machine",
            "Memory in use in the container if it is limited, else on the machine.",
            "bytes",
            Query(top_series(f"max by (instance) (memory_usage_bytes{{{on.selector}}})"), "{{instance}}"),
        ),
        graph(
            "Open files",
            "Open files and sockets.",
            "short",
            Query(top_series(f"sum by (instance) (process_open_fds{{{on.selector}}})"), "{{instance}}"),
        ),
        graph(
            "Disk",
            "Used bytes of each file system that is watched.",
            "bytes",
            Query(top_series(f"max by (instance, path) (disk_usage_bytes{{{on.selector}}})"), "{{instance}} {{path}}"),
        ),
        graph(
            "Garbage collection",
            "Part of the time in which the collector holds everything else.",
            "percentunit",
            Query(
                top_series(f"sum by (instance) (rate(python_gc_pause_seconds_sum{{{on.selector}}}[{RATE}]))"),
                "{{instance}}",
            ),
        ),
        graph(
            "Starts",
            "When each process started, as its age: a saw is a process that keeps restarting.",
            "s",
            Query(
                top_series(f"time() - max by (instance) (process_start_time_seconds{{{on.selector}}})"), "{{instance}}"
            ),
        ),
    ]
    if on.features.background:
        panels.append(
            graph(
                "Background tasks",
                "Tasks after responses, a second, by how they ended.",
                "ops",
                Query(
                    top_series(rate("background_tasks_total", on.requests, "endpoint, outcome")),
                    "{{endpoint}} {{outcome}}",
                ),
                links=on.links,
            )
        )
    return Row("Runtime and saturation", tuple(panels))


def business(on: DashboardContext) -> Row:
    """What the service is for."""

    def hourly(metric: str) -> str:
        return f"(sum(rate({metric}{{{on.selector}}}[{RATE}])) or vector(0)) * 3600"

    revenue = f"sum by (currency) (rate(revenue_generated_total{{{on.selector}}}[{RATE}])) * 3600"
    panels = (
        number("Registrations", "New users an hour.", "short", Query(hourly("user_registrations_total")), decimals=1),
        number("Logins", "Logins an hour.", "short", Query(hourly("user_logins_total")), decimals=1),
        number("Orders", "Orders an hour.", "short", Query(hourly("orders_created_total")), decimals=1),
        graph(
            "Revenue",
            "Revenue an hour, each currency for itself.",
            "short",
            Query(or_zero(top_series(revenue), "currency"), "{{currency}}"),
            width=12,
        ),
        graph(
            "Work",
            "Pieces of your own work a second (`observe.operation`), by how they ended.",
            "ops",
            Query(
                or_zero(top_series(rate("operations_total", on.selector, "operation, outcome")), "operation"),
                "{{operation}} {{outcome}}",
            ),
            width=12,
        ),
        graph(
            "Slowest work",
            "The time within which 95 percent of it was done.",
            "s",
            Query(
                or_zero(
                    top_series(quantile(0.95, "operation_duration_seconds", on.selector, "operation")), "operation"
                ),
                "{{operation}}",
            ),
            width=12,
        ),
    )
    return Row("Business", panels)


def cost(on: DashboardContext) -> Row:
    """What observing this service costs: series, lines and spans, in numbers and in money."""
    each_month = MONTH / float(parse_duration(on.plan.options.scrape_interval))
    samples = f"sum(scrape_samples_scraped{{{on.selector}}})"

    def monthly(signal: str) -> str:
        return f'(sum(rate(fastapi_observe_exported_total{{{on.selector},signal="{signal}"}}[{RATE}])) or vector(0)) * {MONTH}'  # noqa: E501

    panels = [
        number(
            "Samples a day", "Samples that Prometheus stores a day.", "short", Query(f"{samples} * {each_month / 30:g}")
        ),
        number(
            "Label sets",
            "Label sets that are kept, of all metrics together.",
            "short",
            Query(f"sum(fastapi_observe_series{{{on.selector}}})"),
        ),
        number(
            "Scrape", "How long the slowest scrape takes.", "s", Query(f"max(scrape_duration_seconds{{{on.selector}}})")
        ),
        number(
            "Metrics a month",
            "Samples a month by the price of a million.",
            "short",
            Query(f"{samples} * {each_month:g} / 1e6 * $price_million_samples"),
            decimals=2,
        ),
        number(
            "Logs a month",
            "Lines a month by the price of a million.",
            "short",
            Query(f"{monthly('logs')} / 1e6 * $price_million_lines"),
            decimals=2,
        ),
        number(
            "Traces a month",
            "Spans a month by the price of a million.",
            "short",
            Query(f"{monthly('traces')} / 1e6 * $price_million_spans"),
            decimals=2,
        ),
        graph(
            "Largest metrics",
            "Series of the metrics that have the most.",
            "short",
            Query(top_series(f"count by (__name__) ({{{on.selector}}})"), "{{__name__}}"),
        ),
        graph(
            "Written and sent",
            "Log lines, spans and pushes a second that were taken.",
            "ops",
            Query(rate("fastapi_observe_exported_total", on.selector, "signal"), "{{signal}}"),
        ),
        graph(
            "Lost",
            "Log lines and spans a second that were dropped, and why.",
            "ops",
            Query(rate("fastapi_observe_dropped_total", on.selector, "signal, reason"), "{{signal}} {{reason}}"),
        ),
        graph(
            "Waiting",
            "Log lines and spans that wait to be written or sent.",
            "short",
            Query(f"sum by (signal) (fastapi_observe_queue_items{{{on.selector}}})", "{{signal}}"),
        ),
        graph(
            "Label sets without a place",
            "Label sets a second that went into an overflow series: a label has too many values.",
            "ops",
            Query(
                or_zero(top_series(rate("fastapi_observe_series_overflow_total", on.selector, "metric")), "metric"),
                "{{metric}}",
            ),
        ),
        graph(
            "Own failures",
            "Failures inside fastapi-observe that were kept from requests.",
            "ops",
            Query(or_zero(rate("fastapi_observe_internal_errors_total", on.selector, "site"), "site"), "{{site}}"),
        ),
    ]
    return Row("Cost of observing", tuple(panels))
