"""`ValueRedactor`: copies of any objects without their secrets, by the names and the strings in them."""

from __future__ import annotations

from collections import deque
from collections.abc import ItemsView, Mapping, ValuesView
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from datetime import date, time
from enum import Enum
from functools import lru_cache
from itertools import chain, islice
from operator import is_
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from fastapi_observe.redaction.names import MAX_COMPARED_LENGTH, split_words
from fastapi_observe.redaction.patterns import MAX_SCANNED_LENGTH, REDACTED, is_card_number, redact_database_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_MEMBERS: Final = 1000
"""Members of all containers of one log line or span that are read. A shared member counts each time it occurs."""

MAX_LARGE_CONTAINER_MEMBERS: Final = 64
"""Members that are reported of a container that exceeds the rest of `MAX_MEMBERS`."""

MAX_CHARACTERS: Final = 65_536
"""Characters of all strings of one log line or span that are scanned."""

MAX_DEPTH: Final = 32

# A container or string beyond the limits is replaced as a whole: a secret that is cut is not recognized as one.
TOO_LARGE: Final = "<too large>"
ELLIPSIS: Final = "…"

MIN_CARD_NUMBER: Final = 10**12
MAX_CARD_NUMBER: Final = 10**19

_PLAIN: Final = (bool, float, date, time, UUID)
_BYTES: Final = (bytes, bytearray, memoryview)
_LISTS: Final = (list, set, frozenset, deque, ItemsView, ValuesView)
_MIN_MEMBER_SIZE: Final = 64
"""Characters that each member counts for at least, when the length of a string is estimated."""

DATABASE_DRIVERS: Final = frozenset(
    """sqlite3 aiosqlite psycopg psycopg2 psycopg_pool asyncpg pymysql MySQLdb mysql aiomysql asyncmy mariadb oracledb
    cx_Oracle pyodbc pymssql sqlalchemy duckdb redis valkey pymongo motor cassandra clickhouse_driver""".split()  # noqa: SIM905 - a list would be a page long
)
"""Packages whose exceptions quote statements and values."""

PAIR: Final = 2
TRIPLE: Final = 3
VALIDATION_INPUT_KEYS: Final = frozenset({"input", "ctx"})
"""Keys of a pydantic error that repeat the rejected value."""

PAIR_NAME_KEYS: Final = frozenset(
    """name key header field parameter param attribute variable option property setting label id k""".split()  # noqa: SIM905 - a list would be longer
)
PAIR_VALUE_KEYS: Final = frozenset(
    """value values val v content data old new before after default current previous""".split()  # noqa: SIM905 - as above
)
"""Last words of the keys of a mapping that holds a name and its value: `{"ParameterKey": "password", "Value": ...}`."""


def is_database_error(kind: type[BaseException]) -> bool:
    """Return whether an exception class belongs to a database driver."""
    try:
        return any(base.__module__.partition(".")[0] in DATABASE_DRIVERS for base in kind.__mro__)
    except Exception:  # noqa: BLE001 - exception classes may override anything
        return False


