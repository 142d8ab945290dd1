"""What is redacted in JSON and in the `repr` of a dict keeps its quotes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_observe.redaction.patterns import MAX_CONTAINERS
from fastapi_observe.redaction.redactor import DEFAULT_REDACTOR

redact = DEFAULT_REDACTOR.text

SECRET_NAMES = st.sampled_from(["password", "api_key", "client_secret", "pin"])
SCALARS = (
    st.text(max_size=12) | st.integers(10, 10**6) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
)
CONTAINERS = st.recursive(
    st.text("abc ,:'[]{}", max_size=5) | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(SECRET_NAMES, SCALARS, st.dictionaries(st.sampled_from(["user", "id"]), st.integers(0, 99)))
def test_json_stays_valid(name: str, value: Any, others: dict[str, int]) -> None:
    """Whatever the value is; the other members are kept, and a second pass changes nothing."""
    for members in ({name: value, **others}, {**others, name: value}, {"a": {**others, name: value}, "b": 1}):
        for text in (json.dumps(members), json.dumps(members, separators=(",", ":"), ensure_ascii=False)):
            found = json.loads(redact(text))
            inner = found.get("a", found)
            assert inner == {**others, name: "REDACTED"}
            assert redact(redact(text)) == redact(text)


@given(SECRET_NAMES, st.lists(CONTAINERS, max_size=3) | st.dictionaries(st.text("abc", max_size=3), CONTAINERS))
def test_lists_and_objects_are_replaced_as_a_whole(name: str, value: Any) -> None:
    """What follows them is kept."""
    assert json.loads(redact(json.dumps({name: value, "user": 7}))) == {name: "REDACTED", "user": 7}


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("{'user': 'ada', 'password': 'x y'}", "{'user': 'ada', 'password': 'REDACTED'}"),
        ('{"Authorization": "Basic x", "a": 1}', '{"Authorization": "REDACTED", "a": 1}'),
        ('["password", "x"]', '["password", "REDACTED"]'),
        ('{"value": "x", "name": "password"}', '{"value": "REDACTED", "name": "password"}'),
        (
            '{"m": "{\\"password\\": \\"x\\\\\\"y\\", \\"b\\": 1}"}',
            '{"m": "{\\"password\\": \\"REDACTED\\", \\"b\\": 1}"}',
        ),
        ('{"password": "cut of', '{"password": REDACTED'),
        ('password="x", a=1', "password=REDACTED, a=1"),
        ("{'password': ['x', 'y'], 'b': 1}", "{'password': REDACTED"),
        ('{"password": ["x\\n"], "b": 1}', '{"password": REDACTED'),
        ('{"password": ["x", "b": 1}', '{"password": REDACTED'),
        ('{"password": ["x"]y, "b": 1}', '{"password": REDACTED'),
        ('{"password": ' + "[" * 5000, '{"password": REDACTED'),
    ],
)
def test_quotes_that_are_kept(text: str, redacted: str) -> None:
    """They are those of the value. A list that is no JSON, or may be inside a string, is hidden with its line."""
    assert redact(text) == redacted


def test_many_lists_take_linear_time() -> None:
    """Each one is looked for up to the end of its line, so that only the first ones are replaced by themselves."""
    redacted = redact('{"a": 1' + ', "pin": []' * 30 + "}")
    assert redacted.count("REDACTED") == MAX_CONTAINERS + 1
    assert redacted.endswith('"pin": REDACTED')
