"""Instrumented psycopg pools, sync and async, on a real PostgreSQL."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from pools import SECRET, PoolTelemetry, running_postgresql, unused_address
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool, ConnectionPool, NullConnectionPool, PoolClosed, PoolTimeout

from fastapi_observe.clients.database.psycopg import instrument_pool, statement_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from conftest import Seen


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Yield the URL of a real PostgreSQL."""
    with running_postgresql() as found:
        yield found


@pytest.fixture
def telemetry(observed: Callable[..., Seen]) -> PoolTelemetry:
    """Install on an app."""
    return PoolTelemetry(observed)


@pytest.fixture
def table(url: str) -> None:
    """Make a table without rows."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS people")
        connection.execute("CREATE TABLE people (id int, email text UNIQUE)")


@pytest.fixture
def pool(url: str, telemetry: PoolTelemetry, table: None) -> Iterator[ConnectionPool]:
    """Yield a pool that was instrumented before it was opened."""
    pool = ConnectionPool(url, min_size=1, max_size=2, open=False, name="main", kwargs={"autocommit": True})
    instrument_pool(telemetry.observe.db, pool, internal_errors=telemetry.observe.internal_errors)
    with pool:
        yield pool


@pytest.fixture
async def async_pool(url: str, telemetry: PoolTelemetry, table: None) -> AsyncIterator[AsyncConnectionPool]:
    """Yield an async pool that was instrumented before it was opened."""
    pool = AsyncConnectionPool(url, min_size=1, max_size=2, open=False, name="main", kwargs={"autocommit": True})
    instrument_pool(telemetry.observe.db, pool, internal_errors=telemetry.observe.internal_errors)
    async with pool:
        yield pool


FILL = "INSERT INTO people SELECT n, n::text FROM generate_series(0, 119) AS n"
DIVIDE = "SELECT 1 / (3 - n) FROM generate_series(1, 9) AS n"
EACH_METHOD = (
    ["INSERT people", "UPDATE people", "SELECT people", "INSERT people", "SELECT people", "COPY people", "COPY people"],
    [2, 2, 2, 3, 5, 2, 7],
)


# What is measured


def test_each_method_is_one_query(pool: ConnectionPool, telemetry: PoolTelemetry) -> None:
    """Every method of connection and cursor that sends a statement is a span, a count, a duration and a line."""
    with pool.connection() as connection:
        connection.execute("INSERT INTO people VALUES (1, 'a'), (2, 'b')")
        with connection.cursor() as cursor:
            assert cursor.execute(b"UPDATE people SET id = id + %s", (0,), prepare=True) is cursor
            assert len(cursor.execute("SELECT * FROM people").fetchall()) == 2
            cursor.executemany("INSERT INTO people VALUES (%s, %s)", [(3, "c"), (4, "d"), (5, "e")])
            assert len(list(cursor.stream("SELECT * FROM people WHERE id > %s", (0,)))) == 5
            with cursor.copy("COPY people FROM STDIN") as copy:
                copy.write_row((6, "f"))
                assert pool.get_stats()["requests_waiting"] == 0
                copy.write_row((7, "g"))
            with cursor.copy("COPY people TO STDOUT") as copy:
                assert len(list(copy.rows())) == 7
    assert (telemetry.names, telemetry.rows) == EACH_METHOD
    assert [(span.attributes or {}).get("db.operation.batch.size") for span in telemetry.spans][3] == 3
    telemetry.agree()


async def test_each_async_method_is_one_query(async_pool: AsyncConnectionPool, telemetry: PoolTelemetry) -> None:
    """Every method of async connection and cursor that sends a statement is measured."""
    async with async_pool.connection() as connection:
        await connection.execute("INSERT INTO people VALUES (1, 'a'), (2, 'b')")
        async with connection.cursor() as cursor:
            assert await cursor.execute(b"UPDATE people SET id = id + %s", (0,), prepare=True) is cursor
            assert len(await (await cursor.execute("SELECT * FROM people")).fetchall()) == 2
            await cursor.executemany("INSERT INTO people VALUES (%s, %s)", [(3, "c"), (4, "d"), (5, "e")])
            assert len([row async for row in cursor.stream("SELECT * FROM people WHERE id > %s", (0,))]) == 5
            async with cursor.copy("COPY people FROM STDIN") as copy:
                await copy.write_row((6, "f"))
                await copy.write_row((7, "g"))
            async with cursor.copy("COPY people TO STDOUT") as copy:
                assert len([row async for row in copy.rows()]) == 7
    assert (telemetry.names, telemetry.rows) == EACH_METHOD
    telemetry.agree()


def test_composed_statements(pool: ConnectionPool, telemetry: PoolTelemetry) -> None:
    """Composed statements are recorded without their values."""
    query = sql.SQL("SELECT {} FROM {} WHERE email = {}").format(
        sql.Identifier("id"), sql.Identifier("people"), sql.Literal(SECRET)
    )
    with pool.connection() as connection:
        connection.execute(query)
    assert telemetry.names == ["SELECT people"]
    assert (telemetry.spans[0].attributes or {})["db.query.text"] == 'SELECT "id" FROM "people" WHERE email = ?'
    assert SECRET not in telemetry.everything()


def test_text_of_statements() -> None:
    """A template string has placeholders; any other object is converted to a string."""

    class Template:
        strings = ("SELECT ", " FROM people WHERE id = ", "")
        interpolations = (1, SECRET)

    assert statement_text(Template()) == "SELECT %s FROM people WHERE id = %s"
    assert statement_text(5) == "5"


def test_one_span_inside_a_query(pool: ConnectionPool, telemetry: PoolTelemetry) -> None:
    """Streams, copies and server-side cursors inside `db.query` are part of it: one span."""
    with telemetry.observe.db.query("SELECT", table="people"), pool.connection() as connection:
        connection.execute("SELECT * FROM people WHERE id = 7")
        with connection.transaction(), connection.cursor() as cursor:
            assert list(cursor.stream("SELECT 1")) == [(1,)]
            with cursor.copy("COPY people TO STDOUT") as copy:
                assert list(copy) == []
            with connection.cursor(name="here") as server:
                assert server.execute("SELECT 1").fetchall() == [(1,)]
    (span,) = telemetry.spans
    assert (span.attributes or {})["db.query.text"] == "SELECT * FROM people WHERE id = ?"
    assert telemetry.events("main") == {"begin": 1, "commit": 1}
    telemetry.agree()


# Failures


def test_failures_of_streams_and_copies(pool: ConnectionPool, telemetry: PoolTelemetry) -> None:
    """A stream or copy that fails is a failed query; the exception is the same object."""
    mine = LookupError("mine")

    def copy_badly(cursor: psycopg.Cursor) -> None:
        with cursor.copy("COPY people FROM STDIN") as copy:
            copy.write_row((1, "a"))
            raise mine

    with pool.connection() as connection, connection.cursor() as cursor:
        with pytest.raises(psycopg.errors.DivisionByZero):
            list(cursor.stream(DIVIDE))
        with pytest.raises(psycopg.errors.SyntaxError), cursor.copy("COPY nonsense"):
            pass
        with pytest.raises(LookupError) as caught:
            copy_badly(cursor)
    assert caught.value is mine
    assert [span.status.status_code.name for span in telemetry.spans] == ["ERROR"] * 3
    assert [(span.attributes or {})["error.type"] for span in telemetry.spans][2] == "LookupError"
    telemetry.agree()


def test_misuse(pool: ConnectionPool, url: str) -> None:
    """Psycopg's errors for misuse are unchanged."""
    connection = pool.getconn()
    pool.putconn(connection)
    with pytest.raises(ValueError, match="doesn't come from any pool"):
        pool.putconn(connection)
    with psycopg.connect(url) as foreign, pytest.raises(ValueError, match="doesn't come from any pool"):
        pool.putconn(foreign)
    with pool.connection() as connection, pytest.raises(TypeError):
        connection.cursor().execute()  # type: ignore[call-overload]


