"""Output of the start: one checkout in all three signals, problems found, and what to try next."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx

from example_app.services import say

if TYPE_CHECKING:
    from pathlib import Path

    from example_app.services import Service
    from example_app.traffic import Traffic

CHECKOUT_METRICS = (
    'http_requests_total{method="POST",endpoint="/orders/{order_id}/checkout"',
    "operations_total",
    "orders_created_total",
    "revenue_generated_total",
    "cart_size_sum",
    'db_queries_total{operation="UPDATE"',
    "db_connection_events_total",
    "db_connections_",
    "external_requests_total",
    "background_tasks_total",
)


async def show_checkout(traffic: Traffic, shop: Service, payments: Service, directory: Path) -> None:
    """Print one checkout as trace, log lines and metrics."""
    say(f"One checkout (order {traffic.order_id}) in three signals")
    say(f"\nTrace {traffic.trace_id}: two processes")
    for line in render_tree(read_spans(traffic.trace_id, directory)):
        say(f"  {line}")
    say("\nLog: every line of that trace; the request lines have the time breakdown: db_ms, external_ms, self_ms")
    for service in (shop, payments):
        show_lines(service, traffic.trace_id)
    say("\nMetrics: a few lines of /metrics")
    await show_metrics(shop, CHECKOUT_METRICS)
    say(f"\nThe WebSocket /ws/orders pushed {json.dumps(traffic.event)}")


async def show_findings(traffic: Traffic, shop: Service, directory: Path) -> None:
    """Print the problems that were found without configuration: an N+1 query, a slow query, failed calls."""
    say("\nFound without configuration: GET /reports/customers-slow sends one query for each customer")
    for span in read_spans(traffic.repeating_trace_id, directory):
        if span["kind"] == "SERVER":
            for name, value in span["attributes"].items():
                if name.startswith("fastapi_observe."):
                    say(f"  span     {name} = {json.dumps(value)}")
    await show_metrics(shop, ("db_repeated_queries_total",))
    show_lines(shop, "database query repeated in one request")
    say("\nFound without configuration: queries slower than slow_query_threshold, calls that another service rejected")
    show_lines(shop, "slow database query")
    show_lines(shop, "external call failed")


def show_lines(service: Service, text: str) -> None:
    """Print the log lines that contain `text`."""
    for line in service.lines:
        if text in line:
            say(f"  {service.name:<8} {line}")


async def show_metrics(service: Service, prefixes: tuple[str, ...]) -> None:
    """Print the lines of /metrics with one of these prefixes."""
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"{service.url}/metrics")).text
    for line in text.splitlines():
        if line.startswith(prefixes):
            say(f"  {line}")


def show_where_to_look(traffic: Traffic, shop: Service, payments: Service, directory: Path) -> None:
    """Print what to look at and to try while the services run."""
    say(
        f"""
Where to look
  {shop.url}/docs           the API of the shop
  {shop.url}/observe/       its development console: each request with its trace and log lines
  {shop.url}/metrics        its metrics (payments: {payments.url}/metrics)
  {directory}   shop.log, payments.log, *.spans
Try
  curl -i {shop.url}/products                       # see x-request-id and traceresponse
  curl -s {shop.url}/orders/export                  # a stream
  curl -s {shop.url}/reports/customers-slow         # N+1 queries, reported in a log line
  curl -s {shop.url}/reports/customers              # the same in one query
  curl -s {shop.url}/reports/broken                 # an unhandled exception, with its trace in the log
  curl -s {shop.url}/metrics | grep db_queries_total
  grep {traffic.trace_id} {directory}/*.log"""
    )


def read_spans(trace_id: str, directory: Path) -> list[dict[str, Any]]:
    """Return the spans of a trace from the files of all services, oldest first."""
    spans = [
        {**json.loads(line), "service": path.stem}
        for path in sorted(directory.glob("*.spans"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if trace_id in line
    ]
    return sorted(spans, key=lambda span: span["start"])


def render_tree(spans: list[dict[str, Any]], parent_id: str | None = None, depth: int = 0) -> list[str]:
    """Return lines that show spans below their parents, each with its service and duration."""
    lines = []
    for span in spans:
        if span["parent_id"] == parent_id:
            name = "  " * depth + span["name"]
            milliseconds = (span["end"] - span["start"]) / 1e6
            lines.append(f"{span['service']:<8} {span['kind']:<8} {name:<44} {milliseconds:8.1f} ms")
            lines += render_tree(spans, span["span_id"], depth + 1)
    return lines
