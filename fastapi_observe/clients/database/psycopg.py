"""psycopg pools that measure themselves: `instrument_pool`.

What one operation is: one call of `execute`, through a connection or a cursor, until its result is there; `executemany`
is one with the number of parameter sets, `stream` and `copy` are one from their beginning to their end, a server-side
cursor is one from `execute` until it is exhausted or closed, or its transaction over, without regard to who works
meanwhile. In a pipeline the time is that of sending. Cursors that were not made by `connection.cursor()` or
`connection.execute()` are not seen.
BEGIN, COMMIT, ROLLBACK and savepoints, those that psycopg sends by itself too, are counts. What the pool and its
callbacks do on their own account (connect, `configure`, `check`, `reset`) is none, but part of the wait for a
connection.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final

import psycopg
import psycopg_pool
from psycopg.pq import TransactionStatus

from fastapi_observe.clients.database.cursors import measure_rows, measure_rows_async
from fastapi_observe.clients.database.pools import ObservedDatabase, ObservedPool, pool_size, watch_pool
from fastapi_observe.clients.database.statements import transaction_event
from fastapi_observe.records.pool import PoolState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator

    from fastapi_observe.clients.database.client import DatabaseClient
    from fastapi_observe.clients.database.observers import Faults
    from fastapi_observe.clients.database.pools import Address


_OPEN: Final = frozenset({TransactionStatus.INTRANS, TransactionStatus.INERROR})


def instrument_pool(
    db: DatabaseClient, pool: object, *, pool_name: str | None = None, faults: Faults
) -> Callable[[], None]:
    """Measure every query, transaction and wait of a sync or async psycopg pool, open or not; the result undoes it.

    `pool_name` is the label of the pool; default: its own name. Again for the same pool and `db` does nothing. Where
    several apps share a pool, a query is reported to the one whose request it is part of, else to the first. Raises
    `TypeError` for what is no pool.
    """
    if not isinstance(pool, psycopg_pool.ConnectionPool | psycopg_pool.AsyncConnectionPool):
        raise TypeError(
            f"cannot instrument a {type(pool).__name__}; pass a psycopg_pool.ConnectionPool or AsyncConnectionPool (a"
            " connection that belongs to no pool is not instrumented)"
        )

    def read(watch: ObservedPool) -> PoolState:
        stats = pool.get_stats()  # its `pool_size` counts connections that are not there yet
        most = stats["pool_max"] or float("inf")  # a NullConnectionPool may have no limit
        return PoolState(watch.active, stats["pool_available"], most, None, stats.get("requests_waiting", 0))

    mixin: type = _Pool if isinstance(pool, psycopg_pool.ConnectionPool) else _AsyncPool
    return watch_pool(db, pool, mixin, read, pool_name or pool.name, faults, statement_text)


def statement_text(statement: Any) -> str:
    """Return the text of what psycopg composes, placeholders for the values of a template string."""
    if hasattr(statement, "as_string"):
        return str(statement.as_string(None))
    if hasattr(statement, "interpolations"):
        return "%s".join(statement.strings)
    return str(statement)


def _address(connection: Any) -> Address:
    info = connection.info
    return info.host or None, info.port, info.dbname or None


def _in_transaction(connection: Any) -> bool:
    return connection.pgconn.transaction_status in _OPEN


def _rows(cursor: Any) -> int:
    return int(cursor.rowcount)


class _Pool:
    """What an instrumented pool does differently: its connections report while somebody has them."""

    __slots__ = ()
    _unobserved: Any
    _observed_by: ObservedPool

    def getconn(self, timeout: float | None = None) -> Any:
        watch, call = self._observed_by, self._unobserved.getconn
        connection = watch.timed_acquire(call, self, timeout)
        watch.checked_out(connection, _address, _Connection)
        return connection

    def putconn(self, conn: Any) -> None:
        call = self._unobserved.putconn
        self._observed_by.checked_in(conn, _in_transaction)
        call(self, conn)


class _AsyncPool:
    """What `_Pool` is, for an async pool."""

    __slots__ = ()
    _unobserved: Any
    _observed_by: ObservedPool

    async def getconn(self, timeout: float | None = None) -> Any:  # noqa: ASYNC109 - psycopg's own
        watch, call = self._observed_by, self._unobserved.getconn
        connection = await watch.timed_acquire_async(call, self, timeout)
        watch.checked_out(connection, _address, _Connection)
        return connection

    async def putconn(self, conn: Any) -> None:
        call = self._unobserved.putconn
        self._observed_by.checked_in(conn, _in_transaction)
        await call(self, conn)


class _Connection:
    """What a connection, sync or async, does differently while it is out of its pool."""

    __slots__ = ()
    _unobserved: Any
    _observed_by: ObservedDatabase

    def cursor(self, *args: Any, **options: Any) -> Any:
        cursor = self._unobserved.cursor(self, *args, **options)
        for kind, mixin in _CURSORS.items():
            if isinstance(cursor, kind):
                return self._observed_by.observe(cursor, mixin)
        return cursor

    def _exec_command(self, command: Any, *args: Any, **options: Any) -> Generator[Any, Any, Any]:
        # Not public, but the one way of what psycopg sends by itself: nothing public tells of BEGIN.
        event, database = transaction_event(command), self._observed_by
        database.ends(event, self)
        call = self._unobserved._exec_command  # noqa: SLF001 - what is overridden
        result = yield from call(self, command, *args, **options)
        if event is not None:
            database.watch.record_connection_event(event)
        return result


class _Cursor:
    """What a cursor does differently."""

    __slots__ = ()
    _unobserved: Any
    _observed_by: ObservedDatabase
    connection: Any

    def execute(self, query: Any, *args: Any, **options: Any) -> Any:
        event = transaction_event(query)
        if event is None:
            return self._observed_by.run_sync(self._unobserved.execute, (self, query, *args), options, query, _rows)
        database, call = self._observed_by, self._unobserved.execute
        database.ends(event, self.connection)
        result = call(self, query, *args, **options)
        database.watch.record_connection_event(event)
        return result

    def executemany(self, query: Any, params_seq: Any, **options: Any) -> Any:
        call, size = self._unobserved.executemany, pool_size(params_seq)
        return self._observed_by.run_sync(call, (self, query, params_seq), options, query, lambda _: _rows(self), size)

    def stream(self, query: Any, *args: Any, **options: Any) -> Iterator[Any]:
        rows = self._unobserved.stream(self, query, *args, **options)
        return measure_rows(lambda: self._observed_by.stream(query, self.connection), rows)

    @contextmanager
    def copy(self, statement: Any, *args: Any, **options: Any) -> Iterator[Any]:
        manager = self._unobserved.copy(self, statement, *args, **options)
        with self._observed_by.stream(statement, self.connection) as stream:
            with manager as copy, stream.paused():
                yield copy
            stream.add_rows(_rows(self), float("inf"))


class _AsyncCursor:
    """What `_Cursor` is, for an async cursor."""

    __slots__ = ()
    _unobserved: Any
    _observed_by: ObservedDatabase
    connection: Any

    async def execute(self, query: Any, *args: Any, **options: Any) -> Any:
        event = transaction_event(query)
        if event is None:
            return await self._observed_by.run(self._unobserved.execute, (self, query, *args), options, query, _rows)
        database, call = self._observed_by, self._unobserved.execute
        database.ends(event, self.connection)
        result = await call(self, query, *args, **options)
        database.watch.record_connection_event(event)
        return result

    async def executemany(self, query: Any, params_seq: Any, **options: Any) -> Any:
        call, size = self._unobserved.executemany, pool_size(params_seq)
        return await self._observed_by.run(call, (self, query, params_seq), options, query, lambda _: _rows(self), size)

    def stream(self, query: Any, *args: Any, **options: Any) -> AsyncIterator[Any]:
        rows = self._unobserved.stream(self, query, *args, **options)
        return measure_rows_async(lambda: self._observed_by.stream(query, self.connection), rows)

    @asynccontextmanager
    async def copy(self, statement: Any, *args: Any, **options: Any) -> AsyncIterator[Any]:
        manager = self._unobserved.copy(self, statement, *args, **options)
        with self._observed_by.stream(statement, self.connection) as stream:
            async with manager as copy:
                with stream.paused():
                    yield copy
            stream.add_rows(_rows(self), float("inf"))


class _ServerCursor:
    """What a server-side cursor does differently."""

    __slots__ = ()
    _unobserved: Any
    _observed_by: ObservedDatabase
    arraysize: int
    connection: Any

    def execute(self, query: Any, *args: Any, **options: Any) -> Any:
        call = self._unobserved.execute
        with self._observed_by.stream(query, self.connection, self):
            return call(self, query, *args, **options)

    def fetchone(self) -> Any:
        with self._observed_by.start_stream(self) as stream:
            row = self._unobserved.fetchone(self)
        stream.add_rows(0 if row is None else 1, 1)
        return row

    def fetchmany(self, size: int = 0) -> Any:
        with self._observed_by.start_stream(self) as stream:
            rows = self._unobserved.fetchmany(self, size)
        stream.add_rows(len(rows), size or self.arraysize)
        return rows

    def fetchall(self) -> Any:
        with self._observed_by.start_stream(self) as stream:
            rows = self._unobserved.fetchall(self)
        stream.add_rows(len(rows), float("inf"))
        return rows

    def __iter__(self) -> Any:
        rows = self._unobserved.__iter__(self)
        # Before psycopg 3.3, a generator.
        return self if rows is self else measure_rows(lambda: self._observed_by.start_stream(self), rows)

    def __next__(self) -> Any:
        with self._observed_by.start_stream(self) as stream:
            row = self._unobserved.__next__(self)
            stream.rows += 1
        return row

    def close(self) -> None:
        with self._observed_by.start_stream(self) as stream:
            self._unobserved.close(self)
        stream.end()


class _AsyncServerCursor:
    """What `_ServerCursor` is, for an async one."""

    __slots__ = ()
    _unobserved: Any
    _observed_by: ObservedDatabase
    arraysize: int
    connection: Any

    async def execute(self, query: Any, *args: Any, **options: Any) -> Any:
        call = self._unobserved.execute
        with self._observed_by.stream(query, self.connection, self):
            return await call(self, query, *args, **options)

    async def fetchone(self) -> Any:
        with self._observed_by.start_stream(self) as stream:
            row = await self._unobserved.fetchone(self)
        stream.add_rows(0 if row is None else 1, 1)
        return row

    async def fetchmany(self, size: int = 0) -> Any:
        with self._observed_by.start_stream(self) as stream:
            rows = await self._unobserved.fetchmany(self, size)
        stream.add_rows(len(rows), size or self.arraysize)
        return rows

    async def fetchall(self) -> Any:
        with self._observed_by.start_stream(self) as stream:
            rows = await self._unobserved.fetchall(self)
        stream.add_rows(len(rows), float("inf"))
        return rows

    def __aiter__(self) -> Any:
        rows = self._unobserved.__aiter__(self)
        # Before psycopg 3.3, a generator.
        return self if rows is self else measure_rows_async(lambda: self._observed_by.start_stream(self), rows)

    async def __anext__(self) -> Any:
        with self._observed_by.start_stream(self) as stream:
            row = await self._unobserved.__anext__(self)
            stream.rows += 1
        return row

    async def close(self) -> None:
        with self._observed_by.start_stream(self) as stream:
            await self._unobserved.close(self)
        stream.end()


_CURSORS: Final[dict[type, type]] = {
    psycopg.ServerCursor: _ServerCursor,
    psycopg.AsyncServerCursor: _AsyncServerCursor,
    psycopg.Cursor: _Cursor,
    psycopg.AsyncCursor: _AsyncCursor,
}
"""What is done to which cursors; the first that fits."""
