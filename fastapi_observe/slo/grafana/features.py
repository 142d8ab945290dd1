"""The features of fastapi-observe that an app uses, as far as they can be detected without running it."""

from __future__ import annotations

import gzip
from inspect import isclass, isroutine
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args, get_type_hints

from fastapi_observe.formats.choice import JSON, choose_line_format
from fastapi_observe.requests.routing import list_endpoints

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fastapi_observe.formats.line_format import LineFormat
    from fastapi_observe.settings.model import ObserveSettings

DEPENDENCIES_MODULE: Final = "fastapi_observe.dependencies"
DEPENDENCY_FEATURES: Final = {
    "_database": "database",
    "_external": "external",
    "_http": "external",
    "_metrics": "business",
}
"""Features by the function of a dependency; by name, because `dependencies` needs FastAPI and imports this package."""

SELECTABLE: Final = ("database", "external", "business", "background", "streams")
"""Features that the user can include or exclude."""


class Features(NamedTuple):
    """The features that rows and panels depend on; `pools` says whether connection pools are measured."""

    database: bool
    pools: bool
    external: bool
    business: bool
    background: bool
    streams: bool
    websockets: bool
    sizes: bool
    exemplars: bool
    traces: bool
    logs: bool
    line_format: LineFormat = JSON

    @property
    def not_detected(self) -> tuple[str, ...]:
        """The features of `SELECTABLE` that are off."""
        return tuple(name for name in SELECTABLE if not getattr(self, name))


def detect_features(
    app: Any, settings: ObserveSettings, *, include: Iterable[str] = (), exclude: Iterable[str] = ()
) -> Features:
    """Detect features by settings, routes and the metrics right after import; `include` and `exclude` override it.

    Anything that the app sets up in its lifespan, such as a pool of asyncpg, cannot be detected.
    """
    found = set(_used_features(app))
    pools = "\ndb_connections_max{" in _scrape(app) or "database" in include
    if pools or settings.engines:
        found.add("database")
    found = (found | {*include}) - {*exclude}
    return Features(
        database="database" in found,
        pools=pools and "database" in found,
        external="external" in found,
        business="business" in found,
        background="background" in found,
        streams="streams" in found,
        websockets=any(endpoint.websocket for endpoint in list_endpoints(app)),
        sizes=settings.size_histograms,
        exemplars=settings.exemplars and settings.tracing,
        traces=settings.tracing,
        logs=settings.logs,
        line_format=choose_line_format(settings),
    )


def _scrape(app: Any) -> str:
    headers, body = app.state.observe.metrics.render("", "")
    return (gzip.decompress(body) if b"content-encoding" in dict(headers) else body).decode()


def _used_features(app: Any) -> Iterator[str]:
    """Yield features by the annotations of path operations and of everything that they depend on."""
    left = [endpoint.function for endpoint in list_endpoints(app) if endpoint.function is not None]
    seen: set[int] = set()
    while left:
        function = _called_function(left.pop())
        if id(function) in seen:
            continue
        seen.add(id(function))
        hints = _type_hints(function)
        for name, hint in hints.items():
            annotation = hint if isinstance(hint, str) else getattr(hint, "__name__", "")
            class_name = annotation.rpartition(".")[2]
            if class_name == "BackgroundTasks":
                yield "background"
            if name == "return" and class_name in {"StreamingResponse", "EventSourceResponse"}:
                yield "streams"
        for dependency in _dependencies(function, hints):
            if getattr(dependency, "__module__", "") == DEPENDENCIES_MODULE:
                feature = DEPENDENCY_FEATURES.get(dependency.__name__)
                if feature is not None:
                    yield feature
            else:
                left.append(dependency)


def _called_function(dependency: Any) -> Any:
    """Return the function that FastAPI calls for a dependency: a class, an object with `__call__` or a partial."""
    if isclass(dependency):
        return dependency.__init__
    return dependency if isroutine(dependency) else getattr(dependency, "func", type(dependency).__call__)


def _type_hints(function: Any) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):  # names imported for type checkers only, or not a function
        return dict(getattr(function, "__annotations__", {}))


def _dependencies(function: Any, hints: dict[str, Any]) -> Iterator[Any]:
    """Yield the dependencies of a function: `Annotated[..., Depends(f)]`, `= Depends(f)`, `Annotated[C, Depends()]`."""
    markers = [(None, default) for default in (getattr(function, "__defaults__", None) or ())]
    markers += [(None, default) for default in (getattr(function, "__kwdefaults__", None) or {}).values()]
    markers += [(hint, extra) for hint in hints.values() for extra in getattr(hint, "__metadata__", ())]
    for hint, marker in markers:
        if hasattr(marker, "dependency") and hasattr(marker, "use_cache"):
            dependency = marker.dependency or (get_args(hint)[0] if hint is not None else None)
            if callable(dependency):
                yield dependency
