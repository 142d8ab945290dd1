"""Span processors: the one that exports, and those of others made harmless."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import SpanProcessor

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, Span

    from fastapi_observe.export.queue import ExportQueue
    from fastapi_observe.internal.errors import InternalErrors


class ExportProcessor(SpanProcessor):
    """Puts sampled spans into the export queue when they end. Never raises, never waits."""

    def __init__(self, queue: ExportQueue) -> None:
        self._queue = queue
        self._put = queue.put

    def on_end(self, span: ReadableSpan) -> None:
        """Take a span, if it is sampled."""
        if span.context.trace_flags & 1:
            self._put(span)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Export what has ended; tell whether all of it went."""
        return self._queue.flush(timeout_millis / 1000)

    def shutdown(self) -> None:
        """Flush within `shutdown_timeout`, and end; what is left is counted as dropped."""
        self._queue.close()


class GuardedProcessor(SpanProcessor):
    """Passes spans on to another processor until it is shut down.

    OpenTelemetry lets an exception of a processor out of `start_span` and `end`, into the code that is measured. And
    a provider that was shut down may still be the global one: its spans must not reach a processor that has ended.
    """

    def __init__(self, inner: SpanProcessor, faults: InternalErrors) -> None:
        self._inner = inner
        self._faults = faults
        self._ended = False

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Pass the start of a span on."""
        if not self._ended:
            try:
                self._inner.on_start(span, parent_context=parent_context)
            except Exception as exc:  # noqa: BLE001 - a user's processor raises what it likes
                self._faults("span_processor.on_start", exc)

    def _on_ending(self, span: Span) -> None:
        """Pass on that a span is about to end (OpenTelemetry's experimental `OnEnding`)."""
        if not self._ended:
            try:
                self._inner._on_ending(span)  # noqa: SLF001 - the SDK has no public name for it yet
            except Exception as exc:  # noqa: BLE001 - as above
                self._faults("span_processor.on_ending", exc)

    def on_end(self, span: ReadableSpan) -> None:
        """Pass the end of a span on."""
        if not self._ended:
            try:
                self._inner.on_end(span)
            except Exception as exc:  # noqa: BLE001 - as above
                self._faults("span_processor.on_end", exc)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Export what has ended; tell whether all of it went. What raises or says nothing holds up no other."""
        try:
            return self._ended or self._inner.force_flush(timeout_millis) is not False
        except Exception as exc:  # noqa: BLE001 - as above
            self._faults("span_processor.force_flush", exc)
            return False

    def shutdown(self) -> None:
        """Shut the other processor down; a second call does nothing."""
        if not self._ended:
            self._ended = True
            self._inner.shutdown()
