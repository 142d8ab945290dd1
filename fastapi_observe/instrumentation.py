"""Connects OpenTelemetry's instrumentors of other libraries with an app, whose operations their spans become."""

from __future__ import annotations

from fastapi_observe.instrumentors.calls import SpanCalls
from fastapi_observe.instrumentors.discovery import choose_instrumentors
from fastapi_observe.instrumentors.propagation import guard_propagation
from fastapi_observe.instrumentors.provider import InstrumentorProvider
from fastapi_observe.observability import INSTALLED, Observability
from fastapi_observe.records.request import current_record
from fastapi_observe.traces.provider import ObserveTracerProvider


def attach_instrumentors(observability: Observability) -> None:
    """Switch on the instrumentors that the settings choose, and measure the calls that their spans describe.

    Without instrumentors nothing more runs in a request.
    """
    observability.internal_errors.run_each("instrumentors", lambda: _attach(observability))


def _attach(observability: Observability) -> None:
    settings, tracing = observability.settings, observability.tracing
    if not settings.tracing:
        return
    candidates = choose_instrumentors(settings)
    is_own = isinstance(tracing.provider, ObserveTracerProvider)
    if is_own or candidates:

        def is_responsible() -> bool:
            """Return whether this app reports a call. Apps that share a provider see the spans of all of them."""
            return is_own or _serving_app() is observability

        tracing.observe_calls(SpanCalls(observability, is_responsible, lambda: _inspect_operations(observability)))
    if not candidates:
        return
    instrumentors = observability.instrumentors
    instrumentors.switch_on(candidates, InstrumentorProvider(_serving_app))
    observability.on_close(lambda: _detach(observability))
    if instrumentors.switched_on:
        observability.on_close(guard_propagation())
    instrumentors.log()


def _serving_app() -> Observability | None:
    """Return the app whose provider makes the span of a call: that of the request, or the first with instrumentors."""
    record = current_record()
    app: Observability | None = None if record is None else record.observability
    if app is not None and app.settings.tracing and not app.closed:
        return app
    chosen = (app for app in INSTALLED if app.settings.tracing and app.settings.instrument is not None)
    return next(chosen, None)


def _inspect_operations(observability: Observability) -> None:
    """Compare operations with the calls around them, from the first call on."""

    def stop() -> None:
        Observability.inspecting -= 1

    Observability.inspecting += 1
    observability.on_close(stop)


def _detach(observability: Observability) -> None:
    """Hand the instrumentors over to an app that wanted them too, and switch off the others."""
    for other in INSTALLED:
        observability.instrumentors.hand_over(other.instrumentors)
    observability.instrumentors.switch_off()
