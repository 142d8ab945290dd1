"""asyncpg pools that measure themselves: `instrument_pool`.

What one operation is: one call that sends a statement, through the pool, a connection or a prepared statement, until
its result is there; `executemany` is one with the number of parameter sets, a cursor one from its opening until it is
exhausted, or its transaction over, without regard to who works meanwhile; preparing a statement is one of its own.
BEGIN, COMMIT, ROLLBACK and savepoints are counts. What the pool and its callbacks do on their own account (connect,
`init`, `setup`, `reset`) is none, but part of the wait for a connection.

asyncpg's own hook, `add_query_logger`, tells of a query in a later turn of the event loop, when the request may be
over, of cursors and COPY nothing, and hands out the values. So the methods of the connections are overridden: those of
a connection that is out of the pool, in a subclass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg  # type: ignore[import-untyped]

from fastapi_observe.clients.database.pools import ObservedDatabase, ObservedPool, pool_size, watch_pool
from fastapi_observe.clients.database.statements import transaction_event
from fastapi_observe.records.pool import PoolState

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from fastapi_observe.clients.database.client import DatabaseClient
    from fastapi_observe.clients.database.cursors import StreamedQuery
    from fastapi_observe.clients.database.observers import Faults
    from fastapi_observe.clients.database.pools import Address


def instrument_pool(
    db: DatabaseClient, pool: object, *, pool_name: str | None = None, faults: Faults
) -> Callable[[], None]:
    """Measure every query, transaction and wait of an `asyncpg.Pool`, started or not; the result undoes it.

    `pool_name` is the label of the pool; default: `asyncpg`. Again for the same pool and `db` does nothing. Where
    several apps share a pool, a query is reported to the one whose request it is part of, else to the first. Raises
    `TypeError` for what is no pool.
    """
    if not isinstance(pool, asyncpg.Pool):
        raise TypeError(
            f"cannot instrument a {type(pool).__name__}; pass the Pool that asyncpg.create_pool() returns, awaited or"
            " not (a connection that belongs to no pool is not instrumented)"
        )

    def read(watch: ObservedPool) -> PoolState:
        size, idle = pool.get_size(), pool.get_idle_size()
        return PoolState(size - idle, idle, pool.get_max_size(), None, len(watch.waiting))

    return watch_pool(db, pool, _Pool, read, pool_name or "asyncpg", faults)


def _address(connection: Any) -> Address:
    at, database = connection._addr, connection._params.database  # noqa: SLF001 - told to query loggers only
    host, port = at if isinstance(at, tuple) else (at.rpartition("/")[0], None)  # the path of a socket
    return host, port, database


def _in_transaction(connection: Any) -> bool:
    return not connection.is_closed() and connection.is_in_transaction()


def _rows(status: str) -> int | None:
    """Read the number of rows from the status of a command: `INSERT 0 3`, `COPY 10`."""
    count = status.rpartition(" ")[2]
    return int(count) if count.isdecimal() else None


def _rows_of_one(row: object) -> int:
    return 0 if row is None else 1


def _copy(direction: str, table: str, options: dict[str, Any]) -> str:
    """Write the COPY command as far as it is of interest."""
    names = [name for name in (options.get("schema_name"), table) if name]
    quoted = ".".join('"' + str(name).replace('"', '""') + '"' for name in names)
    return f"COPY {quoted} {direction}"


class _Pool:
    """What an instrumented pool does differently: its connections report while somebody has them."""

    __slots__ = ()
    _unobserved: Any
    _observed_by: ObservedPool

    async def _acquire(self, timeout: float | None) -> Any:  # noqa: ASYNC109 - asyncpg's own
        watch, call = self._observed_by, self._unobserved._acquire  # noqa: SLF001 - what is overridden
        proxy = await watch.timed_acquire_async(call, self, timeout)
        watch.checked_out(proxy._con, _address, _Connection)  # noqa: SLF001 - the connection behind the proxy
        return proxy

    async def release(self, connection: Any, *, timeout: float | None = None) -> Any:  # noqa: ASYNC109 - asyncpg's own
        call = self._unobserved.release
        self._observed_by.checked_in(getattr(connection, "_con", None), _in_transaction)
        return await call(self, connection, timeout=timeout)


class _Connection:
    """What a connection does differently while it is out of its pool."""

    __slots__ = ()
    _unobserved: Any
    _observed_by: ObservedDatabase

    async def execute(self, query: Any, *args: Any, **options: Any) -> Any:
        event = transaction_event(query)
        if event is None:
            return await self._observed_by.run(self._unobserved.execute, (self, query, *args), options, query, _rows)
        database, call = self._observed_by, self._unobserved.execute
        database.ends(event, self)
        status = await call(self, query, *args, **options)
        database.watch.record_connection_event(event)
        return status

    async def executemany(self, command: Any, args: Any, **options: Any) -> Any:
        call = self._unobserved.executemany
        return await self._observed_by.run(call, (self, command, args), options, command, batch=pool_size(args))

    async def fetch(self, query: Any, *args: Any, **options: Any) -> Any:
        return await self._observed_by.run(self._unobserved.fetch, (self, query, *args), options, query, len)

    async def fetchval(self, query: Any, *args: Any, **options: Any) -> Any:
        return await self._observed_by.run(self._unobserved.fetchval, (self, query, *args), options, query)

    async def fetchrow(self, query: Any, *args: Any, **options: Any) -> Any:
        return await self._observed_by.run(
            self._unobserved.fetchrow, (self, query, *args), options, query, _rows_of_one
        )

    async def fetchmany(self, query: Any, args: Any, **options: Any) -> Any:
        return await self._observed_by.run(
            self._unobserved.fetchmany, (self, query, args), options, query, len, pool_size(args)
        )

    async def copy_from_table(self, table_name: Any, **options: Any) -> Any:
        statement = _copy("TO STDOUT", table_name, options)
        return await self._observed_by.run(
            self._unobserved.copy_from_table, (self, table_name), options, statement, _rows
        )

    async def copy_from_query(self, query: Any, *args: Any, **options: Any) -> Any:
        statement = f"COPY ({query}) TO STDOUT"
        return await self._observed_by.run(
            self._unobserved.copy_from_query, (self, query, *args), options, statement, _rows
        )

    async def copy_to_table(self, table_name: Any, **options: Any) -> Any:
        statement = _copy("FROM STDIN", table_name, options)
        return await self._observed_by.run(
            self._unobserved.copy_to_table, (self, table_name), options, statement, _rows
        )

    async def copy_records_to_table(self, table_name: Any, **options: Any) -> Any:
        statement = _copy("FROM STDIN", table_name, options)
        return await self._observed_by.run(
            self._unobserved.copy_records_to_table, (self, table_name), options, statement, _rows
        )

    async def prepare(self, query: Any, **options: Any) -> Any:
        database = self._observed_by
        prepared = await database.run(self._unobserved.prepare, (self, query), options, f"PREPARE statement AS {query}")
        return database.observe(prepared, _Statement)

    def cursor(self, query: Any, *args: Any, **options: Any) -> Any:
        return _CursorFactory(self._unobserved.cursor(self, query, *args, **options), self, query, self._observed_by)


class _Statement:
    """What a prepared statement does differently."""

    __slots__ = ()
    _unobserved: Any
    _observed_by: ObservedDatabase
    _connection: Any
    _query: str

    async def fetch(self, *args: Any, **options: Any) -> Any:
        return await self._observed_by.run(self._unobserved.fetch, (self, *args), options, self._query, len)

    async def fetchval(self, *args: Any, **options: Any) -> Any:
        return await self._observed_by.run(self._unobserved.fetchval, (self, *args), options, self._query)

    async def fetchrow(self, *args: Any, **options: Any) -> Any:
        return await self._observed_by.run(self._unobserved.fetchrow, (self, *args), options, self._query, _rows_of_one)

    async def fetchmany(self, args: Any, **options: Any) -> Any:
        return await self._observed_by.run(
            self._unobserved.fetchmany, (self, args), options, self._query, len, pool_size(args)
        )

    async def executemany(self, args: Any, **options: Any) -> Any:
        return await self._observed_by.run(
            self._unobserved.executemany, (self, args), options, self._query, batch=pool_size(args)
        )

    def cursor(self, *args: Any, **options: Any) -> Any:
        return _CursorFactory(
            self._unobserved.cursor(self, *args, **options), self._connection, self._query, self._observed_by
        )


class _CursorFactory:
    """What `cursor()` returns: to be awaited or iterated over."""

    def __init__(self, factory: Any, connection: Any, query: Any, database: ObservedDatabase) -> None:
        self._factory = factory
        self._connection = connection
        self._query = query
        self._database = database

    def __aiter__(self) -> _Rows:
        rows = self._factory.__aiter__()
        return _Rows(rows, self._database.stream(self._query, self._connection))

    def __await__(self) -> Generator[Any, Any, _Cursor]:
        return self._open().__await__()

    async def _open(self) -> _Cursor:
        with self._database.stream(self._query, self._connection) as stream:
            return _Cursor(await self._factory, stream)


class _Rows:
    """The rows of a cursor that is iterated over."""

    def __init__(self, rows: Any, stream: StreamedQuery) -> None:
        self._rows = rows
        self._stream = stream

    def __aiter__(self) -> _Rows:
        return self

    async def __anext__(self) -> Any:
        with self._stream as stream:
            row = await self._rows.__anext__()
            stream.rows += 1
            return row


class _Cursor:
    """A cursor that was awaited."""

    def __init__(self, cursor: Any, stream: StreamedQuery) -> None:
        self._cursor = cursor
        self._stream = stream

    async def fetch(self, n: int, **options: Any) -> Any:
        """Return the next rows."""
        with self._stream as stream:
            rows = await self._cursor.fetch(n, **options)
        stream.add_rows(len(rows), n)
        return rows

    async def fetchrow(self, **options: Any) -> Any:
        """Return the next row, or None."""
        with self._stream as stream:
            row = await self._cursor.fetchrow(**options)
        stream.add_rows(_rows_of_one(row), 1)
        return row

    async def forward(self, n: int, **options: Any) -> Any:
        """Skip rows."""
        with self._stream:
            return await self._cursor.forward(n, **options)

    def __repr__(self) -> str:
        return repr(self._cursor)
