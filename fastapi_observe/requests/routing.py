"""The matched route of a request and the routes of an app, for all supported FastAPI and Starlette versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from starlette.applications import Starlette

from fastapi_observe.internal.fastapi import (
    ROUTE_CONTEXT_KEY,
    ROUTING_SCOPE_KEY,
    flatten_routes,
    frontend_path,
    route_of_context,
)
from fastapi_observe.internal.starlette import compile_template
from fastapi_observe.records.endpoint import REDIRECT, UNMATCHED

if TYPE_CHECKING:
    import re

    from starlette.types import Scope

ENTRY_ROOT_SCOPE_KEY: Final = "fastapi_observe.root_path"
"""Key in the ASGI scope of the `root_path` at which the measured app is mounted in an app without `install`."""

SUBPATH: Final = "/{path}"
"""Template of any path below a mounted app that does not list its routes."""

MAX_CACHED_TEMPLATES: Final = 4096
"""Templates that are cached for one app."""

MAX_CACHED_PATH_LENGTH: Final = 256
"""Characters of a mount path that is cached: a client chooses it below `Mount("/t/{tenant}")`."""

MAX_MIDDLEWARE_LAYERS: Final = 32
"""Middleware objects around a mounted app that are unwrapped, and nested mounts that are listed."""


class RouteTemplates:
    """Route templates of one app, cached by the objects that the routers put into the scope.

    A request costs one dict look-up, independent of the number of routes. Routes are never matched a second time: a
    template that is not cached is found from the matched route and the mounts above it.
    """

    __slots__ = ("_app", "_cache")

    def __init__(self, app: Any) -> None:
        self._app = app
        # The values keep the objects alive whose ids are the keys, so that no id is reused.
        self._cache: dict[tuple[int, int, int, str], tuple[_Template, tuple[Any, ...]]] = {}

    def template(self, scope: Scope, status_code: int) -> str:
        """Return the route template with all prefixes and mounts of this app, never a part that the client chose.

        What this app is mounted at is not part of it. `unmatched` if no route matched, `redirect` if the router
        redirected.
        """
        endpoint = scope.get("endpoint")
        routing_state = scope.get(ROUTING_SCOPE_KEY)
        if endpoint is None:
            return _template_without_endpoint(scope, routing_state, status_code)
        route = scope.get("route")
        context = routing_state.get(ROUTE_CONTEXT_KEY) if routing_state else None
        outer = scope.get("app_root_path")  # root_path minus this is the concrete path of the mounts
        root = scope.get("root_path", "")
        mounted = ""
        if outer is not None and root != outer:
            mounted = root.removeprefix(scope.get(ENTRY_ROOT_SCOPE_KEY, outer))
        key = (id(endpoint), id(route), id(context), mounted)
        cached = self._cache.get(key)
        if cached is not None:
            template = cached[0]
        else:
            template = self._find_template(scope, endpoint, mounted)
            if len(self._cache) >= MAX_CACHED_TEMPLATES:
                self._cache.clear()
            if len(mounted) <= MAX_CACHED_PATH_LENGTH:
                self._cache[key] = (template, (endpoint, route, context))
        if isinstance(template, str):
            return template
        if template is None:
            return _template_without_endpoint(scope, routing_state, status_code)
        return _choose_template(template, scope)

    def templates(self) -> list[str]:
        """Return the templates of all current routes."""
        return [each.template for each in list_endpoints(self._app)]

    def _find_template(self, scope: Scope, endpoint: Any, mounted: str) -> _Template:
        prefix, inner = _mount_templates(_child_routes(self._app), mounted)
        own = _path_format(matched_route(scope))
        templates = [own] if own else _search(inner, endpoint) or _search(_child_routes(scope.get("app")), endpoint)
        if not templates and not mounted and _unwrapped(endpoint) is self._app:
            return None  # a mount outside this app has set the endpoint, no route inside
        if not templates:  # the endpoint is not in any route: StaticFiles, a mounted app's 404
            return prefix.removesuffix(SUBPATH) + SUBPATH
        if len(templates) == 1:
            return prefix + templates[0]
        return tuple((compile_template(template), prefix + template) for template in templates)


_Template = str | tuple[tuple["re.Pattern[str]", str], ...] | None
"""A template, or patterns and templates of one function on several paths, chosen by the request's path.

