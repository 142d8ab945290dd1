"""SQLAlchemy engines: `instrument_engine`.

An operation is one statement in the driver, from just before `cursor.execute` to just after it. Rows that are fetched
later (`stream()`, `yield_per`, server-side cursors) are not part of it. A statement that never reached the driver is
not measured, nor is one that SQLAlchemy sends to prepare a new connection, which is part of the connection wait.
`executemany` is one operation, with the number of parameter sets as `db.operation.batch.size`; so is an INSERT of many
rows that SQLAlchemy sends as several statements ("insertmanyvalues"), recorded as it was before it was multiplied. The
recorded error is the driver's own, such as `psycopg.errors.UniqueViolation`: the `sqlalchemy.exc.IntegrityError` around
it repeats statement and parameters in its text. The exceptions of the caller do not change.

BEGIN, COMMIT, ROLLBACK, savepoints and pings are counted. Each transaction has one `begin`, and one `commit` or
`rollback` unless it is lost with its connection; a rollback by the pool outside a transaction is not counted. The
connection wait lasts from the request to the pool until the pool returns a connection, which includes checking an idle
one and opening a new one. A failure to get a connection counts as a wait too, and as the event `timeout` or `error`: it
is the only trace of a database that is down, because no statement was sent.

Methods of the dialect and of the pool are wrapped, on the instance, instead of using SQLAlchemy's events. A single
listener, for any event, adds a third to the time of a short statement and half to that of a short transaction. And the
events around a statement leave an operation open if an error does not reach the event of errors, because another
listener raised first or `skip_user_error_events` is on.
"""

from __future__ import annotations

import sys
from asyncio import CancelledError
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.engine import Engine
from sqlalchemy.pool import QueuePool

from fastapi_observe.clients.database.observers import ObserverSet
from fastapi_observe.clients.database.statements import transaction_event
from fastapi_observe.internal.sqlalchemy import (
    INSERTMANYVALUES_METHOD,
    base_engine,
    insertmanyvalues_method,
    is_new_connection,
    max_connections,
)
from fastapi_observe.records.pool import PoolState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sized

    from sqlalchemy.engine import URL
    from sqlalchemy.pool import Pool

    from fastapi_observe.clients.database.client import DatabaseClient, Query
    from fastapi_observe.clients.database.observers import PoolObserver, ReportError

SYSTEMS: Final = {
    **{name: name for name in ("postgresql", "mysql", "mariadb", "sqlite")},
    "oracle": "oracle.db",
    "mssql": "microsoft.sql_server",
}
"""`db.system.name` of the semantic conventions by the name of the dialect; `other_sql` for every other one."""

OBSERVED_ATTRIBUTE: Final = "_fastapi_observe"
"""Attribute of an instrumented engine, of a connection in a transaction, and of an execution of several statements."""


def instrument_engine(
    db: DatabaseClient, engine: object, *, pool_name: str | None = None, internal_errors: ReportError
) -> Callable[[], None]:
    """Measure every statement, transaction and connection wait of a sync or async engine. Idempotent.

    Returns a function that reverts this. `pool_name` is the label of the pool; default: the engine's
    `pool_logging_name` or `logging_name`, else host, port and database. An engine made by `execution_options()` is
    measured together with the engine that it was made from. If several apps share an engine, a statement is reported to
    the app of the current request, else to the first one. Raises `TypeError` if it is not an engine.
    """
    engine = _sync_engine(engine)
    observed = vars(engine).get(OBSERVED_ATTRIBUTE) or ObservedEngine(engine)
    attributes = _location_attributes(engine.url)
    label = pool_name or _engine_name(engine, attributes) or observed.system
    return observed.add(db, internal_errors, label, observed.state, attributes)


def _sync_engine(engine: object) -> Engine:
    """Return the engine that executes the statements."""
    module = sys.modules.get("sqlalchemy.ext.asyncio")  # imported if there is an async engine
    inner = engine.sync_engine if module is not None and isinstance(engine, module.AsyncEngine) else engine
    if not isinstance(inner, Engine):
        raise TypeError(
            f"cannot instrument a {type(engine).__name__}; pass the Engine of sqlalchemy.create_engine() or the"
            " AsyncEngine of create_async_engine() (for a session: session.get_bind())"
        )
    return base_engine(inner)


