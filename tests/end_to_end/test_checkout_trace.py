"""A checkout in the example shop: one tree of spans through both processes, and three signals that agree about it.

Both services run as they do for a user, export over OTLP to a receiver in here, and are asked on SQLite and PostgreSQL.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from pools import running_postgresql
from prometheus_client.parser import text_string_to_metric_families

from example_app.services import Service, run_service
from example_app.traffic import COFFEE, MACHINE, order, sign_up, trace_id_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATIENCE = 30
CHECKOUT = "/orders/{order_id}/checkout"

PAID = """\
shop SERVER POST /orders/{order_id}/checkout
  shop CLIENT SELECT customers
  shop CLIENT SELECT orders
  shop INTERNAL charge card
    shop CLIENT POST /charges payments
      payments SERVER POST /charges
        payments INTERNAL ask the card network
        payments CLIENT INSERT charges
  shop CLIENT UPDATE orders
  shop INTERNAL background send_confirmation
    shop CLIENT send_confirmation mail
"""
DECLINED = "".join(line for line in PAID.splitlines(keepends=True) if "send_confirmation" not in line)
UNREACHABLE = """\
shop SERVER POST /orders/{order_id}/checkout
  shop CLIENT SELECT customers
  shop CLIENT SELECT orders
  shop INTERNAL charge card
    shop CLIENT POST /charges payments
