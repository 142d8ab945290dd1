"""Calls of gRPC, boto and Kafka, seen by their instrumentors, are external calls; threads keep the trace."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
import pytest
from fastapi import FastAPI
from libraries import SAMPLING, instrumentor, library
from opentelemetry.trace import SpanKind
from starlette.testclient import TestClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Seen

COUNTED = "external_requests_total"
SERVICE = "shop.Stock"


@contextmanager
def grpc_server() -> Iterator[str]:
    """Run a real server with a method that responds, one that streams, and some that fail."""

    def echo(request: bytes, context: grpc.ServicerContext) -> bytes:
        received.append(dict(context.invocation_metadata()))
        return request

    def stream(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield request
        yield request

    def fail(code: grpc.StatusCode) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        def handler(request: bytes, context: grpc.ServicerContext) -> bytes:
            context.abort(code, "geheim")
            raise AssertionError

        return handler

    received: list[dict[str, Any]] = []
    methods = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
        "Missing": grpc.unary_unary_rpc_method_handler(fail(grpc.StatusCode.NOT_FOUND)),
        "Broken": grpc.unary_unary_rpc_method_handler(fail(grpc.StatusCode.INTERNAL)),
        "Late": grpc.unary_unary_rpc_method_handler(fail(grpc.StatusCode.DEADLINE_EXCEEDED)),
    }
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("sampling", SAMPLING)
def test_grpc_calls_have_service_method_and_outcome(observed: Callable[..., Seen], sampling: str) -> None:
    """The status of gRPC is the outcome, as that of HTTP is elsewhere; its message is not a label."""
    app = FastAPI()

    @app.get("/")
    def endpoint() -> None:
        with grpc.insecure_channel(address) as channel:
            for method in ("Echo", "Missing", "Broken", "Late"):
                call: Any = channel.unary_unary(f"/{SERVICE}/{method}")
                try:
                    call(b"x", timeout=20)
                except grpc.RpcError:
                    assert method != "Echo"

    with grpc_server() as address:
        seen = observed(app, instrument=[instrumentor("grpc_client")], **SAMPLING[sampling])
        with TestClient(app) as client:
            assert client.get("/").status_code == 200
    samples = {tuple(dict(labels).values()): value for labels, value in seen.samples(COUNTED).items()}
    assert samples == {
        ("Echo", "ok", SERVICE): 1,
        ("Missing", "client_error", SERVICE): 1,
        ("Broken", "server_error", SERVICE): 1,
        ("Late", "timeout", SERVICE): 1,
    }
    assert seen.request_lines[0]["fields"]["external_count"] == 4


async def test_grpc_calls_of_asyncio_count(observed: Callable[..., Seen]) -> None:
    """Also several at the same time, and a stream: each is one call."""
    with grpc_server() as address:
        seen = observed(FastAPI(), instrument=[instrumentor("grpc_aio_client")])
        async with grpc.aio.insecure_channel(address) as channel:
            with seen.observe.job("many"):
                echo: Any = channel.unary_unary(f"/{SERVICE}/Echo")
                await asyncio.gather(*(echo(b"x", timeout=20) for _ in range(5)))
                stream: Any = channel.unary_stream(f"/{SERVICE}/Stream")
                assert [answer async for answer in stream(b"x", timeout=20)] == [b"x", b"x"]
    assert seen.sample(COUNTED, service=SERVICE, operation="Echo", outcome="ok") == 5
    assert seen.sample(COUNTED, service=SERVICE, operation="Stream", outcome="ok") == 1


@pytest.mark.parametrize("sampling", SAMPLING)
def test_aws_calls_have_service_and_operation(
    observed: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch, sampling: str
) -> None:
    """A table of DynamoDB is a query; an object of S3 is a call; the status of a failed one is its outcome."""
    session = library("botocore.session")
    stub = library("botocore.stub")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    app = FastAPI()
    seen = observed(app, instrument=[instrumentor("botocore")], **SAMPLING[sampling])
    made = session.Session()
    s3, dynamodb = (made.create_client(name, region_name="eu-central-1") for name in ("s3", "dynamodb"))

    @app.get("/")
    def endpoint() -> None:
        with stub.Stubber(s3) as answers:
            answers.add_response("list_buckets", {"Buckets": [], "ResponseMetadata": {"HTTPStatusCode": 200}})
            answers.add_client_error("head_object", "NoSuchKey", http_status_code=404)
            s3.list_buckets()
            with pytest.raises(s3.exceptions.ClientError):
                s3.head_object(Bucket="b", Key="geheim")
        with stub.Stubber(dynamodb) as answers:
            answers.add_response("get_item", {"Item": {"id": {"S": "1"}}})
            dynamodb.get_item(TableName="orders", Key={"id": {"S": "geheim"}})

    with TestClient(app) as client:
        assert client.get("/").status_code == 200
    samples = {tuple(dict(labels).values()): value for labels, value in seen.samples(COUNTED).items()}
    assert samples == {("ListBuckets", "ok", "S3"): 1, ("HeadObject", "client_error", "S3"): 1}
    assert seen.samples("db_queries_total") == {(("operation", "GetItem"), ("table", "unknown")): 1}
    fields = seen.request_lines[0]["fields"]
    assert (fields["external_count"], fields["db_count"]) == (2, 1)


@pytest.mark.parametrize("sampling", SAMPLING)
def test_a_message_to_kafka_is_a_call(observed: Callable[..., Seen], sampling: str) -> None:
    """The topic is a label; topics beyond the limit share one. Without a broker the message stays in the client."""
    kafka = library("confluent_kafka")
    app = FastAPI()
    seen = observed(app, instrument=[instrumentor("confluent_kafka")], log_level="info", **SAMPLING[sampling])
    producer = kafka.Producer({"bootstrap.servers": "127.0.0.1:9", "log_level": 0})

    @app.get("/")
    def endpoint() -> None:
        producer.produce("orders", b"x")

    with TestClient(app) as client:
        client.get("/")
    assert seen.samples(COUNTED) == {
        (("operation", "publish orders"), ("outcome", "ok"), ("service", "kafka")): 1,
    }
    assert seen.request_lines[0]["fields"]["external_count"] == 1
    for number in range(300):
        producer.produce(f"user-{number}", b"x")
    assert len(seen.samples(COUNTED)) <= 201
    assert seen.total(COUNTED) == 301
    producer.purge()
    producer.flush(5)


@pytest.mark.parametrize("sampling", SAMPLING)
def test_a_task_that_taskiq_sends_is_a_call(observed: Callable[..., Seen], sampling: str) -> None:
    """Its span names no messaging system, and counts once; what the task calls meanwhile is not part of it."""
    taskiq = library("taskiq")
    seen = observed(app := FastAPI(), instrument=["taskiq"], **SAMPLING[sampling])
    broker = taskiq.InMemoryBroker(await_inplace=True)
    tracer = seen.observe.tracing.provider.get_tracer("opentelemetry.instrumentation.requests")

    @broker.task(task_name="mail")  # type: ignore[untyped-decorator]
    async def mail() -> None:
        with tracer.start_as_current_span("GET", kind=SpanKind.CLIENT, attributes={"http.method": "GET"}):
            pass

    @app.post("/orders")
    async def order() -> None:
        await mail.kiq()

    with TestClient(app) as client:
        client.post("/orders")
    samples = {tuple(dict(labels).values()): value for labels, value in seen.samples(COUNTED).items()}
    assert samples == {("send/mail", "ok", "taskiq"): 1, ("GET", "ok", "unknown"): 1}
    assert seen.request_lines[0]["fields"]["external_count"] == 1  # the task is not part of the request


def test_threads_keep_the_trace(observed: Callable[..., Seen]) -> None:
    """With the instrumentor of `threading`, work in a thread that the user starts is part of the request."""
    app = FastAPI()

    def work() -> None:
        with seen.observe.db.query("SELECT", table="orders"):
            pass

    @app.get("/")
    def endpoint() -> None:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(work).result()

    seen = observed(app, instrument=[instrumentor("threading")])
    with TestClient(app) as client:
        client.get("/")
    assert seen.request_lines[0]["fields"]["db_count"] == 2
    trace_ids = {span.context.trace_id for span in seen.spans}
    assert len(trace_ids) == 1
    seen.observe.close()
    assert threading.Thread.start.__module__ == "threading"
