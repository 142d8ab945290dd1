"""Logged objects: redacted by the names and strings in them, copied only if needed, bounded."""

from __future__ import annotations

import collections
import enum
import sqlite3
import string
import types
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

import pydantic
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from fastapi_observe import install
from fastapi_observe.records.exceptions import error_type_of, exception_message, exception_stacktrace
from fastapi_observe.redaction.patterns import MAX_SCANNED_LENGTH
from fastapi_observe.redaction.redactor import (
    DEFAULT_REDACTOR,
    MAX_FIELD_NAME_LENGTH,
    Redactor,
)
from fastapi_observe.redaction.values import (
    ELLIPSIS,
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_LARGE_CONTAINER_MEMBERS,
    MAX_MEMBERS,
)
from fastapi_observe.testing import capture

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"
CARD = "4111111111111111"


class Colour(enum.Enum):
    """An enum with and without a secret."""

    RED = "red"
    SECRET = JWT


@dataclass
class Account:
    """A data class with a secret."""

    name: str
    password: str
    _hidden: str = "x"


class Odd:
    """An object whose string cannot be made."""

    def __str__(self) -> str:
        raise RuntimeError


Point = collections.namedtuple("Point", "x password")  # noqa: PYI024 - the untyped one


def test_objects_without_secrets_are_returned_as_they_are() -> None:
    """The same object is returned: nothing is copied, nothing becomes a string."""
    for value in (1, 1.5, None, True, "x", b"x", [1, ["a"]], (1, 2), {"a": {"b": 1}}, {1, 2}, Colour.RED, UUID(int=1)):
        assert DEFAULT_REDACTOR.value(value) is value
    for odd in (object(), 10**15, 10**30, collections.deque([1]), collections.ChainMap({"a": 1}), KeyError("x")):
        assert DEFAULT_REDACTOR.value(odd) is odd
    fields = {"order_id": 7, "note": "x", "password": None, "token": True, "secret": ""}
    assert DEFAULT_REDACTOR.fields(fields) is fields


def test_secrets_at_any_depth() -> None:
    """Names apply at any depth of mappings and data classes; strings are redacted anywhere."""
    value = {
        "user": {"clientSecret": ["x"], "pin": 1234, "names": ["ann"]},
        "texts": (JWT, [f"password={JWT}"], {JWT}, collections.deque([JWT])),
        "card": int(CARD),
        "bytes": JWT.encode(),
        "enum": Colour.SECRET,
        "account": Account("ann", "hunter2"),
        "point": Point(1, "hunter2"),
        JWT: 1,
        7: {"token": 1.5},
        "error": ValueError("password=x"),
        "db": sqlite3.OperationalError('near "hunter2": syntax error'),
        "map": collections.ChainMap({"token": "x"}),
        "command": ["run", "--token", "hunter2", "--verbose", "--password", "hunter2"],
        "options": ("--verbose", "token", "--api-key"),
        "three arguments": ("login", "--db.password", "hunter2"),
    }
    before = repr(value)
    assert DEFAULT_REDACTOR.value(value) == {
        "user": {"clientSecret": "REDACTED", "pin": "REDACTED", "names": ["ann"]},
        "texts": ["REDACTED", ["password=REDACTED"], ["REDACTED"], ["REDACTED"]],
        "card": "REDACTED",
        "bytes": "REDACTED",
        "enum": "REDACTED",
        "account": {"name": "ann", "password": "REDACTED"},
        "point": {"x": 1, "password": "REDACTED"},
        "REDACTED": 1,
        7: {"token": "REDACTED"},
        "error": "password=REDACTED",
        "db": 'near "REDACTED": syntax error',
        "map": {"token": "REDACTED"},
        "command": ["run", "--token", "REDACTED", "--verbose", "--password", "REDACTED"],
        "options": ("--verbose", "token", "--api-key"),
        "three arguments": ["login", "--db.password", "REDACTED"],
    }
    assert repr(value) == before


