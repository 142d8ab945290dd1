"""What workers fall back upon in odd moments, one by one: servers reach them by chance only."""

from __future__ import annotations

import os
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("fcntl")

import prometheus_client
from members import NAME, Member
from prometheus_client import CollectorRegistry
from tools import remove_tree

from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.metrics.service import MetricsService
from fastapi_observe.settings.model import ObserveSettings
from fastapi_observe.workers import join, standing
from fastapi_observe.workers import worker as worker_meeting
from fastapi_observe.workers.archive import Archive
from fastapi_observe.workers.files import ValueFileReader, ValueFileWriter
from fastapi_observe.workers.join import WorkerGroup
from fastapi_observe.workers.standing import REJOIN_TIMEOUT
from fastapi_observe.workers.worker import _is_held

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOBODY = 4194305
"""No process has this id."""


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nobody look by himself: the tests say when."""
    monkeypatch.setattr(worker_meeting, "WATCH_INTERVAL", 30.0)


@pytest.fixture
def member(tmp_path: Path) -> Iterator[Member]:
    """A worker."""
    made = Member(tmp_path)
    yield made
    made.leave()


def stranger(member: Member, pid: int) -> ValueFileReader:
    """What is known of another worker, whose files are not there."""
    reading = ValueFileReader(member.worker.directory / f"{pid}-1", pid)
    reading.living, reading.own = True, False
    return reading


def test_an_archive_that_is_a_link_counts_as_empty(tmp_path: Path) -> None:
    """It is not followed, and shown as damaged."""
    (tmp_path / "elsewhere").write_bytes(b"{}\n")
    (tmp_path / "archive").symlink_to(tmp_path / "elsewhere")
    archive = Archive(tmp_path)
    archive.read()
    assert archive.reading.unreadable
    assert archive.reading.series == []


def test_files_are_published_once(tmp_path: Path) -> None:
    """Again changes nothing."""
    files = ValueFileWriter(tmp_path / "1-1")
    files.publish()
    before = sorted(tmp_path.iterdir())
    files.publish()
    assert sorted(tmp_path.iterdir()) == before
    files.close()


def test_a_worker_without_files_lives_while_its_process_does(member: Member) -> None:
    """Where the directory was removed its process tells, unless it says that it has moved."""
    worker, here, gone = member.worker, stranger(member, os.getpid()), stranger(member, NOBODY)
    assert worker._is_missed(here, removed=True)
    assert not worker._is_missed(here, removed=False)
    assert not worker._is_missed(gone, removed=True)
    here.stem.with_suffix(".moved").touch()
    assert not worker._is_missed(here, removed=True)


def test_a_lock_that_somebody_removed_does_not_make_a_worker_dead(member: Member) -> None:
    """Its process is looked for instead."""
    for pid, living in ((os.getpid(), True), (NOBODY, False)):
        reading = stranger(member, pid)
        member.worker._readings[reading.name] = reading
        member.worker._refresh_one(reading)
        assert reading.living is living


def test_a_lock_that_cannot_be_asked_is_held(member: Member) -> None:
    """Else what a living worker has would be folded, and counted twice."""
    reading = stranger(member, NOBODY)
    reading.stem.with_suffix(".lock").symlink_to(member.worker.directory)
    assert _is_held(reading)


def test_what_cannot_be_made_again_is_not_tried_at_each_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left in peace for a while; then it is tried again."""
    place = tmp_path / "place"
    place.mkdir(0o700)
    member = Member(place)
    remove_tree(place)
    place.touch()
    assert not member.worker.restore_files()
    member.worker._watch()  # looks after nothing else meanwhile
    place.unlink()
    assert not member.worker.restore_files()
    monkeypatch.setattr(member.worker, "_again", 0.0)
    assert member.worker.restore_files()
    member.leave()


def test_a_scrape_waits_for_those_who_have_not_come_yet(member: Member) -> None:
    """Not for those whose process has ended, and not for ever."""
    member.worker._peers = {os.getpid(), NOBODY}
    member.worker._awaited = monotonic() + 0.05
    member.worker._wait_for_peers()  # this process is there
    assert member.worker._awaited == 0.0
    member.worker._peers = {os.getppid()}
    member.worker._awaited = monotonic() + 0.05
    member.worker._wait_for_peers()  # that one never comes
    assert member.worker._awaited == 0.0
    assert REJOIN_TIMEOUT < 5