class ValueRedactor:
    """Redacts the values of one log line or span. All of them share its limits.

    `redact_text` redacts a string; `value_for_name` returns the replacement of a value because of its name, or the
    value itself. A value without secrets, within the limits, is returned as it is and not copied.
    """

    __slots__ = ("_characters", "_members", "_redact_text", "_value_for_name")

    def __init__(self, redact_text: Callable[[str], str], value_for_name: Callable[[str, Any], Any]) -> None:
        self._redact_text = redact_text
        self._value_for_name = value_for_name
        self._members = MAX_MEMBERS
        self._characters = MAX_CHARACTERS

    def redact_value(self, value: Any) -> Any:
        """Return an object without its secrets, or a placeholder if its class raises while it is read."""
        try:
            return self._redact(value)
        except Exception:  # noqa: BLE001 - any object may come
            return f"<unprintable {_class_name(value)}>"

    def _redact(self, value: Any, above: tuple[int, ...] = ()) -> Any:  # noqa: PLR0911 - one for each kind of value
        """Return `value` without its secrets; `above` are the ids of the containers that it is in."""
        if isinstance(value, str):
            return self._string(str.__str__(value), value)
        if value is None or isinstance(value, _PLAIN):
            return value
        if isinstance(value, Enum):
            redacted = self._redact(value.value, above)
            return value if redacted is value.value else redacted
        if isinstance(value, int):
            is_card = MIN_CARD_NUMBER <= value < MAX_CARD_NUMBER and is_card_number(str(int(value)))
            return REDACTED if is_card else value
        if isinstance(value, _BYTES):
            text = bytes(value[:MAX_SCANNED_LENGTH]).decode("latin-1")
            return self._string(text, value if len(value) <= MAX_SCANNED_LENGTH else text)
        if id(value) in above or len(above) >= MAX_DEPTH:
            return "<cycle>" if id(value) in above else "<too deep>"
        return self._members_of(value, (*above, id(value)))

    def _string(self, text: str, original: Any) -> Any:
        """Return `original` if its string form, `text`, has no secret, else the redacted string."""
        if self._characters <= 0:
            return ELLIPSIS if text else original
        self._characters -= min(len(text), MAX_SCANNED_LENGTH)
        redacted = self._redact_text(text)
        return original if redacted == text else redacted

    def _members_of(self, value: Any, above: tuple[int, ...]) -> Any:
        named = _named_members(value)
        if named is not None and not (isinstance(value, tuple) and not _has_short_string(value)):
            redacted = self._named(value, *named, above)
            if redacted is not value or isinstance(value, Mapping):
                return redacted
            if is_dataclass(value):
                declared = _dataclass_fields(value)
                undeclared = getattr(value, "__dict__", {}).keys() - declared
                # A JSON encoder would write undeclared attributes too.
                return {name: getattr(value, name) for name in declared} if undeclared else value
        elif named is None and (isinstance(value, _LISTS) or type(value) is tuple):
            return self._listed(value, above)
        if not _has_short_string(value):
            return f"<too large {_class_name(value)}>"
        text = str.__str__(str(value))
        if isinstance(value, BaseException) and is_database_error(type(value)):
            return redact_database_error(self._redact_text(text))
        return self._string(text, value)

    def _reserve(self, size: int) -> int:
        """Return how many of `size` members are within the limit, and subtract them from it."""
        count = size if size <= self._members else min(self._members, MAX_LARGE_CONTAINER_MEMBERS)
        self._members -= count
        return count

    def _named(self, value: Any, size: int, members: Iterable[tuple[Any, Any]], above: tuple[int, ...]) -> Any:
        count = self._reserve(size)
        if size and not count:
            return TOO_LARGE
        names = dict(islice(members, count))
        hidden = self.hidden_by_siblings(names)
        redacted: dict[Any, Any] = {}
        is_same = count == size
        for name, member in names.items():
            label = self._string(str.__str__(name), name) if isinstance(name, str) else name
            replacement = REDACTED if name in hidden else self._member(name, member, above)
            redacted[label] = replacement
            if label is not name or replacement is not member:
                is_same = False
        return value if is_same else redacted

    def _listed(self, value: Any, above: tuple[int, ...]) -> Any:
        size = len(value)
        count = self._reserve(size)
        if size and not count:
            return TOO_LARGE
        members = list(islice(value, count))
        candidates = members
        if len(members) == PAIR and isinstance(value, list | tuple):
            candidates = [members[0], self._value_of(*members)]
        elif isinstance(value, list | tuple):  # arguments of a command: `["login", "--token", "abc"]`
            is_option = [isinstance(member, str) and member.startswith("--") for member in (None, *members)]
            candidates = [
                self._value_of(members[at - 1], member) if is_option[at] else member
                for at, member in enumerate(members)
            ]
            if len(members) == TRIPLE and isinstance(value, tuple):  # a name, an operator or flag, and a value
                candidates[1:] = [self._value_of(members[0], member) for member in candidates[1:]]
        copies = [self._redact(member, above) for member in candidates]
        return value if count == size and all(map(is_, copies, members)) else copies

    def _value_of(self, name: Any, value: Any) -> Any:
        """Return the replacement of a value whose name is a value too, as in the pairs of `headers.raw`."""
        if isinstance(name, bytes):
            name = name.decode("latin-1")
        return self._value_for_name(name, value) if isinstance(name, str) else value

    def hidden_by_siblings(self, names: dict[Any, Any]) -> set[Any]:
        """Return the names whose values are secret because of other members of the same mapping.

        These are the parts of a validation error that repeat the body, and the value of
        `{"name": "password", "value": ...}`.
        """
        hidden: set[Any] = set()
        if "loc" in names and ("type" in names or "msg" in names):
            hidden |= VALIDATION_INPUT_KEYS & names.keys()
        roles = [
            (name, _pair_role(name)) for name in names if isinstance(name, str) and len(name) <= MAX_COMPARED_LENGTH
        ]
        values = [name for name, role in roles if role == "value"]
        if values:
            labels = [names[name] for name, role in roles if role == "name"]
            hidden.update(
                value
                for value in values
                if any(self._value_of(label, names[value]) is not names[value] for label in labels)
            )
        return hidden

    def _member(self, name: Any, value: Any, above: tuple[int, ...]) -> Any:
        replacement = self._value_for_name(name if isinstance(name, str) else str(name), value)
        return self._redact(value, above) if replacement is value else replacement


