"""The directory of the workers, or a part of it, removed by others: the totals of who lives go on."""

from __future__ import annotations

import logging
import os
import signal
from typing import TYPE_CHECKING

import prometheus_client
import pytest

pytest.importorskip("fcntl")

from members import NAME, Member
from prometheus_client import CollectorRegistry
from servers_of_workers import serving_workers
from tools import remove_tree, tmpfs, until

from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.metrics.service import MetricsService
from fastapi_observe.settings.model import ObserveSettings
from fastapi_observe.workers import join, standing
from fastapi_observe.workers import worker as worker_meeting
from fastapi_observe.workers.directory import remove_directory
from fastapi_observe.workers.files import ValueFileWriter
from fastapi_observe.workers.join import WorkerGroup
from fastapi_observe.workers.presence import pid_exists

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KINDS = (".keys", ".values", ".lock", ".ask")


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nobody look by himself: the tests say when."""
    monkeypatch.setattr(worker_meeting, "WATCH_INTERVAL", 30.0)


def _counting(place: Path) -> tuple[Member, Callable[[], None], Callable[[float], None]]:
    """Make a worker that has every kind of metric; return it, what counts once more, and what checks."""
    registry = CollectorRegistry()
    member = Member(place, registry=registry)
    metrics = member.metrics
    jobs = metrics.counter("jobs_total", "Jobs.", ["kind"]).labels("a")
    seconds = metrics.histogram("seconds", "Time.", buckets=[1.0])
    level = metrics.gauge("level", "Level.")
    theirs = prometheus_client.Counter("theirs", "Theirs.", registry=registry)
    gone = metrics.counter("gone_total", "Removed, and still in the total.", ["kind"])
    gone.labels("x").inc(3)
    gone.remove("x")

    def count() -> None:
        jobs.inc()
        seconds.observe(0.5)
        level.inc()
        theirs.inc()

    def check(times: float) -> None:
        samples = member.samples()
        assert samples["jobs_total"] == {(("kind", "a"),): times}
        assert samples["seconds_bucket"][("le", "1.0"),] == samples["seconds_count"][()] == times
        assert samples["seconds_sum"] == {(): times / 2}
        assert samples["level"] == {(): times}
        assert samples["theirs_total"] == {(): times}
        assert samples["gone_total"] == {(("kind", "x"),): 3}
        assert not member.faults.counts

    return member, count, check


def test_a_removed_directory_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is removed, directory and all above it, the next scrape shows every number, and counting goes on."""
    place = tmp_path / "ours"
    place.mkdir(0o700)
    member, count, check = _counting(place)
    count()
    check(1)
    with caplog.at_level(logging.WARNING, "fastapi_observe"):
        for number, removed in enumerate((place / NAME, place)):
            remove_tree(removed)
            count()
            check(2 * number + 2)
            count()
            check(2 * number + 3)
            assert member.samples()["fastapi_observe_metrics_degraded"] == {(): 0}
            assert len(list((place / NAME).glob("*.keys"))) == 1
    assert len([record for record in caplog.records if "was removed" in record.message]) == 2
    assert "trace_id" not in member.text("application/openmetrics-text")
    member.leave()


@pytest.mark.parametrize("kind", KINDS)
def test_a_cleaner_that_takes_one_file(kind: str, tmp_path: Path) -> None:
    """Any one file of a worker may go: it makes all of them again, and nothing counts twice."""
    member, count, check = _counting(tmp_path)
    count()
    member.worker.file_prefix.with_suffix(kind).unlink()
    count()
    check(2)
    assert len(list((tmp_path / NAME).glob("*.keys"))) == 1
    count()
    check(3)
    member.leave()


def test_what_the_dead_have_left_is_remembered(tmp_path: Path) -> None:
    """The archive goes with the directory, or alone: who has read it writes it again, once."""
    dead, count, _ = _counting(tmp_path)
    count()
    dead.die()
    living, count, _ = _counting(tmp_path)
    living.metrics.gauge("level", "Level.").set(1)
    assert living.samples()["theirs_total"] == {(): 1}
    assert (tmp_path / NAME / "archive").exists()
    for removed in ("archive", "everything", "everything"):
        if removed == "archive":
            (tmp_path / NAME / removed).unlink()
        else:
            remove_tree(tmp_path / NAME)
        count()
        assert living.samples()["jobs_total"] == {(("kind", "a"),): living.samples()["level"][()]}
        assert (tmp_path / NAME / "archive").exists()
    assert living.samples()["jobs_total"] == {(("kind", "a"),): 4}
    living.leave()


