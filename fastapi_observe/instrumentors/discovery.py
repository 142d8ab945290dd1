"""The OpenTelemetry instrumentors that are installed, and for each whether it is to be switched on."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from importlib.metadata import EntryPoint

    from fastapi_observe.settings.model import ObserveSettings

GROUP: Final = "opentelemetry_instrumentor"
"""Group of the entry points of instrumentors."""

DISABLED: Final = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
"""Variable with the names of instrumentors that are not to be switched on, as `opentelemetry-instrument` reads it."""

_SERVERS: Final = frozenset(
    """aiohttp-server asgi aws-lambda django falcon fastapi flask grpc-aio-server grpc-server litestar pyramid quart
    sanic starlette tornado wsgi""".split()  # noqa: SIM905 - a list would be a page long
)
_LOGGING: Final = frozenset({"logging", "loguru", "structlog"})
_SYSTEM: Final = frozenset({"system-metrics"})

_DRIVERS: Final = {
    "aiosqlite": "sqlite3",
    "asyncpg": "asyncpg",
    "mysqlconnector": "mysql",
    "mysqldb": "mysqlclient",
    "psycopg": "psycopg",
    "psycopg2": "psycopg2",
    "pymssql": "pymssql",
    "pymysql": "pymysql",
    "pysqlite": "sqlite3",
}
"""Instrumentors of the drivers of SQLAlchemy's dialects."""


class Candidate(NamedTuple):
    """An installed instrumentor. `reason` is why it is left alone; empty if it is to be switched on.

    `is_client` is whether it is of a library that an app calls, such as a driver.
    """

    name: str
    package: str
    entry_point: EntryPoint | None
    reason: str
    is_client: bool = True


def choose_instrumentors(settings: ObserveSettings) -> list[Candidate]:
    """Return the instrumentors that an app with these settings looks at; none if there is nothing to switch on."""
    if not settings.tracing or settings.instrument is None:
        return []
    found = find_instrumentors(settings.instrument, settings.engines)
    return found if any(each.is_client for each in found) else []


def find_instrumentors(choice: str | Sequence[str] | None, engines: Iterable[Any] = ()) -> list[Candidate]:
    """Return the installed instrumentors, sorted by name.

    `choice` is the option `instrument`: with names, only these are returned. `engines` are observed already, so that
    their instrumentors are left alone. A name without an instrumentor has no entry point.
    """
    found = {normalize_instrumentor_name(each.name): each for each in entry_points(group=GROUP)}
    disabled = {normalize_instrumentor_name(name) for name in os.environ.get(DISABLED, "").split(",")}
    observed = observed_instrumentors(engines)
    chosen = None if choice == "auto" else {normalize_instrumentor_name(name): name for name in choice or ()}
    candidates = []
    for name, entry_point in found.items():
        if chosen is not None and name not in chosen:
            continue
        reason = ""
        if chosen is None:
            reason = DISABLED if name in disabled else observed.get(name, "")
        package = getattr(entry_point.dist, "name", None) or entry_point.module
        role = _role(name)
        reason = role or reason or _conflict(entry_point)
        candidates.append(Candidate(entry_point.name, package, entry_point, reason, not role))
    for name, given in (chosen or {}).items():
        if name not in found:
            candidates.append(Candidate(given, f"opentelemetry-instrumentation-{name}", None, "not installed"))
    return sorted(candidates, key=itemgetter(0))


def normalize_instrumentor_name(name: str) -> str:
    """Return the name of an instrumentor in the spelling that names are compared in."""
    return name.strip().lower().replace("_", "-")


def _role(name: str) -> str:
    """Return why no instrumentor of this name is ever switched on."""
    if name in _SERVERS:
        return "a server framework"
    if name in _LOGGING:
        return "logging"
    return "system metrics" if name in _SYSTEM else ""


def observed_instrumentors(engines: Iterable[Any]) -> dict[str, str]:
    """Return the normalized names of the instrumentors of what is observed already, with the reason."""
    observed = {}
    for engine in engines:
        dialect = getattr(engine, "dialect", None)
        driver = _DRIVERS.get(str(getattr(dialect, "driver", "")))
        for name in ("sqlalchemy", driver):
            if name is not None:
                observed[name] = "observed through engines"
    return observed


def _conflict(entry_point: EntryPoint) -> str:
    """Return why the library cannot be instrumented: it is not installed, or of another version."""
    if entry_point.dist is None:
        return ""
    # Without instrumentors it is not needed, and it takes long.
    from opentelemetry.instrumentation import dependencies  # noqa: PLC0415

    find_conflict: Any = getattr(dependencies, "get_dist_dependency_conflicts", None)
    if find_conflict is None:  # not in every version; found when the instrumentor is loaded
        return ""
    try:
        conflict = find_conflict(entry_point.dist)
    except Exception as exc:  # noqa: BLE001 - metadata may be anything
        return f"its requirements cannot be read ({type(exc).__name__})"
    return "" if conflict is None else describe_conflict(conflict)


def describe_conflict(conflict: Any) -> str:
    """Return what an instrumentor requires, and what is installed."""
    required = getattr(conflict, "required", None) or ", ".join(map(str, getattr(conflict, "required_any", ()) or ()))
    required = str(required).partition(";")[0].strip()
    found = getattr(conflict, "found", None) or ", ".join(getattr(conflict, "found_any", ()) or ())
    return f"supports {required}, not {found}" if found else f"{required} is not installed"
