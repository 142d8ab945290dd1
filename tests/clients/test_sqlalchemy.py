"""SQLAlchemy engines that measure themselves: statements, transactions, pools; on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import threading
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from injection import failing
from opentelemetry.trace import StatusCode
from pools import running_postgresql, unused_address
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, StaticPool
from starlette.applications import Starlette
from starlette.testclient import TestClient
from tools import needs_package

from fastapi_observe.clients.database.sqlalchemy import OBSERVED_ATTRIBUTE, instrument_engine
from fastapi_observe.clients.database.statements import transaction_event
from fastapi_observe.records.operation import CURRENT_OPERATION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from conftest import Seen
    from opentelemetry.sdk.trace import ReadableSpan

    AnyEngine = sa.Engine | AsyncEngine
    Work = Callable[[sa.Connection], Any]


TABLE = sa.Table(
    "orders",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer, unique=True),
    sa.Column("name", sa.String),
)

INSERT = TABLE.insert().returning(TABLE.c.id)
"""SQLAlchemy sends it as several statements where there are many rows."""

POSTGRESQL = ("psycopg", "asyncpg")
DRIVERS = ("pysqlite", "aiosqlite", *POSTGRESQL)
SYNC = ("pysqlite", "psycopg")
ASYNC = ("aiosqlite", "asyncpg")


@pytest.fixture(scope="session")
def server() -> Iterator[sa.URL]:
    """Yield the URL of a real PostgreSQL."""
    with running_postgresql() as url:
        yield sa.make_url(url)


@pytest.fixture
def seen(observed: Callable[..., Seen]) -> Seen:
    """Install on an app without routes."""
    return observed(Starlette())


@pytest.fixture
async def make(request: pytest.FixtureRequest, seen: Seen, tmp_path: Path) -> AsyncIterator[Callable[..., AnyEngine]]:
    """Make instrumented engines with an empty table `orders`, without telemetry of that."""
    made: list[AnyEngine] = []

    def create(driver: str, *, pool: str = "shop", **options: Any) -> AnyEngine:
        needs_package("sqlite3" if driver == "pysqlite" else driver)
        if driver in POSTGRESQL:
            url = request.getfixturevalue("server").set(drivername=f"postgresql+{driver}")
        else:
            url = sa.make_url(f"sqlite+{driver}:///{tmp_path}/shop.db")
        if driver == "aiosqlite":
            options.setdefault("poolclass", AsyncAdaptedQueuePool)  # SQLAlchemy 2.0 has none there
        engine = create_async_engine(url, **options) if driver in ASYNC else sa.create_engine(url, **options)
        made.append(engine)
        instrument(seen, engine, pool_name=pool)
        return engine

    yield create
    for engine in made:
        if isinstance(engine, AsyncEngine):
            await engine.dispose()
        else:
            engine.dispose()


def instrument(seen: Seen, engine: object, **options: Any) -> Callable[[], None]:
    """Instrument an engine for the app."""
    return instrument_engine(seen.observe.db, engine, internal_errors=seen.observe.internal_errors, **options)


async def run(engine: AnyEngine, work: Work) -> Any:
    """Do the same work in a transaction of a sync or an async engine."""
    if isinstance(engine, AsyncEngine):
        async with engine.begin() as connection:
            return await connection.run_sync(work)
    with engine.begin() as plain:
        return work(plain)


def prepare(connection: sa.Connection) -> None:
    """Empty the table."""
    TABLE.drop(connection, checkfirst=True)
    TABLE.create(connection)


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Make rows with a secret value."""
    return [{"number": number, "name": f"hunter2-{number}"} for number in range(start, start + count)]


class Since:
    """The telemetry since this was made."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._spans = len(seen.spans)
        self._lines = len(seen.lines)
        self._queries = seen.total("db_queries_total")
        self._errors = seen.total("db_query_errors_total")
        self._events = self._all_events()

    def _all_events(self) -> dict[str, float]:
        found = self._seen.samples("db_connection_events_total")
        return {dict(labels)["event"]: value for labels, value in found.items()}

    @property
    def events(self) -> dict[str, float]:
        """What happened on connections, by event."""
        found = {name: value - self._events.get(name, 0) for name, value in self._all_events().items()}
        return {name: value for name, value in found.items() if value}

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans; count, errors and lines say the same, and nothing is open or has failed within us."""
        spans = self._seen.spans[self._spans :]
        lines = [one for one in self._seen.lines[self._lines :] if one["logger"] == "fastapi_observe.operation"]
        failed = [span for span in spans if span.status.status_code is StatusCode.ERROR]
        assert self._seen.total("db_queries_total") - self._queries == len(spans) == len(lines)
        assert self._seen.total("db_query_errors_total") - self._errors == len(failed)
        assert [line["fields"]["outcome"] for line in lines].count("ok") == len(spans) - len(failed)
        assert CURRENT_OPERATION.get() is None
        assert self._seen.observe.internal_errors.counts == {}
        return spans

    @property
    def outcome(self) -> tuple[Any, str]:
        """Error type and outcome of the one statement that was not well."""
        (span,) = [span for span in self.spans if span.status.status_code is StatusCode.ERROR]
        (line,) = [line for line in self._seen.lines[self._lines :] if line["fields"].get("outcome", "ok") != "ok"]
        return (span.attributes or {})["error.type"], line["fields"]["outcome"]


