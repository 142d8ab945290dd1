"""What of a query string may be shown: its keys, and the values that the settings allow."""

from __future__ import annotations

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
    return part if not (equals and value) or key in allow else f"{key}={REDACTED}"
