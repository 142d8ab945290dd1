"""JSON and the `repr` of dicts in strings: they still parse when they are redacted, and have no secret."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastapi_observe.redaction.redactor import DEFAULT_REDACTOR

redact = DEFAULT_REDACTOR.text

MARK = "hunter2Zq"
SECRET_KEYS = ["password", "clientSecret", "api_key", "api key", "x-api-key", "Cookie", "credentials", "pin"]
PLAIN_KEYS = ["event", "user", "path", "a.b", "n"]

FRAGMENTS = st.lists(
    st.one_of(st.sampled_from([MARK, '"', "'", "\\", ", ", "}", "]", ":", " ", "\n", "é", "\u2028", "=", "/"])),
    max_size=8,
).map("".join)
SECRETS = st.recursive(
    st.one_of(
        FRAGMENTS.map(lambda text: f"{MARK}{text}{MARK}"), st.just(918273645), st.just(91.8273645), st.booleans()
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(PLAIN_KEYS), inner, max_size=3),
    max_leaves=4,
)
PLAIN_VALUES = st.one_of(
    st.sampled_from(["login", "", "a, b", "it's", '5" pipe', "C:\\", "https://x.example/a?b=c", "token expired"]),
    st.integers(-5, 5),
    st.floats(-2, 2, allow_nan=False),
    st.none(),
    st.booleans(),
)
OBJECTS: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.lists(
        st.tuples(st.sampled_from(SECRET_KEYS), SECRETS) | st.tuples(st.sampled_from(PLAIN_KEYS), PLAIN_VALUES),
        max_size=5,
    ).map(dict),
    lambda inner: st.tuples(inner, st.sampled_from(PLAIN_KEYS), inner | st.lists(inner, max_size=2)).map(
        lambda parts: {**parts[0], parts[1]: parts[2]}
    ),
    max_leaves=3,
)
ENCODINGS: list[dict[str, Any]] = [{}, {"separators": (",", ":")}, {"indent": 2}, {"ensure_ascii": False}]


def has_secret(text: str) -> bool:
    """Return whether any secret of `OBJECTS` is in a string."""
    return any(mark in text for mark in (MARK, "918273645", "91.8273645"))


@given(OBJECTS, st.sampled_from(ENCODINGS), st.integers(0, 2))
@example({"password": '"'}, {}, 2)
@example({"password": [], "n": 1}, {"separators": (",", ":")}, 2)
def test_redacted_json_parses(value: dict[str, Any], encoding: dict[str, Any], depth: int) -> None:
    """Only the values of secret names change, also in JSON inside JSON strings, and redacting again changes nothing."""
    text = json.dumps(value, **encoding)
    for _ in range(depth):
        text = json.dumps({"body": text, "n": 1}, **encoding)
    redacted = redact(text)
    assert not has_secret(redacted)
    assert redact(redacted) == redacted
    parsed = json.loads(redacted)
    for _ in range(depth):
        assert parsed["n"] == 1
        parsed = json.loads(parsed["body"])
    assert parsed.keys() == value.keys()
    for name, member in value.items():
        if name not in SECRET_KEYS and not isinstance(member, dict | list | str):
            assert parsed[name] == member
    cut = redact(text[: len(text) // 2])
    assert not has_secret(cut)
    assert redact(cut) == cut


REPRS = [
    ({"password": "hunter2", "n": 1}, "{'password': 'REDACTED', 'n': 1}"),
    ({"password": "it's hunter2", "n": 1}, """{'password': "REDACTED", 'n': 1}"""),
    ({"password": b"hunter2", "n": 1}, "{'password': 'REDACTED', 'n': 1}"),
    ({"tokens": ["hunter2", "hunter2"], "n": 1}, "{'tokens': 'REDACTED', 'n': 1}"),
    ({"pin": 1234, "n": 1}, "{'pin': 'REDACTED', 'n': 1}"),
    ({"body": '{"password": "hun\\"ter2"}', "n": 1}, """{'body': '{"password": "REDACTED"}', 'n': 1}"""),
    ({"body": b'{"password": "it\'s hunter2"}'}, """{'body': b'{"password": "REDACTED"}'}"""),
    ([("password", "hunter2"), ("n", 1)], "[('password', 'REDACTED'), ('n', 1)]"),
    ([{"name": "password", "value": "hunter2"}], "[{'name': 'password', 'value': 'REDACTED'}]"),
    ([{"value": "hunter2", "name": "password"}], "[{'value': 'REDACTED', 'name': 'password'}]"),
    (["login", "--password", "hunter2", "-v"], "['login', '--password', 'REDACTED', '-v']"),
]


@pytest.mark.parametrize(("value", "shown"), REPRS)
def test_redacted_reprs_are_literals(value: Any, shown: str) -> None:
    """The quotes of a value stay in the `repr` of a container, and a number gets those of its key."""
    assert redact(repr(value)) == shown
    ast.literal_eval(shown)
    text = json.dumps({"message": repr(value), "n": 1})
    assert json.loads(redact(text)) == {"message": shown, "n": 1}


TEXTS = [
    ('{"msg": "password=hunter2", "n": 1}', '{"msg": "password=REDACTED", "n": 1}'),
    ('{"msg":"login: password=hunter2","n":1}', '{"msg":"login: password=REDACTED","n":1}'),
    ('{"a": {"msg": "password: hunter2"}}', '{"a": {"msg": "password: REDACTED"}}'),
    ('{"a": ["session: a1b2c3d4e5f6a7b8"]}', '{"a": ["session: REDACTED"]}'),
    (r'{"a": "{\"url\": \"https://x/a?b=hunter2\"}"}', r'{"a": "{\"url\": \"https://x/a?b=REDACTED\"}"}'),
    ('sent {"password": "hunter2"} to db', 'sent {"password": "REDACTED"} to db'),
    ('{"password": "hunter2', '{"password": "REDACTED"'),
    (r'{"a": "{\"password\": \"hunter2', r'{"a": "{\"password\": \"REDACTED\"'),
    ('{"tokens": ["hunter2", "hunt', '{"tokens": "REDACTED"'),
    ('{"tokens": [\n  "hunter2",\n  "hunt', '{"tokens": "REDACTED"'),
    ('{"password": null, "n": 1}', '{"password": null, "n": 1}'),
    ('password: "hunter2"', "password: REDACTED"),
]


@pytest.mark.parametrize(("text", "shown"), TEXTS)
def test_json_in_texts(text: str, shown: str) -> None:
    """A secret in a JSON string ends with the string; one that is cut is redacted to the end."""
    assert redact(text) == shown
    assert redact(shown) == shown