def facts(span: ReadableSpan) -> dict[str, Any]:
    """Return the attributes of a span."""
    return dict(span.attributes or {})


# Statements


@pytest.mark.parametrize("driver", DRIVERS)
async def test_statements_are_operations(seen: Seen, make: Callable[..., AnyEngine], driver: str) -> None:
    """Each statement is one span, one sample and one line, with its details and without its values."""
    engine = make(driver)
    await run(engine, prepare)
    since = Since(seen)

    def work(connection: sa.Connection) -> int:
        connection.execute(TABLE.insert(), rows(1)[0])
        connection.execute(TABLE.update().where(TABLE.c.number == 0).values(name="hunter2"))
        return len(connection.execute(sa.select(TABLE).where(TABLE.c.name == "hunter2")).all())

    assert await run(engine, work) == 1
    insert, update, select = since.spans
    assert [span.name for span in (insert, update, select)] == ["INSERT orders", "UPDATE orders", "SELECT orders"]
    for span in (insert, update, select):
        known = facts(span)
        assert known["db.system.name"] == ("postgresql" if driver in POSTGRESQL else "sqlite")
        assert known["db.client.connection.pool.name"] == "shop"
        assert known["db.namespace"] == engine.url.database
        assert known.get("server.address") == engine.url.query.get("host")
    assert facts(update)["db.response.returned_rows"] == 1
    assert facts(select)["db.query.text"].startswith("SELECT orders.id, orders.number, orders.name FROM orders WHERE")
    assert seen.sample("db_query_duration_seconds_count", operation="SELECT", table="orders") == 1
    assert since.events == {"begin": 1, "commit": 1}
    assert "hunter2" not in seen.text + str(seen.lines) + "".join(span.to_json() for span in seen.spans)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_statements_that_prepare_a_connection(seen: Seen, make: Callable[..., AnyEngine], driver: str) -> None:
    """Statements that SQLAlchemy sends on a new connection are part of the connection wait, and not operations."""
    engine = make(driver)
    since = Since(seen)
    await run(engine, lambda connection: connection.execute(sa.text("SELECT 1")))
    assert len(since.spans) == 1
    assert seen.sample("db_connection_wait_seconds_count", pool="shop") == 1


@pytest.mark.parametrize("driver", DRIVERS)
async def test_many_rows_are_one_operation(seen: Seen, make: Callable[..., AnyEngine], driver: str) -> None:
    """Many parameter sets are one operation with their number, for any number of statements that SQLAlchemy sends."""
    engine = make(driver)
    await run(engine, prepare)
    since = Since(seen)

    def work(connection: sa.Connection) -> None:
        connection.execute(TABLE.insert(), rows(2500))
        connection.execute(INSERT, rows(2500, 2500)).all()
        connection.execute(sa.text("UPDATE orders SET name = :name WHERE number = :number"), rows(3))

    await run(engine, work)
    spans = since.spans
    assert [(span.name, facts(span)["db.operation.batch.size"]) for span in spans] == [
        ("INSERT orders", 2500),
        ("INSERT orders", 2500),
        ("UPDATE orders", 3),
    ]
    assert all(len(facts(span)["db.query.text"]) < 200 for span in spans)
    assert {facts(span).get("db.response.returned_rows") for span in spans[:2]} <= {2500, None}


@pytest.mark.parametrize("driver", DRIVERS)
async def test_errors(seen: Seen, make: Callable[..., AnyEngine], driver: str) -> None:
    """A statement that fails is an error of the driver's own class; the caller gets SQLAlchemy's."""
    engine = make(driver)
    await run(engine, prepare)
    await run(engine, lambda connection: connection.execute(TABLE.insert(), rows(1)))
    since = Since(seen)
    with pytest.raises(IntegrityError):
        await run(engine, lambda connection: connection.execute(TABLE.insert(), rows(1)[0]))
    expected = {"psycopg": "psycopg.errors.UniqueViolation", "asyncpg": "asyncpg.exceptions.UniqueViolationError"}
    assert since.outcome == (expected.get(driver, "sqlite3.IntegrityError"), "error")
    assert since.events == {"begin": 1, "rollback": 1}


@pytest.mark.parametrize("driver", DRIVERS)
async def test_an_error_among_many_rows(seen: Seen, make: Callable[..., AnyEngine], driver: str) -> None:
    """If one of several statements of an INSERT fails, its one operation has failed."""
    engine = make(driver)
    await run(engine, prepare)
    since = Since(seen)
    with pytest.raises(IntegrityError):
        await run(engine, lambda connection: connection.execute(INSERT, rows(1500) + rows(1)))
    assert facts(since.spans[0])["db.operation.batch.size"] == 1501
    assert since.outcome[1] == "error"


async def test_a_listener_that_raises_among_many_rows(seen: Seen, make: Callable[..., AnyEngine]) -> None:
    """If a listener stops an INSERT between its statements, its operation ends and is not the current one."""
    engine = make("pysqlite")
    assert isinstance(engine, sa.Engine)
    await run(engine, prepare)
    since = Since(seen)
    sent: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def stop(connection: sa.Connection, cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)
        if len(sent) == 2:
            raise LookupError

    with pytest.raises(LookupError), engine.begin() as connection:
        connection.execute(INSERT, rows(2500))
    assert CURRENT_OPERATION.get() is None
    (span,) = since.spans
    assert (span.name, facts(span)["db.operation.batch.size"]) == ("INSERT orders", 2500)
    assert since.outcome[1] == "cancelled"


