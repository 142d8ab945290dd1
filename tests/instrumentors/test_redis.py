"""Commands to a real Redis, seen by OpenTelemetry's instrumentor of redis-py, are queries of the request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from libraries import SAMPLING, instrumentor, library, redis_server
from starlette.testclient import TestClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Seen

COUNTED = "db_queries_total"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Run one server for all tests."""
    with redis_server() as port:
        yield port


@pytest.fixture
def redis(port: int) -> Iterator[Any]:
    """Return a client of an empty database."""
    library("redis")
    client = library("redis").Redis(port=port)
    client.flushall()
    yield client
    client.close()


def operation_lines(seen: Seen) -> list[dict[str, Any]]:
    """Return the lines of operations."""
    return [line for line in seen.lines if line["logger"] == "fastapi_observe.operation"]


def test_what_an_error_quotes_is_redacted(observed: Callable[..., Seen], redis: Any) -> None:
    """Redis repeats the arguments of a command that it does not have, such as one of a module."""
    app = FastAPI()

    @app.get("/")
    def write() -> None:
        with pytest.raises(library("redis").ResponseError, match="geheim"):
            redis.execute_command("JSON.SET", "user:geheim", "$", "geheim")

    seen = observed(app, instrument=[instrumentor("redis")], **SAMPLING["sampled"])
    with TestClient(app) as client:
        assert client.get("/").status_code == 200
    (line,) = operation_lines(seen)
    assert line["exception"]["message"].startswith("unknown command")
    (span,) = [span for span in seen.spans if span.kind.name == "CLIENT"]
    assert [event.name for event in span.events] == ["exception"]
    reported = [line, span.status.description, span.attributes, *(event.attributes for event in span.events)]
    assert [each for each in reported if "geheim" in str(each)] == []


@pytest.mark.parametrize("sampling", SAMPLING)
def test_commands_are_queries_at_every_sampling_ratio(observed: Callable[..., Seen], redis: Any, sampling: str) -> None:
    """They count in the time of the request and in the metrics, with the command as label, never a key."""
    app = FastAPI()

    @app.get("/{user}")
    def read(user: str) -> None:
        redis.set(f"user:{user}", "4111111111111111")
        redis.get(f"user:{user}")

    seen = observed(app, instrument=[instrumentor("redis")], **SAMPLING[sampling])
    with TestClient(app) as client:
        for user in range(20):
            client.get(f"/{user}")
    assert seen.samples(COUNTED) == {
        (("operation", "GET"), ("table", "unknown")): 20,
        (("operation", "SET"), ("table", "unknown")): 20,
    }
    for line in seen.request_lines:
        assert line["fields"]["db_count"] == 2
        assert 0 < line["fields"]["db_ms"] <= line["fields"]["duration_ms"]
    texts = {line["fields"]["db.query.text"] for line in operation_lines(seen)}
    assert texts == {"GET ?", "SET ?"}
    spans = [span for span in seen.spans if span.kind.name == "CLIENT"]
    assert len(spans) == (40 if sampling == "sampled" else 0)
    assert {(span.attributes or {}).get("db.statement") for span in spans} <= texts


@pytest.mark.parametrize("sampling", SAMPLING)
def test_a_failed_command_is_an_error(observed: Callable[..., Seen], redis: Any, sampling: str) -> None:
    """Metric, line and span agree: the exception of the library is the error; its trace is kept."""
    app = FastAPI()

    @app.get("/")
    def read() -> None:
        redis.set("list", "no list")
        redis.lpush("list", 1)

    seen = observed(app, instrument=[instrumentor("redis")], **SAMPLING[sampling])
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.get("/").status_code == 500
    error = "redis.exceptions.ResponseError"
    assert seen.sample("db_query_errors_total", operation="LPUSH", table="unknown", error_type=error) == 1
    (line,) = [line for line in operation_lines(seen) if line["level"] == "error"]
    assert line["message"] == "database query failed"
    assert (line["fields"]["operation"], line["fields"]["error_type"]) == ("LPUSH", error)
    assert line["exception"]["type"] == error
    if sampling == "unsampled":
        assert not seen.spans
        return
    span = next(span for span in seen.spans if span.name == "LPUSH")
    assert span.status.status_code.name == "ERROR"
    assert [event.name for event in span.events] == ["exception"]
    assert f"{span.context.span_id:016x}" == line["span_id"]


