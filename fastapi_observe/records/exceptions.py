"""What an exception says, without the values that libraries are known to put into it."""

from __future__ import annotations

import traceback
from typing import Final

from fastapi_observe.records.redaction import redact_quoted, redact_text

LONGEST_TEXT: Final = 65_536
"""Characters of an exception's text that are looked at: what stands behind them is shown nowhere."""

LONGEST_TEXTS: Final = 262_144
"""Characters that are looked at in all texts of one chain or group together."""

MOST_LINKED: Final = 32
"""Exceptions of one chain or group whose texts are looked at and shown."""

UNPRINTABLE_STACK: Final = "<unprintable stacktrace>"

DATABASES: Final = frozenset(
    """sqlite3 aiosqlite psycopg psycopg2 psycopg_pool asyncpg pymysql MySQLdb mysql aiomysql asyncmy mariadb oracledb
    cx_Oracle pyodbc pymssql sqlalchemy duckdb""".split()  # noqa: SIM905 - a list would be a page long
)
"""Packages whose errors quote statements and values."""


def message_of(exc: BaseException) -> str:
    """Return the text of an exception, or a stand-in if it has none."""
    return _shown(_text_of(exc), type(exc))


def stack_of(exc: BaseException) -> str:
    """Return the stack trace of an exception and of those it stands for; no values of variables.

    The text of each is redacted before anything is put around it or cut, so that nothing hides what tells a secret.
    """
    try:
        whole = traceback.TracebackException(type(exc), exc, exc.__traceback__, compact=True)
        left = LONGEST_TEXTS
        for told, kind in _told(whole, exc):
            # The only place where the text can be changed.
            text = str(told._str)  # type: ignore[attr-defined]  # noqa: SLF001
            told._str = _shown(text[:left], kind)  # type: ignore[attr-defined]  # noqa: SLF001
            told.__notes__ = [redact_text(str(note)[:left]) for note in told.__notes__ or ()]
            left = max(0, left - len(text))
        return redact_text("".join(whole.format()))
    except Exception:  # noqa: BLE001 - exception classes may override anything
        return UNPRINTABLE_STACK


def linked(exc: BaseException) -> list[BaseException]:
    """Return an exception with its causes, contexts and group members, at most `MOST_LINKED`."""
    found: list[BaseException] = []
    waiting = [exc]
    seen: set[int] = set()
    while waiting and len(found) < MOST_LINKED:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        found.append(each)
        waiting += [other for other in (each.__context__, each.__cause__) if other is not None]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions
    return found


def _told(
    whole: traceback.TracebackException, exc: BaseException
) -> list[tuple[traceback.TracebackException, type[BaseException]]]:
    """Return the parts of a stack trace, one for each exception, with its class; what is beyond the bound is cut."""
    found: list[tuple[traceback.TracebackException, type[BaseException]]] = []
    waiting: list[tuple[traceback.TracebackException, BaseException | None]] = [(whole, exc)]
    while waiting:
        told, of = waiting.pop()
        found.append((told, BaseException if of is None else type(of)))
        members = zip(told.exceptions or (), of.exceptions if isinstance(of, BaseExceptionGroup) else (), strict=False)
        parts = [(told.__cause__, of and of.__cause__), (told.__context__, of and of.__context__), *members]
        if len(found) + len(waiting) >= MOST_LINKED:
            told.__cause__ = told.__context__ = None
            if told.exceptions:
                told.exceptions = []
            continue
        waiting += [(part, other) for part, other in parts if part is not None]
    return found


def _shown(text: str, kind: type[BaseException]) -> str:
    text = redact_text(text[:LONGEST_TEXT])
    return redact_quoted(text) if is_of_database(kind) else text


def is_of_database(kind: type[BaseException]) -> bool:
    """Tell whether an exception class is a database driver's."""
    try:
        return any(base.__module__.partition(".")[0] in DATABASES for base in kind.__mro__)
    except Exception:  # noqa: BLE001 - as above
        return False


def _text_of(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:  # noqa: BLE001 - as above
        return f"<unprintable {type.__dict__['__name__'].__get__(type(exc))}>"