def test_the_exception_is_unchanged(seen: Seen) -> None:
    """An exception of the driver reaches the caller as the same object."""
    engine = sa.create_engine("sqlite://")
    exc = LookupError("no such row")

    def fail(*_: Any) -> None:
        raise exc

    dialect: Any = engine.dialect
    dialect.do_execute = fail  # as another tool does
    undo = instrument(seen, engine)
    since = Since(seen)
    with pytest.raises(LookupError) as caught, engine.connect() as connection:
        connection.execute(sa.text("SELECT :value"), {"value": 1})
    assert caught.value is exc
    assert since.outcome == ("LookupError", "error")
    undo()
    assert engine.dialect.do_execute is fail
    engine.dispose()


def test_errors_that_skip_the_event_of_errors(seen: Seen, make: Callable[..., AnyEngine]) -> None:
    """A statement ends also if SQLAlchemy skips its event of errors, or a listener raises another error."""
    engine = make("pysqlite")
    assert isinstance(engine, sa.Engine)
    since = Since(seen)

    @event.listens_for(engine, "handle_error", insert=True)
    def translate(context: Any) -> None:
        raise LookupError

    with pytest.raises(LookupError), engine.connect() as connection:
        connection.execute(sa.text("SELECT * FROM missing"))
    with pytest.raises(DBAPIError), engine.connect() as connection:
        connection.execution_options(skip_user_error_events=True).execute(sa.text("SELECT * FROM missing"))
    assert [facts(span)["error.type"] for span in since.spans] == ["sqlite3.OperationalError"] * 2


@pytest.mark.parametrize("driver", SYNC)
def test_streamed_rows(seen: Seen, make: Callable[..., AnyEngine], driver: str) -> None:
    """The operation of a stream ends when its statement has executed, also if the rows are not read."""
    engine = make(driver)
    assert isinstance(engine, sa.Engine)
    with engine.begin() as connection:
        prepare(connection)
        connection.execute(TABLE.insert(), rows(50))
    since = Since(seen)
    with (
        engine.connect() as connection,
        connection.execution_options(yield_per=10).execute(sa.select(TABLE)) as result,
    ):
        for _ in result:
            assert [span.name for span in since.spans] == ["SELECT orders"]
            break


@pytest.mark.parametrize("driver", ASYNC)
async def test_async_streams(seen: Seen, make: Callable[..., AnyEngine], driver: str) -> None:
    """The operation of `stream()` ends when its statement has executed: code between rows is not inside it."""
    engine = make(driver)
    assert isinstance(engine, AsyncEngine)
    await run(engine, prepare)
    await run(engine, lambda connection: connection.execute(TABLE.insert(), rows(50)))
    since = Since(seen)
    async with engine.connect() as connection, connection.stream(sa.select(TABLE)) as result:
        async for _ in result:
            assert [span.name for span in since.spans] == ["SELECT orders"]
            break


def test_the_driver_works_inside_the_operation(seen: Seen) -> None:
    """While the driver executes, the statement's operation is the current one, so that no layer measures it again."""
    engine = sa.create_engine("sqlite://")
    names: list[str] = []

    @event.listens_for(engine, "connect")
    def add_function(connection: Any, _: Any) -> None:
        connection.create_function("current", 0, lambda: names.append(getattr(CURRENT_OPERATION.get(), "name", "")))

    instrument(seen, engine)
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT current() FROM (SELECT 1)")).all()
    assert names == [span.name for span in seen.spans]
    engine.dispose()


@pytest.mark.parametrize("driver", DRIVERS)
async def test_inside_a_query_of_the_user(seen: Seen, make: Callable[..., AnyEngine], driver: str) -> None:
    """Statements of an engine inside `db.query(...)` are part of that query, which adopts the first one."""
    engine = make(driver)
    await run(engine, prepare)
    since = Since(seen)
    with seen.observe.db.query("SELECT", table="orders"):
        await run(engine, lambda connection: connection.execute(INSERT, rows(1500)).all())
        await run(engine, lambda connection: connection.execute(sa.select(TABLE)).all())
    (span,) = since.spans
    assert (span.name, facts(span)["db.query.text"][:18]) == ("SELECT orders", "INSERT INTO orders")
    assert since.events == {"begin": 2, "commit": 2}


@pytest.mark.parametrize("driver", ASYNC)
async def test_concurrent_tasks(seen: Seen, make: Callable[..., AnyEngine], driver: str) -> None:
    """Concurrent statements, in `gather` or a task group, are each part of the operation that sent them."""
    engine = make(driver)
    assert isinstance(engine, AsyncEngine)
    await run(engine, prepare)
    before = len(seen.spans)

    async def one(number: int) -> None:
        with seen.observe.operation(f"work {number}"):
            async with engine.connect() as connection:
                outer = CURRENT_OPERATION.get()
                await connection.execute(sa.select(TABLE).where(TABLE.c.number == number))
                assert CURRENT_OPERATION.get() is outer
                await connection.execute(sa.text("SELECT 1"))
        assert CURRENT_OPERATION.get() is None

    await asyncio.gather(*[one(number) for number in range(5)])
    async with asyncio.TaskGroup() as group:
        for number in range(5, 10):
            group.create_task(one(number))
    spans = seen.spans[before:]
    works = {span.context.span_id for span in spans if span.name.startswith("work") and span.context}
    assert len(works) == 10
    parents = [span.parent.span_id for span in spans if span.parent]
    assert sorted(parents) == sorted([*works, *works])


