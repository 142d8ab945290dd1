"""Holds that many requests, a fifth of them cancelled or left by their clients, leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
import pytest
import sqlalchemy
from collectors import Collector
from driver import Client, http_scope
from fastapi import BackgroundTasks, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from opentelemetry.sdk.trace import SpanProcessor
from sqlalchemy.pool import StaticPool

from fastapi_observe import install
from fastapi_observe.internal.opentelemetry import RecordedSpan
from fastapi_observe.records.operation import Operation
from fastapi_observe.records.request import RequestRecord

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from fastapi_observe import Observability

SOAK = "OBSERVE_SOAK" in os.environ
REQUESTS: Final = 200_000 if SOAK else 2_000
CHUNKS: Final = 20 if SOAK else 4
SIDE_BY_SIDE: Final = 40
STEEPEST: Final = 1.0
"""Maximum growth by 100,000 requests, in megabytes."""


class LiveSpans(SpanProcessor):
    """Counts spans that have started and not ended."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0

    def on_start(self, *_: Any, **__: Any) -> None:
        """Count a started span."""
        self.begun += 1

    def on_end(self, *_: Any) -> None:
        """Count an ended span."""
        self.ended += 1


def make_app(engine: sqlalchemy.Engine) -> FastAPI:
    """Return an app with all kinds of endpoints."""
    app = FastAPI()

    @app.get("/items/{item_id}")
    async def item(item_id: int) -> int:
        return item_id

    @app.get("/work")
    async def work(request: Request) -> int:
        observe: Observability = request.app.state.observe
        async with observe.db.query("SELECT", table="orders"):
            await asyncio.sleep(0)
        async with observe.external.call("billing", "get"), observe.operation("step"):
            await asyncio.sleep(0)
            with observe.tracing.span("inner"):
                await asyncio.sleep(0)
        observe.log.info("worked")
        return 1

    @app.get("/fails")
    async def fails(request: Request) -> None:
        async with request.app.state.observe.db.query("DELETE", table="orders"):
            await asyncio.sleep(0)
            raise LookupError("no such row")

    @app.get("/refused")
    async def refused() -> None:
        raise HTTPException(409)

    @app.get("/stream")
    async def stream(request: Request) -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            with request.app.state.observe.operation("stream"):
                for _ in range(8):
                    yield b"x" * 64
                    await asyncio.sleep(0)

        return StreamingResponse(parts())

    @app.get("/background")
    async def background(tasks: BackgroundTasks) -> str:
        tasks.add_task(asyncio.sleep, 0)
        return "soon"

    @app.get("/engine")
    async def query() -> int:
        with engine.connect() as connection:
            return len(connection.execute(sqlalchemy.text("SELECT 1")).all())

    return app


PATHS: Final = ("/items/7", "/items/x", "/work", "/work", "/fails", "/refused", "/stream", "/stream", "/background",
                "/engine", "/none")  # fmt: skip


