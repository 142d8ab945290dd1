"""What catches what should not happen: the user's call goes on, the fault is counted or told."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from fastapi import FastAPI
from fastapi.testclient import TestClient
from opentelemetry import trace

from fastapi_observe import current
from fastapi_observe.clients.database import observers
from fastapi_observe.clients.database.client import DatabaseClient
from fastapi_observe.clients.database.sqlalchemy import ObservedEngine
from fastapi_observe.metrics.saturation import Saturation
from fastapi_observe.records.guard import UNATTRIBUTED_ERRORS
from fastapi_observe.redaction.redactor import DEFAULT_REDACTOR
from fastapi_observe.requests.routing import list_endpoints
from fastapi_observe.slo.prometheus.yaml import dump
from fastapi_observe.traces.user_spans import make_traced, safe_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Seen
    from sqlalchemy import Engine


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An engine on SQLite in memory."""
    made = sqlalchemy.create_engine("sqlite://")
    yield made
    made.dispose()


def ask(engine: Engine) -> int:
    """Send one statement."""
    with engine.connect() as connection:
        return int(connection.execute(sqlalchemy.text("SELECT 7")).scalar_one())


def failing(*_: Any, **__: Any) -> Any:
    """Fail as a bug of ours would."""
    raise RuntimeError("a fault of ours")


def test_a_query_that_cannot_be_opened(
    observed: Callable[..., Seen], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its statement is sent all the same, and what was half open is put aside."""
    seen = observed(FastAPI(), engines=[engine])
    suspended: list[bool] = []
    query = SimpleNamespace(open=failing, suspend=lambda: suspended.append(True))
    monkeypatch.setattr(DatabaseClient, "start_statement", lambda *_, **__: query)
    assert ask(engine) == 7
    assert suspended == [True]
    assert seen.observe.internal_errors.counts == {"sqlalchemy": 1}


def test_a_new_pool_that_cannot_be_measured(
    observed: Callable[..., Seen], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dispose` gives the engine a new pool, which serves unmeasured."""
    seen = observed(FastAPI(), engines=[engine])
    monkeypatch.setattr(ObservedEngine, "_observe_pool", failing)
    engine.dispose()
    assert ask(engine) == 7
    assert seen.observe.internal_errors.counts == {"sqlalchemy": 1}


def test_whose_query_it_is_cannot_be_told(
    observed: Callable[..., Seen], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is that of the first app."""
    app = FastAPI()

    @app.get("/")
    def root() -> int:
        return ask(engine)

    seen = observed(app, engines=[engine])
    observed(FastAPI(), engines=[engine])
    monkeypatch.setattr(observers, "current_record", failing)
    assert TestClient(app).get("/").json() == 7
    assert seen.total("db_queries_total") == 1


async def test_a_sample_that_cannot_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lag of the loop is measured on."""
    saturation = Saturation()
    before = UNATTRIBUTED_ERRORS.counts.get("saturation", 0)
    saturation.start(asyncio.get_running_loop())
    monkeypatch.setattr(saturation, "_lag", SimpleNamespace(observe=failing))
    saturation._sample(asyncio.get_running_loop())
    assert saturation._timer is not None
    assert UNATTRIBUTED_ERRORS.counts["saturation"] == before + 1
    saturation.stop()
    saturation.close()


def test_a_text_that_cannot_be_read() -> None:
    """An object whose text fails is named by its class."""

    class Silent:
        __str__ = failing

    assert safe_text(Silent()) == "<unprintable Silent>"


def test_what_cannot_be_decorated() -> None:
    """Is the caller's error."""
    decorate = make_traced(lambda: (trace.get_tracer("test"), DEFAULT_REDACTOR), None, {})
    with pytest.raises(TypeError):
        decorate(5)


def test_what_yaml_has_no_form_for() -> None:
    """Is named."""
    with pytest.raises(TypeError, match="cannot be written as YAML"):
        dump({"a": object()})


def test_numbers_that_yaml_writes_its_own_way() -> None:
    """As YAML has them, whatever a rule may hold."""
    assert dump({"a": [float("nan"), float("inf"), float("-inf"), 1e30]}).split()[2::2] == [
        ".nan",
        ".inf",
        "-.inf",
        "1.0e+30",
    ]


def test_what_is_installed_when_nobody_can_tell_whose_request_it_is(
    observed: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only one that is installed."""
    seen = observed(FastAPI())
    monkeypatch.setattr(current, "current_record", failing)
    assert current.get_observability() is seen.observe


def test_a_route_without_a_path() -> None:
    """Is none that is reported."""
    assert list_endpoints(SimpleNamespace(routes=[SimpleNamespace(endpoint=len)])) == []
