"""Which route answered: the one place that knows how FastAPI and Starlette versions tell it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from starlette.applications import Starlette
from starlette.routing import compile_path

from fastapi_observe.records.endpoint import REDIRECT, UNMATCHED

if TYPE_CHECKING:
    import re
    from collections.abc import Iterator

    from starlette.types import Scope

SUBPATH: Final = "/{path}"
"""Stands for whatever a mounted app finds below its mount."""

MAX_CACHED_TEMPLATES: Final = 4096
"""Templates that one app remembers."""

MAX_CACHED_PATH_LENGTH: Final = 256
"""Characters of a concrete mount path that is remembered: a client chooses it under `Mount("/t/{tenant}")`."""

MAX_MIDDLEWARE_LAYERS: Final = 32
"""Middleware around a mounted app that is looked through."""


class RouteTemplates:
    """Route templates of one app, remembered by the objects that the routers leave in the scope.

    A request costs one dict look-up, however many routes there are; routes are never matched a second time. What is
    not remembered is worked out once by walking the mounts only.
    """

    __slots__ = ("_app", "_remembered")

    def __init__(self, app: Any) -> None:
        self._app = app
        # The values keep the objects alive whose ids are the key, so that no id can be used again.
        self._remembered: dict[tuple[int, int, int, str], tuple[_Answer, tuple[Any, ...]]] = {}

    def template(self, scope: Scope, status_code: int) -> str:
        """Return the full route template: every prefix, every mount; never a part that the client chose.

        `unmatched` where no route answered, `redirect` where the router only redirected.
        """
        endpoint = scope.get("endpoint")
        fastapi_scope = scope.get("fastapi")
        if endpoint is None:
            return _without_endpoint(scope, fastapi_scope, status_code)
        route = scope.get("route")
        context = fastapi_scope.get("effective_route_context") if fastapi_scope else None
        outer = scope.get("app_root_path")  # what the mounts in between added: their concrete path
        mounted = "" if outer is None else scope.get("root_path", "").removeprefix(outer)
        key = (id(endpoint), id(route), id(context), mounted)
        found = self._remembered.get(key)
        if found is not None:
            answer = found[0]
        else:
            answer = self._work_out(scope, endpoint, mounted)
            if len(self._remembered) >= MAX_CACHED_TEMPLATES:
                self._remembered.clear()
            if len(mounted) <= MAX_CACHED_PATH_LENGTH:
                self._remembered[key] = (answer, (endpoint, route, context))
        return answer if isinstance(answer, str) else _fitting(answer, scope)

    def templates(self) -> list[str]:
        """List the templates of all routes, as they are now."""
        return [each.template for each in list_endpoints(self._app)]

    def _work_out(self, scope: Scope, endpoint: Any, mounted: str) -> _Answer:
        prefix, inner = _mount_templates(_child_routes(self._app), mounted)
        own = _path_format(matched_route(scope))
        templates = [own] if own else _search(inner, endpoint) or _search(_child_routes(scope.get("app")), endpoint)
        if not templates:  # something answered that does not tell its paths: StaticFiles, a mounted app's 404
            return prefix.removesuffix(SUBPATH) + SUBPATH
        if len(templates) == 1:
            return prefix + templates[0]
        return tuple((compile_path(template)[0], prefix + template) for template in templates)


_Answer = str | tuple[tuple["re.Pattern[str]", str], ...]
"""A template, or those of one function on several paths, of which the request's path tells the right one."""


def matched_route(scope: Scope) -> Any:
    """Return the route whose endpoint answered, with the prefixes of its routers; None where the router left none.

    FastAPI since 0.137 keeps them in an object of its own beside the route. A route left over from an outer router
    is recognised because its endpoint is not the one in the scope.
    """
    endpoint = scope.get("endpoint")
    if endpoint is None:
        return None
    context = (scope.get("fastapi") or {}).get("effective_route_context")
    for route in (getattr(context, "starlette_route", None), context, scope.get("route")):
        if getattr(route, "endpoint", None) is endpoint:
            return route
    return None


