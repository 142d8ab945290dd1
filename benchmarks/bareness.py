"""Check that the bare app is bare while ours is installed in the same process."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from benchmarks.apps import REQUESTS, bare, ours, refuse_telemetry
from benchmarks.process import answers
from benchmarks.worker import caller

CALLS = 20


class SpanCounter(SpanProcessor):
    """Counts the spans that start."""

    started = 0

    def on_start(self, span: Any, parent_context: Any = None) -> None:  # noqa: ARG002 - OpenTelemetry's signature
        """Count a span."""
        self.started += 1


async def spans_of(app: Any, counter: SpanCounter) -> int:
    """Send some requests and return the number of spans they started."""
    before = counter.started
    call = caller(app, REQUESTS["trivial"])
    for _ in range(CALLS):
        await call()
    return counter.started - before


async def main() -> None:
    """Count the spans of both apps with a global provider that samples every trace."""
    observed, plain = ours("trivial", 1.0), bare("trivial", 1.0)
    refuse_telemetry(plain)
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        raise TypeError("ours has not set a global provider, so this check proves nothing")
    counter = SpanCounter()
    provider.add_span_processor(counter)
    found: dict[str, float] = {"ours": await spans_of(observed, counter), "bare": await spans_of(plain, counter)}
    shown = observed.state.observe.metrics.render("", "")[1].decode()
    found["samples"] = sum(
        float(line.split()[-1]) for line in shown.splitlines() if line.startswith("http_requests_total")
    )
    if found != {"ours": CALLS, "bare": 0, "samples": CALLS}:
        raise RuntimeError(f"the bare app is not bare: {found}, {CALLS} requests to each")
    answers().write(json.dumps(found) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
