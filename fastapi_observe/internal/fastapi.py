"""Names of FastAPI that are not documented, with a fallback for each."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TELEMETRY_SCOPE_KEY: Final = "fastapi.telemetry"
"""Scope key of FastAPI's own telemetry (0.142 and later). None in it keeps it from measuring the request."""

ROUTING_SCOPE_KEY: Final = "fastapi"
"""Scope key of a dict with FastAPI's routing state (0.137 and later)."""

ROUTE_CONTEXT_KEY: Final = "effective_route_context"
"""Key in the routing state of the object that keeps a route of an included router with its prefixes."""

_PARAMETERS: Final = ("path_params", "query_params", "header_params", "cookie_params", "body_params")


def disable_native_telemetry(app: Any) -> Callable[[], None] | None:
    """Switch off FastAPI's own telemetry for this app. Returns a function that reverts this; None if there is none."""
    # A private dict that FastAPI reads at each request.
    config = getattr(app, "_telemetry", None)
    if not isinstance(config, dict):
        return None
    before = {name: config[name] for name in ("tracing", "metrics", "logs") if name in config}
    config.update(dict.fromkeys(before, False))
    return functools.partial(config.update, before)


def validation_error_types() -> tuple[type[Exception], ...]:
    """Return FastAPI's exceptions for invalid requests. Empty if FastAPI was not imported."""
    exceptions = sys.modules.get("fastapi.exceptions")
    names = ("RequestValidationError", "WebSocketRequestValidationError")
    return tuple(getattr(exceptions, name) for name in names if hasattr(exceptions, name))


def route_of_context(context: Any) -> Any:
    """Return the Starlette route of a route context; None if there is none."""
    return getattr(context, "starlette_route", None)


def frontend_path(routing_state: Any) -> str | None:
    """Return the path below the mount of a single-page front end; None if the request was not for one."""
    return routing_state.get("frontend_path") if routing_state else None


def flatten_routes(routes: Any) -> Iterator[Any]:
    """Iterate over routes, those of included routers with their prefixes (FastAPI 0.137 and later keep them apart)."""
    for route in routes or ():
        contexts = getattr(route, "effective_route_contexts", None)
        if contexts is None:
            yield route
        else:
            for context in contexts():
                yield route_of_context(context) or context


class DeclaredField(NamedTuple):
    """A parameter or body that a path operation or one of its dependencies declares."""

    name: str
    alias: str
    annotation: Any
    is_header: bool


def declared_fields(route: Any) -> Iterator[DeclaredField]:
    """Iterate over the parameters of a route and its dependencies. Empty if the route does not list them."""
    return _dependant_fields(getattr(route, "dependant", None))


def _dependant_fields(dependant: Any) -> Iterator[DeclaredField]:
    for kind in _PARAMETERS:
        for field in getattr(dependant, kind, ()):
            annotation = getattr(getattr(field, "field_info", None), "annotation", None)
            yield DeclaredField(field.name, field.alias, annotation, kind == "header_params")
    for inner in getattr(dependant, "dependencies", ()):
        yield from _dependant_fields(inner)