class Endpoint(NamedTuple):
    """A route as it is reported: its full template, and what is declared with it.

    `methods` are empty for a WebSocket and for a mounted app that does not tell its routes.
    """

    template: str
    methods: tuple[str, ...]
    tags: tuple[str, ...]
    function: Any
    websocket: bool


def list_endpoints(app: Any) -> list[Endpoint]:
    """List all routes of an app, those of included routers and mounted apps too, in their order.

    `template` is what `Routes.template` returns for a request that the route answers.
    """
    found: list[Endpoint] = []
    _collect_endpoints(_child_routes(app), "", found, 0)
    return found


def _collect_endpoints(routes: Any, prefix: str, found: list[Endpoint], depth: int) -> None:
    for route in _flat(routes):
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


def mounted_apps(app: Any) -> list[Starlette]:
    """Find the FastAPI and Starlette apps mounted anywhere below `app`, each once, without `app` itself."""
    found: list[Starlette] = []
    _collect_mounted(_child_routes(app), found, {id(app)})
    return found


def _collect_mounted(routes: Any, found: list[Starlette], seen: set[int]) -> None:
    for route in _flat(routes):
        inner = _unwrapped(getattr(route, "app", None))
        if inner is None or id(inner) in seen:
            continue
        seen.add(id(inner))
        if isinstance(inner, Starlette):
            found.append(inner)
        _collect_mounted(_child_routes(inner), found, seen)


def _without_endpoint(scope: Scope, fastapi_scope: Any, status_code: int) -> str:
    """Name what no endpoint answered: a front end of files, a redirect, nothing."""
    frontend = fastapi_scope.get("frontend_path") if fastapi_scope else None
    if frontend is not None:
        path = _path_below_root(scope)
        return path[: len(path) - len(frontend)].rstrip("/") + SUBPATH
    return REDIRECT if 300 <= status_code < 400 else UNMATCHED  # noqa: PLR2004 - 3xx


def _path_below_root(scope: Scope) -> str:
    """Return the path as the innermost router compares it."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if path.startswith(root + "/") else path


def _path_format(route: Any) -> str | None:
    template = getattr(route, "path_format", None)
    if template is None:
        template = getattr(route, "path", None)
    return template if isinstance(template, str) else None


def _search(routes: Any, endpoint: Any) -> list[str]:
    """Find the templates of an endpoint whose router left no route in the scope (`add_route` on FastAPI, `/docs`)."""
    found: list[str] = []
    for route in _flat(routes):
        if getattr(route, "endpoint", None) is endpoint:
            found.append(_path_format(route) or SUBPATH)
        elif not getattr(route, "path", ""):  # a Host, a Mount("/"): they add nothing to the path
            found += _search(_inner_routes(route), endpoint)
    return found


def _fitting(templates: tuple[tuple[re.Pattern[str], str], ...], scope: Scope) -> str:
    """Choose the template that the path fits; `scope` has been through the router, so one does."""
    path = _path_below_root(scope)
    return next((template for pattern, template in templates if pattern.match(path)), templates[0][1])


def _mount_templates(routes: Any, path: str) -> tuple[str, Any]:
    """Turn the concrete path of mounts back into their templates; return them with the innermost app's routes.

    What lies below an app that does not tell its routes reads `{path}`.
    """
    if not path:
        return "", routes
    partly = ""
    for route in _flat(routes):
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
        partly = partly or template
    return partly + SUBPATH, None


def _inner_routes(mount: Any) -> Any:
    return _child_routes(getattr(mount, "app", None))


def _child_routes(app: Any) -> Any:
    return getattr(_unwrapped(app), "routes", None) or ()


def _unwrapped(app: Any) -> Any:
    """Look through middleware, which keeps the app it wraps as `app`, for what has routes; None if nothing has."""
    for _ in range(MAX_MIDDLEWARE_LAYERS):
        if app is None or hasattr(app, "routes"):
            return app
        app = getattr(app, "app", None)
    return None


def _flat(routes: Any) -> Iterator[Any]:
    """Walk routes, those of included routers (FastAPI 0.137 and later keep them apart) with their prefixes."""
    for route in routes or ():
        contexts = getattr(route, "effective_route_contexts", None)
        if contexts is None:
            yield route
        else:
            for context in contexts():
                yield getattr(context, "starlette_route", None) or context
