"""The span of a sampled request or operation: the SDK's span, made and ended at a fraction of its cost.

The SDK asks the sampler, checks every attribute and copies the span at its end. Here the decision is made already, the
attributes are our own, and nobody can change the span once it has ended. This is the one place that relies on how the
SDK's span is built; `fits` tells whether the installed SDK still is so.
"""

# ruff: noqa: SLF001 - see above

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import ReadableSpan, Span, Tracer
from opentelemetry.sdk.util import BoundedList
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState

from fastapi_observe.internal.forks import register_at_fork

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.util.types import Attributes

    from fastapi_observe.traces.provider import ObserveTracerProvider

FLAGS: Final = tuple(TraceFlags(bits) for bits in range(4))
"""Every combination of the flags that are known: sampled, and random (W3C Trace Context, Level 2)."""


class UnsampledSpan(NonRecordingSpan):
    """The server span of a request that is not sampled: ids, and a context made when somebody asks for it."""

    def __init__(self, trace_id: str, span_id: str, random: int, state: TraceState | None) -> None:
        self._parts = trace_id, span_id, random, state

    @cached_property
    def _context(self) -> SpanContext:  # type: ignore[override]
        trace_id, span_id, random, state = self._parts
        return SpanContext(
            int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=FLAGS[random], trace_state=state
        )


class SpanFactory:
    """What all our spans of one tracer share."""

    __slots__ = ("__weakref__", "_provider", "length", "limits", "processor", "resource", "scope", "width")

    def __init__(self, tracer: Tracer, scope: InstrumentationScope, provider: ObserveTracerProvider) -> None:
        self._provider = provider
        self.processor = tracer.span_processor
        self.resource = provider.resource
        self.scope = scope
        self.limits = limits = provider.limits
        self.width = limits.max_span_attributes
        self.length = limits.max_span_attribute_length
        register_at_fork(self, SpanFactory._reset_after_fork)  # after the provider, which names the child first

    def _reset_after_fork(self) -> None:
        self.resource = self._provider.resource

    def start(  # noqa: PLR0913, PLR0917 - what a span begins with
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        around: Context,
        attributes: dict[str, Any],
        start_time: int,
        kind: SpanKind = SpanKind.SERVER,
    ) -> RecordedSpan:
        """Start a span. `attributes` are of OpenTelemetry's types and short; `start_time` is in nanoseconds."""
        span = RecordedSpan(self, name, context, parent, attributes, start_time, kind)
        self.processor.on_start(span, parent_context=around)
        return span


class RecordedSpan(Span):
    """A span that is being recorded."""

    def __init__(  # noqa: PLR0913, PLR0917 - what a span is made of
        self,
        factory: SpanFactory,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        attributes: dict[str, Any],
        start_time: int,
        kind: SpanKind,
    ) -> None:
        ReadableSpan.__init__(
            self,
            name,
            context,
            parent,
            factory.resource,
            kind=kind,
            start_time=start_time,
            instrumentation_scope=factory.scope,
        )
        self._sampler = self._trace_config = self._record_end_metrics = None
        self._record_exception = self._set_status_on_exception = True
        self._span_processor = factory.processor
        self._limits = factory.limits
        self._lock = threading.Lock()
        self._own = BoundedAttributes(factory.width, immutable=False, max_value_len=factory.length)
        self._own._dict = attributes
        self._attributes = self._own

    def set_trusted_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Set attributes that need no check: of OpenTelemetry's types, short and few."""
        self._own._dict.update(attributes)

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        """Add an event."""
        if not self._events:
            self._events = BoundedList(self._limits.max_events)
        super().add_event(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        """Add a link."""
        if not self._links:
            self._links = BoundedList(self._limits.max_links)
        super().add_link(context, attributes)

    def finish(self, name: str, end_time: int) -> None:
        """Name and end the span; nothing can change it from now on, so it is handed on as it is."""
        if self._end_time is not None:
            return
        with self._lock:
            self._name = name
            self._end_time = end_time
            self._own._immutable = True
        self._span_processor._on_ending(self)
        self._span_processor.on_end(self)


def is_sdk_compatible(factory: SpanFactory) -> bool:
    """Tell whether a span can be made, changed and ended with the installed SDK."""
    try:
        span = RecordedSpan(factory, "GET", trace.INVALID_SPAN_CONTEXT, None, {"a": 1}, 1, SpanKind.SERVER)
        span._span_processor = type(factory.processor)()
        span.set_attribute("b", 2)
        span.set_trusted_attributes({"c": 3})
        span.set_status(StatusCode.ERROR)
        span.add_event("event", {"d": 4})
        span.record_exception(ValueError())
        span.add_link(trace.INVALID_SPAN_CONTEXT)
        span.finish("GET /", 2)
    except Exception:  # noqa: BLE001 - whatever a later SDK does
        return False
    return dict(span.attributes or {}) == {"a": 1, "b": 2, "c": 3} and bool(span.events) and not span.is_recording()
