"""`GuardedPropagator`: applies `propagate_to` and `propagate_baggage` to what instrumentors send."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry import propagate, trace
from opentelemetry.propagators.textmap import TextMapPropagator, default_setter

from fastapi_observe.instrumentors.calls import SpanCall
from fastapi_observe.instrumentors.conventions import http_host, layer_of
from fastapi_observe.internal.opentelemetry import current_context
from fastapi_observe.records.operation import current_operation

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context
    from opentelemetry.propagators.textmap import CarrierT, Setter


class GuardedPropagator(TextMapPropagator):
    """The global propagator, which instrumentors call with no regard to the host.

    Inside the span of a call, the headers of an HTTP request get the trace context if its host may receive it, and of
    the baggage what may be sent. Everywhere else it is the propagator inside.
    """

    def __init__(self, inner: TextMapPropagator) -> None:
        self.inner = inner

    @property
    def fields(self) -> set[str]:
        """The headers that are written."""
        return self.inner.fields

    def extract(self, *arguments: Any, **named: Any) -> Context:
        """Return a context with what the headers of a carrier say."""
        return self.inner.extract(*arguments, **named)

    def inject(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        setter: Setter[CarrierT] = default_setter,
    ) -> None:
        """Write the trace context into a carrier, unless it is sent to a host that must not have it."""
        call = current_operation()
        if isinstance(call, SpanCall) and trace.get_current_span(context) is call.span:
            policy = call.observability.external.propagation
            attributes = call.attributes()
            if layer_of(attributes) == "http" and not policy.allows(http_host(attributes) or ""):
                return
            context = policy.with_allowed_baggage(current_context() if context is None else context)
        self.inner.inject(carrier, context, setter)

    def remove(self) -> None:
        """Put the propagator inside back in its place, unless another one was set since."""
        current = propagate.get_global_textmap()
        if current is self:
            propagate.set_global_textmap(self.inner)
        while isinstance(current, GuardedPropagator):  # of another app, installed later
            if current.inner is self:
                current.inner = self.inner
            current = current.inner


def guard_propagation() -> Callable[[], None]:
    """Guard the global propagator. Returns a function that reverts this."""
    guard = GuardedPropagator(propagate.get_global_textmap())
    propagate.set_global_textmap(guard)
    return guard.remove