def test_threads(seen: Seen, make: Callable[..., AnyEngine]) -> None:
    """Statements of many threads are all counted."""
    engine = make("pysqlite", pool_size=2)
    assert isinstance(engine, sa.Engine)

    def work() -> None:
        for _ in range(20):
            with engine.connect() as connection:
                connection.execute(sa.text("SELECT 1"))

    since = Since(seen)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(since.spans) == 80
    assert since.events == {"begin": 80, "rollback": 80}
    assert seen.sample("db_connections_waiting", pool="shop") == 0


def test_in_a_request(observed: Callable[..., Seen], tmp_path: Path) -> None:
    """The span of a statement is a child of the server span, also for a session."""
    app = FastAPI()
    seen = observed(app)
    engine = sa.create_engine(f"sqlite:///{tmp_path}/shop.db")
    undo = instrument(seen, engine)

    @app.get("/orders")
    def orders() -> int:
        with Session(engine) as session:
            return len(session.execute(sa.text("SELECT 1")).all())

    assert TestClient(app).get("/orders").json() == 1
    query, server = seen.spans
    assert query.parent is not None
    assert server.context is not None
    assert query.parent.span_id == server.context.span_id
    undo()
    engine.dispose()


# What was given up


def when_executing(engine: AsyncEngine, function: Callable[[], object]) -> None:
    """Call a function just before a statement of the engine is sent."""
    event.listen(engine.sync_engine, "before_cursor_execute", lambda *_: function())


async def wait_for_ever(engine: AnyEngine) -> None:
    """Send a statement that takes very long."""
    await run(engine, lambda connection: connection.execute(sa.text("SELECT pg_sleep(30)")))


async def test_cancelled(seen: Seen, make: Callable[..., AnyEngine]) -> None:
    """A statement whose task is cancelled ends once, as `cancelled`; the pool is unchanged."""
    engine = make("asyncpg")
    assert isinstance(engine, AsyncEngine)
    started = asyncio.Event()
    when_executing(engine, started.set)
    since = Since(seen)
    task = asyncio.create_task(wait_for_ever(engine))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert since.outcome == ("asyncio.exceptions.CancelledError", "cancelled")
    assert since.events == {"begin": 1}  # the connection was closed: nothing rolled back
    assert seen.sample("db_connections_active", pool="shop") == 0


async def test_out_of_time(seen: Seen, make: Callable[..., AnyEngine]) -> None:
    """`asyncio.timeout` ends a statement as `cancelled`."""
    engine = make("asyncpg")
    assert isinstance(engine, AsyncEngine)
    limit = asyncio.timeout(None)
    when_executing(engine, lambda: limit.reschedule(0))
    since = Since(seen)
    with pytest.raises(TimeoutError):
        async with limit:
            await wait_for_ever(engine)
    assert since.outcome == ("asyncio.exceptions.CancelledError", "cancelled")


async def test_timeout_of_the_driver(seen: Seen, make: Callable[..., AnyEngine]) -> None:
    """A timeout of the driver has the outcome `timeout`."""
    engine = make("asyncpg", connect_args={"command_timeout": 0.05})
    since = Since(seen)
    with pytest.raises(TimeoutError):
        await wait_for_ever(engine)
    assert since.outcome == ("TimeoutError", "timeout")


@pytest.mark.parametrize("driver", POSTGRESQL)
async def test_timeout_of_the_server(seen: Seen, make: Callable[..., AnyEngine], driver: str) -> None:
    """A statement timeout of the server is `timeout`; a statement that a client cancelled is `cancelled`."""
    engine = make(driver)

    def set_limit(connection: sa.Connection) -> None:
        connection.execute(sa.text("SET LOCAL statement_timeout = 20"))
        connection.execute(sa.text("SELECT pg_sleep(30)"))

    since = Since(seen)
    with pytest.raises(DBAPIError):
        await run(engine, set_limit)
    assert since.outcome[1] == "timeout"
    since = Since(seen)
    with pytest.raises(DBAPIError):
        await run(engine, lambda connection: connection.execute(sa.text("SELECT pg_cancel_backend(pg_backend_pid())")))
    assert since.outcome[1] == "cancelled"