def test_who_came_first_after_the_removal_had_an_archive_of_its_own(tmp_path: Path) -> None:
    """What a worker remembers of the dead is added to what has come since; who brings it later adds nothing."""
    dead = Member(tmp_path)
    dead.metrics.counter("jobs_total", "Jobs.").inc(3)
    dead.die()
    living = Member(tmp_path)
    assert living.samples()["jobs_total"] == {(): 3}
    remove_tree(tmp_path / NAME)
    for number in (5, 7):
        fresh = Member(tmp_path)
        fresh.metrics.counter("jobs_total", "Jobs.").inc(number)
        fresh.die()
        Member(tmp_path).samples()
        assert living.samples()["jobs_total"] == {(): 8 if number == 5 else 15}
        for kind in KINDS:
            living.worker.file_prefix.with_suffix(kind).unlink()
    assert living.samples()["jobs_total"] == {(): 15}
    living.leave()


def test_who_leaves_takes_his_counts_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that ends after the removal, unasked, still leaves its counts to the next ones."""
    monkeypatch.setattr(worker_meeting, "is_supervisor_alive", lambda _: True)
    member, count, _ = _counting(tmp_path)
    count()
    remove_tree(tmp_path / NAME)
    member.leave()
    other = Member(tmp_path)
    assert other.samples()["jobs_total"] == {(("kind", "a"),): 1}
    assert other.samples()["gone_total"] == {(("kind", "x"),): 3}
    other.leave()


def test_a_directory_that_cannot_be_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said once and shown as degraded, every number there; made again once it can be; leaving needs none."""
    monkeypatch.setattr(standing, "RETRY_INTERVAL", 0.0)
    place = tmp_path / "ours"
    place.mkdir(0o700)
    member, count, check = _counting(place)
    count()
    check(1)
    remove_tree(place)
    place.touch()
    with caplog.at_level(logging.WARNING, "fastapi_observe"):
        for times in (2, 3):
            count()
            member.metrics.counter("late_total", "Late.", ["number"]).labels(times).inc()
            check(times)
            assert member.samples()["fastapi_observe_metrics_degraded"] == {(): 1}
            assert "# EOF" in member.text("application/openmetrics-text")
    assert len([record for record in caplog.records if "cannot be made again" in record.message]) == 1
    place.unlink()
    count()
    check(4)
    assert sum(member.samples()["late_total"].values()) == 2
    assert member.samples()["fastapi_observe_metrics_degraded"] == {(): 0}
    remove_tree(place)
    place.touch()
    member.leave()


def test_no_space_to_make_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no space the old numbers stay where they were, and move once there is some."""
    monkeypatch.setattr(standing, "RETRY_INTERVAL", 0.0)
    with tmpfs(tmp_path / "small", "size=256k,mode=700") as place:
        member, count, check = _counting(place)
        count()
        remove_directory(place / NAME)
        ballast = place / "ballast"
        try:
            ballast.write_bytes(bytes(300_000))
        except OSError:
            count()
        check(2)
        assert member.samples()["fastapi_observe_metrics_degraded"] == {(): 1}
        ballast.unlink()
        count()
        check(3)
        assert member.samples()["fastapi_observe_metrics_degraded"] == {(): 0}
        member.leave()


def test_a_move_that_is_broken_off_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails when the new files are all but there leaves nobody with half of them: the old ones go on."""
    monkeypatch.setattr(standing, "RETRY_INTERVAL", 0.0)
    member, count, check = _counting(tmp_path)
    count()
    remove_tree(tmp_path / NAME)
    with monkeypatch.context() as patch:
        patch.setattr(ValueFileWriter, "publish", lambda _: (_ for _ in ()).throw(OSError("no space")))
        count()
        check(2)
        assert not list((tmp_path / NAME).glob("*.values"))
    count()
    check(3)
    member.leave()