None if no route matched.
"""


def path_in_app(scope: Scope) -> str:
    """Return the path without `root_path`, as the innermost router so far matches it.

    `root_path` is that of the server or of `FastAPI(root_path=...)`, and the path of each mount. Servers and proxies
    may have removed it from the path.
    """
    path: str = scope.get("path", "")
    root: str = scope.get("root_path", "")
    if not root or not path.startswith(root):
        return path
    below = path[len(root) :]
    return below if not below or below[0] == "/" else path


def matched_route(scope: Scope) -> Any:
    """Return the matched route with the prefixes of its routers; None if the router stored none in the scope.

    FastAPI 0.137 and later store the prefixes in a separate object. A route that an outer router stored is ignored,
    because its endpoint is not the one in the scope.
    """
    endpoint = scope.get("endpoint")
    if endpoint is None:
        return None
    context = (scope.get(ROUTING_SCOPE_KEY) or {}).get(ROUTE_CONTEXT_KEY)
    for route in (route_of_context(context), context, scope.get("route")):
        if getattr(route, "endpoint", None) is endpoint:
            return route
    return None


class Endpoint(NamedTuple):
    """A route: its full template and its declaration.

    `methods` is empty for a WebSocket and for a mounted app that does not list its routes.
    """

    template: str
    methods: tuple[str, ...]
    tags: tuple[str, ...]
    function: Any
    websocket: bool


def list_endpoints(app: Any) -> list[Endpoint]:
    """Return all routes of an app in order, including those of included routers and mounted apps.

    `template` is the value that `RouteTemplates.template` returns for a request that the route matches.
    """
    found: list[Endpoint] = []
    _collect_endpoints(_child_routes(app), "", found, 0)
    return found


def _collect_endpoints(routes: Any, prefix: str, found: list[Endpoint], depth: int) -> None:
    for route in flatten_routes(routes):
        if (
            hasattr(route, "routes") and depth < MAX_MIDDLEWARE_LAYERS
        ):  # a mount, or a Host, which adds nothing to the path
            template = (_path_format(route) or "").removesuffix(SUBPATH)
            inner = _inner_routes(route)
            if inner:
                _collect_endpoints(inner, prefix + template, found, depth + 1)
            else:
                found.append(Endpoint(prefix + template + SUBPATH, (), (), None, websocket=False))
            continue
        path = _path_format(route)
        if path is not None:
            methods = tuple(sorted(getattr(route, "methods", None) or ()))
            tags = tuple(str(getattr(tag, "value", tag)) for tag in getattr(route, "tags", None) or ())
            websocket = not hasattr(route, "methods")
            found.append(Endpoint(prefix + path, methods, tags, getattr(route, "endpoint", None), websocket))


def app_modules(app: Any, *others: str) -> set[str]:
    """Return the names of the modules that the endpoints of an app are in, and of `others`."""
    return {*others, *(str(getattr(endpoint.function, "__module__", "")) for endpoint in list_endpoints(app))}


def mounted_apps(app: Any) -> list[Starlette]:
    """Return the FastAPI and Starlette apps mounted anywhere below `app`, each once, without `app` itself."""
    found: list[Starlette] = []
    _collect_mounted(_child_routes(app), found, {id(app)})
    return found


def _collect_mounted(routes: Any, found: list[Starlette], seen: set[int]) -> None:
    for route in flatten_routes(routes):
        inner = _unwrapped(getattr(route, "app", None))
        if inner is None or id(inner) in seen:
            continue
        seen.add(id(inner))
        if isinstance(inner, Starlette):
            found.append(inner)
        _collect_mounted(_child_routes(inner), found, seen)


def _template_without_endpoint(scope: Scope, routing_state: Any, status_code: int) -> str:
    """Return the template of a request without an endpoint: a front end of files, a redirect, or unmatched."""
    frontend = frontend_path(routing_state)
    if frontend is not None:
        path = path_in_app(scope)
        return path[: len(path) - len(frontend)].rstrip("/") + SUBPATH
    return REDIRECT if 300 <= status_code < 400 else UNMATCHED  # noqa: PLR2004 - 3xx


def _path_format(route: Any) -> str | None:
    template = getattr(route, "path_format", None)
    if template is None:
        template = getattr(route, "path", None)
    return template if isinstance(template, str) else None


def _search(routes: Any, endpoint: Any) -> list[str]:
    """Return the templates of an endpoint without a route in the scope (`add_route` on FastAPI, `/docs`)."""
    found: list[str] = []
    for route in flatten_routes(routes):
        if getattr(route, "endpoint", None) is endpoint:
            found.append(_path_format(route) or SUBPATH)
        elif not getattr(route, "path", ""):  # a Host, a Mount("/"): they add nothing to the path
            found += _search(_inner_routes(route), endpoint)
    return found


def _choose_template(templates: tuple[tuple[re.Pattern[str], str], ...], scope: Scope) -> str:
    """Return the template that matches the path. One does: the router has matched it."""
    path = path_in_app(scope)
    return next((template for pattern, template in templates if pattern.match(path)), templates[0][1])


def _mount_templates(routes: Any, path: str) -> tuple[str, Any]:
    """Return the templates for the concrete path of nested mounts, and the routes of the innermost app.

    The path below an app that does not list its routes is `{path}`; its routes are None.
    """
    if not path:
        return "", routes
    partial = ""
    for route in flatten_routes(routes):
        if not hasattr(route, "routes"):
            continue
        if not hasattr(route, "path_regex"):  # a Host adds nothing to the path
            template, inner = _mount_templates(_inner_routes(route), path)
            if inner is not None:
                return template, inner
            continue
        match = route.path_regex.match(path + "/")
        if match is None:
            continue
        used = len(path) - len(match.group("path"))
        template = str(route.path_format).removesuffix(SUBPATH)
        deeper, inner = _mount_templates(_inner_routes(route), path[used:])
        if inner is not None:
            return template + deeper, inner
        partial = partial or template
    return partial + SUBPATH, None


def _inner_routes(mount: Any) -> Any:
    return _child_routes(getattr(mount, "app", None))


def _child_routes(app: Any) -> Any:
    return getattr(_unwrapped(app), "routes", None) or ()


def _unwrapped(app: Any) -> Any:
    """Return the app with routes inside middleware, which keeps the wrapped app as `app`; None if there is none."""
    for _ in range(MAX_MIDDLEWARE_LAYERS):
        if app is None or hasattr(app, "routes"):
            return app
        app = getattr(app, "app", None)
    return None