"""

CAUSES = {"httpx.ConnectError": "connect_error"}
"""Outcome of a call without a response, by the `error.type` of its span."""

Series = tuple[str, frozenset[tuple[str, str]]]
Samples = dict[Series, float]


class Received(NamedTuple):
    """A span as received."""

    service: str
    raw: Span
    attributes: dict[str, Any]

    @property
    def span_id(self) -> str:
        """Its id, as in log lines."""
        return self.raw.span_id.hex()

    @property
    def kind(self) -> str:
        """`SERVER`, `CLIENT` or `INTERNAL`."""
        return str(Span.SpanKind.Name(self.raw.kind)).removeprefix("SPAN_KIND_")

    @property
    def failed(self) -> bool:
        """Whether its status is ERROR."""
        return self.raw.status.code == Status.STATUS_CODE_ERROR


@dataclass
class Checkout:
    """The signals of one checkout. `lines` and `grown` (increases of samples) are by service."""

    status_code: int
    trace_id: str
    grown: dict[str, Samples]
    spans: list[Received] = field(default_factory=list)
    lines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def of(self, service: str, kind: str | None = None, attribute: str | None = None) -> list[Received]:
        """Return the spans of a service, of one kind, with one attribute."""
        return [
            span
            for span in self.spans
            if span.service == service
            and (kind is None or span.kind == kind)
            and (attribute is None or attribute in span.attributes)
        ]

    def counted(self, service: str, name: str, *labels: str) -> Counter[tuple[str, ...]]:
        """Return the increase of a metric of a service, by the values of some labels."""
        found: Counter[tuple[str, ...]] = Counter()
        for (series, pairs), value in self.grown[service].items():
            if series == name:
                found[tuple(dict(pairs)[label] for label in labels)] += int(value)
        return found

    def log_lines(self, service: str, *messages: str) -> list[dict[str, Any]]:
        """Return the lines of a service that start with one of the messages."""
        return [line for line in self.lines[service] if line["message"].startswith(messages)]


class Visit(NamedTuple):
    """Three checkouts on one database."""

    system: str
    paid: Checkout
    declined: Checkout
    unreachable: Checkout


# The visit


@contextmanager
def receiving() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """Run an OTLP/HTTP receiver. Yields its address and the received exports."""
    exports: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            packed = self.headers["content-encoding"] == "gzip"
            exports.append(ExportTraceServiceRequest.FromString(gzip.decompress(body) if packed else body))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", exports
        finally:
            server.shutdown()
            thread.join()


async def scrape(service: Service) -> Samples:
    """Return every sample of a service; none if it has ended."""
    if service.process.returncode is not None:
        return {}
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
        text = (await client.get(f"{service.url}/metrics")).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scrape_when(service: Service, enough: Callable[[Samples], bool]) -> Samples:
    """Scrape until `enough` returns true for the samples."""
    deadline = monotonic() + PATIENCE
    while True:
        samples = await scrape(service)
        if enough(samples):
            return samples
        assert monotonic() < deadline, f"{service.name} does not count what was waited for"
        await asyncio.sleep(0.02)


def growth(before: Samples, after: Samples) -> Samples:
    """Return the increases of samples."""
    differences = {series: value - before.get(series, 0.0) for series, value in after.items()}
    return {series: value for series, value in differences.items() if value}


def requests(endpoint: str, *others: str) -> Callable[[Samples], float]:
    """Return a function that reads the requests to an endpoint, and further samples with its name."""
    wanted = {"http_requests_total", *others}
    return lambda samples: sum(
        value for (name, labels), value in samples.items() if name in wanted and ("endpoint", endpoint) in labels
    )


async def check_out(client: httpx.AsyncClient, shop: Service, payments: Service, product: int) -> Checkout:
    """Order one product, check out, and record the increases of samples."""
    order_id = await order(client, {product: 1})
    before = {service.name: await scrape(service) for service in (shop, payments)}
    answer = await client.post(f"/orders/{order_id}/checkout")
    at_shop = requests(CHECKOUT, "background_tasks_total")
    at_payments = requests("/charges")
    ended = at_shop(before["shop"]) + (2 if answer.is_success else 1)
    after = {
        "shop": await scrape_when(shop, lambda samples: at_shop(samples) >= ended),
        "payments": await scrape_when(
            payments, lambda samples: not samples or at_payments(samples) > at_payments(before["payments"])
        ),
    }
    grown = {name: growth(before[name], after[name]) for name in before}
    return Checkout(answer.status_code, trace_id_of(answer), grown)


async def visit(directory: Path, **environment: str) -> tuple[list[Checkout], list[str], list[str]]:
    """Check out three times: paid, declined, payments down. Both services have ended then, so all is exported."""
    async with (
        run_service("payments", 0, directory, **environment) as payments,
        run_service("shop", 0, directory, PAYMENTS_URL=payments.url, **environment) as shop,
    ):
        await payments.ready()
        await shop.ready()
        async with httpx.AsyncClient(base_url=shop.url, timeout=PATIENCE, trust_env=False) as client:
            await sign_up(client)
            checkouts = [await check_out(client, shop, payments, product) for product in (COFFEE, MACHINE)]
            await payments.stop()
            checkouts.append(await check_out(client, shop, payments, COFFEE))
    return checkouts, shop.lines, payments.lines


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """Run a real PostgreSQL for this file."""
    with running_postgresql() as url:
        yield url


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def visited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Visit:
    """Use the shop on each database."""
    environment = {"OBSERVE_LOG_LEVEL": "debug"}
    if request.param == "postgresql":
        environment["DATABASE_URL"] = request.getfixturevalue("postgresql")
    with receiving() as (address, exports), pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith(("OBSERVE_", "OTEL_", "DATABASE_URL", "COVERAGE_", "PROMETHEUS_")):
                patch.delenv(name)
        environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = address
        directory = tmp_path_factory.mktemp(request.param)
        checkouts, shop_lines, payments_lines = asyncio.run(visit(directory, **environment))
    spans = received(exports)
    for checkout in checkouts:
        checkout.spans = [span for span in spans if span.raw.trace_id.hex() == checkout.trace_id]
        for service, lines in (("shop", shop_lines), ("payments", payments_lines)):
            checkout.lines[service] = [json.loads(line) for line in lines if checkout.trace_id in line]
    return Visit(request.param, *checkouts)


def received(exports: list[ExportTraceServiceRequest]) -> list[Received]:
    """Return every received span, oldest first."""
    found = [
        Received(attributes_of(resource.resource)["service.name"], span, attributes_of(span))
        for export in exports
        for resource in export.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    return sorted(found, key=lambda one: one.raw.start_time_unix_nano)


def attributes_of(holder: Any) -> dict[str, Any]:
    """Return the attributes of a resource or a span as Python values."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in holder.attributes}


# What is held


def outline(spans: list[Received], parent: bytes = b"", depth: int = 0) -> str:
    """Render the tree: each span below its parent, with service, kind and name."""
    return "".join(
        f"{'  ' * depth}{span.service} {span.kind} {span.raw.name}\n" + outline(spans, span.raw.span_id, depth + 1)
        for span in spans
        if span.raw.parent_span_id == parent
    )


def assert_queries_agree(checkout: Checkout, service: str) -> None:
    """Check that spans, samples, lines and the time breakdown have the same queries."""
    spans = checkout.of(service, "CLIENT", "db.system.name")
    lines = checkout.log_lines(service, "database query", "slow database query")
    names = Counter((span.attributes["db.operation.name"], span.attributes["db.collection.name"]) for span in spans)
    assert names == checkout.counted(service, "db_queries_total", "operation", "table")
    assert names == checkout.counted(service, "db_query_duration_seconds_count", "operation", "table")
    assert names == Counter((line["fields"]["operation"], line["fields"]["table"]) for line in lines)
    assert {span.span_id for span in spans} == {line["span_id"] for line in lines}
    assert len(spans) == request_line(checkout, service)["fields"]["db_count"]
    assert len(spans) == server_span(checkout, service).attributes["fastapi_observe.db_count"]
    assert not any(span.failed for span in spans)
    assert {line["fields"]["outcome"] for line in lines} == {"ok"}
    assert checkout.counted(service, "db_query_errors_total") == Counter()