def test_a_worker_that_nobody_asks_looks_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a tick, without a scrape; what fails in it is counted, and it looks again."""
    monkeypatch.setattr(worker_meeting, "WATCH_INTERVAL", 0.01)
    member = Member(tmp_path)
    counter = member.metrics.counter("jobs_total", "Jobs.")
    counter.inc()
    real = worker_meeting.Worker.restore_files
    failed: list[int] = []

    def recover(worker: worker_meeting.Worker) -> bool:
        if not failed:
            failed.append(1)
            raise ValueError("ours")
        return real(worker)

    monkeypatch.setattr(worker_meeting.Worker, "restore_files", recover)
    until(lambda: failed)
    remove_tree(tmp_path / NAME)
    until(lambda: list((tmp_path / NAME).glob("*.keys")))
    counter.inc()
    assert member.samples()["jobs_total"] == {(): 2}
    assert member.faults.counts == {"workers.watch": 1}
    member.leave()


def test_a_holder_of_cells_that_fails_to_follow_is_counted(tmp_path: Path) -> None:
    """One that raises while it moves keeps the others from nothing."""
    member, count, _ = _counting(tmp_path)
    member.worker.on_files_moved.insert(0, lambda: 1 / 0)  # type: ignore[arg-type]
    remove_tree(tmp_path / NAME)
    count()
    assert member.samples()["jobs_total"] == {(("kind", "a"),): 1}
    assert member.faults.counts == {"workers.rebind": 1}
    member.leave()


@pytest.mark.usefixtures("gunicorn")
def test_who_cannot_join_at_first_joins_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What hinders is told once and tried again, by itself: then all that was counted meanwhile is shared."""
    monkeypatch.setattr(join, "RETRY_INTERVAL", 0.01)
    place = tmp_path / "later"
    faults = InternalErrors()
    settings = ObserveSettings(multiprocess_directory=str(place), include_default_registry=False)
    metrics = MetricsService(settings, faults)
    counter = metrics.counter("jobs_total", "Jobs.")
    for number in (1, 2):
        one = WorkerGroup(settings, faults, metrics.sharing)
        with caplog.at_level(logging.WARNING, "fastapi_observe"):
            one.start()
        counter.inc()
        assert "fastapi_observe_metrics_degraded 1.0" in metrics.render("", "")[1].decode()
        if number == 1:
            one.stop()  # it was not to be
    place.mkdir(0o700)
    until(lambda: "fastapi_observe_metrics_degraded 0.0" in metrics.render("", "")[1].decode())
    counter.inc()
    assert "jobs_total 3" in metrics.render("", "")[1].decode()
    assert len(list(place.glob("fastapi-observe-*/*/*.keys"))) == 1
    assert len([record for record in caplog.records if "counted apart" in record.message]) == 2
    one.stop()
    assert not faults.counts


@pytest.mark.usefixtures("gunicorn")
def test_a_fault_of_ours_ends_the_trying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else goes wrong while joining later is counted, and not tried for ever."""
    monkeypatch.setattr(join, "RETRY_INTERVAL", 0.01)
    faults = InternalErrors()
    settings = ObserveSettings(multiprocess_directory=str(tmp_path / "none"))
    one = WorkerGroup(settings, faults, MetricsService(settings, faults).sharing)
    one.start()
    monkeypatch.setattr(join, "open_root", lambda _: 1 / 0)
    until(lambda: faults.counts)
    assert faults.counts == {"workers.start": 1}
    one.stop()


def test_which_processes_run() -> None:
    """Ours does; one that has ended, and what is no process at all, do not."""
    assert pid_exists(os.getpid())
    assert not pid_exists(4194305)
    assert not pid_exists(0)


@pytest.mark.parametrize("ends", ["nobody", "replaced", "killed"])
def test_a_server_whose_directory_is_removed(ends: str, tmp_path: Path) -> None:
    """Any worker that is asked is exact at once, and never goes back, also when one is replaced meanwhile."""
    with serving_workers("uvicorn", tmp_path) as server:
        sent = server.spread(3)
        assert server.total("http_requests_total") == sent
        (directory,) = tmp_path.glob("fastapi-observe-*/*")
        pids = {int(path.name.partition("-")[0]) for path in directory.glob("*.lock")}
        remove_tree(directory.parent if ends == "nobody" else directory)
        if ends == "replaced":
            os.kill(min(pids), signal.SIGTERM)
            until(lambda: not pid_exists(min(pids)))
        sent += len(server.count(6))
        for _ in range(8):
            samples = server.samples()
            assert sum(samples["http_requests_total"].values()) == sent
            assert sum(samples["user_before_total"].values()) == samples["user_seconds_count"][()] == sent
            assert samples["fastapi_observe_metrics_degraded"] == {(): 0}
        if ends == "killed":  # all have come to the new directory
            os.kill(min(pids), signal.SIGKILL)
            until(lambda: not pid_exists(min(pids)))
        for _ in range(4):
            assert server.total("http_requests_total") == sent
        assert server.total("late_total") == sent
