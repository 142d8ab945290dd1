"""A YAML writer: deterministic, without aliases, with quotes only where they are needed."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PLAIN: Final = re.compile(r"[A-Za-z_/][A-Za-z0-9_./ -]*|[A-Za-z_][A-Za-z0-9_:]*[A-Za-z0-9_]|[0-9]+(?:ms|s|m|h|d|w)")
"""Strings that every YAML version reads as strings: words, paths, names of rules, durations."""

RESERVED_WORDS: Final = frozenset(
    {"true", "false", "yes", "no", "on", "off", "y", "n", "null", "nan", "inf", "infinity"}
)
ESCAPES: Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t"}


def dump(value: Any) -> str:
    """Write a document of dicts (in their order), lists, strings, numbers, booleans and None.

    Raises `TypeError` for anything else.
    """
    if isinstance(value, dict | list | tuple) and value:
        return "\n".join(_lines(value)) + "\n"
    return _scalar(value) + "\n"


def _lines(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _entry(f"{_scalar(name)}:", item)
    else:
        for item in value:
            if isinstance(item, dict | list | tuple) and item:
                first, *rest = _lines(item)
                yield f"- {first}"
                yield from _indent(rest)
            else:
                yield from _entry("-", item)


def _entry(start: str, item: Any) -> Iterator[str]:
    if isinstance(item, dict | list | tuple) and item:
        yield start
        yield from _indent(_lines(item))
    elif isinstance(item, str) and _fits_block(item):
        yield f"{start} |-"
        yield from _indent(item.split("\n"))
    else:
        yield f"{start} {_scalar(item)}"


def _indent(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield f"  {line}" if line else line


def _fits_block(text: str) -> bool:
    """Return whether a string of several lines reads back unchanged from a literal block."""
    lines = text.split("\n")
    printable = all(line.isprintable() and line == line.rstrip() for line in lines)
    return len(lines) > 1 and printable and bool(lines[0]) and lines[0][0] != " " and bool(lines[-1])


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | Decimal):
        return _number(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, dict | list | tuple):  # only an empty one gets here
        return "{}" if isinstance(value, dict) else "[]"
    raise TypeError(f"cannot write {value!r:.80} as YAML")


def _number(value: float | Decimal) -> str:
    if not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    written = format(value, "f") if isinstance(value, Decimal) else repr(value)
    return written if "." in written else written.replace("e", ".0e")


def _string(text: str) -> str:
    if PLAIN.fullmatch(text) and text.lower() not in RESERVED_WORDS and text == text.strip():
        return text
    if text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    return '"' + "".join(ESCAPES.get(each) or _escape(each) for each in text) + '"'


def _escape(character: str) -> str:
    number = ord(character)
    if 0xD800 <= number <= 0xDFFF:  # noqa: PLR2004 - a lone surrogate cannot be encoded as UTF-8
        return "\\ufffd"
    if character.isprintable():
        return character
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"  # noqa: PLR2004 - the two forms of YAML
