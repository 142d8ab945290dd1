"""The console's memory: requests, spans and log lines of one process, bounded by number and by bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from time import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi_observe.terminal.spans import SpanRow, descendants, to_row
from fastapi_observe.traces.calls import OWN_SCOPE

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

MAX_STORED_BYTES: Final = 16 * 1_048_576
"""Approximate bytes of all spans and log lines."""

MAX_TRACES: Final = 300
"""Newest traces, besides the newest failed and the slowest ones."""

MAX_FAILED: Final = 100
MAX_SLOW: Final = 50
MAX_SPANS: Final = 500
"""Spans of one trace; further ones are counted."""

MAX_TRACE_LINES: Final = 200
"""Log lines of one trace, and of those outside any trace."""

MAX_POINTS: Final = 10_000
"""Requests that the statistics are made from."""

MAX_RUNNING: Final = 1000
"""Requests in progress that are shown."""


class Point(NamedTuple):
    """One request for the statistics: when it ended (seconds since the epoch), how long it took (seconds)."""

    seq: int
    time: float
    seconds: float
    endpoint: str
    method: str
    status: int
    failed: bool
    trace_id: str
    database: float
    external: float


@dataclass(slots=True)
class Trace:
    """The spans, log lines and summaries with one trace id."""

    trace_id: str
    spans: list[SpanRow] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    summaries: list[dict[str, Any]] = field(default_factory=list)
    size: int = 0
    dropped_spans: int = 0
    dropped_lines: int = 0
    failed: bool = False
    seconds: float = 0.0


class Store:
    """Traces by id. Whole traces are evicted, never single spans: failed and slow ones last longer.

    One lock guards everything; it is held for copies of references only, never while JSON is made.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._traces: OrderedDict[str, Trace] = OrderedDict()
        self._failed: deque[str] = deque(maxlen=MAX_FAILED)
        self._slow: list[tuple[float, str]] = []
        self.points: deque[Point] = deque(maxlen=MAX_POINTS)
        self.running: dict[int, dict[str, Any]] = {}
        self.blocked: deque[dict[str, Any]] = deque(maxlen=MAX_SLOW)
        self._server_spans: deque[tuple[str, SpanRow]] = deque(maxlen=MAX_SLOW)
        self.slow_statements: deque[dict[str, Any]] = deque(maxlen=MAX_SLOW)
        self.seq = 0
        self.size = 0
        self.evicted = 0

    def add_span(self, span: ReadableSpan) -> None:
        """Take a span that has ended."""
        row, size = to_row(span)
        with self._lock:
            trace = self._trace(f"{span.context.trace_id:032x}")
            if len(trace.spans) >= MAX_SPANS:
                trace.dropped_spans += 1
                return
            trace.spans.append(row)
            self._grow(trace, size)
            if row.kind == "SERVER" and row.parent_id and row.scope != OWN_SCOPE:
                self._server_spans.append((trace.trace_id, row))

    def add_line(self, line: bytes, trace_id: str) -> None:
        """Take a log line of a trace. One outside any trace has an empty id, and is not held."""
        if not trace_id:
            return
        with self._lock:
            trace = self._trace(trace_id)
            if len(trace.lines) >= MAX_TRACE_LINES:
                trace.dropped_lines += 1
                return
            trace.lines.append(line)
            self._grow(trace, len(line) + 64)

    def add_summary(self, summary: dict[str, Any], point: Point | None) -> None:
        """Take a request, background task or operation that has ended."""
        with self._lock:
            self.seq += 1
            summary["seq"] = self.seq
            trace = self._trace(summary["trace_id"])
            if len(trace.summaries) < MAX_SPANS:
                trace.summaries.append(summary)
                self._grow(trace, 1024)
            if point is not None:
                self.points.append(point._replace(seq=self.seq))
            if summary["failed"] and not trace.failed:
                trace.failed = True
                self._failed.append(trace.trace_id)
            seconds = summary["duration_ms"] / 1000
            if seconds > trace.seconds:
                trace.seconds = seconds
                self._note_slow(seconds, trace.trace_id)

    def _note_slow(self, seconds: float, trace_id: str) -> None:
        slow = [each for each in self._slow if each[1] != trace_id]
        slow.append((seconds, trace_id))
        slow.sort(reverse=True)
        self._slow = slow[:MAX_SLOW]

    def _trace(self, trace_id: str) -> Trace:
        trace = self._traces.get(trace_id)
        if trace is None:
            trace = self._traces[trace_id] = Trace(trace_id)
            self._evict()
        return trace

    def _grow(self, trace: Trace, size: int) -> None:
        trace.size += size
        self.size += size
        if self.size > MAX_STORED_BYTES:
            self._evict()

    def _evict(self) -> None:
        """Evict the oldest traces that are neither failed nor slow; those too if nothing else makes room."""
        protected = {*self._failed, *(trace_id for _, trace_id in self._slow)}
        newest = next(reversed(self._traces))
        ordinary = [trace_id for trace_id in self._traces if trace_id not in protected]
        surplus = len(ordinary) - MAX_TRACES
        for trace_id in ordinary:
            if (surplus <= 0 and self.size <= MAX_STORED_BYTES) or trace_id == newest:
                break
            self._remove(trace_id)
            surplus -= 1
        while self.size > MAX_STORED_BYTES and len(self._traces) > 1:
            self._remove(next(iter(self._traces)))

    def _remove(self, trace_id: str) -> None:
        self.size -= self._traces.pop(trace_id).size
        self.evicted += 1

    def trace(self, trace_id: str) -> Trace | None:
        """Return a copy of a trace; None if it is unknown or was evicted."""
        with self._lock:
            found = self._traces.get(trace_id)
            if found is None:
                return None
            return Trace(
                found.trace_id,
                list(found.spans),
                list(found.lines),
                list(found.summaries),
                found.size,
                found.dropped_spans,
                found.dropped_lines,
                found.failed,
                found.seconds,
            )

    def spans_below(self, trace_id: str, span_id: str) -> list[SpanRow]:
        """Return the span with an id and all spans below it."""
        with self._lock:
            found = self._traces.get(trace_id)
            rows = [] if found is None else list(found.spans)
        return descendants(rows, span_id)

    def nested_server_spans(self) -> list[tuple[str, SpanRow]]:
        """Return the newest server spans of other code that are inside the server span of their request.

        Each comes with the id of its trace. One inside the span of a call is that of another request.
        """
        with self._lock:
            return [(trace_id, row) for trace_id, row in self._server_spans if self._is_in_server_span(trace_id, row)]

    def _is_in_server_span(self, trace_id: str, row: SpanRow) -> bool:
        trace = self._traces.get(trace_id)
        rows = {} if trace is None else {each.span_id: each for each in trace.spans}
        parent = rows.pop(row.parent_id, None)
        while parent is not None and parent.kind == "INTERNAL":
            parent = rows.pop(parent.parent_id, None)
        return parent is not None and parent.kind == "SERVER"

    def summaries(self, since: int = 0) -> list[dict[str, Any]]:
        """Return the summaries with a higher `seq` than `since`, the newest first."""
        with self._lock:
            found = [
                summary for trace in self._traces.values() for summary in trace.summaries if summary["seq"] > since
            ]
        return sorted(found, key=lambda summary: -summary["seq"])

    def recent_points(self, seconds: float) -> list[Point]:
        """Return the requests that ended within the last `seconds`, the oldest first."""
        start = time() - seconds
        with self._lock:
            return [point for point in self.points if point.time >= start]

    def counts(self) -> dict[str, int]:
        """Return how much is held."""
        with self._lock:
            spans = sum(len(trace.spans) for trace in self._traces.values())
            return {"traces": len(self._traces), "spans": spans, "bytes": self.size, "evicted": self.evicted}
