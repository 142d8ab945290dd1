"""`DatabaseClient`: measures queries, each of which is one operation, and connection pools."""

from __future__ import annotations

from contextlib import ExitStack
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from fastapi_observe.clients.database.errors import driver_error, query_outcome
from fastapi_observe.clients.database.statements import MAX_STATEMENT_LENGTH, StatementCache, is_name, is_operation
from fastapi_observe.internal.errors import Renamed
from fastapi_observe.records.guard import NO_OP, fail_safe, report_error, return_no_op
from fastapi_observe.records.operation import Operation, OperationReporter, current_operation
from fastapi_observe.redaction.redactor import DEFAULT_REDACTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Sized

    from fastapi_observe.clients.database.statements import Statement
    from fastapi_observe.records.pool import PoolState
    from fastapi_observe.redaction.redactor import Redactor

UNKNOWN: Final = "unknown"
"""Label `table` of a statement without a table."""

OTHER_TABLES: Final = "other"
"""Label `table` of the tables beyond `MAX_TABLES`."""

MAX_PREPARED_QUERIES: Final = 1024
"""Maximum number of statements of instrumented engines and pools whose spans are prepared."""

MAX_TABLES: Final = 300
"""Maximum number of different tables that become a label value."""


class DatabaseReporter(OperationReporter, Protocol):
    """Receives queries, and the measurements of connection pools."""

    def add_pool(self, name: str, read: Callable[[], PoolState]) -> Callable[[], None]:
        """Report a pool. Returns a function that reverts this."""

    def record_connection_wait(self, pool: str, seconds: float) -> None:
        """Record the time that a caller waited for a connection, in seconds."""

    def record_connection_event(self, pool: str, event: str) -> None:
        """Count an event of a connection."""


class QueryFacts(NamedTuple):
    """The details of a query. `attributes` are further span attributes."""

    system: str
    table: str | None
    statement: Statement | None
    parameters: int | None
    attributes: dict[str, Any] | None


class PreparedQuery(NamedTuple):
    """The arguments of `Operation` for a query: its name, its metric labels and its details."""

    name: str
    labels: dict[str, str]
    facts: QueryFacts


class Query(Operation):
    """One query, as `db.query()` returns it."""

    __slots__ = ("_built",)

    _built: dict[str, Any]
    _given: QueryFacts

    @property
    def details(self) -> dict[str, Any]:
        """The details for span and log line. The dict is built when a signal first reads it."""
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
        """The statement without its values, or operation and table: repeated queries have it in common."""
        statement = self._given.statement
        return self.name if statement is None else statement.text or self.name

    def adopt_statement(self, statement: Statement, system: str) -> None:
        """Use the statement that an instrumented engine or pool sends inside this query, unless one was passed."""
        given = self._given
        if given.statement is None:
            system = system if given.system == "other_sql" else given.system
            self._given = given._replace(system=system, statement=statement)
            self.details.update(
                {"db.system.name": system, "db.query.summary": self.name, "db.query.text": statement.text}
            )

    rows = Renamed("set_row_count")

    def set_row_count(self, count: int) -> None:
        """Record the number of rows that were returned or changed. A negative number means unknown and is ignored."""
        if isinstance(count, int) and count >= 0:
            try:
                self.details["db.response.returned_rows"] = count
            except Exception as exc:  # noqa: BLE001 - an internal error never reaches the user's code
                report_error("operation.add_details", exc, self.reporter)

    def _fail(self, exc: BaseException) -> None:
        Operation._fail(self, driver_error(exc))  # noqa: SLF001 - the overridden method

    def outcome_for(self, exc: BaseException) -> str:
        """Return the outcome of a query that ended with `exc`."""
        return query_outcome(exc)

    @fail_safe("operation.copy", return_no_op)
    def copy(self) -> Query:
        """Return a copy that is not started."""
        return Query(self.reporter, "database", self.name, self.labels, self._given)


class DriverQuery(Query):
    """A query that an instrumented engine or pool sends. Its details are prepared once for each statement."""

    __slots__ = ()

    has_otel_details = True

    @property
    def details(self) -> dict[str, Any]:
        """The details for span and log line."""
        try:
            return self._built
        except AttributeError:
            self._built = built = dict(self._given.attributes or ())
            return built


