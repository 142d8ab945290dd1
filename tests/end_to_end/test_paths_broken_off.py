"""Requests that end early: the client disconnects, a timeout expires, the task is cancelled."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from agreement import Facts, assert_agreement
from driver import Client, ask
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, StreamingResponse
from servers import serving
from zoo import BROKEN, BaseMiddleware, BrokenError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from conftest import Seen

# BaseHTTPMiddleware of old Starlette leaves a stream open when the app fails.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning")

LEFT = ("client_disconnect", "client_disconnect")
CANCELLED = ("cancelled", "cancelled")


def make_slow() -> FastAPI:
    """Make an app whose endpoints wait for the client, or for ever."""
    app = FastAPI()

    @app.post("/upload")
    async def upload(request: Request) -> int:
        return len(await request.body())

    @app.get("/watching")
    async def watching(request: Request) -> str:
        while not await request.is_disconnected():  # noqa: ASYNC110 - as apps do
            await asyncio.sleep(0)
        return "never received"

    @app.get("/failing")
    async def failing(request: Request) -> str:
        while not await request.is_disconnected():  # noqa: ASYNC110 - as apps do
            await asyncio.sleep(0)
        raise BrokenError

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            while True:
                yield b"chunk"
                await asyncio.sleep(0)

        return StreamingResponse(chunks())

    @app.get("/waiting")
    async def waiting() -> None:
        await asyncio.Event().wait()

    return app


@pytest.mark.parametrize("base", [False, True])
async def test_the_client_leaves_while_it_sends(observed: Callable[..., Seen], base: bool) -> None:  # noqa: FBT001
    """A client that leaves before its request is complete: 499, whatever the app then tries to send."""
    app = make_slow()
    if base:
        app.add_middleware(BaseMiddleware)
    seen = observed(app)
    await ask(app, "/upload", "POST", body=(b"abc", b"de"), leave_after=0)
    (line,) = assert_agreement(seen, Facts("/upload", 499, *LEFT, method="POST"))
    assert line["fields"]["request_size"] == 5


@pytest.mark.parametrize("path", ["/watching", "/failing"])
async def test_the_client_leaves_before_the_response(observed: Callable[..., Seen], path: str) -> None:
    """An app that notices that the client has left: 499, even if it responds or fails afterwards."""
    seen = observed(app := make_slow())
    await ask(app, path, leave_after=0)
    assert_agreement(seen, Facts(path, 499, *LEFT))


@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize("strict", [False, True])
async def test_the_client_leaves_during_the_response(
    observed: Callable[..., Seen],
    base: bool,  # noqa: FBT001
    strict: bool,  # noqa: FBT001
) -> None:
    """The status stays the one that was sent; the client's leaving is the outcome, not an error of the app.

    A strict server raises `OSError` in `send`, as ASGI 2.4 asks; others return it from `receive`.
    """
    app = make_slow()
    if base:
        app.add_middleware(BaseMiddleware)
    seen = observed(app)
    await ask(app, "/endless", leave_after=3, strict=strict)
    (line,) = assert_agreement(seen, Facts("/endless", 200, *LEFT))
    assert line["fields"]["response_size"] >= 15


async def _cancel(client: Client, task: asyncio.Task[None]) -> None:
    for _ in range(20):
        await asyncio.sleep(0)
    task.cancel()


async def test_cancelled_from_outside(observed: Callable[..., Seen]) -> None:
    """A request that is cancelled, at the server's shutdown say, is cancelled in all signals; the task is too."""
    seen = observed(app := make_slow())
    answer = await ask(app, "/waiting", stop=_cancel)
    assert isinstance(answer.raised, asyncio.CancelledError)
    assert_agreement(seen, Facts("/waiting", 500, *CANCELLED))


async def test_cancelled_in_the_middle_of_the_response(observed: Callable[..., Seen]) -> None:
    """The status that was sent stays when the stream is cancelled."""
    seen = observed(app := make_slow())
    await ask(app, "/endless", stop=_cancel)
    assert_agreement(seen, Facts("/endless", 200, *CANCELLED))


