"""psycopg pools: `instrument_pool`.

An operation is one call of `execute`, through a connection or a cursor, until its result has arrived. `executemany` is
one operation, with the number of parameter sets; `stream` and `copy` are one from their start to their end. A
server-side cursor is one from `execute` until it is exhausted or closed or its transaction ends, whatever else runs
meanwhile. In a pipeline the measured time is that of sending. Cursors that were not made by `connection.cursor()` or
`connection.execute()` are not measured.
BEGIN, COMMIT, ROLLBACK and savepoints are counted, also those that psycopg sends by itself. What the pool and its
callbacks do by themselves (connect, `configure`, `check`, `reset`) is not measured as a query, but is part of the
connection wait.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final

import psycopg
import psycopg_pool
from psycopg.pq import TransactionStatus

from fastapi_observe.clients.database.cursors import measure_rows, measure_rows_async
from fastapi_observe.clients.database.pools import ObservedDatabase, ObservedPool, count_parameter_sets, observe_pool
from fastapi_observe.clients.database.statements import transaction_event
from fastapi_observe.records.pool import PoolState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator

    from fastapi_observe.clients.database.client import DatabaseClient
    from fastapi_observe.clients.database.observers import ReportError
    from fastapi_observe.clients.database.pools import Address


_IN_TRANSACTION: Final = frozenset({TransactionStatus.INTRANS, TransactionStatus.INERROR})


def instrument_pool(
    db: DatabaseClient, pool: object, *, pool_name: str | None = None, internal_errors: ReportError
) -> Callable[[], None]:
    """Measure every query, transaction and connection wait of a sync or async psycopg pool, open or not. Idempotent.

    Returns a function that reverts this. `pool_name` is the label of the pool; default: the name of the pool. If
    several apps share a pool, a query is reported to the app of the current request, else to the first one. Raises
    `TypeError` if it is not a pool.
    """
    if not isinstance(pool, psycopg_pool.ConnectionPool | psycopg_pool.AsyncConnectionPool):
        raise TypeError(
            f"cannot instrument a {type(pool).__name__}; pass a psycopg_pool.ConnectionPool or AsyncConnectionPool"
            " (connections without a pool cannot be instrumented)"
        )

    def read(observed: ObservedPool) -> PoolState:
        stats = pool.get_stats()  # its `pool_size` includes connections that are not open yet
        limit = stats["pool_max"] or float("inf")  # a NullConnectionPool may have no limit
        return PoolState(observed.active, stats["pool_available"], limit, None, stats.get("requests_waiting", 0))

    mixin: type = _Pool if isinstance(pool, psycopg_pool.ConnectionPool) else _AsyncPool
    return observe_pool(db, pool, mixin, read, pool_name or pool.name, internal_errors, statement_text)


def statement_text(statement: Any) -> str:
    """Return the text of a composed statement, and of a template string with placeholders for its values."""
    if hasattr(statement, "as_string"):
        return str(statement.as_string(None))
    if hasattr(statement, "interpolations"):
        return "%s".join(statement.strings)
    return str(statement)


def _read_address(connection: Any) -> Address:
    info = connection.info
    return info.host or None, info.port, info.dbname or None


def _is_in_transaction(connection: Any) -> bool:
    return connection.pgconn.transaction_status in _IN_TRANSACTION


def _row_count(cursor: Any) -> int:
    return int(cursor.rowcount)


class _Pool:
    """Methods of an instrumented pool: its connections are measured while they are checked out."""

    __slots__ = ()
    _original: Any
    _observed_by: ObservedPool

    def getconn(self, timeout: float | None = None) -> Any:
        observed, getconn = self._observed_by, self._original.getconn
        connection = observed.timed_acquire(getconn, self, timeout)
        observed.checked_out(connection, _read_address, _Connection)
        return connection

    def putconn(self, conn: Any) -> None:
        call = self._original.putconn
        self._observed_by.checked_in(conn, _is_in_transaction)
        call(self, conn)


class _AsyncPool:
    """Methods of an instrumented async pool."""

    __slots__ = ()
    _original: Any
    _observed_by: ObservedPool

    async def getconn(self, timeout: float | None = None) -> Any:  # noqa: ASYNC109 - psycopg's own
        observed, getconn = self._observed_by, self._original.getconn
        connection = await observed.timed_acquire_async(getconn, self, timeout)
        observed.checked_out(connection, _read_address, _Connection)
        return connection

    async def putconn(self, conn: Any) -> None:
        call = self._original.putconn
        self._observed_by.checked_in(conn, _is_in_transaction)
        await call(self, conn)


class _Connection:
    """Methods of a connection, sync or async, while it is checked out."""

    __slots__ = ()
    _original: Any
    _observed_by: ObservedDatabase

    def cursor(self, *args: Any, **options: Any) -> Any:
        cursor = self._original.cursor(self, *args, **options)
        for kind, mixin in _CURSORS.items():
            if isinstance(cursor, kind):
                return self._observed_by.observe(cursor, mixin)
        return cursor

    def _exec_command(self, command: Any, *args: Any, **options: Any) -> Generator[Any, Any, Any]:
        # Not documented, but the only method through which psycopg sends BEGIN by itself.
        event, database = transaction_event(command), self._observed_by
        database.before_command(event, self)
        call = self._original._exec_command  # noqa: SLF001
        result = yield from call(self, command, *args, **options)
        if event is not None:
            database.pool.record_connection_event(event)
        return result


class _Cursor:
    """Methods of a cursor."""

    __slots__ = ()
    _original: Any
    _observed_by: ObservedDatabase
    connection: Any

    def execute(self, query: Any, *args: Any, **options: Any) -> Any:
        event = transaction_event(query)
        if event is None:
            return self._observed_by.run_sync(self._original.execute, (self, query, *args), options, query, _row_count)
        database, call = self._observed_by, self._original.execute
        database.before_command(event, self.connection)
        result = call(self, query, *args, **options)
        database.pool.record_connection_event(event)
        return result

    def executemany(self, query: Any, params_seq: Any, **options: Any) -> Any:
        call, size = self._original.executemany, count_parameter_sets(params_seq)
        return self._observed_by.run_sync(
            call, (self, query, params_seq), options, query, lambda _: _row_count(self), size
        )

    def stream(self, query: Any, *args: Any, **options: Any) -> Iterator[Any]:
        rows = self._original.stream(self, query, *args, **options)
        return measure_rows(lambda: self._observed_by.open_stream(query, self.connection), rows)

    @contextmanager
    def copy(self, statement: Any, *args: Any, **options: Any) -> Iterator[Any]:
        manager = self._original.copy(self, statement, *args, **options)
        with self._observed_by.open_stream(statement, self.connection) as stream:
            with manager as copy, stream.paused():
                yield copy
            stream.add_rows(_row_count(self), float("inf"))


class _AsyncCursor:
    """Methods of an async cursor."""

    __slots__ = ()
    _original: Any
    _observed_by: ObservedDatabase
    connection: Any

    async def execute(self, query: Any, *args: Any, **options: Any) -> Any:
        event = transaction_event(query)
        if event is None:
            return await self._observed_by.run(self._original.execute, (self, query, *args), options, query, _row_count)
        database, call = self._observed_by, self._original.execute
        database.before_command(event, self.connection)
        result = await call(self, query, *args, **options)
        database.pool.record_connection_event(event)
        return result

    async def executemany(self, query: Any, params_seq: Any, **options: Any) -> Any:
        call, size = self._original.executemany, count_parameter_sets(params_seq)
        return await self._observed_by.run(
            call, (self, query, params_seq), options, query, lambda _: _row_count(self), size
        )

    def stream(self, query: Any, *args: Any, **options: Any) -> AsyncIterator[Any]:
        rows = self._original.stream(self, query, *args, **options)
        return measure_rows_async(lambda: self._observed_by.open_stream(query, self.connection), rows)

    @asynccontextmanager
    async def copy(self, statement: Any, *args: Any, **options: Any) -> AsyncIterator[Any]:
        manager = self._original.copy(self, statement, *args, **options)
        with self._observed_by.open_stream(statement, self.connection) as stream:
            async with manager as copy:
                with stream.paused():
                    yield copy
            stream.add_rows(_row_count(self), float("inf"))


class _ServerCursor:
    """Methods of a server-side cursor."""

    __slots__ = ()
    _original: Any
    _observed_by: ObservedDatabase
    arraysize: int
    connection: Any

    def execute(self, query: Any, *args: Any, **options: Any) -> Any:
        call = self._original.execute
        with self._observed_by.open_stream(query, self.connection, self):
            return call(self, query, *args, **options)

    def fetchone(self) -> Any:
        with self._observed_by.stream_of(self) as stream:
            row = self._original.fetchone(self)
        stream.add_rows(0 if row is None else 1, 1)
        return row

    def fetchmany(self, size: int = 0) -> Any:
        with self._observed_by.stream_of(self) as stream:
            rows = self._original.fetchmany(self, size)
        stream.add_rows(len(rows), size or self.arraysize)
        return rows

    def fetchall(self) -> Any:
        with self._observed_by.stream_of(self) as stream:
            rows = self._original.fetchall(self)
        stream.add_rows(len(rows), float("inf"))
        return rows

    def __iter__(self) -> Any:
        rows = self._original.__iter__(self)
        # A generator before psycopg 3.3.
        return self if rows is self else measure_rows(lambda: self._observed_by.stream_of(self), rows)

    def __next__(self) -> Any:
        with self._observed_by.stream_of(self) as stream:
            row = self._original.__next__(self)
            stream.rows += 1
        return row

    def close(self) -> None:
        with self._observed_by.stream_of(self) as stream:
            self._original.close(self)
        stream.end()


class _AsyncServerCursor:
    """Methods of an async server-side cursor."""

    __slots__ = ()
    _original: Any
    _observed_by: ObservedDatabase
    arraysize: int
    connection: Any

    async def execute(self, query: Any, *args: Any, **options: Any) -> Any:
        call = self._original.execute
        with self._observed_by.open_stream(query, self.connection, self):
            return await call(self, query, *args, **options)

    async def fetchone(self) -> Any:
        with self._observed_by.stream_of(self) as stream:
            row = await self._original.fetchone(self)
        stream.add_rows(0 if row is None else 1, 1)
        return row

    async def fetchmany(self, size: int = 0) -> Any:
        with self._observed_by.stream_of(self) as stream:
            rows = await self._original.fetchmany(self, size)
        stream.add_rows(len(rows), size or self.arraysize)
        return rows

    async def fetchall(self) -> Any:
        with self._observed_by.stream_of(self) as stream:
            rows = await self._original.fetchall(self)
        stream.add_rows(len(rows), float("inf"))
        return rows

    def __aiter__(self) -> Any:
        rows = self._original.__aiter__(self)
        # A generator before psycopg 3.3.
        return self if rows is self else measure_rows_async(lambda: self._observed_by.stream_of(self), rows)

    async def __anext__(self) -> Any:
        with self._observed_by.stream_of(self) as stream:
            row = await self._original.__anext__(self)
            stream.rows += 1
        return row

    async def close(self) -> None:
        with self._observed_by.stream_of(self) as stream:
            await self._original.close(self)
        stream.end()


_CURSORS: Final[dict[type, type]] = {
    psycopg.ServerCursor: _ServerCursor,
    psycopg.AsyncServerCursor: _AsyncServerCursor,
    psycopg.Cursor: _Cursor,
    psycopg.AsyncCursor: _AsyncCursor,
}
"""The methods for each class of cursors. The first class that matches applies."""
