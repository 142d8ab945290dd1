"""httpx and httpx2 clients, sync and async: calls as operations, streams, redirects, trace headers, lifetime."""

from __future__ import annotations

import asyncio
import copy
import gc
import socket
import threading
import weakref
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import httpx2
import pytest
from fastapi import FastAPI
from injection import failing
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode
from servers import serving
from starlette.applications import Starlette
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from fastapi_observe import HttpClientDep  # noqa: TC001 - FastAPI reads the annotation
from fastapi_observe.clients.http.body import StreamedBody
from fastapi_observe.clients.http.calls import MAX_CALL_NAMES, MAX_LABEL_TEMPLATES
from fastapi_observe.clients.http.external import ExternalCall, ExternalClient
from fastapi_observe.clients.http.httpx import HttpClients
from fastapi_observe.clients.http.propagation import PropagationPolicy
from fastapi_observe.clients.http.record import PathTemplates
from fastapi_observe.internal.httpx import reopen_client
from fastapi_observe.records.operation import CURRENT_OPERATION
from fastapi_observe.records.request import KNOWN_METHODS
from fastapi_observe.redaction.redactor import MAX_PATH_LENGTH, Redactor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from conftest import Seen
    from starlette.requests import Request

MODULES: list[Any] = [httpx, httpx2]
KINDS = [(module, kind) for module in MODULES for kind in ("AsyncClient", "Client")]

# The service called


async def echo(request: Request) -> Response:
    """Respond with the headers received."""
    await request.body()
    status = int(request.query_params.get("status", "200"))
    return JSONResponse(dict(request.headers), status_code=status)


async def redirect(request: Request) -> Response:
    """Redirect to the parameter `to`."""
    return RedirectResponse(request.query_params.get("to", "/redirect"), status_code=307)


class Gate:
    """Holds responses back until the test opens it."""

    def __init__(self) -> None:
        self.open = threading.Event()

    async def slow(self, request: Request) -> Response:
        """Respond with one part, and another when the gate opens."""

        async def parts() -> AsyncIterator[bytes]:
            yield b"first"
            await asyncio.to_thread(self.open.wait, 5)
            yield b"last"

        return StreamingResponse(parts())

    async def hang(self, request: Request) -> Response:
        """Respond when the gate opens."""
        await asyncio.to_thread(self.open.wait, 5)
        return Response()


async def parts(request: Request) -> Response:
    """Respond in parts."""

    async def each() -> AsyncIterator[bytes]:
        for number in range(3):
            yield b"%d" % number

    return StreamingResponse(each())


async def breaks(request: Request) -> Response:
    """Close the connection in the middle of the body."""

    async def each() -> AsyncIterator[bytes]:
        yield b"first"
        raise BrokenPipeError

    return StreamingResponse(each())


@pytest.fixture(scope="module")
def callee() -> Iterator[tuple[int, Gate]]:
    """Serve the service; return its port and gate."""
    gate = Gate()
    routes = [
        Route("/echo", echo, methods=["GET", "POST", "BREW"]),
        Route("/invoices/{id}", echo),
        Route("/redirect", redirect, methods=["GET", "POST"]),
        Route("/slow", gate.slow),
        Route("/hang", gate.hang),
        Route("/parts", parts),
        Route("/breaks", breaks),
    ]
    with serving(Starlette(routes=routes), log_config=None) as at:
        yield at, gate


@pytest.fixture
def gate(callee: tuple[int, Gate]) -> Iterator[Gate]:
    """Close the gate; open it after the test."""
    callee[1].open = threading.Event()
    yield callee[1]
    callee[1].open.set()


@pytest.fixture
def port(callee: tuple[int, Gate], gate: Gate) -> int:
    """Return the port of the service."""
    return callee[0]


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """Respond to one connection with these bytes and reset it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            connection.recv(65536)
            connection.sendall(answer)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close sends RST
            connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


# The clients


class Calls:
    """The clients under test, and their spans, metrics and log lines."""

    def __init__(self, seen: Seen, *hosts: str, baggage: tuple[str, ...] = ()) -> None:
        self.seen = seen
        observe = seen.observe
        self.external = ExternalClient(observe, PropagationPolicy(hosts, baggage))
        self.clients = HttpClients(self.external, observe.internal_errors, Redactor(capture_query_parameters=["page"]))

    @property
    def span(self) -> dict[str, Any]:
        """The attributes of the only span, with its name and status."""
        (span,) = self.seen.spans
        assert span.kind is SpanKind.CLIENT
        return {**(span.attributes or {}), "name": span.name, "status": span.status.status_code}

    @property
    def outcomes(self) -> dict[tuple[str, str, str], float]:
        """Number of calls by service, operation and outcome."""
        found = self.seen.samples("external_requests_total")
        return {
            (labels["service"], labels["operation"], labels["outcome"]): value
            for labels, value in ((dict(each), value) for each, value in found.items())
        }

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log lines of calls."""
        return [line for line in self.seen.lines if line["logger"] == "fastapi_observe.operation"]


@pytest.fixture
def calls(observed: Callable[..., Seen]) -> Iterator[Calls]:
    """Install on an app without routes."""
    made = Calls(observed(Starlette(), capture_query_parameters=["page"]))
    yield made
    made.clients.restore()
    assert made.seen.observe.internal_errors.counts == {}


