"""Holds that no client can make the number of series grow, with attacks on every label."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import tracemalloc
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel
from servers import serving
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Host, Mount, Route, Router
from starlette.staticfiles import StaticFiles
from starlette.testclient import TestClient
from tools import volume

from fastapi_observe import Observability, install
from fastapi_observe.workers.files import OVERFLOW

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from starlette.types import Message, Receive, Scope, Send

MAX_NEW = 12
"""Label sets that any attack may add: unknown values become one, in each of the four metrics of a request."""

LIMIT = 500
"""The default of `max_values_per_label`."""


class Item(BaseModel):
    """A body with a dictionary, whose keys the client chooses."""

    name: str
    prices: dict[str, int] = {}


def observed(app: Any, **options: Any) -> Observability:
    """Install with a new registry."""
    options = {"registry": CollectorRegistry(), "include_default_registry": False, "multiprocess": "off", **options}
    return install(app, logs=False, tracing=False, **options)


def hostile_app(directory: Path) -> FastAPI:
    """Return an app in which a client chooses path, parts of mounts, host, files and status."""
    app = FastAPI()

    async def status(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": int(scope["query_string"] or 200), "headers": []})
        await send({"type": "http.response.body", "body": b""})

    @app.get("/items/{item_id}")
    async def item(item_id: str) -> str:
        return item_id

    @app.get("/files/{path:path}")
    async def file(path: str) -> str:
        return path

    async def below(request: Any) -> Response:
        return PlainTextResponse("below")

    app.mount("/t/{tenant}", Starlette(routes=[Route("/{deep}", below)]))
    app.mount("/static", StaticFiles(directory=directory))
    app.mount("/status", status)
    app.router.routes.append(Host("{sub}.example.org", Router([Mount("/h/{x}", Router([Route("/{y}", below)]))])))
    return app


def label_sets(observe: Observability) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """Return every label set in the response, with the name of its metric."""
    found = set()
    body = observe.metrics.render("", "")[1].decode()
    for family in text_string_to_metric_families(body):
        for sample in family.samples:
            found.add((family.name, tuple(sorted(pair for pair in sample.labels.items() if pair[0] != "le"))))
    return found


def values_of(observe: Observability, name: str, label: str) -> set[str]:
    """Return the values of a label in the response."""
    return {dict(labels)[label] for family, labels in label_sets(observe) if family == name}


def word(chance: random.Random) -> str:
    """Return a random part of a request."""
    kinds = ("abcdefghijklmnopqrstuvwxyz", "ABCXYZ-_.~", "0123456789", 'äß漢\u202e\x1b%\\"{}$', "'; DROP TABLE")
    return "".join(chance.choices(chance.choice(kinds), k=chance.randint(4, 24)))


KNOWN = ("/items/{}", "/files/{}/{}", "/t/{}/{}", "/t/{}/{}/{}", "/static/{}", "/h/{}/{}")


def path(chance: random.Random) -> str:
    """Return a path with random parts, of a route or of none."""
    known = chance.choice(KNOWN)
    return known.format(*(word(chance) for _ in range(3))) if chance.random() < 0.7 else f"/{word(chance)}"


async def send_one(app: Any, **scope: Any) -> None:
    """Serve one request."""

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        return None

    usual = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "root_path": "",
        "query_string": b"",
        "headers": [],
        "client": ("203.0.113.9", 1234),
        "server": ("127.0.0.1", 80),
    }
    await app({**usual, **scope}, receive, send)


async def warm(app: Any) -> None:
    """Send the requests of an ordinary client once."""
    for known in (*KNOWN, "/nowhere", "/status/"):
        await send_one(app, path=known.format("a", "b", "c"), headers=[(b"host", b"a.example.org")])
        await send_one(app, path=known.format("a", "b", "c"))


async def test_random_requests_add_no_series(tmp_path: Path) -> None:
    """10,000 random methods, hosts, paths, status codes, schemes and versions add at most 12 label sets."""
    app = hostile_app(tmp_path)
    observe = observed(app)
    await warm(app)
    before = label_sets(observe)
    chance = random.Random(6)  # noqa: S311 - the same attack in each run
    for number in range(10_000):
        headers = [
            (name, word(chance).encode())
            for name in (b"user-agent", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"content-type")
        ]
        host = f"{word(chance)}.example.org" if chance.random() < 0.3 else word(chance)
        target = path(chance)
        scope: dict[str, Any] = {
            "path": target,
            "raw_path": target.encode(),
            "http_version": chance.choice(["0.9", "1.0", "2", "3", word(chance)]),
            "scheme": chance.choice(["https", "h2c", word(chance)]),
            "headers": [(b"host", host.encode()), *headers],
            "server": (host, chance.randint(0, 65_535)),
        }
        if number % 3 == 0:
            scope.update(path="/nowhere", method=word(chance))
        elif number % 3 == 1:
            status = chance.choice([chance.randint(-1000, 99), chance.randint(600, 10**9)])
            scope.update(path="/status/", query_string=b"%d" % status)
        await send_one(app, **scope)
    new = label_sets(observe) - before
    assert len(new) <= MAX_NEW, sorted(new)
    assert {("method", "_OTHER"), ("status_code", "_other")} <= {pair for _, labels in new for pair in labels}


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_random_requests_over_sockets_add_no_series(http: str, tmp_path: Path) -> None:
    """300 random requests as bytes to a real server add at most 12 label sets, with either parser."""
    app = hostile_app(tmp_path)
    observe = observed(app)
    chance = random.Random(6)  # noqa: S311 - the same attack in each run
    with serving(app, http=http, log_level="critical") as port:
        asyncio.run(warm(app))
        before = label_sets(observe)
        for number in range(300):
            method = "GET" if number % 2 else chance.choice(["BREW", "PROPFIND", "M-SEARCH", f"X{number}"])
            target = "/nowhere" if method != "GET" else quote(path(chance), safe="/%\\\"{}$';")
            status = "/status/?" + str(chance.choice([99, 600, 700, 999])) if number % 10 == 1 else ""
            version = chance.choice(["1.1", "1.0", "0.9", "2.0", "7.3"])
            request = (
                f"{method} {status or target} HTTP/{version}\r\nhost: {number}.example.org\r\nconnection: close\r\n\r\n"
            )
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(request.encode())
                while connection.recv(65_536):
                    pass
    new = label_sets(observe) - before
    assert len(new) <= MAX_NEW, sorted(new)


def test_fields_of_validation_errors_are_declared_ones() -> None:
    """Keys, positions and types chosen by a client do not become values of `field` and `error_type`."""
    app = FastAPI()

    @app.post("/items")
    async def add(item: Item, limit: int = 1) -> None:
        return None

    observe = observed(app)
    chance = random.Random(6)  # noqa: S311 - the same attack in each run
    with TestClient(app) as client:
        for _ in range(200):
            body = {"name": [], word(chance): 1, "prices": {word(chance): word(chance) for _ in range(5)}}
            client.post("/items", params={"limit": word(chance)}, json=body)
            client.post("/items", content=word(chance).encode(), headers={"content-type": "application/json"})
    fields = values_of(observe, "request_validation_errors", "field")
    assert fields == {"body", "body.name", "body.prices.*", "body.[]", "query.limit"}
    assert len(values_of(observe, "request_validation_errors", "error_type")) <= 6


def test_close_codes_are_limited() -> None:
    """Codes chosen by the client, and invalid ones of the app, are `_other`; other codes of the app are limited."""
    app = FastAPI()

    @app.websocket("/ws/{room}")
    async def talk(websocket: WebSocket, room: str) -> None:
        await websocket.accept()
        try:
            code = await websocket.receive_json()
        except WebSocketDisconnect:
            return
        await websocket.send({"type": "websocket.close", "code": code})

    observe = observed(app, max_values_per_label=20)
    with TestClient(app) as client:
        for code in range(2990, 3010):
            with client.websocket_connect(f"/ws/{code}") as socket_:
                socket_.close(code)
        assert values_of(observe, "websocket_connection_duration_seconds", "close_code") == {"_other"}
        made_up: tuple[Any, ...] = ("x", 999, 5000, -1, 10**9, 1001, 4999, None, 3.5)
        for one in made_up:
            with client.websocket_connect("/ws/a") as socket_:
                socket_.send_json(one)
        shown = values_of(observe, "websocket_connection_duration_seconds", "close_code")
        assert shown == {"_other", "1001", "4999"}
        for code in range(4000, 4030):
            with client.websocket_connect("/ws/a") as socket_:
                socket_.send_json(code)
    shown = values_of(observe, "websocket_connection_duration_seconds", "close_code")
    assert len(shown) == 21
    assert OVERFLOW in shown
    assert values_of(observe, "websocket_connection_duration_seconds", "endpoint") == {"/ws/{room}"}


async def test_an_invalid_status_is_not_an_error_type() -> None:
    """Status codes of 600 and more share one value of `error_type`."""
    app = FastAPI()

    async def status(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": int(scope["query_string"]), "headers": []})
        await send({"type": "http.response.body", "body": b""})

    app.mount("/status", status)
    observe = observed(app)
    for number in (500, 599, *range(600, 700)):
        await send_one(app, path="/status/", query_string=b"%d" % number)
    assert values_of(observe, "http_request_errors", "error_type") == {"500", "599", "_other"}


async def test_routes_have_no_limit_of_values() -> None:
    """An app may have more routes than other labels may have values: `endpoint` is a fixed list."""
    app = FastAPI()
    for number in range(30):
        app.add_api_route(f"/r{number}", lambda: None)
    observe = observed(app, max_values_per_label=10)
    for number in range(30):
        await send_one(app, path=f"/r{number}")
    assert len(values_of(observe, "http_requests", "endpoint")) == 30
    named_so = observe.metrics.counter("mine_total", "Mine.", ["endpoint"])
    for number in range(30):
        named_so.labels(number).inc()
    assert len(values_of(observe, "mine", "endpoint")) == 11  # nothing says where these come from


class Flood(Exception):  # noqa: N818 - not raised as an error
    """Base of the classes that are created for each request."""


async def flood(observe: Observability, words: Iterator[str]) -> None:
    """Use values that a client may have sent for every label that user code can set."""
    metrics = observe.metrics
    for one in words:
        async with observe.operation(one):
            pass
        async with observe.db.query(one, table=one):
            pass
        async with observe.db.query("SELECT", statement="SELECT * FROM " + one):  # noqa: S608 - sent nowhere
            pass
        async with observe.external.call(one, one):
            pass
        observe.external.service_label(f"{one}.example.org")
        observe.record_connection_wait(one, 1.0)
        observe.record_connection_event(one, one)
        metrics.business.revenue(1, "".join(chr(ord("A") + int(digit)) for digit in one[-3:]))
        metrics.record_database_query(one, one, 0.1, one)
        metrics.set_database_connections(pool=one, active=1)
        try:
            with observe.db.query("SELECT", table="orders"):
                raise type(f"Made{one}", (Flood,), {})
        except Flood:
            pass


async def test_every_label_that_user_code_sets_is_limited(caplog: pytest.LogCaptureFixture) -> None:
    """With 2,000 values in each label, no limit is exceeded, sums are complete, and there is one warning for each."""
    observe = observed(FastAPI())
    number = 2000
    with caplog.at_level(logging.WARNING, logger="fastapi_observe"):
        await flood(observe, (f"word{at:05}" for at in range(number)))
    shown: dict[tuple[str, str], set[str]] = {}
    for family, labels in label_sets(observe):
        for name, value in labels:
            shown.setdefault((family, name), set()).add(value)
    assert {key for key, values in shown.items() if len(values) > LIMIT + 1} == set()
    assert len(shown["operations", "operation"]) == LIMIT + 1
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == len(set(warnings))
    assert any("Label operation of metric operations_total" in line for line in warnings)
    sample_value = observe.metrics.registry.get_sample_value
    overflowed = {"operation": OVERFLOW, "outcome": "ok"}
    assert sample_value("operations_total", overflowed) == number - LIMIT
    assert sample_value("fastapi_observe_series_overflow_total", {"metric": "operations_total"}) == number - LIMIT
    requests = [
        sample.value
        for family in observe.metrics.registry.collect()
        if family.name == "external_requests"
        for sample in family.samples
    ]
    assert sum(requests) == number


def test_the_label_value_in_the_warning_is_redacted(caplog: pytest.LogCaptureFixture) -> None:
    """The redaction of the settings applies to the warning, too."""
    observe = observed(FastAPI(), max_values_per_label=1, redact=lambda text: text.replace("tulip", "REDACTED"))
    visits = observe.metrics.counter("visits_total", "Visits.", ["user"])
    with caplog.at_level(logging.WARNING, logger="fastapi_observe"):
        visits.labels("a").inc()
        visits.labels("tulip password=hush").inc()
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "the first was 'REDACTED password=REDACTED'" in warning


def test_many_values_of_a_label_use_limited_memory() -> None:
    """Very many values of a label make 501 series and use at most 20 MB; each replaced one is counted."""
    values = volume(100_000)
    observe = observed(FastAPI())
    metric = observe.metrics.histogram("visits_seconds", "Visits.", ["shop", "user"])
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(values):
            metric.labels("north", f"user-{number:032}").observe(0.1)
        grown, peak = (now - before for now in tracemalloc.get_traced_memory())
    finally:
        tracemalloc.stop()
    assert grown <= 2_000_000
    assert peak <= 20_000_000
    assert len(metric.children()) == LIMIT + 1
    labels = {"metric": metric.exposition_name()}
    overflow = observe.metrics.registry.get_sample_value("fastapi_observe_series_overflow_total", labels)
    assert overflow == values - LIMIT


def test_limits_apply_to_each_worker(tmp_path: Path) -> None:
    """Each worker has its own limits, and the totals of ended workers have that of one metric; sums stay correct."""
    pytest.importorskip("fcntl")
    from members import Member  # noqa: PLC0415 - not on Windows

    total = 0
    for generation in range(6):
        member = Member(tmp_path)
        counter = member.metrics.counter("visits_total", "Visits.", ["user"])
        for number in range(3 * LIMIT):
            counter.labels(f"{generation}-{number}").inc()
        total += 3 * LIMIT
        visits = member.samples()["visits_total"]
        assert sum(visits.values()) == total
        assert len(visits) == min(LIMIT * generation, 2000 - 1) + LIMIT + 1
        member.die()
