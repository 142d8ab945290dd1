"""Several libraries in one request: one trace, one page, and each call once."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from driver import with_client
from fastapi import FastAPI
from libraries import SAMPLING, http_service, instrumentor, library, redis_server
from opentelemetry import trace as otel_trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, TraceFlags
from sqlalchemy import create_engine, text
from sqlalchemy.pool import StaticPool
from starlette.testclient import TestClient

from fastapi_observe import HttpClientDep  # noqa: TC001 - FastAPI reads the annotations

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen

CALLS = {"SELECT", "GET", "GET 127.0.0.1", "orders send"}


def test_an_app_on_four_libraries_is_one_trace_and_one_page(observed: Callable[..., Seen]) -> None:
    """SQLAlchemy, Redis, httpx and a queue, with nothing but the installed instrumentors; `close` ends it."""
    kafka = library("confluent_kafka")
    for name in ("redis", "httpx", "confluent_kafka", "sqlite3"):
        instrumentor(name)
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    app = FastAPI(title="shop")
    with redis_server() as port, http_service() as service:
        seen = observed(
            app, engines=[engine], instrument="auto", environment="development", log_level="info", otlp_endpoint=None
        )
        redis = library("redis").Redis(port=port)
        producer = kafka.Producer({"bootstrap.servers": "127.0.0.1:9", "log_level": 0})

        @app.get("/checkout")
        async def checkout(http: HttpClientDep) -> None:
            with engine.connect() as connection:
                connection.execute(text("SELECT 1 AS one"))
            redis.get("cart")
            await http.get(service.url)
            producer.produce("orders", b"x")

        with TestClient(with_client(app, "127.0.0.1", 50000), base_url="http://localhost") as client:
            client.get("/checkout")
            live = client.get("/observe/api/live").json()
            (shown,) = [each for each in live["requests"] if each["path"] == "/checkout"]
            trace = client.get(f"/observe/api/traces/{shown['trace_id']}").json()
        redis.close()
    names = {span["name"] for span in trace["spans"]}
    assert names >= CALLS, json.dumps(sorted(names))
    (line,) = [each for each in seen.request_lines if each["fields"]["url"] == "/checkout"]
    assert (line["fields"]["db_count"], line["fields"]["external_count"]) == (2, 2)
    assert {span.context.trace_id for span in seen.spans if span.name in CALLS} == {int(line["trace_id"], 16)}
    assert seen.total("external_requests_total") == 2
    producer.purge()
    producer.flush(5)
    engine.dispose()


def test_a_query_of_ours_counts_in_place_of_the_span_around_it(observed: Callable[..., Seen]) -> None:
    """An ORM's instrumentor that starts first, and does not make its span the current one, is not a second query."""
    seen = observed(FastAPI())
    tracer = seen.observe.tracing.provider.get_tracer("opentelemetry.instrumentation.sqlalchemy")
    attributes = {"db.system": "sqlite", "db.statement": "SELECT a FROM b"}
    for _ in range(2):
        span = tracer.start_span("SELECT", kind=SpanKind.CLIENT, attributes=attributes)
        with seen.observe.db.query("SELECT", table="ours"):
            pass
        span.end()
    assert seen.samples("db_queries_total") == {(("operation", "SELECT"), ("table", "ours")): 2}


def test_a_driver_below_an_orm_is_no_second_query(observed: Callable[..., Seen]) -> None:
    """Two instrumentors of one statement make two spans and one query, although neither is inside the other."""
    seen = observed(FastAPI())
    get_tracer = seen.observe.tracing.provider.get_tracer
    orm, driver = get_tracer("opentelemetry.instrumentation.sqlalchemy"), get_tracer("opentelemetry.instrumentation.x")
    attributes = {"db.system": "sqlite", "db.statement": "SELECT a FROM b"}
    span = orm.start_span("SELECT", kind=SpanKind.CLIENT, attributes=attributes)
    with driver.start_as_current_span("SELECT", kind=SpanKind.CLIENT, attributes=attributes):
        pass
    span.end()
    with driver.start_as_current_span("SELECT", kind=SpanKind.CLIENT, attributes=attributes):
        pass
    assert seen.samples("db_queries_total") == {(("operation", "SELECT"), ("table", "b")): 2}
    assert len(seen.spans) == 3


