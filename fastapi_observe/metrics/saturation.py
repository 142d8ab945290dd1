"""Saturation of this process: event-loop lag, tasks, worker threads, pauses of the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import weakref
from bisect import bisect_left
from contextlib import suppress
from itertools import accumulate
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from anyio.to_thread import current_default_thread_limiter
from prometheus_client.metrics_core import GaugeMetricFamily, HistogramMetricFamily

from fastapi_observe.metrics.loop_monitor import BEAT_INTERVAL, LoopMonitor
from fastapi_observe.records.frames import DEFAULT_OWN_CODE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anyio import CapacityLimiter
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from fastapi_observe.metrics.loop_monitor import BlockedLoop
    from fastapi_observe.records.frames import OwnCode

LAG_BOUNDS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
PAUSE_BOUNDS: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)
"""Bucket bounds in seconds."""


class LocalHistogram:
    """A histogram without a lock, for one writing thread at a time. It holds plain numbers only."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Record a sample."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Return the cumulative buckets as prometheus_client's `add_metric` takes them."""
        bounds = (*(str(bound) for bound in self.bounds), "+Inf")
        return [(bound, float(count)) for bound, count in zip(bounds, accumulate(self.counts), strict=True)]


class GcPauses:
    """Measures each run of the garbage collector through `gc.callbacks`.

    The callback runs inside the garbage collector, which starts anywhere, while any lock may be held. So it takes no
    lock and creates no object that the collector tracks.
    """

    __slots__ = ("_started", "generations")

    def __init__(self) -> None:
        self.generations = tuple(LocalHistogram(PAUSE_BOUNDS) for _ in range(3))
        self._started = 0.0

    def __call__(self, phase: str, info: dict[str, Any]) -> None:
        """Record the start or the end of a run."""
        if phase == "start":
            self._started = perf_counter()
        elif self._started:
            self.generations[info["generation"]].observe(perf_counter() - self._started)
            self._started = 0.0


class Saturation:
    """Samples the event loop and the garbage collector, and collects the results.

    It samples one event loop at a time. `start` in another loop moves there if the first one no longer runs, else it
    has no effect. Without an asyncio loop (trio), only the garbage collector is measured.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the parts of the monitor
        self,
        registry: CollectorRegistry | None = None,
        interval: float = BEAT_INTERVAL,
        blocked_threshold: float | None = None,
        on_blocked: Callable[[BlockedLoop], None] | None = None,
        in_progress: Callable[[], int] = int,
        own_code: OwnCode = DEFAULT_OWN_CODE,
    ) -> None:
        self.lag = LocalHistogram(LAG_BOUNDS)
        self._monitor = LoopMonitor(self.lag.observe, blocked_threshold, on_blocked, interval, in_progress, own_code)
        self._pauses = GcPauses()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._limiter: CapacityLimiter | None = None
        self._release: Callable[[], object] | None = None
        self._registry = registry
        if registry is not None:
            registry.register(self)

    def start(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Start measuring. Call it in a task of `loop`, which defaults to the running one."""
        if self._release is None:
            gc.callbacks.append(self._pauses)
            # An install that is never closed must not leave its callback behind.
            finalizer = weakref.finalize(self, _remove_callback, self._pauses)
            finalizer.atexit = False
            self._release = finalizer
        loop = loop or running_loop()
        if loop is None or loop.is_closed() or (self._loop is not None and self._loop.is_running()):
            return
        self._leave_loop()
        self._loop = loop
        try:
            self._limiter = current_default_thread_limiter()
        except RuntimeError:  # not in a task, so the limiter of the endpoints is unknown
            self._limiter = None
        self._monitor.start(loop)

    def stop(self) -> None:
        """Stop measuring until the next `start`. Results so far remain. Idempotent."""
        if self._release is not None:
            self._release()
            self._release = None
        self._leave_loop()

    def close(self) -> None:
        """Stop, and unregister from the registry given at construction. Idempotent."""
        self.stop()
        if self._registry is not None:
            self._registry.unregister(self)
            self._registry = None

    def _leave_loop(self) -> None:
        self._monitor.stop()
        self._loop = self._limiter = None

    def describe(self) -> list[Metric]:
        """Return the families that `collect` yields."""
        return [_lag_family(), _pause_family(), *_gauge_families()]

    def collect(self) -> Iterator[Metric]:
        """Yield the families with their values now. Safe in any thread."""
        lag = _lag_family()
        lag.add_metric([], self.lag.buckets(), self.lag.total)
        yield lag
        pauses = _pause_family()
        for generation, samples in enumerate(self._pauses.generations):
            pauses.add_metric([str(generation)], samples.buckets(), samples.total)
        yield pauses
        loop, limiter = self._loop, self._limiter
        tasks, busy, maximum, waiting = _gauge_families()
        if loop is not None:
            tasks.add_metric([], len(asyncio.all_tasks(loop)))
            yield tasks
        if limiter is not None:
            statistics = limiter.statistics()
            busy.add_metric([], statistics.borrowed_tokens)
            maximum.add_metric([], statistics.total_tokens)
            waiting.add_metric([], statistics.tasks_waiting)
            yield from (busy, maximum, waiting)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the running event loop of asyncio, or None: no loop runs in this thread, or trio's."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _remove_callback(callback: GcPauses) -> None:
    with suppress(ValueError):  # the list was emptied meanwhile
        gc.callbacks.remove(callback)


def _lag_family() -> HistogramMetricFamily:
    return HistogramMetricFamily(
        "asyncio_event_loop_lag_seconds", "Delay between the due time of a timer and its run, in seconds."
    )


def _pause_family() -> HistogramMetricFamily:
    return HistogramMetricFamily(
        "python_gc_pause_seconds", "Duration of garbage collector runs, in seconds.", labels=["generation"]
    )


def _gauge_families() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
    return (
        GaugeMetricFamily("asyncio_tasks", "Unfinished tasks of the event loop."),
        GaugeMetricFamily("threadpool_threads_busy", "Worker threads in use, mostly by sync endpoints."),
        GaugeMetricFamily("threadpool_threads_max", "Maximum number of worker threads."),
        GaugeMetricFamily("threadpool_waiting", "Tasks waiting for a worker thread."),
    )