# Transactions and cursors


def test_transactions_are_counts(url: str, telemetry: PoolTelemetry) -> None:
    """Transaction commands are counted, also those that psycopg and its pool send by themselves."""
    with ConnectionPool(url, min_size=1, max_size=1, open=True, name="main") as pool:
        instrument_pool(telemetry.observe.db, pool, internal_errors=telemetry.observe.internal_errors)
        with pool.connection() as connection:
            connection.execute("SELECT 1")
        with suppress(ZeroDivisionError), pool.connection() as connection:
            connection.execute("SELECT 2")
            raise ZeroDivisionError
        with pool.connection() as connection, connection.transaction():
            with connection.transaction():
                connection.execute("SELECT 3")
            with suppress(ZeroDivisionError), connection.transaction():
                raise ZeroDivisionError
        with pool.connection() as connection:
            connection.autocommit = True
            connection.execute("start transaction")
            connection.execute("ROLLBACK")
            connection.autocommit = False
        connection = pool.getconn()
        connection.execute("SELECT 4")
        pool.putconn(connection)
        connection = pool.getconn()
        connection.close()
        pool.putconn(connection)
    assert telemetry.events("main") == {
        "begin": 5,
        "commit": 2,
        "rollback": 3,
        "savepoint": 2,
        "release_savepoint": 2,
        "rollback_savepoint": 1,
    }
    assert [(span.attributes or {})["db.query.text"] for span in telemetry.spans] == ["SELECT ?"] * 4
    telemetry.agree()


