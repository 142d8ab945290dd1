"""One of several workers: when a process is one, what it shares, and how it leaves, forks or is killed."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import prometheus_client
import pytest
import worker_forks
from injection import failing
from prometheus_client import values
from starlette.testclient import TestClient

pytest.importorskip("fcntl")

from members import items_app

from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.metrics.service import MetricsService
from fastapi_observe.metrics.shared import join
from fastapi_observe.metrics.shared.join import WorkerGroup
from fastapi_observe.settings.model import ObserveSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Seen


SOAK = "OBSERVE_SOAK" in os.environ


def test_a_single_process_keeps_its_values_in_memory(observed: Callable[..., Seen], tmp_path: Path) -> None:
    """Without a supervisor no files are made, and `/metrics` has nothing about workers."""
    app = items_app()
    seen = observed(app, multiprocess_directory=str(tmp_path))
    with TestClient(app) as client:
        client.get("/items/1")
        assert "fastapi_observe_workers" not in seen.text
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("gunicorn")
def test_multiprocess_off_shares_nothing(observed: Callable[..., Seen], tmp_path: Path) -> None:
    """`multiprocess="off"` and `metrics=False` make no files."""
    for options in ({"multiprocess": "off"}, {"metrics": False}):
        app = items_app()
        observed(app, multiprocess_directory=str(tmp_path), **options)
        with TestClient(app) as client:
            client.get("/items/1")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("gunicorn")
def test_a_worker_shares_and_leaves(observed: Callable[..., Seen], tmp_path: Path) -> None:
    """In a worker the values are in files while the app runs. The totals continue when it starts again."""
    app = items_app()
    seen = observed(app, multiprocess_directory=str(tmp_path))
    seen.observe.metrics.business.user_registered()
    for rounds in (1, 2):
        with TestClient(app) as client:
            (directory,) = tmp_path.glob("fastapi-observe-*/*")
            assert directory.stat().st_mode & 0o777 == 0o700
            for _ in range(3):
                client.get("/items/1")
            seen.observe.metrics.counter("late_total", "Late.").inc()
            assert seen.total("http_requests_total") == 3 * rounds
            assert seen.total("user_registrations_total") == 1
            assert seen.total("late_total") == rounds
            assert seen.sample("fastapi_observe_workers") == 1
            assert seen.sample("http_requests_in_progress") == 0
            text = client.get("/metrics", headers={"accept": "application/openmetrics-text"}).text
            assert text.endswith("# EOF\n")
            assert "trace_id=" in text
        assert {path.name for path in directory.iterdir()} == {"archive", "lock"}
    assert values.ValueClass is values.MutexValue
    assert "register" not in vars(prometheus_client.REGISTRY)


@pytest.mark.usefixtures("gunicorn")
def test_two_apps_in_one_worker(observed: Callable[..., Seen], tmp_path: Path) -> None:
    """Each app exposes its own requests, both the default registry. They share one set of files."""
    counter = prometheus_client.Counter("shared_total", "Shared.")
    try:
        apps = [items_app(), items_app()]
        seen = [observed(app, multiprocess_directory=str(tmp_path)) for app in apps]
        for one in seen:
            one.observe.workers.start()
        counter.inc(5)
        for app, one, times in zip(apps, seen, (2, 3), strict=True):
            client = TestClient(app)
            for _ in range(times):
                client.get("/items/1")
            assert one.total("http_requests_total") == times
            assert one.total("shared_total") == 5
        assert len(list(tmp_path.glob("fastapi-observe-*/*/*.lock"))) == 1
        seen[0].observe.close()
        assert seen[1].total("shared_total") == 5
    finally:
        prometheus_client.REGISTRY.unregister(counter)


@pytest.mark.usefixtures("gunicorn")
@pytest.mark.parametrize("missing", ["posix_fallocate", "mkfifo"])
def test_a_system_without_the_calls_logs_a_warning(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where calls are missing (Windows, macOS), one warning says that workers do not share their metrics."""
    monkeypatch.delattr(os, missing)
    faults = InternalErrors()
    settings = ObserveSettings(multiprocess_directory=str(tmp_path))
    metrics = MetricsService(settings, faults)
    one = WorkerGroup(settings, faults, metrics.sharing)
    with caplog.at_level(logging.WARNING, "fastapi_observe"):
        one.start()
        one.start()
    message = (
        "Worker processes do not share their metrics: this system lacks posix_fallocate or mkfifo. "
        "Each /metrics reports one worker only. Run one worker per server and port, or set otlp_metrics: "
        "each worker then exports its own."
    )
    assert [record.message for record in caplog.records] == [message]
    one.stop()


