"""Tests of the rules for `promtool test rules`: incidents, and when each alert must fire and clear."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.settings.objectives import Availability, Latency
from fastapi_observe.slo.burn_rates import EVALUATION_INTERVAL, BurnWindow, budget, format_number
from fastapi_observe.slo.prometheus import promql, yaml
from fastapi_observe.slo.prometheus.incident import (
    SAMPLE_INTERVAL,
    IncidentPhase,
    expected_alerts,
    incident_series,
    sample_pairs,
)
from fastapi_observe.slo.prometheus.rules import header

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fastapi_observe.slo.plan import ResolvedObjective, SLOPlan

HIGH_RATE: Final = Decimal(1000)
"""Requests per second of most incidents."""

LOW_RATE: Final = Decimal(1) / 120
"""One request in two minutes, per second."""

MINUTE: Final = 60


def test_file(plan: SLOPlan, rule_file: str) -> str:
    """Write the tests of a rule file; `rule_file` is its path relative to the test file."""
    return header(plan) + yaml.dump(make_rule_tests(plan, rule_file))


def make_rule_tests(plan: SLOPlan, rule_file: str) -> dict[str, Any]:
    """Return the tests of the rules of a plan."""
    tests = [test for slo in plan.slos for test in _objective_tests(plan, slo)]
    return {
        "rule_files": [rule_file],
        "evaluation_interval": f"{EVALUATION_INTERVAL}s",
        "tests": [*tests, _service_down(plan)],
    }


def _objective_tests(plan: SLOPlan, slo: ResolvedObjective) -> Iterator[dict[str, Any]]:
    window, limit = slo.windows[0]
    burning = min(limit * 3 / 2, (1 + limit) / 2)
    yield _burn(plan, slo, "total outage", (_ok(20), IncidentPhase(10 * MINUTE, HIGH_RATE, Decimal(1)), _ok(60)))
    yield _burn(
        plan, slo, f"{_percent(burning)} fail", (_ok(15), IncidentPhase(40 * MINUTE, HIGH_RATE, burning), _ok(15))
    )
    allowed = min(limit for _, limit in slo.windows) / 2
    phases = (IncidentPhase(40 * MINUTE, HIGH_RATE, allowed),)
    yield _burn(plan, slo, f"{_percent(allowed)} fail, which the budget allows", phases)
    if slo.objective.min_bad_events > 1:
        yield _one_failure(plan, slo)
    yield _low_traffic_outage(plan, slo, window, limit)
    yield _no_traffic(plan, slo)
    yield _new_instances(plan, slo)
    if isinstance(slo.objective, Latency):
        yield _new_bucket(plan, slo)
    yield _missing_series(plan, slo)


def _ok(minutes: int) -> IncidentPhase:
    return IncidentPhase(minutes * MINUTE, HIGH_RATE)


def _burn(plan: SLOPlan, slo: ResolvedObjective, name: str, phases: tuple[IncidentPhase, ...]) -> dict[str, Any]:
    """Assert for each window when its alert fires and clears, with a margin of some evaluations on each side."""
    end = sum(phase.seconds for phase in phases)
    checks = []
    for window, limit in slo.windows:
        firing = f"count({_alert(plan, slo, window)})"
        firings = expected_alerts(plan, slo, phases, window, limit)
        if not firings:
            checks.append(_never(plan, slo, end, window))
        margin = _margin(window)
        for times in firings:
            start, clear = times[0], times[1] if len(times) > 1 else end + 2 * margin
            instants = (start - margin, start + margin, clear - margin, clear + margin)
            checks += [_check(firing, at, 1 if start < at < clear else None) for at in instants if 0 < at <= end]
    return _test(slo, name, incident_series(plan, slo, phases), checks)


def _margin(window: BurnWindow) -> int:
    """Return by how many seconds an alert may fire or clear earlier or later than expected."""
    return 2 * EVALUATION_INTERVAL if window.severity == "page" else 5 * EVALUATION_INTERVAL


def _one_failure(plan: SLOPlan, slo: ResolvedObjective) -> dict[str, Any]:
    """Assert that one failed request, at one per minute, fires no alert."""
    normal = IncidentPhase(20 * MINUTE, Decimal(1) / MINUTE)
    series = _single_route(plan, slo, (normal, _one_failing_request(1), normal))
    return _test(slo, "one request fails, at one per minute", series, [_never(plan, slo, 41 * MINUTE)])


def _one_failing_request(minutes: int) -> IncidentPhase:
    """Return a phase with one request, which fails."""
    return IncidentPhase(minutes * MINUTE, Decimal(1) / (minutes * MINUTE), Decimal(1))


def _single_route(plan: SLOPlan, slo: ResolvedObjective, phases: tuple[IncidentPhase, ...]) -> list[dict[str, Any]]:
    """Return the series of low traffic, on one route with one status: single requests cannot be split among several."""
    pair = sample_pairs(slo)[0]
    narrowed = slo._replace(endpoints=(pair,), groups=(((pair[0],), (pair[1],)),) if slo.groups else ())
    if isinstance(slo.objective, Availability):
        narrowed = narrowed._replace(objective=replace(slo.objective, bad_statuses=slo.objective.bad_statuses[:1]))
    return incident_series(plan, narrowed, phases, with_unrelated=False)


def _low_traffic_outage(plan: SLOPlan, slo: ResolvedObjective, window: BurnWindow, limit: Decimal) -> dict[str, Any]:
    """Assert that an alert fires when enough requests have failed, at one in two minutes, and not before."""
    start, needed = 20 * MINUTE, slo.objective.min_bad_events
    end = start + 2 * (needed + 4) * MINUTE
    phases = (IncidentPhase(start, LOW_RATE), IncidentPhase(end - start, LOW_RATE, Decimal(1)))
    checks = []
    if needed > 2:  # noqa: PLR2004 - extrapolation may count two failures as nearly three
        checks.append(_never(plan, slo, start + 2 * (needed - 2) * MINUTE))
    firings = expected_alerts(plan, slo, phases, window, limit)
    if firings and firings[0][0] + 2 * MINUTE <= end:
        at = max(firings[0][0] + 2 * MINUTE, start + 2 * (needed + 1) * MINUTE)
        checks.append(_check(f"count({_alert(plan, slo, window)})", at, 1))
    return _test(slo, "outage at one request in two minutes", _single_route(plan, slo, phases), checks)


def _no_traffic(plan: SLOPlan, slo: ResolvedObjective) -> dict[str, Any]:
    """Assert that time without traffic neither spends nor adds budget."""
    failing = min(Decimal("0.5"), 20 * budget(slo.percent))
    busy, silent = IncidentPhase(10 * MINUTE, HIGH_RATE, failing), IncidentPhase(20 * MINUTE, Decimal(0))
    remaining = 1 - failing / budget(slo.percent)
    recorded = f"slo:error_budget_remaining:ratio{promql.recorded(plan, slo)}"
    tolerance = format_number(abs(remaining) / 100)
    close = f"sum(abs({recorded} - ({format_number(remaining)})) < bool {tolerance})"
    checks = [_check(close, 25 * MINUTE, 1), _check(close, 40 * MINUTE, 1)]
    return _test(slo, "a night without traffic", incident_series(plan, slo, (busy, silent, busy)), checks)


def _new_instances(plan: SLOPlan, slo: ResolvedObjective) -> dict[str, Any]:
    """Assert that the first failure of each new instance counts, because its series start at 0."""
    phases = (
        IncidentPhase(5 * MINUTE, Decimal(0), up=False),
        IncidentPhase(MINUTE, Decimal(0)),
        _one_failing_request(1),
        IncidentPhase(10 * MINUTE, Decimal(0)),
    )
    series = [
        {**each, "series": each["series"].replace('instance="a"', f'instance="{number}"')}
        for number in range(5)
        for each in _single_route(plan, slo, phases)
    ]
    counted = f"sum_over_time(slo:bad_events:rate1m{promql.recorded(plan, slo)}[10m]) * {EVALUATION_INTERVAL}"
    checks = [_check(f"sum(abs({counted} - 5) < bool 1.7)", 14 * MINUTE, 1)]
    return _test(slo, "five new instances, each fails once", series, checks)


def _new_bucket(plan: SLOPlan, slo: ResolvedObjective) -> dict[str, Any]:
    """Assert that instances that do not have the bucket yet are not counted, rather than counted as slow."""
    new = incident_series(plan, slo, (_ok(20),))
    old = [
        {**each, "series": each["series"].replace('instance="a"', 'instance="old"')}
        for each in new
        if 'le="+Inf"' in each["series"]
    ]
    no_errors = _check(f"sum(slo:error_ratio:rate5m{promql.recorded(plan, slo)})", 20 * MINUTE, 0)
    return _test(slo, "a deploy that adds the bucket", [*new, *old], [no_errors, _never(plan, slo, 20 * MINUTE)])


def _missing_series(plan: SLOPlan, slo: ResolvedObjective) -> dict[str, Any]:
    """Assert that an alert fires if the service is up but has no series of the objective."""
    up = incident_series(plan, slo, (IncidentPhase(20 * MINUTE, Decimal(0)),))[:1]
    fires = promql.selector((("alertname", "SLODataMissing"), ("alertstate", "firing"), *_labels(plan, slo)))
    return _test(slo, "its series are missing", up, [
        _check(f"count(ALERTS{{{fires}}})", 14 * MINUTE, None),
        _check(f"count(ALERTS{{{fires}}})", 17 * MINUTE, 1),
    ])  # fmt: skip


def _service_down(plan: SLOPlan) -> dict[str, Any]:
    labels = ",".join(f"{name}={promql.go_string(value)}" for name, value in sorted(plan.selector.items()))
    fires = promql.selector((("alertname", "ServiceDown"), ("alertstate", "firing"), ("service", plan.service)))
    return {
        "name": "no instance responds",
        "interval": f"{SAMPLE_INTERVAL}s",
        "input_series": [{"series": f'up{{{labels},instance="a"}}', "values": "1+0x40 0+0x40 1+0x20"}],
        "promql_expr_test": [
            _check(f"count(ALERTS{{{fires}}})", 10 * MINUTE, None),
            _check(f"count(ALERTS{{{fires}}})", 14 * MINUTE, 1),
            _check(f"count(ALERTS{{{fires}}})", 22 * MINUTE, None),
        ],
    }


def _test(
    slo: ResolvedObjective, name: str, series: list[dict[str, Any]], checks: Iterable[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "name": f"{slo.name}: {name}",
        "interval": f"{SAMPLE_INTERVAL}s",
        "input_series": series,
        "promql_expr_test": [*checks],
    }


def _check(expression: str, at: int, value: int | None) -> dict[str, Any]:
    """Assert the result of a query at a time: one sample without labels, or none."""
    samples = [] if value is None else [{"labels": "{}", "value": value}]
    return {"expr": expression, "eval_time": f"{at}s", "exp_samples": samples}


def _never(plan: SLOPlan, slo: ResolvedObjective, until: int, window: BurnWindow | None = None) -> dict[str, Any]:
    return _check(f"count_over_time({_alert(plan, slo, window)}[{until}s])", until, None)


def _alert(plan: SLOPlan, slo: ResolvedObjective, window: BurnWindow | None = None) -> str:
    labels = [("alertname", "ErrorBudgetBurn"), ("alertstate", "firing"), *_labels(plan, slo)]
    if window is not None:
        labels.append(("window", window.long))
    return f"ALERTS{{{promql.selector(labels)}}}"


def _labels(plan: SLOPlan, slo: ResolvedObjective) -> tuple[tuple[str, str], ...]:
    return ("service", plan.service), ("slo", slo.name)


def _percent(share: Decimal) -> str:
    return f"{format_number((share * 100).quantize(Decimal('0.001')))}%"
