"""How engines are instrumented: `install(engines=...)` and `instrument_engine`."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import create_async_engine
from tools import needs_package

from fastapi_observe import install
from fastapi_observe.clients.database.sqlalchemy import OBSERVED_ATTRIBUTE
from fastapi_observe.settings.model import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Seen

GIVEN = "db_connection_wait_seconds_count"


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
    with pytest.raises(SettingsError, match=r"^1 invalid setting:\n  engines: .*create_engine"):
        install(app, engines=[engine, wrong])  # type: ignore[list-item]
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
    """A signal that is off receives nothing; the others do."""
    seen = observed(FastAPI(), engines=[engine], **{off: False})
    query(engine)
    assert len(seen.spans) == (off != "tracing")
    lines = [line for line in seen.lines if line["logger"] == "fastapi_observe.operation"]
    assert len(lines) == (off != "logs")
    if off != "metrics":
        assert (seen.total("db_queries_total"), seen.total(GIVEN)) == (1, 1)
    assert seen.observe.internal_errors.counts == {}