@lru_cache(maxsize=2048)
def _pair_role(key: str) -> str:
    """Return whether a key of a mapping holds a name or its value: `name`, `value` or an empty string."""
    last = split_words(key)[-1:]
    return (
        "name"
        if PAIR_NAME_KEYS.issuperset(last) and last
        else "value"
        if PAIR_VALUE_KEYS.issuperset(last) and last
        else ""
    )


def _named_members(value: Any) -> tuple[int, Iterable[tuple[Any, Any]]] | None:
    """Return the number of named members of a value and the members; None if it has no names."""
    kind = type(value)
    if isinstance(value, dict):
        return dict.__len__(value), dict.items(value)
    if isinstance(value, Mapping):
        return len(value), ((name, value[name]) for name in value)
    if isinstance(value, type):
        return None
    members: dict[Any, Any] | None = None
    if is_dataclass(value):
        members = {name: getattr(value, name) for name in _dataclass_fields(value)}
    elif isinstance(value, tuple) and hasattr(kind, "_fields"):
        members = dict(zip(kind._fields, value, strict=False))
    elif isinstance(getattr(kind, "model_fields", None), dict):  # pydantic; `repr=False` hides a field here too
        members = {name: value.__dict__.get(name) for name, field in kind.model_fields.items() if field.repr}
        members.update(value.__pydantic_extra__ or {})
    elif isinstance(value, SimpleNamespace):
        members = dict(vars(value))
    return None if members is None else (len(members), members.items())


def _dataclass_fields(value: Any) -> list[str]:
    return [field.name for field in dataclass_fields(value) if not field.name.startswith("_")]


def _has_short_string(value: Any) -> bool:
    """Return whether `str(value)` is known to be short.

    The string of a tuple or an exception repeats a shared member each time it occurs, so it can grow exponentially.
    """
    if isinstance(value, BaseException):
        value = value.args
        if len(value) == 1 and isinstance(value[0], str):
            return True
    if not isinstance(value, tuple):
        return True
    left, waiting = MAX_CHARACTERS, [value]
    while waiting and left > 0:
        each: Any = waiting.pop()
        left -= _MIN_MEMBER_SIZE
        if isinstance(each, str | bytes | bytearray):
            left -= len(each)
        elif isinstance(each, dict):
            waiting += islice(chain.from_iterable(dict.items(each)), MAX_MEMBERS)
        elif isinstance(each, (*_LISTS, tuple)):
            waiting += islice(each, MAX_MEMBERS)
    return left > 0


def _class_name(value: Any) -> str:
    return str(type.__dict__["__name__"].__get__(type(value)))  # a metaclass may override `__name__`
