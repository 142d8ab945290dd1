"""What a request comes with: the trace of its caller, a server span that is open around it, a context left over."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from opentelemetry import trace
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

from fastapi_observe.records.request import CONTEXT_KEY, RecordRef

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from fastapi_observe.records.request import RequestRecord

_TRACEPARENT: Final = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
"""A header of the only version there is."""


def parse_lone_traceparent(exchange: RequestRecord) -> SpanContext | None:
    """Read a `traceparent` that came alone, as most do; None for what OpenTelemetry's reader must judge."""
    headers = exchange.headers
    match = _TRACEPARENT.fullmatch(headers.get(b"traceparent", b""))
    if match is None or b"baggage" in headers or b"tracestate" in headers:
        return None
    if len(headers) != len(exchange.scope["headers"]):  # one came twice
        return None
    trace_id, span_id, flags = match.groups()
    context = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    return context if context.is_valid else None


def is_server_span(span: Span) -> bool:
    """Tell whether a server span of this process is open.

    An unsampled span does not say its kind, and counts: its decision is made, a second span would break the ratio.
    """
    at = span.get_span_context()
    if not at.is_valid or at.is_remote:
        return False
    if span.is_recording():
        return getattr(span, "kind", None) is SpanKind.SERVER
    return getattr(span, "end_time", None) is None


def is_stale_context(context: Context) -> bool:
    """Tell whether a current context belongs to a request that is over.

    asyncio lets a context out of its task (python/cpython#140947): after a pipelined request, or a response without a
    body, uvicorn starts the next request of the connection in the context of the one before.
    """
    current = context.get(CONTEXT_KEY)
    before = current.exchange if isinstance(current, RecordRef) else None
    if current is None or (before is not None and not before.complete):
        return False
    span = trace.get_current_span(context)
    if span.is_recording() and is_server_span(span):
        return False
    return before is None or span is before.span or f"{span.get_span_context().trace_id:032x}" == before.trace_id
