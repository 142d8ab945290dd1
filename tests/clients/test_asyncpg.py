"""Instrumented asyncpg pools, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import io
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import asyncpg  # type: ignore[import-untyped]
import pytest
from injection import failing
from pools import SECRET, PoolTelemetry, running_postgresql, unused_address

from fastapi_observe.clients.database import pools
from fastapi_observe.clients.database.asyncpg import instrument_pool
from fastapi_observe.clients.database.statements import transaction_event

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
async def pool(url: str, telemetry: PoolTelemetry) -> AsyncIterator[asyncpg.Pool]:
    """Yield a pool that was instrumented before it was started, and a table without rows."""
    pool = asyncpg.create_pool(url, min_size=0, max_size=2)
    instrument_pool(telemetry.observe.db, pool, pool_name="main", internal_errors=telemetry.observe.internal_errors)
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as bare:
        await bare.execute("DROP TABLE IF EXISTS people; CREATE TABLE people (id int, email text UNIQUE)")
    async with pool:
        yield pool


async def filled(pool: asyncpg.Pool, count: int = 120) -> None:
    """Put rows into the table."""
    await pool.executemany("INSERT INTO people VALUES ($1, $2)", [(number, f"{number}") for number in range(count)])


# What is measured


async def test_each_method_is_one_query(pool: asyncpg.Pool, telemetry: PoolTelemetry) -> None:
    """Every method of pool and connection that sends a statement is a span, a count, a duration and a line."""
    await filled(pool, 3)
    assert await pool.execute("UPDATE people SET id = id + 0 WHERE id < 2") == "UPDATE 2"
    assert await pool.execute("UPDATE people SET id = id + $1", 0) == "UPDATE 3"
    assert await pool.execute("SET search_path TO public") == "SET"
    assert len(await pool.fetch("SELECT * FROM people")) == 3
    assert await pool.fetchval(query="SELECT id FROM people WHERE id = 1", column=0) == 1
    assert (await pool.fetchrow("SELECT id FROM people WHERE id = $1", 2))["id"] == 2
    assert await pool.fetchrow("SELECT id FROM people WHERE id = $1", 9) is None
    assert len(await pool.fetchmany("SELECT id FROM people WHERE id = $1", [(1,), (2,)])) == 2
    await pool.executemany("SELECT $1::int", ((number,) for number in range(2)))
    assert telemetry.names == [
        "INSERT people",
        *["UPDATE people"] * 2,
        "SET",
        *["SELECT people"] * 5,
        "SELECT",
    ]
    assert telemetry.rows == [None, 2, 3, None, 3, None, 1, 0, 2, None]
    batches = [(span.attributes or {}).get("db.operation.batch.size") for span in telemetry.spans]
    assert batches == [3, *[None] * 7, 2, None]
    assert telemetry.seen.sample("db_queries_total", operation="SELECT", table="people") == 5
    telemetry.agree()


async def test_copy_is_one_query(pool: asyncpg.Pool, telemetry: PoolTelemetry) -> None:
    """Each way to copy is one query; the values of a copied query are not shown."""
    file = io.BytesIO(b"1\ta\n2\tb\n")
    assert await pool.copy_to_table("people", source=file) == "COPY 2"
    assert await pool.copy_records_to_table("people", records=[(3, "c")], schema_name="public") == "COPY 1"
    assert await pool.copy_from_table("people", output=io.BytesIO()) == "COPY 3"
    query = "SELECT * FROM people WHERE email = $1"
    assert await pool.copy_from_query(query, SECRET, output=io.BytesIO()) == "COPY 0"
    assert telemetry.names == ["COPY people", "COPY public.people", "COPY people", "COPY people"]
    assert telemetry.rows == [2, 1, 3, 0]
    assert [(span.attributes or {})["db.query.text"] for span in telemetry.spans] == [
        'COPY "people" FROM STDIN',
        'COPY "public"."people" FROM STDIN',
        'COPY "people" TO STDOUT',
        f"COPY ({query}) TO STDOUT",
    ]
    assert SECRET not in telemetry.everything()
    telemetry.agree()


async def test_prepared_statements(pool: asyncpg.Pool, telemetry: PoolTelemetry) -> None:
    """To prepare a statement is one query, and each execution of it is another."""
    await filled(pool, 3)
    async with pool.acquire() as connection:
        prepared = await connection.prepare("SELECT id FROM people WHERE id >= $1")
        assert isinstance(prepared, asyncpg.prepared_stmt.PreparedStatement)
        assert len(await prepared.fetch(1)) == 2
        assert await prepared.fetchval(2) == 2
        assert await prepared.fetchrow(7) is None
        assert len(await prepared.fetchmany([(0,), (2,)])) == 4
        await prepared.executemany([(1,), (2,), (3,)])
        async with connection.transaction():
            assert [row["id"] async for row in prepared.cursor(0)] == [0, 1, 2]
    assert telemetry.names == ["INSERT people", "PREPARE", *["SELECT people"] * 6]
    assert telemetry.rows == [None, None, 2, None, 0, 4, None, 3]
    text = (telemetry.spans[1].attributes or {})["db.query.text"]
    assert text == "PREPARE statement AS SELECT id FROM people WHERE id >= $1"
    telemetry.agree()


async def test_one_span_inside_a_query(pool: asyncpg.Pool, telemetry: PoolTelemetry) -> None:
    """Cursors inside `db.query` are part of it too: one span, which adopts the first statement."""
    async with telemetry.observe.db.query("SELECT", table="people"):
        await pool.fetch("SELECT * FROM people WHERE id = 7")
        async with pool.acquire() as connection, connection.transaction():
            assert [row async for row in aiter(connection.cursor("SELECT 1"))] != []
            cursor = await connection.cursor("SELECT 2")
            assert await cursor.fetchrow() is not None
            assert await cursor.forward(1) == 0
    (span,) = telemetry.spans
    assert (span.attributes or {})["db.query.text"] == "SELECT * FROM people WHERE id = ?"
    assert telemetry.events("main") == {"begin": 1, "commit": 1}
    telemetry.agree()


# Failures


async def test_timeouts(pool: asyncpg.Pool, telemetry: PoolTelemetry) -> None:
    """A query has the outcome `timeout` if asyncpg or PostgreSQL ends it for its duration."""
    with pytest.raises(TimeoutError):
        await pool.fetch("SELECT pg_sleep(5)", timeout=0.02)
    async with pool.acquire() as connection:
        await connection.execute("SET statement_timeout = 20")
        with pytest.raises(asyncpg.QueryCanceledError):
            await connection.fetch("SELECT pg_sleep(6)")
    lines = [line for line in telemetry.seen.lines if line["logger"] == "fastapi_observe.operation"]
    assert [line["fields"]["outcome"] for line in lines] == ["timeout", "ok", "timeout"]
    assert await pool.fetchval("SELECT 1") == 1
    telemetry.agree()


async def test_misuse(pool: asyncpg.Pool) -> None:
    """Asyncpg's errors for misuse are unchanged."""
    async with pool.acquire() as connection:
        pass
    await pool.release(connection)
    with pytest.raises(asyncpg.InterfaceError, match=r"released back to the pool"):
        await connection.fetch("SELECT 1")
    with pytest.raises(asyncpg.InterfaceError, match="not a member of this pool"):
        await pool.release(5)
    async with pool.acquire() as connection:
        with pytest.raises(asyncpg.InterfaceError, match="prefetch argument can only"):
            await connection.cursor("SELECT 1", prefetch=3)
        with pytest.raises(TypeError):
            await connection.fetch()