class Load:
    """Sends requests; every tenth is cancelled at some await, every tenth left by its client during the response."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._random = random.Random(7)  # noqa: S311 - no secret
        self.counts: Counter[str] = Counter()

    async def send(self, many: int) -> None:
        """Send requests, some of them concurrently."""
        for first in range(0, many, SIDE_BY_SIDE):
            numbers = range(first, min(many, first + SIDE_BY_SIDE))
            await asyncio.gather(*(self._request(number) for number in numbers))

    async def _request(self, number: int) -> None:
        kind = number % 10
        path = "/stream" if kind == 0 else self._random.choice(PATHS)
        leaves = self._random.randrange(7) if kind == 0 else None
        inbox = [{"type": "http.request", "body": b"", "more_body": False}]
        client = Client(inbox, leaves, strict=bool(number % 4))
        scope = http_scope(path, asgi={"version": "3.0", "spec_version": "2.4" if number % 4 else "2.3"})
        task = asyncio.ensure_future(self._run(scope, client))
        if kind == 1:
            for _ in range(self._random.randrange(6)):
                await asyncio.sleep(0)
            task.cancel()
        try:
            await task
            self.counts["left" if kind == 0 else "answered"] += 1
        except asyncio.CancelledError:
            self.counts["cancelled"] += 1
        except (OSError, LookupError, Exception) as exc:  # noqa: BLE001 - counted below
            self.counts[type(exc).__name__] += 1

    async def _run(self, scope: Any, client: Client) -> None:
        await self._app(scope, client.receive, client.send)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Discard lines, since captured ones would grow."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        monkeypatch.setattr(sys, "stdout", nowhere)
        yield


def alive(*kinds: type) -> dict[str, int]:
    """Return the number of objects of these classes."""
    gc.collect()
    counts = Counter(type(each).__name__ for each in gc.get_objects() if issubclass(type(each), kinds))
    return dict(counts)


def slope(points: list[tuple[float, float]]) -> float:
    """Return the slope of the line of best fit."""
    mean_x, mean_y = (sum(column) / len(points) for column in zip(*points, strict=True))
    over = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return float(over / sum((x - mean_x) ** 2 for x, _ in points))


@pytest.mark.usefixtures("quiet")
def test_nothing_is_left_of_many_requests() -> None:
    """No span, gauge, request record or operation remains; threads, descriptors and memory are flat."""
    asyncio.run(_soak())


async def _soak() -> None:
    earlier = Counter(alive(RequestRecord, Operation, RecordedSpan))  # of other tests
    engine = sqlalchemy.create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    collector, spans = Collector(), LiveSpans()
    app = make_app(engine)
    observe = install(
        app, sample_ratio=1.0, span_processors=(spans,), otlp_endpoint=collector.url, otlp_protocol="http/protobuf",
        engines=[engine], batch_delay=0.1,
    )  # fmt: skip
    try:
        await _stay_flat(app, observe, collector, spans, earlier)
    finally:
        observe.close()
        collector.close()
        engine.dispose()


async def _stay_flat(
    app: FastAPI, observe: Observability, collector: Collector, spans: LiveSpans, earlier: Counter[str]
) -> None:
    load, process = Load(app), psutil.Process()
    await load.send(REQUESTS // CHUNKS)  # to warm up
    before = threading.active_count(), process.num_fds()
    memory = []
    for chunk in range(CHUNKS):
        await load.send(REQUESTS // CHUNKS)
        for kept in (collector.bodies, collector.paths, collector.headers):
            kept.clear()
        gc.collect()
        memory.append((chunk * REQUESTS / CHUNKS / 1e5, process.memory_info().rss / 1e6))
    for _ in range(200):  # connections of clients that have left end a moment later
        if process.num_fds() <= before[1] + 2:
            break
        await asyncio.sleep(0.05)
    after = threading.active_count(), process.num_fds()
    growth = slope(memory[CHUNKS // 4 :])
    summary = f"{dict(load.counts)}, {growth:+.2f} MB per 100,000, threads and descriptors {before} {after}"
    print(f"\nSOAK {REQUESTS} requests: {summary}, spans {spans.begun}", file=sys.stderr)  # noqa: T201 - a figure
    for _ in range(3):  # generators that were not closed end when they are collected, in a later turn
        gc.collect()
        await asyncio.sleep(0.01)
    observe.flush(5)
    text = observe.metrics.render("", "")[1].decode()
    assert "\nhttp_requests_in_progress 0\n" in text
    assert observe.internal_errors.counts == {}
    assert spans.begun == spans.ended > REQUESTS
    assert not Counter(alive(RequestRecord, Operation, RecordedSpan)) - earlier
    assert load.counts["cancelled"] > REQUESTS / 20
    assert after[0] <= before[0] + 1
    assert after[1] <= before[1] + 2
    if SOAK:
        assert growth < STEEPEST
