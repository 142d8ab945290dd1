"""What the start shows: one checkout in all three signals, and where to look further."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx

from example_app.services import say

if TYPE_CHECKING:
    from pathlib import Path

    from example_app.services import Service
    from example_app.traffic import Told

SHOWN_METRICS = (
    'http_requests_total{method="POST",endpoint="/orders/{order_id}/checkout"',
    "orders_created_total",
    "revenue_generated_total",
    "cart_size_sum",
    'db_queries_total{operation="UPDATE"',
    "external_requests_total",
    "background_tasks_total",
)


async def show_checkout(told: Told, shop: Service, payments: Service, directory: Path) -> None:
    """Print one checkout as trace, log lines and metrics."""
    say(f"One checkout (order {told.order_id}) in three signals")
    say(f"\nTrace {told.trace_id}: two processes")
    for line in tree(spans_of(told.trace_id, directory)):
        say(f"  {line}")
    say("\nLog: every line of that trace")
    for service in (shop, payments):
        for line in service.lines:
            if told.trace_id in line:
                say(f"  {service.name:<8} {line}")
    say("\nMetrics: a few lines of /metrics")
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"{shop.url}/metrics")).text
    for line in text.splitlines():
        if line.startswith(SHOWN_METRICS):
            say(f"  {line}")
    say(f"\nThe WebSocket /ws/orders pushed {json.dumps(told.event)}")


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
  curl -s {shop.url}/reports/customers              # N+1 queries: count the spans and lines
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
