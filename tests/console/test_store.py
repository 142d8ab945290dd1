"""What the console holds: bounded by number and by bytes; whole traces are evicted, failed and slow ones last."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fastapi_observe.console import store as store_module
from fastapi_observe.console.advice import assess_health, find_problems, route_rows
from fastapi_observe.console.store import MAX_SPANS, MAX_TRACES, Point, Store
from fastapi_observe.terminal.spans import MAX_PRINTED_LENGTH


def summary(trace_id: str, **facts: Any) -> dict[str, Any]:
    """Return the summary of a request."""
    return {"trace_id": trace_id, "failed": False, "duration_ms": 1.0, "endpoint": "/", "exception": None, **facts}


def point(**facts: Any) -> Point:
    """Return a request for the statistics."""
    values: dict[str, Any] = {"seq": 0, "time": 1.0, "seconds": 0.01, "endpoint": "/", "method": "GET", "status": 200}
    return Point(**{**values, "failed": False, "trace_id": "a", "database": 0.0, "external": 0.0, **facts})


def spans(number: int, **attributes: Any) -> list[Any]:
    """Return spans of one trace, the root last."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("library")
    with tracer.start_as_current_span("root"):
        for _ in range(number - 1):
            with tracer.start_as_current_span("child", attributes=attributes) as span:
                span.add_event("noted", {"text": "x" * 10_000})
    return list(exporter.get_finished_spans())


def test_newer_traces_replace_older_ones_but_not_failed_and_slow_ones() -> None:
    """A burst of ordinary requests leaves what is worth looking at."""
    store = Store()
    store.add_summary(summary("failed", failed=True), None)
    store.add_summary(summary("slow", duration_ms=60_000.0), None)
    for number in range(2 * MAX_TRACES):
        store.add_summary(summary(f"{number:032x}", duration_ms=float(number % 7)), None)
    assert store.trace("failed") is not None
    assert store.trace("slow") is not None
    assert store.trace(f"{0:032x}") is None
    assert store.counts()["traces"] <= MAX_TRACES + store_module.MAX_FAILED + store_module.MAX_SLOW


def test_bytes_are_bounded_even_if_every_request_fails() -> None:
    """Protected traces are evicted too if nothing else makes room."""
    store = Store()
    for number in range(100):
        trace_id = f"{number:032x}"
        store.add_summary(summary(trace_id, failed=True), None)
        for _ in range(20):
            store.add_line(b"x" * 200_000, trace_id)
    assert store.size <= store_module.MAX_STORED_BYTES
    assert store.counts()["evicted"] > 90
    assert store.trace(f"{99:032x}") is not None


def test_a_large_trace_is_cut_and_says_so() -> None:
    """Of one trace at most 500 spans and 200 lines are held; the others are counted. Values are cut."""
    store = Store()
    made = spans(MAX_SPANS + 11, text="y" * 10_000)
    for span in made:
        store.add_span(span)
    trace_id = f"{made[0].context.trace_id:032x}"
    for _ in range(store_module.MAX_TRACE_LINES + 7):
        store.add_line(b"{}", trace_id)
    trace = store.trace(trace_id)
    assert trace is not None
    assert (len(trace.spans), trace.dropped_spans) == (MAX_SPANS, 11)
    assert (len(trace.lines), trace.dropped_lines) == (store_module.MAX_TRACE_LINES, 7)
    assert len(trace.spans[0].attributes["text"]) == MAX_PRINTED_LENGTH
    assert len(trace.spans[0].events[0][2]["text"]) == MAX_PRINTED_LENGTH


def test_lines_outside_a_trace_are_not_held() -> None:
    """They make no trace, and would evict others."""
    store = Store()
    store.add_line(b"{}", "")
    assert store.counts() == {"traces": 0, "spans": 0, "bytes": 0, "evicted": 0}


def test_threads_may_add_at_the_same_time() -> None:
    """Every summary has its own number, and the size is the sum of the traces."""
    store = Store()

    def add(start: int) -> None:
        for number in range(start, start + 200):
            store.add_summary(summary(f"{number:032x}"), point())
            store.add_line(b"x" * 100, f"{number:032x}")

    threads = [threading.Thread(target=add, args=(1000 * at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.seq == 800
    assert len(store.points) == 800
    held = [store.trace(f"{1000 * at + number:032x}") for at in range(4) for number in range(200)]
    assert store.size == sum(trace.size for trace in held if trace is not None)
    assert [each["seq"] for each in store.summaries(790)] == list(range(800, 790, -1))


@pytest.mark.parametrize(
    ("points", "lag", "state"),
    [
        ([], 0.0, "waiting"),
        ([point()] * 50, 0.0, "healthy"),
        ([point()] * 50, 0.2, "warning"),
        ([*[point()] * 97, *[point(failed=True, status=500)] * 3], 0.0, "warning"),
        ([*[point()] * 90, *[point(failed=True, status=500)] * 10], 0.0, "failing"),
        ([point(seconds=5.0)] * 50, 0.0, "warning"),
    ],
)
def test_the_verdict(points: list[Point], lag: float, state: str) -> None:
    """One sentence says how the service does and where to look."""
    verdict = assess_health(points, 300, lag, 1.0)
    assert verdict.state == state
    assert bool(verdict.reasons) is (state in {"warning", "failing"})


def test_routes_say_where_the_time_goes() -> None:
    """Routes are sorted by total time, each with the slowest request as evidence."""
    rows = route_rows(
        [
            point(endpoint="/a", seconds=0.1, database=0.06, external=0.3, trace_id="fast"),
            point(endpoint="/a", seconds=0.3, failed=True, trace_id="slowest"),
            point(endpoint="/b"),
        ]
    )
    assert [row["endpoint"] for row in rows] == ["/a", "/b"]
    first = rows[0]
    assert (first["requests"], first["failed"], first["trace_id"]) == (2, 1, "slowest")
    assert (first["total_ms"], first["database_ms"], first["external_ms"]) == (400.0, 60.0, 300.0)


def test_what_to_fix() -> None:
    """N+1, failing routes, exceptions and slow statements are listed once for each cause, with their evidence."""
    frames = [{"own": False, "file": "lib.py", "line": 1}, {"own": True, "file": "shop.py", "line": 7}]
    exception = [{"type": "KeyError", "message": "'x'", "frames": frames}]
    repeated = [{"statement": "SELECT ?", "times": 12, "ms": 3.0}]
    summaries = [
        summary("a", failed=True, exception=exception),
        summary("b", failed=True, exception=exception),
        summary("c", repeated=repeated),
    ]
    slow = [{"statement": "SELECT 1", "ms": 900.0, "file": "db.py", "line": 3, "trace_id": "d"}]
    found = find_problems(summaries, route_rows([point(failed=True)]), slow)
    assert [(each["kind"], each["times"]) for each in found] == [
        ("failing", 1),
        ("exception", 2),
        ("n+1", 1),
        ("slow statement", 1),
    ]
    assert found[1]["title"] == "KeyError at shop.py:7"
    assert "db.py:3" in found[3]["title"]
