"""A process with some apps that measures the CPU time of their requests.

Arguments: the sampling ratio, then `<app>@<variant>` for each app. Commands on standard input:
`<app>@<variant> <times>`; the response is the CPU seconds of one request.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from benchmarks.apps import MAKERS, REQUESTS, refuse_telemetry
from benchmarks.process import answers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Call = Callable[[], Awaitable[None]]

WARM_UP = 300
"""Requests to each app before the first measured one."""


def caller(app: Any, request: dict[str, Any]) -> Call:
    """Return a function that sends one request to the app as a server does, at minimal cost."""
    body = request["body"]
    path, _, query = request["path"].partition("?")
    headers = [
        (b"host", b"127.0.0.1:8000"),
        (b"user-agent", b"benchmark/1.0"),
        (b"accept", b"*/*"),
        (b"accept-encoding", b"gzip, deflate"),
        (b"connection", b"keep-alive"),
        *([(b"content-length", str(len(body)).encode())] if body else []),
        *((name.encode(), value.encode()) for name, value in request["headers"].items()),
    ]
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request["method"],
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "client": ("127.0.0.1", 54321),
        "server": ("127.0.0.1", 8000),
    }
    message = {"type": "http.request", "body": body, "more_body": False}

    async def call() -> None:
        cycle = Cycle({**scope, "headers": list(headers), "state": {}}, message)
        await app(cycle.scope, cycle.receive, cycle.send)

    return call


class Cycle:
    """One request and its response. As in uvicorn, `send` references the scope.

    So an app that stores an object with a reference to `send` in the scope creates a reference cycle, whose collection
    is part of its cost.
    """

    __slots__ = ("_message", "scope")

    def __init__(self, scope: dict[str, Any], message: dict[str, Any]) -> None:
        self.scope = scope
        self._message: dict[str, Any] | None = message

    async def receive(self) -> Any:
        """Return the body of the request, then block."""
        message, self._message = self._message, None
        if message is None:
            await asyncio.Event().wait()
        return message

    async def send(self, message: Any) -> None:
        """Accept a message of the app."""


async def spend(call: Call, times: int, flush: Callable[[], Any]) -> float:
    """Return the CPU seconds of one call in all threads, including work that the app deferred."""
    before = time.process_time()
    for _ in range(times):
        await call()
    flush()
    await asyncio.sleep(0)
    return (time.process_time() - before) / times


def flusher(app: Any) -> Callable[[], Any]:
    """Return a function that finishes deferred work of the app, which would else be counted for the next one."""
    observe = getattr(getattr(app, "state", None), "observe", None)
    return _nothing if observe is None else lambda: observe.flush(10.0)


def _nothing() -> None:
    """Do nothing."""


async def serve() -> None:
    """Create the apps named in the arguments, then run commands."""
    out = answers()
    ratio, names = float(sys.argv[1]), sys.argv[2:]
    calls: dict[str, tuple[Call, Callable[[], Any]]] = {}
    # Ours first: with its first request it configures loguru, which a peer then reconfigures.
    for name in sorted(names, key=lambda name: not name.startswith("ours")):
        maker, _, variant = name.partition("@")
        app = MAKERS[maker](variant, ratio)
        if maker == "bare":
            refuse_telemetry(app)
        calls[name] = (caller(app, REQUESTS[variant]), flusher(app))
        call, flush = calls[name]
        await spend(call, WARM_UP, flush)
    out.write(json.dumps("ready") + "\n")
    for line in sys.stdin:
        name, times = line.split()
        call, flush = calls[name]
        out.write(json.dumps(await spend(call, int(times), flush)) + "\n")


if __name__ == "__main__":
    asyncio.run(serve())
