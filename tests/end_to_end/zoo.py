"""One app with every ordinary kind of path, and the requests that walk it with the facts expected of each."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agreement import Facts
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Host, Mount, Route, Router
from starlette.staticfiles import StaticFiles

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

HERE = Path(__file__).parent
ASYNC_CHUNKS = 3
JSON = {"content-type": "application/json"}


class BrokenError(Exception):
    """What fails in the zoo."""


class RefusedError(Exception):
    """What a handler responds with 409."""


class ClumsyError(Exception):
    """What a handler answers by failing itself."""


class Item(BaseModel):
    """A body with a key that the client chooses."""

    name: str
    prices: dict[str, int] = {}


BROKEN = f"{BrokenError.__module__}.BrokenError"


@dataclass(frozen=True)
class Row:
    """One kind of request and what all signals must say about it."""

    path: str
    facts: Facts
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def method(self) -> str:
        """What the client sends: for `_OTHER` one that no standard knows."""
        return "BREW" if self.facts.method == "_OTHER" else self.facts.method

    def __str__(self) -> str:
        return f"{self.facts.method} {self.path} {self.facts.status}"


def row(path: str, endpoint: str, status: int, outcome: str = "ok", error_type: str | None = None, **more: Any) -> Row:
    """Write a row in one line; a keyword `method` is a fact too."""
    method = more.pop("method", "GET")
    return Row(path, Facts(endpoint, status, outcome, error_type, method), **more)


def hostile_item() -> bytes:
    """Return a body whose wrong values have keys that a client chose."""
    return json.dumps({"prices": {"evil\n{": "x", "9" * 300: "y"}}).encode()


ROWS = (
    row("/sync", "/sync", 200),
    row("/async", "/async", 200),
    row("/items/1?token=secret", "/items/{item_id}", 200),
    row("/none", "/none", 204),
    row("/created", "/created", 201, method="POST", body=b"x" * 1234),
    row("/elsewhere", "/elsewhere", 302),
    row("/status/404", "/status/{code}", 404, "client_error"),
    row("/status/418", "/status/{code}", 418, "client_error"),
    row("/status/500", "/status/{code}", 500, "server_error", "500"),
    row("/status/503", "/status/{code}", 503, "server_error", "503"),
    row("/http-exception/403", "/http-exception/{code}", 403, "client_error"),
    row("/http-exception/502", "/http-exception/{code}", 502, "server_error", "502"),
    row("/broken/sync", "/broken/sync", 500, "server_error", BROKEN),
    row("/broken/async", "/broken/async", 500, "server_error", "ZeroDivisionError"),
    row("/broken/dependency", "/broken/dependency", 500, "server_error", BROKEN),
    row("/broken/handler", "/broken/handler", 500, "server_error", "KeyError"),
    row("/broken/timeout", "/broken/timeout", 500, "server_error", "TimeoutError"),
    row("/handled", "/handled", 409, "client_error"),
    row("/validated/7", "/validated/{number}", 200),
    row("/validated/seven", "/validated/{number}", 422, "client_error"),
    row("/item", "/item", 422, "client_error", method="POST", headers=JSON, body=hostile_item()),
    row("/nowhere/at/all", "unmatched", 404, "client_error"),
    row("/sync", "/sync", 405, "client_error", method="DELETE"),
    row("/sync", "/sync", 405, "client_error", method="OPTIONS"),
    row("/sync", "/sync", 405, "client_error", method="_OTHER"),
    row("/sync/", "redirect", 307),
    row("/plain/x", "/plain/{name}", 200, method="HEAD"),
    row("/plain/x", "/plain/{name}", 200),
    row("/sync", "unmatched", 200, method="OPTIONS", headers={"origin": "http://a", "access-control-request-method": "GET"}),  # noqa: E501
    row("/async", "/async", 200, headers={"origin": "http://a"}),
    row("/stream", "/stream", 200),
    row("/stream/sync", "/stream/sync", 200),
    row("/events", "/events", 200),
    row("/stream/broken", "/stream/broken", 200, "server_error", BROKEN),
    row("/file", "/file", 200),
    row("/file", "/file", 206, headers={"range": "bytes=0-9"}),
    row("/background", "/background", 200),
    row("/background/broken", "/background/broken", 200),
    row("/a/1/b/2/c/3", "/a/{a}/b/{b}/c/{c}", 200),
    row("/sub/items/5", "/sub/items/{item_id}", 200),
    row("/sub/broken", "/sub/broken", 500, "server_error", BROKEN),
    row("/sub/nowhere", "/sub/{path}", 404, "client_error"),
    row("/star/items/5", "/star/items/{item_id}", 200),
    row("/star/broken", "/star/broken", 500, "server_error", BROKEN),
    row("/t/acme/orders/9", "/t/{tenant}/orders/{order_id}", 200),
    row("/static/zoo.py", "/static/{path}", 200),
    row("/static/missing.txt", "/static/{path}", 404, "client_error"),
    row("/hosted/3", "/hosted/{thing}", 200, headers={"host": "acme.hosted.example.org"}),
    row("/docs", "/docs", 200),
    row("/redoc", "/redoc", 200),
    row("/openapi.json", "/openapi.json", 200),
    row("/refused", "unmatched", 403, "client_error"),
    row("/broken/middleware", "unmatched", 500, "server_error", BROKEN),
)  # fmt: skip


class CopyingMiddleware:
    """Pure ASGI: copies the scope, answers by itself or fails where it is asked to."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass on a copy of the scope."""
        if scope["type"] == "http" and scope["path"] == "/refused":
            await PlainTextResponse("no", 403)(scope, receive, send)
            return
        if scope["type"] == "http" and scope["path"] == "/broken/middleware":
            raise BrokenError
        await self.app(dict(scope), receive, send)


