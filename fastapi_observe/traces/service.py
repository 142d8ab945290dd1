"""The tracing signal: one server span for each request, one span for each operation, and spans of the user's own."""

from __future__ import annotations

from random import getrandbits
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Tracer, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, StatusCode

from fastapi_observe.internal.ids import ID_SOURCE
from fastapi_observe.records.guard import fail_safe, return_no_op
from fastapi_observe.records.request import CONTEXT_KEY, OTEL_CONTEXT
from fastapi_observe.redaction.redactor import Redactor
from fastapi_observe.requests.trust import TrustPolicy
from fastapi_observe.traces.attribute_warnings import throttle_attribute_warnings
from fastapi_observe.traces.context import RANDOM, TraceContext, well_formed_headers
from fastapi_observe.traces.incoming import is_server_span, is_stale_context, parse_lone_traceparent
from fastapi_observe.traces.provider import ObserveTracerProvider, make_provider
from fastapi_observe.traces.recorded_span import FLAGS, RecordedSpan, SpanFactory, UnsampledSpan, is_sdk_compatible
from fastapi_observe.traces.sampling import TraceRateLimit, sampling_threshold
from fastapi_observe.traces.server_span import HeaderCapture, request_attributes, response_attributes, span_name
from fastapi_observe.traces.user_spans import (
    ContextScope,
    SpanScope,
    make_traced,
    record_exception,
    run_in_executor,
    to_otel_attributes,
    well_formed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor

    from opentelemetry.trace import Span

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.records.operation import Operation
    from fastapi_observe.records.request import RequestRecord
    from fastapi_observe.settings.model import ObserveSettings

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.40.0"

_FAILED: Final = frozenset({"server_error", "cancelled", "incomplete_response"})
_SPAN_KEY: Final = next(iter(trace.set_span_in_context(trace.INVALID_SPAN, Context())))
"""The key of the current span in a context."""

_W3C: Final = frozenset({"traceparent", "tracestate", "baggage"})
"""The fields of the propagators that are set unless a user says otherwise."""

MAX_DETAILS: Final = 64
"""Details of an operation that are put on its span without asking for its limits."""

_KINDS: Final = {"database": SpanKind.CLIENT, "external": SpanKind.CLIENT}


class TracingService:
    """Makes spans and carries trace context; built by `install` from the settings."""

    def __init__(self, settings: ObserveSettings, faults: InternalErrors, redactor: Redactor | None = None) -> None:
        self._settings = settings
        self._faults = faults
        self._redactor = redactor or Redactor.from_settings(settings, faults)
        self._capture_request = HeaderCapture(settings.capture_request_headers, "request", self._redactor)
        self._capture_response = HeaderCapture(settings.capture_response_headers, "response", self._redactor)
        self.provider, self._owned = make_provider(settings, faults)
        self._end_bound = throttle_attribute_warnings()
        self.tracer = self.provider.get_tracer("fastapi_observe", schema_url=SCHEMA_URL)
        own = self.provider if isinstance(self.provider, ObserveTracerProvider) else None
        self._threshold = "" if own is None else sampling_threshold(own.bound)
        self._parent_decides = own is not None and own.parent_decides
        self.quota = TraceRateLimit(None) if own is None else own.quota
        self._trust = TrustPolicy(settings.trust_incoming)
        self._factory = None if own is None else self._make_factory(own)
        fields = propagate.get_global_textmap().fields
        self._carriers = {name.lower().encode("latin-1"): name for name in fields}
        self._reads_plain = self._factory is not None and fields <= _W3C and "traceparent" in fields

    def _make_factory(self, provider: ObserveTracerProvider) -> SpanFactory | None:
        scope = InstrumentationScope("fastapi_observe", "", SCHEMA_URL)
        factory = SpanFactory(self.tracer, scope, provider) if isinstance(self.tracer, Tracer) else None
        return factory if factory is not None and is_sdk_compatible(factory) else None

    # The signal: what the door and the clients call

    def on_request_start(self, exchange: RequestRecord) -> None:
        """Adopt the server span that is already open, else start one; give the exchange its ids."""
        around, headers, parent = OTEL_CONTEXT.get(), exchange.headers, None
        links: tuple[Link, ...] = ()
        if around and is_stale_context(around):
            around = Context()
        for name in self._carriers:
            if name in headers:
                carried = True
                break
        else:
            carried = False
        if around or carried:
            current = trace.get_current_span(around)
            if is_server_span(current):
                self._adopt_server_span(exchange, current, around)
                return
            parent = current.get_span_context()
            if carried and self._trust.is_trusted(exchange):
                around, parent = self._extract_parent(exchange, around)
            elif carried:
                links = self._links(exchange)
        if self._factory is not None:
            self._start(self._factory, exchange, around, parent, links)
            return
        span = self.tracer.start_span(
            exchange.method, context=around, kind=SpanKind.SERVER, links=links, start_time=exchange.started_ns
        )
        if span.is_recording():
            span.set_attributes(self._request_attributes(exchange))
        self._assign_span(exchange, span, around)

    def _adopt_server_span(self, exchange: RequestRecord, current: Span, around: Context) -> None:
        exchange.span_adopted = True
        self._assign_span(exchange, current, around)
        if current.is_recording():
            current.set_attributes(self._request_attributes(exchange))

    def _start(
        self,
        factory: SpanFactory,
        exchange: RequestRecord,
        around: Context,
        parent: SpanContext | None,
        links: tuple[Link, ...],
    ) -> None:
        """Start a span as our own provider would: decide as its sampler does, record only what is kept."""
        if parent is None or not parent.is_valid:
            parent = state = None
            exchange.trace_id, exchange.span_id = next(ID_SOURCE.pairs, None) or ID_SOURCE.refill()
            random = RANDOM
            kept = exchange.trace_id[16:] < self._threshold
        else:
            state, random = parent.trace_state, parent.trace_flags & RANDOM
            exchange.trace_id, exchange.span_id = f"{parent.trace_id:032x}", f"{getrandbits(64):016x}"
            kept = parent.trace_flags.sampled if self._parent_decides else exchange.trace_id[16:] < self._threshold
        span: Span
        if kept and self.quota.allow():
            at = int(exchange.trace_id, 16), int(exchange.span_id, 16)
            context = SpanContext(*at, is_remote=False, trace_flags=FLAGS[random | 1], trace_state=state)
            attributes = self._request_attributes(exchange)
            span = factory.start(exchange.method, context, parent, around, attributes, exchange.started_ns)
            exchange.sampled = True
            for link in links:
                span.add_link(link.context)
        else:
            span = UnsampledSpan(exchange.trace_id, exchange.span_id, random, state)
        exchange.span = span
        exchange.context = Context({**around, _SPAN_KEY: span, CONTEXT_KEY: exchange.current})

    def _request_attributes(self, exchange: RequestRecord) -> dict[str, Any]:
        attributes = request_attributes(exchange, self._redactor)
        if self._capture_request:
            attributes.update(self._capture_request.read(exchange.scope.get("headers") or ()))
        return attributes

    def _assign_span(self, exchange: RequestRecord, span: Span, context: Context) -> None:
        """Give the exchange its span, its ids and the context in which its app runs."""
        exchange.span = span
        exchange.context = Context({**context, _SPAN_KEY: span, CONTEXT_KEY: exchange.current})
        at = span.get_span_context()
        exchange.trace_id = f"{at.trace_id:032x}"
        exchange.span_id = f"{at.span_id:016x}"
        exchange.sampled = at.trace_flags.sampled

    def _extract_parent(self, exchange: RequestRecord, around: Context) -> tuple[Context, SpanContext]:
        """Read the context that came with the request, into that of the calling code; return the parent with it."""
        if not around and self._reads_plain:
            parent = parse_lone_traceparent(exchange)
            if parent is not None:
                return around, parent
        carrier: dict[str, list[str]] = {}
        for name, value in exchange.scope["headers"]:
            wanted = self._carriers.get(name)
            if wanted is not None:
                carrier.setdefault(wanted, []).append(value.decode("latin-1"))
        if len(carrier.get("traceparent", ())) > 1:  # W3C Trace Context: a duplicated header restarts the trace
            del carrier["traceparent"]
        received = well_formed_headers({name: ",".join(values) for name, values in carrier.items()})
        around = propagate.extract(received, around)
        return around, trace.get_current_span(around).get_span_context()

    def _links(self, exchange: RequestRecord) -> tuple[Link, ...]:
        """Return what points to the trace that somebody named who is not believed: its ids, no more."""
        named = self._extract_parent(exchange, Context())[1]
        if not named.is_valid:
            return ()
        return (Link(SpanContext(named.trace_id, named.span_id, is_remote=True, trace_flags=named.trace_flags)),)

    def on_response_start(self, exchange: RequestRecord) -> None:
        """Tell an adopted span the route and the status before its owner ends it."""
        span = exchange.span
        if exchange.span_adopted and span is not None and span.is_recording():
            span.update_name(span_name(exchange))
            attributes = response_attributes(exchange, self._settings.repeated_query_threshold, self._redactor)
            span.set_attributes({name: value for name, value in attributes.items() if "body.size" not in name})

    def on_request_end(self, exchange: RequestRecord) -> None:
        """Name the span after its route and end it when the last message of the response was sent."""
        span = exchange.span
        if span is None or not span.is_recording():
            return
        attributes = response_attributes(exchange, self._settings.repeated_query_threshold, self._redactor)
        if self._capture_response:
            attributes.update(self._capture_response.read(exchange.response_headers))
        if exchange.outcome in _FAILED:
            if exchange.exception is not None:
                record_exception(span, exchange.exception, self._redactor)
            span.set_status(StatusCode.ERROR)
        ended = exchange.started_ns + int(exchange.duration * 1e9)
        if isinstance(span, RecordedSpan):
            span.set_trusted_attributes(attributes)
            span.finish(span_name(exchange), ended)
            return
        span.set_attributes(attributes)
        span.update_name(span_name(exchange))
        if not exchange.span_adopted:
            span.end(ended)

    def on_operation_start(self, operation: Operation) -> None:
        """Start the span of an operation and make it the current one; none inside a span that is not sampled."""
        around = OTEL_CONTEXT.get()
        current = around.get(_SPAN_KEY)
        if self._parent_decides and (type(current) is UnsampledSpan or _is_dropped(current)):
            operation.span = current
            return
        kind = _KINDS.get(operation.kind, SpanKind.INTERNAL)
        span: Span
        if isinstance(current, RecordedSpan) and self._factory is not None:
            parent = current.get_span_context()
            flags, state = parent.trace_flags, parent.trace_state
            at = SpanContext(parent.trace_id, getrandbits(64), is_remote=False, trace_flags=flags, trace_state=state)
            span = self._factory.start(operation.name, at, parent, around, {}, time_ns(), kind)
        else:
            span = self.tracer.start_span(well_formed(operation.name), kind=kind)
        operation.span = span
        operation.scope = scope = ContextScope(Context({**around, _SPAN_KEY: span}))
        scope.open()

    def on_operation_end(self, operation: Operation) -> None:
        """End the span of an operation."""
        span = operation.span
        if span is None or operation.scope is None or not span.is_recording():
            return
        details = (
            operation.details if operation.has_otel_details else to_otel_attributes(operation.details, self._redactor)
        )
        if isinstance(span, RecordedSpan) and len(details) < MAX_DETAILS:
            span.set_trusted_attributes(details)
        else:
            span.set_attributes(details)
        refused = operation.outcome == "client_error"
        if operation.exception is not None and not refused:
            record_exception(span, operation.exception, self._redactor)
        elif operation.error_type is not None or not (refused or operation.outcome == "ok"):
            span.set_attribute("error.type", operation.error_type or operation.outcome)
            if not refused:
                span.set_status(StatusCode.ERROR)
        began = getattr(span, "start_time", None)
        ended = time_ns() if began is None else began + int(operation.duration * 1e9)  # the wall clock may have jumped
        if isinstance(span, RecordedSpan):
            span.finish(well_formed(operation.name), ended)
        else:
            span.end(ended)

    # What users call

    @fail_safe("traces.call", return_no_op)
    def span(self, name: str, /, **attributes: Any) -> SpanScope:
        """Open a span around a block: `with tracing.span("price order", items=3) as span:`, or `async with`.

        An exception is recorded, sets status ERROR and `error.type`, and goes on unchanged; success leaves the status
        unset. Attribute types are kept; a value that OpenTelemetry has no type for becomes its text.
        """
        return SpanScope(self.tracer, name, attributes, self._redactor)

    @fail_safe("traces.call", return_no_op)
    def traced(self, name: str | None = None, /, **attributes: Any) -> Callable[[Any], Any]:
        """Decorate a function, coroutine function, generator or async generator: each call is a span."""
        return make_traced(lambda: (self.tracer, self._redactor), name, attributes)

    @fail_safe("traces.call")
    def add_event(self, name: str, /, **attributes: Any) -> None:
        """Note something that happened, on the current span."""
        span = trace.get_current_span()
        if span.is_recording():
            span.add_event(well_formed(self._redactor.text(name)), to_otel_attributes(attributes, self._redactor))

    @fail_safe("traces.call")
    def set_attributes(self, /, **attributes: Any) -> None:
        """Add facts to the current span."""
        span = trace.get_current_span()
        if span.is_recording():
            span.set_attributes(to_otel_attributes(attributes, self._redactor))

    @fail_safe("traces.call")
    def record_error(self, exc: BaseException) -> None:
        """Mark the current span as failed by an exception that was handled."""
        span = trace.get_current_span()
        if span.is_recording():
            record_exception(span, exc, self._redactor)

    @fail_safe("traces.call")
    def current(self) -> TraceContext | None:
        """Return where the calling code stands, or None outside any trace."""
        return TraceContext.current()

    @fail_safe("traces.call", return_no_op)
    def attach(self, trace_context: TraceContext) -> ContextScope:
        """Continue a trace from elsewhere: `with tracing.attach(trace_context):`, spans inside are its children."""
        return ContextScope(trace_context.to_context())

    @fail_safe("traces.call", otherwise=lambda _, headers: headers)
    def inject(self, headers: dict[str, str]) -> dict[str, str]:
        """Add the headers that carry the current trace to `headers`, and return them."""
        propagate.inject(headers)
        return headers

    @fail_safe("traces.call")
    def extract(self, headers: Mapping[str, str]) -> TraceContext | None:
        """Read the trace context of received headers; None if they carry no valid one."""
        return TraceContext.from_headers(headers)

    async def run_in_executor(self, executor: Executor | None, function: Callable[..., Any], /, *args: Any) -> Any:
        """Run `function(*args)` in an executor of threads with the current trace (asyncio itself drops it)."""
        return await run_in_executor(executor, function, *args)

    # Lifetime

    def sample_all(self) -> Callable[[], None]:
        """Keep every trace from now on; call the result to go back. For tests."""
        tracer: Any = self.tracer
        before = self._threshold, self._parent_decides, self.quota, getattr(tracer, "sampler", None)

        def back() -> None:
            self._threshold, self._parent_decides, self.quota, tracer.sampler = before

        self._threshold, self._parent_decides, self.quota = "g", False, TraceRateLimit(None)  # no digit is beyond f
        tracer.sampler = ALWAYS_ON
        return back

    def flush(self, timeout: float) -> bool:
        """Export what has ended, for at most `timeout` seconds; tell whether all of it went."""
        flush = getattr(self.provider, "force_flush", None)
        return flush is None or bool(flush(int(timeout * 1000)))

    def close(self) -> None:
        """Shut down the provider if it is ours."""
        self._end_bound()
        if self._owned and isinstance(self.provider, TracerProvider):
            self.provider.shutdown()


def _is_dropped(span: object) -> bool:
    """Tell whether somebody decided against a trace."""
    if not isinstance(span, NonRecordingSpan):
        return False
    at = span.get_span_context()
    return at.is_valid and not at.trace_flags.sampled
