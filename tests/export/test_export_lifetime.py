"""The life of an export queue: threads only where spans are, forks, flushes, ends, and the ends of real servers."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import pytest
from collectors import Collector, Mode
from prometheus_client import CollectorRegistry, generate_latest
from servers_of_workers import SERVERS, crew
from starlette.applications import Starlette
from starlette.testclient import TestClient

from fastapi_observe import ObserveSettings, install
from fastapi_observe.export.buffer import ExportBuffer, QueueLimits
from fastapi_observe.export.counts import ExportCollector, line_counts
from fastapi_observe.export.transport import ExportResult
from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.internal.forks import SUPERVISOR_TIMEOUT, ShutdownDeadline, weak_callback
from fastapi_observe.traces.provider import ObserveTracerProvider
from fastapi_observe.traces.service import TracingService

if TYPE_CHECKING:
    from fastapi_observe.export.queue import ExportQueue

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


def ours() -> set[threading.Thread]:
    """Return the threads of export queues."""
    return {thread for thread in threading.enumerate() if thread.name == "fastapi-observe-spans"}


# Threads


def test_the_thread_comes_with_the_first_span_and_goes_with_the_end() -> None:
    """Installed and silent: none. After `close`: none, and the queue can be collected."""
    before = ours()
    with Collector() as collector:
        TracingService(
            ObserveSettings(), InternalErrors()
        )  # the first provider of a process becomes the global one and stays
        tracing, queue = exporting(collector)
        assert tracing.flush(1)
        assert ours() == before
        spans(tracing, "a")
        queue._start_thread()
        assert len(ours() - before) == 1
        tracing.close()
        assert ours() == before
        assert len(collector.spans) == 25
    reference = weakref.ref(queue)
    del tracing, queue
    gc.collect()
    assert reference() is None


def test_spans_after_the_end_are_counted_as_lost() -> None:
    """The provider may still be the global one; nothing starts again."""
    with Collector() as collector:
        tracing, queue = exporting(collector)
        spans(tracing, "before", 2)
        tracing.close()
        queue.close()
        spans(tracing, "after", 3)
        counts = queue.counts()
    assert (counts.produced, counts.exported, counts.dropped, counts.queued) == (5, 2, {"shutdown": 3}, 0)


def test_restarts_leave_nothing_behind() -> None:
    """After 50 installs with a collector that hangs, and their ends, there are as many threads and files as before."""
    with Collector() as collector:

        def once() -> None:
            app = Starlette()
            observe = install(app, otlp_endpoint=collector.url, sampler="always_on", logs=False)
            with TestClient(app) as client:
                client.get("/")
            observe.close()

        once()
        threads, files = threading.active_count(), _open_files()
        for _ in range(50):
            once()
        end = monotonic() + 5
        while (threading.active_count(), _open_files()) > (threads, files) and monotonic() < end:
            collector.drop_connections()
            sleep(0.01)
        assert threading.active_count() <= threads
        assert _open_files() <= files
        assert len(collector.spans) == 51


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0


# Flush and close


@pytest.mark.parametrize("mode", ["hang", "drip", "refused"])
def test_flush_and_close_share_one_budget(mode: Any) -> None:
    """A flush that found no collector is not repeated by `close`: what waits is given up and counted."""
    with Collector("ok" if mode == "refused" else mode, listens=mode != "refused") as collector:
        tracing, queue = exporting(collector, shutdown_timeout=0.5)
        spans(tracing, "s", 10)
        started = monotonic()
        assert not tracing.flush(0.5)
        tracing.close()
        assert monotonic() - started < 1.2
    counts = queue.counts()
    assert (counts.produced, counts.dropped, counts.queued) == (10, {"shutdown": 10}, 0)


def test_flushes_of_several_threads() -> None:
    """Each waits for what was there when it was called."""
    with Collector() as collector:
        tracing, queue = exporting(collector, batch_delay=60)
        results: list[bool] = []

        def work(name: str) -> None:
            spans(tracing, name)
            results.append(tracing.flush(5))

        threads = [threading.Thread(target=work, args=(name,)) for name in "abcdef"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [True] * 6
        assert queue.counts().exported == 150
        tracing.close()


def test_close_while_a_request_is_under_way() -> None:
    """What is under way counts as dropped, once, even if its thread cannot be ended."""
    with Collector("hang") as collector:
        tracing, queue = exporting(collector, batch_delay=0.01)
        spans(tracing, "s", 10)
        while not collector.connections:
            sleep(0.001)
        queue.close(0)
        counts = queue.counts()
        assert (counts.produced, counts.dropped, counts.queued) == (10, {"shutdown": 10}, 0)
        tracing.close()


def test_the_interpreter_ends_with_everything_sent() -> None:
    """Without a lifespan the end of the interpreter flushes; a collector that is dead costs no second wait."""
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
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)  # noqa: S603 - our own code
        assert len(collector.spans) == 10
    environment["OBSERVE_OTLP_ENDPOINT"] = Collector(listens=False).url
    started = monotonic()
    ended = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code + "tracing.flush(2)"], env=environment, check=True, capture_output=True
    )
    assert monotonic() - started < 6
    assert b"Traceback" not in ended.stderr


def test_all_exports_of_an_install_end_within_one_budget() -> None:
    """Spans, log lines and metrics have the same seconds at the end, which begin once and are given anew by a start."""
    app = Starlette()
    with Collector("hang") as collector:
        observe = install(app, otlp_endpoint=collector.url, otlp_logs=True, otlp_metrics=True, sampler="always_on")
        assert isinstance(observe.tracing.provider, ObserveTracerProvider)
        queue = observe.tracing.provider.queue
        assert queue is not None
        exporting: list[Any] = [queue, *(getattr(push, "queue", push) for push in observe._pushes)]
        budgets = [one.budget for one in exporting]
        assert budgets == [budgets[0]] * 3
        with TestClient(app):
            budgets[0].remaining(0)
            assert budgets[0].remaining(2) == 0
        with TestClient(app):
            assert budgets[0].remaining(2) > 1
        budgets[0].reset()
        budgets[0].remaining(0)
        spans(observe.tracing, "late", 10)
        began = monotonic()
        queue._close_at_exit()
        assert monotonic() - began < 1.5
        counts = queue.counts()
        assert (counts.produced, counts.dropped, counts.queued) == (10, {"shutdown": 10}, 0)
        observe.close()


# Fork


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_who_only_supervises_ends_soon() -> None:
    """A process that forked and serves nothing has little time at its end; its children, and who serves, have all."""
    budget = ShutdownDeadline()
    child = os.fork()
    if not child:
        os._exit(int(budget.remaining(2) < 1))
    assert os.waitpid(child, 0)[1] == 0
    assert 0 < budget.remaining(2) < SUPERVISOR_TIMEOUT + 0.1
    budget.reset()
    assert budget.remaining(2) > 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_neither_loses_nor_repeats() -> None:
    """Forked with a warm connection and spans waiting: every span arrives once, each process under its own id."""
    for run in range(int(os.environ.get("OBSERVE_FORKS", "5"))):
        with Collector() as collector:
            tracing, queue = exporting(collector)
            spans(tracing, "warm")
            assert tracing.flush(5)
            spans(tracing, "waiting")
            children = []
            for number in range(4):
                child = os.fork()
                if not child:
                    os._exit(_be_a_child(tracing, queue, number))
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


def _be_a_child(tracing: TracingService, queue: ExportQueue, number: int) -> int:
    """Emit spans, but for the last child, which emits none and starts nothing; return 0 if all is well."""
    fine = queue.counts().produced == 0 and threading.active_count() == 1
    if number < 3:
        spans(tracing, f"child-{number}")
        fine = fine and tracing.flush(5) and queue.counts().exported == 25
    else:
        fine = fine and tracing.flush(5) and threading.active_count() == 1
    return 0 if fine else 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_while_the_lock_is_held() -> None:
    """By a thread that does not exist in the child: the child has locks of its own."""
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


def test_a_child_begins_with_nothing() -> None:
    """What the parent counted, queued and closed is the parent's."""
    with Collector() as collector:
        tracing, queue = exporting(collector)
        spans(tracing, "parent", 2)
        queue.close()
        queue._reset_after_fork()
        assert queue.counts().produced == 0
        spans(tracing, "child", 3)
        assert queue.flush(5)
        assert queue.counts().exported == 3
        queue.close()


