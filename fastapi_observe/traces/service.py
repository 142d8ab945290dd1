"""The traces signal: one server span per request, one span per operation, and the user's own spans."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Tracer, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode

from fastapi_observe.internal.errors import Renamed
from fastapi_observe.internal.opentelemetry import (
    GLOBAL_PROVIDER,
    SPAN_KEY,
    SUPPRESSION_KEY,
    RecordedSpan,
    SpanFactory,
    UnsampledSpan,
    current_context,
    is_sdk_compatible,
    new_context,
)
from fastapi_observe.records.fields import current_fields
from fastapi_observe.records.guard import fail_safe, return_no_op
from fastapi_observe.records.ids import ID_SOURCE
from fastapi_observe.records.request import CONTEXT_KEY
from fastapi_observe.redaction.redactor import Redactor
from fastapi_observe.requests.trust import TrustPolicy
from fastapi_observe.settings.environment import without_invalid_variables
from fastapi_observe.traces.attribute_warnings import throttle_attribute_warnings
from fastapi_observe.traces.calls import CallProcessor
from fastapi_observe.traces.context import RANDOM, TraceContext
from fastapi_observe.traces.incoming import (
    extract_parent,
    is_server_span,
    is_span_of_request,
    is_stale_context,
    is_unsampled,
    link_to_caller,
    parse_lone_traceparent,
)
from fastapi_observe.traces.operation_span import MAX_UNCHECKED_DETAILS, describe_operation
from fastapi_observe.traces.pending import DISCARDED, PendingServerSpan, PendingSpan
from fastapi_observe.traces.processors import FieldsProcessor, GuardedProcessor
from fastapi_observe.traces.provider import ObserveTracerProvider, is_user_provider, make_provider
from fastapi_observe.traces.sampling import SAMPLE_ALL, TraceRateLimit, sampling_threshold
from fastapi_observe.traces.server_span import HeaderCapture, request_attributes, response_attributes, span_name
from fastapi_observe.traces.tail_sampling import FAILED_OUTCOMES, TailSampler
from fastapi_observe.traces.user_spans import (
    ContextScope,
    SpanScope,
    links_to_origin,
    make_traced,
    record_exception,
    to_otel_attributes,
    well_formed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor

    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span
    from starlette.types import ASGIApp

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.records.job import JobRecord
    from fastapi_observe.records.operation import Operation
    from fastapi_observe.records.request import RecordRef, RequestRecord
    from fastapi_observe.settings.model import ObserveSettings
    from fastapi_observe.traces.calls import CallObserver

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.40.0"

_W3C_FIELDS: Final = frozenset({"traceparent", "tracestate", "baggage"})
"""Headers of OpenTelemetry's default propagators."""

_PENDING_SPANS: Final = frozenset({PendingSpan, PendingServerSpan})

_INTERNAL: Final = SpanKind.INTERNAL
"""A constant, because the member of an enum costs a call to read in Python 3.11."""

_SPAN_KINDS: Final = {"database": SpanKind.CLIENT, "external": SpanKind.CLIENT}


