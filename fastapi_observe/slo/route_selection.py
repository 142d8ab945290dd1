"""Which of the app's real routes an objective counts."""

from __future__ import annotations

import difflib
import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi_observe.records.request import known_method
from fastapi_observe.settings.objectives import Latency, Objective

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi_observe.requests.routing import Endpoint
    from fastapi_observe.settings.model import ObserveSettings
    from fastapi_observe.slo.checks import ProblemCollector

FRAMEWORK: Final = ("/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc")
DEFAULT_METHODS: Final = ("DELETE", "GET", "PATCH", "POST", "PUT")
"""What a route may answer that names no methods."""

MAX_LISTED: Final = 20
"""Routes or tags that a message lists."""


class MethodRoute(NamedTuple):
    """A method of a route: what one series counts."""

    method: str
    route: Endpoint


def framework_templates(app: Any) -> frozenset[str]:
    """Return the paths at which FastAPI serves the app's documentation."""
    names = ("openapi_url", "docs_url", "swagger_ui_oauth2_redirect_url", "redoc_url")
    return frozenset(FRAMEWORK) | {path for name in names if isinstance(path := getattr(app, name, None), str)}


def select_routes(
    objective: Objective,
    own: tuple[Endpoint, ...] | None,
    routes: list[Endpoint],
    settings: ObserveSettings,
    tell: ProblemCollector,
) -> list[MethodRoute]:
    """Return what an objective names, or what `@slo` stands on; tell SLO01, SLO02 and SLO08."""
    if own is not None:
        chosen = [(pair, True) for route in own for pair in _pairs(route)]
    else:
        known = [pair for route in routes for pair in _pairs(route)]
        chosen = []
        for wanted in objective.routes:
            found = [pair for pair in known if _fits(wanted, pair)]
            if not found:
                tell("SLO01", _unknown(wanted, routes))
            chosen += [(pair, "*" not in wanted and not wanted.startswith("tag:")) for pair in found]
    exact = {pair.route.template: named for pair, named in sorted(chosen, key=lambda each: each[1])}
    excluded = {template for template in exact if is_excluded(template, settings)}
    for template in sorted(excluded):
        tell("SLO02", f"{template} is in exclude_paths or exclude_urls, so the objective would never see it: "
             "remove it from one of the two", "error" if exact[template] else "warning")  # fmt: skip
    sockets = {pair.route.template for pair, _ in chosen if pair.route.websocket}
    for template in sorted(sockets - {pair.route.template for pair, _ in chosen if not pair.route.websocket}):
        tell("SLO08", f"{template} is a WebSocket: it is no request that ends with a status, and its duration is that "
             "of the connection; leave it out", "error" if exact[template] else "info")  # fmt: skip
    kept = [pair for pair, _ in chosen if not pair.route.websocket and pair.route.template not in excluded]
    if isinstance(objective, Latency):
        for template in sorted({pair.route.template for pair in kept if _streams(pair.route)}):
            tell("SLO08", f"{template} streams: its duration is that of the whole stream; leave it out", "warning")
    return kept


def measured_routes(routes: list[Endpoint], aside: Iterable[str], settings: ObserveSettings) -> list[MethodRoute]:
    """Return everything that is measured, for objectives that name no routes."""
    left_out = frozenset(aside)
    return [
        pair
        for route in routes
        if not route.websocket and route.template not in left_out and not is_excluded(route.template, settings)
        for pair in _pairs(route)
    ]


def group_routes(pairs: Iterable[tuple[str, str]]) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    """Put (method, template) pairs into as few ((methods, templates), ...) as say exactly them."""
    methods: dict[str, set[str]] = {}
    for method, template in pairs:
        methods.setdefault(template, set()).add(method)
    templates: dict[tuple[str, ...], list[str]] = {}
    for template, used in methods.items():
        templates.setdefault(tuple(sorted(used)), []).append(template)
    return tuple(sorted((used, tuple(sorted(names))) for used, names in templates.items()))


def is_excluded(template: str, settings: ObserveSettings) -> bool:
    """Say whether no signal reports a route: an excluded path, or that of the metrics."""
    if settings.metrics and settings.metrics_port is None and template == settings.metrics_path:
        return True
    for path in settings.exclude_paths:
        if template == path or (path.endswith("*") and template.startswith(path[:-1])):
            return True
    # The host is not known here: no pattern should match it.
    return any(re.search(pattern, f"http://-{template}") for pattern in settings.exclude_urls)


def _pairs(route: Endpoint) -> list[MethodRoute]:
    """Return the methods of a route as metrics name them.

    HEAD, which Starlette adds to each GET, does not count by itself. A route that names no methods is a class with one
    function for each, or a mounted app, which may answer any.
    """
    methods = [method for method in route.methods if method != "HEAD" or "GET" not in route.methods]
    if not methods and not route.websocket:
        methods = [method for method in DEFAULT_METHODS if hasattr(route.function, method.lower())] or [
            *DEFAULT_METHODS
        ]
    return [MethodRoute(method, route) for method in dict.fromkeys(map(known_method, methods or ("GET",)))]


def _streams(route: Endpoint) -> bool:
    returned = getattr(route.function, "__annotations__", {}).get("return")
    name = returned if isinstance(returned, str) else getattr(returned, "__name__", "")
    return name.rpartition(".")[2] in {"StreamingResponse", "EventSourceResponse"}


def _fits(wanted: str, pair: MethodRoute) -> bool:
    route = pair.route
    if wanted.startswith("tag:"):
        return wanted[4:] in route.tags
    verb, separator, path = wanted.partition(" ")
    if not separator or not verb.isalpha():
        verb, path = "", wanted
    if verb and (known_method(verb.upper()) != pair.method or route.websocket):
        return False
    path = path.strip()
    return path == route.template or ("*" in path and fnmatchcase(route.template, path.replace("[", "[[]")))


def _unknown(wanted: str, routes: list[Endpoint]) -> str:
    if wanted.startswith("tag:"):
        tags = sorted({tag for route in routes for tag in route.tags})
        return f"{wanted!r} matches no route; use a tag of this app: {_some(tags)}"
    own = [route for route in routes if route.template not in FRAMEWORK]
    pairs = sorted({f"{pair.method} {route.template}" for route in own for pair in _pairs(route)})
    near = difflib.get_close_matches(wanted, [*pairs, *(route.template for route in routes)], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{wanted!r} matches no route; {hint}Routes: {_some(pairs)}"


def _some(names: list[str]) -> str:
    more = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "") if names else "none"
