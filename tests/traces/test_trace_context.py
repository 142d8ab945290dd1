"""`TraceContext`: round trips, invalid ids, baggage, and hostile headers."""

from __future__ import annotations

import json
import logging
import string
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, trace
from opentelemetry.context import Context
from opentelemetry.propagate import extract

from fastapi_observe import TraceContext
from fastapi_observe.traces.context import (
    MAX_BAGGAGE_BYTES,
    MAX_BAGGAGE_MEMBERS,
    MAX_TRACESTATE_MEMBERS,
    well_formed_headers,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hypothesis.strategies import SearchStrategy

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


def ids(length: int) -> SearchStrategy[str]:
    """Return valid ids."""
    return st.integers(1, 16**length - 1).map(lambda number: format(number, f"0{length}x"))


values = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=30).map(str.strip)
names = st.text(string.ascii_letters + string.digits + "-_.", min_size=1, max_size=20)
facts = st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.lists(st.integers(), max_size=3)
contexts = st.builds(
    TraceContext,
    trace_id=ids(32),
    span_id=ids(16),
    sampled=st.booleans(),
    baggage=st.dictionaries(names, values, max_size=5),
    attributes=st.dictionaries(st.text(max_size=10), facts, max_size=4),
    trace_state=st.sampled_from(["", "vendor=1", "a@b=x,rojo=00f067aa0ba902b7"]),
    random=st.booleans(),
)


@given(contexts)
def test_json_round_trip(context: TraceContext) -> None:
    """`from_dict` reads what `to_dict` wrote as JSON."""
    assert TraceContext.from_dict(json.loads(json.dumps(context.to_dict()))) == context


@given(contexts)
def test_header_round_trip(context: TraceContext) -> None:
    """Ids, flags, tracestate and baggage travel in headers; attributes do not."""
    read = TraceContext.from_headers(context.to_headers())
    assert read is not None
    assert read.to_dict() == {**context.to_dict(), "attributes": {}}


@given(st.text(max_size=40) | st.integers() | st.none() | st.binary(max_size=32))
def test_invalid_ids_raise(wrong: Any) -> None:
    """An invalid id raises a ValueError with field and value."""
    for field, good in (("trace_id", TRACE), ("span_id", SPAN)):
        if isinstance(wrong, str) and len(wrong) == len(good):
            continue
        with pytest.raises(ValueError, match=field) as caught:
            TraceContext(**{"trace_id": TRACE, "span_id": SPAN, field: wrong})
        assert repr(wrong)[:80] in str(caught.value)


@pytest.mark.parametrize(
    ("trace_id", "span_id"),
    [
        ("0" * 32, SPAN),
        (TRACE, "0" * 16),
        (TRACE.upper(), SPAN),
        (TRACE[:-1] + "g", SPAN),
        (TRACE[:-1] + "\u0661", SPAN),
        (TRACE, SPAN + "\n"),
        (TRACE[:-1], SPAN),
    ],
)
def test_ids_that_look_valid_raise(trace_id: str, span_id: str) -> None:
    """Zeros, capitals, other digits and wrong lengths are not ids."""
    with pytest.raises(ValueError, match="lower-case hexadecimal digits, not all zero"):
        TraceContext(trace_id, span_id)


def test_error_does_not_repeat_a_long_value() -> None:
    """At most 80 characters of an invalid value are in the error."""
    with pytest.raises(ValueError, match="trace_id") as caught:
        TraceContext("x" * 10_000, SPAN)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("data", [{}, {"trace_id": TRACE}, {"trace_id": TRACE, "span_id": SPAN, "extra": 1}])
def test_from_dict_raises_for_other_mappings(data: dict[str, Any]) -> None:
    """Missing and unknown keys raise a ValueError that says what to pass."""
    with pytest.raises(ValueError, match=r"pass a mapping from TraceContext\.to_dict\(\)"):
        TraceContext.from_dict(data)


def test_is_a_value() -> None:
    """Frozen, hashable, equal by content; any mapping is accepted and returned as plain data."""
    context = TraceContext(TRACE, SPAN, baggage=MappingProxyType({"a": "b"}))
    assert len({context, TraceContext(TRACE, SPAN, baggage={"a": "b"})}) == 1
    assert context.to_dict()["baggage"] == {"a": "b"}
    with pytest.raises(AttributeError):
        context.trace_id = "other"  # type: ignore[misc]


def test_none_outside_a_trace() -> None:
    """Without a trace there is no trace context."""
    assert TraceContext.current() is None
    assert TraceContext.from_headers({}) is None
    assert TraceContext.from_headers({"traceparent": "nonsense", "baggage": "a=b"}) is None


def test_header_names_in_any_case() -> None:
    """Header names may be written in any case."""
    read = TraceContext.from_headers({"TraceParent": f"00-{TRACE}-{SPAN}-03", "Baggage": "a=1", "TraceState": "v=1"})
    assert read == TraceContext(TRACE, SPAN, baggage={"a": "1"}, trace_state="v=1", random=True)


def test_to_context_returns_a_new_context() -> None:
    """`to_context` sets the remote span and replaces the baggage, in a new context only."""
    before = baggage.set_baggage("old", "1", Context())
    after = TraceContext(TRACE, SPAN, sampled=False, baggage={"new": "2"}).to_context(before)
    at = trace.get_current_span(after).get_span_context()
    assert (format(at.trace_id, "032x"), at.is_remote, at.trace_flags.sampled) == (TRACE, True, False)
    assert dict(baggage.get_all(after)) == {"new": "2"}
    assert dict(baggage.get_all(before)) == {"old": "1"}


HOSTILE = st.text(st.sampled_from(string.printable + "é\u2028"), max_size=60)


@pytest.mark.parametrize("name", ["baggage", "tracestate"])
@given(text=HOSTILE | st.lists(st.sampled_from(["a=1", "b = 2;p=1", "c", "=", "d=\x00", " ", "e=é"])).map(",".join))
def test_hostile_headers_log_nothing(name: str, text: str) -> None:
    """OpenTelemetry logs no warning about any header that a client sends: clients cannot fill the log."""
    carrier = well_formed_headers({"traceparent": f"00-{TRACE}-{SPAN}-01", name: text})
    with _listening() as lines:
        extract(carrier, Context())
    assert lines == []


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Collect OpenTelemetry's log records."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("opentelemetry")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def test_the_log_is_observed() -> None:
    """The test above would notice a warning."""
    with _listening() as lines:
        extract({"baggage": "bad", "traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "A=1"}, Context())
    assert len(lines) == 2


def test_well_formed_members_stay() -> None:
    """Well-formed members stay, without their properties; limits of the W3C specifications hold."""
    assert well_formed_headers({"baggage": "a=1, b = 2;p=1,bad,c=%20"}) == {"baggage": "a=1,b=2,c=%20"}
    many = ",".join(f"k{number}=1" for number in range(MAX_BAGGAGE_MEMBERS + 9))
    assert well_formed_headers({"baggage": many})["baggage"].count(",") == MAX_BAGGAGE_MEMBERS - 1
    assert len(well_formed_headers({"baggage": "a=" + "x" * 99_999})["baggage"]) <= MAX_BAGGAGE_BYTES
    assert well_formed_headers({"tracestate": " a=1 ,, b@c=x y"}) == {"tracestate": "a=1,b@c=x y"}
    states = ",".join(f"k{number}=1" for number in range(MAX_TRACESTATE_MEMBERS + 1))
    for wrong in ("A=1", "a", "a=1,a=2", states, "a=" + "x" * 257):
        assert well_formed_headers({"tracestate": wrong}) == {}