def assert_calls_agree(checkout: Checkout, *expected: tuple[str, str, str]) -> None:
    """Check that spans, samples and lines of the shop have the same calls: service, operation, outcome."""
    spans = checkout.of("shop", "CLIENT", "peer.service")
    lines = checkout.log_lines("shop", "external call")
    wanted = Counter(expected)
    assert wanted == checkout.counted("shop", "external_requests_total", "service", "operation", "outcome")
    outcomes = {span.span_id: outcome_of_call(span) for span in spans}
    assert outcomes == {line["span_id"]: line["fields"]["outcome"] for line in lines}
    assert wanted == Counter(
        (span.attributes["peer.service"], operation_of(span), outcomes[span.span_id]) for span in spans
    )
    # The mail is sent after the response: no part of the request.
    waited = [span for span in spans if span.attributes["peer.service"] != "mail"]
    assert len(waited) == request_line(checkout, "shop")["fields"]["external_count"]
    assert len(waited) == server_span(checkout, "shop").attributes["fastapi_observe.external_count"]


def operation_of(span: Received) -> str:
    """Return the name of a call without its service."""
    return span.raw.name.removesuffix(f" {span.attributes['peer.service']}")


def outcome_of_call(span: Received) -> str:
    """Return the outcome of a call, from its span alone."""
    status_code = span.attributes.get("http.response.status_code", 200)
    if span.failed:
        return "server_error" if status_code >= 500 else CAUSES[span.attributes["error.type"]]
    return "client_error" if status_code >= 400 else "ok"


def assert_operations_agree(checkout: Checkout, service: str, name: str, outcome: str) -> None:
    """Check that span, sample and line of a user operation agree."""
    (span,) = [span for span in checkout.of(service, "INTERNAL") if span.raw.name == name]
    (line,) = checkout.log_lines(service, "operation ")
    assert line["fields"]["operation"] == name
    assert line["span_id"] == span.span_id
    assert line["fields"]["outcome"] == outcome
    assert span.failed is (outcome == "error")
    assert checkout.counted(service, "operations_total", "operation", "outcome") == {(name, outcome): 1}


def assert_request_agrees(checkout: Checkout, service: str, endpoint: str, status_code: int, outcome: str) -> None:
    """Check that server span, sample and request line agree."""
    span, line = server_span(checkout, service), request_line(checkout, service)
    assert line["span_id"] == span.span_id
    assert line["fields"]["endpoint"] == span.attributes["http.route"] == endpoint
    assert line["fields"]["status_code"] == span.attributes["http.response.status_code"] == status_code
    assert line["fields"]["outcome"] == outcome
    assert span.failed is (outcome == "server_error")
    counted = checkout.counted(service, "http_requests_total", "method", "endpoint", "status_code")
    assert counted == {("POST", endpoint, str(status_code)): 1}
    durations = checkout.counted(service, "http_request_duration_seconds_count", "endpoint")
    assert durations == {(endpoint,): 1}


def server_span(checkout: Checkout, service: str) -> Received:
    """Return the one server span of a service."""
    (span,) = checkout.of(service, "SERVER")
    return span


def request_line(checkout: Checkout, service: str) -> dict[str, Any]:
    """Return the one request line of a service."""
    (line,) = checkout.log_lines(service, "HTTP request completed")
    return line


# The facts


def test_a_checkout_is_one_tree_through_both_processes(visited: Visit) -> None:
    """Shop, queries, payments call, payments, its queries: each below its parent, one server span for each service.

    BEGIN, COMMIT and ROLLBACK are counted and are no spans.
    """
    assert visited.paid.status_code == 200
    assert outline(visited.paid.spans) == PAID
    assert len(visited.paid.spans) == PAID.count("\n")
    for service in ("shop", "payments"):
        events = visited.paid.counted(service, "db_connection_events_total", "pool", "event")
        assert events[service, "begin"] >= 1
        assert events[service, "commit"] == 1


def test_query_spans_say_what_was_asked_of_which_database(visited: Visit) -> None:
    """The span has system, operation, collection and statement, without values."""
    for service in ("shop", "payments"):
        for span in visited.paid.of(service, "CLIENT", "db.system.name"):
            attributes = span.attributes
            assert attributes["db.system.name"] == visited.system
            operation, collection = attributes["db.operation.name"], attributes["db.collection.name"]
            assert span.raw.name == f"{operation} {collection}"
            assert attributes["db.query.text"].startswith(operation)
            assert ("?" if visited.system == "sqlite" else "$1") in attributes["db.query.text"]
            assert attributes["db.client.connection.pool.name"] == service


