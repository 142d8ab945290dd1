"""Private names of OpenTelemetry (instrumentors, processors, exporters) and ddtrace, to find what is measured twice.

Where a name is missing, nothing is found.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_METHODS = ("handle_request", "handle_async_request")


def find_client_tracer(client: Any) -> Any:
    """Return the tracer with which contrib's instrumentor measures a client of httpx; None if it does not."""
    for transport in (getattr(client, "_transport", None), *getattr(client, "_mounts", {}).values()):
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
    """Return the exporters of a provider's span processors, and those processors that show none."""
    return [_find_exporter(processor) for processor in _find_processors(provider) or ()]


def has_no_processor(provider: Any) -> bool:
    """Return whether a provider is known to have no span processor but ours, which export nothing of a user's one."""
    processors = _find_processors(provider)
    return processors is not None and all(type(each).__module__.startswith("fastapi_observe.") for each in processors)


def _find_processors(provider: Any) -> list[Any] | None:
    provider = getattr(provider, "provider", provider)  # Logfire's proxy
    processors = getattr(getattr(provider, "_active_span_processor", None), "_span_processors", None)
    return None if processors is None else [getattr(processor, "_inner", processor) for processor in processors]


def _find_exporter(processor: Any) -> Any:
    batch = getattr(processor, "_batch_processor", None)
    return getattr(processor, "span_exporter", None) or getattr(batch, "_exporter", None) or processor


def export_target(exporter: Any, endpoint: str | None = None) -> str | int:
    """Return the URL that an exporter sends to, without its scheme. For any other it is a number of its target."""
    url = endpoint or getattr(exporter, "_endpoint", None)
    return url.partition("://")[2] or url if isinstance(url, str) else id(getattr(exporter, "out", exporter))
