"""`external.call`: outcomes, labels and trace headers; `PropagationPolicy`: which hosts receive the trace context."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, propagate
from opentelemetry.context import attach, detach
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace import SpanKind, StatusCode, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.applications import Starlette
from tools import held

from fastapi_observe import TraceContext
from fastapi_observe.clients.http.external import MAX_SERVICE_NAME_LENGTH, MAX_SERVICES, ExternalClient
from fastapi_observe.clients.http.propagation import MAX_HOSTS, PropagationPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Seen
    from opentelemetry.context import Context
    from opentelemetry.propagators.textmap import Getter, Setter


@pytest.fixture
def seen(observed: Callable[..., Seen]) -> Seen:
    """Install on an app without routes."""
    return observed(Starlette())


# Calls


@pytest.mark.parametrize(
    ("status", "outcome", "error_type"),
    [(200, "ok", None), (302, "ok", None), (404, "client_error", None), (503, "server_error", "503")],
)
async def test_call_gives_three_signals(seen: Seen, status: int, outcome: str, error_type: str | None) -> None:
    """A call is a client span, two samples and a line. The status sets the outcome."""
    async with seen.observe.external.call("billing", "get_invoice", invoice=7) as call:
        call.set_status_code(status)
    (span,) = seen.spans
    attributes = dict(span.attributes or {})
    assert (span.name, span.kind) == ("get_invoice billing", SpanKind.CLIENT)
    assert (attributes["peer.service"], attributes["invoice"]) == ("billing", 7)
    assert (attributes["http.response.status_code"], attributes.get("error.type")) == (status, error_type)
    assert span.status.status_code is (StatusCode.ERROR if error_type else StatusCode.UNSET)
    labels = {"service": "billing", "operation": "get_invoice"}
    assert seen.sample("external_requests_total", **labels, outcome=outcome) == 1
    assert seen.sample("external_request_duration_seconds_count", **labels) == 1
    (line,) = [line for line in seen.lines if line["logger"] == "fastapi_observe.operation"]
    assert (line["fields"]["outcome"], line["fields"]["service"]) == (outcome, "billing")


class Timeout(Exception):  # noqa: N818 - as in requests
    """A timeout of another library."""


@pytest.mark.parametrize(
    ("exc", "outcome"),
    [
        (TimeoutError(), "timeout"),
        (httpx.ReadTimeout("slow"), "timeout"),
        (httpx.ConnectTimeout("slow"), "timeout"),
        (Timeout(), "timeout"),
        (ConnectionRefusedError(), "connect_error"),
        (httpx.ConnectError("refused"), "connect_error"),
        (asyncio.CancelledError(), "cancelled"),
        (ValueError("not JSON"), "error"),
    ],
)
def test_call_outcomes(seen: Seen, exc: BaseException, outcome: str) -> None:
    """Timeouts and failed connections of any library have their own outcomes; the exception is raised unchanged."""
    with pytest.raises(type(exc)) as caught, seen.observe.external.call("billing", "get"):
        raise exc
    assert caught.value is exc
    assert seen.sample("external_requests_total", service="billing", operation="get", outcome=outcome) == 1
    assert seen.spans[0].status.status_code is StatusCode.ERROR


def test_last_status_counts(seen: Seen) -> None:
    """A call that was retried has the outcome of its last response."""
    with seen.observe.external.call("billing", "get") as call:
        call.set_status_code(503)
        call.set_status_code(200)
    assert seen.sample("external_requests_total", service="billing", operation="get", outcome="ok") == 1
    assert seen.spans[0].status.status_code is StatusCode.UNSET


def test_services_are_bounded(seen: Seen) -> None:
    """The first `MAX_SERVICES` hosts have a label of their own; others, and names that are too long, are `other`."""
    external = ExternalClient(seen.observe)
    assert external.service_label("x" * (MAX_SERVICE_NAME_LENGTH + 1)) == "other"
    services = {external.service_label(f"host{number}.example") for number in range(10 * MAX_SERVICES)}
    assert len(services) == MAX_SERVICES + 1
    assert "other" in services
    assert external.service_label("host0.example") == "host0.example"


# call.inject


def test_inject(seen: Seen) -> None:
    """Adds the headers that make the callee's span a child of the call's, and the allowed baggage."""
    external = ExternalClient(seen.observe, PropagationPolicy(keys=["tenant"]))
    token = attach(baggage.set_baggage("tenant", "acme", baggage.set_baggage("card", "4111")))
    try:
        with external.call("billing", "GetInvoice") as call:
            metadata = tuple(call.inject({"authorization": "x"}).items())
    finally:
        detach(token)
    (span,) = seen.spans
    assert span.context is not None
    ids = f"{span.context.trace_id:032x}-{span.context.span_id:016x}"
    carried = dict(metadata)
    assert carried.pop("traceparent").startswith(f"00-{ids}-")
    assert carried == {"authorization": "x", "baggage": "tenant=acme"}


def test_inject_with_a_host(seen: Seen) -> None:
    """A public host receives no trace headers, also none that were there before."""
    with seen.observe.external.call("billing", "get") as call:
        assert set(call.inject({}, host="billing")) == {"traceparent"}
        headers = {"traceparent": "x", "tracestate": "y", "baggage": "z", "accept": "*/*"}
        assert call.inject(headers, host="api.example.com") == {"accept": "*/*"}


def test_inject_in_a_decorated_call(seen: Seen) -> None:
    """Each copy of a call, one for each run of a decorated function, has the same policy and details."""
    external = ExternalClient(seen.observe, PropagationPolicy(["api.example.com"]))
    call = external.call("billing", "get", invoice=7)
    copied = call.copy()
    with copied:
        assert copied.inject({}, host="api.example.com")
    assert (seen.spans[0].name, (seen.spans[0].attributes or {})["invoice"]) == ("get billing", 7)


def test_unsampled_parent(observed: Callable[..., Seen]) -> None:
    """No span is made, but the line and the headers carry the ids of the trace."""
    seen = observed(Starlette(), sample_ratio=0.0)
    tracing = seen.observe.tracing
    with (
        tracing.attach(TraceContext("a" * 32, "b" * 16, sampled=False)),
        seen.observe.external.call("billing", "get") as call,
    ):
        carried: dict[str, str] = call.inject({})
    assert carried["traceparent"] == f"00-{'a' * 32}-{'b' * 16}-00"
    assert seen.spans == []
    assert seen.total("external_requests_total") == 1
    (line,) = [line for line in seen.lines if line["logger"] == "fastapi_observe.operation"]
    assert (line["trace_id"], line["span_id"]) == ("a" * 32, "b" * 16)


# Which hosts receive the trace context

PRIVATE = [
    *("localhost", "LOCALHOST", "localhost.", "api.localhost", "127.0.0.1", "127.8.9.1", "::1", "[::1]", "0.0.0.0"),  # noqa: S104
    *(
        "10.1.2.3",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.1.1",
        "fd00::1",
        "fe80::1%eth0",
    ),
    *("::ffff:10.0.0.1", "payments", "redis_1", "payments.svc", "payments.default.svc.cluster.local", "nas.lan"),
    *("printer.local", "db.internal", "app.test"),
]
PUBLIC = [
    *("example.com", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2001:4860:4860::8888", "::ffff:8.8.8.8", "localhost.com"),
    *("134744072", "0x8080808", "8.8", "010.0.0.1", "10.0.0.256", "1.2.3.4.5", "internal.example.com"),
    *("", ".", "..", "a b", "pay\nments", "münchen", "x" * 254, "a" * 100_000, "[", "fe80::zz", ":::", "\udc80", "*"),
    *("evil.com%.local", "evil.com/.local", "evil.com#.test", "host.local.evil.com"),
]


def test_private_hosts_are_allowed() -> None:
    """Hosts that are private by their name or address."""
    for host in PRIVATE:
        assert PropagationPolicy().allows(host), host


def test_public_hosts_are_not_allowed() -> None:
    """All others, also those that look private, and strings that are not hosts; none raises."""
    policy = PropagationPolicy()
    for host in (*PUBLIC, *PUBLIC):  # the second time from the cache
        assert not policy.allows(host), host


@pytest.mark.parametrize(
    ("listed", "host", "expected"),
    [
        ("api.example.com", "api.example.com", True),
        ("API.Example.com.", "api.EXAMPLE.com", True),
        ("api.example.com", "x.api.example.com", False),
        ("*.example.com", "api.example.com", True),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "badexample.com", False),
        ("*.example.com", "example.com.evil.com", False),
        ("[2001:db8::1]", "2001:db8::1", True),
        ("8.8.8.8", "8.8.8.8", True),
        ("*", "anything.at.all", True),
    ],
)
def test_listed_hosts_are_allowed(listed: str, host: str, expected: bool) -> None:  # noqa: FBT001 - a table
    """`propagate_to` lists exact hosts, `*.domain` for subdomains, or `*`."""
    assert PropagationPolicy([listed]).allows(host) is expected


@given(st.text() | st.text("0123456789abcdefx.:[]%*-_"))
def test_no_host_raises(host: str) -> None:
    """Any string is decided without an exception, and the same from the cache."""
    propagation = PropagationPolicy(["*.example.com"])
    assert propagation.allows(host) is propagation.allows(host)


def test_the_cache_of_hosts_is_bounded() -> None:
    """More hosts than `MAX_HOSTS` are decided, but not cached."""
    propagation = PropagationPolicy()
    full = 0
    for number in range(3 * MAX_HOSTS):
        assert not propagation.allows(f"host{number:06}.example.com")
        full = full or (number == MAX_HOSTS and held(propagation))
    assert 0 < held(propagation) <= full


# Headers


@pytest.fixture
def within() -> Iterator[Callable[..., None]]:
    """Set a trace context for the test."""
    tokens: list[Any] = []

    def enter(context: Context) -> None:
        tokens.append(attach(context))

    yield enter
    for token in reversed(tokens):
        detach(token)


@pytest.mark.parametrize(
    ("keys", "carried"), [((), None), (("tenant",), "tenant=acme"), (("*",), "tenant=acme,card=4111"), (("x",), None)]
)
def test_baggage(within: Callable[..., None], keys: tuple[str, ...], carried: str | None) -> None:
    """Of the baggage only the keys in `propagate_baggage` are sent: none by default, all with `*`."""
    within(TraceContext("a" * 32, "b" * 16, sampled=True, baggage={"tenant": "acme", "card": "4111"}).to_context())
    headers: dict[str, str] = {}
    PropagationPolicy((), keys).inject("payments", headers)
    assert headers.pop("traceparent") == f"00-{'a' * 32}-{'b' * 16}-01"
    assert headers.get("baggage") == carried


def test_trace_state(within: Callable[..., None]) -> None:
    """`tracestate` is sent with `traceparent`."""
    received = propagate.extract({"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "vendor=1"})
    within(received)
    headers: dict[str, str] = {}
    PropagationPolicy().inject("payments", headers)
    assert headers == {
        "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
        "tracestate": TraceState([("vendor", "1")]).to_header(),
    }


def test_no_headers_outside_a_trace() -> None:
    """Without a current span nothing is added."""
    headers: dict[str, str] = {}
    PropagationPolicy().inject("payments", headers)
    assert headers == {}


class Other(TraceContextTextMapPropagator):
    """A propagator of another header."""

    def inject(self, carrier: Any, context: Context | None = None, setter: Setter[Any] = None) -> None:  # type: ignore[assignment]
        """Write the header."""
        carrier["x-other-id"] = "7"

    def extract(self, carrier: Any, context: Context | None = None, getter: Getter[Any] = None) -> Context:  # type: ignore[assignment]
        """Read nothing."""
        raise NotImplementedError

    @property
    def fields(self) -> set[str]:
        """The header."""
        return {"x-other-id"}


def test_propagators_of_the_user(within: Callable[..., None]) -> None:
    """The global propagator, whenever it is set, writes to allowed hosts, and its headers are removed for others."""
    within(TraceContext("a" * 32, "b" * 16, sampled=True).to_context())
    propagation = PropagationPolicy()
    before = propagate.get_global_textmap()
    for propagator, expected in ((before, {"traceparent"}), (CompositePropagator([Other()]), {"x-other-id"})):
        try:
            propagate.set_global_textmap(propagator)
            headers: dict[str, str] = {}
            propagation.inject("payments", headers)
            assert set(headers) == expected
            headers["x-request-id"] = "7"
            propagation.inject("example.com", headers)
            assert set(headers) == {"x-request-id"}
        finally:
            propagate.set_global_textmap(before)
