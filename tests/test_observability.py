"""`Observability` reports to each signal, provides clients and shuts down in time, whatever one of its parts does."""

from __future__ import annotations

import asyncio
import gc
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from injection import Watched, failing, replacing
from opentelemetry import trace
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient

from fastapi_observe import get_observability, install, traced
from fastapi_observe.records.signal import SignalHook

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen
    from starlette.websockets import WebSocket

    from fastapi_observe.observability import Observability
    from fastapi_observe.records.signal import Signal


async def page(request: Any) -> PlainTextResponse:
    """Answer any Starlette request."""
    return PlainTextResponse("page")


async def talk(websocket: WebSocket) -> None:
    """Accept and close."""
    await websocket.accept()
    await websocket.close()


def app() -> Starlette:
    """Build an app with a page and a WebSocket."""
    return Starlette(routes=[Route("/x/{y}", page), WebSocketRoute("/talk/{name}", talk)])


class RecordingSignal:
    """A signal that collects its calls; with `broken` it then raises."""

    def __init__(self, *, broken: bool = False) -> None:
        self.calls: list[str] = []
        self._broken = broken

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if self._broken:
            raise ZeroDivisionError

    def on_request_start(self, record: Any) -> None:
        """Keep it."""
        self._note("on_request_start")

    def on_response_start(self, record: Any) -> None:
        """Keep it, with the endpoint that is known by now."""
        self._note(f"on_response_start {record.endpoint}")

    def on_request_end(self, record: Any) -> None:
        """Keep it, with how it ended."""
        self._note(f"on_request_end {record.endpoint} {record.outcome}")

    def on_job_start(self, record: Any) -> None:
        """Keep it."""
        self._note("on_job_start")

    def on_job_end(self, record: Any) -> None:
        """Keep it, with how it ended."""
        self._note(f"on_job_end {record.endpoint} {record.outcome}")

    def on_operation_start(self, operation: Any) -> None:
        """Keep it."""
        self._note("on_operation_start")

    def on_operation_end(self, operation: Any) -> None:
        """Keep it, with how it ended."""
        self._note(f"on_operation_end {operation.outcome}")


def add(seen: Seen, signal: Signal, name: str = "fourth") -> None:
    """Add a signal as a new one would be."""
    signals = seen.observe._signals
    seen.observe._signals = (*signals, SignalHook(name, 1 << len(signals), signal))


async def use(seen: Seen) -> None:
    """Send a request, open a WebSocket and make a query."""
    client = TestClient(seen.observe.app)
    assert client.get("/x/1").text == "page"
    with client.websocket_connect("/talk/ann"):
        pass
    async with seen.observe.db.query("SELECT", table="orders"):
        pass
    with seen.observe.job("nightly"):
        pass


EVERYTHING = [
    "on_request_start",
    "on_request_end /x/{y} ok",
    "on_request_start",
    "on_response_start /talk/{name}",
    "on_request_end /talk/{name} ok",
    "on_operation_start",
    "on_operation_end ok",
    "on_job_start",
    "on_job_end nightly ok",
]


async def test_a_fourth_signal_gets_all_calls(observed: Callable[..., Seen]) -> None:
    """A signal consists of seven methods."""
    seen, fourth = observed(app()), RecordingSignal()
    add(seen, fourth)
    await use(seen)
    assert fourth.calls == EVERYTHING
    assert seen.observe.internal_errors.counts == {}


async def test_a_failing_signal_does_not_affect_the_others(observed: Callable[..., Seen]) -> None:
    """Its exceptions are counted by its name; a request whose start failed is not ended for it."""
    seen, broken, last = observed(app()), RecordingSignal(broken=True), RecordingSignal()
    add(seen, broken, "broken")
    add(seen, last, "last")
    await use(seen)
    assert last.calls == EVERYTHING
    assert broken.calls == [
        "on_request_start",
        "on_request_start",
        "on_operation_start",
        "on_operation_end ok",
        "on_job_start",
    ]
    assert seen.observe.internal_errors.counts == {
        "broken.on_request_start": 2,
        "broken.on_operation_start": 1,
        "broken.on_operation_end": 1,
        "broken.on_job_start": 1,
    }
    broken.__dict__["on_request_start"] = lambda _: None
    await use(seen)
    assert {site for site in seen.observe.internal_errors.counts if site.startswith("broken.")} == {
        f"broken.{name}"
        for name in (
            "on_request_start",
            "on_response_start",
            "on_request_end",
            "on_operation_start",
            "on_operation_end",
            "on_job_start",
        )
    }


@pytest.mark.parametrize("off", ["tracing", "metrics", "logs"])
async def test_a_signal_that_is_switched_off(observed: Callable[..., Seen], off: str) -> None:
    """The other two signals report as before."""
    seen = observed(app(), **{off: False})
    await use(seen)
    assert bool(seen.server_spans) is (off != "tracing")
    assert bool(seen.samples("http_requests_total")) is (off != "metrics")
    assert bool(seen.request_lines) is (off != "logs")
    assert seen.observe.internal_errors.counts == {}


