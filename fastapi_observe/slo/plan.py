"""Objectives resolved against the app's real routes, and everything that is wrong with them, said at once."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi_observe.records.routing import Endpoint, endpoints_of
from fastapi_observe.settings_objectives import (
    NAME,
    Availability,
    Latency,
    Objective,
    SLOOptions,
    percent,
    seconds,
)
from fastapi_observe.slo.burn import WINDOWS, Window, text, threshold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastapi_observe.settings import ObserveSettings

MARK: Final = "__observe_slos__"
"""Attribute of a path operation's function: the objectives that `@slo` gave it."""

LARGEST: Final = Decimal("99.999")
STANDARD_METHODS: Final = frozenset({"GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "QUERY"})
FRAMEWORK: Final = frozenset({"/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"})
SLOW_SCRAPE: Final = Decimal(15)
"""Seconds of a scrape interval up to which the base window is a minute."""


class Problem(NamedTuple):
    """What is wrong with an objective: `level` is `error`, `warning` or `info`; `code` is SLO01 to SLO11."""

    code: str
    level: str
    slo: str
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.slo}: {self.text}"


class Resolved(NamedTuple):
    """An objective with what it means here.

    `endpoints` are (method, template), sorted; `templates` the distinct templates, none if all measured routes count
    (then nothing but the excluded ones is left out). `windows` are those whose alert can fire, with its threshold.
    """

    objective: Objective
    percent: Decimal
    endpoints: tuple[tuple[str, str], ...]
    methods: tuple[str, ...]
    templates: tuple[str, ...]
    windows: tuple[tuple[Window, Decimal], ...]

    @property
    def name(self) -> str:
        """Its name."""
        return self.objective.name


class Plan(NamedTuple):
    """All objectives of an app. `hash` changes whenever rules made from it would."""

    service: str
    selector: dict[str, str]
    options: SLOOptions
    slos: tuple[Resolved, ...]
    problems: tuple[Problem, ...]
    period: Decimal
    base: str
    hash: str

    @property
    def errors(self) -> tuple[Problem, ...]:
        """What must be mended before anything is made from the plan."""
        return tuple(problem for problem in self.problems if problem.level == "error")


def make_plan(app: Any, settings: ObserveSettings) -> Plan:
    """Resolve the objectives of the settings, and those of `@slo`, against the routes of `app`."""
    options: SLOOptions = settings.slo_options or SLOOptions()
    problems: list[Problem] = []
    routes = [each for each in endpoints_of(app) if each.methods or each.websocket]
    given: list[tuple[Objective, tuple[Endpoint, ...] | None]] = [(each, None) for each in settings.slos]
    for route in routes:
        given += [(each, (route,)) for each in getattr(route.function, MARK, ())]
    period = seconds(options.period)
    resolved, names = [], set()
    for objective, own in _merged(given):
        tell = _teller(problems, objective.name)
        if not NAME.fullmatch(objective.name) or objective.name in names:
            why = "is used twice" if objective.name in names else "becomes a label value and an anchor"
            tell("SLO09", f"the name {objective.name!r} {why}: use another, of a-z, 0-9 and single hyphens")
        names.add(objective.name)
        share = _check_percent(objective, tell)
        chosen = _choose(objective, own, routes, settings, tell)
        windows = () if share is None else _windows(share, period, tell)
        if isinstance(objective, Latency):
            _check_threshold(objective, settings, tell)
        _check_traffic(objective, share, tell)
        if share is not None:
            resolved.append(
                _resolved(objective, share, chosen, windows, all_routes=own is None and not objective.routes)
            )
    _check_scrape(options, _teller(problems, "all"))
    service = settings.service_name
    selector = dict(options.selector or {"job": service})
    base = "1m" if seconds(options.scrape_interval) <= SLOW_SCRAPE else f"{int(4 * seconds(options.scrape_interval))}s"
    plan = Plan(service, selector, options, tuple(resolved), tuple(problems), period, base, "")
    return plan._replace(hash=_hash(plan))


def _teller(problems: list[Problem], name: str) -> Callable[..., None]:
    def tell(code: str, message: str, level: str = "error") -> None:
        problems.append(Problem(code, level, name, message))

    return tell


def _merged(
    given: list[tuple[Objective, tuple[Endpoint, ...] | None]],
) -> Iterator[tuple[Objective, tuple[Endpoint, ...] | None]]:
    """Join what `@slo` gave to several path operations under one name, if it is the same objective."""
    found: dict[tuple[str, Objective], tuple[Endpoint, ...]] = {}
    for objective, own in given:
        if own is None:
            yield objective, None
        else:
            key = (objective.name, objective)
            found[key] = (*found.get(key, ()), *own)
    for (_, objective), own in found.items():
        yield objective, own


def _check_percent(objective: Objective, tell: Callable[..., None]) -> Decimal | None:
    try:
        share = percent(objective.objective)
    except ValueError as exc:
        tell("SLO05", f"{exc}; use a number such as 99.9")
        return None
    if 0 < share <= 1:
        tell("SLO05", f"{text(share)} is a ratio, an objective is in percent: did you mean {text(share * 100)}?")
        return None
    if share <= 0 or share > LARGEST:
        tell("SLO05", f"{text(share)} leaves no budget; use {text(LARGEST)} or less, and more than 1")
        return None
    if objective.sla is not None and percent(objective.sla) >= share:
        tell("SLO07", f"sla={objective.sla} is not below objective={objective.objective}: the contract breaks before "
             "anybody is told; promise less to customers than you aim for")  # fmt: skip
    return share


def _windows(share: Decimal, period: Decimal, tell: Callable[..., None]) -> tuple[tuple[Window, Decimal], ...]:
    found = [(window, threshold(window, share, period)) for window in WINDOWS]
    kept = tuple((window, limit) for window, limit in found if limit < 1)
    for window, limit in found:
        if limit >= 1:
            level = "warning" if any(other.severity == "page" for other, _ in kept) else "error"
            tell("SLO06", f"{text(100 - share)} % of budget: the {window.long} {window.severity} would need "
                 f"{text((limit * 100).quantize(Decimal(1)))} % errors, which never happens; dropped. "
                 "Raise the objective if you need it", level)  # fmt: skip
    return kept


def _choose(
    objective: Objective,
    own: tuple[Endpoint, ...] | None,
    routes: list[Endpoint],
    settings: ObserveSettings,
    tell: Callable[..., None],
) -> list[tuple[str, Endpoint]]:
    """Return the (method, route) pairs that count."""
    known = [(method, route) for route in routes for method in route.methods or ("GET",)]
    if own is not None:
        chosen = [pair for pair in known if any(pair[1] is each or pair[1] == each for each in own)]
    elif objective.routes:
        chosen = []
        for wanted in objective.routes:
            found = [pair for pair in known if _fits(wanted, *pair)]
            if not found:
                tell("SLO01", _unknown(wanted, routes))
            chosen += [pair for pair in found if pair not in chosen]
    else:
        chosen = [pair for pair in known if not pair[1].websocket and pair[1].template not in FRAMEWORK]
        chosen = [pair for pair in chosen if not _is_excluded(pair[1].template, settings)]
    for template in sorted({route.template for _, route in chosen if _is_excluded(route.template, settings)}):
        tell("SLO02", f"{template} is in exclude_paths or exclude_urls, so the objective would never see it: "
             "remove it from one of the two")  # fmt: skip
    if isinstance(objective, Latency):
        for template in sorted({route.template for _, route in chosen if route.websocket}):
            tell("SLO08", f"{template} is a WebSocket: its duration is that of the connection; leave it out")
        for template in sorted({route.template for _, route in chosen if _streams(route)}):
            tell("SLO08", f"{template} streams: its duration is that of the whole stream; leave it out", "warning")
    return [pair for pair in chosen if not pair[1].websocket]


def _streams(route: Endpoint) -> bool:
    returned = getattr(route.function, "__annotations__", {}).get("return")
    name = returned if isinstance(returned, str) else getattr(returned, "__name__", "")
    return name.rpartition(".")[2] in {"StreamingResponse", "EventSourceResponse"}


def _fits(wanted: str, method: str, route: Endpoint) -> bool:
    if wanted.startswith("tag:"):
        return wanted[4:] in route.tags
    verb, _, path = wanted.rpartition(" ")
    if verb and verb.upper() != method:
        return False
    if not verb and method == "HEAD" and "GET" in route.methods:
        return False
    return path == route.template or ("*" in path and fnmatchcase(route.template, path.replace("[", "[[]")))


def _unknown(wanted: str, routes: list[Endpoint]) -> str:
    names = [f"{method} {route.template}" for route in routes for method in route.methods]
    names += [route.template for route in routes]
    if wanted.startswith("tag:"):
        tags = sorted({tag for route in routes for tag in route.tags})
        return f"{wanted!r} matches no route; tags of this app: {', '.join(tags) or 'none'}"
    near = difflib.get_close_matches(wanted, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    shown = sorted({name for name in names if " " in name})[:20]
    return f"{wanted!r} matches no route{hint} Routes: {', '.join(shown)}"


def _is_excluded(template: str, settings: ObserveSettings) -> bool:
    for path in settings.exclude_paths:
        if template == path or (path.endswith("*") and template.startswith(path[:-1])):
            return True
    return any(re.search(pattern, template) for pattern in settings.exclude_urls)


def _check_threshold(objective: Latency, settings: ObserveSettings, tell: Callable[..., None]) -> None:
    try:
        limit = objective.threshold
    except ValueError as exc:
        tell("SLO04", str(exc))
        return
    bounds = settings.duration_buckets
    if limit > bounds[-1]:
        tell("SLO04", f"within={objective.within} is above the highest bucket of {bounds[-1]:g}s; added: without it every "
             "request would count as fast. Raise duration_buckets too, to see how slow the slow ones are", "warning")  # fmt: skip
    elif limit not in bounds:
        tell(
            "SLO03",
            f"{objective.within} is no bucket bound of duration_buckets; added: {limit:g} (one series a route)",
            "info",
        )


def _check_traffic(objective: Objective, share: Decimal | None, tell: Callable[..., None]) -> None:
    if share is None or not objective.expected_rpm or objective.expected_rpm <= 0:
        return
    per_hour = Decimal(str(objective.expected_rpm)) * 60
    allowed = per_hour * (100 - share) / 100
    if allowed * Decimal("14.4") < objective.min_bad_events:
        burn = 1 / (per_hour * (100 - share) / 100)
        minutes = objective.min_bad_events / Decimal(str(objective.expected_rpm))
        tell("SLO11", f"at {objective.expected_rpm:g} requests a minute one failure in an hour burns "
             f"{text(burn.quantize(Decimal('0.1')))} times the budget; pages need min_bad_events={objective.min_bad_events}, "
             f"about {text(minutes.quantize(Decimal('0.1')))} minutes of a full outage. Better: a synthetic probe, more "
             "routes in one objective, or a lower objective", "warning")  # fmt: skip


def _check_scrape(options: SLOOptions, tell: Callable[..., None]) -> None:
    interval = seconds(options.scrape_interval)
    if interval > SLOW_SCRAPE:
        tell("SLO10", f"scrape_interval={options.scrape_interval}: the base window becomes {int(4 * interval)}s, four scrapes; "
             "alerts come later than with 15s", "warning")  # fmt: skip


def _resolved(
    objective: Objective,
    share: Decimal,
    chosen: list[tuple[str, Endpoint]],
    windows: tuple[tuple[Window, Decimal], ...],
    *,
    all_routes: bool,
) -> Resolved:
    pairs = tuple(sorted({(method, route.template) for method, route in chosen}))
    named = any(" " in each for each in objective.routes)
    methods = tuple(sorted({method for method, _ in pairs})) if named else ()
    templates = () if all_routes else tuple(sorted({template for _, template in pairs}))
    return Resolved(objective, share, pairs, methods, templates, windows)


def _hash(plan: Plan) -> str:
    facts = [
        plan.service,
        sorted(plan.selector.items()),
        [str(each) for each in (plan.options.period, plan.options.scrape_interval, plan.options.keep_firing)],
        [[slo.name, slo.objective.kind, str(slo.percent), slo.endpoints, slo.templates, slo.objective.min_bad_events,
          str(slo.objective.sla), [*slo.objective.bad] if isinstance(slo.objective, Availability) else
          slo.objective.within] for slo in plan.slos],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:12]