async def test_an_app_called_in_the_same_process_counts_its_own_calls(observed: Callable[..., Seen]) -> None:
    """A request that arrives inside a call is a request: its calls are not parts of that one."""
    requests = library("requests")
    inner, outer = FastAPI(), FastAPI()

    @inner.get("/")
    def endpoint() -> None:
        requests.get(service.url, timeout=20)
        with seen_inner.observe.db.query("SELECT", table="orders"):
            pass

    @outer.get("/")
    async def call_inner() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(inner), base_url="http://inner") as client:
            seen.observe.instrument_client(client)
            await client.get("/")

    with http_service() as service:
        seen = observed(outer, instrument=[instrumentor("requests")])
        seen_inner = observed(inner)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://outer") as client:
            await client.get("/")
    assert seen.total("external_requests_total") == 1
    assert seen_inner.samples("external_requests_total") == {
        (("operation", "GET"), ("outcome", "ok"), ("service", "127.0.0.1")): 1
    }
    assert seen_inner.total("db_queries_total") == 1


def test_a_stream_that_stays_open_hides_no_other_call(observed: Callable[..., Seen]) -> None:
    """A call that is open and not the current span has nothing to do with later ones; one that never ends neither."""
    seen = observed(FastAPI())
    get_tracer = seen.observe.tracing.provider.get_tracer
    streams, http = get_tracer("opentelemetry.instrumentation.grpc"), get_tracer("opentelemetry.instrumentation.http")
    rpc = {"rpc.system": "grpc", "rpc.service": "s", "rpc.method": "m"}
    open_streams = [streams.start_span("s/m", kind=SpanKind.CLIENT, attributes=rpc) for _ in range(100)]
    with http.start_as_current_span("GET", kind=SpanKind.CLIENT, attributes={"http.method": "GET"}):
        pass
    assert seen.total("external_requests_total") == 1
    for stream in open_streams:
        stream.end()
        stream.end()
    assert seen.total("external_requests_total") == 101


@pytest.mark.parametrize("sampling", SAMPLING)
async def test_a_cancelled_command_is_cancelled(observed: Callable[..., Seen], sampling: str) -> None:
    """OpenTelemetry records no exception of a task that is cancelled; the outcome says it all the same."""
    seen = observed(FastAPI(), instrument=[instrumentor("redis")], **SAMPLING[sampling])
    with redis_server() as port:
        async with library("redis.asyncio").Redis(port=port) as redis:
            await redis.ping()
            with seen.observe.job("wait"), pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await redis.blpop("empty", timeout=0)
    lines: list[dict[str, Any]] = [line for line in seen.lines if line["message"] == "database query failed"]
    assert [(line["fields"]["operation"], line["fields"]["outcome"]) for line in lines] == [("BLPOP", "cancelled")]


@pytest.mark.parametrize(
    ("sampler", "server_span"),
    [("parentbased_traceidratio", "observe"), ("always_on", "observe"), ("always_on", "contrib")],
)
@pytest.mark.parametrize("signals", [["traces"], ["traces", "metrics"], ["traces", "metrics", "logs"]])
def test_calls_of_requests_without_traces_count(
    observed: Callable[..., Seen], signals: list[str], sampler: str, server_span: str
) -> None:
    """In a request that is excluded from traces no span is recorded, and the other signals see every call once."""
    requests = library("requests")
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    app = FastAPI()

    @app.get("/health")
    def health() -> None:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1 AS one"))
        with otel_trace.get_tracer("theirs").start_as_current_span("theirs", context=Context()) as span:
            assert not span.is_recording()
            requests.get(service.url, timeout=20)

    with engine.connect():  # SQLAlchemy sends more on a new connection
        pass
    with http_service() as service:
        seen = observed(
            app,
            engines=[engine],
            instrument=[instrumentor("sqlite3"), instrumentor("requests"), instrumentor("urllib3")],
            exclude_from={signal: ["/health"] for signal in signals},
            sampler=sampler,
            server_span=server_span,
        )
        with TestClient(app) as client:
            assert client.get("/health").status_code == 200
    counted = 0 if "metrics" in signals else 1
    assert seen.total("db_queries_total") == counted
    assert seen.total("external_requests_total") == counted
    assert seen.spans == []
    fields = [line["fields"] for line in seen.request_lines]
    assert [(each["db_count"], each["external_count"]) for each in fields] == [] if "logs" in signals else [(1, 1)]
    sent = service.received[0].get("traceparent")
    assert sent is None or not TraceFlags(int(sent[-2:], 16)).sampled
    engine.dispose()


def test_our_own_exports_are_no_calls(observed: Callable[..., Seen]) -> None:
    """Spans that are exported over gRPC make no spans themselves."""
    app = FastAPI()
    seen = observed(
        app,
        instrument=[instrumentor("grpc_client")],
        otlp_endpoint="127.0.0.1:9",
        otlp_protocol="grpc",
        log_level="fatal",
        shutdown_timeout=0.5,
    )
    with TestClient(app) as client:
        client.get("/")
        seen.observe.flush(1)
    assert seen.total("external_requests_total") == 0
    assert [span.kind.name for span in seen.spans] == ["SERVER"]