async def test_async_transactions_are_counts(url: str, telemetry: PoolTelemetry) -> None:
    """Transaction commands of async connections are counted."""
    async with AsyncConnectionPool(url, min_size=1, max_size=1, open=False, name="main") as pool:
        instrument_pool(telemetry.observe.db, pool, internal_errors=telemetry.observe.internal_errors)
        async with pool.connection() as connection:
            await connection.execute("SELECT 1")
        async with pool.connection() as connection:
            await connection.set_autocommit(True)
            await connection.execute("BEGIN")
            await connection.execute("ABORT")
    assert telemetry.events("main") == {"begin": 2, "commit": 1, "rollback": 1}
    telemetry.agree()


def test_what_the_pool_does_is_not_measured(url: str, telemetry: PoolTelemetry) -> None:
    """Queries of `configure`, `check` and `reset` are not measured as queries."""
    done: list[str] = []

    def step(name: str) -> Callable[[Any], None]:
        def call(connection: Any) -> None:
            done.append(name)
            connection.execute("SELECT 1")
            connection.commit()
            if name == "reset":
                back.set()

        return call

    back = threading.Event()
    steps: dict[str, Any] = {"configure": step("configure"), "check": step("check"), "reset": step("reset")}
    with ConnectionPool(url, min_size=1, max_size=1, open=False, **steps) as pool:
        instrument_pool(telemetry.observe.db, pool, internal_errors=telemetry.observe.internal_errors)
        for number in range(2):
            with pool.connection() as connection:
                connection.execute(f"SELECT {number} AS n{number}".encode())
            assert back.wait(30)
            back.clear()
        pool.check()
    assert done == ["configure", "check", "reset", "check", "reset"]
    assert len(telemetry.spans) == 2
    assert telemetry.events(pool.name) == {"begin": 2, "commit": 2}
    telemetry.agree()


def test_server_side_cursors_are_one_query(pool: ConnectionPool, telemetry: PoolTelemetry) -> None:
    """A server-side cursor is one query for all its steps; code between its steps is not inside it."""
    with pool.connection() as connection, connection.transaction():
        connection.execute(FILL)
        with connection.cursor(name="here") as cursor:
            cursor.itersize = 7
            for (number,) in cursor.execute("SELECT id FROM people ORDER BY id"):
                if number == 60:
                    connection.execute("SELECT 1")
            cursor.execute("SELECT id FROM people WHERE id < %s ORDER BY id", (20,))
            assert cursor.fetchone() == (0,)
            assert len(cursor.fetchmany(5)) == 5
            assert len(cursor.fetchmany()) == 1
            assert len(cursor.fetchall()) == 13
            assert cursor.fetchone() is None
            cursor.execute("SELECT email FROM people").fetchmany(3)
            cursor.execute("SELECT email FROM people WHERE id = 5").fetchone()
        with pytest.raises(psycopg.InterfaceError, match="the cursor is closed"):
            cursor.fetchone()
    assert telemetry.names == ["INSERT people", "SELECT", *["SELECT people"] * 4]
    assert telemetry.rows == [120, 1, 120, 20, 3, 1]
    assert {span.parent for span in telemetry.spans} == {None}
    telemetry.agree()