def test_what_comes_too_late_counts_nothing() -> None:
    """A thread that outlives the end of its queue finds everything settled."""
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


def test_what_is_gone_is_not_called() -> None:
    """The end of the process keeps no queue alive."""
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


# What /metrics says


def test_metrics_show_the_identity() -> None:
    """Produced = exported + dropped + queued, by signal, with the reasons and durations."""
    with Collector() as collector:
        tracing, queue = exporting(collector)
        registry = CollectorRegistry()
        registry.register(
            ExportCollector([("traces", queue.counts), ("logs", line_counts(lambda: (7, {"stdout_write": 2}, 1)))])
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


def serve(folder: Path, server: str, collector: Collector, *, observed: bool) -> float:
    """Run a server, send 200 requests, then SIGTERM at once; return the seconds until it has ended."""
    settings = {
        "OBSERVE_OTLP_ENDPOINT": collector.url,
        "OBSERVE_SAMPLER": "always_on",
        "OBSERVE_LOG_REQUESTS": "false",
        "OBSERVE_SHUTDOWN_TIMEOUT": "2" if collector.mode == "ok" else "1",
    }
    with crew(server, folder, observed=observed, **settings) as running:
        for number in range(200):
            assert running.get(f"/thread/{number}") == (200, str(number).encode())
        running.process.terminate()
        seconds = running.ended(20)
        assert "Traceback" not in running.errors, running.errors
        return seconds


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
@pytest.mark.parametrize("server", SERVERS)
def test_no_span_is_lost_when_a_server_is_terminated(server: str, tmp_path: Path) -> None:
    """200 requests, then SIGTERM at once: a healthy collector has 200 spans, each once."""
    with Collector() as collector:
        serve(tmp_path, server, collector, observed=True)
        paths = [pair.value.string_value for span in collector.spans for pair in span.attributes
                 if pair.key == "url.path" and pair.value.string_value.startswith("/thread/")]  # fmt: skip
    assert len(paths) == 200
    assert len(set(paths)) == 200


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
@pytest.mark.parametrize(("server", "mode"), [("uvicorn", "hang"), ("gunicorn --preload", "drip")])
def test_a_server_ends_in_time(server: str, mode: Mode, tmp_path: Path) -> None:
    """With a collector that does not answer, at most 2.5 seconds later than without us."""
    with Collector(mode) as collector:
        bare = serve(tmp_path, server, collector, observed=False)
        assert serve(tmp_path, server, collector, observed=True) < bare + 2.5
