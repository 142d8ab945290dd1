"""`instrument_pool`: which driver a pool of connections is of."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_observe.clients.database.client import DatabaseClient

DRIVERS: Final = {"asyncpg": "asyncpg", "psycopg_pool": "psycopg"}
"""Packages of pools, and our modules for them; imported only for who has such a pool."""


def instrument_pool(
    db: DatabaseClient, pool: object, *, pool_name: str | None = None, faults: Callable[[str, BaseException], None]
) -> Callable[[], None]:
    """Measure every query, transaction and wait of a pool; the result undoes it. Raises `TypeError` for no pool."""
    for kind in type(pool).__mro__:
        module = DRIVERS.get(kind.__module__.partition(".")[0])
        if module is not None:
            instrument = import_module(f"fastapi_observe.clients.{module}").instrument_pool
            return instrument(db, pool, pool_name=pool_name, faults=faults)  # type: ignore[no-any-return]
    raise TypeError(
        f"cannot instrument a {type(pool).__name__}; pass a pool of asyncpg (create_pool) or of psycopg_pool "
        "(ConnectionPool, AsyncConnectionPool); an SQLAlchemy engine goes to instrument_engine"
    )