def _location_attributes(url: URL) -> dict[str, Any]:
    """Return the span attributes for the database, without user, password and options."""
    socket = url.query.get("host")  # PostgreSQL's way to name the directory of a socket
    address = url.host or (socket if isinstance(socket, str) else None)
    attributes = {"server.address": address, "server.port": url.port, "db.namespace": url.database}
    return {name: value for name, value in attributes.items() if value}


def _engine_name(engine: Engine, location: dict[str, Any]) -> str | None:
    given = getattr(engine.pool, "logging_name", None) or getattr(engine, "logging_name", None)
    if given:
        return str(given)
    address, port, namespace = (location.get(name) for name in ("server.address", "server.port", "db.namespace"))
    server = f"{address}:{port}" if address and port else address
    return "/".join(str(part) for part in (server, namespace) if part) or None


class _Step:
    """One of several statements that are measured as one query."""

    __slots__ = ("query",)

    def __init__(self, query: Query) -> None:
        self.query = query
        query.resume()

    def set_row_count(self, count: int) -> None:
        """Add to the rows of the query."""
        if count > 0:
            self.query.set_row_count(self.query.details.get("db.response.returned_rows", 0) + count)

    def close(self, exc: BaseException | None = None) -> None:
        """Suspend the query, or end it with an exception."""
        if exc is None:
            self.query.suspend()
        else:
            self.query.close(exc)