def test_a_repeated_command_is_reported(observed: Callable[..., Seen], redis: Any) -> None:
    """N+1 is seen in Redis too; a pipeline is one query."""
    app = FastAPI()

    @app.get("/many")
    def many() -> None:
        for number in range(12):
            redis.get(f"user:{number}")

    @app.get("/one")
    def one() -> None:
        with redis.pipeline() as pipeline:
            for number in range(12):
                pipeline.get(f"user:{number}")
            pipeline.execute()

    seen = observed(app, instrument=[instrumentor("redis")])
    with TestClient(app) as client:
        client.get("/many")
        client.get("/one")
    assert seen.samples("db_repeated_queries_total") == {(("endpoint", "/many"),): 1}
    assert seen.sample(COUNTED, operation="PIPELINE", table="unknown") == 1
    many_span, one_span = seen.server_spans
    assert (many_span.attributes or {})["fastapi_observe.repeated_queries"] == ("GET ?",)
    assert "fastapi_observe.repeated_queries" not in (one_span.attributes or {})


async def test_commands_of_the_asynchronous_client_count(observed: Callable[..., Seen], redis: Any, port: int) -> None:
    """So do those in a job, and those outside of both, which are not part of any request."""
    seen = observed(FastAPI(), instrument=[instrumentor("redis")])
    client = library("redis.asyncio").Redis(port=port)
    async with client:
        await client.set("key", 1)
        with seen.observe.job("sync"):
            await client.get("key")
    (line,) = [line for line in seen.lines if line["logger"] == "fastapi_observe.job"]
    assert line["fields"]["db_count"] == 1
    assert seen.sample(COUNTED, operation="SET", table="unknown") == 1
    assert seen.sample(COUNTED, operation="GET", table="unknown") == 1


def test_what_a_client_chooses_makes_no_series(observed: Callable[..., Seen], redis: Any) -> None:
    """Commands are bounded, however many there are; a command that is none has the label of the others."""
    app = FastAPI()

    @app.get("/")
    def run() -> None:
        for number in range(600):
            with pytest.raises(library("redis").ResponseError):
                redis.execute_command("X" + "".join(chr(ord("A") + int(digit)) for digit in str(number)), "key")
        with pytest.raises(library("redis").ResponseError):
            redis.execute_command("x{1}\n\x00" * 1000, "key")

    seen = observed(app, instrument=[instrumentor("redis")], max_values_per_label=50, log_level="fatal")
    with TestClient(app) as client:
        assert client.get("/").status_code == 200
    samples = seen.samples(COUNTED)
    assert sum(samples.values()) == 601
    assert len(samples) <= 52
    assert seen.total("fastapi_observe_internal_errors_total") == 0


def test_after_close_the_library_is_as_before(observed: Callable[..., Seen], redis: Any) -> None:
    """`close` switches off what was switched on; a new install switches it on again."""
    method = type(redis).execute_command
    seen = observed(FastAPI(), instrument=[instrumentor("redis")])
    assert type(redis).execute_command is not method
    redis.ping()
    seen.observe.close()
    assert type(redis).execute_command is method
    again = observed(FastAPI(), instrument=[instrumentor("redis")])
    redis.ping()
    assert again.sample(COUNTED, operation="PING", table="unknown") == 1
    assert seen.sample(COUNTED, operation="PING", table="unknown") == 1


def test_fields_and_ids_are_those_of_the_request(observed: Callable[..., Seen], redis: Any) -> None:
    """A command's span is in the request's trace, with the fields of the request; its line has their ids."""
    app = FastAPI()

    @app.get("/")
    def read() -> None:
        seen.observe.set(tenant="acme")
        redis.get("key")

    seen = observed(app, instrument=[instrumentor("redis")])
    with TestClient(app) as client:
        client.get("/")
    span = next(span for span in seen.spans if span.name == "GET")
    (server,) = seen.server_spans
    assert span.parent is not None
    assert span.parent.span_id == server.context.span_id
    assert (span.attributes or {})["tenant"] == "acme"
    (line,) = operation_lines(seen)
    assert line["trace_id"] == f"{server.context.trace_id:032x}"
    assert line["span_id"] == f"{span.context.span_id:016x}"
    assert line["fields"]["tenant"] == "acme"