async def test_internal_errors_around_connections(url: str, telemetry: PoolTelemetry) -> None:
    """A connection that cannot be observed works unobserved; a result that cannot be read is passed on."""
    faults: list[str] = []
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool:
        instrument_pool(telemetry.observe.db, pool, internal_errors=lambda site, _: faults.append(site))
        with failing("clients.database.asyncpg:_read_address"):
            assert await pool.fetchval("SELECT 1") == 1
        with failing(pools.subclass):
            assert await pool.fetchval("SELECT 1") == 1
        with failing("clients.database.asyncpg:_count_row"):
            assert await pool.fetchrow("SELECT 1") is not None
        with failing("clients.database.asyncpg:_is_in_transaction"):
            assert await pool.fetchval("SELECT 1") == 1
    assert faults == ["pool.checked_out", "pool.observe", "pool.end_query", "pool.checked_in"]
    assert [(span.attributes or {})["db.query.text"] for span in telemetry.spans] == ["SELECT ?", "SELECT ?"]


# Transactions and cursors


async def test_transactions_are_counts(pool: asyncpg.Pool, telemetry: PoolTelemetry) -> None:
    """Transaction commands are counted and are not spans; so is the pool's rollback of an open transaction."""
    async with pool.acquire() as connection:
        async with connection.transaction(isolation="serializable"), connection.transaction():
            await connection.execute("SELECT 1")
        with pytest.raises(ZeroDivisionError):
            async with connection.transaction(), connection.transaction():
                raise ZeroDivisionError
        await connection.execute("start  transaction; ")
        await connection.execute("END")
        await connection.execute("BEGIN; SELECT 2; COMMIT")
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # asyncpg reports to it what is left open
    async with pool.acquire() as connection:
        await connection.execute("BEGIN")
    assert telemetry.events("main") == {
        "begin": 4,
        "commit": 2,
        "rollback": 2,
        "savepoint": 2,
        "release_savepoint": 1,
        "rollback_savepoint": 1,
    }
    assert [(span.attributes or {})["db.query.text"] for span in telemetry.spans] == [
        "SELECT ?",
        "BEGIN; SELECT ?; COMMIT",
    ]
    telemetry.agree()


