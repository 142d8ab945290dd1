"""Tests of the rules for `promtool test rules`: incidents, and when each alert fires and clears because of them."""

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

BUSY: Final = Decimal(1000)
"""Requests a second of most incidents."""

THIN: Final = Decimal(1) / 120
"""Requests a second where there is one in two minutes."""

MINUTE: Final = 60


def test_file(plan: SLOPlan, rule_file: str) -> str:
    """Write the tests of a rule file, which `rule_file` names as the test file sees it."""
    return header(plan) + yaml.dump(make_rule_tests(plan, rule_file))


def make_rule_tests(plan: SLOPlan, rule_file: str) -> dict[str, Any]:
    """Return the tests of the rules of a plan."""
    tests = [test for slo in plan.slos for test in _objective(plan, slo)]
    return {
        "rule_files": [rule_file],
        "evaluation_interval": f"{EVALUATION_INTERVAL}s",
        "tests": [*tests, _service_down(plan)],
    }


def _objective(plan: SLOPlan, slo: ResolvedObjective) -> Iterator[dict[str, Any]]:
    window, limit = slo.windows[0]
    burning = min(limit * 3 / 2, (1 + limit) / 2)
    yield _burn(plan, slo, "total outage", (_ok(20), IncidentPhase(10 * MINUTE, BUSY, Decimal(1)), _ok(60)))
    yield _burn(plan, slo, f"{_percent(burning)} fail", (_ok(15), IncidentPhase(40 * MINUTE, BUSY, burning), _ok(15)))
    least = min(limit for _, limit in slo.windows) / 2
    yield _burn(
        plan, slo, f"{_percent(least)} fail, which the budget allows", (IncidentPhase(40 * MINUTE, BUSY, least),)
    )
    if slo.objective.min_bad_events > 1:
        yield _one_failure(plan, slo)
    yield _thin_outage(plan, slo, window, limit)
    yield _night(plan, slo)
    yield _new_instances(plan, slo)
    if isinstance(slo.objective, Latency):
        yield _deploy(plan, slo)
    yield _missing(plan, slo)


def _ok(minutes: int) -> IncidentPhase:
    return IncidentPhase(minutes * MINUTE, BUSY)


def _burn(plan: SLOPlan, slo: ResolvedObjective, name: str, phases: tuple[IncidentPhase, ...]) -> dict[str, Any]:
    """Assert for each window when its alert fires and clears, to an evaluation on each side."""
    end = sum(phase.seconds for phase in phases)
    checks = []
    for window, limit in slo.windows:
        fires = _alert(plan, slo, window)
        found = expected_alerts(plan, slo, phases, window, limit)
        if not found:
            checks.append(_never(plan, slo, end, window))
        margin = _margin(window)
        for times in found:
            begin, clear = times[0], times[1] if len(times) > 1 else end + 2 * margin
            states = {begin - margin: None, begin + margin: 1, clear - margin: 1, clear + margin: None}
            wanted = [(at, 1 if begin < at < clear else None) for at in states if 0 < at <= end]
            checks += [_check(f"count({fires})", at, value) for at, value in wanted]
    return _test(slo, name, incident_series(plan, slo, phases), checks)


def _margin(window: BurnWindow) -> int:
    """Return the seconds between the reckoning and what is asserted: evaluations that may come late."""
    return 2 * EVALUATION_INTERVAL if window.severity == "page" else 5 * EVALUATION_INTERVAL


def _one_failure(plan: SLOPlan, slo: ResolvedObjective) -> dict[str, Any]:
    """One failed request, at one a minute, wakes nobody."""
    a_minute = Decimal(1) / MINUTE
    usual = IncidentPhase(20 * MINUTE, a_minute)
    return _test(slo, "one request fails, at one a minute", _single(plan, slo, (usual, _make_rule_test(1), usual)), [
        _never(plan, slo, 41 * MINUTE)
    ])  # fmt: skip


def _make_rule_test(minutes: int) -> IncidentPhase:
    """Return a phase in which one request comes, and fails."""
    return IncidentPhase(minutes * MINUTE, Decimal(1) / (minutes * MINUTE), Decimal(1))


def _single(plan: SLOPlan, slo: ResolvedObjective, phases: tuple[IncidentPhase, ...]) -> list[dict[str, Any]]:
    """Return the series of thin traffic, on one route with one status: whole requests cannot be shared out."""
    pair = sample_pairs(slo)[0]
    alone = slo._replace(endpoints=(pair,), groups=(((pair[0],), (pair[1],)),) if slo.groups else ())
    if isinstance(alone.objective, Availability):
        alone = alone._replace(objective=replace(alone.objective, bad_statuses=alone.objective.bad_statuses[:1]))
    return incident_series(plan, alone, phases, strange=False)


