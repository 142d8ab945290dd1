"""The JSON of a log line, made from any Python object."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from datetime import date, datetime, time
from enum import Enum
from itertools import islice
from time import gmtime, strftime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi_observe.internal import json
from fastapi_observe.records.exceptions import error_type_of, exception_message, exception_stacktrace
from fastapi_observe.redaction.redactor import DEFAULT_REDACTOR

if TYPE_CHECKING:
    from fastapi_observe.formats.line_format import LineFormat
    from fastapi_observe.redaction.redactor import Redactor

MAX_LINE: Final = 16_384
"""Maximum bytes of a JSON line, including its newline."""

MAX_MESSAGE: Final = 4096
MAX_STACKTRACE: Final = 8192
MAX_VALUE: Final = 2048
"""Maximum characters of a message, of a stack trace and of a value."""


class LineLimits(NamedTuple):
    """Limits of a line: nesting depth, keys of an object, and characters of each part."""

    depth: int
    keys: int
    value: int
    message: int
    stacktrace: int
    name: int


LINE_LIMITS: Final = (
    LineLimits(6, 64, MAX_VALUE, MAX_MESSAGE, MAX_STACKTRACE, 256),
    LineLimits(4, 32, 256, 2048, 4096, 256),
    LineLimits(2, 16, 64, 512, 1024, 128),
)
MINIMAL: Final = LineLimits(0, 0, 0, 200, 400, 100)
"""Limits that always fit: a character takes at most seven bytes."""


DIGITS: Final = tuple(f"{number:03d}" for number in range(1000))
"""Three digits for each number below 1000, which costs less than formatting it."""

_SECOND: Final = 1_000_000
"""Microseconds."""

_SECOND_NS: Final = 1_000_000_000
"""Nanoseconds."""


class Timestamps:
    """Formats times as RFC 3339 in UTC with microseconds. The part before the point is cached for a second."""

    __slots__ = ("_second",)

    def __init__(self) -> None:
        self._second: tuple[int, str] = (-_SECOND_NS, "")

    def __call__(self, nanoseconds: int) -> str:
        """Format the time that many nanoseconds after the epoch."""
        start, text = self._second
        microseconds = (nanoseconds - start) // 1000
        if not 0 <= microseconds < _SECOND or type(microseconds) is float:  # a patched clock may return a float
            seconds, rest = divmod(int(nanoseconds), _SECOND_NS)
            text = strftime("%Y-%m-%dT%H:%M:%S.", gmtime(seconds))
            self._second = (seconds * _SECOND_NS, text)
            microseconds = rest // 1000
        return f"{text}{DIGITS[microseconds // 1000]}{DIGITS[microseconds % 1000]}Z"


def encode_line(line: dict[str, Any]) -> bytes:
    """Encode a line as JSON of at most `MAX_LINE` bytes, whatever objects are in it."""
    try:
        data = json.dumps(line, _convert) + b"\n"
    except Exception:  # noqa: BLE001 - cycles, keys, surrogates: JSON cannot hold them
        return _encode_safely(line)
    if not data.isascii():
        data = _escape_separators(data)
    return data if len(data) <= MAX_LINE else _encode_safely(line)


def encode_as(line_format: LineFormat, data: bytes) -> bytes:
    """Return an encoded line in another format, of at most `MAX_LINE` bytes."""
    if line_format.convert is None:
        return data
    line = json.loads(data)
    for limits in (None, *LINE_LIMITS):
        shortened = line if limits is None else json.loads(_encode_within(line, limits))
        converted = _escape_separators(json.dumps(line_format.convert(shortened))) + b"\n"
        if len(converted) <= MAX_LINE:
            return converted
    shortened = json.loads(_encode_within({**line, "fields": {}}, MINIMAL))
    return _escape_separators(json.dumps(line_format.convert(shortened))) + b"\n"


def encode_text(text: str) -> str:
    """Encode a string as JSON."""
    if len(text) <= MAX_VALUE and text.isascii() and text.isprintable() and not ('"' in text or "\\" in text):
        return f'"{text}"'
    return _escape_separators(json.dumps(_escape_and_truncate(text, MAX_VALUE))).decode()


def exception_object(exc: BaseException, redactor: Redactor = DEFAULT_REDACTOR) -> dict[str, str]:
    """Return the `exception` object of a line, without values of variables."""
    stacktrace = exception_stacktrace(exc, redactor)
    # The end has the cause.
    stacktrace = stacktrace if len(stacktrace) <= MAX_STACKTRACE else "…" + stacktrace[1 - MAX_STACKTRACE :]
    return {
        "type": error_type_of(exc),
        "message": truncate(exception_message(exc, redactor), MAX_VALUE),
        "stacktrace": stacktrace,
    }


def to_text(value: object, limit: int = MAX_VALUE) -> str:
    """Return at most `limit` characters of `str(value)`, or `<unprintable TypeName>` if that raises."""
    try:
        return truncate(str(value), limit)
    except Exception:  # noqa: BLE001 - `__str__` of any class
        return _unprintable(value)


def truncate(text: str, limit: int) -> str:
    """Return at most `limit` characters of `text`; if it is shortened, the last is `…`."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _unprintable(value: object) -> str:
    return f"<unprintable {type.__dict__['__name__'].__get__(type(value))}>"


