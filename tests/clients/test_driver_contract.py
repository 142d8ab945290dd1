"""What holds for the pools of every database driver: asyncpg, psycopg and psycopg async, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from opentelemetry.trace import StatusCode
from pools import PASSWORD, SECRET, Broken, PoolTelemetry, running_postgresql, tcp_to
from starlette.applications import Starlette
from starlette.testclient import TestClient
from tools import needs_package

from fastapi_observe.clients.database import pools
from fastapi_observe.clients.database.pools import instrument_pool
from fastapi_observe.internal.opentelemetry import OTEL_CONTEXT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from conftest import Seen


WAITS = "db_connection_wait_seconds_count"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Yield the URL of a real PostgreSQL."""
    with running_postgresql() as found:
        yield found


@pytest.fixture
def telemetry(observed: Callable[..., Seen]) -> PoolTelemetry:
    """Install on an app."""
    return PoolTelemetry(observed)


async def result(value: Any) -> Any:
    """Await what an async driver returns; return what a sync driver returns."""
    return await value if hasattr(value, "__await__") else value


class Driver:
    """One driver, behind the interface that the tests use: statements have one parameter at most, `$1`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.label = name.partition(" ")[0]
        self.is_asyncpg = name.startswith("asyncpg")
        needs_package("asyncpg" if self.is_asyncpg else "psycopg_pool")
        self.module = import_module("asyncpg" if self.is_asyncpg else "psycopg")
        self.errors = self.module if self.is_asyncpg else self.module.errors
        self.parameter = "$1" if self.is_asyncpg else "%s"
        if self.is_asyncpg:
            self.pool_class = self.module.Pool
        else:
            package = import_module("psycopg_pool")
            self.pool_class = package.AsyncConnectionPool if name.endswith("async") else package.ConnectionPool

    @asynccontextmanager
    async def pool(self, url: str, max_size: int = 1, kind: type | None = None) -> AsyncIterator[Any]:
        """Yield an open pool, of a subclass if one is given, whose connections are in autocommit mode."""
        if self.is_asyncpg:
            pool = self.module.create_pool(url, min_size=1, max_size=max_size)
            pool.__class__ = kind or self.pool_class
            async with pool:
                yield pool
            return
        options: dict[str, Any] = {"min_size": 1, "max_size": max_size, "open": False, "kwargs": {"autocommit": True}}
        pool = (kind or self.pool_class)(url, name=self.label, **options)
        await result(pool.open(wait=True))
        try:
            yield pool
        finally:
            await result(pool.close())

    @asynccontextmanager
    async def connection(self, pool: Any) -> AsyncIterator[Any]:
        """Check a connection out."""
        if self.is_asyncpg:
            async with pool.acquire() as connection:
                yield connection
            return
        connection = await result(pool.getconn())
        try:
            yield connection
        finally:
            await result(pool.putconn(connection))

    @asynccontextmanager
    async def transaction(self, connection: Any) -> AsyncIterator[None]:
        """Run a transaction, or a savepoint."""
        block = connection.transaction()
        if hasattr(block, "__aenter__"):
            async with block:
                yield
        else:
            with block:
                yield

    async def fetch(self, connection: Any, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Execute a statement, and return its rows."""
        if self.is_asyncpg:
            return [tuple(row) for row in await connection.fetch(statement, *parameters)]
        text = statement.replace("$1", "%s").encode()
        cursor = await result(connection.execute(text, parameters or None))
        return list(await result(cursor.fetchall())) if cursor.description else []

    async def query(self, pool: Any, statement: str = "SELECT 1", *parameters: object) -> list[tuple[Any, ...]]:
        """Execute a statement on a connection of its own."""
        async with self.connection(pool) as connection:
            return await self.fetch(connection, statement, *parameters)

    @asynccontextmanager
    async def measured(self, url: str, telemetry: PoolTelemetry, max_size: int = 1) -> AsyncIterator[Any]:
        """Yield an open pool that the app measures."""
        async with self.pool(url, max_size) as pool:
            telemetry.observe.instrument_pool(pool)
            yield pool