async def test_async_server_side_cursors_are_one_query(
    async_pool: AsyncConnectionPool, telemetry: PoolTelemetry
) -> None:
    """An async server-side cursor is one query for all its steps."""
    async with async_pool.connection() as connection, connection.transaction():
        await connection.execute(FILL)
        async with connection.cursor(name="here") as cursor:
            await cursor.execute("SELECT id FROM people ORDER BY id")
            assert [row async for row in cursor][-1] == (119,)
            await cursor.execute("SELECT id FROM people WHERE id < %s ORDER BY id", (20,))
            assert await cursor.fetchone() == (0,)
            assert len(await cursor.fetchmany(5)) == 5
            assert len(await cursor.fetchall()) == 14
            assert await cursor.fetchone() is None
    assert telemetry.names == ["INSERT people", "SELECT people", "SELECT people"]
    assert telemetry.rows == [120, 120, 20]
    telemetry.agree()


def test_cursors_that_are_not_exhausted(pool: ConnectionPool, telemetry: PoolTelemetry) -> None:
    """A cursor or stream that is not exhausted ends with its transaction, its generator or its checkout."""
    with pool.connection() as connection:
        with connection.transaction():
            connection.execute(FILL)
            left = connection.cursor(name="one").execute("SELECT id FROM people")
            rows_left = iter(left)
            next(rows_left)
            assert len(telemetry.spans) == 1
        assert telemetry.rows == [120, 1]
        left.close()
        with closing(connection.cursor().stream("SELECT id FROM people")) as rows:  # type: ignore[type-var]
            next(rows)
            assert connection.pgconn.transaction_status == TransactionStatus.ACTIVE
        assert telemetry.rows == [120, 1, 1]
        held = connection.cursor(name="two", withhold=True).execute("SELECT id FROM people")
    assert telemetry.rows == [120, 1, 1, 0]
    held.close()
    telemetry.agree()


async def test_async_streams_that_are_not_exhausted(async_pool: AsyncConnectionPool, telemetry: PoolTelemetry) -> None:
    """An async stream that is not exhausted ends with its generator."""
    async with async_pool.connection() as connection:
        rows = connection.cursor().stream("SELECT generate_series(1, 9)")
        assert await anext(rows) == (1,)
        await rows.aclose()  # type: ignore[attr-defined]
    assert telemetry.rows == [1]
    telemetry.agree()


def test_server_side_cursors_that_fail(pool: ConnectionPool, telemetry: PoolTelemetry) -> None:
    """A server-side cursor that fails at its start or later is a failed query."""
    with pool.connection() as connection:
        with connection.cursor(name="one") as cursor, pytest.raises(psycopg.errors.SyntaxError):
            cursor.execute("nonsense")
        two = connection.cursor(name="two")
        with pytest.raises(psycopg.errors.DivisionByZero), connection.transaction():
            two.execute(DIVIDE).fetchall()
        two.close()
    assert [span.status.status_code.name for span in telemetry.spans] == ["ERROR"] * 2
    telemetry.agree()


def test_pipelines(pool: ConnectionPool, telemetry: PoolTelemetry) -> None:
    """In a pipeline each statement is one query."""
    with pool.connection() as connection, connection.pipeline():
        cursors = [connection.execute("SELECT 1"), connection.execute("SELECT 2")]
        assert [cursor.fetchone() for cursor in cursors] == [(1,), (2,)]
    assert telemetry.queries == 2
    telemetry.agree()


