"""Who decides that a trace is kept, and how many may be in one second."""

from __future__ import annotations

from math import ceil
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.sdk.trace import sampling
from prometheus_client.metrics_core import CounterMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from fastapi_observe.settings.model import ObserveSettings

TRACE_ID_LIMIT: Final = sampling.TraceIdRatioBased.TRACE_ID_LIMIT
"""The bits of a trace id that decide whether a ratio keeps it."""


class TraceRateLimit:
    """Most traces that begin in this process and are kept in one second; below one a second, one in several.

    Whoever decides that a trace is kept asks `take`. Seconds are counted by the clock that never jumps. `refused`
    counts the traces that found no place. Two threads that ask at the same moment may both get the last place.
    """

    __slots__ = ("_left", "_most", "_second", "_seconds", "rate_limited")

    def __init__(self, per_second: float | None) -> None:
        self._seconds = 1 if per_second is None or per_second >= 1 else ceil(1 / per_second)
        self._most = None if per_second is None else max(1, int(per_second))
        self._second = -1
        self._left = 0
        self.rate_limited = 0

    def allow(self) -> bool:
        """Tell whether one more trace may be kept."""
        if self._most is None:
            return True
        second = int(monotonic()) // self._seconds
        if second != self._second:
            self._second = second
            self._left = self._most
        if self._left > 0:
            self._left -= 1
            return True
        self.rate_limited += 1
        return False

    # As a collector of prometheus_client

    def describe(self) -> list[Metric]:
        """Name what `collect` yields."""
        return [*self.collect()]

    def collect(self) -> Iterator[Metric]:
        """Show how many traces found no place."""
        yield CounterMetricFamily(
            "fastapi_observe_traces_rate_limited",
            "Sampled traces that were not kept, because of max_traces_per_second.",
            value=self.rate_limited,
        )


class RateLimitedSampler(sampling.Sampler):
    """Decides as another sampler does, within the quota: for what begins a trace in this process."""

    def __init__(self, inner: sampling.Sampler, quota: TraceRateLimit) -> None:
        self._inner = inner
        self._quota = quota

    def should_sample(self, parent_context: Any, *arguments: Any, **named: Any) -> sampling.SamplingResult:
        """Ask the inner sampler; what it would keep must find a place, unless its trace has one."""
        result = self._inner.should_sample(parent_context, *arguments, **named)
        parent = trace.get_current_span(parent_context).get_span_context()
        begins = not parent.is_valid or parent.is_remote
        if result.decision is sampling.Decision.RECORD_AND_SAMPLE and begins and not self._quota.allow():
            return sampling.SamplingResult(sampling.Decision.DROP, trace_state=result.trace_state)
        return result

    def get_description(self) -> str:
        """Name it."""
        return self._inner.get_description()


def trace_id_bound(settings: ObserveSettings) -> int:
    """Return below which value of its lowest 64 bits a new trace id is sampled."""
    if settings.sampler.endswith("always_on"):
        return TRACE_ID_LIMIT + 1
    if settings.sampler.endswith("always_off"):
        return 0
    return sampling.TraceIdRatioBased(settings.sample_ratio).bound


def sampling_threshold(bound: int) -> str:
    """Return the text below which, as texts are compared, the last 16 digits of a sampled trace id are."""
    return f"{bound:016x}" if bound <= TRACE_ID_LIMIT else "g"


def make_sampler(settings: ObserveSettings) -> sampling.Sampler:
    """Return the sampler that `settings.sampler` names."""
    root: sampling.Sampler
    if settings.sampler.endswith("always_on"):
        root = sampling.ALWAYS_ON
    elif settings.sampler.endswith("always_off"):
        root = sampling.ALWAYS_OFF
    else:
        root = sampling.TraceIdRatioBased(settings.sample_ratio)
    return sampling.ParentBased(root) if settings.sampler.startswith("parentbased") else root
