"""`InstrumentorProvider`: the tracer provider that instrumentors get, which outlives the app that switches them on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry import trace

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from opentelemetry.trace import Span
    from opentelemetry.util.types import Attributes


class InstrumentorProvider(trace.TracerProvider):
    """Gives instrumentors tracers whose spans are those of the app that serves the current request.

    Some keep the first tracer that they get for ever (pymongo), and all serve every app of the process. `find_app`
    returns the `Observability` whose provider is used now, or None.
    """

    def __init__(self, find_app: Callable[[], Any]) -> None:
        self._find_app = find_app

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> trace.Tracer:
        """Return a tracer that looks for the app with each span."""
        names = instrumenting_module_name, instrumenting_library_version, schema_url, attributes
        return InstrumentorTracer(names, self._find_app)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        app = self._find_app()
        return getattr(trace.NoOpTracerProvider() if app is None else app.tracing.provider, name)


class InstrumentorTracer(trace.Tracer):
    """A tracer of the app that serves the current request."""

    def __init__(self, names: tuple[Any, ...], find_app: Callable[[], Any]) -> None:
        self._names = names
        self._find_app = find_app

    def start_span(self, *arguments: Any, **named: Any) -> Span:
        """Start a span."""
        return self._find_tracer().start_span(*arguments, **named)

    def start_as_current_span(self, *arguments: Any, **named: Any) -> AbstractContextManager[Span]:  # type: ignore[override]
        """Start a span and make it the current one."""
        return self._find_tracer().start_as_current_span(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._find_tracer(), name)

    def _find_tracer(self) -> trace.Tracer:
        app = self._find_app()
        if app is None:
            return trace.NoOpTracer()
        # Kept by the app, so that no tracer keeps a closed one alive. Older SDKs make another tracer each time.
        tracers = app.instrumentors.tracers
        tracer: trace.Tracer | None = tracers.get(self)
        if tracer is None:
            tracer = tracers[self] = app.tracing.provider.get_tracer(*self._names)
        return tracer
