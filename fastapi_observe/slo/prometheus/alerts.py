"""The alerts: what burns a budget, what makes objectives blind, and what runs out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi_observe.settings.objectives import Latency
from fastapi_observe.slo.burn_rates import EVALUATION_INTERVAL, BurnWindow, budget, format_number, min_events
from fastapi_observe.slo.prometheus import promql

if TYPE_CHECKING:
    from collections.abc import Iterator
    from decimal import Decimal

    from fastapi_observe.slo.plan import ResolvedObjective, SLOPlan

LOW: Final = "0.1"
"""Part of the budget below which a ticket is made."""


class Alert(NamedTuple):
    """An alert before it is written; `summary` and `description` are templates of Prometheus.

    `wait` is its `for`, `keep` its `keep_firing_for`, `window` the label of burn alerts.
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


def alert(plan: SLOPlan, what: Alert) -> dict[str, Any]:
    """Write an alert as a rule, with its labels and links."""
    labels = {"service": plan.service, "slo": what.slo, "window": what.window, "severity": what.severity}
    labels["team"] = plan.options.team or ""
    annotations = {
        "summary": what.summary,
        "description": what.description,
        "runbook_url": _link(plan.options.runbook_url, what),
        "dashboard_url": _link(plan.options.dashboard_url or "", what),
    }
    rule = {"alert": what.name, "expr": what.expression, "for": what.wait, "keep_firing_for": what.keep}
    return {
        **{key: value for key, value in rule.items() if value},
        "labels": {key: verbatim(value) for key, value in labels.items() if value},
        "annotations": {key: value for key, value in annotations.items() if value},
    }


def verbatim(text_: str) -> str:
    """Write a text so that a template of Prometheus gives it back, braces and all."""
    return text_.replace("{{", '{{ "{{" }}') if "{{" in text_ else text_


def _link(url: str, what: Alert) -> str:
    filled = url.replace("{alert}", what.name).replace("{slo}", what.slo)
    return verbatim(filled if what.slo else filled.removesuffix("#"))


def burn_alerts(plan: SLOPlan, slo: ResolvedObjective) -> Iterator[Alert]:
    """Yield `ErrorBudgetBurn` for each pair of windows whose alert can fire."""
    series, needed = promql.recorded(plan, slo), slo.objective.min_bad_events
    who, whole = verbatim(f"{plan.service}/{slo.name}"), promql.duration(plan.period)
    for window, limit in slo.windows:
        left = f"slo:error_budget_remaining:ratio{series}"
        gone = _query(
            f"{format_number(plan.period * budget(slo.percent))} * ({left} > 0) / slo:error_ratio:rate{window.long}{series}"  # noqa: E501
        )
        yield Alert(
            "ErrorBudgetBurn",
            window.severity,
            f"slo:error_ratio:rate{window.long}{series} > {format_number(limit)}\n"
            f"and slo:error_ratio:rate{window.short}{series} > {format_number(limit)}\n"
            f"and round(sum_over_time(slo:bad_events:rate1m{series}[{window.long}]) * {EVALUATION_INTERVAL}) >= {needed}"  # noqa: E501
            + _over(series, slo, window, limit),
            f"{who}: {{{{ $value | humanizePercentage }}}} of requests {_failed(slo)} over {window.long} "
            f"(objective {format_number(slo.percent)}%)" + _worst(plan, slo, window),
            f"{{{{ range {gone} }}}}At this rate what is left of the {whole} error budget is gone in "
            "{{ .Value | humanizeDuration }}. {{ end }}"
            f"{{{{ range {_query(f'{left} <= 0')} }}}}The {whole} error budget is spent. {{{{ end }}}}"
            f"Fires above {format_number(limit * 100)}% over {window.long} and {window.short}, with at least {needed} "
            f"failed requests.",
            keep=window.keep_firing,
            slo=slo.name,
            window=window.long,
        )


def budget_alerts(plan: SLOPlan, slo: ResolvedObjective) -> Iterator[Alert]:
    """Yield `ErrorBudgetLow`: little of the budget is left."""
    series, whole = promql.recorded(plan, slo), promql.duration(plan.period)
    needed = slo.objective.min_bad_events
    who = verbatim(f"{plan.service}/{slo.name}")
    yield Alert(
        "ErrorBudgetLow",
        "ticket",
        f"slo:error_budget_remaining:ratio{series} < {LOW}\n"
        f"and round(sum_over_time(slo:bad_events:rate1m{series}[{whole}]) * {EVALUATION_INTERVAL}) >= {needed}",
        f"{who}: {{{{ $value | humanizePercentage }}}} of the {whole} error budget is left"
        + _worst(plan, slo, slo.windows[-1][0]),
        f"Of all requests {format_number(slo.percent)}% are to succeed within {whole}. Put reliability before features until "  # noqa: E501
        "the budget has recovered.",
        wait="1h",
        keep="6h",
        slo=slo.name,
    )


def missing_alert(plan: SLOPlan, slo: ResolvedObjective) -> Alert:
    """Return `SLODataMissing`: the service is scraped, and nothing of the objective is there."""
    series = promql.recorded(plan, slo)
    return Alert(
        "SLODataMissing",
        "ticket",
        f"sum(up{{{promql.service_selector(plan)}}}) > 0\nunless on() slo:events:rate1m{series}",
        verbatim(f"{plan.service}/{slo.name}: the service is up, but its requests are not seen"),
        "The objective is blind: its alerts cannot fire. Were routes, labels or metrics renamed? Make the rules again.",
        wait="15m",
        slo=slo.name,
    )