class AnyClient:
    """A client of one of the four kinds, with one interface for all."""

    def __init__(
        self, clients: HttpClients, module: Any, kind: str, options: dict[str, Any], named: dict[str, Any]
    ) -> None:
        self.module = module
        self.client = clients.instrument(getattr(module, kind)(**options), **named)
        self.is_async = kind == "AsyncClient"

    async def request(self, method: str, url: str, **options: Any) -> Any:
        """Send a request."""
        got = self.client.request(method, url, **options)
        return await got if self.is_async else got

    async def stream(self, url: str, take: int | None = None, **options: Any) -> Any:
        """Read a streamed response, or `take` parts of it. The call is not the current operation meanwhile."""
        if self.is_async:
            async with self.client.stream("GET", url, **options) as answer:
                assert CURRENT_OPERATION.get() is None
                if take is None:
                    await answer.aread()
                elif take:
                    async for _ in answer.aiter_raw():
                        take -= 1
                        if not take:
                            break
            return answer
        with self.client.stream("GET", url, **options) as answer:
            assert CURRENT_OPERATION.get() is None
            if take is None:
                answer.read()
            elif take:
                for _ in answer.iter_raw():
                    take -= 1
                    if not take:
                        break
        return answer

    async def close(self) -> None:
        """Close the client."""
        if self.is_async:
            await self.client.aclose()
        else:
            self.client.close()


@pytest.fixture(params=KINDS, ids=lambda each: f"{each[0].__name__}.{each[1]}")
async def client(request: pytest.FixtureRequest, calls: Calls) -> AsyncIterator[Callable[..., AnyClient]]:
    """Make clients of each of the four kinds, which are closed after the test."""
    made: list[AnyClient] = []

    def make(named: dict[str, Any] | None = None, **options: Any) -> AnyClient:
        module, kind = request.param
        made.append(AnyClient(calls.clients, module, kind, options, named or {}))
        return made[-1]

    yield make
    for one in made:
        await one.close()


