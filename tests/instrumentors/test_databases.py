"""Queries by sqlite3 and pymongo, seen by their instrumentors, are queries of the request."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from libraries import SAMPLING, instrumentor, library
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import StaticPool
from starlette.testclient import TestClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Seen

COUNTED = "db_queries_total"


@pytest.mark.parametrize("sampling", SAMPLING)
def test_statements_are_read(observed: Callable[..., Seen], sampling: str) -> None:
    """Operation and table come from the statement, which is recorded without its values."""
    app = FastAPI()

    @app.get("/")
    def read() -> None:
        with closing(sqlite3.connect(":memory:")) as connection:
            cursor = connection.cursor()
            cursor.execute("CREATE TABLE orders (card TEXT)")
            cursor.execute("INSERT INTO orders VALUES ('4111111111111111')")
            cursor.execute("SELECT * FROM orders WHERE card = '4111111111111111'")
            with pytest.raises(sqlite3.OperationalError):
                cursor.execute("SELECT 'geheim' FROM nowhere")

    seen = observed(app, instrument=[instrumentor("sqlite3")], **SAMPLING[sampling])
    with TestClient(app) as client:
        assert client.get("/").status_code == 200
    assert seen.samples(COUNTED) == {
        (("operation", "CREATE"), ("table", "orders")): 1,
        (("operation", "INSERT"), ("table", "orders")): 1,
        (("operation", "SELECT"), ("table", "orders")): 1,
        (("operation", "SELECT"), ("table", "nowhere")): 1,
    }
    error = "sqlite3.OperationalError"
    assert seen.sample("db_query_errors_total", operation="SELECT", table="nowhere", error_type=error) == 1
    assert seen.request_lines[0]["fields"]["db_count"] == 4
    shown = str([dict(span.attributes or {}) for span in seen.spans]) + str(seen.lines)
    assert "SELECT * FROM orders WHERE card = ?" in shown
    assert "4111111111111111" not in shown
    assert "geheim" not in shown


@pytest.mark.parametrize("given", ["before", "later"])
def test_an_engine_given_to_us_counts_once(observed: Callable[..., Seen], given: str) -> None:
    """Its driver's instrumentor sees the same statement: our operation is the one that counts."""
    app = FastAPI()
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})

    @app.get("/")
    def read() -> None:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1 AS one"))

    seen = observed(app, instrument=[instrumentor("sqlite3")], engines=[engine] if given == "before" else [])
    if given == "later":
        seen.observe.instrument_engine(engine)
    with TestClient(app) as client:
        client.get("/")  # SQLAlchemy sends more on a new connection
        client.get("/")
    assert seen.sample(COUNTED, operation="SELECT", table="unknown") == 2
    assert seen.request_lines[1]["fields"]["db_count"] == 1
    engine.dispose()


def test_the_driver_of_an_engine_is_left_alone_by_default(observed: Callable[..., Seen]) -> None:
    """With `auto`, what `engines` observes has one span for each statement."""
    instrumentor("sqlite3")
    app = FastAPI()
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})

    @app.get("/")
    def read() -> None:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1 AS one"))

    seen = observed(app, instrument="auto", engines=[engine])
    with TestClient(app) as client:
        client.get("/")
    assert [span.name for span in seen.spans if span.kind.name == "CLIENT"] == ["SELECT"]
    assert seen.samples(COUNTED) == {(("operation", "SELECT"), ("table", "unknown")): 1}
    (line,) = [line["message"] for line in seen.lines if "instrumentors switched on" in line["message"]]
    assert "sqlite3 (observed through engines)" in line
    engine.dispose()


def test_an_engine_given_later_switches_its_driver_off(observed: Callable[..., Seen], tmp_path: Path) -> None:
    """The driver runs in a thread of its own, where its span would not be found to be the same call."""
    instrumentor("sqlite3")
    app = FastAPI()
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/shop.db")

    @app.get("/")
    async def read() -> None:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1 AS one"))

    seen = observed(app, instrument="auto")
    seen.observe.instrument_engine(engine)
    with TestClient(app) as client:
        for _ in range(2):
            client.get("/")
    assert seen.samples(COUNTED) == {(("operation", "SELECT"), ("table", "unknown")): 2}
    assert {line["fields"]["db_count"] for line in seen.request_lines} == {1}
    (line,) = [line["message"] for line in seen.lines if "was switched off" in line["message"]]
    assert "sqlite3 was switched off: observed through engines" in line
    asyncio.run(engine.dispose())


@pytest.fixture
def mongo() -> Iterator[Any]:
    """Run a server that speaks MongoDB's wire protocol and replies to every command."""
    mockupdb = library("mockupdb")
    server = mockupdb.MockupDB(auto_ismaster={"maxWireVersion": 21})
    found = {"ok": 1, "cursor": {"id": 0, "ns": "shop.orders", "firstBatch": [{"_id": 1}]}}
    server.autoresponds(mockupdb.OpMsg("find", "orders"), found)
    server.autoresponds(mockupdb.OpMsg("insert", "orders"), ok=0, errmsg="duplicate key", code=11000)
    server.run()
    yield server
    server.stop()


@pytest.mark.parametrize("sampling", SAMPLING)
def test_mongodb_commands_are_queries(observed: Callable[..., Seen], mongo: Any, sampling: str) -> None:
    """The command and the collection are labels; what is looked for is nowhere."""
    pymongo = library("pymongo")
    app = FastAPI()
    seen = observed(app, instrument=[instrumentor("pymongo")], **SAMPLING[sampling])
    client = pymongo.MongoClient(mongo.uri, timeoutMS=20_000)

    @app.get("/")
    def read() -> None:
        assert client.shop.orders.find_one({"card": "geheim"}) == {"_id": 1}
        with pytest.raises(pymongo.errors.PyMongoError):
            client.shop.orders.insert_one({"card": "geheim"})

    with TestClient(app) as test_client:
        assert test_client.get("/").status_code == 200
    client.close()
    assert seen.samples(COUNTED) == {
        (("operation", "find"), ("table", "orders")): 1,
        (("operation", "insert"), ("table", "orders")): 1,
    }
    assert seen.total("db_query_errors_total") == 1
    (request,) = seen.request_lines
    assert request["fields"]["db_count"] == 2
    lines = [line for line in seen.lines if line["logger"].startswith("fastapi_observe")]  # pymongo logs everything
    shown = str([dict(span.attributes or {}) for span in seen.spans]) + str(lines)
    assert "geheim" not in shown
