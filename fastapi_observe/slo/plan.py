"""Objectives resolved against the app's real routes, and everything that is wrong with them, said at once."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi_observe.records.endpoint import REDIRECT
from fastapi_observe.requests.routing import Endpoint, list_endpoints
from fastapi_observe.settings.objectives import Objective, SLOOptions
from fastapi_observe.slo.burn_rates import duration
from fastapi_observe.slo.checks import Problem, ProblemCollector, check_all, check_options
from fastapi_observe.slo.decorator import MARK
from fastapi_observe.slo.route_selection import framework_templates, group_routes, measured_routes, select_routes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from decimal import Decimal

    from fastapi_observe.settings.model import ObserveSettings
    from fastapi_observe.slo.burn_rates import BurnWindow

FORMAT: Final = 2
"""Goes up when other rules are made from the same plan."""

Groups = tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
DeclaredObjective = tuple[Any, tuple[Endpoint, ...] | None]


class ResolvedObjective(NamedTuple):
    """An objective with what it means here.

    `endpoints` are (method, template), sorted: what it counts as far as the routes are known. `groups` are
    ((methods, templates), ...), which say exactly the same; none if all measured routes count, future ones too.
    `windows` are those whose alert can fire, with its threshold.
    """

    objective: Objective
    percent: Decimal
    endpoints: tuple[tuple[str, str], ...]
    groups: Groups
    windows: tuple[tuple[BurnWindow, Decimal], ...]

    @property
    def name(self) -> str:
        """Its name."""
        return self.objective.name


class SLOPlan(NamedTuple):
    """All objectives of an app.

    `selector`: labels by which Prometheus finds the service. `aside`: templates that objectives of all routes leave
    out. `period` is in seconds, `base` the window of `slo:events:rate1m` in PromQL. `hash` changes whenever rules made
    from the plan would.
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

    @property
    def errors(self) -> tuple[Problem, ...]:
        """What must be mended before anything is made from the plan."""
        return tuple(problem for problem in self.problems if problem.level == "error")


def make_plan(app: Any, settings: ObserveSettings) -> SLOPlan:
    """Resolve the objectives of the settings, and those of `@slo`, against the routes of `app`."""
    problems: list[Problem] = []
    all_of_them = ProblemCollector(problems, "all")
    options = settings.slo_options or SLOOptions()
    period, base = check_options(options, all_of_them)
    routes = list_endpoints(app)
    aside = framework_templates(app) | {REDIRECT}
    resolved: list[ResolvedObjective] = []
    names: set[str] = set()
    given = [*_merged([*((each, None) for each in settings.slos), *_marked(routes)])]
    if given and not settings.metrics:
        all_of_them("SLO02", "metrics=False: no objective would ever see a request; switch metrics on")
    for objective, own in given:
        tell = ProblemCollector(problems, str(objective.name))
        share, windows = check_all(objective, names, settings, period, tell)
        names.add(objective.name)
        everything = own is None and not objective.routes
        chosen = (
            measured_routes(routes, aside, settings)
            if everything
            else select_routes(objective, own, routes, settings, tell)
        )
        pairs = tuple(sorted({(pair.method, pair.route.template) for pair in chosen}))
        if share is not None:
            resolved.append(
                ResolvedObjective(objective, share, pairs, () if everything else group_routes(pairs), windows)
            )
    selector = dict(options.selector or {"job": settings.service_name})
    plan = SLOPlan(
        settings.service_name,
        selector,
        options,
        tuple(resolved),
        tuple(problems),
        tuple(sorted(aside)),
        period,
        duration(base),
        "",
    )
    return plan._replace(hash=_hash(plan))


def _marked(routes: list[Endpoint]) -> Iterator[DeclaredObjective]:
    for route in routes:
        for objective in getattr(route.function, MARK, ()):
            yield objective, (route,)


def _merged(given: list[DeclaredObjective]) -> Iterator[DeclaredObjective]:
    """Join what `@slo` gave to several path operations, if it is the same objective; settings come first."""
    found: dict[Any, tuple[Endpoint, ...]] = {}
    for objective, own in given:
        if own is None:
            yield objective, None
        else:
            found[objective] = (*found.get(objective, ()), *own)
    yield from found.items()


def _hash(plan: SLOPlan) -> str:
    options = plan.options
    facts = [
        FORMAT,
        plan.service,
        sorted(plan.selector.items()),
        [str(plan.period), plan.base, options.keep_firing, options.team, options.runbook_url, options.dashboard_url],
        [
            (slo.objective.kind, repr(slo.objective), slo.groups, slo.groups or plan.excluded_templates)
            for slo in plan.slos
        ],
    ]
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:12]


def check_settings(settings: ObserveSettings) -> tuple[Problem, ...]:
    """Return what is wrong with the objectives of the settings, whatever the routes are: errors only."""
    problems: list[Problem] = []
    all_of_them = ProblemCollector(problems, "all")
    period, _ = check_options(settings.slo_options or SLOOptions(), all_of_them)
    names: set[str] = set()
    for objective in settings.slos:
        tell = ProblemCollector(problems, str(objective.name))
        try:
            check_all(objective, names, settings, period, tell)
            names.add(objective.name)
        except TypeError as exc:
            tell("SLO09", f"{objective!r:.120} has a value of another type than it should: {exc}")
    return tuple(problem for problem in problems if problem.level == "error")
