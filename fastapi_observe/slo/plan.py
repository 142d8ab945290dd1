"""Objectives resolved against the app's real routes, and everything that is wrong with them, said at once."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi_observe.records.endpoint import REDIRECT
from fastapi_observe.requests.routing import Endpoint, endpoints_of
from fastapi_observe.settings.objectives import Objective, SLOOptions
from fastapi_observe.slo.burn_rates import duration
from fastapi_observe.slo.checks import Findings, Problem, check_all, check_options
from fastapi_observe.slo.decorator import MARK
from fastapi_observe.slo.route_selection import choose, framework_templates, grouped, measured

if TYPE_CHECKING:
    from collections.abc import Iterator
    from decimal import Decimal

    from fastapi_observe.settings.model import ObserveSettings
    from fastapi_observe.slo.burn_rates import Window

FORMAT: Final = 2
"""Goes up when other rules are made from the same plan."""

Groups = tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
Given = tuple[Any, tuple[Endpoint, ...] | None]


class Resolved(NamedTuple):
    """An objective with what it means here.

    `endpoints` are (method, template), sorted: what it counts as far as the routes are known. `groups` are
    ((methods, templates), ...), which say exactly the same; none if all measured routes count, future ones too.
    `windows` are those whose alert can fire, with its threshold.
    """

    objective: Objective
    percent: Decimal
    endpoints: tuple[tuple[str, str], ...]
    groups: Groups
    windows: tuple[tuple[Window, Decimal], ...]

    @property
    def name(self) -> str:
        """Its name."""
        return self.objective.name


class Plan(NamedTuple):
    """All objectives of an app.

    `selector`: labels by which Prometheus finds the service. `aside`: templates that objectives of all routes leave
    out. `period` is in seconds, `base` the window of `slo:events:rate1m` in PromQL. `hash` changes whenever rules made
    from the plan would.
    """

    service: str
    selector: dict[str, str]
    options: SLOOptions
    slos: tuple[Resolved, ...]
    problems: tuple[Problem, ...]
    aside: tuple[str, ...]
    period: Decimal
    base: str
    hash: str

    @property
    def errors(self) -> tuple[Problem, ...]:
        """What must be mended before anything is made from the plan."""
        return tuple(problem for problem in self.problems if problem.level == "error")


def make_plan(app: Any, settings: ObserveSettings) -> Plan:
    """Resolve the objectives of the settings, and those of `@slo`, against the routes of `app`."""
    problems: list[Problem] = []
    all_of_them = Findings(problems, "all")
    options = settings.slo_options or SLOOptions()
    period, base = check_options(options, all_of_them)
    routes = endpoints_of(app)
    aside = framework_templates(app) | {REDIRECT}
    resolved: list[Resolved] = []
    names: set[str] = set()
    given = [*_merged([*((each, None) for each in settings.slos), *_marked(routes)])]
    if given and not settings.metrics:
        all_of_them("SLO02", "metrics=False: no objective would ever see a request; switch metrics on")
    for objective, own in given:
        tell = Findings(problems, str(objective.name))
        share, windows = check_all(objective, names, settings, period, tell)
        names.add(objective.name)
        everything = own is None and not objective.routes
        chosen = measured(routes, aside, settings) if everything else choose(objective, own, routes, settings, tell)
        pairs = tuple(sorted({(pair.method, pair.route.template) for pair in chosen}))
        if share is not None:
            resolved.append(Resolved(objective, share, pairs, () if everything else grouped(pairs), windows))
    selector = dict(options.selector or {"job": settings.service_name})
    plan = Plan(
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


def _marked(routes: list[Endpoint]) -> Iterator[Given]:
    for route in routes:
        for objective in getattr(route.function, MARK, ()):
            yield objective, (route,)


def _merged(given: list[Given]) -> Iterator[Given]:
    """Join what `@slo` gave to several path operations, if it is the same objective; settings come first."""
    found: dict[Any, tuple[Endpoint, ...]] = {}
    for objective, own in given:
        if own is None:
            yield objective, None
        else:
            found[objective] = (*found.get(objective, ()), *own)
    yield from found.items()


def _hash(plan: Plan) -> str:
    options = plan.options
    facts = [
        FORMAT,
        plan.service,
        sorted(plan.selector.items()),
        [str(plan.period), plan.base, options.keep_firing, options.team, options.runbook_url, options.dashboard_url],
        [(slo.objective.kind, repr(slo.objective), slo.groups, slo.groups or plan.aside) for slo in plan.slos],
    ]
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:12]


def check_settings(settings: ObserveSettings) -> tuple[Problem, ...]:
    """Return what is wrong with the objectives of the settings, whatever the routes are: errors only."""
    problems: list[Problem] = []
    all_of_them = Findings(problems, "all")
    period, _ = check_options(settings.slo_options or SLOOptions(), all_of_them)
    names: set[str] = set()
    for objective in settings.slos:
        tell = Findings(problems, str(objective.name))
        try:
            check_all(objective, names, settings, period, tell)
            names.add(objective.name)
        except TypeError as exc:
            tell("SLO09", f"{objective!r:.120} has a value of another type than it should: {exc}")
    return tuple(problem for problem in problems if problem.level == "error")