@pytest.mark.parametrize("driver", POSTGRESQL)
async def test_one_error_has_one_name(seen: Seen, make: Callable[..., AnyEngine], driver: str) -> None:
    """An error has the same outcome and type alone and inside `db.query`; what the caller catches is SQLAlchemy's."""
    engine = make(driver)

    def wait(connection: sa.Connection) -> None:
        connection.exec_driver_sql("SET LOCAL statement_timeout = 20")
        connection.exec_driver_sql("SELECT pg_sleep(30)")

    since = Since(seen)
    with pytest.raises(DBAPIError):
        await run(engine, wait)
    alone = since.outcome
    since = Since(seen)
    with pytest.raises(DBAPIError) as caught:
        async with seen.observe.db.query("SELECT", table="orders"):
            await run(engine, wait)
    names = {"psycopg": "psycopg.errors.QueryCanceled", "asyncpg": "asyncpg.exceptions.QueryCanceledError"}
    assert since.outcome == alone == (names[driver], "timeout")
    assert caught.value.__cause__ is caught.value.orig
    assert type(caught.value).__module__ == "sqlalchemy.exc"


@pytest.mark.parametrize("driver", POSTGRESQL)
async def test_a_broken_connection(seen: Seen, make: Callable[..., AnyEngine], driver: str) -> None:
    """A connection that breaks during a statement is an error; the next statement gets a new connection."""
    engine = make(driver)
    since = Since(seen)
    with pytest.raises(DBAPIError):
        await run(
            engine, lambda connection: connection.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))
        )
    assert since.outcome[1] == "error"
    await run(engine, lambda connection: connection.execute(sa.text("SELECT 1")))
    assert len(since.spans) == 2


async def test_an_abandoned_coroutine(seen: Seen, make: Callable[..., AnyEngine]) -> None:
    """A statement whose coroutine is closed was cancelled."""
    engine = make("asyncpg")
    assert isinstance(engine, AsyncEngine)
    since = Since(seen)
    connection = await engine.connect()
    coroutine = AsyncConnection.execute(connection, sa.text("SELECT 1"))
    coroutine.send(None)
    with pytest.raises(RuntimeError, match="GeneratorExit"):  # SQLAlchemy's greenlet goes on
        coroutine.close()
    await connection.invalidate()
    await connection.close()
    assert since.outcome == ("asyncio.exceptions.CancelledError", "cancelled")


# Transactions


@pytest.mark.parametrize("driver", SYNC)
def test_transactions_are_counts(seen: Seen, make: Callable[..., AnyEngine], driver: str) -> None:
    """Starts and ends of transactions and savepoints are counted and are not spans."""
    engine = make(driver)
    assert isinstance(engine, sa.Engine)
    since = Since(seen)
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
        with connection.begin_nested():
            connection.execute(sa.text("SELECT 1"))
        with connection.begin_nested() as nested:
            connection.execute(sa.text("SELECT 1"))
            nested.rollback()
        connection.commit()
    with engine.connect():
        pass  # no statement, no transaction
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("BEGIN")
        connection.exec_driver_sql("COMMIT")
    assert len(since.spans) == 4
    assert since.events == {
        "begin": 3,
        "commit": 2,
        "rollback": 2,
        "savepoint": 2,
        "release_savepoint": 1,
        "rollback_savepoint": 1,
    }


@pytest.mark.parametrize(
    ("statement", "counted"),
    [
        ("BEGIN", "begin"),
        ("begin immediate transaction;", "begin"),
        ("START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY", "begin"),
        ("COMMIT WORK", "commit"),
        ("rollback", "rollback"),
        ("SAVEPOINT sa_savepoint_1", "savepoint"),
        ("SAVE TRANSACTION sa_savepoint_1", "savepoint"),
        ("ROLLBACK TO SAVEPOINT sa_savepoint_1", "rollback_savepoint"),
        ("ROLLBACK TRANSACTION sa_savepoint_1", "rollback_savepoint"),
        ("RELEASE SAVEPOINT sa_savepoint_1", "release_savepoint"),
        ("BEGIN work(); END;", None),
        ("BEGIN TRY SELECT 1 END TRY", None),
        ("COMMIT PREPARED 'one'", None),
        ("SELECT 1", None),
    ],
)
def test_transaction_commands(statement: str, counted: str | None) -> None:
    """A statement is a transaction command only if it does nothing else."""
    assert transaction_event(statement) == counted


def test_queries_that_start_like_a_transaction_command(seen: Seen, make: Callable[..., AnyEngine]) -> None:
    """A query that starts with the same word is an operation."""
    engine = make("pysqlite")
    assert isinstance(engine, sa.Engine)
    since = Since(seen)
    with engine.connect() as connection, pytest.raises(DBAPIError):
        connection.exec_driver_sql("BEGIN work(); END;")
    with engine.connect() as connection, pytest.raises(DBAPIError):
        connection.exec_driver_sql("RELEASE " + "x" * 300)
    assert len(since.spans) == 2


@pytest.mark.parametrize("driver", DRIVERS)
async def test_pings_are_counts(seen: Seen, make: Callable[..., AnyEngine], driver: str) -> None:
    """With `pool_pre_ping`, each use of an idle connection is one `ping` and no span."""
    engine = make(driver, pool_pre_ping=True)
    since = Since(seen)
    for _ in range(3):
        await run(engine, lambda connection: connection.execute(sa.text("SELECT 1")))
    assert since.events == {"begin": 3, "commit": 3, "ping": 2}
    assert len(since.spans) == 3


# Pools


