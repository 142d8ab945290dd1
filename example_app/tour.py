"""What the start shows: one checkout in all three signals, what was found unasked, and where to look further."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx

from example_app.services import say

if TYPE_CHECKING:
    from pathlib import Path

    from example_app.services import Service
    from example_app.traffic import Told

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


async def show_checkout(told: Told, shop: Service, payments: Service, directory: Path) -> None:
    """Print one checkout as trace, log lines and metrics."""
    say(f"One checkout (order {told.order_id}) in three signals")
    say(f"\nTrace {told.trace_id}: two processes")
    for line in tree(spans_of(told.trace_id, directory)):
        say(f"  {line}")
    say("\nLog: every line of that trace; its own lines say where the time went: db_ms, external_ms, self_ms")
    for service in (shop, payments):
        show_lines(service, told.trace_id)
    say("\nMetrics: a few lines of /metrics")
    await show_metrics(shop, CHECKOUT_METRICS)
    say(f"\nThe WebSocket /ws/orders pushed {json.dumps(told.event)}")


async def show_findings(told: Told, shop: Service, directory: Path) -> None:
    """Print what nobody asked for: an N+1 query, a slow query, calls that were refused."""
    say("\nFound unasked: GET /reports/customers-slow sends one query for each customer")
    for span in spans_of(told.repeating_trace_id, directory):
        if span["kind"] == "SERVER":
            for name, value in span["attributes"].items():
                if name.startswith("fastapi_observe."):
                    say(f"  span     {name} = {json.dumps(value)}")
    await show_metrics(shop, ("db_repeated_queries_total",))
    show_lines(shop, "database query repeated in one request")
    say("\nFound unasked: queries that took longer than slow_query_threshold, calls that another service refused")
    show_lines(shop, "slow database query")
    show_lines(shop, "external call failed")


def show_lines(service: Service, text: str) -> None:
    """Print the log lines in which `text` stands."""
    for line in service.lines:
        if text in line:
            say(f"  {service.name:<8} {line}")


async def show_metrics(service: Service, wanted: tuple[str, ...]) -> None:
    """Print the lines of /metrics that begin so."""
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"{service.url}/metrics")).text
    for line in text.splitlines():
        if line.startswith(wanted):
            say(f"  {line}")


def show_where_to_look(told: Told, shop: Service, payments: Service, directory: Path) -> None:
    """Print what can be called and seen while the services run."""
    say(
        f"""
Where to look
  {shop.url}/docs           what the shop can do
  {shop.url}/metrics        what it measured (payments: {payments.url}/metrics)
  {directory}   shop.log, payments.log, *.spans
Try
  curl -i {shop.url}/products                       # see x-request-id and traceresponse
  curl -s {shop.url}/orders/export                  # a stream
  curl -s {shop.url}/reports/customers-slow         # N+1 queries: a line warns of them
  curl -s {shop.url}/reports/customers              # the same in one query
  curl -s {shop.url}/reports/broken                 # an unhandled exception, with its trace in the log
  curl -s {shop.url}/metrics | grep db_queries_total
  grep {told.trace_id} {directory}/*.log"""
    )


def spans_of(trace_id: str, directory: Path) -> list[dict[str, Any]]:
    """Read one trace's spans from the files of all services, oldest first."""
    spans = [
        {**json.loads(line), "service": path.stem}
        for path in sorted(directory.glob("*.spans"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if trace_id in line
    ]
    return sorted(spans, key=lambda span: span["start"])


def tree(spans: list[dict[str, Any]], parent_id: str | None = None, depth: int = 0) -> list[str]:
    """Draw spans below their parents, each with its service and its duration."""
    lines = []
    for span in spans:
        if span["parent_id"] == parent_id:
            name = "  " * depth + span["name"]
            milliseconds = (span["end"] - span["start"]) / 1e6
            lines.append(f"{span['service']:<8} {span['kind']:<8} {name:<44} {milliseconds:8.1f} ms")
            lines += tree(spans, span["span_id"], depth + 1)
    return lines
