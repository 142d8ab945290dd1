"""The routes of an app that an objective counts."""

from __future__ import annotations

import difflib
import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi_observe.records.request import known_method
from fastapi_observe.requests.exclusion import parse_exclusion
from fastapi_observe.settings.objectives import Latency, Objective

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi_observe.requests.routing import Endpoint
    from fastapi_observe.settings.model import ObserveSettings
    from fastapi_observe.slo.checks import ProblemCollector

DOCUMENTATION_PATHS: Final = ("/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc")
DEFAULT_METHODS: Final = ("DELETE", "GET", "PATCH", "POST", "PUT")
"""Methods assumed for a route that declares none."""

MAX_LISTED_ROUTES: Final = 20
"""Routes or tags listed in a message."""


class MethodRoute(NamedTuple):
    """A method of a route; each has its own series."""

    method: str
    route: Endpoint


def framework_templates(app: Any) -> frozenset[str]:
    """Return the paths at which FastAPI serves the app's documentation."""
    names = ("openapi_url", "docs_url", "swagger_ui_oauth2_redirect_url", "redoc_url")
    paths = {path for name in names if isinstance(path := getattr(app, name, None), str)}
    return frozenset(DOCUMENTATION_PATHS) | paths


def select_routes(
    objective: Objective,
    decorated: tuple[Endpoint, ...] | None,
    routes: list[Endpoint],
    settings: ObserveSettings,
    report: ProblemCollector,
) -> list[MethodRoute]:
    """Return the routes that an objective names or that `@slo` decorates; report SLO01, SLO02 and SLO08."""
    # The flag is True where the route was named exactly: a problem of it is then an error, for a pattern a warning.
    if decorated is not None:
        selected = [(pair, True) for route in decorated for pair in _method_routes(route)]
    else:
        known = [pair for route in routes for pair in _method_routes(route)]
        selected = []
        for pattern in objective.routes:
            matching = [pair for pair in known if _matches(pattern, pair)]
            if not matching:
                report("SLO01", _describe_unknown(pattern, routes))
            selected += [(pair, "*" not in pattern and not pattern.startswith("tag:")) for pair in matching]
    named = {pair.route.template: exactly for pair, exactly in sorted(selected, key=lambda each: each[1])}
    excluded = {template for template in named if is_excluded(template, settings)}
    for template in sorted(excluded):
        report(
            "SLO02",
            f"{template} is in exclude_paths or exclude_urls, so the objective never counts it; "
            "remove it from one of the two",
            "error" if named[template] else "warning",
        )
    websockets = {pair.route.template for pair, _ in selected if pair.route.websocket}
    for template in sorted(websockets - {pair.route.template for pair, _ in selected if not pair.route.websocket}):
        report(
            "SLO08",
            f"{template} is a WebSocket: it has no response status, and its duration is that of the connection; "
            "leave it out",
            "error" if named[template] else "info",
        )
    counted = [pair for pair, _ in selected if not pair.route.websocket and pair.route.template not in excluded]
    if isinstance(objective, Latency):
        for template in sorted({pair.route.template for pair in counted if _streams(pair.route)}):
            report("SLO08", f"{template} streams: its duration is that of the whole stream; leave it out", "warning")
    return counted


def measured_routes(
    routes: list[Endpoint], excluded_templates: Iterable[str], settings: ObserveSettings
) -> list[MethodRoute]:
    """Return all measured routes, for objectives that name no routes."""
    excluded = frozenset(excluded_templates)
    return [
        pair
        for route in routes
        if not route.websocket and route.template not in excluded and not is_excluded(route.template, settings)
        for pair in _method_routes(route)
    ]


def group_routes(pairs: Iterable[tuple[str, str]]) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    """Group (method, template) pairs by their methods into ((methods, templates), ...) that multiply out to them."""
    methods: dict[str, set[str]] = {}
    for method, template in pairs:
        methods.setdefault(template, set()).add(method)
    templates: dict[tuple[str, ...], list[str]] = {}
    for template, used in methods.items():
        templates.setdefault(tuple(sorted(used)), []).append(template)
    return tuple(sorted((used, tuple(sorted(names))) for used, names in templates.items()))


def is_excluded(template: str, settings: ObserveSettings) -> bool:
    """Return whether no signal reports a route: an excluded path, or the path of the metrics."""
    if settings.metrics and settings.metrics_port is None and template == settings.metrics_path:
        return True
    for entry in (*settings.exclude_paths, *settings.exclude_from.get("metrics", ())):
        method, path, is_prefix = parse_exclusion(entry)
        if not method and (template.startswith(path) if is_prefix else template == path):
            return True
    # The host is not known here: no pattern should match it.
    return any(re.search(pattern, f"http://-{template}") for pattern in settings.exclude_urls)


def _method_routes(route: Endpoint) -> list[MethodRoute]:
    """Return the methods of a route as metrics name them.

    HEAD, which Starlette adds to each GET, is left out. A route without methods is a class with a function for each
    method, or a mounted app, which may answer any.
    """
    methods = [method for method in route.methods if method != "HEAD" or "GET" not in route.methods]
    if not methods and not route.websocket:
        implemented = [method for method in DEFAULT_METHODS if hasattr(route.function, method.lower())]
        methods = implemented or [*DEFAULT_METHODS]
    return [MethodRoute(method, route) for method in dict.fromkeys(map(known_method, methods or ("GET",)))]


def _streams(route: Endpoint) -> bool:
    returned = getattr(route.function, "__annotations__", {}).get("return")
    name = returned if isinstance(returned, str) else getattr(returned, "__name__", "")
    return name.rpartition(".")[2] in {"StreamingResponse", "EventSourceResponse"}


def _matches(pattern: str, pair: MethodRoute) -> bool:
    route = pair.route
    if pattern.startswith("tag:"):
        return pattern[4:] in route.tags
    method, separator, path = pattern.partition(" ")
    if not separator or not method.isalpha():
        method, path = "", pattern
    if method and (known_method(method.upper()) != pair.method or route.websocket):
        return False
    path = path.strip()
    return path == route.template or ("*" in path and fnmatchcase(route.template, path.replace("[", "[[]")))


def _describe_unknown(pattern: str, routes: list[Endpoint]) -> str:
    if pattern.startswith("tag:"):
        tags = sorted({tag for route in routes for tag in route.tags})
        return f"{pattern!r} matches no route; use a tag of this app: {join_some(tags, MAX_LISTED_ROUTES)}"
    own = [route for route in routes if route.template not in DOCUMENTATION_PATHS]
    pairs = sorted({f"{pair.method} {route.template}" for route in own for pair in _method_routes(route)})
    close = difflib.get_close_matches(pattern, [*pairs, *(route.template for route in routes)], n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{pattern!r} matches no route; {hint}Routes: {join_some(pairs, MAX_LISTED_ROUTES)}"


def join_some(names: list[str], maximum: int) -> str:
    """Return the first names of a list for a message, and the number of the others. `none` if there are none."""
    more = len(names) - maximum
    return ", ".join(names[:maximum]) + (f" and {more} more" if more > 0 else "") if names else "none"