@pytest.fixture(params=["asyncpg", "psycopg", "psycopg async"])
def driver(request: pytest.FixtureRequest) -> Driver:
    """Return each driver."""
    return Driver(request.param)


# What is measured


@pytest.mark.parametrize("tcp", [False, True])
async def test_attributes(driver: Driver, url: str, telemetry: PoolTelemetry, *, tcp: bool) -> None:
    """A span names server, database and pool, and never the user or a value."""
    with tcp_to(url) as over_tcp:
        async with driver.measured(over_tcp if tcp else url, telemetry) as pool:
            await driver.query(pool, "SELECT 1 WHERE 'a' <> $1", SECRET)
    (span,) = telemetry.spans
    location: dict[str, Any] = {"server.address": url.rpartition("host=")[2]}
    if tcp:
        location = {"server.address": "127.0.0.1", "server.port": int(over_tcp.rpartition(":")[2].partition("/")[0])}
    assert span.attributes == {
        "db.system.name": "postgresql",
        "db.operation.name": "SELECT",
        "db.query.summary": "SELECT",
        "db.query.text": f"SELECT ? WHERE ? <> {driver.parameter}",
        "db.namespace": url.partition("?")[0].rpartition("/")[2],
        "db.client.connection.pool.name": driver.label,
        "db.response.returned_rows": 1,
        **location,
    }
    everything = telemetry.everything()
    assert SECRET not in everything
    assert PASSWORD not in everything


async def test_part_of_a_request(driver: Driver, url: str, observed: Callable[..., Seen]) -> None:
    """Queries of an endpoint are children of its server span, and count in its line."""
    app = FastAPI()
    telemetry = PoolTelemetry(lambda _: observed(app))

    @app.get("/")
    async def endpoint() -> int:
        async with driver.measured(url, telemetry) as pool:
            await driver.query(pool)
            return int((await driver.query(pool, "SELECT 2"))[0][0])

    with TestClient(app) as client:
        assert client.get("/").json() == 2
    (server,) = telemetry.seen.server_spans
    assert server.context is not None
    assert [span.parent.span_id for span in telemetry.spans if span.parent] == [server.context.span_id] * 2
    (line,) = telemetry.seen.request_lines
    assert line["fields"]["db_count"] == 2


async def test_one_span_inside_a_query(driver: Driver, url: str, telemetry: PoolTelemetry) -> None:
    """Statements inside `db.query` are part of it: one span, which adopts the first statement."""
    async with (
        driver.measured(url, telemetry) as pool,
        telemetry.observe.db.query("SELECT", table="people"),
        driver.connection(pool) as connection,
    ):
        await driver.fetch(connection, "SELECT 1 AS id WHERE 7 = 7")
        async with driver.transaction(connection):
            await driver.fetch(connection, "SELECT 2")
    (span,) = telemetry.spans
    assert (span.attributes or {})["db.query.text"] == "SELECT ? AS id WHERE ? = ?"
    assert telemetry.events(driver.label) == {"begin": 1, "commit": 1}
    telemetry.agree()


async def test_transactions_are_counts(driver: Driver, url: str, telemetry: PoolTelemetry) -> None:
    """Transactions and savepoints are counted and are not spans, also as commands of the user."""
    async with driver.measured(url, telemetry) as pool, driver.connection(pool) as connection:
        async with driver.transaction(connection), driver.transaction(connection):
            await driver.fetch(connection, "SELECT 1")
        with pytest.raises(ZeroDivisionError):
            async with driver.transaction(connection), driver.transaction(connection):
                raise ZeroDivisionError
        await result(connection.execute("start  transaction; "))
        await result(connection.execute("END"))
    events = telemetry.events(driver.label)
    events.pop("release_savepoint")  # psycopg releases after a rollback too
    assert events == {"begin": 3, "commit": 2, "rollback": 1, "savepoint": 2, "rollback_savepoint": 1}
    assert telemetry.queries == 1
    telemetry.agree()


