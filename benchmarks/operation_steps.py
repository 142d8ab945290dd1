"""A process that repeats one operation inside a request of an app with ours: `python -m benchmarks.operation_steps`.

Arguments: the sampling ratio, the URL that clients call, `contrib` or `alone`. Commands: `<step> <times>`; the response
is the seconds of one repetition: CPU time of the caller's thread, CPU time of the process, and wall-clock time.
`internal_errors` returns the internal errors of ours. With `contrib`, an engine and a client of contrib's instrumentors
are measured, too; they patch the whole process, so they have a separate one.
"""
# ruff: noqa: PLC0415 - contrib's packages are imported only where they are measured

from __future__ import annotations

import asyncio
import json
import sys
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

from benchmarks.apps import plain_app, provider, request
from benchmarks.machine import versions
from benchmarks.process import answers
from benchmarks.worker import caller, flusher

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import httpx
    from sqlalchemy import Connection

    from fastapi_observe import Observability

    Step = Callable[[int], Awaitable[None]]

STATEMENT = "SELECT id, customer, status, total FROM orders WHERE id = ?"
ATTRIBUTES: dict[str, str] = {
    "db.system.name": "sqlite",
    "db.operation.name": "SELECT",
    "db.collection.name": "orders",
    "db.query.summary": "SELECT orders",
    "db.query.text": STATEMENT,
}
"""Attributes of the span of `db.query`; the SDK's span has the same."""

WARM_UP = 200
"""Repetitions of each step before the first measured one."""


def query_steps(observe: Observability, ratio: float) -> dict[str, Step]:
    """Return `db.query` around nothing, and the SDK's own span with the same attributes."""
    from opentelemetry.trace import SpanKind

    tracer = provider(ratio).get_tracer("benchmark")

    async def query(times: int) -> None:
        for _ in range(times):
            async with observe.db.query("SELECT", table="orders", statement=STATEMENT, system="sqlite"):
                pass

    async def query_with(times: int) -> None:
        for _ in range(times):
            with observe.db.query("SELECT", table="orders", statement=STATEMENT, system="sqlite"):
                pass

    async def query_span(times: int) -> None:
        for _ in range(times):
            with tracer.start_as_current_span(
                "SELECT orders",
                kind=SpanKind.CLIENT,
                attributes={
                    "db.system.name": "sqlite",
                    "db.operation.name": "SELECT",
                    "db.collection.name": "orders",
                    "db.query.summary": "SELECT orders",
                    "db.query.text": STATEMENT,
                },
            ):
                pass

    return {"query": query, "query_with": query_with, "query_span": query_span}


def work_steps(observe: Observability, ratio: float) -> dict[str, Step]:
    """Return `operation` around nothing, and the SDK's own span."""
    tracer = provider(ratio).get_tracer("benchmark")

    async def operation(times: int) -> None:
        for _ in range(times):
            with observe.operation("x"):
                pass

    async def operation_span(times: int) -> None:
        for _ in range(times):
            with tracer.start_as_current_span("x"):
                pass

    return {"operation": operation, "operation_span": operation_span}


def connection(instrument: Callable[[Any], object] | None = None) -> Connection:
    """Open a connection of a new SQLite engine. It stays open, as that of a session in use."""
    from sqlalchemy import create_engine

    engine = create_engine("sqlite://")
    if instrument is not None:
        instrument(engine)
    return engine.connect()


def engine_step(opened: Connection) -> Step:
    """Return a short statement through SQLAlchemy."""
    from sqlalchemy import text

    async def select(times: int) -> None:
        for _ in range(times):
            opened.execute(text("SELECT 1")).scalar()

    return select


def client_step(client: httpx.AsyncClient, url: str) -> Step:
    """Return sequential calls over a kept-alive connection."""

    async def get(times: int) -> None:
        for _ in range(times):
            await client.get(url)

    return get


def our_steps(observe: Observability, url: str) -> dict[str, Step]:
    """Return engines and clients, ours and bare ones. A second bare one shows the error of the method."""
    import httpx

    return {
        "engine_bare": engine_step(connection()),
        "engine_again": engine_step(connection()),
        "engine_ours": engine_step(connection(observe.instrument_engine)),
        "client_bare": client_step(httpx.AsyncClient(), url),
        "client_again": client_step(httpx.AsyncClient(), url),
        "client_ours": client_step(observe.http_client(service="items"), url),
    }


def contrib_steps(ratio: float, url: str) -> dict[str, Step]:
    """Return an engine and a client of contrib's instrumentors at their defaults, with our sampler and no exporter."""
    import httpx

    calls = import_module("opentelemetry.instrumentation.httpx").HTTPXClientInstrumentor
    statements = import_module("opentelemetry.instrumentation.sqlalchemy").SQLAlchemyInstrumentor
    spans = provider(ratio)
    client = httpx.AsyncClient()
    calls.instrument_client(client, tracer_provider=spans)

    def instrument(engine: Any) -> None:
        # With an unknown version of SQLAlchemy it would only log a warning.
        statements().instrument(engine=engine, tracer_provider=spans, raise_exception_on_conflict=True)

    return {"engine_contrib": engine_step(connection(instrument)), "client_contrib": client_step(client, url)}


def finish_deferred_work() -> None:
    """Do the work that ours defers to the end of the request, so that it is included in the measured time."""
    from fastapi_observe.records.request import current_record

    record = current_record()
    if record is not None and record.work is not None:
        record.work.aggregate(time.perf_counter())


async def serve() -> None:
    """Repeat a step inside one request for each command."""
    from fastapi_observe import install

    ratio, url, mode = float(sys.argv[1]), sys.argv[2], sys.argv[3]
    app = plain_app()
    observe = install(app, sample_ratio=ratio, max_traces_per_second=None)
    steps = {**query_steps(observe, ratio), **work_steps(observe, ratio), **our_steps(observe, url)}
    if mode == "contrib":
        steps |= contrib_steps(ratio, url)
    spent: list[float] = []

    @app.get("/repeat/{step}/{times}")
    async def repeat(step: str, times: int) -> None:
        one = steps[step]
        clock, thread, process = time.perf_counter(), time.thread_time(), time.process_time()
        await one(times)
        finish_deferred_work()
        on_thread, on_clock = time.thread_time() - thread, time.perf_counter() - clock
        flush()
        spent[:] = [on_thread / times, (time.process_time() - process) / times, on_clock / times]

    flush = flusher(app)
    out = answers()
    for step in steps:
        await caller(app, request("GET", f"/repeat/{step}/{WARM_UP}"))()
    out.write(json.dumps({"steps": list(steps), "versions": versions()}) + "\n")
    for order in sys.stdin:
        if order == "internal_errors\n":
            out.write(json.dumps(dict(observe.internal_errors.counts)) + "\n")
            continue
        step, times = order.split()
        await caller(app, request("GET", f"/repeat/{step}/{int(times)}"))()
        out.write(json.dumps(spent) + "\n")


if __name__ == "__main__":
    asyncio.run(serve())
