"""Recording and alerting rules made from the objectives of an app."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.internal.version import package_version
from fastapi_observe.settings.objectives import Latency, parse_duration, parse_percent
from fastapi_observe.slo.burn_rates import EVALUATION_INTERVAL, WINDOWS, budget, format_number, promql_duration
from fastapi_observe.slo.features import detect_features
from fastapi_observe.slo.loading import get_plan
from fastapi_observe.slo.prometheus import promql, yaml
from fastapi_observe.slo.prometheus.alerts import (
    budget_alerts,
    burn_alerts,
    make_alert_rule,
    missing_alert,
    service_alerts,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from decimal import Decimal

    from fastapi_observe.slo.plan import ResolvedObjective, SLOPlan

SLOW_INTERVAL: Final = 120
"""Seconds between two evaluations of windows of a day and more, and of budgets.

Well below five minutes, after which Prometheus treats a series as stale.
"""

PAGE_WINDOWS: Final = [window for window in WINDOWS if window.severity == "page"]
FAST_WINDOWS: Final = tuple(
    sorted({name for window in PAGE_WINDOWS for name in (window.short, window.long)}, key=parse_duration)
)
SLOW_WINDOWS: Final = tuple(
    sorted({name for window in WINDOWS for name in (window.short, window.long)} - {*FAST_WINDOWS}, key=parse_duration)
)

Rule = dict[str, Any]


def generate_rules(app: Any, *, keep_firing: bool | None = None) -> dict[str, Any]:
    """Return the rules of an installed app: `{"groups": [...]}`, the content of a Prometheus rule file.

    `keep_firing` says whether alerts use `keep_firing_for`; None takes the value of `SLOOptions`. Raises `LoadError` if
    the app is not installed and `ValueError` that lists all problems of the objectives.
    """
    settings, plan = get_plan(app)
    return make_rules(plan._replace(pools=detect_features(app, settings).pools), keep_firing=keep_firing)


def make_rules(plan: SLOPlan, *, keep_firing: bool | None = None) -> dict[str, Any]:
    """Return the rules of a plan; see `generate_rules`."""
    if plan.errors:
        raise ValueError("\n".join(f"{problem.level}: {problem}" for problem in plan.errors))
    keep = plan.options.keep_firing if keep_firing is None else keep_firing
    name = f"fastapi-observe:{plan.service}"
    groups = []
    for slo in plan.slos:
        fast, slow = _objective_rules(plan, slo)
        groups.append(_group(f"{name}:slo:{slo.name}", EVALUATION_INTERVAL, fast, keep=keep))
        groups.append(_group(f"{name}:slo:{slo.name}:slow", SLOW_INTERVAL, slow, keep=keep))
    service = [make_alert_rule(plan, alert) for alert in service_alerts(plan)]
    groups.append(_group(f"{name}:service", EVALUATION_INTERVAL, service, keep=keep))
    return {"groups": groups}


def operator_format(rules: dict[str, Any], plan: SLOPlan) -> dict[str, Any]:
    """Wrap rules in a `PrometheusRule` for the Prometheus Operator."""
    name = re.sub(r"[^a-z0-9]+", "-", plan.service.lower()).strip("-") or "service"
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {
            "name": f"fastapi-observe-{name}"[:63].rstrip("-"),
            "labels": {"app.kubernetes.io/managed-by": "fastapi-observe"},
        },
        "spec": rules,
    }


def rule_file(plan: SLOPlan, *, form: str = "prometheus") -> str:
    """Write the rule file, or with the form "operator" a `PrometheusRule`."""
    rules = make_rules(plan)
    return header(plan) + yaml.dump(rules if form == "prometheus" else operator_format(rules, plan))


def header(plan: SLOPlan) -> str:
    """Write the first comment of generated files: the version, the service and the hash of the configuration."""
    service = plan.service if plan.service.isprintable() else repr(plan.service)
    return (
        f"# Made by fastapi-observe {package_version('fastapi-observe')} from the objectives of {service}; "
        f"do not edit, make it again.\n# Configuration: {plan.hash}\n"
    )


def _group(name: str, interval: int, rules: Iterable[Rule], *, keep: bool) -> dict[str, Any]:
    kept = [{key: value for key, value in rule.items() if keep or key != "keep_firing_for"} for rule in rules]
    return {"name": name, "interval": f"{interval}s", "rules": kept}


def _objective_rules(plan: SLOPlan, slo: ResolvedObjective) -> tuple[list[Rule], list[Rule]]:
    """Return the rules of an objective in two lists, by how often they are evaluated: fast and slow ones."""
    labels = {"service": plan.service, "slo": slo.name}

    def record(name: str, expression: str) -> Rule:
        return {"record": name, "expr": expression, "labels": labels}

    def record_ratio(window: str) -> Rule:
        return record(f"slo:error_ratio:rate{window}", _error_ratio(plan, slo, window))

    fast = [
        record("slo:events:rate1m", f"sum({promql.events(plan, slo, plan.base)})"),
        record("slo:bad_events:rate1m", _bad_events(plan, slo)),
        *map(record_ratio, FAST_WINDOWS),
    ]
    slow = [
        *map(record_ratio, SLOW_WINDOWS),
        record_ratio(promql_duration(plan.period)),
        record("slo:objective:ratio", f"vector({format_number(slo.percent / 100)})"),
        record("slo:error_budget_remaining:ratio", _remaining(plan, slo, slo.percent)),
    ]
    if slo.objective.sla is not None:
        slow.append(record("slo:sla_budget_remaining:ratio", _remaining(plan, slo, parse_percent(slo.objective.sla))))
    # An alert belongs to the group that records its long window: a group is evaluated as one, in its order.
    for alert in burn_alerts(plan, slo):
        (fast if alert.window in FAST_WINDOWS else slow).append(make_alert_rule(plan, alert))
    fast.append(make_alert_rule(plan, missing_alert(plan, slo)))
    slow += [make_alert_rule(plan, alert) for alert in budget_alerts(plan, slo)]
    return fast, slow


def _bad_events(plan: SLOPlan, slo: ResolvedObjective) -> str:
    all_events = f"sum({promql.events(plan, slo, plan.base)})"
    if isinstance(slo.objective, Latency):
        return f"clamp_min({all_events}\n- sum({promql.good(plan, slo, plan.base)}), 0)"
    return f"sum({promql.bad(plan, slo, plan.base)})\nor 0 * {all_events}"


def _error_ratio(plan: SLOPlan, slo: ResolvedObjective, window: str) -> str:
    series = promql.recorded(plan, slo)
    bad = f"sum_over_time(slo:bad_events:rate1m{series}[{window}])"
    return f"{bad}\n/ (sum_over_time(slo:events:rate1m{series}[{window}]) > 0)"


def _remaining(plan: SLOPlan, slo: ResolvedObjective, percent: Decimal) -> str:
    whole = promql_duration(plan.period)
    return f"1 - slo:error_ratio:rate{whole}{promql.recorded(plan, slo)} / {format_number(budget(percent))}"
