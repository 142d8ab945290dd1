"""Holds that internal errors in rare places are counted, while the user's call succeeds."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from fastapi import FastAPI
from fastapi.testclient import TestClient
from injection import failing
from opentelemetry import trace

from fastapi_observe import current
from fastapi_observe.clients.database.client import Query
from fastapi_observe.metrics.loop_monitor import LoopMonitor
from fastapi_observe.records.guard import UNATTRIBUTED_ERRORS
from fastapi_observe.records.request import current_record
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
    """Yield an engine on SQLite in memory."""
    made = sqlalchemy.create_engine("sqlite://")
    yield made
    made.dispose()


def execute(engine: Engine) -> int:
    """Send one statement."""
    with engine.connect() as connection:
        return int(connection.execute(sqlalchemy.text("SELECT 7")).scalar_one())


def broken(*_: Any, **__: Any) -> Any:
    """Raise, as code of the user's may."""
    raise RuntimeError("broken")


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


async def test_a_lag_sample_that_fails() -> None:
    """A failed sample is counted, and the next one is scheduled."""
    before = UNATTRIBUTED_ERRORS.counts.get("saturation", 0)
    monitor = LoopMonitor(broken, interval=0.0001)
    monitor.start(asyncio.get_running_loop())
    while UNATTRIBUTED_ERRORS.counts.get("saturation", 0) < before + 2:  # noqa: ASYNC110 - a timer sets no event
        await asyncio.sleep(0.001)
    monitor.stop()


def test_an_object_without_a_string_form() -> None:
    """An object whose `__str__` raises is shown by its class."""

    class Silent:
        __str__ = broken

    assert safe_text(Silent()) == "<unprintable Silent>"


def test_only_callables_can_be_traced() -> None:
    """Decorating something that is not callable is a TypeError."""
    decorate = make_traced(lambda: (trace.get_tracer("test"), DEFAULT_REDACTOR), None, {})
    with pytest.raises(TypeError):
        decorate(5)


def test_values_without_a_yaml_form() -> None:
    """A value without a YAML form raises an error that names YAML."""
    with pytest.raises(TypeError, match=r"cannot write .* as YAML"):
        dump({"a": object()})


def test_numbers_have_the_form_of_yaml() -> None:
    """NaN, infinity and large numbers are written in YAML's form."""
    assert dump({"a": [float("nan"), float("inf"), float("-inf"), 1e30]}).split()[2::2] == [
        ".nan",
        ".inf",
        "-.inf",
        "1.0e+30",
    ]


def test_get_observability_without_a_known_request(observed: Callable[..., Seen]) -> None:
    """Without a current request, it is the only installed app."""
    seen = observed(FastAPI())
    with failing(current_record):
        assert current.get_observability() is seen.observe


def test_a_route_without_a_path() -> None:
    """A route without a path is not listed."""
    assert list_endpoints(SimpleNamespace(routes=[SimpleNamespace(endpoint=len)])) == []
