"""The formats of a line: JSON of any object, text that is safe on a terminal, queries without values."""

from __future__ import annotations

import io
import json
import math
from collections import OrderedDict, deque
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from types import MappingProxyType
from typing import Any, NoReturn
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_observe.logs.line import (
    MAX_LINE,
    MAX_STACKTRACE,
    Timestamps,
    encode_line,
    exception_object,
    to_text,
)
from fastapi_observe.logs.text import TextFormat
from fastapi_observe.records.exceptions import error_type_of
from fastapi_observe.redaction.redactor import DEFAULT_REDACTOR, MAX_QUERY_BYTES, Redactor


class Unprintable:
    """Raises when it is converted to text."""

    def __str__(self) -> NoReturn:
        raise RuntimeError("no text")

    __repr__ = __str__


class Colour(Enum):
    """An enumeration."""

    RED = "red"


class Hostile(dict[str, Any]):
    """A dictionary whose methods raise."""

    def items(self) -> NoReturn:
        """Refuse."""
        raise RuntimeError("no items")

    __iter__ = items
    keys = items


class BadClass:
    """An object whose class cannot be read."""

    @property  # type: ignore[misc]
    def __class__(self) -> NoReturn:  # type: ignore[override]
        raise RuntimeError("no class")


class Fraction(float):
    """A subclass of float, which orjson refuses."""


@dataclass
class Point:
    """Two numbers and a secret one."""

    x: Any
    _hidden: int = 0


def line(**fields: Any) -> dict[str, Any]:
    """Build a line with every reserved key."""
    return {
        "timestamp": "2025-01-01T00:00:00.000000Z",
        "level": "info",
        "message": "m",
        "logger": "l",
        "service": "s",
        "environment": "e",
        "version": "v",
        "fields": fields,
    }


def encoded(value: dict[str, Any]) -> Any:
    """Encode a line, check what holds for every line, and parse it."""
    data = encode_line(value)
    assert len(data) <= MAX_LINE
    assert data.endswith(b"\n")
    assert data.count(b"\n") == 1
    text = data.decode()
    assert len(text.splitlines()) == 1
    return json.loads(text, parse_constant=pytest.fail)


def looped() -> list[Any]:
    """Build a list that contains itself."""
    value: list[Any] = [1]
    value.append(value)
    return value


def nested(depth: int) -> Any:
    """Build a list `depth` lists deep."""
    value: Any = "core"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (looped(), [1, "<cycle>"]),
        (nested(300), [[[[[["<too deep>"]]]]]]),
        (math.nan, None),
        (-math.inf, None),
        (Fraction(1.5), 1.5),
        ([Fraction(1.5), 2**70], [1.5, str(2**70)]),
        ("a\ud800b", "a\\ud800b"),
        ({"\udfff": 1}, {"\\udfff": 1}),
        (2**64 - 1, 2**64 - 1),
        (2**64, str(2**64)),
        (10**5000, "<unprintable int>"),
        ({1: 2, None: 3, (4,): 5}, {"1": 2, "None": 3, "(4,)": 5}),
        (Unprintable(), "<unprintable Unprintable>"),
        ([Unprintable(), 2**64], ["<unprintable Unprintable>", str(2**64)]),
        ({Unprintable(): 1}, {"<unprintable Unprintable>": 1}),
        (b"caf\xe9", "café"),
        ([b"caf\xe9", bytearray(b"x"), memoryview(b"y"), 2**64], ["café", "x", "y", str(2**64)]),
        ({7}, [7]),
        (deque([7]), [7]),
        ([frozenset({7}), (8,), 2**64], [[7], [8], str(2**64)]),
        (MappingProxyType({"a": 1}), {"a": 1}),
        ([MappingProxyType({"a": 1}), 2**64], [{"a": 1}, str(2**64)]),
        (Hostile(a=1), {"a": 1}),
        ([Hostile(a=1), 2**64], [{"a": 1}, str(2**64)]),
        ([BadClass(), 2**64], ["<unprintable BadClass>", str(2**64)]),
        (Decimal("1.10"), "1.10"),
        (Colour.RED, "red"),
        ([Colour.RED, True, 2.5, None, 2**64], ["red", True, 2.5, None, str(2**64)]),
        (Point(1), {"x": 1}),
        (Point(2**64), {"x": str(2**64)}),
        ([Point, 2**64], ["<class 'test_line_format.Point'>", str(2**64)]),
        (datetime(2025, 1, 2, tzinfo=UTC), "2025-01-02T00:00:00+00:00"),
        ([date(2025, 1, 2), 2**64], ["2025-01-02", str(2**64)]),
        ([UUID(int=1), 2**64], ["00000000-0000-0000-0000-000000000001", str(2**64)]),
        ("\u2028\u2029\x85 \n\r\x00", "\u2028\u2029\x85 \n\r\x00"),
        (ValueError("x"), "x"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_kind_of_value_is_written(value: Any, written: Any) -> None:
    """Each kind of Python object has one form, whether orjson takes it or it is converted first."""
    assert encoded(line(value=value))["fields"] == {"value": written}


def test_separators_are_escaped() -> None:
    """Characters that some readers treat as the end of a line are escaped."""
    data = encode_line(line(value="\u2028\u2029\x85"))
    assert b'"\\u2028\\u2029\\u0085"' in data
    assert b'"\\u2028' in encode_line(line(value="\u2028", huge=2**64))


def test_many_keys_and_long_values_are_truncated() -> None:
    """64 keys of an object and 2,048 characters of a value are kept."""
    assert len(encoded(line(**{f"k{n}": "x" * 200 for n in range(100)}))["fields"]) == 64
    value = encoded(line(value="x" * 100_000))["fields"]["value"]
    assert value == "x" * 2047 + "…"


def test_a_line_that_is_still_too_long_is_truncated_further() -> None:
    """A line over 16 KiB loses more in each pass, at last all of its fields."""
    assert len(encoded(line(**{f"k{n}": "x" * 5000 for n in range(64)}))["fields"]) == 32
    wide = {f"k{n}": {f"j{m}": "\x00" * 100 for m in range(20)} for n in range(20)}
    assert encoded(line(**wide))["fields"] == {}
    monster = line(a="\ud800" * 9000)
    monster |= {key: "\ud800" * 9000 for key in monster if key != "fields"}
    monster |= dict.fromkeys(("trace_id", "span_id", "request_id"), "\ud800" * 9000)
    monster["exception"] = dict.fromkeys(("type", "message", "stacktrace"), "\x00" * 9000)
    encoded(monster)


def test_a_line_that_grows_by_escaping_still_fits() -> None:
    """Escapes count: 6,000 line separators have 18 KB, and 36 KB when they are escaped."""
    encoded(line(value="\u2028" * 5000))


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(categories=None), max_size=50)
    | st.binary(max_size=50)
    | st.decimals()
    | st.datetimes()
    | st.timedeltas()
    | st.uuids()
    | st.complex_numbers()
    | st.builds(Unprintable)
    | st.builds(Hostile, a=st.integers())
    | st.builds(lambda: [BadClass()])
    | st.builds(looped)
    | st.sampled_from([Colour.RED, object]),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(st.characters(categories=None)) | st.integers() | st.binary(), inner)
        | st.tuples(inner, inner)
        | st.builds(OrderedDict, st.dictionaries(st.text(), inner))
        | st.builds(Point, inner)
        | st.builds(deque, st.lists(inner))
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.text(st.characters(categories=None)), ANYTHING), st.text(st.characters(categories=None)))
def test_any_object_gives_one_line_of_valid_json(fields: dict[str, Any], message: str) -> None:
    """Any object gives exactly one line of valid JSON of at most 16 KiB."""
    read = encoded({**line(**fields), "message": message})
    assert isinstance(read["fields"], dict)