@pytest.mark.parametrize(
    ("statement", "event"),
    [
        ("begin", "begin"),
        (b"COMMIT", "commit"),
        (" \n ROLLBACK WORK;\n", "rollback"),
        ("rollback  transaction to savepoint a", "rollback_savepoint"),
        ("ABORT", "rollback"),
        ("COMMIT PREPARED 'x'", None),
        ("BEGINNING", None),
        ("COMMIT; DROP TABLE people", None),
        ("BEGIN" + " " * 10_000, None),
        (" SELECT 1", None),
        ("", None),
        (None, None),
    ],
)
def test_commands(statement: object, event: str | None) -> None:
    """A statement is a transaction command only if it does nothing else."""
    assert transaction_event(statement) == event


async def test_a_failed_commit_is_not_counted(pool: asyncpg.Pool, telemetry: PoolTelemetry) -> None:
    """A command is counted after PostgreSQL has executed it."""
    async with pool.acquire() as connection:
        with pytest.raises(asyncpg.PostgresSyntaxError):
            await connection.execute("COMMIT nonsense")
    assert telemetry.events("main") == {}


async def test_what_the_pool_does_is_not_measured(url: str, telemetry: PoolTelemetry) -> None:
    """Queries of `init`, `setup` and `reset`, and the pool's own reset, are not measured as queries."""
    done: list[str] = []

    def step(name: str) -> Callable[[Any], Any]:
        async def call(connection: Any) -> None:
            done.append(name)
            await connection.execute("SELECT 1")

        return call

    options = {"init": step("init"), "setup": step("setup"), "reset": step("reset")}
    async with asyncpg.create_pool(url, min_size=1, max_size=1, **options) as pool:
        instrument_pool(telemetry.observe.db, pool, internal_errors=telemetry.observe.internal_errors)
        await pool.execute("SELECT 2")
        await pool.execute("SELECT 3")
    assert done == ["init", "setup", "reset", "setup", "reset"]
    assert len(telemetry.spans) == 2
    assert telemetry.events("asyncpg") == {}
    telemetry.agree()


async def test_cursors_are_one_query(pool: asyncpg.Pool, telemetry: PoolTelemetry) -> None:
    """A cursor is one query for all its rows and round trips; code between its steps is not inside it."""
    await filled(pool)
    async with pool.acquire() as connection, connection.transaction():
        rows = connection.cursor("SELECT id FROM people", prefetch=7)
        seen = 0
        async for row in rows:
            seen += 1
            if row["id"] == 60:
                assert await pool.fetchval("SELECT 1") == 1
        cursor = await connection.cursor("SELECT id FROM people WHERE id < $1", 20)
        assert len(await cursor.fetch(5)) == 5
        assert await cursor.forward(3) == 3
        assert (await cursor.fetchrow())["id"] == 8
        assert len(await cursor.fetch(50)) == 11
        assert await cursor.fetchrow() is None
        assert "asyncpg.Cursor" in repr(cursor)
    assert seen == 120
    assert telemetry.names == ["INSERT people", "SELECT", "SELECT people", "SELECT people"]
    assert telemetry.rows == [None, None, 120, 17]
    assert {span.parent for span in telemetry.spans} == {None}
    telemetry.agree()