class BaseMiddleware(BaseHTTPMiddleware):
    """Starlette's middleware with tasks and streams of its own, around everything."""

    async def dispatch(self, request: Request, call_next: Any) -> Any:
        """Pass on, or fail."""
        if request.url.path == "/broken/base":
            raise BrokenError
        response = await call_next(request)
        response.headers["x-base"] = "seen"
        return response


def make_zoo(*, base: bool = True) -> FastAPI:
    """Make the app; `base` puts `BaseHTTPMiddleware` around everything."""
    app = FastAPI()
    _add_plain(app)
    _add_broken(app)
    _add_streams(app)
    _add_routers(app)
    app.add_middleware(CopyingMiddleware)
    app.add_middleware(CORSMiddleware, allow_origins=["http://a"], allow_methods=["GET"])
    if base:
        app.add_middleware(BaseMiddleware)
    return app


def _add_plain(app: FastAPI) -> None:  # noqa: C901 - a list of endpoints
    app.get("/sync")(lambda: "sync")

    @app.get("/async")
    async def answer_async() -> str:
        await asyncio.sleep(0)
        return "async"

    @app.get("/items/{item_id}")
    async def item(item_id: int) -> dict[str, int]:
        return {"item": item_id}

    @app.get("/none", status_code=204, response_model=None)
    async def none() -> None:
        return None

    @app.post("/created", status_code=201)
    async def created(request: Request) -> int:
        return len(await request.body())

    @app.get("/elsewhere")
    async def elsewhere() -> RedirectResponse:
        return RedirectResponse("/sync", 302)

    @app.get("/status/{code}")
    async def status(code: int) -> JSONResponse:
        return JSONResponse({"code": code}, code)

    @app.get("/http-exception/{code}")
    async def http_exception(code: int) -> None:
        raise HTTPException(code, "told")

    @app.get("/validated/{number}")
    async def validated(number: int) -> int:
        return number

    @app.post("/item")
    async def post_item(item: Item) -> Item:
        return item

    async def plain(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.path_params["name"])

    app.add_route("/plain/{name}", plain)


