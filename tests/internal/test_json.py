"""JSON without orjson: the same bytes, the same refusals, and an app that is served."""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import subprocess
import sys
from datetime import UTC, date, datetime, time, timedelta, timezone
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_observe.internal.json import python_dumps, python_loads

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.text(st.characters())
    | st.dates()
    | st.times()
    | st.datetimes(timezones=st.none() | st.timezones())
    | st.uuids()
    | st.binary()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.sets(st.integers())
    ),
)


def convert(value: Any) -> Any:
    """Convert what JSON does not know, and refuse bytes."""
    if isinstance(value, set):
        return sorted(value)
    raise TypeError


def outcome(dumps: Any, value: Any) -> Any:
    """Return the bytes, or the kind of error.

    Earlier versions of orjson write 1e16 where later ones write 1e+16. 3.13.0 omits the first zero of the fraction of a
    `time` between 10 and 100 milliseconds.
    """
    try:
        written: bytes = dumps(value, convert)
        if dumps is orjson.dumps:
            written = re.sub(rb'("\d\d:\d\d:\d\d\.)(\d{5}")', rb"\g<1>0\g<2>", written)
        return re.sub(rb"(?<=\d)e\+", b"e", written)
    except TypeError:
        return TypeError


@given(VALUES)
def test_the_bytes_are_those_of_orjson(value: Any) -> None:
    """Any value is written as orjson writes it, or refused as it is; what was written is read alike."""
    written = outcome(orjson.dumps, value)
    assert outcome(python_dumps, value) == written
    if written is not TypeError:
        assert python_loads(written) == orjson.loads(written) == python_loads(memoryview(written))


def test_the_fraction_of_a_time_has_six_digits() -> None:
    """Its first zeros count: 10 milliseconds are not 100."""
    assert python_dumps(time(0, 0, 0, 10_000)) == b'"00:00:00.010000"'


class Name(str):
    """A kind of string."""

    __slots__ = ()


class Number(int):
    """A kind of integer."""


class Ratio(float):
    """A kind of float."""


class Pair(tuple[int, int]):
    """A kind of tuple."""

    __slots__ = ()


class Colour(enum.Enum):
    """An enumeration."""

    RED = "red"
    DAY = date(2026, 1, 2)


@dataclasses.dataclass
class Order:
    """A dataclass with a private field."""

    number: int
    _hidden: str = "no field of the JSON"
    next: Order | None = None


def nested(depth: int) -> Any:
    """Return a list in a list, `depth` times."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_kinds_of_values() -> None:
    """Subclasses, enumerations, dataclasses, limits of numbers, depth and cycles are treated as orjson treats them."""
    cycle: list[Any] = []
    cycle.append(cycle)
    minutes = [timezone(timedelta(seconds=seconds)) for seconds in (0, 29, 30, 90, -1, -30, -90, 3630)]
    values: list[Any] = [
        Name("a"),
        Number(7),
        Ratio(1.5),
        Pair((1, 2)),
        Colour.RED,
        Colour.DAY,
        Order(1, next=Order(2)),
        {Name("a"): 1},
        {Colour.RED: 1},
        2**64 - 1,
        2**64,
        -(2**63),
        -(2**63) - 1,
        1e16,
        1e-5,
        -1.25e-5,
        9.999e-6,
        1e22,
        5e-324,
        -0.0,
        float("nan"),
        {"set": {1}, "empty": {}, "list": []},
        "\ud800",
        '\x00\x1f\x7f\u2028/"\\',
        UUID(int=5),
        time(1, 2, 3, 4),
        time(1, tzinfo=UTC),
        *(datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=zone) for zone in minutes),
        nested(254),
        nested(255),
        cycle,
    ]
    for value in values:
        assert outcome(python_dumps, value) == outcome(orjson.dumps, value), repr(value)[:100]


def test_a_default_that_never_ends_is_refused() -> None:
    """A `default` that returns what it cannot convert is not called for ever."""
    for dumps in (orjson.dumps, python_dumps):
        with pytest.raises(TypeError):
            dumps(1j, lambda value: value)


@pytest.mark.parametrize("text", ["", "[1,", b"\xff", "[" * 100_000])
def test_damaged_json_is_a_value_error(text: str | bytes) -> None:
    """Whatever is read raises `JSONDecodeError` and nothing else."""
    with pytest.raises(json.JSONDecodeError):
        python_loads(text)


APP = """
import sys
if "without" in sys.argv:
    sys.modules["orjson"] = None
from fastapi import FastAPI
from fastapi.testclient import TestClient
from loguru import logger
from fastapi_observe import install
from fastapi_observe.internal import json
assert (json.dumps is json.python_dumps) == ("without" in sys.argv)
app = FastAPI()
install(app, log_format="json", environment="production", metrics_access="private")

@app.get("/orders/{number}")
def order(number: int) -> dict[str, int]:
    logger.bind(number=number, price=1e16, tags={"a"}, name="\u00e9\u2028").info("read")
    return {"number": number}

with TestClient(app) as client:
    assert client.get("/orders/7").json() == {"number": 7}
    assert client.get("/orders/x").status_code == 422
    assert "http_requests_total" in client.get("/metrics").text
"""


def test_an_app_without_orjson() -> None:
    """Without orjson the lines of an app are the same, but for times and ids."""
    lines = {}
    for mode in ("with", "without"):
        command = [sys.executable, "-c", APP, mode]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)  # noqa: S603 - this file's app
        assert run.stderr == ""
        lines[mode] = [orjson.loads(line) for line in run.stdout.splitlines()]
    shapes = [
        [(line["message"], sorted(line), line.get("fields", {}).get("name")) for line in lines[mode]] for mode in lines
    ]
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) >= 3
