"""An app for servers with several workers, with metrics that are made before and after `install`."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import prometheus_client
from fastapi import FastAPI

from fastapi_observe import install


def make() -> FastAPI:
    """Make the app."""
    before = prometheus_client.Counter("user_before_total", "Made before install.", ["kind"])
    kept = before.labels("early")
    spread = prometheus_client.Histogram("user_seconds", "Made before install.")
    app = FastAPI()
    observe = install(
        app,
        multiprocess_directory=os.environ["WORKERS_DIRECTORY"],
        log_level="fatal",
        sample_ratio=1.0,
        otlp_endpoint=os.environ.get("WORKERS_COLLECTOR"),
    )
    after = prometheus_client.Counter("user_after_total", "Made after install.")
    gauge = prometheus_client.Gauge("user_gauge", "The pid.", multiprocess_mode="livesum")
    each = prometheus_client.Gauge("user_each", "One.")
    size = prometheus_client.Summary("user_parcel", "Size.", ["kind"], unit="bytes")

    @app.get("/count/{number}")
    async def count(number: int) -> dict[str, Any]:
        kept.inc()
        after.inc()
        spread.observe(0.2)
        gauge.set(1)
        each.set(1)
        size.labels("big").observe(7)
        observe.metrics.counter("late_total", "Made in a request.", ["parity"]).labels(number % 2).inc()
        observe.metrics.gauge("level", "Set by each worker.").set(1)
        return {"pid": os.getpid()}

    @app.get("/slow")
    async def slow() -> dict[str, Any]:
        await asyncio.sleep(30)
        return {}

    return app


if "WORKERS_DIRECTORY" in os.environ:
    app = make()