def test_the_call_to_payments_says_where_it_went(visited: Visit) -> None:
    """The client span names service, template and status; the server span of payments is its only child."""
    (call,) = [span for span in visited.paid.of("shop", "CLIENT") if span.raw.name == "POST /charges payments"]
    assert call.attributes["peer.service"] == "payments"
    assert call.attributes["url.template"] == "/charges"
    assert call.attributes["http.response.status_code"] == 200
    served = server_span(visited.paid, "payments")
    assert served.raw.parent_span_id == call.raw.span_id
    assert served.attributes["http.response.body.size"] == call.attributes["http.response.body.size"]


def test_three_signals_agree_about_a_paid_checkout(visited: Visit) -> None:
    """As many query spans as the line counts and the counter grew, in both services; so do calls and outcomes."""
    paid = visited.paid
    assert_request_agrees(paid, "shop", CHECKOUT, 200, "ok")
    assert_request_agrees(paid, "payments", "/charges", 200, "ok")
    assert_queries_agree(paid, "shop")
    assert_queries_agree(paid, "payments")
    assert_calls_agree(paid, ("payments", "POST /charges", "ok"), ("mail", "send_confirmation", "ok"))
    assert_operations_agree(paid, "shop", "charge card", "ok")
    assert_operations_agree(paid, "payments", "ask the card network", "ok")
    assert paid.counted("shop", "background_tasks_total", "endpoint", "outcome") == {(CHECKOUT, "ok"): 1}


def test_three_signals_agree_about_a_declined_checkout(visited: Visit) -> None:
    """A 402 of payments is `client_error` for the call and both requests; no span is an error."""
    declined = visited.declined
    assert declined.status_code == 402
    assert outline(declined.spans) == DECLINED
    assert_request_agrees(declined, "shop", CHECKOUT, 402, "client_error")
    assert_request_agrees(declined, "payments", "/charges", 402, "client_error")
    assert_queries_agree(declined, "shop")
    assert_queries_agree(declined, "payments")
    assert_calls_agree(declined, ("payments", "POST /charges", "client_error"))
    assert_operations_agree(declined, "shop", "charge card", "ok")
    assert [line["level"] for line in declined.log_lines("shop", "external call")] == ["warn"]
    assert not any(span.failed for span in declined.spans)


def test_three_signals_agree_when_payments_is_gone(visited: Visit) -> None:
    """Without response the call is `connect_error`, the operation around it `error`, the request 502, in all three."""
    gone = visited.unreachable
    assert gone.status_code == 502
    assert outline(gone.spans) == UNREACHABLE
    assert_request_agrees(gone, "shop", CHECKOUT, 502, "server_error")
    assert_queries_agree(gone, "shop")
    assert_calls_agree(gone, ("payments", "POST /charges", "connect_error"))
    assert_operations_agree(gone, "shop", "charge card", "error")
    assert {line["level"] for line in gone.log_lines("shop", "external call", "operation ")} == {"error"}


def test_details_of_work_go_to_its_span_and_into_no_label(visited: Visit) -> None:
    """The order id is on the span of `charge card`, and in no label of a sample that increased."""
    paid = visited.paid
    (work,) = [span for span in paid.of("shop", "INTERNAL") if span.raw.name == "charge card"]
    assert work.attributes["amount_cents"] == 1250
    (line,) = paid.log_lines("shop", "order paid")
    assert work.attributes["order_id"] == line["fields"]["order_id"]
    labels = {name for samples in paid.grown.values() for _, pairs in samples for name, _ in pairs}
    assert not labels & {"order_id", "amount_cents"}


def test_nothing_of_ours_failed(visited: Visit) -> None:
    """Neither process has internal errors or dropped spans."""
    for checkout in (visited.paid, visited.declined, visited.unreachable):
        for service in checkout.grown:
            assert checkout.counted(service, "fastapi_observe_internal_errors_total") == Counter()
            assert checkout.counted(service, "fastapi_observe_dropped_total") == Counter()


def test_every_line_carries_a_span_of_its_own_process(visited: Visit) -> None:
    """Lines of the shop, of payments and of the mail after the response have the id of the span around them."""
    for checkout in (visited.paid, visited.declined, visited.unreachable):
        for service, lines in checkout.lines.items():
            assert {line["span_id"] for line in lines} <= {span.span_id for span in checkout.of(service)}
    names = {span.span_id: span.raw.name for span in visited.paid.spans}
    written = {line["message"]: names[line["span_id"]] for lines in visited.paid.lines.values() for line in lines}
    assert written["order paid"] == f"POST {CHECKOUT}"
    assert written["card charged"] == "POST /charges"
    mailed = [name for message, name in written.items() if message.startswith("confirmation mail for order")]
    assert mailed == ["background send_confirmation"]
