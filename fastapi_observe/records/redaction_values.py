"""What may be shown of any object that is logged or put on a span: by the names in it, and by its texts."""

from __future__ import annotations

from collections import deque
from collections.abc import ItemsView, Mapping, ValuesView
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from datetime import date, time
from enum import Enum
from operator import is_
from types import SimpleNamespace
from typing import Any, Final, Protocol
from uuid import UUID

from fastapi_observe.records.redaction_patterns import REDACTED, is_card_number
from fastapi_observe.records.redaction_text import LONGEST_TEXT

MOST_MEMBERS: Final = 10_000
"""Members of one value that are looked at, however deep they are; the others are not shown."""

DEEPEST: Final = 32
"""How deep containers may stand in containers."""

SMALLEST_CARD: Final = 10**12
LARGEST_CARD: Final = 10**19

DATABASES: Final = frozenset(
    """sqlite3 aiosqlite psycopg psycopg2 psycopg_pool asyncpg pymysql MySQLdb mysql aiomysql asyncmy mariadb oracledb
    cx_Oracle pyodbc pymssql sqlalchemy duckdb""".split()  # noqa: SIM905 - a list would be a page long
)
"""Packages whose errors quote statements and values."""


PAIR: Final = 2
OF_ERRORS: Final = frozenset({"input", "ctx"})
"""What an error of pydantic repeats of the value that it refuses."""

NAMES: Final = frozenset({"name", "key", "header", "field"})
VALUES: Final = frozenset({"value", "values", "val"})
"""Under which names lists keep names and their values."""


def is_of_database(kind: type[BaseException]) -> bool:
    """Tell whether an exception class is a database driver's."""
    try:
        return any(base.__module__.partition(".")[0] in DATABASES for base in kind.__mro__)
    except Exception:  # noqa: BLE001 - exception classes may override anything
        return False


class Judge(Protocol):
    """Who says what may be shown of texts and names: the redactor."""

    def text(self, text: str, /) -> str:
        """Return free text that may be shown."""

    def quoted(self, text: str, /) -> str:
        """Return the text of a database's error that may be shown."""

    def by_name(self, name: str, value: Any, /) -> Any:
        """Return what stands for a value because of its name, or the value itself."""


class Walk:
    """Goes through one value; what has nothing to hide stays the object it is."""

    __slots__ = ("_left", "_redactor")

    def __init__(self, redactor: Judge) -> None:
        self._redactor = redactor
        self._left = MOST_MEMBERS

    def show(self, value: Any, above: tuple[int, ...] = ()) -> Any:  # noqa: PLR0911 - one for each kind of value
        """Return what may be shown of `value`; `above` are the ids of what it is in."""
        if value is None or isinstance(value, bool | float | date | time | UUID):
            return value
        if isinstance(value, Enum):
            wanted = self.show(value.value, above)
            return value if wanted is value.value else wanted
        if isinstance(value, int):
            hidden = SMALLEST_CARD <= value < LARGEST_CARD and is_card_number(str(int(value)))
            return REDACTED if hidden else value
        if isinstance(value, str):
            return self._text(str.__str__(value), value)
        if isinstance(value, bytes | bytearray | memoryview):
            return self._text(bytes(value[:LONGEST_TEXT]).decode("latin-1"), value)
        if id(value) in above or len(above) >= DEEPEST:
            return "<cycle>" if id(value) in above else "<too deep>"
        return self._show_members(value, (*above, id(value)))

    def _text(self, text: str, of: Any) -> Any:
        wanted = self._redactor.text(text)
        return of if wanted == text else wanted

    def _show_members(self, value: Any, above: tuple[int, ...]) -> Any:
        names = _named(value)
        if names is not None:
            hidden = self._hidden_beside(names)
            shown = {
                self._name(name): REDACTED if name in hidden else self._member(name, names[name], above)
                for name in self._some(names)
            }
            same = len(shown) == len(names) and all(shown.get(name, self) is member for name, member in names.items())
            if same and not isinstance(value, Mapping) and not is_dataclass(value):
                return self._text(str.__str__(str(value)), value)
            return value if same else shown
        if isinstance(value, list | set | frozenset | deque | ItemsView | ValuesView) or type(value) is tuple:
            members = list(value)
            if len(members) == PAIR and isinstance(value, list | tuple):
                members[1] = self._behind(members[0], members[1])
            copies = [self.show(member, above) for member in self._some(members)]
            same = len(copies) == len(value) and all(map(is_, copies, value))
            return value if same else copies
        text = str.__str__(str(value))
        if isinstance(value, BaseException) and is_of_database(type(value)):
            return self._redactor.quoted(self._redactor.text(text))
        return self._text(text, value)

    def _some(self, members: Any) -> Any:
        for member in members:
            self._left -= 1
            if self._left < 0:
                return
            yield member

    def _behind(self, name: Any, value: Any) -> Any:
        """Return what stands for the second member of a pair whose first is a name, as in `headers.raw`."""
        if isinstance(name, bytes):
            name = name.decode("latin-1")
        return self._redactor.by_name(name, value) if isinstance(name, str) else value

    def _hidden_beside(self, names: dict[Any, Any]) -> set[Any]:
        """Return the names whose values are hidden because of what stands beside them.

        Those of an error of validation that repeat the body, and the value of `{"name": "password", "value": ...}`.
        """
        hidden: set[Any] = set()
        if "loc" in names and ("type" in names or "msg" in names):
            hidden |= OF_ERRORS & names.keys()
        for value in VALUES & names.keys():
            if any(self._behind(names[name], names[value]) is not names[value] for name in NAMES & names.keys()):
                hidden.add(value)
        return hidden

    def _name(self, name: Any) -> Any:
        return self._redactor.text(name) if type(name) is str else name

    def _member(self, name: Any, value: Any, above: tuple[int, ...]) -> Any:
        shown = self._redactor.by_name(name if isinstance(name, str) else str(name), value)
        return self.show(value, above) if shown is value else shown


def _named(value: Any) -> dict[Any, Any] | None:
    """Return the names in a value with what stands under them; None if it has none."""
    if isinstance(value, Mapping):
        return dict(dict.items(value)) if isinstance(value, dict) else dict(value)
    kind = type(value)
    if isinstance(value, type):
        return None
    if is_dataclass(value):
        kept = [field.name for field in dataclass_fields(value) if not field.name.startswith("_")]
        return {name: getattr(value, name) for name in kept}
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return dict(zip(kind._fields, value, strict=False))
    if isinstance(getattr(kind, "model_fields", None), dict):  # pydantic: a field that its text leaves out stays so
        fields = {name: value.__dict__.get(name) for name, field in kind.model_fields.items() if field.repr}
        return {**fields, **(value.__pydantic_extra__ or {})}
    return dict(vars(value)) if isinstance(value, SimpleNamespace) else None


def shown(redactor: Judge, value: Any) -> Any:
    """Return what may be shown of any object; a value that is read wrong (its class raises) is not shown."""
    try:
        return Walk(redactor).show(value)
    except Exception:  # noqa: BLE001 - any object may come
        return f"<unprintable {type.__dict__['__name__'].__get__(type(value))}>"