async def test_many_at_once(driver: Driver, url: str, telemetry: PoolTelemetry) -> None:
    """Concurrent queries have their own caller's span as parent."""
    async with driver.measured(url, telemetry, max_size=20) as pool:

        async def work(number: int) -> tuple[int, int]:
            with telemetry.observe.tracing.span(f"caller {number}") as span:
                async with driver.connection(pool) as connection, driver.transaction(connection):
                    await driver.fetch(connection, "SELECT pg_sleep(0.01)")
                    await driver.fetch(connection, f"SELECT {number} AS n{number}")
                return number, span.get_span_context().span_id

        callers = dict(await asyncio.gather(*(work(number) for number in range(20))))
    parents = {
        (span.attributes or {})["db.query.text"]: span.parent.span_id
        for span in telemetry.spans
        if span.parent and "pg_sleep" not in str(span.attributes)
    }
    assert parents == {f"SELECT ? AS n{number}": span for number, span in callers.items()}
    assert telemetry.queries == 40
    assert telemetry.events(driver.label) == {"begin": 20, "commit": 20}
    telemetry.agree()


@pytest.mark.parametrize("off", ["tracing", "metrics", "logs"])
async def test_without_a_signal(driver: Driver, url: str, observed: Callable[..., Seen], off: str) -> None:
    """The other signals report if one is off."""
    telemetry = PoolTelemetry(observed, **{off: False})
    async with driver.measured(url, telemetry) as pool:
        await driver.query(pool)
    assert len(telemetry.spans) == (off != "tracing")
    lines = [line for line in telemetry.seen.lines if line["logger"] == "fastapi_observe.operation"]
    assert len(lines) == (off != "logs")
    if off != "metrics":
        assert (telemetry.queries, telemetry.seen.total(WAITS)) == (1, 1)
    assert telemetry.observe.internal_errors.counts == {}


# Failures


async def test_errors(driver: Driver, url: str, telemetry: PoolTelemetry) -> None:
    """An error reaches the caller as the driver raised it; its values are in no span, line or metric."""
    statements: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("INSERT INTO errors VALUES (1, $1)", (SECRET,)),
        (f"INSERT INTO errors VALUES (1, '{SECRET}')", ()),  # noqa: S608 - it is refused
        (f"SELECT '{SECRET}'::int", ()),
    )
    async with driver.measured(url, telemetry) as pool:
        await driver.query(pool, "DROP TABLE IF EXISTS errors")
        await driver.query(pool, "CREATE TABLE errors (id int, email text UNIQUE)")
        await driver.query(pool, *statements[0][:1], SECRET)
        for statement, parameters in statements:
            with pytest.raises(Exception, match=SECRET) as caught:
                await driver.query(pool, statement, *parameters)
            assert "fastapi_observe" not in str(caught.value.__context__)
            span = telemetry.spans[-1]
            name = f"{type(caught.value).__module__}.{type(caught.value).__qualname__}"
            assert (span.status.status_code, (span.attributes or {})["error.type"]) == (StatusCode.ERROR, name)
    assert SECRET not in telemetry.everything()
    telemetry.agree()


async def test_statements_that_are_cancelled(driver: Driver, url: str, telemetry: PoolTelemetry) -> None:
    """A statement timeout of the server is `timeout`; a statement that another client cancelled is `cancelled`."""
    kind = driver.errors.QueryCanceledError if driver.is_asyncpg else driver.errors.QueryCanceled
    async with driver.measured(url, telemetry) as pool, driver.connection(pool) as connection:
        with pytest.raises(kind):
            await driver.fetch(connection, "SELECT pg_cancel_backend(pg_backend_pid())")
        await driver.fetch(connection, "SET statement_timeout = 20")
        with pytest.raises(kind):
            await driver.fetch(connection, "SELECT pg_sleep(60)")
    lines = [line for line in telemetry.seen.lines if line["logger"] == "fastapi_observe.operation"]
    assert [line["fields"]["outcome"] for line in lines] == ["cancelled", "ok", "timeout"]
    telemetry.agree()


