"""Which parts of fastapi-observe an app uses, as far as that can be seen without running it."""

from __future__ import annotations

import gzip
from inspect import isclass, isroutine
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args, get_type_hints

from fastapi_observe.requests.routing import list_endpoints

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fastapi_observe.settings.model import ObserveSettings

DEPENDENCIES: Final = "fastapi_observe.dependencies"
ASKED_FOR: Final = {
    "_database": "database",
    "_external": "external",
    "_http": "external",
    "_metrics": "business",
}
"""What each dependency of ours is asked for; by name, because this room does not know the edges."""

SELECTABLE: Final = ("database", "external", "business", "background", "streams")
"""Features that a person may know better than what can be seen here."""


class Features(NamedTuple):
    """What there is to show. `pools`: connection pools are known; the rest is named as its row or panel is."""

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

    @property
    def not_detected(self) -> tuple[str, ...]:
        """The features of `CHOICES` that were not found: whoever uses them says so."""
        return tuple(name for name in SELECTABLE if not getattr(self, name))


def detect_features(
    app: Any, settings: ObserveSettings, *, include: Iterable[str] = (), exclude: Iterable[str] = ()
) -> Features:
    """Look at settings, routes and what is measured right after the import; `more` and `less` are of `CHOICES`.

    What an app sets up in its lifespan, a pool of asyncpg say, cannot be seen: `more` names it.
    """
    found = set(_asked_for(app))
    shown = _metrics(app)
    pools = "\ndb_connections_max{" in shown or "database" in include
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
    )


def _metrics(app: Any) -> str:
    """Return what a scrape shows now."""
    headers, body = app.state.observe.metrics.render("", "")
    return (gzip.decompress(body) if b"content-encoding" in dict(headers) else body).decode()


def _asked_for(app: Any) -> Iterator[str]:
    """Yield what the path operations ask for, by their annotations and those of what they depend on."""
    left = [endpoint.function for endpoint in list_endpoints(app) if endpoint.function is not None]
    seen: set[int] = set()
    while left:
        function = _called(left.pop())
        if id(function) in seen:
            continue
        seen.add(id(function))
        hints = _hints(function)
        for name, hint in hints.items():
            written = hint if isinstance(hint, str) else getattr(hint, "__name__", "")
            last = written.rpartition(".")[2]
            if last == "BackgroundTasks":
                yield "background"
            if name == "return" and last in {"StreamingResponse", "EventSourceResponse"}:
                yield "streams"
        for dependency in _dependencies(function, hints):
            if getattr(dependency, "__module__", "") == DEPENDENCIES:
                yield from filter(None, [ASKED_FOR.get(dependency.__name__)])
            else:
                left.append(dependency)


def _called(dependency: Any) -> Any:
    """Return the function that is called: a class, an object with `__call__` and a partial are dependencies too."""
    if isclass(dependency):
        return dependency.__init__
    return dependency if isroutine(dependency) else getattr(dependency, "func", type(dependency).__call__)


def _hints(function: Any) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):  # names that only type checkers import, or no function
        return dict(getattr(function, "__annotations__", {}))


def _dependencies(function: Any, hints: dict[str, Any]) -> Iterator[Any]:
    """Yield what a function depends on: `Annotated[..., Depends(it)]`, `= Depends(it)`, `Annotated[It, Depends()]`."""
    given = [(None, default) for default in (getattr(function, "__defaults__", None) or ())]
    given += [(None, default) for default in (getattr(function, "__kwdefaults__", None) or {}).values()]
    given += [(hint, extra) for hint in hints.values() for extra in getattr(hint, "__metadata__", ())]
    for hint, marker in given:
        if hasattr(marker, "dependency") and hasattr(marker, "use_cache"):
            dependency = marker.dependency or (get_args(hint)[0] if hint is not None else None)
            if callable(dependency):
                yield dependency
