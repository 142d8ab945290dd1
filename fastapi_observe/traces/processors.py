"""Span processors: the one that exports, and a wrapper that makes the user's own safe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import SpanKind

from fastapi_observe.records.fields import current_fields

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, Span

    from fastapi_observe.export.queue import ExportQueue
    from fastapi_observe.internal.errors import InternalErrors


class ExportProcessor(SpanProcessor):
    """Adds sampled spans to the export queue when they end. Never raises and never blocks."""

    def __init__(self, queue: ExportQueue) -> None:
        self._queue = queue
        self._put = queue.put

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span if it is sampled."""
        if span.context.trace_flags & 1:
            self._put(span)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Export the ended spans. Returns whether all of them were exported."""
        return self._queue.flush(timeout_millis / 1000)

    def shutdown(self) -> None:
        """Flush within `shutdown_timeout` and stop. The remaining spans are counted as dropped."""
        self._queue.close()


class FieldsProcessor(SpanProcessor):
    """Sets the fields of a request (`observe.set`) on each span that starts in it, whatever started the span."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Set the fields that the request has now. Attributes that the span was started with are left unchanged.

        A server span inside a request is that of another request, to an app in the same process.
        """
        fields = current_fields(parent_context)
        if fields is not None and span.kind is not SpanKind.SERVER:
            own = span.attributes or {}
            span.set_attributes({name: value for name, value in fields.attributes.items() if name not in own})


class GuardedProcessor(SpanProcessor):
    """Passes spans on to a user's processor until it is shut down, and counts its exceptions.

    OpenTelemetry lets an exception of a processor propagate from `start_span` and `end` into the measured code. And a
    provider that was shut down may still be the global one: its spans must not reach a processor that has ended.
    """

    def __init__(self, inner: SpanProcessor, internal_errors: InternalErrors) -> None:
        self._inner = inner
        self._internal_errors = internal_errors
        self._is_shut_down = False
        # A processor that is not derived from the SDK's class may lack this method, which is not public yet.
        self._takes_ending = hasattr(inner, "_on_ending")

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Pass on the start of a span."""
        if not self._is_shut_down:
            try:
                self._inner.on_start(span, parent_context=parent_context)
            except Exception as exc:  # noqa: BLE001 - a user's processor may raise anything
                self._internal_errors("span_processor.on_start", exc)

    def _on_ending(self, span: Span) -> None:
        """Pass on that a span is about to end: OpenTelemetry's `OnEnding`, which has no public name yet."""
        if not self._is_shut_down and self._takes_ending:
            try:
                self._inner._on_ending(span)  # noqa: SLF001 - see above
            except Exception as exc:  # noqa: BLE001 - as above
                self._internal_errors("span_processor.on_ending", exc)

    def on_end(self, span: ReadableSpan) -> None:
        """Pass on the end of a span."""
        if not self._is_shut_down:
            try:
                self._inner.on_end(span)
            except Exception as exc:  # noqa: BLE001 - as above
                self._internal_errors("span_processor.on_end", exc)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Flush the processor. Returns False if it returns False or raises, so that the next one is flushed too."""
        try:
            return self._is_shut_down or self._inner.force_flush(timeout_millis) is not False
        except Exception as exc:  # noqa: BLE001 - as above
            self._internal_errors("span_processor.force_flush", exc)
            return False

    def shutdown(self) -> None:
        """Shut down the processor. Idempotent."""
        if not self._is_shut_down:
            self._is_shut_down = True
            self._inner.shutdown()
