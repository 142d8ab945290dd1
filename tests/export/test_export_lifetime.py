"""Lifetime of an export queue: its thread, flush and close, forks, exit, frozen clocks, shutdown of real servers.

By default two servers are used. `OBSERVE_ALL_FAULTS=1` (CI) and `OBSERVE_SOAK=1` use all of them.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import interpreter
import pytest
from collectors import Collector, Mode
from prometheus_client import CollectorRegistry, generate_latest
from servers_of_workers import SERVERS, crew
from starlette.applications import Starlette
from starlette.testclient import TestClient
from tools import SOAK, until, volume

from fastapi_observe import ObserveSettings, install
from fastapi_observe.export.buffer import ExportBuffer, QueueLimits
from fastapi_observe.export.counts import Counts, ExportCollector
from fastapi_observe.export.transport import ExportResult
from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.internal.forks import SUPERVISOR_TIMEOUT, ShutdownDeadline, weak_callback
from fastapi_observe.traces.provider import ObserveTracerProvider
from fastapi_observe.traces.service import TracingService

if TYPE_CHECKING:
    from fastapi_observe.export.queue import ExportQueue

ALL_SERVERS = SOAK or "OBSERVE_ALL_FAULTS" in os.environ
ROOT = str(Path(__file__).parents[2])


def exporting(collector: Collector, **options: Any) -> tuple[TracingService, ExportQueue]:
    """Return a tracing service and its queue."""
    defaults = {"otlp_endpoint": collector.url, "sampler": "always_on", "batch_delay": 0.02}
    tracing = TracingService(ObserveSettings(**{**defaults, **options}), InternalErrors())
    assert isinstance(tracing.provider, ObserveTracerProvider)
    assert tracing.provider.queue is not None
    return tracing, tracing.provider.queue


def spans(tracing: TracingService, name: str, number: int = 25) -> None:
    """Make spans."""
    for at in range(number):
        with tracing.span(f"{name}-{at}"):
            pass


def sending_threads() -> set[threading.Thread]:
    """Return the threads of export queues."""
    return {thread for thread in threading.enumerate() if thread.name == "fastapi-observe-spans"}


# Threads


def test_the_thread_exists_from_the_first_span_until_close() -> None:
    """After `close` the queue can be garbage-collected."""
    before = sending_threads()
    with Collector() as collector:
        tracing, queue = exporting(collector)
        assert tracing.flush(1)
        assert sending_threads() == before
        spans(tracing, "a")
        assert len(sending_threads() - before) == 1
        tracing.close()
        assert sending_threads() == before
        assert len(collector.spans) == 25
    reference = weakref.ref(queue)
    del tracing, queue
    gc.collect()
    assert reference() is None


def test_items_after_close_are_dropped() -> None:
    """They are counted, and nothing starts again."""
    with Collector() as collector:
        tracing, queue = exporting(collector)
        spans(tracing, "before", 2)
        queue.close()
        queue.close()
        spans(tracing, "after", 3)
        counts = queue.counts()
        tracing.close()
    assert (counts.produced, counts.exported, counts.dropped, counts.queued) == (5, 2, {"shutdown": 3}, 0)


def test_restarts_leave_nothing_behind() -> None:
    """After many installs and closes there are as many threads and open files as before."""
    starts = volume(50)
    with Collector() as collector:

        def once() -> None:
            app = Starlette()
            observe = install(app, otlp_endpoint=collector.url, sampler="always_on", logs=False)
            with TestClient(app) as client:
                client.get("/")
            observe.close()

        once()
        threads, files = threading.active_count(), _open_files()
        for _ in range(starts):
            once()

        def are_closed() -> bool:
            collector.drop_connections()
            return threading.active_count() <= threads and _open_files() <= files

        until(are_closed)
        assert len(collector.spans) == starts + 1


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0


# Flush and close


@pytest.mark.parametrize("mode", ["hang", "drip", "refused"])
def test_close_does_not_repeat_a_failed_flush(mode: Any) -> None:
    """No further request is sent: what is queued is dropped and counted."""
    with Collector("ok" if mode == "refused" else mode, listens=mode != "refused") as collector:
        tracing, queue = exporting(collector, shutdown_timeout=0.5)
        spans(tracing, "s", 10)
        assert not tracing.flush(0.5)
        attempts = collector.connections + (queue.counts().failures or {}).get("connect", 0)
        tracing.close()
        counts = queue.counts()
        assert collector.connections + (counts.failures or {}).get("connect", 0) == attempts
    assert (counts.produced, counts.dropped, counts.queued) == (10, {"shutdown": 10}, 0)


def test_flushes_of_several_threads() -> None:
    """Each waits for the spans that were put before it."""
    with Collector() as collector:
        tracing, queue = exporting(collector, batch_delay=60)
        results: list[bool] = []

        def work(name: str) -> None:
            spans(tracing, name)
            results.append(tracing.flush(30))

        threads = [threading.Thread(target=work, args=(name,)) for name in "abcdef"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [True] * 6
        assert queue.counts().exported == 150
        tracing.close()


def test_close_during_a_request() -> None:
    """The spans that are being sent are counted as dropped, once."""
    with Collector("hang") as collector:
        tracing, queue = exporting(collector, batch_delay=0.01)
        spans(tracing, "s", 10)
        until(lambda: collector.connections)
        queue.close(0)
        counts = queue.counts()
        assert (counts.produced, counts.dropped, counts.queued) == (10, {"shutdown": 10}, 0)
        tracing.close()


def test_interpreter_exit_flushes() -> None:
    """Without a lifespan, the exit of the interpreter sends what is queued; not again after a flush that failed."""
    code = f"""
