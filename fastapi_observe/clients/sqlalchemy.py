"""SQLAlchemy engines that measure themselves: `instrument_engine`.

What one operation is:

- One statement on its way through the driver, from just before `cursor.execute` to just after it. Rows that are fetched
  later (`stream()`, `yield_per`, server-side cursors) are no part of it. Statements that never reached the driver (they
  did not compile, no connection was to be had) are none, nor are those that SQLAlchemy sends to prepare a new
  connection: they are part of the wait for it.
- `executemany` is one, with the number of parameter sets as `db.operation.batch.size`. So is an INSERT of many rows
  that SQLAlchemy sends as several statements ("insertmanyvalues"): its text is the one before they are multiplied.
- An error is the driver's own: `psycopg.errors.UniqueViolation`, not the `sqlalchemy.exc.IntegrityError` around it,
  whose text repeats statement and parameters. The caller gets what it would get without us.

BEGIN, COMMIT, ROLLBACK, savepoints and pings are counts. The wait for a connection begins when one is asked of the pool
and ends when it is given: checking an idle one and opening a new one are part of it, nothing to wait for counts as well.
A wait that the pool gave up is the event `timeout`.
"""

from __future__ import annotations

import re
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import QueuePool, SingletonThreadPool, StaticPool

from fastapi_observe.records.exchange import current_exchange
from fastapi_observe.records.pool import PoolState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import URL
    from sqlalchemy.pool import Pool

    from fastapi_observe.clients.database import DatabaseClient, Query

    Faults = Callable[[str, BaseException], None]

SYSTEMS: Final = {
    "postgresql": "postgresql",
    "mysql": "mysql",
    "mariadb": "mariadb",
    "sqlite": "sqlite",
    "oracle": "oracle.db",
    "mssql": "microsoft.sql_server",
}
"""`db.system.name` of the semantic conventions by the name of the dialect; `other_sql` for all others."""

MARK: Final = "_fastapi_observe"
"""Attribute of an engine that is instrumented, and of an execution that consists of several statements."""

EVENTS: Final = {
    "begin": "begin",
    "commit": "commit",
    "rollback": "rollback",
    "begin_twophase": "begin",
    "commit_twophase": "commit",
    "rollback_twophase": "rollback",
}
"""What is counted, by SQLAlchemy's name of the event."""

CONTROL_STARTS: Final = frozenset({"BEG", "STA", "COM", "ROL", "SAV", "REL"})
LONGEST_CONTROL: Final = 200

CONTROL: Final = re.compile(
    r"""(?:
      (?P<begin> (?:BEGIN|START\s++TRANSACTION)
        (?:[\s,]++(?:WORK|TRAN|TRANSACTION|DEFERRED|IMMEDIATE|EXCLUSIVE|CONCURRENT|ISOLATION|LEVEL|SERIALIZABLE
          |REPEATABLE|READ|COMMITTED|UNCOMMITTED|ONLY|WRITE|NOT|DEFERRABLE|WITH|CONSISTENT|SNAPSHOT)\b)*+ )
    | (?P<commit> COMMIT (?:\s++(?:WORK|TRANSACTION|TRAN)\b)?+ )
    | (?P<rollback> ROLLBACK (?:\s++(?:WORK|TRANSACTION|TRAN)\b)?+ )
    | (?P<savepoint> (?:SAVEPOINT|SAVE\s++TRAN(?:SACTION)?) \s++[^\s;]++ )
    | (?P<rollback_savepoint> ROLLBACK\s++
        (?:(?:(?:WORK|TRANSACTION)\s++)?TO\s++(?:SAVEPOINT\s++)?|TRAN(?:SACTION)?\s++) [^\s;]++ )
    | (?P<release_savepoint> RELEASE\s++(?:SAVEPOINT\s++)?[^\s;]++ )
    )\s*+;?\s*+""",
    re.IGNORECASE | re.VERBOSE,
)
"""A statement that only moves a transaction; not Oracle's `BEGIN work(); END;`, not `COMMIT PREPARED`."""

QUERY_CANCELED: Final = "57014"
"""SQLSTATE of a statement that PostgreSQL gave up: it took too long, or somebody asked for it."""


def instrument_engine(
    db: DatabaseClient, engine: object, *, pool: str | None = None, faults: Faults
) -> Callable[[], None]:
    """Measure every statement, transaction and wait of a sync or async engine; the result undoes it.

    `pool` is the label of its pool; default: the engine's `pool_logging_name` or `logging_name`, else host, port and
    database. An engine made by `execution_options()` is measured with the one that it came from. Again for the same
    engine and `db` does nothing. Where several apps share an engine, a statement is reported to the one whose request it
    is part of, else to the first. Raises `TypeError` for what is no engine.
    """
    engine = _engine_of(engine)
    found = vars(engine).get(MARK)
    instrumented = _Instrumented(engine) if found is None else found
    return instrumented.add(_Observer(db, engine, pool, faults))


