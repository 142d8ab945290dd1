"""`server_span`: the same requests with each of the three, attribute by attribute, and the table that shows it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from driver import with_client
from fastapi import BackgroundTasks, FastAPI, Response, WebSocket
from fastapi.testclient import TestClient
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from starlette.applications import Starlette

from fastapi_observe import SettingsError, install
from fastapi_observe.settings.model import ObserveSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen
    from starlette.requests import Request

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MODES = ("observe", "contrib", "fastapi")
KINDS = ("ok", "unmatched", "raises", "refuses", "stream", "redirect", "websocket")


@functools.cache
def shapes(mode: str, ratio: float = 1.0) -> dict[str, Any]:
    """Run the requests in a fresh process: the conventions are chosen once in a process."""
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, HERE / "server_span_shapes.py", mode, str(ratio)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
            "OTEL_SEMCONV_STABILITY_OPT_IN": "http",
            "OBSERVE_TAIL_SAMPLING": "errors,slow,first",
            "OBSERVE_MAX_TRACES_PER_SECOND": "",
        },
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["faults"] == {}
    requests: dict[str, Any] = found["requests"]
    return requests


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", [1.0, 0.0], ids=["sampled", "tail-sampled"])
def test_one_server_span_for_each_request(mode: str, kind: str, ratio: float) -> None:
    """Each request has one server span, whichever package makes it, sampled by its head and by its tail.

    FastAPI's own span is made by its sampler's decision, so tail sampling has nothing to export. A FastAPI without
    telemetry, before 0.142, leaves the span to us.
    """
    expected = 0 if (mode, ratio) == ("fastapi", 0.0) and hasattr(FastAPI(), "_telemetry") else 1
    assert len(shapes(mode, ratio)[kind]["server"]) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_contribs_spans_are_those_of_its_middleware_alone(kind: str) -> None:
    """Name, attributes, status, events and scope, of the server span and of those inside, are what contrib makes."""
    assert shapes("contrib")[kind] == shapes("reference")[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_contribs_tail_sampled_spans_are_the_same(kind: str) -> None:
    """A trace that is exported because of how the request ended has its reason as one more attribute."""
    (tail,) = shapes("contrib", 0.0)[kind]["server"]
    (reference,) = shapes("reference")[kind]["server"]
    assert tail["attributes"].pop("fastapi_observe.tail_sampled") in {"first", "errors"}
    assert tail == reference
    assert shapes("contrib", 0.0)[kind]["inside"] == shapes("reference")[kind]["inside"]


def test_the_documentation_shows_the_differences() -> None:
    """docs/reference/spans.md has a row for each attribute of these requests, with who sets it."""
    page = (ROOT / "docs" / "reference" / "spans.md").read_text("utf-8")
    section = page.partition("### Who describes the server span")[2].partition("\n## ")[0]
    rows = [
        [cell.strip(" `") for cell in row.strip("|").split("|")]
        for row in re.findall(r"^\|.*\|$", section, re.MULTILINE)
    ]
    described = {row[0]: [cell == "yes" for cell in row[1:4]] for row in rows[2:]}
    chosen = ("shop.", "http.request.header.")  # by the options of the test
    found: dict[str, list[bool]] = {}
    for at, mode in enumerate(MODES):
        for kind in KINDS:
            for name in shapes(mode)[kind]["server"][0]["attributes"]:
                if not name.startswith(chosen):
                    found.setdefault(name, [False] * len(MODES))[at] = True
    assert described == found


def test_names_and_status() -> None:
    """Names have the route except contrib's, which have the path; a 5xx is an error in all of them."""
    names = {mode: shapes(mode)["ok"]["server"][0]["name"] for mode in MODES}
    assert names == {"observe": "GET /items/{item_id}", "contrib": "GET /items/7", "fastapi": "GET /items/{item_id}"}
    for mode in MODES:
        assert shapes(mode)["raises"]["server"][0]["status"] == "ERROR"
        assert shapes(mode)["refuses"]["server"][0]["status"] == "ERROR"
        assert shapes(mode)["unmatched"]["server"][0]["status"] == "UNSET"