async def test_a_call_gives_three_signals(calls: Calls, client: Callable[..., AnyClient], port: int) -> None:
    """A call is a client span with the conventions' attributes, the parent of the callee's span; a sample; a line."""
    answer = await client().request(
        "POST", f"http://user:secret@127.0.0.1:{port}/echo?card=4111&page=2#part", content=b"12345"
    )
    got = answer.json()
    assert (answer.elapsed.total_seconds() > 0, answer.num_bytes_downloaded) == (True, len(answer.content))
    (span,) = calls.seen.spans
    assert span.context is not None
    assert got["traceparent"].startswith(f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-")
    assert calls.span == {
        "name": "POST 127.0.0.1",
        "status": StatusCode.UNSET,
        "peer.service": "127.0.0.1",
        "http.request.method": "POST",
        "server.address": "127.0.0.1",
        "server.port": port,
        "url.full": f"http://127.0.0.1:{port}/echo?card=REDACTED&page=2",
        "http.request.body.size": 5,
        "http.response.status_code": 200,
        "http.response.body.size": len(answer.content),
        "network.protocol.version": "1.1",
    }
    assert calls.outcomes == {("127.0.0.1", "POST", "ok"): 1}
    (line,) = calls.lines
    assert (line["level"], line["span_id"]) == ("debug", f"{span.context.span_id:016x}")
    assert CURRENT_OPERATION.get() is None


@pytest.mark.parametrize(("status", "expected"), [(404, ("client_error", "warn")), (500, ("server_error", "error"))])
async def test_error_statuses(
    calls: Calls, client: Callable[..., AnyClient], port: int, status: int, expected: tuple[str, str]
) -> None:
    """4xx is `client_error` and no error of the span; 5xx is `server_error`."""
    outcome, level = expected
    answer = await client({"service": "pay"}).request("GET", f"http://127.0.0.1:{port}/echo?status={status}")
    assert answer.status_code == status
    assert calls.outcomes == {("pay", "GET", outcome): 1}
    assert calls.span["status"] is (StatusCode.ERROR if status == 500 else StatusCode.UNSET)
    assert calls.span.get("error.type") == ("500" if status == 500 else None)
    assert [line["level"] for line in calls.lines] == [level]


# Failures


async def test_a_timeout(calls: Calls, client: Callable[..., AnyClient], port: int) -> None:
    """The outcome is `timeout`, the error type and the exception are those of httpx."""
    one = client()
    with pytest.raises(one.module.ReadTimeout) as caught:
        await one.request("GET", f"http://127.0.0.1:{port}/hang", timeout=one.module.Timeout(30, read=0.05))
    assert (calls.span["error.type"], calls.span["status"]) == (f"{one.module.__name__}.ReadTimeout", StatusCode.ERROR)
    assert calls.outcomes == {("127.0.0.1", "GET", "timeout"): 1}
    assert "http.response.status_code" not in calls.span
    del caught


async def test_a_pool_without_a_free_connection(
    calls: Calls, client: Callable[..., AnyClient], port: int, gate: Gate
) -> None:
    """A timeout of the connection pool is a `timeout`."""
    one = client()
    module = one.module
    one = client(limits=module.Limits(max_connections=1), timeout=module.Timeout(30, pool=0.05))
    url = f"http://127.0.0.1:{port}/slow"
    if one.is_async:
        async with one.client.stream("GET", url):
            with pytest.raises(module.PoolTimeout):
                await one.client.get(url)
    else:
        with one.client.stream("GET", url), pytest.raises(module.PoolTimeout):
            one.client.get(url)
    assert calls.outcomes == {("127.0.0.1", "GET", "timeout"): 1, ("127.0.0.1", "GET", "ok"): 1}


async def test_a_refused_connection(calls: Calls, client: Callable[..., AnyClient]) -> None:
    """The outcome is `connect_error`."""
    one = client()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(one.module.ConnectError):
            await one.request("GET", f"http://127.0.0.1:{closed.getsockname()[1]}/")
    assert calls.outcomes == {("127.0.0.1", "GET", "connect_error"): 1}


async def test_a_reset_connection(calls: Calls, client: Callable[..., AnyClient]) -> None:
    """A connection that ends before the response is an error, with the type of its exception."""
    one = client()
    with answering(b"") as at, pytest.raises((one.module.NetworkError, one.module.RemoteProtocolError)) as caught:
        await one.request("GET", f"http://127.0.0.1:{at}/")
    assert calls.outcomes == {("127.0.0.1", "GET", "error"): 1}
    assert calls.span["error.type"] == f"{one.module.__name__}.{type(caught.value).__name__}"


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_incomplete_body(
    calls: Calls,
    client: Callable[..., AnyClient],
    port: int,
    streamed: bool,  # noqa: FBT001 - a table
) -> None:
    """A body that ends too early is an error, whatever the status."""
    one, url = client(), f"http://127.0.0.1:{port}/breaks"
    with pytest.raises(one.module.RemoteProtocolError):
        await (one.stream(url) if streamed else one.request("GET", url))
    assert calls.outcomes == {("127.0.0.1", "GET", "error"): 1}
    assert calls.span["error.type"] == f"{one.module.__name__}.RemoteProtocolError"
    assert calls.span.get("http.response.status_code") == (200 if streamed else None)
    assert "http.response.body.size" not in calls.span


@pytest.mark.parametrize("module", MODULES)
async def test_a_cancelled_call(calls: Calls, module: Any, port: int) -> None:
    """The outcome is `cancelled`: before the response, inside its body, and between two parts of it."""

    async def between() -> None:
        async with one.stream("GET", f"http://127.0.0.1:{port}/parts") as answer:
            async for _ in answer.aiter_raw():
                reached.set()
                await asyncio.sleep(5)

    async def inside() -> None:
        async with one.stream("GET", f"http://127.0.0.1:{port}/slow") as answer:
            async for _ in answer.aiter_raw():
                asyncio.get_running_loop().call_soon(reached.set)

    async def before() -> None:
        asyncio.get_running_loop().call_later(0.02, reached.set)
        await one.get(f"http://127.0.0.1:{port}/hang")

    async with calls.clients.instrument(module.AsyncClient()) as one:
        for number, function in enumerate((between, inside, before), 1):
            reached = asyncio.Event()
            task = asyncio.create_task(function())
            await reached.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert calls.outcomes == {("127.0.0.1", "GET", "cancelled"): number}


# Streams


async def test_a_streamed_call_ends_with_its_body(calls: Calls, client: Callable[..., AnyClient], port: int) -> None:
    """It has one span, and the response is that of a client that is not instrumented."""
    answer = await client().stream(f"http://127.0.0.1:{port}/parts")
    assert (answer.content, answer.num_bytes_downloaded) == (b"012", 3)
    assert answer.elapsed.total_seconds() > 0
    assert (calls.span["http.response.body.size"], calls.span["http.response.status_code"]) == (3, 200)
    assert calls.outcomes == {("127.0.0.1", "GET", "ok"): 1}


async def test_a_stream_that_is_not_read_to_its_end(calls: Calls, client: Callable[..., AnyClient], port: int) -> None:
    """Closing it ends the call without an error. The size of the body is unknown."""
    await client().stream(f"http://127.0.0.1:{port}/parts", take=1)
    assert calls.outcomes == {("127.0.0.1", "GET", "ok"): 1}
    assert "http.response.body.size" not in calls.span


async def test_a_stream_is_not_read_ahead(calls: Calls, port: int, gate: Gate) -> None:
    """Parts are received when the user reads them. Between them the current operation and span are the user's."""
    tracing = calls.seen.observe.tracing
    async with calls.clients.new() as http, http.stream("GET", f"http://127.0.0.1:{port}/slow") as answer:
        assert calls.seen.spans == []
        body = answer.aiter_bytes()
        assert await anext(body) == b"first"
        with tracing.span("own") as own:
            assert CURRENT_OPERATION.get() is None
            gate.open.set()
            assert await anext(body) == b"last"
            assert trace.get_current_span() is own
        assert [part async for part in body] == []
    assert [span.name for span in calls.seen.spans] == ["own", "GET 127.0.0.1"]


@pytest.mark.parametrize("module", MODULES)
async def test_an_abandoned_response(calls: Calls, module: Any, port: int) -> None:
    """A response that is neither read nor closed is reported as `incomplete_response`, with the next call."""
    async with calls.clients.instrument(module.AsyncClient()) as http:
        url = f"http://127.0.0.1:{port}/parts"
        answer = await http.send(http.build_request("GET", url), stream=True)
        del answer
        gc.collect()
        assert calls.outcomes == {}
        await http.get(url)
    assert calls.outcomes == {("127.0.0.1", "GET", "incomplete_response"): 1, ("127.0.0.1", "GET", "ok"): 1}
    assert calls.seen.spans[0].status.status_code is StatusCode.ERROR


class FailsToClose:
    """A body that cannot be closed."""

    def __init__(self, exc: Exception) -> None:
        self.exc = exc

    def __iter__(self) -> Iterator[bytes]:
        yield b"1"

    def close(self) -> None:
        """Fail."""
        raise self.exc

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"1"

    async def aclose(self) -> None:
        """Fail."""
        raise self.exc


async def test_a_body_that_fails_to_close(calls: Calls, client: Callable[..., AnyClient]) -> None:
    """The exception ends the call and reaches the caller unchanged."""
    exc = OSError("reset")

    def answer(request: Any) -> Any:
        body = type("Body", (FailsToClose, one.module.AsyncByteStream, one.module.SyncByteStream), {})(exc)
        return one.module.Response(200, stream=body)

    one: AnyClient = client()
    one = client(transport=one.module.MockTransport(answer))
    with pytest.raises(OSError, match="reset") as caught:
        await one.stream("http://pay/", take=0)
    assert caught.value is exc
    assert calls.outcomes == {("pay", "GET", "error"): 1}


class Counting:
    """A body that is not a generator."""

    def __init__(self) -> None:
        self.left = 3

    def __aiter__(self) -> Counting:
        return self

    async def __anext__(self) -> bytes:
        self.left -= 1
        if not self.left:
            raise StopAsyncIteration
        return b"1"

    def __iter__(self) -> Iterator[bytes]:
        return iter([b"1", b"1"])


async def test_bodies_that_are_not_generators(calls: Calls, client: Callable[..., AnyClient]) -> None:
    """A hook may replace the body. Its other attributes are available, also in a copy."""

    def replace(answer: Any) -> None:
        answer.stream = type("Body", (Counting, one.module.AsyncByteStream, one.module.SyncByteStream), {})()

    async def replace_later(answer: Any) -> None:
        replace(answer)

    one: AnyClient = client()
    hook = replace_later if one.is_async else replace
    transport = one.module.MockTransport(lambda _: one.module.Response(200, stream=NoBody(one.module)))
    one = client(event_hooks={"response": [hook]}, transport=transport)
    got = await one.stream("http://pay/")
    assert got.content == b"11"
    assert copy.copy(got.stream).left == got.stream.left
    assert calls.span["http.response.body.size"] == 2


async def test_an_ended_call_releases_its_request(calls: Calls) -> None:
    """A call that is referenced longer reports nothing more and keeps no request alive."""
    held: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        held.append(CURRENT_OPERATION.get())
        return httpx.Response(200)

    transport = httpx.MockTransport(answer)
    with calls.clients.instrument(httpx.Client(transport=transport)) as one:
        one.get("http://pay/")
    (call,) = held
    call.add_details(more=1)
    assert (call.request, call.details["url.full"], call.details["more"]) == (None, "http://pay/", 1)
    assert type(call.copy()) is ExternalCall
    call.close()
    assert calls.outcomes == {("pay", "GET", "ok"): 1}


async def test_a_streamed_response_that_is_complete(calls: Calls, client: Callable[..., AnyClient]) -> None:
    """The call ends at once if the body was read already, and with a switch of protocols."""
    one = client()
    module = one.module
    for number, answer in enumerate((module.Response(200, content=b"12"), module.Response(101, stream=NoBody(module)))):
        one = client(transport=module.MockTransport(lambda _, answer=answer: answer))
        if one.is_async:
            await one.client.send(one.client.build_request("GET", "http://pay/"), stream=True)
        else:
            one.client.send(one.client.build_request("GET", "http://pay/"), stream=True)
        assert len(calls.seen.spans) == number + 1
    sizes = [(span.attributes or {}).get("http.response.body.size") for span in calls.seen.spans]
    assert sizes == [None, None]


def NoBody(module: Any) -> Any:  # noqa: N802 - like a class; each module has its own base class
    """Return a stream that fails to close."""
    return type("NoBody", (FailsToClose, module.AsyncByteStream, module.SyncByteStream), {})(OSError())


# Redirects and trace headers


async def test_redirects_are_part_of_the_call(calls: Calls, client: Callable[..., AnyClient], port: int) -> None:
    """A followed redirect is one more request of the call; the URL is the last one."""
    answer = await client().request(
        "GET", f"http://127.0.0.1:{port}/redirect", params={"to": "/echo?token=x"}, follow_redirects=True
    )
    assert set(answer.json()) >= {"traceparent"}
    assert calls.span["http.request.resend_count"] == 1
    assert calls.span["url.full"] == f"http://127.0.0.1:{port}/echo?token=REDACTED"
    assert calls.outcomes == {("127.0.0.1", "GET", "ok"): 1}


async def test_endless_redirects(calls: Calls, client: Callable[..., AnyClient], port: int) -> None:
    """They are one failed call."""
    one = client(follow_redirects=True, max_redirects=3)
    with pytest.raises(one.module.TooManyRedirects):
        await one.request("GET", f"http://127.0.0.1:{port}/redirect")
    assert calls.outcomes == {("127.0.0.1", "GET", "error"): 1}
    assert calls.span["http.request.resend_count"] == 3


def transport_to_callee(module: Any, kind: str, port: int) -> Any:
    """Return a transport that sends requests for any host to the service."""
    base = module.AsyncHTTPTransport if kind == "AsyncClient" else module.HTTPTransport

    def turn(request: Any) -> Any:
        url = request.url.copy_with(scheme="http", host="127.0.0.1", port=port)
        return module.Request(request.method, url, headers=request.headers, stream=request.stream)

    if kind == "AsyncClient":

        class Turned(base):  # type: ignore[misc, valid-type]
            async def handle_async_request(self, request: Any) -> Any:
                return await super().handle_async_request(turn(request))
    else:

        class Turned(base):  # type: ignore[misc, valid-type, no-redef]
            def handle_request(self, request: Any) -> Any:
                return super().handle_request(turn(request))

    return Turned()


@pytest.mark.parametrize(("module", "kind"), KINDS)
@pytest.mark.parametrize(
    ("host", "redirect_host", "propagate", "expected"),
    [
        ("payments", "payments", None, True),
        ("payments", "api.foreign.example", None, False),
        ("api.foreign.example", "api.foreign.example", None, False),
        ("api.foreign.example", "payments", None, True),
        ("payments", "api.partner.example", None, True),
        ("api.foreign.example", "api.foreign.example", True, True),
        ("api.foreign.example", "other.foreign.example", True, False),
        ("payments", "payments", False, False),
    ],
)
async def test_which_hosts_receive_trace_headers(  # noqa: PLR0913, PLR0917 - a table
    observed: Callable[..., Seen],
    port: int,
    module: Any,
    kind: str,
    host: str,
    redirect_host: str,
    propagate: Any,
    expected: bool,  # noqa: FBT001
) -> None:
    """Private hosts and those in `propagate_to`. On a redirect to another host the headers are removed."""
    calls = Calls(observed(Starlette()), "*.partner.example", baggage=("*",))
    one = AnyClient(
        calls.clients, module, kind, {"transport": transport_to_callee(module, kind, port)}, {"propagate": propagate}
    )
    token = trace_with_baggage()
    try:
        url = f"http://{host}/redirect?to=http%3A%2F%2F{redirect_host}%2Fecho"
        answer = await one.request("GET", url, follow_redirects=True, headers={"tracestate": "mine=1"})
    finally:
        token()
        await one.close()
    assert set(answer.json()) & {"traceparent", "baggage"} == ({"traceparent", "baggage"} if expected else set())
    assert ("tracestate" in answer.json()) is (expected and host != "api.foreign.example") or propagate is True
    assert calls.span["server.address"] == redirect_host
    assert calls.outcomes == {(host, "GET", "ok"): 1}


def trace_with_baggage() -> Callable[[], None]:
    """Set a baggage. Returns a function that reverts this."""
    from opentelemetry import baggage, context  # noqa: PLC0415 - only here

    token = context.attach(baggage.set_baggage("tenant", "acme"))
    return lambda: context.detach(token)


async def test_one_trace_crosses_to_a_real_service(observed: Callable[..., Seen]) -> None:
    """The server span of the service is a child of the client span, which is a child of the app's server span."""
    other_app, app = Starlette(routes=[Route("/echo", echo)]), FastAPI()

    @app.get("/")
    async def endpoint(http: HttpClientDep, port: int) -> dict[str, str]:
        answer = await http.get(f"http://user:secret@127.0.0.1:{port}/echo?card=4111#part")
        return dict(answer.json())

    there = observed(other_app, service_name="other")
    here = observed(app)
    with serving(other_app) as port, TestClient(app) as client:
        client.get(f"/?port={port}").json()
    server_here = here.server_spans[0]
    (call,) = [span for span in here.spans if span.kind is SpanKind.CLIENT]
    (server_there,) = there.server_spans
    assert server_here.context is not None
    assert call.parent is not None
    assert call.context is not None
    assert server_there.parent is not None
    assert call.parent.span_id == server_here.context.span_id
    assert server_there.parent.span_id == call.context.span_id
    assert server_there.parent.trace_id == server_here.context.trace_id
    assert (call.attributes or {})["url.full"] == f"http://127.0.0.1:{port}/echo?card=REDACTED"
    assert here.sample("external_requests_total", service="127.0.0.1", operation="GET", outcome="ok") == 1


async def test_requests_sent_by_an_auth(calls: Calls, client: Callable[..., AnyClient], port: int) -> None:
    """They are part of the call, and their credentials are not reported."""
    one = client()

    class Auth(one.module.Auth):  # type: ignore[misc, name-defined]
        def auth_flow(self, request: Any) -> Any:
            yield one.module.Request("GET", f"http://127.0.0.1:{port}/echo?status=401")
            request.headers["authorization"] = "Bearer secret-token"
            yield request

    answer = await one.request("GET", f"http://127.0.0.1:{port}/echo", auth=Auth())
    assert answer.json()["authorization"] == "Bearer secret-token"
    assert calls.span["http.request.resend_count"] == 1
    assert calls.outcomes == {("127.0.0.1", "GET", "ok"): 1}
    assert "secret-token" not in str(calls.lines) + str(calls.span) + calls.seen.text


@pytest.mark.parametrize(("module", "kind"), KINDS)
@pytest.mark.parametrize("way", ["auth", "hook"])
async def test_a_request_that_is_sent_to_another_host(
    observed: Callable[..., Seen], port: int, module: Any, kind: str, way: str
) -> None:
    """If an `auth` or a hook of the user changes the host, the new host decides about trace headers."""
    calls = Calls(observed(Starlette()))

    class Auth(module.Auth):  # type: ignore[misc]
        def auth_flow(self, request: Any) -> Any:
            turn(request)
            yield request

    def turn(request: Any) -> None:
        request.url = request.url.copy_with(host="api.foreign.example")

    async def turn_later(request: Any) -> None:
        turn(request)

    options: dict[str, Any] = {"transport": transport_to_callee(module, kind, port)}
    if way == "auth":
        options["auth"] = Auth()
    else:
        options["event_hooks"] = {"request": [turn_later if kind == "AsyncClient" else turn]}
    one = AnyClient(calls.clients, module, kind, options, {})
    answer = await one.request("GET", "http://payments/echo")
    await one.close()
    assert "traceparent" not in answer.json()
    assert calls.outcomes == {("payments", "GET", "ok"): 1}


async def test_secrets_are_not_reported(calls: Calls, client: Callable[..., AnyClient]) -> None:
    """User, password, query values and headers of a failed call are in no span, line or sample."""
    one = client()

    def fail(request: Any) -> Any:
        raise one.module.ReadError(f"broken: {request.url}", request=request)

    one = client(transport=one.module.MockTransport(fail))
    url = "http://me:s3cret@pay.example:8443/x?token=s3cret&s3cret#s3cret"
    with pytest.raises(one.module.ReadError, match="broken"):
        await one.request("GET", url, headers={"authorization": "s3cret", "cookie": "s3cret"})
    (span,) = calls.seen.spans
    shown = [dict(event.attributes or {}) for event in span.events]
    assert calls.span["url.full"] == "http://pay.example:8443/x?token=REDACTED&REDACTED"
    assert "s3cret" not in str(shown) + str(span.attributes) + calls.seen.text
    (line,) = calls.lines
    assert line["level"] == "error"
    assert "s3cret" not in str(line)


# Labels


async def test_unknown_methods_are_one_label(calls: Calls, client: Callable[..., AnyClient], port: int) -> None:
    """An unknown method has the label `_OTHER`; the span has the method."""
    await client({"service": "x"}).request("BREW", f"http://127.0.0.1:{port}/echo")
    assert "BREW" not in KNOWN_METHODS
    assert calls.outcomes == {("x", "_OTHER", "ok"): 1}
    assert (calls.span["name"], calls.span["http.request.method_original"]) == ("_OTHER x", "BREW")


async def test_templates_name_calls(calls: Calls, client: Callable[..., AnyClient], port: int) -> None:
    """Calls are named by the first template that matches, or by that in their `extensions`."""
    one = client({"service": "pay", "templates": ["/invoices/{id}"]}, base_url=f"http://127.0.0.1:{port}")
    await one.request("GET", "/invoices/7?x=1")
    await one.request("GET", "/echo")
    await one.request("GET", "/echo", extensions={"template": "/e/{x}"})
    await one.request("GET", "/echo", extensions={"template": ["x"]})
    await one.request("POST", "/echo", extensions={"template": "/e/{x}"})
    assert calls.outcomes == {
        ("pay", "GET /invoices/{id}", "ok"): 1,
        ("pay", "GET", "ok"): 2,
        ("pay", "GET /e/{x}", "ok"): 1,
        ("pay", "POST /e/{x}", "ok"): 1,
    }
    spans = calls.seen.spans[:4]
    assert [span.name for span in spans] == ["GET /invoices/{id} pay", "GET pay", "GET /e/{x} pay", "GET pay"]
    assert [(span.attributes or {}).get("url.template") for span in spans] == ["/invoices/{id}", None, "/e/{x}", None]


@pytest.mark.parametrize(
    ("templates", "path", "expected"),
    [
        (["/a/{id}"], "/a/7", "/a/{id}"),
        (["/a/{id}"], "/a/7/", None),
        (["/a/{id}"], "/a/", None),
        (["/a/{id}"], "/a/b%2Fc", "/a/{id}"),
        (["/a/{id}"], "/v1/a/7", "/a/{id}"),
        (["/a/{id}"], "/v2/a/7", None),
        (["/a/me", "/a/{id}"], "/a/me", "/a/me"),
        (["/a/{id}", "/a/me"], "/a/me", "/a/{id}"),
        (["/files/{path:path}"], "/files/a/b/c", "/files/{path:path}"),
        (["/a.b/{x}"], "/aXb/1", None),
        (["/größe/{x}"], "/gr%C3%B6%C3%9Fe/1", "/größe/{x}"),
        (["/{x}"], "/" + "a" * MAX_PATH_LENGTH, None),
        (["/"], "/", "/"),
        ([], "/", None),
    ],
)
def test_the_first_template_that_matches(templates: list[str], path: str, expected: str | None) -> None:
    """`{name}` matches one segment, `{name:path}` many; the path of the base URL may come first."""
    assert PathTemplates(templates, "/v1/").find(httpx.URL(f"http://pay{path}")) == expected


def test_invalid_templates() -> None:
    """They are rejected when the client is instrumented; the error says how to write one."""
    with pytest.raises(ValueError, match=r"write it like /invoices/\{id\}"):
        PathTemplates(["invoices"])
    with pytest.raises(TypeError, match=r'templates=\["/a"\]'):
        PathTemplates("/a")


def test_labels_are_bounded(calls: Calls) -> None:
    """More hosts and templates than the limits have a common label, and are not cached."""
    transport = httpx.MockTransport(lambda _: httpx.Response(200))
    with calls.clients.instrument(httpx.Client(transport=transport)) as one:
        for number in range(MAX_CALL_NAMES + 100):
            one.get(f"http://host{number}.example/", extensions={"template": f"/x{number}"})
        one.get("http://host1.example/", extensions={"template": "/" + "x" * 300})
    found = calls.outcomes
    assert len({service for service, _, _ in found}) == 101
    assert len({operation for _, operation, _ in found}) == MAX_LABEL_TEMPLATES + 1
    assert len(calls.clients._calls._labels) == MAX_CALL_NAMES


def test_a_url_without_a_host(calls: Calls) -> None:
    """The exception is that of httpx."""
    with calls.clients.instrument(httpx.Client()) as one, pytest.raises(httpx.UnsupportedProtocol):
        one.get("/x")
    assert calls.outcomes == {("unknown", "GET", "error"): 1}


# Clients of the user


async def test_hooks_of_the_user(calls: Calls, client: Callable[..., AnyClient], port: int) -> None:
    """They run in their order. Hooks that are set later do not disable ours."""
    one, ran = client(), []

    def hook(name: str) -> Callable[[Any], Any]:
        async def asynchronous(_: Any) -> None:
            ran.append(name)

        return asynchronous if one.is_async else lambda _: ran.append(name)

    one = client(event_hooks={"request": [hook("a"), hook("b")], "response": [hook("c")]})
    url = f"http://127.0.0.1:{port}/echo"
    assert "traceparent" in (await one.request("GET", url)).json()
    one.client.event_hooks = {"request": [hook("d")]}
    assert "traceparent" in (await one.request("GET", url)).json()
    assert ran == ["a", "b", "c", "d"]


async def test_instrument_is_idempotent(calls: Calls, client: Callable[..., AnyClient], port: int) -> None:
    """A client that is instrumented already keeps its options."""
    one = client({"service": "first"})
    assert calls.clients.instrument(one.client, "second") is one.client
    await one.request("GET", f"http://127.0.0.1:{port}/echo")
    assert calls.outcomes == {("first", "GET", "ok"): 1}


async def test_restore(calls: Calls, client: Callable[..., AnyClient], port: int) -> None:
    """`restore` removes everything from the client and leaves it open."""
    one = client()
    plain = getattr(one.module, type(one.client).__name__)()
    calls.clients.restore()
    assert set(vars(one.client)) == set(vars(plain))
    assert one.client.event_hooks == plain.event_hooks
    assert "traceparent" not in (await one.request("GET", f"http://127.0.0.1:{port}/echo")).json()
    assert calls.outcomes == {}
    await one.close()
    if one.is_async:
        await plain.aclose()
    else:
        plain.close()


async def test_a_client_of_two_apps(observed: Callable[..., Seen], client: Callable[..., AnyClient], port: int) -> None:
    """Calls are measured once, for the app that instrumented it last, and by the other after that one has left."""
    url = f"http://127.0.0.1:{port}/echo"
    for first_leaves in (True, False):
        one = client()
        first, second = Calls(observed(Starlette())), Calls(observed(Starlette()), "nowhere")
        for each in (first, second):
            each.clients.instrument(one.client, "pay", propagate=False if each is first else None)
        assert "traceparent" in (await one.request("GET", url)).json()
        assert (first.outcomes, second.outcomes) == ({}, {("pay", "GET", "ok"): 1})
        leaving, staying = (first, second) if first_leaves else (second, first)
        before = staying.outcomes.get(("pay", "GET", "ok"), 0)
        leaving.clients.restore()
        await one.request("GET", url)
        assert staying.outcomes[("pay", "GET", "ok")] == before + 1
        staying.clients.restore()


@pytest.mark.parametrize("value", [object(), httpx.AsyncClient, httpx, None, "http://x"])
def test_objects_that_cannot_be_instrumented(calls: Calls, value: Any) -> None:
    """The error names the type and the alternative."""
    with pytest.raises(TypeError, match=r"expected an instance of httpx\.Client or AsyncClient.*external\.call"):
        calls.clients.instrument(value)


def test_httpx2_is_optional(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is used only if it is imported."""
    monkeypatch.delitem(__import__("sys").modules, "httpx2")
    with pytest.raises(TypeError, match=r"builtins\.int"):
        calls.clients.instrument(7)


async def test_a_subclass_of_the_user(calls: Calls, port: int) -> None:
    """Requests that its `send` repeats are part of the call."""

    class Patient(httpx.AsyncClient):
        async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
            await super().send(request, **options)
            return await super().send(request, **options)

    async with calls.clients.instrument(Patient()) as one:
        await one.get(f"http://127.0.0.1:{port}/echo")
    assert calls.span["http.request.resend_count"] == 1
    assert calls.outcomes == {("127.0.0.1", "GET", "ok"): 1}


async def test_operations_inside_a_call(calls: Calls, port: int) -> None:
    """Other calls, and an operation that a hook leaves open, are not counted as requests of the call."""
    inner = calls.clients.new("tokens")
    work = calls.seen.observe.operation("work")

    async def hook(request: httpx.Request) -> None:
        await inner.get(f"http://127.0.0.1:{port}/echo")
        work.open()

    async with calls.clients.new("pay", event_hooks={"request": [hook]}) as one:
        await one.get(f"http://127.0.0.1:{port}/echo")
    work.close()
    await inner.aclose()
    assert calls.outcomes == {("tokens", "GET", "ok"): 1, ("pay", "GET", "ok"): 1}
    assert not [span for span in calls.seen.spans if "http.request.resend_count" in (span.attributes or {})]


async def test_send_called_on_the_class(calls: Calls, port: int) -> None:
    """It bypasses the wrapper: the call is not measured, but the trace headers are sent."""
    async with calls.clients.new() as one:
        with calls.seen.observe.tracing.span("own"):
            answer = await httpx.AsyncClient.send(one, one.build_request("GET", f"http://127.0.0.1:{port}/echo"))
    assert "traceparent" in answer.json()
    assert calls.outcomes == {}


async def test_proxies_of_the_environment(calls: Calls, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A created client uses them like a plain one: a host that does not exist is reached through the proxy."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    statuses = []
    for one in (httpx.AsyncClient(), calls.clients.new()):
        async with one:
            statuses.append((await one.get("http://shop.invalid/echo")).status_code)
    assert statuses[0] == statuses[1]


@pytest.mark.parametrize("module", MODULES)
def test_trio(calls: Calls, module: Any, port: int) -> None:
    """Calls, streams and cancellation on trio."""

    async def main() -> None:
        async with calls.clients.instrument(module.AsyncClient()) as one:
            assert (await one.get(f"http://127.0.0.1:{port}/echo")).json()["traceparent"]
            async with one.stream("GET", f"http://127.0.0.1:{port}/parts") as answer:
                assert await answer.aread() == b"012"
            with anyio.move_on_after(0.05):
                async with one.stream("GET", f"http://127.0.0.1:{port}/slow") as answer:
                    async for _ in answer.aiter_raw():
                        pass

    anyio.run(main, backend="trio")
    assert calls.outcomes == {("127.0.0.1", "GET", "ok"): 2, ("127.0.0.1", "GET", "cancelled"): 1}


def test_copied_hooks(calls: Calls, port: int) -> None:
    """Our hook in another client counts nothing twice, and does nothing after `restore`."""
    url = f"http://127.0.0.1:{port}/echo"
    one = calls.clients.instrument(httpx.Client())
    with httpx.Client(event_hooks=one.event_hooks) as other:
        calls.clients.instrument(other)
        assert "traceparent" in other.get(url).json()
        assert "http.request.resend_count" not in calls.span
        calls.clients.restore()
        assert "traceparent" not in other.get(url).json()
    one.close()


def test_threads(calls: Calls, port: int) -> None:
    """Each call of a sync client in several threads is counted once."""
    with calls.clients.instrument(httpx.Client()) as one:
        one.event_hooks = {}

        def work() -> None:
            for _ in range(5):
                assert one.get(f"http://127.0.0.1:{port}/echo").json()["traceparent"]

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(one.event_hooks["request"]) == 1
    assert calls.outcomes == {("127.0.0.1", "GET", "ok"): 20}


# Internal errors


async def test_an_internal_error_does_not_change_the_call(
    observed: Callable[..., Seen], port: int, client: Callable[..., AnyClient]
) -> None:
    """It is counted, and the call returns its response."""
    calls = Calls(observed(Starlette()))
    kind = client()
    one = AnyClient(calls.clients, kind.module, type(kind.client).__name__, {}, {})
    url = f"http://127.0.0.1:{port}/echo"
    for function, site in (
        (calls.external.service_label, "http.begin"),
        (calls.external.propagation.inject, "http.on_request"),
    ):
        with failing(function):
            assert (await one.request("GET", url)).status_code == 200
        assert calls.seen.observe.internal_errors.counts.pop(site) == 1
    with failing(StreamedBody):
        assert (await one.stream(url)).status_code == 200
    assert calls.seen.observe.internal_errors.counts == {"http.on_response": 1}
    assert sum(calls.outcomes.values()) == 2
    await one.close()


# Lifetime


class Unclosable(httpx.MockTransport):
    """A transport whose `aclose` fails."""

    def __init__(self) -> None:
        super().__init__(lambda _: httpx.Response(204))

    async def aclose(self) -> None:
        """Fail, as with a connection of another event loop."""
        raise RuntimeError("Event loop is closed")


def test_a_created_client_works_in_every_start_of_the_app(observed: Callable[..., Seen], port: int) -> None:
    """Each start reopens the clients that the last shutdown closed, with their settings; not those the user closed."""
    app = FastAPI()
    seen = observed(app)
    created = seen.observe.http_client("payments", headers={"x-tenant": "acme"})
    shared = seen.observe.http
    closed_by_user = seen.observe.http_client("left")
    asyncio.run(closed_by_user.aclose())

    @app.get("/")
    async def call() -> list[Any]:
        answers = [await each.get(f"http://127.0.0.1:{port}/echo") for each in (created, shared)]
        return [answers[0].json()["x-tenant"], answers[1].status_code]

    for _ in range(3):
        with TestClient(app) as client:
            assert client.get("/").json() == ["acme", 200]
        assert (created.is_closed, shared.is_closed) == (True, True)
    assert closed_by_user.is_closed
    assert seen.sample("external_requests_total", service="payments", operation="GET", outcome="ok") == 3


def test_reopening_without_the_names_of_httpx() -> None:
    """A version of httpx without them leaves the client closed; nothing raises."""
    for client in (object(), SimpleNamespace(_state="closed")):
        reopen_client(client)


async def test_clients_are_closed(calls: Calls) -> None:
    """Created clients are closed, also after one that fails to close; instrumented ones stay open."""
    clients = calls.clients
    loop = asyncio.get_running_loop()
    shared, outside, own = clients.shared(loop), clients.shared(), clients.new("a")
    assert clients.shared(loop) is shared
    assert shared is not outside
    async with clients.instrument(httpx.AsyncClient()) as given:
        clients.new("c", transport=Unclosable())
        await clients.close()
        assert [each.is_closed for each in (shared, outside, own, given)] == [True] * 3 + [False]
    assert clients.shared(loop) is not shared
    await clients.shared(loop).aclose()
    assert not clients.shared(loop).is_closed
    await clients.close()
    assert calls.seen.observe.internal_errors.counts.pop("http.close") == 1


def test_clients_are_not_kept_alive(calls: Calls) -> None:
    """A client that the user no longer references is garbage-collected."""
    references = [weakref.ref(one) for one in (calls.clients.instrument(httpx.Client()), calls.clients.new())]
    gc.collect()
    assert [reference() for reference in references] == [None, None]


async def test_restore_of_a_client_that_was_wrapped_since(calls: Calls, port: int) -> None:
    """The wrapper of other code around ours stays, and ours does nothing any more."""
    one: Any = calls.clients.new()
    ours = one.send

    async def theirs(request: Any, **options: Any) -> Any:
        return await ours(request, **options)

    one.send = theirs
    calls.clients.restore()
    assert one.send is theirs
    assert (await one.get(f"http://127.0.0.1:{port}/echo")).status_code == 200
    assert calls.outcomes == {}
    await one.aclose()
