"""The features of fastapi-observe that an app uses, and its own metrics, as far as they can be detected."""

from __future__ import annotations

import gzip
import re
from inspect import isclass, isroutine
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args, get_type_hints

from prometheus_client.parser import text_string_to_metric_families

from fastapi_observe.formats.choice import JSON, choose_line_format
from fastapi_observe.metrics.users_metrics import describe_family
from fastapi_observe.requests.routing import list_endpoints
from fastapi_observe.slo.source_scan import scan_sources

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client.metrics_core import Metric

    from fastapi_observe.formats.line_format import LineFormat
    from fastapi_observe.metrics.service import MetricsService
    from fastapi_observe.metrics.users_metrics import UsersMetric
    from fastapi_observe.settings.model import ObserveSettings

DEPENDENCIES_MODULE: Final = "fastapi_observe.dependencies"
DEPENDENCY_FEATURES: Final = {
    "_database": "database",
    "_external": "external",
    "_http": "external",
}
"""Features by the function of a dependency; by name, because `dependencies` needs FastAPI and imports this package."""

SELECTABLE: Final = ("database", "external", "business", "background", "jobs", "operations", "streams")
"""Features that the user can include or exclude."""

KINDS: Final = frozenset({"counter", "gauge", "histogram", "summary"})
"""Types of metrics that the dashboard shows."""

QUERY_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
"""Names that PromQL reads without quotes. prometheus_client accepts others too."""

PROCESS_PREFIXES: Final = ("process_", "python_", "threadpool_", "asyncio_")
"""Starts of the names of metrics about the process, some of which exist only while the app runs."""

POOLS: Final = "db_connections_max"
FAMILY_FEATURES: Final = {
    "db_queries": "database",
    POOLS: "database",
    "external_requests": "external",
    "user_registrations": "business",
    "user_logins": "business",
    "orders_created": "business",
    "revenue_generated": "business",
    "background_tasks": "background",
    "operations": "operations",
    "http_time_to_first_byte_seconds": "streams",
}
"""Features by the metrics that have samples if the app uses them."""

JOB_FAMILIES: Final = {"jobs": frozenset({"job", "outcome"}), "job_duration_seconds": frozenset({"job"})}
"""Metrics of jobs with their labels: an app without jobs may have metrics of these names."""


class Features(NamedTuple):
    """The features that rows and panels depend on; `pools` says whether connection pools are measured."""

    database: bool
    pools: bool
    external: bool
    business: bool
    background: bool
    jobs: bool
    operations: bool
    streams: bool
    websockets: bool
    sizes: bool
    exemplars: bool
    traces: bool
    logs: bool
    line_format: LineFormat = JSON
    users_metrics: tuple[UsersMetric, ...] = ()

    @property
    def not_detected(self) -> tuple[str, ...]:
        """The features of `SELECTABLE` that are off."""
        return tuple(name for name in SELECTABLE if not getattr(self, name))


def detect_features(
    app: Any,
    settings: ObserveSettings,
    *,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    running: Iterable[Metric] = (),
) -> Features:
    """Detect features by settings, routes, source and the metrics after import; `include` and `exclude` override it.

    `running` are metrics that were read from the running app. Without them, what the app sets up in its lifespan, such
    as a pool of asyncpg, and metrics that it creates there or in requests are not detected.
    """
    own = [*text_string_to_metric_families(_scrape(app))]
    families = {family.name: family for family in (*own, *running) if family.samples}
    found = {*_used_features(app), *_features_of_families(families)}
    pools = POOLS in families or "database" in include
    if settings.engines:
        found.add("database")
    found = (found | {*include}) - {*exclude}
    return Features(
        database="database" in found,
        pools=pools and "database" in found,
        external="external" in found,
        business="business" in found,
        background="background" in found,
        jobs="jobs" in found,
        operations="operations" in found,
        streams="streams" in found,
        websockets=any(endpoint.websocket for endpoint in list_endpoints(app)),
        sizes=settings.size_histograms,
        exemplars=settings.exemplars and settings.tracing,
        traces=settings.tracing,
        logs=settings.logs,
        line_format=choose_line_format(settings),
        users_metrics=_users_metrics(app.state.observe.metrics, settings, own, families.values()),
    )


def _features_of_families(families: Mapping[str, Metric]) -> Iterator[str]:
    for name, family in families.items():
        if name in FAMILY_FEATURES:
            yield FAMILY_FEATURES[name]
        elif name == "jobs" and _is_of_jobs(describe_family(family)):
            yield "jobs"


def _is_of_jobs(metric: UsersMetric) -> bool:
    return JOB_FAMILIES.get(metric.name, frozenset({""})) <= {*metric.labels}


def _users_metrics(
    metrics: MetricsService, settings: ObserveSettings, own: Iterable[Metric], running: Iterable[Metric]
) -> tuple[UsersMetric, ...]:
    """Return the metrics of the app by name: those of its registry, and those that a running app has besides."""
    found = {metric.name: metric for metric in metrics.users_metrics()}
    internal = {family.name for family in own} - found.keys()
    for family in running:
        metric = describe_family(family)
        is_internal = metrics.is_reserved(metric.name) or metric.name in internal or _is_of_jobs(metric)
        if not is_internal and not metric.name.startswith(PROCESS_PREFIXES):
            labels = tuple(label for label in metric.labels if label not in settings.constant_labels)
            found.setdefault(metric.name, metric._replace(labels=labels))
    return tuple(metric for _, metric in sorted(found.items()) if _can_be_shown(metric))


def _can_be_shown(metric: UsersMetric) -> bool:
    names = (metric.name, *metric.labels)
    return metric.kind in KINDS and not metric.name.endswith("_created") and all(map(QUERY_NAME.fullmatch, names))


def _scrape(app: Any) -> str:
    headers, body = app.state.observe.metrics.render("", "")
    return (gzip.decompress(body) if b"content-encoding" in dict(headers) else body).decode()


def _used_features(app: Any) -> Iterator[str]:
    """Yield features by the annotations of path operations, of everything that they depend on, and by the source."""
    left = [endpoint.function for endpoint in list_endpoints(app) if endpoint.function is not None]
    seen: set[int] = set()
    functions: list[Any] = []
    while left:
        function = _called_function(left.pop())
        if id(function) in seen:
            continue
        seen.add(id(function))
        functions.append(function)
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
    yield from scan_sources(functions)


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
