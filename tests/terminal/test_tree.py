"""Trees of spans as text, and the buffer that gathers them: folding, bounds, width, and hostile names."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from fastapi_observe.terminal.exceptions import render_exception
from fastapi_observe.terminal.spans import (
    MAX_BUFFERED_BYTES,
    MAX_BUFFERED_SPANS,
    MAX_BUFFERED_TRACES,
    SpanBuffer,
    SpanRow,
    descendants,
)
from fastapi_observe.terminal.style import Style, columns, escape_controls, fit, format_duration
from fastapi_observe.terminal.tree import MAX_TREE_ROWS, render_tree

MS = 1_000_000
PLAIN = Style()


def span(span_id: str, parent_id: str = "", start: int = 0, end: int = 10, **facts: Any) -> SpanRow:
    """Build a span; times in milliseconds."""
    values = {"name": span_id, "kind": "INTERNAL", "status": "UNSET", "attributes": {}, "events": (), "scope": ""}
    return SpanRow(span_id=span_id, parent_id=parent_id, start=start * MS, end=end * MS, **{**values, **facts})


def tree(rows: list[SpanRow], root_id: str | None = None, width: int = 80, style: Style = PLAIN) -> list[str]:
    """Return the rows of a tree."""
    return render_tree(rows, style, width=width, root_id=root_id)


def test_a_tree_has_branches_bars_and_durations() -> None:
    """Children are below their parent in the order of their starts; a bar is where its span ran."""
    rows = [span("root", end=40), span("b", "root", 20, 40), span("a", "root", 0, 20), span("c", "b", 30, 40)]
    found = tree(rows, "root", width=61)
    assert [line.split("█")[0].rstrip() for line in found] == ["├ a", "└ b", "  └ c"]
    assert found[0] == "├ a   ███████████                 20 ms"
    assert found[1].index("█") > found[0].rindex("█")
    whole = tree(rows)
    assert whole[0].startswith("root ")
    assert whole[3].startswith("  └ c ")


def test_equal_spans_are_one_row() -> None:
    """Those with children, or with another statement, are rows of their own. The sum of durations is shown."""
    place = {"code.file.path": "main.py", "code.line.number": 7}
    rows = [span(f"q{number}", "root", number, number + 1, name="SELECT", attributes=place) for number in range(12)]
    rows += [span("other", "root", 3, 4, name="SELECT", attributes={"db.query.text": "x"})]
    rows += [span("full", "root", 5, 6, name="SELECT", attributes=place), span("child", "full", 5, 6)]
    found = tree([span("root", end=13), *rows], "root", width=100)
    assert found[0].startswith("├ SELECT \u00d712 ")
    assert found[0].endswith("12 ms  ← main.py:7")
    long = [row._replace(name="SELECT " + "x" * 90) for row in rows[:3]]
    assert "xx… \u00d73 █" in tree([span("root"), *long], "root", width=60)[0]
    assert [line.split("█")[0].strip() for line in found[1:]] == ["├ SELECT", "└ SELECT", "└ child"]


def test_failures_are_marked() -> None:
    """By a mark and the type of the error, not by color alone."""
    (row,) = tree([span("root"), span("a", "root", status="ERROR", attributes={"error.type": "KeyError"})], "root")
    assert row.endswith("✗ KeyError")
    (colored,) = tree([span("a", status="ERROR")], style=Style(colors=True))
    assert "\x1b[31m" in colored


def test_notes_fit() -> None:
    """Where there is no room for the path of the code, its last part is shown; then the row ends before it."""
    attributes = {"code.file.path": "shop/routers/orders.py", "code.line.number": 31, "error.type": "shop.PaymentError"}
    rows = [span("root"), span("a", "root", attributes=attributes, status="ERROR")]
    assert tree(rows, "root", width=100)[0].endswith("  ✗ PaymentError  shop/routers/orders.py:31")
    assert tree(rows, "root", width=60)[0].endswith("  ✗ PaymentError  ord…")
    rows[1].attributes.pop("error.type")
    assert tree(rows, "root", width=60)[0].endswith("  ✗  orders.py:31")


def test_ascii() -> None:
    """Without the drawing characters a tree is ASCII."""
    rows = [span("root"), *(span(str(number), "root", name="q") for number in range(60)), span("z", "0")]
    rows += [span("e", "root", status="ERROR")]
    found = tree(rows, style=Style(unicode=False, encoding="ascii"))
    assert "".join(found).isascii()
    assert any("x59" in line for line in found)


def test_rows_and_depth_are_bounded() -> None:
    """What is left out is counted."""
    wide = [span("root"), *(span(f"s{number}", "root") for number in range(100)), span("below", "s99")]
    found = tree(wide, "root")
    assert len(found) == MAX_TREE_ROWS + 1
    assert found[-1] == "… 61 more spans"
    deep = [span("0"), *(span(str(number), str(number - 1)) for number in range(1, 5000))]
    found = tree(deep, "0")
    assert len(found) == 17
    assert found[-1] == "… 4983 more spans"


def test_nothing_and_cycles() -> None:
    """No spans are no rows, and spans that are their own ancestors end."""
    assert tree([]) == []
    assert tree([span("root")], "root") == []
    assert tree([span("a", "b"), span("b", "a")]) == []
    assert len(tree([span("a", "a")])) == 1
    assert descendants([span("a", "b"), span("b", "a")], "a") == [span("a", "b"), span("b", "a")]


names = st.text(st.characters(categories=None), max_size=300)


@given(st.lists(st.tuples(names, st.integers(0, 5), st.integers(-5, 50)), max_size=30), st.integers(40, 200))
def test_any_tree_fits(rows: list[tuple[str, int, int]], width: int) -> None:
    """Whatever names and times: no row is wider than the terminal, and none has a control character."""
    spans = [
        span(str(number), str(parent), 1, end, name=name, attributes={"code.file.path": name, "code.line.number": 1})
        for number, (name, parent, end) in enumerate(rows, 1)
    ]
    for line in tree(spans, "0", width=width):
        assert columns(line) <= width
        assert escape_controls(line) == line


@given(names, st.integers(1, 60))
def test_fit(text: str, width: int) -> None:
    """A text is cut and padded to exactly its columns."""
    assert columns(fit(escape_controls(text), width)) == width


def test_durations() -> None:
    """They have two or three digits."""
    shown = [format_duration(seconds) for seconds in (0, 0.0012, 0.0999, 0.999, 1.5, 75)]
    assert shown == ["0.0 ms", "1.2 ms", "100 ms", "999 ms", "1.50 s", "75.00 s"]


def test_an_exception_without_own_frames() -> None:
    """The library frame that raised it is named; frames of the user beyond ten are counted."""
    library = {"file": "/x/site-packages/lib/core.py", "line": 3, "function": "run", "own": False, "code": "raise"}
    own = {"file": "main.py", "line": 1, "function": "f", "own": True, "code": "f()\x1b"}
    found = render_exception([{"type": "E", "message": "", "frames": [library, *[own] * 12]}], PLAIN, indent=" ")
    assert found[:3] == [" ✗ E", "   main.py:1 in f", "       f()\\x1b"]
    assert found[-1] == "   … 2 more of your frames, 1 frame of libraries, raised in lib/core.py:3 in run"
    assert render_exception([{"type": "E", "message": "m\n\nx", "frames": []}], PLAIN) == ["✗ E: m", "    x"]


# The buffer


def provider_of(buffer: SpanBuffer) -> Any:
    """Return a tracer whose spans go to the buffer."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(buffer)
    return provider.get_tracer("test")


