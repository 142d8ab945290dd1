"""The alerts: burning error budgets, objectives without data, and resources that run out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi_observe.settings.objectives import Latency
from fastapi_observe.slo.burn_rates import (
    EVALUATION_INTERVAL,
    BurnWindow,
    budget,
    format_number,
    min_events,
    promql_duration,
)
from fastapi_observe.slo.prometheus import promql
from fastapi_observe.slo.prometheus.promql import fill_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from decimal import Decimal

    from fastapi_observe.slo.plan import ResolvedObjective, SLOPlan

LOW_BUDGET: Final = "0.1"
"""Share of the budget below which `ErrorBudgetLow` fires."""


class Alert(NamedTuple):
    """An alert before it becomes a rule; `summary` and `description` are templates of Prometheus.

    `wait` is its `for`, `keep` its `keep_firing_for`, `window` the label of burn alerts. Alerts
    with `of_pools` are left out where there are no connection pools.
    """

    name: str
    severity: str
    expression: str
    summary: str
    description: str
    wait: str = ""
    keep: str = ""
    slo: str = ""
    window: str = ""
    of_pools: bool = False


SERVICE_ALERTS: Final = (
    Alert(
        "ServiceDown",
        "page",
        "absent(up{<service>} == 1)",
        "<name>: no instance responds",
        "Prometheus reaches no instance. Nothing is counted meanwhile, so the alerts of error budgets cannot fire.",
        wait="2m",
    ),
    Alert(
        "InstanceDown",
        "ticket",
        "up{<service>} == 0",
        "<name>: {{ $labels.instance }} does not respond",
        "Prometheus has not reached this instance for 10 minutes.",
        wait="10m",
    ),
    Alert(
        "InstanceRestarting",
        "ticket",
        "max by (instance) (changes(process_start_time_seconds{<service>}[30m])) >= 3",
        "<name>: {{ $labels.instance }} restarted {{ $value }} times in 30 minutes",
        "Check its last log lines and its memory limit.",
    ),
    Alert(
        "EventLoopLagHigh",
        "ticket",
        "histogram_quantile(0.99, sum by (instance, pid, le) "
        "(rate(asyncio_event_loop_lag_seconds_bucket{<service>}[5m]))) > 0.25",
        "<name>: the event loop of {{ $labels.instance }} lags by {{ $value | humanizeDuration }}",
        "Something blocks the event loop: a blocking call in async code, or CPU-bound work that belongs in a thread.",
        wait="10m",
    ),
    Alert(
        "DBPoolNearlyExhausted",
        "ticket",
        "sum by (instance, pool) (db_connections_active{<service>})\n"
        "/ (sum by (instance, pool) (db_connections_max{<service>}) > 0) > 0.9",
        "<name>: {{ $value | humanizePercentage }} of the connections of pool {{ $labels.pool }} on "
        "{{ $labels.instance }} are in use",
        "Requests will wait for a connection. Are connections held during other calls? Is a query slow?",
        wait="10m",
        of_pools=True,
    ),
    Alert(
        "FileDescriptorsNearlyExhausted",
        "ticket",
        "process_open_fds{<service>} / process_max_fds{<service>} > 0.85",
        "<name>: {{ $labels.instance }} uses {{ $value | humanizePercentage }} of its file descriptors",
        "New connections will fail. Are clients or responses left open?",
        wait="15m",
    ),
    Alert(
        "TelemetrySpansDropped",
        "info",
        'sum by (instance, reason) (rate(fastapi_observe_dropped_total{<service>,signal="traces"}[5m])) > 0',
        "<name>: {{ $labels.instance }} drops {{ $value | humanize }} spans per second ({{ $labels.reason }})",
        "Is the Collector down or slow? Requests are not affected.",
        wait="10m",
    ),
    Alert(
        "TelemetryLogsDropped",
        "info",
        'sum by (instance, reason) (rate(fastapi_observe_dropped_total{<service>,signal=~"logs|otlp_logs"}[5m])) > 0',
        "<name>: {{ $labels.instance }} drops {{ $value | humanize }} log lines per second ({{ $labels.reason }})",
        "Is the Collector down or slow, or the disk full? Requests are not affected.",
        wait="10m",
    ),
    # A series that appears with its first overflow has no earlier sample for `increase`.
    Alert(
        "TelemetrySeriesLimit",
        "info",
        "sum by (instance, metric) (increase(fastapi_observe_series_overflow_total{<service>}[1h])) > 0\n"
        "or sum by (instance, metric) (fastapi_observe_series_overflow_total{<service>} "
        "unless fastapi_observe_series_overflow_total{<service>} offset 1h) > 0",
        "<name>: {{ $labels.metric }} of {{ $labels.instance }} reached its limit of label sets",
        "New label sets are added to the __overflow__ series. The warning in the log names the label with most values.",
    ),
    Alert(
        "SLORulesOutdated",
        "info",
        'count by (hash) (fastapi_observe_slo_config_info{<service>,hash!="<hash>"})',
        "<name>: {{ $value }} instances have other objectives than these rules ({{ $labels.hash }})",
        "The rules were made from configuration <hash>. Make them again from the deployed app.",
        wait="1h",
    ),
)
"""The alerts of the service as a whole; only `ServiceDown` pages, because the others are causes and not symptoms."""


POOL_ALERTS: Final = frozenset(alert.name for alert in SERVICE_ALERTS if alert.of_pools)
"""Names of the alerts that an app without connection pools does not have."""


def make_alert_rule(plan: SLOPlan, alert: Alert) -> dict[str, Any]:
    """Return an alert as a rule, with its labels and links."""
    labels = {"service": plan.service, "slo": alert.slo, "window": alert.window, "severity": alert.severity}
    labels["team"] = plan.options.team or ""
    annotations = {
        "summary": alert.summary,
        "description": alert.description,
        "runbook_url": _link(plan.options.runbook_url, alert),
        "dashboard_url": _link(plan.options.dashboard_url or "", alert),
    }
    rule = {"alert": alert.name, "expr": alert.expression, "for": alert.wait, "keep_firing_for": alert.keep}
    return {
        **{key: value for key, value in rule.items() if value},
        "labels": {key: verbatim(value) for key, value in labels.items() if value},
        "annotations": {key: value for key, value in annotations.items() if value},
    }


def verbatim(text: str) -> str:
    """Escape a string so that a template of Prometheus reproduces it, braces included."""
    return text.replace("{{", '{{ "{{" }}') if "{{" in text else text


def _link(url: str, alert: Alert) -> str:
    filled = url.replace("{alert}", alert.name).replace("{slo}", alert.slo)
    return verbatim(filled if alert.slo else filled.removesuffix("#"))


def service_alerts(plan: SLOPlan) -> Iterator[Alert]:
    """Yield the alerts of the service as a whole."""
    values = {"service": promql.service_selector(plan), "name": verbatim(plan.service), "hash": plan.hash}
    for alert in SERVICE_ALERTS:
        if alert.of_pools and not plan.pools:
            continue
        yield alert._replace(
            expression=fill_in(alert.expression, values),
            summary=fill_in(alert.summary, values),
            description=fill_in(alert.description, values),
        )


def burn_alerts(plan: SLOPlan, slo: ResolvedObjective) -> Iterator[Alert]:
    """Yield `ErrorBudgetBurn` for each pair of windows whose alert can fire."""
    series, period = promql.recorded(plan, slo), promql_duration(plan.period)
    budget_seconds = format_number(plan.period * budget(slo.percent))
    remaining = f"slo:error_budget_remaining:ratio{series}"
    for window, limit in slo.windows:
        long_ratio, short_ratio = (f"slo:error_ratio:rate{name}{series}" for name in (window.long, window.short))
        seconds_left = f"{budget_seconds} * ({remaining} > 0) / {long_ratio}"
        yield Alert(
            "ErrorBudgetBurn",
            window.severity,
            f"{long_ratio} > {format_number(limit)}\n"
            f"and {short_ratio} > {format_number(limit)}\n"
            f"and {_enough_failures(series, window.long, slo)}" + _unless_cleared(series, slo, window, limit),
            f"{_name(plan, slo)}: {{{{ $value | humanizePercentage }}}} of requests {_failed(slo)} over {window.long} "
            f"(objective {format_number(slo.percent)}%)" + _worst_route(plan, slo, window),
            f"{{{{ range {_query(seconds_left)} }}}}At this rate the rest of the {period} error budget is spent in "
            "{{ .Value | humanizeDuration }}. {{ end }}"
            f"{{{{ range {_query(f'{remaining} <= 0')} }}}}The {period} error budget is spent. {{{{ end }}}}"
            f"Fires above {format_number(limit * 100)}% over {window.long} and {window.short}, with at least "
            f"{slo.objective.min_bad_events} failed requests.",
            keep=window.keep_firing,
            slo=slo.name,
            window=window.long,
        )


def budget_alerts(plan: SLOPlan, slo: ResolvedObjective) -> Iterator[Alert]:
    """Yield `ErrorBudgetLow`: little of the budget is left."""
    series, period = promql.recorded(plan, slo), promql_duration(plan.period)
    yield Alert(
        "ErrorBudgetLow",
        "ticket",
        f"slo:error_budget_remaining:ratio{series} < {LOW_BUDGET}\nand {_enough_failures(series, period, slo)}",
        f"{_name(plan, slo)}: {{{{ $value | humanizePercentage }}}} of the {period} error budget is left"
        + _worst_route(plan, slo, slo.windows[-1][0]),
        f"The objective is that {format_number(slo.percent)}% of requests succeed within {period}. Put reliability "
        "before features until the budget has recovered.",
        wait="1h",
        keep="6h",
        slo=slo.name,
    )


def missing_alert(plan: SLOPlan, slo: ResolvedObjective) -> Alert:
    """Return `SLODataMissing`: the service is scraped, but has no series of the objective."""
    return Alert(
        "SLODataMissing",
        "ticket",
        f"sum(up{{{promql.service_selector(plan)}}}) > 0\nunless on() slo:events:rate1m{promql.recorded(plan, slo)}",
        f"{_name(plan, slo)}: the service is up, but no requests are recorded for this objective",
        "The alerts of this objective cannot fire. Were routes, labels or metrics renamed? Make the rules again.",
        wait="15m",
        slo=slo.name,
    )


def _name(plan: SLOPlan, slo: ResolvedObjective) -> str:
    return verbatim(f"{plan.service}/{slo.name}")


def _enough_failures(series: str, window: str, slo: ResolvedObjective) -> str:
    """Write the condition that keeps an alert silent about single failures."""
    # The recorded rate is sampled once per evaluation, so its sum times the interval is the number of events.
    recorded = f"sum_over_time(slo:bad_events:rate1m{series}[{window}])"
    return f"round({recorded} * {EVALUATION_INTERVAL}) >= {slo.objective.min_bad_events}"


def _unless_cleared(series: str, slo: ResolvedObjective, window: BurnWindow, limit: Decimal) -> str:
    """Write the condition that ends an alert before its short window does."""
    clear = window.early_clear
    if not clear:
        return ""
    events = f"sum_over_time(slo:events:rate1m{series}[{clear}]) * {EVALUATION_INTERVAL}"
    return (
        f"\nunless (slo:error_ratio:rate{clear}{series} <= {format_number(budget(slo.percent))}\n"
        f"and {events} >= {min_events(limit)})"
    )


def _failed(slo: ResolvedObjective) -> str:
    return f"took more than {slo.objective.within}" if isinstance(slo.objective, Latency) else "failed"


def _worst_route(plan: SLOPlan, slo: ResolvedObjective, window: BurnWindow) -> str:
    """Write the part of a summary that names the route with most bad events, if there is one."""
    query = _query(promql.worst(plan, slo, window.short))
    names = plan.names
    worst = f"{{{{ .Labels.{names.method} }}}} {{{{ .Labels.{names.endpoint} }}}}"
    return f"{{{{ range {query} }}}}, worst: {worst}{{{{ end }}}}"


def _query(expression: str) -> str:
    return f"query {promql.go_string(expression)}"
