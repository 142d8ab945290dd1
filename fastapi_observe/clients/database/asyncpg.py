"""asyncpg pools: `instrument_pool`.

An operation is one call that sends a statement, through a pool, a connection or a prepared statement, until its result
has arrived. `executemany` is one operation, with the number of parameter sets. A cursor is one from its opening until
it is exhausted or its transaction ends, whatever else runs meanwhile. Preparing a statement is an operation of its own.
BEGIN, COMMIT, ROLLBACK and savepoints are counted. What the pool and its callbacks do by themselves (connect, `init`,
`setup`, `reset`) is not measured as a query, but is part of the connection wait.

asyncpg's own hook, `add_query_logger`, is not used: it reports a query in a later iteration of the event loop, when the
request may have ended, does not report cursors and COPY, and passes the values of parameters. The methods of a
connection are overridden instead, in a subclass, while it is checked out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg  # type: ignore[import-untyped]

from fastapi_observe.clients.database.pools import ObservedDatabase, ObservedPool, count_parameter_sets, observe_pool
from fastapi_observe.clients.database.statements import transaction_event
from fastapi_observe.records.pool import PoolState

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from fastapi_observe.clients.database.client import DatabaseClient
    from fastapi_observe.clients.database.cursors import StreamedQuery
    from fastapi_observe.clients.database.observers import ReportError
    from fastapi_observe.clients.database.pools import Address


def instrument_pool(
    db: DatabaseClient, pool: object, *, pool_name: str | None = None, internal_errors: ReportError
) -> Callable[[], None]:
    """Measure every query, transaction and connection wait of an `asyncpg.Pool`, started or not. Idempotent.

    Returns a function that reverts this. `pool_name` is the label of the pool; default: `asyncpg`. If several apps
    share a pool, a query is reported to the app of the current request, else to the first one. Raises `TypeError` if it
    is not a pool.
    """
    if not isinstance(pool, asyncpg.Pool):
        raise TypeError(
            f"cannot instrument a {type(pool).__name__}; pass the Pool that asyncpg.create_pool() returns, awaited or"
            " not (connections without a pool cannot be instrumented)"
        )

    def read(observed: ObservedPool) -> PoolState:
        size, idle = pool.get_size(), pool.get_idle_size()
        return PoolState(size - idle, idle, pool.get_max_size(), None, len(observed.waiting))

    return observe_pool(db, pool, _Pool, read, pool_name or "asyncpg", internal_errors)


def _read_address(connection: Any) -> Address:
    # Not documented: asyncpg passes both to query loggers only.
    address, database = connection._addr, connection._params.database  # noqa: SLF001
    host, port = address if isinstance(address, tuple) else (address.rpartition("/")[0], None)  # path of a socket
    return host, port, database


def _is_in_transaction(connection: Any) -> bool:
    return not connection.is_closed() and connection.is_in_transaction()


def _parse_row_count(status: str) -> int | None:
    """Return the number of rows in the status of a command, such as `INSERT 0 3`."""
    count = status.rpartition(" ")[2]
    return int(count) if count.isdecimal() else None


def _count_row(row: object) -> int:
    return 0 if row is None else 1


def _copy_statement(direction: str, table: str, options: dict[str, Any]) -> str:
    """Return the COPY statement that asyncpg sends, without its options."""
    names = [name for name in (options.get("schema_name"), table) if name]
    quoted = ".".join('"' + str(name).replace('"', '""') + '"' for name in names)
    return f"COPY {quoted} {direction}"


class _Pool:
    """Methods of an instrumented pool: its connections are measured while they are checked out."""

    __slots__ = ()
    _original: Any
    _observed_by: ObservedPool

    async def _acquire(self, timeout: float | None) -> Any:  # noqa: ASYNC109 - asyncpg's own
        # Not documented, but the only method through which both `acquire` and `async with` get a connection.
        observed, acquire = self._observed_by, self._original._acquire  # noqa: SLF001
        proxy = await observed.timed_acquire_async(acquire, self, timeout)
        observed.checked_out(proxy._con, _read_address, _Connection)  # noqa: SLF001 - the connection in the proxy
        return proxy

    async def release(self, connection: Any, *, timeout: float | None = None) -> Any:  # noqa: ASYNC109 - asyncpg's own
        call = self._original.release
        self._observed_by.checked_in(getattr(connection, "_con", None), _is_in_transaction)
        return await call(self, connection, timeout=timeout)


class _Connection:
    """Methods of a connection while it is checked out."""

    __slots__ = ()
    _original: Any
    _observed_by: ObservedDatabase

    async def execute(self, query: Any, *args: Any, **options: Any) -> Any:
        event = transaction_event(query)
        if event is None:
            return await self._observed_by.run(
                self._original.execute, (self, query, *args), options, query, _parse_row_count
            )
        database, call = self._observed_by, self._original.execute
        database.before_command(event, self)
        status = await call(self, query, *args, **options)
        database.pool.record_connection_event(event)
        return status

    async def executemany(self, command: Any, args: Any, **options: Any) -> Any:
        call = self._original.executemany
        return await self._observed_by.run(
            call, (self, command, args), options, command, batch=count_parameter_sets(args)
        )

    async def fetch(self, query: Any, *args: Any, **options: Any) -> Any:
        return await self._observed_by.run(self._original.fetch, (self, query, *args), options, query, len)

    async def fetchval(self, query: Any, *args: Any, **options: Any) -> Any:
        return await self._observed_by.run(self._original.fetchval, (self, query, *args), options, query)

    async def fetchrow(self, query: Any, *args: Any, **options: Any) -> Any:
        return await self._observed_by.run(self._original.fetchrow, (self, query, *args), options, query, _count_row)

    async def fetchmany(self, query: Any, args: Any, **options: Any) -> Any:
        return await self._observed_by.run(
            self._original.fetchmany, (self, query, args), options, query, len, count_parameter_sets(args)
        )

    async def copy_from_table(self, table_name: Any, **options: Any) -> Any:
        statement = _copy_statement("TO STDOUT", table_name, options)
        return await self._observed_by.run(
            self._original.copy_from_table, (self, table_name), options, statement, _parse_row_count
        )

    async def copy_from_query(self, query: Any, *args: Any, **options: Any) -> Any:
        statement = f"COPY ({query}) TO STDOUT"
        return await self._observed_by.run(
            self._original.copy_from_query, (self, query, *args), options, statement, _parse_row_count
        )

    async def copy_to_table(self, table_name: Any, **options: Any) -> Any:
        statement = _copy_statement("FROM STDIN", table_name, options)
        return await self._observed_by.run(
            self._original.copy_to_table, (self, table_name), options, statement, _parse_row_count
        )

    async def copy_records_to_table(self, table_name: Any, **options: Any) -> Any:
        statement = _copy_statement("FROM STDIN", table_name, options)
        return await self._observed_by.run(
            self._original.copy_records_to_table, (self, table_name), options, statement, _parse_row_count
        )

    async def prepare(self, query: Any, **options: Any) -> Any:
        database = self._observed_by
        prepared = await database.run(self._original.prepare, (self, query), options, f"PREPARE statement AS {query}")
        return database.observe(prepared, _Statement)

    def cursor(self, query: Any, *args: Any, **options: Any) -> Any:
        return _CursorFactory(self._original.cursor(self, query, *args, **options), self, query, self._observed_by)


class _Statement:
    """Methods of a prepared statement."""

    __slots__ = ()
    _original: Any
    _observed_by: ObservedDatabase
    _connection: Any
    _query: str

    async def fetch(self, *args: Any, **options: Any) -> Any:
        return await self._observed_by.run(self._original.fetch, (self, *args), options, self._query, len)

    async def fetchval(self, *args: Any, **options: Any) -> Any:
        return await self._observed_by.run(self._original.fetchval, (self, *args), options, self._query)

    async def fetchrow(self, *args: Any, **options: Any) -> Any:
        return await self._observed_by.run(self._original.fetchrow, (self, *args), options, self._query, _count_row)

    async def fetchmany(self, args: Any, **options: Any) -> Any:
        return await self._observed_by.run(
            self._original.fetchmany, (self, args), options, self._query, len, count_parameter_sets(args)
        )

    async def executemany(self, args: Any, **options: Any) -> Any:
        return await self._observed_by.run(
            self._original.executemany, (self, args), options, self._query, batch=count_parameter_sets(args)
        )

    def cursor(self, *args: Any, **options: Any) -> Any:
        return _CursorFactory(
            self._original.cursor(self, *args, **options), self._connection, self._query, self._observed_by
        )


class _CursorFactory:
    """The result of `cursor()`, to be awaited or iterated over."""

    def __init__(self, factory: Any, connection: Any, query: Any, database: ObservedDatabase) -> None:
        self._factory = factory
        self._connection = connection
        self._query = query
        self._database = database

    def __aiter__(self) -> _Rows:
        rows = self._factory.__aiter__()
        return _Rows(rows, self._database.open_stream(self._query, self._connection))

    def __await__(self) -> Generator[Any, Any, _Cursor]:
        return self._open().__await__()

    async def _open(self) -> _Cursor:
        with self._database.open_stream(self._query, self._connection) as stream:
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
        stream.add_rows(_count_row(row), 1)
        return row

    async def forward(self, n: int, **options: Any) -> Any:
        """Skip rows."""
        with self._stream:
            return await self._cursor.forward(n, **options)

    def __repr__(self) -> str:
        return repr(self._cursor)
