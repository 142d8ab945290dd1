"""Recording rules and alerts made from the objectives of an app."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.internal.version import package_version
from fastapi_observe.settings.objectives import Latency, parse_duration, parse_percent
from fastapi_observe.slo.burn_rates import EVALUATION_INTERVAL, WINDOWS, budget, format_number
from fastapi_observe.slo.loading import get_plan
from fastapi_observe.slo.prometheus import promql, yaml
from fastapi_observe.slo.prometheus.alerts import alert, budget_alerts, burn_alerts, missing_alert, service_alerts

if TYPE_CHECKING:
    from collections.abc import Iterable
    from decimal import Decimal

    from fastapi_observe.slo.plan import ResolvedObjective, SLOPlan

SLOW: Final = 120
"""Seconds between two evaluations of what changes slowly: windows of a day and more, budgets.

Well below the five minutes after which Prometheus takes a series for gone.
"""

FAST_WINDOWS: Final = tuple(sorted({each.short for each in WINDOWS if each.severity == "page"}
                            | {each.long for each in WINDOWS if each.severity == "page"}, key=parse_duration))  # fmt: skip  # noqa: E501
SLOW_WINDOWS: Final = tuple(
    sorted({each.short for each in WINDOWS} | {each.long for each in WINDOWS}, key=parse_duration)
)

Rule = dict[str, Any]


def generate_rules(app: Any, *, keep_firing: bool | None = None) -> dict[str, Any]:
    """Return the rules of an installed app: `{"groups": [...]}`, as a rule file of Prometheus has them.

    `keep_firing`: use `keep_firing_for`; None: as `SLOOptions` says. Raises `LoadError` if `install(app)` is missing,
    `ValueError` with all that is wrong with the objectives.
    """
    _, plan = get_plan(app)
    return make_rules(plan, keep_firing=keep_firing)


def make_rules(plan: SLOPlan, *, keep_firing: bool | None = None) -> dict[str, Any]:
    """Return the rules of a plan; see `generate_rules`."""
    if plan.errors:
        raise ValueError("\n".join(map(str, plan.errors)))
    keep = plan.options.keep_firing if keep_firing is None else keep_firing
    name = f"fastapi-observe:{plan.service}"
    groups = []
    for slo in plan.slos:
        fast, slow = _objective(plan, slo)
        groups.append(_group(f"{name}:slo:{slo.name}", EVALUATION_INTERVAL, fast, keep=keep))
        groups.append(_group(f"{name}:slo:{slo.name}:slow", SLOW, slow, keep=keep))
    groups.append(
        _group(f"{name}:service", EVALUATION_INTERVAL, [alert(plan, each) for each in service_alerts(plan)], keep=keep)
    )
    return {"groups": groups}


def operator_format(rules: dict[str, Any], plan: SLOPlan) -> dict[str, Any]:
    """Wrap rules in a `PrometheusRule` of the Prometheus operator."""
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


def rule_file(plan: SLOPlan, *, form: str = "prometheus", keep_firing: bool | None = None) -> str:
    """Write the rule file, with the version and the hash of what it was made from in its head."""
    rules = make_rules(plan, keep_firing=keep_firing)
    return header(plan) + yaml.dump(rules if form == "prometheus" else operator_format(rules, plan))


def header(plan: SLOPlan) -> str:
    """Write the comment that generated files begin with."""
    service = plan.service if plan.service.isprintable() else repr(plan.service)
    return (
        f"# Made by fastapi-observe {package_version('fastapi-observe')} from the objectives of {service}; "
        f"do not edit, make it again.\n# Configuration: {plan.hash}\n"
    )


def _group(name: str, interval: int, rules: Iterable[Rule], *, keep: bool) -> dict[str, Any]:
    kept = [{key: value for key, value in rule.items() if keep or key != "keep_firing_for"} for rule in rules]
    return {"name": name, "interval": f"{interval}s", "rules": kept}


def _objective(plan: SLOPlan, slo: ResolvedObjective) -> tuple[list[Rule], list[Rule]]:
    """Return the rules of an objective: those that change fast, those that change slowly."""
    labels = {"service": plan.service, "slo": slo.name}

    def record(name: str, expression: str) -> Rule:
        return {"record": name, "expr": expression, "labels": labels}

    fast = [
        record("slo:events:rate1m", f"sum({promql.events(plan, slo, plan.base)})"),
        record("slo:bad_events:rate1m", _bad(plan, slo)),
        *(record(*_ratio(plan, slo, window)) for window in FAST_WINDOWS),
    ]
    slow = [record(*_ratio(plan, slo, window)) for window in SLOW_WINDOWS if window not in FAST_WINDOWS]
    whole = promql.duration(plan.period)
    slow += [
        record(*_ratio(plan, slo, whole)),
        record("slo:objective:ratio", f"vector({format_number(slo.percent / 100)})"),
        record("slo:error_budget_remaining:ratio", _remaining(plan, slo, slo.percent)),
    ]
    if slo.objective.sla is not None:
        slow.append(record("slo:sla_budget_remaining:ratio", _remaining(plan, slo, parse_percent(slo.objective.sla))))
    for window in burn_alerts(plan, slo):
        where = fast if parse_duration(window.window) <= parse_duration(FAST_WINDOWS[-1]) else slow
        where.append(alert(plan, window))
    fast.append(alert(plan, missing_alert(plan, slo)))
    slow += [alert(plan, each) for each in budget_alerts(plan, slo)]
    return fast, slow


def _bad(plan: SLOPlan, slo: ResolvedObjective) -> str:
    everything = f"sum({promql.events(plan, slo, plan.base)})"
    if isinstance(slo.objective, Latency):
        return f"clamp_min({everything}\n- sum({promql.good(plan, slo, plan.base)}), 0)"
    return f"sum({promql.bad(plan, slo, plan.base)})\nor 0 * {everything}"


def _ratio(plan: SLOPlan, slo: ResolvedObjective, window: str) -> tuple[str, str]:
    series = promql.recorded(plan, slo)
    bad = f"sum_over_time(slo:bad_events:rate1m{series}[{window}])"
    return f"slo:error_ratio:rate{window}", f"{bad}\n/ (sum_over_time(slo:events:rate1m{series}[{window}]) > 0)"


def _remaining(plan: SLOPlan, slo: ResolvedObjective, promised: Decimal) -> str:
    whole = promql.duration(plan.period)
    return f"1 - slo:error_ratio:rate{whole}{promql.recorded(plan, slo)} / {format_number(budget(promised))}"
