"""What an exception says of a query: the driver's own error behind SQLAlchemy's, and the outcome."""

from __future__ import annotations

from typing import Final

from fastapi_observe.records.exceptions import exception_outcome

QUERY_CANCELED: Final = "57014"
"""SQLSTATE of a statement that PostgreSQL gave up."""

MAX_WRAPPING_ERRORS: Final = 4
"""Errors that are looked through; SQLAlchemy and its adapter of an async driver make two."""

_ADAPTERS: Final = ("sqlalchemy.dialects.", "sqlalchemy.connectors.")
_TIMEOUTS: Final = frozenset({"TimeoutError", "PoolTimeout", "ConnectionTimeout"})
"""Also those of SQLAlchemy, psycopg_pool and psycopg, which are no `TimeoutError` of Python's."""


def driver_error(exc: BaseException) -> BaseException:
    """Return the driver's own error where SQLAlchemy, or its adapter of an async driver, raised one around it."""
    try:
        for _ in range(MAX_WRAPPING_ERRORS):
            module = type(exc).__module__
            if not module.startswith("sqlalchemy."):
                break
            inner = getattr(exc, "orig", None)
            if inner is None and module.startswith(_ADAPTERS):
                inner = exc.__cause__
            if not isinstance(inner, BaseException):
                break
            exc = inner
    except Exception:  # noqa: BLE001 - exception classes may override anything
        return exc
    return exc


def is_timeout(exc: BaseException) -> bool:
    """Tell whether somebody gave up waiting: for a pool, for a connection, for an answer."""
    return not _TIMEOUTS.isdisjoint([kind.__name__ for kind in type(exc).__mro__])


def query_outcome(exc: BaseException) -> str:
    """Name the outcome; what PostgreSQL reports as one is told apart: it took too long, or somebody asked for it."""
    if getattr(exc, "sqlstate", None) == QUERY_CANCELED:
        return "timeout" if "timeout" in str(exc) else "cancelled"
    return "timeout" if is_timeout(exc) else exception_outcome(exc)
