"""`ObserveTracer`: the tracer of the provider that `install` makes."""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.sdk.trace import Tracer
from opentelemetry.trace import NonRecordingSpan, SpanKind

from fastapi_observe.internal.opentelemetry import current_context
from fastapi_observe.records.fields import current_fields
from fastapi_observe.records.request import excluded_signals
from fastapi_observe.records.signal import SIGNAL_BITS
from fastapi_observe.traces.calls import CALL_KINDS, OWN_SCOPE, SpanStart, measure_span
from fastapi_observe.traces.pending import PendingSpan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span
    from opentelemetry.util.types import Attributes

    from fastapi_observe.internal.opentelemetry import SpanFactory
    from fastapi_observe.traces.calls import CallMeasurement

_TRACES: Final = SIGNAL_BITS["traces"]


class ObserveTracer(Tracer):
    """A tracer of the SDK that makes pending spans inside a request that the head sampler did not choose.

    Its spans of calls to other services are measured, whether they are sampled or not. In a request of another app it
    makes the spans of that one's provider: `tracer_of_request` returns its tracer for `names`, the arguments of
    `get_tracer`, or None.
    """

    factory: SpanFactory
    calls: CallMeasurement
    names: tuple[Any, ...]
    tracer_of_request: Callable[[tuple[Any, ...]], trace.Tracer | None]

    def start_span(  # noqa: PLR0913, PLR0917 - OpenTelemetry's signature
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = (),
        start_time: int | None = None,
        record_exception: bool = True,  # noqa: FBT001, FBT002 - as above
        set_status_on_exception: bool = True,  # noqa: FBT001, FBT002 - as above
    ) -> Span:
        """Start a span; a pending one if its parent is pending."""
        span: Span
        is_own = self.factory.scope.name == OWN_SCOPE
        other = None if is_own else self.tracer_of_request(self.names)
        if other is not None:
            return other.start_span(
                name, context, kind, attributes, links, start_time, record_exception, set_status_on_exception
            )
        start_context = current_context() if context is None else context
        parent = trace.get_current_span(start_context)
        observer = self.calls.observer if kind in CALL_KINDS and not is_own else None
        if observer is not None and observer.has_span_of(parent, attributes):
            return NonRecordingSpan(parent.get_span_context())
        # The current context: the one that is given may be new, of what was extracted from headers.
        if excluded_signals(current_context()) & _TRACES:
            span = NonRecordingSpan(parent.get_span_context())  # samplers that do not follow the parent may choose it
        elif isinstance(parent, PendingSpan):
            span = self._start_pending(parent, name, start_context, kind, start_time)
            if isinstance(span, PendingSpan):
                span.set_exception_handling(record=record_exception, set_status=set_status_on_exception)
            if attributes:
                span.set_attributes(attributes)
            for link in links or ():
                span.add_link(link.context, link.attributes)
        else:
            span = super().start_span(
                name, context, kind, attributes, links, start_time, record_exception, set_status_on_exception
            )
        if observer is None:
            return span
        return measure_span(span, observer, SpanStart(name, kind, self.factory.scope.name, context, attributes))

    def _start_pending(
        self, parent: PendingSpan, name: str, context: Context, kind: SpanKind, start_time: int | None
    ) -> Span:
        started = time_ns() if start_time is None else start_time
        span = parent.pending.start_span(parent, self.factory, name, kind, started, context)
        if span is None:
            return NonRecordingSpan(parent.context)
        fields = current_fields(context)
        if fields is not None:
            span.set_attributes(fields.attributes)
        return span