def test_lines_and_exemplars_have_the_ids_of_contribs_span(observed: Callable[..., Seen]) -> None:
    """Lines, the response header and later fields refer to the span that contrib describes."""
    seen = observed(app := FastAPI(), server_span="contrib")

    @app.get("/")
    async def read() -> None:
        seen.observe.set(tenant="acme")
        seen.observe.log.info("inside")

    header = TestClient(app).get("/").headers["traceresponse"]
    (span,) = seen.server_spans
    position = span.get_span_context()
    assert position is not None
    ids = f"{position.trace_id:032x}", f"{position.span_id:016x}"
    assert [(line["trace_id"], line["span_id"]) for line in seen.lines if "trace_id" in line] == [ids, ids]
    assert header.startswith(f"00-{ids[0]}-{ids[1]}-")
    assert (span.attributes or {})["tenant"] == "acme"
    _, body = seen.observe.metrics.render("application/openmetrics-text; version=1.0.0", "")
    assert f'trace_id="{ids[0]}"' in body.decode()


def test_untrusted_callers_choose_nothing(observed: Callable[..., Seen]) -> None:
    """The trace of a public caller is linked, not continued, although contrib would continue it."""
    seen = observed(app := FastAPI(), server_span="contrib", sample_ratio=0.0, tail_sampling=["errors"])

    @app.get("/")
    async def read() -> None:
        raise ValueError

    caller = f"00-{'a' * 32}-{'b' * 16}-01"
    client = TestClient(with_client(app, "203.0.113.9", 5), raise_server_exceptions=False)
    client.get("/", headers={"traceparent": caller})
    (span,) = seen.server_spans
    assert span.parent is None
    assert [f"{link.context.trace_id:032x}" for link in span.links] == ["a" * 32]


def test_requests_that_are_not_reported_have_no_span(observed: Callable[..., Seen]) -> None:
    """`/metrics` and excluded paths get a response without contrib's spans; contrib's own exclusion keeps our span."""
    seen = observed(
        app := FastAPI(), server_span="contrib", exclude_paths=["/health"], contrib_options={"excluded_urls": "plain"}
    )
    for path in ("/health", "/plain"):
        app.get(path)(lambda: None)
    client = TestClient(with_client(app, "10.1.2.3", 5))
    client.get("/metrics")
    client.get("/health")
    assert seen.spans == []
    client.get("/plain")
    (span,) = seen.spans
    assert span.name == "GET /plain"
    assert (span.attributes or {})["url.path"] == "/plain"


def test_a_hook_that_raises_reaches_nobody(observed: Callable[..., Seen]) -> None:
    """The exception of a hook is recorded on the span; the response is unchanged, in any version of contrib."""

    def hook(span: Any, _: Any) -> None:
        assert isinstance(span, ReadableSpan)  # the span itself
        raise RuntimeError("hook")

    seen = observed(app := FastAPI(), server_span="contrib", contrib_options={"server_request_hook": hook})
    app.get("/")(lambda: 1)
    assert TestClient(app).get("/").json() == 1
    (span,) = seen.server_spans
    assert [event.name for event in span.events] == ["exception"]
    assert span.status.is_unset
    assert seen.observe.internal_errors.counts == {}


@pytest.mark.parametrize(
    "options",
    [
        {"no_such": 1},
        {"tracer": object()},
        {"app": object()},
        {"http_capture_headers_server_request": ["x-.*", "("]},
        {"http_capture_headers_sanitize_fields": [1]},
    ],
)
def test_invalid_arguments_are_reported_at_install(options: dict[str, Any]) -> None:
    """Arguments that contrib does not have, or that are ours, are a SettingsError, and nothing is installed."""
    app = FastAPI()
    with pytest.raises(SettingsError, match="contrib_options"):
        install(app, server_span="contrib", contrib_options=options)
    assert not hasattr(app.state, "observe")
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def test_options_without_the_middleware_are_an_error() -> None:
    """`contrib_options` without `server_span="contrib"` would be ignored silently."""
    with pytest.raises(SettingsError, match="contrib_options need"):
        ObserveSettings(contrib_options={"exclude_spans": ["send"]})


def test_the_former_option_names_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """`native`, as an argument or a variable, is an error that names `server_span`."""
    with pytest.raises(SettingsError, match="native: this option is now server_span"):
        ObserveSettings(native="ride")  # type: ignore[call-arg]
    with pytest.raises(SettingsError, match=r'expected observe, contrib or fastapi .*native="ride"'):
        ObserveSettings(server_span="ride")
    monkeypatch.setenv("OBSERVE_NATIVE", "ride")
    with pytest.raises(SettingsError, match="set OBSERVE_SERVER_SPAN"):
        ObserveSettings()


