"""WebSocket connections and lifespans: one span, one sample and one line for each connection, none for a lifespan."""

from __future__ import annotations

import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from agreement import Facts, assert_agreement, assert_websocket_agreement
from driver import ask, converse, live
from fastapi import APIRouter, FastAPI, Request, WebSocket, WebSocketDisconnect, WebSocketException
from fastapi.responses import JSONResponse
from zoo import BROKEN, BaseMiddleware, BrokenError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from conftest import Seen

# BaseHTTPMiddleware of old Starlette leaves a stream open when the app fails.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning")

HELLO = {"type": "websocket.receive", "text": "hello"}


def leaving(code: int) -> dict[str, Any]:
    """Return the message of a client that closes."""
    return {"type": "websocket.disconnect", "code": code, "reason": ""}


def make_sockets() -> FastAPI:  # noqa: C901 - a list of endpoints
    """Make an app with every kind of WebSocket."""
    app, router, sub = FastAPI(), APIRouter(prefix="/rooms/{room}"), FastAPI()

    @app.websocket("/echo")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text * 2)

    @app.websocket("/reading")
    async def reading(websocket: WebSocket) -> None:
        await websocket.accept()
        while True:
            await websocket.receive_bytes()

    @app.websocket("/close/{code}")
    async def close(websocket: WebSocket, code: int) -> None:
        await websocket.accept()
        await websocket.close(code)

    @app.websocket("/refuse")
    async def refuse(websocket: WebSocket) -> None:
        await websocket.close(4003)

    @app.websocket("/deny/{status}")
    async def deny(websocket: WebSocket, status: int) -> None:
        await websocket.send_denial_response(JSONResponse("no", status))

    @app.websocket("/policy")
    async def policy(websocket: WebSocket) -> None:
        await websocket.accept()
        raise WebSocketException(1008, "policy")

    @app.websocket("/broken/before")
    async def broken_before(websocket: WebSocket) -> None:
        raise BrokenError

    @app.websocket("/broken/after")
    async def broken_after(websocket: WebSocket) -> None:
        await websocket.accept()
        raise BrokenError

    @router.websocket("/chat/{name}")
    @sub.websocket("/chat/{name}")
    async def chat(websocket: WebSocket, name: str) -> None:
        await websocket.accept()
        await websocket.close()

    app.include_router(router)
    app.mount("/sub", sub)
    return app


SOCKETS: tuple[tuple[str, tuple[dict[str, Any], ...], Facts, str], ...] = (
    ("/echo", (HELLO, HELLO, leaving(1000)), Facts("/echo", 101), "1000"),
    ("/echo", (leaving(1001),), Facts("/echo", 101), "1001"),
    ("/echo", (leaving(1005),), Facts("/echo", 101), "1005"),
    ("/echo", (HELLO, leaving(1006)), Facts("/echo", 101, "client_disconnect", "client_disconnect"), "1006"),
    ("/echo", (leaving(4321),), Facts("/echo", 101, "client_error"), "_other"),
    ("/reading", (leaving(1006),), Facts("/reading", 101, "client_disconnect", "client_disconnect"), "1006"),
    ("/reading", (leaving(1000),), Facts("/reading", 101), "1000"),
    ("/close/1000", (), Facts("/close/{code}", 101), "1000"),
    ("/close/1011", (), Facts("/close/{code}", 101, "server_error", "1011"), "1011"),
    ("/close/4000", (), Facts("/close/{code}", 101, "client_error"), "4000"),
    ("/policy", (), Facts("/policy", 101, "client_error"), "1008"),
    ("/refuse", (), Facts("/refuse", 403, "client_error"), "denied"),
    ("/deny/401", (), Facts("/deny/{status}", 401, "client_error"), "denied"),
    ("/deny/503", (), Facts("/deny/{status}", 503, "server_error", "503"), "denied"),
    ("/nowhere", (), Facts("unmatched", 403, "client_error"), "denied"),
    ("/close/text", (), Facts("/close/{code}", 403, "client_error"), "denied"),
    ("/broken/before", (), Facts("/broken/before", 500, "server_error", BROKEN), "denied"),
    ("/broken/after", (), Facts("/broken/after", 101, "server_error", BROKEN), "1011"),
    ("/rooms/7/chat/x", (), Facts("/rooms/{room}/chat/{name}", 101), "1000"),
    ("/sub/chat/x", (), Facts("/sub/chat/{name}", 101), "1000"),
)


