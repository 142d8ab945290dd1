"""What `doctor --url` makes of the metrics of a running app, also of a broken or hostile one."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import interpreter
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import TracerProvider
from servers import serving
from variables import remove_variables

from fastapi_observe.cli.main import main
from fastapi_observe.doctor import probe
from fastapi_observe.doctor.check import Check
from fastapi_observe.doctor.page import MetricsPage
from fastapi_observe.slo import http_get

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Seen

INFO: Final = 'fastapi_observe_info{version="0.2.0"} 1.0'


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables of the machine."""
    remove_variables(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")


def by_subject(checks: Iterator[Check]) -> dict[str, Check]:
    """Return the checks by subject."""
    return {check.subject: check for check in checks}


def test_an_app_that_exports_nothing(observed: Callable[..., Seen]) -> None:
    """The metrics are the same with tracing off and with a tracer provider of the user, so it is no problem."""
    for options in ({"tracing": False}, {"tracer_provider": TracerProvider()}, {}):
        check = by_subject(MetricsPage(observed(FastAPI(), **options).text.splitlines()).check_counts())["export"]
        assert check.verdict == "ok"
        assert check.found.startswith("fastapi-observe exports nothing: intended with tracing off or a tracer provider")


def test_a_provider_that_is_set_in_the_lifespan() -> None:
    """Outside development, only the metrics say that no span is left for the export."""
    script = """
    import sys
    from contextlib import asynccontextmanager
    import httpx
    from fastapi import FastAPI
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from servers import serving
    from fastapi_observe import install
    from fastapi_observe.cli.main import main

    @asynccontextmanager
    async def lifespan(app):
        if sys.argv[1] == "later":
            trace.set_tracer_provider(TracerProvider())
        yield

    app = FastAPI(title="shop", lifespan=lifespan)
    app.get("/orders")(lambda: {"id": 7})
    observe = install(app, otlp_endpoint="http://127.0.0.1:9", sample_ratio=1, otlp_timeout=0.1, shutdown_timeout=0.1)
    with serving(app) as port:
        for _ in range(2):
            httpx.get(f"http://127.0.0.1:{port}/orders", trust_env=False)
        main(["doctor", "--url", f"http://127.0.0.1:{port}"])
    """
    found = "look  export of traces  0 exported, 0 queued, although 2 requests were measured"
    assert found in interpreter.run(script, "later").stdout
    assert "although" not in interpreter.run(script, "never").stdout


@pytest.mark.parametrize("names", ["prometheus", "semconv"])
def test_requests_without_a_route(observed: Callable[..., Seen], names: str) -> None:
    """Requests that all matched no route are named, and are not called none."""
    app = FastAPI()
    app.get("/orders")(lambda: {"id": 7})
    seen = observed(app, metric_names=names)
    client = TestClient(app)
    found = []
    for path in ("", "/missing", "/missing", "/orders"):
        if path:
            client.get(path)
        check = by_subject(MetricsPage(seen.text.splitlines()).check_counts()).get("requests")
        found.append("" if check is None else check.found)
    matched_none = "no request has matched a route yet; {} matched none (endpoint unmatched)"
    assert found == ["no request was measured yet", matched_none.format(1), matched_none.format(2), ""]


@contextmanager
def page_of(*chunks: bytes) -> Iterator[str]:
    """Serve a page of metrics and yield the URL of its server. A denied client and the console get 404."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        is_page = scope["path"] == "/metrics" and b"x-forwarded-for" not in dict(scope["headers"])
        await send({"type": "http.response.start", "status": 200 if is_page else 404, "headers": []})
        for chunk in chunks * is_page:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await asyncio.sleep(0.02 * (len(chunks) > 1))
        await send({"type": "http.response.body", "body": b""})

    with serving(app) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "1e300", "abc", "{", '1\nhttp_requests_total{a="b", ="c"} 3'])
def test_metrics_that_cannot_be_read(capsys: pytest.CaptureFixture[str], value: str) -> None:
    """A number that is none is reported: the checks of the metrics are missing."""
    with page_of(f"{INFO}\nfastapi_observe_workers {value}\n".encode()) as url:
        assert main(["doctor", "--url", url]) == 0
    out = capsys.readouterr().out
    assert "look  metrics         the metrics cannot be read: " in out
    assert f"See what responds at {url}/metrics." in out


def test_metrics_that_are_too_large_or_take_too_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size and time of a response are limited as a whole."""
    monkeypatch.setattr(http_get, "MAX_DOWNLOAD_BYTES", 1000)
    with page_of(b"# a comment\n" * 100) as url:
        assert main(["doctor", "--url", url]) == 0
    assert "the metrics cannot be read: the response has more than 0 MiB" in capsys.readouterr().out
    monkeypatch.setattr(probe, "RESPONSE_TIMEOUT", 0.3)
    with page_of(*[b"#\n"] * 400) as url:
        start = monotonic()
        assert main(["doctor", "--url", url]) == 1
        assert monotonic() - start < 5
    assert "/metrics: no response in time\n" in capsys.readouterr().out


def test_names_of_a_hostile_server(capsys: pytest.CaptureFixture[str]) -> None:
    """They cannot move the cursor or forge a line, and there are not many of them."""
    lines = [INFO, *(f'fastapi_observe_dropped_total{{signal="s{number}"}} 3' for number in range(20000))]
    lines.append('fastapi_observe_dropped_total{signal="a\\nok    fake\x1b[2J\x07' + "x" * 500 + '"} 3')
    with page_of("\n".join(lines).encode()) as url:
        assert main(["doctor", "--url", url]) == 1
    out = capsys.readouterr().out
    assert "wrong  export of a\\nok    fake\\x1b[2J\\x07xxx" in out
    assert "19996 more signals: not those of fastapi-observe" in out
    assert len(out) < 3000


def test_counts_below_zero() -> None:
    """A gauge of several workers can be below 0 for a moment: nothing is open then."""
    lines = [INFO, "http_requests_in_progress -5", 'websocket_connections_active{endpoint="/"} -1']
    found = by_subject(MetricsPage(lines).check_counts())["exit"].found
    assert found.startswith("no request or WebSocket is open")


def test_a_console_that_sends_no_checks() -> None:
    """A response that is not the console's has no check, whatever it has instead."""
    good = {"subject": "workers", "verdict": "ok", "found": "one process"}
    assert probe.read_check(good) == Check("workers", "ok", "one process")
    assert len(probe.read_check({**good, "found": "x" * 3_000_000}).found) == 2000
    for bad in ({**good, "verdict": "fine"}, {**good, "found": None}, {**good, "extra": ""}, {"subject": "workers"}):
        with pytest.raises((TypeError, ValueError)):
            probe.read_check(bad)
