"""Private names of OpenTelemetry (instrumentors, processors, exporters) and ddtrace, to find what is measured twice.

Where a name is missing, nothing is found.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

from fastapi_observe.traces.processors import ExportProcessor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_METHODS = ("handle_request", "handle_async_request")
_EXPORTING: Final = (BatchSpanProcessor, SimpleSpanProcessor, ExportProcessor)
_LOOPBACK: Final = re.compile(r"^(?:127\.0\.0\.1|\[::1\])(?=:|$)")
_SDK_HEADERS: Final = {"content-type", "content-encoding", "user-agent"}
_TRACES_PATH: Final = "/v1/traces"


def find_client_tracer(client: Any) -> Any:
    """Return the tracer with which contrib's instrumentor measures a client of httpx; None if it does not."""
    return _find_transport_tracer((getattr(client, "_transport", None), *getattr(client, "_mounts", {}).values()))


def find_tracer_of_all_clients() -> Any:
    """Return the tracer with which contrib's instrumentor measures all clients of httpx; None if it does not."""
    module = sys.modules.get("httpx")
    return _find_transport_tracer(getattr(module, name, None) for name in ("HTTPTransport", "AsyncHTTPTransport"))


def _find_transport_tracer(transports: Iterable[Any]) -> Any:
    for transport in transports:
        for method in _METHODS:
            wrapper = getattr(getattr(transport, method, None), "_self_wrapper", None)
            tracer = getattr(wrapper, "keywords", {}).get("tracer")
            if tracer is not None:
                return real_tracer(tracer)
    return None


def find_engine_tracers() -> Iterator[tuple[Any, Any]]:
    """Yield each engine that contrib's instrumentor of SQLAlchemy measures, with its tracer."""
    module: Any = sys.modules.get("opentelemetry.instrumentation.sqlalchemy.engine")
    listeners = getattr(getattr(module, "EngineTracer", None), "_remove_event_listener_params", ())
    for reference, event, function in tuple(listeners):
        engine = reference()
        if event == "before_cursor_execute" and engine is not None:
            yield engine, real_tracer(getattr(getattr(function, "__self__", None), "tracer", None))


def is_traced_by_datadog(app: Any) -> bool:
    """Return whether ddtrace makes spans of an app's requests. It marks the framework whose requests it traces."""
    packages = (cls.__module__.partition(".")[0] for cls in type(app).__mro__)
    framework = next((package for package in packages if package in {"fastapi", "starlette"}), "")
    return bool(getattr(sys.modules.get(framework), "_datadog_patch", False))


def real_tracer(tracer: Any) -> Any:
    """Return the tracer that one from before the first provider now passes its calls on to."""
    return getattr(tracer, "_tracer", tracer)


def list_exporters(provider: Any) -> list[Any]:
    """Return the exporters of a provider's span processors, and those processors that may not export every span."""
    return [_find_exporter(processor) for processor in _find_processors(provider) or ()]


def has_no_processor(provider: Any) -> bool:
    """Return whether a provider is known to have no span processor but ours, which export nothing of a user's one."""
    processors = _find_processors(provider)
    return processors is not None and all(type(each).__module__.startswith("fastapi_observe.") for each in processors)


def _find_processors(provider: Any) -> list[Any] | None:
    provider = getattr(provider, "provider", provider)  # Logfire's proxy
    processors = getattr(getattr(provider, "_active_span_processor", None), "_span_processors", None)
    return None if processors is None else [getattr(processor, "_inner", processor) for processor in processors]


def find_service_name(provider: Any) -> str | None:
    """Return the service name in the resource of a provider; None if there is none."""
    resource = getattr(getattr(provider, "provider", provider), "resource", None)
    name = getattr(resource, "attributes", {}).get("service.name")
    return None if name is None else str(name)


def exports_otlp(provider: Any) -> bool:
    """Return whether a provider has an exporter with an endpoint."""
    return any(isinstance(export_target(exporter), str) for exporter in list_exporters(provider))


def _find_exporter(processor: Any) -> Any:
    if type(processor) not in _EXPORTING:  # a subclass may choose among the spans
        return processor
    batch = getattr(processor, "_batch_processor", None)
    return getattr(processor, "span_exporter", None) or getattr(batch, "_exporter", None) or processor


def export_target(exporter: Any, endpoint: str | None = None) -> str | int:
    """Return the place that an exporter sends to: host, port and path. For any other it is a number of its target."""
    url = endpoint or getattr(exporter, "_endpoint", None)
    if not isinstance(url, str):
        return id(getattr(exporter, "out", exporter))
    host, _, path = (url.partition("://")[2] or url).partition("/")
    path = f"/{path}".rstrip("/").removesuffix(_TRACES_PATH).rstrip("/")
    return _LOOPBACK.sub("localhost", host.lower()) + path


def export_headers(exporter: Any, headers: Mapping[str, str] | None = None) -> frozenset[tuple[str, str]]:
    """Return the headers that the user gave an exporter, such as one that names the tenant."""
    found = headers or getattr(getattr(exporter, "_client", exporter), "_headers", None) or {}
    pairs = found.items() if isinstance(found, Mapping) else found
    return frozenset((str(name).lower(), str(value)) for name, value in pairs if str(name).lower() not in _SDK_HEADERS)
