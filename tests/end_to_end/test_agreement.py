"""Span, samples and line of every request agree on a real uvicorn with three concurrent clients."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import starlette
import websockets
from agreement import Facts, assert_agreement, assert_websocket_agreement, http_lines
from driver import ask
from fastapi import WebSocket  # noqa: TC002 - FastAPI reads annotations
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from servers import serving
from zoo import BROKEN, ROWS, Row, make_zoo

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen
    from fastapi import FastAPI

ROUNDS = 3
# BaseHTTPMiddleware before Starlette 1 may lose an exception that comes after the last message.
MAYBE_LOST = {"/sub/broken", "/star/broken"} if starlette.__version__.startswith("0.") else set()
LEFT = ("client_disconnect", "client_disconnect")
# uvicorn below 0.36 speaks WebSocket through a part of websockets that is deprecated; BaseHTTPMiddleware of old
# Starlette leaves a stream open when the app fails.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
]


@pytest.fixture(autouse=True)
def _uvicorn_unconfigured() -> None:
    """Take away what uvicorn's logging configuration left behind in an earlier test."""
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True


class Caller:
    """One client that sends every kind of request in an order of its own and keeps what it got."""

    def __init__(self, port: int, seed: int, crashing: set[str]) -> None:
        self.facts: list[Facts] = []
        self.websockets = 0
        self.crashes: list[str] = []
        self.answers: dict[str, tuple[int, int, int]] = {}
        self.traces: dict[str, str] = {}
        self._crashing = crashing
        self._port = port
        self._random = random.Random(seed)  # noqa: S311 - an order, no secret
        self._name = f"caller-{seed}"
        self._sent = 0

    async def call(self, rounds: int) -> None:
        """Send everything `rounds` times, mixed."""
        works: list[Any] = [(self._row, row) for row in ROWS for _ in range(rounds)]
        works += [(self._sized, size) for size in self._random.sample(range(1, 200_000), 10 * rounds)]
        works += [(self._leave_upload, None), (self._leave_endless, None), (self._talk, None)] * rounds
        self._random.shuffle(works)
        base = f"http://127.0.0.1:{self._port}"
        async with httpx.AsyncClient(base_url=base, trust_env=False, timeout=60) as self._http:
            for work, what in works:
                await work(what)

    async def _row(self, row: Row) -> None:
        self.facts.append(row.facts)
        await self._send(row, row.facts)

    async def _sized(self, size: int) -> None:
        facts = Facts("/sized/{size}", 200)
        self.facts.append(facts)
        await self._send(Row(f"/sized/{size}", facts), facts)

    async def _send(self, row: Row, facts: Facts) -> None:
        self._sent += 1
        request_id = f"{self._name}-{self._sent:05d}"
        trace_id = format(RandomIdGenerator().generate_trace_id(), "032x")
        headers = {**row.headers, "x-request-id": request_id, "traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
        self.traces[request_id] = trace_id
        if row.path in self._crashing:
            self.crashes.append(request_id)
            headers["connection"] = "close"  # as uvicorn will, some time after the response
        try:
            answer = await self._http.request(row.method, row.path, headers=headers, content=row.body)
        except (httpx.RemoteProtocolError, httpx.ReadError):
            assert facts[1:3] == (200, "server_error"), row
            return
        assert answer.headers["x-request-id"] == request_id
        assert answer.status_code == facts.status
        self.answers[request_id] = (answer.status_code, len(row.body), len(answer.content))

    async def _leave_upload(self, _: None) -> None:
        """Announce more than is sent, and leave."""
        self.facts.append(Facts("/upload", 499, *LEFT, method="POST"))
        await self._raw(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\nabc", 0)

    async def _leave_endless(self, _: None) -> None:
        """Leave in the middle of a stream."""
        self.facts.append(Facts("/endless", 200, *LEFT))
        await self._raw(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n", 300)

    async def _raw(self, data: bytes, read: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(data)
        await writer.drain()
        if read:
            await reader.readexactly(read)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def _talk(self, _: None) -> None:
        self.websockets += 1
        async with websockets.connect(f"ws://127.0.0.1:{self._port}/talk") as connection:
            await connection.send("hello")
            assert await connection.recv() == "hellohello"


def make_app() -> FastAPI:
    """Make the zoo with a WebSocket."""
    app = make_zoo()

    @app.websocket("/talk")
    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text * 2)

    return app


async def crashing_paths() -> set[str]:
    """Ask the bare app for which paths it raises."""
    app = make_zoo()
    found = {row.path for row in ROWS if (await ask(app, row.path, row.method, headers=row.headers)).raised}
    if (await ask(app, "/upload", "POST", body=(b"abc",), leave_after=0)).raised:
        found.add("/upload")
    return found


async def call_all(port: int, rounds: int, crashing: set[str]) -> list[Caller]:
    """Have three clients call at the same time."""
    callers = [Caller(port, seed, crashing) for seed in (101, 102, 103)]
    await asyncio.gather(*(caller.call(rounds) for caller in callers))
    return callers


def test_three_clients_at_once(observed: Callable[..., Seen]) -> None:
    """Hundreds of interleaved requests of every kind: each has its span, its line and its samples, all alike."""
    crashing = asyncio.run(crashing_paths())
    seen = observed(app := make_app())
    with serving(app) as port:
        callers = asyncio.run(call_all(port, ROUNDS, crashing))
    lines = assert_agreement(seen, *(facts for caller in callers for facts in caller.facts))
    by_id = {line["request_id"]: line for line in lines}
    assert len(by_id) == len(lines)
    for caller in callers:
        for request_id, trace_id in caller.traces.items():
            assert by_id[request_id]["trace_id"] == trace_id
        for request_id, (status, sent, received) in caller.answers.items():
            fields = by_id[request_id]["fields"]
            assert (fields["status_code"], fields["response_size"]) == (status, received)
            assert fields["request_size"] in {0, sent}  # not every endpoint reads its body
    opened = sum(caller.websockets for caller in callers)
    talks = assert_websocket_agreement(seen, *[(Facts("/talk", 101), "1000")] * opened)
    assert all((each["fields"]["request_size"], each["fields"]["response_size"]) == (5, 10) for each in talks)
    crashes = [request_id for caller in callers for request_id in caller.crashes]
    if "/upload" in crashing:
        crashes += [line["request_id"] for line in lines if line["fields"]["endpoint"] == "/upload"]
    logged = {line.get("request_id") for line in seen.lines if line["logger"] == "uvicorn.error"}
    crashes = [each for each in crashes if each in logged or by_id[each]["fields"]["url"] not in MAYBE_LOST]
    assert_crashes_logged(seen.lines, crashes, by_id)
    assert [line for line in seen.lines if line["logger"] == "uvicorn.access"] == []


def assert_crashes_logged(lines: list[dict[str, Any]], crashes: list[str], by_id: dict[str, dict[str, Any]]) -> None:
    """Check that uvicorn logs each crash once with the ids of its request, and its stack is written once.

    A client that left is a warning, without a stack.
    """
    logged = [line for line in lines if line["message"].startswith("Exception in ASGI application")]
    assert {line["logger"] for line in logged} == {"uvicorn.error"}
    assert sorted(line["request_id"] for line in logged) == sorted(crashes)
    for line in logged:
        left = by_id[line["request_id"]]["fields"]["outcome"] == "client_disconnect"
        assert line["level"] == ("warn" if left else "error")
        assert line["trace_id"] == by_id[line["request_id"]]["trace_id"]
        assert line["span_id"] == by_id[line["request_id"]]["span_id"]
        written = ["exception" in each for each in (line, by_id[line["request_id"]])]
        assert written.count(True) == (0 if left else 1)


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_pipelined_requests_have_their_own_traces(observed: Callable[..., Seen], ratio: float) -> None:
    """Requests sent without waiting for the responses are in separate traces.

    uvicorn starts the next one in the context of the one before (python/cpython#140947).
    """
    seen = observed(app := make_zoo(base=False), sample_ratio=ratio)
    paths = ("/none", "/sync", "/items/1", "/none", "/broken/sync")
    with serving(app) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"".join(b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode() for path in paths))
        while connection.recv(65536):
            pass
    lines = http_lines(seen)
    assert [line["fields"]["url"] for line in lines] == list(paths)
    assert len({line["trace_id"] for line in lines}) == len({line["request_id"] for line in lines}) == len(paths)
    assert_crashes_logged(seen.lines, [lines[-1]["request_id"]], {lines[-1]["request_id"]: lines[-1]})
    assert all(span.parent is None for span in seen.server_spans)
    if ratio:
        assert_agreement(seen)
    else:
        assert seen.spans == []


@pytest.mark.parametrize("options", [{}, {"log_config": None}, {"access_log": False}], ids=str)
def test_each_request_has_one_line(
    observed: Callable[..., Seen], capsys: pytest.CaptureFixture[str], options: dict[str, Any]
) -> None:
    """However uvicorn's own logging is set up, a request has one line: the access line is not written as well."""
    seen = observed(app := make_app())
    with serving(app, **options) as port:
        assert httpx.get(f"http://127.0.0.1:{port}/sync", trust_env=False, timeout=60).status_code == 200
        assert httpx.get(f"http://127.0.0.1:{port}/broken/async", trust_env=False, timeout=60).status_code == 500
    seen.observe.flush()
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert text.count('"HTTP request completed"') == 2
    assert "/sync HTTP/1.1" not in text
    assert text.count("Exception in ASGI application") == 1


def test_a_crash_is_logged_with_its_ids(observed: Callable[..., Seen]) -> None:
    """Uvicorn logs a crash after the request's context is gone; the line has the ids of the request."""
    seen = observed(app := make_zoo(base=False))
    with serving(app) as port:
        answer = httpx.get(f"http://127.0.0.1:{port}/broken/sync", trust_env=False, timeout=60)
    (line,) = assert_agreement(seen, Facts("/broken/sync", 500, "server_error", BROKEN))
    assert answer.headers["x-request-id"] == line["request_id"]
    assert_crashes_logged(seen.lines, [line["request_id"]], {line["request_id"]: line})


def test_root_path_of_the_server(observed: Callable[..., Seen]) -> None:
    """A root path given to uvicorn is not part of the route template, wherever the route is, nor of an exclusion."""
    seen = observed(app := make_zoo(), exclude_paths=["/items/9", "/sub/items/9", "/static/agreement.py"])
    with serving(app, root_path="/api") as port:
        reported = ("/items/1", "/sub/items/2", "/static/zoo.py", "/a/1/b/2/c/3")
        for path in (*reported, "/items/9", "/sub/items/9", "/static/agreement.py"):
            assert httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False, timeout=60).status_code == 200
    routes = ("/items/{item_id}", "/sub/items/{item_id}", "/static/{path}", "/a/{a}/b/{b}/c/{c}")
    assert_agreement(seen, *(Facts(route, 200) for route in routes))