@pytest.mark.parametrize("ratio", [ALWAYS_ON, ALWAYS_OFF])
def test_with_the_provider_of_the_user(ratio: Sampler) -> None:
    """The user's sampler decides; the span is of contrib's scope, and the line has its ids."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ratio)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = FastAPI()
    observe = install(app, server_span="contrib", tracer_provider=provider, logs=False)
    app.get("/items/{item_id}")(lambda: None)
    TestClient(app).get("/items/7")
    spans = [span for span in exporter.get_finished_spans() if span.kind.name == "SERVER"]
    observe.close()
    assert len(spans) == (ratio is ALWAYS_ON)
    for span in spans:
        assert span.instrumentation_scope is not None
        assert (span.name, span.instrumentation_scope.name) == ("GET /items/7", "opentelemetry.instrumentation.asgi")
    assert observe.internal_errors.counts == {}


def test_a_background_task_that_fails_late(observed: Callable[..., Seen]) -> None:
    """A request that was not sampled is exported, in contrib's shape, when its background task fails."""
    seen = observed(app := FastAPI(), server_span="contrib", sample_ratio=0.0, tail_sampling=["errors"])

    async def fail() -> None:
        raise ConnectionError

    @app.get("/")
    async def read(tasks: BackgroundTasks) -> None:
        tasks.add_task(fail)

    TestClient(app, raise_server_exceptions=False).get("/")
    (span,) = seen.server_spans
    assert span.name == "GET /"
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "opentelemetry.instrumentation.asgi"
    assert any(each.name.startswith("background") for each in seen.spans)
    assert seen.observe.internal_errors.counts == {}


def test_a_request_inside_a_request(observed: Callable[..., Seen]) -> None:
    """Of a trace that goes through the app twice, both server spans are contrib's, each once, in one trace."""
    seen = observed(app := FastAPI(), server_span="contrib", sample_ratio=0.0, tail_sampling=["errors"])
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=("127.0.0.1", 5))

    @app.get("/outer")
    async def outer() -> None:
        headers = seen.observe.tracing.inject({})
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            await asyncio.create_task(client.get("/inner", headers=headers), context=contextvars.Context())
        raise ValueError

    @app.get("/inner")
    async def inner() -> None: ...

    TestClient(app, raise_server_exceptions=False).get("/outer")
    spans = {span.name: span for span in seen.server_spans}
    assert sorted(span.name for span in seen.server_spans) == ["GET /inner", "GET /outer"]
    positions = [span.get_span_context() for span in spans.values()]
    assert len({position.trace_id for position in positions if position is not None}) == 1
    assert spans["GET /inner"].parent is not None
    assert seen.observe.internal_errors.counts == {}


def test_a_client_that_leaves_and_a_crash_without_a_response(observed: Callable[..., Seen]) -> None:
    """Where contrib ends the span before the request has ended, there is still one server span, of any sampling."""
    for ratio in (1.0, 0.0):
        seen = observed(app := FastAPI(), server_span="contrib", sample_ratio=ratio, tail_sampling=["errors"])

        @app.websocket("/ws")
        async def talk(socket: WebSocket) -> None:
            await socket.accept()
            raise LookupError("lost")

        client = TestClient(app)
        with pytest.raises(LookupError), client.websocket_connect("/ws") as socket:
            socket.receive_text()
        (span,) = seen.server_spans
        assert span.status.status_code.name == "ERROR"
        assert [event.name for event in span.events] == ["exception"]
        seen.observe.close()


HOSTILE: tuple[dict[str, Any], ...] = (
    {"headers": [(b"user-agent", b"\xff\\x")]},
    {"headers": [(b"content-length", b"\xff\\x")]},
    {"headers": [(b"host", b"\xff\\x")]},
    {"query_string": b"\xff\\x"},
)
"""Parts of a request at which contrib's middleware raises."""


async def call(app: Any, path: str, **changes: Any) -> list[dict[str, Any]]:
    """Send one request as it is; return the messages of the response."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": [],
        "client": ("10.1.2.3", 5), "server": ("127.0.0.1", 80), "scheme": "http", "http_version": "1.1",
    }  # fmt: skip
    await app({**scope, **changes}, receive, send)
    return sent


@pytest.mark.parametrize("changes", HOSTILE)
@pytest.mark.parametrize("ratio", [1.0, 0.0])
async def test_requests_that_contrib_cannot_read(
    observed: Callable[..., Seen], changes: dict[str, Any], ratio: float
) -> None:
    """Headers and queries at which contrib's middleware raises get a response as always, and have one server span."""
    seen = observed(
        app := FastAPI(), server_span="contrib", sample_ratio=ratio, tail_sampling=["first"], log_level="fatal"
    )

    @app.get("/items/{item_id}")
    async def read(item_id: int) -> int:
        return item_id

    start, body = await call(app, "/items/7", **changes)
    assert (start["status"], body["body"]) == (200, b"7")
    assert len(seen.server_spans) == 1
    assert seen.observe.internal_errors.counts.keys() == {"contrib"}