@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize(("path", "inbox", "facts", "code"), SOCKETS)
async def test_connections(  # noqa: PLR0913, PLR0917 - the columns of the table
    observed: Callable[..., Seen],
    path: str,
    inbox: tuple[dict[str, Any], ...],
    facts: Facts,
    code: str,
    base: bool,  # noqa: FBT001 - a parameter of the table
) -> None:
    """However a connection ends: span, sample and line say the same, and none stays active."""
    app = make_sockets()
    if base:
        app.add_middleware(BaseMiddleware)
    seen = observed(app)
    answer = await converse(app, path, *inbox, extensions={"websocket.http.response": {}})
    (line,) = assert_websocket_agreement(seen, (facts, code))
    if inbox[:1] == (HELLO,):
        assert line["fields"]["request_size"] == 5 * inbox.count(HELLO)
        assert line["fields"]["response_size"] == 10 * inbox.count(HELLO)
    start = answer.messages[0] if answer.messages else {}
    if start.get("type") in {"websocket.accept", "websocket.http.response.start"}:
        assert dict(start["headers"])[b"x-request-id"].decode() == line["request_id"]
    assert_agreement(seen)


async def test_a_connection_that_the_app_forgets(observed: Callable[..., Seen]) -> None:
    """An app that returns without closing: the connection counts as incomplete, closed by 1006."""
    app = FastAPI()

    @app.websocket("/forgotten")
    async def forgotten(websocket: WebSocket) -> None:
        await websocket.accept()

    seen = observed(app)
    await converse(app, "/forgotten")
    facts = Facts("/forgotten", 101, "incomplete_response", "incomplete_response")
    assert_websocket_agreement(seen, (facts, "1006"))


async def test_an_endpoint_that_passes_the_disconnect_on(observed: Callable[..., Seen]) -> None:
    """`WebSocketDisconnect` that leaves the app is the client's leaving, not a failure."""
    app = FastAPI()

    @app.websocket("/pass")
    async def passes(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive()
        raise WebSocketDisconnect(1000)

    seen = observed(app)
    await converse(app, "/pass", leaving(1000))
    assert_websocket_agreement(seen, (Facts("/pass", 101), "1000"))


@pytest.mark.parametrize("path", ["/sending", "/sending/raw"])
async def test_the_client_leaves_while_the_app_sends(observed: Callable[..., Seen], path: str) -> None:
    """If the server reports by `OSError` that the client has left (ASGI 2.4), the app has not failed."""
    app = FastAPI()

    @app.websocket("/sending")
    async def sending(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("hello")

    @app.websocket("/sending/raw")
    async def sending_raw(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket._send({"type": "websocket.send", "text": "hello"})

    seen = observed(app)
    await converse(app, path, deaf=True)
    left = Facts(path, 101, "client_disconnect", "client_disconnect")
    assert_websocket_agreement(seen, (left, "1006"))


async def test_the_client_leaves_while_the_app_closes(observed: Callable[..., Seen]) -> None:
    """An app that closes a connection has closed it with its code, even if the client has left already."""
    seen = observed(app := make_sockets())
    await converse(app, "/close/1000", deaf=True)
    assert_websocket_agreement(seen, (Facts("/close/{code}", 101), "1000"))


def failing_lifespan(at: str) -> Callable[[FastAPI], Any]:
    """Return a lifespan that fails at startup or at shutdown, or never."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if at == "startup":
            raise BrokenError
        yield
        if at == "shutdown":
            raise BrokenError

    return lifespan


def threads() -> set[threading.Thread]:
    """Return the running threads, without those that anyio keeps until the event loop is closed."""
    return {each for each in threading.enumerate() if not each.name.startswith("AnyIO worker")}


def reported(messages: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    """Return the type of each message, and whether it names the exception."""
    return [(message["type"], "BrokenError" in message.get("message", "")) for message in messages]


@pytest.mark.parametrize("at", ["startup", "shutdown", "never"])
async def test_lifespans(observed: Callable[..., Seen], at: str) -> None:
    """A lifespan, failing or not, sends what the bare app sends and leaves nothing behind."""
    kinds = ("startup",) if at == "startup" else ("startup", "shutdown")
    bare = await live(FastAPI(lifespan=failing_lifespan(at)), *kinds)
    before = threads()
    seen = observed(app := FastAPI(lifespan=failing_lifespan(at)))
    answer = await live(app, *kinds)
    assert type(answer.raised) is type(bare.raised)
    assert reported(answer.messages) == reported(bare.messages)
    assert_agreement(seen)
    assert not seen.request_lines
    assert not seen.server_spans
    seen.observe.close()
    assert threads() <= before


async def test_requests_in_a_lifespan(observed: Callable[..., Seen]) -> None:
    """Requests between startup and shutdown are reported as ever; a second lifespan of the app works as the first."""
    app = FastAPI(lifespan=failing_lifespan("never"))

    @app.get("/where")
    async def where(request: Request) -> str:
        return str(request.url.path)

    seen = observed(app)
    for _ in range(2):
        await live(app, "startup", "shutdown")
        assert (await ask(app, "/where")).status == 200
    assert_agreement(seen, *[Facts("/where", 200)] * 2)
