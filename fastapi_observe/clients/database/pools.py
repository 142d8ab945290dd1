"""What the instrumented pools of database drivers share: what their connections report, and how they come to do so.

A connection reports while it is out of its pool: its class becomes a generated subclass of what it was, and what it was
again when it goes back. So nothing of a driver is patched for others, and what a pool does with a connection of its own
accord (connect, check, reset) is not taken for the user's queries.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from fastapi_observe.clients.database.cursors import StreamedQuery
from fastapi_observe.clients.database.observers import ObserverSet

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastapi_observe.clients.database.client import DatabaseClient, Query
    from fastapi_observe.clients.database.observers import Faults
    from fastapi_observe.records.pool import PoolState

    Address = tuple[str | None, int | None, str | None]


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


SYSTEM: Final = "postgresql"
"""`db.system.name` of what these drivers speak to."""

MAX_DATABASES: Final = 256
"""Addresses of one pool that are told apart; later ones are not told."""


def pool_size(values: Any) -> int | None:
    """Return the number of parameter sets; None where they are made on the way."""
    try:
        return len(values)
    except Exception:  # noqa: BLE001 - the user's __len__ may raise anything
        return None


class ObservedDatabase:
    """One database on one server, as a pool sees it: what its connections report to.

    No fault of ours leaves it.
    """

    __slots__ = ("_classes", "_cursors", "_facts", "_streams", "_where", "watch")

    def __init__(self, watch: ObservedPool, address: Address) -> None:
        host, port, database = address
        where = {
            "server.address": host,
            "server.port": None if host is None or host.startswith("/") else port,  # a socket's file has no port
            "db.namespace": database,
        }
        self._where = {key: value for key, value in where.items() if value is not None}
        self._facts: dict[str, dict[str, Any]] = {}
        self._classes: dict[tuple[type, type], type] = {}
        self._cursors: WeakKeyDictionary[Any, StreamedQuery] = WeakKeyDictionary()
        self._streams: WeakKeyDictionary[Any, list[StreamedQuery]] = WeakKeyDictionary()
        self.watch = watch

    def begin(self, statement: object, batch: int | None = None) -> Query | None:
        """Open the operation of a query; None if an outer one measures it."""
        observer = self.watch.observer()
        if observer is None:
            return None
        try:
            facts = self._facts.get(observer.pool)
            if facts is None:
                facts = self._facts.setdefault(observer.pool, {**self._where, **observer.facts})
            if not isinstance(statement, str | bytes):
                statement = self.watch.text_of(statement)
            query = observer.db.start_statement(statement, system=SYSTEM, batch=batch, attributes=facts)
            return None if query is None else query.open()
        except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the user's query
            observer.faults("pool.begin", exc)
            return None

    def end(
        self,
        query: Query,
        exc: BaseException | None = None,
        rows: Callable[[Any], int | None] | None = None,
        result: Any = None,
    ) -> None:
        """Close the operation of a query; `rows(result)` is the number of its rows, if known."""
        try:
            try:
                if rows is not None and (count := rows(result)) is not None:
                    query.set_row_count(count)
            finally:
                query.close(exc)
        except Exception as fault:  # noqa: BLE001 - as above
            self.watch.fault("pool.end", fault)

    async def run(  # noqa: PLR0913, PLR0917 - a call and what is told of it
        self,
        call: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        options: dict[str, Any],
        statement: object,
        rows: Callable[[Any], int | None] | None = None,
        batch: int | None = None,
    ) -> Any:
        """Await `call(*args, **options)` as one query; `rows` reads the number of rows from the result."""
        query = self.begin(statement, batch)
        if query is None:
            return await call(*args, **options)
        try:
            result = await call(*args, **options)
        except BaseException as exc:
            self.end(query, exc)
            raise
        self.end(query, None, rows, result)
        return result

    def run_sync(  # noqa: PLR0913, PLR0917 - as above
        self,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        options: dict[str, Any],
        statement: object,
        rows: Callable[[Any], int | None] | None = None,
        batch: int | None = None,
    ) -> Any:
        """Do without `await` what `run` does."""
        query = self.begin(statement, batch)
        if query is None:
            return call(*args, **options)
        try:
            result = call(*args, **options)
        except BaseException as exc:
            self.end(query, exc)
            raise
        self.end(query, None, rows, result)
        return result

    def stream(self, statement: object, connection: Any, cursor: Any = None) -> StreamedQuery:
        """Open the operation of a query whose rows come as they are asked for, at most until `finish`."""
        if cursor is not None:
            self.start_stream(cursor).end()  # it is used again
        stream = StreamedQuery(self.end, self.begin(statement))
        if stream.open:
            self._streams.setdefault(connection, []).append(stream)
            if cursor is not None:
                self._cursors[cursor] = stream
        return stream

    def start_stream(self, cursor: Any) -> StreamedQuery:
        """Return what was opened for a cursor."""
        return self._cursors.get(cursor) or StreamedQuery(self.end, None)

    def ends(self, event: str | None, connection: Any) -> None:
        """End what streams on a connection if `event` is the end of its transaction."""
        if event in {"commit", "rollback"}:
            self.finish(connection)

    def finish(self, connection: Any) -> None:
        """End what streams on a connection: its transaction is over, or it goes back to the pool."""
        if self._streams:
            for stream in self._streams.pop(connection, ()):
                stream.end()

    def observe(self, instance: Any, mixin: type) -> Any:
        """Give an object a subclass of its class that reports here; return the object."""
        try:
            kind = unwrap_original(instance)
            observed = self._classes.get((kind, mixin))
            if observed is None:
                observed = self._classes[kind, mixin] = subclass(kind, mixin, self)
            instance.__class__ = observed
        except Exception as exc:  # noqa: BLE001 - as above
            self.watch.fault("pool.observe", exc)
        return instance


class ObservedPool(ObserverSet):
    """Who is told about one instrumented pool, and which of its connections are out.

    `mixin` is what the pool does differently, `text_of` reads a statement that is no text.
    """

    __slots__ = ("_databases", "_known", "_lent", "_mixin", "_pool", "text_of")

    def __init__(self, pool: Any, mixin: type, text_of: Callable[[Any], str]) -> None:
        ObserverSet.__init__(self)
        self._pool = pool
        self._mixin = mixin
        self.text_of = text_of
        self._known: WeakKeyDictionary[Any, ObservedDatabase] = WeakKeyDictionary()
        self._databases: dict[Address, ObservedDatabase] = {}
        self._lent: dict[int, None] = {}  # by id: to add and to take away need no lock

    @property
    def active(self) -> int:
        """How many connections are out, of those that were lent since the pool is watched."""
        return len(self._lent)

    def begin(self) -> None:
        """Give the pool a class that reports."""
        self._pool.__class__ = subclass(type(self._pool), self._mixin, self)

    def end(self) -> None:
        """Give the pool its own class again."""
        self._pool.__class__ = unwrap_original(self._pool)

    def checked_out(self, connection: Any, address: Callable[[Any], Address], mixin: type) -> None:
        """Have a connection report while it is out of the pool."""
        observer = self.observer()
        if observer is None:
            return
        self._lent[id(connection)] = None
        try:
            database = self._known.get(connection)
            if database is None:
                database = self._known[connection] = self._database(address(connection))
            database.observe(connection, mixin)
        except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the user's query
            observer.faults("pool.lend", exc)

    def _database(self, at: Address) -> ObservedDatabase:
        if at not in self._databases and len(self._databases) >= MAX_DATABASES:
            at = (None, None, None)
        return self._databases.get(at) or self._databases.setdefault(at, ObservedDatabase(self, at))

    def checked_in(self, connection: Any, in_transaction: Callable[[Any], bool]) -> None:
        """Have a connection be what it was; count the rollback that its pool does where a transaction is open."""
        self._lent.pop(id(connection), None)
        observer, database = self.observer(), getattr(type(connection), "_observed_by", None)
        if observer is None or not isinstance(database, ObservedDatabase) or database.watch is not self:
            return
        try:
            try:
                database.finish(connection)
                if in_transaction(connection):
                    observer.record_connection_event("rollback")
            finally:
                connection.__class__ = unwrap_original(connection)
        except Exception as exc:  # noqa: BLE001 - as above
            observer.faults("pool.take_back", exc)


def subclass(kind: type, mixin: type, observed_by: object) -> type:
    """Make the subclass of `kind` that does what `mixin` does differently; it looks like `kind` and is as large.

    The methods find what they override in `_unobserved`. `mixin` is no base of it: an object can only become one of a
    class whose one base is its own class, and which adds nothing to that.
    """
    methods = {name: method for name, method in vars(mixin).items() if name not in vars(_Nothing)}
    looks = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(
        kind.__name__, (kind,), {**methods, **looks, "__slots__": (), "_unobserved": kind, "_observed_by": observed_by}
    )


class _Nothing:
    """What every class has, with methods or without."""

    __slots__ = ()
    _unobserved: Any


def unwrap_original(instance: Any) -> type:
    """Return the class that an object had before it was observed."""
    kind = type(instance)
    if isinstance(kind.__dict__.get("_observed_by"), ObservedDatabase | ObservedPool):
        return kind.__bases__[0]
    return kind


def watch_pool(  # noqa: PLR0913, PLR0917 - what instrumenting a pool takes
    db: DatabaseClient,
    pool: Any,
    mixin: type,
    read: Callable[[ObservedPool], PoolState],
    pool_name: str,
    faults: Faults,
    text_of: Callable[[Any], str] = str,
) -> Callable[[], None]:
    """Have a pool report to `db`, unless it does; the result undoes that.

    Its connections that are out then work on, and report nothing.
    """
    watch = getattr(type(pool), "_observed_by", None)
    if not isinstance(watch, ObservedPool):
        watch = ObservedPool(pool, mixin, text_of)
    known: ObservedPool = watch
    return known.add(db, faults, pool_name, lambda: read(known))