def test_cursors_of_the_user(pool: ConnectionPool, telemetry: PoolTelemetry) -> None:
    """Cursors of a user's class stay of that class; objects that are not psycopg's cursors are not measured."""

    class Own(psycopg.ClientCursor[Any]):
        """A cursor with attributes of its own."""

        mine = 7

    class Strange:
        """No cursor."""

        def __init__(self, *_: object, **__: object) -> None:
            """Take anything."""

    with pool.connection() as connection:
        connection.cursor_factory = Own
        cursor = connection.execute("SELECT %s", [1])
        assert (isinstance(cursor, Own), getattr(cursor, "mine", 0), cursor.fetchone()) == (True, 7, (1,))
        vars(connection)["cursor_factory"] = Strange
        strange: object = connection.cursor()
        assert type(strange) is Strange
    assert telemetry.queries == 1


# Pools


def gauges(telemetry: PoolTelemetry) -> dict[str, float | None]:
    """Return the gauges of the pool `main`."""
    names = ("active", "idle", "max", "waiting")
    return {name: telemetry.seen.sample(f"db_connections_{name}", pool="main") for name in names}


def test_pool_gauges_and_waits(pool: ConnectionPool, telemetry: PoolTelemetry) -> None:
    """The state of the pool is read at the scrape; each connection wait is a sample."""
    pool.wait(30)
    assert gauges(telemetry) == {"active": 0, "idle": 1, "max": 2, "waiting": 0}
    with ThreadPoolExecutor(1) as executor:
        with pool.connection(), pool.connection():
            waiter = executor.submit(pool.getconn)
            while not pool.get_stats()["requests_waiting"]:
                pass
            assert gauges(telemetry) == {"active": 2, "idle": 0, "max": 2, "waiting": 1}
            with pytest.raises(PoolTimeout):
                pool.getconn(timeout=0.01)
        pool.putconn(waiter.result())
    assert gauges(telemetry) == {"active": 0, "idle": 2, "max": 2, "waiting": 0}
    assert telemetry.seen.sample("db_connection_wait_seconds_count", pool="main") == 4  # the one in vain, too
    assert telemetry.events("main") == {"timeout": 1}
    telemetry.agree()


async def test_async_pool_gauges_and_waits(async_pool: AsyncConnectionPool, telemetry: PoolTelemetry) -> None:
    """The state and the waits of an async pool."""
    await async_pool.wait(30)
    async with async_pool.connection(), async_pool.connection():
        assert gauges(telemetry) == {"active": 2, "idle": 0, "max": 2, "waiting": 0}
        with pytest.raises(PoolTimeout):
            await async_pool.getconn(timeout=0.01)
    assert telemetry.seen.sample("db_connection_wait_seconds_count", pool="main") == 3
    assert telemetry.events("main") == {"timeout": 1}


def test_a_database_that_is_down(telemetry: PoolTelemetry) -> None:
    """A failure to get a connection is a wait and the event `timeout` or `error`; no connection is in use."""
    url = f"postgresql://ann@{unused_address()}/shop"
    pool = ConnectionPool(url, min_size=2, open=False, name="main", reconnect_timeout=0)
    instrument_pool(telemetry.observe.db, pool, internal_errors=telemetry.observe.internal_errors)
    assert gauges(telemetry) == {"active": 0, "idle": 0, "max": 2, "waiting": 0}
    with pytest.raises(PoolClosed):
        pool.getconn()
    with pool, pytest.raises(PoolTimeout):
        pool.getconn(timeout=0.02)
    assert gauges(telemetry) == {"active": 0, "idle": 0, "max": 2, "waiting": 0}
    assert telemetry.events("main") == {"error": 1, "timeout": 1}
    with NullConnectionPool(url, open=True, name="null") as null:
        instrument_pool(telemetry.observe.db, null, internal_errors=telemetry.observe.internal_errors)
        with pytest.raises(psycopg.OperationalError, match="refused"):
            null.getconn()
    assert telemetry.events("null") == {"error": 1}
    waits = telemetry.seen.samples("db_connection_wait_seconds_count")
    assert waits == {(("pool", "main"),): 2, (("pool", "null"),): 1}
    assert telemetry.spans == []


