"""SQLAlchemy engines that measure themselves: `instrument_engine`.

An operation is one statement on its way through the driver, from just before `cursor.execute` to just after it. Rows
that are fetched later (`stream()`, `yield_per`, server-side cursors) are no part of it. Statements that never reached
the driver are none, nor are those that SQLAlchemy sends to prepare a new connection: they are part of the wait for it.
`executemany` is one, with the number of parameter sets as `db.operation.batch.size`; so is an INSERT of many rows that
SQLAlchemy sends as several statements ("insertmanyvalues"), shown as it is before it is multiplied. An error is the
driver's own: `psycopg.errors.UniqueViolation`, not the `sqlalchemy.exc.IntegrityError` around it, whose text repeats
statement and parameters; the caller gets what it would get without us.

BEGIN, COMMIT, ROLLBACK, savepoints and pings are counts: each transaction has one `begin` and one `commit` or
`rollback`, or is lost with its connection; what the pool rolls back where there is none is not counted. The wait for a
connection lasts from asking the pool for one until it gives one: to check an idle one and to open a new one are part of
it, to wait for nothing counts too. Who is given none waited too, and is the event `timeout` or `error`: that is how a
database that is down is seen, to which no statement was sent.

No listener is put on the engine: a single one, for whatever event, adds a third to the time of a short statement and
half to that of a short transaction, and the events around a statement leave an operation open where an error does not
reach the event of errors (another listener raises first, or `skip_user_error_events` is on). Methods of the dialect and
of the pool are wrapped instead, on the instance.
"""

from __future__ import annotations

import sys
from asyncio import CancelledError
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.engine import Engine
from sqlalchemy.pool import QueuePool

from fastapi_observe.clients.database.observers import ObserverSet
from fastapi_observe.clients.database.statements import transaction_event
from fastapi_observe.records.pool import PoolState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sized

    from sqlalchemy.engine import URL
    from sqlalchemy.pool import Pool

    from fastapi_observe.clients.database.client import DatabaseClient, Query
    from fastapi_observe.clients.database.observers import Faults, PoolObserver

SYSTEMS: Final = {
    **{name: name for name in ("postgresql", "mysql", "mariadb", "sqlite")},
    "oracle": "oracle.db",
    "mssql": "microsoft.sql_server",
}
"""`db.system.name` of the semantic conventions by the name of the dialect; `other_sql` for all others."""

OBSERVED_ATTRIBUTE: Final = "_fastapi_observe"
"""Attribute of an instrumented engine, of a connection in a transaction, of an execution of several statements."""

INSERTMANYVALUES_METHOD: Final = "_deliver_insertmanyvalues_batches"
"""The dialect's method that turns one INSERT of many rows into several statements."""


def instrument_engine(
    db: DatabaseClient, engine: object, *, pool_name: str | None = None, faults: Faults
) -> Callable[[], None]:
    """Measure every statement, transaction and wait of a sync or async engine; the result undoes it.

    `pool_name` is the label of its pool; default: the engine's `pool_logging_name` or `logging_name`, else host, port
    and database. An engine made by `execution_options()` is measured with the one that it came from. Again for the same
    engine and `db` does nothing. Where several apps share an engine, a statement is reported to the app whose request
    it is part of, else to the first. Raises `TypeError` for what is no engine.
    """
    engine = _sync_engine(engine)
    found = vars(engine).get(OBSERVED_ATTRIBUTE)
    watch = ObservedEngine(engine) if found is None else found
    facts = _engine_facts(engine.url)
    return watch.add(db, faults, pool_name or _engine_name(engine, facts) or watch.system, watch.state, facts)


def _sync_engine(engine: object) -> Engine:
    """Return the engine that does the work."""
    module = sys.modules.get("sqlalchemy.ext.asyncio")  # whoever has such an engine has imported it
    inner = engine.sync_engine if module is not None and isinstance(engine, module.AsyncEngine) else engine
    if not isinstance(inner, Engine):
        raise TypeError(
            f"cannot instrument a {type(engine).__name__}; pass the Engine of sqlalchemy.create_engine() or the"
            " AsyncEngine of create_async_engine() (that of a session: session.get_bind())"
        )
    while (proxied := getattr(inner, "_proxied", None)) is not None:
        inner = proxied
    return inner


