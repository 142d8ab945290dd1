"""Replacement of secret values in strings, so that JSON and the `repr` of a dict stay what they are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from fastapi_observe.redaction.patterns import QUOTED_STRING, REDACTED, SQL_PLACEHOLDER, VALUE_BEFORE_NAME
from fastapi_observe.redaction.source_code import is_source_line

if TYPE_CHECKING:
    from collections.abc import Callable

_KEY_QUOTE: Final = re.compile(r"(\\*+['\"])(?!\])")
"""The quote after a name that is a key of JSON or of a `repr`, with its backslashes."""

_VALUE_QUOTE: Final = re.compile(r"[bfruBFRU]{0,2}(\\*+['\"])")
_SPACE: Final = r"(?>(?:\s|\\++[nrt])*)"
"""White space, which has escapes in JSON inside a JSON string."""
_SCALAR: Final = re.compile(
    rf"(?:-?[0-9][0-9.eE+-]*+|true|false|True|False)(?={_SPACE}(?:[}}\])]|,(?:[\s\\'\"]|\Z)|\Z))"
)
_MEMBER_END: Final = re.compile(rf"{_SPACE}(?:[,}}\])]|\\*+['\"]|\Z)|\s")
_STRING_END: Final = re.compile(
    r"[^'\"\\]*+(?>(?:\\++(?!['\"])[^'\"\\]*+)*)"
    r"(?=\\*+['\"](?:\s?[}\])]{1,8}+(?:[,;\s]|\\*+['\"]|\Z)|,\s?\\*+['\"]|,?\Z))"
)
"""A value without quotes, up to the quote that ends the string that it is in."""

_NOT_BRACKETS: Final = re.compile(r"[^'\"\\\[\]{}]++|\\++(?!['\"])")


def hide_values(text: str, key: re.Pattern[str], value_end: Callable[[re.Match[str]], int]) -> str:
    """Hide the value after each match of `key`; `value_end` returns its end, or the end of the match to skip it."""
    parts: list[str] = []
    done = at = 0
    while (match := key.search(text, at)) is not None:
        at = match.end()
        end = value_end(match)
        if end > at and not SQL_PLACEHOLDER.fullmatch(text, at, end):
            end, hidden = _replacement(text, match, end)
            parts += [text[done:at], hidden]
            done = at = end
    return "".join([*parts, text[done:]]) if parts else text


def hide_values_before_names(text: str, is_secret: Callable[[str], bool]) -> str:
    """Hide the value in `{"value": ..., "name": "password"}`."""

    def hide(match: re.Match[str]) -> str:
        if not is_secret(match["name"]):
            return match[0]
        quote = _VALUE_QUOTE.match(match["value"]) or re.search(r"(\\*+['\"])\s?[:=]", match["head"])
        return f"{match['head']}{_in_quotes(quote)}{match['tail']}"

    return VALUE_BEFORE_NAME.sub(hide, text)


def _replacement(text: str, match: re.Match[str], end: int) -> tuple[int, str]:
    """Return the end of a value and its replacement: in the quotes of the value, or in those of its key.

    Under a name without quotes, the replacement has none.
    """
    at = match.end()
    value_quote = _VALUE_QUOTE.match(text, at)
    key_quote = _KEY_QUOTE.match(text, match.end("name"))
    if value_quote is not None:
        return end, _in_quotes(value_quote if key_quote else None)
    if key_quote is not None:
        if text[at] in "[{" and not is_source_line(text, at):
            return _container_end(text, at, end), _in_quotes(key_quote)
        scalar = _SCALAR.match(text, at)
        if scalar is not None:
            return scalar.end(), _in_quotes(key_quote)
    inside = _STRING_END.match(text, at, end)
    if inside is not None and inside.end() > at:
        end = inside.end()
    return end, _in_quotes(key_quote)


def _in_quotes(quote: re.Match[str] | None) -> str:
    return REDACTED if quote is None else f"{quote[1]}{REDACTED}{quote[1]}"


def _container_end(text: str, at: int, line_end: int) -> int:
    """Return the end of the list or object at a position, or of the text if its brackets do not match."""
    depth, end, length = 0, at, len(text)
    while end < length:
        character = text[end]
        if character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
            if not depth:
                return end + 1 if _MEMBER_END.match(text, end + 1) else max(end + 1, line_end)
        else:
            token = _NOT_BRACKETS.match(text, end) or QUOTED_STRING.match(text, end)
            end = end + 1 if token is None else max(token.end(), end + 1)
            continue
        end += 1
    return length
