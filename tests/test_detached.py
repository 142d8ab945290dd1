"""`observe.detached()` runs code outside the current request, in traces that are linked to it."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from loguru import logger
from opentelemetry import baggage, trace
from opentelemetry.context import attach, detach
from sqlalchemy import create_engine, text
from starlette.testclient import TestClient

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen

TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="")


def test_a_worker_that_a_request_starts(observed: Callable[..., Seen]) -> None:
    """Its lines have no ids of that request; each unit of work is a trace of its own, linked to the request."""
    app, engine = FastAPI(), create_engine("sqlite://")
    jobs: Any = None
    done = asyncio.Event()

    async def worker() -> None:
        while True:
            number = await jobs.get()
            logger.info("worked", n=number)
            with seen.observe.operation("job", n=number), engine.connect() as connection:
                connection.execute(text("SELECT 1"))
            if number == 3:
                done.set()

    @app.post("/jobs/{number}")
    async def enqueue(number: int) -> None:
        nonlocal jobs
        if jobs is None:
            jobs = asyncio.Queue()
            TENANT.set("acme")
            with seen.observe.log.contextualize(cart="1"), seen.observe.operation("starting"):
                with seen.observe.detached():
                    app.state.task = asyncio.create_task(worker())
                    tenants.append(TENANT.get())
                assert trace.get_current_span().get_span_context().is_valid
        jobs.put_nowait(number)
        if number == 3:
            await done.wait()

    tenants: list[str] = []
    seen = observed(app, engines=[engine])
    with TestClient(app) as client:
        for number in range(4):
            client.post(f"/jobs/{number}")
        client.portal.call(app.state.task.cancel)  # type: ignore[union-attr]
    assert tenants == ["acme"]
    request_ids = {line["request_id"] for line in seen.request_lines}
    worked = [line for line in seen.lines if line["message"] == "worked"]
    assert len(worked) == 4
    assert [{"trace_id", "request_id"} & line.keys() for line in worked] == [set()] * 4
    assert [line["fields"].get("cart") for line in worked] == [None] * 4
    first = next(line for line in seen.request_lines if line["fields"]["url"] == "/jobs/0")
    spans = [span for span in seen.spans if span.name == "job"]
    assert len({span.context.trace_id for span in spans if span.context}) == len(spans) == 4
    assert {span.parent for span in spans} == {None}
    assert {f"{link.context.trace_id:032x}" for span in spans for link in span.links} == {first["trace_id"]}
    queries = [span for span in seen.spans if span.name == "SELECT"]
    assert {len(span.links) for span in queries} == {0}
    assert all("db_count" not in line["fields"] for line in seen.request_lines)
    assert len(request_ids) == 4
    assert seen.observe.internal_errors.counts == {}


def test_spans_and_threads(observed: Callable[..., Seen]) -> None:
    """`tracing.span` and `@traced` in a thread are linked too; nested in a block of their own they stay linked."""
    app = FastAPI()

    @app.get("/")
    def endpoint() -> None:
        with seen.observe.detached():
            context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(work,))
        thread.start()
        thread.join()

    def work() -> None:
        with seen.observe.detached(), seen.observe.tracing.span("outer"), seen.observe.tracing.span("inner"):
            pass

    seen = observed(app)
    TestClient(app).get("/")
    by_name = {span.name: span for span in seen.spans}
    (link,) = by_name["outer"].links
    assert link.context == by_name["GET /"].context
    assert by_name["inner"].links == ()
    assert by_name["inner"].parent == by_name["outer"].context


def test_outside_a_request(observed: Callable[..., Seen]) -> None:
    """The block changes nothing but the current context: no link, no baggage, and everything is restored."""
    seen = observed(FastAPI())
    token = attach(baggage.set_baggage("key", "value"))
    try:
        with seen.observe.detached():
            assert baggage.get_all() == {}
            with seen.observe.tracing.span("alone"):
                pass
        assert baggage.get_baggage("key") == "value"
    finally:
        detach(token)
    assert seen.spans[0].links == ()


async def test_a_block_that_is_left_elsewhere(observed: Callable[..., Seen]) -> None:
    """Leaving it in another task does not raise."""
    scope = observed(FastAPI()).observe.detached()

    async def enter() -> None:
        scope.__enter__()

    await asyncio.create_task(enter())
    scope.__exit__(None, None, None)


def test_the_callers_exception_is_raised(observed: Callable[..., Seen]) -> None:
    """It leaves the block unchanged."""
    seen = observed(FastAPI())
    with pytest.raises(KeyError), seen.observe.detached():
        raise KeyError
    assert seen.observe.internal_errors.counts == {}