def _engine_facts(url: URL) -> dict[str, Any]:
    """Return where the database is: never the user, the password or another option."""
    socket = url.query.get("host")  # PostgreSQL's way to name a directory
    address = url.host or (socket if isinstance(socket, str) else None)
    facts = {"server.address": address, "server.port": url.port, "db.namespace": url.database}
    return {name: value for name, value in facts.items() if value}


def _engine_name(engine: Engine, facts: dict[str, Any]) -> str | None:
    given = getattr(engine.pool, "logging_name", None) or getattr(engine, "logging_name", None)
    if given:
        return str(given)
    address, port, namespace = (facts.get(name) for name in ("server.address", "server.port", "db.namespace"))
    server = f"{address}:{port}" if address and port else address
    return "/".join(str(part) for part in (server, namespace) if part) or None


class _Step:
    """One of the statements of an operation that sends several."""

    __slots__ = ("whole",)

    def __init__(self, whole: Query) -> None:
        self.whole = whole
        whole.resume()

    def set_row_count(self, count: int) -> None:
        """Add to the rows of the whole."""
        if count > 0:
            self.whole.set_row_count(self.whole.details.get("db.response.returned_rows", 0) + count)

    def close(self, exc: BaseException | None = None) -> None:
        """Let the whole go on, or fail."""
        if exc is None:
            self.whole.suspend()
        else:
            self.whole.close(exc)