@given(ANYTHING)
def test_any_object_gives_one_line_of_text(value: Any) -> None:
    """In the text format any object gives one line without control characters."""
    shown = TextFormat(io.StringIO()).line(line(value=value)).decode()
    assert len(shown.splitlines()) == 1
    assert "\x1b" not in shown


class BadError(Exception):
    """An exception without a readable message or traceback."""

    @property
    def __cause__(self) -> NoReturn:  # type: ignore[override]
        raise BadError

    def __str__(self) -> NoReturn:
        raise RuntimeError("no text")


def test_any_exception_is_described() -> None:
    """An exception whose attributes raise is described as well."""
    described = exception_object(BadError())
    assert described == {
        "type": error_type_of(BadError()),
        "message": "<unprintable BadError>",
        "stacktrace": "<unprintable stacktrace>",
    }


def test_a_stack_trace_shows_its_end_and_no_values() -> None:
    """The last 8,192 characters of a stack trace are kept; values of variables are not in it."""
    secret = "hunter" + "2"
    try:
        raise ValueError("x" * 8100 + "the end") from KeyError("first")  # noqa: TRY301 - it needs a traceback
    except ValueError as exc:
        described = exception_object(exc)
    assert 8100 < len(described["stacktrace"]) <= MAX_STACKTRACE
    assert described["stacktrace"].rstrip().endswith("the end")
    assert secret not in described["stacktrace"]


def test_long_text_is_truncated() -> None:
    """The last character of a truncated text is an ellipsis."""
    assert to_text("abcdef", 4) == "abc…"


def test_timestamps_are_rfc_3339() -> None:
    """Times are in UTC with microseconds, also if the clock goes back."""
    timestamps = Timestamps()
    assert timestamps(1_700_000_000_123_456_789) == "2023-11-14T22:13:20.123456Z"
    assert timestamps(1_700_000_000_000_001_000) == "2023-11-14T22:13:20.000001Z"
    assert timestamps(0) == "1970-01-01T00:00:00.000000Z"


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        (b"", ""),
        (b"a=1&b=2", "a=REDACTED&b=REDACTED"),
        (b"page=2&token=x", "page=2&token=REDACTED"),
        (b"page=2;token=x", "page=2&token=REDACTED"),
        (b"flag&empty=&=x&a=b=c", "REDACTED&empty=&=REDACTED&a=REDACTED"),
        (b"caf\xe9=\xff", "café=REDACTED"),
        ("a=\ud800", "a=REDACTED"),
        (b"p%61ge=1", "p%61ge=1"),
    ],
)
def test_query_values_are_redacted(query: bytes | str, shown: str) -> None:
    """Names are kept, values only if the settings allow their name."""
    assert Redactor(capture_query_parameters=["page"]).query(query) == shown


@given(st.binary(max_size=5000))
def test_any_query_is_redacted(query: bytes) -> None:
    """For any bytes, no value is longer than REDACTED, and the work is bounded."""
    shown = DEFAULT_REDACTOR.query(query)
    assert len(shown) <= MAX_QUERY_BYTES
    assert all("REDACTED".startswith(part.partition("=")[2]) for part in shown.split("&"))