def test_a_directory_that_is_gone_cannot_be_locked(tmp_path: Path) -> None:
    """Who wants to is told so."""
    member = Member(tmp_path)
    remove_tree(tmp_path / NAME)
    with member.worker._locked(0.0) as got:
        assert not got
    member.leave()


def test_series_that_find_no_space_in_the_new_files_stay_with_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a removed directory had is made again; what has no room there any more is shown all the same."""
    registry = CollectorRegistry()
    member = Member(tmp_path, registry=registry)
    jobs = member.metrics.counter("jobs_total", "Jobs.", ["kind"])
    level = member.metrics.gauge("level", "Level.")
    theirs = prometheus_client.Counter("theirs", "Theirs.", ["kind"], registry=registry)
    level.set(7)
    for kind in "abc":
        jobs.labels(kind).inc()
        theirs.labels(kind).inc()
    remove_tree(tmp_path / NAME)
    with monkeypatch.context() as patch:
        patch.setattr(ValueFileWriter, "records", lambda _: [])  # as if they had come while the new files were made
        patch.setattr(ValueFileWriter, "allocate", lambda *_: (_ for _ in ()).throw(OSError("no space")))
        assert member.worker.restore_files()
    jobs.labels("a").inc()
    theirs.labels("a").inc()
    samples = member.samples()
    assert samples["jobs_total"] == {(("kind", "a"),): 2, (("kind", "b"),): 1, (("kind", "c"),): 1}
    assert samples["theirs_total"] == {(("kind", "a"),): 2, (("kind", "b"),): 1, (("kind", "c"),): 1}
    assert samples["level"] == {(): 7}
    with monkeypatch.context() as patch:
        patch.setattr(ValueFileWriter, "allocate", lambda *_: (_ for _ in ()).throw(OSError("no space")))
        jobs.labels("d").inc()
        theirs.labels("d").inc()
        member.metrics.sharing._rebind()  # what is alone already stays what it is
        samples = member.samples()
        assert samples["jobs_total"][("kind", "d"),] == samples["theirs_total"][("kind", "d"),] == 1
    member.leave()


def test_who_stops_while_it_waits_for_its_turn_does_not_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that tries to join looks once more before it does."""
    monkeypatch.setenv("SERVER_SOFTWARE", "gunicorn")
    monkeypatch.setattr(join, "RETRY_INTERVAL", 0.0)
    faults = InternalErrors()
    settings = ObserveSettings(multiprocess_directory=str(tmp_path / "none"), include_default_registry=False)
    one = WorkerGroup(settings, faults, MetricsService(settings, faults).sharing)
    with one._turn:
        one._keep_trying(os.getpid())
        assert one._retry is not None
        thread, ended = one._retry
        _waits(thread)
        ended.set()
    thread.join(10)
    assert not thread.is_alive()
    assert one._at is None
    assert not faults.counts


def test_joining_is_tried_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as the system refuses."""
    tried, often = [0], threading.Event()

    def refuse(_: object) -> Path:
        tried[0] += 1
        if tried[0] > 3:
            often.set()
        raise OSError("no space")

    monkeypatch.setenv("SERVER_SOFTWARE", "gunicorn")
    monkeypatch.setattr(join, "RETRY_INTERVAL", 0.001)
    monkeypatch.setattr(join, "open_root", refuse)
    faults = InternalErrors()
    settings = ObserveSettings(multiprocess_directory=str(tmp_path), include_default_registry=False)
    one = WorkerGroup(settings, faults, MetricsService(settings, faults).sharing)
    one.start()
    assert often.wait(10)
    one.stop()
    assert not faults.counts


def _waits(thread: threading.Thread) -> None:
    """Let it come to the lock."""
    thread.join(0.05)
    assert thread.is_alive()


def test_peers_are_not_awaited_without_a_move(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scrape of the usual kind waits for nobody."""
    naps: list[Any] = []
    monkeypatch.setattr(standing, "sleep", naps.append)
    member.worker._peers = {os.getppid()}
    member.samples()
    assert naps == []