import sys; sys.path.insert(0, {ROOT!r})
from fastapi_observe import ObserveSettings
from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.traces.service import TracingService
tracing = TracingService(ObserveSettings(sampler="always_on", batch_delay=60), InternalErrors())
for at in range(10):
    with tracing.span(str(at)): pass
"""
    with Collector() as collector:
        environment = {**os.environ, "OBSERVE_OTLP_ENDPOINT": collector.url}
        assert interpreter.run(code, environment=environment).returncode == 0
        assert len(collector.spans) == 10
    with Collector("close") as collector:
        environment["OBSERVE_OTLP_ENDPOINT"] = collector.url
        ended = interpreter.run(code + "tracing.flush(0.5)", environment=environment)
        assert ended.returncode == 0
        assert collector.connections == 1  # the next attempt would have been after 0.8 s
    assert "Traceback" not in ended.stderr


def test_shutdown_under_a_frozen_clock() -> None:
    """As under freezegun: all Python functions that read a clock return the same value, also where they were imported.

    The app serves a request, its lifespan ends, and `close` ends, although the collector hangs.
    """
    code = f"""
import sys, time; sys.path.insert(0, {ROOT!r})
from starlette.applications import Starlette
from starlette.testclient import TestClient
from fastapi_observe import install
names = ("time", "monotonic", "perf_counter", "time_ns", "monotonic_ns", "perf_counter_ns")
frozen = {{id(getattr(time, name)): (lambda now: lambda: now)(getattr(time, name)()) for name in names}}
real = [getattr(time, name) for name in names]
for module in [*sys.modules.values()]:
    for name, value in [*vars(module).items()]:
        if id(value) in frozen and module.__name__ != "__main__":
            setattr(module, name, frozen[id(value)])
assert time.monotonic() == time.monotonic()
app = Starlette()
observe = install(app, sampler="always_on", shutdown_timeout=0.5, otlp_logs=True, otlp_metrics=True)
with TestClient(app) as client:
    client.get("/")
observe.close()
queue = observe.tracing.provider.queue
for _ in range(600):  # the thread that closes the queue may not have ended yet
    if queue.counts().dropped:
        break
    time.sleep(0.05)
