"""Spans as rows, and a bounded buffer of those of the requests in progress."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry.sdk.trace import SpanProcessor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from opentelemetry.sdk.trace import ReadableSpan

MAX_ATTRIBUTES: Final = 64
MAX_PRINTED_LENGTH: Final = 4096
"""Attributes of one span, and characters of one value."""

MAX_BUFFERED_TRACES: Final = 1000
MAX_BUFFERED_SPANS: Final = 500
MAX_BUFFERED_BYTES: Final = 8 * 1_048_576
"""Traces of the buffer, spans of one of them, and approximate bytes of all."""


class SpanRow(NamedTuple):
    """One span. Times are in nanoseconds since the epoch, ids are hexadecimal."""

    span_id: str
    parent_id: str
    name: str
    kind: str
    start: int
    end: int
    status: str
    attributes: dict[str, Any]
    events: tuple[tuple[int, str, dict[str, Any]], ...]
    scope: str


def to_row(span: ReadableSpan) -> tuple[SpanRow, int]:
    """Return a span as it is held, and about how many bytes that takes."""
    attributes = short_values(span.attributes or {})
    events = tuple((event.timestamp, event.name, short_values(event.attributes or {})) for event in span.events[:32])
    scope = span.instrumentation_scope
    row = SpanRow(
        f"{span.context.span_id:016x}",
        f"{span.parent.span_id:016x}" if span.parent is not None else "",
        span.name,
        span.kind.name,
        span.start_time or 0,
        span.end_time or 0,
        span.status.status_code.name,
        attributes,
        events,
        "" if scope is None else scope.name,
    )
    size = 256 + len(span.name) + sum(_sizes(attributes)) + sum(sum(_sizes(held)) + 64 for _, _, held in events)
    return row, size


def short_values(attributes: Any) -> dict[str, Any]:
    """Return at most 64 attributes, texts cut at 4,096 characters."""
    short: dict[str, Any] = {}
    for key, value in attributes.items():
        if len(short) >= MAX_ATTRIBUTES:
            break
        if isinstance(value, str):
            short[str(key)[:256]] = value[:MAX_PRINTED_LENGTH]
        elif isinstance(value, int | float | bool):
            short[str(key)[:256]] = value
        else:
            short[str(key)[:256]] = [str(item)[:256] for item in tuple(value)[:32]]
    return short


def _sizes(attributes: dict[str, Any]) -> Iterator[int]:
    for key, value in attributes.items():
        yield 64 + len(key) + (len(value) if isinstance(value, str) else 64)


def descendants(rows: Iterable[SpanRow], root_id: str) -> list[SpanRow]:
    """Return the span with an id and all spans below it, those of other requests in the same trace left out."""
    children: dict[str, list[SpanRow]] = {}
    found = []
    for row in rows:
        children.setdefault(row.parent_id, []).append(row)
        if row.span_id == root_id:
            found.append(row)
    pending = [root_id]
    while pending:
        below = children.pop(pending.pop(), [])
        found += [row for row in below if row.span_id != root_id]
        pending += [row.span_id for row in below]
    return found


class SpanBuffer(SpanProcessor):
    """Holds the spans that have ended until their request ends. The oldest traces are dropped where there are too many.

    Other threads may end spans at any time; one lock guards everything.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._traces: OrderedDict[str, list[tuple[SpanRow, int]]] = OrderedDict()
        self._size = 0
        self._closed = False

    def __len__(self) -> int:
        return len(self._traces)

    def on_end(self, span: ReadableSpan) -> None:
        """Take a span."""
        if self._closed:
            return
        row, size = to_row(span)
        trace_id = f"{span.context.trace_id:032x}"
        with self._lock:
            held = self._traces.setdefault(trace_id, [])
            if len(held) < MAX_BUFFERED_SPANS or span.parent is None or span.parent.is_remote:
                held.append((row, size))
                self._size += size
            while len(self._traces) > 1 and (
                len(self._traces) > MAX_BUFFERED_TRACES or self._size > MAX_BUFFERED_BYTES
            ):
                self._forget(next(iter(self._traces)))

    def _forget(self, trace_id: str) -> None:
        self._size -= sum(size for _, size in self._traces.pop(trace_id, ()))

    def take(self, trace_id: str, root_id: str) -> list[SpanRow]:
        """Remove and return the span with an id and all spans below it."""
        with self._lock:
            held = self._traces.get(trace_id)
            if held is None:
                return []
            taken = descendants((row for row, _ in held), root_id)
            ids = {row.span_id for row in taken}
            rest = [each for each in held if each[0].span_id not in ids]
            self._forget(trace_id)
            if rest:
                self._traces[trace_id] = rest
                self._size += sum(size for _, size in rest)
            return taken

    def shutdown(self) -> None:
        """Take no more, and forget what is held."""
        self._closed = True
        with self._lock:
            self._traces.clear()
            self._size = 0
