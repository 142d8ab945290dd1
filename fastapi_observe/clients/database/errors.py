"""Exceptions of queries: the driver's own error behind SQLAlchemy's, and the outcome."""

from __future__ import annotations

from typing import Final

from fastapi_observe.records.exceptions import exception_outcome

QUERY_CANCELED: Final = "57014"
"""SQLSTATE of a statement that PostgreSQL cancelled."""

MAX_WRAPPING_ERRORS: Final = 4
"""Maximum number of errors to look through. SQLAlchemy and its adapter of an async driver wrap two."""

_ADAPTERS: Final = ("sqlalchemy.dialects.", "sqlalchemy.connectors.")
_TIMEOUTS: Final = frozenset({"TimeoutError", "PoolTimeout", "ConnectionTimeout"})
"""Names of exceptions; those of SQLAlchemy, psycopg_pool and psycopg do not derive from Python's `TimeoutError`."""


def driver_error(exc: BaseException) -> BaseException:
    """Return the driver's own error if SQLAlchemy, or its adapter of an async driver, wrapped it."""
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
    """Return whether the wait for a pool, a connection or a result timed out."""
    return not _TIMEOUTS.isdisjoint([kind.__name__ for kind in type(exc).__mro__])


def query_outcome(exc: BaseException) -> str:
    """Return the outcome of a query. PostgreSQL reports a statement timeout and a cancellation as the same error."""
    if getattr(exc, "sqlstate", None) == QUERY_CANCELED:
        return "timeout" if "timeout" in str(exc) else "cancelled"
    return "timeout" if is_timeout(exc) else exception_outcome(exc)
