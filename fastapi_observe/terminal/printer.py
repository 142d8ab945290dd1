"""`TreePrinter`: prints the tree of each trace when its first span in this process ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_observe.terminal.spans import SpanBuffer
from fastapi_observe.terminal.style import terminal_width
from fastapi_observe.terminal.tree import render_tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace import ReadableSpan

    from fastapi_observe.terminal.style import Style


class TreePrinter(SpanBuffer):
    """Prints what `OTEL_TRACES_EXPORTER=console` asks for, each tree as one text.

    Trees of spans that `is_printed_elsewhere` are left out.
    """

    def __init__(
        self, write: Callable[[bytes], object], style: Style, is_printed_elsewhere: Callable[[ReadableSpan], bool]
    ) -> None:
        super().__init__()
        self._write = write
        self._style = style
        self._is_printed_elsewhere = is_printed_elsewhere

    def on_end(self, span: ReadableSpan) -> None:
        """Take a span, and print its tree if its parent is not in this process."""
        super().on_end(span)
        if span.parent is not None and not span.parent.is_remote:
            return
        trace_id, span_id = f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"
        spans = self.take(trace_id, span_id)
        if not spans or self._is_printed_elsewhere(span):
            return
        rows = render_tree(
            [each._replace(parent_id="") if each.span_id == span_id else each for each in spans],
            self._style,
            width=terminal_width(),
        )
        label = self._style.paint(f"trace {trace_id}", "dim")
        self._write(self._style.encode("\n".join([label, *rows]) + "\n"))
