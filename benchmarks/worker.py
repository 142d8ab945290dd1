"""A process that holds some apps and spends CPU time on their requests when told to."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from benchmarks.apps import MAKERS, REQUESTS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Call = Callable[[], Awaitable[None]]


def caller(app: Any, request: dict[str, Any]) -> Call:
    """Return a function that sends one request to the app, as a server would, at the least cost."""
    body = request["body"]
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
        "path": request["path"],
        "raw_path": request["path"].encode(),
        "query_string": b"",
        "root_path": "",
        "client": ("127.0.0.1", 54321),
        "server": ("127.0.0.1", 8000),
    }
    message = {"type": "http.request", "body": body, "more_body": False}

    async def call() -> None:
        given = False

        async def receive() -> Any:
            nonlocal given
            if given:
                await asyncio.Event().wait()
            given = True
            return message

        await app({**scope, "headers": list(headers), "state": {}}, receive, send)

    return call


async def send(message: Any) -> None:
    """Take a message of the app, as a server does."""


async def spend(call: Call, times: int) -> float:
    """Return the CPU seconds of one call, those of all threads included."""
    before = time.process_time()
    for _ in range(times):
        await call()
    return (time.process_time() - before) / times


async def serve() -> None:
    """Make the apps named in the arguments, then obey lines of standard input: `<app> <times>`."""
    variant, ratio, names = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
    answers = os.fdopen(int(os.environ["BENCH_ANSWERS"]), "w", buffering=1)
    calls = {name: caller(MAKERS[name](variant, ratio), REQUESTS[variant]) for name in names}
    for call in calls.values():
        await spend(call, 200)
    answers.write(json.dumps("ready") + "\n")
    for line in sys.stdin:
        name, times = line.split()
        answers.write(json.dumps(await spend(calls[name], int(times))) + "\n")


if __name__ == "__main__":
    asyncio.run(serve())