@pytest.mark.parametrize("driver", SYNC)
def test_pool(seen: Seen, make: Callable[..., AnyEngine], driver: str) -> None:
    """The pool is read at each scrape, also the new one after `dispose`."""
    engine = make(driver, pool_size=2, max_overflow=1)
    assert isinstance(engine, sa.Engine)

    def state() -> list[float | None]:
        names = ("active", "idle", "max", "overflow", "waiting")
        return [seen.sample(f"db_connections_{name}", pool="shop") for name in names]

    assert state() == [0, 0, 3, 0, 0]
    for _ in range(2):
        connections = [engine.connect() for _ in range(3)]
        assert state() == [3, 0, 3, 1, 0]
        for connection in connections:
            connection.close()
        assert state() == [0, 2, 3, 0, 0]
        engine.dispose()
        assert state() == [0, 0, 3, 0, 0]
    assert seen.sample("db_connection_wait_seconds_count", pool="shop") == 6


def test_pools_with_fewer_gauges(seen: Seen, make: Callable[..., AnyEngine]) -> None:
    """A pool without a limit reports none; a pool that is not a queue reports the waiting callers only."""
    shown = {
        "unlimited": {"active", "idle", "overflow", "waiting"},
        "boundless": {"active", "idle", "overflow", "waiting"},
        "null": {"waiting"},
        "static": {"waiting"},
    }
    make("pysqlite", pool="unlimited", max_overflow=-1)
    make("pysqlite", pool="boundless", pool_size=0)
    make("pysqlite", pool="null", poolclass=NullPool)
    make("pysqlite", pool="static", poolclass=StaticPool)
    names = ("active", "idle", "max", "overflow", "waiting")
    for pool, expected in shown.items():
        found = {name for name in names if seen.sample(f"db_connections_{name}", pool=pool) is not None}
        assert found == expected


def test_waiting_for_a_connection(seen: Seen, make: Callable[..., AnyEngine]) -> None:
    """A waiting caller is reported while it waits, and its wait when it has a connection."""
    engine = make("pysqlite", pool_size=1, max_overflow=0)
    assert isinstance(engine, sa.Engine)
    held = engine.connect()
    thread = threading.Thread(target=lambda: engine.connect().close())
    thread.start()
    until = monotonic() + 10
    while seen.sample("db_connections_waiting", pool="shop") != 1:
        assert monotonic() < until
        sleep(0.001)
    assert seen.sample("db_connection_wait_seconds_count", pool="shop") == 1
    held.close()
    thread.join()
    assert seen.sample("db_connections_waiting", pool="shop") == 0
    assert seen.sample("db_connection_wait_seconds_count", pool="shop") == 2


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_wait_that_times_out(seen: Seen, make: Callable[..., AnyEngine], driver: str) -> None:
    """A caller that gets no connection in time is the event `timeout`, without a statement."""
    engine = make(driver, pool_size=1, max_overflow=0, pool_timeout=0.02)

    def nothing(connection: sa.Connection) -> None:
        """Have a connection."""

    since = Since(seen)
    if isinstance(engine, AsyncEngine):
        async with engine.connect():
            with pytest.raises(PoolTimeoutError):
                await run(engine, nothing)
    else:
        with engine.connect(), pytest.raises(PoolTimeoutError):
            await run(engine, nothing)
    assert since.events == {"timeout": 1}
    assert since.spans == []
    assert seen.sample("db_connections_waiting", pool="shop") == 0
    assert seen.sample("db_connection_wait_seconds_count", pool="shop") == 2


@pytest.mark.parametrize("driver", POSTGRESQL)
async def test_a_database_that_is_down(seen: Seen, driver: str) -> None:
    """A failure to get a connection is a wait and the event `error`: the only trace of a database that is down."""
    needs_package(driver)
    url = sa.make_url(f"postgresql+{driver}://ann@{unused_address()}/shop")
    engine = create_async_engine(url) if driver in ASYNC else sa.create_engine(url)
    instrument(seen, engine, pool_name="shop")
    since = Since(seen)
    with pytest.raises((sa.exc.OperationalError, ConnectionRefusedError)):
        await run(engine, lambda connection: connection.execute(sa.text("SELECT 1")))
    assert since.events == {"error": 1}
    assert since.spans == []
    assert seen.sample("db_connection_wait_seconds_count", pool="shop") == 1
    assert seen.sample("db_connections_waiting", pool="shop") == 0


def test_pools_with_one_name(seen: Seen, tmp_path: Path) -> None:
    """Two pools with one name have labels of their own, the same on gauges, waits, events and spans."""
    engines = [sa.create_engine(f"sqlite:///{tmp_path}/shop.db") for _ in range(2)]
    first, second = [instrument(seen, engine, pool_name="shop") for engine in engines]
    held = [engine.connect() for engine in (engines[0], engines[1], engines[1])]
    for connection in held:
        connection.execute(sa.text("SELECT 1"))
    labels = [facts(span)["db.client.connection.pool.name"] for span in seen.spans]
    assert labels == ["shop", "shop-2", "shop-2"]
    for name in ("db_connections_active", "db_connection_wait_seconds_count"):
        assert seen.samples(name) == {(("pool", "shop"),): 1, (("pool", "shop-2"),): 2}
    assert [seen.sample("db_connection_events_total", pool=name, event="begin") for name in ("shop", "shop-2")] == [
        1,
        2,
    ]
    first()
    first()
    assert seen.samples("db_connections_active") == {(("pool", "shop-2"),): 2}
    again = instrument(seen, engines[0], pool_name="shop")
    assert seen.samples("db_connections_active") == {(("pool", "shop"),): 1, (("pool", "shop-2"),): 2}
    for undo in (again, second):
        undo()
    for connection in held:
        connection.close()
    for engine in engines:
        engine.dispose()


