"""`WorkerGroup`: a worker that cannot join at first joins later, and internal errors end the attempts."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from injection import failing
from tools import no_thread_starts

from fastapi_observe.workers.directory import open_root

pytest.importorskip("fcntl")

from tools import until

from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.metrics.service import MetricsService
from fastapi_observe.metrics.shared import join
from fastapi_observe.metrics.shared.join import WorkerGroup
from fastapi_observe.settings.model import ObserveSettings

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("gunicorn")


@pytest.fixture(autouse=True)
def _short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "JOIN_RETRY_INTERVAL", 0.01)


def test_a_worker_that_cannot_join_joins_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The obstacle is logged once. When it is gone, everything that was counted meanwhile is shared."""
    place = tmp_path / "later"
    internal_errors = InternalErrors()
    settings = ObserveSettings(multiprocess_directory=str(place), include_default_registry=False)
    metrics = MetricsService(settings, internal_errors)
    counter = metrics.counter("jobs_total", "Jobs.")
    for number in (1, 2):
        group = WorkerGroup(settings, internal_errors, metrics.sharing)
        with caplog.at_level(logging.WARNING, "fastapi_observe"):
            group.start()
        counter.inc()
        assert "fastapi_observe_metrics_degraded 1.0" in metrics.render("", "")[1].decode()
        if number == 1:
            group.stop()  # ends the attempts
    place.mkdir(0o700)
    until(lambda: "fastapi_observe_metrics_degraded 0.0" in metrics.render("", "")[1].decode())
    counter.inc()
    assert "jobs_total 3" in metrics.render("", "")[1].decode()
    assert len(list(place.glob("fastapi-observe-*/*/*.index"))) == 1
    logged = [record.message for record in caplog.records if "do not share their metrics" in record.message]
    assert len(logged) == 2
    assert f"the directory {place} of multiprocess_directory does not exist" in logged[0]
    group.stop()
    assert not internal_errors.counts


def test_an_internal_error_ends_the_attempts(tmp_path: Path) -> None:
    """An unexpected exception is counted, and not repeated for ever."""
    internal_errors = InternalErrors()
    settings = ObserveSettings(multiprocess_directory=str(tmp_path / "none"))
    group = WorkerGroup(settings, internal_errors, MetricsService(settings, internal_errors).sharing)
    group.start()
    with failing(open_root):
        until(lambda: internal_errors.counts)
    assert internal_errors.counts == {"workers.start": 1}
    group.stop()


def test_without_a_thread_the_worker_is_degraded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where no thread can be started a worker reports its own values, and leaves no files."""
    internal_errors = InternalErrors()
    settings = ObserveSettings(multiprocess_directory=str(tmp_path), include_default_registry=False)
    metrics = MetricsService(settings, internal_errors)
    group = WorkerGroup(settings, internal_errors, metrics.sharing)
    with no_thread_starts(), caplog.at_level(logging.WARNING, "fastapi_observe"):
        group.start()
    assert ["can't start new thread" in record.message for record in caplog.records] == [True]
    assert "fastapi_observe_metrics_degraded 1.0" in metrics.render("", "")[1].decode()
    assert [path.name for path in tmp_path.glob("*/*/*")] == ["lock"]
    group.stop()
    assert not internal_errors.counts
