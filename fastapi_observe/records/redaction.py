"""What may be shown of a query string and of free text: keys, and the values that the settings allow."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

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

    Hidden are user and password, query and fragment of a URL, the query of a path, what follows a name such as
    `password` or `token`, SQLAlchemy's `[SQL: ...]` and `[parameters: ...]`, pydantic's `input_value=...` and what
    PostgreSQL repeats of values and statements. The time is linear in the text: whatever a pattern begins to read it
    keeps.
    """
    for pattern, instead in _KNOWN:
        text = pattern.sub(instead, text)
    return text


def redact_quoted(text: str) -> str:
    """Return the text of a database's error without what it quotes: statements, values, names."""
    return _QUOTED.sub(_hide_quoted, _NEAR.sub(rf"\g<1>{REDACTED}", text))


def _hide_quoted(match: re.Match[str]) -> str:
    return f"{match[0][0]}{REDACTED}{match[0][0]}"


_QUOTED: Final = re.compile(r"""(?<![A-Za-z])"[^"]*+(?:"|\Z)|(?<![A-Za-z])'[^']*+(?:'|\Z)""")
_NEAR: Final = re.compile(r"(no such (?:column|function|collation sequence|module): |unrecognized token: )[^\n]*+")
"""Quoted parts, apostrophes of words aside; what SQLite repeats without quotes."""

_TO_THE_END: Final = r".*?(?=\n\n(?:During handling|The above exception)|\Z)"  # of this exception: values have any form


def _hide_in_url(match: re.Match[str]) -> str:
    """Hide whatever stands before the last `@` of a URL, and behind its first `?` or `#`."""
    rest = match[1]
    before, at, after = rest.rpartition("@")
    shown = f"{REDACTED}:{REDACTED}@" if at and (before or after) else ""
    path = after if at else rest
    ends = [path.find(mark) for mark in "?#" if mark in path]
    if not ends:
        return f"://{shown}{path}"
    return f"://{shown}{path[: min(ends) + 1]}{REDACTED}"


_KNOWN: Final[tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]] = (
    (re.compile(r"://([^\s'\"<>]++)"), _hide_in_url),
    (re.compile(r"(?<=[\w/])\?(?=[^\s'\"=&]{1,64}=)[^\s'\"]*+"), f"?{REDACTED}"),
    (
        re.compile(
            r"((?:password|passwd|pwd|secret|token|api[-_]?key|authorization|credential)[\w-]{0,32}['\"]?\s{0,4}[=:]\s{0,4})"
            r"(?:(?:bearer|basic|digest|token)\s++)?(?:'[^'\n]*+'?|\"[^\"\n]*+\"?|[^\s,;&'\")\]}]++)",
            re.IGNORECASE,
        ),
        rf"\1{REDACTED}",
    ),
    (re.compile(r"\b(Bearer|Basic)\s{1,4}(?!REDACTED)[\w.~+/=-]{8,}+", re.IGNORECASE), rf"\1 {REDACTED}"),
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
