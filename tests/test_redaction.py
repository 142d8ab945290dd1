"""What may be shown of queries and of free text."""

from __future__ import annotations

import pytest

from fastapi_observe.records.redaction import redact_query, redact_text


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        (b"q=lamp&page=2", "q=REDACTED&page=2"),
        (b"eyJhbGciOiJzZWNyZXQtdG9rZW4", "REDACTED"),
        (b"page&x", "page&REDACTED"),
        (b"a=&&b=1;c=2", "a=&&b=REDACTED&c=REDACTED"),
    ],
)
def test_values_are_hidden_unless_allowed(query: bytes, shown: str) -> None:
    """A value is shown only if its name is allowed; a part without a name counts as a value."""
    assert redact_query(query, frozenset({"page"})) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no route to postgres://shop:hunter2@db/shop", "no route to postgres://REDACTED:REDACTED@db/shop"),
        ("401 for url 'https://x.example/a?api_key=hunter2'", "401 for url 'https://x.example/a?REDACTED'"),
        ("[parameters: ('hunter2', [1])]\n(Background ...)", "[parameters: REDACTED]\n(Background ...)"),
        ("input_value='hunter2', input_type=str]", "input_value=REDACTED, input_type=str]"),
        ("order 7 was not found: ratio 3:4, a@b", "order 7 was not found: ratio 3:4, a@b"),
    ],
)
def test_what_libraries_put_into_their_errors_is_hidden(text: str, shown: str) -> None:
    """Passwords and queries of URLs, bound parameters and refused input do not leave with an exception's text."""
    assert redact_text(text) == shown


def test_the_time_is_linear_in_the_text() -> None:
    """Nothing is repeated in a repeat: a hostile text of 8 KiB is gone through without a hang."""
    for piece in ("://", "://a:", "https://a", "[parameters: ", "input_value=", "?"):
        assert len(redact_text(piece * 2000)) <= 2000 * (len(piece) + 30)
