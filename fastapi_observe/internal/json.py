"""`dumps` and `loads` of orjson, or the same in Python where orjson is not installed.

orjson has no wheels for free-threaded builds of Python. The same bytes are written and the same values refused.
"""

from __future__ import annotations

import dataclasses
import json
import math
from datetime import date, datetime, time, timedelta
from enum import Enum
from json.encoder import encode_basestring as encode_string
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["dumps", "loads"]

MAX_NESTING: Final = 254
"""Maximum nesting, and maximum number of values in a row that `default` returns for one another."""
_MIN_INT: Final = -(2**63)
_MAX_INT: Final = 2**64 - 1
_SMALLEST_DECIMAL: Final = 1e-5
"""The smallest number that orjson writes without an exponent. Python's `repr` has one below 0.0001."""


def python_dumps(value: Any, default: Callable[[Any], Any] | None = None) -> bytes:
    """Return `value` as JSON, as `orjson.dumps(value, default)` does.

    Raises `TypeError` for what orjson refuses: cycles, keys that are not strings, integers beyond 64 bits and lone
    surrogates.
    """
    try:
        return "".join(_encode(value, default, 0, 0)).encode()
    except UnicodeEncodeError as exc:
        raise TypeError("str is not valid UTF-8: surrogates not allowed") from exc


def python_loads(data: bytes | bytearray | memoryview | str) -> Any:
    """Return the value of JSON that `dumps` wrote. Raises `json.JSONDecodeError`, a `ValueError`, for other input."""
    try:
        return json.loads(data if isinstance(data, str) else bytes(data).decode())
    except (UnicodeDecodeError, RecursionError) as exc:
        raise json.JSONDecodeError(type(exc).__name__, "", 0) from exc


def _encode(value: Any, default: Callable[[Any], Any] | None, depth: int, defaults: int) -> Iterable[str]:  # noqa: C901, PLR0912 - one branch a type
    """Yield the parts of the JSON of `value`."""
    kind = type(value)
    if kind is str:
        yield encode_string(value)
    elif value is None:
        yield "null"
    elif kind is bool:
        yield "true" if value else "false"
    elif kind is int:
        yield _encode_int(value)
    elif kind is float:
        yield _encode_float(value)
    elif kind is datetime:
        yield f'"{_datetime_text(value)}"'
    elif kind is date or kind is UUID:
        yield f'"{value}"'
    elif kind is time:
        if value.tzinfo is not None:
            raise TypeError("datetime.time must not have tzinfo set")
        yield f'"{value.isoformat()}"'
    elif kind is list or kind is tuple:
        yield from _encode_items(value, default, depth, defaults)
    elif kind is dict:
        yield from _encode_object(value.items(), default, depth, defaults)
    elif isinstance(value, Enum):
        yield from _encode(value.value, default, depth, defaults)
    elif isinstance(value, str):
        yield encode_string(str.__str__(value))
    elif isinstance(value, int):
        yield _encode_int(int.__int__(value))
    elif isinstance(value, list):
        yield from _encode_items(value, default, depth, defaults)
    elif isinstance(value, dict):
        yield from _encode_object(dict.items(value), default, depth, defaults)
    elif dataclasses.is_dataclass(kind):
        yield from _encode_object(_dataclass_items(value), default, depth, defaults)
    elif default is None or defaults > MAX_NESTING:
        raise TypeError(f"Type is not JSON serializable: {kind.__name__}")
    else:
        yield from _encode(default(value), default, depth, defaults + 1)


def _encode_items(
    items: list[Any] | tuple[Any, ...], default: Callable[[Any], Any] | None, depth: int, defaults: int
) -> Iterable[str]:
    _check_depth(depth)
    yield "["
    for index, item in enumerate(items):
        if index:
            yield ","
        yield from _encode(item, default, depth + 1, defaults)
    yield "]"


def _encode_object(
    items: Iterable[tuple[Any, Any]], default: Callable[[Any], Any] | None, depth: int, defaults: int
) -> Iterable[str]:
    _check_depth(depth)
    separator = "{"
    for name, value in items:
        if type(name) is not str:
            raise TypeError("Dict key must be str")
        yield f"{separator}{encode_string(name)}:"
        yield from _encode(value, default, depth + 1, defaults)
        separator = ","
    yield "{}" if separator == "{" else "}"


def _check_depth(depth: int) -> None:
    if depth >= MAX_NESTING:
        raise TypeError("Recursion limit reached")


def _dataclass_items(value: Any) -> Iterable[tuple[str, Any]]:
    names = (field.name for field in dataclasses.fields(value))
    return ((name, getattr(value, name)) for name in names if not name.startswith("_"))


def _encode_int(value: int) -> str:
    if not _MIN_INT <= value <= _MAX_INT:
        raise TypeError("Integer exceeds 64-bit range")
    return int.__repr__(value)


def _encode_float(value: float) -> str:
    if not math.isfinite(value):
        return "null"
    text = float.__repr__(value)
    mantissa, separator, exponent = text.partition("e")
    if not separator:
        return text
    if _SMALLEST_DECIMAL <= abs(value) < 1:
        sign, digits = "-" * (value < 0), mantissa.lstrip("-").replace(".", "")
        return f"{sign}0.0000{digits}"
    return f"{mantissa}e{int(exponent):+d}"


def _datetime_text(value: datetime) -> str:
    """Return the date and time in RFC 3339, which has no seconds in an offset: they are rounded to minutes."""
    offset = value.utcoffset()
    text = value.replace(tzinfo=None).isoformat()
    if offset is None:
        return text
    seconds = offset // timedelta(seconds=1)
    hours, minutes = divmod((abs(seconds) + 30) // 60, 60)
    return f"{text}{'-' if seconds < 0 else '+'}{hours:02d}:{minutes:02d}"


try:
    from orjson import dumps, loads
except ImportError:
    dumps, loads = python_dumps, python_loads  # type: ignore[assignment]  # without orjson's third parameter
