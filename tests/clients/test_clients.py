"""The database client: one query is one span, one sample and one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy.exc import NoSuchColumnError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.applications import Starlette

from fastapi_observe import TraceContext
from fastapi_observe.clients.database.client import MAX_PREPARED_QUERIES, MAX_TABLES, OTHER_TABLES
from fastapi_observe.clients.database.errors import driver_error
from fastapi_observe.records.pool import PoolState

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen


@pytest.fixture
def seen(observed: Callable[..., Seen]) -> Seen:
    """Install on an app without routes."""
    return observed(Starlette())


# Queries


async def test_query_gives_three_signals(seen: Seen) -> None:
    """A query is a client span, two samples and a line; the details are on span and line only."""
    statement = "SELECT * FROM orders WHERE id = 7 AND name = 'secret'"
    async with seen.observe.db.query(
        "SELECT", table="orders", statement=statement, parameters=[7, "secret"], system="postgresql"
    ) as query:
        query.add_details(**{"db.response.returned_rows": 3})
    (span,) = seen.spans
    assert (span.name, span.kind, span.status.status_code) == ("SELECT orders", SpanKind.CLIENT, StatusCode.UNSET)
    details = {
        "db.system.name": "postgresql",
        "db.operation.name": "SELECT",
        "db.collection.name": "orders",
        "db.query.summary": "SELECT orders",
        "db.query.text": "SELECT * FROM orders WHERE id = ? AND name = ?",
        "db.query.parameter_count": 2,
        "db.response.returned_rows": 3,
    }
    assert span.attributes == details
    assert seen.sample("db_queries_total", operation="SELECT", table="orders") == 1
    assert seen.sample("db_query_duration_seconds_count", operation="SELECT", table="orders") == 1
    assert seen.samples("db_query_errors_total") == {}
    (line,) = [line for line in seen.lines if line["logger"] == "fastapi_observe.operation"]
    assert span.context is not None
    assert (line["level"], line["span_id"]) == ("debug", format(span.context.span_id, "016x"))
    assert details.items() <= line["fields"].items()
    assert "secret" not in seen.text + str(seen.lines)


def test_query_without_a_table(seen: Seen) -> None:
    """`with` works too; without a table the label is `unknown` and the span says less."""
    with seen.observe.db.query("BEGIN"):
        pass
    (span,) = seen.spans
    assert (span.name, span.attributes) == ("BEGIN", {"db.system.name": "other_sql", "db.operation.name": "BEGIN"})
    assert seen.sample("db_queries_total", operation="BEGIN", table="unknown") == 1


def test_failed_query(seen: Seen) -> None:
    """A failed query is counted by its error, an ERROR span and an error line; the exception goes on unchanged."""
    exc = LookupError("no such table")
    with pytest.raises(LookupError) as caught, seen.observe.db.query("SELECT", table="orders"):
        raise exc
    assert caught.value is exc
    (span,) = seen.spans
    assert (span.status.status_code, (span.attributes or {})["error.type"]) == (StatusCode.ERROR, "LookupError")
    assert [event.name for event in span.events] == ["exception"]
    labels = {"operation": "SELECT", "table": "orders", "error_type": "LookupError"}
    assert seen.sample("db_query_errors_total", **labels) == 1
    (line,) = [line for line in seen.lines if line["logger"] == "fastapi_observe.operation"]
    assert (line["level"], line["fields"]["outcome"], line["exception"]["type"]) == ("error", "error", "LookupError")


def test_statement_may_be_an_object(seen: Seen) -> None:
    """An object that becomes a string, such as an SQLAlchemy construct, is recorded without values too."""

    class Text:
        def __str__(self) -> str:
            return "DELETE FROM orders WHERE id = 7"

    with seen.observe.db.query("DELETE", table="orders", statement=Text()):
        pass
    assert (seen.spans[0].attributes or {})["db.query.text"] == "DELETE FROM orders WHERE id = ?"


def test_an_error_around_the_drivers(seen: Seen) -> None:
    """The driver's own error is recorded if SQLAlchemy wraps it; another error keeps its name."""

    class Hostile(Exception):  # noqa: N818 - as the users of libraries name theirs
        """An error that cannot be looked into."""

        __module__ = "sqlalchemy.mine"

        @property
        def orig(self) -> BaseException:
            """The error inside."""
            raise LookupError

    inner = LookupError("mine")
    around = StatementError("hidden", "SELECT 1", {}, inner)
    around.__cause__ = inner
    column = NoSuchColumnError("there is none")
    column.__cause__ = KeyError("name")
    errors = [around, column, PoolTimeoutError(), Hostile()]
    for exc in errors:
        with pytest.raises(type(exc)) as caught, seen.observe.db.query("SELECT", table="orders"):
            raise exc
        assert caught.value is exc
    assert [(span.attributes or {})["error.type"] for span in seen.spans] == [
        "LookupError",
        "sqlalchemy.exc.NoSuchColumnError",
        "sqlalchemy.exc.TimeoutError",
        f"sqlalchemy.mine.{Hostile.__qualname__}",
    ]
    lines = [line["fields"]["outcome"] for line in seen.lines if line["logger"] == "fastapi_observe.operation"]
    assert lines == ["error", "error", "timeout", "error"]


