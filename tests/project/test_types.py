"""What a type checker knows of the public names: `assert_type` is read by mypy and runs as part of the tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, assert_type, get_args

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.trace import Span
from starlette.applications import Starlette
from starlette.testclient import TestClient

import fastapi_observe
from fastapi_observe import (
    Availability,
    DatabaseDep,
    ExternalDep,
    HttpClientDep,
    Latency,
    LogDep,
    MetricsDep,
    Observability,
    ObservabilityDep,
    ObserveSettings,
    SettingsError,
    SpanDep,
    TraceContext,
    TracingDep,
    get_observability,
    install,
    traced,
)
from fastapi_observe.clients.database.client import DatabaseClient, Query
from fastapi_observe.clients.http.external import ExternalCall, ExternalClient
from fastapi_observe.logs.service import ObserveLogger
from fastapi_observe.metrics.series import Counter, Gauge, Histogram
from fastapi_observe.metrics.service import MetricsService
from fastapi_observe.traces.service import TracingService


@traced
def bare(amount: int, *, currency: str = "EUR") -> str:
    """Keep the signature of a function."""
    return f"{amount} {currency}"


@traced("named", tier="gold")
async def named(amount: int) -> float:
    """Keep the signature of a coroutine function."""
    return float(amount)


@traced()
def generates(count: int) -> Iterator[int]:
    """Keep the signature of a generator function."""
    yield from range(count)


@traced
async def generates_async(count: int) -> AsyncIterator[int]:
    """Keep the signature of an async generator function."""
    for number in range(count):
        yield number


class Prices:
    """A class of decorated methods."""

    @traced
    def of(self, name: str) -> int:
        """Keep the signature of a method."""
        return len(name)


async def test_decorated_functions_keep_their_signatures() -> None:
    """`@traced` changes no type, however it is written."""
    assert_type(bare(1, currency="USD"), str)
    assert_type(await named(1), float)
    assert_type(generates(2), Iterator[int])
    assert_type(generates_async(2), AsyncIterator[int])
    assert_type(Prices().of("x"), int)
    typed: Callable[[int], Awaitable[float]] = named
    assert await typed(2) == 2.0
    assert [*generates(2)] == [0, 1] == [number async for number in generates_async(2)]
    assert (bare(1), Prices().of("ab")) == ("1 EUR", 2)
    with pytest.raises(TypeError):
        bare(amount="1", other=2)  # type: ignore[call-arg, arg-type]


def test_install_and_current() -> None:
    """Both return the `Observability`, for FastAPI and for Starlette."""
    observe = assert_type(install(FastAPI(), service_name="shop"), Observability)
    assert assert_type(get_observability(), Observability) is observe
    observe.close()
    with_settings = assert_type(install(Starlette(), ObserveSettings()), Observability)
    with_settings.close()
    assert_type(TraceContext.current(), TraceContext | None)


def test_options_are_typed() -> None:
    """A misspelled option and a value of the wrong type are errors of the type checker, and of `install`."""
    with pytest.raises(SettingsError, match="3 invalid settings"):
        install(FastAPI(), sample_ratio="lots", log_levl="info", engines=7)  # type: ignore[arg-type, call-arg]
    with pytest.raises(SettingsError):
        ObserveSettings.load(None, log_format="yaml")  # type: ignore[arg-type]
    options: dict[str, Any] = {"sample_ratio": 1}
    install(FastAPI(), exclude_paths=["/health"], log_level="WARNING", **options).close()


def test_a_string_is_a_list_of_one_in_objectives() -> None:
    """A single route or status needs no list."""
    assert Availability("a", 99.9, routes="GET /x", bad_statuses="5xx") == Availability("a", 99.9, routes=["GET /x"])
    assert Latency("b", 99, within="1s", routes="/x").routes == ("/x",)


def test_what_is_called_on_it() -> None:
    """The services and clients are typed down to what their methods return."""
    observe = install(FastAPI())
    assert_type(observe.settings, ObserveSettings)
    assert_type(observe.log, ObserveLogger)
    with observe.tracing.span("price order", items=3) as span:
        assert_type(span, Span)
    assert_type(observe.metrics.counter("carts_opened_total", "Carts opened.", ["kind"]), Counter)
    assert_type(observe.metrics.gauge("carts_open", "Open carts."), Gauge)
    assert_type(observe.metrics.histogram("cart_items", "Items in a cart."), Histogram)
    with observe.db.query("SELECT", table="orders") as query:
        assert_type(query, Query)
    with observe.external.call("billing", "get_invoice") as call:
        assert_type(call, ExternalCall)
    observe.close()


def test_aliases_are_what_they_give() -> None:
    """In an endpoint a parameter has the type of the object itself."""
    app = FastAPI()

    @app.get("/")
    async def endpoint(  # noqa: PLR0913, PLR0917 - one of each
        tracing: TracingDep,
        metrics: MetricsDep,
        log: LogDep,
        db: DatabaseDep,
        external: ExternalDep,
        http: HttpClientDep,
        span: SpanDep,
        observe: ObservabilityDep,
    ) -> bool:
        assert_type(tracing, TracingService)
        assert_type(metrics, MetricsService)
        assert_type(log, ObserveLogger)
        assert_type(db, DatabaseClient)
        assert_type(external, ExternalClient)
        assert_type(http, httpx.AsyncClient)
        assert_type(span, Span)
        assert_type(observe, Observability)
        async with db.query("SELECT", table="orders") as query, external.call("billing", "get") as call:
            assert_type(query, Query)
            assert_type(call, ExternalCall)
        with tracing.span("price order") as inner:
            assert_type(inner, Span)
        return True

    observe = install(app)
    assert TestClient(app).get("/").json() is True
    observe.close()


def test_aliases_tell_the_same_at_run_time() -> None:
    """The first argument of each `Annotated` is the type that mypy sees."""
    given: dict[str, Any] = {
        "TracingDep": TracingService,
        "MetricsDep": MetricsService,
        "LogDep": ObserveLogger,
        "DatabaseDep": DatabaseClient,
        "ExternalDep": ExternalClient,
        "HttpClientDep": httpx.AsyncClient,
        "SpanDep": Span,
        "ObservabilityDep": Observability,
    }
    assert {name: get_args(getattr(fastapi_observe, name))[0] for name in given} == given