def test_the_buffer_separates_requests_of_one_trace() -> None:
    """A caller may send several requests with one trace id: each takes its own spans only."""
    buffer = SpanBuffer()
    tracer = provider_of(buffer)
    remote = NonRecordingSpan(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1)))
    first, second = (tracer.start_span(name, set_span_in_context(remote)) for name in ("first", "second"))
    for parent in (first, second):
        tracer.start_span("child", set_span_in_context(parent)).end()
        parent.end()
    taken = buffer.take(f"{1:032x}", f"{first.get_span_context().span_id:016x}")
    assert sorted(row.name for row in taken) == ["child", "first"]
    assert len(buffer) == 1
    taken = buffer.take(f"{1:032x}", f"{second.get_span_context().span_id:016x}")
    assert sorted(row.name for row in taken) == ["child", "second"]
    assert len(buffer) == 0
    assert buffer.take("0" * 32, "0") == []


def test_the_buffer_is_bounded() -> None:
    """The oldest traces make room, by number and by bytes; of one trace the first spans are held, and its root."""
    buffer = SpanBuffer()
    tracer = provider_of(buffer)
    for _ in range(MAX_BUFFERED_TRACES + 40):
        tracer.start_span("s").end()
    assert len(buffer) == MAX_BUFFERED_TRACES
    for _ in range(MAX_BUFFERED_TRACES):
        tracer.start_span("s", attributes={str(number): "x" * 4000 for number in range(12)}).end()
    assert MAX_BUFFERED_BYTES // 60_000 < len(buffer) <= MAX_BUFFERED_BYTES // 48_000
    with tracer.start_as_current_span("root") as root:
        for _ in range(MAX_BUFFERED_SPANS + 15):
            tracer.start_span("child").end()
    position = root.get_span_context()
    assert len(buffer.take(f"{position.trace_id:032x}", f"{position.span_id:016x}")) == MAX_BUFFERED_SPANS + 1
    buffer.shutdown()
    tracer.start_span("late").end()
    assert len(buffer) == 0