def test_errors_within_errors() -> None:
    """An adapter's error is replaced by its cause; the number of errors to look through is limited."""

    class Adapted(Exception):  # noqa: N818 - as its module names it
        """What SQLAlchemy 2.0 makes of an async driver's error."""

        __module__ = "sqlalchemy.dialects.postgresql.asyncpg"

    adapted, inner = Adapted(), LookupError("mine")
    assert driver_error(adapted) is adapted
    adapted.__cause__ = inner
    assert driver_error(StatementError("", "SELECT 1", {}, adapted)) is inner
    endless: BaseException = inner
    for _ in range(9):
        endless = StatementError("", "SELECT 1", {}, endless)
    assert type(driver_error(endless)) is StatementError


def test_names_of_pools(seen: Seen) -> None:
    """The label of a pool is reserved once, and released when the pool is removed or cannot be reported."""
    db = seen.observe.db
    assert [db.reserve_pool_name("shop") for _ in range(3)] == ["shop", "shop-2", "shop-3"]
    remove = db.add_pool("shop-2", lambda: PoolState(active=5))
    assert seen.samples("db_connections_active") == {(("pool", "shop-2"),): 5}
    remove()
    assert db.reserve_pool_name("shop") == "shop-2"
    remove()
    assert db.reserve_pool_name("shop") == "shop-4"

    def fail() -> PoolState:
        raise LookupError

    with pytest.raises(LookupError):
        db.add_pool(db.reserve_pool_name("other"), fail)
    assert db.reserve_pool_name("other") == "other"


# Many of them


def test_a_decorated_query(seen: Seen) -> None:
    """As a decorator, each call is a query of its own."""

    @seen.observe.db.query("SELECT", table="orders")
    def read() -> int:
        return 7

    assert [read(), read()] == [7, 7]
    assert [span.name for span in seen.spans] == ["SELECT orders"] * 2


def test_many_tables_and_statements(observed: Callable[..., Seen]) -> None:
    """The numbers of table labels and of prepared statements are limited; all queries are counted."""
    seen = observed(Starlette(), sample_ratio=0.0, logs=False)
    db, count = seen.observe.db, max(4 * MAX_TABLES, MAX_PREPARED_QUERIES) + 1
    facts = {"db.namespace": "shop"}
    for number in range(count):
        query = db.start_statement(f"SELECT * FROM t{number}", system="sqlite", attributes=facts)  # noqa: S608 - sent nowhere
        assert query is not None
        with query:
            pass
        assert len(db._prepared) <= MAX_PREPARED_QUERIES
    found = seen.samples("db_queries_total")
    assert len(found) == MAX_TABLES
    assert found[("operation", "SELECT"), ("table", OTHER_TABLES)] == count - (MAX_TABLES - 1)


# Parents and ids


def test_unsampled_parent(observed: Callable[..., Seen]) -> None:
    """Below an unsampled parent no spans are recorded; the ids are on the line and go to the next service."""
    seen = observed(Starlette(), sample_ratio=0.0)
    tracing = seen.observe.tracing
    with tracing.attach(TraceContext("a" * 32, "b" * 16, sampled=False)):
        with seen.observe.db.query("SELECT", table="orders"):
            carried = tracing.inject({})
        with tracing.span("own") as span:
            assert not span.is_recording()
    assert carried["traceparent"] == f"00-{'a' * 32}-{'b' * 16}-00"
    assert seen.spans == []
    assert seen.total("db_queries_total") == 1
    (line,) = [line for line in seen.lines if line["logger"] == "fastapi_observe.operation"]
    assert (line["trace_id"], line["span_id"]) == ("a" * 32, "b" * 16)


async def test_invalid_operations_and_tables(observed: Callable[..., Seen]) -> None:
    """A statement passed as operation or table is neither label nor name; invalid arguments raise nothing."""
    reported = observed(Starlette())
    db = reported.observe.db
    odd = ["x"]
    for query in (
        db.query("SELECT * FROM users WHERE token = 'hunter2'"),
        db.query("SELECT", table="users where a = 'hunter2'"),
        db.query(odd, table=odd, parameters=iter(odd)),  # type: ignore[arg-type]
    ):
        with query:
            query.set_row_count("x")  # type: ignore[arg-type]
    assert [span.name for span in reported.spans] == ["SELECT users", "SELECT", "OTHER"]
    assert "hunter2" not in reported.text + str([dict(span.attributes or {}) for span in reported.spans])
    assert reported.observe.internal_errors.counts == {}


async def test_names_of_queries_that_hold_a_secret(observed: Callable[..., Seen]) -> None:
    """A secret is redacted in label, name and details, passed as argument or read from the statement."""
    reported = observed(Starlette(), redact_patterns=["hunter[a-z]*"])
    db = reported.observe.db
    key = "sk_live_0123456789abcdef"
    for query in (
        db.query("hunter two", table="orders"),
        db.query("SELECT", table=key),
        db.query(statement=f"SELECT a FROM {key}"),  # noqa: S608 - that is the point
        db.query("SELECT", table="orders"),
    ):
        for again in (query, query.copy()):
            with again:
                pass
    named = ["REDACTED two orders", "SELECT REDACTED", "SELECT REDACTED", "SELECT orders"]
    assert [span.name for span in reported.spans] == [name for name in named for _ in range(2)]
    everything = reported.text + str(reported.lines) + str([dict(span.attributes or {}) for span in reported.spans])
    assert "hunter" not in everything
    assert key not in everything
