"""What stands around the rules: Grafana's data sources, the scrape configuration, how long what is kept."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.settings.objectives import parse_duration
from fastapi_observe.slo.burn_rates import WINDOWS
from fastapi_observe.slo.prometheus.promql import duration

if TYPE_CHECKING:
    from fastapi_observe.settings.model import ObserveSettings
    from fastapi_observe.slo.grafana.features import Features
    from fastapi_observe.slo.plan import SLOPlan

DAY: Final = Decimal(86_400)
SPARE: Final = 5 * DAY
"""What Prometheus keeps beyond the period: its blocks are cut two hours at a time and an outage may hide some days."""


def retention(plan: SLOPlan) -> str:
    """Return how long Prometheus must keep samples, as its flag wants it."""
    return duration(plan.period + SPARE)


def interval(plan: SLOPlan) -> str:
    """Return how often Prometheus scrapes, as it reads durations: without a fraction."""
    return duration(parse_duration(plan.options.scrape_interval))


def make_datasources(plan: SLOPlan, features: Features) -> dict[str, Any]:
    """Return a provisioning file of Grafana: exemplars lead to traces, traces to log lines and back.

    `$$` is a dollar that Grafana does not take for a variable of its environment.
    """
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
                "timeInterval": interval(plan),
                **({"exemplarTraceIdDestinations": exemplars} if features.exemplars else {}),
            },
        }
    ]
    if features.traces:
        to_logs = {
            "datasourceUid": "loki",
            "spanStartTimeShift": "-5m",
            "spanEndTimeShift": "5m",
            "customQuery": True,
            "query": '{service_name="$${__span.tags["service.name"]}"} | json | trace_id="$${__trace.traceId}"',
        }
        data: dict[str, Any] = {"tracesToLogsV2": to_logs} if features.logs else {}
        sources.append({"name": "Tempo", "uid": "tempo", "type": "tempo", "url": "http://tempo:3200", "jsonData": data})
    if features.logs:
        field = {
            "name": "trace_id",
            "matcherRegex": '"trace_id":"(\\w+)"',
            "url": "$${__value.raw}",
            "datasourceUid": "tempo",
        }
        data = {"derivedFields": [field]} if features.traces else {}
        sources.append({"name": "Loki", "uid": "loki", "type": "loki", "url": "http://loki:3100", "jsonData": data})
    return {"apiVersion": 1, "datasources": sources}


def make_prometheus(plan: SLOPlan, settings: ObserveSettings) -> dict[str, Any]:
    """Return a configuration of Prometheus that scrapes this service and loads its rules."""
    labels = dict(plan.selector)
    job: dict[str, Any] = {
        "job_name": labels.pop("job", plan.service),
        "scrape_interval": interval(plan),
        "metrics_path": settings.metrics_path,
    }
    if settings.metrics_token is not None:
        job["authorization"] = {"credentials_file": "/etc/prometheus/metrics_token"}
    where = f"127.0.0.1:{settings.metrics_port or 8000}"
    job["static_configs"] = [{"targets": [where], **({"labels": labels} if labels else {})}]
    return {
        "global": {"evaluation_interval": "30s"},
        "rule_files": ["rules.yml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": ["127.0.0.1:9093"]}]}]},
        "scrape_configs": [job],
    }


SOURCES: Final = """\
# A provisioning file of Grafana. Copy it and replace the URLs in the copy: this one is made again.
"""


def prometheus_notes(plan: SLOPlan, features: Features) -> str:
    """Write which flags Prometheus needs, as comments."""
    exemplars = " --enable-feature=exemplar-storage" if features.exemplars else ""
    return (
        "# Copy this file and fill in the TODOs in the copy: this one is made again.\n"
        f"# Start it with --storage.tsdb.retention.time={retention(plan)}{exemplars}\n"
        "# TODO replace the targets by where your instances and your Alertmanager are.\n"
    )


def make_retention(plan: SLOPlan) -> str:
    """Write how long what is to be kept, and why, as a page."""
    period = duration(plan.period)
    windows = len({each.long for each in WINDOWS} | {each.short for each in WINDOWS}) + 1
    each = windows + 4
    with_sla = sum(slo.objective.sla is not None for slo in plan.slos)
    total = each * len(plan.slos) + with_sla
    samples = Decimal(total) * DAY / 30
    scrapes = int(DAY / parse_duration(plan.options.scrape_interval))
    return f"""\
# How long to keep what

| what | how long | why |
|---|---|---|
| metrics in Prometheus | {retention(plan)} | The error budgets look back {period}; unless told, Prometheus keeps 15d |
| recorded series `slo:*` | a year, in a long-term store | They tell how the promises were kept, and are few |
| traces | 7 d | They explain what happens now; an exemplar that leads to nothing is worse than none |
| log lines | 14 to 30 d | As long as somebody asks what happened to one customer |

- Prometheus: `--storage.tsdb.retention.time={retention(plan)}`; `python -m fastapi_observe verify` checks it.
- {plan.service} has {len(plan.slos)} {"objective" if len(plan.slos) == 1 else "objectives"}: {total} recorded series,
  at most {samples:,.0f} samples a day. That is all that a long-term store needs:
  `write_relabel_configs: [{{source_labels: [__name__], regex: "slo:.*", action: keep}}]` under `remote_write`.
- Every other series has {scrapes:,} samples a day at a scrape interval of {plan.options.scrape_interval}.
  `python -m fastapi_observe cost http://127.0.0.1:8000/metrics` counts them and says what can be switched off.
"""