def _convert(value: Any) -> Any:
    """Convert a value that the JSON encoder does not know."""
    with suppress(Exception):
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value).decode("latin-1")
        if isinstance(value, set | frozenset | deque):
            return list(value)
        if isinstance(value, Mapping):
            return dict(value)
        if isinstance(value, float):
            return float.__float__(value)
    return to_text(value)


def _escape_separators(data: bytes) -> bytes:
    """Escape the three characters beyond ASCII that some readers treat as the end of a line."""
    for raw, escaped in ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085")):
        data = data.replace(raw, escaped)
    return data


def _encode_safely(line: dict[str, Any]) -> bytes:
    for limits in LINE_LIMITS:
        data = _encode_within(line, limits)
        if len(data) <= MAX_LINE:
            return data
    return _encode_within({**line, "fields": {}}, MINIMAL)


def _encode_within(line: dict[str, Any], limits: LineLimits) -> bytes:
    encoded: dict[str, Any] = {}
    for key, value in line.items():
        if key == "fields":
            encoded[key] = to_json_safe(value, limits, limits.depth, ())
        elif key == "exception":
            encoded[key] = {
                "type": _escape_and_truncate(value["type"], limits.name),
                "message": _escape_and_truncate(value["message"], max(limits.value, limits.name)),
                "stacktrace": _escape_and_truncate(value["stacktrace"], limits.stacktrace),
            }
        else:
            encoded[key] = _escape_and_truncate(value, limits.message if key == "message" else limits.name)
    return _escape_separators(json.dumps(encoded) + b"\n")


def _escape_and_truncate(text: str, limit: int) -> str:
    """Truncate `text` and escape its lone surrogates."""
    return truncate(str.__str__(text), limit).encode("utf-8", "backslashreplace").decode()


def to_json_safe(value: Any, limits: LineLimits, depth: int, parents: tuple[int, ...]) -> Any:
    """Convert any object to JSON types, within `limits`. `parents` are the ids of the containers it is in."""
    try:
        if isinstance(value, Enum):
            value = value.value
        members = _members(value)
        if members is None:
            return _scalar_to_json(value, limits)
        if id(value) in parents or depth < 0:
            return "<cycle>" if id(value) in parents else "<too deep>"
        parents = (*parents, id(value))
        if isinstance(members, list):
            return [to_json_safe(each, limits, depth - 1, parents) for each in members[: limits.keys]]
        return {
            _escape_and_truncate(to_text(key), 128): to_json_safe(each, limits, depth - 1, parents)
            for key, each in islice(members.items(), limits.keys)
        }
    except Exception:  # noqa: BLE001 - methods of any class
        return _escape_and_truncate(_unprintable(value), limits.name)


def _scalar_to_json(value: Any, limits: LineLimits) -> Any:
    """Convert a value that is not a container to JSON types."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        real = float.__float__(value)
        return real if math.isfinite(real) else None
    if isinstance(value, int):
        value = int.__int__(value)
        if -(2**63) <= value < 2**64:
            return value
    elif isinstance(value, datetime | date | time):
        value = value.isoformat()
    elif isinstance(value, bytes | bytearray | memoryview):
        value = bytes(value[: limits.value]).decode("latin-1")
    elif isinstance(value, str):
        value = str.__str__(value)
    return _escape_and_truncate(to_text(value, limits.value), limits.value)


def _members(value: Any) -> dict[Any, Any] | list[Any] | None:
    """Return the members of a container, or None for any other value."""
    if isinstance(value, dict):
        return dict(dict.items(value))
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list | tuple | set | frozenset | deque):
        return list(islice(value, LINE_LIMITS[0].keys))
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclass_fields(value) if not field.name.startswith("_")]
        return {name: getattr(value, name) for name in names}
    return None
