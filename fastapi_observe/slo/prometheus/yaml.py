"""YAML as people write it: deterministic, without aliases, with quotes where they are needed."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

PLAIN: Final = re.compile(r"[A-Za-z_/][A-Za-z0-9_./ -]*|[A-Za-z_][A-Za-z0-9_:]*[A-Za-z0-9_]|[0-9]+(?:ms|s|m|h|d|w)")
"""Text that no version of YAML reads as anything else: words, paths, names of rules, durations."""

RESERVED: Final = frozenset({"true", "false", "yes", "no", "on", "off", "y", "n", "null", "nan", "inf", "infinity"})
ESCAPES: Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t"}


def dump(value: Any) -> str:
    """Write a document of dicts (in their order), lists, texts, numbers, truth values and None.

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
                yield from (f"  {line}" if line else line for line in rest)
            else:
                yield from _entry("-", item)


def _entry(start: str, item: Any) -> Iterator[str]:
    if isinstance(item, dict | list | tuple) and item:
        yield start
        yield from (f"  {line}" if line else line for line in _lines(item))
    elif isinstance(item, str) and _is_block(item):
        yield f"{start} |-"
        yield from (f"  {line}" if line else line for line in item.split("\n"))
    else:
        yield f"{start} {_scalar(item)}"


def _is_block(text: str) -> bool:
    """Say whether a text of several lines is read the same as a literal block."""
    lines = text.split("\n")
    usual = all(line.isprintable() and line == line.rstrip() for line in lines)
    return len(lines) > 1 and usual and bool(lines[0]) and lines[0][0] != " " and bool(lines[-1])


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | Decimal):
        return _number(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict | list | tuple):  # an empty one; others are written line by line
        return "{}" if isinstance(value, dict) else "[]"
    raise TypeError(f"{value!r:.80} cannot be written as YAML")


def _number(value: float | Decimal) -> str:
    if not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    written = format(value, "f") if isinstance(value, Decimal) else repr(value)
    return written if "." in written else written.replace("e", ".0e")


def _text(text: str) -> str:
    if PLAIN.fullmatch(text) and text.lower() not in RESERVED and text == text.strip():
        return text
    if text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    return '"' + "".join(ESCAPES.get(each) or _character(each) for each in text) + '"'


def _character(character: str) -> str:
    number = ord(character)
    if 0xD800 <= number <= 0xDFFF:  # noqa: PLR2004 - half a pair of UTF-16 is no character
        return "\\ufffd"
    if character.isprintable():
        return character
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"  # noqa: PLR2004 - the forms that YAML has
