"""A process that repeats one step of a user's code inside a request: `python -m benchmarks.steps <side> <ratio>`.

`ours` uses fastapi-observe; `stock` does the same with what people use otherwise. Orders: `<step> <times>`; the answer
is the CPU microseconds of one step on the caller's thread and in the whole process.
"""
# ruff: noqa: PLC0415 - each side imports only what it measures

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from fastapi import Request  # noqa: TC002 - FastAPI reads the annotation

from benchmarks.apps import loguru_json, plain_app, provider, request
from benchmarks.process import answers
from benchmarks.worker import caller, flusher

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI

    Step = Callable[[], Any]

ATTRIBUTES = {"db.system.name": "other_sql", "db.operation.name": "SELECT", "db.collection.name": "orders"}
FIELDS: dict[str, Any] = {"order_id": 7, "total": 12.5}
LINE: dict[str, Any] = {
    "method": "GET",
    "url": "/items/7",
    "endpoint": "/items/{item_id}",
    "status_code": 200,
    "outcome": "ok",
    "duration_ms": 1.234,
    "request_size": 0,
    "response_size": 10,
    "user_agent": "benchmark/1.0",
    "remote_addr": "127.0.0.1",
}

STEPS = ("db.query", "external.call", "log.info", "counter.inc", "counter.labels.inc", "request line")


def our_steps(app: FastAPI, ratio: float) -> dict[str, Step]:
    """Return the steps with fastapi-observe."""
    from fastapi_observe import install

    # Thousands of queries in one request are meant.
    observe = install(app, sample_ratio=ratio, max_traces_per_second=None, repeated_query_threshold=10**9)
    bare = observe.metrics.counter("steps_total", "Steps.")
    labelled = observe.metrics.counter("labelled_steps_total", "Steps.", ["currency"])
    ended: list[Any] = []

    async def query() -> None:
        async with observe.db.query("SELECT", table="orders"):
            pass

    async def call() -> None:
        async with observe.external.call("billing", "get_invoice"):
            pass

    def line() -> None:
        if not ended:
            from fastapi_observe.records.request import current_record

            exchange: Any = current_record()
            exchange.status_code, exchange.outcome, exchange.endpoint = 200, "ok", "/items/{item_id}"
            ended.append(exchange)
        observe.logs.on_request_end(ended[0])

    return {
        "db.query": query,
        "external.call": call,
        "log.info": lambda: observe.log.info("order placed", **FIELDS),
        "counter.inc": bare.inc,
        "counter.labels.inc": lambda: labelled.labels("EUR").inc(),
        "request line": line,
    }


def stock_steps(app: FastAPI, ratio: float) -> dict[str, Step]:
    """Return the steps as people write them with the SDK, loguru and prometheus_client, inside a server span."""
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.trace import SpanKind
    from prometheus_client import CollectorRegistry, Counter, Histogram

    registry, logger, spans = CollectorRegistry(), loguru_json(), provider(ratio)
    app.add_middleware(OpenTelemetryMiddleware, tracer_provider=spans, exclude_spans=["receive", "send"])
    tracer = spans.get_tracer("benchmark")
    bare = Counter("steps", "Steps.", registry=registry)
    labelled = Counter("labelled_steps", "Steps.", ["currency"], registry=registry)
    queries = Counter("db_queries", "Queries.", ["operation", "table"], registry=registry)
    seconds = Histogram("db_query_seconds", "Queries.", ["operation", "table"], registry=registry)
    calls = Counter("calls", "Calls.", ["service", "operation", "outcome"], registry=registry)
    call_seconds = Histogram("call_seconds", "Calls.", ["service", "operation"], registry=registry)

    def query() -> None:
        began = time.perf_counter()
        with tracer.start_as_current_span("SELECT orders", kind=SpanKind.CLIENT, attributes=ATTRIBUTES):
            pass
        queries.labels("SELECT", "orders").inc()
        seconds.labels("SELECT", "orders").observe(time.perf_counter() - began)

    def call() -> None:
        began = time.perf_counter()
        with tracer.start_as_current_span(
            "billing get_invoice", kind=SpanKind.CLIENT, attributes={"peer.service": "billing"}
        ):
            pass
        calls.labels("billing", "get_invoice", "ok").inc()
        call_seconds.labels("billing", "get_invoice").observe(time.perf_counter() - began)

    def span() -> None:
        with tracer.start_as_current_span("SELECT orders", kind=SpanKind.CLIENT, attributes=ATTRIBUTES):
            pass

    return {
        "db.query": query,
        "external.call": call,
        "span alone": span,
        "log.info": lambda: logger.bind(**FIELDS).info("order placed"),
        "counter.inc": bare.inc,
        "counter.labels.inc": lambda: labelled.labels("EUR").inc(),
        "request line": lambda: logger.bind(**LINE).info("HTTP request completed"),
    }


async def serve() -> None:
    """Obey: repeat the step inside one request."""
    side, ratio = sys.argv[1], float(sys.argv[2])
    app = plain_app()
    steps = (our_steps if side == "ours" else stock_steps)(app, ratio)
    spent: list[float] = []

    @app.get("/repeat/{step}/{times}")
    async def repeat(request: Request, step: str, times: int) -> None:  # noqa: ARG001 - as real endpoints have it
        one = steps[step]
        wait = asyncio.iscoroutinefunction(one)
        thread, process = time.thread_time(), time.process_time()
        if wait:
            for _ in range(times):
                await one()
        else:
            for _ in range(times):
                one()
        on_thread = time.thread_time() - thread
        flush()
        spent[:] = [on_thread / times * 1e6, (time.process_time() - process) / times * 1e6]

    flush = flusher(app)
    out = answers()
    out.write(json.dumps("ready") + "\n")
    for order in sys.stdin:
        step, times = order.rsplit(" ", 1)
        await caller(app, request("GET", f"/repeat/{step}/{int(times)}"))()
        out.write(json.dumps(spent) + "\n")


if __name__ == "__main__":
    asyncio.run(serve())