@pytest.mark.parametrize(
    ("url", "options", "name", "where"),
    [
        ("sqlite://", {}, "sqlite", {}),
        ("sqlite:///shop.db", {}, "shop.db", {"db.namespace": "shop.db"}),
        ("sqlite:///shop.db", {"logging_name": "reader"}, "reader", {"db.namespace": "shop.db"}),
        ("sqlite:///shop.db", {"pool_logging_name": "writer"}, "writer", {"db.namespace": "shop.db"}),
        (
            "postgresql+psycopg://ann:hunter2@db.example:5433/shop?sslpassword=hunter3",
            {},
            "db.example:5433/shop",
            {"server.address": "db.example", "server.port": 5433, "db.namespace": "shop"},
        ),
        (
            "postgresql+psycopg://ann:hunter2@/shop?host=one:5432&host=two:5432",
            {},
            "shop",
            {"db.namespace": "shop"},
        ),
        ("postgresql+psycopg://ann:hunter2@db.example", {}, "db.example", {"server.address": "db.example"}),
    ],
)
def test_name_of_the_pool(seen: Seen, url: str, options: dict[str, str], name: str, where: dict[str, Any]) -> None:
    """The default name of a pool is that of its database; user, password and options are not recorded."""
    if url.startswith("postgresql"):
        needs_package("psycopg")
    engine = sa.create_engine(url, **options)
    instrument(seen, engine)
    assert seen.sample("db_connections_waiting", pool=name) == 0
    assert vars(engine)[OBSERVED_ATTRIBUTE].observer().attributes == {**where, "db.client.connection.pool.name": name}
    assert "hunter" not in seen.text


def test_system_of_other_databases(seen: Seen) -> None:
    """The system is a name of the semantic conventions, or `other_sql`."""
    engine = sa.create_engine("sqlite://")
    engine.dialect.name = "firebird"
    instrument(seen, engine)
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
    assert facts(seen.spans[0])["db.system.name"] == "other_sql"
    engine.dispose()


# Instrumenting


def untouched(engine: sa.Engine) -> list[dict[str, Any]]:
    """Return the attributes of instances."""
    return [dict(vars(one)) for one in (engine.dialect, engine.pool)]


def test_undo(seen: Seen, tmp_path: Path) -> None:
    """After the undo, engine, dialect and pool are unchanged, and neither statements nor the pool are reported."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/shop.db")
    with engine.connect():
        pass
    before = untouched(engine)
    undo = instrument(seen, engine, pool_name="shop")
    assert untouched(engine) != before
    undo()
    undo()
    assert untouched(engine) == before
    assert OBSERVED_ATTRIBUTE not in vars(engine)
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
    assert seen.spans == []
    assert seen.samples("db_connections_active") == {}
    engine.dispose()


def test_undo_below_another_wrapper(seen: Seen) -> None:
    """Another tool's wrappers around ours stay and work after the undo, and after instrumenting again."""
    engine = sa.create_engine("sqlite://", poolclass=StaticPool)
    undo = instrument(seen, engine)
    ours, calls = engine.dialect.do_execute_no_params, []

    def theirs(*args: Any) -> None:
        calls.append(args[1])
        ours(*args)

    connect, begin = engine.pool.connect, engine.dialect.do_begin
    dialect: Any = engine.dialect
    dialect.do_begin = lambda connection: begin(connection)  # noqa: PLW0108 - not the same function
    dialect.do_execute_no_params = theirs
    dialect.do_execute = lambda *args: theirs(args[0], args[1], args[3])
    pool: Any = engine.pool
    pool.connect = lambda: connect()  # noqa: PLW0108 - not the same function
    undo()
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
    assert (calls, seen.spans) == (["SELECT 1"], [])
    instrument(seen, engine)
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
    assert len(seen.spans) == 1
    assert seen.sample("db_connection_wait_seconds_count", pool="sqlite") == 1
    engine.dispose()


def test_instrumenting_again(seen: Seen) -> None:
    """A second call and its undo do nothing; an engine made by `execution_options()` is the same engine."""
    engine = sa.create_engine("sqlite://")
    undo = instrument(seen, engine, pool_name="one")
    again = instrument(seen, engine, pool_name="two")
    child = engine.execution_options(isolation_level="AUTOCOMMIT")
    instrument(seen, child)()
    again()
    for one in (engine, child):
        with one.connect() as connection:
            connection.execute(sa.text("SELECT 1"))
    assert len(seen.spans) == 2
    assert seen.samples("db_connections_waiting") == {(("pool", "one"),): 0}
    undo()
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
    assert len(seen.spans) == 2
    engine.dispose()


