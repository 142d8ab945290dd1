"""Grafana's data sources, the scrape configuration of Prometheus, and how long to keep the data."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.settings.objectives import parse_duration
from fastapi_observe.slo.burn_rates import WINDOWS, promql_duration

if TYPE_CHECKING:
    from fastapi_observe.settings.model import ObserveSettings
    from fastapi_observe.slo.features import Features
    from fastapi_observe.slo.plan import SLOPlan

SECONDS_PER_DAY: Final = 86_400
RETENTION_MARGIN: Final = 5 * SECONDS_PER_DAY
"""Retention beyond the period: Prometheus deletes whole blocks, and the budget needs samples from before an outage."""


def retention(plan: SLOPlan) -> str:
    """Return how long Prometheus must keep samples, as its flag expects it."""
    return promql_duration(plan.period + RETENTION_MARGIN)


def scrape_interval(plan: SLOPlan) -> str:
    """Return the scrape interval as Prometheus reads durations: without a fraction."""
    return promql_duration(parse_duration(plan.options.scrape_interval))


def make_datasources(plan: SLOPlan, features: Features) -> dict[str, Any]:
    """Return a provisioning file of Grafana: exemplars link to traces, traces to log lines and back."""
    # Grafana reads `$name` as a variable of its environment, and `$$` as a dollar.
    exemplars: list[dict[str, Any]] = [{"name": "trace_id", "datasourceUid": "tempo"}]
    sources: list[dict[str, Any]] = [
        {
            "name": "Prometheus",
            "uid": "prometheus",
            "type": "prometheus",
            "access": "proxy",
            "url": "http://prometheus:9090",
            "jsonData": {
                "httpMethod": "POST",
                "timeInterval": scrape_interval(plan),
                **({"exemplarTraceIdDestinations": exemplars} if features.exemplars else {}),
            },
        }
    ]
    if features.traces:
        of_trace = features.line_format.logql_trace_filter("$${__trace.traceId}")
        to_logs = {
            "datasourceUid": "loki",
            "spanStartTimeShift": "-5m",
            "spanEndTimeShift": "5m",
            "customQuery": True,
            "query": f'{{service_name="$${{__span.tags["service.name"]}}"}} | json | {of_trace}',
        }
        data: dict[str, Any] = {"tracesToLogsV2": to_logs} if features.logs else {}
        sources.append({"name": "Tempo", "uid": "tempo", "type": "tempo", "url": "http://tempo:3200", "jsonData": data})
    if features.logs:
        to_trace = {
            "name": "trace_id",
            "matcherRegex": features.line_format.trace_id_pattern,
            "url": "$${__value.raw}",
            "datasourceUid": "tempo",
        }
        data = {"derivedFields": [to_trace]} if features.traces else {}
        sources.append({"name": "Loki", "uid": "loki", "type": "loki", "url": "http://loki:3100", "jsonData": data})
    return {"apiVersion": 1, "datasources": sources}


def make_prometheus(plan: SLOPlan, settings: ObserveSettings) -> dict[str, Any]:
    """Return a configuration of Prometheus that scrapes this service and loads its rules."""
    labels = dict(plan.selector)
    job: dict[str, Any] = {
        "job_name": labels.pop("job", plan.service),
        "scrape_interval": scrape_interval(plan),
        "metrics_path": settings.metrics_path,
    }
    if settings.metrics_token is not None:
        job["authorization"] = {"credentials_file": "/etc/prometheus/metrics_token"}
    target = f"127.0.0.1:{settings.metrics_port or 8000}"
    job["static_configs"] = [{"targets": [target], **({"labels": labels} if labels else {})}]
    return {
        "global": {"evaluation_interval": "30s"},
        "rule_files": ["rules.yml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": ["127.0.0.1:9093"]}]}]},
        "scrape_configs": [job],
    }


SOURCES: Final = """\
# A provisioning file of Grafana. Copy it and replace the URLs in the copy: this file is overwritten.
"""


def prometheus_notes(plan: SLOPlan, features: Features) -> str:
    """Write the comment of the configuration: the flags that Prometheus needs, and what is left to fill in."""
    exemplars = " --enable-feature=exemplar-storage" if features.exemplars else ""
    return (
        "# Copy this file and fill in the TODOs in the copy: this file is overwritten.\n"
        f"# Start Prometheus with --storage.tsdb.retention.time={retention(plan)}{exemplars}\n"
        "# TODO replace the targets by the addresses of your instances and of your Alertmanager.\n"
    )


def make_retention(plan: SLOPlan) -> str:
    """Write a page about how long to keep metrics, traces and logs."""
    windows = {name for window in WINDOWS for name in (window.long, window.short)}
    # Each objective also records events, bad events, the ratio of the period, the objective and the budget left.
    per_objective = len(windows) + 5
    series = per_objective * len(plan.slos) + sum(slo.objective.sla is not None for slo in plan.slos)
    samples = Decimal(series) * SECONDS_PER_DAY / 30
    scrapes = int(SECONDS_PER_DAY / parse_duration(plan.options.scrape_interval))
    return f"""\
# How long to keep metrics, traces and logs

| data | how long | why |
|---|---|---|
| metrics in Prometheus | {retention(plan)} | Error budgets need {promql_duration(plan.period)}; the default is 15d |
| recorded series `slo:*` | a year, in a long-term store | They show whether objectives were met, and are few |
| traces | 7 d | They explain current incidents; an exemplar whose trace is deleted is useless |
| log lines | 14 to 30 d | As long as questions about single requests are asked |

- Prometheus: `--storage.tsdb.retention.time={retention(plan)}`; `python -m fastapi_observe slo verify` checks it.
- {plan.service} has {len(plan.slos)} {"objective" if len(plan.slos) == 1 else "objectives"}: {series} recorded series,
  at most {samples:,.0f} samples per day. A long-term store needs nothing else:
  `write_relabel_configs: [{{source_labels: [__name__], regex: "slo:.*", action: keep}}]` under `remote_write`.
- Every other series has {scrapes:,} samples per day at a scrape interval of {plan.options.scrape_interval}.
  `python -m fastapi_observe cost http://127.0.0.1:8000/metrics` counts them and suggests savings.
"""
