"""Instrumentation that the pools of all database drivers share.

A connection is measured while it is checked out of its pool: its class is then a generated subclass of its own class.
So nothing of a driver is patched for other connections, and the statements that a pool sends by itself (to connect, to
check, to reset) are not measured as the user's queries.
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
    from fastapi_observe.clients.database.observers import ReportError
    from fastapi_observe.records.pool import PoolState

    Address = tuple[str | None, int | None, str | None]
    """Host, or directory of a socket; port; database."""


POOL_MODULES: Final = {"asyncpg": "asyncpg", "psycopg_pool": "psycopg"}
"""Packages of pools, and the module of this directory for each. It is imported for a pool of that package only."""

SYSTEM: Final = "postgresql"
"""`db.system.name` of all these drivers."""

MAX_DATABASES: Final = 256
"""Maximum number of addresses of one pool that spans name."""


def instrument_pool(
    db: DatabaseClient, pool: object, *, pool_name: str | None = None, internal_errors: ReportError
) -> Callable[[], None]:
    """Measure every query, transaction and connection wait of a pool. Returns a function that reverts this.

    Raises `TypeError` if it is not a pool of a supported driver.
    """
    for kind in type(pool).__mro__:
        module = POOL_MODULES.get(kind.__module__.partition(".")[0])
        if module is not None:
            instrument = import_module(f"{__package__}.{module}").instrument_pool
            return instrument(db, pool, pool_name=pool_name, internal_errors=internal_errors)  # type: ignore[no-any-return]
    raise TypeError(
        f"cannot instrument a {type(pool).__name__}; pass a pool of asyncpg (create_pool) or of psycopg_pool "
        "(ConnectionPool, AsyncConnectionPool); pass an SQLAlchemy engine to instrument_engine"
    )


def count_parameter_sets(values: Any) -> int | None:
    """Return the number of parameter sets; None for an iterator."""
    try:
        return len(values)
    except Exception:  # noqa: BLE001 - the user's __len__ may raise anything
        return None


class ObservedDatabase:
    """One database on one server. The connections of a pool to it start and end their queries here.

    Raises nothing: internal errors are reported.
    """

    __slots__ = ("_attributes", "_classes", "_cursors", "_location", "_streams", "pool")

    def __init__(self, pool: ObservedPool, address: Address) -> None:
        host, port, database = address
        location = {
            "server.address": host,
            "server.port": None if host is None or host.startswith("/") else port,  # a socket has no port
            "db.namespace": database,
        }
        self._location = {key: value for key, value in location.items() if value is not None}
        self._attributes: dict[str, dict[str, Any]] = {}
        self._classes: dict[tuple[type, type], type] = {}
        self._cursors: WeakKeyDictionary[Any, StreamedQuery] = WeakKeyDictionary()
        self._streams: WeakKeyDictionary[Any, list[StreamedQuery]] = WeakKeyDictionary()
        self.pool = pool

    def start_query(self, statement: object, batch: int | None = None) -> Query | None:
        """Start a query. Returns None if an outer one measures it, or no app does."""
        observer = self.pool.observer()
        if observer is None:
            return None
        try:
            attributes = self._attributes.get(observer.pool)
            if attributes is None:
                # One object for each label, because prepared queries are found by its id.
                attributes = self._attributes.setdefault(observer.pool, {**self._location, **observer.attributes})
            if not isinstance(statement, str | bytes):
                statement = self.pool.to_text(statement)
            query = observer.db.start_statement(statement, SYSTEM, batch, attributes)
            return None if query is None else query.open()
        except Exception as exc:  # noqa: BLE001 - an internal error never reaches the user's query
            observer.internal_errors("pool.start_query", exc)
            return None

    def end_query(
        self,
        query: Query,
        exc: BaseException | None = None,
        rows: Callable[[Any], int | None] | None = None,
        result: Any = None,
    ) -> None:
        """End a query. `rows(result)` is the number of its rows, None if unknown."""
        try:
            try:
                if rows is not None and (count := rows(result)) is not None:
                    query.set_row_count(count)
            finally:
                query.close(exc)
        except Exception as error:  # noqa: BLE001 - as above
            self.pool.report_error("pool.end_query", error)

    async def run(  # noqa: PLR0913, PLR0917 - a call and the facts about it
        self,
        call: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        options: dict[str, Any],
        statement: object,
        rows: Callable[[Any], int | None] | None = None,
        batch: int | None = None,
    ) -> Any:
        """Await `call(*args, **options)` as one query. `rows` reads the number of rows from the result."""
        query = self.start_query(statement, batch)
        if query is None:
            return await call(*args, **options)
        try:
            result = await call(*args, **options)
        except BaseException as exc:
            self.end_query(query, exc)
            raise
        self.end_query(query, None, rows, result)
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
        """Call `call(*args, **options)` as one query, as in `run`."""
        query = self.start_query(statement, batch)
        if query is None:
            return call(*args, **options)
        try:
            result = call(*args, **options)
        except BaseException as exc:
            self.end_query(query, exc)
            raise
        self.end_query(query, None, rows, result)
        return result

    def open_stream(self, statement: object, connection: Any, cursor: Any = None) -> StreamedQuery:
        """Start a query whose rows are fetched step by step. It ends with its transaction at the latest."""
        if cursor is not None:
            self.stream_of(cursor).end()  # the cursor is used again
        stream = StreamedQuery(self.end_query, self.start_query(statement))
        if stream.is_open:
            self._streams.setdefault(connection, []).append(stream)
            if cursor is not None:
                self._cursors[cursor] = stream
        return stream

    def stream_of(self, cursor: Any) -> StreamedQuery:
        """Return the query that a cursor streams; one that measures nothing if there is none."""
        return self._cursors.get(cursor) or StreamedQuery(self.end_query, None)

    def before_command(self, event: str | None, connection: Any) -> None:
        """End the streams of a connection if `event` ends its transaction."""
        if event in {"commit", "rollback"}:
            self.end_streams(connection)

    def end_streams(self, connection: Any) -> None:
        """End the streams of a connection."""
        if self._streams:
            for stream in self._streams.pop(connection, ()):
                stream.end()

    def observe(self, instance: Any, mixin: type) -> Any:
        """Give an object a subclass of its class with the methods of `mixin`. Returns the object."""
        try:
            kind = original_class(instance)
            observed = self._classes.get((kind, mixin))
            if observed is None:
                observed = self._classes[kind, mixin] = subclass(kind, mixin, self)
            instance.__class__ = observed
        except Exception as exc:  # noqa: BLE001 - as above
            self.pool.report_error("pool.observe", exc)
        return instance


class ObservedPool(ObserverSet):
    """The apps that measure one pool, and its connections that are checked out.

    `mixin` has the methods of the pool that are replaced. `to_text` converts a statement that is not a string.
    """

    __slots__ = ("_checked_out", "_database_of", "_databases", "_mixin", "_pool", "to_text")

    def __init__(self, pool: Any, mixin: type, to_text: Callable[[Any], str]) -> None:
        ObserverSet.__init__(self)
        self._pool = pool
        self._mixin = mixin
        self.to_text = to_text
        self._database_of: WeakKeyDictionary[Any, ObservedDatabase] = WeakKeyDictionary()
        self._databases: dict[Address, ObservedDatabase] = {}
        self._checked_out: dict[int, None] = {}  # by id; single operations of a dict are atomic and need no lock

    @property
    def active(self) -> int:
        """The number of connections that were checked out since the pool is measured, and are still out."""
        return len(self._checked_out)

    def install(self) -> None:
        """Give the pool the class that measures."""
        self._pool.__class__ = subclass(type(self._pool), self._mixin, self)

    def uninstall(self) -> None:
        """Give the pool its own class again."""
        self._pool.__class__ = original_class(self._pool)

    def checked_out(self, connection: Any, read_address: Callable[[Any], Address], mixin: type) -> None:
        """Measure a connection while it is checked out."""
        observer = self.observer()
        if observer is None:
            return
        self._checked_out[id(connection)] = None
        try:
            database = self._database_of.get(connection)
            if database is None:
                database = self._database_of[connection] = self._find_database(read_address(connection))
            database.observe(connection, mixin)
        except Exception as exc:  # noqa: BLE001 - an internal error never reaches the user's query
            observer.internal_errors("pool.checked_out", exc)

    def _find_database(self, address: Address) -> ObservedDatabase:
        if address not in self._databases and len(self._databases) >= MAX_DATABASES:
            address = (None, None, None)
        return self._databases.get(address) or self._databases.setdefault(address, ObservedDatabase(self, address))

    def checked_in(self, connection: Any, is_in_transaction: Callable[[Any], bool]) -> None:
        """Give a connection its own class again. Counts the rollback by which a pool ends an open transaction."""
        self._checked_out.pop(id(connection), None)
        observer, database = self.observer(), getattr(type(connection), "_observed_by", None)
        if observer is None or not isinstance(database, ObservedDatabase) or database.pool is not self:
            return
        try:
            try:
                database.end_streams(connection)
                if is_in_transaction(connection):
                    observer.record_connection_event("rollback")
            finally:
                connection.__class__ = original_class(connection)
        except Exception as exc:  # noqa: BLE001 - as above
            observer.internal_errors("pool.checked_in", exc)


def subclass(kind: type, mixin: type, observed_by: object) -> type:
    """Return a subclass of `kind` with the methods of `mixin`, and with the name, documentation and size of `kind`.

    The methods find the class whose methods they replace as `_original`. `mixin` is not a base: Python lets an object
    change to a class only if that has the same layout, so its own class as the only base and no further attributes.
    """
    methods = {name: method for name, method in vars(mixin).items() if name not in vars(_Empty)}
    identity = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(
        kind.__name__, (kind,), {**methods, **identity, "__slots__": (), "_original": kind, "_observed_by": observed_by}
    )


class _Empty:
    """A mixin without methods: its attributes are those that every mixin has."""

    __slots__ = ()
    _original: Any


def original_class(instance: Any) -> type:
    """Return the class of an object without the generated subclass."""
    kind = type(instance)
    if isinstance(kind.__dict__.get("_observed_by"), ObservedDatabase | ObservedPool):
        return kind.__bases__[0]
    return kind


def observe_pool(  # noqa: PLR0913, PLR0917 - the differences between drivers
    db: DatabaseClient,
    pool: Any,
    mixin: type,
    read: Callable[[ObservedPool], PoolState],
    pool_name: str,
    internal_errors: ReportError,
    to_text: Callable[[Any], str] = str,
) -> Callable[[], None]:
    """Measure a pool for `db`. Idempotent. Returns a function that reverts this.

    Connections that are checked out at that moment continue to work, unmeasured.
    """
    observed = getattr(type(pool), "_observed_by", None)
    if not isinstance(observed, ObservedPool):
        observed = ObservedPool(pool, mixin, to_text)
    known: ObservedPool = observed
    return known.add(db, internal_errors, pool_name, lambda: read(known))