async def test_cursors_that_are_not_exhausted(pool: asyncpg.Pool, telemetry: PoolTelemetry) -> None:
    """A cursor that is not exhausted ends with its transaction, or when its connection is checked in."""
    await filled(pool)
    async with pool.acquire() as connection:
        async with connection.transaction():
            async for _ in connection.cursor("SELECT id FROM people"):
                break
            await (await connection.cursor("SELECT email FROM people")).fetch(4)
            assert len(telemetry.spans) == 1
        assert telemetry.rows == [None, 1, 4]
        await connection.transaction().start()
        cursor = await connection.cursor("SELECT id FROM people")
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    assert telemetry.rows == [None, 1, 4, 0]
    with pytest.raises(asyncpg.InterfaceError, match="underlying connection has been released"):
        await cursor.fetch(1)
    telemetry.agree()


async def test_cursors_that_fail(pool: asyncpg.Pool, telemetry: PoolTelemetry) -> None:
    """A cursor that fails at its start or later is a failed query."""
    async with pool.acquire() as connection:
        with pytest.raises(asyncpg.NoActiveSQLTransactionError):
            async for _ in connection.cursor("SELECT 1"):
                pass
        with pytest.raises(asyncpg.PostgresSyntaxError):
            await connection.cursor("nonsense")
        transaction = connection.transaction()
        await transaction.start()
        cursor = await connection.cursor("SELECT 1 / (3 - n) FROM generate_series(1, 9) AS n")
        assert len(await cursor.fetch(2)) == 2
        with pytest.raises(asyncpg.DivisionByZeroError):
            await cursor.fetch(2)
        await transaction.rollback()
    assert [span.status.status_code.name for span in telemetry.spans] == ["ERROR"] * 3
    telemetry.agree()


# Pools


async def test_pool_gauges_and_waits(pool: asyncpg.Pool, telemetry: PoolTelemetry) -> None:
    """The state of the pool is read at the scrape; each connection wait is a sample."""

    def gauges() -> dict[str, float | None]:
        names = ("active", "idle", "max", "waiting")
        return {name: telemetry.seen.sample(f"db_connections_{name}", pool="main") for name in names}

    assert gauges() == {"active": 0, "idle": 0, "max": 2, "waiting": 0}
    async with pool.acquire(), pool.acquire():
        task = asyncio.create_task(pool.fetchval("SELECT 1"))
        await asyncio.sleep(0)
        assert gauges() == {"active": 2, "idle": 0, "max": 2, "waiting": 1}
        with pytest.raises(TimeoutError):
            async with pool.acquire(timeout=0.01):
                pass
    assert await task == 1
    assert gauges() == {"active": 0, "idle": 2, "max": 2, "waiting": 0}
    assert telemetry.seen.sample("db_connection_wait_seconds_count", pool="main") == 4  # the one in vain, too
    assert telemetry.seen.samples("db_connections_overflow") == {}
    assert telemetry.events("main") == {"timeout": 1}
    telemetry.agree()


