"""`db.query(...)`: one query is one operation with a span, a count, a duration and a log line."""

from __future__ import annotations

from contextlib import ExitStack
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Protocol

from fastapi_observe.clients.database.errors import driver_error, query_outcome
from fastapi_observe.clients.database.statements import MAX_STATEMENT_LENGTH, StatementCache, is_name, is_operation
from fastapi_observe.internal.renamed import Renamed
from fastapi_observe.records.guard import NO_OP, fail_safe, report_error, return_no_op
from fastapi_observe.records.operation import CURRENT_OPERATION, Operation, OperationReporter
from fastapi_observe.redaction.redactor import DEFAULT_REDACTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Sized

    from fastapi_observe.clients.database.statements import Statement
    from fastapi_observe.records.pool import PoolState
    from fastapi_observe.redaction.redactor import Redactor

UNKNOWN: Final = "unknown"
"""Label of the table of a statement that names none."""

OTHER: Final = "other"
"""Label of the tables beyond `MOST_TABLES`."""

MAX_PREPARED_QUERIES: Final = 1024
"""Statements of instrumented engines and pools that are kept prepared."""

MAX_TABLES: Final = 300
"""Different tables that become a label of their own."""


class DatabaseReporter(OperationReporter, Protocol):
    """Who is told about queries and connection pools."""

    def add_pool(self, name: str, read: Callable[[], PoolState]) -> Callable[[], None]:
        """Show a pool."""

    def waited_for_connection(self, pool: str, seconds: float) -> None:
        """Take down how long somebody waited for a connection."""

    def connection_event(self, pool: str, event: str) -> None:
        """Count what happened on a connection."""


QueryFacts = tuple[str, "str | None", "Statement | None", "int | None", "dict[str, Any] | None"]
"""System, table, statement, number of parameters, further span attributes."""


PreparedQuery = tuple[str, dict[str, str], QueryFacts]
"""Name and labels of a query, and its facts."""


class Query(Operation):
    """One query. `rows` notes how many rows it returned or changed."""

    __slots__ = ("_built",)

    _built: dict[str, Any]
    _given: QueryFacts

    @property
    def details(self) -> dict[str, Any]:
        """What the span and a line say, put together when they want it."""
        try:
            return self._built
        except AttributeError:
            system, table, statement, parameters, more = self._given
            self._built = built = {
                "db.system.name": system,
                "db.operation.name": self.labels["operation"],
                "db.collection.name": table,
                "db.query.summary": None if statement is None else self.name,
                "db.query.text": None if statement is None else statement.text,
                "db.query.parameter_count": parameters,
                **(more or {}),
            }
            return built

    @property
    def repetition_key(self) -> str:
        """The statement without values, else operation and table."""
        statement = self._given[2]
        return self.name if statement is None else statement.text or self.name

    def adopt_statement(self, statement: Statement, system: str) -> None:
        """Take over what an instrumented engine inside sends, if nothing was said."""
        known, table, told, parameters, more = self._given
        if told is None:
            self._given = (system if known == "other_sql" else known), table, statement, parameters, more
            self.details.update(
                {"db.system.name": self._given[0], "db.query.summary": self.name, "db.query.text": statement.text}
            )

    rows = Renamed("set_row_count")

    def set_row_count(self, count: int) -> None:
        """Note how many rows came back, or were changed; a negative number stands for unknown."""
        if isinstance(count, int) and count >= 0:
            try:
                self.details["db.response.returned_rows"] = count
            except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the user's code
                report_error("operation.add_details", exc, self.reporter)

    def _fail(self, exc: BaseException) -> None:
        Operation._fail(self, driver_error(exc))  # noqa: SLF001 - what is overridden

    def outcome_for(self, exc: BaseException) -> str:
        """Name the outcome of a query that ended with `exc`."""
        return query_outcome(exc)

    @fail_safe("operation.copy", return_no_op)
    def copy(self) -> Query:
        """Return a query like this one, which has not begun."""
        return Query(self.reporter, "database", self.name, self.labels, self._given)


