"""Connects the text on standard output with the spans that it shows."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from fastapi_observe.terminal.printer import TreePrinter
from fastapi_observe.terminal.spans import SpanBuffer
from fastapi_observe.terminal.style import Style

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from fastapi_observe.console.console import Console
    from fastapi_observe.observability import Observability


def attach_terminal(observability: Observability, console: Console | None) -> None:
    """Give text lines the spans of their requests, and print all trees if the settings say so.

    Where the console holds the spans, no others are gathered. JSON lines need none.
    """
    settings, logs, tracing = observability.settings, observability.logs, observability.tracing
    text = logs.text if settings.logs else None
    if text is not None:
        text.own_code = observability.own_code
        thresholds = observability.objectives.latency_thresholds
        text.slow_after = lambda endpoint: thresholds.get(endpoint, settings.slow_request_threshold)
        if console is not None:
            text.spans, text.link = console.store.spans_below, console.link
        else:
            buffer = SpanBuffer()
            tracing.add_span_processor(buffer)
            observability.on_close(buffer.shutdown)
            text.spans = buffer.take
    if settings.print_traces:

        def is_request_of_a_line(span: ReadableSpan) -> bool:
            scope = span.instrumentation_scope
            return text is not None and span.kind.name == "SERVER" and getattr(scope, "name", "") == "fastapi_observe"

        printer = TreePrinter(logs.print_text, Style.for_stream(sys.stdout), is_request_of_a_line)
        tracing.add_span_processor(printer)
        observability.on_close(printer.shutdown)
