"""Checks of what reports the same a second time: other instrumentation, exporters, a route, console handlers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastapi_observe.doctor.check import Check
from fastapi_observe.doctor.instrumentation import (
    export_headers,
    export_target,
    find_client_tracer,
    find_engine_tracers,
    find_tracer_of_all_clients,
    is_traced_by_datadog,
    list_exporters,
)
from fastapi_observe.instrumentors.provider import InstrumentorTracer
from fastapi_observe.internal.version import documentation_url
from fastapi_observe.traces.processors import ExportProcessor
from fastapi_observe.traces.provider import HandingOnTracer
from fastapi_observe.traces.tracer import ObserveTracer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fastapi_observe.observability import Observability

OTHER_MIDDLEWARE: Final = {
    "prometheus_fastapi_instrumentator": "the metrics",
    "starlette_exporter": "the metrics",
    "starlette_prometheus": "the metrics",
    "elasticapm": "the spans",
}
"""Packages whose middleware measures requests too, and the signal of fastapi-observe that covers the same."""

CONTRIB: Final = "opentelemetry"
"""The package whose middleware adds no span to the server span of fastapi-observe."""

MERGING_TRACERS: Final = ObserveTracer, InstrumentorTracer, HandingOnTracer
"""Tracers that make no second span of a call that our clients measure."""

SUBJECT: Final = "duplicates"


def check_duplicates(observability: Observability, server_spans: Iterable[str] = ()) -> Iterator[Check]:
    """Find what reports the same a second time. `server_spans` are those that were seen inside a server span."""
    found = [
        *_check_middleware(observability),
        *_check_calls(observability),
        *_check_exporters(observability),
        *_check_lines(observability),
    ]
    for name in server_spans:
        step = "start it with tracing.span or with kind INTERNAL, or remove what starts it"
        found.append(Check(SUBJECT, "look", f"{name} is a second server span of the same request", step))
    yield from found or [Check(SUBJECT, "ok", "nothing else measures the app or writes its lines")]


def _check_middleware(observability: Observability) -> Iterator[Check]:
    app, settings = observability.app, observability.settings
    for middleware in app.user_middleware:
        package = str(getattr(middleware.cls, "__module__", "")).partition(".")[0]
        name = getattr(middleware.cls, "__name__", package)
        if package in OTHER_MIDDLEWARE:
            step = f"remove it if {OTHER_MIDDLEWARE[package]} of fastapi-observe are enough"
            yield Check(SUBJECT, "look", f"the middleware {name} of {package} measures requests too", step)
        elif package == CONTRIB:
            found = f"the middleware {name} of {package} adds no span; its hooks and metrics stay"
            yield Check(SUBJECT, "ok", found)
    if settings.tracing and is_traced_by_datadog(app):
        step = "set DD_TRACE_FASTAPI_ENABLED=false and DD_TRACE_STARLETTE_ENABLED=false"
        yield Check(SUBJECT, "look", "ddtrace makes spans of its own for each request", step)
    if (
        settings.metrics
        and settings.metrics_port is None
        and any(getattr(route, "path", None) == settings.metrics_path for route in app.routes)
    ):
        yield Check(
            SUBJECT,
            "wrong",
            f"the app has its own route {settings.metrics_path}, which clients with access to ours cannot reach",
            "remove it (Instrumentator().expose(app)), or set metrics_path to another path",
        )


def _check_calls(observability: Observability) -> Iterator[Check]:
    """Find instrumentors whose spans do not become one with those of our clients: their provider is another one."""
    if not observability.settings.tracing:
        return
    clients = [find_client_tracer(client) for client in observability.http_clients.observed]
    if not clients and _is_second(find_tracer_of_all_clients()):
        found = "HTTPXClientInstrumentor has another tracer provider: calls of HttpClientDep have two spans"
        yield Check(SUBJECT, "look", found, "instrument httpx without a tracer_provider")
    for kind, name, tracers in (
        ("client", "HTTPXClientInstrumentor", clients),
        ("engine", "SQLAlchemyInstrumentor", _engine_tracers()),
    ):
        count = sum(map(_is_second, tracers))
        if count:
            found = f"{name} makes a second span of each call of {count} instrumented {kind}{'s' * (count > 1)}"
            yield Check(SUBJECT, "look", found, f"instrument the {kind} with one of the two only")


def _is_second(tracer: object) -> bool:
    return tracer is not None and not isinstance(tracer, MERGING_TRACERS)


def _engine_tracers() -> Iterator[object]:
    for engine, tracer in find_engine_tracers():
        from fastapi_observe.clients.database.sqlalchemy import OBSERVED_ATTRIBUTE  # noqa: PLC0415 - optional

        if hasattr(engine, OBSERVED_ATTRIBUTE):
            yield tracer


def _check_exporters(observability: Observability) -> Iterator[Check]:
    """Find targets that get each span more than once."""
    if not observability.settings.tracing:
        return
    settings = observability.settings
    own_headers = {name: value.get_secret_value() for name, value in settings.otlp_headers.items()}
    exporters: dict[tuple[str | int, frozenset[tuple[str, str]]], list[object]] = {}
    for exporter in list_exporters(observability.tracing.provider):
        is_own = isinstance(exporter, ExportProcessor)
        target = export_target(exporter, settings.traces_url if is_own else None)
        headers = export_headers(exporter, own_headers if is_own else None)
        exporters.setdefault((target, headers), []).append(exporter)
    for (target, _), same in exporters.items():
        if len(same) > 1:
            to = f" to {observability.redactor.text(target)}" if isinstance(target, str) else ""
            found = f"each span is exported {len(same)} times{to} ({type(same[-1]).__name__})"
            step = "remove all but one from span_processors and from the tracer provider"
            if any(isinstance(exporter, ExportProcessor) for exporter in same):
                found = f"each span is exported {len(same)} times{to}, by otlp_endpoint and span_processors"
                step = "remove the exporter from span_processors, or unset otlp_endpoint"
            yield Check(SUBJECT, "look", found, step)


def _check_lines(observability: Observability) -> Iterator[Check]:
    if observability.settings.logs and observability.settings.capture_logging:
        for text in observability.logs.console_handlers():
            yield Check(SUBJECT, "look", text.rstrip("."), f"see {documentation_url('how-to/logging')}")