def service_alerts(plan: SLOPlan) -> Iterator[Alert]:
    """Yield the alerts of the service as a whole. Of these only `ServiceDown` pages: the others are causes."""
    at, who = "{" + promql.service_selector(plan) + "}", verbatim(plan.service)
    where = "{{ $labels.instance }}"
    yield Alert(
        "ServiceDown", "page", f"absent(up{at} == 1)",
        f"{who}: no instance answers",
        "Prometheus reaches no instance. While nothing is counted the alerts of error budgets cannot fire.", wait="2m",
    )  # fmt: skip
    yield Alert(
        "InstanceDown", "ticket", f"up{at} == 0",
        f"{who}: {where} does not answer", "Prometheus has not reached this instance for 10 minutes.", wait="10m",
    )  # fmt: skip
    yield Alert(
        "InstanceRestarting", "ticket", f"max by (instance) (changes(process_start_time_seconds{at}[30m])) >= 3",
        f"{who}: {where} restarted {{{{ $value }}}} times in 30 minutes",
        "Look at its last log lines and at its memory limit.",
    )  # fmt: skip
    yield Alert(
        "EventLoopLagHigh", "ticket",
        f"histogram_quantile(0.99, sum by (instance, pid, le) (rate(asyncio_event_loop_lag_seconds_bucket{at}[5m]))) "
        "> 0.25",
        f"{who}: the event loop of {where} is {{{{ $value | humanizeDuration }}}} late",
        "Something blocks the event loop: a call without await, or work that belongs into a thread.", wait="10m",
    )  # fmt: skip
    yield Alert(
        "DBPoolNearlyExhausted", "ticket",
        f"sum by (instance, pool) (db_connections_active{at})\n"
        f"/ (sum by (instance, pool) (db_connections_max{at}) > 0) > 0.9",
        f"{who}: {{{{ $value | humanizePercentage }}}} of the connections of pool {{{{ $labels.pool }}}} on {where} "
        "are in use",
        "Requests will wait for a connection. Are connections held across other calls? Is a query slow?", wait="10m",
    )  # fmt: skip
    yield Alert(
        "FileDescriptorsNearlyExhausted", "ticket", f"process_open_fds{at} / process_max_fds{at} > 0.85",
        f"{who}: {{{{ $value | humanizePercentage }}}} of the open files of {where} are used",
        "New connections will fail. Are clients or responses left open?", wait="15m",
    )  # fmt: skip
    yield from _telemetry_alerts(plan, at, who, where)


def _telemetry_alerts(plan: SLOPlan, at: str, who: str, where: str) -> Iterator[Alert]:
    inside = at[1:-1]
    for name, signal, what in (("Spans", '"traces"', "spans"), ("Logs", '~"logs|otlp_logs"', "log lines")):
        yield Alert(
            f"Telemetry{name}Dropped", "info",
            f"sum by (instance, reason) (rate(fastapi_observe_dropped_total{{{inside},signal={signal}}}[5m])) > 0",
            f"{who}: {where} loses {{{{ $value | humanize }}}} {what} a second ({{{{ $labels.reason }}}})",
            "Is the collector down or slow, or the disk full? Requests are not affected.", wait="10m",
        )  # fmt: skip
    series = f"fastapi_observe_series_overflow_total{at}"
    yield Alert(
        "TelemetrySeriesLimit", "info",
        f"sum by (instance, metric) (increase({series}[1h])) > 0\n"
        f"or sum by (instance, metric) ({series} unless {series} offset 1h) > 0",
        f"{who}: {{{{ $labels.metric }}}} of {where} has more label sets than it may keep",
        "Further ones are counted together as __overflow__. The warning in the log names the label with most values.",
    )  # fmt: skip
    yield Alert(
        "SLORulesOutdated", "info",
        f'count by (hash) (fastapi_observe_slo_config_info{{{inside},hash!="{plan.hash}"}})',
        f"{who}: {{{{ $value }}}} instances have other objectives than these rules ({{{{ $labels.hash }}}})",
        f"The rules were made from configuration {plan.hash}. Make them again from what is deployed.", wait="1h",
    )  # fmt: skip


def _over(series: str, slo: ResolvedObjective, window: BurnWindow, limit: Decimal) -> str:
    """Write what ends an alert before its short window does."""
    if not window.early_clear:
        return ""
    return (
        f"\nunless (slo:error_ratio:rate{window.early_clear}{series} <= {format_number(budget(slo.percent))}\n"
        f"and sum_over_time(slo:events:rate1m{series}[{window.early_clear}]) * {EVALUATION_INTERVAL} >= {min_events(limit)})"  # noqa: E501
    )


def _failed(slo: ResolvedObjective) -> str:
    return f"took more than {slo.objective.within}" if isinstance(slo.objective, Latency) else "failed"


def _worst(plan: SLOPlan, slo: ResolvedObjective, window: BurnWindow) -> str:
    """Write the part of a summary that names the worst route, if there is one."""
    found = _query(promql.worst(plan, slo, window.short))
    return f"{{{{ range {found} }}}}, worst: {{{{ .Labels.method }}}} {{{{ .Labels.endpoint }}}}{{{{ end }}}}"


def _query(expression: str) -> str:
    return f"query {promql.go_string(expression)}"