def _add_broken(app: FastAPI) -> None:
    def fail() -> None:
        raise BrokenError

    app.get("/broken/sync")(fail)
    app.get("/broken/dependency", dependencies=[Depends(fail)])(lambda: None)

    @app.get("/broken/async")
    async def broken_async() -> float:
        return 1 / 0

    @app.get("/broken/timeout")
    async def broken_timeout() -> None:
        async with asyncio.timeout(0.001):
            await asyncio.sleep(5)

    @app.get("/broken/handler")
    async def broken_handler() -> None:
        raise ClumsyError

    @app.get("/handled")
    async def handled() -> None:
        raise RefusedError

    @app.exception_handler(RefusedError)
    async def refuse(request: Request, exc: RefusedError) -> JSONResponse:
        return JSONResponse("refused", 409)

    @app.exception_handler(ClumsyError)
    async def clumsy(request: Request, exc: ClumsyError) -> JSONResponse:
        raise KeyError("clumsy")


def _add_streams(app: FastAPI) -> None:  # noqa: C901 - a list of endpoints
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(ASYNC_CHUNKS):
            yield b"chunk"
            await asyncio.sleep(0)

    def sync_chunks() -> Iterator[bytes]:
        yield from (b"one", b"two")

    async def broken_chunks() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"
        raise BrokenError

    def streaming(make: Callable[[], Any], media_type: str = "text/plain") -> Callable[[], StreamingResponse]:
        def answer() -> StreamingResponse:
            return StreamingResponse(make(), media_type=media_type)

        return answer

    app.get("/stream")(streaming(chunks))
    app.get("/stream/sync")(streaming(sync_chunks))
    app.get("/events")(streaming(chunks, "text/event-stream"))
    app.get("/stream/broken")(streaming(broken_chunks))
    app.get("/file")(lambda: FileResponse(HERE / "zoo.py"))

    @app.get("/sized/{size}")
    async def sized(size: int) -> PlainTextResponse:
        await asyncio.sleep(0)
        return PlainTextResponse("x" * size)

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        async def forever() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 100
                await asyncio.sleep(0.01)

        return StreamingResponse(forever())

    @app.post("/upload")
    async def upload(request: Request) -> int:
        return len(await request.body())

    def fail() -> None:
        raise BrokenError

    @app.get("/background")
    async def background(tasks: BackgroundTasks) -> str:
        tasks.add_task(time.sleep, 0.001)
        return "soon"

    @app.get("/background/broken")
    async def background_broken(tasks: BackgroundTasks) -> str:
        tasks.add_task(fail)
        return "soon"


def _add_routers(app: FastAPI) -> None:
    inner, middle, outer = APIRouter(), APIRouter(), APIRouter(prefix="/a/{a}")

    @inner.get("/c/{c}")
    async def deep(a: int, b: int, c: int) -> int:
        return a + b + c

    middle.include_router(inner, prefix="/b/{b}")
    outer.include_router(middle)
    app.include_router(outer)
    sub = FastAPI()

    @sub.get("/items/{item_id}")
    async def sub_item(item_id: int) -> int:
        return item_id

    @sub.get("/broken")
    async def sub_broken() -> None:
        raise BrokenError

    async def star_item(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.path_params["item_id"])

    async def star_broken(request: Request) -> PlainTextResponse:
        raise BrokenError

    star = Starlette(routes=[Route("/items/{item_id}", star_item), Route("/broken", star_broken)])
    tenant = FastAPI()

    @tenant.get("/orders/{order_id}")
    async def order(order_id: int) -> int:
        return order_id

    async def thing(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.path_params["thing"])

    hosted = Router(routes=[Route("/hosted/{thing}", thing)])
    app.mount("/sub", sub)
    app.mount("/star", star)
    app.router.routes.append(Mount("/t/{tenant}", app=tenant))
    app.mount("/static", StaticFiles(directory=HERE))
    app.router.routes.append(Host("{tenant}.hosted.example.org", app=hosted))