def test_cycles_depth_and_size_are_bounded() -> None:
    """Cycles, depth and size are bounded; an object that raises is replaced."""
    cycle: list[Any] = [1]
    cycle.append(cycle)
    assert DEFAULT_REDACTOR.value(cycle) == [1, "<cycle>"]
    deep: list[Any] = []
    for _ in range(MAX_DEPTH + 5):
        deep = [deep]
    assert "<too deep>" in str(DEFAULT_REDACTOR.value(deep))
    assert len(DEFAULT_REDACTOR.value(list(range(MAX_MEMBERS + 5)))) == MAX_LARGE_CONTAINER_MEMBERS
    assert DEFAULT_REDACTOR.value(Odd()) == "<unprintable Odd>"


class Pair(NamedTuple):
    """A named tuple."""

    first: Any
    second: Any


def test_the_values_of_a_line_share_one_limit() -> None:
    """A shared part counts each time it occurs; all values of a line share members and characters."""
    shared: Any = "x" * 100
    for _ in range(5):
        shared = [shared] * 20
    shown = DEFAULT_REDACTOR.fields({"a": shared, "b": shared, "c": [1], "d": {"e": 1}, "f": [], "g": 7, "h": "text"})
    assert len(repr(shown)) < 200_000
    assert repr(shown).count("'<too large>'") > 3
    assert [shown[name] for name in "cdfgh"] == ["<too large>", "<too large>", [], 7, "text"]
    assert len(DEFAULT_REDACTOR.value(list(range(MAX_MEMBERS)))) == MAX_MEMBERS
    big = "y" * 1_000_000
    texts = DEFAULT_REDACTOR.value([big] * 50)
    assert texts[-1] == ELLIPSIS
    assert sum(map(len, texts)) < 2 * MAX_CHARACTERS
    assert DEFAULT_REDACTOR.fields({f"n{number}": big for number in range(20)})["n19"] == ELLIPSIS
    many = DEFAULT_REDACTOR.fields({f"n{number}": number for number in range(MAX_MEMBERS + 1)})
    assert len(many) == MAX_LARGE_CONTAINER_MEMBERS
    assert DEFAULT_REDACTOR.fields({"n" * 1000: 1, "m": 2}) == {"n" * MAX_FIELD_NAME_LENGTH: 1, "m": 2}
    assert len(DEFAULT_REDACTOR.value(b"z" * 1_000_000)) == MAX_SCANNED_LENGTH
    assert DEFAULT_REDACTOR.value(Pair(shared, {1: b"x"})) == "<too large Pair>"
    assert DEFAULT_REDACTOR.value(ValueError(shared, 1)) == "<too large ValueError>"
    small = Pair(1, {1: b"x"})
    assert DEFAULT_REDACTOR.value(small) is small


def test_undeclared_attributes_of_a_data_class_are_dropped() -> None:
    """Only declared fields are reported."""

    @dataclass
    class Point:
        x: int

    point: Any = Point(1)
    assert DEFAULT_REDACTOR.value(point) is point
    point.password = "hunter" + "2"
    assert DEFAULT_REDACTOR.value(point) == {"x": 1}


def test_personal_data() -> None:
    """Personal fields are redacted and addresses shortened, unless `capture_pii` is set."""
    fields: dict[str, Any] = {
        "user.email": "ann@example.com",
        "enduser.id": "ann",
        "client.address": "203.0.113.7",
        "x_forwarded_for": "203.0.113.7",
        "x-real-ip": 7,
    }
    assert DEFAULT_REDACTOR.fields(fields) == {
        "user.email": "REDACTED",
        "enduser.id": "REDACTED",
        "client.address": "203.0.113.0/24",
        "x_forwarded_for": "203.0.113.0/24",
        "x-real-ip": 7,
    }
    assert Redactor(capture_pii=True).fields(fields) is fields


@given(
    st.recursive(
        st.one_of(st.text(max_size=20), st.integers(), st.none(), st.binary(max_size=9)),
        lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(string.ascii_letters), inner)),
        max_leaves=20,
    )
)
def test_redaction_is_idempotent_for_any_object(value: Any) -> None:
    """Nothing raises, and redacting the result again changes nothing."""
    shown = DEFAULT_REDACTOR.value(value)
    assert DEFAULT_REDACTOR.value(shown) == shown


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    user: str = "ann"
    pin: str = "hunter2Zq"
    quiet: str = pydantic.Field("unseen", repr=False)


