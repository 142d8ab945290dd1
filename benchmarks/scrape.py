"""A process that scrapes ours and a stock registry alternately: `python -m benchmarks.scrape <routes>`.

The stock side is `prometheus_client.generate_latest` without a web server; ours is a complete `GET /metrics` through
the middleware. Both read the collectors of the process.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import Any

import prometheus_client as stock

from benchmarks.apps import MAKERS, request
from benchmarks.process import answers
from benchmarks.worker import caller

LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def stock_registry(shown: str) -> Any:
    """Return a registry of stock metrics with the same series as `shown`, including those of the process.

    Families, types, label sets and buckets are the same; values differ.
    """
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415 - here only

    registry = stock.CollectorRegistry()
    own = {family.name for family in stock.REGISTRY.collect()}
    for family in text_string_to_metric_families(shown):
        if family.name not in own:
            _fill(family, registry)
    for collector in (stock.PROCESS_COLLECTOR, stock.PLATFORM_COLLECTOR, stock.GC_COLLECTOR):
        registry.register(collector)
    return registry


def _fill(family: Any, registry: Any) -> None:
    kinds: dict[str, Any] = {"counter": stock.Counter, "gauge": stock.Gauge, "histogram": stock.Histogram}
    options: dict[str, Any] = {}
    if family.type == "histogram":
        bounds = {sample.labels["le"] for sample in family.samples if "le" in sample.labels}
        options["buckets"] = sorted(map(float, bounds))
    labels = [{name: text for name, text in sample.labels.items() if name != "le"} for sample in family.samples]
    names = tuple(labels[0]) if labels else ()
    metric = kinds[family.type](family.name, family.documentation, names, registry=registry, **options)
    for one in {tuple(found.items()): found for found in labels}.values() if names else ():
        child = metric.labels(**one)
        child.set(1) if family.type == "gauge" else child.observe(0.01) if family.type == "histogram" else child.inc()


def series(text: str) -> set[str]:
    """Return the names and labels of all samples."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = [(line.split("{", 1)[0].split(" ", 1)[0], sorted(LABEL.findall(line))) for line in lines]
    return {f"{name} {labels}" for name, labels in found}


async def main() -> None:
    """Send one request to each route, then scrape both alternately and report their CPU seconds."""
    routes, rounds = int(sys.argv[1]), int(sys.argv[2])
    stock.disable_created_metrics()  # type: ignore[no-untyped-call]
    app = MAKERS["ours"](f"routes-{routes}", 0.1)
    for number in range(routes):
        await caller(app, request("GET", f"/r/{number}"))()
    app.state.observe.flush(10.0)
    body: list[bytes] = []

    async def take(message: Any) -> None:
        body.append(message.get("body", b""))

    async def nothing() -> Any:
        await asyncio.Event().wait()

    async def ours() -> bytes:
        body.clear()
        scope = {"type": "http", "method": "GET", "path": "/metrics", "headers": [], "asgi": {"version": "3.0"}}
        await app(scope, nothing, take)
        return b"".join(body)

    await ours()
    shown = (await ours()).decode()
    registry = stock_registry(shown)
    same = stock.generate_latest(registry).decode()
    differing = series(shown) ^ series(same)
    spent: dict[str, list[float]] = {"ours": [], "stock": []}
    for _ in range(rounds):
        before = time.process_time()
        await ours()
        between = time.process_time()
        stock.generate_latest(registry)
        spent["ours"].append(between - before)
        spent["stock"].append(time.process_time() - between)
    found = {**spent, "series": len(series(shown)), "differing": sorted(differing)[:20], "bytes": len(shown)}
    answers().write(json.dumps({**found, "n_differing": len(differing)}) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
