"""A process under callgrind that counts the instructions of requests, those of all threads.

Arguments: the kind of measurement and the sampling ratio; for `requests`, `concurrent` and `served` also the apps, with
commas between, and the variants of the request. callgrind writes one file for each count (see `instructions.py`).
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import sys
from typing import TYPE_CHECKING, Any

import uvloop

from benchmarks.apps import MAKERS, REQUESTS, plain_app, refuse_telemetry, request
from benchmarks.operation_steps import connection, engine_step
from benchmarks.worker import WARM_UP, caller, flusher

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Send = Callable[[int], Awaitable[None]]

COUNTED = 200
"""Requests of one count."""

CONCURRENT = 32
"""Requests that are in progress together."""

OPERATIONS = 5
"""Statements or calls in one request: fewer than are reported as repeated."""


def make(name: str, ratio: float) -> Any:
    """Return the app of this name, with an endpoint whose parameter is converted and that has no response model."""
    app = MAKERS[name]("trivial", ratio)
    if name == "bare":
        refuse_telemetry(app)

    async def read_number(number: int) -> dict[str, Any]:
        return {"id": number, "name": "x"}

    app.get("/numbers/{number}", response_model=None)(read_number)
    routes = app.router.routes  # FastAPI's own, `/docs` and so on, are searched before those of the app
    first = next(at for at, route in enumerate(routes) if getattr(route, "path", "").startswith("/items"))
    routes.insert(first, routes.pop())
    return app


def request_of(variant: str) -> dict[str, Any]:
    """Return the request of a variant; its name may end with a query string."""
    name, mark, query = variant.partition("?")
    one = request("GET", "/numbers/42") if name == "number" else REQUESTS[name]
    return {**one, "path": f"{one['path']}{mark}{query}"}


async def count(name: str, send: Send, flush: Callable[[], Any]) -> None:
    """Send requests and have callgrind write the number of instructions, deferred work included."""
    callgrind = ctypes.CDLL(os.environ["BENCH_CALLGRIND"])
    await send(WARM_UP)
    flush()
    gc.collect()
    gc.disable()  # its moments depend on what ran before
    callgrind.start_counting()
    await send(COUNTED)
    flush()
    callgrind.stop_counting(name.encode())
    gc.enable()


def one_by_one(app: Any, sent: dict[str, Any]) -> Send:
    """Return a function that sends requests one after another."""
    call = caller(app, sent)

    async def send(times: int) -> None:
        for _ in range(times):
            await call()

    return send


def together(app: Any, sent: dict[str, Any]) -> Send:
    """Return a function that sends requests of which `CONCURRENT` are in progress together."""

    async def wait_inside(scope: Any, receive: Any, send: Any) -> None:
        async def send_later(message: Any) -> None:
            await asyncio.sleep(0)
            await send(message)

        await app(scope, receive, send_later)

    call = caller(wait_inside, sent)

    async def send(times: int) -> None:
        for start in range(0, times, CONCURRENT):
            await asyncio.gather(*(call() for _ in range(min(CONCURRENT, times - start))))

    return send


async def count_requests(kind: str, ratio: float, names: list[str], variants: list[str]) -> None:
    """Count requests to each app."""
    for name in names:
        app = make(name, ratio)
        for variant in variants:
            send = (one_by_one if kind == "requests" else together)(app, request_of(variant))
            await count(f"{name}@{variant}", send, flusher(app))


async def count_served(ratio: float, names: list[str], variants: list[str]) -> None:
    """Count requests over a connection to uvicorn. The client is another process, which is not counted."""
    import uvicorn  # noqa: PLC0415 - not needed by the other kinds

    for name in names:
        app = make(name, ratio)
        server = uvicorn.Server(uvicorn.Config(app, port=0, access_log=False, log_level="warning"))
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        for variant in variants:
            await count_connection(f"{name}@{variant}", port, request_of(variant)["path"], flusher(app))
        server.should_exit = True
        await serving


async def count_connection(name: str, port: int, target: str, flush: Callable[[], Any]) -> None:
    """Count the requests of one client."""
    command = sys.executable, "-m", "benchmarks.instruction_client", str(port), target
    pipe = asyncio.subprocess.PIPE
    client = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)

    async def send(times: int) -> None:
        if client.stdin is None or client.stdout is None:
            raise RuntimeError("the client has no pipes")
        client.stdin.write(b"%d\n" % times)
        if not await client.stdout.readline():
            raise RuntimeError("the client has ended")

    await count(name, send, flush)
    client.terminate()
    await client.wait()


async def count_operations(ratio: float) -> None:
    """Count requests with statements and calls, with those of bare clients, and without any."""
    import httpx  # noqa: PLC0415 - as above

    from fastapi_observe import install  # noqa: PLC0415 - as above

    app = plain_app()
    observe = install(app, sample_ratio=ratio, max_traces_per_second=None)
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"id": "7"}))
    clients = {
        "bare": httpx.AsyncClient(transport=transport),
        "ours": observe.http_client(service="items", transport=transport),
    }
    steps = {
        "statement_bare": engine_step(connection()),
        "statement_ours": engine_step(connection(observe.instrument_engine)),
    }
    for name, client in clients.items():

        async def call(times: int, client: httpx.AsyncClient = client) -> None:
            for _ in range(times):
                await client.get("http://items/items/7")

        steps[f"call_{name}"] = call

    @app.get("/repeat/{step}")
    async def repeat(step: str) -> None:
        if step in steps:
            await steps[step](OPERATIONS)

    for step in ("none", *steps):
        await count(step, one_by_one(app, request("GET", f"/repeat/{step}")), flusher(app))


def main() -> None:
    """Run the command line."""
    kind, ratio, *rest = sys.argv[1:]
    if kind == "operations":
        uvloop.run(count_operations(float(ratio)))
        return
    names, variants = rest[0].split(","), rest[1:]
    if kind == "served":
        uvloop.run(count_served(float(ratio), names, variants))
    else:
        uvloop.run(count_requests(kind, float(ratio), names, variants))


if __name__ == "__main__":
    main()