@pytest.mark.parametrize("changes", HOSTILE)
async def test_a_crash_that_contrib_cannot_read(observed: Callable[..., Seen], changes: dict[str, Any]) -> None:
    """The exception of the app is raised as it was, and the request has one server span."""
    seen = observed(app := Starlette(), server_span="contrib", log_level="fatal")

    async def fail(request: Request) -> Response:
        raise LookupError("app")

    app.add_route("/", fail)
    with pytest.raises(LookupError, match="app"):
        await call(app, "/", **changes)
    (span,) = seen.server_spans
    assert span.status.status_code.name == "ERROR"


async def test_a_response_that_contrib_cannot_read(observed: Callable[..., Seen]) -> None:
    """A header of the response at which contrib raises is sent unchanged, once, with its body."""
    seen = observed(app := FastAPI(), server_span="contrib", log_level="fatal")

    @app.get("/")
    async def read() -> Response:
        response = Response("whole")
        response.raw_headers[:] = [(b"content-length", b"\xff\\x")]
        return response

    start, body = await call(app, "/")
    assert start["headers"][0] == (b"content-length", b"\xff\\x")
    assert body["body"] == b"whole"
    assert len(seen.server_spans) == 1
    assert seen.observe.internal_errors.counts.keys() == {"contrib"}


PROVIDERS: dict[str, Callable[[], dict[str, Any]]] = {
    "sampled": lambda: {"sample_ratio": 1.0},
    "tail-sampled": lambda: {"sample_ratio": 0.0, "tail_sampling": ["slow"], "slow_request_threshold": 1e-9},
    "of the user": lambda: {"tracer_provider": TracerProvider()},
}


@pytest.mark.parametrize(("path", "status"), [("/ok", "UNSET"), ("/unavailable", "ERROR"), ("/crash", "ERROR")])
@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_failure_of_contribs_is_none_of_the_request(
    observed: Callable[..., Seen], provider: str, path: str, status: str
) -> None:
    """If contrib's middleware raises after the span has started, the span has the status and end of the response."""
    seen = observed(
        app := Starlette(),
        server_span="contrib",
        capture_request_headers=["x-tenant"],
        log_level="fatal",
        **PROVIDERS[provider](),
    )

    async def answer(request: Request) -> Response:
        await asyncio.sleep(0.01)
        if request.url.path == "/crash":
            raise LookupError("app")
        current = trace.get_current_span()
        current.set_attribute("shop.recording", current.is_recording())
        return Response(status_code=200 if request.url.path == "/ok" else 503)

    app.add_route(path, answer)
    with contextlib.suppress(LookupError):
        await call(app, path, headers=[(b"x-tenant", b"\xff\\x")])
    (span,) = seen.server_spans
    assert span.status.status_code.name == status
    assert span.status.description is None
    assert [(event.attributes or {})["exception.type"] for event in span.events] == ["LookupError"] * (path == "/crash")
    attributes = dict(span.attributes or {})
    assert attributes["http.response.status_code"] == {"/ok": 200, "/unavailable": 503, "/crash": 500}[path]
    assert attributes.get("shop.recording", True) is True
    assert span.end_time is not None
    assert span.start_time is not None
    assert span.end_time - span.start_time > 10_000_000
    assert seen.observe.internal_errors.counts.keys() == {"contrib"}


async def test_a_server_that_raises_while_sending(observed: Callable[..., Seen]) -> None:
    """What the server raises for a client that has left reaches the app unchanged, and is not an internal error."""
    seen = observed(app := FastAPI(), server_span="contrib", log_level="fatal")
    app.get("/")(lambda: None)

    async def send(message: Any) -> None:
        raise OSError("left")

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": [], "http_version": "1.1"}
    with pytest.raises(OSError, match="left"):
        await app(scope, receive, send)
    assert seen.observe.internal_errors.counts == {}
