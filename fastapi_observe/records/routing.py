"""Which route answered: the one place that knows how FastAPI and Starlette versions tell it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from starlette.routing import compile_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import Scope

UNMATCHED: Final = "unmatched"
REDIRECT: Final = "redirect"
REST: Final = "/{path}"
"""Stands for whatever a mounted app finds below its mount."""

MOST_REMEMBERED: Final = 4096


class Routes:
    """Route templates of one app, remembered by the objects that the routers leave in the scope.

    A request costs one dict look-up, however many routes there are; routes are never matched a second time. What is
    not remembered is worked out once by walking the mounts only.
    """

    __slots__ = ("_app", "_remembered")

    def __init__(self, app: Any) -> None:
        self._app = app
        # The values keep the objects alive whose ids are the key, so that no id can be used again.
        self._remembered: dict[tuple[int, int, int, str], tuple[str, tuple[Any, ...]]] = {}

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
        mounted = _mounted_part(scope)
        key = (id(endpoint), id(route), id(context), mounted)
        found = self._remembered.get(key)
        if found is not None:
            return found[0]
        prefix, inner = _mount_templates(_routes_of(self._app), mounted)
        own = _own_template(endpoint, route, context)
        candidates = [own] if own is not None else _search(_routes_of(scope.get("app")), endpoint)
        candidates = candidates or _search(inner, endpoint)
        if not candidates:
            template = prefix + REST if prefix or mounted else UNMATCHED
        elif len(candidates) > 1:  # one function on several paths: the objects do not tell which, so do not remember
            return prefix + _matching(candidates, scope)
        else:
            template = prefix + candidates[0]
        if len(self._remembered) >= MOST_REMEMBERED:
            self._remembered.clear()
        self._remembered[key] = (template, (endpoint, route, context))
        return template


def _without_endpoint(scope: Scope, fastapi_scope: Any, status_code: int) -> str:
    """Name what no endpoint answered: a front end of files, a redirect, nothing."""
    frontend = fastapi_scope.get("frontend_path") if fastapi_scope else None
    if frontend is not None:
        path: str = scope["path"]
        return path[: len(path) - len(frontend)].rstrip("/") + REST
    return REDIRECT if 300 <= status_code < 400 else UNMATCHED  # noqa: PLR2004 - 3xx


def _mounted_part(scope: Scope) -> str:
    """Return the concrete path of all mounts in between: what they added to `root_path`."""
    outer = scope.get("app_root_path")
    if outer is None:
        return ""
    root: str = scope.get("root_path", "")
    return root.removeprefix(outer)


def _own_template(endpoint: Any, route: Any, context: Any) -> str | None:
    """Return what the innermost route itself says, unless it was left over from an outer router."""
    if context is not None and getattr(context, "original_route", None) is route:
        real = getattr(context, "starlette_route", None) or context
        if getattr(real, "endpoint", None) is endpoint:
            return _format_of(real)
    if route is not None and getattr(route, "endpoint", None) is endpoint:
        return _format_of(route)
    return None


def _format_of(route: Any) -> str | None:
    template = getattr(route, "path_format", None)
    if template is None:
        template = getattr(route, "path", None)
    return template if isinstance(template, str) else None


def _search(routes: Any, endpoint: Any) -> list[str]:
    """Find the templates of an endpoint whose router left no route in the scope (`add_route` on FastAPI, `/docs`)."""
    found = (_format_of(route) for route in _flat(routes) if getattr(route, "endpoint", None) is endpoint)
    return [template for template in found if template is not None]


def _matching(templates: list[str], scope: Scope) -> str:
    """Choose the template that the path fits; `scope` has been through the router, so one does."""
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return next((template for template in templates if compile_path(template)[0].match(path)), templates[0])


def _mount_templates(routes: Any, path: str) -> tuple[str, Any]:
    """Turn the concrete path of mounts back into their templates; return them with the innermost app's routes."""
    if not path:
        return "", routes
    for route in _flat(routes):
        if not hasattr(route, "routes"):
            continue
        if not hasattr(route, "path_regex"):  # a Host adds nothing to the path
            template, inner = _mount_templates(route.routes, path)
            if template:
                return template, inner
            continue
        match = route.path_regex.match(path + "/")
        if match is None:
            continue
        rest = "/" + match.group("path")
        used = path[: len(path) + 1 - len(rest)]
        deeper, inner = _mount_templates(_inner_routes(route), path[len(used) :])
        if len(used) == len(path) or deeper:
            return str(route.path_format).removesuffix(REST) + deeper, inner
    return "", ()


def _inner_routes(mount: Any) -> Any:
    return _routes_of(getattr(mount, "app", None)) or mount.routes


def _routes_of(app: Any) -> Any:
    return getattr(app, "routes", None) or ()


def _flat(routes: Any) -> Iterator[Any]:
    """Walk routes, those of included routers (FastAPI 0.137 and later keep them apart) with their prefixes."""
    for route in routes or ():
        contexts = getattr(route, "effective_route_contexts", None)
        if contexts is None:
            yield route
        else:
            for context in contexts():
                yield getattr(context, "starlette_route", None) or context
