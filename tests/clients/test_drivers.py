"""How engines and pools come to be measured: `install(engines=...)`, `instrument_engine`, `instrument_pool`."""

from __future__ import annotations

import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from pools import running_postgresql
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from tools import needs_package

from fastapi_observe import install
from fastapi_observe.clients.database.sqlalchemy import OBSERVED_ATTRIBUTE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from conftest import Seen

GIVEN = "db_connection_wait_seconds_count"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Yield the URL of a real PostgreSQL."""
    with running_postgresql() as found:
        yield found


class Case:
    """A pool of one kind, and one way to send a statement through it."""

    def __init__(self, pool: Any, *, is_sync: bool = False) -> None:
        self.pool = pool
        self._is_sync = is_sync

    async def send(self) -> None:
        """Send a statement."""
        if hasattr(self.pool, "fetchval"):
            assert await self.pool.fetchval("SELECT 1") == 1
        elif self._is_sync:
            with self.pool.connection() as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)
        else:
            async with self.pool.connection() as connection:
                assert await (await connection.execute("SELECT 1")).fetchone() == (1,)


@pytest.fixture(params=["asyncpg", "psycopg", "psycopg async", "asyncpg's subclass", "psycopg's subclass"])
async def case(request: pytest.FixtureRequest) -> AsyncIterator[Case]:
    """Yield an open pool of each kind, and of classes that a user derived from them."""
    name = request.param
    needs_package("asyncpg" if name.startswith("asyncpg") else "psycopg_pool")
    found = request.getfixturevalue("url")
    if name.startswith("asyncpg"):
        module = import_module("asyncpg")
        kind = type("Own", (module.Pool,), {"__slots__": ()}) if "subclass" in name else module.Pool
        async with asyncpg_pool(module, kind, found) as pool:
            yield Case(pool)
    else:
        module = import_module("psycopg_pool")
        kind = module.AsyncConnectionPool if "async" in name else module.ConnectionPool
        if "subclass" in name:
            kind = type("Own", (kind,), {})
        pool = kind(found, min_size=1, open=False, name="psycopg")
        if "async" in name:
            async with pool:
                yield Case(pool)
        else:
            with pool:
                yield Case(pool, is_sync=True)


def asyncpg_pool(module: Any, kind: type, url: str) -> Any:
    """Make a pool of a class: `create_pool` takes none."""
    pool = module.create_pool(url, min_size=1, max_size=2)
    pool.__class__ = kind
    return pool


@pytest.fixture
def engine() -> Iterator[sa.Engine]:
    """Yield an engine."""
    engine = sa.create_engine("sqlite://")
    yield engine
    engine.dispose()


def query(engine: sa.Engine) -> None:
    """Send a statement."""
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT 1")).scalar() == 1


# Pools


async def test_every_kind_of_pool(observed: Callable[..., Seen], case: Case) -> None:
    """A pool is measured by the module for its driver, until the app is closed; then it is what it was."""
    kind = type(case.pool)
    seen = observed(Starlette())
    seen.observe.instrument_pool(case.pool)
    seen.observe.instrument_pool(case.pool)
    await case.send()
    label = "asyncpg" if hasattr(case.pool, "fetchval") else "psycopg"
    assert seen.total("db_queries_total") == len(seen.spans) == 1
    assert (seen.spans[0].attributes or {})["db.client.connection.pool.name"] == label
    assert seen.samples(GIVEN) == {(("pool", label),): 1}
    seen.observe.close()
    assert type(case.pool) is kind
    await case.send()
    assert (len(seen.spans), seen.observe.internal_errors.counts) == (1, {})


@pytest.mark.parametrize("wrong", [None, 5, "postgresql://ann:hunter2@db.example/shop", sa.create_engine, object()])
def test_what_is_no_pool(observed: Callable[..., Seen], wrong: object) -> None:
    """What is no pool is refused by one sentence that says what is one, and not what a URL holds."""
    seen = observed(Starlette())
    with pytest.raises(TypeError, match=r"pass a pool of asyncpg \(create_pool\) or of psycopg_pool") as caught:
        seen.observe.instrument_pool(wrong)
    assert f"cannot instrument a {type(wrong).__name__};" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_an_engine_is_no_pool(observed: Callable[..., Seen], engine: sa.Engine) -> None:
    """The error for an engine names the method for engines."""
    with pytest.raises(
        TypeError, match=r"cannot instrument a Engine; .* pass an SQLAlchemy engine to instrument_engine"
    ):
        observed(Starlette()).observe.instrument_pool(engine)


def test_what_else_a_driver_has(observed: Callable[..., Seen]) -> None:
    """What belongs to a driver and is no pool is refused by the module for that driver, too."""
    needs_package("psycopg_pool")
    other = import_module("psycopg_pool").PoolTimeout()
    with pytest.raises(TypeError, match=r"pass a psycopg_pool\.ConnectionPool"):
        observed(Starlette()).observe.instrument_pool(other)


@pytest.mark.parametrize("off", ["tracing", "metrics", "logs"])
async def test_pools_without_a_signal(observed: Callable[..., Seen], case: Case, off: str) -> None:
    """A signal that is off is told nothing; the others are."""
    seen = observed(Starlette(), **{off: False})
    seen.observe.instrument_pool(case.pool)
    await case.send()
    assert len(seen.spans) == (off != "tracing")
    lines = [line for line in seen.lines if line["logger"] == "fastapi_observe.operation"]
    assert len(lines) == (off != "logs")
    if off != "metrics":
        assert (seen.total("db_queries_total"), seen.total(GIVEN)) == (1, 1)
    assert seen.observe.internal_errors.counts == {}


# Engines


def test_engines_of_install(observed: Callable[..., Seen], engine: sa.Engine) -> None:
    """`install(app, engines=[...])` and `instrument_engine` do the same, until the app is closed."""
    later = sa.create_engine("sqlite://")
    seen = observed(FastAPI(), engines=[engine])
    seen.observe.instrument_engine(engine)
    seen.observe.instrument_engine(later)
    for one in (engine, later):
        query(one)
    assert seen.samples(GIVEN) == {(("pool", "sqlite"),): 1, (("pool", "sqlite-2"),): 1}
    assert seen.total("db_queries_total") == len(seen.spans) == 2
    seen.observe.close()
    for one in (engine, later):
        query(one)
        assert OBSERVED_ATTRIBUTE not in vars(one)
        assert "do_execute" not in vars(one.dialect)
    assert len(seen.spans) == 2
    later.dispose()


async def test_an_async_engine_of_install(observed: Callable[..., Seen]) -> None:
    """An async engine goes the same way."""
    needs_package("aiosqlite")
    engine = create_async_engine("sqlite+aiosqlite://")
    seen = observed(FastAPI(), engines=[engine])
    async with engine.connect() as connection:
        assert (await connection.execute(sa.text("SELECT 1"))).scalar() == 1
    assert [span.name for span in seen.spans] == ["SELECT"]
    await engine.dispose()


@pytest.mark.parametrize("wrong", ["sqlite://", None, object()])
def test_a_wrong_engine_leaves_nothing_behind(observed: Callable[..., Seen], engine: sa.Engine, wrong: object) -> None:
    """An install that is refused for an engine has instrumented none, started nothing, and may be repeated."""
    app = FastAPI()
    threads = set(threading.enumerate())
    with pytest.raises(TypeError, match=r"create_engine\(\)"):
        install(app, engines=[engine, wrong])
    assert not hasattr(app.state, "observe")
    assert set(threading.enumerate()) <= threads
    assert OBSERVED_ATTRIBUTE not in vars(engine)
    seen = observed(app, engines=[engine])
    query(engine)
    assert app.state.observe is seen.observe
    assert seen.samples(GIVEN) == {(("pool", "sqlite"),): 1}
    assert len(seen.spans) == 1


@pytest.mark.parametrize("off", ["tracing", "metrics", "logs"])
def test_engines_without_a_signal(observed: Callable[..., Seen], engine: sa.Engine, off: str) -> None:
    """A signal that is off is told nothing; the others are."""
    seen = observed(FastAPI(), engines=[engine], **{off: False})
    query(engine)
    assert len(seen.spans) == (off != "tracing")
    lines = [line for line in seen.lines if line["logger"] == "fastapi_observe.operation"]
    assert len(lines) == (off != "logs")
    if off != "metrics":
        assert (seen.total("db_queries_total"), seen.total(GIVEN)) == (1, 1)
    assert seen.observe.internal_errors.counts == {}