def _engine_of(engine: object) -> Engine:
    """Return the engine that does the work."""
    inner = getattr(engine, "sync_engine", engine) if type(engine).__name__.endswith("Engine") else engine
    if not isinstance(inner, Engine):
        raise TypeError(
            f"cannot instrument a {type(engine).__name__}; pass the Engine of sqlalchemy.create_engine() or the"
            " AsyncEngine of create_async_engine() (that of a session: session.get_bind())"
        )
    while (proxied := getattr(inner, "_proxied", None)) is not None:
        inner = proxied
    return inner


class _Observer:
    """One app's view of an engine."""

    def __init__(self, db: DatabaseClient, engine: Engine, pool: str | None, faults: Faults) -> None:
        self.db = db
        self.faults = faults
        self.system = SYSTEMS.get(engine.dialect.name, "other_sql")
        self.facts = _facts_of(engine.url)
        self.pool = pool or _name_of(engine, self.facts) or self.system
        self.facts["db.client.connection.pool.name"] = self.pool


def _facts_of(url: URL) -> dict[str, Any]:
    """Return where the database is: never the user, the password or another option."""
    socket = url.query.get("host")  # PostgreSQL's way to name a directory
    address = url.host or (socket if isinstance(socket, str) else None)
    facts = {"server.address": address, "server.port": url.port, "db.namespace": url.database}
    return {name: value for name, value in facts.items() if value}


def _name_of(engine: Engine, facts: dict[str, Any]) -> str | None:
    given = getattr(engine.pool, "logging_name", None) or getattr(engine, "logging_name", None)
    if given:
        return str(given)
    address, port, namespace = (facts.get(name) for name in ("server.address", "server.port", "db.namespace"))
    server = f"{address}:{port}" if address and port else address
    return "/".join(str(part) for part in (server, namespace) if part) or None


class _Instrumented:
    """What was put around an engine, and who is told.

    The three ways in which a dialect executes are wrapped, on the instance: SQLAlchemy's events tell neither that an
    execution was given up nor every error, and would leave operations open.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._observers: tuple[_Observer, ...] = ()
        self._waiting: list[None] = []
        self._undo: list[Callable[[], None]] = []

    # Who is told

    def add(self, observer: _Observer) -> Callable[[], None]:
        """Tell one more, unless it is told already; the result stops that."""
        if any(known.db is observer.db for known in self._observers):
            return lambda: None
        remove_pool = observer.db.add_pool(observer.pool, self._state)
        if not self._observers:
            self._install()
        self._observers = (*self._observers, observer)

        def remove() -> None:
            if observer in self._observers:
                self._observers = tuple(other for other in self._observers if other is not observer)
                remove_pool()
                if not self._observers:
                    self._restore()

        return remove

    def _observer(self) -> _Observer | None:
        """Return whom to tell now."""
        observers = self._observers
        if len(observers) == 1:
            return observers[0]
        exchange = current_exchange()
        if exchange is not None:
            for observer in observers:
                if observer.db is exchange.observability.db:
                    return observer
        return observers[0] if observers else None

    def _install(self) -> None:
        engine, dialect = self._engine, self._engine.dialect
        setattr(engine, MARK, self)
        self._undo = [
            _replace(dialect, "do_execute", self._observed(dialect.do_execute)),
            _replace(dialect, "do_execute_no_params", self._observed(dialect.do_execute_no_params)),
            _replace(dialect, "do_executemany", self._observed(dialect.do_executemany, many=True)),
            _replace(dialect, "do_ping", self._counted(dialect.do_ping)),
            self._watch_pool(engine),
            _listen(engine, "engine_disposed", self._watch_pool),
        ]
        batches = getattr(dialect, "_deliver_insertmanyvalues_batches", None)
        if batches is not None:
            self._undo.append(_replace(dialect, "_deliver_insertmanyvalues_batches", self._whole(batches)))
        for name, counted in EVENTS.items():
            self._undo.append(_listen(engine, name, self._counter(counted)))

    def _restore(self) -> None:
        for undo in reversed(self._undo):
            undo()
        vars(self._engine).pop("")

    # Statements

    def _observed(self, execute: Callable[..., Any], *, many: bool = False) -> Callable[..., Any]:
        """Wrap one of the dialect's ways to execute: `(cursor, statement[, parameters], context)`."""

        def observed(cursor: Any, statement: Any, *rest: Any) -> Any:
            query = self._begin(statement, rest, many)
            if query is None:
                return execute(cursor, statement, *rest)
            try:
                result = execute(cursor, statement, *rest)
            except BaseException as exc:
                self._end(query, cursor, exc)
                raise
            self._end(query, cursor, None)
            return result

        return observed