async def test_a_database_that_is_down(telemetry: PoolTelemetry) -> None:
    """A failure to get a connection is a wait and the event `error`; a cancelled caller is neither."""
    async with asyncpg.create_pool(f"postgresql://ann@{unused_address()}/shop", min_size=0, max_size=1) as pool:
        instrument_pool(telemetry.observe.db, pool, internal_errors=telemetry.observe.internal_errors)
        with pytest.raises(ConnectionRefusedError):
            await pool.fetch("SELECT 1")
        task = asyncio.create_task(pool.fetch("SELECT 1"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert telemetry.events("asyncpg") == {"error": 1}
    assert telemetry.seen.sample("db_connection_wait_seconds_count", pool="asyncpg") == 1
    assert telemetry.seen.sample("db_connections_waiting", pool="asyncpg") == 0
    assert telemetry.spans == []


async def test_a_running_pool(url: str, telemetry: PoolTelemetry) -> None:
    """A running pool is instrumented once; after the undo, all classes are restored, also of connections in use."""

    class Own(asyncpg.Connection):  # type: ignore[misc]
        """A connection of the user's."""

        _observed = 5

    async with asyncpg.create_pool(url, min_size=2, max_size=2, connection_class=Own) as pool:
        kind, look = type(pool), repr(type(pool))
        undo = instrument_pool(telemetry.observe.db, pool, internal_errors=telemetry.observe.internal_errors)
        again = instrument_pool(telemetry.observe.db, pool, internal_errors=telemetry.observe.internal_errors)
        assert (isinstance(pool, kind), repr(type(pool)), type(pool) is kind) == (True, look, False)
        async with pool.acquire() as connection:
            assert isinstance(connection._con, Own)
            assert connection._observed == 5
            await connection.execute("SELECT 1")
            again()
            await connection.execute("SELECT 1")
            undo()
            undo()
            await connection.execute("SELECT 1")
            async with connection.transaction():
                assert [row async for row in connection.cursor("SELECT 1")] != []
        assert type(pool) is kind
        async with pool.acquire() as one, pool.acquire() as two:
            assert await one.fetchval("SELECT 1") == await two.fetchval("SELECT 1")
        assert len(telemetry.spans) == 2
        assert telemetry.seen.samples("db_connections_max") == {}
        undo = instrument_pool(telemetry.observe.db, pool, internal_errors=telemetry.observe.internal_errors)
        async with pool.acquire() as one, pool.acquire() as two:
            await one.execute("SELECT 1")
            await two.execute("SELECT 1")
            assert type(one._con).__mro__.count(Own) == 1
        assert {type(holder._con) for holder in pool._holders} == {Own}
        assert len(telemetry.spans) == 4
    telemetry.agree()


async def test_undo_while_a_caller_waits(url: str, telemetry: PoolTelemetry) -> None:
    """A caller that waits for a connection during the undo gets it."""
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool:
        undo = instrument_pool(telemetry.observe.db, pool, internal_errors=telemetry.observe.internal_errors)
        async with pool.acquire():
            task = asyncio.create_task(pool.fetchval("SELECT 1"))
            await asyncio.sleep(0)
            undo()
        assert await task == 1
    assert telemetry.spans == []


async def test_undo_while_a_caller_fails(telemetry: PoolTelemetry) -> None:
    """A failure to get a connection after the undo is not reported."""
    async with asyncpg.create_pool(f"postgresql://ann@{unused_address()}/shop", min_size=0, max_size=1) as pool:
        undo = instrument_pool(telemetry.observe.db, pool, internal_errors=telemetry.observe.internal_errors)
        task = asyncio.create_task(pool.fetchval("SELECT 1"))
        await asyncio.sleep(0)
        undo()
        with pytest.raises(ConnectionRefusedError):
            await task
    assert (telemetry.events("asyncpg"), telemetry.observe.internal_errors.counts) == ({}, {})


async def test_undo_while_a_query_runs(url: str, telemetry: PoolTelemetry) -> None:
    """A query that runs during the undo is reported; internal errors after it are not."""
    async with AsyncExitStack() as stack, asyncpg.create_pool(url, min_size=1, max_size=1) as pool:
        undo = instrument_pool(telemetry.observe.db, pool, internal_errors=telemetry.observe.internal_errors)
        async with pool.acquire() as connection:
            task = asyncio.create_task(connection.fetch("SELECT 1"))
            await asyncio.sleep(0)
            undo()
            assert len(await task) == 1
            assert telemetry.rows == [1]
            undo = instrument_pool(telemetry.observe.db, pool, internal_errors=telemetry.observe.internal_errors)
        async with pool.acquire() as connection:
            stack.enter_context(failing("clients.database.asyncpg:_count_row"))
            task = asyncio.create_task(connection.fetchrow("SELECT 1"))
            await asyncio.sleep(0)
            undo()
            assert await task is not None
    assert telemetry.observe.internal_errors.counts == {}
