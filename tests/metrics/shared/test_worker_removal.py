"""The directory of the workers, or a file in it, removed while it is in use: each worker goes on by itself."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import prometheus_client
import pytest
from injection import replacing

from fastapi_observe.workers.directory import check_directory

pytest.importorskip("fcntl")

from members import NAME, Member
from prometheus_client import CollectorRegistry
from servers_of_workers import serving_workers
from tools import remove_tree, until

from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.workers import worker as worker_module
from fastapi_observe.workers.directory import UnsafeDirectoryError
from fastapi_observe.workers.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_watching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers check their files at scrapes only."""
    monkeypatch.setattr(worker_module, "WATCH_INTERVAL", 30.0)


def make_member(place: Path) -> tuple[Member, Callable[[], None], Callable[[float], None]]:
    """Make a worker with every kind of metric. Returns it, a function that counts, and one that checks."""
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
        assert not member.internal_errors.counts

    return member, count, check


def remove(what: str, member: Member) -> None:
    """Remove the directory, the one above it or one file, or make the directory accessible to other users."""
    directory = member.worker.directory
    if what == "root":
        remove_tree(directory.parent)
    elif what == "root of another user":
        if os.geteuid() != 0:
            pytest.skip("only root can give a directory away")
        remove_tree(directory.parent)
        directory.parent.mkdir(0o777)
        os.chown(directory.parent, 65534, -1)
    elif what == "directory":
        remove_tree(directory)
    elif what == "replaced by a file":
        remove_tree(directory)
        directory.touch()
    elif what.startswith("open"):
        (directory.parent if what == "open root" else directory).chmod(0o777)
    elif what == "archive":
        (directory / "archive").unlink()
    else:
        member.worker.file_prefix.with_suffix(what).unlink()


@pytest.mark.parametrize(
    "what",
    ["root", "root of another user", "directory", "replaced by a file", "open root", "open directory", "archive",
     ".index", ".values", ".lock", ".requests"],
)  # fmt: skip
def test_each_worker_goes_on_by_itself(what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its own counts are exact from then on, new series too; metrics are degraded, and one warning says what to do."""
    place = tmp_path / "ours"
    place.mkdir(0o700)
    ended = Member(place)
    ended.metrics.counter("jobs_total", "Jobs.", ["kind"]).labels("a").inc(7)
    ended.die()
    member, count, check = make_member(place)
    count()
    assert member.samples()["jobs_total"] == {(("kind", "a"),): 8}
    remove(what, member)
    with caplog.at_level(logging.WARNING, "fastapi_observe"):
        for times in (2, 3):
            count()
            member.metrics.counter("late_total", "Late.", ["number"]).labels(times).inc(exemplar={"a": "b"})
            check(times)
            assert 'a="b"' in member.text("application/openmetrics-text")
            assert member.samples()["fastapi_observe_metrics_degraded"] == {(): 1}
            assert member.samples()["fastapi_observe_workers"] == {(): 1}
    assert sum(member.samples()["late_total"].values()) == 2
    (warning,) = [record.message for record in caplog.records if "no longer share" in record.message]
    assert "Restart the server, and set multiprocess_directory" in warning
    member.leave()


def test_a_worker_does_not_join_in_the_root_of_another_user(tmp_path: Path) -> None:
    """A root that was made again by another user is refused, even if the directory in it looks right."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    root = tmp_path / "root"
    (root / NAME).mkdir(0o700, parents=True)
    root.chmod(0o700)
    os.chown(root, 65534, -1)
    with pytest.raises(UnsafeDirectoryError, match="belongs to user 65534"):
        Worker(root / NAME, InternalErrors())
    assert not list((root / NAME).iterdir())


def test_workers_that_start_later_share_again(tmp_path: Path) -> None:
    """They make the directory again, and have nothing to do with those that lost it."""
    lost, count, check = make_member(tmp_path)
    count()
    remove_tree(tmp_path / NAME)
    fresh = Member(tmp_path)
    fresh.metrics.counter("jobs_total", "Jobs.", ["kind"]).labels("a").inc(5)
    check(1)
    fresh.die()
    other = Member(tmp_path)
    assert other.samples()["jobs_total"] == {(("kind", "a"),): 5}
    assert other.samples()["fastapi_observe_metrics_degraded"] == {(): 0}
    other.die()
    lost.leave()
    last = Member(tmp_path)
    assert last.samples()["jobs_total"] == {(("kind", "a"),): 5}
    last.leave()


def test_the_removal_is_noticed_without_a_scrape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker checks its files by itself. An internal error there is counted, and it goes on checking."""
    monkeypatch.setattr(worker_module, "WATCH_INTERVAL", 0.01)
    failed: list[int] = []

    def fail_once(original: Callable[[Path], None], path: Path) -> None:
        if len(failed) == 1:
            failed.append(1)
            raise ValueError(path)
        original(path)

    member = Member(tmp_path)
    with replacing(check_directory, fail_once):
        failed.append(1)
        until(lambda: member.internal_errors.counts)
    assert member.internal_errors.counts == {"workers.watch": 1}
    with caplog.at_level(logging.WARNING, "fastapi_observe"):
        remove_tree(tmp_path / NAME)
        until(lambda: [record for record in caplog.records if "no longer share" in record.message])
    member.leave()


def test_a_server_whose_directory_is_removed(tmp_path: Path) -> None:
    """Each worker reports exactly the requests that it has served, and that its metrics are degraded."""
    with serving_workers("uvicorn", tmp_path, 2) as server:
        sent = server.spread(2)
        assert server.total("http_requests_total") == sent
        (directory,) = tmp_path.glob("fastapi-observe-*/*")
        remove_tree(directory)
        sent += len(server.count(6))
        totals: set[float] = set()

        def both_have_answered() -> bool:
            samples = server.samples()
            total = sum(samples["http_requests_total"].values())
            assert sum(samples["user_before_total"].values()) == samples["user_seconds_count"][()] == total
            assert samples["fastapi_observe_metrics_degraded"] == {(): 1}
            totals.add(total)
            return any(one + other == sent for one in totals for other in totals)

        until(both_have_answered)
        assert len(totals) <= 2
    assert not os.path.lexists(directory) or not list(directory.glob("*.index"))