class TracingService:
    """Makes spans and carries trace context. `install` builds it from the settings."""

    def __init__(
        self, settings: ObserveSettings, internal_errors: InternalErrors, redactor: Redactor | None = None
    ) -> None:
        self._settings = settings
        self._internal_errors = internal_errors
        self._redactor = redactor or Redactor.from_settings(settings, internal_errors)
        self._capture_request = HeaderCapture(settings.capture_request_headers, "request", self._redactor) or None
        self._capture_response = HeaderCapture(settings.capture_response_headers, "response", self._redactor) or None
        with without_invalid_variables():
            self.provider, self._owns_provider = make_provider(settings, internal_errors)
        self._restore_warnings = throttle_attribute_warnings()
        self.tracer = self._server_tracer = self.provider.get_tracer("fastapi_observe", schema_url=SCHEMA_URL)
        own = self.provider if isinstance(self.provider, ObserveTracerProvider) else None
        self._threshold = "" if own is None else sampling_threshold(own.bound)
        self._parent_decides = own is not None and own.parent_decides
        self.rate_limit = TraceRateLimit(None) if own is None else own.rate_limit
        self._trust = TrustPolicy(settings.trust_incoming)
        self._factory = None if own is None else self._make_factory(own)
        self.tail_sampler = self._make_tail_sampler(settings)
        # Read for each request: an attribute costs less than one of another object, or a new bound method.
        self._pending_total = None if self.tail_sampler is None else self.tail_sampler.pending_total
        self._on_late_end = self._decide_late
        self._uses_fields = False
        self._call_observer: CallObserver | None = None
        self._replaced: ObserveTracerProvider | None = None
        self._added_processors: list[SpanProcessor] = []
        self._withdraw: Callable[[], None] = lambda: None
        fields = propagate.get_global_textmap().fields
        self._carriers = {name.lower().encode("latin-1"): name for name in fields}
        self._uses_w3c = self._factory is not None and fields <= _W3C_FIELDS and "traceparent" in fields

    def offer_provider(self) -> None:
        """Make the provider the global one if there is none, until `close`."""
        if isinstance(self.provider, ObserveTracerProvider):
            self._withdraw = GLOBAL_PROVIDER.offer(self.provider, self._join)

    def _make_factory(self, provider: ObserveTracerProvider) -> SpanFactory | None:
        if not isinstance(self.tracer, Tracer):  # OTEL_SDK_DISABLED
            return None
        scope = InstrumentationScope("fastapi_observe", "", SCHEMA_URL)
        factory = SpanFactory(self.tracer, scope, provider, provider.limits)
        return factory if is_sdk_compatible(factory) else None

    def _join(self, provider: trace.TracerProvider) -> None:
        """Use the provider that the user has set after `install`, as if it had been set before."""
        own = self.provider
        if not (isinstance(own, ObserveTracerProvider) and is_user_provider(provider)):
            return
        try:
            for processor in (*self._settings.span_processors, *self._added_processors):
                provider.add_span_processor(GuardedProcessor(processor, self._internal_errors))  # type: ignore[attr-defined]
            self.tracer = self._server_tracer = provider.get_tracer("fastapi_observe", schema_url=SCHEMA_URL)
            # Requests in other threads read these without a lock: first, no further span is made in the own way.
            self._factory = self.tail_sampler = self._pending_total = None
            self.provider, self._replaced, self._owns_provider = provider, own, False
            self._parent_decides, self._uses_w3c = False, False
            own.hand_on()
            if self._uses_fields:
                self._add_processor(FieldsProcessor())
            if self._call_observer is not None:
                self.observe_calls(self._call_observer)
            if own.queue is not None:
                logging.getLogger("fastapi_observe").warning(
                    "A global tracer provider was set after install(app): spans go to it from now on, not to "
                    "otlp_endpoint. Set it before install(app), or pass it as tracer_provider, to choose."
                )
        except Exception as exc:  # noqa: BLE001 - an internal error never reaches the code that sets the provider
            self._internal_errors("traces.join", exc)

    def add_span_processor(self, processor: SpanProcessor) -> None:
        """Pass the spans of this app to a processor of this package, also if the user sets another provider later."""
        self._added_processors.append(processor)
        self._add_processor(processor)

    def _add_processor(self, processor: SpanProcessor) -> None:
        if add := getattr(self.provider, "add_span_processor", None):  # a no-op provider has none
            add(GuardedProcessor(processor, self._internal_errors))

    def observe_calls(self, observer: CallObserver) -> None:
        """Measure the spans of calls that other libraries make, of a user's provider those that it records."""
        self._call_observer = observer
        if isinstance(self.provider, ObserveTracerProvider):
            self.provider.calls.observer = observer
        else:
            self._add_processor(CallProcessor(observer))

    def _make_tail_sampler(self, settings: ObserveSettings) -> TailSampler | None:
        """Return the tail sampler; None if it is switched off, or the user's provider decides about recording."""
        if self._factory is None or not settings.tail_sampling or settings.sampler == "always_off":
            return None
        sampler = TailSampler(
            settings.tail_sampling,
            per_second=settings.tail_samples_per_second,
            slow_request=settings.slow_request_threshold,
            repeat_limit=settings.repeated_query_threshold,
        )
        sampler.pending_total.finish_operation = self._finish_operation
        return sampler

    def use_fields(self, reference: RecordRef) -> None:
        """Put the fields of requests on spans from now on, and those of `reference` on an adopted server span."""
        if not self._uses_fields:
            self._uses_fields = True
            self._add_processor(FieldsProcessor())
        record = reference.record
        if record is not None and record.span_adopted and record.span is not None and reference.fields is not None:
            record.span.set_attributes(reference.fields.attributes)

    def wrap_app(self, app: ASGIApp) -> ASGIApp:
        """Return an app inside the middleware that describes its server spans; here it is the app itself."""
        return app

    # The signal, called by the middleware and the clients

    def on_request_start(self, record: RequestRecord) -> None:
        """Adopt the server span of an outer instrumentation, or start one. Sets the ids of the record."""
        context, headers, parent = current_context(), record.headers, None
        links: tuple[Link, ...] = ()
        if context and is_stale_context(context):
            context = Context()
        carried = not headers.keys().isdisjoint(self._carriers)
        if context:
            current = trace.get_current_span(context)
            if is_server_span(current) and not is_span_of_request(current, context):
                self._adopt_server_span(record, current, context)
                return
            parent = current.get_span_context()
        if carried:
            if self._trust.is_trusted(record):
                context, parent = self._extract_parent(record, context)
            else:
                links = link_to_caller(self._extract_parent(record, Context())[1])
        if self._factory is not None:
            self._start(self._factory, record, context, parent, links)
            return
        span = self._server_tracer.start_span(
            record.method, context=context, kind=SpanKind.SERVER, links=links, start_time=record.started_ns
        )
        if span.is_recording():
            span.set_attributes(self._request_attributes(record))
        self._assign_span(record, span, context)

    def on_job_start(self, record: JobRecord) -> None:
        """Start the span of a job: continue the trace of the message, or start one linked to the code that causes it.

        The headers are trusted: the app passes them itself.
        """
        context, parent = current_context(), None
        if any(name in record.headers for name in self._carriers):
            continued, parent = self._extract_parent(record, context)
            if parent.is_valid:
                context, record.span_kind = continued, SpanKind.CONSUMER
        links = links_to_origin(current_context())
        if self._factory is not None:
            self._start(self._factory, record, context, parent, links)
            return
        span = self.tracer.start_span(
            well_formed(record.endpoint),
            context=context,
            kind=record.span_kind,
            attributes=self._request_attributes(record),
            links=links,
            start_time=record.started_ns,
        )
        self._assign_span(record, span, context)

    def on_job_end(self, record: JobRecord) -> None:
        """End the span of a job."""
        self.on_request_end(record)

    def exclude(self, reference: RecordRef) -> tuple[Context, UnsampledSpan]:
        """Return a context for an excluded request, in which nothing is traced, and the unsampled span in it."""
        context = current_context()
        if is_stale_context(context):
            context = Context()
        span = UnsampledSpan(*(next(ID_SOURCE.pairs, None) or ID_SOURCE.refill()), RANDOM, None)
        within = Context({**context, SPAN_KEY: span, CONTEXT_KEY: reference})
        if reference.record is not None and isinstance(self.provider, ObserveTracerProvider):
            return within, span  # its tracers record nothing here, and measure calls for the other signals
        # Samplers that follow the parent do not sample below this span. Instrumentations of other packages may have
        # another sampler; they look for the suppression key.
        return Context({**within, SUPPRESSION_KEY: True}), span

    def _adopt_server_span(self, record: RequestRecord, current: Span, context: Context) -> None:
        record.span_adopted = True
        self._assign_span(record, current, context)
        if current.is_recording():
            current.set_attributes(self._request_attributes(record))

    def _start(
        self,
        factory: SpanFactory,
        record: RequestRecord,
        context: Context,
        parent: SpanContext | None,
        links: tuple[Link, ...],
    ) -> None:
        """Start a span as the own provider would: decide as its sampler does, record only what is sampled."""
        if parent is None or not parent.is_valid:
            parent = state = None
            record.trace_id, record.span_id = ids = next(ID_SOURCE.pairs, None) or ID_SOURCE.refill()
            random = RANDOM
            chosen = ids[0][16:] < self._threshold
        else:
            state, random = parent.trace_state, parent.trace_flags & RANDOM
            span_id = (next(ID_SOURCE.pairs, None) or ID_SOURCE.refill())[1]
            record.trace_id, record.span_id = ids = parent.trace_id.to_bytes(16).hex(), span_id
            chosen = parent.trace_flags.sampled if self._parent_decides else ids[0][16:] < self._threshold
            # Callers choose the flag and the trace id. Where everything is sampled anyway, they force nothing.
            if chosen and parent.is_remote and self._threshold != SAMPLE_ALL:
                chosen = self.rate_limit.allow()
        span: Span
        if chosen:
            position, attributes = new_context(ids, random | 1, state), self._request_attributes(record)
            span = factory.start(
                record.method, position, parent, context, attributes, record.started_ns, record.span_kind
            )
            record.sampled = "head"
            for link in links:
                span.add_link(link.context)
        elif (total := self._pending_total) is not None:
            span = pending = PendingServerSpan(ids, record.started_ns, record.method, factory, total)
            if parent is not None:
                pending.continue_trace(parent, random)
            if links:
                pending.links = links
        else:
            span = UnsampledSpan(record.trace_id, record.span_id, random, state)
        record.span = span
        added = {SPAN_KEY: span, CONTEXT_KEY: record.current}
        record.context = Context({**context, **added} if context else added)

    def _request_attributes(self, record: RequestRecord) -> dict[str, Any]:
        if record.job:
            return {"fastapi_observe.job": record.endpoint}
        attributes = request_attributes(record, self._redactor)
        if self._capture_request is not None:
            attributes.update(self._capture_request.read(record.scope.get("headers") or ()))
        return attributes

    def _assign_span(self, record: RequestRecord, span: Span, context: Context) -> None:
        """Set span, ids and the context in which the app runs."""
        record.span = span
        record.context = Context({**context, SPAN_KEY: span, CONTEXT_KEY: record.current})
        position = span.get_span_context()
        record.trace_id = f"{position.trace_id:032x}"
        record.span_id = f"{position.span_id:016x}"
        record.sampled = "head" if position.trace_flags.sampled else False

    def _extract_parent(self, record: RequestRecord, context: Context) -> tuple[Context, SpanContext]:
        """Extract the trace context of the request's headers. Returns the context with it, and the parent in it."""
        if not context and self._uses_w3c:
            parent = parse_lone_traceparent(record)
            if parent is not None:
                return context, parent
        return extract_parent(record, context, self._carriers)

    def on_response_start(self, record: RequestRecord) -> None:
        """Set route and status of an adopted span before its owner ends it."""
        span = record.span
        if record.span_adopted and span is not None and span.is_recording():
            span.update_name(span_name(record))
            attributes = response_attributes(record, self._settings.repeated_query_threshold, self._redactor)
            span.set_attributes({name: value for name, value in attributes.items() if "body.size" not in name})

    def on_request_end(self, record: RequestRecord) -> None:
        """Name the span after its route and end it at the time of the last message of the response."""
        span = record.span
        if type(span) is PendingServerSpan:
            # Inline what is decided about nearly every request.
            if span.trace is None and span.parent is None and (sampler := self.tail_sampler) is not None:
                reason = sampler.decide(record)
            else:
                reason = self._decide_part(span, record)
            if reason is not None:
                self._keep(span, record, reason)
                return
            # Hold it until the app returns: a background task may still fail, or the request that has called this one.
            span.end_time = record.started_ns
            record.on_late_end = self._on_late_end
            return
        if span is None or not span.is_recording():
            return
        self._end_server_span(span, record)

    def _decide_part(self, pending: PendingServerSpan, record: RequestRecord) -> str | None:
        """Return the reason to export a request that has spans or a parent; None if there is none."""
        reason, sampler = None if pending.trace is None else pending.trace.reason, self.tail_sampler
        if reason is None and sampler is not None:
            reason = sampler.decide(record)
            if reason is None and pending.parent is not None and (earlier := pending.kept_before) is not None:
                reason = sampler.decide_part(earlier, record)
        return reason

    def _decide_late(self, record: RequestRecord, failed: bool) -> None:  # noqa: FBT001 - by position on the hot path
        """Export the trace of a request whose background task has `failed`. Otherwise, at its very end, discard it.

        A part of a trace that goes on in this process is held for the others.
        """
        pending: Any = record.span
        if not failed:
            if pending.trace is None:
                pending.trace = DISCARDED
            elif pending.discard():
                pending.reopen(record.span_kind, record.context or Context())
                pending.set_attributes(self._request_attributes(record))
                self._end_server_span(pending, record)
                pending.pending.add(pending)
            return
        reason = None if pending.trace is None else pending.trace.reason
        if reason is None and self.tail_sampler is not None:
            reason = self.tail_sampler.decide_late_failure(record)
        if reason is not None:
            record.on_late_end = None
            self._keep(pending, record, reason)

    def _keep(self, pending: PendingServerSpan, record: RequestRecord, reason: str) -> None:
        record.sampled = "tail"
        pending.kind = record.span_kind
        span = pending.keep(reason, record.context or Context(), self._request_attributes(record))
        self._end_server_span(span, record)

    def _end_server_span(self, span: Span, record: RequestRecord) -> None:
        attributes = response_attributes(record, self._settings.repeated_query_threshold, self._redactor)
        if self._capture_response is not None:
            attributes.update(self._capture_response.read(record.response_headers))
        if record.outcome in FAILED_OUTCOMES:
            if record.exception is not None:
                record_exception(span, record.exception, self._redactor)
            span.set_status(StatusCode.ERROR)
        ended = record.started_ns + int(record.duration * 1e9)
        if isinstance(span, RecordedSpan):
            span.set_trusted_attributes(attributes)
            span.finish(span_name(record), ended)
            return
        span.set_attributes(attributes)
        span.update_name(span_name(record))
        if not record.span_adopted:
            span.end(ended)

    def on_operation_start(self, operation: Operation) -> None:
        """Start the span of an operation and make it the current one. Inside an unsampled trace no span is made."""
        context = current_context()
        current = context.get(SPAN_KEY)
        if type(current) in _PENDING_SPANS and self._factory is not None:
            kind = _SPAN_KINDS.get(operation.kind, _INTERNAL)
            parent: Any = current
            child = (parent.trace or parent.pending).start_span(
                parent, self._factory, operation.name, kind, time_ns(), context
            )
            operation.span = child or current
            if child is not None:
                operation.context = Context({**context, SPAN_KEY: child})
                if self._uses_fields and (fields := current_fields(context)) is not None:
                    child.set_attributes(fields.attributes)
            return
        kind = _SPAN_KINDS.get(operation.kind, _INTERNAL)
        span: Span
        if isinstance(current, RecordedSpan) and self._factory is not None:
            span = self._factory.start_child(current, operation.name, context, time_ns(), kind)
        elif self._parent_decides and (type(current) is UnsampledSpan or is_unsampled(current)):
            operation.span = current
            return
        else:
            span = self.tracer.start_span(well_formed(operation.name), kind=kind, links=links_to_origin(context))
        operation.span = span
        operation.context = Context({**context, SPAN_KEY: span})

    def on_operation_end(self, operation: Operation) -> None:
        """End the span of an operation."""
        span = operation.span
        if span is None or operation.context is None:
            return
        if operation.exception is None:
            if type(span) is PendingSpan:
                span.trace.add(span, operation)
                return
            if (
                type(span) is RecordedSpan
                and operation.outcome == "ok"
                and operation.error_type is None
                and operation.has_otel_details
                and len(details := operation.details) < MAX_UNCHECKED_DETAILS
            ):
                # What `_finish_operation` does, for nearly every statement and call.
                span.end_operation(well_formed(operation.name), details, operation.duration)
                return
        if span.is_recording():
            started = getattr(span, "start_time", None)
            ended = time_ns() if started is None else started + int(operation.duration * 1e9)
            self._finish_operation(span, operation, ended)

    def _finish_operation(self, span: Span, operation: Operation, ended: int) -> None:
        """Describe an operation on its span, and end the span."""
        describe_operation(span, operation, self._redactor)
        if isinstance(span, RecordedSpan):
            span.finish(well_formed(operation.name), ended)
        else:
            span.update_name(well_formed(operation.name))
            span.end(ended)

    # Public methods

    @fail_safe("traces.call", return_no_op)
    def span(self, name: str, /, **attributes: Any) -> SpanScope:
        """Open a span context a block: `with tracing.span("price order", items=3) as span:`, or `async with`.

        An exception is recorded, sets status ERROR and `error.type`, and propagates unchanged; success leaves the
        status unset. Attributes keep their type; a value of a type that OpenTelemetry does not have becomes a string.
        """
        return SpanScope(self.tracer, name, attributes, self._redactor)

    event = Renamed("add_event")
    keep_all = Renamed("sample_all")

    @fail_safe("traces.call", return_no_op)
    def traced(self, name: str | None = None, /, **attributes: Any) -> Callable[[Any], Any]:
        """Decorate a function, coroutine function, generator or async generator. Each call is a span."""
        return make_traced(lambda: (self.tracer, self._redactor), name, attributes)

    @fail_safe("traces.call")
    def add_event(self, name: str, /, **attributes: Any) -> None:
        """Add an event to the current span."""
        span = trace.get_current_span()
        if span.is_recording():
            span.add_event(well_formed(self._redactor.text(name)), to_otel_attributes(attributes, self._redactor))

    @fail_safe("traces.call")
    def set_attributes(self, /, **attributes: Any) -> None:
        """Set attributes of the current span."""
        span = trace.get_current_span()
        if span.is_recording():
            span.set_attributes(to_otel_attributes(attributes, self._redactor))

    @fail_safe("traces.call")
    def record_error(self, exc: BaseException) -> None:
        """Record a handled exception on the current span, and set its status to ERROR."""
        if (span := trace.get_current_span()).is_recording():
            record_exception(span, exc, self._redactor)

    @fail_safe("traces.call")
    def current(self) -> TraceContext | None:
        """Return the trace context of the calling code, or None outside any trace."""
        return TraceContext.current()

    @fail_safe("traces.call", return_no_op)
    def attach(self, trace_context: TraceContext) -> ContextScope:
        """Continue another trace: `with tracing.attach(trace_context):`. Spans inside the block are its children."""
        return ContextScope(trace_context.to_context())

    @fail_safe("traces.call", fallback=lambda _, headers: headers)
    def inject(self, headers: dict[str, str]) -> dict[str, str]:
        """Add the headers of the current trace context to `headers`, and return `headers`."""
        propagate.inject(headers)
        return headers

    @fail_safe("traces.call")
    def extract(self, headers: Mapping[str, str]) -> TraceContext | None:
        """Read the trace context of received headers. Returns None if they contain no valid one."""
        return TraceContext.from_headers(headers)

    async def run_in_executor(self, executor: Executor | None, function: Callable[..., Any], /, *args: Any) -> Any:
        """Run `function(*args)` in an executor of threads with the current trace, which asyncio itself drops."""
        call = functools.partial(contextvars.copy_context().run, function, *args)
        return await asyncio.get_running_loop().run_in_executor(executor, call)

    # Lifetime

    def sample_all(self) -> Callable[[], None]:
        """Sample every trace from now on, for tests. Returns a function that reverts this."""
        tracer: Any = self.tracer
        before = self._threshold, self._parent_decides, self.rate_limit, getattr(tracer, "sampler", None)

        def restore() -> None:
            self._threshold, self._parent_decides, self.rate_limit, tracer.sampler = before

        self._threshold, self._parent_decides, self.rate_limit = SAMPLE_ALL, False, TraceRateLimit(None)
        tracer.sampler = ALWAYS_ON
        return restore

    def flush(self, timeout: float) -> bool:
        """Export the ended spans within `timeout` seconds. Returns whether all of them were exported."""
        flush = getattr(self.provider, "force_flush", None)
        is_flushed = flush is None or bool(flush(int(timeout * 1000)))
        if self._replaced is not None and self._replaced.queue is not None:
            is_flushed = self._replaced.queue.flush(timeout) and is_flushed
        return is_flushed

    def close(self) -> None:
        """Shut down the provider if `install` made it."""
        self._restore_warnings()
        self._withdraw()
        if self._owns_provider and isinstance(self.provider, TracerProvider):
            self.provider.shutdown()
        elif self._replaced is not None and self._replaced.queue is not None:
            self._replaced.queue.close()
