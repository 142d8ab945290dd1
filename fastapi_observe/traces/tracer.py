"""`ObserveTracer`: the tracer of the provider that `install` makes."""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.sdk.trace import Tracer
from opentelemetry.trace import NonRecordingSpan, SpanKind

from fastapi_observe.internal.opentelemetry import OTEL_CONTEXT
from fastapi_observe.records.fields import current_fields
from fastapi_observe.traces.calls import CALL_KINDS, OWN_SCOPE, SpanStart, measure_span
from fastapi_observe.traces.pending import PendingSpan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span
    from opentelemetry.util.types import Attributes

    from fastapi_observe.internal.opentelemetry import SpanFactory
    from fastapi_observe.traces.calls import CallMeasurement


class ObserveTracer(Tracer):
    """A tracer of the SDK that makes pending spans inside a request that the head sampler did not choose.

    Its spans of calls to other services are measured, whether they are sampled or not.
    """

    factory: SpanFactory
    calls: CallMeasurement

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
        parent = trace.get_current_span(context)
        is_call = kind in CALL_KINDS and self.factory.scope.name != OWN_SCOPE
        observer = self.calls.observer if is_call else None
        if observer is not None and observer.has_span_of(parent, attributes):
            return NonRecordingSpan(parent.get_span_context())
        if isinstance(parent, PendingSpan):
            span = self._start_pending(parent, name, context, kind, start_time)
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
        self, parent: PendingSpan, name: str, context: Context | None, kind: SpanKind, start_time: int | None
    ) -> Span:
        started = time_ns() if start_time is None else start_time
        start_context = OTEL_CONTEXT.get() if context is None else context
        span = parent.start_child(self.factory, name, kind, started, start_context)
        if span is None:
            return NonRecordingSpan(parent.context)
        fields = current_fields(context)
        if fields is not None:
            span.set_attributes(fields.attributes)
        return span