print(sum(queue.counts().dropped.values()), observe.internal_errors.counts)
"""
    with Collector("hang") as collector:
        environment = {**os.environ, "OBSERVE_OTLP_ENDPOINT": collector.url}
        ended = interpreter.run(code, environment=environment)
    assert ended.stdout.splitlines()[-1] == "1 {}", ended.stderr


def test_all_exports_share_one_shutdown_deadline() -> None:
    """Spans, log lines and metrics share the same seconds. They start once, and again after a start of the app."""
    app = Starlette()
    with Collector("hang") as collector:
        observe = install(
            app,
            otlp_endpoint=collector.url,
            otlp_logs=True,
            otlp_metrics=True,
            sampler="always_on",
            shutdown_timeout=0.2,
        )
        assert isinstance(observe.tracing.provider, ObserveTracerProvider)
        queue = observe.tracing.provider.queue
        assert queue is not None
        deadlines = [each.shutdown_deadline for each in observe._export_queues().values()]
        deadline = deadlines[0]
        assert deadlines == [deadline] * 3
        with TestClient(app):
            deadline.remaining(0)
            assert deadline.remaining(2) == 0
        with TestClient(app):
            assert deadline.remaining(2) > 1
        deadline.reset()
        deadline.remaining(0)
        spans(observe.tracing, "late", 10)
        queue._close_at_exit()
        counts = queue.counts()
        assert (counts.produced, counts.dropped, counts.queued) == (10, {"shutdown": 10}, 0)
        observe.close()


# Fork


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_supervisor_has_little_time() -> None:
    """A process that has forked and serves no requests; its children, and processes that serve, have all of it."""
    deadline = ShutdownDeadline()
    child = os.fork()
    if not child:
        os._exit(int(deadline.remaining(2) < 1))
    assert os.waitpid(child, 0)[1] == 0
    assert 0 < deadline.remaining(2) < 2 * SUPERVISOR_TIMEOUT
    deadline.reset()
    assert deadline.remaining(2) > 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_sends_every_span_once() -> None:
    """Forked with an open connection and queued spans: every span arrives once, each process has its instance id."""
    for run in range(volume(5)):
        with Collector() as collector:
            tracing, queue = exporting(collector)
            spans(tracing, "warm")
            assert tracing.flush(5)
            spans(tracing, "waiting")
            children = []
            for number in range(4):
                child = os.fork()
                if not child:
                    os._exit(_run_child(tracing, queue, number))
                children.append(child)
                spans(tracing, f"parent-{number}")
            assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4, run
            assert tracing.flush(5)
            assert set(collector.names.values()) == {1}
            assert len(collector.names) == 25 * (2 + 4 + 3)
            instances = {
                pair.value.string_value
                for each in collector.resources
                for pair in each.resource.attributes
                if pair.key == "service.instance.id"
            }
            assert len(instances) in {0, 4}  # older OpenTelemetry names none
            tracing.close()


def _run_child(tracing: TracingService, queue: ExportQueue, number: int) -> int:
    """Emit spans, except in the last child, which starts no thread. Returns the exit code."""
    passed = queue.counts().produced == 0 and threading.active_count() == 1
    if number < 3:
        spans(tracing, f"child-{number}")
        passed = passed and tracing.flush(5) and queue.counts().exported == 25
    else:
        passed = passed and tracing.flush(5) and threading.active_count() == 1
    return 0 if passed else 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_while_the_lock_is_held() -> None:
    """By a thread that does not exist in the child: the child has its own locks."""
    with Collector() as collector:
        tracing, queue = exporting(collector)
        spans(tracing, "warm", 1)
        held, release = threading.Event(), threading.Event()

        def hold() -> None:
            with queue._buffer.changed:
                held.set()
                release.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        child = os.fork()
        if not child:
            spans(tracing, "child", 200)
            os._exit(0 if tracing.flush(5) else 1)
        assert os.waitpid(child, 0)[1] == 0
        release.set()
        thread.join()
        tracing.close()
        assert len(collector.names) == 201


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_starts_with_empty_counts() -> None:
    """Also if the parent has closed its queue."""
    with Collector() as collector:
        tracing, queue = exporting(collector)
        spans(tracing, "parent", 2)
        queue.close()
        child = os.fork()
        if not child:
            empty = queue.counts().produced == 0
            spans(tracing, "child", 3)
            os._exit(0 if empty and queue.flush(30) and queue.counts().exported == 3 else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert len(collector.spans) == 5


def test_results_after_close_are_ignored() -> None:
    """A sending thread may outlive its queue: everything is counted already."""
    buffer = ExportBuffer(QueueLimits(10, 65_536, 5, 1.0, 1.0, 1.0))
    buffer.raw.extend("abcd")
    assert buffer.take_slice() == [*"abcd"]
    buffer.add([(None, b"a", 0), (None, b"b", 0)], 2)
    assert buffer.take_batch() == [(None, b"a", 0), (None, b"b", 0)]
    buffer.abandon()
    buffer.start_delay()
    buffer.add([(None, b"c", 0), (None, b"d", 0)], 2)
    buffer.apply_result(ExportResult())
    counts = buffer.counts()
    assert (counts.produced, counts.exported, counts.dropped, counts.queued) == (4, 0, {"shutdown": 4}, 0)


def test_callbacks_do_not_keep_their_owner_alive() -> None:
    """A callback for the exit of the process does nothing once its owner is gone."""
    called: list[str] = []

    class Owner:
        def end(self) -> None:
            called.append("ended")

    owner = Owner()
    call = weak_callback(owner, Owner.end)
    call()
    del owner
    call()
    assert called == ["ended"]


# Metrics


def test_metrics_of_the_counts() -> None:
    """Produced, exported, dropped and queued items by signal, with reasons and durations."""
    with Collector() as collector:
        tracing, queue = exporting(collector)
        registry = CollectorRegistry()
        registry.register(
            ExportCollector([("traces", queue.counts), ("logs", lambda: Counts(10, 7, {"stdout_write": 2}, 1))])
        )
        assert 'fastapi_observe_produced_total{signal="traces"} 0.0' in generate_latest(registry).decode()
        spans(tracing, "s", 3)
        assert tracing.flush(5)
        collector.mode = "400"
        spans(tracing, "s", 2)
        assert not tracing.flush(5)
        tracing.close()
        shown = generate_latest(registry).decode().splitlines()
    for line in (
        'fastapi_observe_produced_total{signal="traces"} 5.0',
        'fastapi_observe_exported_total{signal="traces"} 3.0',
        'fastapi_observe_dropped_total{reason="rejected",signal="traces"} 2.0',
        'fastapi_observe_queue_items{signal="traces"} 0.0',
        'fastapi_observe_queue_bytes{signal="traces"} 0.0',
        'fastapi_observe_export_failures_total{reason="http_4xx",signal="traces"} 1.0',
        'fastapi_observe_export_duration_seconds_count{signal="traces"} 2.0',
        'fastapi_observe_produced_total{signal="logs"} 10.0',
        'fastapi_observe_exported_total{signal="logs"} 7.0',
        'fastapi_observe_dropped_total{reason="stdout_write",signal="logs"} 2.0',
        'fastapi_observe_queue_items{signal="logs"} 1.0',
    ):
        assert line in shown
    assert any(line.startswith("fastapi_observe_last_export_success_timestamp_seconds{") for line in shown)


# Real servers


def serve(directory: Path, server: str, collector: Collector, *, observed: bool) -> float:
    """Run a server, send 200 requests, then SIGTERM at once. Returns the seconds until it has ended."""
    settings = {
        "OBSERVE_OTLP_ENDPOINT": collector.url,
        "OBSERVE_SAMPLER": "always_on",
        "OBSERVE_LOG_REQUESTS": "false",
        "OBSERVE_SHUTDOWN_TIMEOUT": "2" if collector.mode == "ok" else "1",
    }
    with crew(server, directory, observed=observed, **settings) as running:
        for number in range(200):
            assert running.get(f"/thread/{number}") == (200, str(number).encode())
        running.process.terminate()
        seconds = running.ended(60)
        assert "Traceback" not in running.errors, running.errors
        return seconds


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
@pytest.mark.parametrize("server", SERVERS if ALL_SERVERS else ("uvicorn", "gunicorn"))
def test_no_span_is_lost_when_a_server_is_terminated(server: str, tmp_path: Path) -> None:
    """After 200 requests and SIGTERM the collector has 200 spans, each once."""
    with Collector() as collector:
        serve(tmp_path, server, collector, observed=True)
        paths = [pair.value.string_value for span in collector.spans for pair in span.attributes
                 if pair.key == "url.path" and pair.value.string_value.startswith("/thread/")]  # fmt: skip
    assert len(paths) == 200
    assert len(set(paths)) == 200


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
@pytest.mark.parametrize(("server", "mode"), [("uvicorn", "hang"), ("gunicorn --preload", "drip")])
def test_a_server_ends_in_time(server: str, mode: Mode, tmp_path: Path) -> None:
    """With a collector that does not respond, hardly later than without fastapi-observe. Tight in the soak only."""
    with Collector(mode) as collector:
        bare = serve(tmp_path, server, collector, observed=False)
        assert serve(tmp_path, server, collector, observed=True) < (bare + 2.5 if SOAK else 3 * bare + 10)
