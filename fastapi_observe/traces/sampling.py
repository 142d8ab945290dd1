"""Sampling of traces: the sampler that the settings name, and the limit of sampled traces per second."""

from __future__ import annotations

import logging
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.sdk.trace import sampling
from prometheus_client.metrics_core import CounterMetricFamily

from fastapi_observe.internal.clock import monotonic
from fastapi_observe.internal.opentelemetry import current_context
from fastapi_observe.internal.throttle import LogThrottle
from fastapi_observe.records.request import excluded_signals
from fastapi_observe.records.signal import SIGNAL_BITS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from fastapi_observe.settings.model import ObserveSettings

TRACE_ID_LIMIT: Final = sampling.TraceIdRatioBased.TRACE_ID_LIMIT
"""The maximum of the part of a trace id that a sample ratio is compared with: its lowest 64 bits."""


SAMPLE_ALL: Final = "g"
"""The threshold of a sampler that samples everything: it comes after every hexadecimal digit."""


class TraceRateLimit:
    """The maximum number of traces per second that are sampled because a caller says so.

    Less than one per second means one in several seconds. None means no limit. `rate_limited` counts the traces that
    exceeded the limit; a warning is logged at most once a minute. It also is a collector of prometheus_client.
    """

    __slots__ = ("_left", "_per_interval", "_seconds", "_start", "_throttle", "rate_limited")

    def __init__(self, per_second: float | None) -> None:
        self._seconds = 1 if per_second is None or per_second >= 1 else ceil(1 / per_second)
        self._per_interval = None if per_second is None else max(1, int(per_second))
        self._start = -1
        self._left = 0
        self.rate_limited = 0
        self._throttle = LogThrottle()

    def allow(self) -> bool:
        """Return whether another trace may be sampled, and count it."""
        if self._per_interval is None:
            return True
        # No lock: two threads may both get the last place of an interval, which costs less than a lock per trace.
        start = int(monotonic()) // self._seconds
        if start != self._start:
            self._start = start
            self._left = self._per_interval
        if self._left > 0:
            self._left -= 1
            return True
        self.rate_limited += 1
        if self._throttle.allow("rate limit"):
            logging.getLogger("fastapi_observe").warning(
                "Callers asked for more than %d sampled traces in %d s; the others are not sampled. Raise "
                "max_traces_per_second, or trust fewer callers (trust_incoming). Counted in "
                "fastapi_observe_traces_rate_limited_total; logged at most once a minute.",
                self._per_interval,
                self._seconds,
            )
        return False

    def describe(self) -> list[Metric]:
        """Return the metrics of `collect`, for prometheus_client's check of names."""
        return [*self.collect()]

    def collect(self) -> Iterator[Metric]:
        """Return the number of traces that exceeded the limit, as a metric."""
        yield CounterMetricFamily(
            "fastapi_observe_traces_rate_limited",
            "Traces that a caller wanted sampled and that exceeded max_traces_per_second.",
            value=self.rate_limited,
        )


class RateLimitedSampler(sampling.Sampler):
    """Applies a rate limit to the traces of callers that another sampler samples.

    `samples_all` says that the inner sampler samples every trace, so that callers force nothing.
    """

    def __init__(self, inner: sampling.Sampler, rate_limit: TraceRateLimit, *, samples_all: bool = False) -> None:
        self._inner = inner
        self._rate_limit = rate_limit
        self._samples_all = samples_all

    def should_sample(self, parent_context: Any, *arguments: Any, **named: Any) -> sampling.SamplingResult:
        """Return the inner sampler's decision; DROP in an excluded request, and for callers beyond the limit."""
        if excluded_signals(current_context() if parent_context is None else parent_context) & SIGNAL_BITS["traces"]:
            return sampling.SamplingResult(sampling.Decision.DROP)
        result = self._inner.should_sample(parent_context, *arguments, **named)
        if self._samples_all or result.decision is not sampling.Decision.RECORD_AND_SAMPLE:
            return result
        if trace.get_current_span(parent_context).get_span_context().is_remote and not self._rate_limit.allow():
            return sampling.SamplingResult(sampling.Decision.DROP, trace_state=result.trace_state)
        return result

    def get_description(self) -> str:
        """Return the description of the inner sampler."""
        return self._inner.get_description()


def trace_id_bound(settings: ObserveSettings) -> int:
    """Return the number below which the lowest 64 bits of a sampled trace id are."""
    if settings.sampler.endswith("always_on"):
        return TRACE_ID_LIMIT + 1
    if settings.sampler.endswith("always_off"):
        return 0
    return sampling.TraceIdRatioBased(settings.sample_ratio).bound


def sampling_threshold(bound: int) -> str:
    """Return `trace_id_bound` as a string to compare with the last 16 digits of a trace id.

    Comparing strings saves converting each trace id to a number.
    """
    return f"{bound:016x}" if bound <= TRACE_ID_LIMIT else SAMPLE_ALL


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
