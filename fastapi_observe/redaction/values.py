"""What may be shown of any object that is logged or put on a span: by the names in it, and by its texts."""

from __future__ import annotations

from collections import deque
from collections.abc import ItemsView, Mapping, ValuesView
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from datetime import date, time
from enum import Enum
from itertools import chain, islice
from operator import is_
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Protocol
from uuid import UUID

from fastapi_observe.redaction.patterns import REDACTED, is_card_number
from fastapi_observe.redaction.text import MAX_TEXT_LENGTH

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_MEMBERS: Final = 1000
"""Members of all values of one line that are looked at, however deep they are: a part counts wherever it stands."""

MAX_LARGE_CONTAINER_MEMBERS: Final = 64
"""Members that are shown of a container that has more than are left."""

MAX_CHARACTERS: Final = 65_536
"""Characters of all texts of one line or span that are looked at."""

TOO_LARGE: Final = "<too large>"
ELLIPSIS: Final = "…"
"""Stand for a container and a text for which there is no room: a part of it might not be known as a secret."""

MAX_DEPTH: Final = 32
"""How deep containers may stand in containers."""

MIN_CARD_NUMBER: Final = 10**12
MAX_CARD_NUMBER: Final = 10**19

_PLAIN: Final = (bool, float, date, time, UUID)
_BYTES: Final = (bytes, bytearray, memoryview)
_LISTS: Final = (list, set, frozenset, deque, ItemsView, ValuesView)
_MEMBER: Final = 64  # characters: what a member counts for at least

DATABASE_DRIVERS: Final = frozenset(
    """sqlite3 aiosqlite psycopg psycopg2 psycopg_pool asyncpg pymysql MySQLdb mysql aiomysql asyncmy mariadb oracledb
    cx_Oracle pyodbc pymssql sqlalchemy duckdb""".split()  # noqa: SIM905 - a list would be a page long
)
"""Packages whose errors quote statements and values."""

PAIR: Final = 2
VALIDATION_INPUT_KEYS: Final = frozenset({"input", "ctx"})
"""What an error of pydantic repeats of the value that it refuses."""

PAIR_NAME_KEYS: Final = frozenset({"name", "key", "header", "field"})
PAIR_VALUE_KEYS: Final = frozenset({"value", "values", "val"})
"""Under which names lists keep names and their values."""


def is_of_database(kind: type[BaseException]) -> bool:
    """Tell whether an exception class is a database driver's."""
    try:
        return any(base.__module__.partition(".")[0] in DATABASE_DRIVERS for base in kind.__mro__)
    except Exception:  # noqa: BLE001 - exception classes may override anything
        return False


class RedactionRules(Protocol):
    """Who says what may be shown of texts and names: the redactor."""

    def text(self, text: str, /) -> str:
        """Return free text that may be shown."""

    def database_error(self, text: str, /) -> str:
        """Return the text of a database's error that may be shown."""

    def value_for_name(self, name: str, value: Any, /) -> Any:
        """Return what stands for a value because of its name, or the value itself."""