def test_an_engine_of_two_apps(observed: Callable[..., Seen]) -> None:
    """A statement is reported to the app of its request, else to the first app; each app can be closed first."""
    engine = sa.create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})

    def answer() -> int:
        with engine.connect() as connection:
            return len(connection.execute(sa.text("SELECT 1")).all())

    apps = [FastAPI(), FastAPI()]
    first, second = [observed(app) for app in apps]
    undo = [instrument(one, engine) for one in (first, second)]
    for app in apps:
        app.get("/")(answer)
        TestClient(app).get("/")
    assert [one.total("db_queries_total") for one in (first, second)] == [1, 1]
    answer()
    assert [one.total("db_queries_total") for one in (first, second)] == [2, 1]
    undo[0]()
    answer()
    assert [one.total("db_queries_total") for one in (first, second)] == [2, 2]
    undo[1]()
    answer()
    assert [one.total("db_queries_total") for one in (first, second)] == [2, 2]


def test_labels_and_internal_errors_of_two_apps(observed: Callable[..., Seen]) -> None:
    """Each app has its own label for a shared engine, and gets the internal errors of its own requests."""
    engine = sa.create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})

    def answer() -> int:
        with engine.connect() as connection:
            return len(connection.execute(sa.text("SELECT 1")).all())

    apps = [FastAPI(), FastAPI()]
    first, second = [observed(app) for app in apps]
    for one, name in ((first, "one"), (second, "two")):
        instrument(one, engine, pool_name=name)
    for app, one, name in zip(apps, (first, second), ("one", "two"), strict=True):
        app.get("/")(answer)
        TestClient(app).get("/")
        assert [facts(span).get("db.client.connection.pool.name") for span in one.spans] == [name, None]
        assert one.samples("db_connections_waiting") == {(("pool", name),): 0}
        assert one.samples("db_connection_wait_seconds_count") == {(("pool", name),): 1}
        with failing(one.observe.db.start_statement):
            TestClient(app).get("/")
        assert one.observe.internal_errors.counts == {"sqlalchemy": 1}


@pytest.mark.parametrize("wrong", ["postgresql://ann:hunter2@db.example/shop", None, sa.create_engine, object()])
def test_other_objects_are_rejected(seen: Seen, wrong: object) -> None:
    """The error says what to pass, and does not repeat the value."""
    with pytest.raises(TypeError, match=r"create_engine\(\).*create_async_engine\(\)") as caught:
        instrument(seen, wrong)
    assert type(wrong).__name__ in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_sessions_are_rejected(seen: Seen, make: Callable[..., AnyEngine]) -> None:
    """A session or a connection is rejected, because it would be measured in part only."""
    engine = make("pysqlite")
    assert isinstance(engine, sa.Engine)
    with engine.connect() as connection, pytest.raises(TypeError, match="Connection"):
        instrument(seen, connection)


# Faults


def test_internal_errors(seen: Seen) -> None:
    """Internal errors are counted; the user's statements and connections work as without instrumentation."""
    engine = sa.create_engine("sqlite://", poolclass=StaticPool)
    instrument(seen, engine)

    def answer() -> Any:
        with engine.connect() as connection:
            return connection.execute(sa.text("SELECT 7")).scalar()

    for function in (
        seen.observe.db.start_statement,
        seen.observe.on_operation_start,
        seen.observe.on_operation_end,
        seen.observe.record_connection_event,
        seen.observe.record_connection_wait,
    ):
        with failing(function):
            assert answer() == 7
            assert CURRENT_OPERATION.get() is None
    assert seen.observe.internal_errors.counts == {
        "sqlalchemy": 1,
        "operation.open": 1,
        "operation.close": 1,
        "pool.connection_event": 2,
        "pool.connection_wait": 1,
    }
    engine.dispose()


def test_a_connection_without_attributes(seen: Seen) -> None:
    """Transactions of a connection that accepts no attribute are not counted; it works."""
    engine = sa.create_engine("sqlite://")
    instrument(seen, engine)
    engine.dialect.do_begin(object())  # type: ignore[arg-type]
    assert seen.observe.internal_errors.counts == {"sqlalchemy": 1}
    assert seen.samples("db_connection_events_total") == {}


def test_a_dialect_that_cannot_be_wrapped(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that cannot be instrumented is unchanged, and its label is free."""
    engine = sa.create_engine("sqlite://")
    with monkeypatch.context() as patch:
        patch.setattr(sa.engine.default.DefaultDialect, "do_ping", property(lambda _: 1 // 0))
        with pytest.raises(ZeroDivisionError):
            instrument(seen, engine)
    assert OBSERVED_ATTRIBUTE not in vars(engine)
    assert "do_execute" not in vars(engine.dialect)
    assert seen.samples("db_connections_waiting") == {}
    instrument(seen, engine)
    assert seen.sample("db_connections_waiting", pool="sqlite") == 0


def test_a_cursor_that_does_not_count(seen: Seen) -> None:
    """If a cursor fails to return its number of rows, the operation is reported without it."""
    engine = sa.create_engine("sqlite://")
    instrument(seen, engine)
    dialect = engine.dialect

    class Cursor:
        def execute(self, *_: Any) -> None:
            """Execute nothing."""

    dialect.do_execute(Cursor(), "SELECT 1", ())  # type: ignore[arg-type]
    dialect.do_execute_no_params(Cursor(), "SELECT 1")  # type: ignore[arg-type]
    assert len(seen.spans) == 2
    assert seen.observe.internal_errors.counts == {"sqlalchemy": 2}