class DriverQuery(Query):
    """A query that an instrumented engine or pool sends: its facts are put together once for each statement."""

    __slots__ = ()

    has_otel_details = True

    @property
    def details(self) -> dict[str, Any]:
        """What the span and a line say."""
        try:
            return self._built
        except AttributeError:
            self._built = built = dict(self._given[4] or ())
            return built


class DatabaseClient:
    """Measures database queries and shows pools of connections."""

    def __init__(self, reporter: DatabaseReporter, redactor: Redactor = DEFAULT_REDACTOR) -> None:
        self._reporter = reporter
        self._statements = StatementCache(redactor.text)
        self._shown = redactor.name
        self._tables: set[str] = {UNKNOWN}
        self._pools: set[str] = set()
        self._claiming = Lock()
        self._prepared: dict[tuple[str, str, int], PreparedQuery] = {}
        self._facts: dict[int, dict[str, Any] | None] = {}  # held, so that no id is used again
        self._labels: dict[tuple[str, str | None], tuple[str, dict[str, str]]] = {}

    def query(  # noqa: PLR0913 - what there is to say about a query
        self,
        operation: str | None = None,
        *,
        table: str | None = None,
        statement: object = None,
        parameters: Sized | None = None,
        system: str = "other_sql",
        pool: str | None = None,
    ) -> Query:
        """Measure one query: `async with db.query("SELECT", table="orders", statement=sql):`, or plain `with`.

        `operation` and `table` become metric labels (`db_queries_total`, `db_query_duration_seconds`,
        `db_query_errors_total`) and the span's name; what is not given, or is no word or no name (a whole statement,
        say), is read from the statement. `statement` (text, bytes, or what becomes text, as SQLAlchemy's constructs do)
        is shown with `?` for every literal; of `parameters` only the number is. `system` is the `db.system.name` of the
        semantic conventions, `pool` the name of the connection pool. What an instrumented engine or pool sends inside
        is part of this query, not one more.
        """
        try:
            try:
                new = (operation, table) not in self._labels
            except TypeError:
                new = True
            if new:  # never seen: they may be anything
                statement, operation, table = _sorted_out(statement, operation, table)
                operation, table = operation and self._shown(operation), table and self._shown(table)
            described = None if statement is None else self._statements.parse_statement(statement, system)
            if described is not None:
                operation, table = operation or described.operation, table or described.table
            count = _length(parameters)
            attributes = None if pool is None else {"db.client.connection.pool.name": pool}
            return self._make(operation or "OTHER", table, described, system, count, attributes)
        except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the user's code
            report_error("db.query", exc, self._reporter)
            return NO_OP  # type: ignore[no-any-return]

    def start_statement(
        self, statement: object, *, system: str, batch: int | None = None, attributes: dict[str, Any] | None = None
    ) -> Query | None:
        """Begin to measure what an instrumented engine or pool sends; None if that is part of a query already.

        The outer query learns the statement, if it was told none. `batch` is the number of parameter sets of one
        `executemany`; `facts` are further span attributes, the same object each time and of OpenTelemetry's types. Not
        opened yet.
        """
        outer = CURRENT_OPERATION.get()
        while outer is not None and not outer.ended:
            if isinstance(outer, Query):
                outer.adopt_statement(self._statements.parse_statement(statement, system), system)
                return None
            outer = outer.parent
        if type(statement) is str and len(statement) <= MAX_STATEMENT_LENGTH:
            key = statement, system, id(attributes)
            prepared = self._prepared.get(key) or self._remember(key, attributes)
        else:  # nothing long is held
            prepared = self._prepare(statement, system, attributes)
        query = DriverQuery(self._reporter, "database", *prepared)
        if batch is not None:
            query.add_details(**{"db.operation.batch.size": batch})
        return query

    def _remember(self, key: tuple[str, str, int], attributes: dict[str, Any] | None) -> PreparedQuery:
        prepared = self._prepare(key[0], key[1], attributes)
        self._facts[key[2]] = attributes
        if len(self._prepared) >= MAX_PREPARED_QUERIES:
            self._prepared.clear()
            self._facts = {key[2]: attributes}
        self._prepared[key] = prepared
        return prepared

    def _prepare(self, statement: object, system: str, attributes: dict[str, Any] | None) -> PreparedQuery:
        """Return name, labels and facts of a statement."""
        described = self._statements.parse_statement(statement, system)
        name, labels = self._name(described.operation, described.table)
        text = described.text.encode("utf-8", "backslashreplace").decode()  # spans have no lone surrogates
        ready: dict[str, Any] = {"db.system.name": system, "db.operation.name": labels["operation"]}
        if described.table is not None:
            ready["db.collection.name"] = described.table
        ready["db.query.summary"] = name
        ready["db.query.text"] = text
        ready.update((fact, value) for fact, value in (attributes or {}).items() if value is not None)
        return name, labels, (system, described.table, described, None, ready)

    def _make(  # noqa: PLR0913, PLR0917 - what a query is made of
        self,
        operation: str,
        table: str | None,
        statement: Statement | None,
        system: str,
        parameters: int | None,
        attributes: dict[str, Any] | None,
    ) -> Query:
        name, labels = self._labels.get((operation, table)) or self._name(operation, table)
        return Query(self._reporter, "database", name, labels, (system, table, statement, parameters, attributes))

    def _name(self, operation: str, table: str | None) -> tuple[str, dict[str, str]]:
        """Return the span's name and the labels; as many tables as there are names for are told apart."""
        label = table or UNKNOWN
        if label not in self._tables:
            if len(self._tables) < MAX_TABLES:
                self._tables.add(label)
            else:
                label = OTHER
        named = f"{operation} {table}" if table else operation, {"operation": operation, "table": label}
        if len(self._labels) < 4 * MAX_TABLES:
            self._labels[operation, table] = named
        return named

    def reserve_pool_name(self, name: str) -> str:
        """Return a label for a pool that no other pool has, `name` or `name-2`; `add_pool` takes it from there."""
        with self._claiming:
            label, number = name, 1
            while label in self._pools:
                number += 1
                label = f"{name}-{number}"
            self._pools.add(label)
        return label

    def add_pool(self, name: str, read: Callable[[], PoolState]) -> Callable[[], None]:
        """Show a pool of connections (`db_connections_*{pool}`), read at each scrape.

        The result takes it away; its name is free then.
        """
        self._pools.add(name)
        with ExitStack() as undo:
            undo.callback(self._pools.discard, name)
            undo.callback(self._reporter.add_pool(name, read))
            return undo.pop_all().close

    def record_connection_wait(self, pool: str, seconds: float) -> None:
        """Take down how long a caller waited for a connection (`db_connection_wait_seconds{pool}`)."""
        self._reporter.waited_for_connection(pool, seconds)

    def record_connection_event(self, pool: str, event: str) -> None:
        """Count what happens on a connection, or that there was none: `db_connection_events_total{pool,event}`."""
        self._reporter.connection_event(pool, event)


def _sorted_out(statement: object, operation: object, table: object) -> tuple[object, str | None, str | None]:
    """Return statement, operation and table; a statement given as the operation is taken as what it is."""
    if operation is not None and not (isinstance(operation, str) and is_operation(operation)):
        statement, operation = statement or operation, None
    return statement, operation, table if isinstance(table, str) and is_name(table) else None


def _length(parameters: object) -> int | None:
    """Return how many parameters there are; None where nothing tells."""
    try:
        return None if parameters is None else len(parameters)  # type: ignore[arg-type]
    except TypeError:
        return None