# Request ids and trace headers


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("order-7.retry_2", True),
        ("a" * 64, True),
        ("short", False),
        ("a" * 65, False),
        ("-starts-wrong", False),
        ("has space", False),
        ("ünïcödé-id", False),
        ("line\tbreak--", False),
    ],
)
def test_the_callers_request_id(observed: Callable[..., Seen], given: str, *, taken: bool) -> None:
    """A well-formed id of a trusted caller is the request id, else the trace id is."""
    seen = observed(app())
    answer = TestClient(seen.observe.app).get("/x/1", headers={b"x-request-id": given.encode()})
    trace_id = seen.request_lines[0]["trace_id"]
    assert answer.headers["x-request-id"] == (given if taken else trace_id)
    assert seen.request_lines[0]["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("websocket", [False, True])
def test_the_request_id_of_the_app(observed: Callable[..., Seen], *, websocket: bool) -> None:
    """A header that a middleware of the app sets is sent once, and is the request id of line, span and exception."""

    class CorrelationId:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def send_with_id(message: Any) -> None:
                if message["type"] in {"http.response.start", "websocket.accept"}:
                    headers = [*message.get("headers", ()), (b"X-Request-ID", b"of-the-app:7")]
                    message = {**message, "headers": headers}
                await send(message)

            await self._inner(scope, receive, send_with_id)

    made = app()
    made.add_middleware(CorrelationId)
    seen = observed(made)
    client = TestClient(made)
    if websocket:
        with client.websocket_connect("/talk/ann") as session:
            sent: Any = session.extra_headers
            assert [value for name, value in sent if name.lower() == b"x-request-id"] == [b"of-the-app:7"]
    else:
        assert client.get("/x/1").headers.get_list("x-request-id") == ["of-the-app:7"]
    (line,) = seen.request_lines
    assert line["request_id"] == "of-the-app:7"
    assert dict(seen.server_spans[0].attributes or {})["fastapi_observe.request_id"] == "of-the-app:7"


def test_without_tracing_a_request_still_has_an_id(observed: Callable[..., Seen]) -> None:
    """The request id is random and sent in the configured header."""
    seen = observed(app(), tracing=False, request_id_header="X-Correlation-Id")
    client = TestClient(seen.observe.app)
    ids = {client.get("/x/1").headers["x-correlation-id"] for _ in range(3)}
    assert len(ids) == 3
    assert {len(one) for one in ids} == {32}


@pytest.mark.parametrize(("ratio", "wanted", "sent"), [(1.0, True, True), (1.0, False, False), (0.0, True, False)])
def test_the_trace_response_header(observed: Callable[..., Seen], ratio: float, *, wanted: bool, sent: bool) -> None:
    """A sampled request has `traceresponse` on its response, unless it is switched off."""
    seen = observed(app(), sample_ratio=ratio, response_trace_header=wanted)
    answer = TestClient(seen.observe.app).get("/x/1")
    line = seen.request_lines[0]
    expected = f"00-{line['trace_id']}-{line.get('span_id')}-01" if sent else None
    assert answer.headers.get("traceresponse") == expected


# Clients


async def test_the_shared_client(observed: Callable[..., Seen]) -> None:
    """Each event loop has one; a closed one is replaced; the shutdown closes it."""
    observe = observed(FastAPI()).observe
    first = observe.http
    assert observe.http is first
    await first.aclose()
    second = observe.http
    assert second is not first
    elsewhere = await asyncio.to_thread(lambda: observe.http)
    assert elsewhere is not second
    await observe.on_shutdown()
    assert second.is_closed
    assert elsewhere.is_closed
    assert observe.http is not second
    await observe.on_shutdown()


async def test_further_http_clients(observed: Callable[..., Seen]) -> None:
    """`http_client` accepts httpx's options; open clients are closed at shutdown, unreferenced ones are freed."""
    observe = observed(FastAPI()).observe
    client = observe.http_client("billing", base_url="http://127.0.0.1:9", timeout=3)
    assert isinstance(client, httpx.AsyncClient)
    assert (str(client.base_url), client.timeout.read) == ("http://127.0.0.1:9", 3)
    await observe.http_client().aclose()
    gc.collect()
    await observe.on_shutdown()
    assert client.is_closed


class Unclosable(httpx.AsyncBaseTransport):
    """A transport that cannot be closed."""

    async def aclose(self) -> None:
        """Fail, as with a connection of another event loop."""
        raise RuntimeError("Event loop is closed")


async def test_a_client_that_cannot_be_closed(observed: Callable[..., Seen]) -> None:
    """The other clients are closed."""
    observe = observed(FastAPI()).observe
    one, two = observe.http_client(transport=Unclosable()), observe.http_client()
    await observe.on_shutdown()
    assert (one.is_closed, two.is_closed) == (True, True)
    assert observe.internal_errors.counts == {"http.close": 1}


# Lifetime


async def test_startup_runs_once_for_each_loop(observed: Callable[..., Seen]) -> None:
    """A second request starts nothing; a restart in the same or another loop does."""
    observe = observed(FastAPI()).observe
    loops: list[Any] = []
    with replacing(observe.saturation.start, lambda _, __, loop: loops.append(loop)):
        observe.on_startup()
        observe.on_startup()
        assert len(loops) == 1
        await observe.on_shutdown()
        observe.on_startup()
        await asyncio.to_thread(lambda: asyncio.run(_started(observe)))
        assert len(set(map(id, loops))) == 2
        await asyncio.to_thread(observe.on_startup)
        assert len(loops) == 3


async def _started(observe: Observability) -> None:
    observe.on_startup()


def test_an_app_on_trio(observed: Callable[..., Seen]) -> None:
    """Requests are served, clients work and the shutdown ends; the event loop's lag is not sampled."""
    seen = observed(app())

    async def main() -> None:
        seen.observe.on_startup()
        transport = httpx.ASGITransport(seen.observe.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.get("/x/1")).text == "page"
        assert seen.observe.http is seen.observe.http
        await seen.observe.on_shutdown()

    anyio.run(main, backend="trio")
    assert len(seen.request_lines) == 1


async def test_shutdown_ends_within_its_timeout(observed: Callable[..., Seen]) -> None:
    """An export that hangs does not keep the app from ending."""
    observe = observed(FastAPI(), shutdown_timeout=0.03).observe
    hangs = threading.Event()
    with replacing(observe.flush, lambda *_: hangs.wait(30)):
        before = monotonic()
        await observe.on_shutdown()
        assert monotonic() - before < 5
        hangs.set()


def test_flush_reaches_every_signal(observed: Callable[..., Seen]) -> None:
    """A signal that fails to flush does not stop the others."""
    observe = observed(FastAPI()).observe
    flushed: list[float] = []
    note = replacing(observe.tracing.flush, lambda _, __, timeout: flushed.append(timeout))
    with failing(observe.logs.flush), note:
        observe.flush(0.5)
    assert observe.internal_errors.counts == {"logs.flush": 1}
    assert 0 < flushed[0] <= 0.5


def test_close_ends_every_part() -> None:
    """A part that fails to close does not stop the others; the undo functions run, the last one first."""
    observe = install(FastAPI())
    undone: list[int] = []
    observe.on_close(lambda: undone.append(1))
    observe.on_close(lambda: undone.append(2))
    with failing(observe.tracing.close), Watched() as watched:
        observe.close()
    assert observe.closed
    assert type(observe.logs).close.__code__ in watched.called
    assert (undone, observe.internal_errors.counts) == ([2, 1], {"close": 1})
    observe.tracing.close()


# For code far from a request


def test_get_observability_in_a_request(observed: Callable[..., Seen]) -> None:
    """With several installed apps it returns that of the app that serves the request."""
    given: list[Observability] = []

    async def endpoint(request: Any) -> PlainTextResponse:
        given.append(get_observability())
        return PlainTextResponse("")

    apps = [Starlette(routes=[Route("/", endpoint)]) for _ in range(2)]
    seen = [observed(one) for one in apps]
    for one in apps:
        TestClient(one).get("/")
    assert given == [one.observe for one in seen]


def test_where_decorated_functions_report(observed: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch) -> None:
    """In a request their spans go to its app, elsewhere to the only install, else to the global provider."""

    @traced
    def bare() -> int:
        return 1

    @traced("price order", tier="gold")
    def named() -> int:
        return 2

    @traced()
    def called() -> int:
        return 3

    tracers: list[str] = []
    monkeypatch.setattr(trace, "get_tracer", lambda name: tracers.append(name) or trace.NoOpTracer())  # type: ignore[func-returns-value]
    assert bare() == 1
    assert tracers == ["fastapi_observe"]

    async def endpoint(request: Any) -> PlainTextResponse:
        return PlainTextResponse(str(named()))

    first = observed(Starlette(routes=[Route("/", endpoint)]))
    assert called() == 3
    assert first.spans[0].name.endswith("called")
    second = observed(FastAPI())
    assert TestClient(first.observe.app).get("/").text == "2"
    span = next(span for span in first.spans if span.name == "price order")
    assert (span.attributes or {})["tier"] == "gold"
    assert second.spans == []
    assert tracers == ["fastapi_observe"]
    bare()
    assert len(tracers) == 2


def test_only_functions_can_be_traced() -> None:
    """`@traced(7)` raises at the decorator, not at the first call."""
    with pytest.raises(TypeError, match="expected a function or a span name, got 7"):
        traced(7)  # type: ignore[call-overload]
