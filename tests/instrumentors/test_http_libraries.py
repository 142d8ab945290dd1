"""Requests by requests, aiohttp, urllib3 and httpx, seen by their instrumentors, are external calls."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI
from libraries import SAMPLING, http_service, instrumentor, library
from opentelemetry import baggage, context
from opentelemetry.trace import SpanKind
from starlette.testclient import TestClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Seen
    from libraries import HttpService

COUNTED = "external_requests_total"
HTTP = ["requests", "urllib3", "aiohttp-client", "httpx"]


@pytest.fixture
def service() -> Iterator[HttpService]:
    """Run a service to call."""
    with http_service() as running:
        yield running


async def call_requests(url: str) -> None:
    """Call with requests, which calls urllib3."""
    library("requests").get(url, timeout=20)


async def call_urllib3(url: str) -> None:
    """Call with urllib3."""
    with library("urllib3").PoolManager() as pool:
        pool.request("GET", url, retries=False)


async def call_aiohttp(url: str) -> None:
    """Call with aiohttp."""
    async with library("aiohttp").ClientSession() as session, session.get(url) as response:
        await response.read()


async def call_httpx(url: str) -> None:
    """Call with a client of httpx that was not given to us."""
    async with httpx.AsyncClient() as client:
        await client.get(url)


CALLS = {"requests": call_requests, "urllib3": call_urllib3, "aiohttp-client": call_aiohttp, "httpx": call_httpx}


def calling_app(call: Callable[[str], Any], url: str) -> FastAPI:
    """Return an app whose requests make a call."""
    app = FastAPI()

    @app.get("/")
    async def endpoint() -> None:
        await call(url)

    return app


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("name", CALLS)
def test_each_request_is_one_call(
    observed: Callable[..., Seen], service: HttpService, name: str, sampling: str
) -> None:
    """The host and the method are labels; the status is the outcome; requests over urllib3 count once."""
    chosen = [instrumentor(each) for each in HTTP]
    app = calling_app(CALLS[name], f"{service.url}/404?token=geheim&page=2")
    seen = observed(app, instrument=chosen, **SAMPLING[sampling])
    with TestClient(app) as client:
        assert client.get("/").status_code == 200
    labels = {"service": "127.0.0.1", "operation": "GET", "outcome": "client_error"}
    assert seen.samples(COUNTED) == {tuple(sorted(labels.items())): 1}
    (request,) = seen.request_lines
    assert request["fields"]["external_count"] == 1
    (line,) = [line for line in seen.lines if line["message"] == "external call failed"]
    assert line["level"] == "warn"
    assert line["fields"]["http.response.status_code"] == 404
    assert line["fields"]["url.full"] == f"{service.url}/404?token=REDACTED&page=REDACTED"
    shown = str([dict(span.attributes or {}) for span in seen.spans]) + str(seen.lines)
    assert "geheim" not in shown
    (headers,) = service.received
    assert headers["traceparent"].split("-")[1] == request["trace_id"]


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_cannot_connect_has_an_outcome(observed: Callable[..., Seen], name: str, sampling: str) -> None:
    """An exception of the library is the error type; nothing is left of the call afterwards."""
    app = calling_app(CALLS[name], "http://127.0.0.1:9/")
    seen = observed(app, instrument=[instrumentor(name)], **SAMPLING[sampling])
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.get("/").status_code == 500
        client.get("/")
    assert seen.total(COUNTED) == 2
    (labels,) = seen.samples(COUNTED)
    assert dict(labels)["outcome"] in {"connect_error", "error", "timeout"}
    assert all(line["fields"]["external_count"] == 1 for line in seen.request_lines)


@pytest.mark.parametrize("sampling", SAMPLING)
def test_a_client_of_ours_has_one_span(observed: Callable[..., Seen], service: HttpService, sampling: str) -> None:
    """The instrumentor of httpx leaves calls of `http_client` alone, also streamed ones, and sees those after them."""
    app = FastAPI()

    @app.get("/")
    async def endpoint() -> None:
        client = app.state.observe.http_client()
        await client.get(f"{service.url}/first")
        async with client.stream("GET", f"{service.url}/second") as response:
            await response.aread()
        await call_httpx(f"{service.url}/third")

    seen = observed(app, instrument=[instrumentor("httpx")], **SAMPLING[sampling])
    with TestClient(app) as client:
        assert client.get("/").status_code == 200
    assert seen.total(COUNTED) == 3
    spans = [span for span in seen.spans if span.kind is SpanKind.CLIENT]
    assert len(spans) == (0 if not seen.spans else 3), [span.name for span in spans]
    (request,) = seen.request_lines
    assert [headers["traceparent"].split("-")[1] for headers in service.received] == [request["trace_id"]] * 3


async def proxy_requests(url: str, proxy: str) -> None:
    """Call through a proxy with requests."""
    library("requests").get(url, proxies={"http": proxy}, timeout=20)


async def proxy_aiohttp(url: str, proxy: str) -> None:
    """Call through a proxy with aiohttp."""
    async with library("aiohttp").ClientSession() as session, session.get(url, proxy=proxy) as response:
        await response.read()


async def proxy_httpx(url: str, proxy: str) -> None:
    """Call through a proxy with httpx."""
    async with httpx.AsyncClient(proxy=proxy) as client:
        await client.get(url)


PROXIED = {"requests": proxy_requests, "aiohttp-client": proxy_aiohttp, "httpx": proxy_httpx}


@pytest.mark.parametrize("name", PROXIED)
@pytest.mark.parametrize("hosts", [[], ["api.example.com"]], ids=["refused", "allowed"])
def test_trace_context_goes_where_it_may(
    observed: Callable[..., Seen], service: HttpService, name: str, hosts: list[str]
) -> None:
    """`propagate_to` and `propagate_baggage` hold for instrumentors, which would send everything to every host."""

    async def call(url: str) -> None:
        token = context.attach(baggage.set_baggage("b", "2", baggage.set_baggage("a", "1")))
        try:
            await PROXIED[name](url, service.url)
        finally:
            context.detach(token)

    app = calling_app(call, "http://api.example.com/")
    observed(app, instrument=[instrumentor(name)], propagate_to=hosts, propagate_baggage=["a"])
    with TestClient(app) as client:
        client.get("/")
    (headers,) = service.received
    assert ("traceparent" in headers) == bool(hosts)
    assert headers.get("baggage") == ("a=1" if hosts else None)


async def test_a_client_given_to_us_counts_once(observed: Callable[..., Seen], service: HttpService) -> None:
    """Inside our operation the instrumentor adds neither a call nor a span, however it is seen."""
    seen = observed(FastAPI(), instrument=[instrumentor("httpx")], sample_ratio=1.0)
    async with httpx.AsyncClient() as client:
        seen.observe.instrument_client(client, service="billing")
        with seen.observe.job("bill"):
            await client.get(f"{service.url}/200")
    labels = {"service": "billing", "operation": "GET", "outcome": "ok"}
    assert seen.samples(COUNTED) == {tuple(sorted(labels.items())): 1}
    (job,) = [line for line in seen.lines if line["logger"] == "fastapi_observe.job"]
    assert job["fields"]["external_count"] == 1
    assert [span.name for span in seen.spans] == ["GET billing", "bill"]


def test_a_call_measured_by_hand_counts_once(observed: Callable[..., Seen], service: HttpService) -> None:
    """`external.call` around a request of an instrumented library is the call, with the names that it gives."""
    requests = library("requests")
    app = FastAPI()

    @app.get("/")
    def endpoint() -> None:
        with seen.observe.external.call("billing", "invoices") as call:
            call.set_status_code(requests.get(service.url, timeout=20).status_code)

    seen = observed(app, instrument=[instrumentor("requests")])
    with TestClient(app) as client:
        client.get("/")
    labels = {"service": "billing", "operation": "invoices", "outcome": "ok"}
    assert seen.samples(COUNTED) == {tuple(sorted(labels.items())): 1}
    assert seen.request_lines[0]["fields"]["external_count"] == 1


async def test_calls_at_the_same_time_count_each(observed: Callable[..., Seen], service: HttpService) -> None:
    """A call that starts while another one is open is not a part of it."""
    aiohttp = library("aiohttp")
    seen = observed(FastAPI(), instrument=[instrumentor("aiohttp-client")])
    async with aiohttp.ClientSession() as session:
        with seen.observe.job("many"):

            async def fetch() -> None:
                async with session.get(service.url) as response:
                    await response.read()

            await asyncio.gather(*(fetch() for _ in range(10)))
            async with session.get(service.url), session.get(service.url):
                pass
    assert seen.total(COUNTED) == 12
    (job,) = [line for line in seen.lines if line["logger"] == "fastapi_observe.job"]
    assert job["fields"]["external_count"] == 12
