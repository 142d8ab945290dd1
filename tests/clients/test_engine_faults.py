"""If the measurement of an engine fails, its statements are executed, and the error is counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy
from fastapi import FastAPI
from fastapi.testclient import TestClient
from injection import failing
from opentelemetry import trace
from sqlalchemy.pool import StaticPool

from fastapi_observe.clients.database.client import Query
from fastapi_observe.records.request import current_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Seen
    from sqlalchemy import Engine


@pytest.fixture
def engine() -> Iterator[Engine]:
    """Yield an engine on SQLite in memory."""
    # One connection, which any thread may close.
    made = sqlalchemy.create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    yield made
    made.dispose()


def execute(engine: Engine) -> int:
    """Send one statement."""
    with engine.connect() as connection:
        return int(connection.execute(sqlalchemy.text("SELECT 7")).scalar_one())


def test_a_query_that_cannot_be_measured(observed: Callable[..., Seen], engine: Engine) -> None:
    """Its statement is executed, and no span stays current."""
    seen = observed(FastAPI(), engines=[engine])
    with failing(Query.open):
        assert execute(engine) == 7
    assert not trace.get_current_span().get_span_context().is_valid
    assert seen.observe.internal_errors.counts == {"sqlalchemy": 1}


def test_a_new_pool_that_cannot_be_measured(observed: Callable[..., Seen], engine: Engine) -> None:
    """The new pool after `dispose` works without measurement."""
    seen = observed(FastAPI(), engines=[engine])
    with failing("clients.database.sqlalchemy:ObservedEngine._observe_pool"):
        engine.dispose()
        assert execute(engine) == 7
    assert seen.observe.internal_errors.counts == {"sqlalchemy": 1}


def test_a_query_without_a_known_request(observed: Callable[..., Seen], engine: Engine) -> None:
    """If the current request cannot be determined, a query is reported for the first app."""
    app = FastAPI()

    @app.get("/")
    def root() -> int:
        return execute(engine)

    seen = observed(app, engines=[engine])
    observed(FastAPI(), engines=[engine])
    with failing(current_record):
        assert TestClient(app).get("/").json() == 7
    assert seen.total("db_queries_total") == 1