async def test_an_async_pool_whose_database_is_down(telemetry: PoolTelemetry) -> None:
    """Failures to get a connection of an async pool."""
    pool = AsyncConnectionPool(f"postgresql://ann@{unused_address()}/shop", min_size=2, open=False, name="main")
    instrument_pool(telemetry.observe.db, pool, internal_errors=telemetry.observe.internal_errors)
    with pytest.raises(PoolClosed):
        await pool.getconn()
    async with pool:
        with pytest.raises(PoolTimeout):
            await pool.getconn(timeout=0.02)
    assert gauges(telemetry) == {"active": 0, "idle": 0, "max": 2, "waiting": 0}
    assert telemetry.events("main") == {"error": 1, "timeout": 1}
    assert telemetry.seen.sample("db_connection_wait_seconds_count", pool="main") == 2


def test_pool_that_keeps_nothing(url: str, telemetry: PoolTelemetry) -> None:
    """A `NullConnectionPool` is measured; without a limit its maximum is infinite."""
    with NullConnectionPool(url, open=True, name="main") as pool:
        instrument_pool(telemetry.observe.db, pool, internal_errors=telemetry.observe.internal_errors)
        with pool.connection() as connection:
            connection.execute("SELECT 1")
            assert gauges(telemetry) == {"active": 1, "idle": 0, "max": float("inf"), "waiting": 0}
    assert telemetry.queries == 1


def test_many_threads(url: str, telemetry: PoolTelemetry) -> None:
    """Queries of concurrent threads have their own caller's span as parent."""
    with ConnectionPool(url, min_size=4, max_size=4, open=True, name="main") as pool:
        instrument_pool(telemetry.observe.db, pool, internal_errors=telemetry.observe.internal_errors)

        def work(number: int) -> tuple[int, int]:
            with telemetry.observe.tracing.span(f"caller {number}") as span, pool.connection() as connection:
                connection.execute(f"SELECT {number} AS n{number}".encode())
                with connection.cursor(name="here") as cursor:
                    assert list(cursor.execute("SELECT 1 WHERE 1 = 1")) == [(1,)]
                return number, span.get_span_context().span_id

        with ThreadPoolExecutor(8) as executor:
            callers = dict(executor.map(work, range(40)))
    parents = {
        (span.attributes or {})["db.query.text"]: span.parent.span_id
        for span in telemetry.spans
        if span.parent and "WHERE" not in str(span.attributes)
    }
    assert parents == {f"SELECT ? AS n{number}": span for number, span in callers.items()}
    assert (telemetry.queries, telemetry.events("main")) == (80, {"begin": 40, "commit": 40})
    telemetry.agree()


def test_a_running_pool(url: str, telemetry: PoolTelemetry) -> None:
    """A running pool is instrumented once; after the undo, all classes are restored, also of connections in use."""

    class Own(psycopg.Connection[Any]):
        """A connection of the user's."""

    with ConnectionPool(url, min_size=2, max_size=2, open=True, connection_class=Own, name="main") as pool:
        look = repr(pool)
        undo = instrument_pool(telemetry.observe.db, pool, internal_errors=telemetry.observe.internal_errors)
        again = instrument_pool(telemetry.observe.db, pool, internal_errors=telemetry.observe.internal_errors)
        assert (repr(pool), isinstance(pool, ConnectionPool), type(pool) is ConnectionPool) == (look, True, False)
        with pool.connection() as connection:
            assert isinstance(connection, Own)
            connection.execute("SELECT 1")
            again()
            connection.execute("SELECT 1")
            undo()
            undo()
            connection.execute("SELECT 1")
            assert list(connection.cursor().stream("SELECT 1")) == [(1,)]
        assert type(pool) is ConnectionPool
        with pool.connection() as one, pool.connection() as two:
            one.execute("SELECT 1")
            two.execute("SELECT 1")
        assert (telemetry.queries, telemetry.events("main")) == (2, {"begin": 1})
        assert telemetry.seen.samples("db_connections_max") == {}
        instrument_pool(telemetry.observe.db, pool, internal_errors=telemetry.observe.internal_errors)
        with pool.connection() as one, pool.connection() as two:
            one.execute("SELECT 1")
            two.execute("SELECT 1")
            assert type(one).__mro__.count(Own) == 1
        assert {type(connection) for connection in pool._pool} == {Own}
        assert telemetry.queries == 4
    telemetry.agree()