NAMED_VALUES = [
    ([(b"cookie", b"x"), (b"a", b"b")], [[b"cookie", "REDACTED"], (b"a", b"b")]),
    (("password", ["x"]), ["password", "REDACTED"]),
    ((1, 2), (1, 2)),
    ({"password": "x"}.items(), [["password", "REDACTED"]]),
    ({"name": "password", "value": "x"}, {"name": "password", "value": "REDACTED"}),
    ({"key": "Authorization", "value": "x"}, {"key": "Authorization", "value": "REDACTED"}),
    ({"name": "lamp", "value": "x"}, {"name": "lamp", "value": "x"}),
    ({"id": "password", "type": "text", "value": "x"}, {"id": "password", "type": "text", "value": "REDACTED"}),
    ({"Key": "Password", "Value": "x", "a": 1}, {"Key": "Password", "Value": "REDACTED", "a": 1}),
    (
        {"ParameterKey": "DBPassword", "ParameterValue": "x"},
        {"ParameterKey": "DBPassword", "ParameterValue": "REDACTED"},
    ),
    ({"FIELD": "pin", "old": "x", "New": "y"}, {"FIELD": "pin", "old": "REDACTED", "New": "REDACTED"}),
    (("password", "=", "x"), ["password", "REDACTED", "REDACTED"]),
    ((b"cookie", b"x", True), [b"cookie", "REDACTED", True]),
    ((1, 2, 3), (1, 2, 3)),
    (["password", "a", "b"], ["password", "a", "b"]),
    (
        {"loc": ("a",), "msg": "m", "input": 1, "ctx": {"a": 1}},
        {"loc": ("a",), "msg": "m"} | dict.fromkeys(("input", "ctx"), "REDACTED"),
    ),
    (_Model(session="x"), {"user": "ann", "pin": "REDACTED", "session": "REDACTED"}),
    (types.SimpleNamespace(pin="x", a=1), {"pin": "REDACTED", "a": 1}),
]


def test_values_are_judged_by_the_names_beside_them() -> None:
    """Pairs, `name` and `value`, validation errors, models and namespaces are redacted by their names."""
    for value, shown in NAMED_VALUES:
        assert DEFAULT_REDACTOR.value(value) == shown


def test_models_and_namespaces_without_secrets_stay() -> None:
    """A model class, a named tuple and a namespace without secrets are returned as they are."""
    for value in (types.SimpleNamespace(a=1), Point(1, None), _Model):
        assert DEFAULT_REDACTOR.value(value) is value


def test_errors_raised_from_a_driver_error() -> None:
    """The message of an exception that was raised from a driver error loses its quoted parts too."""
    exc = RuntimeError('db failed: syntax error at or near "hunter2Zq"')
    exc.__cause__ = sqlite3.OperationalError("x")
    assert exception_message(exc) == 'db failed: syntax error at or near "REDACTED"'
    assert "hunter2Zq" not in exception_stacktrace(exc)


def test_names_of_operations_are_redacted() -> None:
    """A name that looks like a secret is redacted in label and span name alike."""
    app = FastAPI()
    observe = install(app)
    with capture(app) as seen, observe.operation(f"job {JWT}"), observe.external.call(f"s {JWT}", f"o {JWT}"):
        pass
    observe.close()
    seen.assert_no_leak(JWT)
    assert error_type_of(type(JWT.replace(".", "_"), (Exception,), {})()) != JWT


def test_fields_that_name_each_other() -> None:
    """A field `value` is redacted if a field next to it, such as `key`, has a secret name as its value."""
    assert DEFAULT_REDACTOR.fields({"key": "password", "value": "x", "a": 1}) == {
        "key": "password",
        "value": "REDACTED",
        "a": 1,
    }
    fields = {"key": "color", "value": "red"}
    assert DEFAULT_REDACTOR.fields(fields) is fields
