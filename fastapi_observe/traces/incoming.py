"""The trace context that a request arrives with: of its caller, of an open server span, or of an earlier request."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from opentelemetry import propagate, trace
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind

from fastapi_observe.internal.opentelemetry import new_context
from fastapi_observe.records.request import CONTEXT_KEY, RecordRef
from fastapi_observe.records.signal import SIGNAL_BITS
from fastapi_observe.traces.context import well_formed_headers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from fastapi_observe.records.request import RequestRecord

_TRACEPARENT: Final = re.compile(rb"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
"""A `traceparent` of version 00 with valid ids."""


def parse_lone_traceparent(record: RequestRecord) -> SpanContext | None:
    """Return the span context of a `traceparent` without `tracestate` and `baggage`, the usual case.

    Returns None for headers that need OpenTelemetry's propagator.
    """
    headers = record.headers
    match = _TRACEPARENT.fullmatch(headers.get(b"traceparent", b""))
    if match is None or b"baggage" in headers or b"tracestate" in headers:
        return None
    if len(headers) != len(record.scope["headers"]):  # a header occurs twice
        return None
    trace_id, span_id, flags = match.groups()
    return new_context((trace_id, span_id), int(flags, 16), None, is_remote=True)


def extract_parent(
    record: RequestRecord, context: Context, carriers: Mapping[bytes, str]
) -> tuple[Context, SpanContext]:
    """Extract the trace context of a request's headers. Returns the context with it, and the parent in it.

    `carriers` are the headers that the global propagator reads, by their lower-case names.
    """
    carrier: dict[str, list[str]] = {}
    for name, value in record.scope["headers"]:
        field = carriers.get(name)
        if field is not None:
            carrier.setdefault(field, []).append(value.decode("latin-1"))
    if len(carrier.get("traceparent", ())) > 1:  # W3C Trace Context: a duplicated header restarts the trace
        del carrier["traceparent"]
    received = well_formed_headers({name: ",".join(values) for name, values in carrier.items()})
    context = propagate.extract(received, context)
    return context, trace.get_current_span(context).get_span_context()


def link_to_caller(parent: SpanContext) -> tuple[Link, ...]:
    """Return a link to the trace that an untrusted caller sent. It contains the ids only."""
    if not parent.is_valid:
        return ()
    return (Link(SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=parent.trace_flags)),)


def is_server_span(span: Span) -> bool:
    """Return whether a span is an open server span of this process.

    An unsampled span has no kind and counts as one: its trace was decided, a second decision would break the ratio.
    """
    position = span.get_span_context()
    if not position.is_valid or position.is_remote:
        return False
    if span.is_recording():
        return getattr(span, "kind", None) is SpanKind.SERVER
    return getattr(span, "end_time", None) is None


def is_span_of_request(span: Span, context: Context) -> bool:
    """Return whether a span describes a request of an installed app already, which calls this one in the process.

    What a request that is excluded from traces calls is excluded too.
    """
    reference = context.get(CONTEXT_KEY)
    if not isinstance(reference, RecordRef) or reference.excluded & SIGNAL_BITS["traces"]:
        return False
    return reference.record is not None and reference.record.span is span


def is_stale_context(context: Context) -> bool:
    """Return whether a context belongs to a request that has ended.

    asyncio callbacks inherit the context of the code that schedules them (python/cpython#140947): after a pipelined
    request, or a response without a body, uvicorn starts the next request of the connection in the previous context.
    """
    current = context.get(CONTEXT_KEY)
    before = current.record if isinstance(current, RecordRef) else None
    if current is None or (before is not None and not before.complete):
        return False
    span = trace.get_current_span(context)
    if span.is_recording() and is_server_span(span):
        return False
    return before is None or span is before.span or f"{span.get_span_context().trace_id:032x}" == before.trace_id


def is_unsampled(span: object) -> bool:
    """Return whether a span belongs to a trace that another instrumentation has not sampled."""
    if not isinstance(span, NonRecordingSpan):
        return False
    position = span.get_span_context()
    return position.is_valid and not position.trace_flags.sampled
