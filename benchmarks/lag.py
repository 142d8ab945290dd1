"""Event loop lag while spans are created: `python -m benchmarks.lag <side> <endpoint> <rate> <seconds>`.

Sides: `bare` exports no spans, `ours` and `stock` (the SDK's `BatchSpanProcessor`) export them.
"""

from __future__ import annotations

import asyncio
import json
import sys
from time import perf_counter
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import SpanKind

from benchmarks.paired import percentile
from benchmarks.process import answers

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

TICK = 0.001
"""Seconds of one sleep."""

MAX_BURST = 20
"""Spans created between two sleeps."""

ATTRIBUTES: dict[str, Any] = {
    "http.request.method": "GET",
    "url.scheme": "http",
    "url.query": "page=REDACTED",
    "http.route": "/orders/{order_id}",
    "http.response.status_code": 200,
    "server.address": "127.0.0.1",
    "server.port": 8000,
    "client.address": "127.0.0.1",
    "user_agent.original": "Mozilla/5.0 (X11; Linux x86_64)",
    "network.protocol.version": "1.1",
    "http.response.body.size": 123,
}


def provider(side: str, endpoint: str) -> TracerProvider:
    """Return the provider of a side. Every trace is sampled; up to 512 spans are sent once per second, gzipped."""
    from opentelemetry.exporter.otlp.proto.http import Compression  # noqa: PLC0415 - not on the bare side
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - not on the bare side
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - not on the bare side

    from fastapi_observe import ObserveSettings  # noqa: PLC0415 - not on the bare side
    from fastapi_observe.internal.errors import InternalErrors  # noqa: PLC0415 - not on the bare side
    from fastapi_observe.traces.provider import make_provider  # noqa: PLC0415 - not on the bare side

    exports: dict[str, Any] = {"otlp_endpoint": endpoint} if side == "ours" else {}
    made: Any = make_provider(ObserveSettings(sampler="always_on", batch_delay=1, **exports), InternalErrors())[0]
    if side == "stock":
        exporter = OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces", compression=Compression.Gzip)
        options: dict[str, Any] = {"max_queue_size": 4096, "schedule_delay_millis": 1000, "max_export_batch_size": 512}
        made.add_span_processor(BatchSpanProcessor(exporter, **options))
    return made  # type: ignore[no-any-return]


async def make(tracer: Tracer, rate: float, seconds: float) -> int:
    """Create spans at a rate and return their number."""
    made, start = 0, perf_counter()
    while (now := perf_counter() - start) < seconds:
        for _ in range(min(MAX_BURST, int(now * rate) - made)):
            attributes = {"url.path": f"/orders/{made}", **ATTRIBUTES}
            tracer.start_span("GET /orders/{order_id}", kind=SpanKind.SERVER, attributes=attributes).end()
            made += 1
        await asyncio.sleep(TICK)
    return made


async def watch(lags: list[float]) -> None:
    """Record the delay of each sleep until cancelled."""
    while True:
        began = perf_counter()
        await asyncio.sleep(TICK)
        lags.append(perf_counter() - began - TICK)


async def measure(side: str, endpoint: str, rate: float, seconds: float) -> dict[str, float]:
    """Return the number of spans and the lags in seconds. The first second is a warm-up."""
    tracer = provider(side, endpoint).get_tracer("benchmark")
    await make(tracer, rate, 1.0)
    lags: list[float] = []
    watching = asyncio.create_task(watch(lags))
    spans = await make(tracer, rate, seconds)
    watching.cancel()
    return {"spans": spans, **{f"p{part}": percentile(lags, part / 100) for part in (50, 99, 99.9)}}


def main() -> None:
    """Measure and report."""
    side, endpoint, rate, seconds = sys.argv[1:]
    answers().write(json.dumps(asyncio.run(measure(side, endpoint, float(rate), float(seconds)))) + "\n")


if __name__ == "__main__":
    main()
