"""`SpanEncoder`: spans as OTLP, byte for byte as OpenTelemetry's encoder writes them, at a fifth of its cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanKind, StatusCode

from fastapi_observe.export.otlp.wire import (
    FIXED32,
    FIXED64,
    RequestEncoder,
    encode_string,
    length_prefixed,
    varint,
)
from fastapi_observe.internal.opentelemetry import span_contents, unwrap_attributes

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import Link, Status, TraceState

MAX_SPAN_NAME_LENGTH: Final = 1024
"""Characters of span names, event names and status descriptions. The SDK limits attributes only."""

_KIND_FIELDS: Final = {
    SpanKind.INTERNAL: b"\x30\x01",
    SpanKind.SERVER: b"\x30\x02",
    SpanKind.CLIENT: b"\x30\x03",
    SpanKind.PRODUCER: b"\x30\x04",
    SpanKind.CONSUMER: b"\x30\x05",
}

NO_STATUS: Final = b"\x7a\x00"

_NO_STATE: Final = INVALID_SPAN_CONTEXT.trace_state
"""The trace state of nearly every span."""

LOCAL: Final = b"\x85\x01" + FIXED32(0x100)
REMOTE: Final = b"\x85\x01" + FIXED32(0x300)
"""The field `flags` of a span or link: "is remote" is known, and its value."""


class SpanEncoder(RequestEncoder):
    """Encodes ended spans, and requests of them."""

    def encode(self, span: ReadableSpan) -> tuple[InstrumentationScope | None, bytes]:
        """Return the scope of a span, and the span as a field of ScopeSpans."""
        return span.instrumentation_scope, b"\x12" + length_prefixed(self.body(span))

    def body(self, span: ReadableSpan) -> bytes:
        """Return a Span message with its fields in the order of their numbers."""
        context: Any = span.context
        parent = span.parent
        attributes, events, links = span_contents(span)
        parts = [
            b"\x0a\x10",
            context.trace_id.to_bytes(16, "big"),
            b"\x12\x08",
            context.span_id.to_bytes(8, "big"),
        ]
        state = context.trace_state
        if state is not _NO_STATE and state:
            parts.append(_trace_state(state))
        if parent:
            parts += (b"\x22\x08", parent.span_id.to_bytes(8, "big"))
        if name := span.name:
            parts += (b"\x2a", length_prefixed(encode_string(name[:MAX_SPAN_NAME_LENGTH])))
        parts.append(_KIND_FIELDS[span.kind])
        if start_time := span.start_time:
            parts += (b"\x39", FIXED64(start_time))
        if end_time := span.end_time:
            parts += (b"\x41", FIXED64(end_time))
        if attributes:
            parts.append(self.attributes.encode(b"\x4a", attributes))
        parts.append(_dropped_count(b"\x50", span.dropped_attributes))
        if events != ():  # else nothing was added, and so nothing dropped
            parts += [b"\x5a" + length_prefixed(self._event(event)) for event in events]
            parts.append(_dropped_count(b"\x60", span.dropped_events))
        if links != ():
            parts += [b"\x6a" + length_prefixed(self._link(link)) for link in links]
            parts.append(_dropped_count(b"\x70", span.dropped_links))
        status = span.status
        parts.append(NO_STATUS if status.status_code is StatusCode.UNSET else _status(status))
        parts.append(REMOTE if parent and parent.is_remote else LOCAL)
        return b"".join(parts)

    def _event(self, event: Event) -> bytes:
        return (
            (b"\x09" + FIXED64(event.timestamp) if event.timestamp else b"")
            + (b"\x12" + length_prefixed(encode_string(event.name[:MAX_SPAN_NAME_LENGTH])) if event.name else b"")
            + self.attributes.encode(b"\x1a", unwrap_attributes(event.attributes or {}))
            + _dropped_count(b"\x20", event.dropped_attributes)
        )

    def _link(self, link: Link) -> bytes:
        return (
            b"\x0a\x10"
            + link.context.trace_id.to_bytes(16, "big")
            + b"\x12\x08"
            + link.context.span_id.to_bytes(8, "big")
            + self.attributes.encode(b"\x22", unwrap_attributes(link.attributes or {}))
            + _dropped_count(b"\x28", link.dropped_attributes)
            + b"\x35"
            + (REMOTE if link.context.is_remote else LOCAL)[2:]
        )


def _dropped_count(tag: bytes, number: int) -> bytes:
    return tag + varint(number) if number else b""


def _status(status: Status) -> bytes:
    body = (
        b"\x12" + length_prefixed(encode_string(status.description[:MAX_SPAN_NAME_LENGTH]))
        if status.description
        else b""
    )
    return b"\x7a" + length_prefixed(body + b"\x18" + varint(status.status_code.value))


def _trace_state(state: TraceState) -> bytes:
    return b"\x1a" + length_prefixed(encode_string(",".join(f"{key}={value}" for key, value in state.items())))