async def test_a_task_that_is_cancelled(driver: Driver, url: str, telemetry: PoolTelemetry) -> None:
    """A query whose task was cancelled is `cancelled`, and its connection goes back to the pool."""
    if driver.name == "psycopg":
        pytest.skip("a sync driver has no tasks")
    count = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(61)'"
    async with driver.measured(url, telemetry, max_size=2) as pool:
        task = asyncio.create_task(driver.query(pool, "SELECT pg_sleep(61)"))
        async with asyncio.timeout(30):
            while (await driver.query(pool, count))[0][0] == 0:
                pass
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.gather(*(driver.query(pool) for _ in range(4))) == [[(1,)]] * 4
    lines = [line for line in telemetry.seen.lines if line["logger"] == "fastapi_observe.operation"]
    assert [line["fields"]["outcome"] for line in lines if line["fields"]["outcome"] != "ok"] == ["cancelled"]
    telemetry.agree()


async def test_internal_errors_reach_nobody(driver: Driver, url: str) -> None:
    """Queries work if every part of the measurement fails, and each failure is reported."""
    broken = Broken()
    async with driver.pool(url) as pool:
        instrument_pool(broken, pool, internal_errors=broken.record)  # type: ignore[arg-type]
        async with driver.connection(pool) as connection, driver.transaction(connection):
            assert await driver.fetch(connection, "SELECT 1") == [(1,)]
    assert set(broken.sites) == {"pool.connection_wait", "pool.start_query", "pool.connection_event"}


# Pools


async def test_every_class_of_pool(driver: Driver, url: str, telemetry: PoolTelemetry) -> None:
    """A pool, also of a user's subclass, is measured once until the app is closed; then it is what it was."""
    members: dict[str, Any] = {"__slots__": ()} if driver.is_asyncpg else {}
    kinds = (driver.pool_class, type("Own", (driver.pool_class,), members))
    for number, kind in enumerate(kinds, 1):
        async with driver.pool(url, kind=kind) as pool:
            look = repr(type(pool))
            undo = instrument_pool(telemetry.observe.db, pool, internal_errors=telemetry.observe.internal_errors)
            telemetry.observe.instrument_pool(pool)
            assert (isinstance(pool, kind), repr(type(pool)), type(pool) is kind) == (True, look, False)
            await driver.query(pool)
            assert telemetry.queries == len(telemetry.spans) == number
            async with driver.connection(pool) as connection:
                undo()
                undo()
                await driver.fetch(connection, "SELECT 1")
            assert type(pool) is kind
            await driver.query(pool)
            assert telemetry.seen.samples("db_connections_max") == {}
    async with driver.measured(url, telemetry) as pool:
        telemetry.observe.close()
        assert type(pool) is driver.pool_class
        await driver.query(pool)
    assert telemetry.queries == 2
    telemetry.agree()


async def test_pools_with_one_name(driver: Driver, url: str, telemetry: PoolTelemetry) -> None:
    """Two pools with one name have labels of their own, the same on gauges, waits, events and spans."""
    labels = driver.label, f"{driver.label}-2"
    async with driver.pool(url) as one, driver.pool(url, max_size=2) as two:
        undo = [
            instrument_pool(telemetry.observe.db, pool, internal_errors=telemetry.observe.internal_errors)
            for pool in (one, two)
        ]
        for pool in (one, two):
            async with driver.connection(pool) as connection, driver.transaction(connection):
                await driver.fetch(connection, "SELECT 1")
        for size, label in enumerate(labels, 1):
            assert telemetry.seen.sample("db_connections_max", pool=label) == size
            assert telemetry.seen.sample(WAITS, pool=label) == 1
            assert telemetry.events(label) == {"begin": 1, "commit": 1}
        names = [(span.attributes or {})["db.client.connection.pool.name"] for span in telemetry.spans]
        assert names == [*labels]
        undo[1]()
        telemetry.observe.instrument_pool(two)
        assert telemetry.seen.samples("db_connections_max") == {
            (("pool", label),): size for size, label in enumerate(labels, 1)
        }
    telemetry.agree()


