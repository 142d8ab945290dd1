"""The plan of an app: its objectives resolved against its routes, with every problem found."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi_observe.formats.metric_names import PROMETHEUS, MetricNames, choose_metric_names
from fastapi_observe.records.endpoint import REDIRECT
from fastapi_observe.requests.routing import Endpoint, list_endpoints
from fastapi_observe.settings.objectives import Objective, SLOOptions
from fastapi_observe.slo.burn_rates import promql_duration
from fastapi_observe.slo.checks import Problem, ProblemCollector, check_all, check_options
from fastapi_observe.slo.decorator import declared_objectives
from fastapi_observe.slo.route_selection import framework_templates, group_routes, measured_routes, select_routes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from decimal import Decimal

    from fastapi_observe.settings.model import ObserveSettings
    from fastapi_observe.slo.burn_rates import BurnWindow
    from fastapi_observe.slo.checks import Windows

FORMAT: Final = 3
"""Part of the hash; increased when the same plan gives other rules."""

Groups = tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]


class DeclaredObjective(NamedTuple):
    """An objective with the path operations that `@slo` declared it on; None for one of the settings."""

    objective: Objective
    decorated: tuple[Endpoint, ...] | None


class ResolvedObjective(NamedTuple):
    """An objective with what it counts in this app.

    `endpoints` are the (method, template) pairs that it counts, sorted. `groups` are the same pairs as
    ((methods, templates), ...), empty for an objective that counts all measured routes, including later ones.
    `windows` are those whose alert can fire, each with its threshold.
    """

    objective: Objective
    percent: Decimal
    endpoints: tuple[tuple[str, str], ...]
    groups: Groups
    windows: tuple[tuple[BurnWindow, Decimal], ...]

    @property
    def name(self) -> str:
        """The name of the objective."""
        return self.objective.name


class SLOPlan(NamedTuple):
    """All objectives of an app.

    `selector` holds the labels by which Prometheus finds the service. `excluded_templates` are not counted by
    objectives of all routes. `period` is in seconds, `base` the window of `slo:events:rate1m` in PromQL. `hash` changes
    whenever the rules made from the plan would. `names` are those of the request metrics. `pools` says whether alerts
    about connection pools are made. The hash does not depend on it: a running app cannot know.
    """

    service: str
    selector: dict[str, str]
    options: SLOOptions
    slos: tuple[ResolvedObjective, ...]
    problems: tuple[Problem, ...]
    excluded_templates: tuple[str, ...]
    period: Decimal
    base: str
    hash: str
    names: MetricNames = PROMETHEUS
    pools: bool = True

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that prevent rules from being made."""
        return tuple(problem for problem in self.problems if problem.level == "error")


def make_plan(app: Any, settings: ObserveSettings) -> SLOPlan:
    """Resolve the objectives of the settings and of `@slo` against the routes of an app."""
    problems: list[Problem] = []
    report_general = ProblemCollector(problems, "all")
    options = settings.slo_options or SLOOptions()
    period, base = check_options(options, report_general)
    routes = list_endpoints(app)
    excluded = framework_templates(app) | {REDIRECT}
    resolved: list[ResolvedObjective] = []
    names: set[str] = set()
    declared = [*_from_settings(settings), *_from_decorators(routes)]
    if declared and not settings.metrics:
        report_general("SLO02", "metrics=False: objectives count nothing; set metrics=True")
    for objective, decorated in declared:
        report = ProblemCollector(problems, str(objective.name))
        checked = _check(objective, names, settings, period, report)
        if checked is None:
            continue
        percent, windows = checked
        counts_all = decorated is None and not objective.routes
        selected = (
            measured_routes(routes, excluded, settings)
            if counts_all
            else select_routes(objective, decorated, routes, settings, report)
        )
        pairs = tuple(sorted({(pair.method, pair.route.template) for pair in selected}))
        if percent is not None:
            groups = () if counts_all else group_routes(pairs)
            resolved.append(ResolvedObjective(objective, percent, pairs, groups, windows))
    plan = SLOPlan(
        service=settings.service_name,
        selector=dict(options.selector or {"job": settings.service_name}),
        options=options,
        slos=tuple(resolved),
        problems=tuple(problems),
        excluded_templates=tuple(sorted(excluded)),
        period=period,
        base=promql_duration(base),
        hash="",
        names=choose_metric_names(settings),
    )
    return plan._replace(hash=_hash(plan))


def _from_settings(settings: ObserveSettings) -> Iterator[DeclaredObjective]:
    for objective in settings.slos:
        yield DeclaredObjective(objective, None)


def _from_decorators(routes: list[Endpoint]) -> Iterator[DeclaredObjective]:
    """Yield each objective of `@slo` once, with all path operations that have it."""
    decorated: dict[Objective, tuple[Endpoint, ...]] = {}
    for route in routes:
        for objective in declared_objectives(route.function):
            decorated[objective] = (*decorated.get(objective, ()), route)
    for objective, endpoints in decorated.items():
        yield DeclaredObjective(objective, endpoints)


def _check(
    objective: Objective, names: set[str], settings: ObserveSettings, period: Decimal, report: ProblemCollector
) -> tuple[Decimal | None, Windows] | None:
    """Check an objective as `check_all` does, and add its name to `names`; None if a value has the wrong type."""
    try:
        checked = check_all(objective, names, settings, period, report)
        names.add(objective.name)
    except TypeError as exc:
        report("SLO09", f"{objective!r:.120} has a value of the wrong type: {exc}")
        return None
    return checked


def _hash(plan: SLOPlan) -> str:
    options = plan.options
    content = [
        FORMAT,
        plan.service,
        sorted(plan.selector.items()),
        [str(plan.period), plan.base, options.keep_firing, options.team, options.runbook_url, options.dashboard_url],
        [
            (slo.objective.kind, repr(slo.objective), slo.groups, slo.groups or plan.excluded_templates)
            for slo in plan.slos
        ],
    ]
    if plan.names != PROMETHEUS:  # rules of an earlier version with the default names stay valid
        content.append(plan.names.requests)
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:12]


def check_objective_settings(settings: ObserveSettings) -> tuple[Problem, ...]:
    """Return the errors of the objectives in the settings that do not depend on the routes."""
    problems: list[Problem] = []
    period, _ = check_options(settings.slo_options or SLOOptions(), ProblemCollector(problems, "all"))
    names: set[str] = set()
    for objective in settings.slos:
        _check(objective, names, settings, period, ProblemCollector(problems, str(objective.name)))
    return tuple(problem for problem in problems if problem.level == "error")