class DatabaseClient:
    """Measures database queries and connection pools. Thread-safe."""

    def __init__(self, reporter: DatabaseReporter, redactor: Redactor = DEFAULT_REDACTOR) -> None:
        self.reporter = reporter
        self._statements = StatementCache(redactor.text)
        self._redact_name = redactor.name
        self._tables: set[str] = {UNKNOWN}
        self._pools: set[str] = set()
        self._pools_lock = Lock()
        self._prepared: dict[tuple[str, str, int], PreparedQuery] = {}
        # Prepared queries are found by the id of their attributes: these are held, so that no id is used again.
        self._held_attributes: dict[int, dict[str, Any] | None] = {}
        self._labels: dict[tuple[str, str | None], tuple[str, dict[str, str]]] = {}

    def query(  # noqa: PLR0913 - the facts of a query
        self,
        operation: str | None = None,
        *,
        table: str | None = None,
        statement: object = None,
        parameters: Sized | None = None,
        system: str = "other_sql",
        pool: str | None = None,
    ) -> Query:
        """Measure one query: `async with db.query("SELECT", table="orders", statement=sql):`, or with plain `with`.

        `operation` and `table` become metric labels (`db_queries_total`, `db_query_duration_seconds`,
        `db_query_errors_total`) and the name of the span. If they are missing or invalid, such as a whole statement,
        they are read from `statement`: a string, bytes, or an object that becomes a string, such as an SQLAlchemy
        construct. It is recorded with `?` for every literal; of `parameters` only the number is recorded. `system` is
        the `db.system.name` of the semantic conventions, `pool` the name of the connection pool. Statements that an
        instrumented engine or pool sends inside are part of this query.
        """
        try:
            try:
                new = (operation, table) not in self._labels
            except TypeError:
                new = True
            if new:  # not seen before, so not checked yet
                statement, operation, table = _check_labels(statement, operation, table)
                operation, table = operation and self._redact_name(operation), table and self._redact_name(table)
            parsed = None if statement is None else self._statements.parse_statement(statement, system)
            if parsed is not None:
                operation, table = operation or parsed.operation, table or parsed.table
            count = _count_parameters(parameters)
            attributes = None if pool is None else {"db.client.connection.pool.name": pool}
            return self._make_query(operation or "OTHER", QueryFacts(system, table, parsed, count, attributes))
        except Exception as exc:  # noqa: BLE001 - an internal error never reaches the user's code
            report_error("db.query", exc, self.reporter)
            return NO_OP  # type: ignore[no-any-return]

    def start_statement(
        self, statement: object, system: str, batch: int | None = None, attributes: dict[str, Any] | None = None
    ) -> Query | None:
        """Return the query for a statement of an instrumented engine or pool, not started; None inside another query.

        The outer query then adopts the statement. `batch` is the number of parameter sets of an `executemany`.
        `attributes` are further span attributes: the same object each time, with values of OpenTelemetry's types.
        """
        outer = current_operation()
        while outer is not None and not outer.ended:
            if isinstance(outer, Query):
                outer.adopt_statement(self._statements.parse_statement(statement, system), system)
                return None
            outer = outer.parent
        if type(statement) is str and len(statement) <= MAX_STATEMENT_LENGTH:
            key = statement, system, id(attributes)
            prepared = self._prepared.get(key) or self._remember(key, attributes)
        else:  # a long statement is not held in memory
            prepared = self._prepare(statement, system, attributes)
        name, labels, facts = prepared
        query = DriverQuery(self.reporter, "database", name, labels, facts)
        if batch is not None:
            query.add_details(**{"db.operation.batch.size": batch})
        return query

    def sanitize(self, statement: str, system: str) -> str:
        """Return a statement as it is recorded: redacted, with `?` for every literal."""
        return self._statements.parse_statement(statement, system).text

    def _remember(self, key: tuple[str, str, int], attributes: dict[str, Any] | None) -> PreparedQuery:
        prepared = self._prepare(key[0], key[1], attributes)
        self._held_attributes[key[2]] = attributes
        if len(self._prepared) >= MAX_PREPARED_QUERIES:
            self._prepared.clear()
            self._held_attributes = {key[2]: attributes}
        self._prepared[key] = prepared
        return prepared

    def _prepare(self, statement: object, system: str, attributes: dict[str, Any] | None) -> PreparedQuery:
        """Parse a statement, and return the query for it."""
        parsed = self._statements.parse_statement(statement, system)
        name, labels = self._name_query(parsed.operation, parsed.table)
        text = parsed.text.encode("utf-8", "backslashreplace").decode()  # OTLP strings have no lone surrogates
        ready: dict[str, Any] = {"db.system.name": system, "db.operation.name": labels["operation"]}
        if parsed.table is not None:
            ready["db.collection.name"] = parsed.table
        ready["db.query.summary"] = name
        ready["db.query.text"] = text
        ready.update((key, value) for key, value in (attributes or {}).items() if value is not None)
        return PreparedQuery(name, labels, QueryFacts(system, parsed.table, parsed, None, ready))

    def _make_query(self, operation: str, facts: QueryFacts) -> Query:
        name, labels = self._labels.get((operation, facts.table)) or self._name_query(operation, facts.table)
        return Query(self.reporter, "database", name, labels, facts)

    def _name_query(self, operation: str, table: str | None) -> tuple[str, dict[str, str]]:
        """Return the name of the span and the metric labels. Tables beyond `MAX_TABLES` share a label."""
        label = table or UNKNOWN
        if label not in self._tables:
            if len(self._tables) < MAX_TABLES:
                self._tables.add(label)
            else:
                label = OTHER_TABLES
        named = f"{operation} {table}" if table else operation, {"operation": operation, "table": label}
        if len(self._labels) < 4 * MAX_TABLES:
            self._labels[operation, table] = named
        return named

    def reserve_pool_name(self, name: str) -> str:
        """Reserve a label for a pool, for `add_pool`: `name`, or `name-2` and so on if another pool has it."""
        with self._pools_lock:
            label, number = name, 1
            while label in self._pools:
                number += 1
                label = f"{name}-{number}"
            self._pools.add(label)
        return label

    def add_pool(self, name: str, read: Callable[[], PoolState]) -> Callable[[], None]:
        """Report a connection pool (`db_connections_*{pool}`). `read` is called at each scrape.

        Returns a function that reverts this, and releases the label.
        """
        self._pools.add(name)
        with ExitStack() as undo:
            undo.callback(self._pools.discard, name)
            undo.callback(self.reporter.add_pool(name, read))
            return undo.pop_all().close


def _check_labels(statement: object, operation: object, table: object) -> tuple[object, str | None, str | None]:
    """Return statement, operation and table; None for an invalid label. A statement may be passed as operation."""
    if operation is not None and not (isinstance(operation, str) and is_operation(operation)):
        statement, operation = statement or operation, None
    return statement, operation, table if isinstance(table, str) and is_name(table) else None


def _count_parameters(parameters: object) -> int | None:
    try:
        return None if parameters is None else len(parameters)  # type: ignore[arg-type]
    except TypeError:
        return None