class ObservedEngine(ObserverSet):
    """The apps that measure one engine, and the wrapped methods of its dialect and its pool."""

    def __init__(self, engine: Engine) -> None:
        ObserverSet.__init__(self)
        self._engine = engine
        self._undo_dialect: list[Callable[[], None]] = []
        self._undo_pool: tuple[Callable[[], None], ...] = ()
        self.system = SYSTEMS.get(engine.dialect.name, "other_sql")

    def install(self) -> None:
        """Wrap the methods of dialect and pool."""
        dialect = self._engine.dialect
        plain = dialect.do_execute_no_params
        no_params = self._observe_execution(lambda cursor, statement, _, context: plain(cursor, statement, context))
        setattr(self._engine, OBSERVED_ATTRIBUTE, self)
        wrappers: list[tuple[str, Callable[..., Any]]] = [
            ("do_execute", self._observe_execution(dialect.do_execute)),
            ("do_execute_no_params", lambda cursor, text, context=None: no_params(cursor, text, None, context)),
            ("do_executemany", self._observe_execution(dialect.do_executemany, many=True)),
            ("do_begin", self._observe_transactions("begin", dialect.do_begin)),
            ("do_commit", self._observe_transactions("commit", dialect.do_commit)),
            ("do_rollback", self._observe_transactions("rollback", dialect.do_rollback)),
            ("do_ping", self._observe_transactions("ping", dialect.do_ping)),
        ]
        if (deliver := insertmanyvalues_method(dialect)) is not None:
            wrappers.append((INSERTMANYVALUES_METHOD, self._observe_insertmanyvalues(deliver)))
        for name, wrapper in wrappers:
            self._undo_dialect.append(_replace_method(dialect, name, wrapper))
        self._observe_pool(self._engine.pool)

    def uninstall(self) -> None:
        """Restore the methods of dialect and pool."""
        for undo in (*self._undo_dialect, *self._undo_pool):
            undo()
        self._undo_dialect = []
        vars(self._engine).pop(OBSERVED_ATTRIBUTE, None)

    def _observe_execution(self, execute: Callable[..., Any], *, many: bool = False) -> Callable[..., Any]:
        """Wrap a method that executes a statement."""

        def observed(cursor: Any, statement: str, parameters: Any, context: Any = None) -> Any:
            query = self._start(statement, context, parameters if many else None)
            if query is None:
                return execute(cursor, statement, parameters, context)
            try:
                result = execute(cursor, statement, parameters, context)
            except BaseException as exc:
                self._end(query, cursor, exc)
                raise
            self._end(query, cursor, None)
            return result

        return observed

    def _observe_insertmanyvalues(self, deliver: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """Wrap the generator of the statements of one INSERT. Its last argument is the context, in all versions."""

        def observed(*args: Any) -> Iterator[Any]:
            context = args[-1]
            query = self._start(context.statement, None, context.parameters)
            if query is None:
                yield from deliver(*args)
                return
            query.suspend()  # it is the current operation only while one of its statements executes
            setattr(context, OBSERVED_ATTRIBUTE, query)
            try:
                yield from deliver(*args)
            except BaseException as exc:
                self._end(query, None, exc)
                raise
            self._end(query, None, None)

        return observed

    def _start(self, statement: str, context: Any, batch: Sized | None) -> Any:
        """Start a query. Returns None if there is none to measure. `batch` are its parameter sets."""
        observer = self._only or self.observer()
        if observer is None:
            return None
        query = None
        try:
            whole = getattr(context, OBSERVED_ATTRIBUTE, None)
            if whole is not None and not whole.ended:
                return _Step(whole)
            if is_new_connection(context):
                return None
            if (event := transaction_event(statement)) is not None:
                if event != "begin":  # counted already: SQLAlchemy begins a transaction before any statement
                    observer.record_connection_event(event)
                return None
            sets = None if batch is None else len(batch)
            query = observer.db.start_statement(statement, self.system, sets, observer.attributes)
            if query is not None:
                query.open()
        except Exception as exc:  # noqa: BLE001 - an internal error never reaches the user's query
            if query is not None:
                query.suspend()
            observer.internal_errors("sqlalchemy", exc)
            return None
        return query

    def _end(self, query: Query | _Step, cursor: Any, exc: BaseException | None) -> None:
        """End a query."""
        try:
            try:
                if exc is None:
                    if cursor is not None:
                        query.set_row_count(cursor.rowcount)
                elif isinstance(exc, GeneratorExit):  # the task that awaited the statement is gone
                    exc = CancelledError().with_traceback(exc.__traceback__)
            finally:
                query.close(exc)
        except Exception as error:  # noqa: BLE001 - as above
            self.report_error("sqlalchemy", error)

    def _observe_transactions(self, event: str, method: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Wrap a method that begins or ends a transaction, or pings."""

        def counted(connection: Any) -> Any:
            observer = self.observer()
            if observer is not None and (event == "ping" or self._changes_transaction(observer, connection, event)):
                observer.record_connection_event(event)
            return method(connection)

        return counted

    @staticmethod
    def _changes_transaction(observer: PoolObserver, connection: Any, event: str) -> bool:
        """Return whether the event begins a transaction, or ends one that has begun."""
        begins = event == "begin"
        try:
            if getattr(connection, OBSERVED_ATTRIBUTE, False) is begins:
                return False
            setattr(connection, OBSERVED_ATTRIBUTE, begins)
        except Exception as exc:  # noqa: BLE001 - as above
            observer.internal_errors("sqlalchemy", exc)
            return False
        return True

    def _observe_pool(self, pool: Pool) -> Pool:
        """Measure the connection waits of a pool, and of the pool by which `dispose` replaces it."""
        connect, recreate = pool.connect, pool.recreate
        self._undo_pool = (
            _replace_method(pool, "connect", lambda: self.timed_acquire(connect)),
            _replace_method(pool, "recreate", lambda: self._observe_new_pool(recreate())),
        )
        return pool

    def _observe_new_pool(self, pool: Pool) -> Pool:
        try:
            return self._observe_pool(pool)
        except Exception as exc:  # noqa: BLE001 - an internal error never reaches `dispose`
            self.report_error("sqlalchemy", exc)
            return pool

    def state(self) -> PoolState:
        """Return the state of the pool. `waiting` includes callers for which a new connection is being opened."""
        pool, waiting = self._engine.pool, len(self.waiting)
        if isinstance(pool, QueuePool):
            overflow = max(0, pool.overflow())
            return PoolState(pool.checkedout(), pool.checkedin(), max_connections(pool), overflow, waiting)
        return PoolState(waiting=waiting)


def _replace_method(owner: object, name: str, function: Callable[..., Any]) -> Callable[[], None]:
    """Replace a method of one object. Returns a function that reverts this, unless it was replaced again."""
    before = vars(owner).get(name)
    setattr(owner, name, function)

    def undo() -> None:
        if vars(owner).get(name) is function:
            if before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before)

    return undo