async def test_two_apps_on_one_pool(driver: Driver, url: str, observed: Callable[..., Seen]) -> None:
    """A query is reported to the app of its request, else to the first app, each under its own label."""
    apps = FastAPI(), FastAPI()
    first, second = (PoolTelemetry(lambda _, app=app: observed(app)) for app in apps)
    async with driver.pool(url) as pool:
        undo = instrument_pool(
            first.observe.db, pool, pool_name="shared", internal_errors=first.observe.internal_errors
        )
        second.observe.instrument_pool(pool)
        await in_request_of(second, apps[1], lambda: driver.query(pool))
        await in_request_of(first, apps[0], lambda: driver.query(pool))
        await driver.query(pool)
        third = FastAPI()
        await in_request_of(PoolTelemetry(lambda _: observed(third)), third, lambda: driver.query(pool))
        assert (first.queries, second.queries) == (3, 1)
        for telemetry, label in ((first, "shared"), (second, driver.label)):
            assert {(span.attributes or {})["db.client.connection.pool.name"] for span in telemetry.spans} == {label}
        undo()
        await driver.query(pool)
        assert (first.queries, second.queries) == (3, 2)
        assert second.seen.sample("db_connections_max", pool=driver.label) == 1


async def in_request_of(telemetry: PoolTelemetry, app: FastAPI, call: Callable[[], Awaitable[object]]) -> None:
    """Await `call` as if a request of an app made it."""

    async def receive() -> Any:
        raise AssertionError

    async def send(message: Any) -> None:
        pass

    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": [], "app": app}
    record = telemetry.observe.start_request(scope, receive, send)
    assert record.context is not None
    token = OTEL_CONTEXT.set(record.context)
    try:
        await call()
    finally:
        OTEL_CONTEXT.reset(token)


async def test_the_number_of_addresses_is_limited(
    driver: Driver, url: str, telemetry: PoolTelemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool that connects to ever new addresses names the first ones only."""
    monkeypatch.setattr(pools, "MAX_DATABASES", 0)
    async with driver.measured(url, telemetry) as pool:
        await driver.query(pool)
    assert "server.address" not in (telemetry.spans[0].attributes or {})


def test_other_objects_are_rejected(telemetry: PoolTelemetry) -> None:
    """The error says what to pass, and does not repeat the value."""
    for wrong in (None, 5, f"postgresql://ann:{SECRET}@db.example/shop", sa.create_engine, object()):
        with pytest.raises(TypeError, match=r"pass a pool of asyncpg \(create_pool\) or of psycopg_pool") as caught:
            telemetry.observe.instrument_pool(wrong)
        assert f"cannot instrument a {type(wrong).__name__};" in str(caught.value)
        assert SECRET not in str(caught.value)
    with pytest.raises(TypeError, match=r"cannot instrument a Engine; .* pass an SQLAlchemy engine to instrument_eng"):
        telemetry.observe.instrument_pool(sa.create_engine("sqlite://"))


def test_other_objects_of_a_driver_are_rejected(driver: Driver, observed: Callable[..., Seen]) -> None:
    """An object of the driver's package that is not a pool is rejected with the names of its pools."""
    kind = type("Other", (), {"__module__": driver.pool_class.__module__})
    expected = "Pool that asyncpg.create_pool" if driver.is_asyncpg else "psycopg_pool.ConnectionPool"
    with pytest.raises(TypeError, match=expected):
        observed(Starlette()).observe.instrument_pool(kind())