class ValueRedactor:
    """Goes through the values of one line or span; what has nothing to hide, and is not too much, stays what it is."""

    __slots__ = ("_characters", "_left", "_redactor")

    def __init__(self, redactor: RedactionRules) -> None:
        self._redactor = redactor
        self._left = MAX_MEMBERS
        self._characters = MAX_CHARACTERS

    def redact_value(self, value: Any) -> Any:
        """Return what may be shown of any object; one that is read wrong (its class raises) is not shown."""
        try:
            return self.show(value)
        except Exception:  # noqa: BLE001 - any object may come
            return f"<unprintable {_pair_name(value)}>"

    def show(self, value: Any, above: tuple[int, ...] = ()) -> Any:  # noqa: PLR0911 - one for each kind of value
        """Return what may be shown of `value`; `above` are the ids of what it is in."""
        if isinstance(value, str):
            return self._text(str.__str__(value), value)
        if value is None or isinstance(value, _PLAIN):
            return value
        if isinstance(value, Enum):
            wanted = self.show(value.value, above)
            return value if wanted is value.value else wanted
        if isinstance(value, int):
            hidden = MIN_CARD_NUMBER <= value < MAX_CARD_NUMBER and is_card_number(str(int(value)))
            return REDACTED if hidden else value
        if isinstance(value, _BYTES):
            text = bytes(value[:MAX_TEXT_LENGTH]).decode("latin-1")
            return self._text(text, value if len(value) <= MAX_TEXT_LENGTH else text)
        if id(value) in above or len(above) >= MAX_DEPTH:
            return "<cycle>" if id(value) in above else "<too deep>"
        return self._show_members(value, (*above, id(value)))

    def _text(self, text: str, of: Any) -> Any:
        if self._characters <= 0:
            return ELLIPSIS if text else of
        self._characters -= min(len(text), MAX_TEXT_LENGTH)
        wanted = self._redactor.text(text)
        return of if wanted == text else wanted

    def _show_members(self, value: Any, above: tuple[int, ...]) -> Any:
        named = _named(value)
        if named is not None and not (isinstance(value, tuple) and not _is_soon_told(value)):
            shown = self._show_named(value, *named, above)
            if shown is not value or isinstance(value, Mapping):
                return shown
            if is_dataclass(value):
                kept = _object_fields(value)
                more = getattr(value, "__dict__", {}).keys() - kept
                # Whoever writes it as JSON would write what it has beside its fields too.
                return {name: getattr(value, name) for name in kept} if more else value
        elif named is None and (isinstance(value, _LISTS) or type(value) is tuple):
            return self._show_listed(value, above)
        if not _is_soon_told(value):
            return f"<too large {_pair_name(value)}>"
        text = str.__str__(str(value))
        if isinstance(value, BaseException) and is_of_database(type(value)):
            return self._redactor.database_error(self._redactor.text(text))
        return self._text(text, value)

    def _room(self, size: int) -> int:
        """Return how many of so many members there is room for, and take it."""
        count = size if size <= self._left else min(self._left, MAX_LARGE_CONTAINER_MEMBERS)
        self._left -= count
        return count

    def _show_named(self, value: Any, size: int, members: Iterable[tuple[Any, Any]], above: tuple[int, ...]) -> Any:
        count = self._room(size)
        if size and not count:
            return TOO_LARGE
        names = dict(islice(members, count))
        hidden = self._hidden_beside(names)
        shown: dict[Any, Any] = {}
        same = count == size
        for name, member in names.items():
            called = self._text(str.__str__(name), name) if isinstance(name, str) else name
            wanted = REDACTED if name in hidden else self._member(name, member, above)
            shown[called] = wanted
            if called is not name or wanted is not member:
                same = False
        return value if same else shown

    def _show_listed(self, value: Any, above: tuple[int, ...]) -> Any:
        size = len(value)
        count = self._room(size)
        if size and not count:
            return TOO_LARGE
        members = list(islice(value, count))
        judged = members
        if len(members) == PAIR and isinstance(value, list | tuple):
            judged = [members[0], self._behind(*members)]
        copies = [self.show(member, above) for member in judged]
        return value if count == size and all(map(is_, copies, members)) else copies

    def _behind(self, name: Any, value: Any) -> Any:
        """Return what stands for the second member of a pair whose first is a name, as in `headers.raw`."""
        if isinstance(name, bytes):
            name = name.decode("latin-1")
        return self._redactor.value_for_name(name, value) if isinstance(name, str) else value

    def _hidden_beside(self, names: dict[Any, Any]) -> set[Any]:
        """Return the names whose values are hidden because of what stands beside them.

        Those of an error of validation that repeat the body, and the value of `{"name": "password", "value": ...}`.
        """
        hidden: set[Any] = set()
        if "loc" in names and ("type" in names or "msg" in names):
            hidden |= VALIDATION_INPUT_KEYS & names.keys()
        for value in PAIR_VALUE_KEYS & names.keys():
            if any(
                self._behind(names[name], names[value]) is not names[value] for name in PAIR_NAME_KEYS & names.keys()
            ):
                hidden.add(value)
        return hidden

    def _member(self, name: Any, value: Any, above: tuple[int, ...]) -> Any:
        shown = self._redactor.value_for_name(name if isinstance(name, str) else str(name), value)
        return self.show(value, above) if shown is value else shown


def _named(value: Any) -> tuple[int, Iterable[tuple[Any, Any]]] | None:
    """Return how many names are in a value, and the names with what stands under them; None if it has none."""
    kind = type(value)
    if isinstance(value, dict):
        return dict.__len__(value), dict.items(value)
    if isinstance(value, Mapping):
        return len(value), ((name, value[name]) for name in value)
    if isinstance(value, type):
        return None
    found: dict[Any, Any] | None = None
    if is_dataclass(value):
        found = {name: getattr(value, name) for name in _object_fields(value)}
    elif isinstance(value, tuple) and hasattr(kind, "_fields"):
        found = dict(zip(kind._fields, value, strict=False))
    elif isinstance(getattr(kind, "model_fields", None), dict):  # pydantic: a field that its text leaves out stays so
        found = {name: value.__dict__.get(name) for name, field in kind.model_fields.items() if field.repr}
        found.update(value.__pydantic_extra__ or {})
    elif isinstance(value, SimpleNamespace):
        found = dict(vars(value))
    return None if found is None else (len(found), found.items())


def _object_fields(value: Any) -> list[str]:
    """Return the names of a data class's fields that are not private."""
    return [field.name for field in dataclass_fields(value) if not field.name.startswith("_")]


def redact_value(redactor: RedactionRules, value: Any) -> Any:
    """Return what may be shown of any object; a value that is read wrong (its class raises) is not shown."""
    return ValueRedactor(redactor).redact_value(value)


def _is_soon_told(value: Any) -> bool:
    """Tell whether an object's text is soon made: what its parts share is written wherever it stands."""
    if isinstance(value, BaseException):
        value = value.args
        if len(value) == 1 and isinstance(value[0], str):
            return True
    if not isinstance(value, tuple):
        return True
    left, waiting = MAX_CHARACTERS, [value]
    while waiting and left > 0:
        each: Any = waiting.pop()
        left -= _MEMBER
        if isinstance(each, str | bytes | bytearray):
            left -= len(each)
        elif isinstance(each, dict):
            waiting += islice(chain.from_iterable(dict.items(each)), MAX_MEMBERS)
        elif isinstance(each, (*_LISTS, tuple)):
            waiting += islice(each, MAX_MEMBERS)
    return left > 0


def _pair_name(value: Any) -> str:
    return str(type.__dict__["__name__"].__get__(type(value)))
