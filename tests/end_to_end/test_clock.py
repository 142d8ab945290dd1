"""Holds that jumps of the wall clock by an hour neither hang anything nor change a duration."""

from __future__ import annotations

import asyncio
import sys
import time
from itertools import cycle
from typing import TYPE_CHECKING, Any

import pytest
from collectors import Collector
from inside_app import Parts, live, make_app

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen

HOUR = 3600
WITHIN = 30
"""Seconds that no step takes."""


class Clock:
    """A wall clock that jumps at each reading, while the monotonic clock is unchanged."""

    def __init__(self, *jumps: float) -> None:
        self._real, self._real_ns = time.time, time.time_ns
        self._jumps = cycle(jumps)

    def time(self) -> float:
        """Return seconds since 1970, with jumps."""
        return self._real() + next(self._jumps)

    def time_ns(self) -> int:
        """Return nanoseconds since 1970, with jumps."""
        return self._real_ns() + int(next(self._jumps) * 1e9)


@pytest.fixture(params=[(HOUR, -HOUR), (-HOUR, HOUR, 0, 0, HOUR)], ids=["there and back", "now and then"])
def clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the clock in every module, under any name."""
    made = Clock(*request.param)
    readings: dict[Any, Any] = {time.time: made.time, time.time_ns: made.time_ns}
    for module in [found for found in sys.modules.values() if found is not None]:
        if module.__name__.startswith(("fastapi_observe", "opentelemetry", "time")):
            for name, value in list(vars(module).items()):
                if type(value) is type(time.time) and value in readings:
                    monkeypatch.setattr(module, name, readings[value])
    return made


@pytest.mark.parametrize("mode", ["ok", "503", "hang"])
@pytest.mark.usefixtures("clock")
def test_a_clock_that_jumps_disturbs_nothing(observed: Callable[..., Seen], mode: Any) -> None:
    """Requests, exports, retries and the shutdown take as long as without jumps."""
    collector = Collector(mode)
    parts = Parts()
    app = make_app(parts)
    seen = observed(app, otlp_endpoint=collector.url, shutdown_timeout=0.3, batch_delay=0.05)
    parts.observe(seen.observe)
    began = time.monotonic()
    try:
        asyncio.run(live(app))
        assert seen.observe.internal_errors.counts == {}
        assert_durations(seen)
        seen.observe.close()
    finally:
        collector.close()
        asyncio.run(parts.close())
    assert time.monotonic() - began < WITHIN
    if mode == "ok":
        assert len(collector.spans) == len(seen.spans) > 0


def assert_durations(seen: Seen) -> None:
    """Check that no span, sample or line has a negative duration or one longer than the test."""
    for span in seen.spans:
        assert span.start_time is not None
        assert span.end_time is not None
        assert 0 <= span.end_time - span.start_time < WITHIN * 1e9, span.name
    for line in seen.lines:
        assert 0 <= line["fields"].get("duration_ms", 0) < WITHIN * 1000
    for name in ("http_request_duration_seconds", "db_query_duration_seconds", "external_request_duration_seconds"):
        assert 0 < seen.total(f"{name}_sum") < WITHIN
