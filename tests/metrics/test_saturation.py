"""Holds the measurement of event-loop lag, tasks, worker threads and garbage collector pauses."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trio
from prometheus_client import CollectorRegistry

from fastapi_observe.metrics.saturation import GcPauses, LocalHistogram, Saturation

INTERVAL = 0.002


def _made() -> tuple[Saturation, CollectorRegistry]:
    registry = CollectorRegistry()
    return Saturation(registry, INTERVAL), registry


def _read(registry: CollectorRegistry, name: str, **labels: str) -> Any:
    return registry.get_sample_value(name, labels)


def _lags(registry: CollectorRegistry) -> Any:
    return _read(registry, "asyncio_event_loop_lag_seconds_count")


async def _until(condition: Any) -> None:
    with anyio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - a timer sets no event
            await asyncio.sleep(INTERVAL)


async def test_the_lag_of_the_loop_is_sampled_without_a_task() -> None:
    """Timers of the loop measure it repeatedly, without a task."""
    saturation, registry = _made()
    before = asyncio.all_tasks()
    saturation.start(asyncio.get_running_loop())
    assert asyncio.all_tasks() == before
    await _until(lambda: _lags(registry) >= 2)
    saturation.stop()


async def test_a_blocked_loop_shows_its_lag() -> None:
    """Code that blocks the loop is visible as lag of that length."""
    saturation, registry = _made()
    saturation.start()
    threading.Event().wait(0.03)
    await _until(lambda: _lags(registry) >= 1)
    saturation.stop()
    assert _read(registry, "asyncio_event_loop_lag_seconds_sum") >= 0.025
    assert _read(registry, "asyncio_event_loop_lag_seconds_bucket", le="10.0") >= 1


async def test_after_stop_nothing_is_sampled() -> None:
    """`stop` ends the timers and removes the callback; results remain, and it can start again."""
    saturation, registry = _made()
    saturation.start()
    await _until(lambda: _lags(registry) >= 1)
    saturation.stop()
    saturation.stop()
    seen = _lags(registry)
    await asyncio.sleep(5 * INTERVAL)
    assert _lags(registry) == seen
    assert registry.get_sample_value("asyncio_tasks") is None
    assert not any(isinstance(each, GcPauses) for each in gc.callbacks)
    saturation.start()
    await _until(lambda: _lags(registry) > seen)
    saturation.close()


async def test_close_leaves_the_registry() -> None:
    """After `close` the registry can be used by another sampler. `close` is idempotent."""
    saturation, registry = _made()
    saturation.start()
    saturation.close()
    saturation.close()
    Saturation(registry).close()
    Saturation().close()


async def test_tasks_are_counted_from_another_thread() -> None:
    """A scrape in a thread counts the unfinished tasks of the loop."""
    saturation, registry = _made()
    saturation.start()
    waiting = [asyncio.create_task(asyncio.sleep(5)) for _ in range(3)]
    seen = await anyio.to_thread.run_sync(registry.get_sample_value, "asyncio_tasks")
    saturation.stop()
    for task in waiting:
        task.cancel()
    assert seen == 4


async def test_worker_threads_are_those_of_the_loops_limiter() -> None:
    """Busy threads and waiting tasks are read from the limiter that sync endpoints use."""
    saturation, registry = _made()
    saturation.start()
    limiter = anyio.to_thread.current_default_thread_limiter()
    limiter.total_tokens = 2
    release = threading.Event()
    read = registry.get_sample_value

    async def wait() -> None:
        await anyio.to_thread.run_sync(release.wait)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(wait)
        await _until(lambda: read("threadpool_waiting") == 1)
        assert (read("threadpool_threads_busy"), read("threadpool_threads_max")) == (2, 2)
        release.set()
    assert read("threadpool_threads_busy") == 0
    saturation.stop()


def test_outside_a_task_the_threads_are_unknown() -> None:
    """If started in a callback of the loop, it measures the lag and leaves out the thread gauges."""
    saturation, registry = _made()
    loop = asyncio.new_event_loop()
    loop.call_soon(saturation.start, loop)
    loop.run_until_complete(asyncio.sleep(100 * INTERVAL))
    assert _lags(registry) >= 1
    assert registry.get_sample_value("threadpool_threads_max") is None
    saturation.stop()
    loop.close()


def test_the_sampler_moves_to_a_new_loop() -> None:
    """After a loop was closed, the next `start` samples the new one. A closed loop is not sampled."""
    saturation, registry = _made()

    async def run(more_than: float) -> None:
        saturation.start(asyncio.get_running_loop())
        await _until(lambda: _lags(registry) > more_than)

    asyncio.run(run(0))
    asyncio.run(run(_lags(registry)))
    closed = asyncio.new_event_loop()
    closed.close()
    other, other_registry = _made()
    other.start(closed)
    assert other_registry.get_sample_value("asyncio_tasks") is None
    other.stop()
    saturation.stop()


async def test_one_running_loop_is_sampled_at_a_time() -> None:
    """`start` in another running loop has no effect."""
    saturation, registry = _made()
    saturation.start()

    async def start() -> None:
        saturation.start()

    await asyncio.to_thread(asyncio.run, start())
    assert registry.get_sample_value("asyncio_tasks") == 1
    saturation.stop()


def test_on_trio_only_the_garbage_collector_is_measured() -> None:
    """Without an asyncio loop there is no lag, no task gauge and no error."""
    saturation, registry = _made()

    async def run() -> None:
        saturation.start()
        gc.collect()

    trio.run(run)
    saturation.stop()
    assert _lags(registry) == 0
    assert registry.get_sample_value("asyncio_tasks") is None
    assert _read(registry, "python_gc_pause_seconds_count", generation="2") >= 1


def test_each_collection_is_a_pause_of_its_generation() -> None:
    """One run of a generation is one sample; an end without a start is ignored."""
    pauses = GcPauses()
    pauses("stop", {"generation": 0})
    pauses("start", {"generation": 1})
    pauses("stop", {"generation": 1})
    pauses("stop", {"generation": 1})
    assert [sum(samples.counts) for samples in pauses.generations] == [0, 1, 0]


def test_an_install_that_is_never_closed_leaves_no_callback() -> None:
    """The callback is removed with the sampler, even if the list of callbacks was emptied before."""
    for empty in (False, True):
        saturation = Saturation(interval=INTERVAL)
        saturation.start()
        pauses = gc.callbacks[-1]
        assert isinstance(pauses, GcPauses)
        if empty:
            gc.callbacks.remove(pauses)
        del saturation
        gc.collect()
        assert pauses not in gc.callbacks


@pytest.mark.parametrize(("seconds", "counts"), [(0.5, [1, 0, 0]), (1.0, [1, 0, 0]), (1.5, [0, 1, 0]), (9, [0, 0, 1])])
def test_a_sample_is_in_the_bucket_of_its_bound(seconds: float, counts: list[int]) -> None:
    """Bounds are inclusive; larger samples are in the last bucket."""
    samples = LocalHistogram((1.0, 2.0))
    samples.observe(seconds)
    assert samples.counts == counts
    assert samples.buckets()[-1] == ("+Inf", 1.0)