class ObservedEngine(ObserverSet):
    """What was put around an engine, and who is told."""

    def __init__(self, engine: Engine) -> None:
        ObserverSet.__init__(self)
        self._engine = engine
        self._undo: list[Callable[[], None]] = []
        self._unwatch: tuple[Callable[[], None], ...] = ()
        self.system = SYSTEMS.get(engine.dialect.name, "other_sql")

    def begin(self) -> None:
        """Wrap what dialect and pool do."""
        dialect = self._engine.dialect
        plain = dialect.do_execute_no_params
        observed = self._observed(lambda cursor, statement, _, context: plain(cursor, statement, context))
        setattr(self._engine, OBSERVED_ATTRIBUTE, self)
        for name, wrapper in (
            ("do_execute", self._observed(dialect.do_execute)),
            ("do_execute_no_params", lambda cursor, text, context=None: observed(cursor, text, None, context)),
            ("do_executemany", self._observed(dialect.do_executemany, many=True)),
            (INSERTMANYVALUES_METHOD, self._observe_insertmanyvalues(getattr(dialect, INSERTMANYVALUES_METHOD))),
            ("do_begin", self._observe_transactions("begin", dialect.do_begin)),
            ("do_commit", self._observe_transactions("commit", dialect.do_commit)),
            ("do_rollback", self._observe_transactions("rollback", dialect.do_rollback)),
            ("do_ping", self._observe_transactions("ping", dialect.do_ping)),
        ):
            self._undo.append(_replace(dialect, name, wrapper))
        self._watch(self._engine.pool)

    def end(self) -> None:
        """Let dialect and pool be what they were."""
        for undo in (*self._undo, *self._unwatch):
            undo()
        self._undo = []
        vars(self._engine).pop(OBSERVED_ATTRIBUTE, None)

    def _observed(self, execute: Callable[..., Any], *, many: bool = False) -> Callable[..., Any]:
        """Wrap one of the ways to execute."""

        def observed(cursor: Any, statement: str, parameters: Any, context: Any = None) -> Any:
            query = self._begin(statement, context, parameters if many else None)
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
        """Wrap what makes the statements of one INSERT; the last argument is the context, in every SQLAlchemy."""

        def joined(*args: Any) -> Iterator[Any]:
            context = args[-1]
            query = self._begin(context.statement, None, context.parameters)
            if query is None:
                yield from deliver(*args)
                return
            query.suspend()  # it is current while one of its statements executes, at no other time
            setattr(context, OBSERVED_ATTRIBUTE, query)
            try:
                yield from deliver(*args)
            except BaseException as exc:
                self._end(query, None, exc)
                raise
            self._end(query, None, None)

        return joined

    def _begin(self, statement: str, context: Any, batch: Sized | None) -> Any:
        """Open the operation of a statement; None if there is none to open. `batch` are its sets of parameters."""
        observer = self.observer()
        if observer is None:
            return None
        query = None
        try:
            whole = getattr(context, OBSERVED_ATTRIBUTE, None)
            if whole is not None and not whole.ended:
                return _Step(whole)
            if not getattr(getattr(context, "root_connection", None), "_allow_autobegin", True):
                return None  # SQLAlchemy prepares a new connection
            if (event := transaction_event(statement)) is not None:
                if event != "begin":  # counted already: SQLAlchemy begins before any statement
                    observer.record_connection_event(event)
                return None
            sets = None if batch is None else len(batch)
            query = observer.db.start_statement(statement, system=self.system, batch=sets, attributes=observer.facts)
            if query is not None:
                query.open()
        except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the user's query
            if query is not None:
                query.suspend()
            observer.faults("sqlalchemy", exc)
            return None
        return query

    def _end(self, query: Query | _Step, cursor: Any, exc: BaseException | None) -> None:
        """Close the operation of a statement."""
        try:
            try:
                if isinstance(exc, GeneratorExit):  # nobody awaits the statement any more
                    exc = CancelledError().with_traceback(exc.__traceback__)
                elif exc is None and cursor is not None:
                    query.set_row_count(cursor.rowcount)
            finally:
                query.close(exc)
        except Exception as fault:  # noqa: BLE001 - a fault of ours never reaches the user's query
            self.fault("sqlalchemy", fault)

    def _observe_transactions(self, counted: str, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Wrap what the dialect does with a connection."""

        def counting(connection: Any) -> Any:
            observer = self.observer()
            if observer is not None and (counted == "ping" or self._moves(observer, connection, counted)):
                observer.record_connection_event(counted)
            return function(connection)

        return counting

    @staticmethod
    def _moves(observer: PoolObserver, connection: Any, counted: str) -> bool:
        """Tell whether a connection begins or ends a transaction: each begins once and ends once."""
        begins = counted == "begin"
        try:
            if getattr(connection, OBSERVED_ATTRIBUTE, False) is begins:
                return False
            setattr(connection, OBSERVED_ATTRIBUTE, begins)
        except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the user's query
            observer.faults("sqlalchemy", exc)
            return False
        return True

    def _watch(self, pool: Pool) -> Pool:
        """Measure the wait for connections of a pool, and of the one that `dispose` makes of it."""
        connect, recreate = pool.connect, pool.recreate
        again = _replace(pool, "recreate", lambda: self._watch_again(recreate()))
        self._unwatch = _replace(pool, "connect", lambda: self.timed_acquire(connect)), again
        return pool

    def _watch_again(self, pool: Pool) -> Pool:
        try:
            return self._watch(pool)
        except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches `dispose`
            self.fault("sqlalchemy", exc)
            return pool

    def state(self) -> PoolState:
        """Return what the engine's pool tells now; `waiting` are those who open a new connection, too."""
        pool, waiting = self._engine.pool, len(self.waiting)
        if isinstance(pool, QueuePool):
            size, beyond = pool.size(), getattr(pool, "_max_overflow", -1)
            most = size + beyond if size and beyond >= 0 else None
            return PoolState(pool.checkedout(), pool.checkedin(), most, max(0, pool.overflow()), waiting)
        return PoolState(waiting=waiting)


def _replace(owner: object, name: str, function: Callable[..., Any]) -> Callable[[], None]:
    """Put a function in the place of a method of one object; the result puts it back, unless it was replaced again."""
    before = vars(owner).get(name)
    setattr(owner, name, function)

    def undo() -> None:
        if vars(owner).get(name) is function:
            if before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before)

    return undo