async def test_a_middleware_that_gives_up_waiting(observed: Callable[..., Seen]) -> None:
    """A timeout in a middleware that responds with 504: the response decides the outcome."""
    app = make_slow()

    def impatient(app: Any) -> Any:
        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            try:
                await asyncio.wait_for(app(scope, receive, send), 0.01)
            except TimeoutError:
                await PlainTextResponse("too slow", 504)(scope, receive, send)

        return middleware

    app.add_middleware(impatient)
    seen = observed(app)
    assert (await ask(app, "/waiting")).status == 504
    assert_agreement(seen, Facts("/waiting", 504, "server_error", "504"))


async def test_a_middleware_that_lets_the_timeout_out(observed: Callable[..., Seen]) -> None:
    """A timeout without a handler is an unhandled exception."""
    app = make_slow()

    def impatient(app: Any) -> Any:
        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            async with asyncio.timeout(0.01):
                await app(scope, receive, send)

        return middleware

    app.add_middleware(impatient)
    seen = observed(app)
    assert isinstance((await ask(app, "/waiting")).raised, TimeoutError)
    assert_agreement(seen, Facts("/waiting", 500, "server_error", "TimeoutError"))


async def test_the_app_fails_after_the_client_left_a_finished_response(observed: Callable[..., Seen]) -> None:
    """A client that closes the connection after the response has not disconnected early."""
    app = FastAPI()

    def lingering(app: Any) -> Any:
        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            await app(scope, receive, send)
            while (await receive())["type"] != "http.disconnect":
                pass

        return middleware

    @app.get("/broken")
    async def broken() -> None:
        raise BrokenError

    app.get("/sync")(lambda: "ok")
    app.add_middleware(lingering)
    seen = observed(app)
    await ask(app, "/sync")
    await ask(app, "/broken")
    assert_agreement(seen, Facts("/sync", 200), Facts("/broken", 500, "server_error", BROKEN))


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_the_client_leaves_while_the_app_does_not_read(observed: Callable[..., Seen], http: str) -> None:
    """Uvicorn knows it: the request is a `client_disconnect` in an async and in a sync endpoint, and in a stream."""
    app = FastAPI()
    started, left = threading.Event(), threading.Event()

    @app.get("/async")
    async def async_endpoint() -> str:
        started.set()
        while not left.is_set():  # noqa: ASYNC110 - set by another thread
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        return "response"

    @app.get("/sync")
    def sync_endpoint() -> str:
        started.set()
        assert left.wait(30)
        time.sleep(0.2)
        return "response"

    @app.get("/failing")
    async def failing_endpoint() -> str:
        await async_endpoint()
        raise BrokenError

    seen = observed(app)
    with serving(app, http=http) as port:
        for path in ("/async", "/sync", "/failing"):
            for event in (started, left):
                event.clear()
            with socket.create_connection(("127.0.0.1", port), 10) as connection:
                connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert started.wait(30)
            left.set()
            deadline = time.monotonic() + 30
            while not any(line["fields"]["url"] == path for line in seen.request_lines):
                assert time.monotonic() < deadline
                time.sleep(0.02)
    ends = {
        line["fields"]["url"]: (line["fields"]["status_code"], line["fields"]["outcome"]) for line in seen.request_lines
    }
    gone = (499, "client_disconnect")
    assert ends == {"/async": gone, "/sync": gone, "/failing": (500, "server_error")}


@pytest.mark.parametrize("level", ["info", "error"])
def test_a_client_that_leaves_while_it_sends_is_not_a_crash(observed: Callable[..., Seen], level: str) -> None:
    """Uvicorn logs Starlette's `ClientDisconnect` as a crash: the line is a warning with the ids, without a stack."""
    app = make_slow()
    seen = observed(app, log_level=level)
    with serving(app) as port, socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(10) == b""
    deadline = time.monotonic() + 30
    while not seen.total("http_requests_total"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    lines = [line for line in seen.lines if line["logger"] == "uvicorn.error" and "Exception" in line["message"]]
    if level == "error":
        assert lines == []
        return
    ((line,), (request,)) = lines, seen.request_lines
    assert (line["level"], line["fields"]) == ("warn", {"error_type": "client_disconnect"})
    assert line["request_id"] == request["request_id"]
    assert "exception" not in line
    assert request["fields"]["outcome"] == "client_disconnect"