def _thin_outage(plan: SLOPlan, slo: ResolvedObjective, window: BurnWindow, limit: Decimal) -> dict[str, Any]:
    """Every request fails, at one in two minutes: somebody is told when enough failed, and not before."""
    begin, needed = 20 * MINUTE, slo.objective.min_bad_events
    end = begin + 2 * (needed + 4) * MINUTE
    phases = (IncidentPhase(begin, THIN), IncidentPhase(end - begin, THIN, Decimal(1)))
    checks = []
    if needed > 2:  # noqa: PLR2004 - while two failures may count as nearly three
        checks.append(_never(plan, slo, begin + 2 * (needed - 2) * MINUTE))
    found = expected_alerts(plan, slo, phases, window, limit)
    if found and found[0][0] + 2 * MINUTE <= end:
        at = max(found[0][0] + 2 * MINUTE, begin + 2 * (needed + 1) * MINUTE)
        checks.append(_check(f"count({_alert(plan, slo, window)})", at, 1))
    return _test(slo, "outage at one request in two minutes", _single(plan, slo, phases), checks)


def _night(plan: SLOPlan, slo: ResolvedObjective) -> dict[str, Any]:
    """Time without traffic neither costs nor gains budget."""
    failing = min(Decimal("0.5"), 20 * budget(slo.percent))
    busy, series = IncidentPhase(10 * MINUTE, BUSY, failing), promql.recorded(plan, slo)
    left = 1 - failing / budget(slo.percent)
    near = f"sum(abs(slo:error_budget_remaining:ratio{series} - ({format_number(left)})) < bool {format_number(abs(left) / 100)})"  # noqa: E501
    return _test(slo, "a night without traffic", incident_series(plan, slo, (busy, IncidentPhase(20 * MINUTE, Decimal(0)), busy)), [  # noqa: E501
        _check(near, 25 * MINUTE, 1),
        _check(near, 40 * MINUTE, 1),
    ])  # fmt: skip


def _new_instances(plan: SLOPlan, slo: ResolvedObjective) -> dict[str, Any]:
    """The first failure of each new instance counts, because its series begin at 0."""
    before = IncidentPhase(5 * MINUTE, Decimal(0), up=False)
    phases = (before, IncidentPhase(MINUTE, Decimal(0)), _make_rule_test(1), IncidentPhase(10 * MINUTE, Decimal(0)))
    found = [
        {**series, "series": series["series"].replace('instance="a"', f'instance="{at}"')}
        for at in range(5)
        for series in _single(plan, slo, phases)
    ]
    counted = f"sum_over_time(slo:bad_events:rate1m{promql.recorded(plan, slo)}[10m]) * {EVALUATION_INTERVAL}"
    return _test(slo, "five new instances, each fails once", found, [
        _check(f"sum(abs({counted} - 5) < bool 1.7)", 14 * MINUTE, 1)
    ])  # fmt: skip


def _deploy(plan: SLOPlan, slo: ResolvedObjective) -> dict[str, Any]:
    """While half of the instances do not have the bucket yet, they count as nothing, not as slow."""
    kept = incident_series(plan, slo, (_ok(20),))
    old = [
        {**series, "series": series["series"].replace('instance="a"', 'instance="old"')}
        for series in kept
        if 'le="+Inf"' in series["series"]
    ]
    return _test(slo, "a deploy that adds the bucket", [*kept, *old], [
        _check(f"sum(slo:error_ratio:rate5m{promql.recorded(plan, slo)})", 20 * MINUTE, 0),
        _never(plan, slo, 20 * MINUTE),
    ])  # fmt: skip


def _missing(plan: SLOPlan, slo: ResolvedObjective) -> dict[str, Any]:
    """The service answers, but what the objective counts is not there."""
    up = incident_series(plan, slo, (IncidentPhase(20 * MINUTE, Decimal(0)),))[:1]
    fires = promql.selector((("alertname", "SLODataMissing"), ("alertstate", "firing"), *_who(plan, slo)))
    return _test(slo, "its series are missing", up, [
        _check(f"count(ALERTS{{{fires}}})", 14 * MINUTE, None),
        _check(f"count(ALERTS{{{fires}}})", 17 * MINUTE, 1),
    ])  # fmt: skip


def _service_down(plan: SLOPlan) -> dict[str, Any]:
    labels = ",".join(f"{name}={promql.go_string(value)}" for name, value in sorted(plan.selector.items()))
    fires = promql.selector((("alertname", "ServiceDown"), ("alertstate", "firing"), ("service", plan.service)))
    return {
        "name": "no instance answers",
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
    """Assert what a query gives at a time: one sample without labels, or nothing."""
    samples = [] if value is None else [{"labels": "{}", "value": value}]
    return {"expr": expression, "eval_time": f"{at}s", "exp_samples": samples}


def _never(plan: SLOPlan, slo: ResolvedObjective, until: int, window: BurnWindow | None = None) -> dict[str, Any]:
    return _check(f"count_over_time({_alert(plan, slo, window)}[{until}s])", until, None)


def _alert(plan: SLOPlan, slo: ResolvedObjective, window: BurnWindow | None = None) -> str:
    labels = [("alertname", "ErrorBudgetBurn"), ("alertstate", "firing"), *_who(plan, slo)]
    if window is not None:
        labels.append(("window", window.long))
    return f"ALERTS{{{promql.selector(labels)}}}"


def _who(plan: SLOPlan, slo: ResolvedObjective) -> tuple[tuple[str, str], ...]:
    return ("service", plan.service), ("slo", slo.name)


def _percent(share: Decimal) -> str:
    return f"{format_number((share * 100).quantize(Decimal('0.001')))}%"
