"""What may be shown of a query string and of free text: keys, and the values that the settings allow."""

from __future__ import annotations

import re
from typing import Final

LONGEST_QUERY: Final = 1024
"""Bytes of a query string that are looked at, and characters that are shown; the rest is left away."""

REDACTED: Final = "REDACTED"


def redact_query(query: bytes | str, allow: frozenset[str]) -> str:
    """Return `query` with every value replaced by `REDACTED` whose key is not in `allow`.

    Keys are compared as they were sent. `;` separates like `&`: some parsers read it so.
    """
    query = query[:LONGEST_QUERY]
    text = query if isinstance(query, str) else query.decode("latin-1")
    return "&".join([_redact_part(part, allow) for part in text.replace(";", "&").split("&")])[:LONGEST_QUERY]


def _redact_part(part: str, allow: frozenset[str]) -> str:
    key, equals, value = part.partition("=")
    if not equals:  # a value without a name, as some send their token
        return part if not part or part in allow else REDACTED
    return part if not value or key in allow else f"{key}={REDACTED}"


def redact_text(text: str) -> str:
    """Return free text (of an exception) without what libraries are known to put into it.

    Hidden are user and password of a URL, the values of its query, SQLAlchemy's `[SQL: ...]` and `[parameters: ...]`,
    pydantic's `input_value=...` and what PostgreSQL repeats of values and statements. The time is linear in the text.
    """
    for pattern, instead in _KNOWN:
        text = pattern.sub(instead, text)
    return text


_TO_THE_END: Final = r".*?(?=\n\n(?:During handling|The above exception)|\Z)"  # of this exception: values have any form

_KNOWN: Final = (
    (re.compile(r"(?<=://)[^\s/@:'\"]{0,256}:[^\s/@'\"]{0,256}@"), f"{REDACTED}:{REDACTED}@"),
    (re.compile(r"(https?://[^\s'\"?]{1,1024})\?[^\s'\"]+"), rf"\1?{REDACTED}"),
    (re.compile(r"\[SQL: (?:.*?\](?=\n\[parameters: |\n\(Background|\n?\Z|\n\n)|.*)", re.DOTALL), f"[SQL: {REDACTED}]"),
    (re.compile(r"\[parameters: [^\n]*"), f"[parameters: {REDACTED}]"),
    (
        re.compile(
            r"(\n(?:(?:DETAIL|CONTEXT|QUERY): |LINE \d{1,9}:)|invalid input (?:syntax|value) for [^\n:]{1,256}:"
            r"|invalid input for query argument [^\n:]{1,128}:|malformed \w{1,64} literal:|field value out of range:) "
            + _TO_THE_END,
            re.DOTALL,
        ),
        rf"\1 {REDACTED}",
    ),
    (re.compile(r"(?<=value )\"[^\"]{0,1024}\"(?= is out of range)"), REDACTED),
    (re.compile(r"input_value=[^\n]*?(?=, input_type=|$)", re.MULTILINE), f"input_value={REDACTED}"),
)