@pytest.mark.usefixtures("gunicorn")
def test_an_internal_error_is_counted(tmp_path: Path) -> None:
    """An unexpected exception while joining does not reach the app."""
    faults = InternalErrors()
    settings = ObserveSettings(multiprocess_directory=str(tmp_path))
    with failing("workers.directory:directory_name"):
        WorkerGroup(settings, faults, MetricsService(settings, faults).sharing).start()
    assert faults.counts == {"workers.start": 1}


@pytest.mark.usefixtures("gunicorn")
def test_a_fork_takes_everything_apart(observed: Callable[..., Seen], tmp_path: Path) -> None:
    """The child of a fork has its own cells, which start at zero, and prometheus_client is as it was."""
    theirs = prometheus_client.Counter("theirs", "Theirs.")
    try:
        seen = [observed(items_app(), multiprocess_directory=str(tmp_path)) for _ in range(3)]
        for one in seen[:2]:
            one.observe.workers.start()
        counter = seen[0].observe.metrics.counter("jobs_total", "Jobs.")
        counter.inc(2)
        theirs.inc(3)
        (worker, _) = next(iter(join.JOINED_WORKERS.values()))
        worker.stop_listening()  # a child has no thread
        join._after_fork()
        assert not join.JOINED_WORKERS
        assert counter.cells == [0]
        assert theirs._value.get() == 0
        assert values.ValueClass is values.MutexValue
        counter.inc()
        theirs.inc()
        assert seen[0].total("jobs_total") == 1
        assert seen[0].total("theirs_total") == 1
    finally:
        prometheus_client.REGISTRY.unregister(theirs)


# Forks and kills: in a process of their own, since this one has threads


def test_a_forked_worker_begins_at_zero(tmp_path: Path) -> None:
    """A child that is forked after `install` does not count again what the parent has counted. Gauges are kept."""
    found = worker_forks.run("preload", tmp_path)
    assert found == {"ours": 2, "theirs": 2, "gauge": 10, "before": 0}


def test_a_fork_of_a_worker_does_not_write_in_its_files(tmp_path: Path) -> None:
    """The child of a worker counts by itself, the lock stays the worker's, and no descriptor is left open."""
    found = worker_forks.run("fork", tmp_path)
    assert found == {"parent": 1, "child": 5, "open": 0, "joined": 8}


def test_workers_killed_at_any_moment_lose_nothing(tmp_path: Path) -> None:
    """After many `kill -9` every count is in the total, totals have never gone back, and there are few files."""
    kills = 200 if SOAK else 25
    found = worker_forks.run("kills", tmp_path, kills)
    assert found["kills"] == kills
    assert found["counted"] <= found["total"] <= found["counted"] + kills
    assert found["backwards"] == 0
    assert found["exact"] == found["known"]
    assert found["files"] <= 25
    assert found["bytes"] < 1_000_000


def test_a_stopped_worker_does_not_delay_a_scrape(tmp_path: Path) -> None:
    """The last values of a stopped worker are exposed, and the scrape does not hang."""
    found = worker_forks.run("stopped", tmp_path)
    assert found == {"total": 3, "gauge": 1, "threads": 2}


def test_a_worker_that_leaves_is_merged(tmp_path: Path) -> None:
    """A worker that is stopped leaves its counts in the archive, and its gauges disappear."""
    assert worker_forks.run("leaves", tmp_path) == {"both": 2, "level": 1, "jobs": 15, "files": 1}
